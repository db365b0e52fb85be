"""A real Debezium connector captures the same tables: compacted, its flat topics hold the same rows as ours.

Keys are the same bytes in the same partitions. Rows are the same but for what AS_OURS undoes, type by type. Left out is
what Debezium's mapping does not keep: infinite numbers and times, years before Christ and after 9999, the time 24:00,
arrays of numeric and of several dimensions, composite types.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from psycopg.sql import SQL, Identifier, Literal

from cdc.topics import CHANGELOG_CONFIG, ensure_topic
from runtime.settings import CdcSettings
from tests.daemons import Daemons
from tests.debezium import Connector, Worker
from tests.integration.captured_source import Source, tombstones
from tests.topic_reader import Changelog, read_changelog
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

SHIPPED = ("users", "tweets", "follows", "likes")
TABLES = (*SHIPPED, "kinds")

SETTINGS = {
    # Kafka's null for a row that is gone. By default it is one for sinks alone, and written as the text `null`.
    "transforms.flat.delete.tombstone.handling.mode": "delete-to-tombstone",
    # As near to ours as its options go: times are ISO 8601, not numbers; numeric is as exact as it is stored; bytea is
    # base64; an interval is ISO 8601, not microseconds. Types that it does not know are left out by default.
    "time.precision.mode": "isostring",
    "decimal.handling.mode": "string",
    "binary.handling.mode": "base64",
    "interval.handling.mode": "string",
    "include.unknown.datatypes": "true",
}

# A column a type, named like it.
KINDS = {
    "smallint": "-32768",
    "integer": "2147483647",
    "bigint": "9223372036854775807",
    "numeric": "12345678901234567890.123456789",
    "numeric(6,2)": "1.1",
    "real": "0.1",
    "double precision": "1e300",
    "boolean": "true",
    "text": 'Zoë "Z" 😀\t\\\n',
    "character varying(9)": "a/b",
    "character(4)": "ab",
    "bytea": "\\x00ff10",
    "uuid": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
    "mood": 'so "so"',
    "date": "2026-01-02",
    "time without time zone": "03:04:05.6",
    "timestamp without time zone": "2026-01-02 03:04:05.6",
    "timestamp with time zone": "2026-01-02 03:04:05.6+02",
    "interval": "1 year 2 mons -3 days 04:05:06.7",
    "json": '{"b" : 1.10,  "a":[]}',
    "jsonb": '{"b":1.10,"a":[null]}',
    "text[]": '{a,"b,c",NULL,"NULL"}',
    "integer[]": "{1,NULL,3}",
    "boolean[]": "{t,f}",
    "bytea[]": '{"\\\\x00ff10",NULL}',
    "timestamp with time zone[]": "{2026-01-02 03:04:05+02,NULL}",
    "jsonb[]": '{"{\\"a\\": 1}","2"}',
    "inet": "10.0.0.1/8",
    "cidr": "10.0.0.0/8",
    "macaddr": "08-00-2B-01-02-03",
    "int4range": "[1,5]",
    "bit(3)": "101",
    "money": "-1234.5",
    "point": "(1.5,2)",
    "oid": "4294967295",
}

AS_OURS: dict[str, Callable[[Any], object]] = {
    # A zone, where the type has none.
    "date": lambda text: text.removesuffix("Z"),
    "time without time zone": lambda text: text.removesuffix("Z"),
    # The same, and no trailing zeros.
    "timestamp without time zone": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%dT%H:%M:%S.%f}",
    # JSON is text, which schemas of Kafka Connect have no other type for.
    "json": json.loads,
    "jsonb": json.loads,
    "jsonb[]": lambda texts: list(map(json.loads, texts)),
    # Bits are bytes, the last bit first.
    "bit(3)": lambda text: f"{int.from_bytes(b64decode(text), 'little'):03b}",
    # A structure of its parts and a binary form.
    "point": lambda point: f"({point['x']:g},{point['y']:g})",
    # A number, where ours is what Postgres shows.
    "oid": str,
}

TYPES = """
SELECT attname, pg_catalog.format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
"""


@pytest.fixture
def kinds(source: Source) -> Source:
    """Give the source with rows in the shipped tables and in `kinds`, all attached."""
    columns = SQL(", ").join(SQL("{} {}").format(Identifier(kind), SQL(kind)) for kind in KINDS)
    source.run("CREATE TYPE mood AS ENUM ('sad', 'so \"so\"', 'glad')")
    source.connection.execute(SQL("CREATE TABLE kinds (id bigint PRIMARY KEY, toasted text, {})").format(columns))
    # A value out of line that an UPDATE leaves alone is not in the WAL: Debezium publishes a placeholder for it, unless
    # the old row is in the WAL as a whole. The capture reads rows again and needs neither.
    source.run("ALTER TABLE kinds ALTER toasted SET STORAGE EXTERNAL", "ALTER TABLE kinds REPLICA IDENTITY FULL")
    insert_kinds(source, 1)
    source.run(
        "INSERT INTO kinds (id, toasted) SELECT i, repeat('wide ' || i, 2000) FROM generate_series(2, 5) i",
        "INSERT INTO users SELECT i, 'user' || i, 'Zoë ' || i, NULL, 'here', NULL, now() - i * interval '1 day' "
        "FROM generate_series(1, 20) i",
        "INSERT INTO tweets SELECT i, i % 7, 'tweet ' || i, now() FROM generate_series(1, 40) i",
        "INSERT INTO follows SELECT i, i % 7, i % 5, '2026-01-02' FROM generate_series(1, 30) i",
        "INSERT INTO likes SELECT i, i % 7, i FROM generate_series(1, 30) i",
    )
    source.attach(*TABLES)
    return source


@pytest.fixture
def debezium(kinds: Source, settings: CdcSettings, tmp_path: Path) -> Iterator[Connector]:
    """Give a connector over the same tables, whose topics are made as the capture makes its own."""
    connector = Connector(
        name=f"debezium_{kinds.prefix}",
        source_url=kinds.url,
        bootstrap_servers=kinds.bootstrap_servers,
        topic_prefix=f"{kinds.prefix}.debezium",
        tables=[f"public.{table}" for table in TABLES],
        folder=tmp_path,
        connector_settings=SETTINGS,
    )
    client = AdminClient({"bootstrap.servers": kinds.bootstrap_servers, "log_level": 0})
    for table in TABLES:
        name = topic_name(connector, table)
        ensure_topic(client, settings, name, partitions=settings.topic_partitions, config=CHANGELOG_CONFIG)
    yield connector
    connector.drop_slot()


def test_debeziums_topics_hold_the_same_rows_as_ours(kinds: Source, daemon: Daemons, debezium: Connector) -> None:
    daemon("cdc", "run")
    with debezium.running(snapshot=True) as worker:
        # What is deleted before it was ever read would have no tombstone.
        kinds.wait_published(*TABLES)
        wait_for(worker, lambda: all(len(theirs(debezium, table).values) == rows(kinds, table) for table in TABLES))
        change(kinds)
        kinds.run("INSERT INTO likes VALUES (1000)")
        # Changes come in the WAL's order, and what was sent is delivered before the worker ends.
        wait_for(worker, lambda: b'{"like_id":1000}' in theirs(debezium, "likes").values)
    kinds.wait_exact(*TABLES)
    for table in TABLES:
        our_topic, their_topic = kinds.topic(table), theirs(debezium, table)
        assert as_ours(kinds, table, their_topic) == our_topic.rows()
        assert partitions(their_topic) == partitions(our_topic)
        assert gone(their_topic) == gone(our_topic)


def change(source: Source) -> None:
    """Change rows in each way that there is, in transactions of their own."""
    insert_kinds(source, 6)
    source.run(
        "INSERT INTO kinds SELECT 7, repeat('new', 2000)",
        # The wide value stays as it is, here and under another key.
        "UPDATE kinds SET smallint = 7, text = 'changed', \"text[]\" = NULL WHERE id = 2",
        "UPDATE kinds SET id = 30 WHERE id = 3",
        "UPDATE kinds SET toasted = 'narrow' WHERE id = 4",
        "DELETE FROM kinds WHERE id = 5",
        "UPDATE users SET location = NULL, updated_at = '2026-01-02 03:04:05+02' WHERE user_id < 5",
        "UPDATE tweets SET tweet_id = -tweet_id WHERE tweet_id <= 3",
        "DELETE FROM tweets WHERE tweet_id > 35",
        "INSERT INTO tweets SELECT i, i, 'again', '0001-01-01 00:00:00.000001+00' FROM generate_series(36, 50) i",
        "BEGIN",
        "DELETE FROM users WHERE user_id = 20",
        "DELETE FROM follows WHERE follow_id % 7 = 0",
        "COMMIT",
    )


def insert_kinds(source: Source, number: int) -> None:
    """Insert a row with the value of each type."""
    values = SQL(", ").join(SQL("{}::{}").format(Literal(text), SQL(kind)) for kind, text in KINDS.items())
    source.connection.execute(SQL("INSERT INTO kinds VALUES ({}, 'short', {})").format(Literal(number), values))


def wait_for(worker: Worker, condition: Callable[[], bool]) -> None:
    def reached() -> bool:
        worker.check()
        return condition()

    wait_until(reached, timeout_seconds=60, what="Debezium's records")


def rows(source: Source, table: str) -> object:
    return source.value(f"SELECT count(*) FROM {table}")


def topic_name(connector: Connector, table: str) -> str:
    return f"{connector.topic_prefix}.public.{table}"


def theirs(connector: Connector, table: str) -> Changelog:
    return read_changelog(connector.bootstrap_servers, topic_name(connector, table))


def as_ours(source: Source, table: str, topic: Changelog) -> dict[str, dict[str, Any]]:
    """Return the rows of a topic of Debezium's as ours has them."""
    how = {name: AS_OURS[kind] for name, kind in source.connection.execute(TYPES, [table]) if kind in AS_OURS}
    return {
        key: {name: how[name](value) if name in how and value is not None else value for name, value in row.items()}
        for key, row in topic.rows().items()
    }


def gone(topic: Changelog) -> set[bytes]:
    """Return the keys whose last record is a tombstone."""
    return set(tombstones(topic)) - topic.values.keys()


def partitions(topic: Changelog) -> dict[object, int | None]:
    """Return where each key is."""
    return {record.key(): record.partition() for record in topic.records}
