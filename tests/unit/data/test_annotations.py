"""Labels and boxes carried over: what is found, what is written, what is refused; read back by other libraries."""

import csv
import io
import json

import pytest
import yaml

from nearfar.data.annotations import Annotations, read_annotations
from nearfar.data.labels import Made
from nearfar.data.yolo import inward
from nearfar.errors import UsageError

MADE = [Made("a.png", "a.png"), *(Made(f"a~{number}.png", "a.png", {"strength": 0.3}) for number in (1, 2))]


def write(folder, files):
    """Files by name; those that are not text as JSON."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def moved(made, folder):
    return [Made(f"{folder}/{each.name}", f"{folder}/{each.origin}", each.marks) for each in made]


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def coco(**changes):
    content = {
        "info": {"year": 2026},
        "images": [{"id": 7, "file_name": "a.png", "width": 4, "height": 4}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": [[0, 0, 2, 0, 2, 2]]},
            {"id": 9, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }  # fmt: skip
    return content | changes


def test_a_folder_is_a_label_unless_it_is_a_split(tmp_path):
    names = ["cat/a.png", "train/dog/b.png", "test/c.png", "d.png"]
    assert read_annotations(tmp_path, names).labels == {"cat/a.png": ("cat",), "train/dog/b.png": ("dog",)}


def test_every_copy_is_listed_with_its_original(tmp_path):
    read_annotations(tmp_path, ["a.png"]).write(tmp_path / "out", MADE)
    assert rows_of(tmp_path / "out" / "inherited.csv") == [
        {"file_name": f"a~{number}.png", "inherited_from": "a.png", "strength": "0.3"} for number in (1, 2)
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_keep_their_columns_and_say_what_is_inherited(tmp_path, name):
    rows = [{"file_name": "a.png", "label": "cat", "note": "ä, b"}, {"file_name": "b.png", "label": "dog", "note": ""}]
    lines = "\n".join(json.dumps(row) for row in rows)
    write(
        tmp_path,
        {f"train/{name}": lines if name.endswith("l") else 'file_name,label,note\na.png,cat,"ä, b"\nb.png,dog,'},
    )
    found = read_annotations(tmp_path, ["train/a.png", "train/b.png"])
    assert found.labels == {"train/a.png": ("cat",), "train/b.png": ("dog",)}
    found.write(tmp_path / "out", moved(MADE, "train"))
    path = tmp_path / "out" / "train" / name
    rows = rows_of(path) if name.endswith("csv") else [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["a.png", "a~1.png", "a~2.png"]
    assert {(row["label"], row["note"]) for row in rows} == {("cat", "ä, b")}
    assert [str(row["label_inherited"]).lower() for row in rows] == ["false", "true", "true"]
    assert [row["inherited_from"] for row in rows] == ["", "train/a.png", "train/a.png"]


def test_labels_may_stand_in_another_column_or_in_folders_beside_metadata(tmp_path):
    write(tmp_path, {"metadata.jsonl": {"file_name": "cat/a.png", "kind": 3}})
    assert read_annotations(tmp_path, ["cat/a.png"]).labels == {"cat/a.png": ("cat",)}
    assert read_annotations(tmp_path, ["cat/a.png"], "kind").labels == {"cat/a.png": ("3",)}
    with pytest.raises(UsageError, match=r"no metadata in .* has the column color"):
        read_annotations(tmp_path, ["cat/a.png"], "color")


def test_pycocotools_finds_the_boxes_of_originals_and_copies(tmp_path, capsys):
    tools = pytest.importorskip("pycocotools.coco")
    write(tmp_path, {"annotations/instances_train2017.json": coco()})
    found = read_annotations(tmp_path, ["train2017/a.png", "train2017/b.png", "val2017/a.png"])
    assert found.labels == {"train2017/a.png": ("cat",), "train2017/b.png": ("dog",)}
    found.write(tmp_path / "out", moved(MADE, "train2017"))
    read = tools.COCO(str(tmp_path / "out" / "annotations" / "instances_train2017.json"))
    images = sorted(read.loadImgs(read.getImgIds()), key=lambda image: image["id"])
    assert [(each["id"], each["file_name"], each.get("inherited_from")) for each in images] == [
        (7, "a.png", None), (8, "a~1.png", "a.png"), (9, "a~2.png", "a.png"),
    ]  # fmt: skip
    boxes = [each for image in (7, 8, 9) for each in read.loadAnns(read.getAnnIds(imgIds=[image]))]
    assert [each["id"] for each in boxes] == [5, 10, 11]
    assert {(str(each["bbox"]), each["category_id"], str(each["segmentation"])) for each in boxes} == {
        ("[0, 0, 2, 2]", 1, "[[0, 0, 2, 0, 2, 2]]")
    }
    capsys.readouterr()


def test_yolo_copies_have_their_originals_lines(tmp_path):
    config = "path: /data/cells\ntrain: images/train\nnames: [cat, dog]\n"
    write(tmp_path, {"data.yaml": config, "labels/train/a.txt": "1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.1 0.1\n"})
    found = read_annotations(tmp_path, ["images/train/a.png", "images/train/empty.png"])
    assert found.labels == {"images/train/a.png": ("dog", "cat")}
    write(tmp_path, {"out/labels/train/gone~1.txt": "0 1 1 1 1"})
    found.write(tmp_path / "out", moved(MADE, "images/train"))
    labels = {path.name: path.read_text() for path in (tmp_path / "out" / "labels").rglob("*.txt")}
    assert labels == dict.fromkeys(["a.txt", "a~1.txt", "a~2.txt"], "1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.1 0.1\n")
    written = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert written == {"train": "images/train", "names": ["cat", "dog"]}


def test_absolute_paths_are_carried_over_relative_to_out(tmp_path):
    names = ["images/a.png", "images/b.png"]
    write(tmp_path, dict.fromkeys(names, "") | {"metadata.csv": f"file_name,label\n{tmp_path}/images/a.png,cat\n"})
    images = [{"id": 7, "file_name": f"{tmp_path}/images/a.png"}, {"id": 2, "file_name": r"images\b.png"}]
    write(tmp_path, {"annotations/coco.json": coco(images=images)})
    found = read_annotations(tmp_path, names)
    assert [layout.labels["images/a.png"] for layout in found.layouts] == [("cat",), ("cat",)]
    found.write(tmp_path / "out", moved(MADE, "images"))
    written = json.loads((tmp_path / "out" / "annotations" / "coco.json").read_text())
    assert [(each["file_name"], each.get("inherited_from")) for each in written["images"]] == [
        ("images/a.png", None), ("images/a~1.png", "images/a.png"), ("images/a~2.png", "images/a.png"),
    ]  # fmt: skip
    for path in (r"C:\data\a.png", "/data/a.png", "file:///data/a.png"):
        write(tmp_path, {"metadata.csv": f"file_name,label\n{path},cat\n"})
        with pytest.raises(UsageError, match=r"metadata\.csv row 1 names .*, which is not in"):
            read_annotations(tmp_path, names)


BROKEN = {
    "metadata.jsonl": [
        ('{"file_name": "a.png"', "line 1 is not valid JSON"),
        ("[1]", "line 1 must be a JSON object, got list"),
        ('{"label": 1}', "row 1 has no file_name"),
        ('{"file_name": "c.png"}', "row 1 names c.png, which is not in"),
        ('{"file_name": "../a.png"}', r"names \.\./a.png, which is not in"),
        ('{"file_name": "a.png"}\n{"file_name": "./a.png"}', "row 2 names ./a.png again"),
    ],
    "metadata.csv": [("file_name,label\na.png", "row 1 has another number of fields")],
    "metadata.parquet": [("", "is not read: save it as metadata.jsonl")],
    "coco.json": [
        (json.dumps(coco())[:-1], "coco.json is not valid JSON"),
        (coco(images=[{"id": 1}]), "every entry of images needs id and file_name"),
        (coco(images=[{"id": 2, "file_name": "a.png"}] * 2), "ids of images must be .* that differ, got 2 2 times"),
        (coco(images=[{"id": "x", "file_name": "a.png"}]), "ids of images must be whole numbers"),
        (coco(images=[{"id": 7, "file_name": "a.png"}]), "annotation 9 has image_id 2, which is not among its images"),
        (coco(categories=[{"id": 1, "name": "cat"}]), "annotation 9 has category_id 3"),
        (coco(images=[{"id": 7, "file_name": "c.png"}, {"id": 2, "file_name": "b.png"}]), "names c.png, which is not"),
        (coco(annotations=[{"id": 1, "image_id": 7, "segments_info": []}]), "holds panoptic masks"),
        (coco(annotations={}), "annotations must be a list of objects"),
        (coco(images=[{"id": 7, "file_name": 5}]), "file_name must be text, got .'id': 7, 'file_name': 5"),
        (coco(images=[{"id": [7], "file_name": "a.png"}]), "ids of images must be whole numbers"),
        (coco(annotations=[{"id": 1, "image_id": 7, "category_id": [1]}]), "category_id must be a whole number"),
    ],
    "labels/a.txt": [
        ("0 0.5", "labels/a.txt line 1 must be a class and at least 4 numbers, got '0 0.5'"),
        ("0 0.5 0.5 0 0.1", "labels/a.txt line 1 must have its center in .* got .0 0.5 0.5 0 0.1.: mend"),
    ],
    "labels/b.txt": [("0 e e e e", "labels/b.txt line 1 must be a class and")],
    "data.yaml": [
        ("names: [", "data.yaml is not valid YAML"),
        ("train: train.txt\nnames: [cat]", "names the list train.txt"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), [(n, *case) for n, cases in BROKEN.items() for case in cases])
def test_what_is_wrong_is_named(tmp_path, name, content, sentence):
    write(tmp_path, {"labels/a.txt": "0 0.5 0.5 0.1 0.1"} if name == "data.yaml" else {})
    write(tmp_path, {name: content})
    names = ["images/a.png", "images/b.png"] if name.startswith(("data", "labels")) else ["a.png", "b.png"]
    with pytest.raises(UsageError, match=sentence):
        read_annotations(tmp_path, names)


def test_a_coco_image_that_may_be_two_is_refused(tmp_path):
    write(tmp_path, {"all.json": coco()})
    with pytest.raises(UsageError, match=r"a\.png, which may be x/a\.png or y/a\.png: name its folder too"):
        read_annotations(tmp_path, ["x/a.png", "y/a.png", "x/b.png"])


def test_only_label_files_of_copies_are_removed(tmp_path):
    (tmp_path / "labels").mkdir()
    for name in ("a~1.txt", "a~b.txt", "a.txt"):
        (tmp_path / "labels" / name).touch()
    Annotations([]).write(tmp_path, [])
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.txt", "a~b.txt"]


@pytest.mark.parametrize("path", ['"a\n  b"', "|\n  a\n  b", '"a\n\n  : b"', "a\n  b", "[a,\n b: c]"])
def test_a_path_of_several_lines_leaves_nothing_in_the_copy(tmp_path, path):
    config = f"path: {path}\ntrain: images\nnames: [cat]\n"
    assert yaml.safe_load(inward(config, tmp_path, "data.yaml")) == {"train": "images", "names": ["cat"]}
