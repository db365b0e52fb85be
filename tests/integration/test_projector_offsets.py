"""Exactly once: stored offsets decide what is applied, and history that is lost is noticed (P1, P2, P6)."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from cdc.decoding import JsonDecoding
from compose.local.kafka import KafkaBroker
from projector.changes import Changes, Groups
from projector.consumer import ChangelogConsumer
from projector.contributions import slots
from projector.errors import Refused
from projector.kept import KeptView, apply_batch, check, resume, start_offsets
from projector.registry import State, ViewVersion
from projector.topics import Topic
from projector.writer import Writer
from runtime.errors import ConfigurationError
from runtime.kafka import LostHistory
from tests.daemons import Daemons
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, counts, physical, projector_settings, projector_steps, shown
from tests.integration.rebuild_steps import unliked, versions_of
from tests.waiting import wait_until
from views.user_information import user_information


def stored_offsets(view_url: str) -> dict[tuple[str, int], int]:
    with psycopg.connect(view_url) as session:
        rows = session.execute("SELECT topic, partition, next_offset FROM projector.partition_offset")
        return {(topic, partition): next_offset for topic, partition, next_offset in rows}


def move_back(view_url: str) -> None:
    """Make the view's rows and offsets those of the beginning, as a restored backup would."""
    with psycopg.connect(view_url) as session:
        session.execute("TRUNCATE projector.user_information_v1, projector.user_information_v1_public_tweets")
        session.execute("UPDATE projector.partition_offset SET next_offset = 0")


