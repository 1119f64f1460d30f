"""`nearfar anonymize` from end to end with the tiny model: what it shows, keeps, redoes and strips."""

import json
import re
import stat

import numpy as np
import pytest
from PIL import Image

from folders import contents, state
from nearfar.diffusion.noise import SecretKey
from nearfar.io.manifest import manifest_path, read_manifest


@pytest.fixture
def source(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 6)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def key(tmp_path):
    return "--key-file", tmp_path / "key"


@pytest.fixture
def summary(anonymize):
    """Run with --json; the summary, which must be all that stands on stdout."""

    def call(*arguments):
        result = anonymize(*arguments, "--json")
        assert result.exit_code in (0, 3), result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    return call


# What it shows


def test_all_images_are_done_under_their_names(source, out, anonymize):
    result = anonymize(source, out)
    assert result.exit_code == 0
    assert contents(out).keys() == contents(source).keys()
    assert result.stdout.startswith("6 done, 0 kept, 0 failed in ")
    assert result.stdout.endswith(f" s; results in {out}, record in {manifest_path(out)}\n")
    for name in contents(source):
        with Image.open(source / name) as before, Image.open(out / name) as after:
            assert (before.size, before.mode, before.format) == (after.size, after.mode, after.format)
            assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).mean() > 1  # it is another picture


def test_what_is_about_to_happen_is_said_on_stderr(source, out, anonymize, model_folder):
    (source / "notes.txt").touch()
    (source / "folder.png").mkdir()
    lines = anonymize(source, out, "--strength", 0.5, "--batch-size", 4).stderr.splitlines()
    assert lines[0] == f"model     {model_folder}, 16x16, license not stated, on cpu"
    # Half of the way from -1 to 999 is 499; betas from 1e-4 to 0.02 leave abar = 0.0786 there: sqrt(1/abar - 1) = 3.42.
    assert lines[1] == "level     strength 0.5 = time 499 = sigma 3.424"
    # The longest distance between two images in [-1, 1] is 2 sqrt(3 x 16 x 16) = 55.43; by 3.424 that is 16.2.
    assert lines[2].startswith("solver    dpm++sde: local-prior needs the model's profile, which nearfar models")
    bound = "nothing is proven: the noise is too weak (two images can differ by 16.2 times the noise, "
    assert lines[3].startswith(f"privacy   {bound}")
    assert lines[4] == "work      6 images in batches of 4, 0 kept, 1 unusable, 1 files that are no images"
    assert lines[-1] == "failed    folder.png: a folder with an image's name: give nearfar that folder by itself"


def test_summary_for_machines(source, out, anonymize, smooth):
    smooth(0, (20, 17)).save(source / "large.png")
    (source / "empty.png").touch()
    (source / "notes.txt").touch()
    result = anonymize(source, out, "--strength", 0.5, "--json", "--batch-size", 4, "--fit", "cover")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    settings = found.pop("settings")
    assert 0 <= found.pop("network_seconds") < 1000
    assert 0 <= found.pop("seconds") < 1000
    assert found == {
        "total": 8,
        "done": 7,
        "kept": 0,
        "failed": [{"name": "empty.png", "reason": "empty.png is empty (0 bytes): restore it or remove it"}],
        "ignored": 1,
        "reduced": 1,
        "batches": 2,
        "batch_size": 4,
        "out": str(out),
        "manifest": str(manifest_path(out)),
        "exit_code": 3,
    }
    assert settings.keys() == {
        "mark",
        "command",
        "nearfar",
        "model",
        "strength",
        "time",
        "sigma",
        "steps",
        "solver",
        "stands_in_for",
        "precision",
        "warp",
        "fit",
        "keep_metadata",
        "label",
        "size",
        "sampled",
    }
    assert (settings["command"], settings["strength"], settings["time"]) == ("anonymize", 0.5, 499.0)
    assert (settings["steps"], settings["solver"], settings["fit"]) == (2, "dpm++sde", "cover")


@pytest.mark.parametrize(("shape", "notes"), [((16, 16), 0), ((16, 9), 0), ((9, 17), 1), ((400, 300), 1)])
def test_detail_that_the_model_cannot_give_back_is_pointed_out(tmp_path, out, smooth, anonymize, shape, notes):
    (tmp_path / "photos").mkdir()
    smooth(0, shape).save(tmp_path / "photos" / "photo.png")
    result = anonymize(tmp_path / "photos", out)
    sentence = "note      1 images are larger than the model's 16 pixels: detail is gone, --tile would keep it"
    assert result.stderr.splitlines().count(sentence) == notes


