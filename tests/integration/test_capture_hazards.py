"""The capture's rules against silent loss and invention, each held against the thing itself."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime

import psycopg
import pytest
from confluent_kafka import Producer
from structlog.testing import capture_logs

import cdc.cursors
from cdc.attachment import attach
from cdc.cursor import Cursor
from cdc.cursors import read_cursors
from cdc.session import SESSION
from cdc.tables import captured_tables
from cdc.topics import CURSOR_CONFIG, ensure_topic
from cdc.triggers import TriggerSource
from cdc.wire import TableName
from compose.local.kafka import KafkaBroker
from runtime.kafka import admin
from runtime.postgres import connect
from runtime.settings import CdcSettings
from runtime.stop import Stop
from tests.waiting import wait_until

TWEETS = TableName("public", "tweets")
STRESS_SECONDS = 3.0


@pytest.mark.newest_postgres
def test_c8_the_cursor_is_read_past_another_captures_open_transaction(
    kafka: KafkaBroker, topic_prefix: str, settings: CdcSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdc.cursors, "_PATIENCE_SECONDS", 1.0)
    client = admin(settings, name="test")
    topic = f"{topic_prefix}.cursor"
    ensure_topic(client, settings, topic, partitions=1, config=CURSOR_CONFIG)
    other, ours = _producer(kafka, f"{topic_prefix}-other"), _producer(kafka, f"{topic_prefix}-ours")
    _commit_cursor(ours, topic, "ours", token="old")
    other.begin_transaction()
    other.produce(topic, Cursor(capture="other", token="open", tables={}).encode(), b"other")
    other.flush()
    _commit_cursor(ours, topic, "ours", token="new")
    with capture_logs() as logs, ThreadPoolExecutor(1) as executor:
        read = executor.submit(read_cursors, client, settings, Stop())
        assert _still_waits(read.done)
        other.commit_transaction()
        cursors = read.result()
    assert {name: cursor.token for name, cursor in cursors.items()} == {"ours": "new", "other": "open"}
    told = next(line for line in logs if line["event"] == "cursor_awaited")
    # A reader learns late, or never, that what follows its last message is a transaction's marker.
    assert 1 <= told["read_up_to"] <= told["committed_up_to"] == 2 < told["end"]


def _producer(kafka: KafkaBroker, transactional_id: str) -> Producer:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": transactional_id})
    producer.init_transactions()
    return producer


def _commit_cursor(producer: Producer, topic: str, capture: str, *, token: str) -> None:
    producer.begin_transaction()
    producer.produce(topic, Cursor(capture=capture, token=token, tables={}).encode(), capture.encode())
    producer.commit_transaction()


def _still_waits(is_done: Callable[[], bool]) -> bool:
    """Return whether something is undone for longer than it would take if it did not wait."""
    until = time.monotonic() + 2.0
    wait_until(lambda: is_done() or time.monotonic() > until, what="two seconds, or an end")
    return not is_done()


def test_c14_what_was_committed_by_a_rounds_time_is_in_that_round_or_before(source_url: str) -> None:
    """Writers take their time by clock_timestamp() after COMMIT, as "committed by T" means it."""
    with connect(source_url, name="test") as session:
        attach(session, "viewkeeper", TWEETS, where="test")
        session.execute("INSERT INTO cdc.capture (name) VALUES ('viewkeeper') ON CONFLICT DO NOTHING")
    over, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(4) as executor:
        writers = [executor.submit(_write, source_url, begun, over, number) for number in range(4)]
        rounds = _rounds(source_url, begun, STRESS_SECONDS)
        over.set()
        committed_at = {key: at for writer in writers for key, at in writer.result().items()}
    seen: set[bytes] = set()
    for time_, keys in rounds:
        seen |= keys
        missed = [key for key, at in committed_at.items() if at <= time_ and key not in seen]
        assert missed == []
    assert len(rounds) > 50
    assert len(seen) > 100


def _write(url: str, begun: threading.Event, over: threading.Event, number: int) -> dict[bytes, datetime]:
    committed_at: dict[bytes, datetime] = {}
    with closing(psycopg.connect(url, autocommit=True)) as session:
        key = number * 1_000_000
        begun.wait()
        while not over.is_set():
            key += 1
            session.execute("INSERT INTO tweets (tweet_id) VALUES (%s)", (key,))
            row = session.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            committed_at[b'{"tweet_id":%d}' % key] = row[0]
    return committed_at


def _rounds(url: str, begun: threading.Event, seconds: float) -> list[tuple[datetime, set[bytes]]]:
    rounds: list[tuple[datetime, set[bytes]]] = []
    with closing(connect(url, name="test", settings=SESSION)) as session:
        source = TriggerSource(session, "viewkeeper", where="test")
        tables = captured_tables(session, "viewkeeper")
        with source.round(tables, {}, lambda _table: 10_000) as first:
            previous = {TWEETS: first.position}
        begun.set()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with source.round(tables, previous, lambda _table: 10_000) as round_:
                pages = [source.images(round_, found.table, found.keys) for found in round_.found]
            previous = {TWEETS: round_.position}
            rounds.append((round_.time, {key for page in pages for key, _ in page.changes}))
    return rounds
