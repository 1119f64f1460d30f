"""`anonymize`: a folder of images in, a folder of local samples out, each image only as far as it needs if asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.audit.calibration import Calibration
from nearfar.audit.scorer import Eyes
from nearfar.audit.targets import Target
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, OnStep, Sampling, Solver
from nearfar.errors import UsageError
from nearfar.io.fitting import FitMode, as_written
from nearfar.io.listing import Item
from nearfar.io.manifest import Progress
from nearfar.io.marks import MARKED, Marking
from nearfar.jobs.calibrate import method_settings
from nearfar.jobs.job import (
    Job,
    Results,
    Transform,
    as_picture,
    calls_near,
    make_job,
    near,
    one_square,
    trajectory_settings,
    unchanged,
)
from nearfar.jobs.run import plan_run, run
from nearfar.jobs.tiles import tiled_job
from nearfar.metrics.features import FeatureNetwork, distances_from
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import sample_near
from nearfar.tensors import Images


def anonymize_job(
    model: FrozenModel,
    sampling: Sampling,
    *,
    fit: FitMode = FitMode.PAD,
    key: SecretKey | None = None,
    batch_size: int | None = None,
    keep_metadata: bool = False,
    marking: Marking = MARKED,
    burned_in: bool = False,
) -> Job:
    """The job of replacing every image by a local sample of itself.

    sampling: from a level of one number, above 0. fit: with `TILE`, larger pictures keep their size, in tiles.
    key: give one to make the run repeatable; otherwise a random key is used and forgotten.
    batch_size: chosen from the model, the device and the work unless given, and halved when memory runs out.
    marking: how outputs say that a model made them. burned_in: whether pictures likely to hold text are read (DICOM).
    Cost: `solver.calls(steps)` network calls for each batch.
    """
    used_key = key or SecretKey.random()
    written = {"keep_metadata": keep_metadata, **marking.settings()}
    job = make_job(
        model,
        {"command": "anonymize", **trajectory_settings(model, sampling, fit), **written},
        transform=near(model, used_key, sampling),
        read=one_square(model.image, fit, burned_in),
        encode=as_picture(fit, keep_metadata, marking),
        object_to=unchanged,
        key=key,
        batch_size=batch_size,
        calls=calls_near(sampling),
    )
    make = partial(near, key=used_key, sampling=sampling)
    return tiled_job(job, model, make, batch_size is not None) if fit is FitMode.TILE else job


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


HALVINGS = 5

OwnScore = Callable[[Images], Callable[[Images], Tensor]]
"""Originals, which are looked at once -> (outputs) -> a score for each output, from this pair alone."""


@dataclass(frozen=True, eq=False)
class Need:
    """What each image's own output must meet. most: the strength that is tried first, above which nothing is."""

    target: Target
    score: OwnScore
    most: float = 1.0

    def met(self, scores: Tensor) -> Tensor:
        return scores >= self.target.value if self.target.kind.at_least else scores <= self.target.value


def calibrated_job(
    model: FrozenModel, calibration: Calibration, need: Need | None, sampling: Sampling, **options: Any
) -> Job:
    """The job of `anonymize_job` at the strength that a calibration found; with `need`, at each image's own.

    sampling: its level is of no account. options: those of `anonymize_job`. Raises UsageError if the calibration is of
    another model or another way to sample it. Cost: that of `anonymize_job`, with `need` 6 times as much.
    """
    found = calibration.strength_for(method_settings(model, sampling, options.get("fit", FitMode.PAD)))
    least = found if need is None else need.most / 4**HALVINGS
    job = anonymize_job(model, sampling.at(Level(least)), **options)
    job = replace(job, settings={**job.settings, "calibration": calibration.digest})
    return job if need is None else per_image_job(job, model, need, sampling)


def per_image_job(job: Job, model: FrozenModel, need: Need, sampling: Sampling) -> Job:
    """The job with strengths of the images' own, which its records tell beside the scores."""
    return replace(
        job,
        transform=only_as_far(model, job.key, need, sampling),
        object_to=partial(objection, need=need),
        measure=lambda results, _: told(results),
        settings={**job.settings, "per_image": str(need.target), "halvings": HALVINGS},
        steps=sampling.steps * (1 + HALVINGS),
        calls=calls_near(sampling, 1 + HALVINGS),
    )


def only_as_far(model: FrozenModel, key: SecretKey, need: Need, sampling: Sampling) -> Transform:
    """Each image's output, and as figures its strength, below 0 if none met the target, and its score."""

    def transform(images: Images, items: Sequence[Item], on_step: OnStep) -> Results:
        score, variants = need.score(images), [item.variant for item in items]

        def attempt(strength: Tensor, on_step: OnStep) -> tuple[Images, Tensor]:
            outputs = sample_near(model, images, sampling.at(Level(strength)), key, variants, on_step)
            return outputs, score(as_written(outputs)).float()

        low, high = torch.zeros(len(images)), torch.ones(len(images))
        best, scores = attempt(need.most * high**2, on_step)
        met = need.met(scores)
        for turn in range(1, 1 + HALVINGS):
            root = torch.where(met, (low + high) / 2, high)
            outputs, new = attempt(need.most * root**2, later(on_step, turn * sampling.steps))
            good = met & need.met(new)
            best, scores = torch.where(good[:, None, None, None], outputs, best), torch.where(good, new, scores)
            low, high = torch.where(good, low, root), torch.where(good, root, high)
        strengths = torch.where(met, need.most * high**2, -1.0)
        return Results(best, {"strength": strengths, need.target.measure: scores})

    return transform


def later(on_step: OnStep, done: int) -> OnStep:
    """Counts steps from those that are done."""
    return lambda step, state: on_step(done + step, state)


def told(results: Results) -> dict[str, float]:
    """Strength and score of the output of one image, as the record tells them; the least of several pages."""
    return {name: round(values.min().item(), 6) for name, values in results.figures.items()}


def objection(squares: Tensor, results: Results, need: Need) -> str:
    """Why the output of one image is not written: it missed the target, or it is the image again."""
    strength, score = told(results).values()
    if strength < 0:
        return f"even at strength {need.most:g} its {need.target.measure} is {score:.3g}, asked was {need.target}"
    return unchanged(squares, results)


def need_of(calibration: Calibration, eyes: Eyes, network: FeatureNetwork) -> Need:
    """The one target of a calibration as that of every image, through the same networks.

    Raises UsageError where images have no score of their own, and for other networks.
    """
    target, asked = calibration.targets[0], calibration.asked
    if len(calibration.targets) > 1 or target.measure not in ("similarity", "distance"):
        raise UsageError(f"--per-image needs one target, similarity or distance, the calibration has {asked}: "
                         "calibrate with such a target alone")  # fmt: skip
    role, name = ("attacker", eyes.name) if target.measure == "similarity" else ("content", network.name)
    if calibration.measuring[role] != name:
        raise UsageError(f"the calibration looked through {calibration.measuring[role]}, not {name}: give the same")
    score = partial(similarity, eyes) if target.measure == "similarity" else partial(distances_from, network)
    return Need(target, score, max(point.strength for point in calibration.found.curves[target.measure]))


def similarity(eyes: Eyes, originals: Images) -> Callable[[Images], Tensor]:
    """Cosine of each output and its original."""
    known = eyes.vectors(originals, originals)
    return lambda outputs: (eyes.vectors(outputs, originals) * known).sum(1)
