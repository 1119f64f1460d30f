"""`enhance`: a folder of images in, a folder of the same images enlarged out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import OnStep
from nearfar.errors import ImageError
from nearfar.io.fitting import FitMode, to_float, to_integer, with_channels
from nearfar.io.listing import Item, list_folder
from nearfar.io.manifest import Progress
from nearfar.io.marks import IN_PART, MARKED, Marking
from nearfar.io.pictures import MAX_PIXELS, Frame, Picture, encode, read_picture
from nearfar.jobs.job import Job, Reading, Results, calls_near, make_job, own_figures, trajectory_settings
from nearfar.jobs.run import plan_run, run
from nearfar.jobs.tiles import halving, tiles_in
from nearfar.models.model import FrozenModel
from nearfar.sampling.back_projection import AreaDownsampling
from nearfar.sampling.enhancement import Enlargement, enlarge, tiles_of
from nearfar.tensors import Images

MAX_SIDE = 16383
"""Pixels of a side of a result: what WebP can hold."""


def enhance_job(
    model: FrozenModel,
    how: Enlargement,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    keep_metadata: bool = False,
    marking: Marking = MARKED,
    files: int | None = None,
) -> Job:
    """The job of enlarging every image, in its own format, `scale` times in both directions.

    An image's detail follows from its content and the seed. A model of gray images enlarges the colors of a picture one
    by one. Alpha is enlarged bicubically. With consistency the record of every image has
    its `consistency_error`: the largest difference, in gray levels, between the image and the mean over squares of the
    result, as it is before a lossy format encodes it; at most half a level.
    files: how many images there are, so that no cores wait for images that never come.
    """
    scale, key = how.scale, SecretKey.from_seed(seed)
    options = {"scale": scale, "cascade": how.cascade, "consistency": how.consistency}
    settings = trajectory_settings(model, how.sampling(model), FitMode.PAD)

    written = {"keep_metadata": keep_metadata, **marking.settings()}

    def transform(images: Images, _: Sequence[Item], on_step: OnStep) -> Results:
        tiles = min(job.batch_size, len(images) * tiles_of(model, images.shape[1:], scale))

        def work(together: int) -> Tensor:
            return enlarge(model, images, how, key, batch_size=together, on_step=on_step)

        return Results(work(tiles) if batch_size else halving(work, tiles))

    job = make_job(
        model,
        {"command": "enhance", **settings, **options, "seed": seed, **written},
        transform=transform,
        read=partial(read_small, channels=model.image.channels, scale=scale),
        encode=partial(enlarged_file, scale=scale, keep_metadata=keep_metadata, marking=marking),
        key=key,
        batch_size=batch_size,
        calls=calls_near(how.sampling(model), how.cascade),
        weigh=lambda item: tiles_in(model, item.path, scale),
        measure=partial(consistency_error, scale=scale) if how.consistency else own_figures,
    )
    return replace(
        job,
        steps=how.cascade * how.steps,
        workers=max(1, min(job.workers, files or job.workers)),
        capacity=lambda shape, size: max(1, size // tiles_of(model, shape, scale)),
    )


def read_small(item: Item, channels: int, scale: int) -> Reading:
    """One square of a picture's colors, or one for each of them where the model has one channel."""
    picture = read_picture(item.path)
    if picture.frame.header:
        raise ImageError("is a DICOM file, which is not enlarged: what its header says of distances would be wrong")
    check_result(picture.frame, scale)
    planes = np.stack([to_float(plane) for plane in np.moveaxis(picture.pixels, -1, 0)])
    squares = planes[:, None] if channels == 1 else with_channels(planes, channels)[None]
    return Reading(torch.from_numpy(squares), picture.frame)


def check_result(frame: Frame, scale: int) -> None:
    """Refuse what would become too large for a file or for the memory."""
    height, width = frame.height * scale, frame.width * scale
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        most = f"{MAX_PIXELS:,} pixels or {MAX_SIDE} of a side"
        raise ImageError(f"would have {width} x {height} pixels, more than {most}: lower the scale or cut it")


def enlarged_file(results: Tensor, reading: Reading, scale: int, keep_metadata: bool, marking: Marking) -> bytes:
    """The result as a file in the format of its original."""
    frame = reading.frame
    height, width = frame.height * scale, frame.width * scale
    alpha = frame.alpha
    if alpha is not None:
        alpha = np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))
    larger = replace(frame, height=height, width=width, alpha=alpha)
    return encode(Picture(as_pixels(results, frame), larger), keep_metadata, IN_PART, marking)


def as_pixels(squares: Tensor, frame: Frame) -> NDArray[Any]:
    """The squares of one picture, (1, 1 or 3, ...) or (3, 1, ...), as its pixels (height, width, channels)."""
    planes = with_channels(squares.flatten(0, 1).numpy(), frame.channels)
    return np.stack([to_integer(plane, frame.depth) for plane in planes], axis=-1)


def consistency_error(results: Results, reading: Reading, scale: int) -> dict[str, float]:
    """How far the result's pixels, shrunk, are from the image's, in its gray levels."""
    large, small = (
        torch.from_numpy(as_pixels(each, reading.frame).astype(np.float32))
        for each in (results.images, reading.squares)
    )
    shrunk = AreaDownsampling(scale).shrink(large.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    return {"consistency_error": (shrunk - small).abs().max().item()}


def enhance_folder(
    model: FrozenModel,
    source: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    keep_metadata: bool = False,
    **how: Any,
) -> Progress:
    """Enlarge every image below `source`, in `out`, under the same name.

    how: fields of `Enlargement`; the rest as for `enhance_job`. Returns the run's outcome; `failed` lists images that
    could not be done.
    """
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "keep_metadata": keep_metadata}
    job = enhance_job(model, Enlargement(**how), files=len(list_folder(Path(source)).items), **options)
    return run(job, Path(out), plan_run(job, Path(source), Path(out), resume))
