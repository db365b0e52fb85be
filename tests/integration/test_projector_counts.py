"""What records do to the view: each row is counted once, whatever arrives in whatever order."""

import random
from collections import Counter
from datetime import UTC, datetime

import psycopg
import pytest

from projector.errors import BadRecord
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, counts, physical, shown

JOINED = datetime(2008, 1, 22, 15, 14, 44, tzinfo=UTC)


def test_row_shows_its_columns_and_counts(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.put("users", user(1, 'Zoë "z" \\o/ {x,y}', name="", joined_date="2008-01-22T15:14:44.000000Z"))
        for number in range(3):
            changelog.tweet(number, 1)
        changelog.follow(1, 1, 2)
        changelog.follow(2, 2, 1)
        changelog.follow(3, 3, 1)
        changelog.like(1, 1)
    steps.catch_up()
    assert shown(view_url) == {
        1: {
            "user_id": 1,
            "username": 'Zoë "z" \\o/ {x,y}',
            "name": "",
            "description": None,
            "location": None,
            "web_page_url": None,
            "joined_date": JOINED,
            "profile_image_url": None,
            "background_image_url": None,
            "tweet_count": 3,
            "following_count": 1,
            "follower_count": 2,
            "like_count": 1,
        }
    }


def test_child_before_its_parent_is_counted_and_not_shown(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.tweet(1, 7)
    steps.catch_up()
    assert shown(view_url) == {}
    with changelog.transaction():
        changelog.put("users", user(7))
    steps.catch_up()
    assert counts(shown(view_url)[7]) == (1, 0, 0, 0)


def test_deleted_parent_is_hidden_cleared_and_counted_on(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.put("users", user(7, "secret", location="home"))
        changelog.tweet(1, 7)
    steps.catch_up()
    with changelog.transaction():
        changelog.remove("users", 7)
        changelog.tweet(2, 7)
    steps.catch_up()
    assert shown(view_url) == {}
    hidden = physical(view_url)[7]
    assert hidden["username"] is None
    assert hidden["location"] is None
    with changelog.transaction():
        changelog.put("users", user(7, "reborn"))
    steps.catch_up()
    assert shown(view_url)[7]["username"] == "reborn"
    assert counts(shown(view_url)[7]) == (2, 0, 0, 0)


def test_nothing_is_left_of_a_key_that_lost_everything(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.put("users", user(7))
        changelog.tweet(1, 7)
        changelog.tweet(2, 8)
    steps.catch_up()
    assert physical(view_url).keys() == {7, 8}
    with changelog.transaction():
        changelog.remove("tweets", 1)
        changelog.remove("tweets", 2)
        changelog.remove("users", 7)
    steps.catch_up()
    assert physical(view_url) == {}


def test_tombstones_of_unseen_keys_leave_nothing(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        changelog.remove("users", 1)
        changelog.remove("tweets", 1)
        changelog.remove("follows", 1)
    steps.catch_up()
    assert physical(view_url) == {}


def test_changed_owner_moves_the_count(steps: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        for user_id in (1, 2, 3):
            changelog.put("users", user(user_id))
        changelog.tweet(1, 1)
        changelog.follow(1, 1, 2)
    steps.catch_up()
    with changelog.transaction():
        changelog.tweet(1, 2)
        changelog.follow(1, 3, None)
    steps.catch_up()
    assert {key: counts(row) for key, row in shown(view_url).items()} == {
        1: (0, 0, 0, 0),
        2: (1, 0, 0, 0),
        3: (0, 1, 0, 0),
    }


def test_replay_from_the_beginning_changes_nothing(steps: Steps, changelog: Changelog, view_url: str) -> None:
    write_history(changelog, seed=1, records=200)
    steps.catch_up()
    before = physical(view_url)
    assert before
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.partition_offset SET next_offset = 0")
    steps.consumer.rewind()
    steps.catch_up(max_records=37)
    assert physical(view_url) == before


@pytest.mark.parametrize("max_records", [1, 7, 1000])
def test_view_is_a_recount_wherever_batches_are_cut(
    max_records: int, steps: Steps, changelog: Changelog, view_url: str
) -> None:
    expected = write_history(changelog, seed=max_records, records=120)
    steps.catch_up(max_records)
    assert {key: counts(row) for key, row in shown(view_url).items()} == expected


@pytest.mark.parametrize(
    ("joined_date", "reason"), [("yesterday", "joined_date"), ("2026-13-01T00:00:00.000000Z", "out of range")]
)
def test_record_that_cannot_be_applied_is_named_and_nothing_is_applied(
    joined_date: str, reason: str, steps: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        changelog.tweet(1, 7)
        changelog.put("users", user(7, joined_date=joined_date))
    with pytest.raises(BadRecord) as failure:
        steps.catch_up()
    assert f"topic {changelog.topic('users')} partition" in str(failure.value)
    assert reason in str(failure.value)
    assert physical(view_url) == {}


def write_history(changelog: Changelog, *, seed: int, records: int) -> dict[int, tuple[int, int, int, int]]:
    """Write random changes in Kafka transactions, some aborted; return the counts of each user that is there."""
    choose = random.Random(seed)  # noqa: S311 - a history that can be repeated
    users: set[int] = set()
    groups: dict[tuple[str, int], tuple[int | None, ...]] = {}
    while records > 0:
        aborted = choose.random() < 0.2
        with changelog.aborted() if aborted else changelog.transaction():
            for _ in range(choose.randint(1, 20)):
                records -= 1
                table, key = choose.choice(["users", "tweets", "follows", "likes"]), choose.randint(1, 8)
                owners = tuple(choose.choice([None, 1, 2, 3, 4, 5]) for _ in range(2 if table == "follows" else 1))
                gone = choose.random() < 0.2
                if gone:
                    changelog.remove(table, key)
                else:
                    write(changelog, table, key, owners)
                if aborted:
                    continue
                if table == "users":
                    users = users - {key} if gone else users | {key}
                elif gone:
                    groups.pop((table, key), None)
                else:
                    groups[table, key] = owners
    tallies = [
        Counter(owners[column] for (counted, _), owners in groups.items() if counted == table)
        for table, column in (("tweets", 0), ("follows", 0), ("follows", 1), ("likes", 0))
    ]
    return {key: (tallies[0][key], tallies[1][key], tallies[2][key], tallies[3][key]) for key in users}


def write(changelog: Changelog, table: str, key: int, owners: tuple[int | None, ...]) -> None:
    if table == "users":
        changelog.put("users", user(key, f"user {key}"))
    elif table == "tweets":
        changelog.tweet(key, owners[0])
    elif table == "follows":
        changelog.follow(key, owners[0], owners[1])
    else:
        changelog.like(key, owners[0])
