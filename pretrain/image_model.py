"""Train an image model (StyleGAN2 generator, pSp encoder) on rendered heads or on frames of your own video.

    python -m pretrain.heads --render heads --identities 4925     # 9,860 pictures; then, on a GPU:
    python -m pretrain.image_model heads -o faces128.pt --workers 8
    python -m pretrain.image_model video.mp4 -o own.pt            # then: embed.py video.mp4 --model own.pt
    python -m pretrain.image_model video.mp4 -o own.pt --size 256                   # on a GPU

Heads: pretrain/heads.py turns u into a picture, so the generator is distilled with the true picture as
target, G(M(z)) = render(params(z)), and the encoder learns to invert it: any number of actors. So, in parts,
was assets/faces128.pt made (docs/image-models.md). Video: both are fitted as an autoencoder, G(E(x)) = x.
There is no z: the model knows one person.

Eyes and mouth count more than the rest, where the renderer or the landmarks of each frame say that they are.
Once full resolution has settled a critic asks for pictures as sharp as the true ones. Pictures that are kept
out of training tell how good the fit is. While it trains it writes a contact sheet (targets, over G(M(z)),
over G(E(x))) and a state file from which --resume goes on exactly where it stopped.

Written files are in pSp's layout (`state_dict`, `latent_avg`, `opts`), half precision. Of heads, the motion
that a random z makes is damped about rest in the file (at_rest): random actors have open eyes and a closed
mouth.
"""

import argparse
import copy
import datetime
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import embed
import evaluate
from models import SQRT2, EqualLinear, Generator, GradualStyleEncoder, ImageModel, InputError, pick_device
from pretrain import heads

# All of the following is ours: neither paper trains networks this small. Steps and pictures in each, of heads
# on a GPU, of a video on two CPU cores
STEPS, BATCH = (3800, 3000), (128, 8)
D = 128                                             # style width
CHANNELS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 40, 128: 24, 256: 16}       # 1.0 M parameters at 128 px;
WIDER = 2                                           # of heads, times as many, the critic's, too: 3.5 M
DEPTHS, WIDTHS, HEAD = (1, 2, 2, 1), (16, 32, 64, 128), 64                  # encoder, 2.8 M parameters
MAPPING = 3                                         # layers: z is already a list of meaningful parameters
# Of heads, of a video: share of the steps after which a resolution is left; a prototype trained at full size
# stayed at blobs
GROW = {16: 0.02, 32: 0.06, 64: 0.22}, {16: 0.06, 32: 0.14, 64: 0.32}
ENCODER_FROM = 0.15                                 # heads: share of the steps before the encoder joins
# Of the generator, of heads and of a video, and the encoder; with a cosine to zero. In 1,600 steps at 64 px,
# 5e-3, 1e-2, 2e-2 gave 18.6, 19.3, 20.2 dB; one clip was sharper with a video's own two (0.35, else 0.29)
LR_GENERATOR, LR_ENCODER, BETAS = (2e-2, 3e-2), 2e-3, (0.9, 0.99)
LAMBDA_CODE = 0.1                                   # keeps E(x) near M(z), without outweighing the picture
EMA = 0.998                                         # ours; shorter at first, (1 + step) / (10 + step)
# Eyes and mouth weigh so many times as much, of heads and of a video, and less beyond a margin: in sides of
# the rendered head; in eye distances, around the landmarks of left eye, right eye, nose tip, mouth. Of heads
# 5 and 0.03 left puckered lips undrawn; 10 and 0.05, not tried apart from more steps, brought most of them
PART_WEIGHT, PART_MARGIN = (10.0, 5.0), (0.05, 0.12)
PARTS = slice(36, 42), slice(42, 48), slice(30, 36), slice(48, 68)
# The critic joins when full resolution has settled, since it can only sharpen; its pull grows over
# CRITIC_RAMP of the steps, as a critic that has seen little has nothing to say
CRITIC_CHANNELS = {4: 96, 8: 96, 16: 64, 32: 48, 64: 24, 128: 16, 256: 8}
CRITIC_FROM, CRITIC_RAMP = 0.62, 0.05
# It sees a square of half the side: of heads anywhere, as their hair is blurred the most; of a video's face
# from brows to chin (top and left edge, in sides; without faces all of the picture). One that saw all of a
# face had 99 % of its gradient's energy outside eyes, nose, mouth
VIEW = 0.36, 0.25
# Its gradient as a share of the loss's (VQGAN, eq. 7), of heads, where more drew rims round hair, and of a
# video. Of heads it is weighed as the loss is: unweighed it left the mouth soft. On videos not tried
PULL = 0.25, 0.4
LR_CRITIC, BETAS_CRITIC = 1.5e-3, (0.0, 0.99)       # StyleGAN2, appendix B: 2e-3
R1_EVERY = 16                                       # steps between R1 penalties (StyleGAN2, sec. 3.1)
R1_WEIGHT = 2e-4                                    # gamma = this x pixels / batch (StyleGAN2-ADA, app. C)
GROUP = 4                                           # pictures whose deviation it sees (Karras 2018, sec. 3)
HOLD_OUT = 10                                       # a video's every 10th frame and last 10th are kept out
MEASURES = "mouth_opening", "eye_opening", "yaw"    # of evaluate.face_measures(), which compare the two
JUDGED = 250                                        # of each such set, at most, are looked at, evenly spaced
SHEET = 10                                          # pictures in the contact sheet
# Options that --resume must be given again: the schedule and the order of the pictures depend on them
KEPT = "source", "size", "align", "steps", "batch", "precision", "seed"


