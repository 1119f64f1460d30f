"""A job in shards: units of work that any machine may do, in any order, whose outcome is the same bytes.

A shard is a run of sources of IN. It is done by the plain runner on a private folder of the machine: its sources are
brought there, its outputs moved to OUT, and last its manifest to `OUT.shards`, under a name that follows from settings
and sources. A shard is done when that manifest is there, which ends with a line that counts. So whatever is killed in
between leaves whole files, and does them again with the same bytes: noise comes from the key and the image, batches
have the shape that the plain run of all sources would have. A run of a whole folder is the case of one shard that needs
no bringing. On a machine one process at a time does a shard, others wait; on several machines whoever is last writes
the same bytes again. Nothing here knows what a job does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from filelock import FileLock

from nearfar.errors import RunError, UsageError
from nearfar.io.manifest import (
    OF_ITS_NAME,
    Manifest,
    Progress,
    Record,
    differing,
    manifest_path,
    parse,
    read_manifest,
    unwritable,
)
from nearfar.io.stores import Folder, Place, Source, place_of, safe
from nearfar.structured import checked, json_object

if TYPE_CHECKING:
    from nearfar.jobs.job import Job

MOST = 1 << 27
"""Bytes of a job file: a million shards."""
LAST = 400
"""Bytes of a shard's manifest that hold its last line."""
AT_ONCE = 1000
"""Sources in a shard where nobody says how many."""


@dataclass(frozen=True)
class Shard:
    """Some of the sources. start, end: bytes of the listing that name them."""

    name: str
    sources: int
    start: int
    end: int


@dataclass(frozen=True)
class ShardedJob:
    """What a job file says: a command with its options, what it is for, and how that is cut. Nothing is secret.

    settings, key: what decides the pixels, and the fingerprint of the key; a worker to which the options mean
    something else, as its model differs, refuses.
    """

    nearfar: str
    command: str
    options: dict[str, Any]
    source: str
    out: str
    settings: dict[str, Any]
    key: str
    sources: int
    shards: list[Shard] = field(default_factory=list)

    @property
    def records(self) -> Place:
        """Where the listing and the manifests of the shards are."""
        return place_of(self.out).beside(".shards")

    def names(self, shard: Shard) -> list[Source]:
        """The sources of a shard."""
        text = self.records.read(LISTING, shard.start, shard.end)
        return [Source(*json.loads(line)) for line in text.splitlines()]

    def done(self) -> set[str]:
        """Names of the shards that are done."""
        return {name.removesuffix(DONE) for name in self.records.names() if name.endswith(DONE)}


LISTING, PLANNED, DONE, GIVEN_UP = "sources.jsonl", "job.json", ".manifest.jsonl", ".failed.json"


@runtime_checkable
class Work(Protocol):
    """What a command has settled to do with a folder."""

    @property
    def job(self) -> Job: ...

    def perform(self) -> Progress: ...


Settle = Callable[[Path, Path], Work]
"""(folder of sources, folder for the results) -> what is to be done."""


def load_job(path: Path) -> ShardedJob:
    """A job file."""
    try:
        text = path.read_bytes() if path.stat().st_size <= MOST else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): nearfar plan writes a job file") from None
    return parsed_job(text, str(path))


def parsed_job(text: bytes, place: str) -> ShardedJob:
    way = "nearfar plan writes a job file"
    return checked(ShardedJob, json_object(text, place, way), place, way)


def job_text(job: ShardedJob) -> bytes:
    return (json.dumps(asdict(job), indent=1) + "\n").encode()


@contextmanager
def listed(source: Place) -> Iterator[tuple[IO[bytes], Counter[str]]]:
    """A file of the sources, one a line, and how many have which suffix; memory does not grow with them."""
    with tempfile.NamedTemporaryFile() as file:
        counts = Counter[str]()
        for one in source.sources():
            file.write(json.dumps([one.name, one.size, one.tag]).encode() + b"\n")
            counts[PurePosixPath(one.name).suffix.lower()] += 1
        if not counts:
            raise UsageError(f"{source} must be a folder of images, got nothing there")
        file.flush()
        file.seek(0)
        yield file, counts


def cut(lines: IO[bytes], size: int, settings: dict[str, Any]) -> list[Shard]:
    """So many sources in each shard, named after its number, the settings and the sources."""
    shards, start = list[Shard](), 0
    digest = json.dumps(settings, sort_keys=True).encode()
    while chunk := list(islice(lines, size)):
        end = start + sum(map(len, chunk))
        name = hashlib.sha256(b"\n".join([digest, *chunk])).hexdigest()[:12]
        shards.append(Shard(f"{len(shards):06}-{name}", len(chunk), start, end))
        start = end
    return shards


