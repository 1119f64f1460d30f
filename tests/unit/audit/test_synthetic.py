"""Attacks on synthetic sets: copies are found, strangers are not."""

import pytest

from nearfar.audit.synthetic import attack_synthetic
from nearfar.metrics.features import pixel_features


@pytest.fixture
def folder(tmp_path, smooth):
    """Write smooth pictures of these numbers; a picture of the same number is a copy."""

    def write(name, numbers):
        (tmp_path / name).mkdir()
        for place, number in enumerate(numbers):
            smooth(number).save(tmp_path / name / f"{place:03}.png")
        return tmp_path / name

    return write


def attack(outputs, private, **options):
    found = attack_synthetic(outputs, private, pixel_features(16), size=16, **options)
    return {figure.name: figure for figure in found.figures}, found


def test_copies_are_too_near_and_strangers_are_not(folder):
    private, held = folder("private", range(40)), folder("held", range(100, 140))
    figures, found = attack(folder("copies", [3, 5, 7, 9]), private, held_out=held)
    assert figures["synthetic images too near to a private one"].value == 1
    assert figures["held-out images too near to a private one"].value < 0.3
    assert figures["membership by the nearest output, area under the curve"].low > 0.4
    assert all((made - real).abs().max() == 0 for made, real in found.nearest)
    strangers, _ = attack(folder("strangers", range(200, 240)), private)
    assert strangers["synthetic images too near to a private one"].value < 0.3
    assert len(strangers) == 1


def test_copies_of_all_give_away_who_was_in(folder):
    private, held = folder("private", range(20)), folder("held", range(100, 120))
    figures, _ = attack(folder("copies", range(20)), private, held_out=held)
    assert figures["membership by the nearest output, area under the curve"].value == 1


def test_what_cannot_be_read_is_named(folder):
    private = folder("private", range(5))
    (private / "broken.png").write_bytes(b"no picture")
    _, found = attack(folder("made", [9, 10]), private)
    assert [entry.name for entry in found.rejected] == ["private/broken.png"]
