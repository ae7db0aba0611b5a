"""Render heads on all cores while the GPU fits generator and encoder to them.

python3 fit_gpu.py --out $OUT --seconds 400                # unpacks site.txz / llvm.txz itself, renders with heads.py
python3 fit_gpu.py --out out --device cpu --seconds 30 --size 64 --workers 0 --data FOLDER --batch 8 --wide 0.25 --no-pack
"""
import argparse, io, json, math, os, random, subprocess, sys, threading, time
from pathlib import Path
import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import models
from models import EqualLinear, Generator, GradualStyleEncoder, SQRT2, depthwise, fir_kernel

p = argparse.ArgumentParser()
p.add_argument("--out", required=True); p.add_argument("--seconds", type=float, default=300); p.add_argument("--device", default="cuda")
p.add_argument("--size", type=int, default=128); p.add_argument("--batch", type=int, default=96); p.add_argument("--workers", type=int, default=15)
p.add_argument("--data", nargs="*", default=[]); p.add_argument("--live", default="/tmp/heads_live"); p.add_argument("--wide", type=float, default=2)
p.add_argument("--D", type=int, default=256); p.add_argument("--lr", type=float, default=2e-2); p.add_argument("--critic", type=float, default=0.7)
p.add_argument("--pull", type=float, default=0.4); p.add_argument("--precision", default="bf16"); p.add_argument("--no-pack", action="store_true")
p.add_argument("--head-start", type=float, default=25, help="longest wait for the first pictures, seconds"); p.add_argument("--first", type=int, default=100000)
p.add_argument("--max-pictures", type=int, default=60000); p.add_argument("--every", type=float, default=20); p.add_argument("--no-compile", action="store_true")
A = p.parse_args()
T0 = time.time()
OUT = Path(A.out); OUT.mkdir(parents=True, exist_ok=True)
dev = torch.device(A.device); cuda = dev.type == "cuda"
dt = torch.bfloat16 if A.precision == "bf16" and cuda else torch.float32
torch.manual_seed(0)
if cuda:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
PY = os.environ.get("RENDER_PYTHON", sys.executable)
def say(*a): print("%5.0f s" % (time.time() - T0), *a, flush=True)

