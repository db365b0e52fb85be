"""The API as a process of its own, beside a real Postgres, asked over HTTP."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest

from projector.daemon import SESSION_SETTINGS
from projector.tables import SCHEMA, view_table_name
from runtime.postgres import connect
from tests.daemons import Daemon, Daemons, daemons_in
from tests.waiting import wait_until
from views.user_information import user_information

TABLE = f"{SCHEMA}.{view_table_name(user_information, 1)}"
LOOKS = 6
AS_OF = "2026-11-22T19:40:43.399031Z"
ZCOX = (
    f"INSERT INTO {TABLE} VALUES (12542832, 'zcox', 'Zach Cox', 'Engineering @Uptake', 'Chicago, IL', "
    "'https://theza.ch/', '2008-01-22 15:14:44+00', 'https://a.example/p.png', 'https://a.example/b.png', "
    "true, 3826, 1096, 887, 203)"
)
ZCOX_BODY = (
    b'{"userId":"12542832","username":"zcox","name":"Zach Cox","description":"Engineering @Uptake",'
    b'"location":"Chicago, IL","webPageUrl":"https://theza.ch/","joinedDate":"Tue Jan 22 15:14:44 +0000 2008",'
    b'"profileImageUrl":"https://a.example/p.png","backgroundImageUrl":"https://a.example/b.png",'
    b'"tweetCount":3826,"followingCount":1096,"followerCount":887,"likeCount":203}'
)


@pytest.fixture
def api(tmp_path: Path, view_url: str) -> Iterator[Daemons]:
    """Start API processes on this test's view database, each on any free port; they end with the test."""
    settings = {"VIEWKEEPER_VIEW_URL": view_url, "VIEWKEEPER_API_PORT": "0", "VIEWKEEPER_LOG_FORMAT": "json"}
    with daemons_in(tmp_path, settings) as daemons:
        yield daemons


@contextmanager
def client_of(daemon: Daemon) -> Iterator[httpx.Client]:
    port = daemon.wait_logged("api_listening")["port"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200, what="the API to be ready")
        yield client


@pytest.fixture
def client(api: Daemons, view_url: str) -> Iterator[httpx.Client]:
    """Return a client of a ready API whose database knows zcox and an as-of."""
    execute(view_url, ZCOX)
    execute(view_url, "UPDATE projector.as_of SET as_of = %s", AS_OF)
    with client_of(api("api", "run")) as client:
        yield client


def execute(url: str, statement: str, *parameters: object) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode(), parameters or None)


def insert_user(url: str, user_id: int, **values: object) -> None:
    row = {"user_id": user_id, "viewkeeper_present": True, **values}
    marks = ", ".join(["%s"] * len(row))
    execute(url, f"INSERT INTO {TABLE} ({', '.join(row)}) VALUES ({marks})", *row.values())


def looked_up(client: httpx.Client) -> int:
    """Return how many keys the API has looked up."""
    (keys,) = re.findall(r"viewkeeper_api_lookup_keys_sum (\d+)", client.get("/metrics").text)
    return int(keys)


def test_a_row_is_the_documented_json_byte_for_byte(client: httpx.Client) -> None:
    reply = client.get("/users/12542832")

    assert reply.status_code == 200
    assert reply.content == ZCOX_BODY
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["viewkeeper-as-of"] == AS_OF


def test_a_miss_is_a_problem_and_says_as_of_when(client: httpx.Client) -> None:
    reply = client.get("/users/5")

    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["viewkeeper-as-of"] == AS_OF
    assert reply.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is nothing with userId '5'",
        "instance": "/users/5",
    }


