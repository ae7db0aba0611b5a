"""Train the motion generator of StyleVideoGAN on the W+ codes of one actor: a recurrent WGAN-GP + angle penalty.

    python train.py latents.npy                             # 350 epochs, but at least 2,400 steps; writes motion.pt
    python train.py latents.npy --steps 2000 -o motion.pt   # length in generator steps instead
    python train.py latents.npy --resume --steps 3000       # go on from motion.state.pt, exactly as if never stopped
    python train.py monday.npy tuesday.npy                  # several videos of one actor, embedded with one image model
    python train.py latents.npy --recipe paper              # the paper's own settings where it states them
    torchrun --nproc-per-node=4 train.py latents.npy        # the batch shared by 4 processes (GPUs, or CPU cores)

Fox et al., StyleVideoGAN, BMVC 2021 (arXiv:2107.07224), sec. 3 and supplement 2.1. No picture is rendered here. Writes

    motion.pt        EMA generator, its sizes, image model, fps, PCA(32) of the codes, options: all that sample.py needs
    motion.best.pt   the same at the report with the smallest sum of short and long distance
    motion.state.pt  everything else for an exact --resume: both networks, optimisers, running norm, random stream, step
    motion.csv       one row per report: losses, phi, distances of sampled to real motion, speed, memory
    motion.png       the same as curves, with real and sampled motion beside them

Shapes: N training frames, B batch, T frames of a window, L style rows, D style width. Codes (N, L, D), windows
(B, T, L, D). Deterministic: on a CPU, one seed, one number of threads and one number of processes give one result bit
for bit, interrupted or not. On CUDA the random numbers are the same, but the order of sums is not.
"""

import argparse
import contextlib
import copy
import csv
import functools
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from models import SLOPE, InputError, MotionCritic, MotionGenerator, RunningNorm, gradient_angle_penalty, gradient_penalty

NOISE = 32          # width of i, of each s_k and l_k (sec. 3)
COMPONENTS = 32     # directions of the PCA (sec. 3, offset trick)
EPOCHS = 350        # passes over the windows (sec. 3) ...
STEPS = 2400        # ... but no fewer generator steps; ours: 350 epochs of a minute's video are only 1,400
SHORT = 2048        # sampled windows per report, as many as the paper's FVD takes (suppl. 2.2)
LONG = 128, 400     # long samples per report and their frames (suppl. 2.2: 128 samples, 400 frames for ACD)
PER_LONG = 16       # windows cut from each long sample: 128 x 16 = 2048 again
SPACE = 64          # ours: principal dimensions of a window in which distances are measured; 2048 windows determine a
#                     64 x 64 covariance well, but not the 800 x 800 one of 25 x 32 coordinates
REESTIMATE = 96     # ours: batches from which BatchNorm statistics are re-estimated. With 16 the draw alone moved the short
#                     distance of one model from 7.5 to 9.1 %
AGREE = 10          # ours: steps after which several GPUs ask each other whether to stop, as that waits for them
DIVERGED = 10       # ours: times the distance of two windows, the most that a critic of slope 1 can claim; training stops beyond
OFFSET_RISE = 100   # ours: steps in which the offset noise rises to its full size, so that the critics can follow
VERSION = 1         # of motion.pt


# ------------------------------------------------------------------------------------------------------------------
# Codes: reading, windows, PCA
# ------------------------------------------------------------------------------------------------------------------

def load_latents(path):
    """W+ codes of one video, as embed.py writes them: latents.npy with latents.json beside it.

    A .npy without .json counts as one clip at 25 fps of an unknown image model; so does an .npz with the codes under
    `w` (projected_w.npz of stylegan2-ada). Returns codes, float32 (N, L, D), and {"fps", "clips": [(start, end), ...],
    "model": {"name", "sha256"}, "source"}; clips are half-open frame ranges. Raises InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with: python embed.py VIDEO -o {path}")
    try:
        codes = np.load(path, allow_pickle=False)
        if isinstance(codes, np.lib.npyio.NpzFile):
            with codes as archive:
                if "w" not in archive:
                    raise InputError(f"{path} has no array named w (it has: {', '.join(archive.files) or 'nothing'}); "
                                     f"store the codes (T, L, D) under w.")
                codes = archive["w"]
    except InputError:
        raise
    except Exception as error:                                      # numpy and zipfile raise half a dozen types here
        raise InputError(f"{path} is no readable .npy or .npz file ({type(error).__name__}), perhaps cut short; "
                         f"make it again with embed.py.") from None
    if codes.ndim != 3 or 0 in codes.shape or codes.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {codes.dtype} of shape {codes.shape}, expected W+ codes (T, L, D): frames, "
                         f"style rows, style width.")
    codes = np.ascontiguousarray(codes, dtype=np.float32)
    bad = ~np.isfinite(codes).all((1, 2))
    if bad.any():
        raise InputError(f"{path} has NaN or infinite values in {bad.sum()} of {len(codes)} frames, the first in frame "
                         f"{bad.argmax()}; embed the video again.")

    meta = {"fps": 25.0, "clips": [(0, len(codes))], "model": {"name": None, "sha256": None}, "source": None}
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        try:
            read = json.loads(sidecar.read_text(encoding="utf-8"))
            numbers = [frame["clip"] for frame in read["frames"]]
            meta["model"] = {"name": read["model"]["name"], "sha256": read["model"]["sha256"]}
            meta["fps"], meta["source"] = float(read["fps"]), read.get("source")
            if not 0 < meta["fps"] < math.inf:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{sidecar} is not what embed.py writes (model, fps, frames with a clip number each); "
                             f"make both again, or remove it to treat {path.name} as one clip at 25 fps.") from None
        if len(numbers) != len(codes):
            raise InputError(f"{sidecar} lists {len(numbers)} frames, {path} has {len(codes)}: they do not belong "
                             f"together; make both again with embed.py.")
        cuts = [k for k in range(1, len(numbers)) if numbers[k] != numbers[k - 1]]
        meta["clips"] = list(zip([0] + cuts, cuts + [len(numbers)]))
    return codes, meta


def load_training_set(paths, window):
    """Codes of all files in one array, (N, L, D), with the clips of all; checks that they fit together."""
    parts, clips, first, n = [], [], None, 0
    for path in paths:
        codes, meta = load_latents(path)
        if first is None:
            first = meta
        elif codes.shape[1:] != parts[0].shape[1:]:
            raise InputError(f"{path} has codes of {codes.shape[1]} x {codes.shape[2]}, {paths[0]} of "
                             f"{parts[0].shape[1]} x {parts[0].shape[2]}; embed all videos with one image model.")
        elif meta["model"]["sha256"] != first["model"]["sha256"]:
            raise InputError(f"{path} was embedded with the image model {meta['model']['name']}, {paths[0]} with "
                             f"{first['model']['name']}; embed all videos with the same file.")
        elif abs(meta["fps"] / first["fps"] - 1) > 0.01 and processes()[1] == 0:
            print(f"{path} has {meta['fps']:g} frames per second, {paths[0]} {first['fps']:g}: their motion will "
                  f"differ in speed.", file=sys.stderr)
        clips += [(start + n, end + n) for start, end in meta["clips"]]
        parts, n = parts + [codes], n + len(codes)
    codes, meta, names = np.concatenate(parts), {**first, "clips": clips}, ", ".join(map(str, paths))
    if n <= COMPONENTS:
        raise InputError(f"{names}: {n} frames; the PCA of {COMPONENTS} directions needs at least "
                         f"{COMPONENTS + 1}, and good motion needs hundreds: embed a longer video.")
    if codes[0].size < COMPONENTS:
        raise InputError(f"{paths[0]} has {codes[0].size} numbers per frame, expected at least {COMPONENTS}: are these "
                         f"W+ codes (T, L, D)?")
    if codes.std(0).max() < 1e-6:
        raise InputError(f"all {n} frames of {names} have the same code: there is no motion to learn.")
    longest = max(end - start for start, end in clips)
    if longest <= window:
        raise InputError(f"{names}: the longest clip has {longest} frames, too few for two windows of {window}; give a shorter "
                         f"--window, {longest // 2} perhaps, or embed a longer video.")
    short = sum(end - start for start, end in clips if end - start < window)
    if short and processes()[1] == 0:
        print(f"{short} of {n} frames lie in clips shorter than {window} frames and are left out of the windows.",
              file=sys.stderr)
    return codes, meta


def window_starts(clips, window):
    """First frames of all windows that lie inside one clip: (n,) int64."""
    return torch.cat([torch.arange(start, max(start, end - window + 1)) for start, end in clips])


def fit_pca(codes):
    """PCA(32) of the training codes (N, L, D), sec. 3: {"mean" (L, D), "basis" (32, L, D), "std" (32,)}, float32.

    The randomised solver: on 18,000 x 9,216 codes the exact ones need the 9,216 x 9,216 covariance.
    """
    N, L, D = codes.shape
    pca = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(codes.reshape(N, L * D))
    return {"mean": torch.from_numpy(pca.mean_).float().reshape(L, D),
            "basis": torch.from_numpy(pca.components_).float().reshape(COMPONENTS, L, D),
            "std": torch.from_numpy(np.sqrt(pca.explained_variance_)).float()}


def coordinates(codes, pca):
    """Codes (..., L, D) -> their PCA coordinates (..., 32) in the codes' units, not whitened."""
    return ((codes - pca["mean"]).flatten(-2)) @ pca["basis"].flatten(1).T


