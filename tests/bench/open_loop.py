"""Open-loop load: constant arrivals, each latency counted from the request's planned send time.

A closed loop asks a paused server nothing and so reports nothing of the pause (coordinated omission). Here requests
become due whatever the server does: one that finds no free connection waits in line, and its wait counts.

Run as a process of its own, it reads an `OpenLoad` as JSON on standard input and writes an `OpenResult`.
"""

import asyncio
import gc
import selectors
import sys
from array import array
from collections import deque
from itertools import islice

import msgspec

from tests.bench.errors import BenchError
from tests.bench.http_connection import HttpConnection, address
from tests.bench.load import OpenLoad, OpenResult

START_DELAY_SECONDS = 0.05
_PENDING = -1.0


class OpenLoop:
    """One run of an open loop. Everything that it needs is allocated before the first request is due."""

    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._host, self._port = address(load.target.url)
        self._total = round(load.rate * load.seconds)
        self._payloads = list(islice(load.target.requests(), self._total))
        self._latencies = array("d", [_PENDING]) * self._total
        self._connections: set[HttpConnection] = set()
        self._idle: list[HttpConnection] = []
        self._line: deque[int] = deque()
        self._next = 0
        self._answered = 0
        self._errors = 0
        self._send_delay_max = 0.0
        self._start = 0.0
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> OpenResult:
        """Send all requests when they are due, wait for the replies, and return what was seen.

        Requests without a reply `give_up_seconds` after the last one was due are errors, with the latency that they
        had by then. Raises BenchError when the server cannot be connected to at the start.
        """
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        try:
            await asyncio.gather(*(self._open() for _ in range(self._load.connections)))
        except OSError as error:
            raise BenchError(f"cannot connect to {self._host}:{self._port}: {error.strerror}") from error
        self._start = self._loop.time() + START_DELAY_SECONDS
        self._loop.call_at(self._start, self._send_due)
        self._loop.call_at(self._planned(self._total) + self._load.give_up_seconds, self._finish)
        await self._done
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)  # the loop closes them in its next turn
        return OpenResult(
            latencies_seconds=self._latencies.tolist(),
            errors=self._errors,
            send_delay_max_seconds=self._send_delay_max,
        )

    def _planned(self, number: int) -> float:
        return self._start + number / self._load.rate

    def _send_due(self) -> None:
        now = self._loop.time()
        while self._next < self._total and self._planned(self._next) <= now:
            self._send_delay_max = max(self._send_delay_max, now - self._planned(self._next))
            self._line.append(self._next)
            self._next += 1
        self._use_idle()
        if self._next < self._total:
            self._loop.call_at(self._planned(self._next), self._send_due)

    def _use_idle(self) -> None:
        while self._line and self._idle:
            number = self._line.popleft()
            self._idle.pop().send(number, self._payloads[number])

    def _replied(self, connection: HttpConnection, status: int) -> None:
        self._record(connection, good=status in self._load.target.statuses)
        self._idle.append(connection)
        self._use_idle()

    def _lost(self, connection: HttpConnection) -> None:
        if self._done.done():
            return
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._record(connection, good=False)
        task = self._loop.create_task(self._reopen())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _record(self, connection: HttpConnection, *, good: bool) -> None:
        number, connection.request_number = connection.request_number, None
        if number is None:
            return
        self._latencies[number] = self._loop.time() - self._planned(number)
        self._errors += not good
        self._answered += 1
        if self._answered == self._total:
            self._finish()

    def _finish(self) -> None:
        if self._done.done():
            return
        now = self._loop.time()
        for number, latency in enumerate(self._latencies):
            if latency == _PENDING:
                self._latencies[number] = now - self._planned(number)
                self._errors += 1
        self._done.set_result(None)

    async def _open(self) -> None:
        _, connection = await self._loop.create_connection(
            lambda: HttpConnection(self._replied, self._lost), self._host, self._port
        )
        self._connections.add(connection)
        self._idle.append(connection)

    async def _reopen(self) -> None:
        """Open a connection in place of a lost one; try again while requests wait, since the server may return."""
        while not self._done.done():
            try:
                await self._open()
            except OSError:
                await asyncio.sleep(0.1)
            else:
                self._use_idle()
                return


def measure(load: OpenLoad) -> OpenResult:
    """Run an open loop in this process."""
    # select() takes its timeout in microseconds; epoll's whole milliseconds would be added to each latency.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    # A collection in the middle of a run would be measured as the server's.
    gc.freeze()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(OpenLoop(load).run())
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure(msgspec.json.decode(sys.stdin.buffer.read(), type=OpenLoad))))
