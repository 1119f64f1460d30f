"""What the page's tabs do, without the page: one model, one visitor's work at a time."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearfar.audit.audit import run_audit
from nearfar.audit.choices import Choices, Folders
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, OnStep, Sampling
from nearfar.domain.domain import Domain
from nearfar.domain.file import save_domain
from nearfar.domain.synthesis import synthesize
from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import fit
from nearfar.io.manifest import Watch
from nearfar.io.pictures import as_pil, read_picture
from nearfar.io.regions import Region, crop, match_colors, paste
from nearfar.io.stacks import read_inputs
from nearfar.jobs.regions import face_search
from nearfar.metrics.faces import Faces
from nearfar.metrics.familiarity import Familiar
from nearfar.metrics.features import FeatureNetwork, feature_network, perceptual_distance
from nearfar.metrics.quality import psnr
from nearfar.models.kept import kept
from nearfar.models.model import FrozenModel
from nearfar.reports.audit import report
from nearfar.reports.domain import beside_real
from nearfar.sampling.local_sampling import own_samples, sample_near
from nearfar.sampling.own_domain import own_calls, own_domain
from nearfar.tensors import Images
from nearfar.web.figures import Card, small

STRIP = (0.1, 0.2, 0.35, 0.5, 0.7)
MOST_PIXELS, SHOWN = 30_000_000, 512
"""Pixels of an upload, refused before they are decoded, and pixels of a side of what the page shows."""
SECONDS, FEWEST = 4.0, 6
"""What a strip may take, and the fewest steps that it is made in."""
WORDS = {"keep": "kept", "flag": "kept, doubtful", "drop": "dropped"}
STRANGERS = 6
"""The model's own images that stand for strangers."""
MANY, FEW, FEW_STEPS, ALLOWANCE = 128, 24, 8, 1.15
"""Own images that tell what is foreign: so many where they are kept, or else few, made in few
steps, and what is allowed then: photographs of what the model knows are further from these."""


