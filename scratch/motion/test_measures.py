"""Measures of processes whose answer is known: python -m pytest -q test_measures.py"""
import math

import numpy as np
import torch

import measures as M
from baselines.gaussian import VAR, FilteredNoise
from baselines.textures import Textures

T = 25


def pca_of(x):
    """Coordinates as codes: one style row of 32 numbers."""
    return {"mean": torch.zeros(1, 32), "basis": torch.eye(32)[:, None]}


def video(n=3000, seed=0):
    """Something like talking (n, 32): a slow swing, and now and then a blink, along fixed directions."""
    rng = np.random.RandomState(seed)
    slow = np.cumsum(rng.standard_normal((n, 4)), 0)
    for k in range(1, n):
        slow[k] = 0.98 * slow[k - 1] + 0.2 * rng.standard_normal(4)
    blink = np.convolve(rng.uniform(size=n) < 0.02, np.hanning(9), "same")[:, None] * 3
    x = np.concatenate([slow, blink], 1) @ np.random.RandomState(9).standard_normal((5, 32)) + 0.05 * rng.standard_normal((n, 32))
    x -= x.mean(0)
    return torch.from_numpy(x).float()


def test_frechet_of_known_gaussians():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40000, 3, generator=rng).double(), 2 * torch.randn(40000, 3, generator=rng).double() + 1
    assert abs(M.frechet(x, y) - (3 * 1 + 3 * (2 - 1) ** 2)) < 0.1


def test_mmd_of_known_gaussians():
    """E k(x, y) = (m^2 / (m^2 + 2))^(d/2) exp(-|mu|^2 / (2 (m^2 + 2))) for x ~ N(0, 1), y ~ N(mu, 1) and a kernel of width m."""
    rng, d, m, mu = torch.Generator().manual_seed(0), 2, 2.0, 1.5
    x, y = (torch.randn(4000, d, generator=rng).double() for _ in range(2))
    y[:, 0] += mu
    mean = lambda m, mu: (m * m / (m * m + 2)) ** (d / 2) * math.exp(-mu * mu / (2 * (m * m + 2)))
    expected = sum(2 * mean(w, 0) - 2 * mean(w, mu) for w in (m, m / 2, m / 4))
    assert abs(M.mmd(x, y, m) - expected) < 0.02 * expected
    assert abs(M.mmd(x, torch.randn(4000, d, generator=rng).double(), m)) < 1e-3


def test_moments_of_known_processes():
    rng = np.random.RandomState(0)
    steps = torch.from_numpy(rng.laplace(size=(400, 501, 16))).cumsum(1)
    assert abs(M.kurtosis(steps) - 3) < 0.1                                     # a Laplace variable's
    assert abs(M.jitter(torch.from_numpy(rng.standard_normal((400, 501, 16)))) - math.sqrt(6)) < 0.01


def test_loops():
    t = torch.arange(1500).double()[:, None]
    period = torch.cat([torch.sin(2 * math.pi * t / 50), torch.cos(2 * math.pi * t / 50)], 1)
    assert M.loop_score(period, M.usual_distance(period)) < 1e-6
    white = torch.randn(750, 8, generator=torch.Generator().manual_seed(0))
    assert M.loop_score(white, M.usual_distance(white)) > 0.9
    assert M.loop_score(0.01 * white, M.usual_distance(white)) < 0.02           # dies down: the simplest loop


def test_filtered_noise_is_told_from_the_video_and_copies_are_found():
    x, clips = video(), [(0, 3000)]
    r = M.references(x, clips, T)
    rng = torch.Generator().manual_seed(1)
    G = FilteredNoise(1, 32, len(x), 1).fit(x, clips, pca_of(x))
    noise = G.motion(torch.randn(64, G.start, generator=rng), torch.randn(64, 799, 32, generator=rng)).unflatten(1, (-1, T)).flatten(0, 1)
    copies = r["windows"][torch.randint(len(r["windows"]), (2048,), generator=rng)]
    a, b = M.measures(r, noise), M.measures(r, copies)
    assert a["Gaussian"] < 3 and abs(a["kurtosis"]) < 0.05 and a["novelty"] > 0.9
    assert a["motion"] > 5 * abs(b["motion"]) and a["motion"] * r["frozen"]["motion"] > 0.5
    assert b["novelty"] < 1e-3 and abs(b["kurtosis"] - 1) < 0.2 and abs(b["jitter"] - 1) < 0.1
    still = M.distances(r, r["windows"][:, :1].expand(-1, T, -1))
    assert all(abs(v - 100) < 1e-6 for v in still.values())                     # percentages are of frozen frames


def test_fitted_models_stream_and_keep_covariances():
    x, clips = video(1200), [(0, 700), (700, 1200)]
    rng = torch.Generator().manual_seed(0)
    for G in (FilteredNoise(1, 32, 700, 2), VAR(1, 32), Textures(1, 32, 1200)):
        G.fit(x, clips, pca_of(x))
        i, s = torch.randn(3, G.start, generator=rng), torch.randn(3, 60, 32, generator=rng)
        h, parts = G.hidden(i), []
        parts.append(G.code(h)[:, None])
        for part in s.split((1, 19, 40), 1):
            l, h = G.roll(part, h)
            parts.append(l)
        assert torch.allclose(torch.cat(parts, 1), G.motion(i, s), atol=1e-4)
        assert G.translate(G.motion(i, s)).shape == (3, 61, 1, 32)
        if not isinstance(G, Textures):
            l = G.motion(torch.randn(3000, G.start, generator=rng), torch.randn(3000, 1, 32, generator=rng))
            parts = x[:700], x[700:]
            for lag in (0, 1):
                real = sum(p[lag:].T @ p[:len(p) - lag] for p in parts) / len(x)
                fake = l[:, lag].T @ l[:, 0] / len(l)
                assert (real - fake).norm() < 0.1 * real.norm()


def test_textures_play_the_video_and_every_frame_alike():
    x, clips = video(1200), [(0, 1200)]
    G = Textures(1, 32, 1200).fit(x, clips, pca_of(x))
    rng = torch.Generator().manual_seed(0)
    h, counts, jumps = G.hidden(torch.randn(500, 32, generator=rng)), torch.zeros(1200), 0.0
    for _ in range(300):
        before = h[0, :, 0].long()
        _, h = G.roll(torch.randn(500, 1, 32, generator=rng), h)
        at = h[0, :, 0].long()
        counts += torch.bincount(at, minlength=1200)
        jumps += (at != before + 1).float().mean() / 300
    assert counts[50:1150].max() < 4 * counts.mean() and (counts[50:1150] > 0).all()
    assert 0.002 < jumps < 0.2
