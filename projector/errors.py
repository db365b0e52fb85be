"""The errors of the projector."""

from runtime.errors import ConfigurationError, ViewkeeperError


class ProjectorError(ViewkeeperError):
    """The projector cannot go on without an operator; the message says what to do."""


class DefinitionError(ConfigurationError):
    """A view's definition is wrong; the message names the view and what is wrong with it."""


class NotApplicable(ProjectorError):  # noqa: N818 - the state, as the log reads it
    """Records that may not be left out cannot be applied to a `version` of a `view`, given by number and name."""

    def __init__(self, message: str, *, view: str, version: int) -> None:
        super().__init__(message)
        self.view = view
        self.version = version


class BadRecord(NotApplicable):
    """A record that cannot be applied; the message names topic, partition, offset and key."""


class TooManyDeadLetters(NotApplicable):
    """So many records cannot be applied that something else than a few of them is wrong."""


class Refused(ProjectorError):  # noqa: N818 - what the command did
    """A command that would do harm, or cannot be done now; nothing was changed, and the message says what to do."""
