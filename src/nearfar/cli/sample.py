"""`nearfar domain sample`: new images of a domain, judged one by one, with a report beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.cli.carry_out import Outcome, carry_out, time_figures, time_lines
from nearfar.cli.console import DONE, SOME_FAILED, Lines, level_line, model_line, say, shown_progress
from nearfar.cli.options import BATCH_SIZE, DOMAIN, Marks, ModelChoice, RunChoice, argument, command, one_of, option
from nearfar.domain.recipe import Recipe
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from nearfar.domain.domain import Domain
    from nearfar.io.manifest import Progress
    from nearfar.jobs.job import Job
    from nearfar.jobs.run import Plan
    from nearfar.models.model import FrozenModel

MEASURED = 32
"""Fitted latents that `--eta auto` is measured on."""


@dataclass(frozen=True)
class Wanted:
    """Of which domain, where to, and how many."""

    file: Path = argument("FILE", DOMAIN)
    out: Path = argument("OUT", "Folder for sample-0001 and so on.")
    count: int = option(..., "How many to make; those that are dropped are not replaced.")


@dataclass(frozen=True)
class Writing:
    """How samples are written and shown."""

    format: str | None = option(None, "png; for arrays npy, tif or fits. [default: png or npy]")
    dtype: str = option("float32", "Of arrays: float32 or uint16.")
    keep_all: bool = option(False, "Write those too that the guards drop.")
    show_fitted: bool = option(False, "Show the fitted images in the report, beside what is near them.")
    report: Path | None = option(None, "The report's page, not in OUT. [default: OUT.report.html]", metavar="FILE")
    batch_size: int | None = option(None, BATCH_SIZE)


@command
def sample_domain(
    wanted: Wanted, *, recipe: Recipe, writing: Writing, marks: Marks, choice: ModelChoice, how: RunChoice
) -> None:
    """Make new images of a domain, each judged by the domain's guards.

    Copies of fitted images and captures by the model's own domain are dropped and recorded, doubtful ones written and
    listed. Sample i depends on model, domain, options, batch size and i, not on --count.
    """
    from nearfar.domain.header import read_about

    read_about(wanted.file)
    from nearfar.domain.file import load_domain, load_thumbnails
    from nearfar.jobs.estimate import estimate_job
    from nearfar.jobs.run import check_standing, run
    from nearfar.jobs.sample import default_suffix, earlier_settings, plan_samples, sample_job
    from nearfar.reports.domain import fitted_images, write_sample_report

    file, out, count = wanted.file, wanted.out, wanted.count
    page, marking = check_sample(wanted, recipe, writing.report), marks.marking(out)
    domain, model = load_domain(file), choice.load()
    domain.check(model)
    earlier = earlier_settings(out, how.resume)
    size = batch_for(model, writing.batch_size, count, earlier)
    suffix = f".{writing.format}" if writing.format else default_suffix(domain)
    recipe = settled(recipe, model, domain, size, earlier)
    kept: dict[str, Any] = {"dtype": writing.dtype, "keep_all": writing.keep_all, "batch_size": size}
    work = sample_job(model, domain, recipe, suffix=suffix, marking=marking, **kept)
    plan = plan_samples(work, count, out, how.resume)

    def make() -> Outcome:
        with shown_progress("sample") as report:
            done = run(work, out, plan, report)
        fitted = fitted_images(domain, model, load_thumbnails(file), writing.show_fitted)
        content = write_sample_report(page, work.settings, domain, out, count, fitted)
        check_standing(work, out, set(plan.names))
        return outcome(done, out, content, page)

    timed = estimate_job(model, work, plan) if how.dry_run else None
    planned = {"settings": work.settings, "todo": len(plan.todo), "kept": len(plan.kept), **time_figures(timed)}
    carry_out([*about(model, domain, work, plan), *time_lines(timed)], planned, how, make)


def check_sample(wanted: Wanted, recipe: Recipe, report: Path | None) -> Path:
    """Refuse what cannot be meant, before a model is loaded; where the report's page goes."""
    from nearfar.domain.synthesis import FAMILIES, GEOMETRIES
    from nearfar.jobs.places import page_beside
    from nearfar.jobs.sample import check_count

    check_count(wanted.count)
    if recipe.family is not None:
        one_of(recipe.family, "family", FAMILIES)
    one_of(recipe.geometry, "geometry", GEOMETRIES)
    if wanted.out.resolve() in wanted.file.resolve().parents:
        raise UsageError(f"{wanted.file} must not lie in {wanted.out}, which may be shared: keep it elsewhere")
    return page_beside(report, wanted.out)


