"""A model's profile from its own samples: the Gaussian's own variance, at the cost that is told."""

import torch

from gaussian_models import VARIANCE, gaussian
from nearfar.diffusion.profiling import LEVELS
from nearfar.models.model import PatchSpace
from nearfar.sampling.own_profile import own_profile, profile_calls, profile_on


def test_the_profile_of_a_gaussian_model_is_its_variance():
    ticks = []
    found = own_profile(gaussian(size=8), 64, 64, lambda: ticks.append(1))
    rho = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    unknown = found.unknown(rho)[:, :, 1:8].mean((1, 2))
    assert (unknown / (VARIANCE * rho**2 / (VARIANCE + rho**2)) - 1).abs().max() < 0.1
    assert len(ticks) == profile_calls(64, 64)


def test_given_images_say_the_same():
    clean, ticks = VARIANCE**0.5 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    found = profile_on(gaussian(size=8), clean, 32, lambda: ticks.append(1))
    rho = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    unknown = found.unknown(rho)[:, :, 1:8].mean((1, 2))
    assert (unknown / (VARIANCE * rho**2 / (VARIANCE + rho**2)) - 1).abs().max() < 0.1
    assert len(ticks) == 2 * LEVELS


def test_patches_are_measured_as_the_images_they_hold():
    found = own_profile(gaussian(PatchSpace(2), size=8), 8, 8)
    assert (found.side, found.factor, found.variance.shape[1]) == (8, 2, 3)
