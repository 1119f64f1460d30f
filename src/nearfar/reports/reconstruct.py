"""The report of `nearfar reconstruct`: can this frozen model represent these images? One page, and JSON beside it.

Figures come from the record of the run, so a resumed run reports all of its images; pictures are read from the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nearfar.diffusion.solver import STEPS, Sampling
from nearfar.errors import ImageError, UsageError
from nearfar.io.fitting import FitMode, fit
from nearfar.io.pictures import read_picture
from nearfar.jobs.job import Job
from nearfar.jobs.places import page_beside
from nearfar.jobs.run import Plan
from nearfar.reports.charts import drawing, plot
from nearfar.reports.page import (
    CELL,
    Report,
    failures,
    folded,
    groups,
    heading,
    paragraph,
    picture,
    records_of,
    shown,
    table,
)
from nearfar.sampling.representation import ALLOWANCE, QUANTILE, calls_of, threshold
from nearfar.tensors import ImageContract

SHOWN, ABREAST, LISTED, AMPLIFIED = 24, 3, 200, 8
"""Images on the sheet, in each of its rows, and in the table, the worst first; what differences are multiplied by."""

ALL, MOST = 0.95, 0.5
"""Shares of images as good as the model's own samples from which the verdict is yes, and in part."""

COLUMNS = {"psnr": "PSNR, dB", "ssim": "SSIM", "residual": "worst residual", "fell_back": "fell back", "calls": "calls"}


def check_report(report: Path | None, source: Path, out: Path, own_samples: int) -> Path:
    """Where the page goes, beside OUT unless told; refused where it would be taken for an image's result."""
    if own_samples < 0:
        raise UsageError(f"own samples must be at least 0, got {own_samples}")
    return page_beside(report, out, source)


