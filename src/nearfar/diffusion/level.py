"""Noise levels: strength or sigma, one or one per image, and the times of a schedule that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.tensors import Times

Level = float | Sequence[float] | Tensor
"""One number for the whole batch, or one for each image."""

STEPS = 20
WARP = 2.0


def level_of(schedule: NoiseSchedule, strength: float) -> dict[str, float]:
    """Strength, time and sigma of a level, together."""
    time = start_times(schedule, 1, strength, None)
    return {"strength": strength, "time": time.item(), "sigma": schedule.ratio(time).item()}


def start_times(schedule: NoiseSchedule, count: int, strength: Level | None, sigma: Level | None) -> Times:
    """The time that each of `count` images is noised to, from exactly one of strength and sigma."""
    if strength is not None and sigma is None:
        return schedule.time_of_strength(per_batch(strength, count, "strength"))
    if sigma is not None and strength is None:
        return schedule.time_of_sigma(per_batch(sigma, count, "sigma"))
    raise UsageError("give either strength or sigma, got " + ("neither" if strength is None else "both"))


def per_batch(level: Level, count: int, name: str) -> Times:
    values = torch.as_tensor(level, dtype=torch.float64).cpu()
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
        raise UsageError(f"{name} must be one number or {count}, one per image, got shape {tuple(values.shape)}")
    return values.expand(count)


def describe_level(schedule: NoiseSchedule, strength: float | None, sigma: float | None) -> dict[str, float]:
    """Strength, time and sigma of one level, together."""
    time = start_times(schedule, 1, strength, sigma)
    if time.item() <= schedule.clean_time:
        name = "strength" if sigma is None else "sigma"
        raise UsageError(f"{name} must be above 0, got 0: the originals would be copied")
    return {
        "strength": schedule.strength_of_time(time).item(),
        "time": time.item(),
        "sigma": schedule.ratio(time).item(),
    }
