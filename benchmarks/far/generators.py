"""nearfar's own generators for the table of `synthesis.py`: the default, its neighbors, every family, and three ideas.

"nearfar" is the default with its pilot. All share one fit of a domain and one set of the model's own samples. Each
takes (model, fit, count, seed) like those of `baselines.py`; ideas are numbered as in the prototype's notes: 2
symmetric copies as parents, 3 a short return through the pulled model after mixing as a mosaic, 5 rejection by the
guards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.far.baselines import BATCH, Made, Make
from benchmarks.support.domains import NO_UPRIGHT, symmetric_copies
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import STEPS
from nearfar.domain.domain import OWN_SAMPLES, PULL, STRENGTH, Domain
from nearfar.domain.pilot import COUNT, pilot
from nearfar.domain.synthesis import FAMILIES, FAMILY, synthesize, synthesizer
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import local_sample, own_samples

RETURN, HIGH, MOST_TRIES = 0.15, 0.9, 20
"""Strength of the short return; of the level where the model has nearly no say; outputs judged for each one wanted."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **{f"mosaic pull {weight:g}": {"fit_pull": weight} for weight in (0.0, 0.3)},
    "mosaic inverted without": {"fit_pull": 0.0, "pull": PULL},
    "mosaic of any parents": {"alike": 1.0},
    "mosaic margin 0.9": {"margin": 0.9},
    **{f"mosaic {parents} parents": {"parents": parents} for parents in (2, 4, 6)},
    **{family: {"family": family} for family in FAMILIES if family != FAMILY},
}


def far_generators(domain: str) -> dict[str, Make]:
    """All of them by name, for a domain of `domains.py`."""
    made: dict[str, Make] = {name: partial(drawn, domain=domain, **settings) for name, settings in SETTINGS.items()}
    made = {"nearfar": partial(default, domain=domain), **made}
    made["structured ratio 1"] = partial(drawn, domain=domain, family="structured", fit_pull=0.0, pull=1.0)
    made["structured pull 1"] = partial(
        drawn, domain=domain, strength=HIGH, family="structured", fit_pull=0.0, pull=1.0
    )
    made["mosaic symmetric"] = partial(drawn, domain=domain, copies=True)
    made["mosaic short return"] = partial(returned, domain=domain)
    made["mosaic guards"] = partial(guarded, domain=domain)
    return made


def default(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str) -> Made:
    """What `nearfar domain fit` and `sample` make: the domain's own mixing, chosen by a pilot."""
    found, trials = pilot(model, fitted(model, fit, domain, STRENGTH, False))
    print(f"pilot: {[(dict(trial.mixing), round(trial.copies, 3)) for trial in trials]}", flush=True)
    made, tried = synthesize(model, found, count, seed=seed, batch_size=BATCH), len(trials) * COUNT * found.steps
    return Made(made.images, found.steps + (fit_calls(found) + tried) / count, made.acceptance)


def drawn(
    model: FrozenModel,
    fit: Tensor,
    count: int,
    seed: int,
    *,
    domain: str,
    strength: float = STRENGTH,
    copies: bool = False,
    fit_pull: float = PULL,
    **settings: Any,
) -> Made:
    """Outputs of `synthesize`. fit_pull: the pull of the fit."""
    found = fitted(model, fit, domain, strength, copies, fit_pull)
    made = synthesize(model, found, count, seed=seed, batch_size=BATCH, **settings)
    return Made(made.images, found.steps + fit_calls(found) / count, made.acceptance)


def returned(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str) -> Made:
    """Outputs noised a little and brought back by the pulled model."""
    found, before = fitted(model, fit, domain, STRENGTH, False), drawn(model, fit, count, seed, domain=domain)
    pulled, key = found.pulled(model), SecretKey.from_seed(seed)
    after = [local_sample(pulled, part, strength=RETURN, key=key) for part in torch.split(before.images, BATCH)]
    return Made(torch.cat(after), before.calls + STEPS)


def guarded(model: FrozenModel, fit: Tensor, count: int, seed: int, *, domain: str) -> Made:
    """Outputs that the guards keep, as many as can be had from `MOST_TRIES` for each one wanted."""
    found = fitted(model, fit, domain, STRENGTH, False)
    making, kept, tried = synthesizer(model, found, seed=seed), [], 0
    while len(kept) < count and tried < MOST_TRIES * count:
        images = making.make(range(tried, tried + BATCH)).images
        judged = zip(images, found.guards.judge(model, images, BATCH), strict=True)
        kept += [image for image, judgment in judged if judgment.verdict == "keep"]
        tried += BATCH
    calls = ((found.steps + 1) * tried + fit_calls(found)) / count
    return Made(torch.stack(kept[:count]), calls, len(kept) / tried)


@lru_cache(maxsize=4)
def fitted(
    model: FrozenModel, fit: Tensor, domain: str, strength: float, copies: bool, fit_pull: float = PULL
) -> Domain:
    """The domain of the images, or of these and their symmetric copies."""
    symmetry = "none" if copies else "turn" if domain in NO_UPRIGHT else "mirror"
    images = symmetric_copies(fit, domain) if copies else fit
    return Domain.fit(model, images, own=own(model), strength=strength, pull=fit_pull, symmetry=symmetry)


@lru_cache(maxsize=1)
def own(model: FrozenModel) -> Tensor:
    return own_samples(model, OWN_SAMPLES)


def fit_calls(found: Domain) -> float:
    """Network calls of a fit, each for one image: there, back and features; own samples and their features."""
    figures = found.diagnostics
    return figures["images"] * (figures["calls_per_image"] + found.steps + 1) + OWN_SAMPLES * (STEPS + 1)
