"""C9 and C17: a standby that touches nothing, and topics that are changed under a running capture."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from cdc.lease import RowLease
from cdc.session import SESSION
from runtime.postgres import connect
from runtime.stop import Stop
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.topics import delete_topic
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres

LEASE = {"VIEWKEEPER_CDC_LEASE_SECONDS": "2"}


@pytest.fixture
def tweets(source: Source) -> Source:
    """Give a source with ten rows in tweets, which is attached."""
    source.run(insert_tweets(1, 10))
    source.attach("tweets")
    return source


def test_c9_a_standby_opens_no_producer_and_reads_no_rows_until_it_leads(tweets: Source, daemon: Daemons) -> None:
    leader = daemon("cdc", "run", settings=LEASE)
    tweets.wait_exact("tweets")
    leading = _reading_sessions(tweets)
    with _listener() as listener:
        broker = f"127.0.0.1:{listener.getsockname()[1]}"
        settings = {**LEASE, "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": broker}
        standby = daemon("cdc", "run", settings=settings)
        standby.wait_logged("standby")
        (session,) = _reading_sessions(tweets).keys() - leading.keys()
        asked = _reading_sessions(tweets)[session]
        _beats(tweets, 5)
        assert _reading_sessions(tweets)[session] == asked
        assert not _was_called(listener)
        leader.kill()
        standby.wait_logged("leading")
        wait_until(lambda: _was_called(listener), what="its call of the broker")


def test_c9_a_lease_is_renewed_without_touching_the_mark(tweets: Source) -> None:
    """Only a flush changes the tokens: the cursor carries one, and another history would be seen in any other."""
    with closing(connect(tweets.url, name="test", settings=SESSION)) as session:
        lease = RowLease(session, CAPTURE, where="test", lease_seconds=2)
        assert lease.win(Stop(), lambda: None)
        lease.flush(published=lease.flush(published=""))
        flushed = _marks(tweets)
        with lease.kept(lambda: None, lambda: None):
            _beats(tweets, 2)
        lease.release()
    assert _marks(tweets) == flushed


def _marks(source: Source) -> tuple[object, ...]:
    row = source.connection.execute("SELECT pending_token, published_token FROM cdc.capture").fetchone()
    assert row is not None
    assert all(row)
    return row


@contextmanager
def _listener() -> Iterator[socket.socket]:
    """Listen where a broker could be."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        yield listener


def _was_called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _reading_sessions(source: Source) -> dict[int, object]:
    """Return when the sessions that read rows were last given a statement, by their process."""
    query = "SELECT pid, query_start FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    return dict(source.connection.execute(query, (f"viewkeeper-cdc {CAPTURE}",)).fetchall())


def _beats(source: Source, count: int) -> None:
    """Wait until the leader has raised its beat so often."""
    beat = "SELECT beat FROM cdc.capture"
    until = int(str(source.value(beat))) + count
    wait_until(lambda: int(str(source.value(beat))) >= until, what=f"{count} beats of the leader")


def test_c17_partitions_added_while_it_runs_stop_it_and_the_steps_work(tweets: Source, daemon: Daemons) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    client, topic = AdminClient({"bootstrap.servers": tweets.bootstrap_servers}), tweets.topic_name("tweets")
    client.create_partitions([NewPartitions(topic, 9)])[topic].result()
    assert capture.wait() == 1
    assert f"topic {topic} has 9 partitions, and had 6" in capture.log_text()
    assert "delete it, then run: viewkeeper-cdc snapshot public.tweets" in capture.log_text()
    again = daemon("cdc", "run")
    assert again.wait() == 1
    assert f"topic {topic} has 9 partitions, and had 6" in again.log_text()
    delete_topic(tweets.bootstrap_servers, topic)
    _request_snapshot(tweets)
    tweets.run("DELETE FROM tweets WHERE tweet_id = 1", insert_tweets(11, 12))
    daemon("cdc", "run")
    tweets.wait_exact("tweets")


def test_c17_records_that_reach_a_partition_before_it_is_looked_for_stop_it_as_well(
    tweets: Source, daemon: Daemons
) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS": "100"})
    tweets.wait_exact("tweets")
    client, topic = AdminClient({"bootstrap.servers": tweets.bootstrap_servers}), tweets.topic_name("tweets")
    client.create_partitions([NewPartitions(topic, 9)])[topic].result()
    ids = itertools.count(1000, 100)

    def is_over() -> bool:
        first = next(ids)
        tweets.run(insert_tweets(first, first + 99))
        return not capture.is_running()

    wait_until(is_over, what="its end")
    assert capture.wait() == 1
    assert f"topic {topic} has 9 partitions, and had 6" in capture.log_text()
    assert [line["reason"] for line in capture.logged("retrying")] in (
        [],
        [f"topic {topic} has more partitions than the cursor knows of"],
    )


@pytest.mark.parametrize("written", [False, True], ids=["idle", "written_to"])
def test_c17_a_topic_deleted_while_it_runs_stops_it_and_the_steps_work(
    tweets: Source, daemon: Daemons, *, written: bool
) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    topic = tweets.topic_name("tweets")
    delete_topic(tweets.bootstrap_servers, topic)
    if written:
        tweets.run(insert_tweets(11, 20))
    assert capture.wait() == 1, "it does not wait for the producer, which tries for half a minute"
    assert f"topic {topic} was deleted" in capture.log_text()
    assert "viewkeeper-cdc snapshot public.tweets" in capture.log_text()
    _request_snapshot(tweets)
    daemon("cdc", "run")
    tweets.wait_exact("tweets")


def _request_snapshot(source: Source) -> None:
    source.run(
        "INSERT INTO cdc.request (capture, attachment, kind) SELECT capture, id, 'snapshot' FROM cdc.captured_table"
    )
