"""The projector driven by hand: the daemon's own parts, one batch at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from cdc.decodings import open_decoding
from cdc.wire import cursor_topic_name
from projector.changes import Partition
from projector.consumer import Batch, ChangelogConsumer, open_consumer
from projector.daemon import SESSION_SETTINGS
from projector.definition import View
from projector.kept import KeptView, apply_batch, estimate, resume, start_offsets
from projector.lenient import leniency
from projector.registry import kept_versions
from projector.topics import Topic, describe_topics
from runtime.kafka import admin
from runtime.postgres import connect
from runtime.settings import ProjectorSettings, read_settings
from tests.waiting import wait_until
from views.user_information import user_information

STEP_SECONDS = 0.5


def projector_settings(settings: Mapping[str, str]) -> ProjectorSettings:
    """Read the projector's settings from a test's."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        return read_settings(ProjectorSettings)


class Steps:
    """A projector that takes a step when it is told to."""

    def __init__(
        self,
        connection: psycopg.Connection,
        consumer: ChangelogConsumer,
        kept: Sequence[KeptView],
        describe: Callable[[], dict[str, Topic]],
    ) -> None:
        self.connection = connection
        self.consumer = consumer
        self.kept = kept
        self.describe = describe

    def step(self, max_records: int = 10_000) -> bool:
        """Read a batch and apply it; return whether it was applied."""
        return apply_batch(self.connection, self.kept, self.read(max_records))

    def read(self, max_records: int = 10_000) -> Batch:
        """Read a batch without applying it."""
        return self.consumer.next_batch(max_records, timeout_seconds=STEP_SECONDS)

    def estimate(self) -> None:
        """Estimate how far topics without a cursor are applied, then take a step, which stores it."""
        estimate(self.connection, self.kept, self.describe)
        self.step()

    def catch_up(self, max_records: int = 10_000) -> None:
        """Apply all that the topics hold now, the ends of their transactions included."""
        # Such an end may be written after the commit returned, and is there for sure once its records were read.
        reached = self._apply_to(self._ends(), {}, max_records)
        self._apply_to(self._ends(), reached, max_records)

    def _ends(self) -> dict[Partition, int]:
        return {
            (topic.name, partition): end
            for topic in self.describe().values()
            for partition, end in enumerate(topic.high)
        }

    def _apply_to(
        self, ends: Mapping[Partition, int], reached: Mapping[Partition, int], max_records: int
    ) -> Mapping[Partition, int]:
        """Apply batches until these `ends` are `reached`; return what then is."""

        def is_applied() -> bool:
            return all(reached.get(place, -1) >= end for place, end in ends.items())

        def is_applied_after_a_batch() -> bool:
            nonlocal reached
            batch = self.read(max_records)
            if apply_batch(self.connection, self.kept, batch):
                reached = batch.ended
            else:
                reached = {}
                self.consumer.rewind()
            return is_applied()

        if not is_applied():
            wait_until(is_applied_after_a_batch, what="the projector to catch up")
        return reached


@contextmanager
def projector_steps(
    settings: ProjectorSettings, *, group: str | None = None, views: Sequence[View] = (user_information,)
) -> Iterator[Steps]:
    """Open a projector in a group of its own, so that two can read the same partitions, as a zombie would."""
    with (
        connect(settings.view_url, name="steps", settings=SESSION_SETTINGS) as connection,
        open_decoding(settings) as decoding,
    ):
        kept = [
            KeptView(one.kept, settings.topic_prefix, decoding, leniency(settings))
            for one in kept_versions(connection, views, where="the test's database")
        ]
        names = sorted({name for view in kept for name in view.topics})
        client = admin(settings, name="steps")

        def describe() -> dict[str, Topic]:
            return describe_topics(client, names, where="the test's broker")

        resume(connection, kept, describe)
        with open_consumer(
            settings,
            group=group or f"{settings.topic_prefix}-{uuid4().hex[:8]}",
            cursor_topic=cursor_topic_name(settings.topic_prefix),
            start_at=lambda: start_offsets(connection, kept),
        ) as consumer:
            consumer.subscribe(names)
            yield Steps(connection, consumer, kept, describe)


def shown(view_url: str) -> dict[int, dict[str, Any]]:
    """Return the rows that readers of user_information see, by key."""
    return _rows(view_url, "SELECT * FROM user_information")


def physical(view_url: str) -> dict[int, dict[str, Any]]:
    """Return the rows that are really there, by key."""
    return _rows(view_url, "SELECT * FROM projector.user_information_v1")


def counts(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return a row's counts: tweets, following, followers, likes."""
    return row["tweet_count"], row["following_count"], row["follower_count"], row["like_count"]


def as_of(view_url: str) -> tuple[Any, list[str]]:
    """Return the as-of of user_information and its flags."""
    with psycopg.connect(view_url) as session:
        row = session.execute("SELECT as_of, flags FROM viewkeeper_as_of WHERE view = 'user_information'").fetchone()
    assert row is not None
    return row[0], row[1]


def _rows(view_url: str, query: str) -> dict[int, dict[str, Any]]:
    with psycopg.connect(view_url, row_factory=psycopg.rows.dict_row) as session:
        return {row["user_id"]: row for row in session.execute(query.encode())}
