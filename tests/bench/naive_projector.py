"""The baseline of the projector: one UPDATE a message, as a first attempt at this job is written.

It does less than the job asks for, which is to its advantage: a deleted row is passed over, an updated one counts
again, and it stores no consumer offsets.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka import Message

from tests.bench.errors import BenchError
from tests.bench.history import PROFILE_COLUMNS
from tests.bench.topics import PARTITIONS, committed_reader, is_record

COMMIT_MESSAGES = 500
READ_SECONDS = 30.0

_CREATE = f"""
DROP TABLE IF EXISTS public.naive_user_information;
CREATE TABLE public.naive_user_information (
    user_id bigint PRIMARY KEY,
    {", ".join(f"{name} text" for name in PROFILE_COLUMNS)},
    tweet_count bigint NOT NULL DEFAULT 0,
    following_count bigint NOT NULL DEFAULT 0,
    follower_count bigint NOT NULL DEFAULT 0,
    like_count bigint NOT NULL DEFAULT 0
)
"""


@dataclass(frozen=True)
class _Statements:
    """What a table's message does: an UPDATE, and an INSERT when that found fewer rows than it should."""

    update: str
    insert: str
    user_columns: tuple[str, ...]


def _count_of(column: str) -> _Statements:
    return _Statements(
        f"UPDATE public.naive_user_information SET {column} = {column} + 1 WHERE user_id = %(user_id)s",
        f"INSERT INTO public.naive_user_information (user_id, {column}) VALUES (%(user_id)s, 1)",
        ("user_id",),
    )


_STATEMENTS = {
    "users": _Statements(
        f"""
        UPDATE public.naive_user_information SET {", ".join(f"{name} = %({name})s" for name in PROFILE_COLUMNS)}
        WHERE user_id = %(user_id)s
        """,
        f"""
        INSERT INTO public.naive_user_information (user_id, {", ".join(PROFILE_COLUMNS)})
        VALUES (%(user_id)s, {", ".join(f"%({name})s" for name in PROFILE_COLUMNS)})
        """,
        ("user_id",),
    ),
    "tweets": _count_of("tweet_count"),
    "likes": _count_of("like_count"),
    # Two users' counts in one statement, so that a follow, too, is one UPDATE.
    "follows": _Statements(
        """
        UPDATE public.naive_user_information
        SET following_count = following_count + (user_id = %(follower_id)s)::int,
            follower_count = follower_count + (user_id = %(followee_id)s)::int
        WHERE user_id IN (%(follower_id)s, %(followee_id)s)
        """,
        """
        INSERT INTO public.naive_user_information (user_id, following_count, follower_count)
        VALUES (%(follower_id)s, 1, 0), (%(followee_id)s, 0, 1)
        ON CONFLICT (user_id) DO NOTHING
        """,
        ("follower_id", "followee_id"),
    ),
}


def naive_events_per_second(bootstrap_servers: str, topics: Sequence[str], url: str, *, events: int) -> float:
    """Return how many events a second the naive consumer applies, over all `events` of the topics.

    The clock starts with the first messages in hand: connecting is not counted.
    """
    with (
        psycopg.connect(url, autocommit=True) as connection,
        committed_reader(bootstrap_servers, dict.fromkeys(topics, (0,) * PARTITIONS)) as reader,
    ):
        connection.execute(_CREATE)
        applied = 0
        started_at = None
        while applied < events:
            messages = [message for message in reader.consume(COMMIT_MESSAGES, READ_SECONDS) if is_record(message)]
            if not messages:
                raise BenchError(f"the naive consumer got {applied} events of {events} in {READ_SECONDS:g} s")
            started_at = started_at or time.monotonic()
            with connection.transaction():
                for message in messages:
                    _apply(connection, message)
            applied += len(messages)
        return applied / (time.monotonic() - (started_at or 0.0))


def _apply(connection: psycopg.Connection, message: Message) -> None:
    value = message.value()
    if value is None:
        return
    statements = _STATEMENTS[(message.topic() or "").rpartition(".")[2]]
    row: Mapping[str, object] = json.loads(value)
    users = {row[column] for column in statements.user_columns}
    if connection.execute(statements.update, row).rowcount < len(users):
        connection.execute(statements.insert, row)
