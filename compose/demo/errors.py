"""What can end the demo early."""

from runtime.errors import ViewkeeperError


class DemoError(ViewkeeperError):
    """A part of the demo failed; the message says which, why and what to do."""