class Heads(Dataset):
    """Pictures of files of pretrain/heads.py, z (its u) that each is rendered from, weights of pixels."""

    def __init__(self, files, size):
        columns = {"lengths": [], "jpeg": [], "u": [], "boxes": []}
        for file in files:
            try:
                with np.load(file) as shard:
                    for name, column in columns.items():
                        column.append(shard[name])
            except Exception as error:                                  # zip, zlib, NumPy: half a dozen types
                raise InputError(f"{file} is no file of rendered heads ({type(error).__name__}); delete it, "
                                 f"and the command that made the folder will make it again.") from None
        self.size, self.ends = size, np.cumsum(np.concatenate(columns["lengths"]))
        self.jpeg, self.z, self.boxes = (np.concatenate(columns[name]) for name in ("jpeg", "u", "boxes"))

    def __len__(self):
        return len(self.z)

    def __getitem__(self, k):
        start = self.ends[k - 1] if k else 0
        picture = cv2.imdecode(self.jpeg[start:self.ends[k]], cv2.IMREAD_COLOR)[..., ::-1]
        picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_AREA)
        weights = spots(self.boxes[k], PART_WEIGHT[0], PART_MARGIN[0], self.size)
        return torch.from_numpy(picture), torch.from_numpy(self.z[k]), weights


class VideoFrames(Dataset):
    """Aligned crops of videos, uint8, those `chosen` of the (n, size, size, 3) in a file, and the weights of
    their pixels; z is empty."""

    def __init__(self, file, shape, points, chosen):
        self.file, self.shape, self.points, self.chosen = file, shape, points, chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, j):
        k = self.chosen[j]
        # Mapped for each picture: a worker that is spawned would be sent a map's content
        crop = np.array(np.memmap(self.file, np.uint8, "r", shape=self.shape)[k])
        return torch.from_numpy(crop), torch.zeros(0), parts_map(self.points[k], self.shape[1])


class Order:
    """Sampler: a fresh permutation per pass, a function of (seed, pass) alone, for exact --resume."""

    def __init__(self, n, seed, start, stop):
        self.n, self.seed, self.start, self.stop = n, seed, start, stop

    def __iter__(self):
        current = None
        for position in range(self.start, self.stop):
            if current != position // self.n:
                current = position // self.n
                permutation = np.random.RandomState([self.seed, current]).permutation(self.n)
            yield int(permutation[position % self.n])


