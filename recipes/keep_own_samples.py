"""What the package brings of a bundled model's own: its samples, and how well they come back.

    python recipes/keep_own_samples.py [faces]

To be run again after a change of the model, of the default solver or of its steps: what is kept for others is no longer
taken. 200 samples of 32 pixels are 0.6 MB, and take two minutes of one core.
"""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from nearfar.models.kept import SHIPPED, VARIABLE


def main(names: Annotated[list[str] | None, typer.Argument(help="Bundled models.")] = None) -> None:
    """Replace what the package brings."""
    from nearfar.diffusion.schedule import Level
    from nearfar.diffusion.solver import STEPS, Sampling
    from nearfar.domain.domain import OWN_SAMPLES
    from nearfar.models.loading import load_model
    from nearfar.sampling.inversion import INVERTER
    from nearfar.sampling.own_domain import own_domain
    from nearfar.sampling.representation import own_representation

    shutil.rmtree(SHIPPED, ignore_errors=True)
    os.environ[VARIABLE] = str(SHIPPED)
    for name in names or ["faces"]:
        model = load_model(f"bundled/{name}", "cpu")
        own_domain(model, OWN_SAMPLES)
        own_representation(model, Sampling(Level(0.9), STEPS, INVERTER))
    for file in sorted(SHIPPED.iterdir()):
        typer.echo(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
