"""What nearfar raises on purpose; everything else that escapes is a defect of ours.

NearfarError            any of the two: one sentence that names the thing, the rule, what came and the way out
|-- ImageError          one image cannot be processed; a folder run records it and goes on with the others
+-- UsageError          the request itself is wrong; nothing was started
"""


class NearfarError(Exception):
    """A sentence for the user."""


class ImageError(NearfarError):
    """An input image which cannot be processed."""


class UsageError(NearfarError):
    """A request which cannot be met, whatever the images are."""
