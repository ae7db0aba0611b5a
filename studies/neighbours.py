"""The neighbours' motion models on the same codes: the paper's table 1 without image networks.

    python -m studies.neighbours                                # two kinds at toy size, under a minute
    python -m studies.neighbours ten.npy --holdout unseen.npy --full -o neighbours          # 56 trainings

Every kind is trained under one critic: three short trainings choose the learning rate, then those follow
that count. Samples of 25 to 4,000 frames are measured by train.measures() against the training video and one
that was not trained on, beside rows without training. The tables go to standard output, in Markdown, all
numbers to neighbours.json; distance.svg, trajectories.svg and fps.svg show them.

Stop and start again as you like: what is finished is kept. Fewer --seeds make the tables of what there is.
"""

import argparse
import contextlib
import json
import math
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import evaluate
import models
import train
from baselines import one_style
from models import InputError, MotionGenerator
from sample import load_motion, sample
from studies.gpu import synthetic_codes
from studies.looping import THREADS, at_once, last_report, run_train, settle, write

OURS = MotionGenerator.kind
KINDS = (OURS, "stylegan_v", "one_style", "styleinv", "mocogan_hd", "mocogan", "digan", "longvideogan",
         "gp_start")
RATES = 0.0005, 0.001, 0.002        # ours: a factor of two to either side of train.py's
FULL = {"models": KINDS, "steps": 2400, "search": 600, "seeds": 3}
TOY = {"models": (OURS, "one_style"), "steps": 3, "search": 2, "seeds": 1}
EARLY = 50, 100, 200                # frames, and before them the window's: the last window of 2,048 samples.
#                                     16 windows of so few frames would be too alike for an unbiased mmd
LATE = 400, 1000, 2000, 4000        # frames: 16 windows each in the last 400 of 128 samples, as in train.py
TABLED = LATE[0], LATE[-1]
DIVERGED = 1e9                      # in place of a score
COLOURS = ("#000000 #0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #999999 #7a5230 #8a2be2 #66aa00 "
           "#d00040 #004d40").split()


# ------------------------------------------------------------------------------------------------------------
# Both videos, and what is kept
# ------------------------------------------------------------------------------------------------------------

def kept(path, compute):
    """What the JSON holds, or else compute(), put there."""
    if not path.is_file():
        write(path.parent, path.name, compute())
    return json.loads(path.read_text())


def prepare(args):
    """All that the trainings share, in one namespace e. Raises InputError."""
    asked = {name: getattr(args, name) or value for name, value in (FULL if args.full else TOY).items()}
    settle(args)
    e = SimpleNamespace(**asked, folder=Path(args.output).resolve(),
                        **{name: getattr(args, name) for name in ("device", "jobs", "threads")})
    if (args.latents is None) != (args.holdout is None) or args.full and args.latents is None:
        raise InputError("one video is needed to learn from and one to judge by: name codes of embed.py as "
                         "LATENTS and --holdout; for the toy neither, and not --full.")
    e.folder.mkdir(parents=True, exist_ok=True)
    e.paths = {"training": args.latents, "holdout": args.holdout}
    if args.latents is None:
        e.paths = {video: e.folder / f"toy-{video}.npy" for video in e.paths}
        for path, codes in zip(e.paths.values(), np.split(synthetic_codes(700, 4, 16), [400])):
            np.save(path, codes)
    e.paths = {video: path.resolve() for video, path in e.paths.items()}

    # StyleGAN-V's critic sees up to 33 frames (sec. 3.3 there)
    e.window, e.samples = (33 if args.critic == "sparse" else 25, train.LONG[0]) if args.full else (6, 8)
    small = [] if args.full else ["--horizon", 40, "--batch", 8]
    e.options = ["--critic", args.critic, "--window", e.window, *small]
    train.load_training_set(e.paths.values(), e.window)             # refuses those of two image models
    settings = {"options": e.options, "codes": [models.sha256_of(path) for path in e.paths.values()]}
    if kept(e.folder / "settings.json", lambda: settings) != settings:
        raise InputError(f"{e.folder} holds trainings on other codes or with other options; choose another "
                         f"folder with -o.")

    # In the PCA of the training codes
    videos = {video: train.load_training_set([path], e.window) for video, path in e.paths.items()}
    codes, facts = videos["training"]
    e.fps, e.clips, e.pca = facts["fps"], facts["clips"], train.fit_pca(codes)
    e.x = train.coordinates(torch.from_numpy(codes), e.pca)                     # (N, 32)
    e.real = {"training": train.references(e.x, e.clips, e.window)}
    unseen, facts = videos["holdout"]
    y = train.coordinates(torch.from_numpy(unseen), e.pca)
    e.real["holdout"] = train.references(y, facts["clips"], e.window, e.real["training"])
    e.clip = torch.from_numpy(unseen[slice(*max(facts["clips"], key=lambda clip: clip[1] - clip[0]))])

    e.fitted = {kind: models.motion_model(kind)(*codes.shape[1:]).fit(e.x, e.clips, e.pca).to(e.device)
                for kind in evaluate.FREE.values()}
    # One at a time samples on a GPU, whose memory it is, and none while a thread captures, in TF32
    e.lock = train.ALONE if e.device.type == "cuda" else contextlib.nullcontext()
    return e


