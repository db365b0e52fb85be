"""The HTTP application: one route a view, and what an operator asks for."""

from collections.abc import Callable, Sequence
from time import perf_counter

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from api.errors import StoreUnavailable
from api.keys import canonical_key
from api.metrics import request_seconds
from api.problems import problem
from api.store import PostgresStore
from projector.definition import View
from projector.errors import DefinitionError

log = structlog.get_logger()

AS_OF_HEADER = "Viewkeeper-As-Of"
RETRY_AFTER_SECONDS = 1

Check = Callable[[], tuple[bool, str]]


class ResourceRoute(BaseRoute):
    """Serves a view's resource: its path ends in the key.

    The key is taken from the path as it was sent: once decoded, a key with a slash in it would be another path, and
    bytes that are no UTF-8 would be another key.
    """

    def __init__(self, view: View, store: PostgresStore) -> None:
        self._head, _, parameter = view.resource.path.encode().rpartition(b"/")
        self._parameter = parameter.decode().strip("{}")
        self._view_name = view.name
        self._key_type = view.key_column.type
        self._names = tuple(field.name for field in view.resource.fields)
        self._encode = msgspec.json.Encoder().encode
        self._store = store

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match any method: another one than GET and HEAD is refused by `handle`."""
        if scope["type"] != "http":
            return Match.NONE, {}
        head, _, segment = scope["raw_path"].rpartition(b"/")
        return (Match.FULL, {"segment": segment}) if head == self._head and segment else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        status = 500
        try:
            response = await self._response(scope)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            request_seconds(status).observe(perf_counter() - started)

    async def _response(self, scope: Scope) -> Response:
        if scope["method"] not in {"GET", "HEAD"}:
            return problem(scope, 405, f"{scope['method']} is not possible here", {"Allow": "GET, HEAD"})
        key = canonical_key(self._key_type, scope["segment"])
        if key is None:
            detail = f"no {self._parameter} is spelled so: it is a canonical {self._key_type}"
            return problem(scope, 404, detail)
        try:
            reading = await self._store.read(self._view_name, key)
        except StoreUnavailable as error:
            return problem(scope, 503, f"{error}; try again", {"Retry-After": str(RETRY_AFTER_SECONDS)})
        headers = {} if reading.as_of is None else {AS_OF_HEADER: reading.as_of}
        if reading.values is None:
            return problem(scope, 404, f"there is nothing with {self._parameter} {key!r}", headers)
        body = self._encode(dict(zip(self._names, reading.values, strict=True)))
        return Response(body, media_type="application/json", headers=headers)


def application(views: Sequence[View], store: PostgresStore, *, ready: Check) -> Starlette:
    """Return the application that serves each view's resource from `store`, with health and metrics beside them.

    `ready` says whether the process is ready, and why or why not. Raises DefinitionError when two views have one path.
    """
    _demand_own_paths(views)
    resources = ", ".join(view.resource.path for view in views)

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("the loop turns\n")

    async def readyz(_request: Request) -> Response:
        good, reason = ready()
        return PlainTextResponse(f"{reason}\n", status_code=200 if good else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        detail = f"nothing is served here; served are {resources}" if error.status_code == 404 else error.detail
        return problem(request.scope, error.status_code, detail, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return problem(request.scope, 500, "this is an error of the server's; its log says more")

    app = Starlette(
        routes=[
            *(ResourceRoute(view, store) for view in views),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    app.router.redirect_slashes = False
    return app


def _demand_own_paths(views: Sequence[View]) -> None:
    owners: dict[str, View] = {}
    for view in views:
        head = view.resource.path.rpartition("/")[0]
        owner = owners.setdefault(head, view)
        if owner is not view:
            raise DefinitionError(
                f"views {owner.name!r} and {view.name!r} are both served at {head}/…; give one of them another path"
            )
