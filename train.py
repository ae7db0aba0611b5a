"""Train StyleVideoGAN's motion generator on the W+ codes of one actor: a recurrent WGAN-GP + angle penalty.

    python train.py latents.npy                            # 350 epochs, at least 2,400 steps: motion.pt
    python train.py latents.npy --steps 2000 -o motion.pt  # length in generator steps instead
    python train.py latents.npy --resume                   # go on exactly as if never stopped, or begin
    python train.py monday.npy tuesday.npy                 # several videos of one actor, one image model
    python train.py latents.npy --holdout unseen.npy       # judged on video that it does not learn from
    python train.py latents.npy --recipe paper             # the paper's own settings where it states them
    python train.py latents.npy --model stylegan_v         # another motion model, under the same critic

Fox et al., BMVC 2021 (arXiv:2107.07224), sec. 3 and supplement 2.1; no picture is rendered. H, P, T, C and
the penalties are in models.py. Writes motion.pt (all that sample.py needs), motion.state.pt (every minute,
too: all that --resume needs) and motion.csv (a row per report).

Shapes: N training frames, B batch, T frames of a window, L style rows, D style width. On a CPU one seed and
number of threads give one result bit for bit, interrupted or not; on CUDA the random numbers are the same,
but the order of sums is not.
"""

import argparse
import contextlib
import copy
import hashlib
import importlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from tqdm import tqdm

import models
from models import InputError, MotionGenerator, gradient_angle_penalty, gradient_penalty

NOISE = 32          # width of i, of each s_k and l_k (sec. 3)
COMPONENTS = 32     # directions of the PCA (sec. 3, offset trick)
EPOCHS = 350        # (sec. 3). What one is, is open; ours: the critic sees as many real windows as there are
STEPS = 2400        # ours: no fewer generator steps, as 350 epochs of a minute's video are only 1,400
HELD = 10           # ours: the last tenth of the longest clip is not trained on, but judged by
SHORT = 2048        # sampled windows per report, as many as the paper's FVD takes (suppl. 2.2)
LONG = 128, 400     # long samples per report and their frames (suppl. 2.2: 128 samples, 400 frames for ACD)
PER_LONG = 16       # windows cut from each long sample: 128 x 16 = 2048 again
SPACE = 64          # ours: principal directions of windows in which distances are measured; 2048 windows
#                     determine a 64 x 64 covariance well, but not the 800 x 800 one of 25 x 32 coordinates
MOMENTS = 16        # ours: coordinates whose kurtosis is averaged; later ones hold mostly the encoder's noise
REESTIMATE = 96     # ours: batches for BatchNorm's statistics; 16 moved a short distance from 7.5 to 9.1 %
DIVERGED = 10       # ours: times the distance of two windows, the most that a critic of slope 1 can claim
SAVE_SECONDS = 60   # ours: a kill loses at most a minute
STATE = 4           # version of motion.state.pt
ALONE = threading.Lock()        # for one thread at a time: torch's random numbers, capture of a CUDA graph
# TF32 on CUDA; on a CPU what torch makes of it (AVX-512 without AMX: 2.2 times as fast, within 5e-7)
MATMUL = "medium"
LOGGED = "wasserstein", "gp", "generator", "gap", "phi"             # what a step returns


def number(kind, least, below=math.inf):
    """For argparse: a number of that kind with least <= value < below."""
    def parse(text):
        if not least <= kind(text) < below:
            raise argparse.ArgumentTypeError(f"{text} is not in [{least}, {below})")
        return kind(text)

    parse.__name__ = kind.__name__                          # which argparse names to the user
    return parse


# What a training depends on: (default, type or choices, help)
METHOD = {
    "model": ("stylevideogan", tuple(models.MOTION_MODELS), "what makes the motion, in front of T"),
    "critic": ("dense", ("dense", "sparse"), "sees windows whole (table 7), or 3 frames of each"),
    "window": (25, number(int, 2), "frames of a window, t (sec. 3; 75 for hands, sec. 4)"),
    "batch": (128, number(int, 2), "windows per critic and per generator step (suppl. 2.1)"),
    "lambda_gp": (50.0, number(float, 0), "weight of the gradient penalty (sec. 3)"),
    "lambda_gap": (100.0, number(float, 0), "weight of the gradient angle penalty (sec. 3)"),
    "ema": (0.997, number(float, 0, 1), "momentum of averaged weights (suppl. 2.1; sec. 3: 0.995)"),
    # 0.005 (suppl. 2.1), with nothing of ours, learned nothing in 2,300 steps on ten minutes
    "lr": (0.001, number(float, 0), "learning rate of Adam, constant"),
    "betas": ([0.5, 0.99], number(float, 0, 1), "of Adam (open; ours: DCGAN's first)"),
    # With one, MMD of windows is three to eight times as large after 1,200 steps on ten minutes
    "critic_steps": (3, number(int, 1), "per generator step (open; ours)"),
    # In the paper all windows begin with i (0): nearer there, but samples of 400 frames leave their place
    "horizon": (400, number(int, 0), "mean length in frames of sampled trajectories (ours)"),
    "seed": (0, number(int, 0, 2 ** 32), "of all random numbers"),
}
# The paper's, or what it is without ours: --recipe paper
PAPER = {"lr": 0.005, "betas": [0.9, 0.999], "horizon": 0}


# ------------------------------------------------------------------------------------------------------------
# The paper's step (sec. 3). There, all windows begin with i: later_windows() is 0
# ------------------------------------------------------------------------------------------------------------

