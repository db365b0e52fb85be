"""One connection to Postgres that looks keys of views up."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.sql import Composed

from projector.arrays import text_array
from runtime.errors import ConfigurationError
from runtime.migrations import migration_command
from runtime.postgres import CONNECT_TIMEOUT_SECONDS, DatabaseUnavailable, connect_error, describe, translated

STATEMENT_SECONDS = 1.0
ANSWER_SECONDS = 1.5
"""A server that has not even said by then that the statement took too long is gone."""

_SETTINGS = {
    "statement_timeout": f"{STATEMENT_SECONDS * 1000:.0f}",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    # One plan for any number of keys: an index look-up a key, never a scan that a stale statistic suggests.
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_MISSING = (pg.UndefinedTable, pg.InvalidSchemaName, pg.UndefinedColumn)


class Session:
    """A connection whose statements are prepared, one for each view by its name. Made by `open_session`."""

    def __init__(self, connection: psycopg.AsyncConnection, statements: Mapping[str, Composed], where: str) -> None:
        self._connection = connection
        self._statements = statements
        self._where = where

    async def look_up(self, view_name: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """Look keys up in one statement; its rows are those of `api.statements.look_up`, in no order.

        Raises DatabaseUnavailable, DatabaseError or, where a right, the migration or a column is missing,
        ConfigurationError; then the session is to be closed.
        """
        try:
            with _translated(self._where, view_name):
                async with asyncio.timeout(ANSWER_SECONDS), self._connection.cursor(binary=True) as cursor:
                    await cursor.execute(self._statements[view_name], (text_array(keys),), prepare=True)
                    return await cursor.fetchall()
        except TimeoutError as error:
            raise DatabaseUnavailable(f"{self._where}: no answer within {ANSWER_SECONDS:g} s") from error

    async def check(self) -> None:
        """Look nothing up in each view, which tells whether that can be done; raises as `look_up` does."""
        for view_name in self._statements:
            await self.look_up(view_name, ())

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


async def open_session(url: str, statements: Mapping[str, Composed]) -> Session:
    """Connect, and check that each view can be read.

    Raises DatabaseUnavailable when the server cannot be reached, ConfigurationError when it refuses the login or when
    a view, a column or a right is missing.
    """
    where = describe(url)
    try:
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            application_name="viewkeeper-api",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
    except psycopg.OperationalError as error:
        raise connect_error(error, where) from error
    session = Session(connection, statements, where)
    try:
        with translated(where):
            for setting, value in _SETTINGS.items():
                await connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
        await session.check()
    except BaseException:
        await session.close()
        raise
    return session


@contextmanager
def _translated(where: str, view_name: str) -> Iterator[None]:
    with translated(where):
        try:
            yield
        except _MISSING as error:
            raise ConfigurationError(
                f"{where}: {error.diag.message_primary}, without which the view {view_name!r} cannot be read; run\n"
                f"{migration_command('view')}"
            ) from error
