"""Fidelity of outputs: means, intervals and chances against closed forms and other libraries."""

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from nearfar.audit.fidelity import fidelity, of_pairs, pair_distances, set_figures
from nearfar.audit.pairs import Pairs
from nearfar.metrics.features import feature_network, pixel_features
from nearfar.metrics.quality import psnr
from nearfar.metrics.sets import frechet_distance


def draws(count, numbers, seed, shift=0.0):
    return torch.randn(count, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def noisy_pairs(count=12, copies=2, size=16):
    """Smooth originals, outputs with a little noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    originals = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    of = torch.arange(count).repeat_interleave(copies)
    noise = torch.randn(count * copies, 3, size, size, generator=generator)
    outputs = (originals[of] + 0.05 * noise).clamp(-1, 1)
    peak = psnr(originals[of], outputs)
    return Pairs([], originals, [], outputs, of, peak, peak / 50, 0, [])


def test_what_pairs_keep_stands_beside_what_strangers_have_in_common(model):
    pairs, network = noisy_pairs(), feature_network("model", model)
    distance = pair_distances(pairs, network)
    peak, structure, perceptual = fidelity(pairs, distance, network, (12.5, 0.1))
    assert peak.value == pytest.approx(pairs.psnr.mean().item())
    assert peak.count == 24
    assert peak.low < peak.value < peak.high
    assert (peak.chance, structure.chance) == (12.5, 0.1)
    assert perceptual.high < perceptual.chance
    assert perceptual.network == network.name
    assert "not LPIPS" in perceptual.note
    assert peak.library.startswith("nearfar ")


def test_pixels_have_no_perceptual_distance():
    pairs, network = noisy_pairs(), pixel_features(16)
    distance = pair_distances(pairs, network)
    assert distance is None
    assert [figure.name for figure in fidelity(pairs, distance, network, None)] == ["PSNR, dB", "SSIM"]


def test_one_original_has_no_interval_and_no_chance(model):
    figures = fidelity(noisy_pairs(1, 1), torch.ones(1).double(), feature_network("model", model), None)
    assert [(figure.low, figure.high, figure.chance) for figure in figures] == [(None, None, None)] * 3


def test_the_interval_covers_the_mean_19_times_in_20_though_outputs_of_one_original_are_alike():
    covered = 0
    for seed in range(100):
        own, of = draws(40, 1, seed), torch.arange(40).repeat_interleave(3)
        values = (own[of] + 0.1 * draws(120, 1, 1000 + seed))[:, 0]
        figure = of_pairs("some", values, of, None)
        covered += figure.low < 0 < figure.high
    assert 87 <= covered <= 99


def test_outputs_stand_against_the_half_that_they_were_not_made_from():
    originals = draws(60, 6, 0)
    found = {figure.name: figure for figure in set_figures(originals, originals, torch.arange(60), None, "net")}
    assert list(found) == ["Fréchet distance", "kernel distance", "precision", "recall"]
    assert all(figure.value == figure.chance for figure in found.values())
    assert found["Fréchet distance"].value > 0.3
    assert found["precision"].count == 30
    assert "the other half of the originals, 8 splits" in found["recall"].note


def test_a_reference_gives_the_distance_to_it():
    originals, reference = draws(40, 6, 0), draws(50, 6, 1)
    outputs = draws(80, 6, 2, shift=1.0)
    of = torch.arange(40).repeat_interleave(2)
    found = {figure.name: figure for figure in set_figures(originals, outputs, of, reference, "net")}
    assert found["Fréchet distance"].value == pytest.approx(frechet_distance(reference, outputs[::2]))
    assert found["Fréchet distance"].chance == pytest.approx(frechet_distance(reference, originals))
    assert found["kernel distance"].low > found["kernel distance"].chance


def test_the_frechet_distance_is_that_of_torchmetrics():
    """Its features are ours; it needs more images than features."""

    class Same(torch.nn.Module):
        num_features = 5

        def forward(self, vectors):
            return vectors

    metric = FrechetInceptionDistance(feature=Same())
    real, other = draws(80, 5, 0), draws(70, 5, 1, shift=0.5)
    metric.update(real, real=True)
    metric.update(other, real=False)
    assert frechet_distance(real, other) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_few_images_have_no_distance_of_sets():
    assert set_figures(draws(15, 4, 0), draws(15, 4, 1), torch.arange(15), None, "net") == []
    assert len(set_figures(draws(16, 4, 0), draws(16, 4, 1), torch.arange(16), None, "net")) == 4
