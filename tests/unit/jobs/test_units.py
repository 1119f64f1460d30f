"""Shards and data sets in and out, written and read by the libraries that they belong to."""

import gc
import json
import tarfile
import warnings
from io import BytesIO

import pytest
from PIL import Image

from cli.folders import contents
from nearfar.data.copies import Strengths, Wanted
from nearfar.errors import ModelWarning, RunError, UsageError
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs import units as record_sets
from nearfar.jobs.units import augment_units, units_of

NAMES = ["cat", "dog"]


def read_shards(pattern, decode=()):
    """What webdataset reads, which leaves its files to the garbage collector."""
    wds = pytest.importorskip("webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(wds.WebDataset(str(pattern), shardshuffle=False).decode(*decode))
        gc.collect()
    return found


def png(picture):
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


@pytest.fixture
def augment(model, tmp_path):
    """Augment `in` into a new folder in two steps, with batches of four."""

    def call(source, name="out", resume=False, **wanted):
        found = augment_units(model, source, tmp_path / name, Wanted(**wanted), resume=resume, steps=2, batch_size=4)
        return found, tmp_path / name

    return call


@pytest.fixture
def shards(tmp_path, smooth):
    """Two shards of two records, one of them with a second extension and a folder in its key."""
    wds = pytest.importorskip("webdataset")
    (tmp_path / "in").mkdir()
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / "in" / f"s-{shard}.tar")) as writer:
            for number in range(2):
                image = {"__key__": f"part/{shard}{number}", "png": png(smooth(10 * shard + number))}
                writer.write(image | {"cls": number, "json": {"note": f"n{number}"}, "seg.png": png(smooth(99))})
    return tmp_path / "in"


@pytest.fixture
def data_set(smooth):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "mask": datasets.Image()}
    rows = {"image": [smooth(n) for n in range(4)], "label": [0, 1, 1, 1], "mask": [smooth(n + 50) for n in range(4)]}
    rows["note"] = ["a", "b", None, "d"]
    return datasets.Dataset.from_dict(rows, datasets.Features(features | {"note": datasets.Value("string")}))


@pytest.mark.slow
def test_webdataset_reads_shards_of_originals_and_copies(augment, shards):
    found, out = augment(shards, copies=2, keep_originals=True)
    assert (found.progress.done, found.counts) == (12, {"copies": 8, "originals": 4})
    samples = read_shards(out / "s-{0..1}.tar", ["pil"])
    assert [each["__key__"] for each in samples] == [
        f"part/{key}{copy}" for key in ("00", "01", "10", "11") for copy in ("", "~1", "~2")
    ]
    before = {each["__key__"]: each for each in read_shards(shards / "s-{0..1}.tar")}
    for each in read_shards(out / "s-{0..1}.tar"):
        original = before[each["__key__"].split("~")[0]]
        assert {field: each[field] for field in ("cls", "json", "seg.png")} == {
            field: original[field] for field in ("cls", "json", "seg.png")
        }
        assert ("~" in each["__key__"]) == (each["png"] != original["png"])
    marks = {each["__key__"]: each.get("inherited.json") for each in samples}
    assert marks["part/00"] is None
    assert marks["part/01~2"] == {"inherited_from": "part/01.png", "label_inherited": True, "strength": 0.3}
    assert all(each["png"].size == (16, 16) for each in samples)


def test_an_interrupted_run_goes_on_with_the_shard_that_is_missing(augment, shards, monkeypatch):
    _, whole = augment(shards, "whole", copies=2)

    def stop(*_):
        raise KeyboardInterrupt

    pack = record_sets.pack_shard
    monkeypatch.setattr(
        record_sets, "pack_shard", lambda shard, *rest: stop() if shard.name == "s-1.tar" else pack(shard, *rest)
    )
    with pytest.raises(KeyboardInterrupt):
        augment(shards, "cut", copies=2)
    assert contents(whole).items() > contents(whole.with_name("cut")).items()
    monkeypatch.undo()
    found, cut = augment(shards, "cut", resume=True, copies=2)
    assert contents(cut) == contents(whole)
    assert (found.progress.done, found.progress.kept) == (0, 8)
    assert sorted(path.name for path in cut.parent.iterdir()) == [
        *("cut", "cut.manifest.jsonl", "in", "whole", "whole.manifest.jsonl")
    ]
    assert augment(shards, "cut", resume=True, copies=2)[0].progress.kept == 8
    with pytest.raises(UsageError, match="made with other settings"):
        augment(shards, "cut", resume=True, seed=1, strengths=Strengths((0.5, 0.5)))


