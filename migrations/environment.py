"""How each section's migrations are run: one transaction, a version table in the section's own schema."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine, pool
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError

from runtime.errors import ConfigurationError, ViewkeeperError
from runtime.postgres import describe


@contextmanager
def plain_errors() -> Iterator[None]:
    """On Alembic's command line end with one line and the error's exit code; a program gets the error itself."""
    try:
        yield
    except ViewkeeperError as error:
        if context.config.cmd_opts is None:
            raise
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from error


def run_migrations(url: str, *, version_schema: str) -> None:
    """Migrate the database at `url`; the version table is `version_schema.alembic_version`.

    Raises ConfigurationError when the database cannot be reached. Offline (`--sql`) mode is not offered, since the
    first migration of a view reads the definitions and the database that it changes.
    """
    if context.is_offline_mode():
        raise ConfigurationError("alembic --sql is not supported: run the migration against the database itself")
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=pool.NullPool,
        # Whatever the database's own is, or was set for it.
        connect_args={"client_encoding": "utf8"},
    )
    try:
        connection = engine.connect()
    except OperationalError as error:
        reason = " ".join(str(error.orig).split())
        raise ConfigurationError(f"{describe(url)}: cannot connect: {reason}") from error
    with connection, _told_rights(url):
        _make_schema(connection, version_schema)
        context.configure(connection=connection, version_table_schema=version_schema, transaction_per_migration=False)
        with context.begin_transaction():
            context.run_migrations()


@contextmanager
def _told_rights(url: str) -> Iterator[None]:
    """Raise ConfigurationError for a right that the role lacks."""
    try:
        yield
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        reason = " ".join(str(error.orig).split())
        raise ConfigurationError(
            f"{describe(url)}: {reason}: migrate as the owner of the database, or as a role that may do so"
        ) from error


def _make_schema(connection: Connection, schema: str) -> None:
    # The notice that it exists would be logged at every run.
    connection.exec_driver_sql("SET client_min_messages = warning")
    create = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
    connection.exec_driver_sql(create.as_string())
    connection.commit()
