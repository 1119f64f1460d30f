"""What a command shows while it works, and how it ends.

A run is a bar on a terminal, a line every few seconds elsewhere, always on stderr. A command ends with a sentence and
an exit code for everything that its user can mend.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nearfar.errors import ModelWarning, RunError, UsageError
from nearfar.io.manifest import Progress as RunProgress

if TYPE_CHECKING:
    from nearfar.diffusion.solver import OnStep
    from nearfar.io.listing import Rejected
    from nearfar.io.manifest import Record
    from nearfar.models.model import FrozenModel

Report = Callable[[RunProgress], None]

SECONDS_BETWEEN_LINES = 10.0

DONE, STOPPED, USAGE, SOME_FAILED, OVER_LIMIT, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes."""

KEPT = "interrupted; what is finished is kept, and --resume goes on with it"
NOTHING_WRITTEN = "interrupted; nothing was written"

Lines = Sequence[tuple[str, str]]
"""What is said, each line with a word before it that says of what."""


LONGEST = 2000
"""Characters of a line that are shown."""


def visible(text: str, keep: str = "") -> str:
    """What a file or a name says, for a terminal: control characters and direction marks but `keep` escaped, cut."""
    more = f" ... ({len(text) - LONGEST} more characters)" if len(text) > LONGEST else ""
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text[:LONGEST]) + more


def write_line(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(visible(text) + "\n")
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
def working(text: str) -> Iterator[None]:
    """Shows on a terminal that something of unknown length goes on; elsewhere nothing."""
    with Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext():
        yield


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
        TextColumn("{task.fields[step]}{task.fields[failed]}{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, step="", failed="", rate="")

        def report(progress: RunProgress) -> None:
            step = step_of(progress) if finished(progress) < progress.total else ""
            failed = f" {len(progress.failed)} failed" if progress.failed else ""
            rate = f" {progress.done / max(progress.seconds, 1e-9):.2g} {unit}/s" if progress.done else ""
            bar.update(task, completed=finished(progress), total=progress.total, step=step, failed=failed, rate=rate)

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
            pace = step_of(progress) if under_way else f"{rate:.2g} {unit}/s{remaining(progress)}"
            failed = f", {len(progress.failed)} failed" if unit == "images" else ""
            write_line(f"{title} {finished(progress)}/{progress.total}{failed}, {pace}")

    return report


class Stages:
    """Shows each stage of the work under its own progress display."""

    def __init__(self) -> None:
        self._stack, self._stage = ExitStack(), ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stack.close()
            self._stage, self._began = stage, time.monotonic()
            self._report = self._stack.enter_context(shown_progress(stage, "done"))
        self._report(RunProgress(total, done=done, seconds=time.monotonic() - self._began))

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def step_of(progress: RunProgress) -> str:
    return f"step {progress.step} of {progress.steps}" if progress.steps else ""


def remaining(progress: RunProgress) -> str:
    """How long the rest takes at this pace; nothing at the end or before the first image."""
    left = progress.total - finished(progress)
    if not left or not progress.done:
        return ""
    minutes, seconds = divmod(round(left * progress.seconds / progress.done), 60)
    return f", {minutes} min {seconds} s left" if minutes else f", {seconds} s left"


def finished(progress: RunProgress) -> int:
    return progress.done + progress.kept + len(progress.dropped) + len(progress.failed)


def batch_of(model: FrozenModel, given: int | None) -> int:
    from nearfar.models.model import check_batch_size, default_batch_size

    return check_batch_size(default_batch_size(model) if given is None else given)


@contextmanager
def stepping(title: str, steps: int, batch_size: int) -> Iterator[Any]:
    """Work of so many solver steps for images of one shape, which memory may not hold."""
    from nearfar.jobs.run import within_memory

    with shown_steps(title, steps) as tick, within_memory(batch_size):
        yield tick


def model_line(model: FrozenModel) -> str:
    size = f"{model.image.size}x{model.image.size}"
    return f"{model.provenance.source}, {size}, license {model.provenance.license}, on {model.device}"


def level_line(level: dict[str, Any]) -> str:
    return f"strength {level['strength']:.4g} = time {level['time']:.4g} = sigma {level['sigma']:.4g}"


def say(what: str, text: str) -> None:
    """A line on stderr."""
    typer.echo(f"{what:9} {visible(text)}", err=True)


def say_failed(entries: Sequence[Rejected | Record]) -> None:
    """The images that cannot be used, on stderr."""
    for entry in entries:
        say("failed", f"{entry.name}: {entry.reason}")


def tell(content: dict[str, Any], lines: Lines, as_json: bool) -> None:
    """What came of it, on stdout; a line without a first word stands as it is."""
    if as_json:
        typer.echo(json.dumps(content).replace("\x7f", "\\u007f"))
    else:
        for what, text in lines:
            typer.echo(f"{what:9} {visible(text)}" if what else visible(text, keep="\n"))


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What nearfar warns of is said on stderr, at once and once; what libraries warn of is not."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            say("note", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ModelWarning)
        warnings.showwarning = show
        yield


@contextmanager
def reported_errors(interrupted: str = KEPT) -> Iterator[None]:
    """Errors as sentences: wrong usage ends with 2, a machine that refuses with 1, Ctrl-C with 130."""
    try:
        yield
    except (UsageError, RunError, OSError) as error:
        if signal.getsignal(signal.SIGINT) is interrupt:
            on_signals(end_at_once)  # nothing would catch the exception that it raises
        leave(str(error), USAGE if isinstance(error, UsageError) else STOPPED)
    except KeyboardInterrupt:
        if signal.getsignal(signal.SIGINT) is end_at_once:
            on_signals(lambda *_: os._exit(INTERRUPTED))  # the line is said
        leave(interrupted, INTERRUPTED)


def raise_on_signals() -> None:
    """From here on Ctrl-C and a termination signal are exceptions; a second one ends the process at once."""
    on_signals(interrupt)


def interrupt(*_: object) -> None:
    on_signals(end_at_once)
    raise KeyboardInterrupt


def on_signals(handler: Callable[..., None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def end_at_once(*_: object) -> None:
    os.write(2, b"nearfar: interrupted\n")
    os._exit(INTERRUPTED)


def leave(sentence: str, code: int) -> None:
    typer.echo(f"nearfar: {visible(sentence)}", err=True)
    raise typer.Exit(code) from None
