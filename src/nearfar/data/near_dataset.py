"""Local samples where a network is trained: a PyTorch data set of copies, and a transform that gives them on the fly.

Both keep every copy in a folder, found again by the image's content: with the folder full, an epoch costs no network
call. Fill it beforehand, in batches (fast), or let it fill as images are asked for (one network run each).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from nearfar.data.copies import STRENGTH, Range, fraction
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, Sampling, Solver
from nearfar.errors import UsageError
from nearfar.io.fitting import fit, unfit
from nearfar.io.pictures import Frame, Picture, encode, read_picture
from nearfar.models.model import FrozenModel, default_batch_size
from nearfar.sampling.inversion import solver_settings
from nearfar.sampling.local_sampling import sample_near
from nearfar.tensors import ImageContract

Pixels = NDArray[np.uint8]
MODES = ("1", "L", "P", "RGB")
AnyImage = Any
"""PIL of one of `MODES`; a tensor (channels, height, width) or an array (height, width[, channels]), uint8 or floats in
[0, 1]."""


@runtime_checkable
class Base(Protocol):
    """A data set with a length whose items are (image, label, ...) or {"image": ..., ...}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class CopyCache:
    """Copies in a folder, by content of the original, number and settings.

    span: lowest and highest strength. settings: what else decides the pixels. sample: (images, strengths, numbers) ->
    copies; None in a process that got this pickled, which can only read.
    """

    folder: Path
    image: ImageContract
    span: Range
    key: SecretKey
    settings: str
    sample: Callable[[Tensor, Sequence[float], Sequence[int]], Tensor] | None = field(repr=False)
    device: str = "cpu"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sample": None}

    def near(self, image: AnyImage, variant: int) -> AnyImage:
        """The copy of this number, in the kind, shape and range of the image."""
        pixels, restored = pixels_of(image)
        path = self.path(pixels, variant)
        if not path.is_file():
            self.check_able()
            self.make([(pixels, variant)])
        return restored(np.asarray(read_picture(path).pixels))

    def path(self, pixels: Pixels, variant: int) -> Path:
        content = f"{self.settings} {pixels.shape} {variant} ".encode() + pixels.tobytes()
        tag = self.key.tag("copy", content)
        return self.folder / tag[:2] / f"{tag}.png"

    def check_able(self) -> None:
        if self.sample is None or (get_worker_info() is not None and self.device != "cpu"):
            raise UsageError(f"a copy is not in {self.folder}, and a worker process cannot make it: call fill() first")

    def make(self, wanted: Sequence[tuple[Pixels, int]]) -> None:
        """Make these copies in one batch and store them."""
        frames = [frame_of(pixels) for pixels, _ in wanted]
        pictures = [Picture(pixels, frame) for (pixels, _), frame in zip(wanted, frames, strict=True)]
        squares = torch.stack([fit(picture, self.image.size, self.image.channels) for picture in pictures])
        paths = [self.path(pixels, variant) for pixels, variant in wanted]
        low, high = self.span
        levels = [round(low + (high - low) * fraction(self.key, "strength", path.name), 4) for path in paths]
        assert self.sample is not None
        copies = self.sample(squares, levels, [variant for _, variant in wanted])
        for path, copy, frame in zip(paths, copies, frames, strict=True):
            store(path, encode(unfit(copy, frame)))

    def fill(self, wanted: Iterable[tuple[AnyImage, int]], batch_size: int) -> int:
        """Make those that are missing, in batches; returns how many were made."""
        made, batch = 0, dict[Path, tuple[Pixels, int]]()
        for image, variant in wanted:
            pixels, _ = pixels_of(image)
            path = self.path(pixels, variant)
            if not path.is_file():
                batch[path] = (pixels, variant)
            if len(batch) == batch_size:
                self.make(list(batch.values()))
                made, batch = made + len(batch), {}
        if batch:
            self.make(list(batch.values()))
        return made + len(batch)


def copy_cache(
    model: FrozenModel,
    cache: Path | str,
    *,
    strength: float | Range = STRENGTH,
    seed: int = 0,
    steps: int = STEPS,
    solver: Solver = SOLVER,
) -> CopyCache:
    """The cache of a model's copies. strength: one, or the ends of a range from which each copy's is drawn."""
    span = (strength, strength) if isinstance(strength, float | int) else strength
    if not 0 < span[0] <= span[1] <= 1:
        raise UsageError(f"strength must be above 0 to 1, the lower end of a range first, got {strength}")
    key = SecretKey.from_seed(seed)

    sampling = Sampling(Level(span[1]), steps, solver)

    def sample(images: Tensor, levels: Sequence[float], variants: Sequence[int]) -> Tensor:
        return sample_near(model, images, sampling.at(Level(levels)), key, variants)

    settings = json.dumps(
        [model.provenance.sha256, model.settings, span, steps, solver_settings(solver, model.denoiser)]
    )
    return CopyCache(Path(cache), model.image, span, key, settings, sample, model.device.type)


def frame_of(pixels: Pixels) -> Frame:
    height, width, channels = pixels.shape
    return Frame(height, width, channels, 8, None, "PNG", {})


def store(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes the same copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}-{get_ident()}.part")
    part.write_bytes(content)
    part.replace(path)


