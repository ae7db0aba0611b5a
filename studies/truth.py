"""Drawn heads, whose every parameter is known: is their motion in the codes, and does it survive transfer?

    python -m studies.truth                 # small, under a minute on two cores
    python -m studies.truth --full          # as recorded in docs/experiments.md
    python -m studies.truth --motion motion.pt

Codes. Heads are drawn talking, as videos in which they move about, encoded as H.264 and embedded as
embed.py embeds any video. Beside that the same motion is encoded without any of it: drawn straight into the
crop that the image model was trained on ("drawn"), and cut out of the undamaged frames where the eyes are
known to be ("true eyes"). Roughness is the energy of the codes' second differences over that of their
first: 3 for white noise, 0 for steady motion. Motion is read from 32 principal components of the codes by
ridge regression, learnt from all sentences of an actor but one and judged on that one. R2 is the share of
the motion that is told rightly, 0 what its mean would tell, and less is worse than that. The control has
the codes shifted by half of the sentence.

Transfer. A ridge regression reads the parameters back from pictures of 32 px. It reads pixels: a linear
function of codes would find every motion kept by the offset trick, whatever it looks like. It learns from
pictures of the image model, which was taught G(M(z)) = draw(params(z)), and uses only what it can read in
heads that it has not seen.

- Identity drift: standard deviation over a clip of the identity parameters, root mean square over the
  parameters, in % of their standard deviation among heads. 0 is best.
- Motion kept, r and R2: correlation, and 1 - squared error over variance (means removed, so that the size
  of the movement counts, too), between an actor's motion parameters and the training actor's in the same
  motion; mean over parameters and clips. 1 is best.
- Perfect transfer: what drawn actors performing one drawn motion score, encoded and rendered: the reader's
  own error.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import embed
from models import InputError, load_image_model
from pretrain import faces
from sample import load_motion, sample
from transfer import VideoWriter, move, pictures_at_once, random_actor, render

# All numbers are ours. Actors (seeds), sentences, their seconds and the size of the frames; heads that the
# reader learns from (with 5,500 its R2 are 0.02 higher than with 2,500) and is judged on; clips of transfer
FULL = {"seeds": (8, 6, 4), "voices": 4, "seconds": 10.0, "size": 512,
        "heads": 4000, "held_out": 300, "clips": 12, "frames": 400, "ceiling": 6}
SMALL = {"seeds": (8,), "voices": 3, "seconds": 3.0, "size": 192,
         "heads": 800, "held_out": 40, "clips": 2, "frames": 80, "ceiling": 2}
FPS = 25
COMPONENTS = 32                         # as many as the motion model has
ALPHAS = np.logspace(-1, 4, 11)         # of the ridge on codes, chosen on the training part
SIDE = 32                               # px of the picture that the reader sees; at 64 no better
RIDGE = 3.0                             # weight of its ridge; 10 loses 0.02
LEAST = 0.5                             # R2 on unseen heads below which a parameter is not read at all
BATCH = 20                              # heads drawn at a time
SPOKEN = [name for name in faces.MOTION if name != "wink"]                      # talk() never winks
CODES = "drawn", "true eyes", "embedded", "control"
FIRST = len(faces.IDENTITY)                                                     # of the motion parameters


def r2(truth, read):
    """Share of the variance of truth (n, P) that read (n, P) tells, per parameter: (P,)."""
    return 1 - ((truth - read) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)


def encoded(model, crops):
    """Pictures (size, size, 3) uint8, any number -> codes (n, L, D)."""
    return torch.cat([model.encode(embed.to_network(batch)).cpu() for batch in embed.in_batches(crops, 16)])


def rendered(model, w):
    """Codes (n, L, D) -> what the reader sees, (n, 3 SIDE^2)."""
    frames = render(model, w.to(model.device), pictures_at_once(model))
    small = [cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).reshape(len(small), -1) / 255


# ------------------------------------------------------------------------------------------------------------
# Codes
# ------------------------------------------------------------------------------------------------------------

def true_quad(p, size, place):
    """The crop of draw_scene(p, size, **place), if dlib saw the eyes where they are drawn: (4, 2)."""
    corners = faces.eye_corners(p, size, **place)                               # (4, 2)
    left, right = corners[:2].mean(0), corners[2:].mean(0)
    e = right - left
    distance = faces.DLIB_EYES * np.linalg.norm(e)
    return embed.crop_quad((left + right) / 2, np.arctan2(e[1], e[0]), distance)


def sentence(model, seed, voice, seconds, size, folder):
    """One actor saying one thing: motion (n, len(SPOKEN)), {way: codes (n, L, D)}."""
    n, p = round(seconds * FPS), faces.actor(seed)
    motion, place = faces.talk(n, FPS, voice)
    video = Path(folder) / f"{seed}-{voice}.mp4"
    drawn, quads, scenes = [], [], []
    with VideoWriter(video, FPS) as writer:
        for k in range(n):
            p[FIRST:FIRST + len(faces.MOTION)] = motion[k]
            where = {name: float(track[k]) for name, track in place.items()}
            scenes.append(faces.draw_scene(p, size, **where))
            writer.write(scenes[-1])
            drawn.append(faces.draw(p, model.size))
            quads.append(true_quad(p, size, where))

    m = embed.oversampling(np.array(quads), model.size)
    cut = (embed.warp(scene, quad, model.size, m) for scene, quad in zip(scenes, quads, strict=True))
    rows = embed.survey(video)["frames"]
    if rows["clip"].any() or not np.array_equal(rows["index"], np.arange(n)):
        raise InputError(f"embed.py does not find the face of seed {seed}, voice {voice} in every frame.")
    codes = {"drawn": encoded(model, drawn), "true eyes": encoded(model, cut),
             "embedded": encoded(model, embed.crops(video, rows, model.size))}
    codes["control"] = codes["embedded"].roll(n // 2, 0)
    return motion[:, [faces.MOTION.index(name) for name in SPOKEN]], {k: w.numpy() for k, w in codes.items()}


def roughness(codes):
    """Energy of the second over that of the first differences of codes (n, L, D)."""
    return float((np.diff(codes, 2, axis=0) ** 2).sum() / (np.diff(codes, axis=0) ** 2).sum())


def read_codes(codes, motion, unseen):
    """Motion (n, P) read from unseen codes (n, L, D) by what was learnt from others."""
    reader = make_pipeline(PCA(COMPONENTS, random_state=0), StandardScaler(), RidgeCV(ALPHAS))
    return reader.fit(codes.reshape(len(codes), -1), motion).predict(unseen.reshape(len(unseen), -1))


def codes_study(model, s):
    """{way: (roughness, {parameter: R2})}, mean over actors and sentences."""
    rough, truth, found = {way: [] for way in CODES}, [], {way: [] for way in CODES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(s["seeds"], desc="codes", unit="actor"):
            said = [sentence(model, seed, voice, s["seconds"], s["size"], folder)
                    for voice in range(s["voices"])]
            for k, (motion, codes) in enumerate(said):                          # judged on this one
                others = said[:k] + said[k + 1:]
                learnt = np.concatenate([m for m, _ in others])
                truth.append(motion - motion.mean(0))                       # each has its own mean
                for way in CODES:
                    read = read_codes(np.concatenate([w[way] for _, w in others]), learnt, codes[way])
                    found[way].append(read - motion.mean(0))
                    rough[way].append(roughness(codes[way]))
    truth = np.concatenate(truth)
    shares = {way: r2(truth, np.concatenate(found[way])) for way in CODES}
    return {way: (float(np.mean(rough[way])), dict(zip(SPOKEN, shares[way], strict=True)))
            for way in CODES}


# ------------------------------------------------------------------------------------------------------------
# Transfer
# ------------------------------------------------------------------------------------------------------------

def fit_reader(model, s):
    """The regressor, with R2 and root mean square error (Z,) on unseen drawn heads, encoded and rendered as
    actors are; parameters run from -1 to 1. "spread": their standard deviation."""
    rng, x, y = np.random.RandomState(0), [], []
    for start in tqdm(range(0, s["heads"], 100), desc="reader", unit="100 heads"):
        z = rng.standard_normal((min(100, s["heads"] - start), faces.Z))
        x.append(rendered(model, model.map(torch.from_numpy(z).float())))
        y.append(faces.params(z))
    ridge = Ridge(RIDGE, solver="cholesky").fit(np.concatenate(x), np.concatenate(y).astype(np.float64))

    truth, read = [], []
    for _ in tqdm(range(0, s["held_out"], BATCH), desc="unseen heads", unit=f"{BATCH} heads"):
        p = faces.params(rng.standard_normal((BATCH, faces.Z)))
        truth.append(p)
        codes = encoded(model, [faces.draw(q, model.size) for q in p])
        read.append(ridge.predict(rendered(model, codes)))
    truth, read = np.concatenate(truth).astype(np.float64), np.concatenate(read)
    error = np.sqrt(((truth - read) ** 2).mean(0))
    return {"predict": ridge.predict, "r2": r2(truth, read), "error": error, "spread": truth.std(0)}


def readable(reader, kind):
    """Numbers of the parameters of a kind (faces.IDENTITY or faces.MOTION) that the reader can read."""
    return [k for k, name in enumerate(faces.NAMES) if name in kind and reader["r2"][k] >= LEAST]


def drift(read, reader):
    """Identity drift in % of parameters read from a clip, (T, Z)."""
    k = readable(reader, faces.IDENTITY)
    return 100 * float(np.sqrt(np.mean((read[:, k].std(0) / reader["spread"][k]) ** 2)))


def kept(read, own, reader):
    """Motion kept, r and R2, between parameters read from two clips, (T, Z)."""
    a, b = (x[:, readable(reader, faces.MOTION)] for x in (read, own))
    r = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    return float(np.mean(r)), float(np.mean(r2(b - b.mean(0), a - a.mean(0))))


def drawn_clips(model, reader, s):
    """Parameters read from drawn actors that perform one drawn motion: [(T, Z)]."""
    motion, clips = faces.talk(8 * 50, FPS, 1)[0][::8], []
    for k in tqdm(range(s["ceiling"]), desc="perfect transfer", unit="clip"):
        p = np.repeat(faces.actor(100 + k, 1.0)[None], len(motion), 0)
        p[:, FIRST:FIRST + motion.shape[1]] = motion
        codes = encoded(model, [faces.draw(q, model.size) for q in p])
        clips.append(reader["predict"](rendered(model, codes)))
    return clips


def raw_actor(model, seed):
    """Code (L, D) of random_actor's person as the mapping network gives it: not rendered, not embedded."""
    z = np.random.RandomState(seed).standard_normal((1, model.Z))
    return model.map(torch.from_numpy(z).float())[0]


