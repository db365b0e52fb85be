"""Rows are read by a table's name: where another table has that by now, none of its rows is taken for this one's."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.attachment import attach
from cdc.change import Page
from cdc.errors import CatalogChanged
from cdc.kafka_requests import RequestTopic
from cdc.polling import NOTHING
from cdc.rounds import Keys
from cdc.session import SESSION
from cdc.source import Source as RowSource
from cdc.sources import polled_options
from cdc.tables import CapturedTable, SourceKind
from cdc.timestamp import TimestampSource
from cdc.wire import TableName
from runtime.kafka import admin
from runtime.postgres import connect
from runtime.settings import CdcSettings
from tests.integration.captured_source import CAPTURE, Source, row_reader
from tests.integration.polled_source import BULK

# What these tests are about is none of the versions' business.
pytestmark = pytest.mark.newest_postgres

ITEMS = TableName("app", "items")
RENAMED = "BEGIN; ALTER TABLE app.items RENAME TO old; ALTER TABLE app.other RENAME TO items; COMMIT"
# No lock on a table prevents that.
SCHEMA_RENAMED = "BEGIN; ALTER SCHEMA app RENAME TO before; ALTER SCHEMA after RENAME TO app; COMMIT"
KEYS = Keys(3, (["1", "2", "3"],))
READS: dict[str, Callable[[RowSource, CapturedTable], Page | None]] = {
    "page_of_a_large_round": lambda rows, table: rows.page(table, KEYS),
    "first_chunk_of_a_snapshot": lambda rows, table: rows.chunk(table, None, most_rows=100),
    "next_chunk_of_a_snapshot": lambda rows, table: rows.chunk(table, ("1",), most_rows=100),
    "batch_of_a_sweep": lambda rows, table: rows.ghosts(table, [["1", "2", "3"]]),
    "look_up": lambda rows, table: rows.look_up(table, [["1", "2", "3"]], most_rows=3),
}


@pytest.fixture(params=SourceKind)
def kind(request: pytest.FixtureRequest) -> SourceKind:
    """Give each kind of source."""
    return SourceKind(request.param)


@pytest.fixture
def rows(wal: Source, kind: SourceKind, settings: CdcSettings, tmp_path: Path) -> Iterator[RowSource]:
    """Give what reads the table app.items of three rows, beside which there are others with other rows."""
    wal.run(
        "CREATE SCHEMA app",
        "CREATE SCHEMA after",
        "CREATE TABLE app.items (id bigint PRIMARY KEY, text text)",
        "INSERT INTO app.items SELECT i, 'own' FROM generate_series(1, 3) i",
        *(
            statement
            for other in ("app.other", "after.items")
            for statement in (
                f"CREATE TABLE {other} (id bigint PRIMARY KEY, text text)",
                f"INSERT INTO {other} SELECT i, 'of another table' FROM generate_series(2, 9) i",
            )
        ),
    )
    with closing(connect(wal.url, name="test", settings=SESSION)) as session:
        if kind is SourceKind.TIMESTAMP:
            tables = tmp_path / "tables.toml"
            tables.write_text(f'[[table]]\nname = "{ITEMS}"\n{BULK}\n')
            yield TimestampSource(
                session,
                CAPTURE,
                where="test",
                token="",
                options=polled_options(str(tables)),
                intervals=NOTHING,
                requests=RequestTopic(settings, admin(settings, name="test"), CAPTURE),
            )
            return
        assert attach(wal.connection, CAPTURE, ITEMS, where="test", source=kind)
        with closing(row_reader(session, kind, wal.url)) as reader:
            yield reader


@pytest.mark.parametrize("read_by", READS)
def test_a_page_has_no_row_of_another_table_that_has_the_name_by_now(
    wal: Source, rows: RowSource, read_by: str
) -> None:
    (table,), _ = rows.attached()
    read = READS[read_by]
    # Its statement is planned for the table that there was.
    assert read(rows, table) is not None
    wal.run(RENAMED)
    with pytest.raises(CatalogChanged, match="another table has its name now"):
        read(rows, table)


def test_nor_has_what_is_read_of_a_round_once_its_schema_is_another_one(wal: Source, rows: RowSource) -> None:
    (table,), _ = rows.attached()
    with rows.round((table,), {}, lambda _table: 100) as round_:
        wal.run(SCHEMA_RENAMED)
        with pytest.raises(CatalogChanged, match="another table has its name now"):
            rows.images(round_, table, KEYS)


@pytest.mark.parametrize("kind", [SourceKind.TRIGGERS], indirect=True)
@pytest.mark.parametrize("read_by", READS)
def test_rows_of_columns_that_may_leave_are_read_of_the_same_table_whatever_its_name(
    wal: Source, rows: RowSource, read_by: str
) -> None:
    """Our view of them goes with the table."""
    wal.run("SELECT cdc.detach('viewkeeper', 'app', 'items')")
    assert attach(wal.connection, CAPTURE, ITEMS, where="test", columns=("id", "text"))
    (table,), _ = rows.attached()
    before = READS[read_by](rows, table)
    wal.run(RENAMED)
    after = READS[read_by](rows, table)
    assert before is not None
    assert after is not None
    assert after.changes == before.changes
