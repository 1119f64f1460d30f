"""Samples of a domain as files: numbered, judged, written whole, recorded, resumed where they stopped.

Batches are fixed by number: a sample always has the same neighbors and the same place among them, whether these are
written or not, and every batch is computed by one thread. So a resumed run ends in the same bytes as an undisturbed
one, and a run that goes on to a larger count in the same bytes as one that began with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import OnStep
from nearfar.domain.domain import Domain
from nearfar.domain.guards import Judgment
from nearfar.domain.recipe import FAMILY, Recipe
from nearfar.domain.synthesis import Start, Synthesizer, generator_of, synthesizer, varying
from nearfar.errors import UsageError
from nearfar.io.arrays import SCIENCE_SUFFIXES, TYPES, array_file
from nearfar.io.fitting import FitMode
from nearfar.io.listing import Item, Listing
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.io.marks import MARKED, Marking
from nearfar.io.stacks import sample_names
from nearfar.io.values import ValueTransform
from nearfar.jobs.job import Job, Reading, Results, Verdict, as_picture, plain_frame, workers_for
from nearfar.jobs.places import check_out
from nearfar.jobs.run import Plan, plan_items
from nearfar.models.model import FrozenModel
from nearfar.tensors import ImageContract, Images

AMOUNT = 0.5
FIRST = 1
"""The number of `sample-0001`: `synthesize(..., first=1)` makes the same ones."""

OPTIONS = ("family", "geometry", "pull", "eta", "seed", "parents")
"""Of a recipe, those that `synthesize` takes, too."""

FIGURES = ("nearest", "latent_copy", "feature_copy", "copied_area", "captured", "quality")
"""Of a judgment, those that the record keeps."""


def synthesizer_of(recipe: Recipe, model: FrozenModel, domain: Domain) -> Synthesizer:
    """How samples of a recipe are made; its image must be read and its eta known."""
    options = {name: getattr(recipe, name) for name in OPTIONS}
    if recipe.parents is None:
        del options["parents"]
    if not isinstance(recipe.near, Tensor):
        return synthesizer(model, domain, **options)
    return varying(model, domain, recipe.near, amount=amount_of(recipe), **options)


def amount_of(recipe: Recipe) -> float:
    return AMOUNT if recipe.amount is None else recipe.amount


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """For a manifest's header: an image by its hash."""
    near = hashlib.sha256(recipe.near.numpy().tobytes()).hexdigest() if isinstance(recipe.near, Tensor) else None
    options = {name: getattr(recipe, name) for name in OPTIONS}
    return options | {"near": near, "amount": None if near is None else amount_of(recipe)}


def sample_job(
    model: FrozenModel,
    domain: Domain,
    recipe: Recipe,
    *,
    suffix: str,
    dtype: str = "float32",
    keep_all: bool = False,
    batch_size: int,
    marking: Marking = MARKED,
) -> Job:
    """The job of making samples of a domain: pictures (`.png`), or arrays of physical values of a suffix and a dtype.

    keep_all: whether those that the guards drop are written too. Cost: the domain's `steps` network calls for each
    batch, and one for its judgment.
    """
    values = values_of(domain)
    check_format(suffix, dtype, values)
    pull = domain.pull if recipe.pull is None else recipe.pull
    recipe = replace(recipe, pull=pull, family=recipe.family or domain.preset or FAMILY)
    making = synthesizer_of(recipe, model, domain)
    making.draw(generator_of(recipe.seed, FIRST))
    settings = {
        "command": "domain sample",
        "nearfar": version("nearfar"),
        "model": model.provenance.sha256,
        "model_settings": model.settings,
        "domain": digest(domain),
        **recipe_settings(recipe),
        "format": suffix,
        "dtype": None if values is None else dtype,
        "keep_all": keep_all,
        **(marking.settings() if values is None else {}),
        "precision": model.precision,
        "batch_size": batch_size,
    }
    return Job(
        read=partial(read_number, image=model.image),
        transform=partial(judged_samples, making, domain, keep_all, batch_size),
        encode=partial(values_file, values=values, dtype=dtype) if values else as_picture(FitMode.PAD, False, marking),
        measure=lambda results, _: dict(results.verdicts[0].figures),
        image=model.image,
        settings=settings,
        key=SecretKey.random(),
        repeatable=False,
        batch_size=batch_size,
        shrinkable=False,
        workers=workers_for(model, batch_size),
        steps=domain.steps,
        calls=(domain.steps + 1,) * 2,
        neighbors=partial(whole_batches, size=batch_size, suffix=suffix),
        numbered=True,
    )


