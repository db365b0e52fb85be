"""What every source does alike: it reads rows again, of keys and of pages, each in a snapshot that it knows.

Sources differ in how they find which keys changed since a position: see triggers.py and wal.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from typing import ClassVar

import psycopg
from psycopg.sql import Composed, Identifier
from psycopg.types.string import ByteaBinaryLoader

from cdc import statements
from cdc.change import KeyAndRow, Op, Page
from cdc.cursor import TableCursor
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import FINGERPRINTS_SQL, Seen, parameters
from cdc.halving import halved
from cdc.rounds import Drain, Found, Keys, KnownBy, Positions, Round
from cdc.session import READER
from cdc.sweep import key_columns
from cdc.tables import CapturedTable, Kind, SourceKind, captured_tables, demand_source, keys_of
from cdc.unreadable import Asked, unreadable
from runtime.errors import ViewkeeperError
from runtime.postgres import DatabaseError, LockNotAvailable, ObjectMissing, translated

MOST_PAGE_BYTES = 8 * 1024 * 1024
"""Reading a page stops at about so much; four pages are in memory at once."""
_AT_ONCE_ROWS = 64
# So many more rows than a page holds may be in memory, should they become wide of a sudden.
_PIECE_ROWS = 32

# By the catalog as it is now, not as the snapshot has it: so are names in queries.
_IS_READ = "SELECT pg_catalog.to_regclass(%(name)s)::oid = %(oid)s"
_WITHDRAW = "SELECT cdc.withdraw_refused(%(capture)s)"
_REQUESTS = "SELECT attachment, max(id) FROM cdc.request WHERE capture = %(capture)s GROUP BY attachment"


class Source(ABC):
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

    @abstractmethod
    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what is attached to the capture, and what it looks like at the same moment, by attachment.

        Raises CaptureError if a table or its key is not as it was.
        """

    def requests(self) -> dict[int, int]:
        """Return the newest request for a snapshot of each attachment that has one."""
        with translated(self._where):
            return dict(self._connection.execute(_REQUESTS, {"capture": self._capture}).fetchall())

    @abstractmethod
    def out_of_reach(self, positions: Mapping[int, str]) -> Mapping[int, str]:
        """Return the attachments whose changes since these positions are not all there any more, and why."""

    def committed(self, published: Mapping[str, TableCursor]) -> None:  # noqa: B027 - most have nothing to do
        """Take note of what the cursor says that Kafka has committed: what lies before it is needed no more."""

    def sat_out(self, round_: Round, tables: Sequence[CapturedTable]) -> None:  # noqa: B027 - most have nothing to do
        """Take note that what a round found of these tables was not read: the next one has to find it again."""

    @abstractmethod
    def arm(self, table: CapturedTable) -> bool:
        """Add what a table lacks for its changes to be found, if it may still be captured.

        Returns whether there was anything to add. Raises LockNotAvailable if the table or a partition is in use.
        """

    @abstractmethod
    def empty(self, table: CapturedTable) -> None:
        """Let go of changes of a table that waits to be read anew, a step at a time."""

    @abstractmethod
    def may_begin(self, table: CapturedTable) -> bool:
        """Return, inside a round, whether a table that waits can be read anew from its position on."""

    @abstractmethod
    def round(
        self, tables: Sequence[CapturedTable], previous: Positions, page_rows: Callable[[CapturedTable], int]
    ) -> AbstractContextManager[Round]:
        """Find what changed since their `previous` positions in those `tables` that have one.

        The rows are read while it is open. Of a table with more records than its `page_rows` only their number and
        their marks may be known: they are drained then.
        """

    def begun_at(self, round_: Round, table: CapturedTable) -> str:
        """Return, inside a round, the position of a table that is read anew from then on."""
        return round_.position_of(table)

    @abstractmethod
    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables look like in the open transaction's snapshot, by attachment."""

    def as_of(self, tables: Sequence[CapturedTable]) -> Mapping[int, KnownBy]:  # noqa: ARG002 - most know of none
        """Return, inside a round, by when those tables are known that others compute, by attachment.

        That time is of the clock of what they are computed from, and stands instead of the round's.
        """
        return {}

    @abstractmethod
    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:
        """Take the keys of a round with more records than a page, for pages that are read one by one."""

    @abstractmethod
    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Have whoever captures the table read and publish `keys` from the topic, as if they had changed now."""

    def has_read_logged(self, table: CapturedTable, position: str) -> bool:  # noqa: ARG002 - most need none of it
        """Return whether a table's later watermarks cover what `log_keys` was given last, as those of logs all do."""
        return True

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Close what is open beside the connection."""

    @abstractmethod
    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        """Fix the reading transaction's snapshot, and return the round that begins with it."""

    def _locked(self, tables: Sequence[CapturedTable]) -> list[Identifier]:
        """Name what the reading transaction of `tables` locks."""
        return [statements.rows_name(table) for table in tables]

    def images(self, round_: Round, table: CapturedTable, keys: Keys) -> Page:
        """Read the rows of logged keys in the round's snapshot; a row that is gone is None."""
        if not keys.count:
            return Page(table, (), round_.read_at_ms, Op.UPSERT)
        values = arrays(keys.literals)
        sql = self._render((table, "living"), lambda: statements.living(table))
        with self._reading_rows(Asked(table, lambda: statements.living(table, rows=False), values)):
            rows, is_cut = self._page_rows(sql, values, keys.count)
            # A view may show a key twice, and another one that is gone would not be missed by their number.
            if not is_cut and (len(rows) < keys.count or table.kind is Kind.VIEW):
                sql = self._render((table, "gone"), lambda: statements.gone(table))
                rows = [*rows, *self._rows(sql, values)]
        return self._page_of(table, rows, round_.read_at_ms, Op.UPSERT, is_cut=is_cut)

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
                rows = self._rows(sql, arrays(keys)) if keys else ()
            return self._page_of(table, rows, read_at_ms, Op.DELETE)

    def taken(self, table: CapturedTable, keys: Mapping[bytes, Sequence[str]]) -> list[bytes]:
        """Return those of the keys from the topic, each with its columns' texts, that the columns' types take."""

        def take(some: Sequence[bytes]) -> bool | None:
            return self._takes(table, by_column(keys[key] for key in some)) or None

        return [key for some, takes in halved(list(keys), take) if takes for key in some]

    def _takes(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> bool:
        sql = self._render((table, "texts"), lambda: statements.key_texts(table))
        with translated(self._where), suppress(psycopg.DataError):
            self._connection.execute(sql, arrays(keys))
            return True
        return False

    def chunk(self, table: CapturedTable, after: tuple[str, ...] | None, *, most_rows: int) -> Page | None:
        """Read the next rows of a table in key order, in a snapshot of their own; None while the table is locked."""
        resumed = after is not None
        values = {"most_rows": most_rows} | {f"after_{place}": text for place, text in enumerate(after or (), 1)}
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "chunk", resumed), lambda: statements.chunk(table, resumed=resumed))
            asked = Asked(table, lambda: statements.chunk(table, resumed=resumed, rows=False), values)
            with self._reading_rows(asked):
                rows, is_cut = self._page_rows(sql, values, most_rows)
            return self._page_of(table, rows, read_at_ms, Op.READ, is_cut=is_cut)

    def look_up(self, table: CapturedTable, keys: Sequence[Sequence[str]], *, most_rows: int) -> Page | None:
        """Read the rows of `keys` from the topic in a snapshot of their own; None while the table is locked.

        Each key comes back as the capture writes it; a row that is not there is None.
        """
        with translated(self._where), self._reading((table,)) as readable:
            if not readable:
                return None
            read_at_ms = self._head(readable).read_at_ms
            sql = self._render((table, "topic images"), lambda: statements.topic_images(table))
            rows, is_cut = self._page_rows(sql, arrays(keys), most_rows)
            return self._page_of(table, rows, read_at_ms, Op.READ, is_cut=is_cut)

    def first_unreadable(self, asked: Asked) -> bytes | None:
        """Find the first of those rows that Postgres fails to read, in a few look-ups; None if that cannot be told."""
        table = asked.table

        def read(keys: Sequence[bytes]) -> bool | None:
            try:
                self.look_up(table, key_columns(str(table.name), set(keys)), most_rows=len(keys))
            except DatabaseError:
                return None
            return True

        with translated(self._where), self._reading((table,)) as readable:
            keys = self._rows(asked.keys().as_bytes(None), asked.values) if readable else ()
        return next((failing[0] for failing, answer in halved([key for key, _ in keys], read) if answer is None), None)

    @contextmanager
    def _reading_rows(self, asked: Asked) -> Iterator[None]:
        """Say of which table rows are read where Postgres fails to read them."""
        try:
            with translated(f"{self._where}, table {asked.table.name}"), keys_of(asked.table):
                yield
        except ObjectMissing:
            raise
        except DatabaseError as error:
            raise unreadable(error, asked) from error

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
        return self._render((*tables, "lock"), lambda: statements.lock(self._locked(tables)))

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

    def _page_of(
        self, table: CapturedTable, rows: Sequence[KeyAndRow], read_at_ms: int, op: Op, *, is_cut: bool = False
    ) -> Page:
        """Make a page of what this transaction has read.

        Raises CatalogChanged if that may be another table's, CaptureError, with what to do, if a row's key is NULL.

        Rows are read by name, and what was read is locked, so that it keeps that. A look before would say less: no lock
        keeps a schema's name.
        """
        values = {"name": statements.rows_name(table).as_string(), "oid": table.rows_oid}
        if self._connection.execute(_IS_READ, values, prepare=True).fetchone() != (True,):
            raise CatalogChanged(f"{table.name}: another table has its name now")
        # A view may show such a row. The look takes 24 ns a row, of which Postgres has taken more than 3 µs.
        if any(key is None for key, _ in rows):
            raise _null_key(table)
        return Page(table, rows, read_at_ms, op, is_cut)

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


