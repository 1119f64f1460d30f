"""What new images of an unseen domain are measured against: baselines, as functions of the images they start from.

    forward_noised, locally_sampled    a fitted image noised part of the way and brought back (SDEdit, arXiv 2108.01073)
    paper_draws, paper_slerps          arXiv 2310.09213 as its authors coded it
    fine_tuned                         the same network trained on the same images (`fine_tune.py` writes it)
    collage                            parts of fitted images beside each other, without any network

Each takes (model, fit, count, seed): fit and the images made are float32 `(batch, channel, height, width)` in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from benchmarks.support.latent_draws import samples
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DDIM, STEPS, solve
from nearfar.latents.covariance import Scalar
from nearfar.latents.mixtures import mix_mosaics, neighbors
from nearfar.latents.shell import Target, Targets, accept, measure, slerp
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import denoise
from nearfar.sampling.local_sampling import local_sample, own_samples

BATCH = 32
PAPER_STEPS, SLERP_POINTS = 80, 20
PAPER_DIMENSION, PAPER_SIGMA, DISTANCE_TOLERANCE, ANGLE_TOLERANCE = 3 * 256 * 256, 0.975, 0.3, 0.1
MOST_CANDIDATES = 20_000
ALIKE = 0.2
"""The default's share of the fitted images that one of them is mixed with."""


@dataclass(frozen=True, eq=False)
class Made:
    """New images, and what making them was like. calls: network calls per image, all included."""

    images: Tensor
    calls: float
    acceptance: float | None = None


Make = Callable[[FrozenModel, Tensor, int, int], Made]


def forward_noised(model: FrozenModel, fit: Tensor, count: int, seed: int, *, strength: float) -> Made:
    """Fitted images, each about equally often, noised to a strength and brought back by DDIM: the start of CRDI."""
    generator = Generator().manual_seed(seed)

    def back(images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, generator=generator)
        noisy = model.schedule.add_noise(images, Level(strength).times(model.schedule, len(images)), noise)
        return denoise(model, noisy, strength=strength, steps=STEPS, solver=DDIM())

    return Made(torch.cat([back(images) for images in sources(fit, count, seed).split(BATCH)]), STEPS)


def locally_sampled(model: FrozenModel, fit: Tensor, count: int, seed: int, *, strength: float) -> Made:
    """The same with fresh noise on the way back: nearfar's near method.

    One key gives copies of an image one output, so each batch has its own, and no image twice.
    """
    batches = sources(fit, count, seed).split(min(BATCH, len(fit)))
    keys = (SecretKey.from_seed(1000 * seed + number) for number in range(len(batches)))
    made = [local_sample(model, images, strength=strength, key=key) for images, key in zip(batches, keys, strict=True)]
    return Made(torch.cat(made), STEPS)


