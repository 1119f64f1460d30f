"""Where a network runs, and in which precision."""

from __future__ import annotations

import torch

from nearfar.errors import UsageError, first_line


def pick_device(device: str | torch.device) -> torch.device:
    """The device to run on; "auto" prefers CUDA."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used ({first_line(error)}): use --device cpu") from None


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Half precision on a CPU is several times slower than float32, so it is refused."""
    if device.type == "cpu" and dtype != torch.float32:
        raise UsageError(f"a CPU runs {str(dtype).removeprefix('torch.')} several times slower: use float32")
