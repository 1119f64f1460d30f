"""What `test_fuzz` mutates: one sound file of every kind that is read, and what reads it.

A kind has the name that its file has in the folder, its content, and its reader, which is handed the file's path. Where
a checksum or a length would refuse every mutated file at once, the content is what is within, and `wrap` makes a file.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from bad_domains import random_pixels
from nearfar.audit.calibration import load_calibration
from nearfar.data.annotations import read_annotations
from nearfar.data.boxes import read_boxes
from nearfar.data.judge import trained_judge
from nearfar.data.parquet import unpack_data_set
from nearfar.data.shards import unpack_shard
from nearfar.diffusion.noise import SecretKey
from nearfar.domain.file import load_domain, load_thumbnails, save_domain
from nearfar.errors import UsageError
from nearfar.io.arrays import SCIENCE_SUFFIXES, array_file, read_array
from nearfar.io.manifest import read_manifest
from nearfar.io.pictures import encode, encode_pages, read_pages, read_picture
from nearfar.io.values import ValueTransform
from nearfar.metrics.faces import read_header
from nearfar.metrics.features import processor_size, read_processor
from nearfar.models.loading import load_model
from nearfar.models.lookup import open_folder
from nearfar.models.original.checkpoints import convert
from nearfar.models.original.network import save_converted
from nearfar.structured import csv_rows, json_object, read_text, safetensors_header, yaml_object
from oracle_domains import fitted
from tiny_models import FAMILIES, keras


@dataclass(frozen=True)
class Kind:
    name: str
    content: bytes
    read: Callable[[Path], Any]
    wrap: Callable[[bytes], bytes] = bytes
    others: Path | None = None  # a folder that the file lies in


def encoded(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(random_pixels(1))).save(buffer, form, **options)
    return buffer.getvalue()


def deep() -> Image.Image:
    return Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)


def exif() -> bytes:
    """A description, a turn and a position."""
    tags = Image.Exif()
    tags.update({0x0112: 6, 0x010E: "a photograph", 0x0132: "2026:01:02 03:04:05"})
    tags.get_ifd(0x8825)[1] = "N"
    return tags.tobytes()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, their checksums right whatever they hold."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in (*chunks, (b"IEND", b"")))


HEAD = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
LINES = b"".join(b"\0" + bytes(range(24)) for _ in range(8))
PIXELS = zlib.compress(LINES)


def png_with(name: bytes) -> Callable[[bytes], bytes]:
    """A PNG with a chunk of this name between its head and its pixels."""
    return lambda content: png_of((b"IHDR", HEAD), (name, content), (b"IDAT", PIXELS))


PARTS = {
    "head": (HEAD, lambda content: png_of((b"IHDR", content), (b"IDAT", PIXELS))),
    "pixels": (LINES, lambda content: png_of((b"IHDR", HEAD), (b"IDAT", zlib.compress(content)))),
    "exif": (exif()[6:], png_with(b"eXIf")),
    "text": (b"XML:com.adobe.xmp\0\0\0\0\0<x>", png_with(b"iTXt")),
    "profile": (b"x\0\0" + zlib.compress(bytes(128)), png_with(b"iCCP")),
}
"""Parts of a PNG, and the PNG with such a part."""


def array_bytes(suffix: str, dtype: str = "float32") -> bytes:
    return array_file(Path(f"a{suffix}"), np.arange(20.0).reshape(1, 4, 5), dtype)


def tar_bytes(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in {"a.png": encoded("PNG"), "a.json": b'{"label": "cat"}', "b.png": encoded("PNG")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def onnx_bytes() -> bytes:
    def part(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    axes = b"".join(part(1, b"\x08" + bytes([length])) for length in (1, 3, 112, 112))
    return part(7, part(1, part(4, b"Conv")) + part(11, part(1, b"data") + part(2, part(1, part(2, axes)))))


def with_length(content: bytes, data: bytes) -> bytes:
    """A safetensors file of a header, its length told right whatever it holds."""
    return struct.pack("<Q", len(content)) + content + data


def header_kind(name: str, content: bytes, read: Callable[[Path], Any], others: Path | None = None) -> Kind:
    """The header alone of a safetensors file is mutated."""
    (length,) = struct.unpack("<Q", content[:8])
    return Kind(name, content[8 : 8 + length], read, partial(with_length, data=content[8 + length :]), others)


@cache
def scratch() -> Path:
    """A folder for sound files, which lives as long as the process."""
    held = TemporaryDirectory()
    scratch.held = held  # type: ignore[attr-defined]
    return Path(held.name)


def domain_bytes() -> bytes:
    path = scratch() / "a.domain"
    save_domain(fitted(steps=2), path, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    return path.read_bytes()


def read_domain(path: Path) -> None:
    load_domain(path)
    load_thumbnails(path)


def rows() -> Any:
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    images = [Image.fromarray(random_pixels(number)) for number in range(3)]
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1]}, datasets.Features(features))


def data_set_kinds() -> dict[str, Kind]:
    """A Parquet file, what the library says of it within, and every file of a saved folder."""
    import datasets
    from pyarrow import parquet

    datasets.disable_progress_bars()
    folder, whole = scratch() / "saved", scratch() / "a.parquet"
    rows().save_to_disk(folder)
    rows().to_parquet(whole)
    table = parquet.read_table(whole)

    def with_words(content: bytes) -> bytes:
        buffer = io.BytesIO()
        parquet.write_table(table.replace_schema_metadata({b"huggingface": content}), buffer)
        return buffer.getvalue()

    words = table.schema.metadata[b"huggingface"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        "parquet": Kind("a.parquet", whole.read_bytes(), unpacked_rows),
        "parquet words": Kind("a.parquet", words, unpacked_rows, with_words),
        **{f"saved {name}": Kind(name, content, unpacked_saved, others=folder) for name, content in files.items()},
    }


def unpacked_rows(path: Path) -> None:
    unpack_data_set(path, path.parent / "s.out")


def unpacked_saved(path: Path) -> None:
    unpack_data_set(path.parent, path.parent / "s.out")


MODEL_FILES = {
    "ddpm": ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"),
    "ddpm_flat": ("config.json", "model_index.json"),
    "ddpm_pickled": ("unet/diffusion_pytorch_model.bin",),
    "ldm_kl": ("vae/config.json", "unet/config.json"),
    "stable_diffusion": ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"),
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def model_kinds() -> dict[str, Kind]:
    """Files of model folders, whole weights and their headers, and original checkpoints."""
    kinds = {}
    for family, names in MODEL_FILES.items():
        folder = FAMILIES[family].at(scratch(), family)
        for name in names:
            read = partial(loaded, depth=name.count("/"), **FAMILIES[family].options)
            kinds[f"{family} {name}"] = Kind(name, (folder / name).read_bytes(), read, others=folder)
    folder, read = scratch() / "ddpm", partial(loaded, depth=1)
    kinds["weights"] = Kind(WEIGHTS, (folder / WEIGHTS).read_bytes(), read, others=folder)
    kinds["weights' header"] = header_kind(WEIGHTS, (folder / WEIGHTS).read_bytes(), read, folder)
    places = dict.fromkeys(safetensors_header(folder / WEIGHTS), "diffusion_pytorch_model.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": {name: at for name, at in places.items() if name[0] != "_"}})
    kinds["weights' index"] = Kind(f"{WEIGHTS}.index.json", index.encode(), read, others=folder)
    checkpoint = FAMILIES["ddpm_checkpoint"].at(scratch(), "x")
    kinds["checkpoint"] = Kind("x.ckpt", checkpoint.read_bytes(), load_model)
    kinds["equinox"] = Kind("x.eqx", FAMILIES["equinox"].at(scratch(), "x").read_bytes(), load_model)
    folder = scratch() / "mixer"
    save_converted(convert(scratch() / "x.eqx"), folder)
    kinds["mixer's config"] = Kind(
        "unet/config.json", (folder / "unet/config.json").read_bytes(), partial(loaded, depth=1), others=folder
    )
    keras(scratch() / "tensorflow")
    index = (scratch() / "tensorflow/model.json").read_bytes()
    kinds["tensorflow.js"] = Kind("model.json", index, converted, others=scratch() / "tensorflow")
    return kinds


def converted(path: Path) -> None:
    convert(path.parent)


def loaded(path: Path, depth: int, **options: Any) -> None:
    load_model(path.parents[depth], "cpu", **options)


def classifier_kinds() -> dict[str, Kind]:
    from transformers import ViTConfig, ViTForImageClassification

    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    folder = scratch() / "classifier"
    network = ViTForImageClassification(ViTConfig(**options, image_size=4, patch_size=2, id2label={0: "a", 1: "b"}))
    network.save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 4, "width": 4}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    kinds = {f"classifier {name}": Kind(name, content, judge_of, others=folder) for name, content in files.items()}
    weights = files["model.safetensors"]
    return kinds | {"classifier's header": header_kind("model.safetensors", weights, judge_of, folder)}


def judge_of(path: Path) -> None:
    trained_judge(path.parent, ["x.png"], {"x.png": ("a",)})


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
INDEX = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
RECORD = {"image": {"name": "a", "status": "done", "batch_size": 2, "figures": {"psnr": 3.5}}}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 16, "width": 16}}
TIFFS = ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
TRANSFORM = {"curve": "asinh", "low": [0.0], "high": [12.5], "softening": [0.1]}


def annotations(path: Path) -> None:
    """The file at its place in a folder with one image."""
    folder = path.parent.parent if path.parent.name == "labels" else path.parent
    read = read_annotations(folder, ["images/a.png"])
    assert isinstance(read.labels, dict)
    with suppress(UsageError):  # many kinds hold no boxes at all
        read_boxes(folder, ["images/a.png"], None)


def folder_of(path: Path) -> None:
    found = open_folder(path.parent)
    assert isinstance(found.family, str)
    with suppress(UsageError):  # no other file is there
        found.part("unet")


def values(path: Path) -> None:
    ValueTransform.from_json(read_text(path))


def processor(path: Path) -> None:
    processor_size(read_processor(path.parent), None)


def palette() -> Image.Image:
    return Image.fromarray(random_pixels(2)).quantize(7)


def picture(path: Path) -> None:
    """Read, and written again with its metadata."""
    encode(read_picture(path), keep_metadata=True)


SAMPLES = [Path(__file__).parents[1] / "samples" / name for name in ("color.avif", "alpha.heic", "color.heic")]


def sample_dicom(name: str) -> bytes:
    """A file that pydicom brings."""
    import pydicom.data

    return Path(str(pydicom.data.get_testdata_file(name, download=False))).read_bytes()


def dicom(path: Path) -> None:
    """All pages, written again with the header or metadata."""
    encode_pages(read_pages(path), keep_metadata=True)


def key(path: Path) -> None:
    path.chmod(0o600)
    SecretKey.load(path)


def shard(path: Path) -> None:
    unpack_shard(path, path.with_suffix(".out"))


def small_kinds() -> dict[str, Kind]:
    """Everything that needs no network."""
    domain = domain_bytes()
    (length,) = struct.unpack("<Q", domain[:8])
    words = json.loads(domain[8 : 8 + length])["__metadata__"]["nearfar domain"]

    def with_words(content: bytes) -> bytes:
        header = json.loads(domain[8 : 8 + length])
        header["__metadata__"]["nearfar domain"] = content.decode("utf-8", "replace")
        return with_length(json.dumps(header).encode(), domain[8 + length :])

    return {
        "calibration": Kind("c.json", json.dumps(CALIBRATION).encode(), load_calibration),
        "manifest": Kind("m.jsonl", b'{"run": {}}\n' + json.dumps(RECORD).encode() + b"\n", read_manifest),
        "key": Kind("key", b"a7" * 32, key),
        "coco": Kind("a.json", json.dumps(COCO).encode(), annotations),
        "metadata": Kind("metadata.jsonl", b'{"file_name": "images/a.png", "label": "cat"}\n', annotations),
        "csv": Kind("metadata.csv", b"file_name,label\nimages/a.png,cat\n", annotations),
        "yolo lines": Kind("labels/a.txt", b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2\n", annotations),
        "yolo names": Kind("data.yaml", b"train: images\nkpt_shape: [5, 3]\nnames:\n  0: cat\n  1: dog\n", annotations),
        "values": Kind("v.json", json.dumps(TRANSFORM).encode(), values),
        "index": Kind("model_index.json", json.dumps(INDEX).encode(), folder_of),
        "processor": Kind("preprocessor_config.json", json.dumps(PROCESSOR).encode(), processor),
        "tar": Kind("s.tar", tar_bytes("w"), shard),
        "packed tar": Kind("s.tar", tar_bytes("w:xz"), shard),
        "onnx": Kind("n.onnx", onnx_bytes(), read_header),
        **{f"array {suffix}": Kind(f"a{suffix}", array_bytes(suffix), read_array) for suffix in SCIENCE_SUFFIXES[:4]},
        **{f"picture {form}": Kind(f"a.{form}", encoded(form), picture) for form in ("png", "tiff", "webp", "bmp")},
        "picture jpg": Kind("a.jpg", encoded("JPEG", exif=exif(), dpi=(300, 300)), picture),
        "progressive": Kind("a.jpg", encoded("JPEG", progressive=True), picture),
        "deep png": Kind("a.png", encoded("PNG", deep()), picture),
        "palette": Kind("a.png", encoded("PNG", palette(), transparency=0), picture),
        **{f"tiff {way}": Kind("a.tif", encoded("TIFF", compression=way), picture) for way in TIFFS},
        "deep tiff": Kind("a.tif", encoded("TIFF", deep()), picture),
        **{f"sample {file.name}": Kind(file.name, file.read_bytes(), picture) for file in SAMPLES},
        "dicom": Kind("a.dcm", sample_dicom("MR_small.dcm"), dicom),
        "packed dicom": Kind("a.dcm", sample_dicom("SC_rgb_rle_2frame.dcm"), dicom),
        "dicom jpeg": Kind("a.dcm", sample_dicom("SC_rgb_small_odd_jpeg.dcm"), dicom),
        "pages": Kind("a.tif", encoded("TIFF", save_all=True, append_images=[deep(), palette()]), dicom),
        "lossless webp": Kind("a.webp", encoded("WEBP", lossless=True, exif=exif()), picture),
        **{f"png {name}": Kind("a.png", content, picture, wrap) for name, (content, wrap) in PARTS.items()},
        "json": Kind("x", json.dumps(COCO).encode(), lambda path: json_object(read_text(path), "x")),
        "yaml": Kind("x", b"a: [1, {b: c}]\nd: 'e'\n", lambda path: yaml_object(read_text(path), "x")),
        "rows": Kind("x", b'a,b\n1,"2"\n', lambda path: list(csv_rows(read_text(path), "x"))),
        "domain": Kind("a.domain", domain, read_domain),
        "domain's header": header_kind("a.domain", domain, read_domain),
        "domain's words": Kind("a.domain", words.encode(), read_domain, with_words),
    }  # fmt: skip


GROUPS = (small_kinds, data_set_kinds, model_kinds, classifier_kinds)


@cache
def kinds(group: int) -> dict[str, Kind]:
    """A group of kinds, made when it is asked for."""
    torch.manual_seed(0)
    return GROUPS[group]()
