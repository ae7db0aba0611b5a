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
import io
import itertools
import math
import os
import re
import signal
import sys
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

def open_trajectory(path, jumps=False):
    """A trajectory's shape (N, T, L, D); take(t, k) -> its frames t to t + k - 1, float32 (N, k, L, D); what
    the .json of embed.py beside it says, as train.load_latents gives it, or {}. All raise InputError.

    path: None is standard input. One trajectory in a .npy of floats is read piece by piece, in order unless
    jumps; several, an embedded clip, and what else train.load_latents takes, at once.
    """
    name, plain, meta = path or "standard input", False, {}
    with contextlib.suppress(Exception):        # not there, empty, damaged: numpy alone has half a dozen ways
        file = open(path, "rb") if path else sys.stdin.buffer
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        plain = dtype.kind == "f" and not fortran and len(shape) in (3, 4) and 0 not in shape
    if not plain and path is None:
        raise InputError("standard input is empty, or no .npy of float codes (T, L, D) or (N, T, L, D); pipe "
                         "in what sample.py makes, or name a trajectory.")

    embedded = path is not None and Path(path).is_file() and Path(path).with_suffix(".json").is_file()
    if embedded or not plain:
        codes, said = load_latents(path)
        file, shape, dtype = io.BytesIO(codes.tobytes()), codes.shape, codes.dtype
        meta = said if embedded else {}
    if len(shape) == 4 and shape[1] == 1:       # codes of single frames, stacked
        shape = shape[:1] + shape[2:]
    N, T, L, D = shape = (1, *shape)[-4:]
    jumps = jumps or N > 1
    file = io.BytesIO(file.read()) if jumps else file
    frame = L * D * dtype.itemsize                                                      # bytes

    def take(t, k):
        parts = []
        for n in range(N):
            if jumps:
                file.seek((n * T + t) * frame)
            data = file.read(k * frame)
            if len(data) < k * frame:
                raise InputError(f"{name} is cut short: its head promises {N * T} frames, "
                                 f"{n * T + t + len(data) // frame} came; make it again.")
            parts.append(np.frombuffer(data, dtype).reshape(k, L, D))
        codes = np.stack(parts).astype(np.float32)                                      # (N, k, L, D)
        bad = ~np.isfinite(codes).all((0, 2, 3))
        if bad.any():
            raise InputError(f"{name} has NaN or infinite values in frame {t + bad.argmax()}; make it again.")
        return torch.from_numpy(codes)

    return shape, take, meta


# ------------------------------------------------------------------------------------------------------------
# Actors
# ------------------------------------------------------------------------------------------------------------

def random_actor(model, seed):
    """w_new (L, D) of the random actor with this seed: z -> G -> picture -> encoder (sec. 3).

    G's own code of the actor would save the embedding, with stronger artifacts: the training codes are the
    encoder's.
    """
    z = np.random.RandomState(seed).standard_normal((1, model.Z))               # the z of NVIDIA's scripts
    picture = model.render(model.map(torch.from_numpy(z)))                      # (1, 3, size, size)
    return model.encode(picture.clamp(-1, 1))[0]


def photo_actor(model, path, face=None):
    """w_new (L, D) of a person in a photograph, cropped as embed.py crops; face: 1 for the largest, ..."""
    from embed import align_photo, to_network  # here, because it loads dlib, which no other actor needs

    picture, faces = align_photo(path, model.size, face)                        # (size, size, 3) uint8
    if faces > 1 and face is None:
        print(f"transfer.py: {path} shows {faces} faces, of which the largest is taken; --face 2 takes the "
              f"next.", file=sys.stderr)
    return model.encode(to_network([picture]))[0]


