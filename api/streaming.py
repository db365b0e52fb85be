"""A view's rows as streams over HTTP: whether there are any, and the response that is one."""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.attachments import Attachments
from api.errors import StoreUnavailable
from api.negotiation import EVENT_STREAM
from api.store import PostgresStore
from api.stream import Stream
from api.streams import Streams
from projector.definition import View
from runtime.errors import ViewkeeperError
from runtime.settings import variable

log = structlog.get_logger()

NO_KAFKA = (
    f"there are no streams: they are told of changes by Kafka, and {variable('kafka_bootstrap_servers')} is not set "
    "for this api; set it, or ask for application/json"
)

# The second is nginx's: it would hold events back until some kilobytes have come.
_OF_STREAMS = {"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class Streaming:
    """What streams of views need."""

    store: PostgresStore
    streams: Streams
    attachments: Attachments

    async def complaint(self, view: View) -> str | None:
        """Return why a view's rows have no streams and what is to be done, None if they have some.

        Raises StoreUnavailable when the database does not say; at once while the store knows that it is away, since a
        server that says nothing at all is asked for seconds.
        """
        self.store.demand_reachable()
        try:
            missing = await self.attachments.complaint(view)
        except ViewkeeperError as error:
            log.warning("attachments_unknown", reason=str(error))
            raise StoreUnavailable("the store does not say whether there are streams") from error
        return missing and f"there are no streams of {view.name}: {missing}; or ask for application/json"


class StreamResponse:
    """The response that is a stream, for as long as that lasts."""

    status_code = 200

    def __init__(self, streams: Streams, stream: Stream, headers: Mapping[str, str]) -> None:
        self._streams = streams
        self._stream = stream
        self._headers = {**_OF_STREAMS, **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        try:
            await self._stream.serve(scope, receive, send, self._headers)
        finally:
            self._streams.close(self._stream)


def head_of_stream(headers: Mapping[str, str]) -> Response:
    """Return the reply to HEAD: a stream's headers."""
    response = Response(headers=headers, media_type=None)
    response.headers.update(_OF_STREAMS)
    del response.headers["Content-Length"]
    return response
