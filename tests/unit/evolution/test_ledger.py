"""The ledger: votes are on the disk before they are used, and are never cast twice."""

import json

import pytest
import torch

from nearfar.errors import UsageError
from nearfar.evolution.ledger import Ledger, rounds_folder
from nearfar.io.manifest import manifest_path

SETTINGS = {"epsilon": "2.0", "rounds": 3}
POPULATION = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def never(*_):
    raise AssertionError("asked again")


def begun(out):
    with Ledger.open(out, SETTINGS, resume=False) as ledger:
        population = ledger.population("001-01", lambda: POPULATION)
        assert ledger.votes("001-01", population, lambda: [5, -2]) == [5, -2]
        yield ledger


def test_votes_are_on_the_disk_when_they_are_given_out(out):
    for _ in begun(out):
        lines = [json.loads(line) for line in manifest_path(rounds_folder(out)).read_text().splitlines()]
        assert lines[0] == {"run": SETTINGS}
        assert lines[1]["image"]["figures"] == {"0": 5, "1": -2}


def test_a_round_that_was_voted_on_is_taken_as_it_stands(out):
    list(begun(out))
    with Ledger.open(out, SETTINGS, resume=True) as ledger:
        kept = ledger.population("001-01", never)
        assert torch.equal(kept, POPULATION)
        assert ledger.votes("001-01", kept, never) == [5, -2]
        assert ledger.votes("001-02", kept, lambda: [0, 1]) == [0, 1]


def test_candidates_that_are_lost_are_made_again_and_must_be_the_same(out):
    list(begun(out))
    (rounds_folder(out) / "001-01.npy").unlink()
    with Ledger.open(out, SETTINGS, resume=True) as ledger:
        assert torch.equal(ledger.population("001-01", lambda: POPULATION), POPULATION)
        with pytest.raises(UsageError, match="are not those that were voted on"):
            ledger.votes("001-01", POPULATION + 1, never)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_candidates_that_are_damaged_are_made_again(out, content):
    list(begun(out))
    (rounds_folder(out) / "001-01.npy").write_bytes(content)
    with Ledger.open(out, SETTINGS, resume=True) as ledger:
        assert torch.equal(ledger.population("001-01", lambda: POPULATION), POPULATION)


def test_another_budget_is_refused_and_so_is_beginning_again(out):
    list(begun(out))
    with pytest.raises(UsageError, match="begun with another epsilon, and its votes are spent"):
        Ledger.open(out, {**SETTINGS, "epsilon": "4.0"}, resume=True)
    with pytest.raises(UsageError, match="is the record of an earlier run's votes: give --resume"):
        Ledger.open(out, SETTINGS, resume=False)


def test_two_runs_at_once_are_refused(out):
    for _ in begun(out):
        with pytest.raises(UsageError, match="another run holds"):
            Ledger.open(out, SETTINGS, resume=True)


def test_a_link_is_not_written_through(out, tmp_path):
    rounds_folder(out).symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is a link, through which nothing is written"):
        Ledger.open(out, SETTINGS, resume=False)
