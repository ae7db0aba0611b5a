"""How far sampled motion is from real motion, without a picture, in windows of PCA coordinates.

Gaussian  Fréchet distance of two Gaussians, fitted to sampled and to real windows in the 64 principal
          directions of real ones, in % of what frozen frames score. It sees means and covariances alone:
          white noise filtered by the video is perfect by it.
MMD       squared maximum mean discrepancy in the same directions (Gretton et al. 2012, unbiased: around 0,
          also below, for two draws of one process), in % of frozen frames. It sees all moments, as two of its
          three kernels are narrower than the median distance; one as wide sees little but covariances.
motion    the same of windows without their mean: how they move, not where.
kurtosis  excess kurtosis of velocities, over that of real windows. Blinks and lips make it; 0: Gaussian.
jitter    root mean square of second differences, over that of real windows: 2 trembles, 0.5 is sluggish.
novelty   median distance to the nearest window of the training video, over that from its own windows to those
          at least two windows away. 0: copied; 1: as new as the video is to itself.
loops     of a long trajectory: the smallest mean distance of frames a lag apart, over that of any two frames.

Shapes: N frames, T frames of a window, n windows. All is computed in float64 on the device of what comes in.
"""

import torch

SPACE = 64      # ours: 2,048 windows determine a 64 x 64 covariance well, not the 800 x 800 one of 25 x 32
COUNT = 2048    # windows of a set, as many as the paper's FVD takes (suppl. 2.2)
MOMENTS = 16    # ours: coordinates whose kurtosis is averaged; later ones hold little but the encoder's noise
LOOP_LAG = 25   # ours: shortest lag in frames that counts as a repetition; below, any motion resembles itself


def cut_windows(x, clips, window):
    """All windows inside the clips [(start, end), ...]: (N, 32) -> (n, T, 32)."""
    starts = torch.cat([torch.arange(start, max(start, end - window + 1)) for start, end in clips])
    return x[(starts[:, None] + torch.arange(window)).to(x.device)]


def evenly(windows, count=COUNT):
    """At most `count` of the windows, evenly spaced."""
    places = torch.linspace(0, len(windows) - 1, min(count, len(windows)))
    return windows[places.long().to(windows.device)]


def without_mean(windows):
    return windows - windows.mean(1, keepdim=True)


# ------------------------------------------------------------------------------------------------------------
# Distances of two sets of points
# ------------------------------------------------------------------------------------------------------------

def frechet(x, y):
    """Fréchet distance of Gaussians fitted to (n, d), (m, d): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    symmetric: no complex numbers, no matrix square root of a singular product.
    """
    S1, S2 = (torch.atleast_2d(torch.cov(v.T, correction=0)) for v in (x, y))
    values, vectors = torch.linalg.eigh(S1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ S2 @ root).clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + S1.trace() + S2.trace() - 2 * cross)


def kernel(x, y, median):
    """Sum of Gaussian kernels as wide as 1, 1/2 and 1/4 of the median distance: (n, d), (m, d) -> (n, m)."""
    k = torch.exp(-torch.cdist(x, y).square() / (2 * median ** 2))
    return k + k ** 4 + k ** 16


def mmd(x, y, median):
    """Squared maximum mean discrepancy of (n, d) and (m, d), unbiased: no window is compared with itself."""
    n, m = len(x), len(y)
    within_x = (kernel(x, x, median).sum() - 3 * n) / (n * (n - 1))
    within_y = (kernel(y, y, median).sum() - 3 * m) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel(x, y, median).mean())


def nearest(x, others, apart=None):
    """Distance of points (n, d) to the nearest of (m, d), where `apart` (n, m) is True only: (n,)."""
    d = torch.cdist(x, others)
    return (d if apart is None else d.masked_fill(~apart, torch.inf)).min(1).values


# ------------------------------------------------------------------------------------------------------------
# Windows
# ------------------------------------------------------------------------------------------------------------

