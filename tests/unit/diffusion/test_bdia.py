"""The two-state inverter: the published recurrence, and a return that is exact whatever the network."""

import numpy as np
import pytest
import torch

from nearfar.diffusion.bdia import BDIA, toward_clean, toward_noise
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.models.loading import load_model
from nearfar.sampling.inversion import denoise, invert, reconstruct

BETAS = np.linspace(1e-4, 0.02, 1000)
SIGNAL = np.cumprod(1 - BETAS)


class Wild:
    """A nonlinear network with random weights, which denoises nothing."""

    def __init__(self):
        self.schedule = NoiseSchedule.variance_preserving(torch.from_numpy(SIGNAL))
        self.weights = torch.randn(12, 12, dtype=torch.float64, generator=torch.manual_seed(1))

    def __call__(self, x_t, t):
        alpha, sigma = (c[:, None, None, None] for c in self.schedule.coefficients(t))
        mixed = torch.sin(x_t.flatten(1) @ self.weights).view_as(x_t) + 0.3 * x_t
        return (x_t - sigma * mixed) / alpha


def noise_of(wild, x):
    return np.sin(x @ wild.weights.numpy()) + 0.3 * x


def images(count):
    return torch.rand(count, 3, 2, 2, dtype=torch.float64, generator=torch.manual_seed(0)) * 2 - 1


def grid(*times, rows=1):
    return torch.tensor([times], dtype=torch.float64).expand(rows, -1)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_it_is_the_published_recurrence(gamma):
    """arXiv 2307.10829: z_{i-1} = g z_{i+1} - g (z_i / a_{i+1} - b_{i+1} / a_{i+1} eps_i) + a_i z_i + b_i eps_i.

    With a_i = alpha_{i-1} / alpha_i and b_i = sigma_{i-1} - sigma_i alpha_{i-1} / alpha_i.
    """
    wild, nodes, x = Wild(), (9, 200, 430, 700), images(1)
    alpha, sigma = np.sqrt(SIGNAL[list(nodes)]), np.sqrt(1 - SIGNAL[list(nodes)])
    a, b = alpha[:-1] / alpha[1:], sigma[:-1] - sigma[1:] * alpha[:-1] / alpha[1:]  # of the steps 1, 2, 3
    z_3, z_2 = (z.flatten(1).numpy() for z in toward_noise(wild, x, grid(*nodes), BDIA(gamma)))
    for i in (2, 1):
        eps = noise_of(wild, z_2)
        z_1 = gamma * (z_3 - (z_2 / a[i] - b[i] / a[i] * eps)) + a[i - 1] * z_2 + b[i - 1] * eps
        z_3, z_2 = z_2, z_1
    np.testing.assert_allclose(z_2, x.flatten(1).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(z_3, (z_2 - b[0] * noise_of(wild, z_2)) / a[0], rtol=0, atol=1e-12)  # the explicit step


@pytest.mark.parametrize("steps", [1, 2, 7, 80])
def test_the_return_is_exact_for_any_network(steps):
    wild, x = Wild(), images(3)
    start = torch.tensor([0.0, 400.0, 999.0], dtype=torch.float64)
    start[0] = wild.schedule.clean_time  # an image that rests
    times = wild.schedule.grid(start, steps, 2.0)
    pair = toward_noise(wild, x, times.flip(1), BDIA())
    assert torch.equal(pair[0][0], x[0])
    assert (pair[0][1:] - x[1:]).square().mean((1, 2, 3)).sqrt().min() > 0.1
    torch.testing.assert_close(toward_clean(wild, pair, times, BDIA()), x, rtol=0, atol=1e-9)


def test_the_bundled_model_gives_images_back_to_float_precision():
    model = load_model(device="cpu")
    faces = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    told = []
    again = reconstruct(
        model, faces, strength=[0.5, 0.9], steps=6, solver=BDIA(), on_step=lambda number, _: told.append(number)
    )
    torch.testing.assert_close(again, faces, rtol=0, atol=1e-6)
    assert told == [1, 2, 3, 4, 5] * 2


def test_a_pair_is_no_latent():
    model = load_model(device="cpu")
    with pytest.raises(UsageError, match=r"BDIA ends in a pair of states, and one latent alone has no way back"):
        invert(model, torch.zeros(1, 3, 32, 32), strength=0.5, solver=BDIA())
    with pytest.raises(UsageError, match=r"invert with FixedPointDDIM, Heun or DDIM\(eta=0\)"):
        denoise(model, torch.zeros(1, 3, 32, 32), strength=0.5, solver=BDIA())
