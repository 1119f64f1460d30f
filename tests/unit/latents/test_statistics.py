"""The geometry of a cloud against closed forms, brute force and scikit-learn."""

import itertools
import math

import pytest
import torch
from sklearn.covariance import ledoit_wolf

from nearfar.errors import UsageError
from nearfar.latents import statistics as cloud
from nearfar.latents.statistics import geometry, gram_matrix, radial_spectrum


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(count, shape=(3, 16, 16), seed=0, deviation=1.0, mean=0.0):
    return mean + deviation * torch.randn(count, *shape, generator=generator(seed))


def described(latents):
    return geometry(gram_matrix(latents), latents[0].numel(), generator())


def rotated(latents, seed=3):
    """By a random rotation of all their numbers."""
    size = latents[0].numel()
    rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator(seed))).Q
    return (latents.flatten(1).double() @ rotation).reshape(latents.shape)


def test_a_round_gaussian_about_a_center_has_the_closed_form():
    dimension, deviation, offset = 3 * 32 * 32, 0.9, 0.2
    found = described(gaussian(200, (3, 32, 32), deviation=deviation, mean=offset))
    trace, center = deviation**2 * dimension, offset**2 * dimension
    cosine = center / (center + trace)
    assert found.norm.mean == pytest.approx(math.sqrt(center + trace), rel=2e-3)
    assert found.distance.mean == pytest.approx(deviation * math.sqrt(2 * dimension), rel=2e-3)
    assert found.distance.std == pytest.approx(deviation, rel=0.1)  # that of a chi with many degrees of freedom
    assert found.origin_cosine.mean == pytest.approx(cosine, rel=0.05)
    assert found.origin_angle.mean == pytest.approx(math.degrees(math.acos(cosine)), abs=0.2)
    assert found.center_distance.mean == pytest.approx(math.sqrt(trace * 200 / 199), rel=2e-3)
    assert found.squared_mean == pytest.approx(center, rel=0.05)
    assert found.trace == pytest.approx(trace, rel=5e-3)
    assert found.trace_of_square == pytest.approx(deviation**4 * dimension, rel=0.05)
    assert found.roundness == pytest.approx(1, abs=0.05)
    assert found.shrinkage > 0.97


@pytest.mark.slow
def test_moments_of_an_uneven_cloud_have_no_bias():
    """Over many clouds of ten, whose directions have variances 1 to 5 and whose numbers are not Gaussian."""
    variances = torch.linspace(1, 5, 40).reshape(1, 5, 8)
    uniform = [(torch.rand(10, 1, 5, 8, generator=generator(seed)) - 0.5) * 12**0.5 for seed in range(400)]
    found = [described(1 + part * variances.sqrt()) for part in uniform]
    expected = {"trace": variances.sum(), "trace_of_square": variances.square().sum(), "squared_mean": 40.0}
    for name, value in expected.items():
        drawn = torch.tensor([getattr(one, name) for one in found])
        error = drawn.std() / len(drawn) ** 0.5
        assert abs(drawn.mean() - value) < 3 * error < 0.05 * value, name


def test_roundness_counts_the_directions_that_are_filled():
    latents = gaussian(60, (1, 20, 20))
    latents[:, :, 5:] = 0
    assert described(latents).roundness == pytest.approx(0.25, rel=0.1)


def test_angles_and_distances_are_those_of_brute_force():
    latents = gaussian(9, (1, 2, 3), mean=0.5)
    points = latents.flatten(1).double()

    def angle(u, v):
        return math.degrees(math.acos(max(-1, min(1, (u @ v / (u.norm() * v.norm())).item()))))

    found = described(latents)
    origin = torch.tensor([angle(u, v) for u, v in itertools.combinations(points, 2)])
    corners = [
        angle(points[j] - points[i], points[k] - points[i])
        for i in range(9)
        for j, k in itertools.combinations([n for n in range(9) if n != i], 2)
    ]
    apart = torch.tensor([(u - v).norm() for u, v in itertools.combinations(points, 2)])
    left_out = torch.tensor([(points[n] - torch.cat([points[:n], points[n + 1 :]]).mean(0)).norm() for n in range(9)])
    for measured, values in [
        (found.origin_angle, origin),
        (found.triple_angle, torch.tensor(corners)),
        (found.distance, apart),
        (found.center_distance, left_out),
        (found.norm, points.norm(dim=1)),
    ]:
        assert measured.mean == pytest.approx(values.mean().item(), rel=1e-6)
        assert measured.std == pytest.approx(values.std().item(), rel=1e-6)
    assert found.triple_angle.mean == pytest.approx(60)


