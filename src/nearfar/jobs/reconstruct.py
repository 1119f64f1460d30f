"""`invert` and `reconstruct` on folders: the latents of images, and what the model makes of them again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.solver import OnStep, Sampling
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item
from nearfar.io.marks import MARKED, Marking
from nearfar.jobs.job import Job, Reading, Results, Transform, as_picture, make_job, one_square, trajectory_settings
from nearfar.jobs.tiles import tiled_job
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import check_invertible
from nearfar.sampling.local_sampling import ascend, encode
from nearfar.sampling.representation import calls_of, calls_up, represented
from nearfar.tensors import Images


def reconstruct_job(
    model: FrozenModel,
    sampling: Sampling,
    *,
    fit: FitMode = FitMode.PAD,
    batch_size: int | None = None,
    keep_metadata: bool = False,
    marking: Marking = MARKED,
) -> Job:
    """The job of carrying every image to a noise level and back along its deterministic trajectory.

    The record of every image gets the figures of `represent`, measured at the model's size before anything is rounded.
    Arguments as for `anonymize_job`; nothing is random.
    """
    if not isinstance(sampling.solver, BDIA):
        check_invertible(sampling.solver)
    settings = trajectory_settings(model, sampling, fit)

    make = partial(there_and_back_again, sampling=sampling)
    job = make_job(
        model,
        {"command": "reconstruct", **settings, "keep_metadata": keep_metadata, **marking.settings()},
        transform=make(model),
        read=one_square(model.image, fit),
        encode=as_picture(fit, keep_metadata, marking),
        key=None,
        batch_size=batch_size,
        calls=calls_of(sampling.solver, sampling.steps),
    )
    return tiled_job(job, model, make, batch_size is not None) if fit is FitMode.TILE else job


def there_and_back_again(model: FrozenModel, sampling: Sampling) -> Transform:
    """What the model makes of images again, with the figures of `represent`."""

    def transform(images: Images, _: Sequence[Item], on_step: OnStep) -> Results:
        again = represented(model, images, sampling, on_step)
        return Results(again.images, {name: values.to(again.images.dtype) for name, values in again.figures.items()})

    return transform


def invert_job(
    model: FrozenModel, sampling: Sampling, *, fit: FitMode = FitMode.PAD, batch_size: int | None = None
) -> Job:
    """The job of writing every image's latents at a noise level: `name.npy`, float32, of the model's latent shape.

    Those of a file of several pages lie in one array, one after the other.
    """
    check_invertible(sampling.solver)
    return make_job(
        model,
        {"command": "invert", **trajectory_settings(model, sampling, fit)},
        transform=lambda images, _, on_step: Results(ascend(model, encode(model, images), sampling, on_step).cpu()),
        read=one_square(model.image, fit),
        encode=array_file,
        key=None,
        batch_size=batch_size,
        calls=calls_up(sampling.solver, sampling.steps),
        suffix=".npy",
    )


def array_file(outputs: Tensor, _: Reading) -> bytes:
    content = io.BytesIO()
    np.save(content, (outputs if len(outputs) > 1 else outputs[0]).numpy())
    return content.getvalue()
