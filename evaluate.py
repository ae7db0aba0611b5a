"""Measure a motion model: how close its motion is to the training video's, whether it loops, what transfer keeps.

    python evaluate.py latents.npy motion.pt                          # table on standard output, results.json
    python evaluate.py latents.npy motion.pt --actors 4 --json quick.json
    python evaluate.py latents.npy motion.pt --video moved/video.mp4  # where the training video is now

Everything here needs no download. Distances of codes stand in for the paper's FID and FVD, which compare pictures with
networks that do; dlib's landmarks and face descriptor judge what is rendered. Deterministic: the same seed, files and machine
give the same numbers. Shapes: T frames, L style rows, D style width; coordinates (T, 32) in the PCA of the training codes.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import cv2
import dlib
import numpy as np
import torch
from tqdm import tqdm

import embed
import train
from models import InputError, load_image_model
from sample import load_motion, pick_device, sample
from transfer import move, pictures_at_once, random_actor, render

LOOP_FRAMES = 1500      # length of the samples that are searched for loops: the paper's longest example (sec. 4)
LOOP_SAMPLES = 8        # ours
LOOP_LAG = 25           # ours: shortest lag in frames that counts as a repetition; much below it, any motion resembles itself
LOOPS = 0.3             # ours: a sample loops when it returns to itself, at its best lag, to within this share of the distance
#                         of two random frames of the training video. Exact repetition scores 0, independent frames 1
PERFORMED = 4           # ours: samples that the actors perform in turn. One says little: in one that hardly turns the head dlib
#                         measures yaw as well as noise (correlations of 0.85, 0.93, 0.92, 0.93 in four samples, five actors each)
MEASURES = ("mouth_opening", "eye_opening", "yaw")
CROPS = 32              # crops of the source held at a time


# ------------------------------------------------------------------------------------------------------------------
# Motion, from the codes alone
# ------------------------------------------------------------------------------------------------------------------

def usual_distance(x):
    """Mean distance of two different frames of x (T, d), drawn at random."""
    a, b = np.random.RandomState(0).randint(0, len(x), (2, 20000))
    return np.linalg.norm(x[a] - x[b], axis=1)[a != b].mean()


def loop_score(x, usual=None, shortest=LOOP_LAG):
    """How nearly a trajectory (T, d) repeats itself: 0 exactly, about 1 never. Higher is better.

    For every lag from `shortest` to T/2: the mean distance of frames that far apart, over the usual distance of two frames;
    the smallest over lags. usual: that of the training video, so that motion which dies down, the simplest loop of all,
    scores near 0 and not, by its last trembling, near 1; None: of x itself. Give x in units in which what is seen counts
    most: PCA coordinates, not whitened. It finds loops of a steady tempo. Ours: the paper counts loops by eye (sec. 4,
    gradient angle penalty). Returns the score and its lag in frames.
    """
    x = np.asarray(x, np.float64)
    T = len(x)
    lags = np.arange(shortest, T // 2 + 1)
    usual = (usual_distance(x) if T > 1 else 0) if usual is None else usual
    if len(lags) == 0 or usual == 0:
        return float("nan"), 0
    scores = [np.linalg.norm(x[lag:] - x[:-lag], axis=1).mean() / usual for lag in lags]
    return float(min(scores)), int(lags[np.argmin(scores)])


def code_table(G, meta, codes, clips, seed):
    """Fréchet distances of sampled to training codes, with what they are to be compared with. Lower is better.

    Short: 2048 samples of one training window. Long: 128 samples of 400 frames, cut into windows (paper, sec. 4 and suppl.
    2.2, there on pictures). window: on windows of PCA coordinates, train.py's definition; frame: on single frames. percent:
    window distance over that of frozen frames. floor and halves: see train.code_references.
    """
    T, pca, rng = meta["window"], {k: v.cpu() for k, v in meta["pca"].items()}, torch.Generator().manual_seed(seed)
    references = train.code_references(train.coordinates(torch.from_numpy(codes), pca), clips, T)
    short = train.sample_coordinates(G, train.SHORT, T, pca, rng)               # (2048, T, 32)
    long = train.sample_coordinates(G, train.LONG[0], max(train.LONG[1], 4 * T), pca, rng)      # (128, 400, 32)
    found = train.code_distances(references, short, long)
    frames = references["frames"]
    half, percent = len(frames) // 2, 100 / references["frozen"]
    return {**found, "floor": references["floor"], "floor_percent": percent * references["floor"],
            "halves": references["halves"], "halves_percent": percent * references["halves"], "frozen": references["frozen"],
            "frame_halves": train.frechet(frames[:half], frames[half:]),
            "samples_short": train.SHORT, "samples_long": list(long.shape[:2])}


def loop_table(G, meta, codes, clips):
    """Loop scores of LOOP_SAMPLES sampled trajectories, of their second half, as a recurrence may take its time to fall into
    a loop, and of the longest training clip.

    moves: the usual distance of two frames of each sample, over that of the training video; near 0 it stands still.
    """
    pca = {k: v.cpu() for k, v in meta["pca"].items()}

    def coordinates(w):
        return train.coordinates(torch.from_numpy(w), pca).double().numpy()

    start, end = max(clips, key=lambda clip: clip[1] - clip[0])
    video = coordinates(codes[start:end])
    usual, scores, moves = usual_distance(video), [], []
    for seed in tqdm(range(LOOP_SAMPLES), desc="loops", unit="sample"):
        x = np.concatenate([coordinates(w) for w in sample(G, LOOP_FRAMES, seed)])             # (1500, 32)
        scores.append(loop_score(x[LOOP_FRAMES // 2:], usual))
        moves.append(float(usual_distance(x) / usual))
    return {"frames": LOOP_FRAMES, "samples": LOOP_SAMPLES, "threshold": LOOPS, "scores": [s for s, _ in scores],
            "lags": [lag for _, lag in scores], "mean": float(np.mean([s for s, _ in scores])),
            "looping": sum(s < LOOPS for s, _ in scores), "moves": moves, "training_video": loop_score(video)[0]}


# ------------------------------------------------------------------------------------------------------------------
# Pictures, judged by dlib
# ------------------------------------------------------------------------------------------------------------------

def measure(frames, every):
    """Aligned frames (T, H, W, 3) uint8 -> measures (T, 3), NaN where dlib finds no face, and descriptors (n, 128) of
    every `every`-th frame that has one."""
    tracker, values, descriptors = embed.FaceTracker(), [], []
    for k, frame in enumerate(frames):
        points = tracker.step(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
        values.append([np.nan] * 3 if points is None else [embed.face_measures(points)[m] for m in MEASURES])
        if k % every == 0 and points is not None:
            descriptors.append(embed.descriptor(frame, points))
    return np.array(values), np.array(descriptors)


def correlation(a, b):
    """Pearson's r of each measure between two clips (T, 3), over frames in which both have a face. Higher is better."""
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    return [float(np.corrcoef(a[both, m], b[both, m])[0, 1]) if both.sum() > 2 else float("nan") for m in range(3)]


