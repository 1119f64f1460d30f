"""How a command carries out what it has settled: say what is planned, run it, tell the outcome, end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nearfar.cli.console import (
    DONE,
    SOME_FAILED,
    Lines,
    end_at_once,
    level_line,
    model_line,
    on_signals,
    raise_on_signals,
    say,
    say_failed,
    shown_progress,
    tell,
)
from nearfar.cli.options import Folders, RunChoice

if TYPE_CHECKING:
    from nearfar.io.manifest import Progress
    from nearfar.jobs.estimate import Estimate
    from nearfar.jobs.job import Job
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel

TILED = {"anonymize", "augment", "reconstruct"}
"""Commands that take --tile."""

Outcome = tuple[dict[str, Any], Lines]
"""What came of a command: for machines, with its `exit_code`, and for people."""


def carry_out(
    announced: Lines, planned: dict[str, Any], how: RunChoice, work: Callable[[], Outcome], code: int | None = None
) -> None:
    """Say what is about to happen, do the work unless only the plan was asked for, show what came of it, end.

    code: the exit code, where what came of it does not hold one.
    """
    for what, text in announced:
        say(what, text)
    if how.dry_run:
        unusable = [("unusable", f"{entry['name']}: {entry['reason']}") for entry in planned.get("unusable", [])]
        tell(planned, unusable, how.as_json)
        return
    raise_on_signals()
    content, lines = work()
    on_signals(end_at_once)
    tell(content, lines, how.as_json)
    raise typer.Exit(content["exit_code"] if code is None else code)


@dataclass(frozen=True)
class Settled:
    """What a folder command has settled: a job, for whom to carry it out, and how.

    more: lines about the plan. before: done just before it begins. after: done when all images are, to be shown;
    everywhere: of a shard too, since it writes what belongs to its images.
    """

    job: Job
    model: FrozenModel
    folders: Folders
    how: RunChoice
    more: Callable[[Plan], Lines] = lambda _: ()
    before: Callable[[], None] = lambda: None
    after: Callable[[Plan, Progress], dict[str, Any]] = lambda *_: {}
    everywhere: bool = False

    def carry_out(self) -> None:
        """The run of a whole folder, shown to its user."""
        from nearfar.jobs.estimate import estimate_job
        from nearfar.jobs.run import check_standing, plan_run

        job, folders = self.job, self.folders
        plan = plan_run(job, folders.source, folders.out, self.how.resume)
        timed = estimate_job(self.model, job, plan) if self.how.dry_run else None

        def work() -> Outcome:
            self.before()
            done = run_shown(job, folders.out, plan)
            more = self.after(plan, done)
            if more:  # it took its time, in which something may have gone
                check_standing(job, folders.out, set(plan.names))
            return outcome(done, folders, job, more)

        announced = [*about(self.model, job, plan), *self.more(plan), *time_lines(timed)]
        carry_out(announced, planned(job, plan) | time_figures(timed), self.how, work)

    def perform(self) -> Progress:
        """The run of a shard, which nobody watches; it goes on where an earlier one stopped."""
        from nearfar.io.listing import list_folder
        from nearfar.jobs.run import plan_items, run

        plan = plan_items(self.job, list_folder(self.folders.source), self.folders.out, True)
        done = run(self.job, self.folders.out, plan)
        if self.everywhere:
            self.after(plan, done)
        return done


@dataclass(frozen=True)
class SettledUnits:
    """The same of a data set: a job that all its units have, and how the whole is shown or just done."""

    job: Job
    shown: Callable[[], None]
    silent: Callable[[], Progress]

    def carry_out(self) -> None:
        self.shown()

    def perform(self) -> Progress:
        return self.silent()


def time_lines(timed: Estimate | None) -> Lines:
    """How long it will take, for people."""
    return [] if timed is None else [("time", str(timed))]


def time_figures(timed: Estimate | None) -> dict[str, Any]:
    """The same for machines: the least and the most of network calls and seconds."""
    if timed is None:
        return {}
    return {"network_calls": timed.calls, "call_seconds": timed.call, "seconds": timed.seconds}


def about(model: FrozenModel, job: Job, plan: Plan) -> Lines:
    """What is about to happen."""
    settings = job.settings
    work = (
        f"{len(plan.todo)} images in batches of {plan.batch_size}, {len(plan.kept)} kept, "
        f"{len(plan.listing.rejected)} unusable, {plan.listing.ignored} files that are no images"
    )
    solver = [("solver", line)] if (line := solver_line(settings)) else []
    privacy = [("privacy", formal_bound(model, settings))] if settings["command"] == "anonymize" else []
    return [("model", model_line(model)), ("level", level_line(settings)), *solver, *privacy, ("work", work)]


def solver_line(settings: dict[str, Any]) -> str | None:
    """The profile that the solver uses, or which one stands in for it where there is none."""
    solver = settings.get("solver")
    if "profile" in settings:
        return f"{solver}, with the model's profile {settings['profile']}"
    if "stands_in_for" in settings:
        return f"{solver}: {settings['stands_in_for']} needs the model's profile, which nearfar models profile measures"
    return None


def formal_bound(model: FrozenModel, settings: dict[str, Any]) -> str:
    """The Gaussian mechanism's: the largest distance between two states over the noise."""
    from nearfar.audit.model_attacks import departure, unbounded

    if why := departure(settings):
        return f"no formal bound: {why}"
    span = model.latent_space.span * prod(model.latent_shape) ** 0.5
    mu = 0.0 if settings["strength"] == 1 else span / settings["sigma"]
    if mu == float("inf"):
        return "no formal bound: an autoencoder's latents have no range"
    proven = "nothing is proven: the noise is too weak" if mu > 1 else "a formal bound holds for any two images"
    apart = f"two images can differ by {mu:.3g} times the noise, a guarantee needs 1 or less"
    return f"{proven} ({apart}); {unbounded(settings)}"


def planned(job: Job, plan: Plan) -> dict[str, Any]:
    """The plan for machines."""
    return {
        "settings": job.settings,
        "todo": len(plan.todo),
        "kept": len(plan.kept),
        "unusable": [{"name": entry.name, "reason": entry.reason} for entry in plan.listing.rejected],
        "ignored": plan.listing.ignored,
        "batch_size": plan.batch_size,
    }


def run_shown(job: Job, out: Path, plan: Plan) -> Progress:
    """Run the plan under a progress display."""
    from nearfar.jobs.run import run

    with shown_progress(job.settings["command"]) as report:
        return run(job, out, plan, report)


def outcome(progress: Progress, folders: Folders, job: Job, more: dict[str, Any]) -> Outcome:
    """What came of a run on a folder; what failed and what lost detail is said on stderr."""
    from nearfar.io.manifest import manifest_path

    say_failed(progress.failed)
    if progress.reduced:
        what = "images have regions that" if job.settings.get("regions") else "images"
        size = f"{job.image.size} pixels"
        tile = ", --tile would keep it" if TILED & {job.settings["command"]} and "regions" not in job.settings else ""
        say("note", f"{progress.reduced} {what} are larger than the model's {size}: detail is gone{tile}")
    manifest = manifest_path(folders.out)
    places = {"out": str(folders.out), "manifest": str(manifest)}
    code = SOME_FAILED if progress.failed else DONE
    counts = f"{progress.done} done, {progress.kept} kept, {len(progress.failed)} failed"
    line = f"{counts} in {progress.seconds:.1f} s; results in {folders.out}, record in {manifest}"
    lines = [("", line), *((name, str(value)) for name, value in more.items())]
    return summary(progress, job) | places | more | {"exit_code": code}, lines


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
