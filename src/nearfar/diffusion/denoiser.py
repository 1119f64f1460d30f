"""Denoisers: a frozen network, whatever it takes and answers, as a prediction of the clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.tensors import Images, Times, per_image, select, sent

Network = Callable[[Tensor, Tensor], Tensor]
"""(noisy (batch, channel, height, width), time (batch,)) -> output, in the network's own dtype."""

Inputs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, time (batch,), sigma (batch,)) -> what the network is handed as its image and its time."""

Prediction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(output, x_t, alpha, sigma) -> x_0."""


@runtime_checkable
class Denoiser(Protocol):
    """`(x_t, t) -> x_0`: the expected clean latents of noisy ones, one time per image."""

    @property
    def schedule(self) -> NoiseSchedule: ...
    def __call__(self, x_t: Images, t: Times) -> Images: ...


def as_they_are(x_t: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network takes the noisy image and its time."""
    return x_t, t


def rescaled_time(x_t: Tensor, t: Tensor, sigma: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The network counts its times in other units (`rescale_timesteps` of improved DDPM, arXiv 2102.09672)."""
    return x_t, t * factor


def sigma_as_time(x_t: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network is told the noise level itself (Song et al., arXiv 2011.13456)."""
    return x_t, sigma


def edm_inputs(x_t: Tensor, t: Tensor, sigma: Tensor, data: float) -> tuple[Tensor, Tensor]:
    """Unit variance in, a quarter of log sigma as time; data: standard deviation (arXiv 2206.00364, table 1)."""
    return x_t / per_image((sigma**2 + data**2).sqrt(), x_t), sigma.log() / 4


def from_epsilon(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the noise (Ho et al., arXiv 2006.11239)."""
    return (x_t - sigma * output) / alpha


def from_sample(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the clean image."""
    return output


def from_v(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts `v = alpha eps - sigma x_0` (Salimans and Ho, arXiv 2202.00512)."""
    return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)


def from_flow(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the velocity `eps - x_0` (Liu et al., arXiv 2209.03003)."""
    return (x_t - sigma * output) / (alpha + sigma)


def from_score(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The network predicts the score, `-eps / sigma` (Song et al., arXiv 2011.13456)."""
    return (x_t + sigma**2 * output) / alpha


def from_edm(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, data: float, sign: int = 1) -> Tensor:
    """The network predicts what a skip connection lacks (Karras et al., arXiv 2206.00364, formula 7)."""
    variance = sigma**2 + data**2
    return data**2 / variance * x_t + sign * sigma * data / variance.sqrt() * output


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": from_epsilon,
    "sample": from_sample,
    "v_prediction": from_v,
    "flow_prediction": from_flow,
}


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network with its schedule and its kind of prediction. One network call per use.

    inputs: what the network is handed. The network runs in `dtype`, the rest in the state's dtype. Extra output
    channels (learned variance) are dropped. profile: what the network does not know, if that was measured.
    """

    network: Network = field(repr=False)
    schedule: NoiseSchedule
    prediction: Prediction = from_epsilon
    dtype: torch.dtype = torch.float32
    inputs: Inputs = as_they_are
    profile: Profile | None = field(default=None, repr=False)

    def __call__(self, x_t: Images, t: Times) -> Images:
        alpha, sigma = self.schedule.coefficients(t)
        x, time = self.inputs(x_t, t, sigma)
        output = self.network(x.to(self.dtype), sent(time, x_t.device, torch.float32))
        output = output[:, : x_t.shape[1]].to(x_t.dtype)
        return self.prediction(output, x_t, per_image(alpha, x_t), per_image(sigma, x_t))


def predict(denoiser: Denoiser, x_t: Images, t: Times) -> tuple[Images, Images]:
    """Clean image and noise that `x_t` is made of: `x_t = alpha x_0 + sigma eps` holds exactly. One network call.

    A network knows no level cleaner than the schedule's first, so below it the noise is asked for at that level:
    at the clean end the image itself is `x_0` and the noise says where an inversion should go.
    """
    schedule = denoiser.schedule
    asked = t.clamp(min=schedule.first_time)
    alpha, sigma = (per_image(c, x_t) for c in schedule.coefficients(asked))
    x_0 = denoiser(x_t, asked)
    noise = (x_t - alpha * x_0) / sigma
    if not (t < asked).any():
        return x_0, noise
    alpha, sigma = (per_image(c, x_t) for c in schedule.coefficients(t))
    return select(t < asked, (x_t - sigma * noise) / alpha, x_0), noise


def clean_image(denoiser: Denoiser, x_t: Images, t: Times) -> Images:
    """The clean image alone, `predict` without its noise. One network call."""
    return predict(denoiser, x_t, t)[0] if (t < denoiser.schedule.first_time).any() else denoiser(x_t, t)
