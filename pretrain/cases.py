"""Does embed.py come to the right result on videos that are hard to read? They are made from two clips of talking heads.

    python -m pretrain.cases a.mp4 b.mp4                     # the table of the README: two clips of one head each
    python -m pretrain.cases a.mp4 b.mp4 --only "hard cuts"  # the cases whose name has these words
    python -m pretrain.cases a.mp4 b.mp4 --keep folder       # and keeps the videos, to look at them

Every case changes the first seconds of the clips in a way that leaves no doubt where shots begin, which frames show the face, and
where the crop lies: where that of the unchanged clip was moved to. It is then a real H.264 file, and read by embed.survey(). A
case is right if frame rate, number of codes and clips (first and last frame of each) are, the face is found in nearly all frames
that show it, and the crop is off by little: mean distance of its corners, in px of a crop of 256 px. A cut that is reported where
none is does no harm as long as the clips are right. The exit status is 1 if a case is wrong.
"""

import argparse
import sys
import tempfile
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
LIMIT, POOR = 3.0, 6.0  # px that a crop may be off by, and where there is little to see; the eyes are 64 px apart
MISSED = 0.03           # share of the frames in which a face may be missed
AWAY = 2.0              # seconds without a face
CRF = 18                # x264's quality
GREY = 3 * (128,)       # where there is no picture


