"""A look at the cursor topic: the newest word of each capture."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from cdc.cursor import Cursor, decode_cursor
from cdc.wire import cursor_topic_name
from runtime.errors import ViewkeeperError
from runtime.kafka import consumer, kafka_error, translated
from runtime.settings import KafkaSettings

NAME = "viewkeeper-api-live"
_FETCH_SECONDS = 0.1
_FOLLOWING_SECONDS = 0.01
"""What has been written since the last look has been fetched already."""
_READ_SECONDS = 2.0
"""A look reads for so long at most: a topic that was not compacted yet takes more than one."""
_ASK_SECONDS = 3.0
_RECORDS = 1_000


class CursorTopicMissing(ViewkeeperError):  # noqa: N818 - the state, as the page says it
    """There is no cursor topic under the prefix."""


@dataclass(frozen=True, slots=True)
class Word:
    """A capture's newest cursor, read at `offset`, and when it came, a moment of `time.monotonic()`."""

    cursor: Cursor
    offset: int
    heard_at: float


@contextmanager
def cursor_looks(settings: KafkaSettings) -> Iterator[Callable[[], Sequence[Word]]]:
    """Open a reader of the cursor topic, read committed; each look returns the newest word of every capture.

    It commits nothing and is in nobody's way. Raises CursorTopicMissing, WireError, BrokerUnavailable where Kafka is
    away, and ConfigurationError where it refuses the login or the right to read.
    """
    client = consumer(settings, group=f"{settings.topic_prefix}-api-live", name=NAME)
    try:
        yield _CursorReader(client, cursor_topic_name(settings.topic_prefix), settings.kafka_bootstrap_servers).look
    finally:
        client.close()


class _CursorReader:
    """Keeps the newest record of each key."""

    def __init__(self, client: Consumer, topic: str, bootstrap_servers: str) -> None:
        self._client = client
        self._topic = topic
        self._where = f"Kafka {bootstrap_servers}"
        self._words: dict[bytes, Word] = {}
        self._is_assigned = False
        self._has_ended = False
        """The topic's end was seen: what comes from now on comes when it is written."""

    def look(self) -> list[Word]:
        """Take in what has come, and return the newest word of each capture."""
        if not self._is_assigned:
            self._assign()
        if not self._read() and self._has_ended:
            # Nothing has come: because nobody writes, or because nobody answers.
            with translated(self._where):
                place = TopicPartition(self._topic, 0)
                self._client.get_watermark_offsets(place, timeout=_ASK_SECONDS, cached=False)
        return list(self._words.values())

    def _assign(self) -> None:
        with translated(self._where):
            # Asked for first: a consumer would wait half a minute for a topic that is not there.
            if self._topic not in self._client.list_topics(timeout=_ASK_SECONDS).topics:
                raise CursorTopicMissing(f"topic {self._topic} is not there")
        self._client.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
        self._is_assigned = True

    def _read(self) -> bool:
        """Take in the records that are there; return whether there were any."""
        newest: dict[bytes, Message] = {}
        is_following = self._has_ended
        until = time.monotonic() + _READ_SECONDS
        while time.monotonic() < until:
            messages = self._client.consume(_RECORDS, _FOLLOWING_SECONDS if is_following else _FETCH_SECONDS)
            for message in messages:
                self._note(message, newest)
            if self._has_ended and len(messages) < _RECORDS:
                break
        for key, message in newest.items():
            self._take_in(key, message, is_new=is_following)
        return bool(newest)

    def _note(self, message: Message, newest: dict[bytes, Message]) -> None:
        failure, key = message.error(), message.key()
        if failure is not None:
            if failure.code() != KafkaError._PARTITION_EOF:
                raise kafka_error(failure, f"topic {self._topic}")
            self._has_ended = True
        elif isinstance(key, bytes):
            newest[key] = message

    def _take_in(self, key: bytes, message: Message, *, is_new: bool) -> None:
        value, offset, (_, time_ms) = message.value(), message.offset() or 0, message.timestamp()
        if not isinstance(value, bytes):
            self._words.pop(key, None)
            return
        # One that was there before the first look is as old as its writer says; the others have just come.
        age_seconds = 0.0 if is_new else max(time.time() - time_ms / 1000, 0.0)
        cursor = decode_cursor(value, where=f"{self._topic} offset {offset}")
        self._words[key] = Word(cursor, offset, time.monotonic() - age_seconds)
