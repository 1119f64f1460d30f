"""Regions of pictures: what is cropped comes back in its place, softly, and nothing else moves."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from nearfar.errors import UsageError
from nearfar.io import regions as crops
from nearfar.io.regions import (
    FACE_LANDMARKS,
    Region,
    blend,
    box_region,
    coverage,
    crop,
    face_landmarks,
    face_region,
    from_linear,
    match_colors,
    paste,
    sample,
    square_places,
    to_linear,
    widen,
)


def smooth(height, width, channels=3, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return pixels[..., :channels].copy()


def square_at(*numbers, **options):
    return Region(*map(float, numbers), **options)


def face_at(x, y, side, tilt):
    """Landmarks of a face that fills a square as the model knows faces."""
    places = (FACE_LANDMARKS - (0.5 + 0.5j)) * side * np.exp(1j * tilt) + complex(x, y)
    return np.stack([places.real, places.imag], axis=1)


def test_a_square_of_the_models_size_passes_without_loss():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    region = square_at(20, 18, 16, 0.8, 0.8)
    square = crop(pixels, region, 16, 3)
    expected = torch.from_numpy(pixels[10:26, 12:28]).permute(2, 0, 1)
    assert ((square + 1) * 127.5 - expected).abs().max() < 0.02
    assert (paste(pixels, square, region) == pixels).all()


@pytest.mark.parametrize("tilt", [0.0, 0.4, -1.3, 3.0])
@pytest.mark.parametrize(("x", "y"), [(60.3, 50.8), (10.0, 8.0), (115.0, 95.0)])
def test_what_comes_back_unchanged_leaves_a_smooth_picture_as_it_was(tilt, x, y):
    pixels = smooth(100, 120)
    region = square_at(x, y, 30.7, 0.5, 0.5, 0.1, tilt)
    assert np.abs(paste(pixels, crop(pixels, region, 64, 3), region).astype(int) - pixels).max() <= 2


def test_nothing_outside_the_mask_is_touched_and_all_inside_is_new():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    region = box_region(40.0, 30.0, 20.0, 16.0, margin=0.25)
    result = paste(pixels, torch.ones(3, 8, 8), region)
    assert (result[30:46, 40:60] == 255).all()  # the box
    rows, columns = np.nonzero((result != pixels).any(axis=2))
    assert rows.min() >= 25
    assert rows.max() < 51
    assert columns.min() >= 35
    assert columns.max() < 65


def test_a_crop_is_turned_as_scipy_turns_it():
    pixels = smooth(90, 90, 1)
    region = square_at(45.2, 41.7, 40, 1, 1, tilt=0.7)
    line = (np.arange(40) + 0.5) - 20
    u, v = np.meshgrid(line, line)
    x = region.x + u * math.cos(0.7) - v * math.sin(0.7)
    y = region.y + u * math.sin(0.7) + v * math.cos(0.7)
    expected = map_coordinates(pixels[..., 0].astype(float), [y - 0.5, x - 0.5], order=3, mode="mirror")
    found = (crop(pixels, region, 40, 1)[0].numpy() + 1) * 127.5
    assert np.abs(found - expected).max() < 1.5


def test_shrinking_averages_what_the_model_cannot_see():
    pixels = np.zeros((64, 64, 1), np.uint8)
    pixels[:, ::2] = 255
    inner = crop(pixels, square_at(32, 32, 64, 1, 1), 16, 1)[0, 4:-4, 4:-4]
    assert inner.abs().max() < 0.02  # stripes of one pixel become gray, not stripes of another width


def test_a_region_beyond_the_border_sees_the_mirrored_picture():
    pixels = smooth(40, 40)
    square = crop(pixels, square_at(0, 20, 20, 1, 1), 20, 3)
    assert torch.allclose(square[:, :, :10], square[:, :, 10:].flip(-1), atol=1e-5)


def test_gray_pictures_and_deep_ones_keep_their_kind():
    for pixels in (smooth(40, 40, 1), smooth(40, 40, 1).astype(np.uint16) * 257):
        region = square_at(20, 20, 16, 0.5, 0.5)
        square = crop(pixels, region, 16, 3)
        assert square.shape == (3, 16, 16)
        result = paste(pixels, square, region)
        assert result.dtype == pixels.dtype
        assert (result == pixels).all()


def test_large_regions_are_read_in_little_memory_as_well(monkeypatch):
    pixels = smooth(400, 500)
    region = square_at(260.3, 190.8, 330, 0.5, 0.5, 0.1, 0.4)
    square = crop(pixels, region, 32, 3)
    whole = paste(pixels, square.neg(), region)
    monkeypatch.setattr(crops, "FINEST", 100)
    seen = []
    monkeypatch.setattr(crops, "sample", lambda planes, *rest: seen.append(planes.shape) or sample(planes, *rest))
    assert (crop(pixels, region, 32, 3) - square).abs().max() < 0.02
    assert np.abs(paste(pixels, square.neg(), region).astype(int) - whole).max() <= 3
    assert max(max(shape) for shape in seen) < 150


def test_strips_make_the_same_picture(monkeypatch):
    pixels, region = smooth(100, 120), square_at(60.3, 50.8, 50.7, 0.5, 0.5, 0.1, 0.4)
    whole = paste(pixels, torch.ones(3, 8, 8), region)
    monkeypatch.setattr(crops, "STRIP", 7)
    assert np.abs(paste(pixels, torch.ones(3, 8, 8), region).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("tilt", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_a_face_is_framed_by_its_landmarks(tilt, margin):
    region = widen(face_region(face_at(70, 60, 50, tilt)), margin)
    assert (region.x, region.y, region.tilt) == pytest.approx((70, 60, tilt))
    assert region.side == pytest.approx(50 * (1 + 2 * margin))
    # Where the landmarks lie in the square, turned and scaled into the picture, is where they were.
    own = face_landmarks(region) @ (1, 1j)
    places = (own - (0.5 + 0.5j)) * region.side * np.exp(1j * tilt) + (70 + 60j)
    assert places == pytest.approx(face_at(70, 60, 50, tilt) @ (1, 1j))


def test_the_mask_is_whole_on_its_part_and_gone_at_the_squares_border():
    for region in (square_at(0, 0, 1, 0.12, 0.16, 0.3), widen(square_at(0, 0, 1, 1.0, 0.4), 0.25)):
        mask = coverage(region, square_places(200))
        assert mask[100, 100] == 1
        assert mask[0].max() < 2e-3
        assert mask[:, 0].max() < 2e-3
        assert mask.diff(dim=1).abs().max() < 0.063  # no step: 1.5 / 200 / 0.12, the share in which it fades


def test_a_box_without_a_margin_is_refused():
    with pytest.raises(UsageError, match="margin must be above 0, got 0"):
        box_region(0.0, 0.0, 4.0, 4.0, 0.0)


def test_half_of_white_and_half_of_black_is_the_gray_of_half_the_light():
    white, black = torch.ones(1, 1, 1), -torch.ones(1, 1, 1)
    mixed = blend(black, white, torch.full((1, 1), 0.5))
    assert (mixed.item() + 1) / 2 == pytest.approx(1.055 * 0.5 ** (1 / 2.4) - 0.055, abs=1e-6)  # 0.735, level 188


def test_light_and_back_is_the_identity():
    values = torch.linspace(-1, 1, 65536)[None, None]
    assert (from_linear(to_linear(values)) - values).abs().max() < 2e-6


def test_colors_are_matched_where_the_mask_fades():
    generator = torch.Generator().manual_seed(0)
    old = torch.rand(3, 32, 32, generator=generator) - 0.5
    gains = torch.tensor([0.8, 1.0, 1.2])[:, None, None]
    region = square_at(0, 0, 1, 0.12, 0.16, 0.3)
    new = from_linear(to_linear(old) * gains)
    assert (match_colors(new, old, region) - old).abs().max() < 0.01
    inside = coverage(region, square_places(32)) == 1
    painted = torch.where(inside, 0.9, old)
    assert torch.equal(match_colors(new, painted, region), match_colors(new, old, region))  # what is lost has no say
