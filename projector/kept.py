"""One version of a view as this instance keeps it, and the transaction that moves its rows, offsets and as-of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from psycopg import Connection, Cursor, DataError
from psycopg.errors import DeadlockDetected, SerializationFailure

from cdc.cursor import decode_cursor
from cdc.decoding import Decoding
from cdc.wire import cursor_topic_name
from projector.changes import Changes, Partition, Record
from projector.consumer import Batch
from projector.decoding import Decoder
from projector.errors import BadRecord
from projector.offsets import Offsets, StoredOffset
from projector.registry import ViewVersion, build_anew
from projector.topics import Topic, first_offsets
from projector.watermarks import Candidate, Watermarks
from projector.writer import Writer
from runtime.errors import ConfigurationError
from runtime.settings import variable

DEADLOCK_TRIES = 3
"""So often is a transaction tried that Postgres took back to untie it from others; then the session starts again."""


class StaleReader(Exception):  # noqa: N818 - the state, not a failure
    """Stored offsets are not those that this instance last read or wrote: another one was here."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction did to a version: offsets stored, as-of reached."""

    next_offsets: Mapping[Partition, int]
    reached: Candidate | None


class KeptView:
    """Applies batches to one version of a view, each record once."""

    def __init__(self, version: ViewVersion, topic_prefix: str, decoding: Decoding) -> None:
        self.name = version.view.name
        self._decoder = Decoder(version.view, topic_prefix, decoding)
        self._cursor_place: Partition = (cursor_topic_name(topic_prefix), 0)
        self._writer = Writer(version.view, version.version)
        self._offsets = Offsets(version.view.name, version.version)
        self._watermarks = Watermarks(self._decoder.topics)
        self._stored: dict[Partition, int] = {}
        self._as_of: Candidate | None = None
        self._cursor_end = 0

    @property
    def topics(self) -> frozenset[str]:
        """The topics to read: those of the source tables, and the cursor's."""
        return self._decoder.topics | {self._cursor_place[0]}

    @property
    def as_of(self) -> Candidate | None:
        """The newest watermark stored by this instance since it was given its partitions; only one has the cursor's."""
        return self._as_of

    @property
    def stored(self) -> Mapping[Partition, int]:
        """The stored next offsets, as this instance last read or wrote them."""
        return self._stored

    def stored_offsets(self, connection: Connection) -> list[StoredOffset]:
        """Read the stored offsets, with the identities of their topics."""
        return self._offsets.read(connection)

    def begin(self, connection: Connection, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> None:
        """Store first offsets of topics that have none among `stored`; raise LostHistory as `check` does."""
        with connection.transaction():
            self._offsets.add(connection, self.check(stored, topics))
        cursor_topic, partition = self._cursor_place
        if cursor_topic in topics:
            self._cursor_end = topics[cursor_topic].high[partition]
        self.read_stored(connection)

    def check(self, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> list[StoredOffset]:
        """Return first offsets of topics that have none stored.

        Raises LostHistory when a topic is not the one that was read, or has more partitions, and ConfigurationError
        when the view was kept from topics of another prefix.
        """
        strange = sorted({at.topic for at in stored} - self.topics)
        if strange:
            raise ConfigurationError(
                f"view {self.name!r} was kept from topics {', '.join(strange)}, and is now to be kept from "
                f"{', '.join(sorted(self.topics))}: set {variable('topic_prefix')} as it was, or build the view anew "
                f"from the other topics:\n{build_anew()}"
            )
        return first_offsets({name: topic for name, topic in topics.items() if name in self.topics}, stored)

    def read_stored(self, connection: Connection) -> None:
        """Read the stored offsets again, after another instance may have moved them.

        What was read of the cursor topic is forgotten: whoever has it now reads it from its stored offset.
        """
        self._watermarks = Watermarks(self._decoder.topics)
        self._as_of = None
        self._stored = {at.place: at.next_offset for at in self._offsets.read(connection)}

    def decode(self, batch: Batch) -> Changes:
        """Decode what of a batch this version has not applied, and take in its cursor records."""
        for record in batch.cursors:
            value = record.value()
            if value is not None:
                where = f"topic {record.topic()} partition {record.partition()} offset {record.offset()}"
                self._watermarks.add(decode_cursor(value, where=where), record.offset())
        return self._decoder.decode(self._unread(batch))

    def write(self, cursor: Cursor, batch: Batch, changes: Changes) -> Step:
        """Apply a batch in the caller's transaction, which READ COMMITTED must be; `committed` follows it.

        Raises StaleReader, before anything is changed, when the stored offsets have been moved by someone else.
        """
        ends = {place: end for place, end in batch.ended.items() if end > self._stored.get(place, end)}
        ends.pop(self._cursor_place, None)
        if not ends and not self._watermarks.pending:
            return Step({}, None)
        self._lock(cursor, [*ends, self._cursor_place] if self._watermarks.pending else [*ends])
        if changes:
            self._writer.apply(cursor, changes)
        if ends:
            self._offsets.store(cursor, ends)
        reached = self._reach(cursor, batch.ended.get(self._cursor_place, 0))
        if reached:
            # Not further: a restart must read the records again that later watermarks are made from.
            needed = {self._cursor_place: max(self._stored[self._cursor_place], reached.cursor_offset)}
            self._offsets.store(cursor, needed)
            ends |= needed
        return Step(ends, reached)

    def committed(self, step: Step) -> None:
        """Take over what the transaction has stored."""
        self._stored.update(step.next_offsets)
        if step.reached:
            self._watermarks.reflected(step.reached)
            self._as_of = step.reached

    def _lock(self, cursor: Cursor, places: Sequence[Partition]) -> None:
        # The transaction's first statement: whoever holds these rows decides alone what is applied.
        locked = self._offsets.lock(cursor, places)
        if any(locked.get(place) != self._stored[place] for place in places):
            raise StaleReader

    def _reach(self, cursor: Cursor, cursor_position: int) -> Candidate | None:
        # Not before all is read that was there at the start: the newest records decide, older ones may be of another
        # life of their topics.
        if not self._watermarks.pending or cursor_position < self._cursor_end:
            return None
        candidate = self._watermarks.newest_covered(self._offsets.next_offsets(cursor))
        if candidate:
            self._offsets.store_as_of(cursor, candidate.time, candidate.flags)
        return candidate

    def _unread(self, batch: Batch) -> Mapping[str, Mapping[bytes | None, Record]]:
        """Leave out what this version has applied already, where another one that is kept beside it is behind."""
        ahead = {place for place, start in batch.started.items() if self._stored.get(place, start) > start}
        if not ahead:
            return batch.newest
        return {
            topic: {
                key: record
                for key, record in records.items()
                if record.offset() >= self._stored.get((topic, record.partition()), 0)
            }
            for topic, records in batch.newest.items()
        }


def resume(connection: Connection, views: Sequence[KeptView], describe: Callable[[], Mapping[str, Topic]]) -> None:
    """Compare the stored offsets of all views with the topics as `describe` gives them, and begin the new ones.

    Raises LostHistory when a view cannot go on from what is stored.
    """
    # The offsets first: ends only grow, but another instance may store offsets beyond the ends that were described.
    stored = [view.stored_offsets(connection) for view in views]
    topics = describe()
    for view, offsets in zip(views, stored, strict=True):
        view.begin(connection, offsets, topics)


def check(connection: Connection, views: Sequence[KeptView], describe: Callable[[], Mapping[str, Topic]]) -> None:
    """Compare as `resume` does, and change nothing."""
    stored = [view.stored_offsets(connection) for view in views]
    topics = describe()
    for view, offsets in zip(views, stored, strict=True):
        view.check(offsets, topics)


def start_offsets(connection: Connection, views: Iterable[KeptView]) -> dict[Partition, int]:
    """Read the stored offsets again, and return where the version that is furthest behind needs each partition."""
    starts: dict[Partition, int] = {}
    for view in views:
        view.read_stored(connection)
        for place, next_offset in view.stored.items():
            starts[place] = min(next_offset, starts.get(place, next_offset))
    return starts


def apply_batch(connection: Connection, views: Sequence[KeptView], batch: Batch) -> bool:
    """Apply a batch to all views in one transaction.

    Returns whether it was applied; otherwise nothing was changed, and the stored offsets have to be read again.
    """
    changes = [view.decode(batch) for view in views]
    for _ in range(DEADLOCK_TRIES - 1):
        with suppress(DeadlockDetected, SerializationFailure):
            return _apply_decoded(connection, views, batch, changes)
    return _apply_decoded(connection, views, batch, changes)


def _apply_decoded(connection: Connection, views: Sequence[KeptView], batch: Batch, changes: Sequence[Changes]) -> bool:
    try:
        with connection.transaction(), connection.cursor() as cursor:
            steps = [view.write(cursor, batch, changed) for view, changed in zip(views, changes, strict=True)]
    except StaleReader:
        return False
    except DataError as error:
        raise BadRecord(
            f"Postgres refused a value: {' '.join(str(error).split())}; nothing of this batch was applied: "
            f"{_extent(batch)}. Is the view's definition right, and does only the capture write to these topics?"
        ) from error
    for view, step in zip(views, steps, strict=True):
        view.committed(step)
    return True


def _extent(batch: Batch) -> str:
    moved = [(place, batch.started.get(place, 0), end) for place, end in sorted(batch.ended.items())]
    return ", ".join(
        f"topic {topic} partition {partition} offsets {start} to {end - 1}"
        for (topic, partition), start, end in moved
        if end > start
    )
