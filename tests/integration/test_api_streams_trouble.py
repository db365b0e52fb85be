"""Streams when there are none, too many, or something in the way: clients, signals, the store, Kafka."""

import http.client
import os
import signal
import socket
import time
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.conninfo import conninfo_to_dict

from compose.local.kafka import KafkaBroker
from compose.local.kafka import kafka as run_kafka
from compose.local.postgres import PostgresServer
from compose.local.process import free_port
from tests.daemons import ROOT, daemons_in
from tests.event_stream import ACCEPT, EventStream, event_stream
from tests.integration.changelog import Changelog
from tests.integration.streamed_view import (
    AS_OF,
    ATTACH,
    NAME,
    RARELY,
    TABLE,
    Api,
    StreamedView,
    set_count,
    view_database,
)
from tests.waiting import wait_until

OFTEN = {"VIEWKEEPER_API_HEARTBEAT_SECONDS": "0.3"}
PROMPTLY_SECONDS = 4.5
"""Less than the five that a server waits for requests in hand, and enough for a busy machine."""


def wait_count(stream: EventStream, count: int) -> None:
    while stream.next_of("row").json["likeCount"] != count:
        pass


def test_without_kafka_there_are_no_streams(view: StreamedView) -> None:
    view.insert(1)
    with view.api({"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": ""}) as api:
        refused = api.client.get("/users/1", headers=ACCEPT)
        served = api.client.get("/users/1")
        second_best = api.client.get("/users/1", headers={"Accept": "text/event-stream, application/json;q=0.5"})
    assert second_best.content == served.content
    assert (refused.status_code, refused.headers["content-type"]) == (406, "application/problem+json")
    assert "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS is not set" in refused.json()["detail"]
    assert refused.headers["vary"] == served.headers["vary"]
    assert served.status_code == 200


def test_a_view_that_is_not_attached_has_no_streams_until_it_is(
    view_url: str,
    settings_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = f"reader_{uuid4().hex[:12]}"
    with psycopg.connect(view_url, autocommit=True) as session, daemons_in(tmp_path, settings_env) as daemons:
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT SELECT ON {NAME}, viewkeeper_as_of TO {role}",
        ):
            session.execute(statement.encode())
        as_reader = {"VIEWKEEPER_VIEW_URL": view_url.replace("postgres@", f"{role}@")}
        with StreamedView(view_url, settings_env["VIEWKEEPER_TOPIC_PREFIX"], daemons).api(as_reader) as api:

            def refused() -> str:
                reply = api.client.get("/users/1", headers=ACCEPT)
                assert reply.status_code == 406
                return str(reply.json()["detail"])

            assert "'viewkeeper-cdc attach public.user_information'" in refused()
            monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", view_url)
            command.upgrade(Config(ROOT / "alembic.ini", ini_section="source"), "head")
            wait_until(lambda: "SELECT on cdc.captured_table" in refused(), what="the missing right to be told")
            session.execute(f"GRANT USAGE ON SCHEMA cdc TO {role}".encode())
            session.execute(f"GRANT SELECT ON cdc.captured_table TO {role}".encode())
            wait_until(lambda: "is attached to no capture" in refused(), what="the attachment to be missed")
            session.execute(ATTACH.encode())

            def opened() -> bool:
                with event_stream(api.port, "/users/1") as stream:
                    return stream.status == 200 and stream.next_of("gone").data == b"{}"

            wait_until(opened, what="a stream")
        session.execute(f"DROP OWNED BY {role}".encode())
        session.execute(f"DROP ROLE {role}".encode())


def follows(api: Api) -> bool:
    """Return whether an API has Kafka's threads."""
    names = [path.read_text() for path in Path(f"/proc/{api.daemon.pid}/task").glob("*/comm")]
    return any(name.startswith("rdk:") for name in names)


def test_an_option_that_is_none_of_kafkas_stops_it(view: StreamedView) -> None:
    daemon = view.daemons("api", "run", settings={"VIEWKEEPER_KAFKA_NO_SUCH_OPTION": "1"})
    assert daemon.wait() == 2
    assert "no.such.option" in daemon.log_text()


