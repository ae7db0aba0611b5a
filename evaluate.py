"""Measure a motion model: how close it is to the training video, whether it loops, what transfer keeps.

    python evaluate.py latents.npy motion.pt                        # every table; three minutes on two cores
    python evaluate.py latents.npy motion.pt --full --inception fetch --i3d fetch    # the paper's table 1
    python evaluate.py latents.npy one.pt two.pt three.pt           # trainings of one method: mean, deviation
    python evaluate.py latents.npy motion.pt --holdout unseen.npy   # also against video not trained on
    python evaluate.py latents.npy --videos tganv2/ --window 16     # another method's videos, same protocol

Prints the tables, writes results.json and results.html. An interrupted evaluation goes on where it was when
the same command is given again. The first paragraph of a measure's docstring says what it is, its unit, which
direction is better and where it comes from; it is also a footnote of its table.

Shapes: T frames, L style rows, D style width, d features of a detector; frames (T, H, W, 3) uint8 RGB;
coordinates (T, 32) in the PCA of the training codes; windows (n, T, 32); points (T, 68, 2).
"""

import argparse
import base64
import datetime
import hashlib
import io
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import dlib
import jinja2
import joblib
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from tqdm import tqdm

import embed
import models
import sample
import train
import transfer
from models import InputError, cache_folder, fetch, load_image_model, pick_device, sha256_of

