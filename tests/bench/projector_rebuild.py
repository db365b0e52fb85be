"""A rebuild beside the projector that keeps the old version, while changes come: its rate, and how long it locks."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.history import Event
from tests.bench.processes import only_settings
from tests.bench.produced_history import HistoryProducer
from tests.bench.projector_live import LIVE_RATE, PROBE, ROUND_SECONDS

FIRST_TWEET = 8_000_000_000


@dataclass(frozen=True)
class Rebuilt:
    """A rebuild from its first record to its swap; `rows_that_differ` between the versions at one point."""

    records_per_second: float
    lock_seconds: float
    rows_that_differ: int


def rebuild(pipeline: Pipeline, producer: HistoryProducer) -> Rebuilt:
    """Rebuild the view as it is declared, at `LIVE_RATE` changes a second; raises BenchError if it fails."""
    with _changing(producer):
        done = subprocess.run(
            [sys.executable, "-m", "projector.cli", "rebuild", "user_information", "--when", "ready", "--json"],
            env=only_settings(pipeline.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise BenchError(f"the rebuild failed with code {done.returncode}:\n{done.stdout}{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    compared = said["comparison"]
    return Rebuilt(
        records_per_second=said["records"] / said["seconds"],
        lock_seconds=said["lock_seconds"],
        rows_that_differ=compared["differing_rows"] + compared["only_old"] + compared["only_new"],
    )


@contextmanager
def _changing(producer: HistoryProducer) -> Iterator[None]:
    """Produce at `LIVE_RATE` until the block ends."""
    over = threading.Event()

    def change() -> None:
        start, number = time.monotonic(), 0
        while not over.wait(ROUND_SECONDS):
            due = int((time.monotonic() - start) * LIVE_RATE)
            producer.produce([_tweet(at) for at in range(number, due)])
            number = due

    changing = threading.Thread(target=change)
    changing.start()
    try:
        yield
    finally:
        over.set()
        changing.join()


def _tweet(number: int) -> Event:
    key = b'{"tweet_id":%d}' % (FIRST_TWEET + number)
    return Event("tweets", key, key[:-1] + b',"user_id":%d,"text":"live","created_at":null}' % PROBE, b"c")
