"""A real Reader, driven by hand: a test takes its units one by one."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager

from cdc.change import Unit
from cdc.cursor import Cursor
from cdc.encodings import encoding_of
from cdc.reading import Reader
from cdc.source import Source
from cdc.taking_up import TakingUp
from runtime.kafka import admin
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE
from tests.waiting import wait_until


class Units:
    """What a reader yields; each unit counts as published at once, unless it is `held`."""

    def __init__(self, reader: Reader, thread: ThreadPoolExecutor, closing: threading.Event) -> None:
        self._reader = reader
        self._units = reader.units(closing)
        self._thread = thread
        self._next: Future[Unit] | None = None

    def next(self, *, held: bool = False) -> Unit:
        unit, self._next = self._coming().result(), None
        if not held:
            self.tell(unit)
        return unit

    def until(self, is_it: Callable[[Unit], object]) -> Unit:
        """Return the first unit that is the one, held; those before count as published."""

        def held() -> Unit | None:
            unit = self.next(held=True)
            if is_it(unit):
                return unit
            self.tell(unit)
            return None

        return wait_until(held, what="a unit")

    def is_waiting(self, *, seconds: float) -> bool:
        """Return whether the reader, which goes on by itself, has no unit within so many seconds."""
        return not wait([self._coming()], seconds).done

    def tell(self, unit: Unit) -> None:
        """Have a unit that was held count as published."""
        self._reader.told(unit.tables)

    def is_complete(self, table: str) -> bool:
        """Return whether a table is, as of the next unit."""
        return self.next().tables[table].complete

    def _coming(self) -> Future[Unit]:
        if self._next is None:
            self._next = self._thread.submit(next, self._units)
        return self._next


@contextmanager
def read_units(settings: CdcSettings, source: Source, cursor: Cursor | None = None) -> Iterator[Units]:
    """Give the units of what is attached to a source, before the first is read; a new capture's without a cursor."""
    over = threading.Event()
    with closing(encoding_of(settings)) as encoding, ThreadPoolExecutor(1) as thread:
        taking_up = TakingUp(settings, admin(settings, name="test"), encoding, dict)
        reader = Reader(settings, source, taking_up, cursor or Cursor(capture=CAPTURE, token="", tables={}))
        try:
            yield Units(reader, thread, over)
        finally:
            over.set()
