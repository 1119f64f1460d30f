"""Every script of benchmarks/ and recipes/ is there to be run: its help is shown, and what it imports exists."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "recipes").glob("*.py")])
NAMES = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}
SCRIPTS = [file for file in FILES if "typer" in file.read_text("utf-8") and "__main__" in file.read_text("utf-8")]


def loaded(file):
    """A module by the name that it is run under: recipes are run by their path."""
    return import_module(file.stem if file.parent.name == "recipes" else NAMES[file])


@pytest.mark.parametrize("file", SCRIPTS, ids=NAMES.get)
def test_the_help_of_every_script_is_shown(file):
    module = loaded(file)
    app = getattr(module, "app", None) or typer.Typer()
    if not hasattr(module, "app"):
        app.command()(module.main)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_what_is_imported_of_the_package_exists(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("nearfar", "benchmarks"):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
