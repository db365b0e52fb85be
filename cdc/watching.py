"""What a command sees of a capture from outside: its newest cursor, and whether its leader is alive."""

import time
from types import TracebackType
from typing import Protocol

import msgspec
import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.cursor import Cursor, decode_cursor
from cdc.topics import end_offsets
from cdc.wire import cursor_topic_name
from runtime.kafka import REQUEST_SECONDS, BrokerUnavailable, consumer, kafka_error
from runtime.kafka import translated as kafka_translated
from runtime.postgres import translated
from runtime.settings import KafkaSettings

LOOK_SECONDS = 0.1
ALIVE_SECONDS = 3.0
"""A leader raises its beat each second; one that has not for so long is taken to be gone."""

_CAPTURE = "SELECT leader, beat, pending_token, published_token FROM cdc.capture WHERE name = %(capture)s"


class CursorTail:
    """Reads a capture's cursors as they come, read committed; never writes, and is in nobody's way.

    While a capture's transaction is open on the topic, the newest record that is seen is an older one, as for
    every other reader.
    """

    def __init__(self, client: AdminClient, settings: KafkaSettings, capture: str) -> None:
        self._client = client
        self._settings = settings
        self._capture = capture.encode()
        self._topic = cursor_topic_name(settings.topic_prefix)
        self._reader: Consumer | None = None
        self._next_offset = 0
        self._newest: Cursor | None = None

    def __enter__(self) -> "CursorTail":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

    def newest(self) -> Cursor | None:
        """Return the newest cursor that is committed now, None while there is none.

        Raises BrokerUnavailable if the topic cannot be read.
        """
        reader = self._reader or self._opened()
        if reader is None:
            return None
        # The end is asked for, since a capture that writes without a pause never lets a reader see one.
        end = end_offsets(self._client, self._topic, 1, isolation=IsolationLevel.READ_COMMITTED)[0]
        while self._next_offset < end:
            message = reader.poll(REQUEST_SECONDS)
            if message is None:
                raise BrokerUnavailable(f"{self._topic}: nothing to read within {REQUEST_SECONDS:.0f} s")
            failure, offset = message.error(), message.offset() or 0
            if failure is not None and failure.code() != KafkaError._PARTITION_EOF:
                raise kafka_error(failure, self._topic)
            self._next_offset = offset if failure else offset + 1
            value = message.value()
            if failure is None and message.key() == self._capture and isinstance(value, bytes):
                self._newest = decode_cursor(value, where=f"{self._topic} offset {offset}")
        return self._newest

    def _opened(self) -> Consumer | None:
        with kafka_translated(f"Kafka {self._settings.kafka_bootstrap_servers}"):
            # Asked for first: a consumer would wait half a minute for a topic that is not there.
            if self._topic not in self._client.list_topics(timeout=REQUEST_SECONDS).topics:
                return None
        group = f"{self._settings.topic_prefix}-cursor-reader"
        self._reader = consumer(self._settings, group=group, name="viewkeeper-cdc-cursor")
        self._reader.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
        return self._reader


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads a capture: None if nobody does; `alive` while the lease's beat is seen to move."""

    name: str | None
    alive: bool


class Watch(Protocol):
    """Looks at who leads a capture, again and again; `tokens` is what the source is known by, as of the last look."""

    tokens: frozenset[str]

    def look(self) -> Leader:
        """Return who leads as far as the looks so far tell."""

    def settled(self) -> Leader:
        """Look until it is known whether a leader is alive."""

    def is_settled(self, leader: Leader) -> bool:
        """Return whether further looks could not show yet that a leader who looked dead is alive."""


class LeaderWatch:
    """Looks at a capture's lease again and again; only a beat that moves shows that its leader is alive."""

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str) -> None:
        self._connection = connection
        self._capture = capture
        self._where = where
        self._began_at = time.monotonic()
        self._beat: int | None = None
        self._moved_at: float | None = None
        self.tokens: frozenset[str] = frozenset()

    def look(self) -> Leader:
        """Return who leads as far as the looks so far tell; `tokens` are the source's mark then."""
        with translated(self._where):
            row = self._connection.execute(_CAPTURE, {"capture": self._capture}).fetchone()
        name, beat, pending, published = row or (None, 0, "", "")
        self.tokens = frozenset((pending, published))
        now = time.monotonic()
        if self._beat not in (None, beat):
            self._moved_at = now
        self._beat = beat
        alive = name is not None and self._moved_at is not None and now - self._moved_at < ALIVE_SECONDS
        return Leader(name=name, alive=alive)

    def settled(self) -> Leader:
        """Look until it is known whether a leader is alive, which takes three seconds where none is."""
        while not self.is_settled(leader := self.look()):
            time.sleep(LOOK_SECONDS)
        return leader

    def is_settled(self, leader: Leader) -> bool:
        """Return whether further looks could not show yet that a leader who looked dead is alive."""
        return leader.alive or leader.name is None or time.monotonic() - self._began_at >= ALIVE_SECONDS
