"""`nearfar` in processes of its own, which can be signalled and killed.

A cold one is what a user starts. A warm one is forked from a server that has loaded torch, diffusers and what the
command imports, and done nothing else, which saves seconds for each of the many starts that the tests need; from `main`
on it runs the same code.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddpm"),
        *("nearfar.cli.app", "nearfar.jobs.regions", "nearfar.models.pipelines"),
    ]
)
TOO_LONG = 240
"""Seconds: many times what any command here takes on a busy machine."""


@dataclass(frozen=True)
class Ended:
    """What is left of a process. A negative code is the signal that killed it."""

    code: int
    out: str
    err: str


class Warm:
    """`nearfar` in a process that starts in a fraction of a second."""

    def __init__(self, arguments: list[str], logs: Path) -> None:
        self._logs = logs
        self._process = SERVER.Process(target=command, args=(arguments, str(logs)))
        self._process.start()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(self._process.pid, number)

    def running(self) -> bool:
        return self._process.is_alive()

    def wait(self) -> Ended:
        self._process.join(TOO_LONG)
        assert self._process.exitcode is not None, "the process does not end"
        return Ended(self._process.exitcode, read(self._logs, "out"), read(self._logs, "err"))


class Cold:
    """`nearfar` as a user starts it."""

    def __init__(self, arguments: list[str], logs: Path, prefix: tuple[str, ...] = ()) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "nearfar", *arguments], stdout=out, stderr=err
            )

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> Ended:
        code = self._process.wait(TOO_LONG)
        return Ended(code, read(self._logs, "out"), read(self._logs, "err"))


def command(arguments: list[str], logs: str) -> None:
    """The command line with its output in files; runs in the forked process."""
    Path(logs).mkdir(parents=True, exist_ok=True)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{logs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["nearfar", *arguments]
    from nearfar.__main__ import main

    main()


def read(logs: Path, name: str) -> str:
    path = logs / name
    return path.read_text("utf-8") if path.exists() else ""  # a process killed early has written nothing


def wait_until(condition, process: Warm | Cold) -> bool:
    """Wait for something that a running process brings about; false if it ended without."""
    deadline = time.monotonic() + TOO_LONG
    while time.monotonic() < deadline:
        if condition():
            return True
        if not process.running():
            return bool(condition())
        time.sleep(0.01)
    raise AssertionError("the process does not get on")
