"""The WAL source: which keys changed since the cursor, read from a replication slot with pgoutput.

A commit is in the stream before other sessions see it: its keys wait until the snapshot that reads their rows does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
import structlog
from psycopg.sql import Identifier

from cdc import statements
from cdc.change import Page
from cdc.cursor import TableCursor
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import Seen
from cdc.lsn import lsn_number, lsn_text
from cdc.rounds import Drain, Found, Keys, Positions, Round
from cdc.slots import demand_asynchronous, end_other, make_slot_anew, slot_state
from cdc.source import AttachedSource, arrays
from cdc.tables import CapturedTable, SourceKind, source_of
from cdc.visibility import Visibility, visibility
from cdc.wal_drain import KeyDrain, page_of
from cdc.wal_keys import Changed, Owner, WaitingKeys
from cdc.wal_stream import SlotUnusable, WalStream
from cdc.wal_times import KnownTimes
from runtime.postgres import translated

log = structlog.get_logger()

_HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_current_snapshot()::text,
       c.pending_token, c.published_token, pg_catalog.pg_current_wal_insert_lsn()::text,
       -- Tables are locked and read by their names, and known in the WAL by their oids.
       (SELECT w.name FROM unnest(%(names)s::text[], %(oids)s::oid[]) AS w (name, oid)
        WHERE pg_catalog.to_regclass(w.name)::oid IS DISTINCT FROM w.oid LIMIT 1)
FROM cdc.capture c WHERE c.name = %(capture)s
"""
_OWNERS = """
SELECT pg_catalog.pg_current_snapshot()::text, tree.oid::oid, t.id, t.key_columns::text[]
FROM (VALUES (1)) AS one LEFT JOIN (cdc.captured_table t CROSS JOIN LATERAL cdc.tree_of(t.table_oid) AS tree (oid))
    ON t.capture = %(capture)s AND to_regclass(format('%%I.%%I', t.table_schema, t.table_name)) = t.table_oid
"""
# Whether the table's entry in the publication is the one that we have made, and the publication was not altered since:
# then both were there all the time. And what tells them from later ones.
_ENTRY = """
SELECT coalesce(r.xmin = t.published_by AND pg_catalog.age(p.xmin) >= pg_catalog.age(r.xmin), false),
       concat_ws(' ', p.xmin, r.xmin)
FROM cdc.captured_table t
LEFT JOIN pg_catalog.pg_publication p ON p.pubname = cdc.publication_name(t.capture)
LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = t.table_oid
WHERE t.id = %(attachment)s
"""
_PUBLISH = "SELECT cdc.publish(%(attachment)s)"


