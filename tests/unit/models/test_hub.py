"""Where a model is looked for, what is downloaded and what never is, against a hub played by a local server."""

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from nearfar.errors import UsageError
from nearfar.models.loading import load_model
from nearfar.models.lookup import find_model

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
WANTED = {
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "model_index.json": b'{"_class_name": "DDPMPipeline"}',
    "tokenizer/merges.txt": b"a b\n",
    "tokenizer_3/spiece.model": b"pieces",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights" * 99,
}
UNWANTED = {
    "modeling.py": b"raise SystemExit('code of a repository was run')",
    "samples.png": b"picture",
    "all_in_one.safetensors": b"again",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"raw",
    "unet/model.ckpt": b"pickle",
}
FLAT = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"weights"}
PICKLED = {"config.json": b"{}", "diffusion_pytorch_model.bin": b"pickle"}
REPOSITORIES = {"owner/tiny": WANTED | UNWANTED, "owner/flat": FLAT, "owner/pickled": PICKLED}
REFUSALS = {"owner/gated": (403, "GatedRepo"), "owner/gone": (404, "RepoNotFound"), "owner/closed": (403, "")}
SCRIPT = """
import json, sys
from nearfar.errors import UsageError
from nearfar.models.lookup import find_model
def answer(source, options):
    try:
        return str(find_model(source, **options))
    except UsageError as error:
        return f"refused: {error}"
print(json.dumps([answer(*call) for call in json.load(sys.stdin)]))
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's listing of a commit and its files, as huggingface_hub 2.4 asks for them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        name, action, commit, rest = re.fullmatch(
            r"/(?:api/models/)?([\w.-]+/[\w.-]+)/(tree|resolve)/(\w+)/?(.*)", self.path.partition("?")[0]
        ).groups()
        files = REPOSITORIES.get(name)
        if files is None:
            self.reply(*REFUSALS[name])
        elif commit != COMMIT:
            self.reply(404, "RevisionNotFound")
        else:
            self.reply(200, "", listing(files) if action == "tree" else files[rest])

    do_HEAD = do_GET  # noqa: N815

    def reply(self, status, code, body=b""):
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "ETag": f'"{hash(body) % 2**64:016x}"'}
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def listing(files):
    entries = [{"type": "file", "path": path, "size": len(body), "oid": "0" * 40} for path, body in files.items()]
    return json.dumps(entries).encode()


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(hub, cache, *calls):
    """The answers of another process, which reads the hub's address and the cache from its environment."""
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    env = keep | {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(calls), capture_output=True, text=True, env=env, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def pinned(name, commit=COMMIT):
    return name, {"revision": commit, "download": True}


@pytest.fixture(scope="module")
def session(hub, tmp_path_factory):
    """One process asks without --download, another with it; what the server saw of each."""
    home = tmp_path_factory.mktemp("hub")
    silent = ask(
        hub, home, ("owner/tiny", {}), ("owner/tiny", {"revision": COMMIT}), ("owner/tiny", {"download": True})
    )
    unasked = list(hub.requests)
    names = ["owner/tiny", "owner/flat", "owner/pickled", "owner/gated", "owner/gone", "owner/closed"]
    answers = ask(hub, home, *map(pinned, names), pinned("owner/tiny", OTHER))
    found = dict(zip([*names, "other commit"], answers, strict=True))
    return SimpleNamespace(cache=home / "hub", silent=silent, unasked=unasked, found=found, requests=list(hub.requests))


@pytest.fixture
def cache(session, monkeypatch):
    """The cache that the session filled, in this process, which may not reach any network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(session.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return session.cache


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def store(cache, name, commit, *files):
    """A snapshot as an older client leaves it, without the listing of the repository."""
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    return folder


# Paths


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("kind", [str, Path])
def test_existing_paths_are_returned_as_they_are(kind, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "weights.ckpt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_model(kind("models/mine")) == Path("models/mine")
    assert find_model(kind(tmp_path / "weights.ckpt")) == tmp_path / "weights.ckpt"


@pytest.mark.parametrize(
    ("options", "named"), [({"revision": COMMIT}, "--revision"), ({"download": True}, "--download")]
)
def test_options_of_the_hub_are_refused_for_a_local_path(tmp_path, options, named):
    with pytest.raises(UsageError, match=rf"is a local path, {named} is for names on the hub: leave {named} out"):
        find_model(tmp_path, **options)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("source", ["no/such/folder", "nothing", "a folder/a model", "../x/y", "-x/y"])
def test_other_sources_are_refused_with_the_way_out(source):
    with pytest.raises(UsageError, match=r"does not exist: give a .* folder or file, or owner/name with --download"):
        find_model(source)


# Nothing is downloaded unasked


@pytest.mark.process
def test_nothing_is_requested_without_download_and_a_full_commit(session):
    assert session.unasked == []
    plain, at, unpinned = session.silent
    assert "owner/tiny is neither a path nor in the Hugging Face cache" in plain
    assert f"owner/tiny at {COMMIT} is neither" in at
    assert "add --download --revision COMMIT (copy one from https://huggingface.co/owner/tiny/commits/main)" in plain
    assert "refused: --revision must be a commit of 40 hexadecimal digits, got none" in unpinned


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/7", COMMIT[:7], COMMIT.upper(), ""])
@pytest.mark.parametrize("download", [True, False])
def test_only_a_full_commit_is_a_revision(revision, download):
    with pytest.raises(UsageError, match=rf"40 hexadecimal digits, got '{revision}': copy one from https://hugg"):
        find_model("owner/tiny", revision=revision, download=download)


# The download


@pytest.mark.process
def test_download_fetches_descriptions_and_safetensors_only(session):
    snapshot = Path(session.found["owner/tiny"])
    assert snapshot == session.cache / "models--owner--tiny" / "snapshots" / COMMIT
    files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in files.items()} == WANTED
    asked = {request.partition(f"/owner/tiny/resolve/{COMMIT}/")[2] for request in session.requests} - {""}
    assert asked == set(WANTED)


@pytest.mark.process
def test_the_server_sees_one_listing_and_the_files(session):
    about = [request for request in session.requests if "/owner/flat/" in request]
    assert f"GET /api/models/owner/flat/tree/{COMMIT}" in about[0]
    assert {request.rpartition("/")[2] for request in about[1:]} == set(FLAT)


@pytest.mark.process
def test_flat_repositories_keep_their_weights(session):
    assert {path.name for path in Path(session.found["owner/flat"]).iterdir()} == set(FLAT)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("owner/gated", r"was not downloaded: accept its terms on https://huggingface.co/owner/gated, then log in"),
        ("owner/gone", r"was not downloaded: the hub shows no such repository; check the name, or log in"),
        ("owner/closed", r"was not downloaded: 403 Forbidden: .*; try again, what has arrived is kept"),
        ("other commit", rf"owner/tiny at {OTHER} was not downloaded: it has no such commit; copy one from https://hu"),
    ],
)
def test_failures_name_the_way_out(session, name, way_out):
    assert re.match(rf"refused: .*{way_out}", session.found[name])


@pytest.mark.process
def test_pickled_weights_were_asked_for_only_where_there_are_no_others(session):
    pickled = [request for request in session.requests if request.endswith((".bin", ".ckpt", ".py"))]
    assert {request.rpartition("/resolve/")[0].rpartition(" ")[2] for request in pickled} == {"/owner/pickled"}
    assert {path.name for path in Path(session.found["owner/pickled"]).iterdir()} == set(PICKLED)


@pytest.mark.usefixtures("empty_cache")
def test_download_offline_names_the_way_out():
    with pytest.raises(UsageError, match=r"cannot be reached; go online \(HF_HUB_OFFLINE must not be set\), or copy"):
        find_model("owner/tiny", revision=COMMIT, download=True)


@pytest.mark.usefixtures("empty_cache")
def test_names_that_the_hub_forbids_are_refused():
    with pytest.raises(UsageError, match=r"owner/na--me cannot be a name on the hub \(.*: check it"):
        find_model("owner/na--me", revision=COMMIT, download=True)


# The cache


@pytest.mark.process
def test_downloaded_snapshots_are_found_offline(cache):
    expected = cache / "models--owner--tiny" / "snapshots" / COMMIT
    assert find_model("owner/tiny") == expected
    assert find_model(Path("owner/tiny"), revision=COMMIT) == expected
    assert find_model("owner/tiny", revision=COMMIT, download=True) == expected


def test_several_snapshots_are_listed(empty_cache):
    first = store(empty_cache, "owner/two", COMMIT, "unet/diffusion_pytorch_model.bin")
    store(empty_cache, "owner/two", OTHER, "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=rf"at 2 commits: give --revision, one of {COMMIT}, {OTHER}$"):
        find_model("owner/two")
    assert find_model("owner/two", revision=COMMIT) == first


def test_a_snapshot_without_weights_is_refused_when_it_is_loaded(empty_cache):
    files = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
    folder = store(empty_cache, "owner/words", COMMIT, *files)
    for file in files:
        (folder / file).write_text("{}")
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"unet holds no weights \(\.safetensors\)"):
        load_model("owner/words", "cpu")
