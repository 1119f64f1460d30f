"""Small inputs of every kind that `nearfar` reads, written by other libraries."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

KEY = "a7" * 32
PLACES = ("", "plain", "with space/in ner", "ünï-çødé/日本")


def smooth(number: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of random smooth colours; the number is its seed."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fluxes(number: int) -> np.ndarray:
    """Noise about 0 and a few bright sources."""
    random = np.random.default_rng(number)
    values = random.normal(0, 0.1, (16, 16))
    values.flat[random.integers(0, values.size, 5)] += random.lognormal(3, 1, 5)
    return values


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_formats(folder: Path) -> None:
    """One picture of every format, shape and depth; a broken one; a file that is none."""
    save(smooth(1, (24, 16)), folder / "wide.png")
    save(smooth(2, (11, 19)), folder / "tall.webp", lossless=True)
    save(smooth(3, (40, 33)), folder / "large.bmp")
    save(smooth(4), folder / PLACES[3] / "four.tif", compression="tiff_lzw")
    save(smooth(5).convert("L"), folder / "gray.png")
    save(smooth(6).quantize(7), folder / "palette.png", transparency=0)
    save(Image.merge("RGBA", [*smooth(7).split(), smooth(8).convert("L")]), folder / "alpha.png")
    deep = np.random.default_rng(9).integers(0, 65536, (20, 24), dtype=np.uint16)
    save(Image.fromarray(deep), folder / "deep.png")
    save(Image.fromarray(deep), folder / "deep.tif")
    write_photograph(folder / "turned.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture", "utf-8")


def write_photograph(path: Path) -> None:
    """A JPEG that lies on its side, with a description, a position and a resolution."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "a photograph", 0x0132: "2026:01:02 03:04:05"})
    exif.get_ifd(0x8825)[1] = "N"
    save(smooth(10, (24, 18)), path, exif=exif, dpi=(300, 300), quality=95)


