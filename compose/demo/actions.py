"""What users of the demo's service do: each action changes a few rows through a connection and returns how many."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

import psycopg
from psycopg import sql

from compose.demo.population import PROBE_ID, PROFILE_COLUMNS, ZCOX_ID, new_profile
from compose.demo.words import PLACES, sentence

KNOWN_ROWS = 500_000
"""Rows of each table that a workload picks from."""
ZCOX_SHARE = 0.01
"""How much of all tweets, likes and new followers is user zcox's."""


class Pool:
    """Ids that threads pick from. One may be gone from its table by the time it is used, as in real life."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids = list(ids)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, row_id: int) -> None:
        """Make an id known."""
        with self._lock:
            self._ids.append(row_id)

    def pick(self, random: Random) -> int:
        """Return any id, each as likely; 0, which no row has, when there is none."""
        with self._lock:
            return random.choice(self._ids) if self._ids else 0

    def pick_popular(self, random: Random) -> int:
        """Return an id, the more likely the longer it is known; 0 when there is none."""
        with self._lock:
            return self._ids[int(len(self._ids) * random.random() ** 3)] if self._ids else 0

    def take(self, random: Random) -> int:
        """Return any id and forget it; 0 when there is none."""
        with self._lock:
            if not self._ids:
                return 0
            place = random.randrange(len(self._ids))
            self._ids[place], self._ids[-1] = self._ids[-1], self._ids[place]
            return self._ids.pop()


@dataclass(frozen=True, slots=True)
class Known:
    """One table's ids: those there are, and those to come."""

    ids: Pool
    next_ids: Iterator[int]

    def new_id(self) -> int:
        """Return an id that no row has."""
        return next(self.next_ids)


@dataclass(frozen=True, slots=True)
class World:
    """What all writers know of the tables."""

    users: Known
    tweets: Known
    follows: Known
    likes: Known


Action = Callable[[psycopg.Connection, World, Random], int]


def read_world(connection: psycopg.Connection) -> World:
    """Read which rows there are; of users, only those that the workload may change and delete."""
    return World(
        users=_known(connection, "users", "user_id", but=(PROBE_ID, ZCOX_ID)),
        tweets=_known(connection, "tweets", "tweet_id"),
        follows=_known(connection, "follows", "follow_id"),
        likes=_known(connection, "likes", "like_id"),
    )


def _known(connection: psycopg.Connection, table: str, key: str, *, but: tuple[int, ...] = ()) -> Known:
    names = {"table": sql.Identifier(table), "key": sql.Identifier(key), "but": list(but), "limit": KNOWN_ROWS}
    others = sql.SQL("FROM public.{table} WHERE {key} <> ALL ({but}::bigint[])").format(**names)
    some = sql.SQL("SELECT {key} {others} ORDER BY {key} LIMIT {limit}").format(others=others, **names)
    next_id = sql.SQL("SELECT coalesce(max({key}), 0) + 1 {others}").format(others=others, **names)
    ids = [row_id for (row_id,) in connection.execute(some)]
    ((first_new_id,),) = connection.execute(next_id)
    return Known(Pool(ids), count(first_new_id))


def draw_actions(random: Random, number: int) -> list[Action]:
    """Draw actions in the proportions of a service where most people read, many write and few leave."""
    return random.choices(list(ACTIONS), weights=list(ACTIONS.values()), k=number)


