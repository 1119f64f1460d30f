"""`nearfar domain`: find an unseen domain in a few images, look at it, make new images of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nearfar.cli.carry_out import Outcome, carry_out
from nearfar.cli.console import (
    DONE,
    NOTHING_WRITTEN,
    SOME_FAILED,
    batch_of,
    level_line,
    model_line,
    say,
    say_failed,
    stepping,
    tell,
)
from nearfar.cli.help import Grouped
from nearfar.cli.options import (
    BATCH_SIZE,
    DOMAIN,
    FIT,
    SEED,
    Fit,
    ModelChoice,
    RunChoice,
    argument,
    check_new_file,
    command,
    command_saying,
    one_of,
    option,
)
from nearfar.cli.sample import sample_domain
from nearfar.domain.recipe import PRESET_NAMES
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.domain.domain import Domain
    from nearfar.domain.survey import Survey
    from nearfar.io.stacks import Inputs
    from nearfar.models.model import FrozenModel

CONFIDENTIAL = "the fitted images can be had back from this file: it is as confidential as they are"
SOURCE = "Folder of images of one domain; it is only read."
Symmetry = Literal["none", "mirror", "turn"]
JSON = "Print what came of it as JSON."

domain = typer.Typer(no_args_is_help=True, help="Unseen domains: found in a few images, kept in a file, sampled.")


@dataclass(frozen=True)
class Source:
    """What is surveyed."""

    source: Path = argument("IN", SOURCE)


@dataclass(frozen=True)
class Places(Source):
    """What is fitted, and where the domain goes."""

    file: Path = argument("FILE", DOMAIN)


@dataclass(frozen=True)
class Fitted:
    """At which level, in how many steps, and what a copy is."""

    strength: float | None = option(None, "The level of the latents. [default: 0.5]")
    steps: int = option(20, "Steps to that level, and of samples on the way back.")
    survey: bool = option(False, "Survey levels first, and take the one proposed.")
    symmetry: Symmetry = option(
        "none", "In what ways a copy may lie: none, mirror, or turn (mirrors and quarter turns).", metavar="NAME"
    )
    pilot: bool = option(
        True, "Make some samples, to find a way of mixing that does not copy.", option="pilot/--no-pilot"
    )
    preset: str | None = option(
        None, "Follow the paper as published: paper-v1 or paper-v2, with its own level, steps and draws."
    )
    seed: int = option(0, SEED)


@dataclass(frozen=True)
class Reading:
    """How files become images."""

    fit: Fit = option("pad", FIT)
    values: str | None = option(
        None, "Read arrays, not pictures: linear, log, log1p, asinh; or model, in its own units.", metavar="CURVE"
    )
    clip: float = option(0.0, "Share of the arrays' values cut off at either end.")
    softening: list[float] | None = option(None, "Of asinh, in physical units, once a channel. [default: the noise]")

    def read(self, source: Path, model: FrozenModel) -> Inputs:
        """The images; those that cannot be read are said on stderr."""
        from nearfar.io.fitting import FitMode
        from nearfar.io.stacks import read_inputs

        inputs = read_inputs(source, model.image, FitMode(self.fit), self.values, self.clip, self.softening or None)
        say_failed(inputs.failed)
        return inputs


@dataclass(frozen=True)
class Telling:
    """Where the outcome is shown."""

    report: Path | None = option(None, "Write a page, and JSON beside it.", metavar="FILE")
    batch_size: int | None = option(None, BATCH_SIZE)
    as_json: bool = option(False, JSON, option="json")


@dataclass(frozen=True)
class Keeping:
    """What is kept of the fitted images, and where."""

    thumbnails: bool = option(False, "Keep the images in the file, to be shown.")
    overwrite: bool = option(False, "Replace FILE if it is there.")


@domain.command("fit", cls=Grouped)
@command_saying(NOTHING_WRITTEN)
def fit_domain(
    places: Places, *, level: Fitted, reading: Reading, keeping: Keeping, telling: Telling, choice: ModelChoice
) -> None:
    """Find a domain that the model never saw in a folder of its images, and keep it in FILE.

    FILE holds where they lie in the model's latent space: new images are made of it by `nearfar domain sample`, and the
    fitted ones could be had back, so it is as confidential as they are.
    """
    check_fit(places, level, keeping.overwrite, telling.report)
    from nearfar.reports.domain import domain_lines

    model = choice.load()
    inputs = reading.read(places.source, model)

    def work() -> Outcome:
        fitting = Fitting(model, inputs, level.steps, level.seed, batch_of(model, telling.batch_size))
        surveyed = fitting.survey() if level.survey else None
        fitted = fitting.domain(level_for(level.strength, surveyed), reading.fit, level.symmetry, level.preset or "")
        fitted = fitting.pilot(fitted) if level.pilot and not level.preset else fitted
        content = keep(fitted, places.file, inputs, keeping.thumbnails, surveyed, telling.report)
        return content, domain_lines(content)

    carry_out([], {}, RunChoice(as_json=telling.as_json), work)


@domain.command("survey", cls=Grouped)
@command_saying(NOTHING_WRITTEN)
def survey_domain(
    places: Source,
    *,
    steps: Annotated[int, typer.Option(help="Steps to the last level.")] = 20,
    seed: Annotated[int, typer.Option(help=SEED)] = 0,
    reading: Reading,
    telling: Telling,
    choice: ModelChoice,
) -> None:
    """Where the latents of a folder's images lie beside the model's own, level by level, and which level to work at."""
    report = telling.report
    if report:
        from nearfar.jobs.places import check_page

        check_page(report, [places.source])
    from nearfar.reports.domain import write_survey_report

    model = choice.load()
    inputs = reading.read(places.source, model)

    def work() -> Outcome:
        surveyed = Fitting(model, inputs, steps, seed, batch_of(model, telling.batch_size)).survey()
        if report:
            write_survey_report(report, surveyed)
        return asdict(surveyed), [("report", str(report))] if report else []

    code = SOME_FAILED if inputs.failed else DONE
    carry_out([], {}, RunChoice(as_json=telling.as_json), work, code)


@domain.command("inspect", cls=Grouped)
@command
def inspect_domain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=DOMAIN)],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Check that it was fitted with this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """What a domain file says: level, figures of the fit, thresholds of the guards. No model is needed."""
    from nearfar.domain.header import read_about

    read_about(file)
    from nearfar.domain.file import load_domain, load_thumbnails
    from nearfar.reports.domain import domain_content, domain_lines

    fitted = load_domain(file)
    if model is not None:
        fitted.check(ModelChoice(model=model).load())
    content = domain_content(fitted, file, load_thumbnails(file) is not None)
    tell(content, domain_lines(content), as_json)
    say("note", CONFIDENTIAL)


def check_fit(places: Places, level: Fitted, overwrite: bool, report: Path | None) -> None:
    """Refuse what cannot be meant, before anything is loaded."""
    if level.strength is not None and not 0 < level.strength <= 1:
        raise UsageError(f"strength must be in (0, 1], got {level.strength:g}")
    if level.strength is not None and level.survey:
        raise UsageError("give either --strength or --survey, got both")
    if level.preset is not None:
        one_of(level.preset, "preset", PRESET_NAMES)
        if level.strength is not None or level.survey:
            raise UsageError(f"{level.preset} has a level of its own: leave --strength and --survey out")
    if level.steps < 1:
        raise UsageError(f"steps must be at least 1, got {level.steps}")
    check_new_file(places.file, places.source, overwrite)
    if report:
        from nearfar.jobs.places import check_page

        check_page(report, [places.source])


@dataclass(frozen=True)
class Fitting:
    """What a survey and a fit have in common."""

    model: FrozenModel
    inputs: Inputs
    steps: int
    seed: int
    batch_size: int

    def survey(self) -> Survey:
        """The survey, told of on stderr."""
        from nearfar.domain.survey import STRENGTHS, own_steps, segments, survey, survey_calls
        from nearfar.reports.survey import proposal

        count = len(self.inputs.images)
        climbs = sum(len(nodes) - 1 for nodes in segments(STRENGTHS, self.steps)) * self.batches(count)
        own = own_steps(self.model, count, STRENGTHS, self.steps, self.seed, self.batch_size)
        say("survey", f"{count} images beside as many of the model's own, at {len(STRENGTHS)} levels")
        say("cost", f"at most {survey_calls(count, steps=self.steps, batch=self.batch_size)} network calls")
        with stepping("survey", climbs + own, self.batch_size) as tick:
            surveyed = survey(
                self.model,
                self.inputs.images,
                steps=self.steps,
                seed=self.seed,
                batch_size=self.batch_size,
                on_step=tick,
            )
        for level in surveyed.levels:
            say("", f"strength {level.strength:g}: {level.verdict}")
        say("proposed", proposal(surveyed))
        return surveyed

    def domain(self, strength: float, fit: str, symmetry: str, preset: str = "") -> Domain:
        """The domain, told of on stderr."""
        from nearfar.domain.domain import OWN_SAMPLES, Domain, check_images

        model, count = self.model, len(self.inputs.images)
        check_images(model, self.inputs.images)
        self.announce(strength)
        own = own_of(model, OWN_SAMPLES, self.seed, self.batch_size)
        with stepping("fit", 2 * self.steps * self.batches(count), self.batch_size) as tick:
            return Domain.fit(
                model,
                self.inputs.images,
                strength=strength,
                steps=self.steps,
                own=own,
                seed=self.seed,
                batch_size=self.batch_size,
                symmetry=symmetry,
                preprocessing=preprocessing(self.inputs, fit),
                preset=preset,
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
        from nearfar.diffusion.schedule import Level
        from nearfar.domain.domain import OWN_SAMPLES
        from nearfar.sampling.own_domain import own_calls

        count, batches = len(self.inputs.images), self.batches(len(self.inputs.images))
        own = own_calls(self.model, OWN_SAMPLES, seed=self.seed, batch_size=self.batch_size)
        say("model", model_line(self.model))
        say("level", level_line(Level(strength).describe(self.model.schedule)))
        say("work", f"{count} images, {len(self.inputs.failed)} unusable, {self.inputs.ignored} other files ignored")
        say(
            "cost",
            f"about {5 * self.steps * batches + own} network calls for up to {self.batch_size} images each: "
            f"{own} for {OWN_SAMPLES} samples of the model's own; and the guards' features",
        )

    def batches(self, count: int) -> int:
        return math.ceil(count / self.batch_size)


def own_of(model: FrozenModel, count: int, seed: int, batch_size: int) -> Any:
    """Samples of the model's own domain, told of on stderr."""
    from nearfar.sampling.own_domain import own_calls, own_domain

    with stepping("own samples", own_calls(model, count, seed=seed, batch_size=batch_size), batch_size) as tick:
        return own_domain(model, count, seed=seed, batch_size=batch_size, on_step=tick)


