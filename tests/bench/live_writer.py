"""Single-row changes at constant arrivals, each committed by itself, with the time at which its COMMIT had returned.

Run as a process of its own, it reads `LiveChanges` as JSON on standard input and writes `LiveCommits`.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psycopg

from tests.bench.sample_rows import TABLE

START_DELAY_SECONDS = 0.2
MARK = "live "

# Parameters: the change's number as text, its row.
_CHANGE = f"UPDATE public.{TABLE} SET text = '{MARK}' || %s::text, updated_at = now() WHERE row_id = %s"


class LiveChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What to write: `count` changes, number 0, 1, …, at `rate` a second, to rows 1 to `rows` in turn."""

    url: str
    rate: int
    count: int
    rows: int
    connections: int = 8


class LiveCommits(msgspec.Struct, frozen=True, kw_only=True):
    """When each change's COMMIT had returned, by number, in seconds since 1970."""

    committed_at: list[float]


def write(changes: LiveChanges) -> LiveCommits:
    """Write all changes when they are due, or as soon after as a connection is free."""
    committed_at = [0.0] * changes.count
    start = time.monotonic() + START_DELAY_SECONDS

    def run(first: int) -> None:
        with psycopg.connect(changes.url, autocommit=True, application_name="bench-live") as connection:
            for number in range(first, changes.count, changes.connections):
                time.sleep(max(0.0, start + number / changes.rate - time.monotonic()))
                connection.execute(_CHANGE, (str(number), 1 + number % changes.rows), prepare=True)
                committed_at[number] = time.time()

    with ThreadPoolExecutor(changes.connections) as threads:
        for writing in [threads.submit(run, first) for first in range(changes.connections)]:
            writing.result()
    return LiveCommits(committed_at=committed_at)


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=LiveChanges)
    sys.stdout.buffer.write(msgspec.json.encode(write(wanted)))
