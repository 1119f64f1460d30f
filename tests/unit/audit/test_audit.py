"""A whole audit of small folders: what is measured, how it is shown, and what is refused."""

import ast
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import pdist

from nearfar.audit import audit
from nearfar.audit.audit import audit_folders
from nearfar.diffusion.noise import SecretKey
from nearfar.errors import UsageError
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs.anonymize import anonymize_folder
from nearfar.metrics.features import feature_network
from nearfar.reports import audit as report
from nearfar.reports.audit import write_audit
from nearfar.reports.page import groups


@pytest.fixture(scope="module")
def folders(tmp_path_factory, smooth, model):
    """24 originals in two class folders, dark and light, local samples of them, and others."""
    root = tmp_path_factory.mktemp("audit")
    for name, first in (("before", 0), ("others", 100), ("reference", 200)):
        for number in range(24):
            shade, file = number % 2, root / name / ("dark", "light")[number % 2] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            smooth(first + number).point(lambda value, shade=shade: value // 2 + 120 * shade).save(file)
    key = SecretKey.from_seed(0)
    key.save(root / "key")
    anonymize_folder(model, root / "before", root / "after", strength=0.2, steps=2, key=key)
    return root


@pytest.fixture(scope="module")
def found(folders, model):
    with_all = {"others": folders / "others", "reference": folders / "reference", "test": folders / "reference"}
    with_all |= {"members": folders / "reference", "key_file": folders / "key"}
    return audit_folders(folders / "before", folders / "after", model=model, seeds=2, **with_all)


def test_every_part_of_an_audit_is_measured(found, model):
    names = {figure.name for some in found.sections.values() for figure in some}
    assert {"PSNR, dB", "Fréchet distance", "accuracy, AFTER less BEFORE"} <= names
    assert {"re-identified, own original, rank 1", "re-identified, own original among others, rank 5"} <= names
    assert {"outputs and originals, equal error rate", "Gaussian mechanism, mu at the mean distance"} <= names
    assert {
        "membership by the nearest output, area under the curve",
        "membership by the denoising loss at strength 0.3, area under the curve",
        "correlation of pixels with the original, walked back with its noise",
    } <= names
    assert all(figure.library and figure.count for some in found.sections.values() for figure in some)
    assert found.counts["originals audited"] == found.counts["outputs audited"] == 24
    assert found.settings["strength"] == 0.2
    assert [view.name for view in found.views] == ["pixels at 16x16", feature_network("model", model).name]


def test_the_bound_is_the_distance_over_the_noise_of_the_record(found):
    figures = {figure.name: figure.value for figure in found.sections["What is proven"]}
    pixels = [np.array(Image.open(item.path)).flatten() / 127.5 for item in found.pairs.items]
    apart = pdist(pixels).mean()
    assert figures["Gaussian mechanism, mu at the mean distance"] == pytest.approx(apart / found.settings["sigma"])


def test_rows_say_which_original_is_nearest(found):
    row = found.rows[3]
    assert row["name"] == row["original"] == found.pairs.output_items[3].name
    distances = (found.views[0].after[3] - found.views[0].before).norm(dim=1)
    assert row["nearest"]["pixels at 16x16"] == found.pairs.items[distances.argmin()].name


def test_light_and_dark_are_learned_from_outputs_too(found):
    figures = {figure.name: figure for figure in found.sections["What a classifier learns"]}
    assert figures["accuracy, learned from BEFORE"].value > 0.9
    assert figures["accuracy, learned from BEFORE"].count == 24
    assert figures["accuracy, learned from AFTER"].chance == 0.5


def test_the_page_and_its_json_say_the_same_and_pass_no_verdict(found, tmp_path):
    write_audit(tmp_path / "page.html", found)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("page.*")} == {0o600}
    page = (tmp_path / "page.html").read_text("utf-8")
    content = json.loads((tmp_path / "page.json").read_text("utf-8"))
    assert "anonymous" not in page.lower() + json.dumps(content).lower()
    led_back = [view.name for view in found.views if f"Led back to their originals by {view.name}" in page]
    assert led_back
    assert page.count("<img ") == 3 + len(led_back)
    assert page.count('<svg class="plot"') == 2
    assert 'src="http' not in page
    for some in content["figures"].values():
        for figure in some:
            assert f"<td>{figure['name']}</td><td>{figure['value']:.4g}</td>" in page
    assert len(content["outputs"]) == 24


