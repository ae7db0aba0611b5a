"""The paper's two experiments on the gradient angle penalty (sec. 4), and what else a training needs.

    python -m studies.looping                                     # both at toy size, under a minute
    python -m studies.looping looping --full -o runs              # one sentence three times, 40 models: hours
    python -m studies.looping ablation ten.npy --holdout unseen.npy --full --steps 2400     # 16 models

looping: "a very short training sequence (one single sentence, spoken three times, 20 seconds in total)",
rendered by pretrain/heads.py (3 minutes; pretrain/requirements.txt) and embedded by embed.py; models are
trained with --horizon 0 (every sampled window begins with i, as in the paper) and a smaller batch;
evaluate.py's loop score of 1,500 sampled frames says which of them loop. ablation: train.py's loop, and with
one thing less in each row, by train.py's measures. At toy size a random walk takes the place of the video.

Stop and start again as you like: what is finished is kept. Writes a JSON for each into the folder of -o; the
tables go to standard output. On a GPU the trainings are threads of one process, whose kernels overlap; those
of several processes would take turns.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import threadpoolctl
import torch
from tqdm import tqdm

import evaluate
import models
import train
from models import InputError
from sample import load_motion, sample

ROOT = Path(__file__).resolve().parents[1]
# File name: (row, its options, how many with --full)
KINDS = {"with": ("with the penalty", (), 20), "without": ("without", ("--lambda-gap", 0), 20)}
LESS = {"ours": ("train.py's loop", (), 5), "no-angle": ("no angle penalty", ("--lambda-gap", 0), 5),
        "no-later": ("no later windows", ("--horizon", 0), 3),
        "one-critic": ("one critic step", ("--critic-steps", 1), 3)}
LOOPING = "--horizon", 0, "--batch", 32     # ours: 32 windows a step, as 20 seconds hold few
# On one GPU, ours: 16, all of the ablation, overlapped well; 24 are most of each half of
# studies/neighbours.py at once, with 1.1 to 1.9 GB each. torch has 32 streams: of more threads two would
# share one, and their graphs a workspace
THREADS = 24
STOP = []                                   # what is put here ends all trainings of this process


def run(*words):
    """A script of this project in a process of its own; its last line on stderr becomes the error."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise InputError((done.stderr.strip().splitlines() or [f"{words[0]} failed without a word."])[-1])


