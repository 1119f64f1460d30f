"""`nearfar plan`, `work`, `status`, `merge` and `slurm`, and folder commands whose IN or OUT is a URL.

Such a command plans, works and merges at once, in its own process.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nearfar.cli.console import (
    DONE,
    SOME_FAILED,
    end_at_once,
    on_signals,
    raise_on_signals,
    reported_errors,
    say,
    say_failed,
    shown_progress,
    tell,
    warnings_as_notes,
)
from nearfar.cli.help import IN_SHARDS
from nearfar.cli.options import argument, command, command_saying, option
from nearfar.cli.shards import KEY, KEY_HELP, key_of, options_of, parsed, places_of, planned, worker
from nearfar.errors import UsageError
from nearfar.io.manifest import Progress, Record
from nearfar.io.stores import place_of

if TYPE_CHECKING:
    from nearfar.jobs.engines import Answer
    from nearfar.jobs.shards import ShardedJob


@dataclass(frozen=True)
class Planning:
    """How a job is cut."""

    shards: int = option(1, "Into how many; a shard should take minutes (docs/scale.md).")
    job_file: Path = option(Path("job.json"), "The job file.", option="job-file", short="-o", metavar="FILE")
    key_file: Path | None = option(None, KEY_HELP)


@command
def plan(
    job: Annotated[str, typer.Argument(metavar="JOB", help=f"{', '.join(IN_SHARDS)}.")],
    words: Annotated[list[str], typer.Argument(metavar="IN OUT ...", help="As JOB has them, with its options.")],
    *,
    planning: Planning,
) -> None:
    """Cut a folder job into shards, to be done by nearfar work on any machine.

    IN and OUT are folders or URLs that every machine reaches. The job file holds settings, the model's hash and the
    shards, but no secrets; the listing of IN and the records of finished shards are put beside OUT, in OUT.shards.
    """
    from nearfar.jobs.shards import job_text

    check_count("shards", planning.shards)
    if planning.job_file.exists():
        raise UsageError(f"{planning.job_file} is there already: give another --job-file, or remove it")
    context = parsed(job, words)
    key_file = key_of(job, planning.key_file, context)
    made = planned(context, key_file, planning.shards)
    planning.job_file.write_bytes(job_text(made))
    say("plan", f"{made.sources} files in {len(made.shards)} shards of up to {made.shards[0].sources}")
    typer.echo(f"{planning.job_file}: nearfar work {planning.job_file} does it, nearfar status tells how far it is")


@dataclass(frozen=True)
class JobFile:
    """A job."""

    job_file: Path = argument("JOB", "The job file that nearfar plan has written.")


@dataclass(frozen=True)
class Working:
    """Who does a job."""

    workers: int | None = option(None, "Processes. [default: one for each GPU, or one; with Ray all that it has]")
    shard: str | None = option(None, "Only this one, or these: 17 or 17-25, from 0 on.")
    engine: Literal["processes", "ray"] = option("processes", "Processes of this machine, or a cluster of Ray.")
    address: str | None = option(None, "Of the cluster; auto for the one here. [default: one of this machine's own]")
    key_file: Path | None = option(None, f"The job's key. [default: {KEY}]")
    tries: int = option(3, "How often a shard is tried before it is given up.")
    as_json: bool = option(False, "Print the summary as JSON.", option="json")


@command
def work(job: JobFile, *, working: Working) -> None:
    """Do the shards of a job that are not done.

    May be run on many machines at once and killed at any time: what is done is kept, what was under way is done again,
    to the same bytes. Exit code 3 where images failed or shards were given up.
    """
    from nearfar.jobs.shards import load_job

    for name in ("workers", "tries"):
        check_count(name, getattr(working, name))
    made = load_job(job.job_file)
    key_file = key_for(made, working.key_file)
    numbers = numbers_of(working.shard, len(made.shards))
    raise_on_signals()
    finished = made.done()
    tasks = [number for number in numbers if made.shards[number].name not in finished]
    random.shuffle(tasks)  # so that machines do not wait for each other
    watched(made, answers(made, key_file, working, tasks), len(numbers) - len(tasks), working.tries)
    on_signals(end_at_once)
    raise typer.Exit(tell_status(made, working.as_json))


def answers(job: ShardedJob, key_file: str | None, how: Working, tasks: Sequence[int]) -> Iterable[Answer]:
    """The shards as an engine does them."""
    from nearfar.jobs.engines import devices, in_processes, on_ray, workers
    from nearfar.jobs.shards import job_text

    make = partial(worker, job_text(job), key_file)
    if not tasks:
        return ()
    if how.engine == "ray":
        gpus = 1 if devices() else 0
        return on_ray(make, tasks, address=how.address, actors=how.workers, gpus=gpus, tries=how.tries)
    return in_processes(make, tasks, workers(how.workers), how.tries)


def watched(job: ShardedJob, answered: Iterable[Answer], kept: int, tries: int) -> None:
    """Show how far a job is; note what was given up. UsageError where a worker refuses."""
    from nearfar.jobs.shards import give_up

    progress, began = Progress(len(job.shards), kept=kept), time.monotonic()
    with shown_progress(job.command, "shards") as report:
        for answer in answered:
            if answer.refused:
                raise UsageError(answer.fault)
            name = job.shards[answer.task].name
            progress.count(Record(name, "failed" if answer.fault else "done", answer.fault))
            if answer.fault:
                give_up(job, answer.task, answer.fault, tries)
                say("failed", f"shard {answer.task} ({name}): {answer.fault}")
            progress.seconds = time.monotonic() - began
            report(progress)


def key_for(job: ShardedJob, key_file: Path | None) -> str | None:
    """The file of a job's key, where it has one that is no seed."""
    if job.command != "anonymize":
        return None
    given = key_file or (Path(os.environ[KEY]) if os.environ.get(KEY) else None)
    if given is None or not given.is_file():
        raise UsageError(f"the job was planned with a key: give its file as --key-file or set {KEY}")
    return str(given.resolve())


