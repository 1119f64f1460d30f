"""Reading regions of a picture and putting results back, without a model."""

from dataclasses import replace
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
from nearfar.tensors import ImageContract

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
    picture_with(reading.squares + 0.2, reading, False)
    found = figures(Results(reading.squares + 0.2), reading)
    assert found.pop("least_changed") > 0.9
    assert found == pytest.approx(
        {"regions": 2, "enlarged": 1, "least_side": 6, "least_score": 1, "psnr": 10 * np.log10(4 / 0.04)}
    )
    assert reading.reduced


@pytest.mark.parametrize("turn", [0.0, 90.0, 45.0, -30.0])
def test_the_whole_box_is_replaced_as_it_is_turned(tmp_path, turn):
    Image.new("L", (80, 60), 128).save(tmp_path / "x.png")
    box = Box(24.0, 25.0, 32.0, 10.0, turn=turn)
    reading = read_regions(Item(tmp_path / "x.png", "x.png"), box_search({"x.png": [box]}), CONTRACT)
    content = picture_with(torch.full((1, 3, 8, 8), -0.9), reading, False)
    changed = np.asarray(Image.open(BytesIO(content))) != 128
    x, y = np.meshgrid(np.arange(80) + 0.5 - 40, np.arange(60) + 0.5 - 30)
    angle = np.radians(turn)  # clockwise, y downward
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert changed[(abs(along) < 16) & (abs(across) < 5)].all()
    assert not changed[(abs(along) > 24) | (abs(across) > 24)].any()
    assert reading.context.changed == [1.0]


@pytest.mark.parametrize("size", [0.3, 1.2])
def test_a_box_between_the_centers_of_pixels_is_checked_by_what_it_reaches(item, size):
    reading = read(item, Box(30.05, 20.05, size, 1.4))
    picture_with(torch.full_like(reading.squares, 0.9), reading, False)
    assert reading.context.changed[0] > 0.5


@pytest.mark.parametrize("stays", [0.0, 0.6])
def test_a_box_whose_inside_stays_fails_its_image(item, stays):
    reading = read(item, Box(30.0, 20.0, 10.0, 10.0), Box(5.0, 5.0, 8.0, 8.0))
    outputs = reading.squares + 0.4
    outputs[1, :, int(8 * stays) :] = reading.squares[1, :, int(8 * stays) :]
    if stays:  # the larger part of it changed
        picture_with(outputs, reading, False)
        assert 0.5 < min(reading.context.changed) <= max(reading.context.changed) <= 1
    else:
        with pytest.raises(ImageError, match=r"around \(9, 9\) stayed: \d+% of it changed, at least 50% must"):
            picture_with(outputs, reading, False)


def turned_by_exif(path, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size, (90, 120, 60)).save(path, exif=exif)
    return Item(path, "x.png")


@pytest.mark.parametrize(
    ("orientation", "size", "shape", "relative"),
    [
        (3, (80, 60), (60.0, 80.0), False),  # stored and upright are of one shape
        (2, (80, 60), None, False),
        (6, (80, 60), None, True),  # YOLO tells no shape
        (8, (60, 60), (60.0, 60.0), False),
        (6, (80, 60), (60.0, 80.0), False),  # of the stored pixels
    ],
)
def test_boxes_that_may_be_of_the_stored_pixels_fail_their_image_even_if_unmatched_ones_are_kept(
    tmp_path, orientation, size, shape, relative
):
    item = turned_by_exif(tmp_path / "x.png", orientation, size)
    box = Box(0.1, 0.1, 0.3, 0.3, relative=True) if relative else Box(5.0, 5.0, 20.0, 20.0, shape=shape)
    sentence = "upright it has" if (orientation, size) == (6, (80, 60)) and shape else "give --boxes-upright if they"
    with pytest.raises(ImageError, match=sentence):
        read(item, box, keep_unmatched=True)
    upright = replace(box, upright=True)
    if "upright it" not in sentence:
        assert len(read(item, upright).squares) == 1


def test_a_shape_that_only_the_upright_picture_has_is_proof(tmp_path):
    item = turned_by_exif(tmp_path / "x.png", 6, (80, 60))
    (region,) = read(item, Box(5.0, 60.0, 20.0, 20.0, shape=(80.0, 60.0))).context.regions
    assert (region.x, region.y) == (15, 70)


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