def test_streams_beyond_the_limit_are_refused_until_one_has_gone(view: StreamedView) -> None:
    view.insert(2)
    with view.api({**RARELY, "VIEWKEEPER_API_STREAMS": "2"}) as api:
        with event_stream(api.port, "/users/2") as one, event_stream(api.port, "/users/2") as two:
            wait_count(one, 0)
            wait_count(two, 0)
            refused = api.client.get("/users/2", headers=ACCEPT)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "2 streams are open already" in refused.json()["detail"]
            assert api.client.get("/users/2").status_code == 200
            assert api.metric("viewkeeper_api_streams") == 2
            two.close()
            api.wait_metric("viewkeeper_api_streams", 1)
            with event_stream(api.port, "/users/2") as three:
                wait_count(three, 0)
                view.change(set_count(2, 1), 2)
                for stream in (one, three):
                    wait_count(stream, 1)
        api.wait_metric("viewkeeper_api_streams", 0)
        wait_until(lambda: not follows(api), what="the topics to be left, a while after the last stream")
        with event_stream(api.port, "/users/2") as again:
            wait_count(again, 1)
            wait_until(lambda: follows(api), what="the topics to be followed again")


def test_a_reader_that_does_not_read_is_dropped_and_the_others_go_on(view: StreamedView) -> None:
    view.insert(3, description="x" * 200_000)
    with (
        view.api({**RARELY, "VIEWKEEPER_API_STREAM_STALL_SECONDS": "1"}) as api,
        event_stream(api.port, "/users/3", receive_bytes=4_096) as slow,
        event_stream(api.port, "/users/3") as other,
    ):
        wait_count(other, 0)
        count = 0
        while not api.metric('viewkeeper_api_streams_dropped_total{reason="slow"}'):
            count += 1
            view.change(set_count(3, count), 3)
            wait_count(other, count)
        api.wait_metric("viewkeeper_api_streams", 1)
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            wait_count(slow, -1)
        view.change(set_count(3, -1), 3)
        wait_count(other, -1)


