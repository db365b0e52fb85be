"""Next offsets in the view database: read once, then checked and set in each batch's own transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection, Cursor
from psycopg.errors import ForeignKeyViolation
from psycopg.rows import class_row

from projector.changes import Partition
from projector.column_text import plain_array, text_array
from runtime.postgres import DatabaseUnavailable

READ_OFFSETS = """
SELECT
    topic, partition, topic_id, next_offset, extract(epoch FROM clock_timestamp() - stored_at)::float8 AS age_seconds,
    record_time
FROM projector.partition_offset
WHERE view = %s AND version = %s
"""

READ_NEXT_OFFSETS = """
SELECT topic, partition, next_offset
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
SET next_offset = read.next_offset,
    stored_at = now(),
    record_time = coalesce(to_timestamp(read.time_ms / 1000.0), stored.record_time)
FROM unnest(%s::text[], %s::integer[], %s::bigint[], %s::bigint[]) AS read (topic, partition, next_offset, time_ms)
WHERE stored.view = %s AND stored.version = %s
AND stored.topic = read.topic AND stored.partition = read.partition
"""

# An idle partition is no outage. Nobody is waited for: whoever holds a row stores it anew.
STORE_AT_END = """
WITH at_end AS (
    SELECT view, version, topic, partition
    FROM projector.partition_offset
    JOIN unnest(%s::text[], %s::integer[], %s::bigint[]) AS read (topic, partition, next_offset)
    USING (topic, partition, next_offset)
    WHERE view = %s AND version = %s
    FOR UPDATE OF partition_offset SKIP LOCKED
)
UPDATE projector.partition_offset AS stored
SET stored_at = now()
FROM at_end
WHERE (stored.view, stored.version, stored.topic, stored.partition)
    = (at_end.view, at_end.version, at_end.topic, at_end.partition)
"""

# All of some versions, in the order in which those who apply to several versions lock them.
LOCK_VERSIONS = """
SELECT version, topic, partition, next_offset
FROM projector.partition_offset
WHERE view = %s AND version = ANY (%s)
ORDER BY version, topic, partition
FOR UPDATE
"""

# Never back: while the source's clock is behind, the time stays and the flag says so. Then what was said against that
# time stays, too: an estimate is none the better for a watermark that has not come to it.
STORE_AS_OF = """
UPDATE projector.as_of
SET as_of = greatest(as_of, %(time)s),
    flags = %(flags)s::text[] || ARRAY(
        SELECT flag FROM unnest(flags) AS flag
        WHERE as_of > %(time)s AND flag IN ('uncertain', 'estimate') AND flag <> ALL (%(flags)s::text[])
    )
WHERE view = %(view)s AND version = %(version)s
"""


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """The next offset to read of a partition, of the topic that had this id.

    So many seconds ago it was stored, or the partition was last known to end there. `record_time` is that of the last
    record before it, None while none was seen that has one.
    """

    topic: str
    partition: int
    topic_id: str
    next_offset: int
    age_seconds: float = 0.0
    record_time: datetime | None = None

    @property
    def place(self) -> Partition:
        """Topic and partition."""
        return self.topic, self.partition


class VersionDropped(DatabaseUnavailable):
    """A version of a view has gone since it was taken up."""


class Offsets:
    """The stored offsets and the as-of of one version of a view."""

    def __init__(self, view: str, version: int) -> None:
        self._version = (view, version)

    def read(self, connection: Connection) -> list[StoredOffset]:
        """Return the stored offsets of all partitions."""
        with connection.cursor(row_factory=class_row(StoredOffset)) as cursor:
            return cursor.execute(READ_OFFSETS, self._version).fetchall()

    def add(self, connection: Connection, offsets: Iterable[StoredOffset]) -> None:
        """Store first offsets of partitions that have none; raise VersionDropped if the version has just gone."""
        rows = [(*self._version, at.topic, at.partition, at.topic_id, at.next_offset) for at in offsets]
        try:
            connection.cursor().executemany(ADD_OFFSET, rows)
        except ForeignKeyViolation as error:
            view, version = self._version
            raise VersionDropped(f"version {version} of view {view!r} was dropped; starting again") from error

    def lock(self, cursor: Cursor, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Lock the stored offsets of some partitions until the transaction ends, and return them."""
        topics, numbers = zip(*partitions, strict=True)
        cursor.execute(LOCK_OFFSETS, [*self._version, text_array(topics), plain_array(numbers)])
        return {(topic, partition): next_offset for topic, partition, next_offset in cursor}

    def store(
        self, cursor: Cursor, next_offsets: Mapping[Partition, int], times_ms: Mapping[Partition, int] | None = None
    ) -> None:
        """Store next offsets of partitions that are locked, and the times of their last records as far as given."""
        topics, numbers = zip(*next_offsets, strict=True)
        times = [(times_ms or {}).get(place) for place in next_offsets]
        arrays = [text_array(topics), plain_array(numbers), plain_array(next_offsets.values()), plain_array(times)]
        cursor.execute(STORE_OFFSETS, [*arrays, *self._version])

    def store_at_end(self, connection: Connection, ended: Sequence[StoredOffset]) -> None:
        """Store that partitions held nothing after these offsets just now, where they are still the stored ones."""
        if ended:
            topics, numbers = [at.topic for at in ended], [at.partition for at in ended]
            arrays = [text_array(topics), plain_array(numbers), plain_array(at.next_offset for at in ended)]
            connection.execute(STORE_AT_END, [*arrays, *self._version])

    def next_offsets(self, cursor: Cursor) -> dict[Partition, int]:
        """Return the next offsets of all partitions, other instances' included, as this transaction sees them."""
        cursor.execute(READ_NEXT_OFFSETS, self._version)
        return {(topic, partition): next_offset for topic, partition, next_offset in cursor}

    def store_as_of(self, cursor: Cursor, time: datetime, flags: tuple[str, ...]) -> None:
        """Store the newest time that the view reflects once this transaction has committed."""
        view, version = self._version
        cursor.execute(STORE_AS_OF, {"time": time, "flags": list(flags), "view": view, "version": version})


def lock_versions(connection: Connection, view: str, versions: Sequence[int]) -> None:
    """Lock all stored offsets of some versions until the transaction ends: nobody applies anything to them."""
    connection.execute(LOCK_VERSIONS, [view, list(versions)])
