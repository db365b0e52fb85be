"""What the leader tidies up in the source beside publishing: requests that were begun, limits, change logs."""

import time
from collections.abc import Sequence

import psycopg

from cdc.cursor import Cursor, TableCursor
from cdc.pruning import SWITCH_BYTES, prune
from cdc.tables import CapturedTable, SourceKind
from runtime.postgres import translated

KEEP_SECONDS = 2.0

_LIMIT = """
UPDATE cdc.captured_table SET log_limit_bytes = %(limit)s
WHERE id = ANY(%(attachments)s) AND log_limit_bytes <> %(limit)s
"""
_BEGUN = "DELETE FROM cdc.request WHERE attachment = %(attachment)s AND id <= %(request)s"


class Housekeeping:
    """Keeps change logs short, over a connection of the leader's other than the one that reads.

    `part_limit_bytes` is the size at which a part of a change log is full.
    """

    def __init__(self, connection: psycopg.Connection, *, where: str, part_limit_bytes: int) -> None:
        self._connection = connection
        self._where = where
        self._part_limit_bytes = part_limit_bytes
        # Long before the limit, which a capture that keeps up should never reach.
        self._switch_bytes = min(SWITCH_BYTES, part_limit_bytes // 4)
        self._kept_at = float("-inf")

    def keep(self, tables: Sequence[CapturedTable], published: Cursor) -> None:
        """Do what is due, by the cursor that Kafka has committed; waits for nobody."""
        now = time.monotonic()
        if now - self._kept_at < KEEP_SECONDS:
            return
        self._kept_at = now
        with translated(self._where):
            attachments = [table.attachment for table in tables]
            self._connection.execute(_LIMIT, {"limit": self._part_limit_bytes, "attachments": attachments})
        for table in tables:
            entry = published.tables.get(str(table.name))
            if entry is not None and entry.attachment == table.attachment:
                self._keep(table, entry)

    def _keep(self, table: CapturedTable, entry: TableCursor) -> None:
        if entry.request:
            with translated(self._where):
                values = {"attachment": table.attachment, "request": entry.request}
                self._connection.execute(_BEGUN, values)
        if entry.position is not None and table.source is SourceKind.TRIGGERS:
            prune(
                self._connection,
                table,
                published_snapshot=entry.position,
                switch_bytes=self._switch_bytes,
                where=self._where,
            )
