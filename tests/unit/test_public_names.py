"""The names that users import, and that importing them lazily costs nothing until they are used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nearfar

PUBLIC = [
    "BDIA",
    "DDIM",
    "DPMSolverPP",
    "DPMSolverPPSDE",
    "Denoiser",
    "Domain",
    "FixedPointDDIM",
    "FrozenModel",
    "Heun",
    "ImageError",
    "LatentSpace",
    "ModelWarning",
    "NearDataset",
    "NearTransform",
    "NearfarError",
    "NetworkDenoiser",
    "NoiseSchedule",
    "NoiseStream",
    "PixelSpace",
    "SecretKey",
    "Solver",
    "UsageError",
    "anonymize_folder",
    "audit_folders",
    "augment_folder",
    "denoise",
    "enhance",
    "enhance_folder",
    "evolve",
    "invert",
    "load_domain",
    "load_model",
    "local_sample",
    "reconstruct",
    "represent",
    "save_domain",
    "solve",
    "synthesize",
    "vary",
]


def test_these_names_are_public():
    assert nearfar.__all__ == PUBLIC
    assert dir(nearfar) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_says_what_it_is(name):
    assert getattr(nearfar, name).__doc__
    assert getattr(nearfar, name).__name__ == name


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(nearfar.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: (line.module, alias.name) for line in block.body for alias in line.names}
    assert sorted(seen) == PUBLIC
    for name, (module, original) in seen.items():
        assert getattr(nearfar, name) is getattr(import_module(module), original)


def test_other_names_are_absent():
    with pytest.raises(AttributeError, match="module 'nearfar' has no attribute 'magic'"):
        nearfar.magic  # noqa: B018


@pytest.mark.process
@pytest.mark.parametrize(
    "program",
    [
        "import nearfar",
        "import nearfar; nearfar.UsageError",
        "import sys; sys.argv[1:] = ['--help']; from nearfar.__main__ import main; main()",
        "import sys; sys.argv[1:] = ['anonymize', '--help']; from nearfar.__main__ import main; main()",
    ],
)
def test_torch_is_not_loaded_before_it_is_needed(program):
    check = f"import sys\ntry:\n    exec({program!r})\nexcept SystemExit: pass\nassert 'nearfar' in sys.modules"
    check += "\nheavy = {'torch', 'diffusers', 'numpy', 'PIL'} & sys.modules.keys()\nassert not heavy, heavy"
    process = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
