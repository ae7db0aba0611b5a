"""How fast each stage is beside the plain way of doing the same, measured in turns in one run.

    python -m studies.speed                       # every subject, small
    python -m studies.speed rendering --full      # 1024 px, as recorded in docs/experiments.md

A subject is a function that yields rows (what, {way: seconds}), ours first. Ratio: time of the plain way over
ours. The two take turns, so that whatever else the machine does meets both. Shown: the median of the rounds.
"""

import argparse
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import models
import transfer

ROOT = Path(__file__).resolve().parents[1]

# ------------------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------------------

def in_turns(ways, rounds, device="cpu"):
    """{name: function without arguments} -> {name: median of its seconds}, the first call of each aside."""
    seconds = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, function in ways.items():
            began = time.perf_counter()
            function()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            if k:                                       # the first one chooses algorithms and reserves memory
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(subject, rows):
    """The rows of a subject, as they come, as a Markdown table on standard output."""
    print(f"\n{subject}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | ours, ms | the plain way, ms | ratio |")
    print("|---|---|---|---|", flush=True)
    for what, seconds in rows:
        ours, plain = seconds.values()
        print(f"| {what} | {1e3 * ours:.2f} | {1e3 * plain:.2f} | {plain / ours:.2f} |", flush=True)


# ------------------------------------------------------------------------------------------------------------
# Rendering. The plain way: every sample's own modulated weights in a grouped convolution, and up-sampling by
# inserted zeros, as the standard PyTorch ports of StyleGAN2 do it
# ------------------------------------------------------------------------------------------------------------