def settle(args):
    """Device, and trainings at a time. Before CUDA starts."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")      # queues; its 8 would be shared by streams
    args.device = models.pick_device(args.device)
    args.threads = args.device.type == "cuda"
    args.jobs = args.jobs or (THREADS if args.threads else os.cpu_count() or 1)
    if args.threads:
        sys.setswitchinterval(0.0005)                   # seconds; a replay waits no longer for Python
        threadpoolctl.threadpool_limits(1)              # of BLAS, as OMP_NUM_THREADS in run()


def run_train(args, *words):
    """train.py with these words, beside others: in this thread on a GPU, or else by run()."""
    words = *words, "--threads", 1, "--device", args.device
    if not args.threads:
        return run("train.py", *words)
    # It takes a stream of its own, and train.ALONE for what threads cannot do at once. Not guarded: while one
    # captures, another that measures may find TF32 on, or cuDNN off
    train.main(train.options_parser().parse_args([*map(str, words)]), STOP)


def sentence(folder, full):
    """Codes of one sentence spoken three times; at toy size of a random walk."""
    video, latents = folder / "sentence.mp4", folder / "sentence.npy"
    if latents.is_file():
        return latents
    if full:
        if not video.is_file():
            run("-m", "pretrain.heads", "--clip", video, "--seconds", 20, "--times", 3, "--size", 256)
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
        except KeyboardInterrupt as stopped:
            STOP.append(stopped)                # threads end their step and save; processes got Ctrl-C, too
            raise
        finally:
            pool.shutdown(cancel_futures=True)                      # no further model is begun
            STOP.clear()


def train_models(kinds, latents, folder, args, options):
    """Train folder/with-00.pt, without-00.pt, ..., as far as they are not there yet: {kind: [path, ...]}."""
    counts = {kind: args.models or (n if args.full else 1) for kind, (_, _, n) in kinds.items()}
    paths = {kind: [folder / f"{kind}-{seed:02d}.pt" for seed in range(n)] for kind, n in counts.items()}
    length = ["--steps", args.steps, "--report-every", args.steps] if args.steps else []

    def one(kind, seed):
        path, own = paths[kind][seed], kinds[kind][1]
        if not path.is_file() or torch.load(path, weights_only=True)["step"] != args.steps:
            run_train(args, latents, "-o", path, "--resume", "--seed", seed, *length, *options, *own)

    jobs = [(kind, seed) for seed in range(max(counts.values())) for kind in kinds if seed < counts[kind]]
    at_once(one, jobs, args.jobs, "training")
    return paths


def last_report(path):
    """Last row of the motion.csv beside a model."""
    names, *_, row = (line.split(",") for line in path.with_suffix(".csv").read_text().splitlines())
    return {name: float(value) for name, value in zip(names, row)}


def print_distances(kinds, found):
    """found: {kind: [row of a motion.csv, ...]}."""
    def cell(name, of, rows):
        values = [row[f"{name[0]}_{of}_{name[1]}"] for row in rows]
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{spread}"

    columns = {name: ("training", name) for name in train.MEASURES}
    if "holdout_long_mmd" in found[next(iter(kinds))][0]:
        columns |= {f"held-out {name}": ("holdout", name) for name in ("mmd", "motion")}
    print("\nWindows in long samples, in brackets from frame 0 on, by train.py's measures against the "
          "training video\nand video held out: mean ± standard deviation over the models\n")
    print(f"| | models | {' | '.join(columns)} |\n|---|---|" + "---|" * len(columns))
    for kind, (title, *_) in kinds.items():
        cells = [f"{cell(name, 'long', found[kind])} ({cell(name, 'short', found[kind])})"
                 for name in columns.values()]
        print(f"| {title} | {len(found[kind])} | {' | '.join(cells)} |")


def write(folder, name, found):
    train.write_atomically(folder / name, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))


def looping(args, folder):
    """How many models loop: those most of whose samples do."""
    latents = sentence(folder, args.full)
    options = LOOPING if args.full else (*LOOPING[:-1], 8, "--window", 6)
    paths = train_models(KINDS, latents, folder, args, options)
    codes = torch.from_numpy(train.load_latents(latents)[0])
    found = {"steps": args.steps, "threshold": evaluate.LOOPS, "frames": evaluate.LOOP_FRAMES}
    each = [(kind, path) for kind, some in paths.items() for path in some]
    for kind, path in tqdm(each, desc="sampling", unit="model"):
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
        print(f"| {KINDS[kind][0]} | {sum(row['loops'] for row in rows)} of {len(rows)} | "
              f"{sum(row['looping samples'] for row in rows)} of {len(scores)} | {np.mean(scores):.3f} | "
              f"{np.mean([row['moves'] for row in rows]):.2f} | {paper} |")
    print_distances(KINDS, found)


def ablation(args, folder):
    """Measures with train.py's defaults, and with one of them left out in each row."""
    latents = args.latents or sentence(folder, args.full)
    options = [] if args.full else ["--window", 6, "--horizon", 40, "--batch", 8]
    if args.holdout:
        options += ["--holdout", args.holdout.resolve()]
    paths = train_models(LESS, latents.resolve(), folder, args, options)
    found = {kind: [last_report(path) for path in some] for kind, some in paths.items()}
    write(folder, "ablation.json", found)
    print_distances(LESS, found)


EXPERIMENTS = {"looping": looping, "ablation": ablation}


def main(args):
    settle(args)
    asked, full = args.steps, {"looping": 1000, "ablation": None}
    for name in [args.experiment] if args.experiment else EXPERIMENTS:
        folder = Path(args.output).resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        args.steps = asked or (full[name] if args.full else 10)
        EXPERIMENTS[name](args, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, help="both when not given")
    parser.add_argument("latents", nargs="?", type=Path, metavar="LATENTS", help="of the ablation")
    parser.add_argument("--holdout", type=Path, metavar="LATENTS", help="of unseen video, for the ablation")
    parser.add_argument("-o", "--output", default="looping", help="folder for models and results: looping")
    parser.add_argument("--full", action="store_true", help="the recorded result, not the toy")
    parser.add_argument("--models", type=int, help="of each kind: 20 and 5 (sec. 4) or 3; 1")
    parser.add_argument("--steps", type=int, help="of each model: 1000 (ours) and train.py's; 10")
    parser.add_argument("--jobs", type=int, help=f"trainings at a time: a core each; {THREADS} on a GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"looping.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "looping.py: interrupted; the same command goes on.\n")
