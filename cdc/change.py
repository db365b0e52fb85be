"""Changes on their way from the source to a topic: pages of finished bytes, no object a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cdc.wire import TableName

KeyAndRow = tuple[bytes, bytes | None]
"""A change: the key's JSON, and the row's JSON or None for a row that is gone."""


class Op(StrEnum):
    """What a change's `__op` header says, as far as it is known: a row that was read again may be new or old."""

    READ = "r"
    UPSERT = "u"
    DELETE = "d"


@dataclass(frozen=True, slots=True)
class Page:
    """Changes of one table, read in one snapshot at `read_at_ms` (milliseconds since 1970, source's clock)."""

    table: TableName
    changes: Sequence[KeyAndRow]
    read_at_ms: int
    op: Op
