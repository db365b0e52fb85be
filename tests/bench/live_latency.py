"""Live latency of the capture: from a COMMIT in the source to a read-committed consumer, in an open loop."""

import re
import subprocess
import sys
import time
from dataclasses import dataclass

import msgspec
from confluent_kafka import Consumer

from cdc.wire import TableName, topic_name
from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.live_writer import MARK, LiveChanges, LiveCommits
from tests.bench.percentiles import Latencies, summarise
from tests.bench.processes import cpu_seconds
from tests.bench.sample_rows import TABLE
from tests.bench.topics import admin_client, committed_ends, committed_reader, is_record

LAST_SECONDS = 15.0
LEAST_RATE_SHARE = 0.9
_NUMBER = re.compile(f'"text":"{MARK}([0-9]+)"'.encode())


@dataclass(frozen=True)
class LiveLoad:
    """What was measured under live changes: their latencies, and the cores that the capturing process used."""

    latencies: Latencies
    cores: float


def live_load(pipeline: Pipeline, *, pid: int, rate: int, seconds: float, rows: int) -> LiveLoad:
    """Measure `live_latency`, and what process `pid` uses of the CPU meanwhile."""
    began_at, cpu_began = time.monotonic(), cpu_seconds(pid)
    latencies = live_latency(pipeline, rate=rate, seconds=seconds, rows=rows)
    return LiveLoad(latencies, (cpu_seconds(pid) - cpu_began) / (time.monotonic() - began_at))


def live_latency(pipeline: Pipeline, *, rate: int, seconds: float, rows: int) -> Latencies:
    """Change single rows at `rate` a second while a capture runs; return the latencies from COMMIT to consumer.

    Raises BenchError when a change does not arrive, or when the source could not take the rate.
    """
    topic = topic_name(pipeline.topic_prefix, TableName("public", TABLE))
    ends = committed_ends(admin_client(pipeline.kafka_bootstrap_servers), topic)
    count = round(rate * seconds)
    changes = LiveChanges(url=pipeline.source_url, rate=rate, count=count, rows=rows)
    with (
        committed_reader(pipeline.kafka_bootstrap_servers, {topic: ends}) as reader,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.live_writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as writer,
    ):
        try:
            if writer.stdin is None or writer.stdout is None:
                raise BenchError("the writer of live changes has no pipes")
            writer.stdin.write(msgspec.json.encode(changes))
            writer.stdin.close()
            received_at = _receive(reader, count, seconds)
            committed_at = msgspec.json.decode(writer.stdout.read(), type=LiveCommits).committed_at
        finally:
            writer.kill()
    taken_seconds = max(committed_at) - min(committed_at)
    if count / taken_seconds < rate * LEAST_RATE_SHARE:
        raise BenchError(f"the source took {count / taken_seconds:.0f} changes/s, not {rate}: no latency at that rate")
    return summarise(received_at[number] - committed for number, committed in enumerate(committed_at))


def _receive(reader: Consumer, count: int, seconds: float) -> dict[int, float]:
    """Return when each change was received, in seconds since 1970, by number."""
    received_at: dict[int, float] = {}
    deadline = time.monotonic() + seconds + LAST_SECONDS
    while len(received_at) < count:
        message = reader.poll(0.1)
        if message is not None and is_record(message):
            number = _NUMBER.search(message.value() or b"")
            if number:
                received_at.setdefault(int(number[1]), time.time())
        if time.monotonic() > deadline:
            raise BenchError(f"{count - len(received_at)} of {count} live changes did not arrive")
    return received_at
