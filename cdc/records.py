"""A topic's records, read committed, from one offset a partition on."""

from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from runtime.errors import RetryableError
from runtime.kafka import consumer, kafka_error
from runtime.settings import KafkaSettings

_POLL_SECONDS = 10.0


class RecordReader:
    """Reads a topic's partitions side by side, from `next_offsets` on; commits nothing, and is in nobody's way."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        next_offsets: Sequence[int],
        *,
        name: str,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._topic = topic
        self._next = list(next_offsets)
        self._consumer: Consumer = consumer(
            settings, group=f"{settings.topic_prefix}-{name}", name=f"viewkeeper-cdc-{name}", options=options
        )
        self._consumer.assign(
            [TopicPartition(topic, number, offset or OFFSET_BEGINNING) for number, offset in enumerate(next_offsets)]
        )

    @property
    def next_offsets(self) -> tuple[int, ...]:
        """The offset of each partition before which all was read."""
        return tuple(self._next)

    def is_behind(self, end_offsets: Sequence[int]) -> bool:
        """Return whether there is something to read before these ends, one a partition."""
        return any(offset < end for offset, end in zip(self._next, end_offsets, strict=True))

    def read(self, most_records: int) -> list[Message]:
        """Return the records that come next, `most_records` at most; none where a partition has just come to its end.

        Raises RetryableError if nothing comes for long.
        """
        # consume(n) waits until there are n: wait for one, then take what has come with it.
        messages = self._consumer.consume(1, _POLL_SECONDS) + self._consumer.consume(most_records - 1, 0)
        if not messages:
            raise RetryableError(
                f"topic {self._topic}: nothing to read within {_POLL_SECONDS:.0f} s, though its end is not reached"
            )
        return [message for message in messages if self._is_record(message)]

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _is_record(self, message: Message) -> bool:
        """Note how far a message has brought its partition; return whether it is more than word of the end."""
        number, offset, failure = message.partition(), message.offset(), message.error()
        if number is None or offset is None or (failure and failure.code() != KafkaError._PARTITION_EOF):
            raise kafka_error(failure or KafkaError(KafkaError._FAIL), f"topic {self._topic}")
        self._next[number] = offset + (failure is None)
        return failure is None
