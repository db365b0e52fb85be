"""The open-loop tool against a server that is paused: the pause must show in the figures."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.bench.errors import BenchError
from tests.bench.load import ClosedLoad, OpenLoad, Target, run_closed, run_open
from tests.bench.open_loop import measure

RATE = 400
SECONDS = 3.0
PAUSE_SECONDS = 1.0

SERVER = """
import asyncio

class Hello(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        missing = b"/missing" in data
        status = b"404 Not Found" if missing else b"200 OK"
        self.transport.write(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 5\\r\\n\\r\\nhello")

async def main():
    server = await asyncio.get_running_loop().create_server(Hello, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as process:
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()


def url_of(server: subprocess.Popen[bytes]) -> str:
    assert server.stdout is not None
    return f"http://127.0.0.1:{int(server.stdout.readline())}/"


def test_a_pause_of_one_second_is_seen_by_every_request_that_was_due_in_it(server: subprocess.Popen[bytes]) -> None:
    target = Target(url=url_of(server))
    pauses = [
        threading.Timer(1.0, os.kill, (server.pid, signal.SIGSTOP)),
        threading.Timer(1.0 + PAUSE_SECONDS, os.kill, (server.pid, signal.SIGCONT)),
    ]
    for pause in pauses:
        pause.start()

    result = measure(OpenLoad(target=target, rate=RATE, seconds=SECONDS))

    for pause in pauses:
        pause.join()
    assert result.errors == 0
    assert result.latencies.count == RATE * SECONDS
    # A third of the requests were due in the pause, the first ones with all of it before them.
    assert PAUSE_SECONDS * 0.9 < result.latencies.p99 < PAUSE_SECONDS * 1.3
    assert result.latencies.p99 <= result.latencies.p999 <= result.latencies.max < PAUSE_SECONDS * 1.3
    assert result.latencies.p50 < PAUSE_SECONDS * 0.3


def test_an_undisturbed_server_answers_in_milliseconds(server: subprocess.Popen[bytes]) -> None:
    result = run_open(OpenLoad(target=Target(url=url_of(server)), rate=RATE, seconds=1.0))

    assert result.errors == 0
    assert result.latencies.count == RATE
    assert 0 < result.latencies.p50 < 0.02


def test_a_server_that_dies_leaves_errors_with_their_latency(server: subprocess.Popen[bytes]) -> None:
    target = Target(url=url_of(server))
    death = threading.Timer(0.5, server.kill)
    death.start()

    result = measure(OpenLoad(target=target, rate=RATE, seconds=1.0, give_up_seconds=0.5))

    death.join()
    assert 0.3 * RATE < result.errors < 0.9 * RATE
    assert result.latencies.max > 0.5


def test_replies_of_another_status_are_errors(server: subprocess.Popen[bytes]) -> None:
    target = Target(url=url_of(server) + "missing")

    opened = run_open(OpenLoad(target=target, rate=RATE, seconds=0.25))
    closed = run_closed(ClosedLoad(target=target, seconds=0.25))

    assert opened.errors == opened.latencies.count == RATE * 0.25
    assert closed.errors > 0


def test_a_closed_loop_counts_replies(server: subprocess.Popen[bytes]) -> None:
    result = run_closed(ClosedLoad(target=Target(url=url_of(server)), seconds=0.5, connections=8))

    assert result.errors == 0
    assert result.requests_per_second > RATE


def test_nobody_there_is_an_error_not_a_figure(server: subprocess.Popen[bytes]) -> None:
    url = url_of(server)
    server.kill()
    server.wait()

    with pytest.raises(BenchError, match="cannot connect"):
        measure(OpenLoad(target=Target(url=url), rate=RATE, seconds=0.25))
