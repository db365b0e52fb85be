"""From cursor records and stored offsets to as-of: the newest source time that a view fully reflects. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cdc.cursor import Cursor, Watermark
from projector.changes import Partition

PENDING_CANDIDATES = 512
"""More are thinned out: as-of then moves in larger steps, and never further than it may."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A time that a view reflects once its next offsets have reached `needs`.

    `cursor_offset` is the oldest cursor record that it was made from: read from there, it can be made again.
    """

    time: datetime
    uncertain: bool
    needs: Mapping[Partition, int]
    cursor_offset: int

    def covered_by(self, next_offsets: Mapping[Partition, int]) -> bool:
        """Return whether everything up to its time has been applied."""
        return all(next_offsets.get(partition, -1) >= need for partition, need in self.needs.items())

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader should know of the time."""
        return ("uncertain",) if self.uncertain else ()


class Watermarks:
    """The watermarks of a view's topics that its rows do not reflect yet, oldest first."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = frozenset(topics)
        # The newest word on each topic: its watermark, None while it has none, and the record that said so.
        self._newest: dict[str, tuple[Watermark | None, int]] = {}
        self._pending: list[Candidate] = []

    @property
    def pending(self) -> bool:
        """Whether a watermark waits for records to be applied."""
        return bool(self._pending)

    def add(self, cursor: Cursor, offset: int) -> None:
        """Take in a cursor record that was read at `offset` of the cursor topic.

        It makes a candidate once each of the view's topics has a complete snapshot and a watermark; topics of several
        captures count with their newest records, and the oldest time of all.
        """
        concerned = False
        for table in cursor.tables.values():
            if table.topic in self._topics:
                concerned = True
                self._newest[table.topic] = (table.watermark if table.complete else None, offset)
        candidate = self._candidate() if concerned else None
        if candidate:
            self._pending.append(candidate)
            if len(self._pending) > PENDING_CANDIDATES:
                # The oldest is covered first and the newest matters most: both stay.
                self._pending = [*self._pending[:-1:2], candidate]

    def newest_covered(self, next_offsets: Mapping[Partition, int]) -> Candidate | None:
        """Return the newest candidate that these next offsets cover."""
        covered = (candidate for candidate in reversed(self._pending) if candidate.covered_by(next_offsets))
        return next(covered, None)

    def reflected(self, candidate: Candidate) -> None:
        """Forget a candidate that has been stored, and those before it."""
        self._pending = self._pending[self._pending.index(candidate) + 1 :]

    def _candidate(self) -> Candidate | None:
        watermarks: dict[str, Watermark] = {}
        for topic, (watermark, _) in self._newest.items():
            if watermark:
                watermarks[topic] = watermark
        if len(watermarks) < len(self._topics):
            return None
        return Candidate(
            time=min(watermark.time for watermark in watermarks.values()),
            uncertain=any(watermark.uncertain for watermark in watermarks.values()),
            needs={
                (topic, partition): next_offset
                for topic, watermark in watermarks.items()
                for partition, next_offset in enumerate(watermark.next_offsets)
            },
            cursor_offset=min(offset for _, offset in self._newest.values()),
        )
