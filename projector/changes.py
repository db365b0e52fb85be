"""What a batch of records says, decoded: the newest state of each key."""

from dataclasses import dataclass, field
from typing import Protocol

from confluent_kafka import KafkaError

from cdc.wire import TableName

Key = int | str
"""A value of the view's key type: an integer, or text."""

Groups = tuple[Key | None, ...]
"""Whom a counted row counts for: one key for each group column."""

RowValues = tuple[object, ...]
"""A row's columns other than the key, in order; what JSON has no type for is text that Postgres reads."""

Partition = tuple[str, int]
"""Topic and partition."""


class Record(Protocol):
    """A record, or an event of its partition, as librdkafka hands it out."""

    def error(self) -> KafkaError | None:
        """Return the event, None for a record."""

    def topic(self) -> str:
        """Return the topic."""

    def partition(self) -> int:
        """Return the partition."""

    def offset(self) -> int:
        """Return the record's offset, or the position that an event was met at."""

    def key(self) -> bytes | None:
        """Return the key's bytes."""

    def value(self) -> bytes | None:
        """Return the value's bytes, None for a tombstone."""


@dataclass(slots=True)
class Changes:
    """The newest state of each key in a batch.

    `rows` by view key, None where the source row is gone; `counted` by counted table and the record's key as text,
    None where the row is gone.
    """

    rows: dict[Key, RowValues | None] = field(default_factory=dict)
    counted: dict[TableName, dict[str, Groups | None]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rows or self.counted)
