"""Motion models that are computed, not trained: Gaussian processes with the video's own autocovariance.

    FilteredNoise   white noise filtered by the video itself (for pictures: Galerne et al. 2011)
    VAR             x_t = A_1 x_{t-1} + ... + A_8 x_{t-8} + e_t, Yule-Walker, begun in its stationary state

Used as models.MotionGenerator is: h = hidden(i), code(h), roll(s, h), translate(l); i has `start` numbers,
each s_k 32. Shapes: N frames, B batch, K frames to come, L style rows, D style width.
"""

import math

import torch
from torch import nn


class Fitted(nn.Module):
    """Motion codes are PCA coordinates (B, K, 32) of the video: translating them is a matrix product."""

    noise = 32

    def __init__(self, L, D):
        super().__init__()
        self.register_buffer("mean", torch.zeros(L, D))
        self.register_buffer("basis", torch.zeros(self.noise, L, D))

    def translate(self, codes):                                                 # (..., 32) -> (..., L, D)
        return self.mean + torch.einsum("...n,nld->...ld", codes, self.basis)

    def motion(self, i, s):                                         # (B, start), (B, K, 32) -> (B, K + 1, 32)
        h = self.hidden(i)
        return torch.cat([self.code(h)[:, None], self.roll(s, h)[0]], 1)


class FilteredNoise(Fitted):
    """y(t) = N^(-1/2) sum_k e(t - k) x(k), e white: the video's autocovariance, sum_k x(k + h) x(k)^T / N.
    Nothing is chosen. One noise for every clip, at most 32. taps: frames of the longest clip."""

    def __init__(self, L, D, taps, clips=1):
        super().__init__(L, D)
        self.taps, self.clips, self.start = taps, min(clips, self.noise), taps * min(clips, self.noise)
        self.register_buffer("filter", torch.zeros(taps, self.clips, self.noise))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes, of mean zero."""
        self.mean.copy_(pca["mean"]), self.basis.copy_(pca["basis"])
        for c, (start, end) in enumerate(clips):
            self.filter[:end - start, c % self.clips] += x[start:end] / math.sqrt(len(x))
        return self

    def hidden(self, i):                                                        # last noises (taps, B, clips)
        return i.reshape(len(i), self.taps, self.clips).transpose(0, 1)

    def code(self, h):
        return torch.einsum("tbc,tcn->bn", h.flip(0), self.filter)

    def roll(self, s, h):
        e = torch.cat([h, s[..., :self.clips].transpose(0, 1)])                 # (taps + K, B, clips)
        noise, response = torch.fft.rfft(e, dim=0), torch.fft.rfft(self.filter, len(e), dim=0)
        y = torch.fft.irfft(torch.einsum("fbc,fcn->bfn", noise, response), len(e), dim=1)
        return y[:, self.taps:], e[-self.taps:]


class VAR(Fitted):
    """Vector autoregression of order p on whitened coordinates. With these estimates it is always stable."""

    def __init__(self, L, D, p=8):
        super().__init__(L, D)
        self.p, self.start, n = p, p * self.noise, self.noise
        for name, shape in (("std", (n,)), ("A", (n, p * n)), ("root", (p * n, p * n)), ("drive", (n, n))):
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes, of mean zero."""
        p, std = self.p, x.std(0)
        parts = [(x[start:end] / std).double() for start, end in clips if end - start > p]
        N = sum(map(len, parts))
        G = [sum(z[h:].T @ z[:len(z) - h] for z in parts) / N for h in range(p + 1)]    # E x_{t+h} x_t^T
        rows = [[G[j - i] if j >= i else G[i - j].T for j in range(p)] for i in range(p)]
        past = torch.cat([torch.cat(row, 1) for row in rows])
        past += 1e-6 * torch.eye(len(past), device=x.device, dtype=past.dtype)
        ahead = torch.cat(G[1:], 1)                                 # E x_t (x_{t-1}, ..., x_{t-p})^T
        A = torch.linalg.solve(past, ahead.T).T
        values, vectors = torch.linalg.eigh(G[0] - A @ ahead.T)     # of what the past does not tell
        drive, root = vectors * values.clamp_min(0).sqrt(), torch.linalg.cholesky(past)
        self.load_state_dict({**pca, "std": std, "A": A, "root": root, "drive": drive})
        return self

    def hidden(self, i):                                            # last p frames, newest first (1, B, p 32)
        return (i @ self.root.T)[None]

    def code(self, h):
        return h[0, :, :self.noise] * self.std

    def roll(self, s, h):
        state, e, out = h[0], s @ self.drive.T, []
        for k in range(s.shape[1]):
            state = torch.cat([state @ self.A.T + e[:, k], state[:, :-self.noise]], 1)
            out.append(state[:, :self.noise])
        return torch.stack(out, 1) * self.std, state[None]
