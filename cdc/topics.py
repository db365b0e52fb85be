"""Changelog topics: made when they are missing, checked when they are there."""

from collections.abc import Mapping

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


def ensure_topic(
    client: AdminClient, settings: CdcSettings, topic: str, *, partitions: int, config: Mapping[str, str]
) -> int:
    """Make a compacted topic if it is missing; return its partition count, which may be another than asked for.

    Raises CaptureError if a topic is there whose policy is not `compact` alone.
    """
    where = f"topic {topic}"
    with translated(where):
        known = client.list_topics(timeout=REQUEST_SECONDS).topics
    if topic not in known and _created(client, settings, topic, partitions, config):
        _wait_for_leaders(client, topic, partitions)
        log.info("topic_created", topic=topic, partitions=partitions)
    with translated(where):
        resource = ConfigResource(ResourceType.TOPIC, topic)
        entries = client.describe_configs([resource], request_timeout=REQUEST_SECONDS)[resource].result()
        described = client.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_SECONDS)
        count = len(described[topic].result().partitions)
    policy = entries["cleanup.policy"].value
    if policy != "compact":
        raise CaptureError(
            f"{where} has cleanup.policy={policy}: it would lose rows that did not change for long; "
            "set the policy to compact, or another VIEWKEEPER_TOPIC_PREFIX"
        )
    return count


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