def tweet(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Write a tweet."""
    return _insert_tweet(connection, world, random, _active_user(world, random))


def edit_tweet(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Correct a tweet's text."""
    return connection.execute(
        "UPDATE public.tweets SET text = %s, updated_at = now() WHERE tweet_id = %s",
        (sentence(random), world.tweets.ids.pick(random)),
    ).rowcount


def move_tweet(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Give a tweet to another user, or, now and then, to nobody."""
    new_owner = world.users.ids.pick(random) if random.random() < 0.9 else None
    return connection.execute(
        "UPDATE public.tweets SET user_id = %s, updated_at = now() WHERE tweet_id = %s",
        (new_owner, world.tweets.ids.pick(random)),
    ).rowcount


def delete_tweet(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Delete a tweet; its likes stay."""
    return connection.execute(
        "DELETE FROM public.tweets WHERE tweet_id = %s", (world.tweets.ids.take(random),)
    ).rowcount


def follow(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Follow a user."""
    follow_id = world.follows.new_id()
    changes = connection.execute(
        "INSERT INTO public.follows (follow_id, follower_id, followee_id, created_at) VALUES (%s, %s, %s, now())",
        (follow_id, world.users.ids.pick(random), _active_user(world, random)),
    ).rowcount
    world.follows.ids.add(follow_id)
    return changes


def move_follow(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Let a follow point at another user, as when an account is merged into another."""
    return connection.execute(
        "UPDATE public.follows SET followee_id = %s, updated_at = now() WHERE follow_id = %s",
        (world.users.ids.pick(random), world.follows.ids.pick(random)),
    ).rowcount


def unfollow(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Follow a user no more."""
    return connection.execute(
        "DELETE FROM public.follows WHERE follow_id = %s", (world.follows.ids.take(random),)
    ).rowcount


def like(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Like a tweet."""
    like_id = world.likes.new_id()
    changes = connection.execute(
        "INSERT INTO public.likes (like_id, user_id, tweet_id, created_at) VALUES (%s, %s, %s, now())",
        (like_id, _active_user(world, random), world.tweets.ids.pick(random)),
    ).rowcount
    world.likes.ids.add(like_id)
    return changes


def unlike(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Take a like back."""
    return connection.execute("DELETE FROM public.likes WHERE like_id = %s", (world.likes.ids.take(random),)).rowcount


def edit_profile(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Write a new description and move to another place, or to none."""
    place = random.choice(PLACES) if random.random() < 0.8 else None
    return connection.execute(
        "UPDATE public.users SET description = %s, location = %s, updated_at = now() WHERE user_id = %s",
        (sentence(random), place, world.users.ids.pick(random)),
    ).rowcount


def sign_up(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Become a user; for some the first tweet is stored before the user is."""
    user_id = world.users.new_id()
    early = _insert_tweet(connection, world, random, user_id) if random.random() < 0.3 else 0
    placeholders = ", ".join(["%s"] * (PROFILE_COLUMNS.count(",") + 1))
    changes = connection.execute(
        f"INSERT INTO public.users ({PROFILE_COLUMNS}) VALUES ({placeholders})",  # noqa: S608 - constants alone
        new_profile(user_id, random),
    ).rowcount
    world.users.ids.add(user_id)
    return early + changes


def leave(connection: psycopg.Connection, world: World, random: Random) -> int:
    """Delete an account; half of them leave their tweets, follows and likes behind."""
    user_id = world.users.ids.take(random)
    changes = 0
    if random.random() < 0.5:
        for statement in (
            "DELETE FROM public.tweets WHERE user_id = %s",
            "DELETE FROM public.likes WHERE user_id = %s",
            "DELETE FROM public.follows WHERE follower_id = %s",
        ):
            changes += connection.execute(statement, (user_id,)).rowcount
    return changes + connection.execute("DELETE FROM public.users WHERE user_id = %s", (user_id,)).rowcount


# Weights: a few in a hundred are edits, unfollows and deletes; one in 500 leaves.
ACTIONS: dict[Action, float] = {
    tweet: 32.0,
    like: 26.0,
    follow: 18.0,
    unfollow: 6.0,
    unlike: 4.0,
    edit_tweet: 4.0,
    edit_profile: 3.8,
    delete_tweet: 3.0,
    sign_up: 1.5,
    move_tweet: 1.0,
    move_follow: 0.5,
    leave: 0.2,
}


def _insert_tweet(connection: psycopg.Connection, world: World, random: Random, user_id: int) -> int:
    tweet_id = world.tweets.new_id()
    changes = connection.execute(
        "INSERT INTO public.tweets (tweet_id, user_id, text, created_at) VALUES (%s, %s, %s, now())",
        (tweet_id, user_id, sentence(random)),
    ).rowcount
    world.tweets.ids.add(tweet_id)
    return changes


def _active_user(world: World, random: Random) -> int:
    return ZCOX_ID if random.random() < ZCOX_SHARE else world.users.ids.pick_popular(random)
