"""A result is there whole or not at all, also when the process is killed while it writes."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nearfar.io.manifest import CONFIDENTIAL, PART, Manifest, has_content, remove_parts, write_whole

KILLED_IN = """
import os, signal, sys
from pathlib import Path
from nearfar.io import manifest as sinks

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

owner = Path if sys.argv[1] == "replace" else os
setattr(owner, sys.argv[1], die)
sinks.write_whole(Path(sys.argv[2]), b"new" * 100_000)
"""


def test_content_arrives_and_its_hash_comes_back(tmp_path):
    target = tmp_path / "deep" / "er" / "x.png"
    assert write_whole(target, b"content") == hashlib.sha256(b"content").hexdigest()
    assert target.read_bytes() == b"content"
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep" / "er", target]


def test_an_earlier_file_is_replaced(tmp_path):
    write_whole(tmp_path / "x.png", b"old, and longer")
    write_whole(tmp_path / "x.png", b"new")
    assert (tmp_path / "x.png").read_bytes() == b"new"


@pytest.mark.process
@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_writing_leaves_what_was_there(tmp_path, before, moment):
    target = tmp_path / "x.png"
    if before:
        target.write_bytes(before)
    process = subprocess.run([sys.executable, "-c", KILLED_IN, moment, target], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == before
    assert len(list(tmp_path.glob("*" + PART))) == 1
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == ([target] if before else [])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_while_writing_leaves_what_was_there(tmp_path, monkeypatch, failing):
    target = tmp_path / "x.png"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "日" * 83 + ".png"])
def test_every_name_that_fits_the_file_system_fits_here(tmp_path, name):
    # 255 and 253 bytes of at most 255: the part file must not need more.
    write_whole(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_threads_do_not_share_part_files(tmp_path):
    contents = {f"{number}.png": bytes([number]) * 50_000 for number in range(40)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: write_whole(tmp_path / name, contents[name]), contents))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_parts_are_removed_at_every_depth_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in (f"x.png{PART}", f"deep/y.png{PART}", "x.png", "deep/notes.txt"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"x.png", "deep", "notes.txt"}


def test_content_is_compared_by_hash(tmp_path):
    sha256 = write_whole(tmp_path / "x.png", b"content")
    assert has_content(tmp_path / "x.png", sha256)
    (tmp_path / "x.png").write_bytes(b"Content")
    assert not has_content(tmp_path / "x.png", sha256)
    assert not has_content(tmp_path / "absent.png", sha256)
    assert not has_content(tmp_path, sha256)


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_confidential_files_are_the_users_only_whatever_the_umask(tmp_path, umask, monkeypatch):
    """From the first byte on: the mode is looked at when the content is flushed, under the part's name."""
    seen, flush = [], os.fsync
    monkeypatch.setattr("os.fsync", lambda number: seen.append(os.fstat(number).st_mode & 0o777) or flush(number))
    (tmp_path / "page.html").touch(0o644)
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "page.html", b"an original", CONFIDENTIAL)
        with Manifest(tmp_path / "manifest", {}):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
    assert seen[0] == 0o600
    assert not (tmp_path / "manifest").stat().st_mode & 0o077
