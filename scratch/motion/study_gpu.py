"""Which devices does the training need? Many short trainings side by side on one GPU, each with one thing changed.

    python study_gpu.py codes.npz -o OUT --seconds 170 [--only NAME...] [--device cpu --steps 3]

The paper's loop (Fox et al. 2021, sec. 3): one critic, GP, GAP, EMA, Adam; RUNS below says what is changed in each. Every training is
one CUDA graph per step on a stream of its own, replayed by a thread of its own. OUT/results.tsv: a line per look and kind of
windows; OUT/models-*.pt: the averaged generators at the end.
"""

import argparse
import ast
import copy
import math
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import measures as M
from baselines.gaussian import VAR, FilteredNoise
from baselines.textures import Textures
from models import SLOPE, MotionCritic, MotionGenerator, RunningNorm, gradient_angle_penalty

T, FAR = 25, 4000
DEFAULTS = dict(start="ours", late=0.5, turns=15, flag=True, gap=100.0, diff=0.5, loss="wgan", gp=50.0, critic_steps=3, noise=0.0, scale=1.0,
                spread=False, lr=1e-3, lr_recurrence=1.0, lr_critic=1e-3, betas=(0.5, 0.99), batch=128, motion="gru", ema=0.997, seed=0)
# The penalty of R1 + R2 is of slopes with respect to scaled codes, as WGAN-GP's: a window of 25 x 1,536 of them is 5 times as long as
# one of the first study's 25 x 64, slopes are 5 times as small, so its gamma of 5 is 120 here
R3 = dict(loss="r3", critic_steps=1, gp=100.0)
RUNS = {                                                    # what each tells, beside "base"
    "base": {},                                             # start, later windows with a flag, GAP, differences of weight 1/2
    "base-1": dict(seed=1),                                 # how far one seed is from another
    "no-diff": dict(diff=0.0),                              # does the critic need differences of frames?
    "no-diff-1": dict(diff=0.0, seed=1),
    "diff-1": dict(diff=1.0),
    "no-gap": dict(gap=0.0),                                # the angle penalty, as the paper's table 1
    "no-late": dict(late=0.0),                              # later windows
    "no-start": dict(start="torch"),                        # the start of the recurrence
    "lr-rec-5": dict(lr_recurrence=5.0),                    # separate rates, today's
    "scale-5": dict(scale=5.0),                             # a critic that sees windows as long as in the first study's codes
    "critic-1": dict(critic_steps=1),                       # critic steps
    "r3": R3,                                               # relativistic + R1 + R2, one critic step
    "r3-1": dict(R3, seed=1),
    "r3-no-diff": dict(R3, diff=0.0),
    "paper": dict(start="torch", late=0.0, diff=0.0, lr=5e-3, lr_critic=5e-3, betas=(0.9, 0.999)),      # nothing of ours
    "var-r3": dict(R3, motion="var", late=0.0, gap=0.0),    # fixed VAR(8) + learned T
    # Second call
    "noise": dict(noise=0.5),                               # instance noise
    "spread": dict(spread=True),                            # evenly spread windows
    "no-flag": dict(flag=False),                            # one critic that does not know
    "diff-1/4": dict(diff=0.25),
    "lr-2": dict(lr=2e-3, lr_critic=2e-3),
    "no-gap-1": dict(gap=0.0, seed=1),
    "r3-diff-1": dict(R3, diff=1.0),
    "r3-no-gap": dict(R3, gap=0.0),
    "r3-no-late": dict(R3, late=0.0),
    "r3-20": dict(R3, gp=20.0),
    "r3-500": dict(R3, gp=500.0),
    "r3-lr-2": dict(R3, lr=2e-3, lr_critic=2e-3),
    "var": dict(motion="var", late=0.0, gap=0.0),
    "paper-start": dict(late=0.0, diff=0.0),                # the paper and the start alone
}
FIRST = list(RUNS)[:16]


def changes(name):
    """Of a name in RUNS, or of one with more behind it: "r3+gp=20+seed=2"."""
    first, *more = name.split("+")
    return {**RUNS[first], **{key: ast.literal_eval(value) for key, value in (part.split("=") for part in more)}}


# ------------------------------------------------------------------------------------------------------------------
# Networks
# ------------------------------------------------------------------------------------------------------------------

