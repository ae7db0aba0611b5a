"""How well does embed.py's crop follow a face, and are videos that are hard to read read rightly?

    python -m studies.crop                          # small: one movement, a few hard videos; under a minute
    python -m studies.crop --full                   # the tables of docs/crop.md, of what is in assets/
    python -m studies.crop --full a.mp4 b.mp4       # hard videos of two real clips of one head each
    python -m studies.crop --only "hard cuts" --keep folder

Movements: a photograph is turned, scaled and shifted from frame to frame, gets noise, is encoded as H.264
and tracked as any video. Where its crop lies is then known: where the photo's own crop was moved to. Hard
videos: the first seconds of two clips are changed in ways that leave no doubt where shots begin, which
frames show the face, and where the crop lies. A case is right if frame rate, number of codes and clips
(first and last frame of each) are, the face is found in nearly all frames that show it, and the crop is
off by little. The exit status is 1 if a case is wrong. Errors: mean distance of the crop's corners from
where they should be, in px of a crop of 256 px.
"""

import argparse
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

import embed
from models import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"

# All numbers are ours
SIZE = 512              # of the frames of a moved photograph
CROP = 256              # px in which errors are told
# px that a crop may be off by, and where there is little to see; the eyes are 64 px apart
LIMIT, POOR = 3.0, 6.0
MISSED = 0.03           # share of the frames in which a face may be missed
AWAY = 2.0              # seconds without a face
GREY = 3 * (128,)       # where there is no picture
POSITION, ROTATION, SCALE = embed.SIGMAS
WAYS = {"all filters": embed.SIGMAS, "none": (0, 0, 0), "position only": (POSITION, 0, 0),
        "rotation only": (0, ROTATION, 0), "scale only": (0, 0, SCALE)}
SMALL = "hard cuts", "one white frame", "two faces side by side, --face 2", "rotation flag 90"


def write(path, frames, fps, pts=None, pix_fmt="yuv420p", rotation=0, aspect=None, crf=18,
          preset="veryfast"):
    """Frames (n, H, W, 3) uint8 RGB -> H.264. pts: time stamps in frames, None for one after the other.
    rotation: the flag of phones, degrees by which a player turns the picture to the left. aspect: width over
    height of a pixel."""
    fps = Fraction(fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": preset})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.time_base = 1 / fps
        stream.codec_context.sample_aspect_ratio = aspect or Fraction(1)
        stream.set_display_rotation(rotation)
        for k, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format=pix_fmt)
            picture.pts, picture.time_base = k if pts is None else int(pts[k]), 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def mapped(quads, M):
    """Quads (..., 4, 2) under an affine map (2, 3), or one of each frame (n, 2, 3)."""
    return quads @ M[..., :2].swapaxes(-1, -2) + M[..., None, :, 2]


def errors(quads, truth):
    """Mean distance of the corners of crop quads (n, 4, 2) from the true ones, in px of a crop of CROP px,
    (n,)."""
    side = np.linalg.norm(truth[:, 3] - truth[:, 0], axis=1)
    return np.linalg.norm(quads - truth, axis=2).mean(1) / side * CROP


# ------------------------------------------------------------------------------------------------------------
# Movements
# ------------------------------------------------------------------------------------------------------------

def wave(t, cycles, phase=0.0):
    return np.sin(2 * np.pi * cycles * t + phase)


def movement(kind, t):
    """Degrees (n,), scale (n,) and shift in px (n, 2) at the times t (n,) in seconds."""
    if kind == "still":
        return 0 * t, 1 + 0 * t, np.zeros((len(t), 2))
    if kind == "slow":                                          # somebody who listens
        shift = np.stack([15 * wave(t, 0.15), 10 * wave(t, 0.2, 2)], 1)
        return 5 * wave(t, 0.2), 1 + 0.06 * wave(t, 0.1, 1), shift
    if kind == "talk":  # a lively speaker: up to 1.7 movements per second
        return (4 * wave(t, 0.5) + 2 * wave(t, 1.1, 1), 1 + 0.04 * wave(t, 0.4, 1),
                np.stack([12 * wave(t, 0.4) + 4 * wave(t, 1.3), 8 * wave(t, 0.6, 2) + 3 * wave(t, 1.7)], 1))
    # comes and goes by 10 % per second, turning back at once, and tilts the head by 8 degrees
    shift = np.stack([10 * wave(t, 0.3), 10 * wave(t, 0.5)], 1)
    return 8 * wave(t, 0.4), 1 + 0.1 * (2 * np.abs(t / 2 % 2 - 1) - 1), shift


