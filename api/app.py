"""The HTTP application: one route a view, and what an operator asks for."""

from asyncio import get_running_loop, sleep
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
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

from api.conditional import (
    ACCEPT,
    IF_NONE_MATCH,
    LAST_EVENT_ID,
    MIN_AS_OF,
    entity_tag,
    header,
    least_as_of,
    matches,
)
from api.errors import StoreUnavailable, TooManyStreams
from api.events import body_of
from api.keys import Key, canonical_key
from api.latencies import LatencyCounts
from api.live import live_routes
from api.metrics import request_seconds
from api.negotiation import asks_for_stream, takes_json
from api.openapi import openapi
from api.problems import problem
from api.sampling import Sampler
from api.store import PostgresStore, Reading
from api.streaming import NO_KAFKA, Streaming, StreamResponse, head_of_stream
from projector.definition import Resource, View
from projector.errors import DefinitionError

log = structlog.get_logger()

AS_OF_HEADER = "Viewkeeper-As-Of"
MIN_AS_OF_HEADER = "Viewkeeper-Min-As-Of"
RETRY = {"Retry-After": "1"}
REVALIDATED = {"Cache-Control": "no-cache", "Vary": f"Accept, {MIN_AS_OF_HEADER}"}
"""A cache may keep a reply and has to ask whether it is still right, which an ETag makes cheap."""
LOOK_AGAIN_SECONDS = 0.02
"""So often a row is read again that does not reflect what its reader asks for: two polls of the capture."""
LOOK_AGAIN_SHARE = 0.1
"""Who has waited for long looks more seldom, by this share of it: the time that is asked for may be far off."""
OWN_PATHS = ("/live", "/live/figures", "/livez", "/readyz", "/metrics", "/openapi.json")
"""Where the API itself answers."""

Check = Callable[[], tuple[bool, str]]


