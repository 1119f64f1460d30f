"""What the jobs on a folder have in common: level, settings, batch size, files of pictures."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from nearfar.errors import UsageError
from nearfar.exact_inversion import BDIA
from nearfar.fitting import FitMode, fit, seen_shape, unfit
from nearfar.images import Frame, encode, read_picture
from nearfar.inversion import RECONSTRUCTORS
from nearfar.local_sampling import WARP, start_times
from nearfar.model import FrozenModel, ImageContract
from nearfar.noise import SecretKey
from nearfar.plan import Encode, Job, Measure, Objection, Read, Reading, Transform, nothing
from nearfar.solver import SOLVERS, Solver
from nearfar.sources import Item

PLACES, PARAMETERS = 64 * 64, 50_000_000
"""Size of latents and of a network up to which the default batch is whole; beyond, it shrinks in proportion."""


def make_job(
    model: FrozenModel,
    transform: Transform,
    settings: dict[str, Any],
    *,
    read: Read,
    encode: Encode,
    object_to: Objection,
    key: SecretKey | None,
    batch_size: int | None,
    suffix: str = "",
    measure: Measure = nothing,
) -> Job:
    """A job with this model's contract, a batch size that fits it, and one worker for each core.

    Images so large that they go one by one are computed by all cores together, in the memory of one.
    key: None where nothing outlives the run.
    """
    batch = check_batch_size(default_batch_size(model) if batch_size is None else batch_size)
    return Job(
        read=read,
        transform=transform,
        encode=encode,
        object_to=object_to,
        image=model.image,
        settings={"nearfar": version("nearfar"), "model": model.provenance.sha256, **model.settings, **settings},
        key=key or SecretKey.random(),
        repeatable=key is not None,
        batch_size=batch,
        shrinkable=batch_size is None,
        workers=torch.get_num_threads() if model.device.type == "cpu" and batch > 1 else 1,
        suffix=suffix,
        steps=settings["steps"],
        measure=measure,
    )


def trajectory_settings(
    model: FrozenModel, strength: float | None, sigma: float | None, steps: int, solver: Solver | BDIA, fit: FitMode
) -> dict[str, Any]:
    """The settings of every job that goes to a noise level and back."""
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    return {
        **describe_level(model, strength, sigma),
        "steps": steps,
        "warp": WARP,
        "solver": solver_name(solver),
        "precision": str(model.dtype).removeprefix("torch."),
        "fit": str(fit),
    }


def describe_level(model: FrozenModel, strength: float | None, sigma: float | None) -> dict[str, float]:
    """Strength, time and sigma of one level, together."""
    time = start_times(model.schedule, 1, strength, sigma)
    if time.item() <= model.schedule.clean_time:
        name = "strength" if sigma is None else "sigma"
        raise UsageError(f"{name} must be above 0, got 0: the originals would be copied")
    return {
        "strength": model.schedule.strength_of_time(time).item(),
        "time": time.item(),
        "sigma": model.schedule.ratio(time).item(),
    }


def solver_name(solver: Solver | BDIA) -> str:
    """The command line's name of a solver, or its description."""
    return next((name for name, known in {**SOLVERS, **RECONSTRUCTORS}.items() if known == solver), repr(solver))


def default_batch_size(model: FrozenModel) -> int:
    """32 for networks of a few million parameters, 16 for larger ones, less for the largest; 4 times that on a GPU."""
    on_cpu = 32 if model.parameters < 10_000_000 else 16
    size = on_cpu if model.device.type == "cpu" else 4 * on_cpu
    places = model.latent_shape[1] * model.latent_shape[2]
    return max(1, int(size / max(1, places / PLACES) / max(1, model.parameters / PARAMETERS)))


def check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    return batch_size


def one_square(image: ImageContract, mode: FitMode) -> Read:
    """Every picture as one square of the model's."""
    return partial(read_square, image=image, mode=mode)


def read_square(item: Item, image: ImageContract, mode: FitMode) -> Reading:
    picture = read_picture(item.path)
    square = fit(picture, image.size, image.channels, mode)
    seen = seen_shape(picture.frame.height, picture.frame.width, mode)
    return Reading(square[None], picture.frame, reduced=max(seen) > image.size)


def as_picture(fit: FitMode, keep_metadata: bool) -> Encode:
    """A result that is an image goes back into the frame and the format of its original."""
    return lambda results, reading: picture_file(results[0], reading.frame, fit, keep_metadata)


def picture_file(output: Tensor, frame: Frame, fit: FitMode, keep_metadata: bool) -> bytes:
    return encode(unfit(output, frame, fit), keep_metadata)
