"""Records of other programs in a topic: a sweep over its keys goes on, and says so."""

import pytest

from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets
from tests.integration.polled_source import TIMESTAMP, PolledSource
from tests.integration.test_cdc_reconcile import FOREIGN, WRONG, put

# What these tests are about is none of the versions' business.
pytestmark = pytest.mark.newest_postgres

SEVERAL_BATCHES = {"VIEWKEEPER_CDC_CHUNK_ROWS": "50"}
# An empty key is nobody's, and what only is written otherwise can be looked up.
PASSED_OVER = len(FOREIGN) - 2


def test_a_sweep_passes_over_keys_that_are_none_of_the_tables(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    capture = daemon("cdc", "run", settings=SEVERAL_BATCHES)
    source.wait_exact("tweets")
    put(source, "tweets", dict.fromkeys(FOREIGN, WRONG))
    source.run("TRUNCATE tweets", insert_tweets(5, 6))
    told = capture.wait_logged("foreign_keys")
    assert (told["table"], told["keys"], told["level"]) == ("public.tweets", PASSED_OVER, "warning")
    assert told["first"].encode() in FOREIGN
    assert "viewkeeper-cdc reconcile names them" in told["advice"]
    put(source, "tweets", dict.fromkeys(FOREIGN))
    assert daemon("cdc", "snapshot", "tweets", "--wait").wait(30) == 0
    assert len(capture.logged("foreign_keys")) == 2, "the records are there until Kafka has compacted the topic"
    assert source.topic("tweets").values == source.wire_rows("tweets")


def test_a_sweep_of_a_polled_table_passes_over_them_too(polled: PolledSource, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_SWEEP_SECONDS": "1"})
    polled.wait_published("items")
    put(polled, "items", {b'{"id":"abc"}': b'{"id":"abc","text":null}'})
    assert capture.wait_logged("foreign_keys")["first"] == '{"id":"abc"}'
    put(polled, "items", {b'{"id":"abc"}': None})
    polled.run("DELETE FROM items WHERE id <= 8")
    polled.wait_keys("items", 9, 10)


def test_a_value_that_is_no_label_stops_it_where_the_key_has_an_enum(source: Source, daemon: Daemons) -> None:
    """After a label was renamed and back such a key is a row's, and nobody else's."""
    source.run("CREATE TYPE mood AS ENUM ('sad', 'glad')", "CREATE TABLE moods (mood mood PRIMARY KEY)")
    source.attach("moods")
    capture = daemon("cdc", "run")
    source.wait_exact("moods")
    put(source, "moods", {b"none": WRONG})
    source.run("TRUNCATE moods")
    assert capture.wait_logged("foreign_keys")["first"] == "none"
    put(source, "moods", {b'{"mood":"blue"}': b'{"mood":"blue"}'})
    source.run("TRUNCATE moods")
    assert capture.wait() == 1
    assert "public.moods: a key in its change log or its topic is no value of its column" in capture.log_text()