def train_step(nets, adam, draws, codes, starts, args):
    """L = L_WGAN + lambda_GP L_GP + lambda_GAP L_GAP: critic steps, a generator step, EMA -> LOGGED, (5,).

    nets, adam: of networks(); draws: of draw(); codes (N, L, D); starts (n,): first frames of all real
    windows. Nothing here waits for the device.
    """
    G, C, norm, T = nets.G, nets.C, nets.norm, args.window
    (_, B), first = draws["place"].shape, draws["i"].shape[1]
    later = (torch.arange(B, device=codes.device) >= first).float()[:, None, None]          # (B, 1, 1)

    for k in range(args.critic_steps):
        # Windows. The fakes of the last critic step are also those of the generator step, and need gradients
        # (ours, it saves a roll; WGAN-GP, Gulrajani et al. 2017, algorithm 1, draws new ones)
        last = k == args.critic_steps - 1
        i, s = draws["i"][k].requires_grad_(last), draws["s"][k].requires_grad_(last)
        with torch.set_grad_enabled(last):
            l, w = sample_windows(nets, i, s, draws, k)                         # (B, T, 32), (B, T, L, D)
        frames = starts[draws["place"][k]][:, None] + torch.arange(T, device=starts.device)
        real = codes[frames]                                                    # (B, T, L, D)

        # Critic: mean C(w) - mean C(real) + lambda_GP mean (|dC/dx| - 1)^2, x: scaled codes
        p_real, p_fake = C.first_layer(real, later), C.first_layer(w.detach(), later)           # (B, T, D)
        loss_C = C.score(p_fake).mean() - C.score(p_real).mean()
        gp = gradient_penalty(C, p_real, p_fake, draws["mix"][k])
        adam["C"].zero_grad()
        (loss_C + args.lambda_gp * gp).backward()
        adam["C"].step()

    # Generator: -mean C(w) + lambda_GAP mean max(0, pi/4 - phi)^2, phi for the windows that begin with i
    C.requires_grad_(False)
    loss_G = -C.score(C.first_layer(w, later)).mean()
    norm.update((l[:first, -1] - l[:first, 0]).detach())
    gap, phi = gradient_angle_penalty(l[:first], i, s, norm)
    adam["G"].zero_grad()
    (loss_G + args.lambda_gap * gap).backward()
    adam["G"].step()
    C.requires_grad_(True)

    # EMA of the generator's weights; draws["ema"] is 1 - momentum
    with torch.no_grad():
        for averaged, p in zip(nets.ema.parameters(), G.parameters()):
            averaged.lerp_(p, draws["ema"])
    return torch.stack([-loss_C, gp, loss_G, gap, phi.mean()]).detach()


def draw(rng, step, places, args, widths=(NOISE, NOISE)):
    """Random numbers of one step, (critic steps, windows, ...), from a CPU generator: alike on any device.

    widths: how many i and each s_k have.
    """
    K, B, T, late = args.critic_steps, args.batch, args.window, later_windows(args)
    return {"place": torch.randint(places, (K, B), generator=rng),
            "mix": torch.rand(K, B, 1, 1, generator=rng),                   # of the gradient penalty
            "i": torch.randn(K, B - late, widths[0], generator=rng),        # N(0, 1), as s (sec. 3)
            "s": torch.randn(K, B - late, T - 1, widths[1], generator=rng),
            "s_later": torch.randn(K, late, T - 1, widths[1], generator=rng),   # of the later windows
            "renew": torch.rand(K, late, generator=rng) * args.horizon < T,     # trajectories that end
            "ema": torch.tensor(1 - min(args.ema, (step + 1) / (step + 10)))}   # ours: short memory at first


# ------------------------------------------------------------------------------------------------------------
# Ours: later windows, which --recipe paper does without, and BatchNorm's statistics
# ------------------------------------------------------------------------------------------------------------

def later_windows(args):
    """How many windows of a batch lie further on in their trajectories: half, or none."""
    return args.batch // 2 if args.horizon else 0


def sample_windows(nets, i, s, draws, k):
    """Windows of sampled motion: motion codes l (B, T, 32) and W+ codes w (B, T, L, D).

    i (b, 32), s (b, T-1, 32). In the paper l = G.motion(i, s), w = G.translate(l). The other B - b windows
    go on where the last call's ended, from the memories in the pool (B - b, 4, 32). Where `renew` says so,
    a trajectory ends there, and one that has just begun takes its place.
    """
    G, pool, b = nets.G, nets.pool, len(i)
    h, s = G.hidden(i), torch.cat([s, draws["s_later"][k]])
    h = torch.cat([h, pool.transpose(0, 1)], 1)                                 # (4, B, 32)
    # cuDNN's recurrent kernels have no second derivative, which the angle penalty needs
    with torch.backends.cudnn.flags(enabled=not torch.is_grad_enabled()):
        tail, end = G.roll(s, h)                                                # (B, T-1, 32), (4, B, 32)
    with torch.no_grad():
        pool.copy_(torch.where(draws["renew"][k][:, None], end[:, :len(pool)], end[:, b:]).transpose(0, 1))
    l = torch.cat([G.code(h)[:, None], tail], 1)                                # (B, T, 32)
    return l, G.translate(l)


