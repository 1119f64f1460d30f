"""Options of the commands: dataclasses, most of them the library's own, whose fields the shell sees as options.

A field's metadata says what the shell shows of it: `help`, and where they differ from the field's own `option` (its
name), `short`, `metavar`, `shell` (the type that is typed) and `read` (what makes the field's value of that).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import typer

from nearfar.cli.console import KEPT, reported_errors, warnings_as_notes, working
from nearfar.errors import UsageError
from nearfar.io.stores import address_of
from nearfar.structured import read_text

if TYPE_CHECKING:
    from nearfar.diffusion.solver import Solver
    from nearfar.io.fitting import FitMode
    from nearfar.io.marks import Marking
    from nearfar.models.model import FrozenModel


ONLY_SETTLE: ContextVar[dict[Any, Any] | None] = ContextVar("only settle", default=None)
"""Set where a command gives what it has settled to its caller instead of carrying it out: models that are loaded."""
Fit = Literal["pad", "cover"]
SolverName = Literal["local-prior", "dpm++sde", "ancestral", "ddim", "dpm++", "heun"]
InverterName = Literal["fixed-point", "heun", "ddim"]
RoundTripName = Literal["fixed-point", "heun", "ddim", "bdia"]
"""Names of solvers, known before any is loaded."""
PANELS = {
    "Promise": "Promise",
    "Rounds": "Rounds",
    "Attack": "Attack",
    "Trajectory": "How near",
    "Method": "How near",
    "CalibrationChoice": "A calibrated strength",
    "RegionChoice": "Only parts of images",
    "ModelChoice": "Model",
    "RunChoice": "Run",
    "Reading": "Reading",
    "Telling": "Report",
    "Writing": "Writing",
    "Marks": "Marks",
}
"""Headings of the help, by group of options; the others stand under Options."""


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a group of options."""
    return field(default=default, metadata={"help": help, **more})


def solver_option(default: str, names: Any) -> Any:
    """A field that names a solver."""
    *most, last = get_args(names)
    return option(default, f"{', '.join(most)} or {last}.", metavar="NAME")


def argument(metavar: str, help: str, default: Any = MISSING) -> Any:
    """A field that is given by its place."""
    return field(default=default, metadata={"help": help, "argument": metavar})


STEPS = "Solver steps for each image."
FIT = "Images that are not square: pad or cover."
TILE = "Keep the detail of images larger than the model: it sees them in overlapping tiles."
BATCH_SIZE = "Images in one network call. [default: automatic]"
KEEP_METADATA = "Copy EXIF, XMP and resolution, and of DICOM the header with the patient's name."
BURNED_IN = "Read DICOM files too whose pixels are likely to hold text such as names; it may stay readable."
SEED = "Of all that is random."
DOMAIN = "The domain, one safetensors file."
"""Help texts of options that several commands have."""


@dataclass(frozen=True)
class Folders:
    """Where images are read and where results go."""

    source: Path = argument("IN", "Folder of images, or one image; only read.")
    out: Path = argument("OUT", "Folder for the results, with the same tree and names.")


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is used: the arguments of `load_model`."""

    model: str | None = option(
        None,
        "A diffusers folder, an original checkpoint (.pt, .ckpt), a hub name, or one that is bundled: faces, faces64 "
        "or cells. [default: faces64, or NEARFAR_MODEL]",
        metavar="MODEL",
    )
    prompt: str | None = option(None, "What a text model shall see, '' for nothing in particular.")
    negative_prompt: str = option("", "What it shall avoid, with guidance above 1.")
    guidance: float = option(1.0, "How much the prompt is sharpened; 1 is the model's own.")
    label: int | None = option(None, "The class, for class-conditional models.")
    size: int | None = option(None, "Pixels of a side. [default: the model's own]")
    sampled: bool = option(False, "Draw an autoencoder's latents instead of taking their mode.")
    revision: str | None = option(None, "Of a hub name, 40 digits.", metavar="COMMIT")
    download: bool = option(False, "Fetch a hub name, at a --revision.")
    force: bool = option(False, "Use a distilled few-step model all the same.")
    device: str = option("auto", "cpu, cuda, cuda:1, ... or auto.")
    precision: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", "Of the network: float32, float16, bfloat16 or auto: float32, on a GPU with products in tf32."
    )

    def load(self) -> FrozenModel:
        """The model; libraries that load it are told to say only errors."""
        loaded = ONLY_SETTLE.get()
        if loaded is not None and self in loaded:
            return cast("FrozenModel", loaded[self])
        quieten(bars=self.download)
        with working("loading the model"):
            import torch

            from nearfar.models.loading import load_model

            options = dict(vars(self))
            source, precision = options.pop("model"), options.pop("precision")
            model = load_model(source, dtype=None if precision == "auto" else getattr(torch, precision), **options)
        if loaded is not None:
            loaded[self] = model
        return model


def quieten(bars: bool) -> None:
    """Errors only from the libraries that load models; they read this when they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@dataclass(frozen=True)
