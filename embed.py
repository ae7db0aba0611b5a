"""Turn videos of a talking face into a trajectory of W+ codes.

    python embed.py video.mp4                           # latents.npy, latents.json, latents.png
    python embed.py video.mp4 --model ffhq -o a.npy     # photographs of people: the paper's image model
    python embed.py part1.mp4 part2.mp4 frames/         # several sources, each a clip of its own or more
    python embed.py interview.mp4 --face 2              # not the face seen longest, but the next one
    python embed.py hands.mp4 --model hands.pt --align none     # footage without faces: centre square
    python embed.py - < video.mp4                       # a pipe
    python embed.py video.mp4 --resume                  # goes on after Ctrl-C or kill

Two passes over the video, frame by frame: the first finds the eye corners, which are then smoothed over time;
the second crops and encodes. T frames, L style rows, D style width; n frames of a source (H, W, 3), uint8
RGB; points (68, 2) in px, x right, y down, pixel centres at whole numbers. A quad (4, 2): corners of a
square, top left, bottom left, then right. "Left" and "right" are as seen in the picture.
"""

import argparse
import collections
import contextlib
import functools
import glob
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import av.sidedata.sidedata
import cv2
import dlib
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.ImageSequence
import torch
from av.stream import Disposition
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from models import InputError, load_image_model, pick_device

# Crop (paper, sec. 3, Data Preprocessing: as FFHQ, but from the eye corners only, never the mouth)
SIDE = 4.0      # side in eye distances |e|: FFHQ's 2 max(2 |e|, 1.8 |m|) without its mouth term
DROP = 0.11     # centre below the eyes' midpoint, in |e|: FFHQ's 0.1 |m|; ours: |m|, to the mouth, is 1.1 |e|

# Low-pass filters of position, rotation and scale, in seconds. The paper filters the last two and does not
# say by how much. Ours: a photograph moved as heads move is followed better than without (docs/crop.md)
SIGMAS = 0.04, 0.1, 0.2

# Face track. All ours, measured on clips of talking heads (docs/crop.md)
GAP = 0.32          # seconds without a face, at most, that are interpolated; longer gaps split the clip
LOOK_SHORT = 512    # short side of the picture when it is searched for more faces, once a second
SHORT_SIDES = 256, 512, 1024    # without a face the picture is searched at these in turn: dlib needs 80 px
CUT = 0.2           # change of the 32 x 32 thumbnail that can be a cut: talking 0.17, cuts 0.25 to 0.8
PATCH, BOX = 480, 288   # landmarks are fitted in a patch of 480 px, its middle 288 px the face box, ...
# ... averaged over boxes shifted by these, as in StyleInV (suppl. D); opposite ones in turn
PLACES = ((12, 12), (-12, -12)), ((-12, 12), (12, -12))

PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
SHEET = 12          # frames, evenly spaced, that are rendered: for the preview, and the PSNR

# What is known of every code: its source, frame of that, seconds since the source's start, clip; crop quad in
# px of the source; whether the face was found in it; PSNR in dB of the reconstruction, NaN if not measured
FRAME = np.dtype([("source", "i4"), ("index", "i8"), ("time", "f8"), ("clip", "i4"), ("quad", "f8", (4, 2)),
                  ("found", "?"), ("psnr", "f8")])

# FFmpeg attaches kinds of data to a frame (EXIF, ...) that PyAV 18 does not know, and raises ValueError at
av.sidedata.sidedata.Type._missing_ = classmethod(lambda cls, value: cls.SEI_UNREGISTERED)


# --- Reading videos and pictures ----------------------------------------------------------------------------

def open_picture(path):
    """A picture file as Pillow opens it; None of what FFmpeg may know instead (HEIC)."""
    try:
        file = PIL.Image.open(path)
        return None if file.format in ("GIF", "MPEG") else file                 # in whose name it may be
    except PIL.UnidentifiedImageError:
        return None
    except Exception as error:                          # no such file, too many pixels, a broken head
        raise InputError(f"{path} cannot be read ({error}); name a picture that can.") from None


def picture_frames(path):
    """Yield the frames of a picture file, (H, W, 3) uint8 RGB, turned as EXIF says, transparent pixels over
    grey; and the second at which each is shown."""
    file, seconds = open_picture(path), 0.0
    if file is None:
        yield next(Source(path).read()), seconds
        return
    try:
        with file:
            moves = file.format in ("PNG", "WEBP", "AVIF")      # several of an MPO are views of one moment
            for picture in PIL.ImageSequence.Iterator(file) if moves else [file]:
                picture.load()
                image = PIL.ImageOps.exif_transpose(picture)
                if image.mode.startswith("I"):          # grey of 16 bit, which Pillow would clip at 255
                    image = PIL.Image.fromarray((np.array(image) / 257).clip(0, 255).astype(np.uint8))
                if "A" in image.getbands() or "transparency" in image.info:
                    grey = PIL.Image.new("RGBA", image.size, (128, 128, 128, 255))
                    image = PIL.Image.alpha_composite(grey, image.convert("RGBA"))
                yield np.array(image.convert("RGB")), seconds
                seconds += (picture.info.get("duration") or 100) / 1000         # as browsers take none
    except Exception as error:                          # Pillow has half a dozen kinds
        raise InputError(f"{path} is not a readable picture ({error}); remove or replace it.") from None


def read_picture(path):
    """Picture file -> (H, W, 3) uint8 RGB, upright; of an animation the first frame."""
    return next(picture_frames(path))[0]


@contextlib.contextmanager
def opened(path):
    """A video as PyAV opens it, with its refusals in words."""
    try:
        with av.open(f"file:{os.fspath(path)}") as container:                   # lest a colon mean a protocol
            yield container
    except av.FFmpegError as error:
        raise InputError(f"{path} is not a video that FFmpeg can read ({error.strerror or error}); it may "
                         f"be cut short or of another format: get it again or convert it.") from None


