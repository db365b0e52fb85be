"""The triggers source: which keys changed since the cursor, asked of the change logs that triggers fill.

A poll takes the keys of transactions that are visible in the current snapshot and were not in the previous one, as
PgQ's ticks do: no clock, no gap, no wait behind open transactions. Rows are read again in that same snapshot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

import psycopg
from psycopg import errors as pg
from psycopg.sql import Composed
from psycopg.types.string import ByteaBinaryLoader

from cdc import statements
from cdc.change import KeyAndRow, Op, Page
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import FINGERPRINTS_SQL, Seen, parameters
from cdc.pruning import empty
from cdc.rounds import Drain, Found, Keys, Mark, Round, Snapshots
from cdc.session import READER
from cdc.tables import CapturedTable, Kind, captured_tables, keys_of
from runtime.postgres import LockNotAvailable, translated

MOST_PAGE_BYTES = 8 * 1024 * 1024
"""Reading a page stops at about so much; four pages are in memory at once."""
_AT_ONCE_ROWS = 64
# So many more rows than a page holds may be in memory, should they become wide of a sudden.
_PIECE_ROWS = 100

_REQUESTS = "SELECT attachment, max(id) FROM cdc.request WHERE capture = %(capture)s GROUP BY attachment"
_COMPLETE = "SELECT cdc.complete(%(attachment)s)"
_PRUNED = """
SELECT t.id FROM cdc.captured_table t
JOIN unnest(%(attachments)s::integer[], %(snapshots)s::pg_snapshot[]) AS c (id, snapshot) ON c.id = t.id
WHERE pg_snapshot_xmax(t.pruned_snapshot) > pg_snapshot_xmax(c.snapshot)
   OR EXISTS (SELECT FROM pg_snapshot_xip(c.snapshot) AS open (xid)
              WHERE pg_visible_in_snapshot(open.xid, t.pruned_snapshot))
