"""How well a frozen model represents images: to a noise level and back, measured image by image.

The measure of "well" is the model's own domain: its own samples take the same way there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from nearfar.exact_inversion import BDIA
from nearfar.inversion import INVERTER, STEPS, denoise, reconstruct, traced_inversion
from nearfar.local_sampling import Level
from nearfar.model import FrozenModel
from nearfar.own_domain import BATCH, own_samples
from nearfar.solver import FixedPointDDIM, Heun, OnStep, Solver
from nearfar.tensors import Images

OWN_SAMPLES = 32
QUANTILE = 0.05
ALLOWANCE = 3.0
"""dB below the own samples' low quantile, twice its squared error: the quantile of a few dozen samples is uncertain by
about 1 dB, and photographs carry grain and compression that samples lack."""

EXACT = 150.0
"""dB at which PSNR ends: float32 tells nothing beyond."""

WINDOW, BLUR = 11, 1.5
"""Side and standard deviation of SSIM's window in pixels (Wang et al. 2004, DOI 10.1109/TIP.2003.819861)."""


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


def psnr(images: Images, others: Images) -> Float[Tensor, " batch"]:
    """Peak signal to noise in dB of images in [-1, 1], each of its own."""
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=4 / 10 ** (EXACT / 10)))


def ssim(images: Images, others: Images) -> Float[Tensor, " batch"]:
    """Structural similarity of images in [-1, 1] (Wang et al. 2004), the mean over channels and whole windows.

    Images smaller than the window get the largest odd one that fits.
    """
    x, y = (each.double().flatten(0, 1)[:, None] for each in (images, others))
    moments = torch.cat([x, y, x * x, y * y, x * y])
    half = (min(WINDOW, *images.shape[2:]) - 1) // 2
    weights = torch.exp(-(torch.arange(-half, half + 1, dtype=torch.float64) ** 2) / (2 * BLUR**2))
    weights = weights / weights.sum()
    mean_x, mean_y, xx, yy, xy = conv2d(conv2d(moments, weights[None, None, None]), weights[None, None, :, None]).chunk(
        5
    )
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    structure = (2 * (xy - mean_x * mean_y) + c_2) / (xx - mean_x**2 + yy - mean_y**2 + c_2)
    likeness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1) * structure
    return likeness.mean((1, 2, 3)).view(images.shape[:2]).mean(1)


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