def test_folders_without_classes_record_or_partner_are_audited_and_told(folders, model, smooth, tmp_path):
    for name, numbers in (("one", range(4)), ("two", range(1, 5))):
        (tmp_path / name).mkdir()
        for number in numbers:
            smooth(number if name == "one" else number + 50).save(tmp_path / name / f"{number}.png")
    (tmp_path / "two" / "3.png").write_bytes(b"broken")
    found = audit_folders(tmp_path / "one", tmp_path / "two", model=model, features="pixels")
    page = report.report(found).html()
    assert {name: re.split(r", | \(", remark)[0] for name, remark in found.remarks.items()} == {
        "What is proven": "nothing: no record of the run was found beside the outputs",
        "All outputs beside real images": "left out: needs at least 16 images in BEFORE",
        "Trained attackers": "left out: need at least 20 originals or people",
        "What a classifier learns": "left out: needs at least 2 classes",
    }
    assert "<p>nothing: no record of the run" in page
    assert [name for name, some in found.sections.items() if some] == [
        "What was lost, output by output",
        "What attackers find",
    ]
    assert "No record of the run" in page
    with pytest.raises(UsageError, match="names no strength of this model"):
        audit_folders(tmp_path / "one", tmp_path / "two", model=model, features="pixels", key_file=folders / "key")
    assert "AFTER/3.png: " in page
    assert (found.counts["originals without an output"], found.counts["outputs without an original"]) == (1, 1)


def test_originals_without_an_output_are_counted_and_read_too(model, smooth, tmp_path):
    for name, numbers in (("one", range(4)), ("two", range(2))):
        (tmp_path / name).mkdir()
        for number in numbers:
            smooth(number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "one" / "torn.png").write_bytes((tmp_path / "one" / "0.png").read_bytes()[:200])
    (tmp_path / "one" / "text.png").write_text("no picture")
    (tmp_path / "one" / "empty.jpg").write_bytes(b"")
    found = audit_folders(tmp_path / "one", tmp_path / "two", model=model, features="pixels")
    assert found.pairing.lost == ["2.png", "3.png", "empty.jpg", "text.png", "torn.png"]
    assert [each.name for each in found.rejected] == ["BEFORE/empty.jpg", "BEFORE/text.png", "BEFORE/torn.png"]
    counts = found.counts
    assert (counts["originals"], counts["originals matched"], counts["originals without an output"]) == (7, 2, 5)
    assert (counts["originals audited"], counts["unreadable files"]) == (2, 3)


def test_several_outputs_are_averaged_and_originals_beside_them_left_out(model, smooth, tmp_path):
    for name, copies in (("one", [""]), ("two", ["", "~1", "~2"])):
        (tmp_path / name).mkdir()
        for number, (which, copy) in product(range(3), enumerate(copies)):
            smooth(number + 100 * which).save(tmp_path / name / f"{number}{copy}.png")
    found = audit_folders(tmp_path / "one", tmp_path / "two", model=model, features="pixels")
    assert (found.counts["outputs audited"], found.counts["originals beside their copies (left out)"]) == (6, 3)
    assert found.counts["outputs equal to their original"] == 0
    names = {figure.name: figure.count for figure in found.sections["What attackers find"]}
    assert names["re-identified, own original, rank 1, vectors of 2 outputs averaged"] == 3


def test_reports_of_regions_do_not_load_the_audit():
    source, seen, left = Path(report.__file__).parents[1], set(), ["nearfar.reports.regions"]
    while left:
        seen.add(name := left.pop())
        body = ast.parse(source.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text("utf-8")).body
        found = {node.module for node in body if isinstance(node, ast.ImportFrom)}
        left += {each for each in found - seen if each.startswith("nearfar.")}
    assert "nearfar.reports.page" in seen
    assert "nearfar.audit.audit" not in seen


