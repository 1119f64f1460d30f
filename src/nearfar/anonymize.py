"""`anonymize`: a folder of images in, a folder of local samples out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nearfar.fitting import FitMode
from nearfar.jobs import as_picture, make_job, one_square, trajectory_settings
from nearfar.local_sampling import SOLVER, STEPS, local_sample
from nearfar.model import FrozenModel
from nearfar.noise import SecretKey
from nearfar.plan import Job, Transform, plan_run
from nearfar.run import Progress, run
from nearfar.solver import OnStep, Solver
from nearfar.sources import Item
from nearfar.tensors import Images

UNCHANGED = 1 / 255
"""Root mean square change, in [-1, 1], below which an output counts as its input: half a grey level."""


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
    settings = trajectory_settings(model, strength, sigma, steps, solver, fit)
    return make_job(
        model,
        near(model, used_key, strength=strength, sigma=sigma, steps=steps, solver=solver),
        {"command": "anonymize", **settings, "keep_metadata": keep_metadata},
        read=one_square(model.image, fit),
        encode=as_picture(fit, keep_metadata),
        object_to=unchanged,
        key=key,
        batch_size=batch_size,
    )


def near(
    model: FrozenModel, key: SecretKey, *, strength: float | None, sigma: float | None, steps: int, solver: Solver
) -> Transform:
    """Local samples, each with the variant of its item, and at the item's own strength where it has one."""

    def transform(images: Images, items: Sequence[Item], on_step: OnStep) -> Images:
        level = {"sigma": sigma} if sigma is not None else {"strength": strengths(items, strength)}
        return local_sample(
            model,
            images,
            key=key,
            steps=steps,
            solver=solver,
            variant=[item.variant for item in items],
            on_step=on_step,
            **level,
        )

    return transform


def strengths(items: Sequence[Item], default: float | None) -> list[float]:
    found = [default if item.strength is None else item.strength for item in items]
    return [each for each in found if each is not None]


def unchanged(images: Tensor, outputs: Tensor) -> str:
    """An output that is its input again protects nobody."""
    change = (outputs - images).square().flatten(1).mean(1).sqrt().min().item()
    if change < UNCHANGED:
        return f"the result is the input again (change {change:.2g}, at least {UNCHANGED:.2g}): raise the strength"
    return ""


def anonymize_folder(
    model: FrozenModel, source: str | Path, out: str | Path, *, resume: bool = False, **options: Any
) -> Progress:
    """Replace every image below `source` by a local sample of itself, in `out`, under the same name.

    options: those of `anonymize_job`. Returns the run's outcome; `failed` lists images that could not be done.
    """
    job = anonymize_job(model, **options)
    return run(job, Path(source), Path(out), plan_run(job, Path(source), Path(out), resume))
