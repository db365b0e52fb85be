"""C1: a table that is being rewritten is not read as empty, and holds up no other table."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cdc.change import Page
from cdc.rounds import Keys
from cdc.session import SESSION
from cdc.tables import CapturedTable, captured_tables
from cdc.triggers import TriggerSource
from compose.local.kafka import kafka as run_kafka
from runtime.postgres import connect
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets, tombstones
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

ROWS = 8_000
PAGES = {"VIEWKEEPER_CDC_CHUNK_ROWS": "50"}
KEYS = Keys(3, ("{1,2,3}",))
READS: dict[str, Callable[[TriggerSource, CapturedTable], Page | None]] = {
    "page_of_a_large_round": lambda source, table: source.page(table, KEYS),
    "chunk_of_a_snapshot": lambda source, table: source.chunk(table, None, most_rows=100),
    "batch_of_a_sweep": lambda source, table: source.ghosts(table, [["1", "2", "3"]]),
}


@pytest.mark.parametrize("read_by", ["round", "pages_of_a_large_round", "chunks_of_a_snapshot"])
def test_c1_a_table_being_rewritten_sits_out_and_others_go_on(source: Source, daemon: Daemons, read_by: str) -> None:
    source.attach("users")
    if read_by == "chunks_of_a_snapshot":
        source.run(insert_tweets(1, ROWS))
        daemon("cdc", "run", settings=PAGES)
        source.attach("tweets")
    else:
        source.attach("tweets")
        capture = daemon("cdc", "run", settings=PAGES)
        source.wait_exact("users", "tweets")
        if read_by == "pages_of_a_large_round":
            capture.terminate()
            source.run(insert_tweets(1, ROWS))
            daemon("cdc", "run", settings=PAGES)
        else:
            source.run(insert_tweets(1, 50))
    wait_until(lambda: _published(source) > 0, what="first rows of tweets")
    with source.session() as rewriter:
        rewriter.execute("LOCK TABLE tweets IN ACCESS EXCLUSIVE MODE")
        locked_at = source.now()
        rewriter.execute("UPDATE tweets SET text = 'just before'")
        rewriter.execute("ALTER TABLE tweets ALTER COLUMN text TYPE varchar USING text || '!'")
        source.run("INSERT INTO users (user_id) VALUES (1)")
        source.wait_published("users")
        _wait_for_cursors(source, 2)
        claimed = source.watermark_time("tweets")
        assert claimed is None or claimed < locked_at
        if read_by != "round":
            assert _published(source) < ROWS, "everything was read before the table could be locked"
        rewriter.commit()
    source.wait_exact("users", "tweets", timeout_seconds=60)
    assert tombstones(source.topic("tweets")) == []


def _published(source: Source) -> int:
    entry = source.entry("tweets")
    return sum(entry.next_offsets) if entry else 0


def _wait_for_cursors(source: Source, count: int) -> None:
    known = len(source.cursors())
    wait_until(lambda: len(source.cursors()) >= known + count, what=f"{count} cursors")


@pytest.mark.parametrize("read_by", READS)
def test_c1_the_snapshot_is_fixed_once_the_table_is_locked(source: Source, read_by: str) -> None:
    """A snapshot from before the rewriting transaction's end would show the table as empty."""
    source.attach("tweets")
    source.run(insert_tweets(1, 3))
    # Waiting so long makes the order certain: the rewriter ends while the lock is waited for.
    patient = {**SESSION, "lock_timeout": "30s"}
    with closing(connect(source.url, name="reader", settings=patient)) as session, source.session() as rewriter:
        (table,) = captured_tables(session, CAPTURE)
        reader = TriggerSource(session, CAPTURE, where="test")
        rewriter.execute("ALTER TABLE tweets ALTER COLUMN text TYPE varchar USING text || '!'")
        with ThreadPoolExecutor(1) as executor:
            read = executor.submit(READS[read_by], reader, table)
            try:
                wait_until(lambda: _waits_for_a_lock(source, session.info.backend_pid), what="the reader to wait")
            finally:
                rewriter.commit()
            page = read.result()
    assert page is not None
    rows = [row for _, row in page.changes]
    assert None not in rows
    assert len(rows) == (0 if read_by == "batch_of_a_sweep" else 3)


def test_no_table_stays_locked_while_kafka_is_asked_for_anything(
    source_url: str, topic_prefix: str, daemon: Daemons, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Somebody's ALTER TABLE would wait behind that lock, and all writers behind the ALTER TABLE."""
    own_kafka = run_kafka(tmp_path_factory.mktemp("own-kafka"))
    with own_kafka as broker, connect(source_url, name="test") as connection:
        source = Source(connection, source_url, broker, topic_prefix)
        source.attach("tweets")
        source.run(insert_tweets(1, 10))
        daemon("cdc", "run", settings={"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": source.bootstrap_servers})
        source.wait_exact("tweets")
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            # What its topic holds is to be looked up, up to an end that the broker knows.
            source.run("TRUNCATE tweets", insert_tweets(11, 20))
            assert wait_until(lambda: _stands_still(source), what="a reader that waits for Kafka") == "idle"
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        source.wait_exact("tweets")
        assert source.topic("tweets").rows().keys() == {f'{{"tweet_id":{number}}}' for number in range(11, 21)}


def _stands_still(source: Source) -> object:
    """Return the state of the session that reads rows, once it has not changed for two seconds."""
    return source.value(
        "SELECT max(state) FILTER (WHERE state_change < clock_timestamp() - interval '2 seconds') "
        "FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()",
        f"viewkeeper-cdc {CAPTURE}",
    )


def _waits_for_a_lock(source: Source, backend: int) -> bool:
    return source.value("SELECT cardinality(pg_blocking_pids(%s))", backend) == 1
