"""Changelog topics as their readers see them: read committed, from the beginning, the last value a key."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from cdc.cursor import Cursor, decode_cursor
from tests.waiting import wait_until

READ_SECONDS = 30.0
_UNLED = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._UNKNOWN_PARTITION)
_READER: dict[str, str | int | bool] = {
    "group.id": "tests",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "enable.auto.commit": False,
}


@dataclass
class Changelog:
    """All that a topic held at one moment. `values` has the last value a key, tombstones left out."""

    records: list[Message] = field(default_factory=list)
    values: dict[bytes, bytes] = field(default_factory=dict)
    next_offsets: dict[int, int] = field(default_factory=dict)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Decode the living rows, by their key's JSON."""
        return {key.decode(): json.loads(value) for key, value in self.values.items()}


def read_changelog(bootstrap_servers: str, topic: str, *, before: Sequence[int] | None = None) -> Changelog:
    """Read a topic up to the read-committed end that it has now, or of each partition what is `before` an offset.

    `next_offsets` holds each partition's last data offset plus one. A topic that is written all the time has no
    moment at which its end is announced, so its end is asked for first.
    """
    consumer = Consumer(_READER | {"bootstrap.servers": bootstrap_servers})
    found = Changelog()
    try:
        partitions = consumer.list_topics(topic, timeout=READ_SECONDS).topics[topic].partitions
        # Before anything is fetched: the broker answers what comes after a fetch when that has waited for records.
        ends = {number: read_end(consumer, topic, number) for number in partitions}
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        unread = {number for number, end in ends.items() if end > 0}
        while unread:
            message = consumer.poll(READ_SECONDS)
            assert message is not None, f"{topic}: partitions {unread} did not end within {READ_SECONDS} s"
            error, number, offset = message.error(), message.partition(), message.offset()
            assert number is not None
            assert offset is not None
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
            elif before is None or offset < before[number]:
                _take(found, message)
            if error is not None or offset + 1 >= ends[number]:
                unread.discard(number)
    finally:
        consumer.close()
    return found


class CursorReader:
    """Reads a cursor topic on and on, each record once: tests ask for the newest cursor many times a second."""

    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        self._topic = f"{prefix}.cursor"
        self._consumer = Consumer(_READER | {"bootstrap.servers": bootstrap_servers, "fetch.wait.max.ms": 50})
        self._found = Changelog()
        self._next_offset = 0
        self._is_assigned = False

    def newest(self, capture: str = "viewkeeper") -> Cursor | None:
        """Return a capture's newest committed cursor, None if there is none, or no topic yet."""
        self._read(self.end())
        value = self._found.values.get(capture.encode())
        return decode_cursor(value, where="cursor topic") if value is not None else None

    def end(self) -> int:
        """Return how far the topic has come; 0 before there is one."""
        if not self._is_assigned and self._topic not in self._consumer.list_topics(timeout=READ_SECONDS).topics:
            return 0
        end = read_end(self._consumer, self._topic, 0)
        if not self._is_assigned or end < self._next_offset:
            # It is new, or was made again.
            self._found, self._next_offset, self._is_assigned = Changelog(), 0, True
            self._consumer.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
        return end

    def close(self) -> None:
        """Close its consumer."""
        self._consumer.close()

    def _read(self, end: int) -> None:
        while self._next_offset < end:
            message = self._consumer.poll(READ_SECONDS)
            assert message is not None, f"{self._topic} did not end within {READ_SECONDS} s"
            error, offset = message.error(), message.offset()
            assert offset is not None
            if error is None:
                _take(self._found, message)
                self._next_offset = offset + 1
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                self._next_offset = max(self._next_offset, offset)


_open_readers: dict[tuple[str, str], CursorReader] = {}


def cursor_reader(bootstrap_servers: str, prefix: str) -> CursorReader:
    """Return the reader of a cursor topic, which stays open until `close_readers`."""
    name = bootstrap_servers, prefix
    if name not in _open_readers:
        _open_readers[name] = CursorReader(bootstrap_servers, prefix)
    return _open_readers[name]


def close_readers() -> None:
    """Close what tests have left open."""
    while _open_readers:
        _open_readers.popitem()[1].close()


def read_cursor(bootstrap_servers: str, prefix: str, capture: str = "viewkeeper") -> Cursor | None:
    """Read a capture's newest committed cursor, None if there is none, or no topic yet."""
    return cursor_reader(bootstrap_servers, prefix).newest(capture)


def read_end(consumer: Consumer, topic: str, number: int) -> int:
    """Ask the broker for a partition's next offset, until it leads the partition.

    A new topic may be known before, and a broker that has just come back knows of none.
    """

    def watermarks() -> tuple[int, int] | None:
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=READ_SECONDS)
        except KafkaException as error:
            if error.args[0].code() not in _UNLED:
                raise
            return None

    found = wait_until(watermarks, timeout_seconds=READ_SECONDS, what=f"the leader of {topic} partition {number}")
    assert found is not None
    return found[1]


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
