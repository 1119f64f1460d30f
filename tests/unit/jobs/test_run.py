"""The folder run with toy transforms in place of a network: what is read, written, recorded, kept and refused."""

import errno
import json
import os
import subprocess
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from nearfar.diffusion.denoiser import from_epsilon, from_v
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import Sampling
from nearfar.errors import ImageError, RunError, UsageError
from nearfar.io.fitting import FitMode
from nearfar.io.manifest import PART, manifest_path, read_manifest
from nearfar.jobs import job as jobs_module
from nearfar.jobs import run as run_module
from nearfar.jobs.anonymize import anonymize_job
from nearfar.jobs.job import Job, Results, as_picture, one_square, unchanged
from nearfar.jobs.run import plan_run, run
from nearfar.tensors import ImageContract

KEY = SecretKey.from_seed(0)
LOSSLESS = (".png", ".tif", ".bmp")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP"}


def negative(images):
    return -images


def make_job(transform=negative, fit=FitMode.PAD, keep_metadata=False, **changes):
    options = {
        "read": one_square(ImageContract(16, 3), fit),
        "encode": as_picture(fit, keep_metadata),
        "object_to": unchanged,
        "settings": {"toy": 1},
        "key": KEY,
        "repeatable": True,
        "batch_size": 4,
    }
    options |= {"image": ImageContract(16, 3), "shrinkable": False}
    return Job(transform=lambda images, items, on_step: Results(transform(images)), **options | changes)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def execute(job, source, out, resume=False):
    return run(job, out, plan_run(job, source, out, resume))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# What goes in and comes out


def test_every_image_comes_out_under_its_own_name_in_its_own_folder(source, out, write_pictures):
    names = write_pictures(source, 11)
    progress = execute(make_job(), source, out)
    assert sorted(contents(out)) == names
    assert (progress.total, progress.done, progress.kept, progress.failed) == (11, 11, 0, [])
    for name in names:
        assert (pixels(out / name) == 255 - pixels(source / name)).all()  # 16x16 at 8 bits passes without loss


@pytest.mark.parametrize("mode", list(FitMode))
@pytest.mark.parametrize("shape", [(16, 16), (9, 23), (40, 7), (1, 1)])
@pytest.mark.parametrize("suffix", FORMATS)
def test_format_size_and_colors_stay(source, out, smooth, suffix, shape, mode):
    smooth(0, shape).save(source / f"color{suffix}")
    smooth(1, shape).convert("L").save(source / f"gray{suffix}")
    assert execute(make_job(fit=mode), source, out).failed == []
    for name in ("color", "gray"):
        with Image.open(source / f"{name}{suffix}") as before, Image.open(out / f"{name}{suffix}") as after:
            assert (after.format, after.size, after.mode) == (before.format, before.size, before.mode)
            assert after.format == FORMATS[suffix]


def test_equal_pictures_get_equal_outputs_whatever_they_are_called(source, out, smooth, model_job):
    for name in ("a.png", "b.png", "deep/c.png"):
        (source / name).parent.mkdir(exist_ok=True)
        smooth(0).save(source / name)
    smooth(1).save(source / "other.png")
    execute(model_job, source, out)
    assert len(set(contents(out).values())) == 2


def test_equal_pixels_in_different_formats_get_equal_pixels(source, out, smooth, model_job):
    for suffix in LOSSLESS:
        smooth(0).save(source / f"x{suffix}")
    execute(model_job, source, out)
    first, *others = (pixels(out / f"x{suffix}") for suffix in LOSSLESS)
    assert all((first == other).all() for other in others)
    assert (first != pixels(source / "x.png")).any()


@pytest.fixture
def model_job(model):
    return anonymize_job(model, Sampling(Level(0.4), 2), key=KEY, batch_size=2)


# Batches


def test_the_transform_always_sees_one_shape_the_last_batch_padded(source, out, write_pictures):
    shapes = []

    def watch(images):
        shapes.append(tuple(images.shape))
        return -images

    write_pictures(source, 10)
    progress = execute(make_job(watch), source, out)
    assert shapes == [(4, 3, 16, 16)] * 3
    assert (progress.batches, progress.batch_size, progress.done) == (3, 4, 10)


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


