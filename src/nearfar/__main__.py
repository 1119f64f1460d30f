"""Entry point of the `nearfar` command."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from io import TextIOWrapper


def leave(*_: object) -> None:
    os.write(2, b"nearfar: interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the command line; a termination signal ends a run as Ctrl-C does, resumably.

    Until a run begins nothing is written, and an exception in the middle of an import would be swallowed or end in a
    traceback: there, a signal ends the process at once.
    """
    # Threads that spin while they wait cost a shared machine four fifths of its speed; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Pillow warns about odd tags from the threads that read; what matters of it ends as an error of the image.
    warnings.filterwarnings("ignore", module="PIL")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the console cannot show
    from nearfar.cli.app import app

    app()


if __name__ == "__main__":
    main()