def items_of(numbers: Iterable[int], suffix: str) -> list[Item]:
    """The samples of these numbers, `sample-0001` and on."""
    return [Item(Path(), sample_names(1, number, suffix)[0], number) for number in numbers]


def whole_batches(items: list[Item], size: int, suffix: str) -> list[Item]:
    """The items with all numbers of their batches."""
    first = sorted({item.variant - (item.variant - FIRST) % size for item in items})
    return items_of((number for start in first for number in range(start, start + size)), suffix)


def read_number(item: Item, image: ImageContract) -> Reading:
    """A sample is made of nothing but its number; the frame is that of its picture."""
    return Reading(torch.zeros(1, 0, 0, 0), plain_frame(image), context=item)


def judged_samples(
    making: Synthesizer, domain: Domain, keep_all: bool, batch_size: int, _: Images, items: Sequence[Item], tick: OnStep
) -> Results:
    """The samples of a batch and what the guards say of them; of those that are not finite this means nothing."""
    made = making.make([item.variant for item in items], tick)
    judgments = domain.guards.judge(making.model, made.images.nan_to_num(), batch_size=batch_size)
    rows = zip(made.numbers, made.starts, judgments, strict=True)
    return Results(made.images, verdicts=[verdict_of(*row, keep_all) for row in rows])


def verdict_of(number: int, start: Start, judgment: Judgment, keep_all: bool) -> Verdict:
    """What the record says of a sample."""
    figures = {"number": number, "attempts": start.attempts, **{name: getattr(judgment, name) for name in FIGURES}}
    dropped = judgment.verdict == "drop" and not keep_all
    return Verdict(judgment.verdict, "; ".join(judgment.reasons), figures, start.parents.tolist(), dropped)


def plan_samples(job: Job, count: int, out: Path, resume: bool) -> Plan:
    """List numbers `1` to `count`; nothing is written. Raises UsageError when `out` is in the way."""
    check_count(count)
    check_out(out, resume)
    return plan_items(job, Listing(items_of(range(FIRST, FIRST + count), job.settings["format"])), out, resume)


def check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")


def earlier_settings(out: Path, resume: bool) -> dict[str, Any]:
    """Those of the run that is to be resumed, if any."""
    return read_manifest(manifest_path(out)).header.get("run", {}) if resume else {}


def values_of(domain: Domain) -> ValueTransform | None:
    """How physical values became the domain's images; none if these were pictures."""
    found = domain.preprocessing.get("values")
    return None if found is None else ValueTransform.from_json(json.dumps(found))


def default_suffix(domain: Domain) -> str:
    return ".png" if values_of(domain) is None else ".npy"


def check_format(suffix: str, dtype: str, values: ValueTransform | None) -> None:
    """Pictures for a domain of pictures, arrays for one of arrays, and of a type that can hold all of them."""
    allowed = (".png",) if values is None else SCIENCE_SUFFIXES
    if suffix not in allowed:
        what = "pictures" if values is None else "arrays"
        raise UsageError(f"this domain is one of {what}: format must be one of {' '.join(allowed)}, got {suffix}")
    if dtype not in TYPES:
        raise UsageError(f"dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    low, high, _ = TYPES[dtype]
    if values and (min(values.low) < low or max(values.high) > high):
        span = f"{min(values.low):g} to {max(values.high):g}"
        raise UsageError(f"{dtype} holds values from {low:g} to {high:g}, this domain has {span}: take another dtype")


def values_file(images: Tensor, reading: Reading, values: ValueTransform, dtype: str) -> bytes:
    """A sample in physical values, in the format that its name ends in."""
    return array_file(Path(reading.context.name), values.to_values(images[0]), dtype)


def digest(domain: Domain) -> str:
    """Tells domains apart by all that decides their samples and what becomes of them."""
    content = hashlib.sha256()
    for tensor in (domain.latents, domain.clean, domain.own.mean):
        content.update(tensor.numpy().tobytes())
    about = [domain.strength, domain.steps, dict(domain.preprocessing), dict(domain.mixing), domain.guards.numbers()]
    content.update(json.dumps(about).encode())
    return content.hexdigest()
