"""Which files of a folder belong to its images, how they come to the copies, and what is refused by name."""

import csv
import io

import pytest
import yaml
from PIL import Image

from nearfar.data.annotations import read_annotations
from nearfar.data.companions import label_pictures
from nearfar.data.labels import Made
from nearfar.errors import ModelWarning, UsageError

BOX = "1 0.5 0.5 0.2 0.2\n"
CLASSES = "names: [cat, dog]\n"


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def carried(folder, images, files):
    """Labels, and what stands in OUT for two copies of the first image."""
    write(folder / "in", files)
    found = read_annotations(folder / "in", images)
    stem, suffix = images[0].rsplit(".", 1)
    found.write(folder / "out", [Made(f"{stem}~{n}.{suffix}", images[0], {"strength": 0.3}) for n in (1, 2)])
    out = folder / "out"
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return found, {name: content for name, content in written.items() if name != "inherited.csv"}


@pytest.mark.parametrize(
    ("image", "label", "names"),
    [
        ("obj_train_data/a.jpg", "obj_train_data/a.txt", {"obj.names": "cat\ndog\n"}),
        ("a.jpg", "a.txt", {"classes.txt": "cat\r\ndog\r\n"}),
        ("Images/a.JPG", "Labels/a.txt", {"data.yaml": CLASSES}),
        ("IMAGES/train/a.png", "LABELS/train/a.txt", {"dataset.yml": CLASSES}),
        ("train/Images/a.png", "train/labels/a.txt", {"dataset.yaml": CLASSES}),
        ("images/a.png", "labels/a.txt", {"coco8.yaml": "path: ../x\ntrain: images\nnames: {0: cat, 1: dog}\n"}),
    ],
)
def test_lines_of_boxes_are_found_wherever_their_tools_put_them(tmp_path, image, label, names):
    found, written = carried(tmp_path, [image], {label: BOX, image: b"", **names})
    assert found.labels == {image: ("dog",)}
    stem = label.removesuffix(".txt")
    assert {name for name in written if name not in names} == {f"{stem}~1.txt", f"{stem}~2.txt"}
    assert set(names) <= set(written)
    assert written[f"{stem}~2.txt"] == BOX.encode()


def test_captions_and_lists_of_images(tmp_path):
    files = {"x/a.txt": "a red cell, round", "x/b.caption": "blue", "train.txt": "data/x/a.png\ndata/x/b.png\n"}
    found, written = carried(tmp_path, ["x/a.png", "x/b.png"], files)
    assert written == {
        **dict.fromkeys(["x/a~1.txt", "x/a~2.txt"], b"a red cell, round"),
        "train.txt": b"data/x/a~1.png\ndata/x/a~2.png\n",
    }
    assert found.labels == {"x/a.png": ("x",), "x/b.png": ("x",)}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("filename,label\na.png,cat\nb.png,dog\n", "a~1.png"),
        ("label,id\ncat,a\ndog,b\n", "a~1"),
        ("path,label\n./a.png,cat\n./b.png,dog\n", "a~1.png"),
        ("label,image_file_name\ncat,a.png\ndog,b.png\n", "a~1.png"),
    ],
)
def test_tables_under_other_names_are_read(tmp_path, text, first):
    found, written = carried(tmp_path, ["a.png", "b.png"], {"train.csv": text, "a.png": b"", "b.png": b""})
    assert found.labels == {"a.png": ("cat",), "b.png": ("dog",)}
    row = next(csv.DictReader(io.StringIO(written["train.csv"].decode())))
    assert first in row.values()
    assert (row["label"], row["inherited_from"], row["label_inherited"]) == ("cat", "a.png", "true")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", "<annotation/>"),
        ("Annotations/a.xml", "<annotation/>"),
        ("a.json", '{"shapes": [], "imagePath": "a.png"}'),
        ("via.json", '{"a.png123": {"filename": "a.png"}}'),
        ("createml.json", '[{"image": "a.png", "annotations": []}]'),
        ("boxes.csv", "image,x,y\na.png,1,2\na.png,3,4\n"),
        ("val.txt", "a.png 3\nb.png 4\n"),
        ("labels.tsv", "a.png\t3\n"),
    ],
)
def test_what_labels_images_in_another_format_is_refused_by_name(tmp_path, name, text):
    write(tmp_path, {name: text})
    with pytest.raises(UsageError, match=rf"{name} seems to label a\.png, but is in none of the formats"):
        read_annotations(tmp_path, ["a.png", "b.png"])


def test_files_that_say_nothing_of_images_pass(tmp_path):
    write(tmp_path, {"README.txt": "see a.png", "LICENSE.txt": "MIT", "config.json": "{}", "notes.csv": "x\n1\n"})
    assert carried(tmp_path, ["a.png"], {})[1] == {}


