"""Folder commands to and from addresses, and jobs in shards: the bytes and the record of the plain run."""

import errno
import itertools
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pytest

from folders import contents
from nearfar.cli import work
from nearfar.cli.shards import worker
from nearfar.errors import UsageError
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.io.stores import Folder, Store
from nearfar.jobs.engines import in_turn

COUNT = itertools.count()
TEXT = Path("job.json").read_bytes
OPTIONS = {
    "anonymize": ("--steps=2", "--strength=0.5", "--key-file=key"),
    "enhance": ("--steps=2", "--scale=2", "--seed=3"),
    "reconstruct": ("--steps=2", "--strength=0.5", "--own-samples=0"),
    "invert": ("--steps=2", "--strength=0.5"),
    "augment": ("--steps=2", "--copies=2", "--strength=0.2-0.5"),
}


@pytest.fixture
def place(tmp_path, monkeypatch, write_pictures):
    """A working folder with pictures, a broken one and files that are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEARFAR_KEY_FILE", raising=False)
    write_pictures(tmp_path / "in", 9)
    (tmp_path / "in/bad.png").write_text("no picture")
    (tmp_path / "in/notes.txt").write_text("none either")
    return tmp_path


@pytest.fixture
def run(nearfar, model_folder):
    """Run a command with the tiny model on the CPU."""
    return lambda name, *words: nearfar(name, *words, "--model", model_folder, "--device", "cpu")


@pytest.fixture
def memory():
    """A prefix of fsspec's memory that no other test has."""
    return f"memory://bucket/{next(COUNT)}"


def held(url):
    """Every object below an address."""
    store = Store(url)
    return {one.name: store.read(one.name) for one in store.sources()}


def told(records):
    """What a record says that does not depend on the run: of a random salt, tags of sources do."""
    return {name: (one.status, one.target_sha256, one.figures) for name, one in records.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_folder_command_gives_the_same_to_and_from_an_address(name, place, run, memory):
    plain = run(name, "in", "plain", *OPTIONS[name])
    assert plain.exit_code == 3
    done = run(name, "in", f"{memory}/out", *OPTIONS[name])
    assert done.exit_code == 3
    assert "bad.png holds no PNG" in done.stderr
    assert held(f"{memory}/out") == contents(place / "plain")
    for path in (place / "in").rglob("*.*"):
        Store(f"{memory}/in").write(path.relative_to(place / "in").as_posix(), path.read_bytes())
    assert run(name, f"{memory}/in", "back", *OPTIONS[name]).exit_code == 3
    assert contents(place / "back") == contents(place / "plain")
    records = [read_manifest(manifest_path(place / out)) for out in ("plain", "back")]
    assert told(records[0].records) == told(records[1].records)
    assert records[0].header == records[1].header
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == []


def test_shards_of_a_data_set_are_its_files(place, run, memory):
    for number in range(3):
        (place / "set").mkdir(exist_ok=True)
        with tarfile.open(place / f"set/{number}.tar", "w") as tar:
            for path in sorted((place / "in").rglob("0*.png"))[number::3]:
                tar.add(path, path.name)
    assert run("augment", "set", "plain", *OPTIONS["augment"]).exit_code == 0
    assert run("augment", "set", f"{memory}/out", *OPTIONS["augment"]).exit_code == 0
    assert held(f"{memory}/out") == contents(place / "plain")
    assert len([name for name in held(f"{memory}/out.shards") if name.endswith(".manifest.jsonl")]) == 3


def test_a_shard_that_fails_again_and_again_is_given_up_and_named(place, run, nearfar, monkeypatch):
    plan(run, "--shards", 4)
    listing = (place / "out.shards/sources.jsonl").read_text()
    (place / "out.shards/sources.jsonl").write_text(listing.replace('["000.png"', '["../.png"'))
    monkeypatch.setattr(work, "answers", lambda job, key, how, tasks: in_turn(partial(worker, TEXT(), key), tasks, 2))
    done = nearfar("work", "job.json", "--key-file", "key")
    assert done.exit_code == 3
    assert "3 of 4 shards done, 1 failed, 0 missing" in done.stdout
    assert "'../.png', which is no file below" in done.stderr
    merged = nearfar("merge", "job.json", "--json")
    assert merged.exit_code == 3
    reasons = [entry["reason"] for entry in json.loads(merged.stdout)["failed"]]
    assert sum("was given up: the listing names" in reason for reason in reasons) == 3
    (place / "out.shards/sources.jsonl").write_text(listing)
    assert "4 of 4 shards done, 0 failed" in nearfar("work", "job.json", "--key-file", "key").stdout


def test_a_full_disk_leaves_whole_files_and_is_gone_on_with(place, run, nearfar, monkeypatch):
    run("anonymize", "in", "plain", *OPTIONS["anonymize"])
    plan(run, "--shards", 3)
    monkeypatch.setattr(work, "answers", lambda job, key, how, tasks: in_turn(partial(worker, TEXT(), key), tasks, 1))
    whole, room = Folder.put, [4]

    def put(self, file, name):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, file, name)

    monkeypatch.setattr(Folder, "put", put)
    full = nearfar("work", "job.json", "--key-file", "key")
    assert full.exit_code == 3
    assert "(No space left on device): mend that, then go on" in full.stderr
    assert contents(place / "out").items() < contents(place / "plain").items()
    room[0] = 1000
    again = nearfar("work", "job.json", "--key-file", "key")
    assert "3 of 3 shards done, 0 failed" in again.stdout
    assert contents(place / "out") == contents(place / "plain")


