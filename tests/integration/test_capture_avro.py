"""The capture with Avro and a real Schema Registry: what it registers, what it refuses, and what stops it."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from cdc.avro_decoding import AvroDecoding
from compose.local.process import free_port
from compose.local.registry import SchemaRegistry
from compose.local.registry import registry as run_registry
from runtime.registry import Registry
from runtime.settings import CdcSettings
from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets, tombstones
from tests.topics import delete_topic
from tests.waiting import wait_until

# Slow, and nothing that a version of Postgres could change.
pytestmark = pytest.mark.newest_postgres


@pytest.fixture
def client(schema_registry: SchemaRegistry) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": schema_registry.url}) as client:
        yield client


@pytest.fixture
def tweets(source: Source, schema_registry: SchemaRegistry) -> Iterator[Source]:
    """Give a source with 300 rows in tweets; tweets is attached, and its topic is read as Avro."""
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    with read_as_avro(source, schema_registry.url):
        yield source


def read_as_avro(source: Source, url: str) -> closing[Registry]:
    """Have a source's topics read by a registry, which is to be closed."""
    registry = Registry(CdcSettings.model_construct(schema_registry_url=url))
    source.as_json = AvroDecoding(registry).json
    return closing(registry)


def end_offsets(source: Source) -> dict[int, int]:
    return source.topic("tweets").next_offsets


def test_rows_changes_and_keys_that_a_truncate_took_are_exact(
    tweets: Source, daemon: Daemons, avro: dict[str, str]
) -> None:
    daemon("cdc", "run", settings={**avro, "VIEWKEEPER_CDC_CHUNK_ROWS": "100"})
    tweets.wait_exact("tweets")
    assert {bytes(record.key() or b"")[:1] for record in tweets.topic("tweets").records} == {b"\0"}
    tweets.run("UPDATE tweets SET text = NULL WHERE tweet_id < 10", "DELETE FROM tweets WHERE tweet_id > 290")
    tweets.wait_exact("tweets")
    tweets.run("TRUNCATE tweets", insert_tweets(5, 6))
    tweets.wait_exact("tweets")
    gone = {tweets.as_json(key) for key in tombstones(tweets.topic("tweets"))}
    assert gone == {b'{"tweet_id":%d}' % number for number in range(1, 301) if number not in (5, 6)}
    entry = tweets.entry("tweets")
    assert entry is not None
    assert (entry.encoding, entry.key_schema is None) == ("avro", False)


def test_a_column_that_is_added_is_version_two_and_one_that_changes_its_type_stops_it(
    tweets: Source, daemon: Daemons, avro: dict[str, str], client: SchemaRegistryClient
) -> None:
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    subject = f"{tweets.topic_name('tweets')}-value"
    assert client.get_versions(subject) == [1]
    tweets.run(
        "ALTER TABLE tweets ADD COLUMN note text DEFAULT 'new'", "UPDATE tweets SET note = 'x' WHERE tweet_id = 1"
    )
    tweets.wait_exact("tweets")
    assert client.get_versions(subject) == [1, 2]
    assert client.get_versions(f"{tweets.topic_name('tweets')}-key") == [1]
    assert len(capture.logged("leading")) == 1

    ends = end_offsets(tweets)
    tweets.run("ALTER TABLE tweets ALTER COLUMN user_id TYPE text USING 'user ' || user_id")
    refusal = f"subject {subject}: refused: "
    for stopped in (capture, daemon("cdc", "run", settings=avro)):
        assert stopped.wait(60) == 1
        assert refusal in stopped.log_text()
        assert "reader union lacking writer type" in stopped.log_text()
    assert end_offsets(tweets) == ends
    tweets.run("ALTER TABLE tweets ALTER COLUMN user_id TYPE bigint USING substr(user_id, 6)::bigint")
    daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")


