"""The API's process: one loop that serves HTTP and keeps the store's connections."""

import asyncio
import gc
import resource
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import granian.net
import structlog
import uvloop
from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette

from api.app import application
from api.errors import ApiError
from api.store import PostgresStore
from projector.definition import View
from runtime.errors import ConfigurationError
from runtime.settings import ApiSettings, variable
from runtime.stop import Stop, stop_on_signals

log = structlog.get_logger()

BACKLOG_CONNECTIONS = 1024
CONNECTIONS = 10_000
"""Connections served at once, idle ones too; those beyond wait in the backlog. The server's own default is 128."""
OTHER_FILES = 100
"""Open files beside the connections, with room: the store's, the log's, the loop's."""
DRAIN_SECONDS = 5.0
"""Requests that are not answered so long after the stop are cut off."""


class _SocketServer(Server):
    """Granian in our own loop, on a socket that listens already.

    By itself it listens with SO_REUSEPORT: a second process would not notice that the port is taken, and it cannot
    say which port 0 became.
    """

    def __init__(self, app: Starlette, listener: socket.socket, connections: int) -> None:
        super().__init__(
            app, interface=Interfaces.ASGINL, backpressure=connections, websockets=False, log_enabled=False
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        holder: Any = granian.net  # its stub leaves out what the class takes; it closes the socket itself
        self._shd = holder.SocketHolder(self._listener.detach(), False, BACKLOG_CONNECTIONS)


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

    server = _SocketServer(application(views, store, ready=ready), listener, _affordable_connections())
    keeping = asyncio.create_task(store.run())
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(asyncio.to_thread(stop.event.wait))
    host, port = listener.getsockname()[:2]
    log.info("api_listening", host=host, port=port)
    _settle_memory()
    try:
        await asyncio.wait({keeping, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            error = serving.exception()
            raise ApiError(f"api: the HTTP server ended by itself: {error!r}; start the api again") from error
        await _drain(server, serving)
        if keeping.done():
            keeping.result()
    finally:
        # The thread that waits for the stop would hold the process.
        stop.request()
        keeping.cancel()
        await asyncio.gather(keeping, serving, stopping, return_exceptions=True)
    log.info("api_stopped")


def _affordable_connections() -> int:
    """Return how many connections can be served at once, after raising the limit of open files for them if need be.

    Where the hard limit is lower than that, the server accepts fewer: else it would leave no file for the store's
    connection. The backlog stays as long, since connections that wait in it are no open files yet. Granian 2.8 raises
    the soft limit too, when it is imported, but promises nothing of the kind.
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


async def _drain(server: Server, serving: asyncio.Task[None]) -> None:
    """Take no more connections, finish the requests in hand."""
    server.stop()  # type: ignore[no-untyped-call]  # granian's
    try:
        await asyncio.wait_for(serving, DRAIN_SECONDS)
    except TimeoutError:
        log.warning("requests_cut_off", after_seconds=DRAIN_SECONDS)


def _settle_memory() -> None:
    """Take what the start made out of the garbage collector's sight: it lives as long as the process."""
    gc.collect()
    gc.freeze()
