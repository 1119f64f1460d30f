"""Data sets that are no folders of images: WebDataset shards, saved data sets and Parquet files of Hugging Face.

The unit of work is one file or one split. It is unpacked beside OUT into a folder of images with a `metadata.jsonl`,
that folder is augmented like any other, and the result is packed into what the unit was and moved to OUT when it is
whole. So disk is used for one unit at a time, an interrupted unit goes on where it stopped, and finished ones stay.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearfar.data.copies import Wanted
from nearfar.data.parquet import pack_data_set, unpack_data_set
from nearfar.data.shards import pack_shard, unpack_shard
from nearfar.errors import UsageError
from nearfar.io.listing import PICTURES
from nearfar.io.manifest import Earlier, Manifest, Progress, Record, manifest_path, read_manifest, write_whole, writing
from nearfar.jobs.augment import Augmentation, Making, augment_job, augmentation
from nearfar.jobs.job import Job
from nearfar.jobs.run import Plan, check_places, check_same_run, plan_run, run
from nearfar.models.model import FrozenModel

Rows = Sequence[Mapping[str, Any]]
RunUnit = Callable[[Augmentation, Path, Plan], Progress]


@dataclass(frozen=True)
class Unit:
    """A shard, a Parquet file or a saved split: where it lies, and its name below OUT."""

    path: Path
    name: str

    def unpack(self, folder: Path, column: str | None) -> None:
        """Its images as files, with their labels in `metadata.jsonl`."""
        if self.path.suffix == ".tar":
            unpack_shard(self.path, folder)
        else:
            unpack_data_set(self.path, folder, column)

    def pack(self, made: Path, rows: Rows, target: Path) -> None:
        """These images in what the unit was."""
        (pack_shard if self.path.suffix == ".tar" else pack_data_set)(self.path, made, rows, target)


@dataclass(frozen=True)
class Outcome:
    """What came of all units: the run's figures, the job that their settings are of, counts of images by kind."""

    progress: Progress
    job: Job
    counts: Counter[str]


def units_of(source: Path) -> list[Unit]:
    """What `source` consists of; nothing where it is a folder of images, or none at all."""
    if source.is_file() and source.suffix in (".tar", ".parquet"):
        return [Unit(source, source.name)]
    if (source / "state.json").is_file():
        return [Unit(source, ".")]
    if (source / "dataset_dict.json").is_file():
        return [Unit(path.parent, path.parent.name) for path in sorted(source.glob("*/state.json"))]
    files = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in PICTURES.suffixes]
    shards = [] if files else [*source.rglob("*.tar"), *source.rglob("*.parquet")]
    return [Unit(path, path.relative_to(source).as_posix()) for path in sorted(shards)]


def check_wishes(units: Sequence[Unit], wanted: Wanted) -> None:
    """Refuse what a shard alone cannot answer."""
    if wanted.only != "*":
        raise UsageError("--only is for folders of images: give the shards or splits that are wanted as IN")
    if wanted.label_column and units[0].path.suffix == ".tar":
        raise UsageError("labels of shards are .cls, or `label` in .json: leave out --label-column")
    if len(units) > 1 and units[0].path.is_file() and wanted.needs_all_images:
        raise UsageError(f"{len(units)} files are augmented one by one: choices that need all images, and a classifier "
                         "trained on them, are for folders and single files")  # fmt: skip


def augment_units(
    model: FrozenModel,
    source: Path,
    out: Path,
    wanted: Wanted,
    *,
    resume: bool = False,
    run_unit: RunUnit = lambda work, out, plan: run(work.job, out, plan),
    **options: Any,
) -> Outcome:
    """Make the wanted copies of every unit of `source`, each written to `out` when it is whole.

    run_unit: carries out the plan of one of them. options: the fields of `Making`.
    """
    units = units_of(source)
    check_wishes(units, wanted)
    check_places(source, out, resume)
    job, total = augment_job(model, wanted, {}, {}, out, Making(**options)), Progress(0)
    earlier, counts = read_manifest(manifest_path(out)), Counter[str]()
    check_same_run(job, out, earlier)
    with Manifest(manifest_path(out), job.header) as manifest, nothing_left_of_a_refusal(out, earlier):
        for unit in units:
            record = earlier.records.get(unit.name)
            failed = failed_in(unit, earlier)
            if record and is_done(record, unit, out, job, wanted):
                total.kept += int(record.figures["images"]) - len(failed)
                total.failed += failed
                continue
            work = unpacked(model, unit, out, wanted, len(units) == 1, options)
            outcome, made, records = augment_unit(work, unit, out, run_unit)
            add(total, outcome, unit)
            counts.update(made)
            gone = [replace(entry, status="dropped", reason="its shard or split was made anew") for entry in failed]
            for entry in (*gone, *records, unit_record(unit, out, job, wanted, len(records))):
                manifest.add(entry)
            manifest.commit()
            shutil.rmtree(work_folder(out), ignore_errors=True)
    if (source / "dataset_dict.json").is_file():
        with writing(out):
            write_whole(out / "dataset_dict.json", (source / "dataset_dict.json").read_bytes())
    total.total = total.done + total.kept + len(total.failed)
    return Outcome(total, job, counts)


