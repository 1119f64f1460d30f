"""`nearfar audit`: what outputs lost of their originals, and what is still there."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.console import DONE, SOME_FAILED, raise_on_signals, reported_errors
from nearfar.cli.options import ModelChoice, grouped, warnings_as_notes
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.audit.audit import Audit, Folders
    from nearfar.metrics.intervals import Figure

NOTHING_WRITTEN = "interrupted; nothing was written"
SHOWN = 20
"""Names of originals without an output that are printed."""


@dataclass(frozen=True)
class Comparisons:
    """Real images beside BEFORE."""

    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real images for distances of sets. [default: halves of BEFORE]")
    ] = None
    others: Annotated[Path | None, typer.Option(metavar="DIR", help="Pictures of people who are not in BEFORE.")] = None
    test: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real images in class folders, for the classifier.")
    ] = None
    members: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the model was trained on (as --others was not).")
    ] = None


@dataclass(frozen=True)
class Measures:
    """How it is measured."""

    features: Annotated[
        str, typer.Option(metavar="NETWORK", help="model, efficientnet, pixels, or a folder (DINOv2, CLIP, ...).")
    ] = "model"
    detector: Annotated[Path | None, typer.Option(metavar="ONNX", help="Face detector, such as YuNet.")] = None
    recognizer: Annotated[
        Path | None, typer.Option(metavar="ONNX", help="Face recognizer, such as SFace or MobileFaceNet.")
    ] = None
    people: Annotated[bool, typer.Option("--people", help="Each top folder of BEFORE is one person.")] = False
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of the run: walk outputs back.")] = None
    classifier: Annotated[str, typer.Option(help="logistic (on features) or cnn (small, from scratch).")] = "logistic"
    seeds: Annotated[int, typer.Option(help="Trainings of each classifier.")] = 5
    limit: Annotated[int, typer.Option(help="Originals at most, drawn by --seed.")] = 500
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0


@grouped
def audit(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="Folder of the originals; it is only read.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Folder of what was made of them; it is only read.")],
    *,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; JSON beside it. [default: AFTER.audit.html]")
    ] = None,
    comparisons: Comparisons,
    measures: Measures,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    choice: ModelChoice,
) -> None:
    """Measure what was lost and what is still there: fidelity, attacks, use for a classifier.

    Outputs are matched with originals by name. Numbers with their intervals and with what chance gives, never a
    verdict: docs/audit.md. The page shows originals, so it is as confidential as they are.
    """
    with reported_errors(NOTHING_WRITTEN), warnings_as_notes():
        from nearfar.audit.audit import Choices, Folders, run_audit
        from nearfar.reports.audit import write_audit
        from nearfar.reports.page import check_page

        folders = Folders(before, after, **vars(comparisons))
        check_folders(folders)
        page = report or after.resolve().with_name(after.resolve().name + ".audit.html")
        check_page(page, [folder for folder in (before, after) if folder.is_dir()])
        choices = Choices(**vars(measures))
        choices.check()
        model = choice.load()
        raise_on_signals()
        with Stages() as watch:
            found = run_audit(folders, choices, model, watch)
        write_audit(page, found)
        finish(found, page, as_json)


def check_folders(folders: Folders) -> None:
    """Refuse what is no folder before a model is loaded."""
    for path in (each for each in vars(folders).values() if each is not None):
        if not path.is_dir():
            raise UsageError(f"{path} must be a folder of images, got {'a file' if path.exists() else 'nothing'} there")
    folders.check()
    if folders.before.resolve() == folders.after.resolve():
        raise UsageError(f"BEFORE and AFTER are one folder, {folders.before}: give originals and outputs")


class Stages:
    """Shows each stage of the work under its own progress display."""

    def __init__(self) -> None:
        self._stack, self._stage = ExitStack(), ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from nearfar.cli.console import shown_progress
        from nearfar.io.progress import Progress

        if stage != self._stage:
            self._stack.close()
            self._stage, self._began = stage, time.monotonic()
            self._report = self._stack.enter_context(shown_progress(stage, "done"))
        progress = Progress(total)
        progress.done, progress.seconds = done, time.monotonic() - self._began
        self._report(progress)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def finish(found: Audit, page: Path, as_json: bool) -> None:
    """Show the figures, and end with the exit code."""
    from nearfar.metrics.intervals import grouped

    for entry in found.rejected:
        typer.echo(f"failed    {entry.name}: {entry.reason}", err=True)
    lost = found.pairing.lost
    for name in lost[:SHOWN]:
        typer.echo(f"missing   BEFORE/{name}: original without an output", err=True)
    if len(lost) > SHOWN:
        typer.echo(f"missing   {len(lost) - SHOWN} more: in the JSON beside the page", err=True)
    code = SOME_FAILED if found.rejected else DONE
    places: dict[str, Any] = {"report": str(page), "exit_code": code}
    if as_json:
        typer.echo(json.dumps(found.content() | places))
    else:
        for name, figures in found.sections.items():
            for network, some in grouped(figures).items():
                typer.echo(f"{name}, by {network}" if network else name)
                for figure in some:
                    typer.echo(line_of(figure))
        for name, remark in found.remarks.items():
            typer.echo(f"{name}\n  {remark}")
        typer.echo(", ".join(f"{count} {name}" for name, count in found.counts.items()))
        typer.echo(f"report    {page}")
    raise typer.Exit(code)


def line_of(figure: Figure) -> str:
    """A figure, and its note indented below it."""
    interval = "" if figure.low is None or figure.high is None else f" ({figure.low:.3g} to {figure.high:.3g})"
    chance = "" if figure.chance is None else f", chance {figure.chance:.3g}"
    note = f"\n      note: {figure.note}" if figure.note else ""
    return f"  {figure.name}: {figure.value:.4g}{interval}{chance}, n {figure.count}{note}"
