"""Copies where a network is trained: every kind of image, the cache, worker processes."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from cli.folders import contents
from nearfar.data.near_dataset import NearDataset, NearTransform, store
from nearfar.errors import UsageError


class Pictures:
    """Four pictures with their numbers, as arrays."""

    def __init__(self, smooth, size=(16, 16)):
        self.arrays = [np.array(smooth(number, size)) for number in range(4)]

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return torch.from_numpy(self.arrays[index]).movedim(-1, 0).float() / 255, index, "more"


@pytest.fixture
def base(smooth):
    return Pictures(smooth)


@pytest.fixture
def calls(model, monkeypatch):
    """How many images each call of the sampler was given."""
    from nearfar.data import near_dataset

    found, real = [], near_dataset.sample_near
    monkeypatch.setattr(
        near_dataset,
        "sample_near",
        lambda model, images, *given: found.append(len(images)) or real(model, images, *given),
    )
    return found


def test_copies_carry_labels_and_are_made_once(model, base, tmp_path, calls):
    copies = NearDataset(base, model, cache=tmp_path, copies=2, strength=(0.2, 0.4), steps=2)
    assert (copies.fill(batch_size=3), copies.fill()) == (8, 0)
    assert calls == [3, 3, 2]
    assert [item[1:] for item in copies] == [(number % 4, "more") for number in range(8)]
    images = torch.stack([item[0] for item in copies])
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 8
    assert len(calls) == 3


def test_a_missing_copy_is_made_when_it_is_asked_for_and_is_the_same(model, base, tmp_path):
    filled = NearDataset(base, model, cache=tmp_path / "a", steps=2, seed=5)
    filled.fill()
    lazy = NearDataset(base, model, cache=tmp_path / "b", steps=2, seed=5)
    assert (filled[2][0] - lazy[2][0]).abs().max() < 1.01 / 255
    assert len(list((tmp_path / "b").rglob("*.png"))) == 1
    other = NearDataset(base, model, cache=tmp_path / "a", steps=2, seed=6)
    assert not torch.equal(other[2][0], filled[2][0])


@pytest.mark.process
def test_it_goes_with_its_base_through_worker_processes(model, base, tmp_path):
    copies = NearDataset(base, model, cache=tmp_path, steps=2)
    copies.fill()
    both = DataLoader(ConcatDataset([base, copies]), batch_size=4, num_workers=1)
    images, numbers = zip(*((image, number) for image, number, _ in both), strict=True)
    assert torch.cat(numbers).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert 0.01 < (images[0] - images[1]).square().mean().sqrt() < 0.5


def test_a_pickled_one_reads_but_cannot_make(model, base, tmp_path):
    copies = NearDataset(base, model, cache=tmp_path, copies=2, steps=2)
    first = copies[0][0]
    moved = pickle.loads(pickle.dumps(copies.cache))
    assert torch.equal(moved.near(base[0][0], 1), first)
    with pytest.raises(UsageError, match=r"a worker process cannot make it: call fill\(\) first"):
        moved.near(base[0][0], 2)


def test_threads_that_make_the_same_copy_do_not_disturb_each_other(tmp_path, monkeypatch):
    both, write = Barrier(2), Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda *given: (write(*given), both.wait(10)))
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(store, [tmp_path / "a" / "copy.png"] * 2, [b"same", b"same"]))
    assert contents(tmp_path) == {"a/copy.png": b"same"}


def test_dictionaries_keep_their_other_fields(model, smooth, tmp_path):
    copies = NearDataset([{"image": smooth(0), "label": 3}], model, cache=tmp_path, steps=2)
    assert (copies[0]["label"], copies[0]["image"].size) == (3, (16, 16))


KINDS = {
    "color picture": lambda array: Image.fromarray(array),
    "gray picture": lambda array: Image.fromarray(array).convert("L"),
    "bytes": lambda array: array,
    "gray bytes": lambda array: array[..., 0],
    "floats": lambda array: array.astype(np.float64) / 255,
    "tensor of bytes": lambda array: torch.from_numpy(array).movedim(-1, 0),
    "gray tensor": lambda array: torch.from_numpy(array).movedim(-1, 0)[:1].float() / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_of_its_originals_kind_and_shape(model, smooth, tmp_path, kind):
    image = KINDS[kind](np.array(smooth(1, (20, 12))))
    copy = NearTransform(model, cache=tmp_path, p=1.0, steps=2)(image)
    assert type(copy) is type(image)
    before, after = (np.asarray(each, float) for each in (image, copy))
    assert before.shape == after.shape
    assert getattr(image, "dtype", getattr(image, "mode", None)) == getattr(copy, "dtype", getattr(copy, "mode", None))
    top = max(1.0, 255.0 * (before.max() > 1))
    assert 0.001 < np.sqrt(np.square(before - after).mean()) / top < 0.5


def test_the_transform_draws_from_torchs_random_state(model, smooth, tmp_path):
    image = smooth(0)
    near = NearTransform(model, cache=tmp_path, p=0.5, copies=3, steps=2)
    assert near.fill([image]) == 3
    torch.manual_seed(0)
    drawn = [near(image).tobytes() for _ in range(60)]
    torch.manual_seed(0)
    assert drawn == [near(image).tobytes() for _ in range(60)]
    assert len(set(drawn)) == 4
    assert 18 <= drawn.count(image.tobytes()) <= 42  # 60 draws at 1/2: 3 standard deviations
    assert near(image=image, mask=7).keys() == {"image", "mask"}
    assert NearTransform(model, cache=tmp_path, p=0.0)(image) is image


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.full((3, 4, 4), 2.0), r"floats in \[0, 1\], got float32 in \[2, 2\]: augment before normalizing"),
        (np.zeros((4, 4, 2), np.uint8), r"1 or 3 channels and two sides, got shape \(4, 4, 2\)"),
        (np.zeros((4, 4), np.int32), "must be uint8"),
        *((Image.new(mode, (4, 4)), f"got {mode}: bring it to L or RGB first") for mode in ("I;16", "I", "F", "RGBA")),
    ],
)
def test_what_is_no_image_is_refused(model, tmp_path, image, sentence):
    with pytest.raises(UsageError, match=sentence):
        NearTransform(model, cache=tmp_path, p=1.0)(image)


def test_options_that_cannot_be_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match="strength must be above 0 to 1"):
        NearTransform(model, cache=tmp_path, strength=0.0)
    with pytest.raises(UsageError, match=r"p must be in \[0, 1\]"):
        NearTransform(model, cache=tmp_path, p=2.0)
    with pytest.raises(UsageError, match="copies must be at least 1"):
        NearDataset([], model, cache=tmp_path, copies=0)


def test_the_code_of_the_page_runs(model, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "augment.md").read_text("utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    names = {"model": model, "base": [base[number][:2] for number in range(2)]}
    exec(code, names)
    assert (len(names["larger"]), names["changed"].shape) == (8, (3, 16, 16))
