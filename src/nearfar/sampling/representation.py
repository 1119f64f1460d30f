"""How well a frozen model represents images: to a noise level and back, measured image by image.

The measure of "well" is the model's own domain: its own samples take the same way there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import WARP, Amount, Level
from nearfar.diffusion.solver import STEPS, Heun, OnStep, Sampling, Solver
from nearfar.io.conversion import as_images
from nearfar.io.notebook import sheet_png
from nearfar.metrics.quality import psnr, ssim
from nearfar.models.kept import kept
from nearfar.models.model import FrozenModel, checked_model
from nearfar.sampling.inversion import INVERTER, solver_name, there_and_back, traced_inversion
from nearfar.sampling.local_sampling import BATCH, decode, descend
from nearfar.sampling.own_domain import own_domain, settings_of
from nearfar.tensors import Images

OWN_SAMPLES = 32
QUANTILE = 0.05
ALLOWANCE = 3.0
"""dB below the own samples' low quantile, twice its squared error: the quantile of a few dozen samples is uncertain by
about 1 dB, and photographs carry grain and compression that samples lack."""


@dataclass(frozen=True, eq=False, repr=False)
class Representation:
    """Reconstructions, float32 in [-1, 1], and figures: one value per image each, float64 `(batch,)`.

    psnr: dB, at most `EXACT`. ssim: at most 1. calls: network calls that the image asked for, both ways.
    residual, fell_back: the worst step's, and the number of steps that fell back to the explicit one; with
    `FixedPointDDIM` only.
    """

    images: Images
    figures: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"Representation({len(self.images)} images, median PSNR {self.figures['psnr'].median():.1f} dB)"

    def _repr_png_(self) -> bytes:
        return sheet_png(self.images)


def represent(
    model: FrozenModel,
    images: Any,
    *,
    strength: Amount | None = None,
    sigma: Amount | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    on_step: OnStep | None = None,
) -> Representation:
    """The images as the model gives them back, and how well.

    Arguments, errors and cost as for `reconstruct`. Nothing is random.
    """
    sampling = Sampling(Level(strength, sigma), steps, solver)
    return represented(model, as_images(images, checked_model(model).image)[0], sampling, on_step)


def represented(
    model: FrozenModel, images: Images, sampling: Sampling, on_step: OnStep | None = None
) -> Representation:
    """`represent` with a `Sampling`."""
    model.image.check(images)
    if not isinstance(sampling.solver, FixedPointDDIM):
        again = there_and_back(model, images, sampling, on_step)
        calls = torch.full((len(images),), calls_of(sampling.solver, sampling.steps)[0])
        return Representation(again, figures_of(images, again, {"calls": calls}))
    way = traced_inversion(model, images, sampling, on_step)
    again = decode(model, descend(model, way.latents, sampling, on_step=on_step))
    calls = way.calls.sum(1) + sampling.steps
    search = {"residual": way.residuals.amax(1), "fell_back": way.fell_back.sum(1), "calls": calls}
    return Representation(again, figures_of(images, again, search))


def figures_of(images: Images, again: Images, others: dict[str, Tensor]) -> dict[str, Tensor]:
    before = images.cpu()
    measured = {"psnr": psnr(before, again), "ssim": ssim(before, again), **others}
    return {name: figure.double() for name, figure in measured.items()}


def calls_of(solver: Solver, steps: int) -> tuple[int, int]:
    """The least and the greatest number of network calls of one batch's way there and back."""
    least, most = calls_up(solver, steps)
    down = solver.calls(steps)
    return least + down, most + down


def calls_up(solver: Solver, steps: int) -> tuple[int, int]:
    """The same of the way there."""
    if isinstance(solver, FixedPointDDIM):
        return steps + 1, solver.iterations * steps + 1
    return (2 * steps if isinstance(solver, Heun) else steps,) * 2


def own_representation(
    model: FrozenModel,
    sampling: Sampling,
    *,
    count: int = OWN_SAMPLES,
    seed: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
) -> list[float]:
    """PSNR in dB of `count` of the model's own samples after the same way there and back.

    Cost for each batch: that of `own_domain` and of `reconstruct`; nothing where the figures are kept already.
    """
    way = {**sampling.level.describe(model.schedule), "steps": sampling.steps, "warp": WARP}
    settings = {**way, "solver": solver_name(sampling.solver), "samples": settings_of(model, seed)}

    def make(begun: int) -> Tensor:
        samples = own_domain(model, count, seed=seed, batch_size=batch_size, on_step=on_step)[begun:]
        parts = [represented(model, part, sampling, on_step) for part in torch.split(samples, batch_size)]
        return torch.cat([part.figures["psnr"] for part in parts])

    return kept(model, "own-psnr", settings, (count,), make).tolist()


def threshold(own_psnr: Sequence[float]) -> float:
    """dB from which an image is represented as well as the model's own: their low quantile, less an allowance."""
    return torch.tensor(own_psnr, dtype=torch.float64).quantile(QUANTILE).item() - ALLOWANCE
