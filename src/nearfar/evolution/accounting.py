"""What noisy votes cost: the exact (epsilon, delta) of some rounds with noise of a discrete Gaussian.

One image (or person) more or less changes one count by one, in each round. If `x` is the noise of that count, of
variance `v`, the privacy loss of the round is `(1 - 2 x) / (2 v)` (Canonne, Kamath, Steinke, arXiv 2004.00010), so that
of all rounds depends on the sum of their noises alone, whose distribution is computed here. Where the deviation is
above 1 or so, this is the Gaussian mechanism with `mu = sqrt(rounds) / deviation` (`audit/model_attacks.py:epsilon`).
"""

from __future__ import annotations

from math import ceil, inf, sqrt

import numpy as np

from nearfar.errors import UsageError

DELTA = 1e-5
SLACK = 1e-12
"""Added to every delta: more than the transform's rounding and the tails that are cut can hide."""
TAIL = 12.0
"""Deviations of the noise beyond which less than 1e-30 of it lies."""
DIGITS = 4
"""Decimals of a deviation, which is rounded up."""
GREATEST = 1e3
"""The largest deviation that is looked for."""


def delta_of(epsilon: float, deviation: float, rounds: int) -> float:
    """The least delta at which `rounds` rounds of this deviation are (epsilon, delta) differentially private."""
    sums, chances = sum_of_noises(deviation, rounds)
    losses = (rounds - 2 * sums) / (2 * deviation**2)
    return float((chances * -np.expm1(np.minimum(epsilon - losses, 0.0))).sum()) + SLACK


def sum_of_noises(deviation: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """The values that a sum of independent discrete Gaussians takes, and the chance of each."""
    reach = ceil(TAIL * deviation) + 1
    values = np.arange(-reach, reach + 1)
    one = np.exp(-(values**2) / (2 * deviation**2))
    length = 2 * reach * rounds + 1
    chances = np.fft.irfft(np.fft.rfft(one / one.sum(), length) ** rounds, length)
    return np.arange(length) - reach * rounds, chances.clip(0)


def epsilon_of(deviation: float, rounds: int, delta: float = DELTA) -> float:
    """The least epsilon at this delta; infinite without noise."""
    check_delta(delta)
    if deviation == 0:
        return inf
    low, high = 0.0, 1.0
    while delta_of(high, deviation, rounds) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, deviation, rounds) > delta else (low, middle)
    return high


def deviation_for(epsilon: float, delta: float, rounds: int) -> float:
    """The least deviation of the noise on each vote, to four decimals, that keeps all rounds within the budget."""
    check_epsilon(epsilon)
    check_delta(delta)
    if epsilon == inf:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(epsilon, high, rounds) > delta:
        low, high = high, 2 * high
        if high > GREATEST:
            raise UsageError(f"epsilon {epsilon:g} at delta {delta:g} needs more noise than any vote bears: raise it")
    scale = 10**DIGITS
    least, most = max(int(low * scale), 1), int(high * scale)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if delta_of(epsilon, middle / scale, rounds) > delta else (least, middle)
    return float(most / scale)


def rate_of(deviation: float, rounds: int) -> float:
    """`mu` of the Gaussian mechanism that the rounds come to."""
    return inf if deviation == 0 else sqrt(rounds) / deviation


def check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise UsageError(f"epsilon must be above 0, got {epsilon:g}: 1 is strong, 10 is weak, inf promises nothing")


def check_delta(delta: float) -> None:
    if not 1e-10 <= delta < 1:
        raise UsageError(f"delta must be from 1e-10 to below 1, got {delta:g}: less than one over the images")
