"""Keys and streams: who may read them, what they depend on, and that the numbers are standard normal."""

import gc
import os
import stat
import threading
import time

import numpy as np
import pytest
import torch

from nearfar.diffusion import noise as noise_module
from nearfar.diffusion.noise import AHEAD, DrawnAhead, NoiseStream, SecretKey, noise_for
from nearfar.errors import UsageError

SECRET = bytes(range(32))
KEY = SecretKey(SECRET)


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    KEY.save(path)
    return path


def test_a_key_comes_back_from_its_file(key_file):
    assert SecretKey.load(key_file) == KEY
    assert key_file.read_text() == SECRET.hex() + "\n"


def test_a_key_file_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        KEY.save(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o666])
def test_a_key_file_that_others_can_reach_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(UsageError) as error:
        SecretKey.load(key_file)
    assert str(error.value) == f"key file {key_file} can be read by others: run chmod 600 {key_file}"


def test_an_existing_key_file_is_never_overwritten(key_file):
    with pytest.raises(FileExistsError):
        SecretKey.random().save(key_file)
    assert SecretKey.load(key_file) == KEY


@pytest.mark.parametrize("content", [b"not a key", b"\xff\xfe\x00", SECRET.hex().encode()[:-1]])
def test_a_file_without_a_key_gets_a_sentence(key_file, content):
    key_file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        SecretKey.load(key_file)
    assert str(error.value) == f"key file {key_file} must hold 64 hexadecimal digits: let nearfar write a new one"


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length):
    with pytest.raises(UsageError) as error:
        SecretKey(bytes(length))
    assert str(error.value) == f"a key has 32 bytes, got {length}: use SecretKey.random()"


def test_printing_a_key_does_not_show_it():
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY])):
        assert text.strip("[]") == "SecretKey()"


def test_random_keys_differ_and_seeded_keys_repeat():
    assert SecretKey.random() != SecretKey.random()
    assert SecretKey.from_seed(7) == SecretKey.from_seed(7)


@pytest.mark.parametrize("bit", [0, 31, 32, 40, 63, 64, 100])
def test_every_bit_of_a_seed_counts(bit):
    # torch's CPU generator drops the bits from 32 on (research/codebases.md 5.3).
    assert SecretKey.from_seed(5) != SecretKey.from_seed(5 ^ (1 << bit))


def test_a_tag_is_a_128_bit_hash_of_key_purpose_and_content():
    tags = {
        KEY.tag("file", b"a"),
        KEY.tag("file", b"b"),
        KEY.tag("name", b"a"),
        KEY.tag("fil", b"ea"),
        KEY.tag("file"),
        SecretKey(SECRET[::-1]).tag("file", b"a"),
    }
    assert len(tags) == 6
    assert all(len(bytes.fromhex(tag)) == 16 for tag in tags)
    assert KEY.tag("file", b"a") == SecretKey(SECRET).tag("file", b"a")


def test_an_image_has_one_key_whatever_its_batch_and_memory_layout(images):
    expected = [KEY.for_image(image, 499.0) for image in images]
    for batch in (images.flip(0).flip(0), images.double(), images.contiguous(memory_format=torch.channels_last)):
        assert [KEY.for_image(image, 499.0) for image in batch] == expected
    assert KEY.for_image(images.flip(0)[0], 499.0) == expected[2]
    assert KEY.for_image(images[1].clone(), 499.0) == expected[1]


def test_images_are_compared_at_eight_bits(images):
    gray = torch.full((1, 2, 2), 100 / 127.5 - 1)
    assert KEY.for_image(gray, 1.0) == KEY.for_image(gray + 0.4 / 127.5, 1.0)
    assert KEY.for_image(gray, 1.0) != KEY.for_image(gray + 0.6 / 127.5, 1.0)


def test_another_image_level_variant_shape_or_key_is_another_stream(images):
    image = images[0]
    changed = image.clone()
    changed[2, 7, 7] += 2 / 127.5
    keys = {
        KEY.for_image(image, 499.0),
        KEY.for_image(images[1], 499.0),
        KEY.for_image(changed, 499.0),
        KEY.for_image(image, 499.5),
        KEY.for_image(image, 499.0, variant=1),
        KEY.for_image(image, 499.0, variant=2),
        KEY.for_image(image.reshape(3, 4, 16), 499.0),
        KEY.for_image(image.reshape(1, 24, 8), 499.0),
        SecretKey(SECRET[::-1]).for_image(image, 499.0),
    }
    assert len(keys) == 9
    assert all(len(key) == 16 for key in keys)


def streams(*numbers):
    return [number.to_bytes(16, "little") for number in numbers]


def drawn(keys, shape=(3, 8, 8), draws=3):
    stream = NoiseStream(keys, shape)
    return torch.stack([stream.draw() for _ in range(draws)], dim=1)  # (key, draw, *shape)


def test_a_row_depends_on_its_key_and_not_on_batch_or_order():
    together = drawn(streams(1, 2, 3, 4))
    assert torch.equal(drawn(streams(3)), together[2:3])
    assert torch.equal(drawn(streams(4, 3, 2, 1)), together.flip(0))
    assert torch.equal(drawn(streams(2, 2)), together[[1, 1]])


def test_a_smaller_image_hears_the_beginning_of_the_same_stream():
    large = drawn(streams(9), (1, 8, 8), draws=1).flatten()
    assert torch.equal(drawn(streams(9), (1, 2, 4), draws=1).flatten(), large[:8])
    assert torch.equal(drawn(streams(9), (1, 4, 4), draws=4).flatten(), large)


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 127])
def test_every_bit_of_a_stream_key_counts(bit):
    assert not torch.equal(drawn(streams(5)), drawn(streams(5 ^ (1 << bit))))


