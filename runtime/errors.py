"""The root of every error that Viewkeeper raises on purpose, and the two kinds that decide what a process does next."""

from typing import ClassVar


class ViewkeeperError(Exception):
    """An error whose message says what went wrong, where, and what to do. Ends the process with exit code 1."""

    exit_code = 1


class ConfigurationError(ViewkeeperError):
    """A setting, a right or a migration is missing or wrong; no retry can help. Exit code 2."""

    exit_code = 2


class RetryableError(ViewkeeperError):
    """Something outside went away and may come back: throw all state away, wait, start again from what is stored."""

    is_fault: ClassVar[bool] = True
    """Whether an operator is warned of it: not of what was done on purpose."""
