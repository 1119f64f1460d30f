"""`nearfar calibrate`, and `nearfar anonymize` at what it found, with the tiny model."""

import json

import pytest

from folders import contents
from nearfar.io.manifest import manifest_path, read_manifest


@pytest.fixture
def source(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 24)
    return tmp_path / "in"


@pytest.fixture
def calibrate(nearfar, source, model_folder):
    def call(*options):
        small = ("--model", model_folder, "--device", "cpu", "--steps", 2, "--features", "pixels")
        return nearfar("calibrate", source, source.with_name("c.json"), *small, *options)

    return call


def test_anonymize_takes_the_strength_that_was_found(calibrate, anonymize, source, tmp_path):
    found = calibrate("--target", "similarity=0.7", "--json")
    assert found.exit_code == 0
    assert "at most 24 network calls" in found.stderr  # 6 x 24 pairs in 5 batches, 7 parts of 24, for 2 steps each
    content, file = json.loads(found.stdout), tmp_path / "c.json"
    assert 0 < content["strength"] < 1
    assert content["verdict"] in (tmp_path / "c.report.html").read_text("utf-8")
    assert not manifest_path(file).exists()
    key = ("--key-file", tmp_path / "key")
    done = anonymize(source, tmp_path / "out", "--calibration", file, "--json", *key)
    assert json.loads(done.stdout)["settings"]["strength"] == pytest.approx(content["strength"])
    by_hand = anonymize(source, tmp_path / "by hand", "--strength", content["strength"], *key)
    assert done.exit_code == by_hand.exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "by hand")
    assert "leave --strength" in anonymize(source, tmp_path / "x", "--calibration", file, "--strength", 0.2).stderr
    assert "made with steps 2, not 3" in anonymize(source, tmp_path / "x", "--calibration", file, "--steps", 3).stderr
    assert "--overwrite" in calibrate("--target", "similarity=0.7").stderr


def test_each_image_goes_only_as_far_as_it_needs(calibrate, anonymize, source, tmp_path):
    assert calibrate("--target", "similarity=0.06").exit_code == 0
    out, key = tmp_path / "out", tmp_path / "key"
    options = ("--calibration", tmp_path / "c.json", "--per-image", "--key-file", key, "--batch-size", 16)
    assert "each image's own" in (ended := anonymize(source, out, *options)).stderr
    assert "privacy   no formal bound: the strength of each image was chosen by looking" in ended.stderr
    records = read_manifest(manifest_path(out)).records.values()
    figures = [record.figures for record in records if record.status == "done"]
    assert len(figures) > 12  # of 24
    assert all(each["similarity"] <= 0.06 for each in figures)
    assert len({each["strength"] for each in figures}) > 1
    failed = [record.reason for record in records if record.status == "failed"]
    assert all("even at strength 1 its similarity is" in reason for reason in failed)
    assert ended.exit_code == (3 if failed else 0)
    whole = contents(out)
    for name in list(whole)[::3]:
        (out / name).unlink()
    anonymize(source, out, *options, "--resume")
    assert contents(out) == whole


def test_a_target_that_cannot_be_met_is_said(calibrate, anonymize, source, tmp_path):
    found = calibrate("--target", "similarity=-0.5", "--json")
    assert found.exit_code == 3
    assert json.loads(found.stdout)["verdict"].startswith("No strength meets similarity at most -0.5")
    refused = anonymize(source, tmp_path / "out", "--calibration", tmp_path / "c.json")
    assert refused.exit_code == 2
    assert "found no strength for similarity at most -0.5" in refused.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "beauty=1"], "target must be one of rank1, similarity, label, distance"),
        (["--target", "label=0.9", "--sample", "19"], "needs 20 images or more"),
        (["--target", "rank1=0.1", "--recognizer", "face.onnx"], "--recognizer and --detector together"),
        (["--target", "rank1=0.1", "--report", "page.txt"], "ends in .html"),
    ],
)
def test_what_cannot_be_meant_is_refused(calibrate, options, sentence):
    refused = calibrate(*options)
    assert refused.exit_code == 2
    assert sentence in refused.stderr


def test_the_report_does_not_replace_the_calibration(calibrate, source):
    refused = calibrate("--target", "rank1=0.1", "--report", source.with_name("c.html"))
    assert refused.exit_code == 2
    assert "would replace" in refused.stderr


def test_per_image_strengths_need_a_score_of_each_image(calibrate, anonymize, source, tmp_path):
    assert "needs the --calibration" in anonymize(source, tmp_path / "out", "--per-image").stderr
    assert calibrate("--target", "rank1=0.9").exit_code in (0, 3)
    refused = anonymize(source, tmp_path / "out", "--calibration", tmp_path / "c.json", "--per-image")
    assert refused.exit_code == 2
