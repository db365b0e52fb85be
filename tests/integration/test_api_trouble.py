"""The API when its database, its port or its operator gets in the way."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
import uvloop
from alembic import command
from alembic.config import Config
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from api.session import ANSWER_SECONDS, open_session
from api.statements import look_up
from api.store import QUERIES_IN_FLIGHT
from compose.local.postgres import postgres as run_postgres
from compose.local.process import death_prefix, free_port
from projector.tables import SCHEMA, view_table_name
from runtime.postgres import DatabaseUnavailable
from tests.daemons import ROOT, Daemon, Daemons, daemons_in
from tests.waiting import wait_until
from views.user_information import user_information

TABLE = f"{SCHEMA}.{view_table_name(user_information, 1)}"
HEAL_SECONDS = 2.5
"""A second of backoff at most, the connect itself, and a busy machine."""


def settings_of(view_url: str) -> dict[str, str]:
    return {"VIEWKEEPER_VIEW_URL": view_url, "VIEWKEEPER_API_PORT": "0", "VIEWKEEPER_LOG_FORMAT": "json"}


@pytest.fixture
def api(tmp_path: Path, view_url: str) -> Iterator[Daemons]:
    """Start API processes on this test's view database, which holds user 1; they end with the test."""
    add_user_1(view_url)
    with daemons_in(tmp_path, settings_of(view_url)) as daemons:
        yield daemons


def add_user_1(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(f"INSERT INTO {TABLE} (user_id, viewkeeper_present) VALUES (1, true)".encode())


@contextmanager
def ready_client(daemon: Daemon) -> Iterator[httpx.Client]:
    with client_of(daemon) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200, what="the API to be ready")
        yield client


@contextmanager
def client_of(daemon: Daemon) -> Iterator[httpx.Client]:
    port = daemon.wait_logged("api_listening")["port"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield client


def wait_status(client: httpx.Client, path: str, status: int) -> float:
    """Wait until a path's reply has a status; return how many seconds that took."""
    started = time.monotonic()
    wait_until(lambda: client.get(path).status_code == status, what=f"{status} from {path}")
    return time.monotonic() - started


@contextmanager
def locked_table(url: str) -> Iterator[psycopg.Connection]:
    """Make every look-up wait until the connection rolls back, or until its statement timeout."""
    with psycopg.connect(url) as session:
        session.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE".encode())
        yield session


def wait_for_blocked(session: psycopg.Connection, lookups: int) -> None:
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    wait_until(lambda: session.execute(blocked, (TABLE,)).fetchone() == (lookups,), what=f"{lookups} blocked look-ups")


def api_backends(url: str) -> list[int]:
    with psycopg.connect(url) as session:
        rows = session.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'viewkeeper-api'"
        ).fetchall()
    return [pid for (pid,) in rows]


def test_a_killed_database_is_503_promptly_and_heals_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, port = tmp_path / "own", free_port()
    with run_postgres(folder, port=port) as server:
        url = server.url()
        monkeypatch.setenv("VIEWKEEPER_VIEW_URL", url)
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="view"), "head")
    with daemons_in(tmp_path, settings_of(url)) as daemons:
        daemon = daemons("api", "run")
        with client_of(daemon) as client:
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
            assert client.get("/users/1").status_code == 503
            assert "cannot connect" in daemon.wait_logged("retrying")["reason"]

            with run_postgres(folder, port=port) as server:
                add_user_1(url)
                wait_status(client, "/users/1", 200)
                os.kill(server.pid, signal.SIGKILL)
                wait_status(client, "/users/1", 503)
                started = time.monotonic()
                replies = [client.get("/users/1") for _ in range(100)]
                assert time.monotonic() - started < 2.0
                assert {reply.status_code for reply in replies} == {503}
                assert {reply.headers["retry-after"] for reply in replies} == {"1"}
                assert {reply.headers["content-type"] for reply in replies} == {"application/problem+json"}
                wait_status(client, "/readyz", 503)
                assert client.get("/livez").status_code == 200

            with run_postgres(folder, port=port):
                assert wait_status(client, "/users/1", 200) < HEAL_SECONDS
                wait_status(client, "/readyz", 200)
        assert daemon.terminate() == 0


