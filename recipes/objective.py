"""What training a diffusion model minimizes: the error of its prediction, and of its variance if it learns one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Predict = Literal["noise", "sample", "v"]


@dataclass(frozen=True, eq=False)
class Losses:
    """Per image, each `(batch,)`. weighted: to be minimized. velocity: squared error in v, whatever is predicted."""

    weighted: Tensor
    velocity: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """Prediction of the noise, of the clean image or of v, weighted by min-SNR (Hang et al., arXiv 2303.09556).

    alphas_cumprod: `(times,)`. min_snr: above this signal-to-noise ratio the weight in the clean image stays.
    learned_variance: the network gives twice the channels, the second half between the two bounds of the variance of a
    step (Nichol and Dhariwal, arXiv 2102.09672, eq. 15); their bound, times a thousandth, is added.
    """

    alphas_cumprod: Tensor
    predict: Predict = "noise"
    min_snr: float = 5.0
    learned_variance: bool = False

    def losses(self, output: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Losses:
        """Of a network's output `(batch, channels, height, width)` for `noisy(clean, noise, times)`."""
        signal = self.alphas_cumprod[times][:, None, None, None]
        answer, variance = output.float().chunk(2, dim=1) if self.learned_variance else (output.float(), None)
        errors = (answer - self.target(clean, noise, signal)).square().mean((1, 2, 3))
        snr = (signal / (1 - signal)).flatten()
        weighted = errors * self.weight(snr)
        if variance is not None:
            found = self.clean_image(answer.detach(), self.noisy(clean, noise, times), signal)
            weighted = weighted + self.bound(clean, found, self.noisy(clean, noise, times), variance, times) / 1000
        return Losses(weighted, errors.detach() * self.in_velocity(snr))

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal = self.alphas_cumprod[times][:, None, None, None]
        return signal.sqrt() * clean + (1 - signal).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
        if self.predict == "v":
            return signal.sqrt() * noise - (1 - signal).sqrt() * clean
        return noise if self.predict == "noise" else clean

    def clean_image(self, answer: Tensor, noisy: Tensor, signal: Tensor) -> Tensor:
        """The clean image that an answer means, within [-1, 1]."""
        if self.predict == "v":
            answer = signal.sqrt() * noisy - (1 - signal).sqrt() * answer
        elif self.predict == "noise":
            answer = (noisy - (1 - signal).sqrt() * answer) / signal.sqrt()
        return answer.clamp(-1, 1)

    def weight(self, snr: Tensor) -> Tensor:
        """Of the squared error of the answer. The noise has min(snr, gamma) in the clean image, the others one more."""
        if self.predict == "noise":
            return snr.clamp(max=self.min_snr) / snr
        in_clean = (snr + 1).clamp(max=self.min_snr + 1)
        return in_clean if self.predict == "sample" else in_clean / (snr + 1)

    def in_velocity(self, snr: Tensor) -> Tensor:
        """What turns a squared error of the answer into one of v."""
        return {"noise": (snr + 1) / snr, "sample": snr + 1, "v": torch.ones_like(snr)}[self.predict]

    def bound(self, clean: Tensor, found: Tensor, noisy: Tensor, variance: Tensor, times: Tensor) -> Tensor:
        """Bits per element of the variational bound of one step, times the number of steps, `(batch,)`."""
        step = Step.at(self.alphas_cumprod, times)
        share = (variance + 1) / 2
        log_variance = share * step.log_most + (1 - share) * step.log_least
        mean, truth = (step.mean(image, noisy) for image in (found, clean))
        divergence = normal_divergence(truth, step.log_least, mean, log_variance)
        likelihood = -log_likelihood_of_levels(clean, mean, (log_variance / 2).exp())
        first = (times == 0)[:, None, None, None]
        return torch.where(first, likelihood, divergence).mean((1, 2, 3)) / math.log(2) * len(self.alphas_cumprod)


@dataclass(frozen=True, eq=False)
class Step:
    """The true step back from a time to the one before: its mean's two factors and both bounds of its log variance."""

    of_clean: Tensor
    of_noisy: Tensor
    log_least: Tensor
    log_most: Tensor

    @classmethod
    def at(cls, alphas_cumprod: Tensor, times: Tensor) -> Step:
        """Of each image's time; the first time has the lower bound of the second (its own is zero)."""
        here = alphas_cumprod.double()
        before = torch.cat([torch.ones_like(here[:1]), here[:-1]])
        beta = 1 - here / before
        least = beta * (1 - before) / (1 - here)
        least = torch.cat([least[1:2], least[1:]])
        factors = (beta * before.sqrt() / (1 - here), (1 - before) * (1 - beta).sqrt() / (1 - here))
        rows = (*factors, least.log(), beta.log())
        return cls(*(row.float()[times][:, None, None, None] for row in rows))

    def mean(self, clean: Tensor, noisy: Tensor) -> Tensor:
        return self.of_clean * clean + self.of_noisy * noisy


def normal_divergence(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of one normal from another, element by element, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (difference.exp() - difference - 1 + (mean - other).square() * (-other_log_variance).exp())


def log_likelihood_of_levels(clean: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log of the mass that a normal gives to the 8-bit level of each element; both ends take their whole tail."""
    half = 1 / 255
    above = torch.special.ndtr((clean - mean + half) / deviation)
    below = torch.special.ndtr((clean - mean - half) / deviation)
    above = torch.where(clean > 0.999, torch.ones_like(above), above)
    below = torch.where(clean < -0.999, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()


def stratified_times(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """One time in each of `count` equal parts of the schedule, so that no batch misses a noise level."""
    device = generator.device
    order = torch.randperm(count, generator=generator, device=device)
    strata = order + torch.rand(count, generator=generator, device=device)
    return (strata / count * levels).long().clamp(max=levels - 1)
