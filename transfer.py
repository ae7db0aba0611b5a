"""Shows a trajectory of W+ codes as a video, performed by any actor that the image model can draw.

    python sample.py --t 250 | python transfer.py --seed 7          # new motion, a random actor
    python transfer.py walk.npy --seed 0-8 -o grid.mp4              # nine actors perform the same motion
    python transfer.py walk.npy --actor none --seed 1 2 3           # the training actor first, then three others
    python transfer.py clip.npy --actor photo.jpg                   # re-enactment: a video's motion, a photo's face

Reads a .npy of float codes (T, L, D) as a stream: frames are rendered and encoded while later ones are still sampled.
(N, T, L, D) gives a grid of the N trajectories; with several actors one row per trajectory and one column per actor.
"""
import argparse
import json
import math
import os
import re
import shutil
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

SEED = 7  # ours: the actor when none is named, README's example
CRF = 17  # ours: x264's quality, 0 lossless .. 51 worst; at 17 the codec does not show beside the generator
# Pixels rendered at once. Ours: four pictures of 128 px stay in a core's cache (144 frames/s; 1 at once 116, 32 at once 93),
# four of 1024 px fill a graphics card with about 2 GB of activations
PIXELS = {"cpu": 2 ** 16, "cuda": 2 ** 22}
WORKERS = 8  # ours: cores that render, each its own pictures, at most; bounds the memory at 1024 px
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


# ------------------------------------------------------------------------------------------------------------------
# Reading a trajectory
# ------------------------------------------------------------------------------------------------------------------

def read_header(file, name):
    """Reads the head of a .npy trajectory in a buffered binary file -> shape (N, T, L, D), dtype. Raises InputError."""
    if not file.peek(1):
        raise InputError(f"{name} is empty; pipe in what sample.py makes, or name a trajectory (.npy).")
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception:  # numpy parses the head as Python literals, with half a dozen ways to fail
        raise InputError(f"{name} is not a .npy file, or its head is damaged; give a trajectory of sample.py or "
                         f"embed.py.") from None
    if dtype.kind != "f" or fortran or len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{name} holds {dtype} of shape {shape}{' in Fortran order' * fortran}, expected float codes "
                         f"(T, L, D) or (N, T, L, D); give a trajectory of sample.py or embed.py.")
    return (1, *shape)[-4:], dtype


def read_codes(file, name, shape, dtype, K):
    """Yields the trajectories side by side, float32 (N, <= K, L, D), from a file that stands behind its header.

    One trajectory is read as a stream; several lie one after the other, so that their file has to be seekable.
    """
    N, T, L, D = shape
    frame = L * D * dtype.itemsize                                              # bytes
    start = file.tell() if N > 1 else 0
    for t in range(0, T, K):
        k = min(K, T - t)
        parts = []
        for n in range(N):
            if N > 1:
                file.seek(start + (n * T + t) * frame)
            data = file.read(k * frame)
            if len(data) < k * frame:
                came = n * T + t + len(data) // frame
                raise InputError(f"{name} is cut short: its head promises {N * T} frames, {came} came; make it again.")
            parts.append(np.frombuffer(data, dtype).reshape(k, L, D))
        codes = np.stack(parts).astype(np.float32)                              # (N, K, L, D)
        if not np.isfinite(codes).all():
            bad = t + int(np.argmin(np.isfinite(codes).all((0, 2, 3))))
            raise InputError(f"{name} has NaN or infinite values in frame {bad}; make it again.")
        yield torch.from_numpy(codes)


def read_frame(file, name, shape, dtype, t):
    """Frame t of every trajectory, float32 (N, L, D), from a file that stands behind its header, and stays there."""
    N, T, L, D = shape
    start, frame, frames = file.tell(), L * D * dtype.itemsize, []
    for n in range(N):
        file.seek(start + (n * T + t) * frame)
        data = file.read(frame)
        if len(data) < frame:
            raise InputError(f"{name} is cut short: frame {t} of trajectory {n} of its {N} x {T} is missing; make it again.")
        frames.append(np.frombuffer(data, dtype).reshape(L, D).astype(np.float32))
    file.seek(start)
    return torch.from_numpy(np.stack(frames))


