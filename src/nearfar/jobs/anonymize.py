"""`anonymize`: a folder of images in, a folder of local samples out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearfar.diffusion.level import STEPS, Level, Sampling
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import SOLVER, Solver
from nearfar.io.fitting import FitMode
from nearfar.io.progress import Progress
from nearfar.jobs.job import Job, as_picture, make_job, near, one_square, trajectory_settings, unchanged
from nearfar.jobs.run import plan_run, run
from nearfar.models.model import FrozenModel


def anonymize_job(
    model: FrozenModel,
    sampling: Sampling,
    *,
    fit: FitMode = FitMode.PAD,
    key: SecretKey | None = None,
    batch_size: int | None = None,
    keep_metadata: bool = False,
) -> Job:
    """The job of replacing every image by a local sample of itself.

    sampling: from a level of one number, above 0.
    key: give one to make the run repeatable; otherwise a random key is used and forgotten.
    batch_size: chosen from the model, the device and the work unless given, and halved when memory runs out.
    Cost: `solver.calls(steps)` network calls for each batch.
    """
    used_key = key or SecretKey.random()
    return make_job(
        model,
        {"command": "anonymize", **trajectory_settings(model, sampling, fit), "keep_metadata": keep_metadata},
        transform=near(model, used_key, sampling),
        read=one_square(model.image, fit),
        encode=as_picture(fit, keep_metadata),
        object_to=unchanged,
        key=key,
        batch_size=batch_size,
    )


def anonymize_folder(
    model: FrozenModel,
    source: str | Path,
    out: str | Path,
    *,
    strength: float | None = None,
    sigma: float | None = None,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    resume: bool = False,
    **options: Any,
) -> Progress:
    """Replace every image below `source` by a local sample of itself, in `out`, under the same name.

    strength: share of the forward process, above 0 to 1; or sigma: noise to signal. One of the two.
    options: those of `anonymize_job`. Returns the run's outcome; `failed` lists images that could not be done.
    """
    job = anonymize_job(model, Sampling(Level(strength, sigma), steps, solver), **options)
    return run(job, Path(out), plan_run(job, Path(source), Path(out), resume))