def test_a_broken_image_in_a_shard_is_left_out_and_listed(augment, shards):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(shards / "s-0.tar")) as writer:
        writer.write({"__key__": "bad", "png": b"\x89PNG\r\n\x1a\n broken", "cls": 0})
        writer.write({"__key__": "good", "png": png(Image.new("RGB", (9, 7), "red")), "cls": 1})
    found, out = augment(shards)
    assert [record.name for record in found.progress.failed] == ["s-0.tar/bad~1.png"]
    assert [each["__key__"] for each in read_shards(out / "s-0.tar")] == ["good~1"]
    assert read_manifest(manifest_path(out)).records["s-0.tar/bad~1.png"].status == "failed"
    again, _ = augment(shards, resume=True)
    assert [record.name for record in again.progress.failed] == ["s-0.tar/bad~1.png"]
    assert (again.progress.total, again.progress.done, again.progress.kept) == (4, 0, 3)


def test_other_wishes_make_a_finished_shard_anew(augment, shards):
    (shards / "s-1.tar").unlink()
    assert augment(shards)[0].progress.done == 2
    found, out = augment(shards, resume=True, copies=2)
    assert (found.progress.done, found.counts["copies"]) == (4, 4)
    assert len(read_shards(out / "s-0.tar")) == 4
    assert augment(shards, resume=True, copies=2)[0].progress.kept == 4


