"""The swap and who is in its way: grants, dependents, long queries, readers through the whole of it (P5)."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from projector.errors import Refused
from projector.locks import LOCK_SECONDS
from projector.registry import State
from tests.daemons import ROOT, Daemon, Daemons, standard_output
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, as_of, counts, shown
from tests.integration.rebuild_steps import (
    VIEW,
    added,
    analyst,
    changed,
    execute,
    filled,
    met,
    rows,
    states,
    swapped,
    unliked,
    versions_of,
)
from tests.waiting import wait_until
from views.user_information import user_information

pytestmark = pytest.mark.newest_postgres

GRANTS = """
SELECT privilege_type, is_grantable FROM information_schema.table_privileges
WHERE table_name = %s AND grantee = %s ORDER BY 1
"""
COLUMN_GRANTS = """
SELECT column_name FROM information_schema.column_privileges
WHERE table_name = 'user_information' AND grantee = %s AND privilege_type = 'UPDATE'
"""
FILLED = """
SELECT sum(next_offset) FROM projector.partition_offset WHERE version = 2
"""
# Between two tries it pauses.
TRIES = """
SELECT FROM pg_stat_activity
WHERE application_name = 'viewkeeper-rebuild' AND datname = current_database()
AND (wait_event_type = 'Lock' OR query = 'ROLLBACK')
"""
ABOUT = """
SELECT obj_description(oid), col_description(oid, 2), relowner::regrole::text, reloptions
FROM pg_class WHERE relname = 'user_information'
"""


@pytest.fixture
def some(steps: Steps, changelog: Changelog) -> Steps:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.tweet(1, 1)
        changelog.like(1, 1)
        changelog.watermark()
    steps.catch_up()
    return steps


@pytest.mark.usefixtures("some")
def test_what_others_attached_survives(view_url: str, settings_env: dict[str, str]) -> None:
    with analyst(view_url) as reader, analyst(view_url) as owner:
        execute(
            view_url,
            "ALTER VIEW user_information SET (security_barrier = true)",
            f"GRANT SELECT ON projector.user_information_v1 TO {owner}",
            f"GRANT SELECT ON user_information TO {reader} WITH GRANT OPTION",
            f"GRANT UPDATE (username, location) ON user_information TO {reader}",
            f"ALTER VIEW user_information OWNER TO {owner}",
            "COMMENT ON VIEW user_information IS 'of Ann''s'",
            "COMMENT ON COLUMN user_information.username IS 'a name'",
            # What is made from now on is not to get more than the old one had.
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT DELETE ON TABLES TO {reader}",
        )
        before = rows(view_url, ABOUT)
        for definition in (added, changed):
            with versions_of(settings_env) as versions:
                swapped(versions, filled(versions, definition))
            assert rows(view_url, ABOUT) == before
            assert rows(view_url, GRANTS, "user_information", reader) == [("SELECT", "YES")]
            assert len(shown(view_url)) == 1, "its owner may read the new table"
            if definition is added:
                assert len(rows(view_url, COLUMN_GRANTS, reader)) == 2
                with versions_of(settings_env) as versions:
                    versions.drop(versions.unseen(None))
        assert rows(view_url, COLUMN_GRANTS, reader) == [("username",)]
        assert before[0][2] == owner
        execute(view_url, f"ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE DELETE ON TABLES FROM {reader}")
        execute(view_url, "ALTER VIEW user_information OWNER TO CURRENT_USER")


@pytest.mark.usefixtures("some")
def test_dependents_are_named_before_anything_changes(view_url: str, settings_env: dict[str, str]) -> None:
    execute(
        view_url,
        "CREATE VIEW places AS SELECT user_id, location FROM user_information",
        "CREATE MATERIALIZED VIEW many AS SELECT count(*) FROM user_information",
        "CREATE FUNCTION everybody() RETURNS user_information LANGUAGE sql RETURN NULL::user_information",
    )
    with versions_of(settings_env) as versions:
        with pytest.raises(Refused) as refused:
            versions.begin(changed)
        for name in ("view places", "materialized view many", "function everybody()"):
            assert name in str(refused.value)
        assert states(view_url) == {1: "active"}
        assert rows(view_url, "SELECT to_regclass('projector.user_information_v2')::text") == [(None,)]
        # A column at the end is in nobody's way, and whoever depends on the name follows it.
        swapped(versions, filled(versions, added))
        execute(view_url, "UPDATE projector.user_information_v2 SET location = 'there'")
        assert rows(view_url, "SELECT location FROM places") == [("there",)]
        # On the way back it goes.
        previous = versions.find(State.PREVIOUS)
        assert previous is not None
        with pytest.raises(Refused, match="view places"):
            versions.swap(met(versions, previous))
        assert states(view_url) == {1: "previous", 2: "active"}


@pytest.mark.usefixtures("some")
def test_a_long_query_is_waited_for_and_nobody_behind_us(view_url: str, settings_env: dict[str, str]) -> None:
    with versions_of(settings_env, wait_seconds=0.5) as versions:
        pair = met(versions, filled(versions, changed))
        with psycopg.connect(view_url) as query, readers(view_url) as seen:
            query.execute("SELECT FROM user_information")
            with pytest.raises(Refused, match="is in use by queries that did not end"):
                versions.swap(pair)
            assert states(view_url) == {1: "active", 2: "ready"}
            longest = max(seconds for seconds, _ in seen)
            query.rollback()
            assert LOCK_SECONDS / 2 < longest < LOCK_SECONDS + 0.25, "readers wait behind us, and not for long"
            assert versions.swap(pair) is not None


@pytest.mark.usefixtures("some")
def test_a_batch_that_is_being_applied_is_waited_for(view_url: str, settings_env: dict[str, str]) -> None:
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with versions_of(settings_env) as versions:
        pair = met(versions, filled(versions, added))
        with psycopg.connect(view_url) as batch, ThreadPoolExecutor() as pool:
            batch.execute("UPDATE projector.partition_offset SET next_offset = next_offset + 1 WHERE version = 1")
            swap = pool.submit(versions.swap, pair)
            wait_until(lambda: swap.done() or rows(view_url, waits), what="the swap to wait")
            batch.commit()
            assert swap.result() is None, "what the batch showed would be gone"
        assert states(view_url) == {1: "active", 2: "ready"}


@contextmanager
def readers(view_url: str) -> Iterator[list[tuple[float, Any]]]:
    """Read without an end, in a thread: how long each took, and what it saw (as-of, tweets, likes)."""
    seen: list[tuple[float, Any]] = []
    failures: list[Exception] = []
    stop = threading.Event()
    query = b"""
    SELECT a.as_of, v.tweet_count, v.like_count::bigint
    FROM viewkeeper_as_of a LEFT JOIN user_information v ON v.user_id = 1 WHERE a.view = 'user_information'
    """

    def read() -> None:
        try:
            with psycopg.connect(view_url, autocommit=True) as session:
                while not stop.is_set():
                    began = time.monotonic()
                    row = session.execute(query, prepare=True).fetchone()
                    seen.append((time.monotonic() - began, row))
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: len(seen) > 3 or failures, what="the first reads")
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_readers_see_no_error_and_no_older_row_while_run_keeps_both(
    daemon: Daemons, changelog: Changelog, view_url: str, settings_env: dict[str, str], tmp_path: Path
) -> None:
    def declared(name: str) -> dict[str, str]:
        views = tmp_path / f"{name}.py"
        views.write_text(f"from tests.integration.rebuild_steps import {name}\n")
        return {"VIEWKEEPER_VIEWS": str(views), "PYTHONPATH": str(ROOT)}

    new = {**settings_env, **declared("changed")}
    with changelog.transaction():
        changelog.put("users", user(1))
        for number in range(3_000):
            changelog.tweet(number, 1)
            changelog.like(number, 1)
        changelog.watermark()
    run, api = daemon("projector", "run"), daemon("api", "run", settings=declared("unplaced"))
    wait_until(lambda: 1 in shown(view_url) and as_of(view_url)[0], what="the first row and a first as-of")
    with changing(changelog), readers(view_url) as seen, asking(api) as replies:
        done = json.loads(standard_output(new, "projector", "rebuild", "user_information", "--when", "ready", "--json"))
        assert (done["state"], done["comparison"]["differing_rows"]) == ("active", 0)
        assert done["lock_seconds"] < 0.5
        back = json.loads(standard_output(new, "projector", "rollback", "user_information", "--json"))
        forth = json.loads(standard_output(new, "projector", "rollback", "user_information", "--json"))
        assert (back["version"], forth["version"]) == (1, 2)
        assert standard_output(new, "projector", "drop", "user_information") != ""
        assert states(view_url) == {2: "active"}
        last = shown(view_url)[1]["tweet_count"]
        wait_until(lambda: shown(view_url)[1]["tweet_count"] > last, what="run to go on without the old version")
    watermarks, tweets, likes = zip(*(row for _, row in seen), strict=True)
    for values in (watermarks, tweets, likes, replies):
        assert list(values) == sorted(values), "it went back"
    assert run.is_running()
    assert run.logged("retrying") == []
    # Its look-ups are prepared once more, on the connection that they have.
    assert api.logged("store_connection_lost") == []
    kept = [line["versions"] for line in run.logged("keeping")]
    assert ["user_information 1 previous", "user_information 2 active"] in kept
    assert kept[-1] == ["user_information 2 active"]


def test_killed_at_each_step_under_load_it_goes_on_and_readers_see_nothing_of_it(
    daemon: Daemons, changelog: Changelog, view_url: str, tmp_path: Path
) -> None:
    (tmp_path / "changed.py").write_text("from tests.integration.rebuild_steps import changed\n")
    settings = {"VIEWKEEPER_VIEWS": str(tmp_path / "changed.py"), "VIEWKEEPER_PROJECTOR_BATCH_RECORDS": "100"}
    rebuild = ("rebuild", "--when", "ready")

    def start(*command: str) -> Daemon:
        return daemon("projector", *command, VIEW, settings=settings)

    def kill(moment: Callable[[], object], *command: str) -> None:
        running = start(*command)
        wait_until(lambda: moment() or not running.is_running(), what=f"the moment to kill {command}")
        assert running.is_running(), running.log_text()
        running.kill()

    @contextmanager
    def in_use(relation: str) -> Iterator[Callable[[], object]]:
        """Keep a relation locked as a long query does; give whether a command tries to get past it."""
        with psycopg.connect(view_url) as query:
            query.execute(f"SELECT FROM {relation}".encode())
            yield lambda: rows(view_url, TRIES)

    with changelog.transaction():
        changelog.put("users", user(1))
        for number in range(3_000):
            changelog.tweet(number, 1)
            changelog.like(number, 1)
        changelog.watermark()
    run = daemon("projector", "run")
    wait_until(lambda: 1 in shown(view_url) and as_of(view_url)[0], what="the first row and a first as-of")
    with changing(changelog) as numbers, readers(view_url) as seen:
        kill(lambda: states(view_url) == {1: "active", 2: "building"}, *rebuild)
        before = rows(view_url, FILLED)
        kill(lambda: rows(view_url, FILLED) != before, *rebuild)
        with in_use(VIEW) as tries:
            kill(lambda: states(view_url) == {1: "active", 2: "ready"}, *rebuild)
            kill(tries, *rebuild)
        assert states(view_url) == {1: "active", 2: "ready"}
        assert start(*rebuild).wait(30) == 0
        with in_use(VIEW) as tries:
            kill(tries, "rollback")
        assert states(view_url) == {1: "previous", 2: "active"}
        assert start("rollback").wait(30) == 0
        with in_use("projector.user_information_v2") as tries:
            kill(tries, "drop")
        assert states(view_url) == {1: "active", 2: "previous"}
        assert start("drop").wait(30) == 0
    assert states(view_url) == {1: "active"}
    there = 3_000 + len(numbers)
    wait_until(lambda: counts(shown(view_url)[1]) == (there, 0, 0, there), what=f"{there} tweets and likes")
    for values in zip(*(row for _, row in seen), strict=True):
        assert list(values) == sorted(values), "it went back"
    assert run.is_running()
    assert run.logged("retrying") == []


def test_topics_go_and_come_with_versions_while_run_keeps_on(
    daemon: Daemons, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.like(1, 1)
        changelog.watermark()
    run = daemon("projector", "run")
    wait_until(lambda: 1 in shown(view_url) and as_of(view_url)[0], what="the first row and a first as-of")
    for definition, former in ((unliked, 1), (user_information, 2)):
        with versions_of(settings_env) as versions:
            new = filled(versions, definition)
            with changelog.transaction():
                changelog.tweet(former, 1)
                changelog.like(1 + former, 1)
                changelog.watermark()
            swapped(versions, new)
            versions.drop(versions.unseen(former))
        wait_until(lambda at=former: shown(view_url)[1]["tweet_count"] == at, what="the tweet")  # type: ignore[misc]
    wait_until(lambda: counts(shown(view_url)[1]) == (2, 0, 0, 3), what="the likes, counted again")
    assert states(view_url) == {3: "active"}
    assert run.is_running()
    assert run.logged("retrying") == []


@contextmanager
def changing(changelog: Changelog) -> Iterator[list[int]]:
    """Have a tweet, a like and a watermark arrive all the time, from a thread; give the numbers of the tweets."""
    numbers: list[int] = []
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.02):
            number = 10_000 + len(numbers)
            with changelog.transaction():
                changelog.tweet(number, 1)
                changelog.like(number, 1)
                changelog.watermark()
            numbers.append(number)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield numbers
    finally:
        stop.set()
        thread.join()


@contextmanager
def asking(api: Daemon) -> Iterator[list[int]]:
    """Ask the API for user 1 without an end, in a thread, and collect the counts of likes; each reply must be one."""
    counted: list[int] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{api.health_port}", timeout=10) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200, what="the API to be ready")
            while not stop.wait(0.002):
                reply = client.get("/users/1")
                if reply.status_code != 200:
                    failures.append(f"{reply.status_code} {reply.text}")
                    continue
                counted.append(int(reply.json()["likeCount"]))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(counted) > 3 or failures, what="the first replies")
    try:
        yield counted
    finally:
        stop.set()
        thread.join()
    assert failures == []
