"""further.py with hairy(): what has texture outside of the face weighs up to six times as much."""
import argparse, copy, glob, math, os, sys, time, json
sys.path.insert(0, ".")
import numpy as np, torch, cv2
from torch.nn import functional as F
from pretrain import image_model as im, heads
p = argparse.ArgumentParser()
p.add_argument("data"); p.add_argument("out"); p.add_argument("seconds", type=float)
p.add_argument("--init", required=True); p.add_argument("--batch", type=int, default=16)
p.add_argument("--lr", type=float, default=8e-3); p.add_argument("--lre", type=float, default=1e-3); p.add_argument("--critic-from", type=float, default=0.0)
p.add_argument("--pull", type=float, default=0.4); p.add_argument("--threads", type=int, default=2); p.add_argument("--precision", default="bf16")
p.add_argument("--compile", action="store_true"); p.add_argument("--bench", type=int, default=0); p.add_argument("--only-decoder", action="store_true"); p.add_argument("--rank", type=int, default=-1); p.add_argument("--sharp", type=float, default=0.0); p.add_argument("--free", action="store_true"); p.add_argument("--core", type=int); p.add_argument("--held", default="held")
A = p.parse_args()

A.core is not None and os.sched_setaffinity(0, {A.core}); torch.set_num_threads(A.threads); torch.manual_seed(0)
T0 = time.time()
def say(*a): print("%6.0f s" % (time.time() - T0), *a, flush=True)
dt = torch.bfloat16 if A.precision == "bf16" else torch.float32
cast = lambda: torch.autocast("cpu", dt, enabled=dt != torch.float32)

def nosed(B):
    """Boxes (n, 3, 4) of eyes and mouth -> and one of the nose's lower half, (n, 4, 4)."""
    x = B[:, 2, [0, 2]].mean(1); top, end = B[:, :2, 3].mean(1), B[:, 2, 1]
    return np.concatenate([B, np.stack([x - 0.05, 0.5 * (top + end), x + 0.05, end - 0.02], 1)[:, None]], 1)

def load(folder):
    X, U, B = [], [], []
    for f in sorted(glob.glob(f"{folder}/heads-??????.npz")):
        d = dict(np.load(f)); at = np.r_[0, np.cumsum(d["lengths"])]
        X += [cv2.imdecode(d["jpeg"][a:b], 1)[..., ::-1] for a, b in zip(at, at[1:])]; U.append(d["u"]); B.append(d["boxes"])
    return torch.from_numpy(np.array(X)), torch.from_numpy(np.concatenate(U)), np.concatenate(B)
X, U, B = load(A.data); N = len(X)
W = torch.stack([im.spots(b, im.PART_WEIGHT[0], im.PART_MARGIN[0], 128) for b in nosed(B)]).to(torch.float16)
rows = torch.linspace(0.5 / 128, 1 - 0.5 / 128, 128)
LOW = 1 + 4 * ((rows - 0.76) / 0.12).clamp(0, 1)[None, None, :, None]                     # clothes are seldom seen and were never learned
def lower(W):
    for k in range(0, len(W), 500):
        w = W[k:k + 500].float() * LOW; W[k:k + 500] = (w / w.mean((2, 3), keepdim=True)).to(W.dtype)
    return W
W = lower(W)
def hairy(W, X, B):
    """Where the picture has texture, outside of the face (hair, its outline), weights of up to six times as much."""
    y, x = (torch.arange(128) + 0.5)[:, None] / 128, (torch.arange(128) + 0.5)[None] / 128
    for k in range(0, len(W), 500):
        b = torch.from_numpy(B[k:k + 500]).float(); n = len(b)
        e = (b[:, :2, :2] + b[:, :2, 2:]).mean(1) / 2; m = (b[:, 2, :2] + b[:, 2, 2:]) / 2
        c = e + 0.55 * (m - e); d = (m - e)[:, 1].abs() + 1e-3; wide = (b[:, 0, [0, 2]].mean(1) - b[:, 1, [0, 2]].mean(1)).abs() + 1e-3
        q = ((x[None] - c[:, 0, None, None]) / (1.15 * wide[:, None, None])) ** 2 + ((y[None] - c[:, 1, None, None]) / (1.45 * d[:, None, None])) ** 2
        o = ((q - 1) / 0.15).clamp(0, 1)[:, None]
        g = X[k:k + n].float().mean(3)[:, None]
        l = F.conv2d(F.pad(g, (1, 1, 1, 1), "replicate"), torch.tensor([[[[0., 1, 0], [1, -4, 1], [0, 1, 0]]]])).square()
        t = (F.avg_pool2d(l, 7, 1, 3, count_include_pad=False).sqrt() / 12).clamp(0, 1)
        w = W[k:k + n].float() * (1 + 5 * o * t); W[k:k + n] = (w / w.mean((2, 3), keepdim=True)).to(W.dtype)
    return W
