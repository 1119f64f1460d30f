"""Domains found in an exact model: what is in them, what is refused, and what is warned of."""

import warnings

import pytest
import torch

from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.domain.domain import Domain, Gaussian
from nearfar.errors import ModelWarning, UsageError
from nearfar.latents.shell import measure
from nearfar.metrics.quality import psnr
from nearfar.models.model import PatchSpace
from nearfar.sampling.inversion import INVERTER, denoise, invert, reconstruct, traced_inversion
from nearfar.sampling.own_domain import own_domain
from oracle_domains import COUNT, SCHEDULE, SIDE, fit, fitted, oracle, own, unseen


def rounded(latents):
    return latents.half().float()


def test_latents_are_those_of_an_inversion_and_clean_ones_those_of_the_encoder():
    domain, model = fitted(strength=0.6, steps=7), oracle()
    assert torch.equal(domain.latents, rounded(invert(model, unseen(), strength=0.6, steps=7)))
    assert torch.equal(domain.clean, rounded(unseen()))
    assert (domain.strength, domain.steps, domain.model) == (0.6, 7, model.provenance.sha256)


@pytest.mark.slow
def test_with_pull_the_way_back_ends_at_the_fitted_images_pulled_too():
    domain, model = fitted(pull=0.4), oracle()
    assert domain.pull == 0.4
    assert not torch.equal(domain.latents, fitted().latents)
    for weight, near in ((None, True), (0.0, False)):
        again = denoise(domain.pulled(model, weight), domain.latents, strength=0.5, steps=domain.steps)
        assert ((again - unseen()).abs().max().item() < 2e-3) == near
    with pytest.raises(UsageError, match=r"pull must be in \[0, 1\], got 1.1"):
        fitted(pull=1.1)


