"""There and back exactly, for every network: a two-state inverter, for reconstruction only.

Its step uses two states, so algebra alone undoes it, without a search. The price: what lies at the noise level is a
pair of states, and a prior over one latent cannot draw a pair, so nothing new can be made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nearfar.diffusion.denoiser import Denoiser, predict
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.solver import History, OnStep, explicit
from nearfar.errors import UsageError
from nearfar.tensors import Images, TimeGrid, Times, per_image

PAIR = (
    "BDIA ends in a pair of states, and one latent alone has no way back: "
    "invert with FixedPointDDIM, Heun or DDIM(eta=0); BDIA is for reconstruct"
)


@dataclass(frozen=True)
class BDIA:
    """Bi-directional integration approximation (Zhang et al., arXiv 2307.10829).

        x_{i-1} = ddim(x_i, i -> i-1) + gamma (x_{i+1} - ddim(x_i, i -> i+1))

    with the explicit step `ddim`; both of its ends use one prediction at `x_i`. gamma: in (0, 1]. At 1 errors neither
    grow nor fade in either direction; below it they grow as gamma ** -steps on the way to noise.
    """

    gamma: float = 1.0
    stochastic: ClassVar[bool] = False
    invertible: ClassVar[bool] = False

    def calls(self, steps: int) -> int:
        """Network calls of the way back, whose first step needs none; the way to noise costs `steps`."""
        return steps - 1

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, History | None]:
        """Refused: a step needs two states."""
        raise UsageError(PAIR)


@torch.inference_mode()
def toward_noise(
    denoiser: Denoiser, x: Images, times: TimeGrid, solver: BDIA, on_step: OnStep | None = None
) -> tuple[Images, Images]:
    """The last two states on an ascending grid, the noisiest first; the first step is an explicit one."""
    first = move(denoiser, predict(denoiser, x, times[:, 0])[1], x, times[:, 0], times[:, 1])
    return walk(denoiser, (first, x), times, 1 / solver.gamma, on_step)


@torch.inference_mode()
def toward_clean(
    denoiser: Denoiser, pair: tuple[Images, Images], times: TimeGrid, solver: BDIA, on_step: OnStep | None = None
) -> Images:
    """The clean state that a pair comes from, on the same grid descending."""
    noisiest, state = pair
    return walk(denoiser, (state, noisiest), times, solver.gamma, on_step)[0]


def walk(
    denoiser: Denoiser, pair: tuple[Images, Images], times: TimeGrid, weight: float, on_step: OnStep | None
) -> tuple[Images, Images]:
    """The pair at the end of a grid from that at its beginning; pairs are (state, the one before)."""
    state, before = pair
    for number in range(1, times.shape[1] - 1):
        t_before, t, s = times[:, number - 1 : number + 2].unbind(1)
        eps = predict(denoiser, state, t)[1]
        missed = before - move(denoiser, eps, state, t, t_before)
        state, before = move(denoiser, eps, state, t, s) + weight * missed, state
        if on_step:
            on_step(number, state)
    return state, before


def move(denoiser: Denoiser, eps: Images, x: Images, t: Times, s: Times) -> Images:
    """The explicit DDIM step from t to s with this noise, in either direction."""
    kept, gain = explicit(denoiser.schedule, t, s)
    return per_image(kept, x) * x + per_image(gain, x) * eps