def principal_space(windows):
    """Of windows (n, T, 32): mean (32 T,), principal directions (32 T, <= SPACE), median distance there."""
    x = windows.flatten(1)
    mean = x.mean(0)
    basis = torch.linalg.eigh((x - mean).T @ (x - mean))[1][:, -SPACE:]         # ascending
    some = (evenly(x, 500) - mean) @ basis
    return mean, basis, float(torch.cdist(some, some).median())


def projected(windows, space):
    """Windows (n, T, 32) in a principal space: (n, <= SPACE)."""
    mean, basis, _ = space
    return (windows.flatten(1) - mean) @ basis


def jitter(windows):
    return float(windows.diff(n=2, dim=1).square().mean().sqrt())


def kurtosis(windows):
    """Excess kurtosis of velocities, the mean over the first MOMENTS coordinates."""
    v = windows.diff(dim=1)[..., :MOMENTS].flatten(0, 1)
    v = (v - v.mean(0)) / v.std(0, correction=0)
    return float((v ** 4).mean() - 3)


def references(x, clips, window, train=None):
    """What windows are compared with: those of a video, coordinates (N, 32) in clips [(start, end), ...].

    train: references of the training video if x is another one: both are measured in the same directions.
    frozen: real frames repeated T times, of which percentages are. floor: COUNT real windows drawn at random.
    """
    windows = cut_windows(x.double(), clips, window)                            # (n, T, 32)
    r = {"windows": windows, "jitter": jitter(windows), "kurtosis": kurtosis(windows)}
    r["space"] = train["space"] if train else principal_space(windows)
    r["motion space"] = train["motion space"] if train else principal_space(without_mean(windows))
    r["points"] = projected(windows, r["space"])                                # (n, SPACE)
    r["train"] = train or r

    some, place = evenly(r["points"], 512), torch.arange(len(windows), device=x.device)
    apart = (evenly(place, 512)[:, None] - place).abs() >= 2 * window
    r["nearest"] = float(nearest(some, r["points"], apart).median())

    r["frozen"] = {"Gaussian": 1.0, "MMD": 1.0, "motion": 1.0}
    r["frozen"] = distances(r, windows[:, :1].expand(-1, window, -1), percent=1.0)
    drawn = torch.randint(len(windows), (COUNT,), generator=torch.Generator().manual_seed(0))
    r["floor"] = distances(r, windows[drawn.to(x.device)])
    return r


def distances(r, windows, percent=100.0):
    """Distances of windows (n, T, 32) from those of references r, in % of frozen frames."""
    windows, real = windows.double(), evenly(r["windows"])
    some, space, motion = evenly(windows), r["space"], r["motion space"]
    found = {"Gaussian": frechet(projected(windows, space), r["points"]),
             "MMD": mmd(projected(some, space), projected(real, space), space[2]),
             "motion": mmd(*(projected(without_mean(w), motion) for w in (some, real)), motion[2])}
    return {name: percent * value / r["frozen"][name] for name, value in found.items()}


def measures(r, windows):
    """All of the above but loops, of windows (n, T, 32) against references r."""
    windows, train = windows.double(), r["train"]
    near = nearest(projected(evenly(windows, COUNT // 2), train["space"]), train["points"]).median()
    return {**distances(r, windows), "kurtosis": kurtosis(windows) / r["kurtosis"],
            "jitter": jitter(windows) / r["jitter"], "novelty": float(near) / train["nearest"]}


# ------------------------------------------------------------------------------------------------------------
# Long trajectories
# ------------------------------------------------------------------------------------------------------------

def usual_distance(x):
    """Mean distance of two different frames of x (N, 32), of at most 2,000 evenly spaced ones."""
    x = evenly(x.double(), 2000)
    return float(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)))


def loop_score(x, usual, shortest=LOOP_LAG):
    """How nearly a trajectory (N, 32) repeats itself at a steady tempo: 0 exactly, about 1 never.

    usual: usual_distance of the training video, so that motion that dies down scores near 0.
    """
    d = torch.cdist(x.double(), x.double())                                     # (N, N), diagonals are lags
    lags = [d.diagonal(lag).mean() for lag in range(shortest, len(x) // 2 + 1)]
    return float(torch.stack(lags).min()) / usual
