"""What do shards cost? Images whose transform does nothing, through everything else: listing, plan, shards, records.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.shards --images 10000 --shards 100

Tiny PNG files of one folder are read, encoded and written by the plain run, then in shards by one process and by two.
Prints CPU seconds of all processes, seconds on the clock and the driver's memory, and what listing and cutting a
million names takes.
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from benchmarks.support.common import write_result
from nearfar.cli.carry_out import Settled
from nearfar.cli.options import Folders, RunChoice
from nearfar.diffusion.noise import SecretKey
from nearfar.io.fitting import FitMode
from nearfar.io.stores import Folder, Source
from nearfar.jobs.engines import Do, in_processes
from nearfar.jobs.job import Job, Results, anything_goes, as_picture, one_square
from nearfar.jobs.run import plan_run, run
from nearfar.jobs.shards import ShardedJob, Work, cut, do_shard, job_text, keep_plan, listed, parsed_job
from nearfar.tensors import ImageContract

SIZE = ImageContract(16, 3)
SETTINGS = {"command": "nothing", "steps": 1}


def nothing() -> Job:
    """A job that gives every image back."""
    return Job(
        read=one_square(SIZE, FitMode.PAD),
        transform=lambda images, items, on_step: Results(images),
        encode=as_picture(FitMode.PAD, False),
        image=SIZE,
        settings=SETTINGS,
        key=SecretKey.from_seed(0),
        repeatable=True,
        batch_size=64,
        shrinkable=False,
        object_to=anything_goes,
    )


def settle(source: Path, out: Path) -> Work:
    return Settled(nothing(), None, Folders(source, out), RunChoice())  # type: ignore[arg-type]


def make(text: bytes) -> Do:
    torch.set_num_threads(1)
    return partial(do_shard, parsed_job(text, "the job"), settle)


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def planned(source: Path, out: Path, shards: int) -> ShardedJob:
    with listed(Folder(source)) as (lines, counts):
        total, header = counts.total(), nothing().header
        cuts = cut(lines, -(-total // shards), header["run"])
        job = ShardedJob("", "nothing", {}, str(source), str(out), header["run"], header["key"], total, cuts)
        keep_plan(job, lines)
    return job


def in_shards(source: Path, out: Path, shards: int, workers: int) -> dict[str, float]:
    """CPU and clock seconds, megabytes of the driver while it goes on."""
    began, used = time.monotonic(), cpu()
    job = planned(source, out, shards)
    memory = []
    for answer in in_processes(partial(make, job_text(job)), range(len(job.shards)), [{}] * workers):
        assert not answer.fault, answer.fault
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
    return {"cpu": cpu() - used, "clock": time.monotonic() - began, "first_mb": memory[0], "last_mb": memory[-1]}


class Names(Folder):
    """A folder of so many names, none of which is there."""

    def sources(self) -> Iterator[Source]:
        return (Source(f"{number % 1000:03}/{number:09}.png", 4096, "0") for number in range(1_000_000))


def main(
    images: Annotated[int, typer.Option(help="How many.")] = 10_000,
    shards: Annotated[int, typer.Option(help="In how many.")] = 100,
) -> None:
    """Measure, print and keep it."""
    folder, result = Path(tempfile.mkdtemp()), {"images": images, "shards": shards}
    used = cpu()
    with listed(Names(folder)) as (lines, counts):
        found = cut(lines, 1000, SETTINGS)
    result["million_names"] = {"cpu": cpu() - used, "names": counts.total(), "shards": len(found)}
    result["million_names"]["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    for number in range(images):
        path = folder / "in" / f"{number % 100:02}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number % 251, number % 241, number % 239)).save(path)
    job, used, began = replace(nothing()), cpu(), time.monotonic()
    run(job, folder / "plain", plan_run(job, folder / "in", folder / "plain", False))
    result["plain"] = {"cpu": cpu() - used, "clock": time.monotonic() - began}
    for workers in (1, 2):
        result[f"workers_{workers}"] = in_shards(folder / "in", folder / f"out{workers}", shards, workers)
    result["load"] = Path("/proc/loadavg").read_text().split()[0]
    print(json.dumps(result, indent=1))
    write_result("shards", result)
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
