"""`nearfar reconstruct` and `nearfar invert`: how well a model represents images, and where their latents lie."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.carry_out import carry_out
from nearfar.cli.console import reported_errors
from nearfar.cli.options import KeepMetadata, ModelChoice, Out, RunChoice, Source, TrajectoryChoice, grouped

if TYPE_CHECKING:
    from nearfar.diffusion.level import Sampling
    from nearfar.io.progress import Progress
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel


@grouped
def reconstruct(
    source: Source,
    out: Out,
    *,
    how: TrajectoryChoice,
    solver: Annotated[str, typer.Option(help="fixed-point, heun, ddim or bdia.")] = "fixed-point",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The report's page, not in OUT. [default: OUT.report.html]")
    ] = None,
    own_samples: Annotated[
        int, typer.Option(help="Samples of the model's own to measure against; 0 for no verdict.")
    ] = 32,
    keep_metadata: KeepMetadata = False,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Measure how well the model represents your images.

    Carries them to a noise level and back along their deterministic trajectory. Writes what comes back to OUT, and a
    report beside it: error and cost of every image, a sheet, and a verdict measured on the model's own samples.
    --strength is 0.9 unless given.
    """
    with reported_errors():
        from nearfar.jobs.reconstruct import reconstruct_job
        from nearfar.jobs.run import check_places
        from nearfar.reports.reconstruct import check_report, cost, write_report_on
        from nearfar.sampling.inversion import RECONSTRUCTORS

        options = how.options(0.9, solver, RECONSTRUCTORS)
        check_places(source, out, progress.resume)
        page = check_report(report, source, out, own_samples)
        model = choice.load()
        job = reconstruct_job(model, keep_metadata=keep_metadata, **options)

        def report_on(plan: Plan, done: Progress) -> dict[str, Any]:
            own = measure_own(model, own_samples, done.batch_size, options["sampling"])
            return write_report_on(plan, job, source, out, page, own)

        lines = partial(cost, sampling=options["sampling"], own=own_samples)
        carry_out(job, model, source, out, progress, say_more=lines, after=report_on)


@grouped
def invert(
    source: Source,
    out: Out,
    *,
    how: TrajectoryChoice,
    solver: Annotated[str, typer.Option(help="fixed-point, heun or ddim.")] = "fixed-point",
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Write every image's latents at a noise level, as float32 arrays: photo.jpg.npy.

    Of the shape (channels, height, width) that the model denoises; docs/models.md has the way back. --strength is 0.9
    unless given.
    """
    with reported_errors():
        from nearfar.jobs.reconstruct import invert_job
        from nearfar.jobs.run import check_places
        from nearfar.sampling.inversion import RECONSTRUCTORS, check_invertible

        options = how.options(0.9, solver, RECONSTRUCTORS)
        check_invertible(options["sampling"].solver)
        check_places(source, out, progress.resume)
        model = choice.load()
        carry_out(invert_job(model, **options), model, source, out, progress)


def measure_own(model: FrozenModel, count: int, batch_size: int, sampling: Sampling) -> list[float]:
    """How well the model's own samples come back, under a progress display."""
    from nearfar.cli.console import shown_progress
    from nearfar.diffusion.level import STEPS
    from nearfar.io.progress import Progress
    from nearfar.sampling.representation import own_representation

    if not count:
        return []
    progress, began = Progress(count, steps=max(STEPS, sampling.steps)), time.monotonic()
    with shown_progress("own samples") as report:

        def tick(step: int, _: object) -> None:
            progress.step = step
            report(progress)

        found = own_representation(model, sampling, count=count, batch_size=batch_size, on_step=tick)
        progress.done, progress.seconds = count, time.monotonic() - began
        report(progress)
    return found
