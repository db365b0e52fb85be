"""One version of a view as this instance keeps it, and the transaction that moves its rows, offsets and as-of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from psycopg import Connection, Cursor
from psycopg.errors import DeadlockDetected, SerializationFailure

from cdc.cursor import decode_cursor
from cdc.decoding import Decoding
from cdc.wire import cursor_topic_name
from projector.changes import Changes, Partition, Record, Refused
from projector.consumer import Batch
from projector.decoding import Decoder
from projector.estimating import estimated_times
from projector.lenient import REFUSALS, Leniency, LenientWriter, note_letters
from projector.offsets import Offsets, StoredOffset
from projector.outages import at_end, demand_no_outage
from projector.registry import ViewVersion, rebuild_command
from projector.topics import Topic, first_offsets
from projector.watermarks import Reached, Watermarks
from runtime.errors import ConfigurationError
from runtime.settings import variable

T = TypeVar("T")

STRICT = Leniency()
DEADLOCK_TRIES = 3
"""So often is a transaction tried that Postgres took back to untie it from others; then the session starts again."""


class StaleReader(Exception):  # noqa: N818 - the state, not a failure
    """Stored offsets are not those that this instance last read or wrote: another one was here."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction did to a version: offsets stored, as-of reached, records that became dead letters."""

    next_offsets: Mapping[Partition, int]
    reached: Reached | None
    refused: Sequence[Refused] = ()


