"""`nearfar augment` from end to end with the tiny model: what it says, refuses, and makes after a kill."""

import json
import shutil
import signal

import pytest

from folders import contents, finished
from nearfar.io.manifest import manifest_path
from nearfar.jobs.augment import Augmentation
from processes import Warm, wait_until


@pytest.fixture
def source(tmp_path, smooth):
    for label, count in (("cat", 4), ("dog", 8)):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(count):
            smooth(number + 10 * (label == "dog")).save(tmp_path / "in" / label / f"{number}.png")
    rows = [f"{label}/{number}.png,{label}" for label, count in (("cat", 4), ("dog", 8)) for number in range(count)]
    (tmp_path / "in" / "metadata.csv").write_text("file_name,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "in"


@pytest.fixture
def augment(nearfar, model_folder, source, tmp_path):
    def call(*options, out="out"):
        return nearfar(
            "augment", source, tmp_path / out, "--model", model_folder, "--device", "cpu", "--steps", 2, *options
        )

    return call


def test_what_is_made_is_said(augment, tmp_path):
    result = augment("--copies", 2, "--strength", "0.2-0.4", "--strength", "dog=0.1", "--keep-originals", "--json")
    assert result.exit_code == 0, result.stderr
    assert "copies    strength 0.2-0.4, dog=0.1; 2 classes (metadata, class folders)" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["copies"], summary["originals"], summary["failed"]) == (24, 12, [])
    assert (tmp_path / "out" / "metadata.csv").read_text().count("\n") == 37


def test_a_plan_writes_nothing(augment, tmp_path):
    result = augment("--select", "balance", "--dry-run")
    assert result.exit_code == 0
    assert "work      4 images" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not manifest_path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--strength", "cat=2"),
            "nearfar: strength must be above 0 to 1, the lower end of a range first, got 'cat=2'",
        ),
        (("--strength", "bird=0.2"), "nearfar: --strength names the class bird, which no image has: cat, dog"),
        (("--check-labels", "fix"), "nearfar: check-labels must be one of"),
        (("--select", "best"), "nearfar: select must be one of all, rarest, hardest, balance, got 'best'"),
        (("--copies", 0), "nearfar: copies must be at least 1, got 0"),
    ],
)
def test_wrong_usage_is_a_sentence(augment, options, sentence):
    result = augment(*options)
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.process
def test_a_killed_run_resumed_has_the_annotations_of_an_undisturbed_one(source, model_folder, tmp_path):
    def arguments(name):
        options = ["--device", "cpu", "--steps", "8", "--batch-size", "4", "--copies", "4", "--resume"]
        return ["augment", str(source), str(tmp_path / name), "--model", str(model_folder), *options]

    assert Warm(arguments("whole"), tmp_path / "logs").wait().code == 0
    process = Warm(arguments("cut"), tmp_path / "logs")
    wait_until(lambda: len(list((tmp_path / "cut").rglob("*~*.png"))) > 8, process)
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert not (tmp_path / "cut" / "metadata.csv").exists()
    assert finished(tmp_path / "cut").items() < contents(tmp_path / "whole").items()
    assert Warm(arguments("cut"), tmp_path / "logs").wait().code == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_shards_are_augmented_one_by_one(nearfar, model_folder, source, tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "one.tar")) as writer:
        writer.write({"__key__": "a", "png": (source / "cat" / "0.png").read_bytes(), "cls": 1})
    options = ("--model", model_folder, "--device", "cpu", "--steps", 2, "--copies", 3, "--json")
    plan = json.loads(nearfar("augment", tmp_path / "one.tar", tmp_path / "out", *options, "--dry-run").stdout)
    assert (plan["units"], plan["settings"]["steps"], (tmp_path / "out").exists()) == (["one.tar"], 2, False)
    result = nearfar("augment", tmp_path / "one.tar", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["units"], summary["copies"], summary["done"]) == (1, 3, 3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.tar"]


@pytest.mark.parametrize("what", ["an output", "OUT", "the record"])
def test_what_goes_while_annotations_are_written_is_an_error(augment, tmp_path, monkeypatch, what):
    finish = Augmentation.finish

    def harmful(work, source, out):
        counts = finish(work, source, out)
        if what == "an output":
            next(out.rglob("*.png")).unlink()
        elif what == "OUT":
            shutil.rmtree(out)
        else:
            manifest_path(out).unlink()
        return counts

    monkeypatch.setattr(Augmentation, "finish", harmful)
    result = augment()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "were removed or changed while the run went on" in result.stderr.splitlines()[-1]
