"""Structured files that somebody else may have written (JSON, YAML, CSV, headers of safetensors), read with care.

Whatever is wrong with one is a `UsageError` of one sentence. Bounds, checked before anything is parsed, so that what is
refused costs at most 5 seconds and 1 GiB: a file of `MOST` bytes (YAML: `MOST_YAML`) in UTF-8. Annotations of a large
data set may have `MOST_ANNOTATIONS`, and cost what their size does. Lists and objects are 64 deep at most, no more than
`MANY` or one for each 16 bytes; no NaN, no integers beyond 64 bits, no key twice, no lone surrogates or NUL, no YAML
aliases. Then types: `checked` holds what was parsed against a dataclass.
"""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from nearfar.errors import UsageError, first_line, printable

MOST, MOST_YAML, MOST_ANNOTATIONS = 1 << 24, 1 << 18, 1 << 30
DEEPEST, MANY = 64, 300_000

T = TypeVar("T")
MEND = "mend it or move it away"


def read_text(path: Path, most: int = MOST, way: str = MEND) -> str:
    """A file of UTF-8 text, with or without a byte order mark. most: bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UsageError(f"{path} has more than {most:,} bytes: make it smaller")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): {way}") from None
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({first_line(error)}): {way}") from None


def parse_json(text: str | bytes, place: str, way: str = MEND) -> Any:
    """What a JSON text says. place: what errors call it. way: how to mend it."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        if text.count("[") + text.count("{") > max(MANY, len(text) // 16):
            raise ValueError(f"more than {MANY:,} lists and objects")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
        check_values([content])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not valid JSON ({first_line(error)}): {way}") from None
    return content


def json_object(text: str | bytes, place: str, way: str = MEND) -> dict[str, Any]:
    content = parse_json(text, place, way)
    if not isinstance(content, dict):
        raise UsageError(f"{place} must be a JSON object, got {type(content).__name__}: {way}")
    return content


def yaml_object(text: str, place: str, way: str = MEND) -> dict[Any, Any]:
    """What a YAML text says; nothing for an empty one."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if len(text) > MOST_YAML:
            raise ValueError(f"more than {MOST_YAML:,} characters")
        check_events(yaml.parse(text, loader))
        check_keys(yaml.compose(text, loader))
        content = yaml.load(text, loader)
        check_values([content])
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{place} is not valid YAML ({first_line(error)}): {way}") from None
    if not isinstance(content, dict | None):
        raise UsageError(f"{place} must hold names and values, got {type(content).__name__}: {way}")
    return content or {}


def csv_rows(text: str, place: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by the names in its first line, which must differ."""
    try:
        check_values([text])
        rows = csv.DictReader(io.StringIO(text, newline=""))
        unique([(name, "") for name in rows.fieldnames or ()])
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise UsageError(f"{place} row {number} has another number of fields than the header: mend it")
            yield row
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{place} is not valid CSV ({first_line(error)}): {MEND}") from None


def safetensors_header(path: Path, most: int = MOST) -> dict[str, Any]:
    """The header of a safetensors file: name of a tensor -> dtype, shape and place; texts in `__metadata__`."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > most:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"{path} is no safetensors file ({first_line(error)}): get it again") from None
    return json_object(text, f"the header of {path}", "get it again")


def checked(kind: type[T], content: Any, place: str, way: str = MEND) -> T:
    """Parsed JSON as a dataclass or another type, where every part has its type; other keys are passed over."""
    from pydantic import ValidationError

    try:
        return cast(T, adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        at, rule = ".".join(map(str, wrong["loc"])), wrong["msg"]
        raise UsageError(f"{place} is wrong at {printable(at) or 'its top'} ({printable(rule)}): {way}") from None


@cache
def adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = sorted(name for name, _ in pairs)
        again = next(name for name, following in pairwise(names) if name == following)
        raise ValueError(f"{again!r} is there twice")
    return content


def check_events(events: Iterable[Any]) -> None:
    """Refuse aliases and depth before anything is made of a YAML text."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if kind == "AliasEvent" or depth > DEEPEST:
            raise ValueError("an alias (*name)" if kind == "AliasEvent" else f"more than {DEEPEST} levels")


def check_keys(node: Any) -> None:
    """Refuse a key that a YAML mapping has twice."""
    inner = node.value if node is not None and isinstance(node.value, list) else []
    pairs = [pair for pair in inner if isinstance(pair, tuple)]
    unique([(str(key.value), "") for key, _ in pairs])
    for child in (value for _, value in pairs) if pairs else inner:
        check_keys(child)


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def check_values(level: list[Any]) -> None:
    """Refuse what no file should hold, level by level; ValueError says what."""
    for _ in range(DEEPEST):
        text = "".join(value for value in level if isinstance(value, str))
        text.encode()  # refuses half a character, a lone surrogate
        if "\0" in text:
            raise ValueError("text with the character NUL")
        if not all(math.isfinite(value) for value in level if isinstance(value, float)):
            raise ValueError("a number that is not finite")
        if any(abs(value) >= 1 << 64 for value in level if isinstance(value, int)):
            raise ValueError("a number beyond 64 bits")
        inner = [value for value in level if isinstance(value, dict | list)]
        level = list(chain.from_iterable(chain(v, v.values()) if isinstance(v, dict) else v for v in inner))
        if not level:
            return
    raise ValueError(f"lists and objects more than {DEEPEST} deep")
