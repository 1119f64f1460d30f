"""Reconstruction: the attacker holds an output, the model and perhaps the noise, and walks the trajectory back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.audit.figure import Figure
from nearfar.diffusion.level import Level, Sampling
from nearfar.diffusion.noise import NoiseStream, SecretKey, noise_for
from nearfar.diffusion.solver import Heun
from nearfar.metrics.intervals import NORMAL
from nearfar.models.model import FrozenModel
from nearfar.sampling.trajectory import ascend, decode, encode
from nearfar.tensors import Images, per_image

STEPS, BATCH = 50, 32

Values = Float64[Tensor, " images"]
Compare = Callable[[Images, Images], Values]
"""(reconstructions, originals) -> how alike each pair is."""


def walked_back(
    model: FrozenModel,
    before: Images,
    after: Images,
    strength: float,
    key: SecretKey,
    *,
    compare: Compare | None = None,
    name: str = "correlation of pixels",
    steps: int = STEPS,
) -> list[Figure]:
    """How alike outputs are to their originals: as published, walked back with the right noise and with other noise.

    before, after: float32 in [-1, 1], of the model's size. key: of the run; with the original it stands for noise that
    leaked, because the noise depends on both. Wrong noise comes from a fixed other key. Reconstruction is best for
    outputs of a deterministic solver (DDIM, Heun); a stochastic one adds noise that is not taken out here.
    compare: how alike two batches are, the correlation of pixels unless given. Cost: 2 `steps` network calls for each
    batch of 32 images.
    """
    compare = compare or correlation
    noisy = torch.cat([noised(model, some, strength, steps) for some in torch.split(after, BATCH)])
    wrong = SecretKey.from_seed(1)
    seen = {
        "as published": after,
        "walked back with its noise": noise_removed(model, noisy, before, strength, key),
        "walked back with other noise": noise_removed(model, noisy, before, strength, wrong),
    }
    return [mean_figure(f"{name} with the original, {way}", compare(some, before)) for way, some in seen.items()]


def noised(model: FrozenModel, after: Images, strength: float, steps: int) -> Tensor:
    """Outputs carried back to the noise level by Heun's method."""
    return ascend(model, encode(model, after), Sampling(Level(strength), steps, Heun()))


def noise_removed(model: FrozenModel, noisy: Tensor, before: Images, strength: float, key: SecretKey) -> Images:
    """The original, if the noise is that of this key and original: `(x_t - sigma eps) / alpha`."""
    start = Level(strength).times(model.schedule, len(before))
    stream = NoiseStream(noise_for(before, start, key, 0), model.latent_shape, model.device)
    alpha, sigma = (per_image(values, noisy) for values in model.schedule.coefficients(start))
    return decode(model, (noisy - sigma * stream.draw()) / alpha)


def correlation(x: Images, y: Images) -> Values:
    """Of the pixels of each pair of images."""
    u, v = (some.double().flatten(1) - some.double().flatten(1).mean(1, keepdim=True) for some in (x, y))
    return torch.nn.functional.cosine_similarity(u, v)


def mean_figure(name: str, values: Values) -> Figure:
    """The mean, with the interval of its standard error."""
    value, reach = values.mean().item(), NORMAL * values.std().item() / len(values) ** 0.5
    bounds = (value - reach, value + reach) if len(values) > 1 else (None, None)
    return Figure(name, value, len(values), *bounds)
