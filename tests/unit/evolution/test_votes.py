"""Votes: what one image or person more changes, what noise is added, and that each image is read once."""

import sys
from collections import Counter

import pytest
import torch
from PIL import Image

from nearfar.errors import UsageError
from nearfar.evolution import votes
from nearfar.evolution.votes import counted, list_voters, noisy, read_voters
from nearfar.io import stacks
from nearfar.metrics.features import pixel_features
from nearfar.tensors import ImageContract

CONTRACT = ImageContract(16, 3)
PIXELS = pixel_features(16)


@pytest.fixture
def private(tmp_path, smooth):
    """Eight pictures of three persons (or classes)."""
    for number, name in enumerate(("ann/1", "ann/2", "ann/3", "ann/4", "bob/1", "bob/2", "cid/1", "cid/2")):
        path = tmp_path / "private" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(number).save(path)
    return tmp_path / "private"


def read(private, grouping):
    return read_voters(private, grouping, CONTRACT, PIXELS)


def candidates(count=6):
    drawn = torch.randn(count, 3 * 16 * 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def test_images_classes_and_persons_vote(private):
    assert {name: len(one) for name, one in read(private, "images").vectors.items()} == {"": 8}
    assert {name: len(one) for name, one in read(private, "classes").vectors.items()} == {"ann": 4, "bob": 2, "cid": 2}
    assert {name: len(one) for name, one in read(private, "persons").vectors.items()} == {"": 3}
    for grouping in ("images", "persons"):
        assert torch.allclose(read(private, grouping).vectors[""].norm(dim=1), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize(("grouping", "gone"), [("images", "ann/2.png"), ("persons", "ann"), ("classes", "bob/1.png")])
def test_one_image_or_person_less_changes_one_count_by_one(private, grouping, gone):
    before = read(private, grouping).vectors
    path = private / gone
    for file in [path] if path.is_file() else list(path.iterdir()):
        file.unlink()
    after = read(private, grouping).vectors
    changes = [counted(before[name], candidates()) - counted(after[name], candidates()) for name in before]
    assert sorted(torch.cat(changes).tolist()) == [0] * (6 * len(before) - 1) + [1]


def test_a_vote_goes_to_the_nearest_candidate(private):
    vectors, choice = read(private, "images").vectors[""], candidates()
    by_hand = Counter(max(range(6), key=lambda place: float(one @ choice[place])) for one in vectors)
    assert counted(vectors, choice).tolist() == [by_hand[place] for place in range(6)]


def test_each_image_is_read_once(private, monkeypatch):
    read_paths = Counter()

    def spied(path):
        read_paths[path] += 1
        return original(path)

    original = stacks.read_picture
    monkeypatch.setattr(stacks, "read_picture", spied)
    read(private, "classes")
    assert set(read_paths.values()) == {1}
    assert len(read_paths) == 8


def test_what_cannot_be_read_has_no_vote_and_is_named(private):
    (private / "ann" / "5.png").write_bytes(b"no picture")
    (private / "ann" / "6.gif").write_bytes(b"GIF89a")
    voters = read(private, "images")
    assert len(voters.vectors[""]) == 8
    assert {entry.name for entry in voters.failed} == {"ann/5.png", "ann/6.gif"}


@pytest.mark.parametrize("grouping", ["classes", "persons"])
def test_folders_that_mean_something_hold_all_images(private, grouping):
    Image.new("RGB", (8, 8)).save(private / "loose.png")
    with pytest.raises(UsageError, match=r"each image lies in a folder of its own kind, but loose\.png does not"):
        list_voters(private, grouping)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no image that can be read"):
        list_voters(tmp_path, "images")


def test_noise_has_the_deviation_that_it_is_said_to_have():
    counts = torch.zeros(20_000, dtype=torch.int64)
    drawn = torch.tensor(noisy(counts, 3.0), dtype=torch.float64)
    assert abs(drawn.mean()) < 5 * 3 / 20_000**0.5
    assert abs(drawn.std() - 3) < 5 * 3 / 40_000**0.5
    assert noisy(torch.tensor([3, 0, 1]), 0.0) == [3, 0, 1]


def test_without_the_library_of_the_noise_nothing_is_voted(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    with pytest.raises(UsageError, match=r"comes from OpenDP: pip install 'nearfar\[private\]'"):
        votes.check_noise(1.0)
    votes.check_noise(0.0)