def limited(limit, error, shapes):
    """A transform for whose batches above `limit` the memory does not suffice."""

    def transform(images):
        shapes.append(len(images))
        if len(images) > limit:
            raise error
        return -images

    return transform


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_memory_does_not_hold_is_halved(source, out, write_pictures, error):
    write_pictures(source, 19)
    shapes: list[int] = []
    progress = execute(make_job(limited(3, error, shapes), batch_size=8, shrinkable=True), source, out)
    assert shapes == [8, 4, *[2] * 4, *[2] * 4, *[2] * 2]  # 8 + 8 + 3 images in pairs
    assert (progress.done, progress.batch_size) == (19, 2)
    assert contents(out) == contents_of_a_run_with(source, out.with_name("expected"), batch_size=2)
    assert {record.batch_size for record in read_manifest(manifest_path(out)).records.values()} == {2}


def contents_of_a_run_with(source, out, **changes):
    execute(make_job(**changes), source, out)
    return contents(out)


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_size_that_was_asked_for_is_not_changed(source, out, write_pictures, error):
    write_pictures(source, 8)
    with pytest.raises(RunError, match="memory does not hold 8 images at once: give --batch-size 4"):
        execute(make_job(limited(3, error, []), batch_size=8), source, out)


def test_memory_that_does_not_hold_one_image_ends_the_run(source, out, write_pictures):
    write_pictures(source, 3)
    shapes: list[int] = []
    with pytest.raises(RunError, match="memory does not hold 1 images at once: use a smaller model or another device"):
        execute(make_job(limited(0, MemoryError(), shapes), batch_size=4, shrinkable=True), source, out)
    assert shapes == [4, 2, 1]


def test_reading_stays_ahead_of_the_network_by_four_batches_at_most(source, out, write_pictures, monkeypatch):
    read, depth = [], 2 * 4
    read_pages = jobs_module.read_pages
    monkeypatch.setattr(jobs_module, "read_pages", lambda path: read.append(path) or read_pages(path))
    taken, ahead = 0, []

    def watch(images):
        nonlocal taken
        taken += 4
        deadline = time.monotonic() + 20
        while len(read) < min(taken + depth - 1, 40) and time.monotonic() < deadline:
            time.sleep(0.001)  # the reading threads must get there while the network works
        time.sleep(0.02)  # and go no further
        ahead.append(len(read) - taken)
        return -images

    write_pictures(source, 40)
    execute(make_job(watch), source, out)
    assert min(ahead[:8]) >= 7
    assert max(ahead) <= 4 * 4
    assert ahead[-1] == 0


def test_writing_stays_behind_the_network_by_two_batches_at_most(source, out, write_pictures, monkeypatch):
    written, write_whole = [], run_module.write_whole

    def slowly(target, content):
        time.sleep(0.005)
        written.append(target)
        return write_whole(target, content)

    waiting, taken = [], 0

    def watch(images):
        nonlocal taken
        waiting.append(taken - len(written))
        taken += 4
        return -images

    monkeypatch.setattr(run_module, "write_whole", slowly)
    write_pictures(source, 24)
    execute(make_job(watch), source, out)
    assert 0 < max(waiting) <= 8
    assert len(written) == 24


# Results that cannot be trusted, errors


def test_results_that_are_not_finite_are_listed_and_not_written(source, out, write_pictures):
    names = write_pictures(source, 6)

    def third_is_broken(images):
        images = -images
        images[2, 0, 5, 5] = torch.nan
        return images

    progress = execute(make_job(third_is_broken, batch_size=6), source, out)
    (failed,) = progress.failed
    assert failed.reason == "the model returned values that are not finite: try float32, or another model"
    assert sorted(contents(out)) == sorted(set(names) - {failed.name})
    assert read_manifest(manifest_path(out)).records[failed.name] == failed