WAYS = {"offset trick": ("offset", random_actor), "naive shift": ("naive", random_actor),   # sec. 3, Fig. 4
        "offset trick, not re-embedded": ("offset", raw_actor)}


def transfer_study(model, generator, pca, s):
    """The reader, and {row: {"drift", "r", "R2"}: [a value per clip]}; clip k: random actor k."""
    reader = fit_reader(model, s)
    if not (readable(reader, faces.IDENTITY) and readable(reader, faces.MOTION)):
        raise InputError(f"nothing can be read from pictures of {model.name}; name a model of drawn faces.")
    rows = {name: {"drift": [], "r": [], "R2": []} for name in ("training actor", *WAYS, "perfect transfer")}

    def add(row, read, own=None):
        rows[row]["drift"].append(drift(read, reader))
        for name, value in zip(("r", "R2"), kept(read, own, reader) if own is not None else (), strict=False):
            rows[row][name].append(value)

    for k in tqdm(range(s["clips"]), desc="transfer", unit="clip"):
        w = torch.from_numpy(np.concatenate(list(sample(generator, s["frames"], k))))   # (T, L, D)
        own = reader["predict"](rendered(model, w))
        add("training actor", own)
        for name, (mode, actor) in WAYS.items():
            moved = move(w, actor(model, k), pca, w[0], mode)
            add(name, reader["predict"](rendered(model, moved)), own)
    clips = drawn_clips(model, reader, s)
    for clip in clips:
        add("perfect transfer", clip, None if clip is clips[0] else clips[0])
    return reader, rows


