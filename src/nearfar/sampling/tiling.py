"""A denoiser of one size for canvases of any size: overlapping tiles, their predictions averaged at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import profile_of
from nearfar.errors import UsageError
from nearfar.models.model import OVERLAP, FrozenModel
from nearfar.tensors import Images, Times

Tiles = Float[Tensor, "tiles channel rows columns"]
Place = tuple[int, int, int]
"""A tile: the number of its canvas, its first row and its first column."""


Grid = tuple[list[int], list[int]]
"""First rows and first columns of the tiles of one canvas."""

SHIFTS = (618.0339887, 754.8776662)
"""Times a step's time, without its whole part: how far its grid is shifted, in both directions (irrational ratios)."""


@dataclass(frozen=True)
class TiledDenoiser:
    """A denoiser that sees canvases of any size through tiles of its own (MultiDiffusion, arXiv 2302.08113).

    Where tiles overlap, their clean estimates are averaged, with weights that fall to nearly 0 at a tile's edge. Every
    time has a grid of its own, so that over the steps of a solver no place is always a tile's edge, or its middle,
    where a model of centered things would put one. All tiles of a canvas come from one noise and agree.
    tile: height and width that the denoiser takes. batch_size: tiles of all canvases that go into one network call;
    the last is filled up, so that the shape never changes.
    Cost: `ceil(canvases * tile_count(...) / batch_size)` network calls a use. Memory: one batch of tiles, and two
    canvases besides those handed over.
    """

    denoiser: Denoiser
    tile: tuple[int, int]
    batch_size: int

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def profile(self) -> Profile | None:
        return profile_of(self.denoiser)

    def __call__(self, x_t: Images, t: Times) -> Images:
        """The clean estimates of canvases no smaller than a tile, each with its own time."""
        if x_t.shape[2] < self.tile[0] or x_t.shape[3] < self.tile[1]:
            raise UsageError(f"canvases must be at least {self.tile}, got {tuple(x_t.shape[2:])}: pad them")
        grids = [grid_at(x_t.shape[2:], self.tile, time) for time in t.tolist()]
        places = [(number, y, x) for number, grid in enumerate(grids) for y, x in product(*grid)]
        total, window = torch.zeros_like(x_t), smooth_window(self.tile).to(x_t)
        for first in range(0, len(places), self.batch_size):
            group = places[first : first + self.batch_size]
            for place, estimate in zip(group, self.estimates(x_t, t, group), strict=False):
                self.cut(total, place).add_(estimate * window)
        for canvas, grid in zip(total, grids, strict=True):
            canvas.div_(total_weight(x_t.shape[2:], self.tile, grid).to(x_t))
        return total

    def estimates(self, x_t: Images, t: Times, group: list[Place]) -> Tiles:
        """Those of some tiles, in one network call of the fixed shape."""
        padded = group + group[-1:] * (self.batch_size - len(group))
        numbers = torch.tensor([number for number, *_ in padded])
        return self.denoiser(torch.stack([self.cut(x_t, place) for place in padded]), t[numbers])

    def cut(self, canvases: Tensor, place: Place) -> Tensor:
        """The view of one tile, (channel, rows, columns)."""
        number, y, x = place
        return canvases[number, :, y : y + self.tile[0], x : x + self.tile[1]]


def over_tiles(model: FrozenModel, canvases: Images, batch_size: int) -> FrozenModel:
    """The same model for images of the size of these, which is in whole latents and no smaller than its own.

    One noise field for the whole canvas. batch_size: tiles in one network call.
    """
    height, width = canvases.shape[2:]
    rows, columns = (side // model.latent_space.factor for side in (height, width))
    return replace(
        model,
        denoiser=TiledDenoiser(model.denoiser, model.latent_shape[1:], batch_size),
        image=replace(model.image, size=height, width=width),
        latent_shape=(model.latent_shape[0], rows, columns),
    )


def grid_at(canvas: tuple[int, ...], tile: tuple[int, int], time: float) -> Grid:
    """The tiles that cover a canvas at this time."""
    shifts = (time * shift % 1 for shift in SHIFTS)
    rows, columns = (
        first_places(length, side, shift) for length, side, shift in zip(canvas, tile, shifts, strict=True)
    )
    return rows, columns


def first_places(length: int, tile: int, shift: float) -> list[int]:
    """Where tiles begin along one side: one at each end, the others evenly between, from `shift` strides on."""
    room, stride = length - tile, max(1, int(tile * (1 - OVERLAP)))
    if room == 0:
        return [0]
    begins = [int(shift * stride) + number * stride for number in range(-1, -(-room // stride) + 1)]
    return [min(max(0, begin), room) for begin in begins]


def tile_count(canvas: tuple[int, ...], tile: tuple[int, int]) -> int:
    """How many tiles cover a canvas of this height and width, at whatever time."""
    rows, columns = grid_at(canvas, tile, 0.0)
    return len(rows) * len(columns)


def smooth_window(tile: tuple[int, int]) -> Float[Tensor, "rows columns"]:
    """The squared sine of both directions: the weight of a tile's places, nearly 0 at its edge."""
    rows, columns = (squared_sine(side) for side in tile)
    return rows[:, None] * columns


def squared_sine(side: int) -> Float[Tensor, " side"]:
    return ((torch.arange(side) + 0.5) * pi / side).sin().square()


def total_weight(canvas: tuple[int, ...], tile: tuple[int, int], grid: Grid) -> Float[Tensor, "rows columns"]:
    """What the windows of all tiles add up to at every place of a canvas."""
    rows, columns = (weight_along(*side) for side in zip(canvas, tile, grid, strict=True))
    return rows[:, None] * columns


def weight_along(length: int, side: int, begins: list[int]) -> Float[Tensor, " length"]:
    total = torch.zeros(length)
    for start in begins:
        total[start : start + side] += squared_sine(side)
    return total
