"""What depends on a model alone is made once, and kept in the user's cache: its own samples, say, and their figures.

A file is one tensor with what it was made of beside it. It is taken only where all of that is the same, and made anew
where it is damaged; a cache that cannot be written is done without. The bundled models come with some of theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nearfar.io.manifest import write_whole
from nearfar.models.model import FrozenModel

VARIABLE = "NEARFAR_CACHE"
SHIPPED = Path(__file__).with_name("own")
"""What comes with the package."""


def cache_folder() -> Path:
    """Where the user's systems keep what can be made again; NEARFAR_CACHE names another place."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "nearfar" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/nearfar").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nearfar"


def kept(
    model: FrozenModel,
    what: str,
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
    make: Callable[[int], Tensor],
) -> Tensor:
    """Numbers about a model, from the cache or made now; (count, *shape) for the first `count` of a series.

    what: a word for them. settings: all that decides them besides model, and what is bound to it. shape: with the count
    first. make: the numbers from a place in the series on, as many as lack of the count. Whatever cannot be read, is
    of other settings or not finite is made again. Nothing is raised for a cache that cannot be read or written.
    """
    found = find(model, what, settings, shape[1:])
    begun = 0 if found is None else len(found)
    if found is None or begun < shape[0]:
        made = make(begun)
        found = made if found is None else torch.cat([found, made.to(found)])
        about = description(model, what, settings)
        write(cache_folder() / file_name(what, about), about, found)
    return found[: shape[0]]


def find(model: FrozenModel, what: str, settings: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
    """What is kept of a series, as much as there is. shape: of one of it."""
    about = description(model, what, settings)
    found = [read(folder / file_name(what, about), about, shape) for folder in (cache_folder(), SHIPPED)]
    return max((one for one in found if one is not None), key=len, default=None)


def file_name(what: str, about: str) -> str:
    return f"{what}-{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"


def description(model: FrozenModel, what: str, settings: Mapping[str, Any]) -> str:
    """All that decides the numbers, as text."""
    whole = {
        "what": what,
        "model": model.provenance.sha256,
        "bound": model.settings,
        "dtype": str(model.dtype),
        "settings": settings,
    }
    return json.dumps(whole, sort_keys=True, default=str)


def read(file: Path, about: str, shape: tuple[int, ...]) -> Tensor | None:
    """The numbers of a file of exactly this description; nothing of any other."""
    try:
        with safe_open(file, framework="pt") as content:
            if (content.metadata() or {}).get("about") != about or list(content.keys()) != ["values"]:
                return None
            values: Tensor = content.get_tensor("values")
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    sound = values.shape[1:] == shape and (not values.is_floating_point() or bool(values.isfinite().all()))
    return values if sound else None


def write(file: Path, about: str, values: Tensor) -> None:
    """The whole file or none; silently none where it cannot be written."""
    with suppress(OSError, SafetensorError):
        write_whole(file, save({"values": values.contiguous()}, metadata={"about": about}))
