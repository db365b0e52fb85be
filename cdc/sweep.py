"""The ghost sweep: the keys that a topic holds, so that those without a row can be found and deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from cdc.cursor import Sweep
from cdc.errors import WireError
from runtime.errors import RetryableError
from runtime.kafka import consumer, kafka_error
from runtime.settings import KafkaSettings

_POLL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys that a topic holds, as one list of texts a key column, and the offsets before which all were read.

    `next_offsets` is None with the last batch.
    """

    keys: Sequence[Sequence[str]]
    next_offsets: tuple[int, ...] | None


class KeyReader:
    """Reads the keys of a topic's records that are no tombstones, from where a sweep has come to its end.

    A key may come more than once, or after its tombstone: whoever looks it up publishes its row or a tombstone, and
    either is right.
    """

    def __init__(self, settings: KafkaSettings, topic: str, sweep: Sweep) -> None:
        self._topic = topic
        self._next = list(sweep.next_offsets)
        self._ends = sweep.end_offsets
        self._consumer: Consumer = consumer(
            settings, group=f"{settings.topic_prefix}-sweep", name="viewkeeper-cdc-sweep"
        )
        self._consumer.assign(
            [TopicPartition(topic, number, self._next[number] or OFFSET_BEGINNING) for number in self._unread()]
        )

    def batch(self, most_records: int) -> Batch:
        """Read so many records at most; raise RetryableError if none comes for long."""
        keys: set[bytes] = set()
        read = 0
        while read < most_records and self._unread():
            # consume(n) waits until there are n: wait for one, then take what has come with it.
            messages = self._consumer.consume(1, _POLL_SECONDS) + self._consumer.consume(most_records - read, 0)
            if not messages:
                raise RetryableError(
                    f"topic {self._topic}: nothing to read within {_POLL_SECONDS:.0f} s, though its end is not reached"
                )
            read += len(messages)
            keys.update(filter(None, map(self._living_key, messages)))
        next_offsets = tuple(self._next) if self._unread() else None
        return Batch(key_columns(self._topic, keys), next_offsets)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _unread(self) -> list[int]:
        return [number for number, end in enumerate(self._ends) if self._next[number] < end]

    def _living_key(self, message: Message) -> bytes | None:
        """Note how far a message has brought its partition; return its key, None for a tombstone."""
        number, offset, failure = message.partition(), message.offset(), message.error()
        if number is None or offset is None or (failure and failure.code() != KafkaError._PARTITION_EOF):
            raise kafka_error(failure or KafkaError(KafkaError._FAIL), f"topic {self._topic}")
        self._next[number] = offset + (failure is None)
        key = message.key()
        return key if failure is None and message.value() is not None and isinstance(key, bytes) else None


def key_columns(topic: str, keys: set[bytes]) -> list[list[str]]:
    """Return a topic's keys as one list of texts a key column; raise WireError if one is no key of the contract."""
    try:
        decoded = [msgspec.json.decode(key, type=dict[str, str | int | bool]).values() for key in keys]
        # str(True) is no text that Postgres would write, though one that it reads.
        return [[str(value) for value in column] for column in zip(*decoded, strict=True)]
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"topic {topic}: a key is no JSON object of the key's columns: {error}") from error
