"""As-of over topics that no cursor names: an estimate from the times of their records, and flagged as one."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cdc.wire import cursor_topic_name
from projector.consumer import Batch
from projector.kept import apply_batch, estimate
from tests.daemons import ROOT, Daemons
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, as_of, shown
from tests.integration.rebuild_steps import added, filled, met, versions_of
from tests.waiting import wait_until

START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def cursor_for(changelog: Changelog, *tables: str, seconds: float, complete: bool = True) -> None:
    """Write a capture's record that names these tables alone."""
    changelog.put_cursor(
        {f"public.{table}": changelog.table_cursor(table, time=at(seconds), complete=complete) for table in tables}
    )


def all_but_likes(changelog: Changelog, seconds: float) -> None:
    with changelog.transaction():
        cursor_for(changelog, "users", "tweets", "follows", seconds=seconds)


def a_row_each(changelog: Changelog, seconds: float, *, like: float | None = None) -> None:
    """Write a record to each topic, of this time."""
    with changelog.transaction():
        changelog.put("users", user(1), time=at(seconds))
        changelog.put("tweets", {"tweet_id": 1, "user_id": 1, "text": "hi"}, time=at(seconds))
        changelog.put("follows", {"follow_id": 1, "follower_id": 1, "followee_id": 1}, time=at(seconds))
        changelog.like(1, 1, time=at(seconds if like is None else like))


def test_newest_record_of_a_topic_without_a_cursor_is_its_time(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    all_but_likes(changelog, 100)
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (None, []), "nobody knows whose an empty topic is"
    with changelog.transaction():
        for number in range(1, 20):
            changelog.like(number, 1, time=at(number))
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(19), ["estimate"])


def test_oldest_of_estimates_and_watermarks_counts(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.like(1, 1, time=at(50))
    all_but_likes(changelog, 40)
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(40), ["estimate"])
    all_but_likes(changelog, 60)
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(50), ["estimate"])
    with changelog.transaction():
        changelog.like(2, 1, time=at(55))
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(55), ["estimate"]), "what the cursor said is remembered"


def test_partition_that_is_not_read_to_its_end_holds_the_estimate_back(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    all_but_likes(changelog, 1000)
    with changelog.transaction():
        for number in range(1, 20):
            changelog.like(number, 1, time=at(number))
    steps.catch_up()
    with changelog.transaction():
        for number in range(1, 20):
            changelog.like(number, 2, time=at(100 + number))
    # Nothing of the second transaction is applied when the estimate is made, and all of it when it is stored.
    steps.estimate()
    steps.catch_up()
    time, flags = as_of(view_url)
    assert at(1) < time < at(19)
    assert flags == ["estimate"]
    steps.estimate()
    assert as_of(view_url) == (at(119), ["estimate"])


def test_estimate_never_goes_back(steps: Steps, changelog: Changelog, view_url: str) -> None:
    all_but_likes(changelog, 100)
    for seconds in (20, 10):
        with changelog.transaction():
            changelog.like(1, 1, time=at(seconds))
        steps.catch_up()
        steps.estimate()
        assert as_of(view_url) == (at(20), ["estimate"])


def test_record_of_the_future_is_no_later_than_it_was_read(steps: Steps, changelog: Changelog, view_url: str) -> None:
    a_row_each(changelog, 1.5 * 3600)
    steps.catch_up()
    steps.estimate()
    time, flags = as_of(view_url)
    assert time <= datetime.now(UTC) < at(1.5 * 3600)
    assert flags == ["estimate"]


def test_cursor_rules_once_it_names_the_topic(steps: Steps, changelog: Changelog, view_url: str) -> None:
    a_row_each(changelog, 20)
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(20), ["estimate"])
    with changelog.transaction():
        changelog.watermark(at(15))
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(20), ["estimate"]), "the watermark has not come to what was estimated"
    with changelog.transaction():
        changelog.like(2, 1, time=at(40))
        changelog.watermark(at(30))
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (at(30), [])


def test_first_records_of_a_capture_are_no_estimate_before_its_cursor_is_read(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    """Records and cursor become visible at once, and arrive one after the other."""
    all_but_likes(changelog, 100)
    steps.catch_up()
    with changelog.transaction():
        changelog.like(1, 1, time=at(50))
        cursor_for(changelog, "users", "tweets", "follows", "likes", seconds=60, complete=False)
    cursor_place = (cursor_topic_name(changelog.prefix), 0)
    batches: list[Batch] = []
    while not any(batch.cursors for batch in batches):
        batches.append(steps.read())
    batch = batches[-1]
    without = replace(batch, cursors=[], ended={**batch.ended, cursor_place: batch.started[cursor_place]})
    for earlier in (*batches[:-1], without):
        assert apply_batch(steps.connection, steps.kept, earlier)
    estimate(steps.connection, steps.kept, steps.describe)
    assert apply_batch(steps.connection, steps.kept, replace(without, started=without.ended, newest={}, messages=()))
    assert as_of(view_url) == (None, [])
    steps.consumer.rewind()
    steps.catch_up()
    steps.estimate()
    assert as_of(view_url) == (None, []), "the table is not complete"


def test_view_without_any_cursor_topic_is_kept_and_goes_on_by_a_cursor_that_comes(
    daemon: Daemons, changelog_to_come: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    changelog = changelog_to_come
    changelog.create(cursor=False)
    a_row_each(changelog, 20)
    # Two, so that no one of them has applied all partitions.
    first, second = daemon("projector", "run"), daemon("projector", "run")
    wait_until(lambda: as_of(view_url) == (at(20), ["estimate"]), what="an estimate")
    assert shown(view_url)[1]["like_count"] == 1
    status = [sys.executable, "-m", "projector.cli", "status", "--json"]
    done = subprocess.run(status, cwd=ROOT, env=settings_env, capture_output=True, timeout=60, check=False)
    (view,) = json.loads(done.stdout)["views"]
    assert (view["as_of_flags"], view["needs_a_person"], done.returncode) == (["estimate"], [], 0)
    a_row_each(changelog, 40, like=30)
    wait_until(lambda: as_of(view_url) == (at(30), ["estimate"]), what="the topic that is furthest behind")
    changelog.create_cursor_topic()
    with changelog.transaction():
        changelog.tweet(2, 1)
        changelog.watermark(at(50))
    wait_until(lambda: as_of(view_url) == (at(50), []), what="the cursor's word")
    assert shown(view_url)[1]["tweet_count"] == 2
    assert (first.terminate(), second.terminate()) == (0, 0)


@pytest.mark.parametrize("cursor", [True, False], ids=["an empty cursor topic", "no cursor topic"])
def test_rebuild_comes_to_the_estimate_of_the_version_before(
    changelog_to_come: Changelog, settings_env: dict[str, str], view_url: str, daemon: Daemons, *, cursor: bool
) -> None:
    changelog_to_come.create(cursor=cursor)
    a_row_each(changelog_to_come, 20)
    projector = daemon("projector", "run")
    wait_until(lambda: as_of(view_url) == (at(20), ["estimate"]), what="an estimate")
    assert projector.terminate() == 0
    with versions_of(settings_env) as versions:
        pair = met(versions, filled(versions, added))
        assert versions.swap(pair) is not None
    assert as_of(view_url) == (at(20), ["estimate"])
