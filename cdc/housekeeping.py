"""What the leader tidies up in the source beside publishing: requests that were begun, limits, change logs, moves."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import structlog

from cdc.cursor import Cursor, TableCursor
from cdc.pruning import SWITCH_BYTES, prune
from cdc.slots import drop_unused_slot
from cdc.tables import CapturedTable, SourceKind, source_of
from runtime.errors import ConfigurationError
from runtime.postgres import LockNotAvailable, translated

log = structlog.get_logger()

KEEP_SECONDS = 2.0

_LIMIT = """
UPDATE cdc.captured_table SET log_limit_bytes = %(limit)s
WHERE id = ANY(%(attachments)s) AND log_limit_bytes <> %(limit)s
"""
_BEGUN = "DELETE FROM cdc.request WHERE attachment = %(attachment)s AND id <= %(request)s"
# A leader of before would drop what its successor reads from, if that was started with the former source.
_SETTLE = "SELECT cdc.settle(%(attachment)s, %(arrived)s), cdc.demand_leader(%(capture)s, %(leader)s)"


class Housekeeping:
    """Keeps change logs short, over a connection of the leader's other than the one that reads.

    `leader` is its name in the lease, `kind` the source that it reads from; a part of a change log is full at
    `part_limit_bytes`.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        capture: str,
        leader: str,
        kind: SourceKind,
        *,
        where: str,
        part_limit_bytes: int,
    ) -> None:
        self._connection = connection
        self._capture = capture
        self._leader = leader
        self._kind = kind
        self._where = where
        self._part_limit_bytes = part_limit_bytes
        # Long before the limit, which a capture that keeps up should never reach.
        self._switch_bytes = min(SWITCH_BYTES, part_limit_bytes // 4)
        self._kept_at = float("-inf")
        # Where no table is read from the WAL any more, a slot would keep it for ever.
        self._is_slot_due = kind is SourceKind.TRIGGERS

    def keep(self, tables: Sequence[CapturedTable], published: Cursor) -> None:
        """Do what is due, by the cursor that Kafka has committed; waits for nobody."""
        now = time.monotonic()
        if now - self._kept_at < KEEP_SECONDS:
            return
        self._kept_at = now
        with _put_off_if_locked(), translated(self._where):
            attachments = [table.attachment for table in tables]
            self._connection.execute(_LIMIT, {"limit": self._part_limit_bytes, "attachments": attachments})
        if self._is_slot_due:
            with _put_off_if_locked():
                self._drop_slot()
        for table in tables:
            entry = published.tables.get(str(table.name))
            if entry is not None and entry.attachment == table.attachment:
                with _put_off_if_locked():
                    self._keep(table, entry)

    def _keep(self, table: CapturedTable, entry: TableCursor) -> None:
        if entry.request:
            with translated(self._where):
                values = {"attachment": table.attachment, "request": entry.request}
                self._connection.execute(_BEGUN, values)
        if entry.position is None or source_of(entry.position) is not self._kind:
            return
        if table.moving_to is self._kind:
            self._settle(table)
        if self._kind is SourceKind.TRIGGERS:
            prune(
                self._connection,
                table,
                published_snapshot=entry.position,
                switch_bytes=self._switch_bytes,
                leader=self._leader,
                where=self._where,
            )

    def _settle(self, table: CapturedTable) -> None:
        """Drop what the source has of a table that it has left: Kafka has committed a position of this one."""
        try:
            with translated(self._where):
                values = {
                    "attachment": table.attachment,
                    "arrived": self._kind,
                    "capture": self._capture,
                    "leader": self._leader,
                }
                row = self._connection.execute(_SETTLE, values).fetchone()
        except LockNotAvailable:
            log.info("table_in_use", table=str(table.name), reason="what its former source has of it is to be dropped")
            return
        if row is None or row[0] is None:
            return
        log.info("moved", table=str(table.name), source=self._kind)
        self._is_slot_due = self._kind is SourceKind.TRIGGERS
        if not row[0]:
            log.warning(
                "former_source_left",
                table=str(table.name),
                reason=f"this role may not drop it; as its owner, with VIEWKEEPER_CDC_SOURCE={self._kind}, run: "
                f"viewkeeper-cdc attach {table.name}",
            )

    def _drop_slot(self) -> None:
        try:
            self._is_slot_due = not drop_unused_slot(self._connection, self._capture, where=self._where)
        except ConfigurationError as error:
            self._is_slot_due = False
            log.warning("slot_left", reason=f"{error}; until it is dropped, the server keeps all WAL for it")


@contextmanager
def _put_off_if_locked() -> Iterator[None]:
    """Leave it for the next time where somebody holds a table's entry, or the slot: an attach that moves it."""
    try:
        yield
    except LockNotAvailable as error:
        log.debug("tidying_put_off", reason=str(error))
