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


def first_offsets(topics: Mapping[str, Topic], stored: Sequence[StoredOffset], *, view: str) -> list[StoredOffset]:
    """Return the offsets to begin with in topics that were never read: their first ones.

    Raises LostHistory when a stored offset does not belong to its topic as it is now, so that records may have been
    missed or could be: nothing but a new start from the beginning is right then. `view` names what they are stored of.
    """
    known = {at.topic for at in stored}
    for at in stored:
        topic = topics.get(at.topic)
        if topic is None:
            what = f"it is gone, and was read up to {at.next_offset} in partition {at.partition}"
            raise _lost(at.topic, what, "See that it is there and complete again", view)
        _check(topic, at, view)
    for topic in topics.values():
        moved = keys_moved(topic, stored)
        if moved:
            raise _lost(topic.name, moved, "Delete it, and have it made and filled again", view)
    return [
        StoredOffset(topic.name, partition, topic.topic_id, low)
        for topic in topics.values()
        if topic.name not in known
        for partition, low in enumerate(topic.low)
    ]


def keys_moved(topic: Topic, stored: Sequence[StoredOffset]) -> str | None:
    """Return in words that a topic has got partitions since its offsets were stored, None if it has not.

    A key's old and new records lie in different ones then, and nobody knows in which order they were written.
    """
    known = sum(at.topic == topic.name and at.topic_id == topic.topic_id for at in stored)
    if known in (0, len(topic.low)):
        return None
    return f"it has {len(topic.low)} partitions and had {known}: keys have moved between them"


def filling_advice(topic: str) -> str:
    """Return who fills a topic again from its table, or, of a capture's cursor, who says what is to be done."""
    table = topic.partition(".")[2]
    if "." not in table:
        return "viewkeeper-cdc run says what to do"
    return f"viewkeeper-cdc snapshot {table}, if a capture writes it"


def _check(topic: Topic, stored: StoredOffset, view: str) -> None:
    if topic.topic_id != stored.topic_id:
        what = f"it was deleted and made again (its id is {topic.topic_id} and was {stored.topic_id})"
        raise _lost(topic.name, what, "See that it is complete again", view)
    if stored.partition >= len(topic.low):
        return
    low, high = topic.low[stored.partition], topic.high[stored.partition]
    if stored.next_offset < low:
        what = f"partition {stored.partition} begins at {low}; records from {stored.next_offset} are gone"
        raise _lost(topic.name, what, "Set its cleanup.policy to compact alone, and have it filled again", view)
    if stored.next_offset > high:
        what = f"partition {stored.partition} ends at {high}; it was read up to {stored.next_offset}: Kafka lost data"
        raise _lost(topic.name, what, "Have it filled again", view)


def _lost(topic: str, what: str, advice: str, view: str) -> LostHistory:
    return LostHistory(
        f"topic {topic}: {what}. The view cannot go on from where it is. {advice} ({filling_advice(topic)}), then "
        "build the view anew from the topics' beginning; a version that readers do not see can also be dropped "
        f"(viewkeeper-projector drop):\nviewkeeper-projector rebuild {view}"
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
