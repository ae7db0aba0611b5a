"""Rendered heads, whose every parameter is known: what do pictures and codes keep of them, and transfer?

    python -m studies.truth                 # small, two minutes on two cores
    python -m studies.truth --full          # as recorded in docs/experiments.md
    python -m studies.truth --motion motion.pt

Needs pretrain/requirements.txt, as it renders people whom neither the image model nor the readers have seen.

Pictures. Renders beside the image model's pictures of them, through z and through the encoder. Sharpness:
squared Laplacian over the render's, in boxes round eyes and mouth, and in hair two pixels and more from its
outline. By dlib: distance of descriptors (another person: 0.6 or more), correlation of what faces do.

Truth, read back. R2 is the share of a parameter's variance that is told rightly, 0 what its mean would tell.
Pictures are read by small networks. One learns from renders: what it tells in them can be told. One learns
from the image model's pictures, of z and of renders: what it cannot tell, the image model has lost. Codes are
read by ridge regression. Error: root mean square through the encoder, in degrees or weight of the face unit.

Transfer. Read from pictures, too: a linear function of codes would find every motion kept by the offset
trick, whatever it looks like. Counted is what can be read through the encoder.

- Identity drift: standard deviation in a clip of the person's parameters, root mean square over them, in % of
  their standard deviation among people. 0 is best.
- Motion kept, r and R2: of an actor's motion parameters with the training actor's in the same motion (in R2
  less their means, so that the size of movements counts), mean over parameters and clips. 1 is best.
- Perfect transfer: what rendered actors of one motion score through the encoder, the reader's own error.
"""

import argparse

import cv2
import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import embed
import evaluate
from models import InputError, load_image_model
from pretrain import heads, image_model
from sample import load_motion, sample
from transfer import move, pictures_at_once, random_actor, render

# All numbers are ours. What the readers learn from, renders and pictures of z; steps of a network; heads that
# are judged; clips of transfer, each of another random actor, their frames; perfect transfer: actors, every
# which frame
FULL = {"heads": 2500, "drawn": 4000, "steps": 3000, "held_out": 300,
        "clips": 20, "frames": 200, "ceiling": (4, 8)}
SMALL = {"heads": 120, "drawn": 360, "steps": 200, "held_out": 24,
         "clips": 2, "frames": 50, "ceiling": (2, 32)}
# The first of these people; the image model saw those below 10,000
HELD_OUT, LEARNT, DRAWN = 1_000_000, 2_000_000, 3_000_000
SIDE = 80                                   # px of both pictures that the network sees
FACE = (5 / 16, 15 / 16), (3 / 16, 13 / 16) # rows, columns of the face, in sides of the picture
BATCH, RATE, DECAY, DROPOUT = 64, 2e-3, 0.02, 0.3
ALPHAS = np.logspace(1, 5, 9)               # of the ridge on codes, for each parameter its own
LEAST = 0.5                                 # R2 below which a parameter is not read at all
MARGIN = 0.02                               # round the boxes of eyes and mouth, in sides of the picture
PERSON, MOTION = range(heads.PERSON), range(heads.MOTION, heads.Z)
# Degrees, or weight of the face unit, of 1 in z; what a mirror turns round
SCALE = {**heads.ANGLES, **{name: along[name] for name, along in heads.ALONG.items()}}
MIRROR = torch.tensor([-1.0 if name in ("yaw", "roll", "gaze_x", "hair_part", "key_light") else 1.0
                       for name in heads.NAMES])


def r2(truth, read):
    """Share of the variance of truth (n, P) that read (n, P) tells, per parameter: (P,)."""
    return 1 - ((truth - read) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)


# Pictures ---------------------------------------------------------------------------------------------------
class Studio(heads.Studio):
    """Keeps where hair is in the last render."""

    def develop(self, image, numbers, *rest):
        self.is_hair = abs(image[..., 7] - numbers["hair"]) < 0.01                      # (size, size)
        return super().develop(image, numbers, *rest)


