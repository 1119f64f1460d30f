"""How a command ends: with a sentence and an exit code for everything that its user can mend."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from nearfar.errors import RunError, UsageError

DONE, STOPPED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


KEPT = "interrupted; what is finished is kept, and --resume goes on with it"


@contextmanager
def reported_errors(interrupted: str = KEPT) -> Iterator[None]:
    """Errors as sentences: wrong usage ends with 2, a machine that refuses with 1, Ctrl-C with 130."""
    try:
        yield
    except UsageError as error:
        leave(str(error), USAGE)
    except (RunError, OSError) as error:
        leave(str(error), STOPPED)
    except KeyboardInterrupt:
        leave(interrupted, INTERRUPTED)


def raise_on_signals() -> None:
    """From here on Ctrl-C and a termination signal are exceptions: there is something to put in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def leave(sentence: str, code: int) -> None:
    typer.echo(f"nearfar: {sentence}", err=True)
    raise typer.Exit(code) from None
