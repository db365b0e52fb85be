"""Attaching tables to a capture and detaching them, without making a writer wait."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psycopg
import structlog
from psycopg import errors as pg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from cdc.rights import complaint, missing_rights
from cdc.slots import SLOT_PATIENCE_SECONDS, drop_unused_slot, make_slot, slot_held
from cdc.table_options import Level
from cdc.tables import SourceKind
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.postgres import LockNotAvailable, translated

log = structlog.get_logger()

Columns = tuple[str, ...]

PATIENCE_SECONDS = 30.0
"""For how long a table's lock is asked for again and again, each time for `lock_timeout` only."""
_SAID_AT_ATTEMPT = 5
"""When a wait is worth a word: about a second has passed."""

_FIND = """
SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""
_ATTACH = """
SELECT cdc.attach(%(capture)s, %(table)s::oid::regclass, %(level)s, %(key)s::name[], %(columns)s::name[],
                  %(masks)s::name[])
"""
_ATTACH_PUBLISHED = """
SELECT cdc.attach_published(%(capture)s, %(table)s::oid::regclass, %(key)s::name[], %(columns)s::name[],
                            %(masks)s::name[])
"""
_ATTACHED = """
SELECT t.moving_to, t.kind = 'view' AND NOT t.is_projected
FROM cdc.captured_table t WHERE t.capture = %s AND t.table_schema = %s AND t.table_name = %s
"""
_DETACH = "SELECT cdc.detach(%(capture)s, %(schema)s, %(name)s)"


def attach(
    connection: psycopg.Connection,
    capture: str,
    table: TableName,
    *,
    where: str,
    source: SourceKind = SourceKind.TRIGGERS,
    level: Level | None = None,
    key: Columns | None = None,
    columns: Columns | None = None,
    masks: Columns | None = None,
) -> bool:
    """Attach a table, by statement and primary key unless told otherwise; return False if it is attached already.

    One that is attached for the other source is to move to this one: see `moving_to`. One that was to move is not to
    any more if it is attached for the source that it has.
    With `columns` no other column leaves the database, and `masks` leave it as a keyed hash. Raises
    ConfigurationError for a table that is missing or cannot be captured, for missing rights, and for other options
    than it is attached with; LockNotAvailable if other transactions kept it locked.
    """
    with translated(where):
        found = connection.execute(_FIND, (table.schema, table.name)).fetchone()
        if found is None:
            raise ConfigurationError(f"{where}: there is no table {table}")
        by_view = columns is not None or masks is not None
        missing = missing_rights(
            connection, found[0], str(table), source=source, row_level=level is Level.ROW, by_view=by_view
        )
    if missing:
        raise ConfigurationError(complaint(where, str(table), missing))
    if source is SourceKind.WAL and level is not None:
        raise ConfigurationError(
            f"{table}: a level is that of triggers, and VIEWKEEPER_CDC_SOURCE is wal: leave it out"
        )
    lists = {"key": key, "columns": columns, "masks": masks}
    values = {
        "capture": capture,
        "table": found[0],
        "level": level,
        **{name: names and list(names) for name, names in lists.items()},
    }
    try:
        statement = _ATTACH if source is SourceKind.TRIGGERS else _ATTACH_PUBLISHED
        with _slot_for(source, connection, capture, where):
            return _patiently(lambda: _call(connection, statement, values, where, table))
    except pg.ObjectNotInPrerequisiteState as error:
        raise ConfigurationError(f"{where}: {error.diag.message_primary}") from error
    finally:
        # The last table that moved to the WAL may do so no more, or the first one was refused. What has closed the
        # connection, Ctrl-C for instance, is what the caller is to hear of.
        if not connection.closed:
            _patiently(lambda: _without_slot(connection, capture, where))


def how_attached(
    connection: psycopg.Connection, capture: str, table: TableName, *, where: str
) -> tuple[SourceKind | None, bool]:
    """Return the source that an attached table is to move to, if it is to move, and whether its changes stay unseen.

    Those of a view do, until whoever makes them logs them.
    """
    with translated(where):
        row = connection.execute(_ATTACHED, (capture, table.schema, table.name)).fetchone()
    moving, is_unseen = row or (None, False)
    return SourceKind(moving) if moving else None, is_unseen


def detach(connection: psycopg.Connection, capture: str, table: TableName, *, where: str) -> bool:
    """Detach a table and drop what was made for it; return False if it was not attached. The topic stays as it is.

    With the last table that is read from the WAL, slot and publication go.
    """
    values = {"capture": capture, "schema": table.schema, "name": table.name}
    known = _patiently(lambda: _call(connection, _DETACH, values, where, table))
    _patiently(lambda: _without_slot(connection, capture, where))
    return known


@contextmanager
def _slot_for(source: SourceKind, connection: psycopg.Connection, capture: str, where: str) -> Iterator[None]:
    """Have the slot there, and nobody drop it, until the table that needs it is attached."""
    if source is SourceKind.TRIGGERS:
        yield
        return
    with slot_held(connection, capture, where=where, patience_seconds=SLOT_PATIENCE_SECONDS):
        make_slot(connection, capture, where=where)
        yield


def _without_slot(connection: psycopg.Connection, capture: str, where: str) -> bool:
    if not drop_unused_slot(connection, capture, where=where):
        raise LockNotAvailable(
            f"{where}: no table of capture {capture} is read from the WAL any more, and its replication slot still is: "
            "stop what reads it, see pg_replication_slots, and run this again to drop the slot"
        )
    return True


def _patiently(call: Callable[[], bool]) -> bool:
    retrying = Retrying(
        retry=retry_if_exception_type(LockNotAvailable),
        wait=wait_random_exponential(multiplier=0.1, max=1.0),
        stop=stop_after_delay(PATIENCE_SECONDS),
        before_sleep=_say_wait,
        reraise=True,
    )
    return retrying(call)


def _say_wait(state: RetryCallState) -> None:
    if state.attempt_number == _SAID_AT_ATTEMPT:
        reason = state.outcome.exception() if state.outcome else None
        log.info("waiting", reason=str(reason), at_most_seconds=PATIENCE_SECONDS)


def _call(
    connection: psycopg.Connection, statement: str, values: Mapping[str, object], where: str, table: TableName
) -> bool:
    try:
        row = connection.execute(statement, values).fetchone()
    except pg.ObjectNotInPrerequisiteState:
        raise
    except pg.LockNotAvailable as error:
        raise LockNotAvailable(
            f"{where}: other transactions keep {table} locked, for which this waits {PATIENCE_SECONDS:g} s at most: "
            "see pg_locks and pg_stat_activity for them, pg_prepared_xacts for prepared ones, and run this again once "
            f"they have ended ({error.diag.message_primary})"
        ) from error
    except psycopg.Error:
        with translated(where):
            raise
    return row is not None and bool(row[0])
