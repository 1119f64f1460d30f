"""The shape of the package: imports point downwards, and no part of it is too long to be read at once."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "nearfar"
# From DESIGN section 2, lowest first. A module may import its own layer and those below.
LAYERS = [
    {
        *("tensors", "errors", "schedule", "noise", "denoiser", "solver", "geometry", "oracle"),
        *("cloud", "gaussianity", "two_clouds", "values", "intervals"),
        *("spread", "spectral", "structured", "parents", "regions", "shell"),
        "back_projection",
    },  # mathematics
    {
        *("tiles", "tiling", "latent_space", "model", "schedulers", "networks", "text_families", "devices", "policy"),
        *("diffusers_folder", "hub", "cards", "layouts", "checkpoints", "loading"),
    },  # frozen models
    {
        *("local_sampling", "inversion", "own_domain", "exact_inversion", "representation", "survey"),
        *("domain", "starts", "synthesis", "guidance", "network_features", "capture", "guards", "bandwidth", "pilot"),
        *("enhancement", "calibration", "feature_networks"),
    },  # methods
    {
        *("images", "arrays", "fitting", "sources", "sinks", "manifest", "sheet", "page", "plan", "run"),
        *("jobs", "anonymize", "trajectories", "inputs", "audit"),
        *("representation_report", "survey_report", "domain_file", "domain_report", "samples"),
        *("faces", "onnx_header", "crops", "boxes", "region_job", "region_report"),
        *("annotations", "augment", "enhance_job", "calibration_file", "near_dataset"),
        *("annotation_files", "coco", "yolo", "copy_choice", "label_check", "record_sets", "data_sets", "shards"),
        *("calibrate", "calibration_scores", "calibration_report", "per_image"),
    },  # data in, data out
    {
        "exits",
        "console",
        "options",
        "model_commands",
        "domain_commands",
        "sample_command",
        "carry_out",
        "anonymize_command",
        "region_choice",
        "audit_command",
        "calibrate_command",
        "calibration_choice",
        "augment_command",
        "enhance_command",
        "cli",
        "web",
        "cluster",
        "demo",
        "__main__",
        "__init__",
    },  # faces
]
FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def module_of(file):
    """`nearfar/schedule.py` and everything in `nearfar/audit/` by the name under `nearfar`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(module):
    for number, names in enumerate(LAYERS):
        if module in names:
            return number
    raise AssertionError(f"nearfar.{module} has no layer: place it in LAYERS of tests/unit/test_layers.py")


def imports_of(source):
    """Modules of nearfar that a source text imports, anywhere in it, in whichever form."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from nearfar.module import name"
            names = [f"nearfar.{alias.name}" for alias in node.names] if node.module == "nearfar" else [node.module]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            module = rest.partition(".")[0]
            if package == "nearfar":  # what is not a module is a public name of the package
                yield module if module in {module_of(file) for file in FILES} else "__init__"


def check_imports(module, source):
    layer(module)
    for imported in imports_of(source):
        assert layer(imported) <= layer(module), f"nearfar.{module} imports nearfar.{imported}, which lies above it"


@each_file
def test_imports_only_point_downwards(file):
    check_imports(module_of(file), file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "from nearfar.model import FrozenModel",
        "import nearfar.model",
        "import os, nearfar.model as frozen",
        "from nearfar import model",
        "def later():\n    from nearfar.model import FrozenModel as Model",
    ],
)
def test_the_check_sees_an_import_that_points_upwards(source):
    check_imports("local_sampling", source)
    with pytest.raises(AssertionError, match=r"nearfar\.solver imports nearfar\.model, which lies above it"):
        check_imports("solver", source)


@pytest.mark.parametrize("source", ["import nearfar", "from nearfar import local_sample"])
def test_the_package_itself_lies_above_all_of_its_modules(source):
    with pytest.raises(AssertionError, match="which lies above it"):
        check_imports("run", source)


def test_a_module_without_a_layer_is_asked_to_take_its_place():
    with pytest.raises(AssertionError) as error:
        check_imports("helpers", "import os")
    assert "nearfar.helpers has no layer: place it in LAYERS of tests/unit/test_layers.py" in str(error.value)


def test_no_module_is_named_after_nothing():
    assert not {file.stem for file in FILES} & {"utils", "util", "helpers", "common", "misc", "core", "base"}


def test_the_package_is_read_in_a_day():
    lines = {file: len(file.read_text().splitlines()) for file in FILES}
    assert sum(lines.values()) < 20000
    assert {file.name: count for file, count in lines.items() if count > 400} == {}


@each_file
def test_no_function_is_longer_than_a_screen(file):
    """Forty lines of body: from the first statement after the docstring to the last."""
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{function.name} has {length} lines"
