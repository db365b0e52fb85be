"""The cursor topic, read back before anything else is read or published."""

import time

import structlog
from confluent_kafka import OFFSET_BEGINNING, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.cursor import Cursor, decode_cursor
from cdc.topics import end_offsets
from cdc.wire import cursor_topic_name
from runtime.errors import RetryableError
from runtime.kafka import consumer, kafka_error
from runtime.settings import KafkaSettings
from runtime.stop import Stop

log = structlog.get_logger()

READ_BACK_SECONDS = 90.0
"""Longer than a transaction lives, since another capture's open one hides what lies behind it."""
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0
"""Reading back takes a second; what takes so much longer waits for something, which the log is to say."""


def read_cursors(client: AdminClient, settings: KafkaSettings, stop: Stop) -> dict[str, Cursor]:
    """Return the newest committed cursor of every capture, by its name.

    Reads, read committed, past the end that a read-uncommitted look gives: with another capture's transaction open,
    the read-committed end is an older record. The caller has won the lease and called `init_transactions` before, so
    that no transaction of its own can be open.
    """
    topic = cursor_topic_name(settings.topic_prefix)
    end = end_offsets(client, topic, 1, isolation=IsolationLevel.READ_UNCOMMITTED)[0]
    cursors: dict[str, Cursor] = {}
    reader = consumer(settings, group=f"{settings.topic_prefix}-cursor-reader", name="viewkeeper-cdc-cursor")
    try:
        reader.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        position = 0
        began = told_at = time.monotonic()
        deadline = began + READ_BACK_SECONDS
        while position < end:
            message = reader.poll(_POLL_SECONDS)
            if time.monotonic() - told_at > _PATIENCE_SECONDS:
                _tell_wait(client, topic, position, end, began)
                told_at = time.monotonic()
            if stop.requested or time.monotonic() > deadline:
                raise RetryableError(f"{topic}: could not read up to offset {end} in {READ_BACK_SECONDS:.0f} s")
            if message is None:
                continue
            failure = message.error()
            if failure is not None and failure.code() != KafkaError._PARTITION_EOF:
                raise kafka_error(failure, topic)
            offset, key, value = message.offset() or 0, message.key(), message.value()
            position = offset if failure else offset + 1
            if failure is None and isinstance(key, bytes) and isinstance(value, bytes):
                cursors[key.decode()] = decode_cursor(value, where=f"{topic} offset {offset}")
    finally:
        reader.close()
    return cursors


def _tell_wait(client: AdminClient, topic: str, position: int, end: int, began: float) -> None:
    """Log what is waited for: before its committed end the consumer has not come along, at it a transaction is open."""
    committed = end_offsets(client, topic, 1, isolation=IsolationLevel.READ_COMMITTED)[0]
    waited = round(time.monotonic() - began)
    log.warning("cursor_awaited", topic=topic, read_up_to=position, committed_up_to=committed, end=end, seconds=waited)
