"""The examples run, with a tiny model and few steps."""

import importlib.util
import json
import warnings
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import nearfar
import tiny_models

pytestmark = pytest.mark.filterwarnings("ignore::nearfar.ModelWarning")
EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A tiny model in place of the bundled one, few of its own samples, and an empty folder to write to."""
    tiny_models.ddpm(tmp_path / "model")
    monkeypatch.setattr(nearfar, "load_model", partial(nearfar.load_model, tmp_path / "model"), raising=False)
    monkeypatch.setattr("nearfar.domain.domain.OWN_SAMPLES", 12)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_near_makes_five_images_of_the_photographs_size():
    assert [image.size for image in example("near").main([], steps=1)] == [(118, 118)] * 5
    with Image.open("near.png") as sheet:
        assert sheet.size == (6 * 118, 118)


def test_near_takes_files():
    Image.new("L", (40, 30), 90).save("gray.png")
    assert {(image.size, image.mode) for image in example("near").main(["gray.png"], steps=1)} == {((40, 30), "L")}


def test_far_judges_every_image():
    assert len(example("far").main([], count=3, steps=1, few=12)) == 3
    assert Path("far.png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_and_audit_measures_each_strength():
    module = example("calibrate_and_audit")
    found = module.main(module.photographs(Path("photos"), 6), Path("audited"), steps=1)
    assert list(found) == [0.2, 0.5]
    assert all(0 <= rate <= 1 for rate in found.values())


def test_augment_training_sees_originals_and_copies():
    assert example("augment_training").main(count=4, copies=2, steps=1) == 12


def test_the_notebook_runs_and_draws_itself():
    cells = json.loads((EXAMPLES / "near_and_far.ipynb").read_text("utf-8"))["cells"]
    names = {}
    with warnings.catch_warnings():
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                exec("".join(cell["source"]).replace("STEPS, COUNT = 20, 40", "STEPS, COUNT = 1, 12"), names)
    assert names["new"]._repr_png_().startswith(b"\x89PNG")
    assert "<table>" in names["model"]._repr_html_()
