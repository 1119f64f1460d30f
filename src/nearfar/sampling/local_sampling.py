"""Local sampling ("Boomerang", Luzi et al., arXiv 2210.12100): noise an image part of the way, then denoise it.

Also the passes of a frozen model that everything is put together from (encode, ascend, descend, decode), and samples of
the model's own domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TypeVar

import torch

from nearfar.diffusion.noise import NoiseStream, SecretKey, noise_for
from nearfar.diffusion.schedule import Amount, Level
from nearfar.diffusion.solver import SOLVER, STEPS, OnStep, Sampling, Solver, solve
from nearfar.errors import UsageError
from nearfar.io.conversion import as_images
from nearfar.models.model import FrozenModel, checked_model
from nearfar.tensors import Images, Latents

Given = TypeVar("Given")
"""What is handed over: a tensor, an array, a PIL image or a list of pictures."""


def encode(model: FrozenModel, images: Images, noise: NoiseStream | None = None) -> Latents:
    """Clean latents of images in [-1, 1], float32 on the model's device. noise: for autoencoders that sample."""
    return model.latent_space.encode(images.to(model.device, torch.float32), noise)


def encode_all(model: FrozenModel, images: Images, batch_size: int) -> Latents:
    """Clean latents of many images, float32 on the CPU, a batch at a time."""
    return torch.cat([encode(model, part).float().cpu() for part in torch.split(images, batch_size)])


def ascend(model: FrozenModel, latents: Latents, sampling: Sampling, on_step: OnStep | None = None) -> Latents:
    """Clean latents along their deterministic trajectory to the level of `sampling`, whose solver is invertible."""
    grid = sampling.grid(model.schedule, len(latents)).flip(1)
    return solve(model.denoiser, latents, grid, sampling.solver, on_step=on_step)


def descend(
    model: FrozenModel,
    latents: Latents,
    sampling: Sampling,
    noise: NoiseStream | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """Clean latents from those at the level of `sampling`. noise: for stochastic solvers, one draw a step.

    Cost: `solver.calls(steps)` network calls, each for the whole batch.
    """
    grid = sampling.grid(model.schedule, len(latents))
    return solve(model.denoiser, latents.to(model.device, torch.float32), grid, sampling.solver, noise, on_step)


def decode(model: FrozenModel, latents: Latents) -> Images:
    """Images of clean latents, float32 in [-1, 1] on the CPU."""
    return model.latent_space.decode(latents).clamp(-1, 1).cpu()


def noised_and_denoised(
    model: FrozenModel, images: Images, sampling: Sampling, streams: Sequence[bytes], on_step: OnStep | None = None
) -> Latents:
    """Clean latents near those of images: noised to a level, then denoised. streams: the noise key of each image.

    Draws of a stream, in order: the encoder's where it samples, the noise of the level, one a step.
    """
    draws = 1 + draws_of_steps(sampling)
    with closing(NoiseStream(streams, model.latent_shape, model.device, draws)) as noise:
        latents, grid = encode(model, images, noise), sampling.grid(model.schedule, len(images))
        noisy = model.schedule.add_noise(latents, grid[:, 0], noise.draw())
        return solve(model.denoiser, noisy, grid, sampling.solver, noise, on_step)


def draws_of_steps(sampling: Sampling) -> int:
    """One for each step of a solver that draws."""
    return sampling.steps if sampling.solver.stochastic else 0


def numbered_noise(model: FrozenModel, purpose: str, numbers: Sequence[int], seed: int, draws: int = 0) -> NoiseStream:
    """Noise of numbered outputs: that of one depends on the seed, the purpose and its number. draws: if known."""
    key = SecretKey.from_seed(seed)
    streams = [bytes.fromhex(key.tag(f"{purpose} {number}")) for number in numbers]
    return NoiseStream(streams, model.latent_shape, model.device, draws)


def local_sample(
    model: FrozenModel,
    images: Given,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
    key: SecretKey | None = None,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    variant: int | Sequence[int] = 0,
    on_step: OnStep | None = None,
) -> Given:
    """New images near the given ones.

    images: float32 `(batch, channel, height, width)` in [-1, 1], of the model's size; or pictures of any size, as PIL
    images or arrays, which come back in their own kind and size (`io/conversion.py`).
    strength: share of the forward process in [0, 1]; 0 gives the images back, 1 ignores them.
    sigma: noise to signal, instead of strength. Either may be one value per image.
    key: source of all randomness, a random one unless given; the same key gives the same images whatever their batch,
    to within rounding (a folder run makes them equal to the bit).
    variant: 1, 2, ... ask for further samples of the same image; one number, or one per image.
    on_step: called after each solver step with `(step, state)`; steps count from 1.
    Returns for tensors float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls, each for the
    whole batch: split what does not fit into memory.
    """
    sampling = Sampling(Level(strength, sigma), steps, solver)
    if not isinstance(key, SecretKey | None):
        raise UsageError(f"key must be a nearfar.SecretKey, got {type(key).__name__}: use SecretKey.load")
    squares, back = as_images(images, checked_model(model).image)
    made: Given = back(sample_near(model, squares, sampling, key or SecretKey.random(), variant, on_step))
    return made


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


BATCH = 32


def own_samples(
    model: FrozenModel,
    count: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    batch_size: int = BATCH,
    first: int = 0,
    on_step: OnStep | None = None,
) -> Images:
    """Images that the model makes from pure noise.

    Sample `i` depends on the model, the seed and `i`, not on `count`. first: begin with that one of the `count`.
    Returns float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls for each batch.
    """
    sampling = Sampling(Level(strength=1.0), steps, solver)
    wanted = range(first, count)
    return torch.cat([decode(model, one) for one in own_latents(model, wanted, sampling, seed, batch_size, on_step)])


def own_latents(
    model: FrozenModel, wanted: range, sampling: Sampling, seed: int, batch_size: int, on_step: OnStep | None = None
) -> Iterator[Latents]:
    """The same before they are decoded, a batch at a time. wanted: their numbers. sampling: from pure noise."""
    for numbers in torch.split(torch.tensor(wanted), batch_size):
        noise = numbered_noise(model, "own sample", numbers.tolist(), seed, 1 + draws_of_steps(sampling))
        times, drawn = sampling.level.times(model.schedule, len(numbers)), noise.draw()
        noisy = model.schedule.add_noise(torch.zeros_like(drawn), times, drawn)
        yield descend(model, noisy, sampling, noise, on_step)
