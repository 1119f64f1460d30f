"""A diffusers scheduler's configuration as a noise schedule and the family's conventions.

What a family does with its network is three things: which schedule its times mean, what the network is handed, and
what it answers.

    table of betas      time as it is                     epsilon, v or sample      DDPM, iDDPM, Stable Diffusion
    score VE            sigma instead of the time         score                     Song et al., arXiv 2011.13456
    EDM                 x / sqrt(sigma^2 + data^2)        residual of a skip        Karras et al., arXiv 2206.00364
    flow matching       time as it is                     velocity                  Stable Diffusion 3, FLUX
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import (
    PREDICTIONS,
    Inputs,
    Prediction,
    as_they_are,
    edm_inputs,
    from_edm,
    from_score,
    rescaled_time,
    sigma_as_time,
)
from nearfar.diffusion.schedule import FLOW, NoiseSchedule
from nearfar.errors import UsageError, first_line

TABLE_PREDICTIONS = ("epsilon", "sample", "v_prediction")
MOST_STEPS = 100_000
EDM_PREDICTIONS = ("epsilon", "v_prediction")
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


@dataclass(frozen=True)
class Conventions:
    """How a family reads times, and what its network takes and answers; whether its pixels lie in [0, 1]."""

    schedule: NoiseSchedule
    prediction: Prediction
    inputs: Inputs = as_they_are
    unit_range: bool = False

    @property
    def is_flow(self) -> bool:
        return self.schedule.path is FLOW


Config = dict[str, Any]


def read_scheduler(config: Config, where: str) -> Conventions:
    """The conventions that a scheduler config stands for; `where` names it in errors."""
    name = str(config.get("_class_name"))
    reader = READERS.get(name, read_table if "beta_schedule" in config else None)
    if reader is None:
        known = f"schedulers with a table of betas (DDPM, DDIM, PNDM, Euler, ...), {', '.join(READERS)}"
        raise UsageError(f"{where} is a {name}, which nearfar does not read: it reads {known}")
    if not 1 < steps_of(config, 1000) <= MOST_STEPS:
        raise UsageError(
            f"num_train_timesteps must be 2 to {MOST_STEPS}, got {config['num_train_timesteps']} in {where}"
        )
    try:
        conventions = reader(config, where)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"{where} has values that make no schedule ({first_line(error)}): correct them") from None
    levels = conventions.schedule.levels
    if not (levels.isfinite().all() and (levels.diff() > 0).all()):
        raise UsageError(f"{where} makes noise levels that do not rise throughout: correct its betas or sigmas")
    return conventions


def read_table(config: Config, where: str) -> Conventions:
    """DDPM and its kin: the table of betas as diffusers makes it."""
    from diffusers import DDPMScheduler

    prediction = one_of(TABLE_PREDICTIONS, config, where)
    if config.get("timestep_type") == "continuous":
        raise UsageError(f"{where} has an Euler scheduler's continuous times, which nearfar does not read: choose "
                         "a model with discrete ones")  # fmt: skip
    table = DDPMScheduler(**{key: config[key] for key in BETAS if config.get(key) is not None}).alphas_cumprod
    factor = 1000 / len(table)
    inputs = partial(rescaled_time, factor=factor) if config.get("rescale_timesteps") else as_they_are
    return Conventions(NoiseSchedule.variance_preserving(table), PREDICTIONS[prediction], inputs)


def read_score(config: Config, where: str) -> Conventions:
    """Score models: geometric noise levels; the network takes sigma and answers the score."""
    sigmas = geometric(config.get("sigma_min", 0.01), config.get("sigma_max", 1348.0), steps_of(config, 2000))
    return Conventions(NoiseSchedule.variance_exploding(sigmas), from_score, sigma_as_time, unit_range=True)


def read_edm(config: Config, where: str) -> Conventions:
    """EDM preconditioning, on the levels that its sampler visits (arXiv 2206.00364, formula 5)."""
    sign = 1 if one_of(EDM_PREDICTIONS, config, where) == "epsilon" else -1
    low, high, rho = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), config.get("rho", 7.0)
    if config.get("sigma_schedule") == "exponential":
        sigmas = geometric(low, high, steps_of(config, 1000))
    else:
        sigmas = linspace(low ** (1 / rho), high ** (1 / rho), steps_of(config, 1000)) ** rho
    data = float(config.get("sigma_data", 0.5))
    prediction = partial(from_edm, data=data, sign=sign)
    return Conventions(NoiseSchedule.variance_exploding(sigmas), prediction, partial(edm_inputs, data=data))


def read_flow(config: Config, where: str) -> Conventions:
    """Rectified flow. The sampler's shift only chooses which levels it visits, not what they are."""
    return Conventions(NoiseSchedule.flow(float(steps_of(config, 1000))), PREDICTIONS["flow_prediction"])


READERS = {
    "ScoreSdeVeScheduler": read_score,
    "EDMEulerScheduler": read_edm,
    "EDMDPMSolverMultistepScheduler": read_edm,
    "FlowMatchEulerDiscreteScheduler": read_flow,
    "FlowMatchHeunDiscreteScheduler": read_flow,
}


def one_of(allowed: tuple[str, ...], config: Config, where: str) -> str:
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in allowed:
        raise UsageError(f"prediction_type must be one of {', '.join(allowed)}, got {prediction!r} in {where}")
    return prediction


def steps_of(config: Config, default: int) -> int:
    return int(config.get("num_train_timesteps", default))


def linspace(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def geometric(low: float, high: float, count: int) -> Tensor:
    return linspace(math.log(low), math.log(high), count).exp()
