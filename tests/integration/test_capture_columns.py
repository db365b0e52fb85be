"""What leaves the database: listed columns alone, those with a mask as a keyed hash, and nothing by accident."""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cdc.attachment import attach, detach
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.logged import other_role
from tests.integration.polled_source import TIMESTAMP, PolledSource
from tests.waiting import wait_until

USERS = TableName("public", "users")
KEY = {"VIEWKEEPER_CDC_MASK_KEY": "a secret of some length"}
OTHER_KEY = {"VIEWKEEPER_CDC_MASK_KEY": "a longer secret than a block of sixty-four bytes, which is hashed before use"}


def _hash(text: str, settings: Mapping[str, str] = KEY) -> str:
    return hmac.new(settings["VIEWKEEPER_CDC_MASK_KEY"].encode(), text.encode(), hashlib.sha256).hexdigest()


def _attach(source: Source, columns: tuple[str, ...] | None, masks: tuple[str, ...] | None = None) -> None:
    assert attach(source.connection, CAPTURE, USERS, where="test", columns=columns, masks=masks)


def _rows(source: Source) -> dict[int, dict[str, object]]:
    return {row["user_id"]: row for row in source.topic("users").rows().values()}


def test_only_listed_columns_leave_also_after_one_is_added(source: Source, daemon: Daemons) -> None:
    source.run("INSERT INTO users (user_id, username, location) VALUES (1, 'ann', 'here')")
    _attach(source, ("username", "user_id"))
    daemon("cdc", "run")
    source.wait_published("users")
    source.run(
        "ALTER TABLE users ADD COLUMN secret text DEFAULT 'whispered'",
        "INSERT INTO users (user_id, username, secret) VALUES (2, 'bob', 'told')",
        "UPDATE users SET location = 'there' WHERE user_id = 1",
    )
    source.wait_published("users")
    assert _rows(source) == {1: {"user_id": 1, "username": "ann"}, 2: {"user_id": 2, "username": "bob"}}
    published = b"".join(record.value() or b"" for record in source.topic("users").records)
    assert not re.search(rb"here|whispered|told|location|secret", published)


def test_masked_columns_leave_as_a_keyed_hash_of_their_text(source: Source, daemon: Daemons) -> None:
    source.run(
        "INSERT INTO users (user_id, username, location, joined_date) "
        "VALUES (1, 'ann', NULL, '2024-05-06 07:08:09.5+02'), (2, 'ann', 'ünïcode', 'infinity')"
    )
    _attach(source, ("user_id", "username", "location", "joined_date"), ("username", "location", "joined_date"))
    daemon("cdc", "run", settings=KEY)
    source.wait_published("users")
    ann = _hash("ann")
    assert _rows(source) == {
        1: {"user_id": 1, "username": ann, "location": None, "joined_date": _hash("2024-05-06 05:08:09.5+00")},
        2: {"user_id": 2, "username": ann, "location": _hash("ünïcode"), "joined_date": _hash("infinity")},
    }


def test_a_masked_composite_value_with_a_null_inside_is_not_null(source: Source, daemon: Daemons) -> None:
    """IS NOT NULL is false of it: it would have been published as NULL is."""
    source.run(
        "CREATE TYPE place AS (city text, country text)",
        "ALTER TABLE users ADD COLUMN place place",
        "INSERT INTO users (user_id, place) VALUES (1, ROW('s', NULL)), (2, ROW('s', 'c')), (3, NULL)",
    )
    _attach(source, ("user_id", "place"), ("place",))
    daemon("cdc", "run", settings=KEY)
    source.wait_published("users")
    assert {key: row["place"] for key, row in _rows(source).items()} == {1: _hash("(s,)"), 2: _hash("(s,c)"), 3: None}


@pytest.mark.newest_postgres
def test_with_masks_alone_the_columns_of_now_leave(source: Source, daemon: Daemons) -> None:
    names = [
        name
        for (name,) in source.connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0 ORDER BY attnum"
        )
    ]
    source.run("INSERT INTO users (user_id, username) VALUES (1, 'ann')")
    _attach(source, None, ("username",))
    source.run("ALTER TABLE users ADD COLUMN later text DEFAULT 'x'")
    daemon("cdc", "run", settings=OTHER_KEY)
    source.wait_published("users")
    (row,) = _rows(source).values()
    assert list(row) == names
    assert row["username"] == _hash("ann", OTHER_KEY)


