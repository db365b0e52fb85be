"""Live changes under a projector that has caught up: from produce() to what a reader of Postgres sees; and idle."""

import threading
import time
from dataclasses import dataclass

import psycopg

from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.history import Event
from tests.bench.percentiles import Latencies, summarise
from tests.bench.processes import Daemon, cores, cpu_seconds
from tests.bench.produced_history import HistoryProducer

LIVE_RATE = 200
ROUND_SECONDS = 0.02
"""The capture's own default: so often it publishes what has changed, in one transaction."""
LOOK_SECONDS = 0.001
LAST_SECONDS = 15.0
CURSOR_SECONDS = 1.0
PROBE = 9_000_000_000
"""A user above those of every history. It counts its changes, so that a row that is seen tells which are in it."""
FIRST_TWEET = 9_000_000_000
CHANGES_A_PROBE = 4
SEEN = f"SELECT username, tweet_count FROM user_information WHERE user_id = {PROBE}"


@dataclass(frozen=True)
class Live:
    """Latencies of changes at 200 a second, and the cores that the projector used meanwhile and after it."""

    latencies: Latencies
    cores: float
    idle_cores: float


def live(pipeline: Pipeline, projector: Daemon, producer: HistoryProducer, *, seconds: float, idle: float) -> Live:
    """Produce at `LIVE_RATE` for so many seconds, one in four changes a probe; then only cursors, for `idle` seconds.

    Raises BenchError when a change does not arrive, or the row is not what it must be.
    """
    changes = round(LIVE_RATE * seconds)
    produced_at: dict[int, float] = {}
    seen_at: dict[int, float] = {}
    over = threading.Event()
    reader = threading.Thread(target=_watch, args=(pipeline.view_url, _probes(changes), seen_at, over))
    began_at, cpu_began = time.monotonic(), cpu_seconds(projector.process.pid)
    reader.start()
    try:
        _produce(producer, changes, produced_at)
        reader.join(LAST_SECONDS)
    finally:
        over.set()
        reader.join()
    used = (cpu_seconds(projector.process.pid) - cpu_began) / (time.monotonic() - began_at)
    _check(pipeline.view_url, changes)
    late = [number for number in produced_at if number not in seen_at]
    if late:
        raise BenchError(f"{len(late)} of {len(produced_at)} live changes were not seen within {LAST_SECONDS:g} s")
    return Live(
        latencies=summarise(seen_at[number] - at for number, at in produced_at.items()),
        cores=used,
        idle_cores=_idle(projector, producer, idle),
    )


def _produce(producer: HistoryProducer, changes: int, produced_at: dict[int, float]) -> None:
    start, number = time.monotonic(), 0
    while number < changes:
        due = min(int((time.monotonic() - start) * LIVE_RATE), changes)
        events = [_change(at) for at in range(number, due)]
        now = time.monotonic()
        produced_at.update((at // CHANGES_A_PROBE, now) for at in range(number, due) if at % CHANGES_A_PROBE == 0)
        number = max(number, due)
        if events:
            producer.produce(events)
        time.sleep(ROUND_SECONDS)


def _probes(changes: int) -> int:
    return -(-changes // CHANGES_A_PROBE)


def _change(number: int) -> Event:
    if number % CHANGES_A_PROBE == 0:
        key = b'{"user_id":%d}' % PROBE
        rest = b',"name":null,"description":null,"location":null,"web_page_url":null,"joined_date":null'
        images = b',"profile_image_url":null,"background_image_url":null,"updated_at":null}'
        value = key[:-1] + b',"username":"%d"' % (number // CHANGES_A_PROBE) + rest + images
        return Event("users", key, value, b"u")
    key = b'{"tweet_id":%d}' % (FIRST_TWEET + number)
    return Event("tweets", key, key[:-1] + b',"user_id":%d,"text":"live","created_at":null}' % PROBE, b"c")


def _watch(url: str, probes: int, seen_at: dict[int, float], over: threading.Event) -> None:
    """Note when each probe was first seen: the newest says that those before it are there, too."""
    newest = -1
    with psycopg.connect(url, autocommit=True) as session:
        while newest < probes - 1 and not over.wait(LOOK_SECONDS):
            row = session.execute(SEEN, prepare=True).fetchone()
            if row is not None and int(row[0]) > newest:
                now = time.monotonic()
                seen_at.update((number, now) for number in range(newest + 1, int(row[0]) + 1))
                newest = int(row[0])


def _check(url: str, changes: int) -> None:
    probes = _probes(changes)
    expected = (str(probes - 1), changes - probes)
    deadline = time.monotonic() + LAST_SECONDS
    with psycopg.connect(url, autocommit=True) as session:
        while (row := session.execute(SEEN).fetchone()) != expected:
            if time.monotonic() > deadline:
                raise BenchError(f"the row of the live changes is {row}, and is to be {expected}")
            time.sleep(ROUND_SECONDS)


def _idle(projector: Daemon, producer: HistoryProducer, seconds: float) -> float:
    """Return the cores used while nothing changes, and the cursor alone moves, once a second."""
    over = threading.Event()

    def move() -> None:
        while not over.wait(CURSOR_SECONDS):
            producer.produce([])

    moving = threading.Thread(target=move)
    moving.start()
    try:
        return cores(projector.process.pid, seconds=seconds)
    finally:
        over.set()
        moving.join()
