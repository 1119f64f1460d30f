"""`nearfar anonymize --regions` from end to end with the tiny model: boxes of annotations; faces where files allow."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folders import contents
from nearfar.io.listing import Item
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.io.pictures import read_picture
from nearfar.jobs import regions
from nearfar.jobs.regions import face_search

DETECTOR = Path(__file__).parents[3] / "shared" / "weights" / "yunet_n_320_320.onnx"


@pytest.fixture
def source(tmp_path, smooth):
    """One picture with three boxes of two classes, one with a box of YOLO's, one without any."""
    folder = tmp_path / "in" / "images"
    folder.mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "none.png")):
        smooth(number, (80, 60)).save(folder / name)
    boxes = [([10, 8, 24, 20], 1), ([50, 30, 8, 9], 1), ([60, 50, 40, 30], 2)]
    annotations = [{"id": n, "image_id": 1, "bbox": box, "category_id": kind} for n, (box, kind) in enumerate(boxes)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 3, "file_name": "none.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "labels" / "b.txt").write_text("0 0.5 0.5 0.25 0.4\n")
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def changed(source, out, name):
    before, after = (np.asarray(Image.open(folder / name)).astype(int) for folder in (source, out))
    return np.abs(before - after).max(axis=2)


def test_boxes_are_replaced_and_nothing_else_is(source, out, anonymize):
    result = anonymize(source, out, "--regions", "boxes", "--json", "--key-file", source.parent / "key")
    found = json.loads(result.stdout)
    assert "regions   only boxes are replaced: all else stays as it is\n" in result.stderr
    assert "privacy   no formal bound: pixels outside the regions are copied\n" in result.stderr
    assert result.exit_code == 3  # closed: the picture without a box is not written
    assert [failed["name"] for failed in found["failed"]] == ["images/none.png"]
    assert found["failed"][0]["reason"].startswith("its annotations hold no box: not written; --keep-unmatched")
    assert contents(out).keys() == {"images/a.png", "images/b.png"}
    # Sides with a margin of a quarter: 36, 13.5 and 30 (the third is cut by the border); the model has 16 pixels.
    assert found["regions"] == "4 replaced in 2 images; 1 smaller than the model's 16 pixels were enlarged"

    difference = changed(source, out, "images/a.png")
    for top, left, height, width in ((8, 10, 20, 24), (30, 50, 9, 8), (50, 60, 10, 20)):
        assert (difference[top : top + height, left : left + width] > 0).mean() > 0.9
        difference[max(0, top - 10) : top + height + 11, max(0, left - 10) : left + width + 11] = 0
    assert (difference == 0).all()
    assert (changed(source, out, "images/b.png")[18:42, 30:50] > 0).mean() > 0.9

    records = read_manifest(manifest_path(out)).records
    assert records["images/a.png"].figures["least_side"] == pytest.approx(13.5)
    report = json.loads((out.parent / "out.report.json").read_text())
    assert {"PSNR of regions, dB", "re-identified, own original, rank 1"} <= {
        each["name"] for each in report["figures"]
    }
    page = (out.parent / "out.report.html").read_text()
    assert "4 replaced in 2 images" in page
    assert "images/none.png" in page
    assert page.count("data:image/png") == 1
    assert "Measured on 4 regions, the first 500 at most" in page
    assert found["note"] == "out.report.html shows originals: keep it with them"
    assert (out.parent / "out.report.html").stat().st_mode & 0o777 == 0o600

    first = contents(out)
    (out / "images" / "a.png").unlink()
    anonymize(source, out, "--regions", "boxes", "--resume", "--key-file", source.parent / "key")
    assert contents(out) == first


def test_only_the_classes_that_were_asked_for_and_unmatched_images_where_allowed(source, out, anonymize):
    options = ("--regions", "boxes", "--box-classes", "plate", "--keep-unmatched", "--margin", 0.1)
    result = anonymize(source, out, *options)
    assert result.exit_code == 0
    assert "regions   1 replaced in 1 images; 2 images without any were written as they are\n" in result.stdout
    assert (changed(source, out, "images/none.png") == 0).all()
    assert (changed(source, out, "images/a.png")[:40] == 0).all()
    refused = anonymize(source, out, *options[:4], "--resume")
    assert refused.exit_code == 2
    assert "margin 0.1, now 0.25" in refused.stderr


def test_outputs_in_which_a_box_stays_are_not_written(source, out, anonymize, monkeypatch):
    kept = regions.paste
    monkeypatch.setattr(regions, "paste", lambda old, new, region: old if region.side < 15 else kept(old, new, region))
    result = anonymize(source, out, "--regions", "boxes", "--keep-unmatched")
    assert result.exit_code == 3
    assert "images/a.png: the region around (54, 34.5) stayed: 0% of it changed, at least 50% must" in result.stderr
    assert contents(out).keys() == {"images/b.png", "images/none.png"}
    records = read_manifest(manifest_path(out)).records
    assert records["images/b.png"].figures["least_changed"] > 0.9


def test_lines_that_nothing_explains_are_refused_before_anything_is_written(source, out, anonymize):
    (source / "labels" / "b.txt").write_text("0 0.5 0.5 0.25 0.4 0.3 0.3 0.7 0.7 0.9\n")
    options = ("--regions", "boxes", "--keep-unmatched")
    refused = anonymize(source, out, *options)
    assert refused.exit_code == 2
    assert "labels/b.txt line 1 has 9 numbers after the class, which nothing explains" in refused.stderr
    assert not out.exists()
    assert not manifest_path(out).exists()
    assert anonymize(source, out, *options, "--boxes-format", "pose").exit_code == 0
    assert (changed(source, out, "images/b.png")[18:42, 30:50] > 0).mean() > 0.9


def test_a_picture_with_an_exif_turn_fails_unless_its_boxes_are_said_to_be_upright(source, out, anonymize):
    exif = Image.Exif()
    exif[274] = 6
    Image.open(source / "images" / "b.png").save(source / "images" / "b.png", exif=exif)
    result = anonymize(source, out, "--regions", "boxes", "--keep-unmatched")
    assert result.exit_code == 3
    assert "images/b.png: its EXIF data turn it (orientation 6), and nothing says whether its boxes" in result.stderr
    assert contents(out).keys() == {"images/a.png", "images/none.png"}
    other = out.with_name("other")
    assert anonymize(source, other, "--regions", "boxes", "--keep-unmatched", "--boxes-upright").exit_code == 0
    upright = np.asarray(Image.open(source / "images" / "b.png").transpose(Image.Transpose.ROTATE_270)).astype(int)
    difference = np.abs(upright - np.asarray(Image.open(other / "images" / "b.png")).astype(int)).max(axis=2)
    assert (difference[24:56, 23:37] > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--regions", "boxes", "--boxes-format", "yolo"], "boxes format must be one of detect, pose, segment, obb"),
        (["--regions", "faces", "--boxes-upright"], "--boxes-upright goes with --regions boxes"),
        (["--regions", "faces"], "--regions faces needs --detector"),
        (["--regions", "boxes", "--tile"], "--tile is for whole images at a given strength"),
        (["--tile", "--fit", "cover"], "--tile keeps all of an image, at its own size: leave --fit out"),
        (["--regions", "hands"], "regions must be one of faces, boxes, got 'hands'"),
        (["--keep-unmatched"], "--keep-unmatched goes with --regions faces or boxes"),
        (["--regions", "boxes", "--detector", "x.onnx"], "--detector goes with --regions faces"),
        (["--regions", "boxes", "--least-score", 0], "--least-score goes with --regions faces"),
        (["--regions", "boxes", "--fit", "cover"], "--fit is for whole images: leave it out with --regions"),
        (["--regions", "boxes", "--calibration", __file__], "--calibration was measured on whole images"),
        (["--regions", "boxes", "--margin", 0], "margin must be in [0.001, 2], got 0"),
        (["--regions", "boxes", "--box-classes", "dog"], "no box is of class 'dog': choose from 0, cell, plate"),
        (["--regions", "boxes", "--report", "{out}/page.html"], "must not lie in"),
    ],
)
def test_options_that_do_not_fit_are_refused(source, out, anonymize, options, sentence):
    result = anonymize(source, out, *(str(option).format(out=out) for option in options))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not out.exists()


