"""The errors of the capture."""

from runtime.errors import RetryableError, ViewkeeperError


class CaptureError(ViewkeeperError):
    """The capture cannot go on without an operator; the message says what to do."""


class CatalogChanged(RetryableError):  # noqa: N818 - the state, as the log reads it
    """A captured table, or its topic, was altered or replaced meanwhile: a new session looks at what there is now."""

    is_fault = False


class HistoryChanged(RetryableError):  # noqa: N818 - the state, as the log reads it
    """The source is another one than at the session's start: a new session decides what to do."""


class WireError(CaptureError):
    """A name, a key, a value or a cursor breaks the wire contract."""