def test_results_that_are_their_inputs_are_listed_and_not_written(source, out, write_pictures):
    names = write_pictures(source, 5)
    progress = execute(make_job(lambda images: images + 1e-3), source, out)
    assert contents(out) == {}
    assert sorted(record.name for record in progress.failed) == names
    reason = "the result is the input again (change 0.001, at least 0.0039): raise the strength"  # 1 / 255 = 0.0039
    assert {record.reason for record in progress.failed} == {reason}


def test_bad_images_are_listed_and_the_others_done(source, out, write_pictures):
    names = write_pictures(source, 9)
    (source / "cut.png").write_bytes((source / names[0]).read_bytes()[:60])
    (source / "folder.png").mkdir()
    progress = execute(make_job(), source, out)
    assert sorted(contents(out)) == names
    assert sorted(record.name for record in progress.failed) == ["cut.png", "folder.png"]
    assert (progress.total, progress.done) == (11, 9)


@pytest.mark.parametrize("stage", ["read", "encode", "measure"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("was changed meanwhile"), "was changed meanwhile"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit into the"),
    ],
)
def test_what_goes_wrong_with_one_image_costs_that_image_only(source, out, write_pictures, stage, error, reason):
    write_pictures(source, 3)
    job, calls = make_job(), Counter()

    def fails_once(*arguments):
        calls["all"] += 1
        if calls["all"] == 2:
            raise error
        return getattr(job, stage)(*arguments)

    progress = execute(replace(job, **{stage: fails_once}), source, out)
    (failed,) = progress.failed
    assert reason in failed.reason
    assert progress.done == len(contents(out)) == 2


def test_a_folder_of_bad_images_only_is_a_run_without_results(source, out):
    (source / "empty.png").touch()
    progress = execute(make_job(), source, out)
    assert (progress.done, progress.batches, [record.name for record in progress.failed]) == (0, 0, ["empty.png"])


@pytest.mark.parametrize("error", [ZeroDivisionError("defect"), RuntimeError("shape mismatch"), OSError("defect")])
def test_a_defect_is_not_swallowed_and_finished_work_is_recorded(source, out, write_pictures, error):
    write_pictures(source, 20)
    calls = Counter()

    def fail_in_the_third_batch(images):
        calls["all"] += 1
        if calls["all"] == 3:
            raise error
        return -images

    with pytest.raises(type(error), match=str(error)):
        execute(make_job(fail_in_the_third_batch), source, out)
    assert sorted(contents(out)) == sorted(read_manifest(manifest_path(out)).records)
    assert len(contents(out)) == 8


def test_a_defect_while_reading_is_not_swallowed(source, out, write_pictures, monkeypatch):
    def defect(*_):
        raise ZeroDivisionError("defect")

    write_pictures(source, 3)
    monkeypatch.setattr(jobs_module, "fit", defect)
    with pytest.raises(ZeroDivisionError, match="defect"):
        execute(make_job(), source, out)


def test_an_interrupt_keeps_what_is_finished_and_the_rest_is_done_later(source, out, write_pictures):
    names = write_pictures(source, 20)
    calls = Counter()

    def interrupted_in_the_third_batch(images):
        calls["all"] += 1
        if calls["all"] == 3:
            raise KeyboardInterrupt
        return -images

    with pytest.raises(KeyboardInterrupt):
        execute(make_job(interrupted_in_the_third_batch), source, out)
    finished = contents(out)
    assert (len(finished), sorted(finished)) == (8, sorted(read_manifest(manifest_path(out)).records))
    progress = execute(make_job(), source, out, resume=True)
    assert (progress.kept, progress.done) == (8, 12)
    assert sorted(contents(out)) == names
    assert finished.items() <= contents(out).items()


def test_no_threads_are_left_behind(source, out, write_pictures):
    write_pictures(source, 5)
    before = set(threading.enumerate())
    execute(make_job(), source, out)
    assert set(threading.enumerate()) <= before


# The disk


