"""Reports of a domain: what a fit found, and what became of samples. One page each, and JSON beside it.

Fitted images are confidential: a page shows them only if they were put into the domain's file to be shown, or if asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nearfar.domain.domain import Domain
from nearfar.domain.guards import MOSAIC, RELIABLE, SURE, apart, is_copy, turns_of
from nearfar.domain.survey import Survey
from nearfar.errors import ImageError
from nearfar.io.fitting import from_8_bit
from nearfar.io.manifest import Record
from nearfar.io.stacks import read_sample, sample_names
from nearfar.io.values import ValueTransform
from nearfar.jobs.sample import FIRST, values_of
from nearfar.models.model import FrozenModel
from nearfar.reports.charts import drawing, plot
from nearfar.reports.page import Report, answers, folded, groups, heading, paragraph, picture, records_of, shown, table
from nearfar.reports.survey import survey_sections

SHOWN, ABREAST = 64, 8
"""Samples on the sheet, and in each of its rows."""
PAIRS, PAIRS_ABREAST = 24, 4
"""Samples beside what is nearest to them, the nearest first, and how many pairs there are in a row."""
VERDICTS = {"keep": "kept", "flag": "flagged", "drop": "dropped"}

CONFIDENTIAL = "The fitted images can be had back from a domain's file: it is as confidential as they are."
MEANINGS = {
    "strength": "level of the latents",
    "time": "the same in the model's units",
    "sigma": "the same as noise to signal",
    "images": "fitted images",
    "psnr_least": "the worst reconstruction, dB",
    "psnr_median": "the median one, dB",
    "residual_most": "the largest residual of an inversion step",
    "steps_fallen_back": "inversion steps that took the explicit step",
    "calls_per_image": "network calls of the inversion, each for a batch",
    "latent_deviation": "standard deviation of a latent's numbers",
    "mean_kept": "share of the mean that is not noise of few images",
    "shrinkage": "of the covariance toward a round one: near 1, images tell little of the directions",
}


def domain_content(domain: Domain, file: Path, thumbnails: bool) -> dict[str, Any]:
    """What a domain's file says, for machines."""
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "model": domain.model,
        "model_settings": dict(domain.settings),
        "strength": domain.strength,
        "steps": domain.steps,
        "pull": domain.pull,
        "images": len(domain.latents),
        "latent_shape": list(domain.latents.shape[1:]),
        "diagnostics": dict(domain.diagnostics),
        "targets": asdict(domain.targets),
        "guards": domain.guards.numbers(),
        "preprocessing": dict(domain.preprocessing),
        "mixing": dict(domain.mixing),
        "thumbnails": thumbnails,
    }


