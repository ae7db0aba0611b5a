"""The networks of StyleVideoGAN (Fox et al., BMVC 2021, arXiv:2107.07224) and of the image models that it stands on.

Imports only torch, numpy and the standard library, so that the file can be copied into any project:

    model = load_image_model("faces128")                          # or a pSp / rosinality checkpoint
    w = model.encode(images)                                      # (B, 3, H, W) in [-1, 1] -> (B, L, D)
    frames = model.render(w)                                      # (B, L, D) -> (B, 3, size, size)

Shapes: B batch, T frames, L style rows (2 log2(size) - 2), D style width, Z width of the start noise of an image model.
W+ code: (L, D). W+ trajectory: (T, L, D). Pictures: (B, 3, H, W) in [-1, 1].

From parts to whole: 1 StyleGAN2 (Karras et al. 2020), 2 pSp encoder (Richardson et al. 2021), 3 image model = 1 + 2 and its
loader, 4 StyleVideoGAN: generator G = (H, P, T), critic C, penalties, offset trick. Parameter names of 1 are those of
rosinality/stylegan2-pytorch and of 2 those of eladrich/pixel2style2pixel, so that published files load as they are.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class InputError(ValueError):
    """Bad input. The message is one sentence for the user: it names the file and the cure."""


# ------------------------------------------------------------------------------------------------------------------
# 1. StyleGAN2 generator (Karras et al., CVPR 2020), skip architecture
# ------------------------------------------------------------------------------------------------------------------

SQRT2 = math.sqrt(2.0)


def pixel_norm(x):
    """x / sqrt(mean(x^2)) over the last dimension (Karras et al. 2018, sec. 4.2)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


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


