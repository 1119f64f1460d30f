"""The demo, on few photographs and in few steps: its page shows what the folder holds."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from folders import contents, state
from nearfar.cli import demo
from nearfar.jobs.anonymize import anonymize_job
from nearfar.models.loading import load_model


@pytest.fixture
def small(monkeypatch, model_folder):
    """Three photographs, two strengths, two steps."""
    data = pytest.importorskip("skimage.data")
    faces = data.lfw_subset()[:2]
    monkeypatch.setattr(data, "lfw_subset", lambda: faces)
    monkeypatch.setattr(demo, "SHOWN_FACES", 2)
    monkeypatch.setattr(demo, "STRENGTHS", (0.2, 0.5))
    monkeypatch.setattr(demo, "load_model", lambda: load_model(model_folder, "cpu"))
    monkeypatch.setattr(demo, "anonymize_job", lambda model, sampling: anonymize_job(model, replace(sampling, steps=2)))


@pytest.mark.usefixtures("small")
def test_the_page_refers_to_what_is_there(tmp_path, nearfar):
    result = nearfar("demo", tmp_path / "demo")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"open {tmp_path / 'demo' / 'index.html'}\n"
    page = (tmp_path / "demo" / "index.html").read_text("utf-8")
    references = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert references
    assert all((tmp_path / "demo" / reference).is_file() for reference in references)
    folders = re.findall(r"<td>(strength-[^<]+)</td></tr>", page)
    assert folders == ["strength-0.20", "strength-0.50"]
    originals = contents(tmp_path / "demo" / "originals")
    assert sorted(originals) == ["astronaut.png", "face-000.png", "face-001.png"]
    assert "3 photographs" in page
    assert "{" not in re.sub("<style>.*</style>", "", page, flags=re.DOTALL)  # nothing left to be filled in
    for folder in folders:
        results = contents(tmp_path / "demo" / folder)
        assert results.keys() == originals.keys()
        assert all(results[name] != originals[name] for name in originals)


@pytest.mark.usefixtures("small")
def test_the_sheet_has_a_row_for_each_photograph_and_a_column_for_each_strength(tmp_path):
    demo.make_demo(tmp_path / "demo")
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert sheet.size == (4 + 3 * 100, 18 + 4 + 3 * 100)  # cells of 96 with margins of 4, below 18 of captions


@pytest.mark.parametrize("what", ["file", "full folder"])
def test_what_is_in_the_way_is_refused_and_kept(tmp_path, nearfar, what):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "full folder").mkdir()
    (tmp_path / "full folder" / "mine.txt").write_text("precious")
    before = state(tmp_path)
    result = nearfar("demo", tmp_path / what)
    assert result.exit_code == 2
    assert result.stderr == f"nearfar: {tmp_path / what} must be an empty folder or none at all: choose another\n"
    assert state(tmp_path) == before


@pytest.mark.usefixtures("small")
def test_an_interrupted_demo_says_what_to_do(tmp_path, nearfar, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_sheet", interrupt)
    result = nearfar("demo", tmp_path / "demo")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "nearfar: interrupted; OUT is unfinished: remove it to begin again"
    assert "Traceback" not in result.stderr