def leave_interrupts(worker):
    """Ctrl-C reaches every process of a terminal; only the one that trains should act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def computes_bf16(device):
    """Whether this processor or GPU multiplies in bfloat16, which is then faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)               # from Ampere on
    known = getattr(torch.cpu, "get_capabilities", dict)()                      # older torch: float32
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def spots(boxes, times, margin, size):
    """(1, size, size) weights of the picture loss, mean 1: so many times as large in boxes (n, 4) of x0, y0,
    x1, y1, in sides of the picture, and a margin around them, than far away."""
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
    weight = np.zeros((size, size), np.float32)
    for x0, y0, x1, y1 in boxes:
        across = (x - (x0 + x1) / 2) / ((x1 - x0) / 2 + margin)
        down = (y - (y0 + y1) / 2) / ((y1 - y0) / 2 + margin)
        weight = np.maximum(weight, np.exp(-(across ** 2 + down ** 2) ** 2))
    weight = 1 + (times - 1) * weight
    return torch.from_numpy(weight / weight.mean())[None]


def parts_map(points, size):
    """spots() around eyes, nose tip and mouth where the landmarks (68, 2) of a crop say; all alike if NaN."""
    if not np.isfinite(points).all():
        return torch.ones(1, size, size)
    boxes = [np.concatenate([points[part].min(0), points[part].max(0)]) / size for part in PARTS]
    margin = PART_MARGIN[1] * np.linalg.norm(embed.eyes(points)[1]) / size
    return spots(boxes, PART_WEIGHT[1], margin, size)


def picture_loss(y, x, focus):
    """L1 + L1 of the horizontal and vertical differences, over a 3-level pyramid; y, x (B, 3, r, r), focus
    (1 or B, 1, r, r)."""
    loss = 0.0
    for level in range(3):
        if level:
            y, x, focus = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(focus, 2)
        e = y - x
        loss = loss + (e.abs() * focus).mean()
        loss = loss + ((e[..., 1:] - e[..., :-1]).abs() * focus[..., 1:]).mean()
        loss = loss + ((e[..., 1:, :] - e[..., :-1, :]).abs() * focus[..., 1:, :]).mean()
    return loss / 3


