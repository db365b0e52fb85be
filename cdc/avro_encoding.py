"""Avro: pages of JSON become records that a Confluent-compatible Schema Registry has the schemas of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
from confluent_kafka.schema_registry import Schema, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from cdc.avro_decoding import AvroDecoding
from cdc.avro_schema import AvroType, avro_name, key_schema, key_type, value_schema, value_type
from cdc.change import KeyAndRow, Page
from cdc.encoding import Form
from cdc.errors import CaptureError
from cdc.tables import CapturedTable, Column
from runtime.registry import Registry
from runtime.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a table is written while its columns are as they are."""

    key_schema: int
    key: "_Records"
    row: "_Records"


class AvroEncoding:
    """Avro in Confluent's framing; schemas are registered when a table, or a shape of it, is first seen."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._registry = Registry(settings)
        self._shapes: dict[tuple[object, ...], _Shape] = {}
        self.decoding = AvroDecoding(self._registry)

    def form(self, topic: str, table: CapturedTable) -> Form:
        """Register a table's schemas.

        Raises RegistryRefused if one is not compatible with the topic's earlier ones, RegistryUnavailable, and
        CaptureError for names that are one in Avro.
        """
        return Form("avro", self._shape(topic, table).key_schema)

    def encoded(self, topic: str, page: Page) -> Sequence[KeyAndRow]:
        """Return a page's changes in the schemas of its own shape, which are registered if they are new.

        Raises CaptureError that names the first value which Avro cannot hold, and what `form` raises.
        """
        shape = self._shape(topic, page.table)
        key, row = shape.key.encoded, shape.row.encoded
        try:
            return [(key(name), None if values is None else row(values)) for name, values in page.changes]
        except ValueError:  # msgspec's errors are ValueErrors, too
            for name, values in page.changes:
                shape.key.check(name, topic, name)
                if values is not None:
                    shape.row.check(values, topic, name)
            raise

    def close(self) -> None:
        """Close the connection to the registry."""
        self._registry.close()

    def _shape(self, topic: str, table: CapturedTable) -> _Shape:
        known = (table.name, table.key, table.columns)
        if known not in self._shapes:
            key = Schema(key_schema(topic, table.key), "AVRO")
            row = Schema(value_schema(topic, table.columns), "AVRO")
            # The key first: where it is refused, the values' subject is to stay as it is.
            number = self._registry.register(f"{topic}-key", key)
            self._registry.register(f"{topic}-value", row)
            self._shapes[known] = _Shape(
                key_schema=number,
                key=self._records(topic, MessageField.KEY, key, table.key, key_type),
                row=self._records(topic, MessageField.VALUE, row, table.columns, value_type),
            )
        return self._shapes[known]

    def _records(
        self,
        topic: str,
        field: MessageField,
        schema: Schema,
        columns: Sequence[Column],
        type_of: Callable[[Column], AvroType],
    ) -> "_Records":
        # The registry's client knows the schema by now: nothing is asked for while pages are encoded.
        options = {"subject.name.strategy": topic_subject_name_strategy}
        serializer = AvroSerializer(self._registry.client, schema, conf=options)
        types = {column.name: type_of(column) for column in columns}
        return _Records(serializer, SerializationContext(topic, field), types)


_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Records:
    """Encodes keys, or rows, of one shape: JSON objects of certain columns."""

    def __init__(self, serializer: AvroSerializer, context: SerializationContext, types: dict[str, AvroType]) -> None:
        self._serializer = serializer
        self._context = context
        self._types = types
        # A TypedDict can have any names, and no raw JSON: what is wanted raw is read beside it.
        self._raw = [name for name, one in types.items() if one.json is msgspec.Raw]
        typed = {name: one.nullable_json for name, one in types.items() if name not in self._raw}
        self._decode = msgspec.json.Decoder(TypedDict("Columns", typed)).decode  # type: ignore[operator]  # built here
        self._writes = [(name, one.write) for name, one in types.items() if one.write]
        self._renamed = [(name, avro_name(name)) for name in types if avro_name(name) != name]

    def encoded(self, text: bytes) -> bytes:
        """Encode an object; raise ValueError for a value that Avro cannot hold."""
        columns: dict[str, Any] = self._decode(text)
        if self._raw:
            parts = _decode_raw(text)
            columns.update((name, parts[name]) for name in self._raw)
        for name, write in self._writes:
            value = columns[name]
            if value is not None:
                columns[name] = write(value)
        for name, field in self._renamed:
            columns[field] = columns.pop(name)
        return self._serializer(columns, self._context)  # type: ignore[return-value]  # None is for None

    def check(self, text: bytes, topic: str, key: bytes) -> None:
        """Raise CaptureError that names the column whose value Avro cannot hold, if there is one."""
        for name, raw in _decode_raw(text).items():
            column = self._types[name]
            try:
                value = msgspec.json.decode(raw, type=column.nullable_json)
                if value is not None and column.write:
                    column.write(value)
            except ValueError as error:
                raise CaptureError(
                    f"topic {topic}: the row with key {key.decode()[:200]} has a value in column {name} that Avro "
                    f"cannot hold: {error}; change the value or the column's type (docs/types.md has what each type "
                    "holds), or capture the table with VIEWKEEPER_ENCODING=json into another topic"
                ) from error
