"""Norms, distances and angles against closed forms, and what high dimensions make of them."""

import math

import pytest
import torch

from nearfar.latents.shell import angles, norms, slerp

SHAPE = (3, 16, 32)
COUNT = math.prod(SHAPE)


def axis(number, length=1.0):
    """An image with one pixel that is not 0."""
    image = torch.zeros(COUNT, dtype=torch.float64)
    image[number] = length
    return image.view(1, *SHAPE)


def cloud(seed, batch=64):
    return torch.randn(batch, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_norms_and_distances_are_euclidean_over_all_pixels_of_an_image():
    x = torch.cat([axis(0, 3.0) + axis(1535, 4.0), torch.ones(1, *SHAPE, dtype=torch.float64)])
    assert norms(x).tolist() == [5, COUNT**0.5]
    assert norms(x - torch.cat([axis(0, 3.0), axis(0, 1.0)])).tolist() == [4, (COUNT - 1) ** 0.5]


@pytest.mark.parametrize("angle", [0, 1e-9, 1e-4, 0.3, math.pi / 2, 3, math.pi - 1e-4, math.pi - 1e-9, math.pi])
def test_angles_are_right_down_to_the_ends_where_the_arc_cosine_fails(angle):
    # acos of the scalar product gives 0 for 1e-9: its derivative is infinite at 1.
    turned = math.cos(angle) * axis(0, 5.0) + math.sin(angle) * axis(7, 5.0)
    assert angles(axis(0, 2.0), turned).item() == pytest.approx(angle, abs=1e-15, rel=1e-7)


def test_angles_do_not_depend_on_lengths():
    x, y = cloud(0, 4), cloud(1, 4)
    torch.testing.assert_close(angles(7 * x, y / 3), angles(x, y), rtol=0, atol=1e-14)  # rounding


def test_gaussian_clouds_lie_on_a_thin_shell_at_right_angles():
    x, y = cloud(2), cloud(3)
    # Standard deviations in d = 1536 dimensions: 1/sqrt 2 of a norm, 1 of a distance, 1/sqrt d of an angle.
    # 192 comparisons: five standard deviations, once in 10,000 runs for another seed.
    assert (norms(x) - COUNT**0.5).abs().max() < 5 / 2**0.5
    assert (norms(x - y) - (2 * COUNT) ** 0.5).abs().max() < 5
    assert (angles(x, y) - math.pi / 2).abs().max() < 5 / COUNT**0.5


def test_slerp_starts_at_x_and_ends_at_y():
    x, y = cloud(4, 3), 2 * cloud(5, 3)
    torch.testing.assert_close(slerp(x, y, share(0, 0, 0)), x, rtol=0, atol=1e-13)  # rounding
    torch.testing.assert_close(slerp(x, y, share(1, 1, 1)), y, rtol=0, atol=1e-13)


def test_slerp_interpolates_lengths_and_shares_the_angle():
    x, y = cloud(6, 3), 2 * cloud(7, 3)
    between = slerp(x, y, share(0.25, 0.5, 0.9))
    expected = norms(x) + share(0.25, 0.5, 0.9) * (norms(y) - norms(x))
    torch.testing.assert_close(norms(between), expected, rtol=1e-13, atol=0)  # rounding
    torch.testing.assert_close(angles(x, between), share(0.25, 0.5, 0.9) * angles(x, y), rtol=1e-13, atol=0)


def test_slerp_stays_on_the_shell_where_the_mean_falls_inside():
    x, y = cloud(8), cloud(9)
    half = share(0.5).expand(len(x))
    # The mean of two independent points has 1/sqrt 2 of their norm; the shell is 3 % thick, 4 standard deviations.
    assert ((norms(slerp(x, y, half)) / COUNT**0.5) - 1).abs().max() < 0.07
    assert (norms((x + y) / 2) / COUNT**0.5 - 0.5**0.5).abs().max() < 0.07


def test_slerp_between_images_of_one_direction_is_linear():
    x = cloud(10, 2)
    torch.testing.assert_close(slerp(x, x, share(0.5, 0.5)), x, rtol=0, atol=1e-13)  # rounding
    torch.testing.assert_close(slerp(x, 3 * x, share(0.25, 0.5)), share(1.5, 2)[:, None, None, None] * x)