def check_new(out: Place) -> None:
    """Refuse an output that holds something, or was planned before."""
    if PLANNED in out.beside(".shards").names():
        raise UsageError(f"{out.beside('.shards')} is of an earlier job: go on with that, or choose another output")
    if out.names():
        raise UsageError(f"{out} is not empty: choose another output")


def keep_plan(job: ShardedJob, lines: IO[bytes]) -> None:
    """Put the listing and the job beside OUT, the job last."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, LISTING)
        shutil.copyfile(lines.name, copy)
        job.records.put(copy, LISTING)
    job.records.write(PLANNED, job_text(job))


def planned_before(out: Place) -> ShardedJob | None:
    """The job that was planned for this output, if any."""
    records = out.beside(".shards")
    try:
        return parsed_job(records.read(PLANNED), f"{records}/{PLANNED}")
    except FileNotFoundError:
        return None


def same_listing(job: ShardedJob, source: Place) -> bool:
    """Whether the files of IN are those that the job was planned for."""
    with listed(source) as (lines, _):
        return cut(lines, job.shards[0].sources, job.settings) == job.shards


def check_same(job: ShardedJob, header: dict[str, Any]) -> None:
    """UsageError where what a command means on this machine is not what was planned: another model, another key."""
    now, before = header["run"], job.settings
    names = sorted(differing(now, before))
    if "model" in names:
        raise UsageError("the model here is not the one that the job was planned with (its weights differ): copy it")
    if names:
        raise UsageError(f"{names[0]} is {now.get(names[0])} here and was planned as {before.get(names[0])}: plan anew")
    if header["key"] != job.key:
        given = "another key" if header["key"] else "no key"
        raise UsageError(f"{given} is here than the job was planned with: give its file as --key-file")


def do_shard(job: ShardedJob, settle: Settle, number: int) -> dict[str, Any]:
    """Do a shard that is not done; returns its last line. Where another process is at it, wait for that."""
    shard = job.shards[number]
    with private(stage_of(job) / shard.name) as stage:
        if told := last_line(job, shard):
            return told
        began, out = time.time(), stage / "out"
        (stage / "in").mkdir(exist_ok=True)
        missing = bring(job, shard, stage / "in")
        work = settle(stage / "in", out)
        check_same(job, work.job.header)
        progress = work.perform()
        failed = len(progress.failed) + len(missing)
        images = progress.done + progress.kept + failed
        carry(place_of(job.out), [Path(parent, name) for parent, _, names in os.walk(out) for name in names], out)
        told = {"images": images, "failed": failed, "began": round(began, 3), "ended": round(time.time(), 3)}
        manifest = manifest_path(out)
        lines = [*({"image": asdict(record)} for record in missing), {"shard": told}]
        with manifest.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        job.records.put(manifest, shard.name + DONE)
        job.records.remove(shard.name + GIVEN_UP)
        shutil.rmtree(stage)
    return told


def bring(job: ShardedJob, shard: Shard, folder: Path) -> list[Record]:
    """The shard's sources on this machine; records of those that are gone or can have no file of their name."""
    source = place_of(job.source)

    def fetch(one: Source) -> Record | None:
        try:
            if not safe(one.name):
                raise UsageError(f"the listing names {one.name!r}, which is no file below {source}: plan anew")
            source.fetch(one, folder / one.name)
        except FileNotFoundError:
            return Record(one.name, "failed", "is no longer there, since the job was planned: put it back")
        except OSError as error:
            if error.errno not in OF_ITS_NAME:
                raise
            return Record(one.name, "failed", unwritable(error))
        return None

    return [record for record in in_lanes(source.lanes, fetch, job.names(shard)) if record]


def carry(out: Place, files: Sequence[Path], folder: Path) -> None:
    """Move a shard's outputs to OUT."""

    def put(file: Path) -> None:
        out.put(file, file.relative_to(folder).as_posix())

    for _ in in_lanes(out.lanes, put, files):
        pass