def test_what_another_judge_dropped_is_not_gone_on_with(augment, shards):
    (shards / "s-1.tar").unlink()
    with pytest.raises(UsageError, match="two classes or more"):
        augment(shards, check="drop", features="pixels")
    augment(shards, "flagged")
    with pytest.raises(UsageError, match=r"other settings \(check .*judge None, now 'pixels'"):
        augment(shards, "flagged", resume=True, check="drop", features="pixels")


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.cls": b"1"}, "record a must have one image such as a.jpg, got cls"),
        ({"a.png": b"", "a.jpg": b""}, "record a must have one image"),
        ({"../a.png": b""}, r"has the key '\.\./a', which is no safe file name"),
        ({"a.png": b"", "b.png": b"", "a.cls": b""}, r"members of record a in several places.* --sort=name"),
        ({"a.png": b"", "b.png": b"", "a.jpg": b""}, r"members of record a in several places.* --sort=name"),
        (
            {"22.05.png": b"", "22.06.png": b"", "22.06.cls": b""},
            r"several dots such as 22\.05\.png: .* like 22_05\.png",
        ),
        ({"s/a.v1.0.jpg": b"", "s/a.v1.1.jpg": b""}, r"several dots such as a\.v1\.0\.jpg: .* like a_v1_0\.jpg"),
        ({}, "has no record that can be used: it has no members that are files"),
        ({"a.png": b"", "a.json": b"{"}, "record a has a label that cannot be read"),
    ],
)
def test_a_shard_that_cannot_be_carried_over_is_refused(augment, tmp_path, members, sentence):
    write_tar(tmp_path / "one.tar", members)
    with pytest.raises(UsageError, match=sentence):
        augment(tmp_path / "one.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def test_a_cut_shard_is_refused(augment, shards):
    path = shards / "s-0.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UsageError, match="is no whole tar file"):
        augment(path)


def test_choices_that_need_all_images_are_not_for_shards(augment, shards):
    with pytest.raises(UsageError, match="2 files are augmented one by one"):
        augment(shards, select="rarest")
    with pytest.raises(UsageError, match="--only is for folders of images"):
        augment(shards, only="a*")
    with pytest.raises(UsageError, match="leave out --label-column"):
        augment(shards, label_column="kind")


def test_a_saved_data_set_comes_back_with_its_features(augment, data_set, tmp_path):
    datasets = pytest.importorskip("datasets")
    data_set.save_to_disk(tmp_path / "in")
    found, out = augment(tmp_path / "in", copies=2, select="balance", keep_originals=True)
    assert found.counts == {"copies": 2, "originals": 4}
    read = datasets.load_from_disk(out)
    assert read.features.items() >= data_set.features.items()
    assert read["label"][:] == [0, 1, 1, 1, 0, 0]
    assert read["note"][:] == ["a", "b", None, "d", "a", "a"]
    assert read["label_inherited"][:] == [False] * 4 + [True] * 2
    assert read["inherited_from"][4] == "00000000.png"
    assert read[0]["image"].tobytes() == data_set[0]["image"].tobytes() != read[4]["image"].tobytes()
    assert read[4]["mask"].tobytes() == data_set[0]["mask"].tobytes()


def test_files_that_others_put_into_a_data_set_are_not_lost(augment, data_set, tmp_path):
    data_set.save_to_disk(tmp_path / "in")
    _, out = augment(tmp_path / "in")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not what an earlier run made of this input"):
        augment(tmp_path / "in", resume=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert augment(tmp_path / "in", resume=True)[0].progress.kept == 4


def test_every_split_is_augmented(augment, data_set, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=data_set, test=data_set.select([1, 2])).save_to_disk(tmp_path / "in")
    _, out = augment(tmp_path / "in", strengths=Strengths((0.3, 0.3), {"cat": (0.2, 0.2)}))
    read = datasets.load_from_disk(out)
    assert {split: rows["strength"][:] for split, rows in read.items()} == {
        "train": [0.2, 0.3, 0.3, 0.3],
        "test": [0.3] * 2,
    }


def test_parquet_comes_back_as_parquet_the_same_each_time(augment, data_set, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    data_set.to_parquet(tmp_path / "in" / "train-00000-of-00001.parquet")
    first, again = (augment(tmp_path / "in", name)[1] for name in ("a", "b"))
    assert contents(first) == contents(again)
    files = {"train": str(first / "train-00000-of-00001.parquet")}
    read = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == NAMES
    assert read[3]["image"].size == (16, 16)
    assert read["label"][:] == [0, 1, 1, 1]


def test_data_sets_without_usable_images_are_refused(augment, data_set, tmp_path):
    data_set.remove_columns(["image", "mask"]).save_to_disk(tmp_path / "in")
    with pytest.raises(UsageError, match="must have one column of images, or one called image, got none"):
        augment(tmp_path / "in")
    data_set.save_to_disk(tmp_path / "other")
    with pytest.raises(UsageError, match="has no column kind: it has image, label, mask, note"):
        augment(tmp_path / "other", label_column="kind")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read as a data set"):
        augment(tmp_path / "broken.parquet")


def test_a_folder_of_images_is_no_record_set(tmp_path, smooth):
    smooth(0).save(tmp_path / "a.png")
    (tmp_path / "old.tar").write_bytes(b"")
    with pytest.warns(ModelWarning, match=r"1 data sets beside the pictures such as old\.tar are left out"):
        assert units_of(tmp_path) == []
    assert json.dumps([unit.name for unit in units_of(tmp_path / "old.tar")]) == '["old.tar"]'


def test_what_lies_beside_a_data_set_is_named(tmp_path, smooth):
    write_tar(tmp_path / "s.tar", {f"{n}.png": png(smooth(n)) for n in range(3)})
    smooth(9).save(tmp_path / "thumbnail.png")
    (tmp_path / "old.tar.gz").touch()
    with pytest.warns(ModelWarning) as told:
        assert [unit.name for unit in units_of(tmp_path)] == ["s.tar"]
    assert [str(one.message).split(" are left out")[0] for one in told] == [
        "1 compressed files such as old.tar.gz",
        "1 pictures beside the data set such as thumbnail.png",
    ]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "x/a.tar.zst", "a.zip"])
def test_compressed_shards_are_refused_by_name(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UsageError, match=r"a\..* is compressed, which is not read: unpack it"):
            units_of(source)


@pytest.mark.parametrize("prefix", ["./", "./sub/", "sub//", ""])
def test_members_of_a_tar_of_a_folder_are_read_and_written(augment, tmp_path, smooth, prefix):
    members = {
        f"{prefix}{n}.{field}": png(smooth(n)) if field == "png" else b"1" for n in range(3) for field in ("cls", "png")
    }
    write_tar(tmp_path / "a.tar", members)
    found, out = augment(tmp_path / "a.tar")
    with tarfile.open(out / "a.tar") as tar:
        folder = prefix.replace("./", "").replace("//", "/")
        assert [name for name in tar.getnames() if name.endswith("png")] == [f"{folder}{n}~1.png" for n in range(3)]
    assert found.progress.done == 3


def test_broken_members_rows_and_shards_fail_alone_and_resume_passes_them(augment, tmp_path, smooth):
    (tmp_path / "in").mkdir()
    good = {"a.png": png(smooth(1)), "a.cls": b"1"}
    broken = {
        "b.json": b"{}",
        "c.png": png(smooth(2)),
        "c.json": b"{",
        "x" * 252 + ".png": png(smooth(3)),
        "../d.png": b"",
    }
    write_tar(tmp_path / "in" / "0.tar", good | broken)
    (tmp_path / "in" / "1.tar").write_bytes(b"no tar")
    write_tar(tmp_path / "in" / "2.tar", good)
    for resume in (False, True):
        found, out = augment(tmp_path / "in", resume=resume)
        names = sorted(record.name for record in found.progress.failed)
        assert names == ["0.tar/../d", "0.tar/b", "0.tar/c", "0.tar/" + "x" * 60, "1.tar"]
        assert found.progress.done + found.progress.kept == 2
    assert sorted(path.name for path in out.iterdir()) == ["0.tar", "2.tar"]
    assert not list(tmp_path.glob(".*"))


def test_rows_without_an_image_fail_alone(augment, data_set, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "image": None if number in (1, 3) else row["image"]} for number, row in enumerate(data_set)]
    datasets.Dataset.from_list(rows, data_set.features).to_parquet(tmp_path / "a.parquet")
    for resume in (False, True):
        found, out = augment(tmp_path / "a.parquet", resume=resume)
        assert [record.name for record in found.progress.failed] == ["a.parquet/00000001", "a.parquet/00000003"]
    assert datasets.Dataset.from_parquet(str(out / "a.parquet"))["inherited_from"] == ["00000000.png", "00000002.png"]


