"""What is read next: polls, and between them pages of snapshots, sweeps and large rounds, in the order of snapshots."""

import threading
import time
from collections.abc import Generator, Mapping

import structlog
from msgspec.structs import replace

from cdc import progress
from cdc.change import Page, Unit
from cdc.cursor import Cursor, TableCursor
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import Seen
from cdc.handover import Handover
from cdc.history import demand_moved_together, demand_snapshot_allowed
from cdc.masks import demand_key
from cdc.paging import Paging
from cdc.progress import Phase, phase
from cdc.rounds import Found, KnownBy, Mark, Round
from cdc.source import Source
from cdc.table_options import named_tables
from cdc.tables import CapturedTable, Kind, selected
from cdc.taking_up import TakingUp, labelled
from cdc.unreadable import RowsUnreadable
from runtime.errors import ViewkeeperError
from runtime.postgres import DatabaseError, LockNotAvailable
from runtime.settings import CdcSettings

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0
"""The cursor is written at least so often, so that freshness is known on an idle system, too."""
LOOK_SECONDS = 1.0
"""So often the catalog is asked which tables are attached, and what is requested."""
PUBLISHED_LOOK_SECONDS = 0.1
"""So often who waits for a round to be published looks whether the session ends."""


class Reader:
    """Reads the source, one unit after the other, each made after the one before was read.

    It begins at the cursor that was read back, and goes on from what it has read, published or not; after any error it
    is thrown away, and the next one begins at what was published. Whoever publishes says so by `told`.
    """

    def __init__(
        self,
        settings: CdcSettings,
        source: Source,
        taking_up: TakingUp,
        cursor: Cursor,
        handover: Handover | None = None,
    ) -> None:
        self._settings = settings
        # Once: a file that is being written does not end a capture that runs.
        self._named = named_tables(settings.cdc_tables)
        self._source = source
        self._handover = handover
        self._taking_up = taking_up
        self._cursor = cursor
        self._entries: Mapping[str, TableCursor] = cursor.tables
        self._shapes: dict[int, str] = {}
        self._paging = Paging(settings, source, taking_up)
        # Tables that do not log all of their changes: their shape then, and whether mending that was tried in vain.
        self._troubled: dict[str, tuple[str, bool]] = {}
        self._history_checked = False
        # A position that was not read in a round is flushed with the next one.
        self._is_unflushed = False
        self._looked_at = self._emitted_at = float("-inf")
        # The unit of the newest round: while it waits to be published the next would only grow old beside it.
        self._last_round = 0
        self._published_more = threading.Event()
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
                    if self._handover is not None and not self._take_over(self._handover, closing):
                        return
                if now >= poll_at and self._paging.is_published(self._last_round):
                    poll_at = now + min(self._settings.cdc_poll_seconds, HEARTBEAT_SECONDS)
                    unit = self._round()
                    if unit is not None:
                        self._last_round = self._paging.sent(unit)
                        yield unit
                unit = self._next_page()
                if unit is not None:
                    self._paging.sent(unit)
                    yield unit
                elif self._paging.is_published(self._last_round):
                    closing.wait(poll_at - time.monotonic())
                else:
                    self._published_more.wait(PUBLISHED_LOOK_SECONDS)
                    self._published_more.clear()
        except RowsUnreadable as error:
            raise error.at(self._source.first_unreadable(error.asked)) from error
        finally:
            self._paging.close()

    def told(self, published: Mapping[str, TableCursor]) -> None:
        """Note what the cursor says now that the next unit is published; each is told, in order."""
        self._paging.told()
        self.published = published
        self._published_more.set()

    def _look(self) -> None:
        """Take up what is attached now, and begin what was asked for."""
        # What is published of a table tells one that is gone from one that never was there.
        self._source.committed(self.published)
        attached, looks = self._source.attached()
        attachments = {str(table.name): table.attachment for table in attached}
        entries = {name: entry for name, entry in self._entries.items() if name in attachments}
        for name, left in self._entries.items():
            if attachments.get(name) != left.attachment:
                self._paging.end(name, left)
        requests = self._source.requests()
        known = {table.attachment for table in self.tables}
        wanted = selected(attached, self._named)
        demand_key([table.name for table in wanted if table.is_masked], self._settings.cdc_mask_key)
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
                entry = self._given_up(name, replace(entry, request=request), "a snapshot was requested")
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
        reach = self._handover or self._source
        for number, reason in reach.out_of_reach({number: at for number, at in known.items() if at}).items():
            name = str(tables[number].name)
            self._lost(name, f"{name}: {reason}")

    def _lost(self, name: str, reason: str) -> None:
        demand_snapshot_allowed(self._settings, reason)
        self._entries = {**self._entries, name: self._given_up(name, self._entries[name], reason)}

    def _take_over(self, handover: Handover, closing: threading.Event) -> bool:
        """Take over what was read of another source until now; return False if `closing` came first."""
        if not self._history_checked:
            # Another history's positions say nothing here, and a table that is given up would be read anew unasked.
            with self._source.round((), {}, self._paging.most_rows) as round_:
                self._check_history(round_)
        entries = {table: self._entries[str(table.name)] for table in self.tables}
        left = {table: entry for table, entry in entries.items() if handover.concerns(entry)}
        if not left:
            return True

        def pause(seconds: float) -> bool:
            self.turned_at = time.monotonic()
            return closing.wait(seconds)

        for table, (entry, reason) in handover.take_over(left, pause).items():
            name = str(table.name)
            after = entry if reason is None else self._given_up(name, entry, reason)
            self._entries = {**self._entries, name: after}
        self._is_unflushed = True
        self._emitted_at = float("-inf")
        return not closing.is_set()

    def _mend(self) -> None:
        """Bring tables that wait to where they can begin again: empty full change logs, add what triggers lack.

        Both once Kafka has committed that the table has no position: it would be gone on from after a crash, and
        nothing would tell what was not logged since. And by this thread, which begins with the table only afterwards.
        """
        for table in self.tables:
            name = str(table.name)
            told = self.published.get(name)
            if self._entries[name].position is not None or told is None or told.position is not None:
                continue
            if not self._paging.is_given_up(name):
                continue
            try:
                self._source.empty(table)
                if name in self._troubled:
                    self._troubled[name] = (self._troubled[name][0], not self._source.arm(table))
            except LockNotAvailable:
                log.info("table_in_use", table=name, reason="it waits to be read anew")

    def _round(self) -> Unit | None:
        began = time.monotonic()
        beat = began - self._emitted_at >= HEARTBEAT_SECONDS
        previous = {
            table.name: position
            for table in self.tables
            if (position := self._entries[str(table.name)].position) and str(table.name) not in self._paging.draining
        }
        self._source.committed(self.published)
        # In one order, whoever's turn it is: its statements are prepared for it.
        tables = sorted(self.tables, key=lambda table: table.attachment)
        with self._source.round(tables, previous, self._paging.most_rows) as round_:
            if not self._history_checked and not self._check_history(round_):
                # What the round found, and where it came to, is by positions that say nothing here.
                return None
            if not round_.found and not beat:
                return None
            seen, as_of = self._source.seen(round_.tables), self._source.as_of(round_.tables)
            found = {one.table.attachment: one for one in round_.found}
            known_by = {one: as_of.get(one.attachment) or round_.known(one) for one in round_.tables}
            before, pages = self._entries, list[Page]()
            self._entries = dict(before)
            # A table that was altered since the catalog was read would be read in its old shape: it sits the round out.
            # One that is dropped, and its name another table's, is not seen at all.
            known = [one for one in round_.tables if self._is_as_it_was(one, seen.get(one.attachment))]
            for table in known:
                name, number = str(table.name), table.attachment
                self._entries[name] = self._moved(
                    round_, before[name], table, seen[number], found.get(number), known_by[table], pages
                )
        self._emitted_at = began
        is_unflushed, self._is_unflushed = self._is_unflushed, False
        if len(known) < len(round_.tables):
            self._source.sat_out(round_, [table for table in round_.tables if table not in known])
            self._looked_at = self._emitted_at = float("-inf")
        return Unit(
            tables=self._entries,
            pages=pages,
            # One that is read page by page is with its last page.
            known_by={
                name: known_by[table] for table in known if (name := str(table.name)) not in self._paging.draining
            },
            tokens=round_.tokens,
            heartbeat=not round_.found and self._entries == before and not is_unflushed,
        )

    def _check_history(self, round_: Round) -> bool:
        """Return whether the source is the one of the cursor; if not, give up all positions, or raise CaptureError."""
        self._history_checked = True
        if not self._cursor.token or self._cursor.token in round_.tokens:
            return True
        reason = (
            "the source has another history than the cursor: its mark is not the one that the newest cursor was "
            "published after"
        )
        for name in {**self._cursor.tables, **self._entries}:
            if name not in self._entries:
                demand_moved_together(self._settings, name, self._cursor.tables[name])
                # Nothing here is attached by that name: the next cursor would forget what another database's needs.
                demand_snapshot_allowed(self._settings, f"{reason}, and {name}, which that knows, is not attached here")
            # One that is read anew anyway, since that was asked for, may be of another history, or another source.
            elif self._entries[name].position is not None:
                # One that VIEWKEEPER_CDC_TABLES leaves out now, too: the next cursor's mark is of this history.
                self._lost(name, reason)
        return False

    def _moved(
        self,
        round_: Round,
        entry: TableCursor,
        table: CapturedTable,
        seen: Seen,
        found: Found | None,
        known: KnownBy,
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
            return self._given_up(name, entry, "its change log had reached its limit")
        looks = entry.fingerprint
        # A TRUNCATE gives a table new files; of a partition's it explains its own alone.
        explained = Mark.TRUNCATE in marks and table.kind is not Kind.PARTITIONED
        rewritten = looks and seen.files != looks.files and not explained
        altered = Mark.KEY in marks or rewritten or (looks and seen.shape != looks.shape)
        if altered and not self._source.may_begin(table):
            return self._given_up(name, entry, "it was altered or rewritten")
        if altered or Mark.PASS in marks:
            reason = "it was altered or rewritten: it is read anew" if altered else "all of its rows are read again"
            log.info("table_changed" if altered else "pass_begins", table=name, reason=reason)
            return self._begun(round_, table, entry, seen)
        if not round_.found and not round_.moves_on:
            return replace(entry, fingerprint=seen.fingerprint)
        if found:
            page = self._paging.images(round_, table, found, known=known, previous=entry.position, beside=pages)
            if page is None:
                return entry
            pages.append(page)
        return self._paging.passed(replace(entry, fingerprint=seen.fingerprint), round_.position_of(table), marks)

    def _begun(self, round_: Round, table: CapturedTable, entry: TableCursor, seen: Seen) -> TableCursor:
        self._paging.begin(str(table.name), entry)
        log.info("snapshot_begins", table=str(table.name))
        return progress.begun(
            entry,
            position=self._source.begun_at(round_, table),
            fingerprint=seen.fingerprint,
            time=round_.time,
            pass_began=round_.pass_began,
        )

    def _in_trouble(self, table: CapturedTable, entry: TableCursor, seen: Seen) -> TableCursor:
        # First the cursor forgets its position, and what can be mended is tried; only then does the capture stop.
        # Another shape is another trouble: a further partition, for instance.
        name = str(table.name)
        if self._troubled.get(name) == (seen.shape, True):
            raise CaptureError(f"{name} {seen.trouble}; its changes are not all logged, so it will be read anew then")
        self._troubled[name] = (seen.shape, False)
        return self._given_up(name, entry, f"it {seen.trouble}") if entry.position else entry

    def _given_up(self, name: str, entry: TableCursor, reason: str) -> TableCursor:
        log.warning("to_be_read_anew", table=name, reason=reason)
        # Its position may be one of another history: what it covered there is not done with here.
        self.published = {other: told for other, told in self.published.items() if other != name}
        self._paging.give_up(name, entry)
        return progress.waiting(entry)

    def _next_page(self) -> Unit | None:
        """Read a page of the first table that needs one, and put that table last."""
        for table in self.tables:
            name = str(table.name)
            entry = self._paging.bounded(self._entries[name])
            if entry is not self._entries[name]:
                self._went_on(name, entry)
            try:
                read = self._paging.next(table, entry, self.published.get(name))
            except (CaptureError, DatabaseError) as error:
                self._demand_unaltered(table, error)
                raise
            if read is None:
                continue  # it needs none, or is locked and has its turn again later
            self._went_on(name, read.entry)
            self.tables = (*(other for other in self.tables if other is not table), table)
            return Unit(tables=self._entries, pages=[read.page], known_by={name: read.known})
        return None

    def _went_on(self, name: str, after: TableCursor) -> None:
        self._entries = {**self._entries, name: after}
        if name not in self._paging.draining and phase(after) is Phase.COMPLETE:
            # Its watermark moves with the next round, which need not wait for the second to pass.
            self._emitted_at = float("-inf")

    def _demand_unaltered(self, table: CapturedTable, error: ViewkeeperError) -> None:
        """Raise CatalogChanged if a table was altered whose page failed: in its old shape it may fail in any way."""
        _, looks = self._source.attached()
        if not self._is_as_it_was(table, looks.get(table.attachment)):
            raise CatalogChanged(f"{table.name} was altered while it was read: {error}") from error

    def _is_as_it_was(self, table: CapturedTable, seen: Seen | None) -> bool:
        return seen is not None and seen.shape == self._shapes[table.attachment]
