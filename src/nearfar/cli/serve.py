"""`nearfar serve`: a page on this machine to try things on."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nearfar.cli.console import raise_on_signals, say, write_line
from nearfar.cli.options import ModelChoice, command_saying, option
from nearfar.errors import UsageError


@dataclass(frozen=True)
class Serving:
    """What the page may reach, and who may reach the page."""

    folder: list[Path] | None = option(None, "A folder that the page may read; several.", metavar="DIR")
    detector: Path | None = option(None, "YuNet (ONNX), to find faces in photographs.", metavar="FILE")
    recognizer: Path | None = option(None, "A face recognizer (ONNX), to say how near a face is.", metavar="FILE")
    port: int = option(7860, "Where the page is.")
    host: str = option("127.0.0.1", "Another address than this machine's own; demands --auth.")
    auth: Path | None = option(None, "Who may come in: a file of name:password lines, mode 600.", metavar="FILE")

    def check(self) -> None:
        """Refuse what cannot be served, before a model is loaded."""
        if find_spec("gradio") is None:
            raise UsageError("the page needs gradio: pip install 'nearfar[web]'")
        for folder in self.folder or []:
            if not folder.is_dir():
                raise UsageError(
                    f"{folder} must be a folder of images, got {'a file' if folder.exists() else 'nothing'}"
                )
        if self.recognizer and not self.detector:
            raise UsageError("--recognizer needs --detector: faces must be found first")
        if self.host not in ("127.0.0.1", "localhost") and self.auth is None:
            raise UsageError(f"--host {self.host} lets others in: give --auth FILE with name:password lines")
        if not 0 < self.port < 65536:
            raise UsageError(f"port must be from 1 to 65535, got {self.port}")


@command_saying("the page is closed; nothing of what was uploaded is kept")
def serve(*, serving: Serving, choice: ModelChoice) -> None:
    """Serve a page on this machine: try strengths on a picture, audit two folders, fit a domain.

    Only this machine reaches it, and it reaches only the folders that are named. Ctrl-C ends it and removes what was
    uploaded.
    """
    serving.check()
    from nearfar.web.desk import Desk
    from nearfar.web.figures import named
    from nearfar.web.server import read_auth
    from nearfar.web.server import serve as serve_page

    people = read_auth(serving.auth) if serving.auth else None
    model = choice.load()
    say("model", f"{model.provenance.source}: a moment, it is measured first")
    folders = named([folder.resolve() for folder in serving.folder or []])
    desk = Desk.open(model, folders, serving.detector, serving.recognizer)
    raise_on_signals()

    def running(address: str) -> None:
        write_line(f"open {address} (Ctrl-C ends it)")
        signal.pause()

    serve_page(desk, serving.host, serving.port, people, running)
