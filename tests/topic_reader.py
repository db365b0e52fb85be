"""Changelog topics as their readers see them: read committed, from the beginning, the last value a key."""

import json
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from cdc.cursor import Cursor, decode_cursor

READ_SECONDS = 30.0


@dataclass
class Changelog:
    """All that a topic held at one moment. `values` has the last value a key, tombstones left out."""

    records: list[Message] = field(default_factory=list)
    values: dict[bytes, bytes] = field(default_factory=dict)
    next_offsets: dict[int, int] = field(default_factory=dict)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Decode the living rows, by their key's JSON."""
        return {key.decode(): json.loads(value) for key, value in self.values.items()}


def read_changelog(bootstrap_servers: str, topic: str) -> Changelog:
    """Read a topic up to the read-committed end that it has now.

    `next_offsets` holds each partition's last data offset plus one. A topic that is written all the time has no
    moment at which its end is announced, so its end is asked for first.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "tests",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    found = Changelog()
    try:
        partitions = consumer.list_topics(topic, timeout=READ_SECONDS).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        ends = {number: _end(consumer, topic, number) for number in partitions}
        unread = {number for number, end in ends.items() if end > 0}
        while unread:
            message = consumer.poll(READ_SECONDS)
            assert message is not None, f"{topic}: partitions {unread} did not end within {READ_SECONDS} s"
            error, number, offset = message.error(), message.partition(), message.offset()
            assert number is not None
            assert offset is not None
            if error is None:
                _take(found, message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
            if error is not None or offset + 1 >= ends[number]:
                unread.discard(number)
    finally:
        consumer.close()
    return found


def read_cursor(bootstrap_servers: str, prefix: str, capture: str = "viewkeeper") -> Cursor | None:
    """Read a capture's newest committed cursor, if there is one."""
    value = read_changelog(bootstrap_servers, f"{prefix}.cursor").values.get(capture.encode())
    return decode_cursor(value, where="cursor topic") if value is not None else None


def _end(consumer: Consumer, topic: str, number: int) -> int:
    watermarks = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=READ_SECONDS)
    assert watermarks is not None
    return watermarks[1]


def _take(found: Changelog, message: Message) -> None:
    key, value, partition, offset = message.key(), message.value(), message.partition(), message.offset()
    assert isinstance(key, bytes)
    assert partition is not None
    assert offset is not None
    found.records.append(message)
    found.next_offsets[partition] = offset + 1
    if isinstance(value, bytes):
        found.values[key] = value
    else:
        found.values.pop(key, None)
