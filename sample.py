"""Draws new motion for the training actor: trajectories of W+ codes of any length, as a stream.

    python sample.py --t 250 | python transfer.py --seed 7          # 10 s of new motion as a video
    python sample.py --motion motion.pt --t 1500 --seed 3 -o walk.npy
    python sample.py --n 16 --t 25 -o clips.npy                     # 16 trajectories, (16, 25, L, D)
    python sample.py --fps 60 --t 600 | python transfer.py --fps 60         # 10 s of it at another rate

The output is a standard .npy, float32 (T, L, D), or (N, T, L, D) with --n N: its header first, then frames as
they are made, so that a pipe renders before sampling ends and memory stays the same at any length.
"""

import argparse
import math
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models import MOTION_MODELS, InputError, motion_model, pick_device

ASSETS = Path(__file__).resolve().parent / "assets"
CHUNK = 32  # steps per roll. Ours: first frames leave at once; 5,300 frames/s of 18 x 512 codes on a core


def load_motion(path=None, device="cpu"):
    """Motion model of train.py -> (generator in eval mode, dict of the whole file). Executes nothing.

    path: None takes motion.pt of this folder, or else the one in assets/, and says so. Raises InputError.
    """
    if path is None and not (path := Path("motion.pt")).exists():
        path = ASSETS / "motion.pt"
        print(f"{Path(sys.argv[0]).name}: no motion.pt in this folder, so {path} is used (ten minutes of "
              f"the head in assets/demo.mp4).", file=sys.stderr)
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; make it with train.py, or name one by --motion.")
    kind = None
    try:
        meta = torch.load(path, map_location="cpu", weights_only=True)
        kind = meta.get("kind", "stylevideogan")             # older files have none
        generator = motion_model(kind)(**meta["sizes"])
        generator.load_state_dict(meta["generator"])
    except Exception as error:                              # torch.load alone raises a dozen types
        if kind not in (None, *MOTION_MODELS):
            raise InputError(f"{path} is a motion model of the kind {kind!r}, unknown here (known: "
                             f"{', '.join(MOTION_MODELS)}); name another with --motion.") from None
        raise InputError(f"{path} is not a motion model of train.py ({type(error).__name__}); it may be "
                         f"cut short or of another kind: name another with --motion.") from None
    return generator.eval().requires_grad_(False).to(device), meta


def codes_at(generator, s, h, at):
    """roll() at times `at` (n,), in frames, 0 < at <= K: motion codes (B, n, code), h after K frames.

    Some models have codes at any time; those of the others are interpolated linearly.
    """
    if getattr(generator, "continuous", False):
        return generator.roll(s, h, at)
    l, after = generator.roll(s, h)
    l, left = torch.cat([generator.code(h)[:, None], l], 1), (at.ceil() - 1).long()
    return torch.lerp(l[:, left], l[:, left + 1], (at - left)[:, None]), after


@torch.no_grad()
def sample(generator, T, seed, every=1, first=None):
    """Yields the W+ codes of one trajectory of T frames (sec. 3) in order, as float32 arrays (K, L, D).

    The noise comes from the trajectory's own torch.Generator on the CPU: seed 5 is the same motion alone,
    among others, on any device and at any T (a shorter one is the beginning of a longer one, to the bit).
    every: frames of the training video from one frame to the next, a Fraction; the motion stays the same.
    first: a code (L, D) to begin with, for models that can.
    """
    device, noise = next(generator.buffers()).device, torch.Generator().manual_seed(seed)
    i = torch.randn(1, generator.start, generator=noise).to(device)                     # (1, 32)
    if first is not None:
        i = generator.begin(i, first.to(device))
    h = generator.hidden(i)                                                             # (4, 1, 32)
    l = generator.code(h)[:, None]                                                      # l_0 = i, (1, 1, 32)
    made, k = 0, 1                                          # frames of the training video; next frame to come
    while T > 0:
        w = generator.translate(l)[0, :T]                                               # (K, L, D)
        yield w.float().cpu().numpy()
        T -= len(w)
        # Always a whole chunk, cut afterwards: another matrix size would round differently
        s = torch.randn(1, CHUNK, generator.noise, generator=noise).to(device)          # (1, K, 32)
        if every == 1:
            l, h = generator.roll(s, h)                                                 # (1, K, 32), (4, ...)
        else:
            end = math.floor((made + CHUNK) / every) + 1                                # first beyond reach
            at = torch.tensor([float(n * every - made) for n in range(k, end)], device=device)
            l, h = codes_at(generator, s, h, at)
            made, k = made + CHUNK, end


