"""The record of a run: what was committed is read back, whatever happened to the process or to the last line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nearfar.errors import RunError, UsageError
from nearfar.io.manifest import Earlier, Manifest, Record, manifest_path, read_manifest

HEADER = {"run": {"strength": 0.5}, "key": "f1n6"}
DONE = Record("a.png", "done", "", 8, "5ha2", "7a6")
FAILED = Record("b/ü 日本.png", "failed", "is empty")

KILLED_AFTER_COMMIT = """
import os, signal, sys
from pathlib import Path
from nearfar.io.manifest import Manifest, Record

manifest = Manifest(Path(sys.argv[1]), {"run": {}})
for number in range(3):
    manifest.add(Record(f"{number}.png", "done"))
manifest.commit()
manifest.add(Record("uncommitted.png", "done"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.manifest.jsonl"


def write(path, *records, header=HEADER):
    with Manifest(path, header) as manifest:
        for record in records:
            manifest.add(record)


def records_in(path):
    return read_manifest(path).records


@pytest.mark.parametrize("out", ["there/out", "there/out/", "there/./out", "there/out/."])
def test_manifest_stands_beside_the_output(tmp_path, out):
    assert manifest_path(tmp_path / out) == tmp_path / "there" / "out.manifest.jsonl"


@pytest.mark.parametrize(("here", "out"), [("out", "."), ("out/sub", ".."), ("", "out")])
def test_manifest_stands_beside_the_output_however_it_is_named(tmp_path, monkeypatch, here, out):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    assert manifest_path(Path(out)).absolute() == tmp_path / "out.manifest.jsonl"


def test_header_and_records_come_back(path):
    write(path, DONE, FAILED)
    assert read_manifest(path) == Earlier(HEADER, {"a.png": DONE, "b/ü 日本.png": FAILED})


def test_lines_are_json_and_the_first_is_the_header(path):
    write(path, DONE, FAILED)
    first, *others = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert first == HEADER
    assert [line["image"]["name"] for line in others] == ["a.png", "b/ü 日本.png"]


def test_a_later_run_goes_on_and_its_word_counts(path):
    write(path, Record("a.png", "failed", "first"), FAILED)
    later = HEADER | {"key": "another"}
    write(path, DONE, header=later)
    assert read_manifest(path) == Earlier(later, {"a.png": DONE, FAILED.name: FAILED})


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_an_incomplete_last_line_is_passed_over_and_does_not_swallow_the_next(path, cut):
    write(path, DONE, FAILED)
    path.write_bytes(path.read_bytes()[:-cut])
    expected = {"a.png": DONE} | ({FAILED.name: FAILED} if cut == 1 else {})  # one byte is no more than the line's end
    assert read_manifest(path) == Earlier(HEADER, expected)
    added = Record("c.png", "done")
    write(path, added)
    assert read_manifest(path) == Earlier(HEADER, expected | {"c.png": added})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"7",
        b"[]",
        b"null",
        b"{",
        b'{"image": 7}',
        b'{"image": {"name": "a"}}',
        b'{"image": {"name": 7, "status": "done"}}',
        b'{"image": {"name": "a", "status": "done", "invented": 1}}',
        b'{"run": 7}',
        b"\xff\x00",
    ],
)
def test_other_lines_are_passed_over(path, line):
    write(path, DONE)
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n")
    assert read_manifest(path) == Earlier(HEADER, {"a.png": DONE})


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\r", "\n"])
def test_whatever_unicode_calls_the_end_of_a_line_may_stand_in_a_record(path, separator):
    strange = Record(f"a{separator}b.png", "failed", f"c{separator}d")
    write(path, strange)
    assert records_in(path) == {strange.name: strange}


def test_no_manifest_no_records(path):
    assert read_manifest(path) == Earlier({}, {})


@pytest.mark.process
def test_what_was_committed_survives_a_kill(path):
    process = subprocess.run([sys.executable, "-c", KILLED_AFTER_COMMIT, path], check=False)
    assert process.returncode == -signal.SIGKILL
    assert list(records_in(path)) == ["0.png", "1.png", "2.png"]


def test_two_runs_do_not_share_a_manifest(path):
    with Manifest(path, HEADER) as first:
        with pytest.raises(UsageError, match=r"another run holds .*jsonl: wait for it, or choose another output"):
            Manifest(path, {"run": {"strength": 0.9}})
        first.add(DONE)
    assert read_manifest(path) == Earlier(HEADER, {"a.png": DONE})
    write(path, FAILED)  # free again
    assert records_in(path).keys() == {"a.png", FAILED.name}


def test_a_full_disk_is_answered_with_a_sentence(path, monkeypatch):
    sentence = r"cannot write .*out.manifest.jsonl \(No space left on device\): mend that, then go on with --resume"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(path, DONE)
    with Manifest(path, HEADER) as manifest:
        manifest.add(FAILED)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(RunError, match=sentence):
                manifest.commit()
    assert records_in(path)["a.png"] == DONE
