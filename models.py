"""Networks of StyleVideoGAN (Fox et al., BMVC 2021, arXiv:2107.07224) and of the image models it stands on.

Imports only torch, numpy and the standard library, so that the file can be copied into any project:

    model = load_image_model("faces128")                # or a pSp / e4e / rosinality / NVIDIA file, or "ffhq"
    w = model.encode(images)                            # (B, 3, H, W) in [-1, 1] -> (B, L, D)
    frames = model.render(w)                            # (B, L, D) -> (B, 3, size, size)

Shapes: B batch, T frames, L style rows (2 log2(size) - 2), D style width, Z width of an image model's z.
W+ code: (L, D). W+ trajectory: (T, L, D). Pictures: (B, 3, H, W) in [-1, 1].

1 StyleVideoGAN: generator G = (H, P, T), critic C, penalties, offset trick; whole in itself. 2 StyleGAN2
(Karras et al. 2020). 3 pSp encoder (Richardson et al. 2021). 4 Image model = 2 + 3, and its loader. Parameter
names of 2 are those of rosinality/stylegan2-pytorch, of 3 those of eladrich/pixel2style2pixel, so that
published files load as they are.
"""

import collections
import contextlib
import functools
import hashlib
import importlib
import io
import math
import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class InputError(ValueError):
    """Bad input. The message is one sentence for the user: it names the file and the cure."""


def pick_device(name):
    """--device -> torch.device; "auto" is cuda where there is one. Raises InputError."""
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.zeros(1, device=name).device                               # cuda: with its number
    except Exception as error:                              # torch raises several types here, with long texts
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} is not there ({reason}); use --device cpu.") from None


# ------------------------------------------------------------------------------------------------------------
# 1. StyleVideoGAN (Fox et al. 2021, sec. 3; supplement, tables 4 to 7)
# ------------------------------------------------------------------------------------------------------------

SLOPE = 0.2  # LeakyReLU. Open in the paper; ours: the slope of StyleGAN and DCGAN, which the tables lean on


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2)) over the last dimension (Karras et al. 2018, sec. 4.2)."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


def mlp(widths):
    """(linear + LeakyReLU) from each width to the next."""
    pairs = zip(widths, widths[1:])
    return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.LeakyReLU(SLOPE))))


class Translator(nn.Module):
    """T (table 6): motion codes -> W+ codes; and what every motion model does in the same way.

    A motion model adds `kind` (its name in MOTION_MODELS), `start`, `memory`, `noise` (numbers of i, rows of
    its memory h, numbers of each s_k), `hidden(i)` -> h (memory, B, 32), on which alone the future depends,
    `code(h)` -> the motion code (B, code) of the frame that h stands at, and `roll(s, h)` -> the next K of
    them (B, K, code), h after them. code: width of a motion code, T's input. width: of T, 512 = D in the
    paper; ours: D where D is not 512.
    """

    def __init__(self, L, D, code=32, width=None):
        super().__init__()
        width = width or D
        self.L, self.D, self.width = L, D, width

        # BatchNorm + affine + PixelNorm, 4 layers, BatchNorm + affine, 18 parallel (linear + LeakyReLU +
        # BatchNorm; sec. 3: affine alone), computed as one linear layer of L D outputs, started as nn.Linear
        self.translate_in = nn.Sequential(nn.BatchNorm1d(code), nn.Linear(code, width), PixelNorm(),
                                          *mlp(5 * [width]), nn.BatchNorm1d(width), nn.Linear(width, width))
        self.rows = nn.Parameter(torch.empty(L, width, D).uniform_(-1, 1) / math.sqrt(width))
        self.rows_bias = nn.Parameter(torch.empty(L, D).uniform_(-1, 1) / math.sqrt(width))
        self.rows_norm = nn.BatchNorm1d(L * D)

    @torch.no_grad()
    def prepare(self, codes, clips, pca):
        """Before a training on codes (N, L, D): T's last BatchNorm starts at their mean and deviation (ours).

        clips, pca: of the training codes, for models that need more than their scale.
        """
        self.rows_norm.weight.copy_(codes.std(0).flatten())
        self.rows_norm.bias.copy_(codes.mean(0).flatten())

    def translate(self, l):
        """T: motion codes (..., code) -> W+ codes (..., L, D)."""
        v = self.translate_in(l.flatten(0, -2))                                 # (N, width)
        weight = self.rows.transpose(1, 2).reshape(-1, self.width)              # (L D, width)
        w = F.linear(v, weight, self.rows_bias.flatten())                       # (N, L D)
        w = self.rows_norm(F.leaky_relu_(w, SLOPE))
        return w.reshape(*l.shape[:-1], self.L, self.D)

    def motion(self, i, s):
        """i (B, start), s (B, T-1, noise) -> l (B, T, code), the first of them code(hidden(i))."""
        h = self.hidden(i)
        return torch.cat([self.code(h)[:, None], self.roll(s, h)[0]], 1)

    def forward(self, i, s):
        return self.translate(self.motion(i, s))                                # (B, T, L, D)


