"""What is found in a folder: which entries are images, which are refused with a reason, which are not looked at."""

import os
import socket
from pathlib import Path

import pytest

from nearfar.errors import UsageError
from nearfar.io.listing import Item, Kind, list_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def reasons(folder):
    return {entry.name: entry.reason for entry in list_folder(folder).rejected}


def names(folder):
    return [item.name for item in list_folder(folder).items]


def test_images_of_every_depth_are_listed_in_order_under_posix_names(folder):
    for name in ("b.png", "a.png", "deep/er/c.jpg", "a/z.webp", "ünï-çødé/日本.tif", "with space/in ner/x y.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    expected = ["a.png", "b.png", "a/z.webp", "deep/er/c.jpg", "with space/in ner/x y.bmp", "ünï-çødé/日本.tif"]
    assert names(folder) == expected
    assert list_folder(folder).items[2] == Item(folder / "a" / "z.webp", "a/z.webp")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".PNG", ".JpG"])
def test_suffixes_are_known_in_either_case(folder, suffix):
    (folder / f"x{suffix}").touch()
    assert names(folder) == [f"x{suffix}"]


def test_other_files_are_counted_and_left_alone(folder):
    for name in ("notes.txt", "labels.json", ".DS_Store", "noise.png.part", "sub/._shadow.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    listing = list_folder(folder)
    assert (listing.items, listing.rejected, listing.ignored) == ([], [], 5)


@pytest.mark.parametrize("name", ["movie.gif", "raw.DNG", "old.ppm"])
def test_images_of_other_formats_are_not_passed_over_in_silence(folder, name):
    (folder / name).touch()
    (entry,) = list_folder(folder).rejected
    assert (entry.name, entry.reason.split(":")[0]) == (name, f"{Path(name).suffix.lower()} files are not read")


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot at 9.41.00\u202fAM.png",  # macOS puts a narrow no-break space there
        "全角\u3000空白.png",
        "family \U0001f468\u200d\U0001f469.png",
        "e\u0301.png",
        "'quoted' \"twice\" back\\slash %s {}.png",
        "line\u2028separator.png",
        "-rf.png",
        f"{'long' * 62}.png",  # 252 of 255 bytes
    ],
)
def test_unusual_names_are_names(folder, name):
    (folder / name).touch()
    assert names(folder) == [name]


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"new\nline.png", b"bell\x07.png", b"escape\x1b[2J.png"])
def test_names_that_cannot_be_shown_are_refused_and_shown_escaped(folder, name):
    (folder / os.fsdecode(name)).touch()
    ((shown, reason),) = reasons(folder).items()
    assert reason == "the file name is not valid UTF-8 or has control characters: rename it"
    assert shown.isprintable()
    assert shown.endswith(".png")


def test_a_folder_whose_name_is_no_text_taints_the_images_in_it(folder):
    inner = folder / os.fsdecode(b"caf\xe9")
    inner.mkdir()
    (inner / "x.png").touch()
    (inner / "notes.txt").touch()
    assert len(reasons(folder)) == 1
    assert list_folder(folder).ignored == 1


def test_folders_with_an_images_name_are_refused_and_not_entered(folder):
    (folder / "x.png").mkdir()
    (folder / "x.png" / "inside.png").touch()
    assert reasons(folder) == {"x.png": "a folder with an image's name: give nearfar that folder by itself"}
    assert names(folder) == []


def test_links_to_files_are_followed_and_links_to_folders_are_not(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").touch()
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (folder / "tree").symlink_to(tmp_path / "elsewhere")
    (folder / "tree.png").symlink_to(tmp_path / "elsewhere")
    (folder / "to itself").symlink_to(folder)
    assert names(folder) == ["file.png"]
    reason = "a link to a folder, which is not followed: give nearfar that folder by itself"
    assert reasons(folder) == {"to itself": reason, "tree": reason, "tree.png": reason}


def test_what_is_no_file_is_refused_without_being_opened(folder, monkeypatch):
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # a socket's path must be shorter than 108 bytes
        server.bind("socket.png")
    assert reasons(folder) == {
        "dangling.png": "cannot be reached: No such file or directory",
        "loop.png": "cannot be reached: Too many levels of symbolic links",
        "pipe.png": "not a regular file: only files are read",
        "socket.png": "not a regular file: only files are read",
    }


def test_a_folder_that_cannot_be_read_is_reported(folder, monkeypatch):
    # The owner of a folder is refused by its mode, root is not: both get the same error from here.
    (folder / "closed").mkdir()
    (folder / "open.png").touch()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert reasons(folder) == {"closed": "folder cannot be read: Permission denied"}
    assert names(folder) == ["open.png"]


def test_a_folder_is_needed(folder):
    with pytest.raises(UsageError, match=r"missing must be a folder of images, or one image, got nothing there"):
        list_folder(folder / "missing")
    (folder / "file").touch()
    with pytest.raises(UsageError, match=r"file must be a folder of images, or one image, got a file there"):
        list_folder(folder / "file")


ARRAYS = Kind((".npy", ".fits", ".tif"), (".gz", ".h5"), ".npy, TIFF or FITS")


def test_another_kind_of_inputs_has_its_own_suffixes(folder):
    for name in ("a.npy", "deep/b.FITS", "c.tif", "d.png", "notes.txt", "movie.gif", "._a.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    listing = list_folder(folder, ARRAYS)
    assert [item.name for item in listing.items] == ["a.npy", "c.tif", "deep/b.FITS"]
    assert (listing.rejected, listing.ignored) == ([], 4)


def test_another_kind_of_inputs_has_its_own_objections(folder):
    (folder / "e.fits.gz").touch()
    (folder / "f.npy").mkdir()
    (folder / "g.png").mkdir()
    (folder / "g.png" / "inside.npy").touch()
    (folder / "h.npy").symlink_to("nowhere")
    listing = list_folder(folder, ARRAYS)
    assert [item.name for item in listing.items] == ["g.png/inside.npy"]
    assert {entry.name: entry.reason for entry in listing.rejected} == {
        "e.fits.gz": ".gz files are not read: convert it to .npy, TIFF or FITS",
        "f.npy": "a folder with an image's name: give nearfar that folder by itself",
        "h.npy": "cannot be reached: No such file or directory",
    }


def test_one_picture_is_a_folder_of_one(tmp_path):
    for name in ("a.png", "b.png", "c.gif"):
        (tmp_path / name).write_bytes(b"\x89PNG")
    assert list_folder(tmp_path / "a.png").items == [Item(tmp_path / "a.png", "a.png")]
    (refused,) = list_folder(tmp_path / "c.gif").rejected
    assert (refused.name, refused.reason[:18]) == ("c.gif", ".gif files are not")
