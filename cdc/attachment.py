"""Attaching tables to a capture and detaching them, without making a writer wait."""

from collections.abc import Callable

import psycopg
from psycopg import errors as pg
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.postgres import LockNotAvailable, translated

PATIENCE_SECONDS = 30.0
"""For how long a table's lock is asked for again and again, each time for `lock_timeout` only."""

_ATTACH = "SELECT cdc.attach(%(capture)s, %(table)s::regclass)"
_DETACH = "SELECT cdc.detach(%(capture)s, %(schema)s, %(name)s)"


def attach(connection: psycopg.Connection, capture: str, table: TableName, *, where: str) -> bool:
    """Attach a table; return False if it is attached already.

    Raises ConfigurationError for a table that is missing or cannot be captured, LockNotAvailable if other
    transactions kept it locked.
    """
    quoted = f'"{table.schema}"."{table.name}"'
    try:
        return _patiently(lambda: _call(connection, _ATTACH, {"capture": capture, "table": quoted}, where))
    except pg.UndefinedTable as error:
        raise ConfigurationError(f"{where}: there is no table {table}") from error
    except pg.ObjectNotInPrerequisiteState as error:
        raise ConfigurationError(f"{where}: {error.diag.message_primary}") from error


def detach(connection: psycopg.Connection, capture: str, table: TableName, *, where: str) -> bool:
    """Detach a table and drop its change log; return False if it was not attached. The topic stays as it is."""
    values = {"capture": capture, "schema": table.schema, "name": table.name}
    return _patiently(lambda: _call(connection, _DETACH, values, where))


def _patiently(call: Callable[[], bool]) -> bool:
    retrying = Retrying(
        retry=retry_if_exception_type(LockNotAvailable),
        wait=wait_random_exponential(multiplier=0.1, max=1.0),
        stop=stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    return retrying(call)


def _call(connection: psycopg.Connection, statement: str, values: dict[str, str], where: str) -> bool:
    try:
        row = connection.execute(statement, values).fetchone()
    except (pg.UndefinedTable, pg.ObjectNotInPrerequisiteState):
        raise
    except psycopg.Error:
        with translated(where):
            raise
    return row is not None and bool(row[0])
