"""Boxes from annotations: in pixels or in shares, of COCO and YOLO files, and what is refused."""

import json

import pytest

from nearfar.data.boxes import Box, Told, digest, read_boxes
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
    car, plate = read_boxes(source, NAMES, told=Told(line_format="segment"))["images/a.png"]
    assert (car.kind, plate.kind) == ("car", "plate")
    assert car.within(100, 200) == pytest.approx((80, 20, 40, 10))
    assert plate.within(100, 200) == pytest.approx((20, 20, 80, 70))  # what encloses the three corners


def test_a_coco_file_elsewhere_takes_the_place_of_what_is_in_the_folder(source, tmp_path):
    path = tmp_path / "cells.json"
    path.write_text(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 5, 6]}]))
    found = read_boxes(source, NAMES, path)
    assert found == {"images/b.png": [Box(3.0, 4.0, 5.0, 6.0, "cell")]}
    assert digest(found) != digest(read_boxes(source, NAMES, path, Told(["cell"])) | {"images/a.png": []})


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
    boxes = read_boxes(source, NAMES, told=Told(["car"], "segment"))
    assert [len(each) for each in boxes.values()] == [1]
    with pytest.raises(UsageError, match="no box is of class 'dog': choose from car, plate"):
        read_boxes(source, NAMES, told=Told(["dog"], "segment"))


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
            "NaN is no number of JSON",
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
        read_boxes(tmp_path / "labels", ["images/c.png"])


@pytest.mark.parametrize(
    "line", ["1 0.5 0.5 -0.2 0.1", "1 0.5 0.5 0.2 0", "1 1.5 0.5 0.2 0.1", "1 0.5 -0.1 0.2 0.1 0.9"]
)
def test_yolos_boxes_have_a_size_and_lie_in_the_picture(source, line):
    (source / "labels" / "a.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UsageError, match=r"labels/a\.txt line 2 must have its center in \[0, 1\]"):
        read_boxes(source, NAMES)


BOX, SQUARE = "0 0.5 0.25 0.2 0.1", "0 0.4 0.2 0.6 0.2 0.6 0.3 0.4 0.3"
"""The same place as a center and a size, and by its corners."""
FIVE, SEVENTEEN = " 0.5 0.3" * 5, " 0.5 0.3 2" * 17
POSE = "kpt_shape: [{}, {}]\n"


def yolo(source, line, config="", **told):
    (source / "labels" / "a.txt").write_text(f"{BOX}\n\n{line}\n")
    (source / "data.yaml").write_text(f"names: [face]\n{config}")
    return read_boxes(source, NAMES, told=Told(**told))["images/a.png"]


@pytest.mark.parametrize(
    ("line", "config", "given"),
    [
        (BOX, "", ""),
        (BOX + FIVE, POSE.format(5, 2), ""),
        (BOX + FIVE, POSE.format(5, 2) + "task: pose\n", "pose"),
        (BOX + SEVENTEEN, POSE.format(17, 3), ""),
        (BOX + SEVENTEEN + " 0.91 3", POSE.format(17, 3), ""),
        (BOX + " -1 -1 0 0.5 0.3 2", POSE.format(2, 3), ""),
        (BOX, POSE.format(17, 3), ""),
        (BOX + FIVE, "", "pose"),
        (BOX + " 0.91", "", "detect"),
        (BOX + " 0.91 3", "task: detect\n", ""),
        (SQUARE, "task: obb\n", ""),
        (SQUARE + " 0.91 3", "", "obb"),
        (SQUARE, "", "segment"),
        (SQUARE + " 0.91", "task: segment\n", "segment"),
        (BOX, "task: segment\n", ""),
    ],
)
def test_what_is_said_of_a_line_decides_what_its_numbers_are(source, line, config, given):
    boxes = yolo(source, line, config, line_format=given)
    for box in boxes:
        assert box.within(100, 200) == pytest.approx((80, 20, 40, 10))


@pytest.mark.parametrize(
    ("line", "config", "given", "sentence"),
    [
        (BOX + FIVE, "", "", r"labels/a\.txt line 3 has 14 numbers after the class, which nothing explains"),
        (BOX + " 0.91", "", "", r"--boxes-format detect, pose, segment, obb, got '0 0.5 0.25 0.2 0.1 0.91'"),
        (BOX + " 0.45 1", "", "", "which nothing explains"),
        (SQUARE, "", "", "which nothing explains"),
        (BOX + FIVE, POSE.format(17, 3), "", "those of pose are 4, 51 of keypoints"),
        (BOX + FIVE, "", "detect", "those of detect are 4"),
        (BOX + FIVE, "", "obb", "those of obb are 4 pairs"),
        (BOX + " 0.91", "", "segment", "those of segment are pairs"),
        (SQUARE, POSE.format(5, 2), "", "mend the line"),
        (BOX + FIVE, POSE.format(5, 2), "segment", "say pose and segment of the same lines"),
        (BOX + FIVE, POSE.format(5, 2) + "task: detect\n", "", "say detect and pose of the same lines"),
        (BOX + FIVE, POSE.format(5, 4), "", r"kpt_shape must be \[points, 2 or 3\]"),
        (BOX + FIVE, "kpt_shape: 5\n", "", r"kpt_shape must be .*, got 5"),
        (BOX, "task: detection\n", "", "task must be one of detect, pose, segment, obb, got 'detection'"),
        ("0 40 20 60 20 60 30 40 30", "", "obb", "line 3 must have corners in"),
        ("0 40 20 60 30" + FIVE, "", "pose", "line 3 must have its center in"),
    ],
)
def test_a_line_that_nothing_explains_is_refused(source, line, config, given, sentence):
    with pytest.raises(UsageError, match=sentence):
        yolo(source, line, config, line_format=given)


def of_annotations(source, *annotations, **told):
    content = [{"id": number, "image_id": 1, "category_id": 7, **each} for number, each in enumerate(annotations, 1)]
    (source / "boxes.json").write_text(coco(content))
    return read_boxes(source, NAMES, source / "boxes.json", Told(**told))["images/b.png"]


def test_a_turned_box_is_honored_and_other_angles_are_refused(source):
    place = [30, 108, 180, 24]
    upright, box = of_annotations(source, {"bbox": place}, {"bbox": place, "attributes": {"rotation": 90.0}})
    assert (upright.turn, box.turn) == (0, 90)
    assert box.within(240, 240) == (30, 108, 180, 24)
    with pytest.raises(ImageError, match="covers nothing"):  # upright it reaches into the picture, turned it does not
        of_annotations(source, {"bbox": [-90, 10, 100, 4], "attributes": {"rotation": 90}})[0].within(60, 80)
    for angle in (
        {"attributes": {"rotation": "90"}},
        {"attributes": {"rotation": float("inf")}},
        {"attributes": {"rotation": True}},
        {"attributes": {"rotation": 10**400}},
        {"attributes": {"angle": 0.5}},
        {"rotation": 90},
        {"theta": 0.3, "attributes": {"rotation": 90}},
        {"bbox_mode": 0},
    ):
        with pytest.raises(UsageError, match=r"has .*, but only attributes\.rotation in degrees|is not valid JSON"):
            of_annotations(source, {"bbox": place, **angle})


def test_captions_are_passed_over_and_a_person_in_two_files_is_one(source):
    (source / "labels" / "a.txt").unlink()
    content = json.loads(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 4, 10, 8.5]}]))
    captions = content | {"annotations": [{"id": 9, "image_id": 1, "caption": "a thing"}]}
    captions.pop("categories")
    crowd = {"id": 2, "image_id": 1, "category_id": 7, "bbox": [1, 4, 2, 2], "iscrowd": 1}
    crowd["segmentation"] = {"size": [9, 9], "counts": [80, 1]}
    keypoints = content | {"annotations": [content["annotations"][0] | {"keypoints": [0] * 51}]}
    instances = content | {"annotations": [*content["annotations"], crowd]}
    (source / "annotations").mkdir()
    for name, each in (("captions", captions), ("instances", instances), ("person_keypoints", keypoints)):
        (source / "annotations" / f"{name}_val2017.json").write_text(json.dumps(each))
    assert [box.within(60, 80) for box in read_boxes(source, NAMES)["images/b.png"]] == [(2, 4, 10, 8.5), (1, 4, 2, 2)]