def test_the_report_does_not_replace_the_boxes_with_its_own_json(source, out, anonymize):
    boxes = out.parent / "street.json"
    boxes.write_bytes((source / "images" / "boxes.json").read_bytes())
    result = anonymize(source, out, "--regions", "boxes", "--boxes", boxes, "--report", boxes.with_suffix(".html"))
    assert result.exit_code == 2
    assert f"would replace {boxes}" in result.stderr


@pytest.mark.skipif(not DETECTOR.is_file(), reason="YuNet's file is not beside the repository")
def test_faces_are_found_and_replaced_in_a_photograph(tmp_path, out, anonymize):
    pytest.importorskip("cv2")
    from skimage import data

    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(data.astronaut()).save(source / "astronaut.png")
    Image.fromarray(data.coffee()).save(source / "coffee.png")
    result = anonymize(source, out, "--regions", "faces", "--detector", DETECTOR)
    assert result.exit_code == 3
    assert "coffee.png: no face was found with a score of 0.6 or more" in result.stderr
    difference = changed(source, out, "astronaut.png")
    assert (difference[100:150, 200:250] > 0).mean() > 0.9
    difference[60:195, 160:290] = 0
    assert (difference == 0).all()


@pytest.mark.skipif(not DETECTOR.is_file(), reason="YuNet's file is not beside the repository")
def test_a_tilted_face_gets_its_tilt_by_a_second_look(tmp_path):
    pytest.importorskip("cv2")
    from skimage import data

    Image.fromarray(data.astronaut()).rotate(60).save(tmp_path / "x.png")  # about the middle, (256, 256)
    item = Item(tmp_path / "x.png", "x.png")
    (found,) = face_search(DETECTOR).regions(item, read_picture(item.path))
    turned = complex(224 - 256, 128 - 256) * np.exp(-1j * np.pi / 3)
    assert (found.x - 256, found.y - 256) == pytest.approx((turned.real, turned.imag), abs=8)
    assert np.degrees(found.tilt) == pytest.approx(-60, abs=12)  # a single look says -37
