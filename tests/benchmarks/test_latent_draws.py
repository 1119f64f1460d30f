"""Draws of latents in parts."""

import torch

from benchmarks.support import latent_draws
from benchmarks.support.latent_draws import samples
from nearfar.latents.covariance import Diagonal, draw, white_noise

SHAPE = (3, 8, 8)


def generator():
    return torch.Generator().manual_seed(3)


def test_samples_come_in_parts_that_do_not_change_with_their_size(monkeypatch):
    covariance, mean = Diagonal.fit(torch.randn(10, *SHAPE, generator=generator())), torch.full(SHAPE, 2.0)
    whole = torch.cat(list(samples(mean, covariance, 0.9, 40, generator())))
    monkeypatch.setattr(latent_draws, "AT_ONCE", 7)
    assert [len(part) for part in samples(mean, covariance, 0.9, 40, generator())] == [7] * 5 + [5]
    assert torch.equal(torch.cat(list(samples(mean, covariance, 0.9, 40, generator()))), whole)
    expected = mean + 0.9 * draw(covariance, white_noise(40, SHAPE, generator()))
    torch.testing.assert_close(whole, expected)
