"""The WAL source: which keys changed since the cursor, read from a replication slot with pgoutput.

A commit is in the stream before other sessions see it: its keys wait until the snapshot that reads their rows does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
import structlog

from cdc import statements
from cdc.cursor import TableCursor
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import FINGERPRINTS_SQL, Seen, parameters
from cdc.lsn import lsn_number, lsn_text
from cdc.rounds import Drain, Found, Positions, Round
from cdc.slots import demand_asynchronous, end_other, make_slot_anew, slot_state
from cdc.source import Source, arrays
from cdc.tables import CapturedTable, SourceKind, captured_tables, demand_source
from cdc.visibility import Visibility, visibility
from cdc.wal_drain import KeyDrain, page_of
from cdc.wal_keys import MESSAGE_PREFIX, Changed, Owner, WaitingKeys
from cdc.wal_stream import SlotUnusable, WalStream
from cdc.wal_times import KnownTimes
from runtime.postgres import translated

log = structlog.get_logger()

_HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_current_snapshot()::text,
       c.pending_token, c.published_token, pg_catalog.pg_current_wal_insert_lsn()::text
FROM cdc.capture c WHERE c.name = %(capture)s
"""
_OWNERS = """
SELECT tree.oid::oid, t.id, t.key_columns::text[]
FROM cdc.captured_table t CROSS JOIN LATERAL cdc.tree_of(t.table_oid) AS tree (oid)
WHERE t.capture = %(capture)s AND to_regclass(format('%%I.%%I', t.table_schema, t.table_name)) = t.table_oid
"""
_PUBLISH = "SELECT cdc.publish(%(attachment)s)"


