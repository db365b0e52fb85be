"""How large a request may be: what is larger gets a clean refusal before it fills the memory."""

from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import MEDIA_TYPE, problem_body

MOST_URL_BYTES = 8_192
MOST_HEAD_BYTES = 32_768
MOST_BODY_BYTES = 65_536
"""Nothing that is served reads a body: a small one is passed over."""
HEAD_TOO_LARGE = 431, f"the headers take more than {MOST_HEAD_BYTES} bytes"
TRANSPORT = "viewkeeper.transport"
"""The connection's transport, in the scope of its requests: a stream asks it what is not sent yet, and may cut off."""
LINGER_SECONDS = 1.0
"""So long what follows a refused request is thrown away: to close at once would take the refusal back on its way."""


class TooLarge(Exception):  # noqa: N818 - the state, which ends the parsing of a request
    """The request was refused, and its connection is closed."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection whose requests have URLs, headers and bodies of at most these sizes."""

    _head_bytes = 0
    _in_head = False
    _is_refused = False

    def data_received(self, data: bytes) -> None:
        """Take in what was sent; a head that does not end is refused."""
        if not self._is_refused:
            super().data_received(data)
            self._measure_head(len(data))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; what has ended the parsing may be a refusal."""
        if not self._is_refused:
            self._refuse(400, msg)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required] # of our own
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Handle the request; raises TooLarge, after its refusal, to end the parsing."""
        self._in_head = False
        refusal = self._refusal()
        if refusal:
            self._refuse(*refusal)
            raise TooLarge
        super().on_headers_complete()

    def _refusal(self) -> tuple[int, str] | None:
        """Return status and detail of what is too large in the request whose head has come."""
        if len(self.url) > MOST_URL_BYTES:
            return 414, f"the URL takes more than {MOST_URL_BYTES} bytes"
        if sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            return HEAD_TOO_LARGE
        # The parser has seen that it is a number.
        if any(name == b"content-length" and int(value) > MOST_BODY_BYTES for name, value in self.headers):
            return 413, f"the body takes more than {MOST_BODY_BYTES} bytes, and nothing here reads one"
        return None

    def _measure_head(self, received_bytes: int) -> None:
        if self._in_head and not self._is_refused:
            self._head_bytes += received_bytes
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(*HEAD_TOO_LARGE)

    def _refuse(self, status: int, detail: str) -> None:
        body = problem_body(status, detail)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._is_refused = True
        if self.cycle is not None:
            # A request whose body turns out bad is being answered: nothing may follow the refusal.
            self.cycle.disconnected = True
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