def read_sidecar(path):
    """NAME.json beside a trajectory of embed.py -> {"fps", "model": {"name", "sha256"}}; {} where there is none."""
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        read = json.loads(sidecar.read_text(encoding="utf-8"))
        return {"fps": float(read["fps"]), "model": {k: read["model"][k] for k in ("name", "sha256")}}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{sidecar} is not what embed.py writes (fps, model); make it again, or remove it.") from None


# ------------------------------------------------------------------------------------------------------------------
# Actors
# ------------------------------------------------------------------------------------------------------------------

def random_actor(model, seed, truncation=1.0):
    """w_new (L, D) of the random actor with this seed: z -> G -> picture -> encoder (sec. 3).

    G's own code of the actor would save the embedding, with stronger artifacts: the training codes are the encoder's.
    """
    z = np.random.RandomState(seed).standard_normal((1, model.Z))               # as NVIDIA's scripts: same seed, same z
    picture = model.render(model.map(torch.from_numpy(z).float(), truncation))  # (1, 3, size, size)
    return model.encode(picture.clamp(-1, 1))[0]


def photo_actor(model, path):
    """w_new (L, D) of the person in a photograph, cropped as embed.py crops video."""
    from embed import align_photo  # here, because it loads dlib, which no other actor needs

    picture = torch.from_numpy(align_photo(path, model.size)).permute(2, 0, 1).float() / 127.5 - 1
    return model.encode(picture[None])[0]


def move(w, w_new, pca, w_ref, mode="offset"):
    """Codes w (..., L, D) of a trajectory as the actor w_new (L, D) performs them. P: projection onto the motion's directions.

    offset      w + Delta, Delta = w_new - w'_new: the offset trick (sec. 3), for codes of the training actor
    naive       w_new + w - w_0: starts at w_new itself (Fig. 4, bottom left)
    relative    w_new + P(w - w_ref), ours: what changes since a frame of reference w_ref (L, D), for codes of anybody
    absolute    w_new + P(w - w_new), ours: the pose of the codes as it is, the rest of w_new

    The codes of another person keep what makes them that person, so that with Delta both identities add up; the last two take
    their motion only. pca: {"mean" (L, D), "basis" (32, L, D)} of the training codes. w_new: None is the training actor, whose
    codes stay as they are by offset and naive; else its mean moves. w_ref: w_0 for naive; unused by offset and absolute.
    """
    if mode in ("offset", "naive"):
        if w_new is None:
            return w
        return w + (w_new - w_ref if mode == "naive" else transfer_offset(w_new, pca["mean"], pca["basis"]))
    w_new = pca["mean"] if w_new is None else w_new
    return w_new + project(w - (w_ref if mode == "relative" else w_new), pca["basis"])


def parse_seeds(words):
    """["7", "0-3"] -> [7, 0, 1, 2, 3]."""
    seeds = []
    for word in words:
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2 ** 32:
            raise InputError(f"--seed {word}: a seed is a whole number from 0 to {2 ** 32 - 1}, or a range as 0-8.")
        seeds += range(first, last + 1)
    return seeds


# ------------------------------------------------------------------------------------------------------------------
# Pictures and video
# ------------------------------------------------------------------------------------------------------------------

