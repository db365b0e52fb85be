"""The messages of pgoutput, protocol version 1, as far as the capture needs them: who changed which keys.

The format is that of "Logical Replication Message Formats" in Postgres's manual. Values are texts. Of a row no more is
read than its key columns: what stands before them is skipped by its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

_BEGIN = Struct(">qqI")
_COMMIT = Struct(">xqqq")
_RELATION = Struct(">I")
_COUNT = Struct(">H")
_COLUMN = Struct(">Ii")
_MESSAGE = Struct(">?q")
_LENGTH_BYTES = 4
_NULL, _UNCHANGED = ord("n"), ord("u")
_OLD_TUPLES = b"KO"

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """A committed transaction begins: 32 bits of its xid, and where its commit record begins."""

    commit_at: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction is at its end, and its commit record ends at `end`."""

    end: int


@dataclass(frozen=True, slots=True)
class Relation:
    """The columns of a relation, in the order of its rows from now on; `identity` are those of its replica identity."""

    oid: int
    columns: tuple[str, ...]
    identity: frozenset[str]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Relations that were truncated."""

    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wrote to the WAL by pg_logical_emit_message."""

    prefix: str
    content: bytes
    is_transactional: bool


@dataclass(frozen=True, slots=True)
class KeyColumns:
    """Where a relation's rows have their key columns, in the key's order.

    `is_sure` says that all of them are in the replica identity, so that an UPDATE without an old row left them alone.
    """

    places: tuple[int, ...]
    is_sure: bool


def key_columns(relation: Relation, names: Sequence[str]) -> KeyColumns | None:
    """Find a key's columns in a relation; None if one is not there."""
    if not set(names) <= set(relation.columns):
        return None
    return KeyColumns(tuple(map(relation.columns.index, names)), set(names) <= relation.identity)


def begin(message: bytes) -> Begin:
    """Read a message `B`."""
    commit_at, _, xid = _BEGIN.unpack_from(message, 1)
    return Begin(commit_at, xid)


def commit(message: bytes) -> Commit:
    """Read a message `C`."""
    return Commit(_COMMIT.unpack_from(message, 1)[1])


def relation(message: bytes) -> Relation:
    """Read a message `R`."""
    (oid,) = _RELATION.unpack_from(message, 1)
    _, at = _text(message, 5)
    _, at = _text(message, at)
    (count,) = _COUNT.unpack_from(message, at + 1)
    at += 1 + _COUNT.size
    columns, identity = [], set()
    for _ in range(count):
        is_identity = message[at] & 1
        name, at = _text(message, at + 1)
        at += _COLUMN.size
        columns.append(name)
        if is_identity:
            identity.add(name)
    return Relation(oid, tuple(columns), frozenset(identity))


def relation_oid(message: bytes) -> int:
    """Return the relation of a message `I`, `U` or `D`."""
    oid: int = _RELATION.unpack_from(message, 1)[0]
    return oid


def truncate(message: bytes) -> Truncate:
    """Read a message `T`."""
    (count,) = _RELATION.unpack_from(message, 1)
    return Truncate(Struct(f">{count}I").unpack_from(message, 6))


def message(content: bytes) -> Message:
    """Read a message `M`."""
    is_transactional, _ = _MESSAGE.unpack_from(content, 1)
    prefix, at = _text(content, 1 + _MESSAGE.size)
    return Message(prefix, content[at + _LENGTH_BYTES :], is_transactional)


def keys(message: bytes, columns: KeyColumns) -> Sequence[Key] | None:
    """Return the keys that a message `I`, `U` or `D` names, the old and the new one; None if one cannot be told."""
    old: Sequence[str | None] | None = None
    at = 5
    if message[at] in _OLD_TUPLES:
        is_last = message[0] == ord("D")
        old, at = _values(message, at + 1, columns.places, is_whole=not is_last)
        if is_last:
            return _told([old])
    elif message[0] == ord("U") and not columns.is_sure:
        return None
    new, _ = _values(message, at + 1, columns.places, is_whole=False)
    if old is None:
        return _told([new])
    # A value out of line that did not change is in the old row alone.
    return _told([old, [was if value is None else value for was, value in zip(old, new, strict=True)]])


def _told(rows: Sequence[Sequence[str | None]]) -> Sequence[Key] | None:
    found = [tuple(value for value in row if value is not None) for row in rows]
    return found if all(len(key) == len(row) for key, row in zip(found, rows, strict=True)) else None


def _values(message: bytes, at: int, places: tuple[int, ...], *, is_whole: bool) -> tuple[list[str | None], int]:
    """Read the values of these columns of a row, and where it ends if it is to be read as a whole.

    None is a value that is NULL, or not sent since it did not change.
    """
    (count,) = _COUNT.unpack_from(message, at)
    at += _COUNT.size
    found: dict[int, str] = {}
    for place in range(count if is_whole else max(places) + 1):
        kind = message[at]
        at += 1
        if kind in (_NULL, _UNCHANGED):
            continue
        begins = at + _LENGTH_BYTES
        at = begins + int.from_bytes(message[at:begins])
        if place in places:
            found[place] = message[begins:at].decode()
    return [found.get(place) for place in places], at


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1
