"""How well a frozen model represents images: to a noise level and back, measured image by image.

The measure of "well" is the model's own domain: its own samples take the same way there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.level import Level
from nearfar.diffusion.solver import Heun, OnStep, Solver
from nearfar.metrics.quality import psnr, ssim
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import INVERTER, STEPS, denoise, reconstruct, traced_inversion
from nearfar.sampling.own_samples import BATCH, own_samples
from nearfar.tensors import Images

OWN_SAMPLES = 32
QUANTILE = 0.05
ALLOWANCE = 3.0
"""dB below the own samples' low quantile, twice its squared error: the quantile of a few dozen samples is uncertain by
about 1 dB, and photographs carry grain and compression that samples lack."""


@dataclass(frozen=True, eq=False)
class Representation:
    """Reconstructions, float32 in [-1, 1], and figures: one value per image each, float64 `(batch,)`.

    psnr: dB, at most `EXACT`. ssim: at most 1. calls: network calls that the image asked for, both ways.
    residual, fell_back: the worst step's, and the number of steps that fell back to the explicit one; with
    `FixedPointDDIM` only.
    """

    images: Images
    figures: dict[str, Tensor]


def represent(
    model: FrozenModel,
    images: Images,
    *,
    strength: Level | None = None,
    sigma: Level | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    on_step: OnStep | None = None,
) -> Representation:
    """The images as the model gives them back, and how well.

    Arguments, errors and cost as for `reconstruct`. Nothing is random.
    """
    if not isinstance(solver, FixedPointDDIM):
        again = reconstruct(model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)
        calls = torch.full((len(images),), calls_of(solver, steps)[0])
        return Representation(again, figures_of(images, again, {"calls": calls}))
    way = traced_inversion(model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)
    again = denoise(model, way.latents, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)
    search = {"residual": way.residuals.amax(1), "fell_back": way.fell_back.sum(1), "calls": way.calls.sum(1) + steps}
    return Representation(again, figures_of(images, again, search))


def figures_of(images: Images, again: Images, others: dict[str, Tensor]) -> dict[str, Tensor]:
    before = images.cpu()
    measured = {"psnr": psnr(before, again), "ssim": ssim(before, again), **others}
    return {name: values.double() for name, values in measured.items()}


def calls_of(solver: Solver | BDIA, steps: int) -> tuple[int, int]:
    """The least and the greatest number of network calls of one batch's way there and back."""
    if isinstance(solver, FixedPointDDIM):
        return 2 * steps + 1, (solver.iterations + 1) * steps + 1
    if isinstance(solver, BDIA):
        return (solver.calls(steps),) * 2
    up = 2 * steps if isinstance(solver, Heun) else steps
    return (up + solver.calls(steps),) * 2


def own_representation(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    count: int = OWN_SAMPLES,
    seed: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
) -> list[float]:
    """PSNR in dB of `count` of the model's own samples after the same way there and back.

    Cost for each batch: that of `own_samples` and of `reconstruct`.
    """
    samples = own_samples(model, count, seed=seed, batch_size=batch_size, on_step=on_step)
    found = [
        represent(model, part, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step)
        for part in torch.split(samples, batch_size)
    ]
    return torch.cat([each.figures["psnr"] for each in found]).tolist()


def threshold(own_psnr: Sequence[float]) -> float:
    """dB from which an image is represented as well as the model's own: their low quantile, less an allowance."""
    return torch.tensor(own_psnr, dtype=torch.float64).quantile(QUANTILE).item() - ALLOWANCE
