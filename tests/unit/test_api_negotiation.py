"""What an Accept asks for: JSON, but for those that name a stream and would not rather have JSON."""

import pytest

from api.negotiation import asks_for_stream, takes_json


@pytest.mark.parametrize(
    "accept",
    [
        "text/event-stream",
        "Text/Event-Stream",
        " text/event-stream ;q=0.5 ",
        "text/event-stream; charset=utf-8",
        "text/event-stream;charset=utf-8;q=1.000",
        "text/event-stream, */*;q=0.1",
        "text/html, text/event-stream",
        "application/json;q=0.9, text/event-stream",
        "application/json, text/event-stream",
        "application/*;q=0.9, text/event-stream;q=0.9",
        "*/*, application/json;q=0, text/event-stream;q=0.1",
        "application/json;q=much, text/event-stream;q=0.1",
    ],
)
def test_a_stream(accept: str) -> None:
    assert asks_for_stream(accept.encode())


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/*",
        "application/json",
        "text/html",
        "text/event-stream;q=0",
        "text/event-stream;q=0.000",
        "text/event-stream;q=2",
        "text/event-stream;q=0.5, application/json",
        "text/event-stream;q=0.5, application/*;q=0.6",
        "text/event-stream;q=0.5, */*",
        "application/json;q=0.2;x=y, text/event-stream;q=0.1, */*;q=0",
        "text/event-streams",
        "x-text/event-stream",
        "text/html;x=text/event-stream",
        "\xff, text/event-stream;q=\xff",
    ],
)
def test_json(accept: str) -> None:
    assert not asks_for_stream(accept.encode("latin-1"))


def test_no_accept_is_json() -> None:
    assert not asks_for_stream(None)


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        (None, True),
        ("text/event-stream", False),
        ("text/event-stream, application/json;q=0.1", True),
        ("text/event-stream, */*;q=0.1", True),
        ("text/event-stream, */*, application/json;q=0", False),
    ],
)
def test_json_is_taken_where_it_has_any_weight(accept: str | None, *, takes: bool) -> None:
    assert takes_json(accept.encode() if accept is not None else None) is takes