def test_a_reply_that_is_known_already_is_not_sent_again(client: httpx.Client, view_url: str) -> None:
    first = client.get("/users/12542832")
    tag = first.headers["etag"]
    assert (first.headers["cache-control"], first.headers["vary"]) == ("no-cache", "Accept, Viewkeeper-Min-As-Of")
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/users/12542832", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (again.headers["viewkeeper-as-of"], again.headers["vary"]) == (AS_OF, first.headers["vary"])
    assert client.get("/users/5", headers={"If-None-Match": "*"}).status_code == 404
    execute(view_url, f"UPDATE {TABLE} SET like_count = 204 WHERE user_id = 12542832")
    changed = client.get("/users/12542832", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_a_reply_waits_for_the_as_of_that_is_asked_for(client: httpx.Client, view_url: str) -> None:
    """What was written at that time is in the reply: also that there is nothing."""

    def ask(path: str, least: str) -> httpx.Response:
        return client.get(path, headers={"Viewkeeper-Min-As-Of": least})

    assert ask("/users/12542832", AS_OF).status_code == 200
    assert ask("/users/12542832", AS_OF.replace("031Z", "0301Z")).status_code == 200
    assert ask("/users/5", AS_OF).status_code == 404
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, path, "2026-11-22T20:40:44+01:00") for path in ("/users/12542832", "/users/5")]
        wait_until(lambda: looked_up(client) >= 2 * LOOKS, what="the rows to be read again and again")
        assert not any(one.done() for one in waiting)
        # An estimate is no word that it is there.
        for flag in ("uncertain", "estimate"):
            execute(view_url, "UPDATE projector.as_of SET as_of = '2026-11-22T19:40:45Z', flags = %s", [flag])
            seen = looked_up(client)
            wait_until(lambda seen=seen: looked_up(client) >= seen + LOOKS, what="the rows to be read with the flag")  # type: ignore[misc]
            assert not any(one.done() for one in waiting)
        execute(view_url, f"UPDATE {TABLE} SET like_count = 204 WHERE user_id = 12542832")
        execute(view_url, "UPDATE projector.as_of SET flags = '{}'")
        found, missing = (one.result(10) for one in waiting)
    assert (found.status_code, found.json()["likeCount"], missing.status_code) == (200, 204, 404)


def test_an_as_of_that_does_not_come_in_time_is_503(api: Daemons, view_url: str) -> None:
    execute(view_url, "UPDATE projector.as_of SET as_of = %s", AS_OF)
    with client_of(api("api", "run", settings={"VIEWKEEPER_API_MIN_AS_OF_SECONDS": "0.2"})) as client:
        late = client.get("/users/5", headers={"Viewkeeper-Min-As-Of": "2026-11-22T19:40:43.399032Z"})
    assert (late.status_code, late.headers["retry-after"], late.headers["viewkeeper-as-of"]) == (503, "1", AS_OF)
    assert "does not reflect 2026-11-22T19:40:43.399032Z yet" in late.json()["detail"]


def test_who_waits_for_long_looks_more_and_more_seldom(api: Daemons) -> None:
    """Many who ask for a time that is far off must not cost the others their replies."""
    with client_of(api("api", "run", settings={"VIEWKEEPER_API_MIN_AS_OF_SECONDS": "2"})) as client:
        assert client.get("/users/5", headers={"Viewkeeper-Min-As-Of": "9000-01-01T00:00:00Z"}).status_code == 503
        assert looked_up(client) < 45