def numbers_of(text: str | None, count: int) -> list[int]:
    """`17` or `17-25` as numbers of shards."""
    if text is None:
        return list(range(count))
    first, _, last = text.partition("-")
    try:
        numbers = list(range(int(first), int(last or first) + 1))
    except ValueError:
        numbers = []
    if not numbers or not 0 <= numbers[0] <= numbers[-1] < count:
        raise UsageError(
            f"shard must be one of 0 to {count - 1}, or a range of them such as 0-{count - 1}, got {text!r}"
        )
    return numbers


def check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{name} must be at least 1, got {value}")


def tell_status(job: ShardedJob, as_json: bool) -> int:
    """Say how far a job is; the exit code: whether anything failed."""
    from nearfar.jobs.shards import status_of

    state = status_of(job)
    hours = f"{state.remaining / 3600:.2g} h"
    pace = f"; {state.per_second:.3g} files/s, {hours} to go" if state.missing and state.done else ""
    line = (
        f"{state.done} of {len(job.shards)} shards done, {len(state.failed)} failed, {state.missing} missing; "
        f"{state.images} images, {state.bad_images} of them failed{pace}"
    )
    lines = [("failed", f"shard {name}: {reason}") for name, reason in state.failed.items()]
    code = SOME_FAILED if state.failed or state.bad_images else DONE
    tell(asdict(state) | {"shards": len(job.shards), "exit_code": code}, [*lines, ("", line)], as_json)
    return code


@dataclass(frozen=True)
class Telling:
    """How it is told."""

    as_json: bool = option(False, "Print it as JSON.", option="json")


@command_saying("interrupted; nothing was written")
def status(job: JobFile, *, telling: Telling) -> None:
    """Tell how far a job is: shards that are done, failed and missing, the rate and the time that remains."""
    from nearfar.jobs.shards import load_job

    tell_status(load_job(job.job_file), telling.as_json)