class Gru(MotionGenerator):
    """The paper's, with the names of baselines/. In windows its four cells run side by side, each a frame behind the one before:
    27 rounds of a few kernels in place of 96 cells, as it is kernels that take the time here."""
    start = 32

    def code(self, h):
        return h[3]

    def roll(self, s, h):
        if s.shape[1] != T - 1:
            return super().roll(s, h)
        P, K, out = self.produce, s.shape[1], []
        Wi, Wh = (torch.stack([getattr(P, f"weight_{x}_l{k}").T for k in range(4)]) for x in ("ih", "hh"))      # (4, 32, 96)
        bi, bh = (torch.stack([getattr(P, f"bias_{x}_l{k}") for k in range(4)])[:, None] for x in ("ih", "hh"))
        s = s.transpose(0, 1).contiguous()                                      # (K, B, 32)
        for d in range(K + 3):
            a, b = max(0, d - K + 1), min(3, d) + 1                             # cells a to b - 1 have a frame to make
            x = torch.cat([s[d:d + 1], h[:b - 1]]) if a == 0 else h[a - 1:b - 1]
            m = h[a:b]
            gi, gh = torch.baddbmm(bi[a:b], x, Wi[a:b]), torch.baddbmm(bh[a:b], m, Wh[a:b])
            r, z = torch.sigmoid(gi[..., :64] + gh[..., :64]).chunk(2, 2)
            new = torch.lerp(torch.tanh(torch.addcmul(gi[..., 64:], r, gh[..., 64:])), m, z)
            h = torch.cat([h[:a], new, h[b:]]) if b - a < 4 else new
            if d >= 3:
                out.append(h[3])
        return torch.stack(out, 1), h


class Linear(nn.Module):
    """Two independent VAR(8) with the video's autocovariance; frame = the first one + T(both)."""
    start, noise = 2 * 8 * 32, 2 * 32

    def __init__(self, L, D, x, pca, std):
        super().__init__()
        self.var = VAR(L, D).fit(x, [(0, len(x))], pca)
        self.T = MotionGenerator(L, D, 64)
        del self.T.hallucinate, self.T.produce
        with torch.no_grad():                                                   # T begins near zero
            self.T.rows_norm.weight.fill_(0.02 * float(std.mean()))
            self.T.rows_norm.bias.zero_()

    def hidden(self, i):
        return self.var.hidden(i.reshape(2 * len(i), -1))

    def code(self, h):                                                          # (1, 2 B, 256) -> (B, 64), whitened
        return h[0, :, :32].reshape(-1, 64)

    def roll(self, s, h):
        B, K, _ = s.shape
        l, h = self.var.roll(s.reshape(B, K, 2, 32).transpose(1, 2).reshape(2 * B, K, 32), h)
        return (l / self.var.std).reshape(B, 2, K, 32).transpose(1, 2).reshape(B, K, 64), h

    def translate(self, l):
        return self.var.translate(l[..., :32] * self.var.std) + self.T.translate(l)


# As train.py's
def matrices(critic):
    *convolutions, last = [m for m in critic.judge if isinstance(m, nn.Conv1d)]
    flat = [(m.weight.transpose(1, 2).flatten(1), m.bias) for m in (*convolutions, last)]
    return [(m.weight, m.bias) for m in critic.extract[2::2]], flat[:-1], flat[-1]


