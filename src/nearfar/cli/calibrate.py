"""`nearfar calibrate`: the smallest strength that meets a target, with its curve, for `anonymize --calibration`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.audit.choices import Networks
from nearfar.cli.carry_out import Outcome, carry_out, time_figures, time_lines
from nearfar.cli.console import DONE, SOME_FAILED, Lines, batch_of, model_line, say_failed, shown_progress
from nearfar.cli.options import (
    BATCH_SIZE,
    FIT,
    Fit,
    ModelChoice,
    RunChoice,
    SolverName,
    argument,
    check_new_file,
    command,
    job_options,
    option,
    solver_option,
)

if TYPE_CHECKING:
    from nearfar.audit.calibration import Found
    from nearfar.audit.targets import Target
    from nearfar.jobs.calibrate import Measuring, Sample
    from nearfar.models.model import FrozenModel


SHOWN = 6
"""Images on the page, at several strengths each."""


@dataclass(frozen=True)
class Places:
    """What is measured, and where the calibration goes."""

    source: Path = argument("IN", "Folder of images; it is only read.")
    file: Path | None = argument("FILE", "Where the calibration goes. [default: IN.calibration.json]", None)


@dataclass(frozen=True)
class Measurement:
    """What is measured, and how outputs are made."""

    people: bool = option(False, "Every top folder of IN is a person.")
    sample: int = option(100, "How many images are measured, at most; 20 or more.")
    steps: int = option(20, "Solver steps, as anonymize will take them.")
    solver: SolverName = solver_option("local-prior", SolverName)
    fit: Fit = option("pad", FIT)
    seed: int = option(0, "Of the sample and its noise.")
    overwrite: bool = option(False, "Replace FILE if it is there.")
    report: Path | None = option(
        None, "Where the curves are shown. [default: FILE, .report.html for .json]", metavar="PAGE"
    )
    batch_size: int | None = option(None, BATCH_SIZE)


@command
def calibrate(
    places: Places,
    *,
    target: Annotated[
        list[str],
        typer.Option(help="rank1=0.05 or similarity=0.3 at most, label=0.9 or distance=0.5 at least; several: all."),
    ],
    networks: Networks,
    how: Measurement,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Find the smallest strength that meets a target on a sample of your images, with 95 % confidence.

    rank1 is the share of outputs whose nearest original is their own (with --people: is another picture of the same
    person), by the worst of pixels, features and recognizer. Folders of IN are the classes of label.
    `nearfar anonymize --calibration FILE` uses what was found.
    """
    from nearfar.audit.targets import parse_target

    source, targets = places.source, [parse_target(text) for text in target]
    file, page = check_files(places, how)
    from nearfar.jobs.calibrate import calibrate as search
    from nearfar.jobs.calibrate import check_listing, settings_of, take_sample

    options = job_options(how)
    check_listing(source, how.sample)
    model = choice.load()
    sample = take_sample(source, model, options["fit"], how.sample, how.people, how.seed)
    work = measuring(model, sample, networks, targets, options)
    settings = settings_of(work, options["fit"], source)

    def run() -> Outcome:
        with shown_progress("calibrate") as report:
            found = search(work, targets, file, settings=whole, resume=progress.resume, report=report)
        content = keep(work, targets, found, whole, file, page)
        shown = [("result", content["verdict"]), ("file", content["file"]), ("report", content["report"])]
        return content, shown

    say_failed(sample.failed)
    whole = settings | {"eyes": networks.places()}
    timed = work.estimate(len(targets)) if progress.dry_run else None
    planned = whole | {"network_calls": work.cost(len(targets))} | time_figures(timed)
    carry_out([*about(work, targets, settings), *time_lines(timed)], planned, progress, run)


def check_files(places: Places, how: Measurement) -> tuple[Path, Path]:
    """Where the calibration and its page go; refused among the images."""
    from nearfar.jobs.places import page_beside

    folder = places.source.resolve()
    file = places.file or folder.with_name(folder.name + ".calibration.json")
    check_new_file(file, places.source, how.overwrite)
    return file, page_beside(how.report, file.with_name(file.name.removesuffix(".json")), places.source, keep=[file])


def measuring(
    model: FrozenModel, sample: Sample, networks: Networks, targets: list[Target], options: dict[str, Any]
) -> Measuring:
    """The originals, looked at, and how outputs will be made and scored."""
    from nearfar.audit.scorer import Known, Scorer, check_labels, load_eyes, network_eyes, other_eyes
    from nearfar.jobs.calibrate import Measuring

    measures = sorted({target.measure for target in targets})
    if "label" in measures:
        check_labels(sample.labels)
    attacker, network = load_eyes(networks, model)
    known = Known.of(attacker, sample.images, sample.groups, sample.labels)
    same = attacker.name == network.name or "label" not in measures
    content = known if same else Known.of(network_eyes(network), sample.images, sample.groups, sample.labels)
    more = other_eyes(attacker, network, model) if "rank1" in measures else []
    others = [Known.of(eyes, sample.images, sample.groups, sample.labels) for eyes in more]
    scorer = Scorer(measures, known, content, network, others)
    batch_size = batch_of(model, options["batch_size"])
    return Measuring(model, sample, scorer, options["steps"], options["solver"], batch_size, options["seed"])


def about(work: Measuring, targets: list[Target], settings: dict[str, Any]) -> Lines:
    """What is about to be done and what it costs."""
    from nearfar.jobs.calibrate import THINNED

    sample = work.sample
    people = f" of {settings['people']} people" if settings["people"] else ""
    search, pictures = work.cost(len(targets)), (THINNED + 1) * work.solver.calls(work.steps)
    cost = (
        f"at most {search} network calls for {work.batch_size} images each, {pictures} for the {SHOWN} images on the "
        "page, and the features"
    )
    return [
        ("model", model_line(work.model)),
        ("targets", "; ".join(map(str, targets))),
        ("attacker", f"{'; or '.join((settings['attacker'], *settings['others']))}, at the model's size"),
        ("work", f"{len(sample.names)} images{people}, {len(sample.failed)} unusable"),
        ("cost", cost),
    ]


def keep(
    work: Measuring, targets: list[Target], found: Found, settings: dict[str, Any], file: Path, page: Path
) -> dict[str, Any]:
    """Write the calibration and its page; returns what is in them."""
    from nearfar.audit.calibration import CONFIDENCE, Calibration, save_calibration
    from nearfar.diffusion.schedule import Level
    from nearfar.diffusion.solver import Sampling
    from nearfar.io.fitting import FitMode
    from nearfar.jobs.calibrate import method_settings
    from nearfar.reports.calibration import shown_strengths, verdict, write_calibration_report

    sampling = Sampling(Level(1.0), work.steps, work.solver)
    method = method_settings(work.model, sampling, FitMode(settings["fit"]))
    rest = {name: value for name, value in settings.items() if name not in method}
    count = len(work.sample.names)
    calibration = Calibration(method, rest, count, CONFIDENCE, tuple(targets), found)
    failed = [{"name": entry.name, "reason": entry.reason} for entry in work.sample.failed]
    content = {
        "settings": settings,
        "targets": [str(target) for target in targets],
        "images": count,
        "verdict": verdict(calibration),
        **asdict(found),
        "failed": failed,
        "exit_code": SOME_FAILED if failed or found.strength is None else DONE,
    }
    write_calibration_report(page, calibration, content, work.along(shown_strengths(found), SHOWN))
    save_calibration(calibration, file)
    return content | {"file": str(file), "report": str(page)}
