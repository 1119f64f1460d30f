"""Local sampling with the tiny model: its two ends, its independence of the batch, and what it refuses.

Across batch shapes the same sums are added in another order. In float32, over the 8 or fewer network calls here, that
stays below 1e-5 in [-1, 1], a thousandth of a gray level (measured: 1.4e-5 in ten calls at worst, at 32 images).
"""

import hashlib
import re

import pytest
import torch

from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVERS
from nearfar.errors import UsageError
from nearfar.sampling import local_sampling
from nearfar.sampling.local_sampling import local_sample

KEY = SecretKey.from_seed(3)
BATCH_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def images():
    coarse = torch.rand(6, 3, 4, 4, generator=torch.manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=BATCH_TOLERANCE)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("level", ["strength", "sigma"])
def test_at_level_zero_images_come_back_bit_by_bit(model, images, solver, level):
    assert torch.equal(local_sample(model, images, **{level: 0.0}, steps=3, solver=SOLVERS[solver]), images)


@pytest.mark.parametrize("solver", SOLVERS)
def test_at_strength_one_the_input_has_no_influence(model, images, solver, monkeypatch):
    # The noise depends on the image, so it is held fixed here: what is left is the way from noise to image.
    monkeypatch.setattr(local_sampling, "noise_for", lambda images, *_: [bytes(16)] * len(images))
    of_images = local_sample(model, images, strength=1.0, steps=3, solver=SOLVERS[solver])
    of_black = local_sample(model, torch.full_like(images, -1), strength=1.0, steps=3, solver=SOLVERS[solver])
    assert torch.equal(of_images, of_black)
    assert not torch.equal(of_images, local_sample(model, images, strength=0.99, steps=3, solver=SOLVERS[solver]))


def test_the_first_state_is_the_forward_jump_to_exactly_that_level(model, images, monkeypatch):
    states = []

    def first_state(denoiser, x, times, solver, noise, on_step):
        states.append((x, times))
        return x

    monkeypatch.setattr(local_sampling, "solve", first_state)
    local_sample(model, images, strength=0.5, key=KEY)
    ((state, times),) = states
    # Half of the way from -1 to 999. The noise is standard normal: its mean square over 4608 values is 1 +- 0.021.
    assert (times[:, 0] == 499.0).all()
    alpha, sigma = model.schedule.coefficients(times[:, 0])
    noise = (state - alpha[0] * images) / sigma[0]
    assert noise.square().mean().item() == pytest.approx(1, abs=5 * 0.021)
    assert times.shape == (6, local_sampling.STEPS + 1)


def test_strengths_of_a_batch_are_those_of_separate_calls(model, images):
    strengths = [0.0, 0.1, 0.25, 0.5, 0.8, 1.0]
    together = local_sample(model, images, strength=strengths, steps=4, key=KEY)
    for index, strength in enumerate(strengths):
        alone = local_sample(model, images[index : index + 1], strength=strength, steps=4, key=KEY)
        close(together[index : index + 1], alone)
    as_tensor = torch.tensor(strengths, dtype=torch.float64)
    assert torch.equal(together, local_sample(model, images, strength=as_tensor, steps=4, key=KEY))


def test_an_output_depends_neither_on_its_neighbors_nor_on_its_place(model, images):
    together = local_sample(model, images, strength=0.5, steps=4, key=KEY)
    # Threads that share a batch add in another order from place to place; a folder run gives each a batch of its own.
    turned = local_sample(model, images.flip(0), strength=0.5, steps=4, key=KEY).flip(0)
    close(turned, together)
    others = torch.cat([images[:1], torch.zeros_like(images[1:])])
    close(local_sample(model, others, strength=0.5, steps=4, key=KEY)[0], together[0])
    close(torch.cat([local_sample(model, one[None], strength=0.5, steps=4, key=KEY) for one in images]), together)


def test_strength_and_its_sigma_are_one_level(model):
    by_strength = Level(strength=0.35).times(model.schedule, 3)
    by_sigma = Level(sigma=model.schedule.ratio(by_strength)).times(model.schedule, 3)
    torch.testing.assert_close(by_sigma, by_strength, rtol=0, atol=1e-9)  # float64 there and back, of about 350


