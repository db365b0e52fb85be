"""Rows that Postgres fails to read: of which table, which of them is the first, and what to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psycopg import errors as pg
from psycopg.sql import Composed

from cdc.tables import CapturedTable, SourceKind
from runtime.postgres import DatabaseError


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows of a table that were asked for; `keys` builds what selects their keys, with `values`."""

    table: CapturedTable
    keys: Callable[[], Composed]
    values: Mapping[str, object]


class RowsUnreadable(DatabaseError):  # noqa: N818 - the state, as the log reads it
    """Postgres fails to read one of the rows that were asked for."""

    def __init__(self, reason: str, asked: Asked, *, key: bytes | None = None) -> None:
        super().__init__(f"{reason}{_named(key)}; {_advice(asked.table)}")
        self.reason = reason
        self.asked = asked

    def at(self, key: bytes | None) -> "RowsUnreadable":
        """Return the same error with the first key whose row fails, if that was found."""
        return RowsUnreadable(self.reason, self.asked, key=key)


def unreadable(error: DatabaseError, asked: Asked) -> RowsUnreadable:
    """Return what a failure to read rows is to a person."""
    too_long = isinstance(error.__cause__, pg.ProgramLimitExceeded)
    hint = ", and a row whose JSON is longer than 1 GB cannot be held back" if too_long else ""
    return RowsUnreadable(f"{error}{hint}", asked)


def _named(key: bytes | None) -> str:
    return "" if key is None else f"; the first row that fails has the key {key.decode()[:200]}"


def _advice(table: CapturedTable) -> str:
    if table.source is SourceKind.TIMESTAMP:
        return "mend the row, or list the other columns as the table's columns in VIEWKEEPER_CDC_TABLES"
    return (
        f"mend the row, or leave the column that fails out: run: viewkeeper-cdc detach {table.name}, then attach it "
        "anew with --columns"
    )
