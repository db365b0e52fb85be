"""C3 and C4: rows that must not look deleted, and keys of the topic that are gone from the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets, tombstones
from tests.waiting import wait_until

GHOSTS = 4_000


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


def test_c4_a_sweep_that_was_killed_goes_on_where_it_was(source: Source, daemon: Daemons) -> None:
    """Keys that were deleted unseen; each gets one tombstone, and the table has no watermark until the last one."""
    source.run(insert_tweets(1, 100 + GHOSTS))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    capture.terminate()
    source.run(
        "BEGIN; ALTER TABLE tweets DISABLE TRIGGER viewkeeper_1_delete; DELETE FROM tweets WHERE tweet_id > 100; "
        "ALTER TABLE tweets ENABLE ALWAYS TRIGGER viewkeeper_1_delete; COMMIT"
    )
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
