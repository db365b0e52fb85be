"""Pages: what is read of a table between two polls, of its snapshot, of a sweep, or of a round with very many keys."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from cdc import progress
from cdc.change import Page, Unit
from cdc.cursor import TableCursor
from cdc.progress import Phase, phase
from cdc.rounds import NO_KEYS, NOTHING_KNOWN, Drain, Found, KnownBy, Mark, Round
from cdc.source import MOST_PAGE_BYTES, Source, by_column
from cdc.sweep import Batch, KeyReader, key_columns
from cdc.tables import CapturedTable
from cdc.taking_up import TakingUp
from runtime.settings import CdcSettings

log = structlog.get_logger()

HELD_BACK_SECONDS = 5.0
"""So often rows that are held back are looked for: those that are gone are held back no longer."""
PAGE_BYTES = MOST_PAGE_BYTES * 5 // 8
"""The next page has about so much, by the width of the rows in earlier ones."""
_FIRST_PAGE_ROWS = 5_000
_LEAST_PAGE_ROWS = 50
_SAMPLE_ROWS = 64


class Read(NamedTuple):
    """A page, its table's part of the cursor once it is published, and by when the table is known then."""

    page: Page
    entry: TableCursor
    known: KnownBy = NOTHING_KNOWN


@dataclass(frozen=True, slots=True)
class _Drained:
    """A round that is read page by page, and by when its table is known after the last one."""

    drain: Drain
    known: KnownBy


