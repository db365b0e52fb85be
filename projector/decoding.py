"""Reads the few fields of a record that a view needs: from the newest records of a batch to typed changes."""

from collections.abc import Callable, Mapping
from typing import Annotated, NoReturn

import msgspec

from cdc.wire import TableName, topic_name
from projector.changes import Changes, Groups, Key, Record, RowValues
from projector.definition import Column, ColumnType, View
from projector.errors import BadRecord

_TYPES: dict[ColumnType, object] = {
    ColumnType.BIGINT: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    ColumnType.INTEGER: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    ColumnType.NUMERIC: Annotated[str, msgspec.Meta(pattern=r"^(-?\d+(\.\d+)?([eE][+-]?\d+)?|NaN|-?Infinity)$")],
    ColumnType.BOOLEAN: bool,
    ColumnType.TEXT: str,
    ColumnType.UUID: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")],
    ColumnType.TIMESTAMPTZ: Annotated[
        str,
        msgspec.Meta(pattern=r"^(-?infinity|\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)( BC)?)$"),
    ],
}

_NUL = b"\\u0000"
"""Text in Postgres has no NUL, and JSON can only write it so."""


class Decoder:
    """Decodes the topics of one view."""

    def __init__(self, view: View, topic_prefix: str) -> None:
        self._row_topic = topic_name(topic_prefix, TableName.parse(view.row.of))
        self._row_key = _field_decoder("Key", [view.key_column], exactly=True, nullable=False)
        self._row = _field_decoder("Row", list(view.value_columns))
        self._counted = {
            topic_name(topic_prefix, table): (
                table,
                _field_decoder("Counted", [Column(name, view.key_column.type) for name in view.group_columns(table)]),
            )
            for table in view.counted_tables
        }

    @property
    def topics(self) -> frozenset[str]:
        """The changelog topics of the view's source tables."""
        return frozenset((self._row_topic, *self._counted))

    def decode(self, newest: Mapping[str, Mapping[bytes | None, Record]]) -> Changes:
        """Decode the newest record of each key, by topic; topics of no concern are passed over.

        Raises BadRecord for the first that cannot be read.
        """
        changes = Changes()
        for topic, records in newest.items():
            if topic == self._row_topic:
                changes.rows = self._rows(records)
            elif topic in self._counted:
                table, decode = self._counted[topic]
                changes.counted[table] = _counted(records, decode)
        return changes

    def _rows(self, records: Mapping[bytes | None, Record]) -> dict[Key, RowValues | None]:
        rows: dict[Key, RowValues | None] = {}
        for raw_key, record in records.items():
            value = record.value()
            try:
                (key,) = self._row_key(_demand_key(raw_key))
                rows[key] = None if value is None else self._row(value)
            except ValueError as error:
                _refuse(record, error)
        return rows


def _counted(
    records: Mapping[bytes | None, Record], decode: Callable[[bytes], tuple[Key, ...]]
) -> dict[str, Groups | None]:
    changes: dict[str, Groups | None] = {}
    for raw_key, record in records.items():
        value = record.value()
        try:
            changes[_demand_key(raw_key).decode()] = None if value is None else decode(value)
        except ValueError as error:
            _refuse(record, error)
    return changes


def _demand_key(raw_key: bytes | None) -> bytes:
    if raw_key is None:
        raise ValueError("it has no key: a changelog topic has one key a source row")
    return raw_key


def _refuse(record: Record, error: ValueError) -> NoReturn:
    # msgspec's errors and UnicodeDecodeError are ValueErrors.
    raise BadRecord(
        f"topic {record.topic()} partition {record.partition()} offset {record.offset()} key {record.key()!r}: "
        f"cannot apply this record: {error}; nothing after it was applied. Is the view's definition right, "
        "and does only the capture write to this topic?"
    ) from error


def _field_decoder(
    name: str, columns: list[Column], *, exactly: bool = False, nullable: bool = True
) -> Callable[[bytes], tuple[Key, ...]]:
    """Return a function from a JSON object to the values of `columns`, each of which must be there."""
    types = [_TYPES[column.type] for column in columns]
    fields = [
        (column.name, kind | None if nullable else kind)  # type: ignore[operator]  # types, known at run time only
        for column, kind in zip(columns, types, strict=True)
    ]
    struct = msgspec.defstruct(name, fields, gc=False, forbid_unknown_fields=exactly)
    decode = msgspec.json.Decoder(struct).decode
    as_tuple = msgspec.structs.astuple
    if not any(column.type is ColumnType.TEXT for column in columns):
        return lambda value: as_tuple(decode(value))

    def decode_text(value: bytes) -> tuple[Key, ...]:
        values = as_tuple(decode(value))
        if _NUL in value and any(isinstance(part, str) and "\0" in part for part in values):
            raise ValueError("text with a NUL character, which Postgres cannot hold")
        return values

    return decode_text