class Source:
    """A video, a picture or a folder of pictures: what it says of itself, and what reading it came across."""

    def __init__(self, path):
        self.path, self.pictures, self.stream = Path(path), [], None    # a folder's; a video's stream number
        self.frames, self.rate, self.seconds = 0, None, None    # what it says; 0 and None: nothing
        self.times, self.sizes = [], []     # per frame read: seconds since the start or None, (height, width)
        self.holes, self.hidden = [], 0     # frames behind packets that cannot be decoded; packets not shown
        self.damaged = 0                    # frames that the decoder patched up
        self.notes = []                     # for the user
        if self.path.is_dir():
            self.list_folder()
        elif self.path.suffix.lower() not in {*PICTURES, ""} or not open_picture(path):     # "": of a pipe
            self.read_header()

    def list_folder(self):
        """Its pictures in natural order (2 before 10)."""
        seen = [f for f in self.path.iterdir() if not f.name.startswith((".", "Thumbs.db", "desktop.ini"))]
        parts = {f: re.split(r"([0-9]+)", f.name) for f in seen                 # text, digits, text, ...
                 if f.suffix.lower() in PICTURES and f.is_file()}
        if not parts:
            raise InputError(f"{self.path} holds no pictures; give a video, or a folder of pictures (JPEG, "
                             f"PNG, ...).")
        self.pictures = sorted(parts, key=lambda f: [int(s) if k % 2 else s.lower()
                                                     for k, s in enumerate(parts[f])])
        self.frames = len(parts)
        if left := sorted(f.name for f in seen if f not in parts):
            named = ", ".join(left[:5]) + ", ..." * (len(left) > 5)
            self.notes.append(f"holds {len(left)} files that are no pictures and are left out: {named}")

    def read_header(self):
        """Choose the stream; its rate and length. What a container claims may be anything: the rate is that
        of the first packets' time stamps, or the codec's where there are none."""
        with opened(self.path) as container:
            videos, sound = container.streams.video, container.streams.audio
            if not videos or sound and all(s.disposition & Disposition.attached_pic for s in videos):
                why = "has no picture track (audio only)" if sound else "holds no pictures"
                raise InputError(f"{self.path} {why}; give a video or a folder of pictures.")
            stamps = {stream.index: [] for stream in videos}
            with contextlib.suppress(av.FFmpegError):   # damage is met again, and counted, in the frames
                for packet in itertools.islice(container.demux(videos), 250):
                    if packet.size:
                        stamps[packet.stream_index].append(packet.pts)

            # The stream that a player shows: no cover picture, the default one, the largest
            def rank(s):
                cover = len(stamps[s.index]) < 2 or s.disposition & Disposition.attached_pic
                return not cover, bool(s.disposition & Disposition.default), s.width * s.height

            stream = max(videos, key=rank)
            tiles = sum((s.width, s.height) == (stream.width, stream.height) for s in videos)
            if tiles > 1 and container.metadata.get("major_brand") in ("heic", "heix", "mif1"):
                raise InputError(f"{self.path} is a HEIC picture of {tiles} tiles, which is not read here; "
                                 f"convert it to JPEG first (heif-convert, ImageMagick, or the photo "
                                 f"application's export).")

            known = np.unique([pts for pts in stamps[stream.index] if pts is not None])
            claimed = float(stream.guessed_rate or 0)
            self.rate = claimed if 1 <= claimed <= 1000 else None               # a still's is anything
            if len(known) > 1:
                stamped = 1 / float(np.median(np.diff(known)) * stream.time_base)
                if not self.rate or abs(stamped / claimed - 1) > 0.02:          # stamps may be rounded
                    self.rate = stamped

            # Matroska counts its length from zero, wherever the first frame is
            late = float((stream.start_time or 0) * stream.time_base)
            clock = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
            if stream.duration:
                self.seconds = float(stream.duration * stream.time_base)
            elif clock:
                self.seconds = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3]) - late
            elif container.duration and len(container.streams) == 1:            # else maybe of the sound
                self.seconds = container.duration / 1e6 - late
            self.frames, self.stream = stream.frames, stream.index
            invented = container.format.flags & 0x80 and not stream.codec_context.framerate
            if len(known) and invented:                                         # AVFMT_NOTIMESTAMPS
                self.notes.append(f"has no time stamps; {self.rate:.3f} frames per second is a guess (ffmpeg "
                                  f"-framerate N -i IN OUT says better)")
            if stream.codec_context.color_trc in (16, 18):                      # PQ, HLG: phones' default
                self.notes.append("is HDR video and will look pale; make it of ordinary brightness first "
                                  "(ffmpeg's zscale and tonemap filters)")

    def decoded(self, container, stream):
        """Yield the stream's frames, packet by packet, so that one that cannot be decoded costs no other."""
        failures, packets = 0, container.demux(stream)
        while failures < 100:
            try:
                packet = next(packets)
                failures *= not packet.size             # it goes on, however long the damage is
                self.hidden += packet.is_discard        # before the start that an edit list sets
                frames = packet.decode()                # the last, empty packet gives what is still held
            except (StopIteration, av.EOFError):
                return
            except av.FFmpegError:
                self.holes.append(len(self.times))
                failures, packets = failures + 1, container.demux(stream)       # goes on behind what failed
                continue
            yield from frames

    def video_frames(self, pixels):
        """Yield the frames of a video as pixels says, upright and with square pixels, and their times."""
        with opened(self.path) as container:
            stream, start = container.streams[self.stream], (container.start_time or 0) / 1e6
            stream.thread_type, matrix = "AUTO", []
            for frame in self.decoded(container, stream):
                width = round(frame.width * float(stream.sample_aspect_ratio or 1))
                # A video that does not name its colours (2) is BT.709 from 720 lines on, as players take it
                named = {"src_colorspace": "ITU709"} if frame.colorspace == 2 and frame.height >= 720 else {}
                image = frame.to_ndarray(format=pixels, width=width, height=frame.height, **named)
                here = [np.frombuffer(bytes(s), np.int32) for s in frame.side_data
                        if s.type.name == "DISPLAYMATRIX"]
                matrix = here if here or frame.key_frame else matrix    # H.264 tells at key frames only
                self.damaged += frame.is_corrupt
                yield upright(image, matrix), None if frame.time is None else frame.time - start

    def read(self, pixels="rgb24"):
        """Yield the frames, (H, W, 3) uint8 RGB, or (H, W) if pixels is "gray"."""
        if self.stream is not None:
            frames = self.video_frames(pixels)
        elif self.path.is_dir():
            frames = ((read_picture(path), None) for path in self.pictures)
        else:
            frames = picture_frames(self.path)
        for image, seconds in frames:
            self.times.append(seconds)
            self.sizes.append(image.shape[:2])
            yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if pixels == "gray" and image.ndim == 3 else image
        if not self.times:
            raise InputError(f"{self.path} holds no frame that can be decoded; get it again or convert it.")