@pytest.mark.newest_postgres
def test_masks_want_their_key_and_another_key_reads_the_table_anew(source: Source, daemon: Daemons) -> None:
    source.run("INSERT INTO users (user_id, username) VALUES (1, 'ann'), (2, 'bob')")
    _attach(source, ("user_id", "username"), ("username",))
    refused = daemon("cdc", "run")
    assert refused.wait() == 2
    assert "VIEWKEEPER_CDC_MASK_KEY is not set, and public.users has masked columns" in refused.log_text()
    first = daemon("cdc", "run", settings=KEY)
    source.wait_published("users")
    assert first.terminate() == 0
    assert [row["username"] for row in _rows(source).values()] == [_hash("ann"), _hash("bob")]
    daemon("cdc", "run", settings=OTHER_KEY)
    source.wait_published("users")
    assert [row["username"] for row in _rows(source).values()] == [_hash("ann", OTHER_KEY), _hash("bob", OTHER_KEY)]


@pytest.mark.newest_postgres
def test_masked_columns_of_a_table_that_is_polled_leave_as_the_same_hash(polled: PolledSource, daemon: Daemons) -> None:
    settings = polled.tables(items=f'{TIMESTAMP}\ncolumns = ["id", "text"]\nmasks = ["text"]')
    refused = daemon("cdc", "run", settings=settings)
    assert refused.wait() == 2
    assert "VIEWKEEPER_CDC_MASK_KEY is not set, and public.items has masked columns" in refused.log_text()
    first = daemon("cdc", "run", settings={**settings, **KEY})
    polled.wait_published("items")
    polled.run(
        "ALTER TABLE items ADD COLUMN later text DEFAULT 'whispered'",
        "UPDATE items SET text = 'told', updated_at = now() WHERE id = 1",
        "UPDATE items SET text = NULL, updated_at = now() WHERE id = 2",
    )
    polled.wait_text("items", 1, _hash("told"))
    wait_until(lambda: polled.rows("items")["2"] == {"id": 2, "text": None}, what="NULL, which stays NULL")
    published = b"".join(record.value() or b"" for record in polled.topic("items").records)
    assert not re.search(rb"whispered|told|later", published)
    assert daemon("cdc", "reconcile", "items", settings={**settings, **KEY}).wait() == 0
    assert first.terminate() == 0
    daemon("cdc", "run", settings={**settings, **OTHER_KEY})
    polled.wait_text("items", 1, _hash("told", OTHER_KEY))


def test_a_masked_composite_value_with_a_null_inside_is_not_null_where_it_is_polled(
    polled: PolledSource, daemon: Daemons
) -> None:
    polled.run(
        "CREATE TYPE place AS (city text, country text)",
        "CREATE TABLE places (id bigint PRIMARY KEY, updated_at timestamptz DEFAULT now(), place place)",
        "INSERT INTO places (id, place) VALUES (1, ROW('s', NULL)), (2, ROW('s', 'c')), (3, NULL)",
    )
    settings = polled.tables(places=f'{TIMESTAMP}\ncolumns = ["id", "place"]\nmasks = ["place"]')
    daemon("cdc", "run", settings={**settings, **KEY})
    polled.wait_keys("places", 1, 2, 3)
    assert {key: row["place"] for key, row in polled.rows("places").items()} == {
        "1": _hash("(s,)"),
        "2": _hash("(s,c)"),
        "3": None,
    }


@pytest.mark.newest_postgres
def test_w6_the_role_that_captures_sees_listed_columns_alone(source: Source, daemon: Daemons) -> None:
    source.run("INSERT INTO users (user_id, username, location) VALUES (1, 'ann', 'here')")
    with _captor(source) as url:
        _attach(source, ("user_id", "username"), ("username",))
        with psycopg.connect(url) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT location FROM users")
        capture = daemon("cdc", "run", settings={**KEY, "VIEWKEEPER_SOURCE_URL": url})
        source.wait_published("users")
        source.run("INSERT INTO users (user_id, username) VALUES (2, 'bob')", "DELETE FROM users WHERE user_id = 1")
        source.wait_published("users")
        assert _rows(source) == {2: {"user_id": 2, "username": _hash("bob")}}
        told = daemon("cdc", "status", settings={"COLUMNS": "100"})
        told.wait()
        assert "public.users: only user_id, username may leave the database; username masked" in told.log_text()
        assert capture.terminate() == 0


