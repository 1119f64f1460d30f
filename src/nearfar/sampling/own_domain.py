"""A model's own samples, made once for each model: what its own domain is measured on."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from nearfar.diffusion.solver import SOLVER, STEPS, OnStep, used
from nearfar.io.fitting import from_8_bit, to_8_bit
from nearfar.models.kept import find, kept
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import solver_settings
from nearfar.sampling.local_sampling import BATCH, own_samples
from nearfar.tensors import Images

WORD = "own-samples"


def own_domain(
    model: FrozenModel, count: int, *, seed: int = 0, batch_size: int = BATCH, on_step: OnStep | None = None
) -> Images:
    """The model's first `count` own samples, rounded to 8 bits as images in files are; float32 in [-1, 1].

    From the cache where they are kept, and kept there where not. Cost: that of `own_samples` for those that lack.
    """

    def make(begun: int) -> Tensor:
        made = own_samples(model, count, seed=seed, batch_size=batch_size, first=begun, on_step=on_step)
        return to_8_bit(made)

    shape = (model.image.channels, model.image.size, model.image.size)
    return from_8_bit(kept(model, WORD, settings_of(model, seed), (count, *shape), make))


def own_calls(model: FrozenModel, count: int, *, seed: int = 0, batch_size: int = BATCH) -> int:
    """Network calls that `own_domain` would cost now, each for a batch."""
    shape = (model.image.channels, model.image.size, model.image.size)
    there = find(model, WORD, settings_of(model, seed), shape)
    lacking = max(0, count - (0 if there is None else len(there)))
    return math.ceil(lacking / batch_size) * SOLVER.calls(STEPS)


def settings_of(model: FrozenModel, seed: int) -> dict[str, Any]:
    """What decides them besides the model."""
    return {"seed": seed, "steps": STEPS, **solver_settings(used(SOLVER, model.denoiser), model.denoiser)}
