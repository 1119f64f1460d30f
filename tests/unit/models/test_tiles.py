"""Tiles: what a function would have made of the whole picture is reproduced where it looks no further than its pixel.

A function that looks further errs near a tile's edge, where its weight is small; what that leaves is measured.
"""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from nearfar.models.model import OVERLAP, starts, tiled

TOLERANCE = 1e-6  # float32 rounding of a weighted mean of values in [-1, 1]

lengths = st.integers(1, 50)
tiles = st.integers(3, 24).map(lambda half: 2 * half)  # even, as an autoencoder's are
few = settings(max_examples=30, deadline=None)


def picture(height, width, channels=2, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.manual_seed(height * 100 + width)) * 2 - 1


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def identity(x):
    return x


def pointwise(x):
    """Another number of channels, and not linear."""
    return torch.cat([x.square(), x.sin(), x[:, :1] * x[:, 1:]], dim=1)


def larger(x):
    return functional.interpolate(x, scale_factor=2, mode="nearest")


def smaller(x):
    """Every 2x2 pixels by their mean, which is right only where the tiles begin at even places."""
    return functional.avg_pool2d(x, 2)


@given(lengths, lengths, tiles)
@few
@pytest.mark.parametrize("function", [identity, pointwise])
def test_a_function_of_each_pixel_is_reproduced(function, height, width, tile):
    x = picture(height, width)
    close(tiled(function, x, tile), function(x))


@given(st.integers(1, 25), st.integers(1, 25), tiles)
@few
@pytest.mark.parametrize(("function", "scale"), [(larger, Fraction(2)), (smaller, Fraction(1, 2))])
def test_a_function_that_changes_the_size_is_reproduced(function, scale, height, width, tile):
    x = picture(2 * height, 2 * width)
    close(tiled(function, x, tile, scale), function(x))


@given(lengths, lengths, tiles)
@few
def test_no_call_is_larger_than_a_tile_and_every_pixel_is_seen(height, width, tile):
    sizes, seen = [], []

    def watched(x):
        sizes.append(x.shape[-2:])
        seen.extend(x.flatten().tolist())
        return x

    numbered = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    tiled(watched, numbered, tile)
    assert all(max(size) <= tile for size in sizes)
    assert set(seen) == set(range(height * width))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (16, 3), (5, 16)])
def test_what_fits_into_a_tile_is_one_call_and_as_it_is(size):
    calls = []
    x = picture(*size)
    assert torch.equal(tiled(lambda x: calls.append(x.shape) or x / 3, x, 16), x / 3)
    assert calls == [x.shape]


@given(st.integers(1, 500), st.integers(1, 100), st.sampled_from([1, 2, 8]))
def test_tiles_begin_at_multiples_cover_the_side_and_overlap(length, tile, multiple):
    length, tile = length * multiple, tile * multiple
    begins = starts(length, tile, multiple)
    steps = [after - before for before, after in pairwise(begins)]
    assert begins[0] == 0
    assert begins[-1] == max(0, length - tile)
    assert all(begin % multiple == 0 for begin in begins)
    assert all(0 < step <= max(multiple, tile * (1 - OVERLAP)) for step in steps)


# Functions that look further


def blur(x):
    """The mean of 3x3 pixels, with zeros beyond the edge: wrong along every side of a tile, by up to a third."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1)


def share_left(tile):
    """Of an error in a tile's outermost pixels: their weight, 0.5, over that and the next tile's at this place."""
    return 0.5 / int(tile * OVERLAP)


def side_of(tile):
    """Of a picture that four tiles cover with the same overlap everywhere."""
    return tile + 3 * int(tile * (1 - OVERLAP))


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def edge_error(x, tile):
    return (tiled(blur, x, tile) - blur(x)).abs().max().item()


@pytest.mark.parametrize("tile", [16, 32, 48])
@pytest.mark.parametrize("make", [torch.ones, noise], ids=["white", "noise"])
def test_an_error_at_a_tiles_edge_is_blended_away(make, tile):
    # There the blur lacks a third of what it adds up; of both directions together two shares are left of that.
    assert blur(torch.ones(1, 1, tile, tile))[..., tile // 2, 0].item() == pytest.approx(2 / 3)
    assert 1e-3 < edge_error(make(1, 1, *[side_of(tile)] * 2), tile) <= 2 * share_left(tile) / 3


@pytest.mark.parametrize("tile", [16, 32, 48])
def test_a_slope_has_no_seam(tile):
    # A pixel of the ramp is `slope` more than the one before. Cut into pieces without overlap, the blur jumps at a
    # border by a third of what it adds up there; blended, by no more than what is left of that, from both tiles.
    side, slope = side_of(tile), 2 / (side_of(tile) - 1)
    ramp = torch.linspace(-1, 1, side).expand(1, 1, side, side)
    within = (..., slice(1, -1), slice(1, -1))
    blended = tiled(blur, ramp, tile)[within].diff(dim=-1)
    cut = torch.cat([blur(piece) for piece in ramp.split(tile, dim=-1)], dim=-1)[within].diff(dim=-1)
    assert (cut - slope).abs().max() > 0.15
    assert (blended - slope).abs().max() <= 2 * share_left(tile) / 3


def test_a_tile_that_ends_just_before_the_picture_does_not_show():
    tile, step = 32, 24
    assert edge_error(torch.ones(1, 1, tile, tile + step + 1), tile) <= 2 * share_left(tile) / 3
