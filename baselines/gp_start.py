"""Ours: motion is a fixed Gaussian process with the training video's autocovariance, and only T is learned.

    python train.py latents.npy --model gp_start

z and z' are two independent draws of the stationary VAR(8) of the video's 32 PCA coordinates (gaussian.py,
Yule-Walker), and
    frame = mean + basis z + T(z, z'),
T as in table 6 of StyleVideoGAN, near zero at the start. Means and covariances of windows are then right in
those coordinates before the first step, at any length, and the critics have only that to teach which is not
Gaussian: blinks, lips, heavy tails. It needs neither H nor a GRU nor the gradient angle penalty: noise enters
with every frame. z' gives T what the frame does not say yet.
Copied into another project, models.py and gaussian.py come along.
"""

import torch

from baselines.gaussian import VAR
from models import Translator

FIRST = 0.02    # ours: deviation of T's output at the start, over the codes'; small, but no gradient vanishes


class GPStart(Translator):
    """i (B, 512), s (B, K, 64) -> z, z' (B, K, 64). Memory: 8 frames of each, (1, B, 512)."""

    kind, memory = "gp_start", 1

    def __init__(self, L, D, noise=32, width=None):
        super().__init__(L, D, 2 * noise, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": self.width}
        self.var = VAR(L, D)
        self.directions, self.noise, self.start = noise, 2 * noise, 2 * self.var.start

    @torch.no_grad()
    def prepare(self, codes, clips, pca):
        """Fit the process to training codes (N, L, D); T starts near zero."""
        self.var.fit((codes - pca["mean"]).flatten(1) @ pca["basis"].flatten(1).T, clips, pca)
        self.rows_norm.weight.fill_(FIRST * codes.std(0).mean())
        self.rows_norm.bias.zero_()

    def hidden(self, i):
        return self.var.hidden(i.reshape(2 * len(i), -1)).reshape(1, len(i), -1)

    def code(self, h):
        return h[0].unflatten(1, (2, -1))[..., :self.directions].flatten(1)     # VAR keeps the newest first

    def roll(self, s, h):
        B, K, n = len(s), s.shape[1], self.directions
        s = s.reshape(B, K, 2, n).transpose(1, 2).reshape(2 * B, K, n)
        x, h = self.var.roll(s, h.reshape(1, 2 * B, -1))                        # (2 B, K, 32)
        return x.reshape(B, 2, K, n).transpose(1, 2).flatten(2), h.reshape(1, B, -1)

    def translate(self, l):
        return self.var.translate(l[..., :self.directions]) + super().translate(l)
