"""What the cluster says of the changelog topics, and whether stored offsets still belong to it."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from projector.changes import Partition
from projector.offsets import StoredOffset
from runtime.kafka import REQUEST_SECONDS, LostHistory, translated


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's identity, and for each partition the first offset that it holds and the next one it will give.

    A tombstone stays in it for `delete_retention_seconds` at least.
    """

    name: str
    topic_id: str
    low: Sequence[int]
    high: Sequence[int]
    delete_retention_seconds: float


def describe_topics(client: AdminClient, names: Iterable[str], *, where: str) -> dict[str, Topic]:
    """Return those of the named topics that exist; raise BrokerUnavailable when nobody answers."""
    found: dict[str, Any] = {}
    futures = client.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_SECONDS)
    for name, future in futures.items():
        with translated(where):
            try:
                found[name] = future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
    places = [TopicPartition(name, at.id) for name, topic in found.items() for at in topic.partitions]
    low = _offsets(client, places, OffsetSpec.earliest(), where)
    high = _offsets(client, places, OffsetSpec.latest(), where)
    retentions = _delete_retentions(client, found, where)
    return {
        name: Topic(
            name=name,
            topic_id=str(topic.topic_id),
            low=[low[name, number] for number in range(len(topic.partitions))],
            high=[high[name, number] for number in range(len(topic.partitions))],
            delete_retention_seconds=retentions[name],
        )
        for name, topic in found.items()
    }


def first_offsets(topics: Mapping[str, Topic], stored: Sequence[StoredOffset]) -> list[StoredOffset]:
    """Return the offsets to begin with in topics that were never read: their first ones.

    Raises LostHistory when a stored offset does not belong to its topic as it is now, so that records may have been
    missed or could be: nothing but a new start from the beginning is right then.
    """
    known = {at.topic for at in stored}
    for at in stored:
        topic = topics.get(at.topic)
        if topic is None:
            raise LostHistory(
                f"topic {at.topic}: it is gone, and was read up to {at.next_offset} in partition {at.partition}. "
                f"{_advice()}"
            )
        _check(topic, at)
    for topic in topics.values():
        partitions = sum(at.topic == topic.name for at in stored)
        if partitions not in (0, len(topic.low)):
            raise _lost(topic, f"it has {len(topic.low)} partitions and had {partitions}: keys have moved between them")
    return [
        StoredOffset(topic.name, partition, topic.topic_id, low)
        for topic in topics.values()
        if topic.name not in known
        for partition, low in enumerate(topic.low)
    ]


def _check(topic: Topic, stored: StoredOffset) -> None:
    if topic.topic_id != stored.topic_id:
        raise _lost(topic, f"it was deleted and made again (its id is {topic.topic_id} and was {stored.topic_id})")
    if stored.partition >= len(topic.low):
        return
    low, high = topic.low[stored.partition], topic.high[stored.partition]
    if stored.next_offset < low:
        raise _lost(topic, f"partition {stored.partition} begins at {low}; records from {stored.next_offset} are gone")
    if stored.next_offset > high:
        raise _lost(
            topic,
            f"partition {stored.partition} ends at {high}; it was read up to {stored.next_offset}: Kafka lost data",
        )


def _lost(topic: Topic, what: str) -> LostHistory:
    return LostHistory(f"topic {topic.name}: {what}. {_advice()}")


def _advice() -> str:
    return (
        "The view cannot go on from where it is. See that the topics are complete (by a new snapshot of the capture), "
        "then build it anew from their beginning; a version that readers do not see can also be dropped "
        "(viewkeeper-projector drop):\nviewkeeper-projector rebuild VIEW"
    )


def _delete_retentions(client: AdminClient, names: Iterable[str], where: str) -> dict[str, float]:
    resources = {name: ConfigResource(ResourceType.TOPIC, name) for name in names}
    if not resources:
        return {}
    futures = client.describe_configs(list(resources.values()), request_timeout=REQUEST_SECONDS)
    with translated(where):
        entries = {name: futures[resource].result() for name, resource in resources.items()}
    return {name: int(entry["delete.retention.ms"].value) / 1000 for name, entry in entries.items()}


def _offsets(client: AdminClient, places: list[TopicPartition], spec: OffsetSpec, where: str) -> dict[Partition, int]:
    if not places:
        return {}
    futures: dict[TopicPartition, Future[Any]] = client.list_offsets(
        dict.fromkeys(places, spec), request_timeout=REQUEST_SECONDS
    )
    with translated(where):
        return {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