class Paging:
    """Reads pages, each in a transaction of its own, and knows what is begun and not at its end."""

    def __init__(self, settings: CdcSettings, source: Source, taking_up: TakingUp) -> None:
        self._settings = settings
        self._source = source
        self._taking_up = taking_up
        self._page_rows: dict[int, int] = {}
        self._drains: dict[str, _Drained] = {}
        self._sweeps: dict[str, KeyReader] = {}
        self._held_back_at: dict[int, float] = {}
        # How many units were read, and how many of them are published; the last one with records of a topic; and the
        # one that a topic's sweep waits for, whose records were on their way when it was begun.
        self._read = self._published = 0
        self._sent: dict[str, int] = {}
        self._awaited: dict[str, int] = {}
        # The unit that says of a table that it waits.
        self._given_up: dict[str, int] = {}

    @property
    def draining(self) -> AbstractSet[str]:
        """The names of the tables with a round that is read page by page."""
        return self._drains.keys()

    def sent(self, unit: Unit) -> int:
        """Note that a unit is on its way; return its number."""
        self._read += 1
        for page in unit.pages:
            self._sent[unit.tables[str(page.table.name)].topic] = self._read
        return self._read

    def told(self) -> None:
        """Note that the next unit is published; called by the thread that publishes them, in order."""
        self._published += 1

    def is_published(self, number: int) -> bool:
        """Return whether the unit of that number, and all before it, are published."""
        return self._published >= number

    def bounded(self, entry: TableCursor) -> TableCursor:
        """Let a sweep end where the topic does, once all records of before its beginning are there.

        Called outside of transactions: Kafka may be long in answering.
        """
        if entry.sweep is None or entry.sweep.end_offsets or self._awaits(entry):
            return entry
        return progress.bounded(entry, end_offsets=self._taking_up.ends(entry))

    def most_rows(self, table: CapturedTable) -> int:
        """Return how many rows, or keys, a page of a table has at most."""
        return min(self._page_rows.get(table.attachment, _FIRST_PAGE_ROWS), self._settings.cdc_chunk_rows)

    def sample(self, table: CapturedTable) -> None:
        """Learn how wide a table's rows are."""
        self._learn_width(table, self._source.chunk(table, None, most_rows=_SAMPLE_ROWS))

    def images(
        self,
        round_: Round,
        table: CapturedTable,
        found: Found,
        *,
        known: KnownBy,
        previous: str,
        beside: Sequence[Page],
    ) -> Page | None:
        """Read the rows of a round's keys; None if they are more, or wider, than a page holds.

        Pages of other tables, `beside` it in the same unit, take of its room. The rows are read page by page then. The
        table stays at its `previous` position until the last one, so that whoever begins again from there repeats the
        whole round; with that it is `known` as after the round.
        """
        taken = sum(len(page.changes) / self.most_rows(page.table) for page in beside)
        if taken + found.records / self.most_rows(table) <= 1:
            page = self._source.images(round_, table, found.keys)
            if not page.is_cut:
                return page
            self._learn_wide(table, page)
        drain = self._source.drain(round_, found, {table.name: previous}, page_keys=self.most_rows(table))
        self._drains[str(table.name)] = _Drained(drain, known)
        return None

    def passed(self, entry: TableCursor, position: str, marks: frozenset[Mark]) -> TableCursor:
        """Move a table to a position up to which changes have been read."""
        if marks.isdisjoint((Mark.TRUNCATE, Mark.SWEEP)):
            return replace(entry, position=position)
        self._begin_sweep(entry.topic)
        return progress.truncated(replace(entry, position=position))

    def next(self, table: CapturedTable, entry: TableCursor, told: TableCursor | None) -> Read | None:
        """Read a table's next page; None if it needs none, or is locked. `told` is what was published of it last."""
        drained = self._drains.get(str(table.name))
        if drained is not None:
            return self._drained(table, entry, drained.drain, drained.known)
        if phase(entry) is Phase.READING:
            return self._chunked(table, entry)
        if phase(entry) is Phase.SWEEPING:
            return self._swept(table, entry)
        return self._forgotten(table, entry, told)

    def begin(self, name: str, entry: TableCursor) -> None:
        """Give up what is begun of a table that is read anew, and then swept."""
        self.end(name, entry)
        self._begin_sweep(entry.topic)

    def give_up(self, name: str, entry: TableCursor) -> None:
        """Give up what is begun of a table that is to wait, which the next unit says."""
        self.end(name, entry)
        self._given_up[name] = self._read + 1

    def is_given_up(self, name: str) -> bool:
        """Return whether a unit is published that says so, and not one of an earlier time alone."""
        return self._given_up.get(name, 0) <= self._published

    def end(self, name: str, entry: TableCursor) -> None:
        """Give up what is begun of a table."""
        drained = self._drains.pop(name, None)
        if drained is not None:
            drained.drain.close()
        self._end_sweep(entry.topic)

    def close(self) -> None:
        """Close what reads topics; what the source keeps goes with its connection."""
        for sweep in self._sweeps.values():
            sweep.close()

    def _awaits(self, entry: TableCursor) -> bool:
        return self._awaited.get(entry.topic, 0) > self._published

    def _drained(self, table: CapturedTable, entry: TableCursor, drain: Drain, known: KnownBy) -> Read | None:
        page = self._source.page(table, drain.peek() or NO_KEYS)
        if page is None:
            return None
        if page.is_cut:
            # The next round begins with the same keys again, in smaller pages.
            self._learn_wide(table, page)
            self._drains.pop(str(table.name)).drain.close()
            return Read(page, entry)
        drain.advance()
        if drain.peek() is not None:
            return Read(page, entry)
        self._drains.pop(str(table.name)).drain.close()
        # Rounds that are all too large for a page would else leave the watermark where it is for as long as they come.
        return Read(page, self.passed(entry, drain.position, drain.found.marks), known)

    def _chunked(self, table: CapturedTable, entry: TableCursor) -> Read | None:
        most_rows = self.most_rows(table)
        page = self._source.chunk(table, entry.reading.resume_after if entry.reading else None, most_rows=most_rows)
        if page is None:
            return None
        rows = len(page.changes)
        end = _key_texts(page.changes[-1][0]) if rows == most_rows or page.is_cut else None
        self._learn_width(table, page)
        return Read(page, progress.chunked(entry, end=end, rows=rows))

    def _swept(self, table: CapturedTable, entry: TableCursor) -> Read | None:
        if entry.sweep is None or not entry.sweep.end_offsets:
            return None
        if entry.topic not in self._sweeps:
            log.info("ghost_sweep", table=str(table.name))
            self._sweeps[entry.topic] = KeyReader(
                self._settings, self._taking_up.encoding.decoding, table, entry.topic, entry.sweep
            )
        sweep = self._sweeps[entry.topic]
        batch = sweep.batch(self.most_rows(table))
        # Their rows may be published, too.
        page = self._source.ghosts(table, by_column(self._taken(table, sweep, batch)))
        if page is not None and batch.next_offsets is None:
            sweep.tell()
        if page is None or batch.next_offsets is None:
            # Locked, it begins again from where the cursor is.
            self._end_sweep(entry.topic)
        return None if page is None else Read(page, progress.swept(entry, next_offsets=batch.next_offsets))

    def _taken(self, table: CapturedTable, sweep: KeyReader, batch: Batch) -> list[Sequence[str]]:
        """Return the texts of those keys of a batch that the table can have, and pass over the others."""
        # With an enum among them all are looked up, which stops the capture at a value that is none: after a label was
        # renamed such keys are ours.
        taken = list(batch.keys) if table.labels else self._source.taken(table, batch.keys)
        sweep.pass_over([*batch.foreign, *(batch.keys.keys() - set(taken))])
        return [batch.keys[key] for key in taken]

    def _forgotten(self, table: CapturedTable, entry: TableCursor, told: TableCursor | None) -> Read | None:
        """Now and then, read which rows that are held back are gone: TRUNCATE logs no keys, and no topic has these."""
        number, now = table.attachment, time.monotonic()
        if not told or not told.held_back or told.attachment != number:
            return None
        if now - self._held_back_at.get(number, 0) < HELD_BACK_SECONDS:
            return None
        self._held_back_at[number] = now
        page = self._source.ghosts(table, key_columns(entry.topic, {key.encode() for key in told.held_back}))
        return Read(page, entry) if page and page.changes else None

    def _learn_width(self, table: CapturedTable, page: Page | None) -> None:
        sample = [len(row) for _, row in page.changes[::16] if row is not None] if page else ()
        # A large round may have found wider ones, and is to end with the pages that fit them.
        if sample and str(table.name) not in self._drains:
            self._page_rows[table.attachment] = max(PAGE_BYTES * len(sample) // (sum(sample) + 1), _LEAST_PAGE_ROWS)

    def _learn_wide(self, table: CapturedTable, page: Page) -> None:
        self._page_rows[table.attachment] = max(len(page.changes) // 2, _LEAST_PAGE_ROWS)

    def _begin_sweep(self, topic: str) -> None:
        self._end_sweep(topic)
        self._awaited[topic] = self._sent.get(topic, 0)

    def _end_sweep(self, topic: str) -> None:
        sweep = self._sweeps.pop(topic, None)
        if sweep is not None:
            sweep.close()


def _key_texts(key: bytes) -> tuple[str, ...]:
    return tuple(str(value) for value in msgspec.json.decode(key, type=dict[str, str | int | bool]).values())
