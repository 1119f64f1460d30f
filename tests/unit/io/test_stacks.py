"""A folder as one batch, of pictures or of physical values; what is left out and why; and new images as files."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from PIL import Image

from bad_domains import BAD_ARRAY_DOMAINS, BAD_DOMAINS, arrays, fluxes
from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import ImageError, UsageError
from nearfar.io.arrays import read_array, unfit_square, write_array
from nearfar.io.fitting import FitMode, fit, unfit
from nearfar.io.manifest import write_whole
from nearfar.io.pictures import Frame, encode, read_picture
from nearfar.io.stacks import read_inputs, write_arrays
from nearfar.io.values import fit_values
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.sampling.inversion import reconstruct
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

GRAY, COLOR = ImageContract(16, 1), ImageContract(16, 3)
CURVES = ["linear", "asinh"]
each_curve = pytest.mark.parametrize("curve", CURVES)


# Pictures


@pytest.mark.parametrize("contract", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("mode", [FitMode.PAD, FitMode.COVER])
def test_pictures_are_read_as_a_run_reads_them(tmp_path, write_pictures, contract, mode):
    names = write_pictures(tmp_path, 6, (20, 13))
    found = read_inputs(tmp_path, contract, mode)
    assert sorted(found.names) == names
    assert found.images.shape == (6, contract.channels, 16, 16)
    contract.check(found.images)
    for name, image in zip(found.names, found.images, strict=True):
        assert torch.equal(image, fit(read_picture(tmp_path / name), 16, contract.channels, mode))
    assert (found.failed, found.values, found.ignored) == ([], None, 0)


def test_pictures_that_cannot_be_read_are_listed_and_left_out(tmp_path, write_pictures):
    names = write_pictures(tmp_path, 3)
    (tmp_path / "cut.png").write_bytes((tmp_path / names[0]).read_bytes()[:50])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "movie.gif").touch()
    (tmp_path / "flux.npy").touch()
    found = read_inputs(tmp_path, COLOR)
    assert sorted(found.names) == names
    assert found.ignored == 1
    reasons = {entry.name: entry.reason for entry in found.failed}
    assert set(reasons) == {"cut.png", "empty.jpg", "movie.gif"}
    assert reasons["empty.jpg"].startswith("empty.jpg is empty (0 bytes)")
    assert reasons["movie.gif"].startswith(".gif files are not read")


@pytest.mark.parametrize("name", ["one", "twins", "black"])
def test_few_pictures_are_for_others_to_judge(tmp_path, name):
    found = read_inputs(BAD_DOMAINS[name](tmp_path / "in"), COLOR)
    assert len(found.images) == {"one": 1, "twins": 2, "black": 4}[name]
    assert (found.images[0] == found.images[-1]).all()


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "0 other files"), ("truncated", r"the first of 2 files: 0\.png")]
)
def test_a_folder_without_a_picture_is_refused(tmp_path, name, reason):
    folder = BAD_DOMAINS[name](tmp_path / "in")
    sentence = rf"in holds no image that can be read \({reason}.*\): give PNG, .* or DICOM files, or a curve"
    with pytest.raises(UsageError, match=sentence):
        read_inputs(folder, COLOR)


def test_a_clip_without_a_curve_is_refused(tmp_path):
    for options in ({"clip": 0.1}, {"softening": [1.0]}):
        with pytest.raises(
            UsageError, match=r"^clip and softening are for arrays: give a curve too, one of linear, log"
        ):
            read_inputs(tmp_path, COLOR, **options)


# Arrays


def write_fluxes(folder, count=4, shape=(16, 11)):
    """FITS files of positive fluxes over several decades; the values as they are read back."""
    folder.mkdir()
    rng = np.random.default_rng(9)
    planes = rng.lognormal(0, 2, (count, 1, *shape)) + rng.normal(10, 0.01, (count, 1, *shape))
    for number, values in enumerate(planes):
        write_array(folder / f"{number}.fits", values)
    return [read_array(folder / f"{number}.fits") for number in range(count)]


@pytest.mark.parametrize("contract", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("curve", ["linear", "log", "asinh"])
def test_arrays_share_one_transform(tmp_path, contract, curve):
    values = write_fluxes(tmp_path / "in")
    found = read_inputs(tmp_path / "in", contract, curve=curve, clip=0.01)
    assert found.names == ["0.fits", "1.fits", "2.fits", "3.fits"]
    assert found.values == fit_values(values, curve, 0.01)
    contract.check(found.images)
    for each, image in zip(values, found.images, strict=True):
        expected = found.values.to_image(each, contract.channels)
        assert torch.equal(unfit_square(image, 16, 11), expected)


def test_softening_is_handed_on(tmp_path):
    write_fluxes(tmp_path / "in")
    assert read_inputs(tmp_path / "in", GRAY, curve="asinh", softening=[0.25]).values.softening == (0.25,)


def test_arrays_are_covered_too(tmp_path):
    values = write_fluxes(tmp_path / "in", shape=(16, 20))
    found = read_inputs(tmp_path / "in", GRAY, FitMode.COVER, curve="linear")
    assert torch.equal(found.images[0], found.values.to_image(values[0])[..., 2:18])


def test_a_tiff_is_a_picture_unless_a_curve_is_given(tmp_path):
    counts = np.random.default_rng(2).integers(1000, 2000, (16, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", counts)
    picture, array = read_inputs(tmp_path, GRAY), read_inputs(tmp_path, GRAY, curve="linear")
    np.testing.assert_allclose(picture.images[0, 0], counts / 32767.5 - 1, atol=1e-6)
    assert (array.images.min(), array.images.max()) == (-1, 1)
    np.testing.assert_allclose(array.values.to_values(array.images)[0, 0], counts, atol=1e-3)


def test_formats_may_be_mixed_and_pictures_among_them_are_passed_over(tmp_path):
    write_fluxes(tmp_path / "in", 1)
    np.save(tmp_path / "in" / "a.npy", fluxes(1))
    (tmp_path / "in" / "deep").mkdir()
    tifffile.imwrite(tmp_path / "in" / "deep" / "b.TIF", fluxes(2))
    Image.new("L", (4, 4)).save(tmp_path / "in" / "preview.png")
    (tmp_path / "in" / "c.fits.gz").touch()
    found = read_inputs(tmp_path / "in", GRAY, curve="linear")
    assert found.names == ["0.fits", "a.npy", "deep/b.TIF"]
    assert found.ignored == 1
    assert [(e.name, e.reason) for e in found.failed] == [
        ("c.fits.gz", ".gz files are not read: convert it to .npy, TIFF or FITS")
    ]


@each_curve
def test_arrays_that_cannot_be_used_are_listed_and_left_out(tmp_path, curve):
    folder = BAD_ARRAY_DOMAINS["one_nan"](tmp_path / "in")
    np.save(folder / "four.npy", np.zeros((4, 16, 16)))
    np.save(folder / "complex.npy", np.zeros((16, 16), complex))
    found = read_inputs(folder, COLOR, curve=curve)
    assert found.names == ["0.npy", "2.npy"]
    assert {entry.name: entry.reason for entry in found.failed} == {
        "1.npy": "1.npy has 1 values that are not finite: fill them in or crop them away",
        "complex.npy": "complex.npy holds values of type complex128: save them as integers or floats",
        "four.npy": "four.npy has 4 channels, the model 3: save the channels one by one",
    }


def test_colors_are_no_physical_values_of_a_gray_model(tmp_path):
    folder = arrays(tmp_path / "in", np.stack([fluxes(number) for number in range(3)]))
    assert read_inputs(folder, COLOR, curve="asinh").images.shape == (1, 3, 16, 16)
    with pytest.raises(
        UsageError, match=r"the first of 1 files: 0\.npy has 3 channels, the model 1: save the channels"
    ):
        read_inputs(folder, GRAY, curve="asinh")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", r"no image that can be read \(0 other files\): give \.npy, TIFF or FITS files, or no curve for"),
        ("nan", r"the first of 3 files: 0\.npy has 1 values that are not finite"),
        ("truncated", r"the first of 2 files: 0\.npy cannot be decoded as NPY"),
        ("black", r"^channel 0 is 0 throughout at clip 0: clip less or give varied data$"),
        ("mixed_channels", r"^arrays must have the same channels, got the shapes \[\(1, 16, 16\), \(3, 16, 16\)\]$"),
    ],
)
def test_array_domains_that_cannot_be_are_refused(tmp_path, name, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_inputs(BAD_ARRAY_DOMAINS[name](tmp_path / "in"), COLOR, curve="linear")


@pytest.mark.parametrize("name", ["one", "twins"])
def test_few_arrays_are_for_others_to_judge(tmp_path, name):
    found = read_inputs(BAD_ARRAY_DOMAINS[name](tmp_path / "in"), COLOR, curve="asinh")
    assert len(found.images) == {"one": 1, "twins": 2}[name]


def test_an_unknown_curve_is_refused(tmp_path):
    write_fluxes(tmp_path / "in")
    with pytest.raises(UsageError, match=r"^curve must be one of linear, log, log1p, asinh, got 'sqrt'$"):
        read_inputs(tmp_path / "in", GRAY, curve="sqrt")


# New images


def new_images(count=3, channels=1, size=8):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def write_picture(path, image):
    """As a job of new images writes them."""
    channels, height, width = image.shape
    return write_whole(path, encode(unfit(image, Frame(height, width, channels, 8, None, "PNG", {}))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_new_picture_is_png_of_8_bits(tmp_path, channels):
    (image,) = new_images(1, channels)
    digest = write_picture(tmp_path / "out.png", image)
    assert digest == hashlib.sha256((tmp_path / "out.png").read_bytes()).hexdigest()
    expected = np.rint((image.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")).reshape(expected.shape), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".fits", ".npy", ".tif"])
def test_new_arrays_are_physical_values(tmp_path, channels, suffix):
    images, values = new_images(channels=channels), fit_values([np.geomspace(0.1, 1e4, 100).reshape(1, 10, 10)], "log")
    names = write_arrays(tmp_path, images, values, suffix)
    assert names == [f"sample-000{n}{suffix}" for n in (1, 2, 3)]
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(read_array(tmp_path / name), values.to_values(image).astype(np.float32))


def test_new_arrays_may_be_counts(tmp_path):
    values = fit_values([np.linspace(3, 60_000, 100).reshape(1, 10, 10)])
    names = write_arrays(tmp_path, new_images(), values, dtype="uint16")
    assert fits.getdata(tmp_path / names[1]).dtype == np.uint16
    np.testing.assert_array_equal(read_array(tmp_path / names[1]), np.rint(values.to_values(new_images()[1])))
    low = fit_values([np.linspace(-3, 60_000, 100).reshape(1, 10, 10)])
    with pytest.raises(UsageError, match=r"^sample-0001\.fits needs values from 0 to 65535 for uint16, got -3 to"):
        write_arrays(tmp_path, torch.full((1, 1, 8, 8), -1.0), low, dtype="uint16")


def test_images_that_are_not_finite_are_not_written(tmp_path):
    broken = torch.full((1, 1, 8, 8), float("nan"))
    with pytest.raises(ImageError, match=r"^the model's image has 64 values that are not finite"):
        write_picture(tmp_path / "out.png", broken[0])
    with pytest.raises(ImageError, match=r"^the model's image has 64 values that are not finite"):
        write_arrays(tmp_path / "out", broken, fit_values([np.eye(4)[None]]))
    assert list(tmp_path.iterdir()) == []


# There and back through a model


@pytest.fixture
def oracle():
    """The exact model of Gaussian colors, whose trajectory the fixed point undoes."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = NoiseSchedule.variance_preserving((1 - betas).cumprod(0))
    return FrozenModel(
        denoiser=GaussianDenoiser(schedule, torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.2)),
        latent_space=PixelSpace(),
        image=COLOR,
        latent_shape=(3, 16, 16),
        provenance=Provenance("oracle", "", ""),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=0,
    )


