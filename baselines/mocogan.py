"""MoCoGAN's motion codes (Tulyakov et al., CVPR 2018, arXiv:1707.04993), translated by StyleVideoGAN's T.

    python train.py latents.npy --model mocogan

A content code z_C, one for the whole video, and motion codes of one recurrent cell, as its code has them
(sergeytulyakov/mocogan, 0ceb542, src/models.py, sample_z_m):
    z_M(k) = h(k) = GRU(e(k), h(k-1)),  h(0) and all e(k) ~ N(0, I);  frame k = G_I([z_C, z_M(k)]),
the first frame being k = 1. The image generator G_I becomes T of [z_C, h(k)].

Ours: z_C and h of 32 numbers each (src/train.py, 039fdef: 50 and 10). Left out, as critic, losses and rates
are those of all rows: the discriminators of single frames and of 16 frames, cross entropy, categories. It is
StyleVideoGAN's P with one cell, without H and without the gradient angle penalty.
Copied into another project, models.py comes along.
"""

import torch
from torch import nn

from models import Translator


class MoCoGAN(Translator):
    """i (B, 96): z_C, h(0), e(1); s (B, K, 32): e -> motion codes (B, K, 64). Memory: z_C and h."""

    kind, memory = "mocogan", 2

    def __init__(self, L, D, noise=32, width=None):
        super().__init__(L, D, 2 * noise, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": self.width}
        self.noise, self.start = noise, 3 * noise
        self.recurrent = nn.GRU(noise, noise, batch_first=True)

    def hidden(self, i):
        content, h, e = i.chunk(3, 1)
        return torch.stack([content, self.recurrent(e[:, None], h[None].contiguous())[0][:, 0]])

    def code(self, h):
        return torch.cat([h[0], h[1]], 1)

    def roll(self, s, h):
        motion, last = self.recurrent(s, h[1:].contiguous())                    # (B, K, 32), (1, B, 32)
        content = h[0][:, None].expand_as(motion)
        return torch.cat([content, motion], 2), torch.cat([h[:1], last])
