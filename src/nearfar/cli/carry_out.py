"""How a command carries out a job on a folder: say what is planned, run it, tell the outcome."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nearfar.cli.console import DONE, SOME_FAILED, raise_on_signals
from nearfar.cli.options import RunChoice

if TYPE_CHECKING:
    from nearfar.io.progress import Progress
    from nearfar.jobs.job import Job
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel


def describe(model: FrozenModel, job: Job, plan: Plan, more: Sequence[str]) -> None:
    """Say on stderr what is about to happen."""
    settings = job.settings
    license = model.provenance.license
    lines = [
        f"model     {model.provenance.source}, {job.image.size}x{job.image.size}, license {license}, on {model.device}",
        f"level     strength {settings['strength']:.4g} = time {settings['time']:.4g} = sigma {settings['sigma']:.4g}",
        *([f"privacy   {formal_bound(model, settings)}"] if settings["command"] == "anonymize" else []),
        f"work      {len(plan.todo)} images in batches of {plan.batch_size}, {len(plan.kept)} kept, "
        f"{len(plan.listing.rejected)} unusable, {plan.listing.ignored} files that are no images",
    ]
    for line in [*lines, *more]:
        typer.echo(line, err=True)


def formal_bound(model: FrozenModel, settings: dict[str, Any]) -> str:
    """The Gaussian mechanism's: the largest distance between two states over the noise."""
    from nearfar.audit.model_attacks import departure

    if why := departure(settings):
        return f"no formal bound: {why}"
    mu = (
        0.0
        if settings["strength"] == 1
        else model.latent_space.span * prod(model.latent_shape) ** 0.5 / settings["sigma"]
    )
    if mu == float("inf"):
        return "no formal bound: an autoencoder's latents have no range"
    return f"formal bound for any two images: mu = {mu:.3g} (a guarantee would need 1 or less)"


def show_plan(job: Job, plan: Plan, as_json: bool) -> None:
    """The plan for machines; for people `describe` has said it."""
    unusable = [{"name": entry.name, "reason": entry.reason} for entry in plan.listing.rejected]
    content = {
        "settings": job.settings,
        "todo": len(plan.todo),
        "kept": len(plan.kept),
        "unusable": unusable,
        "ignored": plan.listing.ignored,
        "batch_size": plan.batch_size,
    }
    if as_json:
        typer.echo(json.dumps(content))
    else:
        for entry in unusable:
            typer.echo(f"unusable  {entry['name']}: {entry['reason']}")


def carry_out(
    job: Job,
    model: FrozenModel,
    source: Path,
    out: Path,
    how: RunChoice,
    *,
    before: Callable[[], None] = lambda: None,
    say_more: Callable[[Plan], Sequence[str]] = lambda _: (),
    after: Callable[[Plan, Progress], dict[str, Any]] = lambda *_: {},
) -> None:
    """Plan the job, say so, and run it unless only the plan was asked for.

    before: done just before it begins. say_more: lines about the plan. after: done when all images are, to be shown.
    """
    from nearfar.jobs.run import plan_run

    plan = plan_run(job, source, out, how.resume)
    describe(model, job, plan, say_more(plan))
    if how.dry_run:
        show_plan(job, plan, how.as_json)
    else:
        before()
        done = run_shown(job, out, plan)
        finish(done, out, job, how.as_json, after(plan, done))


def run_shown(job: Job, out: Path, plan: Plan) -> Progress:
    """Run the plan under a progress display."""
    from nearfar.cli.console import shown_progress
    from nearfar.jobs.run import run

    raise_on_signals()
    with shown_progress(job.settings["command"]) as report:
        return run(job, out, plan, report)


def finish(progress: Progress, out: Path, job: Job, as_json: bool, more: dict[str, Any]) -> None:
    """Show what came of a run, and end with its exit code."""
    from nearfar.io.manifest import manifest_path

    for record in progress.failed:
        typer.echo(f"failed    {record.name}: {record.reason}", err=True)
    if progress.reduced:
        size = f"{job.image.size} pixels"
        what = "images have regions that" if job.settings.get("regions") else "images"
        typer.echo(f"note      {progress.reduced} {what} are larger than the model's {size}: detail is gone", err=True)
    code = SOME_FAILED if progress.failed else DONE
    manifest = manifest_path(out)
    if as_json:
        places = {"out": str(out), "manifest": str(manifest), **more, "exit_code": code}
        typer.echo(json.dumps(summary(progress, job) | places))
    else:
        counts = f"{progress.done} done, {progress.kept} kept, {len(progress.failed)} failed"
        typer.echo(f"{counts} in {progress.seconds:.1f} s; results in {out}, record in {manifest}")
        for name, value in more.items():
            typer.echo(f"{name:9} {value}")
    raise typer.Exit(code)


def summary(progress: Progress, job: Job) -> dict[str, Any]:
    """The outcome of a run for machines."""
    return {
        "settings": job.settings,
        "total": progress.total,
        "done": progress.done,
        "kept": progress.kept,
        "failed": [{"name": record.name, "reason": record.reason} for record in progress.failed],
        "ignored": progress.ignored,
        "reduced": progress.reduced,
        "batches": progress.batches,
        "batch_size": progress.batch_size,
        "seconds": round(progress.seconds, 3),
        "network_seconds": round(progress.network_seconds, 3),
    }
