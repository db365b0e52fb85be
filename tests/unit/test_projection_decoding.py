"""From records to typed changes: what is read, and what is refused by name."""

import json
import re

import pytest
from confluent_kafka import Message

from cdc.decoding import JsonDecoding
from cdc.wire import TableName
from projector.changes import Changes
from projector.decoding import Decoder
from projector.definition import Column, ColumnType, Count, Resource, Row, View
from projector.errors import BadRecord
from views.user_information import user_information

USER = {
    "user_id": 1,
    "username": "ann",
    "name": None,
    "description": None,
    "location": None,
    "web_page_url": None,
    "joined_date": "2008-01-22T15:14:44.000000Z",
    "profile_image_url": None,
    "background_image_url": None,
    "updated_at": "2026-01-01T00:00:00.000000Z",
}
TYPED = View(
    name="typed",
    key="id",
    row=Row(
        "public.things",
        (
            Column("id", ColumnType.UUID),
            Column("price", ColumnType.NUMERIC),
            Column("sold", ColumnType.BOOLEAN),
            Column("pieces", ColumnType.INTEGER),
            Column("at", ColumnType.TIMESTAMPTZ),
        ),
    ),
    measures=(Count("parts", of="public.parts", by="thing_id"),),
    resource=Resource("/things/{id}", ()),
)
ID = "0190163d-8694-739b-aea5-966c26f8ad91"
THING = {"id": ID, "price": "1.50", "sold": True, "pieces": 3, "at": "infinity"}


def decode(view: View, table: str, key: bytes | None, value: object) -> Changes:
    raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    record = Message(topic=f"p.public.{table}", partition=2, offset=41, key=key, value=raw)
    return Decoder(view, "p", JsonDecoding()).decode({f"p.public.{table}": {key: record}})  # type: ignore[dict-item]  # as delivered


def test_only_the_needed_columns_are_read() -> None:
    changes = decode(user_information, "tweets", b'{"tweet_id":5}', {"user_id": 1, "text": {"any": ["thing"]}})
    assert changes.counted == {TableName("public", "tweets"): {'{"tweet_id":5}': (1,)}}
    changes = decode(user_information, "users", b'{"user_id":1}', USER)
    assert changes.rows == {1: ("ann", None, None, None, None, "2008-01-22T15:14:44.000000Z", None, None)}


def test_tombstone_is_none() -> None:
    assert decode(user_information, "users", b'{"user_id":1}', None).rows == {1: None}
    counted = decode(user_information, "tweets", b'{"tweet_id":5}', None).counted
    assert counted == {TableName("public", "tweets"): {'{"tweet_id":5}': None}}


def test_topics_of_others_are_passed_over() -> None:
    assert not decode(user_information, "other", b"?", b"?")


def test_numbers_and_times_stay_as_they_were_written() -> None:
    changes = decode(TYPED, "things", json.dumps({"id": ID}).encode(), THING)
    assert changes.rows == {ID: ("1.50", True, 3, "infinity")}


@pytest.mark.parametrize(
    "at",
    [
        "-infinity",
        "0044-03-15T00:00:00.000000Z BC",
        "12026-01-01T00:00:00.000000Z",
        "2026-01-01T00:00:00Z",
        "0044-03-15 00:00:00+00 BC",
        "12026-01-01 00:00:00.5+00",
        "0001-12-31 19:03:58-04:56:02 BC",
    ],
)
def test_times_that_postgres_knows_are_read(at: str) -> None:
    changes = decode(TYPED, "things", json.dumps({"id": ID}).encode(), {**THING, "at": at})
    assert changes.rows[ID] == ("1.50", True, 3, at)


@pytest.mark.parametrize(
    ("view", "table", "key", "value", "reason"),
    [
        (user_information, "tweets", b'{"tweet_id":1}', b'{"tweet_id":1}', "missing required field `user_id`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":"1"}', "Expected `int | null`, got `str`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":1.5}', "got `float`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":9223372036854775808}', "user_id"),
        (user_information, "tweets", b'{"tweet_id":1}', b"null", "got `null`"),
        (user_information, "tweets", b'{"tweet_id":1}', b"{", "truncated"),
        (user_information, "tweets", b"\xff", b'{"user_id":1}', "utf-8"),
        (user_information, "tweets", b'"a\0b"', b'{"user_id":1}', "NUL"),
        (user_information, "tweets", None, b'{"user_id":1}', "it has no key"),
        (user_information, "users", b'{"id":1}', USER, "unknown field `id`"),
        (user_information, "users", b'{"user_id":1,"x":1}', USER, "unknown field `x`"),
        (user_information, "users", b'{"user_id":null}', USER, "Expected `int`, got `null`"),
        (user_information, "users", b'{"user_id":1}', {**USER, "username": "a\0b"}, "NUL"),
        (user_information, "users", b'{"user_id":1}', {**USER, "joined_date": "yesterday"}, "joined_date"),
        (user_information, "users", b'{"user_id":1}', {**USER, "joined_date": 1200000000}, "joined_date"),
        (TYPED, "things", json.dumps({"id": ID.upper()}).encode(), THING, "id"),
        (TYPED, "things", json.dumps({"id": ID}).encode(), {**THING, "price": 1.5}, "price"),
        (TYPED, "things", json.dumps({"id": ID}).encode(), {**THING, "price": "cheap"}, "price"),
        (TYPED, "things", json.dumps({"id": ID}).encode(), {**THING, "pieces": 2**31}, "pieces"),
        (TYPED, "parts", b'{"part_id":1}', {"thing_id": "7"}, "thing_id"),
    ],
)
def test_what_breaks_the_definition_is_refused_by_name(
    view: View, table: str, key: bytes | None, value: object, reason: str
) -> None:
    with pytest.raises(BadRecord, match=re.escape(reason)) as failure:
        decode(view, table, key, value)
    assert f"topic p.public.{table} partition 2 offset 41 key {key!r}" in str(failure.value)
