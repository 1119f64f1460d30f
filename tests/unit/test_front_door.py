"""What a newcomer does in Python: pictures in, pictures out, objects that say what they are, mistakes in sentences."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import nearfar
from oracle_domains import oracle, unseen

PICTURES = [Image.new("RGB", (40, 30), (200, 90, 40)), Image.new("L", (9, 17), 90)]
CALLS = {
    "local_sample('faces', tensor, strength=0.3)": "model must be what nearfar.load_model returns, got str",
    "local_sample(model, tensor, strength='much')": "strength must be a number, or one for each image, got 'much'",
    "local_sample(model, tensor, strength=2)": "strength must be in [0, 1], got 2",
    "local_sample(model, tensor)": "give either strength or sigma, got neither",
    "local_sample(model, tensor, strength=0.3, steps=2.5)": "steps must be a whole number, got 2.5",
    "local_sample(model, tensor, strength=0.3, solver='ddim')": "solver must be a Solver, such as nearfar.DDIM(), got",
    "local_sample(model, tensor, strength=0.3, key='x')": "key must be a nearfar.SecretKey, got str",
    "reconstruct(model, 'a.png', strength=0.3)": "images must be a tensor",
    "invert(model, [], strength=0.3)": "images must be a tensor",
    "enhance(model, 3, scale=2)": "images must be a tensor",
    "load_model(3)": "a model is given as a folder",
}


def test_the_version_is_that_of_the_package():
    assert nearfar.__version__ == "0.2.0"


def test_pictures_come_back_in_their_sizes():
    model = oracle()
    for made in (
        nearfar.local_sample(model, PICTURES, strength=0.3, steps=1),
        nearfar.reconstruct(model, PICTURES, strength=0.3, steps=1),
        model.to_pil(model.from_pil(PICTURES), like=PICTURES),
    ):
        assert [(image.size, image.mode) for image in made] == [((40, 30), "RGB"), ((9, 17), "L")]


def test_an_array_comes_back_as_an_array():
    made = nearfar.local_sample(oracle(), np.asarray(PICTURES[0]), strength=0.3, steps=1)
    assert (made.shape, made.dtype) == ((30, 40, 3), np.uint8)


def test_enlarged_pictures_are_pictures():
    made = nearfar.enhance(oracle(), PICTURES, scale=2, steps=1)
    assert [image.size for image in made] == [(80, 60), (18, 34)]


def test_latents_of_pictures_and_their_representation():
    model = oracle()
    assert nearfar.invert(model, PICTURES, strength=0.3, steps=1).shape == (2, *model.latent_shape)
    assert "2 images" in repr(nearfar.represent(model, PICTURES, strength=0.3, steps=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nearfar.ModelWarning")
def test_a_domain_of_pictures_is_that_of_their_tensor():
    model, images = oracle(), unseen()
    options = {"strength": 0.5, "steps": 2, "own": images}
    domain = nearfar.Domain.fit(model, model.to_pil(images), **options)
    assert torch.equal(domain.clean, nearfar.Domain.fit(model, model.from_pil(model.to_pil(images)), **options).clean)
    assert repr(domain).startswith(f"Domain(images {len(images)}, strength 0.5")
    assert "<table>" in domain._repr_html_()
    new = nearfar.synthesize(model, domain, 2)
    assert repr(new) == "Synthesis(2 images, acceptance 1)"
    assert new._repr_png_().startswith(b"\x89PNG")
    assert len(nearfar.vary(model, domain, PICTURES[0], 2)) == 2


def test_reprs_are_short():
    model = nearfar.load_model()
    for thing in (model, model.schedule, model.denoiser, nearfar.SecretKey.random()):
        assert len(repr(thing)) < 300
    assert f"images {model.image.size}x{model.image.size}" in repr(model)
    assert "license" in repr(model)
    assert "<table>" in model._repr_html_()


@pytest.mark.process
def test_mistakes_are_sentences():
    """Without the types checked at run time, as users have it."""
    program = "import torch, nearfar, warnings; from nearfar import *; warnings.simplefilter('ignore')\n"
    program += (
        "model = load_model(); tensor = torch.zeros(1, model.image.channels, model.image.size, model.image.size)\n"
    )
    for call in CALLS:
        program += f"try: {call}\nexcept UsageError as error: print(error)\nelse: print('no error')\n"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = process.stdout.splitlines()
    assert len(said) == len(CALLS)
    for line, sentence in zip(said, CALLS.values(), strict=True):
        assert line.startswith(sentence)
