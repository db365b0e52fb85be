"""Bad records among Avro: what the registry does not know, and what is no Avro at all."""

import psycopg
import pytest
from confluent_kafka import Producer

from cdc.decodings import open_decoding
from projector.retrying import Outcome, Retrier
from runtime.kafka import PARTITIONER
from tests.daemons import Daemons
from tests.integration.captured_source import Source
from tests.integration.projector_steps import counts, projector_settings, projector_steps, shown
from tests.integration.test_projector_dead_letters import LENIENT, letters
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres

UNKNOWN_SCHEMA = b"\0\0\xff\xff\xff" + b"row"


def test_bad_avro_becomes_a_letter_until_the_capture_writes_its_row_again(
    source: Source, daemon: Daemons, settings_env: dict[str, str], avro: dict[str, str], view_url: str
) -> None:
    source.attach("users", "tweets", "follows", "likes")
    source.run(
        "INSERT INTO users (user_id) VALUES (1)",
        "INSERT INTO tweets SELECT i, 1, 'hi', now() FROM generate_series(1, 3) i",
    )
    daemon("cdc", "run", settings=avro)
    source.wait_published("users", "tweets", "follows", "likes", timeout_seconds=60)
    settings = projector_settings({**settings_env, **avro, **LENIENT})
    with projector_steps(settings) as steps, open_decoding(settings) as decoding:
        first, second, third = source.topic("tweets").values
        producer = Producer({"bootstrap.servers": source.bootstrap_servers, "partitioner": PARTITIONER})
        for key, value in ((first, UNKNOWN_SCHEMA), (second, b'{"user_id":1}'), (UNKNOWN_SCHEMA, None)):
            producer.produce(source.topic_name("tweets"), value, key)
        producer.flush()
        steps.catch_up()
        # In whatever batches they came, the good records before the bad ones were applied.
        assert counts(shown(view_url)[1]) == (3, 0, 0, 0)
        reasons = {letter.key: letter.reason for letter in letters(view_url)}
        assert "does not know its schema" in reasons[first]
        assert "was it written with another VIEWKEEPER_ENCODING?" in reasons[second]
        assert "does not know its schema" in reasons[UNKNOWN_SCHEMA]
        with psycopg.connect(view_url, autocommit=True) as connection:
            retrier = Retrier(connection, source.prefix, decoding)
            assert {retrier.retry(letter).outcome for letter in letters(view_url)} == {Outcome.DEAD}
        source.run("UPDATE tweets SET user_id = 2 WHERE tweet_id < 4")

        def only_the_strange_key() -> bool:
            steps.step()
            return {letter.key for letter in letters(view_url)} == {UNKNOWN_SCHEMA}

        wait_until(only_the_strange_key, what="the capture's records to take the letters away")
        assert third not in reasons
        assert counts(shown(view_url)[1]) == (0, 0, 0, 0)
