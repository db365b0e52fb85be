"""C2: row changes that fire no trigger. The table is read anew, and no watermark passes them before that is done."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from tests.daemons import Daemons
from tests.integration.captured_source import Source, attach_words_view, insert_tweets, tombstones
from tests.waiting import wait_until

# What changes the rows of a table without a trigger that fires; each has a table of its own, with all columns that the
# statement needs.
UNTRIGGERED = {
    "added_default": "ALTER TABLE {table} ADD COLUMN note text DEFAULT 'new'",
    "added_volatile_default": "ALTER TABLE {table} ADD COLUMN noted_at timestamptz DEFAULT clock_timestamp()",
    "altered_type": "ALTER TABLE {table} ALTER COLUMN number TYPE text USING 'number ' || number",
    # Times in UTC are the same bits: no file is written.
    "altered_type_in_place": "ALTER TABLE {table} ALTER COLUMN seen_at TYPE timestamptz",
    "altered_to_its_own_type": "ALTER TABLE {table} ALTER COLUMN text TYPE text USING text || '!'",
    "dropped_column": "ALTER TABLE {table} DROP COLUMN number",
    "renamed_column": "ALTER TABLE {table} RENAME COLUMN text TO words",
    "trigger_off_and_on_again": (
        "BEGIN; ALTER TABLE {table} DISABLE TRIGGER {trigger}; UPDATE {table} SET text = 'unseen'; "
        "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}; COMMIT"
    ),
    "label": "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    "domain": "ALTER TYPE humour RENAME VALUE 'dry' TO 'wry'",
    "array_": "ALTER TYPE colour RENAME VALUE 'red' TO 'crimson'",
    "composite": "ALTER TYPE place RENAME ATTRIBUTE city TO town",
    "nested": "ALTER TYPE street ADD ATTRIBUTE town text",
}
TYPES = (
    "CREATE TYPE mood AS ENUM ('sad', 'glad')",
    "CREATE TYPE humour AS ENUM ('dry', 'loud')",
    "CREATE DOMAIN taste AS humour",
    "CREATE TYPE colour AS ENUM ('red', 'green')",
    "CREATE TYPE place AS (city text, number integer)",
    "CREATE TYPE street AS (name text)",
    "CREATE TYPE address AS (street street, number integer)",
    "ALTER TABLE altered_type_in_place ADD COLUMN seen_at timestamp",
    "UPDATE altered_type_in_place SET seen_at = '2026-01-01'",
    # A default of a new column would be part of what the table looks like, with its label.
    "ALTER TABLE label ADD COLUMN value mood",
    "ALTER TABLE domain ADD COLUMN value taste",
    "ALTER TABLE array_ ADD COLUMN value colour[]",
    "ALTER TABLE composite ADD COLUMN value place",
    "ALTER TABLE nested ADD COLUMN value address[]",
    "UPDATE label SET value = 'sad'",
    "UPDATE domain SET value = 'dry'",
    "UPDATE array_ SET value = '{red,green}'",
    "UPDATE composite SET value = ('Ulm', 1)",
    "UPDATE nested SET value = ARRAY[ROW(ROW('High Street'), 7)::address]",
)


@pytest.fixture
def tweets(source: Source) -> Source:
    """Give a source with 300 rows in tweets, which is attached."""
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    return source


@pytest.fixture
def events(source: Source) -> Source:
    """Give a source with rows in two partitions of events, which is attached, and in a table that could be a third."""
    columns = "(id bigint PRIMARY KEY, text text)"
    source.run(
        f"CREATE TABLE events {columns} PARTITION BY RANGE (id)",
        "CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (100) TO (200)",
        f"CREATE TABLE events_2 {columns}",
        "INSERT INTO events SELECT i, 'event ' || i FROM generate_series(0, 199) i",
        "INSERT INTO events_2 SELECT i, 'event ' || i FROM generate_series(200, 299) i",
    )
    source.attach("events")
    return source


def test_c2_a_change_that_fires_no_trigger_is_published(source: Source, daemon: Daemons) -> None:
    for table in UNTRIGGERED:
        source.run(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, text text, number integer)",
            f"INSERT INTO {table} SELECT i, 'row ' || i, i FROM generate_series(1, 100) i",
        )
    source.run(*TYPES)
    source.attach(*UNTRIGGERED)
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "50"})
    source.wait_exact(*UNTRIGGERED)
    for attachment, (table, statement) in enumerate(UNTRIGGERED.items(), 1):
        source.run(statement.format(table=table, trigger=f"viewkeeper_{attachment}_update"))
    source.wait_exact(*UNTRIGGERED)


@pytest.mark.parametrize("statement", ["VACUUM FULL tweets", "CLUSTER tweets USING tweets_pkey"])
def test_c2_a_table_written_to_a_new_file_is_read_anew(tweets: Source, daemon: Daemons, statement: str) -> None:
    """It costs a snapshot, since a file that was written by VACUUM FULL looks like any other."""
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    tweets.run(statement)
    tweets.wait_exact("tweets")
    assert len(capture.logged("snapshot_begins")) == 2
    assert tombstones(tweets.topic("tweets")) == []


@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE events DETACH PARTITION events_0",),
        ("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (200) TO (300)",),
        (
            "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (300) TO (400)",
            "INSERT INTO events_3 VALUES (300, 'straight into the partition')",
        ),
        (
            "ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (200) TO (300)",
            "TRUNCATE events_2",
            "INSERT INTO events VALUES (250, 'by the root')",
        ),
        (
            "ALTER TABLE events DETACH PARTITION events_0",
            "UPDATE events_0 SET text = 'elsewhere'",
            "DROP TABLE events_1",
        ),
    ],
    ids=["detach", "attach", "insert_into_a_new_leaf", "truncate_of_a_new_leaf", "dropped_leaf"],
)
def test_c2_partitions_come_and_go_with_their_rows(
    events: Source, daemon: Daemons, statements: tuple[str, ...]
) -> None:
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "50"})
    events.wait_exact("events")
    events.run(*statements)
    events.wait_exact("events")


def test_c2_the_triggers_of_a_new_partition_are_added(events: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    events.wait_exact("events")
    events.run("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (200) TO (300)")
    events.wait_exact("events")
    begun = len(capture.logged("snapshot_begins"))
    events.run("UPDATE events_2 SET text = 'logged'")
    events.wait_exact("events")
    assert len(capture.logged("snapshot_begins")) == begun


def test_c2_a_truncated_leaf_does_not_explain_the_files_of_the_others(events: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    events.wait_exact("events")
    capture.terminate()
    events.run("TRUNCATE events_0", "ALTER TABLE events ALTER COLUMN text TYPE text USING upper(text)")
    daemon("cdc", "run")
    events.wait_exact("events")


@pytest.mark.newest_postgres
def test_c2_another_expression_of_a_virtual_column_is_published(source: Source, daemon: Daemons) -> None:
    source.run(
        "CREATE TABLE sums (id bigint PRIMARY KEY, double bigint GENERATED ALWAYS AS (id * 2) VIRTUAL)",
        "INSERT INTO sums SELECT generate_series(1, 10)",
    )
    source.attach("sums")
    daemon("cdc", "run")
    source.wait_exact("sums")
    source.run("ALTER TABLE sums ALTER COLUMN double SET EXPRESSION AS (id + id + 1)")
    source.wait_exact("sums")


@pytest.mark.newest_postgres
def test_c2_another_query_of_a_view_is_published(source: Source, daemon: Daemons) -> None:
    attach_words_view(source)
    daemon("cdc", "run")
    source.wait_exact("shown")
    source.run("CREATE OR REPLACE VIEW shown AS SELECT id, upper(word) AS word FROM words")
    source.wait_exact("shown")


@pytest.mark.newest_postgres
def test_c2_a_truncate_explains_its_new_file_and_costs_a_sweep_alone(tweets: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    tweets.run("TRUNCATE tweets", insert_tweets(1001, 1010))
    tweets.wait_exact("tweets")
    assert len(capture.logged("ghost_sweep")) == 1
    assert len(capture.logged("snapshot_begins")) == 1


def test_c2_a_truncate_that_sees_fewer_keys_than_it_deletes(tweets: Source, daemon: Daemons) -> None:
    daemon("cdc", "run")
    tweets.wait_exact("tweets")
    with tweets.session() as older:
        older.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        older.execute("SELECT count(*) FROM users")
        tweets.run(insert_tweets(1001, 1010))
        tweets.wait_exact("tweets")
        older.execute("TRUNCATE tweets")
        older.commit()
    tweets.wait_exact("tweets")
    assert tweets.topic("tweets").values == {}


def test_c2_an_unlogged_table_stops_it_and_a_logged_one_is_read_anew(tweets: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    tweets.run("ALTER TABLE tweets SET UNLOGGED")
    assert capture.wait() == 1
    assert "is unlogged now" in capture.log_text()
    assert tweets.watermark_time("tweets") is None
    tweets.run("ALTER TABLE tweets DISABLE TRIGGER USER", "DELETE FROM tweets WHERE tweet_id < 100")
    tweets.run("ALTER TABLE tweets SET LOGGED", _enable_always(tweets))
    daemon("cdc", "run")
    tweets.wait_exact("tweets")


def test_c2_disabled_triggers_stop_it_and_enabled_ones_let_it_go_on(tweets: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    tweets.run("ALTER TABLE tweets DISABLE TRIGGER USER", "UPDATE tweets SET text = 'unseen' WHERE tweet_id < 10")
    assert capture.wait() == 1
    assert "public.tweets has triggers of the capture that are missing or disabled" in capture.log_text()
    assert "ENABLE ALWAYS TRIGGER" in capture.log_text()
    assert tweets.watermark_time("tweets") is None
    tweets.run("DELETE FROM tweets WHERE tweet_id > 200", _enable_always(tweets))
    daemon("cdc", "run")
    tweets.wait_exact("tweets")


def _enable_always(source: Source) -> str:
    names = source.connection.execute(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'tweets'::regclass AND NOT tgisinternal"
    )
    return "ALTER TABLE tweets " + ", ".join(f"ENABLE ALWAYS TRIGGER {name}" for (name,) in names)


def test_c2_rows_of_a_subscription_are_captured_row_by_row(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 10))
    with _subscribed(source) as publisher:
        source.attach("tweets", level="row")
        daemon("cdc", "run")
        source.wait_exact("tweets")
        publisher.execute("INSERT INTO tweets SELECT i FROM generate_series(101, 200) i")
        publisher.execute("DELETE FROM tweets WHERE tweet_id < 150")
        wait_until(lambda: source.value("SELECT count(*) FROM tweets") == 61, what="the applied rows")
        source.wait_exact("tweets")


def test_c2_a_subscription_of_a_table_with_statement_level_triggers_stops_it(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 10))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    with _subscribed(source) as publisher:
        publisher.execute("INSERT INTO tweets SELECT i FROM generate_series(101, 200) i")
        assert capture.wait() == 1
    assert "gets rows by a subscription" in capture.log_text()
    assert source.watermark_time("tweets") is None


@contextmanager
def _subscribed(source: Source) -> Iterator[psycopg.Connection]:
    """Give a session with another database, whose tweets the source's are a subscription of."""
    name = f"publisher_{uuid4().hex[:12]}"
    url = urlsplit(source.url)
    source.run(f"CREATE DATABASE {name} TEMPLATE source_template")
    try:
        with closing(psycopg.connect(url._replace(path=f"/{name}").geturl(), autocommit=True)) as publisher:
            publisher.execute("CREATE PUBLICATION tweets FOR TABLE tweets")
            # A slot in the same server, made by the subscription, would wait for its own transaction.
            publisher.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
            source.run(
                f"CREATE SUBSCRIPTION {name} CONNECTION 'host={url.hostname} port={url.port} dbname={name} "
                f"user={url.username}' PUBLICATION tweets WITH (create_slot = false, slot_name = {name}, "
                "copy_data = false)"
            )
            yield publisher
    finally:
        source.run(f"DROP SUBSCRIPTION IF EXISTS {name}", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
