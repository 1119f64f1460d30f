"""The deterministic trajectory in both directions: images to their latents, and back (arXiv 2310.09213)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from nearfar.diffusion.bdia import BDIA, toward_clean, toward_noise
from nearfar.diffusion.fixed_point import FixedPointDDIM, Search
from nearfar.diffusion.level import WARP, Level, start_times
from nearfar.diffusion.solver import DDIM, SOLVERS, Heun, OnStep, Solver, solve
from nearfar.errors import UsageError
from nearfar.models.model import FrozenModel
from nearfar.tensors import Images, Latents

INVERTER = FixedPointDDIM()
INVERTERS: dict[str, Solver] = {"fixed-point": INVERTER, "heun": Heun(), "ddim": DDIM()}
RECONSTRUCTORS: dict[str, Solver | BDIA] = {**INVERTERS, "bdia": BDIA()}
STEPS = 20


def invert(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents at a noise level from which the deterministic trajectory leads to these images.

    images: float32 `(batch, channel, height, width)` in [-1, 1], of the model's size.
    strength: share of the forward process in [0, 1]; or sigma: noise to signal. One value, or one per image.
    on_step: called after each solver step with its number, from 1, and the state.
    solver: `FixedPointDDIM()`, which `denoise` undoes; `Heun()`, nearer to the exact trajectory in as many steps;
    `DDIM()`, the explicit inverter of the paper. Nothing is random: an encoder's mode is used.
    Returns float32 latents `(batch, *model.latent_shape)` on the model's device. Cost in network calls, each for the
    whole batch: `steps` with DDIM, `2 * steps` with Heun, and with FixedPointDDIM as many as it needs (about 4
    a step at 20 steps).
    """
    model.image.check(images)
    solver = check_invertible(solver)
    start = start_times(model.schedule, len(images), strength, sigma)
    latents = model.latent_space.encode(images.to(model.device, torch.float32))
    return solve(model.denoiser, latents, model.schedule.grid(start, steps, WARP).flip(1), solver, on_step=on_step)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Latents, and how each step on the way to them was found; the figures are those of `Search`."""

    latents: Latents
    residuals: Float64[Tensor, "batch steps"]
    fell_back: Bool[Tensor, "batch steps"]
    calls: Int64[Tensor, "batch steps"]


def traced_inversion(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int = STEPS,
    solver: FixedPointDDIM = INVERTER,
    on_step: OnStep | None = None,
) -> Inversion:
    """`invert` with the fixed-point inverter, and how well each step was solved.

    Arguments, latents and cost as for `invert`. An image at strength 0 asks for nothing and has no residual.
    """
    found: list[Search] = []
    tracing = replace(solver, on_search=found.append)
    latents = invert(model, images, strength=strength, sigma=sigma, steps=steps, solver=tracing, on_step=on_step)
    rest = torch.zeros(len(images), dtype=torch.float64)
    found = found or [Search(rest, rest.bool(), rest.long())] * steps
    residuals, fell_back, calls = (
        torch.stack([getattr(search, name) for search in found], dim=1) for name in ("residual", "fell_back", "calls")
    )
    return Inversion(latents, residuals, fell_back, calls)


def denoise(
    model: FrozenModel,
    latents: Latents,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    on_step: OnStep | None = None,
) -> Images:
    """The images that the deterministic trajectory leads to from latents at a noise level; the inverse of `invert`.

    Returns float32 images in [-1, 1] on the CPU. Cost: `solver.calls(steps)` network calls.
    """
    solver = check_invertible(solver)
    if latents.shape[1:] != model.latent_shape:
        raise UsageError(
            f"latents must be (batch, {', '.join(map(str, model.latent_shape))}), got {tuple(latents.shape)}"
        )
    start = start_times(model.schedule, len(latents), strength, sigma)
    state = latents.to(model.device, torch.float32)
    clean = solve(model.denoiser, state, model.schedule.grid(start, steps, WARP), solver, on_step=on_step)
    return model.latent_space.decode(clean).clamp(-1, 1).cpu()


def reconstruct(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    on_step: OnStep | None = None,
) -> Images:
    """The images after a way to a noise level and back: what this model can represent of them.

    Arguments as for `invert`; `BDIA()` besides, whose return is exact for every network: what it loses is lost by the
    latent space. Returns float32 images in [-1, 1] on the CPU. Cost: that of `invert` and `denoise`.
    """
    if isinstance(solver, BDIA):
        return exact_reconstruction(
            model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step
        )
    latents = invert(model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)
    return denoise(model, latents, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)


def check_invertible(solver: Solver | BDIA) -> Solver:
    """A solver that gives one latent for an image, and an image for a latent."""
    if isinstance(solver, BDIA):
        raise UsageError(
            "BDIA ends in a pair of states, and one latent alone has no way back: "
            "invert with FixedPointDDIM, Heun or DDIM(eta=0); BDIA is for reconstruct"
        )
    if not solver.invertible:
        raise UsageError(f"{solver} cannot run toward noise: invert with FixedPointDDIM, Heun or DDIM(eta=0)")
    return solver


def exact_reconstruction(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int,
    solver: BDIA,
    on_step: OnStep | None = None,
) -> Images:
    """The images after a way to a noise level and back, the same to float precision whatever the network is.

    What is lost is what the latent space loses. The states are float64, the network keeps its dtype. Arguments as for
    `reconstruct`. Cost: `solver.calls(steps)` network calls.
    """
    model.image.check(images)
    start = start_times(model.schedule, len(images), strength, sigma)
    latents = model.latent_space.encode(images.to(model.device, torch.float32))
    pair = toward_noise(
        model.denoiser, latents.double(), model.schedule.grid(start, steps, WARP).flip(1), solver, on_step
    )
    clean = toward_clean(model.denoiser, pair, model.schedule.grid(start, steps, WARP), solver, on_step)
    return model.latent_space.decode(clean.float()).clamp(-1, 1).cpu()


def solver_name(solver: Solver | BDIA) -> str:
    """The command line's name of a solver, or its description."""
    return next((name for name, known in {**SOLVERS, **RECONSTRUCTORS}.items() if known == solver), repr(solver))
