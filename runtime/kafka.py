"""The thin edge to Kafka: clients with safe settings, and librdkafka's errors translated once."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from runtime.errors import ConfigurationError, RetryableError, ViewkeeperError
from runtime.settings import KafkaSettings, option_variable, variable

log = structlog.get_logger()

ClientT = TypeVar("ClientT")

REQUEST_SECONDS = 10.0
SAY_AGAIN_SECONDS = 10.0
TRANSACTION_TIMEOUT_SECONDS = 60
PARTITIONER = "murmur2_random"
"""Java's default partitioner by key, so that its producers and ours agree on a key's partition."""

_EXACTLY_ONCE = "a record would be lost, repeated or overtaken by an older one of its key"
_OWN_POSITIONS = "where to read on is stored with what was made of the records, and nowhere else"
_ONE_LEADER = "it decides which process leads, and which partitions are whose"
_KEPT = {
    "transactional.id": "it fences a leader that wakes up late",
    "transaction.timeout.ms": "what waits while a transaction is open is given less time than this",
    "enable.idempotence": _EXACTLY_ONCE,
    "acks": _EXACTLY_ONCE,
    "request.required.acks": _EXACTLY_ONCE,
    "max.in.flight": _EXACTLY_ONCE,
    "max.in.flight.requests.per.connection": _EXACTLY_ONCE,
    "partitioner": "all records of a key have to lie in one partition, which is the same for every producer",
    "delivery.report.only.error": "watermarks hold the offsets of delivery reports",
    "isolation.level": "records of a transaction that was given up would be read as if they counted",
    "enable.auto.commit": _OWN_POSITIONS,
    "auto.commit.enable": _OWN_POSITIONS,
    "enable.auto.offset.store": _OWN_POSITIONS,
    "auto.offset.reset": "records that Kafka has lost would be passed over without a word",
    "enable.partition.eof": "that a topic was read to its end is known by it",
    "group.id": _ONE_LEADER,
    "group.instance.id": _ONE_LEADER,
    "group.protocol": _ONE_LEADER,
    "partition.assignment.strategy": _ONE_LEADER,
}
"""What the guarantees rest on, librdkafka's other names for it included, and why: no setting may name it."""

_REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError._INVALID_ARG,
}
_FENCED = {
    KafkaError._FATAL,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}
_LOST_HISTORY = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}

_TOOK = re.compile(r" \(after \d+ms in state \w+\)")
"""What differs in the reasons of one trouble."""


class BrokerUnavailable(RetryableError):  # noqa: N818 - the state, as the log reads it
    """The broker cannot be reached or answered with an error that may pass."""


class LostHistory(ViewkeeperError):  # noqa: N818 - the state, as the log reads it
    """A consumer's next offset is not in the log any more, or not yet: Kafka lost records."""


def producer(settings: KafkaSettings, *, transactional_id: str, name: str) -> Producer:
    """Return a transactional producer that loses, repeats and reorders nothing."""
    return _client(
        Producer,
        settings,
        name,
        {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_SECONDS * 1000,
            "partitioner": PARTITIONER,
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 32_768,
        },
    )


def consumer(
    settings: KafkaSettings, *, group: str, name: str, options: Mapping[str, object] | None = None
) -> Consumer:
    """Return a read-committed consumer that neither commits nor resets offsets by itself."""
    return _client(
        Consumer,
        settings,
        name,
        {
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            **_with_room(options or {}, settings),
        },
    )


def admin(settings: KafkaSettings, *, name: str) -> AdminClient:
    """Return an admin client."""
    return _client(AdminClient, settings, name, {})


def check_options(settings: KafkaSettings) -> None:
    """Raise ConfigurationError for options that no client of ours may have; connects to nothing."""
    _client(AdminClient, settings, "viewkeeper-options", {"bootstrap.servers": ""})


def check_reachable(client: AdminClient, settings: KafkaSettings) -> None:
    """Ask the cluster for its metadata; raise BrokerUnavailable when nobody answers."""
    with translated(f"Kafka {settings.kafka_bootstrap_servers}"):
        try:
            client.list_topics(timeout=REQUEST_SECONDS)
        finally:
            # Why no connection came about is told to callbacks alone, and these run in a poll.
            client.poll(0)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate librdkafka's errors; `where` begins the message."""
    try:
        yield
    except KafkaException as error:
        raise kafka_error(error.args[0], where) from error
    except SystemError as error:
        # A fatal error is raised while callbacks run, and Python takes the mess that they leave for a fault of its own.
        raise kafka_error(KafkaError(KafkaError._FATAL), where) from error


def kafka_error(error: KafkaError, where: str) -> ViewkeeperError:
    """Return our error for one of librdkafka's."""
    text = f"{where}: {error.str()} ({error.name()})"
    if error.code() in _LOST_HISTORY:
        return LostHistory(text)
    if error.code() in _REFUSED:
        return ConfigurationError(f"{text}; check VIEWKEEPER_KAFKA_… and the rights of its user")
    if error.code() in _FENCED:
        # Mostly a standby that took over. Two captures of one name on two databases do so in turn.
        text += "; another process publishes under the same VIEWKEEPER_CDC_NAME now, or the broker forgot this one"
    return BrokerUnavailable(text)


def _with_room(options: Mapping[str, object], settings: KafkaSettings) -> Mapping[str, object]:
    """Return a consumer's options with room for a message of the size that settings allow: librdkafka demands it."""
    fetched, message = options.get("fetch.max.bytes"), settings.kafka_options.get("message.max.bytes", "")
    if not isinstance(fetched, int) or not message.isdecimal():
        return options
    return {**options, "fetch.max.bytes": max(fetched, int(message))}


def _demand_kept(settings: KafkaSettings) -> None:
    """Raise ConfigurationError that names each option of the settings that may not be another one."""
    named = sorted(settings.kafka_options.keys() & _KEPT.keys())
    if named:
        raise ConfigurationError(
            "\n".join(f"{option_variable(name)} is refused: {_KEPT[name]}; leave it out" for name in named)
        )


def _client(kind: Callable[..., ClientT], settings: KafkaSettings, name: str, options: Mapping[str, object]) -> ClientT:
    _demand_kept(settings)
    merged = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": name,
        "topic.metadata.refresh.interval.ms": 30_000,
        "reconnect.backoff.max.ms": 2_000,
        "error_cb": KafkaErrors(),
        # The callback has all errors but fatal ones already; what is left goes to our log, and not to stderr.
        "log_level": 2,
        "logger": _Lines(),
        **options,
        **settings.kafka_options,
    }
    try:
        return kind(merged)
    except KafkaException as error:
        raise ConfigurationError(
            f"Kafka client: {error.args[0].str()}; check {variable('kafka_bootstrap_servers')} and the "
            "VIEWKEEPER_KAFKA_<OPTION> settings: each must be an option of librdkafka"
        ) from error


class _Lines:
    """Takes librdkafka's own lines, as a `logging.Logger` would."""

    def log(self, _level: int, text: str, *parts: str) -> None:
        log.warning("kafka_client", reason=text % parts)


class KafkaErrors:
    """Logs a client's errors, one that it repeats every ten seconds: it may try to connect twenty times in one."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        """Log an error, unless it was logged just now."""
        now, reason = time.monotonic(), _TOOK.sub("", error.str())
        self._said_at = {said: at for said, at in self._said_at.items() if now - at < SAY_AGAIN_SECONDS}
        if reason not in self._said_at:
            self._said_at[reason] = now
            log.warning("kafka_client", reason=reason, code=error.name())
