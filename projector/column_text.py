"""Columns of values as the text that Postgres reads, built in a few calls for a whole column."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import cast

from projector.definition import ColumnType

_PLAIN = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.BOOLEAN})
# Text holds no NUL, so that no value can look like these.
_SEPARATOR = "\0,"
_NULL = "\0N"

_COPY_NULL = "\\N"
_COPY_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_COPY_SPECIAL = re.compile(r"[\\\t\n\r]")


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


def copy_rows(columns: Iterable[Iterable[int | str | Decimal | None]]) -> str:
    """Return the rows of some columns as text for COPY."""
    rows = "\n".join(map("\t".join, zip(*map(_copy_column, columns), strict=True)))
    return f"{rows}\n" if rows else ""


def _copy_column(column: Iterable[int | str | Decimal | None]) -> list[str]:
    values = list(column)
    texts = [_COPY_NULL if value is None else str(value) for value in values]
    # A backslash only stands where there is no value, or, seldom, in a text that has to be escaped.
    if _COPY_SPECIAL.search("".join(texts)):
        return [_COPY_NULL if value is None else _escaped(str(value)) for value in values]
    return texts


def _escaped(text: str) -> str:
    return _COPY_SPECIAL.sub(lambda match: _COPY_ESCAPES[match[0]], text)
