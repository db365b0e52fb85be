"""What can go wrong with a benchmark."""


class BenchError(Exception):
    """A figure could not be measured; the message says which and why. It is an error, never a zero."""
