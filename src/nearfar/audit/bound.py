"""The formal bound: local sampling as a Gaussian mechanism on what the model is shown. Printed as what it is."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, inf
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from nearfar.audit.figure import Figure

DELTA = 1e-5
MEANING = (
    "of two candidate originals at this distance, for a model that was not trained on them: no statement about any"
    " one attack. Useful protection needs mu of about 1 or below"
)


def departure(settings: Mapping[str, Any]) -> str:
    """What a run with these settings did besides adding noise of one level to whole images; empty if nothing.

    Then the bound says nothing of its outputs.
    """
    if not settings:
        return "no record of the run was found beside the outputs"
    if settings.get("command") != "anonymize":
        return f"the outputs are of {settings.get('command')}, not of anonymize"
    if "regions" in settings:
        return "pixels outside the regions are copied"
    if "per_image" in settings:
        return "the strength of each image was chosen by looking at the original"
    return ""


def bound(images: Shaped[Tensor, "images ..."], sigma: float, delta: float = DELTA) -> list[Figure]:
    """`mu = distance / sigma` for the least, mean and greatest distance of two of the images, and epsilon at delta.

    images: as the model noises them (pixels in [-1, 1], or latents). sigma: noise to signal; infinite for strength 1.
    By post-processing nothing that is made of the noisy image tells more (Dong et al., arXiv 1905.02383, theorem 2.7).
    """
    apart = torch.pdist(images.double().flatten(1))
    figures = []
    for name, distance in (("least", apart.min()), ("mean", apart.mean()), ("greatest", apart.max())):
        mu = distance.item() / sigma
        note = f"distance {distance:.4g}, sigma {sigma:.4g}, {MEANING}"
        figures.append(Figure(f"Gaussian mechanism, mu at the {name} distance", mu, len(apart), note=note))
        figures.append(
            Figure(f"Gaussian mechanism, epsilon at delta {delta:g}, {name} distance", epsilon(mu, delta), len(apart))
        )
    return figures


def epsilon(mu: float, delta: float = DELTA) -> float:
    """The least epsilon of a Gaussian mechanism with sensitivity over deviation `mu`: analytic, by bisection."""
    low, high = 0.0, 1.0
    if mu == 0 or spent(0.0, mu) <= delta:
        return 0.0
    if mu == inf:
        return inf
    while spent(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle, mu) > delta else (low, middle)
    return high


def spent(eps: float, mu: float) -> float:
    """The least delta at epsilon: Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu) (Balle and Wang, ICML 2018, th. 8).

    The second term is made from logarithms, because exp(eps) overflows.
    """
    first, second = log_normal(mu / 2 - eps / mu), eps + log_normal(-mu / 2 - eps / mu)
    return exp(first) * -torch.expm1(torch.tensor(min(second - first, 0.0), dtype=torch.float64)).item()


def log_normal(x: float) -> float:
    """The logarithm of the normal distribution function."""
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))
