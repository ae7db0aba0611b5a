"""Networks of StyleVideoGAN (Fox et al., BMVC 2021, arXiv:2107.07224) and of the image models it stands on.

Imports only torch, numpy and the standard library, so that the file can be copied into any project:

    model = load_image_model("faces128")                # or a pSp / e4e / rosinality / NVIDIA file, or "ffhq"
    w = model.encode(images)                            # (B, 3, H, W) in [-1, 1] -> (B, L, D)
    frames = model.render(w)                            # (B, L, D) -> (B, 3, size, size)

Shapes: B batch, T frames, L style rows (2 log2(size) - 2), D style width, Z width of an image model's z.
W+ code: (L, D). W+ trajectory: (T, L, D). Pictures: (B, 3, H, W) in [-1, 1].

1 StyleVideoGAN: generator G = (H, P, T), critic C, penalties, offset trick; the first 280 lines are whole in
themselves. 2 StyleGAN2 (Karras et al. 2020). 3 pSp encoder (Richardson et al. 2021). 4 Image model = 2 + 3,
and its loader. Parameter names of 2 are those of rosinality/stylegan2-pytorch, of 3 those of
eladrich/pixel2style2pixel, so that published files load as they are.
"""

import argparse
import collections
import hashlib
import io
import math
import os
import pickle
import re
import sys
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
        torch.zeros(1, device=name)
        return torch.device(name)
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


class MotionGenerator(nn.Module):
    """G: noise -> trajectory of W+ codes. i (B, 32), s (B, T-1, 32) -> w (B, T, L, D).

    H (table 4) hallucinates the memory of three GRU cells from i, the fourth starts as i. P (table 5) is four
    stacked GRU cells; the fourth's memory is the motion code l. T (table 6) translates each l_k, l_0 = i, to
    a W+ code. width: of T, 512 = D in the paper; ours: D where D is not 512.
    """

    def __init__(self, L, D, noise=32, width=None):
        super().__init__()
        width = width or D
        self.L, self.D, self.noise, self.width = L, D, noise, width

        # H. The hidden widths are open; ours: that of the output, 3 x 32, so that no layer is a bottleneck
        self.hallucinate = nn.Sequential(*mlp([noise] + 4 * [3 * noise]), nn.BatchNorm1d(3 * noise))

        # P
        self.produce = nn.GRU(noise, noise, num_layers=4, batch_first=True)

        # T: BatchNorm + affine + PixelNorm, 4 layers, BatchNorm + affine, 18 parallel (linear + LeakyReLU +
        # BatchNorm); these are computed as one linear layer of L D outputs that starts as nn.Linear does
        self.translate_in = nn.Sequential(nn.BatchNorm1d(noise), nn.Linear(noise, width), PixelNorm(),
                                          *mlp(5 * [width]), nn.BatchNorm1d(width), nn.Linear(width, width))
        self.rows = nn.Parameter(torch.empty(L, width, D).uniform_(-1, 1) / math.sqrt(width))
        self.rows_bias = nn.Parameter(torch.empty(L, D).uniform_(-1, 1) / math.sqrt(width))
        self.rows_norm = nn.BatchNorm1d(L * D)

    def hidden(self, i):
        """Start noise (B, 32) -> memory of the four cells (4, B, 32): (H(i), i)."""
        B, noise = i.shape
        h = self.hallucinate(i).reshape(B, 3, noise).transpose(0, 1)            # (3, B, 32)
        return torch.cat([h, i[None]])                                          # (4, B, 32)

    def roll(self, s, h):
        """P: noise (B, K, 32), memory (4, B, 32) -> next K motion codes (B, K, 32), memory after them."""
        return self.produce(s, h)

    def motion(self, i, s):
        """i (B, 32), s (B, T-1, 32) -> l (B, T, 32), l_0 = i."""
        return torch.cat([i[:, None], self.roll(s, self.hidden(i))[0]], 1)

    def translate(self, l):
        """T: motion codes (..., 32) -> W+ codes (..., L, D)."""
        lead = l.shape[:-1]
        v = self.translate_in(l.reshape(-1, self.noise))                        # (N, width)
        weight = self.rows.transpose(1, 2).reshape(-1, self.width)              # (L D, width)
        w = F.linear(v, weight, self.rows_bias.flatten())                       # (N, L D)
        w = self.rows_norm(F.leaky_relu_(w, SLOPE))
        return w.reshape(*lead, self.L, self.D)

    def forward(self, i, s):
        return self.translate(self.motion(i, s))                                # (B, T, L, D)


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

    E extracts 32 features per frame, a 1-D DCGAN critic without batch norm judges their sequence; its strided
    convolutions are linear layers on windows of four frames. Codes are scaled first, so that one gradient
    penalty fits all image models (which scale is open in the paper).
    """

    def __init__(self, L, D, T, width=None):
        super().__init__()
        width = width or D
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("std", torch.ones(L, D))

        # E: 2 layers to 512, 4 to 32. The widths of the last four are open; ours: full width until the last
        self.extract = nn.ModuleList([nn.Linear(L * D, width), *(nn.Linear(width, width) for _ in range(4)),
                                      nn.Linear(width, 32)])

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

    def first_layer(self, w):
        """Codes (..., L, D), scaled, through the first linear layer: (..., width), before its LeakyReLU.

        The scale is folded into the layer, as w is far larger than its weights.
        """
        first = self.extract[0]
        weight = first.weight / self.std.flatten()                              # (width, L D)
        return F.linear(w.flatten(-2), weight, first.bias - weight @ self.mean.flatten())

    def score(self, p, slopes=None):
        """The rest: first-layer outputs (B, T, width) -> (B,). slopes: a list that gets each LeakyReLU's."""
        def bend(x):
            if slopes is not None:
                slopes.append((x > 0).to(x.dtype).mul_(1 - SLOPE).add_(SLOPE))
            return F.leaky_relu_(x, SLOPE)

        x = bend(p.clone())
        for layer in self.extract[1:]:
            x = bend(layer(x))                                                  # (B, T, width), last 32
        for layer in self.judge[:-1]:
            x = bend(layer(fours(x)))                                           # (B, t // 2, 2 c)
        return self.judge[-1](x.flatten(1)).flatten()


