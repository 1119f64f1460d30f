"""Converted networks: those that no class of diffusers is, and how all of them become folders."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from torch import Tensor

from nearfar.errors import RunError, UsageError


@dataclass(frozen=True, eq=False)
class SavedConfig:
    """Settings that a part of a folder keeps under a class's name."""

    kind: str
    config: dict[str, Any]
    file: ClassVar[str] = "scheduler_config.json"

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_class_name": self.kind} | self.config, indent=2, sort_keys=True)
        (folder / self.file).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class SavedNetwork(SavedConfig):
    """weights: float32, under the names that the kind gives them in a folder."""

    weights: dict[str, Tensor]
    file: ClassVar[str] = "config.json"

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        from safetensors.torch import save_file

        super().save_pretrained(folder)
        save_file(self.weights, folder / "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True, eq=False)
class Converted:
    """A network in float32 and its scheduler, of diffusers' classes where these know them, and what was assumed."""

    unet: Any
    scheduler: Any
    assumptions: tuple[str, ...]


def save_converted(converted: Converted, folder: Path, card: str = "") -> None:
    """Write a complete diffusers folder, under another name until it is whole.

    Raises UsageError for a folder that exists and is not empty, RunError where the disk refuses.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} must be new or empty, but something lies there: choose another name")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        write_folder(converted, unfinished, card)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder} cannot be written ({error}): make room or choose another place") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_folder(converted: Converted, folder: Path, card: str) -> None:
    converted.unet.save_pretrained(folder / "unet", safe_serialization=True)
    converted.scheduler.save_pretrained(folder / "scheduler")
    index = json.dumps(model_index(converted), indent=2, sort_keys=True)
    (folder / "model_index.json").write_text(index + "\n", encoding="utf-8")
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def model_index(converted: Converted) -> dict[str, Any]:
    """Names the pipeline; with an extra key one that diffusers does not know, nor the library of its network."""
    import diffusers

    plain = is_plain(converted)
    return {
        "_class_name": "DDPMPipeline" if plain else "NearfarPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", kind_of(converted.scheduler)],
        "unet": ["diffusers" if plain else "nearfar", kind_of(converted.unet)],
    }


def is_plain(converted: Converted) -> bool:
    """Whether diffusers' configs say all of it, so that diffusers can use the folder."""
    if isinstance(converted.unet, SavedNetwork):
        return False
    extra = converted.unet.config.get("attention_heads") or converted.scheduler.config.get("rescale_timesteps")
    return not extra


def kind_of(part: Any) -> str:
    """The class that a folder's index names."""
    return part.kind if isinstance(part, SavedConfig) else type(part).__name__
