"""The rows of a table as the capture would publish them now, digested; and the keys that it is to publish anew.

Keys are the bytes that the topic has, whatever its encoding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from cdc.change import KeyAndRow, Page
from cdc.decoding import shown
from cdc.encoding import Encoding
from cdc.errors import CaptureError, WireError
from cdc.halving import halved
from cdc.judging import Digest, digest
from cdc.source import Source
from cdc.sweep import key_columns
from cdc.tables import CapturedTable
from runtime.postgres import DatabaseError, ObjectMissing

CHUNK_ROWS = 5_000
LOOK_UP_KEYS = 1_000
LEAST_ROWS = 50
LOCKED_LOOK_SECONDS = 0.1


class SourceRows:
    """Reads one table in short transactions, through the SQL and the encoding of its capture.

    A table that is locked is waited for, `wait_seconds` at most. `now` reads the source's clock.
    """

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        table: CapturedTable,
        topic: str,
        *,
        now: Callable[[], datetime],
        wait_seconds: float,
    ) -> None:
        self._source = source
        self._encoding = encoding
        self._table = table
        self._topic = topic
        self._wait_seconds = wait_seconds
        self._look_up_keys = LOOK_UP_KEYS
        self.now = now

    def chunks(self) -> Iterator[list[tuple[bytes, Digest]]]:
        """Yield all rows in key order, a chunk at a time, each chunk in a snapshot of its own."""
        after: tuple[str, ...] | None = None
        most_rows = CHUNK_ROWS
        while True:
            page = self._unlocked(partial(self._source.chunk, self._table, after, most_rows=most_rows))
            yield [(key, digest(row)) for key, row in self._encoded(page) if row is not None]
            if len(page.changes) < most_rows and not page.is_cut:
                return
            (after,) = zip(*key_columns(self._topic, {page.changes[-1][0]}), strict=True)
            most_rows = _next_size(most_rows, page, most=CHUNK_ROWS)

    def rows_of(self, keys: Sequence[bytes]) -> dict[bytes, Digest | None]:
        """Return the rows of keys from the topic, None for one that is not there.

        A key that the capture would write otherwise, or not at all, is left out.
        """
        found: dict[bytes, Digest | None] = {}
        start = 0
        while some := keys[start : start + self._look_up_keys]:
            found.update(self._looked_up(some))
            start += len(some)
        return found

    def hand_over(self, keys: Sequence[bytes]) -> None:
        """Have the running capture read and publish keys of the table, as if their rows had changed now."""
        for start in range(0, len(keys), LOOK_UP_KEYS):
            self._source.log_keys(self._table, self._columns(keys[start : start + LOOK_UP_KEYS]))

    def are_taken(self, position: str) -> bool:
        """Return whether the capture had taken the keys that were handed over last when the table was at a position."""
        return self._source.has_read_logged(self._table, position)

    def name(self, key: bytes) -> str:
        """Return a key's JSON, or what can be shown of one that is none of the encoding."""
        return shown(self._encoding.decoding, key)

    def _looked_up(self, keys: Sequence[bytes]) -> dict[bytes, Digest | None]:
        found: dict[bytes, Digest | None] = {}
        for some, page in halved(keys, self._page_of):
            rows = {key: None if row is None else digest(row) for key, row in self._encoded(page)} if page else {}
            found.update((key, rows[key]) for key in some if key in rows)
        return found

    def _page_of(self, keys: Sequence[bytes]) -> Page | None:
        """Read the rows of keys; None if they are too wide for a page, or one of them cannot be a key of the table."""
        try:
            columns = self._columns(keys)
            if len(columns) != len(self._table.key):
                return None
            page = self._unlocked(partial(self._source.look_up, self._table, columns, most_rows=len(keys)))
        except ObjectMissing:
            raise
        except (ValueError, WireError, DatabaseError):
            # It is not of the encoding, no object, or holds a text that the column's type does not take.
            return None
        self._look_up_keys = _next_size(self._look_up_keys, page, most=LOOK_UP_KEYS)
        return None if page.is_cut else page

    def _columns(self, keys: Sequence[bytes]) -> list[list[str]]:
        return key_columns(self._topic, set(self._encoding.decoding.keys_json(keys)))

    def _encoded(self, page: Page) -> Sequence[KeyAndRow]:
        return self._encoding.encoded(self._topic, page)

    def _unlocked(self, read: Callable[[], Page | None]) -> Page:
        deadline = time.monotonic() + self._wait_seconds
        while (page := read()) is None:
            if time.monotonic() > deadline:
                raise CaptureError(
                    f"{self._table.name} was locked for more than {self._wait_seconds:g} s: see who holds it in "
                    "pg_locks, and run this again later"
                )
            time.sleep(LOCKED_LOOK_SECONDS)
        return page


def _next_size(size: int, page: Page, *, most: int) -> int:
    """Return how many rows to ask for next: fewer where they are wide, since those that are passed over cost time."""
    return max(len(page.changes), LEAST_ROWS) if page.is_cut else min(size + size // 8, most)
