"""Was this image among those that a model was trained on, or that outputs were made from? Told by two signs.

Each sign gives every image a number that is higher for members; the figure is how often a member has a higher one than
an image that is no member (area under the curve, 0.5 for guessing), with DeLong's interval (Biometrics 44, 1988).
Members and others should differ in nothing else: the same source, the same preparation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.audit.figure import Figure
from nearfar.audit.view import Vectors, similarities
from nearfar.diffusion.level import Level
from nearfar.diffusion.noise import NoiseStream, SecretKey
from nearfar.errors import UsageError
from nearfar.metrics.intervals import NORMAL
from nearfar.models.model import FrozenModel
from nearfar.sampling.trajectory import encode
from nearfar.tensors import Images, per_image

LEVELS, DRAWS, BATCH = (0.1, 0.3, 0.5), 2, 32
"""Strengths at which the model is asked, draws of noise at each, images of a call."""

Signs = Float64[Tensor, " _"]


def membership_by_outputs(name: str, outputs: Vectors, members: Vectors, others: Vectors, note: str = "") -> Figure:
    """Whether members lie nearer to their nearest output than images that are none. name: of the network."""
    inside, outside = (similarities(some, outputs).amax(1) for some in (members, others))
    return area("membership by the nearest output, area under the curve", inside, outside, name, note)


def membership_by_loss(
    model: FrozenModel, members: Images, others: Images, levels: Sequence[float] = LEVELS
) -> list[Figure]:
    """Whether the model denoises its members better. The noise is that of a fixed key.

    Images: float32 in [-1, 1], of the model's size. Cost: 2 network calls for each batch of 32 images and each level.
    """
    figures = []
    for level in levels:
        inside, outside = (-denoising_loss(model, some, level) for some in (members, others))
        name = f"membership by the denoising loss at strength {level:g}, area under the curve"
        figures.append(area(name, inside, outside, "the model itself"))
    return figures


@torch.inference_mode()
def denoising_loss(model: FrozenModel, images: Images, strength: float) -> Signs:
    """The mean squared error of the predicted image, in units of the noise: that of the predicted noise."""
    losses = [torch.zeros(0, dtype=torch.float64)]
    for number, some in enumerate(torch.split(images, BATCH)):
        start = Level(strength).times(model.schedule, len(some))
        key = SecretKey.from_seed(number)
        streams = [key.for_image(image, strength) for image in some]
        noise = NoiseStream(streams, model.latent_shape, model.device)
        latents = encode(model, some, noise)
        alpha, sigma = (per_image(values, latents) for values in model.schedule.coefficients(start))
        loss = torch.zeros(len(some), dtype=torch.float64)
        for _ in range(DRAWS):
            clean = model.denoiser(alpha * latents + sigma * noise.draw(), start)
            loss += ((clean - latents) * alpha / sigma).square().flatten(1).mean(1).double().cpu() / DRAWS
        losses.append(loss)
    return torch.cat(losses)


def area(name: str, members: Signs, others: Signs, network: str, note: str = "") -> Figure:
    """The area under the curve, with its interval."""
    if min(len(members), len(others)) < 2:
        raise UsageError(f"membership needs at least 2 of each, got {len(members)} members and {len(others)} others")
    over, under = placed(members, others), 1 - placed(others, members)
    value = over.mean().item()
    reach = NORMAL * (over.var() / len(members) + under.var() / len(others)).sqrt().item()
    counts = f"{len(members)} members, {len(others)} others"
    remark = "; ".join(text for text in (counts, note) if text)
    low, high = max(value - reach, 0.0), min(value + reach, 1.0)
    return Figure(name, value, len(members) + len(others), low, high, 0.5, network, note=remark)


def placed(signs: Signs, others: Signs) -> Signs:
    """The share of the others below each sign; those that equal it count half."""
    line = others.sort().values
    below = torch.searchsorted(line, signs) + torch.searchsorted(line, signs, right=True)
    return below.double() / (2 * len(line))
