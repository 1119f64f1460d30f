"""The command line: each command parses, calls the library, shows what came of it.

Exit codes: 0 all done, 1 stopped by the machine, 2 wrong usage, 3 some images failed, 130 interrupted.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.anonymize_command import anonymize
from nearfar.audit_command import audit
from nearfar.augment_command import augment
from nearfar.calibrate_command import calibrate
from nearfar.carry_out import KeepMetadata, Out, Source, carry_out
from nearfar.domain_commands import domain
from nearfar.enhance_command import enhance
from nearfar.exits import reported_errors
from nearfar.model_commands import models
from nearfar.options import ModelChoice, RunChoice, TrajectoryChoice, grouped

if TYPE_CHECKING:
    from nearfar.model import FrozenModel
    from nearfar.plan import Plan
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


app.command()(anonymize)
app.command()(calibrate)
app.command()(audit)
app.command()(augment)
app.command()(enhance)
app.add_typer(models, name="models")
app.add_typer(domain, name="domain")


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
