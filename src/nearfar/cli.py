"""The command line: each command parses, calls the library, shows what came of it.

Exit codes: 0 all done, 1 stopped by the machine, 2 wrong usage, 3 some images failed, 130 interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.domain_commands import domain
from nearfar.errors import UsageError
from nearfar.exits import DONE, SOME_FAILED, raise_on_signals, reported_errors
from nearfar.model_commands import models
from nearfar.options import ModelChoice, RunChoice, TrajectoryChoice, grouped

if TYPE_CHECKING:
    from nearfar.model import FrozenModel
    from nearfar.noise import SecretKey
    from nearfar.plan import Job, Plan
    from nearfar.run import Progress

app = typer.Typer(
    name="nearfar",
    help="New images from frozen diffusion models, without training anything.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Source = Annotated[Path, typer.Argument(metavar="IN", help="Folder of images; it is only read.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results, with the same tree and names.")]
KeepMetadata = Annotated[bool, typer.Option("--keep-metadata", help="Copy EXIF, XMP and resolution.")]


def show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"nearfar {version('nearfar')}")
        raise typer.Exit
    return wanted


@app.callback()
def nearfar(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """New images from frozen diffusion models, without training anything."""


app.add_typer(models, name="models")
app.add_typer(domain, name="domain")


@app.command()
@grouped
def anonymize(
    source: Source,
    out: Out,
    *,
    how: TrajectoryChoice,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    key_file: Annotated[
        Path | None, typer.Option(help="Keep the secret key here (made if absent), to make the same images again.")
    ] = None,
    keep_metadata: KeepMetadata = False,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Replace every image by a new one near it (local sampling).

    How near is set by --strength (0.35 unless given), a noise level that does not depend on --steps. What this
    protects, and what it does not: docs/privacy.md.
    """
    with reported_errors():
        from nearfar.anonymize import anonymize_job
        from nearfar.plan import check_places
        from nearfar.solver import SOLVERS

        options = how.options(0.35, solver, SOLVERS)
        check_places(source, out, progress.resume)
        key = open_key(key_file, source, out)
        model = choice.load()
        job = anonymize_job(model, key=key, keep_metadata=keep_metadata, **options)
        carry_out(job, model, source, out, progress, before=lambda: keep_key(key, key_file))


@app.command()
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
        from nearfar.inversion import RECONSTRUCTORS
        from nearfar.plan import check_places
        from nearfar.representation_report import check_report, cost, write_report_on
        from nearfar.trajectories import reconstruct_job

        options = how.options(0.9, solver, RECONSTRUCTORS)
        check_places(source, out, progress.resume)
        page = check_report(report, source, out, own_samples)
        model = choice.load()
        job = reconstruct_job(model, keep_metadata=keep_metadata, **options)

        def report_on(plan: Plan, done: Progress) -> dict[str, Any]:
            own = measure_own(model, own_samples, done.batch_size, options)
            return write_report_on(plan, job, source, out, page, own)

        lines = partial(cost, solver=options["solver"], steps=options["steps"], own=own_samples)
        carry_out(job, model, source, out, progress, say_more=lines, after=report_on)


@app.command()
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
        from nearfar.inversion import RECONSTRUCTORS, check_invertible
        from nearfar.plan import check_places
        from nearfar.trajectories import invert_job

        options = how.options(0.9, solver, RECONSTRUCTORS)
        check_invertible(options["solver"])
        check_places(source, out, progress.resume)
        model = choice.load()
        carry_out(invert_job(model, **options), model, source, out, progress)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pictures and the page.")] = Path("demo"),
) -> None:
    """Anonymize photographs that come with scikit-image at several strengths, and make a page of them."""
    with reported_errors():
        from nearfar.demo import make_demo

        typer.echo(f"open {make_demo(out).resolve()}")