@torch.no_grad()
def reestimate_batchnorm(G, args, rng):
    """Measure BatchNorm's statistics of averaged weights on REESTIMATE batches of windows; to eval mode.

    With the live generator's, a prototype's distance to real windows was 1393, with re-estimated ones 752.
    rng: its own, so looking never changes the training.
    """
    norms = [m for m in G.modules() if isinstance(m, nn.BatchNorm1d)]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None                                           # plain average over the batches
    G.train()
    late, device = later_windows(args), next(G.buffers()).device
    for _ in range(REESTIMATE if norms else 0):
        h = G.hidden(torch.randn(args.batch, G.start, generator=rng).to(device))            # (4, B, 32)
        if late:
            # of any age, about as in training
            age = 1 + int(torch.randint(args.horizon, (), generator=rng))
            s = torch.randn(late, age, G.noise, generator=rng).to(device)
            h = torch.cat([h[:, late:], G.roll(s, h[:, :late].contiguous())[1]], 1)
        s = torch.randn(args.batch, args.window - 1, G.noise, generator=rng).to(device)
        G.translate(torch.cat([G.code(h)[:, None], G.roll(s, h)[0]], 1))
    G.eval()


# ------------------------------------------------------------------------------------------------------------
# What is trained
# ------------------------------------------------------------------------------------------------------------

def networks(codes, args, clips=(), pca=None):
    """All that a step changes, on the device of codes (N, L, D): nets.G, .C, .ema, .norm of the angle
    penalty, .pool (late, 4, 32) of sample_windows(); and Adam for G and C."""
    device, (_, L, D) = codes.device, codes.shape
    mean, std = codes.mean(0).cpu(), codes.std(0).cpu()                         # (L, D)
    with ALONE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        G = models.motion_model(args.model)(L, D, NOISE)
        C = models.motion_critic(args.critic)(L, D, args.window)
        G.prepare(codes.cpu(), clips, pca)
        # Open in the paper; ours: one scale for all entries. Unit variance per entry would blow up those that
        # hold little but the encoder's noise: the share of windows beyond the PCA rises from 1.2 to 3.1 %
        C.set_scale(mean, std.square().mean().sqrt().expand_as(std))
        nets = nn.ModuleDict({"G": G, "C": C, "ema": copy.deepcopy(G), "norm": models.RunningNorm(NOISE)})
        late = later_windows(args)
        begun = G.hidden(torch.randn(args.batch, G.start))[:, :late].detach()   # (4, late, 32)
    nets.register_buffer("pool", begun.transpose(0, 1).contiguous())
    nets.ema.requires_grad_(False)
    nets.to(device).train()

    # In a CUDA graph Adam may not look at its steps
    adam = {name: torch.optim.Adam(nets[name].parameters(), args.lr, args.betas, fused=True,
                                   capturable=device.type == "cuda") for name in "GC"}
    return nets, adam


def graph_of(step, draws, nets, adam):
    """step(draws) as one CUDA graph: its thousand small kernels start without the host. draws: an example.

    torch.compile cannot do the second backward pass of the angle penalty; a graph records whatever was done.
    The current stream must not be the default one, nor another thread's: cuBLAS has one workspace for a
    stream, which graphs keep, and those that run at once must not share it.
    """
    def changed():
        moments = [v for optimiser in adam.values() for of in optimiser.state.values() for v in of.values()]
        return [*nets.parameters(), *nets.buffers(), *moments]

    kept = [value.detach().clone() for value in changed()]
    stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    begun = torch.cuda.Event(blocking=True)                         # who waits for it sleeps
    with ALONE:
        for _ in range(3):                                          # what is allocated lazily must be there
            step(draws)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            logged = step(draws)

    # These were no steps of the training: all back as it was, in place; moments that are new were zero
    with torch.no_grad():
        for value, before in itertools.zip_longest(changed(), kept):
            value.zero_() if before is None else value.copy_(before)

    def replay(fresh):
        begun.synchronize()             # at most two steps ahead of the device, else pinned memory piles up
        for name, value in fresh.items():
            draws[name].copy_(value, non_blocking=True)
        begun.record()
        graph.replay()
        return logged

    return replay


# ------------------------------------------------------------------------------------------------------------
# Codes: reading, windows, PCA, and how far sampled motion is from real motion (ours: FVD needs pictures)
# ------------------------------------------------------------------------------------------------------------

def read_array(path):
    """The array in a .npy, an .npz (under `w`) or a file of torch.save (a tensor, several of one shape in a
    list, `w` of a dict), told apart by what is in them. Executes nothing. Raises InputError."""
    try:
        with open(path, "rb") as file:
            start = file.read(256)
        of_torch = b"data.pkl" in start or start.startswith(b"\x80\x02\x8a\nl\xfc")       # zip, or before 1.6
        if not of_torch and not start.startswith((b"\x93NUMPY", b"PK")):
            raise InputError(f"{path} is no readable file of codes (neither of NumPy nor of PyTorch); make "
                             f"one with: python embed.py VIDEO -o codes.npy")
        found = torch.load(path, map_location="cpu", weights_only=True) if of_torch else np.load(path)
        if hasattr(found, "keys") and "w" in found:
            found = found["w"]
        if isinstance(found, (list, tuple)):                # frame by frame
            found = torch.stack(list(found))
        if isinstance(found, torch.Tensor):
            found = found.detach().to(torch.float32 if found.is_floating_point() else found.dtype).numpy()
    except InputError:
        raise
    except Exception as error:                              # numpy, zipfile and torch raise a dozen types
        if "allow_pickle" in str(error):
            how = f"np.load('{path.name}', allow_pickle=True).item()"
            raise InputError(f"{path} holds Python objects, which are not run; if you trust it, put the "
                             f"codes (T, L, D) into a file of their own: np.save('codes.npy', {how}[NAME]), "
                             f"or np.stack([*{how}.values()]) where each frame has a name.") from None
        raise InputError(f"{path} is no readable file of codes ({type(error).__name__}); it may be cut short "
                         f"or hold more than tensors of one shape: make it again with embed.py, or put the "
                         f"codes (T, L, D) alone into a .npy.") from None
    if isinstance(found, np.ndarray):
        return found

    names = ", ".join(itertools.islice(map(str, getattr(found, "keys", list)()), 8)) or "nothing"
    how = f"{'torch' if of_torch else 'np'}.load('{path.name}')"
    raise InputError(f"{path} is not one array and has no array named w (it has: {names}); put the codes "
                     f"(T, L, D) into a file of their own: np.save('codes.npy', np.asarray({how}[NAME])).")


