"""A daemon's sessions: what is begun again, what ends the process, and how a stop comes through."""

import pytest

from runtime.daemon import keep_running
from runtime.errors import ConfigurationError, RetryableError
from runtime.stop import Stop


def test_a_session_is_begun_again_after_an_error_that_can_pass() -> None:
    runs: list[int] = []

    def session() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            raise RetryableError("the broker went away")

    keep_running(session, Stop())
    assert runs == [0, 1, 2]


def test_any_other_error_passes_through() -> None:
    def session() -> None:
        raise ConfigurationError("wrong password")

    with pytest.raises(ConfigurationError, match="wrong password"):
        keep_running(session, Stop())


def test_a_stop_ends_the_retries() -> None:
    stop = Stop()

    def session() -> None:
        stop.request()
        raise RetryableError("the database went away")

    keep_running(session, stop)
    assert stop.requested
