"""Copied area on constructed cases: copies, collages, shifted, mirrored and recolored copies, new images, noise."""

from functools import partial

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

from nearfar.domain.guards import turns_of
from nearfar.metrics import copied_area
from nearfar.metrics.copied_area import FLAT, SCALES, CopiedArea, nearest_patches, small


def textures(count, seed):
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return avg_pool2d(pad(noise, [3] * 4, mode="reflect"), 7, 1).clamp(-1, 1)


@pytest.fixture(scope="module")
def areas():
    return CopiedArea.fit(textures(40, 0), real=textures(60, 1))


def test_the_least_distances_are_those_of_the_definition():
    images, fitted = small(textures(2, 2)), small(textures(3, 3))
    fitted[1, :, 4:20, 6:22] = images[0, :, 4:20, 8:24]  # lies 2 pixels further left
    found = nearest_patches(images, fitted)
    assert found[16][0, 0, 1, 2] < 1e-6
    for size in SCALES:
        steps = range(-(size // 4), size // 4 + 1, size // 8)
        for place in range(0, 32 - size + 1, 4):
            patch = without_means(images[:1, :, place : place + size, 4 : 4 + size])
            least = min(
                distance(patch, without_means(fitted[:, :, place + y : place + y + size, 4 + x : 4 + x + size]))
                for y in steps
                for x in steps
                if 0 <= place + y <= 32 - size and 0 <= 4 + x <= 32 - size
            )
            assert found[size][0, 0, place // 4, 1].item() == pytest.approx(least, abs=1e-5)


def without_means(patches):
    return (patches - patches.mean((2, 3), keepdim=True)).double()


def distance(a, b):
    floor = FLAT**2 * a[0].numel()
    both = a.square().sum((1, 2, 3)) + b.square().sum((1, 2, 3)) + floor
    return (1 - (2 * (a * b).sum((1, 2, 3)) + floor) / both).min().item()


def test_real_images_have_the_quantile_and_copies_all(areas):
    assert areas.shares(textures(60, 1)).mean(0).tolist() == pytest.approx([0.05] * 3, abs=0.01)
    assert areas.shares(textures(60, 5)).mean(0).tolist() == pytest.approx([0.05] * 3, abs=0.08)
    assert areas.shares(textures(40, 0)).tolist() == [[1] * 3] * 40


def test_a_collage_is_copied_at_every_scale_that_its_parts_hold(areas):
    fitted, halves = textures(40, 0), textures(40, 0)
    halves[:, :, :, 16:] = fitted.roll(1, 0)[:, :, :, 16:]
    assert areas.shares(halves).mean(0)[:2].tolist() == [1, 1]


@pytest.mark.parametrize(
    "change", [lambda x: x.roll((1, -1), (2, 3)), lambda x: 0.8 * x + torch.tensor([0.1, 0, -0.1])[:, None, None]]
)
def test_shifted_and_recolored_copies_are_copies(areas, change):
    assert areas.shares(change(textures(40, 0)))[:, 1:].mean() > 0.9


def test_noise_is_no_copy_of_anything(areas):
    assert areas.shares(torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(7))).max() == 0


def test_a_mirrored_copy_counts_where_the_domain_may_be_mirrored(areas):
    mirrored = CopiedArea.fit(textures(40, 0), partial(turns_of, symmetry="mirror"), textures(60, 1))
    copies = textures(40, 0).flip(3)
    assert areas.shares(copies).mean() < 0.2
    assert mirrored.shares(copies).min() == 1


def test_images_of_other_sizes_are_seen_at_32_pixels(areas):
    large = interpolate(textures(40, 0), scale_factor=2.0)
    assert torch.equal(areas.shares(large), areas.shares(textures(40, 0)))


def test_half_of_the_fitted_images_stands_in_for_real_ones():
    found = CopiedArea.fit(textures(80, 0)).shares(textures(60, 1)).mean(0)
    assert found.tolist() == pytest.approx([0.05] * 3, abs=0.08)


def test_what_is_kept_is_what_was_fitted(areas):
    again = CopiedArea.from_flat(textures(40, 0), copied_area.as_it_is, areas.flat(40), areas.thresholds)
    images = torch.cat([textures(5, 8), textures(40, 0)[:5]])
    assert torch.equal(areas.shares(images), again.shares(images))