def gradient_penalty(critic, p_real, p_fake, mix):
    """WGAN-GP penalty (Gulrajani et al. 2017, eq. 3), a scalar, at mixtures of real and fake windows.

    p_real, p_fake (B, T, width): critic.first_layer of them; it is linear, so the mixture of its outputs is
    the output of the mixture. mix (B, 1, 1) in [0, 1]: share of real. The gradient is the one with respect to
    the scaled codes x that the critic sees, in closed form: between its kinks the critic is linear, so the
    gradient is the product of its matrices with the slopes between them, which have no derivative of their
    own. That needs no second backward pass and no tensor with L D columns.
    """
    slopes = []
    with torch.no_grad():
        critic.score(mix * p_real + (1 - mix) * p_fake, slopes)

    # d score / d p, (B, T, width), from the last layer back to the first
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


def fir_kernel(gain):
    """(4, 4) low-pass [1, 3, 3, 1] x [1, 3, 3, 1] with sum `gain` (Karras et al. 2020, appendix B)."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(k, k) / 64.0 * gain


def depthwise(x, kernel):
    """Filter every channel with the same (4, 4) kernel, 1 px of zeros around: (B, C, H, W) -> (B, C, H - 1, W - 1).

    Grouped by channel: on a CPU several times faster than channels folded into the batch.
    """
    C = x.shape[1]
    return F.conv2d(x, kernel.to(x.dtype).expand(C, 1, 4, 4), padding=1, groups=C)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: parameters are stored divided by lr_mul, scaled at run time."""

    def __init__(self, d_in, d_out, bias_init=0.0, lr_mul=1.0, activation=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((d_out,), float(bias_init)))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(d_in), lr_mul, activation

    def forward(self, x):                                                       # (B, d_in)
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)      # (B, d_out)
        return F.leaky_relu(x, 0.2) * SQRT2 if self.activation else x


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style, output optionally demodulated (sec. 2.2 of StyleGAN2).

    Scaling the activations before and after one shared convolution equals scaling the weights of each sample, and needs
    no grouped convolution: y = demod * conv(style * x). A picture alone has its weights scaled: those are smaller than its
    feature maps. Channels last, as CPUs and tensor cores compute convolutions.
    """

    def __init__(self, c_in, c_out, kernel, D, demodulate=True, up=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, kernel, kernel))
        self.modulation = EqualLinear(D, c_in, bias_init=1.0)
        self.scale, self.demodulate, self.up = 1.0 / math.sqrt(c_in * kernel ** 2), demodulate, up
        if up:
            self.blur = nn.Module()
            self.blur.register_buffer("kernel", fir_kernel(4.0))   # gain 4 makes up for the zeros between the pixels

    def forward(self, x, w, gain=1.0):
        """(B, c_in, h, w), (B, D) -> (B, c_out, h, w), twice the side if up; gain: factor of a demodulated output."""
        style = self.modulation(w)                                              # (B, c_in)
        weight = self.weight[0] * self.scale                                    # (c_out, c_in, k, k)
        demod = None
        if self.demodulate:
            style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-8)   # cancels below; keeps fp16 in range
            demod = gain * torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)      # (B, c_out)
        if len(x) == 1:
            weight = weight * style[0, :, None, None]
            weight = weight if demod is None else weight * demod[0, :, None, None, None]
        else:
            x = x * style[:, :, None, None].to(x.dtype)
        weight = weight.to(x.dtype)
        if self.up:
            weight = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
            x = F.conv_transpose2d(x, weight, stride=2)                         # (B, c_out, 2h + 1, 2w + 1)
            x = depthwise(x, self.blur.kernel)                                  # (B, c_out, 2h, 2w)
        else:
            x = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), padding=weight.shape[-1] // 2)
        return x if demod is None or len(x) == 1 else x * demod[:, :, None, None].to(x.dtype)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, c_in, c_out, D, up=False, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv2d(c_in, c_out, 3, D, up=up)
        self.noise = nn.Module()
        self.noise.weight = nn.Parameter(torch.zeros(1))
        self.activate = nn.Module()
        self.activate.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x, w, noise):
        # The activation's gain goes before it: sqrt(2) f(x) = f(sqrt(2) x). In place, as fresh memory costs more than sums
        x = self.conv(x, w, gain=SQRT2).add_((SQRT2 * self.activate.bias)[:, None, None].to(x.dtype))
        if noise is not None:
            x.add_((SQRT2 * self.noise.weight * noise).to(x.dtype))
        x = F.leaky_relu_(x, 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution to RGB, added to the up-sampled RGB of the resolution below; always sums in fp32."""

    def __init__(self, c_in, D, up=True, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv2d(c_in, 3, 1, D, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = nn.Module()
            self.upsample.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x, w, skip):
        rgb = self.conv(x, w).float() + self.bias.float()                       # (B, 3, r, r)
        if self.clamp is not None:
            rgb = rgb.clamp(-self.clamp, self.clamp)
        if skip is not None:                                                    # (B, 3, r/2, r/2)
            B, C, h, _ = skip.shape
            up = F.conv_transpose2d(skip.reshape(B * C, 1, h, h), self.upsample.kernel.float()[None, None], stride=2)
            rgb = rgb + up[:, :, 1:-1, 1:-1].reshape(B, C, 2 * h, 2 * h)
        return rgb


def stylegan2_channels(size, multiplier=2):
    """{resolution: channels} of the official networks ("config-f" has multiplier 2)."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256 * multiplier, 128: 128 * multiplier, 256: 64 * multiplier,
            512: 32 * multiplier, 1024: 16 * multiplier}
    return {r: c for r, c in wide.items() if r <= size}


class Generator(nn.Module):
    """StyleGAN2 generator: mapping network `style` and synthesis network.

    size: picture side, a power of two >= 8. D: style width. Z: width of z. n_mlp: mapping layers, 0 for a network that is
    only ever driven with W+ codes. channels: {resolution: width}, official widths when None. lr_mlp: learning-rate
    multiplier of the mapping network, 0.01 in every official file. clamp: bound of every layer's output (`conv_clamp` of
    stylegan2-ada-pytorch, which half precision needs), None for none.
    """

    def __init__(self, size, D=512, Z=512, n_mlp=8, channels=None, lr_mlp=0.01, clamp=None):
        super().__init__()
        channels = channels or stylegan2_channels(size)
        self.size, self.D, self.Z, self.n_mlp, self.L = size, D, Z, n_mlp, 2 * int(math.log2(size)) - 2
        self.style = nn.Sequential(PixelNorm(), *(EqualLinear(D if k else Z, D, lr_mul=lr_mlp, activation=True)
                                                  for k in range(n_mlp)))
        self.input = nn.Module()
        self.input.input = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.conv1 = StyledConv(channels[4], channels[4], D, clamp=clamp)
        self.to_rgb1 = ToRGB(channels[4], D, up=False, clamp=clamp)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for k, r in enumerate(2 ** e for e in range(3, int(math.log2(size)) + 1)):
            self.convs.append(StyledConv(channels[r // 2], channels[r], D, up=True, clamp=clamp))
            self.convs.append(StyledConv(channels[r], channels[r], D, clamp=clamp))
            self.to_rgbs.append(ToRGB(channels[r], D, clamp=clamp))
            self.noises.register_buffer(f"noise_{2 * k + 1}", torch.randn(1, 1, r, r))
            self.noises.register_buffer(f"noise_{2 * k + 2}", torch.randn(1, 1, r, r))

    def forward(self, w, resolution=None, dtype=torch.float32, noise="const"):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], never clamped.

        resolution: stop at this side and return the RGB sum reached there. dtype: of the feature maps (half precision
        halves memory; styles and RGB stay fp32). noise: "const", the stored maps, or "none".
        """
        noise = [getattr(self.noises, f"noise_{k}") if noise == "const" else None for k in range(self.L - 1)]
        x = self.input.input.to(dtype).expand(len(w), -1, -1, -1)               # (B, C, 4, 4)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, w[:, 0], noise[0])
        rgb = self.to_rgb1(x, w[:, 1], None)
        for k, to_rgb in enumerate(self.to_rgbs):
            if rgb.shape[-1] == resolution:
                break
            j = 2 * k + 1                           # rows j, j + 1 drive the convolutions, j + 2 both RGB and the next block
            x = self.convs[2 * k](x, w[:, j], noise[j])
            x = self.convs[2 * k + 1](x, w[:, j + 1], noise[j + 1])
            rgb = to_rgb(x, w[:, j + 2], rgb)
        return rgb

    def map(self, z, truncation=1.0, latent_avg=None):
        """z (B, Z) -> W+ (B, L, D), every row the same w; truncated towards latent_avg ((D,) or (L, D)) if asked."""
        w = self.style(z)[:, None].expand(-1, self.L, -1)                       # (B, L, D)
        return w if truncation == 1.0 else latent_avg + truncation * (w - latent_avg)


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

    def forward(self, x):                                                       # (B, c_in, spatial, spatial)
        return self.linear(self.convs(x).flatten(1))                            # (B, D)


