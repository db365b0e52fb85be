"""Publishing: pages of changes, then the cursor that covers them, in one Kafka transaction."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from cdc import metrics
from cdc.change import KeyAndRow, Op, Page
from cdc.cursor import Cursor, TableCursor
from cdc.encoding import Encoding
from cdc.errors import CaptureError, CatalogChanged
from cdc.wire import OP_HEADER, SOURCE_TIME_HEADER, TABLE_HEADER, cursor_topic_name, topic_name
from runtime.errors import RetryableError, ViewkeeperError
from runtime.kafka import kafka_error, translated

log = structlog.get_logger()

Headers = list[tuple[str, str | bytes | None]]
OnDelivery = Callable[[KafkaError | None, Message], None]

_ANY_PARTITION, _NOW = -1, 0
"""What produce() takes for a partition by the key, and for the time of the call."""
_QUEUE_FULL_WAIT_SECONDS = 0.1
_COMMIT_SECONDS = 30.0
_ABORT_SECONDS = 5.0
_DELIVERY_LOOK_SECONDS = 1.0
_HELD_BACK_MOST_BYTES = 200_000
"""The keys of rows that are held back are part of each cursor record, which has to stay small."""


class Publisher:
    """One leader's transactional producer, with the next offset of each partition that it writes.

    `limits` has the largest record, in bytes, that each topic takes; with `hold_back`, larger rows are left out and
    listed. After any error of the producer throw the whole publisher away: the next one's `init_transactions` ends what
    is open, and the cursor is read back.
    """

    def __init__(
        self,
        producer: Producer,
        encoding: Encoding,
        *,
        prefix: str,
        capture: str,
        limits: Mapping[str, int],
        hold_back: bool,
    ) -> None:
        self._producer = producer
        self._encoding = encoding
        self._capture = capture
        self._prefix = prefix
        self._cursor_topic = cursor_topic_name(prefix)
        self._limits = limits
        self._hold_back = hold_back
        self._topics: dict[str, str] = {}
        self._next_offsets: dict[str, list[int]] = {}
        self._held: dict[str, set[bytes]] = {}
        self._failure: Exception | None = None
        self._open = False

    def know(self, table: TableCursor) -> None:
        """Take over what the cursor says of a topic that is not known yet, or not under this id."""
        if self._topics.get(table.topic) != table.topic_id:
            self._topics[table.topic] = table.topic_id
            self._next_offsets[table.topic] = list(table.next_offsets)
            self._held[table.topic] = {key.encode() for key in table.held_back}

    def next_offsets(self, topic: str) -> tuple[int, ...]:
        """Return a topic's next offsets: those that it had, moved by the delivery reports since."""
        return tuple(self._next_offsets[topic])

    def held_back(self, topic: str) -> tuple[str, ...]:
        """Return the keys of the rows that are left out, since they are too large."""
        return tuple(sorted(key.decode() for key in self._held[topic]))

    def publish(self, page: Page) -> None:
        """Add a page, encoded, to the open Kafka transaction, which is begun if there is none.

        Raises CaptureError for a record that is larger than the topic takes, unless such are held back, and what the
        encoding raises.
        """
        if not page.changes:
            return
        topic = topic_name(self._prefix, page.table.name)
        changes = self._fitting(topic, page.changes, self._encoding.encoded(topic, page))
        self._begin()
        upserted, deleted = _headers(page, page.op), _headers(page, Op.DELETE)
        produce, delivered = self._producer.produce, self._delivered_to(topic)
        # One call a record and nothing else: these calls are most of what capture costs. Names of arguments would be
        # looked up in each call, a fifth of it.
        for key, row in changes:
            headers = deleted if row is None else upserted
            try:
                produce(topic, row, key, _ANY_PARTITION, delivered, None, _NOW, headers)
            except (BufferError, KafkaException):
                self._produce(topic, key, row, headers, delivered)
        with translated(f"topic {topic}"):
            self._producer.poll(0)
        metrics.CHANGES_PUBLISHED.labels(str(page.table.name)).inc(len(changes))

    def commit(self, flush: Callable[[], str], cursor: Callable[[str], Cursor], check: Callable[[], None]) -> None:
        """Commit the open transaction, after `flush` has flushed the source; its token goes into the cursor.

        `cursor` makes the cursor record, once the offsets of everything before it are known; it is produced last.
        `check` is called now and then while the broker does not take the records, and raises if it never will.
        """
        self._begin()
        # The source flushes while the broker takes the records.
        try:
            token = flush()
        except ViewkeeperError:
            self._abort()
            raise
        self._deliver(check)
        record = cursor(token).encode()
        self._produce(self._cursor_topic, self._capture.encode(), record, None, self._delivered_to(self._cursor_topic))
        self._deliver(check)
        with translated("Kafka, commit of a transaction"):
            self._producer.commit_transaction(_COMMIT_SECONDS)
        self._open = False

    def _begin(self) -> None:
        if not self._open:
            with translated("Kafka, begin of a transaction"):
                self._producer.begin_transaction()
            self._open = True

    def _abort(self) -> None:
        """End the transaction without its records: readers of committed ones would wait for the broker to do so."""
        with suppress(KafkaException):
            self._producer.abort_transaction(_ABORT_SECONDS)

    def _fitting(self, topic: str, plain: Sequence[KeyAndRow], changes: Sequence[KeyAndRow]) -> Sequence[KeyAndRow]:
        """Return the changes that the topic takes, and note which keys are held back, and which no longer are.

        `plain` has the same changes in JSON, which is how keys that are held back are known.
        """
        most_bytes, held = self._limits[topic], self._held[topic]
        longest_key = max(map(len, map(itemgetter(0), changes)))
        largest_row = max(map(len, filter(None, map(itemgetter(1), changes))), default=0)
        if longest_key + largest_row <= most_bytes and not held:
            return changes
        fitting = []
        for (name, _), (key, row) in zip(plain, changes, strict=True):
            if row is not None and len(key) + len(row) > most_bytes:
                if not self._hold_back:
                    raise _too_large(topic, name, row)
                log.warning("row_held_back", topic=topic, key=name.decode(errors="replace"), bytes=len(row))
                held.add(name)
                if sum(map(len, held)) > _HELD_BACK_MOST_BYTES:
                    raise _too_many_held_back(topic, len(held))
            else:
                held.discard(name)
                fitting.append((key, row))
        return fitting

    def _produce(
        self, topic: str, key: bytes, value: bytes | None, headers: Headers | None, delivered: OnDelivery
    ) -> None:
        """Produce a record, and wait while the producer's queue is full."""
        deadline = time.monotonic() + _COMMIT_SECONDS
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
            except BufferError:
                with translated(f"topic {topic}"):
                    self._producer.poll(_QUEUE_FULL_WAIT_SECONDS)
                if time.monotonic() > deadline:
                    raise kafka_error(KafkaError(KafkaError._TIMED_OUT), f"topic {topic}: queue full") from None
            except KafkaException as error:
                # librdkafka would commit the transaction without this record: a lost row with the cursor moved.
                raise self._refused(error.args[0], topic, key, value) from error
            else:
                return

    def _deliver(self, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + _COMMIT_SECONDS
        while self._undelivered() and self._failure is None:
            # A topic that was deleted librdkafka takes for one that will be there soon. A broker that does not answer
            # has until the deadline.
            with suppress(RetryableError):
                check()
            if time.monotonic() > deadline:
                raise kafka_error(KafkaError(KafkaError._TIMED_OUT), "Kafka, delivery")
        if self._failure is not None:
            raise self._failure

    def _undelivered(self) -> int:
        with translated("Kafka, delivery"):
            return self._producer.flush(_DELIVERY_LOOK_SECONDS)

    def _delivered_to(self, topic: str) -> OnDelivery:
        """Return a delivery report's handler, which runs once a record: it moves the topic's next offsets."""
        next_offsets = self._next_offsets.setdefault(topic, [0])

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                try:
                    next_offsets[message.partition()] = message.offset() + 1  # type: ignore[index, operator] # set by then
                except IndexError:
                    self._failure = CatalogChanged(f"topic {topic} has more partitions than the cursor knows of")
            elif self._failure is None:
                self._failure = self._refused(error, topic, message.key(), message.value())  # type: ignore[arg-type] # bytes

        return delivered

    def _refused(self, error: KafkaError, topic: str, key: bytes, value: bytes | None) -> Exception:
        if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
            return kafka_error(error, f"topic {topic}")
        if topic == self._cursor_topic:
            return _too_large_cursor(topic, self._capture, len(key) + len(value or b""))
        return _too_large(topic, key, value or b"")


def _headers(page: Page, op: Op) -> Headers:
    return [
        (OP_HEADER, op.encode()),
        (SOURCE_TIME_HEADER, str(page.read_at_ms).encode()),
        (TABLE_HEADER, str(page.table.name).encode()),
    ]


def _too_many_held_back(topic: str, rows: int) -> CaptureError:
    return CaptureError(
        f"topic {topic}: {rows} rows are too large, and the cursor has no room for the keys of more: raise "
        "VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES and the topic's max.message.bytes"
    )


def _too_large_cursor(topic: str, capture: str, size: int) -> CaptureError:
    return CaptureError(
        f"topic {topic}: the cursor of capture {capture} is {size} bytes, more than VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES "
        "and the topic's max.message.bytes allow; raise both, or attach some of its tables to another capture "
        "(VIEWKEEPER_CDC_NAME)"
    )


def _too_large(topic: str, key: bytes, row: bytes) -> CaptureError:
    return CaptureError(
        f"topic {topic}: the row with key {key.decode(errors='replace')[:200]} is {len(key) + len(row)} bytes, more "
        "than VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES and the topic's max.message.bytes allow; raise both, or shorten the "
        "row, or set VIEWKEEPER_CDC_ON_OVERSIZE_ROW=hold_back, which publishes the others"
    )
