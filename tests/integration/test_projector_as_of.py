"""As-of: never ahead of the rows, and as new as they allow (C15, S1)."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest
from alembic import command
from alembic.config import Config

from compose.local.postgres import postgres as run_postgres
from projector.consumer import Batch
from projector.kept import apply_batch, start_offsets
from tests.daemons import ROOT
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, as_of, projector_settings, projector_steps, shown

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)

ROW_AND_AS_OF = """
SELECT tweet_count, as_of
FROM user_information, viewkeeper_as_of
WHERE user_id = 1 AND view = 'user_information'
"""


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_nothing_is_claimed_before_the_first_watermark(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.tweet(1, 1)
    steps.catch_up()
    assert as_of(view_url) == (None, [])


def test_watermark_is_reached_with_its_records(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.tweet(1, 1)
        changelog.watermark(at(1))
    steps.catch_up()
    assert as_of(view_url) == (at(1), [])


def test_watermark_alone_moves_an_idle_view_on(steps: Steps, changelog: Changelog, view_url: str) -> None:
    for seconds in range(3):
        with changelog.transaction():
            changelog.watermark(at(seconds))
        steps.catch_up()
        assert as_of(view_url) == (at(seconds), [])


def test_watermark_of_a_topic_that_was_made_again_is_not_reached(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    """Before it is noticed that the topic is another one, and with fewer records than were read of the one before."""
    with changelog.transaction():
        changelog.tweet(1, 1)
        changelog.watermark(at(1))
    steps.catch_up()
    again = msgspec.structs.replace(changelog.table_cursor("tweets", time=at(2)), topic_id="another")
    with changelog.transaction():
        changelog.watermark(at(2), tables={"public.tweets": again})
    steps.catch_up()
    assert as_of(view_url) == (at(1), [])


def test_one_partition_that_is_behind_holds_the_time_back(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.watermark(at(1))
    steps.catch_up()
    ahead = [end + 1 for end in changelog.next_offsets("tweets")]
    with changelog.transaction():
        changelog.tweet(1, 1)
        changelog.watermark(
            at(2), tables={"public.tweets": changelog.table_cursor("tweets", time=at(2), next_offsets=tuple(ahead))}
        )
    steps.catch_up()
    assert as_of(view_url) == (at(1), [])
    number = 2
    while min(changelog.next_offsets("tweets")) == 0:
        with changelog.transaction():
            changelog.tweet(number, 1)
        number += 1
    steps.catch_up()
    assert as_of(view_url) == (at(2), [])


def test_watermark_that_waits_is_found_again_after_a_restart(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.watermark(at(1))
    steps.catch_up()
    ahead = tuple(end + 1 for end in changelog.next_offsets("tweets"))
    with changelog.transaction():
        changelog.watermark(
            at(2), tables={"public.tweets": changelog.table_cursor("tweets", time=at(2), next_offsets=ahead)}
        )
    steps.catch_up()
    assert as_of(view_url) == (at(1), [])
    number = 1
    while min(changelog.next_offsets("tweets")) == 0:
        with changelog.transaction():
            changelog.tweet(number, 1)
        number += 1
    with projector_steps(projector_settings(settings_env)) as restarted:
        restarted.catch_up()
    assert as_of(view_url) == (at(2), [])


def test_watermark_that_waits_is_forgotten_once_another_instance_goes_on(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    ahead = tuple(end + 1 for end in changelog.next_offsets("tweets"))
    with changelog.transaction():
        waits = changelog.table_cursor("tweets", time=at(2), next_offsets=ahead)
        changelog.watermark(at(2), tables={"public.tweets": waits})
    steps.catch_up()
    number = 1
    while min(changelog.next_offsets("tweets")) == 0:
        with changelog.transaction():
            changelog.tweet(number, 1)
        number += 1
    with changelog.transaction():
        uncertain = changelog.table_cursor("users", time=at(3), uncertain=True)
        changelog.watermark(at(3), tables={"public.users": uncertain})
    with projector_steps(projector_settings(settings_env)) as other:
        other.catch_up()
        assert as_of(view_url) == (at(3), ["uncertain"])
        before = dict(other.kept[0].stored)
        start_offsets(steps.connection, steps.kept)
        assert apply_batch(steps.connection, steps.kept, Batch(started={}))
        assert as_of(view_url) == (at(3), ["uncertain"])
        other.kept[0].read_stored(other.connection)
        assert dict(other.kept[0].stored) == before
    assert steps.kept[0].as_of is None


def test_table_without_a_complete_snapshot_holds_the_time_back(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    incomplete = changelog.table_cursor("likes", time=at(1), complete=False)
    with changelog.transaction():
        changelog.watermark(at(1), tables={"public.likes": incomplete})
    steps.catch_up()
    assert as_of(view_url) == (None, [])


def test_words_of_an_earlier_life_are_never_reached(
    changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    """A capture's cursors from before its topics were made anew, not compacted yet."""
    with changelog.transaction():
        changelog.watermark(at(1))
    with changelog.transaction():
        anew = changelog.table_cursor("likes", time=at(2), complete=False)
        changelog.watermark(at(2), tables={"public.likes": anew})
    with projector_steps(projector_settings(settings_env)) as steps:
        steps.catch_up(max_records=1)
    assert as_of(view_url) == (None, [])


