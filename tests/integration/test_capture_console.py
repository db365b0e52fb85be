"""Java's console consumer reads our topics as they are: what it prints is what the source table holds."""

import json
import signal
from collections.abc import Iterable

import pytest
from confluent_kafka import Message

from tests.console_consumer import Printed, print_topic
from tests.daemons import Daemons
from tests.integration.captured_source import Source, headers, insert_tweets
from tests.integration.wal_steps import SMALL_PAGES
from tests.torture_steps import Kind, Step

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

COLUMNS = ("tweet_id", "user_id", "text", "created_at", "updated_at")
# As SQL says it itself: nothing of how the capture writes rows is in it.
ROWS = """
SELECT tweet_id, user_id, text, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM tweets
"""


def test_what_the_console_consumer_prints_is_what_the_table_holds(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    leave_an_aborted_transaction(source, daemon)
    daemon("cdc", "run", settings=SMALL_PAGES)
    source.wait_exact("tweets")
    for statement in (
        "UPDATE tweets SET text = NULL, created_at = '0001-01-01 00:00:00.000001+00' WHERE tweet_id <= 5",
        "UPDATE tweets SET text = E'Zoë \"Z\" 😀\\t\\\\ first\\nsecond \\u2028' WHERE tweet_id = 6",
        "UPDATE tweets SET tweet_id = -7 WHERE tweet_id = 7",
        "DELETE FROM tweets WHERE tweet_id > 290",
    ):
        source.run(statement)
    source.wait_exact("tweets")

    records = source.topic("tweets").records
    printed = print_topic(source.bootstrap_servers, source.topic_name("tweets"), records=len(records))
    assert sorted(printed) == sorted(map(as_printed, records))
    gone = {key(number) for number in (7, *range(291, 301))}
    assert {one.key for one in printed if not one.value} == gone
    assert {one.key for one in printed if one.headers[0] == "__op:d"} == gone
    assert living(printed) == {
        key(row[0]): dict(zip(COLUMNS, row, strict=True)) for row in source.connection.execute(ROWS)
    }


def leave_an_aborted_transaction(source: Source, daemon: Daemons) -> None:
    """Kill a capture before it commits: the next one aborts what is in the topic, which read_committed leaves out."""
    words = (Kind.CHUNK, "1", Step.DELIVERED, signal.SIGKILL.name, "run")
    assert daemon("tests.torture_steps", *words, settings=SMALL_PAGES).wait(30) == -signal.SIGKILL
    source.run("UPDATE cdc.capture SET leader = NULL")


def as_printed(record: Message) -> Printed:
    """Return the line of a record that confluent-kafka read: whatever it has, byte for byte."""
    found = tuple(f"{name}:{value.decode()}" for name, value in headers(record).items())
    return Printed(found, bytes(record.key() or b"").decode(), bytes(record.value() or b"").decode())


def key(tweet_id: int) -> str:
    return f'{{"tweet_id":{tweet_id}}}'


def living(printed: Iterable[Printed]) -> dict[str, dict[str, object]]:
    """Return the rows that are left when each key's last record counts."""
    last = {one.key: one.value for one in printed}
    return {key: json.loads(value) for key, value in last.items() if value}
