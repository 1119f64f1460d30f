"""A trial run before many outputs are made: the least demand on mixtures with which outputs are no copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearfar.diffusion.solver import OnStep
from nearfar.domain.domain import Domain
from nearfar.domain.guards import Judgment, rates
from nearfar.domain.synthesis import Synthesizer, synthesizer
from nearfar.errors import ModelWarning, UsageError
from nearfar.models.model import FrozenModel
from nearfar.sampling.local_sampling import BATCH

COUNT, LIMIT = 96, 0.08
CANDIDATES: tuple[Mapping[str, Any], ...] = (
    {"parents": 3, "margin": 0.0},
    {"parents": 3, "margin": 1.0},
    {"parents": 3, "margin": 1.25},
    {"parents": 3, "margin": 1.5},
    {"parents": 4, "margin": 1.5},
)
"""From likeness to novelty: the farther mixtures must be from the fitted images, the less they copy."""


@dataclass(frozen=True)
class Trial:
    """Settings of `synthesis.mosaic`, and the shares that the guards found (`guards.rates`).

    Of all outputs, or of those up to the batch at which more were copies than all of them may have.
    """

    mixing: Mapping[str, Any]
    rates: Mapping[str, float]

    @property
    def copies(self) -> float:
        """The greater share of copies, in latents and in features."""
        return copies_of(self.rates)


def pilot(
    model: FrozenModel,
    domain: Domain,
    *,
    count: int = COUNT,
    limit: float = LIMIT,
    candidates: Sequence[Mapping[str, Any]] = CANDIDATES,
    batch_size: int = BATCH,
    **options: Any,
) -> tuple[Domain, tuple[Trial, ...]]:
    """The domain with the first of the candidates that copies no more than `limit`, and what was tried.

    An output is a copy in clean latents or in features if it is nearer to a fitted image than the 5 % quantile of the
    fitted images' distances to one another, so new images of the domain reach about 0.05. limit: in (0, 1), for either.
    Candidates after the first that cannot be made (too few images, or none of 10,000 mixtures far enough away) are
    passed over. Warns if no candidate keeps the limit, and takes the one that copies least; warns also if the guards
    flag most of what it makes.
    options: of `synthesize`; the seed is 1 unless given. Cost: the domain's `steps` network calls, and one for the
    guards, for each batch of each candidate that is tried; a candidate is left at the batch that settles that it copies
    too much, and outputs that begin where those of an earlier candidate did are not made again.
    """
    tried: list[Trial] = []
    known: Known = {}
    for mixing in candidates:
        try:
            own = {"seed": 1, **options, **mixing}
            tried.append(Trial(mixing, trial_rates(model, domain, Extent(count, limit, batch_size), own, known)))
        except UsageError:
            if not tried:
                raise
            continue
        if tried[-1].copies <= limit:
            break
    chosen = min(tried, key=lambda trial: (trial.copies > limit, trial.copies))
    if chosen.copies > limit:
        text = (
            f"however images are mixed, more than {limit:.0%} of the outputs are copies ({chosen.copies:.0%} at least)"
        )
        warnings.warn(f"{text}: give more images, or keep what the guards keep", ModelWarning, stacklevel=2)
    if chosen.rates["flag"] > 0.5:
        text = f"the guards flag {chosen.rates['flag']:.0%} of the outputs, mostly for layout or detail"
        warnings.warn(f"{text}: look at a few, or try less pull or the family parents", ModelWarning, stacklevel=2)
    return replace(domain, mixing=chosen.mixing), tuple(tried)


@dataclass(frozen=True)
class Extent:
    """How many outputs of a candidate are looked at, a batch at a time, and which share of them may be copies."""

    count: int
    limit: float
    batch_size: int


Known = dict[tuple[int, bytes], Judgment]
"""What is known of outputs, by their number and where they begin: candidates often begin at the same place."""


def trial_rates(
    model: FrozenModel, domain: Domain, extent: Extent, options: Mapping[str, Any], known: Known
) -> dict[str, float]:
    """What the guards find in a candidate's outputs, until all are judged or too many are copies, whatever the rest."""
    making = synthesizer(model, domain, **{name: value for name, value in options.items() if name != "on_step"})
    judged: list[Judgment] = []
    for first in range(0, extent.count, extent.batch_size):
        numbers = range(first, min(first + extent.batch_size, extent.count))
        judged += judgments(model, making, numbers, known, options.get("on_step"))
        found = rates(judged)
        if copies_of(found) * len(judged) > extent.limit * extent.count:
            break
    return found


def judgments(
    model: FrozenModel, making: Synthesizer, numbers: Sequence[int], known: Known, on_step: OnStep | None
) -> list[Judgment]:
    """Of the outputs of these numbers; those that begin where an earlier one of the same number did are not made again.

    Cost: the domain's `steps` network calls, and one for the guards, where any is new.
    """
    starts = dict(zip(numbers, making.starts(numbers), strict=True))
    keys = {number: (number, start.latent.numpy().tobytes()) for number, start in starts.items()}
    new = [number for number in numbers if keys[number] not in known]
    if new:
        made = making.make(new, on_step, tuple(starts[number] for number in new))
        verdicts = making.domain.guards.judge(model, made.images, len(new))
        known.update(zip((keys[number] for number in new), verdicts, strict=True))
    return [known[keys[number]] for number in numbers]


def copies_of(found: Mapping[str, float]) -> float:
    """The greater share of copies, in latents and in features."""
    return max(found["copies_in_latents"], found["copies_in_features"])
