"""Mutated files for every reader: a `NearfarError` or an answer, within the bounds of `nearfar/structured.py`.

make fuzz                 10 minutes, the seed printed; FUZZ_SECONDS and FUZZ_SEED change that
make test                 a few inputs for each reader, always the same
"""

import io
import json
import os
import random
import re
import resource
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from bad_domains import random_pixels
from nearfar.audit.calibration import load_calibration
from nearfar.data.annotations import read_annotations
from nearfar.data.boxes import read_boxes
from nearfar.data.shards import unpack_shard
from nearfar.errors import NearfarError
from nearfar.io.arrays import read_array
from nearfar.io.manifest import read_manifest
from nearfar.io.pictures import read_picture
from nearfar.io.values import ValueTransform
from nearfar.metrics.faces import read_header
from nearfar.metrics.features import processor_size, read_processor
from nearfar.models.folder import open_folder
from nearfar.structured import csv_rows, json_object, read_text, safetensors_header, yaml_object

SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", 0)), int(os.environ.get("FUZZ_SEED", 0))
FEW, MOST_TIME, MOST_MEMORY = 40, 5.0, 1 << 20  # inputs for each reader in `make test`; seconds, kilobytes
COUNTS = {"inputs": 0, "refused": 0}

POISON = (
    *("NaN", "Infinity", "-1e999", "9" * 400, "null", "true", "[]", "{}", '""', '"x"', "-1", "1.5", "1e30"),
    *('"\\ud800"', '"a\\u0000b"', '"../../x"', '"/etc/passwd"', "[" * 100 + "]" * 100, '{"a":1,"a":2}', "&a [*a]"),
)


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(1)).save(buffer, form, **options)
    return buffer.getvalue()


def array_bytes():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 5), np.float32))
    return buffer.getvalue()


def tar_bytes(mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in {"a.png": encoded("PNG"), "a.json": b'{"label": "cat"}', "b.png": encoded("PNG")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def onnx_bytes():
    def part(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    axes = b"".join(part(1, b"\x08" + bytes([length])) for length in (1, 3, 112, 112))
    return part(7, part(1, part(4, b"Conv")) + part(11, part(1, b"data") + part(2, part(1, part(2, axes)))))


POINT = {"strength": 0.2, "value": 0.1, "low": 0.0, "high": 0.3}
CALIBRATION = {
    "format": 2,
    "method": {"model": "m"},
    "measuring": {},
    "images": 20,
    "confidence": 0.95,
    "targets": ["similarity=0.4"],
    "found": {"curves": {"similarity": [POINT]}, "limits": {"similarity at most 0.4": 0.2}, "strength": 0.2},
}
COCO = {
    "images": [{"id": 1, "file_name": "images/a.png", "width": 16, "height": 16}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 4.5], "area": 3}],
    "categories": [{"id": 1, "name": "cat"}],
}
RECORD = {"image": {"name": "a", "status": "done", "batch_size": 2, "figures": {"psnr": 3.5}}}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 16, "width": 16}}
TRANSFORM = {"curve": "asinh", "low": [0.0], "high": [12.5], "softening": [0.1]}


def annotations(path):
    """The file at its place in a folder with one image."""
    folder = path.parent
    read = read_annotations(folder, ["images/a.png"])
    assert isinstance(read.labels, dict)
    read_boxes(folder, ["images/a.png"], None)


def folder_of(path):
    found = open_folder(path.parent)
    assert isinstance(found.family, str)
    found.part("unet")


def network_header(path):
    read_header(path)


