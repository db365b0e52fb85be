"""How a daemon lives: sessions that end at the first error, and are begun again when the error can pass."""

import time
from collections.abc import Callable

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_when_event_set
from tenacity.wait import wait_base, wait_random_exponential

from runtime.errors import RetryableError
from runtime.stop import Stop

log = structlog.get_logger()

BACKOFF_CAP_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
"""A session that lasted so long was healthy: the next backoff begins anew."""


class _Backoff(wait_base):
    """Capped exponential backoff with jitter that begins anew after a healthy session."""

    def __init__(self) -> None:
        self._grow = wait_random_exponential(multiplier=0.5, max=BACKOFF_CAP_SECONDS, min=0.1)
        self._waited_until = time.monotonic()

    def __call__(self, retry_state: RetryCallState) -> float:
        if time.monotonic() - self._waited_until > HEALTHY_SECONDS:
            retry_state.attempt_number = 1
        seconds = self._grow(retry_state)
        self._waited_until = time.monotonic() + seconds
        return seconds


def keep_running(session: Callable[[], None], stop: Stop) -> None:
    """Run `session` until it returns; after a RetryableError wait and run it again from what is stored.

    A session opens all that it uses and closes it again, so that a retry takes the same path as a restart after a
    crash. Every other error passes through and ends the process.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(RetryableError),
        wait=_Backoff(),
        stop=stop_when_event_set(stop.event),
        sleep=sleep_using_event(stop.event),
        before_sleep=_log_retry,
        retry_error_callback=lambda _state: None,
    )
    retrying(session)
    log.info("stopped")


def _log_retry(state: RetryCallState) -> None:
    reason = state.outcome.exception() if state.outcome else None
    tell = log.warning if isinstance(reason, RetryableError) and reason.is_fault else log.info
    tell(
        "retrying",
        reason=str(reason),
        attempt=state.attempt_number,
        in_seconds=round(state.upcoming_sleep, 1),
    )
