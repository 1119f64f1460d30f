"""A run that is killed at random moments and resumed ends byte-identical to one that never was."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from folders import contents, finished
from nearfar.io.manifest import manifest_path, read_manifest
from processes import Cold, Warm, wait_until

IMAGES, KILLS, COLD_KILLS = 60, 20, 2
RANDOM = random.Random()  # not seeded: the machine's load makes the moments random in any case


@dataclass(frozen=True)
class Place:
    """Sixty images in `in`, a key, and in `expected` what an undisturbed run makes of them."""

    folder: Path
    model: Path
    expected: dict[str, bytes]

    def arguments(self, out: Path) -> list[str]:
        """Fifteen batches in eight steps: about a second, with many moments to be killed in."""
        options = ["--device", "cpu", "--steps", "8", "--batch-size", "4", "--key-file", str(self.folder / "key")]
        return ["anonymize", str(self.folder / "in"), str(out), "--model", str(self.model), *options, "--resume"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder, write_pictures):
    folder = tmp_path_factory.mktemp("kill")
    names = write_pictures(folder / "in", IMAGES)
    expected: dict[str, bytes] = {}
    place = Place(folder, model_folder, expected)
    assert Warm(place.arguments(folder / "whole"), folder / "logs").wait().code == 0
    expected |= contents(folder / "whole")
    assert sorted(expected) == names
    return place


def kill_at_a_random_moment(process, out):
    """Whether it was killed before it ended by itself: while it starts, or while it works."""
    if RANDOM.random() < 0.2:
        time.sleep(RANDOM.uniform(0, 0.5))
    else:
        before = count(out)
        wait_until(lambda: count(out) > before, process)
        time.sleep(RANDOM.uniform(0, 0.4))
    process.signal(signal.SIGKILL)
    code = process.wait().code
    assert code in (-signal.SIGKILL, 0)
    return code == -signal.SIGKILL


def count(out):
    return sum(1 for _ in out.rglob("*.png"))


def check_complete(place, out):
    assert contents(out) == place.expected
    assert sorted(path.name for path in out.parent.iterdir() if path.name != "logs") == ["out", "out.manifest.jsonl"]
    records = read_manifest(manifest_path(out)).records
    assert sorted(records) == sorted(place.expected)
    assert {record.status for record in records.values()} == {"done"}


@pytest.mark.process
def test_twenty_kills_leave_no_trace(place, tmp_path, figures):
    kills, rounds = 0, 0
    while kills < KILLS:
        rounds += 1
        out = tmp_path / str(rounds) / "out"
        while kills < KILLS and kill_at_a_random_moment(Warm(place.arguments(out), tmp_path / "logs"), out):
            kills += 1
            assert finished(out).items() <= place.expected.items()
        assert Warm(place.arguments(out), tmp_path / "logs").wait().code == 0
        check_complete(place, out)
    figures["kills without a trace"] = f"{kills} in {rounds} runs of {IMAGES} images"


@pytest.mark.process
@pytest.mark.slow
def test_kills_of_the_command_as_users_start_it(place, tmp_path):
    out, kills = tmp_path / "out", 0
    while kills < COLD_KILLS and kill_at_a_random_moment(Cold(place.arguments(out), tmp_path / "logs"), out):
        kills += 1
        assert finished(out).items() <= place.expected.items()
    assert kills >= 1
    kept = len(read_manifest(manifest_path(out)).records)
    ended = Warm([*place.arguments(out), "--json"], tmp_path / "logs").wait()
    assert ended.code == 0
    assert json.loads(ended.out)["kept"] <= kept
    check_complete(place, out)