def write(path, frames, fps, pts=None, pix_fmt="yuv420p", rotation=0, aspect=None):
    """Frames (n, H, W, 3) uint8 RGB -> H.264. pts: time stamps in frames, None for one after the other. rotation: the flag of
    phones, degrees by which a player turns the picture to the left. aspect: width over height of a pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(CRF), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = 1 / fps
        stream.codec_context.sample_aspect_ratio = aspect or Fraction(1)
        stream.set_display_rotation(rotation)
        for k, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format=pix_fmt)
            picture.pts, picture.time_base = k if pts is None else int(pts[k]), 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def load(path, seconds):
    """A clip of one head -> its survey; of its first seconds the centre squares (n, S, S, 3) and the crops in them (n, 4, 2)."""
    found = embed.survey(path)
    rows = found["frames"][:round(seconds * found["fps"])]
    if found["resampled"] or rows["clip"].any() or not np.array_equal(rows["index"], np.arange(len(rows))):
        raise InputError(f"{path}: no face in each of the first {seconds:g} s; give a clip without cuts and gaps there.")
    frames = np.stack([frame for _, frame in zip(rows, embed.read_video(path))])
    H, W = frames.shape[1:3]
    y, x = max(0, H - W) // 2, max(0, W - H) // 2
    return found, frames[:, y:H - y, x:W - x], rows["quad"] - (x, y)


def mapped(quads, M):
    """Quads (n, 4, 2) under an affine map (2, 3), or one of each frame (n, 2, 3)."""
    return quads @ M[..., :2].swapaxes(-1, -2) + M[..., None, :, 2]


def placed(frames, quads, width, height, x=0, y=0, canvas=None):
    """Frames shrunk to width x height and put at x, y of a grey canvas (width, height), and the quads there."""
    H, W = frames.shape[1:3]
    out = np.full((len(frames), *(canvas or (width, height))[::-1], 3), GREY, np.uint8)
    for picture, frame in zip(out, frames):
        picture[y:y + height, x:x + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    a, b = width / W, height / H                                # pixel centres are whole numbers
    return out, mapped(quads, np.array([[a, 0, a / 2 - 0.5 + x], [0, b, b / 2 - 0.5 + y]]))


def shifted(frames, quads, dx):
    """Frame k moved to the right by dx[k] px; what comes in from beyond the edge is grey."""
    M = np.array([[[1, 0, x], [0, 1, 0]] for x in dx], float)
    size = frames.shape[2], frames.shape[1]
    return np.stack([cv2.warpAffine(f, m, size, borderValue=GREY) for f, m in zip(frames, M)]), mapped(quads, M)


def covered(frames, quads, hidden):
    """The frames with the face behind a flat patch where hidden (n,) says so."""
    frames = frames.copy()
    for k in np.flatnonzero(hidden):
        (x, y), half = quads[k].mean(0), 0.4 * np.linalg.norm(quads[k, 3] - quads[k, 0])
        frames[k, max(0, int(y - half)):int(y + half), max(0, int(x - half)):int(x + half)] = frames[k].mean((0, 1))
    return frames


def dark(frames, brightness, noise):
    """As a camera sees a dark room. Frames (n, H, W, 3); noise: standard deviation, of 255."""
    draw = np.random.RandomState(0).standard_normal
    return np.stack([np.clip(brightness * f + noise * draw(f.shape), 0, 255).round().astype(np.uint8) for f in frames])


def case(name, frames, quads, fps, seen=None, cuts=(), face=1, limit=LIMIT, slack=0, suffix=".mp4", **writing):
    """What a video is and what has to be found in it. frames (n, H, W, 3) with their crops (n, 4, 2). seen: (n,), which show the
    face, None for all. cuts: frames with which a shot begins. face: embed.py's option. slack: frames by which a clip's ends may
    be off. The rest goes to write()."""
    return {"name": name, "frames": frames, "quads": quads, "fps": fps, "cuts": list(cuts), "face": face, "limit": limit,
            "slack": slack, "suffix": suffix, "seen": np.ones(len(frames), bool) if seen is None else seen, "writing": writing}


def cases(A, Qa, B, Qb, fps):
    """Yields the cases that two clips make. A, B: frames (n, S, S, 3); Qa, Qb: their crops (n, 4, 2)."""
    n, S = A.shape[:2]
    t = np.arange(n)
    yield case("unchanged", A, Qa, fps)

    # Cuts
    part = t * 4 // n                                           # of four, in turn from a and b
    starts, turn = np.flatnonzero(np.diff(part)) + 1, part % 2 == 1
    mixed, quads = np.where(turn[:, None, None, None], B, A), np.where(turn[:, None, None], Qb, Qa)
    yield case("hard cuts", mixed, quads, fps, cuts=starts)
    yield case("hard cuts, very dark", dark(mixed, 0.08, 1), quads, fps, cuts=starts, limit=POOR)
    yield case("hard cuts, 60 fps", mixed.repeat(2, 0), quads.repeat(2, 0), 2 * fps, cuts=2 * starts)
    for name, gain, plus in (("one frame of flash light", 3, 100), ("one white frame", 0, 255), ("one black frame", 0, 0)):
        frames = A.copy()
        frames[n // 2] = np.clip(gain * A[n // 2].astype(int) + plus, 0, 255)
        yield case(name, frames, Qa, fps, seen=None if gain else t != n // 2)

    # Frames without a face
    for seconds in (0.2, AWAY):
        start, end = (n - round(seconds * fps)) // 2, (n + round(seconds * fps)) // 2
        hidden = (start <= t) & (t < end)
        yield case(f"{seconds:g} s with the face covered", covered(A, Qa, hidden), Qa, fps, seen=~hidden)
    yield case("2 s of an empty picture", np.where(hidden[:, None, None, None], np.uint8(128), A), Qa, fps, seen=~hidden,
               cuts=[start, end])
    ramp = start // 2                                           # frames in which the head leaves, and comes back
    left = 0.5 - 0.5 * np.cos(np.pi * np.clip(np.minimum(t - start, end - t) / ramp + 1, 0, 1))
    yield case("head leaves the picture for 2 s", *shifted(A, Qa, -S * left), fps, seen=left < 0.25, slack=ramp // 2)

    # Several faces
    both, Qs = placed(B, Qb, S * 3 // 4, S * 3 // 4, S, S // 4, (2 * S, S))                     # right of the larger a
    both[:, :, :S] = A
    yield case("two faces side by side", both, Qa, fps)
    yield case("two faces side by side, --face 2", both, Qs, fps, face=2)
    left = 0.5 - 0.5 * np.cos(np.pi * np.clip((t - n // 3) / ramp, 0, 1))                      # a goes after a third of the time
    both[:, :, :S], quads = shifted(A, Qa, -S * left)
    yield case("two faces, the larger one leaves", both, Qs, fps)
    yield case("two faces, the larger one leaves, --face 2", both, quads, fps, seen=left < 0.25, face=2, slack=ramp // 2)

    # Time
    yield case("half the frame rate", A[::2], Qa[::2], fps / 2)
    blend = np.stack([A[:-1], cv2.addWeighted(A[:-1], 0.5, A[1:], 0.5, 0)], 1).reshape(-1, S, S, 3)
    yield case("twice the frame rate", blend, np.stack([Qa[:-1], (Qa[:-1] + Qa[1:]) / 2], 1).reshape(-1, 4, 2), 2 * fps)
    yield case("twice the frame rate, every frame twice", A.repeat(2, 0), Qa.repeat(2, 0), 2 * fps)
    kept = (np.random.RandomState(0).uniform(size=n) > 0.3) | (t == 0) | (t == n - 1)
    yield case("variable frame rate", A[kept], Qa[kept], fps, pts=t[kept])
    yield case("Matroska, 29.97 fps", A, Qa, Fraction(30000, 1001), suffix=".mkv")

    # Picture
    for degrees in (90, 180, 270):                              # the middle 3/4, turned back, so that the flag makes it upright
        stored = np.rot90(A[:, :, S // 8:S - S // 8], -degrees // 90, (1, 2))
        yield case(f"rotation flag {degrees}", stored, Qa - (S // 8, 0), fps, rotation=degrees)
    yield case("pixels wider than high, 4:3", placed(A, Qa, S * 3 // 4, S)[0], Qa, fps, aspect=Fraction(4, 3))
    yield case("240 lines", *placed(A, Qa, 240, 240, 93, 0, (426, 240)), fps)
    yield case("240 lines, face half as large", *placed(A, Qa, 120, 120, 153, 60, (426, 240)), fps, limit=POOR)
    yield case("very dark, 10 %", dark(A, 0.10, 1), Qa, fps, limit=POOR)
    yield case("very dark, 5 %", dark(A, 0.05, 1), Qa, fps, limit=POOR)
    yield case("fog, 15 % of the contrast", (0.15 * A + 100).astype(np.uint8), Qa, fps, limit=POOR)
    yield case("10 bits", A, Qa, fps, pix_fmt="yuv420p10le")
    yield case("odd sizes", A[:, 1:, 1:S - 2], Qa - (1, 1), fps, pix_fmt="yuv444p")


def expected_clips(wanted):
    """Runs of frames with a face (first, last), parted by cuts and by gaps that embed.py does not bridge."""
    found = np.flatnonzero(wanted["seen"])
    shots = np.searchsorted(wanted["cuts"], found, side="right")
    ends = np.flatnonzero((np.diff(found) > round(embed.GAP * float(wanted["fps"])) + 1) | (np.diff(shots) > 0))
    return [(int(found[a]), int(found[b])) for a, b in zip([0, *ends + 1], [*ends, len(found) - 1])]


def told(fps, share, codes, cuts, clips):
    """One line of what was, or should be, found."""
    ranges = " ".join(f"{a}-{b}" for a, b in clips[:4]) + " ..." * (len(clips) > 4)
    return f"{float(fps):.4g} fps, {100 * share:.0f} %, {codes} codes, {cuts} cut{'s' * (cuts != 1)}, {ranges}"


def got(found):
    """What embed.survey() found: as a line, and the first and last frame of every clip."""
    index, starts = found["frames"]["index"].tolist(), np.flatnonzero(np.diff(found["frames"]["clip"])) + 1
    clips = [(index[a], index[b - 1]) for a, b in zip([0, *starts], [*starts, len(index)])]
    return told(found["fps"], found["found"] / found["decoded"], len(index), found["cuts"], clips), clips


def judge(wanted, found):
    """A case and what embed.survey() says of its video -> what was expected and what came, as lines, crop error, verdict."""
    (line, clips), right, index = got(found), expected_clips(wanted), found["frames"]["index"]
    truth = wanted["quads"][index]
    off = np.linalg.norm(found["frames"]["quad"] - truth, axis=2).mean(1) / np.linalg.norm(truth[:, 3] - truth[:, 0], axis=1)
    error = CROP * float(off[np.any([(a <= index) & (index <= b) for a, b in right], 0)].mean())
    times, slack, share = wanted["writing"].get("pts"), wanted["slack"], wanted["seen"].mean()
    codes = sum(b - a + 1 for a, b in right) if times is None else int(times[-1]) + 1
    ok = (abs(found["fps"] / float(wanted["fps"]) - 1) < 1e-3 and abs(len(index) - codes) <= 2 * slack
          and abs(found["found"] / found["decoded"] - share) <= MISSED + slack / len(wanted["seen"])
          and len(clips) == len(right) and np.abs(np.array(clips) - right).max() <= slack and error < wanted["limit"])
    return told(wanted["fps"], share, codes, len(wanted["cuts"]), right), line, error, bool(ok)


def report(name, right, line, error, ok):
    line, px = "as expected" if line == right else line, f"{error:.2f}" if np.isfinite(error) else "-"
    print(f"{name:43s}{right:64s}{line:64s}{px:>6s}  {'right' if ok else 'WRONG'}", flush=True)
    return ok


def main(args):
    (a, A, Qa), (b, B, Qb) = load(args.a, args.seconds), load(args.b, args.seconds)
    if a["fps"] != b["fps"]:
        raise InputError(f"{args.a} has {a['fps']:.4g} fps and {args.b} {b['fps']:.4g}; give two clips of one frame rate.")
    fps = Fraction(a["fps"]).limit_denominator(1001)
    n, size = min(len(A), len(B)) // 2 * 2, min(A.shape[1], B.shape[1]) // 16 * 16
    if n < (AWAY + 1) * fps:
        raise InputError(f"{n} frames are too few: {AWAY:g} s will be without a face; give longer clips, or more --seconds.")
    print(f"{'case':43s}{'expected':64s}{'got':64s}{'px':>6s}")
    verdicts = []
    for name, found in (("the first clip, all of it", a), ("the second clip, all of it", b)):
        right = told(found["fps"], 1, found["decoded"], 0, [(0, found["decoded"] - 1)])
        verdicts.append(report(name, right, got(found)[0], np.nan, right == got(found)[0]))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(args.keep or folder)
        folder.mkdir(parents=True, exist_ok=True)
        for wanted in cases(*placed(A[:n], Qa[:n], size, size), *placed(B[:n], Qb[:n], size, size), fps):
            name = wanted["name"]
            if args.only in name:
                video = folder / ("".join(c if c.isalnum() else "_" for c in name) + wanted["suffix"])
                write(video, wanted["frames"], wanted["fps"], **wanted["writing"])
                try:
                    verdicts.append(report(name, *judge(wanted, embed.survey(video, face=wanted["face"]))))
                except InputError as refusal:
                    verdicts.append(report(name, "", str(refusal), np.nan, False))
    print(f"{sum(verdicts)} of {len(verdicts)} right")
    if not all(verdicts):
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("a", help="video of one head, seen all the time")
    parser.add_argument("b", help="another one, of the same frame rate")
    parser.add_argument("--seconds", type=float, default=6.0, help="how much of each is used")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words")
    parser.add_argument("--keep", metavar="FOLDER", help="where the videos are kept; without it they are not")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"cases.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "cases.py: interrupted.\n")
