"""`nearfar reconstruct` and `nearfar invert`: how well a model represents images, and where their latents lie."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.cli.carry_out import Settled
from nearfar.cli.console import shown_progress
from nearfar.cli.options import (
    KEEP_METADATA,
    TILE,
    Folders,
    InverterName,
    Marks,
    ModelChoice,
    RoundTripName,
    RunChoice,
    Trajectory,
    command,
    option,
    solver_option,
)
from nearfar.io.manifest import Progress

if TYPE_CHECKING:
    from nearfar.diffusion.solver import Sampling
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel


@dataclass(frozen=True)
class Verdict:
    """The way back, and what its error is compared with."""

    solver: RoundTripName = solver_option("fixed-point", RoundTripName)
    tile: bool = option(False, TILE)
    report: Path | None = option(None, "The report's page, not in OUT. [default: OUT.report.html]", metavar="FILE")
    own_samples: int = option(32, "Samples of the model's own to measure against; 0 for no verdict.")
    keep_metadata: bool = option(False, KEEP_METADATA)


@command
def reconstruct(
    folders: Folders,
    *,
    trajectory: Trajectory,
    verdict: Verdict,
    marks: Marks,
    choice: ModelChoice,
    how: RunChoice,
) -> Settled:
    """Measure how well the model represents your images.

    Carries them to a noise level and back along their deterministic trajectory. Writes what comes back to OUT, and a
    report beside it: error and cost of every image, a sheet, and a verdict measured on the model's own samples.
    --strength is 0.9 unless given.
    """
    from nearfar.jobs.reconstruct import reconstruct_job
    from nearfar.reports.reconstruct import check_report, cost, write_report_on
    from nearfar.sampling.inversion import RECONSTRUCTORS

    options = trajectory.options(0.9, verdict.solver, RECONSTRUCTORS, verdict.tile)
    page = check_report(verdict.report, folders.source, folders.out, verdict.own_samples)
    marking = marks.marking(folders.source, folders.out)
    model = choice.load()
    job = reconstruct_job(model, keep_metadata=verdict.keep_metadata, marking=marking, **options)

    def report_on(plan: Plan, done: Progress) -> dict[str, Any]:
        own = measure_own(model, verdict.own_samples, done.batch_size, options["sampling"])
        return write_report_on(plan, job, folders.source, folders.out, page, own)

    costs = partial(cost, sampling=options["sampling"], own=verdict.own_samples)
    return Settled(job, model, folders, how, more=costs, after=report_on)


@dataclass(frozen=True)
class Inverter:
    """The way up."""

    solver: InverterName = solver_option("fixed-point", InverterName)


@command
def invert(
    folders: Folders,
    *,
    trajectory: Trajectory,
    inverter: Inverter,
    choice: ModelChoice,
    how: RunChoice,
) -> Settled:
    """Write every image's latents at a noise level, as float32 arrays: photo.jpg.npy.

    Of the shape (channels, height, width) that the model denoises; the way back: documentation, Models. --strength is
    0.9 unless given.
    """
    from nearfar.jobs.reconstruct import invert_job
    from nearfar.sampling.inversion import RECONSTRUCTORS

    options = trajectory.options(0.9, inverter.solver, RECONSTRUCTORS)
    model = choice.load()
    return Settled(invert_job(model, **options), model, folders, how)


def measure_own(model: FrozenModel, count: int, batch_size: int, sampling: Sampling) -> list[float]:
    """How well the model's own samples come back, under a progress display."""
    from nearfar.diffusion.solver import STEPS
    from nearfar.sampling.representation import own_representation

    if not count:
        return []
    progress, began = Progress(count, steps=max(STEPS, sampling.steps)), time.monotonic()
    with shown_progress("own samples") as report:

        def tick(step: int, _: object) -> None:
            progress.step = step
            report(progress)

        own = own_representation(model, sampling, count=count, batch_size=batch_size, on_step=tick)
        progress.done, progress.seconds = count, time.monotonic() - began
        report(progress)
    return own