W = hairy(W, X, B)
HX, HU, HB = load(A.held) if glob.glob(A.held + "/*") else (X[-200:], U[-200:], B[-200:])
say(N, "pictures", len(HX), "held")

def free(B):
    """Weights of the finest level: the spots alone."""
    out = []
    for b in B:
        w = im.spots(b, im.PART_WEIGHT[0], im.PART_MARGIN[0], 128); w = w / w.min() ; m = w.mean()
        out.append(((w - 1) * im.PART_WEIGHT[0] / (im.PART_WEIGHT[0] - 1) / m).to(torch.float16))
    return torch.stack(out)
F0 = free(B) if A.free else None
def picture_loss(y, x, focus, focus0):
    loss = 0.0
    for level in range(3):
        f = focus0 if level == 0 else focus
        if level:
            y, x, focus = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(focus, 2); f = focus
        e = y - x
        loss = loss + (e.abs() * f).mean()
        loss = loss + ((e[..., 1:] - e[..., :-1]).abs() * f[..., 1:]).mean()
        loss = loss + ((e[..., 1:, :] - e[..., :-1, :]).abs() * f[..., 1:, :]).mean()
    return loss / 3

def fresh():
    net = im.Networks(128, heads.Z)
    net.load_state_dict(torch.load(A.init, weights_only=True)["ema"])
    return net
net = fresh(); ema = copy.deepcopy(net).eval().requires_grad_(False)
if A.only_decoder:
    net.eval().requires_grad_(False)
    synthesis = [q for n, q in net.decoder.named_parameters() if not n.startswith("style.")]      # codes stay what they are
    for q in synthesis: q.requires_grad_(True)
    opt = torch.optim.Adam([{"params": synthesis}], betas=im.BETAS)
else: opt = torch.optim.Adam([{"params": net.decoder.parameters()}, {"params": net.encoder.parameters()}], betas=im.BETAS)
critic = im.Critic(64, im.WIDER); copt = torch.optim.Adam(critic.parameters(), im.LR_CRITIC, im.BETAS_CRITIC)
s = torch.load(A.init, weights_only=True); critic.load_state_dict(s["critic"]); copt.load_state_dict(s["copt"])
parts = {"net": net, "ema": ema, "opt": opt, "critic": critic, "copt": copt}
step, used = 0, 0.0; shown = dl = torch.tensor(0.0)
os.makedirs(A.out, exist_ok=True); state = f"{A.out}/state.pt"
if os.path.exists(state):
    s = torch.load(state, weights_only=True); step, used = s["step"], s["used"]
    for k, v in parts.items(): v.load_state_dict(s[k])
    say("resumed at", step)
dec, enc, cri = net.decoder, net.encoder, critic
if A.compile:
    dec, enc, cri = (torch.compile(m) for m in (net.decoder, net.encoder, critic))

