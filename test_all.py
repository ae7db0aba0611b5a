"""Tests of everything, on a CPU, with nothing downloaded:  python -m pytest -q test_all.py

Three kinds: answers known on paper, equality with the upstream networks on the same weights, and every script through its
real command line on real H.264, real faces for dlib and the real pipe. Two cores take less than ten minutes.
"""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch import nn

import embed
import evaluate
import models
import sample
import train
import transfer
from models import InputError
from pretrain import faces, image_model

ROOT = Path(__file__).resolve().parent


def run(script, *args, stdin=None, cwd=None, timeout=300):
    """A script through its command line -> CompletedProcess with bytes."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, args)], input=stdin, capture_output=True, cwd=cwd,
                          timeout=timeout)


def assert_refused(result, *words):
    """Exit status 2 and one sentence on stderr that has all the words; nothing on standard output, no traceback."""
    text = result.stderr.decode()
    assert result.returncode == 2, text
    assert "Traceback" not in text and result.stdout == b""
    last = text.strip().splitlines()[-1]
    for word in words:
        assert str(word) in last, last


# ------------------------------------------------------------------------------------------------------------------
# models.py
# ------------------------------------------------------------------------------------------------------------------

# Pseudo-weights: every tensor is drawn from numpy's frozen RandomState(crc32(name)) and scaled by a rule that its name picks.
# The upstream networks (pixel2style2pixel @ 5cfff385, stylegan2-pytorch @ bef283a1) were filled in the same way, and gave
# GOLDEN: {array: (standard deviation of the whole array, a few of its values)}.
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
    n = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)))
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    return torch.from_numpy(np.asarray(rule(n, math.sqrt(2 / max(1, math.prod(shape[1:])))), np.float32).reshape(shape))


def fill(module, prefix=""):
    """Pseudo-weights for all parameters and buffers, but for the FIR kernels, which are what they are."""
    module.load_state_dict({name: value if name.endswith(".kernel") else pseudo(prefix + name, value.shape).to(value.dtype)
                            for name, value in module.state_dict().items()})
    return module.eval().requires_grad_(False)


def sine_images(seed, n, size):
    """Smooth pictures (n, 3, size, size) in [-0.95, 0.95]: sums of six plane waves."""
    rng, out = np.random.RandomState(seed), np.empty((n, 3, size, size))
    y, x = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size], indexing="ij")
    for picture in out:
        for c in range(3):
            fy, fx, phase, height = (rng.uniform(a, b, 6) for a, b in ((-4, 4), (-4, 4), (0, 2 * np.pi), (0.3, 1)))
            wave = sum(h * np.sin(2 * np.pi * (u * y + v * x) + p) for u, v, p, h in zip(fy, fx, phase, height))
            picture[c] = 0.95 * wave / np.abs(wave).max()
    return torch.from_numpy(out).float()


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
    return np.abs(values.numpy().ravel() - np.array(golden)).max() / std


def area(images, side):
    """Block means: (B, 3, size, size) -> (B, 3, side, side)."""
    return nn.functional.avg_pool2d(images, images.shape[-1] // side)


def test_stylegan2_equals_upstream():
    model = models.ImageModel(fill(models.Generator(256)), None, pseudo("latent_avg", [512]))
    z = torch.from_numpy(np.random.RandomState(701).standard_normal((4, 512))).float()
    w = model.map(z)
    assert w.shape == (4, 14, 512)
    images = model.render(w[:2])
    assert golden_error("stylegan2 w", w[0, 0, ::64]) < 1e-4
    assert golden_error("stylegan2 area64", area(images, 64)[0, 1, 4::16, 4::16]) < 1e-4
    assert golden_error("stylegan2 corner32", images[1, 0, :4, :4]) < 1e-4
    truncated = model.render(model.map(z[:1], truncation=0.7))
    assert golden_error("stylegan2 trunc07 area64", area(truncated, 64)[0, 2, 4::16, 4::16]) < 1e-4
    # Half precision is the same picture to its rounding, and every resolution on the way is the RGB sum reached there
    half = model.render(w[:1], dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and (half - images[:1]).std() / images.std() < 0.02
    assert model.generator(w[:1], resolution=32).shape == (1, 3, 32, 32)


def test_psp_equals_upstream():
    encoder = fill(models.GradualStyleEncoder(), "encoder.")
    codes = encoder(sine_images(101, 2, 256)) + pseudo("latent_avg", [18, 512])
    assert codes.shape == (2, 18, 512)
    assert golden_error("psp codes", codes[1, ::3, ::128]) < 1e-4
    images = fill(models.Generator(1024), "decoder.")(codes)
    assert golden_error("psp area64", area(images, 64)[0, 1, 4::16, 4::16]) < 1e-4
    assert golden_error("psp corner32", images[1, 0, :4, :4]) < 1e-4


def small_checkpoint():
    """pSp-layout checkpoint of a 32 px model with pseudo-weights (8 x 16 codes)."""
    channels = {4: 8, 8: 8, 16: 6, 32: 4}
    generator = fill(models.Generator(32, 16, 10, 2, channels))
    encoder = fill(models.GradualStyleEncoder(8, 16, 32, (1, 1, 1, 1), (4, 8, 12, 16), 8))
    parts = {**{f"decoder.{n}": v for n, v in generator.state_dict().items()},
             **{f"encoder.{n}": v for n, v in encoder.state_dict().items()}}
    return generator, encoder, {"state_dict": parts, "latent_avg": torch.ones(8, 16), "opts": {"name": "small"}}


def test_load_image_model_reads_sizes_from_the_weights(tmp_path):
    generator, encoder, checkpoint = small_checkpoint()
    torch.save(checkpoint, tmp_path / "any.bin")
    model = models.load_image_model(tmp_path / "any.bin")
    assert (model.size, model.L, model.D, model.Z, model.name, model.has_actors) == (32, 8, 16, 10, "small", True)
    images, z = sine_images(1, 2, 32), torch.randn(2, 10)
    assert torch.equal(model.encode(images), encoder(images) + 1)
    assert torch.equal(model.render(model.map(z)), generator(generator.map(z)))
    # rosinality layout, noise maps absent, encoder from another file
    bare = {n: v for n, v in generator.state_dict().items() if not n.startswith("noises.")}
    torch.save({"g_ema": bare, "latent_avg": torch.zeros(16)}, tmp_path / "bare.pt")
    alone = models.load_image_model(tmp_path / "bare.pt")
    assert alone.encoder is None and torch.equal(alone.map(z), model.map(z))
    with pytest.raises(InputError, match="no encoder"):
        alone.encode(images)
    paired = models.load_image_model(tmp_path / "bare.pt", encoder=tmp_path / "any.bin")
    assert torch.equal(paired.encode(images), encoder(images))


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_load_image_model_refuses_without_running_anything(tmp_path):
    _, _, checkpoint = small_checkpoint()
    whole = io.BytesIO()
    torch.save(checkpoint, whole)
    hostile = tmp_path / "hostile.pt"
    torch.save({"g_ema": Bomb(tmp_path / "ran")}, hostile)
    (tmp_path / "cut.pt").write_bytes(whole.getvalue()[:20000])
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("hostile.pt", "cut.pt", "text.pt", "other.pt", "absent.pt"):
        with pytest.raises(InputError, match=name):
            models.load_image_model(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_embedded_image_model_is_small_and_documents_itself():
    path = ROOT / "assets" / "faces128.pt"
    assert path.stat().st_size <= 12e6
    checkpoint = torch.load(path, weights_only=True)
    assert "pretrain.image_model" in checkpoint["opts"]["command"] and checkpoint["opts"]["date"]
    assert checkpoint["state_dict"]["decoder.convs.0.conv.weight"].dtype == torch.float16
    model = models.load_image_model("faces128")
    assert (model.size, model.L, model.D, model.name) == (128, 12, 128, "faces128")


def test_motion_generator_follows_tables_4_to_6():
    torch.manual_seed(0)
    G = models.MotionGenerator(5, 24, width=16).eval()
    i, s = torch.randn(3, 32), torch.randn(3, 6, 32)
    h = G.hidden(i)
    assert h.shape == (4, 3, 32) and torch.equal(h[3], i)                       # the fourth cell starts as i
    l = G.motion(i, s)
    assert l.shape == (3, 7, 32) and torch.equal(l[:, 0], i)                    # l_0 = i
    # P is four stacked GRU cells, the fourth's memory is the output
    cells = []
    for k in range(4):
        cell = nn.GRUCell(32, 32)
        cell.load_state_dict({n: getattr(G.produce, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")})
        cells.append(cell)
    memory, x = list(h), None
    for t in range(6):
        x = s[:, t]
        for k, cell in enumerate(cells):
            memory[k] = x = cell(x, memory[k])
        assert torch.allclose(l[:, t + 1], x, atol=1e-6)
    # rows: independent linear + LeakyReLU + BatchNorm per style row
    w = G.translate(l)
    assert w.shape == (3, 7, 5, 24) and torch.equal(w, G(i, s))
    v = G.translate_in(l.reshape(-1, 32))
    by_hand = nn.functional.leaky_relu(v @ G.rows[2] + G.rows_bias[2], 0.2).reshape(3, 7, 24) / math.sqrt(1 + 1e-5)
    assert torch.allclose(w[:, :, 2], by_hand, atol=1e-5)
    # rolling in pieces is rolling at once
    first, h1 = G.roll(s[:, :4], h)
    second, _ = G.roll(s[:, 4:], h1)
    assert torch.allclose(torch.cat([first, second], 1), l[:, 1:], atol=1e-6)
    # the official size: 18 parallel layers of 512
    assert models.MotionGenerator(18, 512).rows.shape == (18, 512, 512)


def test_motion_generator_starts_at_the_scale_of_the_data():
    torch.manual_seed(0)
    G = models.MotionGenerator(4, 8).train()
    mean, std = torch.randn(4, 8), torch.rand(4, 8) + 0.1
    G.init_output(mean, std)
    w = G(torch.randn(64, 32), torch.randn(64, 9, 32)).flatten(0, 1)
    assert torch.allclose(w.mean(0), mean, atol=1e-3) and torch.allclose(w.std(0, unbiased=False), std, rtol=2e-2)


@pytest.mark.parametrize("T", (2, 25, 75))
def test_critic_follows_table_7_for_any_window(T):
    C = models.MotionCritic(4, 8, T, width=16)
    w = torch.randn(3, T, 4, 8)
    assert C(w).shape == (3,)
    linear = [m for m in C.extract if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [16] * 5 + [32] and linear[0].in_features == 32
    # scaling: a critic for codes a + b x sees x
    C.set_scale(torch.full((4, 8), 3.0), torch.full((4, 8), 2.0))
    scaled = C(3 + 2 * w)
    C.set_scale(torch.zeros(4, 8), torch.ones(4, 8))
    assert torch.allclose(scaled, C(w), atol=1e-5)


def test_gradient_penalty_of_a_linear_critic():
    class Linear(nn.Module):
        std = torch.full((2, 3), 0.5)

        def forward(self, w):                                                   # gradient: 2 for each of T L D entries
            return 2 * w.flatten(1).sum(1)

    penalty = models.gradient_penalty(Linear(), torch.randn(7, 4, 2, 3), torch.randn(7, 4, 2, 3))
    assert penalty.item() == pytest.approx((math.sqrt(4 * 2 * 3) * 2 * 0.5 - 1) ** 2, rel=1e-5)


def test_gradient_angle_penalty_by_hand():
    # l_{t-1} - l_0 = a s_0 + b i in the first component only: phi = arctan(a / b)
    norm = models.RunningNorm(32)
    for a, b, wanted in ((1.0, 1.0, 0.0), (1.0, 3.0, (math.pi / 4 - math.atan(1 / 3)) ** 2), (3.0, 1.0, 0.0)):
        i, s = torch.randn(5, 32, requires_grad=True), torch.randn(5, 2, 32, requires_grad=True)
        pick = torch.zeros(32)
        pick[0] = 1
        end = (a * s[:, 0] + (b + 1) * i) * pick + i * (1 - pick)
        l = torch.stack([i, i, end], 1)
        loss, phi = models.gradient_angle_penalty(l, i, s, norm)
        assert torch.allclose(phi, torch.full((5,), math.atan(a / b)), atol=1e-5)
        assert loss.item() == pytest.approx(wanted, abs=1e-6)


def test_gradient_angle_penalty_reaches_the_recurrence_only():
    torch.manual_seed(0)
    G, norm = models.MotionGenerator(3, 8), models.RunningNorm(32)
    i, s = torch.randn(8, 32, requires_grad=True), torch.randn(8, 5, 32, requires_grad=True)
    l = G.motion(i, s)
    norm.update((l[:, -1] - l[:, 0]).detach())
    loss, phi = models.gradient_angle_penalty(l, i, s, norm)
    assert (phi < math.pi / 4).any() and loss > 0
    loss.backward()
    reached = {name for name, p in G.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in reached} == {"hallucinate", "produce"}


def test_running_norm_tracks_mean_and_variance():
    norm = models.RunningNorm(2, momentum=0.5)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    norm.update(x)
    assert torch.allclose(norm.mean, torch.tensor([2.0, 20.0])) and torch.allclose(norm.var, torch.tensor([2.0, 200.0]))
    norm.update(x + 2)
    assert torch.allclose(norm.mean, torch.tensor([3.0, 21.0]))
    assert torch.allclose(norm(torch.tensor([[3.0, 21.0]])), torch.zeros(1, 2))


def test_offset_trick_keeps_the_state_and_changes_the_actor():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5 * 24, 32))[0].T.reshape(32, 5, 24)
    mean, w_new = torch.randn(5, 24), torch.randn(3, 5, 24)
    delta = models.transfer_offset(w_new, mean, basis)
    inside = torch.einsum("bld,nld->bn", delta, basis)
    assert inside.abs().max() < 1e-5                                            # no motion in the offset
    anchor = w_new - delta                                                      # w'_new lies in mean + span(basis)
    assert torch.allclose(models.transfer_offset(anchor, mean, basis), torch.zeros(3, 5, 24), atol=1e-5)
    assert torch.allclose(models.transfer_offset(mean, mean, basis), torch.zeros(5, 24), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------
# What several tests need: a short drawn clip as real H.264, its codes, codes without an image model, a trained model
# ------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """3 s of a drawn head talking, 256 px, 25 fps."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with transfer.VideoWriter(path, 25) as video:
        for frame in faces.clip(3, 25, seed=8, size=256, voice=1):
            video.write(frame)
    return path