class KeptView:
    """Applies batches to one version of a view, each record once."""

    def __init__(
        self, version: ViewVersion, topic_prefix: str, decoding: Decoding, leniency: Leniency = STRICT
    ) -> None:
        self.name = version.view.name
        self._decoder = Decoder(version.view, topic_prefix, decoding)
        self._cursor_place: Partition = (cursor_topic_name(topic_prefix), 0)
        self._leniency = leniency
        self._writer = LenientWriter(version, self._decoder, leniency.dead_letters)
        self._offsets = Offsets(version.view.name, version.version)
        self._watermarks = Watermarks(self._decoder.topics)
        self._stored: dict[Partition, int] = {}
        self._as_of: Reached | None = None
        self._cursor_end = 0
        self._has_cursors = False

    @property
    def topics(self) -> frozenset[str]:
        """The topics to read: those of the source tables, and the cursor's."""
        return self._decoder.topics | {self._cursor_place[0]}

    @property
    def changelog_topics(self) -> frozenset[str]:
        """Those of the source tables: without them it cannot be kept, but without a cursor's it can."""
        return self._decoder.topics

    @property
    def as_of(self) -> Reached | None:
        """The newest time stored by this instance since it was given its partitions; only one has the cursor's."""
        return self._as_of

    @property
    def wants_estimates(self) -> bool:
        """Whether its as-of waits for a topic that no cursor names, as far as this instance is one to tell."""
        return self._has_cursors and bool(self._watermarks.unnamed)

    @property
    def stored(self) -> Mapping[Partition, int]:
        """The stored next offsets, as this instance last read or wrote them."""
        return self._stored

    def stored_offsets(self, connection: Connection) -> list[StoredOffset]:
        """Read the stored offsets, with the identities of their topics."""
        return self._offsets.read(connection)

    def begin(self, connection: Connection, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> None:
        """Store first offsets of topics that have none among `stored`.

        Raises LostHistory as `check` does, and after an outage in which deletes may have been forgotten.
        """
        first = self.check(stored, topics)
        self.check_outage(stored, topics)
        with connection.transaction():
            self._offsets.add(connection, first)
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
                f"from the other topics:\n{rebuild_command(self.name)}"
            )
        ours = {name: topic for name, topic in topics.items() if name in self.topics}
        return first_offsets(ours, stored, view=self.name)

    def check_outage(self, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> None:
        """Raise LostHistory when nobody kept the version for so long that deletes may have been forgotten."""
        demand_no_outage(self.name, topics, self._of_tables(stored), go_on=self._leniency.long_outages)

    def note_ends(self, connection: Connection, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> None:
        """Store that it is not behind in the partitions that ended at `stored`, which was read before `topics`."""
        self._offsets.store_at_end(connection, at_end(topics, self._of_tables(stored)))

    def read_stored(self, connection: Connection) -> None:
        """Read the stored offsets again, after another instance may have moved them.

        What was read of the cursor topic is forgotten: whoever has it now reads it from its stored offset.
        """
        stored = self._offsets.read(connection)
        self._watermarks = Watermarks(self._decoder.topics, {at.topic: at.topic_id for at in stored})
        self._as_of = None
        self._stored = {at.place: at.next_offset for at in stored}
        self._has_cursors = False

    def estimate(self, stored: Sequence[StoredOffset], topics: Mapping[str, Topic]) -> None:
        """Estimate how far topics without a cursor are applied, from offsets that were stored before these `topics`.

        It counts once the cursor topic is read up to its end as it is now: whoever names a topic in there does so in
        the transaction of its first records.
        """
        cursor_topic, partition = self._cursor_place
        is_read = self._cursor_place in self._stored
        if is_read and cursor_topic in topics:
            self._cursor_end = max(self._cursor_end, topics[cursor_topic].high[partition])
        if is_read or cursor_topic not in topics:
            self._watermarks.estimate(estimated_times(stored, topics))

    def decode(self, batch: Batch) -> Changes:
        """Decode what of a batch this version has not applied, and take in its cursor records.

        Raises BadRecord or TooManyDeadLetters when more records cannot be read than may be left out.
        """
        self._has_cursors = self._cursor_place not in self._stored or self._cursor_place in batch.ended
        for record in batch.cursors:
            value = record.value()
            if value is not None:
                where = f"topic {record.topic()} partition {record.partition()} offset {record.offset()}"
                self._watermarks.add(decode_cursor(value, where=where), record.offset())
        changes = self._decoder.decode(self._unread(batch), limit=self._leniency.dead_letters)
        self._writer.demand_few(changes.refused)
        return changes

    def write(self, cursor: Cursor, batch: Batch, changes: Changes, *, one_by_one: bool) -> Step:
        """Apply a batch in the caller's transaction, which READ COMMITTED must be; `committed` follows it.

        Raises StaleReader, before anything is changed, when the stored offsets have been moved by someone else, or are
        gone with the version. Raises REFUSALS for a value that cannot be written, and with `one_by_one` as
        LenientWriter.apply_each does.
        """
        if not self._stored:
            raise StaleReader
        ends = {place: end for place, end in batch.ended.items() if end > self._stored.get(place, end)}
        ends.pop(self._cursor_place, None)
        if not ends and not self._watermarks.pending:
            return Step({}, None)
        decides = self._watermarks.pending and self._cursor_place in self._stored
        self._lock(cursor, [*ends, self._cursor_place] if decides else [*ends])
        refused: Sequence[Refused] = ()
        if one_by_one or changes.refused:
            refused = self._writer.apply_each(cursor, filter(self._is_unread, batch.history()))
        elif changes:
            self._writer.apply(cursor, changes, self._unread(batch))
        if ends:
            self._offsets.store(cursor, ends, batch.times_ms)
        reached = self._reach(cursor, batch.ended.get(self._cursor_place, 0))
        if reached and reached.cursor_offset is not None:
            # Not further: a restart must read the records again that later watermarks are made from.
            needed = {self._cursor_place: max(self._stored[self._cursor_place], reached.cursor_offset)}
            self._offsets.store(cursor, needed)
            ends |= needed
        return Step(ends, reached, refused)

    def committed(self, step: Step) -> None:
        """Take over what the transaction has stored."""
        note_letters(self.name, step.refused)
        self._stored.update(step.next_offsets)
        if step.reached:
            self._watermarks.reflected(step.reached)
            self._as_of = step.reached

    def _lock(self, cursor: Cursor, places: Sequence[Partition]) -> None:
        # The transaction's first statement: whoever holds these rows decides alone what is applied.
        locked = self._offsets.lock(cursor, places) if places else {}
        if any(locked.get(place) != self._stored[place] for place in places):
            raise StaleReader

    def _reach(self, cursor: Cursor, cursor_position: int) -> Reached | None:
        # Not before all is read that was there at the start, or when a topic without a cursor was looked at: the newest
        # records decide, older ones may be of another life of their topics.
        if not self._watermarks.pending or cursor_position < self._cursor_end:
            return None
        reached = self._watermarks.newest_covered(self._offsets.next_offsets(cursor))
        if reached:
            self._offsets.store_as_of(cursor, reached.time, reached.flags)
        return reached

    def _unread(self, batch: Batch) -> Mapping[str, Mapping[bytes | None, Record]]:
        """Leave out what this version has applied already, where another one that is kept beside it is behind."""
        ahead = {place for place, start in batch.started.items() if self._stored.get(place, start) > start}
        if not ahead:
            return batch.newest
        return {
            topic: {key: record for key, record in records.items() if self._is_unread(record)}
            for topic, records in batch.newest.items()
        }

    def _is_unread(self, record: Record) -> bool:
        return record.offset() >= self._stored.get((record.topic(), record.partition()), 0)

    def _of_tables(self, stored: Sequence[StoredOffset]) -> list[StoredOffset]:
        return [at for at in stored if at.topic in self._decoder.topics]


def resume(connection: Connection, views: Sequence[KeptView], describe: Callable[[], Mapping[str, Topic]]) -> None:
    """Compare the stored offsets of all views with the topics as `describe` gives them, and begin the new ones.

    Raises LostHistory when a view cannot go on from what is stored.
    """
    # The offsets first: ends only grow, but another instance may store offsets beyond the ends that were described.
    stored = [view.stored_offsets(connection) for view in views]
    topics = describe()
    for view, offsets in zip(views, stored, strict=True):
        view.begin(connection, offsets, topics)
        view.note_ends(connection, offsets, topics)


def check(connection: Connection, views: Sequence[KeptView], describe: Callable[[], Mapping[str, Topic]]) -> None:
    """Compare as `resume` does, while views are kept; store which of their partitions have nothing left to read."""
    stored = [view.stored_offsets(connection) for view in views]
    topics = describe()
    for view, offsets in zip(views, stored, strict=True):
        view.check(offsets, topics)
        view.note_ends(connection, offsets, topics)


def estimate(connection: Connection, views: Sequence[KeptView], describe: Callable[[], Mapping[str, Topic]]) -> None:
    """Have views that are of topics without a cursor know how far these are applied; `apply_batch` stores it."""
    wanting = [view for view in views if view.wants_estimates]
    if wanting:
        stored = [view.stored_offsets(connection) for view in wanting]
        topics = describe()
        for view, offsets in zip(wanting, stored, strict=True):
            view.estimate(offsets, topics)


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
    try:
        return untied(lambda: _apply_decoded(connection, views, batch, changes, one_by_one=False))
    except REFUSALS:
        # It names no record.
        return untied(lambda: _apply_decoded(connection, views, batch, changes, one_by_one=True))


def untied(transaction: Callable[[], T]) -> T:
    """Try a transaction again when Postgres takes it back to untie it from others."""
    for _ in range(DEADLOCK_TRIES - 1):
        with suppress(DeadlockDetected, SerializationFailure):
            return transaction()
    return transaction()


def _apply_decoded(
    connection: Connection, views: Sequence[KeptView], batch: Batch, changes: Sequence[Changes], *, one_by_one: bool
) -> bool:
    try:
        with connection.transaction(), connection.cursor() as cursor:
            steps = [
                view.write(cursor, batch, changed, one_by_one=one_by_one)
                for view, changed in zip(views, changes, strict=True)
            ]
    except StaleReader:
        return False
    for view, step in zip(views, steps, strict=True):
        view.committed(step)
    return True