# ------------------------------------------------------------------------------------------------------------
# Training and measuring
# ------------------------------------------------------------------------------------------------------------

def trained(e, kind, lr, steps, seed):
    """The last row of a training's motion.csv, or {"diverged": what train.py said}."""
    path = e.folder / f"{kind}-{lr}-{steps}-{seed}.pt"

    def training():
        said = {}
        try:
            run_train(e, e.paths["training"], "--holdout", e.paths["holdout"], "-o", path, "--resume",
                      "--model", kind, "--lr", lr, "--steps", steps, "--report-every", steps, "--seed", seed,
                      *e.options)
        except InputError as error:
            if "diverged" not in str(error):
                raise
            said = {"diverged": str(error)}
        path.with_suffix(".state.pt").unlink(missing_ok=True)
        return said or {name: value for name, value in last_report(path).items() if math.isfinite(value)}

    return kept(path.with_suffix(".json"), training)


def score(report):
    """What a learning rate is chosen by: mmd + motion in samples of 400 frames against the video held out, as
    copying is no merit, and the two, in one unit, see where the face is and how it moves."""
    return DIVERGED if "diverged" in report else report["holdout_long_mmd"] + report["holdout_long_motion"]


def choose_rates(e):
    """{kind: {rate: score}}, by trainings with seed 0."""
    jobs = [(kind, lr, e.search, 0) for kind in e.models for lr in RATES]
    scores = iter(map(score, at_once(partial(trained, e), jobs, e.jobs, "learning rates")))
    return {kind: {lr: next(scores) for lr in RATES} for kind in e.models}


def generator(e, kind, lr, seed):
    return load_motion(e.folder / f"{kind}-{lr}-{e.steps}-{seed}.pt", e.device)[0] if lr else e.fitted[kind]


def windows_by_length(e, G, seed):
    """{length: windows (n, T, 32)} at the end of samples of that length, the shortest from frame 0 on."""
    rng = torch.Generator().manual_seed(seed)
    with e.lock:
        short = train.sample_coordinates(G, train.PER_LONG * e.samples, EARLY[-1], e.pca, rng)
        long = train.sample_coordinates(G, e.samples, LATE[-1], e.pca, rng)     # (samples, 4000, 32)
    return {**{n: short[:, n - e.window:n] for n in (e.window, *EARLY)},
            **{n: train.long_windows(long[:, n - LATE[0]:n], e.window) for n in LATE}}


