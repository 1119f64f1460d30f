"""Inversion by a search for the fixed point of each step: `FixedPointDDIM`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser, predict
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.solver import DDIM, History, explicit
from nearfar.tensors import Images, Times, per_image, select


@dataclass(frozen=True, eq=False)
class Search:
    """How one step toward noise was found, image by image.

    residual: root mean square of the smallest change; infinite if there was none. fell_back: whether the state is the
    explicit step. calls: network calls that each image asked for; the batch paid for its slowest.
    """

    residual: Times
    fell_back: Bool[Tensor, " batch"]
    calls: Int64[Tensor, " batch"]


@dataclass(frozen=True)
class FixedPointDDIM:
    """DDIM that undoes itself: toward noise it looks for the state whose deterministic step leads back to this one.

        x_s = (alpha_s / alpha_t) x_t + (sigma_s - (alpha_s / alpha_t) sigma_t) eps(x_s, s)

    is iterated from the explicit step, image by image, until the change (root mean square) is at most
    `tolerance * sigma_s`, at most `iterations` times. If the change stops shrinking, keep the iterate with the smallest
    residual; if that is the explicit step, the image fell back to it. What becomes of an image does not depend on its
    batch. Toward the clean end it is DDIM with eta = 0. A plain form of AIDI (arXiv 2309.04907). The tolerance counts
    in units of noise because a direction of the data is never weaker than it: so the relative error of the amplitude is
    bounded alike in all of them, fine detail included.
    on_search: called after each step toward noise with its `Search`.
    Cost: toward clean one network call a step, toward noise at most `iterations` and one more on the way.
    """

    iterations: int = 40
    tolerance: float = 1e-3
    on_search: Callable[[Search], None] | None = field(default=None, compare=False, repr=False)
    stochastic: ClassVar[bool] = False
    invertible: ClassVar[bool] = True

    def calls(self, steps: int) -> int:
        return steps

    def step(
        self, denoiser: Denoiser, x: Images, t: Times, s: Times, noise: NoiseStream | None, history: History | None
    ) -> tuple[Images, History | None]:
        moving = s > t
        if not moving.any():
            return DDIM().step(denoiser, x, t, s, noise, None)
        kept, gain = explicit(denoiser.schedule, t, s)
        carried = per_image(kept, x) * x
        eps = history[0] if history else predict(denoiser, x, t)[1]
        goal = torch.where(moving, self.tolerance * denoiser.schedule.coefficients(s)[1], torch.inf)
        state, eps, search = self.search(
            lambda state: predict(denoiser, state, s)[1], carried, per_image(gain, x), eps, goal
        )
        if self.on_search:
            self.on_search(search if history else replace(search, calls=search.calls + moving))
        return state, (eps, s)

    def search(
        self, noise_of: Callable[[Images], Images], carried: Images, gain: Tensor, eps: Images, goal: Times
    ) -> tuple[Images, Images, Search]:
        """The fixed point of `carried + gain * noise_of(state)`, its noise, and how it was found.

        eps: where to start from. goal: the change to reach, infinite for images that rest at their explicit step.
        """
        state = before = carried + gain * eps
        searching = goal.isfinite()
        change, calls = torch.where(searching, torch.inf, 0.0).double(), torch.zeros_like(searching, dtype=torch.int64)
        fell_back = torch.zeros_like(searching)
        for number in range(self.iterations):
            fresh = noise_of(state)
            target = carried + gain * fresh
            moved = (target - state).double().square().mean(dim=(1, 2, 3)).sqrt().cpu()
            calls, closer = calls + searching, searching & (moved < change)
            if number < 2:
                fell_back |= searching & ~closer
            before, state = select(closer, state, before), select(closer, target, select(searching, before, state))
            eps, change = select(closer, fresh, eps), torch.where(closer, moved, change)
            searching = closer & (moved > goal)
            if not searching.any():
                break
        return state, eps, Search(change, fell_back, calls)
