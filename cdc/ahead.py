"""Reading ahead: the next units are read from the source while Kafka takes the one before."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

ITEMS_AHEAD = 2
"""With one the two sides wait for each other whenever one is late: catching up took a fifth longer."""
_JOIN_SECONDS = 0.2


class _End:
    """The generator has ended, by itself or with an error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Ahead(Generic[T]):
    """Runs a generator in a thread of its own, up to ITEMS_AHEAD items ahead of whoever takes them.

    `begin` makes the generator, in that thread, from an event that says that it is to end; `interrupt` ends what
    the generator may be waiting for.
    """

    def __init__(
        self, begin: Callable[[threading.Event], Generator[T, None, None]], *, interrupt: Callable[[], None]
    ) -> None:
        self._begin = begin
        self._interrupt = interrupt
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        # Taken before each item is made, so that no more than these wait: what waits grows old, and takes memory.
        self._wanted = threading.Semaphore(ITEMS_AHEAD)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> "Ahead[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._wanted.release()
        self._thread.join(_JOIN_SECONDS)
        while self._thread.is_alive():
            # Again and again, since the generator may have begun to wait just after.
            self._interrupt()
            self._thread.join(_JOIN_SECONDS)

    def take(self, timeout_seconds: float) -> T | None:
        """Return the next item, None if there is none in time; raise what ended the generator."""
        try:
            item = self._items.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(item, _End):
            raise item.error or RuntimeError("the reader ended by itself")
        self._wanted.release()
        return item

    def _run(self) -> None:
        try:
            with closing(self._begin(self._closing)) as items:
                while self._wanted.acquire() and not self._closing.is_set():
                    self._items.put(next(items))
        except BaseException as error:  # noqa: BLE001 - handed to whoever takes the items
            self._items.put(_End(None if isinstance(error, StopIteration) else error))
