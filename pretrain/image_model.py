"""Train an image model (StyleGAN2 generator + pSp encoder) on rendered heads, or on the frames of your own video.

    python -m pretrain.heads --render heads --identities 10000    # then, on a GPU, in a quarter of an hour:
    python -m pretrain.image_model heads -o assets/faces128.pt --batch 128 --steps 5000 --precision bf16
    python -m pretrain.image_model video.mp4 -o own.pt            # then: python embed.py video.mp4 --model own.pt
    python -m pretrain.image_model video.mp4 -o own.pt --size 256 --precision bf16                          # on a GPU

Heads: pretrain/heads.py turns z into a picture, so the generator is distilled with the true picture as target,
G(M(z)) = render(params(z)), and the encoder learns to invert it. Such a model has any number of actors.
Video: generator and encoder are fitted together as an autoencoder, G(E(x)) = x. There is no z: the model knows one person.
Eyes and mouth count more than the rest, where the renderer or the landmarks of each frame say that they are, and once full
resolution is trained a critic asks for pictures as sharp as the true ones. Pictures that are kept out of training tell how
good the fit is. One loop does both; every step trains the paths that its source has. While it trains it writes a contact
sheet (targets, over G(M(z)), over G(E(x))) and a state file from which --resume goes on exactly where it stopped.

Written files are in pSp's layout (`state_dict`, `latent_avg`, `opts`), half precision. Of heads, the motion that a random z
makes is damped about rest in the file (at_rest), so that random actors have open eyes and a closed mouth.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets `python pretrain/image_model.py` find its siblings
import embed
import evaluate
from models import (
    SQRT2,
    EqualLinear,
    Generator,
    GradualStyleEncoder,
    ImageModel,
    InputError,
    depthwise,
    fir_kernel,
)
from pretrain import heads

# All of the following is ours: neither paper trains networks this small. Chosen for 128 px on two CPU cores
STEPS_HEADS, STEPS_VIDEO = 12000, 3000                        # optimiser steps ...
BATCH_HEADS, BATCH_VIDEO = 16, 8                               # ... and pictures in each. 8 on a video, for more steps in the
#                                                                same time: a guess, not compared by held-out frames
D = 128                                                        # style width
CHANNELS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 40, 128: 24, 256: 16}          # 1.0 M parameters at 128 px;
WIDER = 2                                                      # of heads, times as many: 3.5 M
DEPTHS, WIDTHS, HEAD = (1, 2, 2, 1), (16, 32, 64, 128), 64     # encoder, 2.8 M parameters
MAPPING = 3                                                    # layers: z is already a list of meaningful parameters
GROW = {16: 0.06, 32: 0.14, 64: 0.32}                          # share of the steps after which a resolution is left;
#                                                                a prototype trained at full size at once stayed at blobs
ENCODER_FROM = 0.15                                            # heads: share of the steps before the encoder joins
LR_GENERATOR, LR_ENCODER, BETAS = 3e-2, 2e-3, (0.9, 0.99)      # with a cosine to zero. In 1,600 steps at 64 px, 5e-3, 1e-2,
#                                                                2e-2, 4e-2 for the generator gave 18.6, 19.3, 20.2, 20.8 dB
LAMBDA_CODE = 0.1                                              # keeps E(x) near M(z), without outweighing the picture
EMA = 0.998
# PARTS of a video's frame: the landmarks of left eye, right eye, nose tip and mouth; their weight falls off beyond PART_MARGIN eye
# distances around them (eyes are seen, and blink, within more than their lids)
PARTS, PART_MARGIN, PART_WEIGHT = (slice(36, 42), slice(42, 48), slice(30, 36), slice(48, 68)), 0.12, 6.0
BOX_MARGIN = 0.03                                              # the same of heads, in sides of the picture
# Critic. Its widths, what it sees and when it joins are ours: when full resolution has settled, since it can only sharpen; its
# pull grows over CRITIC_RAMP of the steps, as a critic that has seen little has nothing to say. Of a video's face it sees the
# half from brows to chin: one that saw all of a crop had 99 % of its gradient's energy outside eyes, nose and mouth; of heads
# a half anywhere, as their hair is blurred the most
VIEW = 0.36, 0.25                                              # top and left edge of that half, in sides of the crop
CRITIC_CHANNELS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 32, 128: 16, 256: 8}
CRITIC_FROM, CRITIC_FROM_HEADS, CRITIC_RAMP = 0.5, 0.62, 0.1
PULL = 0.4                                                     # gradient of the picture that is the critic's, as a share of
#                                                                the reconstruction's: no weight to find (as VQGAN's eq. 7)
#                                                                A guess: on one video, training without the critic gave
#                                                                the same sharpness (0.62, with it 0.63) and 0.1 dB more
LR_CRITIC, BETAS_CRITIC = 2e-3, (0.0, 0.99)                    # StyleGAN2, appendix B
R1_EVERY = 16                                                  # steps between R1 penalties (StyleGAN2, sec. 3.1)
R1_WEIGHT = 2e-4                                               # gamma = this x pixels / batch (StyleGAN2-ADA, appendix C)
GROUP = 4                                                      # pictures whose deviation the critic sees (Karras 2018, sec. 3)
HOLD_OUT = 10                                                  # every 10th frame and the last 10th of a video are not trained on
MEASURES = "mouth_opening", "eye_opening", "yaw"               # of evaluate.face_measures(), by which the two are compared
JUDGED = 250                                                   # of these two sets each, at most, are looked at, evenly spaced
SHEET = 10                                                     # pictures in the contact sheet
# Options that --resume must be given again: the schedule and the order of the pictures depend on them
KEPT = "source", "size", "align", "steps", "batch", "precision", "seed"


class Heads(Dataset):
    """Pictures of files of pretrain/heads.py, the z that each was rendered from, and the weights of its pixels."""

    def __init__(self, files, size):
        shards = [dict(np.load(file)) for file in files]
        self.size, lengths = size, np.concatenate([shard["lengths"] for shard in shards])
        self.ends, self.jpeg = np.cumsum(lengths), np.concatenate([shard["jpeg"] for shard in shards])
        self.z, self.boxes = (np.concatenate([shard[name] for shard in shards]) for name in ("u", "boxes"))

    def __len__(self):
        return len(self.z)

    def __getitem__(self, k):
        start = self.ends[k - 1] if k else 0
        picture = cv2.imdecode(self.jpeg[start:self.ends[k]], cv2.IMREAD_COLOR)[..., ::-1]
        if len(picture) != self.size:
            picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.array(picture)), torch.from_numpy(self.z[k]), spots(self.boxes[k], BOX_MARGIN, self.size)


class VideoFrames(Dataset):
    """Aligned crops of videos, uint8, some of the (n, size, size, 3) in a file, and the weights of their pixels; z is empty."""

    def __init__(self, file, shape, points, chosen):
        self.file, self.shape, self.points, self.chosen = file, shape, points, chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, j):
        k = self.chosen[j]                           # mapped per picture: a worker that is spawned would be sent a map's content
        crop = np.array(np.memmap(self.file, np.uint8, "r", shape=self.shape)[k])
        return torch.from_numpy(crop), torch.zeros(0), parts_map(self.points[k], self.shape[1])


class Order:
    """Sampler: a fresh permutation per pass, a function of (seed, pass) alone, so that a resumed run sees the same data."""

    def __init__(self, n, seed, start, stop):
        self.n, self.seed, self.start, self.stop = n, seed, start, stop

    def __iter__(self):
        current = None
        for position in range(self.start, self.stop):
            if current != position // self.n:
                current = position // self.n
                permutation = np.random.RandomState([self.seed, current]).permutation(self.n)
            yield int(permutation[position % self.n])

    def __len__(self):
        return self.stop - self.start


def leave_interrupts(worker):
    """Ctrl-C reaches every process of a terminal; only the one that trains should act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def computes_bf16(device):
    """Whether this processor or GPU multiplies in bfloat16, which is then faster than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)               # from Ampere on
    known = getattr(torch.cpu, "get_capabilities", dict)()                      # absent from older torch: then float32
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolution_at(share, size):
    """Side that is trained at this share of the steps."""
    return min([r for r, end in GROW.items() if share < end] + [size])


def spots(boxes, margin, size):
    """(1, size, size) weights of the picture loss, mean 1: PART_WEIGHT times as large in boxes (n, 4) of x0, y0, x1, y1, in
    sides of the picture, and a margin around them, than far away."""
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
    weight = np.zeros((size, size), np.float32)
    for x0, y0, x1, y1 in boxes:
        across, down = (x - (x0 + x1) / 2) / ((x1 - x0) / 2 + margin), (y - (y0 + y1) / 2) / ((y1 - y0) / 2 + margin)
        weight = np.maximum(weight, np.exp(-(across ** 2 + down ** 2) ** 2))
    weight = 1 + (PART_WEIGHT - 1) * weight
    return torch.from_numpy(weight / weight.mean())[None]


def parts_map(points, size):
    """spots() around eyes, nose tip and mouth where the landmarks (68, 2) of a crop say; all alike if they are NaN."""
    if not np.isfinite(points).all():
        return torch.ones(1, size, size)
    boxes = [np.concatenate([points[part].min(0), points[part].max(0)]) / size for part in PARTS]
    return spots(boxes, PART_MARGIN * np.linalg.norm(embed.eyes(points)[1]) / size, size)


def picture_loss(y, x, focus):
    """L1 + L1 of the horizontal and vertical differences, over a 3-level pyramid; y, x (B, 3, r, r), focus (1 or B, 1, r, r)."""
    loss = 0.0
    for level in range(3):
        if level:
            y, x, focus = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(focus, 2)
        e = y - x
        loss = loss + (e.abs() * focus).mean() + ((e[..., 1:] - e[..., :-1]).abs() * focus[..., 1:]).mean() \
            + ((e[..., 1:, :] - e[..., :-1, :]).abs() * focus[..., 1:, :]).mean()
    return loss / 3


def jitter(x, generator):
    """Small random shift (2.5 %), zoom (4 %) and turn (3 degrees) per picture, as crops of a video may be off; (B, C, H, W)."""
    B = len(x)
    u = torch.rand(B, 4, generator=generator).to(x.device) * 2 - 1
    zoom, turn, shift = 1 + 0.04 * u[:, 0], math.radians(3) * u[:, 1], 0.05 * u[:, 2:]          # grid spans [-1, 1]
    c, s = zoom * turn.cos(), zoom * turn.sin()
    theta = torch.stack([torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)], 1)     # (B, 2, 3)
    # Bicubic: bilinear left 64 % of a crop's squared Laplacian, and a model fitted to blurred pictures blurs; this leaves 93 %
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), mode="bicubic", padding_mode="reflection",
                         align_corners=False)


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
    """Convolution with equalised learning rate (Karras et al. 2018, sec. 4.1)."""

    def __init__(self, c_in, c_out, kernel, stride=1, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale, self.stride = 1 / math.sqrt(c_in * kernel ** 2), stride

    def forward(self, x):
        weight = (self.weight * self.scale).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, self.stride, self.weight.shape[-1] // 2)


class ResidualBlock(nn.Module):
    """Two convolutions, the second halving the side, beside a 1x1 skip (StyleGAN2, fig. 7c); both filtered before halving."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1, self.conv2 = EqualConv2d(c_in, c_in, 3), EqualConv2d(c_in, c_out, 3, stride=2)
        self.skip = EqualConv2d(c_in, c_out, 1, stride=2, bias=False)
        self.register_buffer("kernel", fir_kernel(1.0))

    def forward(self, x):                                                       # (B, c_in, r, r)
        y = SQRT2 * F.leaky_relu(self.conv1(x), 0.2)
        y = SQRT2 * F.leaky_relu(self.conv2(depthwise(y, self.kernel)), 0.2)    # filtered: (B, c_in, r - 1, r - 1)
        return (y + self.skip(depthwise(x, self.kernel))) / SQRT2               # (B, c_out, r/2, r/2)


