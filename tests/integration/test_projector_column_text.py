"""Columns as text, read back by Postgres itself."""

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose.local.postgres import PostgresServer
from projector.column_text import copy_rows, plain_array, text_array

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


def copied(session: psycopg.Connection, type_name: str, values: list[str | None] | list[int | None]) -> list[object]:
    session.execute(f"CREATE TEMPORARY TABLE copied (place bigint, value {type_name}) ON COMMIT DROP".encode())
    with session.cursor().copy("COPY copied FROM STDIN") as copy:
        copy.write(copy_rows([range(len(values)), values]))
    rows = session.execute("SELECT value FROM copied ORDER BY place").fetchall()
    return [value for (value,) in rows]
