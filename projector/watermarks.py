"""From cursor records and stored offsets to as-of: the newest source time that a view fully reflects. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cdc.cursor import Cursor, TableCursor, Watermark
from projector.changes import Partition

PENDING_CANDIDATES = 512
"""More are thinned out: as-of then moves in larger steps, and never further than it may."""

ESTIMATE = "estimate"
"""The flag of a time that is estimated from the records of topics that no cursor names."""


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
class Reached:
    """A time that a view fully reflects: a candidate's, or an older one that is estimated of topics without a cursor.

    `candidate` is None where no cursor names any of its topics.
    """

    time: datetime
    candidate: Candidate | None
    is_estimate: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader should know of the time."""
        flags = self.candidate.flags if self.candidate else ()
        return (*flags, ESTIMATE) if self.is_estimate else flags

    @property
    def cursor_offset(self) -> int | None:
        """The oldest cursor record that it was made from."""
        return self.candidate.cursor_offset if self.candidate else None


@dataclass(frozen=True, slots=True)
class _Word:
    """The newest word on a topic: its watermark, None while it has none, and the record that said so."""

    watermark: Watermark | None
    held_back: bool
    offset: int
    capture: str
    attachment: int


class Watermarks:
    """The watermarks of a view's topics that its rows do not reflect yet, oldest first.

    `identities` has the ids of the topics that were read, as far as they are known.
    """

    def __init__(self, topics: Iterable[str], identities: Mapping[str, str] | None = None) -> None:
        self._topics = frozenset(topics)
        self._identities = identities or {}
        self._newest: dict[str, _Word] = {}
        self._pending: list[Candidate] = []
        self._estimates: Mapping[str, datetime] = {}
        self._are_estimates_new = False

    @property
    def unnamed(self) -> frozenset[str]:
        """The topics that no cursor names: others than captures write them, or nobody does yet."""
        return self._topics - self._newest.keys()

    @property
    def pending(self) -> bool:
        """Whether there is a time that may be reached: a watermark's, or with topics without one a new estimate."""
        unnamed = self.unnamed
        if not unnamed:
            return bool(self._pending)
        is_estimated = self._are_estimates_new and unnamed <= self._estimates.keys()
        return is_estimated and (bool(self._pending) or not self._newest)

    def estimate(self, times: Mapping[str, datetime]) -> None:
        """Take in the times that topics are thought to be applied up to; those of named topics are passed over."""
        self._estimates = times
        self._are_estimates_new = True

    def add(self, cursor: Cursor, offset: int) -> None:
        """Take in a cursor record that was read at `offset` of the cursor topic.

        It makes a candidate once each of the view's topics that are named has a complete snapshot and a watermark;
        topics of several captures count with their newest records, and the oldest time of all. A table that is attached
        anew, read anew or left out takes back what was said before: that was perhaps of an earlier life of its topic.
        So does one that is named for the first time: it was not among those that were said to be complete.
        """
        told = {table.topic: table for table in cursor.tables.values() if table.topic in self._topics}
        left_out = {topic for topic, word in self._newest.items() if word.capture == cursor.capture} - told.keys()
        for topic in left_out:
            del self._newest[topic]
        takes_back = bool(left_out)
        for topic, table in told.items():
            before = self._newest.get(topic)
            watermark = table.watermark if table.complete and self._was_read(table) else None
            word = _Word(watermark, bool(table.held_back), offset, cursor.capture, table.attachment)
            self._newest[topic] = word
            takes_back |= before is None or word.watermark is None or before.attachment != word.attachment
        if takes_back:
            self._pending = []
        candidate = self._candidate() if told else None
        if candidate:
            self._pending.append(candidate)
            if len(self._pending) > PENDING_CANDIDATES:
                # The oldest is covered first and the newest matters most: both stay.
                self._pending = [*self._pending[:-1:2], candidate]

    def newest_covered(self, next_offsets: Mapping[Partition, int]) -> Reached | None:
        """Return the newest time that these next offsets cover, and that estimates do not hold back."""
        unnamed = self.unnamed
        covered = (candidate for candidate in reversed(self._pending) if candidate.covered_by(next_offsets))
        candidate = next(covered, None)
        if not unnamed <= self._estimates.keys() or (self._newest and candidate is None):
            return None
        times = [self._estimates[topic] for topic in unnamed]
        if candidate:
            times.append(candidate.time)
        return Reached(min(times), candidate, is_estimate=bool(unnamed))

    def reflected(self, reached: Reached) -> None:
        """Forget what has been stored, and what was before it."""
        self._are_estimates_new = False
        if reached.candidate:
            # Beside estimates it stays: the next ones may come nearer to it.
            first = self._pending.index(reached.candidate) + (not reached.is_estimate)
            self._pending = self._pending[first:]

    def _was_read(self, table: TableCursor) -> bool:
        # Offsets of a topic that was made again mean nothing in the one before, where they may long be reached.
        return table.topic_id in ("", self._identities.get(table.topic, table.topic_id))

    def _candidate(self) -> Candidate | None:
        watermarks: dict[str, Watermark] = {}
        for topic, word in self._newest.items():
            if word.watermark:
                watermarks[topic] = word.watermark
        if len(watermarks) < len(self._newest):
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