def test_a_label_file_without_an_image_is_told(tmp_path):
    write(tmp_path, {"labels/a.txt": BOX, "labels/gone.txt": BOX})
    with pytest.warns(ModelWarning, match=r"labels/gone\.txt has no image"):
        read_annotations(tmp_path, ["images/a.png"])


def test_lines_that_are_half_boxes_are_refused(tmp_path):
    write(tmp_path, {"a.txt": BOX + "a cell\n"})
    with pytest.raises(UsageError, match=r"a\.txt line 2 must be a class and at least 4 numbers"):
        read_annotations(tmp_path, ["a.png"])


def mask(mode="P"):
    file, picture = io.BytesIO(), Image.new(mode, (16, 16))
    picture.putpixel((3, 3), 2 if mode == "P" else 200)
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "place", "copy"),
    [
        ("images/a.jpg", "masks/a.png", "masks/a~1.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png", "SegmentationClass/a~1.png"),
        ("train/img/x/a.png", "train/gt/x/a.png", "train/gt/x/a~1.png"),
        ("images/a.png", "labels/a_gtFine_labelIds.png", "labels/a~1_gtFine_labelIds.png"),
        ("a.png", "a_mask.png", "a~1_mask.png"),
        ("a.png", "a-seg.png", "a~1-seg.png"),
    ],
)
def test_label_pictures_stay_as_they_are(tmp_path, image, place, copy):
    write(tmp_path / "in", {place: mask()})
    _, written = carried(tmp_path, [image, place], {})
    assert {name: written[name] for name in written if "~1" in name} == {copy: mask()}


def test_pictures_that_only_sound_like_labels_are_images(tmp_path, smooth):
    names = ["mask/1.png", "no_mask/1.png", "gt/car.png", "bird_mask.png", "masks/2.jpg", "images/2.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        smooth(1, (40, 40)).save(tmp_path / name)
    assert label_pictures(tmp_path, names) == {}


def test_files_that_metadata_name_are_carried_over_and_renamed(tmp_path):
    table = "file_name,mask_file_name,label\na.png,m/7.png,x\n"
    _, written = carried(tmp_path, ["a.png", "m/7.png"], {"metadata.csv": table, "m/7.png": mask("L"), "a.png": b""})
    rows = list(csv.DictReader(io.StringIO(written["metadata.csv"].decode())))
    assert [(row["file_name"], row["mask_file_name"]) for row in rows] == [
        ("a~1.png", "m/7~1.png"),
        ("a~2.png", "m/7~2.png"),
    ]
    assert written["m/7~1.png"] == written["m/7~2.png"] == mask("L")


@pytest.mark.parametrize(
    "train", ["{0}/images/train", "../train/images", "[{0}/images/train, images/val]", "/gone/d/images/train"]
)
def test_data_yaml_never_points_back_at_the_originals(tmp_path, train):
    folders = {"images/train/a.png": b"", "images/val/b.png": b"", "train/images/c.png": b"", "labels/train/a.txt": BOX}
    text = f"path: {tmp_path}/in\ntrain: {train.format(tmp_path / 'in')}\n{CLASSES}"
    _, written = carried(tmp_path, ["images/train/a.png"], {**folders, "data.yaml": text})
    content = yaml.safe_load(written["data.yaml"])
    given = content["train"] if isinstance(content["train"], list) else [content["train"]]
    assert "path" not in content
    assert all((tmp_path / "in" / one).is_dir() and not one.startswith(("/", "..")) for one in given)


@pytest.mark.parametrize("train", ["/elsewhere/pictures", "../other", "https://example.com/a.zip"])
def test_data_yaml_that_names_other_places_is_refused(tmp_path, train):
    write(tmp_path, {"labels/a.txt": BOX, "data.yaml": f"train: {train}\n{CLASSES}"})
    with pytest.raises(UsageError, match=r"data\.yaml names .*, which is not in .* name a folder below"):
        read_annotations(tmp_path, ["images/a.png"])


def test_names_in_another_unicode_spelling_are_named_as_such(tmp_path):
    write(tmp_path, {"metadata.csv": "file_name,label\ncaf\u00e9.png,x\n"})
    with pytest.raises(UsageError, match="in one Unicode spelling, but the file's name is in another"):
        read_annotations(tmp_path, ["cafe\u0301.png"])


def test_hidden_folders_are_no_classes(tmp_path):
    names = [".ipynb_checkpoints/a.png", "cat/.cache/b.png", "__MACOSX/c.png", "cat/d.png"]
    assert read_annotations(tmp_path, names).labels == {"cat/d.png": ("cat",)}
