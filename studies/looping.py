"""The paper's two experiments on the gradient angle penalty (sec. 4): what it prevents, what it costs.

    python -m studies.looping                                     # both at toy size, under a minute
    python -m studies.looping looping --full -o runs              # one sentence three times, 40 models: hours
    python -m studies.looping ablation latents.npy --full -o runs # train.py's defaults, 5 + 5 models

looping: "a very short training sequence (one single sentence, spoken three times, 20 seconds in total)",
drawn by pretrain/faces.py and embedded by embed.py; models are trained with --horizon 0 (every sampled window
begins with i, as in the paper) and a smaller batch; evaluate.py's loop score of 1,500 sampled frames says
which of them loop. ablation: train.py's measures of long windows.

Stop and start again as you like: what is finished is kept. Writes a JSON for each into the folder of -o; the
tables go to standard output.
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
from tqdm import tqdm

import evaluate
import train
from models import InputError
from sample import load_motion, sample

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"with": "with the penalty", "without": "without"}
LOOPING = "--horizon", 0, "--batch", 32     # ours: 32 windows a step, as 20 seconds hold few


def run(*words):
    """A script of this project in a process of its own; its last line on stderr becomes the error."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise InputError((done.stderr.strip().splitlines() or [f"{words[0]} failed without a word."])[-1])


def sentence(folder, full):
    """Codes of one sentence spoken three times; at toy size a random walk in their place."""
    video, latents = folder / "sentence.mp4", folder / "sentence.npy"
    if latents.is_file():
        return latents
    if full:
        run("-m", "pretrain.faces", "--clip", video, "--seconds", 20, "--times", 3, "--seed", 8)
        run("embed.py", video, "-o", latents)
        return latents
    rng = np.random.RandomState(0)
    walk = np.cumsum(rng.standard_normal((120, 40)), 0) @ rng.standard_normal((40, 64))
    np.save(latents, np.concatenate([walk] * 3).reshape(360, 4, 16).astype(np.float32))
    return latents


def at_once(function, jobs, count, what):
    """[function(*job), ...], count of them at a time."""
    def one(job):
        found = function(*job)
        bar.update()
        return found

    with tqdm(total=len(jobs), desc=what, unit="model") as bar, ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)                      # no further model is begun
            raise


def train_models(latents, folder, args, options):
    """Train folder/with-00.pt, without-00.pt, ..., as far as they are not there yet: {kind: [path, ...]}."""
    paths = {kind: [folder / f"{kind}-{seed:02d}.pt" for seed in range(args.models)] for kind in KINDS}
    length = ["--steps", args.steps] if args.steps else []

    def one(kind, seed):
        gap = ["--lambda-gap", 0] if kind == "without" else []
        run("train.py", latents, "-o", paths[kind][seed], "--threads", 1, "--resume", *length, *options, *gap,
            "--seed", seed)

    at_once(one, [(kind, seed) for seed in range(args.models) for kind in KINDS], args.jobs, "training")
    return paths


def last_report(path):
    """Last row of the motion.csv beside a model."""
    names, *_, row = (line.split(",") for line in path.with_suffix(".csv").read_text().splitlines())
    return {name: float(value) for name, value in zip(names, row)}


def print_distances(rows):
    """rows: {kind: [row of a motion.csv, ...]}."""
    print("\nLong windows against the training video, by train.py's measures: mean ± standard deviation over "
          "the models\n")
    print(f"| | {' | '.join(train.MEASURES)} |\n|---|" + "---|" * len(train.MEASURES))
    for kind, title in KINDS.items():
        cells = [[row[f"training_long_{name}"] for row in rows[kind]] for name in train.MEASURES]
        print(f"| {title} | " + " | ".join(f"{np.mean(c):.2f} ± {np.std(c):.2f}" for c in cells) + " |")


def write(folder, name, found):
    train.write_atomically(folder / name, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))


def looping(args, folder):
    """How many models loop: those most of whose samples do."""
    latents = sentence(folder, args.full)
    paths = train_models(latents, folder, args, LOOPING if args.full else (*LOOPING[:-1], 8, "--window", 6))
    codes = torch.from_numpy(train.load_latents(latents)[0])
    found = {"steps": args.steps, "threshold": evaluate.LOOPS, "frames": evaluate.LOOP_FRAMES}
    models = [(kind, path) for kind, some in paths.items() for path in some]
    for kind, path in tqdm(models, desc="sampling", unit="model"):
        G, motion = load_motion(path)
        usual = evaluate.usual_distance(train.coordinates(codes, motion["pca"]).numpy())
        scores, moves = [], []
        for seed in range(evaluate.LOOP_SAMPLES if args.full else 2):
            w = np.concatenate(list(sample(G, evaluate.LOOP_FRAMES, seed)))
            x = train.coordinates(torch.from_numpy(w), motion["pca"]).numpy()                   # (1500, 32)
            scores.append(float(evaluate.loop_score(x[len(x) // 2:], usual)))
            moves.append(float(evaluate.usual_distance(x) / usual))
        loops = sum(score < evaluate.LOOPS for score in scores)
        found.setdefault(kind, []).append({"scores": scores, "moves": moves, "looping samples": loops,
                                           "loops": 2 * loops > len(scores), **last_report(path)})
    write(folder, "looping.json", found)
    print(f"Loops: a sample of {evaluate.LOOP_FRAMES} frames loops below a score of {evaluate.LOOPS}, a "
          f"model when most of its samples do; moves: distance of two random frames over that in the video\n")
    print("| | models that loop | samples that loop | mean score | moves | in the paper |")
    print("|---|---|---|---|---|---|")
    for kind, paper in (("with", "6 of 20"), ("without", "19 of 20")):
        rows = found[kind]
        scores = [score for row in rows for score in row["scores"]]
        print(f"| {KINDS[kind]} | {sum(row['loops'] for row in rows)} of {len(rows)} | "
              f"{sum(row['looping samples'] for row in rows)} of {len(scores)} | {np.mean(scores):.3f} | "
              f"{np.mean([row['moves'] for row in rows]):.2f} | {paper} |")
    print_distances(found)


def ablation(args, folder):
    """Measures of long windows with train.py's defaults and with no penalty."""
    latents = args.latents or sentence(folder, args.full)
    options = () if args.full else ("--window", 6, "--horizon", 40, "--batch", 8)
    paths = train_models(latents.resolve(), folder, args, options)
    found = {kind: [last_report(path) for path in paths[kind]] for kind in KINDS}
    write(folder, "ablation.json", found)
    print_distances(found)


EXPERIMENTS = {"looping": looping, "ablation": ablation}


def main(args):
    names = [args.experiment] if args.experiment else EXPERIMENTS
    full = {"looping": (20, 1000), "ablation": (5, None)}
    defaults = full if args.full else dict.fromkeys(EXPERIMENTS, (1, 10))
    asked = args.models, args.steps
    for name in names:
        folder = Path(args.output).resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        args.models, args.steps = (given or default for given, default in zip(asked, defaults[name]))
        EXPERIMENTS[name](args, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, help="both when not given")
    parser.add_argument("latents", nargs="?", type=Path, metavar="LATENTS", help="of the ablation")
    parser.add_argument("-o", "--output", default="looping", help="folder for models and results: looping")
    parser.add_argument("--full", action="store_true", help="the recorded result, not the toy")
    parser.add_argument("--models", type=int, help="of each kind: 20 and 5 (sec. 4); 1")
    parser.add_argument("--steps", type=int, help="of each model: 1000 (ours) and train.py's; 10")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models trained at a time")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"looping.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "looping.py: interrupted; the same command goes on.\n")