def acd(descriptors):
    """Average content distance of one clip: mean L2 distance of dlib's face descriptors over all pairs of frames
    (Tulyakov et al. 2018; paper, sec. 4). Lower is better; dlib calls faces below 0.6 one person."""
    if len(descriptors) < 2:
        return float("nan")
    rows, columns = np.triu_indices(len(descriptors), 1)
    return float(np.linalg.norm(descriptors[rows] - descriptors[columns], axis=1).mean())


def actor_table(model, meta, motions, actors, every):
    """Sampled trajectories (n, T, L, D) performed by the training actor, all of them, and by `actors` random ones (seeds 0,
    1, ...), who take them in turn, with the offset trick and naively: per actor the correlation of each measure with the
    training actor's in the same motion, and ACD."""
    pca = {k: meta["pca"][k].to(model.device).float() for k in ("mean", "basis")}
    motions, batch = motions.to(model.device), pictures_at_once(model)
    own = [measure(render(model, w, batch), every) for w in tqdm(motions, desc="training actor", unit="sample")]
    rows = {"offset": [], "naive": []}
    identities = []
    for seed in tqdm(range(actors), desc="actors", unit="actor"):
        w_new, k = random_actor(model, seed), seed % len(motions)
        for name in rows:
            moved = move(motions[k], w_new, pca, motions[k, 0], name)
            values, descriptors = measure(render(model, moved, batch), every)
            rows[name].append({"seed": seed, "sample": k, **dict(zip(MEASURES, correlation(values, own[k][0]))),
                               "acd": acd(descriptors), "found": float(np.isfinite(values).all(1).mean())})
            if name == "offset" and len(descriptors):
                identities.append(descriptors.mean(0))
    between = acd(np.array(identities)) if len(identities) > 1 else float("nan")
    means = {name: {key: float(np.nanmean([row[key] for row in part])) for key in (*MEASURES, "acd", "found")}
             for name, part in rows.items()}
    return {"samples": len(motions), "frames": motions.shape[1], "descriptor_every": every, "training_actor": {
        "acd": float(np.mean([acd(descriptors) for _, descriptors in own])),
        "found": float(np.mean([np.isfinite(values).all(1).mean() for values, _ in own]))},
        "mean": means, "between_actors": between, "actors": rows}


