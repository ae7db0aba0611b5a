"""Video textures (Schödl et al., SIGGRAPH 2000) of codes: play, and jump where it goes on alike. Not trained.

    python train.py latents.npy --model textures -o textures.pt
    python sample.py --motion textures.pt --t 250 | python transfer.py

After frame a comes a + 1 with weight 1, and each of the 20 likeliest frames b with weight RATE exp(-(d /
SIGMA)^2); d: the distance of the four frames about a + 1 and about b over the median one. There (sec. 3) it
is exp(-d / sigma) for a + 1 as for all b, and the four distances have binomial weights; ours: RATE, the
square, the 20, equal weights. As codes can be added, what a jump changes fades out in FADE frames. In place
of the future cost (sec. 3.2), which leaves some of the video unplayed, the weights are made doubly stochastic
(Sinkhorn; ours): every frame is played about equally often. Used as models.MotionGenerator is, with fit() in
place of a training; of i and of every s_k the first number draws.
Shapes: N frames, B batch, K frames to come, L style rows, D style width.
"""

import math

import torch
from torch import nn

from models import Translator

RATE, SIGMA = 0.05, 0.2     # ours: a jump every 36 (a minute of video) to 48 (ten) frames
KEEP, APART = 20, 25        # ours: places to go to from a frame, at least a second away
FADE = 8                    # ours, frames
TARGETS = 4000              # ours: frames that may be jumped to; all of ten minutes take 4 times as long
ROUNDS = 100                # ours, of Sinkhorn


class Textures(nn.Module):
    kind, memory, noise, start = "textures", 2, 32, 32
    motion, forward = Translator.motion, Translator.forward

    def __init__(self, L, D, frames=1):
        super().__init__()
        self.L, self.D, self.sizes = L, D, {"L": L, "D": D, "frames": frames}
        for name, shape in (("mean", (L, D)), ("basis", (self.noise, L, D)), ("x", (frames, self.noise)),
                            ("after", (frames, self.noise)), ("chances", (frames, KEEP + 1))):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("goal", torch.zeros(frames, KEEP + 1, dtype=torch.long))

    def fit(self, x, clips, pca):
        """x (N, 32): PCA coordinates of the training codes -> self."""
        x = torch.cat([x[start:end] for start, end in clips])       # a frame in no clip is not played
        N, ends = len(x), torch.tensor([end - start for start, end in clips]).cumsum(0)
        frame, (first, last) = torch.arange(N), torch.zeros(2, N, dtype=torch.bool)
        first[0], first[ends[:-1]], last[ends - 1] = True, True, True
        after = x.roll(-1, 0)
        after[last] = 2 * x[last] - x.roll(1, 0)[last]              # what would follow a clip's last frame

        # Where one can go, and how likely. A clip's first frame has no past to fade from
        near = torch.cat([x[(frame + k).clamp(0, N - 1)] for k in (-2, -1, 0, 1)], 1)           # (N, 4 * 32)
        targets = frame[::math.ceil(N / TARGETS)]
        targets = targets[~first[targets]]
        median = torch.cdist(near[::max(1, N // 1000)], near[targets]).median()
        follows = torch.where(last, frame, frame + 1)
        goal, weights = torch.zeros(N, KEEP + 1, dtype=torch.long), torch.zeros(N, KEEP + 1)
        goal[:, 0], weights[:, 0] = torch.where(last, targets[0], frame + 1), torch.where(last, 0.0, 1.0)
        for part in frame.split(2000):
            d = torch.cdist(near[follows[part]], near[targets]) / median
            d[(follows[part, None] - targets).abs() < APART] = math.inf
            d, best = d.topk(KEEP, largest=False)
            goal[part, 1:], weights[part, 1:] = targets[best], RATE * torch.exp(-(d / SIGMA) ** 2) + 1e-9

        # As often gone to as gone from
        for _ in range(ROUNDS):
            weights /= weights.sum(1, keepdim=True)
            arriving = torch.zeros(N).index_add_(0, goal.flatten(), weights.flatten())
            weights /= arriving[goal]
        chances = (weights / weights.sum(1, keepdim=True)).cumsum(1)

        self.x, self.after, self.goal, self.chances = x, after, goal, chances
        self.mean, self.basis, self.sizes["frames"] = pca["mean"], pca["basis"], N
        return self

    def translate(self, codes):
        """(..., 32) -> (..., L, D)."""
        return self.mean + (codes @ self.basis.flatten(1)).unflatten(-1, (self.L, self.D))

    def hidden(self, i):
        """(frame and age of its jump, what it changed), (2, B, 32)."""
        h, N = torch.zeros(2, len(i), self.noise, device=i.device), len(self.x)
        h[0, :, 0], h[0, :, 1] = (torch.special.ndtr(i[:, 0]) * N).floor().clamp_max(N - 1), FADE
        return h

    def left(self, h, age):
        """Of what the last jump changed, what is left at that age (B,): (B, 32)."""
        return (0.5 + 0.5 * torch.cos(math.pi * age.clamp_max(FADE) / FADE))[:, None] * h[1]

    def code(self, h):
        return self.x[h[0, :, 0].long()] + self.left(h, h[0, :, 1])

    def roll(self, s, h):
        codes, u = [], torch.special.ndtr(s[:, :, 0])
        for k in range(s.shape[1]):
            at, age = h[0, :, 0].long(), h[0, :, 1]
            choice = (self.chances[at] < u[:, k, None]).sum(1).clamp_max(KEEP)
            choice[(age < FADE) & (self.goal[at, 0] == at + 1)] = 0 # no jump while another fades
            to, jumped = self.goal[at, choice], choice > 0
            # Instead of x[to] there would have come; at a clip's end a change may still fade
            instead = self.after[at] + self.left(h, age + 1)
            change = torch.where(jumped[:, None], instead - self.x[to], h[1])
            h = torch.stack([torch.zeros_like(change), change])
            h[0, :, 0], h[0, :, 1] = to, torch.where(jumped, 0, age + 1)
            codes.append(self.code(h))
        return torch.stack(codes, 1), h
