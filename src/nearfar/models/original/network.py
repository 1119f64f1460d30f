"""A converted network that no class of diffusers is: its kind, its configuration and its weights, ready to be saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


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
