"""An instance of the projector that is given and takes its partitions, reads, applies and dies when it is told to."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.decoding import JsonDecoding
from cdc.wire import cursor_topic_name
from projector.changes import Partition
from projector.consumer import Batch, ChangelogConsumer
from projector.daemon import SESSION_SETTINGS
from projector.definition import View
from projector.kept import KeptView, apply_batch, resume, start_offsets
from projector.registry import ViewVersion
from projector.topics import Topic, describe_topics
from runtime.postgres import connect
from runtime.settings import ProjectorSettings

READ_SECONDS = 0.1
READS = 10


class GivenConsumer(Consumer):
    """A consumer without a group: what the group's callbacks would do is done when a test says so."""

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:  # type: ignore[override] # one of its forms
        del topics
        self._given, self._taken = callbacks["on_assign"], callbacks["on_revoke"]

    def give(self, places: Iterable[Partition]) -> None:
        """Be assigned these partitions, and no others."""
        self._given(self, [TopicPartition(*place) for place in places])

    def take(self) -> None:
        """Lose all partitions."""
        self._taken(self, self.assignment())


@dataclass
class Fate:
    """How many statements a session has left; then the server ends it, before the next one."""

    statements: int | None = None

    def meet(self, connection: psycopg.Connection[Any]) -> None:
        """Count a statement of the connection's."""
        if self.statements is None:
            return
        self.statements -= 1
        if self.statements < 0:
            with psycopg.connect(connection.info.dsn, autocommit=True) as session:
                session.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])


def mortal(fate: Fate) -> type[psycopg.Cursor[Any]]:
    """Return the cursors of a session that has this fate."""

    class MortalCursor(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **named: Any) -> "MortalCursor":
            fate.meet(self.connection)
            return super().execute(*arguments, **named)

        def copy(self, *arguments: Any, **named: Any) -> Any:
            fate.meet(self.connection)
            return super().copy(*arguments, **named)

    return MortalCursor


class Instance:
    """The daemon's own parts over a session and a consumer of their own; raises as they do when the session ends."""

    def __init__(self, settings: ProjectorSettings, view: View, client: AdminClient) -> None:
        self.fate = Fate()
        self._connection = connect(settings.view_url, name="by-hand", settings=SESSION_SETTINGS)
        self._connection.cursor_factory = mortal(self.fate)
        self._kept = KeptView(ViewVersion(view, 1), settings.topic_prefix, JsonDecoding())
        self._admin = client
        self._cursor_topic = cursor_topic_name(settings.topic_prefix)
        resume(self._connection, [self._kept], self._describe)
        self._client = GivenConsumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "group.id": f"{settings.topic_prefix}-by-hand",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        self._consumer = ChangelogConsumer(
            self._client,
            cursor_topic=self._cursor_topic,
            start_at=lambda: start_offsets(self._connection, [self._kept]),
            where="the test's broker",
        )
        self._consumer.subscribe(sorted(self._kept.topics))
        self._batch: Batch | None = None

    def give(self, places: Iterable[Partition]) -> None:
        """Apply what was read, then be assigned these partitions: a consumer hears of it when it reads again."""
        self.apply()
        self._client.give(places)

    def take(self) -> None:
        """Apply what was read, then lose all partitions."""
        self.apply()
        self._client.take()

    def read(self, max_records: int) -> None:
        """Read a batch, unless one is at hand; a first fetch may take a moment."""
        if self._batch is not None:
            return
        for _ in range(READS):
            self._batch = self._consumer.next_batch(max_records, timeout_seconds=READ_SECONDS)
            if self._batch.records or self._batch.cursors or self._consumer.caught_up or self._consumer.spare:
                break

    def apply(self) -> bool:
        """Apply the batch at hand and return whether it was; if others were here, go to what is stored."""
        batch, self._batch = self._batch, None
        if batch is None:
            return True
        applied = apply_batch(self._connection, [self._kept], batch)
        if not applied:
            self._consumer.rewind()
        return applied

    def is_at_end(self) -> bool:
        """Return whether the stored offsets, as this instance has them, are the topics' ends as they are now."""
        ends = {
            (topic.name, partition): end
            for topic in self._describe().values()
            for partition, end in enumerate(topic.high)
            if topic.name != self._cursor_topic
        }
        return all(self._kept.stored.get(place, -1) >= end for place, end in ends.items())

    def _describe(self) -> dict[str, Topic]:
        return describe_topics(self._admin, self._kept.topics, where="the test's broker")

    def end(self) -> None:
        """End as a crash would: what was not committed is gone."""
        self._connection.close()
        self._client.close()


def apply_at_once(instances: Iterable[Instance]) -> None:
    """Have several apply what they have read, each in a thread of its own."""
    failures: list[BaseException] = []

    def apply(instance: Instance) -> None:
        try:
            instance.apply()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=apply, args=(instance,)) for instance in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