class WalSource(Source):
    """Finds changed keys in a slot's stream; a position is that of the WAL before which all commits were read.

    `remake` says what a lost slot leads to: a new one and snapshots, or a stop. About `page_keys` keys wait in memory:
    what is beyond waits in the server.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        capture: str,
        *,
        url: str,
        where: str,
        page_keys: int,
        remake: bool = False,
    ) -> None:
        super().__init__(connection, capture, where=where)
        self._url = url
        self._name = f"viewkeeper-cdc {capture} wal"
        self._page_keys = page_keys
        self._remake = remake
        self._stream: WalStream | None = None
        self._owners: dict[int, Owner | None] = {}
        self._waiting = WaitingKeys(self._owner_of, 0)
        self._tables: Sequence[CapturedTable] = ()
        # What the last round gave out, and the tables with a drain of such keys.
        self._taken: dict[int, Changed] = {}
        self._draining: set[int] = set()
        self._backlog = 0
        self._snapshot = Visibility(0, frozenset())
        self._positions: dict[int, int] = {}
        self._times = KnownTimes()
        self._confirmed = 0

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what is attached, and what it looks like; makes a lost slot anew, or raises CaptureError."""
        with translated(self._where), self._reading(()):
            tables = captured_tables(self._connection, self._capture)
            demand_source(tables, SourceKind.WAL)
            looks = self.seen(tables)
        with translated(self._where):
            self._learn_owners()
            if tables:
                self._check_slot()
            else:
                # Whoever detached the last table waits to drop the slot.
                self.close()
        return tables, looks

    def out_of_reach(self, positions: Mapping[int, str]) -> Mapping[int, str]:
        """Return the attachments whose position the slot is already beyond."""
        with translated(self._where):
            state = slot_state(self._connection, self._capture)
        reason = f"replication slot {state.slot} was moved beyond the cursor"
        return {number: reason for number, at in positions.items() if lsn_number(at) < state.confirmed_at}

    def committed(self, published: Mapping[str, TableCursor]) -> None:
        """Let the slot go on to the least of the published positions."""
        if self._stream is None:
            return
        entries = [(table, published.get(str(table.name))) for table in self._tables]
        known = [
            lsn_number(entry.position)
            for table, entry in entries
            if entry is not None and entry.attachment == table.attachment and entry.position is not None
        ]
        # One that begins anew may have begun at a position that is not published yet.
        if known and len(known) == len(entries):
            self._confirmed = max(self._confirmed, min(known))
        self._stream.confirm(self._confirmed, ask=self._times.is_behind())

    def arm(self, table: CapturedTable) -> bool:
        """Add a table to the publication that it was taken out of."""
        with translated(self._where):
            return self._connection.execute(_PUBLISH, {"attachment": table.attachment}).fetchone() == (True,)

    def empty(self, table: CapturedTable) -> None:
        """Do nothing: each round lets go of what it sees of a table without a position."""

    def may_begin(self, table: CapturedTable) -> bool:  # noqa: ARG002 - of any table
        """At any time."""
        return True

    @contextmanager
    def round(
        self, tables: Sequence[CapturedTable], previous: Positions, page_rows: Callable[[CapturedTable], int]
    ) -> Iterator[Round]:
        """Take in what has come, and give out the keys that this round's snapshot sees."""
        self._tables = tables
        if tables:
            self._pump(previous)
        with translated(self._where), self._reading(tables) as readable:
            round_ = self._head(readable)
            if tables:
                self._take(round_, tables, previous, page_rows)
            else:
                round_.known_by = round_.time
            yield round_

    def sat_out(self, round_: Round, tables: Sequence[CapturedTable]) -> None:  # noqa: ARG002 - the last one
        """Put back what the round gave out of these tables."""
        for table in tables:
            if table.attachment in self._taken:
                self._put_back(table.attachment, self._taken.pop(table.attachment))

    def seen(self, tables: Sequence[CapturedTable]) -> dict[int, Seen]:
        """Return what tables and their publication look like."""
        rows = self._connection.execute(FINGERPRINTS_SQL, parameters(tables), prepare=True)
        return {attachment: Seen(*looks) for attachment, *looks in rows}

    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:  # noqa: ARG002
        """Keep the keys in memory, where they are."""
        number = found.table.attachment
        self._draining.add(number)

        def close(rest: Changed | None) -> None:
            self._draining.discard(number)
            if rest is not None:
                self._put_back(number, rest)

        return KeyDrain(found, round_.position_of(found.table), self._taken.pop(number), page_keys, close)

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Write the keys into the WAL."""
        sql = self._render((table, "emit"), lambda: statements.emit_keys(table))
        with translated(self._where):
            self._connection.execute(sql, {"prefix": MESSAGE_PREFIX, **arrays(keys)})

    def close(self) -> None:
        """End the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        row = self._connection.execute(_HEAD, {"capture": self._capture}, prepare=True).fetchone()
        if row is None:
            raise CaptureError(f"{self._where}: capture {self._capture} has no row in cdc.capture: migrated down?")
        time, snapshot, pending, published, end = row
        self._snapshot = visibility(snapshot)
        self._times.note(time, lsn_number(end))
        return Round(
            time=time,
            known_by=None,
            position=lsn_text(self._waiting.position),
            tokens=frozenset((pending, published)),
            tables=tables,
            # The server sends what is on its disk alone.
            is_flushed=True,
        )

    def _pump(self, previous: Positions) -> None:
        """Take in what the server has sent, up to about a page of changes; waits for nothing."""
        try:
            stream = self._stream or self._opened(previous)
            end = self._waiting.taken_in + self._page_keys
            for data in stream.messages() if self._backlog < self._page_keys else ():
                self._waiting.take_in(data)
                if self._waiting.taken_in >= end:
                    break
        except SlotUnusable as error:
            with translated(self._where):
                self._lost(slot_state(self._connection, self._capture).trouble or str(error))
        self._times.pass_by(self._waiting.position)

    def _opened(self, previous: Positions) -> WalStream:
        with translated(self._where):
            state = slot_state(self._connection, self._capture)
            end_other(self._connection, state)
        positions = [lsn_number(position) for position in previous.values()]
        start = min(positions) if len(positions) == len(self._tables) else 0
        start = max(start, state.confirmed_at)
        self._confirmed = state.confirmed_at
        self._waiting = WaitingKeys(self._owner_of, start)
        self._stream = WalStream(
            self._url, name=self._name, slot=state.slot, publication=state.publication, start=start
        )
        return self._stream

    def _take(
        self,
        round_: Round,
        tables: Sequence[CapturedTable],
        previous: Positions,
        page_rows: Callable[[CapturedTable], int],
    ) -> None:
        positions = {t.attachment: lsn_number(previous[t.name]) for t in round_.tables if t.name in previous}
        locked = {table.attachment for table in tables if table not in round_.tables}
        sizes = {table.attachment: page_rows(table) for table in round_.tables}
        self._taken = self._waiting.take(self._snapshot, positions, locked | self._draining, sizes.__getitem__)
        self._positions.update(positions)
        self._backlog = self._waiting.backlog(self._snapshot, locked)
        round_.found = [
            Found(table, max(len(changed.keys), 1), frozenset(changed.marks), page_of(list(changed.keys)))
            for table in round_.tables
            if (changed := self._taken.get(table.attachment)) and (changed.keys or changed.marks)
        ]
        round_.positions = {
            table.attachment: lsn_text(
                max(self._waiting.position_of(table.attachment), positions.get(table.attachment, 0))
            )
            for table in round_.tables
        }
        if self._times.newest is not None:
            round_.known_by, end = self._times.newest
            round_.behind = self._waiting.behind(self._snapshot, end)

    def _put_back(self, attachment: int, changed: Changed) -> None:
        self._waiting.put_back(attachment, changed, self._positions[attachment])

    def _check_slot(self) -> None:
        trouble = slot_state(self._connection, self._capture).trouble
        if trouble is not None:
            self._lost(trouble)
        if self._stream is None:
            return
        try:
            demand_asynchronous(self._connection, self._stream.backend_pid, self._name, where=self._where)
        except CaptureError as error:
            # Said at once, and the stream is ended: a commit of ours may wait for this very stream.
            log.error("synchronous_standby", reason=str(error))  # noqa: TRY400 - its trace says nothing
            self.close()
            raise

    def _lost(self, reason: str) -> None:
        if not self._remake:
            raise CaptureError(
                f"{self._where}: {reason}: changes that are not published yet are lost; run it once with "
                "VIEWKEEPER_CDC_ON_LOST_SLOT=snapshot, which makes a new slot and reads every table anew"
            )
        self.close()
        log.warning("slot_made_anew", reason=reason)
        make_slot_anew(self._connection, self._capture, where=self._where)
        raise CatalogChanged(f"{reason}: it is made anew, and every table is read anew")

    def _owner_of(self, oid: int) -> Owner | None:
        if oid not in self._owners:
            # A partition of just now, or none of a captured table.
            with translated(self._where):
                self._learn_owners()
            self._owners.setdefault(oid, None)
        return self._owners[oid]

    def _learn_owners(self) -> None:
        owners: dict[int, Owner | None] = {
            oid: Owner(attachment, tuple(key))
            for oid, attachment, key in self._connection.execute(_OWNERS, {"capture": self._capture})
        }
        if owners != self._owners:
            self._owners = owners
            self._waiting.forget_owners()