def test_what_was_merged_is_resumed_by_the_plain_run(place, run, nearfar):
    plan(run, "--shards", 3)
    do_all()
    assert nearfar("merge", "job.json").exit_code == 3
    again = run("anonymize", "in", "out", *OPTIONS["anonymize"], "--batch-size=16", "--resume", "--json")
    assert json.loads(again.stdout)["kept"] == 9


def plan(run, *words):
    done = run("plan", "anonymize", "in", "out", *OPTIONS["anonymize"], *words)
    assert done.exit_code == 0, done.stderr


def do_all():
    """All shards of job.json in this process."""
    do = worker(TEXT(), str(Path("key").resolve()))
    for number in range(len(json.loads(TEXT())["shards"])):
        do(number)


@pytest.mark.parametrize("shards", [1, 4, 100])
def test_any_number_of_shards_in_any_order_gives_the_same(shards, place, run, nearfar):
    run("anonymize", "in", "plain", *OPTIONS["anonymize"])
    plan(run, "--shards", shards)
    text = (place / "job.json").read_text()
    assert (place / "key").read_text().strip() not in text
    assert len(json.loads(text)["shards"]) == min(shards, 11)
    assert "0 of" in nearfar("status", "job.json").stdout
    assert nearfar("merge", "job.json").exit_code == 2
    do_all()
    state = json.loads(nearfar("status", "job.json", "--json").stdout)
    assert (state["done"], state["missing"], state["images"], state["bad_images"]) == (min(shards, 11), 0, 10, 1)
    assert contents(place / "out") == contents(place / "plain")
    assert nearfar("merge", "job.json").exit_code == 3
    merged, plain = (read_manifest(manifest_path(place / out)).records for out in ("out", "plain"))
    assert told(merged) == told(plain)
    assert not (place / ".out.nearfar-shards").exists()


def test_an_earlier_run_to_an_address_goes_on_and_only_with_the_same(place, run, memory):
    out = f"{memory}/out"
    first = run("anonymize", "in", out, *OPTIONS["anonymize"])
    assert "is of an earlier job" in run("anonymize", "in", out, *OPTIONS["anonymize"]).stderr
    before = held(out)
    again = run("anonymize", "in", out, *OPTIONS["anonymize"], "--resume")
    assert (again.exit_code, first.exit_code) == (3, 3)
    assert held(out) == before
    for more in ("--strength=0.4", "--fit=cover"):
        other = run("anonymize", "in", out, *OPTIONS["anonymize"], more, "--resume")
        assert other.exit_code == 2
        assert "was begun with other options or another IN" in other.stderr
    shutil.copy(place / "in/000.png", place / "in/more.png")
    assert "has other files than when" in run("anonymize", "in", out, *OPTIONS["anonymize"], "--resume").stderr


SENTENCES = {
    "in ftp://host/out": "ftp://host/out has a scheme that is not known: give a path, or one of s3://",
    "in memory://a/out": "shards have one key, so that they may be done again: give --key-file",
    "in memory://a/out --key-file key --report r.html": "--report is about a whole folder on this machine",
    "in memory://a/out --key-file key --regions boxes": "--regions boxes reads a whole folder on this machine",
    "in memory://a/out --key-file key --dry-run": "--dry-run is for folders on this machine: nearfar plan says",
    "memory://nothing/here out --key-file key": "memory://nothing/here must be a folder of images, got nothing",
    "memory://a memory://a/out --key-file key": "memory://a and memory://a/out must not contain each other",
    "texts memory://a/out --key-file key": "texts holds no images (1 other files)",
}


@pytest.mark.parametrize("words", SENTENCES)
def test_what_cannot_be_is_refused_with_a_sentence(words, place, run):
    (place / "texts").mkdir()
    (place / "texts/a.txt").write_text("none")
    done = run("anonymize", *words.split())
    assert done.exit_code == 2
    assert SENTENCES[words] in done.stderr
    assert not (place / "out.shards").exists()


def test_labels_of_all_images_are_one_shard(place, run):
    done = run("plan", "augment", "in", "out", "--shards", 2)
    assert done.exit_code == 2
    assert "copies and labels are of all images: give --shards 1" in done.stderr


@pytest.mark.parametrize("command", ["calibrate in --target rank1=0.2", "domain fit in"])
def test_other_commands_are_for_this_machine(command, place, nearfar):
    done = nearfar(*command.split(), "s3://bucket/out")
    assert done.exit_code == 2
    assert "s3://bucket/out must be a path on this machine" in done.stderr


def test_a_source_that_is_gone_is_a_failure_and_no_end(place, run, nearfar):
    plan(run, "--shards", 2)
    (place / "in/000.png").unlink()
    do_all()
    merged = nearfar("merge", "job.json")
    assert "failed    000.png: is no longer there, since the job was planned: put it back" in merged.stderr
    assert len(contents(place / "out")) == 8


def test_another_model_or_key_is_refused(place, run, model_folder):
    plan(run)
    job = json.loads((place / "job.json").read_text())
    other = job | {"settings": job["settings"] | {"model": "0" * 64}}
    with pytest.raises(UsageError, match="the model here is not the one that the job was planned with"):
        worker(json.dumps(other).encode(), str(place / "key"))
    with pytest.raises(UsageError, match="another key is here than the job was planned with"):
        worker(json.dumps(job).encode(), str(place / "other key"))


def test_a_script_for_slurm_has_every_shard_once(place, run, nearfar):
    plan(run, "--shards", 11)
    script = nearfar("slurm", "job.json", "--tasks", 4).stdout
    assert "#SBATCH --array=0-3\n" in script
    assert "first=$((SLURM_ARRAY_TASK_ID * 3))" in script
    assert f'-m nearfar work {place / "job.json"} --shard "$first-$last"' in script