@dataclass(frozen=True, eq=False)
class Desk:
    """What a server was started with, and what it measured of its model at the start.

    steps: of what the page makes, as many as `SECONDS` allow for a strip. strangers: images of nobody. familiar: tells
    which pictures are foreign to the model.
    """

    model: FrozenModel
    folders: dict[str, Path]
    steps: int
    strangers: Images
    familiar: Familiar
    features: FeatureNetwork
    detector: Path | None = None
    faces: Faces | None = None

    @classmethod
    def open(
        cls, model: FrozenModel, folders: dict[str, Path], detector: Path | None = None, recognizer: Path | None = None
    ) -> Desk:
        """Measure the model. Cost: about 240 calls for one image each, and 40 where own images are kept."""
        own = own_images(model)
        faces = Faces.load(detector, recognizer) if recognizer else None
        network = feature_network("model", model)
        steps, familiar = steps_within(model, SECONDS), Familiar.fit(model, own, ALLOWANCE if len(own) < MANY else 1.0)
        return cls(model, folders, steps, own[:STRANGERS], familiar, network, detector, faces)

    def picture(self, path: str | Path) -> Image.Image:
        """An upload, upright and in sRGB, as large as the page shows it."""
        return small(as_pil(read_picture(path, MOST_PIXELS)), SHOWN)

    def near(self, image: Image.Image, strengths: Sequence[float], on_step: OnStep | None = None) -> list[Card]:
        """One local sample for each strength, made in one batch, each with how near it still is."""
        began, images = time.monotonic(), self.model.from_pil(image).expand(len(strengths), -1, -1, -1)
        sampling, numbers = Sampling(Level(torch.tensor(strengths)), self.steps, SOLVER), range(len(strengths))
        made = sample_near(self.model, images, sampling, SecretKey.random(), list(numbers), on_step)
        seconds = time.monotonic() - began
        shown = self.model.to_pil(made, [image] * len(strengths))
        sigmas = [Level(strength).describe(self.model.schedule)["sigma"] for strength in strengths]
        cost = f"{SOLVER.calls(self.steps)} calls, {seconds:.1f} s"
        return [
            Card(one, f"strength {strength:.2f}", [f"sigma {sigma:.2f}", *lines, cost])
            for one, strength, sigma, lines in zip(shown, strengths, sigmas, self.nearness(image, made), strict=True)
        ]

    def stranger(self, image: Image.Image) -> Card:
        """One of the model's own images, which shows nobody, with how near such images are to the picture."""
        lines = self.nearness(image, self.strangers, median=True)[0]
        return Card(self.model.to_pil(self.strangers[:1], image)[0], "a stranger", [f"median of {STRANGERS}", *lines])

    def nearness(self, image: Image.Image, made: Images, median: bool = False) -> list[list[str]]:
        """How near each image is to the picture, or their median."""
        original = self.model.from_pil(image)
        same = original.expand(len(made), -1, -1, -1)
        measures = {"pixels {:.1f} dB": psnr(same, made)}
        with suppress(UsageError):  # a network without a middle block
            measures["features {:.2f}"] = perceptual_distance(self.features, same, made)
        if self.faces:
            measures["recognizer {:.2f}"] = self.likeness(self.faces, original, made)
        if median:
            measures = {name: values.nanmedian()[None] for name, values in measures.items()}
        rows = zip(*(values.tolist() for values in measures.values()), strict=True)
        return [[told(name, value) for name, value in zip(measures, row, strict=True)] for row in rows]

    def likeness(self, faces: Faces, original: Images, others: Images) -> Tensor:
        """Cosine of the faces that the recognizer sees; nan where the detector sees none in one of the two."""
        pictures = [np.asarray(one.convert("RGB")) for one in self.model.to_pil(torch.cat([original, others]))]
        seen = faces.embed(pictures)
        both = seen.found[1:] & seen.found[0]
        return torch.where(both, seen.vectors[1:] @ seen.vectors[0], torch.nan)

    def foreign(self, image: Image.Image) -> str:
        """A warning where the network sees something else than the model's own images; empty where it does not."""
        away = self.familiar.foreign(self.model.from_pil(image)).item()
        if away <= 1:
            return ""
        return (
            f"Not what this model knows: to the network this picture is {away:.2f} times as far from the model's own "
            "images as 95 % of these are from one another. What is made of it is pulled toward what the model knows."
        )

    def regions(self, path: str | Path) -> list[Region]:
        """Faces in a photograph, by the detector that the server was started with."""
        if self.detector is None:
            return []
        picture = read_picture(path, MOST_PIXELS)
        return list(face_search(self.detector).find(None, picture))  # type: ignore[arg-type]

    def crops(self, path: str | Path | None, regions: Sequence[Region]) -> list[Image.Image]:
        """What the model sees of regions."""
        if not path or not regions:
            return []
        pixels, contract = read_picture(path, MOST_PIXELS).pixels, self.model.image
        return self.model.to_pil(torch.stack([crop(pixels, one, contract.size, contract.channels) for one in regions]))

    def replaced(
        self, path: str | Path, regions: Sequence[Region], strength: float, on_step: OnStep | None = None
    ) -> tuple[Image.Image, Image.Image]:
        """The photograph, and the same with these faces made anew."""
        picture, contract = read_picture(path, MOST_PIXELS), self.model.image
        squares = torch.stack([crop(picture.pixels, one, contract.size, contract.channels) for one in regions])
        sampling = Sampling(Level(strength), self.steps, SOLVER)
        made = sample_near(self.model, squares, sampling, SecretKey.random(), list(range(len(regions))), on_step)
        pixels = picture.pixels
        for new, old, region in zip(made, squares, regions, strict=True):
            pixels = paste(pixels, match_colors(new, old, region), region)
        after = Image.fromarray(pixels.squeeze())
        return small(as_pil(picture), 2 * SHOWN), small(after, 2 * SHOWN)

    def folder(self, name: str) -> Path:
        """A folder that the server was started with, by its name on the page; no other is reached."""
        if name not in self.folders:
            raise UsageError("choose one of the folders that the server was started with: nearfar serve --folder")
        return self.folders[name]

    def audit(self, before: str, after: str, watch: Watch) -> str:
        """The report of `nearfar audit` as a page."""
        folders = Folders(self.folder(before), self.folder(after))
        if folders.before == folders.after:
            raise UsageError("choose two folders: originals, and what was made of them")
        return report(run_audit(folders, Choices(), self.model, watch)).html()

    def inputs(self, files: Sequence[str], name: str) -> Images:
        """Images of a domain: uploads, or else a folder's."""
        if not files:
            return read_inputs(self.folder(name), self.model.image).images
        squares = []
        for file in files:
            try:
                picture = read_picture(file, MOST_PIXELS)
            except ImageError as refusal:
                raise UsageError(str(refusal)) from None
            squares.append(fit(picture, self.model.image.size, self.model.image.channels))
        return torch.stack(squares)

    def far(self, images: Images, count: int, folder: Path, on_step: OnStep | None = None) -> Far:
        """A domain of these images and new images of it, judged; the files lie in `folder`."""
        own = own_samples(self.model, 64, steps=self.steps, on_step=on_step)
        domain = Domain.fit(self.model, images, steps=self.steps, own=own, on_step=on_step)
        made = synthesize(self.model, domain, count, seed=int(time.time()), on_step=on_step)
        judged = domain.guards.judge(self.model, made.images)
        shown = self.model.to_pil(made.images)
        why = ["" if one.verdict == "keep" else "; ".join(one.reasons) for one in judged]
        struck = [reason if one.verdict == "drop" else "" for one, reason in zip(judged, why, strict=True)]
        save_domain(domain, folder / "new.domain")
        write_pack(folder / "new.zip", shown, struck)
        drawn = [
            Card(image.resize((128, 128), Image.Resampling.BICUBIC), f"{number}", [WORDS[one.verdict]], reason)
            for number, (image, one, reason) in enumerate(zip(shown, judged, struck, strict=True), 1)
        ]
        rows = [vars(one) for one in judged]
        rates = [
            f"{name[:1].upper()}{name[1:]}: {new} of these, {real} of the real images"
            for name, new, real in beside_real(rows, domain)
        ]
        return Far(domain, drawn, folder / "new.zip", folder / "new.domain", rates)


