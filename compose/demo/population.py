"""The start population of the demo and the benchmarks: users, tweets, follows and likes, the same for the same seed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random

import psycopg

from compose.demo.words import NAMES, PLACES, sentence

ZCOX_ID = 12542832
"""The user that the documentation shows."""
PROBE_ID = 1
"""The user that the demo's own measuring adds and changes."""

ZCOX = (
    ZCOX_ID,
    "zcox",
    "Zach Cox",
    "Engineering @Uptake",
    "Chicago, IL",
    "https://theza.ch/",
    datetime(2008, 1, 22, 15, 14, 44, tzinfo=UTC),
    f"https://images.example/profile/{ZCOX_ID}.jpg",
    f"https://images.example/background/{ZCOX_ID}.jpg",
)

PROFILE_COLUMNS = (
    "user_id, username, name, description, location, web_page_url, joined_date, profile_image_url, background_image_url"
)
FIRST_USER_ID = 1_000
BEGIN = datetime(2008, 2, 1, tzinfo=UTC)
DAYS = 4_500
# Popularity falls with the rank as 1 / (rank + shift) ** exponent: zipf-like, with no user above about 1 % of all.
RANK_SHIFT = 10
RANK_EXPONENT = 0.8
PROGRESS_ROWS = 2_000

Record = tuple[object, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows each table starts with. Raises ValueError where there are too few users for so many follows."""

    users: int = 2_000
    tweets: int = 50_000
    follows: int = 100_000
    likes: int = 60_000

    def __post_init__(self) -> None:
        # Pairs are drawn until enough distinct ones are found, which takes for ever near the limit.
        if (
            self.users < 1
            or self.follows * 4 > self.users * (self.users - 1)
            or self.likes > self.users * self.tweets / 4
        ):
            raise ValueError(f"{self}: at most a quarter of all possible follows and likes can be made")

    @property
    def total(self) -> int:
        """Rows of all four tables together."""
        return self.users + self.tweets + self.follows + self.likes

    def scaled(self, scale: float) -> "Sizes":
        """Return sizes of `scale` times as many tweets, follows and likes, and at least 100 users."""
        users = max(100, round(self.users * scale))
        tweets, follows, likes = (round(count * scale) for count in (self.tweets, self.follows, self.likes))
        return Sizes(users, tweets, min(follows, users * (users - 1) // 4), min(likes, users * tweets // 4))


def load_population(
    connection: psycopg.Connection,
    sizes: Sizes,
    *,
    seed: int = 1,
    progress: Callable[[str, int], object] | None = None,
) -> None:
    """COPY a population into the demo's empty tables, in one transaction.

    `progress` is told each table's name with the number of rows just written.
    """
    with connection.transaction(), connection.cursor() as cursor:
        for table, columns, rows in population(sizes, seed=seed):
            with cursor.copy(f"COPY public.{table} ({columns}) FROM STDIN") as copy:
                count = 0
                for count, row in enumerate(rows, start=1):
                    copy.write_row(row)
                    if progress and count % PROGRESS_ROWS == 0:
                        progress(table, PROGRESS_ROWS)
                if progress:
                    progress(table, count % PROGRESS_ROWS)
    for table in ("users", "tweets", "follows", "likes"):
        connection.execute(f"ANALYZE public.{table}")


def population(sizes: Sizes, *, seed: int = 1) -> Iterator[tuple[str, str, Iterable[Record]]]:
    """Yield each table's name, its columns and its rows; the same for the same sizes and seed.

    One random sequence runs through all of them: read each table's rows to their end before the next.
    """
    random = Random(seed)  # noqa: S311 - a population, no secret
    user_ids = [ZCOX_ID, *range(FIRST_USER_ID, FIRST_USER_ID + sizes.users - 1)]
    popular = _Ranked(user_ids, random)
    tweets = _tweets(sizes.tweets, popular, random)
    profiles = (ZCOX, *(new_profile(user_id, random) for user_id in user_ids[1:]))
    yield "users", f"{PROFILE_COLUMNS}, updated_at", ((*profile, profile[6]) for profile in profiles)
    yield "tweets", "tweet_id, user_id, text, created_at, updated_at", tweets
    follows = _distinct_pairs(sizes.follows, lambda n: zip(random.choices(user_ids, k=n), popular.draw(n), strict=True))
    yield "follows", "follow_id, follower_id, followee_id, created_at, updated_at", _timed(follows, random)
    tweet_ids = range(1, sizes.tweets + 1)
    likes = _distinct_pairs(sizes.likes, lambda n: zip(popular.draw(n), random.choices(tweet_ids, k=n), strict=True))
    yield "likes", "like_id, user_id, tweet_id, created_at, updated_at", _timed(likes, random)


def new_profile(user_id: int, random: Random) -> Record:
    """Make up a user's row: all columns but updated_at."""
    first, last = random.choice(NAMES), random.choice(NAMES)
    username = f"{first.lower()}{user_id}"
    return (
        user_id,
        username,
        f"{first} {last}",
        sentence(random) if random.random() < 0.8 else None,
        random.choice(PLACES) if random.random() < 0.7 else None,
        f"https://{username}.example/" if random.random() < 0.5 else None,
        _moment(random),
        f"https://images.example/profile/{user_id}.jpg",
        f"https://images.example/background/{user_id}.jpg" if random.random() < 0.6 else None,
    )


class _Ranked:
    """Ids drawn by popularity: the first is the most popular."""

    def __init__(self, ids: Sequence[int], random: Random) -> None:
        self._ids = ids
        self._random = random
        self._cumulated = list(accumulate((rank + RANK_SHIFT) ** -RANK_EXPONENT for rank in range(len(ids))))

    def draw(self, count: int) -> list[int]:
        return self._random.choices(self._ids, cum_weights=self._cumulated, k=count)


def _tweets(count: int, popular: _Ranked, random: Random) -> Iterator[Record]:
    for tweet_id, user_id in enumerate(popular.draw(count), start=1):
        created_at = _moment(random)
        yield tweet_id, user_id, sentence(random), created_at, created_at


def _distinct_pairs(count: int, draw: Callable[[int], Iterable[Pair]]) -> list[Pair]:
    """Draw until `count` pairs of two different ids are found, each once."""
    found: dict[Pair, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(pair for pair in draw(count - len(found)) if pair[0] != pair[1]))
    return list(found)


def _timed(pairs: Sequence[Pair], random: Random) -> Iterator[Record]:
    for row_id, pair in enumerate(pairs, start=1):
        created_at = _moment(random)
        yield row_id, *pair, created_at, created_at


def _moment(random: Random) -> datetime:
    return BEGIN + timedelta(seconds=random.randrange(DAYS * 86_400))
