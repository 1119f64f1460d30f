"""`invert` and `reconstruct` on folders: the latents of images, and what the model makes of them again."""

from __future__ import annotations

import io

import numpy as np
from torch import Tensor

from nearfar.fitting import FitMode
from nearfar.images import Frame
from nearfar.inversion import INVERTER, STEPS, check_invertible, invert, reconstruct
from nearfar.jobs import as_picture, make_job, trajectory_settings
from nearfar.model import FrozenModel
from nearfar.plan import Job
from nearfar.solver import Solver


def reconstruct_job(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    fit: FitMode = FitMode.PAD,
    batch_size: int | None = None,
    keep_metadata: bool = False,
) -> Job:
    """The job of carrying every image to a noise level and back along its deterministic trajectory.

    Arguments as for `reconstruct` and `anonymize_job`; nothing is random.
    """
    check_invertible(solver)
    settings = trajectory_settings(model, strength, sigma, steps, solver, fit)
    return make_job(
        model,
        lambda images, on_step: reconstruct(
            model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step
        ),
        {"command": "reconstruct", **settings, "keep_metadata": keep_metadata},
        encode=as_picture(fit, keep_metadata),
        object_to=anything_goes,
        fit=fit,
        key=None,
        batch_size=batch_size,
    )


def invert_job(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver = INVERTER,
    fit: FitMode = FitMode.PAD,
    batch_size: int | None = None,
) -> Job:
    """The job of writing every image's latents at a noise level: `name.npy`, float32, of the model's latent shape."""
    check_invertible(solver)
    settings = trajectory_settings(model, strength, sigma, steps, solver, fit)
    return make_job(
        model,
        lambda images, on_step: invert(
            model, images, strength=strength, sigma=sigma, steps=steps, solver=solver, on_step=on_step
        ).cpu(),
        {"command": "invert", **settings},
        encode=array_file,
        object_to=anything_goes,
        fit=fit,
        key=None,
        batch_size=batch_size,
        suffix=".npy",
    )


def anything_goes(image: Tensor, output: Tensor) -> str:
    """A reconstruction may well be its input."""
    return ""


def array_file(output: Tensor, frame: Frame) -> bytes:
    content = io.BytesIO()
    np.save(content, output.numpy())
    return content.getvalue()
