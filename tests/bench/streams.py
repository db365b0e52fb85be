"""`make bench-streams`: what thousands of idle streams cost, and how long a change of the view takes to one of them.

The change is committed in the view's database: what the pipeline takes until then is `make bench-freshness`.
"""

import asyncio
import http.client
import random
import re
import resource
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus

import click
import psutil
import psycopg
from psycopg import sql

from projector.tables import PRESENT, SCHEMA, view_table_name
from runtime.settings import ApiSettings
from tests.bench.bench_stack import BenchStack, Pipeline, bench_stack
from tests.bench.command import run_bench, say, scale_option
from tests.bench.errors import BenchError
from tests.bench.figures import Figures, report
from tests.bench.percentiles import summarise
from tests.bench.processes import Daemon, cores
from views.user_information import user_information

STREAMS = int(ApiSettings.model_fields["api_streams"].default)
LEAST_STREAMS = 100
CHANGES = 500
LEAST_CHANGES = 50
AT_ONCE = 250
"""Streams that are asked for at once: a server takes so many connections before it accepts them, and more."""
IDLE_SECONDS = 20.0
"""Two heartbeats."""
GIVE_UP_SECONDS = 60.0
OTHER_FILES = 200

_COUNT = re.compile(rb'"likeCount":([0-9]+)\}')
_NAME = f"{user_information.schema}.{user_information.name}"
_TABLE = sql.Identifier(SCHEMA, view_table_name(user_information, 1))
_CHANGE = sql.SQL("UPDATE {} SET like_count = %s WHERE user_id = %s").format(_TABLE)


class Client(asyncio.Protocol):
    """A client of one user's stream; it notes when each count came."""

    def __init__(self, user_id: int, began: asyncio.Future[None], came_at: dict[int, float]) -> None:
        self._user_id = user_id
        self._began = began
        self._head = b""
        self._came_at = came_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        if isinstance(transport, asyncio.WriteTransport):
            request = f"GET /users/{self._user_id} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n"
            transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        """Note what came: events are short, and come in one piece."""
        if not self._began.done():
            self._head += data
            if not self._head.startswith(b"HTTP/1.1 200 "):
                self._began.set_exception(BenchError(f"the stream of user {self._user_id} was refused: {data!r}"))
            elif b"event: as-of" in self._head:
                self._began.set_result(None)
        for count in _COUNT.findall(data):
            self._came_at.setdefault(int(count), time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for the beginning."""
        if not self._began.done():
            self._began.set_exception(BenchError(f"the stream of user {self._user_id} did not begin: {exc}"))


def measure(stack: BenchStack, scale: float) -> Figures:
    """Return all figures."""
    streams, changes = max(round(STREAMS * scale), LEAST_STREAMS), max(round(CHANGES * scale), LEAST_CHANGES)
    _raise_limit(streams + OTHER_FILES)
    with _captured_view(stack, streams) as pipeline, pipeline.daemon("api.cli", "run") as api:
        return asyncio.run(_measure(pipeline, api, streams, changes))


@contextmanager
def _captured_view(stack: BenchStack, users: int) -> Iterator[Pipeline]:
    stack.create_database("view")
    pipeline = stack.pipeline(source="view", view="view", topic_prefix="bench", further={"VIEWKEEPER_CDC_NAME": "view"})
    pipeline.migrate("source", "view")
    fill = sql.SQL("INSERT INTO {} (user_id, username, {}) SELECT i, 'user' || i, true FROM generate_series(1, %s) i")
    with psycopg.connect(pipeline.view_url, autocommit=True) as connection:
        connection.execute(fill.format(_TABLE, sql.Identifier(PRESENT)), (users,))
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(_TABLE))
    pipeline.attach(_NAME, "--key", ",".join(user_information.key_names))
    with pipeline.daemon("cdc.cli", "run"):
        yield pipeline


async def _measure(pipeline: Pipeline, api: Daemon, streams: int, changes: int) -> Figures:
    port, process = api.port("api_listening"), psutil.Process(api.process.pid)
    came_at: dict[int, float] = {}
    await asyncio.to_thread(_wait_ready, port)
    await _open(port, range(1, 2), came_at)
    without = process.memory_info().rss
    say(f"opening {streams:,} streams")
    began_at = time.monotonic()
    await _open(port, range(2, streams + 1), came_at)
    opening_seconds = time.monotonic() - began_at
    say(f"leaving them idle for {IDLE_SECONDS:g} s")
    idle_cores = await asyncio.to_thread(cores, process.pid, seconds=IDLE_SECONDS)
    idle = process.memory_info().rss
    say(f"changing {changes:,} rows, one after the other")
    latencies = summarise(await _latencies(pipeline.view_url, streams, changes, came_at))
    return {
        "streams": streams,
        "opening_seconds": opening_seconds,
        "idle_rss_mb": idle / 1e6,
        "kilobytes_per_stream": (idle - without) / streams / 1e3,
        "idle_cores": idle_cores,
        "p50_seconds": latencies.p50,
        "p95_seconds": latencies.p95,
        "max_seconds": latencies.max,
    }


def _wait_ready(port: int) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_SECONDS)
        with closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        time.sleep(0.05)
    raise BenchError(f"the API was not ready within {GIVE_UP_SECONDS:g} s")


async def _open(port: int, user_ids: range, came_at: dict[int, float]) -> None:
    """Open a stream for each user; return once all of them have begun."""
    loop = asyncio.get_running_loop()

    async def opened(user_id: int) -> None:
        began = loop.create_future()
        await loop.create_connection(lambda: Client(user_id, began, came_at), "127.0.0.1", port)
        await began

    async with asyncio.timeout(GIVE_UP_SECONDS):
        for first in range(0, len(user_ids), AT_ONCE):
            await asyncio.gather(*map(opened, user_ids[first : first + AT_ONCE]))


async def _latencies(url: str, streams: int, changes: int, came_at: dict[int, float]) -> list[float]:
    """Change one row after the other; return the seconds from each COMMIT until its stream has the change."""
    drawn = random.Random(1)  # noqa: S311 - load, no secret
    latencies: list[float] = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for count in range(1, changes + 1):
            user_id = drawn.randint(2, streams)
            async with connection.transaction():
                await connection.execute(_CHANGE, (count, user_id))
                await connection.execute("SELECT cdc.log_changes(%s::regclass, %s)", (_NAME, f"{{{user_id}}}"))
            committed_at = time.monotonic()
            async with asyncio.timeout(GIVE_UP_SECONDS):
                while count not in came_at:
                    await asyncio.sleep(0.001)
            latencies.append(came_at[count] - committed_at)
            # Of any length, so that changes do not fall into step with the capture's polls.
            await asyncio.sleep(0.03 * drawn.random())
    return latencies


def _raise_limit(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise BenchError(f"{files} open files are needed and {hard} allowed; raise the limit, or shrink SCALE")
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


@click.command()
@scale_option
def main(scale: float) -> None:
    """Measure idle streams, and the way of a change to one of them."""
    with bench_stack() as stack:
        figures = measure(stack, scale)
    report("streams", figures)


if __name__ == "__main__":
    run_bench(main)
