"""Local sampling ("Boomerang", Luzi et al., arXiv 2210.12100): noise an image part of the way, then denoise it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nearfar.diffusion.level import STEPS, WARP, Level, start_times
from nearfar.diffusion.noise import NoiseStream, SecretKey, noise_for
from nearfar.diffusion.solver import DPMSolverPPSDE, OnStep, Solver, solve
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images

SOLVER: Solver = DPMSolverPPSDE()


def local_sample(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    key: SecretKey | None = None,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    variant: int | Sequence[int] = 0,
    on_step: OnStep | None = None,
) -> Images:
    """New images near the given ones.

    images: float32 `(batch, channel, height, width)` in [-1, 1], of the model's size.
    strength: share of the forward process in [0, 1]; 0 gives the images back, 1 ignores them.
    sigma: noise to signal, instead of strength. Either may be one value per image.
    key: source of all randomness, a random one unless given; the same key gives the same images whatever their batch,
    to within rounding (a folder run makes them equal to the bit).
    variant: 1, 2, ... ask for further samples of the same image; one number, or one per image.
    on_step: called after each solver step with its number, from 1, and the state.
    Returns float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls, each for the whole batch:
    split what does not fit into memory.
    """
    model.image.check(images)
    start = start_times(model.schedule, len(images), strength, sigma)
    streams = noise_for(images, start, key or SecretKey.random(), variant)
    noise = NoiseStream(streams, model.latent_shape, model.device)
    latents = model.latent_space.encode(images.to(model.device, torch.float32), noise)
    noisy = model.schedule.add_noise(latents, start, noise.draw())
    clean = solve(model.denoiser, noisy, model.schedule.grid(start, steps, WARP), solver, noise, on_step)
    return model.latent_space.decode(clean).clamp(-1, 1).cpu()