class GradualStyleEncoder(nn.Module):
    """pSp encoder. The defaults are the official FFHQ-1024 one; faces128's differs in the arguments only.

    L: style rows. D: style width. size: side of the input picture. depths, widths: residual units and channels of the
    four stages (3, 4, 14, 3 and 64 to 512 is IR-SE-50). head: channels of the map2style blocks, D when None.
    Rows 0-2 are read from the last stage, 3-6 from the third, the others from the second (pSp, fig. 2). deltas: row j is
    what the styles give for rows 0 and j together, as in e4e (Tov et al. 2021, sec. 4.1), whose files are otherwise the same.
    """

    COARSE, MIDDLE = 3, 7                                                       # first row of the middle, of the fine rows

    def __init__(self, L=18, D=512, size=256, depths=(3, 4, 14, 3), widths=(64, 128, 256, 512), head=None,
                 deltas=False):
        super().__init__()
        self.L, self.D, self.size, self.deltas = L, D, size, deltas
        self.input_layer = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]),
                                         nn.PReLU(widths[0]))
        units, c = [], widths[0]
        for depth, width in zip(depths, widths):
            for k in range(depth):
                units.append(ResidualIRSE(c, width, 2 if k == 0 else 1))
                c = width
        self.body = nn.Sequential(*units)
        self.taps = [sum(depths[:n]) - 1 for n in (2, 3, 4)]                    # 6, 20, 23 in IR-SE-50
        spatial = [size // 16 if j < self.COARSE else size // 8 if j < self.MIDDLE else size // 4 for j in range(L)]
        self.styles = nn.ModuleList(GradualStyleBlock(widths[3], head or D, D, s) for s in spatial)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x):
        """(B, 3, size, size) in [-1, 1] -> offsets from latent_avg, (B, L, D)."""
        def add(coarse, fine):                                                  # feature pyramid: up-sample and add
            return F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True) + fine

        x, taps = self.input_layer(x), []
        for k, unit in enumerate(self.body):
            x = unit(x)
            if k in self.taps:
                taps.append(x)
        c1, c2, c3 = taps                                                       # at size / 4, / 8, / 16
        p2 = add(c3, self.latlayer1(c2))
        p1 = add(p2, self.latlayer2(c1))
        w = torch.stack([style(c3 if j < self.COARSE else p2 if j < self.MIDDLE else p1)
                         for j, style in enumerate(self.styles)], 1)            # (B, L, D)
        return torch.cat([w[:, :1], w[:, :1] + w[:, 1:]], 1) if self.deltas else w


