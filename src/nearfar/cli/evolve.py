"""`nearfar evolve`: a synthetic data set that resembles private images, under a formal guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nearfar.cli.carry_out import Outcome, carry_out, time_figures, time_lines
from nearfar.cli.console import DONE, SOME_FAILED, Lines, Stages, model_line, say, say_failed, shown_progress
from nearfar.cli.options import BATCH_SIZE, SEED, STEPS, ModelChoice, RunChoice, argument, command, option
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from nearfar.evolution.population import Evolution
    from nearfar.jobs.evolve import Evolved, Evolving


@dataclass(frozen=True)
class Promise:
    """Of which images, where to, how many, and what is promised."""

    source: Path = argument("PRIVATE", "Folder of private images; each is read once a run, and only votes.")
    out: Path = argument("OUT", "Folder for sample-0001 and so on, a folder for each class.")
    count: int = option(..., "Images to make, in all.")
    epsilon: float = option(..., "The guarantee: 1 is strong, 10 is weak, inf promises nothing.")
    delta: float = option(1e-5, "Chance that it fails; less than one over the images.")
    by: Literal["images", "classes", "persons"] = option(
        "images", "What the folders in PRIVATE are: nothing, classes, or persons, who are then protected whole."
    )


@dataclass(frozen=True)
class Rounds:
    """How the candidates evolve."""

    rounds: int = option(3, "Rounds of votes, which share the budget.")
    candidates: int = option(128, "Of each class, in each round: few for few private images.")
    looks: int = option(0, "Variations of a candidate that it is judged by; 0: by itself.")
    first: float = option(0.4, "Strength of the first variations.")
    last: float = option(0.2, "Strength of the last ones.")
    threshold: float = option(0.0, "Votes below so many deviations of the noise count nothing.")
    features: str = option("model", "Network that votes: model, efficientnet, pixels or a folder of transformers.")
    steps: int = option(14, STEPS)
    gray: bool = option(False, "Make all images gray: no vote is needed for what everybody knows.")
    seed: int = option(0, SEED)
    batch_size: int | None = option(None, BATCH_SIZE)
    report: Path | None = option(None, "The report's page, not in OUT. [default: OUT.report.html]", metavar="FILE")


@dataclass(frozen=True)
class Attack:
    """Whether and how the result is attacked."""

    attack: Path | None = option(
        None, "Attack the result; a page with private images, for you alone, not in OUT.", metavar="FILE"
    )
    held_out: Path | None = option(
        None, "Images like the private ones that are not among them, for the attack.", metavar="DIR"
    )


@command
def evolve(promise: Promise, *, rounds: Rounds, attack: Attack, choice: ModelChoice, how: RunChoice) -> None:
    """Make a synthetic data set that resembles private images, under a formal guarantee.

    Candidates that the model makes are voted for by the private images, in rounds; only votes with noise leave these,
    so that the outputs are (epsilon, delta) differentially private. What that means: documentation, Evolve.
    """
    from nearfar.evolution.population import Evolution
    from nearfar.evolution.votes import check_noise, list_voters
    from nearfar.jobs.evolve import carry_out as evolved
    from nearfar.jobs.evolve import evolving
    from nearfar.jobs.places import page_beside
    from nearfar.reports.evolve import write_evolution_report

    own = {name: value for name, value in vars(rounds).items() if name not in ("features", "batch_size", "report")}
    evolution = Evolution(promise.count, promise.epsilon, promise.delta, **own)
    check_noise(evolution.deviation)
    list_voters(promise.source, promise.by)
    page = page_beside(rounds.report, promise.out, promise.source)
    check_attack(attack, promise, page)
    options: dict[str, Any] = {"grouping": promise.by, "features": rounds.features, "batch_size": rounds.batch_size}
    work = evolving(choice.load(), promise.source, promise.out, evolution, **options)

    def make() -> Outcome:
        with Stages() as watch, shown_progress("evolve") as report:
            done = evolved(work, how.resume, watch, report)
        content = write_evolution_report(page, work, done)
        return outcome(work, done, content | attacked(work, attack), page)

    timed = work.estimate() if how.dry_run else None
    planned = {"settings": work.job.settings, **time_figures(timed)}
    carry_out([*about(work), *time_lines(timed)], planned, how, make)


def check_attack(attack: Attack, promise: Promise, page: Path) -> None:
    """Refuse a page of private images that would lie among others, or replace the public one."""
    from nearfar.jobs.places import check_page

    if attack.attack is None and attack.held_out is not None:
        raise UsageError("held-out images are for an attack: give --attack FILE, too")
    if attack.attack is not None:
        check_page(attack.attack, [promise.source, promise.out], [page, page.with_suffix(".json")])
    if attack.held_out is not None and not attack.held_out.is_dir():
        raise UsageError(f"{attack.held_out} must be a folder of images, got nothing there")


def attacked(work: Evolving, attack: Attack) -> dict[str, Any]:
    """What an attack on the outputs found, where one is asked for; said on stderr."""
    from nearfar.audit.synthetic import attack_synthetic
    from nearfar.reports.evolve import interval, write_attack_report

    if attack.attack is None:
        return {}
    with Stages() as watch:
        size = work.model.image.size
        found = attack_synthetic(work.out, work.private, work.network, held_out=attack.held_out, size=size, watch=watch)
    for figure in found.figures:
        say("attack", f"{figure.name}: {interval(figure)}")
    content = write_attack_report(attack.attack, work, found)
    return {"attack": content["figures"], "attack_report": str(attack.attack)}


def about(work: Evolving) -> Lines:
    """What is about to be done, what it promises, and what it costs."""
    evolution, classes = work.evolution, len(work.classes)
    one = "person" if work.grouping == "persons" else "image"
    shared = f"{classes} classes, " if classes > 1 else ""
    return [
        ("model", model_line(work.model)),
        ("promise", promise_line(evolution, one)),
        ("rounds", f"{evolution.rounds}, {shared}{evolution.candidates} candidates each, votes by {work.network.name}"),
        ("cost", f"{evolution.calls(classes)} network calls for single images, in batches of {work.job.batch_size}"),
    ]


def promise_line(evolution: Evolution, one: str) -> str:
    """The guarantee in a sentence."""
    if evolution.epsilon == inf:
        return "nothing: votes without noise"
    return (
        f"epsilon {evolution.epsilon:g} at delta {evolution.delta:g} for each {one}: noise of deviation "
        f"{evolution.deviation:g} on each vote"
    )


def outcome(work: Evolving, done: Evolved, content: dict[str, Any], page: Path) -> Outcome:
    """What came of a run. What is said of the private folder is for this terminal alone, and in no file."""
    from nearfar.evolution.ledger import rounds_folder
    from nearfar.io.manifest import manifest_path

    for name, voters in done.scant.items():
        of = f" of {name}" if name else ""
        enough = work.evolution.needed()
        say("note", f"{voters} voters{of} say little under this noise: {enough} would, or fewer candidates")
    say_failed([*done.progress.failed, *done.failed])
    places = {"out": str(work.out), "manifest": str(manifest_path(work.out)), "report": str(page)}
    places["rounds"] = str(rounds_folder(work.out))
    code = SOME_FAILED if done.progress.failed or done.failed else DONE
    lines = [
        ("made", f"{done.progress.done} images, {done.progress.kept} kept from before"),
        ("results", places["out"]),
        ("votes", f"{places['rounds']}: under the same guarantee; the private images are not in it"),
        ("report", places["report"]),
    ]
    return content | places | {"done": done.progress.done, "kept": done.progress.kept, "exit_code": code}, lines
