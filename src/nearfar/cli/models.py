"""`nearfar models`: what is known of models, and original checkpoints as diffusers folders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.console import NOTHING_WRITTEN, raise_on_signals, reported_errors, say, say_failed, stepping, visible
from nearfar.cli.help import Grouped
from nearfar.cli.options import ModelChoice, command, command_saying, one_of, option, quieten
from nearfar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from typer import Context

    from nearfar.models.cards import Card
    from nearfar.models.model import FrozenModel
else:
    Context = typer.Context.__base__  # what typer hands over

FEWEST_SAMPLES = 8
SUBJECTS = ("faces", "animals", "churches", "bedrooms", "anything")

models = typer.Typer(invoke_without_command=True, help="Models that are known, and original checkpoints converted.")


@models.callback()
def list_models(
    context: Context,
    subject: Annotated[
        str | None, typer.Option("--for", metavar="WHAT", help=f"Only those that draw {', '.join(SUBJECTS)}.")
    ] = None,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only those whose terms are known to allow commercial use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """Print the cards of known models: license, size, training data, known defects."""
    if context.invoked_subcommand is not None:
        return
    from nearfar.models.cards import read_cards

    with reported_errors(NOTHING_WRITTEN):
        if subject is not None:
            one_of(subject, "for", SUBJECTS)
    cards = [card for card in read_cards() if subject in (None, card.subject) and (card.commercial or not commercial)]
    if as_json:
        typer.echo(json.dumps([asdict(card) for card in cards]))
    else:
        typer.echo("".join(f"{described(card)}\n\n" for card in cards) or "none is known", nl=not cards)


@models.command("fetch", cls=Grouped)
@command_saying("what has arrived is kept: fetch again to go on")
def fetch_model_named(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a card, or owner/name on the hub.")],
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="40 digits. [default: the one that its card states]")
    ] = None,
) -> None:
    """Fetch a model from the hub, every file checked against its hash; then --model NAME works offline.

    An interrupted fetch is gone on with. Its license and known defects are said first.
    """
    quieten(bars=True)
    from nearfar.models.fetching import fetch_model, target_of

    raise_on_signals()
    repository, commit, card = target_of(name, revision)
    say("fetch", f"{repository} at {commit}")
    say("license", (card.license if card else None) or "not stated")
    if card and card.defects:
        say("defects", card.defects)
    fetch_model(name, revision)
    typer.echo(visible(f"fetched, every hash as listed: --model {repository}"))


@dataclass(frozen=True)
class Layout:
    """What an original checkpoint does not say of itself: the arguments of `convert`."""

    size: int | None = option(None, "Pixels of a side. [default: from the attention levels]")
    heads: int | None = option(None, "Attention heads, the same at every level.")
    head_channels: int | None = option(None, "Channels of an attention head.")
    new_attention_order: bool | None = option(
        None, "As use_new_attention_order of guided-diffusion.", option="new-attention-order"
    )
    schedule: str | None = option(None, "Noise schedule: linear or cosine. [default: linear]")
    timesteps: int | None = option(None, "Levels of the schedule. [default: 1000]")
    rescale_timesteps: bool | None = option(
        None,
        "As rescale_timesteps of improved-diffusion, where it is the default.",
        option="rescale-timesteps/--no-rescale-timesteps",
    )
    low: float | None = option(None, "Of an Equinox file: the network's value that an image's -1 is. [default: -1]")
    high: float | None = option(None, "Of an Equinox file: the network's value that an image's 1 is. [default: 1]")
    curve: str | None = option(
        None, "Of an Equinox file: physical values are linear or log1p, of which the network has the logarithm."
    )
    unit: float | None = option(None, "Of an Equinox file: the curve of a value is the network's times this.")


@models.command("convert", cls=Grouped)
@command_saying(NOTHING_WRITTEN)
def convert_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An original .pt, .ckpt, .eqx, or a TensorFlow.js folder; nothing is run."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The diffusers folder to write.")],
    *,
    layout: Layout,
) -> None:
    """Convert an original checkpoint (DDPM, guided-diffusion, Keras or galaxygrad layout) into a folder of diffusers.

    For checkpoints that `nearfar models` lists, the options are known.
    """
    if not checkpoint.is_dir() and checkpoint.suffix != ".eqx":
        from nearfar.models.original.start import check_start

        check_start(checkpoint)
    from nearfar.models.original.checkpoints import convert
    from nearfar.models.original.network import is_plain, save_converted

    raise_on_signals()
    converted = convert(checkpoint, **options_of(checkpoint, vars(layout)))
    for assumption in converted.assumptions:
        say("note", assumption)
    save_converted(converted, folder)
    if not is_plain(converted):
        say("note", "only nearfar reads this folder: diffusers' configs cannot say all of it")
    typer.echo(visible(f"wrote {folder}"))


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
    from nearfar.models.lookup import bundled_name

    size = f"{card.size}x{card.size}"
    about = (card.family, size, f"trained on {card.trained_on}" if card.trained_on else "")
    notes = {False: " (not for commercial use)", True: "", None: ""}[card.commercial]
    facts = {
        "license": f"{card.license or 'not stated'}{notes}",
        "values": card.range,
        "defects": card.defects,
        "use": "refused unless forced: distilled to a few steps" if card.distilled else None,
        "commit": card.commit,
        "file": f"--model path/to/{card.name}" if card.name.endswith((".pt", ".ckpt")) else None,
        "bundled": f"--model {bundled_name(card.name)}" if card.name.startswith("bundled/") else None,
        "source": card.source,
    }
    lines = [f"  {name:8}{fact}" for name, fact in facts.items() if fact]
    return "\n".join([card.name, "  " + ", ".join(part for part in about if part), *lines])


@models.command("profile", cls=Grouped)
@command
def profile_model(
    *,
    choice: ModelChoice,
    count: Annotated[int, typer.Option(help="Images to measure on: samples of the model's own.")] = 64,
    source: Annotated[
        Path | None,
        typer.Option("--images", metavar="IN", help="Measure on these instead, like those that it was trained on."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images that share a network call.")] = None,
    file: Annotated[Path | None, typer.Option(help="Where to keep it. [default: the user's cache]")] = None,
) -> None:
    """Measure what a model does not know of its own samples, for the solver local-prior.

    Kept under the model's hash in the user's cache, where every later run finds it. Nothing of the images is in it but
    variances by frequency. The bundled faces has its own already.
    """
    from nearfar.diffusion.profiling import LEVELS
    from nearfar.models.model import check_batch_size, default_batch_size
    from nearfar.models.profiles import keep_profile, key_of, place_of
    from nearfar.sampling.own_profile import own_profile, profile_calls, profile_on

    if count < FEWEST_SAMPLES:
        raise UsageError(f"count must be at least {FEWEST_SAMPLES}, got {count}: fewer say too little")
    model = choice.load()
    size = check_batch_size(batch_size or min(default_batch_size(model), count))
    if source is None:
        with stepping("profile", profile_calls(count, size), size) as tick:
            profile = own_profile(model, count, size, lambda: tick(0, None))
    else:
        clean = clean_latents(model, source, count, size)
        with stepping("profile", LEVELS * -(-len(clean) // size), size) as tick:
            profile = profile_on(model, clean, size, lambda: tick(0, None))
    place = file or place_of(model)
    keep_profile(profile, place, key_of(model))
    typer.echo(visible(f"wrote {place}"))


def clean_latents(model: FrozenModel, source: Path, count: int, batch_size: int) -> Tensor:
    """Of the first images of a folder; those that cannot be read are said on stderr."""
    from nearfar.io.stacks import read_inputs
    from nearfar.sampling.local_sampling import encode_all

    inputs = read_inputs(source, model.image)
    say_failed(inputs.failed)
    if len(inputs.images) < FEWEST_SAMPLES:
        raise UsageError(f"{source} must hold {FEWEST_SAMPLES} images at least, got {len(inputs.images)}: add some")
    return encode_all(model, inputs.images[:count], batch_size)