def test_a_full_disk_ends_with_a_sentence_and_the_run_can_go_on(source, out, write_pictures, monkeypatch):
    names = write_pictures(source, 20)
    write_whole, written = run_module.write_whole, []

    def full_after_ten(target, content):
        if len(written) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target)
        return write_whole(target, content)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "write_whole", full_after_ten)
        sentence = r"cannot write .*png \(No space left on device\): mend that, then go on with --resume"
        with pytest.raises(RunError, match=sentence):
            execute(make_job(), source, out)
    records = read_manifest(manifest_path(out)).records
    assert 4 <= len(records) <= 10
    assert records.keys() <= contents(out).keys()
    assert execute(make_job(), source, out, resume=True).kept == len(records)
    assert sorted(contents(out)) == names


@pytest.mark.process
def test_a_disk_that_is_really_full(source, tmp_path, smooth):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        for number in range(60):
            smooth(number, (40, 40)).save(source / f"{number:02}.png")  # about 3 kB each
        with pytest.raises(RunError, match="No space left on device"):
            execute(make_job(), source, disk / "out")
        records = read_manifest(manifest_path(disk / "out")).records
        assert 0 < len(records) < 60
        assert records.keys() <= contents(disk / "out").keys()
        for name in contents(disk / "out"):
            if name.endswith(".png"):
                pixels(disk / "out" / name)  # whole, or Pillow complains
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert execute(make_job(), source, disk / "out", resume=True).kept == len(records)
        assert contents(disk / "out") == contents_of_a_run_with(source, tmp_path / "expected")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_where_a_folder_should_be_is_answered_with_a_sentence(source, tmp_path, write_pictures):
    write_pictures(source, 1)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match=r"file must be a folder, got a file: choose another output"):
            execute(make_job(), source, out)


def test_a_folder_that_cannot_be_made_is_answered_with_a_sentence(source, out, write_pictures, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")  # root, too, is refused in this way only

    write_pictures(source, 1)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot write .*out.manifest.jsonl \(Permission denied\): mend that"):
        execute(make_job(), source, out)


# The manifest and resuming


def test_one_line_for_each_image(source, out, write_pictures):
    names = write_pictures(source, 7)
    (source / "empty.png").touch()
    (source / "folder.png").mkdir()
    execute(make_job(), source, out)
    first, *lines = manifest_path(out).read_text("utf-8").splitlines()
    assert json.loads(first) == {"run": {"toy": 1}, "key": KEY.tag("fingerprint")}
    recorded = [json.loads(line)["image"]["name"] for line in lines]
    assert sorted(recorded) == sorted([*names, "empty.png", "folder.png"])
    execute(make_job(), source, out, resume=True)
    assert sorted(read_manifest(manifest_path(out)).records) == sorted(recorded)


def test_nothing_is_redone_when_all_is_done(source, out, write_pictures):
    write_pictures(source, 6)
    execute(make_job(), source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    progress = execute(make_job(), source, out, resume=True)
    assert (progress.kept, progress.done, progress.batches, progress.total) == (6, 0, 0, 6)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before


def test_an_incomplete_last_line_costs_one_image(source, out, write_pictures):
    write_pictures(source, 6)
    execute(make_job(), source, out)
    complete = contents(out)
    path = manifest_path(out)
    path.write_bytes(path.read_bytes()[:-50])
    progress = execute(make_job(), source, out, resume=True)
    assert (progress.kept, progress.done) == (5, 1)
    assert contents(out) == complete


def damage_target(source, out, name):
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-1] + b"?")


def remove_target(source, out, name):
    (out / name).unlink()


def change_source(source, out, name):
    Image.new("RGB", (16, 16), "teal").save(source / name)


@pytest.mark.parametrize("accident", [damage_target, remove_target, change_source])
def test_what_no_longer_fits_its_record_is_redone_and_nothing_else(source, out, write_pictures, accident):
    names = write_pictures(source, 6)
    execute(make_job(), source, out)
    accident(source, out, names[2])
    progress = execute(make_job(), source, out, resume=True)
    assert (progress.kept, progress.done) == (5, 1)
    assert contents(out) == contents_of_a_run_with(source, out.with_name("expected"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"settings": {"toy": 2}}, r"out was made with other settings \(toy 1, now 2\): repeat them"),
        ({"key": SecretKey.from_seed(1)}, "out has another key: give the --key-file that it began with"),
        ({"repeatable": False}, "out has another key: give the --key-file that it began with"),
    ],
)
def test_other_settings_or_another_key_are_refused_and_nothing_is_lost(source, out, write_pictures, change, sentence):
    write_pictures(source, 6)
    execute(make_job(), source, out)
    before = contents(out)
    with pytest.raises(UsageError, match=sentence):
        execute(make_job(**change), source, out, resume=True)
    assert contents(out) == before


