"""One kept-alive HTTP/1.1 connection, as cheap as Python allows: it shares two cores with the server it measures."""

import asyncio
import re
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

_CONTENT_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)")
_HEAD_END = b"\r\n\r\n"

OnReply = Callable[["HttpConnection", int], None]
OnLost = Callable[["HttpConnection"], None]


class HttpConnection(asyncio.Protocol):
    """A connection with at most one request under way.

    `on_reply` gets the status of each whole reply; `on_lost` is called when the connection ends, for whatever reason.
    `request_number` is the caller's: the request under way, None while there is none.
    """

    def __init__(self, on_reply: OnReply, on_lost: OnLost) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.request_number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, number: int, payload: bytes) -> None:
        """Send a whole request, known to the caller as `number`."""
        self.request_number = number
        if self._transport is not None:
            self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        status = whole_reply_status(self._received)
        if status is not None:
            self._received = b""
            self._on_reply(self, status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._on_lost(self)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def whole_reply_status(received: bytes) -> int | None:
    """Return the status of a reply once all of it has been received, None before.

    Raises ValueError for a reply without Content-Length, which this client cannot tell the end of.
    """
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        return None
    length = _CONTENT_LENGTH.search(received, 0, head_end)
    if length is None:
        raise ValueError(f"a reply without Content-Length: {received[:head_end]!r}")
    if len(received) < head_end + len(_HEAD_END) + int(length[1]):
        return None
    return int(received[9:12])


def get_request(url: str) -> bytes:
    """Return the bytes of a GET request on a kept-alive connection."""
    parts = urlsplit(url)
    return f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: */*\r\n\r\n".encode()


def address(url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80
