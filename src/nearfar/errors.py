"""What can go wrong, by who can mend it; every text names the thing, the rule, what came and the way out.

NearfarError
|-- UsageError     the request is wrong; nothing was started
|-- RunError       the machine stopped a run (disk, memory); what is finished is kept
+-- ImageError     one image cannot be processed; a folder run records it and goes on with the others
"""


class NearfarError(Exception):
    """Base of every error that nearfar raises on purpose."""


class UsageError(NearfarError):
    """The request is wrong: an option, a folder, a key, a model."""


class RunError(NearfarError):
    """The machine stopped a run: a disk is full or refuses, memory does not suffice."""


class ImageError(NearfarError):
    """One input image cannot be processed."""


class ModelWarning(UserWarning):
    """Something about a model that its user should know: a license, an assumption, a setting with a price."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return printable(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))


def printable(text: str) -> str:
    """What a file or a library says, safe and short enough for a terminal."""
    return "".join(letter for letter in text.strip()[:120] if letter.isprintable())