def upright(image, matrix):
    """A decoded picture as its display matrix says (in a list, or none): phones store sideways frames, some
    cameras mirrored."""
    if not matrix:
        return image
    a, b, _, c, d = matrix[0][:5].astype(int)           # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])


def read_video(path, pixels="rgb24"):
    """Yield the frames of a video or a folder, upright and with square pixels: see Source.read()."""
    return Source(path).read(pixels)


def prefetch(items):
    """Run an iterator in a thread, 16 items ahead: decoding (without the GIL) overlaps computing."""
    items, end, pool, wait = iter(items), object(), ThreadPoolExecutor(1), True
    try:
        ahead = collections.deque(pool.submit(next, items, end) for _ in range(16))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, items, end))
            yield item
    except KeyboardInterrupt:       # it may have left a lock of the pool locked, on which the thread waits
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def timeline(stamps, guess, fps=None, holes=()):
    """When the n frames of a source are shown, and which of them make codes.

    stamps: seconds, some None. guess: Source.rate. fps: wanted rate, None for the source's. holes: Source's.
    Returns frames per second; the source frame shown at each step of that rate; starts (n,) bool: here time
    begins anew, as stamps go back (another recording), leave out more than GAP (a pause) or, in a damaged
    video, a frame; times (n,) in seconds; the source's own mean rate. A constant rate is kept; a variable one
    is resampled to its most usual rate, each step by the nearest frame.
    """
    n = len(stamps)
    times, starts = np.array(stamps, float), np.arange(n) == 0                  # None becomes NaN
    known = np.flatnonzero(np.isfinite(times))
    trusted = len(known) > n / 2
    if trusted:
        times = np.interp(np.arange(n), known, times[known])
        steps = np.diff(times)
        trusted = (steps > 0).any() and (steps < 0).sum() <= n / 4              # else they are in disorder
    if trusted:
        usual = np.median(steps[steps > 0])
        starts[1:] = (steps < -usual / 2) | (steps > max(0 if holes else GAP, 1.5 * usual))
    else:
        times = np.arange(n) / guess
        starts[[k for k in holes if k < n]] = True

    first = np.flatnonzero(starts)
    runs = [np.maximum.accumulate(run) - run[0] for run in np.split(times, first[1:])]
    steps = np.concatenate([np.diff(run) for run in runs])
    mean = len(steps) / steps.sum() if steps.any() else guess
    constant = all(np.abs(run - np.arange(len(run)) / mean).max() < 0.5 / mean for run in runs)
    rate = mean if constant else 1 / np.median(steps[steps > 0])
    if abs(rate / guess - 1) < (0.001 if constant else 0.02):                   # stamps may be rounded
        rate = guess
    if constant and abs((fps or rate) / rate - 1) < 0.001:
        return fps or rate, np.arange(n), starts, times, mean

    rate, grid = fps or rate, []
    for start, run in zip(first, runs):
        wanted = np.arange(int(run[-1] * rate + 1e-6) + 1) / rate
        middles = (run[1:] + run[:-1]) / 2
        grid.append(start + np.searchsorted(middles, wanted - 5e-4 / rate))     # halfway: the earlier
    return rate, np.concatenate(grid), starts, times, mean


# --- Landmarks ----------------------------------------------------------------------------------------------

@functools.cache
def dlib_model(kind, name):
    """A dlib model out of the package face_recognition_models, which itself may not be importable."""
    spec = importlib.util.find_spec("face_recognition_models")
    path = Path(spec.submodule_search_locations[0], "models", name) if spec else None
    if path is None or not path.exists():
        raise InputError(f"dlib's {name} is missing; install it with: pip install face_recognition_models")
    return kind(str(path))


def predictor():
    return dlib_model(dlib.shape_predictor, "shape_predictor_68_face_landmarks.dat")


detector = functools.cache(dlib.get_frontal_face_detector)


def eyes(points):
    """(..., 68, 2) -> midpoint E of the eyes (..., 2), and the vector e from the left one to the right (...,
    2). An eye is the midpoint of its corners, which stay when it blinks."""
    left, right = points[..., [36, 39], :].mean(-2), points[..., [42, 45], :].mean(-2)
    return (left + right) / 2, right - left


def square(C, x):
    """Centre (..., 2), half-axis to the right (..., 2) -> quad (..., 4, 2)."""
    y = np.stack([-x[..., 1], x[..., 0]], -1)
    return np.stack([C - x - y, C - x + y, C + x + y, C + x - y], -2)


def oversampling(quads, size):
    """How many times as finely as size x size the largest of the quads (..., 4, 2) has to be sampled."""
    return max(1, math.ceil(np.linalg.norm(quads[..., 3, :] - quads[..., 0, :], axis=-1).max() / size))


def warp(image, quad, size, m=None):
    """Cut a quad (4, 2) out of a picture (H, W[, 3]) as FFHQ does: sampled at least as finely as the source,
    m times, then averaged down -> (size, size[, 3]). Beyond its edge the picture is mirrored. m:
    oversampling() of all frames of a clip, as another one shows as a jump of sharpness; None: of this
    quad."""
    top_left, bottom_left, _, top_right = quad
    m = m or oversampling(quad, size)
    n = m * size
    axes = np.stack([top_right - top_left, bottom_left - top_left], 1) / n      # px of the source per px
    start = top_left + axes @ (0.5, 0.5)                                        # centre of the first pixel
    # FFHQ samples bilinearly, 4 times as finely: where that many are averaged, as good as bicubic (57 dB)
    kind = cv2.INTER_LINEAR if m >= 4 else cv2.INTER_CUBIC
    image = cv2.warpAffine(image, np.column_stack([axes, start]), (n, n), flags=kind | cv2.WARP_INVERSE_MAP,
                           borderMode=cv2.BORDER_REFLECT_101)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if m > 1 else image