def write_flat(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> None:
    """Pictures that lie in a tree of folders with odd names."""
    for number in range(count):
        save(smooth(number, size), folder / PLACES[number % len(PLACES)] / f"{number:03}.png")


def write_groups(folder: Path, groups: list[str], count: int, first: int = 0) -> None:
    """As many pictures in each of these folders; within a group they look alike."""
    for place, group in enumerate(groups):
        for number in range(first, first + count):
            mixed = Image.blend(smooth(1000 + place), smooth(100 * place + number), 0.4)
            save(mixed, folder / group / f"{number}.png")


def write_table(folder: Path) -> None:
    """Pictures with a metadata.csv, whose labels stand in a column of another name; uneven classes."""
    rows = [(f"{number}.png", "cat" if number % 4 else "dog") for number in range(12)]
    for number, (name, _) in enumerate(rows):
        save(smooth(number), folder / name)
    lines = ["file_name,kind,note", *(f'{name},{kind},"of {kind}, ä"' for name, kind in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", "utf-8")


def write_boxes(folder: Path) -> None:
    """Pictures with boxes: one has three in a COCO file, one has one in YOLO's, one has none."""
    for number, name in enumerate(("a.png", "b.png", "none.png")):
        save(smooth(number, (80, 60)), folder / "images" / name)
    boxes = [([10, 8, 24, 20], 1), ([50, 30, 8, 9], 1), ([60, 50, 40, 30], 2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 3, "file_name": "none.png"}],
        "annotations": [{"id": n, "image_id": 1, "bbox": box, "category_id": c} for n, (box, c) in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}],
    }
    (folder / "images" / "boxes.json").write_text(json.dumps(content), "utf-8")
    (folder / "labels").mkdir()
    (folder / "labels" / "b.txt").write_text("0 0.5 0.5 0.25 0.4\n", "utf-8")


def write_yolo(folder: Path) -> None:
    """Pictures with boxes and outlines of named classes, one of them without any."""
    for number, name in enumerate(("a.png", "b.png", "none.png")):
        save(smooth(number, (30, 20)), folder / "images" / "train" / name)
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.25 0.4\n1 0.2 0.2 0.1 0.1\n", "utf-8")
    (folder / "labels" / "train" / "b.txt").write_text("1 0.1 0.1 0.9 0.1 0.9 0.8\n", "utf-8")
    (folder / "data.yaml").write_text("path: elsewhere\ntrain: images/train\nnames: [round, square]\n", "utf-8")


def write_arrays(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(6):
        np.save(folder / f"{number}.npy", np.stack([fluxes(3 * number + channel) for channel in range(3)]))


def write_gray_arrays(folder: Path) -> None:
    """From 1 to some hundred."""
    folder.mkdir(parents=True)
    for number in range(6):
        np.save(folder / f"{number}.npy", (1 + np.abs(fluxes(number))).astype(np.float32))


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, first: int, count: int) -> None:
    """A WebDataset shard: images with a class, a note and a mask, one of them broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members(first, count):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


def members(first: int, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(first, first + count):
        yield f"part/{number:03}.png", b"broken" if number == 1 else png(smooth(number))
        yield f"part/{number:03}.cls", str(number % 2).encode()
        yield f"part/{number:03}.json", json.dumps({"note": f"n{number}"}).encode()
        yield f"part/{number:03}.seg.png", png(smooth(99))


def rows() -> datasets.Dataset:
    """A data set of Hugging Face with two columns of images, a class and a note."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "mask": datasets.Image()}
    columns = {"image": [*map(smooth, range(6))], "label": [0, 1, 1, 1, 1, 0], "mask": [*map(smooth, range(50, 56))]}
    columns["note"] = ["a", "b", None, "d", "e", "f"]
    return datasets.Dataset.from_dict(columns, datasets.Features(features | {"note": datasets.Value("string")}))


def write_data_sets(folder: Path) -> None:
    """A Parquet file, a saved data set, and one of two splits."""
    datasets.disable_progress_bars()
    whole = rows()
    (folder / "parquet").mkdir(parents=True)
    whole.to_parquet(folder / "parquet" / "train-00000-of-00001.parquet")
    whole.save_to_disk(folder / "saved")
    datasets.DatasetDict(train=whole, test=whole.select([1, 2])).save_to_disk(folder / "splits")


def write_faces(folder: Path) -> None:
    """The astronaut's portrait five times, and a picture without a face."""
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    for number in range(5):
        save(astronaut.rotate(8 * number - 16).crop((60, 0, 460, 300)), folder / f"{number}" / "astronaut.jpg")
    save(Image.fromarray(data.coffee()).resize((150, 100)), folder / "none" / "coffee.png")


def write_portraits(folder: Path) -> None:
    """Twenty small pictures of one face, tilted and taken from other places."""
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    for number in range(20):
        left = 140 + 2 * number
        turned = astronaut.rotate(number - 10, center=(224, 128))
        save(turned.crop((left, 40, left + 150, 190)), folder / f"{number:02}.png")


def write_pictures(folder: Path) -> None:
    """Pictures of one kind, and groups of them."""
    write_flat(folder / "flat", 10)
    write_flat(folder / "many", 24)
    write_flat(folder / "long", 60)
    write_flat(folder / "small", 3, size=(10, 7))
    write_flat(folder / "wide", 2, size=(30, 20))
    write_groups(folder / "classes", ["cat", "dog"], 12)
    write_groups(folder / "tests", ["cat", "dog"], 4, first=50)
    write_groups(folder / "strangers", ["owl", "ape"], 6, first=20)
    write_groups(folder / "people", [f"person{number:02}" for number in range(20)], 2)


def write_inputs(folder: Path) -> None:
    """All kinds below a folder."""
    write_pictures(folder)
    write_formats(folder / "formats")
    write_table(folder / "table")
    write_boxes(folder / "boxes")
    write_yolo(folder / "yolo")
    write_arrays(folder / "arrays")
    write_gray_arrays(folder / "gray_arrays")
    write_shard(folder / "shards" / "s-0.tar", 0, 4)
    write_shard(folder / "shards" / "s-1.tar", 4, 2)
    write_shard(folder / "one.tar", 10, 24)
    write_data_sets(folder / "sets")


def write_key(path: Path) -> None:
    """A key that only its owner may read, as the program wants it."""
    path.touch(0o600)
    path.write_text(KEY)
