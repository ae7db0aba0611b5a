"""Tests of everything, on a CPU, with nothing downloaded.

    python -m pytest -n 2 --dist worksteal          # two at a time, each on one core
    python -m pytest -k transfer                    # some of them

Three kinds: answers known on paper, equality with the upstream networks on the same weights, and every script
through its real command line on real H.264, real faces for dlib and the real pipe.
"""

import argparse
import ast
import base64
import collections
import contextlib
import hashlib
import http.server
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import zipfile
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")          # before torch is imported, here and in the scripts

import av
import cv2
import joblib
import numpy as np
import PIL.Image
import pytest
import scipy.signal
import torch
from scipy import stats
from torch import nn

import embed
import evaluate
import models
import sample
import train
import transfer
from baselines import longvideogan, one_style
from models import InputError
from pretrain import heads, image_model
from studies import crop as crop_study
from studies import gpu, looping, neighbours, sidebyside, speed, truth
from studies.goldens import fill, sine_images

ROOT = Path(__file__).resolve().parent
DEMO, PHOTO = ROOT / "assets" / "demo.mp4", ROOT / "assets" / "astronaut.jpg"


def command(script, *args):
    """The command line of a script (train.py), or of a module (studies.crop) where ROOT is the folder."""
    script = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    return [sys.executable, *script, *map(str, args)]


def run(script, *args, stdin=None, cwd=ROOT):
    """A script through its command line -> CompletedProcess with bytes."""
    return subprocess.run(command(script, *args), input=stdin, cwd=cwd, capture_output=True, timeout=300)


def begin(script, *args, cwd=ROOT, **streams):
    """A script that runs beside the test."""
    return subprocess.Popen(command(script, *args), cwd=cwd, stderr=subprocess.PIPE, **streams)


def wait(process, ready):
    """Until ready() is true, two minutes, or the end of a script that begin() began."""
    end = time.time() + 120
    while process.poll() is None and time.time() < end and not ready():
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def own_signals():
    """What handles signals in a test ends with it."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """A function: a command line, as "sample.py --t 9", within this process, in tmp_path -> its exit status
    and the last line that it said."""
    def call_it(line):
        script, *words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [script, *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        out, said = capsys.readouterr()
        assert out == ""
        return end.value.code, said.strip().splitlines()[-1]

    monkeypatch.chdir(tmp_path)
    return call_it


def assert_done(result, *words):
    """Status 0, and standard error has all the words."""
    text = result.stderr.decode()
    assert result.returncode == 0 and all(str(word) in text for word in words), text


def assert_raises(words, call, *args, **options):
    """InputError, whose sentence matches the words."""
    with pytest.raises(InputError, match=words):
        call(*args, **options)


def assert_refused(result, *words):
    """Status 2, one sentence on stderr that has all the words, nothing on standard output, no traceback."""
    text = result.stderr.decode()
    assert result.returncode == 2, text
    assert "Traceback" not in text and result.stdout == b""
    last = text.strip().splitlines()[-1]
    for word in words:
        assert str(word) in last, last


# ------------------------------------------------------------------------------------------------------------
# models.py: StyleGAN2, pSp, the loader
# ------------------------------------------------------------------------------------------------------------

def test_image_networks_equal_upstream():
    """StyleGAN2, and pSp's encoder before its decoder."""
    errors = gpu.goldens(argparse.Namespace(device=torch.device("cpu"), tiny=False))
    assert len(errors) == 8 and errors["all below 1e-4"], errors


def test_fast_rendering_equals_the_plain_one():
    g = fill(models.Generator(64, 32, 16, 2, {4: 24, 8: 24, 16: 16, 32: 12, 64: 8}))
    w = torch.randn(3, g.L, 32, generator=torch.Generator().manual_seed(0))
    plain = speed.plain_render(g, w)
    for ours in (g(w), torch.cat([g(part) for part in w.split(1)])):        # one alone takes a way of its own
        assert (ours - plain).abs().max() < 1e-5 * plain.std()
    # Half precision is the same picture to its rounding; a resolution on the way is the RGB sum reached there
    half = g(w, dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and (half - plain).std() < 0.02 * plain.std()
    assert g(w, resolution=32).shape == (3, 3, 32, 32)


def small_checkpoint(clamp=None):
    """Generator, encoder and pSp-layout checkpoint of a 32 px model with pseudo-weights (8 x 16 codes)."""
    generator = fill(models.Generator(32, 16, 10, 2, {4: 8, 8: 8, 16: 6, 32: 4}, clamp=clamp))
    encoder = fill(models.GradualStyleEncoder(8, 16, 32, (1, 1, 1, 1), (4, 8, 12, 16), 8))
    parts = prefixed("decoder.", generator.state_dict()) | prefixed("encoder.", encoder.state_dict())
    checkpoint = {"state_dict": parts, "latent_avg": torch.ones(8, 16), "opts": {"name": "small"}}
    return generator, encoder, checkpoint


def load(path, what, **options):
    """What load_image_model makes of a file of torch.save."""
    torch.save(what, path)
    return models.load_image_model(path, **options)


def test_load_image_model_reads_sizes_from_the_weights(tmp_path):
    generator, encoder, checkpoint = small_checkpoint()
    model = load(tmp_path / "any.bin", checkpoint)
    assert (model.size, model.L, model.D, model.Z) == (32, 8, 16, 10)
    assert model.name == "small" and model.has_actors
    images, z = sine_images(1, 2, 32), torch.randn(2, 10)
    assert torch.equal(model.encode(images), encoder(images) + 1)
    assert torch.equal(model.render(model.map(z)), generator(model.map(z)))
    # Noise maps and the average are absent, the encoder is in another file
    bare = {n: v for n, v in generator.state_dict().items() if not n.startswith("noises.")}
    alone = load(tmp_path / "bare.pt", {"g_ema": bare})
    assert torch.equal(alone.map(z), model.map(z))
    assert torch.allclose(alone.latent_avg[0], generator.style(torch.randn(20000, 10)).mean(0), atol=0.1)
    assert_raises("bare.pt.*no encoder", alone.encode, images)
    paired = models.load_image_model(tmp_path / "bare.pt", encoder=tmp_path / "any.bin")
    assert torch.equal(paired.encode(images), encoder(images) + 1)         # + the average it was trained with
    small = models.Generator(16, 16, 10, 2, {4: 6, 8: 6, 16: 6})
    assert_raises(r"8 x 16 codes \(32 px\), the generator takes 6 x 16 \(16 px\)",
                  load, tmp_path / "g.pt", {"g_ema": small.state_dict()}, encoder=tmp_path / "any.bin")


def test_encoders_differ_by_their_options_alone(tmp_path, capsys):
    """e4e's rows after the first are offsets from the first (Tov et al. 2021, sec. 4.1); its encoder of cars
    reads the middle rows of the square."""
    _, encoder, checkpoint = small_checkpoint()
    images = sine_images(1, 2, 32)
    wide = images[:, :, 4:28]                                               # 24 x 32, as 192 x 256
    w, cars = encoder(images), encoder(wide) + 1
    together = torch.cat([w[:, :1], w[:, :1] + w[:, 1:]], 1)
    for opts, wanted in (({"encoder_type": "Encoder4Editing"}, together + 1),
                         ({"encoder_type": "GradualStyleEncoder"}, w + 1), ({}, w + 1),
                         ({"start_from_latent_avg": False}, w), ({"dataset_type": "cars_encode"}, cars)):
        model = load(tmp_path / "e.pt", {**checkpoint, "opts": opts})
        assert torch.equal(model.encode(images), wanted), opts
    assert torch.equal(model.encode(wide), cars) and "encodes cars" in capsys.readouterr().err


# One generator, in every wrapper that people have it in

def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


WRAPPERS = {
    "g_ema": lambda g: {"g_ema": g, "latent_avg": torch.zeros(16)},
    "g alone": lambda g: {"random": torch.get_rng_state(), "mask": torch.ones(3).bool(), "g": g,
                          "g_optim": {"state": {}, "param_groups": [{"lr": 0.002}]}},
    "g_ema, not g": lambda g: {"g": {n: v + 1 for n, v in g.items()}, "g_ema": g, "d": {"x": torch.ones(3)}},
    "state dict": lambda g: g,
    "DataParallel": lambda g: {"g_ema": prefixed("module.", g)},
    "generator": lambda g: {"generator": g},
    "state_dict": lambda g: {"state_dict": g, "epoch": 3},
    "HyperStyle": lambda g: {"state_dict": {**prefixed("decoder.", g), "hypernet.x": torch.ones(2)}},
    "Namespace": lambda g: {"g_ema": g, "args": argparse.Namespace(size=32, path="/data")},
    "numpy and paths": lambda g: {"g_ema": g, "best_val_loss": np.float64(0.3), "opts": {
        "step": np.int64(3), "quads": np.zeros((4, 2)), "where": Path("a") / "b",
        "device": torch.device("cpu"), "size": torch.Size([3]), "kinds": {1, 2},
        "losses": collections.deque([1.0], 5), "more": collections.defaultdict(list, a=[1])}},
    "half": lambda g: {"g_ema": {n: v.bfloat16() for n, v in g.items()}},
}


@pytest.mark.parametrize("legacy", (False, True), ids=("zip", "legacy"))
def test_one_generator_in_every_wrapper(tmp_path, legacy):
    g = small_checkpoint()[0]
    w = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    files = {what: wrap(dict(g.state_dict())) for what, wrap in WRAPPERS.items()}
    files["a whole network"] = {"g_ema": g}
    for what, content in files.items():
        torch.save(content, tmp_path / "g.pt", _use_new_zipfile_serialization=not legacy)
        found = models.load_image_model(tmp_path / "g.pt").render(w)
        assert (found - g(w)).abs().max() <= (0.1 if what == "half" else 0) * g(w).std(), what


def test_rows_beyond_the_decoders_are_dropped(tmp_path):
    """pSp of 2020 always had 18 rows, which a decoder of fewer pixels ignores."""
    _, encoder, checkpoint = small_checkpoint()
    parts, w = checkpoint["state_dict"], sine_images(1, 1, 32)
    last = {n: v for n, v in parts.items() if ".styles.7." in n}
    more = {n.replace("styles.7.", f"styles.{k}."): v for k in (8, 9) for n, v in last.items()}
    longer = {"state_dict": {**parts, **more}, "latent_avg": torch.ones(10, 16)}
    model = load(tmp_path / "rows.pt", {**checkpoint, **longer})
    assert torch.equal(model.encode(w), encoder(w) + 1)
    assert_raises(r"rows.pt .*latent_avg has shape \(3, 16\)",
                  load, tmp_path / "rows.pt", {**checkpoint, "latent_avg": torch.ones(3, 16)})


@pytest.mark.parametrize("kind, channels, words", (
    ("GradualStyleEncoder", 6, "reads 6 channels.*ReStyle.*SAM.*sketches or maps"),
    ("BackboneEncoderUsingLastLayerIntoW", 3, "is a BackboneEncoderUsingLastLayerIntoW")))
def test_a_decoder_is_read_whatever_its_encoder_is(tmp_path, kind, channels, words):
    generator, _, checkpoint = small_checkpoint()
    parts, name = checkpoint["state_dict"], "encoder.input_layer.0.weight"
    parts = {**parts, name: parts[name][:, :1].repeat(1, channels, 1, 1)}
    model = load(tmp_path / "r.pt", {**checkpoint, "state_dict": parts, "opts": {"encoder_type": kind}})
    w = torch.ones(1, 8, 16)
    assert model.encoder is None and torch.equal(model.render(w), generator(w))
    assert_raises(f"r.pt .*{words}.*--encoder", model.encode, sine_images(1, 1, 32))
    assert_raises(f"r.pt .*{words}", models.load_image_model, "faces128", encoder=tmp_path / "r.pt")


def test_an_encoder_of_another_generator_is_told(tmp_path, capsys):
    _, _, checkpoint = small_checkpoint()
    load(tmp_path / "a.pt", checkpoint, encoder=tmp_path / "a.pt")
    assert capsys.readouterr().err == ""
    for average in (torch.zeros(16), torch.randn(16) * 5):
        torch.save({**checkpoint, "latent_avg": average}, tmp_path / "b.pt")
        models.load_image_model(tmp_path / "a.pt", encoder=tmp_path / "b.pt")
        assert capsys.readouterr().err.count("latent_avg of") == 1


# What is no image model, and how that is said

def zipped(*names):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return archive.getvalue()


def changed(name, change):
    """The small generator's state dict with one tensor changed."""
    weights = dict(small_checkpoint()[0].state_dict())
    return {"g_ema": {**weights, name: change(weights[name])}}


one = torch.ones(1)


@pytest.mark.parametrize("content, words", (
    (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "web page.*gdown"),
    (b"\n<html lang='en'>", "web page"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"\xef\xbb\xbf<!-- saved", "web page"), (b'{"error": {"code": 404', "server's answer"),
    (zipped("w.npy"), "NumPy"), (changed("conv1.activate.bias", lambda v: v / 0 * 0), "NaN"),
    (b"\x1f\x8b\x08\0", "compressed.*unpack"), (b"m.pt".ljust(257, b"\0") + b"ustar\x0000", "tar archive"),
    (zipped("model.pkl"), "zip archive .model.pkl.*unpack"),
    (zipped("m/data.pkl", "m/constants.pkl"), "TorchScript"),
    (b"\x40\0\0\0\0\0\0\0{\"a\":{}", "safetensors.*torch.save"), (b"\x89PNG\r\n\x1a\n", "picture"),
    (b"", "cut short or of another format"), (b"hello", "cut short or of another format"),
    ({"G_ema.synthesis.L0_36_512.weight": one, "G_ema.synthesis.input.freqs": one}, "StyleGAN3"),
    ({"GAN": {"G.initial_block": one, "G.blocks.0.to_rgb.conv.weight": one}}, "lucidrains"),
    ({"params_ema": {"stylegan_decoder.style_conv1.modulated_conv.weight": one}}, "GFPGAN"),
    ({"generator_smooth": {"mapping.dense0.weight": one, "synthesis.layer0.weight": one}}, "genforce"),
    ({"state_dict": {"generator_ema.style_mapping.1.weight": one}}, "OpenMMLab"),
    ({"g_ema": {"generator.conv1.conv.modulation.weight": one, "res.0.conv.0.weight": one}}, "DualStyleGAN"),
    (prefixed("encoder.", small_checkpoint()[1].state_dict()), "encoder.input_layer.*with --encoder"),
    ({"generator": {"hallucinate.0.weight": one}, "pca": {}}, "motion model.*--motion"),
    ({"a": {"conv1.conv.modulation.weight": one}, "b": {"conv1.conv.modulation.weight": one}}, "several"),
    (changed("input.input", lambda v: v.repeat(1, 1, 1, 2)[..., :2]), r"not square \(2 : 4\)"),
    (changed("to_rgb1.conv.weight", lambda v: v[:, :1]), "1 colour channels"),
    (changed("conv1.activate.bias", lambda v: v[:3]), r"conv1.activate.bias has shape \(3,\), not \(8,\)"),
    ({**changed("input.input", lambda v: v), "latent_avg": np.zeros(16)}, "latent_avg is no tensor"),
    ({"weights": one}, "no StyleGAN2 generator .weights"), ({}, "no tensors of torch"), ([one], "a list")))
def test_what_is_no_image_model_is_named(tmp_path, content, words):
    path = tmp_path / "m.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_raises(f"m.pt cannot be .*{words}", models.load_image_model, path)


def test_names_paths_and_addresses(tmp_path, monkeypatch):
    """A folder called as a model is no model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STYLEVIDEOGAN_CACHE", str(tmp_path / "cache"))
    for name in ("faces128", "ffhq"):
        (tmp_path / name).mkdir()
    assert models.load_image_model("faces128").size == 128
    monkeypatch.setitem(models.OFFICIAL, "ffhq", ("m.pt", "http://127.0.0.1:9/m.pt", None))
    assert_raises("m.pt could not be fetched", models.load_image_model, "ffhq")
    for name, words in (("./ffhq", "is a folder"), ("absent.pt", "does not exist.*--model"),
                        ("https://example.org/a.pkl", "is an address; download")):
        assert_raises(words, models.load_image_model, name)


# A generator of stylegan2-ada-pytorch as its persistence saves it, made from one with rosinality's names

class Persistent:
    """An object, and those in it, made of {dotted name: tensor or attribute}."""

    def __init__(self, flat):
        own = {name: value for name, value in flat.items() if "." not in name}
        tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
        learnt = {name: nn.Parameter(tensors.pop(name)) for name in ("weight", "bias") if name in tensors}
        inner = dict.fromkeys(name.split(".")[0] for name in flat if "." in name)
        modules = {name: Persistent(models.below(flat, f"{name}.")) for name in inner}
        ordered = collections.OrderedDict
        self.state = {**own, "_parameters": ordered(learnt), "_buffers": ordered(tensors),
                      "_modules": ordered(modules), "hooks": set()}

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('executed')",
                "class_name": "Generator", "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@pytest.fixture
def upstream_names(monkeypatch):
    """Modules that pickling looks names up in; reading needs none of them."""
    names = {"torch_utils.persistence": lambda meta: meta, "dnnlib.util": type("EasyDict", (dict,), {}),
             "dnnlib.tflib.network": type("Network", (), {})}
    names["torch_utils.persistence"].__qualname__ = "_reconstruct_persistent_obj"
    for module, thing in names.items():
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module))
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], thing.__qualname__, thing)
        thing.__module__ = module
    return names


PARTS = {"conv.weight": "weight", "activate.bias": "bias", "bias": "bias", "noise.weight": "noise_strength",
         "conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias"}


def nvidia(g, latent_avg, clamp=None, **attributes):
    """{dotted name: tensor or attribute} of g, as stylegan2-ada-pytorch calls them."""
    w, layers = g.state_dict(), {"b4.conv1": "conv1", "b4.torgb": "to_rgb1"}
    for n in range(len(g.to_rgbs)):
        block = f"b{8 * 2 ** n}"
        layers |= {f"{block}.conv0": f"convs.{2 * n}", f"{block}.conv1": f"convs.{2 * n + 1}",
                   f"{block}.torgb": f"to_rgbs.{n}"}

    found = {"mapping.w_avg": latent_avg, "synthesis.b4.const": w["input.input"][0], "c_dim": 0}
    for k in range(g.n_mlp):
        found |= {f"mapping.fc{k}.{part}": w[f"style.{k + 1}.{part}"] for part in ("weight", "bias")}
        found[f"mapping.fc{k}.bias_gain"] = 0.01
    for theirs, ours in layers.items():
        for part, called in PARTS.items():
            if f"{ours}.{part}" in w:
                value = w[f"{ours}.{part}"]
                found[f"synthesis.{theirs}.{called}"] = value[0] if value.ndim == 5 else value.squeeze()
        found |= {f"synthesis.{theirs}.conv_clamp": clamp, f"synthesis.{theirs}.gain": np.float64(1)}
    for k, theirs in enumerate(name for name in layers if "conv" in name):
        found[f"synthesis.{theirs}.noise_const"] = w[f"noises.noise_{k}"][0, 0]
        found[f"synthesis.{theirs}.resample_filter"] = models.fir_kernel(1.0)
    return {**found, "synthesis.b4.architecture": "skip", **attributes}


@pytest.mark.parametrize("clamp", (None, 1.5))
def test_nvidia_generators_in_every_container(tmp_path, upstream_names, clamp):
    """NVIDIA's pickles; what PTI and STIT save by torch.save, today and before 1.6; objects; state dicts."""
    EasyDict = upstream_names["dnnlib.util"]
    (g, *_), (unclamped, *_), path = small_checkpoint(clamp), small_checkpoint(), tmp_path / "n.bin"
    average, z = torch.randn(16), torch.randn(2, 10)
    flat = nvidia(g, average, clamp)
    other = {**flat, "synthesis.b4.const": torch.ones(8, 4, 4)}
    whole = Persistent(flat)
    snapshot = {"G": Persistent(other), "D": None, "G_ema": whole, "training_set_kwargs": EasyDict(path="x")}
    tuned = {"generator": whole, "pivots": torch.zeros(3, 8, 16), "quads": [np.zeros((4, 2))]}
    ways = {"protocol 3": pickle.dumps(snapshot, 3), "protocol 4": pickle.dumps(snapshot, 4),
            "bare pickle": pickle.dumps(whole, 4), "STIT": packed(tuned, "zip"),
            "PTI": packed(whole, "zip"), "PTI, legacy": packed(whole, "legacy")}
    if clamp is None:                                                       # a state dict holds none
        ways |= {"state dicts": packed({"G": other, "G_ema": flat}, "zip"), "one": packed(flat, "zip")}
    for what, data in ways.items():
        path.write_bytes(data)
        model = models.load_image_model(path)
        assert (model.size, model.L, model.D, model.Z) == (32, 8, 16, 10), what
        w = model.map(z, 0.7)
        assert torch.equal(model.latent_avg[3], average) and torch.equal(model.render(w), g(w)), what
    assert torch.equal(model.map(z)[:, 1], g.style(z))
    assert torch.allclose(g(w), unclamped(w)) == (clamp is None)            # it does something


def test_nvidia_pickles_that_are_refused(tmp_path, upstream_names):
    g, average = small_checkpoint()[0], torch.zeros(16)
    stylegan3 = {"synthesis.L0_36_512.weight": torch.zeros(2), "synthesis.L0_36_512.up_filter": np.ones(3)}
    for what, words in ((Persistent(nvidia(g, average, c_dim=7)), "conditional"),
                        (Persistent(nvidia(g, average, **{"synthesis.b8.architecture": "resnet"})),
                         "architecture is resnet"),
                        (Persistent({**nvidia(g, average), "synthesis.b8.resample_filter": torch.ones(4, 4)}),
                         "another filter"),
                        (Persistent(stylegan3), "StyleGAN3"),
                        (upstream_names["dnnlib.tflib.network"](), "TensorFlow pickle.*legacy.py")):
        (tmp_path / "n.pkl").write_bytes(pickle.dumps({"G_ema": what}, 4))
        assert_raises(f"n.pkl.*{words}", models.load_image_model, tmp_path / "n.pkl")


# Fetching, from a server of our own

@pytest.fixture
def address(monkeypatch, tmp_path):
    class FileServer(http.server.BaseHTTPRequestHandler):
        """Serves `data` with Range requests; the first answer breaks off after `cut` bytes."""
        data, cut, ranges = b"", None, []

        def do_GET(self):
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(match[1]) if match else 0
            self.ranges.append(start)
            body = self.data[start:]
            self.send_response(206 if match else 200)
            self.send_header("Content-Length", str(len(body)))
            if match:
                self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
            self.end_headers()
            cut, type(self).cut = self.cut, None
            self.wfile.write(body if cut is None else body[:cut])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FileServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STYLEVIDEOGAN_CACHE", str(tmp_path / "cache"))
    yield f"http://127.0.0.1:{server.server_port}/model.pt", FileServer
    server.shutdown()
    server.server_close()


def test_the_docs_name_the_addresses_that_are_fetched_from():
    docs = (ROOT / "docs" / "image-models.md").read_text(encoding="utf-8")
    assert all(f"({url})" in docs for _, url, _ in models.OFFICIAL.values())


def test_named_models_are_fetched_once_and_checked(address, tmp_path, monkeypatch, capsys):
    url, handler = address
    handler.data = packed(small_checkpoint()[2], "zip")
    sha256 = hashlib.sha256(handler.data).hexdigest()
    monkeypatch.setitem(models.OFFICIAL, "ffhq", ("model.pt", url, None))       # no published hash
    assert models.load_image_model("ffhq").sha256 == sha256
    assert sha256 in capsys.readouterr().err and len(handler.ranges) == 1
    assert models.load_image_model("ffhq").L == 8 and len(handler.ranges) == 1
    assert sorted(os.listdir(tmp_path / "cache")) == ["model.pt", "model.pt.sha256"]
    (tmp_path / "cache" / "model.pt").write_bytes(handler.data + b"x")          # not what was fetched
    assert_raises("model.pt .*it has sha256 .* delete it", models.load_image_model, "ffhq")


def test_a_cut_download_goes_on_and_a_wrong_one_is_refused(address, tmp_path):
    url, handler = address
    handler.data, handler.cut = np.random.RandomState(0).bytes(3_000_000), 1_000_000
    assert_raises(f"model.pt could not be fetched .*{url}.*cache.*--model", models.fetch, "model.pt", url)
    assert not (tmp_path / "cache" / "model.pt").exists()
    path, sha256 = models.fetch("model.pt", url)
    assert path.read_bytes() == handler.data and sha256 == hashlib.sha256(handler.data).hexdigest()
    assert 0 < max(handler.ranges) <= 1_000_000                                 # it went on where it stopped
    assert_raises("other.pt could not be fetched .*sha256", models.fetch, "other.pt", url, "0" * 64)
    assert sorted(os.listdir(tmp_path / "cache")) == ["model.pt", "model.pt.sha256"]


@contextlib.contextmanager
def full_disk():
    """As full as it is for files that cannot grow beyond 50,000 bytes."""
    resource = pytest.importorskip("resource", reason="limits of the file size are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_download_onto_a_full_disk_is_one_sentence(address, tmp_path):
    url, handler = address
    handler.data = bytes(3_000_000)
    with full_disk():
        assert_raises(f"model.pt could not be .*too large.*{url}.*--model", models.fetch, "model.pt", url)
    assert not {"model.pt", "model.pt.sha256"} & set(os.listdir(tmp_path / "cache"))
    assert models.fetch("model.pt", url)[0].read_bytes() == handler.data        # once there is room


def test_importing_fetches_nothing():
    code = "import socket\ndef no(*_): raise SystemExit('network')\nsocket.socket.connect = no\n" \
           "import models, evaluate, sys\nassert 'gdown' not in sys.modules and 'requests' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def packed(content, container):
    """What pickle or torch.save makes of it."""
    if container == "pickle":
        return pickle.dumps(content, 4)
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=container == "zip")
    return file.getvalue()


def edited(data, old, new):
    """A file's bytes with some replaced, in each member of a zip, so that its checksums are right."""
    assert old in data
    if not data.startswith(b"PK"):
        return data.replace(old, new)
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name).replace(old, new))
    return target.getvalue()


