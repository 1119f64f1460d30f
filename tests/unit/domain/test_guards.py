"""Guards on Gaussian data: copies, the model's own domain and implausible outputs are found, new draws are kept."""

import json

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from nearfar.diffusion.denoiser import predict
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.domain.guards import Capture, Guards, Quality, distinct, rates, recolored
from nearfar.errors import ModelWarning, UsageError
from nearfar.latents.covariance import inverse_cosines
from nearfar.metrics.features import LONGEST, features_of, middle, outputs_of, shortened, way_down
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

DDPM = NoiseSchedule.variance_preserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
SIDE = 16
SLOPE = torch.linspace(-0.4, 0.4, SIDE).expand(3, SIDE, SIDE)
FADING = 1 / (1 + torch.arange(SIDE)[:, None] + torch.arange(SIDE))
NO_MIDDLE = pytest.mark.filterwarnings("ignore:this network has no middle block")


def oracle(mean=SLOPE, variance=0.02):
    denoiser = GaussianDenoiser(DDPM, mean, torch.tensor(variance))
    known = Provenance("oracle", "0" * 64, "none")
    cpu = torch.device("cpu")
    return FrozenModel(denoiser, PixelSpace(), ImageContract(SIDE, 3), (3, SIDE, SIDE), known, cpu, torch.float32, 0)


def images(count, seed=0, mean=None, scale=0.6):
    """Smooth Gaussian images about a slope from top to bottom; the model's own is one from left to right."""
    noise = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    mean = SLOPE.transpose(1, 2) if mean is None else mean
    return (mean + scale * inverse_cosines(noise * FADING)).clamp(-1, 1)


def owned(count, seed=1):
    return images(count, seed, SLOPE)


@pytest.fixture(scope="module")
def guards():
    with pytest.warns(ModelWarning, match="no middle block"):
        return Guards.fit(oracle(), images(100), owned(60))


def test_copies_are_found_exactly(guards):
    fitted = images(100)
    found = guards.judge(oracle(), fitted[[7, 93]])
    assert [one.nearest for one in found] == [7, 93]
    assert max(one.latent_copy for one in found) < 1e-5
    assert max(one.feature_copy for one in found) < 1e-2  # features are kept in float16
    assert [one.verdict for one in found] == ["drop", "drop"]
    assert found[0].reasons == ("a copy of fitted image 7",)


def test_distances_are_in_units_of_the_quantile_among_the_fitted(guards):
    fitted, new = images(100).double().flatten(1), images(5, 3)
    among = torch.stack([(fitted - one).norm(dim=1).kthvalue(2).values for one in fitted]).quantile(0.05)
    expected = [((fitted - one).norm(dim=1).min() / among).item() for one in new.double().flatten(1)]
    assert [one.latent_copy for one in guards.judge(oracle(), new)] == pytest.approx(expected, rel=1e-6)


def test_the_models_own_domain_is_captured_whatever_its_colors(guards):
    as_they_are, colored = owned(40, 5), recolored(owned(40, 6), images(100))
    for outputs in (as_they_are, colored):
        found = guards.judge(oracle(), outputs)
        assert rates(found)["captured"] == 1
        assert all(one.verdict == "drop" and "fell back to the model's own domain" in one.reasons for one in found)
    assert guards.capture.accuracy == 1


def test_new_draws_are_kept_as_often_as_stated(guards):
    """5 % copies in each of two spaces, 2.5 % borderline, 4 % outside a range, some 5 % half copied: 17 % at most."""
    found = rates(guards.judge(oracle(), images(400, 4)))
    assert found["keep"] >= 0.83
    assert found["captured"] == 0
    assert found["copies_in_latents"] <= 0.1
    assert found["implausible"] <= 0.06


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x, mean: mean + 0.2 * (x - mean), "washed out"),
        (lambda x, mean: (mean + 3 * (x - mean)).clamp(-1, 1), "stronger than the domain's"),
        (lambda x, mean: (x + 0.2 * torch.randn(x.shape, generator=torch.Generator())).clamp(-1, 1), "noisy"),
        (lambda x, mean: torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False), "smooth"),
    ],
)
def test_spoiled_images_are_flagged_with_the_reason(guards, spoil, reason):
    found = guards.judge(oracle(), spoil(images(30, 8), SLOPE.transpose(1, 2)))
    assert sum(any(reason in text for text in one.reasons) for one in found) >= 28
    assert rates(found)["keep"] == 0


