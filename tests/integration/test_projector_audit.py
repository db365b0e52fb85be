"""The audit: finds what differs, and nothing else (P10)."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from projector.audit import AuditResult, audit_view
from projector.errors import Refused
from projector.reaching import NotReached
from runtime.postgres import describe
from tests.daemons import Daemons
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps
from tests.integration.rebuild_steps import filled, swapped, versions_of
from tests.waiting import wait_until
from tests.worded_view import user_information as worded
from views.user_information import user_information

TABLES = ("users", "tweets", "follows", "likes")
USERS, TWEETS = 40, 400

# User 3 is one of two in turn, each time that somebody looks: before and after are never the same.
RESTLESS_USERS = """
CREATE FUNCTION look() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('test.looks', (coalesce(current_setting('test.looks', true), '0')::integer + 1)::text, false);
    RETURN current_setting('test.looks')::integer;
END $$;
CREATE VIEW users AS
SELECT user_id, CASE user_id WHEN 3 THEN 'look ' || look() % 2 ELSE username END AS username, name, description,
    location, web_page_url, joined_date, profile_image_url, background_image_url
FROM users_at_rest
"""

# The view shows another user 3 each time that somebody looks, as a row does that is written there and back.
RESTLESS_VIEW = """
CREATE VIEW user_information AS
SELECT user_id, CASE user_id WHEN 3 THEN clock_timestamp()::text ELSE username END AS username, name, description,
    location, web_page_url, joined_date, profile_image_url, background_image_url,
    tweet_count, following_count, follower_count, like_count