def measured(e, kind, lr, seed):
    """Of a training that counts, or a draw of a model that is fitted (lr None): {"training", "holdout":
    {length: {measure: value}}}, all measures at lengths in the tables, mmd and motion at others."""
    report = trained(e, kind, lr, e.steps, seed) if lr else {}
    if "diverged" in report:
        return report

    def measuring():
        found = {"seed": seed, "seconds": 1 / report.get("steps_per_second", math.inf),
                 "training": {}, "holdout": {}}
        with e.lock:                                    # to make a network draws from torch's random numbers
            G = generator(e, kind, lr, seed)
        for n, some in windows_by_length(e, G, seed).items():
            for video, real in e.real.items() if n in (e.window, *TABLED) else ():
                found[video][n] = train.measures(real, some)
            real = e.real["holdout"], some.double()
            found["holdout"].setdefault(n, {"mmd": train.mmd(*real), "motion": train.motion(*real)})
        return found

    name = f"{kind}-{lr}-{e.steps}-{seed}" if lr else f"{kind}-{seed}"
    return kept(e.folder / f"{name}.measured.json", measuring)


def without_training(e):
    """Rows as of measured(): windows of both videos, and those of the training video in a wrong order."""
    windows = evaluate.rearranged(e.real["training"], 0)
    windows |= {f"real windows, {video}": evaluate.drawn(real, 0) for video, real in e.real.items()}
    values = {row: {video: train.measures(real, some) for video, real in e.real.items()}
              for row, some in windows.items()}
    return {row: [{video: dict.fromkeys(map(str, (e.window, *TABLED)), found) for video, found in of.items()}]
            for row, of in values.items()}


def motion_part(G):
    """Parameters without those of T; styleinv and mocogan_hd have no T, and all of theirs count."""
    T = {name.split(".")[0] for name, _ in models.Translator(1, 1).named_parameters()}
    return sum(p.numel() for name, p in G.named_parameters() if name.split(".")[0] not in T)


def inversion(e, G):
    """One-Style's R2 of the first n frames of a clip held out: {n: {"inverted", "least squares"}}."""
    found = {}
    for n in (n for n in one_style.FRAMES if n <= len(e.clip)):
        w = e.clip[:n].to(e.device)
        rebuilt = G.translate(one_style.invert(G, w) * G.waves(torch.arange(n, device=w.device)))
        found[n] = {"inverted": one_style.explained(w, rebuilt),
                    "least squares": one_style.explained(w, one_style.least_squares(G, w))}
    return found


# ------------------------------------------------------------------------------------------------------------
# Tables and figures
# ------------------------------------------------------------------------------------------------------------

def nearest(table, rows):
    """By each measure the row whose trainings are nearest in the mean, then those level with it: whose
    nearest training is no farther than its farthest."""
    said = []
    for name in train.MEASURES:
        far = {row: np.asarray(table[row][name]) for row in rows if name in table[row]}
        if name in evaluate.RATIOS:
            far = {row: abs(values - 1) for row, values in far.items()}
        order = sorted(far, key=lambda row: far[row].mean())
        level = [row for row in order if row == order[0] or far[row].min() <= far[order[0]].max()]
        said += [f"{name}: {', '.join(level)}"] * bool(level)
    return "; ".join(said) + "."


def print_table(title, table):
    """{row: {column: cell}} in Markdown."""
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row, cells in table.items():
        print(f"| {row} | {' | '.join(str(cells[column]) for column in columns)} |")