def level_for(strength: float | None, surveyed: Survey | None) -> float:
    """The level to fit at: as given, as proposed, or the default."""
    from nearfar.domain.domain import STRENGTH

    if surveyed is None:
        return STRENGTH if strength is None else strength
    if surveyed.proposed is None:
        say("note", f"no level is proposed: taking the default strength, {STRENGTH:g}")
        return STRENGTH
    return surveyed.proposed


def preprocessing(inputs: Inputs, fit: str) -> dict[str, Any]:
    """How files became images, for the domain's file."""
    return {"fit": fit, "values": None if inputs.values is None else asdict(inputs.values)}


def keep(
    fitted: Domain, file: Path, inputs: Inputs, thumbnails: bool, surveyed: Survey | None, report: Path | None
) -> dict[str, Any]:
    """Write the domain and its report; returns what is in them."""
    from nearfar.domain.file import save_domain
    from nearfar.io.fitting import to_8_bit
    from nearfar.reports.domain import domain_content, write_fit_report

    save_domain(fitted, file, to_8_bit(inputs.images) if thumbnails else None)
    failed = [{"name": entry.name, "reason": entry.reason} for entry in inputs.failed]
    content = domain_content(fitted, file, thumbnails) | {
        "failed": failed,
        "ignored": inputs.ignored,
        "survey": None if surveyed is None else asdict(surveyed),
        "exit_code": SOME_FAILED if failed else DONE,
    }
    if report:
        write_fit_report(report, content, surveyed)
        content["report"] = str(report)
    return content


domain.command("sample", cls=Grouped)(sample_domain)
