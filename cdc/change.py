"""Changes on their way from the source to a topic: pages of finished bytes, no object a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cdc.cursor import TableCursor
from cdc.rounds import KnownBy
from cdc.tables import CapturedTable

KeyAndRow = tuple[bytes, bytes | None]
"""A change: the key's JSON, and the row's JSON or None for a row that is gone."""


class Op(StrEnum):
    """What a change's `__op` header says, as far as it is known: a row that was read again may be new or old."""

    READ = "r"
    UPSERT = "u"
    DELETE = "d"


@dataclass(frozen=True, slots=True)
class Page:
    """Changes of one table, read in one snapshot at `read_at_ms` (milliseconds since 1970, source's clock).

    `table` has the columns that the rows were read with: a table may be altered before its page is published.
    `is_cut` says that reading stopped before the last of what was asked for, since the rows are wide.
    """

    table: CapturedTable
    changes: Sequence[KeyAndRow]
    read_at_ms: int
    op: Op
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """What one Kafka transaction publishes: pages, and how far each table has come with them.

    Units are published in the order in which they were read, each after a flush of the source unless `heartbeat`: then
    nothing but the time has moved. By the time in `known_by`, all of a table that was committed is in this unit or an
    earlier one: a round's unit says that of each table that it could read, and the last page's of one that is read page
    by page. `tokens` are the mark's, as far as this unit has read them.
    """

    tables: Mapping[str, TableCursor]
    pages: Sequence[Page] = ()
    known_by: Mapping[str, KnownBy] = field(default_factory=dict)
    tokens: frozenset[str] = frozenset()
    heartbeat: bool = False
