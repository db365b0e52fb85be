"""The demo's start population."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from compose.demo.population import FIRST_USER_ID, ZCOX, ZCOX_ID, Sizes, population

SMALL = Sizes(users=200, tweets=2_000, follows=4_000, likes=3_000)


def tables(sizes: Sizes = SMALL, *, seed: int = 1) -> dict[str, list[tuple[object, ...]]]:
    return {table: list(rows) for table, _, rows in population(sizes, seed=seed)}


def test_each_table_has_as_many_rows_as_wanted() -> None:
    counts = {table: len(rows) for table, rows in tables().items()}
    assert counts == {"users": 200, "tweets": 2_000, "follows": 4_000, "likes": 3_000}
    assert SMALL.total == sum(counts.values())


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    assert tables() == tables()
    assert tables(seed=2) != tables()


def test_zcox_is_as_documented() -> None:
    zcox = next(user for user in tables()["users"] if user[0] == ZCOX_ID)
    assert zcox[:7] == (
        12542832,
        "zcox",
        "Zach Cox",
        "Engineering @Uptake",
        "Chicago, IL",
        "https://theza.ch/",
        datetime(2008, 1, 22, 15, 14, 44, tzinfo=UTC),
    )
    assert zcox[:-1] == ZCOX


@pytest.mark.parametrize("table", ["users", "tweets", "follows", "likes"])
def test_keys_are_unique(table: str) -> None:
    keys = [row[0] for row in tables()[table]]
    assert len(set(keys)) == len(keys)


def test_nobody_follows_twice_or_follows_oneself() -> None:
    pairs = [row[1:3] for row in tables()["follows"]]
    assert len(set(pairs)) == len(pairs)
    assert all(follower != followee for follower, followee in pairs)


def test_some_users_are_far_more_popular_than_most() -> None:
    tweets = Counter(row[1] for row in tables()["tweets"])
    first_ten = {ZCOX_ID, *range(FIRST_USER_ID, FIRST_USER_ID + 9)}
    assert sum(tweets[user] for user in first_ten) > 4 * sum(tweets[FIRST_USER_ID + n] for n in range(189, 199))


def test_children_refer_to_users_that_exist() -> None:
    rows = tables()
    users = {row[0] for row in rows["users"]}
    assert {row[1] for row in rows["tweets"]} <= users
    assert {user for row in rows["follows"] for user in row[1:3]} <= users
    assert {row[1] for row in rows["likes"]} <= users


def test_scaled_sizes_can_be_made() -> None:
    sizes = Sizes().scaled(0.001)
    assert sizes.users == 100
    assert len(tables(sizes)["follows"]) == sizes.follows > 0


def test_more_follows_than_users_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="a quarter of all possible follows"):
        Sizes(users=10, tweets=10, follows=100, likes=1)
