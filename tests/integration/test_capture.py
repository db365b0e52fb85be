"""The capture as a daemon: the compacted topics equal the tables, whatever happens."""

import json
import re
import signal
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import psycopg
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import Source, attach_words_view, insert_tweets
from tests.topic_reader import read_cursor
from tests.topics import delete_topic
from tests.waiting import wait_until


def test_topic_equals_table_after_every_kind_of_statement(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 500))
    source.attach("tweets")
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "100"})
    source.wait_published("tweets")
    source.run(
        "UPDATE tweets SET text = 'edited' WHERE tweet_id <= 10",
        "UPDATE tweets SET tweet_id = 1000 WHERE tweet_id = 11",
        "UPDATE tweets SET user_id = NULL WHERE tweet_id = 12",
        "DELETE FROM tweets WHERE tweet_id BETWEEN 20 AND 29",
        "BEGIN; INSERT INTO tweets VALUES (2000); ROLLBACK",
        "BEGIN; SAVEPOINT s; DELETE FROM tweets; ROLLBACK TO s; INSERT INTO tweets VALUES (2001); COMMIT",
        "INSERT INTO tweets VALUES (30, 1), (2002, 1) ON CONFLICT (tweet_id) DO UPDATE SET text = 'upserted'",
        "WITH gone AS (DELETE FROM tweets WHERE tweet_id = 40 RETURNING *) INSERT INTO tweets SELECT 3000 FROM gone",
    )
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")
    assert capture.terminate() == 0
    assert capture.logged("stopped")


def test_truncate_deletes_every_key_of_the_topic(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    source.run(insert_tweets(1, 300))
    source.wait_published("tweets")
    source.run("BEGIN; TRUNCATE tweets; INSERT INTO tweets VALUES (7, 7, 'after'); COMMIT")
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


def test_changes_made_while_it_was_down_are_published(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.run(insert_tweets(1, 100))
    source.wait_published("tweets")
    capture.kill()
    source.run(insert_tweets(101, 30_000), "DELETE FROM tweets WHERE tweet_id <= 50")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "1000"})
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")
    read_by_snapshot = [r for r in source.topic("tweets").records if ("__op", b"r") in (r.headers() or [])]
    assert len(read_by_snapshot) <= 100


def test_killed_in_its_first_snapshot_it_goes_on_where_it_was(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 20_000))
    source.attach("tweets")
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "20"})
    topic = f"{source.prefix}.public.tweets"

    def resumed_after() -> tuple[str, ...] | None:
        cursor = read_cursor(source.bootstrap_servers, source.prefix)
        reading = cursor.tables["public.tweets"].reading if cursor and cursor.tables else None
        return reading.resume_after if reading else None

    capture.wait_logged("topic_created")
    wait_until(lambda: topic in _topics(capture) and resumed_after(), what="a first chunk")
    capture.kill()
    resumed = resumed_after()
    assert resumed is not None, "the snapshot was complete before it could be killed"
    read_before = len(source.topic("tweets").records)
    source.run("DELETE FROM tweets WHERE tweet_id % 3 = 0", "UPDATE tweets SET text = 'x' WHERE tweet_id % 3 = 1")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "5000"})
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")
    snapshot_keys = [r.key() for r in source.topic("tweets").records if ("__op", b"r") in (r.headers() or [])]
    assert len(snapshot_keys) == len(set(snapshot_keys)) >= read_before


def _topics(capture: Any) -> set[str]:
    return {line["topic"] for line in capture.logged("topic_created")}


def test_a_transaction_that_commits_late_is_not_lost(source: Source, source_url: str, daemon: Daemons) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    source.wait_published("tweets")
    with psycopg.connect(source_url) as late:
        late.execute("INSERT INTO tweets VALUES (1, 1, 'late')")
        source.run("INSERT INTO tweets VALUES (2, 1, 'early')")
        source.wait_published("tweets")
        assert list(source.topic("tweets").rows()) == ['{"tweet_id":2}']
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


