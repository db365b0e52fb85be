"""Records that cannot be applied: none is skipped in silence, and none holds up the others (P3, P11)."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from projector.dead_letters import Choice, DeadLetter, read_letters
from projector.errors import BadRecord, ProjectorError, TooManyDeadLetters
from tests.integration.changelog import Changelog, compact, user
from tests.integration.projector_steps import (
    Steps,
    as_of,
    counts,
    physical,
    projector_settings,
    projector_steps,
    shown,
)

pytestmark = pytest.mark.newest_postgres

LENIENT = {"VIEWKEEPER_PROJECTOR_ON_BAD_RECORD": "dead_letter", "VIEWKEEPER_PROJECTOR_DEAD_LETTER_LIMIT": "20"}
# It cannot be compressed into a page of an index.
LONG = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(60))

# Table, key, value, a part of the reason.
BAD: Sequence[tuple[str, bytes | None, object, str]] = [
    ("tweets", b'{"tweet_id":101}', b"{", "truncated"),
    ("tweets", b'{"tweet_id":102}', {"tweet_id": 102}, "missing required field `user_id`"),
    ("tweets", b'{"tweet_id":103}', {"user_id": "1"}, "Expected `int | null`, got `str`"),
    ("tweets", b"\xff", {"user_id": 1}, "utf-8"),
    ("tweets", b'"a\0b"', None, "NUL"),
    ("tweets", None, {"user_id": 1}, "it has no key"),
    ("tweets", None, None, "it has no key"),
    ("tweets", b'{"tweet_id":"' + LONG.encode() + b'"}', {"user_id": 1}, "exceeds btree"),
    ("users", b'{"id":101}', user(101), "unknown field `id`"),
    ("users", b'{"user_id":102}', user(102, joined_date="yesterday"), "joined_date"),
    ("users", b'{"user_id":103}', user(103, joined_date="2026-13-01T00:00:00.000000Z"), "out of range"),
    ("users", b'{"user_id":104}', user(104, username="a\0b"), "NUL"),
]


def put_bad(changelog: Changelog, table: str, key: bytes | None, value: object) -> None:
    raw = value if isinstance(value, bytes) or value is None else compact(value)
    changelog.put_raw(table, key, raw)


def bad_user(changelog: Changelog, user_id: int) -> None:
    """Put a row that Postgres refuses."""
    changelog.put("users", user(user_id, joined_date="2026-13-01T00:00:00.000000Z"))


def take_any_key(changelog: Changelog) -> None:
    """Have Kafka take records without a key, which it refuses where it compacts."""
    changelog.configure("tweets", "cleanup.policy", "delete")


def letters(view_url: str) -> list[DeadLetter]:
    with psycopg.connect(view_url) as session:
        return read_letters(session, Choice())


@pytest.fixture
def lenient(changelog: Changelog, settings_env: dict[str, str]) -> Iterator[Steps]:  # noqa: ARG001 - topics first
    with projector_steps(projector_settings({**settings_env, **LENIENT})) as steps:
        yield steps


def test_each_kind_becomes_a_letter_and_all_else_is_applied(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    take_any_key(changelog)
    with changelog.transaction():
        changelog.put("users", user(1))
        for number, (table, key, value, _) in enumerate(BAD):
            put_bad(changelog, table, key, value)
            changelog.tweet(number, 1)
    lenient.catch_up()
    assert counts(shown(view_url)[1]) == (len(BAD), 0, 0, 0)
    found = {(letter.topic, letter.key, letter.value): letter for letter in letters(view_url)}
    assert len(found) == len(BAD)
    for table, key, value, reason in BAD:
        raw = value if isinstance(value, bytes) or value is None else compact(value)
        letter = found[changelog.topic(table), key, raw]
        assert reason in letter.reason
        assert letter.timestamp_ms
    assert lenient.describe().keys() >= {letter.topic for letter in found.values()}


def test_each_kind_stops_it_by_name_where_no_letters_are_allowed(
    steps: Steps, changelog: Changelog, view_url: str
) -> None:
    take_any_key(changelog)
    for table, key, value, reason in BAD:
        with changelog.transaction():
            changelog.tweet(1, 1)
            put_bad(changelog, table, key, value)
        with pytest.raises(BadRecord) as failure:
            steps.catch_up()
        where = rf"topic {changelog.topic(table)} partition \d offset \d+ key "
        assert failure.match(where)
        assert repr(key) in str(failure.value)
        assert reason in str(failure.value)
        skip(steps, view_url)
    assert physical(view_url) == {}
    assert letters(view_url) == []


def skip(steps: Steps, view_url: str) -> None:
    """Go on behind all that is there, as nobody should."""
    with psycopg.connect(view_url) as session:
        for topic in steps.describe().values():
            session.cursor().executemany(
                "UPDATE projector.partition_offset SET next_offset = %s WHERE topic = %s AND partition = %s",
                [(end, topic.name, partition) for partition, end in enumerate(topic.high)],
            )
    steps.consumer.rewind()


def test_what_is_left_does_not_hang_on_where_batches_are_cut(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    """Of each key the newest good record is applied; a bad one that is newer still is its letter."""
    take_any_key(changelog)
    expected, dead = write_history(changelog)
    for max_records in (2, 7, 10_000):
        start_again(lenient, view_url)
        lenient.catch_up(max_records)
        rows = {key: (row["username"], *counts(row)[:1]) for key, row in shown(view_url).items()}
        assert rows == expected, max_records
        found = {(letter.topic, letter.key): letter.value for letter in letters(view_url) if letter.key}
        assert found == dead, max_records
        assert sum(letter.key is None for letter in letters(view_url)) == 3


def write_history(changelog: Changelog) -> tuple[dict[int, tuple[Any, ...]], dict[tuple[str, bytes], bytes | None]]:
    """Write good and bad records of few keys; return the rows that they make, and the letters."""
    choose = random.Random(3)  # noqa: S311 - a history that can be repeated
    users: dict[int, str] = {}
    owners: dict[int, int] = {}
    dead: dict[tuple[str, bytes], bytes | None] = {}
    with changelog.transaction():
        for number in range(40):
            key, kind = choose.randint(1, 4), choose.choice(["good", "good", "gone", "unreadable", "refused"])
            table, name = choose.choice([("users", "user_id"), ("tweets", "tweet_id")])
            raw_key = compact({name: key})
            if kind == "good" and table == "users":
                users[key] = f"name {number}"
                changelog.put("users", user(key, users[key]))
            elif kind == "good":
                owners[key] = choose.randint(1, 4)
                changelog.tweet(key, owners[key])
            elif kind == "gone":
                (users if table == "users" else owners).pop(key, None)
                changelog.remove(table, key)
            else:
                bad = b"{" if kind == "unreadable" or table == "tweets" else _refused(key, number)
                changelog.put_raw(table, raw_key, bad)
                dead[changelog.topic(table), raw_key] = bad
                continue
            dead.pop((changelog.topic(table), raw_key), None)
        for _ in range(3):
            changelog.put_raw("tweets", None, b"{}")
    assert dead
    return {key: (name, list(owners.values()).count(key)) for key, name in users.items()}, dead


def _refused(key: int, number: int) -> bytes:
    return compact(user(key, f"bad {number}", joined_date="2026-13-01T00:00:00.000000Z"))


def start_again(steps: Steps, view_url: str) -> None:
    with psycopg.connect(view_url) as session:
        session.execute("TRUNCATE projector.user_information_v1, projector.user_information_v1_public_tweets")
        session.execute("TRUNCATE projector.dead_letter")
        session.execute("UPDATE projector.partition_offset SET next_offset = 0")
    steps.consumer.rewind()


def test_a_newer_record_takes_a_letter_away_and_the_view_is_flagged_until_then(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    take_any_key(changelog)
    with changelog.transaction():
        for user_id in (1, 2, 3):
            bad_user(changelog, user_id)
        changelog.put_raw("tweets", None, b"{}")
        changelog.watermark()
    lenient.catch_up()
    assert as_of(view_url)[1] == ["dead_letters"]
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.remove("users", 2)
        bad_user(changelog, 3)
        changelog.put("users", user(4))
    (before,) = (letter for letter in letters(view_url) if letter.key == b'{"user_id":3}')
    lenient.catch_up()
    without_key, third = letters(view_url)
    assert (without_key.key, third.key) == (None, b'{"user_id":3}')
    assert third.offset > before.offset
    with changelog.transaction():
        changelog.remove("users", 3)
    lenient.catch_up()
    assert [letter.key for letter in letters(view_url)] == [None]
    assert shown(view_url).keys() == {1, 4}
    with psycopg.connect(view_url) as session:
        session.execute("DELETE FROM projector.dead_letter")
    assert as_of(view_url)[1] == []


def test_tables_that_were_altered_stop_it_and_make_no_letters(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    with psycopg.connect(view_url) as session:
        session.execute("DROP VIEW user_information")
        session.execute("ALTER TABLE projector.user_information_v1 ALTER username TYPE varchar(3)")
    with changelog.transaction():
        changelog.put("users", user(1, "bertram"))
    with pytest.raises(ProjectorError, match=r"not as they were made: projector.user_information_v1.username text\. "):
        lenient.catch_up()
    assert letters(view_url) == []


def test_so_many_that_they_are_no_strays_stop_it(lenient: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        for number in range(20):
            changelog.put_raw("tweets", compact({"tweet_id": number}), b"\0\0\0\0\x01")
    lenient.catch_up()
    assert len(letters(view_url)) == 20
    with changelog.transaction():
        bad_user(changelog, 1)
    with pytest.raises(TooManyDeadLetters, match=r"would have 21 dead letters or more(.|\n)*offset \d+ key .*user_id"):
        lenient.catch_up()
    assert len(letters(view_url)) == 20
