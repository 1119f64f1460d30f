"""`nearfar audit` on the command line: page, JSON, exit codes, sentences."""

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from nearfar.audit.audit import Content

FIRST_WORDS = ["found", "lost", "learned", "faces", "key", "report"]


@pytest.fixture
def run(tmp_path, write_pictures, anonymize):
    """A folder of originals and one of their local samples."""
    names = write_pictures(tmp_path / "before", 5)
    assert anonymize(tmp_path / "before", tmp_path / "after").exit_code == 0
    return tmp_path, names


@pytest.fixture
def audit(nearfar, model_folder, run):
    folder, _ = run

    def call(*options):
        return nearfar("audit", folder / "before", folder / "after", "--model", model_folder, *options)

    return call


def test_figures_are_printed_and_a_page_stands_beside_the_outputs(audit, run):
    folder, _ = run
    short = audit()
    assert short.exit_code == 0
    assert [line.split()[0] for line in short.stdout.splitlines()] == [
        *["found", "lost", "learned", "faces", "key", "report"]
    ]
    result = audit("--full")
    assert result.exit_code == 0
    assert short.stdout.splitlines()[:5] == result.stdout.splitlines()[:5]
    assert "PSNR, dB: " in result.stdout
    assert "re-identified, own original, rank 1: " in result.stdout
    assert "What attackers find, by pixels at 16x16\n" in result.stdout
    assert "chance 0.2, n 5\n" in result.stdout
    assert re.search(r"  PSNR, dB: .*, n 5\n      note: deviation [0-9.]+\n  SSIM: ", result.stdout)
    assert "Trained attackers\n  left out: need at least 20 originals or people, got 5\n" in result.stdout
    assert "attacks 6/6" in result.stderr
    assert (folder / "after.audit.html").read_text("utf-8").startswith("<!doctype html>")
    assert len(list(folder.rglob("*.png"))) == 10


def test_a_bad_file_is_told_and_ends_with_3_and_json_has_all(audit, run):
    folder, names = run
    (folder / "after" / names[0]).write_bytes(b"")
    (folder / "after" / names[1]).unlink()
    result = audit("--json", "--report", folder / "page.html", "--features", "pixels")
    assert result.exit_code == 3
    assert f"failed    AFTER/{names[0]}: " in result.stderr
    assert f"missing   BEFORE/{names[1]}: original without an output" in result.stderr
    content = json.loads(result.stdout)
    assert content["exit_code"] == 3
    assert content["counts"]["outputs audited"] == 3
    assert [each["name"] for each in content["failed"]] == [f"AFTER/{names[0]}"]
    kept = json.loads((folder / "page.json").read_text("utf-8"))
    assert kept["figures"] == content["figures"]


def test_limits_of_the_user_decide_the_exit_code(audit):
    assert audit("--fail-if", "rank1>1", "--fail-if", "psnr<0").exit_code == 0
    result = audit("--fail-if", "rank1>1", "--fail-if", "psnr>0", "--fail-if", "faces>0.1", "--json")
    assert result.exit_code == 4
    assert re.search(r"limit     psnr > 0: it is [0-9.]+\nlimit     faces was not measured", result.stderr)
    assert len(json.loads(result.stdout)["over_limit"]) == 2


def test_the_json_is_what_its_schema_says(audit, run):
    folder, _ = run
    assert audit().exit_code == 0
    documented = Path(__file__).parents[2] / "docs" / "audit.schema.json"
    adapter = TypeAdapter(Content)
    assert json.loads(documented.read_text("utf-8")) == adapter.json_schema()
    kept = (folder / "after.audit.json").read_bytes()
    assert adapter.validate_json(kept)
    with pytest.raises(ValidationError):
        adapter.validate_json(kept.replace(b'"counts"', b'"count"'))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--fail-if", "rank1"], "--fail-if must be a figure"),
        (["--report", "page.txt"], "the report is a page, got page.txt"),
        (["--others", "nowhere"], "nowhere must be a folder of images, got nothing there"),
        (["--features", "inception"], "features must be model, efficientnet, pixels or a folder of a network"),
        (["--detector", "yunet.onnx"], "give both ONNX files"),
        (["--members", "."], "members need others to be told from"),
        (["--people"], "could be people: leave out people"),
    ],
)
def test_what_cannot_be_meant_ends_with_2_and_a_sentence(audit, run, options, sentence):
    folder, _ = run
    result = audit(*options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (folder / "after.audit.html").exists()


def test_a_folder_is_not_audited_against_itself(nearfar, run):
    folder, _ = run
    result = nearfar("audit", folder / "before", folder / "before")
    assert result.exit_code == 2
    assert "BEFORE and AFTER are one folder" in result.stderr
