"""A client's options beside those that a user sets."""

from collections.abc import Callable

import pytest

from projector.consumer import OPTIONS
from runtime.errors import ConfigurationError
from runtime.kafka import admin, consumer, producer
from runtime.settings import KafkaSettings, option_variable, read_settings

CLIENTS: dict[str, Callable[[KafkaSettings], object]] = {
    "producer": lambda settings: producer(settings, transactional_id="any", name="any"),
    "consumer": lambda settings: consumer(settings, group="any", name="any", options=OPTIONS).close(),
    "admin": lambda settings: admin(settings, name="any"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")


def test_messages_may_be_larger_than_what_is_fetched_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES", str(2 * int(str(OPTIONS["fetch.max.bytes"]))))
    CLIENTS["consumer"](read_settings(KafkaSettings))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("partitioner", "random"),
        ("transactional.id", "mine"),
        ("transaction.timeout.ms", "900000"),
        ("enable.idempotence", "false"),
        ("acks", "1"),
        ("max.in.flight.requests.per.connection", "1"),
        ("delivery.report.only.error", "true"),
        ("isolation.level", "read_uncommitted"),
        ("enable.auto.commit", "true"),
        ("enable.auto.offset.store", "true"),
        ("enable.partition.eof", "false"),
        ("auto.offset.reset", "earliest"),
        ("group.id", "mine"),
    ],
)
def test_an_option_that_the_guarantees_rest_on_is_refused_by_every_client(
    client: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(option_variable(option), value)
    with pytest.raises(ConfigurationError, match=f"^{option_variable(option)} is refused: .*; leave it out$"):
        CLIENTS[client](read_settings(KafkaSettings))


@pytest.mark.parametrize("client", CLIENTS)
def test_options_of_tuning_are_taken(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, value in {"linger.ms": "7", "compression.type": "zstd", "session.timeout.ms": "9000"}.items():
        monkeypatch.setenv(option_variable(option), value)
    CLIENTS[client](read_settings(KafkaSettings))
