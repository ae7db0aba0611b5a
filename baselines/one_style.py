"""One-Style's motion codes (Manandhar, Genovesio, WACV 2024, arXiv:2310.17835), then T; inverting a clip.

    python train.py latents.npy --model one_style
    python -m baselines.one_style motion.pt latents.npy         # R2 of inverted clips, per number of frames

One motion style m scales a basis of time that all videos share and that is learned (sec. 3.1):
    v_0(t) = omega_0 t + phi_0,  v_j(t) = sin(omega_j t + phi_j), j = 1 ... k-1                        (eq. 1)
    m = F_t(z),  code(t) = m * v(t), elementwise                                                  (eq. 2 to 4)
F_t: PixelNorm and four layers (code: sandman002/One-Style-is-All-You-Need-to-Generate-a-Video, dc55be6,
model.py; sec. 3.1: a 4-layer perceptron). k = 128, where artefacts were gone for the most part (sec. 6).
No noise enters after the start: a trajectory is a point m.

StyleVideoGAN's T (table 6) translates the code. omega and phi start as N(0, 1), t in frames, as in the code,
where layers that also feed sines of t, not scaled by m, into the constant input are commented out.
Ours: omega = pi tanh(. / pi), as a wave above half the training rate shows as a slower one there and as
itself at higher rates; omega_0 starts at a hundredth, as its term alone grows without end, and no training on
400 frames says what T makes of it at 4,000. z has 32 numbers (code: k); plain layers that start as equalised
ones do, where the code learns F_t at a hundredth of the rate. Left out: content code, labels, D_s on pairs
with swapped content, D_t on triplets with their times (sec. 3.2).
Copied into another project, models.py comes along.
"""

import argparse
import math

import torch
from torch import nn

from models import SLOPE, InputError, PixelNorm, Translator, mlp

FRAMES = 15, 30, 60, 120, 240, 480, 960     # first frames of the clip that are inverted (sec. 5.4: 120)


class OneStyle(Translator):
    """i (B, 32): z; s (B, K, .) only counts -> motion codes (B, K, k). Memory: z and a clock (B, 1)."""

    kind, memory, continuous = "one_style", 2, True

    def __init__(self, L, D, noise=32, width=None, k=128):
        super().__init__(L, D, k, width)
        self.sizes = {"L": L, "D": D, "noise": noise, "width": self.width, "k": k}
        self.noise = self.start = noise
        self.style = nn.Sequential(PixelNorm(), *mlp([noise, k, k, k, k]))
        for layer in self.style[1::2]:                                          # keeps the variance
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)
        self.omega, self.phi = nn.Parameter(torch.randn(k)), nn.Parameter(torch.randn(k))
        with torch.no_grad():
            self.omega[0] *= 0.01

    def waves(self, t):
        """v (eq. 1): t (...,), in frames -> (..., k)."""
        a = t[..., None] * (math.pi * torch.tanh(self.omega / math.pi)) + self.phi
        return torch.cat([a[..., :1], a[..., 1:].sin()], -1)

    def hidden(self, i):
        return torch.stack([i, torch.zeros_like(i)])

    def code(self, h):
        return self.style(h[0]) * self.waves(h[1, :, 0])

    def roll(self, s, h, at=None):
        """at (n,): times in (0, K], in frames from where h stands; else 1, 2, ..., K."""
        K = s.shape[1]
        at = torch.arange(1, K + 1, device=s.device) if at is None else at
        v = self.waves(h[1, :, :1] + at)                                        # (B, K, k)
        return self.style(h[0])[:, None] * v, torch.stack([h[0], h[1] + K])


def invert(G, w, steps=250, rate=0.1, noise=0.05):
    """Motion style of a clip: argmin over m of sum_t |w(t) - T(m * v(t))|^2 (sec. 5.4, eq. 5) -> m (k,).

    G in eval mode; w (N, L, D). As projector.py (f29b8f6): Adam from the mean of m, its rate rising over the
    first 5 % of the steps and falling as a cosine over the last 25 %, noise on m that is gone after 75 %; the
    defaults are its own. In place of LPIPS and squared error of pictures, that of codes over their variance.
    """
    t = torch.arange(len(w), device=w.device)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        v = G.waves(t)                                                          # (N, k)
        styles = G.style(torch.randn(10_000, G.start, generator=rng).to(w.device))
    m = styles.mean(0).requires_grad_()
    spread = (styles - m.detach()).square().sum(1).mean().sqrt()                # |m - mean|, as projector.py
    variance = (w - w.mean(0)).square().sum()

    adam = torch.optim.Adam([m], lr=rate)
    for step in range(steps):
        done = step / steps
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / 0.25))
        adam.param_groups[0]["lr"] = rate * fall * min(1.0, done / 0.05)
        strength = noise * spread * max(0.0, 1 - done / 0.75) ** 2
        tried = m + strength * torch.randn(m.shape, generator=rng).to(w.device)
        loss = (G.translate(tried * v) - w).square().sum() / variance
        m.grad, = torch.autograd.grad(loss, m)
        adam.step()
    return m.detach()


@torch.no_grad()
def explained(w, rebuilt):
    """R2 of codes (N, L, D): 1 - |w - rebuilt|^2 / |w - mean|^2."""
    return 1 - float((w - rebuilt).square().sum() / (w - w.mean(0)).square().sum())


@torch.no_grad()
def least_squares(G, w):
    """w (N, L, D) projected onto a constant and the same waves: k + 1 numbers for each of its L D entries."""
    v = G.waves(torch.arange(len(w), device=w.device)).double().cpu()           # (N, k)
    v = torch.cat([torch.ones(len(w), 1, dtype=v.dtype), v], 1)
    x = w.flatten(1).double().cpu()
    return (v @ torch.linalg.lstsq(v, x, driver="gelsd").solution).reshape(w.shape).to(w)


def main(args):
    from sample import load_motion
    from train import load_latents

    G, _ = load_motion(args.motion)
    codes, meta = load_latents(args.latents)
    if G.kind != OneStyle.kind:
        raise InputError(f"{args.motion} is a motion model of the kind {G.kind}; name one that train.py made "
                         f"with --model one_style.")
    if codes.shape[1:] != (G.L, G.D):
        raise InputError(f"{args.latents} has codes of {codes.shape[1]} x {codes.shape[2]}, those of "
                         f"{args.motion} are {G.L} x {G.D}; name codes of the same image model.")

    begin, end = max(meta["clips"], key=lambda clip: clip[1] - clip[0])
    clip = torch.from_numpy(codes[begin:end])
    print("frames  inverted  least squares (R2)")
    for n in [*(n for n in FRAMES if n < len(clip)), *([len(clip)] if len(clip) <= FRAMES[-1] else [])]:
        w = clip[:n]
        rebuilt = G.translate(invert(G, w) * G.waves(torch.arange(n)))
        print(f"{n:6d}  {explained(w, rebuilt):8.4f}  {explained(w, least_squares(G, w)):13.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("motion", metavar="MOTION", help="of train.py --model one_style")
    parser.add_argument("latents", metavar="LATENTS", help="of embed.py; its longest clip is inverted")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"one_style.py: {error}\n")
