"""The shape of the package: wings, what each may import, and no part of it too long to be read at once."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "nearfar"
FAR = ("diffusion", "latents", "models", "io", "metrics", "sampling")  # what `domain` stands on
# Each wing, and the wings it may import; all may import EVERYONES.
WINGS = {
    "diffusion": (),
    "latents": (),
    "io": (),
    "models": ("diffusion", "io"),
    "metrics": ("diffusion", "latents", "models", "io"),
    "sampling": ("diffusion", "models", "io", "metrics"),
    "domain": FAR,
    "evolution": ("diffusion", "models", "io", "metrics", "sampling"),
    "data": ("diffusion", "models", "io", "metrics", "sampling"),
    "audit": ("diffusion", "models", "io", "metrics", "data", "sampling"),
    "jobs": ("diffusion", "models", "io", "metrics", "sampling", "domain", "evolution", "data", "audit"),
    "reports": (*FAR, "domain", "evolution", "audit", "jobs"),
    "web": ("diffusion", "models", "io", "metrics", "sampling", "domain", "evolution", "audit", "jobs", "reports"),
    "cli": (
        *("diffusion", "models", "io", "metrics", "sampling", "domain", "evolution", "data", "audit", "jobs"),
        *("reports", "web"),
    ),
}
EVERYONES = ("errors", "tensors", "structured")
FRONT = ("__init__", "__main__")
FILES = sorted(PACKAGE.rglob("*.py"))


def place_of(file):
    """`nearfar/errors.py`, and everything in `nearfar/audit/`, by the name under `nearfar`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(place):
    if place in WINGS:
        return {place, *WINGS[place], *EVERYONES}
    if place in EVERYONES:
        return set(EVERYONES)
    assert place in FRONT, f"nearfar.{place} is in no wing: place it in one of {', '.join(WINGS)}"
    return {*WINGS, *EVERYONES}


def imports_of(source):
    """Places of nearfar that a source text imports from, anywhere in it, in whichever form."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from nearfar.wing.module import name"
            names = [f"nearfar.{alias.name}" for alias in node.names] if node.module == "nearfar" else [node.module]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            place = rest.partition(".")[0]
            if package == "nearfar":  # what is no place is a public name of the package
                yield place if place in {place_of(file) for file in FILES} else "__init__"


def check_imports(place, source):
    may = allowed(place)
    for imported in imports_of(source):
        assert imported in may, f"nearfar.{place} imports nearfar.{imported}, which it may not"


def test_imports_follow_the_table():
    for file in FILES:
        check_imports(place_of(file), file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "from nearfar.models.model import FrozenModel",
        "import nearfar.models.model",
        "import os, nearfar.models.model as frozen",
        "from nearfar.models import model",
        "from nearfar import models",
        "def later():\n    from nearfar.models.model import FrozenModel as Model",
    ],
)
def test_the_check_sees_an_import_that_the_table_forbids(source):
    check_imports("sampling", source)
    with pytest.raises(AssertionError, match=r"nearfar\.diffusion imports nearfar\.models, which it may not"):
        check_imports("diffusion", source)


@pytest.mark.parametrize("source", ["import nearfar", "from nearfar import local_sample"])
def test_no_wing_imports_the_package_itself(source):
    with pytest.raises(AssertionError, match="which it may not"):
        check_imports("jobs", source)


def test_the_table_goes_one_way():
    """No two wings reach each other, by whatever way."""

    def reached(wing):
        return {wing, *(further for below in WINGS[wing] for further in reached(below))}

    assert all(wing not in reached(below) for wing, wings in WINGS.items() for below in wings)


def test_a_module_outside_the_wings_is_asked_to_take_its_place():
    with pytest.raises(AssertionError) as error:
        check_imports("helpers", "import os")
    assert "nearfar.helpers is in no wing: place it in one of diffusion, latents, io" in str(error.value)


def test_every_wing_is_a_docstring_and_its_modules():
    for wing in WINGS:
        tree = ast.parse((PACKAGE / wing / "__init__.py").read_text())
        assert ast.get_docstring(tree)
        assert len(tree.body) == 1


def test_no_module_is_named_after_nothing():
    assert not {file.stem for file in FILES} & {"utils", "util", "helpers", "common", "misc", "core", "base"}


def test_the_package_is_read_in_a_day():
    lines = {file: len(file.read_text().splitlines()) for file in FILES}
    assert sum(lines.values()) < 29_700
    assert {str(file.relative_to(PACKAGE)): count for file, count in lines.items() if count > 400} == {}


def test_no_function_is_longer_than_a_screen():
    """Forty lines of body: from the first statement after the docstring to the last."""
    for file in FILES:
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                body = function.body[1:] if ast.get_docstring(function) else function.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert length <= 40, f"{file.name}: {function.name} has {length} lines"
