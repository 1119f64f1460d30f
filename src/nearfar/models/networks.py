"""How a model's network is called, and which times, inputs and answers its scheduler's configuration asks for.

Networks are functions of noisy latents and time: class label, prompt and guidance are bound before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nearfar.diffusion.denoiser import (
    PREDICTIONS,
    Inputs,
    Network,
    Prediction,
    as_they_are,
    edm_inputs,
    from_edm,
    from_score,
    rescaled_time,
    sigma_as_time,
)
from nearfar.diffusion.schedule import FLOW, VARIANCE_PRESERVING, NoiseSchedule
from nearfar.errors import UsageError, first_line
from nearfar.models.lookup import check_label
from nearfar.models.original.mixer import ScoreMixer
from nearfar.models.unet import PixelUNet

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
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ArithmeticError, KeyError) as error:
        raise UsageError(f"{where} has values that make no schedule ({first_line(error)}): correct them") from None
    levels = conventions.schedule.levels
    if not (levels.isfinite().all() and (levels.diff() > 0).all()):
        raise UsageError(f"{where} makes noise levels that do not rise throughout: correct its betas or sigmas")
    return conventions


def read_table(config: Config, where: str) -> Conventions:
    """DDPM and its kin: the table of betas as diffusers makes it."""
    prediction = one_of(TABLE_PREDICTIONS, config, where)
    if config.get("timestep_type") == "continuous":
        raise UsageError(f"{where} has an Euler scheduler's continuous times, which nearfar does not read: choose "
                         "a model with discrete ones")  # fmt: skip
    table = signal_table({key: config[key] for key in BETAS if config.get(key) is not None})
    factor = 1000 / len(table)
    inputs = partial(rescaled_time, factor=factor) if config.get("rescale_timesteps") else as_they_are
    return Conventions(NoiseSchedule.variance_preserving(table), PREDICTIONS[prediction], inputs)


def signal_table(config: Config) -> Tensor:
    """The share of the signal that is left after each step, float32, bit by bit as DDPMScheduler has it.

    Ho et al.'s linear betas, latent diffusion's (linear in their root), Nichol and Dhariwal's cosine (arXiv
    2102.09672, formula 17), or listed ones; any other config is diffusers' to read.
    """
    kind, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    low, high = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("rescale_betas_zero_snr") or kind not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        from diffusers import DDPMScheduler

        table: Tensor = DDPMScheduler(**config).alphas_cumprod
        return table
    if "trained_betas" in config:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif kind == "squaredcos_cap_v2":
        betas = torch.tensor(cosine_betas(steps), dtype=torch.float32)
    else:
        power = 1 if kind == "linear" else 2
        betas = torch.linspace(low ** (1 / power), high ** (1 / power), steps, dtype=torch.float32) ** power
    return (1 - betas).cumprod(0)


def cosine_betas(steps: int, least: float = 0.0, most: float = 0.999) -> list[float]:
    """Between two bounds, as the last would leave nothing of the signal."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    shares = [1 - signal((step + 1) / steps) / signal(step / steps) for step in range(steps)]
    return [min(max(share, least), most) for share in shares]


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


def read_continuous(config: Config, where: str) -> Conventions:
    """Variance preserving in continuous time at a constant rate (arXiv 2011.13456); the network answers the score."""
    rate, first, last = (float(config[key]) for key in ("rate", "first_time", "last_time"))
    if not (rate > 0 and 0 < first < last):
        raise ValueError(f"rate {rate:g} and times from {first:g} to {last:g}")
    times = torch.cat([torch.zeros(1).double(), linspace(first**0.5, last**0.5, steps_of(config, 1000)) ** 2])
    levels = torch.atan2((-torch.expm1(-rate * times)).sqrt(), (-rate * times / 2).exp())
    return Conventions(NoiseSchedule(times, levels, VARIANCE_PRESERVING), from_score)


READERS = {
    "ContinuousVPScheduler": read_continuous,
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


Arguments = dict[str, Tensor]
"""What a network takes besides latents and time, for a batch of one."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt; `negative` is there when guidance needs it (Ho and Salimans, arXiv 2207.12598)."""

    positive: Arguments
    negative: Arguments | None = None
    guidance: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> Prompt:
        """The same where the network is."""
        away = None if self.negative is None else moved(self.negative, device, dtype)
        return Prompt(moved(self.positive, device, dtype), away, self.guidance)


def moved(arguments: Arguments, device: torch.device, dtype: torch.dtype) -> Arguments:
    return {name: value.to(device, dtype) for name, value in arguments.items()}


def unconditional(unet: Any, label: int | None) -> Network:
    """A network of pixels, ours or diffusers', its class bound where it has classes; channels last where it runs."""
    check_label(unet.config.num_class_embeds, label)
    ours = isinstance(unet, PixelUNet | ScoreMixer)

    def network(x: Tensor, t: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(x),), label, device=x.device)
        x = x.contiguous(memory_format=torch.channels_last)
        answer = unet(x, t, class_labels=labels)
        output: Tensor = answer if ours else answer.sample
        return output.contiguous()

    return network


def stable_diffusion(unet: Any, prompt: Prompt) -> Network:
    """The UNet of Stable Diffusion 1 and 2."""
    return guided(lambda x, t, text: unet(x, t, encoder_hidden_states=text).sample, prompt)


def stable_diffusion_xl(unet: Any, prompt: Prompt) -> Network:
    """The UNet of SDXL, which also takes the pooled prompt and the size of the picture."""

    def call(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": sizes}
        return unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample  # type: ignore[no-any-return]

    return guided(call, prompt)


def stable_diffusion_3(transformer: Any, prompt: Prompt) -> Network:
    """The transformer of Stable Diffusion 3, which takes the time from 0 to 1000."""
    return guided(lambda x, t, text, pooled: transformer(x, text, pooled, timestep=t).sample, prompt)


def flux(transformer: Any, prompt: Prompt) -> Network:
    """The transformer of FLUX: latents as a row of 2x2 patches with their places, the time from 0 to 1.

    Where guidance was distilled into the network it is an input, and there is one call instead of two.
    """
    embedded = transformer.config.guidance_embeds

    def call(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
        output = transformer(
            patches_in_a_row(x),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=t / 1000,
            guidance=torch.full((len(x),), prompt.guidance, device=x.device) if embedded else None,
            img_ids=places(rows, columns).to(x),
            txt_ids=x.new_zeros(text.shape[1], 3),
        ).sample
        return patches_in_place(output, rows, columns)

    return guided(call, prompt)


def patches_in_a_row(x: Tensor) -> Tensor:
    """(batch, channel, 2 rows, 2 columns) -> (batch, rows * columns, channel * 4)."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def patches_in_place(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `patches_in_a_row`."""
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).reshape(len(x), -1, rows, columns), 2)


def places(rows: int, columns: int) -> Tensor:
    """(rows * columns, 3): nothing, row and column of each patch."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)


def guided(call: Callable[..., Tensor], prompt: Prompt) -> Network:
    """Without the prompt, and `guidance` times what the prompt changes; one batch of twice the size."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        if prompt.negative is None:
            return call(x, t, **repeated(prompt.positive, x))
        away, toward = repeated(prompt.negative, x), repeated(prompt.positive, x)
        both = {name: torch.cat([away[name], toward[name]]) for name in toward}
        without, with_prompt = call(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return without + prompt.guidance * (with_prompt - without)

    return network


def repeated(arguments: Arguments, x: Tensor) -> Arguments:
    """The arguments of a batch of one, for every image of `x`."""
    return {name: value.expand(len(x), *value.shape[1:]) for name, value in arguments.items()}
