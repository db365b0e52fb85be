"""The types that columns of a view may have."""

from enum import StrEnum


class ColumnType(StrEnum):
    """A column's type; the value is its name in Postgres."""

    BIGINT = "bigint"
    INTEGER = "integer"
    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    TEXT = "text"
    UUID = "uuid"
    TIMESTAMPTZ = "timestamptz"


KEY_TYPES = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.TEXT, ColumnType.UUID})
"""Types whose equality in SQL is equality of the bytes on the wire."""
