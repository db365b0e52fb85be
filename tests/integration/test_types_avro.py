"""docs/types.md holds for Avro, too: its second table is made here, and what is written reads back as the JSON."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from cdc.avro_encoding import AvroEncoding
from cdc.avro_schema import key_type, value_type
from cdc.avro_values import date_days, date_text, timestamp_micros, timestamp_text
from cdc.change import KeyAndRow, Op, Page
from cdc.errors import CaptureError
from cdc.session import SESSION
from cdc.tables import CapturedTable, Column, captured_tables
from runtime.postgres import connect
from runtime.settings import CdcSettings, read_settings
from tests.integration.test_types import CAPTURE, DOCUMENT, EXAMPLES, ODD_TEXTS, Example, applicable, create

TABLE = re.search(r"(?s)<!-- made by tests/integration/test_types_avro.py -->\n(.*?)<!-- end -->", DOCUMENT)
HEADER = "| type | Avro | in a key | example | is written | notes |\n|---|---|---|---|---|---|\n"


@pytest.fixture
def source(source_url: str) -> Iterator[psycopg.Connection]:
    """Give a source database with the document's types, over a session of the capture's settings."""
    setup = re.search(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
    assert setup is not None
    with closing(connect(source_url, name="test", settings=SESSION | {"search_path": "public"})) as connection:
        connection.execute(setup[1].encode())
        yield connection


@pytest.fixture
def encoding(
    settings_env: dict[str, str], avro: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[AvroEncoding]:
    for name, value in {**settings_env, **avro}.items():
        monkeypatch.setenv(name, value)
    with closing(AvroEncoding(read_settings(CdcSettings))) as encoding:
        yield encoding


def example_columns(source: psycopg.Connection, examples: list[Example]) -> CapturedTable:
    """Make a table with a column an example, named like `7 "numeric" 100%`, and a key."""
    create(source, "examples", {"id": "bigint", **{name(place, one): one.type for place, one in enumerate(examples)}})
    (table,) = captured_tables(source, CAPTURE)
    return table


def name(place: int, example: Example) -> str:
    return f'{place} "{example.type}" 100%'


def page(table: CapturedTable, key: bytes, row: bytes | None) -> Page:
    return Page(table, [(key, row)], 0, Op.READ)


def row_of(columns: tuple[Column, ...], examples: list[Example]) -> bytes:
    """Return the row as test_types.py sees that Postgres writes it."""
    fields = [f"{json.dumps(one.name)}:{example.json}" for one, example in zip(columns, examples, strict=True)]
    return ("{" + ",".join(fields) + "}").encode()


@pytest.mark.newest_postgres
def test_the_documents_table_is_what_is_written(source: psycopg.Connection) -> None:
    examples = list(EXAMPLES)
    columns = example_columns(source, examples).columns[1:]
    lines = [_line(column, example) for column, example in zip(columns, examples, strict=True)]
    assert TABLE is not None
    made = HEADER + "".join(lines)
    assert TABLE[1].strip() == made.strip(), made


def _line(column: Column, example: Example) -> str:
    of_row, of_key = value_type(column), key_type(column)
    written = written_value(column, example)
    cells = [
        f"`{example.type}`",
        _schema_words(of_row.schema),
        "no" if example.key is None else ("the same" if of_key == of_row else _schema_words(of_key.schema)),
        f"`{example.text}`" if len(example.text) < 60 else "…",
        "" if written is None else (f"`{written}`" if len(written) < 60 else "…"),
        "the capture stops and names the row" if written is None else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def _schema_words(schema: Any) -> str:
    if isinstance(schema, str):
        return f"`{schema}`"
    if schema["type"] == "array":
        return f"array of {_schema_words(schema['items'][1])}"
    digits = f"({schema['precision']}, {schema['scale']})" if "scale" in schema else ""
    return f"`{schema['type']}`, `{schema['logicalType']}{digits}`"


def written_value(column: Column, example: Example) -> str | None:
    """Return what a reader gets that knows nothing of logical types, None for a value that Avro cannot hold."""
    how = value_type(column)
    try:
        value = msgspec.json.decode(example.json, type=how.nullable_json)
        return _shown(how.write(value) if how.write and value is not None else value)
    except ValueError:
        return None


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    return json.dumps(value, ensure_ascii=False)


def encoded(encoding: AvroEncoding, topic: str, table: CapturedTable, key: str, row: str | None) -> KeyAndRow:
    (change,) = encoding.encoded(topic, Page(table, [(key.encode(), row.encode() if row else None)], 0, Op.READ))
    return change


def test_every_value_that_avro_holds_reads_back_as_the_json(
    source: psycopg.Connection, encoding: AvroEncoding, topic_prefix: str
) -> None:
    examples = applicable(source)
    table = example_columns(source, examples)
    held = [(c, one) for c, one in zip(table.columns[1:], examples, strict=True) if written_value(c, one) is not None]
    fields = [f"{json.dumps(column.name)}:{example.json}" for column, example in held]
    columns = (table.columns[0], *(column for column, _ in held))
    row = f'{{"id":1,{",".join(fields)}}}'
    key, value = encoded(encoding, f"{topic_prefix}.rows", replace(table, columns=columns), '{"id":1}', row)
    assert value is not None
    assert encoding.decoding.json(key) == b'{"id":1}'
    read = json.loads(encoding.decoding.json(value))
    for column, example in held:
        schema = value_type(column).schema
        plain = json.loads(example.json, parse_int=float if schema in ("float", "double") else int)
        # What Avro has no type for is a string: an object is that of its JSON.
        expected = example.json if schema == "string" and isinstance(plain, dict) else plain
        assert repr(read[column.name]) == repr(expected), example


def test_what_avro_cannot_hold_stops_with_topic_key_and_column(
    source: psycopg.Connection, encoding: AvroEncoding, topic_prefix: str
) -> None:
    examples = applicable(source)
    table = example_columns(source, examples)
    unheld = [(c, one) for c, one in zip(table.columns[1:], examples, strict=True) if written_value(c, one) is None]
    assert {"numeric(6,2)", "numeric[]", "timestamp[]"} <= {example.type for _, example in unheld}
    for place, (column, example) in enumerate(unheld):
        topic, narrow = f"{topic_prefix}.refused{place}", replace(table, columns=(table.columns[0], column))
        row = f'{{"id":7,{json.dumps(column.name)}:{example.json}}}'
        with pytest.raises(CaptureError) as refused:
            encoded(encoding, topic, narrow, '{"id":7}', row)
        assert f'topic {topic}: the row with key {{"id":7}} has a value in column {column.name}' in str(refused.value)


def test_every_key_reads_back_as_the_same_bytes(
    source: psycopg.Connection, encoding: AvroEncoding, topic_prefix: str
) -> None:
    examples = [example for example in applicable(source) if example.key is not None]
    table = example_columns(source, examples)
    for place, (column, example) in enumerate(zip(table.columns[1:], examples, strict=True)):
        key = f"{{{json.dumps(column.name)}:{example.key}}}"
        if example.type.startswith("numeric") or written_value(column, example) is not None:
            raw, _ = encoded(encoding, f"{topic_prefix}.keyed{place}", replace(table, key=(column,)), key, None)
            assert encoding.decoding.json(raw).decode() == key, example


def test_keys_of_several_columns_and_odd_texts_read_back_as_the_same_bytes(
    source: psycopg.Connection, encoding: AvroEncoding, topic_prefix: str
) -> None:
    source.execute("CREATE TABLE keyed (b text, a integer, c uuid, PRIMARY KEY (c, b, a))")
    source.execute("SELECT cdc.attach(%s, 'keyed'::regclass)", [CAPTURE])
    (table,) = captured_tables(source, CAPTURE)
    for text in ODD_TEXTS:
        query = 'SELECT \'{"c":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","b":\' || to_json(%s::text) || \',"a":5}\''
        (key,) = source.execute(query, [text]).fetchone() or ("",)
        raw, _ = encoded(encoding, f"{topic_prefix}.keyed", table, key, None)
        assert encoding.decoding.json(raw).decode() == key


def test_confluents_deserializer_reads_logical_types_and_its_serializer_writes_the_same_bytes(
    source: psycopg.Connection, encoding: AvroEncoding, topic_prefix: str, avro: dict[str, str]
) -> None:
    source.execute(
        "CREATE TABLE typed (id bigint PRIMARY KEY, price numeric(8, 2), at timestamptz, day date, clock time, "
        "key uuid, raw bytea, tags text[], nothing text)"
    )
    source.execute("SELECT cdc.attach(%s, 'typed'::regclass)", [CAPTURE])
    (table,) = captured_tables(source, CAPTURE)
    row = (
        '{"id":1,"price":"-12.30","at":"2026-01-02T03:04:05.600000Z","day":"2026-01-02","clock":"03:04:05.6",'
        '"key":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","raw":"AP8Q","tags":["a",null],"nothing":null}'
    )
    topic = f"{topic_prefix}.typed"
    _, value = encoded(encoding, topic, table, '{"id":1}', row)
    with SchemaRegistryClient({"url": avro["VIEWKEEPER_SCHEMA_REGISTRY_URL"], "timeout": 10}) as client:
        context = SerializationContext(topic, MessageField.VALUE)
        read = AvroDeserializer(client)(value, context)
        newest = client.get_latest_version(f"{topic}-value").schema
        assert AvroSerializer(client, newest, conf={"auto.register.schemas": False})(read, context) == value
    assert read == {
        "id": 1,
        "price": Decimal("-12.30"),
        "at": datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "clock": time(3, 4, 5, 600_000),
        "key": UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        "raw": b"\x00\xff\x10",
        "tags": ["a", None],
        "nothing": None,
    }


def test_times_of_all_years_are_the_numbers_that_postgres_counts(source: psycopg.Connection) -> None:
    times = source.execute(
        "SELECT to_json(CASE WHEN at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999' "
        "THEN to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') ELSE at::text END) #>> '{}', "
        "(extract(epoch FROM at) * 1000000)::bigint, at::date::text, at::date - date '1970-01-01' "
        "FROM generate_series(timestamptz '4713-11-24 00:00:00+00 BC', '294246-12-31', interval '9999999 min') AS at"
    ).fetchall()
    assert len(times) > 10_000
    for text, micros, day, days in times:
        assert (timestamp_micros(text), timestamp_text(micros, zone=True)) == (micros, text)
        assert (date_days(day), date_text(days)) == (days, day)


def test_a_time_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="more microseconds than 64 bits hold"):
        timestamp_micros("294276-12-31 23:59:59.999999+00")
