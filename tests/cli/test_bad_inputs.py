"""A folder with every kind of bad input: the good images are done, the bad ones listed, the originals untouched."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bad_inputs import encoded, make_bad_inputs, make_name_that_is_not_utf8, pixels
from folders import contents, state
from nearfar.io.listing import list_folder
from nearfar.io.manifest import manifest_path, read_manifest
from processes import Cold

GOOD = 200
PLANNER = {
    "folder.png": "a folder with an image's name: give nearfar that folder by itself",
    "dangling.png": "cannot be reached: No such file or directory",
    "loop.png": "cannot be reached: Too many levels of symbolic links",
    "pipe.png": "not a regular file: only files are read",
    "socket.png": "not a regular file: only files are read",
    "linked folder": "a link to a folder, which is not followed",
    "closed folder": "folder cannot be read: Permission denied",
    "forbidden.png": "permission",
    r"caf\udce9.png": "the file name is not valid UTF-8 or has control characters: rename it",
}
"""What is refused before any file is opened, or needs permissions."""


@pytest.fixture
def place():
    """A folder outside pytest's, which only its owner may enter."""
    place = Path(tempfile.mkdtemp())
    yield place
    (place / "in" / "bad" / "closed folder").chmod(0o700)
    shutil.rmtree(place)


@pytest.fixture
def without_privilege():
    """Root reads whatever its mode says; without two of its capabilities it is refused like anybody else."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root can read every file, and setpriv (util-linux), which would stop it, is not installed")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")


def make_bad_folder(folder):
    """Every kind of bad input; name -> a part of the sentence it must be answered with."""
    folder.mkdir(parents=True)
    expected = make_bad_inputs(folder)
    make_name_that_is_not_utf8(folder)
    (folder / "linked folder").symlink_to("..")
    (folder / "closed folder").mkdir(mode=0)
    if "forbidden.png" not in expected:  # the others make it only for those whom it can stop without our help
        (folder / "forbidden.png").write_bytes(encoded(pixels(), "PNG"))
        (folder / "forbidden.png").chmod(0)
    return {f"bad/{name}": sentence for name, sentence in (expected | PLANNER).items()}


@pytest.mark.process
@pytest.mark.slow
def test_good_images_are_done_bad_ones_listed_and_originals_untouched(
    place, model_folder, write_pictures, without_privilege
):
    good = write_pictures(place / "in", GOOD)
    bad = make_bad_folder(place / "in" / "bad")
    assert len(bad) >= 15
    model = shutil.copytree(model_folder, place / "model")
    before = state(place / "in")
    options = ["--model", str(model), "--device", "cpu", "--steps", "1", "--json"]
    ended = Cold(
        ["anonymize", str(place / "in"), str(place / "out"), *options], place / "logs", without_privilege
    ).wait()

    assert ended.code == 3, ended.err
    assert state(place / "in") == before
    assert sorted(contents(place / "out")) == good
    summary = json.loads(ended.out)
    assert (summary["total"], summary["done"], summary["kept"]) == (GOOD + len(bad), GOOD, 0)
    reasons = {failure["name"]: failure["reason"] for failure in summary["failed"]}
    assert reasons.keys() == bad.keys()
    for name, part in bad.items():
        assert part in reasons[name], name
        assert f"failed    {name}: {reasons[name]}" in ended.err.splitlines()

    records = read_manifest(manifest_path(place / "out")).records
    assert {record.name: record.reason for record in records.values() if record.status == "failed"} == reasons
    assert sorted(record.name for record in records.values() if record.status == "done") == good


def test_the_listing_already_names_what_no_file_has_to_be_opened_for(tmp_path):
    names = {entry.name for entry in list_folder_of_bad_inputs(tmp_path / "bad").rejected}
    assert names >= PLANNER.keys() - {"forbidden.png", "closed folder"}


def list_folder_of_bad_inputs(folder):
    make_bad_folder(folder)
    (folder / "closed folder").chmod(0o700)
    return list_folder(folder)