class Marks:
    """How results say that a model made them."""

    mark: Literal["xmp", "none"] = option("xmp", "Results say in XMP that a model made them.")
    c2pa: Path | None = option(
        None, "Sign results by C2PA, with certificates and key in this PEM file.", metavar="FILE"
    )

    def marking(self, *folders: Path) -> Marking:
        """As the jobs take it. folders: where the key must not lie, since they may be shared."""
        from nearfar.io.marks import Marking, read_signature

        for folder in folders:
            if self.c2pa and folder.resolve() in self.c2pa.resolve().parents:
                raise UsageError(f"{self.c2pa}, a private key, must not lie in {folder}, which may be shared")
        return Marking(self.mark == "xmp", read_signature(self.c2pa) if self.c2pa else None)


@dataclass(frozen=True)
class RunChoice:
    """How a run is carried out and told of."""

    resume: bool = option(False, "Go on with an interrupted run.")
    dry_run: bool = option(False, "Say what would be done, write nothing.")
    as_json: bool = option(False, "Print the summary as JSON.", option="json")


@dataclass(frozen=True)
class Trajectory:
    """How far to go, and in how many steps: the shell's words for `Sampling`, and how images are fitted."""

    strength: float | None = option(None, "Share of the way to pure noise, above 0 to 1. [default: see above]")
    sigma: float | None = option(None, "The same as noise to signal, instead of --strength.")
    steps: int = option(20, STEPS)
    fit: Fit = option("pad", FIT)
    batch_size: int | None = option(None, BATCH_SIZE)

    def options(
        self, strength: float, solver: str, solvers: Mapping[str, Solver], tile: bool = False
    ) -> dict[str, Any]:
        """Arguments of a job, checked before a model is loaded. strength: where neither it nor sigma is given."""
        from nearfar.diffusion.schedule import Level
        from nearfar.diffusion.solver import Sampling

        neither = self.strength is None and self.sigma is None
        level = Level(strength if neither else self.strength, self.sigma)
        sampling = Sampling(level, self.steps, solvers[one_of(solver, "solver", solvers)])
        return {"sampling": sampling, "fit": fit_of(self.fit, tile), "batch_size": self.batch_size}


def fit_of(fit: str, tile: bool) -> FitMode:
    """How images are fitted."""
    from nearfar.io.fitting import FitMode

    if tile and fit != "pad":
        raise UsageError("--tile keeps all of an image, at its own size: leave --fit out")
    return FitMode.TILE if tile else FitMode(fit)


def job_options(group: Any) -> dict[str, Any]:
    """The fields of a group as arguments of a job: the solver and the fit that were named."""
    from nearfar.diffusion.schedule import check_steps
    from nearfar.diffusion.solver import SOLVERS

    given = dict(vars(group))
    check_steps(given["steps"])
    if "fit" in given:
        given["fit"] = fit_of(given["fit"], given.pop("tile", False))
    return given | {"solver": SOLVERS[one_of(given["solver"], "solver", SOLVERS)]}


def check_new_file(file: Path, source: Path, overwrite: bool) -> None:
    """Refuse a file that would lie among the images, or replace another unasked."""
    if file.is_dir() or source.resolve() in file.resolve().parents:
        raise UsageError(f"{file} must be a file outside of {source}, which is only read: choose another place")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} is there already: give --overwrite to replace it, or choose another place")


def one_of(value: str, name: str, allowed: Any) -> str:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a command that says after Ctrl-C that what is finished is kept."""
    return command_saying(KEPT)(function)


def command_saying(interrupted: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function a command: fields of its dataclass parameters are options, errors end it with a sentence.

    What it returns, where it does, is what it has settled to do, and is carried out. interrupted: said after Ctrl-C.
    """
    return partial(flattened, interrupted=interrupted)


