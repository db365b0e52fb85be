"""What the source says of a capture: attached tables, change logs, requests, the oldest open transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, cast

import msgspec
import psycopg
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier

from cdc.cursor import Cursor, TableCursor
from cdc.session import SESSION
from cdc.slots import SlotState, slot_state
from cdc.statements import PARTS
from cdc.tables import SourceKind, source_of
from runtime.postgres import ObjectMissing, translated

STATUS_SESSION: Mapping[str, str] = {**SESSION, "lock_timeout": "5s", "statement_timeout": "30s"}
"""Only ACCESS SHARE is waited for, which no writer's lock conflicts with: nobody queues behind a status."""

MOST_COUNTED = 1_000_000
"""Waiting records are counted up to here."""

_TABLES: LiteralString = """
SELECT t.id AS attachment, t.table_schema || '.' || t.table_name AS name, t.kind, t.source, t.moving_to,
       CASE WHEN 'triggers' IN (t.source, t.moving_to) THEN t.level END AS level,
       t.listed::text[] AS columns, coalesce(t.masks, '{}')::text[] AS masks,
       CASE WHEN 'triggers' IN (t.source, t.moving_to) THEN t.log_limit_bytes END AS log_limit_bytes,
       coalesce(sum(pg_catalog.pg_total_relation_size(p.oid)), 0)::bigint AS log_bytes,
       coalesce(sum(pg_catalog.pg_relation_size(p.oid))
                FILTER (WHERE p.relname = format('log_%%s_%%s', t.id, t.active_part)), 0)::bigint AS log_filling_bytes,
       (SELECT CASE WHEN min(l.reltuples) >= 0 THEN sum(l.reltuples)::bigint END
        FROM pg_catalog.pg_class l
        WHERE l.relkind = 'r' AND l.oid IN (SELECT cdc.tree_of(t.table_oid)::oid)) AS total_rows
FROM cdc.captured_table t
LEFT JOIN pg_catalog.pg_class p
       ON p.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'cdc')
      AND p.relname = ANY (ARRAY[format('log_%%s_0', t.id), format('log_%%s_1', t.id)])
WHERE t.capture = %(capture)s
GROUP BY t.id
ORDER BY t.id
"""
# The poll's own condition, see TriggerSource.
_WAITING: LiteralString = """
SELECT count(*) FROM (
    SELECT FROM (SELECT xid FROM {part_0} UNION ALL SELECT xid FROM {part_1}) AS log
    WHERE xid >= pg_catalog.pg_snapshot_xmax(%(snapshot)s::pg_snapshot)
       OR xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%(snapshot)s::pg_snapshot)))
    LIMIT %(most)s) AS waiting
"""
_REQUESTS = """
SELECT r.id, t.table_schema || '.' || t.table_name AS table, r.requested_at
FROM cdc.request r JOIN cdc.captured_table t ON t.id = r.attachment
WHERE r.capture = %(capture)s
ORDER BY r.id
"""
_OLDEST = """
SELECT greatest(extract(epoch FROM clock_timestamp() - began), 0)::float8 AS age_seconds,
       pid, application, state, prepared_as
FROM (
    SELECT a.xact_start AS began, a.pid, nullif(a.application_name, '') AS application, a.state,
           NULL::text AS prepared_as
    FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
      AND a.backend_type = 'client backend' AND a.xact_start IS NOT NULL
    UNION ALL
    SELECT p.prepared, NULL, NULL, 'prepared', p.gid
    FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database()) AS open
ORDER BY began LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class AttachedTable:
    """A row of cdc.captured_table with what its change log holds, in bytes.

    `columns` is None where all columns may leave the database. `log_bytes` is both parts with their indexes,
    `log_filling_bytes` the rows of the part that writers fill;
    `total_rows` the planner's guess of the table's rows, partitions summed, None if it has none. Only triggers have a
    level and a change log, whose limit is None else; a table that is polled has a `mode`.
    """

    attachment: int
    name: str
    kind: str
    source: str
    level: str | None
    columns: list[str] | None
    masks: list[str]
    log_limit_bytes: int | None
    log_bytes: int | None
    log_filling_bytes: int | None
    total_rows: int | None
    mode: str | None = None
    moving_to: str | None = None


class RequestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that was asked for and is not begun."""

    id: int
    table: str
    requested_at: datetime


class OpenTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """The transaction of the source database that is open for longest: it keeps change logs from being emptied.

    `state` is pg_stat_activity's, or `prepared`; then `prepared_as` is its identifier, and it has no `pid`. Other
    roles' transactions are seen with the rights of pg_read_all_stats only.
    """

    age_seconds: float
    pid: int | None
    application: str | None
    state: str | None
    prepared_as: str | None


class StatusSource:
    """Asks the source over a connection of its own, in autocommit, with STATUS_SESSION."""

    def __init__(self, connection: psycopg.Connection, capture: str, *, where: str) -> None:
        self._connection = connection
        self._capture = {"capture": capture}
        self._where = where

    def now(self) -> datetime:
        """Return the source's clock."""
        with translated(self._where):
            (now,) = self._connection.execute("SELECT clock_timestamp()")
        return cast(datetime, now[0])

    def tables(self) -> Sequence[AttachedTable]:
        """Return what is attached, in the order of attachment; a table that was dropped is among them."""
        with translated(self._where), self._connection.cursor(row_factory=class_row(AttachedTable)) as cursor:
            return cursor.execute(_TABLES, self._capture).fetchall()

    def records_waiting(self, table: AttachedTable, entry: TableCursor | None) -> int | None:
        """Count the change log's records that the cursor does not cover, up to MOST_COUNTED.

        None without a log, without a position in it, and for one that has just been detached.
        """
        if entry is None or entry.position is None or source_of(entry.position) is not SourceKind.TRIGGERS:
            return None
        parts = {f"part_{part}": Identifier("cdc", f"log_{table.attachment}_{part}") for part in PARTS}
        values = {"snapshot": entry.position, "most": MOST_COUNTED}
        try:
            with translated(self._where):
                row = self._connection.execute(SQL(_WAITING).format(**parts), values).fetchone()
        except ObjectMissing:
            return None
        return row[0] if row else None

    def slot(self) -> SlotState | None:
        """Return the capture's slot, and what is missing of it; None where there can be none."""
        with translated(self._where):
            return slot_state(self._connection, self._capture["capture"])

    def left(self) -> tuple[str, ...]:
        """Return in words what the database keeps for a source that the capture reads no more."""
        return ()

    def gone(self) -> tuple[str, ...]:
        """Return in words which tables are not among `tables` any more, as they were found last."""
        return ()

    def requests(self, newest: Cursor | None) -> Sequence[RequestStatus]:  # noqa: ARG002 - in Kafka it is needed
        """Return the requests that the capture has not begun, oldest first."""
        with translated(self._where), self._connection.cursor(row_factory=class_row(RequestStatus)) as cursor:
            return cursor.execute(_REQUESTS, self._capture).fetchall()

    def oldest_transaction(self) -> OpenTransaction | None:
        """Return the transaction that is open for longest, None if there is none."""
        with translated(self._where), self._connection.cursor(row_factory=class_row(OpenTransaction)) as cursor:
            return cursor.execute(_OLDEST).fetchone()
