"""`enhance` on folders with the tiny model: sizes, formats, alpha, depth, consistency, resume, refusals."""

import time
from itertools import accumulate

import numpy as np
import pytest
import torch
from PIL import Image

from gaussian_models import gaussian
from nearfar.errors import RunError
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs import enhance as job_module
from nearfar.jobs import pipeline
from nearfar.jobs.enhance import enhance_folder, enhance_job
from nearfar.sampling.enhancement import Enlargement

SCALE = 3


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def call(source, out, model=None, **options):
    return enhance_folder(model or gaussian(), source, out, **{"scale": SCALE, "steps": 2, **options})


def drawn(*shape, top=256, dtype=np.uint8):
    return np.random.default_rng(sum(shape)).integers(0, top, shape, dtype=dtype)


def shrunk(path, scale=SCALE):
    """The mean over squares of a picture's pixels."""
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(float)
    height, width = (length // scale for length in pixels.shape[:2])
    return pixels.reshape(height, scale, width, scale, -1).mean((1, 3)).squeeze()


def figures(out):
    return {name: record.figures for name, record in read_manifest(manifest_path(out)).records.items()}


def test_pictures_of_any_kind_grow_and_shrink_to_themselves_again(source, out):
    pixels = {
        "color.png": drawn(5, 7, 3),
        "deep/gray.png": drawn(9, 4),
        "deep/16.tif": drawn(6, 6, top=65536, dtype=np.uint16),
        "black and white.bmp": (drawn(8, 8, 3) > 127).astype(np.uint8) * 255,
    }
    for name, array in pixels.items():
        Image.fromarray(array).save(source / name)
    assert call(source, out).failed == []
    for name, array in pixels.items():
        with Image.open(source / name) as before, Image.open(out / name) as after:
            assert (after.format, after.mode) == (before.format, before.mode)
            assert after.size == (SCALE * before.width, SCALE * before.height)
        error = np.abs(shrunk(out / name) - array).max()
        assert error <= 0.51
        assert figures(out)[name] == {"consistency_error": pytest.approx(error, abs=1e-2)}


def test_alpha_grows_with_the_picture(source, out):
    alpha = np.kron([[0, 255], [255, 0]], np.full((4, 4), 1)).astype(np.uint8)
    Image.fromarray(np.dstack([drawn(8, 8, 3), alpha])).save(source / "x.png")
    call(source, out)
    with Image.open(out / "x.png") as image:
        assert (image.mode, image.size) == ("RGBA", (24, 24))
        larger = np.asarray(image)[..., 3]
    assert (larger[:6, :6] == 0).all()
    assert (larger[:6, -6:] == 255).all()


def test_a_gray_model_enlarges_colors_one_by_one(source, out):
    array = drawn(6, 6, 3)
    Image.fromarray(array).save(source / "x.png")
    call(source, out, gaussian(channels=1))
    assert np.abs(shrunk(out / "x.png") - array).max() <= 0.51


def test_without_consistency_nothing_is_recorded(source, out):
    Image.fromarray(drawn(6, 6, 3)).save(source / "x.png")
    call(source, out, consistency=False)
    assert figures(out) == {"x.png": {}}
    assert np.abs(shrunk(out / "x.png") - drawn(6, 6, 3)).max() > 1


def test_a_run_that_is_resumed_ends_with_the_same_bytes(source, out, tmp_path, model):
    for number, shape in enumerate([(4, 4, 3), (4, 4, 3), (11, 6, 3), (4, 4, 3)]):
        Image.fromarray(drawn(*shape) // (number + 1)).save(source / f"{number}.png")
    whole = tmp_path / "whole"
    call(source, whole, model, batch_size=4)
    call(source, out, model, batch_size=4)
    (out / "1.png").unlink()
    again = call(source, out, model, batch_size=4, resume=True)
    assert (again.kept, again.done) == (3, 1)
    for number in range(4):
        assert (out / f"{number}.png").read_bytes() == (whole / f"{number}.png").read_bytes()


def test_only_so_many_images_go_together_that_their_tiles_fill_a_batch():
    job = enhance_job(gaussian(), Enlargement(4), batch_size=12)
    shapes = [(3, 4, 4), (3, 5, 4), (3, 5, 5), (3, 16, 16)]
    assert [job.capacity(shape, 12) for shape in shapes] == [12, 4, 1, 1]


def test_calls_are_no_larger_than_the_tiles_that_there_are(source, out, monkeypatch):
    calls, model = [], gaussian()
    oracle = type(model.denoiser).__call__
    monkeypatch.setattr(type(model.denoiser), "__call__", lambda *args: calls.append(len(args[1])) or oracle(*args))
    Image.fromarray(drawn(4, 4, 3)).save(source / "one tile.png")
    call(source, out, model, scale=4)
    assert set(calls) == {1}


def test_what_would_be_too_large_fails_alone(source, out):
    Image.fromarray(np.zeros((1, 5462), np.uint8)).save(source / "long.png")
    Image.fromarray(drawn(4, 4, 3)).save(source / "good.png")
    (failed,) = call(source, out).failed
    assert failed.name == "long.png"
    assert failed.reason.startswith("would have 16386 x 3 pixels, more than 100,000,000 pixels or 16383 of a side")
    assert (out / "good.png").exists()


def test_the_seed_decides(source, tmp_path, model):
    Image.fromarray(drawn(4, 4, 3)).save(source / "x.png")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        call(source, tmp_path / name, model, seed=seed)
    a, b, c = ((tmp_path / name / "x.png").read_bytes() for name in "abc")
    assert a == b != c


def test_the_settings_name_the_level_that_was_proposed():
    job = enhance_job(gaussian(), Enlargement(8, cascade=2, steps=3))
    assert job.steps == 6
    assert {"scale": 8, "cascade": 2, "consistency": True}.items() <= job.settings.items()
    assert torch.isclose(torch.tensor(job.settings["sigma"]), torch.tensor(8**1.5 / 3), rtol=1e-3)


def test_large_images_wait_to_be_read_until_there_is_room(source, out, monkeypatch):
    """With room for none, no more are read ahead than the two readers and the batches under way hold."""
    events, read = [], job_module.read_small

    def noted(item, **how):
        events.append(1)
        return read(item, **how)

    def slow(model, images, *_, **__):
        time.sleep(0.01)
        events.append(-1)
        return images.repeat_interleave(4, 2).repeat_interleave(4, 3)

    monkeypatch.setattr(pipeline, "WAITING", 0)
    monkeypatch.setattr(job_module, "read_small", noted)
    monkeypatch.setattr(job_module, "enlarge", slow)
    for number in range(24):
        Image.fromarray(drawn(16, 16, 3)).save(source / f"{number:02}.png")
    call(source, out, scale=4, batch_size=16)  # each is 25 tiles, so it goes alone
    assert events.count(1) == events.count(-1) == 24
    assert max(accumulate(events)) <= 6


def test_tiles_that_memory_does_not_hold_are_called_in_smaller_numbers(source, out, monkeypatch):
    Image.fromarray(drawn(24, 24, 3)).save(source / "a.png")
    held, tried = job_module.enlarge, []

    def tight(*args, batch_size, **options):
        tried.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("full")
        return held(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(job_module, "enlarge", tight)
    assert enhance_folder(gaussian(), source, out, scale=2, steps=1).done == 1
    assert tried[0] > 2
    assert tried[-1] <= 2


def test_a_number_of_tiles_that_was_asked_for_is_not_changed(source, out, monkeypatch):
    Image.fromarray(drawn(24, 24, 3)).save(source / "a.png")

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(job_module, "enlarge", full)
    with pytest.raises(RunError, match="give --batch-size 4"):
        enhance_folder(gaussian(), source, out, scale=2, steps=1, batch_size=8)
