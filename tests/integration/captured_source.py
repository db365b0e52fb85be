"""A source database that is captured, and the topics that the capture makes of it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any, LiteralString, cast

import psycopg
from confluent_kafka import Message

from cdc.cursor import Cursor, TableCursor, decode_cursor
from cdc.session import SESSION
from cdc.source import Source as RowSource
from cdc.tables import SourceKind, captured_tables
from cdc.triggers import TriggerSource
from cdc.wal import WalSource
from cdc.wire import TableName
from compose.local.kafka import KafkaBroker
from runtime.postgres import connect
from tests.topic_reader import Changelog, read_changelog, read_cursor
from tests.waiting import wait_until

CAPTURE = "viewkeeper"
_CHUNK_ROWS = 100_000


class Source:
    """The source database of a test, and the topics that the capture makes of it; `as_json` reads keys and rows."""

    def __init__(self, connection: psycopg.Connection, url: str, kafka: KafkaBroker, prefix: str) -> None:
        self.connection = connection
        self.url = url
        self.bootstrap_servers = kafka.bootstrap_servers
        self.prefix = prefix
        self.as_json: Callable[[bytes], bytes] = bytes

    def run(self, *statements: str) -> None:
        """Execute statements, each a transaction of its own."""
        for statement in statements:
            self.connection.execute(statement)

    def logged(self) -> int:
        """Return how many records the change log of the first attachment holds."""
        return int(str(self.value("SELECT count(*) FROM (TABLE cdc.log_1_0 UNION ALL TABLE cdc.log_1_1) AS records")))

    def now(self) -> datetime:
        """Read the source's clock; after a COMMIT that is a time by which it was committed."""
        return cast(datetime, self.value("SELECT clock_timestamp()"))

    def value(self, query: LiteralString, *values: object) -> object:
        """Return the one value that a query selects."""
        row = self.connection.execute(query, values or None).fetchone()
        assert row is not None
        return row[0]

    def attach(self, *tables: str, level: str = "statement") -> None:
        for table in tables:
            assert self.value("SELECT cdc.attach(%s, %s::regclass, %s)", CAPTURE, table, level)

    def lead(self, leader: str) -> None:
        """Give the capture's lease to somebody."""
        self.connection.execute(
            "INSERT INTO cdc.capture (name, leader) VALUES (%(name)s, %(leader)s) "
            "ON CONFLICT (name) DO UPDATE SET leader = %(leader)s",
            {"name": CAPTURE, "leader": leader},
        )

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """Open another connection, whose transaction is rolled back unless it was ended."""
        with closing(psycopg.connect(self.url)) as connection:
            yield connection

    def topic(self, table: str) -> Changelog:
        return read_changelog(self.bootstrap_servers, self.topic_name(table))

    def topic_name(self, table: str) -> str:
        return f"{self.prefix}.public.{table}"

    def cursors(self) -> list[Cursor]:
        """Return the capture's cursors, oldest first, as far as the topic was not compacted."""
        records = read_changelog(self.bootstrap_servers, f"{self.prefix}.cursor").records
        return [decode_cursor(_value(record), where="cursor topic") for record in records]

    def entry(self, table: str) -> TableCursor | None:
        """Return a table's part of the newest cursor."""
        cursor = read_cursor(self.bootstrap_servers, self.prefix)
        return cursor.tables.get(f"public.{table}") if cursor else None

    def watermark_time(self, table: str) -> datetime | None:
        """Return the time of a table's watermark, None while it has none."""
        entry = self.entry(table)
        return entry.watermark.time if entry and entry.watermark else None

    def wait_published(self, *tables: str, timeout_seconds: float = 30.0) -> None:
        """Wait for a watermark of these tables that is younger than this moment."""
        until = self.now()

        def published() -> bool:
            cursor = read_cursor(self.bootstrap_servers, self.prefix)
            entries = [cursor.tables.get(f"public.{table}") for table in tables] if cursor else [None]
            return all(entry and entry.watermark and entry.watermark.time >= until for entry in entries)

        wait_until(published, timeout_seconds=timeout_seconds, what=f"a watermark after {until} of {tables}")

    def assert_topic_equals_table(self, table: str, key: str) -> None:
        """Compare decoded rows, times as times, with what Postgres itself makes of the table."""
        rows = self.connection.execute(f"SELECT row_to_json(t)::text FROM (SELECT * FROM {table}) t").fetchall()
        expected = {f'{{"{key}":{row[key]}}}': _comparable(row) for row in (json.loads(text) for (text,) in rows)}
        found = {name: _comparable(row) for name, row in self.topic(table).rows().items()}
        assert found == expected

    def wire_rows(self, table: str) -> dict[bytes, bytes]:
        """Return the keys and rows of a table that nobody changes, in the bytes of the wire."""
        rows: dict[bytes, bytes] = {}
        with closing(connect(self.url, name="test", settings=SESSION)) as session:
            name = TableName.parse(table)
            captured = next(one for one in captured_tables(session, CAPTURE) if one.name == name)
            reader = row_reader(session, captured.source, self.url)
            page = reader.chunk(captured, None, most_rows=_CHUNK_ROWS)
            while page is not None and page.changes:
                rows.update((key, row) for key, row in page.changes if row is not None)
                last = tuple(map(str, json.loads(page.changes[-1][0]).values()))
                page = reader.chunk(captured, last, most_rows=_CHUNK_ROWS)
        assert page is not None, f"{table} is locked"
        return rows

    def wait_exact(self, *tables: str, timeout_seconds: float = 30.0) -> None:
        """Wait for a watermark of this moment; the topics then equal the tables, byte for byte.

        Nothing may change meanwhile: every watermark of this moment or later has to be true, not the last alone.
        """
        since = self.now()
        self.wait_published(*tables, timeout_seconds=timeout_seconds)
        cursors = self.cursors()
        for table in tables:
            expected, records = self.wire_rows(table), self.topic(table).records
            assert self._values(records) == expected, table
            known = [entry.watermark for cursor in cursors if (entry := cursor.tables.get(f"public.{table}"))]
            ends = {watermark.next_offsets for watermark in known if watermark and watermark.time >= since}
            assert ends
            for next_offsets in ends:
                found = self._values(records, next_offsets)
                assert found == expected, f"{table}: {next_offsets} was ahead of the truth"

    def _values(self, records: Sequence[Message], next_offsets: Sequence[int] | None = None) -> dict[bytes, bytes]:
        return {self.as_json(key): self.as_json(value) for key, value in _values(records, next_offsets).items()}