# ------------------------------------------------------------------------------------------------------------------
# How far sampled motion is from real motion: Fréchet distance of codes (ours; the paper's FVD needs pictures)
# ------------------------------------------------------------------------------------------------------------------

def cut_windows(x, clips, window):
    """All windows inside the clips: (N, 32) -> (n, T, 32)."""
    return x[window_starts(clips, window)[:, None] + torch.arange(window)]


def long_windows(x, window):
    """PER_LONG evenly spaced windows of each long sample, adjacent at 400 and 25: (n, t, 32) -> (PER_LONG n, T, 32)."""
    starts = torch.linspace(0, x.shape[1] - window, PER_LONG).long()
    return x[:, starts[:, None] + torch.arange(window)].flatten(0, 1)


def gaussian_frechet(m1, S1, m2, S2):
    """Fréchet distance of two Gaussians, means (d,), covariances (d, d): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: no complex
    numbers, no matrix square root of a singular product.
    """
    values, vectors = np.linalg.eigh(S1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ S2 @ root).clip(0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(S1) + np.trace(S2) - 2 * cross)


def frechet(x, y):
    """Fréchet distance of Gaussians fitted to two sets (n, d), (m, d), in float64, covariances divided by n."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    S1, S2 = (np.atleast_2d(np.cov(v, rowvar=False, bias=True)) for v in (x, y))
    return gaussian_frechet(x.mean(0), S1, y.mean(0), S2)


def window_space(real):
    """Principal directions of the real windows (n, T, 32): mean (32 T,) and basis (<= SPACE, 32 T), float64."""
    x = np.asarray(real.flatten(1), np.float64)
    mean = x.mean(0)
    vectors = np.linalg.eigh((x - mean).T @ (x - mean))[1]          # ascending
    return mean, vectors[:, ::-1][:, :min(SPACE, len(x) - 1, x.shape[1])].T


def projected(windows, space):
    """Windows (n, T, 32) in the space of window_space: (n, SPACE), float64."""
    mean, basis = space
    return (np.asarray(windows.flatten(1), np.float64) - mean) @ basis.T


def code_frechet(real, fake, space):
    """Fréchet distance of two sets of windows, (n, T, 32) and (m, T, 32), in the space of window_space."""
    return frechet(projected(real, space), projected(fake, space))


def jitter(x):
    """Root mean square of the second difference in time of (n, T, 32): fast trembling, which SPACE directions miss."""
    return x.diff(dim=1).diff(dim=1).square().mean().sqrt().item()


def code_references(x, clips, window):
    """What distances are compared with, from the real coordinates (N, 32).

    frozen: real windows against every real frame repeated T times, what a model without motion would score; percentages are
    of it. still: real frames against their mean, the same for single frames. floor: SHORT windows drawn from a Gaussian
    with the real windows' moments: what the draw alone makes of a perfect model. halves: the first half of the real windows
    against the second: how well a video of this length says what is to be learned.
    """
    windows = cut_windows(x, clips, window)                                     # (n, T, 32)
    frames = torch.cat([x[start:end] for start, end in clips if end - start >= window])
    space = window_space(windows)
    real = projected(windows, space)                                            # (n, SPACE), of mean zero
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(real, rowvar=False, bias=True)))
    drawn = np.random.RandomState(0).standard_normal((SHORT, len(values))) * np.sqrt(values.clip(0)) @ vectors.T
    half = len(windows) // 2
    return {"windows": windows, "frames": frames, "space": space, "window": window,
            "floor": frechet(real, drawn), "halves": code_frechet(windows[:half], windows[half:], space),
            "frozen": code_frechet(windows, frames[:, None].expand(-1, window, -1), space),
            "still": np.asarray(frames, np.float64).var(0).sum().item(),
            "jitter": jitter(windows) if window > 2 else math.nan}


def code_distances(references, short, long):
    """Distances of sampled to real motion: short (n, T, 32) windows, long (m, t, 32) samples, both PCA coordinates."""
    real, space, cut = references["windows"], references["space"], long_windows(long, references["window"])
    found = {"short": code_frechet(real, short, space), "long": code_frechet(real, cut, space)}
    for name, x in (("short", short), ("long", cut)):
        found[f"{name}_percent"] = 100 * found[name] / references["frozen"]
        found[f"frame_{name}"] = frechet(references["frames"], x.flatten(0, 1))
        found[f"frame_{name}_percent"] = 100 * found[f"frame_{name}"] / references["still"]
        found[f"jitter_{name}"] = jitter(x) / references["jitter"] if x.shape[1] > 2 else math.nan
    return found


@torch.no_grad()
def sample_coordinates(G, n, t, pca, rng):
    """PCA coordinates (n, t, 32) of n sampled trajectories of t frames, on the CPU; rng: CPU torch.Generator."""
    device, x = G.rows.device, []
    pca = {name: value.to(device) for name, value in pca.items()}
    for count in [LONG[0]] * (n // LONG[0]) + [n % LONG[0]] * (n % LONG[0] > 0):
        i = torch.randn(count, NOISE, generator=rng).to(device)
        s = torch.randn(count, t - 1, NOISE, generator=rng).to(device)
        l = G.motion(i, s).flatten(0, 1)                                        # (count t, 32)
        x.append(torch.cat([coordinates(G.translate(part), pca) for part in l.split(4096)]).reshape(count, t, -1).cpu())
    return torch.cat(x)


# ------------------------------------------------------------------------------------------------------------------
# Losses
# ------------------------------------------------------------------------------------------------------------------

def critic_loss(critic, p_real, p_fake, u):
    """WGAN loss and gradient penalty from first-layer outputs (B, T, width); two scalars. u: (B, 1, 1)."""
    B = len(p_real)
    scores = critic.score(torch.cat([p_real, p_fake]))                          # (2 B,)
    return scores[B:].mean() - scores[:B].mean(), gradient_penalty(critic, p_real, p_fake, u)


# ------------------------------------------------------------------------------------------------------------------
# EMA generator
# ------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def update_ema(ema, G, momentum):
    """Weights only: the BatchNorm statistics of averaged weights are not the average of statistics, see below."""
    torch._foreach_lerp_(list(ema.parameters()), list(G.parameters()), 1 - momentum)


@torch.no_grad()
def aged(G, h, frames, rng):
    """Memory (4, n, 32) -> the same after 1 to `frames` more frames, drawn from rng, a CPU torch.Generator."""
    k = int(torch.randint(1, frames + 1, (), generator=rng))
    return G.roll(torch.randn(h.shape[1], k, NOISE, generator=rng).to(h.device), h.contiguous())[1]


@torch.no_grad()
def reestimate_batchnorm(G, window, batch, rng, late=0, frames=0):
    """Measure the BatchNorm statistics of G anew on REESTIMATE batches of its own windows, and set G to eval mode.

    late: how many windows of a batch begin 1 to `frames` frames into their trajectory, about as in training. rng: CPU
    torch.Generator of its own, so that looking never changes the training. Needed for averaged weights: with the
    statistics of the live generator the prototype's distance to real windows was 1393, with re-estimated ones 752.
    """
    norms = [m for m in G.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None                                                       # plain average over the batches
    G.train()
    for _ in range(REESTIMATE):
        i = torch.randn(batch, NOISE, generator=rng).to(G.rows.device)
        h = G.hidden(i)
        if late:
            h = torch.cat([h[:, :-late], aged(G, h[:, -late:], frames, rng)], 1)
        tail = G.roll(torch.randn(batch, window - 1, NOISE, generator=rng).to(G.rows.device), h)[0]
        G.translate(torch.cat([h[3][:, None], tail], 1))
    for m, momentum in zip(norms, kept):
        m.momentum = momentum
    G.eval()


# ------------------------------------------------------------------------------------------------------------------
# Several processes (torchrun): each has its share of the batch, all have the same networks
# ------------------------------------------------------------------------------------------------------------------

def processes():
    """How many there are, and which one this is."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


