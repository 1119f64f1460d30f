"""The deterministic trajectory in both directions: images to their latents, and back (arXiv 2310.09213)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from nearfar.diffusion.bdia import BDIA, PAIR, toward_clean, toward_noise
from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.fixed_point import FixedPointDDIM, Search
from nearfar.diffusion.schedule import Amount, Level
from nearfar.diffusion.solver import DDIM, SOLVERS, STEPS, Heun, LocalPrior, OnStep, Sampling, Solver, profile_of, used
from nearfar.errors import UsageError
from nearfar.io.conversion import as_images
from nearfar.models.model import FrozenModel, checked_model
from nearfar.sampling.local_sampling import Given, ascend, decode, descend, encode
from nearfar.tensors import Images, Latents

INVERTER = FixedPointDDIM()
INVERTERS: dict[str, Solver] = {"fixed-point": INVERTER, "heun": Heun(), "ddim": DDIM()}
RECONSTRUCTORS: dict[str, Solver] = {**INVERTERS, "bdia": BDIA()}


def invert(
    model: FrozenModel,
    images: Any,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents at a noise level from which the deterministic trajectory leads to these images.

    images: float32 `(batch, channel, height, width)` in [-1, 1], of the model's size; or pictures, see `local_sample`.
    strength: share of the forward process in [0, 1]; or sigma: noise to signal. One value, or one per image.
    on_step: called after each solver step with `(step, state)`; steps count from 1.
    solver: `FixedPointDDIM()`, which `denoise` undoes; `Heun()`, nearer to the exact trajectory in as many steps;
    `DDIM()`, the explicit inverter of the paper. Nothing is random: an encoder's mode is used.
    Returns float32 latents `(batch, *model.latent_shape)` on the model's device. Cost in network calls, each for the
    whole batch: `steps` with DDIM, `2 * steps` with Heun, and with FixedPointDDIM as many as it needs (about 4
    a step at 20 steps).
    """
    sampling = Sampling(Level(strength, sigma), steps, check_invertible(solver))
    squares, _ = as_images(images, checked_model(model).image)
    return ascend(model, encode(model, squares), sampling, on_step)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Latents, and how each step on the way to them was found; the figures are those of `Search`."""

    latents: Latents
    residuals: Float64[Tensor, "batch steps"]
    fell_back: Bool[Tensor, "batch steps"]
    calls: Int64[Tensor, "batch steps"]


def traced_inversion(
    model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None = None
) -> Inversion:
    """`invert` with the fixed-point inverter, and how well each step was solved.

    An image at strength 0 asks for nothing and has no residual.
    """
    solver = sampling.solver
    assert isinstance(solver, FixedPointDDIM)
    searches: list[Search] = []
    tracing = replace(sampling, solver=replace(solver, on_search=searches.append))
    latents = ascend(model, encode(model, images), tracing, on_step)
    rest = torch.zeros(len(images), dtype=torch.float64)
    searches = searches or [Search(rest, rest.bool(), rest.long())] * sampling.steps
    residuals, fell_back, calls = (
        torch.stack([getattr(search, name) for search in searches], dim=1)
        for name in ("residual", "fell_back", "calls")
    )
    return Inversion(latents, residuals, fell_back, calls)


def denoise(
    model: FrozenModel,
    latents: Latents,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    on_step: OnStep | None = None,
) -> Images:
    """The images that the deterministic trajectory leads to from latents at a noise level; the inverse of `invert`.

    Returns float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls.
    """
    check_invertible(solver)
    check_latents(model, latents)
    sampling = Sampling(Level(strength, sigma), steps, solver)
    return decode(model, descend(model, latents, sampling, on_step=on_step))


def check_latents(model: FrozenModel, latents: Latents) -> None:
    """Refuse latents of another shape than the model's, or none at all."""
    if latents.shape[1:] != model.latent_shape or not len(latents):
        shape = f"(batch, {', '.join(map(str, model.latent_shape))})"
        raise UsageError(f"latents must be {shape}, got {tuple(latents.shape)}")


def reconstruct(
    model: FrozenModel,
    images: Given,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    on_step: OnStep | None = None,
) -> Given:
    """The images after a way to a noise level and back: what this model can represent of them.

    Arguments as for `invert`; `BDIA()` besides, whose return is exact for every network: what it loses is lost by the
    latent space. Returns images in the kind that was given: tensors as float32 in [-1, 1] on the CPU, pictures in their
    sizes. Cost: that of `invert` and `denoise`.
    """
    sampling = Sampling(Level(strength, sigma), steps, solver)
    squares, back = as_images(images, checked_model(model).image)
    made: Given = back(there_and_back(model, squares, sampling, on_step))
    return made


def there_and_back(model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None = None) -> Images:
    """`reconstruct` with a `Sampling`."""
    model.image.check(images)
    if isinstance(sampling.solver, BDIA):
        return reconstruct_exactly(model, images, sampling, on_step)
    check_invertible(sampling.solver)
    latents = ascend(model, encode(model, images), sampling, on_step)
    return decode(model, descend(model, latents, sampling, on_step=on_step))


def reconstruct_exactly(
    model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None = None
) -> Images:
    """The images after a way to a noise level and back by `BDIA`, to float precision whatever the network is.

    What is lost is what the latent space loses. The states are float64, the network keeps its dtype.
    Cost: `2 * steps - 1` network calls.
    """
    solver, grid = sampling.solver, sampling.grid(model.schedule, len(images))
    assert isinstance(solver, BDIA)
    pair = toward_noise(model.denoiser, encode(model, images).double(), grid.flip(1), solver, on_step)
    clean = toward_clean(model.denoiser, pair, grid, solver, on_step)
    return decode(model, clean.float())


def check_invertible(solver: Solver) -> Solver:
    """A solver that gives one latent for an image, and an image for a latent."""
    if isinstance(solver, BDIA):
        raise UsageError(PAIR)
    if not solver.invertible:
        raise UsageError(f"{solver} cannot run toward noise: invert with FixedPointDDIM, Heun or DDIM(eta=0)")
    return solver


def solver_settings(solver: Solver, denoiser: Denoiser) -> dict[str, str]:
    """What decides the pixels of a solver: its name, and the profile where it uses one or, without one, for whom it
    stands in."""
    stepping, profile = used(solver, denoiser), profile_of(denoiser)
    if stepping is not solver:
        return {"solver": solver_name(stepping), "stands_in_for": solver_name(solver)}
    if not isinstance(solver, LocalPrior) or profile is None:
        return {"solver": solver_name(solver)}
    return {"solver": solver_name(solver), "profile": profile.digest()}


def solver_name(solver: Solver) -> str:
    """The command line's name of a solver, or its description."""
    return next((name for name, known in {**SOLVERS, **RECONSTRUCTORS}.items() if known == solver), repr(solver))
