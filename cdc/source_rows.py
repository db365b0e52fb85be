"""The rows of a table as the capture would publish them now, digested; and the keys that it is to publish anew."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from cdc.change import Page
from cdc.errors import CaptureError, WireError
from cdc.judging import Digest, digest
from cdc.sweep import key_columns
from cdc.tables import CapturedTable
from cdc.triggers import TriggerSource
from runtime.postgres import DatabaseError, ObjectMissing

CHUNK_ROWS = 5_000
LEAST_CHUNK_ROWS = 50
LOOK_UP_KEYS = 1_000
LOCKED_LOOK_SECONDS = 0.1


class SourceRows:
    """Reads one table in short transactions, through the SQL that its capture reads it by.

    A table that is locked is waited for, `wait_seconds` at most. `now` reads the source's clock.
    """

    def __init__(
        self,
        source: TriggerSource,
        table: CapturedTable,
        topic: str,
        *,
        now: Callable[[], datetime],
        wait_seconds: float,
    ) -> None:
        self._source = source
        self._table = table
        self._topic = topic
        self._wait_seconds = wait_seconds
        self.now = now

    def chunks(self) -> Iterator[list[tuple[bytes, Digest]]]:
        """Yield all rows in key order, a chunk at a time, each chunk in a snapshot of its own."""
        after: tuple[str, ...] | None = None
        most_rows = CHUNK_ROWS
        while True:
            page = self._unlocked(partial(self._source.chunk, self._table, after, most_rows=most_rows))
            yield [(key, digest(row)) for key, row in page.changes if row is not None]
            if len(page.changes) < most_rows and not page.is_cut:
                return
            (after,) = zip(*key_columns(self._topic, {page.changes[-1][0]}), strict=True)
            most_rows = _next_rows(most_rows, page)

    def rows_of(self, keys: Sequence[bytes]) -> dict[bytes, Digest | None]:
        """Return the rows of keys from the topic, None for one that is not there.

        A key that the capture would write otherwise, or not at all, is left out.
        """
        found: dict[bytes, Digest | None] = {}
        for some in _pieces(keys):
            found.update(self._looked_up(some))
        return found

    def hand_over(self, keys: Sequence[bytes]) -> None:
        """Have the running capture read and publish keys of the table, as if their rows had changed now."""
        for some in _pieces(keys):
            self._source.log_keys(self._table, key_columns(self._topic, set(some)))

    def _looked_up(self, keys: Sequence[bytes]) -> dict[bytes, Digest | None]:
        try:
            page = self._page_of(keys)
        except ObjectMissing:
            raise
        except (WireError, DatabaseError):
            # One of them is no key of this table: its text is not of the column's type, for instance.
            page = None
        if page is not None and not page.is_cut:
            found = {key: None if row is None else digest(row) for key, row in page.changes}
            return {key: found[key] for key in keys if key in found}
        if len(keys) == 1:
            return {}
        half = len(keys) // 2
        return self._looked_up(keys[:half]) | self._looked_up(keys[half:])

    def _page_of(self, keys: Sequence[bytes]) -> Page:
        columns = key_columns(self._topic, set(keys))
        if len(columns) != len(self._table.key):
            raise WireError(f"topic {self._topic}: keys are of {len(columns)} columns, not of {len(self._table.key)}")
        return self._unlocked(partial(self._source.look_up, self._table, columns, most_rows=len(keys)))

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


def _pieces(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + LOOK_UP_KEYS] for start in range(0, len(keys), LOOK_UP_KEYS))


def _next_rows(most_rows: int, page: Page) -> int:
    """Return how many rows the next chunk is to have: fewer where they are wide, since those passed over cost time."""
    if page.is_cut:
        return max(len(page.changes), LEAST_CHUNK_ROWS)
    return min(most_rows + most_rows // 8, CHUNK_ROWS)