def test_a_shard_that_loses_images_while_it_is_packed_is_no_success(augment, shards, monkeypatch):
    pack = record_sets.pack_shard
    monkeypatch.setattr(
        record_sets, "pack_shard", lambda shard, made, rows, target: pack(shard, made, rows[1:], target)
    )
    with pytest.raises(RunError, match=r"s-0\.tar would hold 1 of 2 images"):
        augment(shards)


def test_a_copy_that_goes_while_a_data_set_is_packed_ends_with_its_name(augment, data_set, tmp_path, monkeypatch):
    data_set.to_parquet(str(tmp_path / "train.parquet"))
    pack = record_sets.pack_data_set

    def without_one(path, made, rows, target):
        next(made.glob("*.png")).unlink()
        pack(path, made, rows, target)

    monkeypatch.setattr(record_sets, "pack_data_set", without_one)
    with pytest.raises(RunError, match=r"cannot write .*train\.parquet \(No such file or directory\)"):
        augment(tmp_path / "train.parquet")
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_a_finished_shard_that_goes_while_the_others_are_made_is_an_error(augment, shards, monkeypatch):
    pack = record_sets.pack_shard

    def harmful(shard, *rest):
        for path in shard.parent.with_name("out").glob("*.tar"):
            path.unlink()
        pack(shard, *rest)

    monkeypatch.setattr(record_sets, "pack_shard", harmful)
    with pytest.raises(RunError, match=r"1 of 2 shards or splits in .*, such as s-0\.tar, were removed"):
        augment(shards)
    monkeypatch.undo()
    assert augment(shards, resume=True)[0].progress.total == 4


@pytest.mark.parametrize(
    "name", ["../secret.png", "{outside}", "link.png", "folder/../../secret.png", "linked/secret.png"]
)
def test_rows_that_name_files_outside_their_own_folder_fail_alone(augment, tmp_path, smooth, name):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in" / "folder").mkdir(parents=True)
    smooth(1).save(tmp_path / "secret.png")
    smooth(2).save(tmp_path / "in" / "mine.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path)
    paths = ["mine.png", name.format(outside=tmp_path / "secret.png")]
    table = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path} for path in paths]})
    features = datasets.Features({"image": datasets.Image()})
    rows = table.cast(
        datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    )
    import pyarrow.parquet

    words = {b"huggingface": json.dumps({"info": {"features": features.to_dict()}}).encode()}
    pyarrow.parquet.write_table(rows.data.table.replace_schema_metadata(words), tmp_path / "in" / "a.parquet")
    found, out = augment(tmp_path / "in" / "a.parquet")
    assert [record.name for record in found.progress.failed] == ["a.parquet/00000001"]
    assert "which is not in" in found.progress.failed[0].reason
    assert datasets.Dataset.from_parquet(str(out / "a.parquet"))["inherited_from"] == ["00000000.png"]
