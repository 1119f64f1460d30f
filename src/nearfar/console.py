"""What a run shows while it works: a bar on a terminal, a line every few seconds elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nearfar.run import Progress as RunProgress
from nearfar.solver import OnStep

Report = Callable[[RunProgress], None]

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def shown_steps(title: str, total: int) -> Iterator[OnStep]:
    """A function to be told of each of `total` solver steps."""
    progress, began = RunProgress(total), time.monotonic()
    with shown_progress(title, "steps") as report:

        def tick(*_: object) -> None:
            progress.done, progress.seconds = progress.done + 1, time.monotonic() - began
            report(progress)

        yield tick


@contextmanager
def shown_progress(title: str, unit: str = "images") -> Iterator[Report]:
    """A function that shows how far a run is, for as long as it runs."""
    if not sys.stderr.isatty():
        yield plain_lines(title, unit)
        return
    columns = [
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[step]}{task.fields[failed]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, step="", failed="")

        def report(progress: RunProgress) -> None:
            step = step_of(progress) if finished(progress) < progress.total else ""
            failed = f" {len(progress.failed)} failed" if progress.failed else ""
            bar.update(task, completed=finished(progress), total=progress.total, step=step, failed=failed)

        yield report


def plain_lines(title: str, unit: str) -> Report:
    """Report at most every few seconds, and at the end."""
    last = time.monotonic()

    def report(progress: RunProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES or finished(progress) == progress.total:
            last = time.monotonic()
            rate = progress.done / max(progress.seconds, 1e-9)
            under_way = not progress.done and finished(progress) < progress.total
            pace = step_of(progress) if under_way else f"{rate:.2g} {unit}/s"
            failed = f", {len(progress.failed)} failed" if unit == "images" else ""
            say(f"{title} {finished(progress)}/{progress.total}{failed}, {pace}")

    return report


def step_of(progress: RunProgress) -> str:
    return f"step {progress.step} of {progress.steps}" if progress.steps else ""


def finished(progress: RunProgress) -> int:
    return progress.done + progress.kept + len(progress.dropped) + len(progress.failed)
