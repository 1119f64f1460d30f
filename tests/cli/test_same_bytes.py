"""Same key and batch size: same bytes, whatever else is in the run. Other keys: other images. No secrets are left."""

import base64
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from folders import contents
from nearfar.diffusion.noise import SecretKey
from nearfar.io.fitting import fit
from nearfar.io.manifest import manifest_path
from nearfar.io.pictures import read_picture
from nearfar.jobs.anonymize import anonymize_folder

SHAPES = [(16, 16), (24, 16), (11, 19)]


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text("a7" * 32)
    return tmp_path / "key"


@pytest.fixture
def source(tmp_path, write_pictures):
    """Thirty images of three shapes."""
    for number, shape in enumerate(SHAPES):
        write_pictures(tmp_path / "in", 10, shape, first=10 * number)
    return tmp_path / "in"


@pytest.fixture
def outputs(tmp_path, anonymize, key_file):
    """Content of every original -> content of its result, from a run with these options."""

    def run(source, *options):
        out = tmp_path / f"out of {source.name}, {options}".replace("/", "")
        result = anonymize(source, out, "--steps", 5, "--key-file", key_file, *options)
        assert result.exit_code == 0, result.stderr
        before, after = contents(source), contents(out)
        assert before.keys() == after.keys()
        return {before[name]: after[name] for name in before}

    return run


def pixels(content, folder):
    path = folder / "x.png"
    path.write_bytes(content)
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_an_image_comes_out_the_same_whatever_its_name_order_and_company(tmp_path, source, outputs, write_pictures):
    alone = outputs(source, "--batch-size", 8)
    mixed = tmp_path / "mixed"
    write_pictures(mixed, 13, first=100)
    for number, (name, content) in enumerate(sorted(contents(source).items(), reverse=True)):
        renamed = mixed / f"{number % 3}" / f"{number:02} was {Path(name).name}"
        renamed.parent.mkdir(exist_ok=True)
        renamed.write_bytes(content)
    assert alone.items() <= outputs(mixed, "--batch-size", 8).items()


def test_an_image_comes_out_the_same_in_any_place_when_cores_are_shared(tmp_path, source, model):
    """The process computes with two threads, which at different places of a batch add in different orders."""
    key, threads = SecretKey.from_seed(8), torch.get_num_threads()
    pictures = sorted(path for path in source.rglob("*") if path.suffix == ".png")
    outputs = []
    for number, order in enumerate((pictures, pictures[::-1])):
        for place, path in enumerate(order):
            target = tmp_path / f"in{number}" / f"{place:03}.png"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
        torch.set_num_threads(2)
        try:
            outcome = anonymize_folder(
                model, tmp_path / f"in{number}", tmp_path / f"out{number}", strength=0.5, key=key, batch_size=8
            )
        finally:
            torch.set_num_threads(threads)
        assert (outcome.done, outcome.failed) == (len(pictures), [])
        outputs.append([path.read_bytes() for path in sorted((tmp_path / f"out{number}").iterdir())])
    assert outputs[0] == outputs[1][::-1]


def test_an_image_comes_out_the_same_when_it_is_the_only_one(tmp_path, source, outputs):
    alone = outputs(source, "--batch-size", 8)
    name, content = next(iter(contents(source).items()))
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / Path(name).name).write_bytes(content)
    assert outputs(tmp_path / "single", "--batch-size", 8) == {content: alone[content]}


def test_across_batch_sizes_one_gray_level_at_most(tmp_path, source, outputs, figures):
    """In float32 a pixel moves by some 1e-3 of a gray level, which crosses a rounding border in some 1e-3 of them."""
    reference = outputs(source, "--batch-size", 32)
    for batch_size in (1, 3, 8):
        others = outputs(source, "--batch-size", batch_size)
        change = np.concatenate(
            [abs(pixels(others[key], tmp_path) - pixels(reference[key], tmp_path)).ravel() for key in reference]
        )
        figures[f"batches of {batch_size} against 32"] = (
            f"{(change > 0).mean():.1e} of {change.size} values differ, by {change.max()} gray level at most"
        )
        assert change.max() <= 1
        assert (change > 0).mean() < 2e-3