def test_same_key_same_images_and_another_key_others(model, images):
    first, again = (local_sample(model, images, strength=0.5, steps=2, key=KEY) for _ in range(2))
    assert torch.equal(first, again)
    other = local_sample(model, images, strength=0.5, steps=2, key=SecretKey.from_seed(4))
    assert ((first - other).abs().mean(dim=(1, 2, 3)) > 0.01).all()  # every image, by more than a gray level on average


def test_without_a_key_every_call_differs(model, images):
    first, second = (local_sample(model, images, strength=0.5, steps=2) for _ in range(2))
    assert ((first - second).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_variants_are_further_samples_of_the_same_images(model, images):
    variants = [local_sample(model, images, strength=0.5, steps=2, key=KEY, variant=number) for number in range(3)]
    digests = {hashlib.sha256(one.numpy().tobytes()).digest() for batch in variants for one in batch}
    assert len(digests) == 18
    assert torch.equal(variants[0], local_sample(model, images, strength=0.5, steps=2, key=KEY))


def test_copies_of_one_image_get_one_output(model, images):
    copies = images[:1].expand(6, -1, -1, -1)
    outputs = local_sample(model, copies, strength=0.5, steps=2, key=KEY)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_outputs_are_images(model, images):
    outputs = local_sample(model, images, strength=0.9, steps=2, key=KEY)
    assert (outputs.dtype, outputs.shape, outputs.device.type) == (torch.float32, images.shape, "cpu")
    assert outputs.abs().max() <= 1


def test_the_number_of_network_calls_is_the_one_promised(model, images):
    for name, solver in SOLVERS.items():
        calls = []
        counted = counting(model, calls)
        local_sample(counted, images, strength=0.5, steps=5, key=KEY, solver=solver)
        assert len(calls) == solver.calls(5), name


def counting(model, calls):
    """The model, whose network calls are noted."""
    from dataclasses import replace

    network = model.denoiser.network
    noting = replace(model.denoiser, network=lambda x, t: calls.append(t) or network(x, t))
    return replace(model, denoiser=noting)


REFUSED = {
    "images must be (batch, 3, 16, 16), got (6, 3, 15, 16)": lambda x: {"images": x[:, :, 1:], "strength": 0.5},
    "images must be (batch, 3, 16, 16), got (6, 1, 16, 16)": lambda x: {"images": x[:, :1], "strength": 0.5},
    "images must be (batch, 3, 16, 16), got (0, 3, 16, 16)": lambda x: {"images": x[:0], "strength": 0.5},
    "images must lie in [-1, 1], got values from 0 to 255: divide 8-bit by 127.5, less 1": lambda x: {
        "images": torch.linspace(0, 255, x.numel()).view_as(x),
        "strength": 0.5,
    },
    "images must lie in [-1, 1], got values from nan to nan": lambda x: {"images": x * torch.nan, "strength": 0.5},
    "strength must be in [0, 1], got 1.4": lambda x: {"images": x, "strength": 1.4},
    "strength must be in [0, 1], got -0.1": lambda x: {"images": x, "strength": -0.1},
    "strength must be in [0, 1], got nan": lambda x: {"images": x, "strength": float("nan")},
    "strength must be in [0, 1], got 2 for image 3 of 6": lambda x: {
        "images": x,
        "strength": [0.1, 0.0, 1.0, 2.0, 0.0, 0.0],
    },
    "strength must be one number or 6, one per image, got shape (2,)": lambda x: {"images": x, "strength": [0.1, 0.2]},
    "strength must be one number or 6, one per image, got shape (6, 1)": lambda x: {
        "images": x,
        "strength": torch.zeros(6, 1),
    },
    "sigma must be in [0, ": lambda x: {"images": x, "sigma": 1e6},
    "sigma must be one number or 6": lambda x: {"images": x, "sigma": [1.0]},
    "give either strength or sigma, got both": lambda x: {"images": x, "strength": 0.5, "sigma": 1.0},
    "give either strength or sigma, got neither": lambda x: {"images": x},
    "steps must be at least 1, got 0": lambda x: {"images": x, "strength": 0.5, "steps": 0},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_has_no_meaning_is_refused_with_a_sentence(model, images, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        local_sample(model, **REFUSED[sentence](images))
