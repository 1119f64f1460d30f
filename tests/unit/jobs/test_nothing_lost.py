"""What a run counts as done stands in OUT at its end, and one name that cannot be written fails alone."""

import errno
import shutil

import pytest
from PIL import Image

from nearfar.errors import RunError, UsageError
from nearfar.io.listing import list_folder
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs import run as run_module
from nearfar.jobs.run import plan_run, run
from unit.jobs.test_run import make_job


@pytest.fixture
def places(tmp_path, write_pictures):
    (tmp_path / "in").mkdir()
    write_pictures(tmp_path / "in", 12)
    return tmp_path / "in", tmp_path / "out"


def in_the_middle(action):
    """A job that does something once, in the second of its three batches."""
    calls = []

    def transform(images):
        calls.append(1)
        if len(calls) == 2:
            action()
        return -images

    return make_job(transform)


def execute(job, source, out, resume=False):
    return run(job, out, plan_run(job, source, out, resume))


def first_output(out):
    return next(path for path in sorted(out.rglob("*.png")))


@pytest.mark.parametrize("harm", ["the folder", "a file", "a file's content", "a file becomes a link"])
def test_outputs_that_go_while_the_run_goes_on_are_an_error(places, harm):
    source, out = places
    execute(make_job(), source, out)
    (source / "new.png").write_bytes(next(source.rglob("*.png")).read_bytes())

    def act():
        if harm == "the folder":
            shutil.rmtree(out)
            return
        path = first_output(out)
        path.unlink()
        if harm == "a file's content":
            path.write_bytes(b"another")
        if harm == "a file becomes a link":
            path.symlink_to("/nowhere")

    job = make_job(lambda images: (act(), -images)[1])
    with pytest.raises(RunError, match=r"of 13 images in .*, such as .*, were removed or changed .* with --resume"):
        execute(job, source, out, resume=True)
    assert len(list_folder(source).items) == execute(make_job(), source, out, resume=True).total == 13
    assert len([path for path in out.rglob("*.png") if path.stat().st_size > 100]) == 13


@pytest.mark.parametrize("harm", ["removed", "replaced", "moved", "emptied"])
def test_a_record_that_goes_while_the_run_goes_on_is_an_error(places, harm):
    source, out = places
    manifest = manifest_path(out)

    def act():
        if harm == "emptied":
            manifest.write_bytes(b"")
            return
        manifest.rename(manifest.with_name("elsewhere"))
        if harm == "replaced":
            manifest.write_bytes(manifest.with_name("elsewhere").read_bytes())
        if harm == "removed":
            manifest.with_name("elsewhere").unlink()

    words = "or what the record tells of them" if harm == "emptied" else "was removed or replaced while it ran"
    with pytest.raises(RunError, match=words):
        execute(in_the_middle(act), source, out)


@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_a_name_that_is_too_long_fails_alone(places, suffix):
    source, out = places
    long = "x" * 251 + ".png"
    (source / long).write_bytes(next(source.rglob("*.png")).read_bytes())
    job = make_job(suffix=suffix or ".nearfar")
    for resume in (False, True):
        progress = execute(job, source, out, resume)
        assert [record.name for record in progress.failed] == [long]
        assert "File name too long): give it a shorter" in progress.failed[0].reason
        assert progress.done + progress.kept == 12
    assert read_manifest(manifest_path(out)).records[long].status == "failed"


@pytest.mark.parametrize("number", ["EINVAL", "EILSEQ", "EISDIR"])
def test_a_name_that_a_disk_refuses_fails_alone(places, monkeypatch, number):
    source, out = places
    write_whole, refused = run_module.write_whole, first_output(source).name

    def picky(target, content):
        if target.name == refused:
            raise OSError(getattr(errno, number), "not here")
        return write_whole(target, content)

    monkeypatch.setattr(run_module, "write_whole", picky)
    progress = execute(make_job(), source, out)
    assert [(one.name, one.reason[:53]) for one in progress.failed] == [
        (refused, "cannot be written under this name (not here): give it")
    ]
    assert progress.done == 11


def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(places):
    source, _ = places
    for place in ("/proc/nearfar/out", "/sys/out", "/proc/self/task/out"):
        with pytest.raises(UsageError, match=r"(/proc|/sys|/proc/[0-9]+/task) cannot be written .* choose an output"):
            plan_run(make_job(), source, type(source)(place), resume=False)


UNREAD = [
    ".ppm",
    ".tga",
    ".dng",
    ".NEF",
    ".cr2",
    ".gif",
    ".svg",
    ".psd",
    ".pgm",
    ".dib",
    ".exr",
]


def test_every_suffix_of_a_picture_that_is_not_read_fails(places):
    source, _ = places
    for suffix in UNREAD:
        (source / f"a{suffix}").touch()
    assert {entry.name: entry.reason.split(":")[0] for entry in list_folder(source).rejected} == {
        f"a{suffix}": f"{suffix.lower()} files are not read" for suffix in UNREAD
    }


def test_all_names_of_jpeg_are_jpeg(places):
    source, out = places
    names = [f"{number}.{suffix}" for number, suffix in enumerate(["jfif", "jpe", "jif", "MPO", "JPG"])]
    for name in names:
        Image.new("RGB", (16, 16), "red").save(source / name, "JPEG")
    assert execute(make_job(), source, out).failed == []
    for name in names:
        with Image.open(out / name) as image:
            assert image.format == "JPEG"


def test_pictures_under_names_of_something_else_fail_and_other_files_do_not(places):
    source, _ = places
    picture = next(source.rglob("*.png")).read_bytes()
    for name in ("a", "b.jpg_large", "c.png.bak"):
        (source / name).write_bytes(picture)
    (source / "BMW.txt").write_text("BMW cars are not bitmaps")
    (source / "._d.png").write_bytes(b"\0\5\x16\7")
    listing = list_folder(source)
    assert [(entry.name, entry.reason) for entry in listing.rejected] == [
        (name, f"holds PNG data: rename it to {name}.png") for name in ("a", "b.jpg_large", "c.png.bak")
    ]
    assert listing.ignored == 2
