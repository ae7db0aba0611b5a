"""Does embed.py come to the right result on videos that are hard to read? They are made from two clips of talking heads.

    python -m pretrain.cases a.mp4 b.mp4                     # the table of the README: two clips of one head each
    python -m pretrain.cases a.mp4 b.mp4 --only "hard cuts"  # the cases whose name has these words
    python -m pretrain.cases a.mp4 b.mp4 --keep cases        # and keeps the videos, to look at them

Every case changes the first seconds of the clips in a way that leaves no doubt where shots begin, in which frames there is a face,
and where the crop lies: where that of the unchanged clip was moved to. It is then a real H.264 file, and read by embed.survey().
A case is right if clips, cuts and frame rate are as they have to be, nearly as many frames as there are faces were found, and the
crop's corners are off by little; the table tells how far, in px of a crop of 256 px (mean). The status is 1 if a case is wrong.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                   # lets `python pretrain/cases.py` find its siblings
import embed
from models import InputError

# All numbers below are ours
CROP = 256              # px in which errors are told
LIMIT = 4.0             # px that a crop may be off by in the mean: a third of what an eye is wide
POOR = 8.0              # the same where there is little to see: in the dark, at 240 lines
MISSED = 0.03           # share of the frames with a face in which it may be missed
AWAY = 2.0              # seconds without a face
CRF = 18                # x264's quality


# ------------------------------------------------------------------------------------------------------------------
# Videos
# ------------------------------------------------------------------------------------------------------------------

def write(path, frames, fps, pts=None, pix_fmt="yuv420p", rotation=0, aspect=None):
    """Frames (H, W, 3) uint8 RGB -> H.264. pts: time stamps in frames; None for one after the other. rotation: the flag of phones,
    degrees counter-clockwise by which a player turns the picture. aspect: width over height of a pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(CRF), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.time_base = 1 / fps
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for k, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format=pix_fmt)
            picture.pts, picture.time_base = k if pts is None else int(pts[k]), 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def load(path, seconds):
    """The first seconds of a clip of one head, its survey, and its crops: survey, fps, frames (n, H, W, 3), quads (n, 4, 2)."""
    found = embed.survey(path)
    n = min(round(seconds * found["fps"]), len(found["frames"]))
    if found["resampled"] or [row["index"] for row in found["frames"][:n]] != list(range(n)) or found["frames"][n - 1]["clip"]:
        raise InputError(f"{path}: does not show a face in every one of its first frames; give a clip without cuts or gaps there.")
    reader = embed.read_video(path)
    frames = np.stack([frame for frame, _ in zip(reader, range(n))])
    reader.close()
    return found, Fraction(found["fps"]).limit_denominator(1001), frames, np.array([row["quad"] for row in found["frames"][:n]])


def mapped(quads, M):
    """Quads (n, 4, 2) under an affine map (2, 3), or one of each frame (n, 2, 3)."""
    M = np.broadcast_to(M, (len(quads), 2, 3))
    return quads @ M[:, :, :2].transpose(0, 2, 1) + M[:, None, :, 2]


