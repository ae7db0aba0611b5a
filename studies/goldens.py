"""Numbers of the upstream networks to compare ours with, and the pseudo-weights that they were computed from.

    encoder = fill(models.GradualStyleEncoder(), "encoder.")
    golden_error("psp codes", codes[1, ::3, ::128])   # max |ours - upstream's| / std(upstream's), below 1e-4

Every tensor is drawn from numpy's frozen RandomState(crc32(name)) and scaled by a rule that its name picks.
The upstream networks (pixel2style2pixel @ 5cfff385, stylegan2-pytorch @ bef283a1) were filled in the same
way, on a CPU in fp32.
"""

import math
import re
import zlib

import numpy as np
import torch

RULES = (
    (r"num_batches_tracked$", lambda n, he: 0 * n),
    (r"running_var$", lambda n, he: 1 + 0.2 * np.tanh(n)),
    (r"running_mean$", lambda n, he: 0.1 * n),
    (r"(input_layer\.2|res_layer\.2)\.weight$", lambda n, he: 0.25 + 0.05 * n),
    (r"(input_layer\.1|res_layer\.[04]|shortcut_layer\.1)\.weight$", lambda n, he: 1 + 0.1 * n),
    (r"(^|\.)style\.\d+\.weight$", lambda n, he: 100 * n),
    (r"(^|\.)style\.\d+\.bias$", lambda n, he: 10 * n),
    (r"modulation\.bias$", lambda n, he: 1 + 0.1 * n),
    (r"noise\.weight$", lambda n, he: 0.1 + 0.02 * n),
    (r"latent_avg$", lambda n, he: 0.5 * n),
    (r"(noises\.noise_\d+|input\.input)$", lambda n, he: n),
    (r"(to_rgb1|to_rgbs\.\d+)\.conv\.weight$", lambda n, he: 0.06 * n),
    (r"(^|\.)(conv|modulation|linear)\.weight$", lambda n, he: n),
    (r"res_layer\.3\.weight$", lambda n, he: 0.35 * he * n),
    (r"weight$", lambda n, he: he * n),
    (r"", lambda n, he: 0.1 * n),
)


def pseudo(name, shape):
    """The pseudo-weights of one tensor, float32."""
    n = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)))
    he = math.sqrt(2 / max(1, math.prod(shape[1:])))
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    return torch.from_numpy(np.asarray(rule(n, he), np.float32).reshape(shape))


def fill(module, prefix=""):
    """Pseudo-weights for all parameters and buffers, but for the FIR kernels, which are what they are."""
    weights = module.state_dict()
    for name, value in weights.items():
        if not name.endswith(".kernel"):
            weights[name] = pseudo(prefix + name, value.shape).to(value.dtype)
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def sine_images(seed, n, size):
    """Smooth pictures (n, 3, size, size) in [-0.95, 0.95]: sums of six plane waves."""
    rng, out = np.random.RandomState(seed), np.empty((n, 3, size, size))
    y, x = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size], indexing="ij")
    for picture in out:
        for c in range(3):
            ranges = (-4, 4), (-4, 4), (0, 2 * np.pi), (0.3, 1)
            waves = np.transpose([rng.uniform(a, b, 6) for a, b in ranges])    # (6, 4): fy, fx, phase, height
            wave = sum(h * np.sin(2 * np.pi * (u * y + v * x) + p) for u, v, p, h in waves)
            picture[c] = 0.95 * wave / np.abs(wave).max()
    return torch.from_numpy(out).float()


# {array: (standard deviation of the whole array, a few of its values)}
GOLDEN = {
    "stylegan2 w": (1.10372, [
        -0.1776084, 1.855284, -0.0883617, 1.84647, 1.788473, -0.3876039, 2.004113, 0.835098,
    ]),
    "stylegan2 area64": (0.196512, [
        0.5481334, 0.5792931, 0.5135445, 0.5390915, 0.4859944, 0.5591627, 0.5146837, 0.4879984,
        0.4949645, 0.7218946, 0.4997261, 0.5253922, 0.4647169, 0.6860791, 0.6681635, 0.5659652,
    ]),
    "stylegan2 corner32": (0.141306, [
        0.1337359, 0.136631, 0.1342759, 0.1497543, 0.136866, 0.1241587, 0.1506311, 0.151173,
        0.1030074, 0.1302229, 0.1562905, 0.1394118, 0.1513153, 0.1584813, 0.09087983, 0.153565,
    ]),
    "stylegan2 trunc07 area64": (0.187247, [
        0.199595, 0.1709584, 0.265743, 0.2560493, 0.1947301, -0.04120518, 0.2236168, 0.1963864,
        0.2048684, 0.107497, 0.2754541, 0.3132871, 0.208986, 0.1073402, 0.1850578, 0.281606,
    ]),
    "psp codes": (1.55465, [
        -0.3824228, -0.2540421, 1.707315, 1.215088, 0.5950233, 0.2383616, -0.7606128, -0.4646051,
        -0.2201818, 3.96139, 0.5903691, -0.9146195, 0.1817327, 0.8448049, 0.0007952303, -1.533573,
        4.640777, 0.6986252, -1.004299, -0.289595, 0.8522518, -1.209789, -0.1884095, 0.9438932,
    ]),
    "psp area64": (0.262236, [
        0.4556985, 0.5043501, 0.3401664, 0.3713768, 0.4253771, 0.4640138, 0.5778692, 0.3383394,
        0.3828922, 0.429614, 0.4910562, 0.458098, 0.3684657, 0.4661783, 0.3444645, 0.335456,
    ]),
    "psp corner32": (0.217395, [
        0.04094508, 0.07162106, 0.1095639, 0.1394211, 0.07519023, 0.1069873, 0.1529005, 0.1845088,
        0.09181728, 0.1683137, 0.1598687, 0.1975852, 0.1411752, 0.1577284, 0.1805379, 0.2112553,
    ]),
}


def golden_error(name, values):
    """max|ours - upstream's| / std(upstream's)."""
    std, golden = GOLDEN[name]
    return np.abs(values.cpu().numpy().ravel() - np.array(golden)).max() / std