@contextmanager
def nothing_left_of_a_refusal(out: Path, earlier: Earlier) -> Iterator[None]:
    """Where the first unit is refused, the next attempt finds things as they were."""
    try:
        yield
    except UsageError:
        if not earlier.header and not (out.is_dir() and any(out.iterdir())):
            manifest_path(out).unlink(missing_ok=True)
            shutil.rmtree(work_folder(out), ignore_errors=True)
        raise


def unpacked(
    model: FrozenModel, unit: Unit, out: Path, wanted: Wanted, whole: bool, options: dict[str, Any]
) -> Augmentation:
    """Unpack a unit, unless that has been done, and settle what is made of it."""
    work = work_folder(out)
    images, mark = work / "in", work / "unpacked"
    tag = f"{unit.name} {content_hash(unit.path)} {wanted.label_column}"
    if not mark.is_file() or mark.read_text("utf-8") != tag:
        shutil.rmtree(work, ignore_errors=True)
        with writing(images):
            images.mkdir(parents=True)
            unit.unpack(images, wanted.label_column)
            mark.write_text(tag, "utf-8")
    return augmentation(model, images, work / "out", wanted, whole=whole, **options)


def augment_unit(
    augmented: Augmentation, unit: Unit, out: Path, run_unit: RunUnit
) -> tuple[Progress, dict[str, int], list[Record]]:
    """Augment and pack one unit; what came of it, counts, and the records of its images."""
    work = work_folder(out)
    images, made = work / "in", work / "out"
    plan = plan_run(augmented.job, images, made, manifest_path(made).is_file())
    progress = run_unit(augmented, made, plan)
    counts = augmented.finish(images, made)
    rows = [json.loads(line) for line in (made / "metadata.jsonl").read_text("utf-8").split("\n") if line]
    packed, target = work / f"packed{unit.path.suffix}", out / unit.name
    with writing(target):
        unit.pack(made, rows, packed)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and any(target.iterdir()):
            raise UsageError(
                f"{target} is not what an earlier run made of this input with these options: "
                "move it away or choose another OUT"
            )
        packed.replace(target)
    records = read_manifest(manifest_path(made)).records.values()
    return progress, counts, [replace(record, name=f"{unit.name}/{record.name}") for record in records]


def work_folder(out: Path) -> Path:
    """Where the unit under way is unpacked: beside OUT, under a name that nobody else gives."""
    return out.resolve().with_name(f".{out.resolve().name}.nearfar-work")


def unit_record(unit: Unit, out: Path, job: Job, wanted: Wanted, images: int) -> Record:
    """Its source tag tells of other wishes too: what was made of a unit is only what was wanted then."""
    source_tag = job.key.tag("source", f"{content_hash(unit.path)} {wanted}".encode())
    return Record(
        unit.name, "done", "", job.batch_size, content_hash(out / unit.name), source_tag, {"images": images}
    )  # fmt: skip


def is_done(record: Record, unit: Unit, out: Path, job: Job, wanted: Wanted) -> bool:
    """Whether what an earlier run made of this unit still stands."""
    images = int(record.figures.get("images", 0))
    return (out / unit.name).exists() and record == unit_record(unit, out, job, wanted, images)


def failed_in(unit: Unit, earlier: Earlier) -> list[Record]:
    """Images of a unit that could not be done."""
    own = (record for record in earlier.records.values() if record.name.startswith(f"{unit.name}/"))
    return [record for record in own if record.status == "failed"]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for entry in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if entry.is_file():
            digest.update(entry.relative_to(path).as_posix().encode() + b"\0")
            with entry.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def add(total: Progress, outcome: Progress, unit: Unit) -> None:
    """Count a unit's outcome to that of all."""
    total.done += outcome.done
    total.kept += outcome.kept
    total.ignored += outcome.ignored
    total.reduced += outcome.reduced
    total.batches += outcome.batches
    total.batch_size = max(total.batch_size, outcome.batch_size)
    total.seconds += outcome.seconds
    total.network_seconds += outcome.network_seconds
    total.failed += [replace(record, name=f"{unit.name}/{record.name}") for record in outcome.failed]
