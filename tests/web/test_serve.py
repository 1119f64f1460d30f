"""The page of `nearfar serve` in a real Chromium, and its server without one. A tiny model, one server for all."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import closing
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_models
from nearfar.cli.serve import Serving
from nearfar.errors import UsageError
from nearfar.web.server import read_auth

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'nearfar[web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="tests of the page need playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"),
]
SOON = 20_000


class Server:
    def __init__(self, folder, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        command = [sys.executable, "-m", "nearfar", "serve", "--port", str(self.port), *map(str, more)]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("open "):
                break
        self.address = f"http://127.0.0.1:{self.port}"

    def end(self):
        self.process.send_signal(signal.SIGINT)
        self.said += self.process.communicate(timeout=20)[1].splitlines()
        return self.process.returncode

    def answer(self, path, method="GET", body=None, **headers):
        return answer(self.port, path, method, body, **headers)


def answer(port, path, method="GET", body=None, **headers):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())


def write_faces(folder, count, shift=0):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255 - shift, (20, 24, 3), np.uint8) + shift
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tiny_models.ddpm(folder / "model")
    photos, near = write_faces(folder / "photos", 12), write_faces(folder / "near", 12, 4)
    (folder / "secret.txt").write_text("a secret of this machine")
    running = Server(folder, "--model", folder / "model", "--folder", photos, "--folder", near)
    running.folder = folder
    yield running
    if running.process.poll() is None:
        running.end()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(server, browser):
    """A visitor at 360 pixels; whatever is asked of another machine fails the test."""
    elsewhere = []
    page = browser.new_page(viewport={"width": 360, "height": 780})
    page.set_default_timeout(SOON)
    page.on("request", lambda asked: elsewhere.append(asked.url) if is_elsewhere(asked.url, server) else None)
    page.goto(server.address)
    yield page
    page.close()
    assert elsewhere == []


def is_elsewhere(url, server):
    return not url.startswith((server.address, "data:", "blob:"))


def picture_file(name, size=(30, 20), kind="PNG"):
    buffer = BytesIO()
    Image.new("RGB", size, (200, 120, 60)).save(buffer, kind)
    return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


def bad_file(name, content):
    return {"name": name, "mimeType": "image/png", "buffer": content}


def upload(page, file):
    page.locator("input[type=file]").first.set_input_files(file)


def test_a_picture_becomes_a_strip_and_variants(page):
    upload(page, picture_file("mine.png"))
    page.wait_for_selector("#strip li:nth-child(7)")
    titles = page.locator("#strip b").all_inner_texts()
    assert titles[0] == "original"
    assert titles[1:] == [*(f"strength {value:.2f}" for value in (0.1, 0.2, 0.35, 0.5, 0.7)), "a stranger"]
    caption = page.locator("#strip li").nth(1).inner_text()
    assert re.search(r"sigma \d.*pixels [-\d.]+ dB.*features [\d.]+.*\d+ calls, [\d.]+ s", caption, re.DOTALL)
    page.get_by_label("number input for Variants").fill("3")
    page.click("#make")
    page.wait_for_selector("#variants li:nth-child(3)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_slider_is_moved_by_keys_and_the_shell_line_follows(page):
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(one => one.value.includes('0.36'))")


BAD = [
    (bad_file("broken.png", b"\x89PNG\r\n\x1a\n" + b"no" * 50), "cannot be decoded"),
    (picture_file("large.png", (8000, 4000)), "8000 x 4000 pixels, more than 30,000,000"),
    (bad_file("<img src=x onerror=window.hurt=1>.png", b"hello"), "holds no PNG"),
]


@pytest.mark.parametrize(("file", "sentence"), BAD, ids=["broken", "pixels", "html"])
def test_a_bad_upload_is_refused_in_a_sentence(page, file, sentence):
    upload(page, file)
    page.wait_for_selector("p.error")
    assert sentence in page.inner_text("p.error")
    assert page.evaluate("window.hurt") is None


def test_an_upload_of_too_many_bytes_is_refused(server):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body += bytes(26 * 2**20) + b"\r\n--x--\r\n"
    status, _, _ = server.answer(
        "/gradio_api/upload", "POST", body, **{"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert status == 413


def test_two_visitors_get_their_own_pictures(server, page, browser):
    other = browser.new_page()
    other.set_default_timeout(SOON)
    other.goto(server.address)
    upload(page, picture_file("one.png"))
    upload(other, picture_file("two.png", (64, 64)))
    sizes = []
    for visitor in (page, other):
        visitor.wait_for_selector("#strip li:nth-child(7)")
        sizes.append(visitor.evaluate("document.querySelector('#strip img').naturalWidth"))
    other.close()
    assert sizes == [30, 64]


def test_an_audit_of_two_folders_is_shown_in_the_page(page):
    page.get_by_role("tab", name="Audit").click()
    page.click("#audit")
    frame = page.wait_for_selector("#report iframe")
    assert frame.get_attribute("sandbox") == ""
    assert "Who is still found" in frame.get_attribute("srcdoc")


def test_a_domain_of_a_folder_is_drawn_and_downloaded(page):
    page.get_by_role("tab", name="Domain").click()
    page.get_by_label("or a folder").click()
    page.get_by_role("option", name="photos").click()
    page.get_by_label("number input for New images").fill("4")
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(one => one.value.includes('photos.domain new --count 4'))"
    )
    page.click("#fit")
    page.wait_for_selector("#sheet li:nth-child(4)")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="The domain file").click()
    assert Path(waiting.value.path()).stat().st_size > 1000


PATHS = [
    "/gradio_api/file={}",
    "/file={}",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=../../../../../../{}",
    "/gradio_api/stream/x/{}",
    "/static/../../../../../..{}",
    "/assets/%2e%2e/%2e%2e/%2e%2e{}",
    "/theme.css/../..{}",
    "/gradio_api/proxy={}",
]


def test_no_path_leads_to_a_file_of_the_machine(server):
    for path, file in product(PATHS, (server.folder / "secret.txt", server.folder / "photos" / "0.png")):
        status, body, _ = server.answer(path.format(file))
        assert status >= 400
        assert b"a secret" not in body
        assert b"\x89PNG" not in body


def test_no_event_is_a_programming_interface(server):
    status, body, _ = server.answer("/gradio_api/info")
    assert status == 200
    assert b'"named_endpoints":{}' in body.replace(b" ", b"")


def forged(part, server):
    """What a visitor might send in place of a component's value: a path of the machine where one could be read."""
    secret = str(server.folder / "secret.txt")
    if part["type"] == "file":
        one = {"path": secret, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        return [one] if part["props"].get("file_count") == "multiple" else one
    if part["type"] == "dropdown":
        return str(server.folder)
    return secret if part["type"] in ("radio", "textbox") else part["props"].get("value")


def outcome(server, event, data):
    """The stream of an event that is sent as the page sends it; its end says whether it succeeded."""
    session = f"forged{event}"
    body = json.dumps({"data": data, "fn_index": event, "session_hash": session, "event_data": None})
    status, said, _ = server.answer("/gradio_api/queue/join", "POST", body, **{"Content-Type": "application/json"})
    if status != 200:
        return said, False
    said = server.answer(f"/gradio_api/queue/data?session_hash={session}")[1]
    lines = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: ")]
    return said, any(line.get("msg") == "process_completed" and line["success"] for line in lines)


def test_a_forged_request_reaches_no_folder_and_no_file_by_any_event(server):
    config = json.loads(server.answer("/config")[1])
    parts = {part["id"]: part for part in config["components"]}
    asked = set()
    for event in config["dependencies"]:
        inputs = [parts[number] for number in event["inputs"]]
        kinds = {part["type"] for part in inputs} & {"file", "dropdown", "radio"}
        if kinds:
            said, success = outcome(server, event["id"], [forged(part, server) for part in inputs])
            assert not success, event
            assert b"a secret" not in said
            asked |= kinds
    assert {"file", "dropdown"} <= asked


def test_another_host_demands_auth():
    for host in ("0.0.0.0", "192.168.0.7", "::"):
        with pytest.raises(UsageError, match=f"--host {host} lets others in: give --auth FILE"):
            Serving(None, None, None, 7860, host, None).check()
    Serving(None, None, None, 7860, "0.0.0.0", Path("names")).check()


def test_a_file_of_passwords_is_its_owners_alone(tmp_path):
    file = tmp_path / "names"
    file.write_text("ann:right\nbob:a:b\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others: run chmod 600"):
        read_auth(file)
    file.chmod(0o600)
    assert read_auth(file) == [("ann", "right"), ("bob", "a:b")]
    file.write_text("ann\n")
    with pytest.raises(UsageError, match="must hold lines of name:password"):
        read_auth(file)


def test_visitors_of_a_server_with_names_must_give_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    tiny_models.ddpm(folder / "model")
    (folder / "people").write_text("ann:a secret\n")
    (folder / "people").chmod(0o600)
    running = Server(folder, "--model", folder / "model", "--auth", folder / "people")
    try:
        assert running.answer("/gradio_api/info")[0] == running.answer("/config")[0] == 401
        assert b'"components":[]' in running.answer("/")[1]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert running.answer("/login", "POST", "username=ann&password=guess", **form)[0] == 400
        status, _, headers = running.answer("/login", "POST", "username=ann&password=a+secret", **form)
        assert status == 200
        cookie = next(value for name, value in headers.items() if name.lower() == "set-cookie").partition(";")[0]
        assert running.answer("/gradio_api/info", Cookie=cookie)[0] == 200
    finally:
        assert running.end() == 130


def test_another_name_for_this_machine_is_not_answered(server):
    assert server.answer("/", Host="evil.example")[0] == 421
    assert server.answer("/", Host=f"localhost:{server.port}")[0] == 200


def test_the_page_may_load_nothing_from_elsewhere(server):
    policy = server.answer("/")[2]["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_at_the_end_nothing_is_left(server):
    """The last of all: it ends the server."""
    files = [path for path in server.temporary.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    began = time.monotonic()
    assert server.end() == 130
    assert time.monotonic() - began < 10
    assert list(server.temporary.iterdir()) == []
    assert "nothing of what was uploaded is kept" in server.said[-1]
