"""`anonymize`: a folder of images in, a folder of local samples out."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nearfar.errors import UsageError
from nearfar.fitting import FitMode
from nearfar.local_sampling import SOLVER, STEPS, WARP, local_sample, start_times
from nearfar.model import FrozenModel
from nearfar.noise import SecretKey
from nearfar.run import Job, Progress, plan_run, run
from nearfar.solver import SOLVERS, Solver


def anonymize_job(
    model: FrozenModel,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    fit: FitMode = FitMode.PAD,
    key: SecretKey | None = None,
    batch_size: int | None = None,
    keep_metadata: bool = False,
) -> Job:
    """The job of replacing every image by a local sample of itself.

    strength: share of the forward process, above 0 to 1; or sigma: noise to signal. One of the two.
    key: give one to make the run repeatable; otherwise a random key is used and forgotten.
    batch_size: chosen from the model, the device and the work unless given, and halved when memory runs out.
    Cost: `solver.calls(steps)` network calls for each batch.
    """
    used_key = key or SecretKey.random()
    settings: dict[str, Any] = {
        "command": "anonymize",
        "nearfar": version("nearfar"),
        "model": model.provenance.sha256,
        **describe_level(model, strength, sigma),
        "steps": steps,
        "warp": WARP,
        "solver": solver_name(solver),
        "precision": str(model.dtype).removeprefix("torch."),
        "fit": str(fit),
        "keep_metadata": keep_metadata,
    }
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    return Job(
        transform=lambda images: local_sample(
            model, images, strength=strength, sigma=sigma, key=used_key, steps=steps, solver=solver
        ),
        image=model.image,
        fit=fit,
        settings=settings,
        key=used_key,
        repeatable=key is not None,
        batch_size=check_batch_size(default_batch_size(model) if batch_size is None else batch_size),
        shrinkable=batch_size is None,
        keep_metadata=keep_metadata,
        workers=torch.get_num_threads() if model.device.type == "cpu" else 1,
    )


def describe_level(model: FrozenModel, strength: float | None, sigma: float | None) -> dict[str, float]:
    """Strength, time and sigma of one level, together."""
    time = start_times(model.schedule, 1, strength, sigma)
    if time.item() <= model.schedule.clean_time:
        name = "strength" if sigma is None else "sigma"
        raise UsageError(f"{name} must be above 0, got 0: the originals would be copied")
    return {
        "strength": model.schedule.strength_of_time(time).item(),
        "time": time.item(),
        "sigma": model.schedule.ratio(time).item(),
    }


def solver_name(solver: Solver) -> str:
    """The command line's name of a solver, or its description."""
    return next((name for name, known in SOLVERS.items() if known == solver), repr(solver))


def default_batch_size(model: FrozenModel) -> int:
    """32 for networks of a few million parameters, 16 for larger ones, more where a GPU waits to be filled."""
    on_cpu = 32 if model.parameters < 10_000_000 else 16
    return on_cpu if model.device.type == "cpu" else 4 * on_cpu


def check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    return batch_size


def anonymize_folder(
    model: FrozenModel, source: str | Path, out: str | Path, *, resume: bool = False, **options: Any
) -> Progress:
    """Replace every image below `source` by a local sample of itself, in `out`, under the same name.

    options: those of `anonymize_job`. Returns the run's outcome; `failed` lists images that could not be done.
    """
    job = anonymize_job(model, **options)
    return run(job, Path(source), Path(out), plan_run(job, Path(source), Path(out), resume))
