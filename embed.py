"""Turn a video of a talking face into a trajectory of W+ codes.

    python embed.py video.mp4                                     # latents.npy, latents.json, latents.png
    python embed.py video.mp4 --model ffhq -o codes/video.npy     # photographs of people: the paper's image model
    python embed.py part1.mp4 part2.mp4 frames/                   # several sources, each a clip of its own or more
    python embed.py interview.mp4 --face 2                        # not the face that is seen longest, but the next one
    python embed.py hands.mp4 --model hands.pt --align none       # footage without faces: centre square
    python embed.py video.mp4 --video compare.mp4                 # crops beside their reconstructions
    python embed.py video.mp4 --resume                            # goes on after Ctrl-C or kill
    torchrun --nproc-per-node 4 embed.py *.mp4                    # the work shared by four processes (GPUs, or CPU cores)

Two passes over the video, frame by frame. The first finds the eye corners, which are then smoothed over time; the
second crops and encodes; --video and filtered codes take a third, which renders. Shapes: T frames, L style rows, D
style width; frames (H, W, 3) uint8 RGB; points (68, 2) float, x right and y down in pixels, pixel centres at whole
numbers. "Left" and "right" are as seen in the picture.
"""

import argparse
import array
import collections
import contextlib
import datetime
import functools
import importlib.util
import io
import itertools
import json
import math
import os
import queue
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import av
import cv2
import dlib
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from models import InputError, load_image_model, pick_device
from transfer import FORMATS, VideoWriter, pictures_at_once, render

# Crop (paper, sec. 3, Data Preprocessing: as FFHQ, but from the eye corners only, never the mouth)
SIDE = 4.0            # crop side in eye distances |e|: FFHQ's 2 max(2 |e|, 1.8 |m|) without its mouth term
DROP = 0.11           # crop centre below the eyes' midpoint, in |e|. FFHQ's is 0.1 m with m the way to the mouth;
#                       ours: |m| is about 1.1 |e|, and the mouth may not be asked
# Low-pass filters: standard deviation of the Gaussian in seconds, see low_pass(). The paper filters rotation and scale and does
# not say how strongly. Ours: a photograph moved as heads move is then followed better than without any filter (README)
ROTATION_SIGMA = 0.1
SCALE_SIGMA = 0.2     # not more for the sake of turned heads, whose eyes come closer: in two clips of talking heads the turn
#                       explains less than 1 % of what |e| does
POSITION_SIGMA = 0.04  # as STIT (Tzaban et al. 2022) smooths its crop centre: a frame at 25 fps
# Face track
GAP = 0.32            # ours: seconds without a face, at most, that are interpolated; longer gaps split the clip
JUMP = 12.5           # ours: eye distances per second that no head moves at; the track has gone to another face or shot
NOISE = 0.2           # ours: eye distances per frame that are no leap at any frame rate: landmarks of a blurred face tremble
RESIZE = 1.5          # ours: change of the eye distance between neighbouring found frames that means another face
CUT = 0.2             # ours: mean change of the 32 x 32 thumbnails, each less its mean and over its standard deviation, that can
#                       be a cut: as many in the dark as in daylight. Measured: 0.17 per frame at most in two clips of talking
#                       heads, 0.08 at a flash; 0.79 at a cut between drawn heads framed alike, 0.47 and 0.25 at 15 and 5 % of
#                       their brightness
CUT_RATIO = 4.0       # ours: it is one when this many times the median of the last CUT_MEMORY changes
CUT_MEMORY = 10       # ours: less than half a second
CUT_AGAIN = 2.0       # ours: and this many times the last one, lest a fast pan be a row of cuts
SHORT_SIDES = (256, 512, 1024)  # ours: the picture is searched at these sizes in turn; dlib finds faces from 80 px
SEARCH_EVERY = 0.32   # ours: while no face is in sight, the larger sizes are searched this many seconds apart
CENSUS, CENSUS_SHORT = 1.0, 512  # ours: seconds between looks at all faces of the picture, and its short side then
LOST = 3.0            # ours: seconds after which a face that comes again in the same place counts as another one
WEAK = 0.2            # ours: share of the best detection's score below which another one is no face: cloth scores 0.0 beside 1.5
KEEP_SCORE = -0.5     # ours: a face already tracked may score less than dlib's 0 and stays (a turned head does)
CONFIRM = 5           # ours: frames after which the detector confirms a tracked face, and at once when the patch around it ...
ALIKE = 0.9           # ... correlates by less than this with that of the frame before. Measured: 0.93 at least while a head talks
PATCH, BOX = 480, 288  # ours: landmarks are fitted in a patch of 480 px with the face box in its middle 288 px
OUTSIDE = 4           # ours: see whole()
PALE, CONTRAST = 64, 150  # ours: a picture with less than PALE grey levels between its 5th and 95th percentile is stretched to
#                       CONTRAST, as dlib compares pixels with fixed thresholds. At 10 % of daylight the crop was off by 44 and
#                       57 px of 256 in two clips, and by 1 px stretched; in fog (0.15 of the contrast) by 16 and 43, then by 0.9
#                       The detector bears more: it sees a picture stretched that has less than half of PALE
BOX_RMS = 2.88        # dlib detector's box side over the root mean square spread of the 68 points; ours, measured
BOX_SHIFT = (-0.03, -0.12)  # its centre against the points' mean, same unit; ours, measured on real and drawn heads
# Landmarks are averaged over shifted boxes, as in StyleInV (suppl. D). Ours: where, in px of the patch from its middle, and how
# many per frame. Two of the four places per frame, in turn, follow a moved photograph as well as all four (README)
PLACES, SHAKES = ((12, 12), (-12, 12), (-12, -12), (12, -12)), 2
# Reading
BACKGROUND = 128      # ours: grey behind transparent pixels; what their colours hide is arbitrary
HDR = {16: "PQ", 18: "HLG"}  # H.264's table of transfer characteristics
HD = 720              # ours: lines from which a video that does not say so is BT.709, as players take it; below, BT.601
RATES = (24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 120)  # a variable rate is resampled to the one of
#                       these that is within 2 % of it (ours), if any: phones round their time stamps
# The rest
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
TRANSPARENT = {".png", ".webp", ".tif", ".tiff"}  # those that can be
FOLDER_FPS = 25.0     # of a folder of pictures; ours: the paper's footage is 25 fps
SHEET = 12            # pictures on the preview sheet; ours
RENDERED = 120        # frames, evenly spaced, whose reconstruction is measured; ours: it costs as much as encoding
BAD = 3.0             # ours: a frame encodes badly whose PSNR is this many times the usual deviation below the median ...
BAD_DB = 2.0          # ... and at least this many dB, lest an even clip has bad frames
NAMED = 10            # bad frames that are named on the terminal; all are in the json
SAVE_EVERY = 60.0     # seconds between saves of what --resume needs; ours
TIMED = 300           # frames of the benchmark; ours
# Options that --resume must be given again, as what is done depends on them
KEPT = "align", "batch", "crop", "encoder", "face", "fine_rows", "fps", "shakes", "smooth_codes", "video_out"


# What is known of every code, 105 bytes each: number of its source, frame of that, clip; crop quad in px of the source; whether a
# face was found; PSNR in dB and identity distance of the reconstruction; trembling(), in % of the crop's side. NaN: not measured
FRAME = np.dtype([("source", "i4"), ("index", "i8"), ("clip", "i4"), ("quad", "f8", (4, 2)), ("found", "?"), ("psnr", "f8"),
                  ("identity", "f8"), ("shake", "f8")])


# ------------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------------

def picture_files(path):
    """Picture files of a folder in natural order (2 before 10), [path] for a single picture, [] for a video."""
    path = Path(path)
    if path.is_dir():
        files = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
        if not files:
            raise InputError(f"{path} holds no pictures; give a video, or a folder of "
                             f"{', '.join(sorted(PICTURES))} files.")
        return sorted(files, key=lambda f: [int(s) if s.isdigit() else s.lower() for s in re.split(r"(\d+)", f.name)])
    return [path] if path.suffix.lower() in PICTURES else []


