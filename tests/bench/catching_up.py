"""Rounds of the real capture: a first snapshot, then catching up with a change of every row."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from cdc.wire import SOURCE_TIME_HEADER, TableName, topic_name
from tests.bench.bench_stack import BenchStack, Pipeline
from tests.bench.errors import BenchError
from tests.bench.measured_source import captured
from tests.bench.processes import peak_rss_bytes
from tests.bench.sample_rows import TABLE, read_json, update_all
from tests.bench.topics import (
    PARTITIONS,
    TopicWatcher,
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
class Effort:
    """What it took a process to fill a topic with the rows of one phase."""

    rows_per_second: float
    cpu_seconds_per_million_rows: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Phase(Effort):
    """What one phase of the capture took, and the rates of plain reads of the same rows just before and after it."""

    read_rows_per_second: tuple[float, ...]


@dataclass(frozen=True)
class RecordForm:
    """How a process writes a row: the header with the time of its reading in milliseconds, what a value means.

    `meaning` of a value and of the JSON that plain reading gives are compared; for the capture they are the bytes.
    `key` makes the JSON of a record's key.
    """

    time_header: str
    meaning: Callable[[bytes], object]
    key: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class Filling:
    """A topic that was watched while a process filled it, and that process's peak memory."""

    begins: Sequence[int]
    watcher: TopicWatcher
    peak_rss_bytes: int


CAPTURE_FORM = RecordForm(time_header=SOURCE_TIME_HEADER, meaning=bytes)


def snapshot_and_catch_up(
    stack: BenchStack,
    template: str,
    number: int,
    rows: int,
    *,
    further: Mapping[str, str] | None = None,
    form: RecordForm = CAPTURE_FORM,
) -> tuple[Phase, Phase]:
    """Measure both phases on a fresh copy of the database `template`, under a topic prefix of its own.

    `further` settings may have the capture write its records in another form.
    """
    database = f"round_{number}"
    stack.create_database(database, template=template)
    pipeline = stack.pipeline(source=database, view=database, topic_prefix=f"bench{number}", further=further)
    with captured(pipeline):
        create_changelog_topics(_admin(pipeline), [changelog_topic(pipeline)])
        snapshot = _phase(stack, pipeline, NOTHING, rows, form)
        begins = committed_ends(_admin(pipeline), changelog_topic(pipeline))
        with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
            update_all(connection)
        catch_up = _phase(stack, pipeline, begins, rows, form)
    stack.drop_database(database)
    return snapshot, catch_up


def read_rows_per_second(url: str) -> float:
    """Return the rate at which psycopg alone reads the same JSON."""
    with psycopg.connect(url, autocommit=True) as connection:
        began_at = time.monotonic()
        rows = sum(len(page) for page in read_json(connection))
        return rows / (time.monotonic() - began_at)


def changelog_topic(pipeline: Pipeline) -> str:
    """Return the sample table's topic."""
    return topic_name(pipeline.topic_prefix, TableName("public", TABLE))


def watch_filling(
    pipeline: Pipeline, begins: Sequence[int], rows: int, *, pid: int, check: Callable[[], object]
) -> Filling:
    """Watch process `pid` until all rows are in the topic after `begins`; `check` raises BenchError if it failed."""
    topic = changelog_topic(pipeline)
    with watched_topic(_admin(pipeline), topic, pid=pid) as watcher:
        watcher.wait_for_records(begins, rows, timeout_seconds=PHASE_SECONDS, check=check)
    return Filling(begins, watcher, peak_rss_bytes(pid))


def effort(pipeline: Pipeline, filling: Filling, rows: int, form: RecordForm) -> Effort:
    """Return what a filling took from the reading of its first row to the record that was readable last.

    Raises BenchError unless the topic has every row as it is now.
    """
    began_at, next_offsets = _checked_records(pipeline, filling.begins, form)
    begun, done = filling.watcher.last_before(began_at), filling.watcher.first_with(next_offsets)
    return Effort(
        rows_per_second=rows / (done.seen_at - began_at),
        cpu_seconds_per_million_rows=(done.cpu_seconds - begun.cpu_seconds) / rows * 1e6,
        peak_rss_bytes=filling.peak_rss_bytes,
    )


def _phase(stack: BenchStack, pipeline: Pipeline, begins: Sequence[int], rows: int, form: RecordForm) -> Phase:
    """Run the capture until all rows are in the topic after `begins`; check that they are, each as it is now."""
    stack.settle()
    # The first reader after a change sets hint bits on every row; neither side shall pay for that.
    read_rows_per_second(pipeline.source_url)
    reads = [read_rows_per_second(pipeline.source_url) for _ in range(READS)]
    with pipeline.daemon("cdc.cli", "run") as capture:
        capture.port()
        filling = watch_filling(pipeline, begins, rows, pid=capture.process.pid, check=capture.check_alive)
    reads += [read_rows_per_second(pipeline.source_url) for _ in range(READS)]
    taken = effort(pipeline, filling, rows, form)
    return Phase(
        rows_per_second=taken.rows_per_second,
        cpu_seconds_per_million_rows=taken.cpu_seconds_per_million_rows,
        peak_rss_bytes=taken.peak_rss_bytes,
        read_rows_per_second=tuple(reads),
    )


def _checked_records(pipeline: Pipeline, begins: Sequence[int], form: RecordForm) -> tuple[float, list[int]]:
    """Return when the first of a phase's records was read (seconds since 1970), and the offsets where they end.

    Raises BenchError unless the last record of each key means what plain reading gives, and no key is missing.
    """
    topic = changelog_topic(pipeline)
    images: dict[bytes | None, bytes | None] = {}
    next_offsets = list(begins)
    began_at = float("inf")
    for message in read_all(pipeline.kafka_bootstrap_servers, {topic: begins}):
        images[form.key(message.key() or b"")] = message.value()
        next_offsets[message.partition() or 0] = (message.offset() or 0) + 1
        began_at = min(began_at, _read_at(message, form.time_header))
    keys = len(images)
    wrong = 0
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        for page in read_json(connection):
            for key, row in page:
                image = images.pop(key, None)
                wrong += image is None or form.meaning(image) != form.meaning(row)
    if wrong or images:
        raise BenchError(
            f"topic {topic}: {keys} keys, {len(images)} of them without a row; {wrong} rows missing or not as they are"
        )
    return began_at, next_offsets


def _read_at(message: Message, header: str) -> float:
    milliseconds = dict(message.headers() or []).get(header)
    if milliseconds is None:
        raise BenchError(f"a record of topic {message.topic()} does not say when its row was read")
    return int(milliseconds) / 1000


def _admin(pipeline: Pipeline) -> AdminClient:
    return admin_client(pipeline.kafka_bootstrap_servers)