def stretched(gray, pale=64):
    """Grey picture (H, W), with more contrast if it has fewer than `pale` grey levels: dlib compares pixels
    with fixed thresholds."""
    low, high = np.percentile(gray[::8, ::8], (5, 95))
    if high - low >= pale:
        return gray
    gain = 150 / max(high - low, 4)                                             # 4: noise is no face
    return np.clip((gray - low) * gain + min(20, low * gain), 0, 255).astype(np.uint8)


def detect(gray, short):
    """Faces of a grey picture searched at a short side of `short` px -> boxes (n, 4), left, top, width,
    height, the largest first; and dlib's best score."""
    scale = short / min(gray.shape)
    size = round(gray.shape[1] * scale), round(gray.shape[0] * scale)
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    found, scores, _ = detector().run(stretched(small, 32), 0, 0.0)
    best = max(scores, default=0.0)
    # A fifth of the best score: cloth scores 0.0 beside a face of 1.5
    boxes = [(r.left(), r.top(), r.width(), r.height()) for r, s in zip(found, scores) if s >= 0.2 * best]
    return np.array(sorted(boxes, key=lambda box: -box[2]), float).reshape(-1, 4) / scale, best


def refuse_turned(path, pictures):
    """Raise InputError if it is in turned pictures (H, W) that dlib sees faces: upright ones score 1 to 2,
    upside down 0.25 at most."""
    scores = np.zeros(4)                                # turned counter-clockwise by 0 to 3 quarters
    for gray in pictures:
        best = detect(gray, LOOK_SHORT)[1]
        scores[0] += best
        if best < 0.5:
            scores[1:] += [detect(np.rot90(gray, k).copy(), LOOK_SHORT)[1] for k in (1, 2, 3)]
    turns = int(scores.argmax())
    if scores[turns] > 2 * scores[0] + 0.25:
        how = "are upside down" if turns == 2 else "lie on their side"
        way = ("", "transpose=2", "hflip,vflip", "transpose=1")[turns]
        raise InputError(f"{path}: the heads {how}, and no flag says so; turn it first (a video: "
                         f"ffmpeg -i IN -vf {way} OUT).")


def face_quad(points):
    """Points (68, 2) -> quad (4, 2) of a patch turned with the face, its middle BOX/PATCH the box dlib would
    detect: from the spread of the points."""
    d = eyes(points)[1]
    d = d / np.linalg.norm(d)
    mean = points.mean(0)
    rms = np.sqrt(((points - mean) ** 2).sum(1).mean())
    C = mean - rms * (0.03 * d + 0.12 * np.array([-d[1], d[0]]))
    return square(C, 2.88 * rms / 2 * PATCH / BOX * d)


def fit(gray, quad, places=PLACES[0] + PLACES[1]):
    """Landmarks (68, 2) of the face in the middle of a quad of a grey picture (H, W): the mean over boxes
    shifted to places; and the patch they are fitted in: upright, of one size, so fine that whole pixels do
    not matter."""
    m = max(1, round(np.linalg.norm(quad[3] - quad[0]) / PATCH))    # oversampling() would gain dlib nothing
    patch, edge, points = stretched(warp(gray, quad, PATCH, m)), (PATCH - BOX) // 2, []
    for x, y in places:
        box = dlib.rectangle(edge + x, edge + y, edge + BOX + x, edge + BOX + y)
        points.append([(p.x, p.y) for p in predictor()(patch, box).parts()])
    share = (np.mean(points, 0) + 0.5) / PATCH          # (68, 2) in [0, 1] of the quad
    top_left, bottom_left, _, top_right = quad
    return top_left + share[:, :1] * (top_right - top_left) + share[:, 1:] * (bottom_left - top_left), patch


def fit_box(gray, box):
    """Landmarks (68, 2) of the face in a detector's box, fitted anew until they do not depend on the box."""
    points, _ = fit(gray, square(box[:2] + box[2:] / 2, np.array([box[2:].mean() / 2 * PATCH / BOX, 0.0])))
    for _ in range(2):
        points, _ = fit(gray, face_quad(points))
    return points


def landmarks(frame):
    """Picture (H, W, 3) uint8 RGB or (H, W) -> the 68 points (68, 2) of its largest face, or None."""
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    found = (detect(gray, short)[0] for short in SHORT_SIDES)
    return next((fit_box(gray, boxes[0]) for boxes in found if len(boxes)), None)


def whole(points, gray):
    """Whether a face with these points (68, 2) lies in the picture (H, W), all its eye corners and all but
    four points of nose, eyes and mouth: what lies outside is invented."""
    outside = ((points < -0.5) | (points > np.array(gray.shape[::-1]) - 0.5)).any(1)
    return outside[27:].sum() <= 4 and not outside[[36, 39, 42, 45]].any()


# --- Face track ---------------------------------------------------------------------------------------------