def pixels_of(image: AnyImage) -> tuple[Pixels, Callable[[Pixels], AnyImage]]:
    """An image as uint8 (height, width, 1 or 3), and the way back to what it was."""
    if isinstance(image, Image.Image):
        if image.mode not in MODES:
            asked = f"a picture must be of mode {', '.join(MODES)}, got {image.mode}"
            raise UsageError(f"{asked}: bring it to L or RGB first, as copies have 8 bits and no transparency")
        gray = image.mode in ("1", "L")
        pixels = np.array(image.convert("L" if gray else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1), lambda new: Image.fromarray(new[..., 0] if gray else new)
    if isinstance(image, Tensor):
        array, restored = pixels_of(image.movedim(0, -1).cpu().numpy())
        return array, lambda new: torch.from_numpy(np.array(restored(new))).movedim(-1, 0).to(image.dtype)
    array = np.asarray(image)
    flat = array[..., None] if array.ndim == 2 else array
    if flat.ndim != 3 or flat.shape[2] not in (1, 3):
        raise UsageError(f"an image must have 1 or 3 channels and two sides, got shape {array.shape}")
    if array.dtype == np.uint8:
        return flat, lambda new: new.reshape(array.shape)
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise UsageError(f"an image must be uint8, or floats in [0, 1], got {array.dtype} in "
                         f"[{array.min():g}, {array.max():g}]: augment before normalizing")  # fmt: skip
    scaled = np.asarray(np.rint(flat * 255), np.uint8)
    return scaled, lambda new: (new.reshape(array.shape) / 255).astype(array.dtype)


class NearDataset(Dataset[Any]):
    """Copies of the images of another data set, with its labels: `ConcatDataset([base, NearDataset(base, ...)])`.

    base: items (image, label, ...) or {"image": ..., ...}; without random transforms, or no copy is found again.
    copies: of each image; the first copies of all come first. cache: a folder.
    options: strength (0.3; one, or a range from which each copy's is drawn), seed (0), steps (20), solver.
    Equal seeds give equal copies, to within a gray level where batches differ.
    Cost: `solver.calls(steps)` network calls for each batch of `fill`, or for each copy asked for without.
    """

    def __init__(self, base: Base, model: FrozenModel, *, cache: Path | str, copies: int = 1, **options: Any) -> None:
        if copies < 1:
            raise UsageError(f"copies must be at least 1, got {copies}")
        self.base, self.copies = base, copies
        self.cache = copy_cache(model, cache, **options)
        self.batch_size = default_batch_size(model)

    def __repr__(self) -> str:
        return f"NearDataset({self.copies} copies of each of {len(self.base)} images)"

    def __len__(self) -> int:
        return len(self.base) * self.copies

    def __getitem__(self, index: int) -> Any:
        """The item of the original with the copy in the image's place."""
        if not 0 <= index < len(self):
            raise IndexError(f"copy {index} of {len(self)}")
        item = self.base[index % len(self.base)]
        copy = self.cache.near(image_of(item), index // len(self.base) + 1)
        return {**item, "image": copy} if isinstance(item, dict) else (copy, *item[1:])

    def fill(self, batch_size: int | None = None) -> int:
        """Make all missing copies, in batches; returns how many were made."""
        return self.cache.fill(self.missing(), batch_size or self.batch_size)

    def missing(self) -> Iterator[tuple[AnyImage, int]]:
        for index in range(len(self.base)):
            image = image_of(self.base[index])
            yield from ((image, variant) for variant in range(1, self.copies + 1))


def image_of(item: Any) -> AnyImage:
    return item["image"] if isinstance(item, dict) else item[0]


class NearTransform:
    """A transform that replaces an image by one of its copies, with probability `p`.

    Called with an image, or by name with what goes with it, which comes back unchanged: `transform(image=x, mask=m)`
    returns a dictionary. Which copy of `copies` it is, and whether, is drawn from torch's random state, as in
    torchvision. Put it before random crops and normalization. The rest is as in `NearDataset`.
    """

    def __init__(
        self, model: FrozenModel, *, cache: Path | str, p: float = 0.5, copies: int = 4, **options: Any
    ) -> None:
        if not 0 <= p <= 1 or copies < 1:
            raise UsageError(f"p must be in [0, 1] and copies at least 1, got {p:g} and {copies}")
        self.p, self.copies = p, copies
        self.cache = copy_cache(model, cache, **options)
        self.batch_size = default_batch_size(model)

    def __call__(self, only: AnyImage = None, /, **fields: Any) -> Any:
        return {**fields, "image": self.draw(fields["image"])} if only is None else self.draw(only)

    def draw(self, image: AnyImage) -> AnyImage:
        """One of the copies, or the image itself."""
        if torch.rand(()).item() >= self.p:
            return image
        return self.cache.near(image, int(torch.randint(1, self.copies + 1, ()).item()))

    def fill(self, images: Iterable[AnyImage], batch_size: int | None = None) -> int:
        """Make all missing copies of these images, in batches; returns how many were made."""
        wanted = ((image, variant) for image in images for variant in range(1, self.copies + 1))
        return self.cache.fill(wanted, batch_size or self.batch_size)