class Critic(nn.Module):
    """Residual discriminator of StyleGAN2 (fig. 7c) with minibatch deviation, narrower: (B, 3, size, size) -> (B,)."""

    def __init__(self, size):
        super().__init__()
        c = {r: CRITIC_CHANNELS[r] for r in CRITIC_CHANNELS if r <= size}
        self.from_rgb = EqualConv2d(3, c[size], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(c[r], c[r // 2]) for r in sorted(c, reverse=True)[:-1]))
        self.last = EqualConv2d(c[4] + 1, c[4], 3)
        self.head = nn.Sequential(EqualLinear(16 * c[4], c[4], activation=True), EqualLinear(c[4], 1))

    def forward(self, x):
        x = SQRT2 * F.leaky_relu(self.from_rgb(x.contiguous(memory_format=torch.channels_last)), 0.2)
        x = self.blocks(x).to(self.last.weight.dtype)                           # (B, c, 4, 4)
        B, c = x.shape[:2]
        group = max(g for g in range(1, GROUP + 1) if B % g == 0)
        split = x.reshape(group, B // group, c, 4, 4)
        deviation = (split.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))                # (B / group,)
        x = torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)], 1)
        x = SQRT2 * F.leaky_relu(self.last(x), 0.2)
        return self.head(x.flatten(1))[:, 0]                                    # (B,)


