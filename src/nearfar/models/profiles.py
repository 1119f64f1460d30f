"""Profiles of models (`diffusion/local_prior.py`), kept: beside a bundled model, or in the user's cache.

A file is one of safetensors, named and marked by a hash of the model and of what is bound to its network, so that no
other model takes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nearfar.diffusion.local_prior import Profile
from nearfar.errors import UsageError
from nearfar.io.manifest import write_whole
from nearfar.models.kept import cache_folder
from nearfar.models.model import FrozenModel

KIND = "nearfar local prior 1"
FILE = "local_prior.safetensors"
PARTS = ("ratios", "variance", "directions")


def key_of(model: FrozenModel) -> str:
    """A hash of the model and of what is bound to its network."""
    known = [model.provenance.sha256, model.settings, model.latent_shape]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def place_of(model: FrozenModel) -> Path:
    """The file in the cache that a model's profile is kept in."""
    return cache_folder() / "local-prior" / f"{key_of(model)}.safetensors"


def kept_profile(model: FrozenModel, folder: Path | None = None) -> Profile | None:
    """The profile beside the model, or else that in the cache; None where there is none that can be read."""
    places = [*([folder / FILE] if folder else []), place_of(model)]
    return next((found for place in places if (found := read_profile(place, key_of(model)))), None)


def read_profile(path: Path, key: str) -> Profile | None:
    """The profile of a file; None where it is missing, damaged or another model's."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if (about.get("kind"), about.get("model")) != (KIND, key):
                return None
            ratios, variance, directions = (file.get_tensor(name).double() for name in PARTS)
            return Profile(ratios, variance, directions, int(about["side"]), int(about["factor"]))
    except (OSError, SafetensorError, UsageError, KeyError, ValueError):
        return None


def keep_profile(profile: Profile, path: Path, key: str) -> None:
    """Write a profile, whole or not at all."""
    about = {"kind": KIND, "model": key, "side": str(profile.side), "factor": str(profile.factor)}
    content = save({name: getattr(profile, name).to(torch.float32).contiguous() for name in PARTS}, metadata=about)
    write_whole(path, content)
