"""The triggers source: which keys changed since the cursor, asked of the change logs that triggers fill.

A poll takes the keys of transactions that are visible in the current snapshot and were not in the previous one, as
PgQ's ticks do: no clock, no gap, no wait behind open transactions. Rows are read again in that same snapshot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg import errors as pg
from psycopg.sql import Identifier
from psycopg.types.numeric import Int8

from cdc import statements
from cdc.errors import CaptureError, CatalogChanged
from cdc.fingerprints import Seen
from cdc.pruning import empty
from cdc.rounds import NOTHING_KNOWN, CursorDrain, Drain, Found, Keys, KnownBy, Mark, Positions, Round
from cdc.source import AttachedSource, arrays
from cdc.tables import CapturedTable, SourceKind
from runtime.postgres import translated

_NOW = "SELECT pg_catalog.pg_current_snapshot()::text"
_TELL = "SELECT cdc.log_keys(%(attachment)s, VARIADIC %(arrays)s::text[])"
# A leader of before would give rights back to log a table that its successor has begun with: what was not logged
# meanwhile would never be found.
_COMPLETE = "SELECT cdc.complete(%(attachment)s), cdc.demand_leader(%(capture)s, %(leader)s)"
_PRUNED = """
SELECT t.id FROM cdc.captured_table t
JOIN unnest(%(attachments)s::integer[], %(snapshots)s::pg_snapshot[]) AS c (id, snapshot) ON c.id = t.id
WHERE pg_snapshot_xmax(t.pruned_snapshot) > pg_snapshot_xmax(c.snapshot)
   OR EXISTS (SELECT FROM pg_snapshot_xip(c.snapshot) AS open (xid)
              WHERE pg_visible_in_snapshot(open.xid, t.pruned_snapshot))