# ------------------------------------------------------------------------------------------------------------
# 4. Image model: generator + encoder, and the loader
# ------------------------------------------------------------------------------------------------------------

ASSETS = Path(__file__).resolve().parent / "assets"
# Official models: file, address, sha256 where one is recorded. Research use only (NVIDIA Source Code License for the
# StyleGAN2 inside), 1.2 GB each
OFFICIAL = {
    "ffhq": ("psp_ffhq_encode.pt", "https://drive.google.com/uc?id=1bMTNWkh5LArlaWSc_wa8VKyq2V42T2z0", None),
    "ffhq-e4e": ("e4e_ffhq_encode.pt", "https://drive.google.com/uc?id=1cUv_reLE6k3604or78EranS7XzuVMWeO",
                 "2ace1d9a8c05c10a399bcd500b8dda118f759ff1aac89dbdab7435f2136a0999"),
}


class ImageModel:
    """A generator with its encoder, on one device, for inference only.

    size: side of the rendered pictures. L, D: shape of a W+ code. Z: width of z. latent_avg: (L, D). start: what the
    encoder's output is added to, latent_avg but for models trained without it. name, sha256: which file this is.
    encoder: GradualStyleEncoder or None. has_actors: whether z gives new people (a model fitted to one video has no
    mapping network).
    """

    def __init__(self, generator, encoder, latent_avg, name="", sha256="", device="cpu"):
        self.generator = generator.eval().requires_grad_(False).to(device)
        self.encoder = encoder if encoder is None else encoder.eval().requires_grad_(False).to(device)
        self.size, self.L, self.D, self.Z = generator.size, generator.L, generator.D, generator.Z
        self.latent_avg = latent_avg.float().expand(self.L, self.D).to(device)  # (L, D)
        self.start = self.latent_avg
        self.has_actors = generator.n_mlp > 0
        self.name, self.sha256, self.device = name, sha256, torch.device(device)

    @torch.no_grad()
    def encode(self, images):
        """(B, 3, H, W) in [-1, 1] -> W+ codes (B, L, D): encoder output + latent_avg (pSp, sec. 3)."""
        if self.encoder is None:
            raise InputError(f"{self.name} has no encoder; name a file that has one with --encoder FILE.")
        images, size = images.to(self.device).float(), self.encoder.size
        if images.shape[2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False,
                                   antialias=images.shape[2] > size)
        return self.encoder(images) + self.start

    @torch.no_grad()
    def render(self, codes, dtype=torch.float32, noise="const"):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], not clamped; noise: "const" or "none"."""
        return self.generator(codes.to(self.device).float(), dtype=dtype, noise=noise)

    @torch.no_grad()
    def map(self, z, truncation=1.0):
        """z (B, Z), standard normal -> W+ (B, L, D), truncated towards latent_avg."""
        return self.generator.map(z.to(self.device).float(), truncation, self.latent_avg)


def generator_from(weights, lr_mlp=0.01, clamp=None):
    """Generator whose sizes are read off a rosinality-style state dict; noise maps that are absent are drawn (seed 0)."""
    D = weights["conv1.conv.modulation.weight"].shape[1]
    mlp = sorted({int(name.split(".")[1]) for name in weights if name.startswith("style.")})
    Z = weights["style.1.weight"].shape[1] if mlp else D
    channels, k = {4: weights["input.input"].shape[1]}, 0
    while f"convs.{2 * k}.conv.weight" in weights:
        channels[8 * 2 ** k] = weights[f"convs.{2 * k}.conv.weight"].shape[1]
        k += 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(4 * 2 ** k, D, Z, len(mlp), channels, lr_mlp, clamp)
    wanted = generator.state_dict()
    absent = {name for name in wanted if name not in weights and not name.startswith("noises.")}
    if absent:
        raise KeyError(f"{sorted(absent)[0]} is missing")
    generator.load_state_dict({**wanted, **{name: weights[name].float() for name in wanted if name in weights}})
    return generator


def encoder_from(weights, kind="GradualStyleEncoder"):
    """GradualStyleEncoder whose sizes are read off a state dict with upstream's names. kind: `encoder_type` of opts."""
    if kind not in ("GradualStyleEncoder", "Encoder4Editing"):
        raise InputError(f"the encoder is a {kind}, which gives no code per style row; use one that pSp trained as "
                         f"GradualStyleEncoder or e4e as Encoder4Editing.")
    convs = [weights[f"body.{k}.res_layer.1.weight"] for k in range(sum("res_layer.1.weight" in n for n in weights))]
    widths, depths = [], []
    for out in (len(w) for w in convs):
        if not widths or out != widths[-1]:
            widths, depths = widths + [out], depths + [0]
        depths[-1] += 1
    L = len({name.split(".")[1] for name in weights if name.startswith("styles.")})
    D, head = weights["styles.0.linear.weight"].shape
    coarse = sum(name.startswith("styles.0.convs.") and name.endswith("weight") for name in weights)
    encoder = GradualStyleEncoder(L, D, 16 * 2 ** coarse, depths, widths, head, deltas=kind == "Encoder4Editing")
    encoder.load_state_dict({name: weights[name].float() for name in encoder.state_dict()})
    return encoder


