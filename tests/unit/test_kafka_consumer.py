"""A consumer's options beside those that a user sets."""

import pytest

from projector.consumer import OPTIONS
from runtime.kafka import consumer
from runtime.settings import KafkaSettings, read_settings


def test_messages_may_be_larger_than_what_is_fetched_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES", str(2 * int(str(OPTIONS["fetch.max.bytes"]))))
    consumer(read_settings(KafkaSettings), group="any", name="any", options=OPTIONS).close()