def test_clients_that_go_before_their_streams_begin_are_no_error(view: StreamedView) -> None:
    view.insert(9)
    with view.api(RARELY) as api:
        # The look-up waits for a second at most, which is enough to go in.
        with psycopg.connect(view.url) as session:
            session.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE".encode())
            clients = [socket.create_connection(("127.0.0.1", api.port)) for _ in range(5)]
            for client in clients:
                client.sendall(b"GET /users/9 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
            api.wait_metric("viewkeeper_api_streams", 5)
            for client in clients:
                client.close()
        api.wait_metric("viewkeeper_api_streams", 0)
        assert api.client.get("/users/9").status_code == 200
        assert not api.daemon.logged("request_failed")


def test_who_cannot_be_told_of_attachments_is_told_so_in_time(view: StreamedView) -> None:
    with view.api(RARELY) as api, psycopg.connect(view.url) as session:
        session.execute("LOCK TABLE cdc.captured_table IN ACCESS EXCLUSIVE MODE")
        assert api.client.get("/users/1", headers=ACCEPT).status_code == 503
        assert api.daemon.terminate() == 0


def test_while_a_database_says_nothing_at_all_streams_are_refused_at_once(view: StreamedView) -> None:
    # It is connected to, and nobody answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/view"
        daemon = view.daemons("api", "run", settings={"VIEWKEEPER_VIEW_URL": url})
        port = daemon.wait_logged("api_listening")["port"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            began = time.monotonic()
            refused = client.get("/users/1", headers=ACCEPT)
            assert time.monotonic() - began < PROMPTLY_SECONDS
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        daemon.kill()


def test_sigterm_ends_streams_at_once(view: StreamedView) -> None:
    view.insert(4, description="x" * 200_000)
    with (
        view.api(RARELY) as api,
        event_stream(api.port, "/users/4", receive_bytes=4_096),
        event_stream(api.port, "/users/4") as stream,
    ):
        for count in range(20):
            view.change(set_count(4, count), 4)
            wait_count(stream, count)
        began = time.monotonic()
        assert api.daemon.terminate() == 0
        assert time.monotonic() - began < PROMPTLY_SECONDS
        while (event := stream.next()) is not None:
            assert event.name == "as-of"


def test_a_heartbeat_says_the_as_of_and_never_an_older_one(view: StreamedView) -> None:
    view.insert(5)
    with view.api(OFTEN) as api, event_stream(api.port, "/users/5") as stream:
        wait_count(stream, 0)
        for _ in range(3):
            assert stream.next_of("as-of").json == AS_OF
        later = AS_OF.replace("2026", "2027")
        view.run(f"UPDATE projector.as_of SET as_of = '{later}'")
        while stream.next_of("as-of").json != later:
            pass
        view.run(f"UPDATE projector.as_of SET as_of = '{AS_OF}'")
        # What is known now is older than what was said: nothing is said of it.
        said = stream.comments
        view.change(set_count(5, 1), 5)
        wait_count(stream, 1)
        wait_until(lambda: api.metric("viewkeeper_api_streams") == 1, what="the stream to be open")
        view.run(f"UPDATE projector.as_of SET as_of = '{later.replace('2027', '2028')}'")
        assert stream.next_of("as-of").json.startswith("2028")
        assert stream.comments > said
        view.run(f"UPDATE projector.as_of SET as_of = '{AS_OF}'")


def test_while_the_store_is_away_streams_live_on_and_miss_nothing(view: StreamedView, postgres: PostgresServer) -> None:
    view.insert(6)
    name = conninfo_to_dict(view.url)["dbname"]
    with (
        view.api(OFTEN) as api,
        event_stream(api.port, "/users/6") as stream,
        psycopg.connect(view.url, autocommit=True) as session,
        psycopg.connect(postgres.url(), autocommit=True) as server,
    ):
        wait_count(stream, 0)
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = %s AND application_name LIKE 'viewkeeper-api%%'",
                (name,),
            )
            wait_until(lambda: api.client.get("/users/6").status_code == 503, what="the store to be away")
            session.execute(set_count(6, 1).encode())
            for _ in range(5):
                assert stream.next_of("as-of", "row", "gone").json == AS_OF
        finally:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        wait_count(stream, 1)


def test_a_broker_that_comes_is_followed_and_one_that_comes_back_again(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """What is not in the topic is read again all the same: nobody knows what a killed broker has lost."""
    folder, port = tmp_path / "own", free_port()
    with view_database(postgres) as url, daemons_in(tmp_path, own_settings(url, port, "own")) as daemons:
        view = StreamedView(url, "own", daemons)
        view.run(ATTACH)
        view.insert(7)
        with view.api(RARELY) as api, event_stream(api.port, "/users/7") as stream:
            wait_count(stream, 0)
            view.run(set_count(7, 1))
            with run_kafka(folder, port=port) as broker:
                topics = Changelog(broker.bootstrap_servers, "own", {"user_information": "user_id"}, 2)
                topics.create(cursor=False)
                wait_count(stream, 1)
                for count in (2, 3):
                    view.run(set_count(7, count))
                    with topics.transaction():
                        topics.put("user_information", {"user_id": 7})
                    wait_count(stream, count)
                # Of a record whose key nobody can read it may be any row that has changed.
                view.run(set_count(7, 10))
                with topics.transaction():
                    topics.put_raw("user_information", b"no key", None)
                wait_count(stream, 10)
                os.kill(broker.pid, signal.SIGKILL)
            view.run(set_count(7, 4))
            with view.api(OFTEN) as beating, event_stream(beating.port, "/users/7") as other:
                wait_count(other, 4)
                for _ in range(3):
                    assert other.next_of("as-of", "row").json == AS_OF
            with run_kafka(folder, port=port):
                wait_count(stream, 4)


def test_a_topic_that_is_made_again_or_gets_partitions_is_followed_anew(
    postgres: PostgresServer, kafka: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """Whatever the old one held is read again all the same."""
    topics = Changelog(kafka.bootstrap_servers, topic_prefix, {"user_information": "user_id"}, 2)
    topics.create(cursor=False)
    with view_database(postgres) as url, daemons_in(tmp_path, own_settings(url, kafka.port, topic_prefix)) as daemons:
        view = StreamedView(url, topic_prefix, daemons)
        view.run(ATTACH)
        view.insert(8)
        with view.api(RARELY) as api, event_stream(api.port, "/users/8") as stream:
            wait_count(stream, 0)
            for count in (1, 2):
                view.run(set_count(8, count))
                with topics.transaction():
                    topics.put("user_information", {"user_id": 8})
                wait_count(stream, count)
            view.run(set_count(8, 3))
            topics.make_again("user_information")
            wait_count(stream, 3)
            view.run(set_count(8, 4))
            topics.add_partitions("user_information", 4)
            wait_count(stream, 4)
            view.run(set_count(8, 5))
            with topics.transaction():
                topics.put("user_information", {"user_id": 8})
            wait_count(stream, 5)


def own_settings(url: str, port: int, prefix: str) -> dict[str, str]:
    return {
        "VIEWKEEPER_VIEW_URL": url,
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
        "VIEWKEEPER_TOPIC_PREFIX": prefix,
        "VIEWKEEPER_LOG_FORMAT": "json",
        "VIEWKEEPER_API_PORT": "0",
    }