# Reading files without running what is in them ---------------------------------------------------------------------

class Pickled:
    """An object of an NVIDIA pickle: the attributes it was saved with, never its class or source text."""
    __slots__ = "class_name", "state"

    def __init__(self, meta):
        self.class_name, self.state = str(meta["class_name"]), dict(meta["state"])

    def tensors(self, prefix=""):
        """{dotted name: tensor} of all parameters and buffers below."""
        found = {}
        for group in ("_parameters", "_buffers"):
            found.update({prefix + n: v for n, v in self.state.get(group, {}).items() if isinstance(v, torch.Tensor)})
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Pickled):
                found.update(child.tensors(f"{prefix}{name}."))
        return found

    def child(self, name):
        return self.state["_modules"][name]


class NumpyType:
    """numpy.dtype of a pickle: a letter and a byte order; only plain numbers."""
    __slots__ = "code", "order"

    def __init__(self, code, *_):
        self.code, self.order = str(code), "="

    def __setstate__(self, state):
        self.order = "=" if state[1] == "|" else str(state[1])

    def number(self, data):
        if not re.fullmatch("[fiub][1248]", self.code) or self.order not in "<>=":
            raise pickle.UnpicklingError(f"a number of type {self.code}")
        return np.frombuffer(data, np.dtype(self.order + self.code))[0].item()