def test_draws_are_float32_of_the_asked_shape():
    noise = NoiseStream(streams(1, 2), (3, 4, 5)).draw()
    assert (noise.dtype, noise.shape, noise.device.type) == (torch.float32, (2, 3, 4, 5), "cpu")


def test_noise_is_standard_normal_and_independent_between_rows_and_draws():
    noise = drawn(streams(10, 11, 12), (4, 128, 128), draws=2).double().flatten(2).flatten(0, 1)  # (6, 65536)
    count = noise.shape[1]
    # Standard errors of the first four moments of a standard normal: 1, sqrt 2, sqrt 15, sqrt 96 over sqrt(count);
    # 24 comparisons, so four of them (once in 16,000 each) and not three.
    for power, moment, error in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert ((noise**power).mean(1) - moment).abs().max() < 4 * error / count**0.5
    correlation = noise @ noise.T / count - torch.eye(6, dtype=torch.float64)
    assert correlation.fill_diagonal_(0).abs().max() < 4 / count**0.5
    assert (noise[:, 1:] * noise[:, :-1]).mean(1).abs().max() < 4 / count**0.5  # neighboring pixels


def generators(*numbers):
    return [np.random.Generator(np.random.Philox(key=number)) for number in numbers]


def noise_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("noise")]


def ended():
    """Whether all noise threads end within seconds."""
    gc.collect()
    deadline = time.monotonic() + 20
    while noise_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not noise_threads()


def test_the_first_bytes_of_a_stream_are_these():
    numbers = NoiseStream(streams(5), (1, 1, 2)).draw().flatten()
    expected = np.random.Generator(np.random.Philox(key=5)).standard_normal(2, dtype=np.float32)
    assert numbers.tolist() == expected.tolist() == pytest.approx([0.3421, 0.9789], abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_numbers_drawn_ahead_are_those_drawn_when_asked(threads):
    expected = drawn(streams(1, 2, 3, 4, 5), draws=6)
    ahead = DrawnAhead(generators(1, 2, 3, 4, 5), (5, 3, 8, 8), 6, threads=threads)
    found = torch.stack([ahead.draw() for _ in range(6)], dim=1)
    assert torch.equal(found, expected)
    assert ahead.draw() is None
    assert ended()


def test_no_more_is_drawn_ahead_than_was_said_and_no_less_is_kept(monkeypatch):
    made = []
    fill = noise_module.fill
    monkeypatch.setattr(noise_module, "fill", lambda of, rows: (made.append(len(rows)), fill(of, rows)))
    ahead = DrawnAhead(generators(1, 2), (2, 3), 5, threads=1)
    first = ahead.draw()
    kept = first.clone()
    assert ahead.draw() is not None
    for part in [part for _, parts in ahead._pending for part in parts]:
        part.result()
    assert len(made) == 2 + AHEAD
    ahead.draw()
    assert torch.equal(first, kept)
    del ahead
    assert ended()


def test_a_stream_goes_on_after_what_was_drawn_ahead():
    stream = NoiseStream(streams(1, 2, 3), (3, 8, 8))
    stream._ahead = DrawnAhead(stream._generators, (3, 3, 8, 8), 2, threads=2)
    assert torch.equal(torch.stack([stream.draw() for _ in range(4)], dim=1), drawn(streams(1, 2, 3), draws=4))


def test_threads_end_with_their_stream_and_with_an_error_that_ends_the_run():
    def run():
        ahead = DrawnAhead(generators(*range(8)), (8, 64, 64), 100, threads=4)
        ahead.draw()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        run()
    del error
    assert ended()
    ahead = DrawnAhead(generators(*range(8)), (8, 64, 64), 100, threads=4)
    ahead.close()
    assert ended()
    assert ahead.draw() is None


def test_an_error_of_a_thread_is_the_caller_s(monkeypatch):
    def fail(of, rows):
        raise MemoryError("no room")

    monkeypatch.setattr(noise_module, "fill", fail)
    with pytest.raises(MemoryError):
        DrawnAhead(generators(1), (1, 2), 2, threads=1).draw()
    assert ended()


def test_a_cpu_has_no_threads_for_noise():
    stream = NoiseStream(streams(1, 2), (3, 8, 8), draws=9)
    stream.draw()
    assert not noise_threads()


def test_keys_of_a_batch_are_those_of_its_images(images):
    start = torch.tensor([10.0, 499.0, 250.25], dtype=torch.float64)
    expected = [KEY.for_image(image, time, 3) for image, time in zip(images, start.tolist(), strict=True)]
    for batch in (images, images.double(), images.contiguous(memory_format=torch.channels_last)):
        assert noise_for(batch, start, KEY, 3) == expected
    assert noise_for(images, start, KEY, [3, 4, 3])[1] == KEY.for_image(images[1], 499.0, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_are_the_cpu_s():
    expected = drawn(streams(*range(16)), (3, 64, 64), draws=12)
    for draws in (0, 5, 12, 100):
        stream = NoiseStream(streams(*range(16)), (3, 64, 64), "cuda", draws)
        found = []
        for _ in range(12):
            found.append(stream.draw())
            torch.cuda._sleep(1_000_000)  # the device is behind
        assert torch.equal(torch.stack(found, dim=1).cpu(), expected)
        del stream
        assert ended()
