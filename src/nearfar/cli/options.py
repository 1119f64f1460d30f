"""Options that several commands share, as dataclasses: a command names the group, the shell sees its fields."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from nearfar.errors import ModelWarning, UsageError

if TYPE_CHECKING:
    from nearfar.diffusion.solver import Solver
    from nearfar.io.fitting import FitMode
    from nearfar.models.model import FrozenModel

DomainFile = Annotated[Path, typer.Argument(metavar="FILE", help="The domain, one safetensors file.")]

BatchSize = Annotated[int | None, typer.Option(help="Images in one network call. [default: automatic]")]

Source = Annotated[Path, typer.Argument(metavar="IN", help="Folder of images; it is only read.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results, with the same tree and names.")]
KeepMetadata = Annotated[bool, typer.Option("--keep-metadata", help="Copy EXIF, XMP and resolution.")]


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is used."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A diffusers folder, an original checkpoint (.pt, .ckpt), a hub name, or one that is bundled: faces, "
            "faces64 or cells. [default: faces]",
        ),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="What a text model shall see, '' for nothing in particular.")] = (
        None
    )
    negative_prompt: Annotated[str, typer.Option(help="What it shall avoid, with guidance above 1.")] = ""
    guidance: Annotated[float, typer.Option(help="How much the prompt is sharpened; 1 is the model's own.")] = 1.0
    label: Annotated[int | None, typer.Option(help="The class, for class-conditional models.")] = None
    size: Annotated[int | None, typer.Option(help="Pixels of a side. [default: the model's own]")] = None
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Draw an autoencoder's latents instead of taking their mode.")
    ] = False
    revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="Of a hub name, 40 digits.")] = None
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub name, at a --revision.")] = False
    force: Annotated[bool, typer.Option("--force", help="Use a distilled few-step model all the same.")] = False
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto"
    precision: Annotated[str, typer.Option(help="Of the network: float32, float16 or bfloat16.")] = "float32"

    def load(self) -> FrozenModel:
        """The model; what it warns of is said on stderr, and what libraries say besides is not."""
        quieten(bars=self.download)
        import torch

        from nearfar.models.loading import load_model

        options = {each.name: getattr(self, each.name) for each in fields(self)}
        source, precision = options.pop("model"), options.pop("precision")
        dtype = getattr(torch, one_of(precision, "precision", ["float32", "float16", "bfloat16"]))
        with warnings_as_notes():
            return load_model(source, dtype=dtype, **options)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What nearfar warns of is said on stderr, at once and once; what libraries warn of is not."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            typer.echo(f"note      {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ModelWarning)
        warnings.showwarning = show
        yield


def quieten(bars: bool) -> None:
    """Errors only from the libraries that load models; they read this when they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@dataclass(frozen=True)
class TrajectoryChoice:
    """How far to go, and how."""

    strength: Annotated[
        float | None, typer.Option(help="Share of the way to pure noise, above 0 to 1. [default: see above]")
    ] = None
    sigma: Annotated[float | None, typer.Option(help="The same as noise to signal, instead of --strength.")] = None
    steps: Annotated[int, typer.Option(help="Solver steps for each image.")] = 20
    fit: Annotated[str, typer.Option(help="Images that are not square: pad or cover.")] = "pad"
    batch_size: Annotated[int | None, typer.Option(help="Images in one network call. [default: automatic]")] = None

    def options(self, strength: float, solver: str, solvers: Mapping[str, Solver]) -> dict[str, Any]:
        """Arguments of a job, checked before a model is loaded. strength: where neither it nor sigma is given."""
        from nearfar.diffusion.level import Level, Sampling

        neither = self.strength is None and self.sigma is None
        level = Level(strength if neither else self.strength, self.sigma)
        return {
            "sampling": Sampling(level, self.steps, solvers[one_of(solver, "solver", solvers)]),
            "fit": fit_of(self.fit),
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class RunChoice:
    """How a run is carried out and told of."""

    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False


def fit_of(name: str) -> FitMode:
    from nearfar.io.fitting import FitMode

    return FitMode(one_of(name, "fit", [str(mode) for mode in FitMode]))


def one_of(value: str, name: str, allowed: Any) -> str:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclass parameters as parameters of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = [
        flat
        for name, parameter in inspect.signature(command).parameters.items()
        for flat in (fields_of(groups[name]) if name in groups else [named(name, parameter.default, hints[name])])
    ]

    def flattened(**values: Any) -> None:
        taken = {
            name: kind(**{each.name: values.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**values, **taken)

    flattened.__name__, flattened.__doc__ = command.__name__, command.__doc__
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flattened


def fields_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [named(each.name, each.default, hints[each.name]) for each in fields(group)]


def named(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
