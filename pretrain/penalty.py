"""The paper's two experiments on the gradient angle penalty (sec. 4), at the size of the demo.

    python -m pretrain.penalty looping -o looping               # one sentence three times; 20 models with, 20 without penalty
    python -m pretrain.penalty ablation latents.npy -o ablation # short and long distance, 5 seeds with and 5 without

looping: "a very short training sequence (one single sentence, spoken three times, 20 seconds in total)". It is drawn by
pretrain/faces.py and embedded by embed.py; models are trained with train.py's defaults but for --horizon 0 (every sampled
window begins with i, as in the paper), nn.GRU's own start (and what serves ours) and a smaller batch, and are sampled for
1500 frames; evaluate.py's loop score says which of them loop.
ablation: train.py's defaults with the penalty and without. Both print a table in the layout of the paper's table 1, with
train.py's distances of codes in place of FVD.

Every model is a training of its own, --jobs of them at a time, one thread each. Stop and start again as you like: what is
finished is kept, what was going on goes on. Writes looping.json and .png, or ablation.json, into the folder of -o; the
table goes to standard output. Deterministic on one machine.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                   # lets `python pretrain/penalty.py` find its siblings
import evaluate
import train
from models import InputError
from sample import load_motion, sample

DRAWS = 4               # ours: evaluations of one model, of 2048 windows each; they differ by about one percent
KINDS = {"with": "with the penalty", "without": "without"}


def run(command):
    """A script of this project in a process of its own; its last line on stderr becomes the error."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    if result.returncode:
        raise InputError((result.stderr.strip().splitlines() or [f"{command[0]} failed without a word."])[-1])


def train_models(latents, folder, names, steps, jobs, options):
    """Train names = {name: [option, ...]} as folder/name.pt, as far as they are not there yet."""
    def one(name):
        output = folder / f"{name}.pt"
        asked = ["train.py", latents, "-o", output, "--steps", steps, "--threads", 1, "--report-every", 500, "--save-every", 500,
                 *options, *names[name]]
        if not output.is_file() or not finished(output, train.options_parser().parse_args(list(map(str, asked[1:])))):
            # train.py itself refuses a state that other options or codes led to
            run(asked + (["--resume"] if train.beside(output, ".state.pt").is_file() else []))
        bar.update()

    with tqdm(total=len(names), desc=f"training {folder}", unit="model", mininterval=1.0) as bar:
        pool = ThreadPoolExecutor(jobs)
        try:
            for result in [pool.submit(one, name) for name in names]:
                result.result()
        finally:                                                # after Ctrl-C or an error, no further model is begun
            pool.shutdown(cancel_futures=True)


def finished(path, asked):
    """Whether the model of that many steps is there. Raises InputError if it was trained otherwise than asked."""
    try:
        model = torch.load(path, weights_only=True)
        options, step = model["options"], model["step"]
    except Exception:                                           # not ours, or damaged: anew
        return False
    other = [name for name in train.FIXED + train.KEPT if options.get(name) != getattr(asked, name)]
    if other or step > asked.steps:
        difference = f"--{other[0].replace('_', '-')} {options.get(other[0])}" if other else f"{step} steps"
        raise InputError(f"{path} was trained with {difference}; choose another folder with -o, or remove it.")
    return step == asked.steps


def distances(G, motion, codes, clips, draws):
    """Short and long distances of a model in % of frozen frames, those of frames in % of their variance: means of `draws`."""
    tables = [evaluate.code_table(G, motion, codes, clips, 1000 + seed) for seed in range(draws)]
    keys = "short_percent", "long_percent", "frame_short", "frame_long"
    return {key: float(np.mean([table[key] for table in tables])) for key in keys}, tables[0]["floor_percent"]


