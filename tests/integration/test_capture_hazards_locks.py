"""C1: a table that is being rewritten is not read as empty, and holds up no other table."""

import pytest

from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets, tombstones
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

ROWS = 8_000
PAGES = {"VIEWKEEPER_CDC_CHUNK_ROWS": "50"}


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