def test_an_output_whose_source_is_gone_goes_too(source, out, write_pictures):
    names = write_pictures(source, 4)
    execute(make_job(), source, out)
    (source / names[1]).unlink()
    execute(make_job(), source, out, resume=True)
    assert sorted(contents(out)) == sorted(set(names) - {names[1]})


def test_a_manifest_cannot_name_files_elsewhere(source, out, write_pictures):
    write_pictures(source, 1)
    execute(make_job(), source, out)
    bystander = out.parent / "bystander.png"
    bystander.touch()
    with manifest_path(out).open("a") as file:
        for name in ("../bystander.png", str(bystander)):
            file.write(json.dumps({"image": {"name": name, "status": "done"}}) + "\n")
    execute(make_job(), source, out, resume=True)
    assert bystander.exists()


def test_a_folder_that_failed_once_does_not_stand_in_the_way_later(source, out, write_pictures, smooth):
    # Its failure is recorded under the folder's name, where a later run makes a folder.
    write_pictures(source, 1)
    (source / "tree").symlink_to(source)
    execute(make_job(), source, out)
    (source / "tree").unlink()
    (source / "tree").mkdir()
    smooth(5).save(source / "tree" / "x.png")
    for done in (1, 0):
        assert execute(make_job(), source, out, resume=True).done == done


def test_a_second_run_into_the_same_folder_is_refused(source, out, write_pictures):
    write_pictures(source, 5)

    def start_another(images):
        with pytest.raises(UsageError, match=r"another run holds .*: wait for it, or choose another output"):
            execute(make_job(), source, out, resume=True)
        return -images

    assert execute(make_job(start_another), source, out).done == 5


def test_without_a_key_file_a_replaced_source_is_noticed(source, out, write_pictures, smooth):
    names = write_pictures(source, 3)
    execute(make_job(repeatable=False), source, out)
    smooth(99).save(source / names[0])
    progress = execute(make_job(repeatable=False), source, out, resume=True)
    assert (progress.kept, progress.done) == (2, 1)


def test_the_record_of_an_earlier_run_is_not_overwritten(source, out, write_pictures):
    write_pictures(source, 1)
    manifest_path(out).write_text("precious")
    with pytest.raises(UsageError, match="is the record of an earlier run: give --resume, or remove it"):
        execute(make_job(), source, out)
    assert manifest_path(out).read_text() == "precious"


@pytest.mark.parametrize(("images", "size"), [(1, 1), (3, 4), (4, 4), (5, 8), (60, 32)])
def test_an_automatic_batch_is_no_larger_than_the_work(source, out, images, size):
    source.mkdir(exist_ok=True)
    for number in range(images):
        (source / f"{number}.png").touch()
    assert plan_run(make_job(batch_size=32, shrinkable=True), source, out, resume=False).batch_size == size
    assert plan_run(make_job(batch_size=32), source, out, resume=False).batch_size == 32
    several = make_job(batch_size=32, shrinkable=True, squares=8)  # of each file, such as the faces in it
    assert plan_run(several, source, out, resume=False).batch_size == min(32, 8 * size)


def test_a_key_that_was_thrown_away_does_not_cost_the_finished_images(source, out, write_pictures):
    write_pictures(source, 6)
    execute(make_job(key=SecretKey.random(), repeatable=False), source, out)
    progress = execute(make_job(key=SecretKey.random(), repeatable=False), source, out, resume=True)
    assert (progress.kept, progress.done) == (6, 0)


def test_what_a_killed_run_left_unfinished_is_removed(source, out, write_pictures):
    names = write_pictures(source, 3)
    execute(make_job(), source, out)
    (out / "plain" / f"of an image that is gone{PART}").touch()
    execute(make_job(), source, out, resume=True)
    assert sorted(contents(out)) == names


