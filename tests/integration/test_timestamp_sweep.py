"""What a sweep at the end of a pass has to publish, so that all is in the topic that was committed before the pass."""

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from cdc.cursor import TableCursor
from cdc.kafka_requests import RequestTopic
from cdc.polling import NOTHING
from cdc.session import SESSION
from cdc.sources import polled_options
from cdc.tables import CapturedTable
from cdc.timestamp import TimestampSource
from runtime.kafka import admin
from runtime.postgres import connect
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE
from tests.integration.polled_source import BULK, PolledSource

KEYS = [["1", "2", "3", "4"]]


@pytest.fixture
def source(polled: PolledSource, settings: CdcSettings) -> Iterator[TimestampSource]:
    """Give a source that polls two tables, one of them with partitions."""
    polled.run(
        "CREATE TABLE parts (id bigint PRIMARY KEY, text text) PARTITION BY HASH (id)",
        "CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO parts SELECT i, 'first' FROM generate_series(1, 10) i",
    )
    tables = polled.tables(items=BULK, parts=BULK)["VIEWKEEPER_CDC_TABLES"]
    requests = RequestTopic(settings, admin(settings, name="test"), CAPTURE)
    with closing(connect(polled.url, name="test", settings=SESSION)) as connection:
        yield TimestampSource(
            connection,
            CAPTURE,
            where="test",
            token="",
            options=polled_options(tables),
            intervals=NOTHING,
            requests=requests,
        )


def begin_pass(source: TimestampSource, name: str) -> CapturedTable:
    """Begin to read all rows of a table, as far as the cursor tells."""
    tables, _ = source.attached()
    (table,) = (one for one in tables if one.name.name == name)
    with source.round((table,), {}, lambda _table: 100) as round_:
        position = source.begun_at(round_, table)
    entry = TableCursor(
        topic="",
        attachment=table.attachment,
        position=position,
        complete=False,
        next_offsets=(),
        pass_began=round_.time,
    )
    source.committed({str(table.name): entry})
    return table


def swept(source: TimestampSource, table: CapturedTable) -> dict[int, str | None]:
    """Return the texts that a sweep publishes for KEYS, None for a tombstone, by id."""
    page = source.ghosts(table, KEYS)
    assert page is not None
    return {json.loads(key)["id"]: json.loads(row)["text"] if row else None for key, row in page.changes}


@pytest.mark.newest_postgres
@pytest.mark.parametrize("name", ["items", "parts"])
def test_a_row_that_came_back_while_the_others_were_read_is_published(
    polled: PolledSource, source: TimestampSource, name: str
) -> None:
    """Its row of before, which is in the topic, was deleted before the pass, and nothing read since has said so."""
    polled.run(f"DELETE FROM {name} WHERE id IN (1, 2)")
    table = begin_pass(source, name)
    assert swept(source, table) == {1: None, 2: None}
    polled.run(f"INSERT INTO {name} VALUES (1, 'came back')")
    assert swept(source, table) == {1: "came back", 2: None}


@pytest.mark.newest_postgres
def test_a_transaction_that_was_open_when_the_pass_began_is_told_from_those_before(
    polled: PolledSource, source: TimestampSource
) -> None:
    polled.run("UPDATE items SET text = 'before' WHERE id = 4")
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late' WHERE id = 3")
        table = begin_pass(source, "items")
        assert swept(source, table) == {}
        late.commit()
    assert swept(source, table) == {3: "late"}