"""


class TriggerSource(AttachedSource):
    """Finds changed keys in change logs; a position in one is the `pg_snapshot` of a poll.

    `leader` is the name in the lease of who may empty a log and mend triggers; without one nobody may.
    """

    kind = SourceKind.TRIGGERS

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str, leader: str = "") -> None:
        super().__init__(connection, capture, where=where)
        self._leader = leader

    def attached(self) -> tuple[tuple[CapturedTable, ...], dict[int, Seen]]:
        """Return what has a change log, and what it looks like."""
        tables, looks = super().attached()
        # One that moves is published, too, and nobody reads the WAL who would see that its identity is gone.
        if any(SourceKind.WAL in (table.source, table.moving_to) for table in tables):
            self._let_writers_go_on()
        return tables, looks

    def out_of_reach(self, positions: Mapping[int, str]) -> Mapping[int, str]:
        """Return the attachments whose change log was emptied further than these positions reach."""
        values = {"attachments": list(positions), "snapshots": list(positions.values())}
        with translated(self._where):
            pruned = self._connection.execute(_PRUNED, values).fetchall()
        reason = "its change log was emptied beyond the cursor: Kafka was set back"
        return {attachment: reason for (attachment,) in pruned}

    def arm(self, table: CapturedTable) -> bool:
        """Add triggers of later partitions, and rights that the triggers' owner lacks."""
        values = {"attachment": table.attachment, "capture": self._capture, "leader": self._leader}
        with translated(self._where), suppress(pg.ObjectNotInPrerequisiteState):
            row = self._connection.execute(_COMPLETE, values).fetchone()
            return row is not None and row[0] is True
        return False

    def empty(self, table: CapturedTable) -> None:
        """Empty the change log of a table that waits, a step at a time."""
        empty(self._connection, table, leader=self._leader, where=self._where)

    @contextmanager
    def round(
        self, tables: Sequence[CapturedTable], previous: Positions, page_rows: Callable[[CapturedTable], int]
    ) -> Iterator[Round]:
        """Take the keys that were logged since."""
        with translated(self._where), self._reading(tables) as readable:
            round_ = self._head(readable)
            known = [table for table in readable if table.name in previous]
            if known:
                round_.found = list(self._probe(known, previous, [page_rows(table) for table in known]))
            yield round_

    def as_of(self, tables: Sequence[CapturedTable]) -> Mapping[int, KnownBy]:
        """Ask the projector, for the views that it keeps."""
        projected = [table for table in tables if table.is_projected]
        if not projected:
            return {}
        rows = self._connection.execute(statements.AS_OF, prepare=True)
        known = {relation: KnownBy(time, uncertain) for relation, time, uncertain in rows}
        return {table.attachment: known.get(table.oid, NOTHING_KNOWN) for table in projected}

    def may_begin(self, table: CapturedTable) -> bool:
        """Not while logging has stopped because a part of the change log is full."""
        return not self._is_full(table)

    def drain(self, round_: Round, found: Found, previous: Positions, *, page_keys: int) -> Drain:
        """Keep the keys in a cursor of the session."""
        cursor = self._connection.cursor(f"viewkeeper_keys_{found.table.attachment}", withhold=True)
        cursor.itersize = 1
        pages = statements.key_pages(found.table, page_keys=page_keys)
        cursor.execute(pages, {"snapshot": previous[found.table.name]})
        return CursorDrain(found, round_.position, cursor, where=self._where)

    def log_keys(self, table: CapturedTable, keys: Sequence[Sequence[str]]) -> None:
        """Log keys as the triggers do."""
        with translated(self._where):
            self._connection.execute(self._render((table, "log"), lambda: statements.log_keys(table)), arrays(keys))

    def begin(self, table: CapturedTable) -> str | None:
        """Return the snapshot of now; None if logging has stopped, since writers leave no further mark then."""
        with translated(self._where):
            row = self._connection.execute(_NOW).fetchone()
            # After the snapshot: a mark that is not seen here is none that a poll from there on would pass over.
            return str(row[0]) if row and not self._is_full(table) else None

    def tell(self, table: CapturedTable, keys: Keys) -> None:
        """Log keys as the triggers do."""
        values = {"attachment": table.attachment, "arrays": list(keys.literals)}
        with translated(self._where):
            self._connection.execute(_TELL, values)

    def _is_full(self, table: CapturedTable) -> bool:
        sql = self._render((table, "limit"), lambda: statements.limit_reached(table))
        return self._connection.execute(sql).fetchone() is not None

    def _head(self, tables: tuple[CapturedTable, ...]) -> Round:
        row = self._connection.execute(statements.HEAD, {"capture": self._capture}, prepare=True).fetchone()
        if row is None:
            raise CaptureError(f"{self._where}: capture {self._capture} has no row in cdc.capture: migrated down?")
        time, snapshot, pending, published = row
        return Round(time=time, known_by=time, position=snapshot, tokens=frozenset((pending, published)), tables=tables)

    def _locked(self, tables: Sequence[CapturedTable]) -> list[Identifier]:
        logs = [statements.log_name(table, part) for table in tables for part in statements.PARTS]
        return [*super()._locked(tables), *logs]

    def _probe(
        self, tables: Sequence[CapturedTable], previous: Positions, most_records: Sequence[int]
    ) -> Iterator[Found]:
        # Pages' sizes are parameters: they change all the time while a table is read.
        sql = self._render((*tables, "probe"), lambda: statements.probe(tables))
        snapshots = {f"snapshot_{number}": previous[table.name] for number, table in enumerate(tables)}
        values = snapshots | {f"most_{number}": Int8(most) for number, most in enumerate(most_records)}
        for number, replaced, records, marks, keys in self._connection.execute(sql, values, prepare=True):
            if replaced:
                raise CatalogChanged(f"{tables[number].name}: another table has its name now")
            if records:
                changed = Keys(int(keys[-1]), keys[:-1])
                yield Found(tables[number], records, frozenset(map(Mark, marks or ())), changed)
