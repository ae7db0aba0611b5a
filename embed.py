"""Turn videos of a talking face into a trajectory of W+ codes.

    python embed.py video.mp4                           # latents.npy, latents.json, latents.png
    python embed.py video.mp4 --model ffhq -o a.npy     # photographs of people: the paper's image model
    python embed.py part1.mp4 part2.mp4 frames/         # several sources, each a clip of its own or more
    python embed.py interview.mp4 --face 2              # not the face seen longest, but the next one
    python embed.py hands.mp4 --model hands.pt --align none     # footage without faces: centre square
    python embed.py - < video.mp4                       # a pipe
    python embed.py video.mp4 --resume                  # goes on after Ctrl-C or kill

Two passes over the video, frame by frame: the first finds the eye corners, which are then smoothed over time;
the second crops and encodes. T frames, L style rows, D style width; frames (H, W, 3) uint8 RGB; points
(68, 2) in px, x right, y down, pixel centres at whole numbers. "Left" and "right" are as seen in the picture.
"""

import argparse
import array
import collections
import contextlib
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import dlib
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from av.stream import Disposition
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from models import InputError, load_image_model, pick_device

# Crop (paper, sec. 3, Data Preprocessing: as FFHQ, but from the eye corners only, never the mouth)
SIDE = 4.0          # side in eye distances |e|: FFHQ's 2 max(2 |e|, 1.8 |m|) without its mouth term
DROP = 0.11  # centre below the eyes' midpoint, in |e|: FFHQ's 0.1 |m|; ours: |m|, to the mouth, is 1.1 |e|
# Low-pass filters of position, rotation and scale, in seconds; see low_pass(). The paper filters
# the last two and does not say by how much. Ours: a photograph moved as heads move is followed better than
# without (docs/crop.md)
SIGMAS = 0.04, 0.1, 0.2

# Face track. All ours, measured on clips of talking heads (docs/crop.md)
GAP = 0.32          # seconds without a face, at most, that are interpolated; longer gaps split the clip
JUMP = 12.5         # eye distances per second that no head moves at: another face or shot
NOISE = 0.2  # eye distances per frame that are no leap at any rate: landmarks of a blurred face tremble
RESIZE = 1.5        # change of the eye distance between neighbouring found frames that means another face
CUT = 0.2  # change of the normalised 32 x 32 thumbnail that can be a cut: talking 0.17, cuts 0.25 to 0.8
CUT_RATIO = 4.0     # it is one at so many times the median of the last ten changes
CUT_AGAIN = 2.0     # and so many times the last one, lest a fast pan be a row of cuts
SHORT_SIDES = 256, 512, 1024    # the picture is searched at these sizes in turn; dlib finds faces from 80 px
SEARCH_EVERY = 0.32     # seconds between searches at all sizes while no face is in sight
LOOK_EVERY = 1.0    # seconds between looks for more faces
LOOK_SHORT = 512    # short side of the picture then
LOST = 3.0          # seconds after which a face that comes again in the same place counts as another one
WEAK = 0.2          # share of the best score below which a detection is no face: cloth scores 0.0 beside 1.5
SURE = 0.5          # score from which a face is upright: 1 to 2, upside down 0.25 at most
KEEP_SCORE = -0.5   # a face already tracked may score less than dlib's 0 and stays (a turned head does)
CONFIRM = 5         # frames after which a tracked face is detected again, and at once if its patch ...
ALIKE = 0.9         # ... correlates by less with that of the last frame; 0.93 at least while a head talks
PATCH, BOX = 480, 288   # landmarks are fitted in a patch of 480 px with the face box in its middle 288 px,
# averaged over shifted boxes as in StyleInV (suppl. D)
PLACES = ((12, 12), (-12, -12)), ((-12, 12), (12, -12))
# dlib's box: side and centre in root mean square spreads of the points
BOX_RMS, BOX_SHIFT = 2.88, (-0.03, -0.12)
OUTSIDE = 4         # points of nose, eyes and mouth that may lie outside of the picture
PALE, CONTRAST = 64, 150    # fewer grey levels are stretched, as dlib compares pixels with fixed thresholds

# Reading. Ours
PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
# formats whose several pictures are a video; an MPO's are views of one moment
ANIMATED = {"PNG", "WEBP", "AVIF"}
BACKGROUND = 128    # grey behind transparent pixels; what their colours hide is arbitrary
HDR = {16: "PQ", 18: "HLG"}     # H.264's table of transfer characteristics
HD = 720  # lines from which a video that does not say so is BT.709, as players take it; below, BT.601
PEEK = 250          # packets whose time stamps give the rate of a video before it is decoded
FAILURES = 100      # unreadable packets in a row that end a video
FOLDER_FPS = 25.0   # of a folder of pictures: the paper's footage is 25 fps
DIFFERENCE = 0.02   # share by which what was read may differ from what the file shows, without a warning
SHEET = 12          # frames, evenly spaced, that are rendered: for the sheet, and the PSNR
TOGETHER = 4        # frames rendered at a time

# What is known of every code: its source, frame of that, clip; crop quad in px of the source; whether the
# face was found in it; PSNR in dB of the reconstruction, NaN where not measured
FRAME = np.dtype([("source", "i4"), ("index", "i8"), ("clip", "i4"), ("quad", "f8", (4, 2)), ("found", "?"),
                  ("psnr", "f8")])


# --- Reading videos and pictures ----------------------------------------------------------------------------

class Reading:
    """What a source says of itself, see header(), and what read_video() came across."""

    def __init__(self):
        self.frames, self.rate, self.seconds = 0, None, None    # 0 and None: not said
        self.stream = None                  # number of the video's stream, None for pictures
        self.times, self.sizes = [], []  # per frame read: seconds, None without a time stamp; (height, width)
        self.lost, self.holes = 0, []       # packets that cannot be decoded; the frames that follow them
        self.unseen = 0  # packets that are decoded but not shown: before an edit list's start
        self.notes = []                     # for the user


