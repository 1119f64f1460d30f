"""`nearfar reconstruct` and `invert` from end to end with the tiny model: files, figures, report, resume, refusals."""

import json

import numpy as np
import pytest
from PIL import Image

from folders import contents
from nearfar.cli.options import ModelChoice
from nearfar.io.manifest import manifest_path, read_manifest


@pytest.fixture
def source(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 3)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def reconstruct(nearfar, model_folder):
    """With two own samples, in two steps to half of the way."""

    def call(source, out, *options):
        few = ("--steps", 2, "--strength", 0.5, "--own-samples", 2)
        return nearfar("reconstruct", source, out, "--model", model_folder, "--device", "cpu", *few, *options)

    return call


def report_beside(out):
    return json.loads(out.with_name("out.report.json").read_text("utf-8"))


def test_pictures_come_back_with_a_report_beside_them(source, out, reconstruct):
    result = reconstruct(source, out)
    assert result.exit_code == 0, result.stderr
    assert contents(out).keys() == contents(source).keys()
    content = report_beside(out)
    assert {image["name"] for image in content["images"]} == contents(source).keys()
    assert len(content["own_psnr"]) == 2
    assert all({"psnr", "ssim", "residual", "fell_back", "calls"} < image.keys() for image in content["images"])
    assert f"verdict   {content['verdict']}\n" in result.stdout
    page = out.with_name("out.report.html")
    assert f"report    {page}\n" in result.stdout
    assert content["verdict"].partition(":")[0] in page.read_text("utf-8")
    assert "cost      5 or more (at most 83) network calls for each batch\n" in result.stderr
    assert "own       2 samples of the model's own, in 1 batches, 20 calls more for each\n" in result.stderr


def test_figures_are_of_what_was_written(source, out, reconstruct):
    """Pictures of the model's size: the recorded PSNR is that of the files, to within the rounding of 8 bits."""
    assert reconstruct(source, out, "--solver", "ddim").exit_code == 0
    for name, record in read_manifest(manifest_path(out)).records.items():
        with Image.open(source / name) as before, Image.open(out / name) as after:
            error = np.square(np.asarray(before, float) / 127.5 - np.asarray(after, float) / 127.5).mean()
        assert record.figures["psnr"] == pytest.approx(10 * np.log10(4 / error), abs=0.5)
        assert record.figures.keys() == {"psnr", "ssim", "calls"}


def test_a_resumed_run_reports_all_of_its_images(source, out, reconstruct):
    assert reconstruct(source, out, "--own-samples", 0).exit_code == 0
    before = report_beside(out)
    next(out.iterdir()).unlink()
    result = reconstruct(source, out, "--own-samples", 0, "--resume", "--json")
    summary = json.loads(result.stdout)
    assert (summary["done"], summary["kept"]) == (1, 2)
    assert report_beside(out)["images"] == before["images"]
    assert summary["verdict"] == "none: no samples of the model's own were made"


def test_bdia_brings_back_the_very_same_pictures(source, out, reconstruct, tmp_path):
    result = reconstruct(source, out, "--solver", "bdia", "--own-samples", 0, "--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    for name in contents(source):
        with Image.open(source / name) as before, Image.open(out / name) as after:
            assert (np.asarray(before) == np.asarray(after)).all()
    assert (tmp_path / "page.json").exists()
    assert not out.with_name("out.report.html").exists()


def test_a_failed_image_is_in_the_report(source, out, reconstruct):
    (source / "empty.png").touch()
    assert reconstruct(source, out, "--own-samples", 0).exit_code == 3
    (failed,) = report_beside(out)["failed"]
    assert failed["name"] == "empty.png"


def test_a_dry_run_writes_nothing(source, out, reconstruct):
    result = reconstruct(source, out, "--dry-run")
    assert result.exit_code == 0
    assert "cost      5 or more" in result.stderr
    assert [path.name for path in out.parent.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("invert", ["--solver", "bdia"], "solver must be one of fixed-point, heun, ddim, got 'bdia'"),
        ("reconstruct", ["--report", "out/page.html"], "report out/page.html must not lie in "),
        ("reconstruct", ["--report", "page"], "the report is a page, got page: give a file that ends in .html"),
        ("reconstruct", ["--own-samples", "-1"], "own samples must be at least 0, got -1"),
        ("reconstruct", ["--solver", "dpm++"], "solver must be one of fixed-point, heun, ddim, bdia, got 'dpm++'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    source, tmp_path, monkeypatch, nearfar, command, options, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelChoice, "load", lambda _: pytest.fail("a model was loaded"))
    result = nearfar(command, "in", "out", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
