"""The report of a reconstruction: a verdict that follows from the figures, for people and for machines alike."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DDIM, Heun, Sampling
from nearfar.errors import UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Listing
from nearfar.io.manifest import Manifest, Record, manifest_path
from nearfar.jobs.places import check_page
from nearfar.jobs.run import Plan
from nearfar.reports.page import CAPTION, MARGIN, to_pil
from nearfar.reports.reconstruct import account, check_report, cost, distribution, report, verdict, worst_images
from nearfar.tensors import ImageContract

SETTINGS = {"strength": 0.9, "time": 899.0, "sigma": 60.3, "steps": 20, "solver": "fixed-point"}
OWN = [40.0 + number for number in range(21)]  # low quantile 41, threshold 38


@pytest.fixture
def out(tmp_path):
    """The record of three measured images, one of an image that is gone, and a failed one."""
    psnr = {"good <b>.png": 45.0, "bad.png": 20.0, "edge.png": 38.0, "gone.png": 1.0}
    with Manifest(manifest_path(tmp_path / "out"), {"run": SETTINGS}) as manifest:
        for name, value in psnr.items():
            figures = {"psnr": value, "ssim": 0.9, "residual": 1e-3, "fell_back": 0.0, "calls": 60.0}
            manifest.add(Record(name, "done", figures=figures))
        manifest.add(Record("broken.png", "failed", "is empty"))
    return tmp_path / "out"


def told(out, own=OWN):
    return account(SETTINGS, out, ["good <b>.png", "bad.png", "edge.png", "broken.png"], own)


def test_the_account_holds_every_image_of_the_run_the_worst_first(out):
    content = told(out)
    assert [image["name"] for image in content["images"]] == ["bad.png", "edge.png", "good <b>.png"]
    assert content["failed"] == [{"name": "broken.png", "reason": "is empty"}]
    assert content["threshold"] == pytest.approx(38.0)
    assert content["verdict"].startswith("in part: 2 of 3 images come back as well as the model's own samples (38.0 dB")


@pytest.mark.parametrize(
    ("good", "bad", "answer"), [(19, 1, "yes"), (18, 2, "in part"), (10, 10, "in part"), (9, 11, "no"), (0, 1, "no")]
)
def test_the_verdict_follows_from_the_share_of_good_images(good, bad, answer):
    sentence = verdict([30.0] * good + [29.9] * bad, 30.0, "fixed-point")
    assert sentence.startswith(f"{answer}: {good} of {good + bad} images")


def test_there_is_no_verdict_without_a_measure():
    assert verdict([], 30.0, "ddim") == "none: no image was measured"
    assert verdict([30.0], None, "ddim") == "none: no samples of the model's own were made"
    assert verdict([150.0], 30.0, "bdia").startswith("none: bdia gives images back whatever the model is")


def test_page_and_numbers_agree_and_names_stay_text(out, tmp_path):
    content, sheet = told(out), Image.new("RGB", (4, 4))
    report(content, sheet).write(tmp_path / "report.html", content)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == content
    for text in (content["verdict"], "good &lt;b&gt;.png", "<td>20</td>", "data:image/png;base64,", "<svg"):
        assert text.replace("'", "&#39;") in page
    assert "<b>" not in page
    report(content, sheet).write(tmp_path / "again.html", content)
    assert (tmp_path / "again.html").read_text("utf-8") == page


@pytest.mark.parametrize("own", [[], OWN])
def test_an_empty_run_has_a_report_too(out, own, tmp_path):
    content = account(SETTINGS, out, [], own)
    report(content, Image.new("L", (1, 1))).write(tmp_path / "r.html", content)
    assert "none: no image was measured" in (tmp_path / "r.html").read_text("utf-8")


def test_the_curve_shows_both_domains_and_the_threshold(out):
    axes = distribution(told(out)).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["images", "own samples", "threshold"]
    assert axes.lines[2].get_xdata() == pytest.approx([38.0, 38.0])


def test_the_sheet_shows_differences_eightfold_in_the_order_of_the_account(out, tmp_path):
    for folder, level in (("in", 100), ("out", 105)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / folder / "bad.png")
    sheet = worst_images(told(out), tmp_path / "in", out, ImageContract(8, 3), FitMode.PAD)
    left = [MARGIN + 48 + column * (96 + MARGIN) for column in range(4)]
    levels = [np.asarray(sheet)[CAPTION + MARGIN + 48, x, 0] for x in left]
    assert levels[:2] == [100, 105]
    assert levels[2] == pytest.approx(127.5 + 8 * 5, abs=1)
    assert levels[3] == 255  # edge.png cannot be read: its place is empty


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_become_pictures(channels):
    image = to_pil(torch.linspace(-1, 1, channels * 4).view(channels, 2, 2))
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    planes = np.asarray(image).reshape(2, 2, channels).transpose(2, 0, 1)
    assert planes.ravel() == pytest.approx(np.linspace(0, 255, channels * 4), abs=0.51)


def test_a_report_does_not_lie_with_the_images(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    assert check_report(None, source, out, 32) == tmp_path / "out.report.html"
    for path in (out / "r.html", source / "deep" / "r.html"):
        with pytest.raises(UsageError, match=r"must not lie in .*, which holds images: keep it elsewhere"):
            check_report(path, source, out, 32)
    with pytest.raises(UsageError, match=r"the report is a page, got .*r\.json: give a file that ends in \.html"):
        check_report(tmp_path / "r.json", source, out, 32)
    with pytest.raises(UsageError, match="own samples must be at least 0, got -1"):
        check_report(None, source, out, -1)


def test_a_report_does_not_replace_a_file_of_the_command(tmp_path):
    own = tmp_path / "faces.json"
    for page in (own.with_suffix(".html"), tmp_path / "." / "faces.htm"):
        with pytest.raises(UsageError, match=r"would replace .*faces\.json: give the report another name"):
            check_page(page, [], [tmp_path / "other", own])
    check_page(tmp_path / "page.html", [], [own])


@pytest.mark.parametrize(
    ("solver", "calls"),
    [(FixedPointDDIM(), "21 or more (at most 411)"), (DDIM(), "20"), (Heun(), "39"), (BDIA(), "19")],
)
def test_the_cost_is_said_in_network_calls(solver, calls):
    plan = Plan([], [], [], Listing(), 16, SecretKey.from_seed(0))
    sampling = Sampling(Level(0.9), 10, solver)
    assert cost(plan, sampling, 0) == [("cost", f"{calls} network calls for each batch")]
    extra = ("own", "33 samples of the model's own, in 3 batches, 20 calls more for each")
    assert cost(plan, sampling, 33)[1] == extra