def view(x, corner):
    """The half of pictures (B, 3, r, r) that the critic sees; corner: its top and left edge in sides, None: all of it."""
    r = x.shape[-1]
    if corner is None:
        return x
    top, left = (round(share * r) for share in corner)
    return x[..., top:top + r // 2, left:left + r // 2]


def r1_penalty(critic, x):
    """Half the squared norm of d critic(x) / dx, mean over real pictures x (B, 3, r, r) (Mescheder et al. 2018, eq. 9)."""
    x = x.detach().requires_grad_(True)
    gradient, = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


class Networks(nn.Module):
    """What is trained: mapping and synthesis, encoder, and the mean of w that the encoder's output is added to."""

    def __init__(self, size, Z):
        super().__init__()
        channels = {r: c * (WIDER if Z else 1) for r, c in CHANNELS.items() if r <= size}
        self.decoder = Generator(size, D, Z or D, MAPPING if Z else 0, channels, lr_mlp=1.0)
        self.encoder = GradualStyleEncoder(self.decoder.L, D, size, DEPTHS, WIDTHS, HEAD)
        self.register_buffer("latent_avg", torch.zeros(D))

    def map(self, z):
        """z (B, Z) -> w (B, D), without PixelNorm: it would take away how long z is, on which its picture depends."""
        return self.decoder.style[1:](z)

    def image_model(self):
        return ImageModel(self.decoder, self.encoder, self.latent_avg, device=self.latent_avg.device)


def reconstruct(ema, x, z):
    """EMA networks on a batch: (G(M(z)) or None, G(E(x))), uint8 pictures; leaves the networks in eval mode."""
    model = ema.image_model()
    drawn = to_pictures(model.render(ema.map(z)[:, None].expand(-1, model.L, -1))) if model.has_actors else None
    return drawn, to_pictures(model.render(model.encode(x)))


@torch.no_grad()
def at_rest(ema):
    """A copy whose random actors are calm: the mapping's first layer takes z as heads.calm() of it, and latent_avg is the mean
    of such actors; the encoder's last biases make up for that, so what it encodes stays."""
    net = copy.deepcopy(ema)
    first = net.decoder.style[1]
    scale, rest = (torch.from_numpy(a).to(first.weight) for a in heads.CALM)                # (Z,) each
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


def checkpoint(ema, name, args, step, quality):
    """pSp-layout dict; matrices in half precision, vectors (biases, BatchNorm) in full. quality: added to its opts."""
    model = (at_rest(ema) if ema.decoder.n_mlp else ema).image_model()
    parts = {f"decoder.{n}": v for n, v in model.generator.state_dict().items()}
    parts.update({f"encoder.{n}": v for n, v in model.encoder.state_dict().items()})
    half = {n: (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().clone() for n, v in parts.items()}
    opts = {"name": name, "encoder_type": "GradualStyleEncoder", "output_size": model.size, "lr_mlp": 1.0, "step": step,
            **quality, "command": f"python -m pretrain.image_model {' '.join(args.argv)}",
            "date": datetime.date.today().isoformat(), "torch": str(torch.__version__),
            "licence": "MIT" if ema.decoder.n_mlp else "that of the footage"}
    return {"state_dict": half, "latent_avg": ema.latent_avg.cpu().clone(), "opts": opts}


def video_crops(paths, size, align, file):
    """Crops of every usable frame of the videos, as embed.py makes them, written to `file` as (n, size, size, 3) uint8, since an
    hour of video would fill the memory. Returns the number of each video's and their landmarks (n, 68, 2), NaN where no face
    was found."""
    counts, points = [], []
    with open(file, "wb") as out:
        for path in paths:
            survey = embed.survey(path, align)
            frames, tracker = survey["frames"], embed.FaceTracker(survey["fps"])
            for crop in tqdm(embed.crops(path, frames, size), desc=f"2/2 {Path(path).name}", total=len(frames), unit="frame"):
                out.write(crop.tobytes())
                found = tracker.step(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[0] if align == "face" else None
                points.append(np.full((68, 2), np.nan) if found is None else found)
            counts.append(len(frames))
    return counts, np.array(points, np.float32)


def split_frames(counts):
    """Frames of videos of this many -> three arrays of their numbers: to train on, every 10th, the last 10th of each video.
    Beside a frame of the second set lie frames of the first; the third shows motion that was never seen."""
    sets = [], [], []
    for start, n in zip(np.cumsum([0, *counts]), counts):
        k = np.arange(n)
        of = np.where(k >= n - n // HOLD_OUT, 2, np.where(k % HOLD_OUT == HOLD_OUT // 2, 1, 0))
        for j in range(3):
            sets[j].append(start + k[of == j])
    return [np.concatenate(s) for s in sets]


def measures(pictures):
    """dlib's measures of what the faces do in pictures (n, H, W, 3), each found anew -> (n, 3), NaN where there is none."""
    found = [embed.landmarks(picture) for picture in pictures]
    return np.array([[np.nan] * 3 if p is None else [evaluate.face_measures(p)[m] for m in MEASURES] for p in found])


def correlation(a, b):
    """Pearson's r of each column of measures (n, 3), where both pictures show a face; NaN where one stands still."""
    seen = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    with np.errstate(invalid="ignore"):
        return [float(np.corrcoef(x, y)[0, 1]) if seen.sum() > 2 else math.nan for x, y in zip(a[seen].T, b[seen].T)]


def sharpness(a, b, weights):
    """Squared Laplacian of pictures b over that of a (n, H, W, 3) uint8, where weights (n, H, W) are: 1 is as sharp."""
    energy = [(weights * [cv2.Laplacian(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.CV_32F) ** 2 for p in pictures]).sum()
              for pictures in (a, b)]
    return float(energy[1] / energy[0])


def main(args):
    started, output = time.time(), Path(args.output)
    state_path, sheet_path = output.with_suffix(".state.pt"), output.with_suffix(".png")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"{output} cannot be written; name a file in a folder that exists with -o.")
    if args.size < 32 or args.size not in CHANNELS:
        raise InputError(f"--size {args.size} is not one of 32, 64, 128, 256.")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    rendered = Path(args.source[0]).is_dir()
    usual = (STEPS_HEADS, BATCH_HEADS) if rendered else (STEPS_VIDEO, BATCH_VIDEO)
    args.steps, args.batch = args.steps or usual[0], args.batch or usual[1]
    if args.precision == "auto":
        args.precision = "bf16" if computes_bf16(device) else "fp32"
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.manual_seed(args.seed)

    # Data: pictures to train on, pictures to judge by
    folder = tempfile.TemporaryDirectory(prefix="crops-")
    if rendered:
        files = sorted(Path(args.source[0]).glob("heads-??????.npz"))
        if len(files) < 2 or len(args.source) > 1:
            raise InputError(f"{args.source[0]} holds {len(files)} files of rendered heads, at least 2 are needed, in one folder: "
                             f"make them with: python -m pretrain.heads --render {args.source[0]}")
        Z, held_files = heads.Z, files[-max(1, len(files) // 50):]              # of people that training never sees
        train_set, held_set = Heads(files[:-len(held_files)], args.size), Heads(held_files, args.size)
        held = [held_set[k] for k in np.linspace(0, len(held_set) - 1, min(JUDGED, len(held_set))).astype(int)]
    else:
        Z, file = 0, Path(folder.name) / "crops"
        counts, points = video_crops(args.source, args.size, args.align, file)
        if sum(counts) < 2 * HOLD_OUT:
            raise InputError(f"{args.source[0]}: {sum(counts)} frames with a face are too few to fit a model; "
                             f"use a video with at least {2 * HOLD_OUT}.")
        shape, (trained, *kept) = (sum(counts), args.size, args.size, 3), split_frames(counts)
        train_set = VideoFrames(file, shape, points, trained)
        kept = [k[np.linspace(0, len(k) - 1, min(JUDGED, len(k))).astype(int)] for k in kept]   # every 10th, last 10th
        held_set = VideoFrames(file, shape, points, np.concatenate(kept))
        held = [held_set[k] for k in range(len(held_set))]
        held_measures = measures([h[0].numpy() for h in held]) if args.align == "face" else None
    held_weights = torch.cat([h[2] for h in held]).numpy()                      # (n, size, size)
    held_parts = held_weights > (held_weights.max((1, 2), keepdims=True) + 1) / 2
    held_x, held_z = to_network(torch.stack([h[0] for h in held]), device), torch.stack([h[1] for h in held]).to(device)

    # Networks, optimiser, or all of it from the state of an interrupted run
    net, ema = Networks(args.size, Z).to(device), Networks(args.size, Z).to(device).eval().requires_grad_(False)
    ema.load_state_dict(net.state_dict())
    optimiser = torch.optim.Adam([{"params": net.decoder.parameters(), "lr": LR_GENERATOR},
                                  {"params": net.encoder.parameters(), "lr": LR_ENCODER}], betas=BETAS)
    critic_from = math.ceil((CRITIC_FROM_HEADS if Z else CRITIC_FROM) * args.steps)
    corner = VIEW if args.align == "face" else None
    critic = Critic(view(held_x, corner).shape[-1]).to(device)
    slower = R1_EVERY / (R1_EVERY + 1)                                          # lazy R1 slows Adam (StyleGAN2, sec. 3.1)
    critic_optimiser = torch.optim.Adam(critic.parameters(), LR_CRITIC * slower, [b ** slower for b in BETAS_CRITIC])
    step = 0
    if args.resume:
        try:
            state = torch.load(state_path, map_location=device, weights_only=True)
            options = state["options"]
        except Exception as error:                                              # torch raises a dozen types here
            raise InputError(f"{state_path} is no state of this training ({type(error).__name__}); start again without "
                             f"--resume.") from None
        for name in KEPT:
            if options[name] != getattr(args, name):
                was, given = (" ".join(map(str, v)) if isinstance(v, list) else v for v in (options[name], getattr(args, name)))
                raise InputError(f"{state_path} is of a training with {name} {was}, not {given}; give the same, or start again "
                                 f"without --resume.")
        if state["step"] >= args.steps:
            raise InputError(f"{output} is finished, all {args.steps} steps; start again without --resume for another one.")
        if "critic" not in state:
            raise InputError(f"{state_path} is of an earlier version, which had no critic; start again without --resume.")
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        critic.load_state_dict(state["critic"])
        critic_optimiser.load_state_dict(state["critic_optimiser"])
        step = state["step"]

    loader = DataLoader(train_set, args.batch, num_workers=args.workers, prefetch_factor=4 if args.workers else None,
                        worker_init_fn=leave_interrupts,
                        sampler=Order(len(train_set), args.seed, step * args.batch, args.steps * args.batch))
    quality, status = {}, "-"

    def report():
        """Contact sheet and held-out quality of the EMA networks, then the model and the state, each complete or not at all."""
        rows = [to_pictures(held_x)]
        made = [reconstruct(ema, x, z) for x, z in zip(held_x.split(16), held_z.split(16))]
        rows += [np.concatenate(column) for column in zip(*made) if column[0] is not None]
        shown = np.linspace(0, len(held) - 1, SHEET).astype(int)
        sheet = np.concatenate([np.concatenate(row[shown], 1) for row in rows])            # (rows * size, SHEET * size, 3)
        encoded = cv2.imencode(".png", sheet[..., ::-1])[1]
        save(sheet_path, lambda part: part.write_bytes(encoded.tobytes()))
        if Z:
            values = [psnr(rows[0], row) for row in rows[1:]]
            quality.update(held_out_psnr=values[-1], held_out_psnr_of_z=values[0],
                           held_out_sharpness=sharpness(rows[0], rows[-1], held_parts))
        else:
            quality["held_out"], made_measures = {}, measures(rows[1]) if args.align == "face" else None
            for name, part in (("every_10th", slice(0, len(kept[0]))), ("last_10th", slice(len(kept[0]), None))):
                a, b = rows[0][part], rows[1][part]
                quality["held_out"][name] = {"frames": len(a), "psnr": psnr(a, b), "sharpness": sharpness(a, b, held_parts[part])}
                if args.align == "face":
                    agree = correlation(held_measures[part], made_measures[part])
                    quality["held_out"][name].update(zip(MEASURES, agree))
            values = [part["psnr"] for part in quality["held_out"].values()]
            quality["held_out_psnr"] = values[0]
        save(output, lambda part: torch.save(checkpoint(ema, output.stem, args, step, quality), part))
        state = {"net": net.state_dict(), "ema": ema.state_dict(), "step": step, "optimiser": optimiser.state_dict(),
                 "options": {name: getattr(args, name) for name in KEPT},
                 "critic": critic.state_dict(), "critic_optimiser": critic_optimiser.state_dict()}
        save(state_path, lambda part: torch.save(state, part))
        return " / ".join(f"{value:.2f}" for value in values)

    # Ctrl-C ends the step at hand and saves, so that the state is always that of a whole step
    stop = []
    handler = signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    bar = tqdm(loader, initial=step, total=args.steps, unit="step", mininterval=1.0, desc=output.name)
    try:
        for pictures, z, weights in bar:
            share = step / args.steps
            r = resolution_at(share, args.size)
            with_encoder = not Z or share >= ENCODER_FROM
            for group, lr in zip(optimiser.param_groups, (LR_GENERATOR, LR_ENCODER)):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (step + 1) / 100)

            # Targets: the picture at the resolution that is being trained
            x, z = to_network(pictures, device), z.to(device)                   # (B, 3, size, size), (B, Z)
            focus = weights.to(device)                                          # (B, 1, size, size)
            rng = torch.Generator().manual_seed(args.seed + step)
            if Z and step >= critic_from:
                corner = (torch.rand(2, generator=rng) / 2).tolist()
            if not Z:                                                           # the weights move with the picture
                moved = jitter(torch.cat([x, focus], 1), rng)
                x, focus = moved[:, :3].contiguous(), moved[:, 3:].clamp_min(0)
            target = F.interpolate(x, (r, r), mode="area") if r < args.size else x

            # Codes: of the encoder for the last half of the batch, of z for the rest
            codes, loss, half = [], 0.0, len(x) // 2 if Z and with_encoder else len(x) if Z else 0
            if Z:
                w = net.map(z)                                                  # (B, D)
                with torch.no_grad():
                    net.latent_avg.lerp_(w.mean(0), 0.01 if step else 1.0)
                codes.append(w[:half, None].expand(-1, net.decoder.L, -1))      # (half, L, D)
            if with_encoder:
                with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                    offsets = net.encoder(x[half:])
                codes.append(offsets.float() + net.latent_avg)                  # (B - half, L, D)
                if Z:
                    away = (codes[1] - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)
                    loss = loss + LAMBDA_CODE * away.abs().mean()
            codes = torch.cat(codes)                                            # (B, L, D)

            # Pictures of the codes against the targets
            y = net.decoder(codes, resolution=r, dtype=dtype)                   # (B, 3, r, r)
            loss = loss + picture_loss(y, target, F.interpolate(focus, (r, r), mode="area"))
            with_critic = step >= critic_from
            optimiser.zero_grad(set_to_none=True)
            if with_critic:                                                     # non-saturating (StyleGAN2, appendix B)
                critic.requires_grad_(False)
                with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                    unlike = F.softplus(-critic(view(y, corner))).mean()
                towards, sharper = (torch.autograd.grad(part, y)[0] for part in (loss, unlike))             # (B, 3, r, r)
                pull = PULL * min(1.0, (step - critic_from) / (CRITIC_RAMP * args.steps))
                y.backward(towards + pull * towards.norm() / (sharper.norm() + 1e-12) * sharper)
            else:
                loss.backward()
            optimiser.step()

            # Critic: frames against their reconstructions
            if with_critic:
                real = view(target, corner)
                critic.requires_grad_(True)
                with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                    critic_loss = F.softplus(-critic(real)).mean() + F.softplus(critic(view(y.detach(), corner))).mean()
                if (step - critic_from) % R1_EVERY == 0:
                    gamma = R1_WEIGHT * real.shape[-1] ** 2 / args.batch
                    critic_loss = critic_loss + R1_EVERY * gamma * r1_penalty(critic, real)
                critic_optimiser.zero_grad(set_to_none=True)
                critic_loss.backward()
                critic_optimiser.step()
            step += 1

            # Average of the weights; the window grows with the step so that early weights are forgotten
            with torch.no_grad():
                decay = min(EMA, (1 + step) / (10 + step))
                for a, b in zip(ema.state_dict().values(), net.state_dict().values()):
                    a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)
            if step % args.every == 0 or step == args.steps or stop:
                status = report()
            if step % 10 == 0:
                bar.set_postfix_str(f"{r} px, loss {loss.item():.4f}, held-out PSNR {status}")
            if stop:
                raise KeyboardInterrupt(f"stopped at step {step} of {args.steps} and saved; go on with --resume.")
    finally:
        signal.signal(signal.SIGINT, handler)
        bar.close()
        folder.cleanup()
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB), {sheet_path} and {state_path}; held-out PSNR "
          f"{quality['held_out_psnr']:.2f} dB through the encoder; {(time.time() - started) / 60:.1f} minutes.{' Random actors are at rest.' if Z else ''}", file=sys.stderr)
    for name, values in quality.get("held_out", {}).items():
        print(f"Held out, {name.replace('_', ' ')} ({values['frames']} frames): {values['psnr']:.2f} dB, sharpness of eyes, nose "
              f"and mouth {values['sharpness']:.2f} of the frames'"
              + "".join(f", {m.replace('_', ' ')} {values[m]:.3f}" for m in MEASURES if m in values) + ".", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("source", nargs="+", help="a folder of pretrain/heads.py --render, or one or more videos of the same person")
    parser.add_argument("-o", "--output", default="image_model.pt", help="model to write; .png and .state.pt go beside it")
    parser.add_argument("--align", choices=("face", "none"), default="face", help="of a video: as embed.py's")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, help=f"optimiser steps; without this option {STEPS_HEADS} on heads, "
                        f"{STEPS_VIDEO} on a video")
    parser.add_argument("--batch", type=int, help=f"pictures per step; without this option {BATCH_HEADS} or {BATCH_VIDEO}")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the feature maps; auto: bf16 where the processor or GPU computes in it, else fp32")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw or load pictures")
    parser.add_argument("--every", type=int, default=500, help="steps between contact sheets and saved states")
    parser.add_argument("--resume", action="store_true", help="go on from the state file beside --output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    arguments = parser.parse_args()
    arguments.argv = sys.argv[1:]
    try:
        main(arguments)
    except InputError as error:
        parser.exit(2, f"image_model.py: {error}\n")
    except KeyboardInterrupt as error:
        parser.exit(130, f"image_model.py: {str(error) or 'stopped before the training began; nothing was written.'}\n")