MOVEMENTS = "still", "slow", "talk", "lean"


def moved(photo, kind, n, fps, noise=4):
    """n frames (SIZE, SIZE, 3) uint8 of a photo that moves about its eyes, which lie in the upper middle; and
    its crop's quad in each, (n, 4, 2)."""
    points, rng, frames, maps = embed.landmarks(photo), np.random.RandomState(0), [], []
    if points is None:
        raise InputError("no face found in the photo; give a picture with a face seen from the front.")
    E, e = embed.eyes(points)
    size = SIZE / 10 / np.linalg.norm(e)  # eyes a tenth of the frame apart: head and shoulders
    for degrees, scale, shift in zip(*movement(kind, np.arange(n) / fps), strict=True):
        M = cv2.getRotationMatrix2D(tuple(E), degrees, scale * size)
        M[:, 2] += np.array([SIZE / 2, 0.42 * SIZE]) - E + shift
        frame = cv2.warpAffine(photo, M, (SIZE, SIZE), None, cv2.INTER_CUBIC, cv2.BORDER_REFLECT_101)
        frame = frame + noise * rng.standard_normal(frame.shape)
        frames.append(np.clip(frame, 0, 255).round().astype(np.uint8))
        maps.append(M)
    return np.stack(frames), mapped(embed.smooth_quads(points[None]), np.array(maps))


def movements(photo, kinds, seconds, fps, cameras, folder):
    """Print the table of errors, mean / 95th percentile, with all filters, without any, and with one of them
    alone."""
    print("\n| movement | noise, crf | " + " | ".join(WAYS) + " |\n|---|---|" + "---|" * len(WAYS))
    for kind in kinds:
        for noise, crf in cameras:
            frames, truth = moved(photo, kind, round(seconds * fps), fps, noise)
            video = write(folder / "moved.mp4", frames, fps, crf=crf, preset="medium")
            points = embed.track_face(embed.read_video(video, "gray"), fps)[0]
            first, last = np.flatnonzero(np.isfinite(points[:, 0, 0]))[[0, -1]]
            part = slice(first, last + 1)
            quads = [embed.smooth_quads(points[part], fps, sigmas) for sigmas in WAYS.values()]
            off = [errors(q, truth[part]) for q in quads]
            cells = " | ".join(f"{x.mean():.2f} / {np.percentile(x, 95):.2f}" for x in off)
            print(f"| {kind} | {noise}, {crf} | {cells} |", flush=True)


# ------------------------------------------------------------------------------------------------------------
# Hard videos
# ------------------------------------------------------------------------------------------------------------

def row(name, right, line, error=None, ok=None):
    """Print a row of the table; returns whether what came is right."""
    ok = line == right if ok is None else ok
    px = "" if error is None else f"{error:.2f}"
    cells = name, right, "the same" if line == right else line, px, "right" if ok else "WRONG"
    print(f"| {' | '.join(cells)} |", flush=True)
    return ok


def load(path, seconds):
    """A clip of one head -> frame rate; of its first seconds centre squares (n, S, S, 3), and the crops in
    them (n, 4, 2); and whether all of it is read as one clip with a face in every frame."""
    found = embed.survey(path)
    rows = found["frames"][:round(seconds * found["fps"])]
    if rows["clip"].any() or not np.array_equal(rows["index"], np.arange(len(rows))):
        raise InputError(f"{path}: no face in each of the first {seconds:g} s; give a clip without "
                         f"cuts and gaps there.")
    frames = np.stack([frame for _, frame in zip(rows, embed.read_video(path), strict=False)])
    H, W = frames.shape[1:3]
    y, x = max(0, H - W) // 2, max(0, W - H) // 2
    end = found["decoded"] - 1
    right = told(found["fps"], 1, found["decoded"], 0, [(0, end)])
    share = found["found"] / found["decoded"]
    line = told(found["fps"], share, len(found["frames"]), found["cuts"], [(0, end)] * found["clips"])
    ok = row(f"{Path(path).name}, all of it", right, line)
    return found["fps"], frames[:, y:H - y, x:W - x], rows["quad"] - (x, y), ok


