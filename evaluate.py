"""Measure a motion model: how close it is to the training video, whether it loops, what transfer keeps.

    python evaluate.py latents.npy motion.pt                        # every table; three minutes on two cores
    python evaluate.py latents.npy motion.pt --full --inception fetch --i3d fetch    # the paper's table 1
    python evaluate.py latents.npy one.pt two.pt var.pt             # trainings of a kind: mean, deviation
    python evaluate.py latents.npy motion.pt --holdout unseen.npy   # else what train.py held out
    python evaluate.py latents.npy --videos tganv2/ --window 16     # another method's videos, same protocol

Prints the tables, writes results.json and results.html. An interrupted evaluation goes on where it was when
the same command is given again. The first paragraph of a measure's docstring says what it is, its unit, which
direction is better and where it comes from; it is printed below the tables.

Shapes: T frames, L style rows, D style width, d features of a detector; frames (T, H, W, 3) uint8 RGB;
coordinates (T, 32) in the PCA of the training codes; windows (n, T, 32); points (T, 68, 2). e: all that the
command names, of load_all(); e.shots: clips of the training video, less what train.py held out.
"""

import argparse
import base64
import datetime
import functools
import itertools
import json
import math
import os
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
BLOCK = 64              # ours: items of one video whose features are computed and kept at once
CHUNK = 32              # ours: pictures of a sample in memory at once
FAR = 4000              # ours: frames of the longest samples, ten times those of the long ones
LOOP_SAMPLES, LOOP_FRAMES = 8, 1500     # searched for loops: ours; as long as sec. 4's longest
LOOP_LAG = 25           # ours: shortest lag in frames that counts; below it, any motion resembles itself
LOOPS = 0.3             # ours: a sample with a lower score loops
JUDGED_SIDE = 256       # ours: px of the shorter side of frames for dlib, at most; its descriptor sees 150
KEEP = datetime.timedelta(days=30)      # ours: how long what is computed stays in the cache
PAGE_SECONDS = 4        # ours: of the page's videos
PAGE = Path(__file__).resolve().parent / "assets" / "page.html"

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
DETECTORS = {           # column, TorchScript file as its authors publish it, address, sha256
    "inception": ("FID", "inception-2015-12-05.pt", NVIDIA + "inception-2015-12-05.pt",
                  "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
    "i3d": ("FVD", "i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")}

# Rows of frames, and whose motion they perform
VIDEO, RECONSTRUCTION, OWN = "training video", "its W+ reconstruction", "sampled, training actor"
WAYS = {"offset trick": "offset", "naive shift": "naive"}                       # sec. 3 and Fig. 4
PERFORMS = {RECONSTRUCTION: VIDEO, "offset trick": OWN, "naive shift": OWN}

FREE = {"filtered noise": "noise", "VAR(8)": "var", "video textures": "textures"}   # computed, not trained
RATIOS = "kurtosis", "jitter", "novelty"        # measures that are best at 1; of the others less is better


def mean(values):
    """Mean of what is no NaN; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def evenly(items, n):
    """Up to n of the items, evenly spaced from the first to the last."""
    n = min(n, len(items))
    return [items[k * (len(items) - 1) // max(n - 1, 1)] for k in range(n)]


def once(key, compute):
    """compute(), which joblib.Memory keeps under key: an interrupted evaluation goes on from there."""
    return compute()


# ------------------------------------------------------------------------------------------------------------
# Motion, from the codes alone. What a measure is: train.MEASURES
# ------------------------------------------------------------------------------------------------------------

def drawn(real, seed):
    """Windows of a video, drawn at random: what a model scores that is the video."""
    return real["windows"][np.random.RandomState(seed).randint(0, len(real["windows"]), train.SHORT)]


def rearranged(real, seed):
    """Windows of a video whose frames are in a wrong order: {row: windows}."""
    some = drawn(real, seed)
    order = torch.from_numpy(np.random.RandomState(seed).rand(*some.shape[:2])).argsort(1)
    return {"frozen frames": some[:, :1].expand_as(some), "time-reversed": some.flip(1),
            "shuffled frames": some.gather(1, order[..., None].expand_as(some))}        # each its own order


def free_motion(e):
    """Of what costs nothing, all of it made of the training video: {row: windows}, and {row: trajectories} of
    the models that are computed."""
    windows, halves = rearranged(e.real["training"], e.seed), {}
    for row, kind in FREE.items():
        G = models.motion_model(kind)(e.model.L, e.model.D).fit(e.coordinates, e.shots, e.pca)
        rng = torch.Generator().manual_seed(e.seed)
        windows[row] = train.sample_coordinates(G, train.SHORT, e.window, e.pca, rng)
        halves[row] = second_halves(G, e.pca, e.seed)
    return windows, halves


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
    """A row of loop_score()."""
    scores = [loop_score(x, usual) for x in trajectories]
    looping = 100 * mean([math.nan if math.isnan(score) else score < LOOPS for score in scores])
    return {"score": mean(scores), "worst": min(scores), "looping, %": looping}


def second_halves(G, pca, seed):
    """Second halves (750, 32) of samples, in which loops are looked for."""
    halves = []
    for k in range(LOOP_SAMPLES):
        chunks = sample.sample(G, LOOP_FRAMES, seed + k)
        x = torch.cat([train.coordinates(torch.from_numpy(w), pca) for w in chunks])        # (1500, 32)
        halves.append(x[len(x) // 2:].numpy())
    return halves


def sampled_motion(G, window, pca, seed):
    """Windows {"short", "long", "4,000"}, (2048, T, 32) each: from frame 0 on, in samples of 400 frames, and
    in the last 400 of 4,000 frames; and second_halves()."""
    rng, (n, t) = torch.Generator().manual_seed(seed), train.LONG
    windows = train.motion_windows(G, window, pca, rng)
    far = train.sample_coordinates(G, n, FAR, pca, rng, last=max(t, 4 * window))
    return {**windows, f"{FAR:,}": train.long_windows(far, window)}, second_halves(G, pca, seed)


def verdicts(table, who):
    """Which models that cost nothing are nearer to a video than the rows `who`, and by what: sentences.

    Ours: level is what differs by less than a fifth of the larger, or 1, or 0.05 of a ratio, as two draws of
    one model may.
    """
    def sentence(rival, row):
        found = {"ahead": [], "level": [], "behind": []}
        for name in train.MEASURES:
            a, b = (mean(table[of].get(name, [])) for of in (rival, row))
            a, b, least = (abs(a - 1), abs(b - 1), 0.05) if name in RATIOS else (a, b, 1.0)
            level = abs(a - b) <= max(least, 0.2 * a, 0.2 * b)
            if math.isfinite(a - b):
                found["level" if level else "ahead" if a < b else "behind"].append(name)
        return f"{rival} against {row}: " + "; ".join(f"{k} in {', '.join(v)}" for k, v in found.items() if v)

    return [f"{sentence(rival, row)}." for row in who for rival in FREE]


# ------------------------------------------------------------------------------------------------------------
# Frames: the training video, samples of a motion model, another method's videos. Each is a namespace of
#   key     what its frames depend on
#   frames  {row: function}; function(k, wanted) yields the frames of video k whose sorted numbers are wanted
#   sets    {name: {"inception": items, "i3d": items}}, of the first row. An item is (number of a video,
#           numbers of its frames): one frame for FID, a clip's for FVD
#   clips   [(k, frame numbers)], judged by dlib in every row
# ------------------------------------------------------------------------------------------------------------

def pictures(e, w):
    """Yields the pictures (size, size, 3) of codes w (T, L, D)."""
    for part in w.split(CHUNK):
        yield from transfer.render(e.model, part.to(e.device), transfer.pictures_at_once(e.model), e.pool.map)


def items(e, videos, per):
    """A set of videos [(k, frames used of video k)]; per: clips evenly spaced in each."""
    frames = [(k, [t]) for k, n in videos for t in range(n)]
    clips = [(k, list(range(s, s + e.window)))
             for k, n in videos for s in evenly(range(n - e.window + 1), per)]
    return {"inception": evenly(frames, e.counts["fid_frames"]), "i3d": evenly(clips, e.counts["fvd_clips"])}


def training_video(e):
    """The crops of its source, if that is there, and the pictures of their codes. Video k is shot k."""
    def crops(k, wanted):
        shot = e.facts["frames"][slice(*e.shots[k])]                            # of one source
        return embed.crops(e.source[shot[0].get("source", 0)], [shot[t] for t in wanted], e.model.size, shot)

    def reconstruction(k, wanted):
        return pictures(e, torch.from_numpy(e.codes[e.shots[k][0] + np.array(wanted)]))

    shots = [(k, end - start) for k, (start, end) in enumerate(e.shots)]
    longest, T = max(shots, key=lambda shot: shot[1]), e.counts["frames"]
    clips = [(k, range(s, s + T)) for k, n in shots for s in range(0, n - T + 1, T)]
    return SimpleNamespace(
        key=VIDEO, kind=None, frames={**({VIDEO: crops} if e.source else {}), RECONSTRUCTION: reconstruction},
        sets={"short": items(e, shots, len(e.codes))},
        clips=evenly(clips, e.counts["clips"]) or [(longest[0], range(longest[1]))])


def samples(e, path, G, meta):
    """A motion model's samples: sample k is that of `sample.py --seed SEED + k`, actor k is random."""
    pca = {name: meta["pca"][name].to(e.device).float() for name in ("mean", "basis")}

    def frames(k, wanted, way=None):
        w = np.concatenate(list(sample.sample(G, wanted[-1] + 1, e.seed + k)))
        w = torch.from_numpy(w).to(e.device)                                    # (T, L, D)
        if way:
            w = transfer.move(w, transfer.random_actor(e.model, k), pca, w[0], way)
        return pictures(e, w[list(wanted)])

    rows = {OWN: frames}
    if e.model.has_actors and e.model.encoder is not None:
        rows |= {row: functools.partial(frames, way=way) for row, way in WAYS.items()}
    n = e.counts["fvd_clips"]
    short = [(k, e.window) for k in range(n)]
    long = [(LONG_SEED + k, train.LONG[1]) for k in range(-(-n // train.PER_LONG))]
    clips = [(k, range(e.counts["frames"])) for k in range(e.counts["clips"])]
    motion = functools.partial(sampled_motion, G, e.window, e.pca, e.seed)
    return SimpleNamespace(key=sha256_of(path), kind=G.kind, frames=rows, clips=clips, motion=motion,
                           sets={"short": items(e, short, 1), "long": items(e, long, train.PER_LONG)})


def videos_of(e, path):
    """Videos of any method in a folder: files, or folders of pictures. Raises InputError."""
    endings = {*transfer.FORMATS, ".webm", ".avi", ".gif"}
    found = Path(path).iterdir() if Path(path).is_dir() else []
    files = sorted(p for p in found if p.is_dir() or p.suffix.lower() in endings)
    if not files:
        raise InputError(f"{path} is no folder with videos (.mp4, ...) or folders of pictures; name another.")

    def frames(k, wanted):
        wanted = set(wanted)
        first = itertools.islice(embed.read_video(files[k]), max(wanted) + 1)
        return (frame for t, frame in enumerate(first) if t in wanted)

    bar = tqdm(files, desc="count frames", unit="video")
    lengths = list(enumerate(sum(1 for _ in embed.read_video(file)) for file in bar))
    short = [(k, e.window) for k, n in lengths if n >= e.window]
    long = [(k, n) for k, n in lengths if n >= max(LONG_LEAST, e.window)][:train.LONG[0]]
    clips = [(k, range(min(n, e.counts["frames"]))) for k, n in lengths[:e.counts["clips"]]]
    return SimpleNamespace(key=hashes(files), kind=None, frames={str(path): frames}, clips=clips,
                           sets={"short": items(e, short, 1), "long": items(e, long, train.PER_LONG)})


def hashes(paths):
    """{name: sha256} of files, and of all files in folders."""
    files = [file for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*"))]
    return {str(file): sha256_of(file) for file in sorted(files) if file.is_file()}


# ------------------------------------------------------------------------------------------------------------
# FID and FVD
# ------------------------------------------------------------------------------------------------------------

def load_detector(kind, file, device):
    """The network whose features FID ("inception") or FVD ("i3d") compares. file: TorchScript, or "fetch".

    TorchScript is code, but of a small language that runs in an interpreter of its own: of a fetched file the
    sha256 is checked, of a given one it is put on record.
    """
    _, name, url, published = DETECTORS[kind]
    path = fetch(name, url, published, f"--{kind}")[0] if file == "fetch" else Path(file)
    options = {"rescale": True, "resize": True} if kind == "i3d" else {}

    @torch.no_grad()
    def features(frames):
        """Frames of an item (T, H, W, 3) uint8 -> (d,). The networks resize (to 299, 224 px) and rescale."""
        x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].contiguous().to(device)      # (1, 3, T, H, W)
        x = x if kind == "i3d" else x[:, :, 0]
        return network(x, return_features=True, **options)[0].float().cpu().numpy()

    try:
        sha256 = sha256_of(path)
        network = torch.jit.load(str(path), map_location=device).eval()
        d = len(features(np.zeros((16, 32, 32, 3), np.uint8)))
    except Exception as error:  # torch raises several types here
        raise InputError(f"{path} is no TorchScript that can be used for --{kind} ({type(error).__name__}); "
                         f"give {name}, or say --{kind} fetch.") from None
    if file == "fetch" and sha256 != published:
        raise InputError(f"{path} has sha256 {sha256}, not {published}; delete it.")
    return SimpleNamespace(features=features, d=d, sha256=sha256, published=sha256 == published)


def block_features(detector, frames, k, block):
    """Features (n, d) of items of video k, given as lists of frame numbers."""
    wanted = sorted(set(itertools.chain(*block)))
    known = dict(zip(wanted, frames(k, wanted), strict=True))
    return np.stack([detector.features(np.stack([known[t] for t in item])) for item in block])


def features(e, source, row, wanted):
    """{kind: features (n, d)} of a set's items, {kind: items}."""
    arrays = {}
    for kind, detector in e.detectors.items():
        blocks = [(k, block) for k, some in itertools.groupby(wanted[kind], key=lambda item: item[0])
                  for block in embed.in_batches((numbers for _, numbers in some), BLOCK)]
        found = [e.once([e.key, source.key, row, detector.sha256, k, block],
                        functools.partial(block_features, detector, source.frames[row], k, block))
                 for k, block in tqdm(blocks, desc=f"{row}, --{kind}", unit="block")]
        if found:
            arrays[kind] = np.concatenate(found)
    return arrays


def picture_distance(real, some):
    """FID and FVD: Fréchet distance of Gaussians fitted to a network's features of both sets. No unit; 0 is
    best. FID: Inception-v3's 2048 features of frames, whose order it does not see (Heusel et al. 2017). FVD:
    I3D's 400 logits of clips as long as the training window (Unterthiner et al. 2019). Short: samples of that
    length; long: 16 clips of each long sample. Table 1, there with pytorch-fid's weights, here with NVIDIA's
    TorchScript of the same network, which agree closely, not exactly; and with StyleGAN-V's TorchScript of
    I3D, so the paper's absolute FVD is not to be compared with.

    Features (n, d), (m, d), in float64. NaN where a set has no more items than features: its covariance is
    singular, and the distance comparable with no other.
    """
    return train.frechet(real, some) if min(len(real), len(some)) > real.shape[1] else math.nan


# ------------------------------------------------------------------------------------------------------------
# Faces, judged by dlib. A clip is {"points" (T, 68, 2), "descriptors" (T, 128)}
# ------------------------------------------------------------------------------------------------------------

def judged(frames):
    """Frames (H, W, 3) as dlib gets them, (T, h, w, 3): the shorter side at most JUDGED_SIDE."""
    def small(frame):
        k = JUDGED_SIDE / min(frame.shape[:2])
        return cv2.resize(frame, None, fx=k, fy=k, interpolation=cv2.INTER_AREA) if k < 1 else frame

    return np.stack([small(frame) for frame in frames])


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


def observe(frames, fps, every):
    """What dlib sees in frames: points in shares of the width, descriptors of every `every`-th frame; NaN
    elsewhere, and where there is no face."""
    cv2.setNumThreads(1)
    tracker = embed.FaceTracker(fps)
    points, descriptors = np.full((len(frames), 68, 2), np.nan), np.full((len(frames), 128), np.nan)
    for k, frame in enumerate(frames):
        p = tracker.step(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        if p is not None:
            points[k] = p / frame.shape[1]
            if k % every == 0:
                descriptors[k] = descriptor(frame, p)
    return {"points": points, "descriptors": descriptors}


def observed(e, source):
    """{row: what observe() says of its clips}; other processes judge while this one renders the next."""
    tasks = [(row, *clip) for clip in source.clips for row in source.frames]
    keys = [[e.key, source.key, *task] for task in tasks]
    missing = [n for n, key in enumerate(keys) if not e.once.check_call_in_cache(key, None)]

    frames = (source.frames[row](k, wanted) for row, k, wanted in (tasks[n] for n in missing))
    jobs = (joblib.delayed(observe)(judged(clip), e.fps, e.counts["every"]) for clip in frames)
    workers = joblib.Parallel(n_jobs=joblib.cpu_count(), pre_dispatch="n_jobs + 1", return_as="generator")
    bar = tqdm(workers(jobs), total=len(missing), desc=", ".join(source.frames), unit="clip")
    for n, seen in zip(missing, bar, strict=True):
        e.once(keys[n], lambda seen=seen: seen)
    return {row: [e.once(key, None) for key, task in zip(keys, tasks, strict=True) if task[0] == row]
            for row in source.frames}


def face_measures(points):
    """What a face (68, 2) does, free of the head's place, size and roll. mouth_area: of the outer lips, over
    the squared eye distance. mouth_opening: distance of the inner lips (62, 66) over the eye distance.
    eye_opening: heights of the eyes over their widths, mean. yaw: the nose tip's offset from the eyes'
    midpoint along the eye line, over the eye distance."""
    E, e = embed.eyes(points)
    distance = np.linalg.norm(e)
    x, y = points[48:60].T
    lengths = np.linalg.norm(points[[37, 38, 36, 43, 44, 42]] - points[[41, 40, 39, 47, 46, 45]], axis=1)
    return {"mouth_area": float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / distance ** 2),
            "mouth_opening": float(np.linalg.norm(points[66] - points[62]) / distance),
            "eye_opening": float((lengths[:2].mean() / lengths[2] + lengths[3:5].mean() / lengths[5]) / 2),
            "yaw": float((points[30] - E) @ e / distance ** 2)}


def correlation(own, clip):
    """Correlation of mouth area, mouth opening, eye opening, yaw: Pearson's r, frame by frame, between a clip
    and the one whose motion it performs, by dlib's landmarks, mean over the clips. From -1 to 1, higher is
    better. The lips' area is the LiA of Manandhar and Genovesio 2023 (One-Style), there between videos of one
    motion; else ours."""
    both = np.isfinite(own["points"][:, 0, 0]) & np.isfinite(clip["points"][:, 0, 0])
    a, b = ([[*face_measures(p).values()] for p in some["points"][both]] for some in (own, clip))
    if len(a) < 3:
        return [math.nan] * len(CORRELATIONS)
    with np.errstate(invalid="ignore", divide="ignore"):                        # NaN of what stands still
        return [float(np.corrcoef(x, y)[0, 1]) for x, y in zip(np.array(a).T, np.array(b).T, strict=True)]


def acd(clip):
    """ACD, average content distance: mean L2 distance of dlib's face descriptors over all pairs of a clip's
    frames, mean over the clips. In the descriptor's own unit: 0 between equal pictures, below 0.6 between
    pictures of one person (dlib). Lower is better, but a face that stands still wins. Tulyakov et al. 2018;
    sec. 4."""
    d = clip["descriptors"]
    rows, columns = np.triu_indices(len(d), 1)
    return mean(np.linalg.norm(d[rows] - d[columns], axis=1))


def found(clip):
    """Found: share of the frames in which dlib finds a face; what is not found is not measured. 1 is best."""
    return float(np.isfinite(clip["points"][:, 0, 0]).mean())


CORRELATIONS = "mouth area r", "mouth r", "eyes r", "yaw r"
FACE_MEASURES = {"ACD": acd, "found": found}


def face_values(clips, originals=()):
    """A row of measures; originals: the clips whose motion these perform."""
    values = {name: mean([measure(clip) for clip in clips]) for name, measure in FACE_MEASURES.items()}
    r = [correlation(*pair) for pair in zip(originals, clips, strict=False)]
    return {**values, **dict(zip(CORRELATIONS, map(mean, zip(*r, strict=True)), strict=False))}


# ------------------------------------------------------------------------------------------------------------
# Inputs
# ------------------------------------------------------------------------------------------------------------

def load_codes(e, args):
    """Codes, motion models and the image model, checked against each other. Raises InputError."""
    e.motions = [(path, *sample.load_motion(path, e.device)) for path in args.motion]
    windows = {meta["window"] for *_, meta in e.motions} or {WINDOW}
    if len(windows) > 1:
        raise InputError(f"the motion models were trained on windows of {sorted(windows)} frames; give "
                         f"trainings of one method.")
    e.window = args.window or windows.pop()
    paths = {"training": args.latents, "holdout": args.holdout}
    videos = {name: train.load_training_set([path], e.window) for name, path in paths.items() if path}
    e.codes, e.facts = videos["training"]
    e.fps, e.shots = e.facts["fps"], e.facts["clips"]

    # The frames that train.py kept out of training, if all models say the same: the end of a shot
    start, end = next((meta["holdout"] for *_, meta in e.motions if meta.get("holdout")), (0, 0))
    agreed = all(meta.get("holdout") == [start, end] for *_, meta in e.motions) and end - start > e.window
    kept = [(a, start if agreed and b == end and a < start else b) for a, b in e.shots]
    held, e.shots = [(start, end)] if kept != e.shots else [], kept

    # All of one image model
    files = [(paths[name], codes.shape[1:], meta["model"]) for name, (codes, meta) in videos.items()]
    files += [(path, (G.L, G.D), meta["model"]) for path, G, meta in e.motions]
    name = args.model or next((recorded["name"] for *_, recorded in files if recorded["name"]), None)
    if name is None:
        raise InputError(f"{args.latents} does not say which image model its codes are of; name it: --model.")
    e.model = load_image_model(name, device=e.device)
    for path, (L, D), recorded in files:
        if (L, D) != (e.model.L, e.model.D) or recorded["sha256"] not in (None, e.model.sha256):
            raise InputError(f"{path} has {L} x {D} codes of {recorded['name'] or 'an unknown model'}, but "
                             f"{e.model.name} takes {e.model.L} x {e.model.D}, or is another file of its "
                             f"name; give files that belong together, or name the image model: --model.")

    # What codes are compared with: both videos, in the PCA of the training codes
    pca = e.motions[0][2]["pca"] if e.motions else train.fit_pca(e.codes)
    e.pca = {name: value.cpu() for name, value in pca.items()}
    x = {name: train.coordinates(torch.from_numpy(codes), e.pca) for name, (codes, _) in videos.items()}
    e.coordinates = x["training"]                                               # (T, 32)
    e.real = {"training": train.references(e.coordinates, e.shots, e.window)}
    if args.holdout or held:
        other = (x["holdout"], videos["holdout"][1]["clips"]) if args.holdout else (e.coordinates, held)
        e.real["holdout"] = train.references(*other, e.window, e.real["training"])
    longest = max(e.shots, key=lambda shot: shot[1] - shot[0])
    e.longest = e.coordinates[slice(*longest)].numpy()                          # (T, 32)
    e.usual = usual_distance(e.longest)


def load_all(args):
    """All that the command names, checked, in one namespace, e. Raises InputError."""
    e = SimpleNamespace(seed=args.seed, counts=FULL if args.full else QUICK, device=pick_device(args.device))
    load_codes(e, args)
    e.source = e.facts["source"]
    if not e.source or not all(Path(file).exists() for file in e.source):
        print(f"evaluate.py: no training video where {Path(args.latents).with_suffix('.json')} names one, so "
              f"the rendered codes stand for it; put it there, or beside {args.latents}.", file=sys.stderr)
        e.source = []

    # Detectors, what they see, and whether there is enough for them
    files = {"inception": args.inception, "i3d": args.i3d}
    e.detectors = {kind: load_detector(kind, file, e.device) for kind, file in files.items() if file}
    e.video = training_video(e)
    others = {path: videos_of(e, path) for path in args.videos}
    for path, source in {args.latents: e.video, **others}.items():
        for kind, detector in e.detectors.items():
            n = len(source.sets["short"][kind])
            if n <= detector.d:
                what = f"clips of {e.window} frames" if kind == "i3d" else "frames"
                raise InputError(f"{path}: {n} {what} are too few for --{kind}, whose {detector.d} features "
                                 f"need {detector.d + 1}; give more, or no --{kind}.")
    e.methods = [*(samples(e, *motion) for motion in e.motions), *others.values()]
    e.kinds = {G.kind for _, G, _ in e.motions}

    # Everything that the numbers depend on; the key is of what every part depends on
    code = [__file__, *(module.__file__ for module in (models, embed, train, sample, transfer))]
    code += sorted((Path(__file__).resolve().parent / "baselines").glob("*.py"))
    versions = {package.__name__: str(package.__version__) for package in (np, torch, dlib, cv2, av)}
    e.settings = {**e.counts, "seed": e.seed, "window": e.window, "fps": e.fps, "device": str(e.device),
                  "image model": [e.model.name, e.model.sha256], "versions": versions,
                  "files": hashes([args.latents, *e.source, *code])}
    e.key = joblib.hash([e.settings, e.facts])
    e.settings["files"] |= hashes([*args.motion, *args.videos, *([args.holdout] if args.holdout else [])])
    e.settings["sets"] = [{name: {DETECTORS[kind][0]: len(some[kind]) for kind in e.detectors}
                           for name, some in source.sets.items()} for source in (e.video, *e.methods)]
    e.settings["detectors"] = {kind: {"file": str(files[kind]), "sha256": d.sha256, "published": d.published}
                               for kind, d in e.detectors.items()}
    return e


# ------------------------------------------------------------------------------------------------------------
# Tables: {title: {row: {column: [one value per training]}}}
# ------------------------------------------------------------------------------------------------------------

PICTURES = "Fréchet distances of pictures, the paper's table 1"
LOOPING, FACES = "Loops", "Faces, judged by dlib"
MOTION = {"training": "Motion, from the codes, against the training video",
          "holdout": "Motion, from the codes, against video held out"}
FOOTNOTES = picture_distance, *train.MEASURES.values(), loop_score, *FACE_MEASURES.values(), correlation


def keep(table, row, values):
    """One more training's values; what is not finite stays out."""
    kept = table.setdefault(row, {})
    for column, value in values.items():
        if math.isfinite(value):
            kept.setdefault(column, []).append(float(value))


def shown(e, source, row):
    """A row's name, with the motion model's kind where there are several."""
    return f"{source.kind}: {row}" if source.kind and len(e.kinds) > 1 else row


def add_distances(e, table, row, name, found):
    """Features of a set {kind: (n, d)} against the training video and its reconstruction."""
    for reference, real in e.references.items():
        values = {f"{DETECTORS[kind][0]} {name}": picture_distance(real[kind], some)
                  for kind, some in found.items()}
        keep(table, f"{row} | {reference}", values)


def add_faces(e, table, source):
    """Rows of what dlib sees in a source of frames; ACD of the mean faces of random actors."""
    clips = observed(e, source)
    for row in clips:
        keep(table, shown(e, source, row), face_values(clips[row], clips.get(PERFORMS.get(row), ())))
    actors = [clip["descriptors"] for clip in clips.get("offset trick", ())]
    actors = [np.nanmean(d, 0) for d in actors if np.isfinite(d).any()]
    if actors:
        keep(table, shown(e, source, "between the actors"), {"ACD": acd({"descriptors": np.stack(actors)})})


def add_method(e, tables, method):
    """Rows of a motion model or of another method's videos."""
    row = next(iter(method.frames))
    for name, some in method.sets.items():
        found = features(e, method, row, some)
        add_distances(e, tables[PICTURES], shown(e, method, row), name, found)
    add_faces(e, tables[FACES], method)
    if method.kind:
        windows, halves = e.once([e.key, method.key, e.pca["basis"].numpy()], method.motion)
        for reference, real in e.real.items():
            for name, some in windows.items():
                values = train.measures(real, some)
                keep(tables[MOTION[reference]], shown(e, method, f"sampled, {name}"), values)
        keep(tables[LOOPING], shown(e, method, "sampled"), loop_values(halves, e.usual))


def add_training_video(e, tables):
    """Rows of the training video, of what is made of it without training, and of its pictures."""
    windows, halves = free_motion(e)
    windows |= {f"real windows, {name}": drawn(some, e.seed) for name, some in e.real.items()}
    for reference, real in e.real.items():
        for row, some in windows.items():
            keep(tables[MOTION[reference]], row, train.measures(real, some))
    for row, trajectories in {**halves, VIDEO: [e.longest]}.items():
        keep(tables[LOOPING], row, loop_values(trajectories, e.usual))
    add_faces(e, tables[FACES], e.video)
    if e.source:
        add_distances(e, tables[PICTURES], RECONSTRUCTION, "short", e.references[RECONSTRUCTION])


def counts_in_words(e):
    """What is to be said of the tables beside what their columns are."""
    said = [f"{len(real['windows'])} windows of {e.window} frames in the {name} video."
            for name, real in e.real.items()]
    for kind in sorted(e.kinds):
        G, *_ = (G for _, G, _ in e.motions if G.kind == kind)
        steps = ", ".join(str(meta["step"]) for _, of, meta in e.motions if of.kind == kind)
        numbers = sum(p.numel() for p in G.parameters())
        said.append(f"{kind}: {numbers:,} parameters, trained for {steps} steps." if numbers else
                    f"{kind}: computed, {sum(b.numel() for b in G.buffers()):,} numbers.")
    for source, n in zip((e.video, *e.methods), e.settings["sets"], strict=True):
        judged = f"dlib sees {len(source.clips)} clips of {len(source.clips[0][1])} frames"
        rows = ", ".join(shown(e, source, row) for row in source.frames)
        said.append(f"{rows}: {judged}{f'; FID, FVD: {n}' if e.detectors else ''}.")
    if not e.detectors:
        said.append("FID and FVD are not computed; --inception and --i3d add them.")
    if e.counts is QUICK:
        said.append("These are not the paper's counts (--full), and fewer samples make larger distances: "
                    "compare with this command's own numbers alone.")
    return said


def in_words(table):
    """A table with every column in every row: mean ± standard deviation of the trainings."""
    def cell(values):
        if not values:
            return "-"
        digits = 3 if abs(np.mean(values)) < 10 else 1
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    columns = dict.fromkeys(column for values in table.values() for column in values)
    return {row: {c: cell(values.get(c)) for c in columns} for row, values in table.items() if values}


def as_text(title, table):
    """A table of in_words()."""
    head = ["", *next(iter(table.values()))]
    lines = [head, *([row, *cells.values()] for row, cells in table.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    cells = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
    return "\n".join([title, *("  " + "  ".join(row) for row in cells)])


def bullets(lines):
    return "\n".join(textwrap.fill(line, 110, initial_indent="* ", subsequent_indent="  ") for line in lines)


# ------------------------------------------------------------------------------------------------------------
# Page
# ------------------------------------------------------------------------------------------------------------

def video(clips, fps):
    """Clips, iterators of frames (H, W, 3), side by side, as an H.264 file in a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with transfer.VideoWriter(path, fps, crf=23) as writer:
            for frames in zip(*clips, strict=True):
                writer.write(np.hstack(judged(frames)))
        return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def illustrations(e):
    """Videos [(caption, URI)] of the first clips of everything, of one motion model of a kind."""
    T, videos, kinds = round(PAGE_SECONDS * e.fps), [], set()
    for source in (e.video, *e.methods):
        if source.kind and source.kind in kinds:
            continue
        kinds.add(source.kind)
        k, wanted = source.clips[0]
        clips = [frames(k, wanted[:T]) for frames in source.frames.values()]
        videos.append((", ".join(shown(e, source, row) for row in source.frames), video(clips, e.fps)))
    return videos


def main(args):
    started = time.time()

    # Outputs and inputs
    json_path, html_path = Path(args.json), Path(args.json).with_suffix(".html")
    if json_path.suffix != ".json" or not os.access(json_path.parent, os.W_OK):
        raise InputError(f"{json_path} cannot be written; name another .json file with --json.")
    if not args.motion and not args.videos:
        raise InputError("nothing to measure: name a motion model after LATENTS, or a folder with --videos.")
    e = load_all(args)

    # What is finished is kept; each thread renders pictures of its own
    try:
        memory = joblib.Memory(cache_folder() / "evaluate", verbose=0)
        memory.reduce_size(age_limit=KEEP)
        e.once = memory.cache(once, ignore=["compute"])
    except OSError as error:
        raise InputError(f"{cache_folder()} cannot be written ({error.strerror}); name another folder in "
                         f"STYLEVIDEOGAN_CACHE.") from None
    e.pool = ThreadPoolExecutor(torch.get_num_threads() if e.device.type == "cpu" else 1)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False                             # CUDA would round what detectors see

    # Tables
    tables = {title: {} for title in (PICTURES, *MOTION.values(), LOOPING, FACES)}
    e.references = {row: features(e, e.video, row, e.video.sets["short"]) for row in e.video.frames}
    for method in e.methods:
        add_method(e, tables, method)
    add_training_video(e, tables)
    words = {title: in_words(table) for title, table in tables.items() if any(table.values())}
    who = list(dict.fromkeys(shown(e, method, "sampled, long") for method in e.methods if method.kind))
    ahead = {f"{title}: where models that cost nothing are ahead": verdicts(tables[title], who)
             for title in map(MOTION.get, e.real) if who}
    notes = counts_in_words(e) + [" ".join(f.__doc__.split("\n\n")[0].split()) for f in FOOTNOTES]

    # Report
    settings = json.dumps(e.settings, indent=1)
    results = {"tables": tables, "ahead": ahead, "notes": notes, "settings": e.settings,
               "seconds": time.time() - started}
    template = jinja2.Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    page = template.render(tables=words, ahead=ahead, notes=notes, videos=illustrations(e), settings=settings)
    for path, text in ((json_path, json.dumps(results, indent=1)), (html_path, page)):
        train.write_atomically(path, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    lists = [*(f"{title}\n{bullets(lines)}" for title, lines in ahead.items()), bullets(notes)]
    print("\n\n".join([*itertools.starmap(as_text, words.items()), *lists]))
    print(f"evaluate.py: wrote {json_path}, {html_path} in {time.time() - started:.0f} s.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("latents", metavar="LATENTS", help="training codes, latents.npy of embed.py")
    add("motion", metavar="MOTION", nargs="*", help="motion models of train.py; those of a kind are one row")
    add("--holdout", metavar="LATENTS",
        help="codes of video not trained on; else the end of LATENTS, if MOTION says that it was held out")
    add("--full", action="store_true", help="the paper's counts instead of small ones")
    add("--json", default="results.json", metavar="FILE",
        help="all numbers and settings: results.json; the page is beside it, with .html")
    add("--inception", metavar="FILE", help="FID, by this TorchScript; fetch: NVIDIA's")
    add("--i3d", metavar="FILE", help="FVD, by this TorchScript; fetch: StyleGAN-V's")
    add("--videos", metavar="FOLDER", action="append", default=[],
        help="another method's videos, files or folders of pictures, cropped as the training's; repeatable")
    add("--window", type=train.number(int, 2), metavar="T", help="frames of a clip; else MOTION's, or 25")
    add("--model", help="image model; else the one recorded in MOTION")
    add("--seed", type=train.number(int, 0, 2 ** 31), default=0, help="of the first sample: 0")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command goes on from here.", file=sys.stderr, flush=True)
        os._exit(130)       # parser.exit would wait for the pool, where Ctrl-C may have left a lock locked
