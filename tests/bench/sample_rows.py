"""The table that capture is measured with: rows of about 200 bytes as JSON."""

from collections.abc import Iterator

import psycopg
from psycopg import sql
from psycopg.types.string import ByteaBinaryLoader

from tests.bench.errors import BenchError

TABLE = "bench_rows"
PAGE_ROWS = 10_000

_CREATE = """
CREATE TABLE {table} (
    row_id bigint PRIMARY KEY,
    user_id bigint NOT NULL,
    text text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
)
"""

# About 75 characters of text; ids, times and names make up the rest of the 200 bytes.
_INSERT = """
INSERT INTO {table}
SELECT row_id, row_id * 7919 %% 50000, md5(row_id::text) || ' ' || md5((row_id + 1)::text) || ' ünïcode',
       timestamptz '2026-01-01 00:00:00.123456+00' + row_id * interval '1 second',
       -- Each at its own time: rows of one moment would all be looked back for by whoever polls by it.
       timestamptz '2020-01-01 00:00:00.654321+00' + row_id * interval '1 second'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS row_id
"""

_INDEX_UPDATES = "CREATE INDEX ON {table} (updated_at, row_id)"

_UPDATE_ALL = "UPDATE {table} SET text = 'second version ' || substr(text, 16), updated_at = now()"

# The capture's JSON, written out by hand for this one table: same bytes, no more work than they need.
_JSON = """
SELECT '{{"row_id":' || row_id || '}}',
       row_to_json(json_row)::text
FROM (
    SELECT row_id, user_id, text,
           to_char(timezone('UTC', created_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
           to_char(timezone('UTC', updated_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
    FROM {table}
) AS json_row
"""


def create_table(connection: psycopg.Connection, table: str = TABLE) -> None:
    """Create an empty sample table."""
    connection.execute(_statement(_CREATE, table))


def insert_rows(connection: psycopg.Connection, first: int, last: int, table: str = TABLE) -> None:
    """Insert rows `first` to `last` in one statement."""
    connection.execute(_statement(_INSERT, table), {"first": first, "last": last})


def index_updates(connection: psycopg.Connection, table: str = TABLE) -> None:
    """Index the order in which a table is polled that is asked for its updates."""
    connection.execute(_statement(_INDEX_UPDATES, table))


def update_all(connection: psycopg.Connection, table: str = TABLE) -> None:
    """Change every row in one statement."""
    connection.execute(_statement(_UPDATE_ALL, table))


def read_json(connection: psycopg.Connection, table: str = TABLE) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield pages of each row's key and value: a binary server cursor, JSON built in SQL, text loaded as bytes.

    This is the read that a capture's rate is compared with: nothing that goes through psycopg is known to be faster.
    """
    with connection.transaction(), connection.cursor("bench_read", binary=True) as cursor:
        cursor.adapters.register_loader("text", ByteaBinaryLoader)
        cursor.execute(_statement(_JSON, table))
        while page := cursor.fetchmany(PAGE_ROWS):
            yield page


def count_rows(connection: psycopg.Connection, table: str = TABLE) -> int:
    """Return how many rows a table has."""
    row = connection.execute(_statement("SELECT count(*) FROM {table}", table)).fetchone()
    if row is None:
        raise BenchError(f"table {table} could not be counted")
    return int(row[0])


def _statement(text: str, table: str) -> sql.Composed:
    return sql.SQL(text).format(table=sql.Identifier("public", table))
