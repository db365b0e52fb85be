"""The errors of the capture."""

from runtime.errors import ViewkeeperError


class CaptureError(ViewkeeperError):
    """The capture cannot go on without an operator; the message says what to do."""


class WireError(CaptureError):
    """A name, a key, a value or a cursor breaks the wire contract."""
