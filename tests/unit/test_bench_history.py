"""The projector benchmark's history: what it claims to come to must follow from the records that are produced."""

import json
from collections import Counter
from datetime import datetime

import pytest

from tests.bench.history import PROFILE_COLUMNS, Event, History, Row, rows_that_differ

EVENTS = 20_000


@pytest.fixture(scope="module")
def history() -> tuple[list[Event], dict[int, Row]]:
    drawn = History(EVENTS)
    return list(drawn), drawn.expected_rows()


def living_rows(events: list[Event]) -> dict[str, list[dict[str, object]]]:
    newest = {(event.table, event.key): event.value for event in events}
    rows: dict[str, list[dict[str, object]]] = {"users": [], "tweets": [], "follows": [], "likes": []}
    for (table, _), value in newest.items():
        if value is not None:
            rows[table].append(json.loads(value))
    return rows


def test_the_expected_rows_follow_from_the_last_record_of_each_key(history: tuple[list[Event], dict[int, Row]]) -> None:
    events, expected = history
    rows = living_rows(events)
    tweets = Counter(row["user_id"] for row in rows["tweets"])
    likes = Counter(row["user_id"] for row in rows["likes"])
    following = Counter(row["follower_id"] for row in rows["follows"])
    followers = Counter(row["followee_id"] for row in rows["follows"])

    recounted = {}
    for row in rows["users"]:
        user_id = row["user_id"]
        profile = [row[name] for name in PROFILE_COLUMNS]
        profile[PROFILE_COLUMNS.index("joined_date")] = datetime.fromisoformat(str(row["joined_date"]))
        counts = (tweets[user_id], following[user_id], followers[user_id], likes[user_id])
        recounted[user_id] = (user_id, *profile, *counts)

    assert recounted == expected
    assert len(expected) > EVENTS * 0.03


def test_it_has_updates_owner_changes_and_deletes_in_their_shares(history: tuple[list[Event], dict[int, Row]]) -> None:
    events, _ = history
    seen: dict[tuple[str, bytes], object] = {}
    updates = moves = deletes = 0
    for table, key, value, _ in events:
        deletes += value is None
        if value is not None and (table, key) in seen:
            updates += 1
            owner = json.loads(value).get("user_id")
            moves += table == "tweets" and owner != seen[table, key]
        seen[table, key] = json.loads(value).get("user_id") if value else None

    assert len(events) == EVENTS
    assert 0.015 < updates / EVENTS < 0.03
    assert 0.007 < deletes / EVENTS < 0.013
    assert moves > 20


def test_a_few_users_are_hot(history: tuple[list[Event], dict[int, Row]]) -> None:
    events, _ = history
    owners = Counter(row["user_id"] for row in living_rows(events)["tweets"])

    hottest = sum(count for _, count in owners.most_common(len(owners) // 20))
    assert hottest > sum(owners.values()) * 0.2


def test_children_come_before_their_parents(history: tuple[list[Event], dict[int, Row]]) -> None:
    events, _ = history
    known: set[object] = set()
    orphans = 0
    for table, _, value, _ in events:
        if value is None:
            continue
        user_id = json.loads(value).get("user_id")
        if table == "users":
            known.add(user_id)
        elif table == "tweets" and user_id not in known:
            orphans += 1

    assert orphans > 100


def test_the_same_seed_gives_the_same_history() -> None:
    assert list(History(500, seed=3)) == list(History(500, seed=3)) != list(History(500, seed=4))


def test_rows_that_differ_are_changed_missing_or_too_many() -> None:
    expected: dict[int, Row] = {1: (1, "a"), 2: (2, "b"), 3: (3, "c")}

    assert rows_that_differ(expected, dict(expected)) == 0
    assert rows_that_differ(expected, {1: (1, "a"), 2: (2, "x"), 4: (4, "d")}) == 3