def sources(fit: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the fitted images: all of them in random order, over and over."""
    order = torch.randperm(len(fit), generator=Generator().manual_seed(seed))
    return fit[order.repeat(math.ceil(count / len(fit)))[:count]]


def paper_draws(model: FrozenModel, fit: Tensor, count: int, seed: int, *, time: int) -> Made:
    """Version 1: draws of the latents' scalar Gaussian that pass the three tests."""
    latents, generator = paper_latents(model, fit, time), Generator().manual_seed(seed)
    covariance = Scalar.fit(latents)
    candidates = samples(latents.mean(0), covariance, 1.0, MOST_CANDIDATES, generator)
    return paper_images(model, latents, candidates, count, generator, time)


def paper_slerps(model: FrozenModel, fit: Tensor, count: int, seed: int, *, time: int) -> Made:
    """Version 2, final: 20 points between the latent of an image and such a draw, those that pass the three tests."""
    latents, generator = paper_latents(model, fit, time), Generator().manual_seed(seed)
    ends = samples(latents.mean(0), Scalar.fit(latents), 1.0, MOST_CANDIDATES // SLERP_POINTS, generator)
    shares = torch.arange(1, SLERP_POINTS + 1) / (SLERP_POINTS + 1)

    def between(end: Tensor) -> Tensor:
        one = latents[torch.randint(len(latents), (1,), generator=generator)]
        return slerp(one.expand(SLERP_POINTS, -1, -1, -1), end.expand(SLERP_POINTS, -1, -1, -1), shares)

    candidates = (between(end[None]) for some in ends for end in some)
    return paper_images(model, latents, candidates, count, generator, time)


@lru_cache(maxsize=2)
def paper_latents(model: FrozenModel, fit: Tensor, time: int) -> Tensor:
    """Explicit DDIM inversion, K = 80 nodes from time 0, where the image is taken to be as it is."""
    nodes = paper_nodes(time)
    return torch.cat([solve(model.denoiser, x, nodes.expand(len(x), -1), DDIM()) for x in fit.split(BATCH)])


def paper_nodes(time: int) -> Tensor:
    """`floor(k time / (K - 1))`, one row."""
    return torch.tensor([[float(k * time // (PAPER_STEPS - 1)) for k in range(PAPER_STEPS)]], dtype=torch.float64)


def paper_images(
    model: FrozenModel, latents: Tensor, candidates: Iterator[Tensor], count: int, generator: Generator, time: int
) -> Made:
    """Denoise `count` candidates on the way of the inversion, and on to the clean end."""
    chosen, rate = pick(candidates, latents, count, generator)
    nodes = torch.cat([paper_nodes(time).flip(1), torch.full((1, 1), model.schedule.clean_time)], 1)
    images = [solve(model.denoiser, x, nodes.expand(len(x), -1), DDIM()) for x in chosen.split(BATCH)]
    calls = PAPER_STEPS + (PAPER_STEPS - 1) * len(latents) / count
    return Made(torch.cat(images).clamp(-1, 1), calls, rate)


def pick(candidates: Iterator[Tensor], latents: Tensor, count: int, generator: Generator) -> tuple[Tensor, float]:
    """The first `count` candidates that pass the three tests, and the share that does.

    If there are not enough of them, the nearest to passing make up the number.
    """
    targets, kept, misses, passed = paper_targets(latents, generator), [], [], 0
    each = (targets.distance, targets.origin_angle, targets.pair_angle)
    for some in candidates:
        tested = accept(some, latents, targets, generator)
        off = [(tested.measured[:, k] - target.value).abs() / target.tolerance for k, target in enumerate(each)]
        kept.append(some)
        misses.append(torch.stack(off).amax(0).clamp(min=1))
        passed += int(tested.accepted.sum())
        if passed >= count:
            break
    worst = torch.cat(misses)
    return torch.cat(kept)[worst.argsort(stable=True)[:count]], passed / len(worst)


def paper_targets(latents: Tensor, generator: Generator) -> Targets:
    """Targets measured on the domain, tolerances the paper's for its 196,608 dimensions, carried over to these.

    On a shell `N(mean, s^2 I)` the deviation of a distance is proportional to s and the same in every dimension, that
    of an angle proportional to 1 / sqrt(dimension).
    """
    found, scalar = measure(latents, generator), Scalar.fit(latents)
    angle = ANGLE_TOLERANCE * math.sqrt(PAPER_DIMENSION / scalar.dimension)
    distance = DISTANCE_TOLERANCE * math.sqrt(scalar.variance) / PAPER_SIGMA
    return Targets(
        Target(found.distance.value, distance),
        Target(found.origin_angle.value, angle),
        Target(found.pair_angle.value, angle),
    )


def fine_tuned(model: FrozenModel, fit: Tensor, count: int, seed: int, *, folder: Path) -> Made:
    """Samples of a fine-tuned network from pure noise, by the solver and the steps of the others."""
    return Made(own_samples(load_model(folder), count, seed=seed), STEPS)


def collage(_: FrozenModel, fit: Tensor, count: int, seed: int, *, margin: float) -> Made:
    """The default's mosaics of three, in clean pixels and without a network, at least `margin` from each fitted image.

    The margin's unit is the guards': the 5 % quantile of the fitted images' distances to their nearest other one.
    """
    generator, mean = Generator().manual_seed(seed), fit.mean(0)
    alike, images = neighbors(fit, round(ALIKE * len(fit))), list[Tensor]()
    unit = torch.cdist(fit.flatten(1), fit.flatten(1)).fill_diagonal_(math.inf).amin(1).quantile(0.05)
    while len(images) < count:
        image = mix_mosaics(fit, mean, 1, generator, alike=alike).latents.clamp(-1, 1)
        if torch.cdist(image.flatten(1), fit.flatten(1)).min() >= margin * unit:
            images.append(image)
    return Made(torch.cat(images), 0)