def test_behind_an_encoder_clean_latents_are_encoded():
    model = oracle(space=PatchSpace(2), latent_shape=(12, SIDE // 2, SIDE // 2))
    domain = fit(model, unseen())
    assert torch.equal(domain.clean, rounded(PatchSpace(2).encode(unseen())))
    assert torch.equal(domain.latents, rounded(invert(model, unseen(), strength=0.5)))
    assert domain.own.mean.shape == model.latent_shape


def test_the_size_of_batches_does_not_matter():
    one, other = fitted(), fit(oracle(), unseen(), batch_size=5)
    torch.testing.assert_close(other.latents, one.latents, rtol=1e-3, atol=1e-3)  # a step of float16
    assert other.diagnostics == pytest.approx(dict(one.diagnostics), rel=1e-3)
    torch.testing.assert_close(other.targets.table(), one.targets.table(), rtol=1e-3, atol=1e-3)


def test_diagnostics_are_those_of_the_way_there_and_back():
    domain, model = fitted(steps=5), oracle()
    found = traced_inversion(model, unseen(), Sampling(Level(0.5), 5, INVERTER))
    similarity = psnr(unseen(), reconstruct(model, unseen(), strength=0.5, steps=5))
    assert domain.diagnostics["images"] == COUNT
    assert domain.diagnostics["psnr_least"] == pytest.approx(similarity.min().item())
    assert domain.diagnostics["psnr_median"] == pytest.approx(similarity.median().item())
    assert domain.diagnostics["residual_most"] == pytest.approx(found.residuals.max().item())
    assert domain.diagnostics["steps_fallen_back"] == found.fell_back.sum() == 0
    assert domain.diagnostics["calls_per_image"] == found.calls.sum().item() / COUNT > 5
    assert domain.diagnostics["latent_deviation"] == pytest.approx(domain.latents.std().item())
    assert 0 < domain.diagnostics["mean_kept"] <= 1
    assert 0 < domain.diagnostics["shrinkage"] < 1


def test_targets_are_measured_on_the_latents_and_the_own_domain_on_its_samples():
    domain = fitted(seed=4)
    assert domain.targets == measure(domain.latents, torch.Generator().manual_seed(4))
    expected = Gaussian.fit(own())
    assert torch.equal(domain.own.mean, expected.mean)
    assert torch.equal(domain.own.covariance.values, expected.covariance.values)


@pytest.mark.slow
def test_the_own_domain_is_sampled_with_the_seed_unless_given(monkeypatch):
    monkeypatch.setattr("nearfar.domain.domain.OWN_SAMPLES", 24)
    sampled, given = (
        fit(oracle(), unseen(), own=some, seed=5, steps=4) for some in (None, own_domain(oracle(), 24, seed=5))
    )
    assert torch.equal(sampled.own.mean, given.own.mean)
    assert not torch.equal(sampled.own.mean, fitted(steps=4).own.mean)


def test_another_model_is_refused():
    fitted().check(oracle())
    with pytest.raises(UsageError) as error:
        fitted().check(oracle(sha256="0123456789abcdef"))
    assert str(error.value) == (
        "domain was fitted with model sha256:abcabcabcabc..., this model is sha256:0123456789ab...: fit it again, "
        "or name that model"
    )


def test_the_same_model_with_other_settings_is_refused():
    domain = fit(oracle(settings={"label": 3, "size": None}), unseen(), steps=4)
    domain.check(oracle(settings={"label": 3, "size": SIDE}))
    with pytest.raises(UsageError, match="fitted with label 3, this model has 4: load it as it was"):
        domain.check(oracle(settings={"label": 4, "size": None}))
    wide = oracle(settings={"label": 3, "size": 2 * SIDE}, latent_shape=(3, 2 * SIDE, 2 * SIDE))
    with pytest.raises(UsageError, match=r"fitted with latents \(3, 8, 8\), this model has \(3, 16, 16\)"):
        domain.check(wide)


BAD = {
    "one": (unseen(1), "at least 4 different images, got 1 of 1: add some"),
    "three": (unseen(3), "at least 4 different images, got 3 of 3: add some"),
    "identical": (unseen(1).expand(12, -1, -1, -1), "at least 4 different images, got 1 of 12: add some"),
    "black": (-torch.ones(12, 3, SIDE, SIDE), "at least 4 different images, got 1 of 12: add some"),
    "nan": (unseen().index_fill(0, torch.tensor([3]), torch.nan), r"must lie in \[-1, 1\], got values from nan"),
    "too bright": (unseen() + 2, r"must lie in \[-1, 1\], got values from"),
    "wrong size": (torch.zeros(12, 3, SIDE, 2 * SIDE), r"must be \(batch, 3, 8, 8\), got \(12, 3, 8, 16\)"),
    "none": (unseen()[:0], r"must be \(batch, 3, 8, 8\), got \(0, 3, 8, 8\)"),
}


@pytest.mark.parametrize(("images", "sentence"), BAD.values(), ids=BAD)
def test_images_that_make_no_domain_are_refused_before_any_work(images, sentence):
    model = oracle()
    with pytest.raises(UsageError, match=sentence):
        Domain.fit(model, images)
    assert model.denoiser.calls == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"strength": 1.4}, r"strength must be in \[0, 1\], got 1.4"), ({"steps": 0}, "steps must be at least 1, got 0")],
)
def test_levels_that_cannot_be_are_refused_before_any_work(options, sentence):
    model = oracle()
    with pytest.raises(UsageError, match=sentence):
        Domain.fit(model, unseen(), **options)
    assert model.denoiser.calls == 0


def test_own_samples_that_are_no_images_are_refused():
    with pytest.raises(UsageError, match=r"images must lie in \[-1, 1\], got values from 0 to 2"):
        fit(oracle(), unseen(), own=torch.linspace(0, 2, 9)[:, None, None, None].expand(9, 3, SIDE, SIDE))


def warnings_of(images):
    """What `Domain.fit` warns of itself; the guards have their own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Domain.fit(oracle(), images, own=own(), steps=4)
    assert all(issubclass(each.category, ModelWarning) for each in caught)
    return [str(each.message) for each in caught if "say little of a domain" in str(each.message)]


@pytest.mark.parametrize("count", [4, 9])
def test_few_images_are_warned_of(count):
    text = f"{count} different images say little of a domain: outputs will be near-copies, give 10 or more"
    assert warnings_of(unseen(count)) == [text]


def test_copies_do_not_count_as_images():
    assert warnings_of(unseen(5).repeat(3, 1, 1, 1))[0].startswith("5 different images")


def test_ten_images_are_not_warned_of():
    assert warnings_of(unseen(10)) == []


def test_a_level_is_told_in_all_its_units():
    found = Level(0.5).describe(oracle().schedule)
    time = SCHEDULE.time_of_strength(torch.tensor([0.5], dtype=torch.float64))
    alpha, sigma = SCHEDULE.coefficients(time)
    assert found == {"strength": 0.5, "time": time.item(), "sigma": pytest.approx((sigma / alpha).item())}
