"""The ghost sweep: the keys that a topic holds, so that those without a row can be found and deleted."""

from collections.abc import Iterator, Sequence

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition

from cdc.errors import WireError
from runtime.errors import RetryableError
from runtime.kafka import consumer, kafka_error
from runtime.settings import KafkaSettings

_POLL_SECONDS = 30.0
_MOST_RECORDS = 10_000


def living_keys(
    settings: KafkaSettings, topic: str, next_offsets: Sequence[int], *, batch_keys: int
) -> Iterator[list[list[str]]]:
    """Read the keys of a topic's records that are no tombstones, in batches: one list of texts a key column.

    Reads up to `next_offsets`, one a partition. A key may come more than once, or after its tombstone: whoever looks
    it up publishes its row or a tombstone, and either is right.
    """
    reader = consumer(settings, group=f"{settings.topic_prefix}-sweep", name="viewkeeper-cdc-sweep")
    try:
        reader.assign([TopicPartition(topic, number, 0) for number, end in enumerate(next_offsets) if end > 0])
        batch: set[bytes] = set()
        for key in _keys(reader, topic, dict(enumerate(next_offsets))):
            batch.add(key)
            if len(batch) >= batch_keys:
                yield _columns(topic, batch)
                batch = set()
        if batch:
            yield _columns(topic, batch)
    finally:
        reader.close()


def _keys(reader: Consumer, topic: str, ends: dict[int, int]) -> Iterator[bytes]:
    unread = {number for number, end in ends.items() if end > 0}
    while unread:
        # consume(n) waits until there are n: wait for one, then take what has come with it.
        messages = reader.consume(1, _POLL_SECONDS) + reader.consume(_MOST_RECORDS, 0)
        if not messages:
            raise RetryableError(
                f"topic {topic}: nothing to read within {_POLL_SECONDS:.0f} s, though its end is not reached"
            )
        for message in messages:
            number, offset, failure = message.partition(), message.offset(), message.error()
            if number is None or offset is None or (failure and failure.code() != KafkaError._PARTITION_EOF):
                raise kafka_error(failure or KafkaError(KafkaError._FAIL), f"topic {topic}")
            if offset + (failure is None) >= ends[number]:
                unread.discard(number)
            key = message.key()
            if failure is None and message.value() is not None and isinstance(key, bytes):
                yield key


def _columns(topic: str, keys: set[bytes]) -> list[list[str]]:
    try:
        decoded = [list(msgspec.json.decode(key, type=dict[str, str | int]).values()) for key in keys]
    except msgspec.DecodeError as error:
        raise WireError(f"topic {topic}: a key is no JSON object of the key's columns: {error}") from error
    return [[str(value) for value in column] for column in zip(*decoded, strict=True)]
