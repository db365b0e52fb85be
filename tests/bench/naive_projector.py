"""The baseline of the projector: one statement a message, as a first attempt at this job is written.

It does less than the job asks for, which is to its advantage: a follow counts for the followee alone, a deleted row
is passed over, an update counts again, and consumer offsets are never stored.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import psycopg
from confluent_kafka import Message

from tests.bench.errors import BenchError
from tests.bench.topics import PARTITIONS, committed_reader, is_record

COMMIT_MESSAGES = 500
READ_SECONDS = 30.0

_CREATE = """
DROP TABLE IF EXISTS public.naive_user_information;
CREATE TABLE public.naive_user_information (
    user_id bigint PRIMARY KEY,
    username text,
    tweet_count bigint NOT NULL DEFAULT 0,
    follower_count bigint NOT NULL DEFAULT 0,
    like_count bigint NOT NULL DEFAULT 0
)
"""


class _Value(msgspec.Struct):
    """The columns that the naive consumer looks at, of all four tables."""

    user_id: int = 0
    followee_id: int = 0
    username: str | None = None


@dataclass(frozen=True)
class _Statements:
    """How a table's message is counted: an UPDATE, and an INSERT when there was nothing to update."""

    update: str
    insert: str


_COUNTED = {"tweets": "tweet_count", "follows": "follower_count", "likes": "like_count"}
_STATEMENTS = {
    table: _Statements(
        f"UPDATE public.naive_user_information SET {column} = {column} + 1 WHERE user_id = %s",
        f"INSERT INTO public.naive_user_information (user_id, {column}) VALUES (%s, 1)",
    )
    for table, column in _COUNTED.items()
}
_UPDATE_USER = "UPDATE public.naive_user_information SET username = %s WHERE user_id = %s"
_INSERT_USER = "INSERT INTO public.naive_user_information (username, user_id) VALUES (%s, %s)"


def naive_events_per_second(bootstrap_servers: str, topics: Sequence[str], url: str, *, events: int) -> float:
    """Return how many events a second the naive consumer applies, over the first `events` of the topics.

    The clock starts with the first messages in hand: connecting is not counted.
    """
    begins: dict[str, Sequence[int]] = dict.fromkeys(topics, (0,) * PARTITIONS)
    with (
        psycopg.connect(url, autocommit=True) as connection,
        committed_reader(bootstrap_servers, begins) as reader,
    ):
        connection.execute(_CREATE)
        applied = 0
        started = None
        while applied < events:
            messages = [message for message in reader.consume(COMMIT_MESSAGES, READ_SECONDS) if is_record(message)]
            if not messages:
                raise BenchError(f"the naive consumer got {applied} events of {events} in {READ_SECONDS:g} s")
            started = started or time.monotonic()
            with connection.transaction():
                for message in messages:
                    _apply(connection, message)
            applied += len(messages)
        return applied / (time.monotonic() - (started or 0.0))


def _apply(connection: psycopg.Connection, message: Message) -> None:
    raw = message.value()
    if raw is None:
        return
    table = (message.topic() or "").rpartition(".")[2]
    value = msgspec.json.decode(raw, type=_Value)
    if table == "users":
        if connection.execute(_UPDATE_USER, (value.username, value.user_id)).rowcount == 0:
            connection.execute(_INSERT_USER, (value.username, value.user_id))
        return
    user_id = value.followee_id if table == "follows" else value.user_id
    statements = _STATEMENTS[table]
    if connection.execute(statements.update, (user_id,)).rowcount == 0:
        connection.execute(statements.insert, (user_id,))
