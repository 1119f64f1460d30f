"""A trial run before many outputs are made: the least demand on mixtures with which outputs are no copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearfar.domain.domain import Domain
from nearfar.domain.guards import Judgment, rates
from nearfar.domain.synthesis import synthesize
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
        return max(self.rates["copies_in_latents"], self.rates["copies_in_features"])


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
    too much.
    """
    tried: list[Trial] = []
    for mixing in candidates:
        try:
            tried.append(trial_of(model, domain, mixing, count, limit, batch_size, {"seed": 1, **options}))
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


def trial_of(
    model: FrozenModel,
    domain: Domain,
    mixing: Mapping[str, Any],
    count: int,
    limit: float,
    batch_size: int,
    options: Mapping[str, Any],
) -> Trial:
    """Outputs of a candidate, judged batch by batch until all are or too many are copies, whatever else there is."""
    judged: list[Judgment] = []
    for first in range(0, count, batch_size):
        size = min(batch_size, count - first)
        made = synthesize(model, domain, size, first=first, batch_size=batch_size, **{**options, **mixing})
        judged += domain.guards.judge(model, made.images, batch_size)
        found = Trial(mixing, rates(judged))
        if found.copies * len(judged) > limit * count:
            break
    return found
