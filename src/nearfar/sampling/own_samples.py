"""The domain that a frozen model was trained on, as the model itself shows it: its own samples."""

from __future__ import annotations

import torch

from nearfar.diffusion.level import STEPS, Level, Sampling
from nearfar.diffusion.solver import SOLVER, OnStep, Solver
from nearfar.models.model import FrozenModel
from nearfar.sampling.trajectory import decode, descend, numbered_noise
from nearfar.tensors import Images

BATCH = 32


def own_samples(
    model: FrozenModel,
    count: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    solver: Solver = SOLVER,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
) -> Images:
    """Images that the model makes from pure noise.

    Sample `i` depends on the model, the seed and `i`, not on `count`. Returns float32 images in [-1, 1] on the CPU.
    Cost: `solver.calls(steps)` network calls for each batch.
    """
    sampling, images = Sampling(Level(strength=1.0), steps, solver), []
    for numbers in torch.split(torch.arange(count), batch_size):
        noise = numbered_noise(model, "own sample", numbers.tolist(), seed)
        times, first = sampling.level.times(model.schedule, len(numbers)), noise.draw()
        noisy = model.schedule.add_noise(torch.zeros_like(first), times, first)
        images.append(decode(model, descend(model, noisy, sampling, noise, on_step)))
    return torch.cat(images)