def test_failed_images_are_tried_again(source, out, write_pictures, smooth):
    write_pictures(source, 3)
    (source / "late.png").touch()
    assert len(execute(make_job(), source, out).failed) == 1
    smooth(9).save(source / "late.png")
    progress = execute(make_job(), source, out, resume=True)
    assert (progress.kept, progress.done, progress.failed) == (3, 1, [])
    assert read_manifest(manifest_path(out)).records["late.png"].status == "done"


def test_an_image_that_became_bad_loses_its_earlier_output(source, out, write_pictures):
    names = write_pictures(source, 3)
    execute(make_job(), source, out)
    (source / names[0]).write_bytes(b"")
    progress = execute(make_job(), source, out, resume=True)
    assert [record.name for record in progress.failed] == [names[0]]
    assert sorted(contents(out)) == names[1:]


def test_planning_writes_nothing(source, out, write_pictures, tmp_path):
    write_pictures(source, 3)
    before = sorted(tmp_path.rglob("*"))
    plan_run(make_job(), source, out, resume=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_outputs_in_the_way_are_refused(source, out, write_pictures):
    write_pictures(source, 1)
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="out is not empty: give --resume to go on with it, or choose another output"):
        execute(make_job(), source, out)
    with pytest.raises(UsageError, match=r"out has no manifest \(out.manifest.jsonl\), so nothing can be resumed"):
        execute(make_job(), source, out, resume=True)
    assert contents(out) == {"mine.txt": b"precious"}


def test_an_empty_output_folder_is_no_obstacle(source, out, write_pictures):
    write_pictures(source, 1)
    out.mkdir()
    assert execute(make_job(), source, out).done == 1


@pytest.mark.parametrize(("inner", "outer"), [("in", "in"), ("in", "in/out"), ("in/deep", "in")])
def test_neither_folder_may_hold_the_other(tmp_path, write_pictures, inner, outer):
    write_pictures(tmp_path / "in" / "deep", 1)
    with pytest.raises(UsageError, match="must not contain each other: choose an output folder elsewhere"):
        execute(make_job(), tmp_path / inner, tmp_path / outer)


def test_a_link_does_not_hide_that_a_folder_holds_the_other(tmp_path, source, write_pictures):
    write_pictures(source, 1)
    (tmp_path / "elsewhere").symlink_to(source)
    with pytest.raises(UsageError, match="must not contain each other"):
        execute(make_job(), source, tmp_path / "elsewhere" / "out")


def test_a_folder_without_images_is_refused(source, out):
    (source / "notes.txt").touch()
    sentence = r"in holds no images \(1 other files\): PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or DICOM files are read"
    with pytest.raises(UsageError, match=sentence):
        execute(make_job(), source, out)


def test_progress_is_reported_batch_by_batch_until_all_is_done(source, out, write_pictures):
    write_pictures(source, 10)
    (source / "empty.png").touch()
    seen = []
    job = make_job()
    plan = plan_run(job, source, out, resume=False)
    run(job, out, plan, lambda progress: seen.append((progress.done, len(progress.failed), progress.total)))
    assert seen[-1] == (10, 1, 11)
    assert seen == sorted(seen)
    assert {done for done, _, _ in seen} == {0, 4, 8, 10}


# Several squares of a file, several images of a source


def halves(item):
    """The upper and the lower half of a picture, one on the other: a file of two squares."""
    reading = one_square(ImageContract(16, 3), FitMode.PAD)(item)
    return replace(reading, squares=torch.stack([reading.squares[0, :, :8], reading.squares[0, :, 8:]]))


def joined(outputs, reading):
    return as_picture(FitMode.PAD, keep_metadata=False)(torch.cat(list(outputs), dim=1)[None], reading)


def test_the_squares_of_a_file_come_together_again_across_batches(source, out, write_pictures):
    names, seen = write_pictures(source, 5), []
    job = make_job(lambda images: seen.append(tuple(images.shape)) or -images, read=halves, encode=joined, batch_size=3)
    assert execute(job, source, out).done == 5
    assert seen == [(3, 3, 8, 16)] * 4  # 10 squares in batches of 3, the last one padded
    for name in names:
        assert (pixels(out / name) == 255 - pixels(source / name)).all()


