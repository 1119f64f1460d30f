"""`nearfar models fetch` against a local server that speaks the hub's protocol: hashes, ranges, what is left behind."""

import hashlib
import json
import re
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

import tiny_models
from nearfar.errors import UsageError
from nearfar.models import fetching
from nearfar.models.cards import Card, read_cards
from nearfar.models.fetching import fetch_model
from nearfar.models.loading import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """The listing of a commit, with hashes, and its files, from any byte on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        place = unquote(self.path.partition("?")[0])
        action, commit, rest = re.fullmatch(r"/(?:api/models/)?owner/tiny/(tree|resolve)/(\w+)/?(.*)", place).groups()
        files = self.server.files
        if commit != COMMIT:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif action == "tree":
            self.reply(200, json.dumps([entry(path, body) for path, body in files.items()]).encode())
        else:
            self.send(rest, self.server.tampered.get(rest, files[rest]))

    def send(self, path, body):
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-")).group(1))
        self.server.requests.append((path, begin))
        status = 206 if begin else 200
        ends = {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
        cut = self.server.cuts.pop(path, len(body))
        self.reply(status, body[begin:], ends, cut - begin)

    def reply(self, status, body, headers=None, most=None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:most])
        self.close_connection = most is not None and most < len(body)

    def log_message(self, *_):
        pass


def entry(path, body):
    found = {"type": "file", "path": path, "size": len(body)}
    found["oid"] = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    if path.endswith((".safetensors", ".bin")):
        found["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.ddpm(folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found | {"run_me.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"pickle"}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.tampered, server.cuts, server.requests = dict(files), {}, {}, []
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def fetched():
    return fetch_model("owner/tiny", COMMIT)


def left(tmp_path):
    return {path.name for path in (tmp_path / "hub").rglob("*") if path.is_file()}


def test_a_fetched_model_loads_by_its_name_and_only_its_own_files_came(hub, monkeypatch):
    name, folder = fetched()
    assert not {"run_me.py", "diffusion_pytorch_model.bin"} & {path.name for path in folder.rglob("*")}
    asked = len(hub.requests)
    assert fetched() == (name, folder)  # only listed again
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model(name).image.size == 16


def test_a_wrong_hash_leaves_nothing_of_the_file_and_no_model(hub, tmp_path, files):
    hub.tampered[WEIGHTS] = files[WEIGHTS][:-1] + b"x"
    with pytest.raises(UsageError, match="has another hash than the hub lists"):
        fetched()
    assert "diffusion_pytorch_model.safetensors" not in left(tmp_path)
    assert not (tmp_path / "hub" / "models--owner--tiny" / "snapshots").exists()
    hub.tampered.clear()
    assert (fetched()[1] / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_what_a_card_states_counts_more_than_what_the_hub_lists(hub, tmp_path, monkeypatch):
    card = replace(read_cards()[0], name="owner/tiny", commit=COMMIT, sha256={WEIGHTS: "0" * 64})
    monkeypatch.setattr(fetching, "read_cards", lambda: (card,))
    with pytest.raises(UsageError, match="another SHA-256 than its card states"):
        fetch_model("tiny")
    assert "diffusion_pytorch_model.safetensors" not in left(tmp_path)


def test_an_interrupted_fetch_goes_on_at_the_byte_where_it_stopped(hub, files, monkeypatch):
    def stop(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cuts[WEIGHTS] = 5000
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", stop)  # before the client itself tries again
    with pytest.raises(UsageError, match="was not fetched"):
        fetched()
    before = len(hub.requests)
    folder = fetched()[1]
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert (WEIGHTS, 5000) in hub.requests[before:]
    assert [path for path, begin in hub.requests[before:] if path == "model_index.json"] == []


def test_places_outside_of_a_repository_and_unknown_commits_are_refused(hub, tmp_path):
    with pytest.raises(UsageError, match="it has no such commit"):
        fetch_model("owner/tiny", "f" * 40)
    hub.files["unet/../../evil.json"] = b"{}"
    with pytest.raises(UsageError, match="no place in a repository"):
        fetched()
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("owner/tiny", "no commit of owner/tiny is known: give --revision COMMIT"),
        ("bundled/cells", "comes with the package: give --model bundled/cells"),
        ("celeba_hq.ckpt", "it is published at https://github.com/ermongroup/SDEdit"),
        ("nothing", "is no repository on the hub, from which alone models are fetched: give owner/name"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_the_way_out(name, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        fetch_model(name)


def test_cards_state_whole_commits():
    stated = [card for card in read_cards() if card.commit]
    assert stated
    assert all(isinstance(card, Card) and re.fullmatch("[0-9a-f]{40}", card.commit) for card in stated)
