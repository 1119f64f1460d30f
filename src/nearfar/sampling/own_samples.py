"""The domain that a frozen model was trained on, as the model itself shows it: its own samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nearfar.diffusion.level import STEPS, WARP
from nearfar.diffusion.noise import NoiseStream, SecretKey
from nearfar.diffusion.solver import OnStep, Solver, solve
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import SOLVER
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
    parts = torch.split(torch.arange(count), batch_size)
    return torch.cat([sample_batch(model, part.tolist(), seed, steps, solver, on_step) for part in parts])


def sample_batch(
    model: FrozenModel, numbers: Sequence[int], seed: int, steps: int, solver: Solver, on_step: OnStep | None
) -> Images:
    """The samples of these numbers."""
    key, schedule = SecretKey.from_seed(seed), model.schedule
    streams = [bytes.fromhex(key.tag(f"own sample {number}")) for number in numbers]
    noise = NoiseStream(streams, model.latent_shape, model.device)
    start = torch.full((len(numbers),), schedule.noisiest_time, dtype=torch.float64)
    noisy = schedule.add_noise(torch.zeros_like(first := noise.draw()), start, first)
    clean = solve(model.denoiser, noisy, schedule.grid(start, steps, WARP), solver, noise, on_step)
    return model.latent_space.decode(clean).clamp(-1, 1).cpu()
