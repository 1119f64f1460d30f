"""What new images of an unseen domain are measured against: baselines, as functions of the images they start from.

    forward_noised, locally_sampled    a fitted image noised part of the way and brought back (SDEdit, arXiv 2108.01073)
    fine_tuned                         the same network trained on the same images (`fine_tune.py` writes it)
    collage                            parts of fitted images beside each other, without any network
    patch_denoised                     what diffusion with the exact denoiser of patches makes, without any network

Each takes (model, fit, count, seed): fit and the images made are float32 `(batch, channel, height, width)` in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from benchmarks.support.domains import symmetric_copies
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import DDIM, STEPS, Sampling, solve
from nearfar.domain.synthesis import ALIKE, FEWEST_ALIKE
from nearfar.latents.mixtures import as_likeness, evenly, mix_mosaics, neighbors, togetherness
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.sampling.inversion import denoise
from nearfar.sampling.local_sampling import local_sample, own_samples

BATCH = 32


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


def fine_tuned(model: FrozenModel, fit: Tensor, count: int, seed: int, *, folder: Path) -> Made:
    """Samples of a fine-tuned network from pure noise, by the solver and the steps of the others."""
    return Made(own_samples(load_model(folder), count, seed=seed), STEPS)


def collage(_: FrozenModel, fit: Tensor, count: int, seed: int, *, margin: float, kept: bool = False) -> Made:
    """The default's mosaics of three, in clean pixels and without a network, at least `margin` from each fitted image.

    The margin's unit is the guards': the 5 % quantile of the fitted images' distances to their nearest other one.
    kept: all images are mixed in evenly, and places divided by `sqrt(w^T C w)`, so that the variance is the domain's.
    """
    generator, mean, images = Generator().manual_seed(seed), fit.mean(0), list[Tensor]()
    near = neighbors(fit, max(round(ALIKE * len(fit)), FEWEST_ALIKE))
    alike = evenly(near) if kept else as_likeness(near)
    together = togetherness(fit, alike) if kept else None
    unit = torch.cdist(fit.flatten(1), fit.flatten(1)).fill_diagonal_(math.inf).amin(1).quantile(0.05)
    while len(images) < count:
        image = mix_mosaics(fit, mean, 1, generator, alike=alike, together=together).latents.clamp(-1, 1)
        if torch.cdist(image.flatten(1), fit.flatten(1)).min() >= margin * unit:
            images.append(image)
    return Made(torch.cat(images), 0)


@dataclass(frozen=True, eq=False)
class PatchDenoiser:
    """The exact denoiser of patches: what local, shift-equivariant networks come to (Kamb and Ganguli, 2412.20292).

    Each block of 2 x 2 pixels is the mean of those of all fitted images, turned and moved by up to a pixel around its
    place, by the likelihood of the noisy patch around it; the patch shrinks with the noise as the receptive field of
    a network does. The patches' sizes by noise to signal are a choice of ours (`SIZES`), made on nothing.
    """

    schedule: NoiseSchedule
    bank: Tensor
    block: int = 2

    def size(self, ratio: float) -> int:
        return next(size for least, size in SIZES if ratio >= least)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value.flatten()[0]) for value in self.schedule.coefficients(t))
        border = (self.size(sigma / max(alpha, 1e-9)) - self.block) // 2
        noisy, bank = (pad(some, [border + extra] * 4, mode="reflect") for some, extra in ((x_t, 0), (self.bank, 1)))
        clean = torch.empty_like(x_t)
        for y in range(0, x_t.shape[2], self.block):
            for x in range(0, x_t.shape[3], self.block):
                patches = self.around(bank, y, x, 2 * border + self.block)
                seen = noisy[:, :, y : y + 2 * border + self.block, x : x + 2 * border + self.block].flatten(1)
                flat = patches.flatten(1)
                away = alpha * seen @ flat.T - alpha**2 / 2 * flat.square().sum(1)
                middle = patches[:, :, border : border + self.block, border : border + self.block].flatten(1)
                mean = (away / max(sigma, 1e-6) ** 2).softmax(1) @ middle
                clean[:, :, y : y + self.block, x : x + self.block] = mean.view(-1, x_t.shape[1], *[self.block] * 2)
        return clean

    def around(self, bank: Tensor, y: int, x: int, side: int) -> Tensor:
        """The patches of all fitted images around a place, moved by up to a pixel."""
        moves = [(down, right) for down in range(3) for right in range(3)]
        return torch.cat([bank[:, :, y + i : y + i + side, x + j : x + j + side] for i, j in moves])


SIZES = ((4.0, 22), (1.5, 14), (0.5, 10), (0.0, 6))
"""Patches' sides in pixels from a noise to signal on."""


def patch_denoised(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str, steps: int = 15) -> Made:
    """Deterministic samples of `PatchDenoiser` from pure noise, with no network."""
    noise = torch.randn(count, *fit.shape[1:], generator=Generator().manual_seed(seed))
    denoiser = PatchDenoiser(model.schedule, symmetric_copies(fit, domain))
    grid = Sampling(Level(0.98), steps, DDIM()).grid(model.schedule, count)
    return Made(solve(denoiser, noise, grid, DDIM()).clamp(-1, 1), 0)
