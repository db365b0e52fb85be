"""What a batch of records says, decoded: the newest state of each key."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from confluent_kafka import KafkaError

from cdc.wire import TableName

KeyValue = int | str
"""A value of a key column's type: an integer, or text."""

Key = KeyValue | tuple[KeyValue, ...]
"""A view's key: the value of its one column, or those of several, in order."""

Groups = tuple[KeyValue | Decimal | None, ...]
"""What a counted row contributes, one value a slot: whom it counts for, and how much it adds (contributions.py)."""

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

    def timestamp(self) -> tuple[int, int]:
        """Return a kind, 0 where there is none, and milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that cannot be applied, and why."""

    record: Record
    reason: str


@dataclass(slots=True)
class Changes:
    """The newest state of each key in a batch.

    `rows` by row table and view key, None where the source row is gone; `counted` by counted table and the record's
    key as text, None where the row is gone. `refused` are those that cannot be read, and are in neither.
    """

    rows: dict[TableName, dict[Key, RowValues | None]] = field(default_factory=dict)
    counted: dict[TableName, dict[str, Groups | None]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.counted)