def test_a_box_that_its_own_outline_leaves_is_refused(source):
    outline = [[30, 20, 50, 20, 50, 40, 30, 40]]
    for box in ([30, 20, 20, 20], [29, 19, 21.5, 22], [30, 20, 50, 40]):
        assert of_annotations(source, {"bbox": box, "segmentation": outline})
    assert of_annotations(source, {"bbox": [1, 1, 5, 5], "segmentation": {"size": [9, 9], "counts": [80, 1]}})
    for box in ([40, 30, 20, 20], [0, 0, 20, 20], [0.3, 0.2, 0.2, 0.2]):  # with its center, moved, as shares
        with pytest.raises(UsageError, match=r"annotation 1: its bbox \(x, y, width, height\) must hold its segm"):
            of_annotations(source, {"bbox": box, "segmentation": outline})


def test_an_object_without_a_box_is_refused_and_boxes_are_named(source):
    for each in ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, {"keypoints": [1, 1, 2], "caption": "a thing"}, {"bbox": []}):
        with pytest.raises(UsageError, match=r"annotation 1 needs a bbox of 4 numbers: .* with --boxes"):
            of_annotations(source, each)


@pytest.mark.parametrize("place", [[0, 0, 1e9, 1], [0, 0, 10**400, 1], [0, 0, 1e300, 1e300]])
def test_a_turned_box_of_any_length_ends_in_a_sentence(source, place):
    with pytest.raises((ImageError, UsageError), match=r"covers nothing|needs a bbox|beyond 64 bits"):
        of_annotations(source, {"bbox": place, "attributes": {"rotation": 45}})[0].within(60, 80)


