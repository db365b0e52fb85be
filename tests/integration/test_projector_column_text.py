"""Columns as text, read back by Postgres itself."""

import psycopg
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.decoding import JsonDecoding
from cdc.statements import chunk
from cdc.table_options import Level
from cdc.tables import CapturedTable, Kind
from cdc.tables import Column as SourceColumn
from cdc.wire import TableName
from compose.local.postgres import PostgresServer
from projector.column_text import copy_rows, plain_array, text_array
from projector.daemon import SESSION_SETTINGS
from projector.decoding import Decoder
from projector.definition import Column, ColumnType, Resource, Row, View
from runtime.postgres import connect

TIMES = ("-infinity", "4714-11-24 00:00:00+00 BC", "0044-03-15 12:00:00.5+00 BC", "0001-01-01 00:00:00+00")
LATER_TIMES = ("2026-01-01 00:00:00.000001+00", "10000-01-01 00:00:00+00", "294276-12-31 23:59:59+00", "infinity")

texts = st.lists(st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
numbers = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)))
from_postgres = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@from_postgres
@given(st.one_of(texts, st.lists(st.sampled_from(["", "NULL", "{", '"', "\\", ",", "\\N", "\\.", " \n", None]))))
def test_texts_come_back_as_they_were(postgres: PostgresServer, values: list[str | None]) -> None:
    with psycopg.connect(postgres.url()) as session:
        assert session.execute("SELECT %s::text[]", [text_array(values)]).fetchone() == (values,)
        assert copied(session, "text", values) == values


@from_postgres
@given(numbers)
def test_numbers_come_back_as_they_were(postgres: PostgresServer, values: list[int | None]) -> None:
    with psycopg.connect(postgres.url()) as session:
        assert session.execute("SELECT %s::bigint[]", [plain_array(values)]).fetchone() == (values,)
        assert copied(session, "bigint", values) == values


@from_postgres
@given(st.lists(st.one_of(st.none(), st.booleans())))
def test_truth_comes_back_as_it_was(postgres: PostgresServer, values: list[bool | None]) -> None:
    with psycopg.connect(postgres.url()) as session:
        assert session.execute("SELECT %s::boolean[]", [plain_array(values)]).fetchone() == (values,)


def test_times_of_every_age_come_back_as_they_were(postgres: PostgresServer) -> None:
    """What the capture's own SQL writes, the view reads."""
    instant = "timestamp with time zone"
    key, at = SourceColumn("id", "bigint", "bigint"), SourceColumn("at", instant, instant)
    name = TableName("pg_temp", "ages")
    table = CapturedTable(1, 0, 0, False, name, Kind.TABLE, Level.STATEMENT, key=(key,), columns=(key, at))
    row = Row("pg_temp.ages", (Column("id", ColumnType.BIGINT), Column("at", ColumnType.TIMESTAMPTZ)))
    view = View("ages", "id", row, (), Resource("/ages/{id}", ()))
    times = dict(enumerate([*TIMES, *LATER_TIMES]))
    with connect(postgres.url(), name="ages", settings=SESSION_SETTINGS) as session:
        session.execute("CREATE TEMPORARY TABLE ages (id bigint, at timestamptz)")
        session.cursor().executemany("INSERT INTO ages VALUES (%s, %s)", list(times.items()))
        topic = "p.pg_temp.ages"
        published = {
            raw.encode(): Message(topic=topic, partition=0, offset=0, key=raw.encode(), value=value.encode())
            for raw, value in session.execute(chunk(table, resumed=False), {"most_rows": 1000})
        }
        rows = Decoder(view, "p", JsonDecoding()).decode({topic: published}).rows  # type: ignore[dict-item]  # as delivered
        for number, text in times.items():
            decoded = rows[TableName("pg_temp", "ages")][number]
            assert decoded is not None
            assert session.execute("SELECT %s::timestamptz = %s::timestamptz", [decoded[0], text]).fetchone() == (True,)


def copied(session: psycopg.Connection, type_name: str, values: list[str | None] | list[int | None]) -> list[object]:
    session.execute(f"CREATE TEMPORARY TABLE copied (place bigint, value {type_name}) ON COMMIT DROP".encode())
    with session.cursor().copy("COPY copied FROM STDIN") as copy:
        copy.write(copy_rows([range(len(values)), values]))
    rows = session.execute("SELECT value FROM copied ORDER BY place").fetchall()
    return [value for (value,) in rows]
