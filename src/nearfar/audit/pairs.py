"""Outputs beside the originals that they were made from: matched by name, read once, kept at one size."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import fit
from nearfar.io.listing import Item, Rejected, list_folder, original_name
from nearfar.io.manifest import Watch, unwatched
from nearfar.io.pictures import KNOWN, Picture, read_picture
from nearfar.metrics.features import BATCH, FeatureNetwork
from nearfar.metrics.quality import psnr, ssim

STRANGERS = 200
"""Outputs from which it is measured what any two images have in common."""

CHECKED = 500
"""Originals without an output that are read, to learn whether they can be."""


@dataclass(frozen=True)
class Pairing:
    """Which outputs belong to which original.

    outputs: of each original that has any, its outputs in the order of names. lost: originals without an output.
    strange: outputs without an original. rejected: what looks like an image and is none, of both
    folders, as BEFORE/name or AFTER/name. copied: files of AFTER that are originals themselves beside copies of them
    (`augment --keep-originals`), and no outputs.
    """

    outputs: list[tuple[Item, list[Item]]]
    lost: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)

    def some(self, limit: int, seed: int) -> Pairing:
        """At most `limit` originals with all of their outputs, drawn at random, in the order of names."""
        if len(self.outputs) <= limit:
            return self
        drawn = torch.randperm(len(self.outputs), generator=torch.Generator().manual_seed(seed))[:limit]
        return replace(self, outputs=[self.outputs[n] for n in sorted(drawn.tolist())])


@dataclass(frozen=True, eq=False)
class Pairs:
    """All that could be read. Images are float32 (image, 3, size, size) in [-1, 1], padded where not square.

    of: the number of each output's original. psnr (dB, at most 150), ssim: of each output with its original, at the
    original's own size. resized: outputs that had another size than their original.
    """

    items: list[Item]
    originals: Float[Tensor, "originals 3 size size"]
    output_items: list[Item]
    outputs: Float[Tensor, "outputs 3 size size"]
    of: Int64[Tensor, " outputs"]
    psnr: Float64[Tensor, " outputs"]
    ssim: Float64[Tensor, " outputs"]
    resized: int
    rejected: list[Rejected]


@dataclass(frozen=True, eq=False)
class Others:
    """Further images, which were not among the originals, and a network's features of them."""

    items: Sequence[Item]
    images: Float[Tensor, "others 3 size size"]
    features: Tensor


@dataclass(frozen=True, eq=False)
class Read:
    """One original and its outputs."""

    item: Item
    original: Tensor
    outputs: list[tuple[Item, Tensor, float, float, bool]]


def pair_folders(before: Path, after: Path) -> Pairing:
    """Match the files of two folders by their names below them.

    An output belongs to the original of the same name, else of the same name without `~1`, `~2`, ... at the end of its
    stem, else to the only one that differs in the suffix. Beside such copies, the bytes of the original itself are no
    output. Raises UsageError if nothing matches.
    """
    originals, results = list_folder(before), list_folder(after)
    known = {item.name: item for item in originals.items}
    stems: dict[str, list[str]] = {}
    for name in known:
        stems.setdefault(without_suffix(name), []).append(name)
    found: dict[str, list[Item]] = {}
    strange = []
    for item in results.items:
        source = original_of(item.name, known, stems)
        if source is None:
            strange.append(item.name)
        else:
            found.setdefault(source, []).append(item)
    if not found:
        counts = f"{len(known)} images there, {len(results.items)} here"
        raise UsageError(
            f"no image of {after} has the name of one of {before} ({counts}): give the two ends of one run"
        )
    lost = [name for name in known if name not in found]
    rejected = [*marked("BEFORE", originals.rejected), *marked("AFTER", results.rejected)]
    outputs = [(known[name], found[name]) for name in known if name in found]
    copied = [item.name for original, some in outputs for item in some if is_copied(item, original, some)]
    gone = set(copied)
    left = [(original, [item for item in some if item.name not in gone]) for original, some in outputs]
    return Pairing(left, sorted(lost), sorted(strange), rejected, copied)


def is_copied(item: Item, original: Item, outputs: Sequence[Item]) -> bool:
    """Whether an output of several is a file of the original's name and bytes."""
    if len(outputs) < 2 or item.name != original.name:
        return False
    try:
        return filecmp.cmp(item.path, original.path, shallow=False)
    except OSError:
        return False


def original_of(name: str, known: dict[str, Item], stems: dict[str, list[str]]) -> str | None:
    """The name of the original that an output of this name was made from."""
    for candidate in (name, original_name(name)):
        if candidate in known:
            return candidate
        alike = stems.get(without_suffix(candidate), [])
        if len(alike) == 1:
            return alike[0]
    return None


def without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def marked(place: str, rejected: Sequence[Rejected]) -> list[Rejected]:
    return [Rejected(f"{place}/{entry.name}", entry.reason) for entry in rejected]


def read_pairs(pairing: Pairing, size: int, watch: Watch = unwatched) -> Pairs:
    """Read every pair; files that cannot be read are listed and left out, an original with all of its outputs.

    Memory: 12 size² bytes for each image. Raises UsageError if nothing is left.
    """
    rejected = list(pairing.rejected)
    done = list(read_each(pairing, size, rejected, watch))
    if not done:
        raise UsageError(f"no pair can be read; the first of {len(rejected)} files: {rejected[0].reason}")
    outputs = [(number, *output) for number, each in enumerate(done) for output in each.outputs]
    of, items, images, peak, structure, resized = zip(*outputs, strict=True)
    return Pairs(
        [each.item for each in done],
        torch.stack([each.original for each in done]),
        list(items),
        torch.stack(images),
        torch.tensor(of),
        torch.tensor(peak, dtype=torch.float64),
        torch.tensor(structure, dtype=torch.float64),
        sum(resized),
        rejected,
    )


