"""A client of `text/event-stream`, as far as HTTP servers' clients have it: events with a name, an id and data."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

ANSWER_SECONDS = 20.0
ACCEPT = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventStream:
    """An open response; reads its events in their order and fails when none comes for long."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self.comments = 0

    def body(self) -> bytes:
        """Read the body of a response that is no stream."""
        return self._response.read()

    def next(self) -> Event | None:
        """Return the next event, None when the stream has ended well."""
        fields: dict[str, bytes] = {}
        while line := self._response.readline():
            name, _, value = line.rstrip(b"\n").partition(b": ")
            if line.startswith(b":"):
                self.comments += 1
            elif fields and line == b"\n":
                return Event(fields["event"].decode(), fields.get("id", b"").decode(), fields["data"])
            elif line != b"\n":
                fields[name.decode()] = value
        return None

    def next_of(self, *names: str) -> Event:
        """Return the next event of one of these names, which must come."""
        while (event := self.next()) is not None:
            if event.name in names:
                return event
        raise AssertionError(f"the stream ended before an event of {names}")

    def close(self) -> None:
        """Go away."""
        self._response.close()
        self._connection.close()


@contextmanager
def event_stream(
    port: int, path: str, headers: Mapping[str, str] | None = None, *, receive_bytes: int | None = None
) -> Iterator[EventStream]:
    """Ask for a stream; `receive_bytes` is what the kernel takes in for a client that does not read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    if receive_bytes is not None:
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.sock.settimeout(ANSWER_SECONDS)
        connection.sock.connect(("127.0.0.1", port))
    connection.request("GET", path, headers={**ACCEPT, **(headers or {})})
    stream = EventStream(connection, connection.getresponse())
    try:
        yield stream
    finally:
        stream.close()
