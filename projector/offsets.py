"""Next offsets in the view database: read once, then checked and set in each batch's own transaction."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection, Cursor
from psycopg.rows import class_row

from projector.changes import Partition
from projector.column_text import plain_array, text_array

READ_OFFSETS = """
SELECT topic, partition, topic_id, next_offset
FROM projector.partition_offset
WHERE view = %s AND version = %s
"""

# Nothing is overwritten: another instance may have been first.
ADD_OFFSET = """
INSERT INTO projector.partition_offset (view, version, topic, partition, topic_id, next_offset)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

# One order for all instances, so that they wait for each other and do not deadlock.
LOCK_OFFSETS = """
SELECT topic, partition, next_offset
FROM projector.partition_offset
WHERE view = %s AND version = %s
AND (topic, partition) IN (SELECT * FROM unnest(%s::text[], %s::integer[]))
ORDER BY topic, partition
FOR UPDATE
"""

STORE_OFFSETS = """
UPDATE projector.partition_offset AS stored
SET next_offset = read.next_offset
FROM unnest(%s::text[], %s::integer[], %s::bigint[]) AS read (topic, partition, next_offset)
WHERE stored.view = %s AND stored.version = %s
AND stored.topic = read.topic AND stored.partition = read.partition
"""

# Never back: while the source's clock is behind, the time stays and the flag says so.
STORE_AS_OF = """
UPDATE projector.as_of
SET as_of = greatest(as_of, %s), flags = %s
WHERE view = %s AND version = %s
"""


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """The next offset to read of a partition, of the topic that had this id."""

    topic: str
    partition: int
    topic_id: str
    next_offset: int

    @property
    def place(self) -> Partition:
        """Topic and partition."""
        return self.topic, self.partition


class Offsets:
    """The stored offsets and the as-of of one version of a view."""

    def __init__(self, view: str, version: int) -> None:
        self._version = (view, version)

    def read(self, connection: Connection) -> list[StoredOffset]:
        """Return the stored offsets of all partitions."""
        with connection.cursor(row_factory=class_row(StoredOffset)) as cursor:
            return cursor.execute(READ_OFFSETS, self._version).fetchall()

    def add(self, connection: Connection, offsets: Iterable[StoredOffset]) -> None:
        """Store first offsets of partitions that have none."""
        rows = [(*self._version, at.topic, at.partition, at.topic_id, at.next_offset) for at in offsets]
        connection.cursor().executemany(ADD_OFFSET, rows)

    def lock(self, cursor: Cursor, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Lock the stored offsets of some partitions until the transaction ends, and return them."""
        topics, numbers = zip(*partitions, strict=True)
        cursor.execute(LOCK_OFFSETS, [*self._version, text_array(topics), plain_array(numbers)])
        return {(topic, partition): next_offset for topic, partition, next_offset in cursor}

    def store(self, cursor: Cursor, next_offsets: Mapping[Partition, int]) -> None:
        """Store next offsets of partitions that are locked."""
        topics, numbers = zip(*next_offsets, strict=True)
        arrays = [text_array(topics), plain_array(numbers), plain_array(next_offsets.values())]
        cursor.execute(STORE_OFFSETS, [*arrays, *self._version])

    def next_offsets(self, cursor: Cursor) -> dict[Partition, int]:
        """Return the next offsets of all partitions, other instances' included, as this transaction sees them."""
        cursor.execute(READ_OFFSETS, self._version)
        return {(topic, partition): next_offset for topic, partition, _, next_offset in cursor}

    def store_as_of(self, cursor: Cursor, time: datetime, flags: tuple[str, ...]) -> None:
        """Store the newest time that the view reflects once this transaction has committed."""
        cursor.execute(STORE_AS_OF, [time, list(flags), *self._version])
