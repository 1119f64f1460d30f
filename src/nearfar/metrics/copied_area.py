"""How much of an image is copied: the share of its area that is nearer to a fitted image than real images are.

An image is cut into overlapping patches of 8, 16 and 24 of 32 pixels a side. Each is held against the patches of all
fitted images at its place and up to a quarter of a patch away, turned and mirrored where the domain allows it. The
distance of patches `a` and `b`, whose means are taken off channel by channel, is normalized by local contrast:

    d = 1 - (2 a . b + c) / (a . a + b . b + c)

which is one less the contrast and structure of SSIM: 0 for equal patches, about 1 for unrelated ones, 2 for opposite
ones; c, of one gray level a number, keeps flat patches from being told apart by rounding. It counts in units of the
fitted patch's own distance to the nearest other image: to be near a patch that has its like everywhere says nothing.

A patch is copied if the least of these is below what 5 % of the patches of real images have that were not fitted, and
the copied area is the share of copied patches: 0.05 for real images, 1 for copies. Images are brought to 32 pixels a
side, larger ones by averaging, so that the cost does not grow with their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, pad

from nearfar.tensors import Images

SIDE, CELL = 32, 4
SCALES = (8, 16, 24)
PATCHES = sum(((SIDE - size) // CELL + 1) ** 2 for size in SCALES)
QUANTILE, FLAT = 0.05, 2 / 255
AT_ONCE = 16
"""Images whose distances are in memory at once."""

Turned = Callable[[Tensor], Sequence[Tensor]]
"""Images, or maps of their patches, in all ways in which a copy may lie, first as they are."""
Some = Float[Tensor, "_ channel height width"]
Small = Float[Tensor, "_ channel _ _"]
Maps = Mapping[int, Float[Tensor, "_ 1 _ _"]]
"""For each scale a number of the patch at each place, every 4 pixels."""
Shares = Float[Tensor, "batch scales"]


def as_it_is(images: Tensor) -> list[Tensor]:
    return [images]


@dataclass(frozen=True, eq=False)
class CopiedArea:
    """What images are held against. fitted: all that may be copied, as `small` gives them. isolation: the distance of
    each of their patches to those of the nearest other image. thresholds: one for each of `SCALES`."""

    fitted: Small
    isolation: Maps
    thresholds: Sequence[float]

    @classmethod
    def fit(cls, fitted: Some, turned: Turned = as_it_is, real: Some | None = None) -> CopiedArea:
        """From fitted images `(count, channel, height, width)` in [-1, 1], at least 3.

        real: images of the domain that were not fitted; unless given, every second fitted image is held against the
        others. Nothing is random.
        """
        if real is None:
            limits = cls.fit(fitted[::2], turned, fitted[1::2]).thresholds
            return cls(*bank(fitted, turned), limits)
        known = cls(*bank(fitted, turned), ())
        found = known.nearest(real)
        return cls(known.fitted, known.isolation, [found[size].quantile(QUANTILE).item() for size in SCALES])

    def nearest(self, images: Images) -> Maps:
        """Of each cell of 4 pixels a side: the least distance of the patches that hold it, in units of the isolation
        of what they are near to."""
        found = nearest_patches(small(images), self.fitted, self.isolation)
        return {size: least_around(away, size // CELL) for size, away in found.items()}

    def shares(self, images: Images) -> Shares:
        """The copied area of each image at each of `SCALES`, in [0, 1]."""
        found = self.nearest(images)
        below = [found[size] < limit for size, limit in zip(SCALES, self.thresholds, strict=True)]
        return torch.stack([one.double().mean((1, 2, 3)) for one in below], 1)

    def flat(self, count: int) -> Float[Tensor, "count places"]:
        """The isolation of the first `count` images' patches, a row for each, as float16 holds it."""
        return torch.cat([self.isolation[size][:count].flatten(1) for size in SCALES], 1).half()

    @classmethod
    def from_flat(cls, fitted: Images, turned: Turned, flat: Tensor, thresholds: Sequence[float]) -> CopiedArea:
        """What `fit` gave, from the fitted images, `flat` and the thresholds."""
        places = [(SIDE - size) // CELL + 1 for size in SCALES]
        parts = zip(SCALES, places, torch.split(flat.float(), [side**2 for side in places], 1), strict=True)
        isolation = {size: torch.cat(list(turned(part.reshape(-1, 1, side, side)))) for size, side, part in parts}
        return cls(torch.cat(list(turned(small(fitted)))), isolation, thresholds)


def least_around(away: Tensor, wide: int) -> Tensor:
    """Of each cell the least of the patches that hold it; patches are `wide` cells wide."""
    return -max_pool2d(pad(-away, [wide - 1] * 4, value=-torch.inf), wide, 1)


def bank(fitted: Images, turned: Turned) -> tuple[Small, Maps]:
    """Fitted images in all ways, and the isolation of their patches."""
    ways = torch.cat(list(turned(small(fitted))))
    alone = nearest_patches(ways[: len(fitted)], ways, one_of=len(fitted))
    return ways, {size: torch.cat(list(turned(alone[size].half().float()))) for size in SCALES}


def small(images: Images) -> Small:
    """Images of 32 pixels a side, each without its own mean color, which no distance of patches sees."""
    images = images.float()
    images = images if images.shape[2:] == (SIDE, SIDE) else adaptive_avg_pool2d(images, SIDE)
    return images - images.mean((2, 3), keepdim=True)


def nearest_patches(
    images: Small, fitted: Small, isolation: Maps | None = None, one_of: int | None = None
) -> dict[int, Float[Tensor, "_ 1 _ _"]]:
    """The least distance of every patch of images to patches of the fitted ones, both as `small` gives them.

    isolation: the units of the fitted images' patches, 1 unless given. one_of: fitted images `i`, `i + one_of`, ... are
    image `i` itself, and do not count for it. Cost: a product of matrices for each of 65 shifts and 16 images.
    """
    itself = None if one_of is None else torch.arange(len(images))[:, None] == torch.arange(len(fitted)) % one_of
    least = {size: images.new_full((len(images), 1, *[(SIDE - size) // CELL + 1] * 2), torch.inf) for size in SCALES}
    for (down, right), sizes in shifts().items():
        (rows, rows_there), (columns, columns_there) = overlap(down), overlap(right)
        there = Patches.of(fitted[:, :, rows_there, columns_there], sizes)
        for size, start in product(sizes, range(0, len(images), AT_ONCE)):
            some = slice(start, start + AT_ONCE)
            here = Patches.of(images[some, :, rows, columns], [size])
            seen = least[size][some, 0, rows.start // CELL :, columns.start // CELL :]
            seen = seen[:, : here.squares[size].shape[0], : here.squares[size].shape[1]]
            units = None if isolation is None else placed(isolation[size], rows, columns, here.squares[size])
            away = least_distance(here, there, size, units, None if itself is None else itself[some])
            torch.minimum(seen, away, out=seen)
    return least


def shifts() -> dict[tuple[int, int], list[int]]:
    """Up to a quarter of a patch by eighths, down and to the right, and the sizes of patches that are shifted so."""
    found: dict[tuple[int, int], list[int]] = {}
    for size in SCALES:
        steps = range(-(size // 4), size // 4 + 1, size // 8)
        for shift in product(steps, steps):
            found.setdefault(shift, []).append(size)
    return found


def overlap(shift: int) -> tuple[slice, slice]:
    """The pixels along a side, in whole cells, that a shift leads to others of the image, and these."""
    first, last = -(-max(0, -shift) // CELL) * CELL, (SIDE - max(0, shift)) // CELL * CELL
    return slice(first, last), slice(first + shift, last + shift)


def placed(maps: Tensor, rows: slice, columns: slice, like: Tensor) -> Tensor:
    """Numbers of the patches of `like`, which begin at these pixels: `(rows, columns, 1, fitted)`."""
    there = maps[:, :, rows.start // CELL :, columns.start // CELL :]
    return there[:, :, : like.shape[0], : like.shape[1]].permute(2, 3, 1, 0)


@dataclass(frozen=True, eq=False)
class Patches:
    """Cells of images, and of their patches of each size, one a cell: means by channel times the size, and the squared
    length of what is left without these. All are `(rows, columns, images, ...)`."""

    cells: Tensor
    means: Mapping[int, Tensor]
    squares: Mapping[int, Tensor]

    @classmethod
    def of(cls, images: Images, sizes: Sequence[int]) -> Patches:
        cells = images.unfold(2, CELL, CELL).unfold(3, CELL, CELL).permute(2, 3, 0, 1, 4, 5).flatten(4).contiguous()
        total, square = cells.sum(4), cells.square().sum((3, 4))
        means = {size: windows(total, size) / size for size in sizes}
        squares = {size: (windows(square, size) - means[size].square().sum(3)).clamp(min=0) for size in sizes}
        return cls(cells.flatten(3), means, squares)


def windows(cells: Tensor, size: int) -> Tensor:
    """Sums over squares of cells, `size` pixels wide, in the first two dimensions."""
    for dimension in (0, 1):
        count = cells.shape[dimension] - size // CELL + 1
        added = cells.narrow(dimension, 0, count).clone()
        for start in range(1, size // CELL):
            added += cells.narrow(dimension, start, count)
        cells = added
    return cells


def least_distance(
    here: Patches, there: Patches, size: int, units: Tensor | None, itself: Bool[Tensor, "batch fitted"] | None
) -> Float[Tensor, "batch rows columns"]:
    """Of each patch, to those of the same place, in their units."""
    shared = windows(here.cells @ there.cells.mT, size).sub_(here.means[size] @ there.means[size].mT)
    floor = FLAT**2 * here.means[size].shape[-1] * size**2
    squares = here.squares[size][..., None] + (there.squares[size][..., None, :] + floor)
    away = 1 - shared.mul_(2).add_(floor).div_(squares)
    away = away if units is None else away.clamp_(min=0).div_(units.clamp(min=1e-6))
    away = away if itself is None else away.masked_fill_(itself, torch.inf)
    return away.amin(-1).permute(2, 0, 1)
