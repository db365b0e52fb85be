"""A stop that is asked for by signal and seen by loops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A request to stop, waited for instead of slept through."""

    def __init__(self) -> None:
        self.event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self.event.is_set()

    def request(self) -> None:
        """Ask the process to stop after the work in hand."""
        self.event.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the request, at most `seconds`; return whether it came."""
        return self.event.wait(seconds)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGTERM or SIGINT into a stop; the second one kills, since it gets the default action back."""
    stop = Stop()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # In a thread: the main thread, which runs this, may be inside the event's wait and hold its lock.
        threading.Thread(target=stop.request, name="stop").start()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt again, while a person is asked."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