def move(w, w_new, pca, w_ref, mode="offset"):
    """Codes w (..., L, D) of a trajectory as the actor w_new (L, D) performs them; None: as they are.

    offset      w + Delta, Delta = w_new - w'_new: the offset trick (sec. 3), for the training actor's codes
    naive       w_new + w - w_ref: starts at w_new itself (Fig. 4, bottom left), to see what the trick is for
    relative    w_new + P(w - w_ref), ours, for codes of anybody, whose identity would add up with w_new's:
                what changes since a frame of reference, along the directions of motion

    pca: {"mean" (L, D), "basis" (32, L, D)} of the training codes. w_ref: (L, D), w_0 for naive.
    """
    if w_new is None:
        return w
    if mode == "offset":
        return w + transfer_offset(w_new, pca["mean"], pca["basis"])
    change = w - w_ref
    return w_new + (project(change, pca["basis"]) if mode == "relative" else change)


def parse_seeds(words):
    """["7", "0-3"] -> [7, 0, 1, 2, 3]."""
    seeds = []
    for word in words:
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2 ** 32:
            raise InputError(f"--seed {word}: a seed is a whole number from 0 to {2 ** 32 - 1}, or a range "
                             f"as 0-8; a trajectory is named before the options.")
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

    sound: (2, n) int16 at RATE, written as AAC in step with the frames. The file has its name only when it is
    complete: until then it is `.NAME.part`, which an error removes. Raises InputError.
    """

    def __init__(self, path, fps, crf=CRF, sound=None):
        self.path, self.sound, self.frames = Path(path), sound, 0
        ending = self.path.suffix.lower()
        if not 0.1 <= fps <= 1000:
            raise InputError(f"{path}: {fps} frames per second; give --fps from 0.1 to 1000.")
        if ending not in FORMATS or self.path.is_dir():
            raise InputError(f"{path}: the video has to be a file that ends in one of {', '.join(FORMATS)}.")

        # "file:", lest a colon in the name be taken for a protocol
        self.part = self.path.with_name(f".{self.path.name}.part")
        self.container = av.open(f"file:{self.part}", "w", format=FORMATS[ending],
                                 options={"movflags": "+faststart"} if ending != ".mkv" else {})
        # 29.97... is a float in motion.pt and 30000/1001 here: the denominator of broadcast rates is 1001
        self.fps = Fraction(fps).limit_denominator(1001)
        self.stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": str(crf)})
        context = self.stream.codec_context
        context.pix_fmt, context.time_base = "yuv420p", 1 / self.fps
        context.colorspace = context.color_primaries = context.color_trc = 1    # 1: BT.709 in H.264's tables
        context.color_range = 1                                                 # limited, 16 to 235
        self.track = None if sound is None else self.container.add_stream("aac", rate=RATE, layout="stereo")

    @contextlib.contextmanager
    def _told(self):
        """Refusals of FFmpeg and of the disk in words."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:  # no such folder, disk full, larger than H.264 allows
            raise InputError(f"{self.path}: the video cannot be written ({error.strerror}); choose "
                             f"another -o, make room, or take fewer pictures side by side.") from None

    def write(self, frame):
        """Appends one frame, (H, W, 3) uint8 RGB, and the sound until its end."""
        H, W, _ = frame.shape
        frame = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")    # yuv420p halves colour planes
        if self.frames == 0:
            self.stream.height, self.stream.width, _ = frame.shape
        if frame.shape[:2] != (self.stream.height, self.stream.width):          # PyAV would scale it
            raise ValueError(f"frame of {H} x {W} in a video of {self.stream.height} x {self.stream.width}")

        # FFmpeg's RGB to YUV is BT.601 unless told, while players take large untagged videos for BT.709
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv420p", interpolation="AREA", dst_colorspace="ITU709",
                                   dst_color_range="MPEG")
        picture.pts, picture.time_base = self.frames, 1 / self.fps
        with self._told():
            self.container.mux(self.stream.encode(picture))

        self.frames += 1
        if self.track:
            first, end = (round(k * RATE / self.fps) for k in (self.frames - 1, self.frames))
            piece = np.ascontiguousarray(self.sound[:, first:end])
            heard = av.AudioFrame.from_ndarray(piece, format="s16p", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = RATE, first, Fraction(1, RATE)
            with self._told():
                self.container.mux(self.track.encode(heard))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None and self.frames == 0:
                raise InputError(f"{self.path}: no frames came, so no video was written.")
            with self._told():
                if kind is None:
                    for stream in filter(None, (self.stream, self.track)):
                        self.container.mux(stream.encode(None))                 # what the encoders still hold
                self.container.close()                                          # writes what is left
                if kind is None:
                    os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------
# Sound
# ------------------------------------------------------------------------------------------------------------

def read_sound(path):
    """Yields a file's sound at RATE: number of the first sample since the file's start, (1 or 2, n) int16.

    What is damaged, or not there at all, is left out.
    """
    with contextlib.suppress(av.FFmpegError), av.open(f"file:{path}") as container:
        stream, start, at = container.streams.best("audio"), (container.start_time or 0) / 1e6, None
        if stream is None:
            return
        # Mono stays: FFmpeg would lower it by 3 dB
        resampler = av.AudioResampler("s16p", "mono" if stream.layout.nb_channels == 1 else "stereo", RATE)
        for packet in container.demux(stream):
            try:
                pieces = [piece for frame in packet.decode() for piece in resampler.resample(frame)]
            except (av.FFmpegError, ValueError):                                # ValueError: of another kind
                continue
            for piece in pieces:
                said = round((float(piece.pts * piece.time_base) - start) * RATE)
                if at is None or abs(said - at) > RATE // 20:   # else counted: Matroska rounds to 1 ms
                    at = said
                yield at, piece.to_ndarray()
                at += piece.samples


def spans_of(frames, fps):
    """Where the sound of embedded frames belongs: [(source, first sample, end, shift), ...].

    shift: samples by which it lies later in the source. A clip begins at its first frame's time (in files of
    earlier versions: its number) and goes on at a constant rate, as embed.py makes it.
    """
    spans, k = [], 0
    for (source, _), clip in itertools.groupby(frames, lambda frame: (frame.get("source", 0), frame["clip"])):
        clip = list(clip)
        first, end = round(k * RATE / fps), round((k + len(clip)) * RATE / fps)
        shift = round(clip[0].get("time", clip[0]["index"] / fps) * RATE) - first
        if spans and spans[-1][0] == source and abs(shift - spans[-1][3]) < RATE / fps / 2:
            shift = spans[-1][3]    # a cut in the picture alone; times are in ms, and a seam would be heard
        spans.append((source, first, end, shift))
        k += len(clip)
    return spans


def soundtrack(asked, meta, T, fps):
    """--audio -> (2, n) int16 for T frames, or None, and words about it. Raises InputError.

    The sound of an embedded clip is cut as its pictures are, and so is another file's for one source.
    """
    named, of_source = meta.get("source", []), asked == "source"
    if asked == "none" or of_source and not named:
        return None, ""
    same_speed = bool(named) and abs(fps / meta["fps"] - 1) < 1e-3
    if of_source and not same_speed:
        return None, "no sound, as --fps changes the speed"

    # Where it belongs
    track = np.zeros((2, round(T * RATE / fps)), np.int16)                              # 12 MB a minute
    files, spans, how = named if of_source else [asked], [(0, 0, track.shape[1], 0)], "from its beginning"
    if same_speed and (of_source or len(named) == 1):
        frames = meta["frames"]
        spans = spans_of(frames, fps)
        how = "cut as the pictures are" if "time" in frames[0] else "cut by the numbers of the frames"
    if any(a[0] == b[0] and b[3] < a[3] - 2 * RATE / fps for a, b in itertools.pairwise(spans)):
        return None, "no sound, as the time stamps of the source start again"

    # What is there; the rest stays silent
    heard, until = set(), 0
    for k, file in enumerate(files):
        for at, piece in read_sound(file):
            for source, first, end, shift in spans:
                a, b = max(at, first + shift), min(at + piece.shape[1], end + shift)
                if source == k and a < b:
                    track[:, a - shift:b - shift] = piece[:, a - at:b - at]
                    heard.add(file)
                    until = max(until, b - shift)
    silent = ", ".join(file for file in files if file not in heard)
    ends = f", silent after {until / RATE:.1f} s" if track.shape[1] - until > RATE / 5 else ""
    if heard:
        return track, f"sound of {', '.join(sorted(heard))} {how}" + (silent and f", none in {silent}") + ends
    if of_source:
        return None, f"no sound, as {silent} has none for these frames or is not there"
    raise InputError(f"--audio {asked} cannot be read or has no sound for these frames; name another file, "
                     f"source or none.")


def main(args):
    # What is asked
    seeds, photos = parse_seeds(args.seed or []), args.actor or []
    path = None if args.trajectory in (None, "-") else args.trajectory
    name, reference = path or "standard input", args.reference_frame
    if args.fps is not None and not 0.1 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: give --fps from 0.1 to 1000.")
    if path is None and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError("no trajectory: name a .npy, or pipe one in: python sample.py | python transfer.py.")

    # On the CPU every core renders its own pictures: small convolutions split among cores mostly wait.
    # fp16, on an H100 at 1024 px in batches of 16: 210 frames/s, 81 dB from fp32's pictures (fp32: 104,
    # TF32: 175 frames/s; torch 2.11, random weights)
    device = pick_device(args.device)
    workers = min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1
    torch.set_num_threads(1)
    half = args.precision == "fp16" or args.precision == "auto" and device.type == "cuda"

    # Motion model, and the image model that its codes belong to
    _, motion = load_motion(args.motion, device)
    recorded = motion["model"]
    if args.model is None and recorded["name"] is None:
        raise InputError("the motion model does not say of which image model its codes are; name it with "
                         "--model.")
    model = load_image_model(args.model or recorded["name"], encoder=args.encoder, device=device)
    painter = load_image_model(args.generator, device=device) if args.generator else model
    if (painter.L, painter.D) != (model.L, model.D):
        raise InputError(f"{args.generator} takes codes of {painter.L} x {painter.D}, those of {model.name} "
                         f"are {model.L} x {model.D}; name a generator of the same latent space.")

    # Trajectory
    (N, T, L, D), take, meta = open_trajectory(path, jumps=bool(reference))
    if (L, D) != (model.L, model.D):
        raise InputError(f"{name} has codes of {L} x {D}, the image model {model.name} takes {model.L} x "
                         f"{model.D}; give a trajectory of this model, or name another model with --model.")
    for what, other in (("the motion model", recorded), (name, meta.get("model", recorded))):
        if other["sha256"] not in (None, model.sha256):
            raise InputError(f"the codes of {what} are of the image model {other['name']} (sha256 "
                             f"{other['sha256'][:12]}...), not of {model.name} ({model.sha256[:12]}...); "
                             f"name the right one with --model.")
    if args.face is not None and not set(photos) - {"none"}:
        raise InputError(f"--face {args.face} is of a photo; name one with --actor.")
    if not 0 <= (reference or 0) < T:
        raise InputError(f"--reference-frame {reference}: {name} has frames 0 to {T - 1}.")

    # Actors
    if not photos and not seeds:
        photos, seeds = ([], [SEED]) if model.has_actors else (["none"], [])
    if (seeds or set(photos) - {"none"}) and not model.has_actors:
        raise InputError(f"the image model {model.name} was fitted to one video and has no other actors; "
                         f"use --actor none.")
    new = [None if photo == "none" else photo_actor(model, photo, args.face) for photo in photos]
    new += [random_actor(model, seed) for seed in seeds]                        # A x (L, D)
    labels = [{"none": "its own actor"}.get(p, p) for p in photos] + [f"seed {k}" for k in seeds]

    # Motion: the offset trick is for codes of the training actor, while an embedded clip may be of anybody
    mode = "naive" if args.naive else "relative" if meta or reference is not None else "offset"

    # Picture and sound
    fps = Fraction(args.fps or meta.get("fps", motion["fps"])).limit_denominator(1001)
    try:
        sound, heard = soundtrack(args.audio, meta, T, fps)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{Path(path).with_suffix('.json')} does not say as embed.py does where the frames "
                         f"are from ({type(error).__name__}: {error}); use --audio none.") from None
    cells = N * len(new)
    columns = len(new) if N > 1 and len(new) > 1 else math.ceil(math.sqrt(cells))
    batch = pictures_at_once(painter)
    ahead = max(1, batch * workers * (4 if workers > 1 else 1) // cells)        # frames read at a time
    print(f"transfer.py: image model {painter.name}, {T} frames{f' of {N} trajectories' * (N > 1)} at "
          f"{float(fps):g} fps, performed by {', '.join(labels)} (motion: {mode}){heard and f'; {heard}'}.",
          file=sys.stderr)

    # Read, move, render, write
    pca = {key: motion["pca"][key].to(model.device).float() for key in ("mean", "basis")}
    w_ref = take(reference, 1)[:, 0].to(model.device) if reference else None
    pool = ThreadPoolExecutor(workers)      # as a with it would wait for its threads when interrupted
    with VideoWriter(args.output, fps, sound=sound) as video, \
            tqdm(total=T, desc="transfer", unit="frame", mininterval=0.5) as bar:
        for t in range(0, T, ahead):
            w = take(t, min(ahead, T - t)).to(model.device)                     # (N, K, L, D)
            w_ref = w[:, 0] if w_ref is None else w_ref                         # (N, L, D)
            moved = torch.stack([move(w[n], a, pca, w_ref[n], mode) for n in range(N) for a in new])
            frames = render(painter, moved.reshape(-1, L, D), batch, pool.map,
                            torch.float16 if half else torch.float32)
            frames = frames.reshape(cells, -1, *frames.shape[1:])               # (N A, K, size, size, 3)
            for k in range(frames.shape[1]):
                video.write(grid(frames[:, k], columns))
                bar.update()
    print(f"transfer.py: wrote {args.output}, {T / float(fps):.1f} s, {video.stream.width} x "
          f"{video.stream.height}.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("trajectory", nargs="?", metavar="TRAJECTORY", help=".npy, .npz or .pt; - or none: standard input")
    add("--motion", metavar="FILE", help="of train.py; when not given ./motion.pt, or that in assets/")
    add("-o", "--output", default="video.mp4", metavar="FILE", help=".mp4, .mov or .mkv: video.mp4")
    add("--fps", type=float, help="else that of the embedded or training video")
    add("--audio", default="source", metavar="source|none|FILE",
        help="of an embedded clip its source's sound (default), cut to the same frames, or none, or a file's")
    add("--seed", nargs="+", help=f"random actors, also ranges as 0-8; {SEED} when no actor is named")
    add("--actor", action="append", metavar="PHOTO", help="a photo, or none: its own actor; repeatable")
    add("--face", type=int, metavar="N", help="which face of the photo, 1 for the largest")
    add("--naive", action="store_true", help="start at the new actor's code as it is (Fig. 4, bottom left)")
    add("--reference-frame", type=int, metavar="K",
        help="add what changes since frame K, in which the actor looks as in the photo; 0 of embedded clips")
    add("--model", help="name or path of the image model; else the one that the motion model names")
    add("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model without one")
    add("--generator", metavar="FILE", help="renders the codes: the same network, fine-tuned or stylised")
    add("--precision", choices=("auto", "fp32", "fp16"), default="auto",
        help="of the feature maps; auto: fp16 on CUDA, fp32 on the CPU")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler's kill is as good as Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"transfer.py: {error}\n")
    except KeyboardInterrupt:
        print("transfer.py: interrupted; nothing was written.", file=sys.stderr, flush=True)
        os._exit(130)       # parser.exit would wait for the pool, where Ctrl-C may have left a lock locked
