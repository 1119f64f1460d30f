"""The folder run: read, transform in batches of one shape, write, record; resume where it stopped.

Reading and writing happen in threads beside the network, a bounded number of images ahead and behind, so memory does
not grow with the folder. The transform is a pure function of a batch of images; local processes and clusters may call
the same one. It always sees the same batch shape, the last batch padded, and computes a batch of several with a single
thread, so that an output depends neither on its neighbors nor on its place: the cores work on one batch each instead
of sharing one, which is faster too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nearfar.diffusion.solver import OnStep
from nearfar.errors import ImageError, RunError
from nearfar.io.listing import Item
from nearfar.io.manifest import Manifest, Record, manifest_path
from nearfar.io.progress import Progress
from nearfar.io.writing import remove_parts, write_whole, writing
from nearfar.jobs.job import Job, Reading, Results
from nearfar.jobs.plan import Plan, header, source_tag

A = TypeVar("A")
B = TypeVar("B")

WAITING = 1 << 28
"""Bytes of squares that may wait for the network before reading pauses."""

NO_RESULTS = Results(torch.empty(0))
NOT_FINITE = "the model returned values that are not finite: try float32, or another model"


@dataclass(frozen=True)
class Pools:
    """The threads of the three stages."""

    readers: ThreadPoolExecutor
    workers: ThreadPoolExecutor
    writers: ThreadPoolExecutor


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read for an item, and what tells whether its source has changed."""

    item: Item
    reading: Reading
    source_tag: str


@dataclass(frozen=True, eq=False)
class Square:
    """One of the squares of a reading."""

    of: Loaded
    image: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Transformed squares with a result for each, and what it took."""

    group: list[Square]
    results: list[Results]
    shape: int
    calls: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Finished:
    """An item all of whose squares are transformed. shape: of the batch that the last of them was in."""

    loaded: Loaded
    results: Results
    shape: int


def run(job: Job, source: Path, out: Path, plan: Plan, report: Callable[[Progress], None] = lambda _: None) -> Progress:
    """Carry out a plan. What is finished when it is interrupted is on the disk and in the manifest."""
    began = time.monotonic()
    progress = Progress(len(plan.todo) + len(plan.kept) + len(plan.listing.rejected), kept=len(plan.kept))
    progress.ignored, progress.batch_size, progress.steps = plan.listing.ignored, plan.batch_size, job.steps
    with Manifest(manifest_path(out), header(job)) as manifest:
        prepare_out(job, out, plan)

        def note(records: Iterable[Record]) -> None:
            for record in records:
                manifest.add(record)
                progress.count(record)
            manifest.commit()
            progress.seconds = time.monotonic() - began
            report(progress)

        def tick(step: int, _: Tensor) -> None:
            if progress.stopping:
                raise CancelledError
            progress.step, progress.seconds = step, time.monotonic() - began
            report(progress)

        note(Record(entry.name, "failed", entry.reason) for entry in plan.listing.rejected)
        with (
            ThreadPoolExecutor(2) as readers,
            worker_pool(job.workers) as workers,
            ThreadPoolExecutor(2) as writers,
        ):
            pipeline(job, plan.todo, out, Pools(readers, workers, writers), progress, note, tick)
    return progress


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers among which torch's threads are divided: one each, or all for a single worker."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(max(1, before // workers),)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def prepare_out(job: Job, out: Path, plan: Plan) -> None:
    """Make the folder; remove unfinished files, outputs about to be redone, and those whose source is gone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_parts(out)
        for name in [*(item.name for item in plan.todo), *plan.outdated]:
            job.target(out, name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out} ({error.strerror}): choose another output") from None


def pipeline(
    job: Job,
    items: list[Item],
    out: Path,
    pools: Pools,
    progress: Progress,
    note: Callable[[Iterable[Record]], None],
    tick: OnStep,
) -> None:
    """Read ahead, transform, write one batch behind."""
    behind: deque[list[Future[Record]]] = deque()
    size = progress.batch_size
    read = ahead(pools.readers, lambda item: load(job, item), items, (job.workers + 2) * size, size_of)
    loaded = with_squares(good(read, note), lambda each: note([store(job, out, Finished(each, NO_RESULTS, size))]))
    transformed = partial(transform, job, progress, tick)
    batches = ahead(pools.workers, transformed, groups(squares(loaded), partial(room, job, size)), job.workers + 1)
    try:
        for batch, finished in whole(batches):
            count(batch, finished, progress)
            behind.append([pools.writers.submit(store, job, out, each) for each in finished])
            if len(behind) > 1:
                note([future.result() for future in behind.popleft()])
    finally:
        progress.stopping = True
        for pool in (pools.readers, pools.workers):
            pool.shutdown(wait=False, cancel_futures=True)
        for futures in behind:
            note([future.result() for future in futures])


def count(batch: Batch, finished: list[Finished], progress: Progress) -> None:
    """Add a batch to what the summary tells."""
    progress.batches += batch.calls
    progress.network_seconds += batch.seconds
    progress.reduced += sum(each.loaded.reading.reduced for each in finished)


def ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[A], B],
    inputs: Iterable[A],
    depth: int,
    weight: Callable[[B], int] | None = None,
) -> Iterator[B]:
    """`map` in threads, in order, never more than `depth` inputs or `WAITING` bytes ahead of the consumer."""
    pending: deque[Future[B]] = deque()
    for each in inputs:
        pending.append(pool.submit(function, each))
        while len(pending) >= depth or (weight and heavy(pending, weight)):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def heavy(pending: Iterable[Future[B]], weight: Callable[[B], int]) -> bool:
    """Whether all but the last two, which the readers may be at, weigh too much; it waits for them."""
    return sum(weight(each.result()) for each in list(pending)[:-2]) > WAITING


def size_of(read: Loaded | Record) -> int:
    return read.reading.squares.nbytes if isinstance(read, Loaded) else 0


def with_squares(loaded: Iterable[Loaded], store_now: Callable[[Loaded], None]) -> Iterator[Loaded]:
    """Those with something to transform; the others are stored on the way."""
    for each in loaded:
        if len(each.reading.squares):
            yield each
        else:
            store_now(each)


def squares(loaded: Iterable[Loaded]) -> Iterator[Square]:
    """One after the other, those of one item together."""
    for each in loaded:
        for image in each.reading.squares:
            yield Square(each, image)


def room(job: Job, batch_size: int, square: Square) -> int:
    """How many squares of this one's shape make a batch."""
    return job.capacity(square.image.shape, batch_size)


def groups(inputs: Iterable[Square], room_of: Callable[[Square], int]) -> Iterator[list[Square]]:
    """In order, lists of squares of one shape, as many as there is room for or fewer."""
    group: list[Square] = []
    for each in inputs:
        if group and (each.image.shape != group[0].image.shape or len(group) >= room_of(each)):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def whole(batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Finished]]]:
    """Each batch, and the items whose last square was in it."""
    rows: list[Results] = []
    for batch in batches:
        finished = []
        for square, row in zip(batch.group, batch.results, strict=True):
            rows.append(row)
            if len(rows) == len(square.of.reading.squares):
                finished.append(Finished(square.of, Results.joined(rows), batch.shape))
                rows = []
        yield batch, finished


def good(results: Iterable[Loaded | Record], note: Callable[[Iterable[Record]], None]) -> Iterator[Loaded]:
    """The images that could be read; the failures among them are noted."""
    for result in results:
        if isinstance(result, Loaded):
            yield result
        else:
            note([result])


def load(job: Job, item: Item) -> Loaded | Record:
    """Read one image."""
    try:
        return Loaded(item, job.read(item), source_tag(job, item.path))
    except (ImageError, OSError, RuntimeError, MemoryError) as error:
        return Record(item.name, "failed", why(error, "does not fit into the memory: make it smaller"))


def why(error: Exception, out_of_memory: str) -> str:
    """Why an image failed; defects of a program are raised again."""
    if is_out_of_memory(error):
        return out_of_memory
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


def store(job: Job, out: Path, finished: Finished) -> Record:
    """Check the results of one item, make a file of them and write it."""
    name, reading, results = finished.loaded.item.name, finished.loaded.reading, finished.results
    objection = "" if results.finite else NOT_FINITE
    if objection := objection or (job.object_to(reading.squares, results) if len(results.images) else ""):
        return Record(name, "failed", objection)
    try:
        content, figures = job.encode(results.images, reading), job.measure(results, reading)
    except (ImageError, RuntimeError, MemoryError) as error:
        return Record(name, "failed", why(error, "its result does not fit into the memory: make it smaller"))
    target = job.target(out, name)
    with writing(target):
        sha256 = write_whole(target, content)
    return Record(name, "done", "", finished.shape, sha256, finished.loaded.source_tag, figures)


def transform(job: Job, progress: Progress, tick: OnStep, group: list[Square]) -> Batch:
    """Transform at the run's shape, padding at the end; halve the shape when memory runs out, if the job allows it."""
    began = time.monotonic()
    while True:
        shape = progress.batch_size
        size = room(job, shape, group[0])
        try:
            parts = [group[start : start + size] for start in range(0, len(group), size)]
            rows = [row for part in parts for row in transform_padded(job, part, size, tick)]
            return Batch(group, rows, shape, len(parts), time.monotonic() - began)
        except (RuntimeError, MemoryError) as error:
            shrink(job, progress, shape, error)


def transform_padded(job: Job, group: list[Square], size: int, tick: OnStep) -> list[Results]:
    """A result for each square; the batch is padded with black squares, which go with the last item."""
    images = torch.stack([each.image for each in group])
    padding = images.new_zeros(size - len(images), *images.shape[1:])
    items = [each.of.item for each in group]
    items += items[-1:] * len(padding)
    return job.transform(torch.cat([images, padding]), items, tick).rows(len(images))


def shrink(job: Job, progress: Progress, shape: int, error: Exception) -> None:
    """Halve the run's shape after an out-of-memory error; any other error is raised again."""
    smaller = shape // 2
    with within_memory(shape):
        if not (job.shrinkable and smaller and is_out_of_memory(error)):
            raise error
    progress.batch_size = min(progress.batch_size, smaller)


@contextmanager
def within_memory(shape: int) -> Iterator[None]:
    """Answer a memory that does not hold a batch of this shape with a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f"give --batch-size {shape // 2}" if shape > 1 else "use a smaller model or another device"
        raise RunError(f"memory does not hold {shape} images at once: {advice}") from None


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
