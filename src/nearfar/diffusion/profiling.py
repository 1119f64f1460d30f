"""A frozen network's profile, measured on clean states: what it does not know of them at each noise level.

Two estimates of the share `J = v / rho^2` of the noise's variance that is left in the prediction `D` of `x_0 + rho z`:

    E |D - x_0|^2 / rho^2          the error itself; adds what the network does wrong, which shows where J is near 1
    E (D - x_0) z / rho            how it follows the noise (Stein's lemma); of large spread where J is near 0

so each is used where it is good, the second for the share `J` of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.diffusion.denoiser import Denoiser, predict
from nearfar.diffusion.local_prior import Profile, band_of, frequencies
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.tensors import Images, Latents, Times, per_image, unpatched

LEVELS = 25
LEAST, MOST = 1e-9, 0.995
"""Bounds of the share: beyond them a local prior has no variance, or all of it."""
NEIGHBORS = 0.1
"""The noisier estimate is averaged over bands within this share of a band's own frequency."""

Shares = Float64[Tensor, "channels bands"]


@torch.inference_mode()
def measured(
    denoiser: Denoiser,
    clean: Latents,
    factor: int,
    *,
    levels: int = LEVELS,
    batch_size: int = 32,
    seed: int = 0,
    on_call: Callable[[], None] | None = None,
) -> Profile:
    """The profile of a denoiser on clean states that are like those it will make.

    factor: pixels along the side of the patches that they hold. Cost: `levels` network calls for each batch.
    """
    side = clean.shape[2] * factor
    bands = int(band_of(side, clean.shape[3] * factor, side, 1 << 20).max()) + 1
    ratios = levels_of(denoiser.schedule, levels)
    directions = channel_directions(clean, factor)
    profile = Profile(ratios, torch.ones(levels, len(directions), bands).double(), directions, side, factor)
    generator, rows = torch.Generator().manual_seed(seed), []
    for rho in ratios.tolist():
        sums = []
        for part in torch.split(clean, batch_size):
            sums.append(shares(denoiser, part, rho, profile, generator))
            if on_call:
                on_call()
        share = blended(*(torch.stack(parts).sum(0) / len(clean) for parts in zip(*sums, strict=True)))
        rows.append(rho**2 * share / (1 - share))
    return replace(profile, variance=torch.stack(rows))


def levels_of(schedule: NoiseSchedule, count: int) -> Times:
    """Noise to signal from the first level that the network knows to the last but one, evenly in its logarithm."""
    first, last = schedule.ratio(torch.stack([schedule.times[1], schedule.times[-2]])).log().tolist()
    return torch.linspace(first, last, count, dtype=torch.float64).exp()


def shares(
    denoiser: Denoiser, clean: Latents, rho: float, profile: Profile, generator: torch.Generator
) -> tuple[Shares, Shares]:
    """Both estimates of the share, summed over the states. One network call."""
    times = denoiser.schedule.time_of_sigma(torch.full((len(clean),), rho, dtype=torch.float64))
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    alpha, sigma = (per_image(c, clean) for c in denoiser.schedule.coefficients(times))
    estimate, _ = predict(denoiser, alpha * clean + sigma * noise, times)
    error, drawn = (frequencies(states, profile).double().cpu() for states in (estimate - clean, noise))
    return by_band(error.square(), profile) / rho**2, by_band(error * drawn, profile) / rho


def by_band(values: Tensor, profile: Profile) -> Shares:
    """Means over the frequencies of each band, summed over the images."""
    bands = profile.variance.shape[-1]
    place = band_of(*values.shape[2:], profile.side, bands).flatten()
    sums = values.new_zeros(values.shape[1], bands).index_add_(1, place, values.sum(0).flatten(1))
    return sums / torch.bincount(place, minlength=bands)


def blended(error: Shares, followed: Shares) -> Shares:
    """One share of the two estimates."""
    weight = error.clamp(0, 1)
    return ((1 - weight) * error + weight * smoothed(followed)).clamp(LEAST, MOST)


def smoothed(shares: Shares) -> Shares:
    """Averages over neighboring bands, the more of them the higher the frequency."""
    place = torch.arange(shares.shape[1], dtype=torch.float64)
    near = (place[:, None] - place).abs() <= NEIGHBORS * place[:, None]
    weights = near * place.clamp(min=0.5)  # a band has as many frequencies as it is far out
    averages: Tensor = shares @ (weights / weights.sum(1, keepdim=True)).T
    return averages


def channel_directions(states: Images, factor: int) -> Float64[Tensor, "channels channels"]:
    """Rows along which the channels of what the states hold do not go together; of largest variance first.

    The signs are those that make each row's largest entry positive.
    """
    images = unpatched(states.double(), factor).transpose(0, 1).flatten(1)
    _, columns = torch.linalg.eigh(torch.cov(images) if len(images) > 1 else torch.ones(1, 1, dtype=torch.float64))
    rows = columns.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    directions: Tensor = rows * largest.sign()
    return directions
