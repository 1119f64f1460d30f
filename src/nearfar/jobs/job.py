"""`Job`: what a folder job does with each of its images, and the parts that several jobs share."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import from_epsilon
from nearfar.diffusion.noise import SecretKey, fingerprint
from nearfar.diffusion.schedule import WARP, Level
from nearfar.diffusion.solver import OnStep, Sampling
from nearfar.errors import ImageError, ModelWarning
from nearfar.io.fitting import FitMode, fit, seen_shape, unfit
from nearfar.io.listing import Item
from nearfar.io.manifest import CONFIDENTIAL, Manifest, Record, has_content, salt_path, write_whole, writing
from nearfar.io.marks import MADE, MARKED, Marking
from nearfar.io.pictures import Frame, encode_pages, read_pages
from nearfar.models.model import FrozenModel, check_batch_size, default_batch_size
from nearfar.sampling.inversion import solver_settings
from nearfar.sampling.local_sampling import sample_near
from nearfar.tensors import ImageContract, Images


@dataclass(frozen=True, eq=False)
class Reading:
    """What one file gives to the transform, and what is needed to make a file of the results.

    squares: float32 `(n, channel, height, width)` in [-1, 1]: one for most jobs, one for each region of an image;
    none where there is nothing to transform, only a file to write.
    context: whatever else the job's own `encode` needs. reduced: whether detail was lost on the way.
    pages: the frames of a file of several, one for each square.
    """

    squares: Tensor
    frame: Frame
    context: Any = None
    reduced: bool = False
    pages: Sequence[Frame] = ()


@dataclass(frozen=True)
class Verdict:
    """What guards say of a result: keep, flag or drop, why, and in figures; parents: the fitted images that it mixes.

    dropped: it is recorded and not written.
    """

    word: str = ""
    reason: str = ""
    figures: Mapping[str, int | float] = field(default_factory=dict)
    parents: Sequence[int] = ()
    dropped: bool = False


@dataclass(frozen=True, eq=False)
class Results:
    """What the transform makes of a batch of squares: a result for each, of whatever shape, on the CPU or not.

    figures: by name, a number for each result. verdicts: one for each, where there are guards.
    """

    images: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()

    def rows(self, count: int) -> list[Results]:
        """The first `count` results, one by one."""
        return [self.row(slice(place, place + 1)) for place in range(count)]

    def row(self, place: slice) -> Results:
        figures = {name: values[place] for name, values in self.figures.items()}
        return Results(self.images[place], figures, self.verdicts[place])

    @classmethod
    def joined(cls, rows: Sequence[Results]) -> Results:
        """The results of one file."""
        figures = {name: torch.cat([row.figures[name] for row in rows]) for name in rows[0].figures}
        verdicts = [verdict for row in rows for verdict in row.verdicts]
        return cls(torch.cat([row.images for row in rows]), figures, verdicts)

    @property
    def finite(self) -> bool:
        return all(bool(values.isfinite().all()) for values in (self.images, *self.figures.values()))


Read = Callable[[Item], Reading]
"""Reads the source of an item; raises ImageError where it cannot be used."""

Transform = Callable[[Images, Sequence[Item], OnStep], Results]
"""(a batch of squares of one shape, the item that each belongs to, called after each solver step) -> their results."""

Encode = Callable[[Tensor, Reading], bytes]
"""(images of the results, what they were made of) -> content of a file."""

Objection = Callable[[Tensor, Results], str]
"""(squares, their results) -> why the results must not be written; empty when they may."""

Measure = Callable[[Results, Reading], dict[str, float]]
"""(results, what they were made of) -> figures of this file for the record; called after `encode`."""

LEAST_SIGNAL = 1e-6
UNCHANGED = 1 / 255
"""Root mean square change, in [-1, 1], below which an output counts as its input: half a gray level."""


def own_figures(results: Results, reading: Reading) -> dict[str, float]:
    """Those that the transform has measured, in most jobs none; of several pages their mean."""
    return {name: values.double().mean().item() for name, values in results.figures.items()}


def make_job(
    model: FrozenModel,
    settings: dict[str, Any],
    *,
    key: SecretKey | None,
    batch_size: int | None,
    calls: tuple[int, int],
    **parts: Any,
) -> Job:
    """A job with this model's contract, a batch size that fits it, and workers for it.

    key: None where nothing outlives the run. parts: the other fields of the job.
    """
    batch = check_batch_size(default_batch_size(model) if batch_size is None else batch_size)
    return Job(
        image=model.image,
        settings={"nearfar": version("nearfar"), "model": model.provenance.sha256, **model.settings, **settings},
        key=key or SecretKey.random(),
        repeatable=key is not None,
        batch_size=batch,
        shrinkable=batch_size is None,
        workers=workers_for(model, batch),
        steps=settings["steps"],
        calls=calls,
        **parts,
    )


def workers_for(model: FrozenModel, batch_size: int) -> int:
    """One for each core; images so large that they go one by one are computed by all cores, in the memory of one.

    On a GPU two: while it works on one batch, the keys and the first noise of the next are made.
    """
    if model.device.type != "cpu":
        return 2
    return torch.get_num_threads() if batch_size > 1 else 1


def trajectory_settings(model: FrozenModel, sampling: Sampling, fit: FitMode) -> dict[str, Any]:
    """The settings of every job that goes to a noise level, above 0, and back."""
    sampling.level.check_noisy(model.schedule)
    warn_of_no_signal(model, sampling.level)
    return {
        **sampling.level.describe(model.schedule),
        "steps": sampling.steps,
        "warp": WARP,
        **solver_settings(sampling.solver, model.denoiser),
        "precision": model.precision,
        "fit": str(fit),
    }


def warn_of_no_signal(model: FrozenModel, level: Level) -> None:
    """Where nothing of the image is left, its noise cannot be told from it: a network that predicts noise says nothing.

    Schedules with zero terminal SNR come to that point (Lin et al., arXiv 2305.08891), others keep a little.
    """
    signal = model.schedule.coefficients(level.times(model.schedule, 1))[0].min().item()
    if signal < LEAST_SIGNAL and getattr(model.denoiser, "prediction", None) is from_epsilon:
        warnings.warn(
            "this model's schedule ends without any signal (zero terminal SNR) and its network predicts noise, which "
            "says nothing of an image there: take a strength below 1, such as 0.99",
            ModelWarning,
            stacklevel=2,
        )


def one_square(image: ImageContract, mode: FitMode, burned_in: bool = False) -> Read:
    """Every picture as one square of the model's, or one canvas; a file of several as one for each page.

    burned_in: whether pictures are read that are likely to hold text (DICOM).
    """
    return partial(read_square, image=image, mode=mode, burned_in=burned_in)


def plain_frame(image: ImageContract) -> Frame:
    """Of what was never a file: a picture of the model's own size."""
    return Frame(image.size, image.size, image.channels, depth=8, alpha=None, format="PNG", metadata={})


