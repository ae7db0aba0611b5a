"""Everything that wants a GPU, in one command of at most eight minutes on one H100, from pseudo-weights.

    python -m studies.gpu -o gpu.json                          # all parts, a line each as they are done
    python -m studies.gpu --only step rendering                # some of them
    python -m studies.gpu --device cpu --tiny                  # the same code at toy size, on any machine

Needs no network, no face data and neither dlib nor av. A part that fails prints its traceback and the others
go on. Writes one JSON, and beside it gpu.profile.txt, the kernels of a training step by time.
"""

import argparse
import contextlib
import functools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import models
import train
from studies.goldens import fill, golden_error, pseudo, sine_images

ROOT = Path(__file__).resolve().parents[1]
SIZES = {False: ((18, 512), (12, 128)), True: ((4, 16),)}   # L x D: FFHQ-1024 and faces128; toy
FRAMES = {False: 15_024, True: 120}                         # 15,000 windows of 25: ten minutes of video
COMPARED = 4                                                # first steps in which the graph is compared


# ------------------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------------------

class CountFlops(TorchDispatchMode):
    """Multiplications and additions of matrix products and convolutions. torch's FlopCounterMode hooks
    modules as well, and that hook refuses the autograd.grad of the angle penalty."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in flop_registry:
            self.total += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function, device, count=10, warm=3):
    """Mean seconds of a call."""
    for _ in range(warm):
        function()
    finish(device)
    began = time.perf_counter()
    for _ in range(count):
        function()
    finish(device)
    return (time.perf_counter() - began) / count


def memory(device):
    """Peak MB since the last call."""
    if device.type != "cuda":
        return math.nan
    peak = torch.cuda.max_memory_allocated() / 2 ** 20
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 1)


@contextlib.contextmanager
def tf32(on):
    """TF32 in matrix products and convolutions."""
    kept = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = on
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept[0]
        torch.set_float32_matmul_precision(kept[1])


def synthetic_codes(N, L, D):
    """Smooth random motion (N, L, D) in 40 directions around a mean: as an embedded video has it."""
    rng = np.random.RandomState(0)
    white = rng.standard_normal((N + 24, 40))
    window = np.hanning(25) / np.linalg.norm(np.hanning(25))
    slow = np.stack([np.convolve(column, window, "valid") for column in white.T], 1)          # (N, 40)
    basis = rng.standard_normal((40, L * D)) * np.linspace(1, 0.1, 40)[:, None] / math.sqrt(L * D)
    return (slow @ basis + rng.standard_normal(L * D)).astype(np.float32).reshape(N, L, D)


def training(L, D, args):
    """Codes, starts and options of a training at that size, on the device."""
    options = train.options_parser().parse_args(["none.npy"] + ["--batch", "16", "--window", "6"] * args.tiny)
    train.settle(options)
    codes = torch.from_numpy(synthetic_codes(FRAMES[args.tiny], L, D)).to(args.device)
    starts = train.window_starts([(0, len(codes))], options.window).to(args.device)
    return codes, starts, options


def drawn(rng, step, starts, options, device):
    """Random numbers of a step on the device, as train.main brings them there."""
    draws = train.draw(rng, step, len(starts), options)
    if device.type == "cuda":
        draws = {name: value.pin_memory() for name, value in draws.items()}
    return {name: value.to(device, non_blocking=True) for name, value in draws.items()}


# ------------------------------------------------------------------------------------------------------------
# The parts. Each takes the arguments and returns what goes into the JSON
# ------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def goldens(args):
    """Both image networks against upstream's numbers, fp32 without TF32. Toy size: the mapping alone."""
    device, found = args.device, {}
    area = functools.partial(F.interpolate, size=(64, 64), mode="area")
    with tf32(False):
        average = pseudo("latent_avg", [512])
        model = models.ImageModel(fill(models.Generator(256)), None, average, device=device)
        z = torch.from_numpy(np.random.RandomState(701).standard_normal((4, 512))).float()
        w = model.map(z)
        found["stylegan2 w"] = golden_error("stylegan2 w", w[0, 0, ::64])
        if not args.tiny:
            images = model.render(w[:2])
            found["stylegan2 area64"] = golden_error("stylegan2 area64", area(images)[0, 1, 4::16, 4::16])
            found["stylegan2 corner32"] = golden_error("stylegan2 corner32", images[1, 0, :4, :4])
            truncated = area(model.render(model.map(z[:1], truncation=0.7)))[0, 2, 4::16, 4::16]
            found["stylegan2 trunc07 area64"] = golden_error("stylegan2 trunc07 area64", truncated)
            encoder = fill(models.GradualStyleEncoder(), "encoder.").to(device)
            codes = encoder(sine_images(101, 2, 256).to(device)) + pseudo("latent_avg", [18, 512]).to(device)
            found["psp codes"] = golden_error("psp codes", codes[1, ::3, ::128])
            images = fill(models.Generator(1024), "decoder.").to(device)(codes)
            found["psp area64"] = golden_error("psp area64", area(images)[0, 1, 4::16, 4::16])
            found["psp corner32"] = golden_error("psp corner32", images[1, 0, :4, :4])
    return {**found, "all below 1e-4": max(found.values()) < 1e-4}


