"""StyleInV's motion (Wang et al., ICCV 2023, arXiv:2308.16909): a first frame and what a style adds to it.

    python train.py latents.npy --model styleinv
    python sample.py --fps 60 --t 600 -o walk.npy               # any frame rate
    python sample.py --first face.npy -o walk.npy               # animate this W+ code

w(t) = w_0 + E(x_0; s_t), with x_0 the first frame and s_t = two layers of [v_t, w_0] (supplement, sec. F;
code: johannwyh/StyleInV, 9eb51f7, training/networks_styleinv.py and training/styleinv/). E is an encoder
whose blocks s_t modulates (AdaIN with a residual connection, variance kept: sec. F; helpers.py):
    x <- (x + layer(LeakyReLU((1 + gamma(s)) norm(x) + beta(s)))) / sqrt(2).
v_t are StyleGAN-V's waves (stylegan_v.py) on other grid vectors u (FFA-APE): the convolutions look back only
(kernel 6, zeros before the start: sec. F), and grid vector 0 is learned, not drawn (motion.py). So v_0 is the
same for all, and E can learn w(0) = w_0. Its own loss (sec. F; training/loss_styleinv.py):
    10 |w(0) - w_0|^2 + 0.05 |w(t) - w_0|.

Where text and code differ: kernel 11 whose right half is masked, the same thing; periods of 16 to 128 frames
(configs/ffs.yaml), here as StyleGAN-V's, as the text says; |w(0) - w_0|^2 of pictures in ffs.yaml, of codes
where the code has its weight negative, and here.
Ours: E takes the 32 PCA coordinates of w_0 in place of the picture and the 50 layers of pSp, over their
standard deviations, through three blocks of one layer each (four of two), normalised over the width, not over
the picture; W+ in place of one row of W; losses over the training codes' variance and its root (code: mean
over entries, plain norm). w_0 is drawn from their Gaussian (upstream: by the mapping network), or given by
--first. z has 32 numbers (512), u starts with a root mean square of 1 (code: 0.3). Left out: the
discriminator on four frames, the first being w_0 itself; the start of E as an inversion encoder; the rates,
0.0001 for E and 0.002 for it, and a hundredth of E's for u and s.
Copied into another project, models.py and stylegan_v.py come along.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from baselines.stylegan_v import AcyclicWaves, grid_vectors
from models import SLOPE, Translator, mlp

FIRST, PULL = 10.0, 0.05    # weights of the two losses (supplement, sec. F: lambda_L2, lambda_reg)


class StyleInV(nn.Module):
    """i (B, 64): z_1, x_0; s (B, K, 32) -> codes [E's last layer, x_0] (B, K, width + 32).

    Memory: 12 grid vectors, (clock, number of the first of them), x_0.
    """

    kind, continuous = "styleinv", True
    motion, forward = Translator.motion, Translator.forward

    def __init__(self, L, D, noise=32, width=None, grid=16, kernel=6, periods=(8, 1024), blocks=3):
        super().__init__()
        width = width or D
        waves, n = width // 2, noise                                            # n: PCA coordinates of w_0
        self.sizes = {"L": L, "D": D, "noise": noise, "width": width, "grid": grid, "kernel": kernel,
                      "periods": list(periods), "blocks": blocks}
        self.L, self.D, self.noise, self.width, self.grid = L, D, noise, width, grid
        self.start, self.span, self.memory = noise + n, 2 * kernel, 2 * kernel + 2

        # Temporal style: v_t and s_t
        self.z_0 = nn.Parameter(torch.randn(noise))
        self.convolutions = nn.ModuleList([nn.Conv1d(noise, width, kernel), nn.Conv1d(width, width, kernel)])
        for layer in self.convolutions:                                         # keeps the mean square
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)
        self.waves = AcyclicWaves(width, waves, grid, periods)
        self.style = mlp([2 * waves + n, width, width])

        # E
        self.enter = nn.Linear(n, width)
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.leave = nn.Linear(width, L * D)
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("basis", torch.zeros(n, L, D))
        self.register_buffer("std", torch.ones(n))

    @torch.no_grad()
    def prepare(self, codes, clips, pca):
        """Take over the PCA of the training codes; w(t) starts near w_0 (ours: at a tenth of their scale)."""
        for name in ("mean", "basis", "std"):
            getattr(self, name).copy_(pca[name])
        self.leave.weight *= 0.1 * codes.std(0).mean()
        self.leave.bias.zero_()

    def begin(self, i, w):
        """i (B, 64) with the first code w (L, D) for its own. What lies beyond the PCA is lost."""
        x_0 = self.basis.flatten(1) @ (w - self.mean).flatten() / self.std
        return torch.cat([i[:, :self.noise], x_0.expand(len(i), -1)], 1)

    def hidden(self, i):
        z_1, x_0 = i.chunk(2, 1)
        before, z_0 = i.new_zeros(len(i), self.span - 2, self.noise), self.z_0.expand(len(i), 1, -1)
        clock = i.new_zeros(len(i), 1)
        return self.pack(torch.cat([before, z_0, z_1[:, None]], 1), clock, clock + 2 - self.span, x_0)

    def pack(self, z, clock, number, x_0):
        clocks = F.pad(torch.cat([clock, number], 1), (0, self.noise - 2))
        return torch.cat([z.transpose(0, 1), clocks[None], x_0[None]])

    def unpack(self, h):
        return h[:-2].transpose(0, 1), h[-2, :, :1], h[-2, :, 1:2], h[-1]

    def codes(self, z, number, t, x_0):
        """z (B, n, 32), number (B, 1) of the first; t (B, K), in frames from the eleventh on."""
        there = (number + torch.arange(z.shape[1], device=z.device) >= 0)[:, None].to(z.dtype)  # (B, 1, n)
        u = z.transpose(1, 2)
        for layer in self.convolutions:
            u = F.leaky_relu(layer(u * there[..., -u.shape[2]:]), SLOPE)        # zeros before number 0
        v = self.waves(u.transpose(1, 2), t)                                    # (B, K, 2 waves)

        x_0 = x_0[:, None].expand(-1, v.shape[1], -1)
        s, x = self.style(torch.cat([v, x_0], 2)), self.enter(x_0)
        for modulate, layer in zip(self.modulate, self.layers):
            gamma, beta = modulate(s).chunk(2, 2)
            y = (1 + gamma) * F.layer_norm(x, x.shape[-1:]) + beta
            x = (x + layer(F.leaky_relu(y, SLOPE))) / math.sqrt(2)
        return torch.cat([x, x_0], 2)

    def code(self, h):
        z, clock, number, x_0 = self.unpack(h)
        return self.codes(z, number, clock, x_0)[:, 0]

    def roll(self, s, h, at=None):
        """at (n,): times in (0, K], in frames from where h stands; else 1, 2, ..., K."""
        z, clock, number, x_0 = self.unpack(h)
        at = torch.arange(1, s.shape[1] + 1, device=s.device) if at is None else at
        z, kept, after, passed = grid_vectors(z, s, clock, self.grid)
        l = self.codes(z, number, clock + at, x_0)
        if torch.is_grad_enabled():
            self.last = l, x_0
        return l, self.pack(kept, after, number + passed, x_0)

    def translate(self, l):
        """(..., width + 32) -> W+ codes w_0 + E (..., L, D)."""
        x, x_0 = l.split([self.width, self.noise], -1)
        w = self.mean.flatten() + (x_0 * self.std) @ self.basis.flatten(1) + self.leave(x)
        return w.reshape(*l.shape[:-1], self.L, self.D)

    def extra(self):
        """Its own loss, of the last roll: 10 |w(0) - w_0|^2 + 0.05 |w(t) - w_0|."""
        l, x_0 = self.last
        at_0 = self.code(self.hidden(torch.cat([torch.zeros_like(x_0), x_0], 1)))       # without z_1, as v_0
        first, away = (self.leave(x[..., :self.width]).square().sum(-1) / self.std.square().sum()
                       for x in (at_0, l))
        return FIRST * first.mean() + PULL * (away + 1e-8).sqrt().mean()