def fours(x):
    B, t, c = x.shape
    twos = F.pad(x, (0, 0, 1, 1))[:, :t // 2 * 2 + 2].reshape(B, t // 2 + 1, 2 * c)
    return torch.cat([twos[:, :-1], twos[:, 1:]], 2)


def fours_transposed(g, t):
    B, n, c = g.shape[0], g.shape[1], g.shape[2] // 4
    twos = F.pad(g[..., :2 * c], (0, 0, 0, 1)) + F.pad(g[..., 2 * c:], (0, 0, 1, 0))
    return F.pad(twos.reshape(B, 2 * n + 2, c), (0, 0, 0, t - 2 * n))[:, 1:t + 1]


def score(critic, p):
    B, frames, width = p.shape
    extract, convolutions, (W, b) = matrices(critic)
    x = F.leaky_relu(p.reshape(B * frames, width), SLOPE)
    for weight, bias in extract:
        x = F.leaky_relu_(F.linear(x, weight, bias), SLOPE)
    x = x.reshape(B, frames, -1)
    for weight, bias in convolutions:
        x = F.leaky_relu_(F.linear(fours(x), weight, bias), SLOPE)
    return F.linear(x.flatten(1), W, b).flatten()


def score_gradient(critic, p):
    B, frames, width = p.shape
    extract, convolutions, (W, b) = matrices(critic)
    slopes, lengths = [], []

    def bend(x):
        slopes.append((x > 0).to(x.dtype).mul_(1 - SLOPE).add_(SLOPE))
        return x.mul_(slopes[-1])

    with torch.no_grad():
        x = bend(p.reshape(B * frames, width).clone())
        for weight, bias in extract:
            x = bend(F.linear(x, weight, bias))
        x = x.reshape(B, frames, -1)
        for weight, bias in convolutions:
            lengths.append(x.shape[1])
            x = bend(F.linear(fours(x), weight, bias))
    g = W.expand(B, -1).reshape(x.shape)
    for weight, _ in reversed(convolutions):
        g = fours_transposed((g * slopes.pop()) @ weight, lengths.pop())
    g = g.reshape(B * frames, -1)
    for weight, _ in reversed(extract):
        g = (g * slopes.pop()) @ weight
    return (g * slopes.pop()).reshape(B, frames, width)


# ------------------------------------------------------------------------------------------------------------------
# One training
# ------------------------------------------------------------------------------------------------------------------

class Training:
    """A variant: networks, step(), which changes them by one generator step, and look(), which measures the averaged one."""

    def __init__(self, name, change, data, device):
        o = argparse.Namespace(**{**DEFAULTS, **change})
        self.name, self.o, self.data, self.device, self.steps, self.graph = name, o, data, device, 0, None
        codes = self.codes = data["codes"]
        (_, L, D), self.late = codes.shape, round(o.late * o.batch)
        mean, std = data["mean"], data["std"]
        torch.manual_seed(o.seed)
        if o.motion == "gru":
            G = Gru(L, D)
            G.init_output(mean.cpu(), std.cpu())
            if o.start == "ours":
                G.init_recurrence()
        else:
            G = Linear(L, D, data["x"].cpu(), {k: v.cpu() for k, v in data["pca"].items()}, std.cpu())
        inputs = 2 if o.diff else 1
        C = MotionCritic(inputs * L, D, T, D)
        scale = std.square().mean().sqrt()
        self.faster = float(o.diff * scale / codes.diff(dim=0).square().mean().sqrt())
        self.scale = float(scale * o.scale)
        C.begins = nn.Parameter(torch.zeros(D))                                 # weights of the constant input of the flag
        self.G, self.C, self.norm = G.to(device).train(), C.to(device).train(), RunningNorm(32).to(device)
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        rate = (lambda lr: torch.tensor(lr, device=device)) if device.type == "cuda" else float
        adam = lambda groups: torch.optim.Adam(groups, betas=tuple(o.betas), fused=True, capturable=device.type == "cuda")
        recurrence = [*G.hallucinate.parameters(), *G.produce.parameters()] if o.motion == "gru" else []
        known = set(map(id, recurrence))
        groups = [{"params": [p for p in G.parameters() if id(p) not in known], "lr": rate(o.lr)}]
        if recurrence:
            groups.append({"params": recurrence, "lr": rate(o.lr * o.lr_recurrence)})
        self.optimiser_G, self.optimiser_C = adam(groups), adam([{"params": list(C.parameters()), "lr": rate(o.lr_critic)}])
        self.rng = torch.Generator(device).manual_seed(o.seed)
        self.count = torch.zeros((), device=device)
        self.pool = torch.randn(4, self.late, 32, generator=self.rng, device=device)
        first = torch.arange(o.batch, device=device) < o.batch - self.late
        self.first = first.float()[:, None, None] * float(o.flag and self.late > 0)
        self.logged = torch.zeros(4, device=device)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.rng, device=self.device)

    def windows(self, grad):
        """Motion codes l, W+ codes w, and the noise i, s of those that begin with i; later ones go on where the last call ended."""
        G, o, late = self.G, self.o, self.late
        i = self.randn(o.batch - late, G.start).requires_grad_(grad)
        s = self.randn(o.batch - late, T - 1, G.noise).requires_grad_(grad)
        h, noise = G.hidden(i), s
        if late:
            h, noise = torch.cat([h, self.pool], 1), torch.cat([s, self.randn(late, T - 1, G.noise)])
        tail, end = G.roll(noise, h)
        if late:
            anew = torch.rand(late, generator=self.rng, device=self.device) < 1 / o.turns
            fresh = end[:, :late]
            self.pool.copy_(torch.where(anew[:, None], fresh, end[:, -late:]).detach())
        l = torch.cat([G.code(h)[:, None], tail], 1)
        return l, G.translate(l), i, s

    def read(self, w):
        """What the critic's first layer makes of windows (B, T, L, D): of codes, of weighted differences of frames, of the flag.

        The layer is linear, so differences are taken of what it gives, not of what it gets.
        """
        C, o, n = self.C, self.o, w[0, 0].numel()
        W = C.extract[0].weight / self.scale
        bias = C.extract[0].bias - W[:, :n] @ self.data["mean"].flatten()
        if o.diff:
            a, b = F.linear(w.flatten(2), torch.cat([W[:, :n], self.faster * W[:, n:]])).chunk(2, 2)      # (B, T, width) each
            p = a + F.pad(b.diff(dim=1), (0, 0, 1, 0))
        else:
            p = F.linear(w.flatten(2), W)
        return p + bias + self.first * C.begins

    def instance(self, p_real):
        """Instance noise for both sides: differences of real windows."""
        sigma, quarter = self.o.noise / math.sqrt(2), self.o.batch // 4
        a, b, c = (p_real.roll(k * quarter, 0) for k in (1, 2, 3))
        return sigma * (a - b), sigma * (b - c)

    def squared_slopes(self, p):
        g, W = score_gradient(self.C, p.detach()), self.C.extract[0].weight
        return ((g @ (W @ W.T)) * g).sum((1, 2))                                # (B,)

    def step(self):
        o, C, codes = self.o, self.C, self.codes
        B, N = o.batch, len(codes)
        for k in range(o.critic_steps):
            last = k == o.critic_steps - 1                                      # its fakes are those of the generator step too
            with torch.set_grad_enabled(last):
                l, w, i, s = self.windows(last and o.gap > 0)
            if o.spread:
                share = torch.rand((), generator=self.rng, device=self.device)
                starts = ((torch.arange(B, device=self.device) + share) * ((N - T + 1) / B)).long().clamp_max(N - T)
                starts = starts[torch.rand(B, generator=self.rng, device=self.device).argsort()]
            else:
                starts = (torch.rand(B, generator=self.rng, device=self.device) * (N - T + 1)).long().clamp_max(N - T)
            real = codes[starts[:, None] + torch.arange(T, device=self.device)]
            p_real, p_fake = self.read(real), self.read(w.detach())
            if o.noise:
                n_real, n_fake = self.instance(p_real)
                p_real, p_fake = p_real + n_real, p_fake + n_fake
            scores = score(C, torch.cat([p_real, p_fake]))
            if o.loss == "wgan":
                u = torch.rand(B, 1, 1, generator=self.rng, device=self.device)
                loss_C = scores[B:].mean() - scores[:B].mean()
                gp = (self.squared_slopes(u * p_real + (1 - u) * p_fake).clamp_min(1e-12).sqrt() - 1).square().mean()
                total = loss_C + o.gp * gp
            else:                                                               # R1 + R2: gamma / 2 times both means
                loss_C = F.softplus(scores[B:] - scores[:B]).mean()
                gp = 2 * self.squared_slopes(torch.cat([p_real, p_fake])).mean()
                total = loss_C + o.gp / 2 * gp
            self.optimiser_C.zero_grad()
            total.backward()
            self.optimiser_C.step()

        C.requires_grad_(False)
        p_real, p_fake = self.read(real) if o.noise or o.loss == "r3" else None, self.read(w)
        if o.noise:
            p_fake = p_fake + self.instance(p_real)[1]
        fake = score(C, p_fake)
        loss_G = -fake.mean() if o.loss == "wgan" else F.softplus(score(C, p_real) - fake).mean()
        phi, gap = loss_G.detach() * 0, 0.0
        if o.gap > 0:
            fresh = B - self.late
            self.norm.update((l[:fresh, -1] - l[:fresh, 0]).detach())
            gap, phi = gradient_angle_penalty(l[:fresh], i, s, self.norm)
        self.optimiser_G.zero_grad()
        (loss_G + o.gap * gap).backward()
        self.optimiser_G.step()
        C.requires_grad_(True)
        with torch.no_grad():
            self.count += 1
            share = 1 - torch.minimum(torch.full_like(self.count, o.ema), self.count / (self.count + 9))
            away = torch._foreach_sub(list(self.G.parameters()), list(self.ema.parameters()))
            torch._foreach_mul_(away, share)
            torch._foreach_add_(list(self.ema.parameters()), away)
            now = torch.stack([loss_C.detach(), gp.detach(), loss_G.detach(), phi.mean()])
            self.logged.lerp_(now, 0.02)

    def record(self):
        """step() as one CUDA graph, on this training's own stream. The two steps of the warming-up count."""
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(2):
                self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.rng)
        with torch.cuda.graph(graph, stream=self.stream):
            self.step()
        self.graph = graph

    # Measuring ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def settled(self, batches=48):
        """The averaged generator, its BatchNorm statistics measured anew on windows as in training, in eval mode."""
        kept = self.G, self.pool.clone(), self.rng
        G = copy.deepcopy(self.ema)
        norms = [m for m in G.modules() if isinstance(m, nn.BatchNorm1d)]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
        self.G, self.rng = G.train(), torch.Generator(self.device).manual_seed(1)
        for k in range(batches + 20):
            if k == 20:                                                         # the pool is as old as in training now
                for m in norms:
                    m.reset_running_stats()
            self.windows(False)
        self.G, self.rng = kept[0], kept[2]
        self.pool.copy_(kept[1])
        return G.eval()

    @torch.no_grad()
    def sampled(self, G, n, t, seed, frames=None):
        """Coordinates (n, frames, 32) of the frames (a slice) of n trajectories of t frames, and the share beyond them."""
        rng = torch.Generator(self.device).manual_seed(seed)
        l = [G.code(h := G.hidden(torch.randn(n, G.start, generator=rng, device=self.device)))[:, None]]
        while t > 1:
            k = min(t - 1, 1000)
            tail, h = G.roll(torch.randn(n, k, G.noise, generator=rng, device=self.device), h)
            l, t = l + [tail], t - k
        l = torch.cat(l, 1)
        return [self.coordinates(G, l[a:b, c:d]) for a, b, c, d in frames or [(0, n, 0, l.shape[1])]]

    def coordinates(self, G, l):
        pca, out, beyond, everything = self.data["pca"], [], 0.0, 0.0
        for part in l.flatten(0, 1).split(8192):
            w = (G.translate(part) - pca["mean"]).flatten(1).double()
            out.append(w @ pca["basis"].flatten(1).T.double())
            everything, beyond = everything + w.square().sum(), beyond + w.square().sum() - out[-1].square().sum()
        return torch.cat(out).unflatten(0, l.shape[:2]), float(beyond / everything)

    def look(self, seconds, quick=False):
        G, n = self.settled(), 64 if quick else 2048
        many, far = (16, 440) if quick else (128, FAR)
        (short, beyond), = self.sampled(G, n, T, 0)
        parts = self.sampled(G, many, far, 1, [(0, many, 100, 400), (0, many, far - 400, far), (0, 16, min(750, far // 2), min(1500, far))])
        looped = [M.loop_score(x, self.data["usual"]) for x in parts[2][0]]
        report(self.data, self.name, self.o.seed, self.steps, seconds, short, parts[0][0], parts[1][0],
               [beyond, float(np.mean(looped)), float(np.mean(np.array(looped) < 0.3)), *self.logged.tolist()])
        return G


COLUMNS = ("run", "seed", "steps", "seconds", "windows", "Gaussian", "MMD", "motion", "kurtosis", "jitter", "novelty", "held Gaussian", "held MMD",
           "held motion", "MMD x1000", "motion x1000", "held MMD x1000", "held motion x1000", "beyond", "loop", "looped", "loss_C", "gp", "loss_G", "phi")
LOCK = threading.Lock()


def report(data, name, seed, steps, seconds, short, late, far, rest):
    """Three lines of the table: windows that begin with i, those from 100 to 400 frames on, the last 400 frames of long ones."""
    for kind, w in (("short", short), ("late", late), ("far", far)):
        if w is None:
            continue
        if kind != "short":
            w = w[:, :w.shape[1] // T * T].unflatten(1, (-1, T)).flatten(0, 1)
            order = torch.randperm(len(w), generator=torch.Generator().manual_seed(1))[:M.COUNT]
            w = w[order.to(w.device)]
        if not torch.isfinite(w).all():
            say(f"{name}: {kind} windows are not finite at step {steps}")
            continue
        m, h = M.measures(data["train"], w), M.distances(data["held"], w)
        thousand = [10 * r[k] * data[v]["frozen"][k] for v, r in (("train", m), ("held", h)) for k in ("MMD", "motion")]
        row = [m["Gaussian"], m["MMD"], m["motion"], m["kurtosis"], m["jitter"], m["novelty"], h["Gaussian"], h["MMD"], h["motion"], *thousand, *rest]
        with LOCK:
            with open(data["table"], "a") as file:
                file.write("\t".join([name, str(seed), str(steps), f"{seconds:.0f}", kind] + [f"{v:.4f}" for v in row]) + "\n")
            print(f"{name[:16]:16s} {steps:6d} {seconds:4.0f} s {kind:5s} train G {row[0]:6.2f} MMD {row[9]:7.2f} motion {row[10]:7.2f} | held G {row[6]:6.2f} "
                  f"MMD {row[11]:7.2f} motion {row[12]:7.2f} | kurt {row[3]:5.2f} jit {row[4]:5.2f} nov {row[5]:4.2f}"
                  + (f" | beyond {rest[0]:.3f} loop {rest[1]:.2f} {rest[2]:.2f} C {rest[3]:.3f} gp {rest[4]:.4f} phi {math.degrees(rest[6]):.0f}"
                     if rest and kind == "late" else ""), flush=True)


def say(*words):
    with LOCK:
        print(f"[{time.time() - BEGAN:.0f} s]", *words, flush=True)


# ------------------------------------------------------------------------------------------------------------------
# All of them
# ------------------------------------------------------------------------------------------------------------------

def unpacked(path):
    """What pack.py wrote: rounded PCA coordinates -> codes of both videos, float32 (N, L, D)."""
    with np.load(path) as z:
        basis, mean, step, shape = z["basis"].astype(np.float32), z["mean"], z["step"], tuple(z["shape"])
        return [((np.concatenate([z[f"{n}_big"].T.astype(np.float32), z[n].T.astype(np.float32)], 1) * step) @ basis + mean).reshape(-1, *shape)
                for n in ("train", "held")]


def prepare(path, device, table):
    train, held = (torch.from_numpy(c).to(device) for c in unpacked(path))
    mean = train.mean(0)
    flat = (train - mean).flatten(1)
    values, vectors = torch.linalg.eigh(flat.double().T @ flat.double() if device.type == "cuda" else (flat.T @ flat).double())
    pca = {"mean": mean, "basis": vectors[:, -32:].flip(1).T.float().reshape(32, *mean.shape).contiguous()}
    x, y = (((c - mean).flatten(1).double() @ pca["basis"].flatten(1).T.double()).float() for c in (train, held))
    r = M.references(x, [(0, len(x))], T)
    data = {"codes": train, "mean": mean, "std": train.std(0), "pca": pca, "x": x, "y": y, "train": r,
            "held": M.references(y, [(0, len(y))], T, r), "usual": M.usual_distance(x), "table": table}
    say(f"{len(train)} and {len(held)} frames {tuple(mean.shape)}; kurtosis {r['kurtosis']:.2f}, held-out {data['held']['kurtosis']:.2f}; jitter "
        f"{r['jitter']:.3f}, {data['held']['jitter']:.3f}; beyond PCA(32) {1 - float(x.square().sum() / flat.square().sum()):.4f}; frozen {r['frozen']}, "
        f"{data['held']['frozen']}; floor {r['floor']}, {data['held']['floor']}")
    return data


@torch.no_grad()
def rows(data, device, quick=False):
    """Models that cost nothing."""
    x, y, clips, (L, D) = data["x"], data["y"], [(0, len(data["x"]))], data["mean"].shape
    rng, n, m, t = torch.Generator().manual_seed(0), 64 if quick else 2048, 16 if quick else 128, 440 if quick else FAR

    def pieces(v, n, t):
        return v[(torch.randint(len(v) - t + 1, (n, 1), generator=rng) + torch.arange(t)).to(device)]

    def loops(v):
        looped = [M.loop_score(q, data["usual"]) for q in v]
        return [math.nan, float(np.mean(looped)), float(np.mean(np.array(looped) < 0.3)), *[math.nan] * 4]

    def real(name, v):
        report(data, name, 0, 0, 0, pieces(v, n, T), pieces(v, m, 300), None, loops(pieces(v, 16, 750)) if len(v) > 750 else [math.nan] * 7)

    real("training windows", x)
    real("its first minute", x[:1500])
    real("held-out windows", y)
    frozen = pieces(x, n, 1).expand(-1, T, -1)
    report(data, "frozen", 0, 0, 0, frozen, None, None, [math.nan] * 7)
    order = torch.rand(n, T, generator=rng).argsort(1).to(device)
    report(data, "shuffled", 0, 0, 0, pieces(x, n, T).gather(1, order[..., None].expand(-1, -1, 32)), None, None, [math.nan] * 7)
    report(data, "reversed", 0, 0, 0, pieces(x, n, T).flip(1), None, None, [math.nan] * 7)
    for name, G in (("filtered noise", FilteredNoise(L, D, len(x))), ("VAR(8)", VAR(L, D)), ("textures", Textures(L, D, len(x)))):
        began = time.time()
        G = G.to(device).fit(x, clips, data["pca"])
        took = time.time() - began

        def sampled(n, t):
            out = []
            for k in range(0, n, 16 if name == "filtered noise" else 2048):
                b = min(16 if name == "filtered noise" else 2048, n - k)
                s = torch.randn(b, t - 1, 32, generator=rng).to(device)
                out.append(G.motion(torch.randn(b, G.start, generator=rng).to(device), s))
            return torch.cat(out)

        long = sampled(m, t)
        short = long[:, :400].unflatten(1, (-1, T)).flatten(0, 1)[:n] if name == "filtered noise" else sampled(n, T)
        report(data, name, 0, 0, took, short, long[:, 100:400], long[:, -400:], loops(long[:16, 750:1500] if t > 1500 else long[:2]))


def go(run, args, end, last, models):
    """Train until `end`, look at the steps of args.looks and at the end."""
    try:
        looks = sorted(args.looks)
        with torch.cuda.stream(run.stream) if run.device.type == "cuda" else nullcontext():
            while time.time() < end and run.steps < args.steps:
                if run.graph:
                    run.graph.replay()
                else:
                    run.step()
                run.steps += 1
                if run.steps % 16 == 0 and run.device.type == "cuda":
                    run.stream.synchronize()
                if looks and run.steps >= looks[0] and time.time() < end - 20:
                    looks.pop(0)
                    run.look(time.time() - last)
            took = time.time() - last
            G = run.look(took, args.quick)
            models[run.name] = {"options": vars(run.o), "steps": run.steps, "seconds": took,
                                "generator": {k: v.half().cpu() if v.is_floating_point() else v.cpu() for k, v in G.state_dict().items()}}
    except Exception:
        say(f"{run.name} FAILED at step {run.steps}\n{traceback.format_exc()}")


class nullcontext:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def apart(args):
    """Where the first training cannot be recorded as a graph: all of them without graphs, a process each, 12 at a time."""
    say("going on without graphs, a process for each training")
    names, left = args.only or FIRST, max(20.0, BEGAN + args.total - time.time() - 20)
    same = [sys.executable, __file__, args.codes, "-o", args.output, "--seconds", str(left), "--total", "1000", "--looks", "400", "--no-graph", "--no-rows",
            "--device", args.device, "--steps", str(args.steps), *["--quick"] * args.quick]
    processes = [subprocess.Popen([*same, f"--suffix=-{n.replace('/', '_')}", "--only", n]) for n in names[:12]]
    for process in processes:
        process.wait()
    out = Path(args.output)
    table = out / f"results{args.suffix}.tsv"
    parts = [part for part in sorted(out.glob("results-*.tsv")) if part != table]
    table.write_text("\t".join(COLUMNS) + "\n" + "".join("\n".join(p.read_text().split("\n")[1:]) for p in parts))
    for part in [*parts, *out.glob("models-*.pt")]:                             # few files come back
        part.unlink()
    summary(table)


def summary(table):
    """The last look at each training, late windows (from 100 frames on) and short ones, as one line."""
    lines = [line.split("\t") for line in table.read_text().split("\n")[1:] if line]
    last = {(line[0], line[4]): line for line in lines}
    at = {name: k for k, name in enumerate(COLUMNS)}
    names = "G%", "MMDx1000", "motion", "heldMMD", "heldmot", "kurt", "jit", "nov"
    keys = "Gaussian", "MMD x1000", "motion x1000", "held MMD x1000", "held motion x1000", "kurtosis", "jitter", "novelty"
    print("\n" + "last look: late, (short), far".ljust(30) + " ".join(n.rjust(22) for n in names) + "   looped beyond")
    for run in dict.fromkeys(line[0] for line in lines):
        late, short, far = (last.get((run, kind)) for kind in ("late", "short", "far"))
        if late and short:
            cells = [f"{float(late[at[k]]):.2f} ({float(short[at[k]]):.2f}) {float(far[at[k]]) if far else math.nan:.2f}".rjust(22) for k in keys]
            print(f"{run[:16]:16s} {late[2]:>6s} {late[3]:>4s} s".ljust(30) + " ".join(cells) + f" {late[at['looped']]:>8.4s} {late[at['beyond']]:>6.5s}")
    sys.stdout.flush()


def main(args):
    device = torch.device(args.device)
    torch.backends.cudnn.enabled = False                                        # its recurrent kernels have no second derivative
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1 if device.type == "cpu" else 4)
    sys.setswitchinterval(0.0005)                                               # threads that replay need the interpreter for microseconds
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"results{args.suffix}.tsv"
    table.write_text("\t".join(COLUMNS) + "\n")
    say(torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    data = prepare(args.codes, device, table)
    if not args.no_rows:
        rows(data, device, args.quick)
        say("rows that cost nothing: done")

    runs = []
    for name in args.only or FIRST:
        try:
            began = time.time()
            run = Training(name, changes(name), data, device)
            if args.apart or device.type == "cuda":
                if args.no_graph:
                    run.stream = torch.cuda.Stream()
                else:
                    try:
                        if device.type == "cuda":
                            run.record()
                        if args.apart:
                            raise RuntimeError("asked to try the way without graphs")
                    except Exception:
                        say(f"{name}: no CUDA graph\n{traceback.format_exc()}")
                        if not runs:
                            return apart(args)
                        continue
            runs.append(run)
            say(f"{name}: ready after {time.time() - began:.1f} s, graph: {run.graph is not None}")
        except Exception:
            say(f"{name} FAILED to start\n{traceback.format_exc()}")

    last, models = time.time(), {}
    end = min(last + args.seconds, BEGAN + args.total)
    threads = [threading.Thread(target=go, args=(run, args, end, last, models), daemon=True) for run in runs]
    if device.type == "cuda":
        torch.cuda.synchronize()
        for thread in threads:
            thread.start()
        told = time.time()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            if time.time() - told > 25:
                told = time.time()
                say("steps: " + ", ".join(f"{run.name} {run.steps}" for run in runs))
            if time.time() > BEGAN + args.total + 30:
                say("time is up")
                break
    else:
        for run in runs:
            go(run, args, time.time() + args.seconds, time.time(), models)
    names = list(models)
    for k in range(0, len(names), 16):
        torch.save({n: models[n] for n in names[k:k + 16]}, out / f"models{args.suffix}-{k // 16}.pt")
    summary(table)
    say(f"done: {len(names)} of {len(args.only or FIRST)} trainings")
    sys.stdout.flush()
    os._exit(0)                                                                 # threads that still run do not matter any more


if __name__ == "__main__":
    BEGAN = time.time()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("codes")
    parser.add_argument("-o", "--output", default="out")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seconds", type=float, default=170.0, help="of training, all side by side")
    parser.add_argument("--total", type=float, default=215.0, help="seconds from the start after which training ends")
    parser.add_argument("--steps", type=int, default=10 ** 9)
    parser.add_argument("--looks", type=int, nargs="*", default=[800, 2400, 6000])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--suffix", default="")
    parser.add_argument("--no-graph", action="store_true")
    parser.add_argument("--apart", action="store_true", help="try what is done where graphs fail")
    parser.add_argument("--no-rows", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few samples: a test that all runs through")
    main(parser.parse_args())