@NO_MIDDLE
def test_turned_copies_are_found_when_asked_for(guards):
    turned = images(100)[:6].flip(3).rot90(1, (2, 3))
    asked = Guards.fit(oracle(), images(100), owned(60), symmetry="turn").judge(oracle(), turned)
    assert [one.nearest for one in asked] == list(range(6))
    assert max(one.latent_copy for one in asked) < 1e-5
    assert all(one.verdict == "drop" for one in asked)
    assert min(one.latent_copy for one in guards.judge(oracle(), turned)) > 1


@NO_MIDDLE
def test_it_is_not_judged_what_cannot_be_told_apart():
    with pytest.warns(ModelWarning, match="capture is not judged"):
        guards = Guards.fit(oracle(), images(60), images(60, 1))
    found = guards.judge(oracle(), images(60, 2))
    assert {one.captured for one in found} == {0}
    assert rates(found)["captured"] == 0


@NO_MIDDLE
def test_three_images_are_enough_and_say_so():
    with pytest.warns(ModelWarning, match="guards rest on 3 images"):
        guards = Guards.fit(oracle(), images(3), owned(20))
    assert [one.verdict for one in guards.judge(oracle(), images(3))] == ["drop"] * 3
    assert rates(guards.judge(oracle(), images(100, 4)))["drop"] < 0.1
    assert rates(guards.judge(oracle(), owned(20, 5)))["captured"] >= 0.9


@NO_MIDDLE
def test_equal_images_count_once():
    fitted = images(20)
    doubled = torch.cat([fitted[:5], fitted])
    once, twice = (Guards.fit(oracle(), some, owned(20)) for some in (fitted, doubled))
    assert twice.places.tolist() == [*range(5), *range(10, 25)]
    assert twice.latent_unit == once.latent_unit
    assert twice.judge(oracle(), fitted[7:8])[0].nearest == 12


def test_what_is_too_little_is_refused():
    with pytest.raises(UsageError, match="at least 3 images that differ, got 1"):
        Guards.fit(oracle(), images(1).expand(9, -1, -1, -1), owned(20))
    with pytest.raises(UsageError, match="at least 8 samples of the model's own domain, got 7"):
        Guards.fit(oracle(), images(9), owned(7))
    with pytest.raises(UsageError, match="symmetry must be one of none, mirror, turn, got flip"):
        Guards.fit(oracle(), images(9), owned(20), symmetry="flip")


def test_parts_make_the_same_guards(guards):
    again = Guards.from_parts(images(100).half(), guards.tensors(), json.loads(json.dumps(guards.numbers())))
    new = torch.cat([images(50, 3), owned(10, 7)])
    for one, other in zip(guards.judge(oracle(), new), again.judge(oracle(), new), strict=True):
        assert one.verdict == other.verdict
        assert one.latent_copy == pytest.approx(other.latent_copy, rel=1e-3)
        assert one.captured == pytest.approx(other.captured, abs=1e-9)
        assert one.quality == pytest.approx(other.quality, abs=0.02)
    assert sum(tensor.numel() * tensor.element_size() for tensor in guards.tensors().values()) < 120 * 1024


def test_an_output_does_not_depend_on_its_batch(guards):
    new = images(7, 3)
    together, apart = guards.judge(oracle(), new), guards.judge(oracle(), new, batch_size=2)
    for one, other in zip(together, apart, strict=True):
        assert (one.nearest, one.reasons, one.verdict) == (other.nearest, other.reasons, other.verdict)
        for name in ("latent_copy", "feature_copy", "captured", "quality"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6)