@pytest.fixture(scope="session")
def embedded(clip):
    """The clip after embed.py: path of latents.npy, and what the command printed."""
    result = run("embed.py", clip, "-o", clip.with_name("latents.npy"))
    assert result.returncode == 0, result.stderr.decode()
    return clip.with_name("latents.npy"), result.stderr.decode()


@pytest.fixture(scope="session")
def codes(tmp_path_factory):
    """90 frames of smooth random codes (4 x 16), in two clips of 50 and 40 frames."""
    path, rng = tmp_path_factory.mktemp("codes") / "codes.npy", np.random.RandomState(0)
    x = np.cumsum(rng.standard_normal((90, 40)), 0) @ rng.standard_normal((40, 64))
    np.save(path, x.reshape(90, 4, 16).astype(np.float32))
    path.with_suffix(".json").write_text(json.dumps({
        "model": {"name": "small", "sha256": "0" * 64}, "fps": 25.0,
        "frames": [{"index": k, "clip": int(k >= 50), "quad": [[0, 0]] * 4} for k in range(90)]}))
    return path


def write_video(path, frames, fps=25):
    with transfer.VideoWriter(path, fps) as video:
        for frame in frames:
            video.write(frame)
    return path


def decoded(path):
    """Frames of a video, (T, H, W, 3) uint8, decoded by PyAV."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def left_over(folder):
    return [p.name for p in Path(folder).iterdir() if p.name.endswith(".part")]


# ------------------------------------------------------------------------------------------------------------------
# pretrain/faces.py
# ------------------------------------------------------------------------------------------------------------------

def test_drawn_faces_are_smooth_in_their_parameters():
    p = faces.params(np.random.RandomState(1).standard_normal(faces.Z))
    picture = faces.draw(p, 64).astype(int)
    assert np.array_equal(picture, faces.draw(p, 64))
    for k in range(faces.Z):
        moved = p.copy()
        moved[k] += 0.02
        change = np.abs(faces.draw(moved, 64) - picture)
        assert change.mean() < 1.5, faces.NAMES[k]                              # a little, and no jump of the whole picture


def test_dlib_finds_drawn_faces_and_reads_their_motion():
    rng = np.random.RandomState(2)
    pictures = [faces.draw(faces.params(rng.standard_normal(faces.Z)), 256) for _ in range(25)]
    assert sum(len(embed.detect(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), 256)) > 0 for p in pictures) >= 24
    p, values, jaw, yaw = faces.actor(8), [], np.linspace(-0.9, 0.7, 12), np.tile([-0.5, 0.0, 0.5], 4)
    for j, y in zip(jaw, yaw):
        p[faces.NAMES.index("jaw")], p[faces.NAMES.index("yaw")] = j, y
        measures = embed.face_measures(embed.landmarks(faces.draw(p, 256)))
        values.append((measures["mouth_opening"], measures["yaw"]))
    mouth, turned = np.array(values).T
    assert np.corrcoef(mouth, jaw)[0, 1] > 0.9 and np.corrcoef(turned, yaw)[0, 1] > 0.9


def test_talking_moves_everything_within_range():
    motion, place = faces.talk(1000, 25, seed=3)
    assert motion.shape == (1000, len(faces.MOTION)) and np.abs(motion).max() <= 1
    moving = {name for name, x in zip(faces.MOTION, motion.T) if x.std() > 0.1}
    assert moving == set(faces.MOTION) - {"wink"}
    speed = np.abs(np.diff(motion[:, faces.MOTION.index("yaw")])).max()
    assert speed < 0.25                                                         # the head turns, it does not jump
    blink = motion[:, faces.MOTION.index("blink")]
    assert 8 <= ((blink[1:] > 0.5) & (blink[:-1] <= 0.5)).sum() <= 20           # in 40 s, every 2 to 5 s
    again, _ = faces.talk(1000, 25, seed=3)
    assert np.array_equal(motion, again)


# ------------------------------------------------------------------------------------------------------------------
# pretrain/image_model.py
# ------------------------------------------------------------------------------------------------------------------

TINY = ("--size", 32, "--steps", 6, "--batch", 4, "--every", 3, "--workers", 0)


def test_image_model_of_drawn_faces(tmp_path):
    result = run("pretrain/image_model.py", "faces", "-o", tmp_path / "tiny.pt", "--pool", 12, *TINY)
    assert result.returncode == 0, result.stderr.decode()
    model = models.load_image_model(tmp_path / "tiny.pt")
    assert (model.size, model.L, model.Z, model.has_actors) == (32, 8, faces.Z, True)
    sheet = cv2.imread(str(tmp_path / "tiny.png"))
    assert sheet.shape == (3 * 32, image_model.SHEET * 32, 3)                   # targets, G(M(z)), G(E(x))
    assert not left_over(tmp_path)


def test_image_model_resumes_exactly(tmp_path, monkeypatch):
    def arguments(folder, resume):
        folder.mkdir(exist_ok=True)
        return image_model.argparse.Namespace(
            source=["faces"], output=str(folder / "m.pt"), align="face", size=32, steps=6, batch=4, pool=12, precision="fp32",
            workers=0, every=10, resume=resume, seed=0, device="cpu", argv=[])

    image_model.main(arguments(tmp_path / "whole", False))
    loss, calls = image_model.picture_loss, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)                                  # Ctrl-C in the middle of a step
        return loss(*args)

    monkeypatch.setattr(image_model, "picture_loss", interrupted)
    with pytest.raises(KeyboardInterrupt, match="step 4 of 6"):
        image_model.main(arguments(tmp_path / "parts", False))
    monkeypatch.setattr(image_model, "picture_loss", loss)
    image_model.main(arguments(tmp_path / "parts", True))
    a, b = (torch.load(tmp_path / name / "m.state.pt", weights_only=True) for name in ("whole", "parts"))
    assert a["step"] == b["step"] == 6
    assert all(torch.equal(a["net"][name], b["net"][name]) for name in a["net"])


def test_image_model_of_own_footage_has_one_actor(tmp_path, clip):
    result = run("pretrain/image_model.py", clip, "-o", tmp_path / "own.pt", *TINY)
    assert result.returncode == 0, result.stderr.decode()
    model = models.load_image_model(tmp_path / "own.pt")
    assert not model.has_actors and model.L == 8
    assert_refused(run("pretrain/image_model.py", tmp_path / "absent.mp4", "-o", tmp_path / "x.pt", *TINY), "absent.mp4")


def test_jitter_moves_pictures_a_little():
    x = sine_images(3, 8, 64)
    moved = image_model.jitter(x, torch.Generator().manual_seed(0))
    assert 0 < (moved - x).abs().mean() < 0.3 and moved.shape == x.shape


# ------------------------------------------------------------------------------------------------------------------
# embed.py
# ------------------------------------------------------------------------------------------------------------------

def test_embed_crops_where_the_eyes_are(embedded):
    path, printed = embedded
    codes, meta = np.load(path), json.loads(path.with_suffix(".json").read_text())
    assert codes.shape == (75, 12, 128) and codes.dtype == np.float32
    assert meta["fps"] == 25 and meta["model"]["name"] == "faces128" and len(meta["frames"]) == 75
    assert [f["index"] for f in meta["frames"]] == list(range(75)) and {f["clip"] for f in meta["frames"]} == {0}
    motion, place = faces.talk(75, 25, 1)
    p, errors, sides = faces.actor(8), [], []
    for k, frame in enumerate(meta["frames"]):
        p[len(faces.IDENTITY):len(faces.IDENTITY) + len(faces.MOTION)] = motion[k]
        corners = faces.eye_corners(p, 256, **{n: float(v[k]) for n, v in place.items()})
        left, right = corners[:2].mean(0), corners[2:].mean(0)
        quad = np.array(frame["quad"])
        side = np.linalg.norm(quad[3] - quad[0])
        e = np.linalg.norm(right - left)
        wanted = (left + right) / 2 + 0.11 * e * np.array([0, 1])
        errors.append(np.linalg.norm(quad.mean(0) - wanted) / side)
        sides.append(side / (4 * 0.13 * 256 * place["head_scale"][k]))
    assert np.mean(errors) < 0.02 and np.max(errors) < 0.05, (np.mean(errors), np.max(errors))
    assert abs(np.mean(sides) - 1) < 0.1 and np.std(sides) < 0.03               # zoom steady through the turns
    assert "--model ffhq" in printed and str(path) in printed
    assert cv2.imread(str(path.with_suffix(".png"))) is not None
    assert not left_over(path.parent)


def test_embed_reconstructs_the_demo_face(embedded):
    meta = json.loads(embedded[0].with_suffix(".json").read_text())
    assert meta["psnr"] > 20                                                    # README has the figure of the whole demo


def test_embed_splits_at_cuts_and_long_gaps(tmp_path):
    one, two = faces.clip(1, 25, 8, 192), faces.clip(1, 25, 6, 192)
    frames = [*one, *two]
    frames[35:47] = [np.full((192, 192, 3), 90, np.uint8)] * 12                 # half a second without a face
    write_video(tmp_path / "cut.mp4", frames)
    result = run("embed.py", tmp_path / "cut.mp4", "-o", tmp_path / "c.npy", "--preview", "none")
    assert result.returncode == 0, result.stderr.decode()
    rows = json.loads((tmp_path / "c.json").read_text())["frames"]
    clips = {k: [r["index"] for r in rows if r["clip"] == k] for k in {r["clip"] for r in rows}}
    assert clips[0] == list(range(25)) and clips[1] == list(range(25, 35)) and clips[2] == list(range(47, 50))
    assert len(np.load(tmp_path / "c.npy")) == len(rows) == 38 and not (tmp_path / "c.png").exists()


def test_embed_takes_pictures_and_footage_without_faces(tmp_path):
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "pictures" / f"{k}.png"), np.full((64, 96, 3), 40 * k, np.uint8))
    result = run("embed.py", tmp_path / "pictures", "-o", tmp_path / "p.npy", "--align", "none", "--fps", 10)
    assert result.returncode == 0, result.stderr.decode()
    meta = json.loads((tmp_path / "p.json").read_text())
    assert np.load(tmp_path / "p.npy").shape == (3, 12, 128) and meta["fps"] == 10
    quad = np.array(meta["frames"][0]["quad"])
    assert np.ptp(quad[:, 0]) == np.ptp(quad[:, 1]) == 64 and quad[:, 0].mean() == pytest.approx(47.5, abs=0.51)
    assert_refused(run("embed.py", tmp_path / "pictures", "-o", tmp_path / "q.npy"), "pictures", "no face", "--align none")
    assert not (tmp_path / "q.npy").exists() and not left_over(tmp_path)


def test_embed_refuses_what_it_cannot_read(tmp_path, clip):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for name in ("sound.mp4", "text.mp4", "empty", "absent.mp4"):
        assert_refused(run("embed.py", tmp_path / name, "-o", tmp_path / "x.npy"), name)
    assert_refused(run("embed.py", clip, "-o", tmp_path / "nowhere" / "x.npy"), "nowhere")
    assert_refused(run("embed.py", clip, "-o", tmp_path / "x.npy", "--model", tmp_path / "text.mp4"), "text.mp4")
    assert not list(tmp_path.glob("x.*")) and not left_over(tmp_path)


def test_warp_is_a_similarity_and_antialiased():
    y, x = np.mgrid[:200, :300]
    ramp = np.stack([x % 256, y, 0 * x], -1).astype(np.uint8)
    quad = np.array([[20, 30], [20, 130], [120, 130], [120, 30]], float) - 0.5  # 100 px, on pixel edges
    cut = embed.warp(ramp, quad, 50)
    assert np.abs(cut[10, :, 0] - (20.5 + 2 * np.arange(50))).max() <= 1
    checker = ((x + y) % 2 * 255).astype(np.uint8)
    assert np.abs(embed.warp(checker, quad, 25)[2:-2, 2:-2].astype(int) - 127).max() <= 3


# ------------------------------------------------------------------------------------------------------------------
# train.py
# ------------------------------------------------------------------------------------------------------------------

SMALL = ("--window", 6, "--batch", 8, "--threads", 1)


def test_windows_stay_inside_their_clip():
    starts = train.window_starts([(0, 10), (10, 14), (14, 30)], 6)
    assert starts.tolist() == [*range(0, 5), *range(14, 25)]


def test_frechet_distance_of_known_gaussians():
    rng, n, d = np.random.RandomState(0), 400, 5
    x = rng.standard_normal((n, d))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T                    # exactly zero mean, unit covariance
    m = np.arange(d)
    # commuting covariances: |m|^2 + sum (a - b)^2 over the standard deviations
    a, b = np.linspace(1, 3, d), np.linspace(2, 0.5, d)
    assert train.frechet(x * a, x * b + m) == pytest.approx((m ** 2).sum() + ((a - b) ** 2).sum(), rel=1e-9)
    # non-commuting: the root of S1 S2 through scipy-free eigenvalues of the unsymmetric product
    A, B = rng.standard_normal((2, d, d))
    S1, S2 = A @ A.T, B @ B.T
    wanted = np.trace(S1 + S2) - 2 * np.sqrt(np.linalg.eigvals(S1 @ S2).real).sum()
    assert train.frechet(x @ A.T, x @ B.T) == pytest.approx(wanted, rel=1e-9)


def test_fast_critic_loss_equals_the_plain_one():
    torch.manual_seed(0)
    C = models.MotionCritic(4, 16, 6, width=12)
    C.set_scale(torch.randn(4, 16), torch.rand(4, 16) + 0.2)
    real, fake = torch.randn(2, 8, 6, 4, 16)
    rng = torch.Generator().manual_seed(5)
    plain = models.gradient_penalty(C, real, fake, rng)
    u = torch.rand(8, 1, 1, 1, generator=torch.Generator().manual_seed(5))[..., 0]
    wasserstein, penalty = train.critic_loss(C, train.first_layer(C, real), train.first_layer(C, fake), u)
    assert torch.allclose(penalty, plain, rtol=1e-4)
    assert torch.allclose(wasserstein, C(fake).mean() - C(real).mean(), atol=1e-5)
    fast = torch.autograd.grad(wasserstein + 50 * penalty, list(C.parameters()))
    slow = torch.autograd.grad(C(fake).mean() - C(real).mean() + 50 * plain, list(C.parameters()))
    for f, s in zip(fast, slow):
        assert torch.allclose(f, s, rtol=1e-3, atol=1e-4)


def test_reestimated_batchnorm_fits_the_weights():
    torch.manual_seed(0)
    G = models.MotionGenerator(3, 8)
    with torch.no_grad():
        for p in G.parameters():
            p.mul_(1.5)                                                         # weights that the statistics have not seen
    train.reestimate_batchnorm(G, 10, 64, torch.Generator().manual_seed(1))
    i, s = torch.randn(256, 32), torch.randn(256, 9, 32)
    with torch.no_grad():
        w = G(i, s).flatten(0, 1)
    bias, weight = G.rows_norm.bias.reshape(3, 8), G.rows_norm.weight.reshape(3, 8)
    assert not G.training
    assert torch.allclose(w.mean(0), bias, atol=0.15) and torch.allclose(w.std(0), weight, rtol=0.15, atol=0.05)


def test_train_writes_a_whole_motion_model(codes, tmp_path):
    result = run("train.py", codes, "-o", tmp_path / "m.pt", "--steps", 3, "--report-every", 2, *SMALL)
    assert result.returncode == 0, result.stderr.decode()
    motion = torch.load(tmp_path / "m.pt", weights_only=True)
    assert motion["sizes"] == {"L": 4, "D": 16, "noise": 32, "width": 16} and motion["fps"] == 25.0
    assert motion["model"] == {"name": "small", "sha256": "0" * 64} and motion["step"] == 3 and motion["window"] == 6
    x = np.load(codes)
    basis, mean = motion["pca"]["basis"].flatten(1).double(), motion["pca"]["mean"]
    assert torch.allclose(mean, torch.from_numpy(x.mean(0)), atol=1e-4)
    assert torch.allclose(basis @ basis.T, torch.eye(32, dtype=torch.float64), atol=1e-4)
    centred = torch.from_numpy(x - x.mean(0)).flatten(1).double()
    values = torch.linalg.svdvals(centred)[:32] / math.sqrt(len(x) - 1)
    assert torch.allclose(motion["pca"]["std"].double(), values, rtol=1e-3, atol=1e-3 * float(values[0]))
    rows = (tmp_path / "m.csv").read_text().splitlines()
    assert rows[0].startswith("step,") and [r.split(",")[0] for r in rows[1:]] == ["2", "3"]
    assert cv2.imread(str(tmp_path / "m.png")) is not None and not left_over(tmp_path)


def test_resumed_training_equals_the_uninterrupted_one(codes, tmp_path):
    for name, legs in (("whole", (4,)), ("parts", (2, 4))):
        for k, steps in enumerate(legs):
            result = run("train.py", codes, "-o", tmp_path / f"{name}.pt", "--steps", steps, "--report-every", 2, *SMALL,
                         *(["--resume"] if k else []))
            assert result.returncode == 0, result.stderr.decode()
    a, b = (torch.load(tmp_path / f"{name}.state.pt", weights_only=True) for name in ("whole", "parts"))

    def equal(x, y):
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    for part in ("G", "C", "ema", "norm", "optimiser_G", "optimiser_C", "rng", "step"):
        assert equal(a[part], b[part]), part
    moved = models.MotionGenerator(4, 16).state_dict()
    assert a["step"] == 4 and any(not torch.equal(a["G"][n], moved[n]) for n in moved)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_interrupted_training_is_saved(codes, tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "train.py", codes, "-o", tmp_path / "m.pt", "--steps", "1000000",
                                "--report-every", "1", "--save-every", "1000000", *map(str, SMALL)], stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not (tmp_path / "m.csv").exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130 and "--resume" in text and "Traceback" not in text
    assert torch.load(tmp_path / "m.state.pt", weights_only=True)["step"] >= 1


def test_train_refuses_bad_codes(codes, tmp_path):
    whole = codes.read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:len(whole) // 2])
    np.save(tmp_path / "flat.npy", np.zeros((90, 64), np.float32))
    x = np.load(codes)
    x[7, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.save(tmp_path / "short.npy", np.load(codes)[:20])
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, word in (("cut.npy", "cut short"), ("flat.npy", "(90, 64)"), ("nan.npy", "frame 7"), ("short.npy", "20 frames"),
                       ("object.npy", "object.npy"), ("absent.npy", "does not exist")):
        assert_refused(run("train.py", tmp_path / name, "-o", tmp_path / "m.pt", "--steps", 1), name, word)
    assert_refused(run("train.py", codes, "-o", tmp_path / "no" / "m.pt", "--steps", 1), "m.pt")
    assert_refused(run("train.py", codes, "-o", tmp_path / "m.pt", "--steps", 1, "--window", 60), "50 frames", "60")
    assert_refused(run("train.py", codes, "-o", tmp_path / "m.pt", "--resume"), "m.state.pt", "nothing to resume")
    assert not list(tmp_path.glob("m*")) and not left_over(tmp_path)


# ------------------------------------------------------------------------------------------------------------------
# sample.py
# ------------------------------------------------------------------------------------------------------------------

def test_sample_writes_the_same_npy_to_file_and_pipe(tmp_path):
    piped = run("sample.py", "--t", 70, "--seed", 5)
    assert piped.returncode == 0 and b"assets" in piped.stderr
    w = np.load(io.BytesIO(piped.stdout))
    assert w.shape == (70, 12, 128) and w.dtype == np.float32 and w.std(0).max() > 0
    assert run("sample.py", "--t", 70, "--seed", 5, "-o", tmp_path / "w.npy").returncode == 0
    assert (tmp_path / "w.npy").read_bytes() == piped.stdout
    # a shorter sample is the beginning of a longer one; trajectory k of --n is seed + k alone
    both = np.load(io.BytesIO(run("sample.py", "--t", 40, "--seed", 4, "--n", 2).stdout))
    assert both.shape == (2, 40, 12, 128) and np.array_equal(both[1], w[:40]) and not np.array_equal(both[0], both[1])


def test_sample_is_the_generator_run_at_once():
    G, meta = sample.load_motion(ROOT / "assets" / "motion.pt")
    noise = torch.Generator().manual_seed(9)
    i, s = torch.randn(1, 32, generator=noise), torch.randn(1, 64, 32, generator=noise)
    at_once = G(i, s)[0].numpy()                                                # (65, L, D): l_0 and two chunks of 32
    in_chunks = np.concatenate(list(sample.sample(G, 65, 9)))
    assert np.abs(at_once - in_chunks).max() < 1e-4


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals, other signals")
def test_sample_ends_quietly_when_the_reader_stops_and_refuses_terminals(tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "sample.py", "--t", "100000"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.read(100000)
    process.stdout.close()
    text = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0 and "Traceback" not in text and "Broken" not in text
    import pty
    master, slave = pty.openpty()
    refused = subprocess.run([sys.executable, ROOT / "sample.py"], stdout=slave, stderr=subprocess.PIPE, timeout=60)
    os.close(slave)
    os.close(master)
    assert refused.returncode == 2 and b"terminal" in refused.stderr


def test_sample_refuses_bad_motion_models(tmp_path):
    whole = (ROOT / "assets" / "motion.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:5000])
    for name in ("cut.pt", "absent.pt"):
        assert_refused(run("sample.py", "--motion", tmp_path / name, "-o", tmp_path / "w.npy"), name)
    assert_refused(run("sample.py", "-o", tmp_path / "no" / "w.npy"), "w.npy")
    assert_refused(run("sample.py", "--t", 0, "-o", tmp_path / "w.npy"), "--t 0")
    assert not (tmp_path / "w.npy").exists() and not left_over(tmp_path)


# ------------------------------------------------------------------------------------------------------------------
# transfer.py
# ------------------------------------------------------------------------------------------------------------------

def test_the_pipe_of_the_readme_makes_a_video(tmp_path):
    first = subprocess.Popen([sys.executable, ROOT / "sample.py", "--t", "40"], stdout=subprocess.PIPE, cwd=tmp_path,
                             stderr=subprocess.PIPE)
    second = subprocess.run([sys.executable, ROOT / "transfer.py", "--seed", "7"], stdin=first.stdout, capture_output=True,
                            cwd=tmp_path, timeout=300)
    first.stdout.close()
    assert first.wait() == 0 and second.returncode == 0, second.stderr.decode()
    path = tmp_path / "video.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames) == ("h264", "yuv420p", 40)
        assert stream.average_rate == 25
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")                          # plays before it is loaded
    frames = decoded(path)
    assert frames.shape == (40, 128, 128, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5              # it moves
    assert all(embed.landmarks(frames[k]) is not None for k in (0, 20, 39))     # and is a face


def test_transfer_renders_what_the_codes_say(tmp_path, embedded):
    path = embedded[0]
    assert run("transfer.py", path, "--actor", "none", "-o", tmp_path / "own.mp4").returncode == 0
    model = models.load_image_model("faces128")
    wanted = transfer.render(model, torch.from_numpy(np.load(path)[:5]), 5)
    error = decoded(tmp_path / "own.mp4")[:5].astype(float) - wanted
    assert 10 * np.log10(255 ** 2 / (error ** 2).mean()) > 32                   # yuv420p and crf 17 lie between
    # actors side by side, the training actor first
    grid = run("transfer.py", path, "--actor", "none", "--seed", "1-3", "-o", tmp_path / "grid.mp4")
    assert grid.returncode == 0, grid.stderr.decode()
    frames = decoded(tmp_path / "grid.mp4")
    assert frames.shape == (75, 256, 256, 3)
    assert np.abs(frames[:5, :128, :128].astype(float) - wanted).mean() < 4
    cells = [frames[0, y:y + 128, x:x + 128].astype(float) for y in (0, 128) for x in (0, 128)]
    assert min(np.abs(a - b).mean() for k, a in enumerate(cells) for b in cells[:k]) > 5        # four people


def test_offset_and_naive_shift():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 32))[0].T.reshape(32, 3, 16)
    pca, w_new, w_0 = {"mean": torch.randn(3, 16), "basis": basis}, torch.randn(3, 16), torch.randn(3, 16)
    assert torch.equal(transfer.offset(w_new, pca, w_0), models.transfer_offset(w_new, pca["mean"], basis))
    assert torch.allclose(w_0 + transfer.offset(w_new, pca, w_0, naive=True), w_new, atol=1e-6)


def test_transfer_takes_the_actor_of_a_photo(tmp_path, embedded):
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), faces.draw_scene(faces.actor(6), 400)[..., ::-1])
    w = tmp_path / "w.npy"
    np.save(w, np.load(embedded[0])[:3])
    result = run("transfer.py", w, "--actor", photo, "-o", tmp_path / "photo.mp4")
    assert result.returncode == 0, result.stderr.decode()
    assert len(decoded(tmp_path / "photo.mp4")) == 3
    plain = tmp_path / "plain.png"
    cv2.imwrite(str(plain), np.full((200, 200, 3), 128, np.uint8))
    assert_refused(run("transfer.py", w, "--actor", plain, "-o", tmp_path / "x.mp4"), "plain.png", "no face")
    assert not (tmp_path / "x.mp4").exists()


def test_transfer_refuses_bad_trajectories(tmp_path, embedded):
    whole = embedded[0].read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:len(whole) // 2])
    np.save(tmp_path / "sizes.npy", np.zeros((5, 18, 512), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((5, 12, 128), np.int64))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, word in (("cut.npy", "cut short"), ("sizes.npy", "18 x 512"), ("whole.npy", "int64"), ("text.npy", "not a .npy"),
                       ("empty.npy", "empty"), ("absent.npy", "cannot be read")):
        assert_refused(run("transfer.py", tmp_path / name, "-o", tmp_path / "x.mp4"), name, word)
    assert_refused(run("transfer.py", "-o", tmp_path / "x.mp4", stdin=whole[:5000]), "standard input", "cut short")
    assert_refused(run("transfer.py", embedded[0], "-o", tmp_path / "no" / "x.mp4"), "x.mp4")
    assert_refused(run("transfer.py", embedded[0], "-o", tmp_path / "x.gif"), "x.gif", ".mp4")
    assert not list(tmp_path.glob("x*")) and not left_over(tmp_path)


def test_videos_keep_their_colours_and_odd_sizes(tmp_path):
    y, x = np.mgrid[:63, :97]
    frame = np.stack([x * 2.5, y * 4, 255 - x * 2.5], -1).clip(0, 255).astype(np.uint8)
    write_video(tmp_path / "c.mp4", [frame] * 5, Fraction(30000, 1001))
    back = decoded(tmp_path / "c.mp4")
    assert back.shape == (5, 64, 98, 3)
    assert np.abs(back[2, :63, :97].astype(int) - frame).mean() < 3
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    with pytest.raises(RuntimeError):
        with transfer.VideoWriter(tmp_path / "broken.mp4", 25) as video:
            video.write(frame)
            raise RuntimeError
    assert not (tmp_path / "broken.mp4").exists() and not left_over(tmp_path)


# ------------------------------------------------------------------------------------------------------------------
# evaluate.py
# ------------------------------------------------------------------------------------------------------------------

def test_loop_score_knows_loops():
    rng, t = np.random.RandomState(0), np.arange(1500)
    loop = np.stack([f(2 * np.pi * k * t / 125) for k in (1, 2, 3) for f in (np.sin, np.cos)], 1)
    score, lag = evaluate.loop_score(loop)
    assert score < 0.01 and lag % 125 == 0
    score, lag = evaluate.loop_score(loop + 0.2 * rng.standard_normal(loop.shape))
    assert score < evaluate.LOOPS and lag % 125 == 0
    wander = np.zeros((1500, 6))
    for k in range(1, 1500):                                                    # smooth, forgets in half a second
        wander[k] = 0.92 * wander[k - 1] + rng.standard_normal(6)
    assert evaluate.loop_score(wander)[0] > 0.8


def test_average_content_distance_and_correlation_by_hand():
    assert evaluate.acd(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx((5 + 0 + 5) / 3)
    assert math.isnan(evaluate.acd(np.zeros((1, 2))))
    a = np.random.RandomState(0).standard_normal((50, 3))
    b = np.stack([2 * a[:, 0] + 1, -a[:, 1], a[:, 2]], 1)
    b[3, 2] = np.nan                                                            # no face in frame 3
    assert evaluate.correlation(a, b) == pytest.approx([1, -1, 1])


def test_evaluate_prints_a_table_and_writes_json(tmp_path, embedded):
    result = run("evaluate.py", embedded[0], ROOT / "assets" / "motion.pt", "--actors", 2, "--frames", 20, "--json",
                 tmp_path / "r.json")
    assert result.returncode == 0, result.stderr.decode()
    text, read = result.stdout.decode(), json.loads((tmp_path / "r.json").read_text())
    for words in ("Fréchet distance", "frozen frames", "Loops", "offset trick", "naive shift", "Reconstruction"):
        assert words in text
    codes = read["codes"]
    assert codes["floor"] < codes["frozen"] and codes["short_percent"] == pytest.approx(100 * codes["short"] / codes["frozen"])
    assert len(read["loops"]["scores"]) == evaluate.LOOP_SAMPLES and read["reconstruction"]["frames"] == 75
    assert len(read["transfer"]["actors"]["naive"]) == 2 and read["settings"]["seed"] == 0
    # naive: the trajectory starts at the new actor; both are measured against the training actor
    assert 0 < read["transfer"]["between_actors"] < 2
    assert_refused(run("evaluate.py", embedded[0], tmp_path / "absent.pt"), "absent.pt")
    np.save(tmp_path / "other.npy", np.zeros((40, 4, 16), np.float32))
    assert_refused(run("evaluate.py", tmp_path / "other.npy", ROOT / "assets" / "motion.pt"), "other.npy", "4 x 16")
    assert not left_over(tmp_path)


# ------------------------------------------------------------------------------------------------------------------
# The repository
# ------------------------------------------------------------------------------------------------------------------

def test_the_embedded_demo_is_h264_that_dlib_reads():
    with av.open(str(ROOT / "assets" / "demo.mp4")) as container:
        stream = container.streams.video[0]
        seconds = float(stream.frames / stream.average_rate)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25 and 20 <= seconds <= 60 and stream.height == stream.width == 512
        for k, frame in enumerate(container.decode(stream)):
            if k % 100 == 0:
                assert embed.landmarks(frame.to_ndarray(format="rgb24")) is not None, k


def test_models_py_can_be_copied_alone():
    code = "import sys; import models; print(sorted({m.split('.')[0] for m in sys.modules} & {'cv2', 'dlib', 'av', 'sklearn', " \
           "'matplotlib', 'tqdm', 'embed'}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=60)
    assert result.stdout.strip() == b"[]", result.stderr.decode()


@pytest.mark.parametrize("script", ("embed.py", "train.py", "sample.py", "transfer.py", "evaluate.py",
                                    "pretrain/faces.py", "pretrain/image_model.py"))
def test_every_script_has_help(script):
    result = run(script, "--help")
    assert result.returncode == 0 and b"usage:" in result.stdout