def picture_files(path):
    """Picture files of a folder in natural order (2 before 10), and the names of its other files. Of a
    picture: itself; of a video: none."""
    path = Path(path)
    if not path.is_dir():
        return ([path] if path.suffix.lower() in PICTURES and is_picture(path) else []), []
    seen = [f for f in path.iterdir() if not f.name.startswith((".", "Thumbs.db", "desktop.ini"))]
    files = [f for f in seen if f.suffix.lower() in PICTURES and f.is_file()]
    if not files:
        raise InputError(f"{path} holds no pictures; give a video, or a folder of pictures (JPEG, PNG, ...).")
    parts = {f: re.split(r"([0-9]+)", f.name) for f in files}                   # text, digits, text, ...
    files.sort(key=lambda f: [int(s) if k % 2 else s.lower() for k, s in enumerate(parts[f])])
    return files, sorted(f.name for f in seen if f not in parts)


def is_picture(path):
    """Whether Pillow reads a file. What it does not know, FFmpeg may (HEIC)."""
    try:
        PIL.Image.open(path).close()
    except PIL.UnidentifiedImageError:
        return False
    except Exception as error:                          # no such file, too many pixels, a broken head
        raise InputError(f"{path} cannot be read ({error}); name a picture that can.") from None
    return True


def over_grey(image):
    """(H, W, 4) uint8 with opacity last -> (H, W, 3), over BACKGROUND."""
    opacity = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * opacity + BACKGROUND * (1 - opacity)).round().astype(np.uint8)


def picture_frames(path):
    """Yield the frames of a picture file, (H, W, 3) uint8 RGB, turned as EXIF says, transparent pixels over
    grey; and the time of each in seconds, None if it does not move."""
    if not is_picture(path):
        yield next(video_frames(path, "rgb24", header(path))), None
        return
    try:
        with PIL.Image.open(path) as file:
            count = getattr(file, "n_frames", 1) if file.format in ANIMATED else 1
            first = int(count > 1 and bool(file.info.get("default_image")))  # a still, for who cannot animate
            seconds = 0.0
            for k in range(first, count):
                file.seek(k)
                file.load()
                image = PIL.ImageOps.exif_transpose(file)
                if image.mode.startswith("I"):                                  # 16 bit grey
                    image = PIL.Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
                clear = "A" in image.getbands() or "transparency" in image.info
                pixels = np.array(image.convert("RGBA" if clear else "RGB"))
                yield over_grey(pixels) if clear else pixels, seconds if count - first > 1 else None
                seconds += (file.info.get("duration") or 100) / 1000            # as browsers take none
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
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a video or a folder of pictures.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; change its permissions.") from None
    except av.FFmpegError as error:
        raise InputError(f"{path} is not a video that FFmpeg can read ({error.strerror or error}); it may "
                         f"be cut short or of another format: get it again or convert it.") from None


def header(path):
    """What a source says of itself before it is read: a Reading. The rate is that of the first packets' time
    stamps, or the codec's where there are none; what a container claims may be anything."""
    reading = Reading()
    files, left_out = picture_files(path)
    if left_out:
        named = ", ".join(left_out[:5]) + ", ..." * (len(left_out) > 5)
        reading.notes.append(f"holds {len(left_out)} files that are no pictures and are left out: {named}")
    if files:
        reading.frames = len(files) if Path(path).is_dir() else 0
        return reading

    with opened(path) as container:
        videos = container.streams.video
        if not videos:
            why = "has no picture track (audio only)" if container.streams.audio else "holds no picture track"
            raise InputError(f"{path} {why}; give a video or a folder of pictures.")
        stamps = {stream.index: [] for stream in videos}
        with contextlib.suppress(av.FFmpegError):  # damage is met again, and counted, when frames are read
            for packet in itertools.islice(container.demux(videos), PEEK):
                if packet.size:
                    stamps[packet.stream_index].append(packet.pts)

        # The stream that a player shows: what FFmpeg takes, unless that is a cover picture
        covers = [s for s in videos if len(stamps[s.index]) < 2 or s.disposition & Disposition.attached_pic]
        moving = [s for s in videos if s not in covers]
        stream = container.streams.best("video")
        if moving and stream in covers:
            stream = max(moving, key=lambda s: (bool(s.disposition & Disposition.default), s.width))
        tiles = sum((s.width, s.height) == (stream.width, stream.height) for s in videos)
        if tiles > 1 and container.metadata.get("major_brand") in ("heic", "heix", "mif1"):
            raise InputError(f"{path} is a HEIC picture of {tiles} tiles, which is not read here; convert it "
                             f"to JPEG first (heif-convert, ImageMagick, or the photo application's export).")

        # Rate and length. Matroska counts its length from zero, wherever the first frame is
        known = np.unique([pts for pts in stamps[stream.index] if pts is not None])
        claimed = float(stream.guessed_rate or 0)
        reading.rate = claimed if 1 <= claimed <= 1000 else None                # a still's is anything
        if len(known) > 1:
            stamped = 1 / float(np.median(np.diff(known)) * stream.time_base)
            if not reading.rate or abs(stamped / claimed - 1) > 0.02:           # stamps may be rounded
                reading.rate = stamped
        late = float((stream.start_time or 0) * stream.time_base)
        clock = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if stream.duration:
            reading.seconds = float(stream.duration * stream.time_base)
        elif clock:
            reading.seconds = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3]) - late
        elif container.duration and len(container.streams) == 1:  # else it may be that of the sound
            reading.seconds = container.duration / 1e6 - late
        reading.frames, reading.stream = stream.frames, stream.index
        if stream.codec_context.color_trc in HDR:
            kind = HDR[stream.codec_context.color_trc]
            reading.notes.append(f"is HDR video ({kind}) and will look pale; make it of ordinary brightness "
                                 f"first (ffmpeg's zscale and tonemap filters)")
    return reading


def decoded(container, stream, reading):
    """Yield the frames of a stream, packet by packet, so that one that cannot be decoded costs no other."""
    failures, packets = 0, container.demux(stream)
    while failures < FAILURES:
        try:
            packet = next(packets)
            reading.unseen += packet.is_discard
            frames = packet.decode()  # the last, empty packet gives what the decoder still holds
        except StopIteration:
            return
        except av.FFmpegError:
            reading.lost += 1
            reading.holes.append(len(reading.times))
            failures, packets = failures + 1, container.demux(stream)           # goes on behind what failed
            continue
        failures = 0
        yield from frames


def upright(image, frame):
    """A decoded picture as its display matrix says: phones store sideways frames, and some cameras mirrored
    ones."""
    matrix = [np.frombuffer(bytes(s), np.int32) for s in frame.side_data if s.type.name == "DISPLAYMATRIX"]
    if not matrix:
        return image
    a, b, _, c, d = matrix[0][:5].astype(int)           # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])


