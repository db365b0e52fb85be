"""Producing a history with the wire contract of capture: compacted topics, one transaction after another, a cursor."""

from collections.abc import Iterable
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import NewTopic

from cdc.cursor import Cursor, TableCursor, Watermark
from cdc.wire import OP_HEADER, SOURCE_TIME_HEADER, TABLE_HEADER, TableName, cursor_topic_name, topic_name
from runtime.kafka import producer
from runtime.settings import KafkaSettings
from tests.bench.errors import BenchError
from tests.bench.history import Event
from tests.bench.topics import PARTITIONS, admin_client, create_changelog_topics

TRANSACTION_RECORDS = 20_000
CAPTURE = "bench"
REQUEST_SECONDS = 30.0
TABLES = ("users", "tweets", "follows", "likes")


def table_topic(prefix: str, table: str) -> str:
    """Return the topic of one of the demo's tables."""
    return topic_name(prefix, TableName("public", table))


def create_topics(bootstrap_servers: str, prefix: str) -> None:
    """Create the four changelog topics and the cursor's."""
    client = admin_client(bootstrap_servers)
    create_changelog_topics(client, [table_topic(prefix, table) for table in TABLES])
    cursor = NewTopic(cursor_topic_name(prefix), 1, 1, config={"cleanup.policy": "compact"})
    client.create_topics([cursor], request_timeout=REQUEST_SECONDS)[cursor.topic].result()


class HistoryProducer:
    """Produces events as a capture does, and knows the next offset of each partition from the delivery reports."""

    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        settings = KafkaSettings.model_validate({"kafka_bootstrap_servers": bootstrap_servers, "topic_prefix": prefix})
        self._prefix = prefix
        self._producer: Producer = producer(settings, transactional_id=f"{prefix}-bench", name="viewkeeper-bench")
        self._topics = {table: table_topic(prefix, table) for table in TABLES}
        self._next_offsets = {topic: [0] * PARTITIONS for topic in self._topics.values()}
        self._failure: KafkaError | None = None
        self._producer.init_transactions(REQUEST_SECONDS)

    def produce(self, events: Iterable[Event]) -> datetime:
        """Produce all events and, last, a cursor record that covers all so far; return its watermark's time."""
        self._producer.begin_transaction()
        for number, event in enumerate(events, start=1):
            self._send(self._topics[event.table], event.key, event.value, _headers(event))
            if number % TRANSACTION_RECORDS == 0:
                self._commit()
                self._producer.begin_transaction()
        self._deliver()
        time = datetime.now(UTC)
        self._send(cursor_topic_name(self._prefix), CAPTURE.encode(), self._cursor(time).encode(), [])
        self._commit()
        return time

    def _send(self, topic: str, key: bytes, value: bytes | None, headers: list[tuple[str, str | bytes | None]]) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def _commit(self) -> None:
        self._deliver()
        self._producer.commit_transaction(REQUEST_SECONDS)

    def _deliver(self) -> None:
        left = self._producer.flush(REQUEST_SECONDS)
        if left or self._failure is not None:
            raise BenchError(f"the history could not be produced: {self._failure or f'{left} records in the queue'}")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = error
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic in self._next_offsets and partition is not None and offset is not None:
            self._next_offsets[topic][partition] = offset + 1

    def _cursor(self, time: datetime) -> Cursor:
        return Cursor(
            capture=CAPTURE,
            token="bench",
            tables={f"public.{table}": self._table_cursor(topic, time) for table, topic in self._topics.items()},
        )

    def _table_cursor(self, topic: str, time: datetime) -> TableCursor:
        next_offsets = tuple(self._next_offsets[topic])
        return TableCursor(
            topic=topic,
            attachment=1,
            position="1000:1000:",
            complete=True,
            next_offsets=next_offsets,
            watermark=Watermark(time=time, next_offsets=next_offsets),
        )


def _headers(event: Event) -> list[tuple[str, str | bytes | None]]:
    return [(OP_HEADER, event.op), (SOURCE_TIME_HEADER, b"1767225600000"), (TABLE_HEADER, f"public.{event.table}")]
