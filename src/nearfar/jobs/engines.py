"""Engines: who does the tasks of a job, on this machine or on a cluster. They know nothing of what a task is.

A task is a number. `make` gives, in the process that is to work, the function that does one and returns what to tell of
it; both must be picklable by name. A worker is a process of its own under a supervisor, which starts it anew when it
dies and gives a task up after a few tries. On Ray each actor of the pool is such a supervisor, so that a task that
kills its process is no reason to restart the actor, and a node that is lost is.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from nearfar.errors import NearfarError, UsageError, first_line

Content = dict[str, Any]
Do = Callable[[int], Content]
Make = Callable[[], Do]
TRIES = 3


@dataclass(frozen=True)
class Answer:
    """What came of a task: content, or why it was not done. refused: nor would any other be, by this worker."""

    task: int
    content: Content = field(default_factory=dict)
    fault: str = ""
    refused: bool = False


def answered(do: Do, task: int) -> Answer:
    """Do a task; whatever is raised is its fault, a signal to end is not."""
    try:
        return Answer(task, do(task))
    except NearfarError as error:
        return Answer(task, fault=str(error))
    except Exception as error:  # a defect of a library or of ours ends one task, not the job
        return Answer(task, fault=f"{type(error).__name__}: {first_line(error)}")


def in_turn(make: Make, tasks: Sequence[int], tries: int = TRIES) -> Iterator[Answer]:
    """All tasks in this process, each tried so often."""
    do = make()
    for task in tasks:
        for _ in range(tries):
            answer = answered(do, task)
            if not answer.fault:
                break
        yield answer


def serve(make: Make, pipe: Connection) -> None:
    """The worker's process: tasks come through the pipe, answers go back. It does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the parent ends the worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=end_with_parent, daemon=True).start()
    try:
        do = make()
    except NearfarError as error:
        pipe.send(Answer(pipe.recv(), fault=str(error), refused=True))
        return
    while (task := pipe.recv()) is not None:
        pipe.send(answered(do, task))


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


STARTING = Lock()


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """What a process that is started meanwhile finds in its environment."""
    with STARTING:
        before = dict(os.environ)
        os.environ.update(more)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class Supervisor:
    """A worker's process, started when it is needed. more: of its environment."""

    def __init__(self, make: Make, tries: int = TRIES, more: Mapping[str, str] | None = None) -> None:
        self._make, self._tries, self._more = make, tries, more or {}
        self._process: Any = None
        self._pipe: Any = None
        self._ended = False

    def do(self, task: int) -> Answer:
        """Have the task done, in another process where one dies."""
        for _ in range(self._tries):
            answer = self._attempt(task)
            if self._ended or answer.refused or not answer.fault:
                break
        return answer

    def _attempt(self, task: int) -> Answer:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(task)
            answer: Answer = self._pipe.recv()
            return answer
        except (EOFError, OSError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            return Answer(task, fault=f"it ended its process with {how}: memory may not suffice, or a library crashes")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(self._make, theirs), daemon=True)
        with environment(self._more):
            self._process.start()
        theirs.close()

    def end(self) -> None:
        self._ended = True
        if (process := self._process) is not None:
            process.terminate()
            process.join()


def in_processes(
    make: Make, tasks: Sequence[int], workers: Sequence[Mapping[str, str]], tries: int = TRIES
) -> Iterator[Answer]:
    """The tasks in as many processes as there are workers, in whatever order. workers: the environment of each."""
    queue: SimpleQueue[int] = SimpleQueue()
    for task in tasks:
        queue.put(task)
    supervisors = [Supervisor(make, tries, more) for more in workers[: len(tasks)]]
    pool = ThreadPoolExecutor(len(supervisors) or 1)
    try:
        waiting = {pool.submit(one.do, queue.get()): one for one in supervisors}
        while waiting:
            done = next(as_completed(waiting))
            one = waiting.pop(done)
            if not queue.empty():
                waiting[pool.submit(one.do, queue.get())] = one
            yield done.result()
    finally:
        for one in supervisors:
            one.end()
        pool.shutdown(wait=False, cancel_futures=True)


class Actor:
    """What Ray Data calls with batches of one task: a supervisor."""

    def __init__(self, make: Make, tries: int) -> None:
        self._supervisor = Supervisor(make, tries)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [self._supervisor.do(int(task)) for task in batch["task"]]
        return {"answer": [vars(answer) for answer in answers]}


def on_ray(
    make: Make, tasks: Sequence[int], *, address: str | None, actors: int | None, gpus: int, tries: int = TRIES
) -> Iterator[Answer]:
    """The tasks on a cluster of Ray, by Ray Data, one actor a device. address: of a cluster; None for one of its own.

    actors: how many; None for as many as the cluster has GPUs, or else cores. gpus: of each, 0 or 1. Order is not kept.
    Tasks whose node is lost are given to another one by Ray; what was done of them stays done.
    """
    ray = library()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    found = ray.cluster_resources()
    size = min(len(tasks), actors or int(found.get("GPU", 0) if gpus else found.get("CPU", 1)) or 1)
    rows = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks)).map_batches(
        Actor,
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2),
        num_gpus=gpus,
        num_cpus=0 if gpus else 1,
        fn_constructor_kwargs={"make": make, "tries": tries},
    )
    try:
        for row in rows.iter_rows():
            yield Answer(**row["answer"])
    finally:
        ray.shutdown()


def library() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--engine ray needs the library ray: pip install 'nearfar[ray]'") from None
    return ray


def devices() -> list[str]:
    """The GPUs of this machine that may be used, by the names that CUDA has for them; torch is not loaded for it."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    from pathlib import Path

    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*")) if sys.platform == "linux" else []
    return [str(number) for number in range(len(found))]


def workers(count: int | None) -> list[dict[str, str]]:
    """The environments of so many workers, or one for each GPU, or one: GPUs are dealt out, and so are cores."""
    gpus = devices()
    number = count or len(gpus) or 1
    threads = str(max(1, (os.cpu_count() or 1) // number))
    cores = {} if number == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    return [cores | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}) for place in range(number)]


def array_script(shards: int, each: int, tasks: int, python: str, job: object) -> str:
    """A SLURM array script of so many shards, `each` of them a task."""
    return f"""\
#!/bin/bash
#SBATCH --job-name=nearfar
#SBATCH --array=0-{tasks - 1}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nearfar-%A_%a.log
# A task of the array does {each} shards and skips what is done: it may be killed and requeued at any time. Add what
# your cluster needs, such as --partition, --time, --cpus-per-task or --gres=gpu:1. The path of the key comes from
# NEARFAR_KEY_FILE, which sbatch passes on.
first=$((SLURM_ARRAY_TASK_ID * {each}))
last=$((first + {each - 1}))
if [ "$last" -ge {shards} ]; then last={shards - 1}; fi
exec {shlex.quote(python)} -m nearfar work {shlex.quote(str(job))} --shard "$first-$last"
"""