def test_fluxes_come_back_from_a_model_that_can_represent_them(tmp_path, oracle):
    """FITS -> asinh -> image -> noise -> image -> FITS; an error of the image is one of known size in the fluxes."""
    originals = np.stack(write_fluxes(tmp_path / "in"))
    found = read_inputs(tmp_path / "in", oracle.image, curve="asinh")
    solver = FixedPointDDIM(iterations=40, tolerance=1e-7)
    again = reconstruct(oracle, found.images, strength=0.5, steps=10, solver=solver)
    tolerance = 1e-4
    assert (again - found.images).abs().max() < tolerance / 2
    for number, image in enumerate(again):
        write_array(tmp_path / f"{number}.fits", found.values.to_values(unfit_square(image, 16, 11)))
    returned = np.stack([read_array(tmp_path / f"{number}.fits") for number in range(4)])
    (low,), (high,), (softening,) = found.values.low, found.values.high, found.values.softening
    span = np.arcsinh(high / softening) - np.arcsinh(low / softening)
    slope = np.hypot(originals, softening) * span / 2
    assert (np.abs(returned - originals) <= slope * tolerance).all()
    assert returned.sum() == pytest.approx(originals.sum(), rel=1e-4)


# The page about arrays


@pytest.mark.slow
def test_the_code_of_the_page_on_arrays_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "arrays.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    write_fluxes(tmp_path / "fluxes", 1)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert [path.name for path in Path("again").iterdir()] == ["sample-0001.fits"]