class MotionGenerator(Translator):
    """G = (H, P, T): noise -> trajectory of W+ codes. i (B, 32), s (B, T-1, 32) -> w (B, T, L, D).

    H (table 4) hallucinates the memory of three GRU cells from i, the fourth starts as i (sec. 3; the table's
    caption speaks of four). P (table 5) is four stacked GRU cells; the fourth's memory is the motion code l.
    T (table 6) translates each l_k, l_0 = i, to a W+ code.
    """

    kind, memory = "stylevideogan", 4

    def __init__(self, L, D, noise=32, width=None):
        super().__init__(L, D, noise, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": self.width}
        self.noise = self.start = noise

        # H. The hidden widths are open; ours: that of the output, 3 x 32, so that no layer is a bottleneck
        self.hallucinate = nn.Sequential(*mlp([noise] + 4 * [3 * noise]), nn.BatchNorm1d(3 * noise))

        # P
        self.produce = nn.GRU(noise, noise, num_layers=4, batch_first=True)

    def hidden(self, i):
        """Start noise (B, 32) -> memory of the four cells (4, B, 32): (H(i), i)."""
        B, noise = i.shape
        h = self.hallucinate(i).reshape(B, 3, noise).transpose(0, 1)            # (3, B, 32)
        return torch.cat([h, i[None]])                                          # (4, B, 32)

    def code(self, h):
        """l of the frame that memory (4, B, 32) stands at: (B, 32)."""
        return h[3]

    def roll(self, s, h):
        """P: noise (B, K, 32), memory (4, B, 32) -> next K motion codes (B, K, 32), memory after them."""
        return self.produce(s, h)


# kind: (module, class). A motion file names its kind; what does not stand here is not imported
MOTION_MODELS = {
    "stylevideogan": (__name__, "MotionGenerator"),
    "stylegan_v": ("baselines.stylegan_v", "StyleGANV"),
    "one_style": ("baselines.one_style", "OneStyle"),
    "styleinv": ("baselines.styleinv", "StyleInV"),
    "mocogan_hd": ("baselines.mocogan_hd", "MoCoGANHD"),
    "mocogan": ("baselines.mocogan", "MoCoGAN"),
    "digan": ("baselines.digan", "DIGAN"),
    "longvideogan": ("baselines.longvideogan", "LongVideoGAN"),
    "gp_start": ("baselines.gp_start", "GPStart"),
    "noise": ("baselines.gaussian", "FilteredNoise"),
    "var": ("baselines.gaussian", "VAR"),
    "textures": ("baselines.textures", "Textures"),
}


def motion_model(kind):
    """The class of a kind of motion model. Raises KeyError."""
    module, name = MOTION_MODELS[kind]
    return getattr(importlib.import_module(module), name)


def fours(x):
    """(B, t, c) -> (B, t // 2, 4 c): what a convolution of kernel 4, stride 2, padding 1 sees where."""
    B, t, c = x.shape
    twos = F.pad(x, (0, 0, 1, 1))[:, :t // 2 * 2 + 2].reshape(B, t // 2 + 1, 2 * c)
    return torch.cat([twos[:, :-1], twos[:, 1:]], 2)


def fours_transposed(g, t):
    """The transpose of fours() as a matrix: (B, t // 2, 4 c) -> (B, t, c)."""
    B, n, c = g.shape[0], g.shape[1], g.shape[2] // 4
    twos = F.pad(g[..., :2 * c], (0, 0, 0, 1)) + F.pad(g[..., 2 * c:], (0, 0, 1, 0))        # (B, n + 1, 2 c)
    return F.pad(twos.reshape(B, 2 * n + 2, c), (0, 0, 0, t - 2 * n))[:, 1:t + 1]


class MotionCritic(nn.Module):
    """C: a trajectory of T W+ codes (B, T, L, D) -> a score (B,) (table 7).

    E extracts 32 features per frame; a 1-D DCGAN critic without batch norm (sec. 3) judges their sequence,
    its strided convolutions being linear layers on windows of four frames. Codes are scaled first, so that
    one gradient penalty fits all image models (which scale is open in the paper).
    """

    def __init__(self, L, D, T):
        super().__init__()
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("std", torch.ones(L, D))

        # ours: weights of a constant input that is 1 in windows which do not begin with i
        self.later = nn.Parameter(torch.zeros(D))

        # E: 2 layers to 512, ours to D; 4 to 32. The widths of these are open; ours: full until the last
        self.extract = nn.ModuleList([nn.Linear(L * D, D), *(nn.Linear(D, D) for _ in range(4)),
                                      nn.Linear(D, 32)])

        # Kernel 4, stride 2, channels that double up to 512 (open in the paper; ours: as DCGAN's Torch code)
        self.judge, c, t = nn.ModuleList(), 32, T
        while t > 4:                                                            # t = 25 -> 12 -> 6 -> 3
            self.judge.append(nn.Linear(4 * c, min(2 * c, 512)))
            c, t = min(2 * c, 512), t // 2
        self.judge.append(nn.Linear(c * t, 1))

    @torch.no_grad()
    def set_scale(self, mean, std):
        """Mean and scale of the training codes, (L, D) each; an entry of scale zero is left unscaled."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, w):
        return self.score(self.first_layer(w))

    def first_layer(self, w, later=0.0):
        """Codes (B, T, L, D), scaled, through the first linear layer: (B, T, D), before its LeakyReLU.

        The scale is folded into the layer, as w is far larger than its weights. later (B, 1, 1): 1 for
        windows that lie further on in their trajectory, 0 for those that begin with i (ours).
        """
        first = self.extract[0]
        weight = first.weight / self.std.flatten()                              # (D, L D)
        p = F.linear(w.flatten(-2), weight, first.bias - weight @ self.mean.flatten())
        return p + later * self.later

    def score(self, p, slopes=None):
        """The rest: first-layer outputs (B, T, D) -> (B,). slopes: a list that gets each LeakyReLU's."""
        def bend(x):
            if slopes is not None:
                slopes.append((x > 0).to(x.dtype).mul_(1 - SLOPE).add_(SLOPE))
            return F.leaky_relu_(x, SLOPE)

        x = bend(p.clone())
        for layer in self.extract[1:]:
            x = bend(layer(x))                                                  # (B, T, D), last 32
        for layer in self.judge[:-1]:
            x = bend(layer(fours(x)))                                           # (B, t // 2, 2 c)
        return self.judge[-1](x.flatten(1)).flatten()


def motion_critic(kind):
    """The class of a critic: "dense", MotionCritic, or "sparse", which sees three frames of a window."""
    if kind == "dense":
        return MotionCritic
    return importlib.import_module("baselines.sparse_critic").SparseCritic


def gradient_penalty(critic, p_real, p_fake, mix):
    """WGAN-GP penalty (Gulrajani et al. 2017, eq. 3), a scalar, at mixtures of real and fake windows.

    p_real, p_fake (B, T, D): critic.first_layer of them; it is linear, so the mixture of its outputs is
    the output of the mixture. mix (B, 1, 1) in [0, 1]: share of real. The gradient is the one with respect to
    the scaled codes x that the critic sees, in closed form: between its kinks the critic is linear, so the
    gradient is the product of its matrices with the slopes between them, which have no derivative of their
    own. That needs no second backward pass and no tensor with L D columns.
    """
    slopes = []
    with torch.no_grad():
        critic.score(mix * p_real + (1 - mix) * p_fake, slopes)

    # d score / d p, (B, T, D), from the last layer back to the first
    B, t, c = slopes[-1].shape
    g = critic.judge[-1].weight.reshape(1, t, c).expand(B, -1, -1)
    for layer in reversed(critic.judge[:-1]):
        g = fours_transposed((g * slopes.pop()) @ layer.weight, slopes[-1].shape[1])
    for layer in reversed(critic.extract[1:]):
        g = (g * slopes.pop()) @ layer.weight
    g = g * slopes.pop()

    # p = W x + b, so d score / d x = g W, whose squared norm is g (W W^T) g^T. clamp: rounding can leave a
    # tiny negative number, and the root's derivative is infinite at zero
    W = critic.extract[0].weight
    squared = ((g @ (W @ W.T)) * g).sum((1, 2))                                 # (B,)
    return (squared.clamp_min(1e-12).sqrt() - 1).square().mean()


class RunningNorm(nn.Module):
    """norm() of the gradient angle penalty: running mean and variance per component (sec. 3).

    momentum: share of the new batch. Open in the paper; ours: 0.1, BatchNorm's.
    """

    def __init__(self, n, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("var", torch.ones(n))
        self.register_buffer("fresh", torch.ones(()))       # 1 until the first batch sets both

    @torch.no_grad()
    def update(self, x):                                                        # (B, n)
        share = torch.where(self.fresh > 0, self.fresh, torch.full_like(self.fresh, self.momentum))
        self.mean.lerp_(x.mean(0), share)
        self.var.lerp_(x.var(0), share)
        self.fresh.zero_()

    def forward(self, x):
        return (x - self.mean) * torch.rsqrt(self.var + 1e-8)


def gradient_angle_penalty(l, i, s, norm):
    """L_GAP = max(0, pi/4 - phi)^2, phi = arctan(|dd/ds| / |dd/di|), d = |norm(l_{t-1} - l_0)| (sec. 3).

    l (B, T, 32) was made from i (B, 32) and s (B, T-1, 32), both requiring gradients. norm: RunningNorm, that
    the caller updates. Returns the mean over the batch and phi (B,), detached.
    """
    d = norm(l[:, -1] - l[:, 0]).norm(dim=1)                                    # (B,)
    d_s, d_i = torch.autograd.grad(d.sum(), (s, i), create_graph=True)

    # atan2 is the arctan of the quotient without the division; 1e-12 keeps the root's derivative finite at 0
    phi = torch.atan2((d_s.flatten(1).square().sum(1) + 1e-12).sqrt(), (d_i.square().sum(1) + 1e-12).sqrt())
    return F.relu(math.pi / 4 - phi).square().mean(), phi.detach()


def project(w, basis):
    """The part of w (..., L, D) that lies in span(basis); basis (32, L, D), orthonormal."""
    return torch.einsum("...n,nld->...ld", torch.einsum("...ld,nld->...n", w, basis), basis)


def transfer_offset(w_new, mean, basis):
    """Offset trick (sec. 3): Delta = w_new - w'_new, w'_new the projection of w_new onto mean + span(basis).

    w_new: (..., L, D), code of the new actor. mean (L, D), basis (32, L, D), orthonormal: PCA of the training
    codes. Adding Delta to every code of a trajectory moves it to the new actor. Returns (..., L, D).
    """
    away = w_new - mean                                                         # (..., L, D)
    return away - project(away, basis)


# ------------------------------------------------------------------------------------------------------------
# 2. StyleGAN2 generator (Karras et al., CVPR 2020), skip architecture
# ------------------------------------------------------------------------------------------------------------

SQRT2 = math.sqrt(2.0)
# {resolution: channels} of the official networks ("config-f")
WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


def fir_kernel(gain):
    """(4, 4) low-pass [1, 3, 3, 1] x [1, 3, 3, 1] with sum `gain` (Karras et al. 2020, appendix B)."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(k, k) / 64.0 * gain


def layout(x):
    """Memory format of feature maps. Channels last is what a CPU computes fast; on an H100 half precision at
    1024 px does 1.6 times as many frames without (studies.gpu)."""
    return torch.channels_last if x.device.type == "cpu" else torch.contiguous_format


def depthwise(x, kernel):
    """Filter every channel with one (4, 4) kernel, 1 px of zeros around: (B, C, H, W) -> (B, C, H-1, W-1).

    Grouped by channel: on a CPU several times faster than channels folded into the batch.
    """
    C = x.shape[1]
    return F.conv2d(x, kernel.to(x.dtype).expand(C, 1, 4, 4), padding=1, groups=C)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: stored divided by lr_mul, scaled at run time."""

    def __init__(self, d_in, d_out, bias_init=0.0, lr_mul=1.0, activation=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((d_out,), float(bias_init)))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(d_in), lr_mul, activation

    def forward(self, x):                                                   # (B, d_in)
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)  # (B, d_out)
        return F.leaky_relu(x, 0.2) * SQRT2 if self.activation else x


class ModulatedConv2d(nn.Module):
    """3x3 convolution whose input channels are scaled by a style, output demodulated (sec. 2.2).

    Scaling the activations before and after one shared convolution equals scaling each sample's weights,
    and needs no grouped convolution: y = demod * conv(style * x). Channels last, as hardware computes.
    """

    def __init__(self, c_in, c_out, D, up=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, 3, 3))
        self.modulation = EqualLinear(D, c_in, bias_init=1.0)
        self.scale, self.up = 1.0 / math.sqrt(9 * c_in), up
        if up:
            self.blur = nn.Module()
            self.blur.register_buffer("kernel", fir_kernel(4.0))        # 4: for the zeros between the pixels

    def forward(self, x, w, gain):
        """(B, c_in, h, w), (B, D) -> gain times the output, (B, c_out, h, w), twice the side if up."""
        weight = self.weight[0] * self.scale                            # (c_out, c_in, 3, 3)
        style = self.modulation(w)                                      # (B, c_in)
        style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-8)   # cancels; keeps fp16 in range
        demod = gain * torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)   # (B, c_out)

        # A picture alone has its weights scaled: they are smaller than its maps (1024 px: 12 % faster)
        alone = len(x) == 1
        if alone:
            weight = weight * style[0, :, None, None] * demod[0, :, None, None, None]
        else:
            x = x * style[:, :, None, None].to(x.dtype)

        weight = weight.to(x.dtype)
        if self.up:
            weight = weight.transpose(0, 1).contiguous(memory_format=layout(x))
            x = F.conv_transpose2d(x, weight, stride=2)                 # (B, c_out, 2h + 1, 2w + 1)
            x = depthwise(x, self.blur.kernel)                          # (B, c_out, 2h, 2w)
        else:
            x = F.conv2d(x, weight.contiguous(memory_format=layout(x)), padding=1)
        return x if alone else x * demod[:, :, None, None].to(x.dtype)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, c_in, c_out, D, up=False, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv2d(c_in, c_out, D, up)
        self.noise, self.activate = nn.Module(), nn.Module()
        self.noise.weight = nn.Parameter(torch.zeros(1))
        self.activate.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x, w, noise):
        # The gain goes before the activation: sqrt(2) f(x) = f(sqrt(2) x). In place: fresh memory costs time
        x = self.conv(x, w, gain=SQRT2)
        x.add_((SQRT2 * self.activate.bias)[:, None, None].to(x.dtype))
        x.add_((SQRT2 * self.noise.weight * noise).to(x.dtype))
        x = F.leaky_relu_(x, 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution to RGB, added to the up-sampled RGB of the resolution below; sums in fp32."""

    def __init__(self, c_in, D, up=True, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = nn.Module()
        self.conv.weight = nn.Parameter(torch.randn(1, 3, c_in, 1, 1))
        self.conv.modulation = EqualLinear(D, c_in, bias_init=1.0)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = nn.Module()
            self.upsample.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x, w, skip):
        B, C, r, _ = x.shape
        style = self.conv.modulation(w) / math.sqrt(C)                  # (B, C)
        weight = self.conv.weight.reshape(3, C) * style[:, None]        # (B, 3, C)
        rgb = x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.mT.to(x.dtype)               # (B, r r, 3)
        rgb = rgb.mT.reshape(B, 3, r, r).float() + self.bias.float()
        if self.clamp is not None:
            rgb = rgb.clamp(-self.clamp, self.clamp)
        if skip is None:
            return rgb
        kernel = self.upsample.kernel.float()[None, None]
        up = F.conv_transpose2d(skip.reshape(B * 3, 1, r // 2, r // 2), kernel, stride=2)
        return rgb + up[:, :, 1:-1, 1:-1].reshape(B, 3, r, r)


class Generator(nn.Module):
    """StyleGAN2 generator: mapping network `style` and synthesis network.

    size: picture side, a power of two >= 8. D: style width. Z: width of z. n_mlp: mapping layers, 0 for a
    network that is only driven with W+ codes. channels: {resolution: width}, None for the official ones.
    lr_mlp: learning-rate multiplier of the mapping network, 0.01 in every official file. clamp: bound of
    every layer's output (`conv_clamp` of stylegan2-ada-pytorch, for half precision), None for none.
    """

    def __init__(self, size, D=512, Z=512, n_mlp=8, channels=None, lr_mlp=0.01, clamp=None):
        super().__init__()
        channels = channels or WIDTHS
        self.size, self.D, self.Z, self.n_mlp, self.L = size, D, Z, n_mlp, 2 * int(math.log2(size)) - 2
        layers = [EqualLinear(D if k else Z, D, lr_mul=lr_mlp, activation=True) for k in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *layers)

        self.input, self.noises = nn.Module(), nn.Module()
        self.input.input = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        self.conv1 = StyledConv(channels[4], channels[4], D, clamp=clamp)
        self.to_rgb1 = ToRGB(channels[4], D, up=False, clamp=clamp)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for k, r in enumerate(2 ** e for e in range(3, int(math.log2(size)) + 1)):
            self.convs.append(StyledConv(channels[r // 2], channels[r], D, up=True, clamp=clamp))
            self.convs.append(StyledConv(channels[r], channels[r], D, clamp=clamp))
            self.to_rgbs.append(ToRGB(channels[r], D, clamp=clamp))
            self.noises.register_buffer(f"noise_{2 * k + 1}", torch.randn(1, 1, r, r))
            self.noises.register_buffer(f"noise_{2 * k + 2}", torch.randn(1, 1, r, r))

    def forward(self, w, resolution=None, dtype=torch.float32):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], never clamped.

        resolution: stop at this side and return the RGB sum reached there. dtype: of the feature maps
        (styles and RGB stay fp32). Noise: always the stored maps.
        """
        noise = [getattr(self.noises, f"noise_{k}") for k in range(self.L - 1)]
        x = self.input.input.to(dtype).expand(len(w), -1, -1, -1)           # (B, C, 4, 4)
        x = x.contiguous(memory_format=layout(x))
        x = self.conv1(x, w[:, 0], noise[0])
        rgb = self.to_rgb1(x, w[:, 1], None)
        for k, to_rgb in enumerate(self.to_rgbs):
            if rgb.shape[-1] == resolution:
                break
            j = 2 * k + 1               # rows j, j + 1 drive the convolutions, j + 2 RGB and the next block
            x = self.convs[2 * k](x, w[:, j], noise[j])
            x = self.convs[2 * k + 1](x, w[:, j + 1], noise[j + 1])
            rgb = to_rgb(x, w[:, j + 2], rgb)
        return rgb


# ------------------------------------------------------------------------------------------------------------
# 3. pSp encoder: GradualStyleEncoder on an IR-SE backbone (Richardson et al., CVPR 2021, sec. 3)
# ------------------------------------------------------------------------------------------------------------

class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018), reduction 16 as in ArcFace's IR-SE networks."""

    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Conv2d(c, max(1, c // 16), 1, bias=False)
        self.fc2 = nn.Conv2d(max(1, c // 16), c, 1, bias=False)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ResidualIRSE(nn.Module):
    """Residual unit of IR-SE-50: BN, conv, PReLU, conv (stride), BN, squeeze-and-excitation."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if c_in == c_out else nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False), nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), SqueezeExcite(c_out))

    def forward(self, x):
        return self.shortcut_layer(x) + self.res_layer(x)


class GradualStyleBlock(nn.Module):
    """map2style of pSp: stride-2 convolutions down to 1x1, then one linear layer gives a style row."""

    def __init__(self, c_in, width, D, spatial):
        super().__init__()
        convs = []
        for k in range(int(math.log2(spatial))):
            convs += [nn.Conv2d(width if k else c_in, width, 3, 2, 1), nn.LeakyReLU(0.01)]
        self.convs = nn.Sequential(*convs)
        self.linear = EqualLinear(width, D)

    def forward(self, x):                                                   # (B, c_in, spatial, spatial)
        return self.linear(self.convs(x).flatten(1))                        # (B, D)


class GradualStyleEncoder(nn.Module):
    """pSp encoder. The defaults are the official FFHQ-1024 one; faces128's differs in the arguments only.

    L: style rows. D: style width. size: side of the input picture. depths, widths: residual units and
    channels of the four stages (3, 4, 14, 3 and 64 to 512 is IR-SE-50). head: channels of the map2style
    blocks, D when None. Rows 0-2 are read from the last stage, 3-6 from the third, the others from the
    second (pSp, fig. 2). deltas: row j is what the styles give for rows 0 and j together, as in e4e (Tov et
    al. 2021, sec. 4.1), whose files are otherwise the same.
    """

    COARSE, MIDDLE = 3, 7                                                   # first middle row, first fine row

    def __init__(self, L=18, D=512, size=256, depths=(3, 4, 14, 3), widths=(64, 128, 256, 512), head=None,
                 deltas=False):
        super().__init__()
        self.L, self.D, self.size, self.deltas = L, D, size, deltas
        self.height = size                              # less for encoders of cars: ImageModel.encode
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]))
        units, c = [], widths[0]
        for depth, width in zip(depths, widths, strict=True):
            for k in range(depth):
                units.append(ResidualIRSE(c, width, 2 if k == 0 else 1))
                c = width
        self.body = nn.Sequential(*units)
        self.taps = [sum(depths[:n]) - 1 for n in (2, 3, 4)]                # 6, 20, 23 in IR-SE-50

        spatial = [size // (16 if j < self.COARSE else 8 if j < self.MIDDLE else 4) for j in range(L)]
        self.styles = nn.ModuleList(GradualStyleBlock(widths[3], head or D, D, s) for s in spatial)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x):
        """(B, 3, size, size) in [-1, 1] -> offsets from latent_avg, (B, L, D)."""
        def add(coarse, fine):                                          # feature pyramid: up-sample and add
            return F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True) + fine

        x, taps = self.input_layer(x), []
        for k, unit in enumerate(self.body):
            x = unit(x)
            if k in self.taps:
                taps.append(x)
        c1, c2, c3 = taps                                                   # at size / 4, / 8, / 16
        p2 = add(c3, self.latlayer1(c2))
        p1 = add(p2, self.latlayer2(c1))
        w = torch.stack([style(c3 if j < self.COARSE else p2 if j < self.MIDDLE else p1)
                         for j, style in enumerate(self.styles)], 1)        # (B, L, D)
        return torch.cat([w[:, :1], w[:, :1] + w[:, 1:]], 1) if self.deltas else w


# ------------------------------------------------------------------------------------------------------------
# 4. Image model: generator + encoder, and the loader
# ------------------------------------------------------------------------------------------------------------

ASSETS = Path(__file__).resolve().parent / "assets"
# Official models: file, address, sha256 where one is recorded. 1.2 GB each, research use only (NVIDIA Source
# Code License for the StyleGAN2 inside)
OFFICIAL = {
    "ffhq": ("psp_ffhq_encode.pt", "https://drive.google.com/uc?id=1bMTNWkh5LArlaWSc_wa8VKyq2V42T2z0", None),
    "ffhq-e4e": ("e4e_ffhq_encode.pt", "https://drive.google.com/uc?id=1cUv_reLE6k3604or78EranS7XzuVMWeO",
                 "2ace1d9a8c05c10a399bcd500b8dda118f759ff1aac89dbdab7435f2136a0999"),
}


class ImageModel:
    """A generator with its encoder, on one device, for inference only.

    size: side of the rendered pictures. L, D: shape of a W+ code. Z: width of z. latent_avg: (L, D). start:
    what the encoder's output is added to, latent_avg but for models trained without it. name, sha256: which
    file this is. encoder: GradualStyleEncoder, or None, and why_no_encoder is a sentence. has_actors:
    whether z gives new people (a model fitted to one video has no mapping network).
    """

    def __init__(self, generator, encoder, latent_avg, name="", sha256="", device="cpu"):
        self.generator = generator.eval().requires_grad_(False).to(device)
        self.encoder = encoder if encoder is None else encoder.eval().requires_grad_(False).to(device)
        self.size, self.L, self.D, self.Z = generator.size, generator.L, generator.D, generator.Z
        self.latent_avg = latent_avg.float().expand(self.L, self.D).to(device)
        self.start = self.latent_avg
        self.has_actors = generator.n_mlp > 0
        self.name, self.sha256, self.device = name, sha256, torch.device(device)
        self.why_no_encoder = f"{name} has no encoder; name a file that has one with --encoder FILE."

    @torch.no_grad()
    def encode(self, images):
        """(B, 3, H, W) in [-1, 1] -> W+ codes (B, L, D): encoder output + latent_avg (pSp, sec. 3)."""
        if self.encoder is None:
            raise InputError(self.why_no_encoder)
        images, H, W = images.to(self.device).float(), *images.shape[2:]
        height, width = self.encoder.height, self.encoder.size
        if height < width and H == W:                   # of cars: 4 : 3, in the middle rows of the square
            images = images[:, :, H // 8:H - H // 8]
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False,
                                   antialias=W > width)
        return self.encoder(images) + self.start

    @torch.no_grad()
    def render(self, codes, dtype=torch.float32):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], not clamped."""
        return self.generator(codes.to(self.device).float(), dtype=dtype)

    @torch.no_grad()
    def map(self, z, truncation=1.0):
        """z (B, Z), standard normal -> W+ (B, L, D), every row the same w, truncated towards latent_avg."""
        w = self.generator.style(z.to(self.device).float())
        w = w[:, None].expand(-1, self.L, -1)                               # (B, L, D)
        return w if truncation == 1.0 else self.latent_avg + truncation * (w - self.latent_avg)


# What is refused by name ------------------------------------------------------------------------------------

# (pattern, what it is: the cure). Looked for in a file's first bytes, and in the names of a zip's members, of
# what a pickle calls and of the weights, one a line
REFUSED = (
    (r"\A(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\s\0]*(<\0?[a-zA-Z!?]|\{\s*\")",        # no pickle begins so
     "a web page or a server's answer, such as Google Drive's warning: fetch the file itself, in a browser "
     "or with gdown"),
    (r"\Aversion https://git-lfs", "a pointer of git-lfs: run `git lfs pull` in its repository"),
    (r"\A(\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|[\s\S]{257}ustar)",
     "compressed (gz, bz2, xz, 7z, rar, zst) or a tar archive: unpack it and name the file in it"),
    (r"\A[\s\S]{3}\0{5}\{", "of safetensors: convert it by "
     'torch.save(safetensors.torch.load_file("FILE"), "model.pt") and name model.pt'),
    (r"\A(\x08[\x01-\x20]\x12|\x89HDF|\x93NUMPY|\x89PNG|\xff\xd8\xff|GIF8|RIFF|[\s\S]{4}ftyp)|"
     r"\.(npy|onnx|h5)$",
     "of ONNX, Keras or NumPy, a picture or a video, and not of PyTorch"),
    (r"(^|/)constants\.pkl$", "TorchScript, a compiled network: name the checkpoint that it was made from"),
    (r"^dnnlib\.tflib", "a TensorFlow pickle: convert it with legacy.py of stylegan2-ada-pytorch"),
    (r"^(os|posix|nt|subprocess|pathlib\.(_local\.)?Path)\.|"
     r"^(__)?builtins?(__)?\.(eval|exec|compile|__import__|getattr|open)$|"
     r"^(runpy|importlib|shutil|socket|webbrowser|pty|commands|ctypes|_?pickle)\.",
     "made to run commands, which was not done: delete it"),
    (r"synthesis\.(L\d+_\d+_\d+|input\.(freqs|weight))", "a StyleGAN3, another network"),
    (r"(^|\.)(G|GE)\.(initial_|blocks\.)", "of lucidrains/stylegan2-pytorch, another network"),
    (r"modulated_conv\.|condition_scale|stylegan_decoder", "of GFPGAN or BasicSR, another layout"),
    (r"mapping\.dense\d|synthesis\.layer\d+\.", "of genforce, another layout"),
    (r"style_mapping\.|style_modulation\.|constant_input", "of OpenMMLab, another layout"),
    (r"(^|\.)res\.\d+\.conv", "a DualStyleGAN, which takes two codes"),
    (r"(^|\.)hallucinate\.", "a motion model of train.py, which --motion takes"),
)
CURE = ("name a pSp, e4e, rosinality or stylegan2-ada-pytorch checkpoint with --model (an encoder of pSp or "
        "e4e alone with --encoder), or use --model faces128.")


def refuse(text):
    for pattern, what in REFUSED:
        if re.search(pattern, text, re.MULTILINE):
            raise InputError(f"it is {what}")


# Reading without executing: the unpickler writes down what a file would do, and does nothing ----------------

class Node:
    """A call or an object of a file, written down: name ("module.name"), args, state, items."""
    __slots__ = "args", "state", "items"

    def __new__(cls, *args, **_):
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):                  # kinds of dict
        self.items[key] = value

    def append(self, value):                            # kinds of list: they hold no weights
        pass


class Recorder(pickle.Unpickler):
    """Gives plain data and Nodes alone: each name in a file becomes an empty class, nothing is looked up."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.storages = {}

    def find_class(self, module, name):
        refuse(f"{module}.{name}")
        return type("Node", (Node,), {"__slots__": (), "name": f"{module}.{name}"})

    def persistent_load(self, pid):
        """pid: ("storage", class, key, device, count, ...) or ("module", class, source file, source text)."""
        if pid[0] == "module":
            return pid[1]
        self.storages[pid[2]] = pid
        return pid


STORAGES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
            "Double": torch.float64, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
            "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}


def dtype_of(pid):
    return STORAGES[pid[1].name.removeprefix("torch.").removesuffix("Storage")]


def flat_tensor(pid, data):
    """The numbers of a storage, (count,), out of its bytes."""
    kind, _, _, _, count = pid[:5]
    dtype = dtype_of(pid)
    if kind != "storage" or len(data) != count * dtype.itemsize:
        raise pickle.UnpicklingError("a storage of another size than it says")
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def read_zip(file):
    """What torch.save writes, an archive of a pickle and its storages -> object, function pid -> (count,)."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    refuse("\n".join(names))
    root = next((n.removesuffix("data.pkl") for n in names if re.fullmatch(r"([^/]+/)?data\.pkl", n)), None)
    if root is None:
        raise InputError(f"it is a zip archive ({', '.join(names[:3])}): unpack it and name the file in it")

    @functools.lru_cache(8)                             # several tensors may lie in one storage
    def storage(pid):
        return flat_tensor(pid, archive.read(f"{root}data/{pid[2]}"))

    return Recorder(archive.open(f"{root}data.pkl")).load(), storage


def read_legacy(file):
    """What torch.save wrote before 1.6: three pickles of versions, the object, storage keys; storages."""
    for _ in range(3):
        Recorder(file).load()
    recorder, places = Recorder(file), {}
    thing = recorder.load()
    for key in Recorder(file).load():
        size = int.from_bytes(file.read(8), "little") * dtype_of(recorder.storages[key]).itemsize
        places[key] = file.tell(), size
        file.seek(size, os.SEEK_CUR)

    @functools.lru_cache(8)
    def storage(pid):
        start, size = places[pid[2]]
        file.seek(start)
        return flat_tensor(pid, file.read(size))

    return thing, storage


class Weight:
    """A tensor of a file, read when it is wanted: the others of a training file cost nothing.

    source: a storage's pid, or in NVIDIA's files a Node whose argument is a file of one storage.
    """

    def __init__(self, storage, source, offset, shape, stride, *_):
        self.storage, self.source = storage, source
        self.offset, self.shape, self.stride = offset, shape, stride

    def read(self):
        """A view of the storage, and no larger than it."""
        pid, storage = self.source, self.storage
        if isinstance(pid, Node):
            pid, storage = read_legacy(io.BytesIO(pid.args[0]))
        flat = storage(pid)
        if self.offset < 0 or self.offset + math.prod(self.shape) > len(flat):
            raise pickle.UnpicklingError("a tensor larger than its storage")
        view = flat.as_strided(self.shape, self.stride, self.offset)
        if not view.isfinite().all():
            raise InputError("it has NaN or infinite weights, as of a training that diverged")
        return view


def parts_of(thing):
    """{name: part} of a dict, an object, a network of torch, or one that NVIDIA's persistence saved."""
    if isinstance(thing, Node) and thing.name.endswith("._reconstruct_persistent_obj"):
        thing = parts_of(thing.args[0])["state"]
    if isinstance(thing, Node):
        thing = thing.items or (thing.state if isinstance(thing.state, dict) else {})
    parts = dict(thing)
    for group in {"_parameters", "_buffers", "_modules"} & set(parts):
        parts.update(parts_of(parts.pop(group)))
    return parts


def leaves_of(thing, storage, prefix="", seen=()):
    """{dotted path: Weight, number, word or Node} of what a file holds, less DataParallel's `module.`"""
    leaves, seen = {}, seen or {id(thing)}              # what a file holds twice is read once
    for name, value in parts_of(thing).items():
        path = re.sub(r"(^|\.)(module|_orig_mod)\.", r"\1", f"{prefix}{name}")
        if isinstance(value, Node) and value.name.startswith("torch._utils._rebuild_parameter"):
            value = value.args[0]
        if isinstance(value, Node) and value.name.startswith("torch._utils._rebuild_tensor"):
            value = Weight(storage, *value.args)

        if not isinstance(value, (dict, Node)) or not parts_of(value):
            leaves[path] = value
        elif id(value) not in seen:
            seen.add(id(value))
            leaves.update(leaves_of(value, storage, f"{path}.", seen))
    return leaves


@contextlib.contextmanager
def checkpoint(path):
    """The leaves of a file, while it is open. What goes wrong then is one sentence that names the file."""
    try:
        if re.match(r"[A-Za-z]\w+:/", str(path)):
            raise InputError("it is an address; download the file and give its path")
        if Path(path).is_dir():
            raise InputError("it is a folder: name the file in it")
        if not Path(path).exists():
            raise InputError("it does not exist")
        with open(path, "rb") as file:
            start = file.read(512)
            file.seek(0)
            refuse(start.decode("latin1"))
            if start[:2] == b"PK":
                thing, storage = read_zip(file)
            elif start.startswith(pickle.dumps(0x1950a86a20f9469cfc6c, 2)):             # torch's magic number
                thing, storage = read_legacy(file)
            else:
                recorder = Recorder(file)
                thing, storage = recorder.load(), None
                if recorder.storages:
                    raise InputError("it is one file of an unpacked checkpoint: zip the folder it lies in, "
                                     "and name the zip")
            if not isinstance(thing, (dict, Node)):
                raise InputError(f"it holds a {type(thing).__name__} and no network")
            leaves = leaves_of(thing, storage)
            refuse("\n".join(leaves))
            yield leaves
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}; {CURE}") from None
    except Exception as error:                          # pickle, zipfile and torch raise a dozen types
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint ({why}); it may be cut short or of another "
                         f"format: get it again or name another file.") from None


# Networks out of weights, their sizes read off the shapes ---------------------------------------------------

def count(pattern, names):
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def below(leaves, prefix):
    return {name[len(prefix):]: value for name, value in leaves.items() if name.startswith(prefix)}


def find_generator(leaves):
    """The file's generator: weights under rosinality's names, latent_avg or None, lr_mlp, clamp."""
    def rank(prefix):                                   # a pSp file's decoder first, then running averages
        return not prefix.endswith("decoder."), "ema" not in prefix.lower()

    pattern = re.compile(r"((?:.*\.)?)(conv1\.conv\.modulation\.weight|synthesis\.b4\.const)")
    weights = [name for name, value in leaves.items() if isinstance(value, Weight)]
    found = sorted((match[1] for match in map(pattern.fullmatch, weights) if match), key=rank)
    if not found:
        some = ", ".join(weights[:3]) or "no tensors of torch"
        raise InputError(f"it holds no StyleGAN2 generator ({some})")
    if len(found) > 1 and rank(found[0]) == rank(found[1]):
        raise InputError(f"it holds several generators ({', '.join(found)}): keep one of them")

    weights = below(leaves, found[0])
    if "synthesis.b4.const" in weights:
        return from_nvidia(weights)
    return weights, average_in(leaves), float(leaves.get("opts.lr_mlp") or 0.01), None


def average_in(leaves):
    """latent_avg of a file, or None."""
    names = [name for name in leaves if name.split(".")[-1] == "latent_avg"]
    average = leaves[min(names, key=len)] if names else None
    if not isinstance(average, (Weight, type(None))):
        raise InputError("its latent_avg is no tensor of torch")
    return average


# Names of a layer's weights: stylegan2-ada-pytorch's and rosinality's
LAYER = {"weight": "conv.weight", "bias": "activate.bias", "noise_strength": "noise.weight",
         "affine.weight": "conv.modulation.weight", "affine.bias": "conv.modulation.bias"}


def from_nvidia(leaves):
    """What find_generator returns, from a generator of stylegan2-ada-pytorch."""
    if leaves.get("c_dim") or "mapping.embed.weight" in leaves:
        raise InputError("the generator is conditional (it needs class labels)")
    kinds = {value for name, value in leaves.items() if name.endswith(".architecture")} - {"skip"}
    if kinds or "synthesis.b4.torgb.weight" not in leaves:
        kinds = ", ".join(kinds) or "resnet or orig"
        raise InputError(f"the generator's architecture is {kinds}; only skip is supported")
    for name, value in leaves.items():
        if name.endswith("resample_filter") and not torch.allclose(4 * value.read().float(), fir_kernel(4.0)):
            raise InputError("the generator resamples with another filter than [1, 3, 3, 1]")

    names = {"synthesis.b4.const": "input.input"}
    for k in range(count(r"mapping\.fc\d+\.weight", leaves)):
        names.update({f"mapping.fc{k}.{part}": f"style.{k + 1}.{part}" for part in ("weight", "bias")})
    for k in range(10):                                 # blocks of 4 * 2^k px
        block = f"synthesis.b{4 * 2 ** k}"
        layers = {"conv0": f"convs.{2 * k - 2}", "conv1": f"convs.{2 * k - 1}", "torgb": f"to_rgbs.{k - 1}"}
        for layer, ours in (layers if k else {"conv1": "conv1", "torgb": "to_rgb1"}).items():
            names.update({f"{block}.{layer}.{part}": f"{ours}.{name}" for part, name in LAYER.items()})
        names[f"{block}.torgb.bias"] = f"{ours}.bias"
        names[f"{block}.conv0.noise_const"] = f"noises.noise_{2 * k - 1}"
        names[f"{block}.conv1.noise_const"] = f"noises.noise_{2 * k}"
    weights = {names[name]: value for name, value in leaves.items() if name in names}
    clamp, gain = leaves.get("synthesis.b4.conv1.conv_clamp"), leaves.get("mapping.fc0.bias_gain", 0.01)
    return weights, leaves.get("mapping.w_avg"), float(gain), clamp


def filled(network, weights, *sizes):
    """network(*sizes) with weights by name; absent kernels are the usual ones, absent noise has seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network(*sizes)
    for name, value in module.state_dict().items():
        if name in weights:
            if not isinstance(weights[name], Weight):
                raise InputError(f"{name} is no tensor of torch")
            shape = weights[name].shape
            if [n for n in shape if n != 1] != [n for n in value.shape if n != 1]:
                raise InputError(f"{name} has shape {shape}, not {(*value.shape,)}")
            value.copy_(weights[name].read().reshape(value.shape))
        elif not re.search(r"\.kernel$|noise", name):
            raise InputError(f"it is not complete ({name} is missing)")
    return module


def generator_from(weights, lr_mlp, clamp):
    """Weights under rosinality's names -> Generator."""
    start, colours = weights["input.input"].shape, weights["to_rgb1.conv.weight"].shape[-4]
    if start[-2:] != (4, 4):
        raise InputError(f"its pictures are not square ({start[-1]} : {start[-2]})")
    if colours != 3:
        raise InputError(f"its pictures have {colours} colour channels, not the 3 of RGB")

    D, n_mlp = weights["conv1.conv.modulation.weight"].shape[1], count(r"style\.\d+\.weight", weights)
    Z = weights["style.1.weight"].shape[1] if n_mlp else D
    channels, k = {4: start[-3]}, 0
    while f"convs.{2 * k}.conv.weight" in weights:
        channels[8 * 2 ** k] = weights[f"convs.{2 * k}.conv.weight"].shape[-4]
        k += 1
    return filled(Generator, weights, 4 * 2 ** k, D, Z, n_mlp, channels, lr_mlp, clamp)


def encoder_from(leaves):
    """Encoder of a pSp or e4e file. Raises InputError with why there is none."""
    end = "input_layer.0.weight"
    found = [name.removesuffix(end) for name in leaves if name.endswith(end)]
    if not found:
        raise InputError("it has no encoder")
    weights = below(leaves, min(found, key=lambda prefix: not re.search(r"(^|\.)encoder\.$", prefix)))
    kind, channels = str(leaves.get("opts.encoder_type") or "GradualStyleEncoder"), weights[end].shape[1]
    if channels != 3:
        raise InputError(f"its encoder reads {channels} channels, not the 3 of a picture (ReStyle's reads 6 "
                         f"and is iterative, SAM's 4 with an age; others read sketches or maps)")
    if kind not in ("GradualStyleEncoder", "Encoder4Editing") or "latlayer1.weight" not in weights:
        raise InputError(f"its encoder is a {kind}, not pSp's GradualStyleEncoder or e4e's Encoder4Editing")

    # {width: depth} of the four stages
    units = range(count(r"body\.\d+\.res_layer\.1\.weight", weights))
    stages = collections.Counter(weights[f"body.{k}.res_layer.1.weight"].shape[0] for k in units)
    D, head = weights["styles.0.linear.weight"].shape
    size = 16 * 2 ** count(r"styles\.0\.convs\.\d+\.weight", weights)
    L = count(r"styles\.\d+\.linear\.weight", weights)
    blocks = count(r".*decoder\.to_rgbs\.\d+\.bias", leaves)
    L = min(L, 2 * blocks + 2) if blocks else L         # rows beyond the decoder's: pSp of 2020 always had 18
    deltas = kind == "Encoder4Editing"
    encoder = filled(GradualStyleEncoder, weights, L, D, size, [*stages.values()], [*stages], head, deltas)
    if str(leaves.get("opts.dataset_type")).startswith("cars"):
        encoder.height = 3 * size // 4                  # 192 x 256 (e4e, configs/transforms_config.py)
    return encoder


# Fetching and loading ---------------------------------------------------------------------------------------

def cache_folder():
    return Path(os.environ.get("STYLEVIDEOGAN_CACHE") or Path.home() / ".cache" / "stylevideogan")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(file, url, sha256=None, option="--model"):
    """Path of an official file in the cache folder, fetched at first use, and the sha256 that it must have.

    A download that was cut off goes on where it stopped. Where no sha256 is published, that of the first
    download is kept beside the file and demanded from then on. option: names such a file on a command line.
    """
    path = cache_folder() / file
    part, pin = path.with_name(f"{file}.part"), path.with_name(f"{file}.sha256")
    try:
        if not path.exists():
            import gdown  # only here: all else needs torch and numpy alone

            print(f"Fetching {file} from {url} to {path.parent}, once; research use only.", file=sys.stderr)
            path.parent.mkdir(parents=True, exist_ok=True)
            gdown.download(url, str(part), resume=True)
            found = sha256_of(part)
            if found != (sha256 or found):
                part.unlink()
                raise OSError(f"what came has sha256 {found}, not {sha256}")
            pin.write_text(found + "\n")
            os.replace(part, path)
            print(f"{path} has sha256 {found}; it is demanded from now on.", file=sys.stderr)
        return path, sha256 or (pin.read_text().strip() if pin.exists() else None)
    except Exception as error:                          # gdown and requests raise many types
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{file} could not be fetched ({why}); download it from {url} and put it at {path}, "
                         f"or name a file with {option}.") from None


