"""A rebuild beside the version that readers see: filled, compared, swapped, rolled back, killed in between (P4, P5)."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
import pytest

from projector.errors import BadRecord, Refused
from projector.rebuild import Versions
from projector.registry import State
from runtime.stop import Stop
from tests.daemons import ROOT, Daemons, standard_output
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, counts, projector_settings, projector_steps, shown
from tests.integration.rebuild_steps import (
    VIEW,
    added,
    changed,
    execute,
    filled,
    met,
    retyped,
    rows,
    some_users,
    states,
    swapped,
    versions_of,
)
from tests.waiting import wait_until
from views.user_information import user_information

pytestmark = pytest.mark.newest_postgres

LENIENT = {"VIEWKEEPER_PROJECTOR_ON_BAD_RECORD": "dead_letter"}
SMALL = {"VIEWKEEPER_PROJECTOR_BATCH_RECORDS": "10"}
INDEXES = (
    "SELECT indexdef FROM pg_indexes WHERE tablename = 'user_information_v2' AND indexname LIKE '%%idx%%' ORDER BY 1"
)


def test_killed_after_each_step_it_goes_on_and_rolls_back_up_to_date(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        begun = versions.begin(changed)
    assert states(view_url) == {1: "active", 2: "building"}
    with versions_of({**settings_env, **SMALL}) as versions:
        assert versions.begin(changed) == begun
        filling = versions.fill(begun.kept)
        while (step := next(filling)).records < 20:
            pass
        assert step.lag_records > 0
        assert step.seconds_left, "it has a rate, and something left"
        filling.close()
    # The old version is kept meanwhile, from the same topics.
    with changelog.transaction():
        changelog.tweet(100, 1)
        changelog.watermark()
    steps.catch_up()
    assert counts(shown(view_url)[1])[0] == 16
    with versions_of(settings_env) as versions:
        assert versions.begin(changed) == begun
        progress = list(versions.fill(begun.kept))
        assert 0 < progress[-1].records < 130, "it did not go on from its stored offsets"
    with versions_of(settings_env) as versions:
        assert versions.begin(changed) == begun
        list(versions.fill(begun.kept))
        versions.make_ready(begun.kept)
    assert rows(view_url, INDEXES) != []
    with versions_of(settings_env) as versions:
        assert versions.begin(changed).state is State.READY
        pair = met(versions, begun.kept)
        comparison = versions.compare(pair)
    assert comparison is not None
    assert comparison.equal
    assert (comparison.dropped, comparison.added, comparison.retyped) == (("location",), ("texts",), ("like_count",))
    with versions_of(settings_env) as versions:
        assert swapped(versions, versions.begin(changed).kept) < 1
    assert states(view_url) == {1: "previous", 2: "active"}
    (row,) = rows(
        view_url, "SELECT texts, like_count, pg_typeof(like_count)::text FROM user_information WHERE user_id = 1"
    )
    assert row == (16, 60, "numeric")

    # From now on both are kept in one transaction: back and forth, up to date.
    with changelog.transaction():
        changelog.tweet(101, 1)
        changelog.watermark()
    with projector_steps(projector_settings(settings_env)) as both:
        both.catch_up()
    for state in ({1: "active", 2: "previous"}, {1: "previous", 2: "active"}):
        with versions_of(settings_env) as versions:
            previous = versions.find(State.PREVIOUS)
            assert previous is not None
            swapped(versions, previous)
        assert states(view_url) == state
        assert rows(view_url, "SELECT tweet_count FROM user_information WHERE user_id = 1") == [(17,)]
    with versions_of(settings_env) as versions:
        with pytest.raises(Refused, match="still has its former version 1"):
            versions.begin(retyped)
        versions.drop(versions.unseen(None))
        with pytest.raises(Refused, match="readers see the active one"):
            versions.unseen(2)
    assert states(view_url) == {2: "active"}
    assert rows(view_url, "SELECT to_regclass('projector.user_information_v1')::text") == [(None,)]


class Dying(psycopg.Connection):
    """A connection that is gone before one of its statements, as with a process that is killed there."""

    statements_left = 1_000

    def execute(self, *arguments: Any, **options: Any) -> psycopg.Cursor:
        if not self.statements_left:
            self.close()
        self.statements_left -= 1
        cursor: psycopg.Cursor = super().execute(*arguments, **options)
        return cursor


def test_killed_before_any_statement_of_a_step_it_is_done_whole_or_not_at_all(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=8)
    steps.catch_up()
    settings = projector_settings(settings_env)

    def died(number: int, step: str) -> bool:
        with Dying.connect(view_url, autocommit=True) as connection:
            versions = Versions(settings, connection, VIEW, Stop(), wait_seconds=1)
            pair = None if step == "begin" else versions.pair(new)
            connection.statements_left = number
            try:
                if pair is None:
                    versions.begin(changed)
                elif step == "swap":
                    assert versions.swap(pair) is not None
                else:
                    versions.drop(pair.old if step == "drop old" else pair.new)
            except psycopg.OperationalError:
                return True
            return False

    def kills(step: str, whole: dict[int, str]) -> int:
        """Kill a step before its first statement, its second, …, until it ends; return how often."""
        before = states(view_url)
        number = 0
        while died(number, step):
            assert states(view_url) in (before, whole)
            assert counts(shown(view_url)[1]) == (2, 0, 0, 8)
            number += 1
        assert states(view_url) == whole
        return number

    assert kills("begin", {1: "active", 2: "building"}) > 8
    with versions_of(settings_env) as versions:
        new = filled(versions, changed)
        met(versions, new)
    assert kills("swap", {1: "previous", 2: "active"}) > 8
    with versions_of(settings_env) as versions:
        old = versions.find(State.PREVIOUS)
        assert old is not None
        swapped(versions, old)
    assert counts(shown(view_url)[1]) == (2, 0, 0, 8)


def test_compare_finds_by_field_what_differs_and_what_is_missing(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        pair = met(versions, filled(versions, retyped))
        same = versions.compare(pair)
        assert same is not None
        assert (same.equal, same.compared_rows) == (True, 4)
        execute(
            view_url,
            "UPDATE projector.user_information_v2 SET tweet_count = 7 WHERE user_id IN (0, 1)",
            "UPDATE projector.user_information_v2 SET like_count = 7, location = NULL WHERE user_id = 1",
            "DELETE FROM projector.user_information_v2 WHERE user_id = 2",
            "INSERT INTO projector.user_information_v2 (user_id, viewkeeper_present) VALUES (9, true), (10, NULL)",
        )
        found = versions.compare(pair)
        assert found is not None
        assert (found.differing_rows, found.only_old, found.only_new) == (2, 1, 1)
        assert found.differing_fields == {"tweet_count": 2, "like_count": 1, "location": 1}
        by_key = {example.key: example for example in found.examples}
        assert by_key.keys() == {"0", "1", "2", "9"}
        assert by_key["2"].new is None
        assert by_key["9"].old is None
        assert by_key["0"].old is not None
        assert by_key["0"].old["tweet_count"] == "15"
        # Not at one point: nothing that is compared would mean anything.
        with changelog.transaction():
            changelog.tweet(100, 1)
        steps.catch_up()
        assert versions.compare(pair) is None


def test_a_definition_that_changed_meanwhile_starts_again(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        filled(versions, added)
        again = versions.begin(changed)
        assert again.state is State.BUILDING
        assert "location" not in again.kept.view.column_names
        assert states(view_url) == {1: "active", 2: "building"}
        swapped(versions, filled(versions, changed))
    assert rows(view_url, "SELECT texts FROM user_information WHERE user_id = 1") == [(1,)]


def test_lost_history_is_left_behind_by_a_rebuild(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        filled(versions, user_information)
        changelog.make_again("tweets")
        with changelog.transaction():
            for number in range(3):
                changelog.tweet(number, 1)
            changelog.watermark()
        # What was filled has lost its history, too.
        again = filled(versions, user_information)
        pair = met(versions, again)
        assert pair.stuck is not None
        comparison = versions.compare(pair)
        assert comparison is not None
        assert comparison.not_compared is not None
        assert versions.swap(pair) is not None
    assert states(view_url) == {2: "active"}
    assert counts(shown(view_url)[1]) == (3, 0, 0, 4)


def _lose_location(changelog: Changelog) -> None:
    """Publish a user as of a table that has no such column any more."""
    with changelog.transaction():
        changelog.put("users", {name: value for name, value in user(1, "bob").items() if name != "location"})
        changelog.watermark()


@pytest.mark.parametrize("ready", [False, True], ids=["built after it", "ready before it"])
def test_a_version_that_reads_a_column_that_is_gone_is_left_behind(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str], *, ready: bool
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        if ready:
            met(versions, filled(versions, changed))
        _lose_location(changelog)
        with pytest.raises(BadRecord, match=rf"`location`; .* version 1 of view '{VIEW}'.* rebuild {VIEW} goes on"):
            steps.catch_up()
        pair = met(versions, versions.begin(changed).kept if ready else filled(versions, changed))
        comparison = versions.compare(pair)
        assert comparison is not None
        assert "missing required field `location`" in (comparison.not_compared or "it was compared")
        assert versions.swap(pair) is not None
    assert states(view_url) == {2: "active"}
    assert shown(view_url)[1]["username"] == "bob"


def test_records_of_before_a_column_came_are_left_out_until_newer_ones_come(
    changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=0)
    with changelog.transaction():
        for number in range(60):
            changelog.put("tweets", {"tweet_id": number, "user_id": 1})
    with changelog.transaction():
        for number in range(60):
            changelog.tweet(number, 1)
        changelog.watermark()
    with (
        versions_of({**settings_env, **SMALL}) as versions,
        pytest.raises(BadRecord, match=r"`text`; .* version 2 .*ON_BAD_RECORD=dead_letter .* until newer ones"),
    ):
        filled(versions, added)
    with versions_of({**settings_env, **SMALL, **LENIENT}) as versions:
        swapped(versions, filled(versions, added))
    assert rows(view_url, "SELECT texts FROM user_information WHERE user_id = 1") == [(60,)]
    assert rows(view_url, "SELECT flags FROM viewkeeper_as_of WHERE view = %s", VIEW) == [([],)]


@pytest.mark.parametrize(("state", "left"), [(State.PREVIOUS, State.RETIRED), (State.READY, State.BUILDING)])
def test_a_version_that_readers_do_not_see_stops_nobody(
    changelog: Changelog, view_url: str, settings_env: dict[str, str], daemon: Daemons, state: State, left: State
) -> None:
    some_users(changelog, tweets=4)
    with versions_of(settings_env) as versions:
        swapped(versions, filled(versions, changed))
        if state is State.READY:
            versions.drop(versions.unseen(None))
            filled(versions, user_information)
        unseen = versions.unseen(None)
        run = daemon("projector", "run")
        run.wait_logged("keeping")
        _lose_location(changelog)
        said = run.wait_logged("version_left")
        assert (said["version"], said["state"]) == (unseen.version, state)
        assert "missing required field `location`" in said["reason"]
        wait_until(lambda: shown(view_url)[1]["username"] == "bob", what="the row in the version that readers see")
        with pytest.raises(Refused, match=r"cannot be kept any longer: .*version_left"):
            met(versions, unseen)
    assert states(view_url) == {2: "active", unseen.version: left}
    assert run.is_running()


def test_nobody_is_led_to_a_version_that_reads_a_column_that_is_gone(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        swapped(versions, filled(versions, changed))
        _lose_location(changelog)
        previous = versions.find(State.PREVIOUS)
        assert previous is not None
        with pytest.raises(BadRecord, match=rf"`location`; .* version 1 .*viewkeeper-projector drop {VIEW} removes"):
            met(versions, previous)
    assert states(view_url) == {1: "previous", 2: "active"}


def test_a_value_that_is_too_long_for_a_declared_index_is_named_or_left_out(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    with changelog.transaction():
        changelog.put("users", user(9, token_hex(5_000)))
    steps.catch_up()
    with versions_of(settings_env) as versions, pytest.raises(Refused, match="dead_letter to leave such rows out"):
        filled(versions, retyped)
    with versions_of(settings_env | LENIENT) as versions:
        # It has the value already.
        with pytest.raises(Refused, match=f"viewkeeper-projector drop {VIEW}, and rebuild it anew"):
            filled(versions, retyped)
        versions.drop(versions.unseen(None))
        swapped(versions, filled(versions, retyped))
    assert len(rows(view_url, INDEXES)) == 2
    assert 9 not in shown(view_url)
    assert rows(view_url, "SELECT version, reason LIKE 'index row %%' FROM projector.dead_letter") == [(2, True)]


def test_a_view_moves_to_no_other_schema(view_url: str, settings_env: dict[str, str]) -> None:
    moved = replace(user_information, schema="shop")
    with (
        versions_of(settings_env) as versions,
        pytest.raises(Refused, match="in schema 'public', and it is declared in 'shop' now"),
    ):
        versions.begin(moved)
    assert states(view_url) == {1: "active"}


def test_a_name_that_was_taken_while_the_first_version_was_built_stays_its_owners(
    view_url: str, settings_env: dict[str, str]
) -> None:
    with versions_of(settings_env, name="another") as versions:
        begun = versions.begin(replace(user_information, name="another"))
        execute(view_url, "CREATE VIEW another AS SELECT user_id FROM user_information")
        with pytest.raises(Refused, match="is there already"):
            versions.show_first(begun.kept)
    assert rows(view_url, "SELECT column_name FROM information_schema.columns WHERE table_name = 'another'") == [
        ("user_id",)
    ]


def test_one_command_at_a_time(view_url: str, settings_env: dict[str, str]) -> None:
    with (
        versions_of(settings_env),
        pytest.raises(Refused, match="another command changes the versions"),
        versions_of(settings_env),
    ):
        pytest.fail("there are two")
    # One that is killed is in nobody's way.
    killed = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'viewkeeper-rebuild'"
    with versions_of(settings_env) as versions:
        execute(view_url, f"{killed} AND datname = current_database()")
        with pytest.raises(psycopg.OperationalError):
            versions.find(State.ACTIVE)
    with versions_of(settings_env):
        pass


def test_a_view_without_a_version_is_a_rebuild_from_nothing_also_when_it_is_interrupted(
    daemon: Daemons, changelog: Changelog, view_url: str, settings_env: dict[str, str], tmp_path: Path
) -> None:
    some_users(changelog, tweets=1_000)
    declared = (ROOT / "views/user_information.py").read_text().replace('name="user_information"', 'name="another"')
    (tmp_path / "another.py").write_text(declared)
    settings = {**settings_env, "VIEWKEEPER_VIEWS": str(tmp_path / "another.py")}
    small = {"VIEWKEEPER_VIEWS": settings["VIEWKEEPER_VIEWS"], "VIEWKEEPER_PROJECTOR_BATCH_RECORDS": "1"}
    interrupted = daemon("projector", "rebuild", "another", settings=small)
    progress = "SELECT sum(next_offset) FROM projector.partition_offset WHERE view = 'another'"
    wait_until(lambda: (rows(view_url, progress)[0][0] or 0) > 10, what="the first records")
    interrupted.signal(signal.SIGINT)
    assert interrupted.wait() == 130
    assert "the same command goes on with it" in interrupted.log_text()
    assert rows(view_url, "SELECT state FROM projector.view_version WHERE view = 'another'") == [("building",)]
    done = json.loads(standard_output(settings, "projector", "rebuild", "another", "--json"))
    assert 0 < done["records"] < 2_000
    assert (done["version"], done["state"]) == (1, "active")
    assert rows(view_url, "SELECT count(*) FROM another") == [(4,)]


def test_a_swap_of_versions_that_moved_apart_is_not_made(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    with versions_of(settings_env) as versions:
        pair = met(versions, filled(versions, replace(user_information, indexes=(("username",),))))
        with changelog.transaction():
            changelog.tweet(100, 1)
        steps.catch_up()
        assert versions.swap(pair) is None, "the new one lacks a tweet that readers have seen"
        execute(view_url, "UPDATE projector.partition_offset SET next_offset = 0 WHERE version = 1")
        execute(view_url, "UPDATE projector.partition_offset SET next_offset = 0 WHERE version = 2")
        execute(view_url, "UPDATE projector.as_of SET as_of = now() - interval '1 second' * version")
        assert versions.swap(pair) is None, "the new one's as-of is older"
        assert states(view_url) == {1: "active", 2: "ready"}
