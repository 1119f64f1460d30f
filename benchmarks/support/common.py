"""What every benchmark needs: the photographs, a record of the machine, a place for results."""

from __future__ import annotations

import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from skimage import data
from torch import Tensor

RESULTS = Path(__file__).parents[1] / "results"


def faces(count: int, size: int) -> Tensor:
    """The first faces of scikit-image's LFW subset, float32 (count, 3, size, size) in [-1, 1]."""
    gray = torch.from_numpy(data.lfw_subset()[:count]).float()[:, None] * 2 - 1
    resized = torch.nn.functional.interpolate(
        gray, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(-1, 1).expand(-1, 3, -1, -1).contiguous()


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def write_result(name: str, result: dict[str, Any]) -> None:
    """Keep a benchmark's outcome beside it, with the machine it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
