"""The errors of the API."""

from runtime.errors import RetryableError, ViewkeeperError


class ApiError(ViewkeeperError):
    """The API cannot go on without an operator; the message says what to do."""


class StoreUnavailable(RetryableError):  # noqa: N818 - the state, as the reply says it
    """The store cannot answer now: it is away, it took too long, or too many requests wait for it already."""


class TooManyStreams(RetryableError):  # noqa: N818 - the state, as the reply says it
    """The process serves as many streams as it may."""
