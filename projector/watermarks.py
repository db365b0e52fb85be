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

    `held_back` says that rows of its topics were too large and are left out. `cursor_offset` is the oldest cursor
    record that it was made from: read from there, it can be made again.
    """

    time: datetime
    uncertain: bool
    held_back: bool
    needs: Mapping[Partition, int]
    cursor_offset: int

    def covered_by(self, next_offsets: Mapping[Partition, int]) -> bool:
        """Return whether everything up to its time has been applied."""
        return all(next_offsets.get(partition, -1) >= need for partition, need in self.needs.items())

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader should know of the time."""
        flags = {"uncertain": self.uncertain, "held_back": self.held_back}
        return tuple(name for name, is_set in flags.items() if is_set)


@dataclass(frozen=True, slots=True)
class _Word:
    """The newest word on a topic: its watermark, None while it has none, and the record that said so."""

    watermark: Watermark | None
    held_back: bool
    offset: int
    capture: str
    attachment: int


class Watermarks:
    """The watermarks of a view's topics that its rows do not reflect yet, oldest first."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = frozenset(topics)
        self._newest: dict[str, _Word] = {}
        self._pending: list[Candidate] = []

    @property
    def pending(self) -> bool:
        """Whether a watermark waits for records to be applied."""
        return bool(self._pending)

    def add(self, cursor: Cursor, offset: int) -> None:
        """Take in a cursor record that was read at `offset` of the cursor topic.

        It makes a candidate once each of the view's topics has a complete snapshot and a watermark; topics of several
        captures count with their newest records, and the oldest time of all. A table that is attached anew, read anew
        or left out takes back what was said before: that was perhaps of an earlier life of its topic.
        """
        told = {table.topic: table for table in cursor.tables.values() if table.topic in self._topics}
        left_out = {topic for topic, word in self._newest.items() if word.capture == cursor.capture} - told.keys()
        for topic in left_out:
            del self._newest[topic]
        takes_back = bool(left_out)
        for topic, table in told.items():
            before = self._newest.get(topic)
            watermark = table.watermark if table.complete else None
            word = _Word(watermark, bool(table.held_back), offset, cursor.capture, table.attachment)
            self._newest[topic] = word
            takes_back |= word.watermark is None or bool(before and before.attachment != word.attachment)
        if takes_back:
            self._pending = []
        candidate = self._candidate() if told else None
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
        for topic, word in self._newest.items():
            if word.watermark:
                watermarks[topic] = word.watermark
        if len(watermarks) < len(self._topics):
            return None
        return Candidate(
            time=min(watermark.time for watermark in watermarks.values()),
            uncertain=any(watermark.uncertain for watermark in watermarks.values()),
            held_back=any(word.held_back for word in self._newest.values()),
            needs={
                (topic, partition): next_offset
                for topic, watermark in watermarks.items()
                for partition, next_offset in enumerate(watermark.next_offsets)
            },
            cursor_offset=min(word.offset for word in self._newest.values()),
        )
