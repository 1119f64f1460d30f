"""Figures of a reconstruction against scikit-image, and a threshold that comes from the model's own samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nearfar.diffusion.bdia import BDIA
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.metrics.quality import EXACT, psnr, ssim
from nearfar.sampling.inversion import INVERTER, INVERTERS, reconstruct
from nearfar.sampling.local_sampling import own_samples
from nearfar.sampling.representation import calls_of, own_representation, represent, threshold


def pairs(size, channels=3):
    generator = torch.manual_seed(size)
    images = torch.rand(3, channels, size, size, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator) * torch.tensor([0.01, 0.1, 0.5])[:, None, None, None]
    return images, (images + noise).clamp(-1, 1)


@pytest.mark.parametrize(("size", "channels"), [(11, 1), (32, 3), (47, 3)])
def test_figures_are_those_of_scikit_image(size, channels):
    images, others = pairs(size, channels)
    for image, other, decibel, similarity in zip(
        images.double().numpy(), others.double().numpy(), psnr(images, others), ssim(images, others), strict=True
    ):
        assert decibel.item() == pytest.approx(peak_signal_noise_ratio(image, other, data_range=2))
        options = {"channel_axis": 0, "data_range": 2, "gaussian_weights": True, "use_sample_covariance": False}
        assert similarity.item() == pytest.approx(structural_similarity(image, other, **options), abs=1e-12)


def test_equal_images_are_as_near_as_can_be_told():
    images, _ = pairs(16)
    assert psnr(images, images).tolist() == pytest.approx([EXACT] * 3)
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_images_smaller_than_the_window_have_a_similarity_too(size):
    images, others = pairs(size)
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    assert ssim(images, others)[2] < 1


def counted(model):
    calls = []

    def network(x, t):
        calls.append(len(x))
        return model.denoiser.network(x, t)

    return replace(model, denoiser=replace(model.denoiser, network=network)), calls


@pytest.mark.parametrize("name", [*INVERTERS, "bdia"])
def test_images_come_back_as_from_reconstruct_with_their_figures(model, name):
    solver = INVERTERS.get(name, BDIA())
    model, calls = counted(model)
    images = torch.nn.functional.interpolate(pairs(4)[0][:1], size=(16, 16), mode="bilinear")
    found = represent(model, images, strength=0.6, steps=4, solver=solver)
    assert found.figures["calls"].tolist() == [len(calls)]
    least, most = calls_of(solver, 4)
    assert least <= len(calls) <= most
    assert torch.equal(found.images, reconstruct(model, images, strength=0.6, steps=4, solver=solver))
    assert torch.equal(found.figures["psnr"], psnr(images, found.images))
    assert ("residual" in found.figures) == isinstance(solver, FixedPointDDIM)
    assert all(values.shape == (1,) and values.dtype == torch.float64 for values in found.figures.values())


@pytest.mark.slow
def test_the_models_own_samples_are_the_measure(model):
    options = {"strength": 0.5, "steps": 2}
    own = own_representation(model, Sampling(Level(0.5), 2, INVERTER), count=2, seed=5, batch_size=1)
    samples = own_samples(model, 2, seed=5)
    assert own == pytest.approx(represent(model, samples, **options).figures["psnr"].tolist(), abs=0.05)


def test_the_threshold_is_three_decibel_below_the_low_quantile():
    own = [30.0 + number for number in range(21)]  # the 5 % quantile is the second least
    assert threshold(own) == pytest.approx(31 - 3)
    assert threshold(list(np.random.default_rng(0).permutation(own))) == threshold(own)