def test_oldest_of_two_captures_counts(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        own = {table: changelog.table_cursor(table, time=at(5)) for table in ("users", "tweets", "follows")}
        changelog.put_cursor({f"public.{table}": cursor for table, cursor in own.items()}, capture="one")
        changelog.put_cursor({"public.likes": changelog.table_cursor("likes", time=at(3))}, capture="two")
    steps.catch_up()
    assert as_of(view_url) == (at(3), [])


def test_time_never_goes_back_and_an_uncertain_clock_is_flagged(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        changelog.watermark(at(10))
    steps.catch_up()
    with changelog.transaction():
        behind = changelog.table_cursor("users", time=at(4), uncertain=True)
        changelog.watermark(at(4), tables={"public.users": behind})
    steps.catch_up()
    assert as_of(view_url) == (at(10), ["uncertain"])
    with changelog.transaction():
        changelog.watermark(at(11))
    steps.catch_up()
    assert as_of(view_url) == (at(11), [])


def test_what_readers_have_seen_survives_a_crash_of_the_database(
    tmp_path: Path, changelog: Changelog, settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the database says that a commit may return before it is on disk: time and rows would go back."""
    with run_postgres(tmp_path) as server:
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", server.url())
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="view"), "head")
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute("ALTER SYSTEM SET synchronous_commit = off")
            session.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    with run_postgres(tmp_path) as server:
        url = server.url()
        with projector_steps(projector_settings({**settings_env, "VIEWKEEPER_VIEW_URL": url})) as steps:
            with changelog.transaction():
                changelog.put("users", user(1))
                changelog.watermark(at(1))
            steps.catch_up()
            assert (as_of(url)[0], list(shown(url))) == (at(1), [1])
            os.kill(server.pid, signal.SIGKILL)
    with run_postgres(tmp_path) as server:
        assert (as_of(server.url())[0], list(shown(server.url()))) == (at(1), [1])


def test_reader_never_sees_a_time_ahead_of_the_row(steps: Steps, changelog: Changelog, view_url: str) -> None:
    """Row and as-of in one statement, while both move: after the n-th tweet comes the n-th second."""
    with changelog.transaction():
        changelog.put("users", user(1))
    steps.catch_up()
    tweets = 60
    seen: set[int] = set()
    ahead: list[tuple[int, datetime]] = []

    def read() -> None:
        with psycopg.connect(view_url, autocommit=True) as session:
            count = 0
            while count < tweets:
                for count, time in session.execute(ROW_AND_AS_OF):
                    seen.add(count)
                    if time is not None and count < (time - START).total_seconds():
                        ahead.append((count, time))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, tweets + 1):
        with changelog.transaction():
            changelog.tweet(number, 1)
            changelog.watermark(at(number))
        steps.step()
    steps.catch_up()
    reader.join()
    assert ahead == []
    assert len(seen) > tweets / 4, "the reader has looked while the view moved"
    assert as_of(view_url) == (at(tweets), [])


Wait = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def waited(settings_env: dict[str, str]) -> Wait:
    """Give the command `wait`, run to its end."""

    def run(until: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "projector.cli", "wait", "--until", until, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=settings_env, capture_output=True, text=True, timeout=30, check=False
        )

    return run


def test_wait_warns_of_rows_that_are_missing_whatever_the_time(
    steps: Steps, changelog: Changelog, view_url: str, waited: Wait
) -> None:
    too_large = msgspec.structs.replace(changelog.table_cursor("users", time=at(1)), held_back=('{"user_id":1}',))
    with changelog.transaction():
        changelog.watermark(at(1), tables={"public.users": too_large})
    steps.catch_up()
    with psycopg.connect(view_url) as session:
        session.execute(
            'INSERT INTO projector.dead_letter (view, version, topic, partition, "offset", reason) '
            "VALUES ('user_information', 1, %s, 0, 0, 'none')",
            [changelog.topic("users")],
        )
    reached = waited(at(1).isoformat(), "--json")
    assert (reached.returncode, json.loads(reached.stdout)["flags"]) == (0, ["held_back", "dead_letters"])
    too_large_words, dead_words = reached.stderr.splitlines()
    lacks = "warning: view 'user_information' lacks rows:"
    assert too_large_words.startswith(f"{lacks} rows that are too large for their topic are left out")
    assert dead_words.startswith(f"{lacks} records that could not be applied are left out")
    assert dead_words.endswith("viewkeeper-projector dead-letters list user_information")


def test_wait_takes_no_estimate_for_the_time(steps: Steps, changelog: Changelog, view_url: str, waited: Wait) -> None:
    with changelog.transaction():
        changelog.watermark(at(1))
    steps.catch_up()
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.as_of SET flags = '{estimate}'")
    late = waited(at(1).isoformat(), "--wait-seconds", "0.2")
    assert late.returncode == 1
    assert f"its as-of is {at(1).isoformat()} (estimate)" in late.stderr


def test_wait_returns_once_the_time_is_reached(steps: Steps, changelog: Changelog, waited: Wait) -> None:
    with changelog.transaction():
        changelog.watermark(at(1))
    steps.catch_up()
    reached = waited(at(1).isoformat(), "--json")
    assert (reached.returncode, json.loads(reached.stdout)["view"]) == (0, "user_information")
    assert datetime.fromisoformat(json.loads(reached.stdout)["as_of"]) == at(1)
    late = waited(at(1.001).isoformat(), "--wait-seconds", "0.2")
    assert late.returncode == 1
    assert "view 'user_information' has not reached" in late.stderr
    assert "'soon' is no time; write it as 2026-01-31T12:00:00Z" in waited("soon").stderr
    for until, accepted in (
        ("2026-01-01T00:00:01", "2026-01-01T00:00:01Z"),
        ("2026-01-31", "2026-01-31T00:00:00Z"),
    ):
        refused = waited(until)
        assert refused.returncode == 2
        assert f"has no zone; write it as {accepted} if it is UTC" in refused.stderr
        assert waited(accepted).returncode == 0