def rows_of(average, L, D):
    """latent_avg of a file, of one row or at least L rows, as (L, D); further rows were never used."""
    rows = average.read().float()
    rows = rows.reshape(-1, rows.shape[-1] if rows.ndim else 1)
    if rows.shape[1] != D or 1 < len(rows) < L:
        raise InputError(f"latent_avg has shape {average.shape}, the generator takes {(L, D)}")
    return rows[:L].expand(L, D)


def add_encoder(model, leaves, path):
    """Give the model the encoder among the leaves of a file, with the average that it was trained with."""
    encoder, average = encoder_from(leaves), average_in(leaves)
    if (encoder.L, encoder.D) != (model.L, model.D):
        px = 2 ** (encoder.L // 2 + 1)
        raise InputError(f"the encoder gives {encoder.L} x {encoder.D} codes ({px} px), the generator takes "
                         f"{model.L} x {model.D} ({model.size} px)")
    if encoder.height < encoder.size:
        print(f"{path} encodes cars: it reads the middle three quarters of a square's rows.", file=sys.stderr)

    if not leaves.get("opts.start_from_latent_avg", True):
        model.start = torch.zeros_like(model.latent_avg)
    elif average is not None:
        model.start = rows_of(average, model.L, model.D).to(model.device)
        if is_far(model, model.start):
            print(f"Warning: latent_avg of {path} is far from that of {model.name}: the encoder belongs to "
                  f"another generator, or gives Z+ codes; use files that belong together.", file=sys.stderr)
    model.encoder = encoder.eval().requires_grad_(False).to(model.device)


def is_far(model, average):
    """Whether an average (L, D) is another network's: a quarter of w's spread away (estimates err by 2 %)."""
    z = torch.from_numpy(np.random.RandomState(0).standard_normal((500, model.Z)))
    w = model.map(z)[:, 0] if model.has_actors else torch.zeros(1, model.D, device=model.device)
    spread = (w - model.latent_avg[0]).norm(dim=1).mean()
    return bool((average - model.latent_avg).norm(dim=1).mean() > spread / 4)


def load_image_model(name_or_path, encoder=None, device=None):
    """Image model by name (faces128, ffhq, ffhq-e4e) or path of a checkpoint; nothing in it is executed.

    Read are files of pSp and e4e (faces128 is one, as all that pretrain/ makes), of rosinality and of
    stylegan2-ada-pytorch: dicts, state dicts and whole networks, however wrapped. encoder: path of a pSp or
    e4e file whose encoder, with the average that it was trained with, goes with the generator. device: cpu
    when None. A file whose encoder cannot be used is a generator alone (why_no_encoder). Raises InputError.
    """
    name, path, published = str(name_or_path), Path(name_or_path), None
    if name in OFFICIAL and not path.is_file():         # a folder called as a model is none
        path, published = fetch(*OFFICIAL[name])
    if name == "faces128" and not path.is_file():
        path = ASSETS / "faces128.pt"

    with checkpoint(path) as leaves:
        sha256 = sha256_of(path)
        if sha256 != (published or sha256):
            raise InputError(f"it has sha256 {sha256}, not {published}: delete it, and it is fetched again")
        weights, average, lr_mlp, clamp = find_generator(leaves)
        generator = generator_from(weights, lr_mlp, clamp)
        if average is None:                             # estimated, as upstream does
            z = torch.from_numpy(np.random.RandomState(0).standard_normal((10000, generator.Z))).float()
            average = generator.style(z).mean(0).detach() if generator.n_mlp else torch.zeros(generator.D)
        else:
            average = rows_of(average, generator.L, generator.D)
        called = leaves.get("opts.name")
        called = called if called and isinstance(called, str) else path.stem        # a Path is a Node
        model = ImageModel(generator, None, average, called, sha256, device or "cpu")
        if encoder is None:
            try:
                add_encoder(model, leaves, path)
            except InputError as error:
                model.why_no_encoder = f"{path} has no encoder to use: {error}; {CURE}"

    if encoder is not None:
        with checkpoint(encoder) as leaves:
            add_encoder(model, leaves, encoder)
    return model
