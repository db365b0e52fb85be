"""The timestamp source: what columns tell of changes is published, in each mode and across every kind of border."""

import pytest

from cdc.judging import CONFIRMATIONS
from tests.daemons import Daemons
from tests.integration.polled_source import BOTH, BULK, INCREMENTING, NO_LOOK_BACK, TIMESTAMP, PolledSource
from tests.waiting import wait_until


@pytest.mark.parametrize("options", [BOTH, TIMESTAMP])
def test_rows_that_are_inserted_and_updated_are_published(polled: PolledSource, daemon: Daemons, options: str) -> None:
    capture = daemon("cdc", "run", settings=polled.tables(items=options))
    polled.wait_published("items")
    polled.run(
        "INSERT INTO items VALUES (11, 'second', now())",
        "UPDATE items SET text = 'second', updated_at = now() WHERE id <= 3",
    )
    polled.wait_text("items", 11, "second")
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")
    assert "deletes until the next sweep" in capture.logged("not_seen")[0]["limits"]
    assert capture.terminate() == 0


@pytest.mark.newest_postgres
def test_mode_incrementing_publishes_new_rows(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=INCREMENTING))
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'unseen' WHERE id = 1", "INSERT INTO items VALUES (11, 'second')")
    polled.wait_text("items", 11, "second")
    polled.wait_published("items")
    assert polled.rows("items")["1"]["text"] == "first"


@pytest.mark.newest_postgres
def test_mode_bulk_publishes_whatever_changed_with_its_next_pass(polled: PolledSource, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={**polled.tables(items=BULK), "VIEWKEEPER_CDC_BULK_SECONDS": "1"})
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'second' WHERE id = 1", "DELETE FROM items WHERE id = 2")
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")
    entry = polled.entry("items")
    assert entry is not None
    assert entry.watermark is not None
    assert not entry.watermark.uncertain
    assert capture.logged("pass_begins")


@pytest.mark.newest_postgres
def test_a_reconcile_of_mode_bulk_waits_for_a_pass_and_takes_it_for_proof(
    polled: PolledSource, daemon: Daemons
) -> None:
    # Who reads a row is part of it, so that the command finds others than any pass has published.
    polled.run("CREATE VIEW read_by AS SELECT id, current_setting('application_name') AS reader FROM items")
    settings = {**polled.tables(read_by=f'{BULK}\nkey = ["id"]'), "VIEWKEEPER_CDC_BULK_SECONDS": "4"}
    daemon("cdc", "run", settings=settings)
    wait_until(lambda: polled.watermark_time("read_by"), what="the first pass")
    command = daemon("cdc", "reconcile", "--wait-seconds", "3.5", settings=settings)
    assert command.wait(60) == 1
    assert "10 keys differ still" in command.log_text()
    marks = [entry.watermark for cursor in polled.cursors() if (entry := cursor.tables.get("public.read_by"))]
    assert len({mark.time for mark in marks if mark}) < 2 * CONFIRMATIONS


