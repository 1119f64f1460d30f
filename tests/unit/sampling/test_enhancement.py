"""Enlarging with a frozen model: sizes, consistency, randomness, levels and refusals."""

from dataclasses import replace

import pytest
import torch

from gaussian_models import MEAN, SCHEDULE, VARIANCE, gaussian
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import Heun
from nearfar.errors import UsageError
from nearfar.models.loading import load_model
from nearfar.models.model import PatchSpace, PixelSpace, ValueRange
from nearfar.sampling import enhancement
from nearfar.sampling.back_projection import AreaDownsampling, enlargement
from nearfar.sampling.enhancement import ConsistentDenoiser, enhance, mirror, proposed_strength, tiles_of
from tiny_models import FAMILIES

KEY = SecretKey.from_seed(0)


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Unbounded(PixelSpace):
    """As behind an autoencoder: states in units of their own."""

    span = float("inf")


@pytest.mark.parametrize("space", [PixelSpace(), ValueRange(), PatchSpace(2), PatchSpace(4)])
@pytest.mark.parametrize(("scale", "height", "width"), [(2, 3, 11), (3, 7, 5), (8, 2, 2), (4, 1, 9)])
def test_images_of_any_size_grow_and_shrink_to_themselves_again(space, scale, height, width):
    images = drawn(2, 3, height, width)
    large = enhance(gaussian(space), images, scale=scale, steps=3, key=KEY)
    assert large.shape == (2, 3, height * scale, width * scale)
    assert large.abs().max() <= 1
    rounded = large.add(1).mul(127.5).round()
    assert (AreaDownsampling(scale).shrink(rounded) - images.add(1).mul(127.5)).abs().max() <= 0.51


def test_without_consistency_the_result_drifts_to_the_model():
    images = drawn(4, 3, 4, 4)
    free = enhance(gaussian(), images, scale=4, strength=0.5, consistency=False, key=KEY)
    assert (AreaDownsampling(4).shrink(free) - images).abs().max() > 0.3


def test_what_downsampling_does_not_see_has_the_models_spread():
    """At strength 1 nothing of the enlargement is left, and detail must be the model's: independent pixels `x`.

    With U enlarging and A shrinking, what `x + U (y - A x)` has besides `U y` is `(I - U A) x`, of variance
    `1 - 2 / scale^2 + (|U|^2 / scale / size)^2` pixels for the matrix of one side.
    """
    images = torch.full((8, 3, 8, 8), MEAN)
    large = enhance(gaussian(), images, scale=4, strength=1.0, steps=50, key=KEY)
    detail = large - AreaDownsampling(4).enlarge(images)
    blurred = enlargement(8, 4).square().sum().item() / 4 / 32
    assert detail.var().item() == pytest.approx(VARIANCE * (1 - 2 / 16 + blurred**2), rel=0.03)


def test_every_estimate_shrinks_to_the_image():
    model, area, small = gaussian(PatchSpace(2)), AreaDownsampling(4), drawn(2, 3, 4, 4)
    denoiser = ConsistentDenoiser(model.denoiser, model.latent_space, area, small)
    states = model.latent_space.encode(drawn(2, 3, 16, 16))
    estimate = denoiser(states, torch.tensor([100.0, 900.0], dtype=torch.float64))
    torch.testing.assert_close(area.shrink(model.latent_space.decode(estimate)), small, rtol=0, atol=1e-5)


def test_a_result_depends_on_image_and_key_and_on_nothing_else(model):
    images = drawn(3, 3, 6, 9)
    options = {"scale": 4, "steps": 3}
    together = enhance(model, images, key=KEY, batch_size=5, **options)
    alone = enhance(model, images[1:2], key=KEY, batch_size=2, **options)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    other = enhance(model, images, key=SecretKey.from_seed(1), batch_size=5, **options)
    assert (together - other).abs().mean() > 0.01