class Face:
    """One face in a shot: the numbers of its frames, its points in them, and what is needed to follow it."""

    def __init__(self):
        self.frames, self.points = [], []
        self.places = itertools.cycle(PLACES)
        self.patch, self.unconfirmed = None, 0  # the last patch, tiny; frames since the detector saw the face

    def add(self, frame, points):
        self.frames.append(frame)
        self.points.append(points.astype(np.float32))

    def near(self, place, reach):
        return np.linalg.norm(self.points[-1].mean(0) - place) < reach

    def follow(self, gray):
        """Points (68, 2) in the next frame, fitted from the last ones; None if the detector sees no face
        there. It looks at a 160 px cut-out every 5 frames, or when that changes more than talking does."""
        points, patch = fit(gray, face_quad(self.points[-1].astype(float)), next(self.places))
        tiny = cv2.resize(patch, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self.patch = self.patch, (tiny - tiny.mean()) / (tiny.std() + 1e-6)
        self.unconfirmed += 1
        alike = before is not None and (before * self.patch).mean() > 0.9       # 0.93 while a head talks
        if not alike or self.unconfirmed == 5:
            self.unconfirmed = 0
            small = cv2.resize(patch, (PATCH // 3, PATCH // 3), interpolation=cv2.INTER_AREA)
            # A tracked face may score less than dlib's 0 and stays: a turned head does
            centres = [r.center() for r in detector().run(small, 0, -0.5)[0]]
            if not any(max(abs(c.x - PATCH / 6), abs(c.y - PATCH / 6)) < BOX / 6 for c in centres):
                return None
        return points if whole(points, gray) else None


class FaceTracker:
    """Follows all faces through the frames of a video, one after the other, and finds its cuts. The picture
    as a whole is searched once a second, and while a face is missing."""

    def __init__(self, fps=25.0):
        self.gap, self.look_every = round(GAP * fps), max(1, round(fps))    # frames
        self.missed = -math.inf                 # frame in which a face was lost that had been there a while
        self.frame, self.cuts = -1, []          # this frame's number, and those with which a shot begins
        self.thumbs = collections.deque(maxlen=self.gap + 2)                    # the last frames, tiny
        self.changes = collections.deque(maxlen=10)                             # from each to the next
        self.faces, self.here = [], []          # all; those of the last frame, longest in sight first
        self.short, self.missing = SHORT_SIDES[0], 0    # where the last face was found; frames without any
        self.looks, self.samples = 0, []        # looks so far; pictures of the 1st, 2nd, 4th, 8th, ...

    def is_cut(self, gray):
        """Whether self.cuts changes with the next frame (H, W): a shot begins, or all that was seen before
        one is seen again. Then it was a flash, or a hand before the camera, and is struck out."""
        self.frame += 1
        thumb = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        thumb = (thumb - thumb.mean()) / (thumb.std() + 0.01)   # as many cuts in the dark as in daylight
        self.thumbs.append(thumb)
        if self.frame == 0:
            return False

        def change(k):                                          # since the last frame before frame k
            return np.abs(thumb - self.thumbs[k - 2 - self.frame]).mean()

        past, now = self.changes or [0.0], change(self.frame)
        usual = max(4 * np.median(past), 2 * past[-1])          # the last: lest a fast pan be a row of cuts
        self.changes.append(now)
        again = [k for k in self.cuts if self.frame - k <= self.gap and change(k) < CUT]
        if again:
            self.cuts = [k for k in self.cuts if k < again[0]]
        elif now > max(CUT, usual):
            self.cuts.append(self.frame)
        return bool(again) or self.cuts[-1:] == [self.frame]

    def step(self, gray):
        """The next frame, grey (H, W) -> points (68, 2) of the face in sight for longest, or None."""
        changed = self.is_cut(gray)
        followed, self.here = [] if changed else self.here, []
        for face in followed:
            points = face.follow(gray)
            if points is None:
                continue
            place, reach = points.mean(0), np.linalg.norm(eyes(points)[1])
            if not any(other.near(place, reach) for other in self.here):
                face.add(self.frame, points)
                self.here.append(face)

        if any(f not in self.here and len(f.frames) > self.gap for f in followed):
            self.missed = self.frame
        self.missing = 0 if self.here or changed else self.missing + 1
        look = changed or self.frame % self.look_every == 0
        if look:
            self.looks += 1
            self.samples += [gray] if self.looks & (self.looks - 1) == 0 else []
        if look or not self.here or self.frame - self.missed < self.gap:
            self.search(gray, look)
        return self.here[0].points[-1] if self.here else None

    def search(self, gray, look):
        """Add faces not followed yet: of those lost in this shot the one that was near, or a new one."""
        shot = max(self.cuts[-1:], default=0)
        gone = [f for f in self.faces if f.frames[-1] >= shot and f not in self.here]
        if self.here:
            sizes = LOOK_SHORT,
        elif look:
            sizes = SHORT_SIDES[1:]
        else:                                   # now and then all, else the one that found the last face
            sizes = (self.short,) if self.missing % max(1, self.gap) else SHORT_SIDES
        for short in sizes:
            for box in detect(gray, short)[0]:
                place, reach = box[:2] + box[2:] / 2, box[2]
                points = None if any(f.near(place, reach) for f in self.here) else fit_box(gray, box)
                if points is None or not whole(points, gray):
                    continue
                back = [f for f in gone if f.near(place, reach)]
                face = max(back, key=lambda f: len(f.frames), default=None)
                if face:
                    self.missed = -math.inf
                else:
                    face = Face()
                    self.faces.append(face)
                face.patch, face.unconfirmed = None, 0
                face.add(self.frame, points)
                self.here.append(face)
                self.short = short
            if self.here:
                return


def track_face(frames, fps=25.0, number=1):
    """Grey frames -> points (n, 68, 2) of one face in each shot, NaN where it is not seen; cuts (n,) bool: a
    shot begins here; how many faces are seen at once; and some of the frames. number: 1 for the face that is
    seen longest, and the larger of two; 2 for the next, ..."""
    tracker = FaceTracker(fps)
    n = len([tracker.step(gray) for gray in frames])
    points, at_once = np.full((n, 68, 2), np.nan, np.float32), np.zeros(n, int)
    shots = collections.defaultdict(list)
    for face in tracker.faces:
        shots[int(np.searchsorted(tracker.cuts, face.frames[-1], "right"))].append(face)
        at_once[face.frames] += len(face.frames) > tracker.look_every
    for faces in shots.values():
        sizes = {face: np.linalg.norm(eyes(np.stack(face.points))[1], axis=1).mean() for face in faces}
        faces.sort(key=lambda f: (-round(len(f.frames) / tracker.look_every), -sizes[f]))
        for face in faces if number == 1 else faces[number - 1:number]:
            # Of the others only who is alone: the same face come back
            if np.isnan(points[face.frames[0]:face.frames[-1] + 1]).all():
                points[face.frames] = face.points
    return points, np.isin(np.arange(n), tracker.cuts), int(at_once.max(initial=1)), tracker.samples


def split_clips(points, cuts, fps=25.0):
    """Points (n, 68, 2) with NaN, cuts (n,) -> (start, end) of the clips: frames that may be learnt as
    motion. They begin and end with a found face, and end before a cut, a gap of more than GAP seconds, or a
    leap of the track. All limits are ours."""
    found = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    if not len(found):
        return []
    E, e = eyes(points[found])
    distance, shots, step = np.linalg.norm(e, axis=1), np.cumsum(cuts)[found], np.diff(found)
    # No head moves by 12.5 eye distances per second, or over a gap by more than it does in 3 frames of 25 per
    # second; but landmarks of a blurred face tremble by 0.2 per frame at any rate
    reach = np.maximum(12.5 * np.minimum(step / fps, 3 / 25), 0.2) * distance[:-1]
    far = np.linalg.norm(np.diff(E, axis=0), axis=1) > reach
    resized = np.abs(np.diff(np.log(distance))) > math.log(1.5)                 # another face
    ends = np.flatnonzero((step > round(GAP * fps) + 1) | (np.diff(shots) > 0) | far | resized)
    return [(int(found[a]), int(found[b]) + 1) for a, b in zip([0, *ends + 1], [*ends, len(found) - 1])]


# --- Crop ---------------------------------------------------------------------------------------------------

def low_pass(x, sigma):
    """Low-pass along time: (n, ...) -> (n, ...), sigma in frames. A Gaussian g, twiced (Tukey 1977), keeps
    slow motion, where g alone would weaken it by 2 (pi sigma f)^2."""
    radius = math.ceil(3 * sigma)
    if radius == 0 or len(x) < 2:
        return x

    def g(x):  # beyond its ends x goes on as its mirror image turned upside down: motion does not stop there
        around = np.pad(x, [(radius, radius)] + [(0, 0)] * (x.ndim - 1), mode="reflect", reflect_type="odd")
        return gaussian_filter1d(around, sigma, axis=0, radius=radius)[radius:-radius]

    return g(x) + g(x - g(x))


def smooth_quads(points, fps=25.0, sigmas=SIGMAS):
    """Points of one clip (n, 68, 2), NaN in gaps -> crop quads (n, 4, 2), low-passed over time. sigmas: in
    seconds, of position, rotation and scale; 0 switches a filter off."""
    n, found = len(points), np.flatnonzero(np.isfinite(points[:, 0, 0]))
    E, e = eyes(points[found])
    angle, log_distance = np.unwrap(np.arctan2(e[:, 1], e[:, 0])), np.log(np.linalg.norm(e, axis=1))
    x, y, angle, log_distance = (np.interp(np.arange(n), found, v) for v in (*E.T, angle, log_distance))
    parts = np.stack([x, y], -1), angle, log_distance
    E, angle, log_distance = (low_pass(part, sigma * fps) for part, sigma in zip(parts, sigmas))

    # From the eyes to the crop
    e = np.exp(log_distance)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)        # (n, 2)
    down = np.stack([-e[:, 1], e[:, 0]], -1)
    return square(E + DROP * down, SIDE / 2 * e)


def crops(path, frames, size, whole=None):
    """Yield the crop (size, size, 3) uint8 RGB of every frame of survey's, or row of a latents.json: "index",
    "clip", "quad" of these are used. whole: all frames of their clips, if these are some of them."""
    indices, clips, quads = (np.array([row[name] for row in frames]) for name in ("index", "clip", "quad"))
    whole = frames if whole is None else whole
    all_clips, all_quads = (np.array([row[name] for row in whole]) for name in ("clip", "quad"))
    m, k = {clip: oversampling(all_quads[all_clips == clip], size) for clip in np.unique(clips)}, 0
    for index, image in enumerate(prefetch(read_video(path)) if len(indices) else ()):
        while k < len(indices) and indices[k] == index:
            yield warp(image, quads[k], size, m[clips[k]])
            k += 1
        if k == len(indices):
            return
    if k < len(indices):
        raise InputError(f"{path} changed while it was read: {len(indices) - k} frames are missing the "
                         f"second time; run embed.py again.")


def align_photo(path, size, face=None):
    """The same crop for one photograph: picture file -> (size, size, 3) uint8 RGB, and how many faces it
    shows. face: 1 for the largest, as None, 2 for the next, ... Raises InputError if it is not there."""
    image, number = read_picture(path), 1 if face is None else face
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for short in SHORT_SIDES[1:]:
        boxes, _ = detect(gray, short)
        if len(boxes) >= number:
            break
    refuse_turned(path, [gray])
    if not len(boxes):
        raise InputError(f"{path}: no face found; give a picture with a face seen from the front.")
    if not 1 <= number <= len(boxes):
        raise InputError(f"{path}: --face {face}, but it shows {len(boxes)}, counted from 1, the largest.")
    return warp(image, smooth_quads(fit_box(gray, boxes[number - 1])[None])[0], size), len(boxes)


# --- First pass: where the crops lie ------------------------------------------------------------------------

def survey(path, align="face", fps=None, face=1):
    """First pass over one source.

    align: "face", or "none" for the centre square. fps: rate to resample to; None keeps the source's. face:
    which one in shots of several, see track_face(). Returns a dict: frames (T,), FRAME, in time order; notes
    for the user; read, what is told of the source; and all of this at once, too: fps, decoded, found, faces
    (at once), clips, cuts, ... Raises InputError without a face.
    """
    source = Source(path)
    guess = source.rate or fps or 25.0                  # of a folder of pictures; the paper's footage is 25
    frames = tqdm(prefetch(source.read("gray")), desc=f"1/2 {Path(path).name}", unit="frame",
                  total=source.frames or None, mininterval=0.5)

    # Where the face is
    if align == "face":
        points, cuts, faces, samples = track_face(frames, guess, face)
        found, n = np.isfinite(points[:, 0, 0]), len(points)
        refuse_turned(path, samples)
        if not found.any() and face > 1:
            raise InputError(f"{path}: --face {face}, but no shot has more than {faces} "
                             f"face{'s' * (faces > 1)}; give a smaller number.")
        if not found.any():
            hurt = f", {source.damaged} of them damaged" * bool(source.damaged)
            raise InputError(f"{path}: no face found in {n} frame{'s' * (n > 1)}{hurt}; give footage with a "
                             f"face seen from the front, or --align none for footage without faces.")
    else:
        tracker, faces = FaceTracker(guess), 0
        n = len([tracker.is_cut(gray) for gray in frames])
        cuts, found = np.isin(np.arange(n), tracker.cuts), np.ones(n, bool)
    rate, grid, starts, times, mean = timeline(source.times, guess, fps, source.holes)
    if source.stream is not None and all(t is None for t in source.times):
        source.notes.append(f"has no time stamps; its codec says {rate:.3f} frames per second, or nothing")
    elif not fps and not np.array_equal(grid, np.arange(n)):
        source.notes.append(f"is resampled to a constant {rate:.3f} frames per second")

    # Crops of all source frames that lie in a clip
    quads, clip_of = np.full((n, 4, 2), np.nan), np.full(n, -1)
    if align == "face":
        clips = split_clips(points, cuts | starts, mean)
        for k, (start, end) in enumerate(clips):
            clip_of[start:end] = k
            quads[start:end] = smooth_quads(points[start:end], mean)
    else:
        clip_of = np.cumsum(cuts | starts) - 1
        half = np.array(source.sizes) / 2               # (n, 2): height, width
        quads = square(half[:, ::-1] - 0.5, half.min(1)[:, None] * (1, 0))

    # One row per code
    index = grid[clip_of[grid] >= 0]                    # source frame of every code
    frames = np.zeros(len(index), FRAME)
    frames["index"], frames["time"], frames["quad"] = index, times[index], quads[index]
    frames["found"], frames["psnr"] = found[index], np.nan
    kept, frames["clip"] = np.unique(clip_of[index], return_inverse=True)       # some may be skipped
    read = {"source": str(path), "codes": len(index), "decoded": n, "found": int(found.sum()), "faces": faces,
            "fps": float(rate), "seconds": float(n / mean), "repeated": int((np.diff(grid) == 0).sum()),
            "jumps": int(starts.sum()) - 1, "clips": len(kept), "cuts": int(cuts.sum())}
    read = adds_up(read, source)
    return {**read, "frames": frames, "read": read, "notes": source.notes}


def adds_up(read, source):
    """Complete what was read by what the container shows, and note it if they differ by more than 2 %.
    Frames: its index less what an edit list hides; where it says nothing, what is there to decode."""
    decoded, seconds, lost = read["decoded"], source.seconds, len(source.holes)
    differs = seconds is not None and abs(seconds - read["seconds"]) > 0.02 * seconds + 1.5 / read["fps"]
    differs |= seconds is None and read["jumps"] > 0
    shown = source.frames - source.hidden if source.frames else decoded + lost
    if seconds is not None and not differs:
        shown = min(shown, decoded + lost)              # an edit list leaves out frames at the end, too
    if differs or lost or source.damaged or abs(shown - decoded) > 0.02 * shown:
        why = [f"{lost} packets cannot be decoded"] * bool(lost)
        why += [f"{source.damaged} frames are damaged and used as they are"] * bool(source.damaged)
        why += [f"its time stamps jump {read['jumps']} times"] * bool(read["jumps"])
        why = " and ".join(why) or "it is cut short, damaged, or says what is not so"
        source.notes.append(f"does not add up: {why}")
    return {**read, "shown": shown, "seconds_shown": seconds, "undecodable": lost,
            "damaged": source.damaged}


# --- Second pass: the codes ---------------------------------------------------------------------------------

def to_network(images):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def in_batches(items, n):
    """Lists of n items, the last one of what is left."""
    items = iter(items)
    while batch := list(itertools.islice(items, n)):
        yield batch


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of two uint8 pictures."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255 ** 2 / max(error, 1e-10)))


def encode(model, sources, frames, codes, batch, resume=False):
    """Crop and encode the frames (T,), FRAME, of the sources into codes (T, L, D), batch by batch; when
    resumed, from the first batch that is not finite. Fills in the PSNR of SHEET frames, and returns (crop,
    reconstruction) of each."""
    T, begin = len(frames), 0
    if resume:
        unfinished = np.append(~np.isfinite(codes).all((1, 2)), True)
        begin = int(unfinished.argmax()) // batch * batch
    sheet = np.linspace(0, T - 1, min(T, SHEET)).round().astype(int).tolist()
    wanted = frames[np.union1d(sheet, np.arange(begin, T)).astype(int)]
    parts = ([some[some["source"] == k] for some in (wanted, frames)] for k in range(len(sources)))
    images = prefetch(image for path, (part, whole) in zip(sources, parts)
                      for image in crops(path, part, model.size, whole))
    shown = {k: next(images) for k in sheet if k < begin}

    bar = tqdm(total=T, initial=begin, desc="2/2 encode", unit="frame", mininterval=0.5)
    for rows in in_batches(range(begin, T), batch):
        here = list(itertools.islice(images, len(rows)))
        new = model.encode(to_network(here)).float().cpu().numpy()              # (B, L, D)
        if not np.isfinite(new).all():
            raise InputError(f"{model.name} gives codes that are not finite; name a sound --model.")
        codes[rows[0]:rows[-1] + 1] = new
        shown.update((k, image) for k, image in zip(rows, here) if k in sheet)
        bar.update(len(rows))
    bar.close()
    codes.flush()

    pairs = []
    for k, crop in shown.items():
        picture = model.render(torch.from_numpy(codes[k:k + 1]).to(model.device))[0].clamp(-1, 1)
        picture = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        frames["psnr"][k] = psnr(crop, picture)
        pairs.append((crop, picture))
    return pairs


# --- Files --------------------------------------------------------------------------------------------------

def spooled(path, stack):
    """A pipe ("-", /dev/stdin, <(...)) as a temporary file that goes with the stack, as two passes need it;
    any other path as it is."""
    if path != "-" and (os.path.isdir(path) or os.path.isfile(path) and os.path.getsize(path)):
        return path
    if path != "-" and not os.path.exists(path):
        raise InputError(f"{path} does not exist; give a video or a folder of pictures.")
    copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "pipe")
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as pipe, open(copy, "wb") as file:
            shutil.copyfileobj(pipe, file)
    except OSError as error:
        raise InputError(f"{path} cannot be kept as a file for two passes ({error.strerror}).") from None
    if not os.path.getsize(copy):
        raise InputError(f"{path} is empty; give a video or a folder of pictures.")
    return copy


@contextlib.contextmanager
def writing(path):
    """A file open for bytes, that is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error.strerror}); make room, or name another file with "
                         f"-o.") from None


def open_codes(part, shape, resume):
    """Codes (T, L, D) as a memory map of the .npy `part`: all NaN, or what an interrupted run left there."""
    if not (resume and part.exists()):
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        row = np.full(shape[1:], np.nan, "<f4").tobytes()
        with writing(part) as file:                     # all of it, lest the disk be full in the middle
            np.lib.format.write_array_header_1_0(file, head)
            file.writelines(itertools.repeat(row, shape[0]))
    return np.lib.format.open_memmap(part, "r+")


def rows_of(frames):
    """"frames" of latents.json, a row per code: its FRAME, rounded; psnr only where measured."""
    for frame in frames:
        row = dict(zip(FRAME.names, frame.item()))
        row |= {"time": round(row["time"], 3), "quad": np.round(row["quad"], 2).tolist()}
        db = row.pop("psnr")
        yield row if math.isnan(db) else {**row, "psnr": round(db, 2)}


# --- Command line -------------------------------------------------------------------------------------------

def tell(words):
    tqdm.write(f"embed.py: {words}", file=sys.stderr)


def main(args):
    # What is asked for
    target = Path(args.output)
    targets = target, target.with_suffix(".json"), target.with_suffix(".png")
    if target.suffix != ".npy":
        raise InputError(f"{target} does not end in .npy; name a file that does with -o.")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps} is no frame rate; give a number above 0 and up to 1000.")
    if args.face < 1 or args.batch < 1:
        raise InputError(f"--face {args.face} and --batch {args.batch}: give 1 or more.")
    for path in targets:
        if path.resolve() in [Path(video).resolve() for video in args.video]:
            raise InputError(f"{path} would be overwritten by the output; name another with -o.")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written; name a file in a folder that exists with -o.")

    with contextlib.ExitStack() as stack:
        sources = [spooled(path, stack) for path in args.video]
        model = load_image_model(args.model, args.encoder, pick_device(args.device))
        if model.encoder is None:
            raise InputError(model.why_no_encoder)
        hint = "; photographs of people want --model ffhq (the paper's, research only)"
        tell(f"image model {model.name}, {model.size} px, {model.L} x {model.D} codes"
             f"{hint if args.model == 'faces128' else ''}.")

        # First pass: all sources take the first one's frame rate, and every source begins a new clip
        surveys, fps, clips = [], args.fps, 0
        for k, (path, name) in enumerate(zip(sources, args.video)):
            try:
                s = survey(path, args.align, fps, args.face)
            except InputError as error:                 # a pipe's by the name that the user knows
                raise InputError(str(error).replace(path, name)) from None
            s["read"]["source"], s["frames"]["source"] = name, k
            s["frames"]["clip"] += clips
            fps, clips = s["fps"], clips + s["clips"]
            for note in s["notes"]:
                tell(f"warning: {name} {note}.")
            of = f" of {s['seconds_shown']:.2f}" if s["seconds_shown"] is not None else ""
            tell(f"{name}: {s['codes']} codes from {s['decoded']} of {s['shown']} frames, "
                 f"{s['seconds']:.2f}{of} s at {s['fps']:.3f} fps; {s['repeated']} repeated, "
                 f"{s['jumps']} jumps in time, {s['undecodable']} undecodable; {s['clips']} clips.")
            surveys.append(s)
        frames = np.concatenate([s["frames"] for s in surveys])                 # (T,), FRAME
        if not len(frames):
            raise InputError(f"{args.video[0]}: no frame with a face is left at --fps {args.fps}; give a "
                             f"higher rate.")

        # Second pass. The temporary file's name tells of which command it is, lest another go on with it
        asked = [args.video, [os.path.getsize(path) for path in sources], model.sha256, args.encoder,
                 args.align, args.face, args.fps, args.batch, len(frames)]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
        part = target.with_name(f".{target.name}.{digest}.part")
        if args.resume and not part.exists():
            tell("there is no interrupted run of this command to go on with; starting anew.")
        for old in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            if old != part or not args.resume:
                old.unlink()
        codes = open_codes(part, (len(frames), model.L, model.D), args.resume)
        try:
            pairs = encode(model, sources, frames, codes, args.batch, args.resume)
        except InputError:
            part.unlink()
            raise
        del codes                                       # Windows replaces no file that is mapped

    # The files: codes, what is known of them, and a sheet of crops over their reconstructions
    total = {key: sum(s[key] for s in surveys) for key in ("decoded", "found", "clips", "cuts")}
    faces, mean_psnr = max(s["faces"] for s in surveys), float(np.nanmean(frames["psnr"]))
    meta = {"model": {"name": model.name, "sha256": model.sha256}, "fps": fps, "source": args.video,
            "size": model.size, "align": args.align, "face": args.face, "faces": faces, **total,
            "psnr": mean_psnr, "read": [s["read"] for s in surveys], "frames": list(rows_of(frames))}
    with writing(targets[1]) as file:
        file.write(json.dumps(meta).encode())
    sheet = PIL.Image.fromarray(np.hstack([np.vstack(pair) for pair in pairs]))
    sheet.thumbnail((256 * len(pairs), 512))
    with writing(targets[2]) as file:
        sheet.save(file, "png")
    os.replace(part, target)

    share = f"face {args.face} of {faces} found in {100 * total['found'] / total['decoded']:.1f} %, "
    tell(f"{len(frames)} codes at {fps:.3f} fps in {total['clips']} clips, {total['cuts']} cuts, "
         f"{share if faces else ''}reconstruction {mean_psnr:.1f} dB PSNR; wrote "
         f"{', '.join(map(str, targets))}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("video", nargs="+", metavar="VIDEO", help="video, folder of pictures, or - for a pipe")
    add("-o", "--output", default="latents.npy", help="codes: latents.npy; beside it NAME.json and NAME.png")
    add("--model", default="faces128", help="faces128 (default), ffhq, ffhq-e4e or a checkpoint's path")
    add("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model that has none")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--batch", type=int, default=16, help="frames encoded at a time: 16")
    add("--align", choices=("face", "none"), default="face", help="crop by the eyes (default), or the centre")
    add("--face", type=int, default=1, metavar="N", help="of several faces: 1 (default) is seen longest, ...")
    add("--fps", type=float, help="rate to resample to; else the first source's own, 25 for pictures")
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    for word in sys.argv[1:]:
        if re.fullmatch(r"-[^=]*\.[A-Za-z]\w*", word):
            parser.exit(2, f"embed.py: {word} begins with a dash, as options do; a file is ./{word}\n")
    for number in (signal.SIGINT, signal.SIGTERM):      # a scheduler's kill is as good as Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"embed.py: {error}\n")
    except KeyboardInterrupt:
        print("embed.py: interrupted. Codes that are done are kept; go on with --resume.", file=sys.stderr,
              flush=True)
        os._exit(130)               # parser.exit would wait for prefetch()'s thread
