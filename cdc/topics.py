"""Changelog topics: made when they are missing, checked when they are there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cdc.errors import CaptureError
from runtime.errors import RetryableError
from runtime.kafka import REQUEST_SECONDS, translated
from runtime.settings import CdcSettings

log = structlog.get_logger()

CHANGELOG_CONFIG = {"cleanup.policy": "compact", "delete.retention.ms": str(7 * 24 * 3600 * 1000)}
# Small segments, since only closed ones are compacted and a reader has to pass over what is not.
CURSOR_CONFIG = {"cleanup.policy": "compact", "segment.bytes": str(1024 * 1024), "segment.ms": str(60 * 1000)}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now: its identity, its partition count and the largest batch that it takes."""

    name: str
    topic_id: str
    partitions: int
    max_message_bytes: int


def ensure_topic(
    client: AdminClient, settings: CdcSettings, name: str, *, partitions: int, config: Mapping[str, str]
) -> Topic:
    """Make a topic, mostly a compacted one, if it is missing; return it as it is, perhaps with other partitions.

    Raises CaptureError if a topic is there with another policy than its `config` has.
    """
    where = f"topic {name}"
    with translated(where):
        known = client.list_topics(timeout=REQUEST_SECONDS).topics
    if name not in known:
        is_ours = _created(client, settings, name, partitions, config)
        # Another process may have made it just now.
        _wait_for_leaders(client, name, partitions)
        if is_ours:
            log.info("topic_created", topic=name, partitions=partitions)
    topic_id, count = topic_identities(client, [name])[name]
    with translated(where):
        resource = ConfigResource(ResourceType.TOPIC, name)
        entries = client.describe_configs([resource], request_timeout=REQUEST_SECONDS)[resource].result()
    policy = entries["cleanup.policy"].value
    wanted = config["cleanup.policy"]
    if policy != wanted:
        lost = "rows that did not change for long" if wanted == "compact" else "requests that are not the newest"
        raise CaptureError(
            f"{where} has cleanup.policy={policy}: it would lose {lost}; "
            f"set the policy to {wanted}, or another VIEWKEEPER_TOPIC_PREFIX"
        )
    return Topic(name, topic_id, count, int(entries["max.message.bytes"].value))


def topic_identities(client: AdminClient, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return id and partition count of those of the named topics that exist."""
    found = {}
    futures = client.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_SECONDS)
    for name, future in futures.items():
        with translated(f"topic {name}"):
            try:
                described = future.result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise
        found[name] = (str(described.topic_id), len(described.partitions))
    return found


def end_offsets(client: AdminClient, topic: str, partitions: int, *, isolation: IsolationLevel) -> tuple[int, ...]:
    """Return the end offset of each partition of a topic."""
    wanted = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(partitions)}
    with translated(f"topic {topic}: end offsets"):
        futures = client.list_offsets(wanted, isolation_level=isolation, request_timeout=REQUEST_SECONDS)
        ends = {place.partition: future.result().offset for place, future in futures.items()}
    return tuple(ends[number] for number in range(partitions))


def _created(
    client: AdminClient, settings: CdcSettings, topic: str, partitions: int, config: Mapping[str, str]
) -> bool:
    new = NewTopic(
        topic,
        num_partitions=partitions,
        replication_factor=settings.topic_replication_factor or -1,
        config=dict(config),
    )
    with translated(f"topic {topic}"):
        try:
            client.create_topics([new], request_timeout=REQUEST_SECONDS)[topic].result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise
    return True


def _wait_for_leaders(client: AdminClient, topic: str, partitions: int) -> None:
    """Wait until a new topic's partitions answer; its creation returns before that."""

    def answered() -> None:
        # Asked for each time: librdkafka would go on answering from its cache that there is no leader.
        client.list_topics(topic, timeout=REQUEST_SECONDS)
        end_offsets(client, topic, partitions, isolation=IsolationLevel.READ_UNCOMMITTED)

    retrying = Retrying(
        retry=retry_if_exception_type(RetryableError), wait=wait_fixed(0.05), stop=stop_after_delay(30), reraise=True
    )
    with translated(f"topic {topic}"):
        retrying(answered)