def read_square(item: Item, image: ImageContract, mode: FitMode, burned_in: bool = False) -> Reading:
    pages = read_pages(item.path)
    frames = [page.frame for page in pages]
    refuse_text(frames[0], burned_in)
    fitted = [fit(page, image.size, image.channels, mode) for page in pages]
    if len({square.shape for square in fitted}) > 1:
        raise ImageError("has pages of several sizes, which --tile cannot put into one file: split it, or leave it out")
    largest = max(max(seen_shape(frame.height, frame.width, mode)) for frame in frames)
    reduced = largest > image.size and mode is not FitMode.TILE
    return Reading(torch.stack(fitted), frames[0], reduced=reduced, pages=frames)


def refuse_text(frame: Frame, burned_in: bool) -> None:
    """ImageError where names are likely to be part of the pixels, which a model may well leave readable."""
    if frame.header and frame.header.text and not burned_in:
        raise ImageError(
            f"{frame.header.text}: clean it with a tool made for that (RSNA's CTP, deid, Presidio), "
            "or, where you know that there is none, give --burned-in (anonymize, augment)"
        )


def as_picture(fit: FitMode, keep_metadata: bool, marking: Marking = MARKED) -> Encode:
    """Results that are images go back into the frames and the format of their original."""

    def encode_results(results: Tensor, reading: Reading) -> bytes:
        frames = reading.pages or [reading.frame]
        made = [unfit(result, frame, fit) for result, frame in zip(results, frames, strict=True)]
        return encode_pages(made, keep_metadata, MADE, marking)

    return encode_results


def anything_goes(squares: Tensor, results: Results) -> str:
    """Most results may well be their input."""
    return ""


