"""What the API is compared with, on the same HTTP server, loop and settings: `python -m tests.bench.baseline_server`.

`hello` is a bare Starlette that answers five bytes. `pooled` reads the row as most services do: one query a request,
on a connection from a pool. It gives no as-of and checks no spelling, which is to its advantage.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import click
import msgspec
import psycopg
import uvloop
from psycopg import sql
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.server import BACKLOG_CONNECTIONS, HttpServer, settle_memory
from runtime.cli import run_command, settings_epilog
from runtime.settings import ViewSettings, read_settings
from runtime.stop import Stop, stop_on_signals
from views.user_information import user_information

HOST = "127.0.0.1"
POOL_CONNECTIONS = 8
LISTENING = "baseline_listening"

Pool = asyncio.LifoQueue[psycopg.AsyncConnection]


def hello_application() -> Starlette:
    """Return a bare Starlette with one route, `/`."""

    async def hello(_request: Request) -> Response:
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", hello)])


def pooled_application(pool: Pool) -> Starlette:
    """Return an application that serves `/users/{userId}` with one pooled query a request."""
    fields = user_information.resource.fields
    query = sql.SQL("SELECT {columns} FROM {view} WHERE {key} = %s").format(
        columns=sql.SQL(", ").join(sql.Identifier(field.column) for field in fields),
        view=sql.Identifier(user_information.schema, user_information.name),
        key=sql.Identifier(*user_information.key_names),
    )
    names = [field.name for field in fields]
    encode = msgspec.json.Encoder().encode

    async def read(request: Request) -> Response:
        connection = await pool.get()
        try:
            cursor = await connection.execute(query, (int(request.path_params["userId"]),), prepare=True, binary=True)
            row = await cursor.fetchone()
        finally:
            pool.put_nowait(connection)
        if row is None:
            return PlainTextResponse("not found", status_code=404)
        return Response(encode(dict(zip(names, row, strict=True))), media_type="application/json")

    return Starlette(routes=[Route("/users/{userId}", read)])


@asynccontextmanager
async def connection_pool(url: str) -> AsyncIterator[Pool]:
    """Open a pool of connections."""
    pool: Pool = asyncio.LifoQueue()
    async with AsyncExitStack() as opened:
        for _ in range(POOL_CONNECTIONS):
            connecting = await psycopg.AsyncConnection.connect(url, autocommit=True)
            pool.put_nowait(await opened.enter_async_context(connecting))
        yield pool


async def serve(app: Starlette, stop: Stop) -> None:
    """Serve an application as the API is served, on any free port, until told to stop; says on stderr where."""
    with socket.create_server((HOST, 0), backlog=BACKLOG_CONNECTIONS) as listener:
        listener.setblocking(False)
        server = HttpServer(app)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        settle_memory()
        port = listener.getsockname()[1]
        sys.stderr.write(msgspec.json.encode({"event": LISTENING, "port": port}).decode() + "\n")
        sys.stderr.flush()
        await asyncio.to_thread(stop.event.wait)
        server.should_exit = True
        await serving


async def serve_named(application: str, url: str, stop: Stop) -> None:
    """Serve one of the baselines."""
    if application == "hello":
        await serve(hello_application(), stop)
        return
    async with connection_pool(url) as pool:
        await serve(pooled_application(pool), stop)


@click.command(epilog=settings_epilog(ViewSettings))
@click.argument("application", type=click.Choice(["hello", "pooled"]))
def main(application: str) -> None:
    """Serve a baseline until SIGTERM."""
    url = read_settings(ViewSettings).view_url
    with stop_on_signals() as stop, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_named(application, url, stop))


if __name__ == "__main__":
    run_command(main)
