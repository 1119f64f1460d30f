"""Mutated files for every reader: a `NearfarError` or an answer, within the bounds of `nearfar/structured.py`.

make fuzz                 10 minutes, the seed printed; FUZZ_SECONDS, FUZZ_INPUTS (a reader's) and FUZZ_SEED change that
make test                 a few inputs for each reader, always the same
"""

import os
import random
import re
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from bad_domains import random_pixels
from fuzz.readers import GROUPS, Kind, kinds
from nearfar.errors import NearfarError

SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", 0)), int(os.environ.get("FUZZ_SEED", 0))
INPUTS = int(os.environ.get("FUZZ_INPUTS", 0))
FEW, MOST_TIME, MOST_MEMORY = (40, 15, 4, 4), 5.0, 1 << 20
"""Inputs for each reader of a group in `make test`; seconds, kilobytes."""
COUNTS = {"inputs": 0, "refused": 0}

POISON = (
    *("NaN", "Infinity", "-1e999", "9" * 400, "null", "true", "[]", "{}", '""', '"x"', "-1", "1.5", "1e30", "0"),
    *('"\\ud800"', '"a\\u0000b"', '"../../x"', '"/etc/passwd"', "[" * 100 + "]" * 100, '{"a":1,"a":2}', "&a [*a]"),
    *("2147483647", "1073741824", "65536", "18446744073709551615", "[1, 2]", '{"a": 1}', "9007199254740993"),
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes flipped, cut out, doubled, or a value exchanged for a poisonous one."""
    for _ in range(chance.randint(1, 4)):
        place, end = sorted(chance.randint(0, len(content)) for _ in range(2))
        kind = chance.randrange(6)
        if kind == 0 and content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place] + content[end:]
        elif kind == 2:
            content = content[:place] + content[place:end] * 2 + content[end:]
        elif kind == 3:  # a number of a header
            content = content[:place] + chance.choice((b"\0", b"\xff", b"\x7f")) * 4 + content[place + 4 :]
        else:
            content = exchanged(content, chance)
    return content


def exchanged(content: bytes, chance: random.Random) -> bytes:
    """One number or text of it, if it has any, is another thing."""
    words = list(re_values(content))
    if not words:
        return content
    start, end = chance.choice(words)
    return content[:start] + chance.choice(POISON).encode() + content[end:]


def re_values(content: bytes):
    return (found.span() for found in re.finditer(rb'"[^"\n]*"|-?\d+(\.\d+)?|\w+', content[: 1 << 16]))


def report(line):
    sys.stdout.write(line + "\n")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "s.out").mkdir()
    Image.fromarray(random_pixels(1)).save(tmp_path / "images" / "a.png")
    return tmp_path


def answer(folder: Path, kind: Kind, number: int) -> None:
    """One mutated file through its reader; whatever is no NearfarError fails the test, as do time and memory."""
    path = folder / kind.name
    path.write_bytes(kind.wrap(mutated(kind.content, random.Random(number))))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    COUNTS["inputs"] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except NearfarError as refusal:
        COUNTS["refused"] += 1
        said = str(refusal)
    else:
        said = ""
    assert "\n" not in said
    assert time.process_time() - began < MOST_TIME
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


def sound(folder: Path, kind: Kind) -> None:
    """What is mutated is read as it is, or the mutated files would all be refused for one reason."""
    if kind.others:
        shutil.copytree(kind.others, folder, dirs_exist_ok=True)
    (folder / kind.name).write_bytes(kind.wrap(kind.content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.read(folder / kind.name)


def examples(folder: Path, kind: Kind, count: int) -> None:
    checks = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )

    @seed(SEED)
    @checks
    @given(number=st.integers(0, 2**63))
    def run(number):
        answer(folder, kind, number)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("group", range(len(GROUPS)), ids=lambda group: GROUPS[group].__name__)
def test_every_reader_answers_or_refuses(folder, group):
    for name, kind in kinds(group).items():
        place = folder / name.replace("/", " ")
        shutil.copytree(folder / "images", place / "images")
        for empty in ("labels", "s.out"):
            (place / empty).mkdir()
        sound(place, kind)
        try:
            examples(place, kind, FEW[group])
            more(place, kind, SECONDS / len(GROUPS) / len(kinds(group)))
        except BaseException as error:
            error.add_note(f"reader {name!r}, seed {SEED}")
            raise
        report(f"seed {SEED}: {name}, so far {COUNTS['inputs']} inputs, {COUNTS['refused']} refused")


def more(folder: Path, kind: Kind, seconds: float) -> None:
    """Inputs for so many seconds, or as many as were asked for."""
    end, numbers, left = time.monotonic() + seconds, random.Random(SEED), INPUTS
    while time.monotonic() < end or left > 0:
        number, left = numbers.getrandbits(63), left - 1
        try:
            answer(folder, kind, number)
        except BaseException as error:
            error.add_note(f"number {number}")
            raise
