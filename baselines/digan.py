"""DIGAN's motion (Yu et al., ICLR 2022, arXiv:2202.10571): one vector bends the phases of waves; then T.

    python train.py latents.npy --model digan
    python sample.py --fps 60 --t 600 -o walk.npy               # any frame rate

A video is a content code z_C and a motion code z_M. In every resolution of its image network, the features of
a place (x, y) at time t are, as the code has them (sihyun-yu/digan, 8eeba58, src/training/layers.py,
CoordFuser; configs/digan.yml),
    [sin, cos](W (x, y) + b + m(t)),  W, b affine in w,
    m(t) = M(LeakyReLU(sigma t A [w, z_M])),  A affine, M two layers,
with w the mapped z_C and sigma = 0.25, where W has sqrt(10) (fourier_scale): phases run slower in t than in
x and y. t = 1 at the last of 16 frames (networks.py, Generator; dataset.py, 2709d68). Without the places
there remains
    code(t) = [sin, cos](b(w) + m(t)),
which StyleVideoGAN's T (table 6) translates. t passes through LeakyReLUs and linear layers alone, so m is
piecewise linear in t: after its last kink every phase runs at a constant speed of its own. No noise enters
after the start: one (z_C, z_M) is a whole trajectory.

z_C stays, although there is one actor: m(0) is the same for all, so z_C alone makes first frames differ.
128 phases (configs/digan.yml), here once, there in every resolution; w in two layers (src/train.py, "auto").
Ours: sigma = 4, with which phases start at a turn in about 1.3 seconds of 25 frames; with 0.25, 21 seconds,
samples hardly moved after 120 steps (`motion` of our train.py's report 768, with 4 it was 49). z_C, z_M and w
of 32 numbers (code: 512); plain layers that start as equalised ones do, where the code learns the two layers
of w at a hundredth of the rate. Left out, as critic, losses and rates are those of all rows: the
discriminators of frames and of pairs with their time difference, its draws of t, augmentation; and places,
labels.
Copied into another project, models.py comes along.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models import SLOPE, PixelNorm, Translator, mlp

SIGMA = 4.0     # ours; motion_sigma of configs/digan.yml is 0.25
CLIP = 15       # frames from the code's t = 0 to its t = 1


class DIGAN(Translator):
    """i (B, 64): z_C, z_M; s (B, K, .) only counts -> motion codes (B, K, 2 n). Memory: both and a clock."""

    kind, memory, continuous = "digan", 3, True

    def __init__(self, L, D, noise=32, width=None, n=128):
        super().__init__(L, D, 2 * n, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": self.width, "n": n}
        self.noise, self.start = noise, 2 * noise
        self.content = nn.Sequential(PixelNorm(), *mlp([noise, noise, noise]))
        self.phase, self.speed = nn.Linear(noise, n), nn.Linear(2 * noise, n)               # b, A
        self.bend = nn.Sequential(*mlp([n, n]), nn.Linear(n, n))                            # M
        for layer in (self.content[1], self.content[3], self.bend[0]):  # mean square kept (code: 4 % more)
            nn.init.kaiming_normal_(layer.weight, SLOPE)
        for layer in (self.phase, self.speed, self.bend[2]):                    # no LeakyReLU follows
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        for layer in (*self.content[1::2], self.phase, self.speed, *self.bend[::2]):
            nn.init.zeros_(layer.bias)

    def codes(self, h, t):
        """code(t): h (3, B, 32); t (B, K), in frames -> (B, K, 2 n)."""
        w = self.content(h[0])
        speed = SIGMA / CLIP * self.speed(torch.cat([w, h[1]], 1))              # (B, n)
        m = self.bend(F.leaky_relu(t[..., None] * speed[:, None], 0.01))        # torch's default, theirs
        angle = self.phase(w)[:, None] + m
        return torch.cat([angle.sin(), angle.cos()], 2)

    def hidden(self, i):
        z_C, z_M = i.chunk(2, 1)
        return torch.stack([z_C, z_M, torch.zeros_like(z_C)])

    def code(self, h):
        return self.codes(h, h[2, :, :1])[:, 0]

    def roll(self, s, h, at=None):
        """at (N,): times in (0, K], in frames from where h stands; else 1, 2, ..., K."""
        K = s.shape[1]
        at = torch.arange(1, K + 1, device=s.device) if at is None else at
        return self.codes(h, h[2, :, :1] + at), torch.stack([h[0], h[1], h[2] + K])
