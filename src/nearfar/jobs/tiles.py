"""Jobs on pictures larger than the model, which sees them in overlapping tiles, at their own scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from nearfar.diffusion.solver import OnStep
from nearfar.io.listing import Item
from nearfar.jobs.job import Job, Results, Transform
from nearfar.jobs.run import is_out_of_memory
from nearfar.models.model import FrozenModel
from nearfar.sampling.enhancement import mirrored, tiles_of
from nearfar.sampling.tiling import over_tiles
from nearfar.tensors import Images

Made = TypeVar("Made")


def tiled_job(job: Job, model: FrozenModel, make: Callable[[FrozenModel], Transform], fixed: bool) -> Job:
    """A job that fits pictures with `FitMode.TILE`, on canvases.

    make: its transform with a model for canvases. fixed: whether so many tiles as the batch size go into a network
    call come what may; otherwise fewer where memory runs out. Memory besides the network's: some states of a canvas
    for each worker.
    """

    def transform(images: Images, items: Sequence[Item], on_step: OnStep) -> Results:
        height, width = images.shape[2:]
        canvases = mirrored(images, model, 1)

        def work(batch_size: int) -> Results:
            results = make(over_tiles(model, canvases, batch_size))(canvases, items, on_step)
            return replace(results, images=results.images[:, :, :height, :width])

        tiles = min(job.batch_size, len(images) * tiles_of(model, images.shape[1:], 1))
        return work(tiles) if fixed else halving(work, tiles)

    weigh = job.weigh
    return replace(
        job,
        transform=transform,
        weigh=lambda item: weigh(item) and tiles_in(model, item.path, 1),
        capacity=lambda shape, size: max(1, size // tiles_of(model, shape, 1)),
    )


def tiles_in(model: FrozenModel, path: Path, scale: int) -> int:
    """How many tiles a file gives, by its header; none where that cannot be read."""
    try:
        with Image.open(path) as picture:
            (width, height), colors = picture.size, len(picture.getbands())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    channels = model.image.channels
    return tiles_of(model, (channels, height, width), scale) * (min(3, colors) if channels == 1 else 1)


def halving(work: Callable[[int], Made], tiles: int) -> Made:
    """The work with as many tiles in one network call as the memory holds, from `tiles` down."""
    try:
        return work(tiles)
    except (RuntimeError, MemoryError) as error:
        if tiles == 1 or not is_out_of_memory(error):
            raise
    return halving(work, tiles // 2)
