"""Without a key file the record tells nothing exact of an original, and a changed source is noticed all the same."""

import os
import stat

import pytest

from nearfar.diffusion.noise import SecretKey
from nearfar.errors import RunError, UsageError
from nearfar.io.manifest import manifest_path, read_manifest, salt_path
from nearfar.jobs.run import plan_run, run
from unit.jobs.test_run import make_job


@pytest.fixture
def places(tmp_path, write_pictures):
    write_pictures(tmp_path / "in", 12)
    return tmp_path / "in", tmp_path / "out"


def keyless(transform=lambda images: -images):
    """As a run without a key file is: another key each time."""
    return make_job(transform, key=SecretKey.random(), repeatable=False)


def execute(job, source, out, resume=False):
    return run(job, out, plan_run(job, source, out, resume))


def interrupted(source, out, resume=False):
    """A run that ends after some of its batches of four."""
    calls = []

    def transform(images):
        calls.append(1)
        if len(calls) == 2:
            raise RunError("the machine stopped")
        return -images

    with pytest.raises(RunError):
        execute(keyless(transform), source, out, resume)


def changed(path, how):
    """Another picture under the name, by whatever means."""
    before, content = path.stat(), path.with_name("other.png")
    content.write_bytes(path.read_bytes() + b"\0")
    if how == "written anew":
        path.write_bytes(content.read_bytes())
    else:
        os.utime(content, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12))
        content.replace(path)
    content.unlink(missing_ok=True)


def tags(out):
    return {name: record.source_tag for name, record in read_manifest(manifest_path(out)).records.items()}


def test_the_record_has_no_size_and_no_time(places):
    source, out = places
    execute(keyless(), source, out)
    text = manifest_path(out).read_text("utf-8")
    for path in source.rglob("*.png"):
        status = path.stat()
        assert str(status.st_mtime_ns) not in text
        assert f'"{status.st_size}' not in text
    assert all(len(tag) == 32 for tag in tags(out).values())


def test_the_salt_stands_beside_the_record_until_the_run_is_over(places):
    source, out = places
    interrupted(source, out)
    assert stat.S_IMODE(salt_path(out).stat().st_mode) == 0o600
    done = execute(keyless(), source, out, resume=True)
    assert (done.kept, done.done) == (4, 8)
    assert not salt_path(out).exists()


@pytest.mark.parametrize("how", ["written anew", "replaced by an older file"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_resumed_run_notices_a_changed_source(places, how, complete):
    source, out = places
    execute(keyless(), source, out) if complete else interrupted(source, out)
    kept = sorted(tags(out))
    changed(source / kept[0], how)
    done = execute(keyless(), source, out, resume=True)
    assert (done.kept, done.done) == (len(kept) - 1, 12 - len(kept) + 1)


def test_a_second_run_that_is_interrupted_still_knows_what_the_first_has_made(places, write_pictures):
    source, out = places
    execute(keyless(), source, out)
    write_pictures(source, 8, first=100)
    interrupted(source, out, resume=True)
    done = execute(keyless(), source, out, resume=True)
    assert (done.kept, done.done) == (16, 4)


def test_images_that_fail_do_not_keep_the_salt(places):
    source, out = places
    (source / "broken.png").write_bytes(b"none")
    assert len(execute(keyless(), source, out).failed) == 1
    assert not salt_path(out).exists()
    assert execute(keyless(), source, out, resume=True).kept == 12


def test_with_a_key_file_there_is_no_salt(places, monkeypatch):
    source, out = places
    seen = []
    execute(make_job(lambda images: seen.append(salt_path(out).exists()) or -images), source, out)
    assert not any(seen)


def test_a_link_to_nothing_is_no_place_for_results(places, tmp_path):
    source, out = places
    for link in (out, tmp_path / "up"):
        link.symlink_to(tmp_path / "gone")
    for place in (out, tmp_path / "up" / "deep"):
        with pytest.raises(UsageError, match="is a link to nothing: make the folder that it names"):
            plan_run(keyless(), source, place, resume=False)
