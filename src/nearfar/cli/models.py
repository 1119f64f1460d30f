"""`nearfar models`: what is known of models, and original checkpoints as diffusers folders."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.console import reported_errors

if TYPE_CHECKING:
    from typer import Context

    from nearfar.models.cards import Card
else:
    Context = typer.Context.__base__  # what typer hands over

models = typer.Typer(invoke_without_command=True, help="Models that are known, and original checkpoints converted.")


@models.callback()
def list_models(
    context: Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """Print the cards of known models: license, size, training data, known defects."""
    if context.invoked_subcommand is None:
        from nearfar.models.cards import read_cards

        if as_json:
            typer.echo(json.dumps([asdict(card) for card in read_cards()]))
        else:
            for card in read_cards():
                typer.echo(f"{described(card)}\n")


@models.command("convert")
def convert_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="An original .pt or .ckpt; nothing in it is run.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The diffusers folder to write.")],
    size: Annotated[int | None, typer.Option(help="Pixels of a side. [default: from the attention levels]")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, the same at every level.")] = None,
    head_channels: Annotated[int | None, typer.Option(help="Channels of an attention head.")] = None,
    new_attention_order: Annotated[
        bool | None, typer.Option("--new-attention-order", help="As use_new_attention_order of guided-diffusion.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Noise schedule: linear or cosine. [default: linear]")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Levels of the schedule. [default: 1000]")] = None,
    rescale_timesteps: Annotated[
        bool | None,
        typer.Option(
            "--rescale-timesteps/--no-rescale-timesteps",
            help="As rescale_timesteps of improved-diffusion, where it is the default.",
        ),
    ] = None,
) -> None:
    """Convert an original checkpoint (DDPM or guided-diffusion layout) into a diffusers folder.

    For checkpoints that `nearfar models` lists, the options are known.
    """
    given = {
        "size": size,
        "heads": heads,
        "head_channels": head_channels,
        "new_attention_order": new_attention_order,
        "schedule": schedule,
        "timesteps": timesteps,
        "rescale_timesteps": rescale_timesteps,
    }
    with reported_errors():
        from nearfar.models.original.checkpoints import convert, is_plain, save_converted

        converted = convert(checkpoint, **options_of(checkpoint, given))
        for assumption in converted.assumptions:
            typer.echo(f"note      {assumption}", err=True)
        save_converted(converted, folder)
        if not is_plain(converted):
            typer.echo("note      only nearfar reads this folder: diffusers' configs cannot say all of it", err=True)
        typer.echo(f"wrote {folder}")


def options_of(checkpoint: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, over those of the checkpoint's card."""
    from nearfar.models.cards import card_of

    card = card_of(str(checkpoint))
    chosen = {name: value for name, value in given.items() if value is not None}
    other_heads = {"heads", "head_channels"} if chosen.keys() & {"heads", "head_channels"} else set()
    known = {name: value for name, value in (card.checkpoint if card else {}).items() if name not in other_heads}
    return known | chosen


def described(card: Card) -> str:
    """A card for people: what is known, a line for each fact."""
    from nearfar.models.folder import bundled_name

    size = f"{card.size}x{card.size}"
    about = (card.family, size, f"trained on {card.trained_on}" if card.trained_on else "")
    notes = {False: " (not for commercial use)", True: "", None: ""}[card.commercial]
    facts = {
        "license": f"{card.license or 'not stated'}{notes}",
        "values": card.range,
        "defects": card.defects,
        "use": "refused unless forced: distilled to a few steps" if card.distilled else None,
        "file": f"--model path/to/{card.name}" if card.name.endswith((".pt", ".ckpt")) else None,
        "bundled": f"--model {bundled_name(card.name)}" if card.name.startswith("bundled") else None,
        "source": card.source,
    }
    lines = [f"  {name:8}{fact}" for name, fact in facts.items() if fact]
    return "\n".join([card.name, "  " + ", ".join(part for part in about if part), *lines])
