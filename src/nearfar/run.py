"""The folder run: plan, read, transform in batches of one shape, write, record; resume where it stopped.

Reading and writing happen in threads beside the network, a bounded number of images ahead and behind, so memory does
not grow with the folder. The transform is a pure function of a batch of images; local processes and clusters may call
the same one. It always sees the same batch shape, the last batch padded, and computes a batch with a single thread, so
that an output depends neither on its neighbours nor on its place: the cores work on one batch each instead of sharing
one, which is faster too.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nearfar.errors import ImageError, RunError, UsageError
from nearfar.fitting import FitMode, fit, seen_shape, unfit
from nearfar.images import Frame, encode, read_picture
from nearfar.manifest import Earlier, Manifest, Record, manifest_path, read_manifest
from nearfar.model import ImageContract
from nearfar.noise import SecretKey
from nearfar.sinks import has_content, remove_parts, write_whole, writing
from nearfar.sources import Item, Listing, list_folder
from nearfar.tensors import Images

Transform = Callable[[Images], Images]
A = TypeVar("A")
B = TypeVar("B")

UNCHANGED = 1 / 255
"""Root mean square change, in [-1, 1], below which an output counts as its input: half a grey level."""


@dataclass(frozen=True)
class Job:
    """What to do with every image.

    settings: everything that decides the pixels but the batch size; only a run with equal ones may be resumed.
    batch_size: the shape in which the transform is called. shrinkable: whether it may be smaller, for few images or
    when memory runs out.
    repeatable: whether the key outlives the run, so that its outputs can be made again.
    workers: batches that are transformed at the same time.
    """

    transform: Transform
    image: ImageContract
    fit: FitMode
    settings: dict[str, Any]
    key: SecretKey
    repeatable: bool
    batch_size: int
    shrinkable: bool
    keep_metadata: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Plan:
    """What a run will do: images to process, earlier outputs to keep and to remove, entries that cannot be read."""

    todo: list[Item]
    kept: list[Record]
    outdated: list[str]
    listing: Listing
    batch_size: int


@dataclass
class Progress:
    """How far a run has come; at its end, the summary. `reduced`: images larger than the model's, which lost detail.

    network_seconds: spent in the transform, added up over the workers.
    """

    total: int
    kept: int = 0
    done: int = 0
    ignored: int = 0
    reduced: int = 0
    failed: list[Record] = field(default_factory=list)
    batches: int = 0
    batch_size: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0

    def count(self, record: Record) -> None:
        if record.status == "done":
            self.done += 1
        else:
            self.failed.append(record)


@dataclass(frozen=True)
class Pools:
    """The threads of the three stages."""

    readers: ThreadPoolExecutor
    workers: ThreadPoolExecutor
    writers: ThreadPoolExecutor


@dataclass(frozen=True)
class Loaded:
    """An image at the model's size, and what is needed to put the result back into its frame."""

    item: Item
    image: Tensor
    frame: Frame
    source_tag: str


@dataclass(frozen=True)
class Batch:
    """Transformed images, and what it took."""

    group: list[Loaded]
    outputs: Tensor
    shape: int
    calls: int
    seconds: float


def plan_run(job: Job, source: Path, out: Path, resume: bool) -> Plan:
    """List the work; nothing is written. Raises UsageError when `out` is in the way."""
    check_folders(source, out)
    check_out(out, resume)
    listing = list_folder(source)
    if not listing.items and not listing.rejected:
        others = f"{listing.ignored} other files"
        raise UsageError(f"{source} holds no images ({others}): PNG, JPEG, WebP, TIFF and BMP are read")
    earlier = read_manifest(manifest_path(out)) if resume else Earlier()
    check_same_run(job, out, earlier)
    kept = {item.name: record for item in listing.items if (record := still_good(job, item, out, earlier.records))}
    todo = [item for item in listing.items if item.name not in kept]
    done = [name for name, record in earlier.records.items() if record.status == "done"]
    outdated = [name for name in done if name not in kept and is_inside(name)]
    return Plan(todo, list(kept.values()), outdated, listing, choose_batch_size(job, todo, list(kept.values())))


def check_folders(source: Path, out: Path) -> None:
    """Neither folder may lie in the other: outputs would become inputs, or originals be overwritten."""
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UsageError(f"{source} and {out} must not contain each other: choose an output folder elsewhere")