class GlobalBatchNorm(torch.nn.BatchNorm1d):
    """BatchNorm over the batches of all processes. The angle penalty goes backward through it twice, which
    torch.nn.SyncBatchNorm cannot; an all_reduce that autograd knows can: its derivative is another all_reduce."""

    def forward(self, x):                                                       # (n, c)
        n = processes()[0]
        mean = all_reduce(x.mean(0)) / n
        var = all_reduce((x - mean).square().mean(0)) / n
        with torch.no_grad():                                                   # as nn.BatchNorm1d does, unbiased
            total = n * len(x)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (total / (total - 1)), self.momentum)
            self.num_batches_tracked += 1
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


@contextlib.contextmanager
def several_processes(args):
    """Under torchrun: join the others, each with a GPU of its own or on the CPU."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    cuda = args.device == "auto" and torch.cuda.is_available() or args.device.startswith("cuda")
    if cuda:
        args.device, here = f"cuda:{os.environ.get('LOCAL_RANK', 0)}", int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > torch.cuda.device_count():
            raise InputError(f"{here} processes on this machine, but torch sees {torch.cuda.device_count()} CUDA GPUs; start as "
                             f"many as there are GPUs (--nproc-per-node), or give --device cpu.")
        torch.cuda.set_device(args.device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def share_batch_norm(network):
    """Let every BatchNorm of the network see the batches of all processes; its weights and statistics stay as they are."""
    if processes()[0] > 1:
        for m in network.modules():
            if isinstance(m, torch.nn.BatchNorm1d):
                m.__class__ = GlobalBatchNorm


def average_gradients(network):
    """The mean over processes in place of each process's own gradients."""
    if processes()[0] > 1:
        gradients = [p.grad for p in network.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, mean in zip(gradients, (flat / processes()[0]).split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))


@torch.no_grad()
def gathered(x):
    """The shares of all processes in the order of the whole batch, of which process r has the rows r, r + n, ..."""
    n = processes()[0]
    if n == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(n)]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def agreed(stop, device):
    """Whether any process was asked to stop."""
    flag = torch.tensor(float(stop), device=device)
    dist.all_reduce(flag)
    return flag.item() > 0


# ------------------------------------------------------------------------------------------------------------------
# What is trained
# ------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def start_recurrence(G):
    """Start H and P so that l moves about as a head does, driven by the noise, and from l_0 = i on as later.

    Open in the paper; ours. With nn.GRU's own start the noise dies on its way through four cells: from one i, l has a
    standard deviation of 0.03 after 24 or 100 frames; with this one 0.54 and 0.57. And what the third memory tells the
    fourth has nothing to do with i, the fourth, so that l first rushes to somewhere else: its direction moves by 0.19
    (squared) from frame 0 to 1, by 0.004 from 80 to 81; here by 0.004 and 0.010. A head moves alike at any time. The angle
    phi of the penalty is 65 degrees in the median (48 in the 5th percentile) instead of 2.
    """
    n, one = G.noise, torch.eye(G.noise)
    # P: strong input to the memories (rows of nn.GRU: reset, update, new), update gates at 0.62, 0.62, 0.88, 0.92; each
    # component of the fourth memory follows one of the third
    for k, (gain, gate) in enumerate(((10.0, 0.5), (10.0, 0.5), (20.0, 2.0), (0.0, 2.5))):
        getattr(G.produce, f"weight_ih_l{k}")[2 * n:] *= gain
        getattr(G.produce, f"bias_ih_l{k}")[n:2 * n] += gate
    G.produce.weight_ih_l3[2 * n:] = 6 * one
    # H: i goes through as the pair i, -i, as LeakyReLU(x) - LeakyReLU(-x) = (1 + SLOPE) x, and comes out as third memory
    *inner, last = [m for m in G.hallucinate if isinstance(m, torch.nn.Linear)]
    pair = torch.cat([one, -one], 1) / (1 + SLOPE)                          # (32, 64)
    for k, m in enumerate(inner):
        m.weight[:2 * n], m.bias[:2 * n] = 0.0, 0.0
        first = one if k == 0 else pair
        m.weight[:n, :first.shape[1]], m.weight[n:2 * n, :first.shape[1]] = first, -first
    last.weight[2 * n:], last.bias[2 * n:] = 0.0, 0.0
    last.weight[2 * n:, :2 * n] = pair
    G.hallucinate[-1].weight.fill_(0.6)                                  # standard deviation of the memories at the start


