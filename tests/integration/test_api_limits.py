"""Requests that are too large, or no requests: a clean 4xx, and the process goes on."""

import json
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.daemons import Daemon, Daemons
from tests.integration.test_api import api, client_of

__all__ = ["api"]

SENT_BYTES = 1_000_000
NOT_YET = b"GET /users/1 HTTP/1.1\r\nViewkeeper-Min-As-Of: 9000-01-01T00:00:00Z\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The head of a request that is not answered before its body has come."""
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.fixture
def process(api: Daemons) -> Daemon:
    return api("api", "run")


@pytest.fixture
def client(process: Daemon) -> Iterator[httpx.Client]:
    with client_of(process) as client:
        yield client


def _reply(client: httpx.Client, request: bytes) -> tuple[int, bytes]:
    """Send bytes and return the status and body of what comes back, once the server has closed."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            reply = stream.read()
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def _replies(client: httpx.Client, *writes: bytes) -> list[int]:
    """Send some bytes after the other, each once a reply to what was sent before has begun; return all statuses."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
        received = b""
        for write in writes:
            connection.sendall(write)
            received += connection.recv(65536)
        while more := connection.recv(65536):
            received += more
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3}) ", received)]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /users/" + b"1" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /users/1?" + b"1" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /users/1 HTTP/1.1\r\nX: " + b"1" * 33_000 + b"\r\n\r\n", 431),
        (b"GET /users/1 HTTP/1.1\r\n" + b"X: 1\r\n" * 17_000 + b"\r\n", 431),
        # A head that never ends.
        (b"GET /users/1 HTTP/1.1\r\nX: " + b"1" * SENT_BYTES, 431),
        (b"GET /users/1 HTTP/1.1\r\nContent-Length: 70000\r\n\r\n", 413),
        (b"POST /users/1 HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", 413),
        (NOT_YET + b"10000\r\n" + b"x" * 65_536 + b"\r\n1\r\nx\r\n", 413),
        # A trailer that never ends.
        (NOT_YET + b"0\r\nX: " + b"1" * SENT_BYTES, 413),
        (b"GET /users/1 HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET /users/\0 HTTP/1.1\r\n\r\n", 400),
        (b"GET /users/1 HTTP/1.1\r\nX: \0\r\n\r\n", 400),
        (b"GET /users/caf\xc3\xa9 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT users:1 HTTP/1.1\r\n\r\n", 400),
        (b"no request\r\n\r\n", 400),
        (b"GET /users/1 HTTP/1.1\r\n" + UPGRADE + b"Content-Length: 1\r\n\r\n", 400),
        (b"GET /users/1 HTTP/1.1\r\n" + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, bytes) else None,
)
def test_what_is_no_request_or_too_large_is_refused(client: httpx.Client, request_bytes: bytes, status: int) -> None:
    found, body = _reply(client, request_bytes)
    assert found == status
    assert json.loads(body)["status"] == status
    assert client.get("/users/1").status_code == 404


@pytest.mark.parametrize("segment", ["%", "%1", "%zz", "%00", "%FF", "%C3", "1%00"])
def test_a_bad_escape_is_no_key(client: httpx.Client, segment: str) -> None:
    # As it is: the client would mend it.
    request = f"GET /users/{segment} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
    assert _reply(client, request)[0] == 404


def test_a_small_body_is_passed_over(client: httpx.Client) -> None:
    for _ in range(2):
        assert client.request("GET", "/users/1", content=b"x" * 60_000).status_code == 404


def test_a_body_that_turns_out_bad_is_refused_and_no_error_of_the_server(client: httpx.Client, process: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"GET /users/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        with connection.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 400 ")
        # Asked after it, answered after it: by now the request has been looked up as well.
        assert client.get("/users/1").status_code == 404
    assert process.logged("request_failed") == []


def test_requests_that_come_together_are_measured_one_by_one(client: httpx.Client) -> None:
    """The last one has begun in the bytes that end others, which are no part of its head."""
    head = b"GET /users/1 HTTP/1.1\r\n"
    replies = _replies(client, (head + b"\r\n") * 2_000 + head, b"Connection: close\r\n\r\n")
    assert replies == [404] * 2_001
    body = head + b"Content-Length: 60000\r\n\r\n" + b"x" * 60_000
    assert _replies(client, body + head, b"Connection: close\r\n\r\n") == [404, 404]


def test_a_refusal_comes_after_the_replies_to_the_requests_before_it(client: httpx.Client, process: Daemon) -> None:
    for refused, status in (
        (b"no request\r\n\r\n", 400),
        (b"GET /users/1 HTTP/1.1\r\nX: " + b"1" * 33_000 + b"\r\n\r\n", 431),
    ):
        before = b"GET /users/1 HTTP/1.1\r\n\r\nPOST /users/1 HTTP/1.1\r\n\r\n"
        assert _replies(client, before + refused) == [404, 405, status]
    bad_body = b"GET /users/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert _replies(client, b"POST /users/1 HTTP/1.1\r\n\r\n" + bad_body) == [405, 400]
    assert process.logged("request_failed") == []


def test_nothing_follows_a_reply_to_a_request_whose_body_turns_out_bad(client: httpx.Client) -> None:
    head = b"GET /users/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _replies(client, head, b"zz\r\n") == [404]


def test_what_comes_too_much_after_a_reply_ends_the_connection(client: httpx.Client) -> None:
    head = b"GET /users/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _replies(client, head, b"10000\r\n" + b"x" * 65_536 + b"\r\n1\r\nx\r\n") == [404]


def test_a_trailer_is_no_header(client: httpx.Client) -> None:
    head = b"GET /users/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert _replies(client, head + b"0\r\nViewkeeper-Min-As-Of: never\r\n\r\n") == [404]


def test_an_upgrade_that_is_offered_is_passed_over(client: httpx.Client) -> None:
    """As clients of HTTP/2 offer one with their first request."""
    request = b"GET /users/1 HTTP/1.1\r\n"
    assert _replies(client, request + UPGRADE + b"\r\n", request + b"Connection: close\r\n\r\n") == [404, 404]
