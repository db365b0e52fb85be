"""The errors of the projector."""

from runtime.errors import ConfigurationError, ViewkeeperError


class ProjectorError(ViewkeeperError):
    """The projector cannot go on without an operator; the message says what to do."""


class DefinitionError(ConfigurationError):
    """A view's definition is wrong; the message names the view and what is wrong with it."""


class BadRecord(ProjectorError):  # noqa: N818 - the record is what is bad
    """A record that cannot be applied; the message names topic, partition, offset and key."""