@command_saying("interrupted; merge again")
def merge(job: JobFile, *, telling: Telling) -> None:
    """Make one manifest beside OUT of those of all shards, and list every image that failed.

    Exit code 3 where there are any; 2 while shards are missing.
    """
    from nearfar.jobs.shards import load_job

    made = load_job(job.job_file)
    raise typer.Exit(merged(made, telling.as_json))


def merged(job: ShardedJob, as_json: bool) -> int:
    """Merge, and say what failed; the exit code."""
    from nearfar.jobs.shards import merge as merge_shards

    failed = merge_shards(job)
    say_failed(failed)
    manifest = str(place_of(job.out).beside(".manifest.jsonl"))
    code = SOME_FAILED if failed else DONE
    entries = [{"name": record.name, "reason": record.reason} for record in failed]
    content = {"settings": job.settings, "out": job.out, "manifest": manifest, "failed": entries, "exit_code": code}
    tell(content, [("", f"{len(failed)} failed; results in {job.out}, record in {manifest}")], as_json)
    return code


@dataclass(frozen=True)
class Array:
    """How a SLURM array is cut."""

    tasks: int = option(1000, "Tasks of the array, at most; a task does its shards one after the other.")


@command_saying("interrupted")
def slurm(job: JobFile, *, array: Array) -> None:
    """Print a SLURM array script that does a job: nearfar slurm job.json > array.sh, then sbatch array.sh."""
    from nearfar.jobs.engines import array_script
    from nearfar.jobs.shards import load_job

    check_count("tasks", array.tasks)
    count = len(load_job(job.job_file).shards)
    each = -(-count // array.tasks)
    file = job.job_file.resolve()
    text = array_script(shards=count, each=each, tasks=-(-count // each), python=sys.executable, job=file)
    typer.echo(text, nl=False)


def run_at(context: Any) -> None:
    """A folder command whose IN or OUT is a URL: planned, done in this process and merged."""
    with reported_errors(), warnings_as_notes():
        params = context.params
        places_of(context)  # before anything else, an unknown scheme
        key_file = key_of(context.command.name, params.get("key_file"), context)
        job = earlier(context, key_file) if params["resume"] else None
        if params["dry_run"]:
            raise UsageError("--dry-run is for folders on this machine: nearfar plan says how a job would be cut")
        raise_on_signals()
        job = job or planned(context, key_file)
        say("plan", f"{job.sources} files in {len(job.shards)} shards")
        raise typer.Exit(done_here(job, key_file, params["as_json"]))


def earlier(context: Any, key_file: str | None) -> ShardedJob | None:
    """What an earlier run has planned for this OUT. UsageError where options, IN or its files are others."""
    from nearfar.jobs.shards import planned_before, same_listing

    source, out = places_of(context)
    job, options = planned_before(out), options_of(context)
    if job is None:
        return None
    before = {name: value for name, value in job.options.items() if name in options or name != "--batch-size"}
    if (job.command, job.source, before) != (context.command.name, str(source), options):
        raise UsageError(f"{out} was begun with other options or another IN: repeat them, or choose another output")
    if not same_listing(job, source):
        raise UsageError(f"{source} has other files than when {out} was begun: choose another output")
    return job


def done_here(job: ShardedJob, key_file: str | None, as_json: bool) -> int:
    """Do all shards in this process, and merge; the exit code."""
    from nearfar.jobs.engines import TRIES, in_turn
    from nearfar.jobs.shards import job_text

    finished = job.done()
    tasks = [number for number, shard in enumerate(job.shards) if shard.name not in finished]
    make = partial(worker, job_text(job), key_file)
    watched(job, in_turn(make, tasks) if tasks else (), len(job.shards) - len(tasks), TRIES)
    on_signals(end_at_once)
    return merged(job, as_json)
