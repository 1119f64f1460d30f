"""`nearfar evolve` from end to end with the tiny model."""

import json

import pytest

from folders import contents
from nearfar.evolution.accounting import deviation_for
from nearfar.evolution.ledger import rounds_folder


@pytest.fixture
def private(tmp_path, write_pictures):
    write_pictures(tmp_path / "private", 6)
    return tmp_path / "private"


@pytest.fixture
def evolve(nearfar, model_folder):
    def call(private, out, *options):
        small = ("--candidates", 4, "--rounds", 2, "--steps", 2, "--count", 5, "--features", "pixels")
        return nearfar("evolve", private, out, "--model", model_folder, "--device", "cpu", *small, *options)

    return call


def test_a_run_says_what_it_promises_and_makes_images_and_a_page(private, tmp_path, evolve):
    out = tmp_path / "out"
    result = evolve(private, out, "--epsilon", 2)
    assert result.exit_code == 0
    noise = f"noise of deviation {deviation_for(2.0, 1e-5, 2):g} on each vote"
    assert f"promise   epsilon 2 at delta 1e-05 for each image: {noise}" in result.stderr
    assert "note      6 voters say little under this noise: 23 would, or fewer candidates" in result.stderr
    assert "made      5 images, 0 kept from before" in result.stdout
    assert len(contents(out)) == 5
    page = (tmp_path / "out.report.html").read_text()
    assert "epsilon 2 at delta 1e-05 for each image" in page
    again = json.loads(evolve(private, out, "--epsilon", 2, "--resume", "--json").stdout)
    assert (again["kept"], again["done"], again["exit_code"]) == (5, 0, 0)
    assert again["promise"]["epsilon"] <= 2


def test_no_file_tells_how_many_private_images_there_are(private, tmp_path, evolve):
    """Nor anything else of those who voted: neither record nor the JSON beside the page."""
    out = tmp_path / "out"
    evolve(private, out, "--epsilon", 2)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and private not in path.parents]
    kept = [path for path in kept if path.suffix in (".json", ".jsonl")]
    assert len(kept) == 3
    assert not [path for path in kept for key in ("voters", "private", "failed") if key in path.read_text()]


def test_a_dry_run_spends_nothing(private, tmp_path, evolve):
    result = evolve(private, tmp_path / "out", "--epsilon", 2, "--dry-run")
    assert result.exit_code == 0
    assert not rounds_folder(tmp_path / "out").exists()
    assert not (tmp_path / "out").exists()


def test_private_images_that_cannot_be_read_are_named_and_the_exit_code_says_so(private, tmp_path, evolve):
    (private / "broken.png").write_bytes(b"\x89PNG")
    result = evolve(private, tmp_path / "out", "--epsilon", "inf")
    assert result.exit_code == 3
    assert "broken.png" in result.stderr
    assert len(contents(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epsilon", 0], "epsilon must be above 0, got 0: 1 is strong, 10 is weak, inf promises nothing"),
        (["--epsilon", 1, "--delta", 1], "delta must be from 1e-10 to below 1, got 1"),
        (["--epsilon", 1, "--count", 0], "count must be at least 1, got 0"),
        (["--epsilon", 1, "--by", "people"], "by must be one of images, classes, persons, got 'people'"),
        (["--epsilon", 1, "--first", 0.1, "--last", 0.5], "strengths must fall within (0, 1], got 0.1 to 0.5"),
        (
            ["--epsilon", 1, "--features", "eyes"],
            "features must be model, efficientnet, pixels or a folder of a network",
        ),
        (["--epsilon", 1, "--by", "persons"], "with --by persons each image lies in a folder of its own kind"),
    ],
)
def test_what_cannot_be_meant_is_refused(private, tmp_path, evolve, options, sentence):
    (private / "loose.png").write_bytes(next(private.rglob("*.png")).read_bytes())
    result = evolve(private, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()
    assert not rounds_folder(tmp_path / "out").exists()


def test_an_attack_has_a_page_of_its_own_that_only_the_owner_reads(private, tmp_path, evolve, write_pictures):
    write_pictures(tmp_path / "held", 5, first=50)
    attack, held = tmp_path / "attack.html", tmp_path / "held"
    result = evolve(private, tmp_path / "out", "--epsilon", 2, "--attack", attack, "--held-out", held, "--json")
    assert result.exit_code == 0
    assert "attack    membership by the nearest output, area under the curve: " in result.stderr
    figures = {figure["name"]: figure for figure in json.loads(result.stdout)["attack"]}
    assert figures["synthetic images too near to a private one"]["count"] == 5
    assert figures["held-out images too near to a private one"]["chance"] == pytest.approx(0.05)
    assert attack.stat().st_mode & 0o077 == 0
    assert "This page shows private images" in attack.read_text()
    assert "This page shows private images" not in (tmp_path / "out.report.html").read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("private/a.html", "must not lie in"), ("out.report.html", "would replace"), ("a.txt", "the report is a page")],
)
def test_an_attacks_page_goes_where_it_harms_nobody(private, tmp_path, evolve, name, sentence):
    result = evolve(private, tmp_path / "out", "--epsilon", 2, "--attack", tmp_path / name)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not rounds_folder(tmp_path / "out").exists()


def test_held_out_images_are_for_an_attack(private, tmp_path, evolve):
    result = evolve(private, tmp_path / "out", "--epsilon", 2, "--held-out", private)
    assert result.exit_code == 2
    assert "held-out images are for an attack: give --attack FILE, too" in result.stderr