def placed(frames, quads, width, height, x=0, y=0, canvas=None):
    """Frames shrunk to width x height and put at x, y of a grey canvas (width, height), and the quads there."""
    n, H, W = frames.shape[:3]
    out = np.full((n, *(canvas or (width, height))[::-1], 3), 128, np.uint8)
    for picture, frame in zip(out, frames):
        picture[y:y + height, x:x + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    a, b = width / W, height / H                                # pixel centres are whole numbers
    return out, mapped(quads, np.array([[a, 0, a / 2 - 0.5 + x], [0, b, b / 2 - 0.5 + y]]))


def square(frames, quads, size):
    """The centre square of the frames at size x size, and the quads there."""
    H, W = frames.shape[1:3]
    side = min(H, W)
    y, x = (H - side) // 2, (W - side) // 2
    return placed(frames[:, y:y + side, x:x + side], quads - (x, y), size, size)


def shifted(frames, quads, dx):
    """Frame k moved to the right by dx[k] px; what comes in from beyond the edge is grey."""
    M = np.array([[[1, 0, x], [0, 1, 0]] for x in dx], float)
    size = frames.shape[2], frames.shape[1]
    return np.stack([cv2.warpAffine(f, m, size, borderValue=(128,) * 3) for f, m in zip(frames, M)]), mapped(quads, M)


def covered(frames, quads, part):
    """The frames of a slice with the face behind a flat patch."""
    frames = frames.copy()
    for frame, quad in zip(frames[part], quads[part]):
        (x, y), half = quad.mean(0), 0.4 * np.linalg.norm(quad[3] - quad[0])
        frame[max(0, int(y - half)):int(y + half), max(0, int(x - half)):int(x + half)] = frame.mean((0, 1))
    return frames


def dark(frames, brightness, noise):
    """As a camera sees a dark room. Frames (n, H, W, 3); noise: standard deviation, of 255."""
    rng = np.random.RandomState(0)
    return np.stack([np.clip(brightness * f + noise * rng.standard_normal(f.shape), 0, 255).round().astype(np.uint8)
                     for f in frames])


# ------------------------------------------------------------------------------------------------------------------
# Cases
# ------------------------------------------------------------------------------------------------------------------

def case(name, frames, quads, fps, seen=None, cuts=(), face=1, limit=LIMIT, slack=0, suffix=".mp4", **writing):
    """What a video is and what has to be found in it. frames (n, H, W, 3) with their crops (n, 4, 2); seen (n,): frames with the
    face, None for all; cuts: frames with which a shot begins; face: option of embed.py; slack: frames by which a clip's ends may
    be off; the rest goes to write()."""
    return {"name": name, "frames": frames, "quads": quads, "fps": fps, "cuts": list(cuts), "face": face, "limit": limit,
            "slack": slack, "suffix": suffix, "seen": np.ones(len(frames), bool) if seen is None else seen, "writing": writing}


def cases(a, b, fps):
    """Yields the cases that two clips make. a, b: frames (n, S, S, 3) and quads (n, 4, 2), both alike in length and size."""
    (A, Qa), (B, Qb), t = a, b, np.arange(len(a[0]))
    n, S = A.shape[:2]
    yield case("unchanged", A, Qa, fps)

    # Cuts
    part = t * 4 // n                                           # of four, in turn from a and b
    starts = np.flatnonzero(np.diff(part)) + 1
    turn = (part % 2).astype(bool)
    mixed, quads = np.where(turn[:, None, None, None], B, A), np.where(turn[:, None, None], Qb, Qa)
    yield case("hard cuts", mixed, quads, fps, cuts=starts)
    yield case("hard cuts, very dark", dark(mixed, 0.08, 1), quads, fps, cuts=starts, limit=POOR)
    yield case("hard cuts, 60 fps", mixed.repeat(2, 0), quads.repeat(2, 0), 2 * fps, cuts=2 * starts)
    for name, gain, plus in (("one frame of flash light", 3, 100), ("one white frame", 0, 255), ("one black frame", 0, 0)):
        frames = A.copy()
        frames[n // 2] = np.clip(gain * A[n // 2].astype(int) + plus, 0, 255)
        yield case(name, frames, Qa, fps, seen=None if gain else t != n // 2)

    # Frames without a face
    away, first = round(AWAY * fps), (n - round(AWAY * fps)) // 2
    gone = (t >= first) & (t < first + away)
    blank = A.copy()
    blank[gone] = 128
    yield case("2 s of an empty picture", blank, Qa, fps, seen=~gone, cuts=[first, first + away])
    yield case("2 s with the face covered", covered(A, Qa, slice(first, first + away)), Qa, fps, seen=~gone)
    short = (t >= n // 2) & (t < n // 2 + round(0.2 * fps))
    yield case("0.2 s with the face covered", covered(A, Qa, slice(n // 2, n // 2 + round(0.2 * fps))), Qa, fps, seen=~short)
    ramp = max(1, first // 2)                                   # frames in which the head leaves, and comes back
    left = np.clip(np.minimum(t - (first - ramp), first + away + ramp - t) / ramp, 0, 1)
    frames, quads = shifted(A, Qa, -S * left)
    yield case("head leaves the picture for 2 s", frames, quads, fps, seen=left < 0.25, slack=ramp // 2)

    # Several faces
    small = placed(B, Qb, S * 3 // 4, S * 3 // 4, 0, S // 4, (S, S))
    both = np.concatenate([A, small[0]], 2)
    yield case("two faces side by side", both, Qa, fps)
    yield case("two faces side by side, --face 2", both, small[1] + (S, 0), fps, face=2)
    left = np.clip((t - n // 3) / ramp, 0, 1)                   # the larger one goes after a third of the time
    frames, quads = shifted(A, Qa, -S * left)
    both = np.concatenate([frames, small[0]], 2)
    yield case("two faces, the larger one leaves", both, small[1] + (S, 0), fps)
    yield case("the same, --face 2", both, quads, fps, seen=left < 0.25, face=2, slack=ramp // 2)

    # Time
    yield case("half the frame rate", A[::2], Qa[::2], fps / 2)
    blend = np.stack([A[:-1], cv2.addWeighted(A[:-1], 0.5, A[1:], 0.5, 0)], 1).reshape(-1, S, S, 3)
    yield case("twice the frame rate", blend, np.stack([Qa[:-1], (Qa[:-1] + Qa[1:]) / 2], 1).reshape(-1, 4, 2), 2 * fps)
    yield case("twice the frame rate, every frame twice", A.repeat(2, 0), Qa.repeat(2, 0), 2 * fps)
    kept = np.random.RandomState(0).uniform(size=n) > 0.3
    kept[[0, -1]] = True
    yield case("variable frame rate", A[kept], Qa[kept], fps, pts=t[kept])
    yield case("Matroska, 29.97 fps", A, Qa, Fraction(30000, 1001), suffix=".mkv")

    # Picture
    cut = S // 8                                                # upright: the sides cut off
    portrait, quads = A[:, :, cut:S - cut], Qa - (cut, 0)
    for degrees in (90, 180, 270):                              # stored turned back, so that the flag makes it upright
        stored = np.ascontiguousarray(np.rot90(portrait, -degrees // 90, (1, 2)))
        yield case(f"rotation flag {degrees}", stored, quads, fps, rotation=degrees)
    narrow, _ = placed(A, Qa, S * 3 // 4, S)
    yield case("pixels 4:3 as wide as high", narrow, Qa, fps, aspect=Fraction(4, 3))
    width, height = 426, 240
    yield case("240 lines", *placed(A, Qa, height, height, 93, 0, (width, height)), fps)
    yield case("240 lines, face half as large", *placed(A, Qa, height // 2, height // 2, 153, 60, (width, height)), fps, limit=POOR)
    yield case("very dark, 10 %", dark(A, 0.10, 1), Qa, fps, limit=POOR)
    yield case("very dark, 5 %", dark(A, 0.05, 1), Qa, fps, limit=POOR, slack=10)       # H.264 begins such a video as a black one
    yield case("fog, 15 % of the contrast", (0.15 * A + 100).astype(np.uint8), Qa, fps, limit=POOR)
    yield case("10 bits", A, Qa, fps, pix_fmt="yuv420p10le")
    yield case("odd sizes", A[:, 1:, 1:S - 2], Qa - (1, 1), fps, pix_fmt="yuv444p")


def expected_clips(wanted):
    """Runs of frames with a face (first, last), parted by cuts and by gaps that embed.py does not bridge."""
    found = np.flatnonzero(wanted["seen"])
    shots = np.searchsorted(wanted["cuts"], found, side="right")
    ends = np.flatnonzero((np.diff(found) > round(embed.GAP * float(wanted["fps"])) + 1) | (np.diff(shots) > 0))
    return [(int(found[a]), int(found[b])) for a, b in zip([0, *ends + 1], [*ends, len(found) - 1])]


def judge(wanted, found):
    """A case and what embed.survey() says of its video -> what was expected, what came, error in px, whether that is right."""
    rows, times = found["frames"], wanted["writing"].get("pts")
    index, number = np.array([row["index"] for row in rows]), np.array([row["clip"] for row in rows])
    clips = [(int(index[number == k][0]), int(index[number == k][-1])) for k in np.unique(number)]
    truth, quads = wanted["quads"][index], np.array([row["quad"] for row in rows])
    fps, share, right = float(wanted["fps"]), wanted["seen"].mean(), expected_clips(wanted)
    known = np.any([(a <= index) & (index <= b) for a, b in right], 0)
    side = np.linalg.norm(truth[:, 3] - truth[:, 0], axis=1)
    error = float((np.linalg.norm(quads - truth, axis=2).mean(1) / side * CROP)[known].mean())
    count = sum(b - a + 1 for a, b in right) if times is None else int(times[-1]) + 1

    def told(fps, share, count, cuts, clips):
        ranges = " ".join(f"{a}-{b}" for a, b in clips[:4]) + " ..." * (len(clips) > 4)
        return f"{fps:.4g} fps, {100 * share:3.0f} %, {count} codes, {cuts} cut{'s' * (cuts != 1)}, {ranges}"

    slack = wanted["slack"]
    ok = (abs(found["fps"] / fps - 1) < 1e-3 and abs(found["found"] / found["decoded"] - share) <= MISSED + slack / len(truth)
          and abs(len(rows) - count) <= 2 * slack and len(clips) == len(right)
          and np.abs(np.array(clips) - right).max() <= slack and error < wanted["limit"])
    return (told(fps, share, count, len(wanted["cuts"]), right),
            told(found["fps"], found["found"] / found["decoded"], len(rows), found["cuts"], clips), error, ok)


def main(args):
    if not embed.GAP < AWAY < args.seconds - 1:
        raise InputError(f"--seconds {args.seconds:g} are too few, as {AWAY:g} of them will be without a face; give 4 or more.")
    loaded = []
    for path in (args.a, args.b):
        found, fps, frames, quads = load(path, args.seconds)
        loaded.append((fps, frames, quads))
        if not args.only:
            print(f"{path}: {found['decoded']} frames, {found['fps']:.4g} fps, face in {100 * found['found'] / found['decoded']:.1f} "
                  f"%, {found['clips']} clip{'s' * (found['clips'] != 1)}, {found['cuts']} cuts, {found['gaps']} gaps")
    (fps, A, Qa), (other, B, Qb) = loaded
    if fps != other:
        raise InputError(f"{args.a} has {float(fps):.4g} fps and {args.b} {float(other):.4g}; give two clips of one frame rate.")
    n, size = min(len(A), len(B)) // 2 * 2, min(*A.shape[1:3], *B.shape[1:3]) // 8 * 8
    if n < (AWAY + 1) * fps:
        raise InputError(f"{n} frames are too few, as {AWAY:g} seconds will be without a face; give longer clips.")
    a, b = square(A[:n], Qa[:n], size), square(B[:n], Qb[:n], size)
    wrong = 0
    with contextlib.ExitStack() as stack:
        folder = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'case':42s}{'expected':64s}{'got':64s}{'px':>6s}")
        for wanted in cases(a, b, fps):
            name = wanted["name"]
            if args.only and args.only not in name:
                continue
            video = folder / (name.replace(" ", "_").replace(",", "").replace("%", "").replace(":", "-") + wanted["suffix"])
            write(video, wanted["frames"], wanted["fps"], **wanted["writing"])
            try:
                right, got, error, ok = judge(wanted, embed.survey(video, face=wanted["face"]))
            except InputError as refusal:
                right, got, error, ok = "", str(refusal), np.nan, False
            print(f"{name:42s}{right:64s}{got:64s}{error:6.2f}  {'right' if ok else 'WRONG'}", flush=True)
            wrong += not ok
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("a", help="video of one head, seen all the time")
    parser.add_argument("b", help="another one, of the same frame rate")
    parser.add_argument("--seconds", type=float, default=6.0, help="how much of each is used")
    parser.add_argument("--only", metavar="WORDS", help="cases whose name has these words")
    parser.add_argument("--keep", metavar="FOLDER", help="where the videos are kept; without it they are not")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"cases.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "cases.py: interrupted.\n")