@torch.no_grad()
def start_output(G, mean, std):
    """Start the last BatchNorm at the training codes' mean and standard deviation, both (L, D).

    Open in the paper; ours: the output then has the data's scale from the first step, in raw W+ units.
    """
    G.rows_norm.weight.copy_(std.flatten())
    G.rows_norm.bias.copy_(mean.flatten())


def networks(codes, late, args):
    """All that a step changes, on the device of codes (N, L, D): G, C (one critic for the windows at the start of a
    trajectory, one for `late` later ones), norm of the angle penalty, optimisers, and the pool, (late, 4, 32): the
    memories at which later windows begin."""
    device, (_, L, D) = codes.device, codes.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        G = MotionGenerator(L, D, NOISE, args.width)
        C = torch.nn.ModuleList(MotionCritic(L, D, args.window, args.width) for _ in range(2 if late else 1))
    mean, std = codes.mean(0).cpu(), codes.std(0).cpu()                         # (L, D)
    start_output(G, mean, std)
    if args.start == "ours":
        start_recurrence(G)
    # Open in the paper; ours: one scale for all entries. Unit variance per entry would blow up those that hold little but the
    # encoder's noise, which no G can imitate: the share of a window beyond the PCA's directions rises from 1.2 to 3.1 %
    for critic in C:
        critic.set_scale(mean, std.square().mean().sqrt().expand_as(std))
    G, C = G.to(device).train(), C.to(device).train()
    # In a CUDA graph the learning rate must be a tensor and the optimiser may not look at its step count
    on_cuda = {"capturable": True} if device.type == "cuda" else {}
    adam = functools.partial(torch.optim.Adam, betas=tuple(args.betas), fused=True, **on_cuda)
    rate = (lambda lr: torch.tensor(lr, device=device)) if on_cuda else float
    recurrence = [*G.hallucinate.parameters(), *G.produce.parameters()]                        # H and P
    known = set(map(id, recurrence))
    groups = [{"params": recurrence, "lr": rate(args.lr * args.lr_recurrence), "times": args.lr_recurrence},
              {"params": [p for p in G.parameters() if id(p) not in known], "lr": rate(args.lr), "times": 1.0}]
    return {"G": G, "C": C, "norm": RunningNorm(NOISE).to(device), "optimiser_G": adam(groups),
            "optimiser_C": adam(C.parameters(), rate(args.lr_critic)), "pool": torch.zeros(late, 4, NOISE, device=device)}


def set_rate(optimiser, lr):
    """The learning rate of all its parameters, `times` it where a group has that; in place where it is a tensor that a CUDA
    graph knows."""
    for group in optimiser.param_groups:
        wanted = lr * group.get("times", 1.0)
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(wanted)
        else:
            group["lr"] = wanted


def states(nets):
    """State dictionaries of all but the pool; of the optimisers only what they have learned, not their options."""
    return {name: part.state_dict()["state"] if name.startswith("optimiser") else part.state_dict()
            for name, part in nets.items() if name != "pool"}


def load(nets, saved):
    """What states() gave, into networks and optimisers; pool aside."""
    for name, part in nets.items():
        if name.startswith("optimiser"):
            part.load_state_dict({"state": saved[name], "param_groups": part.state_dict()["param_groups"]})
        elif name != "pool":
            part.load_state_dict(saved[name])


# ------------------------------------------------------------------------------------------------------------------
# One generator step
# ------------------------------------------------------------------------------------------------------------------

def spread(rng, places, n):
    """n of the numbers 0 to places - 1, evenly spaced from a random first one, in random order: (n,) int64.

    Open in the paper; ours: each critic's share of a batch covers the whole video. The yaw of independently drawn windows
    alone makes a critic's mean score vary by more than what is to be learned from it.
    """
    where = (torch.arange(n) + torch.rand((), generator=rng, dtype=torch.float64)) * (places / n)
    return where.long().clamp_max(places - 1)[torch.randperm(n, generator=rng)]


def draw(rng, critic_steps, batch, late, window, places):
    """Random numbers of one step from a CPU torch.Generator: the same on every device. First dimension: critic steps."""
    shares = [n for n in (batch - late, late) if n]                             # one critic each
    return {"place": torch.stack([torch.cat([spread(rng, places, n) for n in shares]) for _ in range(critic_steps)]),
            "u": torch.rand(critic_steps, batch, 1, 1, generator=rng),                          # of the gradient penalty
            "i": torch.randn(critic_steps, batch, NOISE, generator=rng),
            "s": torch.randn(critic_steps, batch, window - 1, NOISE, generator=rng),
            "before": torch.randn(critic_steps, late, window - 1, NOISE, generator=rng)}


def steps_per_epoch(places, args):
    """Generator steps in which the critics see as many real windows as there are places to start one. Open in the paper."""
    return math.ceil(places / (args.batch * args.critic_steps))


def length(args, per_epoch):
    """Generator steps of a training."""
    return args.steps or (args.epochs * per_epoch if args.epochs else max(EPOCHS * per_epoch, STEPS))


def later_windows(args):
    """How many windows of a batch lie further on in their trajectories: half, ours, or none where no second one fits."""
    return args.batch // 2 if args.horizon >= 2 * args.window - 1 else 0


def offset_noise(step, args):
    """tau of differences() for the windows of a batch (critic steps, B), who take the levels of --offset-noise in turn.

    None before --offset-from, as it hides from the critics what G learns first; then it rises within OFFSET_RISE steps.
    """
    rise = min(1.0, max(0.0, (step - args.offset_from) / OFFSET_RISE))
    levels = torch.tensor(args.offset_noise)
    return rise * levels[torch.arange(args.batch) % len(levels)].expand(args.critic_steps, -1)


