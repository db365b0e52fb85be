"""How each section's migrations are run: one transaction, a version table in the section's own schema."""

from alembic import context
from psycopg import sql
from sqlalchemy import create_engine, pool
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from runtime.errors import ConfigurationError
from runtime.postgres import describe


def run_migrations(url: str, *, version_schema: str) -> None:
    """Migrate the database at `url`; the version table is `version_schema.alembic_version`.

    Raises ConfigurationError when the database cannot be reached. Offline (`--sql`) mode is not offered, since the
    first migration of a view reads the database that it changes.
    """
    if context.is_offline_mode():
        raise ConfigurationError("alembic --sql is not supported: run the migration against the database itself")
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=pool.NullPool)
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise ConfigurationError(f"{describe(url)}: cannot connect: {error.orig}") from error
    with connection:
        create_schema = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(version_schema))
        # The notice that the schema exists would be logged at every run.
        connection.exec_driver_sql("SET client_min_messages = warning")
        connection.exec_driver_sql(create_schema.as_string())
        connection.commit()
        context.configure(connection=connection, version_table_schema=version_schema, transaction_per_migration=False)
        with context.begin_transaction():
            context.run_migrations()
