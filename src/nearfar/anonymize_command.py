"""`nearfar anonymize`: every image of a folder replaced by a new one near it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.calibration_choice import CalibrationChoice
from nearfar.carry_out import KeepMetadata, Out, Source, carry_out
from nearfar.errors import UsageError
from nearfar.exits import reported_errors
from nearfar.options import ModelChoice, RunChoice, TrajectoryChoice, grouped
from nearfar.region_choice import RegionChoice

if TYPE_CHECKING:
    from nearfar.noise import SecretKey


@grouped
def anonymize(
    source: Source,
    out: Out,
    *,
    how: TrajectoryChoice,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    key_file: Annotated[
        Path | None, typer.Option(help="Keep the secret key here (made if absent), to make the same images again.")
    ] = None,
    keep_metadata: KeepMetadata = False,
    found: CalibrationChoice,
    parts: RegionChoice,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Replace every image by a new one near it (local sampling).

    How near is set by --strength (0.35 unless given), a noise level that does not depend on --steps, or found by
    nearfar calibrate (docs/calibrate.md). What this protects, and what it does not: docs/privacy.md. With --regions
    only faces or boxes are replaced: docs/regions.md.
    """
    with reported_errors():
        from nearfar.plan import check_places
        from nearfar.region_job import region_job
        from nearfar.solver import SOLVERS

        options = how.options(0.35, solver, SOLVERS)
        calibration = found.read(how, parts.regions)
        check_places(source, out, progress.resume)
        key = open_key(key_file, source, out)
        search = parts.search(source, how.fit)
        model = choice.load()
        job = found.job(model, calibration, key=key, keep_metadata=keep_metadata, **options)
        job = region_job(job, search, keep_metadata) if search else job
        report = parts.after(job, search, source, out)
        more, keep = [*found.lines(calibration), *parts.lines()], lambda: keep_key(key, key_file)
        carry_out(job, model, source, out, progress, before=keep, say_more=lambda _: more, after=report)


def open_key(path: Path | None, source: Path, out: Path) -> SecretKey | None:
    """The key in a file, a new one if the file is absent. It must lie neither with the originals nor the results."""
    from nearfar.manifest import manifest_path
    from nearfar.noise import SecretKey

    if path is None:
        return None
    if path.resolve() == manifest_path(out):
        raise UsageError(f"{path} is where the record of this run goes: keep the key elsewhere")
    for folder in (source.resolve(), out.resolve()):
        if folder in path.resolve().parents:
            raise UsageError(f"key file {path} must not lie in {folder}, which may be shared: keep it elsewhere")
    return SecretKey.load(path) if path.exists() else SecretKey.random()


def keep_key(key: SecretKey | None, path: Path | None) -> None:
    """Write a new key to its file, before anything is made with it."""
    if key and path and not path.exists():
        try:
            key.save(path)
        except OSError as error:
            raise UsageError(f"cannot write key file {path} ({error.strerror}): choose another place") from None