class AttachedSource(Source):
    """A source that tables are attached for, so that they can be handed over between it and another such one."""

    kind: ClassVar[SourceKind]

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what is attached, and what it looks like.

        Raises CaptureError for what ends the capture, once Postgres refuses no writers any more where it did so for us.
        """
        try:
            with translated(self._where), self._reading(()):
                tables = captured_tables(self._connection, self._capture)
                demand_source(tables, self.kind)
                return tables, self.seen(tables)
        except CaptureError:
            self._let_writers_go_on()
            raise

    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables look like, with the triggers or the publication that this source finds changes by."""
        rows = self._connection.execute(FINGERPRINTS_SQL, parameters(tables, self.kind), prepare=True)
        return {attachment: Seen(*looks) for attachment, *looks in rows}

    @abstractmethod
    def begin(self, table: CapturedTable) -> str | None:
        """Return a position to begin with: all that snapshots from now on do not see at once is found from there on.

        None if the source may not have seen all changes of a table that moves to it since it was attached.
        """

    @abstractmethod
    def tell(self, table: CapturedTable, keys: Keys) -> None:
        """Have keys that another source has found be found by this one, as if they had changed now."""

    def _let_writers_go_on(self) -> None:
        """Take those tables out of the publication whose writers Postgres refuses, where the role may."""
        # Where it may not, what the capture stops for is still what it says.
        with suppress(ViewkeeperError), translated(self._where):
            self._connection.execute(_WITHDRAW, {"capture": self._capture})


def _null_key(table: CapturedTable) -> CaptureError:
    key = ", ".join(column.name for column in table.key)
    return CaptureError(
        f"{table.name}: a row's key ({key}) is NULL, at least in part, and rows are told apart by it: leave such rows "
        f"out of the view, WHERE ({key}) IS NOT NULL, or name another key"
    )


def by_column(keys: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return the texts of keys as one list a key column."""
    return [list(texts) for texts in zip(*keys, strict=True)]


def arrays(keys: Sequence[str | Sequence[str]]) -> dict[str, object]:
    """Return the parameters `k1`, … of statements over keys: an array a key column."""
    return {f"k{place}": array for place, array in enumerate(keys, 1)}
