"""Libraries that only some files need, loaded when the first such file is met."""

from importlib import import_module
from typing import Any

from nearfar.errors import ImageError


def needed(module: str, extra: str) -> Any:
    """The module. Raises ImageError, which the name of a file is put before, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise ImageError(f"needs {library}: pip install 'nearfar[{extra}]'") from None
