"""What the two load tools share: what they ask for, what they answer, and their being processes of their own."""

import random
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from tests.bench.errors import BenchError
from tests.bench.http_connection import get_request
from tests.bench.percentiles import Latencies, summarise


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server's resource: `url` with `{}` where an id stands, and the ids to ask for, first and last."""

    url: str
    first_id: int = 1
    last_id: int = 1
    statuses: tuple[int, ...] = (200,)

    def requests(self, *, seed: int = 1) -> Iterator[bytes]:
        """Yield requests for ids drawn evenly, without end, the same ones for the same seed."""
        if "{}" not in self.url:
            fixed = get_request(self.url)
            while True:
                yield fixed
        drawn = random.Random(seed)  # noqa: S311 - load, no secret
        while True:
            yield get_request(self.url.format(drawn.randint(self.first_id, self.last_id)))


class OpenLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What an open loop does: so many requests a second for so many seconds, over so many connections at most."""

    target: Target
    rate: int
    seconds: float
    connections: int = 64
    give_up_seconds: float = 10.0


class OpenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an open loop saw: each request's latency in seconds from its planned send time, errors among them.

    `send_delay_max_seconds` is how late the tool itself was, at worst: it is part of the latencies.
    """

    latencies_seconds: list[float]
    errors: int
    send_delay_max_seconds: float

    @property
    def latencies(self) -> Latencies:
        """The latencies' percentiles."""
        return summarise(self.latencies_seconds)


class ClosedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a closed loop does: each of its connections asks again as soon as it has its reply."""

    target: Target
    seconds: float
    connections: int = 32


class ClosedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a closed loop saw."""

    requests_per_second: float
    errors: int


def run_open(load: OpenLoad) -> OpenResult:
    """Run an open loop in a process of its own."""
    return msgspec.json.decode(_run_tool("open_loop", msgspec.json.encode(load)), type=OpenResult)


def run_closed(load: ClosedLoad) -> ClosedResult:
    """Run a closed loop in a process of its own."""
    return msgspec.json.decode(_run_tool("closed_loop", msgspec.json.encode(load)), type=ClosedResult)


def _run_tool(module: str, load: bytes) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}"], input=load, stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise BenchError(
            f"the load tool tests.bench.{module} failed with code {done.returncode}; see its message above"
        )
    return done.stdout