def test_stale_reader_changes_nothing(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.tweet(1, 1)
    stale = steps.read()
    while not stale.records:
        stale = steps.read()
    with projector_steps(projector_settings(settings_env)) as other:
        other.catch_up()
        with changelog.transaction():
            changelog.tweet(1, 2)
        other.catch_up()
    before = physical(view_url)
    assert not apply_batch(steps.connection, steps.kept, stale)
    assert physical(view_url) == before
    steps.consumer.rewind()
    steps.catch_up()
    assert physical(view_url) == before


def test_instance_that_applies_the_same_at_the_same_time_waits_and_changes_nothing(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    """Another owner, so that no unique key would stop the second one."""
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.put("users", user(2))
        changelog.tweet(1, 1)
    steps.catch_up()
    with changelog.transaction():
        changelog.tweet(1, 2)
    batch = steps.read()
    while not batch.records:
        batch = steps.read()
    (kept,) = steps.kept
    with psycopg.connect(view_url) as first, ThreadPoolExecutor(1) as thread:
        with first.cursor() as cursor:
            kept.write(cursor, batch, kept.decode(batch), one_by_one=False)
        second = thread.submit(apply_batch, steps.connection, steps.kept, batch)
        ours = steps.connection.info.backend_pid
        wait_until(lambda: first.execute("SELECT pg_blocking_pids(%s)", [ours]).fetchone() != ([],), what="a wait")
        first.commit()
        assert not second.result()
    assert {key: counts(row)[0] for key, row in shown(view_url).items()} == {1: 0, 2: 1}


def test_offsets_that_were_moved_back_leave_no_gap(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        for number in range(30):
            changelog.tweet(number, 1)
    steps.catch_up()
    move_back(view_url)
    with changelog.transaction():
        changelog.tweet(30, 1)
    steps.catch_up()
    assert counts(shown(view_url)[1]) == (31, 0, 0, 0)


def test_position_at_the_end_is_stored_past_markers_and_aborted_records(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        changelog.tweet(1, 1)
        changelog.put("users", user(1))
    with changelog.aborted():
        changelog.tweet(2, 1)
        changelog.like(1, 1)
    steps.catch_up()
    ends = {
        (topic.name, partition): end
        for topic in steps.describe().values()
        for partition, end in enumerate(topic.high)
        if topic.name != f"{changelog.prefix}.cursor"
    }
    assert sum(ends.values()) > sum(sum(changelog.next_offsets(table)) for table in ("tweets", "users"))
    stored = stored_offsets(view_url)
    assert {place: stored[place] for place in ends} == ends
    assert steps.consumer.caught_up
    assert counts(shown(view_url)[1]) == (1, 0, 0, 0)


def test_topic_made_again_stops_the_projector(steps: Steps, changelog: Changelog, settings_env: dict[str, str]) -> None:
    steps.catch_up()
    changelog.make_again("tweets")
    with (
        pytest.raises(
            LostHistory,
            match=r"tweets: it was deleted and made again(.|\n)*snapshot public.tweets(.|\n)*rebuild user_information$",
        ),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")
    with pytest.raises(LostHistory, match="deleted and made again"):
        check(steps.connection, steps.kept, steps.describe)


def test_offset_beyond_the_end_stops_the_projector(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.tweet(1, 1)
    steps.catch_up()
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.partition_offset SET next_offset = 99 WHERE topic LIKE '%tweets'")
    with (
        pytest.raises(LostHistory, match=r"it was read up to 99: Kafka lost data.*snapshot public.tweets"),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")


def test_instance_that_stores_meanwhile_is_no_loss(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    """Another instance goes on, right after the ends were described."""
    number = 0
    with projector_steps(projector_settings(settings_env)) as other:

        def describe() -> dict[str, Topic]:
            nonlocal number
            topics = steps.describe()
            number += 1
            with changelog.transaction():
                changelog.tweet(number, 1)
            other.catch_up()
            return topics

        check(steps.connection, steps.kept, describe)
        resume(steps.connection, steps.kept, describe)
    assert sum(stored_offsets(view_url).values()) >= number > 0


def test_another_topic_prefix_ends_it(steps: Steps, changelog: Changelog) -> None:
    steps.catch_up()
    kept = KeptView(ViewVersion(user_information, 1), "another", JsonDecoding())
    with pytest.raises(ConfigurationError, match="was kept from topics") as failure:
        resume(steps.connection, [kept], dict)
    assert changelog.topic("users") in str(failure.value)
    assert "another.public.users" in str(failure.value)


def test_offset_that_goes_out_of_range_while_running_is_not_reset(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        changelog.tweet(1, 1)
    steps.catch_up()
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.partition_offset SET next_offset = 99 WHERE topic LIKE '%tweets'")
    steps.consumer.rewind()
    # Kafka says so when it is asked for the records, and a batch may come to its end before.
    with pytest.raises(LostHistory):
        wait_until(lambda: not steps.step(), what="Kafka to say that there is no such offset")


def test_history_that_is_lost_while_it_runs_ends_it_with_what_to_do(
    changelog: Changelog, view_url: str, daemon: Daemons
) -> None:
    run = daemon("projector", "run")

    def applied(number: int) -> None:
        with changelog.transaction():
            changelog.tweet(number, 1)
        wait_until(lambda: any(counts(row)[0] == number for row in physical(view_url).values()), what="the tweet")

    # At the second one its first look at the topics is over, and the next is in half a minute.
    applied(1)
    applied(2)
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.partition_offset SET next_offset = 99 WHERE topic LIKE '%tweets'")
    assert run.wait(20) == 1
    assert "it was read up to 99: Kafka lost data" in run.log_text()
    assert "viewkeeper-projector rebuild user_information" in run.log_text()


def test_records_that_were_deleted_unread_stop_the_projector(
    steps: Steps, changelog: Changelog, settings_env: dict[str, str]
) -> None:
    steps.catch_up()
    with changelog.transaction():
        for number in range(20):
            changelog.tweet(number, 1)
    changelog.forget("tweets")
    with (
        pytest.raises(LostHistory, match=r"records from 0 are gone.*cleanup.policy.*snapshot public.tweets"),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")


def test_added_partitions_stop_the_projector(steps: Steps, changelog: Changelog, settings_env: dict[str, str]) -> None:
    steps.catch_up()
    changelog.add_partitions("likes", 5)
    with (
        pytest.raises(LostHistory, match=r"it has 5 partitions and had 3.* Delete it, and have it made"),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")
    with versions_of(settings_env) as versions:
        with pytest.raises(Refused, match=r"it has 5 partitions and had 3.* nothing right can be built from it"):
            versions.begin(user_information)
        assert versions.begin(unliked).state is State.BUILDING
    changelog.make_again("likes")
    with versions_of(settings_env) as versions:
        assert versions.begin(user_information).state is State.BUILDING


class RebalancedWhileLingering(Consumer):
    """A consumer whose partitions are taken away, and perhaps given back, while it waits for a second record."""

    given_back: bool | None = None
    has_record = False
    meanwhile: Callable[[], object] = staticmethod(lambda: None)
    on_assign: Callable[[Consumer, list[TopicPartition]], None]
    on_revoke: Callable[[Consumer, list[TopicPartition]], None]

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:  # type: ignore[override]  # one of its forms
        self.on_assign, self.on_revoke = callbacks["on_assign"], callbacks["on_revoke"]
        super().subscribe(topics, **callbacks)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        if self.given_back is None:
            return super().consume(num_messages, timeout)
        if num_messages == 1:
            found = super().consume(1, timeout)
            self.has_record = any(message.error() is None for message in found)
            return found
        if not self.has_record:
            return []
        messages = super().consume(num_messages, 2.0)
        held = self.assignment()
        self.on_revoke(self, held)
        self.meanwhile()
        if self.given_back:
            self.on_assign(self, held)
        self.given_back = None
        return messages


@pytest.mark.parametrize(
    ("given_back", "moved_back"),
    [(False, False), (True, False), (True, True)],
    ids=["taken", "given_back", "moved_back"],
)
def test_rebalance_within_a_batch_loses_no_record(
    given_back: bool, moved_back: bool, steps: Steps, changelog: Changelog, kafka: KafkaBroker, view_url: str
) -> None:
    """The stored offsets may have been moved back meanwhile, and what lies before the batch is still to come."""
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.tweet(0, 1)
    steps.catch_up()
    with changelog.transaction():
        for number in range(1, 30):
            changelog.tweet(number, 1)
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": f"{changelog.prefix}-rebalanced"}
    client = RebalancedWhileLingering(
        {**settings, "isolation.level": "read_committed", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    consumer = ChangelogConsumer(
        client,
        cursor_topic=f"{changelog.prefix}.cursor",
        start_at=lambda: start_offsets(steps.connection, steps.kept),
        where="the test's broker",
    )
    consumer.subscribe(sorted(steps.kept[0].topics))
    client.given_back = given_back
    if moved_back:
        client.meanwhile = lambda: move_back(view_url)
    try:

        def rebalanced() -> bool:
            batch = consumer.next_batch(1000, timeout_seconds=0.5)
            assert apply_batch(steps.connection, steps.kept, batch)
            return client.given_back is None

        wait_until(rebalanced, what="the rebalance")
    finally:
        client.close()
    steps.consumer.rewind()
    steps.catch_up()
    assert counts(shown(view_url)[1]) == (30, 0, 0, 0)


def test_two_instances_neither_deadlock_nor_lose_increments(view_url: str) -> None:
    """Each counts another table for the same keys of the view, among others of its own: P6."""
    rounds, shared = 40, [number << 20 for number in range(1, 200)]
    own = ([number << 20 for number in range(1000, 4000)], [number << 20 for number in range(5000, 5100)])
    failures: list[BaseException] = []

    def count(instance: int) -> None:
        table = user_information.counted_tables[instance]
        width = len(slots(user_information, table))
        writer = Writer(user_information, 1)
        keys = [*shared, *own[instance]] if instance else [*own[instance], *reversed(shared)]
        try:
            with psycopg.connect(view_url, autocommit=True) as connection:
                for number in range(rounds):
                    changed: dict[str, Groups | None] = {f"{number}:{key}": (key,) * width for key in keys}
                    with connection.transaction(), connection.cursor() as cursor:
                        writer.apply(cursor, Changes(counted={table: changed}))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(instance,)) for instance in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    rows = physical(view_url)
    assert [counts(rows[key]) for key in shared] == [(rounds, rounds, rounds, 0)] * len(shared)


def test_transaction_that_a_deadlock_took_back_is_tried_again(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    """Somebody else holds a row of the view, and then wants the offsets: P6."""
    with changelog.transaction():
        changelog.put("users", user(1))
    steps.catch_up()
    with changelog.transaction():
        changelog.tweet(1, 1)
    batch = steps.read()
    while not batch.records:
        batch = steps.read()
    steps.connection.execute("SET deadlock_timeout = '2s'")
    ours = steps.connection.info.backend_pid
    with psycopg.connect(view_url) as rival, ThreadPoolExecutor(1) as thread:
        # The other one waits without looking for deadlocks, so that ours is the victim.
        rival.execute("SET deadlock_timeout = '1min'")
        rival.execute("SELECT FROM projector.user_information_v1 FOR UPDATE")
        applied = thread.submit(apply_batch, steps.connection, steps.kept, batch)
        wait_until(lambda: rival.execute("SELECT pg_blocking_pids(%s)", [ours]).fetchone() != ([],), what="a wait")
        rival.execute("SELECT FROM projector.partition_offset FOR UPDATE")
        rival.rollback()
        assert applied.result()
    assert counts(shown(view_url)[1]) == (1, 0, 0, 0)