def jitter(x, generator):
    """Small random shift (2.5 %), zoom (4 %) and turn (3 degrees) of pictures (B, C, H, W), as crops of a
    video may be off."""
    B = len(x)
    u = torch.rand(B, 4, generator=generator).to(x.device) * 2 - 1
    zoom, turn, shift = 1 + 0.04 * u[:, 0], math.radians(3) * u[:, 1], 0.05 * u[:, 2:]    # grid spans [-1, 1]
    c, s = zoom * turn.cos(), zoom * turn.sin()
    rows = torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack(rows, 1), x.shape, align_corners=False)                # of (B, 2, 3)
    # Bicubic: bilinear left 64 % of a crop's squared Laplacian, and a model fitted to blurred pictures blurs;
    # this leaves 93 %
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def to_network(pictures, device):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return pictures.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x):
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(a, b):
    """Mean over pictures of the peak signal-to-noise ratio in dB; (B, H, W, 3) uint8 each."""
    mse = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255 ** 2 / np.maximum(mse, 1e-3))))


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate (Karras et al. 2018, sec. 4.1), of the same side."""

    def __init__(self, c_in, c_out, kernel, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale = 1 / math.sqrt(c_in * kernel ** 2)

    def forward(self, x):
        weight = (self.weight * self.scale).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, 1, self.weight.shape[-1] // 2)


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 skip, halving the side (StyleGAN2, fig. 7c; it filters otherwise)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1, self.conv2 = EqualConv2d(c_in, c_in, 3), EqualConv2d(c_in, c_out, 3)
        self.skip = EqualConv2d(c_in, c_out, 1, bias=False)

    def forward(self, x):                                                       # (B, c_in, r, r)
        y = SQRT2 * F.leaky_relu(self.conv1(x), 0.2)
        y = SQRT2 * F.leaky_relu(F.avg_pool2d(self.conv2(y), 2), 0.2)
        return (y + self.skip(F.avg_pool2d(x, 2))) / SQRT2                      # (B, c_out, r/2, r/2)


class Critic(nn.Module):
    """Residual discriminator of StyleGAN2 (fig. 7c) with minibatch deviation: (B, 3, size, size) -> (B,)."""

    def __init__(self, size, wider=1):
        super().__init__()
        c = {r: wider * n for r, n in CRITIC_CHANNELS.items() if r <= size}
        self.from_rgb = EqualConv2d(3, c[size], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(c[r], c[r // 2]) for r in sorted(c, reverse=True)[:-1]))
        self.last = EqualConv2d(c[4] + 1, c[4], 3)
        self.head = nn.Sequential(EqualLinear(16 * c[4], c[4], activation=True), EqualLinear(c[4], 1))

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks(SQRT2 * F.leaky_relu(self.from_rgb(x), 0.2)).float()    # (B, c, 4, 4)
        B, c = x.shape[:2]
        group = max(g for g in range(1, GROUP + 1) if B % g == 0)
        deviation = (x.reshape(group, B // group, c, 4, 4).var(0, unbiased=False) + 1e-8).sqrt()
        deviation = deviation.mean((1, 2, 3)).repeat(group)[:, None, None, None]                # (B, 1, 1, 1)
        x = torch.cat([x, deviation.expand(-1, 1, 4, 4)], 1)
        x = SQRT2 * F.leaky_relu(self.last(x), 0.2)
        return self.head(x.flatten(1))[:, 0]                                    # (B,)


def view(x, corner):
    """What a critic sees of pictures (B, 3, r, r): a square of half the side; corner: its top and left edge,
    in sides of the picture. None: all."""
    r = x.shape[-1]
    if corner is None:
        return x
    top, left = (round(share * r) for share in corner)
    return x[..., top:top + r // 2, left:left + r // 2]


def r1_penalty(critic, x):
    """Half the squared norm of d critic(x) / dx, mean over real pictures x (B, 3, r, r) (Mescheder et al.
    2018, eq. 9)."""
    x = x.detach().requires_grad_(True)
    gradient, = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


class Networks(nn.Module):
    """What is trained: generator, encoder, and the mean of w that the encoder's output is added to."""

    def __init__(self, size, Z):
        super().__init__()
        channels = {r: c * (WIDER if Z else 1) for r, c in CHANNELS.items() if r <= size}
        self.decoder = Generator(size, D, Z or D, MAPPING if Z else 0, channels, lr_mlp=1.0)
        self.encoder = GradualStyleEncoder(self.decoder.L, D, size, DEPTHS, WIDTHS, HEAD)
        self.register_buffer("latent_avg", torch.zeros(D))

    def map(self, z):
        """z (B, Z) -> w (B, D), without PixelNorm: z's length is part of what its picture depends on."""
        return self.decoder.style[1:](z)

    def image_model(self):
        return ImageModel(self.decoder, self.encoder, self.latent_avg, device=self.latent_avg.device)


def reconstruct(ema, x, z):
    """EMA networks on a batch: (G(M(z)) or None, G(E(x))), uint8 pictures; networks are left in eval mode."""
    model = ema.image_model()
    drawn = None
    if model.has_actors:
        drawn = to_pictures(model.render(ema.map(z)[:, None].expand(-1, model.L, -1)))
    return drawn, to_pictures(model.render(model.encode(x)))


@torch.no_grad()
def at_rest(ema):
    """A copy whose random actors are calm: the mapping's first layer takes z as heads.people() does, and
    latent_avg is their mean; the encoder's last biases make up for that, so what it encodes stays."""
    net = copy.deepcopy(ema)
    first = net.decoder.style[1]
    scale, rest = (torch.from_numpy(a).to(first.weight) for a in heads.CALM)                    # (Z,) each
    first.bias += first.scale * first.weight @ rest
    first.weight *= scale
    z = torch.randn(20_000, net.decoder.Z, generator=torch.Generator().manual_seed(0)).to(first.weight)
    net.latent_avg.copy_(net.decoder.style(z).mean(0))
    for style in net.encoder.styles:
        style.linear.bias += ema.latent_avg - net.latent_avg
    return net


