"""Three parts of every data set: no picture is in two of them, and the last one is for the last table."""

from pathlib import Path

import torch
from PIL import Image

from benchmarks.support import domains

ROOT = Path(__file__).parents[2] / "benchmarks"


def pictures(*levels):
    return [Image.new("RGB", (4, 4), (level, 0, 0)) for level in levels]


def test_a_picture_of_an_earlier_part_is_in_no_later_one(monkeypatch):
    parts = (pictures(1, 2), pictures(2, 3, 4), pictures(1, 4, 5))
    monkeypatch.setitem(domains.DOMAINS, "made", lambda folder: parts)
    pools = domains.pools_of(Path(), "made")
    found = [[image.getpixel((0, 0))[0] for image in part] for part in (pools.fit, pools.choose, pools.report)]
    assert found == [[1, 2], [3, 4], [5]]
    assert torch.equal(domains.load_domain(Path(), "made", 4, 2, 0).held_out, domains.as_tensor(pictures(3, 4), 4))
    assert torch.equal(domains.load_report(Path(), "made", 4), domains.as_tensor(pictures(5), 4))


def test_crops_that_reach_across_the_border_are_in_no_part():
    assert domains.row_of("hubble64/001_x727_y473.png") == 473


def test_the_last_part_is_read_by_the_table_alone():
    readers = [file.name for file in ROOT.rglob("*.py") if "load_report" in file.read_text("utf-8")]
    assert set(readers) <= {"domains.py", "synthesis.py"}
