"""Reading regions of a picture and putting results back, without a model."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.data.boxes import Box
from nearfar.errors import ImageError
from nearfar.io.listing import Item
from nearfar.io.regions import face_region
from nearfar.jobs.job import Results
from nearfar.jobs.regions import box_search, figures, picture_with, read_regions, upright
from nearfar.metrics.faces import FaceDetector
from nearfar.models.model import ImageContract

CONTRACT = ImageContract(8, 3)


@pytest.fixture
def item(tmp_path, smooth):
    smooth(0, (80, 60)).save(tmp_path / "x.png")
    return Item(tmp_path / "x.png", "x.png")


def read(item, *boxes, **options):
    return read_regions(item, box_search({"x.png": boxes}, **options), CONTRACT)


def test_small_regions_lie_over_large_ones_whatever_the_order_of_the_boxes(item):
    small, large = Box(30.0, 20.0, 10.0, 10.0), Box(10.0, 10.0, 40.0, 30.0)
    for boxes in ((small, large), (large, small)):
        reading = read(item, *boxes)
        assert [region.side for region in reading.context.regions] == [60, 15]
        outputs = torch.full((2, 3, 8, 8), 0.2)
        outputs[1] = reading.squares[1]
        found = np.asarray(Image.open(BytesIO(picture_with(outputs, reading, False)))).astype(int)
        before = np.asarray(Image.open(item.path)).astype(int)
        # The large one is one gray; in its midst lies the small one, still as it was read, to the model's resolution.
        assert np.ptp(found[12:18, 12:28], axis=(0, 1)).max() <= 1
        assert np.abs(found[22:28, 32:38] - before[22:28, 32:38]).max() < 30


def test_each_region_is_counted_with_what_was_done_to_it(item):
    reading = read(item, Box(30.0, 20.0, 4.0, 4.0), Box(10.0, 10.0, 40.0, 30.0))
    found = figures(Results(reading.squares + 0.2), reading)
    assert found == pytest.approx(
        {"regions": 2, "enlarged": 1, "least_side": 6, "least_score": 1, "psnr": 10 * np.log10(4 / 0.04)}
    )
    assert reading.reduced


def test_a_picture_without_regions_comes_out_as_it_is_where_that_is_allowed(item):
    reading = read(item, keep_unmatched=True)
    assert reading.squares.shape == (0, 3, 8, 8)
    found = Image.open(BytesIO(picture_with(reading.squares, reading, False)))
    assert (np.asarray(found) == np.asarray(Image.open(item.path))).all()
    assert figures(Results(reading.squares), reading) == {"regions": 0}


def test_a_picture_that_changes_meanwhile_fails(item, smooth):
    reading = read(item, Box(30.0, 20.0, 10.0, 10.0))
    smooth(1, (80, 60)).save(item.path)
    with pytest.raises(ImageError, match="was changed while it was processed: go on with --resume"):
        picture_with(reading.squares, reading, False)
    item.path.unlink()
    with pytest.raises(ImageError, match=r"was changed while it was processed \(x\.png is not there"):
        picture_with(reading.squares, reading, False)


class Sees:
    """A network that sees one face, at a place given in shares of whatever it is shown."""

    def __init__(self, x, y):
        self.place = np.array([x, y])

    def setInputSize(self, size):  # noqa: N802
        self.size = size[0]

    def detect(self, picture):
        points = self.place + np.array([[-0.1, -0.1], [0.1, -0.1], [0, 0], [-0.08, 0.1], [0.08, 0.1]])
        return None, np.array([[0, 0, 9, 9, *(points * self.size).flat, 0.9]], np.float32)


def test_a_second_look_that_sees_only_the_neighbor_does_not_take_it_instead(smooth):
    pytest.importorskip("cv2", reason="needs the extra 'faces'")
    pixels = np.asarray(smooth(0, (200, 200)))
    tilted = np.array([[85.0, 80], [110, 95], [95, 100], [80, 110], [105, 120]])
    first = face_region(tilted)
    assert upright(pixels, first, FaceDetector(Sees(0.85, 0.5), "stub")) == first
    again = upright(pixels, first, FaceDetector(Sees(0.5, 0.5), "stub"))
    assert again != first
    assert (again.x, again.y) == pytest.approx((first.x, first.y), abs=0.1 * first.side)