def draw(path, panels, columns=2):
    """Panels (title, {name: (x, y)}, ticks of x, of y) as an SVG; ticks {label: place} bound the axes. Curves
    whose name ends in "fps" are drawn as points. Names stand in the order in which the curves end."""
    height, left, top, w, h, said = 230, 40, 24, 260, 176, []
    width = left + w + 20 + 6 * max(len(name) for _, curves, *_ in panels for name in curves)

    def place(values, ticks, length):
        low, high = min(ticks.values()), max(ticks.values())
        return (np.clip(np.asarray([*values], float), low, high) - low) / (high - low) * length

    for k, (title, curves, across, up) in enumerate(panels):
        said += [f'<g transform="translate({k % columns * width + left} {k // columns * height + top})">',
                 f'<text y="-8">{title}</text><rect width="{w}" height="{h}" fill="none" stroke="#999"/>']
        said += [f'<text x="{x:.1f}" y="{h + 14}" text-anchor="middle">{label}</text>'
                 for label, x in zip(across, place(across.values(), across, w))]
        said += [f'<text x="-4" y="{h - y + 4:.1f}" text-anchor="end">{label}</text>'
                 for label, y in zip(up, place(up.values(), up, h))]
        ranks = sorted(curves, key=lambda name: -curves[name][1][-1])
        for n, (name, (x, y)) in enumerate(curves.items()):
            colour, xy = COLOURS[n % len(COLOURS)], list(zip(place(x, across, w), h - place(y, up, h)))
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in xy)
            points = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.5" fill="{colour}"/>' for a, b in xy]
            said += points if name.endswith("fps") else [
                f'<polyline points="{line}" fill="none" stroke="{colour}"/>']
            said.append(f'<text x="{w + 6}" y="{10 + 14 * ranks.index(name)}" fill="{colour}">{name}</text>')
        said.append("</g>")
    size = f'width="{columns * width}" height="{math.ceil(len(panels) / columns) * height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    text = "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *said, "</svg>\n"])
    train.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def draw_distance(e, rows):
    """Distance over length on two logarithmic axes; what is below 1 or above 1,000 is drawn there."""
    lengths, panels = (e.window, *EARLY, *LATE), []
    for name in ("mmd", "motion"):
        curves = {}
        for row, some in rows.items():
            there = [n for n in lengths if str(n) in some[0]["holdout"]]
            y = [np.mean([one["holdout"][str(n)][name] for one in some]) for n in there]
            curves[row] = np.log10(there), np.log10(np.maximum(y, 1))
        panels.append((f"{name}, x 1000, against the video held out, over frames", curves,
                       {n: math.log10(n) for n in (e.window, 100, 400, 1000, 4000)},
                       {10 ** n: n for n in range(4)}))
    draw(e.folder / "distance.svg", panels)


def draw_motion(e, generators):
    """One trajectory each, in the three largest PCA coordinates over their deviations; and, where time is
    continuous, the same seed at 60 frames a second, under its frames at the training rate."""
    def curves(x, fps, name=""):
        return {f"{k + 1}{name}": (np.arange(len(x)) / fps, x[:, k] / e.pca["std"][k]) for k in range(3)}

    def sampled(G, frames, every=1):
        w = np.concatenate(list(sample(G, frames, 0, every=every)))
        return train.coordinates(torch.from_numpy(w), e.pca)

    up, frames = {-4: -4, 0: 0, 4: 4}, LATE[0]
    across = {"0": 0, f"{frames / e.fps:g} s": frames / e.fps}
    shown = {"training video": e.x[:frames], **{kind: sampled(G, frames) for kind, G in generators.items()}}
    draw(e.folder / "trajectories.svg",
         [(kind, curves(x, e.fps), across, up) for kind, x in shown.items()], columns=3)
    fine = {kind: curves(sampled(G, 120, Fraction(e.fps) / 60), 60) |
            curves(sampled(G, round(2 * e.fps)), e.fps, f" at {e.fps:g} fps")
            for kind, G in generators.items() if getattr(G, "continuous", False)}
    if fine:
        draw(e.folder / "fps.svg", [(f"{kind}, at 60 fps", both, {"0": 0, "2 s": 2}, up)
                                    for kind, both in fine.items()])


