"""A capture's publication and replication slot: made, looked at and dropped.

A slot that Postgres has made beside open transactions cannot be trusted at its beginning. While its first snapshot is
being built, the server notes no commit, and takes what one has created, or attached as a partition, for absent. It
stops at a change of such a table ("could not map filenumber"), or leaves the change out without a word: see "Fix
logical decoding not track transaction during SNAPBUILD_BUILDING_SNAPSHOT", pgsql-hackers, November 2025. Once the slot
begins at a later look at the running transactions, those that it missed are over, and the server knows how they ended.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
import structlog
from psycopg import errors as pg
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier

from cdc.errors import CaptureError
from cdc.lsn import lsn_number
from runtime.errors import ConfigurationError
from runtime.postgres import LockNotAvailable, translated

log = structlog.get_logger()

OPEN_TRANSACTIONS_SECONDS = 30
"""A new slot waits for all transactions that are open when it is made, for so long at most, and then once more."""
SLOT_PATIENCE_SECONDS = 3.0 * OPEN_TRANSACTIONS_SECONDS
"""A command that needs the slot waits for another one that makes or drops it, for so long at most."""

# Advisory locks of a session go with it, however it ends; the number is ours by chance alone.
_LOCK = "SELECT pg_catalog.pg_advisory_lock(1986359859, pg_catalog.hashtext(%(capture)s))"
_UNLOCK = "SELECT pg_catalog.pg_advisory_unlock(1986359859, pg_catalog.hashtext(%(capture)s))"
_LOCK_PATIENCE = "SELECT pg_catalog.set_config('lock_timeout', %(milliseconds)s, true)"
_STATE = """
SELECT cdc.publication_name(%(capture)s) AS publication, cdc.slot_name(%(capture)s) AS slot,
       EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = cdc.publication_name(%(capture)s))
           AS is_published,
       s.wal_status, s.confirmed_flush_lsn::text AS confirmed, s.active_pid,
       s.slot_name IS NOT NULL AS exists,
       greatest(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS held_bytes
FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = cdc.slot_name(%(capture)s)
"""
_LEVEL = "SELECT pg_catalog.current_setting('wal_level')"
# One that waits for transactions is in nobody's way: no writer queues behind it.
_PATIENCE = "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)"
_CREATE_TEMPORARY = "SELECT pg_catalog.pg_create_logical_replication_slot(%(slot)s, 'pgoutput', true)"
_CONFIRMED = "SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = %(slot)s"
_BEGINS_LATER = "SELECT restart_lsn >= %(at)s FROM pg_catalog.pg_replication_slots WHERE slot_name = %(slot)s"
_ADVANCE = "SELECT pg_catalog.pg_replication_slot_advance(%(slot)s, pg_catalog.pg_current_wal_flush_lsn())"
_KEEP = "SELECT pg_catalog.pg_copy_logical_replication_slot(%(temporary)s, %(slot)s, false)"
_DROP_SLOT = "SELECT pg_catalog.pg_drop_replication_slot(%(slot)s)"
_END_OTHER = "SELECT pg_catalog.pg_terminate_backend(%(pid)s)"
_USED = """
SELECT EXISTS (
    SELECT FROM cdc.captured_table t WHERE t.capture = %(capture)s AND 'wal' IN (t.source, t.moving_to))
"""
_SYNC_STATE = """
SELECT sync_state, pg_catalog.current_setting('synchronous_standby_names')
FROM pg_catalog.pg_stat_replication WHERE pid = %(pid)s
"""
# Unquoted, FIRST, ANY and the number of standbys are among them: no walsender of ours is called so.
_STANDBY_NAME = re.compile(r'"((?:[^"]|"")*)"|([^\s,()"]+)')
_REQUEST_ALL = """
INSERT INTO cdc.request (capture, attachment, kind)
SELECT t.capture, t.id, 'snapshot' FROM cdc.captured_table t
WHERE t.capture = %(capture)s AND 'wal' IN (t.source, t.moving_to)
"""


@dataclass(frozen=True, slots=True)
class SlotState:
    """A capture's publication and slot as the catalog has them; `held_bytes` of WAL are kept for the slot."""

    publication: str
    slot: str
    is_published: bool
    exists: bool
    wal_status: str | None
    confirmed: str | None
    active_pid: int | None
    held_bytes: int | None

    @property
    def trouble(self) -> str | None:
        """Why changes are lost, if they are."""
        if not self.exists:
            return f"replication slot {self.slot} is gone"
        if self.wal_status == "lost":
            return f"replication slot {self.slot} was invalidated: the server kept no WAL for it any longer"
        return None if self.is_published else f"publication {self.publication} was dropped"

    @property
    def confirmed_at(self) -> int:
        """The position before which the server keeps nothing for the slot."""
        return lsn_number(self.confirmed) if self.confirmed else 0


def slot_state(connection: psycopg.Connection, capture: str) -> SlotState:
    """Look at a capture's publication and slot."""
    with connection.cursor(row_factory=class_row(SlotState)) as cursor:
        state = cursor.execute(_STATE, {"capture": capture}).fetchone()
    if state is None:
        raise AssertionError("one row is always selected")
    return state


@contextmanager
def slot_held(
    connection: psycopg.Connection, capture: str, *, where: str, patience_seconds: float | None = None
) -> Iterator[None]:
    """Be the only one who makes a capture's slot for a table, or finds that none needs it and drops it.

    Waits for others as for any lock unless told for how long; raises LockNotAvailable then.
    """
    lock = {"capture": capture}
    try:
        # The lock is the session's: no transaction is to be open, since a new slot would wait for it.
        with translated(where), connection.transaction():
            if patience_seconds is not None:
                connection.execute(_LOCK_PATIENCE, {"milliseconds": f"{patience_seconds * 1000:.0f}"})
            connection.execute(_LOCK, lock)
    except LockNotAvailable as error:
        raise LockNotAvailable(
            f"{where}: another session makes or drops the replication slot of capture {capture}"
        ) from error
    try:
        yield
    finally:
        if not connection.closed:
            with translated(where):
                connection.execute(_UNLOCK, lock)


def make_slot(connection: psycopg.Connection, capture: str, *, where: str) -> None:
    """Make a capture's publication and slot, if they are not there, while the slot is held.

    In this order, each in a transaction of its own: what was written before a publication was there cannot be decoded
    for it. Raises ConfigurationError if the server cannot decode its WAL, or has no slot left.
    """
    with translated(where):
        if connection.execute(_LEVEL).fetchone() != ("logical",):
            raise ConfigurationError(
                f"{where}: wal_level is not logical, which VIEWKEEPER_CDC_SOURCE=wal needs: ALTER SYSTEM SET wal_level "
                "= logical, then restart the server"
            )
        state = slot_state(connection, capture)
        if not state.is_published:
            with suppress(pg.DuplicateObject):
                connection.execute(SQL("CREATE PUBLICATION {}").format(Identifier(state.publication)))
        if not state.exists:
            _create_slot(connection, state.slot, where)


def make_slot_anew(connection: psycopg.Connection, capture: str, *, where: str) -> None:
    """Make what is lost of a capture's publication and slot anew, and ask for a snapshot of all of its tables.

    They are asked for first: a crash in between asks again. Without a table that needs it nothing was lost.
    """
    with slot_held(connection, capture, where=where):
        with translated(where):
            if not _is_used(connection, capture):
                return
            connection.execute(_REQUEST_ALL, {"capture": capture})
            state = slot_state(connection, capture)
            if state.exists:
                connection.execute(_DROP_SLOT, {"slot": state.slot})
        make_slot(connection, capture, where=where)


def drop_unused_slot(connection: psycopg.Connection, capture: str, *, where: str) -> bool:
    """Drop a capture's slot and publication if no table needs them; False while a capture still reads from the slot.

    Raises LockNotAvailable while somebody makes them, for a table that is attached next.
    """
    with slot_held(connection, capture, where=where), translated(where):
        state = slot_state(connection, capture)
        if _is_used(connection, capture):
            return True
        if state.exists:
            try:
                connection.execute(_DROP_SLOT, {"slot": state.slot})
            except pg.ObjectInUse:
                return False
        if state.is_published:
            connection.execute(SQL("DROP PUBLICATION IF EXISTS {}").format(Identifier(state.publication)))
    return True


def end_other(connection: psycopg.Connection, state: SlotState) -> None:
    """End whoever reads from the slot: the lease is ours, so that it is a leader of before."""
    if state.active_pid is not None:
        log.warning("slot_taken_over", slot=state.slot, pid=state.active_pid)
        connection.execute(_END_OTHER, {"pid": state.active_pid})


def demand_asynchronous(connection: psycopg.Connection, pid: int, name: str, *, where: str) -> None:
    """Raise CaptureError if commits wait for our walsender: they would wait for us, and we for them."""
    state, names = connection.execute(_SYNC_STATE, {"pid": pid}).fetchone() or ("async", "")
    # Without pg_read_all_stats a role is not told the state, not even its own walsender's.
    if is_awaited(names, name) if state is None else state != "async":
        raise CaptureError(
            f"{where}: synchronous_standby_names counts this capture among the standbys that commits wait for; name "
            f"the real ones there, without * and without {name!r}"
        )


def is_awaited(standby_names: str, name: str) -> bool:
    """Return whether commits may wait for a standby of this name, by the setting synchronous_standby_names."""
    names = {quoted.replace('""', '"') or bare for quoted, bare in _STANDBY_NAME.findall(standby_names)}
    return not {"*", name.lower()}.isdisjoint(listed.lower() for listed in names)


def _is_used(connection: psycopg.Connection, capture: str) -> bool:
    return connection.execute(_USED, {"capture": capture}).fetchone() == (True,)


def _create_slot(connection: psycopg.Connection, slot: str, where: str) -> None:
    kept = connection.execute("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')").fetchone()
    connection.execute(_PATIENCE, ("0", f"{OPEN_TRANSACTIONS_SECONDS}s"))
    try:
        # It is temporary until it can be read from: a crash leaves none that looks as if it could.
        with _temporary_slot(connection) as temporary:
            _outlast_first_snapshot(connection, temporary)
            with suppress(pg.DuplicateObject):
                connection.execute(_KEEP, {"temporary": temporary, "slot": slot})
    except pg.QueryCanceled as error:
        raise ConfigurationError(
            f"{where}: a replication slot waits until all transactions that are open have ended, and one has not for "
            f"{OPEN_TRANSACTIONS_SECONDS} s: see pg_stat_activity and pg_prepared_xacts for the oldest, then try again"
        ) from error
    except pg.ConfigurationLimitExceeded as error:
        raise ConfigurationError(
            f"{where}: all replication slots are in use, and making one takes two for a moment: raise "
            "max_replication_slots and restart the server"
        ) from error
    finally:
        if not connection.closed:
            connection.execute(_PATIENCE, kept)


@contextmanager
def _temporary_slot(connection: psycopg.Connection) -> Iterator[str]:
    slot = f"viewkeeper_{secrets.token_hex(8)}"
    connection.execute(_CREATE_TEMPORARY, {"slot": slot})
    try:
        yield slot
    finally:
        if not connection.closed:
            connection.execute(_DROP_SLOT, {"slot": slot})


def _outlast_first_snapshot(connection: psycopg.Connection, slot: str) -> None:
    """Move a new slot on until it begins after the snapshot that it was made with."""
    (made_at,) = connection.execute(_CONFIRMED, {"slot": slot}).fetchone() or (None,)
    while connection.execute(_BEGINS_LATER, {"slot": slot, "at": made_at}).fetchone() == (False,):
        # Making another one has the server look at the running transactions, and waits for them.
        with _temporary_slot(connection):
            connection.execute(_ADVANCE, {"slot": slot})
