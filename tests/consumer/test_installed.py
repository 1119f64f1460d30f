"""The wheel alone in an environment of its own: it runs, makes its demo, and tells type checkers its types."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PROGRAM = Path(__file__).with_name("program.py")
DEMO = """
from nearfar.cli import demo
demo.FACES, demo.SHOWN_FACES, demo.STRENGTHS = 1, 1, (0.2,)
from nearfar.__main__ import main
main()
"""
pytestmark = [pytest.mark.process, pytest.mark.slow]


def run(*command, cwd=ROOT, **more):
    apart = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run([*map(str, command)], cwd=cwd, env=apart | more, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Of an environment that holds the wheel, and sees the libraries of this one, but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "env", with_pip=False)
    libraries = next((folder / "env").glob("lib/python*/site-packages"))
    (libraries / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(libraries)
    return folder / "env" / "bin" / "python"


def test_the_demo_runs(python, tmp_path):
    where = run(python, "-c", "import nearfar; print(nearfar.__file__, nearfar.__version__)", cwd=tmp_path)
    assert where.stdout.split() == [
        str(next(python.parents[1].glob("lib/*/*/nearfar/__init__.py"))),
        VERSION,
    ]
    made = run(python, "-c", DEMO, "demo", "out", cwd=tmp_path, NEARFAR_MODEL="bundled/faces", OMP_NUM_THREADS="1")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "index.html").read_text("utf-8").startswith("<!doctype html>")
    assert len(list((tmp_path / "out" / "strength-0.20").iterdir())) == 2


def test_mypy_sees_the_types(python, tmp_path):
    options = ["--config-file", PROGRAM.with_name("mypy.ini"), "--python-executable", python, "--cache-dir", tmp_path]
    told = run(sys.executable, "-m", "mypy", *options, PROGRAM).stdout.splitlines()
    assert len(told) == 2
    assert 'Argument 1 to "anonymize_folder" has incompatible type "str"; expected "FrozenModel"' in told[0]


def test_pyright_sees_the_types(python):
    if run(sys.executable, "-m", "pyright", "--version").returncode:
        pytest.skip("pyright fetches itself from the npm registry, which cannot be reached")
    told = run(sys.executable, "-m", "pyright", "--pythonpath", python, PROGRAM).stdout
    assert told.count(" - error: ") == 1
    assert '"Literal[\'faces\']" is not assignable to "FrozenModel"' in told