@pytest.mark.parametrize("count", [8, 30, 100])
def test_shrinkage_is_that_of_scikit_learn(count):
    latents = gaussian(count, (1, 4, 6)) * torch.linspace(0.5, 2, 24).reshape(1, 4, 6)
    _, expected = ledoit_wolf(latents.flatten(1).double().numpy())
    assert described(latents).shrinkage == pytest.approx(expected, rel=1e-9)


def test_nothing_but_the_spectrum_sees_a_rotation():
    latents = gaussian(12, (1, 8, 8), mean=0.3)
    before, after = described(latents.double()), described(rotated(latents))
    for name in vars(before):
        one, other = getattr(before, name), getattr(after, name)
        pairs = [(one, other)] if not hasattr(one, "mean") else [(one.mean, other.mean), (one.std, other.std)]
        assert all(a == pytest.approx(b, rel=1e-8) for a, b in pairs), name


def test_the_gram_matrix_is_exact_and_summed_in_parts(monkeypatch):
    latents = gaussian(9, (2, 7, 5), mean=100.0)
    monkeypatch.setattr(cloud, "PIXELS_AT_ONCE", 13)
    points = latents.flatten(1).double()
    torch.testing.assert_close(gram_matrix(latents), points @ points.T, rtol=1e-13, atol=0)


def test_triangles_are_looked_at_in_a_random_part_of_many_latents():
    gram = gram_matrix(gaussian(cloud.CORNERS + 20, (1, 4, 4)))
    one, same, other = (geometry(gram, 16, generator(seed)) for seed in (0, 0, 1))
    assert one == same
    assert one.triple_angle.std != other.triple_angle.std
    assert one.distance == other.distance


def test_white_noise_has_a_flat_spectrum_and_no_mean():
    found = radial_spectrum(gaussian(300, (2, 16, 12), deviation=0.5))
    coefficients = torch.tensor(found.coefficients)
    assert coefficients.sum() == 16 * 12
    assert found.frequencies == tuple(range(len(coefficients)))
    error = 0.25 * (2 / (coefficients * 300)) ** 0.5
    assert ((torch.tensor(found.variance) - 0.25).abs() < 4 * error).all()
    assert ((torch.tensor(found.mean)).abs() < 4 * error / 300**0.5 + 2e-3).all()


def test_the_spectrum_adds_up_to_trace_and_squared_mean():
    latents = gaussian(20, (3, 8, 8), mean=0.4) * torch.linspace(0.1, 2, 8)
    found, shape = radial_spectrum(latents), described(latents)
    coefficients = torch.tensor(found.coefficients, dtype=torch.float64)
    total, center = (
        (torch.tensor(part, dtype=torch.float64) @ coefficients).sum() for part in (found.variance, found.mean)
    )
    assert total.item() == pytest.approx(shape.trace, rel=1e-6)
    assert center.item() == pytest.approx(shape.squared_mean, rel=1e-6)


def test_a_wave_lies_at_its_frequency():
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 16, 16)
    amplitudes = gaussian(50, (1, 1, 1), seed=5)
    found = torch.tensor(radial_spectrum(amplitudes * wave).variance)[0]
    assert found.argmax() == 3
    assert found[3] / found.sum() > 0.999


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (gaussian(7), "statistics need at least 8 images, got 7: add some"),
        (gaussian(1).expand(9, -1, -1, -1), "statistics need images that differ, got one 9 times: add others"),
    ],
)
def test_a_cloud_without_a_shape_is_refused(latents, message):
    with pytest.raises(UsageError) as error:
        described(latents)
    assert str(error.value) == message


def test_latents_that_overflowed_are_refused():
    latents = gaussian(9)
    latents[3, 0, 0, 0] = float("inf")
    with pytest.raises(UsageError, match="latents must be finite"):
        gram_matrix(latents)


def test_copies_and_a_latent_at_the_origin_leave_everything_finite():
    latents = gaussian(10, (1, 4, 4))
    latents[1], latents[2] = latents[0], 0
    found = described(latents)
    # eight of the 120 triangles are flat: one angle of 0, and two without a side
    assert found.triple_angle.mean == pytest.approx(180 * 112 / (3 * 112 + 8))
    assert math.isfinite(found.origin_angle.std)
