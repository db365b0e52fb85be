"""The timestamp source: what columns tell of changes is published, in each mode, and across every kind of border."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from compose.local.kafka import KafkaBroker
from tests.daemons import Daemons
from tests.integration.polled_source import PolledSource

BOTH = 'mode = "timestamp+incrementing"\ntimestamp = ["updated_at"]\nincrementing = "id"'
TIMESTAMP = 'mode = "timestamp"\ntimestamp = ["updated_at"]'


@pytest.fixture
def polled(source_url: str, kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[PolledSource]:
    """Give a source with a table of ten rows."""
    source = PolledSource(source_url, kafka, topic_prefix, tmp_path)
    with closing(source.connection):
        source.run(
            "CREATE TABLE items (id bigint PRIMARY KEY, text text, updated_at timestamptz)",
            "INSERT INTO items SELECT i, 'first', now() FROM generate_series(1, 10) i",
        )
        yield source


def test_rows_that_are_inserted_and_updated_are_published(polled: PolledSource, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings=polled.tables(items=BOTH))
    polled.wait_published("items")
    polled.run(
        "INSERT INTO items VALUES (11, 'second', now())",
        "UPDATE items SET text = 'second', updated_at = now() WHERE id <= 3",
    )
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")
    assert capture.logged("not_seen")
    assert capture.terminate() == 0