def load_latents(path):
    """W+ codes of one video, as embed.py writes them: latents.npy with latents.json beside it.

    Without the .json it counts as one clip at 25 fps of an unknown image model; so do projected_w.npz of
    stylegan2-ada and the tensors of e4e, PTI and STIT. Returns codes, float32 (N, L, D), and {"fps", "clips":
    [(start, end), ...], half open, "model": {"name", "sha256"}, "source": [path, ...], "frames": as in the
    .json}. Raises InputError.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file of codes in it.")
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with: python embed.py VIDEO -o {path}")
    codes = read_array(path)
    if codes.ndim == 4 and 1 in codes.shape[:2]:
        shape, codes = codes.shape, codes.reshape(-1, *codes.shape[2:])
        print(f"{path}: {shape} is read as one trajectory of {len(codes)} frames.", file=sys.stderr)
    if codes.ndim != 3 or 0 in codes.shape or codes.dtype.kind != "f":
        raise InputError(f"{path} holds {codes.dtype} of shape {codes.shape}, expected W+ codes, floats "
                         f"(T, L, D): frames, style rows, style width.")
    with np.errstate(over="ignore"):                        # beyond float32: told below
        codes = np.ascontiguousarray(codes, dtype=np.float32)
    bad = ~np.isfinite(codes).all((1, 2))
    if bad.any():
        raise InputError(f"{path} has NaN or infinite values in {bad.sum()} of {len(codes)} frames, the "
                         f"first in frame {bad.argmax()}; embed the video again.")

    N, sidecar = len(codes), path.with_suffix(".json")
    if not sidecar.is_file():
        unknown = {"name": None, "sha256": None}
        return codes, {"fps": 25.0, "clips": [(0, N)], "model": unknown, "source": [], "frames": []}
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        numbers, fps = [frame["clip"] for frame in facts["frames"]], float(facts["fps"])
        model = {key: facts["model"][key] for key in ("name", "sha256")}
        if len(numbers) != N or not 0 < fps < math.inf:
            raise ValueError(f"{len(numbers)} frames at {fps:g} fps")
        # Where it says, or beside it. PureWindowsPath knows the names of every system
        named = facts.get("source") or []
        named = [named] if isinstance(named, str) else named
        source = [s if Path(s).exists() else str(path.with_name(PureWindowsPath(s).name)) for s in named]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{sidecar} does not describe the {N} frames of {path} as embed.py does ({error}); "
                         f"make both again, or remove it: then they are one clip at 25 fps.") from None
    cuts = [k for k in range(1, N) if numbers[k] != numbers[k - 1]]
    clips = list(zip([0, *cuts], [*cuts, N]))
    return codes, {"fps": fps, "clips": clips, "model": model, "source": source, "frames": facts["frames"]}


def load_training_set(paths, window, log=sys.stderr):
    """Codes of all files in one array, (N, L, D), with the clips of all, what else is known of the first;
    checks that they fit together."""
    parts, names = [load_latents(path) for path in paths], ", ".join(map(str, paths))
    kinds = {f"{codes.shape[1]} x {codes.shape[2]} of {meta['model']['name']} ({meta['model']['sha256']})"
             for codes, meta in parts}
    if len(kinds) > 1:
        raise InputError(f"{names} have codes of {' and of '.join(sorted(kinds))}; embed all videos with one "
                         f"image model.")
    rates = sorted(meta["fps"] for _, meta in parts)
    if rates[-1] > 1.01 * rates[0]:
        print(f"{names} have {rates[0]:g} to {rates[-1]:g} frames per second: their motion will differ in "
              f"speed.", file=log)

    codes, clips, N = np.concatenate([codes for codes, _ in parts]), [], 0
    for part, meta in parts:
        clips += [(N + start, N + end) for start, end in meta["clips"]]
        N += len(part)
    lengths = [end - start for start, end in clips]
    if N <= COMPONENTS or codes[0].size < COMPONENTS:
        raise InputError(f"{names}: {N} frames of {codes[0].size} numbers; the PCA of {COMPONENTS} "
                         f"directions needs at least {COMPONENTS + 1}, good motion hundreds.")
    if codes.std(0).max() < 1e-6:
        raise InputError(f"all {N} frames of {names} have the same code: there is no motion to learn.")
    if max(lengths) <= window:
        raise InputError(f"{names}: the longest clip has {max(lengths)} frames, too few for two windows "
                         f"of {window}; give a shorter --window, {max(lengths) // 2} perhaps, or embed more.")
    if min(lengths) < window:
        short = sum(n for n in lengths if n < window)
        print(f"{short} of {N} frames lie in clips shorter than {window} frames and are left out.", file=log)
    return codes, {**parts[0][1], "clips": clips}


def hold_out(codes, clips, window):
    """Take the last 1/HELD of the longest clip out of codes (N, L, D): -> what is left, its clips, [start,
    end] of what was taken. Where that is less than four windows nothing is taken, and the last is None."""
    start, end = max(clips, key=lambda clip: clip[1] - clip[0])
    n = (end - start) // HELD
    if n < 4 * window:
        return codes, clips, None
    kept = [(a - n * (a >= end), b - n * (b >= end)) for a, b in clips]         # those behind move up
    return np.delete(codes, np.s_[end - n:end], 0), kept, [end - n, end]


def window_starts(clips, window):
    """First frames of all windows that lie inside one clip: (n,) int64."""
    return torch.cat([torch.arange(start, max(start, end - window + 1)) for start, end in clips])


def fit_pca(codes):
    """PCA of training codes (N, L, D), sec. 3: {"mean" (L, D), "basis" (32, L, D), "std" (32,)}, float32."""
    N, L, D = codes.shape
    # On 18,000 x 9,216 codes the exact solvers would need the 9,216 x 9,216 covariance
    pca = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(codes.reshape(N, L * D))
    return {"mean": torch.from_numpy(pca.mean_).float().reshape(L, D),
            "basis": torch.from_numpy(pca.components_).float().reshape(COMPONENTS, L, D),
            "std": torch.from_numpy(np.sqrt(pca.explained_variance_)).float()}


def coordinates(codes, pca):
    """Codes (..., L, D) -> their PCA coordinates (..., 32) in the codes' units, not whitened."""
    return (codes - pca["mean"]).flatten(-2) @ pca["basis"].flatten(1).T


