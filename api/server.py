"""The API's process: one loop that serves HTTP and keeps the store's connections."""

import asyncio
import gc
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog
import uvicorn
import uvloop
from starlette.applications import Starlette

from api.app import application
from api.attachments import Attachments
from api.errors import ApiError
from api.events import body_of
from api.limits import LimitedProtocol
from api.sampling import Sampler
from api.store import PostgresStore
from api.streaming import Streaming
from api.streams import Streams
from projector.definition import View
from runtime.errors import ConfigurationError
from runtime.settings import ApiSettings, variable
from runtime.stop import Stop, stop_on_signals

log = structlog.get_logger()

BACKLOG_CONNECTIONS = 1024
CONNECTIONS = 10_000
"""Connections kept at once, idle ones too; those beyond are closed as they come."""
KEEP_ALIVE_SECONDS = 75
OTHER_FILES = 100
"""Open files beside the connections, with room: the store's, the log's, the loop's."""
DRAIN_SECONDS = 5
"""Requests that are not answered so long after the stop are cut off."""


class HttpServer(uvicorn.Server):
    """Uvicorn in our own loop, on a socket that listens already; signals are ours."""

    def __init__(
        self, app: Starlette, *, connections: int = CONNECTIONS, keep_alive_seconds: int = KEEP_ALIVE_SECONDS
    ) -> None:
        class Protocol(LimitedProtocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if len(self.connections) > connections:
                    transport.close()

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                backlog=BACKLOG_CONNECTIONS,
                timeout_keep_alive=keep_alive_seconds,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        self.servers: list[asyncio.Server] = []

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to exit; after an error of its own close what listens, or the loop could not end."""
        try:
            await super().serve(sockets)
        except Exception:
            for server in self.servers:
                server.close()
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `runtime.stop`."""
        yield


def serve(settings: ApiSettings, views: Sequence[View]) -> None:
    """Serve views until a signal asks for the end.

    Raises ConfigurationError when the port is taken, when the database refuses the login, or when its migration is
    missing; DefinitionError when two views have one path.
    """
    with (
        stop_on_signals() as stop,
        _listen(settings.api_host, settings.api_port) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, views, listener, stop))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG_CONNECTIONS)
    except OSError as error:
        raise ConfigurationError(
            f"api: cannot listen on {host}:{port}: {error.strerror}; "
            f"set {variable('api_host')} or {variable('api_port')} (0 takes any free port)"
        ) from error
    listener.setblocking(False)
    return listener


async def _serve(settings: ApiSettings, views: Sequence[View], listener: socket.socket, stop: Stop) -> None:
    store = PostgresStore(settings.view_url, views, queue_requests=settings.api_queue_requests)

    def ready() -> tuple[bool, str]:
        return (False, "stopping") if stop.requested else store.ready()

    sampler = Sampler(settings.view_url, settings if settings.kafka_bootstrap_servers else None, views)
    streaming = _streaming(settings, views, store)
    app = application(views, store, sampler, streaming, ready=ready, min_as_of_seconds=settings.api_min_as_of_seconds)
    server = HttpServer(app, connections=_affordable_connections())
    keeping = asyncio.create_task(store.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(asyncio.to_thread(stop.event.wait))
    host, port = listener.getsockname()[:2]
    log.info("api_listening", host=host, port=port)
    settle_memory()
    try:
        await asyncio.wait({keeping, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            error = serving.exception()
            raise ApiError(f"api: the HTTP server ended by itself: {error!r}; start the api again") from error
        # It takes no more connections, and finishes the requests in hand; streams would never finish.
        server.should_exit = True
        if streaming is not None:
            streaming.streams.end()
        await serving
        if keeping.done():
            keeping.result()
    finally:
        # The threads that wait for the stop, or follow topics, would hold the process.
        stop.request()
        if streaming is not None:
            streaming.streams.end()
        keeping.cancel()
        await asyncio.gather(keeping, serving, stopping, return_exceptions=True)
        await sampler.close()
    log.info("api_stopped")


def _streaming(settings: ApiSettings, views: Sequence[View], store: PostgresStore) -> Streaming | None:
    if not settings.kafka_bootstrap_servers:
        return None
    # Imported only where it is used: Kafka's client takes memory.
    from api.changes import Changes

    streams = Streams(
        store,
        {view.name: body_of(view) for view in views},
        Changes(settings, views, asyncio.get_running_loop()).follow,
        limit=settings.api_streams,
        heartbeat_seconds=settings.api_heartbeat_seconds,
        stall_seconds=settings.api_stream_stall_seconds,
    )
    return Streaming(store, streams, Attachments(settings.view_url))


def _affordable_connections() -> int:
    """Return how many connections can be served at once, after raising the limit of open files for them if need be.

    Where the hard limit is lower than that, the server keeps fewer: else it would leave no file for the store's
    connection.
    """
    wanted = CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # some systems allow less than their hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return CONNECTIONS
    connections = max(soft - OTHER_FILES, soft // 2)
    log.warning(
        "connections_limited",
        connections=connections,
        open_files=soft,
        advice=f"raise the hard limit of open files to {wanted} to serve {CONNECTIONS} connections at once",
    )
    return connections


def settle_memory() -> None:
    """Take what the start made out of the garbage collector's sight: it lives as long as the process."""
    gc.collect()
    gc.freeze()
