"""Talking heads that this project draws itself: every picture is a smooth function of one vector of named parameters.

    python -m pretrain.faces --sheet sheet.png
    python -m pretrain.faces --clip assets/demo.mp4 --seconds 60 --seed 8

What assets/motion.pt is trained on, and judged by, is more of that head, ten minutes each:

    python -m pretrain.faces --clip ten.mp4 --seconds 600 --seed 8 --voice 1
    python -m pretrain.faces --clip unseen.mp4 --seconds 600 --seed 8 --voice 2
    python embed.py ten.mp4 -o ten.npy && python embed.py unseen.mp4 -o unseen.npy
    python train.py ten.npy --holdout unseen.npy --steps 4000 --threads 1 -o assets/motion.pt

Head frame: unit = eye distance of the average head; x right in the picture, y down, z towards the viewer; origin
between the eyes, on the axis of the head. Canvas frame: pixels. Colours: RGB in [0, 255].
"""

import argparse
import functools
import math
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets `python pretrain/faces.py` find its siblings
from models import InputError
from transfer import VideoWriter

IDENTITY = (
    "skin", "undertone", "blush", "age", "freckles",
    "face_width", "face_length", "cheekbones", "jaw_width", "chin",
    "eye_size", "eye_spacing", "eye_slant", "eye_hue", "eye_depth",
    "brow_weight", "brow_arch", "nose_width", "nose_length", "lip_fullness", "mouth_size", "makeup", "beard",
    "hair_light", "hair_red", "hair_length", "hair_volume", "hair_loss", "fringe", "parting", "hair_wave",
    "clothes_hue", "clothes_light", "background_hue", "background_light", "light",
)
MOTION = ("yaw", "pitch", "roll", "jaw", "width", "smile", "blink", "wink", "brows", "gaze_x", "gaze_y")
CAMERA = ("shift_x", "shift_y", "zoom", "tilt")
NAMES = IDENTITY + MOTION + CAMERA
Z = len(NAMES)

YAW, PITCH, ROLL = math.radians(24), math.radians(15), math.radians(6)      # ours: range of frontal video
SHIFT, ZOOM, TILT = 0.025, 0.07, math.radians(3)                            # ours: what dlib's crops wobble by
DLIB_EYES = 0.955                           # dlib's eye distance over the drawn one: mean of 60 actors, deviation 0.042
NECK = np.array([0.0, 1.2, -0.45])                                          # the head turns about this point
SAMPLES = 8                                                                 # spline points between control points
SHADE = 4                                                                   # forms are rounded at 1 / SHADE of the size
BITS = 6                                                                    # sub-pixel bits of polygon vertices


# ------------------------------------------------------------------------------------------------------------------
# Parameters
# ------------------------------------------------------------------------------------------------------------------

def params(z):
    """Gaussian z (..., Z) -> p (..., Z) float32 in (-1, 1): as StyleGAN's mapping starts, then tanh."""
    u = z / np.sqrt(np.mean(np.square(z), -1, keepdims=True) + 1e-8)
    return np.tanh(u).astype(np.float32)


