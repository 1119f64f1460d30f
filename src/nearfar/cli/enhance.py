"""`nearfar enhance`: every image of a folder enlarged, with detail that a model finds likely."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.cli.carry_out import Settled
from nearfar.cli.options import (
    KEEP_METADATA,
    SEED,
    Folders,
    Marks,
    ModelChoice,
    RunChoice,
    SolverName,
    command,
    job_options,
    option,
    solver_option,
)


@dataclass(frozen=True)
class Enlarging:
    """How images are enlarged."""

    scale: int = option(4, "How many times as high and as wide; 2 to 8.")
    strength: float | None = option(None, "Share of the way to pure noise, above 0 to 1. [default: from the scale]")
    cascade: int = option(1, "How often the enlargement is noised and denoised.")
    no_consistency: bool = option(False, "As in the paper: results need not shrink to the images again.")
    steps: int = option(20, "Solver steps for each pass.")
    solver: SolverName = solver_option("dpm++sde", SolverName)
    seed: int = option(0, SEED)
    batch_size: int | None = option(None, "Tiles in one network call. [default: automatic]")
    keep_metadata: bool = option(False, KEEP_METADATA)


@command
def enhance(folders: Folders, *, enlarging: Enlarging, marks: Marks, choice: ModelChoice, how: RunChoice) -> Settled:
    """Enlarge images, with detail that the model finds likely: invented, not what was there.

    Images of any size, in overlapping tiles of the model's. Every result shrinks to its image again, by the mean over
    squares of --scale pixels. What to expect, and how much memory large images take: documentation, Enhance.
    """
    from nearfar.io.listing import list_folder
    from nearfar.jobs.enhance import enhance_job
    from nearfar.sampling.enhancement import Enlargement

    options, free = job_options(enlarging), enlarging.no_consistency
    of_job = {name: options.pop(name) for name in ("seed", "batch_size", "keep_metadata")}
    of_job["marking"] = marks.marking(folders.source, folders.out)
    del options["no_consistency"]
    enlargement = Enlargement(**options, consistency=not free)
    model = choice.load()
    job = enhance_job(model, enlargement, **of_job, files=len(list_folder(folders.source).items))
    calls = enlargement.cascade * enlargement.solver.calls(enlargement.steps)
    shrink = "need not shrink" if free else "shrink"
    line = f"{enlargement.scale} times, results {shrink} to the images again; {calls} network calls for each "
    return Settled(job, model, folders, how, more=lambda _: [("enlarge", f"{line}{job.batch_size} tiles")])