def differences(real, sigma, tau):
    """Instance noise for real and for sampled windows (b, T, ...), made of differences of real windows; tau (b,).

    Its covariance is sigma^2 times that of real windows and, the same in all frames of a window, tau^2 times that of their
    means. The rows that are subtracted lie a quarter of the batch apart, for the means half a quarter aside, so that shares of
    n processes, r, r + n, ..., find the same partners (where the rows are a multiple of 8 n).
    """
    quarter = max(1, len(real) // 4)
    a, b, c = (real.roll(k * quarter, 0) for k in (1, 2, 3))
    mean = real.mean(1, keepdim=True)                                           # (b, 1, ...)
    e, f, g = (mean.roll(k * quarter + quarter // 2, 0) for k in (1, 2, 3))
    sigma, tau = sigma / math.sqrt(2), tau.view(-1, *[1] * (real.dim() - 1)) / math.sqrt(2)
    return sigma * (a - b) + tau * (e - f), sigma * (b - c) + tau * (f - g)


def generate(nets, i, s, before, renew):
    """Windows of sampled motion: motion codes l (B, T, 32) and W+ codes w (B, T, L, D).

    i (b, 32), s (B, T-1, 32). The first b windows begin a trajectory with i. The others lie further on: from the memories in
    nets["pool"] (B - b, 4, 32), where an earlier call left off, T-1 frames are made of the noise `before` (B - b, T-1, 32),
    and the window follows; its gradients reach back through these frames. renew (B - b,): which of the others begin anew
    at the next call, with the i of one of the first.
    """
    G, pool = nets["G"], nets["pool"]
    # cuDNN's recurrent kernels have no second derivative, which the GAP needs
    with torch.backends.cudnn.flags(enabled=not torch.is_grad_enabled()):
        h = G.hidden(i)                                                                         # (4, b, 32)
        if len(pool):
            # clone: the backward pass needs the memories as they were, and pool is overwritten
            later = G.roll(before, pool.transpose(0, 1).clone(memory_format=torch.contiguous_format))[1]    # (4, B - b, 32)
            with torch.no_grad():
                pool.copy_(torch.where(renew[:, None], h[:, :len(pool)], later).transpose(0, 1))
            h = torch.cat([h, later], 1)
        tail = G.roll(s, h)[0]
    l = torch.cat([h[3][:, None], tail], 1)                                                     # (B, T, 32)
    return l, G.translate(l)


def train_step(nets, noise, codes, starts, args):
    """Critic steps and one generator step. Returns what is logged, (5,).

    noise: of draw(), on the device, with "renew" (critic steps, late) for generate() and "tau" (critic steps, B) for
    differences(). codes (N, L, D); starts (n,): first frames of the real windows. Nothing here waits for the device.
    """
    G, C, norm, T = nets["G"], nets["C"], nets["norm"], args.window
    late, fresh = len(nets["pool"]), noise["i"].shape[1] - len(nets["pool"])
    groups = [slice(0, fresh), slice(fresh, fresh + late)][:len(C)]             # of the batch, one critic each

    # Critic: WGAN-GP. The fakes of the last critic step are also those of the generator step
    for k in range(args.critic_steps):
        last = k == args.critic_steps - 1
        # The angle penalty is for the windows that begin with i: it is their noise alone that needs gradients
        i, s = noise["i"][k, :fresh].requires_grad_(last), noise["s"][k, :fresh].requires_grad_(last)
        with torch.set_grad_enabled(last):
            l, w = generate(nets, i, torch.cat([s, noise["s"][k, fresh:]]), noise["before"][k], noise["renew"][k])
        index = starts[noise["place"][k]][:, None] + torch.arange(T, device=starts.device)      # (B, T)
        losses = []
        for critic, group in zip(C, groups):
            p_real = critic.first_layer(codes[index[group]])                                   # (b, T, width)
            p_fake = critic.first_layer(w[group].detach())
            n_real, n_fake = differences(p_real, args.instance_noise, noise["tau"][k, group])
            losses.append(critic_loss(critic, p_real + n_real, p_fake + n_fake, noise["u"][k, group]))
        loss_C, gp = (sum(loss) / len(losses) for loss in zip(*losses))
        nets["optimiser_C"].zero_grad()
        (loss_C + args.lambda_gp * gp).backward()
        average_gradients(C)
        nets["optimiser_C"].step()

    # Generator: WGAN + gradient angle penalty
    C.requires_grad_(False)
    loss_G = []
    for critic, group in zip(C, groups):
        n_fake = differences(critic.first_layer(codes[index[group]]), args.instance_noise, noise["tau"][k, group])[1]
        loss_G.append(-critic.score(critic.first_layer(w[group]) + n_fake).mean())
    loss_G = sum(loss_G) / len(loss_G)
    norm.update(gathered((l[:fresh, -1] - l[:fresh, 0]).detach()))
    gap, phi = gradient_angle_penalty(l[:fresh], i, s, norm)
    nets["optimiser_G"].zero_grad()
    (loss_G + args.lambda_gap * gap).backward()
    average_gradients(G)
    nets["optimiser_G"].step()
    C.requires_grad_(True)
    return torch.stack([-loss_C, gp, loss_G, gap, phi.mean()]).detach()


def put_back(nets, kept, pool):
    """States of states() and a pool into the very tensors that a CUDA graph knows; an optimiser's new ones become zero."""
    for name, part in nets.items():
        if name.startswith("optimiser"):
            parameters = [p for group in part.param_groups for p in group["params"]]
            for index, p in enumerate(parameters):
                for key, value in part.state[p].items():
                    value.copy_(kept[name][index][key] if index in kept[name] else torch.zeros_like(value))
        elif name != "pool":
            part.load_state_dict(kept[name])
    nets["pool"].copy_(pool)


def graph_of(step, noise, nets):
    """step(noise=...) as one CUDA graph: its thousand small kernels start without the host. noise: an example.

    torch.compile cannot do the second backward pass of the angle penalty; a graph records whatever was done.
    """
    kept, pool = copy.deepcopy(states(nets)), nets["pool"].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                                      # what is allocated lazily must be there
            step(noise=noise)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logged = step(noise=noise)
    put_back(nets, kept, pool)                                                  # these were no steps of the training

    def replay(noise):
        for name, value in noise.items():
            recorded[name].copy_(value, non_blocking=True)
        graph.replay()
        return logged

    recorded = noise
    return replay


# ------------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------------

def beside(output, ending):
    """motion.pt -> motion.state.pt, motion.csv, motion.png."""
    return output.with_name(output.stem + ending)


def write_atomically(path, write):
    """Call write(temporary path), then put the file in place: a reader finds the old or the new one, always whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:                                    # torch.save turns a full disk into the latter
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another -o.") from None
    finally:
        part.unlink(missing_ok=True)


def write_csv(path, rows):
    def write(part):
        with open(part, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[-1])
            table.writeheader()
            table.writerows(rows)
    write_atomically(path, write)


def draw_curves(path, rows, real, fake, fps):
    """Curves of all reports, and the first three PCA coordinates of real (t, 32) and sampled (t, 32) motion."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    grid, step = figure.subplot_mosaic([["loss", "phi", "distance"], ["real", "real", "fake"]],
                                       width_ratios=[1, 1, 2]), [row["step"] for row in rows]
    for name, label in (("wasserstein", "C(real) - C(fake)"), ("gp", "gradient penalty"), ("generator", "-C(fake)")):
        grid["loss"].plot(step, [row[name] for row in rows], label=label)
    grid["loss"].set(title="losses", xlabel="generator steps")
    grid["loss"].legend(fontsize=8)
    grid["phi"].plot(step, [math.degrees(row["phi"]) for row in rows])
    grid["phi"].axhline(45, color="gray", linestyle=":")
    grid["phi"].set(title="phi in degrees (penalty below 45)", xlabel="generator steps", ylim=(0, 90))
    for name, color in (("short", "tab:blue"), ("long", "tab:orange")):
        grid["distance"].plot(step, [row[f"{name}_percent"] for row in rows], color=color, label=name)
        frames = [row.get(f"frame_{name}_percent", math.nan) for row in rows]   # not in states before these columns
        grid["distance"].plot(step, frames, ":", color=color, label=f"{name}, frames")
    floor = 100 * rows[-1]["floor"] / rows[-1]["frozen"]
    grid["distance"].axhline(max(floor, 1e-2), color="gray", linestyle="--", label="floor")
    grid["distance"].set(title="Fréchet distance, % (windows: of frozen frames)", xlabel="generator steps", yscale="log")
    grid["distance"].legend(fontsize=8)
    both = torch.cat([real[:, :3], fake[:, :3]])
    for name, x in (("real", real), ("fake", fake)):
        grid[name].plot(np.arange(len(x)) / fps, x[:, :3], linewidth=1)
        grid[name].set(title={"real": "real motion", "fake": "sampled motion"}[name] + ", PCA coordinates 1 to 3",
                       xlabel="seconds", ylim=(1.1 * both.min().clamp(max=0), 1.1 * both.max().clamp(min=0)))
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=90))


