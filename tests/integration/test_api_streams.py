"""Streams of rows, changed in a real view database and captured by a real capture."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise

import psycopg
import pytest

from tests.event_stream import ACCEPT, EventStream, event_stream
from tests.integration.streamed_view import (
    AS_OF,
    NAME,
    RARELY,
    TABLE,
    Api,
    StreamedView,
    log_users,
    set_count,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def api(view: StreamedView) -> Iterator[Api]:
    with view.api({**RARELY, "VIEWKEEPER_API_MIN_AS_OF_SECONDS": "0.5"}) as api:
        yield api


def counts(stream: EventStream, last: int) -> list[int]:
    """Return the counts of a stream's rows until one of them is `last`."""
    found: list[int] = []
    while last not in found:
        found.append(stream.next_of("row").json["likeCount"])
    return found


def test_a_stream_begins_with_the_row_of_now_as_get_has_it(view: StreamedView, api: Api) -> None:
    view.insert(100, name="Zoë\n", like_count=7)
    got = api.client.get("/users/100")
    with event_stream(api.port, "/users/100") as stream:
        row, as_of = stream.next(), stream.next()
    assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream")
    assert stream.headers["X-Accel-Buffering"] == "no"
    for name in ("Cache-Control", "Vary", "Viewkeeper-As-Of"):
        assert stream.headers[name] == got.headers[name]
    assert row is not None
    assert as_of is not None
    assert (row.name, row.id, row.data) == ("row", got.headers["etag"].strip('"'), got.content)
    assert (as_of.name, as_of.id, as_of.json) == ("as-of", "", AS_OF)


def test_each_change_arrives_and_the_as_of_with_it(view: StreamedView, api: Api) -> None:
    view.insert(101)
    with event_stream(api.port, "/users/101") as stream:
        assert counts(stream, 0) == [0]
        assert stream.next_of("as-of", "row").name == "as-of"
        for count in range(1, 6):
            view.change(set_count(101, count), 101)
            assert counts(stream, count) == [count]
            assert stream.next_of("as-of", "row").name == "as-of"


def test_many_changes_are_left_out_but_none_is_taken_back(view: StreamedView, api: Api) -> None:
    view.insert(102)
    with event_stream(api.port, "/users/102") as stream:
        with psycopg.connect(view.url, autocommit=True) as session:
            for count in range(1, 301):
                with session.transaction():
                    session.execute(set_count(102, count).encode())
                    session.execute(log_users(102).encode())
        found = counts(stream, 300)
    assert all(one < other for one, other in pairwise(found))


def test_a_row_that_goes_is_gone_and_comes_back(view: StreamedView, api: Api) -> None:
    with event_stream(api.port, "/users/103") as stream:
        gone = stream.next()
        assert gone is not None
        assert (gone.name, gone.id, gone.data) == ("gone", "gone", b"{}")
        view.change(f"INSERT INTO {TABLE} (user_id, viewkeeper_present) VALUES (103, true)", 103)
        born = stream.next_of("row", "gone")
        assert (born.name, born.json["userId"]) == ("row", "103")
        view.change(f"DELETE FROM {TABLE} WHERE user_id = 103", 103)
        assert stream.next_of("row", "gone").name == "gone"
        view.change(f"INSERT INTO {TABLE} (user_id, viewkeeper_present) VALUES (103, true)", 103)
        again = stream.next_of("row", "gone")
        assert (again.name, again.id) == ("row", born.id)


@pytest.mark.parametrize(("user_id", "exists"), [(104, True), (105, False)])
def test_who_comes_back_is_sent_the_row_only_if_it_is_another_one(
    view: StreamedView, api: Api, user_id: int, exists: bool
) -> None:
    if exists:
        view.insert(user_id)
    with event_stream(api.port, f"/users/{user_id}") as stream:
        seen = stream.next_of("row", "gone").id
    with event_stream(api.port, f"/users/{user_id}", {"Last-Event-ID": seen}) as stream:
        assert stream.next_of("as-of", "row", "gone").name == "as-of"
        view.change(f"INSERT INTO {TABLE} (user_id, viewkeeper_present, like_count) VALUES ({user_id}, true, 9) "
                    "ON CONFLICT (user_id) DO UPDATE SET like_count = 9", user_id)  # fmt: skip
        assert counts(stream, 9) == [9]
    with event_stream(api.port, f"/users/{user_id}", {"Last-Event-ID": seen}) as stream:
        assert stream.next_of("as-of", "row").json["likeCount"] == 9