def rendered(z, size, what):
    """z (n, Z) -> pictures (n, size, size, 3) uint8; where eyes, mouth and hair are, (n, size, size) each."""
    studio, pictures = Studio(), []
    masks = {name: np.zeros((len(z), size, size), bool) for name in ("eyes", "mouth", "hair")}
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    for k in tqdm(range(len(z)), desc=what, unit="head"):
        picture, boxes = studio.render(z[k], size, seed=k)
        pictures.append(picture)
        for name, (x0, y0, x1, y1) in zip(("eyes", "eyes", "mouth"), boxes):
            masks[name][k] |= (abs(x - (x0 + x1) / 2) < (x1 - x0) / 2 + MARGIN) & \
                              (abs(y - (y0 + y1) / 2) < (y1 - y0) / 2 + MARGIN)
        masks["hair"][k] = cv2.erode(studio.is_hair.astype(np.uint8), np.ones((5, 5)))
    return np.stack(pictures), masks


def shown(model, w):
    """Pictures (n, size, size, 3) uint8 of codes w (n, L, D)."""
    return render(model, w.to(model.device), pictures_at_once(model))


def encoded(model, pictures):
    """Codes (n, L, D) of pictures (n, size, size, 3) uint8."""
    batches = map(embed.to_network, embed.in_batches(pictures, 16))
    return torch.cat([model.encode(batch).cpu() for batch in batches])


@torch.no_grad()
def through_z(model, u):
    """Pictures (n, size, size, 3) of the image model for u (n, Z), in any motion. Its file draws motion near
    rest (heads.CALM), which is undone, and learned without the PixelNorm that begins its mapping network."""
    u = torch.from_numpy((u - heads.CALM[1]) / heads.CALM[0]).to(model.device)
    return shown(model, model.generator.style[1:](u)[:, None].expand(-1, model.L, -1))


def seen(picture):
    """What dlib sees: {measure of the face: value}, descriptor (128,); or None."""
    big = cv2.resize(picture, (evaluate.JUDGED_SIDE,) * 2, interpolation=cv2.INTER_CUBIC)
    points = embed.landmarks(big)
    if points is not None:
        return evaluate.face_measures(points), evaluate.descriptor(big, points)


def picture_study(real, masks, made):
    """Of pictures `made` {row: (n, size, size, 3)} beside renders: {row: {measure: value}}."""
    faces = [seen(p) for p in real]
    table = {"renders": {"faces that dlib finds, %": 100 * np.mean([face is not None for face in faces])}}
    for row, pictures in made.items():
        table[row] = {"PSNR, dB": np.mean([embed.psnr(*pair) for pair in zip(real, pictures)])}
        for name, mask in masks.items():
            table[row][f"sharpness, {name}"] = image_model.sharpness(real, pictures, mask)
        found = [seen(p) for p in tqdm(pictures, desc=row, unit="head")]
        both = [pair for pair in zip(faces, found) if None not in pair]
        table[row]["identity distance"] = np.mean([np.linalg.norm(a[1] - b[1]) for a, b in both])
        for name in image_model.MEASURES:
            r = np.corrcoef([(a[0][name], b[0][name]) for a, b in both], rowvar=False)[0, 1]
            table[row][f"{name.replace('_', ' ')}, r"] = r
        table[row]["faces that dlib finds, %"] = 100 * np.mean([face is not None for face in found])
    return table