def video_frames(path, pixels, reading):
    """Yield the frames of a video, see read_video()."""
    with opened(path) as container:
        stream = container.streams[reading.stream]
        stream.thread_type = "AUTO"
        for frame in decoded(container, stream, reading):
            width = round(frame.width * float(stream.sample_aspect_ratio or 1))  # of square pixels
            clear = any(part.is_alpha for part in frame.format.components)
            # 2: not
            said = {"src_colorspace": "ITU709"} if frame.colorspace == 2 and frame.height >= HD else {}
            kind = "rgba" if clear else pixels
            image = frame.to_ndarray(format=kind, width=width, height=frame.height, **said)
            image = upright(over_grey(image) if clear else image, frame)
            reading.times.append(frame.time)
            reading.sizes.append(image.shape[:2])
            yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if clear and pixels == "gray" else image
    if not reading.times:
        raise InputError(f"{path} holds no frame that can be decoded; get it again or convert it.")


def read_video(path, pixels="rgb24", reading=None):
    """Yield the frames of a video, or of a folder of pictures, upright and with square pixels, one at a time.

    pixels: "rgb24" for (H, W, 3) uint8 RGB, "gray" for (H, W). reading: what header() returned, to be
    completed. Raises InputError; a damaged video is read as far as it can be, and reading says what is
    missing."""
    reading = reading or header(path)
    if reading.stream is not None:
        yield from video_frames(path, pixels, reading)
        return
    for file in picture_files(path)[0]:
        for image, seconds in [(read_picture(file), None)] if Path(path).is_dir() else picture_frames(file):
            reading.times.append(seconds)
            reading.sizes.append(image.shape[:2])
            yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if pixels == "gray" else image


def prefetch(items, depth=16):
    """Run an iterator in a thread, `depth` items ahead: decoding (without the GIL) overlaps computing."""
    items, end, pool = iter(items), object(), ThreadPoolExecutor(1)
    try:
        ahead = collections.deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def mend_times(times, rate, reading):
    """Time stamps (n,) in seconds, some None -> times (n,), and starts (n,) bool: here time begins anew, as
    stamps go back (another recording), leave out more than GAP (a pause) or, in a damaged video, a frame."""
    times, n = np.array([math.nan if t is None else t for t in times], float), len(times)
    starts, known = np.arange(n) == 0, np.flatnonzero(np.isfinite(times))
    if len(known) > n / 2:
        times = np.interp(np.arange(n), known, times[known])
        steps = np.diff(times)
        usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
        back = steps < -usual / 2
        if usual and back.sum() <= n / 4:               # more is disorder
            starts[1:] = back | (steps > (1.5 * usual if reading.lost else max(GAP, 1.5 * usual)))
            return times, starts
    starts[[k for k in reading.holes if k < n]] = True
    return np.arange(n) / rate, starts


def frame_grid(times, starts, guess, fps=None):
    """Times (n,) and starts (n,) of mend_times() -> frames per second, the source frame shown at each step of
    that rate, and the source's own mean rate. guess: Reading.rate. fps: wanted rate, None for the source's. A
    constant rate is kept; a variable one is resampled to its most usual rate, each step by the nearest
    frame."""
    first = np.flatnonzero(starts)
    runs = [np.maximum.accumulate(run) - run[0] for run in np.split(times, first[1:])]
    steps = np.concatenate([np.diff(run) for run in runs])
    mean = len(steps) / steps.sum() if steps.any() else guess
    constant = all(np.abs(run - np.arange(len(run)) / mean).max() < 0.5 / mean for run in runs)
    usual = mean if constant else 1 / np.median(steps[steps > 0])
    if abs(usual / guess - 1) < (1e-3 if constant else 0.02):                   # stamps may be rounded
        usual = guess
    rate = fps or usual
    if constant and abs(rate / usual - 1) < 1e-3:
        return rate, np.arange(len(times)), mean

    grids = []
    for start, run in zip(first, runs, strict=True):
        wanted = np.arange(int(run[-1] * rate + 1e-6) + 1) / rate
        middles = (run[1:] + run[:-1]) / 2
        grids.append(start + np.searchsorted(middles, wanted - 5e-4 / rate))    # halfway: the earlier
    return rate, np.concatenate(grids), mean


# --- Landmarks ----------------------------------------------------------------------------------------------

def dlib_file(name):
    """Path of a dlib model inside the package face_recognition_models, which may not be importable."""
    spec = importlib.util.find_spec("face_recognition_models")
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / name if spec else None
    if path is None or not path.exists():
        raise InputError(f"dlib's {name} is missing; install it with: pip install face_recognition_models")
    return str(path)


@functools.cache
def dlib_model(kind, name):
    return kind(dlib_file(name))


@functools.cache
def detector():
    return dlib.get_frontal_face_detector()


def predictor():
    return dlib_model(dlib.shape_predictor, "shape_predictor_68_face_landmarks.dat")


def eyes(points):
    """(..., 68, 2) -> midpoint E of the eyes (..., 2), and the vector e from the left one to the right (...,
    2). An eye is the midpoint of its corners, which stay when it blinks."""
    left, right = points[..., [36, 39], :].mean(-2), points[..., [42, 45], :].mean(-2)
    return (left + right) / 2, right - left


def square(C, x):
    """Centre (..., 2), half-axis to the right (..., 2) -> quad (..., 4, 2): top left, bottom left, then
    right."""
    y = np.stack([-x[..., 1], x[..., 0]], -1)
    return np.stack([C - x - y, C - x + y, C + x + y, C + x - y], -2)


def oversampling(quads, size):
    """How many times as finely as size x size the largest of the quads (..., 4, 2) has to be sampled, a whole
    number."""
    return max(1, math.ceil(np.linalg.norm(quads[..., 3, :] - quads[..., 0, :], axis=-1).max() / size))


