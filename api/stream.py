"""One client's stream of one row: what it was sent last, and how it is sent more."""

import asyncio
import socket
from collections.abc import Callable, Mapping

from starlette.types import Receive, Scope, Send

from api.events import STILL_HERE, Shown, as_of_event
from api.keys import Key
from api.limits import TRANSPORT
from api.metrics import stream_dropped, stream_event

SOCKET_BYTES = 65_536
"""What the kernel keeps for a client that does not read; the process itself keeps one event at most."""
VANISHED_FACTOR = 2
"""A client that acknowledges nothing for so many times the seconds of a stall is gone: the kernel ends its connection.
More than one, so that a client that is slow is dropped by us, and counted."""


class StreamedRow:
    """A key with streams, of which a heartbeat went to all at `said_at`, by the loop's clock; `want` has it read."""

    __slots__ = ("key", "said_at", "streams", "view_name", "want")

    def __init__(self, view_name: str, key: Key, want: Callable[["StreamedRow"], None], *, said_at: float) -> None:
        self.view_name = view_name
        self.key = key
        self.want = want
        self.said_at = said_at
        self.streams: set[Stream] = set()


class Stream:
    """The response to one request for `row`; `tag` is that of the last event that its client has.

    While it waits for its `first` reading, or for its client to take what was sent before, it takes no other one: it is
    behind then, and wants its row to be read again once it is not.
    """

    __slots__ = (
        "_as_of", "_is_behind", "_is_over", "_send", "_sending", "_stall_seconds", "_tag", "_transport", "first", "row",
    )  # fmt: skip

    def __init__(self, row: StreamedRow, tag: bytes | None, *, stall_seconds: float) -> None:
        self.row = row
        self.first: asyncio.Future[Shown] = asyncio.get_running_loop().create_future()
        self._tag = tag
        self._as_of: str | None = None
        self._stall_seconds = stall_seconds
        self._is_behind = False
        self._is_over = False
        self._send: Send | None = None
        self._sending: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    async def serve(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        """Send the first reading, then what is offered, until the client goes or the stream is ended or dropped."""
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        self._transport = scope[TRANSPORT]
        if self._transport.is_closing():
            # Its client went before there was anything to send.
            return
        _bound(self._transport, self._stall_seconds)
        self._send = send
        first = self.first.result()
        if self._is_over:
            self.end()
        else:
            self._write(send, self._news(first) or self._said(first.as_of))
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_over = True

    def offer(self, shown: Shown, *, beat: bool) -> None:
        """Send a reading if it is another one than was sent last, or its as-of alone if it is time for a `beat`."""
        if not self.first.done():
            self.first.set_result(shown)
        elif self._send is None or self._sending is not None:
            self._is_behind = True
        else:
            chunk = self._news(shown) or (self._said(shown.as_of) if beat else b"")
            if chunk:
                self._write(self._send, chunk)

    def repeat(self) -> None:
        """Say again what was said of the as-of, since nothing newer is known."""
        if self._send is not None and self._sending is None:
            self._write(self._send, self._said(self._as_of))

    def end(self) -> None:
        """End the response at once, also for a client that has not taken what was sent before."""
        self._is_over = True
        if self._send is None or self._transport is None:
            return
        if self._sending is not None or self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._write(self._send, b"", last=True)

    def drop(self, reason: str) -> None:
        """Cut the client off."""
        self._is_over = True
        stream_dropped(reason).inc()
        if self._transport is not None:
            self._transport.abort()

    def _news(self, shown: Shown) -> bytes:
        """Return the events of a reading that is not the one that was sent last."""
        if shown.tag == self._tag:
            return b""
        self._tag = shown.tag
        stream_event(shown.kind).inc()
        return shown.event + self._said(shown.as_of)

    def _said(self, as_of: str | None) -> bytes:
        """Return what says the as-of; a comment instead of one that would go back."""
        if self._as_of is not None and (as_of is None or as_of < self._as_of):
            return STILL_HERE
        self._as_of = as_of
        stream_event("as-of").inc()
        return as_of_event(as_of)

    def _write(self, send: Send, chunk: bytes, *, last: bool = False) -> None:
        self._sending = asyncio.get_running_loop().create_task(self._written(send, chunk, last=last))

    async def _written(self, send: Send, chunk: bytes, *, last: bool) -> None:
        try:
            # It waits while the socket has not taken all that was sent before.
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": chunk, "more_body": not last})
        except TimeoutError:
            self.drop("slow")
            return
        self._sending = None
        if self._is_behind and not self._is_over:
            self._is_behind = False
            self.row.want(self.row)


def _bound(transport: asyncio.Transport, stall_seconds: float) -> None:
    """Keep little for a client that does not read, and end the connection of one that is not there any more."""
    transport.set_write_buffer_limits(high=0)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(VANISHED_FACTOR * stall_seconds * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
