"""`nearfar enhance`: every image of a folder enlarged, with detail that a model finds likely."""

from __future__ import annotations

from typing import Annotated

import typer

from nearfar.cli.carry_out import carry_out
from nearfar.cli.console import reported_errors
from nearfar.cli.options import KeepMetadata, ModelChoice, Out, RunChoice, Source, grouped, one_of


@grouped
def enhance(
    source: Source,
    out: Out,
    *,
    scale: Annotated[int, typer.Option(help="How many times as high and as wide; 2 to 8.")] = 4,
    strength: Annotated[
        float | None, typer.Option(help="Share of the way to pure noise, above 0 to 1. [default: from the scale]")
    ] = None,
    cascade: Annotated[int, typer.Option(help="How often the enlargement is noised and denoised.")] = 1,
    no_consistency: Annotated[
        bool, typer.Option("--no-consistency", help="As in the paper: results need not shrink to the images again.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Solver steps for each pass.")] = 20,
    solver: Annotated[str, typer.Option(help="dpm++sde, ancestral, ddim, dpm++ or heun.")] = "dpm++sde",
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Tiles in one network call. [default: automatic]")] = None,
    keep_metadata: KeepMetadata = False,
    choice: ModelChoice,
    progress: RunChoice,
) -> None:
    """Enlarge images, with detail that the model finds likely: invented, not what was there.

    Images of any size, in overlapping tiles of the model's. Every result shrinks to its image again, by the mean over
    squares of --scale pixels. docs/enhance.md has what to expect, and how much memory large images take.
    """
    with reported_errors():
        from nearfar.diffusion.solver import SOLVERS
        from nearfar.io.listing import list_folder
        from nearfar.jobs.enhance import enhance_job
        from nearfar.jobs.run import check_places
        from nearfar.sampling.enhancement import Enlargement

        way = SOLVERS[one_of(solver, "solver", SOLVERS)]
        how = Enlargement(scale, strength, steps, way, cascade, not no_consistency)
        check_places(source, out, progress.resume)
        model, files = choice.load(), len(list_folder(source).items)
        job = enhance_job(model, how, seed=seed, batch_size=batch_size, keep_metadata=keep_metadata, files=files)
        calls, kept = cascade * way.calls(steps), "need not shrink" if no_consistency else "shrink"
        tiles = f"{calls} network calls for each {job.batch_size} tiles"
        line = f"enlarge   {scale} times, results {kept} to the images again; {tiles}"
        carry_out(job, model, source, out, progress, say_more=lambda _: [line])