def over_grey(image):
    """(H, W, 4) with opacity last -> (H, W, 3) uint8, over BACKGROUND."""
    opacity = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * opacity + BACKGROUND * (1 - opacity)).round().astype(np.uint8)


def read_picture(path):
    """Picture file -> (H, W, 3) uint8 RGB, turned as its EXIF orientation says; transparent pixels over grey."""
    try:
        data = np.fromfile(path, np.uint8)          # not cv2.imread, which fails on some names under Windows
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a picture that can.") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise InputError(f"{path} is not a readable picture; remove or replace it.")
    if Path(path).suffix.lower() in TRANSPARENT:
        full = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)     # IMREAD_COLOR leaves opacity out, IMREAD_UNCHANGED the orientation
        if full is not None and full.ndim == 3 and full.shape[2] == 4 and full.shape[:2] == image.shape[:2]:
            image = over_grey(full if full.dtype == np.uint8 else (full / 257).round().astype(np.uint8))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_pixels(frame, pixels, width):
    """Decoded frame -> (H, width[, 3]) uint8. 2 is "not said" of H.264's table of colour spaces."""
    said = {"src_colorspace": "ITU709"} if frame.colorspace == 2 and frame.height >= HD else {}
    if any(part.is_alpha for part in frame.format.components):
        image = over_grey(frame.to_ndarray(format="rgba", width=width, height=frame.height, **said))
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if pixels == "gray" else image
    return frame.to_ndarray(format=pixels, width=width, height=frame.height, **said)


def read_video(path, pixels="rgb24", times=None):
    """Yield the frames of a video, or of a folder of pictures, upright and with square pixels, one at a time.

    pixels: "rgb24" for (H, W, 3) uint8 RGB, "gray" for (H, W) uint8. times: a list that receives the presentation time
    of every yielded frame in seconds, None for pictures and for streams without timestamps.
    Raises InputError; a video that breaks off is read as far as it goes, with a warning on stderr.
    """
    files = picture_files(path)
    for file in files:
        image = read_picture(file)
        if times is not None:
            times.append(None)
        yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if pixels == "gray" else image
    if files:
        return
    count, promised = 0, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                why = "has no picture track (audio only)" if container.streams.audio else "holds no picture track"
                raise InputError(f"{path} {why}; give a video or a folder of pictures.")
            stream = container.streams.video[0]
            stream.thread_type, promised = "AUTO", stream.frames               # 0 where the header does not say
            if pixels == "gray" and stream.codec_context.color_trc in HDR:      # told once, in the first pass
                print(f"\nwarning: {path} is HDR video ({HDR[stream.codec_context.color_trc]}) and will look pale; convert it to "
                      f"ordinary brightness first (ffmpeg's zscale and tonemap filters).", file=sys.stderr)
            for frame in container.decode(stream):
                aspect = float(stream.sample_aspect_ratio or 1)                 # width over height of a pixel
                image = to_pixels(frame, pixels, round(frame.width * aspect))
                # display matrix: phones store sideways frames. Whole quarter turns, counter-clockwise
                image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                if times is not None:
                    times.append(frame.time)
                count += 1
                yield image
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a video or a folder of pictures.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; change its permissions.") from None
    except av.FFmpegError as error:
        if not count:
            raise InputError(f"{path} is not a video that FFmpeg can read ({error.strerror or error}); it may be cut "
                             f"short or of another format: get it again or convert it.") from None
        promised = math.inf
    if 0 < count < 0.98 * promised:                  # edit lists leave out a few frames of whole files
        print(f"\nwarning: {path} is cut short or damaged after frame {count}; only those are used.", file=sys.stderr)
    if not count:
        raise InputError(f"{path} holds no complete frame; get it again or convert it.")


def header(path):
    """What a source says of itself: (number of frames, frames per second), None for what it does not say."""
    files = picture_files(path)
    if files:
        return len(files), None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.frames or None, float(stream.average_rate) if stream.average_rate else None
    except (av.FFmpegError, OSError, IndexError):
        return None, None                            # read_video says what is wrong


def prefetch(items, depth=16):
    """Run an iterator in a thread, at most `depth` items ahead: decoding (without the GIL) overlaps computing."""
    box, stop = queue.Queue(depth), threading.Event()

    def put(kind, value):
        while not stop.is_set():
            try:
                return box.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work():
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:               # raised again where the items are used
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = box.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()


def frame_grid(times, fps=None):
    """Times of the source frames -> (frames per second, index of the source frame shown at each step of that rate).

    times: seconds, (n,). fps: wanted rate, None for the source's. A constant rate is kept frame by frame; a variable
    one is resampled to its most usual rate, or a common one near that: each step shows the frame nearest in time.
    """
    n = len(times)
    times = np.maximum.accumulate(np.asarray(times, float)) - times[0]
    if n < 2 or times[-1] == 0:
        return fps or FOLDER_FPS, np.arange(n)
    rate = (n - 1) / times[-1]
    constant = np.abs(times - np.arange(n) / rate).max() < 0.5 / rate
    if constant and (fps is None or abs(fps - rate) < 1e-3 * rate):
        return rate, np.arange(n)
    steps = np.diff(times)
    rate = fps or 1 / np.median(steps[steps > 0])
    common = min(RATES, key=lambda r: abs(math.log(r / rate)))
    if not fps and abs(common / rate - 1) < 0.02:
        rate = common
    steps = np.arange(int(times[-1] * rate + 1e-6) + 1) / rate
    after = np.clip(np.searchsorted(times, steps), 1, n - 1)
    return rate, after - (steps - times[after - 1] < times[after] - steps + 1e-3 / rate)       # halfway: the earlier


# ------------------------------------------------------------------------------------------------------------------
# Landmarks
# ------------------------------------------------------------------------------------------------------------------

def dlib_file(name):
    """Path of a dlib model inside the package face_recognition_models, which need not be importable."""
    spec = importlib.util.find_spec("face_recognition_models")
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / name if spec else None
    if path is None or not path.exists():
        raise InputError(f"dlib's {name} is missing; install it with: pip install face_recognition_models")
    return str(path)


@functools.cache
def detector():
    return dlib.get_frontal_face_detector()


@functools.cache
def predictor():
    return dlib.shape_predictor(dlib_file("shape_predictor_68_face_landmarks.dat"))


@functools.cache
def descriptor_network():
    return dlib.face_recognition_model_v1(dlib_file("dlib_face_recognition_resnet_model_v1.dat"))


def eyes(points):
    """(..., 68, 2) -> midpoint E of the eyes (..., 2) and the vector e from the left eye to the right (..., 2).

    An eye is the midpoint of its two corners, which stay when it blinks.
    """
    left, right = points[..., [36, 39], :].mean(-2), points[..., [42, 45], :].mean(-2)
    return (left + right) / 2, right - left


def square(C, x):
    """Centre (..., 2) and half-axis (..., 2) pointing right -> quad (..., 4, 2): top left, bottom left, bottom right,
    top right."""
    y = np.stack([-x[..., 1], x[..., 0]], -1)
    return np.stack([C - x - y, C - x + y, C + x + y, C + x - y], -2)


def crop_quad(E, angle, distance):
    """Eye midpoint (..., 2), angle of the eye line (...), eye distance (...) -> crop quad (..., 4, 2)."""
    d = np.stack([np.cos(angle), np.sin(angle)], -1)                            # (..., 2), along the eyes
    down = np.stack([-d[..., 1], d[..., 0]], -1)
    distance = np.asarray(distance)[..., None]
    return square(E + DROP * distance * down, SIDE / 2 * distance * d)


def oversampling(quads, size):
    """How many times as finely as size x size the largest of the quads (..., 4, 2) has to be sampled, a whole number."""
    return max(1, math.ceil(np.linalg.norm(quads[..., 3, :] - quads[..., 0, :], axis=-1).max() / size))


