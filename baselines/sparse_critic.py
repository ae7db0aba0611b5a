"""StyleGAN-V's discriminator (Skorokhodov et al., CVPR 2022, arXiv:2112.14683) on three codes.

    python train.py latents.npy --model stylegan_v --critic sparse --window 33

Of every window it sees k = 3 frames (table 3) at t_1 < t_2 < t_3: t_3 - t_1 uniform from 2 to the length of
the window less one (sec. 3.3: 32), t_2 at random between. e_i = E(w at t_i), h = [e_1, e_2, e_3]. The
distances t_2 - t_1 and t_3 - t_2, as sines and cosines and as a learned vector each, make p in two layers.
    score = <head(h (1 + M p)), p> / sqrt(width)
(sec. 3.2, fig. 6; code: universome/stylegan-v, 1f630af, src/training/networks.py and layers.py), and the
losses are softplus(-score) of real, softplus(score) of sampled frames, and 0.2 / 2 |d score / d real|^2: R1
(app. B.1).

Where text and code differ: the code has the projection onto p alone, no modulated layers (why: issue 6
there); here, as the text, the first layer of the head is modulated, but not demodulated, and those of E are
not. Total distances are uniform, as the text (code: powers of two). Learned vectors, and both distances
through the two layers at once, as the code. R1 is the sum over the three frames, as it is defined (code:
their mean).
Ours: E has the six layers of StyleVideoGAN's table 7, all of full width, and sees scaled codes; real and
sampled windows share their times, which are whole frames; learned vectors of 20 numbers (code: 256), no layer
and norm before p's two; R1 at every step (code: every 16th). Left out: augmentation, the feature of the
batch's deviation, and what tells the other critic that a window does not begin with i.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from models import MotionCritic, mlp

R1 = 0.2            # (app. B.1)
LONGEST = 1024      # frames: half a period of the slowest wave (code: the longest video)


class SparseCritic(nn.Module):
    """Windows (B, T, L, D) and times (B, 3), uniform in [0, 1), that choose their frames -> scores (B,)."""

    set_scale = MotionCritic.set_scale

    def __init__(self, L, D, T):
        super().__init__()
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("std", torch.ones(L, D))
        self.extract = mlp([L * D, *(6 * [D])])                                 # E
        self.register_buffer("frequency", math.pi * 2.0 ** torch.arange(10) / LONGEST)
        self.distance = nn.Embedding(T, 20)                                     # a vector for each
        self.condition = mlp([2 * 40, D, D])                                    # p
        self.modulate = nn.Linear(D, 3 * D)                                     # M
        self.head = nn.Sequential(*mlp([3 * D, D]), nn.Linear(D, D))

    def frames(self, w, times):
        """Three scaled frames of each window (B, 3, L D) and their two distances (B, 2)."""
        B, T = w.shape[:2]
        u, v, x = times.unbind(1)                                               # (B,) each
        span = 2 + (u * (T - 2)).long()                                         # 2 ... T - 1
        first = (v * (T - span)).long()
        second = first + 1 + (x * (span - 1)).long()
        t = torch.stack([first, second, first + span], 1)
        w = w[torch.arange(B, device=w.device)[:, None], t]                     # (B, 3, L, D)
        return ((w - self.mean) / self.std).flatten(2), t.diff(dim=1)

    def score(self, x, distances):
        """Scaled frames (B, 3, L D), distances (B, 2) -> (B,)."""
        angle = distances[..., None] * self.frequency                           # (B, 2, 10)
        waves = torch.cat([angle.sin(), angle.cos(), self.distance(distances)], 2)
        p = self.condition(waves.flatten(1))                                    # (B, D)
        h = self.extract(x).flatten(1) * (1 + self.modulate(p))
        return (self.head(h) * p).sum(1) / math.sqrt(p.shape[1])

    def losses(self, real, fake, times):
        """Of the critic: the whole, without R1, and R1's mean |d score / d x|^2 of real frames."""
        x, distances = self.frames(real, times)
        x.requires_grad_()
        score = self.score(x, distances)
        slope, = torch.autograd.grad(score.sum(), x, create_graph=True)
        r1 = slope.square().sum((1, 2)).mean()
        loss = F.softplus(-score).mean() + F.softplus(self.score(*self.frames(fake, times))).mean()
        return loss + R1 / 2 * r1, loss, r1

    def generator_loss(self, fake, times):
        return F.softplus(-self.score(*self.frames(fake, times))).mean()
