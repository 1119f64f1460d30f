"""Large images piece by piece: overlapping tiles, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from nearfar.tensors import Images

OVERLAP = 0.25
"""Share of a tile that it has in common with the next one."""


def tiled(function: Callable[[Tensor], Tensor], images: Images, tile: int, scale: Fraction = Fraction(1)) -> Tensor:
    """`function` of images, tile by tile where they are longer than `tile`, the overlaps blended.

    function: (batch, channel, height, width) -> (batch, any, height * scale, width * scale). Weights fall toward a
    tile's edge, so a function that looks at nothing beyond its pixel is reproduced. Cost: a call for each tile; the
    memory of a call follows the tile.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= tile:
        return function(images)
    corners = product(starts(height, tile, scale.denominator), starts(width, tile, scale.denominator))
    pieces = [(y, x, function(images[..., y : y + tile, x : x + tile])) for y, x in corners]
    first = pieces[0][2]
    total = first.new_zeros(*first.shape[:2], int(height * scale), int(width * scale))
    weights = torch.zeros_like(total[:1, :1])
    for y, x, piece in pieces:
        rows, columns = (
            slice(int(at * scale), int(at * scale) + n) for at, n in zip((y, x), piece.shape[-2:], strict=True)
        )
        total[..., rows, columns] += piece * pyramid(piece)
        weights[..., rows, columns] += pyramid(piece)
    return total / weights


def starts(length: int, tile: int, multiple: int) -> list[int]:
    """Where tiles begin along one side: evenly, at multiples of `multiple`, the last tile ending at the end."""
    room = (length - tile) // multiple
    if room <= 0:
        return [0]
    gaps = -(-room // max(1, int(tile * (1 - OVERLAP)) // multiple))
    return [round(gap * room / gaps) * multiple for gap in range(gaps + 1)]


def pyramid(piece: Tensor) -> Tensor:
    """A weight for each place of a tile, (height, width), highest in its middle."""
    rows, columns = (
        torch.minimum(distance, n - distance)
        for n in piece.shape[-2:]
        for distance in [torch.arange(n, device=piece.device, dtype=piece.dtype) + 0.5]
    )
    return rows[:, None] * columns[None, :]