def batch_for(model: FrozenModel, given: int | None, count: int, earlier: Mapping[str, Any]) -> int:
    """As given, as the run to be resumed began, or no larger than the samples need."""
    from torch import get_num_threads

    from nearfar.models.model import check_batch_size, default_batch_size

    if given is not None:
        return check_batch_size(given)
    share = -(-count // get_num_threads())
    return earlier.get("batch_size") or min(default_batch_size(model), 1 << (share - 1).bit_length())


def settled(recipe: Recipe, model: FrozenModel, domain: Domain, batch_size: int, earlier: Mapping[str, Any]) -> Recipe:
    """The recipe with its image read, and eta measured unless a run to be resumed has done so."""
    eta = earlier.get("eta") if recipe.eta is None else recipe.eta
    if eta is None:
        eta = measured_eta(domain.pulled(model, recipe.pull), domain, batch_size, recipe.seed)
    near = image_at(recipe.near, model, domain) if isinstance(recipe.near, Path) else None
    return replace(recipe, eta=eta, near=near)


def measured_eta(model: FrozenModel, domain: Domain, batch_size: int, seed: int) -> float:
    """The largest eta with which the pulled model keeps the domain's own latents in the domain."""
    from nearfar.domain.bandwidth import ETAS, bandwidth
    from nearfar.jobs.run import within_memory

    latents = domain.latents[:MEASURED]
    calls = -(-len(latents) // batch_size) * len(ETAS) * (domain.steps + 1)
    say("eta", f"measured on {len(latents)} fitted latents, at most {calls} network calls")
    with within_memory(batch_size):
        measured = bandwidth(model, latents, domain.guards, domain.sampling(), seed=seed, batch_size=batch_size)
    tried = ", ".join(f"{share:.0%} at {eta:g}" for eta, share in zip(measured.etas, measured.kept, strict=True))
    say("eta", f"{measured.value:g}: of the outputs stay in the domain {tried}")
    return measured.value


def image_at(path: Path, model: FrozenModel, domain: Domain) -> Tensor:
    """An image that samples are variations of, brought to the model as the fitted ones were."""
    from nearfar.io.fitting import FitMode
    from nearfar.io.stacks import read_one
    from nearfar.jobs.sample import values_of

    return read_one(path, model.image, FitMode(domain.preprocessing.get("fit", "pad")), values_of(domain))


def about(model: FrozenModel, domain: Domain, work: Job, plan: Plan) -> Lines:
    """What is about to be done, and what it costs."""
    recipe, batches = work.settings, len(work.neighbors(plan.todo)) // work.batch_size
    mixture = f" of {recipe['parents']}" if recipe["parents"] else ""
    draws = f"{recipe['family']}{mixture}, {recipe['geometry']}; pull {recipe['pull']:g}, eta {recipe['eta']:g}"
    near = [("near", f"variations of one image, by {recipe['amount']:g}")] if recipe["near"] else []
    return [
        ("model", model_line(model)),
        ("domain", f"{len(domain.latents)} images"),
        ("level", level_line(domain.sampling().level.describe(model.schedule))),
        ("draws", draws),
        *near,
        ("work", f"{len(plan.todo)} samples in {batches} batches of {work.batch_size}, {len(plan.kept)} kept"),
        ("cost", f"{domain.steps} network calls for each batch, and 1 for its judgment"),
    ]


def outcome(done: Progress, out: Path, content: dict[str, Any], page: Path) -> Outcome:
    """What came of a run; what was not written or is doubtful is said on stderr."""
    from nearfar.io.manifest import manifest_path

    rows, counts = content["samples"], content["counts"]
    for row in rows:
        if row["status"] != "done" or row["verdict"] != "keep":
            say({"done": "flagged"}.get(row["status"], row["status"]), f"{row['name']}: {row['reason']}")
    written = sum(row["status"] == "done" for row in rows)
    if 2 * counts["flagged"] > written:
        say("note", f"{counts['flagged']} of {written} are flagged: look at them before they are used")
    places = {"out": str(out), "manifest": str(manifest_path(out)), "report": str(page)}
    run = {"done": done.done, "kept": done.kept, "seconds": round(done.seconds, 3), "batches": done.batches}
    code = {"exit_code": SOME_FAILED if content["failed"] or not written else DONE}
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    lines = [
        ("samples", f"{shown}; in {done.seconds:.1f} s, {done.kept} of them kept from before"),
        *([("what", content["what"])] if content["what"] else []),
        ("results", places["out"]),
        ("record", places["manifest"]),
        ("report", places["report"]),
    ]
    return content | run | places | code, lines