def warp(image, quad, size, m=None):
    """Cut a square quad (4, 2) out of a picture (H, W[, 3]) as FFHQ does: sampled at least as finely as the
    source, m times, then averaged down -> (size, size[, 3]). Beyond its edge the picture is mirrored. m:
    oversampling() of all frames of a clip, as another one shows as a jump of sharpness; None: of this
    quad."""
    top_left, bottom_left, _, top_right = quad
    m = m or oversampling(quad, size)
    n = m * size
    axes = np.stack([top_right - top_left, bottom_left - top_left], 1) / n  # (2, 2): px of the source per px
    start = top_left + axes @ (0.5, 0.5)  # the centre of the first pixel
    # FFHQ samples bilinearly, 4 times as finely: where that many are averaged, as good as bicubic (57 dB)
    kind = cv2.INTER_LINEAR if m >= 4 else cv2.INTER_CUBIC
    image = cv2.warpAffine(image, np.column_stack([axes, start]), (n, n), flags=kind | cv2.WARP_INVERSE_MAP,
                           borderMode=cv2.BORDER_REFLECT_101)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if m > 1 else image


def stretched(gray, pale=PALE):
    """Grey picture (H, W), with more contrast if it has less than `pale`."""
    low, high = np.percentile(gray[::8, ::8], (5, 95))
    if high - low >= pale:
        return gray
    gain = CONTRAST / max(high - low, 4)                                        # 4: noise is no face
    return np.clip((gray - low) * gain + min(20, low * gain), 0, 255).astype(np.uint8)


