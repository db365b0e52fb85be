"""Columns of values as Postgres array literals, built in a few calls for a whole column."""

from collections.abc import Iterable
from typing import cast

from projector.definition import ColumnType

_PLAIN = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.BOOLEAN})
# Text holds no NUL, so that no value can look like these.
_SEPARATOR = "\0,"
_NULL = "\0N"


def array_literal(column_type: ColumnType, values: Iterable[object]) -> str:
    """Return an array literal of the column's values as they were decoded, None as NULL."""
    return plain_array(values) if column_type in _PLAIN else text_array(cast(Iterable[str | None], values))


def plain_array(values: Iterable[object]) -> str:
    """Return the literal of an array of integers or booleans."""
    return "{" + repr(list(values))[1:-1].replace("None", "NULL") + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Return the literal of an array of texts without NUL characters."""
    texts = [_NULL if text is None else text for text in values]
    if not texts:
        return "{}"
    joined = _SEPARATOR.join(texts)
    quoted = joined.replace("\\", "\\\\").replace('"', '\\"').replace(_SEPARATOR, '","')
    return ('{"' + quoted + '"}').replace(f'"{_NULL}"', "NULL")
