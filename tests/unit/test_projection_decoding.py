"""From records to typed changes: what is read, and what is refused by name."""

import json

import pytest
from confluent_kafka import Message

from cdc.decoding import JsonDecoding
from cdc.wire import TableName
from projector.changes import Changes
from projector.decoding import Decoder
from projector.definition import Column, ColumnType, Count, Resource, Row, View
from projector.lenient import bad_record
from projector.registry import ViewVersion
from views.user_information import user_information

USERS, THINGS = TableName("public", "users"), TableName("public", "things")
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
SHOPS, PROFILES = (TableName("public", name) for name in ("shops", "profiles"))
OWNED = View(
    name="owned",
    key=("tenant_id", "place"),
    row=(
        Row("shops", (Column("place", ColumnType.TEXT), Column("tenant_id", ColumnType.INTEGER))),
        Row("profiles", (Column("bio", ColumnType.TEXT),), key=("tenant", "shop")),
    ),
    measures=(
        Count("orders", of="orders", by=("tenant_id", "place")),
        Count("good", of="orders", by=("tenant_id", "place"), where="ok", columns=(Column("ok", ColumnType.BOOLEAN),)),
    ),
    resource=Resource("/shops/{tenant}/{place}", ()),
)
ID = "0190163d-8694-739b-aea5-966c26f8ad91"
# As Postgres takes it in a json column.
NESTED = b'{"user_id":1,"settings":' + 5_000 * b"[" + 5_000 * b"]" + b"}"
THING = {"id": ID, "price": "1.50", "sold": True, "pieces": 3, "at": "infinity"}


def decode(view: View, table: str, key: bytes | None, value: object) -> Changes:
    raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    record = Message(topic=f"p.public.{table}", partition=2, offset=41, key=key, value=raw)
    return Decoder(view, "p", JsonDecoding()).decode({f"p.public.{table}": {key: record}})  # type: ignore[dict-item]  # as delivered


def test_only_the_needed_columns_are_read() -> None:
    changes = decode(user_information, "tweets", b'{"tweet_id":5}', {"user_id": 1, "text": {"any": ["thing"]}})
    assert changes.counted == {TableName("public", "tweets"): {'{"tweet_id":5}': (1,)}}
    changes = decode(user_information, "users", b'{"user_id":1}', USER)
    assert changes.rows[USERS] == {1: ("ann", None, None, None, None, "2008-01-22T15:14:44.000000Z", None, None)}


def test_tombstone_is_none() -> None:
    assert decode(user_information, "users", b'{"user_id":1}', None).rows == {USERS: {1: None}}
    counted = decode(user_information, "tweets", b'{"tweet_id":5}', None).counted
    assert counted == {TableName("public", "tweets"): {'{"tweet_id":5}': None}}


def test_topics_of_others_are_passed_over() -> None:
    assert not decode(user_information, "other", b"?", b"?")


def test_a_key_of_several_columns_is_a_tuple_in_the_views_order() -> None:
    shop = {"place": "a/b", "tenant_id": 1}
    assert decode(OWNED, "shops", json.dumps(shop).encode(), shop).rows == {SHOPS: {(1, "a/b"): ()}}
    key = {"shop": "a/b", "tenant": 1}
    changes = decode(OWNED, "profiles", json.dumps(key).encode(), {**key, "bio": "x"})
    assert changes.rows == {PROFILES: {(1, "a/b"): ("x",)}}


@pytest.mark.parametrize(
    ("row", "groups"),
    [
        ({"tenant_id": 1, "place": "a", "ok": True}, (1, "a", 1, "a")),
        ({"tenant_id": 1, "place": "a", "ok": False}, (1, "a", None, None)),
        ({"tenant_id": 1, "place": None, "ok": True}, (1, None, None, None)),
    ],
)
def test_a_row_counts_under_a_filter_with_its_whole_key_or_not_at_all(
    row: dict[str, object], groups: tuple[object, ...]
) -> None:
    changes = decode(OWNED, "orders", b'{"order_id":1}', row)
    assert changes.counted == {TableName("public", "orders"): {'{"order_id":1}': groups}}


def test_numbers_and_times_stay_as_they_were_written() -> None:
    changes = decode(TYPED, "things", json.dumps({"id": ID}).encode(), THING)
    assert changes.rows[THINGS] == {ID: ("1.50", True, 3, "infinity")}


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
    assert changes.rows[THINGS][ID] == ("1.50", True, 3, at)


@pytest.mark.parametrize(
    ("view", "table", "key", "value", "reason"),
    [
        (user_information, "tweets", b'{"tweet_id":1}', b'{"tweet_id":1}', "missing required field `user_id`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":"1"}', "Expected `int | null`, got `str`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":1.5}', "got `float`"),
        (user_information, "tweets", b'{"tweet_id":1}', b'{"user_id":9223372036854775808}', "user_id"),
        (user_information, "tweets", b'{"tweet_id":1}', b"null", "got `null`"),
        (user_information, "tweets", b'{"tweet_id":1}', b"{", "truncated"),
        (user_information, "tweets", b'{"tweet_id":1}', NESTED, "recursion depth"),
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
        (OWNED, "shops", b'{"tenant_id":1}', {"place": "a", "tenant_id": 1}, "missing required field `place`"),
        (OWNED, "shops", b'{"tenant_id":"1","place":"a"}', {"place": "a", "tenant_id": 1}, "tenant_id"),
        (OWNED, "profiles", b'{"tenant_id":1,"place":"a"}', {"bio": None}, "unknown field `tenant_id`"),
    ],
)
def test_what_breaks_the_definition_is_refused_by_name(
    view: View, table: str, key: bytes | None, value: object, reason: str
) -> None:
    changes = decode(view, table, key, value)
    assert not changes
    (refused,) = changes.refused
    assert (refused.record.key(), reason in refused.reason) == (key, True), refused.reason
    assert f"topic p.public.{table} partition 2 offset 41 key {key!r}" in str(bad_record(refused, ViewVersion(view, 1)))


def test_what_can_be_read_is_read_beside_what_cannot() -> None:
    topic = "p.public.tweets"
    records = {
        key: Message(topic=topic, partition=2, offset=offset, key=key, value=value)
        for offset, (key, value) in enumerate([(b"1", b'{"user_id":7}'), (b"2", b"{"), (b"3", None)])
    }
    changes = Decoder(user_information, "p", JsonDecoding()).decode({topic: records}, limit=1)  # type: ignore[dict-item]  # as delivered
    assert changes.counted == {TableName("public", "tweets"): {"1": (7,), "3": None}}
    assert [refused.record.key() for refused in changes.refused] == [b"2"]


def test_no_more_are_looked_for_than_may_be_left_out() -> None:
    topic = "p.public.tweets"
    records = {
        key: Message(topic=topic, partition=0, offset=1, key=key, value=b"{") for key in (b"1", b"2", b"3", b"4")
    }
    changes = Decoder(user_information, "p", JsonDecoding()).decode({topic: records}, limit=1)  # type: ignore[dict-item]  # as delivered
    assert len(changes.refused) == 2
