"""docs/types.md holds: its examples are written in its bytes, by the capture's own SQL, whatever is set."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier, Literal

from cdc import statements
from cdc.change import KeyAndRow
from cdc.session import SESSION
from cdc.sweep import key_columns
from cdc.tables import captured_tables
from cdc.triggers import TriggerSource
from runtime.postgres import connect
from tests.daemons import ROOT

DOCUMENT = (ROOT / "docs" / "types.md").read_text()
CAPTURE = "viewkeeper"
VIRTUAL_SINCE = 180_000
Written = list[tuple[str, str]]
"""Keys and rows."""
ODD_SETTINGS = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "lc_monetary": "C.utf8",
    "xmlbinary": "hex",
    "xmloption": "document",
    "search_path": "odd, pg_catalog",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
}
# Names that stand before Postgres's own in the odd search_path.
ODD_OBJECTS = """
CREATE SCHEMA odd;
CREATE FUNCTION odd.encode(bytea, text) RETURNS text LANGUAGE sql AS $$ SELECT 'odd' $$;
CREATE FUNCTION odd.to_char(timestamp, text) RETURNS text LANGUAGE sql AS $$ SELECT 'odd' $$;
CREATE FUNCTION odd.to_json(anyelement) RETURNS json LANGUAGE sql AS $$ SELECT json '"odd"' $$;
CREATE TYPE odd.text AS ENUM ();
"""
ODD_TEXTS = [
    "",
    "\x01\x1f\b\t\n\x0b\f\r",
    "\x7f\x80\x9f",
    "\u2028\u2029\ufeff\ufffd",
    "e\u0301 \U0001f469\u200d\U0001f4bb",
    "\U0010ffff\ue000\ud7ff",
    "\u202eright to left",
    "</script>&<>'/",
    "\\u0041\\",
    "%s %% %(k1)s {0}",
    "NULL",
]


@dataclass(frozen=True)
class Example:
    """A row of the document's table; `key` is what a key holds, None for a type that cannot be one."""

    type: str
    key: str | None
    text: str
    json: str
    since: int


def _examples() -> Iterator[Example]:
    for line in DOCUMENT.partition("## In Avro")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        name, _json, key, text, written, notes = cells
        since = re.search(r"from Postgres (\d+)", notes)
        keys = {"yes": _code(written), "no": None}
        yield Example(
            type=_code(name),
            key=keys[key] if key in keys else _code(key),
            text=_code(text),
            json=_code(written),
            since=int(since[1]) if since else 0,
        )


def _code(cell: str) -> str:
    assert cell[0] == cell[-1] == "`", cell
    return cell[1:-1]


EXAMPLES = tuple(_examples())


