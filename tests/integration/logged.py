"""A source database whose change logs are read directly, without a daemon."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from cdc.attachment import attach
from cdc.table_options import Level
from cdc.wire import TableName

Records = set[tuple[object, ...]]
LEVELS = [Level.STATEMENT, Level.ROW]


class Logged:
    """A source database, its attached tables, and what their logs hold."""

    def __init__(self, session: psycopg.Connection) -> None:
        self.session = session

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.session.execute(statement.encode())

    def attach(self, table: str, *, level: Level | None = None, key: tuple[str, ...] | None = None) -> int:
        assert attach(self.session, "viewkeeper", TableName.parse(table), where="test", level=level, key=key)
        row = self.session.execute("SELECT max(id) FROM cdc.captured_table").fetchone()
        assert row is not None
        return int(row[0])

    def records(self, attachment: int) -> Records:
        """Return mark and keys of all that is logged, as a set."""
        return {row[1:] for part in (0, 1) for row in self.session.execute(f"TABLE cdc.log_{attachment}_{part}")}

    def take(self, attachment: int) -> Records:
        """Return what is logged, and empty the log."""
        records = self.records(attachment)
        self.run(f"TRUNCATE cdc.log_{attachment}_0, cdc.log_{attachment}_1")
        return records


def keys(*values: object) -> Records:
    """Give the records of ordinary changes of these keys."""
    return {(None, value) for value in values}


@contextmanager
def other_role(session: psycopg.Connection, name: str) -> Iterator[str]:
    """Make a role that may log in, for a test."""
    role = f"{name}_{uuid.uuid4().hex[:12]}"
    session.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        yield role
    finally:
        session.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        session.execute(f"DROP OWNED BY {role}".encode())
        session.execute(f"DROP ROLE {role}".encode())