def storage_from(data):
    """Bytes of a torch storage -> storage. torch's own _load_from_bytes would unpickle them without restriction."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("bytes that are no storage")
    return storage


def tensor_from(storage, offset, size, stride, *_):
    """A tensor that lies inside its storage and is no larger than it."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    data, dtype = storage._untyped_storage, storage.dtype
    if offset < 0 or (math.prod(size) + offset) * dtype.itemsize > data.nbytes():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return torch.empty(0, dtype=dtype).set_(data, offset, tuple(size), tuple(stride))


class Callable:
    """A function that a pickle may call, without attributes that a pickle could change."""
    __slots__ = "function",

    def __init__(self, function):
        object.__setattr__(self, "function", function)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError(f"an attempt to change {name}")

    def __call__(self, *args):
        return self.function(*args)


class PassiveUnpickler(pickle.Unpickler):
    """Reads pickles of stylegan2-ada-pytorch. Every name in the file is looked up here and nowhere else."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict, ("builtins", "set"): set, ("__builtin__", "set"): set,
        ("dnnlib.util", "EasyDict"): dict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Callable(Pickled),
        ("torch._utils", "_rebuild_parameter"): Callable(lambda tensor, *_: tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Callable(tensor_from),
        ("torch.storage", "_load_from_bytes"): Callable(storage_from),
        ("numpy", "dtype"): Callable(NumpyType),
        ("numpy.core.multiarray", "scalar"): Callable(lambda dtype, data: dtype.number(data)),
        ("numpy._core.multiarray", "scalar"): Callable(lambda dtype, data: dtype.number(data)),
    }

    def find_class(self, module, name):
        if module.startswith("dnnlib.tflib"):
            raise InputError("it is a TensorFlow pickle; convert it with legacy.py of stylegan2-ada-pytorch, or take the "
                             "PyTorch file, https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/ffhq.pkl.")
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is no part of a network")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("a persistent id, which is no part of a network")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


LEGACY = pickle.dumps(0x1950a86a20f9469cfc6c, 2)                                # how torch files before 1.6 begin


def read_checkpoint(path):
    """What a file holds, a dict, and the file's sha256. torch files and NVIDIA's pickles, told apart by their content."""
    try:
        sha256 = sha256_of(path)
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
            file.seek(0)
            if start[:4] == b"PK\3\4" or start == LEGACY:
                # rosinality's training files hold their options as a Namespace, which is passive too
                with torch.serialization.safe_globals([argparse.Namespace]):
                    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            else:
                checkpoint = PassiveUnpickler(file).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name an image model that does with --model.") from None
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    except Exception as error:                                                  # torch and pickle raise a dozen types
        why = str(error).splitlines()[0][:100] if isinstance(error, pickle.UnpicklingError) and start[:1] == b"\x80" \
            else type(error).__name__
        raise InputError(f"{path} cannot be read as a torch checkpoint or NVIDIA pickle ({why}); it may be cut short or of "
                         f"another format: get it again or name another file.") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds no dict of weights; name an image model checkpoint with --model.")
    return checkpoint, sha256


def from_nvidia(G):
    """G_ema of stylegan2-ada-pytorch -> weights under rosinality's names, latent_avg, lr_mlp, clamp."""
    mapping, synthesis = G.child("mapping"), G.child("synthesis")
    if "b4" not in synthesis.state["_modules"]:
        raise InputError("it holds no StyleGAN2 (of StyleGAN3, perhaps); use a pickle of stylegan2-ada-pytorch.")
    if G.state.get("c_dim") or mapping.state.get("c_dim"):
        raise InputError("the generator is conditional (it needs class labels); use an unconditional one.")
    blocks = {int(name[1:]): block for name, block in synthesis.state["_modules"].items() if name[1:].isdigit()}
    for block in blocks.values():
        if block.state.get("architecture", "skip") != "skip":
            raise InputError(f"the generator's architecture is {block.state['architecture']}; only skip is supported.")
    found, weights = {**mapping.tensors("mapping."), **synthesis.tensors()}, {}
    clamps = {block.child("conv1").state.get("conv_clamp") for block in blocks.values()}
    if len(clamps) > 1:
        raise InputError("the layers have different conv_clamp; only one value for all is supported.")

    def layer(source, target, k=None):
        weights[f"{target}.conv.weight"] = found[f"{source}.weight"][None]
        for part in ("weight", "bias"):
            weights[f"{target}.conv.modulation.{part}"] = found[f"{source}.affine.{part}"]
        if k is None:                                                           # to RGB
            weights[f"{target}.bias"] = found[f"{source}.bias"].reshape(1, 3, 1, 1)
            return
        weights[f"{target}.activate.bias"] = found[f"{source}.bias"]
        strength = found.get(f"{source}.noise_strength", torch.zeros(()))
        weights[f"{target}.noise.weight"] = strength.reshape(1)
        if f"{source}.noise_const" in found:
            weights[f"noises.noise_{k}"] = found[f"{source}.noise_const"][None, None]

    for k in range(sum(name.endswith(".weight") and name.startswith("mapping.fc") for name in found)):
        for part in ("weight", "bias"):
            weights[f"style.{k + 1}.{part}"] = found[f"mapping.fc{k}.{part}"]
    weights["input.input"] = found["b4.const"][None]
    layer("b4.conv1", "conv1", 0)
    layer("b4.torgb", "to_rgb1")
    for n, r in enumerate(sorted(blocks)[1:]):
        layer(f"b{r}.conv0", f"convs.{2 * n}", 2 * n + 1)
        layer(f"b{r}.conv1", f"convs.{2 * n + 1}", 2 * n + 2)
        layer(f"b{r}.torgb", f"to_rgbs.{n}")
        weights[f"convs.{2 * n}.conv.blur.kernel"] = weights[f"to_rgbs.{n}.upsample.kernel"] = fir_kernel(4.0)
        for name in (f"b{r}.resample_filter", f"b{r}.conv0.resample_filter"):
            if name in found and not torch.allclose(4 * found[name].float(), fir_kernel(4.0)):
                raise InputError("the generator resamples with another filter than [1, 3, 3, 1]; that is not supported.")
    lr_mlp = mapping.child("fc0").state.get("bias_gain", 0.01)
    return weights, found["mapping.w_avg"], float(lr_mlp), clamps.pop()