def detect(gray, short):
    """Faces of a grey picture searched at a short side of `short` px -> boxes (n, 4), left, top, width,
    height, the largest first; and dlib's best score. What scores next to nothing beside that is left out."""
    scale = short / min(gray.shape)
    size = round(gray.shape[1] * scale), round(gray.shape[0] * scale)
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    found, scores, _ = detector().run(stretched(small, PALE // 2), 0, 0.0)
    best = max(scores, default=0.0)
    kept = [r for r, score in zip(found, scores, strict=True) if score >= WEAK * best]
    boxes = [(r.left(), r.top(), r.width(), r.height()) for r in kept]
    return np.array(sorted(boxes, key=lambda box: -box[2]), float).reshape(-1, 4) / scale, best


def turned_scores(gray, score):
    """Best scores (4,) of the detector in a picture turned counter-clockwise by 0 to 3 quarters. `score` is
    the first; the others are looked for only if it leaves room for doubt."""
    others = [detect(np.rot90(gray, k).copy(), LOOK_SHORT)[1] if score < SURE else 0 for k in (1, 2, 3)]
    return np.array([score, *others])


def refuse_turned(path, scores):
    """Raise InputError if it is in the turned picture that faces are seen. scores (4,): sum of
    turned_scores()."""
    best = int(scores.argmax())
    if scores[best] > 2 * scores[0] + SURE / 2:
        how = "are upside down" if best == 2 else "lie on their side"
        way = ("", "transpose=2", "hflip,vflip", "transpose=1")[best]
        raise InputError(f"{path}: the heads {how}, and no flag says so; turn it first (a video: "
                         f"ffmpeg -i IN -vf {way} OUT).")


def face_quad(points):
    """Points (68, 2) -> quad (4, 2) of a patch turned with the face, its middle BOX/PATCH the box dlib would
    detect."""
    d = eyes(points)[1]
    d = d / np.linalg.norm(d)
    mean = points.mean(0)
    rms = np.sqrt(((points - mean) ** 2).sum(1).mean())
    C = mean + rms * (BOX_SHIFT[0] * d + BOX_SHIFT[1] * np.array([-d[1], d[0]]))
    return square(C, BOX_RMS * rms / 2 * PATCH / BOX * d)


def fit(gray, quad, places=PLACES[0] + PLACES[1]):
    """Landmarks (68, 2) of the face in the middle of a quad of a grey picture (H, W): the mean over boxes
    shifted to places; and the patch they are fitted in: upright, of one size, so fine that whole pixels do
    not matter."""
    m = max(1, round(np.linalg.norm(quad[3] - quad[0]) / PATCH))  # oversampling() would gain dlib nothing
    patch, edge, points = stretched(warp(gray, quad, PATCH, m)), (PATCH - BOX) // 2, []
    for x, y in places:
        box = dlib.rectangle(edge + x, edge + y, edge + BOX + x, edge + BOX + y)
        points.append([(p.x, p.y) for p in predictor()(patch, box).parts()])
    share = (np.mean(points, 0) + 0.5) / PATCH  # (68, 2) in [0, 1] of the quad
    top_left, bottom_left, _, top_right = quad
    return top_left + share[:, :1] * (top_right - top_left) + share[:, 1:] * (bottom_left - top_left), patch


def fit_box(gray, box):
    """Landmarks (68, 2) of the face in a detector's box, fitted anew until they do not depend on the box."""
    points, _ = fit(gray, square(box[:2] + box[2:] / 2, np.array([box[2:].mean() / 2 * PATCH / BOX, 0.0])))
    for _ in range(2):
        points, _ = fit(gray, face_quad(points))
    return points


def landmarks(frame):
    """Picture (H, W, 3) uint8 RGB or (H, W) -> the 68 points (68, 2) of its largest face, None where there is
    none."""
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    found = (detect(gray, short)[0] for short in SHORT_SIDES)
    return next((fit_box(gray, boxes[0]) for boxes in found if len(boxes)), None)


# --- Face track ---------------------------------------------------------------------------------------------

class Face:
    """One face in a shot: its frames' numbers and points, and what is needed to follow it."""

    def __init__(self):
        self.frames, self.values = array.array("q"), array.array("f")           # (n,), (n x 136,)
        self.places = itertools.cycle(PLACES)  # opposite ones, so that the box as a whole stays where it is
        self.seen, self.unconfirmed = None, 0  # the last patch, tiny; frames since the detector saw the face

    def add(self, frame, points):
        self.frames.append(frame)
        self.values.extend(points.ravel())

    def points(self, last=0):
        """The last frames' points (n, 68, 2); 0: all."""
        return np.array(self.values[-136 * last:], np.float64).reshape(-1, 68, 2)

    def near(self, box):
        """Whether it was last seen less than a box away from a detector's box (4,)."""
        return np.linalg.norm(self.points(1)[0].mean(0) - box[:2] - box[2:] / 2) < box[2]

    def at(self, points):
        """Whether it is the same face as one with these points (68, 2)."""
        return np.linalg.norm((self.points(1)[0] - points).mean(0)) < np.linalg.norm(eyes(points)[1])

    def follow(self, gray):
        """Points (68, 2) in the next frame, fitted from the last ones; None if the detector sees no face
        there. It looks at a 160 px cut-out every CONFIRM frames, or when what is seen changes at once."""
        points, patch = fit(gray, face_quad(self.points(1)[0]), next(self.places))
        tiny = cv2.resize(patch, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self.seen = self.seen, (tiny - tiny.mean()) / (tiny.std() + 1e-6)
        self.unconfirmed += 1
        if before is None or (before * self.seen).mean() < ALIKE or self.unconfirmed == CONFIRM:
            self.unconfirmed = 0
            small = cv2.resize(patch, (PATCH // 3, PATCH // 3), interpolation=cv2.INTER_AREA)
            centres = [r.center() for r in detector().run(small, 0, KEEP_SCORE)[0]]
            if not any(max(abs(c.x - PATCH / 6), abs(c.y - PATCH / 6)) < BOX / 6 for c in centres):
                return None
        return points if whole(points, gray) else None


def whole(points, gray):
    """Whether a face with these points (68, 2) lies in the picture (H, W), and all its eye corners: what lies
    outside is invented."""
    outside = ((points < -0.5) | (points > np.array(gray.shape[::-1]) - 0.5)).any(1)
    return outside[27:].sum() <= OUTSIDE and not outside[[36, 39, 42, 45]].any()


class FaceTracker:
    """Follows all faces through the frames of a video, given one after the other, and finds its cuts. The
    picture as a whole is searched once a second, and while a face is missing. fps: frames per second."""

    def __init__(self, fps=25.0):
        self.gap, self.lost = round(GAP * fps), LOST * fps                      # frames
        self.look_every, self.search_every = (max(1, round(x * fps)) for x in (LOOK_EVERY, SEARCH_EVERY))
        self.frame, self.cuts = -1, []               # this frame's number, and those with which a shot begins
        self.thumb, self.before = None, {}  # the last frame, tiny; what was seen before each of the last cuts
        self.changes = collections.deque(maxlen=10)
        self.faces, self.recent, self.here = [], [], []  # all, those of the last seconds, of the last frame
        self.short, self.missing = SHORT_SIDES[0], 0
        self.looks, self.turned = 0, np.zeros(4)     # the sum of turned_scores() of some looks

    def is_cut(self, gray):
        """Whether with the next frame (H, W) self.cuts changes: a new shot begins, or else all that was seen
        before one is seen again. Then that was a flash, or something that passed before the camera, and its
        cuts are struck out."""
        self.frame += 1
        thumb = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        thumb = (thumb - thumb.mean()) / (thumb.std() + 0.01)  # as many cuts in the dark as in daylight
        last, self.thumb = self.thumb, thumb
        if last is None:
            return False
        change = float(np.abs(thumb - last).mean())
        past = self.changes or [0.0]
        usual = max(CUT_RATIO * statistics.median(past), CUT_AGAIN * past[-1])
        self.changes.append(change)

        self.before = {k: look for k, look in self.before.items() if self.frame - k <= self.gap}
        again = [k for k, look in self.before.items() if np.abs(thumb - look).mean() < CUT]
        if again:
            self.cuts = [k for k in self.cuts if k < again[0]]
            self.before = {k: look for k, look in self.before.items() if k < again[0]}
        elif change > max(CUT, usual):
            self.cuts.append(self.frame)
            self.before[self.frame] = last
        return bool(again) or self.frame in self.before

    def step(self, gray):
        """The next frame, grey (H, W) -> the points (68, 2) of the face that has been in sight for longest,
        or None; and whether a shot seems to begin, on which self.cuts has the last word."""
        changed = self.is_cut(gray)
        followed, self.here = [] if changed else self.here, []
        for face in followed:
            points = face.follow(gray)
            if points is not None and not any(other.at(points) for other in self.here):
                face.add(self.frame, points)
                self.here.append(face)

        self.missing = 0 if self.here or changed else self.missing + 1
        look = changed or self.frame % self.look_every == 0
        self.recent = [f for f in self.recent if self.frame - f.frames[-1] <= self.lost]
        gone = [f for f in self.recent if max(self.cuts[-1:], default=0) <= f.frames[-1] < self.frame]
        a_moment_ago = any(self.frame - f.frames[-1] <= self.gap < len(f.frames) for f in gone)
        if look or a_moment_ago or not self.here:
            self.search(gray, look, gone)
        return (self.here[0].points(1)[0] if self.here else None), changed

    def search(self, gray, look, gone):
        """Add faces that are not followed yet: of those that are gone the one that was near, or a new one."""
        due = self.missing % self.search_every == 0  # else only at the size where the last face was found
        alone = SHORT_SIDES[1:] if look else SHORT_SIDES if due else (self.short,)
        for short in (LOOK_SHORT,) if self.here else alone:
            boxes, score = detect(gray, short)
            if look and short == LOOK_SHORT:
                self.looks += 1
                if self.looks & (self.looks - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                    self.turned += turned_scores(gray, score)
            for box in boxes:
                points = None if any(face.near(box) for face in self.here) else fit_box(gray, box)
                if points is None or not whole(points, gray):
                    continue
                face = max((f for f in gone if f.near(box)), key=lambda f: len(f.frames), default=None)
                if face is None:
                    face = Face()
                    self.faces.append(face)
                    self.recent.append(face)
                else:
                    gone.remove(face)
                face.seen, face.unconfirmed = None, 0
                face.add(self.frame, points)
                self.here.append(face)
                self.short = short
            if self.here:
                return


def track_face(frames, fps=25.0, number=1):
    """Grey frames -> points (n, 68, 2) of one face in each shot, NaN where it is not seen; cuts (n,) bool: a
    shot begins here; how many faces are seen at once; and the tracker's turned scores. number: 1 for the face
    that is seen longest, and the larger of two; 2 for the next, ..."""
    tracker = FaceTracker(fps)
    n = len([tracker.step(gray) for gray in frames])
    points, at_once = np.full((n, 68, 2), np.nan, np.float32), np.zeros(n, int)
    shots = collections.defaultdict(list)
    for face in tracker.faces:
        shots[int(np.searchsorted(tracker.cuts, face.frames[-1], "right"))].append(face)
        at_once[face.frames] += len(face.frames) > tracker.look_every
    for faces in shots.values():
        sizes = {face: np.linalg.norm(eyes(face.points())[1], axis=1).mean() for face in faces}
        faces.sort(key=lambda f: (-round(len(f.frames) / tracker.look_every), -sizes[f]))
        for face in faces if number == 1 else faces[number - 1:number]:
            # of the others only who is alone: the same face come back
            if np.isnan(points[face.frames[0]:face.frames[-1] + 1]).all():
                points[face.frames] = face.points()
    return points, np.isin(np.arange(n), tracker.cuts), int(at_once.max(initial=1)), tracker.turned


def split_clips(points, cuts, fps=25.0):
    """Points (n, 68, 2) with NaN, cuts (n,) -> (start, end) of the clips: frames that may be learnt as
    motion. They begin and end with a found face, and end before a cut, a gap of more than GAP seconds, or a
    leap of the track (over a gap a head may have moved on for 3 frames' worth at 25 per second)."""
    found = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    if not len(found):
        return []
    E, e = eyes(points[found])
    distance, shots, step = np.linalg.norm(e, axis=1), np.cumsum(cuts)[found], np.diff(found)
    reach = np.maximum(JUMP * np.minimum(step / fps, 3 / 25), NOISE) * distance[:-1]
    far = np.linalg.norm(np.diff(E, axis=0), axis=1) > reach
    resized = np.abs(np.diff(np.log(distance))) > math.log(RESIZE)
    ends = np.flatnonzero((step > round(GAP * fps) + 1) | (np.diff(shots) > 0) | far | resized)
    pairs = zip([0, *ends + 1], [*ends, len(found) - 1], strict=True)
    return [(int(found[a]), int(found[b]) + 1) for a, b in pairs]


# --- Crop ---------------------------------------------------------------------------------------------------

def crop_quad(E, angle, distance):
    """Eye midpoint (..., 2), angle of the eye line (...), eye distance (...) -> crop quad (..., 4, 2)."""
    d = np.stack([np.cos(angle), np.sin(angle)], -1)                            # (..., 2), along the eyes
    down = np.stack([-d[..., 1], d[..., 0]], -1)
    distance = np.asarray(distance)[..., None]
    return square(E + DROP * distance * down, SIDE / 2 * distance * d)


def low_pass(x, sigma):
    """Low-pass along time: (n, ...) -> (n, ...), sigma in frames. A Gaussian g, twiced (Tukey 1977): g x + g
    (x - g x), which keeps slow motion, where g alone would weaken it by 2 (pi sigma f)^2. Beyond its ends x
    goes on as its mirror image turned upside down, so that motion does not stop there."""
    radius = math.ceil(3 * sigma)
    if radius == 0 or len(x) < 2:
        return x

    def g(x):
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
    E, angle, log_distance = (low_pass(part, sigma * fps) for part, sigma in zip(parts, sigmas, strict=True))
    return crop_quad(E, angle, np.exp(log_distance))


def crops(path, frames, size):
    """Yield the crop (size, size, 3) uint8 RGB of every frame of survey's, or row of a latents.json: "index",
    "clip", "quad" of these are used."""
    indices, clips, quads = (np.array([row[name] for row in frames]) for name in ("index", "clip", "quad"))
    m, k = {clip: oversampling(quads[clips == clip], size) for clip in np.unique(clips)}, 0
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
    image, number = read_picture(path), face or 1
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for short in SHORT_SIDES[1:]:
        boxes, score = detect(gray, short)
        if len(boxes) >= number:
            break
    refuse_turned(path, turned_scores(gray, score))
    if not len(boxes):
        raise InputError(f"{path}: no face found; give a picture with a face seen from the front.")
    if not 1 <= number <= len(boxes):
        raise InputError(f"{path}: --face {face}, but it shows {len(boxes)}, counted from 1, the largest.")
    return warp(image, smooth_quads(fit_box(gray, boxes[number - 1])[None])[0], size), len(boxes)


# --- First pass ---------------------------------------------------------------------------------------------

def survey(path, align="face", fps=None, face=1):
    """First pass over one source: where the crops lie.

    align: "face", or "none" for the centre square. fps: rate to resample to; None keeps the source's. face:
    which one in shots of several, see track_face(). Returns a dict: fps; frames (T,), FRAME, in time order;
    notes for the user; read, what was read beside what the file shows, see adds_up(); and for the report
    decoded, found, faces (at once), clips, cuts, gaps. Raises InputError without a face.
    """
    reading = header(path)
    guess = reading.rate or fps or FOLDER_FPS
    frames = tqdm(prefetch(read_video(path, "gray", reading)), desc=f"1/2 {Path(path).name}", unit="frame",
                  total=reading.frames or None, mininterval=0.5)

    # Where the face is
    if align == "face":
        points, cuts, faces, turned = track_face(frames, guess, face)
        found, n = np.isfinite(points[:, 0, 0]), len(points)
        refuse_turned(path, turned)
        if not found.any():
            if face > 1:
                raise InputError(f"{path}: --face {face}, but no shot has more than {faces} "
                                 f"face{'s' * (faces > 1)}; give a smaller number.")
            raise InputError(f"{path}: no face found in {n} frame{'s' * (n > 1)}; give footage with a face "
                             f"seen from the front, or --align none for footage without faces.")
    else:
        tracker, faces = FaceTracker(guess), 0
        n = len([tracker.is_cut(gray) for gray in frames])
        cuts, found = np.isin(np.arange(n), tracker.cuts), np.ones(n, bool)

    # Time
    times, starts = mend_times(reading.times, guess, reading)
    rate, grid, mean_rate = frame_grid(times, starts, guess, fps)
    if reading.stream is not None and all(t is None for t in reading.times):
        reading.notes.append(f"has no time stamps; its codec says {rate:.3f} frames per second, or nothing")
    elif not fps and not np.array_equal(grid, np.arange(n)):
        reading.notes.append(f"is resampled to a constant {rate:.3f} frames per second")

    # Crops of all source frames that lie in a clip
    quads, clip_of = np.full((n, 4, 2), np.nan), np.full(n, -1)
    if align == "face":
        clips = split_clips(points, cuts | starts, mean_rate)
    else:
        begin = np.flatnonzero(cuts | starts)
        clips = list(zip(begin, [*begin[1:], n], strict=True))
        half = np.array(reading.sizes) / 2                                      # (n, 2): height, width
        quads[:] = square(half[:, ::-1] - 0.5, half.min(1)[:, None] * (1, 0))
    for k, (start, end) in enumerate(clips):
        clip_of[start:end] = k
        if align == "face":
            quads[start:end] = smooth_quads(points[start:end], mean_rate)

    # One row per code
    rows = grid[clip_of[grid] >= 0]                                             # source frame of every code
    frames = np.zeros(len(rows), FRAME)
    frames["index"], frames["quad"], frames["found"], frames["psnr"] = rows, quads[rows], found[rows], np.nan
    kept, frames["clip"] = np.unique(clip_of[rows], return_inverse=True)  # resampling can skip a short clip
    read = {"source": str(path), "codes": len(rows), "decoded": n, "fps": float(rate),
            "seconds": float(np.diff(times)[~starts[1:]].sum() + starts.sum() / mean_rate),
            "repeated": int((np.diff(grid) == 0).sum()), "jumps": int(starts.sum()) - 1, "clips": len(kept)}
    return {"fps": float(rate), "frames": frames, "read": adds_up(read, reading), "notes": reading.notes,
            "decoded": n, "found": int(found.sum()), "faces": faces, "clips": len(kept),
            "cuts": int(cuts.sum()), "gaps": int((np.diff(np.r_[1, found]) == -1).sum())}


def adds_up(read, reading):
    """Complete what was read by what the container shows, and note it if they differ. Frames: its index less
    what an edit list hides; where it says nothing, what is there to decode."""
    decoded, seconds, readable = read["decoded"], reading.seconds, read["decoded"] + reading.lost
    slack = DIFFERENCE * (seconds or 0) + 1.5 / read["fps"]
    differs = seconds is not None and abs(seconds - read["seconds"]) > slack
    shown = reading.frames - reading.unseen if reading.frames else readable
    if seconds is not None and not differs:
        shown = min(shown, readable)                    # an edit list leaves out frames at the end, too
    if differs or reading.lost or abs(shown - decoded) > DIFFERENCE * shown:
        why = [f"{reading.lost} packets cannot be decoded"] * bool(reading.lost)
        why += [f"its time stamps jump {read['jumps']} times"] * bool(read["jumps"])
        of_seconds = f" of {seconds:.2f}" if seconds is not None else ""
        why = " and ".join(why) or "it is cut short, damaged, or says what is not so"
        reading.notes.append(f"does not add up: {decoded} of {shown} frames, {read['seconds']:.2f}"
                             f"{of_seconds} s were read; {why}")
    return {**read, "shown": shown, "seconds_shown": seconds, "undecodable": reading.lost}


def said(read):
    """The line that adds up."""
    seconds = f" of {read['seconds_shown']:.2f}" if read["seconds_shown"] is not None else ""
    return f"{read['source']}: {read['codes']} codes from {read['decoded']} of {read['shown']} frames, " \
           f"{read['seconds']:.2f}{seconds} s at {read['fps']:.3f} fps; {read['repeated']} repeated, " \
           f"{read['jumps']} jumps in time, {read['undecodable']} undecodable; {read['clips']} clips."


# --- Second pass --------------------------------------------------------------------------------------------

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
    resumed, but for those that are finite already. Fills in the PSNR of SHEET frames, and returns (crop,
    reconstruction) of each."""
    T, pairs = len(frames), []
    done = [resume and bool(np.isfinite(codes[k:k + batch]).all()) for k in range(0, T, batch)]
    shown = np.linspace(0, T - 1, min(T, SHEET)).round().astype(int)
    wanted = ~np.repeat(done, batch)[:T]
    wanted[shown] = True
    parts = (frames[wanted & (frames["source"] == k)] for k in range(len(sources)))
    images = prefetch(image for path, part in zip(sources, parts, strict=True)
                      for image in crops(path, part, model.size))
    bar = tqdm(total=T, desc="2/2 encode", unit="frame", mininterval=0.5)
    for start in range(0, T, batch):
        rows = start + np.flatnonzero(wanted[start:start + batch])
        here = dict(zip(rows, itertools.islice(images, len(rows)), strict=True))
        if not done[start // batch]:
            new = model.encode(to_network(list(here.values()))).float().cpu().numpy()           # (B, L, D)
            if not np.isfinite(new).all():
                raise InputError(f"{model.name} gives codes that are not finite; name a sound --model.")
            codes[start:start + batch] = new
        for some in in_batches([k for k in rows if k in shown], TOGETHER):
            pictures = model.render(torch.from_numpy(codes[some]).to(model.device)).clamp(-1, 1)
            pictures = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            pairs += [(here[k], picture) for k, picture in zip(some, pictures, strict=True)]
            frames["psnr"][some] = [psnr(*pair) for pair in pairs[-len(some):]]
        bar.update(min(batch, T - start))
    bar.close()
    codes.flush()
    return pairs


# --- Files --------------------------------------------------------------------------------------------------

def spooled(path, stack):
    """A pipe ("-", /dev/stdin, <(...)) as a file, as two passes need it, that goes with the stack; else the
    path."""
    if path != "-" and (os.path.isfile(path) or os.path.isdir(path)):
        return path
    if path != "-" and not os.path.exists(path):
        raise InputError(f"{path} does not exist; give a video or a folder of pictures.")
    if path == "-" and sys.stdin.isatty():
        raise InputError("- is standard input, but nothing is piped in; name a video.")
    copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "pipe")
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as pipe, open(copy, "wb") as file:
            shutil.copyfileobj(pipe, file)
    except OSError as error:
        raise InputError(f"{path} cannot be kept as a file for two passes ({error.strerror}).") from None
    if not os.path.getsize(copy):
        raise InputError(f"{path} is empty; give a video or a folder of pictures.")
    return copy


def put(path, pieces):
    """Write pieces of bytes as a file that is there whole or not at all. None: only see whether it could
    be."""
    part = path.with_name(f".{path.name}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with open(part, "wb") as file:
            file.writelines(pieces or ())
        if pieces is None:
            part.unlink()
        else:
            os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error.strerror}); make room, or name another file in a "
                         f"folder that exists, with -o.") from None


def open_codes(part, shape, resume):
    """Codes (T, L, D) as a memory map of the .npy `part`: all NaN, or with what an interrupted run left
    there."""
    if not (resume and part.exists()):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        row = np.full(shape[1:], np.nan, "<f4").tobytes()
        put(part, itertools.chain([head.getvalue()], itertools.repeat(row, shape[0])))  # all room at once
    return np.lib.format.open_memmap(part, "r+")


def sheet_of(pairs, caption):
    """[(crop, its reconstruction)] -> PNG bytes of a sheet: these below those, the caption above."""
    side = min(256, len(pairs[0][0]))
    tiles = [[cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pair] for pair in pairs]
    rows = [np.hstack(row) for row in zip(*tiles, strict=True)]
    head = np.full((24, rows[0].shape[1], 3), 255, np.uint8)
    cv2.putText(head, caption, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return cv2.imencode(".png", cv2.cvtColor(np.vstack([head, *rows]), cv2.COLOR_RGB2BGR))[1].tobytes()


def json_of(meta, frames):
    """latents.json in pieces, so that an hour of frames is never held twice."""
    yield (json.dumps(meta)[:-1] + ', "frames": [').encode()
    for k, frame in enumerate(frames):
        row = {"source": int(frame["source"]), "index": int(frame["index"]), "clip": int(frame["clip"]),
               "quad": np.round(frame["quad"], 2).tolist(), "found": bool(frame["found"])}
        if not np.isnan(frame["psnr"]):
            row["psnr"] = round(float(frame["psnr"]), 2)
        yield ((", " if k else "") + json.dumps(row)).encode()
    yield b"]}"


# --- Command line -------------------------------------------------------------------------------------------

def tell(words):
    tqdm.write(f"embed.py: {words}", file=sys.stderr)


def main(args):
    # What is asked for
    target = Path(args.output)
    sheet = None if args.preview == "none" else Path(args.preview or target.with_suffix(".png"))
    if target.suffix != ".npy":
        raise InputError(f"{target} does not end in .npy; name the codes' file so with -o.")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise InputError(f"{sheet} does not end in .png; name the preview so with --preview, or say none.")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps} is no frame rate; give a number above 0 and up to 1000.")
    if args.face < 1:
        raise InputError(f"--face {args.face} is no face; they are counted from 1, the one seen longest.")
    if args.batch < 1:
        raise InputError(f"--batch {args.batch} is no batch size; give 1 or more.")
    targets = [target, target.with_suffix(".json"), *([sheet] if sheet else [])]
    for path in targets:
        if path.resolve() in [Path(video).resolve() for video in args.video]:
            raise InputError(f"{path} would be overwritten by the output; name another with -o.")
        put(path, None)

    with contextlib.ExitStack() as stack:
        sources = [spooled(path, stack) for path in args.video]
        model = load_image_model(args.model, args.encoder, pick_device(args.device))
        if model.encoder is None:
            raise InputError(f"{args.model} has no encoder; name a file that has one with --encoder.")
        hint = "; photographs of people want --model ffhq (the paper's, research only)"
        tell(f"image model {model.name}, {model.size} px, {model.L} x {model.D} codes"
             f"{hint if args.model == 'faces128' else ''}.")

        # First pass: all sources take the first one's frame rate, and every source begins a new clip
        surveys, fps, clips = [], args.fps, 0
        for k, (path, name) in enumerate(zip(sources, args.video, strict=True)):
            s = survey(path, args.align, fps, args.face)
            s["frames"]["source"], s["read"]["source"] = k, name
            s["frames"]["clip"] += clips
            fps, clips = s["fps"], clips + s["clips"]
            for note in s["notes"]:
                tell(f"warning: {name} {note}.")
            tell(said(s["read"]))
            surveys.append(s)
        frames = np.concatenate([s.pop("frames") for s in surveys])             # (T,), FRAME
        if not len(frames):
            raise InputError(f"{args.video[0]}: no frame with a face is left at --fps {args.fps}; give a "
                             f"higher rate.")
        total = {key: sum(s[key] for s in surveys) for key in ("decoded", "found", "clips", "cuts", "gaps")}

        # Second pass. The temporary file's name tells of which command it is, lest another go on with it
        asked = [args.video, [os.path.getsize(path) for path in sources], model.sha256, args.align, args.face,
                 args.fps, args.batch, len(frames)]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
        part = target.with_name(f".{target.name}.{digest}.part")
        if args.resume and not part.exists():
            tell("there is no interrupted run of this command to go on with; starting anew.")
        for old in target.parent.glob(f".{target.name}.*.part"):
            if old != part or not args.resume:
                old.unlink()
        codes = open_codes(part, (len(frames), model.L, model.D), args.resume)
        try:
            pairs = encode(model, sources, frames, codes, args.batch, args.resume)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted. What is done is kept; go on with --resume.") from None
        except InputError:
            part.unlink()
            raise
        del codes                                       # Windows replaces no file that is mapped

    # The files
    mean_psnr = float(np.nanmean(frames["psnr"]))
    meta = {"model": {"name": model.name, "sha256": model.sha256}, "fps": fps, "source": args.video,
            "size": model.size, "align": args.align, "face": args.face,
            "faces": max(s["faces"] for s in surveys), **total, "psnr": mean_psnr,
            "read": [s["read"] for s in surveys]}
    put(targets[1], json_of(meta, frames))
    if sheet:
        put(sheet, [sheet_of(pairs, f"crops over reconstructions, {mean_psnr:.1f} dB")])
    os.replace(part, target)

    # Report
    several = f"{meta['faces']} faces, number {args.face} " if meta["faces"] > 1 else "face "
    face = f"{several}found in {100 * total['found'] / total['decoded']:.1f} %, {total['gaps']} gaps, "
    tell(f"{len(frames)} codes at {fps:.3f} fps in {total['clips']} clips, {total['cuts']} cuts, "
         f"{face if args.align == 'face' else ''}reconstruction {mean_psnr:.1f} dB PSNR; wrote "
         f"{', '.join(map(str, targets))}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("video", nargs="+", metavar="VIDEO", help="video, folder of pictures, or - for a pipe")
    add("-o", "--output", default="latents.npy", help="codes (T, L, D); NAME.json is written beside it")
    add("--preview", metavar="FILE", help="sheet of crops and reconstructions (.png), or none; else NAME.png")
    add("--model", default="faces128", help="faces128, ffhq, ffhq-e4e or the path of a checkpoint")
    add("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model that has none")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--batch", type=int, default=16, help="frames encoded at a time")
    add("--align", choices=("face", "none"), default="face", help="crop by the eyes, or the centre square")
    add("--face", type=int, default=1, metavar="N", help="of several faces: 1 is seen longest, 2 next, ...")
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
    except KeyboardInterrupt as error:
        parser.exit(130, f"embed.py: {str(error) or 'interrupted; nothing was written.'}\n")