@dataclass(frozen=True, eq=False)
class Far:
    """A domain that was fitted on the page, and its new images; dropped ones are struck through and in no file.

    rates: of copies and captures, beside those of the fitted images, a sentence each.
    """

    domain: Domain
    cards: list[Card]
    pack: Path
    file: Path
    rates: list[str]


def write_pack(path: Path, images: Sequence[Image.Image], struck: Sequence[str]) -> None:
    """The images that are not struck through, by their numbers, as one zip."""
    with zipfile.ZipFile(path, "w") as pack:
        for number, (image, reason) in enumerate(zip(images, struck, strict=True), 1):
            if not reason:
                with pack.open(f"sample-{number:04}.png", "w") as file:
                    image.save(file, "PNG")


def told(measure: str, value: float) -> str:
    """A measure's line."""
    return "recognizer: no face found" if math.isnan(value) else measure.format(value)


def own_images(model: FrozenModel) -> Images:
    """Images that the model makes from noise: kept ones, or else few, which are kept then."""
    if not own_calls(model, MANY):
        return own_domain(model, MANY)
    shape = (FEW, model.image.channels, model.image.size, model.image.size)
    made = partial(own_samples, model, FEW, steps=FEW_STEPS)
    return kept(model, "few-samples", {"steps": FEW_STEPS}, shape, lambda begun: made(first=begun))


def steps_within(model: FrozenModel, seconds: float) -> int:
    """Solver steps for a strip that take about so long, measured: at least `FEWEST`, at most the default."""
    images = torch.zeros(len(STRIP), model.image.channels, model.image.size, model.image.size)
    sampling = Sampling(Level(0.5), 2, SOLVER)
    times = []
    for _ in range(2):
        began = time.monotonic()
        sample_near(model, images, sampling, SecretKey.random(), list(range(len(STRIP))))
        times.append((time.monotonic() - began) / 2)
    return max(FEWEST, min(STEPS, int(seconds / min(times))))
