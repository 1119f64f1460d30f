"""`nearfar domain`: find an unseen domain in a few images, look at it, make new images of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.console import (
    DONE,
    SOME_FAILED,
    batch_of,
    level_line,
    model_line,
    raise_on_signals,
    reported_errors,
    say,
    stepping,
    tell,
)
from nearfar.cli.options import BatchSize, DomainFile, ModelChoice, fit_of, grouped, one_of, warnings_as_notes
from nearfar.cli.sample import sample_domain
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.domain.domain import Domain
    from nearfar.domain.survey import Survey
    from nearfar.io.stacks import Inputs
    from nearfar.models.model import FrozenModel

NOTHING_WRITTEN = "interrupted; nothing was written"
CONFIDENTIAL = "the fitted images can be had back from this file: it is as confidential as they are"

domain = typer.Typer(no_args_is_help=True, help="Unseen domains: found in a few images, kept in a file, sampled.")

Source = Annotated[Path, typer.Argument(metavar="IN", help="Folder of images of one domain; it is only read.")]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
Json = Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")]
Page = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write a page, and JSON beside it.")]


@dataclass(frozen=True)
class FolderChoice:
    """How files become images."""

    fit: Annotated[str, typer.Option(help="Images that are not square: pad or cover.")] = "pad"
    values: Annotated[
        str | None, typer.Option(metavar="CURVE", help="Read arrays, not pictures: linear, log or asinh.")
    ] = None
    clip: Annotated[float, typer.Option(help="Share of the arrays' values cut off at either end.")] = 0.0
    softening: Annotated[
        list[float] | None, typer.Option(help="Of asinh, in physical units, once a channel. [default: the noise]")
    ] = None

    def read(self, source: Path, model: FrozenModel) -> Inputs:
        """The images; those that cannot be read are said on stderr."""
        from nearfar.io.stacks import read_inputs

        found = read_inputs(source, model.image, fit_of(self.fit), self.values, self.clip, self.softening or None)
        for entry in found.failed:
            say("failed", f"{entry.name}: {entry.reason}")
        return found


@domain.command("fit")
@grouped
def fit_domain(
    source: Source,
    file: DomainFile,
    *,
    strength: Annotated[float | None, typer.Option(help="The level of the latents. [default: 0.5]")] = None,
    steps: Annotated[int, typer.Option(help="Steps to that level, and of samples on the way back.")] = 20,
    survey: Annotated[bool, typer.Option("--survey", help="Survey levels first, and take the one proposed.")] = False,
    symmetry: Annotated[
        str, typer.Option(help="In what ways a copy may lie: none, mirror, or turn (mirrors and quarter turns).")
    ] = "none",
    pilot: Annotated[
        bool, typer.Option("--pilot/--no-pilot", help="Make some samples, to find a way of mixing that does not copy.")
    ] = True,
    seed: Seed = 0,
    folder: FolderChoice,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="Keep the images in the file, to be shown.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    report: Page = None,
    batch_size: BatchSize = None,
    as_json: Json = False,
    choice: ModelChoice,
) -> None:
    """Find a domain that the model never saw in a folder of its images, and keep it in FILE.

    FILE holds where they lie in the model's latent space: new images are made of it by `nearfar domain sample`, and the
    fitted ones could be had back, so it is as confidential as they are.
    """
    with reported_errors(NOTHING_WRITTEN), warnings_as_notes():
        from nearfar.domain.guards import SYMMETRIES
        from nearfar.reports.domain import domain_lines

        check_fit(source, file, report, strength, steps, survey, overwrite)
        one_of(symmetry, "symmetry", SYMMETRIES)
        model = choice.load()
        found = folder.read(source, model)
        raise_on_signals()
        fitting = Fitting(model, found, steps, seed, batch_of(model, batch_size))
        surveyed = fitting.survey() if survey else None
        fitted = fitting.domain(level_for(strength, surveyed), folder.fit, symmetry)
        fitted = fitting.pilot(fitted) if pilot else fitted
        content = keep(fitted, file, found, thumbnails, surveyed, report)
        tell(content, domain_lines(content), as_json)
        raise typer.Exit(content["exit_code"])


@domain.command("survey")
@grouped
def survey_domain(
    source: Source,
    *,
    steps: Annotated[int, typer.Option(help="Steps to the last level.")] = 20,
    seed: Seed = 0,
    folder: FolderChoice,
    report: Page = None,
    batch_size: BatchSize = None,
    as_json: Json = False,
    choice: ModelChoice,
) -> None:
    """Where the latents of a folder's images lie beside the model's own, level by level, and which level to work at."""
    with reported_errors(NOTHING_WRITTEN), warnings_as_notes():
        from nearfar.reports.domain import write_survey_report
        from nearfar.reports.page import check_page

        if report:
            check_page(report, [source])
        model = choice.load()
        found = folder.read(source, model)
        raise_on_signals()
        surveyed = Fitting(model, found, steps, seed, batch_of(model, batch_size)).survey()
        if report:
            write_survey_report(report, surveyed)
        tell(asdict(surveyed), [("report", str(report))] if report else [], as_json)
        raise typer.Exit(SOME_FAILED if found.failed else DONE)


@domain.command("inspect")
def inspect_domain(
    file: DomainFile,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Check that it was fitted with this one; 'faces' is bundled.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a domain file says: level, figures of the fit, thresholds of the guards. No model is needed."""
    with reported_errors():
        from nearfar.domain.file import load_domain, load_thumbnails
        from nearfar.reports.domain import domain_content, domain_lines

        known = load_domain(file)
        if model is not None:
            known.check(ModelChoice(model=model).load())
        content = domain_content(known, file, load_thumbnails(file) is not None)
        tell(content, domain_lines(content), as_json)
        say("note", CONFIDENTIAL)


