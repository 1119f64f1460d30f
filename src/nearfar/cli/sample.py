"""`nearfar domain sample`: new images of a domain, judged one by one, with a report beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.console import DONE, SOME_FAILED, level_line, model_line, raise_on_signals, reported_errors, say, tell
from nearfar.cli.options import BatchSize, DomainFile, ModelChoice, RunChoice, grouped, one_of, warnings_as_notes
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from nearfar.domain.domain import Domain
    from nearfar.io.progress import Progress
    from nearfar.jobs.job import Job
    from nearfar.jobs.run import Plan
    from nearfar.jobs.sample import Recipe
    from nearfar.models.model import FrozenModel

MEASURED = 32
"""Fitted latents that `--eta auto` is measured on."""


@dataclass(frozen=True)
class SampleChoice:
    """What new images are made of."""

    family: Annotated[
        str,
        typer.Option(
            help="Mixtures of latents: mosaic, parents, sphere. "
            "Gaussians: scalar, diagonal, spectral, structured, shrinkage."
        ),
    ] = "mosaic"
    parents: Annotated[int | None, typer.Option(help="Fitted images in a mixture. [default: the domain's own]")] = None
    geometry: Annotated[
        str, typer.Option(help="free, projected onto the domain's shell, or tested: drawn until it lies there.")
    ] = "free"
    pull: Annotated[
        float | None,
        typer.Option(
            help="Weight of the density ratio, from the model's own domain to this one; 0 to 1. "
            "[default: what the domain was fitted with]"
        ),
    ] = None
    eta: Annotated[
        str, typer.Option(help="Fresh noise on the way down, 0 to 1, or auto: the most that stays in the domain.")
    ] = "0"
    near: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Make variations of this image.")] = None
    amount: Annotated[
        float | None, typer.Option(help="How far from it: 0 gives it back, 1 forgets it. [default: 0.5]")
    ] = None
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0

    def check(self) -> None:
        """Refuse what cannot be meant, before a model is loaded."""
        from nearfar.domain.draws import FAMILIES, GEOMETRIES

        one_of(self.family, "family", FAMILIES)
        one_of(self.geometry, "geometry", GEOMETRIES)
        if self.amount is not None and self.near is None:
            raise UsageError("--amount is how far variations go: give --near IMAGE too")
        for name, value in (("pull", self.pull or 0.0), ("amount", self.amount or 0.0), ("eta", self.eta_given or 0.0)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be in [0, 1], got {value:g}")

    def recipe(self, model: FrozenModel, domain: Domain, batch_size: int, earlier: Mapping[str, Any]) -> Recipe:
        """What samples are made of, the image read, and eta measured unless a run to be resumed has done so."""
        from nearfar.jobs.sample import AMOUNT, Recipe

        eta = earlier.get("eta") if self.eta_given is None else self.eta_given
        return Recipe(
            family=self.family,
            geometry=self.geometry,
            pull=self.pull,
            eta=measured_eta(domain.pulled(model, self.pull), domain, batch_size, self.seed) if eta is None else eta,
            seed=self.seed,
            parents=self.parents,
            near=None if self.near is None else image_at(self.near, model, domain),
            amount=AMOUNT if self.amount is None else self.amount,
        )

    @property
    def eta_given(self) -> float | None:
        """Eta, none if it shall be measured."""
        if self.eta == "auto":
            return None
        try:
            return float(self.eta)
        except ValueError:
            raise UsageError(f"eta must be in [0, 1] or auto, got {self.eta!r}") from None


@grouped
def sample_domain(
    file: DomainFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for sample-0001 and so on.")],
    *,
    count: Annotated[int, typer.Option(help="How many to make; those that are dropped are not replaced.")],
    how: SampleChoice,
    format: Annotated[str | None, typer.Option(help="png; for arrays npy, tif or fits. [default: png or npy]")] = None,
    dtype: Annotated[str, typer.Option(help="Of arrays: float32 or uint16.")] = "float32",
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Write those too that the guards drop.")] = False,
    show_fitted: Annotated[
        bool, typer.Option("--show-fitted", help="Show the fitted images in the report, beside what is near them.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The report's page, not in OUT. [default: OUT.report.html]")
    ] = None,
    batch_size: BatchSize = None,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Make new images of a domain, each judged by the domain's guards.

    Copies of fitted images and captures by the model's own domain are dropped and recorded, doubtful ones written and
    listed. Sample i depends on model, domain, options, batch size and i, not on --count.
    """
    with reported_errors(), warnings_as_notes():
        from nearfar.cli.console import shown_progress
        from nearfar.domain.file import load_domain, load_thumbnails
        from nearfar.jobs.run import run
        from nearfar.jobs.sample import default_suffix, earlier_settings, plan_samples, sample_job
        from nearfar.reports.domain import fitted_images, write_sample_report

        page = check_sample(file, out, count, how, report, progress.resume)
        known, model = load_domain(file), choice.load()
        known.check(model)
        earlier = earlier_settings(out, progress.resume)
        size = batch_for(model, batch_size, count, earlier)
        suffix = f".{format}" if format else default_suffix(known)
        recipe = how.recipe(model, known, size, earlier)
        work = sample_job(model, known, recipe, suffix=suffix, dtype=dtype, keep_all=keep_all, batch_size=size)
        plan = plan_samples(work, count, out, progress.resume)
        announce(model, known, work, plan)
        if progress.dry_run:
            planned = {"settings": work.settings, "todo": len(plan.todo), "kept": len(plan.kept)}
            tell(planned, [], progress.as_json)
            return
        raise_on_signals()
        with shown_progress("sample") as shown:
            done = run(work, out, plan, shown)
        fitted = fitted_images(known, model, load_thumbnails(file), show_fitted)
        content = write_sample_report(page, work.settings, known, out, count, fitted)
        finish(done, out, content, page, progress.as_json)


