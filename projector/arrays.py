"""Columns of values as Postgres array literals, built in a few calls for a whole column."""

from collections.abc import Iterable

from projector.definition import ColumnType

_PLAIN = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.BOOLEAN})
# Text holds no NUL, so that no value can look like these.
_SEPARATOR = "\0,"
_NULL = "\0N"


def array_literal(column_type: ColumnType, values: Iterable[object]) -> str:
    """Return an array literal of the column's values, None as NULL."""
    return plain_array(values) if column_type in _PLAIN else text_array(values)


def plain_array(values: Iterable[object]) -> str:
    """Return the literal of an array of integers or booleans."""
    return "{" + repr(list(values))[1:-1].replace("None", "NULL") + "}"


def text_array(values: Iterable[object]) -> str:
    """Return the literal of an array of texts without NUL characters."""
    texts = [_NULL if value is None else str(value) for value in values]
    if not texts:
        return "{}"
    joined = _SEPARATOR.join(texts).replace("\\", "\\\\").replace('"', '\\"').replace(_SEPARATOR, '","')
    return ('{"' + joined + '"}').replace(f'"{_NULL}"', "NULL")
