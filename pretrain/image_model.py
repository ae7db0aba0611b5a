"""Train an image model (StyleGAN2 generator + pSp encoder) on drawn faces, or on the frames of your own video.

    python -m pretrain.image_model faces -o assets/faces128.pt --steps 9000 --every 500 --pool 30000 --precision bf16
    python -m pretrain.image_model video.mp4 -o own.pt --steps 2500 --precision bf16   # then: python embed.py video.mp4 --model own.pt

Drawn faces: pretrain/faces.py turns z into a picture, so the generator is distilled with the true picture as target,
G(M(z)) = draw(params(z)), and the encoder learns to invert it. Such a model has any number of actors.
Video: generator and encoder are fitted together as an autoencoder, G(E(x)) = x. There is no z: the model knows one person.
One loop does both; every step trains the paths that its source has. While it trains it writes a contact sheet (targets,
over G(M(z)), over G(E(x))) and a state file from which --resume goes on exactly where it stopped.

Written files are in pSp's layout (`state_dict`, `latent_avg`, `opts`), half precision.
"""

import argparse
import datetime
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets `python pretrain/image_model.py` find its siblings
import embed
from models import Generator, GradualStyleEncoder, ImageModel, InputError
from pretrain import faces

# All of the following is ours: neither paper trains networks this small. Chosen for 128 px on two CPU cores
D = 128                                                        # style width
CHANNELS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 40, 128: 24, 256: 16}          # 1.0 M parameters at 128 px
DEPTHS, WIDTHS, HEAD = (1, 2, 2, 1), (16, 32, 64, 128), 64     # encoder, 2.8 M parameters
MAPPING = 3                                                    # layers: z is already a list of meaningful parameters
GROW = {16: 0.06, 32: 0.14, 64: 0.32}                          # share of the steps after which a resolution is left;
#                                                                a prototype trained at full size at once stayed at blobs
ENCODER_FROM = 0.35                                            # drawn faces: share of the steps before the encoder joins
LR_GENERATOR, LR_ENCODER, BETAS = 3e-2, 2e-3, (0.9, 0.99)      # with a cosine to zero. In 1,600 steps at 64 px, 5e-3, 1e-2,
#                                                                2e-2, 4e-2 for the generator gave 18.6, 19.3, 20.2, 20.8 dB
LAMBDA_CODE = 0.1                                              # keeps E(x) near M(z), without outweighing the picture
EMA = 0.998
FOCUS = (((0.5, 0.47), (0.24, 0.07)), ((0.5, 0.745), (0.17, 0.10)))            # centre, half axes: eyes, mouth of a crop
FOCUS_WEIGHT = 4.0                                             # they cover a tenth of a crop and carry its motion
HOLD_OUT = 10                                                  # every 10th frame of a video is kept out of training
SHEET = 10                                                     # pictures in the contact sheet
# Options that --resume must be given again: the schedule and the order of the pictures depend on them
KEPT = "source", "size", "align", "steps", "batch", "pool", "precision", "seed"


class DrawnFaces(Dataset):
    """Picture k is draw(params(z_k)), z_k from RandomState(seed, k); kept in a memory map once drawn."""

    def __init__(self, n, size, seed, folder):
        self.n, self.size, self.seed = n, size, seed
        self.pictures = np.memmap(Path(folder) / "pictures", np.uint8, "w+", shape=(n, size, size, 3))
        self.drawn = np.memmap(Path(folder) / "drawn", np.uint8, "w+", shape=(n,))

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        z = np.random.RandomState([self.seed, k]).standard_normal(faces.Z).astype(np.float32)   # (Z,)
        if not self.drawn[k]:
            self.pictures[k] = faces.draw(faces.params(z), self.size)
            self.drawn[k] = 1
        return torch.from_numpy(np.array(self.pictures[k])), torch.from_numpy(z)


class VideoFrames(Dataset):
    """Aligned crops of one or more videos, (H, W, 3) uint8 each; z is empty."""

    def __init__(self, crops):
        self.crops = crops

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, k):
        return torch.from_numpy(self.crops[k]), torch.zeros(0)