# ------------------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------------------

def main(args):
    s = FULL if args.full else SMALL
    generator, meta = load_motion(args.motion)
    model = load_image_model(meta["model"]["name"])
    if not model.has_actors or model.encoder is None or model.Z != faces.Z:
        raise InputError(f"{model.name} does not draw the faces of pretrain/faces.py, so no truth is known.")

    codes = codes_study(model, s)
    print(f"Codes: {len(s['seeds'])} actors, {s['voices']} sentences of {s['seconds']:g} s, {s['size']} px\n")
    print("| | " + " | ".join(CODES) + " |\n|---|" + "---|" * len(CODES))
    print("| roughness | " + " | ".join(f"{rough:.2f}" for rough, _ in codes.values()) + " |")
    for name in SPOKEN:
        print(f"| R2 of {name} | " + " | ".join(f"{found[name]:.2f}" for _, found in codes.values()) + " |")
    means = [np.mean([*found.values()]) for _, found in codes.values()]
    print("| R2, mean | " + " | ".join(f"{value:.2f}" for value in means) + " |")

    pca = {name: meta["pca"][name].float() for name in ("mean", "basis")}
    reader, rows = transfer_study(model, generator, pca, s)
    print(f"\nTransfer: {s['clips']} clips of {s['frames']} frames; a reader of {s['heads']} heads\n")
    print("| | identity drift, % | motion kept, r | motion kept, R2 |\n|---|---|---|---|")
    for name, values in rows.items():
        cells = [f"{np.mean(column):.3f}" if column else "-" for column in values.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    ahead = sum(a > b for a, b in zip(rows["offset trick"]["r"], rows["naive shift"]["r"], strict=True))
    print(f"\nThe offset trick keeps more (r) than the naive shift for {ahead} of {s['clips']} actors.")

    print(f"\nThe reader on {s['held_out']} unseen heads\n\n| parameter | R2 | error |\n|---|---|---|")
    for k in [*readable(reader, faces.IDENTITY), *readable(reader, faces.MOTION)]:
        print(f"| {faces.NAMES[k]} | {reader['r2'][k]:.2f} | {reader['error'][k]:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--motion", metavar="FILE", help="default: motion.pt, or assets/motion.pt")
    parser.add_argument("--full", action="store_true", help="the recorded result, instead of a small one")
    try:
        main(parser.parse_args())
    except InputError as error:
        sys.exit(f"truth.py: {error}")
