"""Every family, written to the disk in its own format, read back and run: as a library and from the command line.

The networks have random weights, so what they make is no picture; what is checked holds for any network.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from nearfar.cli.app import app
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.profiling import measured
from nearfar.diffusion.solver import SOLVER, SOLVERS, Heun
from nearfar.errors import ModelWarning, UsageError
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel, PatchSpace
from nearfar.sampling import local_sampling
from nearfar.sampling.inversion import invert, reconstruct, solver_settings
from nearfar.sampling.local_sampling import local_sample
from nearfar.sampling.own_profile import profiled
from tiny_models import FAMILIES

pytestmark = [
    # In diffusers 0.42.1 with numpy 2: "__array__ implementation doesn't accept a copy keyword".
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

KEY, OTHER = SecretKey.from_seed(1), SecretKey.from_seed(2)
GRAY_LEVEL = 2 / 255
GRAY = ("ddpm_gray", "equinox")
LATENTS = {
    **dict.fromkeys(GRAY, (1, 16, 16)),
    "ddpm_checkpoint": (3, 32, 32),
    "guided_checkpoint": (3, 32, 32),
    "patched_2": (12, 16, 16),
    "patched_4": (48, 8, 8),
    **dict.fromkeys([name for name in FAMILIES if name.startswith(("stable_diffusion", "flux"))], (4, 16, 16)),
}
"""What each network works on, where it is not 3 channels of 16x16."""
PICTURES_OF_32 = ("ddpm_checkpoint", "guided_checkpoint", "patched", "ldm", "stable_diffusion", "flux")


@dataclass(frozen=True)
class Written:
    """A model, where it lies, and two pictures for it."""

    name: str
    path: str
    model: FrozenModel
    images: torch.Tensor


DRAWN = "ldm_kl_sampled"
"""Its latents are drawn, so there is nothing to invert."""
INVERTIBLE = [name for name in FAMILIES if name != DRAWN]
each_invertible = pytest.mark.parametrize("written", INVERTIBLE, indirect=True, scope="session")


@pytest.fixture(scope="session", params=[*INVERTIBLE, DRAWN])
def written(request, tmp_path_factory):
    """Each tiny model, written and read back once. Only original checkpoints warn, of what had to be assumed."""
    family = FAMILIES[request.param]
    path = family.at(tmp_path_factory.mktemp("families"), request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if family.suffix else "error", ModelWarning)
        model = load_model(path, "cpu", **family.options)
    return Written(request.param, str(path), model, pictures(model))


def pictures(model):
    coarse = torch.rand(2, model.image.channels, 4, 4, generator=torch.manual_seed(0)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=model.image.size, mode="bilinear")


def distance(a, b):
    return (a - b).square().mean().sqrt().item()


# The library


def test_the_model_has_the_shapes_of_its_family(written):
    assert written.model.latent_shape == LATENTS.get(written.name, (3, 16, 16))
    assert written.model.image.size == (32 if written.name.startswith(PICTURES_OF_32) else 16)
    assert written.model.image.channels == (1 if written.name in GRAY else 3)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_local_samples_are_images_that_the_key_decides(written, strength):
    def sample(key):
        return local_sample(written.model, written.images, strength=strength, steps=2, key=key)

    first, again, other = sample(KEY), sample(KEY), sample(OTHER)
    assert (first.shape, first.dtype) == (written.images.shape, torch.float32)
    assert first.isfinite().all()
    assert first.abs().max() <= 1
    assert torch.equal(first, again)
    for a, b, image in zip(first, other, written.images, strict=True):
        assert distance(a, b) > GRAY_LEVEL
        assert distance(a, image) > GRAY_LEVEL


def test_at_strength_1_only_the_noise_decides(written, monkeypatch):
    # The noise depends on the image, so it is held fixed here: what is left is the way from noise to image.
    monkeypatch.setattr(local_sampling, "noise_for", lambda images, *_: [bytes(16)] * len(images))

    def sample(images, strength):
        return local_sample(written.model, images, strength=strength, steps=1)

    assert torch.equal(sample(written.images, 1.0), sample(-written.images, 1.0))
    assert not torch.equal(sample(written.images, 0.3), sample(-written.images, 0.3))


@each_invertible
def test_the_default_solver_uses_a_profile_that_was_measured_and_has_a_stand_in_where_none_was(written):
    model, space = written.model, written.model.latent_space
    assert solver_settings(SOLVER, model.denoiser) == {"solver": "dpm++sde", "stands_in_for": "local-prior"}
    factor = space.factor if isinstance(space, PatchSpace) else 1
    profile = measured(model.denoiser, space.encode(written.images), factor, levels=4)
    known = profiled(model, profile)
    assert solver_settings(SOLVER, known.denoiser) == {"solver": "local-prior", "profile": profile.digest()}
    levels = torch.tensor([0.3, 1.0])
    with_it, without = (local_sample(one, written.images, strength=levels, steps=3, key=KEY) for one in (known, model))
    assert with_it.shape == written.images.shape
    assert with_it.isfinite().all()
    assert not torch.equal(with_it, without)
    stand_in = local_sample(model, written.images, strength=levels, steps=3, key=KEY, solver=SOLVERS["dpm++sde"])
    assert torch.equal(without, stand_in)


@each_invertible
@pytest.mark.parametrize("solver", ["heun", "ddim"])
def test_inversion_and_reconstruction_run(written, solver):
    options = {"strength": 0.9, "steps": 2, "solver": SOLVERS[solver]}
    latents = invert(written.model, written.images, **options)
    assert latents.shape == (2, *written.model.latent_shape)
    assert latents.isfinite().all()
    assert not torch.equal(latents, written.model.latent_space.encode(written.images))
    images = reconstruct(written.model, written.images, **options)
    assert images.shape == written.images.shape
    assert images.isfinite().all()
    assert images.abs().max() <= 1


@each_invertible
def test_a_fine_grid_leads_back_to_what_the_encoder_keeps_of_the_image(written):
    # The latents of a tiny autoencoder measure hundredths, so they are lost in the noise far earlier than pixels.
    strength = 0.1 if written.model.latent_space.span < float("inf") else 0.01
    image, space = written.images[:1], written.model.latent_space
    kept = space.decode(space.encode(image)).clamp(-1, 1)
    near = local_sample(written.model, image, strength=strength, steps=2, key=KEY)
    back = reconstruct(written.model, image, strength=strength, steps=8, solver=Heun())
    assert distance(back, kept) < distance(near, kept) / 10


# The command line


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two pictures, one of them not square."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(32, 32), (40, 24)]):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def nearfar(written, command, folder, out, *more):
    """The command with the model and its options as a user would type them."""
    options = FAMILIES[written.name].options
    typed = [
        text
        for name, value in options.items()
        for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    arguments = [command, str(folder), str(out), "--model", written.path, "--device", "cpu", "--steps", "2"]
    return CliRunner().invoke(app, [*arguments, *typed, *more], catch_exceptions=False)


def test_anonymize_from_the_command_line(written, folder, tmp_path):
    result = nearfar(written, "anonymize", folder, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for path in folder.iterdir():
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.name) as after:
            assert after.size == before.size
            assert np.asarray(after.convert("RGB")).tobytes() != np.asarray(before).tobytes()
    assert ("The network predicts noise" in result.stderr) == (FAMILIES[written.name].suffix in (".ckpt", ".pt"))


@pytest.mark.parametrize(
    "written", ["patched_2", "ldm_kl", "stable_diffusion_3", "improved_checkpoint"], indirect=True, scope="session"
)
def test_invert_from_the_command_line(written, folder, tmp_path):
    result = nearfar(written, "invert", folder, tmp_path / "out", "--strength", "0.5")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png.npy", "1.png.npy"]
    for path in (tmp_path / "out").iterdir():
        latents = np.load(path)
        assert (latents.shape, latents.dtype) == (written.model.latent_shape, np.float32)
        assert np.isfinite(latents).all()
        assert latents.std() > 0


@pytest.mark.parametrize("written", [DRAWN], indirect=True, scope="session")
def test_drawn_latents_are_not_inverted(written, folder, tmp_path):
    sentence = "this model draws its latents, which an inversion cannot: load it without --sampled"
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        invert(written.model, written.images, strength=0.5, steps=1)
    result = nearfar(written, "invert", folder, tmp_path / "out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"nearfar: {sentence}")
    assert not list(tmp_path.rglob("*.npy"))