def save(path, write):
    """Write through a temporary name, so that `path` is only ever complete."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def checkpoint(net, name, args, quality):
    """pSp-layout dict; matrices in half precision, vectors (biases, BatchNorm) in full."""
    weights, actors = {n: v.cpu().clone() for n, v in net.state_dict().items()}, net.decoder.n_mlp > 0
    weights = {n: v.half() if v.is_floating_point() and v.ndim > 1 else v for n, v in weights.items()}
    opts = {"name": name, "encoder_type": "GradualStyleEncoder", "output_size": args.size, "lr_mlp": 1.0,
            "names": list(heads.NAMES) if actors else [], "quality": quality,
            "command": f"python -m pretrain.image_model {' '.join(args.argv)}",
            "date": datetime.date.today().isoformat(), "torch": str(torch.__version__),
            "licence": "its maker's; shapes of heads: MakeHuman, CC0" if actors else "that of the footage"}
    return {"latent_avg": weights.pop("latent_avg"), "state_dict": weights, "opts": opts}


def video_crops(paths, size, align, file):
    """Crops of every usable frame of the videos, as embed.py makes them, written to `file` as (n, size, size,
    3) uint8, since an hour of video would fill the memory. Returns the number of each video's and their
    landmarks (n, 68, 2), NaN where no face was found."""
    counts, points = [], []
    with open(file, "wb") as out:
        for path in paths:
            survey = embed.survey(path, align)
            frames, tracker = survey["frames"], embed.FaceTracker(survey["fps"])
            words = {"desc": f"2/2 {Path(path).name}", "total": len(frames), "unit": "frame"}
            for crop in tqdm(embed.crops(path, frames, size), **words):
                out.write(crop.tobytes())
                grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
                found = tracker.step(grey) if align == "face" else None
                points.append(np.full((68, 2), np.nan) if found is None else found)
            counts.append(len(frames))
    return counts, np.array(points, np.float32)


def split_frames(counts):
    """Frames of videos of this many -> three arrays of their numbers: to train on, every 10th, the last 10th
    of each video. Beside a frame of the second set lie frames of the first; the third shows unseen motion."""
    sets = [], [], []
    for start, n in zip(np.cumsum([0, *counts]), counts):
        k = np.arange(n)
        of = np.where(k >= n - n // HOLD_OUT, 2, np.where(k % HOLD_OUT == HOLD_OUT // 2, 1, 0))
        for j in range(3):
            sets[j].append(start + k[of == j])
    return [np.concatenate(s) for s in sets]


def measures(pictures):
    """dlib's measures of what faces in pictures (n, H, W, 3) do, found anew in each -> (n, 3), or NaN."""
    points = [embed.landmarks(picture) for picture in pictures]
    found = [None if p is None else evaluate.face_measures(p) for p in points]
    return np.array([[np.nan if f is None else f[name] for name in MEASURES] for f in found])


def correlation(a, b):
    """Pearson's r of each column of measures (n, 3), where both show a face; NaN where one is still."""
    seen = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    with np.errstate(invalid="ignore"):
        pairs = zip(a[seen].T, b[seen].T)
        return [float(np.corrcoef(x, y)[0, 1]) if seen.sum() > 2 else math.nan for x, y in pairs]


def sharpness(a, b, weights):
    """Squared Laplacian of pictures b over that of a (n, H, W, 3) uint8, where weights (n, H, W) are: 1 is as
    sharp."""
    def energy(pictures):
        greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
        return (weights * [cv2.Laplacian(grey, cv2.CV_32F) ** 2 for grey in greys]).sum()

    return float(energy(b) / energy(a))


