"""Closed-loop load: how many requests a second a server answers when each connection asks again at once.

Run as a process of its own, it reads a `ClosedLoad` as JSON on standard input and writes a `ClosedResult`.
"""

import asyncio
import sys
from contextlib import suppress
from itertools import islice

import msgspec
import uvloop

from tests.bench.errors import BenchError
from tests.bench.http_connection import HttpConnection, address
from tests.bench.load import ClosedLoad, ClosedResult

DISTINCT_REQUESTS = 20_000


class ClosedLoop:
    """One run of a closed loop."""

    def __init__(self, load: ClosedLoad) -> None:
        self._load = load
        self._payloads = list(islice(load.target.requests(), DISTINCT_REQUESTS))
        self._sent = 0
        self._answered = 0
        self._errors = 0
        self._open = True

    async def run(self) -> ClosedResult:
        """Keep all connections busy for the load's seconds; raise BenchError when one is lost."""
        loop = asyncio.get_running_loop()
        host, port = address(self._load.target.url)
        lost = asyncio.Event()
        connections = []
        for _ in range(self._load.connections):
            _, connection = await loop.create_connection(
                lambda: HttpConnection(self._replied, lambda _: lost.set()), host, port
            )
            connections.append(connection)
        begun = loop.time()
        for connection in connections:
            self._ask(connection)
        with suppress(TimeoutError):
            await asyncio.wait_for(lost.wait(), self._load.seconds)
        seconds = loop.time() - begun
        self._open = False
        if lost.is_set():
            raise BenchError(f"{host}:{port} closed a connection after {self._answered} replies")
        for connection in connections:
            connection.close()
        return ClosedResult(requests_per_second=self._answered / seconds, errors=self._errors)

    def _ask(self, connection: HttpConnection) -> None:
        connection.send(self._sent, self._payloads[self._sent % DISTINCT_REQUESTS])
        self._sent += 1

    def _replied(self, connection: HttpConnection, status: int) -> None:
        if not self._open:
            return
        self._answered += 1
        self._errors += status not in self._load.target.statuses
        self._ask(connection)


def measure(load: ClosedLoad) -> ClosedResult:
    """Run a closed loop in this process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ClosedLoop(load).run())


if __name__ == "__main__":
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=ClosedLoad)
    sys.stdout.buffer.write(msgspec.json.encode(measure(load)))
