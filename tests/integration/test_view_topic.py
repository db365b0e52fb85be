"""The view as a topic: a capture of the stable name, told of changes by the projector's transactions (S1)."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from projector.changelog import log_differences
from projector.errors import Refused
from projector.meeting import Pair
from projector.registry import State, ViewVersion
from tests.daemons import ROOT, Daemons
from tests.integration.changelog import KEYS, Changelog, user
from tests.integration.projector_steps import Steps, as_of, projector_settings, projector_steps
from tests.integration.rebuild_steps import analyst, changed, execute, filled, met, rows, swapped, versions_of
from tests.integration.view_topic import NAME, ViewTopic
from tests.waiting import wait_until
from tests.worded_view import user_information
from views.user_information import user_information as shipped

pytestmark = pytest.mark.newest_postgres


@pytest.fixture
def captured(view_topic: ViewTopic, steps: Steps, changelog: Changelog, daemon: Daemons) -> ViewTopic:
    """Give the view captured, with three users, tweets of two of them, one of which has no text."""
    with changelog.transaction():
        for number in (1, 2, 3):
            changelog.put("users", user(number))
        changelog.put("tweets", {"tweet_id": 1, "user_id": 1, "text": "hello"})
        changelog.put("tweets", {"tweet_id": 2, "user_id": 1, "text": ""})
        changelog.put("tweets", {"tweet_id": 3, "user_id": 2, "text": "hello"})
        changelog.watermark()
    steps.catch_up()
    view_topic.attach(daemon)
    view_topic.run(daemon)
    view_topic.wait_exact()
    return view_topic


def test_the_topic_is_the_view_whatever_happens_to_its_rows(
    captured: ViewTopic, steps: Steps, changelog: Changelog
) -> None:
    assert captured.rows()[1]["tweet_count"] == 2
    with changelog.transaction():
        changelog.tweet(4, 2)
        changelog.remove("users", 3)
        # A child before its parent: counted, and not shown.
        changelog.tweet(5, 4)
        # And one that changes its owner.
        changelog.tweet(3, 1)
        changelog.watermark()
    steps.catch_up()
    captured.wait_exact()
    assert sorted(captured.rows()) == [1, 2]
    with changelog.transaction():
        changelog.put("users", user(4, username="born"))
        changelog.put("users", user(3, username="again"))
        changelog.remove("users", 1)
        changelog.watermark()
    steps.catch_up()
    captured.wait_exact()
    assert {number: row["tweet_count"] for number, row in captured.rows().items()} == {2: 1, 3: 0, 4: 1}


def test_its_watermark_is_the_as_of_of_the_view(captured: ViewTopic, steps: Steps, changelog: Changelog) -> None:
    before = as_of(captured.url)[0]
    assert captured.watermark() == before
    with changelog.transaction():
        changelog.tweet(4, 2)
    # The row is there, and nobody knows as of when it is.
    steps.catch_up()
    wait_until(lambda: captured.rows()[2]["tweet_count"] == 2, what="the change")
    assert captured.watermark() == before
    with changelog.transaction():
        time = datetime.now(UTC)
        tables = [changelog.table_cursor(table, time=time, uncertain=True) for table in KEYS]
        changelog.put_cursor({f"public.{table}": entry for table, entry in zip(KEYS, tables, strict=True)})
    steps.catch_up()
    assert as_of(captured.url)[0] > before
    captured.wait_exact()
    entry = captured.entry()
    assert entry is not None
    assert entry.watermark is not None
    assert entry.watermark.uncertain, "as the view's as-of is"


# Holds back what the capture reads the as-of by, and gives the newest that its transaction may see, while somebody has
# the lock. It asks again and again, since waiting for a lock is cut off.
HOLD = """
CREATE OR REPLACE FUNCTION cdc.projected_as_of() RETURNS TABLE (relation oid, as_of timestamptz, is_uncertain boolean)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN QUERY SELECT v.relation::oid, v.as_of, false FROM projector.stable_view v;
END $$
"""
HELD = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


def test_its_watermark_is_the_as_of_of_the_snapshot_that_its_rows_are_read_in(
    captured: ViewTopic, steps: Steps, changelog: Changelog
) -> None:
    execute(captured.url, HOLD)
    with psycopg.connect(captured.url, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(1)")
        wait_until(lambda: rows(captured.url, HELD), what="a round to be held back that has read its rows")
        with changelog.transaction():
            changelog.tweet(4, 2)
            changelog.watermark()
        steps.catch_up()
    until = as_of(captured.url)[0]
    captured.wait_exact()
    first = next(entry.watermark for entry in captured.entries() if entry.watermark and entry.watermark.time >= until)
    assert captured.rows(before=first.next_offsets)[2]["tweet_count"] == 2


def test_attach_waits_for_a_transaction_that_has_changed_rows_and_told_nobody(
    view_topic: ViewTopic, steps: Steps, changelog: Changelog, daemon: Daemons
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.watermark()
    steps.catch_up()
    with psycopg.connect(view_topic.url) as writing:
        writing.execute("UPDATE projector.user_information_v1 SET tweet_count = 7")
        with ThreadPoolExecutor(1) as executor:
            attaching = executor.submit(view_topic.attach, daemon)
            wait_until(
                lambda: rows(view_topic.url, "SELECT FROM pg_locks WHERE NOT granted") or attaching.done(),
                what="a wait",
            )
            assert not attaching.done()
            assert writing.execute("SELECT projector.is_captured('user_information', 1)").fetchone() == (False,)
            writing.commit()
            attaching.result(timeout=30.0)
    view_topic.run(daemon)
    view_topic.wait_exact()
    assert view_topic.rows()[1]["tweet_count"] == 7


def test_detach_waits_for_a_transaction_that_was_told_to_log(
    captured: ViewTopic, steps: Steps, changelog: Changelog, daemon: Daemons
) -> None:
    with psycopg.connect(captured.url) as writing, ThreadPoolExecutor(1) as executor:
        writing.execute("UPDATE projector.user_information_v1 SET tweet_count = 7")
        assert writing.execute("SELECT projector.is_captured('user_information', 1)").fetchone() == (True,)
        detaching = executor.submit(_detach, captured, daemon)
        _wait_for_a_wait(captured, detaching)
        writing.execute("SELECT projector.log_changes('user_information', '{1,2}')")
        writing.commit()
        detaching.result(timeout=30.0)
    with changelog.transaction():
        changelog.tweet(9, 1)
        changelog.watermark()
    steps.catch_up()


def test_attach_waits_for_a_swap_that_has_found_nobody_to_tell(
    view_topic: ViewTopic, steps: Steps, changelog: Changelog, daemon: Daemons, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.put("tweets", {"tweet_id": 1, "user_id": 1, "text": ""})
        changelog.watermark()
    steps.catch_up()
    with versions_of(settings_env) as versions, psycopg.connect(view_topic.url) as swapping:
        pair = met(versions, filled(versions, user_information))
        assert log_differences(swapping, pair) == 0
        with ThreadPoolExecutor(1) as executor:
            attaching = executor.submit(view_topic.attach, daemon)
            _wait_for_a_wait(view_topic, attaching)
            swapping.rollback()
            attaching.result(timeout=30.0)
        assert log_differences(swapping, pair) == 1
        unmeasured = [field for field in shipped.resource.fields if not field.name.endswith("Count")]
        resource = replace(shipped.resource, path="/users/{username}", fields=tuple(unmeasured))
        other_key = replace(shipped, key="username", measures=(), resource=resource)
        with pytest.raises(Refused, match=r"by its key \(user_id\), and would have the key \(username\): detach it"):
            log_differences(swapping, Pair(pair.old, ViewVersion(other_key, 2)))


def test_where_the_projector_may_not_log_the_right_is_given_again_and_the_view_read_anew(captured: ViewTopic) -> None:
    with analyst(captured.url) as owner:
        execute(
            captured.url,
            f"ALTER FUNCTION projector.is_captured OWNER TO {owner}",
            # Nobody is asked: it is as if the projector had found nobody who captures.
            "UPDATE projector.user_information_v1 SET tweet_count = 70",
        )
        wait_until(lambda: captured.rows() == captured.expected(), what="the rows that nobody logged")
        assert rows(captured.url, "SELECT cdc.is_projecting_granted()") == [(True,)], "the capture gave the right"
        execute(captured.url, "ALTER FUNCTION projector.is_captured OWNER TO CURRENT_USER")


def test_while_the_projectors_migration_is_taken_back_the_capture_stops_and_reads_the_view_anew_after(
    captured: ViewTopic, daemon: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL", captured.url)
    config = Config(ROOT / "alembic.ini", ini_section="view")
    command.downgrade(config, "0002")
    execute(captured.url, "UPDATE projector.user_information_v1 SET tweet_count = 70")
    stopped = captured.run(daemon)
    assert stopped.wait(40.0) == 1
    assert "its migration was taken back (alembic -n view upgrade head)" in stopped.log_text()
    command.upgrade(config, "head")
    captured.run(daemon)
    wait_until(lambda: captured.rows() == captured.expected(), what="the rows that nobody logged")


def test_a_swap_and_a_rollback_log_the_rows_that_differ_and_no_others(
    captured: ViewTopic, settings_env: dict[str, str]
) -> None:
    before = {number: captured.records(number) for number in (1, 2, 3)}
    with versions_of(settings_env) as versions:
        new = filled(versions, user_information)
        # A row that is there in one version alone.
        execute(captured.url, f"DELETE FROM projector.user_information_v{new.version} WHERE user_id = 3")
        swapped(versions, new)
    wait_until(lambda: captured.rows() == captured.expected(), what="the new version's rows")
    assert captured.rows()[1]["tweet_count"] == 1
    assert 3 not in captured.rows()
    with versions_of(settings_env) as versions:
        previous = versions.find(State.PREVIOUS)
        assert previous is not None
        swapped(versions, previous)
    wait_until(lambda: captured.rows() == captured.expected(), what="the former version's rows")
    assert captured.rows()[1]["tweet_count"] == 2
    after = {number: captured.records(number) for number in (1, 2, 3)}
    assert after == {1: before[1] + 2, 2: before[2], 3: before[3] + 2}


def test_a_swap_to_other_columns_has_the_view_read_anew(
    captured: ViewTopic, changelog: Changelog, settings_env: dict[str, str]
) -> None:
    was = rows(captured.url, "SELECT to_regclass(%s)::oid", NAME)
    with versions_of(settings_env) as versions:
        swapped(versions, filled(versions, changed))
    assert rows(captured.url, "SELECT to_regclass(%s)::oid", NAME) != was, "it was dropped and made again"
    wait_until(lambda: captured.rows() == captured.expected(), what="the new version's rows")
    assert "location" not in captured.rows()[1]
    captured.wait_exact()
    with changelog.transaction():
        changelog.tweet(6, 1)
        changelog.watermark()
    with projector_steps(projector_settings(settings_env), views=(changed,)) as steps:
        steps.catch_up()
    captured.wait_exact()
    assert captured.rows()[1]["tweet_count"] == 3, "it is told of what changes from then on"


def test_the_role_that_projects_needs_no_rights_before_attach_gives_them(
    view_topic: ViewTopic, steps: Steps, changelog: Changelog, daemon: Daemons
) -> None:
    with analyst(view_topic.url) as keeper:
        execute(
            view_topic.url,
            f"GRANT ALL ON SCHEMA projector TO {keeper}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA projector TO {keeper}",
            f"GRANT SELECT ON viewkeeper_as_of TO {keeper}",
            f"ALTER VIEW projector.stable_view OWNER TO {keeper}",
            *(
                f"ALTER FUNCTION projector.{function} OWNER TO {keeper}"
                for function in ("is_captured", "log_changes", "may_call", "made_anew")
            ),
        )
        steps.connection.execute(f"SET ROLE {keeper}".encode())
        with changelog.transaction():
            changelog.put("users", user(1))
            changelog.watermark()
        steps.catch_up()
        view_topic.attach(daemon)
        with changelog.transaction():
            changelog.tweet(1, 1)
            changelog.watermark()
        steps.catch_up()
        view_topic.run(daemon)
        view_topic.wait_exact()
        with changelog.transaction():
            changelog.tweet(2, 1)
            changelog.watermark()
        steps.catch_up()
        view_topic.wait_exact()
        assert view_topic.rows()[1]["tweet_count"] == 2
        steps.connection.execute("RESET ROLE")
        daemon.end_all()
        execute(view_topic.url, f"REASSIGN OWNED BY {keeper} TO CURRENT_USER")


def test_a_view_that_is_captured_is_not_dropped_by_who_does_not_declare_it(
    view_topic: ViewTopic, daemon: Daemons, settings_env: dict[str, str]
) -> None:
    view_topic.attach(daemon)
    with (
        versions_of(settings_env) as versions,
        pytest.raises(Refused, match="is captured as a topic: detach it from its capture first"),
    ):
        versions.undeclared(1)


def test_a_key_of_ones_own_is_refused(view_topic: ViewTopic, daemon: Daemons) -> None:
    attaching = daemon("cdc", "attach", NAME, "--key", "username", settings=view_topic.settings)
    assert attaching.wait(30.0) != 0
    assert "viewkeeper-projector, which logs its changes by (user_id): leave its key out" in attaching.log_text()


def _detach(view_topic: ViewTopic, daemon: Daemons) -> None:
    detaching = daemon("cdc", "detach", NAME, settings=view_topic.settings)
    assert detaching.wait(30.0) == 0, detaching.log_text()


def _wait_for_a_wait(view_topic: ViewTopic, waiting: Future[None]) -> None:
    """Wait until a command is seen to wait for a lock, and has not ended."""
    blocked = "SELECT FROM pg_locks WHERE NOT granted"
    wait_until(lambda: rows(view_topic.url, blocked) or waiting.done(), what="a wait")
    assert not waiting.done()