# Truth, read back -------------------------------------------------------------------------------------------
def views(pictures):
    """What the network sees: face and whole, (n, 6, SIDE, SIDE) uint8."""
    (top, bottom), (left, right) = (np.round(np.array(FACE) * pictures.shape[1]).astype(int))
    both = (np.dstack([cv2.resize(view, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                       for view in (p[top:bottom, left:right], p)]) for p in pictures)
    return torch.from_numpy(np.stack(list(both))).permute(0, 3, 1, 2).contiguous()


def picture_reader(pictures, z, steps):
    """A network that has learned z (n, Z) of pictures: pictures -> z."""
    torch.manual_seed(0)
    layers, widths = [], (6, 16, 32, 64, 64)
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]              # SIDE to SIDE / 16
    layers += [nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(64 * (SIDE // 16) ** 2, 128), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(128, z.shape[1])).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    x, z = views(pictures), torch.from_numpy(z)
    mean, std = z.mean(0), z.std(0)

    def forward(x):
        return network((x / 127.5 - 1).contiguous(memory_format=torch.channels_last))

    for _ in tqdm(range(steps), desc="reader", unit="step"):
        k, mirrored = torch.randint(len(x), (BATCH,)), torch.rand(BATCH, 1) < 0.5
        some = torch.where(mirrored[..., None, None], x[k].flip(3), x[k])
        aim = (z[k] - mean) / std
        loss = F.mse_loss(forward(some), torch.where(mirrored, aim * MIRROR, aim))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()

    @torch.no_grad()
    def read(pictures):
        both = [(forward(x) + forward(x.flip(3)) * MIRROR) / 2 for x in views(pictures).split(BATCH)]
        return (torch.cat(both) * std + mean).numpy()

    return read


def reading_study(model, s):
    """The table of picture_study(), {what is read: R2 (Z,)}, and the reader of the image model's pictures:
    "read", its "r2" and "error" (Z,) through the encoder, "spread", the standard deviation of z."""
    u_learnt, u_drawn, u = (np.stack([heads.sample_frame(first + k, 0) for k in range(s[n])]) for first, n in
                            ((LEARNT, "heads"), (DRAWN, "drawn"), (HELD_OUT, "held_out")))
    z, truth = heads.params(u_learnt), heads.params(u)
    learnt, _ = rendered(z, model.size, "heads to learn from")
    real, masks = rendered(truth, model.size, "heads to judge on")
    w, codes = encoded(model, learnt), encoded(model, real)
    made = {"through z": through_z(model, u), "through the encoder": shown(model, codes)}

    read_render = picture_reader(learnt, z, s["steps"])
    read = picture_reader(np.concatenate([shown(model, w), through_z(model, u_drawn)]),
                          np.concatenate([z, heads.params(u_drawn)]), s["steps"])
    ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True))
    ridge.fit(w.flatten(1).numpy(), z.astype(np.float64))
    found = {"renders": read_render(real), **{row: read(pictures) for row, pictures in made.items()},
             "codes": ridge.predict(codes.flatten(1).numpy())}
    shares = {source: r2(truth, values) for source, values in found.items()}
    through = found["through the encoder"]
    reader = {"read": read, "r2": shares["through the encoder"], "spread": truth.std(0),
              "error": np.sqrt(((truth - through) ** 2).mean(0))}
    return picture_study(real, masks, made), shares, reader


def readable(shares, some):
    """Those of the parameters `some` that can be read, by their R2 (Z,)."""
    return [k for k in some if shares[k] >= LEAST]


# Transfer ---------------------------------------------------------------------------------------------------
def drift(read, reader):
    """Identity drift in % of parameters read from a clip, (T, Z)."""
    k = readable(reader["r2"], PERSON)
    return 100 * float(np.sqrt(np.mean((read[:, k].std(0) / reader["spread"][k]) ** 2)))


def kept(read, own, reader):
    """Motion kept, r and R2, between parameters read from two clips, (T, Z)."""
    a, b = (x[:, readable(reader["r2"], MOTION)] for x in (read, own))
    r = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T)]
    return float(np.mean(r)), float(np.mean(r2(b - b.mean(0), a - a.mean(0))))


def perfect_clips(model, reader, actors, every):
    """Parameters read from rendered actors that perform one motion, through the encoder: [(T, Z)]."""
    said, clips = heads.talk(400, 1)[0][::every], []
    for person in heads.params(heads.people(actors, seed=100)):
        z = np.column_stack([np.tile(person[:heads.MOTION], (len(said), 1)), said])
        pictures, _ = rendered(z, model.size, "perfect transfer")
        clips.append(reader["read"](shown(model, encoded(model, pictures))))
    return clips


def raw_actor(model, seed):
    """Code (L, D) of random_actor's person as the mapping network gives it: not rendered, not embedded."""
    z = np.random.RandomState(seed).standard_normal((1, model.Z))
    return model.map(torch.from_numpy(z))[0]


