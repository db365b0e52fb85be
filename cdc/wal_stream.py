"""The edge to a walsender: a slot's stream of pgoutput messages over libpq, and how far it is confirmed."""

import time
from collections.abc import Iterator
from struct import Struct

import psycopg
from psycopg import errors as pg
from psycopg.pq import ExecStatus
from psycopg.sql import SQL, Identifier, Literal

from cdc.lease import BUSY_SECONDS
from cdc.lsn import lsn_text
from cdc.session import SESSION
from runtime.postgres import DatabaseUnavailable, describe, known, open_connection, translated

STATUS_SECONDS = 0.2
"""The server is told how far the stream is confirmed at most so often, and at least each second."""
_QUIET_SECONDS = 1.0
_EPOCH_SECONDS = 946_684_800
"""Postgres counts time from the year 2000."""

_START = "START_REPLICATION SLOT {slot} LOGICAL {start} (proto_version '1', publication_names {name}, messages 'true')"
_STATUS = Struct(">cqqqq?")
# A walsender takes no settings for locks: it waits for none, but its start may. While a page is read the server is told
# nothing, and is to be patient for as long as the lease is kept meanwhile.
_SETTINGS = {name: value for name, value in SESSION.items() if name != "lock_timeout"} | {
    "wal_sender_timeout": f"{BUSY_SECONDS:.0f}s"
}


class SlotUnusable(DatabaseUnavailable):
    """The server refuses to decode from this slot: a look at it says why."""


class WalStream:
    """What a slot's walsender sends from `start` on, never waiting for it."""

    def __init__(self, url: str, *, name: str, slot: str, publication: str, start: int) -> None:
        self._where = f"{describe(url)}, replication slot {slot}"
        self._told = start
        self._told_at = float("-inf")
        self._connection = open_connection(url, name=name, where=self._where, replication="database")
        try:
            self._begin(slot, publication, start)
        except BaseException:
            self._connection.close()
            raise

    @property
    def backend_pid(self) -> int:
        """The process of the walsender."""
        return self._connection.info.backend_pid

    def messages(self) -> Iterator[bytes]:
        """Yield what has arrived, each as CopyData frames it: a message `w` or a keepalive `k`."""
        wire = self._connection.pgconn
        with translated(self._where):
            while True:
                size, data = wire.get_copy_data(1)
                if not size:
                    wire.consume_input()
                    size, data = wire.get_copy_data(1)
                if size < 0:
                    self._ended()
                if not size:
                    return
                yield bytes(data)

    def confirm(self, position: int, *, ask: bool) -> None:
        """Tell the server, now and then, that nothing before `position` is needed; `ask` for how far it has come."""
        now = time.monotonic()
        due = STATUS_SECONDS if ask or position != self._told else _QUIET_SECONDS
        if now - self._told_at < due:
            return
        self._told, self._told_at = position, now
        micros = int((time.time() - _EPOCH_SECONDS) * 1_000_000)
        # As written, too: the server sends its position before it waits, while that is ahead of what is written.
        status = _STATUS.pack(b"r", position, position, position, micros, ask)
        with translated(self._where):
            self._connection.pgconn.put_copy_data(status)
            self._connection.pgconn.flush()

    def close(self) -> None:
        """End the stream; the slot stays."""
        self._connection.close()

    def _begin(self, slot: str, publication: str, start: int) -> None:
        # Keys are written by the walsender: its session needs the settings that make the same texts everywhere.
        settings = SQL(", ").join(
            SQL("pg_catalog.set_config({}, {}, false)").format(name, value)
            for name, value in known(_SETTINGS, self._connection).items()
        )
        begin = SQL(_START).format(
            slot=Identifier(slot), start=SQL(lsn_text(start)), name=Literal(Identifier(publication).as_string())
        )
        wire = self._connection.pgconn
        with translated(self._where):
            for sql in (SQL("SELECT {}").format(settings), begin):
                # In simple queries: a replication connection knows no others.
                result = wire.exec_(sql.as_bytes(None))
                if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COPY_BOTH):
                    self._refused(pg.error_from_result(result, encoding="utf-8"))

    def _ended(self) -> None:
        result = self._connection.pgconn.get_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            self._refused(pg.error_from_result(result, encoding="utf-8"))
        raise DatabaseUnavailable(f"{self._where}: the server ended the stream")

    def _refused(self, error: psycopg.Error) -> None:
        # The last is what a server says that cannot make sense of its WAL: it says so again each time.
        if isinstance(error, pg.UndefinedObject | pg.ObjectNotInPrerequisiteState | pg.InternalError_):
            raise SlotUnusable(f"{self._where}: {' '.join(str(error).split())}") from error
        raise error
