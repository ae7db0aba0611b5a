"""How well does embed.py's crop follow a face? A photograph moved in a known way tells.

    python -m pretrain.jitter                            # the table of the README
    python -m pretrain.jitter photo.jpg --movement talk  # another photo, one movement

The photograph is turned, scaled and shifted from frame to frame, gets noise, is encoded as H.264 and tracked as embed.py tracks
any video. Where its crop lies is then known: where the photo's own crop was moved to. The error is the mean distance of the
crop's four corners from there, in px of a crop of 256 px; the table has its mean over the frames and its 95th percentile, with
all filters, without any, with one of them alone, with landmarks of one box or four, and for a crop that stays in place.
assets/astronaut.jpg is NASA's portrait of Eileen Collins, in the public domain, as scikit-image ships it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                   # lets `python pretrain/jitter.py` find its siblings
import embed
from models import InputError
from transfer import VideoWriter

# All numbers below are ours
SIZE = 512              # of the frames
CROP = 256              # px in which errors are told
ALL = embed.POSITION_SIGMA, embed.ROTATION_SIGMA, embed.SCALE_SIGMA
WAYS = {"all filters": ALL, "no filter": (0, 0, 0), "position only": (ALL[0], 0, 0), "rotation only": (0, ALL[1], 0),
        "scale only": (0, 0, ALL[2])}
BOXES = {1: "one box", 4: "four boxes"}                         # instead of two, per frame


def wave(t, cycles, phase=0.0):
    return np.sin(2 * np.pi * cycles * t + phase)


def movement(kind, t):
    """Degrees (n,), scale (n,) and shift in px (n, 2) at the times t (n,) in seconds."""
    if kind == "still":
        return 0 * t, 1 + 0 * t, np.zeros((len(t), 2))
    if kind == "slow":                                          # somebody who listens
        return 5 * wave(t, 0.2), 1 + 0.06 * wave(t, 0.1, 1), np.stack([15 * wave(t, 0.15), 10 * wave(t, 0.2, 2)], 1)
    if kind == "talk":                                          # a lively speaker: up to 1.7 movements per second
        return (4 * wave(t, 0.5) + 2 * wave(t, 1.1, 1), 1 + 0.04 * wave(t, 0.4, 1),
                np.stack([12 * wave(t, 0.4) + 4 * wave(t, 1.3), 8 * wave(t, 0.6, 2) + 3 * wave(t, 1.7)], 1))
    # comes and goes by 10 % per second, turning back at once, and tilts the head by 8 degrees
    return 8 * wave(t, 0.4), 1 + 0.1 * (2 * np.abs(t / 2 % 2 - 1) - 1), np.stack([10 * wave(t, 0.3), 10 * wave(t, 0.5)], 1)


MOVEMENTS = "still", "slow", "talk", "lean"


def moved(photo, points, kind, n, fps, noise, rng):
    """Yields n frames (SIZE, SIZE, 3) uint8 of a photo that moves, each with its affine map (2, 3) from the photo's pixels.

    points: its landmarks (68, 2). The face is moved about its eyes, which lie in the upper middle of the frame.
    """
    E, e = embed.eyes(points)
    size = SIZE / 10 / np.linalg.norm(e)                        # eyes a tenth of the frame apart, as in a head and shoulders
    for degrees, scale, shift in zip(*movement(kind, np.arange(n) / fps)):
        M = cv2.getRotationMatrix2D(tuple(E), degrees, scale * size)
        M[:, 2] += np.array([SIZE / 2, 0.42 * SIZE]) - E + shift
        frame = cv2.warpAffine(photo, M, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        yield np.clip(frame + noise * rng.standard_normal(frame.shape), 0, 255).round().astype(np.uint8), M


def errors(quads, photo_quad, maps):
    """Distance of crop quads (n, 4, 2) from photo_quad (4, 2) under the maps (n, 2, 3): mean of the corners, (n,)."""
    truth = photo_quad @ maps[:, :, :2].transpose(0, 2, 1) + maps[:, None, :, 2]                # (n, 4, 2)
    side = np.linalg.norm(truth[:, 3] - truth[:, 0], axis=1)
    return np.linalg.norm(quads - truth, axis=2).mean(1) / side * CROP


def measure(photo, points, kind, n, fps, noise, crf):
    """{way: errors (n,)} of one movement of a photo (H, W, 3) with its landmarks (68, 2)."""
    maps, rng, quads, photo_quad = [], np.random.RandomState(0), {}, embed.photo_quad(points)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "moved.mp4"
        with VideoWriter(video, fps, crf) as writer:
            for frame, M in moved(photo, points, kind, n, fps, noise, rng):
                writer.write(frame)
                maps.append(M)
        tracks = {shakes: embed.track_face(embed.read_video(video, "gray"), fps, shakes)[0] for shakes in (embed.SHAKES, *BOXES)}
    for track in tracks.values():
        if not np.isfinite(track).any():
            raise InputError("the face was not found in the moved photo; give a larger or sharper one.")
    first, last = np.flatnonzero(np.isfinite(tracks[embed.SHAKES][:, 0, 0]))[[0, -1]]
    part, maps = slice(first, last + 1), np.array(maps)[first:last + 1]
    for name, sigmas in WAYS.items():
        quads[name] = embed.smooth_quads(tracks[embed.SHAKES][part], fps, sigmas)
    for shakes, name in BOXES.items():
        quads[name] = embed.smooth_quads(tracks[shakes][part], fps)
    quads["fixed"] = np.repeat(embed.fixed_quad(quads["all filters"])[None], len(maps), 0)
    return {name: errors(q, photo_quad, maps) for name, q in quads.items()}


def main(args):
    photo = embed.read_picture(args.photo)
    points = embed.landmarks(photo)
    if points is None:
        raise InputError(f"{args.photo}: no face found; give a picture with a face seen from the front.")
    if args.seconds * args.fps < 3:
        raise InputError(f"--seconds {args.seconds} at --fps {args.fps} are too few frames; give 1 second or more.")
    ways = [*WAYS, *BOXES.values(), "fixed"]
    print(f"Error of the crop in px of {CROP}, mean / 95th percentile; {args.seconds:g} s at {args.fps:g} fps")
    print(f"{'movement':10s}{'noise':>6s}{'crf':>5s}" + "".join(f"{way:>16s}" for way in ways))
    kinds = [args.movement] if args.movement else MOVEMENTS
    for kind in tqdm(kinds, unit="movement"):
        for noise, crf in ((4, 23), (10, 30)):                  # a good camera, and a poor one
            found = measure(photo, points, kind, round(args.seconds * args.fps), args.fps, noise, crf)
            print(f"{kind:10s}{noise:6d}{crf:5d}" + "".join(f"{e.mean():9.2f} /{np.percentile(e, 95):5.2f}" for e in
                                                            (found[way] for way in ways)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("photo", nargs="?", default=str(ROOT / "assets" / "astronaut.jpg"), help="picture of a face")
    parser.add_argument("--movement", choices=MOVEMENTS, help="one of them only")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--fps", type=float, default=25.0)
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"jitter.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "jitter.py: interrupted.\n")
