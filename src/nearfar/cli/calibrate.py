"""`nearfar calibrate`: the smallest strength that meets a target, with its curve, for `anonymize --calibration`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.calibration import EyesChoice
from nearfar.cli.console import DONE, SOME_FAILED, model_line, raise_on_signals, reported_errors, say, tell
from nearfar.cli.options import BatchSize, ModelChoice, RunChoice, fit_of, grouped, one_of, warnings_as_notes
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.audit.calibration import Target
    from nearfar.io.fitting import FitMode
    from nearfar.jobs.calibrate import Measuring, Sample
    from nearfar.models.model import FrozenModel


@grouped
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of images; it is only read.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where the calibration goes. [default: IN.calibration.json]")
    ] = None,
    *,
    target: Annotated[
        list[str],
        typer.Option(help="rank1=0.05 or similarity=0.3 at most, label=0.9 or distance=0.5 at least; several: all."),
    ],
    eyes: EyesChoice,
    people: Annotated[bool, typer.Option("--people", help="Every top folder of IN is a person.")] = False,
    sample: Annotated[int, typer.Option(help="How many images are measured, at most; 20 or more.")] = 100,
    steps: Annotated[int, typer.Option(help="Solver steps, as anonymize will take them.")] = 20,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    fit: Annotated[str, typer.Option(help="Images that are not square: pad or cover.")] = "pad",
    seed: Annotated[int, typer.Option(help="Of the sample and its noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="PAGE", help="Where the curves are shown. [default: FILE, .report.html for .json]"),
    ] = None,
    batch_size: BatchSize = None,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Find the smallest strength that meets a target on a sample of your images, with 95 % confidence.

    rank1 is the share of outputs whose nearest original is their own (with --people: is another picture of the same
    person). Folders of IN are the classes of label. `nearfar anonymize --calibration FILE` uses what was found.
    """
    with reported_errors(), warnings_as_notes():
        from nearfar.audit.calibration import parse_target
        from nearfar.diffusion.solver import SOLVERS
        from nearfar.jobs.calibrate import calibrate as search
        from nearfar.jobs.calibrate import check_listing, take_sample

        asked = [parse_target(each) for each in target]
        file, page = check_files(source, file, report, overwrite)
        how, mode = SOLVERS[one_of(solver, "solver", SOLVERS)], fit_of(fit)
        check_listing(source, sample)
        model = choice.load()
        taken = take_sample(source, model, mode, sample, people, seed)
        work = measuring(model, taken, eyes, asked, steps, how, batch_size, seed)
        settings = announce(work, asked, mode, source) | {"eyes": eyes.places()}
        if progress.dry_run:
            tell(settings | {"network_calls": work.cost(len(asked))}, [], progress.as_json)
            return
        raise_on_signals()
        with stepping(work, asked) as tick:
            found = search(work, asked, file, settings=settings, resume=progress.resume, on_step=tick)
        content = keep(work, asked, found, settings, mode, file, page)
        tell(content, lines(content), progress.as_json)
        raise typer.Exit(content["exit_code"])


def check_files(source: Path, file: Path | None, report: Path | None, overwrite: bool) -> tuple[Path, Path]:
    """Where the calibration and its page go; refused among the images."""
    from nearfar.reports.page import page_beside

    whole = source.resolve()
    file = file or whole.with_name(whole.name + ".calibration.json")
    if file.is_dir() or whole in file.resolve().parents:
        raise UsageError(f"{file} must be a file outside of {source}, which is only read: choose another place")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} is there already: give --overwrite to replace it, or choose another place")
    return file, page_beside(report, file.with_name(file.name.removesuffix(".json")), source, keep=[file])


def measuring(
    model: FrozenModel, sample: Sample, eyes: EyesChoice, asked: list[Target], steps: int, solver: Any,
    batch_size: int | None, seed: int,
) -> Measuring:  # fmt: skip
    """The originals, looked at, and how outputs will be made and scored."""
    from nearfar.audit.scores import Known, Scorer, check_labels, network_eyes
    from nearfar.cli.console import batch_of
    from nearfar.jobs.calibrate import Measuring

    measures = sorted({target.measure for target in asked})
    if "label" in measures:
        check_labels(sample.labels)
    attacker, network = eyes.load(model)
    known = Known.of(attacker, sample.images, sample.groups, sample.labels)
    same = attacker.name == network.name or "label" not in measures
    content = known if same else Known.of(network_eyes(network), sample.images, sample.groups, sample.labels)
    scorer = Scorer(measures, known, content, network)
    return Measuring(model, sample, scorer, steps, solver, batch_of(model, batch_size), seed)


def announce(work: Measuring, asked: list[Target], fit: FitMode, source: Path) -> dict[str, Any]:
    """Say what is about to be done and what it costs; returns the settings."""
    from nearfar.jobs.calibrate import settings_of

    settings, sample = settings_of(work, fit, source), work.sample
    for entry in sample.failed:
        say("failed", f"{entry.name}: {entry.reason}")
    say("model", model_line(work.model))
    say("targets", "; ".join(map(str, asked)))
    say("attacker", f"{settings['attacker']}, at the model's size")
    people = f" of {settings['people']} people" if settings["people"] else ""
    say("work", f"{len(sample.names)} images{people}, {len(sample.failed)} unusable")
    say("cost", f"at most {work.cost(len(asked))} network calls for {work.batch_size} images each, and the features")
    return settings


def stepping(work: Measuring, asked: list[Target]) -> Any:
    """Progress, and a sentence if memory does not suffice."""
    from nearfar.cli.console import stepping as steps_of

    total = work.cost(len(asked)) // work.solver.calls(work.steps) * work.steps
    return steps_of("calibrate", total, work.batch_size)


def keep(
    work: Measuring, asked: list[Target], found: Any, settings: dict[str, Any], fit: FitMode, file: Path, page: Path
) -> dict[str, Any]:
    """Write the calibration and its page; returns what is in them."""
    from nearfar.audit.calibration import CONFIDENCE, Calibration, save_calibration
    from nearfar.diffusion.level import Level, Sampling
    from nearfar.jobs.calibrate import method_settings
    from nearfar.reports.calibration import verdict, write_calibration_report

    method = method_settings(work.model, Sampling(Level(1.0), work.steps, work.solver), fit)
    rest = {name: value for name, value in settings.items() if name not in method}
    count = len(work.sample.names)
    calibration = Calibration(method, rest, count, CONFIDENCE, tuple(asked), found)
    save_calibration(calibration, file)
    failed = [{"name": entry.name, "reason": entry.reason} for entry in work.sample.failed]
    content = {
        "settings": settings,
        "targets": [str(target) for target in asked],
        "images": count,
        "verdict": verdict(calibration),
        **asdict(found),
        "failed": failed,
        "exit_code": SOME_FAILED if failed or found.strength is None else DONE,
    }
    write_calibration_report(page, calibration, content)
    return content | {"file": str(file), "report": str(page)}


def lines(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The outcome for people."""
    return [("result", content["verdict"]), ("file", content["file"]), ("report", content["report"])]
