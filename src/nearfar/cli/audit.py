"""`nearfar audit`: what outputs lost of their originals, and what is still there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.audit.choices import Choices, Folders
from nearfar.cli.carry_out import Outcome, carry_out
from nearfar.cli.console import DONE, NOTHING_WRITTEN, OVER_LIMIT, SOME_FAILED, Lines, Stages, say, say_failed
from nearfar.cli.options import ModelChoice, RunChoice, command_saying
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.audit.answer import Limit
    from nearfar.audit.audit import Audit
    from nearfar.metrics.intervals import Figure

SHOWN = 20
"""Names of originals without an output that are printed."""


@command_saying(NOTHING_WRITTEN)
def audit(
    *,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; JSON beside it. [default: AFTER.audit.html]")
    ] = None,
    folders: Folders,
    choices: Choices,
    full: Annotated[bool, typer.Option("--full", help="Print all figures, not only the answer.")] = False,
    fail_if: Annotated[
        list[str], typer.Option(help="End with exit code 4 where this holds, like 'rank1>0.2'; several: any of them.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    choice: ModelChoice,
) -> None:
    """Measure what was lost and what is still there: fidelity, attacks, use for a classifier.

    Outputs are matched with originals by name. Numbers with their intervals and with what chance gives, never a
    verdict of ours: documentation, Audit. Limits for --fail-if are on rank1, psnr, ssim, faces, accuracy, key, mu,
    or any figure's name in the JSON. The page shows originals, so it is as confidential as they are.
    """
    from nearfar.jobs.places import check_page

    check_folders(folders)
    whole = folders.after.resolve()
    page = report or whole.with_name(whole.name + ".audit.html")
    check_page(page, [folder for folder in (folders.before, folders.after) if folder.is_dir()])
    from nearfar.audit.answer import Limit
    from nearfar.audit.audit import run_audit
    from nearfar.reports.audit import write_audit

    limits = [Limit.parse(text) for text in fail_if]
    model = choice.load()

    def work() -> Outcome:
        with Stages() as watch:
            measured = run_audit(folders, choices, model, watch)
        write_audit(page, measured)
        return outcome(measured, page, full, limits)

    carry_out([], {}, RunChoice(as_json=as_json), work)


def check_folders(folders: Folders) -> None:
    """Refuse what is no folder before a model is loaded."""
    for path in (path for path in vars(folders).values() if path is not None):
        if not path.is_dir():
            raise UsageError(f"{path} must be a folder of images, got {'a file' if path.exists() else 'nothing'} there")
    if folders.before.resolve() == folders.after.resolve():
        raise UsageError(f"BEFORE and AFTER are one folder, {folders.before}: give originals and outputs")


def outcome(measured: Audit, page: Path, full: bool, limits: Sequence[Limit]) -> Outcome:
    """The answer, or all figures; what could not be compared, and limits that are passed, are said on stderr."""
    from nearfar.audit.answer import answer

    say_failed(measured.rejected)
    lost = measured.pairing.lost
    for name in lost[:SHOWN]:
        say("missing", f"BEFORE/{name}: original without an output")
    if len(lost) > SHOWN:
        say("missing", f"{len(lost) - SHOWN} more: in the JSON beside the page")
    broken = [text for limit in limits if (text := limit.broken_by(measured.figures))]
    for text in broken:
        say("limit", text)
    code = OVER_LIMIT if broken else SOME_FAILED if measured.rejected else DONE
    more = lines(measured) if full else ()
    return measured.content() | {"report": str(page), "over_limit": broken, "exit_code": code}, [
        *answer(measured),
        *more,
        ("report", str(page)),
    ]


def lines(measured: Audit) -> Lines:
    """The figures for people, section by section."""
    from nearfar.metrics.intervals import grouped

    texts: list[str] = []
    for name, figures in measured.sections.items():
        for network, some in grouped(figures).items():
            texts += [f"{name}, by {network}" if network else name, *map(line_of, some)]
    texts += [f"{name}\n  {remark}" for name, remark in measured.remarks.items()]
    texts.append(", ".join(f"{count} {name}" for name, count in measured.counts.items()))
    return [("", text) for text in texts]


def line_of(figure: Figure) -> str:
    """A figure, and its note indented below it."""
    interval = "" if figure.low is None or figure.high is None else f" ({figure.low:.3g} to {figure.high:.3g})"
    chance = "" if figure.chance is None else f", chance {figure.chance:.3g}"
    note = f"\n      note: {figure.note}" if figure.note else ""
    return f"  {figure.name}: {figure.value:.4g}{interval}{chance}, n {figure.count}{note}"
