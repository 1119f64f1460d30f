"""The objective against closed forms, scipy and diffusers' own scheduler."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
from objective import Objective, Step, log_likelihood_of_levels, normal_divergence

SCHEDULE = DDPMScheduler().alphas_cumprod


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return clean, torch.randn(clean.shape, generator=generator), torch.tensor([0, 1, 50, 300, 700, 999])


@pytest.mark.parametrize("predict", ["noise", "sample", "v"])
def test_targets_are_those_of_diffusers(predict):
    clean, noise, times = batch()
    objective, scheduler = Objective(SCHEDULE, predict), DDPMScheduler()
    signal = SCHEDULE[times][:, None, None, None]
    torch.testing.assert_close(objective.noisy(clean, noise, times), scheduler.add_noise(clean, noise, times))
    expected = {"noise": noise, "sample": clean, "v": scheduler.get_velocity(clean, noise, times)}[predict]
    torch.testing.assert_close(objective.target(clean, noise, signal), expected)


@pytest.mark.parametrize("predict", ["noise", "sample", "v"])
def test_one_error_costs_the_same_in_velocity_whatever_is_predicted(predict):
    clean, noise, times = batch()
    objective = Objective(SCHEDULE, predict)
    signal = SCHEDULE[times][:, None, None, None]
    wrong = clean + 0.1  # of the clean image
    implied = (objective.noisy(clean, noise, times) - signal.sqrt() * wrong) / (1 - signal).sqrt()
    answer = objective.target(wrong, implied, signal)
    losses = objective.losses(answer, clean, noise, times)
    torch.testing.assert_close(losses.velocity, 0.01 / (1 - signal.flatten()), rtol=2e-2, atol=1e-6)


def test_the_weight_in_the_clean_image_stops_at_gamma():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0])
    noise, sample, v = (Objective(SCHEDULE, predict, 5.0).weight(snr) for predict in ("noise", "sample", "v"))
    torch.testing.assert_close(noise * snr, torch.tensor([0.01, 1.0, 5.0, 5.0]))
    torch.testing.assert_close(sample, torch.tensor([1.01, 2.0, 6.0, 6.0]))
    torch.testing.assert_close(v * (snr + 1), sample)


def test_the_step_back_is_that_of_diffusers():
    """Mean and lower variance of diffusers' DDPM step at a known clean image."""
    clean, noise, _ = batch(1)
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False)
    for time in (1, 300, 999):
        noisy = scheduler.add_noise(clean, noise, torch.tensor([time]))
        step = Step.at(SCHEDULE, torch.tensor([time]))
        torch.manual_seed(0)
        expected = scheduler.step(clean, time, noisy).prev_sample
        torch.manual_seed(0)
        drawn = step.mean(clean, noisy) + (step.log_least / 2).exp() * torch.randn(clean.shape)
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)


def test_the_divergence_is_that_of_normals():
    first = torch.distributions.Normal(torch.tensor(0.3), torch.tensor(0.5))
    second = torch.distributions.Normal(torch.tensor(-0.2), torch.tensor(0.8))
    ours = normal_divergence(first.mean, first.variance.log(), second.mean, second.variance.log())
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(first, second))


def test_the_levels_share_the_whole_mass():
    """The 256 levels' likelihoods sum to 1, and an inner one is scipy's difference of two distribution values."""
    levels = torch.arange(256).float() / 127.5 - 1
    logs = log_likelihood_of_levels(levels, torch.full_like(levels, 0.1), torch.full_like(levels, 0.3))
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    edges = norm.cdf([levels[100] - 1 / 255, levels[100] + 1 / 255], 0.1, 0.3)
    assert logs[100].exp().item() == pytest.approx(np.diff(edges)[0], rel=1e-3)


def test_the_bound_is_least_at_the_true_variance():
    """With the true clean image known, the lower bound of the variance costs nothing and the upper one something."""
    clean, noise, times = batch()
    objective = Objective(SCHEDULE, "sample", learned_variance=True)
    noisy = objective.noisy(clean, noise, times)
    low, high = (objective.bound(clean, clean, noisy, torch.full_like(clean, v), times) for v in (-1.0, 1.0))
    assert (low[1:].abs() < 1e-3).all()
    assert (high[1:] >= low[1:]).all()
    assert low[0] > 0  # bits of the 8-bit levels


def test_a_learned_variance_leaves_the_gradient_of_the_prediction_alone():
    clean, noise, times = batch()
    output = torch.randn(len(clean), 6, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    Objective(SCHEDULE, learned_variance=True).losses(output, clean, noise, times).weighted.sum().backward()
    plain = output.detach()[:, :3].requires_grad_()
    Objective(SCHEDULE).losses(plain, clean, noise, times).weighted.sum().backward()
    torch.testing.assert_close(output.grad[:, :3], plain.grad)
    assert output.grad[:, 3:].abs().max() > 0
