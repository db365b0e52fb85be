"""Looking at something each second, in a thread of its own, for as long as somebody wants to know."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime.errors import ViewkeeperError

LOOK_SECONDS = 1.0
WANTED_SECONDS = 60.0
"""So long after the last question the looking goes on."""
_CLOSE_SECONDS = 2.0

SeenT = TypeVar("SeenT")


@dataclass(frozen=True, slots=True)
class Look(Generic[SeenT]):
    """What was seen at a moment of `time.monotonic()`: `seen`, or the `error` that was met in its place."""

    at: float
    seen: SeenT | None
    error: str | None = None


def seconds_to_look() -> float:
    """Return the seconds until all look again."""
    return LOOK_SECONDS - time.monotonic() % LOOK_SECONDS


class Looks(Generic[SeenT]):
    """Looks each second, from the first `want` until nobody has wanted it for a minute; all look at the same time.

    `opened` gives a context whose value is called for each look. An error of ours ends that context, is kept as the
    newest look, and a new one is opened a second later; a server that says nothing at all holds only this thread.
    """

    def __init__(self, name: str, opened: Callable[[], AbstractContextManager[Callable[[], SeenT]]]) -> None:
        self._name = name
        self._opened = opened
        self._wanted_until = 0.0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.began_at = 0.0
        self.newest: Look[SeenT] | None = None

    def want(self) -> None:
        """Look for another minute."""
        self._wanted_until = time.monotonic() + WANTED_SECONDS
        if self._closing.is_set() or (self._thread is not None and self._thread.is_alive()):
            return
        self.began_at, self.newest = time.monotonic(), None
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more; a thread that a silent server holds ends with the process."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _is_wanted(self) -> bool:
        return not self._closing.is_set() and time.monotonic() < self._wanted_until

    def _run(self) -> None:
        while self._is_wanted():
            try:
                with self._opened() as look:
                    while self._is_wanted():
                        seen = look()
                        self.newest = Look(time.monotonic(), seen)
                        self._closing.wait(seconds_to_look())
            except ViewkeeperError as error:
                self.newest = Look(time.monotonic(), None, str(error))
                self._closing.wait(LOOK_SECONDS)
