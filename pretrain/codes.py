"""How much of a drawn head's true motion is in the codes that embed.py makes, and how smooth are they?

    python -m pretrain.codes                                  # the tables of the README
    python -m pretrain.codes --seeds 8 --voices 2 --seconds 4 --size 256

Heads are drawn talking, as videos in which they move about, encoded as H.264, and embedded as embed.py embeds any video. Beside
that, the same motion is encoded without any of it: drawn straight into the crop that the image model was trained on (`drawn`),
and cut out of the undamaged frames where the eyes are known to be (`true eyes`).
Smoothness is the energy of the codes' second differences over that of their first: 3 for white noise, 0 for steady motion.
Motion is read from the codes by ridge regression on their 32 principal components, learnt from all voices of an actor but one and
judged on that one: other sentences, turns and blinks. R2 is the share of the motion that is told rightly, 0 what its mean would
tell, and less is worse than that. The control has the codes shifted by 2 seconds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                   # lets `python pretrain/codes.py` find its siblings
import embed
from models import InputError, load_image_model
from pretrain import faces
from transfer import VideoWriter

# All numbers below are ours
FPS = 25
COMPONENTS = 32                         # as many as the motion model has
ALPHAS = np.logspace(-1, 4, 11)         # of the ridge, chosen on the training part
LAGS = 5                                # frames by which the codes are looked for earlier or later
SMOOTH = 0.04                           # seconds: embed.py --smooth-codes
SHIFT = 2.0                             # seconds by which the control is wrong
READABLE = 0.6                          # correlation from which a lag says something
PARAMETERS = [name for name in faces.MOTION if name != "wink"]  # talk() never winks
WAYS = "drawn", "true eyes", "embedded", "smoothed", "control"


def true_quad(p, size, place):
    """The crop of draw_scene(p, size, **place), if dlib saw the eyes where they are drawn: (4, 2)."""
    corners = faces.eye_corners(p, size, **place)                                               # (4, 2)
    left, right = corners[:2].mean(0), corners[2:].mean(0)
    e = right - left
    return embed.crop_quad((left + right) / 2, np.arctan2(e[1], e[0]), faces.DLIB_EYES * np.linalg.norm(e))


def encoded(model, crops):
    """Pictures (size, size, 3) uint8, any number -> codes (n, L, D)."""
    return np.concatenate([model.encode(embed.to_network(batch)).float().cpu().numpy() for batch in embed.in_batches(crops, 16)])


def measure(model, seed, voice, seconds, size, folder):
    """One actor saying one thing: motion (n, len(PARAMETERS)), {way: codes (n, L, D)}."""
    n, p = round(seconds * FPS), faces.actor(seed)
    motion, place = faces.talk(n, FPS, voice)
    video, first = Path(folder) / f"{seed}-{voice}.mp4", len(faces.IDENTITY)
    drawn, quads, scenes = [], [], []
    with VideoWriter(video, FPS) as writer:
        for k in range(n):
            p[first:first + len(faces.MOTION)] = motion[k]
            where = {name: float(track[k]) for name, track in place.items()}
            scene = faces.draw_scene(p, size, **where)
            writer.write(scene)
            drawn.append(faces.draw(p, model.size))
            scenes.append(scene)
            quads.append(true_quad(p, size, where))
    m = embed.oversampling(np.array(quads), model.size)
    codes = {"drawn": encoded(model, drawn),
             "true eyes": encoded(model, (embed.warp(scene, quad, model.size, m) for scene, quad in zip(scenes, quads)))}
    rows = embed.survey(video)["frames"]
    if rows["clip"].any() or not np.array_equal(rows["index"], np.arange(n)):
        raise InputError(f"seed {seed}, voice {voice}: embed.py does not find the face in every frame; take another --seeds or "
                         f"a larger --size.")
    codes["embedded"] = encoded(model, embed.crops(video, rows, model.size))
    codes["smoothed"] = codes["embedded"].copy()
    embed.smooth_codes(codes["smoothed"], [0] * n, SMOOTH * FPS)
    codes["control"] = np.roll(codes["embedded"], round(SHIFT * FPS), 0)
    return motion[:, [faces.MOTION.index(name) for name in PARAMETERS]], codes


def roughness(codes):
    """Energy of the second over that of the first differences of codes (n, L, D)."""
    return float((np.diff(codes, 2, axis=0) ** 2).sum() / (np.diff(codes, axis=0) ** 2).sum())


def read(train_codes, train_motion, codes):
    """Motion (n, P) read from codes (n, L, D) by what was learnt from others."""
    reader = make_pipeline(PCA(COMPONENTS, random_state=0), StandardScaler(), RidgeCV(ALPHAS))
    return reader.fit(train_codes.reshape(len(train_codes), -1), train_motion).predict(codes.reshape(len(codes), -1))


def lag(x, y):
    """Frames by which x is later than y; both are lists of (n,) tracks. To a fraction of a frame, by a parabola."""
    def match(k):
        a = np.concatenate([u[LAGS + k:len(u) - LAGS + k] for u in x])
        return np.corrcoef(a, np.concatenate([v[LAGS:len(v) - LAGS] for v in y]))[0, 1]

    c = [match(k) for k in range(-LAGS, LAGS + 1)]
    k = int(np.argmax(c))
    between = 0 < k < 2 * LAGS
    return k - LAGS + (0.5 * (c[k - 1] - c[k + 1]) / (c[k - 1] - 2 * c[k] + c[k + 1]) if between else 0.0)


def main(args):
    if args.voices < 2 or args.seconds * FPS < COMPONENTS + 2 * LAGS + 2:
        raise InputError(f"--voices {args.voices} of {args.seconds:g} s are too few to learn from some and judge on another; "
                         f"give 2 or more of 2 seconds or more.")
    if args.size % 8 or not 128 <= args.size <= 2048:
        raise InputError(f"--size {args.size} is no size of drawn faces; give a multiple of 8 from 128 to 2048.")
    model = load_image_model(args.model)
    if model.encoder is None:
        raise InputError(f"{args.model} has no encoder; name a model of drawn faces that has one.")
    if args.size < model.size:
        raise InputError(f"--size {args.size} is less than the {model.size} px of {args.model}; give more.")
    rough, truth, found = {way: [] for way in WAYS[:-1]}, [], {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(args.seeds, unit="actor"):
            said = [measure(model, seed, voice, args.seconds, args.size, folder) for voice in range(args.voices)]
            for way in rough:
                rough[way].append([roughness(codes[way]) for _, codes in said])
            for k, (motion, codes) in enumerate(said):          # judged on this one, learnt from the others
                others = [other for j, other in enumerate(said) if j != k]
                truth.append(motion)
                for way in WAYS:
                    found[way].append(read(np.concatenate([c[way] for _, c in others]), np.concatenate([m for m, _ in others]),
                                           codes[way]))
    n = sum(map(len, truth))
    print(f"{len(args.seeds)} actors, {args.voices} voices of {args.seconds:g} s, {args.size} px, {FPS} fps: {n} frames, each "
          f"read by what was learnt from the other voices of its actor ({n // len(truth) * (args.voices - 1)} frames)\n")
    print(f"{'smoothness':12s}" + "".join(f"{way:>12s}" for way in rough))
    for row, seed in enumerate(args.seeds):
        print(f"{f'actor {seed}':12s}" + "".join(f"{np.mean(rough[way][row]):12.2f}" for way in rough))
    print(f"{'mean':12s}" + "".join(f"{np.mean(rough[way]):12.2f}" for way in rough))
    print(f"\n{'held-out R2':12s}" + "".join(f"{way:>12s}" for way in WAYS) + "   embedded: correlation, lag in frames")
    table = []
    for j, name in enumerate(PARAMETERS):
        y = [motion[:, j] - motion[:, j].mean() for motion in truth]            # every sentence has its own mean
        r2 = []
        for way in WAYS:
            error = np.concatenate([x[:, j] - motion[:, j] for x, motion in zip(found[way], truth)])
            r2.append(1 - (error ** 2).sum() / (np.concatenate(y) ** 2).sum())
        x = [part[:, j] - part[:, j].mean() for part in found["embedded"]]
        correlation = np.corrcoef(np.concatenate(x), np.concatenate(y))[0, 1]
        table.append((*r2, correlation))
        late = f"{lag(x, y):+13.2f}" if correlation > READABLE else f"{'-':>13s}"
        print(f"{name:12s}" + "".join(f"{value:12.2f}" for value in r2) + f"{correlation:14.2f}{late}")
    print(f"{'mean':12s}" + "".join(f"{value:12.2f}" for value in np.mean(table, 0)[:-1]) + f"{np.mean(table, 0)[-1]:14.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="faces128", help="image model of drawn faces")
    parser.add_argument("--seeds", type=int, nargs="+", default=[8, 6, 4], help="who is drawn")
    parser.add_argument("--voices", type=int, default=4, help="sentences of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each sentence")
    parser.add_argument("--size", type=int, default=512, help="side of the frames in pixels")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"codes.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "codes.py: interrupted.\n")
