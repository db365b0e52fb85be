"""What the timestamp source cannot see, asserted as it is documented, and what finds it all the same."""

import json

import pytest

from tests.daemons import Daemons
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
    # What was seen already is not published once more, but for the first look of the session.
    assert len(polled.topic("items").records) <= 2 * 10 + 2


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
        late.commit()
    polled.run("UPDATE items SET text = 'marker', updated_at = now() + interval '2 seconds' WHERE id = 3")
    polled.wait_text("items", 3, "marker")
    looked = len(polled.cursors())
    wait_until(lambda: len(polled.cursors()) > looked + 3, what="some seconds to pass")
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


def test_a_truncated_table_is_read_anew(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    polled.run("TRUNCATE items")
    polled.wait_keys("items")


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


def test_a_watermark_is_an_estimate_but_at_the_end_of_a_pass(polled: PolledSource, daemon: Daemons) -> None:
    daemon("cdc", "run", settings=polled.tables(items=TIMESTAMP))
    polled.wait_published("items")
    marks = [entry.watermark for cursor in polled.cursors() if (entry := cursor.tables.get("public.items"))]
    known = [mark for mark in marks if mark]
    assert not known[0].uncertain
    assert known[-1].uncertain
    assert known[-1].time > known[0].time
