"""Does a job in shards that is killed again and again end with the bytes of the plain run, nothing lost or twice?

    OMP_NUM_THREADS=1 python -m benchmarks.support.shard_kills --kills 200 --minutes 60

Drivers with two workers each, one or two at a time, are started on a job of a tiny model; at random moments a worker or
a driver gets SIGKILL. When all shards are done, outputs and records are compared with the plain run's, and the next job
begins. Exit code 1 where anything differs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir, suppress
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.support.kills import files
from benchmarks.support.shell import ONE_THREAD
from benchmarks.support.small_inputs import write_inputs, write_key
from benchmarks.support.small_models import MODELS
from nearfar.io.manifest import manifest_path, read_manifest

OPTIONS = "--model models/pixel --device cpu --steps 12 --strength 0.5 --key-file key"
SHARDS = 8


def nearfar(line: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "nearfar", *line.split()]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers_of(driver: subprocess.Popen[bytes]) -> list[int]:
    found = list[int]()
    for path in Path(f"/proc/{driver.pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def disturb(drivers: list[subprocess.Popen[bytes]], counts: Counter[str]) -> None:
    """Kill one of what runs, some time from now."""
    time.sleep(random.expovariate(1 / 4))
    running = [driver for driver in drivers if driver.poll() is None]
    if not running:
        return
    driver = random.choice(running)
    victims = workers_of(driver)
    worker = bool(victims) and random.random() < 0.6
    with suppress(ProcessLookupError):
        os.kill(random.choice(victims) if worker else driver.pid, signal.SIGKILL)
        counts["workers killed" if worker else "drivers killed"] += 1


def one_job(number: int, kills: int, until: float, counts: Counter[str]) -> list[str]:
    """A job until it is done, killed at most so often; what is wrong then."""
    out, job = Path(f"out{number}"), Path(f"job{number}.json")
    assert nearfar(f"plan anonymize in/flat {out} {OPTIONS} --shards {SHARDS} -o {job}").wait() == 0
    work, left = f"work {job} --key-file key --workers 2 --tries 1000", kills
    while True:
        drivers = [nearfar(work) for _ in range(random.choice((1, 2)))]
        while left > 0 and time.monotonic() < until and any(driver.poll() is None for driver in drivers):
            before = counts.total()
            disturb(drivers, counts)
            left -= counts.total() - before
        if [driver.wait() for driver in drivers].count(0):
            break
    assert nearfar(f"merge {job}").wait() == 0
    wrong = [] if files(out) == files(Path("plain")) else [f"{out} has other files than the plain run"]
    records, plain = (read_manifest(manifest_path(each)).records for each in (out, Path("plain")))
    same = {name: one.target_sha256 for name, one in records.items()} == {n: o.target_sha256 for n, o in plain.items()}
    lines = manifest_path(out).read_text().count("\n")
    return wrong + ([] if same and lines == len(plain) + 1 else [f"{out} has another record than the plain run"])


def main(
    kills: Annotated[int, typer.Option(help="How many.")] = 200,
    minutes: Annotated[float, typer.Option(help="No more kills after so many.")] = 60,
    seed: Annotated[int, typer.Option(help="Of who is killed when; the load of the machine decides, too.")] = 0,
) -> None:
    """Kill, finish, compare."""
    os.environ.update(ONE_THREAD)
    random.seed(seed)
    folder, counts, wrong, jobs = Path(tempfile.mkdtemp()), Counter[str](), list[str](), 0
    until = time.monotonic() + 60 * minutes
    with chdir(folder):
        write_inputs(Path("in"))
        write_key(Path("key"))
        MODELS["pixel"](Path("models", "pixel"))
        assert nearfar(f"anonymize in/flat plain {OPTIONS}").wait() == 0
        while counts.total() < kills and time.monotonic() < until:
            wrong += one_job(jobs, min(12, kills - counts.total()), until, counts)
            jobs += 1
    print(dict(counts), f"{jobs} jobs of {SHARDS} shards", *wrong, f"{len(wrong)} went wrong", sep="\n")
    shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
