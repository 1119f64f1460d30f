"""A folder augmented with the tiny model: names, labels, seeds, checks, and what an interruption leaves."""

import csv
import json
import shutil

import pytest
from PIL import Image

from cli.folders import contents
from nearfar.data.copies import Strengths, Wanted
from nearfar.errors import UsageError
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs.augment import augment_folder


@pytest.fixture
def source(tmp_path, smooth):
    for label, count in (("cat", 3), ("dog", 5)):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(count):
            smooth(number + 10 * (label == "dog")).save(tmp_path / "in" / label / f"{number}.png")
    return tmp_path / "in"


@pytest.fixture
def augment(model, source, tmp_path):
    """Augment into a new folder in two steps, with batches of four."""

    def call(name="out", resume=False, **wanted):
        out = tmp_path / name
        return augment_folder(model, source, out, Wanted(**wanted), resume=resume, steps=2, batch_size=4), out

    return call


def listed(out):
    return list(csv.DictReader((out / "inherited.csv").read_text("utf-8").splitlines()))


def test_copies_have_their_originals_folders_and_names(augment, source):
    progress, out = augment(copies=2, strengths=Strengths((0.2, 0.4)))
    assert (progress.done, progress.failed) == (16, [])
    names = {f"{path.parent.name}/{path.stem}~{number}.png" for path in source.rglob("*.png") for number in (1, 2)}
    assert contents(out).keys() == {*names, "inherited.csv"}
    rows, records = listed(out), read_manifest(manifest_path(out)).records
    assert len({row["strength"] for row in rows}) > 10
    assert all(0.2 <= float(row["strength"]) <= 0.4 for row in rows)
    assert {row["file_name"]: float(row["strength"]) for row in rows} == {
        name: record.figures["strength"] for name, record in records.items()
    }


def test_copies_differ_and_their_strength_is_their_own(augment, source):
    _, out = augment(copies=2, strengths=Strengths((0.3, 0.3), {"cat": (0.001, 0.001)}))
    first, second = (Image.open(out / "dog" / f"0~{number}.png").tobytes() for number in (1, 2))
    assert first != second
    assert {row["strength"] for row in listed(out) if row["file_name"].startswith("cat")} == {"0.001"}


