"""The command line: in this process, which saves seconds for each start, or in one of its own, which can be killed.

The latter is forked from a server that has loaded torch and diffusers and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from unittest.mock import patch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.support.small_models"])
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
TOO_LONG = 240.0
"""Seconds: many times what any command here takes on a busy machine."""


@dataclass(frozen=True)
class Ended:
    """What is left of a command."""

    code: int
    out: str
    err: str


def nearfar(*arguments: str | Path) -> Ended:
    """Run `nearfar` with these arguments in this process."""
    from nearfar.__main__ import main

    out, err, code = StringIO(), StringIO(), 0
    with patch.object(sys, "argv", ["nearfar", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


@cache
def help_of(*command: str) -> str:
    return nearfar(*command, "--help").out


def killed(arguments: list[str], moment: Callable[[], bool]) -> bool:
    """Start `nearfar` in a process of its own and kill it as soon as `moment` has come; false if it ended before."""
    process = SERVER.Process(target=nearfar, args=arguments)
    process.start()
    deadline = time.monotonic() + TOO_LONG
    while process.is_alive() and not moment() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