def test_every_solver_and_fit_is_offered(tmp_path, out, key, summary, write_pictures):
    names = write_pictures(tmp_path / "wide", 2, (16, 10))  # in three steps, so that second order shows
    for solver in ("dpm++sde", "ancestral", "ddim", "dpm++", "heun"):
        for fit in ("pad", "cover"):
            found = summary(tmp_path / "wide", out / solver / fit, *key, "--steps", 3, "--solver", solver, "--fit", fit)
            assert (found["done"], found["settings"]["solver"], found["settings"]["fit"]) == (2, solver, fit)
    results = [path.read_bytes() for path in out.rglob("*.png")]
    assert len(set(results)) == len(results) == 5 * 2 * len(names)  # one key, and yet every way gives its own image


def test_sigma_is_another_word_for_strength(source, out, summary):
    level = summary(source, out / "a", "--strength", 0.35)["settings"]
    again = summary(source, out / "b", "--sigma", level["sigma"])["settings"]
    assert again["strength"] == pytest.approx(0.35, abs=1e-12)


def test_strength_is_0_35_unless_stated(source, out, summary):
    assert summary(source, out)["settings"]["strength"] == pytest.approx(0.35, abs=1e-12)


# Dry run


def test_dry_run_writes_nothing(tmp_path, source, out, key, anonymize):
    before = state(tmp_path)
    result = anonymize(source, out, *key, "--dry-run")
    assert result.exit_code == 0
    work, cost = result.stderr.splitlines()[-2:]
    assert work.startswith("work      6 images in batches of 8, 0 kept")
    assert re.fullmatch(r"time      2 network calls of \S+ s for 8 images each, 1 at once: about .*s", cost)
    assert state(tmp_path) == before


def test_dry_run_for_machines(source, out, anonymize):
    (source / "folder.png").mkdir()
    plan = json.loads(anonymize(source, out, "--dry-run", "--json").stdout)
    assert (plan["todo"], plan["kept"], plan["batch_size"], plan["network_calls"]) == (6, 0, 8, [2, 2])
    assert 0 < plan["call_seconds"] * 2 == pytest.approx(plan["seconds"][0])
    assert [entry["name"] for entry in plan["unusable"]] == ["folder.png"]


def test_dry_run_of_a_resumed_run_tells_what_is_left_and_writes_nothing(tmp_path, source, out, key, anonymize):
    anonymize(source, out, *key)
    next(out.rglob("*.png")).unlink()
    before = state(tmp_path)
    result = anonymize(source, out, *key, "--dry-run", "--resume")
    assert result.stderr.splitlines()[-2].startswith("work      1 images in batches of 8, 5 kept")
    assert state(tmp_path) == before


# Keys


def test_key_file_is_made_once_for_its_owner_alone(tmp_path, source, out, key, anonymize):
    assert anonymize(source, out / "a", *key).exit_code == 0
    path = tmp_path / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_text()
    assert len(SecretKey.load(path).secret) == 32
    assert anonymize(source, out / "b", *key).exit_code == 0
    assert path.read_text() == written
    assert contents(out / "a") == contents(out / "b")


# Resuming


def test_resuming_a_complete_run_does_nothing(source, out, key, summary):
    summary(source, out, *key)
    before = contents(out)
    found = summary(source, out, *key, "--resume")
    assert (found["kept"], found["done"], found["batches"]) == (6, 0, 0)
    assert contents(out) == before


@pytest.mark.parametrize(
    "change", ["--strength=0.2", "--steps=3", "--solver=ddim", "--fit=cover", "--keep-metadata", "--sigma=1"]
)
@pytest.mark.parametrize("with_key", [True, False])
def test_other_settings_are_refused_and_nothing_is_lost(source, out, key, anonymize, change, with_key):
    options = key if with_key else ()
    anonymize(source, out, *options)
    before = contents(out)
    result = anonymize(source, out, *options, "--resume", change)
    assert result.exit_code == 2
    assert f"{out} was made with other settings (" in result.stderr
    assert "repeat them, or choose another output" in result.stderr
    assert contents(out) == before