def cost(plan: Plan, sampling: Sampling, own: int) -> list[tuple[str, str]]:
    """What the run will cost, in lines of a word and a text; own: the number of the model's own samples."""
    least, most = calls_of(sampling.solver, sampling.steps)
    calls = f"{least}" if least == most else f"{least} or more (at most {most})"
    samples = -(-own // plan.batch_size)
    lines = [("cost", f"{calls} network calls for each batch")]
    extra = ("own", f"{own} samples of the model's own, in {samples} batches, {STEPS} calls more for each")
    return [*lines, extra] if own else lines


def write_report_on(plan: Plan, job: Job, source: Path, out: Path, path: Path, own_psnr: list[float]) -> dict[str, Any]:
    """Write the report of a run that is over; returns verdict, threshold and place."""
    content = account(job.settings, out, plan.names, own_psnr)
    mode = FitMode.COVER if job.settings["fit"] == FitMode.COVER else FitMode.PAD  # cells of one size
    sheet = worst_images(content, source, out, job.image, mode)
    report(content, sheet).write(path, content)
    return {"verdict": content["verdict"], "report": str(path)}


def account(settings: dict[str, Any], out: Path, names: Sequence[str], own_psnr: list[float]) -> dict[str, Any]:
    """What the report says, for machines: every image with its figures, the worst first, and the verdict.

    names: the images of this run, done or not; own_psnr: of the model's own samples, none for no verdict.
    """
    known = records_of(out, names)
    measured = sorted((record for record in known if record.figures), key=lambda record: record.figures["psnr"])
    images: list[dict[str, Any]] = [{"name": record.name, **record.figures} for record in measured]
    least = threshold(own_psnr) if own_psnr else None
    return {
        "verdict": verdict([image["psnr"] for image in images], least, settings["solver"]),
        "threshold": least,
        "own_psnr": own_psnr,
        "settings": settings,
        "images": images,
        "failed": failures(known),
    }


def verdict(psnr: list[float], least: float | None, solver: str) -> str:
    """One sentence; least: PSNR in dB from which an image is represented as well as the model's own samples."""
    if not psnr or least is None:
        return "none: " + ("no image was measured" if not psnr else "no samples of the model's own were made")
    if solver == "bdia":
        return "none: bdia gives images back whatever the model is; ask the fixed-point inverter"
    good = sum(each >= least for each in psnr)
    answer = "yes" if good >= ALL * len(psnr) else "in part" if good >= MOST * len(psnr) else "no"
    return (
        f"{answer}: {good} of {len(psnr)} images come back as well as the model's own samples ({least:.1f} dB or more)"
    )


def report(content: dict[str, Any], sheet: Image.Image) -> Report:
    """The page of what `account` gave."""
    settings, images = content["settings"], content["images"]
    names = [name for name in COLUMNS if images and name in images[0]]
    listed = [[image["name"], *(shown(image[name]) for name in names)] for image in images[:LISTED]]
    return Report("Can this model represent these images?").add(
        paragraph(f"Verdict: {content['verdict']}."),
        heading(f"The images that come back worst (differences x {AMPLIFIED}, gray is none)"),
        picture(sheet, "Originals, reconstructions and differences"),
        paragraph(
            f"Every image was carried to strength {settings['strength']:.4g} (time {settings['time']:.4g}, noise to "
            f"signal {settings['sigma']:.4g}) and back in {settings['steps']} steps each way by {settings['solver']}, "
            f"and so were the model's own samples. The threshold is the {QUANTILE:.0%} quantile of their PSNR less "
            f"{ALLOWANCE:g} dB, twice its squared error."
        ),
        paragraph(
            "A yes says that the model's trajectories lead through these images and can be walked both ways. It does "
            "not say that the model would draw such images by itself: with a good inverter even noise comes back."
        ),
        table(["", "number", "least", "median", "greatest"], summaries(content)),
        plot(distribution(content), "How many images come back at which PSNR"),
        folded(
            "Images",
            paragraph(
                f"The {len(listed)} worst of {len(images)}; {len(content['failed'])} failed. All are in the JSON "
                "beside this page. Figures are of the images at the model's size, before they were rounded and "
                "written. Worst residual: the root mean square change at the end of the search for an inversion "
                "step, of the worst step. Fell back: steps whose search did not converge and took the explicit step. "
                "Calls: network calls asked for."
            ),
            table(["image", *(COLUMNS[name] for name in names)], listed),
        ),
    )


def summaries(content: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of number, least, median and greatest."""
    own, images = content["own_psnr"], content["images"]
    columns = {"PSNR of the model's own samples, dB": own}
    columns |= {f"{COLUMNS[name]} of the images": [image[name] for image in images] for name in ("psnr", "ssim")}
    for name, values in columns.items():
        if values:
            yield [name, str(len(values)), *map(shown, (min(values), median(values), max(values)))]


def distribution(content: dict[str, Any]) -> Figure:
    """Sorted PSNR of the images and of the own samples, by the share of them that lies below."""
    figure, (axes,) = drawing(7.0, 3.0)
    columns = {"images": [image["psnr"] for image in content["images"]], "own samples": content["own_psnr"]}
    for name, values in columns.items():
        if values:
            axes.ecdf(values, label=name)
    if content["threshold"] is not None:
        axes.axvline(content["threshold"], color="black", linestyle=":", label="threshold")
    axes.set(xlabel="PSNR, dB", ylabel="share below")
    if axes.lines:
        axes.legend()
    return figure


def worst_images(
    content: dict[str, Any], source: Path, out: Path, contract: ImageContract, mode: FitMode
) -> Image.Image:
    """Originals, reconstructions and differences, read from the files; what cannot be read again is left out."""
    triples: list[list[Tensor]] = []
    for image in content["images"][:SHOWN]:
        with suppress(ImageError, OSError):
            files = (source / image["name"], out / image["name"])
            before, after = (fit(read_picture(file), contract.size, contract.channels, mode) for file in files)
            triples.append([before, after, ((after - before) * AMPLIFIED).clamp(-1, 1)])
    return groups(triples, ["original", "came back", "difference"], ABREAST, max(CELL, contract.size))
