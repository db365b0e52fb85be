"""What the broker says of a capture's topics."""

from collections.abc import Collection

import msgspec
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from cdc.topics import topic_identities
from runtime.kafka import REQUEST_SECONDS, translated


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is now; `topic_id` changes when it is deleted and made anew."""

    name: str
    topic_id: str
    partitions: int
    cleanup_policy: str
    delete_retention_ms: int
    max_message_bytes: int


def topic_states(client: AdminClient, names: Collection[str]) -> dict[str, TopicStatus]:
    """Return those of the named topics that exist."""
    found = topic_identities(client, names) if names else {}
    if not found:
        return {}
    resources = {name: ConfigResource(ResourceType.TOPIC, name) for name in found}
    futures = client.describe_configs(list(resources.values()), request_timeout=REQUEST_SECONDS)
    states = {}
    for name, (topic_id, partitions) in found.items():
        with translated(f"topic {name}"):
            entries = futures[resources[name]].result()
        states[name] = TopicStatus(
            name=name,
            topic_id=topic_id,
            partitions=partitions,
            cleanup_policy=entries["cleanup.policy"].value,
            delete_retention_ms=int(entries["delete.retention.ms"].value),
            max_message_bytes=int(entries["max.message.bytes"].value),
        )
    return states
