"""Shows a trajectory of W+ codes as a video, performed by any actor that the image model can draw.

    python sample.py --t 250 | python transfer.py --seed 7          # new motion, a random actor
    python transfer.py walk.npy --seed 0-8 -o grid.mp4              # nine actors perform the same motion
    python transfer.py walk.npy --actor none --seed 1 2 3           # the training actor, then three others
    python transfer.py latents.npy --actor photo.jpg                # re-enactment: a video's motion and sound

Reads a .npy of float codes (T, L, D) as a stream: frames are rendered while later ones are still sampled.
(N, T, L, D) gives a grid of the N trajectories; with several actors rows are trajectories, columns actors.
Beside an embedded clip lies the .json of embed.py, which names its source.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from tqdm import tqdm

from models import InputError, load_image_model, pick_device, project, transfer_offset
from sample import load_motion
from train import load_latents

SEED = 7     # ours: the actor when none is named, README's example
CRF = 17     # ours: x264's quality, 0 lossless .. 51 worst; at 17 it does not show beside the generator
# Pixels rendered at once. Ours: four pictures of 128 px stay in a core's cache (144 frames/s; 1 at once 116,
# 32 at once 93), four of 1024 px fill a graphics card with about 2 GB of activations
PIXELS = {"cpu": 2 ** 16, "cuda": 2 ** 22}
WORKERS = 8  # ours: cores that render, each its own pictures, at most; bounds the memory at 1024 px
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
RATE = 48000  # samples per second of written sound; ours: what players of video take everywhere


# ------------------------------------------------------------------------------------------------------------
# Reading a trajectory
# ------------------------------------------------------------------------------------------------------------

def open_trajectory(path, seekable=False):
    """Trajectory -> binary file that stands at its first code, shape (N, T, L, D), dtype. Raises InputError.

    path: None is standard input. A .npy of floats is read as a stream; what else train.load_latents takes
    (.npz, .pt, Fortran order) goes into a temporary file, as does a pipe that is read out of order: one of
    several trajectories, or a seekable one.
    """
    name = path or "standard input"
    try:
        file = sys.stdin.buffer if path is None else open(path, "rb")
        magic = file.peek(6)[:6]
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); name a trajectory of sample.py or "
                         f"embed.py.") from None
    if not magic:
        raise InputError(f"{name} is empty; pipe in what sample.py makes, or name a trajectory (.npy).")

    plain = path is None or magic == b"\x93NUMPY"
    if plain:
        try:
            first = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except Exception:  # numpy parses the head as Python literals, with half a dozen ways to fail
            raise InputError(f"{name} is not a .npy file, or its head is damaged; give a trajectory of "
                             f"sample.py or embed.py.") from None
        plain = dtype.kind == "f" and not fortran
    if not plain and path is not None:
        file.close()
        codes = load_latents(path)[0]
        file, shape, dtype, plain = tempfile.TemporaryFile(), codes.shape, codes.dtype, True
        file.write(codes.tobytes())
        file.seek(0)

    if not plain or len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{name} holds {dtype} of shape {shape}, not float codes (T, L, D) or (N, T, L, D); "
                         f"give a trajectory of sample.py or embed.py.")
    if len(shape) == 4 and shape[1] == 1 < shape[0]:                            # codes of frames, stacked
        print(f"transfer.py: {name}, {shape}, is one trajectory of {shape[0]} frames.", file=sys.stderr)
        shape = shape[:1] + shape[2:]
    shape = (1, *shape)[-4:]
    if (shape[0] > 1 or seekable) and not file.seekable():
        pipe, file = file, tempfile.TemporaryFile()
        shutil.copyfileobj(pipe, file)
        file.seek(0)
    return file, shape, dtype


def read_codes(file, name, shape, dtype, K, first=0):
    """Yields the trajectories side by side, float32 (N, <= K, L, D), from frame `first` on.

    file: as open_trajectory gives it. One trajectory from frame 0 on is read as a stream.
    """
    N, T, L, D = shape
    frame = L * D * dtype.itemsize                                              # bytes
    jumps = N > 1 or first > 0
    start = file.tell() if jumps else 0
    for t in range(first, T, K):
        k = min(K, T - t)
        parts = []
        for n in range(N):
            if jumps:
                file.seek(start + (n * T + t) * frame)
            data = file.read(k * frame)
            if len(data) < k * frame:
                came = n * T + t + len(data) // frame
                raise InputError(f"{name} is cut short: its head promises {N * T} frames, {came} came; "
                                 f"make it again.")
            parts.append(np.frombuffer(data, dtype).reshape(k, L, D))
        codes = np.stack(parts).astype(np.float32)                              # (N, K, L, D)
        if not np.isfinite(codes).all():
            bad = t + int(np.argmin(np.isfinite(codes).all((0, 2, 3))))
            raise InputError(f"{name} has NaN or infinite values in frame {bad}; make it again.")
        yield torch.from_numpy(codes)


def read_sidecar(path):
    """What embed.py says in the .json beside a trajectory; {} where there is none. Raises InputError."""
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        read = json.loads(sidecar.read_text(encoding="utf-8"))
        read["fps"], read["model"] = float(read["fps"]), {k: read["model"][k] for k in ("name", "sha256")}
        return read
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{sidecar} is not what embed.py writes (fps, model); make it again, or "
                         f"remove it.") from None


# ------------------------------------------------------------------------------------------------------------
# Actors
# ------------------------------------------------------------------------------------------------------------

def random_actor(model, seed, truncation=1.0):
    """w_new (L, D) of the random actor with this seed: z -> G -> picture -> encoder (sec. 3).

    G's own code of the actor would save the embedding, with stronger artifacts: the training codes are the
    encoder's.
    """
    z = np.random.RandomState(seed).standard_normal((1, model.Z))               # the z of NVIDIA's scripts
    picture = model.render(model.map(torch.from_numpy(z).float(), truncation))  # (1, 3, size, size)
    return model.encode(picture.clamp(-1, 1))[0]


def photo_actor(model, path, face=None):
    """w_new (L, D) of a person in a photograph, cropped as embed.py crops; face: 1 for the largest, ..."""
    from embed import align_photo  # here, because it loads dlib, which no other actor needs

    picture, faces = align_photo(path, model.size, face)                        # (size, size, 3) uint8
    if faces > 1 and face is None:
        print(f"transfer.py: {path} shows {faces} faces, of which the largest is taken; --face 2 takes the "
              f"next.", file=sys.stderr)
    return model.encode(torch.from_numpy(picture).permute(2, 0, 1).float()[None] / 127.5 - 1)[0]


def move(w, w_new, pca, w_ref, mode="offset"):
    """Codes w (..., L, D) of a trajectory as the actor w_new (L, D) performs them.

    offset      w + Delta, Delta = w_new - w'_new: the offset trick (sec. 3), for the training actor's codes
    naive       w_new + w - w_0: starts at w_new itself (Fig. 4, bottom left), to see what the trick is for
    relative    w_new + P(w - w_ref), ours, for codes of anybody, whose identity would add up with w_new's:
                what changes since a frame of reference w_ref (L, D), along the directions of motion

    pca: {"mean" (L, D), "basis" (32, L, D)} of the training codes. w_new: None is the training actor, whose
    codes stay as they are; in relative motion their mean moves. w_ref: w_0 for naive.
    """
    if mode == "relative":
        return (pca["mean"] if w_new is None else w_new) + project(w - w_ref, pca["basis"])
    if w_new is None:
        return w
    return w + (w_new - w_ref if mode == "naive" else transfer_offset(w_new, pca["mean"], pca["basis"]))


def parse_seeds(words):
    """["7", "0-3"] -> [7, 0, 1, 2, 3]."""
    seeds = []
    for word in words:
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2 ** 32:
            raise InputError(f"--seed {word}: a seed is a whole number from 0 to {2 ** 32 - 1}, or a range "
                             f"as 0-8.")
        seeds += range(first, last + 1)
    return seeds


# ------------------------------------------------------------------------------------------------------------
# Pictures and video
# ------------------------------------------------------------------------------------------------------------

def pictures_at_once(model):
    """1 to 32, as PIXELS and the model's size allow."""
    return max(1, min(32, PIXELS.get(model.device.type, PIXELS["cuda"]) // model.size ** 2))


def render(model, codes, batch, apply=map, dtype=torch.float32):
    """W+ codes (B, L, D) -> (B, size, size, 3) uint8 RGB, `batch` at once; floor(127.5 v + 128) as StyleGAN.

    apply: map, or that of a pool of threads, which renders batches side by side. dtype: of the feature maps.
    """
    def pictures(part):                                                     # (b, L, D) -> (b, size, size, 3)
        return (model.render(part, dtype) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()

    return torch.cat(list(apply(pictures, codes.split(batch)))).numpy()


def grid(cells, columns):
    """(C, H, W, 3) -> one picture, row by row; cells left over stay black."""
    C, H, W, _ = cells.shape
    rows = math.ceil(C / columns)
    sheet = np.zeros((rows * columns, H, W, 3), np.uint8)
    sheet[:C] = cells
    return sheet.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)


class VideoWriter:
    """H.264 file that browsers play: yuv420p, BT.709 limited range, index in front, timestamps k / fps.

        with VideoWriter("video.mp4", fps=25) as video:
            video.write(frame)  # (H, W, 3) uint8 RGB, all of one size; odd sides repeat their last line

    sound: iterator of stereo pieces (2, n) float32 at RATE, written as AAC in step with the frames. The file
    has its name only when it is complete: until then it is `.NAME.part`, which an error removes. What cannot
    be written raises InputError at once. x264's own threads encode while the caller computes.
    """

    def __init__(self, path, fps, crf=CRF, sound=None):
        self.path = Path(path)
        # 29.97... is a float in motion.pt and 30000/1001 here: the denominator of broadcast rates is 1001
        self.fps = Fraction(fps).limit_denominator(1001)
        if self.fps <= 0:
            raise InputError(f"{path}: {fps} frames per second is no speed for a video; give a positive "
                             f"--fps.")
        if self.path.suffix.lower() not in FORMATS:
            raise InputError(f"{path}: the video's name has to end in one of {', '.join(FORMATS)}.")
        if self.path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file for the video.")
        self.part = self.path.with_name(f".{self.path.name}.part")
        try:
            self.part.touch()
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another -o.") from None
        self.crf, self.container, self.stream = crf, None, None
        self.sound, self.track = sound, None
        self.frames = self.samples = 0                                          # written so far

    def write(self, frame):
        """Appends one frame, (H, W, 3) uint8 RGB, and the sound until its end."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
        H, W, _ = frame.shape
        if H % 2 or W % 2:  # yuv420p halves the colour planes
            frame = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        if self.container is None:
            self._open(*frame.shape[:2])
        if frame.shape[:2] != (self.stream.height, self.stream.width):
            raise ValueError(f"frame of {H} x {W} in a video of {self.stream.height} x {self.stream.width}")

        # FFmpeg's RGB to YUV is BT.601 unless told, while players take large untagged videos for BT.709
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", interpolation="AREA", dst_colorspace="ITU709",
                                   dst_color_range="MPEG")
        picture.pts, picture.time_base = self.frames, 1 / self.fps
        self._encode(self.stream, picture)
        self.frames += 1

        while self.track and self.samples < self.frames * RATE / self.fps:
            piece = next(self.sound, None)
            if piece is None:
                break
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = RATE, self.samples, Fraction(1, RATE)
            self._encode(self.track, heard)
            self.samples += piece.shape[1]

    def _encode(self, stream, frame):
        try:
            self.container.mux(stream.encode(frame))
        except (av.FFmpegError, OSError) as error:  # disk full, or larger than H.264 allows
            raise InputError(f"{self.path}: the video cannot be written ({error.strerror}); make room, or "
                             f"choose a smaller picture or another -o.") from None

    def _open(self, H, W):
        # "file:", lest a colon in the name be taken for a protocol
        kind = FORMATS[self.path.suffix.lower()]
        self.container = av.open(f"file:{self.part}", "w", format=kind,
                                 options={} if kind == "matroska" else {"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": str(self.crf)})
        self.stream.height, self.stream.width, self.stream.pix_fmt = H, W, "yuv420p"
        context = self.stream.codec_context
        context.time_base = 1 / self.fps
        context.colorspace = context.color_primaries = context.color_trc = 1    # 1: BT.709 in H.264's tables
        context.color_range = 1                                                 # limited, 16 to 235
        if self.sound is not None:
            self.track = self.container.add_stream("aac", rate=RATE, layout="stereo")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if self.container is not None:
                if kind is None:
                    for stream in filter(None, (self.stream, self.track)):
                        self._encode(stream, None)                              # what the encoders still hold
                self.container.close()
            if kind is None:
                if self.frames == 0:
                    raise InputError(f"{self.path}: no frames came, so no video was written.")
                os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------
# Sound
# ------------------------------------------------------------------------------------------------------------

def has(path, kind):
    """Whether FFmpeg can read a file and finds a "video" or an "audio" track in it."""
    try:
        with av.open(f"file:{path}") as container:
            return bool(getattr(container.streams, kind))
    except (av.FFmpegError, OSError):
        return False


def frame_times(path):
    """Seconds since the file's start at which each frame is shown that embed.py counts; [] if in disorder."""
    from embed import Reading, decoded, header, opened  # here, because it loads dlib

    with opened(path) as container:
        stream, start = container.streams[header(path).stream], (container.start_time or 0) / 1e6
        stream.thread_type = "AUTO"
        times = [frame.time for frame in decoded(container, stream, Reading())]
    in_order = None not in times and times == sorted(times)
    return [t - start for t in times] if in_order else []


def spans_of(frames, sources, fps):
    """What embedded frames last in their sources: [[source, first sample, end], ...]; [] if unknown.

    A clip begins at its first frame's time and goes on at a constant rate, as embed.py makes it.
    """
    times, spans, before = {}, [], None
    for k, frame in enumerate(frames):
        source, clip, index = frame.get("source", 0), frame["clip"], frame["index"]
        if source not in times:
            times[source] = frame_times(sources[source])
        if index >= len(times[source]):
            return []
        first = round(times[source][index] * RATE)
        length = round((k + 1) * RATE / fps) - round(k * RATE / fps)
        cut = spans and spans[-1][0] == source and abs(first - spans[-1][2]) < RATE / fps / 2
        if before == (source, clip) or cut:                                     # cut: at once, without a gap
            spans[-1][2] += length
        else:
            spans.append([source, first, first + length])
        before = source, clip
    return spans


def read_sound(path):
    """Yields a file's sound at RATE: number of the first sample since the file's start, (2, n) float32.

    What is damaged, or not there at all, is left out: cut_sound fills the gaps.
    """
    with av.open(f"file:{path}") as container, contextlib.suppress(av.FFmpegError):
        stream, start, at = container.streams.best("audio"), (container.start_time or 0) / 1e6, None
        if stream is None:
            return
        # Mono is copied: FFmpeg would lower it by 3 dB
        resampler = av.AudioResampler("fltp", "mono" if stream.layout.nb_channels == 1 else "stereo", RATE)
        for packet in container.demux(stream):
            try:
                pieces = [piece for frame in packet.decode() for piece in resampler.resample(frame)]
            except (av.FFmpegError, ValueError):                                # ValueError: of another kind
                continue
            for piece in pieces:
                said = round((float(piece.pts * piece.time_base) - start) * RATE)
                if at is None or abs(said - at) > RATE // 20:   # else counted: Matroska rounds to 1 ms
                    at = said
                yield at, np.broadcast_to(piece.to_ndarray(), (2, piece.samples))
                at += piece.samples


def cut_sound(pieces, spans):
    """Yields (2, n) float32, as long as spans [(first sample, end), ...] together: the sound, or silence.

    pieces: iterator of (first sample, (2, n)), in order as the spans are.
    """
    at, piece = 0, np.zeros((2, 0), np.float32)
    for start, end in spans:
        while start < end:
            while piece is not None and at + piece.shape[1] <= start:
                at, piece = next(pieces, (at, None))
            if piece is not None and at <= start:
                part = piece[:, start - at:end - at]
            else:
                until = end if piece is None else min(at, end)
                part = np.zeros((2, min(until - start, RATE)), np.float32)
            yield part
            start += part.shape[1]


def soundtrack(asked, sidecar, folder, T, fps):
    """--audio -> iterator of (2, n) float32 for VideoWriter, or None, and words about it. Raises InputError.

    Of an embedded clip it is cut to the same frames: what embed.py left out, picture and sound both miss.
    """
    frames, named = sidecar.get("frames") or [], sidecar.get("source") or []
    if asked == "none" or asked == "source" and not frames:
        return None, ""
    if asked != "source" and not has(asked, "audio"):
        raise InputError(f"--audio {asked} cannot be read or has no sound; name a file with sound, source "
                         f"or none.")

    # Where the frames stand in their sources, or why that is not known
    named, spans, why = [named] if isinstance(named, str) else named, [], ""
    sources = [next((p for p in (Path(s), folder / Path(s).name) if has(p, "video")), None) for s in named]
    if len(frames) not in (0, T):
        why = f"the .json is of {len(frames)} frames"
    elif frames and abs(fps / sidecar["fps"] - 1) > 1e-3:
        why = "--fps changes the speed"
    elif None in sources:
        why = f"{named[sources.index(None)]} is no video, or not there"
    elif frames and not (spans := spans_of(frames, sources, fps)):
        why = "its source has changed, or has time stamps that start again"

    # Which sound
    if asked == "source":
        why = why or ("" if any(has(s, "audio") for s in sources) else f"{sources[0]} has none")
        if why:
            return None, f"no sound, as {why}"
        words, tracks = f"sound of {', '.join(map(str, sources))}", sources
    elif spans and len(sources) == 1:
        words, tracks = f"sound of {asked}", [asked]
    else:
        words, tracks = f"sound of {asked} from its beginning", [asked]
        spans = [[0, 0, round(T * RATE / fps)]]
    gaps = [b[1] - a[2] for a, b in itertools.pairwise(spans) if a[0] == b[0]]  # samples
    if gaps:
        several = "s" * (len(gaps) > 1)
        words += f", cut where the picture is ({len(gaps)} gap{several}, {sum(gaps) / RATE:.1f} s)"
    parts = [cut_sound(read_sound(tracks[source]), [span[1:] for span in group])
             for source, group in itertools.groupby(spans, lambda span: span[0])]
    return itertools.chain.from_iterable(parts), words


# ------------------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------------------

def main(args):
    started = time.time()

    # What is asked
    seeds = list(args.seed or [])
    if seeds and args.trajectory is None and not re.fullmatch(r"[\d-]+", seeds[-1]):
        args.trajectory = seeds.pop()  # `--seed 7 walk.npy`: argparse cannot know that the list has ended
    seeds, photos = parse_seeds(seeds), list(args.actor or [])
    if args.face is not None and (args.face < 1 or not set(photos) - {"none"}):
        raise InputError(f"--face {args.face} is the number of a face in a photograph, from 1 on; give "
                         f"--actor, too, or leave it out.")
    path = None if args.trajectory in (None, "-") else args.trajectory
    if path is None and sys.stdin.isatty():
        raise InputError("no trajectory: name a .npy, or pipe one in (python sample.py | python "
                         "transfer.py).")
    name, sidecar = path or "standard input", read_sidecar(path) if path else {}

    # On the CPU every core renders its own pictures: small convolutions split among cores mostly wait
    device = pick_device(args.device)
    workers = min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1
    torch.set_num_threads(1)

    # Motion model, and the image model that its codes belong to
    _, motion = load_motion(args.motion, device)
    recorded = motion["model"]
    if args.model is None and recorded["name"] is None:
        raise InputError("the motion model does not say of which image model its codes are; name it with "
                         "--model.")
    model = load_image_model(args.model or recorded["name"], encoder=args.encoder, device=device)
    for what, other in (("the motion model", recorded), (name, sidecar.get("model", recorded))):
        if other["sha256"] not in (None, model.sha256):
            raise InputError(f"the codes of {what} are of the image model {other['name']} (sha256 "
                             f"{other['sha256'][:12]}...), not of {model.name} ({model.sha256[:12]}...); "
                             f"name the right one with --model.")
    painter = model if args.generator is None else load_image_model(args.generator, device=device)
    if (painter.L, painter.D) != (model.L, model.D):
        raise InputError(f"{args.generator} takes codes of {painter.L} x {painter.D}, those of {model.name} "
                         f"are {model.L} x {model.D}; name a generator of the same latent space.")

    # Trajectory
    file, shape, dtype = open_trajectory(path, seekable=bool(args.reference_frame))
    N, T, L, D = shape
    if (L, D) != (model.L, model.D):
        raise InputError(f"{name} has codes of {L} x {D}, the image model {model.name} takes {model.L} x "
                         f"{model.D}; give a trajectory of this model, or name another model with --model.")
    if not 0 <= (args.reference_frame or 0) < T:
        raise InputError(f"--reference-frame {args.reference_frame}: {name} has frames 0 to {T - 1}.")

    # Actors
    if not photos and not seeds:
        photos = ["none"] * (not model.has_actors)
        seeds = [SEED] * model.has_actors
    if (seeds or set(photos) - {"none"}) and not model.has_actors:
        raise InputError(f"the image model {model.name} was fitted to one video and has no other actors; "
                         f"use --actor none.")
    labels = ["the training actor" if p == "none" else p for p in photos] + [f"seed {k}" for k in seeds]
    new = [None if p == "none" else photo_actor(model, p, args.face) for p in photos]
    new += [random_actor(model, k, args.truncation) for k in seeds]             # A x (L, D)

    # Motion. The offset trick is for codes of the training actor; a clip may be of anybody, who plays himself
    reference = args.reference_frame
    modes = [args.mode or ("offset" if reference is None and (a is None or not sidecar) else "relative")
             for a in new]
    how = {"offset": "offset trick", "naive": "naive", "relative": f"relative to frame {reference or 0}"}

    # Picture and sound
    fps = Fraction(args.fps or sidecar.get("fps", motion["fps"])).limit_denominator(1001)
    sound, heard = soundtrack(args.audio, sidecar, Path(name).parent, T, fps)
    cells = N * len(new)
    columns = len(new) if N > 1 and len(new) > 1 else math.ceil(math.sqrt(cells))
    batch = pictures_at_once(painter)
    ahead = max(1, batch * workers * (4 if workers > 1 else 1) // cells)        # frames read at a time
    precision = {"fp32": torch.float32, "fp16": torch.float16}[args.precision]
    print(f"transfer.py: image model {painter.name}, {T} frames{f' of {N} trajectories' * (N > 1)} at "
          f"{float(fps):g} fps, performed by {', '.join(labels)} (motion: "
          f"{', '.join(sorted({how[m] for m in modes}))}){heard and f'; {heard}'}.", file=sys.stderr)

    # Read, move, render, write
    pca = {k: motion["pca"][k].to(model.device).float() for k in ("mean", "basis")}
    w_ref = None
    if N > 1 or reference:
        start = file.tell()
        w_ref = next(read_codes(file, name, shape, dtype, 1, reference or 0))[:, 0].to(model.device)
        file.seek(start)
    with VideoWriter(args.output, fps, sound=sound) as video, ThreadPoolExecutor(workers) as pool, \
            tqdm(total=T, desc="transfer", unit="frame", mininterval=0.5) as bar:
        for w in read_codes(file, name, shape, dtype, ahead):
            w = w.to(model.device)                                              # (N, K, L, D)
            w_ref = w[:, 0] if w_ref is None else w_ref                         # (N, L, D)
            moved = torch.stack([move(w[n], a, pca, w_ref[n], mode)             # (N A, K, L, D)
                                 for n in range(N) for a, mode in zip(new, modes, strict=True)])
            frames = render(painter, moved.reshape(-1, L, D), batch, pool.map, precision)
            frames = frames.reshape(cells, -1, *frames.shape[1:])               # (N A, K, size, size, 3)
            for k in range(frames.shape[1]):
                video.write(grid(frames[:, k], columns))
                bar.update()
    seconds = time.time() - started
    print(f"transfer.py: wrote {args.output}, {T} frames, {T / float(fps):.1f} s, {video.stream.width} x "
          f"{video.stream.height}, in {seconds:.1f} s ({T / seconds:.1f} frames/s).", file=sys.stderr)


def fraction(text):
    """--fps: 25, 29.97 or 30000/1001."""
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if Fraction(text) > 0:
            return Fraction(text)
    raise argparse.ArgumentTypeError(f"{text} is no frame rate; give one as 25, 29.97 or 30000/1001.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("trajectory", nargs="?", metavar="TRAJECTORY", help=".npy, .npz or .pt; - or none: standard input")
    add("--motion", metavar="FILE", help="of train.py; when not given ./motion.pt, or that in assets/")
    add("-o", "--output", default="video.mp4", metavar="FILE", help=".mp4, .mov or .mkv")
    add("--fps", type=fraction, help="also as 30000/1001; else that of the embedded or training video")
    add("--audio", default="source", metavar="source|none|FILE",
        help="of an embedded clip its source's sound, cut to the same frames, or none, or a file's")
    add("--seed", nargs="+", help=f"random actors, also ranges as 0-8; {SEED} when no actor is named")
    add("--truncation", type=float, default=1.0, help="of random actors: 1 none, 0 the mean")
    add("--actor", action="append", metavar="PHOTO", help="a photo, or none: the training actor; repeatable")
    add("--face", type=int, metavar="N", help="which face of the photo, 1 for the largest")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--offset", dest="mode", action="store_const", const="offset",
                      help="the offset trick (sec. 3) for an embedded clip, too: it is of the training actor")
    mode.add_argument("--naive", dest="mode", action="store_const", const="naive",
                      help="start at the new actor's code as it is (Fig. 4, bottom left)")
    mode.add_argument("--reference-frame", type=int, metavar="K",
                      help="what changes since frame K, whose pose and expression are the photo's; of an "
                           "embedded clip 0 when not given")
    add("--model", help="name or path of the image model; else the one that the motion model names")
    add("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model without one")
    add("--generator", metavar="FILE", help="renders the codes: the same network, fine-tuned or stylised")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="of the feature maps; fp16: for CUDA")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler's kill is as good as Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"transfer.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "transfer.py: interrupted; nothing was written.\n")
