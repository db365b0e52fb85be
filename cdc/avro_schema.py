"""The Avro schemas of a table, from its columns alone: docs/types.md has the rules, type by type.

Each column of a row is a union with null and null its default, so that a column which is added or dropped leaves the
schema compatible. A key has no nulls, and hangs on as little as can be, since another schema id makes it another key:
all integers are long there, and any numeric is a string.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cdc.avro_values import date_days, decimal_bytes, float_of, time_micros, timestamp_micros
from cdc.errors import CaptureError
from cdc.tables import Column

Schema = str | dict[str, Any] | list[Any]

JSON_TYPE = "json"
"""Our own logical type: a string that is JSON. Who does not know it reads a string, as Avro demands."""
COLUMN_NAME = "column"
"""The attribute of a field whose column has a name that Avro does not allow."""

_NUMERIC_HEADER = 4
_MONEY_DIGITS, _MONEY_SCALE = 19, 2


@dataclass(frozen=True, slots=True)
class AvroType:
    """How a column is written: its schema, what msgspec reads its JSON as, and what that becomes for fastavro.

    Raw JSON may be null; any other value that is None is not given to `write`.
    """

    schema: Schema
    json: Any
    write: Callable[[Any], Any] | None = None

    @property
    def nullable_json(self) -> Any:
        """What msgspec reads the JSON as where it may be null."""
        return self.json if self.json is msgspec.Raw else self.json | None


def _logical(base: str, logical: str, **attributes: int) -> Schema:
    return {"type": base, "logicalType": logical, **attributes}


def _decimal(precision: int, scale: int) -> AvroType:
    return AvroType(_logical("bytes", "decimal", precision=precision, scale=scale), str, decimal_bytes)


def _json_text(json: msgspec.Raw) -> str | None:
    return None if bytes(json) == b"null" else bytes(json).decode()


def _text(json: msgspec.Raw) -> str | None:
    """Return a string's text; of what a cast to json makes something else of, the JSON."""
    text = bytes(json)
    return msgspec.json.decode(text, type=str) if text.startswith(b'"') else _json_text(json)


def _element_text(json: msgspec.Raw) -> str | None:
    if bytes(json).startswith(b"["):
        raise ValueError("an array of several dimensions")
    return _text(json)


def _float(json: msgspec.Raw) -> float | None:
    return float_of(bytes(json))


_LONG = AvroType("long", int)
_STRING = AvroType("string", str)
_JSON = AvroType(_logical("string", JSON_TYPE), msgspec.Raw, _json_text)
_TYPES: Mapping[str, AvroType] = {
    "smallint": AvroType("int", int),
    "integer": AvroType("int", int),
    "bigint": _LONG,
    "real": AvroType("float", msgspec.Raw, _float),
    "double precision": AvroType("double", msgspec.Raw, _float),
    "boolean": AvroType("boolean", bool),
    "numeric": _STRING,
    "money": _decimal(_MONEY_DIGITS, _MONEY_SCALE),
    "text": _STRING,
    "character": _STRING,
    "character varying": _STRING,
    "bytea": AvroType("bytes", bytes),
    "uuid": AvroType(_logical("string", "uuid"), str),
    "date": AvroType(_logical("int", "date"), str, date_days),
    "time without time zone": AvroType(_logical("long", "time-micros"), str, time_micros),
    "timestamp with time zone": AvroType(_logical("long", "timestamp-micros"), str, timestamp_micros),
    "timestamp without time zone": AvroType(_logical("long", "local-timestamp-micros"), str, timestamp_micros),
    "json": _JSON,
    "jsonb": _JSON,
}
_OTHER = AvroType("string", msgspec.Raw, _text)
_OTHER_ELEMENT = AvroType("string", msgspec.Raw, _element_text)
_IN_KEYS: Mapping[str, AvroType] = {"smallint": _LONG, "integer": _LONG, "numeric": _STRING}


def value_type(column: Column) -> AvroType:
    """Return how a column is written in a row."""
    return _array_type(column.type, column.type_modifier)


def key_type(column: Column) -> AvroType:
    """Return how a column is written in a key."""
    return _IN_KEYS.get(column.type) or value_type(column)


def value_schema(topic: str, columns: Sequence[Column]) -> str:
    """Return the schema of a topic's values."""
    fields = [{**_named(column), "type": ["null", value_type(column).schema], "default": None} for column in columns]
    return _record(topic, "Value", fields)


def key_schema(topic: str, key: Sequence[Column]) -> str:
    """Return the schema of a topic's keys."""
    return _record(topic, "Key", [{**_named(column), "type": key_type(column).schema} for column in key])


def without_logical_types(schema: Any) -> Any:
    """Return a schema that has numbers for what logical types make of them, which cannot hold all that there is."""
    if isinstance(schema, dict):
        return {name: without_logical_types(part) for name, part in schema.items() if name != "logicalType"}
    return [without_logical_types(part) for part in schema] if isinstance(schema, list) else schema


def avro_name(name: str) -> str:
    """Return a name as Avro allows it: letters, digits and _, no digit first; other characters as `_x<code>_`."""
    escaped = re.sub(r"[^A-Za-z0-9_]", lambda match: f"_x{ord(match[0]):x}_", name)
    return f"_x{ord(escaped[0]):x}_{escaped[1:]}" if escaped[0].isdigit() else escaped


def _record(topic: str, name: str, fields: Sequence[dict[str, Any]]) -> str:
    names = [str(field["name"]) for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CaptureError(f"topic {topic}: two columns have the name {twice} in Avro: rename one of them")
    namespace = ".".join(map(avro_name, topic.split(".")))
    return json.dumps({"type": "record", "name": name, "namespace": namespace, "fields": fields}, ensure_ascii=False)


def _named(column: Column) -> dict[str, Any]:
    name = avro_name(column.name)
    return {"name": name} if name == column.name else {"name": name, COLUMN_NAME: column.name}


def _array_type(type_name: str, modifier: int) -> AvroType:
    if not type_name.endswith("[]"):
        return _scalar_type(type_name, modifier)
    element = _array_type(type_name.removesuffix("[]"), modifier)
    if element is _OTHER:
        element = _OTHER_ELEMENT
    return AvroType(
        schema={"type": "array", "items": ["null", element.schema]},
        json=list[element.nullable_json],  # type: ignore[name-defined]  # a type, known at run time only
        write=element.write and _each(element.write),
    )


def _each(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [None if value is None else write(value) for value in values]


def _scalar_type(type_name: str, modifier: int) -> AvroType:
    if type_name == "numeric" and modifier >= _NUMERIC_HEADER:
        precision, scale = _digits(modifier)
        # Avro wants as many digits as stand behind the point, and no scale below zero: 5000 of numeric(1, -3).
        return _decimal(max(precision, scale) if scale > 0 else precision - scale, max(scale, 0))
    return _TYPES.get(type_name, _OTHER)


def _digits(modifier: int) -> tuple[int, int]:
    """Return precision and scale of a numeric's type modifier: 16 bits, and 11 bits with a sign."""
    packed = modifier - _NUMERIC_HEADER
    return packed >> 16, ((packed & 0x7FF) ^ 0x400) - 0x400
