"""Distances of what people see: each answers to what it is for, and to nothing else."""

import pytest
import torch

from benchmarks.far import looks


def textures(count, seed):
    rough = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    return torch.nn.functional.interpolate(rough, size=(32, 32), mode="bilinear")


REAL, OTHERS = textures(60, 0), textures(60, 1)


@pytest.mark.parametrize("distance", [looks.layout_distance, looks.band_distance])
def test_a_set_is_at_no_distance_from_itself(distance):
    assert distance(REAL, REAL) == pytest.approx(0, abs=1e-9)
    assert distance(REAL, OTHERS) == pytest.approx(distance(OTHERS, REAL))


def test_a_shift_of_all_colors_is_told_in_gray_levels():
    """Along directions of length 1 in 48 numbers a shift of all by 10 has a mean size of about 0.8 times 10."""
    found = looks.layout_distance(REAL, REAL + 10 / 127.5)
    assert found == pytest.approx(10 * (2 / torch.pi) ** 0.5, rel=0.1)


def test_power_is_told_in_decibels():
    twice = REAL * 2**0.5
    assert looks.band_distance(REAL, twice) == pytest.approx(10 * torch.tensor(2.0).log10().item(), rel=0.02)
    flat = torch.full((4, 3, 32, 32), 0.2)
    wave = 0.1 * (torch.arange(32) * 2 * torch.pi * 5 / 32).cos().expand(4, 3, 32, 32)
    powers = looks.band_powers(flat + wave) - looks.band_powers(flat)
    assert powers[0].argmax() == 4  # five cycles along the image
    assert powers[1:].abs().max() < 0.1  # of light alone


@pytest.mark.parametrize(
    ("change", "seen", "unseen"),
    [
        ("noise of 4 levels", "band", "layout"),
        ("blur of 3 pixels, half", "band", "layout"),
        ("yellow-green cast of 8 levels", "layout", "band"),
        ("upper and lower half exchanged", None, "band"),
    ],
)
def test_changes_are_seen_by_the_distance_that_is_for_them(change, seen, unseen):
    both = {"layout": looks.layout_distance, "band": looks.band_distance}
    before = {name: one(REAL, OTHERS) for name, one in both.items()}
    after = {name: one(REAL, looks.CHANGES[change](OTHERS)) for name, one in both.items()}
    assert seen is None or after[seen] > 1.5 * before[seen]
    assert after[unseen] < 1.2 * before[unseen] + 0.1
