"""What can go wrong with the local servers."""


class LocalStackError(Exception):
    """A local server could not be started; the message says what, where and what to do."""

    exit_code = 1


class LocalSettingError(LocalStackError):
    """The machine or a setting stands in the way: a taken port, a folder in use, a missing package."""

    exit_code = 2
