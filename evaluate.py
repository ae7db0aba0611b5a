"""Measure a motion model: how close its videos are to the training video, whether they loop, what transfer keeps.

    python evaluate.py latents.npy motion.pt                           # tables, results.json, results.html; fetches nothing
    python evaluate.py latents.npy motion.pt --fid --fvd               # the paper's table 1; fetches two detectors, 147 MB, once
    python evaluate.py latents.npy motion.pt --inception inception-2015-12-05.pt --i3d i3d_torchscript.pt
    python evaluate.py latents.npy one.pt two.pt three.pt              # trainings of one method: mean and standard deviation
    python evaluate.py latents.npy motion.pt --runs 5                  # the same over draws of samples
    python evaluate.py latents.npy --videos tganv2/ --window 16        # another method's videos under the same protocol
    python evaluate.py latents.npy motion.pt --clips 128 --every 1     # the ACD of the paper, in full

An interrupted evaluation goes on where it was when the same command is given again. Deterministic: the same seed, files and
machine give the same numbers. Shapes: B batch, T frames, L style rows, D style width, d features of a detector; frames
(T, H, W, 3) uint8 RGB; coordinates (T, 32) in the PCA of the training codes; points (T, 68, 2) in pixels.

The first paragraph of a metric's docstring says what it is, its unit, which direction is better and where it comes from; it
is also the footnote of its column.
"""

import argparse
import base64
import bisect
import collections
import concurrent.futures
import csv
import hashlib
import html
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import av
import cv2
import dlib
import numpy as np
import sklearn
import torch
from sklearn.linear_model import Ridge
from tqdm import tqdm

import embed
import train
from models import InputError, cache_folder, fetch, load_image_model, pick_device, sha256_of
from pretrain import faces
from sample import load_motion, sample
from transfer import FORMATS, VideoWriter, move, pictures_at_once, random_actor, render

# Protocols
FID_FRAMES = 8000       # of every set (suppl. 2.2)
LONG_LEAST = 128        # frames of a video in the long set, at least (sec. 4); ours have train.LONG[1] = 400
STYLEGAN_V = 16, 128    # frames of a clip in StyleGAN-V's fvd2048_16f and fvd2048_128f
FOLD = 256              # ours: features held before they are merged into a covariance, which takes long at 2048 x 2048
FVD_LEAST = 10          # frames of a clip, at least, as I3D halves the time again and again
DETECTORS = {           # TorchScript files as their authors publish them, and the option that names a file at hand
    "fid": ("--inception", "inception-2015-12-05.pt", "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
            "inception-2015-12-05.pt", "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
    "fvd": ("--i3d", "i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")}
RUN = 1_000_000         # ours: sample k of run r is `sample.py --seed SEED + r RUN + k`; those of the long set begin at ...
LONG_SEED = 500_000     # ... this k, so that no sample counts twice
# Loops
LOOP_FRAMES = 1500      # length of the samples that are searched for loops: the paper's longest example (sec. 4)
LOOP_SAMPLES = 8        # ours
LOOP_LAG = 25           # ours: shortest lag in frames that counts as a repetition; much below it, any motion resembles itself
LOOPS = 0.3             # ours: a sample loops when it returns to itself, at its best lag, to within this share of the distance
#                         of two random frames of the training video. Exact repetition scores 0, independent frames 1
LENGTH_SAMPLES = 512    # ours: samples behind the curve of distance over length
# Faces
MEASURES = "mouth_area", "mouth_opening", "eye_opening", "yaw"
CROPS = 32              # ours: crops of the source held at a time
JUDGED_SIDE = 256       # ours: px of the shorter side of a frame that dlib judges, at most; its descriptor sees 150 px
STRETCH = 25            # ours: frames within which the reconstruction's baselines are out of order: about a window
WATCHED = 10 * STRETCH  # ours: frames of the training video that are held and saved at once; the face is searched anew in each
# Reader of drawn faces; all of it ours
READER_HEADS = 4000     # pictures it learns from. With 5,500 the held-out R^2 are 0.02 higher than with 2,500
READER_SIDE = 32        # px of the picture that it sees; at 64 no better
READER_RIDGE = 3.0      # weight of the ridge; 10 loses 0.02
READER_HELD_OUT = 300   # heads drawn by pretrain/faces.py that its error is measured on
READER_LEAST = 0.5      # R^2 of a parameter on held-out heads below which it is not read at all
READER_CLIPS = 6, 50    # actors and frames of the drawn clips that show what a perfect transfer would score
# Output and machine
WORKERS = min(8, (os.cpu_count() or 1) // 2)    # ours: one renders for no more than 8
SAVE = 60               # ours: seconds between two saves of an unfinished part
PAGE_SECONDS, PAGE_SIDE = 5, 192        # ours: length of the page's videos and side of their pictures, at most


# ------------------------------------------------------------------------------------------------------------------
# Parts that are kept: of an unfinished evaluation beside its output, of the training video in the cache folder
# ------------------------------------------------------------------------------------------------------------------

def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load_state(path):
    """What save_state wrote, or None where there is nothing whole. Nothing in the file is executed."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:                                                           # absent, of another version, damaged
        return None


def save_state(path, value):
    part = path.with_name(f"{path.name}.part")
    try:
        torch.save(value, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:                                    # torch turns a full disk into the latter
        raise InputError(f"{path} cannot be written ({str(error).splitlines()[0]}); make room there.") from None
    finally:
        part.unlink(missing_ok=True)


class Parts:
    """Finished parts of one evaluation, in a folder beside its output that goes when the evaluation is complete."""

    def __init__(self, target, settings):
        self.folder = target.with_name(f".{target.name}.parts")
        mark = self.folder / digest(settings)
        if not mark.exists():                                                   # left by a command with other settings
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            mark.touch()
        elif any(self.folder.glob("*.pt")):
            print(f"evaluate.py: goes on with what {self.folder} holds of an interrupted evaluation.", file=sys.stderr)

    def load(self, name):
        return load_state(self.folder / f"{name}.pt")

    def get(self, name, compute):
        """compute(), unless it is stored already."""
        value = self.load(name)
        if value is None:
            value = compute()
            save_state(self.folder / f"{name}.pt", value)
        return value

    def steps(self, name, n, step, state, unit):
        """step(k, state) for k from 0 to n - 1; the state is saved on the way. Returns the state."""
        path = self.folder / f"{name}.pt"
        done, state = self.load(name) or (0, state)
        saved = time.time()
        with tqdm(total=n, initial=done, desc=name, unit=unit, mininterval=0.5) as bar:
            for k in range(done, n):
                step(k, state)
                bar.update()
                if time.time() - saved > SAVE or k == n - 1:
                    save_state(path, (k + 1, state))
                    saved = time.time()
        return state


def cached(key, compute):
    """compute(), unless the cache folder has it from an earlier evaluation. key: all that the value depends on."""
    path = cache_folder() / "evaluate" / f"{digest(key)}.pt"
    value = load_state(path)
    if value is None:
        value = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_state(path, value)
        except (InputError, OSError):
            print(f"evaluate.py: {path.parent} cannot be written, so nothing is cached.", file=sys.stderr)
    return value


# ------------------------------------------------------------------------------------------------------------------
# FID and FVD
# ------------------------------------------------------------------------------------------------------------------

def moments():
    """Of features that come one by one: count, mean (d,) and sum of squares about it (d, d), float64; held: not yet in them."""
    return {"n": 0, "mean": None, "squares": None, "held": []}


def update(m, x):
    """Adds features x (B, d) to moments. As exact as all at once, in the memory of one covariance."""
    m["n"] += len(x)
    m["held"].append(torch.as_tensor(x, dtype=torch.float64))
    if sum(map(len, m["held"])) >= FOLD:
        fold(m)


def fold(m):
    """Merges what is held into mean and squares (Chan, Golub and LeVeque 1979)."""
    if not m["held"]:
        return
    x = torch.cat(m["held"])                                                    # (B, d)
    mean, m["held"] = x.mean(0), []
    squares, before = (x - mean).T @ (x - mean), m["n"] - len(x)
    if before:
        away, share = mean - m["mean"], len(x) / m["n"]
        squares += m["squares"] + before * share * torch.outer(away, away)
        mean = m["mean"] + share * away
    m["mean"], m["squares"] = mean, squares


def distance(a, b):
    """Fréchet distance of the Gaussians with two sets' moments, covariances divided by n; NaN where a set is too small."""
    if min(a["n"], b["n"]) < 2:
        return math.nan
    fold(a)
    fold(b)
    (m1, S1), (m2, S2) = ((m["mean"].numpy(), m["squares"].numpy() / m["n"]) for m in (a, b))
    return max(0.0, train.gaussian_frechet(m1, S1, m2, S2))


def fid(a, b):
    """FID: Fréchet distance of Gaussians fitted to Inception-v3's 2048 features of 8000 frames of each set, or of all that
    the training video has. No unit; 0 is best. It sees single frames, not their order. Heusel et al. 2017; paper, table 1,
    with pytorch-fid's weights, here NVIDIA's TorchScript of the same network: the two agree closely, not exactly."""
    return distance(a["fid"], b["fid"])


def fvd(a, b):
    """FVD: Fréchet distance of Gaussians fitted to I3D's 400 logits of clips as long as the training window: 2048 samples of
    that length (short), 16 clips of each of 128 long samples (long), 2048 clips at random offsets of the training video, or
    all that it has. No unit; 0 is best. Unterthiner et al. 2019; paper, table 1, here with StyleGAN-V's TorchScript of I3D,
    so that the paper's absolute values are not to be compared with."""
    return distance(a["fvd"], b["fvd"])


def fvd_of_stylegan_v(a, b, n):
    """fvd2048_16f, fvd2048_128f: FVD of clips of 16 and 128 frames, the first ones of 2048 samples against one clip of each
    training video (here: each shot) at a random offset. No unit; 0 is best. Skorokhodov et al. 2022."""
    return distance(a[f"fvd {n}"], b[f"fvd {n}"])


class Detector:
    """A network whose features FID or FVD compares. kind: "fid" or "fvd"; file: TorchScript; None: the published one is fetched.

    TorchScript is code, but of a small language that runs in an interpreter of its own: of a fetched file the sha256 is
    checked, of a given one it is put on record.
    """

    def __init__(self, kind, file, device):
        option, name, url, self.published = DETECTORS[kind]
        path, wanted = fetch(name, url, self.published, option) if file is None else (Path(file), None)
        self.kind, self.name, self.device, usual = kind, path.name, device, {"fid": "NVIDIA's", "fvd": "StyleGAN-V's"}[kind]
        self.what = f"give {usual} {name} with {option}"
        if not path.is_file():
            raise InputError(f"{path} is no file; {self.what}, or say --{kind} alone and it is fetched.")
        self.sha256 = sha256_of(path)
        if self.sha256 != (wanted or self.sha256):
            raise InputError(f"{path} has sha256 {self.sha256}, not {wanted}; delete it, and it is fetched again.")
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:                                              # torch raises several types here
            raise InputError(f"{path} is no TorchScript file ({type(error).__name__}); {self.what}.") from None
        self.d = self.features(np.zeros((1, 16, 32, 32, 3) if kind == "fvd" else (1, 32, 32, 3), np.uint8)).shape[1]

    @torch.no_grad()
    def features(self, x):
        """Frames (B, H, W, 3) for FID, clips (B, T, H, W, 3) for FVD, uint8 from 0 to 255 -> (B, d). Both networks resize
        (Inception to 299 px, I3D to 224 px) and rescale by themselves."""
        if x.dtype != np.uint8 or x.ndim != (5 if self.kind == "fvd" else 4) or x.shape[-1] != 3:
            raise InputError(f"--{self.kind} got {x.dtype} of shape {x.shape}; give uint8 RGB from 0 to 255.")
        if x.max() == 1 and x.mean() > 0.1:                                     # ours; less: black with a little noise
            raise InputError(f"--{self.kind} got pictures with values from 0 to 1 in uint8; give the range 0 to 255.")
        x = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(self.device)      # (B, 3, H, W) or (B, 3, T, H, W)
        try:
            found = self.network(x, return_features=True) if self.kind == "fid" else \
                self.network(x=x, rescale=True, resize=True, return_features=True)
            if found.ndim != 2 or len(found) != len(x) or not torch.isfinite(found).all():
                raise ValueError(f"features of shape {tuple(found.shape)}, or not finite")
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.name} cannot be used for --{self.kind} ({str(error).strip().splitlines()[-1][:150]}); "
                             f"{self.what}.") from None
        return found.double().cpu().numpy()