def warp(image, quad, size, m=None):
    """Cut a square quad (4, 2) out of a picture (H, W[, 3]), anti-aliased -> (size, size[, 3]).

    As FFHQ does: sample at least as finely as the source, m times, then average down. Beyond the picture's edge it is
    mirrored. m: oversampling() of all frames of a clip, as another m shows as a jump of sharpness; None: of this quad.
    """
    top_left, bottom_left, _, top_right = quad
    m = m or oversampling(quad, size)
    n = m * size
    axes = np.stack([top_right - top_left, bottom_left - top_left], 1) / n      # (2, 2): px of the source per px
    start = top_left + axes @ (0.5, 0.5)                                        # the centre of the first pixel
    # FFHQ samples bilinearly, 4 times as finely. Where that many are averaged it is as good (57 dB beside bicubic) and faster
    image = cv2.warpAffine(image, np.column_stack([axes, start]), (n, n), borderMode=cv2.BORDER_REFLECT_101,
                           flags=(cv2.INTER_LINEAR if m >= 4 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if m > 1 else image


def face_quad(points):
    """Points (68, 2) -> quad (4, 2) of a patch turned with the face, its middle BOX/PATCH the box dlib would detect."""
    d = eyes(points)[1]
    d = d / np.linalg.norm(d)
    down = np.array([-d[1], d[0]])
    mean = points.mean(0)
    rms = np.sqrt(((points - mean) ** 2).sum(1).mean())
    C = mean + rms * (BOX_SHIFT[0] * d + BOX_SHIFT[1] * down)
    return square(C, BOX_RMS * rms / 2 * PATCH / BOX * d)


def stretched(gray, pale=PALE):
    """Grey picture (H, W), with more contrast if it has less than `pale`."""
    low, high = np.percentile(gray[::8, ::8], (5, 95))
    if high - low >= pale:
        return gray
    gain = CONTRAST / max(high - low, 4)                                        # 4: noise is no face
    return np.clip((gray - low) * gain + min(20, low * gain), 0, 255).astype(np.uint8)


def whole(points, gray):
    """Whether a face with these points (68, 2) lies in the picture (H, W): what lies outside is invented. At most OUTSIDE of the
    points of nose, eyes and mouth may, and no eye corner."""
    outside = ((points < -0.5) | (points > np.array(gray.shape[::-1]) - 0.5)).any(1)
    return outside[27:].sum() <= OUTSIDE and not outside[[36, 39, 42, 45]].any()


def fit(gray, quad, places=PLACES):
    """Landmarks (68, 2) of the face in the middle of a quad of a grey picture (H, W), and the patch they are fitted in.

    The predictor runs on boxes shifted by a little, one for each of places, and its answers are averaged. What it sees is the
    patch: upright, of one size, and so fine that dlib's rounding to whole pixels does not matter.
    """
    m = max(1, round(np.linalg.norm(quad[3] - quad[0]) / PATCH))                # oversampling() would gain dlib nothing
    patch, edge, points = stretched(warp(gray, quad, PATCH, m)), (PATCH - BOX) // 2, []
    for x, y in places:
        box = dlib.rectangle(edge + x, edge + y, edge + BOX + x, edge + BOX + y)
        points.append([(p.x, p.y) for p in predictor()(patch, box).parts()])
    share = (np.mean(points, 0) + 0.5) / PATCH                                  # (68, 2) in [0, 1] of the quad
    top_left, bottom_left, _, top_right = quad
    return top_left + share[:, :1] * (top_right - top_left) + share[:, 1:] * (bottom_left - top_left), patch


def detect(gray, short):
    """Faces of a grey picture searched at a short side of `short` px -> (n, 4): left, top, width, height. Detections that
    score next to nothing beside the best one are left out."""
    scale = short / min(gray.shape)
    size = (round(gray.shape[1] * scale), round(gray.shape[0] * scale))
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    found, scores, _ = detector().run(stretched(small, PALE // 2), 0, 0.0)
    boxes = [(r.left(), r.top(), r.width(), r.height()) for r, score in zip(found, scores) if score >= WEAK * max(scores)]
    return np.array(boxes, float).reshape(-1, 4) / scale


def fit_box(gray, box):
    """Landmarks (68, 2) of the face in a detector's box. Fitted anew until they no longer depend on the box."""
    C, half = box[:2] + box[2:] / 2, box[2:].mean() / 2
    points, _ = fit(gray, square(C, np.array([half * PATCH / BOX, 0.0])))
    for _ in range(2):
        points, _ = fit(gray, face_quad(points))
    return points


def landmarks(frame):
    """Picture (H, W, 3) uint8 RGB or (H, W) -> the 68 points (68, 2) of its largest face, None where there is none."""
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    for short in SHORT_SIDES:
        boxes = detect(gray, short)
        if len(boxes):
            return fit_box(gray, boxes[boxes[:, 2].argmax()])
    return None


def face_measures(points):
    """What a face does, from its points (68, 2), free of the head's place, size and roll.

    mouth_opening: distance of the inner lips (62, 66) over the eye distance. eye_opening: mean of both eyes' heights
    over their widths. yaw: the nose tip's offset from the eyes' midpoint along the eye line, over the eye distance.
    """
    E, e = eyes(points)
    distance = np.linalg.norm(e)
    lengths = np.linalg.norm(points[[37, 38, 36, 43, 44, 42]] - points[[41, 40, 39, 47, 46, 45]], axis=1)
    return {"mouth_opening": float(np.linalg.norm(points[66] - points[62]) / distance),
            "eye_opening": float((lengths[:2].mean() / lengths[2] + lengths[3:5].mean() / lengths[5]) / 2),
            "yaw": float((points[30] - E) @ e / distance ** 2)}


def descriptor(frame, points):
    """Identity of the face with these points (68, 2) in a picture (H, W, 3) uint8 RGB: dlib's 128 numbers, float64.

    Distances below 0.6 count as one person (dlib).
    """
    scale = max(1.0, 80 / np.linalg.norm(eyes(points)[1]))       # points are rounded to pixels: make those small
    if scale > 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        points = (points + 0.5) * scale - 0.5
    (left, top), (right, bottom) = points.min(0), points.max(0)
    shape = dlib.full_object_detection(dlib.rectangle(int(left), int(top), int(right), int(bottom)),
                                       [dlib.point(round(x), round(y)) for x, y in points.tolist()])
    return np.array(descriptor_network().compute_face_descriptor(np.ascontiguousarray(frame), shape))


# ------------------------------------------------------------------------------------------------------------------
# Face track
# ------------------------------------------------------------------------------------------------------------------

class FaceTracker:
    """Follows one face through the frames of a video, given one after the other.

    A new track starts at the largest face. A running track is fitted from the last landmarks and confirmed every CONFIRM frames,
    or when what is seen changes at once, by dlib's detector on a 160 px cut-out around the face, so the picture as a whole
    is searched only while no face is tracked. For GAP seconds after a loss only a face near the lost one is taken. A cut ends the
    track. fps: frames per second. shakes: boxes per frame over which landmarks are averaged, 1 (in the middle), 2 or 4.
    """

    def __init__(self, fps=25.0, shakes=SHAKES):
        ways = {1: [((0, 0),)], 2: [PLACES[::2], PLACES[1::2]], 4: [PLACES]}
        self.places = itertools.cycle(ways[shakes])  # opposite places, so that the box as a whole stays where it is
        self.gap, self.search_every = round(GAP * fps), max(1, round(SEARCH_EVERY * fps))       # frames
        self.thumb, self.changes = None, collections.deque(maxlen=CUT_MEMORY)  # of the last frame; changes between frames
        self.frame, self.left, self.undone = 0, [], 0  # [(what was seen before a cut, its frame)] of the last cuts; see is_cut()
        self.points, self.last = None, None          # of the last frame if it had a face; of the last face, for a while
        self.short, self.missing = SHORT_SIDES[0], 0
        self.seen, self.unconfirmed = None, 0        # the last frame's patch, small; frames since the detector saw the face

    def is_cut(self, gray):
        """Whether the next frame (H, W) begins a new shot. If not, self.undone says how many frames ago what seemed a cut was
        none, as all that was seen before is seen again: a flash, or something that passed before the camera."""
        thumb = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        thumb = (thumb - thumb.mean()) / (thumb.std() + 0.01)                   # 0.01: a black picture's noise is no picture
        before, self.thumb, self.undone, self.frame = self.thumb, thumb, 0, self.frame + 1
        if before is None:
            return False
        change = float(np.abs(thumb - before).mean())
        usual = max(CUT_RATIO * statistics.median(self.changes), CUT_AGAIN * self.changes[-1]) if self.changes else 0
        self.changes.append(change)
        self.left = [(look, k) for look, k in self.left if self.frame - k <= self.gap]
        for n, (look, k) in enumerate(self.left):
            if np.abs(thumb - look).mean() < CUT:
                self.undone, self.left = self.frame - k, self.left[:n]
                return False
        cut = change > max(CUT, usual)
        if cut:
            self.left.append((before, self.frame))
        return cut

    def confirmed(self, patch):
        """Whether there still is a face in the patch (PATCH, PATCH)."""
        seen = cv2.resize(patch, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        seen -= seen.mean()
        before, self.seen = self.seen, seen / (np.linalg.norm(seen) + 1e-6)
        self.unconfirmed += 1
        if before is not None and before @ self.seen > ALIKE and self.unconfirmed < CONFIRM:
            return True
        self.unconfirmed = 0
        small = cv2.resize(patch, (PATCH // 3, PATCH // 3), interpolation=cv2.INTER_AREA)
        centres = [r.center() for r in detector().run(small, 0, KEEP_SCORE)[0]]
        return any(max(abs(c.x - PATCH / 6), abs(c.y - PATCH / 6)) < BOX / 6 for c in centres)

    def search(self, gray):
        """A face at the size where the last one was found, and every so often at the others: points (68, 2) or None."""
        for short in SHORT_SIDES if self.missing % self.search_every == 0 else (self.short,):
            boxes = detect(gray, short)
            if self.last is not None:                # only a face less than a box away can be the lost one
                boxes = boxes[np.linalg.norm(boxes[:, :2] + boxes[:, 2:] / 2 - self.last.mean(0), axis=1) < boxes[:, 2]]
            if len(boxes):
                self.short = short
                return fit_box(gray, boxes[boxes[:, 2].argmax()])
        return None

    def step(self, gray, box=None):
        """Grey frame (H, W) -> landmarks (68, 2) or None, and whether a new shot starts with it; for self.undone see is_cut().
        box (4,): where the face to be followed is, if that is known in this frame."""
        cut = self.is_cut(gray)
        if cut:
            self.points, self.last, self.missing = None, None, 0
        if self.points is None:
            self.seen = None
        else:
            points, patch = fit(gray, face_quad(self.points), next(self.places))
            self.points = points if whole(points, gray) and self.confirmed(patch) else None
        if box is not None and (self.points is None or not near(self.points, box)):
            self.points = fit_box(gray, box)
        if self.points is None:
            self.points = self.search(gray)
        if self.points is not None and not whole(self.points, gray):
            self.points = None
        self.missing = 0 if self.points is not None else self.missing + 1
        if self.points is not None or self.missing > self.gap:
            self.last = self.points
        return self.points, cut


def near(points, box):
    """Whether the middle of points (68, 2) is less than a box away from that of a detector's box (4,)."""
    return bool(np.linalg.norm(points.mean(0) - box[:2] - box[2:] / 2) < box[2])


class Census:
    """Which faces each shot shows, looked for once a second: faces, a list of {"shot", "boxes": {frame: box (4,)}}."""

    def __init__(self, fps=25.0):
        self.every, self.lost, self.shot, self.faces = max(1, round(CENSUS * fps)), LOST * fps, 0, []

    def back(self, shots):
        """The last shots are none."""
        self.shot -= shots
        self.faces = [face for face in self.faces if face["shot"] <= self.shot]

    def look(self, k, gray, cut):
        """Frame k of the video (H, W); cut: a new shot starts with it."""
        self.shot += cut
        if k % self.every and not cut:
            return
        boxes = detect(gray, CENSUS_SHORT)
        here = [face for face in self.faces if face["shot"] == self.shot and k - next(reversed(face["boxes"])) <= self.lost]
        for box in boxes[np.argsort(-boxes[:, 2])]:
            last = [face["boxes"][next(reversed(face["boxes"]))] for face in here]
            away = [np.linalg.norm((b - box)[:2] + (b - box)[2:] / 2) / box[2] for b in last]
            if away and min(away) < 1:
                here.pop(int(np.argmin(away)))["boxes"][k] = box
            else:
                self.faces.append({"shot": self.shot, "boxes": {k: box}})


def choose_faces(faces, number=1):
    """Of Census.faces, the face of each shot that is seen longest, the larger one of two, or the number-th: {shot: face}."""
    chosen = {}
    for shot in {face["shot"] for face in faces}:
        ranked = sorted((face for face in faces if face["shot"] == shot),
                        key=lambda face: (-len(face["boxes"]), -np.mean([box[2] for box in face["boxes"].values()])))
        if len(ranked) >= number:
            chosen[shot] = ranked[number - 1]
    return chosen


def track_face(frames, fps=25.0, shakes=SHAKES, chosen=None):
    """Grey frames -> points (n, 68, 2) with NaN where no face was found, cuts (n,) bool: a new shot starts here, and
    Census.faces. chosen: of choose_faces(), the faces to follow, no others; None: in each shot the one that is found first."""
    tracker, census, points, cuts = FaceTracker(fps, shakes), Census(fps), array.array("f"), []
    known = {k: box for face in (chosen or {}).values() for k, box in face["boxes"].items()}
    for k, gray in enumerate(frames):
        found, cut = tracker.step(gray, known.get(k))
        census.back(sum(cuts[len(cuts) - tracker.undone:]))
        cuts[len(cuts) - tracker.undone:] = [False] * tracker.undone
        if chosen is None:
            census.look(k, gray, cut)
        points.extend([math.nan] * 136 if found is None else found.ravel())
        cuts.append(cut)
    points, cuts = np.frombuffer(points, np.float32).reshape(-1, 68, 2), np.array(cuts, bool)
    if chosen is not None:
        shots = np.cumsum(cuts)
        for shot in np.unique(shots):
            part = np.flatnonzero(shots == shot)
            boxes = boxes_at(chosen[shot], part) if shot in chosen else [None] * len(part)
            points[[k for k, box in zip(part, boxes) if box is None or not near(points[k], box)]] = np.nan
    return points, cuts, census.faces


def boxes_at(face, frames):
    """Boxes (n, 4) of one of Census.faces in the frames (n,), between those that were seen."""
    seen, boxes = list(face["boxes"]), np.array(list(face["boxes"].values()))
    return np.stack([np.interp(frames, seen, column) for column in boxes.T], 1)


def split_clips(points, cuts, fps=25.0):
    """Points (n, 68, 2) with NaN, cuts (n,) -> list of (start, end) of the clips: frames that may be learnt as motion.

    A clip begins and ends with a found face. It ends before a cut, a gap of more than GAP seconds or a leap of the track
    (over a gap, a head may have moved on for 3 frames' worth at 25 per second).
    """
    found = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    if not len(found):
        return []
    E, e = eyes(points[found].astype(np.float64))
    distance = np.linalg.norm(e, axis=1)
    shots = np.cumsum(cuts)[found]
    step = np.diff(found)
    far = np.linalg.norm(np.diff(E, axis=0), axis=1) > np.maximum(JUMP * np.minimum(step / fps, 3 / 25), NOISE) * distance[:-1]
    resized = np.abs(np.diff(np.log(distance))) > math.log(RESIZE)
    ends = np.flatnonzero((step > round(GAP * fps) + 1) | (np.diff(shots) > 0) | far | resized)
    return [(int(found[a]), int(found[b]) + 1) for a, b in zip([0, *ends + 1], [*ends, len(found) - 1])]


def low_pass(x, sigma):
    """Low-pass along time: (n, ...) -> (n, ...). sigma in frames.

    A Gaussian g, twiced (Tukey 1977): y = g x + g (x - g x), which keeps slow motion as it is, where g alone would weaken it
    by 2 (pi sigma f)^2. Beyond its ends x goes on as its mirror image turned upside down, so that motion does not stop there.
    """
    radius = math.ceil(3 * sigma)
    if radius == 0 or len(x) < 2:
        return x
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    columns = np.asarray(x, np.float64).reshape(len(x), -1).T

    def g(column):
        return np.convolve(np.pad(column, radius, mode="reflect", reflect_type="odd"), kernel / kernel.sum(), mode="valid")

    return np.stack([g(column) + g(column - g(column)) for column in columns], -1).reshape(x.shape)


def smooth_quads(points, fps, sigmas=(POSITION_SIGMA, ROTATION_SIGMA, SCALE_SIGMA)):
    """Points of one clip (n, 68, 2), NaN in gaps -> crop quads (n, 4, 2), low-passed over time. sigmas: in seconds, of
    position, rotation and scale; 0 switches a filter off."""
    n, found = len(points), np.flatnonzero(np.isfinite(points[:, 0, 0]))
    E, e = eyes(points[found].astype(np.float64))
    angle, log_distance = np.unwrap(np.arctan2(e[:, 1], e[:, 0])), np.log(np.linalg.norm(e, axis=1))
    values = np.column_stack([E, angle, log_distance])                          # (found, 4)
    values = np.stack([np.interp(np.arange(n), found, v) for v in values.T], -1)                # (n, 4)
    E, angle, log_distance = (low_pass(x, sigma * fps) for x, sigma in zip((values[:, :2], values[:, 2], values[:, 3]), sigmas))
    return crop_quad(E, angle, np.exp(log_distance))


def shake(quads):
    """Noise of the centres of crop quads (n, 4, 2) in percent of their side: second difference over sqrt(6).

    For white noise that is its standard deviation; steady motion counts as none.
    """
    if len(quads) < 3:
        return 0.0
    side = np.linalg.norm(quads[:, 3] - quads[:, 0], axis=-1).mean()
    second = np.diff(quads.mean(1), 2, axis=0)
    return float(100 * np.sqrt((second ** 2).sum(-1).mean() / 6) / side)


# ------------------------------------------------------------------------------------------------------------------
# The two passes
# ------------------------------------------------------------------------------------------------------------------

def centre_quad(height, width):
    """Quad (4, 2) of the largest centred square of a picture."""
    half = min(height, width) / 2
    return square(np.array([(width - 1) / 2, (height - 1) / 2]), np.array([half, 0.0]))


def fixed_quad(quads):
    """Crop quads of a clip (n, 4, 2) -> one upright square for all of it (4, 2): as large as most of them, where most are."""
    side = np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)
    return square(np.median(quads.mean(1), 0), np.array([np.percentile(side, 95) / 2, 0.0]))


def survey(path, align="face", fps=None, crop="follow", shakes=SHAKES, face=1):
    """First pass over one source: where the crops lie.

    align: "face", or "none" for the centre square. fps: rate to resample to; None keeps the source's. crop: "follow" the
    face, or "fixed" within a clip. shakes: of FaceTracker. face: which one in shots of several, 1 the one that is seen longest.
    Returns a dict: fps; resampled (bool); frames (T,), FRAME, in time order; and counts for the report: decoded, found, faces
    (most at once), clips, gaps, cuts, shake, raw_shake. Raises InputError without a face.
    """
    (total, usual), times, sizes = header(path), [], []

    def grey_frames(why=""):
        times.clear()
        sizes.clear()
        for gray in tqdm(prefetch(read_video(path, "gray", times)), desc=f"1/2 {Path(path).name}{why}", unit="frame",
                         total=total, mininterval=0.5):
            sizes.append(gray.shape)
            yield gray

    if align == "face":
        guess = usual or fps or FOLDER_FPS
        points, cuts, faces = track_face(grey_frames(), guess, shakes)
        at_once = max(collections.Counter(f["shot"] for f in faces if len(f["boxes"]) > 1).values(), default=1)
        chosen = choose_faces(faces, face)
        if face > 1 and not chosen:
            raise InputError(f"{path}: --face {face}, but no shot has more than {at_once} face{'s' * (at_once > 1)}; give a "
                             f"smaller number.")
        followed = [near(points[k], box) for f in chosen.values() for k, box in f["boxes"].items()]
        if len(chosen) < len(faces) and not (face == 1 and np.mean(followed) > 0.9):            # it was another one
            points, cuts, _ = track_face(grey_frames(f", face {face}"), guess, shakes, chosen)
        found = np.isfinite(points[:, 0, 0])
    else:
        tracker, at_once, cuts = FaceTracker(), 0, []
        for gray in grey_frames():
            cut = tracker.is_cut(gray)
            cuts[len(cuts) - tracker.undone:] = [False] * tracker.undone + [cut]
        cuts, found = np.array(cuts), np.ones(len(cuts), bool)
    n = len(cuts)

    # Time
    if any(t is None for t in times):                # pictures, or a stream without timestamps
        times = np.arange(n) / (usual or fps or FOLDER_FPS)
    rate, grid = frame_grid(times, fps)
    if usual and not fps and abs(rate - usual) < 1e-3 * usual:
        rate = usual                                 # timestamps may be rounded, to milliseconds in Matroska

    # Crops of all source frames that lie in a clip
    quads, raw_shake = np.full((n, 4, 2), np.nan), [0.0]
    if align == "face":
        if not found.any():
            raise InputError(f"{path}: no face found in {n} frame{'s' * (n > 1)}; give footage with a face seen from "
                             f"the front, or --align none for footage without faces.")
        source_rate = (n - 1) / (times[-1] - times[0]) if times[-1] > times[0] else rate
        clips = split_clips(points, cuts, source_rate)
        for start, end in clips:
            quads[start:end] = smooth_quads(points[start:end], source_rate)
            if crop == "fixed":
                quads[start:end] = fixed_quad(quads[start:end])
        raw_shake = [shake(smooth_quads(points[start:end], source_rate, (0, 0, 0))) for start, end in clips]
    else:
        starts = [0, *np.flatnonzero(cuts)]
        clips = list(zip(starts, [*starts[1:], n]))
        quads[:] = [centre_quad(*size) for size in sizes]
    clip_of = np.full(n, -1)
    for k, (start, end) in enumerate(clips):
        clip_of[start:end] = k

    rows = grid[clip_of[grid] >= 0]                                             # source frame of every code
    frames = np.zeros(len(rows), FRAME)
    frames["index"], frames["quad"], frames["found"] = rows, quads[rows], found[rows]
    kept, frames["clip"] = np.unique(clip_of[rows], return_inverse=True)        # resampling can skip a short clip
    frames["psnr"] = frames["identity"] = frames["shake"] = np.nan
    return {"fps": float(rate), "resampled": not np.array_equal(grid, np.arange(n)), "frames": frames,
            "decoded": n, "found": int(found.sum()), "faces": at_once, "clips": len(kept), "cuts": int(cuts.sum()),
            "gaps": int((np.diff(np.r_[1, found]) == -1).sum()),
            "shake": float(np.mean([shake(quads[a:b]) for a, b in clips])), "raw_shake": float(np.mean(raw_shake))}


def crops(path, frames, size):
    """Second pass over one source: yield the crop (size, size, 3) uint8 RGB of every frame of survey's (or of the rows of a
    latents.json; of these "index", "clip" and "quad" are used)."""
    indices, clips, quads = ([frame[name] for frame in frames] for name in ("index", "clip", "quad"))
    clips, quads, k = np.array(clips), np.array(quads), 0
    m = {clip: oversampling(quads[clips == clip], size) for clip in np.unique(clips)}
    for index, image in enumerate(prefetch(read_video(path)) if len(indices) else ()):
        while k < len(indices) and indices[k] == index:
            yield warp(image, quads[k], size, m[clips[k]])
            k += 1
        if k == len(indices):
            return
    if k < len(indices):
        raise InputError(f"{path} changed while it was read: {len(indices) - k} frames are missing the second time; "
                         f"run embed.py again.")


def photo_quad(points):
    """Points (68, 2) of one picture -> its crop quad (4, 2)."""
    E, e = eyes(points)
    return crop_quad(E, math.atan2(e[1], e[0]), np.linalg.norm(e))


def align_photo(path, size):
    """The same crop for one photograph: picture file -> (size, size, 3) uint8 RGB. Raises InputError without a face."""
    image = read_picture(path)
    points = landmarks(image)
    if points is None:
        raise InputError(f"{path}: no face found; give a picture with a face seen from the front.")
    return warp(image, photo_quad(points), size)


# ------------------------------------------------------------------------------------------------------------------
# Encoding and writing
# ------------------------------------------------------------------------------------------------------------------

def to_network(images):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images):
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of two uint8 pictures."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255 ** 2 / max(error, 1e-10)))


def in_batches(items, n):
    """Lists of n items, the last one of what is left."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == n:
            yield batch
            batch = []
    if batch:
        yield batch


def smooth_codes(codes, clips, sigma=0.0, fine_rows=None):
    """Filter a trajectory of codes (T, L, D) along time, in place and row by row, so that it may be a memory map.

    clips: number of its clip, per frame. sigma: of low_pass(), in frames; 0 leaves the codes as they are. fine_rows: rows from
    this one on take their mean over the clip (STIT and StyleGAN3-editing keep fine rows still in their ways).
    """
    starts = [0, *np.flatnonzero(np.diff(clips)) + 1, len(clips)]
    for start, end in zip(starts, starts[1:]):
        for row in range(codes.shape[1]):
            part = np.asarray(codes[start:end, row], np.float64)                # (t, D)
            if fine_rows is not None and row >= fine_rows:
                codes[start:end, row] = part.mean(0)
            elif sigma > 0:
                codes[start:end, row] = low_pass(part, sigma)


def identity_distance(a, b):
    """Distance of dlib's descriptors of two pictures of a face; None where it is not found in both."""
    points = [landmarks(picture) for picture in (a, b)]
    if any(p is None for p in points):
        return None
    return float(np.linalg.norm(descriptor(a, points[0]) - descriptor(b, points[1])))


def bad_frames(scores):
    """{frame: PSNR} -> the frames that encode badly, in order. The usual deviation is 1.48 times the median one."""
    values = np.array(list(scores.values()))
    usual = 1.48 * np.median(np.abs(values - np.median(values)))
    limit = np.median(values) - max(BAD * usual, BAD_DB)
    return [frame for frame, value in scores.items() if value < limit]


def trembling(clips, quads):
    """Per frame (T,), how far the centre of its crop quad (T, 4, 2) is from the middle of its neighbours', in % of the side, NaN
    at the ends of its clip: what shake() is the mean of. clips (T,): number of every frame's clip."""
    values = np.full(len(clips), np.nan)
    centres, sides = quads.mean(1), np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)
    away = np.linalg.norm(centres[1:-1] - (centres[:-2] + centres[2:]) / 2, axis=1)
    inside = clips[:-2] == clips[2:]
    values[1:-1][inside] = (100 * away / sides[1:-1])[inside]
    return values


def preview(tiles, caption):
    """Crops and their reconstructions (n, 2, H, W, 3) -> sheet (24 + 2 H, n W, 3) uint8 RGB: these below those, caption above."""
    rows = [np.hstack(tiles[:, k]) for k in (0, 1)]
    head = np.full((24, rows[0].shape[1], 3), 255, np.uint8)
    cv2.putText(head, caption, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([head, *rows])


def compare(model, images, codes, at, frames, sheet, identified, video=None):
    """Render codes (k, L, D) and compare them with their crops: fills in the rows `at` of frames (T,), FRAME, and of the sheet
    {row: tiles (2, h, w, 3)}; identified: rows whose face is compared, too. video: shows both side by side."""
    for row, image, picture in zip(at, images, render(model, codes, pictures_at_once(model)) if len(at) else ()):
        frames["psnr"][row] = psnr(image, picture)
        if row in identified:
            frames["identity"][row] = identity_distance(image, picture)
        if row in sheet:
            for tile, side in zip(sheet[row], (image, picture)):
                tile[:] = cv2.resize(side, tile.shape[1::-1], interpolation=cv2.INTER_AREA)
        if video is not None:
            video.write(np.hstack([image, picture]))


# ------------------------------------------------------------------------------------------------------------------
# Several processes (torchrun): they share the sources of the first pass and the frames of the second
# ------------------------------------------------------------------------------------------------------------------

def processes():
    """How many there are, and which one this is."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


@contextlib.contextmanager
def several_processes(args):
    """Under torchrun: join the others, each with a GPU of its own where there are any. What they tell each other goes through
    the CPU, and may be days in coming."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if args.device == "auto" and torch.cuda.is_available():
        args.device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()


def gathered(value):
    """The values of all processes, in a list."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


# ------------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------------

def open_parts(paths, kept=None):
    """Open `.NAME.part` beside every path for writing, so that a target that cannot be written is known at once. That of the path
    `kept` goes on where it is."""
    parts = {}
    for path in paths:
        try:
            if path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            parts[path] = open(path.with_name(f".{path.name}.part"), "r+b" if path == kept else "wb")
        except OSError as error:
            discard(parts)
            raise InputError(f"{path} cannot be written ({error.strerror}); name another file in a folder that exists, "
                             f"with -o.") from None
    return parts


def write(parts, path, data):
    """Append bytes to the temporary file of `path`."""
    try:
        parts[path].write(data)
        parts[path].flush()
    except OSError as error:
        raise InputError(f"{path} cannot be written to the end ({error.strerror}); make room, or name another "
                         f"disk with -o.") from None


def reserve(parts, path, size):
    """Make room for `size` bytes now, so that a disk that is too small is known before hours of work (where the system can)."""
    try:
        parts[path].truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(parts[path].fileno(), 0, size)
    except OSError as error:
        raise InputError(f"{path} will take {size / 1e6:.0f} MB and cannot be written ({error.strerror}); make room, or name "
                         f"another disk with -o.") from None


def finish(parts):
    """Give the temporary files, now complete, their names."""
    for path, file in parts.items():
        file.close()
        try:
            os.replace(file.name, path)
        except OSError as error:
            raise InputError(f"{path} cannot be replaced ({error.strerror}); close it where it is open.") from None


def discard(parts):
    for file in parts.values():
        file.close()
        Path(file.name).unlink(missing_ok=True)


def state_path(target):
    """Where this process keeps what an interrupted run needs to go on, beside the codes' temporary file."""
    return target.with_name(f".{target.name}.state{processes()[1]}")


def save_state(path, state):
    """{name: array, or what JSON can hold} -> a complete .npz under this name."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        np.savez(file, **{name: value if isinstance(value, np.ndarray) else np.array(json.dumps(value))
                          for name, value in state.items()})
    os.replace(part, path)


def load_state(path, options):
    """What save_state() wrote. Raises InputError if there is nothing, or if it is of a run with other options."""
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: json.loads(file[name].item()) if file[name].ndim == 0 else file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: there is no interrupted run to go on with; start without --resume.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); start again without --resume.") from None
    for name, value in options.items():
        if state["options"].get(name) != value:
            raise InputError(f"{path} is of a run with {name} {state['options'].get(name)}, not {value}; give the same, or start "
                             f"again without --resume.")
    return state


def frames_json(frames):
    """Rows of FRAME as JSON text, one after the other, so that an hour of them is never held twice."""
    for k, frame in enumerate(frames):
        row = {"source": int(frame["source"]), "index": int(frame["index"]), "clip": int(frame["clip"]),
               "quad": np.round(frame["quad"], 2).tolist(), "found": bool(frame["found"]),
               "shake": None if np.isnan(frame["shake"]) else round(float(frame["shake"]), 3)}
        row.update({name: round(float(frame[name]), digits) for name, digits in (("psnr", 2), ("identity", 4))
                    if not np.isnan(frame[name])})
        yield (", " if k else "") + json.dumps(row)


# ------------------------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------------------------

def main(args):
    target = Path(args.output)
    if target.suffix != ".npy":
        raise InputError(f"{target} does not end in .npy; name the codes' file so with -o.")
    sheet_path = None if args.preview == "none" else Path(args.preview or target.with_suffix(".png"))
    if sheet_path is not None and sheet_path.suffix.lower() != ".png":
        raise InputError(f"{sheet_path} does not end in .png; name the preview so with --preview, or say none.")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps} is no frame rate; give a number above 0 and up to 1000.")
    if not 0 <= args.smooth_codes <= 10:
        raise InputError(f"--smooth-codes {args.smooth_codes} is no filter for motion; give 0 to 10 seconds.")
    if args.fine_rows is not None and args.fine_rows < 0:
        raise InputError(f"--fine-rows {args.fine_rows} is no style row; give 0 or more.")
    if args.face < 1:
        raise InputError(f"--face {args.face} is no face; they are counted from 1, the one that is seen longest.")
    if args.batch < 1:
        raise InputError(f"--batch {args.batch} is no batch size; give 1 or more.")
    targets = [target, target.with_suffix(".json")] + ([sheet_path] if sheet_path else [])
    videos = [Path(args.video_out)] if args.video_out else []
    for path in videos:
        if path.suffix.lower() not in FORMATS or not path.parent.is_dir():
            raise InputError(f"{path} cannot be written; name a video ({', '.join(FORMATS)}) in a folder that exists, with "
                             f"--video.")
    for path in map(Path, args.video):
        if not path.exists():
            raise InputError(f"{path} does not exist; give a video or a folder of pictures.")
        if path.resolve() in [t.resolve() for t in targets + videos]:
            raise InputError(f"{path} would be overwritten by the output; name another with -o.")
    model = load_image_model(args.model, args.encoder, pick_device(args.device))
    if model.encoder is None:
        raise InputError(f"{args.model} has no encoder; name a file that has one with --encoder.")
    if args.benchmark:
        return benchmark(args.video[0], args.align, model, args.batch)

    (n, rank), state = processes(), state_path(target)
    options = {"sources": [[path, Path(path).stat().st_size] for path in args.video], "model": model.sha256, "processes": n,
               **{name: getattr(args, name) for name in KEPT}}
    before = load_state(state, options) if args.resume else None
    gathered(None)                                   # none begins to write before all could read
    if not args.resume:
        state.unlink(missing_ok=True)
    parts = open_parts(targets, target if args.resume else None) if rank == 0 else {}
    gathered(None)
    if rank:
        parts = open_parts([target], target)         # the same file: each process writes its part of it
    try:
        embed(args, parts, target, sheet_path, model, state, options, before)
    except (InputError, KeyboardInterrupt) as error:
        if not state.exists():
            raise
        parts.pop(target).close()                    # stays, with the state
        raise type(error)(f"{str(error) or 'interrupted.'} What is done is kept; go on with --resume.") from None
    finally:
        discard(parts)                               # nothing half-written stays; what was completed has its own name


def survey_all(args):
    """First pass over all sources, which the processes share: [survey(), ...]. All take the first one's frame rate, and every
    source begins a new clip."""
    n, rank = processes()

    def one(k, fps):
        s = survey(args.video[k], args.align, fps, args.crop, args.shakes, args.face)
        s["frames"]["source"] = k
        if s["resampled"]:
            print(f"embed.py: {args.video[k]} is resampled to a constant {s['fps']:.3f} frames per second.", file=sys.stderr)
        return s

    first = gathered(one(0, args.fps) if rank == 0 else None)[0]
    others = gathered({k: one(k, first["fps"]) for k in range(1, len(args.video)) if k % n == rank})
    surveys, clips = [first] + [others[k % n][k] for k in range(1, len(args.video))], 0
    for s in surveys:
        s["frames"]["clip"] += clips
        clips += s["clips"]
    return surveys


def embed(args, parts, target, sheet_path, model, state, options, before=None):
    """Both passes and the files. parts: the open temporary files by their final paths. state: file for what --resume needs, of a
    run with these options; before: what it held."""
    n, rank = processes()
    hint = "; photographs of people want --model ffhq (the paper's, research only)" if args.model == "faces128" else ""
    if rank == 0:
        print(f"embed.py: image model {model.name}, {model.size} px, {model.L} x {model.D} codes{hint}.", file=sys.stderr)

    # First pass
    if before:
        frames, surveys = before["frames"], before["surveys"]
    else:
        surveys = survey_all(args)
        frames = np.concatenate([s.pop("frames") for s in surveys])             # (T,), FRAME
    T, fps = len(frames), surveys[0]["fps"]
    if T == 0:
        raise InputError(f"{args.video[0]}: no frame with a face is left at --fps {args.fps}; give a higher rate.")

    # Some frames are rendered again, for the report and the sheet; all for --video. Filtered codes differ, so these are rendered
    # after the filter, in a third pass
    measured = np.linspace(0, T - 1, min(T, RENDERED)).round().astype(int)
    shown = measured[np.linspace(0, len(measured) - 1, min(T, SHEET)).round().astype(int)]
    identified = set((measured if args.video_out else shown).tolist() if args.align == "face" else [])  # 0.2 s each
    tile = min(256, model.size)
    tiles = before["tiles"] if before else np.zeros((len(shown), 2, tile, tile, 3), np.uint8)
    sheet = dict(zip(shown.tolist(), tiles))
    rendered = set(range(T) if args.video_out else measured.tolist())
    filtered = args.smooth_codes > 0 or args.fine_rows is not None
    third = filtered or args.video_out
    passes = 3 if third else 2

    # Second pass: this process's frames, whole batches of them: crop, encode, write
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (T, model.L, model.D)})
    if rank == 0:
        if not before:
            reserve(parts, target, head.tell() + 4 * T * model.L * model.D)
        parts[target].seek(0)
        write(parts, target, head.getvalue())
    batches = math.ceil(T / args.batch)
    start, end = (min(T, args.batch * (batches * r // n)) for r in (rank, rank + 1))
    done = before["done"] if before else start

    def crops_of(start, end):
        for k in np.unique(frames["source"][start:end]):
            yield from crops(args.video[k], frames[start:end][frames["source"][start:end] == k], model.size)

    def save():
        parts[target].flush()
        save_state(state, {"frames": frames, "tiles": tiles, "done": done, "surveys": surveys, "options": options})

    def in_place(batch, first):
        """Which of a batch of crops, of frames from `first` on, are rendered: places in the batch, rows."""
        some = [k for k in range(len(batch)) if first + k in rendered]
        return some, [first + k for k in some], [batch[k] for k in some]

    gathered(None)                                   # the header is written, the file has its size
    save()
    saved = time.monotonic()
    parts[target].seek(head.tell() + 4 * done * model.L * model.D)
    bar = tqdm(total=end - start, initial=done - start, desc=f"2/{passes} encode", unit="frame", mininterval=0.5,
               disable=rank > 0)
    try:
        for batch in in_batches(prefetch(crops_of(done, end)), args.batch):
            codes = model.encode(to_network(batch))                             # (B, L, D)
            if not torch.isfinite(codes).all():
                state.unlink()                       # nothing to go on with
                raise InputError(f"{args.model} gives codes that are not finite; name a sound image model with --model.")
            write(parts, target, codes.float().cpu().numpy().astype("<f4").tobytes())
            if not third:
                some, at, images = in_place(batch, done)
                compare(model, images, codes[some], at, frames, sheet, identified)
            done += len(batch)
            bar.update(len(batch))
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    finally:
        bar.close()
        if state.exists():
            save()                                   # of a whole number of batches, whatever happened
    for (a, b), part, its_tiles in gathered(((start, end), frames[start:end], tiles)):
        frames[a:b] = part
        tiles |= its_tiles                           # zero where another process's are
    if rank:
        parts.pop(target).close()
        gathered(None)
        state.unlink()
        return

    if third:
        memory = np.memmap(parts[target].name, "<f4", "r+", head.tell(), (T, model.L, model.D))
        if filtered:
            state.unlink()                           # twice would be once too often
            smooth_codes(memory, frames["clip"], args.smooth_codes * fps, args.fine_rows)
            memory.flush()
        with contextlib.ExitStack() as stack:
            video = stack.enter_context(VideoWriter(args.video_out, fps)) if args.video_out else None
            bar, first = stack.enter_context(tqdm(total=T, desc="3/3 compare", unit="frame", mininterval=0.5)), 0
            for batch in in_batches(prefetch(crops_of(0, T)), args.batch):
                some, at, images = in_place(batch, first)
                compare(model, images, torch.from_numpy(np.array(memory[at])).to(model.device), at, frames, sheet, identified,
                        video)
                first += len(batch)
                bar.update(len(batch))
        memory = None                                                           # Windows replaces no file that is mapped

    report(args, parts, target, sheet_path, model, frames, surveys, tiles)
    gathered(None)
    state.unlink(missing_ok=True)


def report(args, parts, target, sheet_path, model, frames, surveys, tiles):
    """latents.json and the sheet, all files under their names, and the summary on stderr."""
    T, fps = len(frames), surveys[0]["fps"]
    frames["shake"] = trembling(frames["clip"], frames["quad"])
    scores = {int(k): float(frames["psnr"][k]) for k in np.flatnonzero(np.isfinite(frames["psnr"]))}
    bad, mean_psnr = bad_frames(scores), float(np.mean(list(scores.values())))
    distances = frames["identity"][np.isfinite(frames["identity"])]
    total = {k: sum(s[k] for s in surveys) for k in ("decoded", "found", "clips", "cuts", "gaps")}
    quality = {k: float(np.mean([s[k] for s in surveys])) for k in ("shake", "raw_shake")}
    meta = {"model": {"name": model.name, "sha256": model.sha256}, "fps": fps,
            "source": [str(path) for path in args.video], "size": model.size, "align": args.align,
            "crop": args.crop, "face": args.face, "faces": max(s["faces"] for s in surveys), "smooth_codes": args.smooth_codes,
            "fine_rows": args.fine_rows, "resampled": any(s["resampled"] for s in surveys), **total, **quality, "psnr": mean_psnr,
            "identity": float(distances.mean()) if len(distances) else None, "bad": bad}
    sidecar = target.with_suffix(".json")
    write(parts, sidecar, (json.dumps(meta)[:-1] + ', "frames": [').encode())
    for row in frames_json(frames):
        write(parts, sidecar, row.encode())
    write(parts, sidecar, b"]}")
    if sheet_path is not None:
        picture = preview(tiles, f"crops over reconstructions, {mean_psnr:.1f} dB")
        write(parts, sheet_path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    finish(parts)
    several = f"{meta['faces']} faces, number {args.face} " if meta["faces"] > 1 else "face "
    face = f"{several}found in {100 * total['found'] / total['decoded']:.1f} %, {total['gaps']} gaps, " \
           f"crop shake {quality['shake']:.2f} % of its side (unsmoothed {quality['raw_shake']:.2f} %), "
    print(f"embed.py: {T} of {total['decoded']} frames at {fps:.3f} fps in {total['clips']} clips, "
          f"{total['cuts']} cuts, {face if args.align == 'face' else ''}reconstruction {mean_psnr:.1f} dB PSNR"
          f"{f', identity distance {distances.mean():.2f}' if len(distances) else ''}; "
          f"wrote {', '.join(str(path) for path in [*parts, *([args.video_out] if args.video_out else [])])}.", file=sys.stderr)
    if bad:
        named = ", ".join(f"{frame} ({scores[frame]:.1f} dB)" for frame in bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
        print(f"embed.py: badly encoded, of {len(scores)} frames looked at: {named}.", file=sys.stderr)


def benchmark(path, align, model, batch, rounds=3):
    """Time both passes against the plain way, in turns, on the beginning of a source; a table on standard output.

    Plain: dlib's detector on every whole RGB frame enlarged once, and landmarks in its last box, as the alignment scripts of
    pSp and e4e do, with this script's crop; then the encoder, one crop at a time.
    """
    def plain_track(path):
        for frame in read_video(path):
            boxes = detector()(frame, 1)
            if align == "face" and boxes:
                points = np.array([(p.x, p.y) for p in predictor()(frame, boxes[-1]).parts()])
                warp(frame, photo_quad(points), model.size)

    def track(path):
        for _ in crops(path, survey(path, align)["frames"], model.size):
            pass

    def plain_encode(path, frames):
        return np.concatenate([model.encode(to_network([crop])).cpu().numpy() for crop in crops(path, frames, model.size)])

    def encode(path, frames):
        return np.concatenate([model.encode(to_network(some)).cpu().numpy()
                               for some in in_batches(prefetch(crops(path, frames, model.size)), batch)])

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "beginning.mp4"
        with VideoWriter(video, header(path)[1] or FOLDER_FPS) as writer:
            for frame in itertools.islice(read_video(path), TIMED):
                writer.write(frame)
        frames = survey(video, align)["frames"]
        ways = {"track and crop": (lambda: plain_track(video), lambda: track(video)),
                "crop and encode": (lambda: plain_encode(video, frames), lambda: encode(video, frames))}
        print(f"{'ms per frame':18s}{'plain':>9s}{'embed.py':>10s}{'ratio':>8s}    {path}, {len(frames)} frames of "
              f"{' x '.join(map(str, frame.shape[1::-1]))}, {model.name}, medians of {rounds} turns")
        for name, pair in ways.items():
            taken = [[], []]
            for _ in range(rounds):
                for way, times in zip(pair, taken):
                    begun = time.perf_counter()
                    way()
                    times.append(1000 * (time.perf_counter() - begun) / len(frames))
            plain, ours = map(np.median, taken)
            print(f"{name:18s}{plain:9.2f}{ours:10.2f}{plain / ours:8.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("video", nargs="+", metavar="VIDEO", help="video, or folder of pictures in natural order")
    files.add_argument("-o", "--output", default="latents.npy", help="codes (T, L, D); NAME.json is written beside it")
    files.add_argument("--preview", metavar="FILE", help="sheet of crops over reconstructions (.png), or none; without "
                       "this option the codes' name with .png")
    files.add_argument("--video", dest="video_out", metavar="FILE", help="crops beside their reconstructions as a video (.mp4); "
                       "renders all frames")
    image = parser.add_argument_group("image model")
    image.add_argument("--model", default="faces128", help="faces128, ffhq, ffhq-e4e or the path of a checkpoint")
    image.add_argument("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model that has none")
    image.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    image.add_argument("--batch", type=int, default=16, help="frames encoded at a time")
    image.add_argument("--smooth-codes", type=float, default=0.0, metavar="SECONDS", help="low-pass the codes along time; "
                       "standard deviation of the Gaussian, 0 for none")
    image.add_argument("--fine-rows", type=int, metavar="ROW", help="style rows from this one on keep their mean of the clip")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--align", choices=("face", "none"), default="face",
                         help="crop by the eye corners, or the centre square")
    reading.add_argument("--face", type=int, default=1, metavar="N", help="in shots with several faces: 1 for the "
                         "one seen longest, 2 for the next, ...")
    reading.add_argument("--crop", choices=("follow", "fixed"), default="follow",
                         help="move with the face, or stay in place for the length of a clip")
    reading.add_argument("--shakes", type=int, choices=(1, 2, 4), default=SHAKES,
                         help="shifted boxes per frame over which landmarks are averaged; 1: one, in the middle")
    reading.add_argument("--fps", type=float, help="resample videos to this rate, read a folder of pictures at it; "
                         "without this option the first source's own, 25 for pictures")
    running = parser.add_argument_group("running")
    running.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")
    running.add_argument("--benchmark", action="store_true", help=f"only time the first {TIMED} frames against the plain way")
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler's kill is as good as Ctrl-C, also in the background of a shell
        signal.signal(number, signal.default_int_handler)
    try:
        arguments = parser.parse_args()
        with several_processes(arguments):
            main(arguments)
    except InputError as error:
        parser.exit(2, f"embed.py: {error}\n")
    except KeyboardInterrupt as error:
        parser.exit(130, f"embed.py: {str(error) or 'interrupted; nothing was written.'}\n")
