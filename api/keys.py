"""Which spellings of a key are the canonical one: a resource has one address, and only that one is found."""

import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote_to_bytes

from projector.definition import ColumnType

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


Key = tuple[str | None, ...]
"""A key's columns, in order, each in its canonical spelling; None for a spelling that no row's key has."""


def _is_integer(bits: int) -> Callable[[str], bool]:
    bound = 1 << (bits - 1)
    return lambda text: _INTEGER.fullmatch(text) is not None and -bound <= int(text) < bound


def _is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def _is_text(text: str) -> bool:
    return "\0" not in text


_CANONICAL: dict[ColumnType, Callable[[str], bool]] = {
    ColumnType.BIGINT: _is_integer(64),
    ColumnType.INTEGER: _is_integer(32),
    ColumnType.UUID: _is_uuid,
    ColumnType.TEXT: _is_text,
}


def canonical_key(column_type: ColumnType, segment: bytes) -> str | None:
    """Return the value of a key's column that a path segment spells, or None when no row can have one spelled so.

    `segment` is the segment as it was sent, percent-encoded; one with a bad escape spells nothing. Integers are decimal
    digits without leading zeros, plus or blanks, a minus only before 1 to 9, within the type's range; UUIDs are lower
    case with hyphens; texts are UTF-8 without NUL. These are the spellings that Postgres itself gives, so that equal
    keys are equal texts.
    """
    if b"%" in segment and _BAD_ESCAPE.search(segment):
        return None
    try:
        text = (unquote_to_bytes(segment) if b"%" in segment else segment).decode()
    except UnicodeDecodeError:
        return None
    return text if _CANONICAL[column_type](text) else None


def array_literals(keys: Sequence[Key], *, columns: int) -> list[bytes]:
    """Return Postgres's literals of keys of so many columns, an array a column, whatever the types."""
    return [_array_literal(key[place] for key in keys).encode() for place in range(columns)]


def _array_literal(values: Iterable[str | None]) -> str:
    quoted = (
        "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values
    )
    return "{" + ",".join(quoted) + "}"
