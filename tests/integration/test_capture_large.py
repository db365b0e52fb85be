"""C18: large transactions and wide rows, in bounded memory, while other tables stay fresh."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path

import pytest

from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import Source, insert_tweets
from tests.waiting import meanwhile, wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

LARGE_ROWS = 300_000
WIDE_ROWS = 1_500
MOST_MEBIBYTES = 150
FRESH = timedelta(seconds=2)
# One text that cannot be compressed, turned round by another number of places in each row.
_WIDE = "(SELECT string_agg(md5(j::text), '') AS text FROM generate_series(1, 3125) j) AS wide"


@pytest.fixture
def tables(source: Source) -> Source:
    """Give a source whose empty users and tweets are attached."""
    source.attach("users", "tweets")
    return source


def test_c18_a_large_transaction_takes_little_memory_and_leaves_others_fresh(tables: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    tables.wait_exact("users", "tweets")
    ticks = list[datetime]()
    with _written(tables), meanwhile(lambda: ticks.append(datetime.now(UTC)), every_seconds=0.02):
        tables.run(insert_tweets(1, LARGE_ROWS))
        committed = tables.now()
        tables.wait_published("tweets", timeout_seconds=120)
        times = [
            entry.watermark.time
            for cursor in tables.cursors()
            if (entry := cursor.tables["public.users"]).watermark and entry.watermark.time > committed - FRESH
        ]
    # A machine that stands still holds up the ticks, too; nothing that the capture does can.
    assert _longest_gap(times) < FRESH + _longest_gap(ticks)
    tables.wait_exact("users", "tweets")
    assert _peak_mebibytes(capture) < MOST_MEBIBYTES


@contextmanager
def _written(source: Source) -> Iterator[None]:
    """Insert users, one a transaction, while the body runs."""
    users = count(1)
    with source.session() as session:
        session.autocommit = True
        insert = "INSERT INTO users (user_id) VALUES (%s)"
        with meanwhile(lambda: session.execute(insert, (next(users),)), every_seconds=0.02):
            yield


def _longest_gap(times: Sequence[datetime]) -> timedelta:
    return max(after - before for before, after in pairwise(times))


def test_c18_killed_in_a_large_round_it_repeats_it_harmlessly(tables: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "500"})
    tables.wait_exact("users", "tweets")
    tables.run(insert_tweets(1, 100_000), "DELETE FROM tweets WHERE tweet_id % 10 = 0")
    before = tables.entry("tweets")
    assert before is not None
    wait_until(lambda: _published(tables) > 2_000, what="some pages of the round")
    capture.kill()
    published, after = _published(tables), tables.entry("tweets")
    assert 2_000 < published < 90_000, "the round was at its end before it could be killed"
    assert after is not None
    assert after.position == before.position
    tables.run("UPDATE tweets SET text = 'newer' WHERE tweet_id < 1000", "DELETE FROM tweets WHERE tweet_id % 10 = 1")
    daemon("cdc", "run")
    tables.wait_exact("users", "tweets", timeout_seconds=60)


def _published(source: Source) -> int:
    entry = source.entry("tweets")
    return sum(entry.next_offsets) if entry else 0


@pytest.mark.parametrize("when", ["before", "at_once", "in_a_large_round"])
def test_c18_wide_rows_take_little_memory(tables: Source, daemon: Daemons, when: str) -> None:
    """Rows of 100 kB among narrow ones: read by a snapshot, by a round, and by the pages of a large round."""
    wide = (
        "INSERT INTO tweets SELECT i, 1, right(wide.text, -i) || left(wide.text, i) "
        f"FROM {_WIDE}, generate_series(10001, {10_000 + WIDE_ROWS}) i"
    )
    tables.run(insert_tweets(1, 1000))
    if when == "before":
        tables.run(wide)
    capture = daemon("cdc", "run")
    tables.wait_published("users", "tweets", timeout_seconds=120)
    if when == "at_once":
        tables.run(wide)
    elif when == "in_a_large_round":
        tables.run(f"BEGIN; {insert_tweets(20_001, 60_000)}; {wide}; COMMIT")
    tables.wait_published("tweets", timeout_seconds=120)
    assert _peak_mebibytes(capture) < MOST_MEBIBYTES
    tables.wait_exact("tweets")


def _peak_mebibytes(daemon: Daemon) -> float:
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024
