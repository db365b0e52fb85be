"""The WAL source with Avro, end to end: confluent-kafka's own deserializer reads what the table holds."""

from typing import Any, cast

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from psycopg.rows import dict_row

from compose.local.registry import SchemaRegistry
from tests.daemons import Daemons
from tests.integration.captured_source import Source
from tests.integration.wal_steps import attach_wal, run_wal

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

Key = tuple[str, int]
Row = dict[str, Any]

CREATE = """
CREATE TABLE prices (id bigint, shop text, price numeric(8, 2), at timestamptz, raw bytea, tags text[],
                     PRIMARY KEY (shop, id))
"""
FILL = """
INSERT INTO prices
SELECT i, 'shop ' || i % 3, i / 4.0, timestamptz '2026-01-02 03:04:05.678901+02' + i * interval '1 day',
       decode(md5(i::text), 'hex'), ARRAY['a', NULL, i::text]
FROM generate_series(1, 20) i
"""


def test_inserts_updates_deletes_and_a_changed_key_are_read_by_confluents_deserializer(
    wal: Source, daemon: Daemons, avro: dict[str, str], schema_registry: SchemaRegistry
) -> None:
    wal.run(CREATE, FILL)
    attach_wal(wal, "prices")
    run_wal(daemon, avro)
    with SchemaRegistryClient({"url": schema_registry.url, "timeout": 10}) as client:
        deserialize = AvroDeserializer(client)
        for statement in (
            "INSERT INTO prices VALUES (21, 'Zoë', -0.05, NULL, '', '{}')",
            "UPDATE prices SET price = price + 1, raw = NULL WHERE id <= 3",
            "DELETE FROM prices WHERE id BETWEEN 18 AND 20",
            "UPDATE prices SET shop = 'elsewhere', id = -5 WHERE id = 5",
        ):
            wal.run(statement)
            wal.wait_published("prices")
            assert living(read(wal, deserialize)) == table(wal)
        gone = {key for key, row in read(wal, deserialize) if row is None}
    assert gone == {("shop 0", 18), ("shop 1", 19), ("shop 2", 20), ("shop 2", 5)}


def read(source: Source, deserialize: AvroDeserializer) -> list[tuple[Key, Row | None]]:
    """Return the topic's keys and rows, each partition's in their order; a tombstone's row is None."""
    topic = source.topic_name("prices")
    key_field, value_field = (SerializationContext(topic, field) for field in (MessageField.KEY, MessageField.VALUE))
    return [
        (
            _key(cast(Row, deserialize(record.key(), key_field))),
            cast(Row | None, deserialize(record.value(), value_field)),
        )
        for record in source.topic("prices").records
    ]


def living(records: list[tuple[Key, Row | None]]) -> dict[Key, Row]:
    """Return the rows that are left when each key's last record counts."""
    return {key: row for key, row in dict(records).items() if row is not None}


def table(source: Source) -> dict[Key, Row]:
    with source.connection.cursor(row_factory=dict_row) as cursor:
        return {_key(row): row for row in cursor.execute("SELECT * FROM prices")}


def _key(columns: Row) -> Key:
    return columns["shop"], columns["id"]