def ramp(x, lo, hi):
    """0 below lo, 1 above hi, a smooth step between."""
    t = min(max((x - lo) / (hi - lo), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def palette(stops, x):
    """Colour at x in [-1, 1] on a line of evenly spaced RGB stops -> (3,)."""
    stops = np.asarray(stops, np.float64)
    grid = np.linspace(-1.0, 1.0, len(stops))
    return np.array([np.interp(x, grid, stops[:, c]) for c in range(3)])


def lighter(colour, gain, plus):
    return np.minimum(colour * gain + plus, 255)


def mix(a, b, t):
    """Colour a at t = 0, b at t = 1 -> (3,)."""
    return np.asarray(a, np.float64) * (1.0 - t) + np.asarray(b, np.float64) * t


SKIN = [(250, 214, 194), (243, 200, 170), (230, 178, 140), (204, 146, 106), (164, 112, 80), (126, 84, 62)]
HAIR = [(34, 27, 28), (58, 38, 30), (96, 60, 38), (146, 96, 54), (204, 158, 92), (238, 212, 158)]
IRIS = [(64, 112, 60), (92, 128, 76), (70, 130, 178), (96, 150, 190), (120, 84, 48), (82, 52, 32)]
CLOTHES = [(176, 62, 58), (222, 130, 62), (226, 186, 92), (96, 148, 92), (58, 132, 140), (66, 96, 168), (112, 78, 148),
           (196, 92, 130)]
BACKGROUND = [(214, 150, 128), (232, 190, 140), (206, 206, 158), (150, 194, 168), (134, 188, 204), (146, 164, 212),
              (184, 160, 206), (224, 172, 186)]


# ------------------------------------------------------------------------------------------------------------------
# Canvas: polygons with soft edges on a float picture
# ------------------------------------------------------------------------------------------------------------------

@functools.cache
def spline_basis(n, closed):
    """Catmull-Rom matrix: (samples, n) @ control points (n, d) -> curve (samples, d)."""
    rows = []
    for k in range(n if closed else n - 1):
        for s in range(SAMPLES):
            t = s / SAMPLES
            weights = (-0.5 * t + t * t - 0.5 * t ** 3, 1 - 2.5 * t * t + 1.5 * t ** 3,
                       0.5 * t + 2 * t * t - 1.5 * t ** 3, -0.5 * t * t + 0.5 * t ** 3)
            row = np.zeros(n)
            for j, weight in zip(range(k - 1, k + 3), weights):
                row[j % n if closed else min(max(j, 0), n - 1)] += weight
            rows.append(row)
    if not closed:
        rows.append(np.eye(n)[-1])
    return np.array(rows)


def spline(points, closed=True):
    points = np.asarray(points, np.float64)
    return spline_basis(len(points), closed) @ points


class Canvas:
    """A float32 RGB picture (S, S, 3); polygons are (n, 2) pixel positions, `unit` pixels are one eye distance."""

    def __init__(self, S, unit):
        self.S, self.unit = S, unit
        self.picture = np.empty((S, S, 3), np.float32)

    def mask(self, polygon, soft=0.0):
        """Coverage of a polygon, blurred by `soft` eye distances -> (rows, columns, values in [0, 1]) of its box."""
        sigma = soft * self.unit
        k = 1
        while sigma / k > 3.0 and k < 16:                                   # blur at low resolution: the same picture
            k *= 2
        S, sigma = self.S // k, sigma / k
        points = (polygon + 0.5) / k - 0.5
        margin = int(3 * sigma) + 2
        x0, y0 = np.clip(np.floor(points.min(0)).astype(int) - margin, 0, S)
        x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + margin + 1, 0, S)
        if x1 <= x0 or y1 <= y0:
            return None
        box = np.zeros((y1 - y0 + 4, x1 - x0 + 4), np.uint8)                # 2 px around: cv2 draws edges there badly
        fixed = np.round((points - (x0 - 2, y0 - 2)) * (1 << BITS)).astype(np.int32)
        cv2.fillPoly(box, [fixed], 255, cv2.LINE_AA, BITS)
        box = box[2:-2, 2:-2].astype(np.float32) * (1 / 255)
        if sigma > 0:
            box = cv2.GaussianBlur(box, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        if k > 1:
            box = cv2.resize(box, None, fx=k, fy=k, interpolation=cv2.INTER_LINEAR)
        return slice(y0 * k, y1 * k), slice(x0 * k, x1 * k), box

    def whole(self, part):
        """A part of mask() as a whole picture (S, S)."""
        whole = np.zeros((self.S, self.S), np.float32)
        if part is not None:
            whole[part[0], part[1]] = part[2]
        return whole

    def paint(self, polygon, colour, alpha=1.0, soft=0.0, clip=None):
        """Lay `colour` over the picture where the polygon (and the mask `clip`) is."""
        part = self.mask(polygon, soft) if alpha > 0.001 else None
        if part is None:
            return
        rows, columns, m = part
        if clip is not None:
            m = m * clip[rows, columns]
        if alpha < 1.0:
            m = m * alpha
        region = self.picture[rows, columns]
        region += (np.asarray(colour, np.float32) - region) * m[..., None]

    def form(self, polygon, colour, towards, depth, strength, alpha=1.0, soft=0.0, shadow=(1.0, 1.15, 1.25)):
        """Paint a rounded shape: its coverage, blurred by `depth`, is taken as a height and lit from `towards`.

        Returns the coverage (S, S).
        """
        part = self.mask(polygon, soft) if alpha > 0.001 else None
        if part is None:
            return np.zeros((self.S, self.S), np.float32)
        k = SHADE
        rows, columns, m = part
        y0, x0 = rows.start // k * k, columns.start // k * k                # the box, in whole coarse pixels
        y1, x1 = -(-rows.stop // k) * k, -(-columns.stop // k) * k
        height = np.zeros((y1 - y0, x1 - x0), np.float32)
        height[rows.start - y0:rows.stop - y0, columns.start - x0:columns.stop - x0] = m
        height = cv2.resize(height, None, fx=1 / k, fy=1 / k, interpolation=cv2.INTER_AREA)
        pad = [(a > 0) * 8 for a in (y0, self.S - y1, x0, self.S - x1)]     # outside the picture shapes go on
        height = cv2.copyMakeBorder(height, *pad, cv2.BORDER_CONSTANT, value=0)
        sigma = depth * self.unit / k
        height = cv2.GaussianBlur(height, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        slope = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=towards[0], borderType=cv2.BORDER_REPLICATE)
        slope += cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=towards[1], borderType=cv2.BORDER_REPLICATE)
        slope *= -sigma * 0.25 * strength                                   # of order strength at the rim
        slope = np.where(slope > 0, np.minimum(0.35 * slope, 0.12), np.maximum(slope, -0.6))
        slope = slope[pad[0]:len(slope) - pad[1], pad[2]:slope.shape[1] - pad[3]]
        slope = cv2.resize(slope, None, fx=k, fy=k, interpolation=cv2.INTER_LINEAR)
        slope = slope[rows.start - y0:rows.stop - y0, columns.start - x0:columns.stop - x0]
        if alpha < 1.0:
            m = m * alpha
        region = self.picture[rows, columns]
        lit = np.asarray(colour, np.float32) * (1.0 + slope[..., None] * np.asarray(shadow, np.float32))
        region += (lit - region) * m[..., None]
        return self.whole((rows, columns, m))

    def stroke(self, line, width, colour, alpha=1.0, soft=0.0, clip=None):
        """A brush line through (n, 2); width (n,) or a number in eye distances, full width."""
        tangent = np.gradient(line, axis=0)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        half = 0.5 * self.unit * np.broadcast_to(width, len(line))[:, None] * normal
        self.paint(np.concatenate([line + half, (line - half)[::-1]]), colour, alpha, soft, clip)


def taper(n, start=0.15, end=0.15, peak=0.5):
    """(n,) brush width: thin ends, 1 at `peak`."""
    t = np.linspace(0.0, 1.0, n)
    rise = np.clip(t / max(peak, 1e-6), 0, 1)
    fall = np.clip((1 - t) / max(1 - peak, 1e-6), 0, 1)
    s = np.minimum(rise, fall)
    s = np.sin(0.5 * np.pi * s)
    return np.where(t < peak, start, end) * (1 - s) + s


# ------------------------------------------------------------------------------------------------------------------
# Head: geometry
# ------------------------------------------------------------------------------------------------------------------

def depth(xy):
    """z of the front of the average face at (..., 2)."""
    x, y = xy[..., 0], xy[..., 1]
    return 0.84 * np.sqrt(np.maximum(1.0 - (x / 1.22) ** 2 - ((y - 0.1) / 2.1) ** 2, 0.03))


def turn(v):
    """Rotation (3, 3) of the head; yaw > 0 looks to the right of the picture, pitch > 0 down, roll > 0 clockwise."""
    yaw, pitch, roll = v["yaw"] * YAW, v["pitch"] * PITCH, v["roll"] * ROLL
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def openness(v, side):
    """Share of the open eye on side -1 (left in the picture) or 1: 1.08 wide open to 0 closed."""
    return 1.08 * (1.0 - ramp(v["blink"] - 0.22 * side * v["wink"], 0.12, 0.95))


def jaw_drop(jaw):
    """Distance of the inner lips in eye distances, 0 to 0.42."""
    return 0.42 * (0.5 + 0.5 * jaw) ** 1.5


class Head:
    """Shapes of one head, and where its points fall in the picture once it has been put there."""

    def __init__(self, p):
        self.v = v = dict(zip(NAMES, (float(x) for x in p)))
        v["smile"] = 0.35 + 0.65 * v["smile"]                               # the average head looks friendly
        self.R = turn(v)
        self.half = 0.5 * (1.0 + 0.06 * v["eye_spacing"])                   # half the eye distance
        self.drop = jaw_drop(v["jaw"])
        self.long = 1.0 + 0.06 * v["face_length"]

    def rotate(self, points):
        """(..., 3) head frame -> (..., 2) after the turn of the head about the neck."""
        return ((np.asarray(points, np.float64) - NECK) @ self.R.T + NECK)[..., :2]

    def put(self, matrix, offset, body_matrix=None, body_offset=None):
        """Place the head: (2, 2) and (2,), head frame -> pixels; the body may have its own, as it does not turn."""
        self.A, self.b = matrix, offset
        self.bodyA = matrix if body_matrix is None else body_matrix
        self.bodyb = offset if body_offset is None else body_offset
        return self

    def to(self, points):
        """(n, 3) head frame -> (n, 2) pixels."""
        return self.rotate(points) @ self.A.T + self.b

    def on(self, xy, lift=0.0):
        """(n, 2) on the front of the face -> (n, 2) pixels."""
        xy = np.asarray(xy, np.float64)
        return self.to(np.concatenate([xy, (depth(xy) + lift)[..., None]], -1))

    def still(self, xy):
        """(n, 2) of the body -> pixels."""
        return np.asarray(xy, np.float64) @ self.bodyA.T + self.bodyb

    def eye_frame(self, side):
        """Centre (2,), half width, slope of the eye on side -1 (left in the picture) or 1; x runs outwards."""
        v = self.v
        return np.array([side * self.half, 0.0]), 0.285 * (1 + 0.12 * v["eye_size"]), -0.09 * v["eye_slant"] - 0.03

    def lids(self, side):
        """Upper and lower lid edge, inner to outer corner: two (n, 2) on the face."""
        v = self.v
        centre, w, slope = self.eye_frame(side)
        o = openness(v, side)
        t = np.linspace(-1.0, 1.0, 17)
        bump = np.sqrt(np.maximum(1 - t * t, 0.0)) * (1 - 0.22 * np.abs(t) ** 2)
        height = 0.190 * (1 + 0.22 * v["eye_size"] + 0.1 * ramp(v["makeup"], -1, 1) - 0.1 * ramp(v["age"], 0, 1))
        squint = 0.25 * ramp(v["smile"], -0.2, 1.0)
        shut = 0.045 * bump
        upper = shut + (-height * bump * (1 - 0.10 * t) - shut) * o
        lower = shut + (0.092 * (1 - squint) * bump * (1 + 0.10 * t) - shut) * min(o, 1.0)
        x = centre[0] + side * w * t
        base = centre[1] + slope * t
        return np.stack([x, base + upper], 1), np.stack([x, base + lower], 1)

    def mouth(self):
        """Outer and inner lips: four (n, 2) lines left to right: outer upper, inner upper, inner lower, outer lower."""
        v = self.v
        smile, drop = v["smile"], self.drop
        grin = ramp(smile, -0.3, 1.0)
        w = 0.43 * (1 + 0.14 * v["mouth_size"]) * (1 + 0.30 * v["width"]) * (1 + 0.16 * grin) * (1 - 0.22 * drop)
        y = (1.06 + 0.02 * v["nose_length"]) * self.long
        full = 1 + 0.32 * v["lip_fullness"] - 0.15 * ramp(v["age"], 0.2, 1.0)
        pout = 1 - 0.38 * v["width"] * (1 if v["width"] < 0 else 0.45)
        up, down = 0.105 * full * pout * (1 - 0.2 * grin), 0.135 * full * pout * (1 - 0.15 * grin)
        t = np.linspace(-1, 1, 21)
        arch = np.maximum(1 - t * t, 0.0)
        corner = -0.12 * smile * np.abs(t) ** 2.2 + (0.30 * drop) * np.abs(t) ** 3 * 0.5
        bow = np.exp(-((np.abs(t) - 0.24) / 0.22) ** 2) - 0.75 * np.exp(-(t / 0.17) ** 2)
        lift = 0.12 * drop + 0.03 * grin                                    # the upper lip rises a little
        inner_up = y + corner - lift * arch ** 0.7 + 0.012 * np.cos(3 * t) * arch
        inner_low = y + corner + (drop - 0.12 * drop) * arch ** 0.62 + 0.012 * np.cos(3 * t) * arch
        inner_low = np.maximum(inner_low, inner_up)
        outer_up = inner_up - up * (arch ** 0.8 * 0.9 + 0.16 * bow * arch)
        outer_low = inner_low + down * arch ** 0.75
        x = w * t
        inset = w * np.sign(t) * np.abs(t) * 0.92
        return [np.stack([a, b], 1) for a, b in ((x, outer_up), (inset, inner_up), (inset, inner_low), (x, outer_low))]

    def outline(self):
        """Closed outline of the face (n, 3)."""
        v, L = self.v, self.long
        fw, jw = 1 + 0.07 * v["face_width"], 1 + 0.12 * v["jaw_width"] + 0.04 * ramp(v["age"], 0, 1)
        ck = 1 + 0.035 * v["cheekbones"]
        d, narrow, chin = 0.85 * self.drop, 1 - 0.10 * self.drop, v["chin"]
        grin = 0.03 * ramp(v["smile"], -0.3, 1)
        right = [(0.62 * fw, -1.45, -0.10), (0.97 * fw, -1.00, 0.0), (1.09 * fw, -0.45, 0.08),
                 (1.08 * fw * ck, 0.12, 0.10), (1.04 * fw * ck + grin, 0.62, 0.14),
                 (0.87 * fw * jw, 1.10 * L + 0.25 * d, 0.22), (0.56 * fw * jw * narrow, 1.47 * L + 0.7 * d, 0.45),
                 (0.27 * fw * (1 + 0.22 * chin) * narrow, 1.70 * L + d + 0.02 * chin, 0.66)]
        left = [(-x, y, z) for x, y, z in right[::-1]]
        return spline([(0, -1.60, -0.12)] + right + [(0, (1.765 + 0.03 * chin) * L + d, 0.72)] + left)


# ------------------------------------------------------------------------------------------------------------------
# Head: painting
# ------------------------------------------------------------------------------------------------------------------

def mirrored(side, points):
    """Control points given for the right side, for side -1 or 1."""
    points = np.array(points, np.float64)
    points[:, 0] *= side
    return points


def disc(cx, cy, rx, ry, n=20):
    a = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1)


class Look:
    """Colours of one head."""

    def __init__(self, v):
        old = 0.85 * ramp(v["age"], 0.1, 1.0)
        skin = palette(SKIN, v["skin"])
        skin = skin * (1 + np.array([0.03, 0.0, -0.06]) * v["undertone"])
        self.skin = np.minimum(skin, 255)
        self.shadow = self.skin * np.array([0.80, 0.68, 0.63])
        self.deep = self.skin * np.array([0.56, 0.42, 0.38])
        self.pink = mix(self.skin, (226, 96, 92), 0.5)
        hair = mix(palette(HAIR, v["hair_light"]), (168, 70, 30), 0.6 * ramp(v["hair_red"], 0.25, 1.0))
        self.hair = mix(hair, (206, 204, 204), 0.85 * ramp(v["age"], 0.5, 0.95))
        self.hair_dark = self.hair * np.array([0.62, 0.57, 0.56])
        self.hair_lit = lighter(self.hair, 1.18, 22)
        self.brow = mix(mix(self.hair, (48, 32, 26), 0.55), self.deep, 0.1)
        self.lash = np.array([38.0, 26.0, 26.0])
        self.iris = mix(palette(IRIS, v["eye_hue"]), (44, 30, 22), 0.25 + 0.25 * v["eye_depth"])
        natural = mix(self.skin * np.array([0.86, 0.56, 0.54]), (196, 84, 84), 0.35)
        self.lip = mix(natural, (188, 36, 58), 0.65 * ramp(v["makeup"], 0.1, 1.0))
        towards = (246, 240, 232) if v["clothes_light"] > 0 else (38, 40, 52)
        self.clothes = mix(palette(CLOTHES, v["clothes_hue"]), towards,
                           0.75 * abs(v["clothes_light"]) ** 1.5)
        towards = (250, 244, 236) if v["background_light"] > 0 else (70, 72, 88)
        self.back = mix(palette(BACKGROUND, v["background_hue"]), towards, 0.6 * abs(v["background_light"]) ** 1.3)
        self.old = old
        self.loss = ramp(v["hair_loss"], 0.5, 1.0)
        self.beard = ramp(v["beard"], 0.45, 0.85) * (1 - ramp(v["makeup"], -0.2, 0.6))
        self.towards = np.array([-0.75 * v["light"], -0.7])
        self.towards /= np.linalg.norm(self.towards) + 0.15


def paint_background(c, look):
    """A wall, lit around the head."""
    y = np.linspace(0, 1, c.S, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, c.S, dtype=np.float32)[None]
    glow = np.exp(-((x - 0.4 * look.towards[0]) ** 2 + (1.6 * (y - 0.35)) ** 2) / 0.9)
    gain = (0.80 + 0.26 * glow - 0.10 * y)[..., None]
    np.minimum(np.asarray(look.back, np.float32) * gain, 255, out=c.picture)


def paint_body(c, h, look):
    """Neck, shoulders and shirt."""
    v = h.v
    d = 0.02 * v["face_width"]
    wide = 0.56 + 0.07 * v["jaw_width"] + 0.05 * look.beard + d
    # The neck hangs between the turning head and the resting body.
    top = h.to(np.array([(-wide, 0.9, -0.25), (wide, 0.9, -0.25)]))
    mid = h.to(np.array([(-wide, 1.55, -0.2), (wide, 1.55, -0.2)]))
    low = h.still([(-wide - 0.02, 1.98), (wide + 0.02, 1.98), (-wide - 0.5, 2.32), (wide + 0.5, 2.32), (0, 3.1)])
    neck = spline([top[0], top[1], mid[1], low[1], low[3], low[4], low[2], low[0], mid[0]])
    cover = c.form(neck, look.skin * np.array([0.93, 0.87, 0.84]), look.towards, 0.28, 0.55)
    shadow = h.outline()
    shadow = h.to(shadow * np.array([0.98, 1.0, 1.0]) + np.array([0, 0.20, -0.1]))
    c.paint(shadow, look.deep, 0.62, 0.09, cover)
    for side in (-1, 1):
        bone = h.still(spline([(side * 0.52, 2.16), (side * 0.25, 2.30), (side * 0.06, 2.36)], False))
        c.stroke(bone, taper(len(bone)) * 0.05, look.shadow, 0.5, 0.02)
    shirt = h.still(spline([(-wide - 0.12, 1.93), (-wide + 0.12, 2.28), (0, 2.52),
                            (wide - 0.12, 2.28), (wide + 0.12, 1.93), (1.25, 2.14), (2.05, 2.42), (2.5, 3.1),
                            (2.7, 5.0), (2.7, 9.0), (-2.7, 9.0), (-2.7, 5.0),
                            (-2.5, 3.1), (-2.05, 2.42), (-1.25, 2.14)]))
    c.form(shirt, look.clothes, look.towards, 0.30, 0.5, shadow=(1.0, 1.0, 1.0))
    collar = h.still(spline([(-wide - 0.13, 1.95), (-wide + 0.10, 2.30), (0, 2.55),
                             (wide - 0.10, 2.30), (wide + 0.13, 1.95)], False))
    c.stroke(collar, 0.10, look.clothes * 0.78, 0.8, 0.008)


def hair_sizes(h, look):
    """Volume, length and amplitude of the waves."""
    v = h.v
    volume = (0.10 + 0.11 * (1 + v["hair_volume"])) * (1 - look.loss)
    length = (0.05 + 2.4 * ramp(v["hair_length"], -0.7, 1.1)) * (1 - 0.8 * look.loss)
    return volume, length, 0.09 * ramp(v["hair_wave"], -0.4, 1.0) * ramp(length, 0.3, 1.2)


def paint_back_hair(c, h, look):
    """Hair behind neck and shoulders."""
    volume, length, wave = hair_sizes(h, look)
    alpha = 1 - ramp(look.loss, 0.05, 0.6)

    def fall(share):                                                        # height along the falling hair
        return -0.25 + share * (length + 0.40)

    side = [(0.70 + 0.6 * volume, -1.45 - 0.6 * volume, -0.35), (1.10 + volume, -0.85, -0.4),
            (1.15 + 1.1 * volume, -0.35, -0.45), (1.13 + 1.2 * volume + wave, fall(0.25), -0.45),
            (1.10 + 1.25 * volume - wave, fall(0.5), -0.4), (1.06 + 1.2 * volume + wave, fall(0.78), -0.35),
            (0.80 + 0.7 * volume, fall(0.97), -0.35)]
    left = [(-x, y, z) for x, y, z in side[::-1]]
    shape = h.to(spline([(0, -1.66 - volume, -0.35)] + side + [(0, fall(1), -0.35)] + left))
    c.form(shape, look.hair_dark, look.towards, 0.25, 0.4, alpha)


def paint_locks(c, h, look):
    """Hair that falls beside the face, over ears and shoulders."""
    volume, length, wave = hair_sizes(h, look)
    alpha = 1 - ramp(look.loss, 0.05, 0.6)

    def fall(share):
        return -0.25 + share * (length + 0.35)

    for side in (-1, 1):
        lock = spline(mirrored(side, [
            (0.80, -0.9, 0.05), (1.10 + 0.9 * volume, -0.7, -0.15), (1.15 + 1.1 * volume, -0.35, -0.2),
            (1.13 + 1.15 * volume + wave, fall(0.25), -0.2), (1.10 + 1.2 * volume - wave, fall(0.52), -0.1),
            (1.05 + 1.1 * volume + wave, fall(0.80), 0.0), (0.92 + 0.5 * volume, fall(1), 0.05),
            (0.82 + 0.1 * volume - wave, fall(0.80), 0.0), (0.90 + wave, fall(0.5), -0.05),
            (0.93 - wave, fall(0.22), 0.0), (0.90, -0.4, 0.05)]))
        cover = c.form(h.to(lock), look.hair, look.towards, 0.13, 0.45, alpha)
        for a, tone in ((0.25, look.hair_dark), (0.5, look.hair_lit), (0.75, look.hair_dark)):
            strand = spline(mirrored(side, [
                (0.97 + a * (0.12 + volume), -0.5, 0.0), (0.97 + a * (0.16 + 1.1 * volume) + wave, fall(0.25), -0.1),
                (0.95 + a * (0.16 + 1.1 * volume) - wave, fall(0.52), -0.05),
                (0.90 + a * (0.13 + 1.0 * volume) + wave, fall(0.78), 0.0),
                (0.90 + a * 0.5 * volume, fall(0.95), 0.0)]), False)
            c.stroke(h.to(strand), taper(len(strand)) * 0.045, tone, 0.5 * alpha, 0.008, cover)


def paint_ears(c, h, look):
    """Ears, under the hair."""
    v = h.v
    fw = 1 + 0.07 * v["face_width"]
    for side in (-1, 1):
        ear = spline(mirrored(side, [(1.00 * fw, -0.10, -0.05), (1.17 * fw, -0.16, -0.22), (1.25 * fw, 0.05, -0.25),
                                     (1.20 * fw, 0.34, -0.18), (1.09 * fw, 0.56, -0.08), (0.98 * fw, 0.45, 0.0)]))
        cover = c.form(h.to(ear), mix(look.skin, look.pink, 0.25), look.towards, 0.10, 0.35)
        fold = spline(mirrored(side, [(1.10 * fw, 0.00, -0.1), (1.18 * fw, -0.03, -0.2), (1.17 * fw, 0.20, -0.18),
                                      (1.09 * fw, 0.36, -0.08)]), False)
        c.stroke(h.to(fold), taper(len(fold)) * 0.055, look.deep, 0.55, 0.01, cover)


def paint_face(c, h, look):
    """Skin, with blush, wrinkles and freckles -> coverage (S, S)."""
    v = h.v
    cover = c.form(h.to(h.outline()), look.skin, look.towards, 0.34, 0.55)
    c.paint(h.on(disc(0, -0.85, 0.55, 0.30)), lighter(look.skin, 1.05, 6), 0.4, 0.16, cover)
    blush = 0.30 + 0.26 * v["blush"] + 0.15 * ramp(v["makeup"], 0, 1)
    lift = -0.05 * ramp(v["smile"], -0.3, 1)
    for side in (-1, 1):
        c.paint(h.on(disc(side * 0.66, 0.62 + lift, 0.24, 0.17)), look.pink, blush, 0.12, cover)
        c.paint(h.on(disc(side * 0.60, 0.44 + lift, 0.17, 0.08)), lighter(look.skin, 1.08, 12), 0.4, 0.07, cover)
    # eye sockets and the shadow of the brows
    for side in (-1, 1):
        c.paint(h.on(disc(side * h.half, -0.12, 0.36, 0.19)), mix(look.shadow, (150, 90, 110), 0.1), 0.45, 0.08, cover)
    # age: bags, folds from nose to mouth, forehead
    old = look.old
    mouth = h.mouth()
    left, right = mouth[0][0], mouth[0][-1]
    grin = ramp(v["smile"], -0.1, 1)
    for side, corner in ((-1, left), (1, right)):
        fold = h.on(spline([(side * 0.27, 0.68 * h.long), (side * 0.44, 0.82 * h.long - 0.03 * grin),
                            (corner[0] + side * 0.10, corner[1] - 0.06),
                            (corner[0] + side * 0.09, corner[1] + 0.12)], False))
        c.stroke(fold, taper(len(fold)) * 0.06, look.deep, 0.22 * grin + 0.45 * old, 0.018, cover)
        bag = [(side * (h.half - 0.22), 0.17), (side * h.half, 0.25), (side * (h.half + 0.22), 0.17)]
        bag = h.on(spline(bag, False))
        c.stroke(bag, taper(len(bag)) * 0.05, look.deep, 0.12 + 0.35 * old, 0.018, cover)
        for dy in (-0.07, 0.02, 0.10):
            crow = [(side * (h.half + 0.33), 0.6 * dy), (side * (h.half + 0.47), 0.01 + 1.5 * dy)]
            crow = h.on(spline(crow, False))
            c.stroke(crow, taper(len(crow)) * 0.035, look.deep, 0.45 * old * (0.5 + 0.5 * grin), 0.008, cover)
    raise_ = 0.5 + 0.5 * v["brows"]
    for dy in (-0.62, -0.78, -0.94):
        line = h.on(spline([(-0.55, dy + 0.03), (-0.2, dy - 0.02), (0.2, dy - 0.02), (0.55, dy + 0.03)], False))
        c.stroke(line, taper(len(line)) * 0.045, look.deep, 0.42 * old * raise_ + 0.08 * old, 0.012, cover)
    spots = ramp(v["freckles"], 0.2, 1.0) * 0.55
    if spots > 0:
        for k in range(30):                                                 # an even scatter: Roberts' R2 sequence
            x, y = 1.5 * (k * 0.754878 % 1) - 0.75, 0.28 + 0.36 * (k * 0.569840 % 1)
            r = 0.016 + 0.014 * (k * 0.618034 % 1)
            c.paint(h.on(disc(x, y - 0.1 * abs(x), r, r, 8)), mix(look.deep, (150, 84, 50), 0.5), spots, 0.0, cover)
    return cover


def paint_beard(c, h, look, cover):
    """Beard and moustache."""
    if look.beard <= 0.001:
        return
    mouth = h.mouth()
    colour = mix(look.hair, look.hair_dark, 0.45)
    d, L = h.drop, h.long
    half = [(1.06, 0.30, 0.05), (1.02, 0.85 * L, 0.12), (0.88, 1.25 * L + 0.4 * d, 0.25),
            (0.58, 1.62 * L + 0.8 * d, 0.45), (0.25, 1.84 * L + 0.85 * d, 0.66)]
    other = [(-x, y, z) for x, y, z in half[::-1]]
    inner = [(-0.88, 0.62, 0.45), (-0.66, 1.00 * L, 0.65), (-0.40, 0.90 * L, 0.85), (0.0, 0.84 * L, 0.9),
             (0.40, 0.90 * L, 0.85), (0.66, 1.00 * L, 0.65), (0.88, 0.62, 0.45)]
    shape = h.to(spline(half + [(0, 1.88 * L + 0.85 * d, 0.72)] + other + inner))
    c.paint(shape, colour, 0.92 * look.beard, 0.045)
    lip = np.concatenate([mouth[0], mouth[3][::-1]])
    centre = lip.mean(0)
    around = h.on(centre + (lip - centre) * np.array([1.10, 1.18]))          # skin between beard and lips
    c.paint(around, look.skin * np.array([0.9, 0.8, 0.76]), 0.75 * look.beard, 0.03, cover)


def paint_nose(c, h, look, cover):
    """Bridge, tip, wings and nostrils."""
    v = h.v
    w, L = 0.20 * (1 + 0.20 * v["nose_width"]), (0.63 + 0.05 * v["nose_length"]) * h.long

    def at(points):                                                         # (x, y, lift above the face)
        points = np.asarray(points, np.float64)
        return h.on(points[:, :2], points[:, 2])

    # The two sides of the bridge; the one away from the light is darker.
    for side in (-1, 1):
        plane = at(spline(mirrored(side, [(0.08, -0.20, 0.04), (0.10, 0.20, 0.16), (0.13, L - 0.10, 0.28),
                                          (w, L - 0.02, 0.08), (w * 0.95, L - 0.16, 0.04), (0.17, 0.2, 0.0),
                                          (0.20, -0.12, 0.0)])))
        c.paint(plane, look.shadow, 0.46 + 0.34 * side * v["light"], 0.045, cover)
    c.paint(at(spline([(-0.05, -0.1, 0.08), (0.05, -0.1, 0.08), (0.055, L - 0.12, 0.3), (-0.055, L - 0.12, 0.3)])),
            lighter(look.skin, 1.06, 10), 0.55, 0.03, cover)
    c.paint(at(spline([(-w * 1.05, L + 0.02, 0.06), (0, L + 0.07, 0.18), (w * 1.05, L + 0.02, 0.06),
                       (w * 0.7, L + 0.13, 0.02), (0, L + 0.17, 0.04), (-w * 0.7, L + 0.13, 0.02)])),
            look.deep, 0.55, 0.03, cover)
    tip = at([(x, y, 0.30) for x, y in disc(0, L - 0.06, 0.125, 0.105)])
    c.paint(tip, mix(look.skin, look.pink, 0.22), 0.8, 0.03, cover)
    for side in (-1, 1):
        wing = at(spline(mirrored(side, [(w * 0.72, L - 0.14, 0.12), (w * 1.02, L - 0.08, 0.06),
                                         (w * 1.02, L + 0.03, 0.06), (w * 0.75, L + 0.055, 0.12)]), False))
        c.stroke(wing, taper(len(wing), 0.1, 0.3, 0.7) * 0.055, look.deep, 0.75, 0.008, cover)
        hole = at([(x, y, 0.17) for x, y in disc(side * w * 0.46, L + 0.045, w * 0.30, 0.034)])
        c.paint(hole, look.skin * np.array([0.36, 0.22, 0.20]), 0.9, 0.008, cover)
    c.paint(at([(x, y, 0.34) for x, y in disc(-0.03 * v["light"], L - 0.10, 0.045, 0.035)]),
            lighter(look.skin, 1.1, 30), 0.6, 0.015, cover)


def paint_eyes(c, h, look):
    """Lids, eyeballs and lashes."""
    v = h.v
    makeup = ramp(v["makeup"], -0.4, 1.0)
    for side in (-1, 1):
        upper, lower = h.lids(side)
        centre, w, slope = h.eye_frame(side)
        o = openness(v, side)
        n = len(upper)
        # skin of the upper lid, from the crease down to the edge
        crease = upper.copy()
        t = np.linspace(-1, 1, n)
        high = 0.262 + 0.035 * v["eye_size"] - 0.03 * (1 - o)
        crease[:, 1] = centre[1] + slope * t - high * np.sqrt(np.maximum(1 - (0.97 * t) ** 2, 0)) + 0.02
        lid = h.on(np.concatenate([crease, upper[::-1]]), 0.02)
        bare, painted = mix(look.skin, look.shadow, 0.20 + 0.25 * min(o, 1.0)), mix(look.pink, (120, 70, 110), 0.5)
        c.paint(lid, mix(bare, painted, 0.55 * ramp(v["makeup"], 0.2, 1.0)), 0.85, 0.012)
        c.stroke(h.on(crease, 0.02), taper(n) * 0.035, look.deep, 0.25 + 0.40 * min(o, 1.0), 0.008)
        ball = h.on(np.concatenate([upper, lower[::-1]]), 0.02)
        cover = c.whole(c.mask(ball))
        c.paint(ball, (246, 242, 238))
        r = 0.156 * (1 + 0.06 * v["eye_size"])
        gx, gy = centre[0] + 0.11 * v["gaze_x"], centre[1] - 0.03 + 0.065 * v["gaze_y"]
        c.paint(h.on(disc(gx, gy, r, r, 28), 0.02), look.iris * 0.55, 1.0, 0.0, cover)
        c.paint(h.on(disc(gx, gy, r * 0.84, r * 0.84, 28), 0.02), look.iris, 1.0, 0.01, cover)
        c.paint(h.on(disc(gx, gy + 0.45 * r, r * 0.55, r * 0.35), 0.02), lighter(look.iris, 1.35, 25), 0.6, 0.02, cover)
        c.paint(h.on(disc(gx, gy, r * 0.46, r * 0.46), 0.02), (16, 12, 14), 1.0, 0.0, cover)
        shade = upper.copy()
        shade[:, 1] += 0.055
        c.paint(h.on(np.concatenate([upper - (0, 0.05), shade[::-1]]), 0.02), (70, 48, 52), 0.55, 0.015, cover)
        c.paint(h.on(disc(gx - 0.05, gy - 0.055, 0.036, 0.036, 12), 0.02), (255, 255, 255), 0.95, 0.0, cover)
        # lashes: a dark brush line along the edge, longer outside
        edge = upper.copy()
        edge[-1] += (side * 0.035, -0.035 - 0.03 * makeup)
        c.stroke(h.on(edge, 0.03), taper(n, 0.35, 0.45, 0.62) * (0.058 + 0.028 * makeup), look.lash, 0.95, 0.0)
        width = taper(n, 0.3, 0.5, 0.7) * (0.024 + 0.014 * makeup)
        c.stroke(h.on(lower, 0.03), width, mix(look.deep, look.lash, 0.45), 0.8, 0.0)
        duct = disc(centre[0] - side * w * 0.95, centre[1] - slope * 0.9 + 0.012, 0.03, 0.022, 10)
        c.paint(h.on(duct, 0.02), (214, 128, 120), 0.7 * min(o, 1), 0.008)


def paint_brows(c, h, look):
    """Brows, over the fringe so that they always read."""
    v = h.v
    raise_ = 0.10 * v["brows"]
    for side in (-1, 1):
        arch = 0.05 * v["brow_arch"]
        y = -0.37 - raise_ + 0.02 * v["brows"]
        line = spline([(side * (h.half - 0.33), y + 0.035), (side * (h.half - 0.10), y - 0.02),
                       (side * (h.half + 0.14), y - 0.05 - arch),
                       (side * (h.half + 0.36), y + 0.06 - 0.4 * arch)], False)
        width = taper(len(line), 0.55, 0.12, 0.3) * 0.095 * (1 + 0.38 * v["brow_weight"])
        c.stroke(h.on(line, 0.04), width, look.brow, 0.88, 0.010)


def paint_mouth(c, h, look):
    """Lips, teeth and tongue."""
    v, drop = h.v, h.drop
    outer_up, inner_up, inner_low, outer_low = h.mouth()
    lift = 0.08
    c.paint(h.on(disc(0, outer_low[10, 1] + 0.07, 0.24, 0.05), lift), look.deep, 0.45, 0.04)
    upper = h.on(np.concatenate([outer_up, inner_up[::-1]]), lift)
    lower = h.on(np.concatenate([inner_low, outer_low[::-1]]), lift)
    inside = h.on(np.concatenate([inner_up, inner_low[::-1]]), lift - 0.02)
    cover = c.whole(c.mask(inside))
    c.paint(inside, (62, 18, 24))
    bottom = inner_low[10, 1]
    half = abs(inner_up[0, 0])
    # tongue, then the teeth, which are fixed to skull and jaw and are uncovered by the lips
    tongue = h.on(disc(0, bottom + 0.06 - 0.25 * drop, half * 0.62, 0.10 + 0.18 * drop), lift - 0.15)
    c.paint(tongue, (196, 84, 88), ramp(drop, 0.03, 0.15), 0.02, cover)
    t = np.linspace(-1, 1, 13)
    gum = (1.06 + 0.02 * v["nose_length"]) * h.long
    top = np.full(13, gum - 0.20)
    edge = gum + 0.015 + 0.02 * (1 - t * t) - 0.10 * max(v["smile"], 0) * t * t
    teeth = np.concatenate([np.stack([0.40 * t, top], 1), np.stack([0.40 * t, edge], 1)[::-1]])
    c.paint(h.on(teeth, lift - 0.06), (248, 242, 232), 1.0, 0.006, cover)
    base = gum + 0.80 * drop
    low = np.concatenate([np.stack([0.32 * t, base + 0.02 + 0.02 * t * t], 1),
                          np.stack([0.32 * t, np.full(13, base + 0.25)], 1)[::-1]])
    c.paint(h.on(low, lift - 0.08), (226, 216, 206), 0.9 * ramp(drop, 0.02, 0.12), 0.008, cover)
    under = np.concatenate([inner_up - (0, 0.05), (inner_up + (0, 0.03))[::-1]])         # shadow of the upper lip
    c.paint(h.on(under, lift), (62, 18, 24), 0.5, 0.012, cover)
    c.paint(upper, look.lip * np.array([0.86, 0.80, 0.80]))
    c.paint(lower, look.lip)
    full = outer_low[10, 1] - bottom
    gloss = h.on(disc(-0.04 * v["light"], bottom + 0.45 * full, half * 0.42, full * 0.2), lift)
    c.paint(gloss, lighter(look.lip, 1.15, 38), 0.6, 0.012)
    closed = 1 - ramp(drop, 0.0, 0.10)
    c.stroke(h.on(inner_up, lift), taper(21, 0.3, 0.3) * 0.034, look.lip * 0.34, 0.35 + 0.55 * closed, 0.004)
    for k in (0, -1):
        c.paint(h.on(disc(outer_up[k, 0], outer_up[k, 1], 0.035, 0.03, 10), lift), look.deep, 0.55, 0.012)


def paint_front_hair(c, h, look, face):
    """Hair on top and over the forehead."""
    v = h.v
    volume, length, wave = hair_sizes(h, look)
    loss = look.loss
    fw = 1 + 0.07 * v["face_width"]
    alpha = 1 - ramp(loss, 0.3, 0.8)
    side = ramp(v["parting"], -1, 1) * 2 - 1
    fringe = ramp(v["fringe"], -0.1, 1.1) * (1 - loss)
    xs = np.array([0.90, 0.62, 0.31, 0.0, -0.31, -0.62, -0.90])
    part = 0.62 * side
    recede = 0.66 * loss * np.array([0.55, 0.95, 1, 0.95, 1, 0.95, 0.55])
    edge = (np.abs(xs) / 0.9) ** 2                                          # 0 mid-forehead, 1 at the temples
    hairline = -1.12 + 0.05 * np.cos(7 * (xs - part)) * (1 - loss) - recede \
        + 0.34 * (np.abs(xs) / 0.9) ** 2.2 * (1 - 0.3 * loss) \
        + (0.08 + fringe) * (0.48 - 0.52 * np.exp(-((xs - part) / 0.34) ** 2)) * (1 - 0.35 * edge)
    inner = [(1.06 * fw, 0.14, 0.0), (1.01 * fw, -0.06, 0.1), (0.99 * fw, -0.38, 0.15)]
    middle = [(x * fw, y, z) for x, y, z in zip(xs, hairline, depth(np.stack([xs, hairline], 1)))]
    left_in = [(-x, y, z) for x, y, z in inner[::-1]]
    top = 1.66 + volume
    outer = [(-1.12 * fw - 0.3 * volume, 0.10, -0.12), (-1.13 * fw - 0.9 * volume, -0.35, -0.15),
             (-1.02 * fw - 0.95 * volume, -0.98 - 0.2 * volume, -0.18),
             (-0.62 * fw - 0.6 * volume, -1.47 - 0.75 * volume, -0.2),
             (-0.22 * side, -top - 0.10 * volume, -0.2), (0.62 * fw + 0.6 * volume, -1.47 - 0.75 * volume, -0.2),
             (1.02 * fw + 0.95 * volume, -0.98 - 0.2 * volume, -0.18), (1.13 * fw + 0.9 * volume, -0.35, -0.15),
             (1.12 * fw + 0.3 * volume, 0.10, -0.12)]
    shape = h.to(spline(inner + middle + left_in + outer))
    line = h.to(spline(inner[1:] + middle + left_in[:-1], False))
    c.stroke(line, 0.16, look.deep, 0.45 * alpha, 0.05, face)                # the shadow of the hair on the skin
    cover = c.form(shape, look.hair, look.towards, 0.22, 0.55, alpha, 0.012)
    # strands run from the parting to the hairline and the temples
    root = np.array([part * 0.8, -1.55 - 0.9 * volume, 0.0])
    for k, x in enumerate(np.linspace(-1.0, 1.0, 13)):
        tip = np.array([x * (1.04 * fw + 0.5 * volume), -0.25 - 0.72 * math.cos(1.45 * x) + 0.2 * fringe,
                        0.5 - 0.45 * abs(x)])
        bend = 0.5 * (root + tip) + np.array([0.34 * (x - part), -0.12 - 0.5 * volume, 0.1])
        strand = h.to(spline([root, bend, tip], False))
        tone = look.hair_lit if k % 2 else look.hair_dark
        c.stroke(strand, taper(len(strand)) * 0.055, tone, 0.30 * alpha, 0.012, cover)
    sheen = disc(0.45 * look.towards[0], -1.30 - 0.55 * volume, 0.55, 0.10)
    c.paint(h.to(np.column_stack([sheen, np.full(len(sheen), -0.1)])), look.hair_lit, 0.55 * alpha, 0.09, cover)


def paint_head(c, h):
    """Everything, from back to front -> the picture of the canvas."""
    look = Look(h.v)
    paint_background(c, look)
    paint_back_hair(c, h, look)
    paint_body(c, h, look)
    paint_ears(c, h, look)
    paint_locks(c, h, look)
    face = paint_face(c, h, look)
    paint_beard(c, h, look, face)
    paint_nose(c, h, look, face)
    paint_mouth(c, h, look)
    paint_eyes(c, h, look)
    paint_front_hair(c, h, look, face)
    paint_brows(c, h, look)
    return c.picture


# ------------------------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------------------------

def rotation(angle):
    """(2, 2), clockwise in the picture for an angle in radians."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def in_crop(p, size):
    """Head of p placed as in draw()."""
    h = Head(p)
    v = h.v
    eyes = h.rotate(np.array([[s * h.half, 0.0, depth(np.array([s * h.half, 0.0]))] for s in (-1, 1)])).mean(0)
    scale = size / (8.0 * h.half * DLIB_EYES) * (1 + ZOOM * v["zoom"])
    A = scale * rotation(TILT * v["tilt"])
    centre = eyes + (0.0, 0.22 * h.half * DLIB_EYES)
    shift = size * SHIFT * np.array([v["shift_x"], v["shift_y"]])
    return h.put(A, 0.5 * size + shift - A @ centre - 0.5)


def in_scene(p, size, head_x=0.5, head_y=0.42, head_scale=1.0, head_roll=0.0):
    """Head of p placed as in draw_scene(); the body follows a quarter of the head's roll."""
    h = Head(p)
    unit = 0.13 * size * head_scale
    A, B = unit * rotation(head_roll), unit * rotation(0.25 * head_roll)
    at = np.array([head_x, head_y]) * size
    pivot = NECK[:2] * unit
    b = at + pivot - A @ NECK[:2] - 0.5
    return h.put(A, b, B, at + pivot - B @ NECK[:2] - 0.5)


def finish(c, size):
    """Canvas -> (size, size, 3) uint8."""
    return np.clip(cv2.resize(c.picture, (size, size), interpolation=cv2.INTER_AREA) + 0.5, 0, 255).astype(np.uint8)


def draw(p, size=128, oversample=2):
    """The aligned crop of a head: p (Z,) in [-1, 1] -> (size, size, 3) uint8 RGB.

    The crop is embed.py's, FFHQ's from the eyes alone, known here without noise: the side is 4 times the frontal eye
    distance as dlib sees it on average, the centre 0.11 eye distances below the eyes' midpoint, upright but for the
    roll; CAMERA then moves it.
    """
    S = size * oversample
    c = Canvas(S, S / 4)
    paint_head(c, in_crop(p, S))
    return finish(c, size)


def draw_scene(p, size=512, head_x=0.5, head_y=0.42, head_scale=1.0, head_roll=0.0, oversample=2):
    """The same head with shoulders in a wider frame: p (Z,) -> (size, size, 3) uint8 RGB.

    head_x, head_y: the point between the eyes at rest, in shares of the side. head_scale: 1 makes the eye distance 0.13
    sides. head_roll: radians, clockwise. CAMERA is not used.
    """
    S = size * oversample
    c = Canvas(S, 0.13 * S)
    paint_head(c, in_scene(p, S, head_x, head_y, head_scale, head_roll))
    return finish(c, size)


def eye_corners(p, size=512, **scene):
    """Where draw_scene(p, size, **scene) draws dlib's points 36, 39, 42, 45: (4, 2) pixels, x right, y down."""
    h = in_scene(p, size, **scene)
    corners = []
    for side in (-1, 1):
        upper, _ = h.lids(side)
        ends = h.on(upper[[0, -1]], 0.02)                                       # inner, outer corner
        corners += [ends[1], ends[0]] if side < 0 else [ends[0], ends[1]]
    return np.array(corners)


# ------------------------------------------------------------------------------------------------------------------
# Talking
# ------------------------------------------------------------------------------------------------------------------

def glide(rng, n, fps, still, moving, spread):
    """A value that rests, then moves on with minimum jerk (n,). still, moving: ranges in seconds; spread of targets."""
    x, value, t = np.empty(n), 0.0, 0
    while t < n:
        rest = int(fps * rng.uniform(*still))
        x[t:t + rest] = value
        t += rest
        steps = max(1, int(fps * rng.uniform(*moving)))
        target = float(np.clip(spread * rng.standard_normal(), -0.85, 0.85))
        u = (np.arange(max(0, min(steps, n - t))) + 1) / steps
        x[t:t + len(u)] = value + (target - value) * (10 * u ** 3 - 15 * u ** 4 + 6 * u ** 5)
        value, t = target, t + steps
    return x


def bumps(n, fps, centres, widths, heights):
    """Sum of raised cosines, (n,): seconds, full widths in seconds, heights."""
    t, x = np.arange(n) / fps, np.zeros(n)
    for centre, width, height in zip(centres, widths, heights):
        x += height * 0.5 * (1 + np.cos(np.pi * np.clip(2 * (t - centre) / width, -1, 1)))
    return x


def talk(n, fps, seed):
    """n frames of talking -> motion parameters (n, len(MOTION)) in [-1, 1], the head's place as a dict of (n,) arrays.

    Phrases of 1.5 to 4 s with syllables, pauses between them, blinks every 2 to 5 s, nods and raised brows on stressed
    syllables, turns of the head that take half a second to one, gaze that jumps, a smile that comes and goes.
    """
    rng, end = np.random.RandomState(seed), n / fps
    syllables, t = [], 0.3
    while t < end:
        phrase = t + rng.uniform(1.5, 4.0)
        while t < phrase:
            syllables.append(t)
            t += rng.uniform(0.2, 0.36)
        t += rng.uniform(0.35, 1.0)
    syllables, m = np.array(syllables), len(syllables)
    loud = rng.uniform(0.25, 1.0, m)
    stressed = rng.uniform(size=m) < 0.15
    loud[stressed] = rng.uniform(1.0, 1.25, stressed.sum())
    blinks = np.cumsum(rng.uniform(2.0, 5.0, int(end / 2) + 2))
    opening = bumps(n, fps, syllables, rng.uniform(0.28, 0.42, m), 1.25 * loud)
    track = {
        "jaw": -0.92 + np.minimum(opening, 1.7),
        "width": 0.15 + bumps(n, fps, syllables, rng.uniform(0.3, 0.5, m), 0.55 * rng.uniform(-1, 1, m)),
        "smile": 0.2 + 0.6 * glide(rng, n, fps, (0.5, 3.0), (0.5, 1.5), 0.6),
        "blink": -0.6 + bumps(n, fps, blinks, np.full(len(blinks), 0.32), np.full(len(blinks), 1.6)),
        "wink": np.zeros(n),
        "brows": -0.1 + 0.25 * glide(rng, n, fps, (1.0, 4.0), (0.3, 0.8), 0.7)
        + bumps(n, fps, syllables[stressed], np.full(stressed.sum(), 0.7), rng.uniform(0.2, 0.8, stressed.sum())),
        "yaw": 0.9 * glide(rng, n, fps, (0.1, 0.9), (0.4, 1.0), 0.45),
        "pitch": 0.8 * glide(rng, n, fps, (0.1, 0.9), (0.4, 1.0), 0.35)
        + bumps(n, fps, syllables[stressed] + 0.05, np.full(stressed.sum(), 0.6),
                rng.uniform(0.2, 0.5, stressed.sum())),
        "roll": glide(rng, n, fps, (0.2, 1.2), (0.5, 1.2), 0.35),
        "gaze_x": glide(rng, n, fps, (0.6, 2.5), (0.08, 0.14), 0.4),
        "gaze_y": glide(rng, n, fps, (0.8, 3.0), (0.08, 0.14), 0.25),
    }
    place = {"head_x": 0.5 + 0.015 * glide(rng, n, fps, (0.3, 2.0), (1.0, 2.5), 0.8),
             "head_y": 0.42 + 0.008 * glide(rng, n, fps, (0.3, 2.0), (1.0, 2.5), 0.8),
             "head_scale": 1.0 + 0.02 * glide(rng, n, fps, (0.5, 3.0), (1.5, 3.0), 0.8),
             "head_roll": math.radians(5) * glide(rng, n, fps, (0.5, 2.5), (1.0, 2.0), 0.6)}
    return np.clip(np.stack([track[name] for name in MOTION], 1), -1, 1).astype(np.float32), place


def repeat(n, fps, seed, times):
    """One sentence said `times` times in n frames, as talk() returns it: each time the tempo sways by up to a tenth of a second
    and every movement is a little stronger or weaker; within the last half second all returns to where it began."""
    m, rng = n // times, np.random.RandomState(seed)
    motion, place = talk(m, fps, seed)
    track = np.concatenate([motion, np.stack(list(place.values()), 1)], 1)      # (m, 11 + 4)
    back = np.clip((np.arange(m) - m) / (0.5 * fps) + 1, 0, 1)[:, None]         # 0, but rises to 1 at the end
    track = track + (3 * back ** 2 - 2 * back ** 3) * (track[0] - track)
    parts, middle = [], track.mean(0)
    for k in range(times):
        t = np.arange(m + (n % times if k == times - 1 else 0))
        sway = 0.1 * fps * rng.uniform(-1, 1) * np.sin(np.pi * t / m) + 0.05 * fps * rng.uniform(-1, 1) * np.sin(3 * np.pi * t / m)
        said = np.stack([np.interp(t + sway, np.arange(m), column) for column in track.T], 1)
        parts.append(middle + (said - middle) * (1 + 0.06 * rng.uniform(-1, 1, track.shape[1]) * np.sin(np.pi * np.minimum(t / m, 1))[:, None]))
    said = np.concatenate(parts)
    return (np.clip(said[:, :len(MOTION)], -1, 1).astype(np.float32),
            {name: said[:, len(MOTION) + k] for k, name in enumerate(place)})


def actor(seed, spread=0.8):
    """Identity for a clip, (Z,) with motion and camera at rest: random, a little nearer to the average than z is."""
    p = spread * params(np.random.RandomState(seed).standard_normal(Z))
    p[len(IDENTITY):] = 0
    return p


def clip(seconds, fps, seed, size=512, voice=0, times=1):
    """Frames (size, size, 3) uint8 RGB of one head talking, one by one. seed: who; voice: what is said; times: how often."""
    n, p = round(seconds * fps), actor(seed)
    motion, place = talk(n, fps, voice) if times == 1 else repeat(n, fps, voice, times)
    for k in range(n):
        p[len(IDENTITY):len(IDENTITY) + len(MOTION)] = motion[k]
        yield draw_scene(p, size, **{name: float(track[k]) for name, track in place.items()})


def check(args):
    """Raises InputError for options that cannot be drawn."""
    if not args.sheet and not args.clip:
        raise InputError("nothing to draw; name a picture with --sheet or a video with --clip.")
    for name, lo, hi in (("seconds", 0.1, 3600), ("fps", 1, 240), ("size", 64, 2048), ("seed", 0, 2 ** 32 - 1),
                         ("voice", 0, 2 ** 32 - 1), ("times", 1, 100), ("crf", 0, 51)):
        if not lo <= getattr(args, name) <= hi:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; give {lo} to {hi}.")
    if args.size % 8:                                                           # coarse masks have to end at the border
        raise InputError(f"--size {args.size} is not a multiple of 8; give {args.size // 8 * 8}.")
    if args.sheet and Path(args.sheet).suffix.lower() != ".png":
        raise InputError(f"{args.sheet} is no name of a PNG file; let it end in .png.")


def main(args):
    check(args)
    if args.sheet:
        rng = np.random.RandomState(args.seed)
        cells = [draw(params(rng.standard_normal(Z)), 160) for _ in range(48)]
        sheet = np.concatenate([np.concatenate(cells[k:k + 8], 1) for k in range(0, 48, 8)])
        if not cv2.imwrite(args.sheet, sheet[..., ::-1]):
            raise InputError(f"{args.sheet} cannot be written; name a .png in a folder that exists with --sheet.")
        print(f"faces.py: wrote {args.sheet}, 48 heads.", file=sys.stderr)
    if args.clip:
        with VideoWriter(args.clip, args.fps, crf=args.crf) as video:
            for frame in tqdm(clip(args.seconds, args.fps, args.seed, args.size, args.voice, args.times), unit="frame",
                              total=round(args.seconds * args.fps), desc=args.clip, mininterval=0.5):
                video.write(frame)
        print(f"faces.py: wrote {args.clip}, {video.frames} frames.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sheet", metavar="FILE", help="contact sheet of random heads to write (.png)")
    parser.add_argument("--clip", metavar="FILE", help="video of one head talking to write (.mp4)")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--size", type=int, default=512, help="side of the video in pixels")
    parser.add_argument("--seed", type=int, default=0, help="who is drawn")
    parser.add_argument("--voice", type=int, default=0, help="what is said")
    parser.add_argument("--times", type=int, default=1, help="how often it is said within these seconds")
    parser.add_argument("--crf", type=float, default=20, help="x264's quality")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"faces.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "faces.py: interrupted; nothing was written.\n")
