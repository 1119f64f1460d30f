"""What the documents say is run: Python blocks, links."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import nearfar
from oracle_domains import SIDE, oracle, unseen

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_readme_code_runs_on_a_folder_of_photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for shade in (40, 160):
        Image.new("RGB", (30, 40), (shade, shade, 90)).save(f"photos/{shade}.png")
    (block,) = python_blocks(ROOT / "README.md")
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["graded"]) == 8
    assert sorted(path.name for path in (tmp_path / "near").iterdir()) == ["160.png", "40.png"]


def test_the_three_nouns_of_the_concepts_page_are_calls_that_work():
    (block,) = python_blocks(ROOT / "docs" / "concepts.md")
    model = nearfar.load_model()
    x_t = torch.zeros(1, model.image.channels, model.image.size, model.image.size)
    t, s = torch.tensor([300.0]).double(), torch.tensor([200.0]).double()
    names = {"schedule": model.schedule, "denoiser": model.denoiser, "solver": nearfar.DDIM(), "noise": None}
    exec(block, names | {"x_t": x_t, "t": t, "s": s})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_code_of_the_page_on_unseen_domains_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(ROOT / "docs" / "unseen.md")
    names = {"model": oracle(), "images": unseen()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nearfar.ModelWarning)
        exec(block, names)
    assert len(names["verdicts"]) == len(names["new"].images) == 16
    assert names["variations"].shape == (4, 3, SIDE, SIDE)
    assert torch.equal(nearfar.load_domain(tmp_path / "cells.domain").latents, names["domain"].latents)
