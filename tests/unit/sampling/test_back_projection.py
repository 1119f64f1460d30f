"""Downsampling by area and its ways back: exact, smooth, and inside the range where a file needs it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import block_reduce

from nearfar.sampling.back_projection import AreaDownsampling, enlargement

scales = st.integers(2, 8)
lengths = st.integers(1, 12)
few = settings(max_examples=12, deadline=None)


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@given(scales, lengths, lengths)
@few
def test_shrinking_is_the_mean_over_squares(scale, height, width):
    images = drawn(2, 3, height * scale, width * scale)
    expected = block_reduce(images.numpy(), (1, 1, scale, scale), np.mean)
    close(AreaDownsampling(scale).shrink(images), torch.from_numpy(expected))


@given(scales, lengths, lengths)
@few
def test_an_enlargement_and_a_projection_shrink_to_what_was_given(scale, height, width):
    area, small = AreaDownsampling(scale), drawn(2, 3, height, width)
    close(area.shrink(area.enlarge(small)), small)
    projected = area.project(drawn(2, 3, height * scale, width * scale, seed=1), small)
    close(area.shrink(projected), small)
    close(area.project(projected, small), projected)


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_an_enlargement_is_smooth_and_keeps_what_is_even_or_a_slope(scale):
    area = AreaDownsampling(scale)
    close(area.enlarge(torch.full((1, 1, 5, 7), 0.3)), torch.full((1, 1, 5 * scale, 7 * scale), 0.3))
    slope = torch.linspace(-1, 1, 32 * scale).expand(1, 1, 2 * scale, -1)
    middle = (..., slice(12 * scale, 20 * scale))  # far from the edges, where bicubic interpolation has to guess
    torch.testing.assert_close(area.enlarge(area.shrink(slope))[middle], slope[middle], rtol=0, atol=1e-4)
    step = enlargement(16, scale)[:, 8:].sum(1).float()
    assert step.diff().abs().max() < 1.3 / scale * 1.6  # squares repeated would jump by 1


@given(scales, lengths, lengths, st.sampled_from([1.0, 1.7, 4.0]))
@few
def test_settling_stays_in_range_and_shrinks_to_what_was_given(scale, height, width, excess):
    area, small = AreaDownsampling(scale), drawn(2, 3, height, width)
    small[0] = small[0].sign()  # black and white: every pixel of the square is settled by its mean
    settled = area.settle(excess * drawn(2, 3, height * scale, width * scale, seed=1), small)
    assert settled.abs().max() <= 1
    close(area.shrink(settled), small)


def test_settling_changes_nothing_where_nothing_is_to_be_done():
    area, images = AreaDownsampling(4), drawn(2, 3, 8, 8)
    close(area.settle(images, area.shrink(images)), images)


def test_rounding_to_gray_levels_moves_a_mean_by_less_than_half_a_level():
    area, small = AreaDownsampling(2), drawn(1, 3, 16, 16).add(1).mul(127.5).round()
    settled = area.settle(drawn(1, 3, 32, 32, seed=1) * 3, small / 127.5 - 1)
    assert (area.shrink(settled.add(1).mul(127.5).round()) - small).abs().max() <= 0.5