def domain_lines(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    found, targets, guards = content["diagnostics"], content["targets"], content["guards"]
    values = content["preprocessing"].get("values")
    arrays = f"arrays through {values['curve']}, {values['low']} to {values['high']}" if values else "pictures"
    told = "judged" if guards["accuracy"] >= RELIABLE else "not judged: the model's own domain looks too much alike"
    return [
        ("domain", f"{content['file']}, {content['bytes'] / 2**20:.2f} MiB"),
        ("model", f"sha256:{content['model'][:12]}..."),
        ("level", level_text(content)),
        ("pull", f"{content['pull']:g} on the way there, and on the way back unless another is given"),
        ("images", f"{content['images']} {arrays}, fitted by {content['preprocessing'].get('fit', 'hand')}"),
        ("returns", f"PSNR {found['psnr_least']:.1f} dB at least, {found['psnr_median']:.1f} dB in the middle"),
        ("inversion", f"{found['calls_per_image']:.0f} calls a batch, residual at most {found['residual_most']:.2g}"),
        ("cloud", f"deviation {found['latent_deviation']:.3g}, shrinkage {found['shrinkage']:.3f}"),
        ("geometry", "; ".join(f"{name} {target_text(target)}" for name, target in targets.items())),
        ("mixing", ", ".join(f"{name} {value}" for name, value in content["mixing"].items()) or "3 parents: no pilot"),
        ("copies", f"nearer than {guards['latent_unit']:.3g} in latents and {guards['feature_unit']:.3g} in features"),
        ("captures", f"{told} (accuracy {guards['accuracy']:.2f})"),
        ("fitted", "shown in reports: thumbnails are inside" if content["thumbnails"] else "not shown in reports"),
    ]


def level_text(content: dict[str, Any]) -> str:
    found = content["diagnostics"]
    same = f" = time {found['time']:.4g} = sigma {found['sigma']:.4g}" if "sigma" in found else ""
    return f"strength {content['strength']:.4g}{same}, {content['steps']} steps"


def target_text(target: dict[str, float]) -> str:
    return f"{target['value']:.4g} +- {target['tolerance']:.2g}"


def write_fit_report(path: Path, content: dict[str, Any], survey: Survey | None) -> None:
    """The page of a fit: what was found, the tests' targets, the guards' thresholds, the survey if there was one."""
    rows = [[name, shown(value), MEANINGS.get(name, "")] for name, value in content["diagnostics"].items()]
    failed = [[entry["name"], entry["reason"]] for entry in content["failed"]]
    targets = [[name.replace("_", " "), target_text(target)] for name, target in content["targets"].items()]
    guards = [[name.replace("_", " "), plain(value)] for name, value in content["guards"].items()]
    report = Report("An unseen domain").add(
        answers(domain_lines(content)),
        paragraph(CONFIDENTIAL),
        folded("The fit", table(["figure", "value", "what it is"], rows)),
        folded(
            "Where its latents lie",
            paragraph(
                "Targets of the three tests, measured on each latent against others, and how far off 95 % of them are."
            ),
            table(["test", "target"], targets),
        ),
        folded(
            "Guards",
            paragraph(
                "A copy is nearer to a fitted image, in latents and in features, than 95 % of these to one another, "
                f"or than {SURE:g} of that distance in one of them."
            ),
            table(["threshold", "value"], guards),
        ),
        *([table(["not read", "reason"], failed)] if failed else []),
        *(survey_sections(survey) if survey else ()),
    )
    report.write(path, content)


def plain(value: object) -> str:
    return shown(value) if isinstance(value, float) else str(value)


def write_survey_report(path: Path, survey: Survey) -> None:
    Report("Which level to work at").add(*survey_sections(survey)).write(path, asdict(survey))


def fitted_images(domain: Domain, model: FrozenModel, thumbnails: Tensor | None, asked: bool) -> Tensor | None:
    """The fitted images in [-1, 1], if they may be shown."""
    if thumbnails is not None:
        return from_8_bit(thumbnails)
    if not asked:
        return None
    with torch.inference_mode():
        parts = [model.latent_space.decode(part.to(model.device)).cpu() for part in torch.split(domain.clean, 16)]
    return torch.cat(parts).clamp(-1, 1)


def write_sample_report(
    path: Path, settings: dict[str, Any], domain: Domain, out: Path, count: int, fitted: Tensor | None
) -> dict[str, Any]:
    """The page of samples `1` to `count`, from the record of the run; returns what is in it."""
    content = sample_content(settings, records_of(out, sample_names(count, FIRST, settings["format"])))
    sample_report(content, domain, out, fitted).write(path, content)
    return content


def sample_content(settings: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """What became of samples, for machines: each of them, and how many of what."""
    judged = [record for record in records if record.verdict]
    rows = [
        {name: getattr(record, name) for name in ("name", "status", "verdict", "reason")}
        | {"parents": list(record.parents), **record.figures}
        for record in records
    ]
    failed = [row for row in rows if row["status"] == "failed"]
    draws = sum(record.figures["attempts"] for record in judged)
    verdicts = Counter(record.verdict for record in judged)
    return {
        "settings": settings,
        "counts": {word: verdicts[name] for name, word in VERDICTS.items()} | {"failed": len(failed)},
        "reasons": dict(Counter(reason for one in judged for reason in one.reason.split("; ") if reason)),
        "what": what_they_are([record.figures["copied_area"] for record in judged]),
        "acceptance": len(judged) / draws if draws else None,
        "parents": dict(sorted(Counter(parent for record in judged for parent in record.parents).items())),
        "samples": rows,
        "failed": failed,
    }


def what_they_are(areas: Sequence[float]) -> str:
    """What samples are, in a sentence, from the copied area of each (`Judgment.copied_area`)."""
    if not areas:
        return ""
    middle, half = median_low(areas), sum(area >= MOSAIC for area in areas)
    kind = "mosaics of the fitted images" if middle >= MOSAIC else "new in most of their area"
    if 0.1 < middle < MOSAIC:
        kind = "new in part, with pieces of the fitted images"
    return (
        f"these samples are {kind}: {middle:.0%} of the area of the middle one is copied "
        f"(5% in real images), and half or more in {half} of {len(areas)}"
    )


def sample_report(content: dict[str, Any], domain: Domain, out: Path, fitted: Tensor | None) -> Report:
    settings, values = content["settings"], values_of(domain)
    written = [row for row in content["samples"] if row["status"] == "done"]
    return Report("Samples of an unseen domain").add(
        picture(sheet_of(written[:SHOWN], out, values), "Samples"),
        paragraph(
            f"Of those that were written, {SHOWN} at most: kept ones first, then flagged ones, then those to drop."
        ),
        *([paragraph(content["what"].capitalize() + ".")] if content["what"] else []),
        heading("What became of them"),
        table(["", "samples", "share"], rate_rows(content)),
        heading("Beside real images"),
        table(["", "samples", "fitted images, each left out"], beside_real(content["samples"], domain)),
        paragraph(
            f"{len(content['samples'])} samples of {len(domain.latents)} images: {settings['family']} draws, "
            f"{settings['geometry']}, pull {settings['pull']:g}, eta {settings['eta']:g}, seed {settings['seed']}."
        ),
        heading("Copies"),
        paragraph(
            "Distance to the nearest fitted image, in units of the 5 % quantile of the fitted images' distances to one "
            f"another: below 1 in latents and in features is a copy, and below {SURE:g} in one of them."
        ),
        plot(distances_figure(content["samples"], domain), "How near samples and fitted images are to fitted images"),
        paragraph(
            "Copied area: the share of a sample whose patches are nearer to one of a fitted image than 5 % of real "
            "images are, at 8, 16 or 24 of 32 pixels, whichever is the largest."
        ),
        plot(areas_figure(content["samples"]), "Copied area of each sample"),
        *nearest_sections(written, out, values, fitted),
        heading("Parents"),
        paragraph("How often each fitted image was mixed in; Gaussian draws have no parents."),
        plot(parents_figure(content["parents"], len(domain.latents)), "How often each fitted image was a parent"),
    )


def rate_rows(content: dict[str, Any]) -> Iterable[list[str]]:
    """What became of the samples, why, and how many draws passed the tests."""
    total = max(len(content["samples"]), 1)
    for name, count in {**content["counts"], **content["reasons"]}.items():
        yield [name, str(count), f"{count / total:.1%}"]
    if content["settings"]["geometry"] == "tested" and content["acceptance"] is not None:
        yield ["draws that passed the tests", "", f"{content['acceptance']:.2%}"]


def beside_real(rows: Sequence[dict[str, Any]], domain: Domain) -> Iterable[list[str]]:
    """How often the guards find copies and captures, among samples that were judged and among real images."""
    judged = [row for row in rows if "latent_copy" in row]
    if not judged:
        return
    own = among_fitted(domain)
    pairs = {
        "samples": ([row["latent_copy"] for row in judged], [row["feature_copy"] for row in judged]),
        "fitted": (own["latents"].tolist(), own["features"].tolist()),
    }
    found = {name: mean(is_copy(*one) for one in zip(*both, strict=True)) for name, both in pairs.items()}
    yield ["copies of a fitted image", f"{found['samples']:.1%}", f"{found['fitted']:.1%}"]
    capture = domain.guards.capture
    if capture.reliable:
        caught = mean(row["captured"] > 0 for row in judged)
        name = "taken for the model's own domain (beside: how often that is wrong)"
        yield [name, f"{caught:.1%}", f"{1 - capture.accuracy:.1%}"]


def mean(those: Iterable[bool]) -> float:
    found = list(those)
    return sum(found) / max(len(found), 1)


def among_fitted(domain: Domain) -> dict[str, Tensor]:
    """Copy distances of fitted images to one another."""
    guards = domain.guards
    return {
        "latents": apart(turns_of(guards.latents, guards.symmetry), guards.latents) / guards.latent_unit,
        "features": apart([guards.vectors], guards.vectors) / guards.feature_unit,
    }


def sheet_of(rows: Sequence[dict[str, Any]], out: Path, values: ValueTransform | None) -> Image.Image:
    """Samples, kept ones first; what cannot be read again is left out."""
    ordered = sorted(rows, key=lambda row: list(VERDICTS).index(row["verdict"]))
    return groups([[image] for _, image in read_again(ordered, out, values)], [""], ABREAST)


def nearest_sections(
    rows: Sequence[dict[str, Any]], out: Path, values: ValueTransform | None, fitted: Tensor | None
) -> list[Markup]:
    """Samples beside the fitted images that they are nearest to, the nearest first."""
    if fitted is None:
        return [paragraph(f"{CONFIDENTIAL} So they are not shown; --show-fitted puts them here.")]
    nearest = sorted(rows, key=lambda row: row["latent_copy"])[:PAIRS]
    pairs = [(image, fitted[int(row["nearest"])]) for row, image in read_again(nearest, out, values)]
    sheet = groups(pairs, ["sample", "nearest"], PAIRS_ABREAST)
    return [
        paragraph(
            f"This page shows fitted images. {CONFIDENTIAL} The nearest of {len(rows)} samples come first; where "
            "copies may be mirrored or turned, the fitted image is shown as it was."
        ),
        picture(sheet, "Samples beside the fitted images that they are nearest to, the nearest first"),
    ]


def read_again(
    rows: Sequence[dict[str, Any]], out: Path, values: ValueTransform | None
) -> Iterable[tuple[dict[str, Any], Tensor]]:
    """Samples as images in [-1, 1], from their files."""
    for row in rows:
        with suppress(ImageError, OSError):
            yield row, read_sample(out / row["name"], values)


def distances_figure(rows: Sequence[dict[str, Any]], domain: Domain) -> Figure:
    """Copy distances of samples against those of fitted images to one another."""
    among = among_fitted(domain)
    figure, both = drawing(9.0, 3.0, columns=2)
    for axes, (name, fitted) in zip(both, among.items(), strict=True):
        found = [row[key] for row in rows if (key := f"{name[:-1]}_copy") in row]
        edges = torch.linspace(0, max([*found, *fitted.tolist(), 1.0]), 30).tolist()
        axes.hist(fitted.tolist(), edges, density=True, alpha=0.5, label="fitted images")
        if found:
            axes.hist(found, edges, density=True, alpha=0.5, label="samples")
        axes.axvline(1, color="black", linestyle=":", label="threshold")
        axes.set(xlabel=f"distance in {name}", ylabel="density")
    figure.axes[0].legend()
    return figure


def areas_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    figure, (axes,) = drawing(9.0, 2.0)
    axes.hist([row["copied_area"] for row in rows if "copied_area" in row], 20, range=(0, 1))
    axes.axvline(MOSAIC, color="black", linestyle=":")
    axes.set(xlabel="copied area", ylabel="samples")
    return figure


def parents_figure(parents: dict[int, int], images: int) -> Figure:
    figure, (axes,) = drawing(9.0, 2.0)
    axes.bar(range(images), [parents.get(number, 0) for number in range(images)])
    axes.set(xlabel="fitted image", ylabel="samples")
    return figure