@pytest.mark.newest_postgres
def test_the_first_of_several_columns_that_is_not_null_counts(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("ALTER TABLE items ADD created_at timestamptz")
    options = 'mode = "timestamp"\ntimestamp = ["updated_at", "created_at"]'
    daemon("cdc", "run", settings=polled.tables(items=options))
    polled.wait_published("items")
    polled.run("INSERT INTO items VALUES (11, 'created', NULL, now())")
    polled.wait_text("items", 11, "created")
    polled.run("UPDATE items SET text = 'changed', updated_at = now() WHERE id = 11")
    polled.wait_text("items", 11, "changed")


@pytest.mark.newest_postgres
@pytest.mark.parametrize("options", [BOTH, TIMESTAMP])
def test_equal_timestamps_lie_on_both_sides_of_a_page(polled: PolledSource, daemon: Daemons, options: str) -> None:
    settings = {**polled.tables(items=options), **NO_LOOK_BACK, "VIEWKEEPER_CDC_CHUNK_ROWS": "3"}
    daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("INSERT INTO items SELECT i, 'tied', now() FROM generate_series(11, 60) i")
    polled.wait_keys("items", *range(1, 61))
    assert len(polled.topic("items").records) == 60


@pytest.mark.newest_postgres
def test_killed_among_equal_timestamps_it_goes_on_there(polled: PolledSource, daemon: Daemons) -> None:
    settings = {**polled.tables(items=TIMESTAMP), **NO_LOOK_BACK, "VIEWKEEPER_CDC_CHUNK_ROWS": "5"}
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("INSERT INTO items SELECT i, 'tied', now() FROM generate_series(11, 3000) i")
    wait_until(lambda: len(polled.topic("items").records) > 100, what="the first pages")
    capture.kill()
    before = len(polled.topic("items").records)
    assert before < 3000
    daemon("cdc", "run", settings={**settings, "VIEWKEEPER_CDC_CHUNK_ROWS": "1000"})
    polled.wait_keys("items", *range(1, 3001))
    assert len(polled.topic("items").records) == 3000


@pytest.mark.newest_postgres
def test_a_row_without_a_timestamp_is_seen_by_a_snapshot_alone(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("INSERT INTO items VALUES (11, 'null', NULL)")
    daemon("cdc", "run", settings=polled.tables(items=BOTH))
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'unseen' WHERE id = 11", "INSERT INTO items VALUES (12, 'unseen', NULL)")
    polled.run("INSERT INTO items VALUES (13, 'seen', now())")
    polled.wait_text("items", 13, "seen")
    assert polled.rows("items")["11"]["text"] == "null"
    assert "12" not in polled.rows("items")


@pytest.mark.newest_postgres
def test_a_row_from_the_future_hides_none_behind_it(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("INSERT INTO items VALUES (11, 'future', 'infinity'), (12, 'future', now() + interval '1 day')")
    daemon("cdc", "run", settings=polled.tables(items=BOTH))
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("items", 1, "second")


@pytest.mark.newest_postgres
def test_infinity_without_a_zone_is_passed_over_and_hides_none_behind_it(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TABLE stamped (id int PRIMARY KEY, text text, updated_at timestamp)",
        "INSERT INTO stamped VALUES (1, 'first', '2026-01-01'), (2, 'first', 'infinity')",
    )
    daemon("cdc", "run", settings=polled.tables(stamped=TIMESTAMP))
    polled.wait_published("stamped")
    polled.run("INSERT INTO stamped VALUES (3, 'unseen', 'infinity'), (4, 'second', '2026-01-02')")
    polled.wait_keys("stamped", 1, 2, 4)


@pytest.mark.parametrize("zone", ["with", "without"])
def test_no_setting_of_the_server_moves_a_timestamp(polled: PolledSource, daemon: Daemons, zone: str) -> None:
    database = polled.connection.info.dbname
    polled.run(
        f"ALTER DATABASE {database} SET TimeZone = 'America/St_Johns'",
        f"ALTER DATABASE {database} SET DateStyle = 'SQL, DMY'",
        f"ALTER DATABASE {database} SET IntervalStyle = 'sql_standard'",
        f"CREATE TABLE stamped (id int PRIMARY KEY, text text, updated_at timestamp {zone} time zone)",
        "INSERT INTO stamped VALUES (1, 'first', '2026-03-08 02:30:00.000001'), (2, 'first', '2026-03-08 03:30')",
    )
    settings = {**polled.tables(stamped=TIMESTAMP), **NO_LOOK_BACK}
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("stamped")
    # In the hour that there is twice, and the one that there is not.
    polled.run("INSERT INTO stamped VALUES (3, 'second', '2026-03-08 03:30:00.000001')")
    polled.wait_text("stamped", 3, "second")
    assert capture.terminate() == 0
    polled.run("UPDATE stamped SET text = 'third', updated_at = '2026-03-08 03:30:00.000002' WHERE id = 1")
    daemon("cdc", "run", settings=settings)
    polled.wait_text("stamped", 1, "third")
    assert len(polled.topic("stamped").records) == 4


@pytest.mark.newest_postgres
def test_a_view_is_polled_by_the_key_that_it_is_said_to_have(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("CREATE VIEW shown AS SELECT id AS number, upper(text) AS text, updated_at FROM items")
    daemon("cdc", "run", settings=polled.tables(shown=f'{TIMESTAMP}\nkey = ["number"]'))
    polled.wait_published("shown")
    polled.run("UPDATE items SET text = 'second', updated_at = now() WHERE id = 1")
    polled.wait_text("shown", 1, "SECOND")


@pytest.mark.newest_postgres
@pytest.mark.parametrize("is_there_first", [True, False], ids=["at-the-start", "later"])
def test_a_row_of_a_view_whose_key_is_null_stops_the_capture_until_the_view_leaves_it_out(
    polled: PolledSource, daemon: Daemons, *, is_there_first: bool
) -> None:
    polled.run("CREATE VIEW shown AS SELECT nullif(id, 11) AS number, text, updated_at FROM items")
    settings = polled.tables(shown=f'{TIMESTAMP}\nkey = ["number"]')
    nameless = "INSERT INTO items VALUES (11, 'nameless', clock_timestamp())"
    if is_there_first:
        polled.run(nameless)
    capture = daemon("cdc", "run", settings=settings)
    if not is_there_first:
        polled.wait_published("shown")
        polled.run(nameless)
    for stopped in (capture, daemon("cdc", "run", settings=settings)):
        assert stopped.wait(30) == 1
        assert "public.shown: a row's key (number) is NULL" in stopped.log_text()
        assert "Traceback" not in stopped.log_text()
    polled.run(
        "CREATE OR REPLACE VIEW shown AS SELECT nullif(id, 11) AS number, text, updated_at FROM items WHERE id <> 11",
        "INSERT INTO items VALUES (12, 'second', clock_timestamp())",
    )
    daemon("cdc", "run", settings=settings)
    polled.wait_keys("shown", *range(1, 11), 12)


@pytest.mark.newest_postgres
def test_another_mode_reads_the_table_anew(polled: PolledSource, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings=polled.tables(items=INCREMENTING))
    polled.wait_published("items")
    assert capture.terminate() == 0
    polled.run("UPDATE items SET text = 'second' WHERE id = 1", "DELETE FROM items WHERE id = 2")
    capture = daemon("cdc", "run", settings=polled.tables(items=BOTH))
    polled.wait_text("items", 1, "second")
    polled.wait_published("items")
    polled.assert_topic_equals_table("items", "id")
    assert capture.logged("table_changed")


@pytest.mark.newest_postgres
def test_a_column_that_is_not_listed_never_leaves(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("ALTER TABLE items ADD secret text DEFAULT 'hidden'")
    daemon("cdc", "run", settings=polled.tables(items=f'{BOTH}\ncolumns = ["id", "text"]'))
    polled.wait_published("items")
    polled.run(
        "ALTER TABLE items ADD later text DEFAULT 'hidden'",
        "UPDATE items SET text = 'second', updated_at = now() WHERE id = 1",
    )
    polled.wait_text("items", 1, "second")
    polled.wait_published("items")
    assert all(set(row) == {"id", "text"} for row in polled.rows("items").values())
    assert all(b"hidden" not in (record.value() or b"") for record in polled.topic("items").records)