# The paper's counts (sec. 4, suppl. 2.2) are those of --full. Ours without it: as many clips as dlib judges
# in two minutes on two cores; frames and clips of the detectors no fewer than their covariances need
FULL = {"clips": 128, "frames": 400, "every": 1, "fid_frames": 8000, "fvd_clips": 2048}
QUICK = {"clips": 6, "frames": 128, "every": 8, "fid_frames": 2560, "fvd_clips": 512}
LONG_LEAST = 128        # frames of a video in the long set, at least (sec. 4); our samples have 400
LONG_SEED = 500_000     # ours: sample k of the long set is that of `sample.py --seed SEED + 500000 + k`
WINDOW = 25             # frames (sec. 3), where no motion model says
BLOCK = 64              # ours: items whose features are cached at once
CHUNK = 32              # ours: pictures rendered at a time
LOOP_SAMPLES, LOOP_FRAMES = 8, 1500     # searched for loops: ours; as long as sec. 4's longest
LOOP_LAG = 25           # ours: shortest lag in frames that counts; below it, any motion resembles itself
LOOPS = 0.3             # ours: a sample with a lower score loops
JUDGED_SIDE = 256       # ours: px of the shorter side of frames for dlib, at most; its descriptor sees 150
KEEP = datetime.timedelta(days=30)      # ours: how long what is cached stays
PAGE_SECONDS, PAGE_SIDE = 4, 192        # ours: of the page's videos and of their pictures' sides, at most
PAGE = Path(__file__).resolve().parent / "assets" / "page.html"

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
DETECTORS = {           # TorchScript files as their authors publish them: name, address, sha256
    "inception": ("inception-2015-12-05.pt", NVIDIA + "inception-2015-12-05.pt",
                  "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
    "i3d": ("i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")}

# Rows and columns
OWN, RECONSTRUCTION = "sampled, training actor", "its W+ reconstruction"
WAYS = {"offset trick": "offset", "naive shift": "naive"}                       # sec. 3 and Fig. 4
CORRELATIONS = {"mouth area r": "mouth_area", "mouth r": "mouth_opening", "eyes r": "eye_opening",
                "yaw r": "yaw"}


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def mean(values):
    """Mean of what is no NaN; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def drawn(seed, population, n):
    """n of the numbers below `population`, without repetition, in order; all where there are no more."""
    return np.sort(np.random.RandomState(seed).choice(population, min(n, population), replace=False)).tolist()


def evenly(first, last, n):
    """Up to n different whole numbers evenly spaced from first to last."""
    return sorted(set(np.linspace(first, max(first, last), n).astype(int).tolist()))


def disorders(T, seed):
    """What the baselines do with the T frames of a clip: {name: order (T,)}."""
    return {"frozen frames": np.zeros(T, int), "shuffled frames": np.random.RandomState(seed).permutation(T),
            "time-reversed": np.arange(T)[::-1].copy()}


# ------------------------------------------------------------------------------------------------------------
# Motion, from the codes alone: measures (a function of windows) and rows (a name and windows)
# ------------------------------------------------------------------------------------------------------------

def gaussian(real, windows):
    """Windows: Fréchet distance of Gaussians fitted to windows of PCA coordinates, in the 64 principal
    directions of the real ones, in % of what frozen frames score. Lower is better. It sees means and
    covariances alone: a linear model that is right in those wins. Short: 2048 samples of one window; long:
    128 samples of 400 frames, cut into windows (sec. 4, suppl. 2.2, there on pictures). Ours: stands in for
    FVD without a download."""
    return 100 * train.code_frechet(real["windows"], windows, real["space"]) / real["frozen"]


def single_frames(real, windows):
    """Frames: the same of single frames, in % of a still picture. Lower is better; it sees no order. Ours."""
    return 100 * train.frechet(real["frames"], windows.flatten(0, 1)) / real["still"]


def trembling(real, windows):
    """Jitter: root mean square of the second difference in time over the real windows'. 1 is best. Ours."""
    return train.jitter(windows) / real["jitter"]


CODE_MEASURES = {"windows, %": gaussian, "frames, %": single_frames, "jitter": trembling}


def code_values(real, windows):
    """A row of measures. real: train.code_references of what it is compared with."""
    return {name: measure(real, windows) for name, measure in CODE_MEASURES.items()}


def free_rows(real, seed):
    """Rows that cost nothing, of the real windows: yields (name, what they are compared with, windows)."""
    windows, frames = real["windows"], real["frames"]
    half = len(windows) // 2
    first = {**real, "windows": windows[:half], "frames": frames[:len(frames) // 2]}
    yield "half against half", first, windows[half:]
    some = np.random.RandomState(seed).randint(0, len(windows), train.SHORT)
    yield "as many real windows", real, windows[some]

    orders = [disorders(real["window"], k) for k in range(len(windows))]
    for name in orders[0]:
        order = torch.from_numpy(np.stack([o[name] for o in orders]))           # (n, T)
        yield name, real, windows.gather(1, order[..., None].expand_as(windows))


def usual_distance(x):
    """Mean distance of two different frames of x (T, d), drawn at random."""
    a, b = np.random.RandomState(0).randint(0, len(x), (2, 20000))
    return np.linalg.norm(x[a] - x[b], axis=1)[a != b].mean()


def loop_score(x, usual):
    """Loop score: how nearly a trajectory repeats itself, 0 exactly, about 1 never. Higher is better. For
    every lag from 25 frames to half of its length the mean distance of frames that far apart, over that of
    two random frames of the training video; the smallest. Of samples: of their second half, as a recurrence
    may take its time to fall into a loop. Looping: share of scores below 0.3. It finds loops of a steady
    tempo, and motion that dies down. Ours: the paper counts loops by eye (sec. 4, gradient angle penalty).

    x: (T, d), not whitened, so that what is large counts; usual: usual_distance() of the training video.
    """
    lags = range(LOOP_LAG, len(x) // 2 + 1)
    return min((np.linalg.norm(x[lag:] - x[:-lag], axis=1).mean() / usual for lag in lags), default=math.nan)


def loop_values(trajectories, usual):
    scores = [loop_score(x, usual) for x in trajectories]
    looping = 100 * mean([score < LOOPS for score in scores])
    return {"score": mean(scores), "worst": min(scores), "looping, %": looping}


# ------------------------------------------------------------------------------------------------------------
# FID and FVD. An item is (number of a video, numbers of its frames): one frame for FID, a clip's for FVD
# ------------------------------------------------------------------------------------------------------------

class Detector:
    """A network whose features FID ("inception") or FVD ("i3d") compares. file: TorchScript, or "fetch".

    TorchScript is code, but of a small language that runs in an interpreter of its own: of a fetched file the
    sha256 is checked, of a given one it is put on record.
    """

    def __init__(self, kind, file, device):
        name, url, self.published = DETECTORS[kind]
        path = fetch(name, url, self.published, f"--{kind}")[0] if file == "fetch" else Path(file)
        self.kind, self.name, self.device = kind, path.name, device
        self.cure = f"give {'NVIDIA' if kind == 'inception' else 'StyleGAN-V'}'s {name} with --{kind}"
        if not path.is_file():
            raise InputError(f"{path} is no file; {self.cure}, or say --{kind} fetch.")
        self.sha256 = sha256_of(path)
        if file == "fetch" and self.sha256 != self.published:
            raise InputError(f"{path} has sha256 {self.sha256}, not {self.published}; delete it.")
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:  # torch raises several types here
            name = type(error).__name__
            raise InputError(f"{path} is no TorchScript file ({name}); {self.cure}.") from None
        self.d = len(self.features(np.zeros((16, 32, 32, 3), np.uint8)))

    @torch.no_grad()
    def features(self, x):
        """The frames of an item (T, H, W, 3), uint8 -> (d,) float32. Both networks resize (Inception to 299
        px, I3D to 224 px) and rescale by themselves."""
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
            raise ValueError(f"{self.name} takes frames (T, H, W, 3) in uint8, not {x.shape} in {x.dtype}")
        x = torch.from_numpy(np.moveaxis(x, 3, 0).copy())[None].to(self.device)         # (1, 3, T, H, W)
        try:
            if self.kind == "inception":
                found = self.network(x[:, :, 0], return_features=True)
            else:
                found = self.network(x=x, rescale=True, resize=True, return_features=True)
            if found.ndim != 2 or len(found) != 1 or not torch.isfinite(found).all():
                raise ValueError(f"features of shape {tuple(found.shape)}, or not finite")
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            why = str(error).strip().splitlines()[-1][:150]
            raise InputError(f"{self.name} cannot be used for --{self.kind} ({why}); {self.cure}.") from None
        return found[0].float().cpu().numpy()


def block_features(key, detector, source, items):
    """Features (n, d) of items; cached by key. source(k, wanted): those frames of video k, (n, H, W, 3)."""
    found = []
    for k, group in itertools.groupby(items, key=lambda item: item[0]):
        numbers = [f for _, f in group]
        wanted = sorted(set(itertools.chain(*numbers)))
        frames, place = source(k, wanted), {f: n for n, f in enumerate(wanted)}
        found += [detector.features(frames[[place[f] for f in item]]) for item in numbers]
    return np.stack(found)


def features(e, name, kind, source, items, key):
    """Features (n, d) of all items of a set, block by block, so that an interrupted evaluation goes on."""
    cached = e.memory.cache(block_features, ignore=["detector", "source"])
    key = digest([e.key, key, e.detectors[kind].sha256])
    blocks = [items[start:start + BLOCK] for start in range(0, len(items), BLOCK)]
    bar = tqdm(blocks, desc=f"{name}, --{kind}", unit="block")
    return np.concatenate([cached(key, e.detectors[kind], source, block) for block in bar])


def set_items(videos, per, e):
    """{kind: items} of a set. videos: [(k, frames used of video k)]; per: clips evenly spaced in each."""
    frames = [(k, [f]) for k, n in videos for f in range(n)]
    clips = [(k, list(range(s, s + e.window))) for k, n in videos for s in evenly(0, n - e.window, per)]
    return {"inception": [frames[j] for j in drawn(e.seed, len(frames), e.counts["fid_frames"])],
            "i3d": clips[:e.counts["fvd_clips"]]}


def video_items(e):
    """{kind: items} of the training video, drawn from all frames, and from all clips inside one shot."""
    starts = train.window_starts(e.shots, e.window).tolist()
    starts = [starts[j] for j in drawn(e.seed, len(starts), e.counts["fvd_clips"])]
    return {"inception": [(0, [f]) for f in drawn(e.seed, len(e.codes), e.counts["fid_frames"])],
            "i3d": [(0, list(range(s, s + e.window))) for s in starts]}


def distance(a, b):
    """Fréchet distance of Gaussians fitted to features (n, d), (m, d), in float64; NaN where a set has no
    more items than features: its covariance is singular, and the distance comparable with no other."""
    return train.frechet(a, b) if min(len(a), len(b)) > a.shape[1] else math.nan


def fid(a, b):
    """FID: Fréchet distance of Gaussians fitted to Inception-v3's 2048 features of frames of both sets. No
    unit; 0 is best. It sees single frames, not their order. Heusel et al. 2017; table 1, there with
    pytorch-fid's weights, here with NVIDIA's TorchScript of the same network: the two agree closely, not
    exactly."""
    return distance(a["inception"], b["inception"]) if {"inception"} <= {*a, *b} else math.nan


def fvd(a, b):
    """FVD: Fréchet distance of Gaussians fitted to I3D's 400 logits of clips as long as the training window:
    short, samples of that length; long, 16 clips of each long sample. No unit; 0 is best. Unterthiner et al.
    2019; table 1, here with StyleGAN-V's TorchScript of I3D, so the paper's absolute values are not to be
    compared with."""
    return distance(a["i3d"], b["i3d"]) if {"i3d"} <= {*a, *b} else math.nan


def enough(e, what, items):
    """Raises InputError where a set is too small for a detector."""
    for kind, detector in e.detectors.items():
        if len(items[kind]) <= detector.d:
            unit = f"clips of {e.window} frames" if kind == "i3d" else "frames"
            raise InputError(f"{what}: {len(items[kind])} {unit} are too few for --{kind}, whose "
                             f"{detector.d} features need {detector.d + 1}; give more, or no --{kind}.")


# ------------------------------------------------------------------------------------------------------------
# Where frames come from: the training video, samples, videos of another method
# ------------------------------------------------------------------------------------------------------------

def pictures(e, w):
    """Codes (T, L, D) -> frames (T, size, size, 3)."""
    return transfer.render(e.model, w.to(e.device), transfer.pictures_at_once(e.model), e.pool.map)


def source_crops(e, wanted):
    """Yields the crop (size, size, 3) of frames `wanted`, sorted, of the training video."""
    for number, path in enumerate(e.places):
        rows = [e.rows[k] for k in wanted if e.rows[k].get("source", 0) == number]
        yield from embed.crops(path, rows, e.model.size)


def judged(frames):
    """Frames (H, W, 3) as dlib gets them, (T, h, w, 3): the shorter side at most JUDGED_SIDE."""
    def small(frame):
        k = JUDGED_SIDE / min(frame.shape[:2])
        return cv2.resize(frame, None, fx=k, fy=k, interpolation=cv2.INTER_AREA) if k < 1 else frame

    return np.stack([small(frame) for frame in frames])


def rendered(e, w):
    """Codes (T, L, D) as judged() frames, few large pictures at a time."""
    return np.concatenate([judged(pictures(e, part)) for part in w.split(CHUNK)])


class Samples:
    """A motion model's samples: sample k is that of `sample.py --seed SEED + k`."""
    name = "sampled"

    def __init__(self, e, path, G, meta):
        self.e, self.G, self.key, self.clips = e, G, sha256_of(path), e.counts["clips"]
        n = e.counts["fvd_clips"]
        self.pca = {name: meta["pca"][name].to(e.device).float() for name in ("mean", "basis")}
        self.videos = {"short": [(k, e.window) for k in range(n)],
                       "long": [(LONG_SEED + k, train.LONG[1]) for k in range(-(-n // train.PER_LONG))]}

    def codes(self, k, T):
        w = np.concatenate(list(sample.sample(self.G, T, self.e.seed + k)))
        return torch.from_numpy(w).to(self.e.device)                            # (T, L, D)

    def frames(self, k, wanted):
        return pictures(self.e, self.codes(k, wanted[-1] + 1)[wanted])

    def performed(self, w, k, mode):
        """Codes w (T, L, D) as random actor k performs them."""
        return transfer.move(w, transfer.random_actor(self.e.model, k), self.pca, w[0], mode)

    def views(self, ks):
        """Yields {row: frames} of samples k, by the training actor and by random actor k."""
        for k in ks:
            w = self.codes(k, self.e.counts["frames"])
            ways = WAYS if self.e.actors else {}
            yield {OWN: rendered(self.e, w),
                   **{row: rendered(self.e, self.performed(w, k, mode)) for row, mode in ways.items()}}

    def motion(self):
        cached = self.e.memory.cache(sampled_motion, ignore=["G", "pca"])
        return cached([self.e.key, self.key], self.G, self.e.window, self.e.pca, self.e.seed)


def sampled_motion(key, G, window, pca, seed):
    """Windows {"short", "long"}, (2048, T, 32) each, and the second halves of trajectories, (750, 32)."""
    rng = torch.Generator().manual_seed(seed)
    short = train.sample_coordinates(G, train.SHORT, window, pca, rng)
    long = train.sample_coordinates(G, train.LONG[0], max(train.LONG[1], 4 * window), pca, rng)
    halves = []
    for k in tqdm(range(LOOP_SAMPLES), desc="loops", unit="sample"):
        chunks = sample.sample(G, LOOP_FRAMES, seed + k)
        x = torch.cat([train.coordinates(torch.from_numpy(w), pca) for w in chunks])        # (1500, 32)
        halves.append(x[len(x) // 2:].numpy())
    return {"short": short, "long": train.long_windows(long, window)}, halves


class Folder:
    """Videos of any method, by name: files, or folders of pictures."""

    def __init__(self, e, path):
        self.e, self.name = e, str(path)
        if not Path(path).is_dir():
            raise InputError(f"{path} is no folder; give one with videos (.mp4, ...) or folders of pictures.")
        endings = {*transfer.FORMATS, ".webm", ".avi", ".gif"}
        self.files = sorted(p for p in Path(path).iterdir() if p.is_dir() or p.suffix.lower() in endings)
        if not self.files:
            raise InputError(f"{path} holds no videos (.mp4, ...) and no folders of pictures; name another.")

        bar = tqdm(self.files, desc="count frames", unit="video")
        lengths = list(enumerate(sum(1 for _ in embed.read_video(file)) for file in bar))
        self.videos = {"short": [(k, e.window) for k, n in lengths if n >= e.window],
                       "long": [(k, n) for k, n in lengths if n >= max(LONG_LEAST, e.window)][:train.LONG[0]]}
        self.key = digest([content_hash(file) for file in self.files])
        self.clips = min(len(self.files), e.counts["clips"])

    def stream(self, k, n, wanted=None):
        """Yields the first n frames of video k, or those of them that are wanted."""
        for index, frame in enumerate(itertools.islice(embed.read_video(self.files[k]), n)):
            if wanted is None or index in wanted:
                yield frame

    def frames(self, k, wanted):
        return np.stack(list(self.stream(k, wanted[-1] + 1, set(wanted))))

    def views(self, ks):
        for k in ks:
            yield {self.name: judged(self.stream(k, self.e.counts["frames"]))}

    def motion(self):
        return {}, []                                                           # their codes are not known


def content_hash(path):
    """sha256 of a file, or of a folder's files."""
    if path.is_file():
        return sha256_of(path)
    return digest(sorted((str(p.relative_to(path)), sha256_of(p)) for p in path.rglob("*") if p.is_file()))


def face_measures(points):
    """What a face (68, 2) does, free of the head's place, size and roll. mouth_opening: distance of the inner
    lips (62, 66) over the eye distance. eye_opening: heights of the eyes over their widths, mean. yaw: the
    nose tip's offset from the eyes' midpoint along the eye line, over the eye distance."""
    E, e = embed.eyes(points)
    distance = np.linalg.norm(e)
    lengths = np.linalg.norm(points[[37, 38, 36, 43, 44, 42]] - points[[41, 40, 39, 47, 46, 45]], axis=1)
    return {"mouth_opening": float(np.linalg.norm(points[66] - points[62]) / distance),
            "eye_opening": float((lengths[:2].mean() / lengths[2] + lengths[3:5].mean() / lengths[5]) / 2),
            "yaw": float((points[30] - E) @ e / distance ** 2)}


def descriptor(frame, points):
    """dlib's 128 numbers of the face with these points (68, 2) in a picture (H, W, 3) uint8 RGB, float64.
    Distances below 0.6 count as one person (dlib)."""
    # Points are rounded to pixels: make those small
    scale = max(1.0, 80 / np.linalg.norm(embed.eyes(points)[1]))
    if scale > 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        points = (points + 0.5) * scale - 0.5
    (left, top), (right, bottom) = points.min(0), points.max(0)
    shape = dlib.full_object_detection(dlib.rectangle(int(left), int(top), int(right), int(bottom)),
                                       [dlib.point(round(x), round(y)) for x, y in points.tolist()])
    network = embed.dlib_model(dlib.face_recognition_model_v1, "dlib_face_recognition_resnet_model_v1.dat")
    return np.array(network.compute_face_descriptor(np.ascontiguousarray(frame), shape))


# ------------------------------------------------------------------------------------------------------------
# Faces, judged by dlib
# ------------------------------------------------------------------------------------------------------------

def observe(frames, fps, every):
    """What dlib sees in a clip: points (T, 68, 2) in shares of the width, descriptors (T, 128) of every
    `every`-th frame; NaN elsewhere, and where there is no face."""
    tracker = embed.FaceTracker(fps)
    points, descriptors = np.full((len(frames), 68, 2), np.nan), np.full((len(frames), 128), np.nan)
    for k, frame in enumerate(frames):
        p = tracker.step(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
        if p is not None:
            points[k] = p / frame.shape[1]
            if k % every == 0:
                descriptors[k] = descriptor(frame, p)
    return {"points": points, "descriptors": descriptors}


def look(key, views, fps, every):
    """observe() of the views {name: frames} of one clip; cached by key. With crops and pictures of the
    training video among them also "psnr", {row: mean over the frames}."""
    cv2.setNumThreads(1)
    seen = {name: observe(frames, fps, every) for name, frames in views.items()}
    if "crops" in views:
        crops, T = views["crops"], len(views["crops"])
        pairs = {RECONSTRUCTION: zip(crops, views["pictures"], strict=True),
                 "half against half": zip(crops, crops[T // 2:], strict=False)}
        for name, order in disorders(T, 0).items():
            pairs[name] = [(crops[k], crops[j]) for k, j in enumerate(order) if j != k]     # itself: infinite
        seen["psnr"] = {name: mean([psnr(a, b) for a, b in both]) for name, both in pairs.items()}
    return seen


def looks(e, name, key, clips, views):
    """look() of all clips, in order, in other processes. views(clips) yields the views of those that are not
    cached: this process renders the next ones meanwhile."""
    cached = e.memory.cache(look, ignore=["views"])
    keys = {clip: digest([e.key, key, clip]) for clip in clips}
    how = e.fps, e.counts["every"]
    missing = [clip for clip in clips if not cached.check_call_in_cache(keys[clip], None, *how)]
    fresh = views(missing)
    jobs = (joblib.delayed(cached)(keys[clip], next(fresh) if clip in missing else None, *how)
            for clip in clips)
    workers = joblib.Parallel(n_jobs=joblib.cpu_count(), pre_dispatch="n_jobs + 1", return_as="generator")
    return list(tqdm(workers(jobs), total=len(clips), desc=f"{name}, faces", unit="clip"))


def measured(points):
    """What CORRELATIONS names, of points (T, 68, 2): (T, 4), NaN where there is no face."""
    found = np.full((len(points), 4), np.nan)
    for k in np.flatnonzero(np.isfinite(points[:, 0, 0])):
        x, y = points[k, 48:60].T                                               # outer line of the lips
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        area /= (embed.eyes(points[k])[1] ** 2).sum()
        values = {"mouth_area": area, **face_measures(points[k])}
        found[k] = [values[name] for name in CORRELATIONS.values()]
    return found


def correlation(a, b):
    """Correlation of mouth area, mouth opening, eye opening, yaw: Pearson's r, frame by frame, between a clip
    and the one whose motion it performs, by dlib's landmarks, mean over the clips. From -1 to 1, higher is
    better. The lips' area is the LiA of Manandhar and Genovesio 2023 (One-Style), there between videos of one
    motion; else ours."""
    def pearson(x, y):
        both = np.isfinite(x) & np.isfinite(y)
        still = both.sum() < 3 or min(x[both].std(), y[both].std()) < 1e-9
        return math.nan if still else float(np.corrcoef(x[both], y[both])[0, 1])

    return [pearson(x, y) for x, y in zip(measured(a).T, measured(b).T, strict=True)]


def acd(descriptors):
    """ACD, average content distance: mean L2 distance of dlib's face descriptors over all pairs of a clip's
    frames, mean over the clips. In the descriptor's own unit: 0 between equal pictures, below 0.6 between
    pictures of one person (dlib). Lower is better, but a face that stands still wins: see speed. Tulyakov et
    al. 2018; sec. 4."""
    rows, columns = np.triu_indices(len(descriptors), 1)
    return mean(np.linalg.norm(descriptors[rows] - descriptors[columns], axis=1))


def similarity(descriptors):
    """Similarity: mean cosine similarity of the face descriptors of a clip's first frame and of each later
    one, mean over the clips. 1 is best. The ArcFace column of Manandhar and Genovesio 2023, here with dlib's
    descriptor, so not to be compared with theirs."""
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    return mean(unit[1:] @ unit[0]) if len(unit) else math.nan


def speed(points, fps):
    """Speed: mean movement of the 68 landmarks from frame to frame, in eye distances per second. As much as
    the real video is best; none at all makes a good ACD. It holds the landmarks' trembling. Ours."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=2).mean(1)             # (T - 1,)
    eyes = np.linalg.norm(embed.eyes(points)[1], axis=1)
    return mean(steps / ((eyes[1:] + eyes[:-1]) / 2)) * fps


def found(points):
    """Found: share of the frames in which dlib finds a face; what is not found is not measured. 1 is best."""
    return float(np.isfinite(points[:, 0, 0]).mean())


def psnr(a, b):
    """PSNR: of the rendered codes against the crops of the source, in dB, at 256 px at most; higher is
    better. How much of the video the codes hold; the baselines are the crops themselves, half a clip later
    and in other orders. It hardly sees motion, which the correlations do. Ours."""
    return embed.psnr(a, b)


def described(clip):
    """The descriptors (n, 128) of an observed clip that there are."""
    return clip["descriptors"][np.isfinite(clip["descriptors"][:, 0])]


def face_values(pairs, fps):
    """The row of [(observed clip, the clip whose motion it performs, or None)]."""
    clips = [clip for clip, _ in pairs]
    columns = {"ACD": [acd(described(clip)) for clip in clips],
               "similarity": [similarity(described(clip)) for clip in clips],
               "speed": [speed(clip["points"], fps) for clip in clips],
               "found": [found(clip["points"]) for clip in clips]}
    r = [correlation(clip["points"], own["points"]) for clip, own in pairs if own is not None]
    columns.update(zip(CORRELATIONS, zip(*r, strict=True), strict=False))       # no columns without own
    return {name: mean(values) for name, values in columns.items()}


def video_clips(shots, T, n):
    """Up to n stretches (start, end) of T frames inside shots, evenly chosen; or else the longest shot."""
    pieces = [(s, s + T) for start, end in shots for s in range(start, end - T + 1, T)]
    if not pieces:
        return [max(shots, key=lambda shot: shot[1] - shot[0])]
    return [pieces[k] for k in evenly(0, len(pieces) - 1, n)]


def video_looks(e):
    """look() of the training video's clips: "pictures", and "crops" where the source is."""
    def views(missing):
        crops = source_crops(e, [k for clip in clips for k in range(*clip)]) if e.places else None
        for start, end in clips:                                # all of them: the crops come in one pass
            seen = {"crops": judged(itertools.islice(crops, end - start))} if crops else {}
            if (start, end) in missing:
                yield {**seen, "pictures": rendered(e, torch.from_numpy(e.codes[start:end]))}

    clips = video_clips(e.shots, e.counts["frames"], e.counts["clips"])
    return looks(e, "training video", "training video", clips, views)


def video_faces(clips, fps):
    """{row: values} of the training video's clips, beside themselves in other orders and their other half."""
    def part(clip, order):
        return {name: clip[name][order] for name in ("points", "descriptors")}

    real = [clip.get("crops", clip["pictures"]) for clip in clips]
    pairs = {"training video": [(clip, clip) for clip in real]}
    if "crops" in clips[0]:
        pairs[RECONSTRUCTION] = [(clip["pictures"], clip["crops"]) for clip in clips]
    halves = [(clip, len(clip["points"]) // 2) for clip in real]
    pairs["half against half"] = [(part(clip, slice(n, 2 * n)), part(clip, slice(n))) for clip, n in halves]
    for name in disorders(1, 0):
        pairs[name] = [(part(clip, disorders(len(clip["points"]), 0)[name]), clip) for clip in real]

    rows = {name: face_values(both, fps) for name, both in pairs.items()}
    for name in clips[0].get("psnr", ()):
        rows[name]["PSNR"] = mean([clip["psnr"][name] for clip in clips])
    return rows


# ------------------------------------------------------------------------------------------------------------
# Inputs
# ------------------------------------------------------------------------------------------------------------

def source_files(latents_path, named):
    """Files of the training video, named in latents.json: in this folder, beside it, or in the project's."""
    named = [named] if isinstance(named, str) else named or []
    folders = Path(), Path(latents_path).parent, Path(__file__).parent
    places = [next((folder / name for folder in folders if (folder / name).exists()), None) for name in named]
    if places and None not in places:
        return places
    print("evaluate.py: the training video is not where latents.json says, so the rendered codes stand for "
          "it; put it there, or beside latents.json.", file=sys.stderr)
    return None


def load_codes(e, args):
    """Codes, motion models and the image model, checked against each other. Raises InputError."""
    e.codes, latents = train.load_latents(args.latents)
    e.fps, e.shots = latents["fps"], latents["clips"]
    e.motions = [(path, *sample.load_motion(path, e.device)) for path in args.motion]
    videos = {"training": (args.latents, e.codes, latents)}
    if args.holdout:
        videos["holdout"] = (args.holdout, *train.load_latents(args.holdout))

    # All of one image model
    files = [(path, codes.shape[1:], meta["model"]) for path, codes, meta in videos.values()]
    files += [(path, (G.L, G.D), meta["model"]) for path, G, meta in e.motions]
    name = args.model or next((recorded["name"] for *_, recorded in files if recorded["name"]), None)
    if name is None:
        raise InputError(f"{args.latents} does not say which image model its codes are of; name it: --model.")
    e.model = load_image_model(name, device=e.device)
    e.actors = e.model.has_actors and e.model.encoder is not None
    for path, (L, D), recorded in files:
        if (L, D) != (e.model.L, e.model.D) or recorded["sha256"] not in (None, e.model.sha256):
            raise InputError(f"{path} has {L} x {D} codes of {recorded['name'] or 'an unknown model'}, but "
                             f"{e.model.name} takes {e.model.L} x {e.model.D}, or is another file of its "
                             f"name; give files that belong together, or name the image model: --model.")

    # Of one window, that fits into the videos
    e.window = args.window or (e.motions[0][2]["window"] if e.motions else WINDOW)
    for path, _, meta in e.motions:
        if meta["window"] != e.motions[0][2]["window"]:
            raise InputError(f"{path} was trained on windows of {meta['window']} frames, {args.motion[0]} on "
                             f"{e.motions[0][2]['window']}; give trainings of one method.")
    for path, codes, meta in videos.values():
        places = train.window_starts(meta["clips"], e.window) if e.window > 1 else []
        if len(codes) <= train.COMPONENTS or len(places) < 2:
            raise InputError(f"{path}: {len(codes)} frames are too few for two windows of {e.window} frames, "
                             f"or a PCA of {train.COMPONENTS} directions; give more, or a shorter --window.")

    # What codes are compared with: both videos, in the PCA of the training codes
    pca = e.motions[0][2]["pca"] if e.motions else train.fit_pca(e.codes)
    e.pca = {name: value.cpu() for name, value in pca.items()}
    x = {name: train.coordinates(torch.from_numpy(codes), e.pca) for name, (_, codes, _) in videos.items()}
    e.real = {name: train.code_references(x[name], videos[name][2]["clips"], e.window) for name in videos}
    e.shot = max(e.shots, key=lambda shot: shot[1] - shot[0])                   # the longest one ...
    e.x = x["training"][slice(*e.shot)]                     # ... and its coordinates (T, 32)


def load_inputs(args):
    """All that the command names, checked, in one namespace: e. Raises InputError."""
    e = SimpleNamespace(seed=args.seed, counts=FULL if args.full else QUICK, device=pick_device(args.device))
    load_codes(e, args)
    sidecar = Path(args.latents).with_suffix(".json")
    sidecar = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    e.rows, e.places = sidecar.get("frames"), source_files(args.latents, sidecar.get("source"))

    # Detectors, other methods, and whether there is enough for them
    files = {"inception": args.inception, "i3d": args.i3d}
    e.detectors = {kind: Detector(kind, file, e.device) for kind, file in files.items() if file}
    e.items = video_items(e)
    enough(e, args.latents, e.items)
    e.folders = [Folder(e, path) for path in args.videos]
    for folder in e.folders:
        enough(e, f"{folder.name}, short set", set_items(folder.videos["short"], 1, e))
    return e


def record(e, args):
    """All that the numbers depend on, for results.json; e.key: of what every cached part depends on."""
    code = [sys.modules[main.__module__], embed, train, sample, transfer, models]
    common = {
        **e.counts, "full": args.full, "seed": e.seed, "window": e.window, "fps": e.fps,
        "device": str(e.device), "image_model": [e.model.name, e.model.sha256],
        "latents": sha256_of(args.latents), "crops": digest(e.rows),
        "source": e.places and [content_hash(place) for place in e.places],
        "code": {Path(module.__file__).name: sha256_of(module.__file__) for module in code},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                     **{package.__name__: package.__version__ for package in (np, dlib, cv2, av)}}}
    e.key = digest(common)
    return {**common, "training_frames": len(e.codes), "training_windows": len(e.real["training"]["windows"]),
            "motion": [[str(path), sha256_of(path), meta["step"]] for path, _, meta in e.motions],
            "videos": [[folder.name, folder.key] for folder in e.folders],
            "holdout": args.holdout and sha256_of(args.holdout),
            "detectors": {kind: {"file": d.name, "sha256": d.sha256, "published": d.sha256 == d.published}
                          for kind, d in e.detectors.items()}}


# ------------------------------------------------------------------------------------------------------------
# Tables: {table: {row: {column: [one value per training]}}}
# ------------------------------------------------------------------------------------------------------------

TABLES = {      # title, functions whose docstrings explain the columns
    "distances": ("Fréchet distances of pictures, the paper's table 1", (fid, fvd)),
    "training": ("Motion, from the codes: distances to the training video", CODE_MEASURES.values()),
    "holdout": ("Motion, from the codes: distances to held-out video", CODE_MEASURES.values()),
    "loops": ("Loops", (loop_score,)),
    "faces": ("Faces, judged by dlib; reconstruction of the training video",
              (acd, similarity, speed, found, correlation, psnr))}


def add(tables, table, row, values):
    """One more training's values; what is not finite stays out."""
    kept = tables[table].setdefault(row, {})
    for column, value in values.items():
        if math.isfinite(value):
            kept.setdefault(column, []).append(float(value))


def distances(real, sets):
    """The row of sets {"short": features by kind, "long": ...}, compared with the real ones."""
    return {f"{name} {kind}": metric(real, some) for name, metric in (("FID", fid), ("FVD", fvd))
            for kind, some in sets.items()}


def add_method(e, tables, method):
    """Rows of a motion model or of another method's videos."""
    sets = {}
    for kind, per in (("short", 1), ("long", train.PER_LONG)):
        items = set_items(method.videos[kind], per, e)
        sets[kind] = {d: features(e, f"{method.name}, {kind}", d, method.frames, items[d], method.key)
                      for d in e.detectors if items[d]}
    for reference, real in e.references.items():
        add(tables, "distances", f"{method.name} | {reference}", distances(real, sets))

    windows, trajectories = method.motion()
    for name, real in e.real.items():
        for kind, some in windows.items():
            add(tables, name, f"{method.name}, {kind}", code_values(real, some))
    if trajectories:
        add(tables, "loops", method.name, loop_values(trajectories, e.usual))

    clips = looks(e, method.name, method.key, range(method.clips), method.views)
    for row in clips[0] if clips else ():
        add(tables, "faces", row, face_values([(clip[row], clip.get(OWN)) for clip in clips], e.fps))
    actors = [described(clip["offset trick"]) for clip in clips if "offset trick" in clip]
    actors = np.array([x.mean(0) for x in actors if len(x)])
    add(tables, "faces", "between the actors", {"ACD": acd(actors) if len(actors) else math.nan})


def add_training_video(e, tables):
    """Rows of the training video against itself: its codes, its halves, its frames in other orders."""
    if "original" in e.references:
        values = distances(e.references["original"], {"short": e.references["W+"]})
        add(tables, "distances", "W+ reconstruction | original", values)
    for name, real in e.real.items():
        if name == "holdout":
            copied = e.real["training"]["windows"]
            add(tables, name, "windows of the training video", code_values(real, copied))
        for row, against, windows in free_rows(real, e.seed):
            add(tables, name, row, code_values(against, windows))
    add(tables, "loops", "training video", loop_values([e.x.numpy()], e.usual))
    for name, values in video_faces(e.seen, e.fps).items():
        add(tables, "faces", name, values)


def notes_of(e):
    """What is to be said of each table beside its columns' footnotes: the counts."""
    c, windows = e.counts, {name: len(real["windows"]) for name, real in e.real.items()}
    notes = {name: [f"{n} real windows of {e.window} frames."] for name, n in windows.items()}
    notes["loops"] = [f"{LOOP_SAMPLES} samples of {LOOP_FRAMES} frames; the training video's longest shot, "
                      f"{len(e.x)} frames. More frames have more lags, and any motion a lower score."]
    notes["faces"] = [f"{c['clips']} clips of {c['frames']} frames, of the training video {len(e.seen)}; "
                      f"descriptors of every {c['every']}th frame. The paper's ACD: 128 of 400, every frame "
                      f"(--full)."]
    if not e.detectors:
        notes["training"].append("FID and FVD are not computed; --inception and --i3d add them.")
    notes["distances"] = [f"Of a set at most {c['fid_frames']} frames, {c['fvd_clips']} clips; the training "
                          f"video has {len(e.codes)} and {windows['training']}."]
    if c is QUICK:
        notes["distances"].append("These are not the paper's counts (--full), and fewer samples make larger "
                                  "distances: compare with this command's own numbers alone.")
    for folder in e.folders:
        short, long = (len(folder.videos[kind]) for kind in ("short", "long"))
        notes["distances"].append(f"{folder.name}: {short} videos in the short set, {long} in the long one.")
    return notes


def laid_out(tables, notes):
    """The tables that have values, in words: [{"title", "head", "rows", "notes"}]."""
    def cell(values):                                                           # or mean ± standard deviation
        if not values:
            return "-"
        digits = 3 if abs(np.mean(values)) < 10 else 1
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    layout = []
    for name, rows in tables.items():
        head = list(dict.fromkeys(column for values in rows.values() for column in values))
        cells = [[row, *(cell(values.get(c)) for c in head)] for row, values in rows.items() if values]
        said = [*notes[name], *(f.__doc__.split("\n\n")[0] for f in TABLES[name][1])] if head else []
        if head:
            layout.append({"title": TABLES[name][0], "head": ["", *head], "rows": cells,
                           "notes": [" ".join(text.split()) for text in said]})
    return layout


def as_text(layout):
    """All tables; a footnote that two of them share is said once."""
    parts, said = [], set()
    for table in layout:
        columns = zip(table["head"], *table["rows"], strict=True)
        lines, widths = [], [max(map(len, column)) for column in columns]
        for row in (table["head"], ["-" * w for w in widths], *table["rows"]):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells))
        notes = [textwrap.fill(text, 110, initial_indent="  * ", subsequent_indent="    ")
                 for text in table["notes"] if text not in said]
        said.update(table["notes"])
        parts.append("\n".join([table["title"], *lines, *notes]))
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------
# Page
# ------------------------------------------------------------------------------------------------------------

def data_uri(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def curves(title, x, fps):
    """The three largest of coordinates x (T, 32) over time, as an SVG picture in a data URI."""
    figure, file = Figure(figsize=(5.6, 3), layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    for j in range(3):
        axes.plot(np.arange(len(x)) / fps, x[:, j], label=f"PCA {j + 1}", linewidth=1.2)
    axes.set(title=title, xlabel="seconds")
    axes.legend(fontsize=8)
    with rc_context({"svg.hashsalt": title}):           # the same picture, the same bytes
        figure.savefig(file, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", file.getvalue())


def video(clips, fps):
    """Clips [(T, H, W, 3)] side by side, as an H.264 file in a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with transfer.VideoWriter(path, fps, crf=23) as writer:
            for frames in zip(*clips, strict=False):                            # the shortest ends it
                side = min(PAGE_SIDE, frames[0].shape[0]) // 2 * 2
                small = [cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in frames]
                writer.write(np.hstack(small))
        return data_uri("video/mp4", path.read_bytes())


def illustrations(e, methods):
    """Plots [URI] and videos [(caption, URI)] of the training video, a motion model, another method."""
    start, end = e.shot
    slow = e.device.type == "cpu" and e.model.size > 256                    # 1024 px take a core a second
    T = min(round((1 if slow else PAGE_SECONDS) * e.fps), end - start)
    plots = [curves("Training video: its largest motions", e.x[:T], e.fps)]
    clips = [judged(source_crops(e, range(start, start + T)))] if e.places else []
    clips.append(rendered(e, torch.from_numpy(e.codes[start:start + T])))
    videos = [("training video, " * bool(e.places) + RECONSTRUCTION, video(clips, e.fps))]

    for method in [m for m in methods if isinstance(m, Samples)][:1]:
        w = [method.codes(k, T) for k in range(3)]                              # (T, L, D) each
        plots.append(curves("Sample: its largest motions", train.coordinates(w[0].cpu(), e.pca), e.fps))
        videos.append(("three samples, training actor", video([rendered(e, v) for v in w], e.fps)))
        for name, mode in WAYS.items() if e.actors else ():
            clips = [rendered(e, method.performed(w[0], k, mode)) for k in range(3)]
            videos.append((f"the first sample by three actors: {name}", video(clips, e.fps)))
    for folder in e.folders[:1]:
        clips = [judged(folder.stream(k, T)) for k in range(folder.clips)[:3]]
        videos.append((folder.name, video(clips, e.fps)))
    return plots, videos


def main(args):
    started = time.time()

    # Outputs and inputs
    json_path = Path(args.json)
    html_path = json_path.with_suffix(".html")
    for path in (json_path, html_path):
        if path.is_dir() or not os.access(path.parent, os.W_OK) or html_path == json_path:
            raise InputError(f"{path} cannot be written; name another .json file with --json.")
    if not args.motion and not args.videos:
        raise InputError("nothing to measure: name a motion model after LATENTS, or a folder with --videos.")
    if not 0 <= args.seed < 2 ** 31:
        raise InputError(f"--seed {args.seed}: a seed is a whole number from 0 to {2 ** 31 - 1}.")
    e = load_inputs(args)
    settings = record(e, args)

    # What is finished is kept; each thread renders pictures of its own
    try:
        e.memory = joblib.Memory(cache_folder() / "evaluate", verbose=0)
        e.memory.reduce_size(age_limit=KEEP)
    except OSError as error:
        raise InputError(f"{cache_folder()} cannot be written ({error.strerror}); name another folder in "
                         f"STYLEVIDEOGAN_CACHE.") from None
    e.pool = ThreadPoolExecutor(torch.get_num_threads() if e.device.type == "cpu" else 1)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False                             # CUDA would round what detectors see

    # The training video, with which all else is compared
    sources = {"W+": lambda k, wanted: pictures(e, torch.from_numpy(e.codes[wanted]))}
    if e.places:
        sources = {"original": lambda k, wanted: np.stack(list(source_crops(e, wanted))), **sources}
    e.references = {name: {kind: features(e, f"training video, {name}", kind, source, e.items[kind], name)
                           for kind in e.detectors} for name, source in sources.items()}
    e.usual, e.seen = usual_distance(e.x.numpy()), video_looks(e)

    # Tables
    tables = {name: {} for name in TABLES}
    methods = [*(Samples(e, *motion) for motion in e.motions), *e.folders]
    for method in methods:
        add_method(e, tables, method)
    add_training_video(e, tables)
    notes = notes_of(e)
    layout = laid_out(tables, notes)

    # Report
    results = {"tables": tables, "notes": notes, "settings": settings, "seconds": time.time() - started}
    plots, videos = illustrations(e, methods)
    template = jinja2.Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    page = template.render(tables=layout, plots=plots, videos=videos, settings=json.dumps(settings, indent=1))
    for path, text in ((json_path, json.dumps(results, indent=1)), (html_path, page)):
        train.write_atomically(path, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    print(as_text(layout))
    print(f"evaluate.py: wrote {json_path}, {html_path} in {time.time() - started:.0f} s.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("latents", metavar="LATENTS", help="training codes, latents.npy of embed.py")
    parser.add_argument("motion", metavar="MOTION", nargs="*",
                        help="motion models of train.py: one, or several trainings of one method")
    parser.add_argument("--holdout", metavar="LATENTS", help="codes of video that was not trained on")
    parser.add_argument("--full", action="store_true", help="the paper's counts instead of small ones")
    parser.add_argument("--json", default="results.json", metavar="FILE",
                        help="all numbers and settings; the page is beside it, with .html")
    parser.add_argument("--inception", metavar="FILE", help="FID, by this TorchScript; fetch: NVIDIA's")
    parser.add_argument("--i3d", metavar="FILE", help="FVD, by this TorchScript; fetch: StyleGAN-V's")
    parser.add_argument("--videos", metavar="FOLDER", action="append", default=[],
                        help="another method's videos (files or folders of pictures), cropped as the "
                             "training frames are; repeatable")
    parser.add_argument("--window", type=int, metavar="T", help="frames of a clip; default: MOTION's, or 25")
    parser.add_argument("--model", help="image model; default: the one recorded in MOTION")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "evaluate.py: interrupted; the same command goes on from here.\n")
