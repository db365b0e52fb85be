"""What is read next: polls, and between them pages of snapshots, sweeps and large rounds, in the order of snapshots."""

import threading
import time
from collections.abc import Generator, Mapping

import structlog
from msgspec.structs import replace

from cdc import progress
from cdc.change import Page, Unit
from cdc.cursor import Cursor, TableCursor
from cdc.errors import CaptureError
from cdc.fingerprints import Seen
from cdc.masks import demand_key
from cdc.paging import Paging
from cdc.progress import Phase, phase
from cdc.rounds import Found, Mark, Round
from cdc.source import Source
from cdc.tables import CapturedTable, Kind, selected
from cdc.taking_up import TakingUp, labelled
from runtime.postgres import LockNotAvailable
from runtime.settings import CdcSettings

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0
"""The cursor is written at least so often, so that freshness is known on an idle system, too."""
LOOK_SECONDS = 1.0
"""So often the catalog is asked which tables are attached, and what is requested."""


class Reader:
    """Reads the source, one unit after the other, each made after the one before was read.

    It begins at the cursor that was read back, and goes on from what it has read, published or not; after any error it
    is thrown away, and the next one begins at what was published. Whoever publishes says so by `told`.
    """

    def __init__(self, settings: CdcSettings, source: Source, taking_up: TakingUp, cursor: Cursor) -> None:
        self._settings = settings
        self._source = source
        self._taking_up = taking_up
        self._cursor = cursor
        self._entries: Mapping[str, TableCursor] = cursor.tables
        self._shapes: dict[int, str] = {}
        self._paging = Paging(settings, source, taking_up)
        # Tables that do not log all of their changes: their shape then, and whether mending that was tried in vain.
        self._troubled: dict[str, tuple[str, bool]] = {}
        self._history_checked = False
        self._looked_at = self._emitted_at = float("-inf")
        self.tables: tuple[CapturedTable, ...] = ()
        self.published: Mapping[str, TableCursor] = cursor.tables
        self.turned_at = time.monotonic()

    def units(self, closing: threading.Event) -> Generator[Unit, None, None]:
        """Yield what is to be published, in order, until `closing`; raises what ends the session."""
        poll_at = 0.0
        try:
            while not closing.is_set():
                self.turned_at = now = time.monotonic()
                if now - self._looked_at >= LOOK_SECONDS:
                    self._look()
                    self._looked_at = now
                if now >= poll_at:
                    poll_at = now + min(self._settings.cdc_poll_seconds, HEARTBEAT_SECONDS)
                    unit = self._round()
                    if unit is not None:
                        self._paging.sent(unit)
                        yield unit
                unit = self._next_page()
                if unit is not None:
                    self._paging.sent(unit)
                    yield unit
                else:
                    closing.wait(poll_at - time.monotonic())
        finally:
            self._paging.close()

    def told(self, published: Mapping[str, TableCursor]) -> None:
        """Note what the cursor says now that the next unit is published; each is told, in order."""
        self._paging.told()
        self.published = published

    def _look(self) -> None:
        """Take up what is attached now, and begin what was asked for."""
        attached, looks = self._source.attached()
        names = {str(table.name) for table in attached}
        entries = {name: entry for name, entry in self._entries.items() if name in names}
        requests = self._source.requests()
        known = {table.attachment for table in self.tables}
        wanted = selected(attached, self._settings.cdc_tables)
        demand_key(wanted, self._settings.cdc_mask_key)
        for table in wanted:
            name = str(table.name)
            entry = entries.get(name)
            request = requests.get(table.attachment, 0)
            requested = request > (entry.request if entry and entry.attachment == table.attachment else 0)
            if entry is None or table.attachment not in known:
                entry = self._taking_up.entry(table, entry, requested=requested)
                # The next round begins with it.
                self._emitted_at = float("-inf")
                self._paging.sample(table)
            entry = labelled(table, entry)
            if requested:
                entry = self._given_up(table, replace(entry, request=request), "a snapshot was requested")
            entries[name] = entry
        self._entries = entries
        self.tables = wanted
        self._shapes = {attachment: seen.shape for attachment, seen in looks.items()}
        if not self._history_checked:
            self._check_reach()
        self._taking_up.check(entries[str(table.name)] for table in wanted)
        self._mend()

    def _check_reach(self) -> None:
        """Give up positions that the source does not reach back to: Kafka was set back, or is another one."""
        tables = {table.attachment: table for table in self.tables}
        known = {number: self._entries[str(table.name)].position for number, table in tables.items()}
        beyond = self._source.out_of_reach({number: at for number, at in known.items() if at is not None})
        for number, reason in beyond.items():
            self._lost(tables[number], f"{tables[number].name}: {reason}")

    def _lost(self, table: CapturedTable, reason: str) -> None:
        if self._settings.cdc_on_other_history == "stop":
            raise CaptureError(
                f"{reason}. If the database was restored or promoted with loss, or Kafka was set back, run it once "
                "with VIEWKEEPER_CDC_ON_OTHER_HISTORY=snapshot, which reads every table anew; if another database is "
                f"captured under the same name, {self._settings.cdc_name}, give one of them another "
                "VIEWKEEPER_CDC_NAME and VIEWKEEPER_TOPIC_PREFIX"
            )
        name = str(table.name)
        self._entries = {**self._entries, name: self._given_up(table, self._entries[name], reason)}

    def _mend(self) -> None:
        """Bring tables that wait to where they can begin again: empty full change logs, add what triggers lack.

        A log is emptied once Kafka has committed that its table has no position, and by this thread, which begins
        with the table only afterwards.
        """
        for table in self.tables:
            name = str(table.name)
            told = self.published.get(name)
            if self._entries[name].position is None and told is not None and told.position is None:
                self._source.empty(table)
            if name in self._troubled:
                try:
                    self._troubled[name] = (self._troubled[name][0], not self._source.arm(table))
                except LockNotAvailable:
                    log.info("table_in_use", table=name, reason="what its triggers lack is to be added")

    def _round(self) -> Unit | None:
        began = time.monotonic()
        beat = began - self._emitted_at >= HEARTBEAT_SECONDS
        previous = {
            table.name: position
            for table in self.tables
            if (position := self._entries[str(table.name)].position) and str(table.name) not in self._paging.draining
        }
        self._source.committed(self.published)
        with self._source.round(self.tables, previous, self._paging.most_rows) as round_:
            if not self._history_checked:
                self._check_history(round_)
            if not round_.found and not beat:
                return None
            seen = self._source.seen(round_.tables)
            found = {one.table.attachment: one for one in round_.found}
            before, pages = self._entries, list[Page]()
            self._entries = dict(before)
            # A table that was altered since the catalog was read would be read in its old shape: it sits the round out.
            known = [one for one in round_.tables if seen[one.attachment].shape == self._shapes[one.attachment]]
            for table in known:
                name, number = str(table.name), table.attachment
                self._entries[name] = self._moved(round_, before[name], table, seen[number], found.get(number), pages)
        self._emitted_at = began
        if len(known) < len(round_.tables):
            self._source.sat_out(round_, [table for table in round_.tables if table not in known])
            self._looked_at = self._emitted_at = float("-inf")
        current = {str(table.name) for table in known if table.attachment not in round_.behind} - self._paging.draining
        return Unit(
            tables=self._entries,
            pages=pages,
            time=round_.known_by,
            current=frozenset(current),
            tokens=round_.tokens,
            heartbeat=not round_.found and (round_.is_flushed or self._entries == before),
            uncertain=round_.is_estimate,
        )

    def _check_history(self, round_: Round) -> None:
        self._history_checked = True
        if self._cursor.token and self._cursor.token not in round_.tokens:
            # One that is read anew anyway, since that was asked for, may be of another history, or another source.
            for table in (one for one in self.tables if self._entries[str(one.name)].position is not None):
                self._lost(
                    table,
                    "the source has another history than the cursor: its mark is not the one that the newest cursor "
                    "was published after",
                )

    def _moved(
        self,
        round_: Round,
        entry: TableCursor,
        table: CapturedTable,
        seen: Seen,
        found: Found | None,
        pages: list[Page],
    ) -> TableCursor:
        """Return a table's part after a round that could lock it; add its changes to `pages`."""
        name, marks = str(table.name), found.marks if found else frozenset[Mark]()
        if seen.trouble:
            return self._in_trouble(table, entry, seen)
        self._troubled.pop(name, None)
        if entry.position is None:
            return self._begun(round_, table, entry, seen) if self._source.may_begin(table) else entry
        if name in self._paging.draining:
            return entry
        if Mark.LIMIT in marks:
            return self._given_up(table, entry, "its change log had reached its limit")
        looks = entry.fingerprint
        # A TRUNCATE gives a table new files; of a partition's it explains its own alone.
        explained = Mark.TRUNCATE in marks and table.kind is not Kind.PARTITIONED
        rewritten = looks and seen.files != looks.files and not explained
        altered = Mark.KEY in marks or rewritten or (looks and seen.shape != looks.shape)
        if altered or Mark.PASS in marks:
            reason = "it was altered or rewritten: it is read anew" if altered else "all of its rows are read again"
            log.info("table_changed" if altered else "pass_begins", table=name, reason=reason)
            return self._begun(round_, table, entry, seen)
        if not round_.found and not round_.is_flushed:
            return replace(entry, fingerprint=seen.fingerprint)
        if found:
            page = self._paging.images(round_, table, found, previous=entry.position)
            if page is None:
                return entry
            pages.append(page)
        return self._paging.passed(replace(entry, fingerprint=seen.fingerprint), round_.position_of(table), marks)

    def _begun(self, round_: Round, table: CapturedTable, entry: TableCursor, seen: Seen) -> TableCursor:
        self._paging.end(table, entry)
        log.info("snapshot_begins", table=str(table.name))
        return progress.begun(
            entry,
            position=round_.position_of(table),
            fingerprint=seen.fingerprint,
            time=round_.time,
            end_offsets=self._paging.ends(entry),
            pass_began=round_.pass_began,
        )

    def _in_trouble(self, table: CapturedTable, entry: TableCursor, seen: Seen) -> TableCursor:
        # First the cursor forgets its position, and what can be mended is tried; only then does the capture stop.
        # Another shape is another trouble: a further partition, for instance.
        name = str(table.name)
        if self._troubled.get(name) == (seen.shape, True):
            raise CaptureError(f"{name} {seen.trouble}; its changes are not all logged, so it will be read anew then")
        self._troubled[name] = (seen.shape, False)
        return self._given_up(table, entry, f"it {seen.trouble}") if entry.position else entry

    def _given_up(self, table: CapturedTable, entry: TableCursor, reason: str) -> TableCursor:
        log.warning("to_be_read_anew", table=str(table.name), reason=reason)
        self._paging.end(table, entry)
        return progress.waiting(entry)

    def _next_page(self) -> Unit | None:
        """Read a page of the first table that needs one, and put that table last."""
        for table in self.tables:
            name = str(table.name)
            read = self._paging.next(table, self._entries[name], self.published.get(name))
            if read is None:
                continue  # it needs none, or is locked and has its turn again later
            page, after = read
            self._entries = {**self._entries, name: after}
            if name not in self._paging.draining and phase(after) is Phase.COMPLETE:
                # Its watermark moves with the next round, which need not wait for the second to pass.
                self._emitted_at = float("-inf")
            self.tables = (*(other for other in self.tables if other is not table), table)
            return Unit(tables=self._entries, pages=[page])
        return None