def flattened(function: Callable[..., Any], interrupted: str) -> Callable[..., Any]:
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind) and name != "return"}
    parameters = [
        flat
        for name, parameter in inspect.signature(function).parameters.items()
        for flat in (options_of(groups[name]) if name in groups else [named(name, parameter.default, hints[name])])
    ]

    def settled(given: dict[str, Any]) -> Any:
        check_paths(given)
        taken = {name: filled(group, given) for name, group in groups.items()}
        check_early({key: value for group in taken.values() for key, value in vars(group).items()} | given)
        return function(**given, **taken)

    def flat_function(**given: Any) -> Any:
        if ONLY_SETTLE.get() is not None:
            return settled(given)
        with reported_errors(interrupted), warnings_as_notes():
            if (work := settled(given)) is not None:
                work.carry_out()
        return None

    flat_function.__name__, flat_function.__doc__ = function.__name__, function.__doc__
    flat_function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flat_function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat_function


def check_paths(given: Mapping[str, Any]) -> None:
    """Refuse addresses, and inputs that are not there, before anything is loaded."""
    for name, path in given.items():
        if isinstance(path, Path):
            if url := address_of(path):
                raise UsageError(f"{url} must be a path on this machine: nothing is fetched or sent, copy files first")
            if name in ("source", "before", "after") and not path.exists():
                raise UsageError(f"{path} must be a folder of images, or one image, got nothing there")


def check_early(given: Mapping[str, Any]) -> None:
    """Refuse what needs no library to be seen to be wrong: numbers, a model that is not there, places for results."""
    for name in ("steps", "batch_size", "count"):
        value = given.get(name)
        if isinstance(value, int) and value < 1:
            raise UsageError(f"{name.replace('_', ' ')} must be at least 1, got {value}")
    strength = given.get("strength")
    if "sigma" in given and strength is not None and not 0 <= strength <= 1:
        raise UsageError(f"strength must be in [0, 1], got {strength:g}")
    if (given.get("sigma") or 0) < 0:
        raise UsageError(f"sigma must be 0 or more, got {given['sigma']:g}")
    if given.get("calibration") is not None:
        read_text(given["calibration"])
    if "resume" in given and isinstance(given.get("out"), Path):
        from nearfar.jobs.places import check_out, check_places

        if isinstance(given.get("source"), Path):
            check_places(given["source"], given["out"], given["resume"])
        else:
            check_out(given["out"], given["resume"])
    if "download" in given:
        check_model(given)


def check_model(given: Mapping[str, Any]) -> None:
    """Refuse a name that stands for nothing, a folder without an index, and what its network cannot be asked.

    What is to be downloaded is not asked for.
    """
    from nearfar.models.lookup import (
        asked_or_default,
        check_asked,
        check_device,
        check_revision,
        default_model,
        open_folder,
    )

    check_device(given["device"])
    if given["download"]:
        check_revision(given["model"] or default_model(), given["revision"], True)
        return
    name, path = asked_or_default(given["model"], revision=given["revision"])
    if path.is_dir():
        check_asked(open_folder(path), name, given)


def filled(group: Any, given: dict[str, Any]) -> Any:
    """The dataclass of what was given for its fields, which are taken out of it."""
    hints = get_type_hints(group, localns={"Tensor": Any})
    return group(**{entry.name: value_of(entry, hints[entry.name], given.pop(entry.name)) for entry in fields(group)})


def value_of(entry: Field[Any], kind: Any, typed: Any) -> Any:
    """A field's value from what was typed. Raises UsageError for what is none of its choices."""
    if get_origin(kind) is Literal:
        one_of(typed, option_name(entry), get_args(kind))
    return entry.metadata.get("read", lambda same: same)(typed)


def options_of(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as the shell's options."""
    hints = get_type_hints(group, localns={"Tensor": Any})
    return [option_of(entry, hints[entry.name], group.__name__) for entry in fields(group)]


def option_of(entry: Field[Any], kind: Any, group: str) -> inspect.Parameter:
    about = entry.metadata
    choices = f"[{'|'.join(get_args(kind))}]" if get_origin(kind) is Literal else None
    several = "NUMBER" if "list[float]" in str(kind) else "TEXT" if "list[str]" in str(kind) else None
    metavar = about.get("metavar", choices or several)
    kind = about.get("shell", Path | None if Path in get_args(kind) else str if get_origin(kind) is Literal else kind)
    names = [f"--{option_name(entry)}"] if kind is bool or "option" in about else []
    names += [about["short"]] if "short" in about else []
    shown: Any = typer.Option(*names, metavar=metavar, help=about["help"], rich_help_panel=PANELS.get(group))
    if "argument" in about:
        shown = typer.Argument(metavar=about["argument"], help=about["help"])
    default = about.get("typed") if "shell" in about else entry.default
    return named(entry.name, inspect.Parameter.empty if default in (MISSING, ...) else default, Annotated[kind, shown])


def option_name(entry: Field[Any]) -> str:
    name: str = entry.metadata.get("option", entry.name)
    return name.replace("_", "-")


def named(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
