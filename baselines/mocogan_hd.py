"""MoCoGAN-HD's motion (Tian et al., ICLR 2021, arXiv:2104.15069): an LSTM along principal directions.

    python train.py latents.npy --model mocogan_hd

From a first code x_0, with noise e_t, as its code has it (snap-research/MoCoGAN-HD, 385ce6f, models/rnn.py):
    (h_0, c_0) = LSTM_0(x_0),  (h_t, c_t) = LSTM(e_t, (h_(t-1), c_(t-1)))
    x_t = x_(t-1) + 0.2 sum_n tanh(W h_t + b)_n std_n basis_n,  384 directions, h of 384 numbers
and as its own loss the mutual information of state and noise, so that the noise is not ignored:
    -cos(R(h_t, c_t), e_t), R two layers, weight 1 (train_func_in_domain.py, 5b75a0f).
x is itself a W+ code, so there is no T. The cell never sees x: x sums up a process, and unless h learns to
undo it the variance of x grows with t. That it diverges when unrolled is known (arXiv:2112.14683, sec. 4.1,
4.3, where the LSTM is blamed).

Ours: x counts in PCA coordinates of the training codes in W+, over their standard deviations (upstream: one
row of W, PCA of samples of the mapping network, get_stats_pca.py); x_0 is drawn from their Gaussian
(upstream: by the mapping network); no more directions than a quarter of the frames, as a PCA would invent the
rest, the others stay at zero; e of 32 numbers (512), R's inner layer of 384 (512). Left out: the critic of
pairs of frames, first and later, and that of video with the first frame beside each, relativistic losses,
five generator steps for one of the critics, the contrastive loss, whose negatives are other identities while
here is one actor.
Copied into another project, models.py comes along.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models import Translator


class MoCoGANHD(nn.Module):
    """i (B, 384): x_0; s (B, K, 32): e -> x (B, K, 384). Memory: h, c and x, (1, B, 1152)."""

    kind, memory = "mocogan_hd", 1
    motion, forward = Translator.motion, Translator.forward

    def __init__(self, L, D, noise=32, directions=384, state=384, step=0.2):
        super().__init__()
        self.sizes = {"L": L, "D": D, "noise": noise, "directions": directions, "state": state, "step": step}
        self.L, self.D, self.noise, self.start, self.state, self.step = L, D, noise, directions, state, step

        self.first = nn.Linear(directions, 3 * state)                   # LSTM_0; from zero it forgets nothing
        self.cell = nn.LSTMCell(noise, state)
        self.move = nn.Linear(state, directions)                                # W, b
        self.recover = nn.Sequential(nn.Linear(2 * state, state), nn.ReLU(), nn.Linear(state, noise))    # R
        gates = *self.first.weight.chunk(3), *self.cell.weight_ih.chunk(4), *self.cell.weight_hh.chunk(4)
        for weight in (*gates, self.recover[0].weight, self.recover[2].weight):         # all as in rnn.py
            nn.init.orthogonal_(weight)
        nn.init.normal_(self.move.weight, std=0.02)
        for bias in (self.first.bias, self.cell.bias_ih, self.cell.bias_hh, self.move.bias):
            nn.init.zeros_(bias)

        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("basis", torch.zeros(directions, L, D))
        self.register_buffer("std", torch.zeros(directions))

    @torch.no_grad()
    def prepare(self, codes, clips, pca):
        """Take over the PCA of training codes (N, L, D), with more directions than pca has."""
        x = codes.flatten(1) - codes.mean(0).flatten()
        n = min(self.start, len(x) // 4, x.shape[1])
        _, values, vectors = torch.svd_lowrank(x, n, niter=4)                   # vectors: (L D, n)
        self.mean.copy_(codes.mean(0))
        self.basis[:n] = vectors.T.reshape(n, self.L, self.D)
        self.std[:n] = values / (len(x) - 1) ** 0.5

    def hidden(self, i):
        enter, new, leave = self.first(i).chunk(3, 1)
        c = enter.sigmoid() * new.tanh()
        return torch.cat([leave.sigmoid() * c.tanh(), c, i], 1)[None]

    def code(self, h):
        return h[0, :, -self.start:]

    def roll(self, s, h):
        h, c, x = h[0].split([self.state, self.state, self.start], 1)
        codes, states = [], []
        for e in s.unbind(1):
            h, c = self.cell(e, (h, c))
            x = x + self.step * torch.tanh(self.move(h))
            codes.append(x)
            states.append(torch.cat([h, c], 1))
        if torch.is_grad_enabled():
            recovered = self.recover(torch.stack(states, 1))                    # (B, K, 32)
            self.mutual = -F.cosine_similarity(recovered, s.detach(), dim=2).mean()
        return torch.stack(codes, 1), torch.cat([h, c, x], 1)[None]

    def extra(self):
        """Its own loss, of the last roll: -cos(R(h_t, c_t), e_t)."""
        return self.mutual

    def translate(self, l):
        """PCA coordinates (..., 384) over their standard deviations -> W+ codes (..., L, D)."""
        w = self.mean.flatten() + (l * self.std) @ self.basis.flatten(1)
        return w.reshape(*l.shape[:-1], self.L, self.D)