@pytest.mark.parametrize(
    "least", ["now", "2026-11-22T19:40:43", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+01:00", ""]
)
def test_an_as_of_that_is_no_time_is_400(client: httpx.Client, least: str) -> None:
    reply = client.get("/users/12542832", headers={"Viewkeeper-Min-As-Of": least})
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("Viewkeeper-Min-As-Of: ")
    assert "write it as 2026-01-31T12:00:00.123456Z" in reply.json()["detail"]


# Holds back what is read of a user, a snapshot being taken, while somebody has the lock.
HOLD = """
CREATE FUNCTION held(user_id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(user_id);
    RETURN true;
END $$
"""
HELD_BACK = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def test_a_reply_claims_no_more_than_its_row_shows(client: httpx.Client, view_url: str) -> None:
    """What is committed after the row was looked at is not in it, and the as-of is of before (S1)."""
    with psycopg.connect(view_url, autocommit=True) as session, ThreadPoolExecutor(1) as asking:
        (definition,) = session.execute("SELECT pg_get_viewdef('public.user_information'::regclass)").fetchone() or ()
        session.execute(HOLD)
        body = f"SELECT * FROM ({definition.rstrip(';')}) v WHERE held(user_id)"
        session.execute(f"CREATE OR REPLACE VIEW public.user_information AS {body}".encode())
        # It is held back for a second at most, since then the look-up's time is over: more than it takes, as a rule.
        for likes in range(1, 10):
            execute(view_url, f"UPDATE {TABLE} SET like_count = %s", likes - 1)
            execute(view_url, "UPDATE projector.as_of SET as_of = %s", AS_OF)
            session.execute("SELECT pg_advisory_lock(12542832)")
            asked = asking.submit(client.get, "/users/12542832")
            wait_until(lambda: session.execute(HELD_BACK).fetchone() == (1,), what="the reading to be held back")
            with session.transaction():
                session.execute(f"UPDATE {TABLE} SET like_count = %s".encode(), [likes])
                session.execute("UPDATE projector.as_of SET as_of = as_of + interval '1 second'")
            session.execute("SELECT pg_advisory_unlock(12542832)")
            reply = asked.result()
            if reply.status_code == 200:
                assert (reply.json()["likeCount"], reply.headers["viewkeeper-as-of"]) == (likes - 1, AS_OF)
                return
    pytest.fail("no reading could be held back for as long as two updates take")


def test_before_the_first_watermark_nothing_is_said_of_it(client: httpx.Client, view_url: str) -> None:
    execute(view_url, "UPDATE projector.as_of SET as_of = NULL")

    for path in ("/users/12542832", "/users/5"):
        assert "viewkeeper-as-of" not in client.get(path).headers


def test_a_row_leaves_nothing_of_its_reply_in_another_one(client: httpx.Client, view_url: str) -> None:
    execute(view_url, "UPDATE projector.as_of SET as_of = NULL")
    assert "etag" in client.get("/users/12542832").headers
    assert "etag" not in client.get("/users/5").headers
    execute(view_url, "UPDATE projector.as_of SET as_of = %s", AS_OF)
    assert "etag" not in client.get("/users/5").headers


def test_null_is_null_and_text_is_unescaped_utf8(client: httpx.Client, view_url: str) -> None:
    insert_user(view_url, 1, name='Zoë 😀 "quoted" \\ /\n\x01', location="東京")

    assert (
        client.get("/users/1").content
        == (
            '{"userId":"1","username":null,"name":"Zoë 😀 \\"quoted\\" \\\\ /\\n\\u0001","description":null,'
            '"location":"東京","webPageUrl":null,"joinedDate":null,"profileImageUrl":null,"backgroundImageUrl":null,'
            '"tweetCount":0,"followingCount":0,"followerCount":0,"likeCount":0}'
        ).encode()
    )


def test_every_number_of_the_type_can_be_a_key_and_a_count(client: httpx.Client, view_url: str) -> None:
    for user_id in (0, -1, -(2**63), 2**63 - 1):
        insert_user(view_url, user_id, tweet_count=user_id)

        body = client.get(f"/users/{user_id}").content
        assert f'{{"userId":"{user_id}",'.encode() in body
        assert f'"tweetCount":{user_id},'.encode() in body


def test_another_spelling_of_an_id_is_not_found(client: httpx.Client, view_url: str) -> None:
    for user_id in (0, 1, 7, 12, 1000, -1):
        insert_user(view_url, user_id)
    for segment in (
        "007", "-0", "+1", "1e3", "1.0", "\uff11", "%31%00", "%00", "%FF", "%201", "1%20", "1%0A", "0x1", "0b1", "1_2",
        "9223372036854775808", "-9223372036854775809", "12345678901234567890", "1" * 3000, "zcox", "%", "'", '%22"',
        "1;2", "1,2", "{1}", "NULL", "%7B1%7D",
    ):  # fmt: skip
        reply = client.get(f"/users/{segment}")

        assert reply.status_code == 404, segment
        assert reply.headers["content-type"] == "application/problem+json", segment


def test_rows_that_are_not_complete_are_not_found(client: httpx.Client, view_url: str) -> None:
    insert_user(view_url, 1, viewkeeper_present=None, tweet_count=3)
    insert_user(view_url, 2, viewkeeper_present=False, tweet_count=3)

    assert [client.get(f"/users/{user_id}").status_code for user_id in (1, 2)] == [404, 404]


WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'viewkeeper-api' AND datname = %s "
    "AND clock_timestamp() - backend_start > interval '2 seconds'"
)
CALENDAR = {
    "infinity": "infinity",
    "-infinity": "-infinity",
    "0044-03-15 12:00:00+00 BC": "Fri Mar 15 12:00:00 +0000 0044 BC",
    "0001-12-31 23:59:59+00 BC": "Sun Dec 31 23:59:59 +0000 0001 BC",
    "0001-01-01 00:00:00+00": "Mon Jan 01 00:00:00 +0000 0001",
    "2024-02-29 23:30:00.999999-05": "Fri Mar 01 04:30:00 +0000 2024",
    "12024-05-06 07:08:09+00": "Mon May 06 07:08:09 +0000 12024",
}