def test_streams_of_one_key_hear_the_same_and_those_of_another_do_not(view: StreamedView, api: Api) -> None:
    view.insert(106)
    view.insert(107)
    with (
        event_stream(api.port, "/users/106") as one,
        event_stream(api.port, "/users/106") as two,
        event_stream(api.port, "/users/107") as other,
    ):
        for stream in (one, two, other):
            assert counts(stream, 0) == [0]
        view.change(set_count(106, 1), 106)
        assert (counts(one, 1), counts(two, 1)) == ([1], [1])
        two.close()
        view.change(set_count(106, 2), 106)
        assert counts(one, 2) == [2]
        view.change(set_count(107, 3), 107)
        assert counts(other, 3) == [3]


# Holds back what the API reads of user 108, its snapshot taken, while somebody has the lock.
HOLD = """
CREATE FUNCTION held(user_id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF user_id = 108 AND current_setting('application_name') = 'viewkeeper-api' THEN
        PERFORM pg_advisory_xact_lock_shared(108);
    END IF;
    RETURN true;
END $$
"""
WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def test_a_change_between_subscribing_and_reading_is_not_missed(view: StreamedView, api: Api) -> None:
    """The row's first reading is held back until the API has heard of the change that it does not show."""
    view.insert(108)
    view.insert(109)
    definition = view.value(f"SELECT pg_get_viewdef('{NAME}'::regclass)").rstrip(";")
    view.run(HOLD, f"CREATE OR REPLACE VIEW {NAME} AS SELECT * FROM ({definition}) v WHERE held(user_id)")
    with (
        event_stream(api.port, "/users/109") as following,
        psycopg.connect(view.url, autocommit=True) as session,
        ThreadPoolExecutor() as asking,
        ExitStack() as streams,
    ):
        assert counts(following, 0) == [0]
        # It is held back for a second at most, since then the look-up's time is over: more than it takes, as a rule.
        for count in range(1, 10):
            session.execute("SELECT pg_advisory_lock(108)")
            asked = asking.submit(streams.enter_context, event_stream(api.port, "/users/108"))
            wait_until(lambda: session.execute(WAITS).fetchone() == (1,), what="the reading to be held back")
            heard = api.metric("viewkeeper_api_stream_changes_total")
            view.change(set_count(108, count), 108)
            wait_until(
                lambda heard=heard: api.metric("viewkeeper_api_stream_changes_total") > heard,  # type: ignore[misc]
                what="the change to be heard of",
            )
            session.execute("SELECT pg_advisory_unlock(108)")
            stream = asked.result()
            if stream.status == 200:
                assert counts(stream, count) == [count - 1, count]
                return
    pytest.fail("no reading could be held back for as long as it takes to hear of a change")


def test_a_swap_of_the_stable_name_is_a_change_as_any_other(view: StreamedView, api: Api) -> None:
    view.insert(113)
    definition = view.value(f"SELECT pg_get_viewdef('{NAME}'::regclass)")
    with event_stream(api.port, "/users/113") as stream:
        assert counts(stream, 0) == [0]
        view.run(
            f"CREATE TABLE version_2 AS TABLE {NAME}",
            "UPDATE version_2 SET like_count = 5000 WHERE user_id = 113",
            f"CREATE OR REPLACE VIEW {NAME} AS TABLE version_2",
            log_users(113),
        )
        assert counts(stream, 5000) == [5000]
        view.change(f"CREATE OR REPLACE VIEW {NAME} AS {definition}", 113)
        assert counts(stream, 0) == [0]


def test_another_spelling_of_a_key_is_not_found(api: Api) -> None:
    got, refused = api.client.get("/users/007"), api.client.get("/users/007", headers=ACCEPT)
    assert (refused.status_code, refused.json()) == (404, got.json())
    assert refused.headers["viewkeeper-as-of"] == AS_OF


def test_head_has_the_headers_and_no_stream(view: StreamedView, api: Api) -> None:
    view.insert(110)
    head = api.client.head("/users/110", headers=ACCEPT)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-type"], head.headers["viewkeeper-as-of"]) == ("text/event-stream", AS_OF)
    assert "content-length" not in head.headers
    api.wait_metric("viewkeeper_api_streams", 0)


def test_json_is_what_else_is_asked_for(view: StreamedView, api: Api) -> None:
    view.insert(111)
    for accept in ("*/*", "application/json", "text/event-stream;q=0.5, application/json", "text/html"):
        got = api.client.get("/users/111", headers={"Accept": accept})
        assert got.headers["content-type"] == "application/json"


def test_an_as_of_that_is_asked_for_is_waited_for(view: StreamedView, api: Api) -> None:
    view.insert(112)
    with event_stream(api.port, "/users/112", {"Viewkeeper-Min-As-Of": AS_OF}) as stream:
        assert counts(stream, 0) == [0]
    with event_stream(api.port, "/users/112", {"Viewkeeper-Min-As-Of": "2099-01-01T00:00:00Z"}) as late:
        assert (late.status, late.headers["Viewkeeper-As-Of"]) == (503, AS_OF)
