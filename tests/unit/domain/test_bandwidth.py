"""Bandwidth on Gaussian data: how much fresh noise a domain bears that the model knows, and one that it does not."""

import pytest
import torch

from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DDIM, Sampling
from nearfar.domain.bandwidth import ETAS, bandwidth, denoised
from nearfar.domain.guards import Guards
from nearfar.errors import ModelWarning, UsageError
from nearfar.sampling.inversion import denoise, invert
from unit.domain.test_guards import NO_MIDDLE, SLOPE, images, oracle, owned

pytestmark = NO_MIDDLE
STRENGTH, STEPS = 0.6, 20


def measured(model, own, **options):
    """Of 24 of 60 images."""
    guards = Guards.fit(model, images(60), own)
    latents = invert(model, images(60)[:24], strength=STRENGTH, steps=STEPS)
    return bandwidth(model, latents, guards, Sampling(Level(STRENGTH), STEPS), **options)


def test_a_model_of_another_domain_bears_little():
    found = measured(oracle(), owned(60))
    assert found.kept[0] >= 0.9
    assert found.value < 1
    assert found.etas == ETAS[: len(found.kept)]
    assert found.kept[-1] < 0.9 * found.kept[0] <= found.kept[-2]
    assert found.value == found.etas[-2]
    assert found.calls == len(found.etas) * STEPS


def test_a_domain_that_the_model_knows_bears_all_of_it():
    """The model's denoiser is that of white noise about the domain's mean; the images are its own samples."""
    mean = SLOPE.transpose(1, 2)
    model, deviation = oracle(mean, 0.01), 0.1
    known = [
        mean + deviation * torch.randn(100, *mean.shape, generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    ]
    with pytest.warns(ModelWarning, match="capture is not judged"):
        guards = Guards.fit(model, known[0].clamp(-1, 1), known[1].clamp(-1, 1))
    latents = invert(model, known[0][:24].clamp(-1, 1), strength=STRENGTH, steps=STEPS)
    found = bandwidth(model, latents, guards, Sampling(Level(STRENGTH), STEPS), etas=(0.0, 0.5, 1.0))
    assert found.value == 1
    assert found.etas == (0, 0.5, 1)


def test_without_fresh_noise_it_is_the_deterministic_way_and_with_it_repeatable():
    def sampling(eta):
        return Sampling(Level(STRENGTH), 5, DDIM(eta))

    latents = invert(oracle(), images(5), strength=STRENGTH, steps=5)
    still = denoised(oracle(), latents, sampling(0.0), 0, 2)
    assert torch.allclose(still, denoise(oracle(), latents, strength=STRENGTH, steps=5, solver=DDIM()), atol=1e-6)
    noisy = denoised(oracle(), latents, sampling(1.0), 0, 2)
    assert torch.allclose(noisy, denoised(oracle(), latents, sampling(1.0), 0, 5), atol=1e-6)
    assert not torch.allclose(noisy, still, atol=1e-2)
    assert not torch.allclose(noisy, denoised(oracle(), latents, sampling(1.0), 1, 5), atol=1e-2)


def test_latents_that_lead_elsewhere_are_told():
    guards = Guards.fit(oracle(), images(60), owned(60))
    latents = invert(oracle(), owned(10, 3), strength=STRENGTH, steps=5)
    with pytest.warns(ModelWarning, match="only 0% of the latents lead back into the domain with eta 0"):
        found = bandwidth(oracle(), latents, guards, Sampling(Level(STRENGTH), 5), etas=(0.0, 1.0))
    assert found.kept == (0, 0)
    assert found.value == 0


@pytest.mark.parametrize(("etas", "came"), [((), "none"), ((0.5, 0.2), "0.5, 0.2"), ((0.0, 2.0), "0, 2")])
def test_etas_out_of_order_are_refused(etas, came):
    guards = Guards.fit(oracle(), images(20), owned(20))
    with pytest.raises(UsageError, match=f"etas must rise within .0, 1., got {came}"):
        bandwidth(oracle(), images(2), guards, Sampling(Level(STRENGTH), 5), etas=etas)


def test_latents_of_another_shape_are_refused():
    guards = Guards.fit(oracle(), images(20), owned(20))
    with pytest.raises(UsageError, match=r"latents must be \(batch, 3, 16, 16\), got \(2, 3, 8, 8\)"):
        bandwidth(oracle(), images(2)[:, :, :8, :8], guards, Sampling(Level(STRENGTH), 5))