class PixelNorm(nn.Module):
    def forward(self, x):
        return pixel_norm(x)


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
    no grouped convolution: y = demod * conv(style * x).
    """

    def __init__(self, c_in, c_out, kernel, D, demodulate=True, up=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, kernel, kernel))
        self.modulation = EqualLinear(D, c_in, bias_init=1.0)
        self.scale, self.demodulate, self.up = 1.0 / math.sqrt(c_in * kernel ** 2), demodulate, up
        if up:
            self.blur = nn.Module()
            self.blur.register_buffer("kernel", fir_kernel(4.0))   # gain 4 makes up for the zeros between the pixels

    def forward(self, x, w):                                                    # (B, c_in, h, w), (B, D)
        style = self.modulation(w)                                              # (B, c_in)
        weight = self.weight[0] * self.scale                                    # (c_out, c_in, k, k)
        if self.demodulate:
            style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-8)   # cancels below; keeps fp16 in range
            demod = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)     # (B, c_out)
        x, weight = x * style[:, :, None, None].to(x.dtype), weight.to(x.dtype)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)         # (B, c_out, 2h + 1, 2w + 1)
            x = depthwise(x, self.blur.kernel)                                  # (B, c_out, 2h, 2w)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return x * demod[:, :, None, None].to(x.dtype) if self.demodulate else x


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, c_in, c_out, D, up=False):
        super().__init__()
        self.conv = ModulatedConv2d(c_in, c_out, 3, D, up=up)
        self.noise = nn.Module()
        self.noise.weight = nn.Parameter(torch.zeros(1))
        self.activate = nn.Module()
        self.activate.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x, w, noise):
        x = self.conv(x, w)
        if noise is not None:
            x = x + (self.noise.weight * noise).to(x.dtype)
        return F.leaky_relu(x + self.activate.bias[:, None, None].to(x.dtype), 0.2) * SQRT2


class ToRGB(nn.Module):
    """1x1 modulated convolution to RGB, added to the up-sampled RGB of the resolution below; always sums in fp32."""

    def __init__(self, c_in, D, up=True):
        super().__init__()
        self.conv = ModulatedConv2d(c_in, 3, 1, D, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = nn.Module()
            self.upsample.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x, w, skip):
        rgb = self.conv(x, w).float() + self.bias.float()                       # (B, 3, r, r)
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
    multiplier of the mapping network, 0.01 in every official file.
    """

    def __init__(self, size, D=512, Z=512, n_mlp=8, channels=None, lr_mlp=0.01):
        super().__init__()
        channels = channels or stylegan2_channels(size)
        self.size, self.D, self.Z, self.n_mlp, self.L = size, D, Z, n_mlp, 2 * int(math.log2(size)) - 2
        self.style = nn.Sequential(PixelNorm(), *(EqualLinear(D if k else Z, D, lr_mul=lr_mlp, activation=True)
                                                  for k in range(n_mlp)))
        self.input = nn.Module()
        self.input.input = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.conv1 = StyledConv(channels[4], channels[4], D)
        self.to_rgb1 = ToRGB(channels[4], D, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for k, r in enumerate(2 ** e for e in range(3, int(math.log2(size)) + 1)):
            self.convs.append(StyledConv(channels[r // 2], channels[r], D, up=True))
            self.convs.append(StyledConv(channels[r], channels[r], D))
            self.to_rgbs.append(ToRGB(channels[r], D))
            self.noises.register_buffer(f"noise_{2 * k + 1}", torch.randn(1, 1, r, r))
            self.noises.register_buffer(f"noise_{2 * k + 2}", torch.randn(1, 1, r, r))

    def forward(self, w, resolution=None, dtype=torch.float32):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], never clamped; noise is the stored one.

        resolution: stop at this side and return the RGB sum reached there. dtype: of the feature maps (half precision
        halves memory; styles and RGB stay fp32).
        """
        noise = [getattr(self.noises, f"noise_{k}") for k in range(self.L - 1)]
        x = self.input.input.to(dtype).expand(len(w), -1, -1, -1)               # (B, C, 4, 4)
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


# ------------------------------------------------------------------------------------------------------------------
# 2. pSp encoder: GradualStyleEncoder on an IR-SE backbone (Richardson et al., CVPR 2021, sec. 3)
# ------------------------------------------------------------------------------------------------------------------

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
    Rows 0-2 are read from the last stage, 3-6 from the third, the others from the second (pSp, fig. 2).
    """

    COARSE, MIDDLE = 3, 7                                                       # first row of the middle, of the fine rows

    def __init__(self, L=18, D=512, size=256, depths=(3, 4, 14, 3), widths=(64, 128, 256, 512), head=None):
        super().__init__()
        self.L, self.D, self.size = L, D, size
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
        return torch.stack([style(c3 if j < self.COARSE else p2 if j < self.MIDDLE else p1)
                            for j, style in enumerate(self.styles)], 1)         # (B, L, D)


# ------------------------------------------------------------------------------------------------------------------
# 3. Image model: generator + encoder, and the loader
# ------------------------------------------------------------------------------------------------------------------

ASSETS = Path(__file__).resolve().parent / "assets"
OFFICIAL = {  # research use only (NVIDIA Source Code License for the generator inside); about 1.2 GB each
    "ffhq": ("psp_ffhq_encode.pt", "https://drive.google.com/uc?id=1bMTNWkh5LArlaWSc_wa8VKyq2V42T2z0"),
    "ffhq-e4e": ("e4e_ffhq_encode.pt", "https://drive.google.com/uc?id=1cUv_reLE6k3604or78EranS7XzuVMWeO"),
}


class ImageModel:
    """A generator with its encoder, on one device, for inference only.

    size: side of the rendered pictures. L, D: shape of a W+ code. Z: width of z. latent_avg: (L, D). name, sha256: which
    file this is. encoder: GradualStyleEncoder or None. has_actors: whether z gives new people (a model fitted to one
    video has no mapping network).
    """

    def __init__(self, generator, encoder, latent_avg, name="", sha256="", device="cpu"):
        self.generator = generator.eval().requires_grad_(False).to(device)
        self.encoder = encoder if encoder is None else encoder.eval().requires_grad_(False).to(device)
        self.size, self.L, self.D, self.Z = generator.size, generator.L, generator.D, generator.Z
        self.latent_avg = latent_avg.float().expand(self.L, self.D).to(device)  # (L, D)
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
        return self.encoder(images) + self.latent_avg

    @torch.no_grad()
    def render(self, codes, dtype=torch.float32):
        """W+ codes (B, L, D) -> pictures (B, 3, size, size), about [-1, 1], not clamped; constant noise."""
        return self.generator(codes.to(self.device).float(), dtype=dtype)

    @torch.no_grad()
    def map(self, z, truncation=1.0):
        """z (B, Z), standard normal -> W+ (B, L, D), truncated towards latent_avg."""
        return self.generator.map(z.to(self.device).float(), truncation, self.latent_avg)


def generator_from(weights, lr_mlp=0.01):
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
        generator = Generator(4 * 2 ** k, D, Z, len(mlp), channels, lr_mlp)
    wanted = generator.state_dict()
    absent = {name for name in wanted if name not in weights and not name.startswith("noises.")}
    if absent:
        raise KeyError(sorted(absent)[0])
    generator.load_state_dict({**wanted, **{name: weights[name].float() for name in wanted if name in weights}})
    return generator


def encoder_from(weights):
    """GradualStyleEncoder whose sizes are read off a state dict with upstream's names."""
    convs = [weights[f"body.{k}.res_layer.1.weight"] for k in range(sum("res_layer.1.weight" in n for n in weights))]
    widths, depths = [], []
    for out in (len(w) for w in convs):
        if not widths or out != widths[-1]:
            widths, depths = widths + [out], depths + [0]
        depths[-1] += 1
    L = len({name.split(".")[1] for name in weights if name.startswith("styles.")})
    D, head = weights["styles.0.linear.weight"].shape
    coarse = sum(name.startswith("styles.0.convs.") and name.endswith("weight") for name in weights)
    encoder = GradualStyleEncoder(L, D, 16 * 2 ** coarse, depths, widths, head)
    encoder.load_state_dict({name: weights[name].float() for name in encoder.state_dict()})
    return encoder


def load_image_model(name_or_path, encoder=None, device=None):
    """Image model by name ("faces128") or path of a checkpoint, told apart by content; nothing in the file is executed.

    Reads the pSp layout (`state_dict` with encoder.* and decoder.*, `latent_avg`, `opts`), which is also that of faces128
    and of every model that pretrain/ makes, and rosinality's (`g_ema`, `latent_avg`).
    encoder: path of a checkpoint whose encoder goes with a generator that has none. device: cpu when None.
    Raises InputError with one sentence.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in OFFICIAL and not path.exists():
        file, url = OFFICIAL[name]
        raise InputError(f"{name} is not fetched automatically yet: download {file} from {url} and pass --model {file}.")
    if name == "faces128" and not path.exists():
        path = ASSETS / "faces128.pt"
    checkpoint, sha256 = read_checkpoint(path)
    opts = checkpoint.get("opts") or {}
    try:
        if "state_dict" in checkpoint:
            parts = checkpoint["state_dict"]
            weights = {n[len("decoder."):]: v for n, v in parts.items() if n.startswith("decoder.")}
            encoder_weights = {n[len("encoder."):]: v for n, v in parts.items() if n.startswith("encoder.")}
        else:
            weights, encoder_weights = checkpoint["g_ema"], {}
        generator = generator_from(weights, opts.get("lr_mlp", 0.01))
        if encoder is not None:
            other = read_checkpoint(Path(encoder))[0]["state_dict"]
            encoder_weights = {n[len("encoder."):]: v for n, v in other.items() if n.startswith("encoder.")}
        e = encoder_from(encoder_weights) if encoder_weights else None
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a pSp or rosinality StyleGAN2 checkpoint ({error}); "
                         f"name one with --model, or use --model faces128.") from None
    if e is not None and (e.L, e.D) != (generator.L, generator.D):
        raise InputError(f"{path}: the encoder gives {e.L} x {e.D} codes, the generator takes {generator.L} x "
                         f"{generator.D}; use files that belong together.")
    latent_avg = checkpoint.get("latent_avg")
    if latent_avg is None:                                                      # as rosinality estimates it when absent
        z = torch.from_numpy(np.random.RandomState(0).standard_normal((10000, generator.Z))).float()
        latent_avg = generator.style(z).mean(0).detach()
    return ImageModel(generator, e, latent_avg, opts.get("name") or path.stem, sha256, device or "cpu")


def read_checkpoint(path):
    """Plain dict in a torch file and the file's sha256; refuses anything that would need code to be run."""
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
                hashlib.sha256(file.read()).hexdigest()                         # Python 3.10 has no file_digest
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name an image model that does with --model.") from None
    except Exception as error:                                                  # torch raises a dozen types here
        raise InputError(f"{path} cannot be read as a torch checkpoint ({type(error).__name__}); it may be cut short "
                         f"or of another format: get it again or name another file.") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds no dict of weights; name an image model checkpoint with --model.")
    return checkpoint, sha256


# ------------------------------------------------------------------------------------------------------------------
# 4. StyleVideoGAN (Fox et al. 2021, sec. 3; supplement, tables 4 to 7)
# ------------------------------------------------------------------------------------------------------------------

SLOPE = 0.2  # LeakyReLU. Open in the paper; ours: the slope of StyleGAN and DCGAN, which the tables lean on


def mlp(widths):
    """(linear + LeakyReLU) from each width to the next."""
    return nn.Sequential(*(layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.LeakyReLU(SLOPE))))


class MotionGenerator(nn.Module):
    """G: noise -> trajectory of W+ codes. i (B, 32), s (B, T-1, 32) -> w (B, T, L, D).

    H (table 4) hallucinates the memory of three GRU cells from i, the fourth starts as i. P (table 5) is four stacked GRU
    cells; the fourth's memory is the motion code l. T (table 6) translates each l_k, l_0 = i, into a W+ code.
    width: of T, 512 = D in the paper; ours: D where D is not 512.
    """

    def __init__(self, L, D, noise=32, width=None):
        super().__init__()
        width = width or D
        self.L, self.D, self.noise, self.width = L, D, noise, width
        # H. The hidden widths are open; ours: that of the output, 3 x 32, so that no layer is a bottleneck
        self.hallucinate = nn.Sequential(*mlp([noise] + 4 * [3 * noise]), nn.BatchNorm1d(3 * noise))
        self.produce = nn.GRU(noise, noise, num_layers=4, batch_first=True)                     # P
        self.translate_in = nn.Sequential(nn.BatchNorm1d(noise), nn.Linear(noise, width), PixelNorm(),
                                          *mlp(5 * [width]), nn.BatchNorm1d(width), nn.Linear(width, width))
        # 18 parallel (linear + LeakyReLU + BatchNorm), computed as one linear layer of L D outputs
        self.rows = nn.Parameter(torch.empty(L, width, D).uniform_(-1, 1) / math.sqrt(width))   # as nn.Linear
        self.rows_bias = nn.Parameter(torch.empty(L, D).uniform_(-1, 1) / math.sqrt(width))
        self.rows_norm = nn.BatchNorm1d(L * D)

    def hidden(self, i):
        """Start noise (B, 32) -> memory of the four cells (4, B, 32): (H(i), i)."""
        B, noise = i.shape
        h = self.hallucinate(i).reshape(B, 3, noise).transpose(0, 1)            # (3, B, 32)
        return torch.cat([h, i[None]])                                          # (4, B, 32)

    def roll(self, s, h):
        """Noise (B, K, 32) and memory (4, B, 32) -> the next K motion codes (B, K, 32) and the memory after them."""
        return self.produce(s, h)

    def motion(self, i, s):
        """i (B, 32), s (B, T-1, 32) -> l (B, T, 32), l_0 = i."""
        return torch.cat([i[:, None], self.roll(s, self.hidden(i))[0]], 1)

    def translate(self, l):
        """Motion codes (..., 32) -> W+ codes (..., L, D)."""
        lead = l.shape[:-1]
        v = self.translate_in(l.reshape(-1, self.noise))                        # (N, width)
        weight = self.rows.transpose(1, 2).reshape(-1, self.width)              # (L D, width)
        w = F.leaky_relu(F.linear(v, weight, self.rows_bias.flatten()), SLOPE)  # (N, L D)
        return self.rows_norm(w).reshape(*lead, self.L, self.D)

    def forward(self, i, s):
        return self.translate(self.motion(i, s))                                # (B, T, L, D)

    @torch.no_grad()
    def init_output(self, mean, std):
        """Start the last BatchNorm at the training codes' mean and standard deviation, both (L, D).

        Open in the paper; ours: the output then has the data's scale from the first step, in raw W+ units.
        """
        self.rows_norm.weight.copy_(std.flatten())
        self.rows_norm.bias.copy_(mean.flatten())


class MotionCritic(nn.Module):
    """C: a trajectory of T W+ codes (B, T, L, D) -> a score (B,) (table 7).

    E extracts 32 features per frame, a 1-D DCGAN critic without batch norm reads the sequence. Codes are scaled to zero
    mean and unit variance per entry first. Open in the paper; ours: raw entries differ in scale, and one gradient penalty for
    all of them lets the largest dominate.
    """

    def __init__(self, L, D, T, width=None):
        super().__init__()
        width = width or D
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("std", torch.ones(L, D))
        # E: 2 layers to 512, 4 to 32. The widths of the last four are open; ours: full width until the last
        self.extract = mlp([L * D, width, width, width, width, width, 32])
        layers, channels, length = [], 32, T
        while length > 4:                                                       # 25 -> 12 -> 6 -> 3
            wider = min(2 * channels, 512)
            layers += [nn.Conv1d(channels, wider, 4, 2, 1), nn.LeakyReLU(SLOPE)]
            channels, length = wider, length // 2
        self.judge = nn.Sequential(*layers, nn.Conv1d(channels, 1, length))

    @torch.no_grad()
    def set_scale(self, mean, std):
        """Mean and standard deviation of the training codes, (L, D) each; a constant entry is left unscaled."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, w):
        B, T, L, D = w.shape
        e = self.extract(((w - self.mean) / self.std).reshape(B * T, L * D)).reshape(B, T, 32)
        return self.judge(e.transpose(1, 2)).reshape(B)                         # (B, 32, T) -> (B, 1, 1) -> (B,)


def gradient_penalty(critic, real, fake, generator=None):
    """WGAN-GP penalty (Gulrajani et al. 2017, eq. 3), a scalar; real, fake: (B, T, L, D), already detached.

    The gradient is taken with respect to the scaled codes that the critic sees: d/dx = std d/dw.
    """
    mix = torch.rand(len(real), 1, 1, 1, generator=generator, device=real.device if generator is None else
                     generator.device).to(real.device)
    w = (mix * real + (1 - mix) * fake).requires_grad_(True)
    gradient, = torch.autograd.grad(critic(w).sum(), w, create_graph=True)
    return ((gradient * critic.std).flatten(1).norm(dim=1) - 1).square().mean()


class RunningNorm(nn.Module):
    """norm() of the gradient angle penalty: running mean and variance per component (sec. 3).

    momentum: share of the new batch. Open in the paper; ours: 0.1, BatchNorm's.
    """

    def __init__(self, n, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("var", torch.ones(n))
        self.register_buffer("fresh", torch.ones(()))                           # 1 until the first batch sets both

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

    l (B, T, 32) was made from i (B, 32) and s (B, T-1, 32), both requiring gradients; norm: RunningNorm, updated by the
    caller. Returns the mean over the batch and phi (B,), detached.
    """
    d = norm(l[:, -1] - l[:, 0]).norm(dim=1)                                    # (B,)
    d_s, d_i = torch.autograd.grad(d.sum(), (s, i), create_graph=True)
    # atan2 is the arctan of the quotient without the division; 1e-12 keeps the root's gradient finite at zero
    phi = torch.atan2((d_s.flatten(1).square().sum(1) + 1e-12).sqrt(), (d_i.square().sum(1) + 1e-12).sqrt())
    return F.relu(math.pi / 4 - phi).square().mean(), phi.detach()


def transfer_offset(w_new, mean, basis):
    """Offset trick (sec. 3): Delta = w_new - w'_new, w'_new the projection of w_new onto mean + span(basis).

    w_new: (..., L, D), code of the new actor. mean (L, D), basis (32, L, D), orthonormal: PCA of the training codes.
    Adding Delta to every code of a trajectory moves it to the new actor. Returns (..., L, D).
    """
    away = w_new - mean                                                         # (..., L, D)
    coordinates = torch.einsum("...ld,nld->...n", away, basis)                  # (..., 32)
    return away - torch.einsum("...n,nld->...ld", coordinates, basis)
