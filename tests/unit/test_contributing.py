"""CONTRIBUTING.md is followed: its paths and names exist, its table is the law's, its code does what it says."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps

import tiny_models
from nearfar.audit import fidelity
from nearfar.diffusion import solver
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.jobs import job as jobs
from nearfar.jobs.run import plan_run, run
from nearfar.models import networks
from nearfar.models.loading import load_model
from nearfar.sampling.inversion import reconstruct
from nearfar.sampling.local_sampling import local_sample
from unit.test_layers import FAR, WINGS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "nearfar"
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))
PATHS = [text for text in QUOTED if re.fullmatch(r"[\w./-]+(\.(py|md|txt|toml)(:[\w.]+)?|/)", text)]
WORDS = {
    "-": (),
    "the six above": FAR,
    "all above but latents": tuple(wing for wing in WINGS if wing not in ("latents", "jobs", "reports", "web", "cli")),
    "all but data, web, cli": tuple(wing for wing in WINGS if wing not in ("data", "reports", "web", "cli")),
    "all above but latents, data": tuple(wing for wing in WINGS if wing not in ("latents", "data", "web", "cli")),
    "all but latents": tuple(wing for wing in WINGS if wing not in ("latents", "cli")),
}
"""What the table says instead of a list of wings."""


@pytest.mark.parametrize("path", PATHS)
def test_every_path_and_name_exists(path):
    file, _, name = path.partition(":")
    places = [place for place in (ROOT / file, PACKAGE / file) if place.exists()]
    assert places, f"there is no {file}"
    inside = ast.parse(places[0].read_text("utf-8")).body if name else []
    for part in name.split(".") if name else []:
        (node,) = (node for node in inside if part in names_of(node))
        inside = getattr(node, "body", [])


def names_of(node):
    """What a statement defines."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    return [getattr(node, "name", None)]


def test_the_paths_that_newcomers_ask_for_are_on_the_page():
    assert len(PATHS) > 40
    assert sum(":" in path for path in PATHS) > 20


def test_the_table_of_wings_is_the_one_that_is_tested():
    rows = re.findall(r"^\| `(\w+)/` \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
    said = {wing: WORDS.get(text) if text in WORDS else tuple(text.split(", ")) for wing, text in rows}
    assert {wing: set(may) for wing, may in said.items()} == {wing: set(may) for wing, may in WINGS.items()}


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", PAGE))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def follow(name, *modules, **more):
    """Run a block of the page as part of the modules that it extends; the names it leaves."""
    names = {key: value for module in modules for key, value in vars(module).items()} | more
    exec(BLOCKS[name], names)
    return SimpleNamespace(**names)


def test_a_solver_is_added(model):
    page = follow("solver", solver, SOLVERS={**solver.SOLVERS})
    images = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(0)) * 2 - 1
    options = {"strength": 0.5, "steps": 4, "key": SecretKey.from_seed(1)}
    near = local_sample(model, images, solver=page.SOLVERS["euler"], **options)
    torch.testing.assert_close(near, local_sample(model, images, solver=solver.DDIM(), **options))
    assert reconstruct(model, images, strength=0.5, steps=4, solver=page.Euler()).isfinite().all()


def test_a_model_family_is_added(tmp_path, monkeypatch):
    page = follow("family", networks, READERS={**networks.READERS})
    monkeypatch.setattr(networks, "READERS", page.READERS)
    tiny_models.edm(tmp_path / "model")
    tiny_models.rename_part(tmp_path / "model", "scheduler", "ListedSigmasScheduler")
    config = {"_class_name": "ListedSigmasScheduler", "sigmas": [0.1, 0.5, 2.0, 10.0]}
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    model = load_model(tmp_path / "model", "cpu")
    assert model.schedule.ratio(torch.tensor([3.0]).double()).item() == pytest.approx(10)
    assert local_sample(model, torch.zeros(1, 3, 16, 16), sigma=2.0, steps=2).isfinite().all()


def test_a_job_is_added(tmp_path, model, write_pictures):
    page = follow("job", jobs)
    (name, other) = write_pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    job = page.mirror_job(model, Sampling(Level(0.5), 2))
    progress = run(job, tmp_path / "out", plan_run(job, tmp_path / "in", tmp_path / "out", False))
    assert (progress.done, [record.name for record in progress.failed]) == (2, ["bad.png"])
    for each in (name, other):
        with Image.open(tmp_path / "in" / each) as before, Image.open(tmp_path / "out" / each) as after:
            assert after.tobytes() == ImageOps.mirror(before).tobytes()
    assert len(plan_run(job, tmp_path / "in", tmp_path / "out", True).kept) == 2


def test_a_metric_is_added():
    page = follow("metric", fidelity)
    originals, outputs = torch.zeros(2, 3, 8, 8), torch.full((4, 3, 8, 8), 0.5)
    figure = page.absolute_errors(SimpleNamespace(of=torch.tensor([0, 0, 1, 1])), originals, outputs)
    assert (figure.name, figure.value, figure.count) == ("mean absolute error", 0.5, 4)
    assert figure.low == figure.high == 0.5
