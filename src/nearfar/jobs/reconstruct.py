"""`invert` and `reconstruct` on folders: the latents of images, and what the model makes of them again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.solver import OnStep, Solver
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item
from nearfar.jobs.job import Job, Reading, anything_goes, make_job, one_square, picture_file, trajectory_settings
from nearfar.models.model import FrozenModel, ImageContract
from nearfar.sampling.inversion import INVERTER, STEPS, check_invertible, invert
from nearfar.sampling.representation import represent
from nearfar.tensors import Images


def reconstruct_job(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    fit: FitMode = FitMode.PAD,
    batch_size: int | None = None,
    keep_metadata: bool = False,
) -> Job:
    """The job of carrying every image to a noise level and back along its deterministic trajectory.

    The record of every image gets the figures of `represent`, measured at the model's size before anything is rounded.
    Arguments as for `reconstruct` and `anonymize_job`; nothing is random.
    """
    if not isinstance(solver, BDIA):
        check_invertible(solver)
    settings = trajectory_settings(model, strength, sigma, steps, solver, fit)
    contract, names = model.image, figure_names(solver)

    def transform(images: Images, _: Sequence[Item], on_step: OnStep) -> Tensor:
        options: dict[str, Any] = {"strength": strength, "sigma": sigma, "steps": steps, "solver": solver}
        found = represent(model, images, on_step=on_step, **options)
        return pack(found.images, [found.figures[name] for name in names])

    return make_job(
        model,
        transform,
        {"command": "reconstruct", **settings, "keep_metadata": keep_metadata},
        read=one_square(contract, fit),
        encode=lambda rows, reading: picture_file(image_in(rows[0], contract), reading.frame, fit, keep_metadata),
        object_to=anything_goes,
        measure=lambda rows, _: dict(zip(names, rows[0, -len(names) :].tolist(), strict=True)),
        key=None,
        batch_size=batch_size,
    )


def figure_names(solver: Solver | BDIA) -> list[str]:
    """What `represent` measures with this solver."""
    search = ["residual", "fell_back"] if isinstance(solver, FixedPointDDIM) else []
    return ["psnr", "ssim", *search, "calls"]


def pack(images: Images, figures: list[Tensor]) -> Tensor:
    """One row for each image: its values, then its figures."""
    return torch.cat([images.flatten(1), torch.stack(figures, dim=1).to(images.dtype)], dim=1)


def image_in(row: Tensor, contract: ImageContract) -> Tensor:
    """The image of a row."""
    shape = (contract.channels, contract.size, contract.size)
    return row[: contract.channels * contract.size**2].view(shape)


def invert_job(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver | BDIA = INVERTER,
    fit: FitMode = FitMode.PAD,
    batch_size: int | None = None,
) -> Job:
    """The job of writing every image's latents at a noise level: `name.npy`, float32, of the model's latent shape."""
    solver = check_invertible(solver)
    settings = trajectory_settings(model, strength, sigma, steps, solver, fit)
    return make_job(
        model,
        lambda images, _, on_step: invert(
            model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step
        ).cpu(),
        {"command": "invert", **settings},
        read=one_square(model.image, fit),
        encode=array_file,
        object_to=anything_goes,
        key=None,
        batch_size=batch_size,
        suffix=".npy",
    )


def array_file(outputs: Tensor, _: Reading) -> bytes:
    content = io.BytesIO()
    np.save(content, outputs[0].numpy())
    return content.getvalue()
