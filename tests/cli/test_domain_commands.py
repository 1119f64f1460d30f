"""`nearfar domain` from end to end with the tiny model: a file, samples, reports, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bad_domains import BAD_ARRAY_DOMAINS, BAD_DOMAINS, arrays, fluxes, pictures, random_pixels
from folders import contents
from nearfar.cli.app import app
from nearfar.domain.guards import Judgment
from nearfar.io.manifest import manifest_path

IMAGES = 6
FAST = ("--device", "cpu", "--batch-size", 8)


@pytest.fixture(scope="module", autouse=True)
def few_samples_of_the_models_own(tmp_path_factory):
    """Sixteen instead of two hundred, kept from one test to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nearfar.domain.domain.OWN_SAMPLES", 16)
        patch.setenv("NEARFAR_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder):
    """A folder of six pictures and a broken one, fitted in two steps; nothing is kept before."""
    folder = tmp_path_factory.mktemp("domain")
    pictures(folder / "in", *(random_pixels(number) for number in range(IMAGES)))
    (folder / "in" / "broken.png").write_bytes(b"no picture")
    options = ("--model", model_folder, *FAST, "--steps", 2, "--report", folder / "fit.html", "--json")
    fitted = run("domain", "fit", folder / "in", folder / "a.domain", *options)
    assert fitted.exit_code == 3, fitted.stderr
    (folder / "fit.stdout").write_text(fitted.stdout)
    (folder / "fit.stderr").write_text(fitted.stderr)
    return folder


@pytest.fixture
def sample(place, model_folder, tmp_path):
    """Run `nearfar domain sample` into `tmp_path / "out"`; everything is written, whatever the guards say."""

    def call(*options, file=place / "a.domain", out=tmp_path / "out"):
        keep = () if "--count" in options else ("--count", 5, "--keep-all")
        return run("domain", "sample", file, out, "--model", model_folder, *FAST, *keep, *options)

    return call


def test_a_fit_says_what_it_found(place):
    content, said = json.loads((place / "fit.stdout").read_text()), (place / "fit.stderr").read_text()
    assert (content["images"], content["strength"], content["steps"]) == (IMAGES, 0.5, 2)
    assert content["bytes"] == (place / "a.domain").stat().st_size
    assert [entry["name"] for entry in content["failed"]] == ["broken.png"]
    assert content["preprocessing"] == {"fit": "pad", "values": None}
    assert content["diagnostics"]["images"] == IMAGES
    assert content["diagnostics"]["sigma"] == pytest.approx(3.424, abs=1e-3)
    assert content["guards"]["latent_unit"] > 0
    assert "failed    broken.png: " in said
    assert "level     strength 0.5 = time 499 = sigma " in said
    assert f"note      {IMAGES} different images say little of a domain" in said
    assert "cost      about 50 network calls for up to 8 images each: 40 for 16 samples of the model's own" in said
    assert json.loads((place / "fit.json").read_text())["diagnostics"] == content["diagnostics"]
    assert "as confidential as they are" in (place / "fit.html").read_text()


def test_inspect_says_the_same_without_a_model(place, model_folder):
    file, fitted = place / "a.domain", json.loads((place / "fit.stdout").read_text())
    found = run("domain", "inspect", file, "--json")
    assert found.exit_code == 0
    content = json.loads(found.stdout)
    assert content == {name: fitted[name] for name in content}
    assert "as confidential as they are" in found.stderr
    lines = run("domain", "inspect", file, "--model", model_folder).stdout
    assert f"images    {IMAGES} pictures, fitted by pad\n" in lines
    assert f"model     sha256:{content['model'][:12]}" in lines
    assert "level     strength 0.5 = time 499 = sigma 3.424, 2 steps\n" in lines
    other = run("domain", "inspect", file, "--model", "faces")
    assert other.exit_code == 2
    assert f"domain was fitted with model sha256:{content['model'][:12]}..., this model is sha256:" in other.stderr


def test_samples_with_record_and_report(sample, tmp_path):
    result = sample("--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    names = [f"sample-000{number}.png" for number in range(1, 6)]
    assert sorted(contents(tmp_path / "out")) == names
    assert [row["name"] for row in summary["samples"]] == names
    assert sum(summary["counts"].values()) == 5
    assert all(len(row["parents"]) == 3 and row["verdict"] for row in summary["samples"])
    assert manifest_path(tmp_path / "out").exists()
    assert json.loads((tmp_path / "out.report.json").read_text())["counts"] == summary["counts"]
    page = (tmp_path / "out.report.html").read_text()
    assert page.count("<img") == 1
    assert "So they are not shown; --show-fitted puts them here." in page


def test_fitted_images_are_shown_only_if_asked_for(sample, tmp_path):
    assert sample("--show-fitted").exit_code == 0
    page = (tmp_path / "out.report.html").read_text()
    assert page.count("<img") == 2
    assert "This page shows fitted images." in page


def test_a_resumed_run_ends_in_the_same_bytes_and_reports_all(sample, tmp_path):
    assert sample().exit_code == 0
    before, report = contents(tmp_path / "out"), json.loads((tmp_path / "out.report.json").read_text())
    (tmp_path / "out" / "sample-0003.png").unlink()
    result = sample("--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert (json.loads(result.stdout)["done"], json.loads(result.stdout)["kept"]) == (1, 4)
    assert contents(tmp_path / "out") == before
    assert json.loads((tmp_path / "out.report.json").read_text()) == report
    other = sample("--resume", "--seed", 3)
    assert other.exit_code == 2
    assert "was made with other settings (seed 0, now 3)" in other.stderr


def test_what_the_guards_drop_is_listed_and_not_written(sample, tmp_path, monkeypatch):
    copy = Judgment(1, 0.1, 0.1, 0.1, -1.0, 0.0, ("a copy of fitted image 1",), "drop")
    monkeypatch.setattr(
        "nearfar.domain.guards.Guards.judge", lambda self, model, images, batch_size: [copy] * len(images)
    )
    result = sample("--count", 3, "--json")
    assert result.exit_code == 3
    assert contents(tmp_path / "out") == {}
    assert "dropped   sample-0002.png: a copy of fitted image 1\n" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["counts"] == {"kept": 0, "flagged": 0, "dropped": 3, "failed": 0}
    assert summary["reasons"] == {"a copy of fitted image 1": 3}


def test_it_is_told_when_most_are_flagged(sample, monkeypatch):
    odd = Judgment(1, 2.0, 2.0, 0.1, -1.0, 3.0, ("layout or colors stronger than the domain's",), "flag")
    monkeypatch.setattr(
        "nearfar.domain.guards.Guards.judge", lambda self, model, images, batch_size: [odd] * len(images)
    )
    result = sample("--count", 3)
    assert "note      3 of 3 are flagged: look at them before they are used\n" in result.stderr
    assert "these samples are new in most of their area" in result.stdout


def test_variations_of_an_image(sample, tmp_path):
    """At amount 1 the image is forgotten, and they are samples like any other, but for a rounding."""
    image = pictures(tmp_path / "near", random_pixels(1)) / "0.png"
    assert sample("--near", image, "--amount", 1, out=tmp_path / "far").exit_code == 0
    assert sample("--near", image, out=tmp_path / "by").exit_code == 0
    assert sample().exit_code == 0
    far, by, free = (pixels(tmp_path / name) for name in ("far", "by", "out"))
    assert np.abs(far - free).max() <= 1
    assert np.abs(by - free).max() > 1


def pixels(folder):
    return np.stack([np.asarray(Image.open(path), int) for path in sorted(folder.iterdir())])


def test_a_dry_run_writes_nothing(sample, tmp_path):
    result = sample("--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["todo"] == 5
    assert "cost      2 network calls for each batch, and 1 for its judgment" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_with_130_and_keeps_what_is_finished(sample, tmp_path, monkeypatch):
    from nearfar.jobs.run import Run

    transform = Run.transform

    def interrupted(run, group):
        if any(loaded.item.name == "sample-0009.png" for loaded, _ in group):
            raise KeyboardInterrupt
        return transform(run, group)

    monkeypatch.setattr(Run, "transform", interrupted)
    result = sample("--count", 10, "--keep-all")
    assert result.exit_code == 130
    assert result.stderr.endswith("nearfar: interrupted; what is finished is kept, and --resume goes on with it\n")
    assert len(contents(tmp_path / "out")) == 8
    monkeypatch.undo()
    assert json.loads(sample("--count", 10, "--keep-all", "--resume", "--json").stdout)["kept"] == 8


def test_arrays_come_out_in_their_own_units(sample, tmp_path, model_folder):
    some = [np.stack([fluxes(3 * number + channel) for channel in range(3)]) for number in range(IMAGES)]
    arrays(tmp_path / "in", *some)
    options = ("--values", "asinh", "--model", model_folder, *FAST, "--steps", 2)
    fitted = run("domain", "fit", tmp_path / "in", tmp_path / "flux.domain", *options)
    assert fitted.exit_code == 0, fitted.stderr
    assert "arrays through asinh" in fitted.stdout
    assert sample(file=tmp_path / "flux.domain").exit_code == 0
    low, high = np.stack(some).min((0, 2, 3)), np.stack(some).max((0, 2, 3))
    for path in (tmp_path / "out").iterdir():
        values = np.load(path)
        assert path.suffix == ".npy"
        assert (values.dtype, values.shape) == (np.float32, (3, 16, 16))
        assert (values >= low.astype(np.float32)[:, None, None]).all()
        assert (values <= high.astype(np.float32)[:, None, None]).all()


@pytest.mark.usefixtures("place")  # fitted before anything is kept
def test_a_survey_proposes_the_level_of_a_fit(tmp_path, model_folder):
    pictures(tmp_path / "in", *(random_pixels(number) for number in range(8)))
    options = ("--model", model_folder, *FAST, "--steps", 2, "--json")
    surveyed = run("domain", "survey", tmp_path / "in", "--report", tmp_path / "survey.html", *options)
    assert surveyed.exit_code == 0, surveyed.stderr
    survey = json.loads(surveyed.stdout)
    assert [level["strength"] for level in survey["levels"]] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert survey["reason"] in (tmp_path / "survey.html").read_text()
    fitted = run("domain", "fit", tmp_path / "in", tmp_path / "a.domain", "--survey", *options)
    assert fitted.exit_code == 0, fitted.stderr
    content = json.loads(fitted.stdout)
    assert content["survey"] == survey
    assert content["strength"] == (survey["proposed"] or 0.5)


def test_eta_can_be_measured(sample, tmp_path):
    result = sample("--eta", "auto", "--json")
    assert result.exit_code == 0, result.stderr
    eta = json.loads(result.stdout)["settings"]["eta"]
    assert f"eta       {eta:g}: of the outputs stay in the domain " in result.stderr
    again = sample("--eta", "auto", "--resume", "--json")
    assert json.loads(again.stdout)["kept"] == 5
    assert "measured" not in again.stderr


REFUSED = {
    "none": "holds no image that can be read (0 other files)",
    "one": "a domain needs at least 4 different images, got 1 of 1: add some",
    "twins": "a domain needs at least 4 different images, got 1 of 2: add some",
    "black": "a domain needs at least 4 different images, got 1 of 4: add some",
    "truncated": "holds no image that can be read (the first of 2 files: ",
}
REFUSED_ARRAYS = {
    "one": "a domain needs at least 4 different images, got 1 of 1: add some",
    "black": "channel 0 is 0 throughout at clip 0: clip less or give varied data",
    "nan": "holds no image that can be read (the first of 3 files: ",
}


@pytest.mark.parametrize(
    ("kind", "sentence", "values"),
    [
        *((BAD_DOMAINS[name], sentence, ()) for name, sentence in REFUSED.items()),
        *((BAD_ARRAY_DOMAINS[name], sentence, ("--values", "asinh")) for name, sentence in REFUSED_ARRAYS.items()),
    ],
    ids=[*REFUSED, *(f"{name} array" for name in REFUSED_ARRAYS)],
)
def test_a_folder_that_makes_no_domain_is_refused(tmp_path, model_folder, kind, sentence, values):
    source = kind(tmp_path / "in")
    result = run("domain", "fit", source, tmp_path / "file", "--model", model_folder, *FAST, *values)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("fit in a.domain", "a.domain is there already: give --overwrite to replace it, or choose another place"),
        ("fit in in/new", "in/new must be a file outside of in, which is only read"),
        ("fit in new --strength 0", "strength must be in (0, 1], got 0"),
        ("fit in new --strength 0.4 --survey", "give either --strength or --survey, got both"),
        ("fit in new --symmetry round", "symmetry must be one of none, mirror, turn, got 'round'"),
        ("fit in new --report in/page.html", "report in/page.html must not lie in in, which holds images"),
        ("inspect missing", "missing must be a domain file, got nothing there"),
        ("inspect in/0.png", "in/0.png is no domain file, or a damaged one"),
        ("inspect cut", "cut is no domain file, or a damaged one"),
        ("sample cut out --count 2", "cut is no domain file, or a damaged one"),
        ("sample a.domain out --count 0", "count must be at least 1, got 0"),
        ("sample a.domain out --count 2 --eta high", "eta must be in [0, 1] or auto, got 'high'"),
        ("sample a.domain out --count 2 --pull 2", "pull must be in [0, 1], got 2"),
        ("sample a.domain out --count 2 --amount 0.3", "--amount is how far variations go: give --near IMAGE too"),
        ("sample a.domain out --count 2 --family round", "family must be one of mosaic, parents, sphere, "),
        ("sample a.domain in --count 2", "in is not empty: give --resume to go on with it"),
        ("sample a.domain . --count 2 --resume", ". has no manifest ("),
        ("sample a.domain out --count 2", "domain was fitted with model sha256:"),
        ("sample a.domain out --count 2 --near missing.png", "domain was fitted with model sha256:"),
    ],
)
def test_what_cannot_be_meant_is_refused(place, monkeypatch, arguments, sentence):
    monkeypatch.chdir(place)
    (place / "cut").write_bytes((place / "a.domain").read_bytes()[:2000])
    before = {path.name for path in place.iterdir()}
    result = run("domain", *arguments.split())
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert {path.name for path in place.iterdir()} == before
