"""StyleGAN-V's motion codes (Skorokhodov et al., CVPR 2022, arXiv:2112.14683), then StyleVideoGAN's T.

    python train.py latents.npy --model stylegan_v
    python sample.py --fps 60 --t 600 -o walk.npy               # any frame rate

Noise z_k stands on a grid of times (sec. 3.1), one vector every 16 frames (sec. 4.1). Two convolutions
without padding make u_k of z_(k-10) to z_(k+10) (app. B.1). At time t, between the grid points l and r, with
a = (t - l) / 16,
    v~(t) = [sin, cos]((1 + tanh(W u_l)) sigma t + c R u_l)                                     (eq. 2, 3, 5)
    v(t) = v~(t) - lerp(v~(l), v~(r), a) + lerp(A u_l, A u_r, a)                                       (eq. 4)
v~ at l and at r with the waves of u_l, so v passes through A u_k at the grid points, and between them are
waves that vanish at both ends. W, R, A: there W_omega, W_rho, W_a. StyleVideoGAN's T (table 6) translates v;
the image network and its content code fall away. The discriminator is sparse_critic.py.

Where text and code (universome/stylegan-v, 1f630af: src/training/motion.py, configs/model/stylegan-v.yaml)
differ: no amplitudes alpha, but sin and cos both, as the code; periods 2 pi / sigma evenly spaced in their
logarithm, as the code (eq. 6: linearly); from 8 to 1,024 frames, as app. B.3 (code: from 16). As the code,
beyond the text: phases are multiplied by c = 1,024 / period, LeakyReLU follows both convolutions.
Ours: z has 32 numbers, u and v as many as T is wide (app. B.1: 512 all three); plain layers in place of
equalised ones, convolutions that learn at the common rate (code: a hundredth) and from which u starts with a
root mean square of 1 (code: 0.5); t counts from l, which makes the process stationary and any length exact,
and the first frame lies anywhere in its interval. Left out: fractional times in training.
Copied into another project, models.py comes along.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from models import SLOPE, Translator


def grid_vectors(z, s, clock, grid):
    """Noise on the grid of times, as K frames pass.

    z (B, span, 32): what the present interval depends on. s (B, K, 32): a new grid vector is the noise of the
    frame at which it enters. clock (B, 1): frames since the interval began. Returns all that the K frames
    depend on, (B, span + J, 32), then z, clock and the number of intervals passed (B, 1) after them.
    """
    K, span = s.shape[1], z.shape[1]
    number = torch.arange(1, (grid - 1 + K) // grid + 1, device=s.device)
    entry = (number * grid - clock - 1).long().clamp(0, K - 1)                  # (B, J), none beyond s
    z = torch.cat([z, rows(s, entry)], 1)
    passed = ((clock + K) / grid).floor()
    kept = passed.long() + torch.arange(span, device=s.device)                  # (B, span)
    return z, rows(z, kept), clock + K - passed * grid, passed


def rows(x, index):
    """x (B, n, c) at index (B, m) -> (B, m, c)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


class AcyclicWaves(nn.Module):
    """Acyclic positional encoding (sec. 3.1, eq. 2 to 5): u at grid points -> v at any time between them."""

    def __init__(self, width, waves, grid, periods):
        super().__init__()
        self.grid = grid
        shortest, longest = (math.log2(period) for period in periods)
        length = 2 ** torch.linspace(shortest, longest, waves)                  # in frames
        self.register_buffer("sigma", 2 * math.pi / length)
        self.register_buffer("c", periods[1] / length)
        self.heads = nn.Linear(width, 4 * waves, bias=False)                    # W, R: waves each, A: two
        nn.init.normal_(self.heads.weight, std=1 / math.sqrt(width))

    def forward(self, u, t):
        """u (B, n, width) at the times 0, grid, 2 grid, ...; t (B, K) -> v (B, K, 2 waves)."""
        n = len(self.sigma)
        omega, rho, align = self.heads(u).split([n, n, 2 * n], 2)
        omega, rho = self.sigma * (1 + omega.tanh()), self.c * rho              # (eq. 5)
        left = (t / self.grid).floor()
        index, t = left.long(), (t - left * self.grid)[..., None]               # (B, K), (B, K, 1)
        omega, rho = rows(omega, index), rows(rho, index)

        def raw(t):                                                             # (eq. 2)
            return torch.cat([(omega * t + rho).sin(), (omega * t + rho).cos()], 2)

        a = t / self.grid
        ends = torch.lerp(raw(torch.zeros_like(t)), raw(torch.full_like(t, self.grid)), a)
        return raw(t) - ends + torch.lerp(rows(align, index), rows(align, index + 1), a)        # (eq. 4)


class StyleGANV(Translator):
    """i (B, 736), s (B, K, 32) -> motion codes (B, K, width). Memory: 22 grid vectors and a clock (B, 1)."""

    kind, continuous = "stylegan_v", True

    def __init__(self, L, D, noise=32, width=None, grid=16, kernel=11, periods=(8, 1024)):
        width = width or D
        super().__init__(L, D, width // 2 * 2, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": width, "grid": grid, "kernel": kernel,
                      "periods": list(periods)}
        self.noise, self.grid, self.span = noise, grid, 2 * kernel              # 2 (kernel - 1) + 2
        self.memory, self.start = self.span + 1, (self.span + 1) * noise
        self.smooth = nn.Sequential(nn.Conv1d(noise, width, kernel), nn.LeakyReLU(SLOPE),
                                    nn.Conv1d(width, width, kernel), nn.LeakyReLU(SLOPE))
        for layer in (self.smooth[0], self.smooth[2]):                          # keeps the mean square
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)
        self.waves = AcyclicWaves(width, width // 2, grid, periods)

    def motion_codes(self, z, t):
        """z (B, n, 32) of the grid points -10, -9, ...; t (B, K), in frames from point 0 on."""
        return self.waves(self.smooth(z.transpose(1, 2)).transpose(1, 2), t)

    def hidden(self, i):
        """i (B, 736) -> memory (23, B, 32); the clock stands anywhere in the interval."""
        h = i.reshape(len(i), self.memory, self.noise).transpose(0, 1)
        share = torch.special.ndtr(h[-1, :, :1])
        return self.pack(h[:-1].transpose(0, 1), (share * self.grid).floor().clamp_max(self.grid - 1))

    def pack(self, z, clock):
        return torch.cat([z.transpose(0, 1), F.pad(clock, (0, self.noise - 1))[None]])

    def code(self, h):
        return self.motion_codes(h[:-1].transpose(0, 1), h[-1, :, :1])[:, 0]

    def roll(self, s, h, at=None):
        """at (n,): times in (0, K], in frames from where h stands; else 1, 2, ..., K."""
        clock = h[-1, :, :1]                                                    # (B, 1)
        at = torch.arange(1, s.shape[1] + 1, device=s.device) if at is None else at
        z, kept, after, _ = grid_vectors(h[:-1].transpose(0, 1), s, clock, self.grid)
        return self.motion_codes(z, clock + at), self.pack(kept, after)
