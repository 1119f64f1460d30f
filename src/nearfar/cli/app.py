"""The command line: each command parses, calls the library, shows what came of it.

Exit codes: 0 all done, 1 stopped by the machine, 2 wrong usage, 3 some images failed, 130 interrupted.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from nearfar.cli.anonymize import anonymize
from nearfar.cli.audit import audit
from nearfar.cli.augment import augment
from nearfar.cli.calibrate import calibrate
from nearfar.cli.console import visible
from nearfar.cli.domain import domain
from nearfar.cli.enhance import enhance
from nearfar.cli.evolve import evolve
from nearfar.cli.help import Grouped
from nearfar.cli.models import models
from nearfar.cli.options import command_saying
from nearfar.cli.reconstruct import invert, reconstruct
from nearfar.cli.serve import serve
from nearfar.cli.work import merge, plan, slurm, status, work

app = typer.Typer(
    name="nearfar",
    help="New images from frozen diffusion models, without training anything.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"nearfar {version('nearfar')}")
        raise typer.Exit
    return wanted


@app.callback()
def nearfar(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """New images from frozen diffusion models, without training anything."""


app.command(cls=Grouped)(anonymize)
app.command(cls=Grouped)(calibrate)
app.command(cls=Grouped)(audit)
app.command(cls=Grouped)(augment)
app.command(cls=Grouped)(enhance)
app.command(cls=Grouped)(evolve)
app.command(cls=Grouped)(reconstruct)
app.command(cls=Grouped)(invert)
app.command(cls=Grouped)(serve)
app.command(cls=Grouped, context_settings={"ignore_unknown_options": True})(plan)
for each in (work, status, merge, slurm):
    app.command(cls=Grouped)(each)
app.add_typer(models, name="models")
app.add_typer(domain, name="domain")


@app.command()
@command_saying("interrupted; OUT is unfinished: remove it to begin again")
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pictures and the page.")] = Path("demo"),
) -> None:
    """Anonymize photographs that come with scikit-image at several strengths, and make a page of them."""
    from nearfar.cli.demo import make_demo

    typer.echo(visible(f"open {make_demo(out).resolve()}"))
