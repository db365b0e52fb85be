"""Publishing: pages of changes, then the cursor that covers them, in one Kafka transaction."""

import time
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from cdc import metrics
from cdc.change import Op, Page
from cdc.cursor import Cursor
from cdc.errors import CaptureError
from cdc.wire import OP_HEADER, SOURCE_TIME_HEADER, TABLE_HEADER, cursor_topic_name, topic_name
from runtime.kafka import REQUEST_SECONDS, TRANSACTION_TIMEOUT_SECONDS, kafka_error, translated

Headers = list[tuple[str, str | bytes | None]]

_QUEUE_FULL_WAIT_SECONDS = 0.1
_COMMIT_SECONDS = 30.0


class Publisher:
    """One leader's transactional producer, with the next offset of each partition that it writes.

    After any error of the producer throw the whole publisher away: the next one's `init_transactions` ends what is
    open, and the cursor is read back.
    """

    def __init__(self, producer: Producer, *, prefix: str, capture: str) -> None:
        self._producer = producer
        self._prefix = prefix
        self._capture = capture
        self._cursor_topic = cursor_topic_name(prefix)
        self._next_offsets: dict[str, list[int]] = {}
        self._failure: Exception | None = None
        self._open = False
        self.records = 0

    def know(self, topic: str, next_offsets: tuple[int, ...]) -> None:
        """Take over the next offsets of a topic from the cursor."""
        self._next_offsets[topic] = list(next_offsets)

    def next_offsets(self, topic: str) -> tuple[int, ...]:
        """Return a topic's next offsets: those that it had, moved by the delivery reports since."""
        return tuple(self._next_offsets[topic])

    def publish(self, page: Page) -> None:
        """Add a page to the open Kafka transaction, which is begun if there is none.

        Raises CaptureError for a record that is larger than the producer or the broker takes.
        """
        self._begin()
        topic = topic_name(self._prefix, page.table)
        headers = _headers(page, page.op)
        deleted = _headers(page, Op.DELETE)
        for key, row in page.changes:
            self._produce(topic, key, row, headers if row is not None else deleted)
        self.records += len(page.changes)
        self._producer.poll(0)
        metrics.CHANGES_PUBLISHED.labels(str(page.table)).inc(len(page.changes))

    def commit(self, flush: Callable[[], str], cursor: Callable[[str], Cursor] | None) -> None:
        """Commit the open transaction, after `flush` has flushed the source; its token goes into the cursor.

        `cursor` makes the cursor record, once the offsets of everything before it are known; it is produced last.
        Without it the transaction covers a part of a round only.
        """
        self._begin()
        # The source flushes while the broker takes the records.
        token = flush()
        if cursor is not None:
            self._deliver()
            record = cursor(token).encode()
            self._produce(self._cursor_topic, self._capture.encode(), record, None)
        self._deliver()
        with translated("Kafka, commit of a transaction"):
            self._producer.commit_transaction(_COMMIT_SECONDS)
        self._open = False
        self.records = 0

    def abort(self) -> None:
        """Abort the open transaction, if there is one."""
        if self._open:
            with translated("Kafka, abort of a transaction"):
                self._producer.abort_transaction(REQUEST_SECONDS)
            self._open = False

    def _begin(self) -> None:
        if not self._open:
            with translated("Kafka, begin of a transaction"):
                self._producer.begin_transaction()
            self._open = True

    def _produce(self, topic: str, key: bytes, value: bytes | None, headers: Headers | None) -> None:
        deadline = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(_QUEUE_FULL_WAIT_SECONDS)
                if time.monotonic() > deadline:
                    raise kafka_error(KafkaError(KafkaError._TIMED_OUT), f"topic {topic}: queue full") from None
            except KafkaException as error:
                # librdkafka would commit the transaction without this record: a lost row with the cursor moved.
                raise _refused(error.args[0], topic, key, value) from error
            else:
                return

    def _deliver(self) -> None:
        if self._producer.flush(_COMMIT_SECONDS) and self._failure is None:
            raise kafka_error(KafkaError(KafkaError._TIMED_OUT), "Kafka, delivery")
        if self._failure is not None:
            raise self._failure

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            key, value = message.key(), message.value()
            self._failure = self._failure or _refused(
                error,
                str(message.topic()),
                key if isinstance(key, bytes) else b"",
                value if isinstance(value, bytes) else None,
            )
            return
        next_offsets = self._next_offsets.get(message.topic())  # type: ignore[arg-type] # set once delivered
        if next_offsets is not None:
            next_offsets[message.partition()] = message.offset() + 1  # type: ignore[index, operator] # as above


def _headers(page: Page, op: Op) -> Headers:
    return [
        (OP_HEADER, op.encode()),
        (SOURCE_TIME_HEADER, str(page.read_at_ms).encode()),
        (TABLE_HEADER, str(page.table).encode()),
    ]


def _refused(error: KafkaError, topic: str, key: bytes, value: bytes | None) -> Exception:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        size_bytes = len(key) + len(value or b"")
        return CaptureError(
            f"topic {topic}: the row with key {key.decode(errors='replace')[:200]} is {size_bytes} bytes, more than "
            "VIEWKEEPER_KAFKA_MESSAGE_MAX_BYTES and the topic's max.message.bytes allow; raise both, or shorten the row"
        )
    return kafka_error(error, f"topic {topic}")