@contextmanager
def _captor(source: Source) -> Iterator[str]:
    """Make a role that owns what the capture keeps in the source, and has no right on its tables; yields its URL."""
    with other_role(source.connection, "captor") as role:
        source.run(f"ALTER SCHEMA cdc OWNER TO {role}")
        for table in ("capture", "captured_table", "request"):
            source.run(f"ALTER TABLE cdc.{table} OWNER TO {role}")
        yield source.url.replace(f"{conninfo_to_dict(source.url)['user']}@", f"{role}@", 1)


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("columns", "masks", "complaint"),
    [
        (("user_id", "nme"), None, "has no column nme, which its columns or masks name"),
        (("user_id",), ("nme",), "has no column nme, which its columns or masks name"),
        (("username",), None, "has the key column user_id, which its columns leave out"),
        (("user_id", "name"), ("user_id",), "has the key column user_id, which cannot be masked"),
        (("user_id", "name"), ("username",), "has the masked column username, which its columns leave out"),
    ],
)
def test_columns_that_cannot_be_listed_or_masked_are_refused(
    source: Source, columns: tuple[str, ...], masks: tuple[str, ...] | None, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"table public.users {complaint}")):
        attach(source.connection, CAPTURE, USERS, where="test", columns=columns, masks=masks)


@pytest.mark.newest_postgres
def test_attached_otherwise_is_said_and_detach_leaves_nothing(source: Source) -> None:
    _attach(source, ("user_id", "name"), ("name",))
    assert not attach(source.connection, CAPTURE, USERS, where="test", columns=("name", "user_id"))
    for columns, masks in [(("user_id",), None), (None, ("user_id", "name"))]:
        with pytest.raises(ConfigurationError, match="is attached with columns user_id,name and masks name; to change"):
            attach(source.connection, CAPTURE, USERS, where="test", columns=columns, masks=masks)
    assert detach(source.connection, CAPTURE, USERS, where="test")
    assert source.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'rows\\_%'") == 0


@pytest.mark.newest_postgres
def test_a_view_of_the_columns_that_was_dropped_stops_it_with_steps(source: Source, daemon: Daemons) -> None:
    _attach(source, ("user_id", "name"))
    capture = daemon("cdc", "run")
    source.wait_published("users")
    source.run(
        "DO $$ BEGIN EXECUTE (SELECT format('DROP VIEW cdc.%I', relname) FROM pg_class "
        "WHERE relname LIKE 'rows\\_%'); END $$",
        "INSERT INTO users (user_id) VALUES (1)",
    )
    assert capture.wait(60) == 1
    assert "which shows the columns that may leave the database, is gone; run: viewkeeper-cdc detach" in (
        capture.log_text()
    )


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    "renamings",
    [
        ("ALTER TABLE users RENAME COLUMN user_id TO number",),
        # The listed name is another column's then: its values were logged as keys.
        (
            "ALTER TABLE users ADD COLUMN other bigint",
            "ALTER TABLE users RENAME COLUMN user_id TO number",
            "ALTER TABLE users RENAME COLUMN other TO user_id",
        ),
    ],
)
def test_a_key_column_that_was_renamed_under_the_view_stops_it_with_steps(
    source: Source, daemon: Daemons, renamings: tuple[str, ...]
) -> None:
    _attach(source, ("user_id", "name"))
    capture = daemon("cdc", "run")
    source.wait_published("users")
    source.run(
        "ALTER TABLE users RENAME COLUMN name TO called", "INSERT INTO users (user_id, called) VALUES (1, 'ann')"
    )
    source.wait_published("users")
    assert _rows(source) == {1: {"user_id": 1, "name": "ann"}}
    source.run(*renamings)
    assert capture.wait(60) == 1
    assert "its key column user_id was renamed, and the view of the columns that may leave" in capture.log_text()
