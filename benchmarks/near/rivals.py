"""diffusers' stochastic samplers from a noise level on, as its image-to-image pipelines run them: the last of the times
of a longer chain, "trailing", settings of the model's own scheduler (which clips the clean image to [-1, 1])."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from benchmarks.support.noise_path import NoisePath
from nearfar.models.model import FrozenModel

CHURN = {"s_churn": 1.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
"""Levels and inflation of EDM for ImageNet (Karras et al., arXiv 2206.00364, table 5). Its churn of 40 gives static:
diffusers asks the network before that noise comes. 1 is the best of 0, 1, 3, 8 and 40 on `train`."""
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "diffusers DDPM": (DDPMScheduler, {}),
    "diffusers DDIM eta 1": (DDIMScheduler, {}),
    "diffusers SDE-DPM-Solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "diffusers EDM stochastic": (EulerDiscreteScheduler, {}),
}


def times_of(strength: float, calls: int, levels: int = 1000) -> list[float] | None:
    """The times that `calls` calls visit, the clean end last; None where the chain has no time at this strength."""
    whole = round(calls / strength, 6)
    if whole % 1 or levels % whole:
        return None
    step = levels // int(whole)
    return [levels * strength - 1 - step * k for k in range(calls + 1)]


@torch.inference_mode()
def run(model: FrozenModel, name: str, x: Tensor, times: Sequence[float], path: NoisePath) -> Tensor:
    """Clean states of noised ones `x`; one network call a step. Checks that the scheduler visits these times."""
    kind, options = SCHEDULERS[name]
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler = kind.from_config(config | {"timestep_spacing": "trailing", **options})
    step = times[0] - times[1]
    scheduler.set_timesteps(round(1000 / step))
    visited = scheduler.timesteps[-(len(times) - 1) :]
    assert visited.tolist() == list(times[:-1]), (visited, times)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - len(visited))
    if name.endswith("stochastic"):
        return churned(model, scheduler, x, visited, path)
    for time, (t, s) in zip(visited, pairwise(times), strict=True):
        output = ask(model, x, time)
        x = stepped(scheduler, output, time, x, path.draw(t, s))
    return x


def stepped(scheduler: Any, output: Tensor, time: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """A step with this noise."""
    if isinstance(scheduler, DDPMScheduler):
        with patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise):
            return scheduler.step(output, time, x).prev_sample
    eta = {"eta": 1.0} if isinstance(scheduler, DDIMScheduler) else {}
    moved: Tensor = scheduler.step(output, time, x, variance_noise=noise, **eta).prev_sample
    return moved


def churned(model: FrozenModel, scheduler: Any, x: Tensor, visited: Tensor, path: NoisePath) -> Tensor:
    """EDM's stochastic sampler in diffusers' Euler form; its noise is its own, of a seed."""
    generator = torch.Generator().manual_seed(int(path.parts[0].flatten()[0] * 1e6) % 2**31)
    alpha, _ = model.schedule.coefficients(visited[:1].double())
    x = x / alpha.float()
    for time in visited:
        output = ask(model, scheduler.scale_model_input(x, time), time)
        x = scheduler.step(output, time, x, generator=generator, **CHURN).prev_sample
    return x


def ask(model: FrozenModel, x: Tensor, time: Tensor) -> Tensor:
    """The network itself."""
    output: Tensor = model.denoiser.network(x, time.float().expand(len(x)))  # type: ignore[attr-defined]
    return output
