"""Fit generator and encoder to rendered heads: z -> picture. One CUDA graph a stage.

python3 fit.py --data DIR --out OUT --seconds 400
python3 fit.py --data DIR --out out --device cpu --seconds 60 --wide 0.25 --batch 8
"""
import argparse, json, math, os, sys, time, traceback
from pathlib import Path
import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE)); sys.path.insert(0, str(HERE.parent))
import models
from models import EqualLinear, Generator, GradualStyleEncoder, SQRT2, fir_kernel

p = argparse.ArgumentParser()
p.add_argument("--data", nargs="+", required=True); p.add_argument("--held", required=True); p.add_argument("--out", required=True)
p.add_argument("--seconds", type=float, default=300); p.add_argument("--device", default="cuda"); p.add_argument("--batch", type=int, default=128)
p.add_argument("--wide", type=float, default=2); p.add_argument("--D", type=int, default=128); p.add_argument("--lr", type=float, default=2e-2)
p.add_argument("--critic", type=float, default=0.62); p.add_argument("--pull", type=float, default=0.4); p.add_argument("--every", type=float, default=30)
p.add_argument("--init"); p.add_argument("--no-graph", action="store_true"); p.add_argument("--size", type=int, default=128)
A = p.parse_args()
T0 = time.time()
OUT = Path(A.out); OUT.mkdir(parents=True, exist_ok=True)
dev = torch.device(A.device); cuda = dev.type == "cuda"
dt = torch.bfloat16 if cuda else torch.float32
torch.manual_seed(0)
if cuda:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
def say(*a): print("%5.0f s" % (time.time() - T0), *a, flush=True)

# ---------------------------------------------------------------- data
names = json.load(open(HERE / "z.json"))
NAMES, PERSON, MOTION = names["NAMES"], names["PERSON"], names["MOTION"]
NORMAL = torch.distributions.Normal(0.0, 1.0)
LOWS = {"jawOpen": -0.35, "mouthSmile": -0.3, "mouthPucker": -1.0, "mouthStretch": -1.0, "browInnerUp": -0.6}
def quantiles(z):
    """z (n, Z) of heads.py -> in which part of [0, 1] a uniform number stands for each entry: lo, hi (n, Z).

    heads.sample_frame() as a Gaussian copula: u = Phi^-1(t), N(0, 1) in every entry; entries at rest have an interval."""
    z = np.asarray(z, np.float64); lo = (z + 1) / 2
    angles = slice(MOTION, MOTION + 5)
    lo[:, angles] = NORMAL.cdf(torch.from_numpy(z[:, angles] / 0.42)).numpy()
    hi = lo.copy()
    for name, low in LOWS.items():
        k = NAMES.index(name); v = z[:, k] ** (1 / 1.3) if name == "jawOpen" else z[:, k]
        lo[:, k] = np.where(v > 1e-6, (v - low) / (1 - low), 0); hi[:, k] = np.where(v > 1e-6, lo[:, k], -low / (1 - low))
    k = NAMES.index("eyeBlink"); v = z[:, k]
    lo[:, k] = np.where(v < 0.2, 8.5 * v, 0.85 + 0.15 * (v - 0.3) / 1.3)
    hi[:, k] = np.where(v > 0.9999, 1, lo[:, k])
    return np.stack([lo, hi], 1).clip(0.002, 0.998).astype(np.float32)              # (n, 2, Z)
def gaussian(q, random=True):
    """(B, 2, Z) -> u (B, Z)."""
    share = torch.rand_like(q[:, 0]) if random else 0.5
    return torch.special.ndtri(q[:, 0] + (q[:, 1] - q[:, 0]) * share)
