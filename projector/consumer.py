"""The projector's edge to Kafka: batches of records with the position they end at."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import structlog
from confluent_kafka import Consumer, KafkaError, TopicPartition

from projector.changes import Partition, Record
from runtime.kafka import BrokerUnavailable, kafka_error, translated
from runtime.kafka import consumer as kafka_consumer
from runtime.settings import KafkaSettings

log = structlog.get_logger()

CLIENT_NAME = "viewkeeper-projector"
LINGER_SECONDS = 0.004
"""After the first record, how long to wait for what belongs with it: the partitions of one transaction arrive apart."""

NOT_OURS = 2**63
"""The position in a partition that is not assigned: no offset has reached it."""

OPTIONS = {
    # A killed instance's partitions are given away after so long; a paused one changes nothing when it wakes.
    "session.timeout.ms": 6_000,
    "heartbeat.interval.ms": 2_000,
    # What is fetched ahead: more is no faster, and each process holds it.
    "queued.max.messages.kbytes": 16_384,
    "fetch.max.bytes": 4_194_304,
}


@dataclass(slots=True)
class Batch:
    """Records, and where they end.

    `newest` holds, by topic and raw key, the last record of each key, `records` how many there were, by topic;
    `cursors` every record of the cursor topic in order. `started` and `ended` are the next offsets of all assigned
    partitions before and after it. `times_ms` has the time of the last record of each partition, in milliseconds since
    1970, where it has one. `messages` is all that was consumed, events and what was passed over included.
    """

    started: dict[Partition, int]
    ended: dict[Partition, int] = field(default_factory=dict)
    newest: dict[str, dict[bytes | None, Record]] = field(default_factory=dict)
    cursors: list[Record] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    times_ms: dict[Partition, int] = field(default_factory=dict)
    messages: Sequence[Record] = ()

    def history(self) -> Iterator[Record]:
        """Return every record of the changelog topics, oldest first, and not only the newest of each key."""
        for record in self.messages:
            if record.error() is None and record.topic() in self.newest:
                start = self.started.get((record.topic(), record.partition()), NOT_OURS)
                if record.offset() >= start:
                    yield record


class ChangelogConsumer:
    """Reads changelog topics and the cursor topic from given offsets."""

    def __init__(
        self, client: Consumer, *, cursor_topic: str, start_at: Callable[[], dict[Partition, int]], where: str
    ) -> None:
        self._client = client
        self._cursor_topic = cursor_topic
        self._start_at = start_at
        self._where = where
        self._positions: dict[Partition, int] = {}
        self._at_end: set[Partition] = set()
        self._first_ends: dict[Partition, int] = {}
        self._assigned = False
        self._assignments = 0
        self._topics: frozenset[str] = frozenset()

    @property
    def caught_up(self) -> bool:
        """Whether the end of every assigned partition has been seen, or passed as it was when first heard of."""
        return bool(self._positions) and self._at_end.issuperset(self._positions)

    @property
    def spare(self) -> bool:
        """Whether the group has given this instance no partition: there are more instances than partitions."""
        return self._assigned and not self._positions

    def next_batch(self, max_records: int, *, timeout_seconds: float) -> Batch:
        """Wait for a record, then return what is there, at most `max_records`; empty after `timeout_seconds`."""
        with translated(self._where):
            messages = self._client.consume(1, timeout=timeout_seconds)
            if messages and max_records > 1:
                assignments = self._assignments
                messages += self._client.consume(max_records - 1, timeout=LINGER_SECONDS)
                if assignments != self._assignments:
                    # Nobody knows which of these were read before the partitions were given anew, nor whether what
                    # lies between them is still to come: none is applied, all come again from the stored offsets.
                    messages = []
                    self.rewind()
        return self._batch(cast(Sequence[Record], messages))

    def rewind(self) -> None:
        """Go to the stored offsets again in all assigned partitions."""
        with translated(self._where):
            self._assign(self._client, self._client.assignment())

    def lag_records(self) -> dict[Partition, int]:
        """Return how many offsets lie between the position and the end of each partition, as last heard."""
        lag = {}
        for (topic, partition), position in self._positions.items():
            _, high = self._client.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            lag[topic, partition] = max(0, high - position)
        return lag

    def read(self, topics: Sequence[str]) -> None:
        """Go on with these topics, from where `start_at` now says, without leaving the group."""
        # At once: what was fetched may lie beyond what a version that is new here needs.
        if set(topics) != self._topics:
            with translated(self._where):
                self._revoke(self._client, self._client.assignment())
            self.subscribe(topics)
        elif self._assigned:
            self.rewind()

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group; offsets come from `start_at` whenever partitions are given to this instance."""
        self._topics = frozenset(topics)
        with translated(self._where):
            self._client.subscribe(list(topics), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)

    def _batch(self, records: Sequence[Record]) -> Batch:
        batch = Batch(started=self._positions.copy(), messages=records)
        newest, counts, positions = batch.newest, batch.records, self._positions
        for record in records:
            event = record.error()
            if event is not None:
                self._note_event(record, event)
                continue
            topic, offset = record.topic(), record.offset()
            place = topic, record.partition()
            # None of a partition that is not this instance's, and none twice.
            if offset < positions.get(place, NOT_OURS):
                continue
            positions[place] = offset + 1
            if topic == self._cursor_topic:
                batch.cursors.append(record)
                continue
            try:
                newest[topic][record.key()] = record
                counts[topic] += 1
            except KeyError:
                newest[topic] = {record.key(): record}
                counts[topic] = 1
        self._note_passed_ends()
        batch.ended = positions.copy()
        batch.times_ms = _last_times_ms(batch)
        return batch

    def _note_passed_ends(self) -> None:
        # Where something is written all the time no fetch comes back empty, and none says that it was the end.
        for place in self._positions.keys() - self._at_end:
            if place not in self._first_ends:
                _, high = self._client.get_watermark_offsets(TopicPartition(*place), cached=True)
                if high < 0:
                    continue
                self._first_ends[place] = high
            if self._positions[place] >= self._first_ends[place]:
                self._at_end.add(place)

    def _note_event(self, record: Record, event: KafkaError) -> None:
        if event.code() != KafkaError._PARTITION_EOF:
            raise kafka_error(event, f"{self._where}, topic {record.topic()}")
        # The position at the end: past markers and aborted records, which are never handed out.
        place = record.topic(), record.partition()
        if record.offset() >= self._positions.get(place, NOT_OURS):
            self._positions[place] = record.offset()
            self._at_end.add(place)

    def _assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        start_at = self._start_at()
        places = [(at.topic, at.partition) for at in partitions]
        for topic, partition in set(places).difference(start_at):
            raise BrokerUnavailable(f"{self._where}: topic {topic} has a new partition, {partition}; starting again")
        self._positions = {place: start_at[place] for place in places}
        self._at_end = set()
        self._first_ends = {}
        self._assigned = True
        self._assignments += 1
        client.assign([TopicPartition(topic, number, at) for (topic, number), at in self._positions.items()])
        log.info("assigned", partitions=len(partitions))

    def _revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("revoked", partitions=len(partitions))
        self._positions = {}
        self._at_end = set()
        self._first_ends = {}
        self._assigned = False
        self._assignments += 1
        client.unassign()


def _last_times_ms(batch: Batch) -> dict[Partition, int]:
    # From the end: as a rule a few records are enough.
    now_ms = int(time.time() * 1000)
    moved = {place for place, end in batch.ended.items() if end > batch.started.get(place, end)}
    times_ms: dict[Partition, int] = {}
    for record in reversed(batch.messages):
        if not moved:
            break
        place = record.topic(), record.partition()
        if place in moved and record.error() is None:
            moved.remove(place)
            kind, milliseconds = record.timestamp()
            if kind and milliseconds >= 0:
                # A writer may put any time there: none is later than when it was read.
                times_ms[place] = min(milliseconds, now_ms)
    return times_ms


@contextmanager
def open_consumer(
    settings: KafkaSettings, *, group: str, cursor_topic: str, start_at: Callable[[], dict[Partition, int]]
) -> Iterator[ChangelogConsumer]:
    """Open a consumer of the projector's group; leave the group and close it at the end."""
    client = kafka_consumer(settings, group=group, name=CLIENT_NAME, options=OPTIONS)
    try:
        yield ChangelogConsumer(
            client,
            cursor_topic=cursor_topic,
            start_at=start_at,
            where=f"Kafka {settings.kafka_bootstrap_servers}",
        )
    finally:
        client.close()