def enough(detectors, frames, windows, what, few):
    """Raises InputError where a set has no more different frames or clips than features: its covariance would be singular."""
    for kind, count, unit in (("fid", frames, "frames"), ("fvd", windows, "clips of the window's length")):
        if kind in detectors and count <= detectors[kind].d and not few:
            raise InputError(f"{what}: {count} {unit} are too few for --{kind}, whose {detectors[kind].d} features need at least "
                             f"{detectors[kind].d + 1}; give longer or more video, or --few to compute it all the same, with "
                             f"the count on record.")


def drawn(seed, population, n):
    """n of the numbers below `population`, without repetition, in order; all where there are no more."""
    return np.sort(np.random.RandomState(seed).choice(population, min(n, population), replace=False)).tolist()


def content_hash(path):
    """sha256 of a file, or of a folder's files."""
    return sha256_of(path) if Path(path).is_file() else digest(sorted((str(p.relative_to(path)), sha256_of(p))
                                                                      for p in Path(path).rglob("*") if p.is_file()))


def source_crops(latents, places, size):
    """Yields the crop (size, size, 3) uint8 of every training frame; places: the source files."""
    for number, path in enumerate(places):
        frames = [{**f, "quad": np.array(f["quad"])} for f in latents["frames"] if f.get("source", 0) == number]
        yield from embed.crops(path, frames, size)


def pairs(model, codes, latents, places, start=0):
    """Yields (k, crop, reconstruction), uint8 (size, size, 3), of the training frames from `start` on; places: the source
    files, None where they are not there, and then crop is None."""
    crops = source_crops(latents, places, model.size) if places else itertools.repeat(None, len(codes))
    for batch in embed.in_batches(itertools.islice(enumerate(crops), start, None), CROPS):
        w = torch.from_numpy(codes[batch[0][0]:batch[-1][0] + 1]).to(model.device)                  # (B, L, D)
        for (k, crop), picture in zip(batch, render(model, w, pictures_at_once(model))):
            yield k, crop, picture


def disorders(T, seed):
    """What the baselines do with the frames of a clip: name -> order (T,)."""
    return {"frozen frames": np.zeros(T, int), "shuffled frames": np.random.RandomState(seed).permutation(T),
            "time-reversed": np.arange(T)[::-1]}


def video_statistics(parts, detectors, model, codes, latents, places, window, seed, lengths):
    """Moments of the training video's features: {"original": {"fid", "fvd", "fvd 16", ...}, "W+": ..., and the baselines}.

    fvd: clips of `window` frames inside one shot, train.SHORT of all offsets, or all. fvd N, for N in lengths: one clip of N
    frames of every shot (StyleGAN-V). Baselines, of the crops if the source is there: both halves, and disorders().
    """
    shots, base = latents["clips"], "W+" if places is None else "original"
    offsets = train.window_starts(shots, window).tolist()
    rng = np.random.RandomState(seed)
    starts = {"fvd": {offsets[k] for k in drawn(seed, len(offsets), train.SHORT)}}
    for n in lengths:
        starts[f"fvd {n}"] = {int(a + rng.randint(b - a - n + 1)) for a, b in shots if b - a >= n}
    frames, middle = set(drawn(seed, len(codes), FID_FRAMES)), len(codes) // 2
    spans = {"fvd": window, **{f"fvd {n}": n for n in lengths}}
    names = (["original"] if places else []) + ["W+", "first half", "second half", *disorders(1, 0)]
    state = {name: {key: moments() for key in ("fid", *spans)} for name in names}
    held, stream = collections.deque(maxlen=max(spans.values())), []

    def step(k, state):
        if not stream:                                                          # the first step here: maybe not frame 0
            stream.append(pairs(model, codes, latents, places, max(0, k - held.maxlen + 1)))
        while not held or held[-1][0] < k:
            held.append(next(stream[0]))
        _, crop, picture = held[-1]
        views = {"W+": picture} if crop is None else {"original": crop, "W+": picture}
        if k in frames and "fid" in detectors:
            x = detectors["fid"].features(np.stack(list(views.values())))
            for row, name in zip(x, views):
                update(state[name]["fid"], row[None])
            own = x[:1]
            update(state["first half" if k < middle else "second half"]["fid"], own)
            if k in starts["fvd"]:                                              # a frozen clip shows only its first frame
                update(state["frozen frames"]["fid"], own)
        for key, n in spans.items() if "fvd" in detectors else ():
            if k - n + 1 not in starts[key]:
                continue
            clips = {name: np.stack([h[1 if name == "original" else 2] for h in list(held)[-n:]]) for name in views}
            own = clips[base]
            clips.update({name: own[order] for name, order in disorders(n, [seed, k]).items()})
            for row, name in zip(detectors["fvd"].features(np.stack(list(clips.values()))), clips):
                update(state[name][key], row[None])
                if name == base and (k < middle or k - n + 1 >= middle):        # not the clips astride the middle
                    update(state["first half" if k < middle else "second half"][key], row[None])

    state = parts.steps("training video, detectors", len(codes), step, state, "frame")
    for name in ("shuffled frames", "time-reversed"):                           # the same frames
        state[name]["fid"] = state[base]["fid"]
    for m in (m for row in state.values() for m in row.values()):
        fold(m)
    return state


class Samples:
    """A motion model's samples as videos: sample k is that of `sample.py --seed FIRST + k`."""

    def __init__(self, G, model, first):
        self.G, self.model, self.first = G, model, first

    def length(self, k):
        return math.inf

    def codes(self, k, T):
        return torch.from_numpy(np.concatenate(list(sample(self.G, T, self.first + k))))            # (T, L, D)

    def frames(self, k, wanted):
        """Frames `wanted`, in order, of sample k: (n, size, size, 3)."""
        w = self.codes(k, wanted[-1] + 1)[wanted]
        return render(self.model, w.to(self.model.device), pictures_at_once(self.model))