# ------------------------------------------------------------------------------------------ rendering
procs = []
def start_renderers():
    if not A.workers: return
    env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", DRJIT_NO_RTLD_DEEPBIND="1")
    if not A.no_pack:
        pack = Path(A.live + "_pack"); pack.mkdir(parents=True, exist_ok=True)
        jobs = [subprocess.Popen([sys.executable, "-m", "tarfile", "-e", str(HERE / n), str(pack)], stderr=subprocess.DEVNULL) for n in ("site.txz", "llvm.txz") if (HERE / n).exists()]
        for j in jobs: j.wait()
        if not (pack / "site/mitsuba").exists():
            for n in ("site.txz", "llvm.txz"): subprocess.run(["tar", "xJf", str(HERE / n), "-C", str(pack)])
        env["PYTHONPATH"] = f"{pack}/site"
        if (pack / "llvm").exists():
            env["DRJIT_LIBLLVM_PATH"] = f"{pack}/llvm/libLLVM.so.19.1"; env["LD_LIBRARY_PATH"] = f"{pack}/llvm:" + env.get("LD_LIBRARY_PATH", "")
    live = Path(A.live); live.mkdir(parents=True, exist_ok=True)
    probe = "import sys,time; sys.path.insert(0,'%s/pretrain'); import heads; t=time.time(); S=heads.Studio(heads.HEAD); S.render(heads.sample_frame(0,0)); t=time.time(); S.render(heads.sample_frame(0,1)); print('render %%.2f s' %% (time.time()-t))" % HERE
    variants = {"llvm_ad_rgb": None, "scalar_rgb": None}
    runs = {v: subprocess.Popen([PY, "-c", probe], env={**env, "HEADS_VARIANT": v}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for v in variants}
    for v, r in runs.items():
        try: text = r.communicate(timeout=40)[0]
        except subprocess.TimeoutExpired: r.kill(); text = "timed out"
        say(v, r.returncode, text.strip()[-400:]); variants[v] = r.returncode == 0
    good = [v for v, ok in variants.items() if ok]
    if not good: return say("NO RENDERER WORKS")
    env["HEADS_VARIANT"] = good[0]
    n = A.workers
    for k in range(n):
        py = ("import sys; sys.path.insert(0,'%s/pretrain'); import heads, argparse as a;\n"
              "N=lambda **k: a.Namespace(size=%d, samples=%d, **k)\n"
              "k,n=%d,%d\n"
              "share=lambda t:(t*k//n, t*(k+1)//n)\n"
              "heads.SHARD=4\n"
              "lo,hi=share(%d); heads.render_shards(N(render='%s/held', first=1000000+lo, identities=hi-lo, frames=2, talk=False))\n"
              "lo,hi=share(%d); lo<hi and heads.render_shards(N(render='%s/talk', first=2000000+lo, identities=hi-lo, frames=12, talk=True))\n"
              "heads.SHARD=10\n"
              "heads.render_shards(N(render='%s/train', first=%d+k*10000, identities=10000, frames=2, talk=False))\n"
              ) % (HERE, 128, 16 if good[0][0] == "l" else 4, k, n, *((0, live, 0, live) if (HERE / "pictures/held").exists() else (80, live, 8, live)), live, A.first)
        procs.append(subprocess.Popen(["nice", "-n", "5", PY, "-c", py], env=env, stdout=subprocess.DEVNULL, stderr=open(live / f"log{k}", "w")))
    say(f"{n} renderers, {env['HEADS_VARIANT']}")
start_renderers()

# ------------------------------------------------------------------------------------------ data
sys.path.insert(0, str(HERE))
names = json.load(open(HERE / "z.json"))                       # NAMES, PERSON, MOTION of heads.py, which needs mitsuba
NAMES, PERSON, MOTION = names["NAMES"], names["PERSON"], names["MOTION"]
UNITS = np.array([not n[0].isupper() and any(c.isupper() for c in n) for n in NAMES])
def features(z):
    """z (n, Z) -> input of the mapping (n, Z + 1): unit variance, and a last entry that keeps the norm constant for PixelNorm."""
    z = np.asarray(z, np.float32); f = z * 1.73
    f[:, MOTION:] = z[:, MOTION:] / 0.42
    f[:, UNITS] = (z[:, UNITS] - 0.3) / 0.3
    top = np.where(UNITS, (0.7 / 0.3) ** 2, 3.0); top[MOTION:][~UNITS[MOTION:]] = (1 / 0.42) ** 2
    return np.concatenate([f, np.sqrt(np.maximum(top.sum() - (f ** 2).sum(1), 0))[:, None]], 1).astype(np.float32)
Z = len(NAMES) + 1

class Pool:
    """Pictures on the device, growing."""
    def __init__(self, n):
        self.x = torch.empty(n, 3, A.size, A.size, dtype=torch.uint8, device=dev); self.z = torch.empty(n, Z, device=dev)
        self.b = torch.empty(n, 3, 4, device=dev); self.n, self.seen, self.raw, self.lock = 0, set(), [], threading.Lock()
    def load(self, folders, keep=False):
        for folder in folders:
            for f in sorted(Path(folder).glob("heads-????????.npz")):
                if str(f) in self.seen: continue
                self.seen.add(str(f))
                d = np.load(f); at = np.concatenate([[0], np.cumsum(d["lengths"])]); pics = []
                for a, b in zip(at, at[1:]):
                    im = cv2.imdecode(d["jpeg"][a:b], cv2.IMREAD_COLOR)[..., ::-1]
                    if im.shape[0] != A.size: im = cv2.resize(im, (A.size, A.size), interpolation=cv2.INTER_AREA)
                    pics.append(im)
                k = len(pics)
                if self.n + k > len(self.x): return
                x = torch.from_numpy(np.ascontiguousarray(np.array(pics).transpose(0, 3, 1, 2)))
                self.x[self.n:self.n + k] = x.to(dev); self.z[self.n:self.n + k] = torch.from_numpy(features(d["z"])).to(dev)
                self.b[self.n:self.n + k] = torch.from_numpy(d["boxes"]).to(dev)
                if cuda: torch.cuda.current_stream().synchronize()
                with self.lock: self.n += k
train, held, talk = Pool(A.max_pictures), Pool(600), Pool(200)
fixed = [Path(d) for d in A.data] + [HERE / "pictures"]
roots = fixed + [Path(A.live)]
def load_all():
    held.load([r / "held" for r in roots]); talk.load([r / "talk" for r in roots]); train.load([r / "train" for r in roots])
stop = threading.Event()
def loader():
    while not stop.wait(1.0):
        try: load_all()
        except Exception as e: say("loader:", repr(e))
load_all()
while train.n < 300 and time.time() - T0 < A.head_start + 45 and any(q.poll() is None for q in procs): time.sleep(1); load_all()
say("pictures:", train.n, "train", held.n, "held", talk.n, "talk")
if train.n < 20:
    for k in range(A.workers): print(open(Path(A.live) / f"log{k}").read()[-500:])
    sys.exit(1)
threading.Thread(target=loader, daemon=True).start()

# ------------------------------------------------------------------------------------------ networks
slow = depthwise
def slices(x, kernel):
    """models.depthwise for this one kernel, without a convolution by channel."""
    x = F.pad(x, (1, 1, 1, 1)); x = x[..., :-3] + x[..., 3:] + 3 * (x[..., 1:-2] + x[..., 2:-1])
    x = x[..., :-3, :] + x[..., 3:, :] + 3 * (x[..., 1:-2, :] + x[..., 2:-1, :])
    return x * (kernel.sum() / 64).to(x.dtype)
if cuda:
    took = {}
    for name, f in (("conv", slow), ("slices", slices), ("conv", slow), ("slices", slices)):
        q = torch.randn(A.batch, 96, 65, 65, device=dev, dtype=dt).contiguous(memory_format=torch.channels_last).requires_grad_(True); kk = fir_kernel(4.0).to(dev)
        for n in range(4):
            if n == 1: torch.cuda.synchronize(); t = time.time()
            f(q, kk).sum().backward()
        torch.cuda.synchronize(); took[name] = (time.time() - t) / 3
    say("filter, ms:", {k: round(1e3 * v, 2) for k, v in took.items()})
    if took["slices"] < took["conv"]: models.depthwise = depthwise = slices
else: assert torch.allclose(slow(torch.ones(1, 2, 9, 9), fir_kernel(4.0)), slices(torch.ones(1, 2, 9, 9), fir_kernel(4.0)), atol=1e-5)
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
    def __init__(self, c_in, c_out, kernel, stride=1, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel)); self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale, self.stride = 1 / math.sqrt(c_in * kernel ** 2), stride
    def forward(self, x): return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.weight.shape[-1] // 2)
