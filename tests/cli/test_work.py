"""Jobs by processes, on an object store that fails, and through kills: the bytes of the plain run."""

import itertools
import json
import os
import random
import signal
from pathlib import Path

import pytest
from fsspec import get_filesystem_class

from folders import contents
from nearfar.io import stores
from nearfar.io.manifest import PART
from nearfar.io.stores import Store, opened
from processes import Cold, wait_until
from s3 import CREDENTIALS, proxy, server

COUNT = itertools.count()
SHARDS = 8


@pytest.fixture(scope="module")
def s3():
    """The port of a server with a bucket."""
    with server() as port:
        yield port


@pytest.fixture
def faulty(s3, monkeypatch):
    """A proxy before it that everything goes through; drivers are opened anew."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with proxy(s3) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        opened.cache_clear()
        get_filesystem_class("s3").clear_instance_cache()  # one that an earlier test opened without credentials
        driver, _ = opened("s3://bucket/x")
        driver.mkdir(f"bucket-{next(COUNT)}")
        yield before
        driver.clear_instance_cache()
    opened.cache_clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder, write_pictures):
    """Pictures, and what the plain run makes of them."""
    from typer.testing import CliRunner

    from nearfar.cli.app import app

    folder = tmp_path_factory.mktemp("work")
    write_pictures(folder / "in", 24)
    tail = ["--model", str(model_folder), "--device", "cpu", "--steps", "4", "--key-file", str(folder / "key")]
    done = CliRunner().invoke(app, ["anonymize", str(folder / "in"), str(folder / "plain"), *tail])
    assert done.exit_code == 0
    return folder, tail


def fill(place, url):
    for path in (place / "in").rglob("*.png"):
        Store(url).write(path.relative_to(place / "in").as_posix(), path.read_bytes())


def held(url):
    return {one.name: Store(url).read(one.name) for one in Store(url).sources()}


@pytest.mark.process
@pytest.mark.slow
def test_a_store_that_fails_in_every_way_is_written_to_the_same_bytes(faulty, place, nearfar, monkeypatch):
    monkeypatch.setattr(stores, "PAUSES", (0.01, 0.01, 0.01, 0.01))
    folder, tail = place
    bucket = f"s3://bucket-{next(COUNT) - 1}"
    fill(folder, f"{bucket}/in")
    kinds = ["500", "slow", "drop", "503", "cut"]
    faulty.faults |= {"GET": kinds * 3, "HEAD": ["500", "drop"], "PUT": ["cut upload", "503", "drop", "cut upload"]}
    done = nearfar("anonymize", f"{bucket}/in", f"{bucket}/out", *tail)
    assert done.exit_code == 0, done.stderr
    assert faulty.faults == {"GET": [], "HEAD": [], "PUT": []}
    assert held(f"{bucket}/out") == contents(folder / "plain")


@pytest.mark.process
@pytest.mark.slow
def test_a_store_that_is_away_ends_the_job_with_a_sentence_and_is_gone_on_with(faulty, place, nearfar, monkeypatch):
    monkeypatch.setattr(stores, "PAUSES", (0.01,))
    folder, tail = place
    bucket = f"s3://bucket-{next(COUNT) - 1}"
    fill(folder, f"{bucket}/in")
    faulty.faults["PUT"] = ["", "", "", "", *["403"] * 200]
    done = nearfar("anonymize", f"{bucket}/in", f"{bucket}/out", *tail)
    assert done.exit_code == 1
    assert f"writing {bucket}/out" in done.stderr.splitlines()[-1]
    assert held(f"{bucket}/out").items() <= contents(folder / "plain").items()
    faulty.faults.clear()
    assert nearfar("anonymize", f"{bucket}/in", f"{bucket}/out", *tail, "--resume").exit_code == 0
    assert held(f"{bucket}/out") == contents(folder / "plain")


def children(pid):
    """Processes that this one has started."""
    text = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for words in text for word in words.split()]


@pytest.mark.process
@pytest.mark.slow
def test_kills_of_workers_and_drivers_two_at_once_leave_the_same_bytes(place, tmp_path, nearfar):
    folder, tail = place
    job, out = tmp_path / "job.json", tmp_path / "out"
    planned = nearfar("plan", "anonymize", folder / "in", out, *tail, "--shards", SHARDS, "-o", job)
    assert planned.exit_code == 0, planned.stderr
    words = ["work", str(job), "--key-file", str(folder / "key"), "--workers", "2"]

    def shards_done():
        return len(list((tmp_path / "out.shards").glob("*.manifest.jsonl")))

    first, second = Cold(words, tmp_path / "first"), Cold(words, tmp_path / "second")
    wait_until(lambda: shards_done() >= 1, first)
    victims = children(first._process.pid)
    if victims:
        os.kill(random.choice(victims), signal.SIGKILL)
    second.signal(signal.SIGKILL)
    second.wait()
    ended = first.wait()
    assert ended.code == 0, ended.err
    assert shards_done() == SHARDS
    assert contents(out) == contents(folder / "plain")
    assert not [name for name in contents(tmp_path) if name.endswith(PART)]
    merged = nearfar("merge", job, "--json")
    assert json.loads(merged.stdout)["failed"] == []
    assert not list(tmp_path.glob(".out*"))