def main(args):
    started, output = time.time(), Path(args.output)
    state_path, sheet_path = output.with_suffix(".state.pt"), output.with_suffix(".png")
    if not output.parent.is_dir() or output.is_dir() or output == sheet_path:
        raise InputError(f"{output} cannot be written; name a .pt file in a folder that exists with -o.")
    if args.size < 32 or args.size not in CHANNELS:
        raise InputError(f"--size {args.size} is not one of 32, 64, 128, 256.")
    device, source = pick_device(args.device), Path(args.source[0])
    files = sorted(source.glob("heads-??????.npz"))                     # none of footage
    args.steps = STEPS[not files] if args.steps is None else args.steps
    args.batch = BATCH[not files] if args.batch is None else args.batch
    for name, least in (("steps", 1), ("batch", 2), ("workers", 0), ("every", 1), ("seed", 0)):
        if not least <= getattr(args, name) < 2 ** 32:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; give {least} or more.")
    if args.precision == "auto":
        args.precision = "bf16" if computes_bf16(device) else "fp32"
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    torch.manual_seed(args.seed)

    # Data: pictures to train on, pictures to judge by
    folder = tempfile.TemporaryDirectory(prefix="crops-")
    if files:
        if len(files) < 2 or len(args.source) > 1:
            raise InputError(f"{source} holds {len(files)} files of rendered heads; name one folder alone, "
                             f"with at least 2, made by: python -m pretrain.heads --render {source}")
        Z, held_files = heads.Z, files[-max(1, len(files) // 50):]      # of people that training never sees
        train_set, held_set = Heads(files[:-len(held_files)], args.size), Heads(held_files, args.size)
        kept = [np.arange(len(held_set))]
    else:
        Z, file = 0, Path(folder.name) / "crops"
        counts, points = video_crops(args.source, args.size, args.align, file)
        if sum(counts) < 2 * HOLD_OUT:
            raise InputError(f"{source}: {sum(counts)} frames with a face are too few to fit a model; use a "
                             f"video with at least {2 * HOLD_OUT}.")
        shape, (trained, *kept) = (sum(counts), args.size, args.size, 3), split_frames(counts)
        train_set = VideoFrames(file, shape, points, trained)
        held_set = VideoFrames(file, shape, points, np.arange(sum(counts)))
    kept = [k[np.linspace(0, len(k) - 1, min(JUDGED, len(k))).astype(int)] for k in kept]
    held = [held_set[k] for k in np.concatenate(kept)]
    faces = not Z and args.align == "face"                              # told by their landmarks
    held_measures = measures([h[0].numpy() for h in held]) if faces else None
    held_weights = torch.cat([h[2] for h in held]).numpy()              # (n, size, size)
    held_parts = held_weights > ((held_weights.max((1, 2), keepdims=True) + 1) / 2 if Z or faces else 0)
    held_x = to_network(torch.stack([h[0] for h in held]), device)      # (n, 3, size, size)
    held_z = torch.stack([h[1] for h in held]).to(device)               # (n, Z)

    # Networks, which start at the mean colour, and optimisers
    net = Networks(args.size, Z).to(device)
    some = [train_set[k][0] for k in np.linspace(0, len(train_set) - 1, 100).astype(int)]
    net.decoder.to_rgb1.bias.data += to_network(torch.stack(some), device).mean((0, 2, 3), keepdim=True)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = torch.optim.Adam([{"params": net.decoder.parameters()}, {"params": net.encoder.parameters()}],
                                 betas=BETAS)
    critic_from = math.ceil(CRITIC_FROM * args.steps)
    corner = VIEW if Z or faces else None
    critic = Critic(view(held_x, corner).shape[-1], WIDER if Z else 1).to(device)
    critic_optimiser = torch.optim.Adam(critic.parameters(), LR_CRITIC, BETAS_CRITIC)
    parts = {"net": net, "ema": ema, "optimiser": optimiser, "critic": critic,
             "critic_optimiser": critic_optimiser}

    # Or all of it from the state of an interrupted run
    step = 0
    if args.resume:
        try:
            state = torch.load(state_path, map_location=device, weights_only=True)
            options, step = state["options"], state["step"]
            other = [name for name in KEPT if options[name] != getattr(args, name)]
            for name, part in parts.items():
                if not other:
                    part.load_state_dict(state[name])
        except Exception as error:                                      # torch raises a dozen types here
            raise InputError(f"{state_path} is no state of this training ({type(error).__name__}); start "
                             f"again without --resume.") from None
        if other:
            name = other[0]
            raise InputError(f"{state_path} is of a training with {name} {options[name]}, not "
                             f"{getattr(args, name)}; give the same, or start again without --resume.")
        if step >= args.steps:
            raise InputError(f"{output} is finished, all {args.steps} steps; start again without --resume "
                             f"for another one.")

    order = Order(len(train_set), args.seed, step * args.batch, args.steps * args.batch)
    loader = DataLoader(train_set, args.batch, sampler=order, num_workers=args.workers,
                        prefetch_factor=4 if args.workers else None, worker_init_fn=leave_interrupts)
    quality, status = {}, "-"

    def report():
        """Contact sheet, held-out quality of the EMA networks, model, state, each complete or not at all."""
        rows = [to_pictures(held_x)]
        made = [reconstruct(ema, x, z) for x, z in zip(held_x.split(16), held_z.split(16))]
        rows += [np.concatenate(column) for column in zip(*made) if column[0] is not None]
        shown = np.linspace(0, len(held) - 1, SHEET).astype(int)
        sheet = np.concatenate([np.concatenate(row[shown], 1) for row in rows])
        encoded = cv2.imencode(".png", sheet[..., ::-1])[1]
        save(sheet_path, lambda part: part.write_bytes(encoded.tobytes()))

        quality.update(step=step, pictures=step * args.batch)
        found = measures(rows[-1]) if faces else None
        ends = np.cumsum([len(k) for k in kept])
        for name, end, k in zip(("people",) if Z else ("every_10th", "last_10th"), ends, kept):
            part = slice(end - len(k), end)
            a, b = rows[0][part], rows[-1][part]
            quality[name] = {"frames": len(k), "psnr": psnr(a, b),
                             "sharpness": sharpness(a, b, held_parts[part])}
            if Z:
                quality[name]["psnr_of_z"] = psnr(a, rows[1])
            if faces:
                quality[name].update(zip(MEASURES, correlation(held_measures[part], found[part])))
        resting = at_rest(ema) if Z else ema
        save(output, lambda part: torch.save(checkpoint(resting, output.stem, args, quality), part))
        state = {"step": step, "options": {name: getattr(args, name) for name in KEPT},
                 **{name: part.state_dict() for name, part in parts.items()}}
        save(state_path, lambda part: torch.save(state, part))
        return " / ".join(f"{part['psnr']:.2f}" for part in quality.values() if isinstance(part, dict))

    # Ctrl-C ends the step at hand and saves, so that the state is always that of a whole step
    stop = []
    handler = signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    bar = tqdm(loader, initial=step, total=args.steps, unit="step", mininterval=1.0, desc=output.name)
    try:
        for pictures, z, weights in bar:
            share = step / args.steps
            r = min([r for r, end in GROW[not Z].items() if share < end] + [args.size])
            with_critic = step >= critic_from
            for group, lr in zip(optimiser.param_groups, (LR_GENERATOR[not Z], LR_ENCODER)):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (step + 1) / 100)

            # Targets: the picture at the resolution that is being trained
            x, z = to_network(pictures, device), z.to(device)                   # (B, 3, size, size), (B, Z)
            focus = weights.to(device)                                          # (B, 1, size, size)
            rng = torch.Generator().manual_seed(args.seed + step)
            if Z:
                corner = (torch.rand(2, generator=rng) / 2).tolist()
            else:                                                               # the weights move, too
                moved = jitter(torch.cat([x, focus], 1), rng)
                x, focus = moved[:, :3].contiguous(), moved[:, 3:].clamp_min(0)
            target, focus = (F.interpolate(t, (r, r), mode="area") for t in (x, focus))

            # Codes: of z for the first half of the batch, of the encoder for the rest
            codes, code_loss, half = [], 0.0, 0
            if Z:
                half = len(x) if share < ENCODER_FROM else len(x) // 2
                w = net.map(z)                                                  # (B, D)
                with torch.no_grad():
                    net.latent_avg.lerp_(w.mean(0), 0.01)
                codes.append(w[:half, None].expand(-1, net.decoder.L, -1))      # (half, L, D)
            if half < len(x):
                with autocast:
                    offsets = net.encoder(x[half:])
                codes.append(offsets.float() + net.latent_avg)                  # (B - half, L, D)
                if Z:
                    away = (codes[1] - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)
                    code_loss = LAMBDA_CODE * away.abs().mean()

            # Pictures of the codes against the targets, and how they should change
            y = net.decoder(torch.cat(codes), resolution=r, dtype=dtype)        # (B, 3, r, r)
            loss = picture_loss(y, target, focus)
            change, = torch.autograd.grad(loss, y)                              # (B, 3, r, r)
            if with_critic:                                     # non-saturating (StyleGAN2, appendix B)
                critic.requires_grad_(False)
                with autocast:
                    unlike = F.softplus(-critic(view(y, corner))).mean()
                sharper, = torch.autograd.grad(unlike, y)
                if Z:
                    sharper = sharper * focus
                pull = PULL[not Z] * min(1.0, (step - critic_from) / (CRITIC_RAMP * args.steps))
                change = change + pull * change.norm() / (sharper.norm() + 1e-12) * sharper
            optimiser.zero_grad(set_to_none=True)
            ((y * change).sum() + code_loss).backward()
            optimiser.step()

            # Critic: frames against their reconstructions
            if with_critic:
                real = view(target, corner)
                critic.requires_grad_(True)
                with autocast:
                    critic_loss = F.softplus(-critic(real)).mean()
                    critic_loss = critic_loss + F.softplus(critic(view(y.detach(), corner))).mean()
                if (step - critic_from) % R1_EVERY == 0:
                    gamma = R1_WEIGHT * real.shape[-1] ** 2 / args.batch
                    critic_loss = critic_loss + R1_EVERY * gamma * r1_penalty(critic, real)
                critic_optimiser.zero_grad(set_to_none=True)
                critic_loss.backward()
                critic_optimiser.step()
            step += 1

            # Average of the weights
            new = 1 - min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(ema.state_dict().values(), net.state_dict().values()):
                    a.lerp_(b, new) if a.is_floating_point() else a.copy_(b)
            if step % args.every == 0 or step == args.steps or stop:
                status = report()
            if step % 10 == 0:
                bar.set_postfix_str(f"{r} px, loss {loss.item():.4f}, held-out PSNR {status}")
            if stop:
                raise KeyboardInterrupt(f"stopped at step {step} of {args.steps} and saved; go on with "
                                        f"--resume.")
    finally:
        signal.signal(signal.SIGINT, handler)
        bar.close()
        folder.cleanup()
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB), {sheet_path} and {state_path} in "
          f"{(time.time() - started) / 60:.1f} minutes.{' Random actors are at rest.' if Z else ''}",
          file=sys.stderr)
    of_parts = " of eyes and mouth" if Z or faces else ""
    for name, found in quality.items():
        if isinstance(found, dict):
            also = "".join(f", {m.replace('_', ' ')} {found[m]:.3f}" for m in MEASURES if m in found)
            print(f"Held out, {name.replace('_', ' ')} ({found['frames']} frames): {found['psnr']:.2f} dB, "
                  f"sharpness{of_parts} {found['sharpness']:.2f} of theirs{also}.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="+",
                        help="a folder of pretrain/heads.py --render, or videos of one person, as embed.py's")
    parser.add_argument("-o", "--output", default="image_model.pt",
                        help="model to write: image_model.pt; .png and .state.pt go beside it")
    parser.add_argument("--align", choices=("face", "none"), default="face",
                        help="of a video, as embed.py's: face")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels: 128")
    parser.add_argument("--steps", type=int, help=f"optimiser steps: {STEPS[0]}, on a video {STEPS[1]}")
    parser.add_argument("--batch", type=int, help=f"pictures per step: {BATCH[0]}, on a video {BATCH[1]}")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of feature maps; auto: bf16 where processor or GPU compute in it, else fp32")
    parser.add_argument("--workers", type=int, default=1, help="processes that load pictures: 1")
    parser.add_argument("--every", type=int, default=500, help="steps between sheets and saved states: 500")
    parser.add_argument("--resume", action="store_true", help="go on from the state file beside --output")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers: 0")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    arguments = parser.parse_args()
    arguments.argv = sys.argv[1:]
    try:
        main(arguments)
    except InputError as error:
        parser.exit(2, f"image_model.py: {error}\n")
    except KeyboardInterrupt as error:
        words = str(error) or "stopped before the training began; nothing was written."
        parser.exit(130, f"image_model.py: {words}\n")