def test_a_seed_gives_the_same_copies_and_another_one_others(augment):
    first, again, other = (augment(name, seed=seed)[1] for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert contents(first) == contents(again)
    assert contents(first)["cat/0~1.png"] != contents(other)["cat/0~1.png"]


def test_originals_are_kept_byte_for_byte(augment, source):
    _, out = augment(keep_originals=True)
    assert contents(out).items() >= contents(source).items()
    assert len(listed(out)) == 8


def test_boxes_drawn_in_a_picture_of_another_shape_are_not_inherited(augment, source):
    sizes = {"cat/0.png": (40, 30), "cat/1.png": (7, 7)}
    for name in sizes:
        Image.open(source / name).resize((40, 30)).save(source / name)
    images = [{"id": n, "file_name": name, "width": w, "height": h} for n, (name, (w, h)) in enumerate(sizes.items())]
    (source / "boxes.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    progress, out = augment(keep_originals=True)
    assert [(each.name, each.reason) for each in progress.failed] == [
        ("cat/1~1.png", "its annotations are of 7 x 7 pixels, but upright it has 40 x 30: annotate it as it is")
    ]
    assert (out / "cat" / "1.png").exists()


def test_a_broken_original_is_listed_and_neither_copied_nor_kept(augment, source):
    (source / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    progress, out = augment(keep_originals=True)
    assert sorted(record.name for record in progress.failed) == ["cat/0.png", "cat/0~1.png"]
    assert not {"cat/0.png", "cat/0~1.png"} & contents(out).keys()
    assert len(listed(out)) == 7


def test_after_an_interruption_the_folder_is_what_it_would_have_been(augment, source):
    names = [path.relative_to(source).as_posix() for path in source.rglob("*.png")]
    rows = [{"file_name": name, "label": name.split("/")[0]} for name in names]
    (source / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _, whole = augment("whole", copies=2, keep_originals=True)
    _, cut = augment("cut", copies=2, keep_originals=True)
    for name in ("cat/0~2.png", "dog/3~1.png", "dog/3.png", "metadata.jsonl", "inherited.csv"):
        (cut / name).unlink()
    (cut / "dog" / "4~1.png").write_bytes(b"half")
    progress, _ = augment("cut", resume=True, copies=2, keep_originals=True)
    assert (progress.done, progress.kept) == (4, 20)
    assert contents(cut) == contents(whole)


def test_more_copies_are_added_to_a_finished_folder(augment):
    _, few = augment("few", copies=1)
    before = contents(few)
    progress, _ = augment("few", resume=True, copies=2)
    assert (progress.done, progress.kept) == (8, 8)
    assert all(contents(few)[name] == content for name, content in before.items() if name.endswith(".png"))
    assert contents(few) == contents(augment("many", copies=2)[1])


def test_other_strengths_are_not_mixed_into_a_folder(augment):
    augment()
    with pytest.raises(UsageError, match="was made with other settings"):
        augment(resume=True, strengths=Strengths((0.5, 0.5)))


def test_only_part_of_the_images(augment):
    assert contents(augment("a", only="cat/*")[1]).keys() == {f"cat/{n}~1.png" for n in range(3)} | {"inherited.csv"}
    assert contents(augment("b", select="rarest")[1]).keys() == {f"cat/{n}~1.png" for n in range(3)} | {"inherited.csv"}
    with pytest.raises(UsageError, match=r"--only bird/. matches none of 8 images, such as cat/0\.png"):
        augment("c", only="bird/*")


def test_a_name_that_is_taken_is_refused(augment, source):
    shutil.copy(source / "cat" / "0.png", source / "cat" / "1~1.png")
    with pytest.raises(UsageError, match=r"cat/1~1\.png is the name of a copy of cat/1\.png, and of an image in IN"):
        augment()


def test_copies_are_flagged_with_what_a_classifier_says(augment):
    pytest.importorskip("sklearn")
    _, out = augment(check="flag")
    rows, records = listed(out), read_manifest(manifest_path(out)).records
    assert len(rows) == 8
    for row in rows:
        record = records[row["file_name"]]
        assert record.figures["label_probability"] == float(row["label_probability"])
        assert (record.verdict == "") == (row["label_agrees"] == "true") == (float(row["label_probability"]) > 0.5)


def test_dropped_copies_are_gone_and_stay_away(augment):
    pytest.importorskip("sklearn")
    wanted = {"check": "drop", "features": "pixels", "strengths": Strengths((0.9, 0.9)), "copies": 2}
    progress, out = augment(**wanted)
    records = read_manifest(manifest_path(out)).records
    dropped = {name for name, record in records.items() if record.status == "dropped"}
    assert progress.done == 16
    assert 0 < len(dropped) < 16
    before = contents(out)
    assert before.keys() == {*records} - dropped | {"inherited.csv"}
    progress, _ = augment(resume=True, **wanted)
    assert (progress.done, progress.kept) == (0, 16 - len(dropped))
    assert contents(out) == before


def test_the_hardest_are_chosen_by_the_models_own_features(augment):
    pytest.importorskip("sklearn")
    progress, _ = augment(select="hardest", share=0.25)
    assert progress.done == 2


def test_imagefolder_of_hugging_face_reads_copies_with_their_labels(augment, source, tmp_path):
    datasets = pytest.importorskip("datasets")
    _, plain = augment("plain", keep_originals=True)
    read = datasets.load_dataset("imagefolder", data_dir=str(plain), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == ["cat", "dog"]
    assert sorted(read["label"]) == [0] * 6 + [1] * 10
    rows = [{"file_name": path.relative_to(source).as_posix(), "age": 3} for path in sorted(source.rglob("*.png"))]
    (source / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _, told = augment("told", keep_originals=True)
    read = datasets.load_dataset("imagefolder", data_dir=str(told), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.column_names == ["image", "age", "inherited_from", "label_inherited", "strength"]
    assert (sum(read["label_inherited"]), set(read["age"]), len(read)) == (8, {3}, 16)
    assert set(read["inherited_from"]) == {"", *(row["file_name"] for row in rows)}


def turned(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize(
    ("orientation", "mask_size", "mask_turn", "fails"),
    [
        (6, (24, 16), 1, True),  # as the pixels are stored
        (6, (16, 24), 1, False),  # as the picture is seen
        (6, (24, 16), 6, False),  # turned by its own EXIF data
        (3, (24, 16), 1, True),  # upside down or not: nobody knows
        (1, (24, 16), 1, False),
    ],
)
def test_masks_of_turned_pictures_are_carried_over_where_they_fit(
    model, tmp_path, smooth, orientation, mask_size, mask_turn, fails
):
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    picture, mask = smooth(1, (24, 16)), Image.new("L", mask_size, 3)
    picture.save(tmp_path / "in/images/a.png", **turned(picture, orientation))
    mask.save(tmp_path / "in/masks/a.png", **turned(mask, mask_turn))
    smooth(2).save(tmp_path / "in/images/b.png")
    progress = augment_folder(model, tmp_path / "in", tmp_path / "out", Wanted(), steps=1, batch_size=4)
    reasons = [(one.name, one.reason) for one in progress.failed]
    sentence = "has an EXIF turn that masks/a.png may not have: turn the pixels of the picture for good"
    assert reasons == ([("images/a~1.png", sentence)] if fails else [])
    assert (tmp_path / "out/masks/a~1.png").exists() == (not fails)
    assert (tmp_path / "out/images/b~1.png").exists()


@pytest.mark.parametrize("ending", ["_mask.png", ".caption", "_gt.png"])
def test_a_companion_whose_copy_would_have_too_long_a_name_fails_alone(model, tmp_path, smooth, ending):
    stem = "x" * (255 - len(ending))
    (tmp_path / "in").mkdir()
    smooth(1).save(tmp_path / "in" / f"{stem}.png")
    smooth(2).save(tmp_path / "in" / "b.png")
    other = tmp_path / "in" / f"{stem}{ending}"
    Image.new("L", (16, 16)).save(other) if ending.endswith("png") else other.write_text("a cat")
    for resume in (False, True):
        options = {"resume": resume, "steps": 1, "batch_size": 4}
        progress = augment_folder(model, tmp_path / "in", tmp_path / "out", Wanted(), **options)
        assert [record.name for record in progress.failed] == [f"{stem}~1.png"]
        assert f"has {other.name} beside it, whose copy would have too long a name" in progress.failed[0].reason
    assert sorted(contents(tmp_path / "out")) == ["b~1.png", "inherited.csv"]
