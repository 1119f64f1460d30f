"""A domain as one safetensors file: latents in half precision, everything else beside them; nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nearfar.domain.domain import Domain, Gaussian
from nearfar.domain.guards import Guards
from nearfar.errors import UsageError, first_line
from nearfar.io.manifest import CONFIDENTIAL, write_whole, writing
from nearfar.latents.covariance import Spectral, Structured
from nearfar.latents.shell import Target, Targets

KEY, FORMAT = "nearfar domain", 2
WHOLE = ("model", "settings", "strength", "steps", "diagnostics", "preprocessing", "mixing", "pull")
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


def load_domain(path: Path) -> Domain:
    """Read what `save_domain` wrote. UsageError for what is no whole domain file."""
    about, tensors = read(path)
    try:
        guards = {name.removeprefix("guards."): tensors[name] for name in tensors if name.startswith("guards.")}
        clean = tensors["clean"].float()
        return Domain(
            **{name: about[name] for name in WHOLE},
            latents=tensors["latents"].float(),
            clean=clean,
            own=own_of(about["own"], tensors),
            targets=Targets(**{name: Target(**target) for name, target in about["targets"].items()}),
            guards=Guards.from_parts(clean, guards, about["guards"]),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is a domain file with parts missing or wrong ({first_line(error)}): fit it again"
        ) from None


def load_thumbnails(path: Path) -> Tensor | None:
    """Those that were given to `save_domain`, uint8 `(count, channel, height, width)`, if any."""
    return read(path)[1].get("thumbnails")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors."""
    if not path.is_file():
        raise UsageError(f"{path} must be a domain file, got {'a folder' if path.is_dir() else 'nothing'} there")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is no domain file, or a damaged one ({first_line(error)}): fit it again") from None
    format = about.get("format") if isinstance(about, dict) else None
    if format != FORMAT:
        raise UsageError(f"{path} is no domain file of format {FORMAT}, got {format}: fit it again")
    return about, tensors


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
