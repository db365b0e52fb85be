"""What can go wrong with the local servers."""

from runtime.errors import ConfigurationError, ViewkeeperError


class LocalStackError(ViewkeeperError):
    """A local server could not be started, or ended by itself."""


class LocalSettingError(LocalStackError, ConfigurationError):
    """The machine or a setting stands in the way: a taken port, a folder in use, a missing package."""
