"""The one runner: plan, read, transform in batches of one shape, write, record; resume where it stopped.

Reading and writing happen in threads beside the network, a bounded number of images ahead and behind, so memory does
not grow with the folder. The transform is a pure function of a batch of images; local processes and clusters may call
the same one. It always sees the same batch shape, the last batch padded, and computes a batch of several with a single
thread, so that an output depends neither on its neighbors nor on its place: the cores work on one batch each instead
of sharing one, which is faster too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.noise import SecretKey
from nearfar.errors import ImageError, RunError, UsageError
from nearfar.io.listing import Item, Listing, list_folder
from nearfar.io.manifest import (
    OF_ITS_NAME,
    Earlier,
    Manifest,
    Progress,
    Record,
    check_no_links,
    check_own_folder,
    has_content,
    manifest_path,
    read_manifest,
    remove_parts,
    salt_path,
    unwritable,
    write_whole,
    writing,
)
from nearfar.io.pictures import KNOWN
from nearfar.jobs.job import Job, Results, Verdict, salt_kept, still_good
from nearfar.jobs.pipeline import Batch, Loaded, Square, ahead, whole, worker_pool
from nearfar.jobs.places import check_places

NO_RESULTS = Results(torch.empty(0))
NOT_FINITE = "the model returned values that are not finite: try float32, or another model"


@dataclass(frozen=True)
class Plan:
    """What a run will do: images to process, earlier outputs to keep and to remove, entries that cannot be read."""

    todo: list[Item]
    kept: list[Record]
    outdated: list[str]
    listing: Listing
    batch_size: int
    salt: SecretKey

    @property
    def names(self) -> list[str]:
        """The images of the run, those that were made before it among them."""
        return [*(item.name for item in self.todo), *(record.name for record in self.kept)]


def plan_run(job: Job, source: Path, out: Path, resume: bool) -> Plan:
    """List the work; nothing is written. Raises UsageError when `out` is in the way."""
    check_places(source, out, resume)
    listing = list_folder(source)
    if not listing.items and not listing.rejected:
        others = f"{listing.ignored} other files"
        raise UsageError(f"{source} holds no images ({others}): {KNOWN} files are read")
    return plan_items(job, listing, out, resume)


def plan_items(job: Job, listing: Listing, out: Path, resume: bool) -> Plan:
    """The same for whatever is listed. Raises UsageError when `out` was begun with other settings or another key."""
    earlier = read_manifest(manifest_path(out)) if resume else Earlier()
    check_same_run(job, out, earlier)
    path = salt_path(out)
    job = replace(job, salt=SecretKey.load(path)) if resume and path.exists() else job
    items = job.expand(listing.items)
    kept = {item.name: record for item in items if (record := still_good(job, item, out, earlier.records))}
    todo = [item for item in items if item.name not in kept]
    done = [name for name, record in earlier.records.items() if record.status == "done" and not job.numbered]
    inside = [name for name in done if not Path(name).is_absolute() and ".." not in Path(name).parts]
    outdated = [name for name in inside if name not in kept]
    batch_size = choose_batch_size(job, todo, list(kept.values()))
    return Plan(todo, list(kept.values()), outdated, listing, batch_size, job.salt)


def check_same_run(job: Job, out: Path, earlier: Earlier) -> None:
    """An output folder has one set of settings and one key; anything else would be redone over finished work."""
    check_same_settings(job.settings, out, earlier)
    if earlier.header and earlier.header.get("key") != job.header["key"]:
        raise UsageError(f"{out} has another key: give the --key-file that it began with, or none if it had none")


def check_same_settings(now: dict[str, Any], out: Path, earlier: Earlier) -> None:
    """Refuse to go on with a folder that was begun with other settings."""
    before = earlier.header.get("run", now)
    if changed := [f"{name} {short(before.get(name))}, now {short(now.get(name))}" for name in earlier.changed(now)]:
        raise UsageError(
            f"{out} was made with other settings ({'; '.join(changed)}): repeat them, or choose another output"
        )


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)[:20]


def choose_batch_size(job: Job, todo: list[Item], kept: list[Record]) -> int:
    """The job's own, unless it may shrink: then as before the interruption, or what the images are likely to need."""
    if not job.shrinkable:
        return job.batch_size
    if kept:
        return kept[-1].batch_size
    share = -(-len(todo) * job.squares // job.workers)
    return min(job.batch_size, 1 << max(0, share - 1).bit_length())


def run(job: Job, out: Path, plan: Plan, report: Callable[[Progress], None] = lambda _: None) -> Progress:
    """Carry out a plan. What is finished when it is interrupted is on the disk and in the manifest."""
    out = out.resolve()  # a link that OUT becomes is not followed
    progress = Progress(len(plan.todo) + len(plan.kept) + len(plan.listing.rejected), kept=len(plan.kept))
    progress.ignored, progress.batch_size, progress.steps = plan.listing.ignored, plan.batch_size, job.steps
    job = replace(job, salt=plan.salt)
    with Manifest(manifest_path(out), job.header) as manifest, salt_kept(job, out, manifest, plan.kept):
        work = Run(job, out, plan.batch_size, progress, manifest, report)
        unwritable = work.prepare(plan)
        work.note([Record(entry.name, "failed", entry.reason) for entry in plan.listing.rejected] + unwritable)
        failed = {record.name for record in unwritable}
        work.carry_out([item for item in plan.todo if item.name not in failed])
        work.note([])
        check_standing(job, out, set(plan.names))
    return progress


def check_standing(job: Job, out: Path, names: Collection[str]) -> None:
    """RunError unless every output of these that the manifest calls done stands in `out`, as it was written."""
    earlier = read_manifest(manifest_path(out))
    records = earlier.records if earlier.header else {}
    done = [record for name, record in records.items() if name in names and record.status == "done"]
    files = done if job.encode else []
    gone = [one.name for one in files if not has_content(job.target(out, one.name), one.target_sha256)]
    lost = [*gone, *(name for name in names if name not in records)]
    if lost:
        raise RunError(
            f"{len(lost)} of {len(names)} images in {out}, such as {lost[0]}, or what the record tells of them, were "
            "removed or changed while the run went on: keep other programs away and make them again with --resume"
        )
    check_no_links(out, error=RunError)


@dataclass(frozen=True, eq=False)
class Run:
    """A run that goes on. size: the batch size that it began with. report: told of all progress."""

    job: Job
    out: Path
    size: int
    progress: Progress
    manifest: Manifest
    report: Callable[[Progress], None]
    began: float = field(default_factory=time.monotonic)

    def prepare(self, plan: Plan) -> list[Record]:
        """Make the folder; remove unfinished files, outputs about to be redone, and those whose source is gone.

        Returns the records of what can have no file of its name.
        """
        failed: list[Record] = []
        if self.job.encode is None:
            return failed
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            remove_parts(self.out)
            for name in [*(item.name for item in plan.todo), *plan.outdated]:
                if reason := not_free(self.job.target(self.out, name)):
                    failed.append(Record(name, "failed", reason))
        except OSError as error:
            raise RunError(f"cannot write to {self.out} ({error.strerror}): choose another output") from None
        return failed

    def note(self, records: Iterable[Record]) -> None:
        """Put records onto the disk."""
        for record in records:
            self.manifest.add(record)
            self.progress.count(record)
        self.manifest.commit()
        self.tell()

    def tick(self, step: int, _: Tensor) -> None:
        """Called after each solver step of a batch; gives the batch up where the run ends."""
        if self.progress.stopping:
            raise CancelledError
        self.progress.step = step
        self.tell()

    def tell(self) -> None:
        self.progress.seconds = time.monotonic() - self.began
        self.report(self.progress)

    def carry_out(self, items: list[Item]) -> None:
        """Read ahead, transform, write one batch behind."""
        job, behind = self.job, deque[list[Future[Record]]]()
        names = {item.name for item in items}
        with ThreadPoolExecutor(2) as readers, worker_pool(job.workers) as workers, ThreadPoolExecutor(2) as writers:
            loaded = ahead(readers, self.load, job.neighbors(items), (job.workers + 2) * self.size, weigh=True)
            batches = ahead(workers, self.transform, self.groups(loaded), job.workers + 1)
            try:
                for batch, finished in whole(batches):
                    self.progress.batches += batch.calls
                    self.progress.network_seconds += batch.seconds
                    self.progress.reduced += sum(loaded.reading.reduced for loaded, *_ in finished)
                    wanted = [one for one in finished if one[0].item.name in names]
                    behind.append([writers.submit(self.store, *one) for one in wanted])
                    if len(behind) > 1:
                        self.note([future.result() for future in behind.popleft()])
            finally:
                self.progress.stopping = True
                for pool in (readers, workers):
                    pool.shutdown(wait=False, cancel_futures=True)
                for futures in behind:
                    self.note([future.result() for future in futures])

    def load(self, item: Item) -> Loaded | Record:
        """Read one item."""
        try:
            return Loaded(item, self.job.read(item), self.job.source_tag(item.path))
        except (ImageError, OSError, RuntimeError, MemoryError) as error:
            return Record(item.name, "failed", why(error, "does not fit into the memory: make it smaller"))

    def squares(self, loaded: Iterable[Loaded | Record]) -> Iterator[Square]:
        """One after the other; items that failed are recorded on the way, and those without squares stored."""
        for one in loaded:
            if isinstance(one, Record):
                self.note([one])
            elif not len(one.reading.squares):
                self.note([self.store(one, NO_RESULTS, self.size)])
            else:
                yield from ((one, image) for image in one.reading.squares)

    def groups(self, loaded: Iterable[Loaded | Record]) -> Iterator[list[Square]]:
        """In order, lists of squares of one shape, as many as there is room for or fewer."""
        group: list[Square] = []
        for square in self.squares(loaded):
            if group and (square[1].shape != group[0][1].shape or len(group) >= self.room(square, self.size)):
                yield group
                group = []
            group.append(square)
        if group:
            yield group

    def room(self, square: Square, size: int) -> int:
        """How many squares of this one's shape make a batch where the batch size is so many."""
        return self.job.capacity(square[1].shape, size) if self.job.capacity else size

    def transform(self, group: list[Square]) -> Batch:
        """Transform at the run's shape; halve it when memory runs out, if the job allows it."""
        began = time.monotonic()
        while True:
            shape = self.progress.batch_size
            size = self.room(group[0], shape)
            try:
                parts = [group[start : start + size] for start in range(0, len(group), size)]
                rows = [row for part in parts for row in self.transform_padded(part, size)]
                return Batch(group, rows, shape, len(parts), time.monotonic() - began)
            except (RuntimeError, MemoryError) as error:
                self.shrink(shape, error)

    def transform_padded(self, group: list[Square], size: int) -> list[Results]:
        """A result for each square; the batch is padded with black squares, which go with the last item."""
        images = torch.stack([image for _, image in group])
        padding = images.new_zeros(size - len(images), *images.shape[1:])
        items = [loaded.item for loaded, _ in group]
        items += items[-1:] * len(padding)
        return self.job.transform(torch.cat([images, padding]), items, self.tick).rows(len(images))

    def shrink(self, shape: int, error: Exception) -> None:
        """Halve the run's shape after an out-of-memory error; any other error is raised again."""
        smaller = shape // 2
        with within_memory(shape):
            if not (self.job.shrinkable and smaller and is_out_of_memory(error)):
                raise error
        self.progress.batch_size = min(self.progress.batch_size, smaller)

    def store(self, loaded: Loaded, results: Results, shape: int) -> Record:
        """Check the results of one item, make a file of them and write it, unless they are to be dropped."""
        job, name, reading = self.job, loaded.item.name, loaded.reading
        objection = "" if results.finite else NOT_FINITE
        if objection := objection or (job.object_to(reading.squares, results) if len(results.images) else ""):
            return Record(name, "failed", objection)
        verdict = results.verdicts[0] if results.verdicts else Verdict()
        record = Record(name, "dropped", verdict.reason, shape, "", loaded.source_tag)
        record = replace(record, verdict=verdict.word, parents=verdict.parents)
        try:
            content = job.encode(results.images, reading) if job.encode and not verdict.dropped else None
            record = replace(record, figures=job.measure(results, reading))
        except (ImageError, RuntimeError, MemoryError) as error:
            return Record(name, "failed", why(error, "its result does not fit into the memory: make it smaller"))
        if content is None:
            return record if verdict.dropped else replace(record, status="done")
        target = job.target(self.out, name)
        check_own_folder(self.out, target)
        with writing(target):
            try:
                return replace(record, status="done", target_sha256=write_whole(target, content))
            except OSError as error:
                if error.errno not in OF_ITS_NAME:
                    raise
                return Record(name, "failed", unwritable(error))


def not_free(target: Path) -> str:
    """Remove what an earlier run left there; why nothing can be written under this name, where that is so."""
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in OF_ITS_NAME:
            raise
        return unwritable(error)
    return ""


def why(error: Exception, out_of_memory: str) -> str:
    """Why an image failed; defects of a program are raised again."""
    if is_out_of_memory(error):
        return out_of_memory
    if isinstance(error, RuntimeError):
        raise error
    return str(error)


@contextmanager
def within_memory(shape: int) -> Iterator[None]:
    """Turn an out-of-memory error into a `RunError` that suggests a smaller batch. shape: images in a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f"give --batch-size {shape // 2}" if shape > 1 else "use a smaller model or another device"
        raise RunError(f"memory does not hold {shape} images at once: {advice}") from None


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
