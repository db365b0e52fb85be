"""The consumer of the views' own topics: it tells the streams which rows have changed."""

import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import SystemRandom

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from api.keys import Key
from api.metrics import STREAM_CHANGES
from api.streams import Streams
from cdc.decoding import Decoding
from cdc.decodings import open_decoding
from cdc.wire import TableName, topic_name
from projector.definition import ColumnType, View
from runtime.errors import ViewkeeperError
from runtime.kafka import KafkaErrors, consumer, kafka_error, translated
from runtime.settings import KafkaSettings

log = structlog.get_logger()

CLIENT_NAME = "viewkeeper-api"
POLL_SECONDS = 0.2
"""So often a quiet consumer looks whether it is to stop, and which views have streams."""
RECORDS_AT_ONCE = 1_000
REQUEST_SECONDS = 2.0
LOOK_SECONDS = 5.0
"""So often the topics themselves are looked at: they come, and get partitions."""
BACKOFF_CAP_SECONDS = 2.0

_OPTIONS: Mapping[str, object] = {
    "enable.partition.eof": False,
    # Little is fetched ahead: of a record only its key is used.
    "queued.max.messages.kbytes": 4_096,
    "fetch.max.bytes": 1_048_576,
}
_INTEGERS = {ColumnType.BIGINT, ColumnType.INTEGER}
# What decoding raises: msgspec's errors are ValueErrors, JSON may be nested deeper than the interpreter reads.
_UNREADABLE = (ValueError, RecursionError)

_random = SystemRandom()


class Changes:
    """Follows views' topics from their ends on, for the streams of a loop.

    Raises ConfigurationError for settings that are none of Kafka's.
    """

    def __init__(self, settings: KafkaSettings, views: Sequence[View], loop: AbstractEventLoop) -> None:
        self._settings = settings
        self._views = views
        self._loop = loop
        self._where = f"Kafka {settings.kafka_bootstrap_servers}"
        # A wrong option is to be told at the start, and not with the first stream.
        consumer(settings, group=CLIENT_NAME, name=CLIENT_NAME, options=_OPTIONS).close()

    def follow(self, streams: Streams, stop: threading.Event) -> None:
        """Tell `streams` of changed rows until told to stop.

        An error is logged, and all begins again after a pause: streams live on without it.
        """
        attempt = 0
        while not stop.is_set():
            began_at = time.monotonic()
            try:
                with self._consumer(streams) as following:
                    following.run(stop)
            except ViewkeeperError as error:
                attempt = 1 if time.monotonic() - began_at > LOOK_SECONDS else attempt + 1
                wait_seconds = min(BACKOFF_CAP_SECONDS, 0.1 * 2 ** min(attempt, 10)) * _random.uniform(0.5, 1)
                log.warning("retrying", reason=str(error), attempt=attempt, in_seconds=round(wait_seconds, 2))
                stop.wait(wait_seconds)

    @contextmanager
    def _consumer(self, streams: Streams) -> Iterator["_Following"]:
        with open_decoding(self._settings) as decoding:
            topics = {
                topic_name(self._settings.topic_prefix, TableName(view.schema, view.name)): (
                    view.name,
                    _key_reader(view, decoding),
                )
                for view in self._views
            }
            following = _Following(topics, streams, self._loop, self._where)
            options = {**_OPTIONS, "error_cb": following.note}
            client = consumer(self._settings, group=CLIENT_NAME, name=CLIENT_NAME, options=options)
            try:
                following.client = client
                yield following
            finally:
                client.close()


class _Following:
    """One consumer's life: from one place in each partition on, without a gap, or from the ends again."""

    client: Consumer

    def __init__(
        self,
        topics: Mapping[str, tuple[str, Callable[[bytes], Key]]],
        streams: Streams,
        loop: AbstractEventLoop,
        where: str,
    ) -> None:
        self._topics = topics
        self._streams = streams
        self._loop = loop
        self._where = where
        self._view_names: frozenset[str] = frozenset()
        self._partitions: dict[str, int] | None = None
        self._is_lost = False
        self._errors = KafkaErrors()

    def note(self, error: KafkaError) -> None:
        """Take note of what librdkafka tells beside the records."""
        self._errors(error)
        # It goes on by itself; but a broker that was killed may have lost records, and given their offsets to others.
        self._is_lost |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def run(self, stop: threading.Event) -> None:
        """Follow until told to stop; raises what Kafka's and the registry's errors are translated to."""
        look_at = 0.0
        with translated(self._where):
            while not stop.is_set():
                view_names = self._streams.view_names
                if self._is_lost or time.monotonic() >= look_at or not view_names <= self._view_names:
                    self._look(view_names)
                    look_at = time.monotonic() + LOOK_SECONDS
                messages = self.client.consume(1, timeout=POLL_SECONDS)
                if messages:
                    messages += self.client.consume(RECORDS_AT_ONCE - 1, timeout=0)
                    self._tell(messages)

    def _look(self, view_names: frozenset[str]) -> None:
        """Look at the topics of views; begin at their ends if they are not as before, or may have lost some."""
        self._view_names = view_names
        partitions = {
            topic: count
            for topic, (view_name, _) in self._topics.items()
            if view_name in view_names and (count := self._partition_count(topic))
        }
        if partitions == self._partitions and not self._is_lost:
            return
        self._is_lost = False
        places = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
        for place in places:
            _, place.offset = self.client.get_watermark_offsets(place, timeout=REQUEST_SECONDS)
        self.client.assign(places)
        self._partitions = partitions
        # What came before those ends was committed in the store before: it is in what is read from now on.
        self._loop.call_soon_threadsafe(self._streams.lost, view_names)
        log.info("streams_follow", topics=sorted(partitions), partitions=len(places))

    def _partition_count(self, topic: str) -> int:
        """Return how many partitions a topic has, 0 while it is not there."""
        found = self.client.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise kafka_error(found.error, f"{self._where}, topic {topic}")
        return len(found.partitions)

    def _tell(self, messages: Sequence[Message]) -> None:
        changed: set[tuple[str, Key]] = set()
        for message in messages:
            topic, error = message.topic(), message.error()
            if error is not None:
                raise kafka_error(error, f"{self._where}, topic {topic}")
            view_name, read_key = self._topics[topic or ""]
            try:
                name = view_name, read_key(message.key() or b"")
            except _UNREADABLE as unreadable:
                log.warning("key_unreadable", topic=topic, offset=message.offset(), reason=str(unreadable))
                self._loop.call_soon_threadsafe(self._streams.lost, [view_name])
                continue
            if self._streams.watches(*name):
                STREAM_CHANGES.inc()
                changed.add(name)
        if changed:
            self._loop.call_soon_threadsafe(self._streams.changed, changed)


def _key_reader(view: View, decoding: Decoding) -> Callable[[bytes], Key]:
    """Return what reads a record's key into its columns' canonical spellings; it raises _UNREADABLE."""
    fields = [(column.name, int if column.type in _INTEGERS else str) for column in view.key_columns]
    read = decoding.reader(msgspec.defstruct("Key", fields))
    return lambda raw: tuple(map(str, msgspec.structs.astuple(read(raw))))
