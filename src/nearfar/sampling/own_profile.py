"""The profile of a model, measured on images that it makes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.profiling import LEVELS, measured
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import STEPS, LocalPrior, Sampling
from nearfar.models.model import FrozenModel, PatchSpace
from nearfar.sampling.local_sampling import BATCH, own_latents
from nearfar.tensors import Latents

SAMPLES = 64
SEED = 5
"""Not that of other own samples."""
ROUNDS = 2


def own_profile(
    model: FrozenModel, count: int = SAMPLES, batch_size: int = BATCH, on_step: Callable[[], None] | None = None
) -> Profile:
    """What the network does not know of its own samples.

    Twice: the first samples are made without a profile, the second with that of the first. Fixed by the model, `count`
    and `batch_size`. Cost: `profile_calls(count, batch_size)` network calls, after each of which `on_step` is called.
    """
    sampling = Sampling(Level(strength=1.0), STEPS, LocalPrior())
    model = profiled(model, None)

    def tick(*_: object) -> None:
        if on_step:
            on_step()

    for _ in range(ROUNDS):
        clean = torch.cat(
            [part.float().cpu() for part in own_latents(model, range(count), sampling, SEED, batch_size, tick)]
        )
        profile = profile_on(model, clean, batch_size, tick)
        model = profiled(model, profile)
    return profile


def profile_on(
    model: FrozenModel, clean: Latents, batch_size: int = BATCH, on_step: Callable[[], None] | None = None
) -> Profile:
    """What the network does not know of given latents, such as those of images that it was trained on.

    Cost: `LEVELS` network calls for each batch, after each of which `on_step` is called.
    """
    factor = model.latent_space.factor if isinstance(model.latent_space, PatchSpace) else 1
    return measured(model.denoiser, clean.to(model.device), factor, batch_size=batch_size, on_call=on_step)


def profiled(model: FrozenModel, profile: Profile | None) -> FrozenModel:
    """The model with this profile."""
    return replace(model, denoiser=replace(model.denoiser, profile=profile))  # type: ignore[type-var]


def profile_calls(count: int = SAMPLES, batch_size: int = BATCH) -> int:
    """Network calls of `own_profile`."""
    return ROUNDS * -(-count // batch_size) * (STEPS + LEVELS)
