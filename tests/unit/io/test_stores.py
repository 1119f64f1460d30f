"""Places: what an address is, what lies below it, and that an object comes and goes whole or not at all."""

import itertools
import tracemalloc
from dataclasses import dataclass, field

import pytest

from nearfar.errors import RunError, UsageError
from nearfar.io import stores
from nearfar.io.stores import Folder, Source, Store, address_of, place_of, safe

COUNT = itertools.count()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(stores, "PAUSES", (0, 0))


@pytest.fixture
def store():
    """A prefix of fsspec's memory that no other test has."""
    return Store(f"memory://of-stores/{next(COUNT)}")


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("s3:/bucket/in", "s3://bucket/in"),
        ("s3://bucket/in/", "s3://bucket/in"),
        ("S3:/bucket/in", "s3://bucket/in"),
        ("file:/tmp/in", "file:///tmp/in"),
        ("memory:/a", "memory://a"),
        ("ftp:/host/a", "ftp://host/a"),
        ("s3:", "s3://"),
        ("photos", None),
        ("a/s3:/b", None),
        ("C:/photos", None),
        ("odd:name", None),
    ],
)
def test_an_address_is_known_after_a_path_has_taken_a_slash(typed, url):
    assert address_of(typed) == url


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ftp://host/a", "ftp://host/a has a scheme that is not known: give a path, or one of s3://, gs://, az://"),
        ("s3://", "s3:// names nothing: give s3://BUCKET/FOLDER"),
        ("gs://bucket/a", "gs://bucket/a needs the library gcsfs: pip install 'nearfar[gs]'"),
    ],
)
def test_what_is_no_place_is_refused_with_a_sentence(address, sentence, monkeypatch):
    monkeypatch.setattr(stores, "find_spec", lambda _: None)
    with pytest.raises(UsageError) as error:
        place_of(address)
    assert str(error.value).startswith(sentence)


def test_a_file_address_is_a_folder_of_this_machine(tmp_path):
    assert place_of(f"file:/{tmp_path}") == Folder(tmp_path)


def test_a_folder_and_a_store_hold_the_same_after_the_same(store, tmp_path):
    for place in (store, Folder(tmp_path / "there")):
        for name in ("b.png", "a/ü.png", "a/b/c.png"):
            (tmp_path / "file").write_bytes(name.encode())
            place.put(tmp_path / "file", name)
            assert not (tmp_path / "file").exists()
        place.write("note", b"0123456789")
        assert [one.name for one in sorted(place.sources(), key=lambda one: one.name)] == [
            "a/b/c.png",
            "a/ü.png",
            "b.png",
            "note",
        ]
        assert {one.name: one.size for one in place.sources()}["a/ü.png"] == len("a/ü.png".encode())
        assert place.names() == ["a", "b.png", "note"]
        assert place.read("note") == b"0123456789"
        assert (place.read("note", 2, 5), place.read("note", -3)) == (b"234", b"789")
        place.remove("note")
        place.remove("note")
        assert place.names() == ["a", "b.png"]
        with pytest.raises(FileNotFoundError):
            place.read("note")
        place.beside(".more").write("", b"itself")
        assert place.beside(".more").read("") == b"itself"


def test_a_source_is_brought_whole_and_once(store, tmp_path):
    store.write("a/b.png", b"content")
    (one,) = store.sources()
    target = tmp_path / "in/a/b.png"
    store.fetch(one, target)
    assert target.read_bytes() == b"content"
    target.write_bytes(b"CONTENT")  # as long: it is there
    store.fetch(one, target)
    assert target.read_bytes() == b"CONTENT"
    target.write_bytes(b"cont")  # a run was killed while it came
    store.fetch(one, target)
    assert target.read_bytes() == b"content"


def test_a_source_that_has_another_size_than_listed_is_an_error_that_names_it(store, tmp_path):
    store.write("a.png", b"content")
    with pytest.raises(RunError, match=r"reading memory://.*/a.png fails \(it came with 7 bytes and was listed with 9"):
        store.fetch(Source("a.png", 9, ""), tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        store.fetch(Source("b.png", 9, ""), tmp_path / "b.png")


def test_an_upload_that_is_cut_is_taken_away_and_tried_again(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    whole = store.driver.put_file
    cuts = [3, 0, None]

    def cut(path, target):
        if (size := cuts.pop(0)) is None:
            whole(path, target)
        else:
            store.driver.pipe_file(target, b"content"[:size])

    monkeypatch.setattr(store.driver, "put_file", cut)
    store.put(tmp_path / "file", "a.png")
    assert store.read("a.png") == b"content"
    cuts += [1, 2, 3]
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(RunError, match="3 of 7 bytes arrived"):
        store.put(tmp_path / "file", "b.png")
    assert store.names() == ["a.png"]
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("name", ["/a", "a//b", "../a", "a/..", "a/./b", "a\0", ""])
def test_a_name_that_leaves_its_folder_is_not_safe(name):
    assert not safe(name)
    assert safe("a/b.png")


def test_an_object_with_a_name_that_is_no_file_is_refused(store):
    store.driver.pipe_file(f"{store.root}/a/../../b.png", b"")
    with pytest.raises(UsageError, match="which is no name of a file: rename it"):
        list(store.sources())


@dataclass
class Pages:
    """S3's listing of so many objects, 1,000 a page."""

    count: int
    failing: list[int] = field(default_factory=list)

    def call_s3(self, method, Bucket, Prefix, ContinuationToken="0"):  # noqa: N803
        assert (method, Bucket, Prefix) == ("list_objects_v2", "bucket", "in/")
        first = int(ContinuationToken)
        if first in self.failing:
            self.failing.remove(first)
            raise OSError("503 Slow Down")
        last = min(first + 1000, self.count)
        names = (f"in/{number:09}.png" for number in range(first, last))
        contents = [{"Key": name, "Size": 1, "ETag": '"0"'} for name in names]
        more = {"IsTruncated": True, "NextContinuationToken": str(last)} if last < self.count else {}
        return {"Contents": contents, **more}


def test_a_listing_of_s3_streams(monkeypatch):
    monkeypatch.setattr(stores, "opened", lambda _: (Pages(8_000, [0, 3000]), "bucket/in"))
    tracemalloc.start()
    count = sum(1 for _ in Store("s3://bucket/in").sources())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert most < 1_500_000  # bytes, of a page of 1,000; all of them would be 4 million