def long_windows(x, window):
    """Evenly spaced windows of long samples: (n, t, 32) -> (PER_LONG n, T, 32), adjacent at 400 and 25."""
    starts = torch.linspace(0, x.shape[1] - window, PER_LONG).long()
    return x[:, starts[:, None] + torch.arange(window)].flatten(0, 1)


def evenly(x, n):
    """At most n of x (N, ...), evenly spaced."""
    return x[torch.linspace(0, len(x) - 1, min(n, len(x))).long()]


def frechet(x, y):
    """Fréchet distance of Gaussians fitted to two sets (n, d), (m, d), in float64, biased covariances.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the trace of the root is the sum of the roots of the
    eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    S1, S2 = (np.atleast_2d(np.cov(v, rowvar=False, bias=True)) for v in (x, y))
    values, vectors = np.linalg.eigh(S1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ S2 @ root).clip(0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(S1) + np.trace(S2) - 2 * cross)


def squared_mmd(x, y, median):
    """Squared maximum mean discrepancy of two sets (n, d), (m, d), unbiased, so around 0, also below, for
    draws of one law: mean k(x, x') + mean k(y, y') - 2 mean k(x, y), nothing with itself. k: the sum of
    Gaussian kernels as wide as 1, 1/2 and 1/4 of the median distance."""
    def kernels(x, y):
        k = torch.exp(torch.cdist(x, y).square() / (-2 * median ** 2))
        return k + k ** 4 + k ** 16

    within = [(kernels(z, z).sum() - 3 * len(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(sum(within) - 2 * kernels(x, y).mean())


def nearest(x, others, apart=None):
    """Median distance of points (n, d) to the nearest of others (m, d); of those that are `apart` (n, m)."""
    d = torch.cdist(x, others)
    return (d if apart is None else d.masked_fill(~apart, math.inf)).min(1).values.median().item()


def excess_kurtosis(windows):
    """Of velocities in windows (n, T, 32): the mean over the first MOMENTS coordinates; a Gaussian's is 0."""
    v = windows.diff(dim=1)[..., :MOMENTS].flatten(0, 1)
    v = (v - v.mean(0)) / v.std(0, correction=0)
    return (v ** 4).mean().item() - 3


def trembling(windows):
    """Root mean square of second differences in time of windows (n, T, 32)."""
    return windows.diff(n=2, dim=1).square().mean().sqrt().item()


def principal_space(windows):
    """Of windows (n, T, 32): mean (32 T,), principal directions (32 T, <= SPACE), median distance there."""
    x = windows.flatten(1)
    mean = x.mean(0)
    basis = torch.linalg.eigh((x - mean).T @ (x - mean))[1][:, -min(SPACE, len(x) - 1):]    # ascending
    some = (evenly(x, 500) - mean) @ basis
    return mean, basis, torch.cdist(some, some).median().item()


def projected(windows, space):
    """Windows (n, T, 32) in a principal_space(): (n, <= SPACE)."""
    mean, basis, _ = space
    return (windows.flatten(1) - mean) @ basis


