"""Reads the few fields of a record that a view needs: from the newest records of a batch to typed changes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from cdc.decoding import Decoding
from cdc.wire import topic_name
from projector.changes import Changes, Key, KeyValue, Record, Refused
from projector.column_types import ColumnType
from projector.contributions import contribute
from projector.definition import Column, View

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
UNREADABLE = (ValueError, ArithmeticError, RecursionError)
"""What decoding raises: msgspec's errors and UnicodeDecodeError are ValueErrors, an amount may leave all bounds, JSON
may be nested deeper than the interpreter reads, also in a column that the view passes over."""

NO_KEY = "it has no key: a changelog topic has one key a source row"


class Decoder:
    """Decodes the topics of one view, which are encoded as `decoding` reads them."""

    def __init__(self, view: View, topic_prefix: str, decoding: Decoding) -> None:
        self._decoding = decoding
        self._has_one_key_column = len(view.key_names) == 1
        self._rows = {
            topic_name(topic_prefix, table): (
                table,
                _Fields(list(view.key_of_row(row)), decoding, exactly=True, nullable=False),
                _Fields(list(view.value_columns(row)), decoding),
            )
            for table, row in zip(view.row_tables, view.rows, strict=True)
        }
        self._counted = {
            topic_name(topic_prefix, table): (
                table,
                _Fields([Column(*column) for column in view.columns_of(table).items()], decoding),
                contribute(view, table),
            )
            for table in view.counted_tables
        }

    @property
    def topics(self) -> frozenset[str]:
        """The changelog topics of the view's source tables."""
        return frozenset((*self._rows, *self._counted))

    def decode(self, newest: Mapping[str, Mapping[bytes | None, Record]], *, limit: int = 0) -> Changes:
        """Decode the newest record of each key, by topic; topics of no concern are passed over.

        Once there are more than `limit` that cannot be read, it looks no further: each may cost a question.
        """
        changes = Changes()
        for topic, records in newest.items():
            try:
                self._take(topic, records, changes)
            except UNREADABLE:
                self._take_each(topic, records, changes, limit)
        return changes

    def _take(self, topic: str, records: Mapping[bytes | None, Record], changes: Changes) -> None:
        """Decode all records of a topic in one go; raise UNREADABLE, with nothing taken, if one cannot be read."""
        if topic in self._rows:
            table, key, row = self._rows[topic]
            keys, values = self._keys(key.read_keys(records)), row.read_values(records)
            changes.rows.setdefault(table, {}).update(zip(keys, values, strict=True))
        elif topic in self._counted:
            table, fields, made = self._counted[topic]
            source_keys, rows = self._source_keys(records), fields.read_values(records)
            groups = rows if made is None else [None if row is None else made(row) for row in rows]
            changes.counted.setdefault(table, {}).update(zip(source_keys, groups, strict=True))

    def _take_each(self, topic: str, records: Mapping[bytes | None, Record], changes: Changes, limit: int) -> None:
        for key, record in records.items():
            if len(changes.refused) > limit:
                return
            try:
                self._take(topic, {key: record}, changes)
            except UNREADABLE as error:
                changes.refused.append(Refused(record, reason_of(error)))

    def _keys(self, keys: list[tuple[KeyValue, ...]]) -> Iterable[Key]:
        return [key for (key,) in keys] if self._has_one_key_column else keys

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

    def read_keys(self, records: Mapping[bytes | None, Record]) -> list[tuple[KeyValue, ...]]:
        """Return the columns of each record's key."""
        _demand_keys(records)
        raw = [key for key in records if key is not None]
        keys = [msgspec.structs.astuple(self._decode(key)) for key in raw]
        if self._has_text:
            _demand_no_nul(raw, keys, self._nul)
        return keys


def reason_of(error: Exception) -> str:
    """Return why a record was refused, in one line."""
    if isinstance(error, ArithmeticError):
        return "an amount, or the sum that it adds to, has no exact result"
    return " ".join(str(error).split())


def _demand_keys(records: Mapping[bytes | None, Record]) -> None:
    if None in records:
        raise ValueError(NO_KEY)


def _demand_no_nul(raw: Sequence[bytes | None], values: Sequence[tuple[object, ...] | None], nul: bytes) -> None:
    for text, row in zip(raw, values, strict=True):
        if text and row and nul in text and any(isinstance(part, str) and "\0" in part for part in row):
            raise ValueError("text with a NUL character, which Postgres cannot hold")