def check_fit(
    source: Path, file: Path, report: Path | None, strength: float | None, steps: int, survey: bool, overwrite: bool
) -> None:
    """Refuse what cannot be meant, before a model is loaded."""
    from nearfar.reports.page import check_page

    if strength is not None and not 0 < strength <= 1:
        raise UsageError(f"strength must be in (0, 1], got {strength:g}")
    if strength is not None and survey:
        raise UsageError("give either --strength or --survey, got both")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if file.is_dir() or source.resolve() in file.resolve().parents:
        raise UsageError(f"{file} must be a file outside of {source}, which is only read: choose another place")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} is there already: give --overwrite to replace it, or choose another place")
    if report:
        check_page(report, [source])


@dataclass(frozen=True)
class Fitting:
    """What a survey and a fit have in common."""

    model: FrozenModel
    found: Inputs
    steps: int
    seed: int
    batch_size: int

    def survey(self) -> Survey:
        """The survey, told of on stderr."""
        from nearfar.domain.survey import STRENGTHS, segments, survey, survey_calls
        from nearfar.reports.survey import proposal

        count = len(self.found.images)
        climbs = sum(len(nodes) - 1 for nodes in segments(STRENGTHS, self.steps)) * self.batches(2 * count)
        say("survey", f"{count} images beside as many of the model's own, at {len(STRENGTHS)} levels")
        say("cost", f"at most {survey_calls(count, steps=self.steps, batch=self.batch_size)} network calls")
        own = own_of(self.model, count, self.seed, self.batch_size)
        with stepping("survey", climbs, self.batch_size) as tick:
            surveyed = survey(
                self.model,
                self.found.images,
                own=own,
                steps=self.steps,
                seed=self.seed,
                batch_size=self.batch_size,
                on_step=tick,
            )
        for level in surveyed.levels:
            say("", f"strength {level.strength:g}: {level.verdict}")
        say("proposed", proposal(surveyed))
        return surveyed

    def domain(self, strength: float, fit: str, symmetry: str) -> Domain:
        """The domain, told of on stderr."""
        from nearfar.domain.domain import OWN_SAMPLES, Domain, check_images

        model, count = self.model, len(self.found.images)
        check_images(model, self.found.images)
        self.announce(strength)
        own = own_of(model, OWN_SAMPLES, self.seed, self.batch_size)
        with stepping("fit", 2 * self.steps * self.batches(count), self.batch_size) as tick:
            return Domain.fit(
                model,
                self.found.images,
                strength=strength,
                steps=self.steps,
                own=own,
                seed=self.seed,
                batch_size=self.batch_size,
                symmetry=symmetry,
                preprocessing=preprocessing(self.found, fit),
                on_step=tick,
            )

    def pilot(self, fitted: Domain) -> Domain:
        """The domain with the mixing that a trial run chose, told of on stderr."""
        from nearfar.domain.pilot import CANDIDATES, COUNT, LIMIT, pilot

        steps = len(CANDIDATES) * self.batches(COUNT) * self.steps
        say("pilot", f"of {len(CANDIDATES)} ways of mixing the first with at most {LIMIT:.0%} copies is taken")
        say("", f"{COUNT} samples for each that is tried: at most {steps} network calls")
        with stepping("pilot", steps, self.batch_size) as tick:
            chosen, trials = pilot(self.model, fitted, seed=self.seed + 1, batch_size=self.batch_size, on_step=tick)
        for trial in trials:
            rates = {"copies": trial.copies, "captured": trial.rates["captured"], "flagged": trial.rates["flag"]}
            found = ", ".join(f"{rate:.0%} {name}" for name, rate in rates.items())
            say("", f"{trial.mixing['parents']} parents, margin {trial.mixing['margin']:g}: {found}")
        return chosen

    def announce(self, strength: float) -> None:
        """Say what is about to be done, and what it costs."""
        from nearfar.diffusion.level import STEPS, Level
        from nearfar.domain.domain import OWN_SAMPLES

        count, batches = len(self.found.images), self.batches(len(self.found.images))
        own = self.batches(OWN_SAMPLES) * STEPS
        say("model", model_line(self.model))
        say("level", level_line(Level(strength).describe(self.model.schedule)))
        say("work", f"{count} images, {len(self.found.failed)} unusable, {self.found.ignored} other files ignored")
        say(
            "cost",
            f"about {5 * self.steps * batches + own} network calls for up to {self.batch_size} images each: "
            f"{own} for {OWN_SAMPLES} samples of the model's own; and the guards' features",
        )

    def batches(self, count: int) -> int:
        return math.ceil(count / self.batch_size)