def reconstruction_table(model, codes, latents, video):
    """How much of the video the codes hold: PSNR (dB, higher is better) of the rendered codes against the aligned crops of
    the source, and correlation of dlib's measures between both. None where the source is not there."""
    sidecar = Path(latents).with_suffix(".json")
    if not sidecar.is_file():
        return None
    read = json.loads(sidecar.read_text(encoding="utf-8"))
    sources = [video] if video else read["source"]
    places = [next((p for p in (Path(s), sidecar.parent / s) if p.exists()), None) for s in sources]
    if None in places or len(places) != len(read["source"]):
        return None
    values, found = [], [[], []]
    crops = (crop for k, path in enumerate(places)
             for crop in embed.crops(path, [{**f, "quad": np.array(f["quad"])} for f in read["frames"]
                                            if f.get("source", 0) == k], model.size))
    trackers, batch, done = (embed.FaceTracker(), embed.FaceTracker()), [], 0
    for crop in tqdm(crops, desc="reconstruction", unit="frame", total=len(codes), mininterval=0.5):
        batch.append(crop)
        if len(batch) < CROPS and done + len(batch) < len(codes):
            continue
        pictures = render(model, torch.from_numpy(codes[done:done + len(batch)]).to(model.device), pictures_at_once(model))
        for pair in zip(batch, pictures):
            values.append(embed.psnr(*pair))
            for tracker, frame, kept in zip(trackers, pair, found):
                points = tracker.step(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
                kept.append([np.nan] * 3 if points is None else [embed.face_measures(points)[m] for m in MEASURES])
        done, batch = done + len(batch), []
    return {"frames": done, "psnr": float(np.mean(values)), "psnr_worst": float(np.min(values)),
            **dict(zip(MEASURES, correlation(*map(np.array, found))))}


# ------------------------------------------------------------------------------------------------------------------
# Report
# ------------------------------------------------------------------------------------------------------------------

def number(value, digits=3):
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def table(title, head, rows):
    """Aligned text table."""
    cells = [head] + [[str(c) for c in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = ["  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([title, "  " + lines[0], "  " + "-" * len(lines[0])] + ["  " + line for line in lines[1:]])


def report(results):
    """The whole table as text."""
    c, l, a, r = results["codes"], results["loops"], results["transfer"], results["reconstruction"]
    parts = [table("Fréchet distance of codes to the training video's (lower is better)",
                   ["", "window, short", "% of frozen", "window, long", "% of frozen", "frame, short", "frame, long"],
                   [["sampled", number(c["short"]), number(c["short_percent"], 2), number(c["long"]),
                     number(c["long_percent"], 2), number(c["frame_short"]), number(c["frame_long"])],
                    ["perfect model", number(c["floor"]), number(c["floor_percent"], 2), "", "", "", ""],
                    ["half of the video against half", number(c["halves"]), number(c["halves_percent"], 2), "", "",
                     number(c["frame_halves"]), ""],
                    ["frozen frames", number(c["frozen"]), "100.00", "", "", "", ""]]),
             table(f"Loops: {l['samples']} samples of {l['frames']} frames (higher is better, below {l['threshold']} loops)",
                   ["", "score", "looping"],
                   [["sampled, mean", number(l["mean"]), f"{l['looping']} of {l['samples']}"],
                    ["sampled, worst", number(min(l["scores"])), ""],
                    ["training video", number(l["training_video"]), ""]])]
    if a:
        head = ["", "ACD", *(m.replace("_", " ") for m in MEASURES), "face found"]
        rows = [[title, number(a["mean"][name]["acd"]), *(number(a["mean"][name][m]) for m in MEASURES),
                 number(a["mean"][name]["found"])] for name, title in (("offset", "offset trick"), ("naive", "naive shift"))]
        rows.append(["training actor", number(a["training_actor"]["acd"]), *(3 * ["1"]), number(a["training_actor"]["found"])])
        rows.append(["between the actors", number(a["between_actors"]), *(4 * [""])])
        parts.append(table(f"Transfer of {a['samples']} samples to {len(a['actors']['offset'])} actors: ACD (lower is "
                           f"better), correlation with the training actor (higher is better)", head, rows))
    if r:
        parts.append(table("Reconstruction of the training video", ["", "PSNR, dB", *(m.replace("_", " ") for m in MEASURES)],
                           [["rendered codes against crops", number(r["psnr"], 2), *(number(r[m]) for m in MEASURES)]]))
    return "\n\n".join(parts)


def clean(value):
    """NaN has no place in JSON: None instead, at any depth."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def main(args):
    started, target = time.time(), Path(args.json)
    part = target.with_name(f".{target.name}.part")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"{target} cannot be written; name another file with --json.")
    if args.actors < 0 or args.frames < 4 or args.every < 1:
        raise InputError(f"--actors {args.actors} --frames {args.frames} --every {args.every}: at least 0, 4 and 1.")
    device = pick_device(args.device)
    codes, latents = train.load_latents(args.latents)
    G, meta = load_motion(args.motion, device)
    if codes.shape[1:] != (G.L, G.D):
        raise InputError(f"{args.latents} has codes of {codes.shape[1]} x {codes.shape[2]}, {args.motion} makes {G.L} x "
                         f"{G.D}: give the codes that the motion model was trained on.")
    if None not in (latents["model"]["sha256"], meta["model"]["sha256"]) and latents["model"]["sha256"] != meta["model"]["sha256"]:
        raise InputError(f"{args.latents} was embedded with the image model {latents['model']['name']}, {args.motion} was "
                         f"trained on codes of {meta['model']['name']}: give files that belong together.")
    if max(end - start for start, end in latents["clips"]) < meta["window"]:
        raise InputError(f"{args.latents} has no clip as long as the window of {args.motion}, {meta['window']} frames; give "
                         f"the codes that the motion model was trained on.")
    model = load_image_model(args.model or meta["model"]["name"] or "faces128", device=device)
    if (model.L, model.D) != (G.L, G.D) or meta["model"]["sha256"] not in (None, model.sha256):
        raise InputError(f"{args.motion} belongs to the image model {meta['model']['name']}, not to {model.name}; name the "
                         f"right one with --model.")

    results = {"codes": code_table(G, meta, codes, latents["clips"], args.seed),
               "loops": loop_table(G, meta, codes, latents["clips"]), "transfer": None}
    if model.has_actors and model.encoder is not None and args.actors:
        motions = torch.stack([torch.from_numpy(np.concatenate(list(sample(G, args.frames, args.seed + k))))
                               for k in range(min(PERFORMED, args.actors))])                    # (n, T, L, D)
        results["transfer"] = actor_table(model, meta, motions, args.actors, args.every)
    else:
        print("evaluate.py: no other actors in this image model (or none asked for), so nothing is transferred.",
              file=sys.stderr)
    results["reconstruction"] = reconstruction_table(model, codes, args.latents, args.video)
    if results["reconstruction"] is None:
        print("evaluate.py: the training video is not where latents.json says; name it with --video to measure the "
              "reconstruction.", file=sys.stderr)
    results["settings"] = {**vars(args), "model": {"name": model.name, "sha256": model.sha256}, "window": meta["window"],
                           "training_frames": len(codes), "step": meta["step"], "window_space": train.SPACE,
                           "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
                           "dlib": dlib.__version__}
    try:
        part.write_text(json.dumps(clean(results), indent=1), encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); name another file with --json.") from None
    finally:
        part.unlink(missing_ok=True)
    print(report(results))
    print(f"evaluate.py: wrote {target} in {time.time() - started:.0f} s.", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("latents", metavar="LATENTS", help="training codes, latents.npy of embed.py")
    parser.add_argument("motion", metavar="MOTION", help="motion model, motion.pt of train.py")
    parser.add_argument("--json", default="results.json", metavar="FILE", help="all numbers and settings")
    parser.add_argument("--model", help="image model; when not given the one recorded in MOTION")
    parser.add_argument("--video", metavar="FILE", help="training video, if it is not where latents.json says")
    parser.add_argument("--actors", type=int, default=20, help="random actors (seeds 0, 1, ...); 0 leaves transfer out")
    parser.add_argument("--frames", type=int, default=250, help="of the samples that they perform (the paper's ACD: 400)")
    parser.add_argument("--every", type=int, default=10, help="frames between two face descriptors of the ACD; ours: the mean "
                        "over all pairs needs few frames, and descriptors are slow on a CPU (the paper's: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "evaluate.py: interrupted; nothing was written.\n")
