"""Baselines on Gaussian data, where what they must give is known in closed form."""

import pytest
import torch

from benchmarks.far import baselines
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

DDPM = NoiseSchedule.variance_preserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))


def model_of(variance, side=8):
    denoiser = GaussianDenoiser(DDPM, torch.zeros(3, 1, 1), torch.full((3, 1, 1), variance))
    known = Provenance("oracle", "0" * 64, "none")
    cpu = torch.device("cpu")
    return FrozenModel(denoiser, PixelSpace(), ImageContract(side, 3), (3, side, side), known, cpu, torch.float32, 0)


def images(count, side=8, scale=0.2, seed=0):
    draws = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (draws * scale).clamp(-1, 1)


@pytest.mark.parametrize("make", [baselines.forward_noised, baselines.locally_sampled])
def test_noised_images_come_back_as_the_closed_form_says(make):
    model, fit = model_of(0.04), torch.full((1, 3, 8, 8), 0.3)
    made = make(model, fit, 96, 0, strength=0.4)
    start = DDPM.time_of_strength(torch.tensor([0.4], dtype=torch.float64))
    forms = {"forward_noised": model.denoiser.deterministic_return, "locally_sampled": model.denoiser.stochastic_return}
    mean, variance = forms[make.__name__](fit, start)
    assert made.images.mean().item() == pytest.approx(mean.mean().item(), abs=0.006)
    assert made.images.var().item() == pytest.approx(variance.mean().item(), rel=0.15)  # of 20 steps
    assert len(made.images.unique(dim=0)) == 96


def test_every_image_is_a_source_equally_often():
    fit = images(5)
    chosen = baselines.sources(fit, 15, seed=1)
    assert all((chosen == one).flatten(1).all(1).sum() == 3 for one in fit)
    assert not torch.equal(chosen[:5], fit)


def test_the_patch_denoiser_of_one_image_gives_its_blocks_back():
    """Little noise leaves no doubt which patch it is, and much noise gives the mean around the place."""
    bank = images(1, side=32)
    denoiser = baselines.PatchDenoiser(DDPM, bank)
    early, late = (torch.tensor([t], dtype=torch.float64) for t in (5.0, 990.0))
    alpha, sigma = (float(value) for value in DDPM.coefficients(early))
    noisy = alpha * bank + sigma * torch.randn(bank.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(denoiser(noisy, early), bank, atol=1e-4)
    average = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(bank, [1] * 4, mode="reflect"), 3, 1)
    assert (denoiser(torch.zeros_like(bank), late) - average).abs().max() < 0.1


def test_patches_are_put_together_to_images():
    made = baselines.patch_denoised(model_of(0.1, 32), images(3, side=32), 2, 0, domain="animals", steps=3)
    assert made.images.shape == (2, 3, 32, 32)
    assert made.images.isfinite().all()


@pytest.mark.parametrize("kept", [False, True])
def test_a_collage_is_of_its_images_and_no_copy(kept):
    fit = images(40, side=32)
    made = baselines.collage(model_of(0.1, 32), fit, 8, 0, margin=0.5, kept=kept).images
    assert made.shape == (8, 3, 32, 32)
    assert torch.cdist(made.flatten(1), fit.flatten(1)).min() > 0.1