def read_each(pairing: Pairing, size: int, rejected: list[Rejected], watch: Watch) -> Iterator[Read]:
    for number, (item, outputs) in enumerate(pairing.outputs, 1):
        original = read_or_reject(item, "BEFORE", rejected)
        if original is not None:
            pictures = [(each, read_or_reject(each, "AFTER", rejected)) for each in outputs]
            known = [(each, picture) for each, picture in pictures if picture is not None]
            if known:
                compared = [(each, fit(picture, size, 3), *compare(original, picture)) for each, picture in known]
                yield Read(item, fit(original, size, 3), compared)
        watch("pairs", number, len(pairing.outputs))


def read_images(
    folder: Path, size: int, rejected: list[Rejected], watch: Watch = unwatched
) -> tuple[list[Item], Tensor]:
    """Every image below a folder, float32 (image, 3, size, size) in [-1, 1]; what cannot be read is put on the list.

    Raises UsageError if nothing is left.
    """
    listing = list_folder(folder)
    rejected += marked(folder.name, listing.rejected)
    found: list[tuple[Item, Tensor]] = []
    for number, item in enumerate(listing.items, 1):
        picture = read_or_reject(item, folder.name, rejected)
        if picture is not None:
            found.append((item, fit(picture, size, 3)))
        watch(f"images of {folder.name}", number, len(listing.items))
    if not found:
        raise UsageError(f"{folder} holds no image that can be read: give a folder of {KNOWN} files")
    return [item for item, _ in found], torch.stack([image for _, image in found])


def read_several(folder: Path, size: int, rejected: list[Rejected], watch: Watch) -> tuple[list[Item], Tensor]:
    """Images of a folder, of which one alone would tell nothing."""
    items, images = read_images(folder, size, rejected, watch)
    if len(items) < 2:
        raise UsageError(f"{folder} must hold at least 2 images that can be read, got {len(items)}")
    return items, images


def read_others(
    folder: Path | None, network: FeatureNetwork, size: int, rejected: list[Rejected], watch: Watch
) -> Others | None:
    if folder is None:
        return None
    items, images = read_several(folder, size, rejected, watch)
    return Others(items, images, features_of(network, images, watch))


def features_of(network: FeatureNetwork, images: Tensor, watch: Watch) -> Tensor:
    """A network's features, batch by batch."""
    parts: list[Tensor] = []
    for some in torch.split(images, BATCH):
        parts.append(network(some))
        watch("features", min(len(parts) * BATCH, len(images)), len(images))
    return torch.cat(parts)


def read_or_reject(item: Item, place: str, rejected: list[Rejected]) -> Picture | None:
    try:
        return read_picture(item.path)
    except ImageError as refusal:
        rejected.append(Rejected(f"{place}/{item.name}", str(refusal)))
        return None


def unreadable(folder: Path, names: Sequence[str], watch: Watch = unwatched) -> list[Rejected]:
    """Which of the first 500 named originals cannot be read: often why they have no output."""
    rejected: list[Rejected] = []
    for number, name in enumerate(names[:CHECKED], 1):
        read_or_reject(Item(folder / name, name), "BEFORE", rejected)
        watch("originals without an output", number, len(names[:CHECKED]))
    return rejected


def compare(original: Picture, output: Picture) -> tuple[float, float, bool]:
    """PSNR, SSIM, and whether the output had to be resized: bicubic, to the original's size."""
    x, y = as_batch(original), as_batch(output)
    channels = max(x.shape[1], y.shape[1])
    x, y = (each.expand(-1, channels, -1, -1) for each in (x, y))
    resized = x.shape != y.shape
    if resized:
        y = torch.nn.functional.interpolate(y, x.shape[2:], mode="bicubic", antialias=True).clamp(-1, 1)
    return psnr(x, y).item(), ssim(x, y).item(), resized


def unrelated(pairs: Pairs) -> Int64[Tensor, " outputs"] | None:
    """For each output an original that is not its own, half of the originals away; nothing if there is but one."""
    count = len(pairs.originals)
    return (pairs.of + count // 2) % count if count > 1 else None


def compare_strangers(pairs: Pairs) -> tuple[float, float] | None:
    """Mean PSNR and SSIM of the first outputs with originals that are not theirs; each file is read again."""
    other = unrelated(pairs)
    if other is None:
        return None
    chosen = list(zip(pairs.output_items, other.tolist(), strict=True))[:STRANGERS]
    found = [compare(read_picture(item.path), read_picture(pairs.items[number].path)) for item, number in chosen]
    return sum(each[0] for each in found) / len(found), sum(each[1] for each in found) / len(found)


def as_batch(picture: Picture) -> Tensor:
    """One image (1, channels, height, width) in [-1, 1] at its own size."""
    top = float(2**picture.frame.depth - 1)
    return torch.from_numpy(picture.pixels.astype("float32")).permute(2, 0, 1)[None] * (2 / top) - 1