def open_key(path: Path | None, source: Path, out: Path) -> SecretKey | None:
    """The key in a file, a new one if the file is absent. It must lie neither with the originals nor the results."""
    from nearfar.manifest import manifest_path
    from nearfar.noise import SecretKey

    if path is None:
        return None
    if path.resolve() == manifest_path(out):
        raise UsageError(f"{path} is where the record of this run goes: keep the key elsewhere")
    for folder in (source.resolve(), out.resolve()):
        if folder in path.resolve().parents:
            raise UsageError(f"key file {path} must not lie in {folder}, which may be shared: keep it elsewhere")
    return SecretKey.load(path) if path.exists() else SecretKey.random()


def keep_key(key: SecretKey | None, path: Path | None) -> None:
    """Write a new key to its file, before anything is made with it."""
    if key and path and not path.exists():
        try:
            key.save(path)
        except OSError as error:
            raise UsageError(f"cannot write key file {path} ({error.strerror}): choose another place") from None


def describe(model: FrozenModel, job: Job, plan: Plan, more: Sequence[str]) -> None:
    """Say on stderr what is about to happen."""
    settings, batches = job.settings, -(-len(plan.todo) // plan.batch_size)
    licence = model.provenance.licence
    lines = [
        f"model     {model.provenance.source}, {job.image.size}x{job.image.size}, licence {licence}, on {model.device}",
        f"level     strength {settings['strength']:.4g} = time {settings['time']:.4g} = sigma {settings['sigma']:.4g}",
        *([f"privacy   {formal_bound(model, settings)}"] if settings["command"] == "anonymize" else []),
        f"work      {len(plan.todo)} images in {batches} batches of {plan.batch_size}, {len(plan.kept)} kept, "
        f"{len(plan.listing.rejected)} unusable, {plan.listing.ignored} other files ignored",
    ]
    for line in [*lines, *more]:
        typer.echo(line, err=True)


def formal_bound(model: FrozenModel, settings: dict[str, Any]) -> str:
    """The Gaussian mechanism's: the largest distance between two states over the noise."""
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
    from nearfar.plan import plan_run

    plan = plan_run(job, source, out, how.resume)
    describe(model, job, plan, say_more(plan))
    if how.dry_run:
        show_plan(job, plan, how.as_json)
    else:
        before()
        done = run_shown(job, source, out, plan)
        finish(done, out, job, how.as_json, after(plan, done))


def run_shown(job: Job, source: Path, out: Path, plan: Plan) -> Progress:
    """Run the plan under a progress display."""
    from nearfar.console import shown_progress
    from nearfar.run import run

    raise_on_signals()
    with shown_progress(job.settings["command"]) as report:
        return run(job, source, out, plan, report)


def measure_own(model: FrozenModel, count: int, batch_size: int, options: dict[str, Any]) -> list[float]:
    """How well the model's own samples come back, under a progress display."""
    from nearfar.console import shown_progress
    from nearfar.local_sampling import STEPS
    from nearfar.representation import own_representation
    from nearfar.run import Progress

    if not count:
        return []
    way = {name: options[name] for name in ("strength", "sigma", "steps", "solver")}
    progress, began = Progress(count, steps=max(STEPS, options["steps"])), time.monotonic()
    with shown_progress("own samples") as report:

        def tick(step: int, _: object) -> None:
            progress.step = step
            report(progress)

        found = own_representation(model, count=count, batch_size=batch_size, on_step=tick, **way)
        progress.done, progress.seconds = count, time.monotonic() - began
        report(progress)
    return found


def finish(progress: Progress, out: Path, job: Job, as_json: bool, more: dict[str, Any]) -> None:
    """Show what came of a run, and end with its exit code."""
    from nearfar.manifest import manifest_path

    for record in progress.failed:
        typer.echo(f"failed    {record.name}: {record.reason}", err=True)
    if progress.reduced:
        size = f"{job.image.size} pixels"
        typer.echo(f"note      {progress.reduced} images are larger than the model's {size}: detail is gone", err=True)
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
