"""How large a request may be, and how long it may be waited for: what is larger gets a clean refusal in time."""

import asyncio
from enum import Enum, auto
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import MEDIA_TYPE, problem_body

MOST_URL_BYTES = 8_192
MOST_HEAD_BYTES = 32_768
MOST_BODY_BYTES = 65_536
"""Nothing that is served reads a body: a small one is passed over."""
MOST_SENT_BYTES = 8 * MOST_BODY_BYTES
"""A body with what frames it: chunks may be small, and what comes behind the last one belongs to nobody."""
HEAD_TOO_LARGE = 431, f"the headers take more than {MOST_HEAD_BYTES} bytes"
BODY_TOO_LARGE = 413, f"the body takes more than {MOST_BODY_BYTES} bytes, and nothing here reads one"
# The parser takes a body for the other protocol, which nobody speaks here, or for the next request.
UPGRADE_WITH_BODY = 400, "another protocol cannot be asked for by a request with a body"
_OF_BODIES = (b"content-length", b"transfer-encoding")
TRANSPORT = "viewkeeper.transport"
"""The connection's transport, in the scope of its requests: a stream asks it what is not sent yet, and may cut off."""
LINGER_SECONDS = 1.0
"""So long what follows a refused request is thrown away: to close at once would take the refusal back on its way."""


class TooLarge(Exception):  # noqa: N818 - the state, which ends the parsing of a request
    """The request was refused, and its connection is closed."""


class Part(Enum):
    """What is being read of a connection."""

    NONE = auto()
    HEAD = auto()
    BODY = auto()


class LimitedProtocol(HttpToolsProtocol):
    """A connection whose requests have URLs, headers and bodies of at most these sizes."""

    _part = Part.NONE
    _part_bytes = 0
    _body_bytes = 0
    _received_bytes = 0
    _refusal: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, of which a request has to come."""
        super().connection_made(transport)
        self._await_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing behind that waits for more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take in what was sent; what does not end is refused, and what comes after a refusal thrown away."""
        if self._refusal is None:
            self._received_bytes = len(data)
            super().data_received(data)
            self._part_bytes += len(data)
            if self._refusal is None:
                self._measure()
                self._await_more()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; what has ended the parsing may be a refusal."""
        if self._refusal is None:
            self._refuse(400, msg)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required] # of our own
        self._begin(Part.HEAD)

    def on_headers_complete(self) -> None:
        """Handle the request; raises TooLarge, after its refusal, to end the parsing."""
        excess = self._excess()
        if excess:
            self._refuse(*excess)
            raise TooLarge
        super().on_headers_complete()
        self._begin(Part.BODY)
        self._body_bytes = 0
        # Trailers are none of the headers that the request is answered by.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body, whose size nobody may have said before; raises as `on_headers_complete` does."""
        self._body_bytes += len(body)
        if self._body_bytes > MOST_BODY_BYTES:
            self._refuse(*BODY_TOO_LARGE)
            raise TooLarge
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._begin(Part.NONE)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, or to the refusal of what came after this one."""
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._refusal is not None:
            self._send_refusal(self._refusal)

    def _begin(self, part: Part) -> None:
        """Begin a part, of which that does not count that came with its beginning: some of it is of others."""
        self._part, self._part_bytes = part, -self._received_bytes

    def _await_more(self) -> None:
        """Close the connection after a long silence, unless it is us who are to speak; uvicorn does after replies."""
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr] # None at first
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _measure(self) -> None:
        if self._part is Part.HEAD and self._part_bytes > MOST_HEAD_BYTES:
            self._refuse(*HEAD_TOO_LARGE)
        elif self._part is Part.BODY and self._part_bytes > MOST_SENT_BYTES:
            self._refuse(*BODY_TOO_LARGE)

    def _excess(self) -> tuple[int, str] | None:
        """Return status and detail of what is too large in the request whose head has come."""
        if len(self.url) > MOST_URL_BYTES:
            return 414, f"the URL takes more than {MOST_URL_BYTES} bytes"
        if sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            return HEAD_TOO_LARGE
        # The parser has seen that it is a number.
        if any(name == b"content-length" and int(value) > MOST_BODY_BYTES for name, value in self.headers):
            return BODY_TOO_LARGE
        if self.parser.should_upgrade() and any(name in _OF_BODIES and value != b"0" for name, value in self.headers):
            return UPGRADE_WITH_BODY
        return None

    def _refuse(self, status: int, detail: str) -> None:
        """Refuse the request that is being read, once those before it are answered; it is the connection's last."""
        body = problem_body(status, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._refusal = head.encode() + body
        if self._part is Part.BODY:
            self._refuse_begun(self._refusal)
        elif self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr] # None at first
            self._send_refusal(self._refusal)

    def _refuse_begun(self, refusal: bytes) -> None:
        """Refuse a request whose body turns out bad; where its own reply is on its way nothing may follow that."""
        if self.pipeline:
            # It waits for its turn, behind others.
            self.pipeline.popleft()
        else:
            self.cycle.disconnected = True
            self._send_refusal(b"" if self.cycle.response_started else refusal)

    def _send_refusal(self, refusal: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