class Order:
    """Sampler: a fresh permutation per pass, a function of (seed, pass) alone, so that a resumed run sees the same data."""

    def __init__(self, n, seed, start, stop):
        self.n, self.seed, self.start, self.stop = n, seed, start, stop

    def __iter__(self):
        current = None
        for position in range(self.start, self.stop):
            if current != position // self.n:
                current = position // self.n
                permutation = np.random.RandomState([self.seed, current]).permutation(self.n)
            yield int(permutation[position % self.n])

    def __len__(self):
        return self.stop - self.start


def leave_interrupts(worker):
    """Ctrl-C reaches every process of a terminal; only the one that trains should act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def resolution_at(share, size):
    """Side that is trained at this share of the steps."""
    return min([r for r, end in GROW.items() if share < end] + [size])


def focus_map(size):
    """(1, 1, size, size) weights of the picture loss, mean 1, larger on eyes and mouth."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    weight = np.ones((size, size), np.float32)
    for (cx, cy), (rx, ry) in FOCUS:
        weight += (FOCUS_WEIGHT - 1) * np.exp(-(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) ** 2)
    return torch.from_numpy(weight / weight.mean()).float()[None, None]


def picture_loss(y, x, focus):
    """L1 + L1 of the horizontal and vertical differences, over a 3-level pyramid; y, x (B, 3, r, r), focus (1, 1, r, r)."""
    loss = 0.0
    for level in range(3):
        if level:
            y, x, focus = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(focus, 2)
        e = y - x
        loss = loss + (e.abs() * focus).mean() + ((e[..., 1:] - e[..., :-1]).abs() * focus[..., 1:]).mean() \
            + ((e[..., 1:, :] - e[..., :-1, :]).abs() * focus[..., 1:, :]).mean()
    return loss / 3


def jitter(x, generator):
    """Small random shift (2.5 %), zoom (4 %) and turn (3 degrees) per picture, as the crop of a video may be off."""
    B = len(x)
    u = torch.rand(B, 4, generator=generator).to(x.device) * 2 - 1
    zoom, turn, shift = 1 + 0.04 * u[:, 0], math.radians(3) * u[:, 1], 0.05 * u[:, 2:]          # grid spans [-1, 1]
    c, s = zoom * turn.cos(), zoom * turn.sin()
    theta = torch.stack([torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)], 1)     # (B, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="reflection",
                         align_corners=False)


def to_network(pictures, device):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return pictures.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x):
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(a, b):
    """Mean over pictures of the peak signal-to-noise ratio in dB; (B, H, W, 3) uint8 each."""
    mse = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255 ** 2 / np.maximum(mse, 1e-3))))


class Networks(nn.Module):
    """What is trained: mapping and synthesis, encoder, and the mean of w that the encoder's output is added to."""

    def __init__(self, size, Z):
        super().__init__()
        self.decoder = Generator(size, D, Z or D, MAPPING if Z else 0,
                                 {r: c for r, c in CHANNELS.items() if r <= size}, lr_mlp=1.0)
        self.encoder = GradualStyleEncoder(self.decoder.L, D, size, DEPTHS, WIDTHS, HEAD)
        self.register_buffer("latent_avg", torch.zeros(D))

    def image_model(self):
        return ImageModel(self.decoder, self.encoder, self.latent_avg, device=self.latent_avg.device)


def reconstruct(ema, x, z):
    """EMA networks on a batch: (G(M(z)) or None, G(E(x))), uint8 pictures; leaves the networks in eval mode."""
    model = ema.image_model()
    drawn = to_pictures(model.render(model.map(z))) if model.has_actors else None
    return drawn, to_pictures(model.render(model.encode(x)))