def check_out(out: Path, resume: bool) -> None:
    for path in (out, *out.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} must be a folder, got a file: choose another output")
    manifest = manifest_path(out)
    has_files = out.is_dir() and any(out.iterdir())
    if has_files and not resume:
        raise UsageError(f"{out} is not empty: give --resume to go on with it, or choose another output")
    if has_files and not manifest.exists():
        raise UsageError(f"{out} has no manifest ({manifest.name}), so nothing can be resumed: choose another output")
    if manifest.exists() and not resume:
        raise UsageError(f"{manifest} is the record of an earlier run: give --resume, or remove it")


def check_same_run(job: Job, out: Path, earlier: Earlier) -> None:
    """An output folder has one set of settings and one key; anything else would be redone over finished work."""
    if not earlier.header:
        return
    before, now = earlier.header.get("run", {}), job.settings
    changed = [f"{name} {before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(f"{out} has other settings ({'; '.join(changed)}): repeat them, or choose another output")
    if earlier.header.get("key") != header(job)["key"]:
        raise UsageError(f"{out} has another key: give the --key-file that it began with, or none if it had none")


def header(job: Job) -> dict[str, Any]:
    """The manifest's first line: the settings, and the fingerprint of a key that is kept."""
    return {"run": job.settings, "key": fingerprint(job.key) if job.repeatable else ""}


def still_good(job: Job, item: Item, out: Path, records: dict[str, Record]) -> Record | None:
    """The record of an earlier output that still stands: done, its source unchanged, its file intact."""
    record = records.get(item.name)
    if record is None or record.status != "done" or record.source_tag != source_tag(job, item.path):
        return None
    return record if has_content(out / item.name, record.target_sha256) else None


def is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def choose_batch_size(job: Job, todo: list[Item], kept: list[Record]) -> int:
    """The job's own, unless it may shrink: then as before the interruption, or no larger than the images need."""
    if not job.shrinkable:
        return job.batch_size
    if kept:
        return kept[-1].batch_size
    share = -(-len(todo) // job.workers)
    return min(job.batch_size, 1 << max(0, share - 1).bit_length())


def fingerprint(key: SecretKey) -> str:
    """Tells whether two runs used the same key, and nothing else about it."""
    return key.tag("fingerprint")


def source_tag(job: Job, path: Path) -> str:
    """Tells whether a source has changed: a keyed hash, or size and time where the key will be gone."""
    try:
        if not job.repeatable:
            status = path.stat()
            return f"{status.st_size}-{status.st_mtime_ns}"
        with path.open("rb") as file:
            return job.key.tag("source", hashlib.file_digest(file, "sha256").digest())
    except OSError:
        return ""


def run(job: Job, source: Path, out: Path, plan: Plan, report: Callable[[Progress], None] = lambda _: None) -> Progress:
    """Carry out a plan. What is finished when it is interrupted is on the disk and in the manifest."""
    began = time.monotonic()
    progress = Progress(len(plan.todo) + len(plan.kept) + len(plan.listing.rejected), kept=len(plan.kept))
    progress.ignored, progress.batch_size = plan.listing.ignored, plan.batch_size
    with Manifest(manifest_path(out), header(job)) as manifest:
        prepare_out(out, plan)

        def note(records: Iterable[Record]) -> None:
            for record in records:
                manifest.add(record)
                progress.count(record)
            manifest.commit()
            progress.seconds = time.monotonic() - began
            report(progress)

        note(Record(entry.name, "failed", entry.reason) for entry in plan.listing.rejected)
        with (
            ThreadPoolExecutor(2) as readers,
            single_threaded(job.workers) as workers,
            ThreadPoolExecutor(2) as writers,
        ):
            pipeline(job, plan.todo, out, Pools(readers, workers, writers), progress, note)
    return progress


@contextmanager
def single_threaded(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes with one thread each."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def prepare_out(out: Path, plan: Plan) -> None:
    """Make the folder; remove unfinished files, outputs about to be redone, and those whose source is gone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_parts(out)
        for name in [*(item.name for item in plan.todo), *plan.outdated]:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out} ({error.strerror}): choose another output") from None


def pipeline(
    job: Job,
    items: list[Item],
    out: Path,
    pools: Pools,
    progress: Progress,
    note: Callable[[Iterable[Record]], None],
) -> None:
    """Read ahead, transform, write one batch behind."""
    behind: deque[list[Future[Record]]] = deque()
    size = progress.batch_size
    loaded = good(ahead(pools.readers, lambda item: load(job, item), items, (job.workers + 2) * size), note)
    batches = ahead(pools.workers, lambda group: transform(job, group, progress), groups(loaded, size), job.workers + 1)
    try:
        for batch in batches:
            count(batch, job, progress)
            behind.append([pools.writers.submit(store, job, out, each, new, batch.shape)
                           for each, new in zip(batch.group, batch.outputs, strict=True)])  # fmt: skip
            if len(behind) > 1:
                note([future.result() for future in behind.popleft()])
    finally:
        for pool in (pools.readers, pools.workers):
            pool.shutdown(wait=False, cancel_futures=True)
        for futures in behind:
            note([future.result() for future in futures])


def count(batch: Batch, job: Job, progress: Progress) -> None:
    """Add a batch to what the summary tells."""
    progress.batches += batch.calls
    progress.network_seconds += batch.seconds
    progress.reduced += sum(max(seen_shape(each.frame, job.fit)) > job.image.size for each in batch.group)


def ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], inputs: Iterable[A], depth: int) -> Iterator[B]:
    """`map` in threads, in order, never more than `depth` inputs ahead of the consumer."""
    pending: deque[Future[B]] = deque()
    for each in inputs:
        pending.append(pool.submit(function, each))
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def groups(inputs: Iterable[A], size: int) -> Iterator[list[A]]:
    """Lists of `size` inputs, the last one shorter."""
    source = iter(inputs)
    while group := list(islice(source, size)):
        yield group


def good(results: Iterable[Loaded | Record], note: Callable[[Iterable[Record]], None]) -> Iterator[Loaded]:
    """The images that could be read; the failures among them are noted."""
    for result in results:
        if isinstance(result, Loaded):
            yield result
        else:
            note([result])


def load(job: Job, item: Item) -> Loaded | Record:
    """Read one image and bring it to the model's size."""
    try:
        picture = read_picture(item.path)
        image = fit(picture, job.image.size, job.image.channels, job.fit)
        return Loaded(item, image, picture.frame, source_tag(job, item.path))
    except (ImageError, OSError) as error:
        return Record(item.name, "failed", str(error))
    except MemoryError:
        return Record(item.name, "failed", "does not fit into the memory: make it smaller")


def store(job: Job, out: Path, loaded: Loaded, output: Tensor, batch_size: int) -> Record:
    """Check one result, put it back into its frame and write it."""
    name = loaded.item.name
    objection = distrust(loaded.image, output)
    if objection:
        return Record(name, "failed", objection)
    try:
        content = encode(unfit(output, loaded.frame, job.fit), job.keep_metadata)
    except MemoryError:
        return Record(name, "failed", "its result does not fit into the memory: make it smaller")
    with writing(out / name):
        sha256 = write_whole(out / name, content)
    return Record(name, "done", "", batch_size, sha256, loaded.source_tag)


def distrust(image: Tensor, output: Tensor) -> str:
    """Why a result must not be written, or nothing."""
    if not output.isfinite().all():
        return "the model returned values that are not finite: try float32, or another model"
    change = (output - image).square().mean().sqrt().item()
    if change < UNCHANGED:
        return f"the result is the input again (change {change:.2g}, at least {UNCHANGED:.2g}): raise the strength"
    return ""


def transform(job: Job, group: list[Loaded], progress: Progress) -> Batch:
    """Transform at the run's shape, padding at the end; halve the shape when memory runs out, if the job allows it."""
    began = time.monotonic()
    images = torch.stack([each.image for each in group])
    while True:
        shape = progress.batch_size
        try:
            outputs = [transform_padded(job.transform, part, shape) for part in torch.split(images, shape)]
            return Batch(group, torch.cat(outputs), shape, len(outputs), time.monotonic() - began)
        except (RuntimeError, MemoryError) as error:
            shrink(job, progress, shape, error)


def transform_padded(transform: Transform, images: Tensor, shape: int) -> Tensor:
    padding = images.new_zeros(shape - len(images), *images.shape[1:])
    return transform(torch.cat([images, padding]))[: len(images)]


def shrink(job: Job, progress: Progress, shape: int, error: Exception) -> None:
    """Halve the run's shape after an out-of-memory error; any other error is raised again."""
    if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)):
        raise error
    smaller = shape // 2
    if not job.shrinkable or smaller < 1:
        advice = f"give --batch-size {smaller}" if smaller else "use a smaller model or another device"
        raise RunError(f"memory does not hold {shape} images at once: {advice}") from None
    progress.batch_size = min(progress.batch_size, smaller)
