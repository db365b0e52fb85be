"""`viewkeeper-cdc snapshot`: asked of the running capture, followed to its end, and ghosts are gone after it."""

import json
import signal
from typing import cast

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.daemons import Daemons, standard_output
from tests.integration.captured_source import Source, headers, insert_tweets
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres


def put(source: Source, table: str, key: bytes, value: bytes) -> None:
    """Write a record into a table's topic as no capture would."""
    producer = Producer({"bootstrap.servers": source.bootstrap_servers, "partitioner": "murmur2_random"})
    producer.produce(source.topic_name(table), value, key)
    assert producer.flush(10) == 0


def requests(source: Source) -> int:
    return cast(int, source.value("SELECT count(*) FROM cdc.request"))


def test_c5_a_snapshot_is_asked_of_the_running_capture(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 300))
    source.attach("tweets", "likes")
    daemon("cdc", "run")
    source.wait_published("tweets", "likes")
    before = len(source.topic("tweets").records)
    snapshot = daemon("cdc", "snapshot", "tweets", "--wait")
    assert snapshot.wait(30) == 0
    lines = snapshot.log_text().splitlines()
    assert lines[0] == "public.tweets: a snapshot is requested"
    assert lines[-1] == "public.tweets: complete"
    again = source.topic("tweets").records[before:]
    assert [headers(record)["__op"] for record in again] == [b"r"] * 300
    wait_until(lambda: requests(source) == 0, what="the request to be deleted")
    entry = source.entry("likes")
    assert entry is not None
    assert entry.request == 0, "the other table is left alone"


def test_what_was_asked_for_is_one_json_object(source: Source, daemon: Daemons, settings_env: dict[str, str]) -> None:
    source.run(insert_tweets(1, 50))
    source.attach("tweets", "likes")
    asked = json.loads(standard_output(settings_env, "cdc", "snapshot", "tweets", "likes", "--json"))
    rows = source.connection.execute(
        "SELECT r.id, 'public.' || t.table_name FROM cdc.request r JOIN cdc.captured_table t ON t.id = r.attachment "
        "ORDER BY r.id"
    )
    standing = [{"id": number, "table": table} for number, table in rows]
    assert asked == {"capture": "viewkeeper", "requests": standing, "complete": False}
    daemon("cdc", "run")
    source.wait_published("tweets", "likes")
    done = json.loads(standard_output(settings_env, "cdc", "snapshot", "tweets", "--wait", "--json"))
    assert [request["table"] for request in done["requests"]] == ["public.tweets"]
    assert done["complete"] is True
    assert len(source.topic("tweets").records) == 100, "it was read anew when the command came back"


def test_a_snapshot_finds_ghosts(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 50))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    assert capture.terminate() == 0
    ghost = b'{"tweet_id":1000}'
    put(source, "tweets", ghost, b'{"tweet_id":1000,"user_id":1,"text":"never was","created_at":null}')
    daemon("cdc", "run")
    source.wait_published("tweets")
    assert ghost in source.topic("tweets").values, "nothing tells the capture of it"
    assert daemon("cdc", "snapshot", "tweets", "--wait").wait(30) == 0
    source.assert_topic_equals_table("tweets", "tweet_id")
    last = [record for record in source.topic("tweets").records if record.key() == ghost][-1]
    assert last.value() is None
    assert headers(last)["__op"] == b"d"


def test_a_deleted_topic_is_filled_again_as_the_error_says(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 50))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    client, topic = AdminClient({"bootstrap.servers": source.bootstrap_servers}), source.topic_name("tweets")
    client.delete_topics([topic])[topic].result()
    assert capture.wait(30) == 1
    assert "run: viewkeeper-cdc snapshot public.tweets" in capture.log_text()
    snapshot = daemon("cdc", "snapshot", "public.tweets")
    assert snapshot.wait() == 0, "it waits only where somebody looks on"
    assert snapshot.log_text() == "public.tweets: a snapshot is requested\n"
    daemon("cdc", "run")
    source.wait_published("tweets")
    source.assert_topic_equals_table("tweets", "tweet_id")


def test_a_request_waits_for_a_capture_and_says_so(source: Source, daemon: Daemons) -> None:
    source.run(insert_tweets(1, 50))
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    capture.kill()
    published = source.topic("tweets").next_offsets
    snapshot = daemon("cdc", "snapshot", "tweets", "--wait")
    wait_until(lambda: "no capture is running" in snapshot.log_text(), what="word of the missing capture")
    assert snapshot.is_running()
    assert source.topic("tweets").next_offsets == published, "C5: nobody publishes but a capture"
    daemon("cdc", "run")
    assert snapshot.wait(30) == 0
    assert snapshot.log_text().splitlines()[-1] == "public.tweets: complete"


def test_ctrl_c_leaves_the_request(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    snapshot = daemon("cdc", "snapshot", "tweets", "--wait")
    wait_until(lambda: "no capture is running" in snapshot.log_text(), what="its first look")
    snapshot.signal(signal.SIGINT)
    assert snapshot.wait() == 130
    assert "the requests stand" in snapshot.log_text()
    assert requests(source) == 1


def test_all_tables_are_asked_for_or_none(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    snapshot = daemon("cdc", "snapshot", "tweets", "likes")
    assert snapshot.wait() == 2
    assert "public.likes is not attached to capture viewkeeper; run: viewkeeper-cdc attach public.likes" in (
        snapshot.log_text()
    )
    assert requests(source) == 0


def test_a_table_that_is_detached_meanwhile_ends_the_wait(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    snapshot = daemon("cdc", "snapshot", "tweets", "--wait")
    wait_until(lambda: "no capture is running" in snapshot.log_text(), what="its first look")
    assert daemon("cdc", "detach", "tweets").wait() == 0
    assert snapshot.wait() == 1
    assert "public.tweets was detached: its request is gone" in snapshot.log_text()