def in_lanes(lanes: int, act: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterable[Any]:
    """`map`, in so many threads."""
    if lanes == 1:
        yield from map(act, inputs)
        return
    with ThreadPoolExecutor(lanes) as pool:
        yield from pool.map(act, inputs)


def stage_of(job: ShardedJob) -> Path:
    """The folder of this machine for shards under way: beside OUT, or with other temporary files; only its owner's."""
    out = place_of(job.out)
    if isinstance(out, Folder):
        whole = out.path.resolve()
        root = whole.with_name(f".{whole.name}.nearfar-shards")
    else:
        digest = hashlib.sha256(job.out.encode()).hexdigest()[:16]
        root = Path(tempfile.gettempdir(), f"nearfar-{os.getuid()}") / digest
    for folder in (root.parent, root) if not isinstance(out, Folder) else (root,):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {folder} ({error.strerror}): mend that and go on") from None
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise UsageError(f"{folder} is not yours: remove it, or set TMPDIR to a folder of your own")
    return root


@contextmanager
def private(stage: Path) -> Iterator[Path]:
    """A folder that one process of the machine has at a time, with what an earlier one has left in it."""
    try:
        with FileLock(stage.with_name(stage.name + ".lock"), mode=0o600):
            stage.mkdir(mode=0o700, exist_ok=True)
            yield stage
    except OSError as error:
        raise RunError(f"cannot go on in {stage} ({error.strerror or error}): mend that, then go on") from None


def last_line(job: ShardedJob, shard: Shard) -> dict[str, Any]:
    """What the manifest of a shard says at its end; nothing where it is not done."""
    try:
        text = job.records.read(shard.name + DONE, start=-LAST)
    except FileNotFoundError:
        return {}
    told = parse(text.decode("utf-8", "replace").rstrip("\n").rpartition("\n")[2]).get("shard")
    return told if isinstance(told, dict) else {}


@dataclass(frozen=True)
class Status:
    """How far a job is: of its shards, its sources, seconds that it took so far and will take at this rate."""

    done: int
    failed: dict[str, str]
    missing: int
    images: int
    bad_images: int
    per_second: float
    remaining: float


def status_of(job: ShardedJob) -> Status:
    """What the records beside OUT tell."""
    names = job.records.names()
    done = {name.removesuffix(DONE) for name in names if name.endswith(DONE)}
    shards = [shard for shard in job.shards if shard.name in done]
    told = [line for line in in_lanes(job.records.lanes, lambda shard: last_line(job, shard), shards) if line]
    failed = {name.removesuffix(GIVEN_UP): "" for name in names if name.endswith(GIVEN_UP)}
    failed = {name: reason_of(job, name) for name in failed if name not in done}
    images, bad = (sum(line[which] for line in told) for which in ("images", "failed"))
    span = max((line["ended"] for line in told), default=0) - min((line["began"] for line in told), default=0)
    rate = sum(shard.sources for shard in shards) / span if span > 0 else 0.0
    left = job.sources - sum(shard.sources for shard in shards)
    missing = len(job.shards) - len(shards) - len(failed)
    return Status(len(shards), failed, missing, images, bad, rate, left / rate if rate else 0.0)


def give_up(job: ShardedJob, number: int, reason: str, tries: int) -> None:
    """Note why a shard was not done, for `status` and `merge`; a later run tries it again."""
    content = json.dumps({"reason": reason, "tries": tries}) + "\n"
    job.records.write(job.shards[number].name + GIVEN_UP, content.encode())


def reason_of(job: ShardedJob, name: str) -> str:
    """Why a shard was given up."""
    try:
        return str(parse(job.records.read(name + GIVEN_UP).decode("utf-8", "replace")).get("reason", ""))
    except FileNotFoundError:
        return ""


def merge(job: ShardedJob) -> list[Record]:
    """Make one manifest of all, beside OUT, in the order of the listing; returns the records of what failed.

    UsageError while shards are missing.
    """
    state, failed = status_of(job), list[Record]()
    if state.missing:
        raise UsageError(f"{state.missing} of {len(job.shards)} shards are not done: nearfar work goes on with them")
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder, "manifest")
        with Manifest(merged, {"run": job.settings, "key": job.key}) as manifest:
            for shard in job.shards:
                for record in records_of(job, shard, state.failed, Path(folder)):
                    manifest.add(record)
                    failed += [record] if record.status == "failed" else []
        place_of(job.out).beside(".manifest.jsonl").put(merged, "")
    if not state.failed:
        shutil.rmtree(stage_of(job), ignore_errors=True)
    return failed


def records_of(job: ShardedJob, shard: Shard, failed: dict[str, str], folder: Path) -> list[Record]:
    """What became of the images of a shard; of one that was given up, all have failed."""
    if shard.name in failed:
        reason = f"its shard {shard.name} was given up: {failed[shard.name]}"
        return [Record(source.name, "failed", reason) for source in job.names(shard)]
    copy = folder / "one"
    copy.write_bytes(job.records.read(shard.name + DONE))
    return sorted(read_manifest(copy).records.values(), key=lambda record: record.name)