def terminate_backends(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for pid in api_backends(url):
            session.execute("SELECT pg_terminate_backend(%s)", (pid,))


def test_nobody_is_refused_for_a_lost_connection(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run")
    with ready_client(daemon) as client:
        for _ in range(3):
            terminate_backends(view_url)
            assert client.get("/users/1").status_code == 200
        wait_until(lambda: daemon.logged("store_connection_lost"), what="the loss in the log")


def test_a_lookup_whose_connection_is_lost_is_asked_once_more(api: Daemons, view_url: str) -> None:
    with ready_client(api("api", "run")) as client, ThreadPoolExecutor(1) as asking:
        with locked_table(view_url) as lock:
            request = asking.submit(client.get, "/users/1")
            wait_for_blocked(lock, 1)
            terminate_backends(view_url)
            wait_for_blocked(lock, 1)
            lock.rollback()
        assert request.result().status_code == 200


def test_a_request_that_ends_connections_ends_two_and_is_refused(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run")
    with psycopg.connect(view_url, autocommit=True) as session:
        session.execute(f"INSERT INTO {TABLE} (user_id, viewkeeper_present) VALUES (2, true)".encode())
        session.execute("ALTER VIEW public.user_information RENAME TO harmless")
        session.execute(
            "CREATE VIEW public.user_information AS SELECT * FROM public.harmless "
            "WHERE user_id <> 2 OR pg_terminate_backend(pg_backend_pid())"
        )
    with ready_client(daemon) as client:
        assert client.get("/users/2").status_code == 503
        assert client.get("/users/1").status_code == 200
    assert len(daemon.logged("store_connection_lost")) == 2


def test_a_server_that_says_nothing_is_given_up(api: Daemons, view_url: str) -> None:
    with ready_client(api("api", "run")) as client:
        backends = api_backends(view_url)
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert client.get("/users/1").status_code == 503
            assert wait_status(client, "/users/1", 200) < ANSWER_SECONDS + HEAL_SECONDS
        finally:
            for pid in backends:
                os.kill(pid, signal.SIGCONT)


def test_an_answer_that_came_while_we_stood_still_counts(api: Daemons, view_url: str) -> None:
    """As a machine does that is short of CPU, or wakes up: the store was there all the time."""
    with psycopg.connect(view_url, autocommit=True) as session:
        # More than is read of an answer at once.
        session.execute(f"UPDATE {TABLE} SET description = repeat('x', 300000)".encode())
    daemon = api("api", "run")
    with ready_client(daemon) as client, ThreadPoolExecutor(1) as asking:
        with locked_table(view_url) as lock:
            request = asking.submit(client.get, "/users/1")
            wait_for_blocked(lock, 1)
            daemon.signal(signal.SIGSTOP)
            stopped = time.monotonic()
            lock.rollback()
        wait_until(lambda: time.monotonic() - stopped > ANSWER_SECONDS, what="the answer to be overdue")
        daemon.signal(signal.SIGCONT)
        assert request.result().status_code == 200
    assert daemon.logged("store_connection_lost") == []


@contextmanager
def silent_after_login(server_url: str) -> Iterator[str]:
    """Lead to a server by a link that breaks, without a word, before the client's first statement."""
    address = conninfo_to_dict(server_url)
    ending = threading.Event()

    def carry_login(client: socket.socket) -> None:
        with client, socket.create_connection((str(address["host"]), int(str(address["port"])))) as server:
            threading.Thread(target=carry_replies, args=(server, client)).start()
            while (message := client.recv(65536)) and message[:1] not in {b"Q", b"P"}:
                server.sendall(message)
            ending.wait()
            server.shutdown(socket.SHUT_RDWR)

    def carry_replies(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):  # the client gave up
            while reply := server.recv(65536):
                client.sendall(reply)

    def accept() -> None:
        with suppress(OSError):  # the listener was shut down
            while True:
                threading.Thread(target=carry_login, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield make_conninfo(server_url, host="127.0.0.1", port=listener.getsockname()[1])
        finally:
            ending.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def test_a_server_that_says_nothing_after_the_login_is_given_up_on_time(view_url: str) -> None:
    with silent_after_login(view_url) as url:
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"no answer within 1\.5 s"):
            asyncio.run(open_session(url, {}))

        assert time.monotonic() - started < ANSWER_SECONDS + 1.0


def is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def test_a_lost_connection_leaves_its_descriptor_to_whoever_has_it_next(view_url: str) -> None:
    """It is closed by libpq: a request may come on the same number before the session is closed."""
    parts = conninfo_to_dict(view_url)

    async def lose_it() -> bytes:
        session = await open_session(view_url, {"user_information": look_up(user_information)})
        (backend,) = api_backends(view_url)
        with psycopg.connect(view_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [backend])
        lost = session._socket
        async with asyncio.timeout(10):
            while is_open(lost):
                await asyncio.sleep(0)
        number = socket.create_connection((str(parts["host"]), int(str(parts["port"])))).detach()
        if number != lost:
            os.dup2(number, lost)
            os.close(number)
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=lost))
        await session.close()
        # It can still be read from: Postgres answers a request for TLS with one letter.
        writer.write(struct.pack("!ii", 8, 80877103))
        answer = await asyncio.wait_for(reader.readexactly(1), ANSWER_SECONDS)
        writer.close()
        return answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(lose_it()) == b"N"


def test_a_lookup_that_takes_too_long_is_503(api: Daemons, view_url: str) -> None:
    with ready_client(api("api", "run")) as client:
        with locked_table(view_url):
            reply = client.get("/users/1")
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert wait_status(client, "/users/1", 200) < HEAL_SECONDS


def test_a_view_that_goes_and_comes_back_needs_no_restart(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run")
    with ready_client(daemon) as client, psycopg.connect(view_url, autocommit=True) as session:
        session.execute("ALTER VIEW public.user_information RENAME TO elsewhere")
        wait_status(client, "/users/1", 503)
        assert "-n view upgrade head" in daemon.wait_logged("retrying")["reason"]
        session.execute("ALTER VIEW public.elsewhere RENAME TO user_information")
        wait_status(client, "/users/1", 200)


def test_a_full_queue_is_503_at_once_and_the_others_are_answered(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run", settings={"VIEWKEEPER_API_QUEUE_REQUESTS": "3"})
    with (
        ready_client(daemon) as client,
        ThreadPoolExecutor(QUERIES_IN_FLIGHT + 10) as asking,
        locked_table(view_url) as lock,
    ):
        requests = []
        for number in range(QUERIES_IN_FLIGHT):
            requests.append(asking.submit(client.get, "/users/1"))
            wait_for_blocked(lock, number + 1)
        requests += [asking.submit(client.get, "/users/1") for _ in range(10)]
        wait_until(lambda: sum(request.done() for request in requests) == 7, what="7 of 10 requests to be refused")
        refused = [request.result() for request in requests if request.done()]
        lock.rollback()
        answered = [request.result() for request in requests if request.result() not in refused]

    assert {reply.json()["detail"] for reply in refused} == {"3 requests wait for the store already; try again"}
    assert {reply.status_code for reply in refused} == {503}
    assert [reply.status_code for reply in answered] == [200] * (QUERIES_IN_FLIGHT + 3)


def test_sigterm_answers_the_requests_in_hand(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run")
    with ready_client(daemon) as client, ThreadPoolExecutor(1) as asking, locked_table(view_url) as lock:
        request = asking.submit(client.get, "/users/1")
        wait_for_blocked(lock, 1)
        daemon.signal(signal.SIGTERM)
        port = client.base_url.port or 0
        wait_until(lambda: not takes_connections(port), what="the listener to close")
        lock.rollback()

        assert request.result().status_code == 200
        assert daemon.wait() == 0


def test_with_few_files_it_keeps_some_for_its_store(tmp_path: Path, view_url: str) -> None:
    add_user_1(view_url)
    limit = ["prlimit", "--nofile=150:150", *death_prefix(signal.SIGKILL)]
    log_path = tmp_path / "api.log"
    with log_path.open("wb") as log, ExitStack() as idle:
        process = subprocess.Popen(
            [*limit, sys.executable, "-m", "api.cli", "run"],
            cwd=ROOT,
            env={**os.environ, **settings_of(view_url)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        idle.callback(process.wait)
        idle.callback(process.kill)
        daemon = Daemon("api", process, log_path)
        with ready_client(daemon) as client:
            connections = daemon.wait_logged("connections_limited")["connections"]
            address = ("127.0.0.1", client.base_url.port or 0)
            for _ in range(150):
                idle.enter_context(socket.create_connection(address))
            files = Path(f"/proc/{daemon.pid}/fd")
            wait_until(lambda: len(list(files.iterdir())) > connections, what="idle connections to be accepted")
            terminate_backends(view_url)

            assert wait_status(client, "/users/1", 200) < HEAL_SECONDS
    assert connections == 75
    assert len(daemon.logged("connections_limited")) == 1


def takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def half_a_request(client: httpx.Client) -> Iterator[None]:
    """Hold a connection open whose request never ends; the server knows of it."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
        connection.sendall(b"GET /users/1 HTTP/1.1\r\nHost: ")
        assert client.get("/users/1").status_code == 200
        yield


def test_half_a_request_does_not_hold_the_stop(api: Daemons) -> None:
    daemon = api("api", "run")
    with ready_client(daemon) as client, half_a_request(client):
        assert daemon.terminate() == 0
    assert daemon.logged("api_stopped")


def test_a_second_signal_kills(api: Daemons) -> None:
    daemon = api("api", "run")
    with ready_client(daemon) as client, half_a_request(client):
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: not takes_connections(client.base_url.port or 0), what="the listener to close")
        daemon.signal(signal.SIGTERM)

        assert daemon.wait() == -signal.SIGTERM


def test_a_taken_port_stops_it_and_names_the_setting(api: Daemons) -> None:
    with ready_client(api("api", "run")) as client:
        second = api("api", "run", settings={"VIEWKEEPER_API_PORT": str(client.base_url.port)})

        assert second.wait() == 2
    assert "VIEWKEEPER_API_PORT" in second.log_text()
    assert str(client.base_url.port) in second.log_text()


@pytest.mark.parametrize("missing", ["VIEW public.user_information", "VIEW public.viewkeeper_as_of"])
def test_without_its_migration_it_stops_and_says_the_command(api: Daemons, view_url: str, missing: str) -> None:
    with psycopg.connect(view_url, autocommit=True) as session:
        session.execute(f"DROP {missing} CASCADE".encode())
    daemon = api("api", "run")

    assert daemon.wait() == 2
    assert f'"{missing.removeprefix("VIEW ")}" does not exist' in daemon.log_text()
    assert f"alembic -c {ROOT / 'migrations' / 'alembic.ini'} -n view upgrade head" in daemon.log_text()


def test_a_refused_login_stops_it(api: Daemons, view_url: str) -> None:
    daemon = api("api", "run", settings={"VIEWKEEPER_VIEW_URL": view_url.replace("postgres@", "nobody@")})

    assert daemon.wait() == 2
    assert 'role "nobody" does not exist' in daemon.log_text()
    assert "check the URL's user, password and database" in daemon.log_text()
