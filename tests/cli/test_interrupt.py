"""Ctrl-C and a termination signal end a run in order: it can be resumed, and nothing unfinished is left."""

import json
import signal

import pytest

from folders import contents, finished
from nearfar.io.manifest import has_content, manifest_path, read_manifest
from processes import Cold, Warm, wait_until


@pytest.fixture
def arguments(tmp_path, model_folder, write_pictures):
    """Nine batches of eight pictures in 64 steps, a good half second each: a signal hits a run at work."""
    write_pictures(tmp_path / "in", 72)
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text("5e" * 32)

    def build(out, *options, key=True):
        keys = ["--key-file", str(tmp_path / "key")] if key else []
        common = ["--model", str(model_folder), "--device", "cpu", "--steps", "64", "--batch-size", "8"]
        return ["anonymize", str(tmp_path / "in"), str(out), *common, *keys, *options]

    return build


def interrupt(process, out, number):
    """Signal the process once its first batch is recorded; returns the records of what was finished by then."""
    assert wait_until(lambda: len(read_manifest(manifest_path(out)).records) >= 8, process)
    process.signal(number)
    ended = process.wait()
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "nearfar: interrupted; what is finished is kept, and --resume goes on with it"
    assert ended.out == ""
    records = read_manifest(manifest_path(out)).records
    assert 8 <= len(records) < 72
    assert all(has_content(out / name, record.target_sha256) for name, record in records.items())
    assert finished(out) == contents(out)
    return records


@pytest.mark.process
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, Cold), (signal.SIGTERM, Warm)])
def test_interrupted_run_is_resumed_to_the_same_bytes(tmp_path, arguments, number, kind):
    out, whole = tmp_path / "out", tmp_path / "whole"
    interrupt(kind(arguments(out), tmp_path / "logs"), out, number)
    for folder in (out, whole):
        assert Warm(arguments(folder, "--resume"), tmp_path / "logs").wait().code == 0
    assert len(contents(whole)) == 72
    assert contents(out) == contents(whole)


@pytest.mark.process
def test_without_a_key_file_the_finished_images_are_kept_and_the_rest_is_done(tmp_path, arguments):
    out = tmp_path / "out"
    kept = interrupt(Warm(arguments(out, key=False), tmp_path / "logs"), out, signal.SIGINT)
    ended = Warm(arguments(out, "--resume", "--json", key=False), tmp_path / "logs").wait()
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert (summary["kept"], summary["done"]) == (len(kept), 72 - len(kept))
    assert len(contents(out)) == 72
    assert all(has_content(out / name, record.target_sha256) for name, record in kept.items())


def test_interrupted_before_there_is_anything_to_keep(tmp_path, anonymize, write_pictures, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    write_pictures(tmp_path / "in", 1)
    monkeypatch.setattr("nearfar.models.loading.load_model", interrupt)
    result = anonymize(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "nearfar: interrupted; what is finished is kept, and --resume goes on with it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