def check_sample(file: Path, out: Path, count: int, how: SampleChoice, report: Path | None, resume: bool) -> Path:
    """Refuse what cannot be meant, before a model is loaded; where the report's page goes."""
    from nearfar.jobs.run import check_out
    from nearfar.jobs.sample import check_count
    from nearfar.reports.page import page_beside

    check_count(count)
    how.check()
    check_out(out, resume)
    if out.resolve() in file.resolve().parents:
        raise UsageError(f"{file} must not lie in {out}, which may be shared: keep it elsewhere")
    return page_beside(report, out)


def batch_for(model: FrozenModel, given: int | None, count: int, earlier: Mapping[str, Any]) -> int:
    """As given, as the run to be resumed began, or no larger than the samples need."""
    from torch import get_num_threads

    from nearfar.models.model import check_batch_size, default_batch_size

    if given is not None:
        return check_batch_size(given)
    share = -(-count // get_num_threads())
    return earlier.get("batch_size") or min(default_batch_size(model), 1 << (share - 1).bit_length())


def measured_eta(model: FrozenModel, domain: Domain, batch_size: int, seed: int) -> float:
    """The largest eta with which the pulled model keeps the domain's own latents in the domain."""
    from nearfar.domain.bandwidth import ETAS, bandwidth
    from nearfar.jobs.run import within_memory

    some = domain.latents[:MEASURED]
    calls = -(-len(some) // batch_size) * len(ETAS) * (domain.steps + 1)
    say("eta", f"measured on {len(some)} fitted latents, at most {calls} network calls")
    with within_memory(batch_size):
        found = bandwidth(model, some, domain.guards, domain.sampling(), seed=seed, batch_size=batch_size)
    tried = ", ".join(f"{share:.0%} at {eta:g}" for eta, share in zip(found.etas, found.kept, strict=True))
    say("eta", f"{found.value:g}: of the outputs stay in the domain {tried}")
    return found.value


def image_at(path: Path, model: FrozenModel, domain: Domain) -> Tensor:
    """An image that samples are variations of, brought to the model as the fitted ones were."""
    from nearfar.io.fitting import FitMode
    from nearfar.io.stacks import read_one
    from nearfar.jobs.sample import values_of

    return read_one(path, model.image, FitMode(domain.preprocessing.get("fit", "pad")), values_of(domain))


def announce(model: FrozenModel, domain: Domain, work: Job, plan: Plan) -> None:
    """Say what is about to be done, and what it costs."""
    how, batches = work.settings, len(work.neighbors(plan.todo)) // work.batch_size
    mixture = f" of {how['parents']}" if how["parents"] else ""
    say("model", model_line(model))
    say("domain", f"{len(domain.latents)} images")
    say("level", level_line(domain.sampling().level.describe(model.schedule)))
    say("draws", f"{how['family']}{mixture}, {how['geometry']}; pull {how['pull']:g}, eta {how['eta']:g}")
    if how["near"]:
        say("near", f"variations of one image, by {how['amount']:g}")
    say("work", f"{len(plan.todo)} samples in {batches} batches of {work.batch_size}, {len(plan.kept)} kept")
    say("cost", f"{domain.steps} network calls for each batch, and 1 for its judgment")


def finish(done: Progress, out: Path, content: dict[str, Any], page: Path, as_json: bool) -> None:
    """Show what came of a run, and end with its exit code."""
    from nearfar.io.manifest import manifest_path

    rows = content["samples"]
    for row in rows:
        if row["status"] != "done" or row["verdict"] != "keep":
            say({"done": "flagged"}.get(row["status"], row["status"]), f"{row['name']}: {row['reason']}")
    written = sum(row["status"] == "done" for row in rows)
    if 2 * content["counts"]["flagged"] > written:
        say("note", f"{content['counts']['flagged']} of {written} are flagged: look at them before they are used")
    code = SOME_FAILED if content["failed"] or not written else DONE
    places = {"out": str(out), "manifest": str(manifest_path(out)), "report": str(page), "exit_code": code}
    run = {"done": done.done, "kept": done.kept, "seconds": round(done.seconds, 3), "batches": done.batches}
    counts = ", ".join(f"{content['counts'][name]} {name}" for name in content["counts"])
    lines = [
        ("samples", f"{counts}; in {done.seconds:.1f} s, {done.kept} of them kept from before"),
        ("results", str(out)),
        ("record", str(manifest_path(out))),
        ("report", str(page)),
    ]
    tell(content | run | places, lines, as_json)
    raise typer.Exit(code)