class WalSource(AttachedSource):
    """Finds changed keys in a slot's stream; a position is that of the WAL before which all commits were read.

    `remake` says what a lost slot leads to: a new one and snapshots, or a stop. About `page_keys` keys wait in memory:
    what is beyond waits in the server.
    """

    kind = SourceKind.WAL

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
        self._owners: dict[int, Owner] = {}
        # The snapshot that these were read in, None before: an empty one would see half of all xids, of 32 bits alone.
        self._owners_of: Visibility | None = None
        self._waiting = WaitingKeys(self._owner_of, 0, prefix="")
        self._tables: Sequence[CapturedTable] = ()
        # What the last round gave out, and the tables with a drain of such keys.
        self._taken: dict[int, Changed] = {}
        self._draining: set[int] = set()
        self._has_room = True
        self._snapshot = Visibility(0, frozenset())
        self._positions: dict[int, int] = {}
        # The xid before which transactions may have begun while a table's entry in the publication was not there.
        self._awaited: dict[tuple[int, str], int] = {}
        self._times = KnownTimes()
        self._confirmed = 0
        # Where the WAL ended in the newest snapshot, and in that of a table's newest page of keys from the topic.
        self._wal_end = 0
        self._looked_up: dict[int, int] = {}

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what is attached, and what it looks like; makes a lost slot anew, or raises CaptureError."""
        tables, looks = super().attached()
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
        beyond = [number for number, at in positions.items() if lsn_number(at) < state.confirmed_at]
        reason = f"replication slot {state.slot} was moved beyond the cursor"
        if len(beyond) < len({owner.attachment for owner in self._owners.values()}):
            # It follows the tables that are read: those that were left out stay behind.
            reason += " (if VIEWKEEPER_CDC_TABLES left the table out for a while, run: viewkeeper-cdc snapshot for it)"
        return dict.fromkeys(beyond, reason)

    def committed(self, published: Mapping[str, TableCursor]) -> None:
        """Let the slot go on to the least of the published positions."""
        if self._stream is None:
            return
        entries = [(table, published.get(str(table.name))) for table in self._tables]
        known = [
            lsn_number(entry.position)
            for table, entry in entries
            if entry is not None
            and entry.attachment == table.attachment
            and entry.position is not None
            and source_of(entry.position) is self.kind
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

    def may_begin(self, table: CapturedTable) -> bool:
        """Not before those transactions are over that may have written while the publication did not have the table.

        We add it once its writers are over; others do not wait for them.
        """
        is_ours, looks = self._entry(table)
        before = self._awaited.setdefault((table.attachment, looks), self._snapshot.xmax)
        return is_ours or self._snapshot.has_ended(before)

    @contextmanager
    def round(
        self, tables: Sequence[CapturedTable], previous: Positions, page_rows: Callable[[CapturedTable], int]
    ) -> Iterator[Round]:
        """Take in what has come, and give out the keys that this round's snapshot sees."""
        self._tables = tables
        if tables:
            self._pump()
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

    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:  # noqa: ARG002
        """Keep the keys in memory, where they are."""
        number = found.table.attachment
        self._draining.add(number)

        def close(rest: Changed | None) -> None:
            self._draining.discard(number)
            if rest is not None:
                self._put_back(number, rest)

        return KeyDrain(found, round_.position_of(found.table), self._taken.pop(number), page_keys, close)

    def ghosts(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> Page | None:
        """Return deletes of keys without a row, as any source; one that came back has its row once the stream has it.

        Until then the topic may have what the key was before it went.
        """
        page = super().ghosts(table, keys)
        if page is not None:
            self._looked_up[table.attachment] = self._wal_end
        return page

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Write the keys into the WAL."""
        self._emit(table, keys, logged=False)

    def begin(self, table: CapturedTable) -> str | None:
        """Return where the slot stands: whoever wrote to the table before was waited for when it was attached."""
        with translated(self._where):
            if not self._entry(table)[0]:
                return None
            return slot_state(self._connection, self._capture).confirmed

    def tell(self, table: CapturedTable, keys: Keys) -> None:
        """Write keys into the WAL."""
        self._emit(table, keys.literals, logged=True)
        # They changed at any time before, and lie behind all ends that were noted.
        self._times = KnownTimes()

    def close(self) -> None:
        """End the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _entry(self, table: CapturedTable) -> tuple[bool, str]:
        row = self._connection.execute(_ENTRY, {"attachment": table.attachment}).fetchone()
        return row or (False, "")

    def _emit(self, table: CapturedTable, keys: Sequence[str | Sequence[str]], *, logged: bool) -> None:
        sql = self._render((table, "emit", logged), lambda: statements.emit_keys(table, logged=logged))
        with translated(self._where):
            self._connection.execute(sql, {"capture": self._capture, **arrays(keys)})

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        values = {
            "capture": self._capture,
            "names": [Identifier(table.name.schema, table.name.name).as_string() for table in tables],
            "oids": [table.oid for table in tables],
        }
        row = self._connection.execute(_HEAD, values, prepare=True).fetchone()
        if row is None:
            raise CaptureError(f"{self._where}: capture {self._capture} has no row in cdc.capture: migrated down?")
        time, snapshot, pending, published, end, replaced = row
        if replaced is not None:
            raise CatalogChanged(f"{replaced}: another table has its name now")
        self._snapshot, self._wal_end = visibility(snapshot), lsn_number(end)
        self._times.note(time, self._wal_end)
        return Round(
            time=time,
            known_by=None,
            position=lsn_text(self._waiting.position),
            tokens=frozenset((pending, published)),
            tables=tables,
            moves_on=True,
        )

    def _pump(self) -> None:
        """Take in what the server has sent, up to about a page of changes; waits for nothing."""
        try:
            stream = self._stream or self._opened()
            end = self._waiting.taken_in + self._page_keys
            for data in stream.messages() if self._has_room else ():
                self._waiting.take_in(data)
                if self._waiting.taken_in >= end:
                    break
        except SlotUnusable as error:
            with translated(self._where):
                self._lost(slot_state(self._connection, self._capture).trouble or str(error))
        self._times.pass_by(self._waiting.position)

    def _opened(self) -> WalStream:
        with translated(self._where):
            state = slot_state(self._connection, self._capture)
            end_other(self._connection, state)
            prefix = self._connection.execute(statements.MESSAGE_PREFIX, {"capture": self._capture}).fetchone()
        # Not where the tables are: nobody has compared yet whether these positions are of this history.
        start = self._confirmed = state.confirmed_at
        self._waiting = WaitingKeys(self._owner_of, start, prefix=prefix[0] if prefix else "")
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
        self._waiting.forget_keys(locked, self._snapshot)
        self._has_room = self._waiting.has_room(self._snapshot, locked, self._page_keys)
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
            self._looked_up = {number: at for number, at in self._looked_up.items() if at > end}
            round_.behind = self._waiting.behind(self._snapshot, end) | self._looked_up.keys()

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

    def _owner_of(self, oid: int, xid: int) -> Owner | None:
        # A partition of just now, or of another table by now: by this transaction, or by one that it saw. It may not be
        # visible yet, and is looked for again then. What a transaction that is seen has changed is in the tree by now,
        # or in none.
        if self._owners_of is None or not self._owners_of.sees(xid):
            with translated(self._where):
                self._learn_owners()
        return self._owners.get(oid)

    def _learn_owners(self) -> None:
        rows = self._connection.execute(_OWNERS, {"capture": self._capture}).fetchall()
        self._owners_of = visibility(rows[0][0])
        owners = {oid: Owner(attachment, tuple(key)) for _, oid, attachment, key in rows if oid is not None}
        if owners != self._owners:
            self._owners = owners
            self._waiting.forget_owners()
