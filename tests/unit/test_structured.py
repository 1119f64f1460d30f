"""Structured files: every way of being wrong is one sentence, and costs little."""

import json
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest

from nearfar.errors import UsageError
from nearfar.structured import (
    MANY,
    MOST,
    MOST_YAML,
    checked,
    csv_rows,
    json_object,
    read_text,
    safetensors_header,
    yaml_object,
)

BAD_JSON = {
    "depth": ('{"a":' * 100 + "1" + "}" * 100, "deep"),
    "far too deep": ("[" * 100_000, "recursion"),
    "NaN": ('{"a": NaN}', "NaN is no number of JSON"),
    "infinite": ('{"a": -Infinity}', "-Infinity is no number of JSON"),
    "overflow": ('{"a": 1e999}', "not finite"),
    "negative overflow": ('{"a": [-1e999]}', "not finite"),
    "huge": ('{"a": ' + "9" * 30 + "}", "beyond 64 bits"),
    "endless": ('{"a": ' + "9" * 9999 + "}", "Exceeds the limit"),
    "twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "twice within": ('{"x": [{"a": 1, "a": 1}]}', "'a' is there twice"),
    "half a character": (r'{"a": "\ud800"}', "surrogates not allowed"),
    "half a character in a name": (r'{"\udfff": 1}', "surrogates not allowed"),
    "NUL": (r'{"a": "x\u0000y"}', "NUL"),
    "cut": ('{"a": ', "Expecting value"),
    "empty": ("", "Expecting value"),
    "list": ("[1]", "must be a JSON object, got list"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_one_sentence(text, reason):
    with pytest.raises(UsageError, match=reason) as error:
        json_object(text, "a.json")
    assert str(error.value).startswith("a.json ")
    assert str(error.value).endswith(": mend it or move it away")


def test_good_json_is_what_it_says():
    content = {
        "a": [1, 2.5, None, True, {"b": "\U0001f600", "\\u0000": -(2**63)}],
        "deep": json.loads("[" * 60 + "]" * 60),
    }
    assert json_object(json.dumps(content), "x") == content


BAD_YAML = {
    "alias": ("a: &x [1]\nb: *x", "an alias"),
    "laughs": ("a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in pairwise("abcdefgh")), "alias"),
    "loop": ("&a [*a]", "alias"),
    "depth": ("[" * 100 + "]" * 100, "more than 64 levels"),
    "far too deep": ("{a: " * 20_000, "levels"),
    "tag": ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "wrong int": ("a: !!int ''", "index out of range"),
    "wrong bool": ("a: !!bool x", "'x'"),
    "wrong time": ("a: 2000-99-99", "month must be"),
    "infinite": ("names: {.inf: a}", "not finite"),
    "NaN": ("a: .nan", "not finite"),
    "twice": ("a: 1\na: 2", "'a' is there twice"),
    "twice within": ("x: [{0: a, 0: b}]", "'0' is there twice"),
    "long": ("a: b\n# " + "x" * MOST_YAML, "more than 262,144 characters"),
    "list": ("[1]", "must hold names and values, got list"),
    "text": ("x", "must hold names and values, got str"),
    "control": ("a: \x01", "character"),
    "NUL": ('a: "\\0"', "NUL"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_YAML.values(), ids=BAD_YAML)
def test_bad_yaml_is_one_sentence(text, reason):
    with pytest.raises(UsageError, match=reason):
        yaml_object(text, "data.yaml")


def test_good_yaml_is_what_it_says():
    assert yaml_object("names: {0: a, 1: b}\ntrain: [x, y]", "x") == {"names": {0: "a", 1: "b"}, "train": ["x", "y"]}
    assert yaml_object("", "x") == yaml_object("# nothing", "x") == {}


BAD_CSV = {
    "long field": ("file_name\n" + "x" * 200_000, "field larger"),
    "long header": ("x" * 200_000, "field larger"),
    "NUL": ("file_name\na\0b", "NUL"),
    "twice": ("a,b,a\n1,2,3", "'a' is there twice"),
    "short": ("a,b\n1", "row 1 has another number"),
    "long": ("a,b\n1,2\n1,2,3", "row 2 has another number"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv_is_one_sentence(text, reason):
    with pytest.raises(UsageError, match=reason):
        list(csv_rows(text, "m.csv"))


def test_good_csv_is_what_it_says():
    assert list(csv_rows('a,b\n1,"x\ny"\n', "m")) == [{"a": "1", "b": "x\ny"}]
    assert list(csv_rows("", "m")) == []


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'"\xed\xa0\x80"', b"\xc3", bytes(range(256))])
def test_text_that_is_not_utf8_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read as UTF-8 text \(.+\): mend it or move it away"):
        read_text(tmp_path / "x")


def test_too_much_and_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path / "absent")
    (tmp_path / "x").write_text("\ufeffabc", "utf-8")
    assert read_text(tmp_path / "x") == "abc"
    with pytest.raises(UsageError, match="more than 3 bytes"):
        read_text(tmp_path / "x", most=3)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, (1 << 62).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{", b"\2" + b"\0" * 7 + b"[]"],
)
def test_bad_headers_of_safetensors_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match="get it again"):
        safetensors_header(tmp_path / "x")


@dataclass(frozen=True)
class Thing:
    name: str
    sizes: tuple[int, ...]
    share: float = 0.0


BAD_THINGS = {
    "no name": {"sizes": []},
    "a number": {"name": 3, "sizes": []},
    "a text": {"name": "x", "sizes": ["3"]},
    "a float": {"name": "x", "sizes": [1.5]},
    "a truth": {"name": "x", "sizes": [True]},
    "null": {"name": "x", "sizes": [], "share": None},
    "list": [],
    "none": None,
}


@pytest.mark.parametrize("content", BAD_THINGS.values(), ids=BAD_THINGS)
def test_wrong_types_are_one_sentence(content):
    with pytest.raises(UsageError, match=r"^x is wrong at .+ \(.+\): mend it or move it away$"):
        checked(Thing, content, "x")


def test_right_types_are_the_thing():
    assert checked(Thing, {"name": "x", "sizes": [1, 2], "share": 1, "more": 3}, "x") == Thing("x", (1, 2), 1.0)


WORST = {
    "too many": b'{"a":[' + b"{}," * (MOST // 3 - 10) + b"{}",
    "objects": b'{"a":[' + b"{}," * (MANY - 9) + b"{}",
    "names": b"{" + b",".join(b'"%x":1' % number for number in range(MOST // 12)),
    "a name twice": b"{" + b",".join(b'"%x":1' % (number // 2) for number in range(MOST // 99)) + b"}",
}


@pytest.mark.parametrize("kind", WORST)
def test_the_costliest_refusals_stay_in_their_bounds(kind):
    began = time.process_time()
    with pytest.raises(UsageError):
        json_object(WORST[kind], "x")
    assert time.process_time() - began < 5
