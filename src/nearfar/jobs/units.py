"""Data sets that are no folders of images: WebDataset shards, saved data sets and Parquet files of Hugging Face.

The unit of work is one file or one split. It is unpacked beside OUT into a folder of images with a `metadata.jsonl`,
that folder is augmented like any other, and the result is packed into what the unit was and moved to OUT when it is
whole. So disk is used for one unit at a time, an interrupted unit goes on where it stopped, and finished ones stay.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearfar.data.copies import Wanted
from nearfar.data.parquet import image_column, open_data_set, pack_data_set, unpack_data_set
from nearfar.data.shards import is_image, pack_shard, records, unpack_shard
from nearfar.errors import ModelWarning, RunError, UsageError, printable
from nearfar.io.listing import PICTURES, Rejected
from nearfar.io.manifest import (
    Earlier,
    Manifest,
    Progress,
    Record,
    check_no_links,
    manifest_path,
    read_manifest,
    write_whole,
    writing,
)
from nearfar.jobs.augment import Augmentation, Making, augment_job, augmentation
from nearfar.jobs.job import Job
from nearfar.jobs.places import check_places
from nearfar.jobs.run import Plan, check_same_run, plan_run, run
from nearfar.models.model import FrozenModel

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")

Rows = Sequence[Mapping[str, Any]]
RunUnit = Callable[[Augmentation, Path, Plan], Progress]


@dataclass(frozen=True)
class Unit:
    """A shard, a Parquet file or a saved split: where it lies, and its name below OUT."""

    path: Path
    name: str

    def unpack(self, folder: Path, column: str | None) -> list[Rejected]:
        """Its images as files, with their labels in `metadata.jsonl`; returns the records that cannot be used."""
        if self.path.suffix == ".tar":
            return unpack_shard(self.path, folder)
        return unpack_data_set(self.path, folder, column)

    def pack(self, made: Path, rows: Rows, target: Path) -> None:
        """These images in what the unit was."""
        (pack_shard if self.path.suffix == ".tar" else pack_data_set)(self.path, made, rows, target)

    def images(self, packed: Path) -> int:
        """How many records with an image stand in the unit, or in what was packed of it; 0 where it is none."""
        try:
            if self.path.suffix == ".tar":
                return sum(any(is_image(field) for field in record) for _, record in records(packed))
            rows = open_data_set(packed)
            return len(rows) if image_column(rows, packed) else 0
        except UsageError:
            return 0


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
    files = [path for path in (source, *sorted(source.rglob("*"))) if not path.is_dir()]
    shards = [Unit(path, path.relative_to(source).as_posix()) for path in files if is_data_set(path)]
    pictures = [path for path in files if path.suffix.lower() in PICTURES.suffixes]
    if packed := [path.name for path in files if path.name.endswith(COMPRESSED)]:
        if not pictures and not shards:
            raise UsageError(f"{packed[0]} is compressed, which is not read: unpack it to a .tar first (gunzip)")
        note(len(packed), "compressed files", packed[0])
    if not pictures or not shards:
        return shards
    # What there is more of is what was meant: a thumbnail beside a data set, or an old archive beside pictures.
    if sum(shard.images(shard.path) for shard in shards) >= len(pictures):
        note(len(pictures), "pictures beside the data set", pictures[0].relative_to(source).as_posix())
        return shards
    note(len(shards), "data sets beside the pictures", shards[0].name)
    return []


def is_data_set(path: Path) -> bool:
    """Whether this may be a shard or a Parquet file of images; macOS leaves shadow files beside them."""
    return path.suffix in (".tar", ".parquet") and path.stem != "metadata" and not path.name.startswith("._")


def note(count: int, what: str, first: str) -> None:
    """Tell what lies in IN and is not done."""
    text = f"{count} {what} such as {printable(first)} are left out: give nearfar their folder by itself"
    warnings.warn(text, ModelWarning, stacklevel=2)


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
    earlier, counts, standing = read_manifest(manifest_path(out)), Counter[str](), list[Record]()
    check_same_run(job, out, earlier)
    with nothing_left_of_a_refusal(out, earlier), Manifest(manifest_path(out), job.header) as manifest:
        for unit in units:
            record = earlier.records.get(unit.name)
            failed = failed_in(unit, earlier)
            if record and is_done(record, unit, out, job, wanted):
                total.kept += int(record.figures["images"]) - len(failed)
                total.failed += failed
                standing.append(record)
                continue
            try:
                unusable = unpacked(unit, out, wanted)
            except UsageError as error:
                if len(units) == 1:
                    raise
                manifest.add(refused := Record(unit.name, "failed", str(error)))
                total.failed.append(refused)
                continue
            images, made = work_folder(out) / "in", work_folder(out) / "out"
            work = augmentation(model, images, made, wanted, whole=len(units) == 1, **options)
            outcome, new, records = augment_unit(work, unit, out, run_unit, unusable)
            add(total, outcome, unit)
            counts.update(new)
            gone = [replace(entry, status="dropped", reason="its shard or split was made anew") for entry in failed]
            standing.append(unit_record(unit, out, job, wanted, len(records)))
            for entry in (*gone, *records, standing[-1]):
                manifest.add(entry)
            manifest.commit()
            shutil.rmtree(work_folder(out), ignore_errors=True)
        manifest.commit()
        check_standing(out, standing)
    shutil.rmtree(work_folder(out), ignore_errors=True)
    copy_list_of_splits(source, out)
    total.total = total.done + total.kept + len(total.failed)
    return Outcome(total, job, counts)


def copy_list_of_splits(source: Path, out: Path) -> None:
    """What makes several splits one data set."""
    if (source / "dataset_dict.json").is_file():
        with writing(out):
            write_whole(out / "dataset_dict.json", (source / "dataset_dict.json").read_bytes())


def check_standing(out: Path, units: Sequence[Record]) -> None:
    """RunError unless every unit that counts as done stands in `out`, as it was packed."""
    check_no_links(out, error=RunError)
    gone = [unit.name for unit in units if own_hash(out / unit.name) != unit.target_sha256]
    if gone:
        raise RunError(
            f"{len(gone)} of {len(units)} shards or splits in {out}, such as {gone[0]}, were removed or changed while "
            "the run went on: keep other programs away and make them again with --resume"
        )


@contextmanager
def nothing_left_of_a_refusal(out: Path, earlier: Earlier) -> Iterator[None]:
    """Where the first unit is refused, or the work's folder is a link, the next attempt finds things as they were."""
    check_no_links(work_folder(out), work_folder(out))
    try:
        yield
    except UsageError:
        if not earlier.header and not (out.is_dir() and any(out.iterdir())):
            manifest_path(out).unlink(missing_ok=True)
            shutil.rmtree(work_folder(out), ignore_errors=True)
        raise


