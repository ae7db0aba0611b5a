"""Video textures (Schödl et al. 2000) of codes: play the video, jump where it goes on alike. Not trained.

From frame a one goes on to a + 1 with weight 1, and to each of the 20 likeliest frames b with weight
RATE exp(-(d / SIGMA)^2), d the distance of the four frames about a + 1 and about b over the median one. What
a jump changes fades out in FADE frames, as codes can be added. In place of the paper's future cost against
dead ends the weights are made doubly stochastic (Sinkhorn; ours): every frame is shown equally often.

Used as models.MotionGenerator is: h = hidden(i), code(h), roll(s, h), translate(l); i and each s_k have 32
numbers, of which the first draws. Shapes: N frames, B batch, K frames to come, L style rows, D style width.
"""

import math

import torch
from torch import nn

RATE, SIGMA = 0.05, 0.2     # ours: a jump every second or so
KEEP, APART = 20, 25        # ours: places to go to from a frame, at least a second away
FADE = 8                    # ours, frames
TARGETS = 4000              # ours: frames that may be jumped to; all of ten minutes take 4 times as long


class Textures(nn.Module):
    noise = start = 32

    def __init__(self, L, D, frames):
        super().__init__()
        for name, shape in (("mean", (L, D)), ("basis", (self.noise, L, D)), ("x", (frames, self.noise)),
                            ("after", (frames, self.noise)), ("chances", (frames, KEEP + 1))):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("goal", torch.zeros(frames, KEEP + 1, dtype=torch.long))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes."""
        N, frame = len(x), torch.arange(len(x), device=x.device)
        first, last = torch.zeros(2, N, dtype=torch.bool, device=x.device)
        first[[start for start, _ in clips]], last[[end - 1 for _, end in clips]] = True, True
        after = x.roll(-1, 0)
        after[last] = 2 * x[last] - x.roll(1, 0)[last]              # what would follow a clip's last frame

        # Where one can go, and how likely
        near = torch.cat([x[(frame + k).clamp(0, N - 1)] for k in (-2, -1, 0, 1)], 1)       # (N, 4 * 32)
        targets = frame[::max(1, N // TARGETS)]
        targets = targets[~first[targets]]                          # a first frame has no past to fade from
        median = torch.cdist(near[::max(1, N // 1000)], near[targets]).median()
        goal, weights = self.goal.to(x.device), torch.zeros(N, KEEP + 1, device=x.device)
        goal[:, 0], weights[:, 0] = torch.where(last, targets[0], frame + 1), torch.where(last, 0.0, 1.0)
        for part in frame.split(2000):
            follows = torch.where(last[part], part, part + 1)
            d = torch.cdist(near[follows], near[targets]) / median
            d[(follows[:, None] - targets).abs() < APART] = torch.inf
            d, best = d.topk(KEEP, largest=False)
            goal[part, 1:], weights[part, 1:] = targets[best], RATE * torch.exp(-(d / SIGMA) ** 2) + 1e-9
        weights = weights.double()
        for _ in range(500):
            weights = weights / weights.sum(1, keepdim=True)
            arriving = weights.new_zeros(N).index_add_(0, goal.flatten(), weights.flatten())
            weights = weights / arriving.clamp_min(1e-30)[goal]
        weights = weights / weights.sum(1, keepdim=True)
        self.load_state_dict({"mean": pca["mean"], "basis": pca["basis"], "x": x, "after": after,
                              "goal": goal, "chances": weights.cumsum(1)})
        return self

    def translate(self, codes):                                     # (..., 32) -> (..., L, D)
        return self.mean + torch.einsum("...n,nld->...ld", codes, self.basis)

    def motion(self, i, s):                                         # (B, 32), (B, K, 32) -> (B, K + 1, 32)
        h = self.hidden(i)
        return torch.cat([self.code(h)[:, None], self.roll(s, h)[0]], 1)

    def hidden(self, i):                                            # (frame and age, difference) (2, B, 32)
        h, N = torch.zeros(2, len(i), self.noise, device=i.device), len(self.x)
        h[0, :, 0], h[0, :, 1] = (torch.special.ndtr(i[:, 0]) * N).floor().clamp_max(N - 1), FADE
        return h

    def code(self, h):
        at, age = h[0, :, 0].long(), h[0, :, 1]
        left = 0.5 + 0.5 * torch.cos(math.pi * age.clamp_max(FADE) / FADE)      # of what it changed
        return self.x[at] + left[:, None] * h[1]

    def roll(self, s, h):
        out, u = [], torch.special.ndtr(s[:, :, 0])
        for k in range(s.shape[1]):
            at, age, change = h[0, :, 0].long(), h[0, :, 1], h[1]
            choice = torch.searchsorted(self.chances[at], u[:, k, None].contiguous()).clamp_max(KEEP)[:, 0]
            choice[(age < FADE) & (self.goal[at, 0] == at + 1)] = 0 # no jump while another fades
            to, jumped = self.goal[at, choice], choice > 0
            h = torch.zeros_like(h)
            h[0, :, 0], h[0, :, 1] = to, torch.where(jumped, 0, age + 1)
            h[1] = torch.where(jumped[:, None], self.after[at] - self.x[to], change)
            out.append(self.code(h))
        return torch.stack(out, 1), h