@dataclass(frozen=True)
class Job:
    """What to do with every image.

    expand: turns the images of a folder into those to be made. neighbors: adds to these what is computed beside them
    and not written, where batches must be whole. numbered: items have no source.
    read: what one of them gives to the transform.
    encode: makes the content of a file of a result; None where results are measured and not kept.
    object_to: says why a result must not be written, or nothing.
    measure: figures of a result for the record.
    capacity: how many squares of a shape are transformed together where the batch size is so many; None: as many.
    suffix: what is added to the names of the images. steps: how many a batch takes.
    calls: of the network that a batch takes, the least and the most. weigh: how many inputs of it an item gives.
    settings: everything that decides the pixels but the batch size; only a run with equal ones may be resumed.
    squares: how many inputs of the transform a file is expected to give.
    batch_size: the shape in which the transform is called. shrinkable: whether it may be smaller, for few images or
    when memory runs out.
    repeatable: whether the key outlives the run, so that its outputs can be made again. salt: of the tags of sources
    where it does not.
    workers: batches that are transformed at the same time.
    """

    read: Read
    transform: Transform
    encode: Encode | None
    image: ImageContract
    settings: dict[str, Any]
    key: SecretKey
    repeatable: bool
    batch_size: int
    shrinkable: bool
    object_to: Objection = anything_goes
    workers: int = 1
    suffix: str = ""
    steps: int = 1
    calls: tuple[int, int] = (1, 1)
    weigh: Callable[[Item], int] = lambda item: 1
    squares: int = 1
    measure: Measure = own_figures
    expand: Callable[[list[Item]], list[Item]] = list
    neighbors: Callable[[list[Item]], list[Item]] = list
    capacity: Callable[[Sequence[int], int], int] | None = None
    numbered: bool = False
    salt: SecretKey = field(default_factory=SecretKey.random)

    def target(self, out: Path, name: str) -> Path:
        """Where the result of the image of this name goes."""
        return out / f"{name}{self.suffix}"

    @property
    def header(self) -> dict[str, Any]:
        """The manifest's first line: the settings, and the fingerprint of a key that is kept."""
        return {"run": self.settings, "key": fingerprint(self.key) if self.repeatable else ""}

    def source_tag(self, path: Path) -> str:
        """Tells whether a source has changed: a keyed hash, whose key is forgotten like the run's own."""
        try:
            if self.numbered:
                return ""
            with path.open("rb") as file:
                key = self.key if self.repeatable else self.salt
                return key.tag("source", hashlib.file_digest(file, "sha256").digest())
        except OSError:
            return ""


def calls_near(sampling: Sampling, times: int = 1) -> tuple[int, int]:
    """Network calls of `near` for a batch, or of so many of it."""
    return (times * sampling.solver.calls(sampling.steps),) * 2


def near(model: FrozenModel, key: SecretKey, sampling: Sampling) -> Transform:
    """Local samples, each with the variant of its item, and at the item's own strength where it has one."""

    def transform(images: Images, items: Sequence[Item], on_step: OnStep) -> Results:
        own, variants = sampling.at(level_of(items, sampling.level)), [item.variant for item in items]
        return Results(sample_near(model, images, own, key, variants, on_step))

    return transform


def level_of(items: Sequence[Item], general: Level) -> Level:
    """The items' own strengths where they have any."""
    if general.strength is None:
        return general
    strengths: list[Any] = [general.strength if item.strength is None else item.strength for item in items]
    return Level(strengths)


def unchanged(squares: Tensor, results: Results) -> str:
    """An output that is its input again protects nobody."""
    change = (results.images - squares).square().flatten(1).mean(1).sqrt().min().item()
    if change < UNCHANGED:
        return f"the result is the input again (change {change:.2g}, at least {UNCHANGED:.2g}): raise the strength"
    return ""


def still_good(job: Job, item: Item, out: Path, records: dict[str, Record]) -> Record | None:
    """The record of what still stands, its source unchanged: done and its file intact, or dropped."""
    record = records.get(item.name)
    if record is None or record.status == "failed" or not same_source(job, item, out, record):
        return None
    fileless = record.status == "dropped" or job.encode is None
    stands = fileless or has_content(job.target(out, item.name), record.target_sha256)
    return replace(record, source_tag=job.source_tag(item.path)) if stands else None


def same_source(job: Job, item: Item, out: Path, record: Record) -> bool:
    """By its tag, or, where the salt of the tag is gone, by the file's times: not written or moved after its output."""
    if job.repeatable or job.numbered or salt_path(out).exists():
        return record.source_tag == job.source_tag(item.path)
    try:
        source, target = item.path.stat(), job.target(out, item.name).stat()
    except OSError:
        return False
    return max(source.st_mtime_ns, source.st_ctime_ns) <= target.st_mtime_ns


@contextmanager
def salt_kept(job: Job, out: Path, manifest: Manifest, kept: Sequence[Record]) -> Iterator[None]:
    """The salt lies beside the record until the work is done; earlier records are tagged with it."""
    path = salt_path(out)
    if job.repeatable or job.numbered:
        yield
        return
    if not path.exists():
        for record in kept:
            manifest.add(record)
        manifest.commit()
    with writing(path):
        write_whole(path, (job.salt.secret.hex() + "\n").encode(), CONFIDENTIAL)
    yield
    with writing(path):
        path.unlink(missing_ok=True)
