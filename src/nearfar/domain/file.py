"""A domain as one safetensors file: latents in half precision, everything else beside them; nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nearfar.domain.domain import Domain, Gaussian
from nearfar.domain.guards import Guards, Range
from nearfar.domain.header import AGAIN, FORMAT, KEY, read_about
from nearfar.errors import UsageError, first_line
from nearfar.io.fitting import FitMode
from nearfar.io.manifest import CONFIDENTIAL, write_whole, writing
from nearfar.io.values import ValueTransform
from nearfar.latents.covariance import Spectral, Structured
from nearfar.latents.shell import Targets
from nearfar.metrics.copied_area import PATCHES
from nearfar.metrics.features import Kind
from nearfar.structured import checked

MOST_STEPS = 100_000
WHOLE = ("model", "settings", "strength", "steps", "diagnostics", "preprocessing", "mixing", "pull", "preset")
"""Fields that JSON holds as they are."""


def save_domain(domain: Domain, path: Path, thumbnails: Tensor | None = None) -> str:
    """Write a domain, whole or not at all and readable by the user only; returns the content's SHA-256.

    thumbnails: uint8 `(count, channel, height, width)`, for those who may see the fitted images; none unless given.
    Two latents of two bytes a number for each fitted image: 9.4 MiB for 200 images of 3x64x64 numbers, and little more
    than half a MiB besides.
    """
    about, (own, numbers) = {name: getattr(domain, name) for name in WHOLE}, own_parts(domain.own)
    about |= {"targets": asdict(domain.targets), "guards": domain.guards.numbers(), "own": numbers}
    tensors = {"latents": domain.latents.half(), "clean": domain.clean.half(), **own}
    tensors |= {f"guards.{name}": tensor for name, tensor in domain.guards.tensors().items()}
    tensors |= {} if thumbnails is None else {"thumbnails": thumbnails}
    header = {KEY: json.dumps({"format": FORMAT, **about})}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    with writing(path):
        return write_whole(path, content, CONFIDENTIAL)


@dataclass(frozen=True)
class Own:
    """Numbers of the model's own Gaussian."""

    rows: int
    columns: int
    shrinkage: float
    spectral: tuple[float, ...]
    bands: tuple[float, ...]


@dataclass(frozen=True)
class Judging:
    """What `Guards.numbers` gives."""

    latent_unit: float
    feature_unit: float
    features: Kind
    symmetry: Literal["none", "mirror", "turn"]
    offset: float
    accuracy: float
    borderline: float
    copied: tuple[float, float, float]
    layout: Range
    detail: Range


@dataclass(frozen=True)
class Files:
    """How files became images, where they were files."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    fit: FitMode = FitMode.PAD
    values: ValueTransform | None = None


@dataclass(frozen=True)
class Mixed:
    """What a pilot chose."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    parents: int | None = None
    margin: float | None = None


@dataclass(frozen=True)
class About:
    """The header of a domain file."""

    model: str
    settings: Mapping[str, Any]
    strength: float
    steps: int
    diagnostics: Mapping[str, float]
    preprocessing: Files
    mixing: Mixed
    pull: float
    preset: Literal["", "paper-v1", "paper-v2"]
    targets: Targets
    guards: Judging
    own: Own


SHAPES = {
    "latents": ("images", "channels", "height", "width"),
    "clean": ("images", "channels", "height", "width"),
    "own.mean": ("channels", "height", "width"),
    "own.variances": ("channels", "height", "width"),
    "own.colors": ("height", "width", "channels", "channels"),
    "own.directions": ("coarse", "coarse"),
    "own.values": ("coarse",),
    "guards.places": ("different",),
    "guards.vectors": ("different", "numbers"),
    "guards.center": ("numbers",),
    "guards.scale": ("numbers",),
    "guards.weights": ("numbers",),
    "guards.isolation": ("different", "patches"),
}
"""The axes of each tensor; those of one name are of one length."""