READERS = {
    "calibration": ("c.json", json.dumps(CALIBRATION).encode(), load_calibration),
    "manifest": ("m.jsonl", b'{"run": {}}\n' + json.dumps(RECORD).encode() + b"\n", read_manifest),
    "coco": ("a.json", json.dumps(COCO).encode(), annotations),
    "metadata": ("metadata.jsonl", b'{"file_name": "images/a.png", "label": "cat"}\n', annotations),
    "csv": ("metadata.csv", b"file_name,label\nimages/a.png,cat\n", annotations),
    "yolo lines": ("labels/a.txt", b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2\n", annotations),
    "yolo names": ("data.yaml", b"train: images\nkpt_shape: [5, 3]\nnames:\n  0: cat\n  1: dog\n", annotations),
    "values": ("v.json", json.dumps(TRANSFORM).encode(), lambda path: ValueTransform.from_json(read_text(path))),
    "index": ("model_index.json", b'{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}', folder_of),
    "processor": (
        "preprocessor_config.json",
        json.dumps(PROCESSOR).encode(),
        lambda path: processor_size(read_processor(path.parent), None),
    ),
    "tar": ("s.tar", tar_bytes("w"), lambda path: unpack_shard(path, path.with_suffix(".out"))),
    "packed tar": ("s.tar", tar_bytes("w:xz"), lambda path: unpack_shard(path, path.with_suffix(".out"))),
    "onnx": ("n.onnx", onnx_bytes(), network_header),
    "npy": ("a.npy", array_bytes(), read_array),
    **{f"picture {form}": (f"a.{form}", encoded(form), read_picture) for form in ("png", "tiff", "webp", "bmp")},
    "json": ("x", json.dumps(COCO).encode(), lambda path: json_object(read_text(path), "x")),
    "yaml": ("x", b"a: [1, {b: c}]\nd: 'e'\n", lambda path: yaml_object(read_text(path), "x")),
    "rows": ("x", b'a,b\n1,"2"\n', lambda path: list(csv_rows(read_text(path), "x"))),
    "header": ("x", (30).to_bytes(8, "little") + b'{"__metadata__":{"a":"b"}}    ', safetensors_header),
}


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes flipped, cut out, doubled, or a value exchanged for a poisonous one."""
    for _ in range(chance.randint(1, 4)):
        place, end = sorted(chance.randint(0, len(content)) for _ in range(2))
        kind = chance.randrange(5)
        if kind == 0 and content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place] + content[end:]
        elif kind == 2:
            content = content[:place] + content[place:end] * 2 + content[end:]
        else:
            content = exchanged(content, chance)
    return content


def exchanged(content: bytes, chance: random.Random) -> bytes:
    """One number or text of it, if it has any, is another thing."""
    words = list(re_values(content))
    if not words:
        return content
    start, end = chance.choice(words)
    return content[:start] + chance.choice(POISON).encode() + content[end:]


def re_values(content: bytes):
    return (found.span() for found in re.finditer(rb'"[^"\n]*"|-?\d+(\.\d+)?|\w+', content))


def report(line):
    sys.stdout.write(line + "\n")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "s.out").mkdir()
    Image.fromarray(random_pixels(1)).save(tmp_path / "images" / "a.png")
    return tmp_path


def answer(folder: Path, kind: str, number: int) -> None:
    """One mutated file through its reader; whatever is no NearfarError fails the test, as do time and memory."""
    name, content, read = READERS[kind]
    (folder / name).write_bytes(mutated(content, random.Random(number)))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    COUNTS["inputs"] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder / name)
    except NearfarError as refusal:
        COUNTS["refused"] += 1
        said = str(refusal)
    else:
        said = ""
    assert "\n" not in said
    assert time.process_time() - began < MOST_TIME
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_answers_or_refuses(folder, kind):
    checks = settings(
        max_examples=FEW, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )

    @seed(SEED)
    @checks
    @given(number=st.integers(0, 2**63))
    def run(number):
        answer(folder, kind, number)

    run()
    end = time.monotonic() + SECONDS / len(READERS)
    numbers = random.Random(SEED)
    while time.monotonic() < end:
        number = numbers.getrandbits(63)
        try:
            answer(folder, kind, number)
        except BaseException as error:
            error.add_note(f"reader {kind!r}, number {number}, seed {SEED}")
            raise
    report(f"seed {SEED}: {kind}, so far {COUNTS['inputs']} inputs, {COUNTS['refused']} refused")
