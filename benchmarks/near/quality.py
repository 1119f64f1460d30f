"""How many network calls each solver needs: distance to a 1,000-step solution at fixed noise.

    OMP_WAIT_POLICY=passive python -m benchmarks.near.quality [--images 6] [--warps 1,1.5,2]

Deterministic solvers are compared with 1,000 steps of DPM-Solver++(2M), stochastic ones with 1,000 steps of its SDE
form along the same Brownian path. In the clock 1 / rho^2 the noise of every step of every stochastic solver here is an
increment of one Brownian motion, so one path serves all grids.

`distance` is the root mean square difference in gray levels; `detail` the energy of the Laplacian relative to the
1,000-step solution's (below 1: smoothed, above 1: noise left over).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.support.common import faces, write_result
from nearfar.diffusion.schedule import Level, NoiseSchedule
from nearfar.diffusion.solver import SOLVERS, DPMSolverPP, DPMSolverPPSDE, Heun, Solver, solve
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel

STRENGTHS = (0.2, 0.4, 0.6)
CALLS = (5, 8, 12, 16, 20, 30, 50, 100)
REFERENCE_STEPS = 1000


@dataclass
class BrownianPath:
    """One Brownian motion per image in the clock 1 / rho^2, sampled wherever a grid needs it."""

    schedule: NoiseSchedule
    clocks: Tensor
    values: Tensor

    @classmethod
    def through(cls, schedule: NoiseSchedule, grids: list[Tensor], shape: torch.Size) -> BrownianPath:
        """A path known at all nodes of all grids; each grid (batch, nodes)."""
        clocks = torch.cat([clock(schedule, grid)[:, :-1] for grid in grids], dim=1).sort(dim=1).values
        spans = clocks.diff(dim=1).clamp(min=0).sqrt().float()
        steps = torch.randn(len(clocks), clocks.shape[1] - 1, *shape[1:], generator=torch.Generator().manual_seed(1))
        increments = steps * spans[..., None, None, None]
        return cls(schedule, clocks, torch.cat([torch.zeros_like(increments[:, :1]), increments.cumsum(1)], 1))

    def along(self, grid: Tensor) -> Increments:
        """The path's unit increments between the nodes of a grid, for a solver to draw."""
        ticks = clock(self.schedule, grid)[:, :-1]
        index = torch.searchsorted(self.clocks, ticks.contiguous())
        rows = torch.arange(len(grid))[:, None]
        spans = ticks.diff(dim=1).sqrt().float()[..., None, None, None]
        return Increments(list((self.values[rows, index].diff(dim=1) / spans).unbind(1)))


@dataclass
class Increments:
    """A noise source that hands out prepared draws; the last step, which ends clean, needs none."""

    left: list[Tensor]

    def draw(self) -> Tensor:
        return self.left.pop(0) if self.left else torch.zeros(())


def clock(schedule: NoiseSchedule, grid: Tensor) -> Tensor:
    return schedule.ratio(grid.flatten()).reshape(grid.shape) ** -2


def detail(images: Tensor) -> Tensor:
    """Mean energy of the Laplacian of each image."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    return torch.nn.functional.conv2d(images, kernel, groups=3).square().mean(dim=(1, 2, 3))


def steps_for(solver: Solver, calls: int) -> int:
    """Steps that cost exactly this many network calls, or the nearest below."""
    return (calls + 1) // 2 if isinstance(solver, Heun) else calls


def measure(output: Tensor, reference: Tensor) -> list[dict[str, float]]:
    """Distance and relative detail, for each strength."""
    figures = []
    for out, ref in zip(output.chunk(len(STRENGTHS)), reference.chunk(len(STRENGTHS)), strict=True):
        distance = (out - ref).square().mean().sqrt().item() * 127.5
        figures.append(
            {"distance": round(distance, 3), "detail": round((detail(out).sum() / detail(ref).sum()).item(), 4)}
        )
    return figures


def run_warp(model: FrozenModel, noisy: Tensor, start: Tensor, warp: float, references: dict[Any, Any]) -> list[Any]:
    """All solvers and budgets on one family of grids."""
    schedule = model.schedule
    rows = []
    for name, solver in SOLVERS.items():
        for calls in CALLS:
            grid = schedule.grid(start, steps_for(solver, calls), warp)
            noise = references["path"].along(grid) if solver.stochastic else None
            figures = measure(solve(model.denoiser, noisy, grid, solver, noise), references[solver.stochastic])
            rows.append(
                {"solver": name, "warp": warp, "calls": calls, "figures": dict(zip(STRENGTHS, figures, strict=True))}
            )
            cells = [f"{f['distance']:7.2f} x{f['detail']:.2f}" for f in figures]
            typer.echo(f"{name:10} warp {warp:<4g} calls {calls:4d}  " + "  ".join(cells))
    return rows


def main(
    model: Annotated[str, typer.Option(help="A bundled model, or a diffusers folder.")] = "bundled/faces",
    images: Annotated[int, typer.Option(help="Photographs for each strength.")] = 6,
    warps: Annotated[str, typer.Option(help="Spacings of the grid to compare.")] = "1,1.5,2",
) -> None:
    """Measure, print a table and write results/quality.json."""
    frozen = load_model(model)
    clean = faces(images, frozen.image.size).repeat(len(STRENGTHS), 1, 1, 1)
    start = Level(torch.tensor(STRENGTHS).double().repeat_interleave(images)).times(frozen.schedule, len(clean))
    noisy = frozen.schedule.add_noise(
        clean, start, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    )
    spacings = [float(warp) for warp in warps.split(",")]
    fine = frozen.schedule.grid(start, REFERENCE_STEPS, spacings[-1])
    grids = [fine, *(frozen.schedule.grid(start, calls, warp) for calls in CALLS for warp in spacings)]
    path = BrownianPath.through(frozen.schedule, grids, clean.shape)
    references: dict[Any, Any] = {
        "path": path,
        False: solve(frozen.denoiser, noisy, fine, DPMSolverPP()),
        True: solve(frozen.denoiser, noisy, fine, DPMSolverPPSDE(), path.along(fine)),
    }
    rows = [row for warp in spacings for row in run_warp(frozen, noisy, start, warp, references)]
    write_result("quality", {"model": frozen.provenance.sha256, "images": images, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
