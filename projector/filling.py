"""Applying topics to some versions of a view from a process of one's own, beside `run`: a rebuild's filling."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient
from psycopg import Connection

from cdc.decodings import open_decoding
from cdc.wire import cursor_topic_name, topic_name
from projector.changes import Partition
from projector.consumer import CLIENT_NAME, ChangelogConsumer, open_consumer
from projector.definition import View
from projector.errors import Refused
from projector.kept import KeptView, apply_batch, estimate, resume, start_offsets
from projector.lenient import leniency
from projector.offsets import Offsets
from projector.registry import ViewVersion, database_id
from projector.topics import Topic, describe_topics, filling_advice, keys_moved
from runtime.errors import ConfigurationError
from runtime.kafka import LostHistory, admin, check_reachable
from runtime.settings import ProjectorSettings

POLL_SECONDS = 0.25
ESTIMATE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far versions are filled: `records` applied since this process began, `lag_records` offsets to go.

    `seconds_left` is None until there is a rate.
    """

    records: int
    records_per_second: float
    lag_records: int
    seconds_left: float | None


class Filling:
    """Applies batches to some versions, all in one transaction, from the offsets that are stored."""

    def __init__(
        self,
        connection: Connection,
        consumer: ChangelogConsumer,
        kept: Sequence[KeptView],
        batch_records: int,
        describe: Callable[[], Mapping[str, Topic]],
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._kept = kept
        self._batch_records = batch_records
        self._describe = describe
        self._began = self._estimated = time.monotonic()
        self._records = 0
        self._offsets = 0

    @property
    def caught_up(self) -> bool:
        """Whether the end of every partition has been seen, and all up to there is applied."""
        return self._consumer.caught_up

    def step(self) -> Progress:
        """Read a batch and apply it; raises BadRecord for one that cannot be applied."""
        if time.monotonic() - self._estimated > ESTIMATE_SECONDS:
            estimate(self._connection, self._kept, self._describe)
            self._estimated = time.monotonic()
        batch = self._consumer.next_batch(self._batch_records, timeout_seconds=POLL_SECONDS)
        if apply_batch(self._connection, self._kept, batch):
            self._records += sum(batch.records.values())
            self._offsets += _moved(batch.started, batch.ended)
        else:
            self._consumer.rewind()
        return self._progress()

    def look_again(self) -> None:
        """Be caught up no more until each partition's end, which may have moved, is seen again."""
        self._consumer.rewind()

    def _progress(self) -> Progress:
        seconds = time.monotonic() - self._began
        lag = sum(self._consumer.lag_records().values())
        # Left are offsets, which markers and what compaction took away count in.
        left = lag * seconds / self._offsets if self._offsets else None
        return Progress(self._records, self._records / seconds if seconds else 0.0, lag, left)


@contextmanager
def open_filling(
    settings: ProjectorSettings, connection: Connection, versions: Sequence[ViewVersion], *, group: str
) -> Iterator[Filling]:
    """Open what applies topics to these versions, which are in the order in which all instances write to them.

    Raises Refused when a topic is missing, LostHistory when a version cannot go on from its stored offsets.
    """
    client = admin(settings, name=CLIENT_NAME)
    check_reachable(client, settings)
    with open_decoding(settings) as decoding:
        kept = [KeptView(version, settings.topic_prefix, decoding, leniency(settings)) for version in versions]
        tables = frozenset[str]().union(*(view.changelog_topics for view in kept))
        cursor_topic = cursor_topic_name(settings.topic_prefix)
        found = _describe(client, settings, sorted({*tables, cursor_topic}))
        _demand(tables, found)
        # A cursor's topic that comes later is read by the next command, or by `run`.
        names = sorted(found)

        def start_at() -> dict[Partition, int]:
            return start_offsets(connection, kept)

        def describe() -> dict[str, Topic]:
            return _describe(client, settings, names)

        resume(connection, kept, describe)
        with open_consumer(settings, group=group, cursor_topic=cursor_topic, start_at=start_at) as consumer:
            consumer.subscribe(names)
            yield Filling(connection, consumer, kept, settings.projector_batch_records, describe)


def why_stuck(settings: ProjectorSettings, connection: Connection, version: ViewVersion) -> str | None:
    """Return why a version cannot go on from its stored offsets, None if it can."""
    with open_decoding(settings) as decoding:
        kept = KeptView(version, settings.topic_prefix, decoding, leniency(settings))
        stored = kept.stored_offsets(connection)
        topics = _describe(admin(settings, name=CLIENT_NAME), settings, sorted(kept.topics))
        missing = sorted(kept.changelog_topics.difference(topics))
        if missing:
            return f"topic {missing[0]} is missing"
        try:
            kept.check(stored, topics)
            kept.check_outage(stored, topics)
        except (LostHistory, ConfigurationError) as error:
            return str(error)
    return None


def demand_unmoved(settings: ProjectorSettings, connection: Connection, version: ViewVersion, view: View) -> None:
    """Raise Refused where a topic of `view` has got partitions since this version was kept from it.

    Read from its beginning, the older one of a key's records could come last.
    """
    stored = Offsets(version.view.name, version.version).read(connection)
    names = {topic_name(settings.topic_prefix, table) for table in view.source_tables}
    topics = _describe(
        admin(settings, name=CLIENT_NAME), settings, sorted(names.intersection(at.topic for at in stored))
    )
    for topic in topics.values():
        moved = keys_moved(topic, stored)
        if moved:
            raise Refused(
                f"topic {topic.name}: {moved}, so that nothing right can be built from it. Delete it, have it made and "
                f"filled again ({filling_advice(topic.name)}), and run this command again"
            )


def filling_group(settings: ProjectorSettings, connection: Connection, view: str) -> str:
    """Return the consumer group of a view's rebuild; one of its own, since it needs all records."""
    group = settings.projector_group or f"{settings.topic_prefix}.projector.{database_id(connection)}"
    return f"{group}.rebuild.{view}"


def _demand(names: Iterable[str], topics: dict[str, Topic]) -> None:
    missing = sorted(set(names).difference(topics))
    if missing:
        raise Refused(
            f"topics are missing: {', '.join(missing)}. The capture makes them: is viewkeeper-cdc attached to these "
            "tables and running, with the same VIEWKEEPER_TOPIC_PREFIX?"
        )


def _describe(client: AdminClient, settings: ProjectorSettings, names: Sequence[str]) -> dict[str, Topic]:
    return describe_topics(client, names, where=f"Kafka {settings.kafka_bootstrap_servers}")


def _moved(started: dict[Partition, int], ended: dict[Partition, int]) -> int:
    return sum(end - started.get(place, end) for place, end in ended.items())
