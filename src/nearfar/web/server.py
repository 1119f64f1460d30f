"""The server around the page: this machine only unless asked, nothing fetched, nothing left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nearfar.errors import RunError, UsageError, first_line
from nearfar.web.desk import Desk

MEGABYTES = 25
"""Of one upload, at most."""
HERE = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Headers:
    """ASGI middleware: nothing from elsewhere is loaded, and on this machine no other name is answered to."""

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
        if self.local and host not in HERE:
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this server answers to localhost only\n"})
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, answer)


def read_auth(path: Path) -> list[tuple[str, str]]:
    """Names and passwords, `name:password` a line, of a file that its owner alone may read."""
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"{path} can be read by others: run chmod 600 {path}")
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({first_line(error)}): name a text file of name:password lines"
        ) from None
    pairs = [(name, password) for name, colon, password in (line.partition(":") for line in lines) if name and password]
    if not pairs or len(pairs) != len(lines):
        raise UsageError(f"{path} must hold lines of name:password, one a visitor")
    return pairs


def serve(desk: Desk, host: str, port: int, auth: list[tuple[str, str]] | None, running: Callable[[str], None]) -> None:
    """Serve until interrupted. running: called with the address; it returns when the server shall end.

    Temporary files are readable by their owner only and gone at the end.
    """
    before, scratch = os.umask(0o077), Path(tempfile.mkdtemp(prefix="nearfar-"))
    os.environ |= {"GRADIO_TEMP_DIR": str(scratch), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    page = None
    try:
        page = launched(desk, scratch, host, port, auth)
        running(page.local_url)
    finally:
        if page is not None:
            with suppress(Exception):
                page.close(verbose=False)
        shutil.rmtree(scratch, ignore_errors=True)
        os.umask(before)


def launched(desk: Desk, scratch: Path, host: str, port: int, auth: list[tuple[str, str]] | None) -> Any:
    """The page, being served."""
    from nearfar.web.page import CSS, build, theme

    page = build(desk, scratch)
    page.queue(max_size=16, api_open=False, default_concurrency_limit=1)
    try:
        page.launch(
            server_name=host, server_port=port, auth=auth, share=False, quiet=True, prevent_thread_lock=True,
            inbrowser=False, show_error=False, max_file_size=MEGABYTES * 2**20, footer_links=[], run_history=False,
            enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, allowed_paths=[],
            app_kwargs={"middleware": [(Headers, (), {"local": host in HERE})], "docs_url": None, "redoc_url": None},
            theme=theme(), css=CSS,
        )  # fmt: skip
    except OSError as error:
        raise RunError(f"port {port} on {host} cannot be served ({first_line(error)}): choose another --port") from None
    return page
