"""A captured source, held against its topics: what they must hold is what the capture's own SQL says of the tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import psycopg

from cdc.attachment import attach
from cdc.change import Page
from cdc.cursor import Cursor
from cdc.session import SESSION
from cdc.source import Source
from cdc.tables import CapturedTable, SourceKind, captured_tables
from cdc.triggers import TriggerSource
from cdc.wal import WalSource
from cdc.wire import TableName
from runtime.errors import RetryableError
from runtime.postgres import connect
from tests.topic_reader import Changelog, cursor_reader, read_changelog, read_cursor
from tests.waiting import wait_until

CAPTURE = "viewkeeper"
EVERY_ROW = 10_000_000
# Two instances start again and again, and tables are read anew, on a machine that may be busy.
CATCH_UP_SECONDS = 120.0


@dataclass(frozen=True)
class CapturedSource:
    """The source database at `url`, and the topics that the capture makes of it, which asks `kind` for changes."""

    url: str
    bootstrap_servers: str
    prefix: str
    kind: SourceKind = SourceKind.TRIGGERS
    capture: str = CAPTURE

    def run(self, *statements: str) -> None:
        """Execute statements, each a transaction of its own unless it says otherwise."""
        with connect(self.url, name="test") as session:
            for statement in statements:
                session.execute(statement)

    def attach(self, *tables: str) -> None:
        with connect(self.url, name="test") as session:
            for table in tables:
                assert attach(session, self.capture, TableName.parse(table), where="test", source=self.kind)

    def move(self, kind: SourceKind, *tables: str) -> None:
        """Attach tables for another source, whether or not the move before is over."""
        for table in tables:
            wait_until(lambda table=table: self._moves(kind, table), what=f"an attach of {table}")  # type: ignore[misc]

    def _moves(self, kind: SourceKind, table: str) -> bool:
        # Without the command's limit on locks it gets its turn beside these writers, but may be a deadlock's victim.
        try:
            with connect(self.url, name="test") as session:
                attach(session, self.capture, TableName.parse(table), where="test", source=kind)
        except RetryableError:
            return False
        return True

    def is_moving(self) -> bool:
        """Return whether a table is on its way from one source to the other."""
        with connect(self.url, name="test") as session:
            row = session.execute("SELECT count(*) FROM cdc.captured_table WHERE moving_to IS NOT NULL").fetchone()
        return row is not None and row[0] > 0

    def now(self) -> datetime:
        """Read the source's clock; after a COMMIT that is a time by which it was committed."""
        with connect(self.url, name="test") as session:
            row = session.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        return now

    def topic(self, table: str) -> Changelog:
        return read_changelog(self.bootstrap_servers, f"{self.prefix}.{table}")

    def cursor(self) -> Cursor | None:
        return read_cursor(self.bootstrap_servers, self.prefix, self.capture)

    def cursor_end(self) -> int:
        """Return how far the cursor topic has come; 0 before there is one."""
        return cursor_reader(self.bootstrap_servers, self.prefix).end()

    def cursors(self) -> Changelog:
        return read_changelog(self.bootstrap_servers, f"{self.prefix}.cursor")

    def wait_published(self, tables: Iterable[str], *, timeout_seconds: float = CATCH_UP_SECONDS) -> None:
        """Wait until the watermarks of these tables (`schema.name`) have passed this moment."""
        until, waited_for = self.now(), tuple(tables)

        def behind() -> list[str]:
            cursor = self.cursor()
            known = cursor.tables if cursor else {}
            entries = {table: known.get(table) for table in waited_for}
            return [
                f"{table}: {entry}"
                for table, entry in entries.items()
                if entry is None or entry.watermark is None or entry.watermark.time < until
            ]

        wait_until(lambda: not behind(), timeout_seconds=timeout_seconds, what=f"watermarks after {until}: {behind()}")

    def rows(self) -> dict[str, dict[bytes, bytes]]:
        """Return key and row of each captured table, in the wire's bytes; nobody may be writing."""
        with connect(self.url, name="test", settings=SESSION) as session:
            source = self._reader(session)
            return {str(table.name): _rows(source, table) for table in captured_tables(session, self.capture)}

    def _reader(self, session: psycopg.Connection) -> Source:
        if self.kind is SourceKind.TRIGGERS:
            return TriggerSource(session, self.capture, where="test")
        return WalSource(session, self.capture, url=self.url, where="test", page_keys=1)

    def assert_topics_equal_tables(self) -> None:
        """Compare every captured table with its compacted topic, key for key and byte for byte; nobody may write."""
        for table, expected in self.rows().items():
            found = self.topic(table).values
            lost, ghosts = expected.keys() - found.keys(), found.keys() - expected.keys()
            other = {key: (found[key], expected[key]) for key in expected.keys() & found if found[key] != expected[key]}
            assert (table, lost, ghosts, other) == (table, set(), set(), {})


def _rows(source: Source, table: CapturedTable) -> dict[bytes, bytes]:
    def page() -> Page | None:
        # None while something, the capture's own pruning for instance, holds the table or its change log.
        return source.chunk(table, None, most_rows=EVERY_ROW)

    found = wait_until(page, what=f"a look at {table.name}")
    assert found is not None
    return {key: row for key, row in found.changes if row is not None}
