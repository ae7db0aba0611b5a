"""Motion models side by side, as pictures: how each of them blinks and speaks.

    python -m studies.sidebyside latents.npy                    # sidebyside.png, with the default motion.pt
    python -m studies.sidebyside latents.npy --motion motion.pt -o sidebyside.png

The codes of the video itself, the trained model, noise filtered by the video, and video textures: twelve
frames around the narrowest eyes of 400 frames, and twelve in which the mouth moves most, by its landmarks.
"""

import argparse

import cv2
import numpy as np
import torch

import evaluate
import models
import sample
import train
import transfer
from models import InputError

FRAMES = 400        # of which the strips are chosen
STRIP = 12          # frames in a strip, adjacent at the training rate
TITLE = 24          # px above a strip
BLACK, WHITE = (0, 0, 0), 255


def trajectories(latents, motion, seed):
    """Yields (name, W+ codes (FRAMES, L, D)): the video's, the trained model's, and of two computed ones."""
    codes, facts = train.load_latents(latents)
    G, meta = sample.load_motion(motion)
    longest = max(facts["clips"], key=lambda clip: clip[1] - clip[0])
    yield "video", torch.from_numpy(codes[slice(*longest)][:FRAMES])
    yield "StyleVideoGAN", torch.from_numpy(np.concatenate(list(sample.sample(G, FRAMES, seed))))

    x = train.coordinates(torch.from_numpy(codes), meta["pca"])                 # (N, 32)
    for name, kind in (("filtered noise", "noise"), ("video textures", "textures")):
        fitted = models.motion_model(kind)(G.L, G.D).fit(x, facts["clips"], meta["pca"])
        yield name, torch.from_numpy(np.concatenate(list(sample.sample(fitted, FRAMES, seed))))


def strips(frames, fps):
    """Frames (T, H, W, 3) -> (STRIP, H, W, 3) around the narrowest eyes, and where the mouth moves most."""
    points = evaluate.observe(frames, fps, len(frames))["points"]
    values = [evaluate.face_measures(p) if np.isfinite(p).all() else None for p in points]
    eyes, mouth = (np.array([v[name] if v else np.nan for v in values])
                   for name in ("eye_opening", "mouth_opening"))
    middle = int(np.nanargmin(eyes[STRIP // 2:-STRIP // 2])) + STRIP // 2
    moves = [np.nanmax(mouth[k:k + STRIP]) - np.nanmin(mouth[k:k + STRIP]) for k in range(len(mouth) - STRIP)]
    start = int(np.nanargmax(moves))
    return frames[middle - STRIP // 2:][:STRIP], frames[start:start + STRIP]


def titled(strip, title):
    """Pictures (n, H, W, 3) in a row, with words above them."""
    row = np.hstack(list(strip))
    head = np.full((TITLE, row.shape[1], 3), WHITE, np.uint8)
    cv2.putText(head, title, (4, TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, BLACK, 1, cv2.LINE_AA)
    return np.vstack([head, row])


def main(args):
    model, eyes, mouths = models.load_image_model(args.model), [], []
    for name, w in trajectories(args.latents, args.motion, args.seed):
        frames = np.stack(list(transfer.render(model, w, transfer.pictures_at_once(model))))
        eye, mouth = strips(frames, 25.0)
        eyes.append(titled(eye, f"{name}: the eyes closed"))
        mouths.append(titled(mouth, f"{name}: the mouth moves"))
    if not cv2.imwrite(args.output, np.vstack(eyes + mouths)[..., ::-1]):
        raise InputError(f"{args.output} cannot be written; choose another file with -o.")
    print(f"sidebyside.py: wrote {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", metavar="LATENTS", help="codes of the training video")
    parser.add_argument("--motion", metavar="FILE", help="of train.py; not given: ./motion.pt, or assets/'s")
    parser.add_argument("--model", default="faces128", help="image model of the codes")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("-o", "--output", default="sidebyside.png", metavar="FILE", help=".png or .jpg")
    try:
        main(parser.parse_args())
    except InputError as error:
        parser.exit(2, f"sidebyside.py: {error}\n")
