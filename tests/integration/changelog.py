"""Changelog topics written by hand: what a capture would publish, one Kafka transaction at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from cdc.cursor import Cursor, TableCursor, Watermark
from cdc.wire import cursor_topic_name
from projector.parts import as_names
from projector.topics import describe_topics
from runtime.kafka import BrokerUnavailable
from tests.waiting import wait_until

KEYS = {"users": "user_id", "tweets": "tweet_id", "follows": "follow_id", "likes": "like_id"}
PARTITIONS = 3


def compact(value: object) -> bytes:
    """Encode as the wire contract has it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def user(user_id: int, username: str | None = "ann", **changed: object) -> dict[str, object]:
    """Give a whole row of users."""
    nothing = dict.fromkeys(
        ("name", "description", "location", "web_page_url", "joined_date", "profile_image_url", "background_image_url")
    )
    return {"user_id": user_id, "username": username, **nothing, "updated_at": None, **changed}


class Changelog:
    """The topics of some tables and the cursor's, under one prefix; `keys` names each table's key columns."""

    def __init__(
        self, bootstrap_servers: str, prefix: str, keys: Mapping[str, str | tuple[str, ...]], partitions: int
    ) -> None:
        self.prefix = prefix
        self._keys = {table: as_names(names) for table, names in keys.items()}
        self._next_offsets = {table: [0] * partitions for table in keys}
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "transactional.id": f"{prefix}-by-hand",
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "log_level": 0,
            }
        )
        self._partitions = partitions

    def create(self, *, cursor: bool = True) -> None:
        """Create the topics."""
        topics = [self._new_topic(self.topic(table), self._partitions) for table in self._keys]
        if cursor:
            topics.append(self._new_topic(cursor_topic_name(self.prefix), 1))
        for created in self._admin.create_topics(topics).values():
            created.result()
        wait_until(lambda: self._led([topic.topic for topic in topics]), what="leaders of the new topics")
        self._producer.init_transactions()

    def create_cursor_topic(self) -> None:
        """Create the cursor's topic, which was left out at first."""
        topic = self._new_topic(cursor_topic_name(self.prefix), 1)
        self._admin.create_topics([topic])[topic.topic].result()
        wait_until(lambda: self._led([topic.topic]), what="a leader of the cursor's topic")

    def topic(self, table: str) -> str:
        return f"{self.prefix}.public.{table}"

    def next_offsets(self, table: str) -> tuple[int, ...]:
        """Return, for each partition, the offset after the last record that was delivered."""
        return tuple(self._next_offsets[table])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Publish what is put inside in one Kafka transaction."""
        self._producer.begin_transaction()
        yield
        self._producer.commit_transaction()

    @contextmanager
    def aborted(self) -> Iterator[None]:
        """Publish what is put inside and take it back."""
        self._producer.begin_transaction()
        yield
        self._producer.flush()
        self._producer.abort_transaction()

    def put(self, table: str, row: Mapping[str, object], *, time: datetime | None = None) -> None:
        """Write a row's new state, in a record of this time, or of now."""
        self.put_raw(table, compact({name: row[name] for name in self._keys[table]}), compact(row), time=time)

    def remove(self, table: str, *key: object) -> None:
        """Write a tombstone."""
        self.put_raw(table, compact(dict(zip(self._keys[table], key, strict=True))), None)

    def put_raw(self, table: str, key: bytes | None, value: bytes | None, *, time: datetime | None = None) -> None:
        """Write any bytes."""

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            self._next_offsets[table][partition] = offset + 1

        # 0 is the producer's own clock.
        timestamp_ms = round(time.timestamp() * 1000) if time else 0
        self._producer.produce(self.topic(table), value, key, on_delivery=delivered, timestamp=timestamp_ms)
        self._producer.poll(0)

    def tweet(self, tweet_id: int, user_id: int | None) -> None:
        self.put("tweets", {"tweet_id": tweet_id, "user_id": user_id, "text": "hi", "created_at": None})

    def follow(self, follow_id: int, follower_id: int | None, followee_id: int | None) -> None:
        self.put("follows", {"follow_id": follow_id, "follower_id": follower_id, "followee_id": followee_id})

    def like(self, like_id: int, user_id: int | None, *, time: datetime | None = None) -> None:
        self.put("likes", {"like_id": like_id, "user_id": user_id, "tweet_id": 1, "created_at": None}, time=time)

    def watermark(self, time: datetime | None = None, **changed: Any) -> None:
        """Write a cursor record for all tables: everything delivered so far was committed by `time`, or by now."""
        self._producer.flush()
        time = time or datetime.now(UTC)
        tables = {f"public.{table}": self.table_cursor(table, time=time) for table in self._keys}
        self.put_cursor({**tables, **changed.get("tables", {})}, capture=changed.get("capture", "by-hand"))

    def table_cursor(
        self,
        table: str,
        *,
        time: datetime | None,
        next_offsets: tuple[int, ...] | None = None,
        complete: bool = True,
        uncertain: bool = False,
    ) -> TableCursor:
        """Return a table's part of a cursor, at what has been delivered unless `next_offsets` says otherwise."""
        known = self.next_offsets(table)
        watermark = Watermark(time=time, next_offsets=next_offsets or known, uncertain=uncertain) if time else None
        return TableCursor(
            topic=self.topic(table),
            attachment=1,
            position="1:1:",
            complete=complete,
            next_offsets=known,
            watermark=watermark,
        )

    def put_cursor(self, tables: Mapping[str, TableCursor], *, capture: str = "by-hand") -> None:
        """Write a cursor record."""
        cursor = Cursor(capture=capture, token="by-hand", tables=dict(tables))
        self._producer.produce(cursor_topic_name(self.prefix), cursor.encode(), capture.encode())

    def make_again(self, table: str) -> None:
        """Delete a table's topic and make it again, under the same name."""
        for deleted in self._admin.delete_topics([self.topic(table)]).values():
            deleted.result()
        wait_until(
            lambda: self.topic(table) not in self._admin.list_topics(timeout=10).topics, what="the topic to be gone"
        )
        for created in self._admin.create_topics([self._new_topic(self.topic(table), self._partitions)]).values():
            created.result()
        wait_until(lambda: self._led([self.topic(table)]), what="leaders of the topic")
        self._next_offsets[table] = [0] * self._partitions

    def add_partitions(self, table: str, partitions: int) -> None:
        """Give a table's topic so many partitions."""
        for added in self._admin.create_partitions([NewPartitions(self.topic(table), partitions)]).values():
            added.result()
        wait_until(lambda: self._led([self.topic(table)]), what="leaders of the new partitions")

    def forget(self, table: str) -> None:
        """Delete all records of a table's topic, as a wrong retention would."""
        self.configure(table, "cleanup.policy", "delete")
        ends = [
            TopicPartition(self.topic(table), number, end)
            for number, end in enumerate(self._next_offsets[table])
            if end
        ]
        for deleted in self._admin.delete_records(ends).values():
            deleted.result()

    def configure(self, table: str, name: str, value: str) -> None:
        """Set an option of a table's topic."""
        option = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, self.topic(table), incremental_configs=[option])
        for altered in self._admin.incremental_alter_configs([resource]).values():
            altered.result()
        described = ConfigResource(ResourceType.TOPIC, self.topic(table))
        wait_until(
            lambda: self._admin.describe_configs([described])[described].result()[name].value == value,
            what=f"{name} to be set",
        )

    def compact(self) -> None:
        """Have each record that is published from now on end a segment of its topic, and ended ones compacted soon."""
        options = {"segment.ms": "1", "min.cleanable.dirty.ratio": "0"}
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in options.items()
        ]
        topics = [
            ConfigResource(ResourceType.TOPIC, self.topic(table), incremental_configs=entries) for table in self._keys
        ]
        for altered in self._admin.incremental_alter_configs(topics).values():
            altered.result()

    def _led(self, topics: list[str]) -> bool:
        """Return whether each partition answers; a new topic's leaders take a moment."""
        try:
            return len(describe_topics(self._admin, topics, where="the test's broker")) == len(topics)
        except BrokerUnavailable:
            return False

    def _new_topic(self, name: str, partitions: int) -> NewTopic:
        return NewTopic(name, partitions, 1, config={"cleanup.policy": "compact"})
