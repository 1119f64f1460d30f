"""nearfar's own generators for the table of `synthesis.py`: the default, its neighbors, and the ideas of the contest.

All share one fit of a domain. Each takes (model, fit, count, seed) like those of `baselines.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.far.baselines import BATCH, Made, Make, PatchDenoiser
from benchmarks.support.domains import NO_UPRIGHT, symmetric_copies
from nearfar.diffusion.denoiser import Denoiser
from nearfar.diffusion.local_prior import Profile
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import STEPS, LocalPrior, profile_of
from nearfar.domain.domain import OWN_SAMPLES, PULL, Domain
from nearfar.domain.file import load_domain, save_domain
from nearfar.domain.pilot import COUNT, pilot
from nearfar.domain.presets import PRESETS
from nearfar.domain.synthesis import synthesize, synthesizer
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample
from nearfar.sampling.own_domain import own_domain

MARGIN = 1.0

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "mosaic, before": {"even": False, "margin": MARGIN},
    "idea 1: even mosaic": {"margin": MARGIN},
    "family parents": {"family": "parents"},
    "family structured": {"family": "structured"},
    "family scalar": {"family": "scalar"},
}


def far_generators(domain: str, fits: Path | None) -> dict[str, Make]:
    """All of them by name, for a domain of `domains.py`. fits: where fitted domains are kept."""
    place = {"domain": domain, "fits": fits}
    made: dict[str, Make] = {name: partial(drawn, **place, **settings) for name, settings in SETTINGS.items()}
    for strength in (0.15, 0.3, 0.45):
        for pull in (PULL, 1.0):
            name = f"idea 2: noised {strength}, pull {pull:g}"
            made[name] = partial(returned, **place, strength=strength, pull=pull)
    for weight in (0.25, 0.5):
        made[f"idea 3: patches {weight}"] = partial(patched, **place, weight=weight)
    made |= {name: partial(published, domain=domain, preset=name) for name in PRESETS}
    return made | {"nearfar": partial(default, **place)}


def default(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str, fits: Path | None) -> Made:
    """What `nearfar domain fit` and `sample` make: the domain's own mixing, chosen by a pilot."""
    found, trials = pilot(model, fitted(model, fit, domain, seed, fits))
    print(f"pilot: {[(dict(trial.mixing), round(trial.copies, 3)) for trial in trials]}", flush=True)
    made, tried = synthesize(model, found, count, seed=seed, batch_size=BATCH), len(trials) * COUNT * found.steps
    return Made(made.images, found.steps + (fit_calls(found) + tried) / count, made.acceptance)


def drawn(
    model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str, fits: Path | None, **settings: Any
) -> Made:
    """Outputs of `synthesize`."""
    found = fitted(model, fit, domain, seed, fits)
    made = synthesize(model, found, count, seed=seed, batch_size=BATCH, **settings)
    return Made(made.images, found.steps + fit_calls(found) / count, made.acceptance)


def published(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str, preset: str) -> Made:
    """The paper's, as `nearfar domain fit --preset` and `sample` make it."""
    found = Domain.fit(model, fit, own=own_domain(model, OWN_SAMPLES), preset=preset)
    made = synthesize(model, found, count, seed=seed, batch_size=BATCH)
    return Made(made.images, found.steps + (found.steps - 1) * len(fit) / count, made.acceptance)


@dataclass(frozen=True, eq=False)
class WithProfile:
    """A denoiser that knows the profile of the network in it, so that fresh noise has the right variance."""

    denoiser: Denoiser
    profile: Profile | None

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x_t, t)


def returned(
    model: FrozenModel,
    fit: Tensor,
    count: int,
    seed: int,
    *,
    domain: str,
    fits: Path | None,
    strength: float,
    pull: float,
) -> Made:
    """Even mosaics noised and brought back by the pulled model, with the local-prior sampler's fresh noise."""
    found = fitted(model, fit, domain, seed, fits)
    before = synthesize(model, found, count, seed=seed, batch_size=BATCH, margin=MARGIN)
    toward = found.pulled(model, pull)
    toward = replace(toward, denoiser=WithProfile(toward.denoiser, profile_of(model.denoiser)))
    key = SecretKey.from_seed(seed)
    after = [
        local_sample(toward, part, strength=strength, key=key, solver=LocalPrior())
        for part in torch.split(before.images, BATCH)
    ]
    return Made(torch.cat(after), found.steps + fit_calls(found) / count + STEPS)


@dataclass(frozen=True, eq=False)
class Mixed:
    """`(1 - weight) D_model + weight D_patches`."""

    denoiser: Denoiser
    patches: PatchDenoiser
    weight: float

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(self.denoiser(x_t, t), self.patches(x_t, t), self.weight)


def patched(
    model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str, fits: Path | None, weight: float
) -> Made:
    """Even mosaics of inverted latents, denoised by the pulled model and the exact denoiser of patches."""
    found = fitted(model, fit, domain, seed, fits)
    making = synthesizer(model, found, seed=seed, margin=MARGIN)
    patches = PatchDenoiser(model.schedule, symmetric_copies(fit, domain))
    both = replace(making.model, denoiser=Mixed(making.model.denoiser, patches, weight))
    made = replace(making, model=both).make_all(range(count), BATCH)
    return Made(made.images, found.steps + fit_calls(found) / count, made.acceptance)


@lru_cache(maxsize=4)
def fitted(model: FrozenModel, fit: Tensor, domain: str, seed: int, fits: Path | None) -> Domain:
    """The domain of the images, kept in a file if there is a folder for it."""
    path = None if fits is None else fits / f"{domain}-{len(fit)}-{seed}.domain"
    if path is not None and path.exists():
        return load_domain(path)
    symmetry = "turn" if domain in NO_UPRIGHT else "mirror"
    found = Domain.fit(model, fit, own=own_domain(model, OWN_SAMPLES), symmetry=symmetry)
    if path is not None:
        save_domain(found, path)
    return found


def fit_calls(found: Domain) -> float:
    """Network calls of a fit, each for one image: there, back and features; own samples and their features."""
    figures = found.diagnostics
    return figures["images"] * (figures["calls_per_image"] + found.steps + 1) + OWN_SAMPLES * (STEPS + 1)
