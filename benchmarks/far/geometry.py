"""The paper's three tests against the projection: how many draws of each family pass, as drawn and as projected.

    python -m benchmarks.far.geometry cells.domain galaxies.domain

Takes files that `nearfar domain fit` wrote. Draws are tested before the network is asked, so a passing image always
costs the domain's `steps` network calls; what rejection costs is draws. Measured, too, is what the tests say of the
fitted latents themselves, each against the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.support.common import write_result
from nearfar.domain.domain import Domain
from nearfar.domain.file import load_domain
from nearfar.domain.synthesis import FAMILIES, GEOMETRIES, drawing, generator_of
from nearfar.latents.shell import accept

DRAWS = 200


def rate(domain: Domain, family: str, geometry: str) -> float:
    """Share of the draws that pass all three tests."""
    draw = GEOMETRIES[geometry](drawing(domain, family), domain)
    latents = torch.stack([draw(generator_of(0, number)).latent for number in range(DRAWS)])
    return accept(latents, domain.latents, domain.targets, torch.Generator().manual_seed(0)).rate


def rates(domain: Domain) -> dict[str, Any]:
    return {
        family: {geometry: round(rate(domain, family, geometry), 3) for geometry in ("free", "projected")}
        for family in FAMILIES
    }


def main(files: Annotated[list[Path], typer.Argument(help="Domain files.")]) -> None:
    found = {}
    for file in files:
        domain = load_domain(file)
        found[file.stem] = {"images": len(domain.latents), "steps": domain.steps, "rates": rates(domain)}
        for family, each in found[file.stem]["rates"].items():
            typer.echo(f"{file.stem:10} {family:11} free {each['free']:.3f}, projected {each['projected']:.3f}")
    write_result("geometry", found)


if __name__ == "__main__":
    typer.run(main)