def test_another_configuration_deeper_is_refused_where_one_says_what_lines_are(source):
    (source / "other").mkdir()
    (source / "other" / "data.yaml").write_text("task: segment\n")
    assert yolo(source, BOX)
    with pytest.raises(UsageError, match=r"other/data\.yaml and data\.yaml may say different things"):
        yolo(source, BOX + FIVE, POSE.format(5, 2))


@pytest.mark.parametrize("box", [[90, 10, 20, 20], [5, 5, 0, 20], [0.1, 0.2, 0.3, 0.4], [-30, -30, 20, 20]])
def test_a_box_that_covers_no_pixel_fails_its_image(source, box):
    (found,) = of_annotations(source, {"bbox": box})
    with pytest.raises(ImageError, match="covers nothing of 80 x 60 pixels"):
        found.within(60, 80)


def test_ids_that_are_no_whole_numbers_are_refused(source):
    with pytest.raises(UsageError, match="ids of annotations must be whole numbers"):
        of_annotations(source, {"id": 1.0, "bbox": [1, 2, 3, 4]})


def named(source, file_name):
    content = json.loads(coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [3, 4, 5, 6]}]))
    content["images"][0]["file_name"] = file_name
    (source / "boxes.json").write_text(json.dumps(content))
    found = read_boxes(source, NAMES, source / "boxes.json", Told(copying=True))
    return [name for name, boxes in found.items() if boxes]


def test_absolute_paths_are_matched_by_path(source, tmp_path):
    whole = source / "images" / "b.png"
    link = tmp_path.with_name(tmp_path.name + "-link")
    link.symlink_to(source)
    for name in (str(whole), whole.as_uri(), f"{source}/images/../images/b.png", str(link / "images" / "b.png")):
        assert named(source, name) == ["images/b.png"]
    for name in (r"images\b.png", r".\images\b.png", "b.png"):
        assert named(source, name) == ["images/b.png"]


@pytest.mark.parametrize(
    "name", ["/data/images/b.png", r"C:\data\images\b.png", "C:/images/b.png", "file:///data/b.png", r"\\nas\b.png"]
)
def test_absolute_paths_elsewhere_are_refused(source, name):
    with pytest.raises(UsageError, match=r"which is not in .*: name images relative to that folder"):
        named(source, name)


def test_a_name_in_two_folders_is_refused(source):
    content = json.loads(coco([])) | {"images": [{"id": 1, "file_name": "b.png"}]}
    (source / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"which may be x/b\.png or y/b\.png: name its folder too"):
        read_boxes(source, ["x/b.png", "y/b.png"], source / "boxes.json")


@pytest.mark.parametrize(
    ("place", "content", "sentence"),
    [
        ("images/b.txt", "0 0.5 0.5 0.2 0.2", "images/b.txt is not read, but may hold boxes of images/b.png"),
        ("ann/b.png.json", '{"objects": []}', r"ann/b\.png\.json is not read, but may hold"),
        ("Annotations/b.xml", "<annotation/>", "Annotations/b.xml is not read"),
        ("images/b.json", '{"shapes": []}', "images/b.json is not read"),
        ("labels/train/b.txt", "0 0.5 0.5 0.2 0.2", "labels/train/b.txt is not read"),
        (
            "train.csv",
            "image,x\nb.png,1",
            r"train\.csv is not read, but speaks of images/b\.png, which would be copied",
        ),
        ("via.json", '[{"filename": "b.png"}]', r"via\.json is not read, but speaks of"),
        ("metadata.jsonl", '{"file_name": "images/b.png", "objects": {}}', r"metadata\.jsonl is not read"),
        ("labels/b.rf.1f.txt", "0 0.5 0.5 0.2 0.2", r"labels/b\.rf\.1f\.txt is not read"),
    ],
)
def test_a_picture_that_an_unread_file_speaks_of_is_never_copied(source, place, content, sentence):
    (source / "labels" / "a.txt").write_text(BOX)
    (source / place).parent.mkdir(parents=True, exist_ok=True)
    (source / place).write_text(content)
    with pytest.raises(UsageError, match=sentence):
        read_boxes(source, NAMES, told=Told(copying=True))
    if "would be copied" in sentence:
        assert read_boxes(source, NAMES)["images/a.png"]


def test_files_that_speak_of_no_copied_picture_are_left_alone(source):
    (source / "labels" / "a.txt").write_text(BOX)
    (source / "labels" / "b.txt").write_text("")
    (source / "labels" / "classes.txt").write_text("plate\ncar\n")
    (source / "README.txt").write_text("a set of pictures")
    (source / "train.csv").write_text("image\nimages/a.png\n")
    assert len(read_boxes(source, NAMES, told=Told(copying=True))["images/a.png"]) == 1


def test_classes_are_chosen_only_where_all_boxes_have_one(source):
    (source / "labels" / "a.txt").write_text(BOX)
    content = json.loads(coco([{"id": 1, "image_id": 1, "bbox": [3, 4, 5, 6]}]))
    content.pop("categories")
    (source / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="some boxes are of no class"):
        read_boxes(source, NAMES, told=Told(["plate"]))
