"""One connection to Postgres that looks keys of views up."""

import asyncio
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.sql import SQL, Composed, Identifier, Literal

from api.keys import Key, array_literals
from api.statements import LookUp
from runtime.errors import ConfigurationError
from runtime.migrations import migration_command
from runtime.postgres import (
    CONNECT_TIMEOUT_SECONDS,
    DatabaseError,
    DatabaseUnavailable,
    connect_error,
    describe,
    known,
    translated,
)

STATEMENT_SECONDS = 1.0
ANSWER_SECONDS = 1.5
"""A server that has not even said by then that the statement took too long is gone."""

_SETTINGS = {
    "statement_timeout": f"{STATEMENT_SECONDS * 1000:.0f}",
    # A look-up is a transaction; between two of them may be a night.
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    # One plan for any number of keys: an index look-up a key, never a scan that a stale statistic suggests.
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_MISSING = (pg.UndefinedTable, pg.InvalidSchemaName, pg.UndefinedColumn)


class _Outdated(DatabaseError):  # noqa: N818 - the state, not a failure
    """A cached plan must not change its result's types: since a rebuild's swap the view's name leads to others."""


class NoAnswerInTime(DatabaseUnavailable):
    """The server took more than its time for a look-up: asking again would make who waits wait twice."""


class Session:
    """A connection with one prepared statement for each view, by its name. Made by `open_session`.

    It speaks libpq's asynchronous calls itself: an exchange takes 40 % less CPU than a cursor's, and one that gets
    no answer ends on time, where a cursor first asks the silent server to cancel it.
    """

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._where = describe(connection.info.dsn)
        self._loader = Transformer(connection)
        self._loop = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self._statements: dict[str, bytes] = {}
        self._reply: asyncio.Future[PGresult] | None = None
        self._result: PGresult | None = None
        self._parameters: dict[str, int] = {}
        self._loop.add_reader(self._socket, self._on_readable)
        self._is_in_loop = True

    async def configure(self) -> None:
        """Set what the look-ups rely on, whatever the role or the database say; raises as `look_up` does.

        The statement timeout is one of these settings, so nothing but our own patience bounds this exchange.
        """
        text = _set_config(known(_SETTINGS, self._connection)).as_bytes(self._connection)
        with translated(self._where):
            await self._answer_to(lambda: self._pgconn.send_query(text))

    async def prepare(self, view_name: str, look_up: LookUp) -> None:
        """Prepare a view's look-up, and look nothing up; raises as `look_up` does."""
        self._statements[view_name] = look_up.statement.as_bytes(self._connection)
        self._parameters[view_name] = look_up.parameters
        await self._prepare(view_name)
        await self.look_up(view_name, ())

    async def look_up(self, view_name: str, keys: Sequence[Key]) -> list[tuple[Any, ...]]:
        """Look keys up in one statement; its rows are those of `api.statements.look_up`, in no order.

        Raises DatabaseUnavailable, its kind NoAnswerInTime, DatabaseError or, where a right, the migration or a column
        is missing, ConfigurationError; then the session is to be closed. One look-up at a time.
        """
        literals = array_literals(keys, columns=self._parameters[view_name])
        try:
            result = await self._execute(view_name, literals)
        except _Outdated:
            await self._prepare_again(view_name)
            result = await self._execute(view_name, literals)
        self._loader.set_pgresult(result)
        return self._loader.load_rows(0, result.ntuples, tuple)

    async def close(self) -> None:
        """Close the connection."""
        self._leave_loop()
        await self._connection.close()

    async def _execute(self, view_name: str, literals: Sequence[bytes]) -> PGresult:
        """Execute a prepared look-up; raises _Outdated where it has to be prepared again."""
        return await self._exchange(
            view_name,
            lambda: self._pgconn.send_query_prepared(view_name.encode(), literals, result_format=Format.BINARY),
        )

    async def _prepare(self, view_name: str) -> None:
        text = self._statements[view_name]
        await self._exchange(view_name, lambda: self._pgconn.send_prepare(view_name.encode(), text))

    async def _prepare_again(self, view_name: str) -> None:
        deallocate = SQL("DEALLOCATE {}").format(Identifier(view_name)).as_bytes(self._connection)
        await self._exchange(view_name, lambda: self._pgconn.send_query(deallocate))
        await self._prepare(view_name)

    async def _exchange(self, view_name: str, send: Callable[[], None]) -> PGresult:
        """Send one command about a view and return its result."""
        with translated(self._where):
            try:
                return await self._answer_to(send)
            except pg.FeatureNotSupported as error:
                raise _Outdated(f"{self._where}: {error.diag.message_primary}") from error
            except pg.QueryCanceled as error:
                raise NoAnswerInTime(f"{self._where}: {error.diag.message_primary}") from error
            except _MISSING as error:
                raise ConfigurationError(
                    f"{self._where}: {error.diag.message_primary}, without which the view {view_name!r} cannot be "
                    f"read; run\n{migration_command('view')}\nand, for a view that was declared after that had run, "
                    f"viewkeeper-projector rebuild {view_name}"
                ) from error

    async def _answer_to(self, send: Callable[[], None]) -> PGresult:
        """Send one command and return its result; raises psycopg's errors, NoAnswerInTime without an answer."""
        overdue = self._loop.call_later(ANSWER_SECONDS, self._give_up)
        try:
            self._reply = self._loop.create_future()
            send()
            self._flush()
            result = await self._reply
        finally:
            overdue.cancel()
            self._reply = None
        if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
            raise pg.error_from_result(result)
        return result

    def _give_up(self) -> None:
        # It may be us who stood still: after that the loop looks at the clock before it looks for an answer, of which
        # each look takes in a part.
        unread = select.poll()
        unread.register(self._socket, select.POLLIN)
        while self._reply is not None and not self._reply.done() and unread.poll(0):
            self._on_readable()
        self._fail(NoAnswerInTime(f"{self._where}: no answer within {ANSWER_SECONDS:g} s"))

    def _flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        if self._pgconn.flush():
            self._loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._socket)
        try:
            self._flush()
        except psycopg.OperationalError as error:
            self._fail(error)

    def _on_readable(self) -> None:
        try:
            self._pgconn.consume_input()
            while self._reply is not None and not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is not None:
                    self._result = result
                    continue
                if self._result is not None and not self._reply.done():
                    self._reply.set_result(self._result)
                self._result = None
                return
        except psycopg.OperationalError as error:
            # The end of the stream can be read for ever. Who waits learns it now, who comes later from libpq.
            self._leave_loop()
            self._fail(error)

    def _leave_loop(self) -> None:
        """Take the socket out of the loop, once: libpq closes a lost one, and then its number is somebody else's."""
        if self._is_in_loop:
            self._is_in_loop = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    def _fail(self, error: psycopg.OperationalError | NoAnswerInTime) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


async def open_session(url: str, statements: Mapping[str, LookUp]) -> Session:
    """Connect, and check that each view can be read by its statement.

    Raises DatabaseUnavailable when the server cannot be reached, ConfigurationError when it refuses the login or when
    a view, a column or a right is missing.
    """
    where = describe(url)
    try:
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            application_name="viewkeeper-api",
            client_encoding="UTF8",  # keys are sent so, whatever PGCLIENTENCODING, the role or the database say
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
    except psycopg.OperationalError as error:
        raise connect_error(error, where) from error
    session = Session(connection)
    try:
        await session.configure()
        for view_name, look_up in statements.items():
            await session.prepare(view_name, look_up)
    except BaseException:
        await session.close()
        raise
    return session


def _set_config(settings: Mapping[str, str]) -> Composed:
    calls = [SQL("set_config({}, {}, false)").format(Literal(name), Literal(value)) for name, value in settings.items()]
    return SQL("SELECT {}").format(SQL(", ").join(calls))
