"""A training step of the neighbours' motion models and critics, in place of train.train_step().

    python train.py latents.npy --model stylegan_v
    python train.py latents.npy --model stylegan_v --critic sparse --window 33

As the paper's step, but with a loss of the model's own (extra()) in place of the gradient angle penalty,
which is StyleVideoGAN's and stays with it, and with another critic's losses where --critic names one.
"""

import math

import torch

import train
from models import MotionCritic, MotionGenerator, gradient_angle_penalty, gradient_penalty


def draw(rng, step, places, args, widths):
    """train.draw(), and of each window which three frames a sparse critic sees (critic steps, B, 3)."""
    times = torch.rand(args.critic_steps, args.batch, 3, generator=rng)
    return {**train.draw(rng, step, places, args, widths), "times": times}


def critic_losses(C, real, fake, later, draws, k, args):
    """Real and sampled windows (B, T, L, D) -> the critic's whole loss, its first term, its penalty."""
    if not isinstance(C, MotionCritic):
        return C.losses(real, fake, draws["times"][k])
    p_real, p_fake = C.first_layer(real, later), C.first_layer(fake, later)         # (B, T, D)
    loss_C = C.score(p_fake).mean() - C.score(p_real).mean()
    gp = gradient_penalty(C, p_real, p_fake, draws["mix"][k])
    return loss_C + args.lambda_gp * gp, loss_C, gp


def own_loss(nets, l, i, s, args):
    """The generator's loss beside the critic's score, and phi (b,), which only StyleVideoGAN has."""
    G, first = nets.G, len(i)
    if isinstance(G, MotionGenerator):
        nets.norm.update((l[:first, -1] - l[:first, 0]).detach())
        gap, phi = gradient_angle_penalty(l[:first], i, s, nets.norm)
        return args.lambda_gap * gap, phi
    loss = G.extra() if hasattr(G, "extra") else torch.zeros((), device=l.device)
    return loss, torch.full_like(loss, math.nan)


def train_step(nets, adam, draws, codes, starts, args):
    """Critic steps, a generator step, EMA -> train.LOGGED, (5,). "gap" is own_loss(); with a sparse critic
    "wasserstein" is minus its loss, without R1, and "gp" is R1."""
    G, C, T = nets.G, nets.C, args.window
    (_, B), first = draws["place"].shape, draws["i"].shape[1]
    later = (torch.arange(B, device=codes.device) >= first).float()[:, None, None]          # (B, 1, 1)

    for k in range(args.critic_steps):
        last = k == args.critic_steps - 1
        i, s = draws["i"][k].requires_grad_(last), draws["s"][k].requires_grad_(last)
        with torch.set_grad_enabled(last):
            l, w = train.sample_windows(nets, i, s, draws, k)                   # (B, T, code), (B, T, L, D)
        frames = starts[draws["place"][k]][:, None] + torch.arange(T, device=starts.device)
        loss, loss_C, penalty = critic_losses(C, codes[frames], w.detach(), later, draws, k, args)
        adam["C"].zero_grad()
        loss.backward()
        adam["C"].step()

    C.requires_grad_(False)
    if isinstance(C, MotionCritic):
        loss_G = -C.score(C.first_layer(w, later)).mean()
    else:
        loss_G = C.generator_loss(w, draws["times"][k])
    own, phi = own_loss(nets, l, i, s, args)
    adam["G"].zero_grad()
    (loss_G + own).backward()
    adam["G"].step()
    C.requires_grad_(True)

    with torch.no_grad():
        for averaged, p in zip(nets.ema.parameters(), G.parameters()):
            averaged.lerp_(p, draws["ema"])
    return torch.stack([-loss_C, penalty, loss_G, own, phi.mean()]).detach()
