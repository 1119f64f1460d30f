"""The documentation site: built strictly, complete, and without a request to anybody."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import nearfar

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.process
@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.parent.name: page.read_text("utf-8") for page in tmp_path.rglob("index.html")}
    assert set(re.findall(r'<h3 id="[\w.]+\.(\w+)"', pages["api"])) == set(nearfar.__all__)
    loads = re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="(?:https?:)?//')
    assert [name for name, page in pages.items() if loads.search(page)] == []


def test_every_page_of_the_docs_has_its_place():
    named = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    latest = re.findall(r"## \[(\d[\d.]*)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"))[0]
    assert (citation["version"], str(citation["date-released"])) == latest
    assert PROJECT["version"] == latest[0]


def test_all_is_every_extra_of_users():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.fullmatch(r"nearfar\[(.*)\]", everything)[1].split(",")
    assert sorted(named) == sorted(extras.keys() - {"all", "docs", "test"})
    assert ".ci/run" in (ROOT / ".github/workflows/test.yml").read_text("utf-8")