def step(args):
    """A training step, eager against CUDA graph: numbers, steps per second, share of the peak, memory."""
    device, found = args.device, {}
    for L, D in SIZES[args.tiny]:
        codes, starts, options = training(L, D, args)
        rng, row = torch.Generator().manual_seed(0), {}
        torch.set_float32_matmul_precision(train.MATMUL)
        draws = [drawn(rng, k, starts, options, device) for k in range(COMPARED)]
        finish(device)

        def fresh(graph, codes=codes, starts=starts, options=options, draws=draws):
            nets, adam = train.networks(codes, options)
            data = {"codes": codes, "starts": starts, "args": options}
            advance = functools.partial(train.train_step, nets, adam, **data)
            example = {name: value.clone() for name, value in draws[0].items()}     # the graph overwrites it
            return train.graph_of(advance, example, nets, adam) if graph else advance

        # Compared are what the first steps log (train.LOGGED), from the same weights and the same random
        # numbers, which stay alive, each step finished before the next. "again" is eager a second time: what
        # differs there is the order of sums alone, and the graph should differ by no more
        logged = {}
        for way in ("eager", "again", "graph") if device.type == "cuda" else ("eager", "again"):
            advance, logged[way] = fresh(way == "graph"), []
            for numbers in draws:
                logged[way].append(advance(numbers).tolist())                       # waits for the device
            if way == "again":
                continue
            memory(device)
            took = seconds(lambda advance=advance, rng=rng, starts=starts, options=options: advance(
                drawn(rng, COMPARED, starts, options, device)), device, 3 if args.tiny else 30)
            row[way] = {"steps per second": 1 / took, "MB": memory(device)}
            del advance
        row["logged, by step"] = logged
        for way in list(logged)[1:]:
            away = (torch.tensor(logged[way]) - torch.tensor(logged["eager"])).abs().amax(1)
            row[f"largest difference of {way} from eager, by step"] = away.tolist()
        if "graph" in row:
            row["graph over eager"] = row["graph"]["steps per second"] / row["eager"]["steps per second"]

        with CountFlops() as counter:
            fresh(False)(draws[0])
        n = 256 if args.tiny else 8192
        a = torch.randn(n, n, device=device)
        row["TFLOP/s of a large product"] = 2 * n ** 3 / seconds(lambda a=a: a @ a, device) / 1e12
        row["GFLOP per step"] = counter.total / 1e9
        best = max(row[way]["steps per second"] for way in ("eager", "graph") if way in row)
        row["share of the large product"] = counter.total * best / 1e12 / row["TFLOP/s of a large product"]
        torch.set_float32_matmul_precision("highest")
        found[f"{L} x {D}"] = row
        del fresh, codes, draws
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def profile(args):
    """The kernels of an eager training step by time, as text."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (args.device.type == "cuda")
    L, D = SIZES[args.tiny][0]
    codes, starts, options = training(L, D, args)
    nets, adam = train.networks(codes, options)
    draws = functools.partial(drawn, torch.Generator().manual_seed(0), 0, starts, options, args.device)
    torch.set_float32_matmul_precision(train.MATMUL)
    train.train_step(nets, adam, draws(), codes, starts, options)
    with torch.profiler.profile(activities=activities, record_shapes=True) as record:
        train.train_step(nets, adam, draws(), codes, starts, options)
        finish(args.device)
    torch.set_float32_matmul_precision("highest")
    by = "self_device_time_total" if args.device.type == "cuda" else "self_cpu_time_total"
    tables = [record.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=90),
              record.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=30)]
    path = args.output.with_suffix(".profile.txt")
    path.write_text("\n\n".join(tables), encoding="utf-8")
    return {"table": path.name, "kinds": len(record.key_averages())}


def psnr(a, b):
    """Of pictures in [-1, 1], in dB."""
    return 10 * math.log10(4 / (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean().clamp_min(1e-12).item())


@torch.no_grad()
def rendering(args):
    """StyleGAN2: frames per second by precision and batch, PSNR against fp32, what channels last gives."""
    device, found = args.device, {}
    size, channels, batches, count = 1024, None, (1, 4, 8, 16, 32), 8
    if args.tiny:
        size, channels, batches, count = 16, {4: 8, 8: 8, 16: 8}, (1, 2), 1
    g = fill(models.Generator(size, channels=channels), "decoder.").to(device)
    w = torch.randn(max(batches), 1, g.D, generator=torch.Generator().manual_seed(0)).to(device)
    w = w.expand(-1, g.L, -1) * 0.5 + pseudo("latent_avg", [g.D]).to(device)
    with tf32(False):
        truth = g(w[:4])
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    ways = {"fp32": (False, torch.float32), "tf32": (True, torch.float32), "half": (True, half)}
    for name, (on, dtype) in ways.items():
        with tf32(on):
            row = {"PSNR": psnr(g(w[:4], dtype=dtype), truth)}
            for B in batches:
                memory(device)
                took = seconds(lambda B=B, dtype=dtype: g(w[:B], dtype=dtype), device, count, 2)
                row[f"frames per second, batch {B}"] = B / took
                row[f"MB, batch {B}"] = memory(device)
        found[name] = row
    with tf32(True), mock.patch.object(torch, "channels_last", torch.contiguous_format):
        B = batches[-2]
        took = seconds(lambda: g(w[:B], dtype=half), device, count, 2)
        found[f"half, not channels last: frames per second, batch {B}"] = B / took
    return found


@torch.no_grad()
def compiled(args):
    """torch.compile of the generator in half precision, whose first call takes long."""
    device, B = args.device, 2 if args.tiny else 8
    g = fill(models.Generator(8, channels={4: 8, 8: 8}) if args.tiny else models.Generator(1024), "decoder.")
    g = g.to(device)
    w = torch.randn(B, g.L, g.D, generator=torch.Generator().manual_seed(0)).to(device)
    half = torch.float16 if device.type == "cuda" else torch.float32
    call = torch.compile(g, backend="eager" if args.tiny else "inductor")
    with tf32(True):
        began = time.perf_counter()
        call(w, dtype=half)
        finish(device)
        first = time.perf_counter() - began
        took = {"plain": seconds(lambda: g(w, dtype=half), device),
                "compiled": seconds(lambda: call(w, dtype=half), device)}
    return {"first call, s": first, **{f"{name}, frames per second": B / took[name] for name in took}}


@torch.no_grad()
def encoder(args):
    """The pSp encoder: frames per second and error by precision and batch."""
    device, found = args.device, {}
    toy = {"L": 4, "D": 16, "size": 32, "depths": (1, 1, 1, 1), "widths": (4, 8, 12, 16)}
    e = fill(models.GradualStyleEncoder(**(toy if args.tiny else {})), "encoder.").to(device)
    batches = (1, 2) if args.tiny else (1, 8, 32, 64)
    images = sine_images(101, 2, e.size).repeat(max(batches) // 2, 1, 1, 1).to(device)
    with tf32(False):
        truth = e(images[:2])
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    for name, on, autocast in (("fp32", False, False), ("tf32", True, False), ("half", True, True)):
        with tf32(on), torch.autocast(device.type, half, enabled=autocast):
            row = {"largest error in deviations": ((e(images[:2]) - truth).abs().max() / truth.std()).item()}
            for B in batches:
                row[f"frames per second, batch {B}"] = B / seconds(lambda B=B: e(images[:B]), device, 5, 2)
        found[name] = row
    return found


def script(args, *words):
    """train.py in a process of its own -> seconds. Its words on stderr become the error."""
    began = time.perf_counter()
    device = [] if args.device.type == "cuda" else ["--device", "cpu"]
    command = [sys.executable, ROOT / "train.py", *map(str, words), *device]
    done = subprocess.run(command, text=True, capture_output=True, cwd=args.folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - began


def small_codes(args):
    """Codes in a file for whole trainings, and options that make them short."""
    path = args.folder / "small.npy"
    if not path.exists():
        np.save(path, synthetic_codes(120 if args.tiny else 600, *SIZES[args.tiny][-1]))
    return [path] + ["--batch", "16", "--window", "6"] * args.tiny


def resume(args):
    """Half of a training and the rest with --resume, against the whole."""
    words, steps = small_codes(args), 4 if args.tiny else 60
    runs = (("whole", steps, ()), ("parts", steps // 2, ()), ("parts", steps, ("--resume",)))
    for name, until, more in runs:
        script(args, *words, "-o", f"{name}.pt", "--steps", until, "--report-every", 1000, *more)
    whole, parts = (torch.load(args.folder / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    pairs = [(whole["generator"][name], parts["generator"][name]) for name in whole["generator"]]
    return {"bit-equal": all(torch.equal(a, b) for a, b in pairs), "steps": parts["step"],
            "largest difference": max((a.double() - b.double()).abs().max().item() for a, b in pairs)}


def epochs(args):
    """350 epochs of 15,000 windows at full size, projected from 200 steps, and run while time is left."""
    L, D = SIZES[args.tiny][0]
    path = args.folder / "codes.npy"
    np.save(path, synthetic_codes(FRAMES[args.tiny], L, D))
    words = [path, *small_codes(args)[1:], "--report-every", 10 ** 6]
    steps = 6 if args.tiny else 200
    whole = script(args, *words, "-o", "some.pt", "--steps", steps)
    row = train_report(args.folder / "some.csv")
    rate, total = row["steps_per_second"], math.ceil(350 * row["step"] / row["epoch"])
    found = {"steps per second": rate, "steps of 350 epochs": total, "minutes projected": total / rate / 60,
             "seconds of start and report": whole - steps / rate}

    left = args.deadline - time.perf_counter() - found["seconds of start and report"] - 10
    steps = 6 if args.tiny else min(total, int(0.95 * left * rate))
    if steps >= 6:
        took = script(args, *words, "-o", "long.pt", "--steps", steps)
        found["run"] = {"steps": steps, "all": steps == total, "minutes": took / 60,
                        **train_report(args.folder / "long.csv")}
    return found


def train_report(path):
    """Last row of a motion.csv."""
    names, *_, row = (line.split(",") for line in path.read_text().splitlines())
    return {name: float(value) for name, value in zip(names, row)}


PARTS = {"goldens": goldens, "step": step, "profile": profile, "rendering": rendering, "encoder": encoder,
         "resume": resume, "compiled": compiled, "epochs": epochs}


def apart(args):
    """torch.compile in a process of its own, as nothing else could end it when it takes too long."""
    path = args.folder / "compiled.json"
    words = ["--only", "compiled", "--device", args.device.type, "-o", path] + ["--tiny"] * args.tiny
    done = subprocess.run([sys.executable, "-m", "studies.gpu", *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True, timeout=min(120, args.deadline - time.perf_counter()))
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-1500:])
    return json.loads(path.read_text())["compiled"]


def rounded(value):
    """Four digits of every number, for the eye; numpy's as Python's; None for what is not known."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def main(args):
    began = time.perf_counter()
    args.deadline, args.device = began + args.seconds, models.pick_device(args.device)
    card = torch.cuda.get_device_name() if args.device.type == "cuda" else platform.processor() or "CPU"
    if args.device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())                  # as in train.py, whose graphs need it
    found = {"card": card, "torch": torch.__version__, "python": platform.python_version(),
             "date": time.strftime("%Y-%m-%d"), "tiny": args.tiny}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        for name in args.only or PARTS:
            if time.perf_counter() > args.deadline - 15:
                print(f"{name}: no time left", flush=True)
                continue
            start = time.perf_counter()
            try:
                found[name] = rounded((apart if name == "compiled" and not args.only else PARTS[name])(args))
            except Exception:                                       # whatever it is, the others go on
                found[name], failed = {"failed": traceback.format_exc()[-3000:]}, failed + 1
                traceback.print_exc()
            print(f"{name} ({time.perf_counter() - start:.0f} s): {json.dumps(found[name])}", flush=True)
            train.write_atomically(args.output, lambda part: part.write_text(json.dumps(found, indent=1)))
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
    print(f"wrote {args.output} after {time.perf_counter() - began:.0f} s; {failed} parts failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"), help="gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=460, help="after which nothing is begun: 460")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that all of it runs")
    sys.exit(main(parser.parse_args()))
