"""Avro back to what JSON says: the same keys and the same values, each read by the schema that it was written with."""

import json
import struct as binary
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import msgspec
from fastavro import parse_schema, schemaless_reader
from fastavro.types import AvroMessage

from cdc.avro_schema import COLUMN_NAME, JSON_TYPE, Schema, without_logical_types
from cdc.avro_values import bytes_text, date_text, decimal_text, float_json, time_text, timestamp_text

MAGIC = 0
HEADER = binary.Struct(">BI")
"""Confluent's framing: a byte 0, and the schema's id."""

Restore = Callable[[Any], Any]


class Schemas(Protocol):
    """Where schemas are found by their ids."""

    def schema(self, number: int) -> str:
        """Return a schema; raise ValueError if there is none."""


class AvroDecoding:
    """Reads records in Confluent's framing."""

    nul = b"\0"

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._written: dict[int, _Written] = {}

    def learn(self, number: int, schema: str) -> None:
        """Take note of a schema that is not to be asked for."""
        self._written[number] = _written(schema)

    def keys_json(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return the JSON of keys, as Postgres would have written it."""
        return list(map(self.json, keys))

    def json(self, raw: bytes) -> bytes:
        """Return the JSON of a key or a row, without the spaces that a `json` column may have."""
        return msgspec.json.encode(self._columns(raw, None))

    def reader(self, struct: type[msgspec.Struct]) -> Callable[[bytes], Any]:
        """Return a function that reads columns into a struct; columns beside its fields count where it forbids them."""
        wanted = None if struct.__struct_config__.forbid_unknown_fields else frozenset(struct.__struct_encode_fields__)
        return lambda raw: msgspec.convert(self._columns(raw, wanted), struct)

    def _columns(self, raw: bytes, wanted: Collection[str] | None) -> dict[str, Any]:
        """Return columns with the values that JSON has for them; all of them if none are named."""
        if len(raw) < HEADER.size or raw[0] != MAGIC:
            raise ValueError(
                f"it begins with {raw[: HEADER.size]!r}, not with a schema's id: was it written with another "
                "VIEWKEEPER_ENCODING?"
            )
        _, number = HEADER.unpack_from(raw)
        if number not in self._written:
            self._written[number] = _written(self._schemas.schema(number))
        return self._written[number].columns(raw, wanted)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field, its column's name, and what makes the value in JSON of that in Avro."""

    name: str
    column: str
    restore: Restore | None


@dataclass(frozen=True, slots=True)
class _Written:
    """A writer's schema, `plain` without logical types."""

    plain: dict[str, Any]
    fields: tuple[_Field, ...]

    def columns(self, raw: bytes, wanted: Collection[str] | None) -> dict[str, Any]:
        stream = BytesIO(raw)
        stream.seek(HEADER.size)
        try:
            record: AvroMessage = schemaless_reader(stream, self.plain, None)
        except (EOFError, IndexError, OverflowError) as error:
            raise ValueError(f"it does not hold what its schema says: {type(error).__name__} {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"it is no record: {record!r}")  # noqa: TRY004 - the bytes are what is wrong
        columns = {}
        for field in self.fields:
            if wanted is None or field.column in wanted:
                value = record[field.name]
                columns[field.column] = field.restore(value) if field.restore and value is not None else value
        return columns


def _written(schema: str) -> _Written:
    found = json.loads(schema)
    if not isinstance(found, dict) or found.get("type") != "record":
        raise ValueError("its schema is not that of a record")
    fields = tuple(
        _Field(field["name"], field.get(COLUMN_NAME, field["name"]), _restoring(field["type"]))
        for field in found["fields"]
    )
    return _Written(parse_schema(without_logical_types(found)), fields)  # type: ignore[arg-type]  # a record is a dict


def _restoring(schema: Schema) -> Restore | None:
    """Return what makes the value in JSON of a field's value, None where they are the same."""
    if isinstance(schema, list):
        (schema,) = [one for one in schema if one != "null"]
    if isinstance(schema, dict) and schema["type"] == "array":
        restore = _restoring(schema["items"])
        return _each(restore) if restore else None
    if isinstance(schema, dict) and "logicalType" in schema:
        return _restoring_logical(schema)
    base = schema["type"] if isinstance(schema, dict) else schema
    return _BASE.get(str(base))


def _each(restore: Restore) -> Restore:
    return lambda values: [None if value is None else restore(value) for value in values]


def _restoring_logical(schema: dict[str, Any]) -> Restore | None:
    if schema["logicalType"] == "decimal":
        scale = int(schema.get("scale", 0))
        return lambda unscaled: decimal_text(unscaled, scale)
    return _LOGICAL.get(schema["logicalType"])


def _float(value: float) -> float | str:
    """Return the shortest number that reads as the same 32 bits, as Postgres writes it."""
    if value - value != 0:
        return float_json(value)
    shortest = next(text for text in (f"{value:.{digits}g}" for digits in range(6, 10)) if _single(text) == value)
    return float_json(float(shortest))


def _single(text: str) -> float:
    return float(binary.unpack("f", binary.pack("f", float(text)))[0])


_BASE: dict[str, Restore] = {"bytes": bytes_text, "float": _float, "double": float_json}
_LOGICAL: dict[str, Restore] = {
    "timestamp-micros": lambda micros: timestamp_text(micros, zone=True),
    "local-timestamp-micros": lambda micros: timestamp_text(micros, zone=False),
    "date": date_text,
    "time-micros": time_text,
    JSON_TYPE: msgspec.json.decode,
}
