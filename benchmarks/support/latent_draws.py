"""Draws of a Gaussian of latents, more of them than memory holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Generator

from nearfar.latents.covariance import Covariance, Latent, draw, white_noise
from nearfar.tensors import Latents

AT_ONCE = 32


def samples(mean: Latent, covariance: Covariance, scale: float, count: int, generator: Generator) -> Iterator[Latents]:
    """`count` draws of N(mean, scale^2 S), a few at a time, so that memory does not grow with `count`."""
    shape = (mean.shape[0], mean.shape[1], mean.shape[2])
    for start in range(0, count, AT_ONCE):
        noise = white_noise(min(AT_ONCE, count - start), shape, generator)
        yield mean + scale * draw(covariance, noise)