class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv1, self.conv2, self.skip = EqualConv2d(a, a, 3), EqualConv2d(a, b, 3, stride=2), EqualConv2d(a, b, 1, stride=2, bias=False)
        self.register_buffer("kernel", fir_kernel(1.0))
    def forward(self, x):
        y = SQRT2 * F.leaky_relu(self.conv1(x), 0.2); y = SQRT2 * F.leaky_relu(self.conv2(depthwise(y, self.kernel)), 0.2)
        return (y + self.skip(depthwise(x, self.kernel))) / SQRT2
class Critic(nn.Module):
    """Of pictures beside their z: critic of (picture, target or output) pairs is not used; plain StyleGAN2."""
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
with torch.no_grad(): net.decoder.to_rgb1.bias.copy_((train.x[:train.n].float().mean((0, 2, 3)) / 127.5 - 1).view(1, 3, 1, 1))
ema.load_state_dict(net.state_dict())
say("generator %.2f M, encoder %.2f M" % tuple(sum(q.numel() for q in m.parameters()) / 1e6 for m in (net.decoder, net.encoder)))
opt = torch.optim.Adam([{"params": net.decoder.parameters()}, {"params": net.encoder.parameters()}], lr=1e-3, betas=(.9, .99), **({"fused": True} if cuda else {}))
critic = Critic(A.size // 2).to(dev); copt = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.0, .99))
GROW, ENCODER_FROM = {16: 0.03, 32: 0.10, 64: 0.35 if A.size > 64 else 0}, 0.25

yy, xx = (torch.arange(A.size, device=dev) + .5) / A.size, (torch.arange(A.size, device=dev) + .5) / A.size
def focus(b):
    """Boxes (B, 3, 4) -> weights (B, 1, size, size), mean 1, 5 times as large on eyes and mouth."""
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
def pics(x): return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
@torch.no_grad()
def through_z(z): return torch.cat([ema.decoder(ema.decoder.map(q), dtype=dt) for q in z.split(50)])
@torch.no_grad()
def through_encoder(x): return torch.cat([ema.decoder(ema.encoder(q) + ema.latent_avg, dtype=dt) for q in x.split(50)])
def psnr(a, b): return float((10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean((1, 2, 3)).clamp_min(1e-6))).mean())
def lap(x):
    g = x.float().clamp(-1, 1).mean(1, keepdim=True); k = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0.]], device=x.device)[None, None]
    return F.conv2d(g, k).square().mean()