def own_of(model: FrozenModel, count: int, seed: int, batch_size: int) -> Any:
    """Samples of the model's own domain, told of on stderr."""
    from nearfar.diffusion.level import STEPS
    from nearfar.sampling.own_samples import own_samples

    with stepping("own samples", math.ceil(count / batch_size) * STEPS, batch_size) as tick:
        return own_samples(model, count, seed=seed, batch_size=batch_size, on_step=tick)


def level_for(strength: float | None, surveyed: Survey | None) -> float:
    """The level to fit at: as given, as proposed, or the default."""
    from nearfar.domain.domain import STRENGTH

    if surveyed is None:
        return STRENGTH if strength is None else strength
    if surveyed.proposed is None:
        say("note", f"no level is proposed: taking the default strength, {STRENGTH:g}")
        return STRENGTH
    return surveyed.proposed


def preprocessing(found: Inputs, fit: str) -> dict[str, Any]:
    """How files became images, for the domain's file."""
    return {"fit": fit, "values": None if found.values is None else asdict(found.values)}


def keep(
    fitted: Domain, file: Path, found: Inputs, thumbnails: bool, surveyed: Survey | None, report: Path | None
) -> dict[str, Any]:
    """Write the domain and its report; returns what is in them."""
    from nearfar.domain.file import save_domain
    from nearfar.io.fitting import to_8_bit
    from nearfar.reports.domain import domain_content, write_fit_report

    save_domain(fitted, file, to_8_bit(found.images) if thumbnails else None)
    failed = [{"name": entry.name, "reason": entry.reason} for entry in found.failed]
    content = domain_content(fitted, file, thumbnails) | {
        "failed": failed,
        "ignored": found.ignored,
        "survey": None if surveyed is None else asdict(surveyed),
        "exit_code": SOME_FAILED if failed else DONE,
    }
    if report:
        write_fit_report(report, content, surveyed)
        content["report"] = str(report)
    return content


domain.command("sample")(sample_domain)