def placed(frames, quads, width, height, x=0, y=0, canvas=None):
    """Frames shrunk to width x height, at x, y of a grey canvas (width, height), and the quads there."""
    H, W = frames.shape[1:3]
    out = np.full((len(frames), *(canvas or (width, height))[::-1], 3), GREY, np.uint8)
    for picture, frame in zip(out, frames, strict=True):
        picture[y:y + height, x:x + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    a, b = width / W, height / H                                # pixel centres are whole numbers
    return out, mapped(quads, np.array([[a, 0, a / 2 - 0.5 + x], [0, b, b / 2 - 0.5 + y]]))


def shifted(frames, quads, dx):
    """Frame k moved to the right by dx[k] px; what comes in from beyond the edge is grey."""
    M = np.array([[[1, 0, x], [0, 1, 0]] for x in dx], float)
    size = frames.shape[2], frames.shape[1]
    out = [cv2.warpAffine(f, m, size, borderValue=GREY) for f, m in zip(frames, M, strict=True)]
    return np.stack(out), mapped(quads, M)


def covered(frames, quads, hidden):
    """The frames with the face behind a flat patch where hidden (n,) says so."""
    frames = frames.copy()
    for k in np.flatnonzero(hidden):
        (x, y), half = quads[k].mean(0), 0.4 * np.linalg.norm(quads[k, 3] - quads[k, 0])
        rows, columns = (slice(max(0, int(c - half)), int(c + half)) for c in (y, x))
        frames[k, rows, columns] = frames[k].mean((0, 1))
    return frames


def dark(frames, brightness, noise):
    """As a camera sees a dark room. Frames (n, H, W, 3); noise: standard deviation, of 255."""
    draw = np.random.RandomState(0).standard_normal
    seen = (brightness * f + noise * draw(f.shape) for f in frames)
    return np.stack([np.clip(f, 0, 255).round().astype(np.uint8) for f in seen])


def case(name, frames, quads, fps, seen=None, cuts=(), face=1, limit=LIMIT, slack=0, suffix=".mp4",
         **writing):
    """What a video is and what has to be found in it. frames (n, H, W, 3) with their crops (n, 4, 2). seen:
    (n,), which show the face, None for all. cuts: frames with which a shot begins. face: embed.py's option.
    slack: frames by which a clip's ends may be off. The rest goes to write()."""
    seen = np.ones(len(frames), bool) if seen is None else seen
    return {"name": name, "frames": frames, "quads": quads, "fps": fps, "cuts": list(cuts), "face": face,
            "limit": limit, "slack": slack, "suffix": suffix, "seen": seen, "writing": writing}


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
    for name, gain, plus in (("one frame of flash light", 3, 100), ("one white frame", 0, 255),
                             ("one black frame", 0, 0)):
        frames = A.copy()
        frames[n // 2] = np.clip(gain * A[n // 2].astype(int) + plus, 0, 255)
        yield case(name, frames, Qa, fps, seen=None if gain else t != n // 2)

    # Frames without a face
    for seconds in (0.2, AWAY):
        start, end = (n - round(seconds * fps)) // 2, (n + round(seconds * fps)) // 2
        hidden = (start <= t) & (t < end)
        yield case(f"{seconds:g} s with the face covered", covered(A, Qa, hidden), Qa, fps, seen=~hidden)
    empty = np.where(hidden[:, None, None, None], np.uint8(128), A)
    yield case("2 s of an empty picture", empty, Qa, fps, seen=~hidden, cuts=[start, end])
    ramp = start // 2  # frames in which the head leaves, and comes back
    left = 0.5 - 0.5 * np.cos(np.pi * np.clip(np.minimum(t - start, end - t) / ramp + 1, 0, 1))
    away = shifted(A, Qa, -S * left)
    yield case("head leaves the picture for 2 s", *away, fps, seen=left < 0.25, slack=ramp // 2)

    # Several faces
    both, Qs = placed(B, Qb, S * 3 // 4, S * 3 // 4, S, S // 4, (2 * S, S))  # right of the larger a
    both[:, :, :S] = A
    yield case("two faces side by side", both, Qa, fps)
    yield case("two faces side by side, --face 2", both, Qs, fps, face=2)
    left = 0.5 - 0.5 * np.cos(np.pi * np.clip((t - n // 3) / ramp, 0, 1))  # a goes after a third of the time
    both[:, :, :S], quads = shifted(A, Qa, -S * left)
    yield case("two faces, the larger one leaves", both, Qs, fps)
    yield case("two faces, the larger one leaves, --face 2", both, quads, fps, seen=left < 0.25, face=2,
               slack=ramp // 2)

    # Time
    yield case("half the frame rate", A[::2], Qa[::2], fps / 2)
    blend = np.stack([A[:-1], cv2.addWeighted(A[:-1], 0.5, A[1:], 0.5, 0)], 1).reshape(-1, S, S, 3)
    halfway = np.stack([Qa[:-1], (Qa[:-1] + Qa[1:]) / 2], 1).reshape(-1, 4, 2)
    yield case("twice the frame rate", blend, halfway, 2 * fps)
    yield case("twice the frame rate, every frame twice", A.repeat(2, 0), Qa.repeat(2, 0), 2 * fps)
    kept = (np.random.RandomState(0).uniform(size=n) > 0.3) | (t == 0) | (t == n - 1)
    yield case("variable frame rate", A[kept], Qa[kept], fps, pts=t[kept])
    yield case("Matroska, 29.97 fps", A, Qa, Fraction(30000, 1001), suffix=".mkv")

    # Picture
    for degrees in (90, 180, 270):  # the middle 3/4, turned back, so that the flag makes it upright
        stored = np.rot90(A[:, :, S // 8:S - S // 8], -degrees // 90, (1, 2))
        yield case(f"rotation flag {degrees}", stored, Qa - (S // 8, 0), fps, rotation=degrees)
    yield case("pixels wider than high, 4:3", placed(A, Qa, S * 3 // 4, S)[0], Qa, fps, aspect=Fraction(4, 3))
    yield case("240 lines", *placed(A, Qa, 240, 240, 93, 0, (426, 240)), fps)
    half = placed(A, Qa, 120, 120, 153, 60, (426, 240))
    yield case("240 lines, face half as large", *half, fps, limit=POOR)
    yield case("very dark, 10 %", dark(A, 0.10, 1), Qa, fps, limit=POOR)
    yield case("very dark, 5 %", dark(A, 0.05, 1), Qa, fps, limit=POOR)
    yield case("fog, 15 % of the contrast", (0.15 * A + 100).astype(np.uint8), Qa, fps, limit=POOR)
    yield case("10 bits", A, Qa, fps, pix_fmt="yuv420p10le")
    yield case("odd sizes", A[:, 1:, 1:S - 2], Qa - (1, 1), fps, pix_fmt="yuv444p")


def expected_clips(wanted):
    """Runs of frames with a face (first, last), parted by cuts and by gaps that embed.py does not bridge."""
    found = np.flatnonzero(wanted["seen"])
    shots = np.searchsorted(wanted["cuts"], found, side="right")
    gap = round(embed.GAP * float(wanted["fps"])) + 1
    ends = np.flatnonzero((np.diff(found) > gap) | (np.diff(shots) > 0))
    pairs = zip([0, *ends + 1], [*ends, len(found) - 1], strict=True)
    return [(int(found[a]), int(found[b])) for a, b in pairs]


def told(fps, share, codes, cuts, clips):
    """One line of what was, or should be, found."""
    ranges = " ".join(f"{a}-{b}" for a, b in clips[:4]) + " ..." * (len(clips) > 4)
    cuts = f"{cuts} cut{'s' * (cuts != 1)}"
    return f"{float(fps):.4g} fps, {100 * share:.0f} %, {codes} codes, {cuts}, {ranges}"


def judge(wanted, found):
    """A case and what embed.survey() says of its video -> what was expected and what came, as lines, error,
    verdict."""
    rows, right = found["frames"], expected_clips(wanted)
    slack, share = wanted["slack"], wanted["seen"].mean()
    index, starts = rows["index"], np.flatnonzero(np.diff(rows["clip"])) + 1
    pairs = zip([0, *starts], [*starts, len(rows)], strict=True)
    clips = [(int(index[a]), int(index[b - 1])) for a, b in pairs]
    inside = np.any([(a <= index) & (index <= b) for a, b in right], 0)
    error = float(errors(rows["quad"], wanted["quads"][index])[inside].mean())
    times = wanted["writing"].get("pts")
    codes = sum(b - a + 1 for a, b in right) if times is None else int(times[-1]) + 1
    got = found["found"] / found["decoded"]
    ok = (abs(found["fps"] / float(wanted["fps"]) - 1) < 1e-3 and abs(len(index) - codes) <= 2 * slack
          and abs(got - share) <= MISSED + slack / len(wanted["seen"]) and len(clips) == len(right)
          and np.abs(np.array(clips) - right).max() <= slack and error < wanted["limit"])
    return (told(wanted["fps"], share, codes, len(wanted["cuts"]), right),
            told(found["fps"], got, len(index), found["cuts"], clips), error, bool(ok))


def hard_videos(clips, only, folder):
    """Print the table of those cases of two clips whose names are in the tuple `only`, or have these words;
    returns how many are wrong."""
    (fps, A, Qa, first), (other, B, Qb, second) = clips
    if abs(other / fps - 1) > 1e-3:
        raise InputError(f"the clips have {fps:.4g} and {other:.4g} fps; give two of one frame rate.")
    fps = Fraction(fps).limit_denominator(1001)
    n, size = min(len(A), len(B)) // 2 * 2, min(A.shape[1], B.shape[1]) // 16 * 16
    if n < (AWAY + 1) * fps:
        raise InputError(f"{n} frames are too few: {AWAY:g} s will be without a face; give longer clips.")
    verdicts = [ok for ok in (first, second) if ok is not None]
    for wanted in cases(*placed(A[:n], Qa[:n], size, size), *placed(B[:n], Qb[:n], size, size), fps):
        name = wanted["name"]
        if name not in only if isinstance(only, tuple) else only not in name:
            continue
        video = folder / ("".join(c if c.isalnum() else "_" for c in name) + wanted["suffix"])
        write(video, wanted["frames"], wanted["fps"], **wanted["writing"])
        try:
            right, line, error, ok = judge(wanted, embed.survey(video, face=wanted["face"]))
        except InputError as refusal:
            right, line, error, ok = "", str(refusal), np.nan, False
        verdicts.append(row(name, right, line, error, ok))
    print(f"\n{sum(verdicts)} of {len(verdicts)} right")
    return verdicts.count(False)


def main(args):
    if args.clips and len(args.clips) != 2:
        raise InputError(f"{len(args.clips)} clip given; hard videos are made of two.")
    photo = embed.read_picture(ASSETS / "astronaut.jpg")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(args.keep or folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not args.only:
            cameras = ((4, 23), (10, 30)) if args.full else ((4, 23),)  # a good camera, and a poor one
            kinds, seconds = (MOVEMENTS, 8) if args.full else (("talk",), 2)
            print(f"Error of the crop in px of {CROP}, mean / 95th percentile; {seconds} s at 25 fps")
            movements(photo, kinds, seconds, 25, cameras, folder)

        print("\n| case | expected | found | px | |\n|---|---|---|---|---|", flush=True)
        seconds = 6.0 if args.full else 3.2
        if args.clips:
            clips = [load(path, seconds) for path in args.clips]
        else:
            photo_clip = moved(photo, "talk", round(seconds * 25), 25)
            clips = [load(ASSETS / "demo.mp4", seconds), (25.0, *photo_clip, None)]
        return hard_videos(clips, args.only or ("" if args.full else SMALL), folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="two videos of one head each, seen all the "
                        "time; else the demo, and a photograph that moves")
    parser.add_argument("--full", action="store_true", help="all movements and cases (5 minutes)")
    parser.add_argument("--only", metavar="WORDS", help="only the hard videos whose name has these words")
    parser.add_argument("--keep", metavar="FOLDER", help="where the videos are kept; without it they are not")
    try:
        sys.exit(1 if main(parser.parse_args()) else 0)
    except InputError as error:
        parser.exit(2, f"crop.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "crop.py: interrupted.\n")