Z = len(NAMES)
def decode(f):
    d = dict(np.load(f)); at = np.concatenate([[0], np.cumsum(d["lengths"])])
    pics = [cv2.imdecode(d["jpeg"][a:b], cv2.IMREAD_COLOR)[..., ::-1] for a, b in zip(at, at[1:])]
    pics = [q if len(q) == A.size else cv2.resize(q, (A.size, A.size), interpolation=cv2.INTER_AREA) for q in pics]
    return np.array(pics).transpose(0, 3, 1, 2), quantiles(d["z"]), d["boxes"], d["identity"]
def load(folders):
    from concurrent.futures import ThreadPoolExecutor
    files = sorted(f for folder in folders for f in Path(folder).rglob("heads-*.npz"))
    parts = list(ThreadPoolExecutor(12).map(decode, files))
    x, z, b, i = (np.concatenate(q) for q in zip(*parts))
    return torch.from_numpy(np.ascontiguousarray(x)).to(dev), torch.from_numpy(z).to(dev), torch.from_numpy(b).to(dev), i
X, ZS, BX, _ = load(A.data)
N = len(X)
HX, HZ, _, HI = load([A.held]); HZ = gaussian(HZ, False)
say(N, "pictures", len(HX), "held")

# ---------------------------------------------------------------- networks; up-convolution and FIR as one convolution of four phases
def up_forward(self, x, w, gain):
    weight = self.weight[0] * self.scale
    style = self.modulation(w)
    style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-8)
    demod = gain * torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)
    x = x * style[:, :, None, None].to(x.dtype)
    if self.up:
        O, I = weight.shape[:2]
        k = self.blur.kernel.flip(0, 1)[None, None]
        six = F.conv2d(weight.reshape(O * I, 1, 3, 3), k, padding=3).reshape(O, I, 6, 6)       # full convolution
        phases = torch.stack([six[:, :, a::2, b::2].flip(2, 3) for a in (0, 1) for b in (0, 1)], 1)
        y = F.conv2d(x, phases.reshape(4 * O, I, 3, 3).to(x.dtype).contiguous(memory_format=models.layout(x)), padding=1)
        x = F.pixel_shuffle(y, 2)
        x = x.contiguous(memory_format=models.layout(x))
    else:
        x = F.conv2d(x, weight.to(x.dtype).contiguous(memory_format=models.layout(x)), padding=1)
    return x * demod[:, :, None, None].to(x.dtype)
plain_forward = models.ModulatedConv2d.forward
def check():
    m = models.ModulatedConv2d(5, 7, 16, up=True).to(dev); x, w = torch.randn(3, 5, 8, 8, device=dev), torch.randn(3, 16, device=dev)
    with torch.no_grad(): e = float((plain_forward(m, x, w, SQRT2) - up_forward(m, x, w, SQRT2)).abs().max())
    say("phases against models.py: largest difference %.1e" % e); assert e < 2e-2
