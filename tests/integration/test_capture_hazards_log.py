"""C13: change logs beside open and prepared transactions, under steady writers, and at their limit."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from cdc.pruning import empty, prune
from cdc.session import SESSION
from cdc.tables import captured_tables
from runtime.postgres import connect
from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.waiting import meanwhile, wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

MEBIBYTE = 1024 * 1024
LIMIT = {"VIEWKEEPER_CDC_LOG_LIMIT_MB": "1"}
# Records of 20,000 rows are more than half a mebibyte, which is a part's share of the limit.
_OVER_THE_LIMIT = 20_000


@pytest.fixture
def tweets(source: Source) -> Source:
    """Give a source whose empty tweets are attached."""
    source.attach("tweets")
    return source


def test_c13_a_part_is_emptied_only_once_it_is_published(tweets: Source) -> None:
    before = _snapshot(tweets)
    tweets.run(insert_tweets(1, 10))
    tweets.lead("the leader")
    with closing(connect(tweets.url, name="test", settings=SESSION)) as session:
        (table,) = captured_tables(session, CAPTURE)

        def pruned(snapshot: str) -> int:
            prune(session, table, published_snapshot=snapshot, switch_bytes=1, leader="the leader", where="test")
            return _part_bytes(tweets, 0)

        written = _part_bytes(tweets, 0)
        assert written > 0
        assert [pruned(before), pruned(before)] == [written, written]
        assert _active_part(tweets) == 1
        assert pruned(_snapshot(tweets)) == 0


def test_c13_a_leader_of_before_empties_nothing(tweets: Source) -> None:
    tweets.run(insert_tweets(1, 10))
    before = tweets.value("SELECT pruned_snapshot::text FROM cdc.captured_table")
    with closing(connect(tweets.url, name="test", settings=SESSION)) as session:
        (table,) = captured_tables(session, CAPTURE)

        def emptied(leader: str) -> int:
            # By what it knows the table waits: its successor may have begun with it.
            empty(session, table, leader="of before", where="test")
            prune(session, table, published_snapshot=_snapshot(tweets), switch_bytes=1, leader=leader, where="test")
            return _part_bytes(tweets, 0)

        written = _part_bytes(tweets, 0)
        tweets.lead("its successor")
        assert [emptied("of before"), emptied("of before")] == [written, written]
        assert _active_part(tweets) == 1
        assert tweets.value("SELECT pruned_snapshot::text FROM cdc.captured_table") == before
        assert emptied("its successor") == 0


def test_c13_whoever_holds_a_tables_entry_keeps_tidying_alone_waiting(tweets: Source, daemon: Daemons) -> None:
    tweets.run("UPDATE cdc.captured_table SET log_limit_bytes = 123456789")
    with tweets.session() as mover:
        mover.execute("SELECT FROM cdc.captured_table FOR UPDATE")
        capture = daemon("cdc", "run")
        for tweet in range(1, 6):
            tweets.run(insert_tweets(tweet, tweet))
            tweets.wait_exact("tweets")
    limit = "SELECT log_limit_bytes FROM cdc.captured_table"
    wait_until(lambda: tweets.value(limit) != 123456789, what="the capture's limit")
    assert not capture.logged("retrying")


def test_c13_a_prepared_transaction_holds_up_neither_writers_nor_rounds(tweets: Source, daemon: Daemons) -> None:
    daemon("cdc", "run")
    tweets.wait_exact("tweets")
    name = f"held {tweets.prefix}"
    tweets.run(f"BEGIN; INSERT INTO tweets VALUES (1000000, 1, 'prepared'); PREPARE TRANSACTION '{name}'")
    part = _active_part(tweets)
    try:
        tweets.run(*(insert_tweets(first, first + 9_999) for first in range(1, 40_000, 10_000)))
        tweets.wait_published("tweets")
        wait_until(lambda: _active_part(tweets) != part, what="writers on the log's other part")
        tweets.run("SET lock_timeout = '1s'", "INSERT INTO tweets VALUES (1000001, 1, 'not held up')")
        tweets.wait_published("tweets")
        assert _part_bytes(tweets, part) > 0
    finally:
        tweets.run(f"COMMIT PREPARED '{name}'")
    wait_until(lambda: _part_bytes(tweets, part) == 0, what="the left part to be empty")
    tweets.wait_exact("tweets")
    assert b'{"tweet_id":1000000}' in tweets.topic("tweets").values


def test_c13_pruning_keeps_up_with_a_steady_writer_and_leaves_nothing(tweets: Source, daemon: Daemons) -> None:
    daemon("cdc", "run")
    tweets.wait_exact("tweets")
    largest, written = 0, 0
    with _written(tweets) as rows:
        while written < 150_000:
            written = rows()
            largest = max(largest, _log_bytes(tweets))
    tweets.wait_exact("tweets")
    # What 150,000 rows log is 20 MiB with its indexes.
    assert largest < 12 * MEBIBYTE
    wait_until(lambda: _log_bytes(tweets) < 3 * MEBIBYTE, what="the log's end to be pruned")
    fixed = "SELECT sum(pg_total_relation_size(c)) FROM unnest('{cdc.capture,cdc.captured_table}'::regclass[]) c"
    assert int(str(tweets.value(fixed))) < MEBIBYTE


@contextmanager
def _written(source: Source) -> Iterator[Callable[[], int]]:
    """Insert rows, 500 a transaction, while the body runs; yields how many there are."""
    rows = 0
    with source.session() as session:

        def write() -> None:
            nonlocal rows
            session.execute(insert_tweets(rows + 1, rows + 500))
            session.commit()
            rows += 500

        with meanwhile(write):
            yield lambda: rows


def test_c13_at_its_limit_the_log_stops_growing_and_the_table_is_read_anew(tweets: Source, daemon: Daemons) -> None:
    _limited(tweets, daemon).kill()
    tweets.run(insert_tweets(1, _OVER_THE_LIMIT))
    full = _log_bytes(tweets)
    assert full > MEBIBYTE / 2
    tweets.run(
        insert_tweets(20_001, 80_000),
        "UPDATE tweets SET text = 'unlogged' WHERE tweet_id < 100",
        "DELETE FROM tweets WHERE tweet_id BETWEEN 100 AND 200",
    )
    assert _log_bytes(tweets) - full < MEBIBYTE / 10
    assert daemon("cdc", "run", settings=LIMIT).wait_logged("to_be_read_anew")["reason"].endswith("reached its limit")
    tweets.wait_exact("tweets")
    tweets.run("UPDATE tweets SET text = 'logged again' WHERE tweet_id < 10")
    tweets.wait_exact("tweets")


def test_c13_a_transaction_open_over_the_limit_is_waited_for(tweets: Source, daemon: Daemons) -> None:
    """What it changed while the log was full was not logged, so that no snapshot may begin before it has ended."""
    _limited(tweets, daemon).kill()
    tweets.run(insert_tweets(1, _OVER_THE_LIMIT), insert_tweets(20_001, 20_002))
    with tweets.session() as late:
        late.execute("INSERT INTO tweets VALUES (1000000, 1, 'late')")
        capture = daemon("cdc", "run", settings=LIMIT)
        capture.wait_logged("to_be_read_anew")
        wait_until(lambda: _active_part(tweets) == 1, what="writers on the log's other part")
        tweets.run("INSERT INTO tweets VALUES (1000001, 1, 'not held up')")
        _turns(tweets)
        assert capture.logged("snapshot_begins") == []
        assert tweets.watermark_time("tweets") is None
        late.commit()
    tweets.wait_exact("tweets")
    assert b'{"tweet_id":1000000}' in tweets.topic("tweets").values


def test_c13_a_capture_that_keeps_up_never_reaches_its_limit(tweets: Source, daemon: Daemons) -> None:
    capture = _limited(tweets, daemon)
    for first in range(1, 16_000, 1_000):
        tweets.run(insert_tweets(first, first + 999))
        tweets.wait_published("tweets")
        # A part takes half a mebibyte, and pruning has its turn each two seconds: published is not yet pruned.
        wait_until(lambda: _part_bytes(tweets, _active_part(tweets)) < MEBIBYTE / 4, what="room in the log")
    assert capture.logged("to_be_read_anew") == []
    tweets.wait_exact("tweets")


def _limited(source: Source, daemon: Daemons) -> Daemon:
    """Run a capture that has told the source of its limit."""
    capture = daemon("cdc", "run", settings=LIMIT)
    source.wait_exact("tweets")
    limit = "SELECT log_limit_bytes FROM cdc.captured_table"
    wait_until(lambda: source.value(limit) == MEBIBYTE // 2, what="the limit to be told")
    return capture


def _turns(source: Source) -> None:
    """Wait until the leader has written three cursors more."""
    known = len(source.cursors())
    wait_until(lambda: len(source.cursors()) >= known + 3, what="three cursors")


def _snapshot(source: Source) -> str:
    return str(source.value("SELECT pg_current_snapshot()"))


def _active_part(source: Source) -> int:
    return int(str(source.value("SELECT active_part FROM cdc.captured_table")))


def _part_bytes(source: Source, part: int) -> int:
    query = "SELECT pg_relation_size(format('cdc.log_%%s_%%s', id, %s)::regclass) FROM cdc.captured_table"
    return int(str(source.value(query, part)))


def _log_bytes(source: Source) -> int:
    query = (
        "SELECT pg_total_relation_size(format('cdc.log_%s_0', id)::regclass) "
        "+ pg_total_relation_size(format('cdc.log_%s_1', id)::regclass) FROM cdc.captured_table"
    )
    return int(str(source.value(query)))