@pytest.fixture
def source(source_url: str) -> Iterator[psycopg.Connection]:
    """Give a source database with the document's types, over a session of the capture's settings."""
    setup = re.search(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
    assert setup is not None
    with closing(connect(source_url, name="test", settings=SESSION | {"search_path": "public"})) as connection:
        connection.execute(setup[1].encode())
        yield connection


@pytest.fixture(params=["default", "database", "role"])
def odd_url(source: psycopg.Connection, source_url: str, request: pytest.FixtureRequest) -> str:
    """Give the source's URL, where all settings are as they come, or odd, for the database or for the role in it."""
    database = Identifier(source.info.dbname)
    places = {
        "default": None,
        "database": SQL("ALTER DATABASE {}").format(database),
        "role": SQL("ALTER ROLE {} IN DATABASE {}").format(Identifier(source.info.user), database),
    }
    source.execute(ODD_OBJECTS)
    place = places[request.param]
    for setting, value in ODD_SETTINGS.items() if place is not None else ():
        values = SQL(", ").join(map(Literal, value.split(", ")))
        source.execute(SQL("{} SET {} = {}").format(place, Identifier(setting), values))
    return source_url


def applicable(source: psycopg.Connection) -> list[Example]:
    """Return the examples that this server can hold."""
    version = source.info.server_version // 10_000
    return [example for example in EXAMPLES if example.since <= version and (example.type != "xml" or _has_xml(source))]


def _has_xml(source: psycopg.Connection) -> bool:
    try:
        source.execute("SELECT xml '<a/>'")
    except pg.FeatureNotSupported:
        return False
    return True


def create(source: psycopg.Connection, name: str, columns: dict[str, str]) -> None:
    """Create a table of these columns, by their definitions, and attach it; the first column is its key."""
    definitions = SQL(", ").join(
        SQL("{} {}").format(Identifier(column), SQL(definition)) for column, definition in columns.items()
    )
    key = Identifier(next(iter(columns)))
    source.execute(SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(Identifier(name), definitions, key))
    source.execute("SELECT cdc.attach(%s, %s::regclass)", [CAPTURE, name])


def insert(connection: psycopg.Connection, table: str, values: Sequence[str]) -> None:
    texts = SQL(", ").join(map(Literal, values))
    connection.execute(SQL("INSERT INTO public.{} VALUES ({})").format(Identifier(table), texts))


class Capture:
    """Reads tables by the capture's own SQL, in a session of its settings."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._source = TriggerSource(connection, CAPTURE, where="test")
        self._tables = {table.name.name: table for table in captured_tables(connection, CAPTURE)}

    def snapshot(self, table: str) -> Written:
        """Read a table's keys and rows as a snapshot does."""
        page = self._source.chunk(self._tables[table], None, most_rows=1000)
        assert page is not None
        return _texts(page.changes)

    def round(self, table: str) -> Written:
        """Read the keys and rows that were logged as a round does."""
        captured = self._tables[table]
        logs = SQL(" UNION ALL ").join(
            SQL("SELECT {} FROM {}").format(SQL(", ").join(statements.log_columns(captured)), log)
            for log in (statements.log_name(captured, part) for part in statements.PARTS)
        )
        logged = self._connection.execute(logs).fetchall()
        keys = {f"k{place}": list(values) for place, values in enumerate(zip(*logged, strict=True), 1)}
        return self._connection.execute(statements.living(captured), keys).fetchall()

    def not_found_again(self, table: str, key: str) -> Written:
        """Read what is wrong if a row's key is read back right: rows after it, though it is the last, and deletes."""
        columns = key_columns(table, {key.encode()})
        after = self._source.chunk(self._tables[table], tuple(texts[0] for texts in columns), most_rows=1000)
        gone = self._source.ghosts(self._tables[table], columns)
        assert after is not None
        assert gone is not None
        return _texts([*after.changes, *gone.changes])


def _texts(changes: Sequence[KeyAndRow]) -> Written:
    return [(key.decode(), (row or b"").decode()) for key, row in changes]


@contextmanager
def capture(url: str) -> Iterator[Capture]:
    """Open a capture of what is attached now."""
    with closing(connect(url, name="test", settings=SESSION)) as connection:
        yield Capture(connection)


def test_every_example_is_written_as_documented(source: psycopg.Connection, odd_url: str) -> None:
    examples = applicable(source)
    columns = {f'{number} "{example.type}" 100%': example.type for number, example in enumerate(examples)}
    create(source, "examples", {"id": "bigint", **columns})
    insert(source, "examples", ["1", *(example.text for example in examples)])
    insert(source, "examples", ["2"])

    with capture(odd_url) as captured:
        (_, row), (_, nulls) = captured.snapshot("examples")

    names = [json.dumps(name) for name in columns]
    fields = [f"{name}:{example.json}" for name, example in zip(names, examples, strict=True)]
    assert row == "{" + ",".join(['"id":1', *fields]) + "}"
    assert nulls == "{" + ",".join(['"id":2', *(f"{name}:null" for name in names)]) + "}"


def test_every_key_is_written_as_documented_and_read_back(source: psycopg.Connection, odd_url: str) -> None:
    examples = {f"keyed_{number}": one for number, one in enumerate(applicable(source)) if one.key is not None}
    for table, example in examples.items():
        create(source, table, {'100% "K" \\': example.type})
    # The keys are logged in a session of the odd settings.
    with closing(psycopg.connect(odd_url, autocommit=True, client_encoding="utf8")) as writer:
        for table, example in examples.items():
            insert(writer, table, [example.text])

    name = json.dumps('100% "K" \\')
    with capture(odd_url) as captured:
        for table, example in examples.items():
            expected = [(f"{{{name}:{example.key}}}", f"{{{name}:{example.json}}}")]
            assert captured.snapshot(table) == expected, example
            assert captured.round(table) == expected, example
            assert captured.not_found_again(table, expected[0][0]) == [], example


def test_what_is_documented_as_no_key_is_refused(source: psycopg.Connection) -> None:
    for number, type_name in enumerate(sorted({example.type for example in EXAMPLES if example.key is None})):
        # Without an order there can be no primary key; any other is refused when it is attached.
        with pytest.raises((pg.UndefinedObject, pg.ObjectNotInPrerequisiteState)) as refused:
            create(source, f"keyed_{number}", {"k": type_name})
        if isinstance(refused.value, pg.ObjectNotInPrerequisiteState):
            assert "has key column k of type" in str(refused.value), type_name


def test_one_number_is_one_key_however_many_zeros_it_was_written_with(source: psycopg.Connection) -> None:
    create(source, "keyed", {"k": "numeric", "place": "text"})
    insert(source, "keyed", ["100.0", "before"])
    source.execute("UPDATE keyed SET k = 100.00, place = 'after'")
    with capture(source.info.dsn) as captured:
        assert set(captured.round("keyed")) == {('{"k":"100"}', '{"k":"100.00","place":"after"}')}


def test_odd_text_is_utf8_and_comes_back_as_it_was(source: psycopg.Connection, odd_url: str) -> None:
    create(source, "texts", {"k": "text", "v": "text"})
    for text in ODD_TEXTS:
        insert(source, "texts", [text, text])
    with capture(odd_url) as captured:
        for read in (captured.snapshot("texts"), captured.round("texts")):
            rows = {json.loads(key)["k"]: row for key, row in read}
            assert rows.keys() == set(ODD_TEXTS)
            for text, row in rows.items():
                assert json.loads(row) == {"k": text, "v": text}
                assert [mark for mark in text if mark > "\x7e" and mark not in row] == []


def test_generated_columns_are_like_any_other(source: psycopg.Connection) -> None:
    virtual = "VIRTUAL" if source.info.server_version >= VIRTUAL_SINCE else "STORED"
    create(
        source,
        "products",
        {
            "id": "bigint",
            "price": "numeric",
            "stored": "numeric GENERATED ALWAYS AS (price * 2) STORED",
            "virtual": f"text GENERATED ALWAYS AS ('x' || id) {virtual}",
        },
    )
    source.execute("INSERT INTO products VALUES (1, 1.10)")
    expected = [('{"id":1}', '{"id":1,"price":"1.10","stored":"2.20","virtual":"x1"}')]
    with capture(source.info.dsn) as captured:
        assert captured.snapshot("products") == expected
        assert captured.round("products") == expected