class Folder:
    """Videos of any method: files, or folders of pictures, in natural order."""

    def __init__(self, path):
        self.path, self.name = Path(path), Path(path).resolve().name
        if not self.path.is_dir():
            raise InputError(f"{path} is no folder; give one with videos (.mp4, ...) or with folders of pictures, one per video.")
        endings = {*FORMATS, ".webm", ".avi", ".gif"}
        found = [p for p in self.path.iterdir() if p.suffix.lower() in endings
                 or p.is_dir() and any(f.suffix.lower() in embed.PICTURES for f in p.iterdir())]
        self.files = sorted(found, key=lambda p: [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", p.name)])
        if not self.files:
            raise InputError(f"{path} holds no videos (.mp4, ...) and no folders of pictures; name another folder with --videos.")
        self.lengths = [sum(1 for _ in embed.read_video(p)) for p in tqdm(self.files, desc="count frames", unit="video")]

    def length(self, k):
        return self.lengths[k]

    def stream(self, k, wanted):
        """Yields frames `wanted`, in order, of video k: (H, W, 3)."""
        chosen = set(wanted)
        for index, frame in enumerate(embed.read_video(self.files[k])):
            if index in chosen:
                yield frame
            if index == wanted[-1]:
                break

    def frames(self, k, wanted):
        return np.stack(list(self.stream(k, wanted)))                           # (n, H, W, 3)


def clip_starts(n, window, per):
    """First frames of up to `per` different clips of `window` frames, evenly spaced in n."""
    return sorted(set(np.linspace(0, n - window, per).astype(int).tolist()))


def set_statistics(parts, name, detectors, source, videos, window, per, seed, lengths=()):
    """Moments of one set's features. videos: [(k, frames used of video k)]; per: clips of `window` frames evenly spaced in each;
    lengths: also its first 16 and 128 frames, of StyleGAN-V's protocol. FID_FRAMES of all the set's frames are drawn."""
    ends = np.cumsum([n for _, n in videos]).tolist()
    chosen = drawn(seed, ends[-1], FID_FRAMES) if "fid" in detectors else []
    state = {key: moments() for key in ("fid", "fvd", *(f"fvd {n}" for n in lengths))}

    def step(j, state):
        k, n = videos[j]
        begin = ends[j] - n
        mine = [f - begin for f in chosen[bisect.bisect_left(chosen, begin):bisect.bisect_left(chosen, ends[j])]]
        clips = [("fvd", s, window) for s in clip_starts(n, window, per)]
        clips += [(f"fvd {m}", 0, m) for m in lengths if m <= source.length(k)]
        clips = clips if "fvd" in detectors else []
        wanted = sorted({*mine, *(f for _, s, m in clips for f in range(s, s + m))})
        if not wanted:
            return
        frames, place = source.frames(k, wanted), {f: i for i, f in enumerate(wanted)}
        for some in embed.in_batches(mine, CROPS):
            update(state["fid"], detectors["fid"].features(frames[[place[f] for f in some]]))
        for key, s, m in clips:
            update(state[key], detectors["fvd"].features(frames[None, place[s]:place[s] + m]))

    return parts.steps(name, len(videos), step, state, "video")


# ------------------------------------------------------------------------------------------------------------------
# Motion, from the codes alone
# ------------------------------------------------------------------------------------------------------------------

def usual_distance(x):
    """Mean distance of two different frames of x (T, d), drawn at random."""
    a, b = np.random.RandomState(0).randint(0, len(x), (2, 20000))
    return np.linalg.norm(x[a] - x[b], axis=1)[a != b].mean()


def loop_score(x, usual=None, shortest=LOOP_LAG):
    """Loop score: how nearly a trajectory (T, d) repeats itself, 0 exactly, about 1 never. Higher is better. For every lag from
    25 frames to T/2 the mean distance of frames that far apart, over the usual distance of two frames; the smallest. It finds
    loops of a steady tempo. Ours: the paper counts loops by eye (sec. 4, gradient angle penalty).

    usual: that of the training video, so that motion which dies down, the simplest loop of all, scores near 0 and not, by
    its last trembling, near 1; None: of x itself. Give x in units in which what is seen counts most: PCA coordinates, not
    whitened. Returns the score and its lag in frames.
    """
    x = np.asarray(x, np.float64)
    T = len(x)
    lags = np.arange(shortest, T // 2 + 1)
    usual = (usual_distance(x) if T > 1 else 0) if usual is None else usual
    if len(lags) == 0 or usual == 0:
        return float("nan"), 0
    scores = [np.linalg.norm(x[lag:] - x[:-lag], axis=1).mean() / usual for lag in lags]
    return float(min(scores)), int(lags[np.argmin(scores)])


def moves(x, usual):
    """Moves: the distance of two random frames of a trajectory (T, d), over that of the training video. No unit; 1 is best,
    near 0 it stands still. Ours."""
    return float(usual_distance(x) / usual)


def code_table(G, meta, codes, clips, seed):
    """Code distances: Fréchet distances of sampled to training codes, in % of what frozen frames score (windows) or a still
    picture (single frames). Lower is better. Windows of PCA coordinates in their 64 principal directions; short: 2048 samples
    of one training window, long: 128 samples of 400 frames, cut into windows (paper, sec. 4 and suppl. 2.2, there on
    pictures). Ours: what stands in for FID and FVD without a download.

    Returns train.py's code_distances, and what a perfect model would score (floor).
    """
    T, pca, rng = meta["window"], {k: v.cpu() for k, v in meta["pca"].items()}, torch.Generator().manual_seed(seed)
    references = train.code_references(train.coordinates(torch.from_numpy(codes), pca), clips, T)
    short = train.sample_coordinates(G, train.SHORT, T, pca, rng)               # (2048, T, 32)
    long = train.sample_coordinates(G, train.LONG[0], max(train.LONG[1], 4 * T), pca, rng)      # (128, 400, 32)
    return {**train.code_distances(references, short, long), "floor": references["floor"], "frozen": references["frozen"],
            "floor_percent": 100 * references["floor"] / references["frozen"],
            "samples_short": train.SHORT, "samples_long": list(long.shape[:2])}


def code_baselines(references):
    """Rows of what code distances are compared with: {row: {column: %}}, of the training video's own windows."""
    frames, windows, T, half = references["frames"], references["windows"], references["window"], len(references["frames"]) // 2
    found = {"perfect model": (references["floor"], math.nan),
             "half against half": (references["halves"], train.frechet(frames[:half], frames[half:]))}
    for name in disorders(T, 0):
        orders = torch.from_numpy(np.stack([disorders(T, k)[name] for k in range(len(windows))]))   # (n, T)
        x = windows.gather(1, orders[..., None].expand(-1, -1, windows.shape[2])) if name != "frozen frames" else \
            frames[:, None].expand(-1, T, -1)                                   # (n, T, 32)
        found[name] = train.code_frechet(windows, x, references["space"]), train.frechet(frames, x.flatten(0, 1))
    return {name: {"codes_short": 100 * window / references["frozen"], "frames_short": 100 * frame / references["still"]}
            for name, (window, frame) in found.items()}


def length_table(G, meta, codes, clips, seed):
    """Window distance (% of frozen frames) of LENGTH_SAMPLES samples at several places of their length, and of as many real
    windows drawn at random, the least that so few can score."""
    T, pca, rng = meta["window"], {k: v.cpu() for k, v in meta["pca"].items()}, torch.Generator().manual_seed(seed)
    references = train.code_references(train.coordinates(torch.from_numpy(codes), pca), clips, T)
    x = train.sample_coordinates(G, LENGTH_SAMPLES, max(train.LONG[1], 4 * T), pca, rng)            # (512, 400, 32)
    starts = np.linspace(0, x.shape[1] - T, train.PER_LONG).astype(int).tolist()
    windows, space, percent = references["windows"], references["space"], 100 / references["frozen"]
    real = windows[np.random.RandomState(seed).randint(0, len(windows), LENGTH_SAMPLES)]
    return {"frames": starts, "percent": [percent * train.code_frechet(windows, x[:, s:s + T], space) for s in starts],
            "least": percent * train.code_frechet(windows, real, space), "samples": LENGTH_SAMPLES}


def folder_coordinates(parts, name, model, folder, pca):
    """PCA coordinates [(t, 32)] of a folder's videos, of train.LONG[1] frames at most, embedded by the image model's encoder."""
    def step(k, state):
        frames = folder.stream(k, range(min(folder.length(k), train.LONG[1])))
        w = torch.cat([model.encode(embed.to_network(batch)).cpu() for batch in embed.in_batches(frames, CROPS)])   # (t, L, D)
        state.append(train.coordinates(w, pca))

    return parts.steps(name, len(folder.files), step, [], "video")


def folder_codes(references, x):
    """code_table's distances of the coordinates [(t, 32)] of any videos; what is too little is left out."""
    T, found = references["window"], {}
    long = [v for v in x if len(v) >= max(T, LONG_LEAST)][:train.LONG[0]]
    sets = {"short": [v[:T] for v in x if len(v) >= T][:train.SHORT],
            "long": train.long_windows(torch.stack([v[:min(map(len, long))] for v in long]), T) if long else []}
    for name, windows in sets.items():
        if len(windows) > train.SPACE:                                          # as many as make a covariance
            windows = torch.stack(list(windows))
            away = train.code_frechet(references["windows"], windows, references["space"])
            frame = train.frechet(references["frames"], windows.flatten(0, 1))
            found[f"{name}_percent"] = 100 * away / references["frozen"]
            found[f"frame_{name}_percent"] = 100 * frame / references["still"]
    return found


def loop_table(G, meta, codes, clips, first=0):
    """Loop scores of LOOP_SAMPLES sampled trajectories, of their second half, as a recurrence may take its time to fall into
    a loop, and of the longest training clip.

    moves: of each sample, near 0 it stands still. first: seed of the first sample.
    """
    pca = {k: v.cpu() for k, v in meta["pca"].items()}

    def coordinates(w):
        return train.coordinates(torch.from_numpy(w), pca).double().numpy()

    start, end = max(clips, key=lambda clip: clip[1] - clip[0])
    video = coordinates(codes[start:end])
    usual, scores, moved = usual_distance(video), [], []
    for k in tqdm(range(LOOP_SAMPLES), desc="loops", unit="sample"):
        x = np.concatenate([coordinates(w) for w in sample(G, LOOP_FRAMES, first + k)])             # (1500, 32)
        scores.append(loop_score(x[LOOP_FRAMES // 2:], usual))
        moved.append(moves(x, usual))
    return {"frames": LOOP_FRAMES, "samples": LOOP_SAMPLES, "threshold": LOOPS, "scores": [s for s, _ in scores],
            "lags": [lag for _, lag in scores], "mean": float(np.mean([s for s, _ in scores])),
            "looping": sum(s < LOOPS for s, _ in scores), "moves": moved, "training_video": loop_score(video)[0]}


def looping(scores):
    """Share of loops in %, of those that have a score."""
    return 100 * mean([math.nan if math.isnan(score) else score < LOOPS for score in scores])


def loop_baselines(video):
    """{row: (score, moves)} of coordinates (T, 32): its halves and its frames in other orders, by the video's own measure."""
    usual, T = usual_distance(video), len(video)
    found = {"training video": video, "its first half": video[:T // 2], "its second half": video[T // 2:],
             **{name: video[order] for name, order in disorders(T, 0).items()}}
    return {name: (loop_score(x, usual)[0], moves(x, usual)) for name, x in found.items() if len(x) > 1}


# ------------------------------------------------------------------------------------------------------------------
# Faces, judged by dlib
# ------------------------------------------------------------------------------------------------------------------

def judged(frame):
    """A frame (H, W, 3) as dlib gets it: with the shorter side JUDGED_SIDE, if it is longer."""
    scale = JUDGED_SIDE / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame


def observe(frames, fps, every, reader=None, first=0):
    """All that dlib sees in the frames (H, W, 3) uint8 of one clip: {"points" (T, 68, 2) in shares of the width, "descriptors"
    (T, 128) of every `every`-th frame, NaN elsewhere and where there is no face, "read" (T, Z) drawn parameters where there is a
    reader}. first: number of the first frame, where the clip is a piece of a longer one."""
    tracker, points, descriptors, read = embed.FaceTracker(fps, 4), [], [], []  # 4 boxes a frame, ours: least noise
    for k, frame in enumerate(frames, first):
        p = tracker.step(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
        descriptors.append(embed.descriptor(frame, p) if p is not None and k % every == 0 else np.full(128, np.nan))
        points.append(np.full((68, 2), np.nan) if p is None else p / frame.shape[1])
        if reader is not None:
            read.append(small(frame) @ reader["weight"].numpy() + reader["bias"].numpy())
    found = {"points": torch.tensor(np.array(points)), "descriptors": torch.tensor(np.array(descriptors))}
    return found if reader is None else {**found, "read": torch.tensor(np.array(read))}


def begin_watching(line):
    """In a watching process: it ends when the one that renders closes its end of the line, be it by its own end."""
    def wait():
        try:
            line.recv()
        except (EOFError, OSError):
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=wait, daemon=True).start()


def watch(path, *how):
    """In a watching process: observe() of the frames in a file, which is removed. As arrays: tensors would come back in shared
    memory and keep a file descriptor each."""
    frames = np.load(path)
    os.remove(path)
    return {name: value.numpy() for name, value in observe(frames, *how).items()}


class Watchers:
    """n processes that observe() clips while this one renders the next; threads would wait for each other, as dlib's landmarks
    and descriptors keep Python's lock. 0: this process does it itself. Within `with` torch leaves them their cores."""

    def __init__(self, n):
        self.n, self.pool, self.line, self.waiting, self.count = n, None, None, collections.deque(), itertools.count()
        self.threads = torch.get_num_threads(), max(1, torch.get_num_threads() - n)

    def observe(self, frames, *how):
        """Begins observe(frames, *how); result() waits for what it returns. No more than n + 1 clips wait, so that memory stays
        the same."""
        frames = np.stack([judged(frame) for frame in frames])
        if self.n == 0:
            done = concurrent.futures.Future()
            done.set_result(observe(frames, *how))
            return done
        if self.pool is None:
            spawn = multiprocessing.get_context("spawn")                        # a fork would inherit torch's and CUDA's threads
            end, self.line = spawn.Pipe(duplex=False)
            self.folder = tempfile.TemporaryDirectory()
            self.pool = concurrent.futures.ProcessPoolExecutor(self.n, spawn, begin_watching, (end,))
        while len(self.waiting) > self.n:
            self.result(self.waiting.popleft())
        path = os.path.join(self.folder.name, f"{next(self.count)}.npy")        # not through the pool's pipe, which clogs it
        try:
            np.save(path, frames)
            self.waiting.append(self.pool.submit(watch, path, *how))
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); make room there, set TMPDIR to another folder, or "
                             f"use --workers 0.") from None
        except concurrent.futures.BrokenExecutor:
            raise self.ended() from None
        return self.waiting[-1]

    def result(self, future):
        try:
            return {name: torch.as_tensor(value) for name, value in future.result().items()}
        except (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError):
            raise self.ended() from None

    def ended(self):
        return InputError("a process that looked for faces was ended, maybe for want of memory; the same command goes on from "
                          "here, with --workers 0 in one process.")

    def __enter__(self):
        torch.set_num_threads(self.threads[1])

    def __exit__(self, *error):
        torch.set_num_threads(self.threads[0])

    def close(self):
        if self.pool is not None:
            self.line.close()                                                   # ends them, also in the middle of a clip
            self.pool.shutdown(cancel_futures=True)
            self.folder.cleanup()


def mouth_area(points):
    """Area inside the outer line of the lips (48 to 59) of points (68, 2), over the squared eye distance."""
    x, y = points[48:60].T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2                     # of a polygon
    return area / (embed.eyes(points)[1] ** 2).sum()


def measured(clip):
    """MEASURES of a clip's points: (T, 4)."""
    return np.array([[np.nan] * 4 if np.isnan(p[0, 0]) else [mouth_area(p), *(embed.face_measures(p)[m] for m in MEASURES[1:])]
                     for p in clip["points"].numpy()])


def descriptors_of(clip):
    """The descriptors (n, 128) of a clip that there are."""
    descriptors = clip["descriptors"].numpy()
    return descriptors[np.isfinite(descriptors[:, 0])]


def correlation(a, b):
    """Correlation of mouth area, mouth opening, eye opening, yaw: Pearson's r, frame by frame, between a clip and the one whose
    motion it performs, by dlib's landmarks, mean over the clips. From -1 to 1, higher is better. That of the lips' area is the
    LiA of Manandhar and Genovesio 2023 (One-Style), there between the videos of one motion; the others are ours."""
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    return [pearson(a[both, m], b[both, m]) for m in range(a.shape[1])]


def pearson(x, y):
    """r of two series (T,); NaN where one of them stands still."""
    still = len(x) < 3 or min(x.std(), y.std()) < 1e-9
    return math.nan if still else float(np.corrcoef(x, y)[0, 1])


def acd(descriptors):
    """ACD, average content distance: mean L2 distance of dlib's face descriptors over all pairs of a clip's frames, mean over
    the clips. In the descriptor's own unit: 0 between equal pictures, below 0.6 between pictures of one person (dlib). Lower is
    better, but a face that stands still wins: see speed. Tulyakov et al. 2018; paper, sec. 4."""
    if len(descriptors) < 2:
        return float("nan")
    rows, columns = np.triu_indices(len(descriptors), 1)
    return float(np.linalg.norm(descriptors[rows] - descriptors[columns], axis=1).mean())


def similarity(descriptors):
    """Similarity: mean cosine similarity of the face descriptors of a clip's first frame and of each later one, mean over the
    clips. 1 is best. The ArcFace column of Manandhar and Genovesio 2023, here with dlib's descriptor, so not to be compared with
    theirs."""
    if len(descriptors) < 2:
        return float("nan")
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    return float((unit[1:] @ unit[0]).mean())


def speed(points, fps):
    """Speed: mean movement of the 68 landmarks from frame to frame, in eye distances per second. As much as the real video is
    best; none at all makes a good ACD. It holds the landmarks' trembling. Ours."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=2).mean(1)             # (T - 1,)
    eyes = np.linalg.norm(embed.eyes(points)[1], axis=1)
    return mean(steps / ((eyes[1:] + eyes[:-1]) / 2)) * fps


def found(points):
    """Found: share of the frames in which dlib finds a face; what is not found is not measured. 1 is best."""
    return float(np.isfinite(points[:, 0, 0]).mean())


def mean(values):
    """Mean of what is no NaN."""
    values = np.asarray(values, np.float64)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan


def face_values(clip, fps, own=None, reader=None):
    """All that is measured on a clip that observe() saw; own: the clip whose motion it performs."""
    points, described = clip["points"].numpy(), descriptors_of(clip)
    values = {"acd": acd(described), "similarity": similarity(described), "speed": speed(points, fps), "found": found(points)}
    if own is not None:
        values.update(zip(MEASURES, correlation(measured(clip), measured(own))))
    if reader is not None:
        values["drift"] = drift(clip["read"].numpy(), reader)
        if own is not None:
            values["motion_r"], values["motion_r2"] = motion_kept(clip["read"].numpy(), own["read"].numpy(), reader)
    return values


def averaged(rows):
    """Means over dicts of values, NaN left out."""
    return {name: mean([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def video_rows(video, shot, fps, T, n, every, reader):
    """Rows of the training video: up to n clips of T frames, evenly spaced in one shot (start, end), beside themselves in other
    orders and beside the video's other half. video: what observe_video found."""
    def cut(x, s, t):
        return {name: value[s:s + t] for name, value in x.items()}

    real, (start, end) = video["crops"] or video["pictures"], shot
    start = min(-(-start // every) * every, max(start, end - 4))                # descriptors lie on multiples of `every`
    T, half = min(T, end - start), (end - start) // 2 // every * every
    starts = [start + every * k for k in evenly(0, (end - start - T) // every, n)]
    clips = [cut(real, s, T) for s in starts]
    rows = {"training video": averaged([face_values(clip, fps, clip, reader) for clip in clips])}
    if video["crops"]:
        rows["its W+ reconstruction"] = averaged([face_values(cut(video["pictures"], s, T), fps, clip, reader)
                                                  for s, clip in zip(starts, clips)])
    against, t = [], min(T, half)
    for s in [start + every * k for k in evenly(0, (half - t) // every, n)] if half else []:
        a, b = cut(real, s, t), cut(real, s + half, t)
        x, y = descriptors_of(a), descriptors_of(b)
        both = len(x) and len(y)
        against.append({**face_values(b, fps, a, reader),
                        "acd": float(np.linalg.norm(x[:, None] - y[None], axis=2).mean()) if both else math.nan,
                        "similarity": similarity(np.concatenate([x[:1], y])) if both else math.nan})
    rows["half against half"] = averaged(against)
    for name in disorders(1, 0):
        rows[name] = averaged([face_values({key: value[disorders(T, k)[name].copy()] for key, value in clip.items()}, fps, clip,
                                           reader) for k, clip in enumerate(clips)])
    return rows, len(clips)


def evenly(first, last, n):
    """Up to n whole numbers evenly spaced from first to last."""
    return list(dict.fromkeys(np.linspace(first, max(first, last), n).astype(int).tolist()))


# ------------------------------------------------------------------------------------------------------------------
# Drawn faces: the parameters that pretrain/faces.py drew are the truth, read back from pictures
# ------------------------------------------------------------------------------------------------------------------

def why_no_truth(model):
    """None, or why the parameters of this image model's faces are not known."""
    if not model.has_actors or model.encoder is None:
        return f"the image model {model.name} has no {'encoder; name one with --encoder' if model.has_actors else 'other actors'}"
    if not model.name.startswith("faces") or model.Z != faces.Z:
        return f"the faces of the image model {model.name} are not drawn by pretrain/faces.py, so nothing is known of them"
    return None


def small(frame):
    return cv2.resize(frame, (READER_SIDE, READER_SIDE), interpolation=cv2.INTER_AREA).ravel() / 255.0      # (3072,)


def fit_reader(model):
    """R2: share of a parameter's variance among unseen heads that is read back from their pictures; error: root mean square,
    parameters run from -1 to 1. Only what has an R2 of 0.5 or more is used. Ours: ridge regression on pictures of 32 px.

    It reads pixels: a linear function of codes would find every motion kept by the offset trick, whatever it looks like. It
    learns from pictures of the generator, which was taught G(M(z)) = draw(params(z)); its error is that on heads that faces.py
    draws, encoded and rendered again, as the actors are. The ceiling is what a perfect transfer would score: drawn actors
    performing one drawn motion, encoded and rendered.
    """
    def rendered(pictures):
        return render(model, model.encode(embed.to_network(pictures)), pictures_at_once(model))

    x, y, rng = [], [], np.random.RandomState(0)
    for start in tqdm(range(0, READER_HEADS, 100), desc="reader, 100 heads", unit="step"):
        z = rng.standard_normal((min(100, READER_HEADS - start), faces.Z))
        x += [small(p) for p in render(model, model.map(torch.from_numpy(z).float()), pictures_at_once(model))]
        y.append(faces.params(z))
    ridge = Ridge(READER_RIDGE, solver="cholesky").fit(np.array(x), np.concatenate(y).astype(np.float64))
    weight, bias = ridge.coef_.T, ridge.intercept_                              # (3072, Z), (Z,)
    truth, read = [], []
    for _ in tqdm(range(0, READER_HELD_OUT, 20), desc="reader, 20 held out", unit="step"):
        p = faces.params(rng.standard_normal((20, faces.Z)))
        truth.append(p)
        read += [small(frame) @ weight + bias for frame in rendered([faces.draw(q, model.size) for q in p])]
    truth, read = np.concatenate(truth).astype(np.float64), np.array(read)
    r2 = 1 - ((truth - read) ** 2).mean(0) / truth.var(0)
    reader = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias), "r2": torch.from_numpy(r2),
              "spread": torch.from_numpy(truth.std(0)), "error": torch.from_numpy(np.sqrt(((truth - read) ** 2).mean(0)))}
    n, T = READER_CLIPS
    motion, _ = faces.talk(8 * T, 25, 1)
    clips, first = [], len(faces.IDENTITY)
    for k in tqdm(range(n), desc="reader, clips", unit="clip"):
        p = np.repeat(faces.actor(100 + k, 1.0)[None], T, 0)
        p[:, first:first + motion.shape[1]] = motion[::8]
        clips.append(np.stack([small(f) for f in rendered([faces.draw(q, model.size) for q in p])]) @ weight + bias)
    kept = [motion_kept(clip, clips[0], reader) for clip in clips[1:]]
    reader["ceiling"] = {"drift": mean([drift(clip, reader) for clip in clips]), "motion_r": mean([k[0] for k in kept]),
                         "motion_r2": mean([k[1] for k in kept])}
    return reader


def readable(reader, kind):
    """Numbers of the parameters of a kind (faces.IDENTITY or faces.MOTION) that the reader can read."""
    return [k for k, name in enumerate(faces.NAMES) if name in kind and reader["r2"][k] >= READER_LEAST]


def drift(read, reader):
    """Identity drift: standard deviation over a clip of the identity parameters read from its frames, root mean square over the
    parameters, in % of their standard deviation among heads. 0 is best; the reader's own part in it is that of the ceiling.
    Ours; possible because the faces are drawn."""
    k = readable(reader, faces.IDENTITY)
    return 100 * float(np.sqrt(np.mean((read[:, k].std(0) / reader["spread"].numpy()[k]) ** 2))) if k else math.nan


def motion_kept(read, own, reader):
    """Motion kept, r and R2: correlation, and 1 - squared error over variance (means removed, so that the size of the movement
    counts, too), between the motion parameters read from an actor's frames and from the training actor's in the same motion;
    mean over parameters and clips. 1 is best. Ours; possible because the faces are drawn."""
    a, b = (x[:, readable(reader, faces.MOTION)] for x in (read, own))
    a, b = a - a.mean(0), b - b.mean(0)
    return mean([pearson(x, y) for x, y in zip(a.T, b.T)]), mean(1 - ((a - b) ** 2).sum(0) / ((b ** 2).sum(0) + 1e-12))


def raw_actor(model, seed):
    """Code (L, D) of random_actor's person as the mapping network gives it: not rendered, not embedded."""
    z = np.random.RandomState(seed).standard_normal((1, model.Z))
    return model.map(torch.from_numpy(z).float())[0]


ROWS = {"offset trick": ("offset", random_actor), "naive shift": ("naive", random_actor),       # paper, sec. 3 and Fig. 4
        "offset trick, not re-embedded": ("offset", raw_actor)}


def performances(samples, model, pca, k, T, actors):
    """Yields (row, frames (T, size, size, 3)): sample k by the training actor and, with `actors`, by random actor k in every way
    of ROWS."""
    batch, w = pictures_at_once(model), samples.codes(k, T).to(model.device)    # (T, L, D)
    yield "sampled", render(model, w, batch)
    for name, (mode, actor) in ROWS.items() if actors else ():
        yield name, render(model, move(w, actor(model, k), pca, w[0], mode), batch)


# ------------------------------------------------------------------------------------------------------------------
# The training video itself
# ------------------------------------------------------------------------------------------------------------------

def source_files(latents_path, sidecar, video):
    """Files of the training video, None where they are not: as latents.json names them, or video in their place."""
    named = (sidecar or {}).get("source") or []
    named = [named] if isinstance(named, str) else named
    if video and (sidecar is None or len(named) > 1):
        why = "there is no .json file with the crops beside it" if sidecar is None else f"it is of {len(named)} videos"
        raise InputError(f"--video {video} cannot be used with {latents_path}: {why}; leave --video out.")
    if video and not Path(video).exists():
        raise InputError(f"{video} does not exist; name the training video with --video.")
    places = [next((p for p in (Path(s), Path(latents_path).parent / s, Path(__file__).parent / s) if p.exists()), None)
              for s in ([video] if video else named)]
    return None if not places or None in places else [Path(p) for p in places]


def stretches(T):
    """disorders() within stretches of STRETCH frames: name -> order (T,)."""
    cut = [(s, min(STRETCH, T - s)) for s in range(0, T, STRETCH)]
    return {name: np.concatenate([s + disorders(m, s)[name] for s, m in cut]) for name in disorders(1, 0)}


def observe_video(parts, watchers, model, codes, latents, places, every, reader):
    """observe() of the training video: {"crops" (None where the source is not there), "pictures" (the reconstructions), "psnr":
    {row: (n,)}}; WATCHED frames at a time, so that memory stays the same and an interrupted pass goes on."""
    n, half, orders, streams = len(codes), len(codes) // 2, stretches(len(codes)), []

    def looks(start):
        """Yields of each stretch from frame `start` on: {"pictures", "crops"}, as dlib gets them, and {row: [PSNR]}."""
        later = itertools.islice(source_crops(latents, places, model.size), start + half, None) if places else ()
        for stretch in embed.in_batches(pairs(model, codes, latents, places, start), STRETCH):
            first, crops, pictures = stretch[0][0], [p[1] for p in stretch], [p[2] for p in stretch]
            scores, views = {}, {"pictures": list(map(judged, pictures))}
            if places:
                views["crops"] = list(map(judged, crops))
                scores = {"W+ reconstruction": list(map(embed.psnr, crops, pictures)),
                          "half against half": [embed.psnr(a, b) for a, b in zip(crops, itertools.islice(later, len(crops)))]}
                for name, order in orders.items():
                    here = order[first:first + len(crops)] - first              # a frame against itself would be infinite
                    scores[name] = [embed.psnr(crops[j], crops[k]) for k, j in enumerate(here) if j != k]
            yield views, scores

    def step(piece, state):
        first = piece * WATCHED
        if not streams:                                                         # the first step here: maybe not frame 0
            streams.append(embed.prefetch(looks(first), WATCHED // STRETCH))    # renders the next piece meanwhile
        views, scores = zip(*itertools.islice(streams[0], WATCHED // STRETCH))
        begun = {name: watchers.observe(sum((v[name] for v in views), []), latents["fps"], every, reader, first)
                 for name in views[0]}
        state["psnr"].append({name: torch.tensor(sum((s[name] for s in scores), []), dtype=torch.float64) for name in scores[0]})
        for name, future in begun.items():
            state[name].append(watchers.result(future))

    with watchers:
        state = parts.steps("training video", -(-n // WATCHED), step, {"pictures": [], "crops": [], "psnr": []}, "piece")
    return {name: {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]} if pieces else None
            for name, pieces in state.items()}                                  # no pieces of crops without their source


def reconstruction_rows(video):
    """PSNR: of the rendered codes against the crops of the source, in dB; higher is better. How much of the video the codes hold;
    the baselines are the crops themselves, half the video later and in another order within each second. Ours."""
    crops, pictures = measured(video["crops"]), measured(video["pictures"])     # (N, 4)
    half = len(crops) // 2
    compared = {"W+ reconstruction": (pictures, crops), "half against half": (crops[half:2 * half], crops[:half]),
                **{name: (crops[order], crops) for name, order in stretches(len(crops)).items()}}
    return {name: {"psnr": float(video["psnr"][name].mean()), "psnr_worst": float(video["psnr"][name].min()),
                   **dict(zip(MEASURES, correlation(*both)))} for name, both in compared.items()}


# ------------------------------------------------------------------------------------------------------------------
# Report
# ------------------------------------------------------------------------------------------------------------------

COLUMNS = {     # heading, digits, function whose docstring explains it
    "fid_short": ("FID short", 1, fid), "fid_long": ("FID long", 1, fid),
    "fvd_short": ("FVD short", 1, fvd), "fvd_long": ("FVD long", 1, fvd),
    "codes_short": ("codes short", 2, code_table), "codes_long": ("codes long", 2, code_table),
    "frames_short": ("frames short", 2, code_table), "frames_long": ("frames long", 2, code_table),
    "fvd_16": ("fvd2048_16f ↓", 1, fvd_of_stylegan_v), "fvd_128": ("fvd2048_128f ↓", 1, fvd_of_stylegan_v),
    "loop": ("score ↑", 3, loop_score), "loop_worst": ("worst ↑", 3, loop_score),
    "looping": ("looping, % ↓", 0, loop_score), "moves": ("moves, 1 is best", 2, moves),
    "acd": ("ACD ↓", 3, acd), "similarity": ("similarity ↑", 3, similarity),
    "mouth_area": ("mouth area r ↑", 3, correlation), "mouth_opening": ("mouth r ↑", 3, correlation),
    "eye_opening": ("eyes r ↑", 3, correlation), "yaw": ("yaw r ↑", 3, correlation),
    "speed": ("speed", 2, speed), "found": ("found ↑", 3, found),
    "drift": ("identity drift, % ↓", 1, drift), "motion_r": ("motion kept, r ↑", 3, motion_kept),
    "motion_r2": ("motion kept, R2 ↑", 3, motion_kept),
    "r2": ("R2 ↑", 2, fit_reader), "error": ("error ↓", 2, fit_reader),
    "psnr": ("PSNR, dB ↑", 2, reconstruction_rows), "psnr_worst": ("worst ↑", 2, reconstruction_rows)}
TABLES = {
    "distances": ("Fréchet distances to the training video (↓), as in the paper's table 1",
                  ("fid_short", "fid_long", "fvd_short", "fvd_long", "codes_short", "codes_long", "frames_short", "frames_long")),
    "stylegan_v": ("FVD by StyleGAN-V's protocol", ("fvd_16", "fvd_128")),
    "loops": ("Loops", ("loop", "loop_worst", "looping", "moves")),
    "faces": ("Faces, judged by dlib", ("acd", "similarity", *MEASURES, "speed", "found")),
    "truth": ("Transfer against the truth: parameters of drawn faces, read from pictures", ("drift", "motion_r", "motion_r2")),
    "reader": ("The reader of drawn faces, on heads that it has not seen: what it can read", ("r2", "error")),
    "reconstruction": ("Reconstruction of the training video", ("psnr", "psnr_worst", *MEASURES))}


class Tables:
    """Values by table, row (name, what it is compared with) and column: a list, one value per run."""

    def __init__(self):
        self.rows = {name: {} for name in TABLES}

    def add(self, table, row, values, against=""):
        kept = self.rows[table].setdefault((row, against), {})
        for column in TABLES[table][1]:
            if values.get(column) is not None and not math.isnan(values[column]):
                kept.setdefault(column, []).append(float(values[column]))

    def filled(self):
        """{table: (columns, rows)}: of those that have values."""
        found = {}
        for name, rows in self.rows.items():
            rows = {row: values for row, values in rows.items() if values}
            if rows:
                found[name] = TABLES[name][1], rows
        return found

    def summary(self):
        """For JSON: mean and standard deviation (n - 1) over the runs, with the values themselves."""
        return {name: [{"row": row, "against": against, **{
            c: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)) if len(v) > 1 else None, "values": v}
            for c, v in values.items()}} for (row, against), values in rows.items()] for name, (_, rows) in self.filled().items()}


def cell(values, digits):
    """One number, or mean ± standard deviation."""
    if not values:
        return "-"
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def grid_of(columns, rows):
    """Head and cells of a table as text."""
    against = any(other for _, other in rows)
    head = ["", *(["reference"] if against else []), *(COLUMNS[c][0] for c in columns)]
    return [head] + [[name, *([other] if against else []), *(cell(values.get(c), COLUMNS[c][1]) for c in columns)]
                     for (name, other), values in rows.items()]


def footnotes(columns):
    """First paragraphs of the docstrings behind the columns, each once."""
    functions = dict.fromkeys(COLUMNS[c][2] for c in columns if COLUMNS[c][2])
    return [" ".join(f.__doc__.split("\n\n")[0].split()) for f in functions]


def report(tables, notes):
    """All tables as text, each with its footnotes, but none twice."""
    parts, said = [], set()
    for name, (columns, rows) in tables.filled().items():
        cells, below = grid_of(columns, rows), [*notes.get(name, ()), *(n for n in footnotes(columns) if n not in said)]
        said.update(below)
        left = 1 + (cells[0][1] == "reference")                                 # columns of words
        widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
        lines = ["  ".join(c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths))).rstrip()
                 for row in cells]
        parts.append("\n".join([TABLES[name][0], "  " + lines[0], "  " + "-" * (sum(widths) + 2 * len(widths) - 2)]
                               + ["  " + line for line in lines[1:]]
                               + [textwrap.fill(note, 126, initial_indent="  * ", subsequent_indent="    ") for note in below]))
    return "\n\n".join(parts)


COLOURS = "#1f77b4", "#d95f02", "#2a9d5c", "#9467bd", "#666666"


def plot(title, x_label, curves, log=False):
    """Curves [(label, xs, ys)] as an SVG picture in text; the dashed ones have labels that end in *."""
    W, H, left, top, bottom = 560, 300, 58, 34, 44
    curves = [(label, *zip(*[(x, y) for x, y in zip(xs, ys) if math.isfinite(y) and (y > 0 or not log)]))
              for label, xs, ys in curves if any(math.isfinite(y) and (y > 0 or not log) for y in ys)]
    if not curves:
        return ""
    scale = math.log10 if log else float
    xs, ys = ([v for curve in curves for v in curve[axis]] for axis in (1, 2))
    x0, x1, y0, y1 = min(xs), max(xs), min(map(scale, ys)), max(map(scale, ys))
    x1, y0, y1 = max(x1, x0 + 1e-9), y0 - 0.04 * (y1 - y0) - 1e-9, y1 + 0.04 * (y1 - y0) + 1e-9

    def at(x, y):
        return left + (x - x0) / (x1 - x0) * (W - left - 12), H - bottom - (scale(y) - y0) / (y1 - y0) * (H - top - bottom)

    def ticks(lo, hi):
        step = next(s for s in (f * 10.0 ** e for e in range(-9, 10) for f in (1, 2, 5)) if (hi - lo) / s <= 6)
        return [round(k * step, 9) for k in range(math.ceil(lo / step), math.floor(hi / step) + 1)]

    marks = [f'<text x="{at(x, ys[0])[0]:.1f}" y="{H - bottom + 16}" text-anchor="middle">{x:g}</text>' for x in ticks(x0, x1)]
    for y in [10 ** t for t in np.linspace(y0, y1, 5)] if log else ticks(y0, y1):
        height = at(xs[0], y)[1]
        marks.append(f'<line x1="{left}" x2="{W - 12}" y1="{height:.1f}" y2="{height:.1f}" class="grid"/>'
                     f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for k, (label, xs, ys) in enumerate(curves):
        colour, dash = COLOURS[k % len(COLOURS)], ' stroke-dasharray="5 4"' if label.endswith("*") else ""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, xs, ys))
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
                     f'<text x="{left + 8 + 120 * (k % 4)}" y="{top + 12 + 14 * (k // 4)}" fill="{colour}">'
                     f'{html.escape(label.rstrip("*"))}</text>')
    return (f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{html.escape(title)}"><text x="{left}" y="18" class="title">'
            f'{html.escape(title)}</text>{"".join(marks)}<text x="{(W + left) / 2}" y="{H - 8}" text-anchor="middle">'
            f'{html.escape(x_label)}</text></svg>')


def training_plots(path):
    """What train.py wrote to motion.csv beside the model, as plots; none where it is not there."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        steps = [row["step"] for row in rows]
        return [plot("Losses of the training", "generator steps", [
            (label, steps, [row[name] for row in rows]) for name, label in (
                ("wasserstein", "C(real) - C(fake)"), ("gp", "gradient penalty"), ("generator", "-C(fake)"))]),
            plot("Distance of windows in the training, % of frozen frames", "generator steps", [
                (name, steps, [row[f"{name}_percent"] for row in rows]) for name in ("short", "long")], log=True)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def embedded_video(frames, fps):
    """Frames (H, W, 3), no wider than they should be -> an H.264 file in a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, fps, crf=23) as video:
            for frame in frames:
                video.write(frame)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def page_size(frames):
    """(T, H, W, 3) -> (T, h, h, 3), at most PAGE_SIDE and even."""
    side = min(PAGE_SIDE, frames.shape[1]) // 2 * 2
    return np.stack([cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in frames])


def side_by_side(clips):
    """[(T, h, h, 3), ...] -> (T, h, w, 3)"""
    return np.concatenate([page_size(clip) for clip in clips], 2)


def page(tables, notes, settings, plots, videos):
    """The whole report as one HTML page that needs nothing else. videos: [(caption, data URI)]."""
    parts = []
    for name, (columns, rows) in tables.filled().items():
        head, *body = grid_of(columns, rows)
        lines = ["<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<{'th' if k == 0 else 'td'}>{html.escape(c)}</{'th' if k == 0 else 'td'}>"
                                   for k, c in enumerate(row)) + "</tr>" for row in body]
        parts.append(f"<h2>{html.escape(TABLES[name][0])}</h2><div class=\"wide\"><table>{''.join(lines)}</table></div><ul>"
                     + "".join(f"<li>{html.escape(note)}</li>" for note in [*notes.get(name, ()), *footnotes(columns)]) + "</ul>")
    shown = "".join(f'<figure><video src="{uri}" controls loop muted autoplay playsinline></video><figcaption>'
                    f'{html.escape(caption)}</figcaption></figure>' for caption, uri in videos)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>StyleVideoGAN: evaluation</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 1.5em auto; max-width: 1180px; padding: 0 1em }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.05em; margin: 1.6em 0 0.4em }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92em }}
th, td {{ padding: 0.2em 0.7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }}
th:first-child {{ text-align: left }} tr:first-child th {{ border-bottom: 2px solid #888 }} tr > th {{ font-weight: 600 }}
ul {{ color: #555; font-size: 0.85em; margin: 0.5em 0 0; padding-left: 1.2em }}
.row {{ display: flex; flex-wrap: wrap; gap: 1em }} figure {{ margin: 0 }} figcaption {{ font-size: 0.85em; color: #555 }}
video {{ display: block; height: 190px; max-width: 100% }}
svg {{ width: 560px; max-width: 100%; font: 11px system-ui, sans-serif; fill: #444 }}
svg .grid {{ stroke: #e4e4e4 }} svg .title {{ font-size: 13px; font-weight: 600 }} pre {{ overflow-x: auto; font-size: 0.8em }}
</style></head><body><h1>StyleVideoGAN: evaluation</h1>
<div class="row">{shown}</div>
{"".join(parts)}
<h2>Plots</h2><div class="row">{"".join(plots)}</div>
<h2>Settings</h2><details><summary>everything that the numbers depend on</summary>
<pre>{html.escape(json.dumps(settings, indent=1))}</pre></details>
</body></html>
"""


# ------------------------------------------------------------------------------------------------------------------
# Main
# ------------------------------------------------------------------------------------------------------------------

def check(args):
    """Outputs, after a look at the options. Raises InputError."""
    json_path = Path(args.json)
    html_path = None if args.html == "none" else Path(args.html or json_path.with_suffix(".html"))
    for path in filter(None, (json_path, html_path)):
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written; name another file with {'--json' if path == json_path else '--html'}.")
    if html_path == json_path:
        raise InputError(f"{json_path} is named for both outputs; give --html another name.")
    if not args.motion and not args.videos:
        raise InputError("nothing to measure: name a motion model after LATENTS, or a folder of videos with --videos.")
    if args.clips < 0 or args.frames < 4 or args.every < 1 or args.runs < 1 or args.workers < 0:
        raise InputError(f"--clips {args.clips} --frames {args.frames} --every {args.every} --runs {args.runs} --workers "
                         f"{args.workers}: at least 0, 4, 1, 1 and 0.")
    args.every = min(args.every, args.frames // 2)                              # two descriptors at least
    if not 0 <= args.seed < 2 ** 32 - RUN * args.runs:
        raise InputError(f"--seed {args.seed}: a seed is a whole number from 0 to {2 ** 32 - RUN * args.runs - 1}.")
    return json_path, html_path


def load_inputs(args, device):
    """What the command names, checked against each other: codes (N, L, D), latents, [(G, meta)], image model."""
    codes, latents = train.load_latents(args.latents)
    sidecar = Path(args.latents).with_suffix(".json")
    latents["frames"] = json.loads(sidecar.read_text(encoding="utf-8"))["frames"] if sidecar.is_file() else None
    motions = [load_motion(path, device) for path in args.motion]
    for path, (G, meta) in zip(args.motion, motions):
        if codes.shape[1:] != (G.L, G.D):
            raise InputError(f"{args.latents} has codes of {codes.shape[1]} x {codes.shape[2]}, {path} makes {G.L} x {G.D}: give "
                             f"the codes that the motion model was trained on.")
        if None not in (latents["model"]["sha256"], meta["model"]["sha256"]) \
                and latents["model"]["sha256"] != meta["model"]["sha256"]:
            raise InputError(f"{args.latents} was embedded with the image model {latents['model']['name']}, {path} was trained "
                             f"on codes of {meta['model']['name']}: give files that belong together.")
        if meta["window"] != motions[0][1]["window"]:
            raise InputError(f"{path} was trained on windows of {meta['window']} frames, {args.motion[0]} on "
                             f"{motions[0][1]['window']}; give trainings of one method.")
    recorded = motions[0][1]["model"] if motions and motions[0][1]["model"]["name"] else latents["model"]
    if not (args.model or recorded["name"]):
        raise InputError(f"{args.latents} does not say which image model its codes are of; name it with --model.")
    model = load_image_model(args.model or recorded["name"], args.encoder, device)
    if (model.L, model.D) != codes.shape[1:] or recorded["sha256"] not in (None, model.sha256):
        raise InputError(f"{(args.motion or [args.latents])[0]} belongs to the image model {recorded['name']}, not to "
                         f"{model.name}; name the right one with --model.")
    if not motions and len(codes) <= train.COMPONENTS:
        raise InputError(f"{args.latents}: {len(codes)} frames; the PCA of the codes needs at least {train.COMPONENTS + 1}.")
    return codes, latents, motions, model


class Evaluation:
    """One run of this script: what it compares, and the tables that its methods fill one after the other."""

    def __init__(self, args, json_path):
        self.args, self.notes, self.tables, self.runs = args, {}, Tables(), []
        device = pick_device(args.device)
        self.codes, self.latents, self.motions, self.model = load_inputs(args, device)
        self.shots, self.fps = self.latents["clips"], self.latents["fps"]
        self.shot = max(self.shots, key=lambda clip: clip[1] - clip[0])         # (start, end) of the longest
        self.window = args.window or (self.motions[0][1]["window"] if self.motions else 25)     # 25: the paper's (sec. 3)
        self.windows = len(train.window_starts(self.shots, self.window)) if self.window > 1 else 0      # clips in the video
        if self.windows < 2:
            raise InputError(f"{args.latents} has no clip longer than the window, {self.window} frames; give the codes that the "
                             f"motion model was trained on, or another --window.")
        self.longest = max(train.LONG[1], 4 * self.window)                      # frames of a video of the long set, at most
        self.places = source_files(args.latents, self.latents["frames"] and self.latents, args.video)
        if self.places is None:
            print("evaluate.py: the training video is not where latents.json says, so the rendered codes stand for it; name it "
                  "with --video.", file=sys.stderr)
        chosen = [("fid", args.inception, args.fid), ("fvd", args.i3d, args.fvd)]
        self.detectors = {kind: Detector(kind, file, device) for kind, file, wanted in chosen if file or wanted}
        enough(self.detectors, len(self.codes), self.windows, args.latents, args.few)
        if "fvd" in self.detectors and self.window < FVD_LEAST:
            raise InputError(f"--window {self.window}: I3D needs clips of {FVD_LEAST} frames or more.")
        self.folders = [self.chosen(Folder(path)) for path in args.videos]
        names = [folder.name for folder, _, _ in self.folders] + ["sampled", *ROWS, "half against half", *disorders(1, 0)]
        for folder, _, _ in self.folders:                                       # rows of one name would be taken for runs
            if names.count(folder.name) > 1:
                folder.name = str(folder.path.resolve())
        self.real_clips = {n: sum(end - start >= n for start, end in self.shots) for n in STYLEGAN_V}
        self.lengths = tuple(n for n, count in self.real_clips.items() if "fvd" in self.detectors
                             and (count > self.detectors["fvd"].d or args.few and count > 1))
        self.no_truth, self.actors = why_no_truth(self.model), self.model.has_actors and self.model.encoder is not None
        self.watchers = Watchers(args.workers)
        self.settings = self.record()
        self.parts = Parts(json_path, self.settings)

    def record(self):
        """All that the numbers depend on."""
        modules = [sys.modules[name] for name in ("embed", "train", "sample", "transfer", "models", "pretrain.faces")]
        return {
            **{k: v for k, v in vars(self.args).items() if k not in ("json", "html", "workers")}, "window": self.window,
            "device": str(self.model.device), "threads": list(self.watchers.threads), "tf32": False, "image_model": {
                "name": self.model.name, "sha256": self.model.sha256,
                "encoder_sha256": self.args.encoder and sha256_of(self.args.encoder)},
            "training_frames": len(self.codes), "training_windows": self.windows, "fps": self.fps,
            "source": None if self.places is None else [content_hash(p) for p in self.places],
            "latents_sha256": sha256_of(self.args.latents), "sidecar": digest(self.latents["frames"]),
            "motion_sha256": [sha256_of(p) for p in self.args.motion],
            "motion_steps": [meta["step"] for _, meta in self.motions],
            "videos_sha256": [digest([(file.name, content_hash(file)) for file in f.files]) for f, _, _ in self.folders],
            "detectors": {kind: {"file": d.name, "sha256": d.sha256, "published": d.sha256 == d.published, "features": d.d,
                                 "resize": "in the network, to 299 px" if kind == "fid" else "in the network, to 224 px",
                                 "covariance": "divided by n"} for kind, d in self.detectors.items()},
            "fid_frames": FID_FRAMES, "short": [train.SHORT, self.window], "long": [train.LONG[0], self.longest, train.PER_LONG],
            "space": train.SPACE,
            "stylegan_v": {"frames": list(self.lengths), "stride": 1, "real_clips": list(self.real_clips.values())},
            "loops": [LOOP_SAMPLES, LOOP_FRAMES, LOOP_LAG, LOOPS], "length_samples": LENGTH_SAMPLES,
            "judged": [JUDGED_SIDE, WATCHED],
            "reader": [READER_HEADS, READER_SIDE, READER_RIDGE, READER_HELD_OUT, READER_LEAST, *READER_CLIPS],
            "descriptor": {name: sha256_of(embed.dlib_file(name)) for name in (
                "dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_68_face_landmarks.dat")},
            "versions": {**{Path(path).name: sha256_of(path) for path in (__file__, *(m.__file__ for m in modules))},
                         "python": platform.python_version(), "torch": str(torch.__version__),
                         **{package.__name__: package.__version__ for package in (np, dlib, cv2, sklearn, av)}}}

    def training_video(self):
        """What all else is compared with; cached."""
        args, what = self.args, (self.model, self.codes, self.latents, self.places)
        video = "latents_sha256", "sidecar", "source"

        def cached_of(names, compute):
            return cached({k: self.settings[k] for k in ("image_model", "device", "versions", *names)}, compute)

        self.reader = None if self.no_truth or not args.clips else cached_of(["reader"], lambda: fit_reader(self.model))
        self.references = {} if not self.detectors else cached_of(
            [*video, "detectors", "window", "seed", "fid_frames", "short", "stylegan_v"],
            lambda: video_statistics(self.parts, self.detectors, *what, self.window, args.seed, self.lengths))
        self.base = "original" if "original" in self.references else "W+"
        self.seen = None if not args.clips else cached_of(
            [*video, "fps", "descriptor", "reader", "every", "judged"],
            lambda: observe_video(self.parts, self.watchers, *what, args.every, self.reader))
        self.pca = {k: v.cpu() for k, v in (self.motions[0][1]["pca"] if self.motions else train.fit_pca(self.codes)).items()}
        self.x = train.coordinates(torch.from_numpy(self.codes), self.pca)      # (N, 32)
        self.known = train.code_references(self.x, self.shots, self.window)

    def add_distances(self, row, sets, found):
        """Rows of one method, by reference, in the paper's order. sets: its short and long set_statistics(); found: its
        code_table()."""
        for name in ("original", "W+"):
            values = {f"{metric.__name__}_{kind}": metric(self.references[name], sets[kind]) for metric in (fid, fvd)
                      for kind in ("short", "long") if name in self.references and sets[kind]}
            if name == "W+":
                values.update({f"codes_{k}": found.get(f"{k}_percent") for k in ("short", "long")})
                values.update({f"frames_{k}": found.get(f"frame_{k}_percent") for k in ("short", "long")})
            self.tables.add("distances", row, values, name)
        if sets["short"]:
            self.add_stylegan_v(row, self.references[self.base], sets["short"])

    def add_stylegan_v(self, row, a, b):
        least = 1 if self.args.few else self.detectors["fvd"].d if self.lengths else 0
        self.tables.add("stylegan_v", row, {f"fvd_{n}": fvd_of_stylegan_v(a, b, n) for n in self.lengths
                                            if min(a[f"fvd {n}"]["n"], b[f"fvd {n}"]["n"]) > least}, self.base)

    def clips(self, name, n, begin):
        """Yields n observed clips, {row: what observe() found}. begin(k) -> {row: Future}; what is not stored is begun one clip
        ahead, so that rendering and dlib work side by side."""
        begun = collections.deque()

        def finish():
            part, futures = begun.popleft()
            return self.parts.get(part, lambda: {row: self.watchers.result(future) for row, future in futures.items()})

        with self.watchers:
            for k in tqdm(range(n), desc=f"{name}, clips", unit="clip"):
                part = f"{name}-clip{k}"
                begun.append((part, begin(k) if self.parts.load(part) is None else {}))
                if len(begun) > 1:
                    yield finish()
            if begun:
                yield finish()

    def motion_model(self, path, G, meta, first):
        """One training, one draw: samples from seed `first` on."""
        args, name, T = self.args, f"run{len(self.runs)}", self.args.frames
        samples, pca = Samples(G, self.model, first), {k: meta["pca"][k].to(self.model.device).float() for k in ("mean", "basis")}
        of_codes = self.parts.get(f"{name}-codes", lambda: code_table(G, {**meta, "window": self.window}, self.codes, self.shots,
                                                                      first))
        loops = self.parts.get(f"{name}-loops", lambda: loop_table(G, meta, self.codes, self.shots, first))
        chosen = {"short": ([(k, self.window) for k in range(train.SHORT)], 1, self.lengths),
                  "long": ([(LONG_SEED + k, self.longest) for k in range(train.LONG[0])], train.PER_LONG, ())}
        sets = {kind: set_statistics(self.parts, f"{name}-{kind}", self.detectors, samples, videos, self.window, per, args.seed,
                                     more) if self.detectors else None for kind, (videos, per, more) in chosen.items()}
        self.add_distances("sampled", sets, of_codes)
        self.tables.add("loops", "sampled", {"loop": loops["mean"], "loop_worst": min(loops["scores"]), "moves":
                                             mean(loops["moves"]), "looping": looping(loops["scores"])})

        def begin(k):
            return {row: self.watchers.observe(frames, self.fps, args.every, self.reader)
                    for row, frames in performances(samples, self.model, pca, k, T, self.actors)}

        rows, persons = collections.defaultdict(list), []
        for clips in self.clips(name, args.clips, begin):
            for row, clip in clips.items():
                rows[row].append(face_values(clip, self.fps, clips["sampled"], self.reader))
            if self.actors and len(descriptors_of(clips["offset trick"])):
                persons.append(descriptors_of(clips["offset trick"]).mean(0))
        for row, values in rows.items():
            means, label = averaged(values), "sampled, training actor" if row == "sampled" else row
            self.tables.add("faces", label, means)
            self.tables.add("truth", label, {"drift": means.get("drift")} if row == "sampled" else means)
        self.tables.add("faces", "between the actors", {"acd": acd(np.array(persons))})
        self.runs.append({"motion": str(path), "seed": first, "codes": of_codes, "loops": loops, "clips": dict(rows)})

    def chosen(self, folder):
        """(folder, {set: [(number of a video, frames used)]}, notes); a set that is too small for the detectors is left out.
        Raises InputError where none is left."""
        least, videos = max(self.window, LONG_LEAST), list(enumerate(folder.lengths))
        sets = {"short": [(k, self.window) for k, n in videos if n >= self.window][:train.SHORT],
                "long": [(k, min(n, self.longest)) for k, n in videos if n >= least][:train.LONG[0]]}
        notes = [f"In {folder.path}: {len(sets['short'])} videos of {self.window} frames or more, {len(sets['long'])} of {least} "
                 f"or more."]
        for kind, per in (("short", 1), ("long", train.PER_LONG)) if self.detectors else ():
            try:
                count = sum(len(clip_starts(n, self.window, per)) for _, n in sets[kind])
                enough(self.detectors, sum(n for _, n in sets[kind]), count, f"{folder.path}, {kind} set", self.args.few)
            except InputError as error:
                sets[kind] = []
                notes.append(str(error))
        if self.detectors and not any(sets.values()):
            raise InputError(notes[-1] if len(notes) > 1 else f"{folder.path} has no video of {self.window} frames or more; give "
                                                              f"longer ones, or another --window.")
        return folder, sets, notes

    def folder(self, folder, chosen, notes):
        """Another method's videos; chosen, notes: of chosen()."""
        args, name, row = self.args, f"videos{len(self.runs)}", folder.name
        self.notes.setdefault("distances", []).extend(notes)
        sets = {kind: set_statistics(self.parts, f"{name}-{kind}", self.detectors, folder, videos, self.window, per, args.seed,
                                     more) if self.detectors and videos else None
                for (kind, videos), per, more in zip(chosen.items(), (1, train.PER_LONG), (self.lengths, ()))}
        y = [] if self.model.encoder is None else folder_coordinates(self.parts, f"{name}-codes", self.model, folder, self.pca)
        self.add_distances(row, sets, folder_codes(self.known, y))
        usual = usual_distance(self.x[self.shot[0]:self.shot[1]].numpy())
        halves = [v[len(v) // 2:].numpy() for v in y if len(v) >= 4 * LOOP_LAG][:LOOP_SAMPLES]
        scores = [loop_score(v, usual)[0] for v in halves]
        if scores:
            self.notes.setdefault("loops", []).append(
                f"In {folder.path}: second halves of {len(halves)} videos, {min(map(len, halves))} to {max(map(len, halves))} "
                f"frames; of samples: {LOOP_FRAMES // 2} frames. More frames have more lags, and any motion a lower score.")
            self.tables.add("loops", row, {
                "loop": mean(scores), "loop_worst": min(scores), "looping": looping(scores),
                "moves": mean([moves(v, usual) for v in halves])})
        rates = [embed.header(file)[1] or self.fps for file in folder.files[:args.clips]]

        def begin(k):
            frames = folder.stream(k, range(min(args.frames, folder.lengths[k])))
            return {"": self.watchers.observe(frames, rates[k], args.every, self.reader)}

        values = [face_values(clip[""], fps, None, self.reader) for fps, clip in zip(rates, self.clips(name, len(rates), begin))]
        for table in ("faces", "truth"):
            self.tables.add(table, row, averaged(values))
        self.runs.append({"videos": str(folder.path), "lengths": folder.lengths, "loops": scores, "clips": values})

    def baselines(self):
        """The training video against itself, and its frames in other orders; the reader of drawn faces."""
        args, references, add = self.args, self.references, self.tables.add
        if "original" in references:
            a, b = references["original"], references["W+"]
            add("distances", "W+ reconstruction", {"fid_short": fid(a, b), "fvd_short": fvd(a, b)}, "original")
        for name in ("half against half", *disorders(1, 0)) if self.detectors else ():
            a, b = [references["first half"], references["second half"]] if name == "half against half" else \
                [references[self.base], references[name]]
            large = {kind: args.few or min(a[kind]["n"], b[kind]["n"]) > detector.d for kind, detector in self.detectors.items()}
            add("distances", name, {f"{metric.__name__}_short": metric(a, b) for metric in (fid, fvd)
                                    if large.get(metric.__name__)}, self.base)
            self.add_stylegan_v(name, a, b)
        for name, values in code_baselines(self.known).items():
            add("distances", name, values, "W+")
        for name, (score, moved) in loop_baselines(self.x[self.shot[0]:self.shot[1]].double().numpy()).items():
            add("loops", name, {"loop": score, "moves": moved, "looping": looping([score])})
        if self.seen is not None:
            rows, count = video_rows(self.seen, self.shot, self.fps, args.frames, args.clips, args.every, self.reader)
            for name, values in rows.items():
                add("faces", name, values)
                add("truth", name, values)
            self.notes["faces"] = [f"Clips of {args.frames} frames, of at most {JUDGED_SIDE} px, descriptors of every "
                                   f"{args.every}th: {args.clips} per row, of the training video {count} of at most "
                                   f"{self.shot[1] - self.shot[0]}. The paper's ACD: 128 clips of 400 frames, every frame "
                                   f"(--clips 128 --every 1)."]
            for name, values in reconstruction_rows(self.seen).items() if self.seen["crops"] else ():
                add("reconstruction", name, values)
        if self.no_truth:
            self.notes.setdefault("faces", []).append(f"No transfer against the truth: {self.no_truth}.")
        elif args.clips:
            add("truth", "perfect transfer (drawn)", self.reader["ceiling"])
            known = {"identity": readable(self.reader, faces.IDENTITY), "motion": readable(self.reader, faces.MOTION)}
            for kind, numbers in known.items():
                for k in numbers:
                    add("reader", f"{faces.NAMES[k]} ({kind})",
                        {"r2": float(self.reader["r2"][k]), "error": float(self.reader["error"][k])})
            self.notes["truth"] = ["The crops of the training video are sharper than any picture that the reader has learnt "
                                   "from: the row to compare with is its reconstruction."]
            self.notes["reader"] = [f"{len(known['identity'])} of {len(faces.IDENTITY)} identity and {len(known['motion'])} of "
                                    f"{len(faces.MOTION)} motion parameters; the rest is not read. Guessing the mean has R2 0."]
        notes = self.notes.setdefault("distances", [])
        notes.insert(0, f"In the training video: {self.windows} clips of {self.window} frames, {len(self.codes)} frames.")
        if not self.detectors:
            notes.append("FID and FVD are not computed; --fid and --fvd fetch their detectors and add them.")
        elif "fvd" in self.detectors and not self.lengths:
            notes.append(f"StyleGAN-V's protocol is left out: it takes one clip of each real video (here: shot), at least "
                         f"{self.detectors['fvd'].d + 1}, and there are {max(self.real_clips.values())}.")

    def over_length(self):
        G, meta = self.motions[0]
        return self.parts.get("over-length", lambda: length_table(G, {**meta, "window": self.window}, self.codes, self.shots,
                                                                  self.args.seed))

    def illustrations(self):
        """Plots and videos of the page, of the first motion model and the first folder: [svg], [(caption, data URI)]."""
        args, model, batch, (start, end) = self.args, self.model, pictures_at_once(self.model), self.shot
        slow = model.device.type == "cpu" and model.size > 256                  # a picture of 1024 px takes a core a second
        T = min(round((1 if slow else PAGE_SECONDS) * self.fps), end - start)
        seconds = [t / self.fps for t in range(T)]

        def show(caption, clips):
            videos.append((caption, embedded_video(side_by_side(clips), self.fps)))

        def curves(title, x):                                                   # x (T, 32)
            return plot(title, "seconds", [(f"PCA {j + 1}", seconds, x[:, j].tolist()) for j in range(3)])

        plots, videos = [curves("Training video: its largest motions", self.x[start:start + T])], []
        shown = list(itertools.islice(pairs(model, self.codes, self.latents, self.places, start), T))
        show("training video | its W+ reconstruction" if self.places else "W+ reconstruction of the training video",
             [np.stack([p[j] for p in shown]) for j in (1, 2) if shown[0][j] is not None])
        if self.motions:
            G, meta = self.motions[0]
            w = [Samples(G, model, args.seed).codes(k, T).to(model.device) for k in range(3)]       # (T, L, D) each
            plots = training_plots(train.beside(Path(args.motion[0]), ".csv")) + plots
            plots.append(curves("Sample: its largest motions", train.coordinates(w[0].cpu(), self.pca)))
            show("three samples, training actor", [render(model, v, batch) for v in w])
            pca = {k: meta["pca"][k].to(model.device).float() for k in ("mean", "basis")}
            for name, (mode, actor) in ROWS.items() if self.actors else ():
                show(f"the first sample by three actors: {name}",
                     [render(model, move(w[0], actor(model, k), pca, w[0][0], mode), batch) for k in range(3)])
        for folder, _, _ in self.folders[:1]:
            n = min(T, *folder.lengths[:3])
            clips = [folder.frames(k, list(range(n))) for k in range(min(3, len(folder.files)))]
            side = min(clip.shape[1] for clip in clips)
            show(folder.name, [np.stack([cv2.resize(f, (side, side)) for f in clip]) for clip in clips])
        return plots, videos

    def close(self):
        self.watchers.close()
        if self.parts.folder.exists() and not any(self.parts.folder.glob("*.pt")):
            shutil.rmtree(self.parts.folder, ignore_errors=True)


def clean(value):
    """For JSON, which has no NaN and no infinity: None instead."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(path, text, option):
    """The whole file or none of it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file with {option}.") from None
    finally:
        part.unlink(missing_ok=True)


def main(args):
    started = time.time()
    json_path, html_path = check(args)
    torch.backends.cudnn.allow_tf32 = False                                     # CUDA would round what detectors see to 10 bits
    e = Evaluation(args, json_path)
    try:
        e.training_video()
        for path, (G, meta) in zip(args.motion, e.motions):                     # every training and every draw is a run
            for r in range(args.runs):
                e.motion_model(path, G, meta, args.seed + r * RUN)
        for folder in e.folders:
            e.folder(*folder)
        e.baselines()
        over_length = e.over_length() if e.motions else None
        results = {"tables": e.tables.summary(), "notes": e.notes, "runs": e.runs, "over_length": over_length,
                   "reader": e.reader and {k: dict(zip(faces.NAMES, e.reader[k].tolist())) for k in ("r2", "error")},
                   "settings": e.settings, "seconds": time.time() - started}
        if html_path:
            plots, videos = e.illustrations()
            if over_length:
                plots.append(plot("Distance of windows over the length of samples, % of frozen frames", "frame", [
                    ("samples", over_length["frames"], over_length["percent"]),
                    ("as many real windows*", [0, over_length["frames"][-1]], 2 * [over_length["least"]])]))
        write(json_path, json.dumps(clean(results), indent=1), "--json")
        if html_path:
            write(html_path, page(e.tables, e.notes, clean(e.settings), plots, videos), "--html")
        shutil.rmtree(e.parts.folder, ignore_errors=True)
    finally:
        e.close()
    print(report(e.tables, e.notes))
    print(f"evaluate.py: wrote {' and '.join(str(p) for p in (json_path, html_path) if p)} in {time.time() - started:.0f} s.",
          file=sys.stderr)


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("latents", metavar="LATENTS", help="training codes, latents.npy of embed.py")
    files.add_argument("motion", metavar="MOTION", nargs="*", help="motion models of train.py: one, or several trainings of one "
                       "method, over which means and standard deviations are taken")
    files.add_argument("--videos", metavar="FOLDER", action="append", default=[], help="videos of any other method, files "
                       "or folders of pictures, cropped as the training frames are, instead of MOTION or beside it; repeatable")
    files.add_argument("--json", default="results.json", metavar="FILE", help="all numbers and settings")
    files.add_argument("--html", metavar="FILE", help="page with tables, plots and videos; none leaves it out; when not given "
                       "the name of the JSON file with .html")
    files.add_argument("--model", help="image model; when not given the one recorded in MOTION")
    files.add_argument("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model that has none")
    files.add_argument("--video", metavar="FILE", help="training video, if it is not where latents.json says")
    metrics = parser.add_argument_group("detectors", "TorchScript files, fetched once into the cache folder or named here")
    metrics.add_argument("--fid", action="store_true", help="FID, with NVIDIA's inception-2015-12-05.pt")
    metrics.add_argument("--fvd", action="store_true", help="FVD, with StyleGAN-V's i3d_torchscript.pt")
    metrics.add_argument("--inception", metavar="FILE", help="FID with this file")
    metrics.add_argument("--i3d", metavar="FILE", help="FVD with this file")
    metrics.add_argument("--few", action="store_true", help="compute them, too, where frames or clips are fewer than features")
    metrics.add_argument("--window", type=int, metavar="T", help="frames of a clip; when not given MOTION's, or 25")
    counts = parser.add_argument_group("counts")
    counts.add_argument("--clips", "--actors", type=int, default=12, help="clips that dlib judges, clip k performed by the "
                        "training actor and by random actor k; ours: a quarter of an hour on two cores (the paper's ACD: 128); "
                        "0 leaves faces out")
    counts.add_argument("--frames", type=int, default=400, help="frames of such a clip (the paper's ACD: 400, suppl. 2.2)")
    counts.add_argument("--every", type=int, default=20, help="frames between two face descriptors; ours: the mean over all "
                        "pairs needs few frames, and a core does 16 descriptors a second (the paper's ACD: 1)")
    counts.add_argument("--runs", type=int, default=1, help="draws of samples per motion model")
    counts.add_argument("--seed", type=int, default=0)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    machine.add_argument("--workers", type=int, default=WORKERS, metavar="N", help="processes in which dlib judges faces while "
                         "this one renders; 0: none")
    return parser


if __name__ == "__main__":
    parser = options()
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "evaluate.py: interrupted; the same command goes on from here.\n")