def report(tag):
    x, z = to_net(held.x[:held.n]), held.z[:held.n]; a, b = through_z(z), through_encoder(x)
    d = lambda q: F.interpolate(q.clamp(-1, 1), (64, 64), mode="area")
    t = f"held-out PSNR z {psnr(a, x):.2f}, encoder {psnr(b, x):.2f} dB (at 64 px {psnr(d(a), d(x)):.2f}, {psnr(d(b), d(x)):.2f}); sharpness {lap(a) / lap(x):.2f}, {lap(b) / lap(x):.2f}"
    k = torch.randint(train.n, (min(100, train.n),), device=dev); xt = to_net(train.x[k])
    say(tag, t, f"; trained on, z {psnr(through_z(train.z[k]), xt):.2f}"); return t
def people(n, seed=7):
    """z of random actors: motion at rest, random studio."""
    r = np.random.default_rng(seed); z = np.zeros((n, len(NAMES)), np.float32); z[:, :MOTION] = r.uniform(-1, 1, (n, MOTION)); return z
def sheet(path):
    rows = []
    k = torch.linspace(0, held.n - 1, 12, device=dev).long(); x = to_net(held.x[k])
    rows += [pics(x), pics(through_z(held.z[k])), pics(through_encoder(x))]
    for s in (0, 12):
        if talk.n >= s + 12: x = to_net(talk.x[s:s + 12]); rows += [pics(x), pics(through_z(talk.z[s:s + 12])), pics(through_encoder(x))]
    for s in (7, 8, 9): rows.append(pics(through_z(torch.from_numpy(features(people(12, s))).to(dev))))
    cv2.imwrite(str(path), np.concatenate([np.concatenate(list(r), 1) for r in rows])[..., ::-1])
