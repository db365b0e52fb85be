"""What a poll of the source finds, and the keys of one that is too large for a page."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import psycopg

from cdc.tables import CapturedTable
from cdc.wire import TableName
from runtime.postgres import translated

Positions = Mapping[TableName, str]


class Mark(StrEnum):
    """What a change log says besides keys, and what a source without one wants: a sweep, or a pass over all rows."""

    TRUNCATE = "truncate"
    LIMIT = "limit"
    KEY = "key"
    SWEEP = "sweep"
    PASS = "pass"  # noqa: S105 - no password


@dataclass(frozen=True, slots=True)
class Keys:
    """Distinct keys, `count` of them, as an array for each key column: its literal, or its texts."""

    count: int
    literals: Sequence[str | Sequence[str]]


NO_KEYS = Keys(0, ())


@dataclass(frozen=True, slots=True)
class Found:
    """What a round found of one table."""

    table: CapturedTable
    records: int
    marks: frozenset[Mark]
    keys: Keys


@dataclass(frozen=True, slots=True)
class KnownBy:
    """The time by which all that was committed is known, None while nothing is; an estimate if `uncertain`."""

    time: datetime | None
    uncertain: bool = False


NOTHING_KNOWN = KnownBy(None)


@dataclass(slots=True)
class Round:
    """All changes between two polls, inside the transaction that reads them.

    `time` is the source's clock when the transaction began, before its snapshot was taken. Every change of `tables`
    whose COMMIT had returned by `known_by` is in the round or in an earlier one; None where nothing is known of that.
    A table that was locked sits the round out and is not in `tables`; one of `behind` has more changes than were found,
    and is not known by any time.

    With the round, a table has come to `position`, or to its own in `positions`. `moves_on` says that it does so though
    nothing was found: the source keeps for it what lies behind.

    `is_estimate` says that changes may have been missed, so that `known_by` is one. `pass_began` is the time by which
    all is known once a snapshot that begins with this round is read and swept, None where such an end tells nothing.
    """

    time: datetime
    known_by: datetime | None
    position: str
    tokens: frozenset[str]
    tables: tuple[CapturedTable, ...]
    found: list[Found] = field(default_factory=list)
    positions: Mapping[int, str] = field(default_factory=dict)
    behind: frozenset[int] = frozenset()
    moves_on: bool = False
    is_estimate: bool = False
    pass_began: datetime | None = None

    def position_of(self, table: CapturedTable) -> str:
        """Return the position up to which all changes of a table are in the round or in an earlier one."""
        return self.positions.get(table.attachment, self.position)

    def known(self, table: CapturedTable) -> KnownBy:
        """Return the time by which all of a table that was committed is in the round or in an earlier one."""
        return NOTHING_KNOWN if table.attachment in self.behind else KnownBy(self.known_by, self.is_estimate)

    @property
    def read_at_ms(self) -> int:
        """The round's time in milliseconds since 1970."""
        return int(self.time.timestamp() * 1000)


class Drain(ABC):
    """The keys of a round that is too large for one page; they outlive the transaction that found them.

    `position` is the round's: with the last page everything up to it has been read.
    """

    def __init__(self, found: Found, position: str) -> None:
        self.found = found
        self.position = position

    @abstractmethod
    def peek(self) -> Keys | None:
        """Return the next page of keys, the same until `advance`; None after the last."""

    @abstractmethod
    def advance(self) -> None:
        """Go on to the page after the one that `peek` gave."""

    @abstractmethod
    def close(self) -> None:
        """Free what is kept; a page that was not advanced over is found again by the next round."""


class CursorDrain(Drain):
    """Keys in a cursor of the session, a page a row."""

    def __init__(self, found: Found, position: str, cursor: psycopg.ServerCursor, *, where: str) -> None:
        super().__init__(found, position)
        self._cursor = cursor
        self._where = where
        self._next: Keys | None = None

    def peek(self) -> Keys | None:
        """Return the next page, fetched once."""
        if self._next is None:
            with translated(self._where):
                row = self._cursor.fetchone()
            self._next = Keys(row[-1], row[:-1]) if row else None
        return self._next

    def advance(self) -> None:
        """Forget the page."""
        self._next = None

    def close(self) -> None:
        """Free what the server keeps."""
        with translated(self._where):
            self._cursor.close()