def save(path, write):
    """Write through a temporary name, so that `path` is only ever complete."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def checkpoint(ema, name, args, step, quality):
    """pSp-layout dict; matrices in half precision, vectors (biases, BatchNorm) in full."""
    model = ema.image_model()
    parts = {f"decoder.{n}": v for n, v in model.generator.state_dict().items()}
    parts.update({f"encoder.{n}": v for n, v in model.encoder.state_dict().items()})
    half = {n: (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().clone() for n, v in parts.items()}
    opts = {"name": name, "encoder_type": "GradualStyleEncoder", "output_size": model.size, "lr_mlp": 1.0, "step": step,
            "held_out_psnr": quality, "command": f"python -m pretrain.image_model {' '.join(args.argv)}",
            "date": datetime.date.today().isoformat(), "torch": str(torch.__version__),
            "licence": "MIT" if args.source == ["faces"] else "that of the footage"}
    return {"state_dict": half, "latent_avg": ema.latent_avg.cpu().clone(), "opts": opts}


def video_crops(paths, size, align):
    """Crops of every usable frame of the videos, as embed.py makes them: (N, size, size, 3) uint8, in memory."""
    return np.stack([crop for path in paths for crop in embed.crops(path, embed.survey(path, align)["frames"], size)])


def main(args):
    started, output = time.time(), Path(args.output)
    state_path, sheet_path = output.with_suffix(".state.pt"), output.with_suffix(".png")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"{output} cannot be written; name a file in a folder that exists with -o.")
    if args.size < 32 or args.size not in CHANNELS:
        raise InputError(f"--size {args.size} is not one of 32, 64, 128, 256.")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.manual_seed(args.seed)

    # Data: pictures to train on, pictures to judge by
    folder = tempfile.TemporaryDirectory(prefix="faces-")
    if args.source == ["faces"]:
        Z = faces.Z
        train_set = DrawnFaces(args.pool, args.size, args.seed, folder.name)
        with tempfile.TemporaryDirectory() as held_folder:
            held_set = DrawnFaces(64, args.size, args.seed + 1_000_000, held_folder)        # z that training never draws
            held = [held_set[k] for k in range(64)]
    else:
        Z = 0
        crops = video_crops(args.source, args.size, args.align)
        if len(crops) < 2 * HOLD_OUT:
            raise InputError(f"{args.source[0]}: {len(crops)} frames with a face are too few to fit a model; "
                             f"use a video with at least {2 * HOLD_OUT}.")
        keep = np.arange(len(crops)) % HOLD_OUT != HOLD_OUT // 2
        train_set, held_set = VideoFrames(crops[keep]), VideoFrames(crops[~keep])
        held = [held_set[k] for k in np.linspace(0, len(held_set) - 1, min(64, len(held_set))).astype(int)]
    held_x, held_z = to_network(torch.stack([h[0] for h in held]), device), torch.stack([h[1] for h in held]).to(device)

    # Networks, optimiser, or all of it from the state of an interrupted run
    net, ema = Networks(args.size, Z).to(device), Networks(args.size, Z).to(device).eval().requires_grad_(False)
    ema.load_state_dict(net.state_dict())
    optimiser = torch.optim.Adam([{"params": net.decoder.parameters(), "lr": LR_GENERATOR},
                                  {"params": net.encoder.parameters(), "lr": LR_ENCODER}], betas=BETAS)
    step = 0
    if args.resume:
        try:
            state = torch.load(state_path, map_location=device, weights_only=True)
            options = state["options"]
        except Exception as error:                                              # torch raises a dozen types here
            raise InputError(f"{state_path} is no state of this training ({type(error).__name__}); start again without "
                             f"--resume.") from None
        for name in KEPT:
            if options[name] != getattr(args, name):
                was, given = (" ".join(map(str, v)) if isinstance(v, list) else v for v in (options[name], getattr(args, name)))
                raise InputError(f"{state_path} is of a training with {name} {was}, not {given}; give the same, or start again "
                                 f"without --resume.")
        if state["step"] >= args.steps:
            raise InputError(f"{output} is finished, all {args.steps} steps; start again without --resume for another one.")
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    focus_full = focus_map(args.size).to(device)

    loader = DataLoader(train_set, args.batch, num_workers=args.workers, prefetch_factor=4 if args.workers else None,
                        worker_init_fn=leave_interrupts,
                        sampler=Order(len(train_set), args.seed, step * args.batch, args.steps * args.batch))
    quality = []

    def report():
        """Contact sheet and held-out PSNR of the EMA networks, then the model and the state, each complete or not at all."""
        rows = [to_pictures(held_x)]
        made = [reconstruct(ema, x, z) for x, z in zip(held_x.split(16), held_z.split(16))]
        rows += [np.concatenate(column) for column in zip(*made) if column[0] is not None]
        sheet = np.concatenate([np.concatenate(row[:SHEET], 1) for row in rows])           # (rows * size, SHEET * size, 3)
        encoded = cv2.imencode(".png", sheet[..., ::-1])[1]
        save(sheet_path, lambda part: part.write_bytes(encoded.tobytes()))
        values = [psnr(rows[0], row) for row in rows[1:]]
        save(output, lambda part: torch.save(checkpoint(ema, output.stem, args, step, values[-1]), part))
        save(state_path, lambda part: torch.save({"net": net.state_dict(), "ema": ema.state_dict(), "step": step,
                                                  "optimiser": optimiser.state_dict(),
                                                  "options": {name: getattr(args, name) for name in KEPT}}, part))
        return values

    # Ctrl-C ends the step at hand and saves, so that the state is always that of a whole step
    stop = []
    handler = signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    bar = tqdm(loader, initial=step, total=args.steps, unit="step", mininterval=1.0, desc=output.name)
    try:
        for pictures, z in bar:
            share = step / args.steps
            r = resolution_at(share, args.size)
            with_encoder = not Z or share >= ENCODER_FROM
            for group, lr in zip(optimiser.param_groups, (LR_GENERATOR, LR_ENCODER)):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (step + 1) / 100)

            # Targets: the picture at the resolution that is being trained
            x, z = to_network(pictures, device), z.to(device)                   # (B, 3, size, size), (B, Z)
            if not Z:
                x = jitter(x, torch.Generator().manual_seed(args.seed + step))
            target = F.interpolate(x, (r, r), mode="area") if r < args.size else x

            # Codes: of the encoder for the last half of the batch, of z for the rest
            codes, loss, half = [], 0.0, len(x) // 2 if Z and with_encoder else len(x) if Z else 0
            if Z:
                w = net.decoder.style(z)                                        # (B, D)
                with torch.no_grad():
                    net.latent_avg.lerp_(w.mean(0), 0.01 if step else 1.0)
                codes.append(w[:half, None].expand(-1, net.decoder.L, -1))      # (half, L, D)
            if with_encoder:
                with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                    offsets = net.encoder(x[half:])
                codes.append(offsets.float() + net.latent_avg)                  # (B - half, L, D)
                if Z:
                    away = (codes[1] - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)
                    loss = loss + LAMBDA_CODE * away.abs().mean()
            codes = torch.cat(codes)                                            # (B, L, D)

            # Pictures of the codes against the targets
            y = net.decoder(codes, resolution=r, dtype=dtype)                   # (B, 3, r, r)
            loss = loss + picture_loss(y, target, F.interpolate(focus_full, (r, r), mode="area"))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1

            # Average of the weights; the window grows with the step so that early weights are forgotten
            with torch.no_grad():
                decay = min(EMA, (1 + step) / (10 + step))
                for a, b in zip(ema.state_dict().values(), net.state_dict().values()):
                    a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)
            if step % args.every == 0 or step == args.steps or stop:
                quality = report()
            if step % 10 == 0:
                bar.set_postfix_str(f"{r} px, loss {loss.item():.4f}, held-out PSNR "
                                    + (" / ".join(f"{q:.2f}" for q in quality) or "-"))
            if stop:
                raise KeyboardInterrupt(f"stopped at step {step} of {args.steps} and saved; go on with --resume.")
    finally:
        signal.signal(signal.SIGINT, handler)
        bar.close()
        folder.cleanup()
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB), {sheet_path} and {state_path}; held-out PSNR "
          f"{quality[-1]:.2f} dB through the encoder; {(time.time() - started) / 60:.1f} minutes.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("source", nargs="+", help="the word faces, or one or more videos of the same person")
    parser.add_argument("-o", "--output", default="image_model.pt", help="model to write; .png and .state.pt go beside it")
    parser.add_argument("--align", choices=("face", "none"), default="face", help="of a video: as embed.py's")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=12000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=16, help="pictures per step")
    parser.add_argument("--pool", type=int, default=30000, help="different drawn faces (source faces)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="of the feature maps; bf16 is twice as fast where the processor has it")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw or load pictures")
    parser.add_argument("--every", type=int, default=500, help="steps between contact sheets and saved states")
    parser.add_argument("--resume", action="store_true", help="go on from the state file beside --output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    arguments = parser.parse_args()
    arguments.argv = sys.argv[1:]
    try:
        main(arguments)
    except InputError as error:
        parser.exit(2, f"image_model.py: {error}\n")
    except KeyboardInterrupt as error:
        parser.exit(130, f"image_model.py: {str(error) or 'stopped before the training began; nothing was written.'}\n")
