"""Perceptual resolution enhancement: enlarge an image, noise it part of the way, denoise it (arXiv 2210.12100)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, inf
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import SOLVERS, STEPS, OnStep, Sampling, Solver, profile_of
from nearfar.errors import UsageError
from nearfar.io.conversion import as_tensor, hand_over, is_array_of_floats
from nearfar.models.model import FrozenModel, LatentSpace, checked_model
from nearfar.sampling.back_projection import AreaDownsampling
from nearfar.sampling.local_sampling import Given, noised_and_denoised
from nearfar.sampling.tiling import over_tiles, tile_count
from nearfar.tensors import Images, Times

Large = Float[Tensor, "batch channel rows columns"]
SCALES = range(2, 9)
LOST = 1 / 12
"""Size of the strongest frequency that enlarging leaves out, over `scale ** 1.5`, for pixels in [-1, 1]."""

HELD = 4.0
"""How much more noise there may be where data consistency, not the level, keeps the layout."""


@dataclass(frozen=True)
class Enlargement:
    """How images are enlarged.

    scale: a whole number from 2 to 8. strength: share of the forward process, `proposed_strength` unless given.
    cascade: how often the enlargement is noised and denoised, one after the other.
    consistency: keep the clean estimate of every step, and the result, such that the mean over `scale` x `scale` pixels
    is the given image (DDNM, arXiv 2212.00490). Behind an autoencoder, only the result. Without it, as in the paper,
    results drift from what was given. solver: its figures (docs/enhance.md) were measured with this one.
    """

    scale: int
    strength: float | None = None
    steps: int = STEPS
    solver: Solver = SOLVERS["dpm++sde"]
    cascade: int = 1
    consistency: bool = True

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UsageError(f"scale must be a whole number from {SCALES[0]} to {SCALES[-1]}, got {self.scale}")
        if self.cascade < 1:
            raise UsageError(f"cascade must be at least 1, got {self.cascade}")

    def sampling(self, model: FrozenModel) -> Sampling:
        """Of one pass."""
        given = self.strength
        level = Level(proposed_strength(model, self.scale, self.consistency) if given is None else given)
        return Sampling(level, self.steps, self.solver)


def enhance(
    model: FrozenModel,
    images: Given,
    *,
    key: SecretKey | None = None,
    batch_size: int = 16,
    on_step: OnStep | None = None,
    **how: Any,
) -> Given:
    """Images `scale` times as large, with detail that the model finds likely. It is invented, not what was there.

    images: float32 `(batch, channel, height, width)` in [-1, 1], of any size, with the model's channels; or
    pictures, as PIL images or arrays of any sizes, which come back in their own kind.
    how: `scale` and the other fields of `Enlargement`.
    key: source of all randomness, a random one unless given; an image's result does not depend on its batch.
    batch_size: tiles in one network call. on_step: called after each step with `(step, state)`; steps count from 1,
    over all passes.
    Returns for tensors float32 `(batch, channel, height * scale, width * scale)` in [-1, 1] on the CPU.
    Cost: `cascade * solver.calls(steps)` uses of a `TiledDenoiser`. Memory: 140 bytes for each pixel of the results
    besides the network's (measured: 2.2 GB for 4096 x 4096).
    """
    settled = partial(
        enlarge, checked_model(model), how=Enlargement(**how), key=key or SecretKey.random(),
        batch_size=batch_size, on_step=on_step,
    )  # fmt: skip
    if isinstance(images, Tensor) or is_array_of_floats(images):
        squares, back = as_tensor(images)
        made: Given = back(settled(squares))
    else:
        made = hand_over(images).enlarged(model.image.channels, settled)
    return made


def enlarge(
    model: FrozenModel,
    images: Images,
    how: Enlargement,
    key: SecretKey,
    batch_size: int,
    on_step: OnStep | None = None,
) -> Large:
    """`enhance` with an `Enlargement`."""
    check(model, images)
    scale, sampling = how.scale, how.sampling(model)
    times = sampling.level.times(model.schedule, len(images))
    area, small = AreaDownsampling(scale), mirrored(images.to(model.device, torch.float32), model, scale)
    canvas = area.enlarge(small).clamp(-1, 1)
    large = over_tiles(model, canvas, batch_size)
    if how.consistency and rearranges(model.latent_space):
        large = replace(large, denoiser=ConsistentDenoiser(large.denoiser, model.latent_space, area, small))
    for number in range(how.cascade):
        keys = [key.for_image(image, time.item(), number) for image, time in zip(images, times, strict=True)]
        count_on = partial(tell, on_step, number * how.steps)
        canvas = model.latent_space.decode(noised_and_denoised(large, canvas, sampling, keys, count_on))
        canvas = area.settle(area.project(canvas, small), small) if how.consistency else canvas.clamp(-1, 1)
    height, width = (scale * length for length in images.shape[2:])
    return canvas[:, :, :height, :width].cpu()


@dataclass(frozen=True, eq=False)
class ConsistentDenoiser:
    """A denoiser whose clean estimates downsample to given images, at every level.

    What downsampling does not see of an estimate is the network's, the rest is the image's (DDNM, Wang et al., arXiv
    2212.00490). For latent spaces that only rearrange pixels. No network call of its own.
    """

    denoiser: Denoiser
    space: LatentSpace
    downsampling: AreaDownsampling
    small: Images

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def profile(self) -> Profile | None:
        return profile_of(self.denoiser)

    def __call__(self, x_t: Images, t: Times) -> Images:
        estimate = self.space.decode(self.denoiser(x_t, t))
        return self.space.encode(self.downsampling.project(estimate, self.small))


def tell(on_step: OnStep | None, before: int, step: int, state: Images) -> None:
    if on_step:
        on_step(before + step, state)


def proposed_strength(model: FrozenModel, scale: int, consistency: bool = True) -> float:
    """The strength whose noise hides what enlarging got wrong: noise to signal `scale ** 1.5 / 12`.

    An enlarged image lacks what lies above its old pixels' frequency, the more the lower that is. White noise of the
    size of the strongest frequency lost covers them all; measured on faces, Set5 and Set14 that is 0.16 to 0.32 at
    scale 2, 0.46 to 0.68 at 4 and 1.3 to 1.6 at 8. With data consistency four times as much, up to where faces
    gain most (benchmarks/near/enhance.py, docs/enhance.md).
    Raises UsageError behind an autoencoder, whose latents have other units.
    """
    if not rearranges(model.latent_space):
        raise UsageError("no strength is known for enlarging behind an autoencoder: give one, such as --strength 0.5")
    pixels = LOST * scale**1.5 * (HELD if consistency else 1.0)
    largest = model.schedule.ratio(torch.tensor([model.schedule.noisiest_time], dtype=torch.float64)).item()
    sigma = min(pixels * model.latent_space.span / 2, largest)
    time = model.schedule.time_of_sigma(torch.tensor([sigma], dtype=torch.float64))
    return model.schedule.strength_of_time(time).item()


def rearranges(space: LatentSpace) -> bool:
    """Whether states are pixels, in whatever order and unit."""
    return space.span < inf


def mirrored(images: Images, model: FrozenModel, scale: int) -> Large:
    """Images that go on to the right and downwards as their mirror image, until the model can work on the enlargement:
    no smaller than the model, and in whole latents."""
    rows, columns = (mirror(n, workable(n, model, scale)).to(images.device) for n in images.shape[2:])
    return images[:, :, rows][:, :, :, columns]


def mirror(length: int, target: int) -> Int64[Tensor, " target"]:
    """Which of `length` places each of `target` shows: 0 1 2 2 1 0 0 1 ..."""
    places = torch.arange(target) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)


def workable(length: int, model: FrozenModel, scale: int) -> int:
    """The first number of small pixels from `length` on whose enlargement suits the model."""
    step = model.latent_space.factor // gcd(model.latent_space.factor, scale)
    least = max(length, -(-model.image.size // scale))
    return -(-least // step) * step


def tiles_of(model: FrozenModel, shape: Sequence[int], scale: int) -> int:
    """How many of the model's tiles cover the enlargement of an image (channel, height, width)."""
    canvas = tuple(workable(length, model, scale) * scale // model.latent_space.factor for length in shape[1:])
    return tile_count(canvas, model.latent_shape[1:])


def check(model: FrozenModel, images: Images) -> None:
    """Refuse what cannot be enlarged."""
    if images.ndim != 4 or images.shape[1] != model.image.channels or 0 in images.shape:
        raise UsageError(f"images must be (batch, {model.image.channels}, height, width), got {tuple(images.shape)}")
    if not images.isfinite().all() or images.abs().max() > 1:
        raise UsageError("images must lie in [-1, 1]: divide 8-bit values by 127.5, less 1")
