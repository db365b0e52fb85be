"""Waiting for something to come true: the only place of the tests where a sleep stands."""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

INTERVAL_SECONDS = 0.05

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], *, timeout_seconds: float = 30.0, what: str) -> T:
    """Call `condition` until its value is true and return that value.

    Fails the test after `timeout_seconds`, naming `what` was awaited and the last value.
    """
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_seconds:g} s for {what}; last value: {value!r}")
        time.sleep(INTERVAL_SECONDS)
    return value
