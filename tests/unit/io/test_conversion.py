"""Pictures in Python, handed to a model and given back in their own kind and size."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from nearfar.errors import UsageError
from nearfar.io.conversion import as_images, as_pil_images, hand_over
from nearfar.tensors import ImageContract

COLOR, GRAY = ImageContract(8, 3), ImageContract(8, 1)


def drawn(mode, size=(12, 10)):
    """Pixels of every value, in a mode."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels, "RGBA" if mode == "RGBA" else None).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("contract", [COLOR, GRAY], ids=["color", "gray"])
def test_pil_images_come_back_in_their_mode_and_size(mode, contract):
    images, back = as_images(drawn(mode), contract)
    assert images.shape == (1, contract.channels, 8, 8)
    assert (back(images).mode, back(images).size) == (mode, (12, 10))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_an_image_of_the_models_size_comes_back_equal(mode):
    image = drawn(mode, (8, 8))
    images, back = as_images(image, GRAY if mode in ("L", "I;16") else COLOR)
    assert np.array_equal(np.asarray(back(images)), np.asarray(image))


def test_a_list_gives_a_list_each_of_its_kind():
    given = [drawn("RGB"), np.zeros((5, 7), np.uint8), np.zeros((6, 4, 3), np.uint8)]
    images, back = as_images(given, COLOR)
    first, second, third = back(images)
    assert first.size == (12, 10)
    assert (second.shape, third.shape) == ((5, 7), (6, 4, 3))


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4), (2, 9, 7, 3)])
def test_arrays_of_8_bits_come_back_in_their_shape(shape):
    images, back = as_images(np.full(shape, 200, np.uint8), COLOR)
    again = back(images)
    assert (again.shape, again.dtype) == (shape, np.uint8)
    assert np.array_equal(again, np.full(shape, 200, np.uint8))


def test_arrays_of_floats_are_the_models_images():
    images, back = as_images(np.zeros((2, 3, 8, 8)), COLOR)
    assert images.dtype == torch.float32
    assert (back(images).dtype, back(images).shape) == (np.float32, (2, 3, 8, 8))


def test_a_tensor_is_what_it_is():
    given = torch.zeros(2, 3, 8, 8)
    images, back = as_images(given, COLOR)
    assert images is given
    assert back(images) is given


def test_a_turned_photograph_comes_back_upright():
    image = drawn("RGB")
    image.getexif()[ExifTags.Base.Orientation] = 6
    images, back = as_images(image, COLOR)
    assert back(images).size == (10, 12)


def test_enlarged_pictures_keep_their_kind():
    def twice(images):
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)

    made = hand_over([drawn("RGBA"), np.zeros((3, 5), np.uint8)]).enlarged(3, twice)
    assert (made[0].mode, made[0].size, made[1].shape) == ("RGBA", (24, 20), (6, 10))


def test_images_as_pil_have_their_own_size_or_that_of_originals():
    assert as_pil_images(torch.zeros(2, 1, 8, 8))[1].size == (8, 8)
    assert as_pil_images(torch.zeros(1, 3, 8, 8), drawn("RGBA"))[0].mode == "RGBA"
    with pytest.raises(UsageError, match="like must be 2 pictures, one for each image, got 1"):
        as_pil_images(torch.zeros(2, 3, 8, 8), drawn("L"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("a.png", r"images must be a tensor .*, got str: open it with PIL.Image.open"),
        ([], "images must be a tensor .*, got none"),
        ([drawn("L"), 3], "image 2 of 2 must be .*, got int"),
        (None, "images must be .*, got NoneType"),
        (np.zeros((3, 3), np.int64), r"images must be .*, got int64 \(3, 3\)"),
        (np.zeros((3, 3, 7), np.uint8), r"images must be \(height, width\), .*, got uint8 \(3, 3, 7\)"),
        (np.zeros((0, 3), np.uint8), "images must be"),
        (drawn("L").convert("F"), "images must have 8 bits a channel, or 16 bits of gray, got mode F: convert"),
        (np.zeros((1, 3, 9, 9)), r"images must be \(batch, 3, 8, 8\), got \(1, 3, 9, 9\)"),
        (np.full((1, 3, 8, 8), 2.0), r"images must lie in \[-1, 1\]"),
        (
            torch.full((1, 3, 8, 8), 255, dtype=torch.uint8),
            r"images must be floats in .*, got torch.uint8: divide",
        ),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        as_images(given, COLOR)
