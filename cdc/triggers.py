"""The triggers source: which keys changed since the cursor, asked of the change logs that triggers fill.

A poll takes the keys of transactions that are visible in the current snapshot and were not in the previous one, as
PgQ's ticks do: no clock, no gap, no wait behind open transactions. Rows are read again in that same snapshot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg.sql import Composed
from psycopg.types.string import ByteaBinaryLoader

from cdc import statements
from cdc.change import KeyAndRow, Op, Page
from cdc.errors import CaptureError, CatalogChanged
from cdc.tables import CapturedTable
from cdc.wire import TableName
from runtime.postgres import LockNotAvailable, translated

SESSION = {
    # The same bytes for the same row, whatever the server's, the database's or the role's settings.
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    # A row hidden by a policy would look deleted: make Postgres raise an error instead.
    "row_security": "off",
    # A commit of ours must be on disk when it returns: see Lease.flush.
    "synchronous_commit": "on",
    # Nothing of ours stands long in a lock's queue, since writers would queue behind it.
    "lock_timeout": "50ms",
    # A round may be long, but a leader that was lost in one must not hold its locks for long.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "120s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
}
"""Settings of every session that reads the source or writes the mark."""

# Tens of records a poll: the planner's guess for a log without statistics would be a sequential scan.
_READER = {"enable_seqscan": "off"}

Snapshots = Mapping[TableName, str]
Literals = Sequence[str | list[str]]
"""Keys as arrays, one a key column: an array literal, or a list of texts."""


@dataclass(slots=True)
class Found:
    """What a round found in one table's change log."""

    table: CapturedTable
    records: int
    truncated: bool
    keys: Literals