def references(x, clips, window, train=None):
    """What measures() compares with: all windows of a video, x (N, 32) in clips [(start, end), ...].

    train: references of the training video, where x is another one, whose directions and scales are taken.
    """
    starts = window_starts(clips, window)
    windows = x[starts[:, None] + torch.arange(window)].double()                # (n, T, 32)
    real = {"windows": windows, "jitter": trembling(windows), "kurtosis": excess_kurtosis(windows)}
    real["train"] = train = train or real
    # Directions in which windows without their mean differ have no mean either: it vanishes in projecting
    of = {"space": windows, "motion space": windows - windows.mean(1, keepdim=True)}
    real.update({name: train.get(name) or principal_space(some) for name, some in of.items()})
    real["points"] = projected(windows, real["space"])                          # (n, SPACE)
    frozen = windows[:, :1].expand_as(windows)
    real["frozen"] = frechet(real["points"], projected(frozen, real["space"]))

    some, at = evenly(real["points"], SHORT // 2), evenly(starts, SHORT // 2)
    usual = nearest(some, real["points"], (at[:, None] - starts).abs() >= 2 * window)
    real["nearest"] = usual if math.isfinite(usual) else math.nan               # a video of a few windows
    return real


def gaussian(real, windows):
    """gaussian: Fréchet distance of Gaussians fitted to sampled and real windows of PCA coordinates, in the
    64 principal directions of the real ones, in % of what frozen frames score. Lower is better. It sees means
    and covariances alone, which a linear model has right by construction. Ours: stands in for FVD without a
    download."""
    return 100 * frechet(real["points"], projected(windows, real["space"])) / real["frozen"]


def mmd(real, windows, space="space"):
    """mmd: squared maximum mean discrepancy of sampled and real windows in the same directions, x 1000,
    unbiased: around 0, also below, for windows of the same law. Lower is better. It sees all moments, as
    two of its three Gaussian kernels (1, 1/2, 1/4 of the median distance) are narrow. Gretton et al. 2012."""
    x, y = (projected(evenly(some, SHORT), real[space]) for some in (real["windows"], windows))
    return 1000 * squared_mmd(x, y, real[space][2])


def motion(real, windows):
    """motion: the same of windows without their mean: how the face moves, not where it is. Not in % of frozen
    frames, which score over 1000 here, where all else is below 30."""
    return mmd(real, windows, "motion space")


def kurtosis(real, windows):
    """kurtosis: excess kurtosis of velocities over the real windows', mean of the 16 largest coordinates. 1
    is best. Blinks and lips make it; 0: a Gaussian's. Ours."""
    return excess_kurtosis(windows) / real["kurtosis"]


def jitter(real, windows):
    """jitter: root mean square of second differences in time over the real windows'. 1 is best; 2 trembles,
    0.5 is sluggish. Ours."""
    return trembling(windows) / real["jitter"]


def novelty(real, windows):
    """novelty: median distance to the nearest window of the training video, over that from its own windows to
    those at least two windows away. 1 is best, as new as the video is to itself; 0: copied. Ours."""
    train = real["train"]
    points = projected(evenly(windows, SHORT // 2), train["space"])
    return nearest(points, train["points"]) / train["nearest"]


MEASURES = {measure.__name__: measure for measure in (gaussian, mmd, motion, kurtosis, jitter, novelty)}


def measures(real, windows):
    """{name: value} of windows (n, T, 32) against references(): see the docstrings."""
    return {name: measure(real, windows.double()) for name, measure in MEASURES.items()}


@torch.no_grad()
def sample_coordinates(G, n, t, pca, rng, last=None):
    """PCA coordinates of n sampled trajectories of t frames: (n, t, 32), or of their last frames alone. On
    the CPU, as rng is."""
    device, x = next(G.buffers()).device, []
    pca = {name: value.to(device) for name, value in pca.items()}
    for part in torch.arange(n).split(LONG[0]):                     # bounds the memory
        i = torch.randn(len(part), G.start, generator=rng).to(device)
        s = torch.randn(len(part), t - 1, G.noise, generator=rng).to(device)
        pieces = G.motion(i, s)[:, -(last or t):].flatten(0, 1).split(4096)     # (n t, code)
        found = torch.cat([coordinates(G.translate(l), pca) for l in pieces])
        x.append(found.reshape(len(part), -1, found.shape[1]).cpu())
    return torch.cat(x)


def motion_windows(G, window, pca, rng):
    """Sampled windows {"short": from frame 0 on, "long": in samples of 400 frames}, (2048, T, 32) each."""
    short = sample_coordinates(G, SHORT, window, pca, rng)
    long = sample_coordinates(G, LONG[0], max(LONG[1], 4 * window), pca, rng)
    return {"short": short, "long": long_windows(long, window)}


def motion_report(G, real, pca, rng):
    """{"training_long_mmd": value, ...}: measures() of motion_windows() against every video of `real`."""
    windows = motion_windows(G, real["training"]["windows"].shape[1], pca, rng)
    return {f"{video}_{kind}_{name}": value for video, r in real.items() for kind, some in windows.items()
            for name, value in measures(r, some).items()}


def in_words(report):
    """Of a motion_report(): how long samples compare with the video held out, or else the training video."""
    judge = "holdout" if "holdout_long_mmd" in report else "training"
    return f"{judge}, long: " + "  ".join(f"{name} {report[f'{judge}_long_{name}']:.2f}" for name in MEASURES)


# ------------------------------------------------------------------------------------------------------------
# Files, options, training
# ------------------------------------------------------------------------------------------------------------

def write_atomically(path, write):
    """Call write(temporary path), then put the file in place: a reader finds the old or new one, whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:                        # torch.save, of a full disk: the latter
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); make room or name another file.") from None
    finally:
        part.unlink(missing_ok=True)


def load_state(path):
    """Training state for --resume. Raises InputError."""
    with contextlib.suppress(Exception):                            # torch raises a dozen types here
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] == STATE:
            return state
    raise InputError(f"{path} is no training state of this train.py; leave out --resume to start anew.")


def options_parser():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("latents", nargs="+", metavar="LATENTS", help="latents.npy of embed.py, .npz or .pt")
    parser.add_argument("-o", "--output", default="motion.pt", help="motion model; beside it .state.pt, .csv")
    parser.add_argument("--holdout", metavar="LATENTS", help="codes of unseen video of the actor, to judge "
                        f"by; not given: the last 1/{HELD} of the longest clip, which is then not trained on")
    parser.add_argument("--resume", action="store_true", help="go on from the state beside it, if any")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--epochs", type=number(int, 1), help=f"passes over the windows: {EPOCHS} (sec. "
                          f"3), and if this is not named at least {STEPS} steps (ours)")
    how_long.add_argument("--steps", type=number(int, 1), help="generator steps")
    method = parser.add_argument_group("method (kept by --resume)")
    method.add_argument("--recipe", choices=("ours", "paper"), help="which of the defaults below: ours")
    for name, (ours, kind, text) in METHOD.items():
        what = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        many = {"nargs": len(ours)} if isinstance(ours, list) else {}
        default = f"{ours}, in the paper's recipe {PAPER[name]}" if name in PAPER else ours
        method.add_argument(f"--{name.replace('_', '-')}", help=f"{text}: {default}", **what, **many)
    running = parser.add_argument_group("running")
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    running.add_argument("--threads", type=number(int, 1), help="of the CPU: as many as torch finds")
    running.add_argument("--report-every", type=number(int, 1), default=500, help="also saves; steps: 500")
    return parser


def settle(args, state=None):
    """Fill in what was not named, from the state that is resumed or from the recipe. Raises InputError for
    what contradicts the state, and for what no parser of a single option can see."""
    wanted = {"recipe": args.recipe or "ours", **{name: row[0] for name, row in METHOD.items()}}
    if args.recipe == "paper":
        wanted |= PAPER
    if state:
        wanted = {name: state["options"][name] for name in wanted}
    for name, value in wanted.items():
        given = getattr(args, name)
        if state and given not in (None, value):
            raise InputError(f"this training was begun with --{name.replace('_', '-')} {value}, not {given}; "
                             f"leave the option out to resume, or leave out --resume to start anew.")
        setattr(args, name, value if given is None else given)
    if state and args.epochs is args.steps is None:
        args.epochs, args.steps = state["options"]["epochs"], state["options"]["steps"]

    if later_windows(args) and args.batch < 4:
        raise InputError(f"--batch {args.batch} has less than two windows of each sort; give at least 4.")
    if args.critic == "sparse" and args.window < 3:
        raise InputError("--critic sparse looks at three frames; give --window 3 or more.")
    if hasattr(models.motion_model(args.model), "fit") and (args.steps or args.epochs):
        raise InputError(f"--model {args.model} is computed, not trained; leave out --steps and --epochs.")


def length(args, per_epoch):
    """Generator steps of a training."""
    if args.epochs or args.steps:
        return args.steps or args.epochs * per_epoch
    return EPOCHS * per_epoch if args.recipe == "paper" else max(EPOCHS * per_epoch, STEPS)


def main(args, stop=None):
    """stop: a list, of one who trains in threads, in silence; what is put there ends it as Ctrl-C would."""
    # Check what can be checked before the long work
    output = Path(args.output)
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"{output} cannot be written; choose a file in a writable folder with -o.")
    if output.suffix == ".csv":
        raise InputError(f"{output} would be overwritten by the report; name a .pt file with -o.")
    state_path = output.with_suffix(".state.pt")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = models.pick_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)                               # streams and graphs are on it
        if torch.cuda.current_stream() == torch.cuda.default_stream():          # which cannot be captured
            torch.cuda.set_stream(torch.cuda.Stream())              # kept by a thread for all its trainings
    log = sys.stderr if stop is None else open(os.devnull, "w")     # one of several is silent

    # Options, and the codes to learn from and to judge by
    state = load_state(state_path) if args.resume and state_path.is_file() else None
    settle(args, state)
    T = args.window
    given, meta = load_training_set(args.latents, T, log)
    codes, clips, held = (given, meta["clips"], None) if args.holdout else hold_out(given, meta["clips"], T)
    judges = {"training": (codes, clips)}
    if held:
        judges["holdout"] = given[slice(*held)], [(0, held[1] - held[0])]
    if args.holdout:
        unseen, other = load_training_set([args.holdout], T, log)
        if other["model"] != meta["model"] or unseen.shape[1:] != codes.shape[1:]:
            raise InputError(f"{args.holdout} has codes of another image model than {args.latents[0]}; embed "
                             f"both videos with one.")
        judges["holdout"] = unseen, other["clips"]
    digest = hashlib.sha256(codes.tobytes() + repr(clips).encode()).hexdigest()
    if state and state["digest"] != digest:
        raise InputError(f"{state_path} was trained on other codes than {', '.join(map(str, args.latents))}, "
                         f"or one of both with --holdout; give the same, or start anew without --resume.")
    (N, L, D), pca = codes.shape, fit_pca(codes)
    real = {}                                                       # "training" first: others need its scales
    for name, (x, where) in judges.items():
        x = coordinates(torch.from_numpy(x), pca)                               # (N, 32)
        real[name] = references(x, where, T, real.get("training"))

    def save_model(G, step):
        whole = {"generator": {name: value.cpu() for name, value in G.state_dict().items()}, "step": step,
                 "kind": G.kind, "sizes": G.sizes, "model": meta["model"], "fps": meta["fps"], "pca": pca,
                 "window": T, "holdout": held, "options": vars(args)}
        write_atomically(output, lambda part: torch.save(whole, part))

    # A model that is computed has no steps
    Kind = models.motion_model(args.model)
    if hasattr(Kind, "fit"):
        began = time.perf_counter()
        G = Kind(L, D).fit(coordinates(torch.from_numpy(codes), pca), clips, pca)
        took, rng = time.perf_counter() - began, torch.Generator().manual_seed(args.seed + 1)
        print(f"fitted in {took:.2f} s; {in_words(motion_report(G, real, pca, rng))}", file=log)
        save_model(G, 0)
        print(f"wrote {output}", file=log)
        return

    codes = torch.from_numpy(codes).to(device)                      # (N, L, D), as one tensor on the device
    starts = window_starts(clips, T).to(device)                     # (n,)
    per_epoch = math.ceil(len(starts) / (args.batch * args.critic_steps))
    steps = length(args, per_epoch)

    # Networks, optimisers, and the one random stream of the training
    nets, adam = networks(codes, args, clips, pca)
    rng = torch.Generator().manual_seed(args.seed)
    step, rows = 0, []
    if state:
        for name, optimiser in adam.items():
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state["adam"][name]})
        nets.load_state_dict(state["nets"])
        rng.set_state(state["rng"])
        step, rows = state["step"], state["rows"]
    elif args.resume:
        print(f"{state_path} is not there yet: the training begins.", file=log)
    elif output.exists():
        print(f"{output} exists and is replaced at the first report (--resume would continue it).", file=log)
    if step >= steps:
        print(f"{output} has its {step} steps already; ask for more with --steps or --epochs.", file=log)
        return

    # Saving: the state for --resume
    def save_state():
        moments = {name: optimiser.state_dict()["state"] for name, optimiser in adam.items()}
        whole = {"nets": nets.state_dict(), "adam": moments, "rng": rng.get_state(), "step": step,
                 "rows": rows, "options": vars(args), "digest": digest, "version": STATE}
        write_atomically(state_path, lambda part: torch.save(whole, part))

    def save_rows(path):
        names = list(rows[-1])                                      # resumed with --holdout, it has more
        lines = [names, *([row.get(name, "") for name in names] for row in rows)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")

    # Ctrl-C or a scheduler's SIGTERM ends the step at hand and saves
    if stop is None:
        stop = []
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, lambda *received: stop.append(received))

    # The step, as one CUDA graph where that can be; other models and critics have theirs
    ours = args.model == MotionGenerator.kind and args.critic == "dense"
    way = sys.modules[__name__] if ours else importlib.import_module("baselines.step")
    widths = nets.G.start, nets.G.noise

    def draws(rng):
        return {name: (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
                for name, value in way.draw(rng, step, len(starts), args, widths).items()}

    def advance(drawn):
        torch.set_float32_matmul_precision(MATMUL)
        logged = way.train_step(nets, adam, drawn, codes, starts, args)
        torch.set_float32_matmul_precision("highest")               # for what is measured and saved
        return logged

    if device.type == "cuda":
        advance = graph_of(advance, draws(torch.Generator()), nets, adam)

    # A critic of slope 1 cannot put more between two windows than their distance, about (2 T L D)^(1/2)
    too_far = DIVERGED * math.sqrt(2 * T * L * D)
    judged = args.holdout or (f"{held[1] - held[0]} frames held out" if held else "nothing held out")
    print(f"{N} frames, {len(starts)} windows of {T}, {judged}; codes {L} x {D}; {per_epoch} steps an epoch, "
          f"{steps} steps on {device}", file=log)
    totals = torch.zeros(len(LOGGED), device=device)                # since the last report, or the resume
    since, began = step, time.perf_counter()
    saved_at, stopping = began, False
    with tqdm(total=steps, initial=step, unit="step", mininterval=1.0, file=log) as bar:
        while step < steps and not stopping:
            # Critic, generator, EMA; sums for the log stay on the device
            logged = advance(draws(rng))
            totals += logged
            step += 1
            bar.update()

            # When to stop, report and save
            stopping = bool(stop)
            report = step == steps or stopping or step % args.report_every == 0
            save = report or time.perf_counter() - saved_at > SAVE_SECONDS
            if save:
                distance, weights = abs(logged[0].item()), sum(p.sum() for p in nets.parameters()).item()
                if not math.isfinite(distance + weights) or args.lambda_gp > 0 and distance > too_far:
                    kept = f"{output} is that of step {rows[-1]['step']}" if rows else "no model was saved"
                    raise InputError(f"training diverged before step {step}: {kept}; begin with a lower "
                                     f"--lr.")

            # Report: how far sampled motion is from real motion, with random numbers of its own
            if report:
                count, took = step - since, time.perf_counter() - began
                own = torch.Generator().manual_seed(args.seed + 1)
                reestimate_batchnorm(nets.ema, args, own)
                r = {"step": step, "epoch": round(step / per_epoch, 2),
                     **dict(zip(LOGGED, (totals / count).tolist())),
                     **motion_report(nets.ema, real, pca, own),
                     "steps_per_second": round(count / took, 3)}
                rows.append(r)
                write_atomically(output.with_suffix(".csv"), save_rows)
                save_model(nets.ema, step)
                tqdm.write(f"step {step:6d}  W {r['wasserstein']:8.3f}  phi {math.degrees(r['phi']):4.1f} "
                           f"deg  {in_words(r)}  {count / took:.2f} steps/s", file=log)
                totals.zero_()
                since, began = step, time.perf_counter()

            # The state after the model: a state at the last step means that the model is there
            if save:
                save_state()
                saved_at = time.perf_counter()

    if step < steps:
        raise KeyboardInterrupt(f"stopped at step {step} of {steps} and saved; go on with --resume.")
    print(f"wrote {output} (step {step}) and beside it .state.pt, .csv", file=log)


if __name__ == "__main__":
    parser = options_parser()
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"train.py: {error}\n")
    except KeyboardInterrupt as error:
        parser.exit(130, f"train.py: {str(error) or 'stopped before the first step.'}\n")
