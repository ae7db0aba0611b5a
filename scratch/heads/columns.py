"""columns.py STATE NORM NAME ...: enlarge what the mapping's first layer makes of entries of z (all whose norm is less
where no name is given)."""
import sys
import torch
from pretrain import heads
path, norm, names = sys.argv[1], float(sys.argv[2]), sys.argv[3:] or heads.NAMES
state = torch.load(path, weights_only=True)
for part in ("net", "ema"):
    weight = state[part]["decoder.style.1.weight"]                      # (D, Z)
    for k in map(heads.NAMES.index, names):
        weight[:, k] *= max(1.0, norm / float(weight[:, k].norm()))
torch.save(state, path)
