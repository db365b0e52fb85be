"""Waiting for something to come true, which is the only place of the tests where a sleep stands; and work beside it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


@contextmanager
def meanwhile(step: Callable[[], object], *, every_seconds: float = 0) -> Iterator[None]:
    """Do a step again and again beside the body, with a pause after each, until that is left; raises what it raised."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_seconds):
            step()

    with ThreadPoolExecutor(1) as executor:
        repeating = executor.submit(repeat)
        try:
            yield
        finally:
            over.set()
            repeating.result()
