"""Snapshots on demand: asked of the running capture, since a second publisher could write images older than its own."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from cdc.cursor import Cursor
from cdc.errors import CaptureError
from cdc.progress import Phase, phase
from cdc.snapshot_progress import (
    SnapshotProgress,
    SweepProgress,
    rows_words,
    snapshot_progress,
    sweep_progress,
    sweep_words,
)
from cdc.status_source import StatusSource
from cdc.watching import CursorTail, Watch
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.postgres import translated

LOOK_SECONDS = 0.25

_ATTACHED = """
SELECT id, table_schema, table_name FROM cdc.captured_table WHERE capture = %(capture)s
"""
_REQUEST = """
INSERT INTO cdc.request (capture, attachment, kind)
SELECT %(capture)s, t.id, 'snapshot' FROM cdc.captured_table t WHERE t.id = %(attachment)s
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A request that stands in the source until the capture begins with it."""

    id: int
    table: TableName
    attachment: int


def request_snapshots(
    connection: psycopg.Connection, capture: str, tables: Sequence[TableName], *, where: str
) -> tuple[SnapshotRequest, ...]:
    """Ask for a snapshot of each table, all or none.

    Raises ConfigurationError if one is not attached to the capture.
    """
    with translated(where), connection.transaction():
        rows = connection.execute(_ATTACHED, {"capture": capture})
        attached = {TableName(schema, name): attachment for attachment, schema, name in rows}
        requests = []
        for table in dict.fromkeys(tables):
            row = None
            if table in attached:
                values = {"capture": capture, "attachment": attached[table]}
                row = connection.execute(_REQUEST, values).fetchone()
            if row is None:
                raise ConfigurationError(
                    f"{where}: {table} is not attached to capture {capture}; run: viewkeeper-cdc attach {table}"
                )
            requests.append(SnapshotRequest(row[0], table, attached[table]))
    return tuple(requests)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a requested snapshot has come; `phase` is None until the capture has begun with it."""

    table: TableName
    phase: Phase | None
    snapshot: SnapshotProgress | None = None
    sweep: SweepProgress | None = None

    @property
    def is_done(self) -> bool:
        """Whether the topic equals the table again."""
        return self.phase is Phase.COMPLETE

    @property
    def words(self) -> str:
        """Say it in words."""
        if self.phase is None:
            return "waits for the capture to begin"
        if self.snapshot is not None:
            return f"{self.phase}: {rows_words(self.snapshot)}"
        return f"{self.phase}: {sweep_words(self.sweep)}" if self.sweep is not None else str(self.phase)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at all requests; `is_running` is None until it is known whether a capture runs."""

    steps: tuple[Step, ...]
    is_running: bool | None


def follow(
    requests: Sequence[SnapshotRequest], source: StatusSource, leader: Watch, tail: CursorTail
) -> Iterator[Look]:
    """Yield a look now and then, about four a second, until all requests are done.

    Raises CaptureError if a table was detached, so that its request is gone.
    """
    while True:
        who = leader.look()
        is_running = True if who.alive else (False if leader.is_settled(who) else None)
        cursor = tail.newest()
        totals, now = {table.attachment: table.total_rows for table in source.tables()}, source.now()
        for request in requests:
            if request.attachment not in totals:
                raise CaptureError(f"{request.table} was detached: its request is gone")
        steps = tuple(
            step(request, cursor, total_rows=totals[request.attachment], now=now, is_running=bool(is_running))
            for request in requests
        )
        yield Look(steps, is_running)
        if all(one.is_done for one in steps):
            return
        time.sleep(LOOK_SECONDS)


def step(
    request: SnapshotRequest, cursor: Cursor | None, *, total_rows: int | None, now: datetime, is_running: bool
) -> Step:
    """Return how far a request has come by a cursor. Pure."""
    entry = cursor.tables.get(str(request.table)) if cursor else None
    if entry is None or entry.attachment != request.attachment or entry.request < request.id:
        return Step(request.table, None)
    snapshot = snapshot_progress(entry, total_rows=total_rows, now=now, is_running=is_running)
    return Step(request.table, phase(entry), snapshot, sweep_progress(entry))
