"""Topics of one's own on a broker that all tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from confluent_kafka.admin import AdminClient

from compose.local.kafka import KafkaBroker
from tests.waiting import wait_until


@contextmanager
def own_topics(kafka: KafkaBroker) -> Iterator[str]:
    """Give a topic prefix that nobody else has; its topics go at the end, those of `prefix-…`, too."""
    prefix = f"t{uuid4().hex[:12]}"
    yield prefix
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith((f"{prefix}.", f"{prefix}-"))]
    if ours:
        for deleted in admin.delete_topics(ours).values():
            deleted.result()


def delete_topic(bootstrap_servers: str, topic: str) -> None:
    """Delete a topic, and wait until it is gone."""
    client = AdminClient({"bootstrap.servers": bootstrap_servers})
    client.delete_topics([topic])[topic].result()
    wait_until(lambda: topic not in client.list_topics(timeout=10).topics, what="the topic's end")
