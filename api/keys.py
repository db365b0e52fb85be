"""Which spellings of a key are the canonical one: a resource has one address, and only that one is found."""

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

from projector.definition import ColumnType

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
    """Return the key that a path segment spells, or None when no row can have a key spelled so.

    `segment` is the segment as it was sent, percent-encoded. Integers are decimal digits without leading zeros, plus or
    blanks, a minus only before 1 to 9, within the type's range; UUIDs are lower case with hyphens; texts are UTF-8
    without NUL. These are the spellings that Postgres itself gives, so that equal keys are equal texts.
    """
    try:
        text = (unquote_to_bytes(segment) if b"%" in segment else segment).decode()
    except UnicodeDecodeError:
        return None
    return text if _CANONICAL[column_type](text) else None


def array_literal(keys: Iterable[str]) -> str:
    """Return Postgres's literal of an array of canonical keys, whatever their type."""
    quoted = ('"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys)
    return "{" + ",".join(quoted) + "}"
