"""C3 and C4: rows that must not look deleted, and keys of the topic that are gone from the table."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from confluent_kafka import Producer

import cdc.reading
from cdc.change import Op, Unit
from cdc.cursor import Cursor
from cdc.progress import Phase, phase
from cdc.session import SESSION
from cdc.triggers import TriggerSource
from runtime.postgres import connect
from runtime.settings import CdcSettings
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets, tombstones
from tests.integration.reader_steps import Units, read_units
from tests.waiting import wait_until

GHOSTS = 4_000
TWEETS = "public.tweets"
UNSEEN_DELETE = (
    "BEGIN; ALTER TABLE tweets DISABLE TRIGGER viewkeeper_1_delete; DELETE FROM tweets WHERE {}; "
    "ALTER TABLE tweets ENABLE ALWAYS TRIGGER viewkeeper_1_delete; COMMIT"
)


def test_c3_rows_that_a_policy_hides_are_an_error_and_no_deletes(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 20))
    source.attach("tweets")
    with _role(source) as url:
        capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": url})
        source.wait_exact("tweets")
        source.run(
            "ALTER TABLE tweets ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY newer ON tweets USING (tweet_id > 10)",
            "UPDATE tweets SET text = 'hidden' WHERE tweet_id <= 10",
        )
        assert capture.wait() != 0
    assert 'row-level security policy for table "tweets"' in capture.log_text()
    assert tombstones(source.topic("tweets")) == []


@contextmanager
def _role(source: Source) -> Iterator[str]:
    """Give the source's URL as a role that may do what a capture does, and has to obey policies."""
    name, parts = f"capture_{uuid4().hex[:12]}", urlsplit(source.url)
    source.run(
        f"CREATE ROLE {name} LOGIN",
        f"GRANT USAGE ON SCHEMA cdc TO {name}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA cdc TO {name}",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cdc TO {name}",
        f"GRANT SELECT ON tweets TO {name}",
    )
    try:
        yield parts._replace(netloc=f"{name}@{parts.hostname}:{parts.port}").geturl()
    finally:
        source.run(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.newest_postgres
def test_c4_a_sweep_that_was_killed_goes_on_where_it_was(source: Source, daemon: Daemons) -> None:
    """Keys that were deleted unseen; each gets one tombstone, and the table has no watermark until the last one."""
    source.run(insert_tweets(1, 100 + GHOSTS))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    capture.terminate()
    source.run(UNSEEN_DELETE.format("tweet_id > 100"))
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "20"})
    wait_until(lambda: _swept_records(source) > 0, what="the sweep's first batches")
    capture.kill()
    swept = _swept_records(source)
    assert 0 < swept < GHOSTS, "the sweep was at its end before it could be killed"
    assert source.watermark_time("tweets") is None
    source.run("INSERT INTO tweets VALUES (7000, 1, 'new'), (101, 1, 'is back')")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "500"})
    source.wait_exact("tweets")
    ghosts = tombstones(source.topic("tweets"))
    assert len(ghosts) == len(set(ghosts)) in (GHOSTS - 1, GHOSTS)


def _swept_records(source: Source) -> int:
    entry = source.entry("tweets")
    return sum(entry.sweep.next_offsets) if entry and entry.sweep and not entry.reading else 0


@pytest.mark.newest_postgres
def test_c4_a_log_is_emptied_once_kafka_knows_and_a_crash_before_the_snapshot_repeats_nothing(
    source: Source, settings: CdcSettings, daemon: Daemons
) -> None:
    """Its position is given up in the cursor, then the log is emptied, then the table's snapshot begins, then swept."""
    source.attach("tweets")
    source.run(insert_tweets(1, 10))
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    assert capture.terminate() == 0
    # The first one fills the log, the second is not logged: its keys stay in the topic.
    source.run(
        "UPDATE cdc.captured_table SET log_limit_bytes = 1",
        insert_tweets(11, 12),
        "DELETE FROM tweets WHERE tweet_id < 4",
    )
    cursor = source.cursors()[-1]
    with _units(source, settings, cursor) as units:
        given_up = units.until(lambda unit: phase(unit.tables[TWEETS]) is Phase.WAITING)
        # Some looks at the catalog later, Kafka has not said that it waits.
        assert units.is_waiting(seconds=2 * cdc.reading.LOOK_SECONDS)
        assert source.logged() > 0
    told = Cursor(capture=CAPTURE, token=cursor.token, tables=dict(given_up.tables))
    with _units(source, settings, told) as units:
        phases, deleted = [], set[bytes]()
        while Phase.COMPLETE not in phases:
            unit = units.next()
            phases.append(phase(unit.tables[TWEETS]))
            deleted |= _deleted(unit)
            if phases[-1] is Phase.READING and len(phases) > 1 and phases[-2] is not Phase.READING:
                assert source.logged() == 0
    assert list(dict.fromkeys(phases)) == [Phase.WAITING, Phase.READING, Phase.SWEEPING, Phase.COMPLETE]
    assert deleted == {b'{"tweet_id":%d}' % number for number in (1, 2, 3)}


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    "statements", ["TRUNCATE tweets", UNSEEN_DELETE.format("true")], ids=["truncated", "read_anew"]
)
def test_c4_a_sweep_covers_records_that_were_on_their_way_when_it_was_begun(
    source: Source, settings: CdcSettings, daemon: Daemons, statements: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow broker takes what was read before a TRUNCATE only after the round that found it."""
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    assert capture.terminate() == 0
    with _units(source, settings.model_copy(update={"cdc_chunk_rows": 2}), source.cursors()[-1]) as units:
        # More than a page, whose rows come after the round that finds them: the next round is not held up by them.
        source.run(insert_tweets(1, 3))
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 3600.0)
        on_their_way = [units.until(lambda unit: unit.pages), units.next(held=True)]
        source.run(statements)
        # A round before the next look would leave out a table that was altered.
        monkeypatch.setattr(cdc.reading, "LOOK_SECONDS", 0.0)
        monkeypatch.setattr(cdc.reading, "HEARTBEAT_SECONDS", 1.0)
        while not on_their_way[-1].tables[TWEETS].sweep:
            on_their_way.append(units.next(held=True))
        while not units.is_waiting(seconds=0.5):
            on_their_way.append(units.next(held=True))
        _write(source, {key: row for unit in on_their_way for page in unit.pages for key, row in page.changes})
        for unit in on_their_way:
            units.tell(unit)
        deleted = set[bytes]()
        while phase(unit.tables[TWEETS]) is not Phase.COMPLETE:
            unit = units.next()
            deleted |= _deleted(unit)
    assert deleted == {b'{"tweet_id":%d}' % number for number in (1, 2, 3)}


def _write(source: Source, images: Mapping[bytes, bytes | None]) -> None:
    producer = Producer({"bootstrap.servers": source.bootstrap_servers, "partitioner": "murmur2_random"})
    for key, value in images.items():
        producer.produce(source.topic_name("tweets"), value, key)
    assert producer.flush(30) == 0


@contextmanager
def _units(source: Source, settings: CdcSettings, cursor: Cursor) -> Iterator[Units]:
    """Give the units of a reader that begins at a cursor."""
    source.lead("test")
    with (
        closing(connect(source.url, name="reader", settings=SESSION)) as session,
        read_units(settings, TriggerSource(session, CAPTURE, where="test", leader="test"), cursor) as units,
    ):
        yield units


def _deleted(unit: Unit) -> set[bytes]:
    return {key for page in unit.pages if page.op is Op.DELETE for key, _ in page.changes}
