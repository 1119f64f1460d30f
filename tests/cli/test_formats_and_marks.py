"""`nearfar anonymize` on files of every format at once, and what its results say of themselves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from folders import contents
from nearfar.io.marks import IN_PART, MADE
from nearfar.io.pictures import read_pages, read_picture

SAMPLES = Path(__file__).parents[1] / "samples"
SOUND = ("color.avif", "gray.heic")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


@pytest.fixture
def source(tmp_path):
    """An AVIF and a HEIC file, a TIFF of two pages, an MR image, and an ultrasound picture that may hold a name."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in SOUND:
        shutil.copy(SAMPLES / name, folder / name)
    deep = Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200)
    Image.new("RGB", (30, 20), (200, 90, 40)).save(folder / "pages.tif", save_all=True, append_images=[deep])
    for name, given in (("mr.dcm", "MR_small.dcm"), ("us.dcm", "examples_rgb_color.dcm")):
        shutil.copy(str(get_testdata_file(given, download=False)), folder / name)
    return folder


def test_every_format_comes_back_as_what_it_was(source, tmp_path, anonymize):
    out, key = tmp_path / "out", ("--key-file", tmp_path / "key")
    result = anonymize(source, out, *key)
    assert result.exit_code == 3
    assert "failed    us.dcm: does not deny that text is burned into its pixels" in result.stderr
    assert sorted(contents(out)) == ["color.avif", "gray.heic", "mr.dcm", "pages.tif"]
    for name in contents(out):
        for before, after in zip(read_pages(source / name), read_pages(out / name), strict=True):
            assert (before.pixels.shape, before.frame.depth) == (after.pixels.shape, after.frame.depth)
            assert (before.pixels != after.pixels).mean() > 0.5
    before, after = (pydicom.dcmread(folder / "mr.dcm") for folder in (source, out))
    assert after.PatientName == ""
    assert str(before.PatientName).encode() not in (out / "mr.dcm").read_bytes()
    first = contents(out)
    for name in ("pages.tif", "mr.dcm"):
        (out / name).unlink()
    assert anonymize(source, out, *key, "--resume").exit_code == 3
    assert contents(out) == first


def test_text_is_let_through_when_the_user_knows_better(source, tmp_path, anonymize):
    assert anonymize(source, tmp_path / "out", "--burned-in", "--keep-metadata").exit_code == 0
    before, after = (pydicom.dcmread(folder / "us.dcm") for folder in (source, tmp_path / "out"))
    assert after.PatientName == before.PatientName
    assert after.SOPInstanceUID != before.SOPInstanceUID


def test_results_are_marked_unless_that_is_left_out(source, tmp_path, anonymize):
    for options, marked in (((), True), (("--mark", "none"), False)):
        out = tmp_path / f"out{len(options)}"
        told = json.loads(anonymize(source, out, *options, "--json").stdout)
        assert told["settings"]["mark"] == ("xmp" if marked else "none")
        for name in (*SOUND, "pages.tif"):
            assert (MADE.encode() in (out / name).read_bytes()) == marked
    assert "mark 'xmp', now 'none'" in anonymize(source, tmp_path / "out0", "--resume", "--mark", "none").stderr


def test_a_picture_of_which_regions_are_replaced_is_a_composite(tmp_path, write_pictures, anonymize):
    (name,) = write_pictures(tmp_path / "in", 1, size=(64, 48))
    coco = {
        "images": [{"id": 1, "file_name": name, "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 24, 20]}],
        "categories": [{"id": 1, "name": "plate"}],
    }
    (tmp_path / "in" / "boxes.json").write_text(json.dumps(coco))
    assert anonymize(tmp_path / "in", tmp_path / "out", "--regions", "boxes").exit_code == 0
    assert IN_PART.encode() in read_picture(tmp_path / "out" / name).frame.metadata["xmp"]


def test_a_signing_key_is_checked_before_anything_is_loaded(source, tmp_path, anonymize):
    (source / "key.pem").write_text("x")
    result = anonymize(source, tmp_path / "out", "--c2pa", source / "key.pem")
    assert result.exit_code == 2
    assert "key.pem, a private key, must not lie in" in result.stderr
    result = anonymize(source, tmp_path / "out", "--c2pa", tmp_path / "absent.pem")
    assert "absent.pem must hold a certificate chain for C2PA" in result.stderr


def test_dicom_is_not_enlarged(source, tmp_path, nearfar, model_folder):
    options = ("--model", model_folder, "--device", "cpu", "--steps", 1, "--scale", 2)
    result = nearfar("enhance", source, tmp_path / "out", *options)
    assert "mr.dcm: is a DICOM file, which is not enlarged" in result.stderr
    assert read_picture(tmp_path / "out" / "color.avif").pixels.shape == (96, 128, 3)
    assert IN_PART.encode() in (tmp_path / "out" / "color.avif").read_bytes()
