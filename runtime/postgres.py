"""The thin edge to Postgres: sessions with known settings, and psycopg's errors translated once."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from runtime.errors import ConfigurationError, RetryableError, ViewkeeperError

CONNECT_TIMEOUT_SECONDS = 5
_LOOK_SECONDS = 1.0

_SINCE = {"transaction_timeout": 170_000}
"""The server's version that a setting came with; those that are not here all supported servers know."""

# libpq gives no SQLSTATE for a failed connect. What is not in this list is waited for, with the server's line logged.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied", "not permitted")

# As servers before Postgres 16 say it, and those since.
_NO_WALSENDER = ("replication role to start walsender", "permission denied to start WAL sender")


class DatabaseUnavailable(RetryableError):  # noqa: N818 - the state, as the log reads it
    """The database cannot be reached, went away, or asked for the transaction to be tried again."""


class CommitWaits(RetryableError):  # noqa: N818 - the state, as the log reads it
    """A commit took longer than it may. It may have taken place, though a synchronous standby knows nothing of it."""


class LockNotAvailable(RetryableError):  # noqa: N818 - Postgres's own name
    """A lock was not granted within `lock_timeout`."""


class DatabaseError(ViewkeeperError):
    """The database refused a statement."""


class ObjectMissing(DatabaseError):  # noqa: N818 - the state, as the log reads it
    """A table, a column or a function that a statement names is not there."""


def connect(
    url: str, *, name: str, settings: Mapping[str, str] | None = None, autocommit: bool = True
) -> psycopg.Connection:
    """Open a connection called `name` in pg_stat_activity, with `settings` applied to its session.

    Raises DatabaseUnavailable when the server cannot be reached, ConfigurationError when it refuses the login.
    """
    where = describe(url)
    connection = open_connection(url, name=name, where=where)
    with translated(where):
        for setting, value in known(settings or {}, connection).items():
            connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
    connection.autocommit = autocommit
    return connection


def known(settings: Mapping[str, str], connection: psycopg.BaseConnection[Any]) -> dict[str, str]:
    """Return those of a session's settings that its server knows: it refuses others."""
    version = connection.info.server_version
    return {name: value for name, value in settings.items() if version >= _SINCE.get(name, 0)}


def open_connection(url: str, *, name: str, where: str, replication: str | None = None) -> psycopg.Connection:
    """Open a connection in autocommit, without settings; with `replication` it is to a walsender, as libpq has it.

    `where` begins an error's message. Raises as `connect` does.
    """
    try:
        return psycopg.connect(
            url,
            application_name=name,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            # Keepalives do not run while sent data is not acknowledged.
            tcp_user_timeout=25_000,
            replication=replication,
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        raise connect_error(error, where) from error


def describe(url: str) -> str:
    """Return host, port and database of a URL, without user and password, for messages."""
    parts = conninfo_to_dict(url)
    return f"Postgres {parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def connect_error(error: psycopg.OperationalError, where: str) -> ViewkeeperError:
    """Translate a failed connect by the server's line."""
    line = " ".join(str(error).split())
    if "FATAL" in line and any(text in line for text in _NO_WALSENDER):
        role = error.pgconn.user.decode() if error.pgconn else "…"
        return ConfigurationError(
            f"{where}: role {role} lacks the attribute REPLICATION, without which it may not read the WAL; run: ALTER "
            f"ROLE {role} REPLICATION, or what a managed service has instead, on Amazon RDS GRANT rds_replication TO "
            f"{role}"
        )
    if "FATAL" in line and any(text in line for text in _REFUSALS):
        return ConfigurationError(f"{where}: login refused: {line}; check the URL's user, password and database")
    return DatabaseUnavailable(f"{where}: cannot connect: {line}")


def cancel(connection: psycopg.Connection) -> None:
    """Ask the server to end what a connection of another thread executes; a server that is gone executes nothing."""
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=CONNECT_TIMEOUT_SECONDS)


class CommitWatch:
    """Cancels what a connection executes once it takes longer than it may; one thread, as long as that is open.

    No timeout of Postgres's ends a commit that waits for a synchronous standby. A cancel does: Postgres warns, and the
    transaction is committed on this server alone.
    """

    def __init__(self, connection: psycopg.Connection, *, where: str) -> None:
        self._connection = connection
        self._where = where
        self._turn = threading.Lock()
        self._deadline: float | None = None
        self._is_overdue = False
        threading.Thread(target=self._watch, name="commits", daemon=True).start()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raise CommitWaits for what has been cancelled; one at a time. Seconds are counted whole."""
        with self._turn:
            self._deadline, self._is_overdue = time.monotonic() + seconds, False
        try:
            yield
        except pg.QueryCanceled:
            if not self._is_overdue:
                raise
        finally:
            # A cancel that is on its way is waited for: it would hit what comes next.
            with self._turn:
                self._deadline = None
        if self._is_overdue:
            raise CommitWaits(
                f"{self._where}: a commit of ours has waited for {seconds:g} s: for a synchronous standby that is away "
                "(synchronous_standby_names), or for a disk that is full or slow?"
            )

    def _watch(self) -> None:
        while not self._connection.closed:
            time.sleep(_LOOK_SECONDS)
            with self._turn:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._is_overdue = True
                    # Again and again, since it may have begun to wait just after.
                    cancel(self._connection)


_PASSING = (
    pg.SerializationFailure,
    pg.DeadlockDetected,
    pg.QueryCanceled,
    # Psycopg takes these for a program's error: our session took too long, or the server became a standby.
    pg.IdleInTransactionSessionTimeout,
    pg.TransactionTimeout,
    pg.ReadOnlySqlTransaction,
)

# Psycopg takes these, too, for the server's state, and they are the statement's and its rows': a text of more than a
# gigabyte, for instance. Each try would end alike.
_REPEATING = (pg.ProgramLimitExceeded, pg.StatementTooComplex, pg.TooManyColumns, pg.TooManyArguments)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate psycopg's errors; `where` begins the message."""
    try:
        yield
    except pg.LockNotAvailable as error:
        raise LockNotAvailable(f"{where}: {_line(error)}") from error
    except (pg.UndefinedTable, pg.UndefinedColumn, pg.UndefinedFunction, pg.InvalidSchemaName) as error:
        raise ObjectMissing(f"{where}: {_line(error)}") from error
    except _PASSING as error:
        raise DatabaseUnavailable(f"{where}: {_line(error)}") from error
    except pg.InsufficientPrivilege as error:
        raise ConfigurationError(f"{where}: {_line(error)}; grant the role that right") from error
    except _REPEATING as error:
        raise DatabaseError(f"{where}: {_line(error)}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"{where}: {_line(error)}") from error
    except psycopg.Error as error:
        raise DatabaseError(f"{where}: {_line(error)}") from error


def _line(error: psycopg.Error) -> str:
    state = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    return " ".join(str(error).split()) + state
