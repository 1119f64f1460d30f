"""What the documents say is run: Python blocks, links."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.main import get_command

import nearfar
from nearfar.cli.app import app
from oracle_domains import SIDE, oracle, unseen

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*.md")),
]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_readme_code_runs_on_a_folder_of_photographs(tmp_path, monkeypatch, model):
    """With a tiny model in place of the bundled one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nearfar, "load_model", lambda: model, raising=False)
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


def typed_commands(page: Path) -> list[str]:
    """Commands as a page shows them, in blocks and within sentences, without remarks."""
    text = page.read_text(encoding="utf-8")
    blocks = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    within = re.findall(r"`(nearfar [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.partition("#")[0].strip() for line in [*blocks, *within] if line.startswith("nearfar ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_shows_exists(page):
    for line in typed_commands(page):
        words, command = line.split()[1:], get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", {}) or not words, f"{line}: no such command"
        inner = get_command(app).commands[words[0]].params if command.name == "plan" and words else []
        known = {"--help", "-h"}.union(*(option.opts + option.secondary_opts for option in [*command.params, *inner]))
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_commands_of_the_readme_are_among_them():
    assert len(typed_commands(ROOT / "README.md")) > 20


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
