"""What Ctrl-C does, which depends on how far the demo has come."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType

from runtime.stop import Stop

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Phase(Enum):
    """What a signal means now."""

    STARTING = auto()  # give up: KeyboardInterrupt wherever the main thread is
    RUNNING = auto()  # ask the workload to stop, then drain and audit
    DRAINING = auto()  # give up
    CLEANING = auto()  # nothing: what was started is being stopped, and that is not to be broken off


class Interrupts:
    """The demo's phase, and the stop that a signal asks for while it runs."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.stop = Stop()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Act on SIGTERM or SIGINT; for signal.signal."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
            self.stop.request()
        elif self.phase is not Phase.CLEANING:
            self.phase = Phase.CLEANING
            raise KeyboardInterrupt


@contextmanager
def handled_signals() -> Iterator[Interrupts]:
    """Handle SIGTERM and SIGINT by phase; the earlier handlers come back at the end."""
    interrupts = Interrupts()
    previous = {number: signal.signal(number, interrupts.on_signal) for number in _SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
