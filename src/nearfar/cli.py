"""The command line: each command parses, calls the library, shows what came of it.

Exit codes: 0 all done, 1 stopped by the machine, 2 wrong usage, 3 some images failed, 130 interrupted.
"""

from __future__ import annotations

import json
import signal
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import RunError, UsageError

if TYPE_CHECKING:
    from nearfar.model import FrozenModel
    from nearfar.noise import SecretKey
    from nearfar.run import Job, Plan, Progress

app = typer.Typer(
    name="nearfar",
    help="New images from frozen diffusion models, without training anything.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DONE, STOPPED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

Source = Annotated[Path, typer.Argument(metavar="IN", help="Folder of images; it is only read.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results, with the same tree and names.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="A diffusers folder (DDPM, DDIM). [default: bundled faces]")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Of the network: float32, float16 or bfloat16.")]


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


@app.command()
def anonymize(
    source: Source,
    out: Out,
    model: ModelOption = None,
    strength: Annotated[
        float | None, typer.Option(help="Share of the way to pure noise, above 0 to 1. [default: 0.35]")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="The same as noise to signal, instead of --strength.")] = None,
    steps: Annotated[int, typer.Option(help="Solver steps for each image.")] = 20,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    fit: Annotated[str, typer.Option(help="Images that are not square: pad or cover.")] = "pad",
    key_file: Annotated[
        Path | None, typer.Option(help="Keep the secret key here (made if absent), to make the same images again.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in one network call. [default: automatic]")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    keep_metadata: Annotated[bool, typer.Option("--keep-metadata", help="Copy EXIF, XMP and resolution.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replace every image by a new one near it (local sampling).

    How near is set by --strength, a noise level that does not depend on --steps. What this protects, and what it
    does not: docs/privacy.md.
    """
    with reported_errors():
        from nearfar.anonymize import anonymize_job
        from nearfar.fitting import FitMode
        from nearfar.run import plan_run
        from nearfar.solver import SOLVERS

        key = open_key(key_file, source, out)
        frozen = load(model, device, precision)
        job = anonymize_job(
            frozen,
            strength=0.35 if strength is None and sigma is None else strength,
            sigma=sigma,
            steps=steps,
            solver=SOLVERS[one_of(solver, "solver", SOLVERS)],
            fit=FitMode(one_of(fit, "fit", [str(mode) for mode in FitMode])),
            key=key,
            batch_size=batch_size,
            keep_metadata=keep_metadata,
        )
        plan = plan_run(job, source, out, resume)
        describe(frozen, job, plan)
        if dry_run:
            show_plan(job, plan, as_json)
        else:
            keep_key(key, key_file)
            finish(carry_out(job, source, out, plan, "anonymize"), out, job, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pictures and the page.")] = Path("demo"),
) -> None:
    """Anonymize photographs that come with scikit-image at several strengths, and make a page of them."""
    with reported_errors():
        from nearfar.demo import make_demo

        typer.echo(f"open {make_demo(out).resolve()}")


class reported_errors:  # noqa: N801
    """Ends the command with a sentence and an exit code for every error that a user can mend."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, UsageError):
            typer.echo(f"nearfar: {error}", err=True)
            raise typer.Exit(USAGE) from None
        if isinstance(error, RunError | OSError):
            typer.echo(f"nearfar: {error}", err=True)
            raise typer.Exit(STOPPED) from None
        if isinstance(error, KeyboardInterrupt):
            typer.echo("nearfar: interrupted; what is finished is kept, and --resume goes on with it", err=True)
            raise typer.Exit(INTERRUPTED) from None


def one_of(value: str, name: str, allowed: Any) -> str:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def load(model: Path | None, device: str, precision: str) -> FrozenModel:
    import torch

    from nearfar.model import load_model

    dtype = getattr(torch, one_of(precision, "precision", ["float32", "float16", "bfloat16"]))
    return load_model(model, device, dtype)


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


def describe(model: FrozenModel, job: Job, plan: Plan) -> None:
    """Say on stderr what is about to happen."""
    settings, batches = job.settings, -(-len(plan.todo) // plan.batch_size)
    mu = 0.0 if settings["strength"] == 1 else 2 * (job.image.channels * job.image.size**2) ** 0.5 / settings["sigma"]
    licence = model.provenance.licence
    lines = [
        f"model     {model.provenance.source}, {job.image.size}x{job.image.size}, {licence}, on {model.device}",
        f"level     strength {settings['strength']:.4g} = time {settings['time']:.4g} = sigma {settings['sigma']:.4g}",
        f"privacy   formal bound for any two images: mu = {mu:.3g} (a guarantee would need 1 or less)",
        f"work      {len(plan.todo)} images in {batches} batches of {plan.batch_size}, {len(plan.kept)} kept, "
        f"{len(plan.listing.rejected)} unusable, {plan.listing.ignored} other files ignored",
    ]
    for line in lines:
        typer.echo(line, err=True)


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


def carry_out(job: Job, source: Path, out: Path, plan: Plan, title: str) -> Progress:
    """Run the plan under a progress display."""
    from nearfar.console import shown_progress
    from nearfar.run import run

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with shown_progress(title) as report:
        return run(job, source, out, plan, report)


def finish(progress: Progress, out: Path, job: Job, as_json: bool) -> None:
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
        typer.echo(json.dumps(summary(progress, job) | {"out": str(out), "manifest": str(manifest), "exit_code": code}))
    else:
        counts = f"{progress.done} done, {progress.kept} kept, {len(progress.failed)} failed"
        typer.echo(f"{counts} in {progress.seconds:.1f} s; images in {out}, record in {manifest}")
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
