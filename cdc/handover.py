"""Handing tables over from one source to the other, without reading them anew.

While a table moves, both sources find its changes. The one that it leaves still knows of keys that are not published:
they are told to the one that it comes to, from a position of that one on. A key that both tell of is read twice, which
does no harm; nothing is published by a handover, so that it begins again after a crash.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

import structlog
from msgspec.structs import replace

from cdc.cursor import TableCursor
from cdc.fingerprints import Seen
from cdc.rounds import Found, Round
from cdc.source import AttachedSource
from cdc.tables import CapturedTable, source_of

log = structlog.get_logger()

PAGE_KEYS = 20_000
"""So many keys are told at once."""
PAUSE_SECONDS = 0.05

Outcome = tuple[TableCursor, str | None]
"""A table's part of the cursor, and why it has to be read anew, None if it has not."""


class Handover:
    """Takes over what was read `left` of a source until now, for the source that goes `on`."""

    def __init__(self, left: AttachedSource, on: AttachedSource) -> None:
        self._left = left
        self._on = on

    def concerns(self, entry: TableCursor) -> bool:
        """Return whether a table's position is one of the source that it leaves."""
        return entry.position is not None and source_of(entry.position) is self._left.kind

    def out_of_reach(self, positions: Mapping[int, str]) -> dict[int, str]:
        """Return the attachments whose changes since positions in either source are not all there any more, and why."""
        of_left = {number: at for number, at in positions.items() if source_of(at) is self._left.kind}
        rest = {number: at for number, at in positions.items() if number not in of_left}
        left = self._left.out_of_reach(of_left) if of_left else {}
        return {**left, **self._on.out_of_reach(rest)}

    def take_over(
        self, entries: Mapping[CapturedTable, TableCursor], pause: Callable[[float], bool]
    ) -> dict[CapturedTable, Outcome]:
        """Return each table's part of the cursor from which the source goes on, or why it has to be read anew.

        `pause` is called between steps with seconds to wait; once it returns True, nothing has come of it.
        """
        moving = _Moving(self._left, self._on, entries)
        try:
            while not moving.is_over():
                moving.step()
                if pause(0.0 if moving.is_over() else PAUSE_SECONDS):
                    return {}
        finally:
            self._left.close()
        return moving.outcomes


class _Moving:
    """One handover: rounds of the source that is left, until one has all that was there when the other's began."""

    def __init__(self, left: AttachedSource, on: AttachedSource, entries: Mapping[CapturedTable, TableCursor]) -> None:
        self.outcomes: dict[CapturedTable, Outcome] = {}
        self._left = left
        self._on = on
        self._entries = dict(entries)
        self._positions = {table.name: entry.position or "" for table, entry in entries.items()}
        self._begun: dict[int, str] = {}
        self._looks: dict[int, Seen] = {}
        self._until: datetime | None = None
        self._begin()

    def is_over(self) -> bool:
        """Return whether each table has an outcome."""
        return self.outcomes.keys() == self._entries.keys()

    def step(self) -> None:
        """Read a round, and tell what it has found."""
        tables = [table for table in self._entries if table not in self.outcomes]
        previous = {table.name: self._positions[table.name] for table in tables}
        self._left.committed({})
        with self._left.round(tables, previous, lambda _table: PAGE_KEYS) as round_:
            # Nothing that the other source's positions lie behind can come once all of before this round is known.
            self._until = self._until or round_.time
            before, after = self._left.seen(round_.tables), self._on.seen(round_.tables)
            keys = [self._kept(round_, found) for found in round_.found if not found.marks]
            for found in round_.found:
                if found.marks:
                    self._give_up(found.table, f"its changes since the cursor say: {', '.join(sorted(found.marks))}")
            for table in round_.tables:
                self._judge(table, before[table.attachment], after[table.attachment])
        for tell in keys:
            tell()
        for table in round_.tables:
            self._positions[table.name] = round_.position_of(table)
            if table not in self.outcomes and self._is_known(round_, table):
                self.outcomes[table] = self._moved(table)

    def _begin(self) -> None:
        for table in self._entries:
            position = self._on.begin(table)
            if table.moving_to is None or position is None:
                self._give_up(table, "it was not attached for both sources all the time")
            else:
                self._begun[table.attachment] = position

    def _kept(self, round_: Round, found: Found) -> Callable[[], None]:
        """Return what tells a round's keys once its transaction, which only reads, is over."""
        table = found.table
        if found.records <= PAGE_KEYS:
            return lambda: self._on.tell(table, found.keys)
        drain = self._left.drain(round_, found, {table.name: self._positions[table.name]}, page_keys=PAGE_KEYS)

        def tell() -> None:
            while (keys := drain.peek()) is not None:
                self._on.tell(table, keys)
                drain.advance()
            drain.close()

        return tell

    def _judge(self, table: CapturedTable, before: Seen, after: Seen) -> None:
        """Give a table up that was altered since its position, or that one of the sources did not see whole."""
        trouble = before.trouble or after.trouble
        known = self._looks.setdefault(table.attachment, after)
        if trouble:
            self._give_up(table, f"it {trouble}")
        elif before.fingerprint != self._entries[table].fingerprint or after != known:
            self._give_up(table, "it was altered or rewritten since the cursor")

    def _give_up(self, table: CapturedTable, reason: str) -> None:
        self.outcomes.setdefault(table, (self._entries[table], reason))

    def _is_known(self, round_: Round, table: CapturedTable) -> bool:
        is_known = round_.known_by is not None and self._until is not None and round_.known_by >= self._until
        return is_known and table.attachment not in round_.behind

    def _moved(self, table: CapturedTable) -> Outcome:
        number = table.attachment
        position, fingerprint = self._begun[number], self._looks[number].fingerprint
        log.info("taken_over", table=str(table.name), position=position, before=self._positions[table.name])
        return replace(self._entries[table], position=position, fingerprint=fingerprint), None
