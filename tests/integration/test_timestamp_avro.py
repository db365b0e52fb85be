"""Polled tables in Avro: Confluent's deserializer reads what was polled, what a sweep left, what a reconcile mended."""

from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from psycopg.rows import dict_row

from compose.local.registry import SchemaRegistry
from tests.daemons import Daemons
from tests.integration.polled_source import BOTH, NO_LOOK_BACK, PolledSource
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

Rows = dict[int, dict[str, Any]]


@pytest.fixture
def priced(polled: PolledSource) -> PolledSource:
    """Give a source with three rows of types that Avro has logical types for."""
    polled.run(
        "CREATE TABLE priced (id bigint PRIMARY KEY, price numeric(8, 2), day date, updated_at timestamptz)",
        "INSERT INTO priced VALUES (1, 1.10, '2026-01-02', now()), (2, NULL, NULL, now()), (3, 5, NULL, now())",
    )
    return polled


def read_rows(source: PolledSource, registry: SchemaRegistry) -> Rows:
    """Return a topic's living rows as a consumer with Confluent's deserializer gets them, by id."""
    values, name = source.topic("priced").values, source.topic_name("priced")
    with SchemaRegistryClient({"url": registry.url, "timeout": 10}) as client:
        deserializer: Any = AvroDeserializer(client)
        key_of, row_of = (SerializationContext(name, field) for field in (MessageField.KEY, MessageField.VALUE))
        return {deserializer(key, key_of)["id"]: deserializer(row, row_of) for key, row in values.items()}


def table_rows(source: PolledSource) -> Rows:
    """Return the table's rows as psycopg gets them: decimals, dates and times are the same objects."""
    with source.connection.cursor(row_factory=dict_row) as cursor:
        return {row["id"]: row for row in cursor.execute("SELECT * FROM priced")}


def test_confluents_deserializer_reads_what_was_polled_and_swept(
    priced: PolledSource, daemon: Daemons, avro: dict[str, str], schema_registry: SchemaRegistry
) -> None:
    daemon("cdc", "run", settings={**priced.tables(priced=BOTH), **avro, "VIEWKEEPER_CDC_SWEEP_SECONDS": "1"})
    priced.wait_published("priced")
    assert read_rows(priced, schema_registry) == table_rows(priced)
    priced.run(
        "INSERT INTO priced VALUES (4, -12.30, '2026-01-03', now())",
        "UPDATE priced SET price = NULL, updated_at = now() WHERE id = 1",
        "DELETE FROM priced WHERE id = 3",
    )
    wait_until(lambda: read_rows(priced, schema_registry) == table_rows(priced), what="the rows, and one less")


def test_a_reconcile_asks_for_keys_of_avro(
    priced: PolledSource, daemon: Daemons, avro: dict[str, str], schema_registry: SchemaRegistry
) -> None:
    settings = {**priced.tables(priced=BOTH), **avro, **NO_LOOK_BACK}
    daemon("cdc", "run", settings=settings)
    priced.wait_published("priced")
    priced.run("UPDATE priced SET price = 7 WHERE id = 2", "DELETE FROM priced WHERE id = 3")
    priced.wait_published("priced")
    assert read_rows(priced, schema_registry) != table_rows(priced)
    repaired = daemon("cdc", "reconcile", settings=settings)
    assert repaired.wait(60) == 0, repaired.log_text()
    assert read_rows(priced, schema_registry) == table_rows(priced)


def test_a_row_of_a_view_whose_key_is_null_stops_the_capture_and_the_view_is_named(
    priced: PolledSource, daemon: Daemons, avro: dict[str, str]
) -> None:
    priced.run("CREATE VIEW shown AS SELECT nullif(id, 3) AS id, day, updated_at FROM priced")
    tables = priced.tables(shown='mode = "timestamp"\ntimestamp = ["updated_at"]\nkey = ["id"]')
    capture = daemon("cdc", "run", settings={**tables, **avro})
    assert capture.wait(30) == 1
    assert "public.shown: a row's key (id) is NULL" in capture.log_text()