def unpacked(unit: Unit, out: Path, wanted: Wanted) -> list[Rejected]:
    """Unpack a unit, unless that has been done; what of it cannot be used."""
    work = work_folder(out)
    images, mark = work / "in", work / "unpacked"
    tag = f"{unit.name} {content_hash(unit.path)} {wanted.label_column}"
    told = json.loads(mark.read_text("utf-8")) if mark.is_file() else {}
    if told.get("of") != tag:
        shutil.rmtree(work, ignore_errors=True)
        with writing(images):
            images.mkdir(parents=True)
            failed = unit.unpack(images, wanted.label_column)
            told = {"of": tag, "failed": [[entry.name, entry.reason] for entry in failed]}
            mark.write_text(json.dumps(told), "utf-8")
    return [Rejected(*entry) for entry in told["failed"]]


def augment_unit(
    augmented: Augmentation, unit: Unit, out: Path, run_unit: RunUnit, unusable: Sequence[Rejected] = ()
) -> tuple[Progress, dict[str, int], list[Record]]:
    """Augment and pack one unit; what came of it, counts, and the records of its images."""
    work = work_folder(out)
    images, made = work / "in", work / "out"
    plan = plan_run(augmented.job, images, made, manifest_path(made).is_file())
    progress = run_unit(augmented, made, plan)
    progress.failed += [Record(entry.name, "failed", entry.reason) for entry in unusable]
    counts = augmented.finish(images, made)
    rows = [json.loads(line) for line in (made / "metadata.jsonl").read_text("utf-8").split("\n") if line]
    packed, target = work / f"packed{unit.path.suffix}", out / unit.name
    with writing(target):
        unit.pack(made, rows, packed)
        if (count := unit.images(packed)) != (expected := counts["copies"] + counts["originals"]):
            raise RunError(f"{target} would hold {count} of {expected} images: please report this, with the input")
        check_no_links(out, error=RunError)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and any(target.iterdir()):
            raise UsageError(
                f"{target} is not what an earlier run made of this input with these options: "
                "move it away or choose another OUT"
            )
        packed.replace(target)
    bad = {record.name: record for record in progress.failed}
    records = {**read_manifest(manifest_path(made)).records, **bad}.values()
    return progress, counts, [replace(record, name=f"{unit.name}/{record.name}") for record in records]


def work_folder(out: Path) -> Path:
    """Where the unit under way is unpacked: beside OUT, under a name that nobody else gives."""
    return out.resolve().with_name(f".{out.resolve().name}.nearfar-work")


def unit_record(unit: Unit, out: Path, job: Job, wanted: Wanted, images: int) -> Record:
    """Its source tag tells of other wishes too: what was made of a unit is only what was wanted then."""
    source_tag = job.key.tag("source", f"{content_hash(unit.path)} {wanted}".encode())
    target = own_hash(out / unit.name)
    return Record(unit.name, "done", "", job.batch_size, target, source_tag, {"images": images})


def is_done(record: Record, unit: Unit, out: Path, job: Job, wanted: Wanted) -> bool:
    """Whether what an earlier run made of this unit still stands."""
    images = int(record.figures.get("images", 0))
    return (
        bool(record.target_sha256)
        and (out / unit.name).exists()
        and record == unit_record(unit, out, job, wanted, images)
    )


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


def own_hash(path: Path) -> str:
    """The same of what was written, empty where any of it became a link."""
    linked = any(entry.is_symlink() for entry in (path, *path.rglob("*")))
    return "" if linked else content_hash(path)


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
