"""Rounds of the real capture: a first snapshot, then catching up with a change of every row."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from cdc.wire import SOURCE_TIME_HEADER, TableName, topic_name
from tests.bench.bench_stack import BenchStack, Pipeline
from tests.bench.errors import BenchError
from tests.bench.processes import peak_rss_bytes
from tests.bench.sample_rows import TABLE, read_json, update_all
from tests.bench.topics import (
    PARTITIONS,
    admin_client,
    committed_ends,
    create_changelog_topics,
    read_all,
    watched_topic,
)

PHASE_SECONDS = 600.0
READS = 2
NOTHING = (0,) * PARTITIONS


@dataclass(frozen=True)
class Phase:
    """What one phase of the capture took, and the rates of plain reads of the same rows just before and after it."""

    rows_per_second: float
    read_rows_per_second: tuple[float, ...]
    cpu_seconds_per_million_rows: float
    peak_rss_bytes: int


def snapshot_and_catch_up(stack: BenchStack, template: str, number: int, rows: int) -> tuple[Phase, Phase]:
    """Measure both phases on a fresh copy of the database `template`, under a topic prefix of its own."""
    database = f"round_{number}"
    stack.create_database(database, template=template)
    pipeline = stack.pipeline(source=database, view=database, topic_prefix=f"bench{number}")
    pipeline.attach(TABLE)
    create_changelog_topics(_admin(pipeline), [_topic(pipeline)])
    snapshot = _phase(stack, pipeline, NOTHING, rows)
    begins = committed_ends(_admin(pipeline), _topic(pipeline))
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        update_all(connection)
    catch_up = _phase(stack, pipeline, begins, rows)
    stack.drop_database(database)
    return snapshot, catch_up


def read_rows_per_second(url: str) -> float:
    """Return the rate at which psycopg alone reads the same JSON."""
    with psycopg.connect(url, autocommit=True) as connection:
        began_at = time.monotonic()
        rows = sum(len(page) for page in read_json(connection))
        return rows / (time.monotonic() - began_at)


def _phase(stack: BenchStack, pipeline: Pipeline, begins: Sequence[int], rows: int) -> Phase:
    """Run the capture until all rows are in the topic after `begins`; check that they are, each as it is now."""
    stack.settle()
    # The first reader after a change sets hint bits on every row; neither side shall pay for that.
    read_rows_per_second(pipeline.source_url)
    reads = [read_rows_per_second(pipeline.source_url) for _ in range(READS)]
    topic = _topic(pipeline)
    with pipeline.daemon("cdc.cli", "run") as capture:
        capture.port()
        with watched_topic(_admin(pipeline), topic, pid=capture.process.pid) as watcher:
            watcher.wait_for_records(begins, rows, timeout_seconds=PHASE_SECONDS)
        peak = peak_rss_bytes(capture.process.pid)
    reads += [read_rows_per_second(pipeline.source_url) for _ in range(READS)]
    began_at, next_offsets = _checked_records(pipeline, begins)
    begun, done = watcher.last_before(began_at), watcher.first_with(next_offsets)
    return Phase(
        rows_per_second=rows / (done.seen_at - began_at),
        read_rows_per_second=tuple(reads),
        cpu_seconds_per_million_rows=(done.cpu_seconds - begun.cpu_seconds) / rows * 1e6,
        peak_rss_bytes=peak,
    )


def _checked_records(pipeline: Pipeline, begins: Sequence[int]) -> tuple[float, list[int]]:
    """Return when the first of a phase's records was read (seconds since 1970), and the offsets where they end.

    Raises BenchError unless the last record of each key has the bytes that plain reading gives, and no key is missing.
    """
    topic = _topic(pipeline)
    images: dict[bytes | None, bytes | None] = {}
    next_offsets = list(begins)
    began_at = float("inf")
    for message in read_all(pipeline.kafka_bootstrap_servers, {topic: begins}):
        images[message.key()] = message.value()
        next_offsets[message.partition() or 0] = (message.offset() or 0) + 1
        began_at = min(began_at, _read_at(message))
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        wanted = {key: row for page in read_json(connection) for key, row in page}
    if images != wanted:
        wrong = sum(images.get(key) != row for key, row in wanted.items())
        raise BenchError(f"topic {topic}: {len(images)} keys, {wrong} of {len(wanted)} rows missing or not as they are")
    return began_at, next_offsets


def _read_at(message: Message) -> float:
    headers = dict(message.headers() or [])
    milliseconds = headers.get(SOURCE_TIME_HEADER)
    if milliseconds is None:
        raise BenchError(f"a record of topic {message.topic()} does not say when its row was read")
    return int(milliseconds) / 1000


def _topic(pipeline: Pipeline) -> str:
    return topic_name(pipeline.topic_prefix, TableName("public", TABLE))


def _admin(pipeline: Pipeline) -> AdminClient:
    return admin_client(pipeline.kafka_bootstrap_servers)
