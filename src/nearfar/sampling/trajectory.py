"""The passes of one frozen model that everything else is put together from: encode, ascend, descend, decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nearfar.diffusion.level import Sampling
from nearfar.diffusion.noise import NoiseStream, SecretKey
from nearfar.diffusion.solver import OnStep, solve
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images, Latents


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
    noise = NoiseStream(streams, model.latent_shape, model.device)
    latents, grid = encode(model, images, noise), sampling.grid(model.schedule, len(images))
    noisy = model.schedule.add_noise(latents, grid[:, 0], noise.draw())
    return solve(model.denoiser, noisy, grid, sampling.solver, noise, on_step)


def numbered_noise(model: FrozenModel, purpose: str, numbers: Sequence[int], seed: int) -> NoiseStream:
    """Noise of numbered outputs: that of one depends on the seed, the purpose and its number."""
    key = SecretKey.from_seed(seed)
    streams = [bytes.fromhex(key.tag(f"{purpose} {number}")) for number in numbers]
    return NoiseStream(streams, model.latent_shape, model.device)