def test_a_file_without_squares_is_written_all_the_same(source, out, write_pictures):
    names = write_pictures(source, 3)

    def read(item):
        reading = one_square(ImageContract(16, 3), FitMode.PAD)(item)
        return replace(reading, squares=reading.squares[:0]) if item.name == names[1] else reading

    def encode(outputs, reading):
        return as_picture(FitMode.PAD, keep_metadata=False)(outputs, reading) if len(outputs) else b"as it was"

    progress = execute(make_job(read=read, encode=encode), source, out)
    assert (progress.done, progress.failed) == (3, [])
    assert contents(out)[names[1]] == b"as it was"


def test_a_batch_holds_squares_of_one_shape_as_many_as_there_is_room_for(source, out, write_pictures):
    names, seen = write_pictures(source, 5), []
    sides = dict(zip(names, (16, 16, 16, 8, 16), strict=True))

    def read(item):
        reading = one_square(ImageContract(16, 3), FitMode.PAD)(item)
        return replace(reading, squares=reading.squares[..., : sides[item.name], :])

    transform = lambda images: seen.append(tuple(images.shape[::2])) or -images  # noqa: E731
    job = make_job(transform, read=read, encode=lambda *_: b"", capacity=lambda shape, size: size * shape[1] // 32)
    assert execute(job, source, out).done == 5
    assert seen == [(2, 16), (2, 16), (1, 8), (2, 16)]


def test_several_images_of_one_source_are_made_recorded_and_resumed_by_their_names(source, out, write_pictures):
    (name,) = write_pictures(source, 1)
    seen = []

    def copies(items):
        return [replace(item, name=f"{number}-{item.name}", variant=number) for item in items for number in (1, 2, 3)]

    def transform(images, items, on_step):
        seen.extend(item.variant for item in items)
        filled = [image.clone().fill_(item.variant / 10) for image, item in zip(images, items, strict=True)]
        return Results(torch.stack(filled))

    job = replace(make_job(batch_size=2), transform=transform, expand=copies)
    assert execute(job, source, out).done == 3
    assert seen == [1, 2, 3, 3]  # the padding goes with the last item
    assert sorted(contents(out)) == [f"{number}-{name}" for number in (1, 2, 3)]
    before = contents(out)
    (out / f"2-{name}").unlink()
    assert execute(job, source, out, resume=True).kept == 2
    assert contents(out) == before


def test_an_item_with_a_strength_of_its_own_is_made_at_that_strength(source, tmp_path, smooth, model):
    smooth(0).save(source / "a.png")

    def at(strength):
        return lambda items: [replace(item, strength=strength) for item in items]

    for name, own, general in (("given", None, 0.4), ("own", 0.4, 0.1), ("other", None, 0.1)):
        job = anonymize_job(model, Sampling(Level(general), 2), key=KEY, batch_size=1)
        assert execute(replace(job, expand=at(own)), source, tmp_path / name).done == 1
    given, own, other = (pixels(tmp_path / name / "a.png") for name in ("given", "own", "other"))
    assert (given == own).all() and (given != other).any()  # noqa: PT018


@pytest.mark.parametrize(
    ("zero", "prediction", "strength", "warns"),
    [
        (True, from_epsilon, 1.0, True),
        (True, from_epsilon, 0.99, False),
        (True, from_v, 1.0, False),
        (False, from_epsilon, 1.0, False),
    ],
)
def test_noise_prediction_where_no_signal_is_left_is_warned_of(model, zero, prediction, strength, warns):
    table = DDPMScheduler(rescale_betas_zero_snr=zero).alphas_cumprod
    schedule = NoiseSchedule.variance_preserving(table)
    denoiser = replace(model.denoiser, schedule=schedule, prediction=prediction)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anonymize_job(replace(model, denoiser=denoiser), Sampling(Level(strength)))
    assert ["zero terminal SNR" in str(each.message) for each in caught] == [True] * warns