check()
def widths(c): return {r: max(8, int(v * A.wide)) for r, v in c.items() if r <= A.size}
CH = widths({4: 128, 8: 128, 16: 96, 32: 64, 64: 40, 128: 24})
DEPTHS, WIDTHS, HEAD = (1, 2, 2, 1), (16, 32, 64, 128), 64
class Nets(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = Generator(A.size, A.D, Z, 3, CH, lr_mlp=1.0)
        self.encoder = GradualStyleEncoder(self.decoder.L, A.D, A.size, DEPTHS, WIDTHS, HEAD)
        self.register_buffer("latent_avg", torch.zeros(A.D))
class EqualConv2d(nn.Module):
    def __init__(self, c_in, c_out, kernel, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel)); self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale = 1 / math.sqrt(c_in * kernel ** 2)
    def forward(self, x): return F.conv2d(x, self.weight * self.scale, self.bias, 1, self.weight.shape[-1] // 2)
class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv1, self.conv2, self.skip = EqualConv2d(a, a, 3), EqualConv2d(a, b, 3), EqualConv2d(a, b, 1, bias=False)
    def forward(self, x):
        y = SQRT2 * F.leaky_relu(self.conv1(x), 0.2); y = SQRT2 * F.leaky_relu(F.avg_pool2d(self.conv2(y), 2), 0.2)
        return (y + self.skip(F.avg_pool2d(x, 2))) / SQRT2
class Critic(nn.Module):
    def __init__(self, size):
        super().__init__()
        c = {r: v for r, v in {4: 192, 8: 192, 16: 128, 32: 96, 64: 48, 128: 32}.items() if r <= size}
        self.from_rgb = EqualConv2d(3, c[size], 1)
        self.blocks = nn.Sequential(*(Block(c[r], c[r // 2]) for r in sorted(c, reverse=True)[:-1]))
        self.last = EqualConv2d(c[4] + 1, c[4], 3); self.head = nn.Sequential(EqualLinear(16 * c[4], c[4], activation=True), EqualLinear(c[4], 1))
    def forward(self, x):
        x = self.blocks(SQRT2 * F.leaky_relu(self.from_rgb(x), 0.2)).float(); B, c = x.shape[:2]
        g = max(k for k in range(1, 5) if B % k == 0); d = (x.reshape(g, B // g, c, 4, 4).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return self.head(SQRT2 * F.leaky_relu(self.last(torch.cat([x, d.repeat(g)[:, None, None, None].expand(-1, 1, 4, 4)], 1)), 0.2).flatten(1))[:, 0]

net, ema = Nets().to(dev), Nets().to(dev).eval().requires_grad_(False)
with torch.no_grad(): net.decoder.to_rgb1.bias.copy_((X[:2000].float().mean((0, 2, 3)) / 127.5 - 1).view(1, 3, 1, 1))
ema.load_state_dict(net.state_dict())
say("generator %.2f M, encoder %.2f M" % tuple(sum(q.numel() for q in m.parameters()) / 1e6 for m in (net.decoder, net.encoder)))
LR = [torch.tensor(0.0, device=dev) for _ in range(2)]; RATES = A.lr, 2e-3
opt = torch.optim.Adam([{"params": list(m.parameters()), "lr": lr} for m, lr in zip((net.decoder, net.encoder), LR)], betas=(.9, .99), fused=True, capturable=cuda) \
    if cuda else torch.optim.Adam([{"params": list(m.parameters())} for m in (net.decoder, net.encoder)], betas=(.9, .99))
V = A.size // 2
critic = Critic(V).to(dev); copt = torch.optim.Adam(critic.parameters(), 1.5e-3, betas=(0.0, .99), **({"fused": True, "capturable": True} if cuda else {}))
PULL = torch.tensor(0.0, device=dev)

yy, xx = (torch.arange(A.size, device=dev) + .5) / A.size, (torch.arange(A.size, device=dev) + .5) / A.size
def focus(b):
    c, h = (b[..., :2] + b[..., 2:]) / 2, (b[..., 2:] - b[..., :2]) / 2 + 0.03
    d = ((xx[None, None, None] - c[..., 0, None, None]) / h[..., 0, None, None]) ** 2 + ((yy[None, None, :, None] - c[..., 1, None, None]) / h[..., 1, None, None]) ** 2
    w = 1 + 4 * torch.exp(-d ** 2).amax(1, keepdim=True)
    return w / w.mean((2, 3), keepdim=True)
def picture_loss(y, x, f):
    loss = 0.0
    for level in range(3):
        if level: y, x, f = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(f, 2)
        e = y - x
        loss = loss + (e.abs() * f).mean() + ((e[..., 1:] - e[..., :-1]).abs() * f[..., 1:]).mean() + ((e[..., 1:, :] - e[..., :-1, :]).abs() * f[..., 1:, :]).mean()
    return loss / 3
def to_net(x): return x.float() / 127.5 - 1
def area(x, r): return x if r == A.size else F.avg_pool2d(x, A.size // r)
def cast(): return torch.autocast(dev.type, dt, enabled=dt != torch.float32, cache_enabled=False)
AR = torch.arange(V, device=dev)

logs = torch.zeros(4, device=dev)
def train_step(r, enc, on, mean):
    """One step at side r; enc: with the encoder; on: with the critic; mean: share of the new in the averages."""
    k = torch.randint(N, (A.batch,), device=dev); x, z, b = to_net(X[k]), gaussian(ZS[k]), BX[k]
    half = A.batch // 2 if enc else A.batch
    w = net.decoder.style[1:](z)                                # without PixelNorm: z has the right scale already
    with torch.no_grad(): net.latent_avg.lerp_(w.mean(0), 0.01)
    codes, loss = w[:half, None].expand(-1, net.decoder.L, -1), 0.0
    if enc:
        with cast(): off = net.encoder(x[half:])
        e = off.float() + net.latent_avg
        loss = 0.1 * ((e - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)).abs().mean(); codes = torch.cat([codes, e])
    y, t = net.decoder(codes, resolution=r, dtype=dt), area(x, r)
    shown = picture_loss(y, t, area(focus(b), r))
    loss = loss + shown
    opt.zero_grad(set_to_none=True)
    if on:
        at = torch.randint(A.size - V + 1, (2,), device=dev)
        view = lambda q: q.index_select(2, at[0] + AR).index_select(3, at[1] + AR)
        critic.requires_grad_(False)
        with cast(): un = F.softplus(-critic(view(y))).mean()
        ga, gb = (torch.autograd.grad(q, y, retain_graph=True)[0] for q in (shown, un))
        loss.backward(retain_graph=True)
        y.backward(PULL * ga.norm() / (gb.norm() + 1e-12) * gb)
        critic.requires_grad_(True)
    else: loss.backward()
    opt.step()
    if on:
        real, fake = view(t), view(y.detach())
        with cast(): dl = F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean()
        copt.zero_grad(set_to_none=True); dl.backward(); copt.step(); logs[1].copy_(dl.detach())
    logs[0].copy_(shown.detach())
    with torch.no_grad():
        torch._foreach_lerp_([a for a in ema.state_dict().values() if a.is_floating_point()], [a for a in net.state_dict().values() if a.is_floating_point()], mean)
def r1_step():
    k = torch.randint(N, (A.batch // 2,), device=dev); at = torch.randint(A.size - V + 1, (2,), device=dev)
    x = to_net(X[k]).index_select(2, at[0] + AR).index_select(3, at[1] + AR).requires_grad_(True)
    g, = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    loss = 16 * 2e-4 * V * V / A.batch * g.square().sum((1, 2, 3)).mean() / 2
    copt.zero_grad(set_to_none=True); loss.backward(); copt.step()

def values():
    """All that a step changes."""
    moments = [v for o in (opt, copt) for s in o.state.values() for v in s.values() if torch.is_tensor(v)]
    return [*net.state_dict().values(), *ema.state_dict().values(), *critic.state_dict().values(), *moments]
def graphed(f, *args):
    """f(*args) as a CUDA graph, or as it is."""
    if not cuda or A.no_graph: return lambda: f(*args)
    began = time.time()
    side, g = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): f(*args)                             # these are steps, too
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(g): f(*args)
    except Exception:
        say("NO GRAPH", traceback.format_exc()[-1500:]); torch.cuda.synchronize()
        return lambda: f(*args)
    say("graph", f.__name__, args, "%.1f s, %.1f GB" % (time.time() - began, torch.cuda.max_memory_allocated() / 1e9))
    return g.replay

# ---------------------------------------------------------------- looks
def pics(x): return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
@torch.no_grad()
def through_z(z): return torch.cat([ema.decoder(ema.decoder.style[1:](q)[:, None].expand(-1, ema.decoder.L, -1), dtype=dt) for q in z.split(50)])
@torch.no_grad()
def through_encoder(x): return torch.cat([ema.decoder(ema.encoder(q) + ema.latent_avg, dtype=dt) for q in x.split(50)])
def psnr(a, b): return float((10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean((1, 2, 3)).clamp_min(1e-6))).mean())
LAP = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0.]], device=dev)[None, None]
def lap(x): return F.conv2d(x.float().clamp(-1, 1).mean(1, keepdim=True), LAP).square().mean()
def report(tag):
    x = to_net(HX); a, b = through_z(HZ), through_encoder(x); d = lambda q: F.avg_pool2d(q.clamp(-1, 1), A.size // 64)
    t = f"held-out PSNR z {psnr(a, x):.2f}, encoder {psnr(b, x):.2f} dB (at 64 px {psnr(d(a), d(x)):.2f}, {psnr(d(b), d(x)):.2f}); sharpness {lap(a) / lap(x):.2f}, {lap(b) / lap(x):.2f}"
    k = torch.randint(N, (100,), device=dev)
    say(tag, t, f"; trained on, z {psnr(through_z(gaussian(ZS[k], False)), to_net(X[k])):.2f}"); return t
REST = {"jawOpen": -1.3, "mouthSmile": 0.0, "mouthPucker": -1.0, "mouthStretch": -1.0, "browInnerUp": -0.4, "eyeBlink": -0.6}
def people(n, seed=7):
    """u of random actors: motion near rest, all on the sphere."""
    u = np.random.default_rng(seed).standard_normal((n, Z)); u /= np.sqrt((u ** 2).mean(1, keepdims=True))
    u[:, MOTION:] *= 0.35
    for name, at in REST.items(): u[:, NAMES.index(name)] += at
    return torch.from_numpy(u.astype(np.float32)).to(dev)
def sheet(path):
    k = torch.arange(12, device=dev) * 2; x = to_net(HX[k]); rows = [pics(x), pics(through_z(HZ[k])), pics(through_encoder(x))]
    talk = np.flatnonzero(HI >= 2000000)
    for s in talk[::12][:2]:
        x = to_net(HX[s:s + 12]); rows += [pics(x), pics(through_z(HZ[s:s + 12])), pics(through_encoder(x))]
    for s in (7, 8, 9): rows.append(pics(through_z(people(12, s))))
    cv2.imwrite(str(path), np.concatenate([np.concatenate(list(r), 1) for r in rows])[..., ::-1])
def weights(path, text):
    half = {f"{n}.{k}": (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().clone() for n in ("decoder", "encoder") for k, v in getattr(ema, n).state_dict().items()}
    opts = {"name": path.stem, "encoder_type": "GradualStyleEncoder", "output_size": A.size, "lr_mlp": 1.0, "step": step, "seen": seen, "quality": text, "names": NAMES}
    torch.save({"state_dict": half, "latent_avg": ema.latent_avg.cpu().clone(), "opts": opts}, path)

# ---------------------------------------------------------------- training
def dynamic(s):
    if A.init: return A.size, True, s >= A.critic, 0.004 if s < 0.9 else 0.002
    r = min([q for q, e in {16: 0.02, 32: 0.06, 64: 0.22}.items() if s < e and q < A.size] + [A.size]); enc = s >= 0.15
    on = r == A.size and s >= A.critic
    return r, enc, on, 0.02 if s < 0.2 else 0.004 if s < 0.9 else 0.002
models_forward = {"phases": up_forward, "plain": plain_forward}
best = "phases"
if cuda:                                                        # which way is fastest here
    models.ModulatedConv2d.forward, took = up_forward, {}
    for name, fmt in (("first", torch.contiguous_format), ("last", torch.channels_last)):
        models.layout = lambda x, fmt=fmt: fmt
        try:
            run = graphed(train_step, A.size, True, False, 0.02)
            for _ in range(2): run()
            torch.cuda.synchronize(); t = time.time()
            for _ in range(8): run()
            torch.cuda.synchronize(); took[name] = (time.time() - t) / 8; del run
        except Exception: say(name, traceback.format_exc()[-800:])
    say("seconds a step, channels:", {k: round(v, 4) for k, v in took.items()})
    fmt = torch.channels_last if min(took, key=took.get) == "last" else torch.contiguous_format
    models.layout = lambda x, fmt=fmt: fmt
    try:                                                        # does the last stage work?
        kept = {k: v.clone() for k, v in critic.state_dict().items()}
        PULL.fill_(A.pull); run = graphed(train_step, A.size, True, True, 0.02); r1 = graphed(r1_step)
        for _ in range(2): run(); r1()
        torch.cuda.synchronize(); t = time.time()
        for _ in range(8): run()
        torch.cuda.synchronize(); say("with the critic %.4f s a step, loss %.3f, D %.3f" % ((time.time() - t) / 8, *logs[:2].tolist()))
        critic.load_state_dict(kept); del run, r1, kept
    except Exception: say("NO CRITIC", traceback.format_exc()[-1500:]); A.critic = 9
    torch.cuda.empty_cache()
    for o in (opt, copt):
        o.state.clear()
    torch.manual_seed(0); fresh = Nets().to(dev)
    with torch.no_grad(): fresh.decoder.to_rgb1.bias.copy_(net.decoder.to_rgb1.bias)
    with torch.no_grad():
        for a, b in zip(net.state_dict().values(), fresh.state_dict().values()): a.copy_(b)
        for a, b in zip(ema.state_dict().values(), fresh.state_dict().values()): a.copy_(b)
        net.decoder.to_rgb1.bias.copy_((X[:2000].float().mean((0, 2, 3)) / 127.5 - 1).view(1, 3, 1, 1))
    del fresh
    if A.init:
        old = torch.load(A.init, map_location=dev, weights_only=True); sd = {k: v.float() if v.is_floating_point() else v for k, v in old["state_dict"].items()}
        for m in (net, ema): m.load_state_dict({**sd, "latent_avg": old["latent_avg"]})
        say("init from", A.init)
else: models.ModulatedConv2d.forward = up_forward

step, seen, start, last, saved, stage, go = 0, 0, time.time(), 0.0, 0.0, None, None
END = A.seconds - (time.time() - T0) - 4
say(f"training for {END:.0f} s"); text = ""; r1 = None
while True:
    now = time.time() - start; s = now / END
    if s >= 1: break
    if dynamic(s) != stage:
        if dynamic(s)[2] and not (stage and stage[2]): report(f"before the critic, step {step};"); sheet(OUT / "sheet_before.png")
        stage = dynamic(s); go = None
    for lr, most in zip(LR, RATES): lr.fill_(most * .5 * (1 + math.cos(math.pi * s)) * min(1, (step + 1) / 100))
    if not cuda:
        for g, lr in zip(opt.param_groups, LR): g["lr"] = float(lr)
    PULL.fill_(A.pull * min(1, max(0, s - A.critic) / 0.05))
    if go is None:
        go = graphed(train_step, *stage)
        if stage[2] and r1 is None: r1 = graphed(r1_step)
    go()
    if stage[2] and step % 16 == 0: r1()
    step += 1; seen += A.batch
    if cuda and step % 8 == 0: torch.cuda.synchronize()         # the clock
    if now > last + A.every:
        last = now; text = report(f"step {step}, {seen} seen, {stage}, {seen / now:.0f}/s, loss {float(logs[0]):.4f}, D {float(logs[1]):.2f};")
        if not math.isfinite(float(logs[0])): say("NAN"); break
    if now > saved + 100: saved = now; weights(OUT / "heads.pt", text); sheet(OUT / "sheet.png")
text = report(f"END step {step}, {seen} seen, {N} pictures;")
sheet(OUT / "sheet.png"); weights(OUT / "heads.pt", text)
say("done")
