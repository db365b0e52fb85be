"""What can go wrong with a benchmark."""

from runtime.errors import ViewkeeperError


class BenchError(ViewkeeperError):
    """A figure could not be measured; the message says which and why. It is an error, never a zero."""
