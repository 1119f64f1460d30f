"""Spread families against dense matrices, other libraries, and samples of what they should find."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
import torch
from sklearn.covariance import ledoit_wolf

from nearfar.errors import UsageError
from nearfar.latents.covariance import (
    Diagonal,
    LowRank,
    Scalar,
    Spectral,
    Structured,
    cosines,
    draw,
    inverse_cosines,
    posterior_mean,
    radial_bands,
    shrunk_mean,
    spread_about,
    white_noise,
    whiten,
)

SHAPE = (3, 4, 6)
COUNT = math.prod(SHAPE)
SIDE = 3
"""Small enough that some frequencies lie outside the coarse layout."""
OfThree = SimpleNamespace(fit=partial(Structured.fit, side=SIDE), __name__="Structured")
FAMILIES = [Scalar, Diagonal, Spectral, LowRank, OfThree]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, seed=0, shape=SHAPE):
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator(seed))


def correlated(count, seed=0):
    """Latents with a mean of 3 and correlations between all of their numbers."""
    mixing = torch.randn(COUNT, COUNT, dtype=torch.float64, generator=generator(99)) / 5
    return (noise(count, seed).flatten(1) @ mixing).view(-1, *SHAPE) + 3


def identity(values):
    return values


def dense(covariance, function=identity, shape=SHAPE):
    """The whole matrix, column by column; only for small latents."""
    count = math.prod(shape)
    return covariance.apply(function, torch.eye(count, dtype=torch.float64).view(count, *shape)).flatten(1)


def log_likelihood(mean, covariance, latents):
    """Logarithm of the density of N(mean, S) at each latent, in nats."""
    normal = torch.distributions.MultivariateNormal(mean.flatten(), dense(covariance, shape=mean.shape))
    return normal.log_prob(vectors(latents))


def vectors(latents):
    return latents.flatten(1)


def truth(family):
    """A covariance of the family: variances from 0.1 to 10, colors coupled, three strong directions."""
    some = noise(40, seed=7)
    if family is Scalar:
        return Scalar(2.5, COUNT)
    if family is Diagonal:
        return Diagonal(torch.logspace(-1, 1, COUNT, dtype=torch.float64).view(SHAPE), 0.0)
    if family is Spectral:
        steep = 10 / (1 + radial_bands(*SHAPE[1:]).double()) ** 2
        return replace(Spectral.fit(some), variances=steep * torch.tensor([0.05, 0.3, 1]).double().view(3, 1, 1))
    if family is OfThree:
        return Structured.fit(draw(truth(Spectral), noise(30, seed=5)), side=SIDE)
    values = torch.tensor([40.0, 20, 10]).double()
    return replace(LowRank.fit(some), directions=LowRank.fit(some).directions[:3], values=values, rest=0.5)


@each_family
def test_a_family_finds_its_own_covariance_in_samples(family):
    known, count = truth(family), 1500
    found = family.fit(draw(known, noise(count)) + 3)
    # Entry ij of an unbiased estimate has variance (S_ii S_jj + S_ij^2) / (N - 1): the squared error adds up to
    # (tr S^2 + (tr S)^2) / (N - 1), less where a family has fewer numbers to find or shrinks.
    exact = dense(known)
    allowed = (exact.square().sum() + exact.trace() ** 2) / (count - 1)
    assert (dense(found) - exact).square().sum() < 1.1 * allowed
    whitened = whiten(found, draw(known, noise(count, seed=1)))
    # Mean of `count COUNT` chi-squares: relative deviation sqrt(2 / (count COUNT)) = 0.43 %, and as much from the fit,
    # five times both: 3 %. An inverse of a whole fitted matrix is too large by COUNT / count = 5 %.
    assert whitened.square().mean().item() == pytest.approx(1, abs=0.03 + COUNT / count)


@each_family
def test_few_samples_tell_a_family_more_than_a_scalar_does(family):
    known = truth(family)
    latents, others = draw(known, noise(10, seed=3)), draw(known, noise(200, seed=4))
    mean = torch.zeros(SHAPE, dtype=torch.float64)
    gained = log_likelihood(mean, family.fit(latents), others) - log_likelihood(mean, Scalar.fit(latents), others)
    assert family is Scalar or gained.mean() > 5 * gained.std() / len(others) ** 0.5 > 0


@each_family
def test_the_root_twice_is_the_matrix_and_whitening_undoes_drawing(family):
    covariance, x = family.fit(correlated(20)), noise(5)
    torch.testing.assert_close(draw(covariance, draw(covariance, x)), covariance.apply(identity, x))
    torch.testing.assert_close(whiten(covariance, draw(covariance, x)), x)
    torch.testing.assert_close(covariance.apply(torch.ones_like, x), x)


@each_family
def test_a_function_is_one_of_the_matrix_and_of_its_eigenvalues(family):
    covariance = family.fit(correlated(20))
    values, turns = torch.linalg.eigh(dense(covariance))
    torch.testing.assert_close(dense(covariance, torch.log), turns * values.log() @ turns.T)
    assert dense(covariance, torch.log).trace().item() == pytest.approx(torch.logdet(dense(covariance)).item())


@each_family
def test_posterior_mean_is_that_of_the_dense_matrix_at_each_images_own_level(family):
    covariance, x, mean = family.fit(correlated(20)), noise(4), noise(1, seed=5)[0]
    alpha, sigma = (torch.tensor(values, dtype=torch.float64) for values in ([1, 0.9, 0.2, 0], [0, 0.4, 3, 1]))
    matrix, white, m = dense(covariance), torch.eye(COUNT, dtype=torch.float64), mean.flatten()
    expected = [
        m + a * matrix @ torch.linalg.solve(a**2 * matrix + s**2 * white, x_t - a * m)
        for x_t, a, s in zip(vectors(x), alpha, sigma, strict=True)
    ]
    torch.testing.assert_close(vectors(posterior_mean(mean, covariance, x, alpha, sigma)), torch.stack(expected))
    torch.testing.assert_close(posterior_mean(mean, covariance, x, alpha, sigma)[0], x[0])  # nothing hidden
    torch.testing.assert_close(posterior_mean(mean, covariance, x, alpha, sigma)[3], mean)  # all hidden


@each_family
def test_single_precision_latents_keep_their_dtype(family):
    latents = correlated(12)
    covariance, exact = family.fit(latents.float()), family.fit(latents)
    drawn = draw(covariance, noise(3).float())
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.double(), draw(exact, noise(3)), rtol=0, atol=2e-5)


def test_low_rank_is_ledoit_and_wolfs_estimate_without_bias():
    latents = correlated(40)
    matrix, share = ledoit_wolf(vectors(latents).numpy())
    covariance = LowRank.fit(latents)
    assert covariance.shrinkage == pytest.approx(share, rel=1e-12)
    np.testing.assert_allclose(dense(covariance).numpy(), matrix * 40 / 39, atol=1e-13)


def test_cosines_are_scipys_orthonormal_transform():
    x = noise(2, shape=(2, 5, 8))
    expected = scipy.fft.dctn(x.numpy(), norm="ortho", axes=(2, 3))
    np.testing.assert_allclose(cosines(x).numpy(), expected, atol=1e-13)
    torch.testing.assert_close(inverse_cosines(cosines(x)), x)


def test_bands_count_half_cycles_along_the_longer_side():
    assert radial_bands(3, 6).tolist() == [[0, 1, 2, 3, 4, 5], [2, 2, 3, 4, 4, 5], [4, 4, 4, 5, 6, 6]]


def test_spectral_is_exact_for_a_domain_that_is_reflected_at_its_borders():
    """Filtering white noise with a symmetric kernel and reflecting borders is diagonal in the cosine transform."""
    x = noise(4000, shape=(1, 8, 8))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")  # reflection between pixels, one pixel wide
    latents = (padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 8
    gain = (angle.cos()[:, None] + angle.cos()) / 2
    # A variance has a relative deviation of sqrt(2 / 4000) = 2.2 %, of the largest 1: five of them among 64 values.
    torch.testing.assert_close(Spectral.fit(latents).variances[0], gain.square(), rtol=0.11, atol=2e-3)


def test_structured_has_both_the_layout_and_the_texture():
    """An object in one place, with fine texture: neither the low rank nor the spectral family has both."""
    shape = (1, 16, 16)
    spot = torch.zeros(shape, dtype=torch.float64)
    spot[:, 4:12, 4:12] = 10
    texture = torch.where(radial_bands(16, 16) > 8, 0.3, 1.0).double()

    def latents(count, seed):
        fine = inverse_cosines(texture * noise(count, seed, shape))
        return fine + spot * noise(count, seed + 1, (1, 1, 1))

    few, others, mean = latents(60, 1), latents(200, 3), torch.zeros(shape, dtype=torch.float64)
    nats = {f: log_likelihood(mean, f.fit(few), others).mean().item() for f in (Spectral, LowRank, Structured)}
    assert nats[Structured] > max(nats[Spectral], nats[LowRank]) + 5


def test_what_lies_outside_the_layout_is_spectral():
    latents = correlated(30)
    found, spectral = Structured.fit(latents, side=SIDE), Spectral.fit(latents)
    x = cosines(noise(4))
    x[:, :, :SIDE, :SIDE] = 0
    fine = inverse_cosines(x)
    torch.testing.assert_close(draw(found, fine), draw(spectral, fine))
    inside = cosines(latents - latents.mean(0))[:, :, :SIDE, :SIDE].flatten(1)
    shown = inside.T @ inside / 29
    lowest = spectral.colors[0, 0] @ spectral.variances[:, 0, 0].diag() @ spectral.colors[0, 0].T
    block = found.directions @ found.values.diag() @ found.directions.T
    mixed = torch.lerp(shown[0, 0], lowest[0, 0], found.shrinkage)
    torch.testing.assert_close(block[0, 0], mixed)
    torch.testing.assert_close(block[0, 1], (1 - found.shrinkage) * shown[0, 1])


@pytest.mark.parametrize("family", [Diagonal, Spectral])
def test_what_is_alike_everywhere_is_shrunk_to_the_scalar(family):
    latents = noise(5, seed=2)
    covariance = family.fit(latents)
    values = covariance.variance if family is Diagonal else covariance.variances
    raw = latents.var(0).std()  # 0.7 at five latents: sqrt(2 / 4)
    assert values.std() < 0.35 * raw


def test_shrinkage_falls_as_latents_are_added():
    known = truth(Diagonal)
    shares = [Diagonal.fit(draw(known, noise(count))).shrinkage for count in (2, 10, 100, 1000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.3
    assert shares[-1] < 0.01


def test_latents_without_variance_somewhere_can_be_whitened():
    latents = correlated(6)
    latents[:, :, 0, 0] = 0
    latents[:, 1] = latents[:, 0]
    for family in FAMILIES:
        assert whiten(family.fit(latents), latents).isfinite().all()


def test_the_shrunk_mean_is_nearer_and_its_factor_is_as_expected():
    mean, count = torch.full((3, 16, 16), 0.2, dtype=torch.float64), 10
    latents = mean + noise(count, shape=(3, 16, 16))
    center, kept = shrunk_mean(latents)
    # |mean|^2 = 0.04 d, and the noise of ten latents 0.1 d: 0.04 / 0.14 is kept. A deviation of the squared norm of
    # sqrt(2 / d) relative to the noise makes 0.02.
    assert kept == pytest.approx(0.04 / 0.14, abs=0.06)
    torch.testing.assert_close(center, kept * latents.mean(0))
    assert (center - mean).norm() < 0.7 * (latents.mean(0) - mean).norm()


def test_nothing_is_kept_of_a_mean_that_is_noise():
    latents = noise(10)
    latents = latents - 0.9 * latents.mean(0)
    center, kept = shrunk_mean(latents)
    assert kept == 0
    assert center.abs().max() == 0


def test_draws_about_a_fitted_mean_lie_where_the_domain_does():
    """Mean over fits of |x|^2 and of |x - mean|^2 for the plug-in mean and the root of `1 - 1 / count`."""
    mean, count, variance = torch.full(SHAPE, 0.5, dtype=torch.float64), 5, 2.0
    fits = mean + variance**0.5 * noise(2000 * count, seed=4).view(2000, count, *SHAPE)
    x = fits.mean(1) + spread_about(count) * draw(Scalar(variance, COUNT), noise(2000, seed=5))
    squares = (x - mean).flatten(1).square().sum(1)
    # Deviation of one: variance sqrt(2 d) = 24; of the mean of 2000: 0.54.
    assert squares.mean().item() == pytest.approx(variance * COUNT, abs=2.7)
    assert spread_about(5, kept=0.0) == 1


def test_white_noise_is_the_same_at_once_and_in_parts():
    one = generator()
    parts = torch.cat([white_noise(count, SHAPE, one) for count in (7, 33)])
    assert torch.equal(parts, white_noise(40, SHAPE, generator()))


@each_family
def test_what_cannot_be_fitted_is_refused(family):
    with pytest.raises(UsageError, match=r"this spread needs at least [23] latents, got 1: add images"):
        family.fit(noise(1))
    with pytest.raises(UsageError, match=r"latents that differ, got one 5 times: add other images"):
        family.fit(noise(1).expand(5, -1, -1, -1) + 0.1)
    broken = noise(5)
    broken[3, 1, 2, 2] = math.nan
    with pytest.raises(UsageError, match=r"latents must be finite, got nan or infinity"):
        family.fit(broken)
