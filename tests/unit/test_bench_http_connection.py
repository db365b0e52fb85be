"""The load tools' reading of replies."""

import pytest

from tests.bench.http_connection import address, get_request, whole_reply_status
from tests.bench.load import Target

REPLY = b"HTTP/1.1 404 Not Found\r\nserver: x\r\ncontent-length: 5\r\n\r\nhello"


@pytest.mark.parametrize("received", [REPLY[:cut] for cut in range(len(REPLY))])
def test_a_part_of_a_reply_is_no_reply(received: bytes) -> None:
    assert whole_reply_status(received) is None


def test_a_whole_reply_gives_its_status() -> None:
    assert whole_reply_status(REPLY) == 404


def test_a_reply_without_a_length_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        whole_reply_status(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_a_request_names_path_and_host() -> None:
    assert get_request("http://127.0.0.1:8080/users/1").startswith(b"GET /users/1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n")
    assert address("http://127.0.0.1:8080/users/1") == ("127.0.0.1", 8080)


def test_ids_are_drawn_from_the_whole_range_and_the_same_each_time() -> None:
    target = Target(url="http://h/users/{}", first_id=3, last_id=5)
    first = [request for request, _ in zip(target.requests(), range(100), strict=False)]
    second = [request for request, _ in zip(target.requests(), range(100), strict=False)]

    assert first == second
    assert {request.split(b" ")[1] for request in first} == {b"/users/3", b"/users/4", b"/users/5"}
