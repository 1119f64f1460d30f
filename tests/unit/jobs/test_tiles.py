"""`--tile` on folders: pictures keep their sizes and their scale, whatever batch they are in; text models too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
from gaussian_models import gaussian
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.io.fitting import FitMode
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.jobs.anonymize import anonymize_folder
from nearfar.jobs.reconstruct import reconstruct_job
from nearfar.jobs.run import plan_run, run
from nearfar.models.loading import load_model
from nearfar.models.model import PatchSpace
from nearfar.sampling.enhancement import mirrored
from nearfar.sampling.inversion import INVERTER
from nearfar.sampling.local_sampling import sample_near
from nearfar.sampling.tiling import over_tiles

KEY = SecretKey.from_seed(0)
SHAPES = {"wide.png": (21, 50, 3), "high.png": (40, 7, 3), "gray.png": (33, 33), "small.png": (5, 9, 3)}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, shape in SHAPES.items():
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def anonymize(source, out, model, **options):
    given = {"strength": 0.3, "steps": 2, "key": KEY, "batch_size": 4, "fit": FitMode.TILE}
    return anonymize_folder(model, source, out, **given | options)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_pictures_of_any_shape_keep_their_sizes_and_detail_is_not_lost(source, out):
    done = anonymize(source, out, gaussian(PatchSpace(4)))  # sides are no multiples of a patch
    assert (done.done, done.failed, done.reduced) == (4, [], 0)
    assert {name: pixels(out / name).shape for name in SHAPES} == SHAPES


def test_tiles_of_a_model_that_looks_at_single_pixels_make_what_it_would_make_without_them():
    """One noise field, averaged estimates: then no place tells where a tile ends."""
    model, sampling = gaussian(), Sampling(Level(0.4), 3)
    canvas = mirrored(torch.rand(1, 3, 37, 50) * 2 - 1, model, 1)
    tiles = over_tiles(model, canvas, 4)
    whole = replace(tiles, denoiser=model.denoiser)
    torch.testing.assert_close(sample_near(tiles, canvas, sampling, KEY), sample_near(whole, canvas, sampling, KEY))


def test_outputs_do_not_depend_on_their_batch_and_resume_ends_with_the_same_bytes(source, out, tmp_path, model):
    anonymize(source, out, model)
    first = {name: (out / name).read_bytes() for name in SHAPES}
    alone = tmp_path / "alone"
    alone.mkdir()
    (source / "wide.png").rename(alone / "wide.png")
    anonymize(alone, tmp_path / "other", model)
    assert (tmp_path / "other" / "wide.png").read_bytes() == first["wide.png"]
    (alone / "wide.png").rename(source / "wide.png")
    (out / "wide.png").unlink()
    again = anonymize(source, out, model, resume=True)
    assert (again.kept, again.done) == (3, 1)
    assert {name: (out / name).read_bytes() for name in SHAPES} == first


def test_reconstruct_returns_canvases_with_figures(source, out):
    job = reconstruct_job(gaussian(), Sampling(Level(0.5), 4, INVERTER), fit=FitMode.TILE, batch_size=8)
    assert run(job, out, plan_run(job, source, out, resume=False)).failed == []
    records = read_manifest(manifest_path(out)).records
    assert all(record.figures["psnr"] > 60 for record in records.values())
    assert np.abs(pixels(out / "wide.png").astype(int) - pixels(source / "wide.png")).max() <= 1


def test_pages_of_several_sizes_are_refused(source, out):
    pages = [Image.new("L", size, 90) for size in ((40, 30), (30, 40))]
    pages[0].save(source / "pages.tif", save_all=True, append_images=pages[1:])
    failed = anonymize(source, out, gaussian()).failed
    assert [record.name for record in failed] == ["pages.tif"]
    assert "has pages of several sizes, which --tile cannot put into one file" in failed[0].reason


@pytest.mark.slow
def test_text_models_of_a_fixed_size_see_tiles_of_it(source, out, tmp_path):
    tiny_models.stable_diffusion(tmp_path / "sd")
    model = load_model(tmp_path / "sd", prompt="a photo")
    name = "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)).save(source / name)
    assert max(70, 45) > model.image.size
    assert anonymize(source, out, model).failed == []
    assert pixels(out / name).shape == (45, 70, 3)