def load_domain(path: Path) -> Domain:
    """Read what `save_domain` wrote. UsageError for what is no whole domain file."""
    content, tensors = read(path)
    about = checked(About, content, f"the domain file {path}", AGAIN)
    if problem := tensor_problem(tensors) or number_problem(about, tensors):
        raise UsageError(f"{path} is a domain file with parts missing or wrong ({problem}): {AGAIN}")
    guards = {name.removeprefix("guards."): tensors[name] for name in tensors if name.startswith("guards.")}
    clean = tensors["clean"].float()
    return Domain(
        **{name: content[name] for name in WHOLE},
        latents=tensors["latents"].float(),
        clean=clean,
        own=own_of(asdict(about.own), tensors),
        targets=about.targets,
        guards=Guards.from_parts(clean, guards, asdict(about.guards)),
    )


def tensor_problem(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the tensors, if anything."""
    lengths: dict[str, int] = {}
    for name, axes in SHAPES.items():
        tensor = tensors.get(name)
        if tensor is None:
            return f"no {name}"
        shape = tuple(lengths.setdefault(axis, length) for axis, length in zip(axes, tensor.shape, strict=False))
        if tensor.ndim != len(axes) or shape != tensor.shape or not tensor.numel():
            return f"{name} of shape {tuple(tensor.shape)}"
        if tensor.is_floating_point() == (name == "guards.places"):
            return f"{name} of type {tensor.dtype}"
        if not tensor.isfinite().all():
            return f"{name} is not finite"
    places, thumbnails = tensors["guards.places"], tensors.get("thumbnails")
    if places.dtype != torch.int64 or places.min() < 0 or places.max() >= lengths["images"]:
        return "guards.places are no numbers of images"
    wrong = thumbnails is not None and (thumbnails.dtype != torch.uint8 or thumbnails.ndim != 4)
    return "thumbnails are no pictures" if wrong else ""


def number_problem(about: About, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the numbers, if anything."""
    channels, height, width = tensors["own.mean"].shape
    own, guards = about.own, about.guards
    rules = {
        "strength": 0 < about.strength <= 1,
        "steps": 1 <= about.steps <= MOST_STEPS,
        "pull": 0 <= about.pull <= 1,
        "own.rows": 1 <= own.rows <= height,
        "own.columns": 1 <= own.columns <= width,
        "own.values": len(tensors["own.values"]) == channels * own.rows * own.columns,
        "own.bands": len(own.bands) == len(own.spectral),
        "guards' units": guards.latent_unit > 0 and guards.feature_unit > 0,
        "guards.isolation": tensors["guards.isolation"].shape[1] == PATCHES,
    }
    return next((name for name, holds in rules.items() if not holds), "")


def load_thumbnails(path: Path) -> Tensor | None:
    """Those that were given to `save_domain`, uint8 `(count, channel, height, width)`, if any."""
    return read(path)[1].get("thumbnails")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors."""
    about = read_about(path)
    try:
        return about, load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} is no domain file, or a damaged one ({first_line(error)}): fit it again") from None


def own_parts(own: Gaussian) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of a structured Gaussian."""
    covariance = own.covariance
    assert isinstance(covariance, Structured)
    spectral = covariance.spectral
    tensors = {
        "own.mean": own.mean.float(),
        "own.variances": spectral.variances.float(),
        "own.colors": spectral.colors.float(),
        "own.directions": covariance.directions.float(),
        "own.values": covariance.values.float(),
    }
    numbers = {name: getattr(covariance, name) for name in ("rows", "columns", "shrinkage")}
    return tensors, numbers | {"spectral": spectral.shrinkage.tolist(), "bands": spectral.band_shrinkage.tolist()}


def own_of(numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gaussian:
    """The structured Gaussian from its parts."""
    variances, colors, directions, values = (
        tensors[f"own.{name}"].double() for name in ("variances", "colors", "directions", "values")
    )
    shares = (torch.tensor(numbers[name], dtype=torch.float64) for name in ("spectral", "bands"))
    spectral = Spectral(variances, colors, *shares)
    covariance = Structured(spectral, directions, values, numbers["rows"], numbers["columns"], numbers["shrinkage"])
    return Gaussian(tensors["own.mean"].float(), covariance)
