"""Reads the few fields of a record that a view needs: from the newest records of a batch to typed changes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from cdc.decoding import Decoding
from cdc.wire import TableName, topic_name
from projector.changes import Changes, Key, Record
from projector.definition import Column, ColumnType, View
from projector.errors import BadRecord

_TYPES: dict[ColumnType, object] = {
    ColumnType.BIGINT: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    ColumnType.INTEGER: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    ColumnType.NUMERIC: Annotated[str, msgspec.Meta(pattern=r"^(-?\d+(\.\d+)?([eE][+-]?\d+)?|NaN|-?Infinity)$")],
    ColumnType.BOOLEAN: bool,
    ColumnType.TEXT: str,
    ColumnType.UUID: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")],
    # ISO 8601, and outside of years 1 to 9999 Postgres's own text: 0044-03-15 00:00:00+00 BC.
    ColumnType.TIMESTAMPTZ: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(-?infinity|\d{4,6}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d(:\d\d){0,2})?( BC)?)$"
        ),
    ],
}

T = TypeVar("T")


class Decoder:
    """Decodes the topics of one view, which are encoded as `decoding` reads them."""

    def __init__(self, view: View, topic_prefix: str, decoding: Decoding) -> None:
        self._decoding = decoding
        self._row_topic = topic_name(topic_prefix, TableName.parse(view.row.of))
        self._row_key = _Fields([view.key_column], decoding, exactly=True, nullable=False)
        self._row = _Fields(list(view.value_columns), decoding)
        self._counted = {
            topic_name(topic_prefix, table): (
                table,
                _Fields([Column(name, view.key_column.type) for name in view.group_columns(table)], decoding),
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
                keys = [key for (key,) in _read(records, self._row_key.read_keys)]
                changes.rows = dict(zip(keys, _read(records, self._row.read_values), strict=True))
            elif topic in self._counted:
                table, fields = self._counted[topic]
                source_keys = _read(records, self._source_keys)
                changes.counted[table] = dict(zip(source_keys, _read(records, fields.read_values), strict=True))
        return changes

    def _source_keys(self, records: Mapping[bytes | None, Record]) -> list[str]:
        _demand_keys(records)
        keys = [key.decode() for key in self._decoding.keys_json([key for key in records if key is not None])]
        if "\0" in "".join(keys):
            raise ValueError("a key with a NUL character, which Postgres cannot hold")
        return keys


class _Fields:
    """Reads some columns, each of which must be there, from keys or rows."""

    def __init__(
        self, columns: list[Column], decoding: Decoding, *, exactly: bool = False, nullable: bool = True
    ) -> None:
        types = [_TYPES[column.type] for column in columns]
        fields = [
            (column.name, kind | None if nullable else kind)  # type: ignore[operator]  # types, known at run time only
            for column, kind in zip(columns, types, strict=True)
        ]
        struct = msgspec.defstruct("Fields", fields, gc=False, forbid_unknown_fields=exactly)
        self._decode = decoding.reader(struct)
        self._nul = decoding.nul
        self._has_text = any(column.type is ColumnType.TEXT for column in columns)

    def read_values(self, records: Mapping[bytes | None, Record]) -> list[Any]:
        """Return the columns of each record's value as a tuple of their types, None for tombstones."""
        decode, as_tuple = self._decode, msgspec.structs.astuple
        raw = [record.value() for record in records.values()]
        values = [None if value is None else as_tuple(decode(value)) for value in raw]
        if self._has_text:
            _demand_no_nul(raw, values, self._nul)
        return values

    def read_keys(self, records: Mapping[bytes | None, Record]) -> list[tuple[Key, ...]]:
        """Return the columns of each record's key."""
        _demand_keys(records)
        raw = [key for key in records if key is not None]
        keys = [msgspec.structs.astuple(self._decode(key)) for key in raw]
        if self._has_text:
            _demand_no_nul(raw, keys, self._nul)
        return keys


def _demand_keys(records: Mapping[bytes | None, Record]) -> None:
    if None in records:
        raise ValueError("it has no key: a changelog topic has one key a source row")


def _demand_no_nul(raw: Sequence[bytes | None], values: Sequence[tuple[object, ...] | None], nul: bytes) -> None:
    for text, row in zip(raw, values, strict=True):
        if text and row and nul in text and any(isinstance(part, str) and "\0" in part for part in row):
            raise ValueError("text with a NUL character, which Postgres cannot hold")


def _read(records: Mapping[bytes | None, Record], read: Callable[[Mapping[bytes | None, Record]], list[T]]) -> list[T]:
    """Read all records in one go; where that fails, one by one, to name the one that cannot be read."""
    try:
        return read(records)
    except ValueError:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        for key, record in records.items():
            try:
                read({key: record})
            except ValueError as error:
                raise _refusal(record, error) from error
        raise


def _refusal(record: Record, error: ValueError) -> BadRecord:
    return BadRecord(
        f"topic {record.topic()} partition {record.partition()} offset {record.offset()} key {record.key()!r}: "
        f"cannot apply this record: {error}; nothing after it was applied. Is the view's definition right, "
        "and does only the capture write to this topic, with the same VIEWKEEPER_ENCODING?"
    )