@dataclass(slots=True)
class Round:
    """All changes between two polls, inside the transaction that reads them.

    `time` is the source's clock when the transaction began, before `snapshot` was taken: every change of `tables` whose
    COMMIT had returned by then is in the round or in an earlier one. A table that was locked sits the round out and is
    not in `tables`.
    """

    time: datetime
    snapshot: str
    tokens: tuple[str, str]
    tables: tuple[CapturedTable, ...]
    found: list[Found] = field(default_factory=list)

    @property
    def read_at_ms(self) -> int:
        """The round's time in milliseconds since 1970."""
        return int(self.time.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of a table's snapshot: its rows, and the key of its last row, or None when it was the last chunk."""

    page: Page
    end: tuple[str, ...] | None


class TriggerSource:
    """Reads captured tables over one connection, in transactions that each last for a round or a chunk."""

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str, page_rows: int) -> None:
        self._connection = connection
        self._capture = capture
        self._where = where
        self._page_rows = page_rows
        self._sql: dict[object, bytes] = {}
        # JSON leaves Postgres as the bytes that go to Kafka: nothing is decoded.
        self._row_cursor: psycopg.Cursor[KeyAndRow] = connection.cursor(binary=True)
        self._row_cursor.adapters.register_loader("text", ByteaBinaryLoader)
        with translated(where):
            for setting, value in _READER.items():
                connection.execute("SELECT set_config(%s, %s, false)", (setting, value))

    @contextmanager
    def round(self, tables: Sequence[CapturedTable], previous: Snapshots) -> Iterator[Round]:
        """Find what changed in `tables` since their `previous` snapshots; the rows are read while it is open.

        A table without a previous snapshot begins here: what it held before is for its snapshot to read.
        """
        with translated(self._where):
            readable = self._begin(tables)
            try:
                round_ = self._head(readable)
                known = [table for table in readable if table.name in previous]
                if known:
                    round_.found = list(self._probe(known, previous))
                yield round_
            finally:
                self._end()

    def pages(self, round_: Round, found: Found, previous: Snapshots) -> Iterator[Page]:
        """Read the rows that a round found changed, in pages of bounded size."""
        if found.records <= self._page_rows:
            yield self.images(round_, found.table, found.keys)
            return
        table = found.table
        pages = self._render((table, "pages"), lambda: statements.key_pages(table, page_keys=self._page_rows))
        with translated(self._where), self._connection.cursor("viewkeeper_keys") as cursor:
            cursor.itersize = 1
            cursor.execute(pages, {"snapshot": previous[table.name]})
            for keys in cursor:
                yield self.images(round_, table, keys)

    def images(self, round_: Round, table: CapturedTable, keys: Literals) -> Page:
        """Read the rows of `keys` as they are in the round's snapshot; a row that is gone is None."""
        rows: Sequence[KeyAndRow] = ()
        if keys and keys[0] is not None:
            values = {f"k{place}": array for place, array in enumerate(keys, 1)}
            rows = self._rows(self._render((table, "images"), lambda: statements.images(table)), values)
        return Page(table.name, rows, round_.read_at_ms, Op.UPSERT)

    def chunk(self, table: CapturedTable, after: tuple[str, ...] | None) -> Chunk | None:
        """Read the next chunk of a table's snapshot, in a snapshot of its own; None while the table is locked."""
        resumed = after is not None
        values = {f"after_{place}": text for place, text in enumerate(after or (), 1)}
        end_sql = self._render(
            (table, "end", resumed),
            lambda: statements.chunk_end(table, chunk_rows=self._page_rows, resumed=resumed),
        )
        with translated(self._where):
            if not self._begin((table,)):
                self._end()
                return None
            try:
                time = self._head((table,)).time
                end = self._connection.execute(end_sql, values).fetchone()
                bounded = end is not None
                values |= {f"end_{place}": text for place, text in enumerate(end or (), 1)}
                chunk_sql = self._render(
                    (table, "chunk", resumed, bounded),
                    lambda: statements.chunk(table, resumed=resumed, bounded=bounded),
                )
                rows = self._rows(chunk_sql, values)
            finally:
                self._end()
        return Chunk(Page(table.name, rows, int(time.timestamp() * 1000), Op.READ), end)

    def _begin(self, tables: Sequence[CapturedTable]) -> tuple[CapturedTable, ...]:
        """Begin a reading transaction with its tables locked; return those that could be locked."""
        readable = tuple(tables)
        while readable:
            try:
                with translated(self._where):
                    self._connection.execute(self._lock_sql(readable))
            except LockNotAvailable:
                self._end()
                readable = tuple(table for table in readable if self._lockable(table))
            else:
                return readable
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return ()

    def _lock_sql(self, tables: tuple[CapturedTable, ...]) -> bytes:
        return self._render((*tables, "lock"), lambda: statements.lock(tables))

    def _lockable(self, table: CapturedTable) -> bool:
        try:
            with translated(self._where):
                self._connection.execute(self._lock_sql((table,)))
        except LockNotAvailable:
            return False
        finally:
            self._end()
        return True

    def _end(self) -> None:
        # After a lost connection there is nothing to end.
        if not self._connection.closed:
            # Not ROLLBACK, after which psycopg drops its prepared statements and every poll would plan anew.
            self._connection.execute("COMMIT")

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        row = self._connection.execute(statements.HEAD, {"capture": self._capture}, prepare=True).fetchone()
        if row is None:
            raise CaptureError(f"{self._where}: capture {self._capture} has no row in cdc.capture: migrated down?")
        time, snapshot, pending, published = row
        return Round(time=time, snapshot=snapshot, tokens=(pending, published), tables=tables)

    def _probe(self, tables: Sequence[CapturedTable], previous: Snapshots) -> Iterator[Found]:
        sql = self._render((*tables, "probe"), lambda: statements.probe(tables, most_records=self._page_rows))
        values = {f"snapshot_{number}": previous[table.name] for number, table in enumerate(tables)}
        for number, replaced, records, truncated, keys in self._connection.execute(sql, values, prepare=True):
            if replaced:
                raise CatalogChanged(f"{tables[number].name}: another table has its name now")
            if records or truncated:
                yield Found(tables[number], records, truncated, keys)

    def _rows(self, statement: bytes, values: Mapping[str, object]) -> Sequence[KeyAndRow]:
        return self._row_cursor.execute(statement, values, prepare=True).fetchall()

    def _render(self, key: tuple[object, ...], build: Callable[[], Composed]) -> bytes:
        if key not in self._sql:
            self._sql[key] = build().as_bytes(None)
        return self._sql[key]
