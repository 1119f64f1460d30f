"""The contest's rules on made-up rows."""

import pytest

from benchmarks.far.contest import BEFORE, OWN, Point, frontier, points, winner


def row(area, captured, distance):
    areas = {f"copied_area_{size}": area - offset for size, offset in ((8, 0), (16, 0.01), (24, 0.02))}
    return areas | {"captured": {"value": captured}, **dict.fromkeys(DISTANCES, distance)}


DISTANCES = ("kernel_distance", "layout_distance", "band_distance")


def test_points_are_means_on_the_way_from_real_images_to_faces():
    draw = {"real": row(0.05, 0, 1.0), "rows": {OWN: row(0, 1, 5.0), "a": row(0.3, 0.2, 2.0)}}
    other = {"real": row(0.05, 0, 0.0), "rows": {OWN: row(0, 1, 1.0), "a": row(0.5, 0.4, 0.75)}}
    found = {one.name: one for one in points([{"draws": {"0": draw, "1": draw}}, {"draws": {"0": other}}])}
    assert (found["a"].area, found["a"].captured, found["a"].score) == pytest.approx((0.4, 0.3, 0.5))
    assert found[OWN].score == 1


def test_the_least_score_of_the_admitted_wins_and_else_the_least_area_within_reach():
    before, near, far = Point(BEFORE, 0.5, 0, 0.2, 1), Point("near", 0.4, 0, 0.24, 1), Point("far", 0.2, 0, 0.3, 1)
    captured = Point("captured", 0.0, 0.5, 0.1, 1)
    assert winner([before, near, far, captured]) == near
    assert frontier([before, near, far, captured, Point("worse", 0.5, 0, 0.3, 1)]) == [before, near, far]
    assert winner([before, near, far, Point("new", 0.1, 0.1, 0.9, 1)]).name == "new"
