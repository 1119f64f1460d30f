"""Boxes from annotations: in pixels or in shares, of COCO and YOLO files, and what is refused."""

import json

import pytest

from nearfar.data.boxes import Box, digest, read_boxes
from nearfar.errors import ImageError, UsageError


@pytest.fixture
def source(tmp_path):
    """Two images with YOLO's labels; only their names matter here."""
    for name in ("images/a.png", "images/b.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.25 0.2 0.1\n0 0.1 0.2 0.5 0.4 0.3 0.9\n")
    (tmp_path / "data.yaml").write_text("names: [plate, car]\n")
    return tmp_path


NAMES = ("images/a.png", "images/b.png")


def coco(annotations):
    images = [{"id": 1, "file_name": "images/b.png"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cell"}]})


def test_yolos_boxes_and_polygons_are_shares_of_the_picture(source):
    car, plate = read_boxes(source, NAMES)["images/a.png"]
    assert (car.kind, plate.kind) == ("car", "plate")
    assert car.within(100, 200) == pytest.approx((80, 20, 40, 10))
    assert plate.within(100, 200) == pytest.approx((20, 20, 80, 70))  # what encloses the three corners


def test_a_coco_file_elsewhere_takes_the_place_of_what_is_in_the_folder(source, tmp_path):
    path = tmp_path / "cells.json"
    path.write_text(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 5, 6]}]))
    found = read_boxes(source, NAMES, path)
    assert found == {"images/b.png": [Box(3.0, 4.0, 5.0, 6.0, "cell")]}
    assert digest(found) != digest(read_boxes(source, NAMES, path, ["cell"]) | {"images/a.png": []})


def test_boxes_are_cut_at_the_border_and_must_cover_something():
    assert Box(-5.0, 90.0, 20.0, 20.0).within(100, 200) == (0, 90, 15, 10)
    for box in (Box(200.0, 0.0, 5.0, 5.0), Box(5.0, 5.0, 0.0, 5.0), Box(5.0, 5.0, float("nan"), 5.0)):
        with pytest.raises(ImageError, match="covers nothing of 200 x 100 pixels: mend the annotation"):
            box.within(100, 200)


def test_annotations_of_a_picture_of_another_shape_fail_that_image(source, tmp_path):
    content = json.loads(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 5, 6]}]))
    content["images"][0] |= {"width": 200, "height": 100}
    (tmp_path / "cells.json").write_text(json.dumps(content))
    (box,) = read_boxes(source, NAMES, tmp_path / "cells.json")["images/b.png"]
    assert box.within(100, 200) == (3, 4, 5, 6)
    for height, width in ((200, 100), (50, 100)):  # turned by EXIF, or resized
        with pytest.raises(ImageError, match=f"are of 200 x 100 pixels, but upright it has {width} x {height}"):
            box.within(height, width)


def test_only_classes_that_are_there_can_be_chosen(source):
    assert [len(each) for each in read_boxes(source, NAMES, kinds=["car"]).values()] == [1]
    with pytest.raises(UsageError, match="no box is of class 'dog': choose from car, plate"):
        read_boxes(source, NAMES, kinds=["dog"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (coco([{"id": 1, "image_id": 1, "category_id": 7}]), "annotation 1 needs a bbox of 4 numbers"),
        (coco([]).replace("]", ', {"id": 2, "file_name": "images/b.png"}]', 1), "names an image twice"),
        (coco([]).replace('"images/b.png"', "5"), "file_name must be text"),
        (coco([]), "holds no boxes of these images: name a file with --boxes"),
        (
            coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [40, 20, -5, 10]}]),
            r"annotation 1 of images/b\.png needs a bbox of 4 numbers: .*, got \[40, 20, -5, 10\]: mend or remove it",
        ),
        (
            coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, float("nan"), 1]}]),
            "needs a bbox of 4 numbers",
        ),
        (coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}]), "needs a bbox of 4 numbers"),
        ("{}", "must be a COCO file, with images and annotations"),
        ("[", "is not valid JSON"),
    ],
)
def test_files_without_usable_boxes_are_refused(source, tmp_path, content, sentence):
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=sentence):
        read_boxes(source, NAMES, path)


def test_a_flat_box_is_carried_over_and_a_file_that_is_not_there_is_said(source, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 0, 5]}]))
    assert read_boxes(source, NAMES, path)["images/b.png"] == [Box(3.0, 4.0, 0.0, 5.0, "cell")]
    with pytest.raises(UsageError, match=r"nosuch\.json is not there: name a COCO file with --boxes"):
        read_boxes(source, NAMES, tmp_path / "nosuch.json")
    with pytest.raises(UsageError, match=r"COCO and YOLO files below .* hold no boxes"):
        read_boxes(tmp_path / "labels", NAMES)


@pytest.mark.parametrize(
    "line", ["1 0.5 0.5 -0.2 0.1", "1 0.5 0.5 0.2 0", "1 1.5 0.5 0.2 0.1", "1 0.5 -0.1 0.2 0.1 0.9"]
)
def test_yolos_boxes_have_a_size_and_lie_in_the_picture(source, line):
    (source / "labels" / "a.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UsageError, match=r"labels/a\.txt line 2 must have its center in \[0, 1\]"):
        read_boxes(source, NAMES)


def test_lines_of_keypoints_are_refused(source):
    (source / "labels" / "a.txt").write_text("1 0.5 0.25 0.2 0.1 0.5 0.25 2\n")
    with pytest.raises(UsageError, match="keypoints are not read"):
        read_boxes(source, NAMES)