def encoder_of(checkpoint):
    """Encoder of a pSp or e4e file, None where there is none, and whether its output is added to latent_avg."""
    opts, parts = checkpoint.get("opts") or {}, checkpoint.get("state_dict") or {}
    weights = {n[len("encoder."):]: v for n, v in parts.items() if n.startswith("encoder.")}
    e = encoder_from(weights, opts.get("encoder_type", "GradualStyleEncoder")) if weights else None
    return e, bool(opts.get("start_from_latent_avg", True))


def cache_folder():
    """Where fetched models are kept: $STYLEVIDEOGAN_CACHE, or else where the platform keeps such things."""
    if os.environ.get("STYLEVIDEOGAN_CACHE"):
        return Path(os.environ["STYLEVIDEOGAN_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "stylevideogan"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stylevideogan"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylevideogan"


def fetch(file, url, sha256=None, option="--model"):
    """Path of an official file in the cache folder, fetched at first use, and the sha256 that it must have.

    A download that was cut off goes on where it stopped. Where no sha256 is published, that of the first download is
    printed, written beside the file, and demanded from then on. Raises InputError with what to do by hand; option: the one that
    names such a file.
    """
    path = cache_folder() / file
    part, pin = path.with_name(f"{file}.part"), path.with_name(f"{file}.sha256")
    try:
        if not path.exists():
            try:
                import gdown                                                    # only here: the rest needs torch and numpy
            except ImportError:
                raise OSError("the package gdown is not installed") from None
            print(f"Fetching {file} from {url} to {path.parent}, once; research use only.", file=sys.stderr)
            path.parent.mkdir(parents=True, exist_ok=True)
            gdown.download(url, str(part), resume=True)
            found = sha256_of(part)
            if found != (sha256 or found):
                part.unlink()
                raise OSError(f"what came has sha256 {found}, not {sha256}")
            pin.write_text(found + "\n")
            os.replace(part, path)
            print(f"{path} has sha256 {found}" + ("." if sha256 else "; no published one to compare it with, so it is "
                                                  "this one that is demanded from now on."), file=sys.stderr)
        return path, sha256 or (pin.read_text().strip() if pin.exists() else None)
    except Exception as error:                                                  # gdown and requests raise many types
        raise InputError(f"{file} could not be fetched ({' '.join(str(error).split())[:200]}); download it from {url} and "
                         f"put it at {path}, or name a file with {option}.") from None


def load_image_model(name_or_path, encoder=None, device=None):
    """Image model by name ("faces128", "ffhq", "ffhq-e4e") or path of a checkpoint; nothing in the file is executed.

    Told apart by content: pSp and e4e (`state_dict` with encoder.* and decoder.*, `latent_avg`, `opts`; the layout of
    faces128 and of all that pretrain/ makes), rosinality (`g_ema`, `latent_avg`), stylegan2-ada-pytorch pickles (`G_ema`).
    encoder: path of a pSp or e4e file whose encoder, with the average that it was trained with, goes with the generator.
    device: cpu when None. Raises InputError with one sentence.
    """
    name, path, wanted = str(name_or_path), Path(name_or_path), None
    if name in OFFICIAL and not path.exists():
        path, wanted = fetch(*OFFICIAL[name])
    if name == "faces128" and not path.exists():
        path = ASSETS / "faces128.pt"
    checkpoint, sha256 = read_checkpoint(path)
    if sha256 != (wanted or sha256):
        raise InputError(f"{path} has sha256 {sha256}, not {wanted}; delete it, and it is fetched again.")
    opts = checkpoint.get("opts") or {}
    latent_avg, lr_mlp, clamp, e, from_average = checkpoint.get("latent_avg"), opts.get("lr_mlp", 0.01), None, None, True
    try:
        if "state_dict" in checkpoint:
            parts = checkpoint["state_dict"]
            weights = {n[len("decoder."):]: v for n, v in parts.items() if n.startswith("decoder.")}
            e, from_average = encoder_of(checkpoint) if encoder is None else (None, True)
        elif "g_ema" in checkpoint:
            weights = checkpoint["g_ema"]
        else:
            weights, latent_avg, lr_mlp, clamp = from_nvidia(checkpoint["G_ema"])
        generator = generator_from(weights, lr_mlp, clamp)
        if latent_avg is None and generator.n_mlp:                              # estimated, as upstream does
            z = torch.from_numpy(np.random.RandomState(0).standard_normal((10000, generator.Z))).float()
            latent_avg = generator.style(z).mean(0).detach()
        if latent_avg is None:
            latent_avg = torch.zeros(generator.D)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a pSp, e4e, rosinality or NVIDIA StyleGAN2 checkpoint ({str(error).splitlines()[0]}); "
                         f"name one with --model, or use --model faces128.") from None
    model = ImageModel(generator, None, latent_avg, opts.get("name") or path.stem, sha256, device or "cpu")
    if encoder is not None:
        path = Path(encoder)
        other = read_checkpoint(path)[0]
        try:
            e, from_average = encoder_of(other)
            start = other.get("latent_avg")
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from None
        except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, TypeError):
            e = None
        if e is None:
            raise InputError(f"{path} is not a pSp or e4e file with an encoder; name one with --encoder.")
    if e is not None:
        if (e.L, e.D) != (model.L, model.D):
            raise InputError(f"{path}: the encoder gives {e.L} x {e.D} codes ({2 ** (e.L // 2 + 1)} px), the generator takes "
                             f"{model.L} x {model.D} ({model.size} px); use files that belong together.")
        model.encoder = e.eval().requires_grad_(False).to(model.device)
        start = model.latent_avg if encoder is None or start is None else start.float()
        model.start = (start if from_average else torch.zeros(model.D)).expand(model.L, model.D).to(model.device)
    return model