@pytest.mark.parametrize("container", ("pickle", "zip", "legacy"))
def test_hostile_files_run_nothing(tmp_path, upstream_names, container):
    """Calls at the top, in or beside a network, in a storage; tensors and storages that lie; damage."""
    ran, path, g = tmp_path / "ran", tmp_path / "h.pt", small_checkpoint()[0]
    touch = Bomb(Path.touch, ran)
    pickle.loads(packed(touch, "pickle"))
    assert ran.exists()                                                     # the bomb is a live one
    ran.unlink()

    flat, weights = nvidia(g, torch.zeros(16)), dict(g.state_dict())
    whole = packed(Persistent(flat), container)
    inside = Bomb(torch.storage._load_from_bytes, packed(touch, "legacy"))

    def tensor(storage, *shape_and_stride):
        wrong = Bomb(torch._utils._rebuild_tensor_v2, storage, 0, *shape_and_stride, False, None)
        return {"g_ema": {**weights, "conv1.activate.bias": wrong}}

    four = torch.zeros(4)._typed_storage()
    hostile = {what: packed(content, container) for what, content in {
        "top": touch, "list": [Bomb(eval, f"open({str(ran)!r}, 'w')")], "weight": {"g_ema": touch},
        "beside": {"g_ema": weights, "x": Bomb(os.system, f"touch {ran}")}, "touch": {**weights, "x": touch},
        "network": {"G_ema": Persistent({**flat, "hook": touch})}, "storage": tensor(inside, (8,), (1,)),
        "larger": tensor(four, (8,), (1,)), "larger, in strides": tensor(four, (8,), (0,)),
        "number of objects": {"g_ema": {**weights, "latent_avg": np.array([touch], object)}}}.items()}
    hostile |= {"cut": whole[:len(whole) // 2], "cut early": whole[:60]}
    if container != "pickle":
        end = b"t" if container == "zip" else b"Nt"
        hostile |= {"no storage": edited(whole, b"storage", b"stowage"),
                    "another type": edited(whole, b"FloatStorage", b"LongsStorage"),
                    "a module": edited(whole, b"X\x07\0\0\0storage", b"X\x06\0\0\0module"),
                    "too many numbers": edited(whole, b"M\x00\x01" + end, b"J\xff\xff\xff\x7f" + end)}
        path.write_bytes(edited(whole, b"storage", b"storage"))             # without a change it is read
        assert models.load_image_model(path).size == 32
    if container == "pickle":
        name = str(ran).encode()
        hostile |= {
            "system": b"\x80\x04cposix\nsystem\n(S'touch " + name + b"'\ntR.",
            "attribute": b"\x80\x04\x8c\x0ccollections\x8c\x18OrderedDict.__init__.x\x93.",
            "changed function": b"\x80\x04ctorch._utils\n_rebuild_parameter\nN}\x8c\x08functionN\x73\x86b.",
            "persistent id": b"\x80\x04\x8c\x01xQ.",
            "deep nesting": b"\x80\x04" + b"(" * 100000 + b"l" * 100000 + b"."}
    for what, data in hostile.items():
        assert data != whole, what
        path.write_bytes(data)
        with pytest.raises(InputError, match="h.pt") as refusal:
            models.load_image_model(path)
        assert "\n" not in str(refusal.value) and not ran.exists(), what
        assert "larger" not in what or "larger than its storage" in str(refusal.value), what


def test_embedded_image_model_is_small_and_documents_itself():
    path = ROOT / "assets" / "faces128.pt"
    assert path.stat().st_size <= 40e6
    checkpoint = torch.load(path, weights_only=True)
    opts = checkpoint["opts"]
    assert "pretrain.image_model" in opts["command"] and opts["date"] and "CC0" in opts["licence"]
    assert opts["names"] == [*heads.NAMES] and opts["quality"]["people"]["psnr"] > 25
    assert checkpoint["state_dict"]["decoder.convs.0.conv.weight"].dtype == torch.float16


def test_motion_generator_follows_tables_4_to_6():
    torch.manual_seed(0)
    G = models.MotionGenerator(5, 24, width=16).eval()
    i, s = torch.randn(3, 32), torch.randn(3, 6, 32)
    h = G.hidden(i)
    assert h.shape == (4, 3, 32) and torch.equal(h[3], i)                       # the fourth cell starts as i
    l = G.motion(i, s)
    assert l.shape == (3, 7, 32) and torch.equal(l[:, 0], i)                    # l_0 = i

    # P is four stacked GRU cells, the fourth's memory is the output
    memory, cells = list(h), [nn.GRUCell(32, 32) for _ in range(4)]
    for k, cell in enumerate(cells):
        cell.load_state_dict({name: getattr(G.produce, f"{name}_l{k}") for name in cell.state_dict()})
    for t in range(6):
        x = s[:, t]
        for k, cell in enumerate(cells):
            memory[k] = x = cell(x, memory[k])
        assert torch.allclose(l[:, t + 1], x, atol=1e-6)

    # Rows: independent linear + LeakyReLU + BatchNorm per style row
    w = G.translate(l)
    assert w.shape == (3, 7, 5, 24) and torch.equal(w, G(i, s))
    v = G.translate_in(l.reshape(-1, 32))
    by_hand = nn.functional.leaky_relu(v @ G.rows[2] + G.rows_bias[2], 0.2).reshape(3, 7, 24)
    assert torch.allclose(w[:, :, 2], by_hand / math.sqrt(1 + 1e-5), atol=1e-5)


@pytest.mark.parametrize("T", (2, 4, 7, 11, 25, 75))
def test_critic_and_its_penalty_equal_convolutions_and_autograd(T):
    """Table 7 for any window; scores, penalty and the derivatives of both with respect to every weight."""
    torch.manual_seed(T)
    C = models.MotionCritic(4, 12, T).double()
    assert [m.out_features for m in C.extract] == [12] * 5 + [32] and C.extract[0].in_features == 48
    C.set_scale(torch.randn(4, 12), torch.rand(4, 12) + 0.2)
    real, fake = torch.randn(2, 8, T, 4, 12).double()
    mix, later = torch.rand(8, 1, 1).double(), torch.tensor(4 * [0.0, 1.0]).view(8, 1, 1).double()
    torch.nn.init.normal_(C.later)
    p_real, p_fake = C.first_layer(real, later), C.first_layer(fake, later)
    ours = C.score(p_fake).mean(), models.gradient_penalty(C, p_real, p_fake, mix)
    plain = speed.plain_critic(C, fake, later).mean(), speed.plain_penalty(C, real, fake, later, mix)
    for a, b in zip(ours, plain):
        assert torch.allclose(a, b, rtol=1e-10)
        slopes = [torch.autograd.grad(x, list(C.parameters()), retain_graph=True, materialize_grads=True,
                                      allow_unused=True) for x in (a, b)]
        assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(*slopes))


def test_gradient_angle_penalty_by_hand():
    # l_{t-1} - l_0 = a s_0 + b i in the first component only: phi = arctan(a / b)
    norm, pick = models.RunningNorm(32), torch.eye(32)[0]
    for a, b, wanted in ((1.0, 1.0, 0.0), (1.0, 3.0, (math.pi / 4 - math.atan(1 / 3)) ** 2), (3.0, 1.0, 0.0)):
        i, s = torch.randn(5, 32, requires_grad=True), torch.randn(5, 2, 32, requires_grad=True)
        end = (a * s[:, 0] + (b + 1) * i) * pick + i * (1 - pick)
        loss, phi = models.gradient_angle_penalty(torch.stack([i, i, end], 1), i, s, norm)
        assert torch.allclose(phi, torch.full((5,), math.atan(a / b)), atol=1e-5)
        assert loss.item() == pytest.approx(wanted, abs=1e-6)


def test_losses_reach_what_they_should():
    """The angle penalty H and P alone, the critic's score all of G."""
    torch.manual_seed(0)
    G, C, norm = models.MotionGenerator(3, 8), models.MotionCritic(3, 8, 6), models.RunningNorm(32)
    i, s = torch.randn(8, 32, requires_grad=True), torch.randn(8, 5, 32, requires_grad=True)
    l = G.motion(i, s)
    norm.update((l[:, -1] - l[:, 0]).detach())
    loss, phi = models.gradient_angle_penalty(l, i, s, norm)
    assert (phi < math.pi / 4).any() and loss > 0
    loss.backward(retain_graph=True)
    reached = {name.split(".")[0] for name, p in G.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"hallucinate", "produce"}
    C(G.translate(l)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in G.parameters())


def test_running_norm_tracks_mean_and_variance():
    norm, x = models.RunningNorm(2, momentum=0.5), torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    norm.update(x)
    assert norm.mean.tolist() == [2, 20] and norm.var.tolist() == [2, 200]
    norm.update(x + 2)
    assert torch.allclose(norm(torch.tensor([[3.0, 21.0]])), torch.zeros(1, 2), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------
# What several tests need: a short clip of a head, its codes; toy models of random weights, codes
# ------------------------------------------------------------------------------------------------------------

def demo(n, size):
    """The first frames of a head talking, n pictures (size, size, 3) uint8."""
    frames = itertools.islice(embed.read_video(DEMO), n)
    return [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """3 s of a head talking, 256 px, 25 fps."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", demo(75, 256))


@pytest.fixture(scope="session")
def embedded(clip):
    """The clip after embed.py: path of latents.npy, and what the command printed."""
    result = run("embed.py", clip, "-o", clip.with_name("latents.npy"))
    assert_done(result)
    return clip.with_name("latents.npy"), result.stderr.decode()


L, D = 8, 16  # of the 32 px toy image model


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Folder with image.pt (with actors), own.pt (without), and their motion.pt, motion_own.pt."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    torch.set_num_threads(1)                                                # toy sizes only wait for a second
    for name, n_mlp, motion in (("image", 2, "motion.pt"), ("own", 0, "motion_own.pt")):
        channels = {4: 8, 8: 8, 16: 8, 32: 8}
        parts = {"decoder": models.Generator(32, D=D, Z=8 if n_mlp else D, n_mlp=n_mlp, channels=channels),
                 "encoder": models.GradualStyleEncoder(L, D, 64, (1, 1, 1, 1), (8, 12, 16, 24))}
        weights = {f"{p}.{k}": v for p, net in parts.items() for k, v in net.state_dict().items()}
        torch.save({"state_dict": weights, "latent_avg": torch.randn(L, D), "opts": {"name": name}},
                   folder / f"{name}.pt")
        sha256 = models.load_image_model(folder / f"{name}.pt").sha256
        generator = models.MotionGenerator(L, D)
        generator.prepare(torch.rand(64, L, D), [(0, 64)], None)
        with torch.no_grad():                                               # BatchNorm's statistics: it moves
            for norm in (m for m in generator.modules() if isinstance(m, nn.BatchNorm1d)):
                norm.momentum = None                                          # plain average over the batches
            for _ in range(3):
                generator(torch.randn(32, 32), torch.randn(32, 24, 32))
        basis = torch.linalg.qr(torch.randn(L * D, 32))[0].T.reshape(32, L, D).contiguous()
        torch.save({"generator": generator.state_dict(), "sizes": {"L": L, "D": D, "noise": 32, "width": D},
                    "model": {"name": str(folder / f"{name}.pt"), "sha256": sha256}, "fps": 25.0,
                    "pca": {"mean": torch.randn(L, D), "basis": basis, "std": torch.ones(32)}, "options": {},
                    "step": 0, "window": 25}, folder / motion)
    return folder


@pytest.fixture(scope="session")
def codes(toy):
    """90 frames of the toy motion model's own codes, in clips of 50 and 40 frames, without a source video."""
    generator, meta = sample.load_motion(toy / "motion.pt")
    np.save(toy / "codes.npy", np.concatenate(list(sample.sample(generator, 90, 77))))
    (toy / "codes.json").write_text(json.dumps({
        "model": meta["model"], "fps": 25.0, "source": [],
        "frames": [{"index": k, "clip": int(k >= 50), "quad": [[0, 0]] * 4} for k in range(90)]}))
    return toy / "codes.npy"


def write_video(path, frames, fps=25):
    with transfer.VideoWriter(path, fps) as video:
        for frame in frames:
            video.write(frame)
    return path


def decoded(path):
    """Frames of a video, (T, H, W, 3) uint8, decoded by PyAV."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# ------------------------------------------------------------------------------------------------------------
# pretrain/heads.py
# ------------------------------------------------------------------------------------------------------------

def test_params_of_heads_are_distributed_as_said():
    u = np.random.RandomState(0).standard_normal((3000, heads.Z))
    z = heads.params(u)
    assert z.dtype == np.float32 and len(set(heads.NAMES)) == heads.Z == z.shape[1]
    for column in z.T[:heads.MOTION]:
        assert stats.kstest(column, "uniform", (-1, 2)).pvalue > 1e-4
    jaw, lid = z[:, heads.FACE], z[:, -1]
    assert abs((jaw == 0).mean() - 0.35 / 1.35) < 0.03 and jaw.max() > 0.99
    assert abs((lid > 0.2).mean() - 0.15) < 0.02 and ((lid <= 0.1) | (lid >= 0.3)).all()
    assert np.array_equal(heads.params(u[5]), z[5])
    assert (np.diff(heads.params(np.linspace(-4, 4, 99)[:, None] * np.ones(heads.Z)), axis=0) >= 0).all()


def test_frames_of_heads_are_of_one_person_and_stay_the_same():
    """Golden values: pictures that were rendered once belong to (SEED, i, j) for good."""
    u, other = heads.sample_frame(7, 1), heads.sample_frame(7, 0)
    assert np.allclose(u[[0, 24, 25, 42]], [0.078978, -0.189622, -0.364253, 0.841451], atol=1e-6)
    same = u == other
    assert same[:heads.PERSON].all() and not same[heads.PERSON:].any()
    drawn = np.stack([heads.sample_frame(i, j) for i in range(500) for j in range(2)])
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    # No entry follows another one, as z of frame 0 once did when both were drawn from one seed
    assert abs(np.corrcoef(drawn[::2].T) - np.eye(heads.Z)).max() < 0.2


def test_people_at_rest_have_open_eyes_and_stay_the_same():
    u = heads.people(200, seed=3)
    z = heads.params(u)
    assert np.array_equal(u[:5], heads.people(5, seed=3)) and not np.allclose(u[:5], heads.people(5, seed=4))
    assert z[:, -1].max() < 0.1 and (z[:, heads.FACE] < 0.2).mean() > 0.95
    assert abs(z[:, heads.MOTION:heads.FACE]).max() < 0.7


def test_motion_of_heads_has_arkits_names():
    z = np.zeros(heads.Z)
    for name, value in {"yaw": 0.5, "gaze_x": 1, "jawOpen": 0.5, "mouthSmile": 1, "eyeBlink": 1}.items():
        z[heads.NAMES.index(name)] = value
    angles, units = heads.motion(z)
    assert angles == {"yaw": 12, "pitch": 0, "roll": 0, "gaze_x": 18, "gaze_y": 0}
    assert units["eyeBlinkLeft"] == units["eyeBlinkRight"] == 1 and units["jawOpen"] == 0.3
    # To the viewer's right is outwards for the person's left eye
    assert units["eyeLookOutLeft"] == units["eyeLookInRight"] == 0.6 and units["eyeLookInLeft"] == 0
    with np.load(heads.HEAD) as file:
        assert set(units) <= set(file["names"].tolist())


def test_heads_talk():
    said, place = heads.talk(1500, seed=3)
    column = dict(zip(heads.NAMES[heads.MOTION:], said.T.astype(float), strict=True))
    assert said.shape == (1500, 11) and abs(said).max() <= 1
    assert all(column[name].min() >= 0 for name in (*heads.UNITS, "eyeBlink"))
    assert all(np.array_equal(a, b) for a, b in zip((said, place), heads.talk(1500, seed=3)))
    assert np.array_equal(said[:500], heads.talk(500, seed=3)[0])               # a longer clip only goes on
    assert not np.allclose(said, heads.talk(1500, seed=4)[0])

    # Nods and turns ease; the body hardly moves
    for name in ("yaw", "pitch", "roll", "browInnerUp"):
        assert abs(np.diff(column[name], 2)).max() < 0.3, name
    assert abs(np.diff(place, axis=0)).max() < 0.01 and 0.02 < abs(place).max() <= 0.06

    def runs(mask):
        return np.diff(np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0])))[::2]

    blinks, pauses = runs(column["eyeBlink"] > 0.5), runs(column["jawOpen"] < 0.03)
    assert 12 <= len(blinks) <= 30 and set(blinks) <= {3, 4}                    # in a minute; frames of each
    assert (pauses >= 8).sum() >= 10                                            # between phrases
    assert (pauses < 8).sum() >= 20                                             # closed lips within them
    assert all((column[name] > 0.5).mean() > 0.03 for name in ("jawOpen", "mouthPucker", "mouthStretch"))

    # Where the head's turn leaves room the gaze is at the camera, more often than not
    off = 24 * column["yaw"] + 18 * column["gaze_x"]
    assert 0.6 < (abs(off) < 1).mean() < 0.95


def test_heads_say_it_again_never_quite_the_same():
    said, _ = heads.talk(302, seed=3, times=3)
    a, b, c = said[:100], said[100:200], said[200:300]
    assert len(said) == 302 and abs(np.diff(said[:, :3], axis=0)).max() < 0.3   # no jump back to the start
    for x, y in ((a, b), (b, c)):
        assert abs(x - y)[:, :3].max() > 0.01 and np.corrcoef(x[:, 0], y[:, 0])[0, 1] > 0.9


def test_heads_without_mitsuba_say_so(monkeypatch):
    monkeypatch.setattr(heads, "mi", None)
    assert_raises("pip install -r pretrain/requirements.txt", heads.Studio)


def test_heads_command_line(tmp_path, monkeypatch):
    pytest.importorskip("mitsuba")
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(tmp_path / "none"))            # needs no LLVM
    assert_done(run("pretrain.heads", "--sheet", tmp_path / "s.png", "--identities", 2, "--size", 32))
    assert cv2.imread(str(tmp_path / "s.png")).shape == (32, 8 * 32, 3)
    words = "--clip", tmp_path / "c.mp4", "--seconds", 0.12, "--size", 64
    assert_done(run("pretrain.heads", *words))
    assert decoded(tmp_path / "c.mp4").shape == (3, 64, 64, 3)


def test_shards_of_heads_go_on(tmp_path, monkeypatch):
    pytest.importorskip("mitsuba")
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(tmp_path.parent / "none"))
    monkeypatch.setattr(heads, "SHARD", 1)
    heads.shards(tmp_path, 1, 32)
    shard = tmp_path / "heads-000000.npz"
    with np.load(shard) as file:
        assert np.array_equal(file["u"], [heads.sample_frame(0, 0), heads.sample_frame(0, 1)])
        picture = cv2.imdecode(file["jpeg"][:file["lengths"][0]], 1)
        (left, top, right, bottom), _, mouth = file["boxes"][0]
    assert picture.shape == (32, 32, 3) and picture.std() > 20
    assert 0.1 < right - left < 0.16 and 0.03 < bottom - top < 0.08             # an eye's, of a crop's side
    assert abs(right - 0.43) < 0.05 and bottom < mouth[1] < mouth[3] < 0.95
    written = shard.stat().st_mtime_ns
    heads.shards(tmp_path, 2, 32)
    assert shard.stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard.name, "heads-000001.npz"]


# ------------------------------------------------------------------------------------------------------------
# pretrain/image_model.py
# ------------------------------------------------------------------------------------------------------------

TINY = ("--size", 32, "--steps", 6, "--batch", 4, "--every", 3, "--workers", 0)


def test_image_model_of_rendered_heads(tmp_path):
    # What pretrain/heads.py --render writes, of noise
    folder, rng = tmp_path / "heads", np.random.default_rng(0)
    folder.mkdir()
    boxes = np.float32([[[0.3, 0.4, 0.4, 0.45], [0.6, 0.4, 0.7, 0.45], [0.4, 0.7, 0.6, 0.8]]] * 4)
    for k in range(3):
        noise = rng.integers(0, 256, (4, 40, 40, 3), np.uint8)
        jpeg = [cv2.imencode(".jpg", picture)[1].ravel() for picture in noise]
        np.savez(folder / f"heads-{k:06d}.npz", jpeg=np.concatenate(jpeg), lengths=[len(e) for e in jpeg],
                 u=rng.standard_normal((4, heads.Z)).astype(np.float32), boxes=boxes)

    assert_done(run("pretrain.image_model", folder, "-o", tmp_path / "tiny.pt", *TINY), "at rest")
    model = models.load_image_model(tmp_path / "tiny.pt")
    assert (model.size, model.L, model.Z, model.has_actors) == (32, 8, heads.Z, True)
    quality = torch.load(tmp_path / "tiny.pt", weights_only=True)["opts"]["quality"]["people"]
    assert quality["frames"] == 4 and quality["psnr"] > 5 and quality["psnr_of_z"] > 5

    # Its mapping takes z as heads.people() does; what is encoded stays; both but for half precision
    net, x = image_model.Networks(32, heads.Z).eval(), torch.rand(2, 3, 32, 32)
    net.load_state_dict(state_of(tmp_path / "tiny.pt")["ema"])
    z = torch.from_numpy(np.random.default_rng(7).standard_normal((5, heads.Z)))
    with torch.no_grad():
        assert torch.allclose(model.map(z)[:, 0], net.map(torch.from_numpy(heads.people(5, 7))), atol=0.02)
        assert torch.allclose(model.encode(x), net.encoder(x) + net.latent_avg, atol=0.01)
    assert not torch.allclose(model.latent_avg[0], net.latent_avg, atol=0.1)
    assert cv2.imread(str(tmp_path / "tiny.png")).shape == (3 * 32, image_model.SHEET * 32, 3)
    shard = folder / "heads-000001.npz"
    shard.write_bytes(shard.read_bytes()[:5000])
    words = "pretrain.image_model", folder, "-o", tmp_path / "b.pt", *TINY
    assert_refused(run(*words), "heads-000001.npz is no file of rendered heads")
    (folder / "heads-000002.npz").unlink()
    shard.unlink()
    assert_refused(run(*words), "1 files of rendered heads")


def test_image_model_of_own_footage_has_one_actor(tmp_path, clip):
    result = run("pretrain.image_model", clip, "-o", tmp_path / "own.pt", *TINY)
    model = models.load_image_model(tmp_path / "own.pt")
    assert not model.has_actors and model.L == 8
    quality = torch.load(tmp_path / "own.pt", weights_only=True)["opts"]["quality"]
    for name in ("every_10th", "last_10th"):
        part = quality[name]
        assert part["psnr"] > 5 and part["sharpness"] > 0 and set(image_model.MEASURES) < set(part)
        assert_done(result, f"Held out, {name.replace('_', ' ')} (7 frames): {part['psnr']:.2f} dB")


def test_own_footage_resumes_exactly_where_the_critic_trains(tmp_path, monkeypatch):
    def noise_crops(paths, size, align, file):                                  # 40 frames without a face
        file.write_bytes(np.random.RandomState(0).randint(0, 256, 40 * size * size * 3, np.uint8).tobytes())
        return [40], np.full((40, 68, 2), np.nan, np.float32)

    def training(name, resume=False, size=32):
        image_model.main(argparse.Namespace(
            source=["v.mp4"], output=str(tmp_path / f"{name}.pt"), align="none", size=size, steps=6, batch=4,
            precision="fp32", workers=0, every=10, resume=resume, seed=0, device="cpu", argv=[]))

    loss, calls = image_model.picture_loss, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:                                                    # the second step of the critic
            signal.raise_signal(signal.SIGINT)
        return loss(*args)

    for name, value in (("video_crops", noise_crops), ("CRITIC_FROM", 0.5), ("R1_EVERY", 2)):
        monkeypatch.setattr(image_model, name, value)
    training("whole")
    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt, match="step 5 of 6"):
        during.setattr(image_model, "picture_loss", interrupted)
        training("parts")
    training("parts", True)
    a, b = (state_of(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    for part in ("net", "ema", "critic", "optimiser", "critic_optimiser"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert a["critic_optimiser"]["state"][0]["step"] == 3                       # steps 3, 4, 5 of 0 to 5
    quality = torch.load(tmp_path / "whole.pt", weights_only=True)["opts"]["quality"]
    assert quality["last_10th"]["sharpness"] > 0                                # of whole frames
    for size, words in ((32, "parts.pt is finished, all 6 steps"), (64, "size 32, not 64")):
        assert_raises(words, training, "parts", True, size)


def test_pictures_and_their_weights_move_together_and_a_little():
    x = sine_images(3, 8, 64)
    both = image_model.jitter(torch.cat([x, x[:, :1]], 1), torch.Generator().manual_seed(0))
    assert 0 < (both[:, :3] - x).abs().mean() < 0.3 and torch.equal(both[:, 3], both[:, 0])


def test_held_out_frames_are_every_tenth_and_the_last_tenth_of_each_video():
    trained, tenth, last = image_model.split_frames([40, 25])
    assert tenth.tolist() == [5, 15, 25, 35, 45, 55] and last.tolist() == [36, 37, 38, 39, 63, 64]
    assert sorted([*trained, *tenth, *last]) == list(range(65)) and len(trained) == 53


def test_weights_of_the_picture_loss_follow_the_landmarks():
    points = a_face(36, 0, (60, 50))
    weight = image_model.parts_map(points, 128)[0]
    assert weight.shape == (128, 128) and abs(weight.mean() - 1) < 1e-5
    for part in image_model.PARTS:
        x, y = ((points[part].min(0) + points[part].max(0)) / 2).round().astype(int)
        assert abs(weight[y, x] / weight[0, 0] - image_model.PART_WEIGHT[1]) < 1e-3
    points[7] = np.nan                                                          # no face: all alike
    assert torch.equal(image_model.parts_map(points, 128), torch.ones(1, 128, 128))


def test_the_critic_of_pictures():
    """R1 is half the squared slope; it sees a face from brows to chin, and how much pictures differ."""
    a = torch.randn(3, 8, 8)
    penalty = image_model.r1_penalty(lambda x: (x * a).sum((1, 2, 3)), torch.randn(5, 3, 8, 8))
    assert torch.allclose(penalty, a.square().sum() / 2)
    x = torch.arange(128.0).expand(1, 3, 128, 128)                              # every pixel is its column
    assert image_model.view(x, image_model.VIEW)[0, 0, 0].tolist() == list(range(32, 96))
    assert image_model.view(x.mT, image_model.VIEW)[0, 0, :, 0].tolist() == list(range(46, 110))
    torch.manual_seed(0)
    critic, x = image_model.Critic(32), torch.randn(4, 3, 32, 32)
    same = critic(x[:1].expand(4, -1, -1, -1))
    assert same.shape == (4,) and torch.allclose(same, critic(x[:1]).expand(4), atol=1e-4)
    assert (critic(x)[0] - same[0]).abs() > 1e-4


def test_sharpness_is_the_share_of_squared_contrast():
    a = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 1), np.uint8).repeat(3, 3) // 2 * 2
    inside = np.zeros((2, 32, 32))
    inside[:, 8:24, 8:24] = 1
    b = a.copy()
    b[:, 6:26, 6:26] = a[:, 6:26, 6:26] // 2
    assert image_model.sharpness(a, a, inside) == 1 and abs(image_model.sharpness(a, b, inside) - 0.25) < 1e-9
    assert abs(image_model.sharpness(a, b, 1 - inside) - 0.25) > 0.2


# ------------------------------------------------------------------------------------------------------------
# embed.py
# ------------------------------------------------------------------------------------------------------------

def test_embed_makes_codes_of_a_video(embedded):
    path, printed = embedded
    codes, meta = np.load(path), json.loads(path.with_suffix(".json").read_text())
    rows = meta["frames"]
    assert codes.shape == (75, 12, 128) and codes.dtype == np.float32 and np.isfinite(codes).all()
    assert meta["fps"] == 25 and meta["model"]["name"] == "faces128" and meta["psnr"] > 20
    assert [(f["index"], f["time"], f["clip"]) for f in rows] == [(k, k / 25, 0) for k in range(75)]
    assert "--model ffhq" in printed and str(path) in printed and not [*path.parent.glob("*.part")]
    assert sum("psnr" in f for f in rows) == 12
    assert cv2.imread(str(path.with_suffix(".png"))).shape == (2 * 128, 12 * 128, 3)


def test_the_crop_lies_where_the_eyes_are():
    """Of the photo, whose eye corners were read off by hand; how it moves with them is studies/crop.py's."""
    a, b, c, d = np.array([(192.8, 100.6), (212.6, 103.2), (236.3, 104.6), (257.5, 104.0)])
    E, e = (a + b + c + d) / 4, (c + d - a - b) / 2
    quad = embed.survey(PHOTO)["frames"]["quad"][0]
    x, side = quad[3] - quad[0], np.linalg.norm(quad[3] - quad[0])
    assert np.linalg.norm(quad.mean(0) - E - 0.11 * np.array([-e[1], e[0]])) < 0.01 * side
    assert side == pytest.approx(4 * np.linalg.norm(e), rel=0.06)
    assert abs(np.arctan2(x[1], x[0]) - np.arctan2(e[1], e[0])) < 0.02


# Videos whose frames tell their numbers: frame k is a grey of 20 + 5 k, with a white corner at the top left
# and a black one at the top right

def counting(n, height=64, width=96):
    frames = np.zeros((n, height, width, 3), np.uint8) + np.arange(20, 20 + 5 * n, 5)[:, None, None, None]
    side = 3 * height // 8
    frames[:, :side, :side], frames[:, :side, -side:] = 255, 0
    return frames.astype(np.uint8)


def number_in(frame):
    """Of a frame the right way up, None of any other."""
    gray = frame if frame.ndim == 2 else frame.mean(2)
    h, w = gray.shape
    middle = gray[int(0.45 * h):int(0.9 * h), int(0.3 * w):int(0.7 * w)].mean()
    corners = [gray[y:y + h // 8, x:x + w // 8].mean() for y, x in ((4, 4), (4, w - 4 - w // 8), (h - 16, 8))]
    right = corners[0] > 225 and corners[1] < 30 and abs(corners[2] - middle) < 8
    return round((middle - 20) / 5) if right else None


def add_track(out, codec="libx264", rate=25, size=(96, 64), pix_fmt="yuv420p", options=None):
    stream = out.add_stream(codec, rate=rate, options=options)
    (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
    return stream


def add_frames(out, stream, frames, pts=None):
    for k, frame in enumerate(frames):
        if isinstance(frame, np.ndarray):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if pts is not None:
            frame.pts, frame.time_base = int(pts[k]), Fraction(1, 1000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def mux(path, frames, rate=25, pts=None, codec="libx264", pix_fmt="yuv420p", options=None, matrix=None, **to):
    """A video by PyAV. pts: time stamps in ms, else the encoder's. matrix: a, b, c, d of the display's."""
    with av.open(str(path), "w", **to) as out:
        options = {"crf": "10", "g": "10"} if options is None else options
        stream = add_track(out, codec, rate, frames.shape[2:0:-1], pix_fmt, options)
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if matrix:
            a, b, c, d = (v << 16 for v in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        add_frames(out, stream, frames, pts)
    return path


def looked_at(path):
    """embed.survey() of such a video: what it says, the numbers of the frames that make codes, the clips."""
    found = embed.survey(path, "none")
    shown = [number_in(frame) for frame in embed.read_video(path)]
    assert len(shown) == found["decoded"]
    return found, [shown[k] for k in found["frames"]["index"]], found["frames"]["clip"].tolist()


def joined(path, first, second):
    """Two recordings in one file: its time stamps start again, and maybe in another size."""
    parts = [mux(path.with_suffix(f".{k}"), x, format="mpegts") for k, x in enumerate((first, second))]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def trimmed(path, n):
    """Without encoding anew: an edit list hides the first 10 frames."""
    frames = np.concatenate([counting(10), counting(n)])
    whole = mux(path.with_name("whole.mp4"), frames, options={"crf": "10"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                late = round(10 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - late, packet.dts - late, copy
                out.mux(packet)


MS = 40 * np.arange(20)
GONE = [5, 6, 12]


@pytest.mark.parametrize("name, make, fps, read, cuts, note", (
    ("good.mp4", lambda path, x: mux(path, x), 25, {}, (), ""),
    ("1000.mkv", lambda path, x: mux(path, x, 1000, MS), 25, {"seconds_shown": 0.76}, (), ""),
    ("90000.mkv", lambda path, x: mux(path, x, 90000, MS), 25, {"seconds_shown": 0.76}, (), ""),
    ("paused.mkv", lambda path, x: mux(path, x, pts=MS + 20000 * (MS >= 400)), 25,
     {"jumps": 1, "seconds_shown": 20.8}, (10,), "stamps jump 1 times"),
    ("again.ts", lambda path, x: joined(path, x[:10], counting(20, 128, 192)[10:]), 25,
     {"jumps": 1, "seconds_shown": 0.4}, (10,), "stamps jump 1 times"),
    ("variable.mkv", lambda path, x: mux(path, np.delete(x, GONE, 0), pts=np.delete(MS, GONE)), 25,
     {"decoded": 17, "shown": 17, "repeated": 3}, (), "resampled to a constant 25.000"),
    ("raw.h264", lambda path, x: mux(path, x, rate=30, format="h264"), 30,
     {"seconds": 2 / 3, "seconds_shown": None}, (), "no time stamps"),
    ("trimmed.mp4", lambda path, x: trimmed(path, 20), 25, {}, (), "")))
def test_time_is_that_of_the_frames(tmp_path, name, make, fps, read, cuts, note):
    """20 frames, whatever the header says; the line adds up; a note only where something is to be told."""
    make(tmp_path / name, counting(20))
    found, shown, clips = looked_at(tmp_path / name)
    wanted = {"codes": 20, "decoded": 20, "shown": 20, "seconds": 0.8, "seconds_shown": 0.8, "repeated": 0,
              "jumps": 0, "undecodable": 0, "clips": 1 + len(cuts), "fps": fps, **read}
    for key, value in wanted.items():
        got = found["read"][key]
        assert got is value is None or got == pytest.approx(value, rel=1e-3, abs=0.021), (key, got, value)
    assert all(abs(a - b) <= (name == "variable.mkv") for a, b in zip(shown, range(20), strict=True))
    assert clips == [sum(k >= cut for cut in cuts) for k in range(20)]
    assert note in " ".join(found["notes"]) and len(found["notes"]) == bool(note)
    late = 20 if name == "paused.mkv" else 0
    if name not in ("again.ts", "variable.mkv"):
        assert found["frames"]["time"] == pytest.approx(np.arange(20) / fps + late * (np.arange(20) >= 10))


@pytest.mark.parametrize("suffix", (".mkv", ".mp4"))
@pytest.mark.parametrize("extra", ("cover", "preview"))
def test_the_stream_is_the_one_that_a_player_shows(tmp_path, suffix, extra):
    """A cover picture, or a small preview track, stands before it."""
    cover, kinds = extra == "cover", av.stream.Disposition
    with av.open(str(tmp_path / f"v{suffix}"), "w") as out:
        first = add_track(out, *(("mjpeg", 25, (32, 32), "yuvj420p") if cover else ("libx264", 25, (32, 32))))
        second = add_track(out, options={"crf": "10"})
        second.disposition = kinds.default
        first.disposition = kinds.attached_pic if cover and suffix == ".mp4" else 0
        add_frames(out, first, counting(1 if cover else 9, 32, 32))
        add_frames(out, second, counting(9))
    found, shown, _ = looked_at(tmp_path / f"v{suffix}")
    assert shown == list(range(9)) and found["notes"] == [] and found["read"]["shown"] == 9


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
                         + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)])
def test_pictures_are_the_right_way_up(tmp_path, matrix):
    """Stored so that the whole display matrix, turned and mirrored, shows them so."""
    a, b, c, d = matrix
    stored = counting(3)                                # the picture at x, y is shown at a x + c y, b x + d y
    if not a:
        stored, a, d = stored[:, ::b, ::c].swapaxes(1, 2), 1, 1
    video = mux(tmp_path / "v.mp4", stored[:, ::d, ::a], matrix=matrix)
    assert looked_at(video)[1] == [0, 1, 2] and next(embed.read_video(video, "gray")).shape == (64, 96)


@pytest.mark.parametrize("turns, word", ((1, "on their side"), (2, "upside down"), (3, "on their side")))
def test_heads_that_are_not_upright_are_refused(tmp_path, turns, word):
    photo = np.rot90(embed.read_picture(PHOTO), turns)
    PIL.Image.fromarray(photo).save(tmp_path / "photo.png")
    video = write_video(tmp_path / "v.mp4", [np.ascontiguousarray(photo)] * 3)
    assert_raises(f"heads (are|lie) {word}", embed.survey, video)
    assert_raises(f"heads (are|lie) {word}", embed.align_photo, tmp_path / "photo.png", 64)


@pytest.mark.parametrize("where", ("middle", "rest", "end"))
def test_of_a_damaged_video_all_that_can_be_read_is_read(tmp_path, where):
    rng, path = np.random.RandomState(0), tmp_path / "v.mp4"
    frames = np.concatenate([counting(40), rng.randint(0, 255, (40, 64, 96, 3), np.uint8)], 1)  # to be hit
    if where == "end":
        data = write_video(path, frames).read_bytes()
        data = data[:len(data) // 2]                    # its index is in front
    elif where == "rest":
        data = write_video(path, frames).read_bytes()
        data = data[:len(data) // 2] + rng.bytes(len(data) // 2)
    else:
        data = bytearray(mux(path, frames, options={"crf": "20", "g": "5"}).read_bytes())
        data[len(data) // 2:len(data) // 2 + 12000] = rng.bytes(12000)
    path.write_bytes(data)
    found = embed.survey(path, "none")
    shown = [number_in(frame[:64]) for frame in embed.read_video(path)]
    read, clips = found["read"], found["frames"]["clip"]
    assert read["decoded"] == len(shown) < 40 == read["shown"] and shown[:10] == list(range(10))
    assert len(found["notes"]) == 1 and "does not add up" in found["notes"][0]
    lost = range(2) if where == "end" else range(1, 40)     # half a file may end within a frame
    assert read["decoded"] + read["undecodable"] <= 40 and read["undecodable"] in lost
    if where == "middle":                               # after the gap a new clip, to the end
        assert read["undecodable"] > 0 and read["decoded"] + read["undecodable"] == 40 and shown[-1] == 39
        assert np.flatnonzero(np.diff(clips))[0] == np.flatnonzero(np.diff(shown) > 1)[0]
    with pytest.raises(InputError, match="changed while it was read"):
        list(embed.crops(path, [{"index": 40, "clip": 0, "quad": np.zeros((4, 2))}], 32))


@pytest.mark.parametrize("mode", ("RGB", "LA", "P", "L", "I;16", "RGBA", "CMYK"))
def test_pictures_are_read_as_they_are_shown(tmp_path, mode):
    """Turned by EXIF and transparent at once, palette, grey, CMYK; a JPEG in a PNG's name."""
    upright, path = counting(4)[3], tmp_path / "x.png"
    if mode == "RGBA":
        upright = np.dstack([upright, np.full((64, 96), 255, np.uint8)])
        upright[30:, 40:60, :] = 255, 0, 0, 0           # a red that nobody is to see
    turned = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 2: upright[:, ::-1]}
    for turn, stored in turned.items():
        image, tags = PIL.Image.fromarray(np.ascontiguousarray(stored)), PIL.Image.Exif()
        tags[0x112] = turn
        if mode == "I;16":
            image = PIL.Image.fromarray(np.array(image.convert("L"), np.uint16) * 257)
        else:
            image = image.quantize(16) if mode == "P" else image.convert(mode)
        image.save(path, "jpeg" if mode == "CMYK" else "png", exif=tags)
        read = embed.read_picture(path).astype(int)
        assert read.shape == (64, 96, 3) and read[4:20, 4:20].min() > 240, turn
        assert np.abs(read[50:, 65:] - 35).mean() < 6
        assert mode != "RGBA" or np.abs(read[34:, 44:56] - 128).max() <= 1
        assert np.array_equal(next(embed.read_video(shutil.copy(path, tmp_path / "pipe"))), read)
        assert next(embed.read_video(shutil.copy(path, tmp_path / "x.mp4"))).shape == (64, 96, 3)
    path.write_bytes(b"\x89PNG")
    assert_raises("x.png", embed.read_picture, path)


@pytest.mark.parametrize("kind", ("PNG", "WEBP", "GIF", "AVIF"))
def test_animated_pictures_are_videos(tmp_path, kind):
    first, *others = [PIL.Image.fromarray(frame) for frame in counting(8)]
    path, quality = tmp_path / f"v.{kind.lower()}", {} if kind in "PNGIF" else {"quality": 95}
    first.save(path, kind, save_all=True, append_images=others, duration=50, **quality)
    found, shown, _ = looked_at(path)
    assert shown == list(range(8)) and found["fps"] == pytest.approx(20, rel=1e-2) and found["notes"] == []
    assert found["read"]["seconds"] == pytest.approx(0.4, rel=0.02)


def test_a_folder_is_read_in_natural_order_and_tells_what_it_leaves_out(tmp_path):
    folder = tmp_path / "①"
    folder.mkdir()
    for k, name in enumerate(("1.png", "①2.png", "a9.png", "a10.PNG", "b.jpg")):
        PIL.Image.fromarray(counting(5)[k]).save(folder / name)
    for name in ("notes.txt", "clip.mp4", ".DS_Store", "Thumbs.db", "._a9.png"):
        (folder / name).write_bytes(b"x")
    found, shown, _ = looked_at(folder)
    assert shown == [0, 2, 3, 4, 1] and found["fps"] == 25          # ① is a letter that counts as a digit
    assert found["notes"] == ["holds 2 files that are no pictures and are left out: clip.mp4, notes.txt"]
    slow = embed.survey(folder, "none", fps=10)
    assert slow["fps"] == 10 and slow["frames"]["time"].tolist() == [0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("codec, pix_fmt, suffix", (
    ("libx264", "yuv444p10le", ".mkv"), ("libx264", "yuvj420p", ".mp4"), ("libvpx-vp9", "yuv420p", ".webm"),
    ("mjpeg", "yuvj420p", ".avi"), ("prores_ks", "yuva444p10le", ".mov"), ("ffv1", "bgr0", ".mkv")))
def test_codecs_and_pixels(tmp_path, codec, pix_fmt, suffix):
    video = mux(tmp_path / f"v{suffix}", counting(6), codec=codec, pix_fmt=pix_fmt, options={})
    found, shown, _ = looked_at(video)
    assert shown == list(range(6)) and found["fps"] == 25 and found["notes"] == []


@pytest.mark.parametrize("height, space", ((480, "ITU601"), (720, "ITU709")))
def test_a_video_that_names_no_colours_is_read_as_players_do(tmp_path, height, space):
    """Red, stored by BT.709 from 720 lines on and by BT.601 below, comes back red."""
    red = np.zeros((height, 64, 3), np.uint8) + np.array([220, 0, 0], np.uint8)
    frame = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv420p", dst_colorspace=space)
    frame.colorspace = 2
    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        add_frames(out, add_track(out, size=(64, height), options={"crf": "4"}), [frame])
    assert np.abs(next(embed.read_video(tmp_path / "v.mp4")).astype(int) - (220, 0, 0)).max() <= 4


def test_names_and_pipes(tmp_path):
    """A colon, percent signs and quotes in names, a dash in front, standard input: the same codes."""
    video, codes = mux(tmp_path / "plain.mp4", counting(5)), []
    for name in ("2024-11-14T22:57:44.mp4", "100 % “%03d”.mp4", "-"):
        shutil.copy(video, tmp_path / name)
        result = run("embed.py", name, "-o", f"x{name}:.npy", "--align", "none", "--batch", 4, cwd=tmp_path,
                     stdin=video.read_bytes() if name == "-" else None)
        assert_done(result, "5 codes from 5 of 5 frames")
        meta = json.loads((tmp_path / f"x{name}:.json").read_text())
        assert meta["source"] == [meta["read"][0]["source"]] == [name] and meta["read"][0]["codes"] == 5
        codes.append(np.load(tmp_path / f"x{name}:.npy"))
    assert np.array_equal(codes[0], codes[1]) and np.array_equal(codes[0], codes[2])
    assert_refused(run("embed.py", "-", stdin=b"", cwd=tmp_path), "- is empty")


def test_embed_goes_on_after_kill_and_interruption(tmp_path, clip):
    """Killed, gone on with, stopped by Ctrl-C, gone on with: the files are those of an undisturbed run."""
    assert_done(run("embed.py", clip, "--batch", 4, "-o", tmp_path / "whole.npy"))
    words = "embed.py", clip, "--batch", 4, "-o", tmp_path / "x.npy", "--resume"

    def done():
        with contextlib.suppress(IndexError, ValueError):
            part = np.load(list(tmp_path.glob(".x.npy.*.part"))[0], mmap_mode="r")
            return int(np.isfinite(part).all((1, 2)).sum())
        return 0

    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        process, before = begin(*words), done()
        wait(process, lambda before=before: done() >= before + 8)               # two new batches
        process.send_signal(number)
        said = process.communicate()[1].decode()
        assert process.returncode == status and not (tmp_path / "x.npy").exists()
        assert ("starting anew" in said) == (number == signal.SIGKILL)
    assert "go on with --resume" in said and 8 < done() < 75
    assert_done(run(*words))
    for suffix in ("npy", "json", "png"):
        assert (tmp_path / f"x.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not [*tmp_path.glob("*.part")]


def test_a_full_disk_is_one_sentence(tmp_path, call):
    mux(tmp_path / "v.mp4", counting(20))
    with full_disk():
        status, said = call("embed.py v.mp4 --align none")
    assert status == 2 and re.search("latents.npy.* cannot be written .*make room", said)
    assert os.listdir(tmp_path) == ["v.mp4"]


@pytest.mark.parametrize("stamps, guess, fps, rate, shown", (
    (np.round(np.arange(300) * 1001 / 30000 + 0.5, 3), 25, None, 29.97, range(300)),        # Matroska's ms
    (np.arange(10) / 25, 25, 50, 50, np.repeat(np.arange(10), 2)[:19]),
    (np.arange(10) / 25, 25, 12.5, 12.5, [0, 2, 4, 6, 8]),
    (np.array([0, 1, 2, 3, 6, 7, 8, 9]) / 25, 25, None, 25, [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]),    # two missing
    (np.delete(np.arange(9), 3) * 0.033, 30, None, 30, [0, 1, 2, 3, 3, 4, 5, 6]),       # by its stamps 30.303
    ([0.2], 25, 30, 30, [0]), ([0, 0], 25, None, 25, [0, 1]), ([None] * 3, 25, None, 25, [0, 1, 2]),
    ([0, 0.04, None, 0.12, 0.16], 25, None, 25, range(5)),
    ([*np.arange(5) / 25, *np.arange(5) / 25, *(np.arange(5) / 25 + 99)], 25, None, 25, range(15))))
def test_timeline_keeps_constant_rates_and_resamples_others(stamps, guess, fps, rate, shown):
    got, grid, *_ = embed.timeline(stamps, guess, fps)
    assert got == pytest.approx(rate, rel=1e-3) and grid.tolist() == list(shown)


def a_face(distance=40.0, angle=0.0, E=(100.0, 80.0)):
    """68 points of a made-up face: eyes `distance` apart at E, each 0.3 distances wide, the rest below."""
    points = np.random.RandomState(0).uniform(-0.8, 0.8, (68, 2)) + (0, 0.6)
    points[[36, 39, 42, 45]] = [(-0.65, 0), (-0.35, 0), (0.35, 0), (0.65, 0)]
    points[[37, 38, 40, 41]] = [(-0.55, -0.06), (-0.45, -0.06), (-0.45, 0.06), (-0.55, 0.06)]
    points[[43, 44, 46, 47]] = [(0.45, -0.03), (0.55, -0.03), (0.55, 0.03), (0.45, 0.03)]
    points[30], points[62], points[66] = (0.2, 0.5), (0, 0.9), (0, 1.15)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.array(E) + distance * points @ turn


@pytest.mark.parametrize("angle", (0.0, 0.5, -2.0))
def test_crop_quad_and_measures_of_a_made_up_face(angle):
    points = a_face(40, angle)
    E, e = embed.eyes(points)
    top_left, bottom_left, bottom_right, top_right = embed.smooth_quads(points[None])[0]
    x, y = top_right - top_left, bottom_left - top_left
    assert np.linalg.norm(x) == pytest.approx(160) and x[0] * y[1] - x[1] * y[0] == pytest.approx(160 ** 2)
    assert np.allclose(bottom_right, top_right + y)
    place = np.array([(E + s * e / 2 - top_left) @ np.stack([x, y], 1) / 160 ** 2 for s in (-1, 1)])
    assert np.allclose(place, [(0.375, 0.5 - 0.11 / 4), (0.625, 0.5 - 0.11 / 4)])
    measures = {"mouth_opening": 0.25, "eye_opening": (0.12 / 0.3 + 0.06 / 0.3) / 2, "yaw": 0.2}
    found = evaluate.face_measures(points)
    assert {name: found[name] for name in measures} == pytest.approx(measures)


def test_warp_is_a_similarity_antialiased_and_even_within_a_clip(tmp_path):
    y, x = np.mgrid[:200, :300]
    ramp = np.stack([x % 256, y, 0 * x], -1).astype(np.uint8)
    quad = np.array([[20, 30], [20, 130], [120, 130], [120, 30]], float) - 0.5  # 100 px, on pixel edges
    assert np.abs(embed.warp(ramp, quad, 50)[10, :, 0] - (20.5 + 2 * np.arange(50))).max() <= 1
    checker = ((x + y) % 2 * 255).astype(np.uint8)
    assert np.abs(embed.warp(checker, quad, 25)[2:-2, 2:-2].astype(int) - 127).max() <= 3
    # A head comes nearer; the sampling of all its frames is that of the last, 3 times, of the first alone 2
    noise = np.random.RandomState(0).randint(0, 256, (300, 300, 3), np.uint8)
    quads = [embed.square(np.array([150.0, 150]), np.array([side / 2, 0])) for side in (127, 129)]
    for k in range(2):
        PIL.Image.fromarray(noise).save(tmp_path / f"{k}.png")
    frames = [{"index": k, "clip": 0, "quad": quads[k]} for k in range(2)]
    crops, (first,) = list(embed.crops(tmp_path, frames, 64)), embed.crops(tmp_path, frames[:1], 64, frames)
    assert np.array_equal(crops[0], embed.warp(noise, quads[0], 64, 3)) and np.array_equal(first, crops[0])
    assert np.array_equal(crops[1], embed.warp(noise, quads[1], 64)) and embed.oversampling(quads[0], 64) == 2


def test_low_pass_keeps_slow_motion_and_quiets_noise_as_theory_says():
    assert np.allclose(embed.low_pass(np.full((7, 2), 3.0), 10), 3)             # the kernel is longer than x
    assert np.allclose(embed.low_pass(np.arange(50.0), 5), np.arange(50))       # motion goes on at the ends
    noise, t = np.random.RandomState(0).standard_normal(20000), np.arange(2000)
    # 2 g - g * g, and g * g is a Gaussian of sqrt(2) sigma: integral of its square
    power = (2 - 4 / 6 ** 0.5 + 1 / 8 ** 0.5) / np.sqrt(np.pi) / 5
    assert embed.low_pass(noise, 5).std() == pytest.approx(power ** 0.5, rel=0.03)
    for period, sigma in ((50, 5), (20, 5), (12, 3)):
        g = np.exp(-2 * (np.pi * sigma / period) ** 2)  # what the Gaussian alone leaves of this wave
        wave = np.sin(2 * np.pi * t / period)
        assert np.abs(embed.low_pass(wave, sigma) - (1 - (1 - g) ** 2) * wave)[100:-100].max() < 0.01


def test_split_clips_at_cuts_long_gaps_and_leaps():
    def clips(change=lambda points, cuts: None, fps=25):
        points, cuts = np.stack([a_face()] * 60), np.zeros(60, bool)
        change(points, cuts)
        return embed.split_clips(points, cuts, fps)

    def gap(start, end):
        return lambda points, cuts: points.__setitem__(slice(start, end), np.nan)

    def leap(px):
        return lambda points, cuts: points[40:].__iadd__(px)

    assert clips() == [(0, 60)] and clips(gap(20, 28)) == [(0, 60)] and clips(gap(0, 60)) == []
    assert clips(gap(20, 29)) == [(0, 20), (29, 60)] and clips(gap(0, 5)) == [(5, 60)]
    assert clips(lambda points, cuts: cuts.__setitem__(30, True)) == [(0, 30), (30, 60)]
    assert clips(leap(25)) == [(0, 40), (40, 60)] and clips(leap(10)) == [(0, 60)]      # 35 px > 0.5 x 40
    # The same in seconds at other rates
    assert clips(gap(20, 39), 60) == [(0, 60)] and clips(gap(20, 40), 60) == [(0, 20), (40, 60)]
    assert clips(leap(10), 60) == [(0, 40), (40, 60)]                           # 14 px > 12.5 / 60 x 40
    assert clips(leap(20), 15) == [(0, 60)] and clips(leap(5), 1000) == [(0, 60)]       # landmarks' noise
    assert clips(lambda points, cuts: points.__setitem__(slice(40, 60), a_face(70))) == [(0, 40), (40, 60)]


@pytest.mark.parametrize("light", (1.0, 0.15, 0.05))
def test_cuts_are_seen_in_any_light(light):
    """And a flash, something that passes before the camera, and a fast pan are none."""
    rng, tracker, pan = np.random.RandomState(0), embed.FaceTracker(), embed.FaceTracker()
    photo = crop_study.moved(embed.read_picture(PHOTO), "talk", 20, 25, noise=0)[0]
    frames = [frame.mean(2) for frame in (*demo(20, 192), *photo[:, ::2, ::2][:, :192, 32:224])]
    for k in (5, 23):
        frames[k] = 2 * frames[k] + 170
    for k in range(11, 16) if light == 1 else ():       # in the dark it would be as noisy as the head
        frames[k][:] = 40 * (k - 10)
    for frame in frames:
        tracker.is_cut(np.clip(light * frame + rng.standard_normal(frame.shape), 0, 255).astype(np.uint8))
    assert tracker.cuts == [20]
    wide = cv2.resize(rng.randint(0, 256, (32, 400), np.uint8), (3200, 256), interpolation=cv2.INTER_CUBIC)
    for x in [0] * 25 + [20 * k for k in range(1, 40)]:     # half of the thumbnail's detail per frame
        pan.is_cut(wide[:, x:x + 256])
    assert len(pan.cuts) <= 1


@pytest.mark.parametrize("light, haze", ((0.08, 0), (0.15, 100)))
def test_landmarks_are_found_in_the_dark_and_in_fog(light, haze):
    rng, frame = np.random.RandomState(0), demo(1, 256)[0].mean(2).astype(np.uint8)
    points = embed.landmarks(frame)
    quad = embed.face_quad(points)
    dark = np.clip(light * frame + haze + rng.standard_normal(frame.shape), 0, 255).round().astype(np.uint8)
    away = np.linalg.norm(embed.fit(dark, quad)[0] - embed.fit(frame, quad)[0], axis=1)
    assert away.mean() < 0.05 * np.linalg.norm(embed.eyes(points)[1]), away.mean()


def test_half_a_face_is_none():
    """The head slides out of the picture: it counts until an eye corner or much of the face is gone."""
    frame = cv2.cvtColor(demo(1, 256)[0], cv2.COLOR_RGB2GRAY)
    points, tracker = embed.landmarks(frame), embed.FaceTracker()
    corner, mouth, nose = points[36, 0], points[62, 1], int(points[30, 0])
    assert embed.whole(points, frame) and embed.whole(points - (corner - 3, 0), frame)
    assert not embed.whole(points - (corner + 2, 0), frame)
    assert not embed.whole(points + (0, 256 - mouth), frame)
    assert tracker.step(frame) is not None
    assert all(tracker.step(np.ascontiguousarray(frame[:, nose:])) is None for _ in range(3))


@pytest.fixture(scope="session")
def two_heads(tmp_path_factory):
    """A picture of two heads: that of the photo, and the demo's, which is larger."""
    path = tmp_path_factory.mktemp("two") / "both.png"
    PIL.Image.fromarray(np.hstack([embed.read_picture(PHOTO), *demo(1, 512)])).save(path)
    return path


def test_align_photo_crops_the_face_that_is_asked_for(two_heads, tmp_path):
    """Of two heads the larger one; a patch of cloth, which dlib gives a score of 0.00, is none."""
    photo = two_heads
    crop, count = embed.align_photo(photo, 128)
    E, e = embed.eyes(embed.landmarks(crop))
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8 and count == 2
    assert np.linalg.norm(e) == pytest.approx(32, rel=0.05) and abs(np.arctan2(e[1], e[0])) < 0.03
    assert np.allclose(E, (63.5, 63.5 - 0.11 * 32), atol=1.5)
    pictures = crop, embed.align_photo(photo, 128, face=2)[0], embed.align_photo(PHOTO, 128)[0]
    one, two, three = (evaluate.descriptor(x, embed.landmarks(x)) for x in pictures)
    assert np.linalg.norm(two - three) < 0.7 * np.linalg.norm(one - two)        # and people are told apart
    assert_raises("--face 3, but it shows 2", embed.align_photo, photo, 128, face=3)
    assert embed.align_photo(PHOTO, 64)[1] == 1
    PIL.Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    assert_raises("grey.png: no face found", embed.align_photo, tmp_path / "grey.png", 128)


# studies/crop.py

def test_hard_videos_know_what_is_right():
    """Of every case: a survey that finds what is there passes, a wrong one does not."""
    rng, n, S, clips = np.random.RandomState(0), 80, 64, {}
    A, B = rng.randint(0, 256, (2, n, S, S, 3), np.uint8)
    Qa, Qb = (embed.square(rng.uniform(25, 38, (n, 2)), np.array([24.0, 0])) for _ in range(2))
    for wanted in crop_study.cases(A, Qa, B, Qb, Fraction(25)):
        right = clips[wanted["name"]] = crop_study.expected_clips(wanted)
        index = np.concatenate([np.arange(a, b + 1) for a, b in right])
        if "pts" in wanted["writing"]:                  # every missing frame is shown by the one before
            times = wanted["writing"]["pts"]
            index = np.searchsorted(times, np.arange(times[-1] + 1), side="right") - 1
        rows = np.zeros(len(index), embed.FRAME)
        rows["index"], rows["quad"] = index, wanted["quads"][index]
        rows["clip"] = np.searchsorted([a for a, _ in right], index, side="right") - 1
        found = {"fps": float(wanted["fps"]), "frames": rows, "decoded": len(wanted["frames"]),
                 "found": wanted["seen"].sum(), "cuts": len(wanted["cuts"])}
        line, same, error, ok = crop_study.judge(wanted, found)
        assert ok and line == same and error == 0, (wanted["name"], line, same)
        moved, split = rows.copy(), rows.copy()
        side = np.linalg.norm(rows["quad"][:, 3] - rows["quad"][:, 0], axis=1)
        moved["quad"][..., 1] += 7 * side[:, None] / 256
        split["clip"][len(rows) // 3:] += 1
        for wrong in ({"frames": moved}, {"frames": split}, {"fps": found["fps"] * 1.01},
                      {"found": found["found"] - n // 3}, {"frames": rows[2 * wanted["slack"] + 1:]}):
            assert not crop_study.judge(wanted, {**found, **wrong})[-1], (wanted["name"], wrong.keys())
    assert clips["hard cuts"] == [(0, 19), (20, 39), (40, 59), (60, 79)] and len(clips) == 31
    assert clips["2 s with the face covered"] == clips["2 s of an empty picture"] == [(0, 14), (65, 79)]


def test_the_study_of_the_crop():
    """The small command: the filters help, the error is below a pixel of 256, the hard videos are right."""
    result = run("studies.crop")
    lines = result.stdout.decode().splitlines()
    assert result.returncode == 0 and lines[-1] == "5 of 5 right", (lines, result.stderr.decode())
    talk = next(line for line in lines if line.startswith("| talk"))
    means = [float(cell.split("/")[0]) for cell in talk.split("|")[3:-1]]       # all filters, none, ...
    assert means[0] < 0.9 and means[0] < means[1]


# ------------------------------------------------------------------------------------------------------------
# train.py
# ------------------------------------------------------------------------------------------------------------

SMALL = ("--window", 6, "--batch", 8, "--threads", 1)


def options(*words):
    """Options as the command line gives them."""
    args = train.options_parser().parse_args(["none.npy", *map(str, words)])
    train.settle(args)
    return args


def trained(path, output, *words):
    """train.py in this process -> the motion model."""
    train.main(train.options_parser().parse_args([str(path), "-o", str(output), *map(str, words)]))
    return torch.load(output, weights_only=True)


def state_of(output):
    return torch.load(output.with_suffix(".state.pt"), weights_only=True)


def retold(codes, folder, **changes):
    """A copy of the codes whose .json has other entries."""
    path = folder / f"copy{len(list(folder.iterdir()))}.npy"
    path.write_bytes(codes.read_bytes())
    facts = json.loads(codes.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, **changes}))
    return path


@pytest.fixture
def quick_reports(monkeypatch):
    for name, value in {"SHORT": 64, "LONG": (4, 50), "REESTIMATE": 4}.items():
        monkeypatch.setattr(train, name, value)


def test_codes_are_read_in_every_layout(codes, tmp_path, capsys):
    x, meta = train.load_latents(codes)
    assert x.shape == (90, L, D) and x.dtype == np.float32 and meta["clips"] == [(0, 50), (50, 90)]
    assert meta["fps"] == 25.0 and meta["model"]["name"].endswith("image.pt")
    np.savez(tmp_path / "projected_w.npz", w=x)
    torch.save(torch.from_numpy(x).requires_grad_(), tmp_path / "latents.pt")
    np.save(tmp_path / "double.npy", x.astype(np.float64))
    torch.save({"w": torch.from_numpy(x)}, tmp_path / "latents.bin")
    torch.save([torch.from_numpy(frame) for frame in x], tmp_path / "frames.pt")
    for name in ("projected_w.npz", "latents.pt", "double.npy", "latents.bin", "frames.pt"):
        y, bare = train.load_latents(tmp_path / name)
        assert np.array_equal(x, y) and y.dtype == np.float32 and bare["clips"] == [(0, 90)]
        assert bare["fps"] == 25.0 and bare["model"] == {"name": None, "sha256": None}

    # One trajectory, or one frame each; never the shape of something else
    capsys.readouterr()
    for axis in (0, 1):
        np.save(tmp_path / "four.npy", np.expand_dims(x, axis))
        assert np.array_equal(train.load_latents(tmp_path / "four.npy")[0], x)
        assert "one trajectory of 90 frames" in capsys.readouterr().err


def test_the_source_is_found_where_it_was_or_beside_its_codes(codes, tmp_path):
    (tmp_path / "v.mp4").touch()
    for named, found in ((["v.mp4"], 1), ("a/v.mp4", 1), ("C:\\a\\v.mp4", 1), ([str(DEMO)], 0), (None, 0)):
        _, meta = train.load_latents(retold(codes, tmp_path, source=named))
        assert meta["source"] == (found * [str(tmp_path / "v.mp4")] or named or [])


def test_several_videos_are_one_training_set(codes, tmp_path, capsys):
    x, meta = train.load_training_set([codes, retold(codes, tmp_path, fps=50)], 41, sys.stderr)
    assert x.shape == (180, L, D) and meta["clips"] == [(0, 50), (50, 90), (90, 140), (140, 180)]
    starts = train.window_starts(meta["clips"], 41).tolist()                    # every window inside its clip
    assert starts == [*range(10), *range(90, 100)]
    said = capsys.readouterr().err
    assert "80 of 180 frames lie in clips shorter than 41" in said and "25 to 50 frames per second" in said
    other = retold(codes, tmp_path, model={"name": "other", "sha256": "1" * 64})
    np.save(tmp_path / "wide.npy", np.zeros((90, 8, 32), np.float32))
    for path, wanted in ((other, "image.pt .*of other .*one image model"), (tmp_path / "wide.npy", "8 x 32")):
        assert_raises(wanted, train.load_training_set, [codes, path], 6)
    for wanted, changes in (("89 frames", {"frames": [{"clip": 0}] * 89}), ("remove it", {"fps": "fast"})):
        assert_raises(wanted, train.load_latents, retold(codes, tmp_path, **changes))
    assert_raises("longest clip has 50 frames.*two windows of 50.*--window, 25",
                  train.load_training_set, [codes], 50)


def test_frechet_distance_of_known_gaussians():
    rng, n, d = np.random.RandomState(0), 400, 5
    x = rng.standard_normal((n, d))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T                    # zero mean, unit covariance
    # Not commuting: the root of S1 S2 through the eigenvalues of the unsymmetric product
    m, (A, B) = np.arange(d), rng.standard_normal((2, d, d))
    S1, S2 = A @ A.T, B @ B.T
    wanted = (m ** 2).sum() + np.trace(S1 + S2) - 2 * np.sqrt(np.linalg.eigvals(S1 @ S2).real).sum()
    assert train.frechet(x @ A.T, x @ B.T + m) == pytest.approx(wanted, rel=1e-9)


def test_mmd_by_hand():
    """Of the points 0, 1 and the points 0, 1, 3: pairs within a set, no point with itself; pairs across."""
    def k(distance):
        return sum(math.exp(-0.5 * (distance / w) ** 2) for w in (1, 0.5, 0.25))

    x, y = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
    across = (2 * k(0) + 2 * k(1) + k(3) + k(2)) / 6
    assert train.squared_mmd(x, y, 1.0) == pytest.approx(k(1) + (k(1) + k(2) + k(3)) / 3 - 2 * across)


def like_talking(n=2000, seed=0):
    """A slow swing along four fixed directions and, now and then, a blink along a fifth: (n, 32)."""
    rng, directions = np.random.RandomState(seed), np.random.RandomState(9).standard_normal((5, 32))
    slow = 0.2 * rng.standard_normal((n, 4))
    for k in range(1, n):
        slow[k] += 0.98 * slow[k - 1]
    blink = 3 * np.convolve(rng.uniform(size=n) < 0.02, np.hanning(9), "same")
    x = np.column_stack([slow, blink]) @ directions + 0.05 * rng.standard_normal((n, 32))
    return torch.from_numpy(x - x.mean(0)).float()


def plain_pca():
    """That of codes (1, 32) that are their own coordinates."""
    return {"mean": torch.zeros(1, 32), "basis": torch.eye(32)[:, None], "std": torch.ones(32)}


def test_measures_of_known_motion():
    """Known moments; copies, frozen frames and added noise; a second video keeps the first one's scales."""
    rng = np.random.RandomState(0)
    walk = torch.from_numpy(rng.laplace(size=(300, 301, 32))).cumsum(1)
    assert train.excess_kurtosis(walk) == pytest.approx(3, abs=0.1)             # a Laplace variable's
    white = torch.from_numpy(rng.standard_normal((300, 301, 32)))
    assert train.trembling(white) == pytest.approx(math.sqrt(6), rel=0.01)      # weights 1, -2, 1

    x, clips = like_talking(), [(0, 1200), (1200, 2000)]
    real = train.references(x, clips, 8)
    windows = real["windows"]
    assert windows.shape == (1193 + 793, 8, 32) and torch.equal(windows[1193], x[1200:1208].double())
    same = train.measures(real, windows)
    assert same["gaussian"] == pytest.approx(0, abs=1e-4) and same["novelty"] < 1e-6
    assert same["kurtosis"] == pytest.approx(1) == same["jitter"]
    assert -6 < same["mmd"] < 0 and -6 < same["motion"] < 0                     # a window meets itself
    frozen = train.measures(real, windows[:, :1].expand_as(windows))
    assert frozen["gaussian"] == pytest.approx(100) and frozen["jitter"] == 0 and frozen["motion"] > 1000
    assert math.isnan(frozen["kurtosis"])                                       # nothing moves
    noise = torch.randn(windows.shape, generator=torch.Generator().manual_seed(0))
    wanted = math.sqrt(real["jitter"] ** 2 + 6 * 0.01) / real["jitter"]
    assert train.measures(real, windows + 0.1 * noise)["jitter"] == pytest.approx(wanted, rel=0.02)

    other = train.references(like_talking(600, seed=1), [(0, 600)], 8, real)
    assert other["space"] is real["space"] and other["train"] is real
    values = train.measures(other, other["windows"])
    assert values["gaussian"] == pytest.approx(0, abs=1e-4) and 0.8 < values["novelty"] < 1.2
    assert train.measures(other, windows)["novelty"] < 1e-6                     # copies of the training video
    # Windows of long samples are adjacent at the paper's lengths
    cut = train.long_windows(torch.arange(400.0).reshape(1, 400, 1).expand(2, -1, 32), 25)
    assert cut.shape == (32, 25, 32) and torch.equal(cut[:16, :, 0].flatten(), torch.arange(400.0))
    assert train.evenly(torch.arange(10), 4).tolist() == [0, 3, 6, 9]


def test_sampled_windows_are_those_of_the_trajectories(quick_reports):
    """Coordinates are those of the codes; the last frames alone are the same ones; short and long windows."""
    torch.manual_seed(0)
    G, codes = models.MotionGenerator(4, 16).eval().requires_grad_(False), torch.randn(50, 4, 16)
    pca = train.fit_pca(codes.numpy())
    x, last = (train.sample_coordinates(G, 6, 30, pca, torch.Generator().manual_seed(3), last=n)
               for n in (None, 7))
    rng = torch.Generator().manual_seed(3)
    i, s = torch.randn(4, 32, generator=rng), torch.randn(4, 29, 32, generator=rng)     # LONG[0] at a time
    assert x.shape == (6, 30, 32) and torch.allclose(last, x[:, -7:], atol=1e-5)
    assert torch.allclose(x[:4], train.coordinates(G(i, s), pca), atol=1e-4)
    windows = train.motion_windows(G, 8, pca, torch.Generator().manual_seed(3))
    assert windows["short"].shape == (64, 8, 32) and windows["long"].shape == (4 * train.PER_LONG, 8, 32)


def test_filtered_noise_is_told_from_the_video_that_filtered_it():
    """It has the video's autocovariance, so the Gaussian distance takes it for the video; what sees more than
    covariances does not."""
    x, T, rng = like_talking(3000), 25, torch.Generator().manual_seed(1)
    real = train.references(x, [(0, 3000)], T)
    G = fitted("noise", x, [(0, 3000)])
    noise = train.measures(real, train.sample_coordinates(G, 1000, T, plain_pca(), rng))
    drawn = real["windows"][torch.randint(len(real["windows"]), (1000,), generator=rng)]
    video = train.measures(real, drawn)
    assert max(noise["gaussian"], video["gaussian"]) < 2.5
    assert noise["motion"] > 3 > 0.5 > video["motion"] and noise["mmd"] > 3 * abs(video["mmd"])
    assert abs(noise["kurtosis"]) < 0.05 and video["kurtosis"] == pytest.approx(1, abs=0.2)
    assert noise["jitter"] == pytest.approx(1, abs=0.03) and noise["novelty"] > 0.9 > 0.01 > video["novelty"]


@pytest.mark.parametrize("words", (
    (), ("--critic-steps", 1, "--window", 7, "--horizon", 20), ("--recipe", "paper")))
def test_a_step_equals_the_plain_way_of_doing_it(words):
    """In float64, as Adam makes something of every rounding error: weights, EMA, pool, norm and losses. At a
    horizon of 20 frames some trajectories of the pool end, and others take their places."""
    args = options("--batch", 16, "--window", 6, *words)
    torch.manual_seed(0)
    codes, starts, found = torch.randn(90, 4, 16), torch.arange(60), []
    for way in (train.train_step, speed.plain_step, lambda *_: torch.zeros(5)):
        nets, adam = train.networks(codes, args)
        assert len(nets.pool) == (0 if "paper" in words else 8)
        rng = torch.Generator().manual_seed(1)
        nets.double()
        with torch.no_grad():
            nets.C.later.fill_(0.5)
        for step in (1500, 1501):
            draws = {name: value.double() if value.is_floating_point() else value
                     for name, value in train.draw(rng, step, len(starts), args).items()}
            logged = way(nets, adam, draws, codes.double(), starts, args)
        found.append((logged, nets.state_dict()))
    (logged, ours), (wanted, plain), (_, before) = found
    assert torch.allclose(logged, wanted, rtol=1e-8)
    changing = [name for name in ours if ours[name].is_floating_point() and "running" not in name]
    assert all(torch.allclose(ours[name], plain[name], rtol=1e-6, atol=1e-9) for name in changing)
    assert not any(torch.equal(ours[f"{part}.rows"], before[f"{part}.rows"]) for part in ("G", "ema"))


def test_trajectories_end_after_400_frames_in_the_mean():
    often = train.draw(torch.Generator().manual_seed(1), 0, 60, options("--batch", 4000))["renew"]
    assert often.float().mean() == pytest.approx(25 / 400, rel=0.1)


def test_what_is_held_out_is_the_end_of_the_longest_clip():
    x = np.arange(1000, dtype=np.float32).reshape(1000, 1, 1)
    kept, clips, held = train.hold_out(x, [(0, 100), (100, 700), (700, 1000)], 15)
    assert held == [640, 700] and clips == [(0, 100), (100, 640), (640, 940)]
    assert kept.ravel().tolist() == [*range(640), *range(700, 1000)]
    assert train.hold_out(x, [(0, 1000)], 26) == (x, [(0, 1000)], None)         # 100 frames: not four windows


def test_samples_begin_at_the_scale_of_the_codes():
    torch.manual_seed(0)
    G, codes = models.MotionGenerator(4, 8), torch.randn(50, 4, 8) * torch.rand(4, 8) + torch.randn(4, 8)
    G.prepare(codes, [(0, 50)], None)
    w = G(torch.randn(256, 32), torch.randn(256, 9, 32)).flatten(0, 1)
    assert torch.allclose(w.mean(0), codes.mean(0), atol=1e-3)
    assert torch.allclose(w.std(0, unbiased=False), codes.std(0), rtol=2e-2)


def test_reestimated_batchnorm_fits_the_weights():
    torch.manual_seed(0)
    G = models.MotionGenerator(3, 8).requires_grad_(False)
    for p in G.parameters():
        p.mul_(1.5)                                         # the statistics have not seen them
    train.reestimate_batchnorm(G, options("--window", 10, "--horizon", 0), torch.Generator().manual_seed(1))
    w = G(torch.randn(4096, 32), torch.randn(4096, 9, 32)).flatten(0, 1).flatten(1)
    assert not G.training and torch.allclose(w.mean(0), G.rows_norm.bias, atol=0.15)
    assert torch.allclose(w.std(0), G.rows_norm.weight, rtol=0.15, atol=0.05)


def test_train_writes_a_whole_motion_model(codes, tmp_path):
    words = "--steps", 2, "--report-every", 1, "--lr", 0.05, *SMALL
    assert_done(run("train.py", codes, "-o", tmp_path / "m.pt", *words), "wrote")
    motion = torch.load(tmp_path / "m.pt", weights_only=True)
    assert motion["sizes"] == {"L": L, "D": D, "noise": 32, "width": D} and motion["fps"] == 25.0
    assert motion["model"] == json.loads(codes.with_suffix(".json").read_text())["model"]
    assert motion["step"] == 2 and motion["window"] == 6 and motion["options"]["lambda_gap"] == 100
    x = torch.from_numpy(np.load(codes)).double()
    basis, mean = motion["pca"]["basis"].flatten(1).double(), motion["pca"]["mean"]
    assert torch.allclose(mean.double(), x.mean(0), atol=1e-4)
    assert torch.allclose(basis @ basis.T, torch.eye(32, dtype=torch.float64), atol=1e-4)
    values = torch.linalg.svdvals((x - x.mean(0)).flatten(1))[:32] / math.sqrt(len(x) - 1)
    assert torch.allclose(motion["pca"]["std"].double(), values, rtol=1e-3, atol=1e-3 * float(values[0]))

    # A row per report
    names, *rows = (line.split(",") for line in (tmp_path / "m.csv").read_text().splitlines())
    rows = [{name: float(value) for name, value in zip(names, row)} for row in rows]
    assert [row["step"] for row in rows] == [1, 2]
    per_epoch = math.ceil(len(train.window_starts([(0, 50), (50, 90)], 6)) / (8 * 3))   # critic steps of 8
    assert rows[1]["epoch"] == pytest.approx(2 / per_epoch, abs=0.01)
    assert motion["options"]["lr"] == 0.05 and motion["holdout"] is None and not [*tmp_path.glob("*.part")]


def test_a_training_is_judged_on_video_that_it_does_not_learn_from(codes, tmp_path, quick_reports, capsys):
    """--holdout, here the same video: the same values; or else the end of the longest clip."""
    path, words = tmp_path / "m.pt", ("--steps", 1, *SMALL)
    trained(codes, path, *words, "--holdout", codes)
    row = looping.last_report(path)
    wanted = {f"{kind}_{name}" for kind in ("short", "long") for name in train.MEASURES}
    assert {name for name in row if "_short_" in name or "_long_" in name} == {
        f"{video}_{name}" for video in ("training", "holdout") for name in wanted}
    assert all(row[f"training_{name}"] == row[f"holdout_{name}"] for name in wanted)
    assert "holdout, long: gaussian" in capsys.readouterr().err

    np.save(tmp_path / "long.npy", np.random.RandomState(0).randn(300, 4, 16).astype(np.float32))
    motion = trained(tmp_path / "long.npy", tmp_path / "n.pt", *words)
    assert motion["holdout"] == [270, 300] and "30 frames held out" in capsys.readouterr().err
    assert_raises("long.npy has codes of another image model",
                  trained, codes, path, *words, "--holdout", tmp_path / "long.npy")


def test_the_papers_recipe_windows_of_hands_and_resume_with_other_words(codes, tmp_path, quick_reports):
    """All windows begin with i, the paper's 75 frames for hands; --resume keeps all of it."""
    x, path, output, state = np.load(codes), tmp_path / "x.npy", tmp_path / "m.pt", tmp_path / "m.state.pt"
    np.save(path, np.concatenate([x, x[::-1]]))
    np.save(tmp_path / "other.npy", np.load(path) + 1)
    words = "--recipe", "paper", "--window", 75, "--batch", 4, "--lambda-gap", 7
    trained(path, output, "--steps", 1, *words)
    facts = trained(path, output, "--steps", 2, "--resume")["options"]
    assert (facts["lr"], facts["horizon"], facts["lambda_gap"]) == (0.005, 0, 7)
    assert facts["betas"] == [0.9, 0.999] and facts["window"] == 75 and facts["recipe"] == "paper"
    found, before = state_of(output), output.read_bytes()
    assert found["step"] == 2 and len(found["nets"]["pool"]) == 0

    for given, words, wanted in ((path, ("--batch", 16), "--batch 4, not 16"),
                                 (path, ("--recipe", "ours"), "paper, not ours"),
                                 (tmp_path / "other.npy", (), "other codes than .*other.npy, or one")):
        assert_raises(wanted, trained, given, output, "--steps", 4, "--resume", *words)
    whole = state.read_bytes()
    torch.save({**found, "version": train.STATE - 1}, state)
    assert_raises("m.state.pt is no training state of this", trained, path, output, "--steps", 4, "--resume")
    state.write_bytes(whole[:5000])
    assert_raises("m.state.pt is no training state", trained, path, output, "--steps", 4, "--resume")
    assert output.read_bytes() == before and not [*tmp_path.glob("*.part")]


@pytest.mark.parametrize("words, per_epoch, steps", (
    ((), 4, train.STEPS), ((), 39, 350 * 39), (("--epochs", 3), 4, 12), (("--steps", 7), 4, 7),
    (("--recipe", "paper"), 4, 350 * 4)))
def test_a_training_is_as_long_as_the_papers_or_longer(words, per_epoch, steps):
    assert train.length(options(*words), per_epoch) == steps


def test_a_training_is_saved_by_the_clock(codes, tmp_path, monkeypatch):
    """What ends in the third step has lost what came after the last look at the clock, none here."""
    steps = iter(2 * [train.train_step])
    monkeypatch.setattr(train, "train_step", lambda *words, **named: next(steps)(*words, **named))
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    with pytest.raises(StopIteration):
        trained(codes, tmp_path / "m.pt", "--steps", 9, *SMALL)
    assert state_of(tmp_path / "m.pt")["step"] == 2


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_stopped_and_killed_training_goes_on_to_the_same_end(codes, tmp_path, capsys):
    """Ctrl-C, then kill -9 at random moments, each resumed by the same command: in the end the weights of a
    training that nothing happened to and that was looked at less often, bit for bit. Two kills, or as many as
    KILLS in the environment says."""
    kills = int(os.environ.get("KILLS", 2))
    output, state, rng = tmp_path / "m.pt", tmp_path / "m.state.pt", random.Random(kills)
    words = ["--steps", 20 * kills, *SMALL]
    whole = trained(codes, tmp_path / "whole.pt", *words, "--report-every", 20 * kills)
    line = "train.py", codes, "-o", output, "--resume", *words, "--report-every", 10
    signals = [signal.SIGINT] + kills * [signal.SIGKILL]
    while signals:
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = begin(*line)
        wait(process, lambda before=before: state.exists() and state.stat().st_mtime_ns != before)
        time.sleep(rng.uniform(0, 0.5))                                         # in steps, reports, saves
        process.send_signal(signals[0])
        said = process.communicate(timeout=120)[1].decode()
        if process.returncode == 0:                                             # it had finished
            state.unlink()
            continue
        reached = state_of(output)["step"]                                      # whole at any time
        if signals.pop(0) == signal.SIGINT:
            assert process.returncode == 130 and f"stopped at step {reached}" in said and "--resume" in said
            assert "m.state.pt is not there yet: the training begins" in said
            assert torch.load(output, weights_only=True)["step"] == reached
    assert_done(run(*line))
    trained(codes, output, "--resume", *words)
    assert f"has its {20 * kills} steps already" in capsys.readouterr().err
    parts = torch.load(output, weights_only=True)
    assert whole["step"] == parts["step"] == 20 * kills
    torch.testing.assert_close(whole["generator"], parts["generator"], rtol=0, atol=0)
    assert {20, 20 * kills} <= {row["step"] for row in state_of(output)["rows"]}


def test_the_study_of_loops(codes, tmp_path):
    """At toy size: without the penalty its weight is 0; a score is that of the sample."""
    folder = tmp_path / "looping"
    folder.mkdir()
    x = np.load(codes)[:50]
    np.save(folder / "sentence.npy", np.concatenate([x, x[::-1], x]))
    result = run("studies.looping", "looping", "-o", tmp_path, "--steps", 1)
    assert_done(result)
    assert b"19 of 20" in result.stdout
    found = json.loads((folder / "looping.json").read_text())
    for kind, weight in (("with", 100), ("without", 0)):
        facts = torch.load(folder / f"{kind}-00.pt", weights_only=True)["options"]
        assert (facts["lambda_gap"], facts["horizon"]) == (weight, 0)

    G, motion = sample.load_motion(folder / "with-00.pt")
    w = np.concatenate(list(sample.sample(G, evaluate.LOOP_FRAMES, 1)))
    y = train.coordinates(torch.from_numpy(w), motion["pca"]).numpy()
    video = train.coordinates(torch.from_numpy(np.load(folder / "sentence.npy")), motion["pca"])
    usual = evaluate.usual_distance(video.numpy())
    assert found["with"][0]["scores"][1] == pytest.approx(evaluate.loop_score(y[750:], usual), rel=1e-5)


def test_trainings_in_threads_are_those_of_their_own_process(codes, tmp_path, quick_reports, monkeypatch):
    """As on a GPU: stopped and gone on, with one that diverges among them, bit for bit the same models."""
    monkeypatch.setattr(train, "MATMUL", "highest")                 # is of the process, so of all threads
    here = argparse.Namespace(device="cpu", threads=True)
    jobs = [("stylevideogan", 0, 0.001), ("one_style", 1, 0.001), ("stylevideogan", 2, 1e30)]

    def one(kind, seed, lr):
        words = codes, "-o", tmp_path / f"{seed}.pt", *SMALL, "--resume", "--steps", 8, "--model", kind
        try:
            return looping.run_train(here, *words, "--seed", seed, "--lr", lr)
        except InputError as error:
            return str(error)

    def interrupted(*job):
        if job[1] < 2:
            looping.STOP.append("Ctrl-C")
            one(*job)

    with pytest.raises(KeyboardInterrupt, match="step 1 of 8 and saved"):
        looping.at_once(interrupted, jobs, 3, "stopped")
    assert looping.STOP == [] and state_of(tmp_path / "1.pt")["step"] == 1
    said = looping.at_once(one, jobs, 3, "gone on")
    assert said[:2] == [None, None] and "diverged" in said[2]
    for kind, seed, lr in jobs[:2]:
        alone = trained(codes, tmp_path / "alone.pt", *SMALL, "--steps", 8, "--model", kind, "--seed", seed,
                        "--lr", lr)
        beside = torch.load(tmp_path / f"{seed}.pt", weights_only=True)
        torch.testing.assert_close(beside["generator"], alone["generator"], rtol=0, atol=0)


def test_the_ablation_leaves_one_thing_out_in_each_row(codes, tmp_path, quick_reports, capsys):
    """At toy size; what is finished is not begun again, and the table is that of the last reports."""
    args = argparse.Namespace(latents=codes, holdout=codes, full=False, models=None, steps=1, jobs=3,
                              device="cpu", threads=True)
    looping.ablation(args, tmp_path)
    facts = {name: torch.load(tmp_path / f"{name}-00.pt", weights_only=True)["options"]
             for name in looping.LESS}
    left_out = {"no-angle": {"lambda_gap": 0}, "no-later": {"horizon": 0}, "one-critic": {"critic_steps": 1}}
    for name, changed in left_out.items():
        usual = facts["ours"] | {"output": facts[name]["output"]}
        assert facts[name] == usual | changed != usual

    # Two models of each, the first of which is there, with values of our own in its report
    csv = tmp_path / "no-later-00.csv"
    ours = looping.last_report(csv) | {"training_long_mmd": 5000, "holdout_short_motion": 7000}
    csv.write_text("\n".join(",".join(map(str, line)) for line in (ours, ours.values())) + "\n")
    args.models = 2
    capsys.readouterr()
    looping.ablation(args, tmp_path)
    reports = json.loads((tmp_path / "ablation.json").read_text())["no-later"]
    lines = capsys.readouterr().out.splitlines()
    cells, = (line.split("|") for line in lines if line.startswith("| no later windows | 2 |"))
    cells = dict(zip(next(line.split("|") for line in lines if "kurtosis |" in line), cells))
    for column, name in ((" mmd ", "training_{}_mmd"), (" held-out motion ", "holdout_{}_motion")):
        long, short = ([report[name.format(of)] for report in reports] for of in ("long", "short"))
        found = [float(number) for number in re.findall(r"-?[0-9.]+", cells[column])]
        wanted = [np.mean(long), np.std(long, ddof=1), np.mean(short), np.std(short, ddof=1)]
        assert found == pytest.approx(wanted, abs=0.006)
    assert reports[0]["training_long_mmd"] == 5000 and reports[0]["holdout_short_motion"] == 7000


def test_rows_are_level_where_their_trainings_overlap():
    """By hand: the worst of a wide row is no merit of it, and ratios are best at 1 from either side."""
    table = {"near": {"motion": [2.0, 3.0], "jitter": [0.9, 1.1]},
             "level": {"motion": [3.0, 9.0], "jitter": [1.05, 1.5]},
             "wide": {"motion": [4.0, 900.0], "jitter": [0.5, 1.5]}}
    assert neighbours.nearest(table, ("wide", "level", "near")) == "motion: near, level; jitter: near, level."


def test_the_study_of_the_neighbours(tmp_path):
    """At toy size, of one kind: what is finished is kept, the rate chosen by it; table and figures."""
    others = {0.0005: {"diverged": "training diverged"},
              0.002: {"holdout_long_mmd": 1e5, "holdout_long_motion": -10.0}}
    for lr, report in others.items():
        (tmp_path / f"one_style-{lr}-3-0.json").write_text(json.dumps(report))
    words = "--models", "one_style", "--seeds", 2, "--search", 3, "-o", tmp_path
    result = run("studies.neighbours", *words)
    assert_done(result)
    found, said = json.loads((tmp_path / "neighbours.json").read_text()), result.stdout.decode()

    # The rate, by the motion.csv of the one training of three that was to do, which is the first that counts
    report = looping.last_report(tmp_path / "one_style-0.001-3-0.pt")
    score = report["holdout_long_mmd"] + report["holdout_long_motion"]
    assert found["scores"]["one_style"]["0.001"] == pytest.approx(score)
    assert found["scores"]["one_style"]["0.002"] == 1e5 - 10 and found["rates"] == {"one_style": 0.001}
    assert "| one_style | 54,016 |" in said                 # 32 -> 4 x 128 with biases, omega and phi

    # Late in 4,000 frames: windows cut by hand, in the PCA of the motion file
    values, videos = [], [np.load(tmp_path / f"toy-{name}.npy") for name in ("training", "holdout")]
    for seed in (0, 1):
        G, motion = sample.load_motion(tmp_path / f"one_style-0.001-3-{seed}.pt")
        assert [motion["options"][name] for name in ("lr", "steps", "seed")] == [0.001, 3, seed]
        x, y = (train.coordinates(torch.from_numpy(w), motion["pca"]) for w in videos)
        real = train.references(y, [(0, 300)], 6, train.references(x, [(0, 400)], 6))
        rng = torch.Generator().manual_seed(seed)
        train.sample_coordinates(G, 128, 200, motion["pca"], rng)
        x = train.sample_coordinates(G, 8, 4000, motion["pca"], rng)
        starts = np.linspace(3600, 3994, 16).astype(int)
        values.append(train.measures(real, torch.cat([x[:, start:start + 6] for start in starts])))
    table = found["tables"]["holdout video, windows late in 4,000 frames"]["one_style"]
    for name in train.MEASURES:
        assert table[name] == pytest.approx([one[name] for one in values], rel=1e-3, abs=1e-3), name
    late = said[said.index("holdout video, windows late in 4,000"):].split("\n")
    cells = dict(zip(*([cell.strip() for cell in late[k].split("|")] for k in (2, 4))))
    jitter = [one["jitter"] for one in values]
    assert cells[""] == "" and late[4].startswith("| one_style |")
    assert [float(cell) for cell in cells["jitter"].split(" ± ")] == pytest.approx(
        [np.mean(jitter), np.std(jitter, ddof=1)], rel=1e-3, abs=0.06)
    assert {"var", "frozen frames", "real windows, holdout"} < found["tables"].popitem()[1].keys()

    # Inversion, figures
    G, _ = sample.load_motion(tmp_path / "one_style-0.001-3-0.pt")
    clip = torch.from_numpy(videos[1][:15])
    rebuilt = G.translate(one_style.invert(G, clip) * G.waves(torch.arange(15)))
    assert [*found["inversion"]] == ["15", "30", "60", "120", "240"]
    assert found["inversion"]["15"]["inverted"] == pytest.approx(one_style.explained(clip, rebuilt), abs=1e-3)
    drawn = {name: ElementTree.parse(tmp_path / f"{name}.svg").getroot()
             for name in ("distance", "trajectories", "fps")}
    lines = {name: [line.get("points").split() for line in svg.iter() if line.tag.endswith("polyline")]
             for name, svg in drawn.items()}
    assert [len(some) for some in lines.values()] == [2 * 5, 3 * 5, 3] and len(lines["distance"][0]) == 8
    height = 176 - 176 / 3 * math.log10(np.mean([one["mmd"] for one in values]))
    assert float(lines["distance"][0][-1].split(",")[1]) == pytest.approx(height, abs=0.2)
    assert sum(node.tag.endswith("circle") for node in drawn["fps"].iter()) == 3 * 50

    assert_refused(run("studies.neighbours", *words, "--critic", "sparse"), "other options")


def test_what_the_gpu_study_does_runs_without_one(tmp_path):
    parts = "goldens", "step", "profile", "rendering", "encoder"
    words = "--device", "cpu", "--tiny", "-o", tmp_path / "gpu.json", "--only", *parts
    assert_done(run("studies.gpu", *words))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["goldens"]["all below 1e-4"] and all(part in found for part in parts)
    row = found["step"]["4 x 16"]
    assert row["largest difference of again from eager, by step"] == [0, 0, 0, 0]
    assert row["GFLOP per step"] > 0 and found["rendering"]["half"]["PSNR"] > 40
    assert "aten::addmm" in (tmp_path / "gpu.profile.txt").read_text()


# ------------------------------------------------------------------------------------------------------------
# sample.py
# ------------------------------------------------------------------------------------------------------------

def test_sample_equals_the_generator_and_ignores_length_and_number(toy):
    def draw(T, seed):
        return np.concatenate(list(sample.sample(generator, T, seed)))

    generator, _ = sample.load_motion(toy / "motion.pt")
    w = draw(100, 5)
    assert w.shape == (100, L, D) and w.dtype == np.float32
    noise = torch.Generator().manual_seed(5)                  # the paper's G in one call, from the same noise
    i = torch.randn(1, 32, generator=noise)
    s = torch.cat([torch.randn(1, 32, 32, generator=noise) for _ in range(4)], 1)[:, :99]
    with torch.no_grad():
        assert np.abs(generator(i, s)[0].numpy() - w).max() < 1e-4
    assert np.abs(w[0] - w[99]).max() > 0.01 and np.abs(draw(100, 6) - w).max() > 0.1
    assert all(np.array_equal(draw(T, 5), w[:T]) for T in (1, 7, 33))


def test_sample_command_line(toy, tmp_path):
    words = "--motion", toy / "motion.pt", "--t", 40
    done = run("sample.py", *words, "--seed", 3, "-o", "one.npy", cwd=tmp_path)
    assert_done(done, "wrote")
    assert done.stdout == b""
    piped = run("sample.py", "--t", 40, "--seed", 3, cwd=toy)                       # ./motion.pt, to a pipe
    assert piped.stdout == (tmp_path / "one.npy").read_bytes() and piped.stderr == b""
    assert_done(run("sample.py", *words, "--n", 3, "--seed", 2, "-o", "three.npy", cwd=tmp_path))
    w, three = np.load(tmp_path / "one.npy"), np.load(tmp_path / "three.npy")
    assert w.shape == (40, L, D) and three.shape == (3, 40, L, D) and w.dtype == three.dtype == np.float32
    assert np.array_equal(three[1], w)                                    # trajectory k is that of seed S + k
    assert sorted(os.listdir(tmp_path)) == ["one.npy", "three.npy"]


FITTED = "noise", "var", "textures"                         # computed, not trained
OTHERS = [kind for kind in models.MOTION_MODELS if kind not in ("stylevideogan", *FITTED)]


def fitted(kind, x, clips):
    """A model that is computed, of coordinates x (N, 32), as codes of one style row of 32 numbers."""
    return models.motion_model(kind)(1, 32).fit(x, clips, plain_pca())


@pytest.mark.parametrize("kind", FITTED)
def test_a_fitted_model_is_in_its_file(kind, codes, tmp_path, capsys, quick_reports):
    """train.py --model fits it, reports once and saves what load_motion() makes the same model of."""
    motion = trained(codes, tmp_path / "m.pt", "--model", kind, "--window", 6)
    said = capsys.readouterr().err
    assert "fitted in" in said and "training, long: gaussian" in said and "m.pt" in said
    assert motion["kind"] == kind and motion["window"] == 6 and motion["fps"] == 25.0
    assert not list(tmp_path.glob("m.*.pt")) and not [*tmp_path.glob("*.part")]
    x, meta = train.load_latents(codes)
    x = train.coordinates(torch.from_numpy(x), motion["pca"])
    G = models.motion_model(kind)(L, D).fit(x, meta["clips"], motion["pca"])
    again, _ = sample.load_motion(tmp_path / "m.pt")
    w = np.concatenate([*sample.sample(again, 40, 3)])
    assert np.allclose(np.concatenate([*sample.sample(G, 40, 3)]), w, atol=1e-4) and w.std(0).max() > 0.01


@pytest.mark.parametrize("kind, error", (("noise", 0.1), ("var", 0.1), ("textures", 0.2)))
def test_a_fitted_model_keeps_mean_and_autocovariance(kind, error):
    """Of 3,000 samples, at lags 0 to 8, within that share of the largest; all others are as stationary."""
    x, clips = like_talking(1500) + 2.0, [(0, 1000), (1000, 1500)]
    G, rng = fitted(kind, x, clips), torch.Generator().manual_seed(0)
    with torch.no_grad():
        y = G(torch.randn(3000, G.start, generator=rng), torch.randn(3000, 8, 32, generator=rng))[:, :, 0]
    assert torch.allclose(y.mean((0, 1)), x.mean(0), atol=0.1 * float(x.std(0).mean()))
    y, parts = y - x.mean(0), [x[start:end] - x.mean(0) for start, end in clips]
    for lag in (0, 1, 4, 8):
        real = sum(part[lag:].T @ part[:len(part) - lag] for part in parts) / len(x)
        assert (y[:, lag].T @ y[:, 0] / len(y) - real).norm() < error * real.norm(), lag
        if lag == 0:                                                            # and as large later on
            assert (y[:, -1].T @ y[:, -1] / len(y) - real).norm() < error * real.norm()


def test_textures_play_every_frame_about_equally_often():
    x = like_talking(1200)
    G, rng = fitted("textures", x, [(0, 700), (700, 1200)]), torch.Generator().manual_seed(0)
    h, counts, jumps = G.hidden(torch.randn(1000, 32, generator=rng)), torch.zeros(1200), 0.0
    for _ in range(300):
        before = h[0, :, 0].long()
        l, h = G.roll(torch.randn(1000, 1, 32, generator=rng), h)
        at, jumped = h[0, :, 0].long(), h[0, :, 1] == 0
        assert torch.equal(at[~jumped], before[~jumped] + 1)                    # else it plays on
        assert (jumped | (before != 699))[before < 1199].all()                  # never across a cut
        counts += torch.bincount(at, minlength=1200)
        jumps += jumped.float().mean().item() / 300
    settled = counts[torch.cat([torch.arange(50, 700), torch.arange(750, 1200)])] / counts.mean()
    assert 0.3 < settled.min() and settled.max() < 2.5 and settled.std() < 0.4
    assert 1 / 200 < jumps < 1 / 10
    # What a jump changes fades out: one frame is not further from the next than in the video, but for a few
    steps = (G.motion(torch.randn(200, 32, generator=rng), torch.randn(200, 99, 32, generator=rng))
             .diff(dim=1).norm(dim=2).flatten())
    assert steps.max() < 1.5 * x.diff(dim=0).norm(dim=1).max()

    # At a clip's end it has to jump, though another jump fades: in place of what would have come there comes
    h = torch.zeros(2, 1, 32)
    h[0, :, 0], h[0, :, 1], h[1] = 699, 2, torch.randn(32, generator=rng)
    l, _ = G.roll(torch.zeros(1, 1, 32), h)
    fading = 0.5 + 0.5 * math.cos(math.pi * 3 / 8)
    assert torch.allclose(l[0], 2 * x[699:700] - x[698] + fading * h[1], atol=1e-4)


def test_sample_streams(toy):
    """The first frames leave long before the last could have been made; a closed pipe ends the sampling."""
    process = begin("sample.py", "--t", 10 ** 9, cwd=toy, stdout=subprocess.PIPE)
    assert np.lib.format.read_magic(process.stdout) == (1, 0)
    head = np.lib.format.read_array_header_1_0(process.stdout)
    assert head == ((10 ** 9, L, D), False, np.dtype("<f4"))
    assert np.isfinite(np.frombuffer(process.stdout.read(4 * 100 * L * D), "<f4")).all()
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(30) == 2
    assert said.startswith("sample.py: standard output was closed") and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_terminals_are_refused(toy):
    import pty

    leader, follower = pty.openpty()
    for script, stream, word in (("sample.py", "stdout", b"-o"), ("transfer.py", "stdin", b"no trajectory")):
        process = begin(script, cwd=toy, **{stream: follower})
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 2 and word in said and said.count(b"\n") == 1, said
    os.close(leader)
    os.close(follower)


# ------------------------------------------------------------------------------------------------------------
# VideoWriter and sound
# ------------------------------------------------------------------------------------------------------------

def test_video_colours_sizes_and_time(tmp_path):
    # Saturated colours that change slowly, so that halved colour planes lose little
    tiles = [np.random.RandomState(k // 4).randint(0, 256, (4, 4, 3)).astype(np.uint8) for k in range(12)]
    pictures = [cv2.resize(tile, (97, 125), interpolation=cv2.INTER_LINEAR) for tile in tiles]
    path = write_video(tmp_path / "12:30 %d.mp4", pictures, 29.97002997)        # no protocol, no pattern
    assert os.listdir(tmp_path) == [path.name]
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        frames, context = list(container.decode(stream)), stream.codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        assert (context.name, stream.average_rate, stream.frames) == ("h264", Fraction(30000, 1001), 12)
    assert tags == (1, 1, 1, 1)                                                 # BT.709, limited range
    assert [f.pts * f.time_base for f in frames] == [k * Fraction(1001, 30000) for k in range(12)]
    assert all((f.format.name, f.width, f.height) == ("yuv420p", 98, 126) for f in frames)
    for picture, frame in zip(pictures, frames, strict=True):
        shown = frame.to_ndarray(format="rgb24")
        assert embed.psnr(shown[:125, :97], picture) > 35                       # the other matrix gives 29 dB
        assert np.abs(shown[:125, 97].astype(int) - shown[:125, 96]).mean() < 6     # padding repeats the edge
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")                          # plays before it is loaded


def test_video_is_whole_or_absent(tmp_path):
    picture, other, wide = (np.zeros((H, W, 3), np.uint8)
                            for H, W in ((32, 32), (32, 34), (16, 40000)))      # wider than H.264 allows
    with pytest.raises(ValueError, match="32 x 34 in a video of 32 x 32"):
        write_video(tmp_path / "x.mp4", [picture, other])
    for frames, words in (([], "no frames"), ([wide], "cannot be written")):
        assert_raises(words, write_video, tmp_path / "x.mp4", frames)
    assert os.listdir(tmp_path) == []


def test_a_video_onto_a_full_disk_is_one_sentence(tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (12, 96, 96, 3)).astype(np.uint8)
    with full_disk():                                   # x264 holds all of these back until the end
        assert_raises("cannot be written .*make room", write_video, tmp_path / "x.mp4", noise)
    assert os.listdir(tmp_path) == []


def pitch(second):
    """Of sound, a second of source k has a beep of its own pitch, 0.3 s after it begins."""
    return 500 + 200 * second


def beeping(path, seconds, codec, rate=44100, video=True):
    """A file with beeps of 0.1 s, in real encodings; its pictures are black."""
    t = np.arange(seconds * rate) / rate
    wave = 0.5 * np.sin(2 * np.pi * pitch(np.floor(t)) * t) * ((t % 1 >= 0.3) & (t % 1 < 0.4))
    pieces = []
    for k in range(0, len(wave), 1000):
        piece = (32767 * wave[None, k:k + 1000]).astype(np.int16)
        pieces.append(av.AudioFrame.from_ndarray(piece, format="s16", layout="mono"))
        pieces[-1].sample_rate, pieces[-1].pts, pieces[-1].time_base = rate, k, Fraction(1, rate)
    with av.open(str(path), "w") as out:
        pictures = add_track(out, size=(32, 32)) if video else None
        sound = out.add_stream(codec, rate=rate, layout="mono")
        if video:
            add_frames(out, pictures, np.zeros((25 * seconds, 32, 32, 3), np.uint8))
        add_frames(out, sound, pieces)
    return path


def beeps(path):
    """What is heard in a file: [(second at which it starts, Hz), ...]; None without sound. All as loud."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        parts, tool = [], av.AudioResampler("fltp", "stereo", 48000)
        for frame in container.decode(container.streams.audio[0]):
            assert abs(float(frame.pts * frame.time_base) - sum(p.shape[1] for p in parts) / 48000) < 0.002
            parts += [piece.to_ndarray() for piece in tool.resample(frame) if piece]
        length = float(container.streams.video[0].duration * container.streams.video[0].time_base or 0)
    left, right = np.concatenate(parts, 1)
    assert np.abs(left - right).max() < 0.1 and 0.45 < np.abs(left).max() < 0.6
    assert abs(len(left) / 48000 - length) < 0.05                               # as long as the pictures
    loud = np.flatnonzero(np.abs(left) > 0.1)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-48000) > 4800)]
    tones = [np.abs(np.fft.rfft(left[k + 480:k + 2880])).argmax() * 20 for k in starts]
    return list(zip((starts / 48000).round(2).tolist(), tones, strict=True))


@pytest.mark.parametrize("name, codec", (("a.mkv", "aac"), ("a.mov", "pcm_s16le"), ("a.wav", "pcm_s16le"),
                                         ("a.mp3", "libmp3lame")))
def test_sound_stays_in_step_with_its_frames(tmp_path, name, codec):
    """Frames 10 to 39 and 75 to 129 of six seconds: what is heard moves with the pictures."""
    video = name[-3:] in ("mp4", "mkv", "mov")
    beeping(tmp_path / name, 6, codec, video=video)
    frames = [{"clip": int(k > 50), "index": 0, "time": k / 25} for k in (*range(10, 40), *range(75, 130))]
    meta = {"fps": 25.0, "source": [str(tmp_path / name)], "frames": frames}
    sound, words = transfer.soundtrack("source" if video else str(tmp_path / name), meta, 85, Fraction(25))
    assert words == f"sound of {tmp_path / name} cut as the pictures are"
    with transfer.VideoWriter(tmp_path / "out.mp4", 25, sound=sound) as writer:
        for _ in frames:
            writer.write(np.zeros((32, 32, 3), np.uint8))
    moved = [(0.9, pitch(1)), (1.5, pitch(3)), (2.5, pitch(4))]                 # by 0.4 s, then by 1.8 s
    assert beeps(tmp_path / "out.mp4") == moved


# ------------------------------------------------------------------------------------------------------------
# transfer.py
# ------------------------------------------------------------------------------------------------------------

def perform(trajectory, output, motion, **options):
    """transfer.py's main within this process -> the frames of the video, int."""
    options = {"seed": None, "actor": None, "face": None, "naive": False, "reference_frame": None,
               "model": None, "encoder": None, "generator": None, "precision": "auto", "fps": None,
               "audio": "source", "device": "cpu", **options}
    options.update(trajectory=str(trajectory), output=str(output), motion=motion)
    transfer.main(argparse.Namespace(**options))
    return decoded(output).astype(int)


@pytest.fixture
def lossless(monkeypatch):
    make = transfer.VideoWriter
    monkeypatch.setattr(transfer, "VideoWriter", lambda path, fps, sound=None: make(path, fps, 0, sound))


def test_the_pipe_of_the_readme_makes_a_video(tmp_path):
    """Through the shell, with the models in assets/: a face that moves, whole, in time."""
    line = f'"{sys.executable}" "{ROOT}/sample.py" --t 40 | "{sys.executable}" "{ROOT}/transfer.py" --seed 7'
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
    assert_done(done, "performed by seed 7 (motion: offset).")
    assert done.stdout == b""
    assert os.listdir(tmp_path) == ["video.mp4"]
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == 25 and not container.streams.audio
    frames = decoded(tmp_path / "video.mp4")
    assert frames.shape == (40, 128, 128, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5              # it moves
    assert all(embed.landmarks(frames[k]) is not None for k in (0, 20, 39))     # and is a face

    # ... which is that of the networks
    generator, motion = sample.load_motion(ROOT / "assets" / "motion.pt")
    model = models.load_image_model("faces128")
    w, pca = torch.from_numpy(np.concatenate(list(sample.sample(generator, 40, 0)))), motion["pca"]
    delta = models.transfer_offset(transfer.random_actor(model, 7), pca["mean"], pca["basis"])
    wanted = transfer.render(model, (w + delta)[::13], 4)
    assert min(map(embed.psnr, frames[::13], wanted)) > 32                      # yuv420p and crf 17


def test_rendering_starts_before_sampling_ends(toy, tmp_path):
    """The last frame is only made when the first ones are in the file."""
    whole = io.BytesIO()
    np.save(whole, np.zeros((1001, L, D), np.float32))
    process = begin("transfer.py", "--motion", toy / "motion.pt", cwd=tmp_path, stdin=subprocess.PIPE)
    process.stdin.write(whole.getvalue()[:-4 * L * D])
    process.stdin.flush()
    wait(process, lambda: any(part.stat().st_size for part in tmp_path.glob(".video.mp4.part")))
    assert process.poll() is None
    _, text = process.communicate(whole.getvalue()[-4 * L * D:], timeout=60)
    assert process.returncode == 0 and len(decoded(tmp_path / "video.mp4")) == 1001, text


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_leaves_nothing(toy, tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((20000, L, D), np.float32))
    process = begin("transfer.py", "long.npy", "--motion", toy / "motion.pt", cwd=tmp_path)
    wait(process, lambda: any(part.stat().st_size for part in tmp_path.glob(".video.mp4.part")))
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 130 and "nothing was written" in text and "Traceback" not in text, text
    assert os.listdir(tmp_path) == ["long.npy"]
    process = begin("sample.py", "--motion", toy / "motion.pt", "--t", 10 ** 7, "-o", "x.npy", cwd=tmp_path)
    wait(process, lambda: any(part.stat().st_size for part in tmp_path.glob(".x.npy.part")))
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 130 and text.endswith("sample.py: interrupted.\n"), text
    assert os.listdir(tmp_path) == ["long.npy"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_does_not_wait_for_threads_that_hang(toy, tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((2000, L, D), np.float32))
    words = ["transfer.py", "long.npy", "--motion", str(toy / "motion.pt"), "--actor", "none"]
    drawing = ("import pathlib, runpy, sys, threading\nfrom models import ImageModel\n"
               "ImageModel.render = lambda *_: pathlib.Path('began').touch() or threading.Event().wait()\n"
               f"sys.argv = {words}\nrunpy.run_path({str(ROOT / 'transfer.py')!r}, run_name='__main__')")
    reading = ("import embed, os, pathlib, signal, threading\n"
               "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
               "blocked = (pathlib.Path('began').touch() or threading.Event().wait() for _ in range(2))\n"
               "try:\n    list(embed.prefetch(blocked))\nexcept KeyboardInterrupt:\n    os._exit(130)")
    for code, said in (drawing, "nothing was written"), (reading, ""):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE,
                                   env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait(process, (tmp_path / "began").exists)
        process.send_signal(signal.SIGTERM)
        try:
            text = process.communicate(timeout=30)[1].decode()
        finally:
            process.kill()
        assert process.returncode == 130 and said in text and "Traceback" not in text, text
        assert sorted(os.listdir(tmp_path)) == ["began", "long.npy"]
        (tmp_path / "began").unlink()


def test_offset_algebra(toy):
    pca = sample.load_motion(toy / "motion.pt")[1]["pca"]
    mean, basis = pca["mean"], pca["basis"]
    model = models.load_image_model(toy / "image.pt")
    w_new = transfer.random_actor(model, 7)
    w, w_0 = torch.randn(2, 6, L, D), torch.randn(L, D)
    delta = models.transfer_offset(w_new, mean, basis)
    assert torch.einsum("ld,nld->n", delta, basis).abs().max() < 1e-5           # no motion in the offset
    inside = w_new - delta                                                      # in mean + span(basis)
    assert torch.allclose(models.transfer_offset(inside, mean, basis), torch.zeros(L, D), atol=1e-5)
    assert torch.allclose(transfer.move(w, w_new, pca, None), w + delta)
    assert transfer.move(w, None, pca, w_0, "relative") is w
    assert torch.allclose(transfer.move(w, w_new, pca, w[0, 0], "naive")[0, 0], w_new, atol=1e-6)

    # Motion of anybody's clip: what makes them that person, far from the training codes, is not carried over
    person = 3 * torch.randn(L, D)
    person -= models.project(person, basis)
    moved = transfer.move(w, w_new, pca, w_0, "relative")
    assert torch.allclose(transfer.move(w + person, w_new, pca, w_0 + person, "relative"), moved, atol=1e-5)
    away = moved - w_new                                                        # all motion, nothing else
    assert torch.allclose(models.project(away, basis), away, atol=1e-5)
    assert torch.einsum("...ld,nld->...n", away - w + w_0, basis).abs().max() < 1e-4

    # z is NumPy's, the picture is embedded again
    z = torch.from_numpy(np.random.RandomState(7).standard_normal((1, model.Z)))
    assert torch.equal(w_new, model.encode(model.render(model.map(z)).clamp(-1, 1))[0])
    assert not torch.allclose(w_new, transfer.random_actor(model, 8))


def test_seeds_grid_and_pictures(toy):
    assert transfer.parse_seeds(["7", "0-3", "7"]) == [7, 0, 1, 2, 3, 7]
    for word in ("x", "-1", "3-1", "1.5", "4294967296", "1-"):
        assert_raises("whole number", transfer.parse_seeds, [word])
    cells = np.arange(3, dtype=np.uint8)[:, None, None, None] + np.ones((3, 2, 4, 3), np.uint8)
    sheet = transfer.grid(cells, 2)
    assert sheet.shape == (4, 8, 3) and (sheet[:2, :4] == 1).all() and (sheet[:2, 4:] == 2).all()
    assert (sheet[2:, :4] == 3).all() and not sheet[2:, 4:].any()
    model, w = models.load_image_model(toy / "image.pt"), torch.randn(5, L, D)
    wanted = ((model.render(w).permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(transfer.render(model, w, 2).astype(float) - wanted).max() <= 0.51
    assert 0.6 < np.abs(transfer.render(model, w, 2, dtype=torch.float16) - wanted).max() < 8


def test_actors_grids_and_formats(toy, tmp_path, lossless):
    w = np.random.RandomState(0).standard_normal((2, 6, L, D)).astype(np.float32)
    model, motion = models.load_image_model(toy / "image.pt"), toy / "motion.pt"

    def video(trajectory, **options):
        return perform(tmp_path / trajectory, tmp_path / "v.mp4", motion, **options)

    # Codes left as they are, in every layout and format
    np.save(tmp_path / "one.npy", w[0])
    solo = video("one.npy", actor=["none"])
    direct = write_video(tmp_path / "direct.mp4", transfer.render(model, torch.from_numpy(w[0]), 4))
    assert np.abs(decoded(direct).astype(int) - solo).max() <= 2
    np.save(tmp_path / "f64.npy", w[:1].astype(float))                          # (1, T, L, D), float64
    np.save(tmp_path / "column.npy", w[0][:, None])                             # (T, 1, L, D)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(w[0]))
    np.savez(tmp_path / "w.npz", w=w[0])
    for name in ("f64.npy", "column.npy", "fortran.npy", "w.npz"):
        assert np.array_equal(video(name, actor=["none"]), solo), name

    # Several actors, several trajectories
    sheet = video("one.npy", actor=["none"], seed=["1", "2-3"])
    assert sheet.shape == (6, 64, 64, 3) and np.abs(sheet[:, :30, :30] - solo[:, :30, :30]).mean() < 3
    np.save(tmp_path / "two.npy", w)
    two = video("two.npy", actor=["none"], seed=["1"])                          # rows: trajectories
    assert two.shape == (6, 64, 64, 3) and np.abs(two[:, :30, :30] - solo[:, :30, :30]).mean() < 3
    assert np.abs(two[:, :30, 34:] - sheet[:, :30, 34:]).mean() < 3
    assert not np.array_equal(video("one.npy", seed=["5"], naive=True), video("one.npy", seed=["5"]))

    # The frame of reference shows the actor, in one trajectory or several, from a file or a pipe
    actor = transfer.render(model, transfer.random_actor(model, 5)[None], 1)[0].astype(int)
    for name in ("one.npy", "two.npy"):
        shown = video(name, seed=["5"], reference_frame=4)
        error = np.abs(shown[:, :30, :30] - actor[:30, :30]).mean((1, 2, 3))
        assert error[4] < 8 and np.delete(error, 4).min() > 16                  # the codec halves the colours
    words = ("--reference-frame", 4, "--seed", 5, "--fps", 29.97, "--motion", motion, "-o", "p.mp4")
    done = run("transfer.py", *words, cwd=tmp_path, stdin=(tmp_path / "two.npy").read_bytes())
    for said in (b"6 frames of 2 trajectories", b"(motion: relative)", b"29.97 fps"):
        assert said in done.stderr, done.stderr.decode()
    assert np.abs(decoded(tmp_path / "p.mp4") - shown).mean() < 8               # crf 17 lies between


def test_the_study_of_the_pipes_speed(monkeypatch, capsys):
    monkeypatch.setattr(speed, "in_turns", lambda ways, rounds: {way: ways[way]() or 1.0 for way in ways})
    speed.main(argparse.Namespace(subject=["pipe"], full=False))
    assert "| 100 frames of faces128 | 1000.00 | 1000.00 | 1.00 |" in capsys.readouterr().out


def test_an_embedded_clip_keeps_its_rate_motion_and_sound(toy, tmp_path, capsys):
    sha256 = models.load_image_model(toy / "image.pt").sha256
    for name in ("a.mp4", "b.mkv"):
        beeping(tmp_path / name, 3, "aac")
    np.save(tmp_path / "clip.npy", np.random.RandomState(0).standard_normal((100, L, D)).astype(np.float32))
    frames = [{"source": int(k >= 60), "clip": int(k >= 60), "index": k if k < 60 else k - 50}
              for k in range(100)]
    said = {"fps": 25.0, "model": {"name": "image", "sha256": sha256}, "source": ["gone/a.mp4", "b.mkv"]}

    def heard(audio="source", **options):
        (tmp_path / "clip.json").write_text(json.dumps({**said, "frames": frames}))
        perform(tmp_path / "clip.npy", tmp_path / "v.mp4", toy / "motion.pt", audio=str(audio), **options)
        return beeps(tmp_path / "v.mp4"), capsys.readouterr().err

    both = [(k + 0.3, pitch(second)) for k, second in enumerate((0, 1, 2, 1))]      # b from its frame 10 on
    sound, text = heard(seed=["5"])
    assert sound == both and "(motion: relative)" in text and "by the numbers of the frames" in text
    assert heard("none", actor=["none"])[0] is None
    assert heard(tmp_path / "b.mkv")[0] == both[:3]                                 # from its beginning
    sound, text = heard(fps=50.0)
    assert sound is None and "no sound, as --fps changes the speed" in text
    assert_raises("--audio .*clip.npy cannot be read or has no sound", heard, tmp_path / "clip.npy")
    (tmp_path / "a.mp4").unlink()
    sound, text = heard()
    assert sound == both[3:] and f"none in {tmp_path / 'a.mp4'}" in text
    frames[0]["time"], said["source"] = 9.0, "b.mkv"
    for frame in frames:
        frame["source"] = 0
    sound, text = heard()
    assert sound is None and "no sound, as the time stamps of the source start again" in text
    said["model"]["sha256"] = "0" * 64
    assert_raises("clip.npy are of the image model image .* not of image .*--model", heard)


def test_reenactment_gives_the_motion_of_one_to_the_face_of_another():
    """Against truth: both faces shown with the same motion. With the offset trick they add up."""
    model = models.load_image_model("faces128")
    said = heads.CALM[1] + 0.7 * np.random.RandomState(0).standard_normal((10, heads.Z))
    clips = []
    for who in (1, 2):
        u = heads.people(1, who).repeat(10, 0)
        u[:, heads.MOTION:] = said[:, heads.MOTION:]
        clips.append(truth.through_z(model, u))
    w, w_truth = (truth.encoded(model, x) for x in clips)
    pca = sample.load_motion(ROOT / "assets" / "motion.pt")[1]["pca"]

    def value(codes):
        return np.mean([*map(embed.psnr, transfer.render(model, codes, 4), clips[1])])

    moved = (transfer.move(w, w_truth[3], pca, w[3], mode) for mode in ("relative", "offset"))
    relative, offset = map(value, moved)
    still = value(w_truth[3].expand_as(w))
    assert relative > max(still, offset) + 4, (relative, still, offset)


def test_another_generator_renders_the_same_codes(toy, tmp_path, lossless):
    """--generator: codes and actors of the one, pictures of the other, a file without an encoder."""
    w = np.random.RandomState(0).standard_normal((3, L, D)).astype(np.float32)
    np.save(tmp_path / "w.npy", w)
    weights = models.below(torch.load(toy / "image.pt", weights_only=True)["state_dict"], "decoder.")
    weights["to_rgb1.bias"] += 0.5
    torch.save({"g_ema": weights, "latent_avg": torch.zeros(D)}, tmp_path / "brighter.pt")

    def video(name):
        return perform(tmp_path / "w.npy", tmp_path / "v.mp4", toy / "motion.pt", actor=["none"],
                       generator=name and tmp_path / name)

    wanted = transfer.render(models.load_image_model(tmp_path / "brighter.pt"), torch.from_numpy(w), 4)
    direct = decoded(write_video(tmp_path / "direct.mp4", wanted))
    assert np.abs(video("brighter.pt") - direct).max() <= 2 and np.abs(video(None) - wanted).mean() > 5


def test_an_own_model_is_performed_by_its_own_actor(toy, tmp_path, capsys):
    np.save(tmp_path / "w.npy", np.zeros((3, L, D), np.float32))
    perform(tmp_path / "w.npy", tmp_path / "v.mp4", toy / "motion_own.pt")
    assert "performed by its own actor (" in capsys.readouterr().err


def test_transfer_takes_the_actor_of_a_photo(two_heads, tmp_path, capsys):
    """Of two the largest, or the one that is asked for."""
    motion = ROOT / "assets" / "motion.pt"
    pca = sample.load_motion(motion)[1]["pca"]
    np.save(tmp_path / "w.npy", pca["mean"][None].numpy())
    shown = [perform(tmp_path / "w.npy", tmp_path / "v.mp4", motion, actor=[str(two_heads)], face=face)[0]
             for face in (None, 1, 2)]
    assert capsys.readouterr().err.count("shows 2 faces, of which the largest is taken") == 1
    model = models.load_image_model("faces128")
    PIL.Image.fromarray(*demo(1, 512)).save(tmp_path / "photo.png")
    w_new = transfer.photo_actor(model, tmp_path / "photo.png")
    wanted = transfer.render(model, transfer.move(pca["mean"][None], w_new, pca, None), 1)[0]
    assert np.array_equal(shown[0], shown[1])
    assert embed.psnr(shown[0], wanted) > 30 > embed.psnr(shown[2], wanted)


@pytest.mark.parametrize("length, word", ((3000, "cut short"), (0, "empty")))
def test_pipes_that_break_are_refused(toy, tmp_path, length, word):
    whole = io.BytesIO()
    np.save(whole, np.zeros((40, L, D), np.float32))
    result = run("transfer.py", "--motion", toy / "motion.pt", cwd=tmp_path, stdin=whole.getvalue()[:length])
    assert_refused(result, f"standard input is {word}")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------
# evaluate.py
# ------------------------------------------------------------------------------------------------------------

def test_loop_score_knows_loops():
    rng, t = np.random.RandomState(0), np.arange(1500)
    loop = np.stack([f(2 * np.pi * k * t / 125) for k in (1, 2, 3) for f in (np.sin, np.cos)], 1)
    wander = np.zeros((1500, 6))
    for k in range(1, 1500):                                            # smooth, forgets in half a second
        wander[k] = 0.92 * wander[k - 1] + rng.standard_normal(6)

    def score(x, video):
        return evaluate.loop_score(x, evaluate.usual_distance(video))

    assert score(loop, loop) < 0.01
    assert score(loop + 0.2 * rng.standard_normal(loop.shape), loop) < evaluate.LOOPS
    assert score(wander, wander) > 0.8
    # What dies down stands still for good; by its own measure its trembling would never return
    dying = wander * np.maximum(0.98 ** t, 0.05)[:, None]
    assert score(dying[750:], dying[750:]) > 0.8 > 0.1 > score(dying[750:], wander)
    # Loops of what is large, while 20 small components wander
    small = np.concatenate([np.roll(wander, 300 * k, 0) for k in range(4)], 1)[:, :20]
    both = np.concatenate([loop, 0.1 * loop.std() / wander.std() * small], 1)
    assert score(both, both) < evaluate.LOOPS
    assert evaluate.usual_distance(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5)
    assert math.isnan(evaluate.loop_score(loop[:49], 1))                        # shorter than two lags


def test_rows_that_cost_nothing_where_the_answer_is_known(monkeypatch):
    """Independent Gaussian frames, windows of 3: what frozen, shuffled and as many real ones score."""
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    real = train.references(x, [(0, 2000)], 3)
    # Repeated frames have covariance 1 between any two; their windows' is I (x) J instead of I (x) I: roots
    # of J's eigenvalues 3, 0, 0 make 3 + 3 - 2 sqrt(3) per component; of these SPACE / 96 are looked at
    assert 0.2 * 32 * (6 - 2 * math.sqrt(3)) < real["frozen"] < 1.1 * 32 * (6 - 2 * math.sqrt(3))
    e = types.SimpleNamespace(real={"training": real}, coordinates=x, shots=[(0, 2000)], pca=plain_pca(),
                              window=3, seed=0, model=types.SimpleNamespace(L=1, D=32))
    monkeypatch.setattr(evaluate, "LOOP_FRAMES", 60)
    windows, halves = evaluate.free_motion(e)
    rows = {name: train.measures(real, some) for name, some in windows.items()}
    assert rows["frozen frames"]["gaussian"] == pytest.approx(100, abs=5)
    assert [*halves] == [*evaluate.FREE] and halves["VAR(8)"][7].shape == (30, 32)
    for name in ("shuffled frames", "time-reversed", "filtered noise", "VAR(8)"):       # it has no order
        assert rows[name]["gaussian"] < 3 and rows[name]["jitter"] == pytest.approx(1, abs=0.04), name
        assert abs(rows[name]["mmd"]) < 2 > abs(rows[name]["motion"]), name
    assert rows["filtered noise"]["novelty"] > 0.9 and rows["video textures"]["novelty"] < 0.2


def test_who_is_ahead_is_computed():
    """Nearer to the best, by more than two draws differ; 0 % and 1 of the video's kurtosis are best."""
    rows = {"sampled, long": {"gaussian": [4.0, 5.0], "mmd": [4.0], "kurtosis": [1.1], "novelty": [0.9, 1.3]},
            "filtered noise": {"gaussian": [1.0], "mmd": [15.0], "kurtosis": [0.0], "novelty": [1.2]},
            "VAR(8)": {"gaussian": [5.3], "mmd": [2.5], "kurtosis": [0.92]},
            "video textures": {"gaussian": [1.0], "mmd": [-1.0], "kurtosis": [1.0], "novelty": [0.1]}}
    assert evaluate.verdicts(rows, ["sampled, long"]) == [
        "filtered noise against sampled, long: ahead in gaussian; behind in mmd, kurtosis, novelty.",
        "VAR(8) against sampled, long: ahead in mmd; level in gaussian, kurtosis.",
        "video textures against sampled, long: ahead in gaussian, mmd, kurtosis; behind in novelty."]


# Detectors as small as can be, called as the real ones are. Features of frames: brightness of red, green and
# blue, a square; of clips: mean of all, of the first and of the last frame, and how much neighbours differ

class SmallInception(nn.Module):
    def forward(self, x, return_features: bool = False):
        assert return_features and x.dtype == torch.uint8 and x.dim() == 4 and x.size(1) == 3
        v = x.float().mean([2, 3])                                              # (B, 3)
        return torch.cat([v, v[:, :1] * v[:, :1] / 255], 1)


class SmallI3D(nn.Module):
    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale and resize and return_features and x.dtype == torch.uint8
        assert x.dim() == 5 and x.size(1) == 3
        v = x.float().mean([1, 3, 4])                                           # (B, T)
        return torch.stack([v.mean(1), v[:, 0], v[:, -1], (v[:, 1:] - v[:, :-1]).abs().mean(1)], 1)


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    """{"inception": path, "i3d": path} of the two as TorchScript."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, network in (("inception", SmallInception()), ("i3d", SmallI3D())):
        torch.jit.script(network).save(str(folder / f"{name}.pt"))
    return {name: folder / f"{name}.pt" for name in ("inception", "i3d")}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """evaluate.py with small counts, in this process, with a cache of its own -> results.json."""
    counts = {"clips": 1, "frames": 3, "every": 2, "fid_frames": 10000, "fvd_clips": 12}
    small = {train: {"SHORT": 12, "LONG": (3, 140), "PER_LONG": 4, "SPACE": 6},
             evaluate: {"QUICK": counts, "LOOP_FRAMES": 120, "LOOP_SAMPLES": 2, "BLOCK": 5, "FAR": 200,
                        "PAGE_SECONDS": 0.4}}
    for module, names in small.items():
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("STYLEVIDEOGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")                               # no other processes
    torch.set_num_threads(1)

    def run_it(latents, *motion, **options):
        named = {"holdout": None, "full": False, "json": tmp_path / "r.json", "inception": None, "i3d": None,
                 "videos": [], "window": None, "model": None, "seed": 0, "device": "cpu", **options}
        evaluate.main(argparse.Namespace(latents=latents, motion=list(motion), **named))
        return json.loads(Path(named["json"]).read_text())
    return run_it


def test_detectors_take_what_the_real_ones_take(scripts, tmp_path, monkeypatch):
    for kind, T in (("inception", 1), ("i3d", 12)):
        detector = evaluate.load_detector(kind, scripts[kind], torch.device("cpu"))
        assert detector.d == 4 and not detector.published
        assert detector.sha256 == models.sha256_of(scripts[kind])
        found = detector.features(np.full((T, 8, 8, 3), 200, np.uint8))
        assert found.shape == (4,) and found[0] == 200
    (tmp_path / "no.pt").write_bytes(b"no")
    for kind, file, words in (
            ("i3d", scripts["inception"], "inception.pt is no TorchScript .* --i3d .*give i3d_torch"),
            ("inception", tmp_path / "no.pt", "no.pt is no TorchScript .*--inception"),
            ("inception", tmp_path / "absent.pt", "absent.pt .*FileNotFound.*--inception fetch")):
        assert_raises(words, evaluate.load_detector, kind, file, torch.device("cpu"))
    monkeypatch.setattr(evaluate, "fetch", lambda *names: (scripts["i3d"], None))       # not the published
    assert_raises("i3d.pt has sha256 .*, not bec6519f.*delete it",
                  evaluate.load_detector, "i3d", "fetch", torch.device("cpu"))


def test_which_frames_are_compared():
    """The paper's sets: 8000 frames and 2048 clips, the video's inside one shot, 16 of each long sample."""
    assert evaluate.FULL == {"clips": 128, "frames": 400, "every": 1, "fid_frames": 8000, "fvd_clips": 2048}
    assert (train.SHORT, train.LONG, train.PER_LONG) == (2048, (128, 400), 16)
    shots = [(0, 25), (25, 40)]
    e = types.SimpleNamespace(window=10, codes=range(40), shots=shots, source=[], counts=evaluate.FULL)
    assert evaluate.training_video(e).clips == [(0, range(25))]                 # none has 400: the longest
    some = evaluate.items(e, [(7, 40), (9, 12)], 4)["i3d"]
    starts = (7, 0), (7, 10), (7, 20), (7, 30), (9, 0), (9, 1), (9, 2)
    assert some == [(k, list(range(s, s + 10))) for k, s in starts]
    e.counts = {"fid_frames": 9, "fvd_clips": 2, "frames": 7, "clips": 3}
    few = evaluate.items(e, [(7, 40), (9, 12)], 4)
    assert few["i3d"] == [some[0], some[-1]] and len({(k, *f) for k, f in few["inception"]}) == 9
    assert evaluate.training_video(e).clips == [(0, range(7)), (0, range(14, 21)), (1, range(7, 14))]

    # The frames of a block come once, sorted, whatever its clips take; frame t of video k: 16 k + t
    asked = []

    def frames(k, wanted):
        asked.append((k, wanted))
        return (np.full((2, 2, 3), 16 * k + t, np.uint8) for t in wanted)

    detector = types.SimpleNamespace(features=lambda x: x[:, 0, 0, 0].astype(float))
    found = evaluate.block_features(detector, frames, 1, [[3, 4, 5], [5, 4, 9]])
    assert found.tolist() == [[19, 20, 21], [21, 20, 25]] and asked == [(1, [3, 4, 5, 9])]
    # A covariance without an inverse is compared, one of too few items is not
    x = np.random.RandomState(0).rand(301, 300)
    assert evaluate.picture_distance(np.zeros((301, 300)), np.zeros((301, 300))) == 0
    assert evaluate.picture_distance(x, x + 1) == pytest.approx(300, rel=1e-6)
    assert math.isnan(evaluate.picture_distance(x[:300], x))


def test_measures_of_faces_by_hand():
    def clip(points=None, descriptors=None):
        return {"points": points, "descriptors": descriptors}

    assert evaluate.acd(clip(descriptors=np.array([[0.0, 0], [3, 4], [np.nan] * 2, [0, 0]]))) == 10 / 3
    nothing = clip(np.full((4, 68, 2), np.nan), np.full((4, 128), np.nan))
    assert math.isnan(evaluate.acd(nothing))
    points = a_face(distance=10.0)
    points[48:60, 0] = 0, 1, 2, 3, 4, 4, 4, 3, 2, 1, 0, 0                       # lips of 4 x 2
    points[48:60, 1] = 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 1
    assert [evaluate.face_measures(k * points)["mouth_area"] for k in (1, 3)] == pytest.approx([0.08, 0.08])

    talk = np.repeat(points[None], 40, 0)
    talk[:, 66, 1] += np.abs(np.sin(np.arange(40)))
    talk[:, 30, 0] += np.cos(np.arange(40))
    talk[:, 54, 0] += np.sin(np.arange(40))
    talk[:, [37, 38], 1] -= np.random.RandomState(0).rand(40, 1)
    other = talk.copy()
    other[:, 66, 1] += 2 * (talk[:, 66, 1] - points[66, 1])                     # three times as wide
    other[:, 30, 0] *= -1                                                       # looks the other way
    other[3] = np.nan                                                           # no face in frame 3
    assert evaluate.correlation(clip(talk), clip(other)) == pytest.approx([1, 1, 1, -1])
    assert evaluate.found(clip(other)) == 39 / 40
    row = evaluate.face_values([clip(other, np.ones((40, 128))), nothing], [clip(talk), nothing])
    assert row["yaw r"] == pytest.approx(-1) and row["found"] == pytest.approx(39 / 80)
    assert row["ACD"] == 0


def test_dlib_reads_the_motion_that_is_shown():
    u = heads.people(1, 7).repeat(12, 0)
    u[:, heads.FACE], u[:, heads.MOTION] = np.linspace(-1, 1.5, 12), np.tile([-1.2, 0, 1.2], 4)
    points = map(embed.landmarks, truth.through_z(models.load_image_model("faces128"), u))
    found = [(m["mouth_opening"], m["yaw"]) for m in map(evaluate.face_measures, points)]
    for column, wanted in zip(np.transpose(found), heads.params(u)[:, [heads.FACE, heads.MOTION]].T):
        assert np.corrcoef(column, wanted)[0, 1] > 0.9, (column, wanted)


def test_faces_are_judged_alike_in_other_processes(monkeypatch, tmp_path):
    """In the order of the clips; what is cached is not rendered again; errors come through."""
    face = embed.read_picture(PHOTO)[:400, :400]
    small = evaluate.judged([face])
    assert small.shape == (1, 256, 256, 3) and (evaluate.judged(small) == small).all()
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    e = types.SimpleNamespace(key="k", fps=25.0, counts={"every": 2})
    e.once = joblib.Memory(tmp_path, verbose=0).cache(evaluate.once, ignore=["compute"])
    rendered = []

    def frames(k, wanted):
        rendered.append(k)
        if k == 9:
            raise InputError("9 cannot be rendered.")
        return (face for _ in wanted)

    clips = [(k, range(T)) for k, T in ((0, 3), (1, 2), (2, 1))]
    source = types.SimpleNamespace(key="", frames={"a row": frames}, clips=clips)
    seen = evaluate.observed(e, source)["a row"]
    for clip, (_, wanted) in zip(seen, clips, strict=True):
        here = evaluate.observe(evaluate.judged([face] * len(wanted)), 25.0, 2)
        for name in ("points", "descriptors"):
            np.testing.assert_array_equal(clip[name], here[name])
        assert np.isfinite(here["descriptors"][:, 0]).tolist() == [k % 2 == 0 for k in wanted]
    assert 0 < here["points"].min() and here["points"].max() < 1                # shares of the width
    source.clips = [*clips, (9, range(1))]
    assert_raises("9 cannot", evaluate.observed, e, source)
    assert rendered == [0, 1, 2, 9]


def test_scores_of_a_motion_model(quick, toy, codes, scripts, tmp_path, capsys):
    """FID, FVD and their neighbours on a toy, against a computation of their own from all frames."""
    shutil.copy(toy / "motion.pt", tmp_path / "again.pt")
    read = quick(codes, toy / "motion.pt", tmp_path / "again.pt", holdout=codes, **scripts)
    text, tables = capsys.readouterr().out, read["tables"]
    model, G = models.load_image_model(toy / "image.pt"), sample.load_motion(toy / "motion.pt")[0]
    x = np.load(codes)

    def rendered(w):
        return transfer.render(model, torch.from_numpy(np.asarray(w)), 16)

    def of_frames(frames):
        return SmallInception()(torch.from_numpy(frames).permute(0, 3, 1, 2), True).numpy()

    def of_clips(clips):
        return SmallI3D()(torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3), True, True, True).numpy()

    real, starts = rendered(x), [*range(26), *range(50, 66)]
    windows = np.concatenate([of_clips([real[s:s + 25]]) for s in starts])      # 42, of which 12 are drawn
    drawn = [k * 41 // 11 for k in range(12)]
    short = [rendered(np.concatenate(list(sample.sample(G, 25, k)))) for k in range(12)]
    long = [rendered(np.concatenate(list(sample.sample(G, 140, evaluate.LONG_SEED + k)))) for k in range(3)]
    expected = {"FID short": (of_frames(real), of_frames(np.concatenate(short))),
                "FVD short": (windows[drawn], of_clips(short)),
                "FID long": (of_frames(real), of_frames(np.concatenate(long))),
                "FVD long": (windows[drawn], of_clips([x[s:s + 25] for x in long for s in (0, 38, 76, 115)]))}
    row = tables[evaluate.PICTURES][f"{evaluate.OWN} | {evaluate.RECONSTRUCTION}"]
    for column, sets in expected.items():
        assert row[column] == pytest.approx(2 * [train.frechet(*sets)], rel=1e-4, abs=1e-4), column
    assert f"{row['FVD long'][0]:.1f} ± 0.0" in text and "FID and FVD: Fréchet distance" in text
    assert "These are not the paper's counts (--full)" in " ".join(text.split())
    assert len(tables[evaluate.PICTURES]) == 1                                  # the source is not there

    # The same video as held-out one: the same distances
    training, holdout = (tables[title] for title in evaluate.MOTION.values())
    assert holdout == training and len(training["sampled, 200"]["mmd"]) == 2 and "looping" in text
    assert training["real windows, training"] == training["real windows, holdout"]
    assert set(tables[evaluate.LOOPING]) == {"sampled", "training video", *evaluate.FREE}
    assert {"sampled, short", "sampled, long", "frozen frames", *evaluate.FREE} < set(training)
    assert [len(lines) for lines in read["ahead"].values()] == 2 * [len(evaluate.FREE)]
    settings = read["settings"]
    assert {codes, toy / "motion.pt", ROOT / "train.py"} <= set(map(Path, settings["files"]))
    assert settings["sets"][0] == {"short": {"FID": 90, "FVD": 12}} and settings["frames"] == 3
    assert "42 windows of 25 frames in the training video" in text and settings["versions"]["torch"]
    # Too few for a covariance: refused before anything is computed
    np.save(tmp_path / "few.npy", x[:33])
    evaluate.QUICK["fvd_clips"] = 4
    assert_raises("few.npy: 4 clips of 25 frames are too few for --i3d",
                  quick, tmp_path / "few.npy", toy / "motion.pt", i3d=scripts["i3d"])


def test_kinds_of_models_and_what_was_held_out(quick, toy, codes, tmp_path):
    """Files of one kind are one row, mean and deviation; the end that train.py kept out is held out here."""
    motion = torch.load(toy / "motion.pt", weights_only=True)
    for k in (1, 2):
        torch.save({**motion, "holdout": [40, 50]}, tmp_path / f"{k}.pt")       # the end of the first shot
    x = train.coordinates(torch.from_numpy(np.load(codes)), motion["pca"])
    G = models.motion_model("textures")(L, D).fit(x, [(0, 40), (50, 90)], motion["pca"])
    torch.save({**motion, "kind": "textures", "sizes": G.sizes, "generator": G.state_dict(),
                "holdout": [40, 50]}, tmp_path / "textures.pt")
    read = quick(codes, *(tmp_path / f"{name}.pt" for name in (1, 2, "textures")), window=6)
    training, holdout = (read["tables"][title] for title in evaluate.MOTION.values())
    assert len(training["stylevideogan: sampled, long"]["mmd"]) == 2
    assert len(holdout["textures: sampled, short"]["mmd"]) == 1
    assert "70 windows of 6 frames in the training video." in read["notes"]
    assert "5 windows of 6 frames in the holdout video." in read["notes"]
    assert any(note.startswith("textures: computed, ") for note in read["notes"])
    assert len(read["ahead"][next(iter(read["ahead"]))]) == 2 * len(evaluate.FREE)
    # Models that disagree on what was held out: nothing is
    read = quick(codes, tmp_path / "1.pt", toy / "motion.pt", window=6)
    assert "80 windows of 6 frames in the training video." in read["notes"] and len(read["ahead"]) == 1


def test_evaluate_by_its_command_line(toy, codes, tmp_path):
    result = run("evaluate.py", codes, toy / "motion.pt", "--holdout", codes, cwd=tmp_path)
    assert_done(result, "no training video where", "results.html")
    assert b"Motion, from the codes" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["results.html", "results.json"]


def test_an_interrupted_evaluation_goes_on(quick, toy, codes, scripts, tmp_path, monkeypatch):
    """Stopped in the features and in the clips; nothing that was finished is rendered again."""
    calls, render, stop = [], transfer.render, None

    def interrupted(*args, **options):
        calls.append(0)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return render(*args, **options)

    def evaluated(name):
        calls.clear()
        read = quick(codes, toy / "motion.pt", i3d=scripts["i3d"], json=tmp_path / name / "r.json")
        assert read.pop("seconds") > 0
        return read

    monkeypatch.setattr(transfer, "render", interrupted)
    monkeypatch.setitem(evaluate.QUICK, "clips", 2)
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    whole, total = evaluated("whole"), len(calls)
    shutil.rmtree(tmp_path / "cache")
    for stop in (9, 20):
        with pytest.raises(KeyboardInterrupt):
            evaluated("parts")
        assert len(calls) == stop and os.listdir(tmp_path / "parts") == []
    stop = None
    assert evaluated("parts") == whole
    assert total - 29 <= len(calls) < total - 29 + 12                   # at most a block or a clip twice
    assert sorted(os.listdir(tmp_path / "parts")) == ["r.html", "r.json"]


def test_videos_of_other_methods(quick, toy, codes, scripts, tmp_path, capsys):
    """A folder of pictures and files beside the motion model, and alone."""
    other, rng = tmp_path / "other", np.random.RandomState(0)
    (other / "clip0").mkdir(parents=True)
    for k in range(30):
        cv2.imwrite(str(other / "clip0" / f"{k}.png"), rng.randint(0, 255, (48, 48, 3), np.uint8))
    write_video(other / "clip1.mp4", rng.randint(0, 255, (140, 48, 48, 3), np.uint8))
    (other / "notes.txt").write_text("")
    read = quick(codes, toy / "motion.pt", videos=[other], inception=scripts["inception"])
    frames = np.concatenate([[*embed.read_video(other / name)][:25] for name in ("clip0", "clip1.mp4")])
    model = models.load_image_model(toy / "image.pt")
    real = transfer.render(model, torch.from_numpy(np.load(codes)), 16)
    sets = (SmallInception()(torch.from_numpy(x).permute(0, 3, 1, 2), True).numpy() for x in (frames, real))
    tables = read["tables"]
    row = tables[evaluate.PICTURES][f"{other} | {evaluate.RECONSTRUCTION}"]
    assert row["FID short"] == [pytest.approx(train.frechet(*sets), rel=1e-5)]
    assert len(tables[evaluate.PICTURES]) == 2 and read["settings"]["sets"][2]["long"] == {"FID": 140}
    assert tables[evaluate.FACES][str(other)] == {"found": [0]}                 # noise shows no face
    read = quick(codes, videos=[other], model=toy / "image.pt", window=12, json=tmp_path / "s.json")
    training = read["tables"][evaluate.MOTION["training"]]
    assert "sampled, short" not in training and read["settings"]["window"] == 12 and read["ahead"] == {}
    assert_raises("other: 2 clips .*too few for --i3d", quick, codes, videos=[other], i3d=scripts["i3d"])


def test_evaluate_the_embedded_clip(quick, embedded, tmp_path, monkeypatch, capsys):
    """The embedded models on 3 seconds of the demo: all that needs no download, and the page."""
    for name, value in (("clips", 2), ("frames", 20), ("every", 10)):
        monkeypatch.setitem(evaluate.QUICK, name, value)
    read = quick(embedded[0], ROOT / "assets" / "motion.pt")
    text = capsys.readouterr().out
    for words in ("Motion, from the codes", "Loops", "real windows", "shuffled", "LiA"):
        assert words in text
    rows = read["tables"][evaluate.FACES]
    seen = {row: {name: value for name, (value,) in values.items()} for row, values in rows.items()}
    assert all(seen[row]["found"] == 1 for row in evaluate.WAYS)
    assert 0 < seen["training video"]["ACD"] < seen["between the actors"]["ACD"]
    assert seen[evaluate.RECONSTRUCTION]["mouth r"] > 0.5

    # The page needs nothing from elsewhere, and browsers play its videos
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    uris = re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    videos = [uri for uri in uris if uri.startswith("data:video/mp4;base64,")]
    assert len(videos) == 2 == len(uris) and text.count("<table>") == 3 and "VAR(8) against sampled" in text
    for uri in videos:
        with av.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert len(list(container.decode(video=0))) == 10


def test_motion_models_side_by_side(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(sidebyside, "FRAMES", 40)
    output = tmp_path / "s.png"
    sidebyside.main(argparse.Namespace(latents=embedded[0], motion=ROOT / "assets" / "motion.pt", seed=0,
                                       model="faces128", output=str(output)))
    picture = cv2.imread(str(output))
    assert picture.shape == (8 * (sidebyside.TITLE + 128), 12 * 128, 3)
    assert not np.array_equal(picture[24:152], picture[176:304])                # each row its own motion


def test_truth_study(monkeypatch, capsys):
    """At its smallest, the image model's own pictures taken for renders: each table says what it must."""
    model, told = models.load_image_model("faces128"), []

    def rendered(z, size, what):
        """As if heads.params() were linear in what moves."""
        u = np.column_stack([stats.norm.ppf(0.5 + 0.49 * z[:, :heads.MOTION]), z[:, heads.MOTION:] / 0.42])
        told.append(len(z))
        mask = np.ones((len(z), size, size), bool)
        return truth.through_z(model, u.astype(np.float32)), {"eyes": mask, "mouth": mask}

    monkeypatch.setattr(truth, "rendered", rendered)
    monkeypatch.setattr(truth, "SMALL", {"heads": 60, "drawn": 40, "steps": 50, "held_out": 12, "clips": 1,
                                         "frames": 20, "ceiling": (2, 40)})
    truth.main(argparse.Namespace(motion=ROOT / "assets" / "motion.pt", full=False))
    lines = [line[1:-1].split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}
    assert told == [60, 12, 10, 10] and rows["faces that dlib finds, %"] == 3 * ["100.00"]
    assert rows["PSNR, dB"][0] == "-" and float(rows["PSNR, dB"][2]) > 22
    assert float(rows["sharpness, eyes"][2]) < 1.1 and 0 < float(rows["identity distance"][2]) < 0.5
    assert all(float(share) > 0.5 for share in rows["yaw"][:4]) and 0 < float(rows["yaw"][4]) < 10
    assert all(0 < int(cell.split()[0]) <= 11 for cell in rows["motion, R2 above 0.5"][:4])
    assert rows["training actor"][1] == "-" and float(rows["perfect transfer"][1]) > 0.5


def test_what_truth_counts():
    """A reader that reads tone and yaw alone: drift, motion kept; and whether one way is ahead of two."""
    tone, yaw = heads.NAMES.index("tone"), heads.NAMES.index("yaw")
    reader = {"r2": np.isin(np.arange(heads.Z), (tone, yaw)), "spread": np.full(heads.Z, 0.5)}
    read, own = np.random.RandomState(1).standard_normal((2, 60, heads.Z))
    read[:, tone] = np.tile([0.1, -0.1], 30)
    assert truth.drift(read, reader) == pytest.approx(100 * 0.1 / 0.5)
    read[:, yaw] = 0.5 * own[:, yaw] + 3
    assert truth.kept(read, own, reader) == pytest.approx((1, 1 - 0.25))
    columns = (0.9, 0.8, 0.7), (0.8, 0.9, 0.6), (0.7, 0.1, 0.6)
    assert truth.ahead({way: {"r": column} for way, column in zip(truth.WAYS, columns)}, "r") == 2


def test_a_mirrored_head_is_read_as_one():
    """Reading a picture and its mirror image differ by the sign of what turns round."""
    pictures = np.random.RandomState(0).randint(0, 256, (6, 128, 128, 3)).astype(np.uint8)
    z = np.random.RandomState(1).standard_normal((6, heads.Z)).astype(np.float32)
    z[:, truth.MIRROR.numpy() < 0] -= z[:, truth.MIRROR.numpy() < 0].mean(0)
    read = truth.picture_reader(pictures, z, 2)
    a, b = read(pictures), read(pictures[:, :, ::-1])
    assert a.shape == z.shape and np.allclose(a * truth.MIRROR.numpy(), b, atol=1e-4)
    view = truth.views(np.arange(128, dtype=np.uint8)[None, :, None, None].repeat(128, 2).repeat(3, 3))
    assert view.shape == (1, 6, 80, 80) and view[0, 0, 0, 0] == 40 and view[0, 0, -1, 0] == 119


# ------------------------------------------------------------------------------------------------------------
# baselines/
# ------------------------------------------------------------------------------------------------------------

def motion_model(kind):
    """An untrained model on a toy video, 200 frames of 4 x 16 in two clips: (generator, codes, pca)."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 40, generator=rng).cumsum(0) @ torch.randn(40, 64, generator=rng)
    codes, clips = x.reshape(200, 4, 16), [(0, 120), (120, 200)]
    pca = train.fit_pca(codes.numpy())
    torch.manual_seed(1)
    G = models.motion_model(kind)(4, 16)
    if hasattr(G, "prepare"):
        G.prepare(codes, clips, pca)
    if hasattr(G, "fit"):
        G.fit(train.coordinates(codes, pca), clips, pca)
    return G, codes, pca


@pytest.mark.parametrize("kind", models.MOTION_MODELS)
def test_motion_models_stream(kind):
    """Frames in pieces are those of one roll; memory is all; any time between frames."""
    G, _, _ = motion_model(kind)
    assert G.kind == kind
    other = models.motion_model(kind)(**G.sizes)                                # as from a file
    other.load_state_dict(G.state_dict())
    i, s = torch.randn(3, G.start), torch.randn(3, 101, G.noise)
    with torch.no_grad():
        G.eval(), other.eval()
        whole, h = G.motion(i, s), G.hidden(i)
        assert whole.shape[:2] == (3, 102) and h.shape[:2] == (G.memory, 3) and whole.isfinite().all()
        parts = [G.code(h)[:, None]]
        for K, network in zip((1, 19, 41, 39, 1), (G, other, other, G, other)):
            l, h = network.roll(s[:, :K], h.clone())
            assert torch.allclose(network.code(h), l[:, -1], atol=1e-4)
            parts, s = [*parts, l], s[:, K:]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4 * max(1, float(whole.std())))
        assert G.translate(whole).shape == (3, 102, 4, 16)

        if getattr(G, "continuous", False):
            s, h = torch.randn(3, 40, G.noise), G.hidden(i)
            l, after = G.roll(s, h)
            same, too = G.roll(s, h, torch.arange(1.0, 41))
            assert torch.equal(l, same) and torch.equal(after, too)
            fine, _ = G.roll(s, h, torch.arange(1, 4001) / 100)
            assert torch.allclose(fine[:, 99::100], l, atol=1e-4)
            assert fine.diff(dim=1).abs().max() < 0.05 * l.diff(dim=1).abs().max()


@pytest.mark.parametrize("kind", OTHERS)
def test_motion_models_learn_with_all_they_have(kind):
    G, codes, _ = motion_model(kind)
    w = G(torch.randn(8, G.start), torch.randn(8, 40, G.noise))
    (w.square().mean() + (G.extra() if hasattr(G, "extra") else 0)).backward()
    assert not [name for name, p in G.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert 0.1 < w.std() / codes.std() < 3                                      # at the training codes' scale


@pytest.mark.parametrize("kind", OTHERS)
def test_other_motion_models_train_resume_and_are_sampled_at_any_rate(kind, codes, tmp_path, quick_reports):
    path, words = tmp_path / "m.pt", ("--model", kind, "--horizon", 20, *SMALL)
    trained(codes, path, "--steps", 2, *words)
    motion = trained(codes, path, "--steps", 3, "--resume", *words)
    assert motion["kind"] == motion["options"]["model"] == kind and motion["step"] == 3
    G, _ = sample.load_motion(path)
    w, twice, slow = (np.concatenate([*sample.sample(G, T, 5, every=Fraction(1, n))])
                      for T, n in ((70, 1), (139, 2), (24, Fraction(1, 3))))
    assert w.shape == (70, L, D) and np.isfinite(twice).all()
    assert np.allclose(twice[::2], w, atol=1e-5) and np.allclose(slow, w[::3], atol=1e-5)
    assert np.abs(np.diff(twice, axis=0)).max() < np.abs(np.diff(w, axis=0)).max()
    shorter = np.concatenate([*sample.sample(G, 33, 5, every=Fraction(1, 2))])
    assert np.array_equal(shorter, twice[:33])


def test_acyclic_waves_by_hand():
    """v(t) of StyleGAN-V's eq. 2 to 5, and that it passes through A u at grid points."""
    G, _, _ = motion_model("stylegan_v")
    waves, u = G.waves, torch.randn(1, 3, 16)
    n, W, R, A = len(waves.sigma), *G.waves.heads.weight.split([8, 8, 16])
    v = waves(u, torch.tensor([[0.0, 16.0, 21.0]]))[0]
    assert torch.allclose(v[:2], u[0, :2] @ A.T, atol=1e-5)
    period = 2 * math.pi / waves.sigma
    assert n == 8 and torch.allclose(period[[0, -1]], torch.tensor([8.0, 1024.0])) and 8 < period[1] < 20

    def p(t):
        angle = (1 + torch.tanh(W @ u[0, 1])) * waves.sigma * t + 1024 / period * (R @ u[0, 1])
        return torch.cat([angle.sin(), angle.cos()])

    lerp = p(5) - (11 * p(0) + 5 * p(16)) / 16 + A @ (11 * u[0, 1] + 5 * u[0, 2]) / 16
    assert torch.allclose(v[2], lerp, atol=1e-5)


def test_first_frames_of_styleinv_are_its_first_codes():
    """v_0 is the same for all, whatever noise comes; --first is found again in the memory and in w_0."""
    G, codes, pca = motion_model("styleinv")
    i, s = torch.randn(2, G.start), torch.randn(2, 20, G.noise)
    i[1, 32:] = i[0, 32:]                                                       # one first frame, two motions
    with torch.no_grad():
        l = G.motion(i, s)
        assert torch.allclose(l[0, 0], l[1, 0]) and not torch.allclose(l[0, 5], l[1, 5], atol=1e-3)
        G.leave.weight.zero_()
        w = G(G.begin(i, codes[7]), s)
    seen = train.coordinates(codes[7], pca) @ pca["basis"].flatten(1) + pca["mean"].flatten()
    assert torch.allclose(w.flatten(2), seen.expand(2, 21, -1), atol=1e-2)


def test_digan_by_hand():
    """z_C alone makes the first frame; every phase ends up at a speed of its own."""
    G, _, _ = motion_model("digan")
    i, s = torch.randn(3, 64), torch.randn(3, 2000, 32)
    i[1:, :32] = i[0, :32]                                                      # one face, three motions
    with torch.no_grad():
        w, l = G.content(i[:, :32]), G.motion(i, s)
        speed = 4 / 15 * (torch.cat([w, i[:, 32:]], 1) @ G.speed.weight.T)   # biases are zero at the start
        bent = 7 * torch.where(speed > 0, speed, 0.01 * speed) @ G.bend[0].weight.T
        angle = w @ G.phase.weight.T + torch.where(bent > 0, bent, 0.2 * bent) @ G.bend[2].weight.T
        assert torch.allclose(l[:, 7], torch.cat([angle.sin(), angle.cos()], 1), atol=1e-5)
        assert torch.allclose(l[0, 0], l[1, 0]) and not torch.allclose(l[0, 9], l[1, 9], atol=0.01)
        G.bend[0].bias.normal_()
        l = G.motion(i, s)
    turned = torch.atan2(*l.chunk(2, 2)).diff(dim=1)                            # (3, 2000, 128)
    speeds = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
    assert torch.allclose(speeds[:, 1000], speeds[:, -1], atol=2e-3)
    assert (speeds[:, 0] - speeds[:, -1]).abs().max() > 0.01


def test_longvideogan_is_a_bank_of_low_pass_filters():
    """scipy's filters; of variance 1 in the first frame as in later ones, and nothing else stays."""
    for taps in (8, 105, 1000):
        f = scipy.signal.firwin(taps, 2, width=12, fs=2 * taps)
        assert np.allclose(longvideogan.low_pass(taps), f / np.linalg.norm(f), atol=1e-6)
    G, _, _ = motion_model("longvideogan")
    assert [(f != 0).sum() for f in G.bank][::5] == [8, 40, 200, 1000] and G.bank[0, -8:].min() > 0
    i, s = torch.randn(1000, G.start), torch.randn(1000, 1100, G.noise)
    x = G.filtered(torch.cat([G.hidden(i), s.permute(2, 0, 1)], 2))[:, [0, 1100]]           # (1000, 2, 64)
    assert (x.std(0) - 1).abs().max() < 0.15 and x.mean(0).abs().max() < 0.15
    assert (x[:, 0] * x[:, 1]).mean(0).abs().max() < 0.15                       # forgotten after 1,000 frames
    assert torch.allclose(x[:, 0, 0], i[:, 992:1000] @ G.bank[0, -8:], atol=1e-5)


def test_gp_start_begins_with_the_videos_covariance():
    G, codes, pca = motion_model("gp_start")
    x = train.sample_coordinates(G.eval(), 2000, 2, pca, torch.Generator().manual_seed(0)) / pca["std"]
    real = train.coordinates(codes, pca) / pca["std"]
    for lag in (0, 1):
        of_video = (real[lag:120].T @ real[:120 - lag] + real[120 + lag:].T @ real[120:200 - lag]) / 200
        assert ((x[:, lag].T @ x[:, 0]) / 2000 - of_video).abs().max() < 0.15


def test_sparse_critic_by_hand(codes, tmp_path, quick_reports):
    """Which frames it sees; its losses at a score of zero; a training with it."""
    C = models.motion_critic("sparse")(1, 16, 12)
    w = torch.arange(12.0).expand(4000, 16, 12).transpose(1, 2)[:, :, None]     # every entry says its frame
    x, distances = C.frames(w, torch.rand(4000, 3))
    t = x[..., 0].long()                                                        # (4000, 3)
    assert t.min() == 0 and t.max() == 11 and torch.equal(t.diff(dim=1), distances) and distances.min() == 1
    spans = (t[:, 2] - t[:, 0]).bincount(minlength=12)
    assert spans[:2].sum() == 0 and (spans[2:] - 400).abs().max() < 100         # 2 to 11, equally often
    real, fake, times = torch.randn(8, 12, 1, 16), torch.randn(8, 12, 1, 16), torch.rand(8, 3)
    with torch.no_grad():
        assert (C.score(x[:5], distances[:5]) - C.score(x[:5], distances[:5] + 1)).abs().min() > 0
    C.losses(real, fake, times)[0].backward()
    assert not [name for name, p in C.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    nn.init.zeros_(C.head[-1].weight), nn.init.zeros_(C.head[-1].bias)
    whole, loss, r1 = (value.item() for value in C.losses(real, fake, times))
    assert whole == loss == pytest.approx(2 * math.log(2)) and r1 == 0
    assert C.generator_loss(fake, times).item() == pytest.approx(math.log(2))
    words = "--critic", "sparse", "--steps", 2, "--horizon", 20, *SMALL
    assert trained(codes, tmp_path / "m.pt", *words)["step"] == 2


def test_one_style_finds_the_motion_of_its_own_clip():
    G, _, _ = motion_model("one_style")
    G(torch.randn(64, 32), torch.randn(64, 40, 32))                             # BatchNorm's statistics
    G.eval().requires_grad_(False)
    t = torch.arange(60)
    clip = G.translate(G.style(torch.randn(32)) * G.waves(t))                   # (60, 4, 16)
    found = G.translate(one_style.invert(G, clip) * G.waves(t))
    other = G.translate(G.style(torch.randn(32)) * G.waves(t))
    assert one_style.explained(clip, found) > 0.95 > 0.5 > one_style.explained(clip, other)
    assert one_style.explained(clip, one_style.least_squares(G, clip)) > 0.999  # 129 numbers for 60 frames


def test_one_style_command_line(toy, codes, tmp_path, capsys, quick_reports):
    trained(codes, tmp_path / "m.pt", "--model", "one_style", "--steps", 1, *SMALL)
    one_style.main(argparse.Namespace(motion=tmp_path / "m.pt", latents=codes))
    head, *rows = capsys.readouterr().out.splitlines()
    rows = [[float(cell) for cell in row.split()] for row in rows]
    assert [row[0] for row in rows] == [15, 30, 50] and all(row[1] < row[2] <= 1 for row in rows)
    assert_raises("kind stylevideogan",
                  one_style.main, argparse.Namespace(motion=toy / "motion.pt", latents=codes))


# ------------------------------------------------------------------------------------------------------------
# Every script: what is refused
# ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def unusable(toy, tmp_path_factory):
    """A folder of the toy models, with codes and videos that are whole and that are not."""
    folder = tmp_path_factory.mktemp("unusable")
    for name in ("image.pt", "motion.pt", "motion_own.pt"):
        shutil.copy(toy / name, folder)
    for name in ("folder.npy", "empty"):
        (folder / name).mkdir()
    beeping(folder / "sound.mp4", 1, "aac", video=False)
    mux(folder / "v.mp4", counting(3))
    (folder / "stub.mp4").write_bytes((folder / "v.mp4").read_bytes()[:200])
    good = np.random.RandomState(0).standard_normal((40, L, D)).astype(np.float32)
    nan = np.where(np.arange(40)[:, None, None] == 37, np.nan, good)
    arrays = {"good": good, "nan": nan, "flat": good.reshape(40, -1), "size": good[:, :4], "short": good[:20],
              "none": good[:0], "two": np.stack([good, good]), "still": np.ones_like(good),
              "grey": np.ones(good.shape, np.uint8), "object": np.array({"w": good})}
    for name, codes in arrays.items():
        np.save(folder / f"{name}.npy", codes)
    for name, length in (("cut", -5000), ("head", 40)):
        (folder / f"{name}.npy").write_bytes((folder / "good.npy").read_bytes()[:length])
    np.savez(folder / "other.npz", z=good)
    torch.save({"latent": torch.from_numpy(good)}, folder / "named.pt")
    torch.save(Bomb(os.mkdir, "ran"), folder / "bomb.pt")
    (folder / "cut.pt").write_bytes((folder / "motion.pt").read_bytes()[:5000])
    torch.save({**torch.load(folder / "motion.pt", weights_only=True), "kind": "os"}, folder / "kind.pt")
    return folder


@pytest.mark.parametrize("line, words", (
    ("embed.py sound.mp4", "audio only"), ("embed.py stub.mp4", "stub.mp4 is not a video"),
    ("embed.py folder.npy", "holds no pictures"), ("embed.py absent", "absent does not exist"),
    ("embed.py v.mp4", "no face found"), ("embed.py -clip.mp4", "-clip.mp4 .* ./-clip.mp4"),
    ("embed.py v.mp4 -o x.txt", "x.txt does not end"), ("embed.py v.mp4 -o folder.npy", "cannot be written"),
    ("embed.py v.mp4 -o no/x.npy", "x.npy cannot be written"), ("embed.py x.png -o x.npy", "be overwritten"),
    ("embed.py v.mp4 --fps 0", "--fps 0"), ("embed.py v.mp4 --batch 0", "--batch 0"),
    ("embed.py v.mp4 --face 0", "--face 0"), ("embed.py v.mp4 --device abacus", "abacus"),
    ("embed.py v.mp4 --model v.mp4", "v.mp4 cannot be"),
    ("pretrain/heads.py --clip x.mp4 --seconds nan", "--seconds nan is out of range; give 0.1 to"),
    ("pretrain/heads.py --sheet no/x.png", "no/x.png cannot be written; name a .png in a folder that exists"),
    ("pretrain/heads.py --clip no/x.mp4", "no/x.mp4 cannot be written; name a file in a folder that exists"),
    ("pretrain/heads.py --cut no", "No such file or directory: 'no/mpfb2"),
    ("pretrain/image_model.py no.mp4 --size 32", "no.mp4"),
    ("pretrain/image_model.py no.mp4 --batch 0", "--batch 0 .*give 2 or more"),
    ("pretrain/image_model.py no.mp4 --device abacus", "--device abacus"),
    ("train.py absent.npy", "absent.npy .*python embed.py VIDEO"), ("train.py grey.npy", "holds uint8"),
    ("train.py v.mp4", "v.mp4 .*neither of NumPy nor of PyTorch.*embed.py VIDEO"),
    ("train.py cut.npy", "cut.npy .*cut short"), ("train.py flat.npy", r"flat.npy .*\(40, 128\)"),
    ("train.py two.npy", r"\(2, 40, 8, 16\)"), ("train.py none.npy", r"float32 of shape \(0, 8, 16\)"),
    ("train.py nan.npy", "nan.npy .* 1 of 40 frames, the first in frame 37"),
    ("train.py short.npy --window 6", "20 frames"), ("train.py still.npy --window 6", "no motion"),
    ("train.py object.npy", r"np.save\(.*allow_pickle=True"), ("train.py other.npz", r"it has: z.*np.save"),
    ("train.py bomb.pt", "bomb.pt .*UnpicklingError"),
    ("train.py named.pt", r"it has: latent.*torch.load\('named.pt'\)\[NAME\]"),
    ("train.py good.npy --batch 3", "--batch 3 .* least 4"),
    ("train.py good.npy --model noise --steps 9 --window 6", "--model noise is computed.*leave out --steps"),
    ("train.py good.npy -o no/m.pt --window 6", "m.pt cannot be written"),
    ("train.py good.npy -o m.csv --window 6", "m.csv would be overwritten .*-o"),
    ("train.py good.npy --seed 1e3", "--seed: invalid int value: '1e3'"),
    (f"train.py good.npy --seed {2 ** 32}", f"--seed: {2 ** 32} is not in"),
    ("train.py good.npy --lr 1e30 --steps 20 --window 6 --batch 8 --threads 1",
     "diverged.*no model was saved.*lower --lr"),
    ("sample.py --motion none.pt", "none.pt does not exist"), ("sample.py --t 0", "--t 0 .* at least 1"),
    ("sample.py --motion cut.pt", "cut.pt is not a motion"), ("sample.py --device abacus", "--device abacus"),
    ("sample.py --motion image.pt", "image.pt is not a motion model"),
    ("sample.py --motion kind.pt", "kind.pt is a motion model of the kind 'os', unknown.*textures"),
    ("sample.py --fps 0", "--fps 0.0: .* from 0.1"), ("sample.py --seed -1", "--seed -1: .* whole number"),
    ("sample.py --first good.npy", "--first good.npy: .* begins with noise alone"),
    ("sample.py -o folder.npy", "be written"), ("sample.py -o no/x.npy", "x.npy cannot be written"),
    ("transfer.py head.npy", "head.npy is no readable file of codes"), ("transfer.py .", "is a folder"),
    ("transfer.py flat.npy", r"flat.npy holds float32 of shape \(40, 128\)"),
    ("transfer.py size.npy", "size.npy has codes of 4 x 16"),
    ("transfer.py nan.npy", "nan.npy has NaN or infinite values in frame 37"),
    ("transfer.py cut.npy", "cut.npy is cut short: its head promises 40 frames, 30 came"),
    ("transfer.py good.npy -o .", "a file that ends in"), ("transfer.py good.npy -o no/v.mp4", "be written"),
    ("transfer.py good.npy --fps -1", "--fps from 0.1"), ("transfer.py good.npy --fps nan", "--fps from 0.1"),
    ("transfer.py good.npy --face 2", "--actor"), ("transfer.py good.npy --actor no.jpg", "no.jpg"),
    ("transfer.py good.npy --reference-frame 40", "good.npy has frames 0 to 39"),
    ("transfer.py good.npy --generator faces128", "faces128 takes codes of 12 x 128"),
    ("transfer.py good.npy --motion motion_own.pt --seed 7", "own was fitted to one video .*--actor none"),
    ("transfer.py good.npy --motion motion_own.pt --actor no.jpg", "own was fitted to one video"),
    ("transfer.py good.npy --motion motion_own.pt --model image.pt", "own.pt .*not of image"),
    ("evaluate.py good.npy absent.pt", "absent.pt"), ("evaluate.py good.npy", "nothing to measure.*--videos"),
    ("evaluate.py size.npy motion.pt", "size.npy has 4 x 16"),
    ("evaluate.py short.npy motion.pt", "short.npy: 20 frames"),
    ("evaluate.py good.npy motion.pt --holdout size.npy", "size.npy has 4 x 16"),
    ("evaluate.py good.npy motion.pt motion_own.pt", "belong together"),
    ("evaluate.py good.npy motion.pt --model faces128", "--model"),
    ("evaluate.py good.npy motion.pt --seed -1", "--seed: -1"),
    ("evaluate.py good.npy motion.pt --window 1", "--window: 1"),
    ("evaluate.py good.npy motion.pt --json no/r.json", "r.json cannot be written.*--json"),
    ("evaluate.py good.npy motion.pt --json r.html", "r.html cannot be written.*--json"),
    ("evaluate.py good.npy motion.pt --i3d motion.pt", "motion.pt is no TorchScript .*--i3d"),
    ("evaluate.py good.npy motion.pt --videos empty", "empty is no folder with videos"),
    ("evaluate.py good.npy motion.pt --videos v.mp4", "v.mp4 is no folder with videos")))
def test_refusals(unusable, call, monkeypatch, line, words):
    """One sentence that names the reason, status 2, and nothing is left behind."""
    monkeypatch.chdir(unusable)
    before = sorted(os.listdir())
    status, said = call(line)
    assert status == 2 and said.startswith(Path(line.split()[0]).name) and re.search(words, said), said
    assert sorted(os.listdir()) == before


# ------------------------------------------------------------------------------------------------------------
# The repository
# ------------------------------------------------------------------------------------------------------------

STAGES = ("models", "embed", "train", "sample", "transfer", "evaluate")


def test_the_embedded_demo_is_h264_that_dlib_reads():
    with av.open(str(DEMO)) as container:
        stream = container.streams.video[0]
        seconds = float(stream.frames / stream.average_rate)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25 and 20 <= seconds <= 60 and stream.height == stream.width == 512
        for k, frame in enumerate(container.decode(stream)):
            if k % 100 == 0:
                assert embed.landmarks(frame.to_ndarray(format="rgb24")) is not None, k


def imported(nodes):
    """First names of the modules that some of these syntax nodes import."""
    return {(node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
            for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}


def test_imports_run_one_way_along_the_pipeline():
    """A stage imports earlier ones only; models.py torch, numpy, the standard library; train.py no video; a
    motion model torch and models.py."""
    for k, stage in enumerate(STAGES):
        names = imported(ast.walk(ast.parse((ROOT / f"{stage}.py").read_text(encoding="utf-8"))))
        assert not names & {*STAGES[k:], "studies", "pretrain", "test_all"}, stage
        if stage == "models":
            assert names <= {*sys.stdlib_module_names, "torch", "numpy", "gdown"}, names
        if stage == "train":
            assert not names & {"embed", "av", "cv2", "dlib"}, names
    for path in {*(ROOT / "baselines").glob("*.py")} - {ROOT / "baselines" / "step.py"}:
        names = imported(ast.parse(path.read_text(encoding="utf-8")).body)      # not what a main() needs
        assert names <= {*sys.stdlib_module_names, "torch", "models", "baselines"}, path


@pytest.mark.parametrize("script", [f"{stage}.py" for stage in STAGES[1:]])
def test_every_script_has_help(script):
    result = run(script, "--help")
    assert result.returncode == 0 and b"usage:" in result.stdout


@pytest.mark.parametrize("folder", (".", "studies", "baselines", "pretrain"))
def test_what_a_script_names_when_it_runs_hides_nothing_of_its_own(folder):
    """What stands under the guard is not there when a test imports the script."""
    for path in (ROOT / folder).glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        guard = ast.Module([node for node in body if isinstance(node, ast.If)], [])
        names = [node for node in ast.walk(guard) if isinstance(node, ast.Name)]
        own = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert not own & {node.id for node in names if isinstance(node.ctx, ast.Store)}, path