def plain_resample(x, kernel, up, before, after):
    """Insert up - 1 zeros after every pixel, pad, filter: (B, C, H, W)."""
    B, C, H, W = x.shape
    x = F.pad(x.reshape(B * C, 1, H, 1, W, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(B * C, 1, H * up, W * up)
    x = F.conv2d(F.pad(x, (before, after, before, after)), kernel.flip(0, 1)[None, None])
    return x.reshape(B, C, *x.shape[2:])


def plain_convolution(conv, x, w, up=False):
    """What a modulated convolution makes of x (B, C, H, H) and w (B, D); the 3x3 ones are demodulated."""
    B, C, H, _ = x.shape
    c_out, k = conv.weight.shape[1], conv.weight.shape[-1]
    weight = conv.weight / math.sqrt(C * k * k) * conv.modulation(w).reshape(B, 1, C, 1, 1)
    if k == 3:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)

    x = x.reshape(1, B * C, H, H)
    if not up:
        x = F.conv2d(x, weight.reshape(B * c_out, C, k, k), padding=k // 2, groups=B)
        return x.reshape(B, c_out, H, H)
    x = F.conv_transpose2d(x, weight.transpose(1, 2).reshape(B * C, c_out, k, k), stride=2, groups=B)
    return plain_resample(x.reshape(B, c_out, 2 * H + 1, 2 * H + 1), conv.blur.kernel, 1, 1, 1)


def plain_render(g, w):
    """What generator g makes of W+ codes (B, L, D)."""
    def layer(conv, x, k, j):
        x = plain_convolution(conv.conv, x, w[:, j], conv.conv.up)
        x = x + conv.noise.weight * getattr(g.noises, f"noise_{k}")
        return F.leaky_relu(x + conv.activate.bias.reshape(1, -1, 1, 1), 0.2) * math.sqrt(2)

    x = layer(g.conv1, g.input.input.repeat(len(w), 1, 1, 1), 0, 0)
    rgb = plain_convolution(g.to_rgb1.conv, x, w[:, 1]) + g.to_rgb1.bias
    for n, to_rgb in enumerate(g.to_rgbs):
        x = layer(g.convs[2 * n], x, 2 * n + 1, 2 * n + 1)
        x = layer(g.convs[2 * n + 1], x, 2 * n + 2, 2 * n + 2)
        up = plain_resample(rgb, to_rgb.upsample.kernel, 2, 2, 1)
        rgb = plain_convolution(to_rgb.conv, x, w[:, 2 * n + 3]) + to_rgb.bias + up
    return rgb


@torch.no_grad()
def rendering(full=False):
    """Pictures of StyleGAN2: official widths with random weights, and faces128 in batches of 4."""
    device = models.pick_device("auto")
    for size in (1024, 256) if full else (128,):
        g = models.Generator(size).eval().requires_grad_(False).to(device)
        w = torch.randn(1, g.L, g.D, generator=torch.Generator().manual_seed(0)).to(device)
        ways = {"ours": lambda g=g, w=w: g(w), "plain": lambda g=g, w=w: plain_render(g, w)}
        yield f"{size} px, one picture", in_turns(ways, 5 if full else 3, device)

    g = models.load_image_model("faces128", device=device).generator
    w = torch.randn(4, g.L, g.D, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {"ours": lambda: g(w), "plain": lambda: plain_render(g, w)}
    yield "faces128, four pictures", in_turns(ways, 30 if full else 5, device)


# ------------------------------------------------------------------------------------------------------------
# The pipe of the README. The plain way: one script after the other, through a file
# ------------------------------------------------------------------------------------------------------------

def pipe(full=False):
    """sample.py | transfer.py with the models in assets/, loading included; sampling overlaps rendering."""
    T = 1500 if full else 100
    make, show = ([sys.executable, str(ROOT / script)] for script in ("sample.py", "transfer.py"))
    with tempfile.TemporaryDirectory() as folder:
        def run(words, **streams):
            subprocess.run(words, cwd=folder, stderr=subprocess.DEVNULL, check=True, **streams)

        def overlapped():
            with subprocess.Popen([*make, "--t", str(T)], cwd=folder, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL) as first:
                run(show, stdin=first.stdout)

        def one_after_the_other():
            run([*make, "--t", str(T), "-o", "walk.npy"])
            run([*show, "walk.npy"])

        ways = {"ours": overlapped, "plain": one_after_the_other}
        yield f"{T} frames of faces128", in_turns(ways, 5 if full else 1)


# ------------------------------------------------------------------------------------------------------------
# Embedding. The plain way: dlib's detector on every whole RGB frame enlarged once and landmarks in its last
# box, as the alignment scripts of pSp and e4e do; then the encoder, one crop at a time
# ------------------------------------------------------------------------------------------------------------

def embedding(full=False):
    """A frame of the demo (512 px): face track and crop, then crop and encoder of faces128."""
    import embed

    n, model = 300 if full else 25, models.load_image_model("faces128")
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "beginning.mp4"
        with transfer.VideoWriter(video, 25) as writer:
            for frame in itertools.islice(embed.read_video(ROOT / "assets" / "demo.mp4"), n):
                writer.write(frame)
        rows = embed.survey(video)["frames"]

        def crops():
            return embed.prefetch(embed.crops(video, rows, model.size))

        def track():
            for _ in embed.crops(video, embed.survey(video)["frames"], model.size):
                pass

        def plain_track():
            for frame in embed.read_video(video):
                boxes = embed.detector()(frame, 1)
                if boxes:
                    shape = embed.predictor()(frame, boxes[-1])
                    points = np.array([[(p.x, p.y) for p in shape.parts()]], float)
                    embed.warp(frame, embed.smooth_quads(points)[0], model.size)

        def encode(batch):
            for images in embed.in_batches(crops(), batch):
                model.encode(embed.to_network(images)).cpu()

        rounds = 3 if full else 1
        for what, ways in (("track and crop", {"ours": track, "plain": plain_track}),
                           ("crop and encode", {"ours": lambda: encode(16), "plain": lambda: encode(1)})):
            yield what, {way: seconds / n for way, seconds in in_turns(ways, rounds, model.device).items()}


# Each takes `full` and yields its rows as they are measured
SUBJECTS = {"rendering": rendering, "pipe": pipe, "embedding": embedding}


def main(args):
    for name in args.subject or SUBJECTS:
        print_table(name, SUBJECTS[name](args.full))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", nargs="*", help=f"any of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="official sizes and more rounds (minutes)")
    arguments = parser.parse_args()
    if unknown := set(arguments.subject) - set(SUBJECTS):
        print(f"There is no subject {sorted(unknown)[0]}; name {', '.join(SUBJECTS)}.", file=sys.stderr)
        sys.exit(2)
    main(arguments)