def recorded(folders, tmp_path, monkeypatch, model, **changes):
    """Outputs with another record, and the audit's answer before anything is read."""
    header = read_manifest(manifest_path(folders / "after")).header
    changed = {"run": header["run"] | changes.pop("run", {}), "key": changes.pop("key", header["key"])}
    monkeypatch.setattr(audit, "manifest_path", lambda _: tmp_path / "record")
    (tmp_path / "record").write_text(json.dumps(changed))
    choices = audit.Choices(key_file=folders / "key", limit=4)
    return audit.settle(audit.Folders(folders / "before", folders / "after"), choices, model, 16)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"command": "augment", "strengths": "0.2-0.4"}, "the outputs are of augment"),
        ({"command": "reconstruct"}, "the outputs are of reconstruct"),
        ({"regions": "faces"}, "pixels outside the regions are copied"),
        ({"per_image": "similarity at most 0.3"}, "chosen by looking at the original"),
    ],
)
def test_nothing_is_proven_of_what_was_not_one_level_of_noise_on_whole_images(
    folders, model, tmp_path, monkeypatch, run, reason
):
    known = recorded(folders, tmp_path, monkeypatch, model, run=run, key="of another kind")
    assert known.key is None
    assert known.remarks.keys() == {"What is proven", "Walked back with the key"}
    assert all(reason in remark for remark in known.remarks.values())


@pytest.mark.parametrize(("key", "sentence"), [("another", "with another key"), ("", "a key that was not kept")])
def test_outputs_are_walked_back_with_no_other_key(folders, model, tmp_path, monkeypatch, key, sentence):
    with pytest.raises(UsageError, match=sentence):
        recorded(folders, tmp_path, monkeypatch, model, key=key)


def test_at_strength_1_there_is_nothing_to_walk_back_to(folders, model, tmp_path, monkeypatch):
    known = recorded(folders, tmp_path, monkeypatch, model, run={"strength": 1.0})
    assert known.key is None
    assert known.remarks == {
        "Walked back with the key": "nothing: at strength 1 nothing of an original is in its output"
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"limit": 1}, "an audit needs at least 2 originals"),
        ({"seeds": 0}, "at least 1 seed"),
        ({"classifier": "forest"}, "classifier must be one of logistic, cnn"),
        ({"detector": "yunet.onnx"}, "needs a detector and the other way round"),
        ({"features": "inception"}, "features must be"),
        ({"members": "reference"}, "members need others"),
        ({"key_file": "nowhere"}, "key file nowhere is not there"),
    ],
)
def test_what_cannot_be_meant_is_refused(folders, model, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        audit_folders(folders / "before", folders / "after", model=model, **options)


def test_refusals_come_before_an_image_is_read(folders, model, smooth, tmp_path, monkeypatch):
    for name in ("flat/a.png", "flat/b.png", "alone/a.png", "strange/horse/a.png", "strange/cow/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(0).save(tmp_path / name)
    (tmp_path / "few" / "dark").mkdir(parents=True)
    smooth(0).save(tmp_path / "few" / "dark" / "00.png")
    (tmp_path / "torn").mkdir()
    for name in ("a.png", "b.png"):
        smooth(0).save(tmp_path / "torn" / name)
    (tmp_path / "torn" / "metadata.jsonl").write_text("{")
    monkeypatch.setattr(audit, "read_pairs", lambda *_: pytest.fail("images were read"))
    before, others = folders / "before", folders / "others"
    for source, options, sentence in (
        (tmp_path / "flat", {"people": True}, "leave out people"),
        (tmp_path / "few", {}, "at least 2 originals with an output, got 1"),
        (tmp_path / "torn", {}, "metadata.jsonl"),
        (before, {"others": tmp_path / "alone"}, "alone must hold at least 2 images that can be read, got 1"),
        (before, {"others": others, "members": tmp_path / "alone"}, "alone must hold at least 2 images"),
        (before, {"test": tmp_path / "strange"}, "name them alike"),
    ):
        after = folders / "after" if source in (before, tmp_path / "few") else source
        with pytest.raises(UsageError, match=sentence):
            audit_folders(source, after, model=model, features="pixels", **options)


def test_a_sheet_is_as_wide_as_it_has_pairs_abreast():
    pair, captions = [torch.zeros(3, 8, 8)] * 2, ["before", "after"]
    one, two, many = (groups([pair] * count, captions) for count in (1, 2, 9))
    assert one.width < two.width < many.width
    assert one.height == two.height < many.height
