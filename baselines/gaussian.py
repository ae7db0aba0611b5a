"""Motion models that are computed, not trained: Gaussian processes with the video's own autocovariance.

    python train.py latents.npy --model noise -o noise.pt       # or var; then: sample.py --motion noise.pt

Right in all second moments by construction, but no blink is Gaussian. Used as models.MotionGenerator is, with
fit() in place of a training. Shapes: N frames, B batch, K frames to come, L style rows, D style width.
"""

import torch
from torch import nn

from models import Translator


class Fitted(nn.Module):
    """Motion codes are PCA coordinates (B, K, 32): translating them is one matrix product, not T."""

    noise, memory = 32, 1
    motion, forward = Translator.motion, Translator.forward

    def __init__(self, L, D, start, **shapes):
        super().__init__()
        self.L, self.D, self.start, self.sizes = L, D, start, {"L": L, "D": D}
        for name, shape in {"mean": (L, D), "basis": (self.noise, L, D), **shapes}.items():
            self.register_buffer(name, torch.zeros(shape))

    def translate(self, codes):                                                 # (..., 32) -> (..., L, D)
        return self.mean + (codes @ self.basis.flatten(1)).unflatten(-1, (self.L, self.D))

    def parts(self, x, clips, pca):
        """The clips of x (N, 32), each (n, 32), without their mean, which goes into self.mean."""
        parts = [x[start:end] for start, end in clips]
        mean = torch.cat(parts).mean(0)
        self.basis, self.mean = pca["basis"], pca["mean"] + torch.tensordot(mean.float(), pca["basis"], 1)
        return [part - mean for part in parts]


class FilteredNoise(Fitted):
    """y(t) = N^(-1/2) sum_k e(t - k) x(k), e white, has the video's autocovariance sum_k x(k + h) x(k)^T / N.
    Nothing is chosen. (Of pictures: Galerne et al., Random Phase Textures, 2011, asymptotic discrete spot
    noise.) Clips are put end to end, which adds h products of frames that do not belong together for every
    cut. e is the first number of each s_k. h: the last N noises, oldest first (1, B, N)."""

    kind = "noise"

    def __init__(self, L, D, frames=1):
        super().__init__(L, D, frames, filter=(frames, self.noise))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes, clips [(start, end), ...] -> self."""
        x = torch.cat(self.parts(x, clips, pca))
        self.filter = x.flip(0) / len(x) ** 0.5
        self.start = self.sizes["frames"] = len(x)
        return self

    def hidden(self, i):
        return i[None]

    def code(self, h):
        return h[0] @ self.filter

    def roll(self, s, h):
        e = torch.cat([h[0], s[:, :, 0]], 1)                                    # (B, N + K)
        codes = [e[:, k:k + self.start] @ self.filter for k in range(1, s.shape[1] + 1)]
        return torch.stack(codes, 1), e[None, :, -self.start:]


class VAR(Fitted):
    """x_t = A_1 x_{t-1} + ... + A_8 x_{t-8} + e_t, e Gaussian, from its stationary state on. The estimate of
    Yule and Walker (Lütkepohl 2005, sec. 3.3.4) is always stable (Whittle 1963). Ours: 8, as 12 or 24 come
    hardly nearer. h: the last 8, newest first (1, B, 8 * 32)."""

    kind, p = "var", 8

    def __init__(self, L, D):
        n, start = self.noise, self.p * self.noise
        super().__init__(L, D, start, A=(start, n), root=(start, start), drive=(n, n))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes, clips [(start, end), ...] -> self."""
        parts, p, N = self.parts(x.double(), clips, pca), self.p, sum(end - start for start, end in clips)
        G = [sum(z[h:].T @ z[:max(0, len(z) - h)] for z in parts) / N for h in range(p + 1)]        # biased
        rows = [[G[j - i] if j >= i else G[i - j].T for j in range(p)] for i in range(p)]
        past, ahead = torch.cat([torch.cat(row, 1) for row in rows]), torch.cat(G[1:], 1)
        ridge = 1e-9 * G[0].trace() * torch.eye(len(past))          # ours: frames may be few
        A = torch.linalg.solve(past + ridge, ahead.T)
        root, drive = (torch.linalg.cholesky(S + ridge[:len(S), :len(S)]).T for S in (past, G[0] - ahead @ A))
        self.A, self.root, self.drive = (m.float().contiguous() for m in (A, root, drive))  # as from a file
        return self

    def hidden(self, i):
        return (i @ self.root)[None]

    def code(self, h):
        return h[0, :, :self.noise]

    def roll(self, s, h):
        past, e = [*h[0].split(self.noise, 1)], s @ self.drive                  # newest first
        for k in range(s.shape[1]):
            past.insert(0, torch.cat(past[:self.p], 1) @ self.A + e[:, k])
        return torch.stack(past[:s.shape[1]][::-1], 1), torch.cat(past[:self.p], 1)[None]