def test_a_subject_that_takes_any_schema_is_warned_of_at_the_start(
    tweets: Source, daemon: Daemons, avro: dict[str, str], client: SchemaRegistryClient
) -> None:
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    assert capture.terminate() == 0
    assert not capture.logged("schemas_not_compared")
    subject = f"{tweets.topic_name('tweets')}-value"
    client.set_compatibility(subject, "NONE")
    warned = daemon("cdc", "run", settings=avro).wait_logged("schemas_not_compared")
    assert (warned["subject"], warned["level"]) == (subject, "warning")
    assert "to BACKWARD" in warned["advice"]
    tweets.wait_exact("tweets")


def test_columns_of_any_name_are_read_back_right_in_keys_and_rows(
    source: Source, daemon: Daemons, avro: dict[str, str], schema_registry: SchemaRegistry, client: SchemaRegistryClient
) -> None:
    source.run(
        """CREATE TABLE sizes ("schlüssel" integer, "a""b" text, "größe" numeric(6,2), "maß" float8, "tøm" date,
                              PRIMARY KEY ("schlüssel", "a""b"))""",
        "INSERT INTO sizes VALUES (1, 'x', 1.50, 0.5, '2026-01-02'), (2, 'y', NULL, NULL, NULL)",
    )
    source.attach("sizes")
    with read_as_avro(source, schema_registry.url):
        daemon("cdc", "run", settings=avro)
        source.wait_exact("sizes")
        rows = {source.as_json(row).decode() for row in source.topic("sizes").values.values()}
    assert rows == {
        '{"schlüssel":1,"a\\"b":"x","größe":"1.50","maß":0.5,"tøm":"2026-01-02"}',
        '{"schlüssel":2,"a\\"b":"y","größe":null,"maß":null,"tøm":null}',
    }
    written = client.get_latest_version(f"{source.topic_name('sizes')}-value").schema
    assert written is not None
    fields = {field["name"]: field.get("column") for field in json.loads(written.schema_str or "")["fields"]}
    assert fields["gr_xf6__xdf_e"] == "größe"
    assert fields["a_x22_b"] == 'a"b'


def test_a_registry_that_is_away_is_waited_for(source: Source, daemon: Daemons, tmp_path: Path) -> None:
    source.run(insert_tweets(1, 50))
    source.attach("tweets")
    port, folder = free_port(), tmp_path / "registry"
    settings = {"VIEWKEEPER_ENCODING": "avro"}
    settings["VIEWKEEPER_SCHEMA_REGISTRY_URL"] = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    capture = daemon("cdc", "run", settings=settings)
    assert "Schema Registry http://127.0.0.1" in capture.wait_logged("retrying")["reason"]
    with read_as_avro(source, settings["VIEWKEEPER_SCHEMA_REGISTRY_URL"]):
        with run_registry(folder, port=port):
            source.wait_exact("tweets")
        source.run(insert_tweets(51, 60))
        source.wait_published("tweets")
        waits = len(capture.logged("retrying"))
        source.run("ALTER TABLE tweets ADD COLUMN note text DEFAULT 'new'")
        wait_until(lambda: len(capture.logged("retrying")) > waits, what="a retry without the registry")
        with run_registry(folder, port=port):
            source.wait_exact("tweets", timeout_seconds=60)
    assert capture.is_running()


def test_c11_another_encoding_stops_it_and_the_steps_that_it_names_work(
    tweets: Source, daemon: Daemons, avro: dict[str, str]
) -> None:
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    assert capture.terminate() == 0
    topic = tweets.topic_name("tweets")
    refused = daemon("cdc", "run")
    assert refused.wait(60) == 1
    assert f"topic {topic} was written with VIEWKEEPER_ENCODING=avro and key schema " in refused.log_text()
    assert f"delete topic {topic}, then run: viewkeeper-cdc snapshot public.tweets" in refused.log_text()
    delete_topic(tweets.bootstrap_servers, tweets.topic_name("tweets"))
    assert daemon("cdc", "snapshot", "tweets").wait() == 0
    plain = daemon("cdc", "run")
    tweets.as_json = bytes
    tweets.wait_exact("tweets")
    assert plain.terminate() == 0
    back = daemon("cdc", "run", settings=avro)
    assert back.wait(60) == 1
    assert f"topic {topic} was written with VIEWKEEPER_ENCODING=json, and would be written with" in back.log_text()


