"""Local sampling ("Boomerang", Luzi et al., arXiv 2210.12100): noise an image part of the way, then denoise it."""

from __future__ import annotations

from collections.abc import Sequence

from nearfar.diffusion.level import STEPS, Amount, Level, Sampling
from nearfar.diffusion.noise import SecretKey, noise_for
from nearfar.diffusion.solver import SOLVER, OnStep, Solver
from nearfar.models.model import FrozenModel
from nearfar.sampling.trajectory import decode, noised_and_denoised
from nearfar.tensors import Images


def local_sample(
    model: FrozenModel,
    images: Images,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
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
    on_step: called after each solver step with `(step, state)`; steps count from 1.
    Returns float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls, each for the whole batch:
    split what does not fit into memory.
    """
    sampling = Sampling(Level(strength, sigma), steps, solver)
    return sample_near(model, images, sampling, key or SecretKey.random(), variant, on_step)


def sample_near(
    model: FrozenModel,
    images: Images,
    sampling: Sampling,
    key: SecretKey,
    variant: int | Sequence[int] = 0,
    on_step: OnStep | None = None,
) -> Images:
    """The same with a `Sampling`."""
    model.image.check(images)
    streams = noise_for(images, sampling.level.times(model.schedule, len(images)), key, variant)
    return decode(model, noised_and_denoised(model, images, sampling, streams, on_step))