FROM view_at_rest
"""


@pytest.fixture
def in_step(steps: Steps, changelog: Changelog, source_url: str, view_url: str) -> None:
    """Fill the source, bring the view in step by hand, and let its as-of lie ahead, as if a capture went on."""
    with psycopg.connect(source_url) as source:
        source.execute(
            "INSERT INTO users (user_id, username, joined_date) "
            "SELECT n, 'user ' || n, '2026-01-01'::timestamptz + n * interval '1 second' FROM generate_series(1, %s) n",
            [USERS],
        )
        source.execute(
            "INSERT INTO tweets (tweet_id, user_id) SELECT n, n %% (2 * %s) FROM generate_series(1, %s) n",
            [USERS, TWEETS],
        )
        source.execute(
            "INSERT INTO follows (follow_id, follower_id, followee_id) "
            "SELECT n, n % 7, NULLIF(n % 5, 0) FROM generate_series(1, 50) n"
        )
        with changelog.transaction():
            for table in TABLES:
                for (row,) in source.execute(f"SELECT row_to_json(t)::text FROM {table} AS t".encode()):
                    changelog.put(table, as_on_the_wire(json.loads(row)))
    steps.catch_up()
    with psycopg.connect(view_url) as view:
        view.execute("UPDATE projector.as_of SET as_of = now() + %s", [timedelta(hours=1)])


def as_on_the_wire(row: dict[str, object]) -> dict[str, object]:
    return {
        name: f"{value[:19]}Z" if name == "joined_date" and isinstance(value, str) else value
        for name, value in row.items()
    }


def audit(source_url: str, view_url: str) -> AuditResult:
    return audit_view(user_information, source_url=source_url, view_url=view_url, wait_seconds=20)


def change(url: str, statement: str) -> None:
    with psycopg.connect(url) as session:
        session.execute(statement.encode())


@pytest.mark.usefixtures("in_step")
class TestAuditOfAViewInStep:
    def test_nothing_differs(self, source_url: str, view_url: str) -> None:
        result = audit(source_url, view_url)
        assert result.line() == f"user_information: {USERS} rows compared, 0 differ"
        assert result.examples == []

    def test_wrong_count_is_found(self, source_url: str, view_url: str) -> None:
        change(view_url, "UPDATE projector.user_information_v1 SET tweet_count = tweet_count + 1 WHERE user_id = 3")
        result = audit(source_url, view_url)
        assert (result.compared_rows, result.differing_rows, result.undecided_rows) == (USERS, 1, 0)
        assert result.differing_fields == {"tweet_count": 1}
        assert result.examples[0].key == 3

    def test_wrong_profile_is_found(self, source_url: str, view_url: str) -> None:
        change(view_url, "UPDATE projector.user_information_v1 SET username = NULL WHERE user_id IN (1, 40)")
        assert audit(source_url, view_url).differing_fields == {"username": 2}

    def test_missing_rows_are_found_at_both_ends(self, source_url: str, view_url: str) -> None:
        change(view_url, "DELETE FROM projector.user_information_v1 WHERE user_id IN (1, 20, 40)")
        result = audit(source_url, view_url)
        assert (result.compared_rows, result.differing_rows) == (USERS, 3)
        assert result.differing_fields == {"(missing)": 3}

    def test_ghosts_are_found_at_both_ends(self, source_url: str, view_url: str) -> None:
        change(source_url, "DELETE FROM users WHERE user_id IN (1, 20, 40)")
        result = audit(source_url, view_url)
        assert (result.compared_rows, result.differing_rows) == (USERS, 3)
        assert result.differing_fields == {"(ghost)": 3}

    def test_sample_is_of_both_sides(self, source_url: str, view_url: str) -> None:
        def sampled(count: int) -> AuditResult:
            return audit_view(user_information, source_url=source_url, view_url=view_url, wait_seconds=20, sample=count)

        few = sampled(5)
        assert 5 <= few.compared_rows <= 10
        assert few.differing_rows == 0
        change(source_url, "DELETE FROM users WHERE user_id = 20")
        change(view_url, "DELETE FROM projector.user_information_v1 WHERE user_id = 40")
        change(view_url, "UPDATE projector.user_information_v1 SET like_count = 9 WHERE user_id = 3")
        everything = sampled(USERS)
        assert everything.line() == f"user_information: {USERS} rows compared, 3 differ"
        assert everything.differing_fields == {"(ghost)": 1, "(missing)": 1, "like_count": 1}

    def test_row_that_never_stands_still_is_undecided(self, source_url: str, view_url: str) -> None:
        change(view_url, "UPDATE projector.user_information_v1 SET tweet_count = 1000000 WHERE user_id = 3")
        change(source_url, "ALTER TABLE users RENAME TO users_at_rest")
        change(source_url, RESTLESS_USERS)
        result = audit(source_url, view_url)
        assert (result.differing_rows, result.undecided_rows) == (0, 1)
        assert result.line() == f"user_information: {USERS} rows compared, 0 differ, 1 undecided"

    def test_row_that_differs_otherwise_each_time_is_undecided(self, source_url: str, view_url: str) -> None:
        change(view_url, "ALTER VIEW user_information RENAME TO view_at_rest")
        change(view_url, RESTLESS_VIEW)
        result = audit(source_url, view_url)
        assert (result.differing_rows, result.undecided_rows) == (0, 1)

    def test_uncertain_time_is_not_reached(self, source_url: str, view_url: str) -> None:
        change(view_url, "UPDATE projector.as_of SET flags = '{uncertain}'")
        with pytest.raises(NotReached, match=r"has not reached .* \(uncertain\)"):
            audit_view(user_information, source_url=source_url, view_url=view_url, wait_seconds=0.2)

    def test_hidden_rows_are_an_error_and_not_ghosts(self, source_url: str, view_url: str) -> None:
        change(source_url, "CREATE ROLE auditor LOGIN")
        try:
            change(source_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO auditor")
            change(source_url, "ALTER TABLE users ENABLE ROW LEVEL SECURITY")
            with pytest.raises(Exception, match=rf"^{describe(source_url)}: .* row-level security"):
                audit(source_url.replace("postgres@", "auditor@"), view_url)
        finally:
            change(source_url, "DROP OWNED BY auditor; DROP ROLE auditor")

    def test_command_says_what_differs_and_fails(self, daemon: Daemons, view_url: str) -> None:
        command = daemon("projector", "audit")
        assert command.wait(60) == 0
        assert command.log_text().splitlines()[-1] == f"user_information: {USERS} rows compared, 0 differ"
        change(view_url, "UPDATE projector.user_information_v1 SET like_count = 9 WHERE user_id = 3")
        command = daemon("projector", "audit", "user_information", "--sample", str(USERS))
        assert command.wait(60) == 1
        assert command.log_text().splitlines()[-1] == f"user_information: {USERS} rows compared, 1 differ"
        assert "key 3: source {" in command.log_text()
        command = daemon("projector", "audit", "--json")
        assert command.wait(60) == 1
        result = json.loads(command.log_text())
        assert (result["view"], result["differing_rows"], result["differing_fields"]) == (
            "user_information",
            1,
            {"like_count": 1},
        )


AUDIT_WAITS = """
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'viewkeeper-audit' AND query LIKE '%viewkeeper_as_of%'
"""


@pytest.mark.usefixtures("in_step")
def test_swap_meanwhile_is_said_and_no_row_is_blamed(
    source_url: str, view_url: str, settings_env: dict[str, str]
) -> None:
    change(view_url, "UPDATE projector.as_of SET as_of = NULL")
    with ThreadPoolExecutor(1) as thread, psycopg.connect(view_url, autocommit=True) as session:
        audited = thread.submit(audit, source_url, view_url)
        wait_until(lambda: session.execute(AUDIT_WAITS).fetchone() is not None, what="the audit to wait for the view")
        with versions_of(settings_env) as versions:
            swapped(versions, filled(versions, worded))
        session.execute("UPDATE projector.as_of SET as_of = now() + interval '1 hour'")
        with pytest.raises(Refused, match="was swapped from version 1 to 2 while it was audited"):
            audited.result()


def test_view_that_does_not_reach_the_source_is_an_error(source_url: str, view_url: str) -> None:
    with pytest.raises(NotReached, match=r"has not reached .* its as-of is not known yet: are viewkeeper-cdc"):
        audit_view(user_information, source_url=source_url, view_url=view_url, wait_seconds=0.2)


def test_hot_rows_give_no_false_alarm(daemon: Daemons, source_url: str, view_url: str) -> None:
    """A few rows that change all the time, there and back too, under the whole pipeline."""
    change(source_url, "INSERT INTO users (user_id, username) SELECT n, 'hot' FROM generate_series(1, 5) n")
    attach = daemon("cdc", "attach", *TABLES)
    assert attach.wait(60) == 0, attach.log_text()
    daemon("cdc", "run")
    daemon("projector", "run")

    def first_as_of() -> bool:
        with psycopg.connect(view_url) as session:
            return session.execute("SELECT as_of FROM viewkeeper_as_of").fetchone() != (None,)

    wait_until(first_as_of, timeout_seconds=60, what="the view's first as-of")
    with psycopg.connect(source_url, autocommit=True) as session:

        def heat(number: int) -> None:
            user_id = number % 5 + 1
            session.execute("INSERT INTO tweets (tweet_id, user_id) VALUES (%s, %s)", [number, user_id])
            if number % 2:
                session.execute("DELETE FROM tweets WHERE tweet_id = %s", [number])

        with repeating(heat) as repetitions:
            results = [audit(source_url, view_url) for _ in range(8)]
        assert repetitions[0] > 100, "the rows were hot"
    assert [result.differing_rows for result in results] == [0] * 8
    assert {result.compared_rows for result in results} == {5}


@contextmanager
def repeating(action: Callable[[int], None]) -> Iterator[list[int]]:
    """Repeat an action from a thread, with a running number; yields a list that holds how often it was."""
    stop, repetitions, failures = threading.Event(), [0], list[BaseException]()

    def repeat() -> None:
        try:
            while not stop.is_set():
                repetitions[0] += 1
                action(repetitions[0])
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield repetitions
    finally:
        stop.set()
        thread.join()
    assert failures == []
