"""Evolve on folders: the outputs, resuming without voting twice, and that nothing else looks at private images."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from PIL import Image

import nearfar
from gaussian_models import gaussian
from nearfar.errors import ModelWarning, UsageError
from nearfar.evolution.ledger import Ledger, rounds_folder
from nearfar.io import stacks
from nearfar.io.manifest import manifest_path
from nearfar.jobs import evolve as job_module

HOW = {"count": 5, "epsilon": 50.0, "candidates": 4, "rounds": 3, "steps": 2, "features": "pixels", "batch_size": 3}


@pytest.fixture
def private(tmp_path, smooth):
    for number in range(6):
        path = tmp_path / "private" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(number).save(path)
    return tmp_path / "private"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def reads(monkeypatch):
    """Files that are read as pictures."""
    paths, original = [], stacks.read_picture
    monkeypatch.setattr(stacks, "read_picture", lambda path: paths.append(path) or original(path))
    return paths


def evolve(private, out, **options):
    return nearfar.evolve(gaussian(), private, out, **{**HOW, **options})


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_are_made_by_number_and_recorded(private, out):
    done = evolve(private, out)
    assert sorted(contents(out)) == [f"sample-000{number}.png" for number in range(1, 6)]
    assert (done.progress.done, list(done.failed)) == (5, [])
    assert [len(rounds) for rounds in done.rounds.values()] == [3]
    with Image.open(out / "sample-0001.png") as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_classes_share_the_images_and_are_named_by_their_folders(private, out):
    evolve(private, out, grouping="classes")
    assert sorted(contents(out)) == [
        *(f"dark/sample-000{n}.png" for n in (1, 2, 3)),
        "light/sample-0001.png",
        "light/sample-0002.png",
    ]


def test_each_private_image_is_read_once_in_a_whole_run(private, out, reads):
    evolve(private, out, grouping="classes")
    assert len(reads) == len(set(reads)) == 6


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_run_goes_on_without_voting_again(private, out, tmp_path, reads, monkeypatch, stop):
    """Stopped just after votes are on the disk; the votes that stand decide the rest."""
    cast = []

    def stopping(self, name, population, make):
        votes = original(self, name, population, lambda: cast.append(name) or make())
        if len(cast) == stop:
            raise KeyboardInterrupt
        return votes

    original = Ledger.votes
    monkeypatch.setattr(Ledger, "votes", stopping)
    with pytest.raises(KeyboardInterrupt):
        evolve(private, out)
    cast += [None] * 9
    evolve(private, out, resume=True)
    assert [name for name in cast if name] == ["001-01", "001-02", "001-03"]
    assert len(reads) == (12 if stop < 3 else 6)
    before = contents(out), contents(rounds_folder(out))
    evolve(private, out, resume=True)
    assert (contents(out), contents(rounds_folder(out))) == before


def test_the_same_votes_make_the_same_bytes(private, tmp_path):
    for name in ("one", "two"):
        evolve(private, tmp_path / name, epsilon=inf)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(rounds_folder(tmp_path / "one")) == contents(rounds_folder(tmp_path / "two"))


def test_nothing_that_is_kept_depends_on_a_private_image_but_through_votes(private, tmp_path, smooth, monkeypatch):
    """With the votes fixed, other private images give the same bytes in every file."""
    monkeypatch.setattr(job_module, "noisy", lambda counts, deviation: [3, 0, 1, 9])
    kept = []
    for name in ("one", "two"):
        evolve(private, tmp_path / name / "out")
        kept.append(contents(tmp_path / name))
        for number, path in enumerate(sorted(private.rglob("*.png"))):
            smooth(100 + number).save(path)
    for path in list(private.rglob("*.png"))[1:]:
        path.unlink()
    evolve(private, tmp_path / "three" / "out")
    kept.append(contents(tmp_path / "three"))
    assert kept[0] == kept[1] == kept[2]


def test_a_run_goes_on_with_its_own_budget_only(private, out):
    evolve(private, out)
    with pytest.raises(UsageError, match="its votes are spent"):
        evolve(private, out, epsilon=60.0, resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        evolve(private, out)


def test_an_image_that_cannot_be_read_is_named_and_the_others_vote(private, out):
    (private / "dark" / "broken.png").write_bytes(b"\x89PNG")
    done = evolve(private, out)
    assert [entry.name for entry in done.failed] == ["dark/broken.png"]
    assert "broken" not in manifest_path(out).read_text() + manifest_path(rounds_folder(out)).read_text()


def test_too_few_voters_are_told_to_the_owner_alone(private, out):
    done = evolve(private, out, epsilon=1.0)
    assert done.scant == {"": 6}
    assert evolve(private, out.with_name("free"), epsilon=inf).scant == {}


def test_a_model_that_was_trained_on_images_of_that_name_is_named(private, tmp_path):
    folder = private.rename(tmp_path / "my_utkface")
    known = gaussian()
    model = replace(known, provenance=replace(known.provenance, source="bundled/faces64"))
    with pytest.warns(ModelWarning, match="the guarantee does not hold for images that the model was trained on"):
        nearfar.evolve(model, folder, tmp_path / "out", **HOW)


def test_outputs_lie_near_what_was_voted_for(private, out):
    done = evolve(private, out, epsilon=inf, last=0.01, first=0.02)
    (last,) = (rounds[-1] for rounds in done.rounds.values())
    made = np.stack([np.asarray(Image.open(path)) for path in sorted(out.iterdir())]).astype(float)
    wanted = last.population[[vote > 0 for vote in last.votes]].permute(0, 2, 3, 1).numpy().astype(float)
    nearest = np.abs(made[:, None] - wanted[None]).mean((2, 3, 4)).min(1)
    assert nearest.max() < 8