def lapl(p): return np.array([cv2.Laplacian(cv2.cvtColor(q, cv2.COLOR_RGB2GRAY), cv2.CV_32F) ** 2 for q in p])
HW = torch.cat([im.spots(b, im.PART_WEIGHT[0], im.PART_MARGIN[0], 128) for b in HB]).numpy(); HP = HW > (HW.max((1, 2), keepdims=True) + 1) / 2
HL = lapl(HX.numpy())
def report():
    x = im.to_network(HX, "cpu")
    a, b = (np.concatenate(c) for c in zip(*(im.reconstruct(ema, q, u) for q, u in zip(x.split(25), HU.split(25)))))
    real = HX.numpy(); out = []
    for y in (a, b):
        L = lapl(y); out.append((round(im.psnr(real, y), 2), round(float(L[HP].sum() / HL[HP].sum()), 3), round(float(L[:, :40].sum() / HL[:, :40].sum()), 3)))
    ema.eval()
    k = np.arange(0, len(real), max(1, len(real) // 12))[:12]
    rng = np.random.RandomState(3); z = torch.from_numpy(heads.people(24, 5))
    with torch.no_grad(): r = im.to_pictures(ema.decoder(ema.map(z)[:, None].expand(-1, 12, -1)))
    cv2.imwrite(f"{A.out}/sheet.png", np.concatenate([np.concatenate(q, 1) for q in (real[k], a[k], b[k], r[:12], r[12:])])[..., ::-1])
    say(f"step {step}, used {used:.0f} s: PSNR, sharp eyes+mouth, sharp top: z {out[0]}, encoder {out[1]}; loss {float(shown):.4f} D {float(dl):.2f}")
if not A.bench and A.rank <= 0: report()
def save():
    torch.save({"step": step, "used": used, **{k: v.state_dict() for k, v in parts.items()}}, state + ".part"); os.replace(state + ".part", state)

def average():
    """Two processes, a core each, that go on from the mean of their weights every 100 steps (local SGD)."""
    mine, other = (f"{A.out}/rank{r}-{step}.pt" for r in (A.rank, 1 - A.rank))
    torch.save({"net": net.state_dict(), "ema": ema.state_dict(), "critic": critic.state_dict()}, mine + ".part"); os.replace(mine + ".part", mine)
    for k in range(3000):
        if os.path.exists(other): break
        time.sleep(0.1)
    else: return
    o = torch.load(other, weights_only=True)
    with torch.no_grad():
        for n in ("net", "ema", "critic"):
            for a, b in zip(parts[n].state_dict().values(), o[n].values()):
                if a.is_floating_point(): a.copy_((a + b) / 2 if A.rank == 0 else (b + a) / 2)
    old = f"{A.out}/rank{A.rank}-{step - 200}.pt"
    if os.path.exists(old): os.remove(old)

last = time.time(); began = time.time(); reported = used
while True:
    now = time.time(); used += now - last; last = now
    share = used / A.seconds
    if share >= 1 and not A.bench: break
    for g, lr in zip(opt.param_groups, (A.lr, A.lre)): g["lr"] = lr * 0.5 * (1 + math.cos(math.pi * min(share, 1))) * min(1, (step + 1) / 100)
    on = share >= A.critic_from
    perm = np.random.RandomState([max(A.rank, 0) * 1000, step * A.batch // N]).permutation(N); at = (step * A.batch) % N
    k = torch.from_numpy(perm[at:at + A.batch])
    if len(k) < A.batch: step += 1; continue
    x, z, focus = im.to_network(X[k], "cpu").contiguous(memory_format=torch.channels_last), U[k], W[k].float(); focus0 = F0[k].float() if A.free else focus
    half = A.batch // 2; rng = torch.Generator().manual_seed(step); corner = (torch.rand(2, generator=rng) / 2).tolist()
    with torch.set_grad_enabled(not A.only_decoder):
        w = net.map(z)
        with torch.no_grad():
            if not A.only_decoder: net.latent_avg.lerp_(w.mean(0), 0.01)
        with cast(): off = enc(x[half:])
        e = off.float() + net.latent_avg
    code_loss = 0.0 if A.only_decoder else im.LAMBDA_CODE * ((e - w[half:, None].detach()) / (w.detach().std(0).mean() + 1e-3)).abs().mean()
    y = dec(torch.cat([w[:half, None].expand(-1, 12, -1), e]), dtype=dt)
    shown = picture_loss(y, x, focus, focus0); change, = torch.autograd.grad(shown, y)
    if on:
        critic.requires_grad_(False)
        with cast(): un = F.softplus(-cri(im.view(y, corner))).mean()
        sharper, = torch.autograd.grad(un, y); sharper = sharper * focus ** A.sharp
        pull = float(open(A.out + "/pull").read() if os.path.exists(A.out + "/pull") else A.pull) * min(1.0, max(0, share - A.critic_from) / 0.08)
        change = change + pull * change.norm() / (sharper.norm() + 1e-12) * sharper
    opt.zero_grad(set_to_none=True); ((y * change).sum() + code_loss).backward(); opt.step()
    if on:
        real = im.view(x, corner); critic.requires_grad_(True)
        with cast(): dl = F.softplus(-cri(real)).mean() + F.softplus(cri(im.view(y.detach(), corner))).mean()
        loss = dl
        if step % 16 == 0: loss = loss + 16 * im.R1_WEIGHT * 64 ** 2 / A.batch * im.r1_penalty(critic, real)
        copt.zero_grad(set_to_none=True); loss.backward(); copt.step()
    step += 1
    if A.rank >= 0 and step % 100 == 0 and share < 0.99: average()
    new = 1 - min(0.995 if A.only_decoder else im.EMA, (1 + step) / (10 + step))
    with torch.no_grad():
        for a, b in zip(ema.state_dict().values(), net.state_dict().values()): a.lerp_(b, new) if a.is_floating_point() else a.copy_(b)
    if A.bench and step == A.bench: began = time.time()
    if A.bench and step == 3 * A.bench: say("%.3f s a step" % ((time.time() - began) / (2 * A.bench))); sys.exit()
    if step % 20 == 0 and os.path.exists(A.out + "/threads"): torch.set_num_threads(int(open(A.out + "/threads").read()))
    if used > reported + (180 if A.only_decoder else 300):
        reported = used; A.rank > 0 or (report(), save())
        if len(glob.glob(f"{A.data}/heads-??????.npz")) * 20 > N + 200:
            X, U, B = load(A.data); N = len(X); F0 = free(B) if A.free else None; W = torch.stack([im.spots(b, im.PART_WEIGHT[0], im.PART_MARGIN[0], 128) for b in nosed(B)]).to(torch.float16); W = lower(W)
            say(N, "pictures")
if A.rank > 0: sys.exit()
report(); save()
half = {f"{n}.{k}": (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().clone() for n in ("decoder", "encoder") for k, v in getattr(ema, n).state_dict().items()}
torch.save({"state_dict": half, "latent_avg": ema.latent_avg.clone(), "opts": {"step": step, "seconds": used, "pictures": N}}, f"{A.out}/heads.pt")
say("done")
