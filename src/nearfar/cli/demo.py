"""`nearfar demo`: real photographs, anonymized at several strengths, on one page.

The photographs come with scikit-image: small gray faces ("lfw_subset") and the astronaut's portrait.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar.cli.console import raise_on_signals, shown_progress, write_line
from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import Sampling
from nearfar.errors import UsageError
from nearfar.jobs.anonymize import anonymize_job
from nearfar.jobs.run import plan_run, run
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.reports.page import Report, contact_sheet, folded, linked, paragraph, table
from nearfar.web.figures import ASTRONAUT_FACE

STRENGTHS = (0.1, 0.2, 0.35, 0.5, 0.7)
FACES, SHOWN_FACES = 30, 7
"""Faces that are anonymized, and those of them on the sheet."""

TITLE = "Near images of {count} photographs"
TEXTS = (
    "Each photograph was pushed part of the way to noise and brought back by a frozen diffusion model ({model}). The "
    "further it goes, the less of the original comes back. The random key of the noise is gone.",
    "A changed face is not an anonymous person: composition, colors, hair and clothes stay recognizable for long, and "
    "how much a strength protects has to be measured. Model: {license}. Photographs: scikit-image (LFW subset; NASA).",
)
COLUMNS = ("strength", "noise to signal", "images", "seconds", "folder")


def make_demo(out: Path) -> Path:
    """Write originals, results, a contact sheet and a page into a new folder; returns the page's path."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} must be an empty folder or none at all: choose another")
    originals = out / "originals"
    raise_on_signals()
    write_photographs(originals)
    model = load_model()
    rows = [anonymize_at(strength, model, originals, out) for strength in STRENGTHS]
    write_sheet(out)
    above, below = (
        text.format(
            model=f"{model.parameters / 1e6:.1f} million parameters, {model.image.size}x{model.image.size} pixels",
            license=model.provenance.license,
        )
        for text in TEXTS
    )
    page = Report(TITLE.format(count=len(list(originals.iterdir())))).add(
        linked("sheet.png", "Originals and their local samples at rising strength"),
        paragraph(above),
        paragraph(below),
        folded("Strengths, times, folders", table(COLUMNS, rows)),
    )
    (out / "index.html").write_text(page.html(), encoding="utf-8")
    return out / "index.html"


def write_photographs(folder: Path) -> None:
    """The demo's originals as PNG files."""
    try:
        from skimage import data
    except ImportError:
        raise UsageError("the demo's photographs come with scikit-image: pip install 'nearfar[demo]'") from None
    folder.mkdir(parents=True)
    Image.fromarray(data.astronaut()).crop(ASTRONAUT_FACE).save(folder / "astronaut.png")
    for number, face in enumerate(data.lfw_subset()[:FACES]):
        Image.fromarray((face * 255).round().astype(np.uint8)).save(folder / f"face-{number:03}.png")


def anonymize_at(strength: float, model: FrozenModel, originals: Path, out: Path) -> Sequence[object]:
    """Run one strength; returns its line of the page's table."""
    target = out / folder_name(strength)
    job = anonymize_job(model, Sampling(Level(strength)))
    with shown_progress(f"strength {strength:g}") as report:
        progress = run(job, target, plan_run(job, originals, target, resume=False), report)
    if progress.failed:
        raise UsageError(f"{progress.failed[0].name}: {progress.failed[0].reason}")
    write_line(f"strength {strength:g}: {progress.done} images in {progress.seconds:.1f} s in {target}")
    return f"{strength:g}", f"{job.settings['sigma']:.2f}", progress.done, f"{progress.seconds:.1f}", target.name


def folder_name(strength: float) -> str:
    return f"strength-{strength:.2f}"


def write_sheet(out: Path) -> None:
    """Rows are photographs, columns the original and each strength."""
    names = ["astronaut.png", *(f"face-{number:03}.png" for number in range(SHOWN_FACES))]
    folders = ["originals", *(folder_name(strength) for strength in STRENGTHS)]
    rows = [[Image.open(out / folder / name) for folder in folders] for name in names]
    contact_sheet(rows, ["original", *(f"{strength:g}" for strength in STRENGTHS)]).save(out / "sheet.png")
