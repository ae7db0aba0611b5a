"""Codes of one drawn head talking, without video files: python make_codes.py OUT.npy SECONDS VOICE. Goes on where it was cut off."""
import os, sys, time
import numpy as np, torch
sys.path.insert(0, ".")
import embed
from models import load_image_model
from pretrain import faces
torch.set_num_threads(1)
import cv2; cv2.setNumThreads(1)
out, seconds, voice = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
over = int(sys.argv[4]) if len(sys.argv) > 4 else 1
model, n, p, first, paint, kept = load_image_model("faces128"), round(seconds * 25), faces.actor(8), len(faces.IDENTITY), faces.paint_background, {}

def background(c, look):                                   # the same wall in every frame: paint it once
    if c.S not in kept:
        paint(c, look)
        kept[c.S] = c.picture.copy()
    c.picture[:] = kept[c.S]
faces.paint_background = background

motion, _ = faces.talk(n, 25, voice)
np.save(out.replace(".npy", ".motion.npy"), motion)
fresh = not os.path.exists(out)
codes = np.lib.format.open_memmap(out, "w+" if fresh else "r+", np.float32, (n, model.L, model.D) if fresh else None)
done, began, drawing = out.replace(".npy", ".done"), time.time(), 0.0
start = 0 if fresh or not os.path.exists(done) else int(open(done).read())
limit = int(os.environ.get("FRAMES", n))
for k in range(start, min(n, limit), 32):
    t, crops = time.process_time(), []
    for m in motion[k:k + 32]:
        p[first:first + len(faces.MOTION)] = m
        crops.append(faces.draw(p, model.size, over))
    drawing += time.process_time() - t
    codes[k:k + 32] = model.encode(embed.to_network(np.stack(crops))).numpy()
    if (k // 32) % 10 == 9 or k + 32 >= n:
        codes.flush()
        open(done, "w").write(str(min(k + 32, n)))
        print(out, k + 32, "wall", round(time.time() - began), "cpu", round(time.process_time(), 1), "drawing", round(drawing, 1), flush=True)