def test_c11_a_topic_that_no_cursor_tells_of_is_not_mixed_with_another_encoding(
    tweets: Source, daemon: Daemons, avro: dict[str, str]
) -> None:
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    assert daemon("cdc", "detach", "tweets").wait() == 0
    wait_until(lambda: tweets.entry("tweets") is None, what="a cursor without the table")
    assert capture.terminate() == 0
    ends = end_offsets(tweets)
    tweets.attach("tweets")
    assert daemon("cdc", "snapshot", "tweets").wait() == 0
    refused = daemon("cdc", "run")
    assert refused.wait(60) == 1
    assert f"set VIEWKEEPER_ENCODING as it was, or delete topic {tweets.topic_name('tweets')}" in refused.log_text()
    assert end_offsets(tweets) == ends
    daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")


def test_c11_another_id_of_the_keys_schema_stops_it(
    tweets: Source, daemon: Daemons, avro: dict[str, str], tmp_path: Path
) -> None:
    """Another registry, or one that lost its schemas: the same key would be other bytes."""
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    assert capture.terminate() == 0
    entry = tweets.entry("tweets")
    assert entry is not None
    assert entry.key_schema is not None
    with run_registry(tmp_path / "another") as another, SchemaRegistryClient({"url": another.url}) as client:
        for number in range(entry.key_schema):
            client.register_schema(
                f"taken{number}", Schema(f'{{"type": "fixed", "name": "F", "size": {number + 1}}}', "AVRO")
            )
        refused = daemon("cdc", "run", settings={**avro, "VIEWKEEPER_SCHEMA_REGISTRY_URL": another.url})
        assert refused.wait(60) == 1
    assert f"avro and key schema {entry.key_schema}, and would be written with" in refused.log_text()


def test_a_value_that_avro_cannot_hold_stops_it_and_nothing_of_its_transaction_is_published(
    tweets: Source, daemon: Daemons, avro: dict[str, str]
) -> None:
    tweets.run("ALTER TABLE tweets ADD COLUMN price numeric(6, 2)")
    capture = daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")
    tweets.run("UPDATE tweets SET price = CASE tweet_id WHEN 7 THEN numeric 'NaN' ELSE 1 END")
    assert capture.wait(60) == 1
    assert 'the row with key {"tweet_id":7} has a value in column price that Avro cannot hold' in capture.log_text()
    assert all(b'"price":null' in tweets.as_json(value) for value in tweets.topic("tweets").values.values())
    tweets.run("UPDATE tweets SET price = NULL WHERE tweet_id = 7")
    daemon("cdc", "run", settings=avro)
    tweets.wait_exact("tweets")


def test_a_row_that_is_too_large_is_held_back_by_its_keys_json_until_it_fits(
    tweets: Source, daemon: Daemons, avro: dict[str, str]
) -> None:
    daemon("cdc", "run", settings={**avro, "VIEWKEEPER_CDC_ON_OVERSIZE_ROW": "hold_back"})
    tweets.wait_exact("tweets")
    too_large = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)"
    tweets.run(f"UPDATE tweets SET text = {too_large} WHERE tweet_id = 7", "DELETE FROM tweets WHERE tweet_id = 8")
    tweets.wait_published("tweets")
    entry = tweets.entry("tweets")
    assert entry is not None
    assert entry.held_back == ('{"tweet_id":7}',)
    assert len(tweets.topic("tweets").values) == 299
    tweets.run("UPDATE tweets SET text = 'short' WHERE tweet_id = 7")
    tweets.wait_exact("tweets")
    entry = tweets.entry("tweets")
    assert entry is not None
    assert entry.held_back == ()
