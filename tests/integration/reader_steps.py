"""A real Reader, driven by hand: a test takes its units one by one."""

import threading
from collections.abc import Iterator
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


class Units:
    """What a reader yields; each unit counts as published at once, unless it is `held`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._units = reader.units(threading.Event())

    def next(self, *, held: bool = False) -> Unit:
        unit = next(self._units)
        if not held:
            self.tell(unit)
        return unit

    def tell(self, unit: Unit) -> None:
        """Have a unit that was held count as published."""
        self._reader.told(unit.tables)

    def is_complete(self, table: str) -> bool:
        """Return whether a table is, as of the next unit."""
        return self.next().tables[table].complete


@contextmanager
def read_units(settings: CdcSettings, source: Source) -> Iterator[Units]:
    """Give the units of what is attached to a source, before the first is read."""
    with closing(encoding_of(settings)) as encoding:
        taking_up = TakingUp(settings, admin(settings, name="test"), encoding, dict)
        yield Units(Reader(settings, source, taking_up, Cursor(capture=CAPTURE, token="", tables={})))