def pictures_at_once(model):
    """1 to 32, as PIXELS and the model's size allow."""
    return max(1, min(32, PIXELS.get(model.device.type, PIXELS["cuda"]) // model.size ** 2))


def render(model, codes, batch, apply=map, dtype=torch.float32, noise="const"):
    """W+ codes (B, L, D) -> (B, size, size, 3) uint8 RGB, `batch` at once; floor(127.5 v + 128) as StyleGAN's code.

    apply: map, or that of a pool of threads, which renders several batches side by side. dtype, noise: ImageModel.render's.
    """
    def pictures(part):                                                         # (b, L, D) -> (b, size, size, 3)
        return (model.render(part, dtype, noise) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()

    return torch.cat(list(apply(pictures, codes.split(batch)))).numpy()


def grid(cells, columns):
    """(C, H, W, 3) -> one picture, row by row; cells left over stay black."""
    C, H, W, _ = cells.shape
    rows = math.ceil(C / columns)
    sheet = np.zeros((rows * columns, H, W, 3), np.uint8)
    sheet[:C] = cells
    return sheet.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)


class VideoWriter:
    """H.264 file that browsers play: yuv420p, BT.709 limited range (tagged), index in front, exact timestamps k / fps.

        with VideoWriter("video.mp4", fps=25) as video:
            video.write(frame)  # (H, W, 3) uint8 RGB, all of one size; odd sides repeat their last row or column

    The file appears under its name only when it is complete: until then it is `.NAME.part`, which an error removes. An
    output that cannot be written raises InputError at once. x264's own threads encode while the caller computes the
    next frames (a thread of ours around them gained nothing measurable on two cores).
    """

    def __init__(self, path, fps, crf=CRF):
        self.path = Path(path)
        # 29.97... is a float in motion.pt and 30000/1001 in the file: the denominator of broadcast rates is 1001
        self.fps = Fraction(fps).limit_denominator(1001)
        if self.fps <= 0:
            raise InputError(f"{path}: {fps} frames per second is no speed for a video; give a positive --fps.")
        if self.path.suffix.lower() not in FORMATS:
            raise InputError(f"{path}: the video's name has to end in one of {', '.join(FORMATS)}.")
        if self.path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file for the video.")
        self.part = self.path.with_name(f".{self.path.name}.part")
        try:
            self.part.touch()
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another -o.") from None
        self.crf, self.container, self.stream, self.frames = crf, None, None, 0

    def write(self, frame):
        """Appends one frame, (H, W, 3) uint8 RGB."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
        H, W, _ = frame.shape
        if H % 2 or W % 2:  # yuv420p halves the colour planes
            frame = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        if self.container is None:
            self._open(*frame.shape[:2])
        if frame.shape[:2] != (self.stream.height, self.stream.width):
            raise ValueError(f"frame of {frame.shape[:2]} in a video of {(self.stream.height, self.stream.width)}")
        # FFmpeg's RGB to YUV is BT.601 unless told, while players take large untagged videos for BT.709
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", interpolation="AREA", dst_colorspace="ITU709",
                                   dst_color_range="MPEG")
        picture.pts, picture.time_base = self.frames, 1 / self.fps
        self._encode(picture)
        self.frames += 1

    def _encode(self, picture):
        try:
            self.container.mux(self.stream.encode(picture))
        except (av.FFmpegError, OSError) as error:  # disk full, or larger than H.264 allows
            raise InputError(f"{self.path}: the video cannot be written ({error.strerror}); make room, or choose a "
                             f"smaller picture or another -o.") from None

    def _open(self, H, W):
        self.container = av.open(str(self.part), "w", format=FORMATS[self.path.suffix.lower()],
                                 options={"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": str(self.crf)})
        self.stream.height, self.stream.width, self.stream.pix_fmt = H, W, "yuv420p"
        context = self.stream.codec_context
        context.time_base = 1 / self.fps
        context.colorspace = context.color_primaries = context.color_trc = 1  # 1: BT.709 in H.264's tables
        context.color_range = 1  # limited, 16 to 235

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if self.container is not None:
                if kind is None:
                    self._encode(None)  # what x264 still holds
                self.container.close()
            if kind is None:
                if self.frames == 0:
                    raise InputError(f"{self.path}: no frames came, so no video was written.")
                os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)


def main(args):
    started = time.time()
    seeds = list(args.seed or [])
    if seeds and args.trajectory is None and not re.fullmatch(r"[\d-]+", seeds[-1]):
        args.trajectory = seeds.pop()  # `--seed 7 walk.npy`: argparse cannot know that the list has ended
    seeds, photos = parse_seeds(seeds), list(args.actor or [])
    if args.batch is not None and args.batch < 1:
        raise InputError(f"--batch {args.batch} is no batch size; give 1 or more.")
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf:g} is no quality of x264; give 0 (lossless) to 51 (worst).")

    # Trajectory: opened first, read below
    name = "standard input" if args.trajectory in (None, "-") else args.trajectory
    if name == "standard input":
        if sys.stdin.isatty():
            raise InputError("no trajectory: name a .npy, or pipe one in (python sample.py | python transfer.py).")
        file, sidecar = sys.stdin.buffer, {}
    else:
        try:
            file, sidecar = open(name, "rb"), read_sidecar(name)
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}); name a trajectory of sample.py or "
                             f"embed.py.") from None

    device = pick_device(args.device)
    # On the CPU every core renders pictures of its own: small convolutions split among cores mostly wait for each other
    workers = min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1
    torch.set_num_threads(1)

    # Motion model and the image model that its codes belong to
    _, motion = load_motion(args.motion, device)
    recorded = motion["model"]
    if args.model is None and recorded["name"] is None:
        raise InputError("the motion model does not say which image model its codes are of; name it with --model.")
    model = load_image_model(args.model or recorded["name"], encoder=args.encoder, device=device)
    for what, other in (("the motion model", recorded), (name, sidecar.get("model", recorded))):
        if other["sha256"] not in (None, model.sha256):
            raise InputError(f"the codes of {what} are of the image model {other['name']} (sha256 "
                             f"{other['sha256'][:12]}...), not of {model.name} ({model.sha256[:12]}...); "
                             f"name the right one with --model.")

    painter = model if args.generator is None else load_image_model(args.generator, device=device)
    if (painter.L, painter.D) != (model.L, model.D):
        raise InputError(f"{args.generator} takes codes of {painter.L} x {painter.D}, those of {model.name} are {model.L} x "
                         f"{model.D}; name a generator of the same latent space with --generator.")
    precision = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]

    # Actors
    if not photos and not seeds:
        photos = ["none"] * (not model.has_actors)
        seeds = [SEED] * model.has_actors
    if (seeds or set(photos) - {"none"}) and not model.has_actors:
        raise InputError(f"the image model {model.name} was fitted to one video and has no other actors; "
                         f"use --actor none.")
    labels = ["the training actor" if p == "none" else p for p in photos] + [f"seed {k}" for k in seeds]
    new = [None if p == "none" else photo_actor(model, p) for p in photos]
    new += [random_actor(model, k, args.truncation) for k in seeds]             # A x (L, D)
    pca = {k: motion["pca"][k].to(model.device).float() for k in ("mean", "basis")}

    shape, dtype = read_header(file, name)
    N, T, L, D = shape
    if (L, D) != (model.L, model.D):
        raise InputError(f"{name} has codes of {L} x {D}, the image model {model.name} takes {model.L} x {model.D}; "
                         f"give a trajectory of this model, or name another model with --model.")
    # Codes of the training actor are offset, as in the paper; those of a clip may be anybody's, who plays himself as he is
    modes = [args.mode or ("relative" if sidecar and a is not None else "offset") for a in new]
    reference = 0 if args.reference_frame is None else args.reference_frame
    if args.reference_frame is not None and "relative" not in modes:
        raise InputError("--reference-frame is for --relative motion, which is not what this makes; leave it out or add "
                         "--relative.")
    if not 0 <= reference < T:
        raise InputError(f"--reference-frame {reference}: {name} has frames 0 to {T - 1}.")
    if file is sys.stdin.buffer and (N > 1 or reference):  # a frame further back is needed at once
        spool = tempfile.TemporaryFile()
        shutil.copyfileobj(file, spool)
        spool.seek(0)
        file = spool
    cells = N * len(new)
    columns = len(new) if N > 1 and len(new) > 1 else math.ceil(math.sqrt(cells))
    batch = args.batch or pictures_at_once(painter)
    ahead = max(1, batch * workers * (4 if workers > 1 else 1) // cells)        # frames read at a time
    fps = sidecar.get("fps", motion["fps"]) if args.fps is None else args.fps
    many = f" of {N} trajectories" * (N > 1)
    how = {"offset": "offset trick", "naive": "naive", "relative": f"relative to frame {reference}", "absolute": "absolute"}
    print(f"transfer.py: image model {painter.name}, {T} frames{many} at {float(fps):g} fps, performed by "
          f"{', '.join(labels)} (motion: {', '.join(sorted({how[m] for m in modes}))}).", file=sys.stderr)

    w_ref = read_frame(file, name, shape, dtype, reference).to(model.device) if N > 1 or reference else None
    with VideoWriter(args.output, fps, args.crf) as video, ThreadPoolExecutor(workers) as pool, \
            tqdm(total=T, desc="transfer", unit="frame", mininterval=0.5) as bar:
        for w in read_codes(file, name, shape, dtype, ahead):
            w = w.to(model.device)                                              # (N, K, L, D)
            w_ref = w[:, 0] if w_ref is None else w_ref                         # (N, L, D)
            moved = torch.stack([move(w[n], a, pca, w_ref[n], mode) for n in range(N)
                                 for a, mode in zip(new, modes)])               # (N A, K, L, D)
            frames = render(painter, moved.reshape(-1, L, D), batch, pool.map, precision, args.noise)
            frames = frames.reshape(cells, -1, *frames.shape[1:])               # (N A, K, size, size, 3)
            for k in range(frames.shape[1]):
                video.write(grid(frames[:, k], columns))
                bar.update()
    seconds = time.time() - started
    print(f"transfer.py: wrote {args.output}, {T} frames, {T / float(video.fps):.1f} s, {video.stream.width} x "
          f"{video.stream.height}, in {seconds:.1f} s ({T / seconds:.1f} frames/s).", file=sys.stderr)


def fraction(text):
    """--fps: 25, 29.97 or 30000/1001."""
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("trajectory", nargs="?", metavar="TRAJECTORY", help=".npy of codes; - or none is standard input")
    files.add_argument("--motion", metavar="FILE", help="motion model of train.py; when not given motion.pt of this "
                       "folder, or else the one in assets/")
    files.add_argument("-o", "--output", default="video.mp4", metavar="FILE", help="video: .mp4, .mov or .mkv")
    actors = parser.add_argument_group("actors")
    actors.add_argument("--seed", nargs="+", metavar="SEED", help=f"random actors, also ranges as 0-8; {SEED} when no "
                        "actor is named")
    actors.add_argument("--actor", action="append", metavar="PHOTO", help="actor from a photo, or none: the training "
                        "actor; may be repeated")
    actors.add_argument("--truncation", type=float, default=1.0, help="of random actors: 1 none, 0 the mean actor")
    motion = parser.add_argument_group("motion", "by default --relative for other actors in an embedded clip (beside which "
                                       "embed.py wrote a .json), else --offset")
    mode = motion.add_mutually_exclusive_group()
    for name, text in (("offset", "the offset trick, for codes of the training actor (sec. 3)"),
                       ("relative", "what changes since a frame of reference, for codes of anybody"),
                       ("absolute", "the clip's pose as it is, for codes of anybody"),
                       ("naive", "start at the new actor's code as it is (Fig. 4, bottom left), to see what the offset trick "
                                 "is for")):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=text)
    motion.add_argument("--reference-frame", type=int, metavar="K", help="of --relative: the frame of the trajectory whose pose "
                        "and expression are those of the photo; 0 when not given")
    image = parser.add_argument_group("image model")
    image.add_argument("--model", help="faces128, ffhq, ffhq-e4e or the path of a checkpoint; when not given the one "
                       "recorded in the motion model")
    image.add_argument("--encoder", metavar="FILE", help="checkpoint of an encoder, for a model that has none")
    image.add_argument("--generator", metavar="FILE", help="checkpoint that renders the codes instead: the same network "
                       "fine-tuned or stylised")
    image.add_argument("--noise", choices=("const", "none"), default="const", help="StyleGAN's noise maps: the stored ones, "
                       "or none")
    image.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the feature maps; half is "
                       "for CUDA")
    image.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    image.add_argument("--batch", type=int, help="pictures rendered at once; when not given, by their size")
    video = parser.add_argument_group("video")
    video.add_argument("--fps", type=fraction, help="frames per second, also as 30000/1001; when not given that of the "
                       "embedded or the training video")
    video.add_argument("--crf", type=float, default=CRF, help="x264's quality, 0 lossless to 51 worst")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"transfer.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "transfer.py: interrupted; nothing was written.\n")