def test_c1_a_table_being_rewritten_is_not_read_as_empty(source: Source, source_url: str, daemon: Daemons) -> None:
    source.attach("users", "tweets")
    daemon("cdc", "run")
    source.run(insert_tweets(1, 50))
    source.wait_published("users", "tweets")
    with psycopg.connect(source_url) as rewriter:
        source.run("UPDATE tweets SET text = 'changed just before'")
        rewriter.execute("ALTER TABLE tweets ALTER COLUMN text TYPE varchar USING text || '!'")
        source.run("INSERT INTO users (user_id, username) VALUES (1, 'meanwhile')")
        source.wait_published("users")
        assert '{"user_id":1}' in source.topic("users").rows()
    source.wait_published("tweets")
    assert not [record for record in source.topic("tweets").records if record.value() is None]


def test_c15_a_watermark_holds_last_data_offsets_not_those_of_markers(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    for number in range(5):
        source.run(insert_tweets(number * 10, number * 10 + 9))
        source.wait_published("tweets")
    cursor = read_cursor(source.bootstrap_servers, source.prefix)
    assert cursor is not None
    watermark = cursor.tables["public.tweets"].watermark
    assert watermark is not None
    read = source.topic("tweets").next_offsets
    assert watermark.next_offsets == tuple(read.get(number, 0) for number in range(6))


@pytest.mark.newest_postgres
def test_c16_a_row_too_large_stops_it_and_is_not_lost(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    source.run(
        "BEGIN; INSERT INTO tweets VALUES (1, 1, 'small'); "
        "INSERT INTO tweets SELECT 2, 1, string_agg(md5(i::text), '') FROM generate_series(1, 40000) i; COMMIT"
    )
    assert capture.wait() == 1
    complaint = capture.log_text().splitlines()[-1]
    assert f'{source.prefix}.public.tweets: the row with key {{"tweet_id":2}} is 128' in complaint
    assert source.topic("tweets").records == []
    source.run("UPDATE tweets SET text = 'short now' WHERE tweet_id = 2")
    daemon("cdc", "run")
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


@pytest.mark.newest_postgres
def test_c16_a_record_that_the_producer_refuses_takes_its_transaction_with_it(source: Source, daemon: Daemons) -> None:
    """Kafka itself would commit what was taken before the refused record, which is a cursor with many keys here."""
    hold_back = {"VIEWKEEPER_CDC_ON_OVERSIZE_ROW": "hold_back"}
    source.attach("tweets")
    capture = daemon("cdc", "run", settings={**hold_back, "VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES": "3000"})
    source.wait_published("tweets")
    source.run(
        "BEGIN; INSERT INTO tweets VALUES (1, 1, 'small'); "
        "INSERT INTO tweets SELECT i, 1, repeat('x', 1000) FROM generate_series(1001, 1200) i; COMMIT"
    )
    wait_until(lambda: not capture.is_running() or source.topic("tweets").records, what="its end, or a record")
    assert source.topic("tweets").records == []
    assert capture.wait() == 1
    assert "the cursor of capture viewkeeper is" in capture.log_text().splitlines()[-1]
    daemon("cdc", "run", settings=hold_back)
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


@pytest.mark.newest_postgres
def test_a_cursor_that_is_too_large_for_its_topic_is_named_as_that(source: Source, daemon: Daemons) -> None:
    topic, client = f"{source.prefix}.cursor", AdminClient({"bootstrap.servers": source.bootstrap_servers})
    # Some 700 bytes a table are more than a thousand tables in a topic of the default size.
    config = {"cleanup.policy": "compact", "max.message.bytes": "1000"}
    client.create_topics([NewTopic(topic, num_partitions=1, config=config)])[topic].result()
    source.attach("users", "tweets", "follows", "likes")
    capture = daemon("cdc", "run")
    assert capture.wait() == 1
    complaint = capture.log_text().splitlines()[-1]
    assert re.search(rf"topic {topic}: the cursor of capture viewkeeper is \d{{4}} bytes", complaint)
    raised = ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[raised])
    client.incremental_alter_configs([resource])[resource].result()
    daemon("cdc", "run")
    source.wait_published("tweets")


@pytest.mark.newest_postgres
def test_second_instance_waits_and_takes_over_from_a_killed_one(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    settings = {"VIEWKEEPER_CDC_LEASE_SECONDS": "2"}
    first = daemon("cdc", "run", settings=settings)
    first.wait_logged("leading")
    second = daemon("cdc", "run", settings=settings)
    assert "another process is the leader" in second.wait_logged("standby")["reason"]
    first.kill()
    source.run(insert_tweets(1, 10))
    second.wait_logged("leading", timeout_seconds=10)
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")
    assert second.terminate() == 0


@pytest.mark.newest_postgres
def test_a_leader_that_was_paused_past_its_lease_publishes_nothing_more(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    settings = {"VIEWKEEPER_CDC_LEASE_SECONDS": "2"}
    paused = daemon("cdc", "run", settings=settings)
    source.wait_published("tweets")
    paused.signal(signal.SIGSTOP)
    second = daemon("cdc", "run", settings=settings)
    second.wait_logged("leading", timeout_seconds=15)
    source.run(insert_tweets(1, 10))
    source.wait_published("tweets")
    paused.signal(signal.SIGCONT)
    paused.wait_logged("standby")
    wait_until(lambda: not _watermarks_measured(paused), what="an end of what it measured as the leader")
    assert _watermarks_measured(second) == {"public.tweets"}
    source.run(insert_tweets(11, 20))
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")
    keys = [record.key() for record in source.topic("tweets").records]
    assert len(keys) == len(set(keys))


def test_the_change_log_is_emptied_beside_open_transactions(source: Source, source_url: str, daemon: Daemons) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    with psycopg.connect(source_url) as late:
        late.execute("INSERT INTO tweets VALUES (1000000, 1, 'late')")
        source.run(*(insert_tweets(first, first + 19_999) for first in range(1, 80_000, 20_000)))
        source.wait_published("tweets")
        wait_until(lambda: _active_part(source) == 1, what="writers on the log's other part")
        source.run("INSERT INTO tweets VALUES (1000001, 1, 'not held up')")
    wait_until(lambda: _log_bytes(source, 0) == 0, what="the left part to be empty")
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


def _active_part(source: Source) -> object:
    return source.value("SELECT active_part FROM cdc.captured_table")


def _log_bytes(source: Source, part: int) -> object:
    return source.value(
        "SELECT pg_relation_size(format('cdc.log_%%s_%%s', id, %s)::regclass) FROM cdc.captured_table", part
    )


def test_a_truncate_behind_more_changes_than_a_page_is_seen(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    settings = {"VIEWKEEPER_CDC_CHUNK_ROWS": "100"}
    capture = daemon("cdc", "run", settings=settings)
    source.run(insert_tweets(1, 50))
    source.wait_published("tweets")
    capture.terminate()
    source.run(insert_tweets(1001, 2000), "TRUNCATE tweets", insert_tweets(3001, 3010))
    daemon("cdc", "run", settings=settings)
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


def test_snapshot_chunks_follow_the_keys_order_not_that_of_their_text(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 1000))
    source.attach("tweets")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "100"})
    source.wait_published("tweets")
    headers = [dict(cast(list[tuple[str, bytes]], record.headers())) for record in source.topic("tweets").records]
    chunks = {header["__source_ts_ms"] for header in headers}
    assert len(chunks) == 10
    source.assert_topic_equals_table("tweets", "tweet_id")


@pytest.mark.newest_postgres
def test_a_topic_that_was_deleted_under_its_cursor_is_noticed(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.run(insert_tweets(1, 50))
    source.wait_published("tweets")
    capture.terminate()
    delete_topic(source.bootstrap_servers, source.topic_name("tweets"))
    second = daemon("cdc", "run")
    assert second.wait() == 1
    assert "was deleted and made anew" in second.log_text()


def test_tables_come_and_go_while_it_runs(source: Source, daemon: Daemons) -> None:
    source.attach("users", "tweets")
    daemon("cdc", "run")
    source.wait_published("users", "tweets")
    source.run("SELECT cdc.detach('viewkeeper', 'public', 'users')", insert_tweets(1, 10))
    source.wait_published("tweets")
    source.run("INSERT INTO likes VALUES (1, 1, 1, now())")
    source.attach("likes")
    source.run("INSERT INTO likes VALUES (2, 2, 2, now())")
    source.wait_published("tweets", "likes")
    source.assert_topic_equals_table("likes", "like_id")
    source.run(
        "ALTER TABLE likes ADD COLUMN note text DEFAULT 'new', DROP COLUMN tweet_id", "UPDATE likes SET note = 'x'"
    )
    source.wait_published("tweets", "likes")
    source.assert_topic_equals_table("likes", "like_id")


@pytest.mark.newest_postgres
def test_a_watermark_is_measured_as_long_as_its_table_is_attached(source: Source, daemon: Daemons) -> None:
    source.attach("users", "tweets")
    capture = daemon("cdc", "run")
    tables = {"public.users", "public.tweets"}
    wait_until(lambda: _watermarks_measured(capture) == tables, what="both watermarks")
    source.run("SELECT cdc.detach('viewkeeper', 'public', 'users')")
    wait_until(lambda: _watermarks_measured(capture) == {"public.tweets"}, what="the end of one")


def _watermarks_measured(capture: Daemon) -> set[str]:
    """Return the tables whose watermark a process shows."""
    metrics = httpx.get(f"http://127.0.0.1:{capture.health_port}/metrics").text
    return set(re.findall(r'^viewkeeper_cdc_watermark_timestamp_seconds{table="(.*)"}', metrics, re.MULTILINE))


def test_odd_names_and_keys(source: Source, daemon: Daemons) -> None:
    source.run(
        'CREATE TABLE odd ("r" text, "t" integer, "Key %s ""1""" text, included text, '
        'PRIMARY KEY ("Key %s ""1""", t) INCLUDE (included))',
        "INSERT INTO odd VALUES ('r', 1, E'é \\\\ \\' {},\"\n', NULL), (NULL, 2, '', 'x')",
    )
    source.attach("odd")
    daemon("cdc", "run")
    source.wait_published("odd")
    source.run("UPDATE odd SET r = 'changed', included = 'y'", "INSERT INTO odd VALUES (NULL, -3, 'NULL', NULL)")
    source.wait_published("odd")
    rows = source.connection.execute("SELECT * FROM odd").fetchall()
    expected = {(row[2], row[1]): row for row in rows}
    found = {tuple(json.loads(key).values()): tuple(row.values()) for key, row in source.topic("odd").rows().items()}
    assert found == expected


@pytest.mark.newest_postgres
def test_the_cursor_is_written_each_second_on_an_idle_system(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    source.wait_published("tweets")
    source.wait_published("tweets", timeout_seconds=3)
    cursor = read_cursor(source.bootstrap_servers, source.prefix)
    assert cursor is not None
    watermark = cursor.tables["public.tweets"].watermark
    assert watermark is not None
    assert (datetime.now(UTC) - watermark.time).total_seconds() < 3


def test_another_history_of_the_source_is_noticed(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.run(insert_tweets(1, 3))
    source.wait_published("tweets")
    capture.terminate()
    source.run("UPDATE cdc.capture SET pending_token = 'restored', published_token = 'from a backup'")
    second = daemon("cdc", "run")
    assert second.wait() == 1
    assert "another history" in second.log_text()


@pytest.mark.newest_postgres
def test_c7_another_history_under_a_running_capture_is_noticed(source: Source, daemon: Daemons) -> None:
    """Its next flush would write the mark anew, and nothing would tell of the other history any more."""
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    source.run("UPDATE cdc.capture SET pending_token = 'restored', published_token = 'from a backup'")
    assert capture.wait() == 1
    assert "another history" in capture.log_text().splitlines()[-1]


@pytest.mark.newest_postgres
def test_a_topic_with_records_but_no_cursor_is_refused(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.run(insert_tweets(1, 3))
    source.wait_published("tweets")
    capture.terminate()
    source.run("SELECT cdc.detach('viewkeeper', 'public', 'tweets')", "DELETE FROM tweets WHERE tweet_id = 1")
    source.attach("tweets")
    second = daemon("cdc", "run")
    assert second.wait() == 1
    assert "has records, but the cursor knows nothing" in second.log_text()


@pytest.mark.newest_postgres
def test_c8_a_topic_with_records_beside_a_lost_cursor_topic_is_refused(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.run(insert_tweets(1, 3))
    source.wait_published("tweets")
    capture.terminate()
    published = source.topic("tweets").next_offsets
    delete_topic(source.bootstrap_servers, f"{source.prefix}.cursor")
    source.run("DELETE FROM tweets WHERE tweet_id = 1")
    second = daemon("cdc", "run")
    assert second.wait() == 1
    assert "has records, but the cursor knows nothing" in second.log_text()
    assert source.topic("tweets").next_offsets == published


def test_a_key_may_be_a_domain_over_an_enum(source: Source, daemon: Daemons) -> None:
    """The operators of enums are not there for domains over them."""
    source.run(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN temper AS mood",
        "CREATE TABLE moods (mood temper, number integer, PRIMARY KEY (mood, number))",
        "INSERT INTO moods SELECT 'sad', i FROM generate_series(1, 250) i",
    )
    source.attach("moods")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "100"})
    source.wait_exact("moods")
    source.run("UPDATE moods SET mood = 'glad' WHERE number % 2 = 0", "DELETE FROM moods WHERE number < 20")
    source.wait_exact("moods")
    source.run("TRUNCATE moods")
    source.wait_exact("moods")


def test_a_key_that_a_view_shows_twice_hides_none_that_is_gone(source: Source, daemon: Daemons) -> None:
    attach_words_view(source)
    daemon("cdc", "run")
    source.wait_published("shown")
    source.run(
        "BEGIN; INSERT INTO words VALUES (1, 'one again'); DELETE FROM words WHERE id = 2; "
        "SELECT cdc.log_changes('public.shown', '{1,2}'); COMMIT"
    )
    source.wait_published("shown")
    assert list(source.topic("shown").rows()) == ['{"id":1}']


@pytest.mark.newest_postgres
@pytest.mark.parametrize("chunk_rows", ["2", "20000"], ids=["last_of_a_full_chunk", "last_of_all"])
def test_a_row_of_a_view_whose_key_is_null_stops_it_until_the_view_leaves_it_out(
    source: Source, daemon: Daemons, chunk_rows: str
) -> None:
    source.run(
        "CREATE TABLE named (id bigint, name text)",
        "INSERT INTO named VALUES (1, 'a'), (NULL, 'nobody')",
        "CREATE VIEW shown AS SELECT id, name FROM named",
        "SELECT cdc.attach('viewkeeper', 'shown', NULL, '{name,id}')",
    )
    stopped = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": chunk_rows})
    assert stopped.wait(30) == 1
    assert "public.shown: a row's key (name, id) is NULL, at least in part" in stopped.log_text()
    source.run("CREATE OR REPLACE VIEW shown AS SELECT id, name FROM named WHERE (name, id) IS NOT NULL")
    daemon("cdc", "run")
    source.wait_published("shown")
    assert [*source.topic("shown").rows().values()] == [{"id": 1, "name": "a"}]
