"""A made-up history of the demo's four tables, as their topics would carry it, and what it must come to.

Hot users (zipf-like), 2 % updates, half of them of the owner, 1 % deletes; children come before their parents and
outlive them.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import NamedTuple

import msgspec

UPDATE_SHARE = 0.02
DELETE_SHARE = 0.01
USERS_PER_EVENT = 0.05
INSERTS = {"users": 0.05, "tweets": 0.40, "follows": 0.30, "likes": 0.25}
RANK_SHIFT = 10
RANK_EXPONENT = 0.8
DRAWN_AT_ONCE = 10_000
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

Profile = tuple[str | None, ...]
Row = tuple[object, ...]

PROFILE_COLUMNS = (
    "username",
    "name",
    "description",
    "location",
    "web_page_url",
    "joined_date",
    "profile_image_url",
    "background_image_url",
)


class Event(NamedTuple):
    """One record: a table's name, key and value as capture writes them, `u` or `d`."""

    table: str
    key: bytes
    value: bytes | None
    op: bytes


@dataclass
class Table:
    """The rows that a child table has now: each row's users, the counted ones."""

    ids: list[int] = field(default_factory=list)
    owners: dict[int, tuple[int, ...]] = field(default_factory=dict)
    next_id: int = 1


class History:
    """Draws events, the same ones for the same seed, and keeps the state that they lead to."""

    def __init__(self, events: int, *, seed: int = 1) -> None:
        self.events = events
        self._random = random.Random(seed)  # noqa: S311 - a history, no secret
        self._user_count = max(round(events * USERS_PER_EVENT), 10)
        self._weights = list(accumulate((rank + RANK_SHIFT) ** -RANK_EXPONENT for rank in range(self._user_count)))
        self._drawn: list[int] = []
        self._children = {"tweets": Table(), "follows": Table(), "likes": Table()}
        self._profiles: dict[int, Profile] = {}
        self._next_user_id = 1

    def __iter__(self) -> Iterator[Event]:
        """Yield all events; afterwards `expected_rows` tells what they come to."""
        tables, weights = list(INSERTS), list(accumulate(INSERTS.values()))
        for number in range(self.events):
            kind = self._random.random()
            (table,) = self._random.choices(tables, cum_weights=weights)
            if kind < DELETE_SHARE:
                yield self._delete(table, number)
            elif kind < DELETE_SHARE + UPDATE_SHARE:
                yield self._update(table, number)
            else:
                yield self._insert(table, number)

    def expected_rows(self) -> dict[int, Row]:
        """Count anew what the view must show: all 13 columns of each user that exists, by user id."""
        tweets = Counter(owner for (owner,) in self._children["tweets"].owners.values())
        likes = Counter(owner for (owner, _) in self._children["likes"].owners.values())
        following = Counter(follower for follower, _ in self._children["follows"].owners.values())
        followers = Counter(followee for _, followee in self._children["follows"].owners.values())
        return {
            user_id: (
                user_id,
                *(_read_time(value) if name == "joined_date" else value for name, value in _named(profile)),
                tweets[user_id],
                following[user_id],
                followers[user_id],
                likes[user_id],
            )
            for user_id, profile in self._profiles.items()
        }

    def _insert(self, name: str, number: int) -> Event:
        if name == "users":
            user_id = self._next_user_id
            self._next_user_id += 1
            return self._profile_event(user_id, number)
        table = self._children[name]
        row_id = table.next_id
        table.next_id += 1
        table.ids.append(row_id)
        return self._child_event(name, row_id, (self._user(), self._user()), number)

    def _update(self, name: str, number: int) -> Event:
        if name == "users":
            return self._profile_event(self._user(), number)
        row_id = self._existing(name)
        if row_id is None:
            return self._insert(name, number)
        old = self._children[name].owners[row_id]
        moved = self._random.random() < 0.5
        return self._child_event(name, row_id, (self._user() if moved else old[0], old[-1]), number)

    def _delete(self, name: str, number: int) -> Event:
        if name == "users":
            user_id = self._user()
            self._profiles.pop(user_id, None)
            return Event(name, b'{"user_id":%d}' % user_id, None, b"d")
        row_id = self._existing(name)
        if row_id is None:
            return self._insert(name, number)
        del self._children[name].owners[row_id]
        return Event(name, b'{"%b_id":%d}' % (name[:-1].encode(), row_id), None, b"d")

    def _existing(self, name: str) -> int | None:
        """Return any row that is there; ids of deleted ones are forgotten as they are met."""
        table = self._children[name]
        while table.ids:
            place = self._random.randrange(len(table.ids))
            if table.ids[place] in table.owners:
                return table.ids[place]
            table.ids[place] = table.ids[-1]
            table.ids.pop()
        return None

    def _child_event(self, name: str, row_id: int, users: tuple[int, int], number: int) -> Event:
        first, second = users
        owners = (first,) if name == "tweets" else users
        self._children[name].owners[row_id] = owners
        time = _time(number)
        if name == "tweets":
            text = f'"user_id":{first},"text":"tweet {row_id} with about as many words as people write, and ünïcode"'
        elif name == "follows":
            text = f'"follower_id":{first},"followee_id":{second}'
        else:
            text = f'"user_id":{first},"tweet_id":{second}'
        key = f'{{"{name[:-1]}_id":{row_id}'
        value = f'{key},{text},"created_at":"{time}","updated_at":"{time}"}}'
        return Event(name, f"{key}}}".encode(), value.encode(), b"u")

    def _profile_event(self, user_id: int, number: int) -> Event:
        profile = (
            f"user{user_id}",
            f"User {number}",
            "Writes “text” with \\ and \t" if number % 3 else None,
            "Chicago, IL" if number % 2 else None,
            f"https://user{user_id}.example/",
            _time(number),
            f"https://images.example/profile/{user_id}.jpg",
            None,
        )
        self._profiles[user_id] = profile
        value = {"user_id": user_id, **dict(_named(profile)), "updated_at": _time(number)}
        return Event("users", b'{"user_id":%d}' % user_id, msgspec.json.encode(value), b"u")

    def _user(self) -> int:
        if not self._drawn:
            users = range(1, self._user_count + 1)
            self._drawn = self._random.choices(users, cum_weights=self._weights, k=DRAWN_AT_ONCE)
        return self._drawn.pop()


def rows_that_differ(expected: dict[int, Row], found: dict[int, Row]) -> int:
    """Return how many users have another row than expected, lack theirs, or have one that should not be."""
    return sum(expected.get(user_id) != found.get(user_id) for user_id in expected.keys() | found.keys())


def _named(profile: Profile) -> Iterator[tuple[str, str | None]]:
    return zip(PROFILE_COLUMNS, profile, strict=True)


def _time(number: int) -> str:
    return (BEGIN + timedelta(milliseconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _read_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
