"""The errors of the projector."""

from runtime.errors import ConfigurationError, ViewkeeperError


class ProjectorError(ViewkeeperError):
    """The projector cannot go on without an operator; the message says what to do."""


class DefinitionError(ConfigurationError):
    """A view's definition is wrong; the message names the view and what is wrong with it."""


class NotApplicable(ProjectorError):  # noqa: N818 - the state, as the log reads it
    """Records that a version of a view may not be left without cannot be applied to it; `version` is its number."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class BadRecord(NotApplicable):
    """A record that cannot be applied; the message names topic, partition, offset and key."""


class TooManyDeadLetters(NotApplicable):
    """So many records cannot be applied that something else than a few of them is wrong."""


class Refused(ProjectorError):  # noqa: N818 - what the command did
    """A command that would do harm, or cannot be done now; nothing was changed, and the message says what to do."""