WAYS = {"offset trick": ("offset", random_actor), "naive shift": ("naive", random_actor),   # sec. 3, Fig. 4
        "offset trick, not re-embedded": ("offset", raw_actor)}


def transfer_study(model, trajectories, pca, reader, s):
    """Clip k: random actor k performs trajectories[k] (T, L, D) -> {row: {"drift", "r", "R2": (clips,)}}."""
    rows = {name: {"drift": [], "r": [], "R2": []} for name in ("training actor", *WAYS, "perfect transfer")}

    def add(row, read, own=None):
        rows[row]["drift"].append(drift(read, reader))
        if own is not None:
            for name, value in zip(("r", "R2"), kept(read, own, reader)):
                rows[row][name].append(value)

    for k, w in enumerate(tqdm(trajectories, desc="transfer", unit="clip")):
        own = reader["read"](shown(model, w))
        add("training actor", own)
        for name, (mode, actor) in WAYS.items():
            add(name, reader["read"](shown(model, move(w, actor(model, k), pca, w[0], mode))), own)
    clips = perfect_clips(model, reader, *s["ceiling"])
    for clip in clips:
        add("perfect transfer", clip, None if clip is clips[0] else clips[0])
    return rows


def ahead(rows, name):
    """In how many clips the offset trick is ahead of both other ways in r or R2."""
    trick, *others = (rows[way][name] for way in WAYS)
    return sum(value > max(rest) for value, *rest in zip(trick, *others))


# Tables -----------------------------------------------------------------------------------------------------
def main(args):
    s = FULL if args.full else SMALL
    generator, meta = load_motion(args.motion)
    model = load_image_model(meta["model"]["name"])
    if not model.has_actors or model.encoder is None or model.Z != heads.Z:
        raise InputError(f"{model.name} is not of the heads of pretrain/heads.py, so no truth is known.")

    pictures, shares, reader = reading_study(model, s)
    print(f"Pictures: {s['held_out']} people that were not learnt from\n")
    print("| | " + " | ".join(pictures) + " |\n|---" + "|---" * len(pictures) + "|")
    for name in pictures["through z"]:
        cells = [f"{row[name]:.2f}" if name in row else "-" for row in pictures.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")

    print(f"\nTruth, read back: R2; readers of {s['heads']} heads\n")
    print("| | " + " | ".join(shares) + " | error |\n|---" + "|---" * (len(shares) + 1) + "|")
    for k in (*MOTION, *PERSON):
        name = heads.NAMES[k]
        error = f"{SCALE[name] * reader['error'][k]:.2f}" if name in SCALE else "-"
        print(f"| {name} | " + " | ".join(f"{share[k]:.2f}" for share in shares.values()) + f" | {error} |")
    for name, some in (("motion", MOTION), ("person", PERSON)):
        cells = [f"{len(readable(share, some))} of {len(some)}" for share in shares.values()]
        print(f"| {name}, R2 above {LEAST} | " + " | ".join(cells) + " | - |")

    if not (readable(reader["r2"], PERSON) and readable(reader["r2"], MOTION)):
        raise InputError(f"nothing can be read from pictures of {model.name}; name one of rendered heads.")
    pca = {name: meta["pca"][name].float() for name in ("mean", "basis")}
    chunks = (list(sample(generator, s["frames"], k)) for k in range(s["clips"]))
    rows = transfer_study(model, (torch.from_numpy(np.concatenate(c)) for c in chunks), pca, reader, s)
    print(f"\nTransfer: {s['clips']} clips of {s['frames']} frames\n")
    print("| | identity drift, % | motion kept, r | motion kept, R2 |\n|---|---|---|---|")
    for name, values in rows.items():
        cells = [f"{np.mean(column):.3f}" if column else "-" for column in values.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nThe offset trick keeps more than both other ways for {ahead(rows, 'r')} (r) and "
          f"{ahead(rows, 'R2')} (R2) of {s['clips']} actors.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--motion", metavar="FILE", help="default: motion.pt, or assets/motion.pt")
    parser.add_argument("--full", action="store_true", help="the recorded result, instead of a small one")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"truth.py: {error}\n")
