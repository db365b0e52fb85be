"""What the timestamp source cannot see, asserted as it is documented, and what finds it all the same."""

import json
from contextlib import closing

import pytest
from confluent_kafka import Producer

from cdc.kafka_requests import RequestTopic
from cdc.wire import TableName
from runtime.kafka import admin
from runtime.settings import CdcSettings
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE
from tests.integration.polled_source import BOTH, INCREMENTING, NO_LOOK_BACK, TIMESTAMP, PolledSource
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

SWEEP_OFTEN = {"VIEWKEEPER_CDC_SWEEP_SECONDS": "1"}


def _commit_late(polled: PolledSource) -> None:
    """Commit an update after a later one has been published."""
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 1")
        polled.run("UPDATE items SET text = 'soon', updated_at = now() WHERE id = 2")
        polled.wait_text("items", 2, "soon")
        late.commit()


def test_a_row_that_is_committed_late_is_found_by_looking_back(polled: PolledSource, daemon: Daemons) -> None:
    settings = {**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_LOOK_BACK_SECONDS": "30"}
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    _commit_late(polled)
    polled.wait_text("items", 1, "late")
    capture.wait_logged("found_late")
    # What is published already is not published once more.
    assert len(polled.topic("items").records) == 10 + 2


def _pass_seconds(polled: PolledSource) -> None:
    """Wait for some cursors, one a second."""
    looked = len(polled.cursors())
    wait_until(lambda: len(polled.cursors()) > looked + 3, what="some seconds to pass")


def test_a_row_that_is_committed_later_than_that_is_lost_until_the_table_is_read_anew(
    polled: PolledSource, daemon: Daemons
) -> None:
    settings = {**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_LOOK_BACK_SECONDS": "1"}
    daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 1")
        polled.run("UPDATE items SET text = 'soon', updated_at = now() + interval '2 seconds' WHERE id = 2")
        polled.wait_text("items", 2, "soon")
        # Not before a look has begun behind that row: the window is counted from the look before.
        _pass_seconds(polled)
        late.commit()
    polled.run("UPDATE items SET text = 'marker', updated_at = now() + interval '2 seconds' WHERE id = 3")
    polled.wait_text("items", 3, "marker")
    _pass_seconds(polled)
    assert polled.rows("items")["1"]["text"] == "first"
    assert daemon("cdc", "snapshot", "items", settings=settings).wait(60) == 0
    polled.wait_text("items", 1, "late")


def test_a_late_row_is_found_by_the_next_session_too(polled: PolledSource, daemon: Daemons) -> None:
    settings = polled.tables(items=BOTH)
    capture = daemon("cdc", "run", settings={**settings, **NO_LOOK_BACK})
    polled.wait_published("items")
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 1")
        polled.run("UPDATE items SET text = 'soon', updated_at = now() WHERE id = 2")
        polled.wait_text("items", 2, "soon")
        assert capture.terminate() == 0
        late.commit()
    daemon("cdc", "run", settings=settings)
    polled.wait_text("items", 1, "late")


def test_a_late_row_is_found_however_long_the_capture_was_down(polled: PolledSource, daemon: Daemons) -> None:
    """What was open when it stopped is looked back for from there, and not from what is the newest by now."""
    settings = {**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_LOOK_BACK_SECONDS": "10"}
    polled.run("UPDATE items SET updated_at = now() - interval '1 hour'")
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() - interval '601 seconds' WHERE id = 1")
        polled.run("UPDATE items SET text = 'soon', updated_at = now() - interval '600 seconds' WHERE id = 2")
        polled.wait_text("items", 2, "soon")
        capture.kill()
        late.commit()
    polled.run("UPDATE items SET text = 'long after', updated_at = now() WHERE id = 3")
    daemon("cdc", "run", settings=settings)
    polled.wait_text("items", 3, "long after")
    polled.wait_text("items", 1, "late")


def test_looking_back_goes_on_over_pages(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings={**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_CHUNK_ROWS": "3"})
    polled.wait_published("items")
    _commit_late(polled)
    polled.wait_text("items", 1, "late")


@pytest.mark.parametrize("options", [TIMESTAMP, INCREMENTING])
def test_a_deleted_row_stays_until_a_sweep(polled: PolledSource, daemon: Daemons, options: str) -> None:
    settings = polled.tables(items=options)
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("DELETE FROM items WHERE id <= 5", "INSERT INTO items VALUES (11, 'marker', now())")
    polled.wait_text("items", 11, "marker")
    assert set(polled.rows("items")) == {str(key) for key in range(1, 12)}
    assert capture.terminate() == 0
    daemon("cdc", "run", settings={**settings, **SWEEP_OFTEN})
    polled.wait_keys("items", 6, 7, 8, 9, 10, 11)


def test_a_capture_that_never_lives_to_its_next_sweep_sweeps_all_the_same(
    polled: PolledSource, daemon: Daemons
) -> None:
    settings = {**polled.tables(items=TIMESTAMP), "VIEWKEEPER_CDC_SWEEP_SECONDS": "8"}

    def keys_after_a_short_life() -> set[str]:
        capture = daemon("cdc", "run", settings=settings)
        polled.wait_published("items")
        assert capture.terminate() == 0
        return set(polled.rows("items"))

    assert "1" in keys_after_a_short_life()
    polled.run("DELETE FROM items WHERE id = 1")
    wait_until(lambda: "1" not in keys_after_a_short_life(), timeout_seconds=60, what="a sweep")


def test_keys_that_were_asked_for_are_read_once(polled: PolledSource, daemon: Daemons, settings: CdcSettings) -> None:
    polling = {**polled.tables(items=TIMESTAMP), **NO_LOOK_BACK}
    capture = daemon("cdc", "run", settings=polling)
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'asked for' WHERE id = 1")
    with closing(RequestTopic(settings, admin(settings, name="test"), CAPTURE)) as requests:
        requests.ask_for_keys(TableName("public", "items"), [["1"]])
    polled.wait_text("items", 1, "asked for")
    assert capture.terminate() == 0
    daemon("cdc", "run", settings=polling)
    polled.wait_published("items")
    assert len(polled.topic("items").records) == 10 + 1


def test_a_record_that_is_no_request_is_passed_over(polled: PolledSource, daemon: Daemons) -> None:
    """It stays in the topic for days, and would stop every start."""
    settings = polled.tables(items=TIMESTAMP)
    assert _stopped(polled, daemon, settings)
    topic = f"{polled.prefix}.requests"
    malformed = [b"snapshot items", b'{"table":1}', b'{"table":"\xff"}']
    producer = Producer({"bootstrap.servers": polled.bootstrap_servers})
    for value in malformed:
        producer.produce(topic, value, CAPTURE)
    assert producer.flush(30) == 0
    capture = daemon("cdc", "run", settings=settings)
    asked = daemon("cdc", "snapshot", "items", "--wait", settings=settings)
    assert asked.wait(30) == 0, asked.log_text()
    told = [(line["topic"], line["partition"], line["offset"]) for line in capture.logged("no_request")]
    assert told == [(topic, 0, offset) for offset in range(len(malformed))]
    assert {line["level"] for line in capture.logged("no_request")} == {"warning"}
    assert capture.terminate() == 0


def _stopped(polled: PolledSource, daemon: Daemons, settings: dict[str, str]) -> bool:
    """Have a capture make its topics and read its tables."""
    capture = daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    return capture.terminate() == 0


def test_a_truncated_table_is_read_anew(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    polled.run("TRUNCATE items")
    polled.wait_keys("items")


def test_numbers_that_begin_again_with_a_truncate_are_followed(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text)",
        "INSERT INTO numbered (text) SELECT 'before' FROM generate_series(1, 10)",
    )
    daemon("cdc", "run", settings=polled.tables(numbered=INCREMENTING))
    polled.wait_published("numbered")
    polled.run("TRUNCATE numbered RESTART IDENTITY", "INSERT INTO numbered (text) VALUES ('after')")
    polled.wait_keys("numbered", 1)
    polled.run("INSERT INTO numbered (text) VALUES ('and'), ('after')")
    polled.wait_keys("numbered", 1, 2, 3)


def test_a_time_to_come_is_no_place_any_more_after_a_truncate(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TABLE zoneless (id bigint PRIMARY KEY, updated_at timestamp)",
        "INSERT INTO zoneless VALUES (1, '9999-12-31')",
    )
    daemon("cdc", "run", settings=polled.tables(zoneless=TIMESTAMP))
    polled.wait_published("zoneless")
    polled.run("TRUNCATE zoneless", "INSERT INTO zoneless VALUES (2, now())")
    polled.wait_keys("zoneless", 2)
    polled.run("INSERT INTO zoneless VALUES (3, now())")
    polled.wait_keys("zoneless", 2, 3)


def test_a_timestamp_that_gets_a_zone_is_followed(polled: PolledSource, daemon: Daemons) -> None:
    polled.run(
        "CREATE TABLE zoned (id bigint PRIMARY KEY, updated_at timestamp)",
        "INSERT INTO zoned VALUES (1, now() AT TIME ZONE 'Europe/Berlin')",
    )
    daemon("cdc", "run", settings={**polled.tables(zoned=TIMESTAMP), **NO_LOOK_BACK})
    polled.wait_published("zoned")
    polled.run(
        "ALTER TABLE zoned ALTER updated_at TYPE timestamptz USING updated_at AT TIME ZONE 'Europe/Berlin'",
        "INSERT INTO zoned VALUES (2, now())",
    )
    polled.wait_keys("zoned", 1, 2)
    # An hour ahead of what came by the old type.
    polled.run("INSERT INTO zoned VALUES (3, now())")
    polled.wait_keys("zoned", 1, 2, 3)


def test_a_column_that_orders_rows_and_is_listed_instead_has_all_rows_read_again(
    polled: PolledSource, daemon: Daemons
) -> None:
    polled.run(
        "CREATE TABLE dated (id bigint PRIMARY KEY, created_at timestamptz, updated_at timestamptz)",
        "INSERT INTO dated VALUES (1, now(), now())",
    )
    options = 'mode = "timestamp"\ncolumns = {}\ntimestamp = {}'
    before = options.format('["id"]', '["created_at", "updated_at"]')
    capture = daemon("cdc", "run", settings=polled.tables(dated=before))
    polled.wait_published("dated")
    capture.terminate()
    polled.run("INSERT INTO dated VALUES (2, now(), now())")
    after = options.format('["id", "created_at"]', '["updated_at"]')
    daemon("cdc", "run", settings=polled.tables(dated=after))
    wait_until(lambda: all("created_at" in row for row in polled.rows("dated").values()), what="the listed column")
    polled.wait_keys("dated", 1, 2)


def test_what_is_lost_is_what_is_said_and_reconcile_mends_it(polled: PolledSource, daemon: Daemons) -> None:
    settings = {**polled.tables(items=TIMESTAMP), **NO_LOOK_BACK}
    daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    polled.run("UPDATE items SET text = 'untouched' WHERE id = 1", "DELETE FROM items WHERE id = 2")
    polled.run("INSERT INTO items VALUES (11, 'null', NULL)")
    with polled.session() as late:
        late.execute("UPDATE items SET text = 'late', updated_at = now() WHERE id = 3")
        polled.run("UPDATE items SET text = 'marker', updated_at = now() WHERE id = 10")
        polled.wait_text("items", 10, "marker")
        late.commit()
    report = daemon("cdc", "reconcile", "--dry-run", "--json", settings=settings)
    assert report.wait(60) == 1
    found = json.loads(report.log_text().splitlines()[-1])
    assert (found["missing"], found["stale"], found["ghosts"]) == (1, 2, 1)
    repaired = daemon("cdc", "reconcile", settings=settings)
    assert repaired.wait(60) == 0, repaired.log_text()
    polled.assert_topic_equals_table("items", "id")


def test_reconcile_mends_rows_with_long_keys(polled: PolledSource, daemon: Daemons) -> None:
    """A thousand of them come to more than a record has room for."""
    polled.run(
        "CREATE TABLE long (id text PRIMARY KEY, text text, updated_at timestamptz)",
        "INSERT INTO long SELECT repeat(md5(i::text), 40) || i, 'first', NULL FROM generate_series(1, 1100) i",
    )
    settings = {**polled.tables(long=TIMESTAMP), **NO_LOOK_BACK}
    daemon("cdc", "run", settings=settings)
    polled.wait_published("long")
    polled.run("UPDATE long SET text = 'untouched'")
    command = daemon("cdc", "reconcile", "--json", settings=settings)
    assert command.wait(60) == 0, command.log_text()
    found = json.loads(command.log_text().splitlines()[-1])
    assert (found["stale"], found["repaired"]) == (1100, 1100)
    assert {row["text"] for row in polled.rows("long").values()} == {"untouched"}


def test_reconcile_says_what_to_do_about_the_tables_that_are_named(polled: PolledSource, daemon: Daemons) -> None:
    polled.run("CREATE TABLE extra (id bigint PRIMARY KEY, updated_at timestamptz)")
    settings = polled.tables(items=BOTH)
    daemon("cdc", "run", settings=settings)
    polled.wait_published("items")
    unnamed = daemon("cdc", "reconcile", "extra", settings=settings)
    assert unnamed.wait(60) == 2
    assert "VIEWKEEPER_CDC_TABLES does not name public.extra: add it, with its mode" in unnamed.log_text()
    otherwise = daemon("cdc", "reconcile", settings=polled.tables(items=f'{BOTH}\ncolumns = ["id", "text"]'))
    assert otherwise.wait(60) == 1
    assert "VIEWKEEPER_CDC_TABLES says otherwise of it than for viewkeeper-cdc run" in otherwise.log_text()


def test_a_watermark_is_an_estimate_but_at_the_end_of_a_pass(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    marks = [entry.watermark for cursor in polled.cursors() if (entry := cursor.tables.get("public.items"))]
    known = [mark for mark in marks if mark]
    assert not known[0].uncertain
    assert known[-1].uncertain
    assert known[-1].time > known[0].time