def print_distances(found):
    print(f"\nFréchet distance of windows, % of frozen frames (lower is better), and of single frames; mean ± standard deviation "
          f"of {found['models']} models of {found['steps']} steps; a perfect model {found['floor_percent']:.2f} %")
    print(" " * 18 + "".join(f"{head:>16s}" for head in ("short, %", "long, %", "frame, short", "frame, long")))
    for kind in KINDS:
        cells = [[row[key] for row in found[kind]] for key in ("short_percent", "long_percent", "frame_short", "frame_long")]
        print(f"{KINDS[kind]:18s}" + "".join(f"{np.mean(c):9.2f} ± {np.std(c, ddof=min(1, len(c) - 1)):4.2f}" for c in cells))


def write_json(path, found):
    train.write_atomically(path, lambda part: part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------------
# Looping
# ------------------------------------------------------------------------------------------------------------------

def looping(args):
    folder = Path(args.output).resolve()
    video, latents = folder / "sentence.mp4", folder / "sentence.npy"
    if not latents.is_file():
        run(["-m", "pretrain.faces", "--clip", video, "--seconds", 20, "--times", 3, "--seed", 8])
        run(["embed.py", video, "-o", latents])
    names = {f"{kind}-{seed:02d}": ["--seed", seed, "--lambda-gap", args.lambda_gap if kind == "with" else 0]
             for seed in range(args.models) for kind in KINDS}
    # ours: nn.GRU's own start (and one rate, no offset noise, as those serve ours), as train.py's start lets the noise through
    # with the penalty or without
    train_models(latents, folder, names, args.steps, args.jobs, ["--horizon", 0, "--batch", args.batch, "--start", "torch",
                                                             "--lr-recurrence", 1, "--offset-noise", 0])

    codes, meta = train.load_latents(latents)
    found = {"models": args.models, "steps": args.steps, "batch": args.batch, "lambda_gap": args.lambda_gap,
             "threshold": evaluate.LOOPS, "samples": evaluate.LOOP_SAMPLES, "frames": evaluate.LOOP_FRAMES}
    for name in tqdm(names, desc="sampling", unit="model"):
        G, motion = load_motion(folder / f"{name}.pt", torch.device("cpu"))
        table = evaluate.loop_table(G, motion, codes, meta["clips"])
        # ours: a model loops when most of its samples do
        row = {key: table[key] for key in ("scores", "lags", "moves", "mean", "looping")}
        row["loops"] = 2 * table["looping"] > table["samples"]
        away, found["floor_percent"] = distances(G, motion, codes, meta["clips"], 1)
        found.setdefault(name.split("-")[0], []).append({**row, **away})
        found["training_video"] = table["training_video"]
    write_json(folder / "looping.json", found)
    draw_looping(folder, found, names)
    print(f"Loops: {args.models} models each, {found['samples']} samples of {found['frames']} frames per model; a sample loops "
          f"below {found['threshold']}, a model when most of its samples do; the training video scores "
          f"{found['training_video']:.3f}. moves: distance of two random frames, over that in the video")
    print(f"{'':18s}{'models that loop':>18s}{'samples that loop':>20s}{'mean score':>12s}{'moves':>8s}{'paper':>12s}")
    for kind, paper in (("with", "6 of 20"), ("without", "19 of 20")):
        rows = found[kind]
        models, samples = sum(row["loops"] for row in rows), sum(row["looping"] for row in rows)
        print(f"{KINDS[kind]:18s}{models:8d} of {len(rows):<6d}{samples:11d} of {found['samples'] * len(rows):<5d}"
              f"{np.mean([row['mean'] for row in rows]):12.3f}{np.mean([row['moves'] for row in rows]):8.2f}{paper:>12s}")
    print_distances(found)


def draw_looping(folder, found, names):
    """Scores of all models, and the first coordinate of a sample of the median model of each kind beside the video's."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplot_mosaic([["scores", "video"], ["scores", "with"], ["scores", "without"]], width_ratios=[1, 2])
    for k, kind in enumerate(KINDS):
        means = [row["mean"] for row in found[kind]]
        axes["scores"].scatter(k + np.linspace(-0.2, 0.2, len(means)), sorted(means), s=14)
    axes["scores"].axhline(found["threshold"], color="gray", linestyle=":")
    axes["scores"].set(title="loop score of each model\n(0: exact loop)", xticks=range(len(KINDS)), ylim=(0, None))
    axes["scores"].set_xticklabels(KINDS.values())
    codes, _ = train.load_latents(folder / "sentence.npy")
    for kind in ("video", *KINDS):
        if kind == "video":
            pca = load_motion(folder / f"{next(iter(names))}.pt", torch.device("cpu"))[1]["pca"]
            x = train.coordinates(torch.from_numpy(codes), pca)[:, 0]
        else:
            middle = int(np.argsort([row["mean"] for row in found[kind]])[len(found[kind]) // 2])
            G, motion = load_motion(folder / f"{kind}-{middle:02d}.pt", torch.device("cpu"))
            w = np.concatenate(list(sample(G, evaluate.LOOP_FRAMES, 0)))
            x = train.coordinates(torch.from_numpy(w), motion["pca"])[:, 0]
        axes[kind].plot(np.arange(len(x)) / 25, x, linewidth=0.8)
        axes[kind].set(title={"video": "the training video"}.get(kind, f"a sample, {KINDS.get(kind)}"), xlim=(0, 60))
    axes["without"].set_xlabel("seconds")
    train.write_atomically(folder / "looping.png", lambda part: figure.savefig(part, format="png", dpi=80))


# ------------------------------------------------------------------------------------------------------------------
# Ablation
# ------------------------------------------------------------------------------------------------------------------

def ablation(args):
    folder = Path(args.output).resolve()
    latents = Path(args.latents).resolve()
    codes, meta = train.load_latents(latents)
    names = {f"{kind}-{seed}": ["--seed", seed, *(["--lambda-gap", 0] if kind == "without" else
                                                 [] if args.lambda_gap is None else ["--lambda-gap", args.lambda_gap])]
             for seed in range(args.models) for kind in KINDS}
    defaults = train.options_parser().parse_args([str(latents)])
    defaults.steps = args.steps
    steps = train.length(defaults, train.steps_per_epoch(len(train.window_starts(meta["clips"], defaults.window)), defaults))
    train_models(latents, folder, names, steps, args.jobs, [])
    found = {"models": args.models, "steps": steps, "draws": DRAWS, "with": [], "without": []}
    for name in tqdm(names, desc="measuring", unit="model"):
        G, motion = load_motion(folder / f"{name}.pt", torch.device("cpu"))
        away, found["floor_percent"] = distances(G, motion, codes, meta["clips"], DRAWS)
        found[name.split("-")[0]].append(away)
    write_json(folder / "ablation.json", found)
    print_distances(found)


def main(args):
    if args.models < 1 or args.jobs < 1:
        raise InputError("--models and --jobs must be at least 1.")
    Path(args.output).mkdir(parents=True, exist_ok=True)
    {"looping": looping, "ablation": ablation}[args.experiment](args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="experiment", required=True)
    for name in ("looping", "ablation"):
        sub = kinds.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name == "ablation":
            sub.add_argument("latents", metavar="LATENTS", help="latents.npy of embed.py")
        sub.add_argument("-o", "--output", default=name, help="folder for models and results")
        sub.add_argument("--models", type=int, default=20 if name == "looping" else 5, help="of each kind (sec. 4)")
        sub.add_argument("--steps", type=int, default=1000 if name == "looping" else None, help="of each model (ours); None: "
                         "as many as train.py takes")
        sub.add_argument("--lambda-gap", type=float, default=100.0 if name == "looping" else None, help="with it (sec. 3)")
        sub.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models trained at a time")
        if name == "looping":
            sub.add_argument("--batch", type=int, default=32, help="windows per step (ours; 128 in the paper, for more data)")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"penalty.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "penalty.py: interrupted; the same command goes on.\n")