def test_times_are_shown_in_english_and_utc_also_outside_of_common_years(api: Daemons, view_url: str) -> None:
    database = view_url.rpartition("/")[2]
    for setting in ("TimeZone = 'Asia/Tokyo'", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'iso_8601'"):
        execute(view_url, f"ALTER DATABASE {database} SET {setting}")
    for number, time in enumerate(CALENDAR):
        insert_user(view_url, number, joined_date=time)

    with client_of(api("api", "run")) as client:
        shown = [client.get(f"/users/{number}").json()["joinedDate"] for number in range(len(CALENDAR))]

    assert shown == list(CALENDAR.values())


def test_a_session_waits_for_look_ups_for_as_long_as_it_takes(api: Daemons, view_url: str) -> None:
    database = view_url.rpartition("/")[2]
    for setting in ("transaction_timeout", "idle_session_timeout"):
        execute(view_url, f"ALTER DATABASE {database} SET {setting} = '300ms'")
    with client_of(api("api", "run")), connect(view_url, name="test", settings=SESSION_SETTINGS) as session:
        wait_until(lambda: session.execute(WAITING, [database]).fetchone(), what="a session that outlives the limit")


def test_head_is_get_without_the_body(client: httpx.Client) -> None:
    for path, status in (("/users/12542832", 200), ("/users/5", 404)):
        got, head = client.get(path), client.head(path)

        assert (head.status_code, head.content) == (status, b"")
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


def test_200_connections_at_once_share_lookups_and_each_gets_its_own_row(client: httpx.Client, view_url: str) -> None:
    execute(
        view_url,
        f"INSERT INTO {TABLE} (user_id, viewkeeper_present, tweet_count) "
        "SELECT i, true, i FROM generate_series(1, 999) i",
    )
    base_url = client.base_url
    user_ids = list(range(1, 180)) + list(range(990, 1010))

    async def ask_all() -> list[tuple[int, object]]:
        limits = httpx.Limits(max_connections=len(user_ids))  # no waiting among themselves
        async with httpx.AsyncClient(base_url=base_url, timeout=30, limits=limits) as many:
            replies = await asyncio.gather(*(many.get(f"/users/{user_id}") for user_id in user_ids))
        return [(reply.status_code, reply.json().get("tweetCount")) for reply in replies]

    assert asyncio.run(ask_all()) == [(200, i) if i < 1000 else (404, None) for i in user_ids]
    keys = looked_up(client)
    (lookups,) = re.findall(r"viewkeeper_api_lookup_keys_count (\d+)", client.get("/metrics").text)
    assert keys == len(user_ids)
    assert int(lookups) < len(user_ids)


def test_metrics_count_requests_by_status_and_keys_by_lookup(client: httpx.Client) -> None:
    client.get("/users/12542832")
    client.get("/users/5")
    client.get("/users/007")
    text = client.get("/metrics").text

    assert 'viewkeeper_api_request_seconds_count{status="200"} 1.0' in text
    assert 'viewkeeper_api_request_seconds_count{status="404"} 2.0' in text
    assert "viewkeeper_api_lookup_keys_sum 3.0" in text
    for edge in ("0.001", "0.002", "0.005", "0.01"):
        assert f'viewkeeper_api_request_seconds_bucket{{le="{edge}",status="200"}}' in text


SHOP = """
from projector.definition import Column, ColumnType, Field, Format, Resource, Row, View

columns = tuple(
    Column(name, ColumnType(kind))
    for name, kind in {
        "code": "text", "id": "uuid", "price": "numeric", "sold": "boolean", "at": "timestamptz", "pieces": "integer",
    }.items()
)
by_code = View("by_code", "code", Row("public.items", columns), (), Resource("/by/code/{code}", (
    Field("code", "code"), Field("id", "id"), Field("price", "price"), Field("sold", "sold"), Field("at", "at"),
    Field("pieces", "pieces"), Field("piecesText", "pieces", Format.STRING), Field("atText", "at", Format.STRING),
    Field("soldText", "sold", Format.STRING),
)))
by_id = View("by_id", "id", Row("public.items", columns), (), Resource("/by/id/{id}", (Field("code", "code"),)))
by_pieces = View("by_pieces", "pieces", Row("public.items", columns), (), Resource("/by/{pieces}", (
    Field("code", "code"),
)))
"""


def test_any_view_is_served_whatever_its_key_and_columns(api: Daemons, view_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    execute(
        view_url,
        "CREATE TABLE by_code "
        "(code text PRIMARY KEY, id uuid, price numeric, sold boolean, at timestamptz, pieces integer)",
    )
    execute(view_url, "CREATE VIEW by_id AS SELECT * FROM by_code; CREATE VIEW by_pieces AS SELECT * FROM by_code")
    identity = "0f5e9c1a-2b3c-4d5e-8f90-a1b2c3d4e5f6"
    code = 'a/b "c" \\ {},NULL'
    execute(view_url, "INSERT INTO by_code VALUES (%s, %s, 'NaN', true, '2024-02-29 23:30:00.5-05', 3)", code, identity)
    execute(view_url, "INSERT INTO by_code VALUES ('NULL', NULL, 0.10000000000000000000001, NULL, '-infinity', -4)")

    with client_of(api("api", "run", settings={"VIEWKEEPER_VIEWS": str(tmp_path / "shop.py")})) as client:
        first = client.get("/by/code/" + quote(code, safe=""))
        second = client.get("/by/code/NULL")
        assert first.json() == {
            "code": code, "id": identity, "price": "NaN", "sold": True, "at": "2024-03-01T04:30:00.500000Z",
            "pieces": 3, "piecesText": "3", "atText": "2024-03-01T04:30:00.500000Z", "soldText": "true",
        }  # fmt: skip
        assert second.json() == {
            "code": "NULL", "id": None, "price": "0.10000000000000000000001", "sold": None, "at": "-infinity",
            "pieces": -4, "piecesText": "-4", "atText": "-infinity", "soldText": None,
        }  # fmt: skip
        assert client.get(f"/by/id/{identity}").json() == {"code": code}
        assert client.get(f"/by/id/{identity.upper()}").status_code == 404
        assert client.get("/by/3").json() == {"code": code}
        assert client.get("/by/code/null").status_code == 404


def test_text_is_utf8_whatever_the_environment_and_the_database_say(
    api: Daemons, view_url: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    columns = "(code text PRIMARY KEY, id uuid, price numeric, sold boolean, at timestamptz, pieces integer)"
    execute(view_url, f"CREATE TABLE by_code {columns}")
    execute(view_url, "CREATE VIEW by_id AS SELECT * FROM by_code; CREATE VIEW by_pieces AS SELECT * FROM by_code")
    execute(view_url, "INSERT INTO by_code (code, pieces) VALUES ('café', 1), ('東京', 2)")
    database = view_url.rpartition("/")[2]
    execute(view_url, f"ALTER DATABASE {database} SET client_encoding = 'LATIN1'")

    settings = {"VIEWKEEPER_VIEWS": str(tmp_path / "shop.py"), "PGCLIENTENCODING": "LATIN1"}
    with client_of(api("api", "run", settings=settings)) as client:
        assert client.get("/by/code/" + quote("café")).json()["code"] == "café"
        assert client.get("/by/2").json() == {"code": "東京"}