def peak_memory(device):
    """Peak memory in MB: of the GPU on CUDA, else of the process; nan where the system does not tell (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource                                                         # Unix only
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def choose_device(name):
    """`auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except Exception as error:                                                  # torch raises several types here
        raise InputError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); try --device cpu.") from None
    if torch.device(name).type == "cuda":
        torch.cuda.set_device(name if ":" in name else 0)                       # streams and graphs belong to the current device
    return torch.device(name)


# --recipe paper: what the paper states (suppl. 2.1; sec. 3), and plain Adam where it states nothing
PAPER = {"epochs": EPOCHS, "lr": 0.005, "lr_recurrence": 1.0, "lr_critic": 0.005, "lr_half_life": math.inf,
         "betas": [0.9, 0.999], "horizon": 0, "lambda_gap": 100.0, "instance_noise": 0.0, "offset_noise": [0.0],
         "matmul": "highest"}
# Options that --resume takes from the state, because the training depends on them; of these, the learning rates may change
FIXED = ("recipe", "window", "horizon", "batch", "betas", "critic_steps", "instance_noise", "offset_noise", "offset_from",
         "lambda_gp", "lambda_gap", "ema", "start", "width", "seed", "matmul")
KEPT = "lr", "lr_recurrence", "lr_critic", "lr_half_life"
LENGTH = "epochs", "steps"      # taken from the state if neither is named


def check_options(args):
    """Raise InputError for what no parser of a single option can see."""
    world = processes()[0]
    if args.window < 2 or args.batch < 2:
        raise InputError("--window and --batch must be at least 2: one frame has no motion, one sample no statistics.")
    if args.horizon and args.horizon < 2 * args.window - 1:
        raise InputError(f"--horizon {args.horizon} has no room for a second window of {args.window}; give 0 or at least "
                         f"{2 * args.window - 1}.")
    late = later_windows(args)
    # BatchNorm needs two windows that begin with i; the noise of differences(), partners an eighth of a group apart
    least = (4 if late else 2) * world
    noisy = args.instance_noise or any(args.offset_noise)
    unit = (2 if late else 1) * (8 * world if noisy else world) if world > 1 else 1
    if args.batch < least or args.batch % unit:
        least = -(-least // unit) * unit
        raise InputError(f"--batch {args.batch} cannot be shared out: give at least {least}" + (
            f" and a multiple of {unit} for {world} processes." if world > 1 else ", for BatchNorm's sake."))


def load_state(path, args, digest, named):
    """Training state for --resume; puts its options into args, but for the learning rates named in the command line.

    The length too is the state's if none is named. Raises InputError if the data differ, or another option that was named.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is nothing to resume; leave out --resume to start anew.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        options = state["options"]
        missing = [name for name in FIXED + KEPT + LENGTH if name not in options]
    except Exception as error:                                                  # torch raises a dozen types here
        raise InputError(f"{path} is not a training state of train.py ({type(error).__name__}); leave out --resume to "
                         f"start anew.") from None
    if missing:
        raise InputError(f"{path} is of an older train.py, which knew no --{missing[0].replace('_', '-')}; leave out --resume "
                         f"to start anew.")
    if state["digest"] != digest:
        raise InputError(f"{path} was trained on other codes than {', '.join(map(str, args.latents))}; name those, or "
                         f"leave out --resume to start anew.")
    for name in FIXED + KEPT:
        given, stored = getattr(args, name), options[name]
        given = list(given) if isinstance(given, (list, tuple)) else given
        if given != stored and name in named:
            if name in KEPT:
                continue
            raise InputError(f"{path} was trained with --{name.replace('_', '-')} {stored}, not {given}; leave the "
                             f"option out to resume, or leave out --resume to start anew.")
        setattr(args, name, stored)
    if not set(LENGTH) & set(named):
        args.epochs, args.steps = options["epochs"], options["steps"]
    return state


# ------------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------------

def main(args, named=()):
    # Check what can be checked before the long work
    output, state_path = Path(args.output), beside(Path(args.output), ".state.pt")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"{output} cannot be written; choose a file in an existing, writable folder with -o.")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    world, rank = processes()
    log = sys.stderr if rank == 0 else open(os.devnull, "w")                    # one process speaks and writes for all

    # Data: all codes stay on the device as one tensor
    codes, meta = load_training_set(args.latents, args.window)
    digest = hashlib.sha256(codes.tobytes() + repr(meta["clips"]).encode()).hexdigest()
    state = load_state(state_path, args, digest, named) if args.resume else None
    check_options(args)
    N, L, D = codes.shape
    B, T = args.batch, args.window
    pca = fit_pca(codes)
    codes = torch.from_numpy(codes).to(device)                                  # (N, L, D)
    starts = window_starts(meta["clips"], T).to(device)                         # (n,)
    late = later_windows(args)
    turns = max(1, (args.horizon - 1) // (T - 1))                               # so many in each, one after the other
    per_epoch = steps_per_epoch(len(starts), args)
    steps = length(args, per_epoch)
    real_x = coordinates(codes, {name: value.to(device) for name, value in pca.items()}).cpu()  # (N, 32)
    references = code_references(real_x, meta["clips"], T)
    longest = max((real_x[start:end] for start, end in meta["clips"]), key=len)

    # Networks, optimisers, and the one random stream of the training
    nets = networks(codes, late // world, args)
    ema = copy.deepcopy(nets["G"]).requires_grad_(False)
    ema.produce.flatten_parameters()                                            # one piece of memory again, for cuDNN
    share_batch_norm(nets["G"])
    rng = torch.Generator().manual_seed(args.seed)
    nets["pool"].copy_(torch.randn(late, 4, NOISE, generator=rng)[rank::world])     # until trajectories have been there
    columns = "wasserstein", "gp", "generator", "gap", "phi"                    # logged as means since the last report
    step, since, seconds, rows, totals, last = 0, 0, 0.0, [], *torch.zeros(2, len(columns), device=device)
    if state:
        load(nets, state)
        ema.load_state_dict(state["ema"])
        nets["pool"].copy_(state["pool"][rank::world])
        rng.set_state(state["rng"])
        step, since, seconds, rows = state["step"], state["since"], state["seconds"], state["rows"]
        totals.copy_(state["totals"])
        if step >= steps:
            raise InputError(f"{state_path} is at step {step} already, --resume would stop at {steps}; ask for more "
                             f"with --steps or --epochs.")
    elif output.exists():
        print(f"{output} exists and is replaced at the first save (--resume would continue it).", file=log)
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(args).items()}

    def over_all(x):
        """The mean over all processes."""
        everywhere = x.clone()
        if world > 1:
            dist.all_reduce(everywhere)
        return everywhere / world

    def check():
        sums = [*over_all(last).tolist(), *(p.sum().item() for p in (*nets["G"].parameters(), *nets["C"].parameters()))]
        # A critic of slope 1 cannot put more between two windows than their distance, about (2 T L D)^(1/2) in its units
        too_far = args.lambda_gp > 0 and abs(sums[0]) > DIVERGED * math.sqrt(2 * T * L * D)
        if not all(map(math.isfinite, sums)) or too_far:
            raise InputError(f"training diverged before step {step}: " + (
                f"{output} keeps that of step {saved}; start anew with a lower --lr, or try --resume." if saved else
                "nothing was saved; start anew with a lower --lr."))

    def save_model(path):
        write_atomically(path, lambda part: torch.save(
            {"generator": {name: value.cpu() for name, value in ema.state_dict().items()},
             "sizes": {"L": L, "D": D, "noise": NOISE, "width": ema.width}, "model": meta["model"], "fps": meta["fps"],
             "pca": pca, "options": options, "step": step, "window": T, "version": VERSION}, part))

    def save():
        check()
        pool, logged = gathered(nets["pool"]), over_all(totals)
        if rank == 0:
            reestimate_batchnorm(ema, T, B, torch.Generator().manual_seed(args.seed + 1), late, args.horizon - T)
            save_model(output)                              # first: a state at the last step means that the model is there
            write_atomically(state_path, lambda part: torch.save(
                {**states(nets), "ema": ema.state_dict(), "pool": pool, "rng": rng.get_state(), "step": step,
                 "since": since, "totals": logged, "seconds": seconds + time.perf_counter() - began, "rows": rows,
                 "options": options, "digest": digest, "version": VERSION}, part))

    # A first Ctrl-C (or a scheduler's SIGTERM) ends the step at hand and saves; a second one stops at once
    stop = []

    def ask_to_stop(number, frame):
        if stop:
            raise KeyboardInterrupt(f"stopped at once; {output} is that of the last save.")
        stop.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def noise():
        """Of the next step: this process's share of the batch, on the device."""
        drawn = draw(rng, args.critic_steps, B, late, T, len(starts))
        calls = step * args.critic_steps + torch.arange(args.critic_steps)
        drawn["renew"] = (calls[:, None] + torch.arange(late)) % turns == 0
        drawn["tau"] = offset_noise(step, args)
        drawn = {name: value[:, rank::world].contiguous() for name, value in drawn.items()}
        if device.type == "cuda":
            drawn = {name: value.pin_memory() for name, value in drawn.items()}
        return {name: value.to(device, non_blocking=True) for name, value in drawn.items()}

    advance = functools.partial(train_step, nets, codes=codes, starts=starts, args=args)
    torch.set_float32_matmul_precision(args.matmul)
    if device.type == "cuda" and world == 1 and args.cuda_graph:
        before = rng.get_state()
        advance = graph_of(advance, noise(), nets)
        rng.set_state(before)

    print(f"{N} frames, {len(starts)} windows of {T}, codes {L} x {D}, {per_epoch} steps per epoch, {steps} steps on "
          f"{device}{f' x {world}' if world > 1 else ''}; a perfect model would be at "
          f"{100 * references['floor'] / references['frozen']:.1f} %, the two halves of these data are "
          f"{100 * references['halves'] / references['frozen']:.0f} % apart", file=log)
    resumed, saved, stopping, began = step, step, False, time.perf_counter()
    bar = tqdm(total=steps, initial=step, unit="step", mininterval=1.0, file=log)
    try:
        while step < steps and not stopping:
            # Critic and generator
            decay = 0.5 ** (step / (args.lr_half_life * per_epoch))
            set_rate(nets["optimiser_G"], args.lr * decay)
            set_rate(nets["optimiser_C"], args.lr_critic * decay)
            torch.set_float32_matmul_precision(args.matmul)
            last = advance(noise=noise())
            totals += last                                                      # sums for the log stay on the device
            torch.set_float32_matmul_precision("highest")                       # for what is measured and saved

            # EMA of the generator; ours: a shorter memory at first, so that it forgets the initialisation
            step += 1
            update_ema(ema, nets["G"], min(args.ema, step / (step + 9)))
            bar.update()

            # Report: how far sampled motion is from real motion, with random numbers of its own
            if step % args.report_every == 0 or step == steps:
                check()
                averages = (over_all(totals) / (step - since)).tolist()
                took, report_rng = time.perf_counter() - began, torch.Generator().manual_seed(args.seed + 1)
                seconds += took
                if rank == 0:
                    reestimate_batchnorm(ema, T, B, report_rng, late, args.horizon - T)
                    short = sample_coordinates(ema, SHORT, T, pca, report_rng)                  # (2048, T, 32)
                    long = sample_coordinates(ema, LONG[0], max(LONG[1], 4 * T), pca, report_rng) # (128, 400, 32)
                    rows.append({"step": step, "epoch": round(step / per_epoch, 2), **dict(zip(columns, averages)),
                                 **code_distances(references, short, long),
                                 **{name: references[name] for name in ("floor", "halves", "frozen", "still")},
                                 "seconds": round(seconds, 1),
                                 "lr": args.lr * decay, "lr_critic": args.lr_critic * decay,
                                 "steps_per_second": round((step - max(since, resumed)) / took, 3),
                                 "memory_mb": round(peak_memory(device), 1)})
                    write_csv(beside(output, ".csv"), rows)
                    draw_curves(beside(output, ".png"), rows, longest[:250], long[0, :250], meta["fps"])
                    r, sums = rows[-1], [row["short_percent"] + row["long_percent"] for row in rows]
                    if sums[-1] == min(sums):                                   # distances rise and fall between reports
                        save_model(beside(output, ".best.pt"))
                    tqdm.write(f"step {step:6d}  W {r['wasserstein']:8.3f}  gp {r['gp']:7.4f}  G {r['generator']:8.3f}  "
                               f"phi {math.degrees(r['phi']):4.1f} deg  short {r['short_percent']:6.2f} %  long "
                               f"{r['long_percent']:6.2f} %  frames {r['frame_short_percent']:.2f} "
                               f"{r['frame_long_percent']:.2f} %  jitter {r['jitter_long']:5.2f}  {r['steps_per_second']:6.2f} "
                               f"steps/s  {r['memory_mb']:6.0f} MB", file=log)
                totals.zero_()
                since, began = step, time.perf_counter()

            # Save
            if step % args.save_every == 0:
                save()
                saved = step
            if world == 1:
                stopping = bool(stop)
            elif device.type == "cpu" or step % AGREE == 0:                     # all stop at the same step
                stopping = agreed(bool(stop), device)
        if saved != step:
            save()
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopping:
        raise KeyboardInterrupt(f"stopped at step {step} of {steps} and saved; go on with --resume.")
    others = ", ".join(beside(output, ending).name for ending in (".best.pt", ".state.pt", ".csv", ".png"))
    print(f"wrote {output} (step {step}) and beside it {others}", file=log)


def options_parser(recipe="ours"):
    parser = argparse.ArgumentParser(description="Train the motion generator on the W+ codes of one actor.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("latents", nargs="+", metavar="LATENTS", help="latents.npy of embed.py, or .npz")
    parser.add_argument("-o", "--output", default="motion.pt", help="motion model; the other files are put beside it")
    parser.add_argument("--resume", action="store_true", help="go on from the training state beside the output")

    how_long = parser.add_argument_group("length").add_mutually_exclusive_group()
    how_long.add_argument("--epochs", type=positive_int, help=f"passes over the windows; without this option {EPOCHS} (sec. 3), "
                          f"but at least {STEPS} steps (ours)")
    how_long.add_argument("--steps", type=positive_int, help="generator steps, instead of --epochs")

    method = parser.add_argument_group("method")
    method.add_argument("--recipe", choices=("ours", "paper"), default="ours", help="defaults of the options below: "
                        "those found by experiment, or the paper's own where it states them")
    method.add_argument("--window", type=int, default=25, help="frames of a window, t (sec. 3; 75 for hands)")
    method.add_argument("--batch", type=int, default=128, help="windows per critic and per generator step (suppl. 2.1)")
    method.add_argument("--lambda-gp", type=not_negative, default=50.0, help="weight of the gradient penalty (sec. 3)")
    method.add_argument("--lambda-gap", type=not_negative, default=100.0, help="weight of the angle penalty (sec. 3)")
    method.add_argument("--ema", type=momentum, default=0.997, help="momentum of the averaged generator (suppl. 2.1)")
    # ours: 0.005 (suppl. 2.1) with one critic step did not learn in 1,600 steps of a prototype; 0.0025 for G alone was at 153 %
    # (short) after 250 steps, where this was at 40 %
    method.add_argument("--lr", type=not_negative, default=0.001, help="learning rate of Adam, generator (ours)")
    # ours: Adam's steps are of one size, so weights that start ten times as large (MotionGenerator.init_recurrence) learn ten
    # times as slowly
    method.add_argument("--lr-recurrence", type=not_negative, default=5.0, help="times --lr, for H and P (ours)")
    # ours: the same; apart from --lr because raising that alone, late in the training, brought the short distance from 11 to 9 %
    method.add_argument("--lr-critic", type=not_negative, default=0.001, help="learning rate of Adam, critics (ours)")
    # open in the paper; ours: without it the distances keep jumping about between reports. It depends on the step alone and
    # not on the length, so that a resumed training may be longer than it was meant to be
    method.add_argument("--lr-half-life", type=positive_float, default=300.0, help="epochs after which both are halved (ours)")
    # open in the paper; ours: a first momentum of 0.5, DCGAN's
    method.add_argument("--betas", type=momentum, nargs=2, default=[0.5, 0.99], help="of Adam (ours)")
    # open in the paper; ours: three. Distances fall further per minute, and much further per step, than with one
    method.add_argument("--critic-steps", type=positive_int, default=3, help="per generator step (ours)")
    # ours: the paper's windows all begin with i (--horizon 0), and its samples of 400 frames go on from there untrained
    method.add_argument("--horizon", type=int, default=400, help="frames within which sampled windows begin; 0: all "
                        "with the first frame (sec. 3)")
    # ours: without it the critics learn the training windows by heart (after 2,000 steps they gave windows of another video of
    # the same actor the same score as sampled ones) and say little about what is really different
    method.add_argument("--instance-noise", type=not_negative, default=0.5, help="differences of real windows added to all "
                        "that the critics see, times this (ours)")
    # ours: the same for where the head is on the whole, of which a video of minutes says even less. Of two levels the small one
    # leaves the critics this to judge, the large one all else
    method.add_argument("--offset-noise", type=not_negative, nargs="+", default=[0.7, 4.0], help="differences of the means of real "
                        "windows, added likewise; the windows of a batch take several levels in turn (ours)")
    method.add_argument("--offset-from", type=int, default=1400, help="steps after which it begins (ours)")
    # open in the paper; ours: see MotionGenerator.init_recurrence
    method.add_argument("--start", choices=("ours", "torch"), default="ours", help="of the recurrence (H and P): so that the "
                        "noise passes through all four cells (ours), or torch's own")
    method.add_argument("--width", type=positive_int, help="of hidden layers, 512 in the paper; None: style width D")
    method.add_argument("--seed", type=int, default=0, help="of all random numbers")

    running = parser.add_argument_group("running")
    # ours: TF32 on CUDA; on a CPU what torch makes of it: bf16 products where the processor has AMX, else another fp32 kernel
    # (AVX-512 without AMX: 2.2 times as fast on one core, results within 5e-7)
    running.add_argument("--matmul", choices=("highest", "high", "medium"), default="medium",
                         help="precision of matrix products in training, as torch.set_float32_matmul_precision")
    running.add_argument("--no-cuda-graph", dest="cuda_graph", action="store_false", help="start every kernel by itself")
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    running.add_argument("--threads", type=positive_int, help="of the CPU; None: as many as torch finds")
    running.add_argument("--report-every", type=positive_int, default=500, help="steps between distances, CSV, plot")
    running.add_argument("--save-every", type=positive_int, default=500, help="steps between saves")
    if recipe == "paper":
        parser.set_defaults(**PAPER)
    return parser


def named_options():
    """Of the options that a training depends on, those in the command line, also with the value that is their default."""
    parser = options_parser()
    parser.set_defaults(**dict.fromkeys(FIXED + KEPT + LENGTH))
    return [name for name, value in vars(parser.parse_args()).items() if name in FIXED + KEPT + LENGTH and value is not None]


def positive_int(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive_float(text):
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return value


def momentum(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


if __name__ == "__main__":
    parser = options_parser()
    one_speaks = os.environ.get("LOCAL_RANK", "0") == "0"                       # under torchrun, one per machine
    try:
        arguments = parser.parse_args()
        arguments = options_parser(arguments.recipe).parse_args()
        with several_processes(arguments):
            main(arguments, named_options())
    except InputError as error:
        parser.exit(2, f"train.py: {error}\n" if one_speaks else None)
    except KeyboardInterrupt as error:
        error = str(error) or "stopped before the training began; nothing was written."
        parser.exit(130, f"train.py: {error}\n" if one_speaks else None)