def row_reader(session: psycopg.Connection, kind: SourceKind, url: str) -> RowSource:
    """Give what reads rows as the capture does, in a session of its own."""
    if kind is SourceKind.TRIGGERS:
        return TriggerSource(session, CAPTURE, where="test")
    return WalSource(session, CAPTURE, url=url, where="test", page_keys=_CHUNK_ROWS)


def attach_words_view(source: Source) -> None:
    """Make the table words, of two rows, and attach the view `shown` of it, by the key id."""
    source.run(
        "CREATE TABLE words (id bigint, word text)",
        "INSERT INTO words VALUES (1, 'one'), (2, 'two')",
        "CREATE VIEW shown AS TABLE words",
        "SELECT cdc.attach('viewkeeper', 'shown', NULL, '{id}')",
    )


def insert_tweets(first: int, last: int) -> str:
    return f"INSERT INTO tweets SELECT i, i % 7, 'tweet ' || i, now() FROM generate_series({first}, {last}) i"


def headers(record: Message) -> Mapping[str, bytes]:
    """Return a record's headers by their names."""
    return dict(cast(list[tuple[str, bytes]], record.headers() or []))


def tombstones(changelog: Changelog) -> list[bytes]:
    """Return the keys of a topic's tombstones, in their order in each partition."""
    return [_key(record) for record in changelog.records if record.value() is None]


def _values(records: Sequence[Message], next_offsets: Sequence[int] | None = None) -> dict[bytes, bytes]:
    values: dict[bytes, bytes] = {}
    for record in records:
        partition, offset = cast(int, record.partition()), cast(int, record.offset())
        if next_offsets is not None and offset >= next_offsets[partition]:
            continue
        values.pop(_key(record), None)
        if record.value() is not None:
            values[_key(record)] = _value(record)
    return values


def _key(record: Message) -> bytes:
    return cast(bytes, record.key())


def _value(record: Message) -> bytes:
    return cast(bytes, record.value())


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromisoformat(row[name]) for name in ("created_at", "updated_at") if row.get(name)}
    return {**row, **times}
