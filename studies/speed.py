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
import train
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
# A training step. The plain way: the paper's formulas through autograd, convolutions, the codes themselves
# ------------------------------------------------------------------------------------------------------------

def plain_critic(C, w, later):
    """What MotionCritic C says of w (B, T, L, D), its windows of four frames as convolutions."""
    first, *others = C.extract
    x = F.leaky_relu(first(((w - C.mean) / C.std).flatten(2)) + later * C.later, models.SLOPE)
    for layer in others:
        x = F.leaky_relu(layer(x), models.SLOPE)
    *strided, last = C.judge
    x = x.transpose(1, 2)                                                               # (B, 32, T)
    for layer in strided:
        kernel = layer.weight.unflatten(1, (4, -1)).transpose(1, 2)                     # (2 c, c, 4)
        x = F.leaky_relu(F.conv1d(x, kernel, layer.bias, stride=2, padding=1), models.SLOPE)
    kernel = last.weight.unflatten(1, (x.shape[2], -1)).transpose(1, 2)                 # (1, c, t)
    return F.conv1d(x, kernel, last.bias).flatten()


def plain_penalty(C, real, fake, later, mix):
    """WGAN-GP penalty through autograd; real, fake (B, T, L, D), mix (B, 1, 1)."""
    w = (mix[..., None] * real + (1 - mix[..., None]) * fake).requires_grad_(True)
    gradient, = torch.autograd.grad(plain_critic(C, w, later).sum(), w, create_graph=True)
    return ((gradient * C.std).flatten(1).norm(dim=1) - 1).square().mean()


def plain_step(nets, adam, draws, codes, starts, args):
    """train.train_step() as one would write it down: the same numbers but for rounding."""
    G, C, norm, T = nets.G, nets.C, nets.norm, args.window
    b = draws["i"].shape[1]
    later = torch.zeros(args.batch, 1, 1, device=codes.device)
    later[b:] = 1
    for k in range(args.critic_steps):
        i, s = draws["i"][k].requires_grad_(True), draws["s"][k].requires_grad_(True)
        with torch.backends.cudnn.flags(enabled=False):
            first, end = G.roll(s, G.hidden(i))
            l = torch.cat([i[:, None], first], 1)
            if len(nets.pool):
                memory = nets.pool.transpose(0, 1).contiguous().clone()
                further, end_of_later = G.roll(draws["s_later"][k], memory)
                l = torch.cat([l, torch.cat([memory[3][:, None], further], 1)])
                begun, renew = end[:, :len(nets.pool)], draws["renew"][k][:, None]
                nets.pool.copy_(torch.where(renew, begun, end_of_later).transpose(0, 1).detach())
            w = G.translate(l)
        frames = starts[draws["place"][k]][:, None] + torch.arange(T, device=starts.device)
        real, fake = codes[frames], w.detach()
        loss_C = plain_critic(C, fake, later).mean() - plain_critic(C, real, later).mean()
        gp = plain_penalty(C, real, fake, later, draws["mix"][k])
        adam["C"].zero_grad()
        (loss_C + args.lambda_gp * gp).backward()
        adam["C"].step()

    loss_G = -plain_critic(C, w, later).mean()
    norm.update((l[:b, -1] - l[:b, 0]).detach())
    gap, phi = models.gradient_angle_penalty(l[:b], i, s, norm)
    adam["G"].zero_grad()
    (loss_G + args.lambda_gap * gap).backward()
    adam["G"].step()
    with torch.no_grad():
        for averaged, p in zip(nets.ema.parameters(), G.parameters()):
            averaged.lerp_(p, draws["ema"])
    return torch.stack([-loss_C, gp, loss_G, gap, phi.mean()]).detach()


def training(full=False):
    """A step of train.py's defaults on random codes of faces128's size; --full: FFHQ-1024's as well."""
    device = models.pick_device("auto")
    for L, D in ((12, 128), (18, 512)) if full else ((8, 64),):
        args = train.options_parser().parse_args(["none.npy"] + ["--batch", "32"] * (not full))
        train.settle(args)
        codes, starts = torch.randn(400, L, D, device=device), torch.arange(376, device=device)
        ways = {}
        for name, step in (("ours", train.train_step), ("plain", plain_step)):
            nets, adam = train.networks(codes, args)
            rng = torch.Generator().manual_seed(0)

            def go(step=step, nets=nets, adam=adam, rng=rng, args=args, codes=codes, starts=starts):
                draws = {key: v.to(device) for key, v in train.draw(rng, 2000, len(starts), args).items()}
                step(nets, adam, draws, codes, starts, args)
            ways[name] = go
        torch.set_float32_matmul_precision(train.MATMUL)
        yield f"a step, batch {args.batch}, codes {L} x {D}", in_turns(ways, 5 if full else 2, device)
        torch.set_float32_matmul_precision("highest")


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
SUBJECTS = {"rendering": rendering, "training": training, "pipe": pipe, "embedding": embedding}


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