class ResourceRoute(BaseRoute):
    """Serves a view's resource: its path has a parameter for each column of the key.

    The key is taken from the path as it was sent: once decoded, a key with a slash in it would be another path, and
    bytes that are no UTF-8 would be another key.
    """

    def __init__(
        self,
        view: View,
        store: PostgresStore,
        streaming: Streaming | None,
        latencies: LatencyCounts,
        *,
        wait_seconds: float,
    ) -> None:
        segments, parameters = view.resource.segments, view.resource.parameters
        self._segments = len(segments)
        self._fixed = [(place, part.encode()) for place, part in enumerate(segments) if place not in parameters]
        types = [column.type for column in view.key_columns]
        self._places = list(parameters)
        self._key = list(zip(parameters.values(), types, strict=True))
        self._view = view
        self._body = body_of(view)
        self._store = store
        self._latencies = latencies
        self._streaming = streaming
        self._wait_seconds = wait_seconds

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match any method: another one than GET and HEAD is refused by `handle`."""
        if scope["type"] != "http":
            return Match.NONE, {}
        segments = scope["raw_path"].split(b"/")[1:]
        if len(segments) != self._segments or any(segments[place] != part for place, part in self._fixed):
            return Match.NONE, {}
        key = [segments[place] for place in self._places]
        return (Match.FULL, {"segments": key}) if all(key) else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a stream is answered when it begins."""
        started = perf_counter()
        status = 500
        try:
            response = await self._response(scope)
            status = response.status_code
            if not isinstance(response, StreamResponse):
                await response(scope, receive, send)
        finally:
            seconds = perf_counter() - started
            request_seconds(status).observe(seconds)
            self._latencies.count(seconds, status=status)
        if isinstance(response, StreamResponse):
            await response(scope, receive, send)

    async def _response(self, scope: Scope) -> Response | StreamResponse:
        if scope["method"] not in {"GET", "HEAD"}:
            return problem(scope, 405, f"{scope['method']} is not possible here", {"Allow": "GET, HEAD"})
        wanted = header(scope["headers"], MIN_AS_OF)
        try:
            least = None if wanted is None else least_as_of(wanted)
        except ValueError as error:
            return problem(scope, 400, f"{MIN_AS_OF_HEADER}: {error}; write it as 2026-01-31T12:00:00.123456Z")
        key = tuple(canonical_key(kind, part) for (_, kind), part in zip(self._key, scope["segments"], strict=True))
        try:
            accept = header(scope["headers"], ACCEPT)
            if asks_for_stream(accept):
                if self._streaming is None:
                    complaint = NO_KAFKA
                elif (found := await self._streaming.complaint(self._view)) is None:
                    return await self._stream(scope, key, least, self._streaming)
                else:
                    complaint = found
                if not takes_json(accept):
                    return problem(scope, 406, complaint, REVALIDATED)
            return self._row(scope, key, least, await self._reading(key, least))
        except (StoreUnavailable, TooManyStreams) as error:
            return problem(scope, 503, f"{error}; try again", RETRY)

    def _row(self, scope: Scope, key: Key, least: str | None, reading: Reading) -> Response:
        headers = _headers(reading.as_of)
        if least is not None and not reading.reflects(least):
            return _late(scope, least, headers)
        if reading.values is None:
            return problem(scope, 404, self._missing(key), headers)
        body = self._body(reading.values)
        tag = entity_tag(body)
        headers["ETag"] = tag.decode()
        known = header(scope["headers"], IF_NONE_MATCH)
        if known is not None and matches(known, tag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    async def _stream(
        self, scope: Scope, key: Key, least: str | None, streaming: Streaming
    ) -> Response | StreamResponse:
        if None in key or least is not None or scope["method"] == "HEAD":
            reading = await self._reading(key, least)
            if None in key:
                return self._row(scope, key, least, reading)
            if least is not None and not reading.reflects(least):
                return _late(scope, least, _headers(reading.as_of))
            if scope["method"] == "HEAD":
                return head_of_stream(_headers(reading.as_of))
        stream = await streaming.streams.open(self._view.name, key, header(scope["headers"], LAST_EVENT_ID))
        return StreamResponse(streaming.streams, stream, _headers(stream.first.result().as_of))

    async def _reading(self, key: Key, least: str | None) -> Reading:
        """Read a key; while it does not reflect `least`, again, until that is too late to wait for."""
        loop = get_running_loop()
        began = loop.time()
        while True:
            reading = await self._store.read(self._view.name, key)
            waited = loop.time() - began
            if least is None or reading.reflects(least) or waited >= self._wait_seconds:
                return reading
            pause = max(LOOK_AGAIN_SECONDS, waited * LOOK_AGAIN_SHARE)
            await sleep(min(pause, self._wait_seconds - waited))

    def _missing(self, key: Key) -> str:
        for (parameter, column_type), value in zip(self._key, key, strict=True):
            if value is None:
                return f"no {parameter} is spelled so: it is a canonical {column_type}"
        named = ", ".join(f"{parameter} {value!r}" for (parameter, _), value in zip(self._key, key, strict=True))
        return f"there is nothing with {named}"


def _headers(as_of: str | None) -> dict[str, str]:
    return dict(REVALIDATED) if as_of is None else REVALIDATED | {AS_OF_HEADER: as_of}


def _late(scope: Scope, least: str, headers: Mapping[str, str]) -> Response:
    return problem(scope, 503, f"the view does not reflect {least} yet; try again", {**headers, **RETRY})


def application(
    views: Sequence[View],
    store: PostgresStore,
    sampler: Sampler,
    streaming: Streaming | None = None,
    *,
    ready: Check,
    min_as_of_seconds: float,
) -> Starlette:
    """Return the application that serves each view's resource from `store`, with health and metrics beside them.

    A request waits for at most `min_as_of_seconds` until its reply reflects the time that it asks for. Without
    `streaming` there are no streams.

    `ready` says whether the process is ready, and why or why not. Raises DefinitionError when two views can be asked by
    one path, or a view by one of the API's own.
    """
    _demand_own_paths(views)
    resources = ", ".join(view.resource.path for view in views)
    described = msgspec.json.encode(openapi(views))

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("the loop turns\n")

    async def readyz(_request: Request) -> Response:
        good, reason = ready()
        return PlainTextResponse(f"{reason}\n", status_code=200 if good else 503)

    async def description(_request: Request) -> Response:
        return Response(described, media_type="application/json")

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
            *(
                ResourceRoute(view, store, streaming, sampler.latencies, wait_seconds=min_as_of_seconds)
                for view in views
            ),
            *live_routes(sampler),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/openapi.json", description),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    app.router.redirect_slashes = False
    return app


def _demand_own_paths(views: Sequence[View]) -> None:
    for view in views:
        for path in OWN_PATHS:
            if _share_a_path(view.resource, Resource(path, ())):
                raise DefinitionError(
                    f"view {view.name!r} is served at {view.resource.path}, which may be {path}, where the API itself "
                    "answers; give it another path"
                )
    for one, other in combinations(views, 2):
        if _share_a_path(one.resource, other.resource):
            raise DefinitionError(
                f"views {one.name!r} and {other.name!r} are both served at {one.resource.path}, which may be "
                f"{other.resource.path}; give one of them another path"
            )


def _share_a_path(one: Resource, other: Resource) -> bool:
    return len(one.segments) == len(other.segments) and all(
        place in one.parameters or place in other.parameters or mine == theirs
        for place, (mine, theirs) in enumerate(zip(one.segments, other.segments, strict=True))
    )