def test_another_model_is_refused(source, out, key, anonymize, nearfar):
    anonymize(source, out, *key)
    result = nearfar("anonymize", source, out, *key, "--resume", "--device", "cpu", "--steps", 2)
    assert result.exit_code == 2
    assert "was made with other settings (model " in result.stderr


@pytest.mark.parametrize("keys", [("--key-file", "other key"), ()])
def test_another_key_or_none_is_refused(source, out, key, anonymize, keys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    anonymize(source, out, *key)
    result = anonymize(source, out, *keys, "--resume")
    assert result.exit_code == 2
    assert "has another key: give the --key-file that it began with, or none if it had none" in result.stderr


def test_a_changed_source_is_redone(source, out, key, summary):
    summary(source, out, *key)
    before = contents(out)
    Image.new("RGB", (16, 16), "teal").save(source / "000.png")
    found = summary(source, out, *key, "--resume")
    assert (found["kept"], found["done"]) == (5, 1)
    assert {name for name, content in contents(out).items() if content != before[name]} == {"000.png"}


@pytest.mark.parametrize("with_key", [True, False])
def test_a_damaged_result_is_redone(source, out, key, summary, with_key):
    options = key if with_key else ()
    summary(source, out, *options)
    before = contents(out)
    (out / "000.png").write_bytes(before["000.png"][:-1])
    found = summary(source, out, *options, "--resume")
    assert (found["kept"], found["done"]) == (5, 1)
    assert (contents(out) == before) is with_key  # without the key that image gets new noise
    assert contents(out).keys() == before.keys()


def test_resuming_goes_on_with_the_batch_size_of_before(source, out, key, summary):
    summary(source, out, *key, "--batch-size", 4)
    (out / "000.png").unlink()
    assert summary(source, out, *key, "--resume")["batch_size"] == 4
    assert summary(source, out, *key, "--resume", "--batch-size", 2)["batch_size"] == 2
    assert {record.batch_size for record in read_manifest(manifest_path(out)).records.values()} == {4}


def test_new_images_are_added(source, out, key, summary, write_pictures):
    summary(source, out, *key)
    write_pictures(source, 3, first=50)
    found = summary(source, out, *key, "--resume")
    assert (found["kept"], found["done"]) == (6, 3)


# Metadata


def test_metadata_is_stripped_unless_it_is_asked_for(source, out, smooth, anonymize):
    exif = Image.Exif()
    exif[315], exif[274] = "the artist's name", 6  # artist; orientation: turn by a right angle
    smooth(0, (20, 12)).save(source / "photo.jpg", exif=exif, comment=b"a comment", dpi=(300, 300))
    assert anonymize(source, out / "a").exit_code == 0
    assert anonymize(source, out / "b", "--keep-metadata").exit_code == 0
    stripped, kept = ((out / folder / "photo.jpg").read_bytes() for folder in "ab")
    assert b"artist" not in stripped
    assert b"comment" not in stripped
    assert b"the artist's name" in kept
    with Image.open(out / "a" / "photo.jpg") as plain, Image.open(out / "b" / "photo.jpg") as described:
        assert not plain.getexif()
        assert plain.size == described.size == (12, 20)  # turned, and not to be turned again
        assert described.getexif().get(274, 1) == 1
        assert described.info["dpi"] == (300, 300)


def test_pictures_that_may_not_have_been_meant_are_replaced_and_told(anonymize, tmp_path, smooth):
    for place in ("images/a.png", "images/b.png", ".ipynb_checkpoints/a.png"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        smooth(len(place)).save(tmp_path / "in" / place)
    for place in ("masks/a.png", "images/b_mask.png"):
        (tmp_path / "in" / place).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 3).save(tmp_path / "in" / place)
    result = anonymize(tmp_path / "in", tmp_path / "out")
    notes = [line for line in result.stderr.splitlines() if "like all others" in line]
    assert [line.removesuffix(": they are replaced like all others") for line in notes] == [
        "note      2 pictures, such as images/b_mask.png, look like masks or labels of others",
        "note      1 pictures, such as .ipynb_checkpoints/a.png, lie in hidden folders",
    ]
    for path in (tmp_path / "in").rglob("*.png"):
        out = tmp_path / "out" / path.relative_to(tmp_path / "in")
        assert out.exists()
        assert out.read_bytes() != path.read_bytes()