def main(args):
    torch.set_num_threads(1)                                        # of each model that is measured
    e = prepare(args)

    # Learning rates, then the trainings that count, seed by seed: the first make a table, too
    scores = choose_rates(e)
    rates = {kind: min(of, key=of.get) for kind, of in scores.items() if min(of.values()) < DIVERGED}
    seeds = {kind: math.ceil(e.seeds * 5 / 3) if kind == OURS else e.seeds for kind in rates}
    jobs = [(kind, rates[kind], seed) for seed in range(2 * e.seeds) for kind in rates if seed < seeds[kind]]
    jobs += [(kind, None, seed) for kind in e.fitted for seed in range(e.seeds)]
    rows, lines = {}, {}
    for (kind, *_), found in zip(jobs, at_once(partial(measured, e), jobs, e.jobs, "models")):
        rows.setdefault(kind, []).extend([found] * ("diverged" not in found))
    rows = {kind: some for kind, some in rows.items() if some}
    generators = {kind: generator(e, kind, rates.get(kind), some[0]["seed"]) for kind, some in rows.items()}

    # One line for each kind
    for kind, of in scores.items():
        some, told = rows.get(kind, []), {DIVERGED: "diverged"}
        lines[kind] = {
            "motion part": f"{motion_part(generators[kind]):,}" if some else "-",
            "seconds a step": f"{np.mean([one['seconds'] for one in some]):.3f}" if some else "-",
            **{f"score at {lr}": told.get(value, f"{value:.1f}") for lr, value in of.items()},
            "chosen": rates.get(kind, "-"), "trainings": f"{len(some)} of {seeds.get(kind, 0)}"}
    print_table(f"Parameters without T; seconds with {e.jobs} trainings at a time; scores of learning rates: "
                f"mmd + motion in 400 frames against the video held out after {e.search} steps; trainings "
                f"that did not diverge", lines)

    # The table, once for each video and length
    rows |= without_training(e)
    tables, said = {}, {}
    for video in e.real:
        for n in (e.window, *TABLED):
            what = "from frame 0 on" if n == e.window else f"{'late ' * (n > LATE[0])}in {n:,} frames"
            table = tables[f"{video} video, windows {what}"] = {}
            for row, one in ((row, one) for row, some in rows.items() for one in some):
                evaluate.keep(table, row, one[video][str(n)])
    for title, table in tables.items():
        said[title] = {"trained": nearest(table, [kind for kind in lines if kind in rows]),
                       "of all": nearest(table, generators)}
        print_table(f"{e.steps} steps, against the {title}", evaluate.in_words(table))
        print(f"\nNearest of those trained: {said[title]['trained']} Of all models: {said[title]['of all']}")

    # Inversion, figures
    inverted = {}
    if "one_style" in generators:
        path = e.folder / f"inversion-{rates['one_style']}-{e.steps}.json"
        inverted = kept(path, lambda: inversion(e, generators["one_style"]))
        print_table("One-Style, R2 of the first frames of a clip held out", {
            n: {name: f"{value:.4f}" for name, value in cells.items()} for n, cells in inverted.items()})
    draw_distance(e, {row: rows[row] for row in (*generators, "real windows, training")})
    draw_motion(e, generators)
    write(e.folder, "neighbours.json", {
        "options": e.options, "steps": e.steps, "search": e.search, "scores": scores, "rates": rates,
        "lines": lines, "rows": rows, "tables": tables, "nearest": said, "inversion": inverted})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", nargs="?", type=Path, metavar="LATENTS", help="to learn from; none: a toy")
    parser.add_argument("--holdout", type=Path, metavar="LATENTS", help="of unseen video of the same actor")
    parser.add_argument("-o", "--output", default="neighbours", help="folder for all files: neighbours")
    parser.add_argument("--full", action="store_true", help="the recorded result, not the toy")
    parser.add_argument("--models", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--critic", default="dense", choices=("dense", "sparse"), help="of all: dense")
    parser.add_argument("--steps", type=int, help="of each training: 2400; 3")
    parser.add_argument("--search", type=int, help="of those that choose the learning rate: 600; 2")
    parser.add_argument("--seeds", type=int, help="of each kind: 3, and 5 of the paper's; 1 and 2")
    parser.add_argument("--jobs", type=int, help=f"trainings at a time: a core each; {THREADS} on a GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"neighbours.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "neighbours.py: interrupted; the same command goes on.\n")