def weights(path, text):
    parts = {f"{n}.{k}": v for n in ("decoder", "encoder") for k, v in getattr(ema, n).state_dict().items()}
    half = {k: (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().clone() for k, v in parts.items()}
    opts = {"name": path.stem, "encoder_type": "GradualStyleEncoder", "output_size": A.size, "lr_mlp": 1.0, "step": step, "quality": text, "names": NAMES}
    whole = {"state_dict": half, "latent_avg": ema.latent_avg.cpu().clone(), "opts": opts}
    torch.save(whole, path)
    if path.stat().st_size > 15.5 * 2 ** 20:
        os.remove(path)
        for n in ("decoder", "encoder"): torch.save({**whole, "state_dict": {k: v for k, v in half.items() if k.startswith(n)}}, path.with_name(f"{path.stem}.{n}.pt"))

# ------------------------------------------------------------------------------------------ training
begun, step, seen, start, last, saved, losses, dl = False, 0, 0, time.time(), 0.0, 0.0, [], torch.zeros(())
pnet, pema = [q for q in net.state_dict().values()], [q for q in ema.state_dict().values()]
fl = [k for k, q in enumerate(pnet) if q.is_floating_point()]
def target_of(x, r): return x if r == A.size else F.interpolate(x, (r, r), mode="area")
END = A.seconds - (time.time() - T0)                          # --seconds counts everything from the start
say(f"training for {END:.0f} s")
text = ""
while True:
    now = time.time() - start; s = now / END
    if s >= 1: break
    r = min([q for q, e in GROW.items() if s < e] + [A.size]); enc = s >= ENCODER_FROM
    for g, lr in zip(opt.param_groups, (A.lr, 2e-3)): g["lr"] = lr * .5 * (1 + math.cos(math.pi * s)) * min(1, (step + 1) / 100)
    k = torch.randint(train.n, (A.batch,), device=dev); x, z, b = to_net(train.x[k]), train.z[k], train.b[k]
    half = A.batch // 2 if enc else A.batch
    w = net.decoder.style(z)
    with torch.no_grad(): net.latent_avg.lerp_(w.mean(0), 0.01 if step else 1.0)
    codes, loss = w[:half, None].expand(-1, net.decoder.L, -1), 0.0
    if enc:
        with torch.autocast(dev.type, dt, enabled=dt != torch.float32): off = net.encoder(x[half:])
        e = off.float() + net.latent_avg
        loss = 0.1 * ((e - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)).abs().mean(); codes = torch.cat([codes, e])
    y, t = net.decoder(codes, resolution=r, dtype=dt), target_of(x, r)
    loss = loss + picture_loss(y, t, target_of(focus(b), r))
    opt.zero_grad(set_to_none=True)
    on = A.critic < 1 and s >= A.critic and r == A.size
    if on and not begun: begun = True; report(f"before the critic, step {step};"); sheet(OUT / "sheet_before.png")
    if on:
        h = A.size // 2; i, j = random.randrange(h + 1), random.randrange(h + 1); view = lambda q: q[..., i:i + h, j:j + h]
        critic.requires_grad_(False)
        with torch.autocast(dev.type, dt, enabled=dt != torch.float32): un = F.softplus(-critic(view(y))).mean()
        ga, gb = (torch.autograd.grad(q, y, retain_graph=True)[0] for q in (loss, un))
        loss.backward(retain_graph=True)                      # of the encoder's code loss too
        pull = A.pull * min(1, (s - A.critic) / 0.05)
        y.backward(pull * ga.norm() / (gb.norm() + 1e-12) * gb)
    else: loss.backward()
    opt.step()
    if on:
        critic.requires_grad_(True); real, fake = view(t), view(y.detach())
        with torch.autocast(dev.type, dt, enabled=dt != torch.float32): dl = F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean()
        if step % 16 == 0:
            xr = real.clone().requires_grad_(True); gg, = torch.autograd.grad(critic(xr).sum(), xr, create_graph=True)
            dl = dl + 16 * 2e-4 * h * h / A.batch * gg.square().sum((1, 2, 3)).mean() / 2
        copt.zero_grad(set_to_none=True); dl.backward(); copt.step()
    step += 1; seen += A.batch
    with torch.no_grad():
        d = min(.998, (1 + step) / (10 + step))
        torch._foreach_lerp_([pema[q] for q in fl], [pnet[q] for q in fl], 1 - d)
        for q in range(len(pnet)):
            if not pnet[q].is_floating_point(): pema[q].copy_(pnet[q])
    if step % 20 == 0: losses.append(float(loss.detach()))
    if now > last + A.every:
        last = now; text = report(f"step {step}, {seen} seen, {r} px, {train.n} pictures, {seen / now:.0f}/s, loss {np.mean(losses[-10:]):.4f}, D {float(dl.detach()):.2f};")
    if now > saved + 90: saved = now; weights(OUT / "heads.pt", text); sheet(OUT / "sheet.png")
text = report(f"END step {step}, {seen} seen, {train.n} pictures;")
sheet(OUT / "sheet.png"); weights(OUT / "heads.pt", text)
stop.set()
for q in procs: q.terminate()

# ------------------------------------------------------------------------------------------ pictures back, as many as fit
live = Path(A.live); files = sorted((live / "train").glob("heads-????????.npz")) if A.workers else []
random.Random(0).shuffle(files); group, size, number = [], 0, 0
def flush():
    global group, size, number
    if group:
        d = [np.load(f) for f in group]
        np.savez(OUT / f"train{number}.npz", **{k: np.concatenate([q[k] for q in d]) for k in d[0].files}); number += 1; group, size = [], 0
for f in files:
    n = f.stat().st_size
    if size + n > 15 * 2 ** 20:
        flush()
        if number == 2: break
    group.append(f); size += n
if number < 2: flush()
extra = sorted((live / "held").glob("heads-????????.npz")) + sorted((live / "talk").glob("heads-????????.npz")) if A.workers else []
if extra:
    d = [np.load(f) for f in extra]; np.savez(OUT / "held.npz", **{k: np.concatenate([q[k] for q in d]) for k in d[0].files})
say("done;", [(f.name, f.stat().st_size) for f in sorted(OUT.iterdir())])
os._exit(0)