def first_code(path, generator):
    """The first code (L, D) of a file of embed.py. Raises InputError."""
    from train import load_latents

    if not hasattr(generator, "begin"):
        raise InputError(f"--first {path}: a motion model of the kind {generator.kind} begins with noise "
                         f"alone; train one with train.py --model styleinv.")
    codes, _ = load_latents(path)
    if codes.shape[1:] != (generator.L, generator.D):
        raise InputError(f"{path} has codes of {codes.shape[1]} x {codes.shape[2]}, the motion model makes "
                         f"{generator.L} x {generator.D}; embed it with the same image model.")
    return torch.from_numpy(codes[0])


def write_npy(file, chunks, shape, progress):
    """A .npy of little-endian float32: header first, then each array as it comes; progress(frames)."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file.flush()
    for chunk in chunks:
        file.write(chunk.astype("<f4", copy=False).tobytes())
        file.flush()
        progress(len(chunk))


def main(args):
    if args.output == "-" and (sys.stdout is None or sys.stdout.isatty()):
        raise InputError("the trajectory is binary data, and standard output is a terminal or closed: pipe "
                         "it into transfer.py (python sample.py | python transfer.py) or use -o FILE.")
    if args.t < 1 or args.n < 1 or not 0 <= args.seed <= 2 ** 32 - args.n:
        raise InputError(f"--t {args.t} --n {args.n} --seed {args.seed}: a trajectory has at least 1 frame, "
                         f"there is at least one, and a seed is a whole number from 0 to {2 ** 32 - args.n}.")
    if args.fps is not None and not 0.1 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: give --fps from 0.1 to 1000.")

    # One thread: thousands of frames a second, while more would take the cores from the rendering behind the
    # pipe; and the same rounding on any number of cores
    torch.set_num_threads(1)
    generator, motion = load_motion(args.motion, pick_device(args.device))
    every = Fraction(motion["fps"]) / Fraction(args.fps or motion["fps"])       # training frames in a frame
    if every != 1:
        how = "the model's own" if getattr(generator, "continuous", False) else "interpolated linearly"
        print(f"sample.py: {args.fps:g} fps where the training video has {motion['fps']:g}; motion codes "
              f"between its frames are {how}. Name --fps {args.fps:g} to transfer.py, too.", file=sys.stderr)
    first = first_code(args.first, generator) if args.first else None
    shape = (args.n,) * (args.n > 1) + (args.t, generator.L, generator.D)
    chunks = (w for k in range(args.n)
              for w in sample(generator, args.t, args.seed + k, every=every, first=first))

    # Standard output: the reader has the bar
    if args.output == "-":
        try:
            return write_npy(sys.stdout.buffer, chunks, shape, lambda frames: None)
        except OSError as error:                            # closed by the reader, or a full disk behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
            raise InputError(f"standard output was closed before the last frame ({error.strerror}); see what "
                             f"the reading program says, or name a file with -o.") from None

    # A file, in place when it is whole
    path = Path(args.output)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file, tqdm(total=args.n * args.t, unit="frame", mininterval=0.5) as bar:
            write_npy(file, chunks, shape, bar.update)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file with -o.") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"sample.py: wrote {path}, float32 {shape}, seed {args.seed}.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--motion", metavar="FILE", help="of train.py; not given: ./motion.pt, or assets/'s")
    add("--t", type=int, default=250, help="frames per trajectory: 250")
    add("--fps", type=float, help="frames per second; else those of the training video")
    add("--first", metavar="LATENTS", help="begin with its first code (--model styleinv)")
    add("--n", type=int, default=1, help="trajectories: 1; number k has --seed SEED + k")
    add("--seed", type=int, default=0, help="of the first trajectory: 0")
    add("-o", "--output", default="-", metavar="FILE", help=".npy; not given: standard output")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    for number in (signal.SIGINT, signal.SIGTERM):          # a scheduler's kill is as good as Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"sample.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "sample.py: interrupted.\n")