def test_a_cascade_draws_new_noise_for_each_pass_and_counts_its_steps_through(monkeypatch):
    keys, steps, one_pass = [], [], enhancement.noised_and_denoised

    def watched(model, canvas, sampling, streams, on_step):
        keys.extend(streams)
        return one_pass(model, canvas, sampling, streams, on_step)

    monkeypatch.setattr(enhancement, "noised_and_denoised", watched)
    enhance(gaussian(), drawn(2, 3, 4, 4), scale=4, steps=2, cascade=3, on_step=lambda step, _: steps.append(step))
    assert len(set(keys)) == 6
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_cascade_forgets_more():
    """The deterministic return keeps sqrt(r) of every deviation from the mean, two of them r."""
    model, images = gaussian(), torch.full((8, 3, 4, 4), MEAN + 0.5)
    options = {"scale": 4, "strength": 0.2, "steps": 20, "solver": Heun(), "consistency": False, "key": KEY}
    start = SCHEDULE.time_of_strength(torch.tensor([0.2], dtype=torch.float64))
    kept = model.denoiser.retention(start).sqrt().item()
    for passes in (1, 2):
        deviation = enhance(model, images, cascade=passes, **options).mean().item() - MEAN
        assert deviation == pytest.approx(0.5 * kept**passes, abs=0.01)


@pytest.mark.parametrize("space", [PixelSpace(), ValueRange(), PatchSpace(2)])
@pytest.mark.parametrize(("consistency", "part"), [(False, 12), (True, 3)])
def test_the_level_proposed_grows_with_the_scale_in_units_of_pixels(space, consistency, part):
    model = gaussian(space)
    strengths = [proposed_strength(model, scale, consistency) for scale in (2, 4)]
    sigma = SCHEDULE.ratio(SCHEDULE.time_of_strength(torch.tensor(strengths, dtype=torch.float64)))
    torch.testing.assert_close(sigma / (space.span / 2), torch.tensor([8**0.5, 8.0], dtype=torch.float64) / part)


def test_behind_an_autoencoder_the_level_must_be_given_and_the_result_still_fits():
    model = replace(gaussian(), latent_space=Unbounded())
    images = drawn(1, 3, 4, 4)
    with pytest.raises(UsageError, match="no strength is known for enlarging behind an autoencoder: give one"):
        enhance(model, images, scale=4)
    large = enhance(model, images, scale=4, strength=0.4, steps=2)
    torch.testing.assert_close(AreaDownsampling(4).shrink(large), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["ldm_kl_sampled", "stable_diffusion", "flux"])
def test_latent_models_of_diffusers_enlarge_what_is_larger_than_they_are(family, tmp_path):
    model = load_model(FAMILIES[family].at(tmp_path, family), "cpu", **FAMILIES[family].options)
    images = drawn(2, 3, model.image.size // 4, model.image.size // 2 + 1) / 2
    assert tiles_of(model, images.shape[1:], 4) == 4
    large = enhance(model, images, scale=4, strength=0.3, steps=2, key=KEY, batch_size=3)
    torch.testing.assert_close(AreaDownsampling(4).shrink(large), images, rtol=0, atol=1e-5)
    assert (large - AreaDownsampling(4).enlarge(images)).abs().mean() > 0.01


def test_small_images_go_on_as_their_mirror_image():
    assert mirror(3, 8).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert mirror(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("shape", "tiles"), [((3, 2, 2), 1), ((3, 4, 4), 1), ((3, 5, 4), 3), ((3, 16, 16), 36)])
def test_how_many_tiles_an_enlargement_takes(shape, tiles):
    assert tiles_of(gaussian(), shape, 4) == tiles


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (drawn(1, 3, 4, 4), {"scale": 9}, "scale must be a whole number from 2 to 8, got 9"),
        (drawn(1, 3, 4, 4), {"scale": 1}, "scale must be a whole number from 2 to 8, got 1"),
        (drawn(1, 3, 4, 4), {"scale": 2, "cascade": 0}, "cascade must be at least 1, got 0"),
        (drawn(1, 1, 4, 4), {"scale": 2}, r"images must be \(batch, 3, height, width\), got \(1, 1, 4, 4\)"),
        (drawn(1, 3, 4, 4) * 2, {"scale": 2}, r"images must lie in \[-1, 1\]"),
        (drawn(1, 3, 4, 4), {"scale": 2, "strength": 1.2}, r"strength must be in \[0, 1\], got 1.2"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(images, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        enhance(gaussian(), images, **options)