"""


class TriggerSource:
    """Reads captured tables over one connection, in transactions that each last for a round or a page."""

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str) -> None:
        self._connection = connection
        self._capture = capture
        self._where = where
        self._sql: dict[object, bytes] = {}
        # JSON leaves Postgres as the bytes that go to Kafka: nothing is decoded.
        self._row_cursor: psycopg.Cursor[KeyAndRow] = connection.cursor(binary=True)
        self._row_cursor.adapters.register_loader("text", ByteaBinaryLoader)
        with translated(where):
            for setting, value in READER.items():
                connection.execute("SELECT set_config(%s, %s, false)", (setting, value))

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what is attached to the capture, and what it looks like at the same moment, by attachment.

        Raises CaptureError if a table or its key is not as it was.
        """
        with translated(self._where), self._reading(()):
            tables = captured_tables(self._connection, self._capture)
            return tables, self.seen(tables)

    def requests(self) -> dict[int, int]:
        """Return the newest request for a snapshot of each attachment that has one."""
        with translated(self._where):
            return dict(self._connection.execute(_REQUESTS, {"capture": self._capture}).fetchall())

    def pruned_beyond(self, snapshots: Mapping[int, str]) -> set[int]:
        """Return the attachments whose change log was emptied further than these snapshots reach."""
        values = {"attachments": list(snapshots), "snapshots": list(snapshots.values())}
        with translated(self._where):
            return {attachment for (attachment,) in self._connection.execute(_PRUNED, values)}

    def arm(self, table: CapturedTable) -> bool:
        """Add triggers of later partitions, and rights that their owner lacks, if the table may still be captured.

        Returns whether there was anything to add. Raises LockNotAvailable if the table or a partition is in use.
        """
        with translated(self._where), suppress(pg.ObjectNotInPrerequisiteState):
            return self._connection.execute(_COMPLETE, {"attachment": table.attachment}).fetchone() == (True,)
        return False

    def empty(self, table: CapturedTable) -> None:
        """Empty the change log of a table that waits to be read anew, a step at a time."""
        empty(self._connection, table, where=self._where)

    @contextmanager
    def round(
        self, tables: Sequence[CapturedTable], previous: Snapshots, page_rows: Callable[[CapturedTable], int]
    ) -> Iterator[Round]:
        """Find what changed since their `previous` snapshots in those `tables` that have one.

        The rows are read while it is open. Of a table with more records than its `page_rows` only their number and
        their marks are known.
        """
        with translated(self._where), self._reading(tables) as readable:
            round_ = self._head(readable)
            known = [table for table in readable if table.name in previous]
            if known:
                round_.found = list(self._probe(known, previous, [page_rows(table) for table in known]))
            yield round_

    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables look like in the open transaction's snapshot, by attachment."""
        rows = self._connection.execute(FINGERPRINTS_SQL, parameters(tables), prepare=True)
        return {attachment: Seen(*looks) for attachment, *looks in rows}

    def limit_reached(self, table: CapturedTable) -> bool:
        """Return whether logging has stopped because a part of the change log is full."""
        sql = self._render((table, "limit"), lambda: statements.limit_reached(table))
        return self._connection.execute(sql).fetchone() is not None

    def images(self, round_: Round, table: CapturedTable, keys: Keys) -> Page:
        """Read the rows of logged keys in the round's snapshot; a row that is gone is None."""
        if not keys.count:
            return Page(table, (), round_.read_at_ms, Op.UPSERT)
        values = _arrays(keys.literals)
        sql = self._render((table, "living"), lambda: statements.living(table))
        with keys_of(table):
            rows, is_cut = self._page_rows(sql, values, keys.count)
            # A view may show a key twice, and another one that is gone would not be missed by their number.
            if not is_cut and (len(rows) < keys.count or table.kind is Kind.VIEW):
                sql = self._render((table, "gone"), lambda: statements.gone(table))
                rows = [*rows, *self._rows(sql, values)]
        return Page(table, rows, round_.read_at_ms, Op.UPSERT, is_cut)

    def drain(self, round_: Round, found: Found, previous: Snapshots, *, page_keys: int) -> Drain:
        """Take the keys of a round with more records than a page, for pages that are read one by one."""
        cursor = self._connection.cursor(f"viewkeeper_keys_{found.table.attachment}", withhold=True)
        cursor.itersize = 1
        pages = statements.key_pages(found.table, page_keys=page_keys)
        cursor.execute(pages, {"snapshot": previous[found.table.name]})
        return Drain(found, round_.snapshot, cursor, where=self._where)

    def page(self, table: CapturedTable, keys: Keys) -> Page | None:
        """Read the rows of logged keys in a snapshot of their own; None while the table is locked."""
        with translated(self._where), self._reading((table,)) as readable:
            return self.images(self._head(readable), table, keys) if readable else None

    def ghosts(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> Page | None:
        """Return deletes of those keys from the topic that have no row, a list a key column; None if it is locked."""
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "ghosts"), lambda: statements.ghosts(table))
            with keys_of(table):
                rows = self._rows(sql, _arrays(keys)) if keys else ()
        return Page(table, rows, read_at_ms, Op.DELETE)

    def chunk(self, table: CapturedTable, after: tuple[str, ...] | None, *, most_rows: int) -> Page | None:
        """Read the next rows of a table in key order, in a snapshot of their own; None while the table is locked."""
        resumed = after is not None
        values = {"most_rows": most_rows} | {f"after_{place}": text for place, text in enumerate(after or (), 1)}
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "chunk", resumed), lambda: statements.chunk(table, resumed=resumed))
            with keys_of(table):
                rows, is_cut = self._page_rows(sql, values, most_rows)
        return Page(table, rows, read_at_ms, Op.READ, is_cut)

    def look_up(self, table: CapturedTable, keys: Sequence[Sequence[str]], *, most_rows: int) -> Page | None:
        """Read the rows of `keys` from the topic in a snapshot of their own; None while the table is locked.

        Each key comes back as the capture writes it; a row that is not there is None.
        """
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "topic images"), lambda: statements.topic_images(table))
            rows, is_cut = self._page_rows(sql, _arrays(keys), most_rows)
        return Page(table, rows, read_at_ms, Op.READ, is_cut)

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Log `keys` from the topic as changed: whoever captures the table reads and publishes them."""
        with translated(self._where):
            self._connection.execute(self._render((table, "log"), lambda: statements.log_keys(table)), _arrays(keys))

    @contextmanager
    def _reading(self, tables: Sequence[CapturedTable]) -> Iterator[tuple[CapturedTable, ...]]:
        """Begin a reading transaction with its tables locked; yields those that could be locked."""
        readable = self._begin(tables)
        try:
            yield readable
        finally:
            self._end()

    def _begin(self, tables: Sequence[CapturedTable]) -> tuple[CapturedTable, ...]:
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
        return Round(time=time, snapshot=snapshot, tokens=frozenset((pending, published)), tables=tables)

    def _probe(
        self, tables: Sequence[CapturedTable], previous: Snapshots, most_records: Sequence[int]
    ) -> Iterator[Found]:
        sql = self._render((*tables, "probe", *most_records), lambda: statements.probe(tables, most_records))
        values = {f"snapshot_{number}": previous[table.name] for number, table in enumerate(tables)}
        for number, replaced, records, marks, keys in self._connection.execute(sql, values, prepare=True):
            if replaced:
                raise CatalogChanged(f"{tables[number].name}: another table has its name now")
            if records:
                changed = Keys(int(keys[-1]), keys[:-1])
                yield Found(tables[number], records, frozenset(map(Mark, marks or ())), changed)

    def _page_rows(
        self, statement: bytes, values: Mapping[str, object], most_rows: int
    ) -> tuple[Sequence[KeyAndRow], bool]:
        """Read at most so many rows, and no more once they are a page; return them and whether there may be more."""
        if most_rows <= _AT_ONCE_ROWS:
            return self._rows(statement, values), False
        rows: list[KeyAndRow] = []
        size = 0
        is_cut = False
        # In pieces as they come: a result that is taken as a whole is in memory twice.
        stream = self._row_cursor.stream(statement, values, binary=True, size=_PIECE_ROWS)
        while piece := list(islice(stream, _PIECE_ROWS)):
            # What is behind a full page is passed over: to cancel the query would end the transaction.
            is_cut = size >= MOST_PAGE_BYTES
            if not is_cut:
                rows += piece
                size += sum(len(row) for _, row in piece if row is not None)
        return rows, is_cut

    def _rows(self, statement: bytes, values: Mapping[str, object]) -> Sequence[KeyAndRow]:
        return self._row_cursor.execute(statement, values, prepare=True).fetchall()

    def _render(self, key: tuple[object, ...], build: Callable[[], Composed]) -> bytes:
        if key not in self._sql:
            self._sql[key] = build().as_bytes(None)
        return self._sql[key]


def _arrays(keys: Sequence[str | Sequence[str]]) -> dict[str, object]:
    return {f"k{place}": array for place, array in enumerate(keys, 1)}
