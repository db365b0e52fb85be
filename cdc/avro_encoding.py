"""Avro: pages of JSON become records that a Confluent-compatible Schema Registry has the schemas of."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypedDict

import msgspec
import structlog
from confluent_kafka.schema_registry import Schema
from fastavro import parse_schema, schemaless_writer

from cdc.avro_decoding import HEADER, MAGIC, AvroDecoding
from cdc.avro_schema import (
    AvroType,
    avro_name,
    key_schema,
    key_type,
    value_schema,
    value_type,
    without_logical_types,
)
from cdc.change import KeyAndRow, Page
from cdc.encoding import Form
from cdc.errors import CaptureError
from cdc.tables import CapturedTable, Column
from runtime.registry import Registry
from runtime.settings import KafkaSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a table is written while its columns are as they are."""

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
        return Form("avro", self._shape(topic, table).key.schema_id)

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
            # The key first: where it is refused, the values' subject is to stay as it is.
            key = self._records(f"{topic}-key", key_schema(topic, table.key), table.key, key_type)
            rows = f"{topic}-value"
            row = self._records(rows, value_schema(topic, table.columns), table.columns, value_type)
            self._warn_unless_compared(rows)
            self._shapes[known] = _Shape(key, row)
        return self._shapes[known]

    def _warn_unless_compared(self, subject: str) -> None:
        """Warn of a subject of rows that takes any schema; another one for keys stops the capture in any case."""
        if not self._registry.compares(subject):
            log.warning(
                "schemas_not_compared",
                subject=subject,
                reason="its compatibility level is NONE: a column of another type is published, and readers may fail",
                advice="set the level of the subject, or of the registry, to BACKWARD",
            )

    def _records(
        self, subject: str, schema: str, columns: Sequence[Column], type_of: Callable[[Column], AvroType]
    ) -> "_Records":
        number = self._registry.register(subject, Schema(schema, "AVRO"))
        # The instance that is asked next may not have heard of it yet: our own keys would be taken for others'.
        self.decoding.learn(number, schema)
        return _Records(number, json.loads(schema), {column.name: type_of(column) for column in columns})


_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Records:
    """Encodes keys, or rows, of one shape: JSON objects of certain columns."""

    def __init__(self, schema_id: int, schema: dict[str, Any], types: dict[str, AvroType]) -> None:
        self.schema_id = schema_id
        self._header = HEADER.pack(MAGIC, schema_id)
        # As confluent-kafka's serializer does it, byte for byte, at two thirds of its cost: see DECISIONS.md.
        self._schema = parse_schema(without_logical_types(schema))
        self._types = types
        # A TypedDict takes no raw JSON, and msgspec finds no name beyond ASCII in one: such columns are read beside it.
        beside = [name for name, one in types.items() if one.json is msgspec.Raw or not name.isascii()]
        typed = {name: one.nullable_json for name, one in types.items() if name not in beside}
        self._decode = msgspec.json.Decoder(TypedDict("Columns", typed)).decode  # type: ignore[operator]  # built here
        self._beside = [(name, msgspec.json.Decoder(types[name].nullable_json).decode) for name in beside]
        self._writes = [(name, one.write) for name, one in types.items() if one.write]
        self._renamed = [(name, avro_name(name)) for name in types if avro_name(name) != name]

    def encoded(self, text: bytes) -> bytes:
        """Encode an object; raise ValueError for a value that Avro cannot hold."""
        columns: dict[str, Any] = self._decode(text)
        if self._beside:
            parts = _decode_raw(text)
            columns.update((name, decode(parts[name])) for name, decode in self._beside)
        for name, write in self._writes:
            value = columns[name]
            if value is not None:
                columns[name] = write(value)
        for name, field in self._renamed:
            columns[field] = columns.pop(name)
        record = BytesIO()
        record.write(self._header)
        schemaless_writer(record, self._schema, columns)
        return record.getvalue()

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