def test_different_keys_different_outputs(source, outputs, key_file):
    first = outputs(source)
    key_file.write_text("b8" * 32)
    second = outputs(source, "--batch-size", 32)  # the default, spelled out for a folder of its own
    assert all(first[original] != second[original] for original in first)


def test_without_a_key_file_every_run_differs(tmp_path, source, anonymize):
    for out in ("a", "b"):
        assert anonymize(source, tmp_path / out).exit_code == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(first[name] != second[name] for name in first)


# Secrets


def spellings(secret):
    """What a careless program might write of some bytes."""
    big, little = (str(int.from_bytes(secret, order)).encode() for order in ("big", "little"))
    return {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret).rstrip(b"="),
        big,
        little,
    }


def secrets_of(key, source, size, time):
    """Bytes from which noise could be rebuilt, or a suspected original be confirmed."""
    yield key.secret
    for path in source.rglob("*.png"):
        yield from (hashlib.new(name, path.read_bytes()).digest() for name in ("sha256", "sha1", "md5"))
        with Image.open(path) as image:
            yield hashlib.sha256(image.tobytes()).digest()
        image = fit(read_picture(path), size, 3)
        yield key.for_image(image, time)
        yield hashlib.sha256(image.numpy().tobytes()).digest()
        yield hashlib.sha256(((image + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()).digest()


@pytest.mark.parametrize("with_file", [True, False])
def test_nothing_is_left_from_which_noise_could_be_rebuilt(
    tmp_path, source, anonymize, model, key_file, with_file, monkeypatch
):
    monkeypatch.setattr("secrets.token_bytes", lambda count: b"\xa7" * count)  # the key that would be thrown away
    key = SecretKey.load(key_file)
    out = tmp_path / "out"
    result = anonymize(source, out, "--strength", 0.5, "--json", *(["--key-file", key_file] if with_file else []))
    assert result.exit_code == 0
    left = [manifest_path(out).read_bytes(), result.stdout.encode(), result.stderr.encode(), *contents(out).values()]
    left += [os.fsencode(path) for path in (tmp_path / "out").rglob("*")]
    everything = b"\n".join(left)
    for secret in secrets_of(key, source, model.image.size, 499.0):
        assert not [spelling for spelling in spellings(secret) if spelling in everything]
    # The search would find them: the results' hashes are there to be found.
    target = next(iter(contents(out).values()))
    assert hashlib.sha256(target).hexdigest().encode() in spellings(hashlib.sha256(target).digest())
    assert [spelling for spelling in spellings(hashlib.sha256(target).digest()) if spelling in everything]


def test_the_secrets_searched_for_are_the_ones_in_use(tmp_path, source, anonymize, model, key_file, monkeypatch):
    from nearfar.sampling import local_sampling

    used = []
    stream = local_sampling.NoiseStream
    monkeypatch.setattr(local_sampling, "NoiseStream", lambda keys, *rest: used.extend(keys) or stream(keys, *rest))
    assert (
        anonymize(source, tmp_path / "out", "--strength", 0.5, "--key-file", key_file, "--batch-size", 30).exit_code
        == 0
    )
    assert set(used) <= set(secrets_of(SecretKey.load(key_file), source, model.image.size, 499.0))
    assert len(set(used)) == 30


def test_the_record_of_a_source_cannot_be_checked_without_the_key(tmp_path, source, anonymize, key_file):
    """The same originals leave other records under another key, so a record confirms nothing to others."""
    import json

    def tags(out):
        lines = manifest_path(out).read_text("utf-8").splitlines()[1:]
        return {json.loads(line)["image"]["source_tag"] for line in lines}

    assert anonymize(source, tmp_path / "a", "--key-file", key_file).exit_code == 0
    key_file.write_text("b8" * 32)
    assert anonymize(source, tmp_path / "b", "--key-file", key_file).exit_code == 0
    assert len(tags(tmp_path / "a")) == 30
    assert not tags(tmp_path / "a") & tags(tmp_path / "b")
