"""fit and unfit over pictures of every shape: sizes, constants, identities, nothing of the original in the margins."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nearfar.io.fitting import FitMode, fit, unfit, window
from nearfar.io.pictures import Frame, Picture

MODES = st.sampled_from(FitMode)
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70)) | st.sampled_from([(1, 1), (1, 1000), (1000, 1), (3, 700)])
CHANNELS = st.sampled_from([1, 3])


@st.composite
def frames(draw, shapes=SHAPES):
    """Gray or color, 8 or (gray) 16 bits, as thin as it comes."""
    channels = draw(CHANNELS)
    depth = draw(st.sampled_from([8, 16])) if channels == 1 else 8
    return Frame(*draw(shapes), channels, depth, None, "PNG", {})


@st.composite
def pictures(draw, shapes=SHAPES):
    frame = draw(frames(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (frame.height, frame.width, frame.channels)
    return Picture(rng.integers(0, 2**frame.depth, shape, dtype=f"uint{frame.depth}"), frame)


def sides(frame, size, mode):
    """Height and width of what a model of this size is given of a picture."""
    longest = max(frame.height, frame.width)
    if mode is not FitMode.TILE or longest <= size:
        return size, size
    return max(size, frame.height), max(size, frame.width)


@given(pictures(), st.integers(1, 64), CHANNELS, MODES)
@settings(deadline=None)
def test_sizes_are_restored(picture, size, channels, mode):
    image = fit(picture, size, channels, mode)
    assert image.shape == (channels, *sides(picture.frame, size, mode))
    assert image.dtype == torch.float32
    assert image.abs().max() <= 1
    again = unfit(image, picture.frame, mode)
    assert again.pixels.shape == picture.pixels.shape
    assert again.pixels.dtype == picture.pixels.dtype


@given(frames(), st.integers(1, 64), CHANNELS, MODES, st.floats(0, 1))
@settings(deadline=None)
def test_constant_stays_constant(frame, size, channels, mode, share):
    level = round(share * (2**frame.depth - 1))
    shape = (frame.height, frame.width, frame.channels)
    picture = Picture(np.full(shape, level, dtype=f"uint{frame.depth}"), frame)
    image = fit(picture, size, channels, mode)
    expected = torch.full((channels, *sides(frame, size, mode)), 2 * level / (2**frame.depth - 1) - 1)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)  # float32 rounding of normalized weights
    np.testing.assert_array_equal(unfit(image, frame, mode).pixels, picture.pixels)


@given(pictures(st.just((24, 24))), MODES)
@settings(deadline=None)
def test_picture_of_the_models_size_is_untouched(picture, mode):
    image = fit(picture, 24, picture.frame.channels, mode)
    top = np.float32((2**picture.frame.depth - 1) / 2)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), picture.pixels.astype(np.float32) / top - 1)
    np.testing.assert_array_equal(unfit(image, picture.frame, mode).pixels, picture.pixels)


@given(pictures(st.tuples(st.integers(1, 24), st.integers(1, 24))))
@settings(deadline=None)
def test_pad_is_exact_when_the_long_side_has_the_models_size(picture):
    size = max(picture.frame.height, picture.frame.width)
    again = unfit(fit(picture, size, picture.frame.channels), picture.frame)
    np.testing.assert_array_equal(again.pixels, picture.pixels)


@given(pictures(), st.integers(1, 64))
@settings(deadline=None)
def test_tile_is_exact_for_every_picture_that_is_no_smaller_than_the_model(picture, size):
    assume(max(picture.frame.height, picture.frame.width) >= size)
    again = unfit(fit(picture, size, picture.frame.channels, FitMode.TILE), picture.frame, FitMode.TILE)
    np.testing.assert_array_equal(again.pixels, picture.pixels)


@given(st.integers(8, 48), st.integers(8, 48), st.integers(0, 48), st.floats(-1, 1), st.floats(-1, 1))
@settings(deadline=None)
def test_pad_returns_smooth_pictures_that_the_model_can_hold(height, width, more, across, down):
    """Half a wave has no detail that Lanczos could lose; 2 of 255 levels for rounding and ripple at the edges."""
    y, x = np.linspace(0, np.pi, height)[:, None], np.linspace(0, np.pi, width)[None]
    wave = (across * np.cos(x) + down * np.cos(y)) / 2
    picture = Picture(
        np.rint((wave[..., None] + 1) * 127.5).astype(np.uint8), Frame(height, width, 1, 8, None, "PNG", {})
    )
    again = unfit(fit(picture, max(height, width) + more, 1), picture.frame)
    assert np.abs(again.pixels.astype(int) - picture.pixels).max() <= 2


@given(frames(), st.integers(1, 32), MODES, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_output_depends_on_the_models_image_alone(frame, size, mode, seed):
    """`unfit` has the frame only; a constant image must give a constant output, margins included."""
    level = np.random.default_rng(seed).uniform(-1, 1)
    pixels = unfit(torch.full((frame.channels, size, size), level), frame, mode).pixels
    assert pixels.min() == pixels.max() == round((np.float32(level) + 1) * (2**frame.depth - 1) / 2)


@given(pictures(), st.integers(1, 32), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_cover_does_not_look_at_the_margins(picture, size, seed):
    """Other margins, same image for the model, hence the same output."""
    height, width, channels = picture.pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    noise = np.random.default_rng(seed).integers(0, 2**picture.frame.depth, picture.pixels.shape)
    other = noise.astype(picture.pixels.dtype)
    other[top : top + side, left : left + side] = picture.pixels[top : top + side, left : left + side]
    image = fit(picture, size, channels, FitMode.COVER)
    assert torch.equal(image, fit(Picture(other, picture.frame), size, channels, FitMode.COVER))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_window_is_numpys_symmetric_padding_and_its_own_inverse(height, width, more_rows, more_columns):
    plane = np.arange(height * width, dtype=np.float32).reshape(height, width)
    margins = [(more // 2, more - more // 2) for more in (more_rows, more_columns)]
    expected = np.pad(plane, margins, mode="symmetric")
    padded = window(plane, height + more_rows, width + more_columns)
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(window(padded, height, width), plane)