@pytest.mark.slow
def test_the_classifier_is_ridge_regression_with_each_left_out():
    generator = torch.Generator().manual_seed(0)
    domain, own = (torch.randn(count, 40, generator=generator).double() + off for count, off in ((30, 0), (50, 0.4)))
    fitted = Capture.fit(domain, own)
    x, labels = torch.cat([domain, own]).numpy(), [-1.0] * 30 + [1.0] * 50
    fits = []
    for ridge in torch.logspace(-3, 3, 7).tolist():
        alpha = ridge * torch.from_numpy(x - x.mean(0)).square().sum().item() / 40
        left_out = torch.from_numpy(cross_val_predict(Ridge(alpha=alpha), x, labels, cv=LeaveOneOut()))
        fits.append((((left_out - torch.tensor(labels)) ** 2).mean().item(), alpha, left_out))
    _, alpha, left_out = min(fits, key=lambda one: one[0])
    middle_of, half = (
        (left_out[:30].mean() + left_out[30:].mean()) / 2,
        (left_out[30:].mean() - left_out[:30].mean()) / 2,
    )
    expected = (torch.from_numpy(Ridge(alpha=alpha).fit(x, labels).predict(x)) - middle_of) / half
    assert torch.allclose(fitted.scores(torch.from_numpy(x)), expected, atol=1e-6)
    right = ((left_out[:30] < middle_of).double().mean() + (left_out[30:] > middle_of).double().mean()) / 2
    assert fitted.accuracy == pytest.approx(right.item())
    expected = (1 - 5 / 30) * ((left_out[:30] - middle_of) / half).quantile(0.975).item()
    assert fitted.borderline == pytest.approx(expected, abs=1e-6)


def test_strengths_of_the_domains_own_draws_are_one():
    """The mean square of whitened coefficients, over enough images that the fit itself does not matter."""
    strengths = Quality.of(images(2000)).strengths(images(200, 1)).exp().mean(0)
    assert torch.allclose(strengths, torch.ones(2, dtype=torch.float64), atol=0.1)


def test_features_are_those_of_the_networks_middle_block(model_folder):
    model = load_model(model_folder, device="cpu")
    latents = images(3) * 0.5
    kind, vectors = features_of(model, latents, 2)
    with outputs_of(lambda network: way_down(network)[-1:]) as found, torch.inference_mode():
        time = DDPM.time_of_strength(torch.full((3,), 0.05, dtype=torch.float64))
        noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
        predict(model.denoiser, model.schedule.add_noise(latents, time, noise), time)
    assert kind == "network"
    assert len(found) == 1
    expected = torch.cat([found[0].mean((2, 3)), found[0].std((2, 3))], 1).double()
    assert torch.allclose(vectors, expected, atol=1e-4)
    assert vectors.shape == (3, 32)


def test_a_network_without_a_middle_block_gives_none():
    assert middle(oracle(), images(2)) is None
    kind, vectors = features_of(oracle(), images(2), 2)
    assert kind == "latents"
    assert vectors.shape == (2, 192)


def test_long_vectors_keep_their_distances():
    vectors = torch.randn(30, 3 * LONGEST, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratios = torch.pdist(shortened(vectors)) / torch.pdist(vectors)
    assert shortened(vectors).shape == (30, LONGEST)
    assert (ratios - 1).abs().mean() < 0.05
    assert torch.equal(shortened(vectors[:, :LONGEST]), vectors[:, :LONGEST])


def test_recolored_images_have_the_colors_of_others():
    done = recolored(images(50), torch.full((4, 3, SIDE, SIDE), 0.3) + 0.1 * images(4, 9))
    like = torch.full((4, 3, SIDE, SIDE), 0.3) + 0.1 * images(4, 9)
    wanted = torch.cat([like.mean((2, 3)), like.std((2, 3))], 1)
    got = torch.cat([done.mean((2, 3)), done.std((2, 3))], 1)
    assert torch.cdist(got, wanted).amin(1).max() < 1e-3


def test_places_are_those_of_the_first_of_each_kind():
    some = images(4)
    assert distinct(some[[0, 1, 0, 2, 1, 3]]).tolist() == [0, 1, 3, 5]
