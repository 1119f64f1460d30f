"""Entry point of the `nearfar` command."""

from __future__ import annotations

import os
import signal
import warnings


def main() -> None:
    """Run the command line; a termination signal ends a run as Ctrl-C does, resumably."""
    # Threads that spin while they wait cost a shared machine four fifths of its speed; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Pillow warns about odd tags from the threads that read; what matters of it ends as an error of the image.
    warnings.filterwarnings("ignore", module="PIL")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from nearfar.cli import app

    app()


if __name__ == "__main__":
    main()
