"""LongVideoGAN's temporal latent (Brooks et al., NeurIPS 2022, arXiv:2206.03429), then StyleVideoGAN's T.

    python train.py latents.npy --model longvideogan

White noise e passes a fixed bank of low-pass filters f_j of exponentially spaced lengths, and a mapping
network sees all of them, frame by frame (code: NVlabs/long-video-gan, 4151a8b, model/generator_lres.py,
BlurredNoise and LatentMappingNetwork):
    x_cj(t) = sum_k f_j(k) e_c(t - k),  var x_cj = 1;  code(t) = M(x(t)).
f_j: a sinc under a Kaiser window, scipy.signal.firwin of fs / 2 taps with cutoff 2 and width 12 at sampling
rate fs: nearly of one shape, stretched, and ending at the present frame. M: PixelNorm and two layers. It is
a stationary process from its first frame on, at any length; what was 1,000 frames ago is forgotten, so it
cannot loop. StyleVideoGAN's T (table 6) translates the code.

Ours: 4 noises and 16 filters of 8 to 1,000 taps (code: 8, 128, 125 to 5,000), as every window of a training
draws its whole past, and as nothing after the filters adds motion: the autocorrelations of x fall to a half
after 2 to 229 frames. So x and M are 64 wide (code: 1,024). Plain layers that start as equalised ones do,
where the code learns M at a hundredth of the rate. Left out, as critic, losses and rates are those of all
rows: its critics, augmentation; and convolutions over time, latents at lower frame rates for the first of
them, the second network, for high resolution.
Copied into another project, models.py comes along.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from models import SLOPE, PixelNorm, Translator, mlp


def low_pass(taps):
    """scipy.signal.firwin(taps, 2, width=12, fs=2 * taps) with a sum of squares of 1: (taps,)."""
    # Kaiser's formulas for a transition 12 / taps wide, in half sampling rates, and more than 50 dB
    decibel = 2.285 * (taps - 1) * math.pi * 12 / taps + 7.95
    window = torch.kaiser_window(taps, False, 0.1102 * (decibel - 8.7), dtype=torch.float64)
    t = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    f = torch.sinc(2 / taps * t) * window
    return (f / f.norm()).float()


class LongVideoGAN(Translator):
    """i (B, 4 * 1000), s (B, K, 4): e -> motion codes (B, K, 64). Memory: the last e, (4, B, 1000).

    noise, which all motion models are given, is not used: each frame takes `noises` numbers.
    """

    kind = "longvideogan"

    def __init__(self, L, D, noise=32, width=None, noises=4, widths=16, shortest=8, longest=1000):
        n = noises * widths
        super().__init__(L, D, n, width)
        self.sizes = {"L": L, "D": D, "width": self.width, "noises": noises, "widths": widths,
                      "shortest": shortest, "longest": longest}
        self.noise = self.memory = noises
        self.taps, self.start = longest, noises * longest
        steps = [j / (widths - 1) for j in range(widths)]
        bank = [low_pass(round(shortest * (longest / shortest) ** j)) for j in steps]
        bank = torch.stack([F.pad(f, (longest - len(f), 0)) for f in bank])     # (16, 1000)
        self.register_buffer("bank", bank, persistent=False)
        self.map = nn.Sequential(PixelNorm(), *mlp([n, n, n]))
        for layer in self.map[1::2]:                        # mean square kept (code: 4 % more)
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def filtered(self, e):
        """e (4, B, 999 + K), oldest first -> x (B, K, 64). No gradient: nothing in front of it learns."""
        x = F.conv1d(e.reshape(-1, 1, e.shape[2]), self.bank[:, None])          # (4 B, 16, K)
        return x.unflatten(0, e.shape[:2]).permute(1, 3, 0, 2).flatten(2)

    def hidden(self, i):
        return i.reshape(len(i), self.memory, self.taps).transpose(0, 1)

    def code(self, h):
        return self.map(self.filtered(h))[:, 0]

    def roll(self, s, h):
        e = torch.cat([h, s.permute(2, 0, 1)], 2)                               # (4, B, 1000 + K)
        return self.map(self.filtered(e[:, :, 1:])), e[:, :, -self.taps:]
