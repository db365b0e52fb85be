"""What Debezium takes for what the capture is measured with: the same rows on the same servers, in turn with it.

A phase is counted from the reading of its first row, by Debezium's own clock, so that neither the JVM's start nor a
query's counts. The JVM is cold then, as it is in every first snapshot: at a small SCALE that is most of a phase.
"""

from collections.abc import Sequence
from datetime import datetime
from statistics import median

import msgspec
import psycopg

from tests.bench.bench_stack import BenchStack, Pipeline
from tests.bench.catching_up import (
    NOTHING,
    Effort,
    RecordForm,
    changelog_topic,
    effort,
    read_rows_per_second,
    watch_filling,
)
from tests.bench.debezium import READ_TIME_HEADER, tuned_connector
from tests.bench.figures import Figures, at_rate
from tests.bench.live_latency import live_load
from tests.bench.percentiles import ratio_of_medians
from tests.bench.sample_rows import update_all
from tests.bench.topics import admin_client, committed_ends, create_changelog_topics
from tests.debezium import Connector

WARM_UP_SECONDS = 8.0


class SampleRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the sample table; Debezium writes its times with fewer digits than ours where the last ones are 0."""

    row_id: int
    user_id: int
    text: str
    created_at: datetime
    updated_at: datetime


FORM = RecordForm(time_header=READ_TIME_HEADER, meaning=msgspec.json.Decoder(SampleRow).decode)
Round = tuple[Effort, Effort]


def snapshot_and_catch_up(stack: BenchStack, template: str, number: int, rows: int) -> Round:
    """Measure both phases on a fresh copy of the database `template`: between them every row is changed."""
    connector, pipeline = _over_a_copy(stack, f"debezium_{number}", template)
    snapshot = _phase(stack, connector, pipeline, NOTHING, rows, snapshot=True)
    begins = committed_ends(admin_client(pipeline.kafka_bootstrap_servers), changelog_topic(pipeline))
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        update_all(connection)
    catch_up = _phase(stack, connector, pipeline, begins, rows, snapshot=False)
    _drop(stack, connector)
    return snapshot, catch_up


def live(stack: BenchStack, template: str, *, rate: int, seconds: float, rows: int) -> Figures:
    """Measure latency and cores under a live load; it comes after the snapshot and a first load, which warm it up."""
    connector, pipeline = _over_a_copy(stack, "debezium_live", template)
    with connector.running(snapshot=True) as worker:
        pid = worker.process.pid
        watch_filling(pipeline, NOTHING, rows, pid=pid, check=worker.check)
        live_load(pipeline, pid=pid, rate=rate, seconds=WARM_UP_SECONDS, rows=rows)
        stack.settle()
        load = live_load(pipeline, pid=pid, rate=rate, seconds=seconds, rows=rows)
        worker.check()
    _drop(stack, connector)
    return at_rate({"debezium_latency_p95_seconds": load.latencies.p95, "debezium_live_cores": load.cores}, rate)


def phase_figures(ours: Sequence[Round], theirs: Sequence[Round]) -> Figures:
    """Return Debezium's figures of all rounds, and ours ÷ Debezium's.

    The ratio of CPU is that of the phase in which ours compares worse; below 1 ours is cheaper.
    """
    our_snapshots, our_catch_ups = zip(*ours, strict=True)
    snapshots, catch_ups = zip(*theirs, strict=True)
    return {
        "snapshot_ratio_to_debezium": ratio_of_medians(_rates(our_snapshots), _rates(snapshots)),
        "catchup_ratio_to_debezium": ratio_of_medians(_rates(our_catch_ups), _rates(catch_ups)),
        "cpu_ratio_to_debezium": max(
            ratio_of_medians(_cpu(our_snapshots), _cpu(snapshots)),
            ratio_of_medians(_cpu(our_catch_ups), _cpu(catch_ups)),
        ),
        "debezium_snapshot_rows_per_second": median(_rates(snapshots)),
        "debezium_catchup_rows_per_second": median(_rates(catch_ups)),
        "debezium_cpu_seconds_per_million_rows": max(median(_cpu(snapshots)), median(_cpu(catch_ups))),
        "debezium_peak_rss_mb": max(phase.peak_rss_bytes for phase in (*snapshots, *catch_ups)) / 1e6,
    }


def _rates(phases: Sequence[Effort]) -> list[float]:
    return [phase.rows_per_second for phase in phases]


def _cpu(phases: Sequence[Effort]) -> list[float]:
    return [phase.cpu_seconds_per_million_rows for phase in phases]


def _over_a_copy(stack: BenchStack, name: str, template: str) -> tuple[Connector, Pipeline]:
    """Make a connector over a fresh copy of the database `template`, and its topic as the wire contract wants it."""
    stack.create_database(name, template=template)
    pipeline = stack.pipeline(source=name, view=name, topic_prefix=name)
    create_changelog_topics(admin_client(pipeline.kafka_bootstrap_servers), [changelog_topic(pipeline)])
    return tuned_connector(name, pipeline), pipeline


def _drop(stack: BenchStack, connector: Connector) -> None:
    connector.drop_slot()
    stack.drop_database(connector.name)


def _phase(
    stack: BenchStack, connector: Connector, pipeline: Pipeline, begins: Sequence[int], rows: int, *, snapshot: bool
) -> Effort:
    """Run it until all rows are in the topic after `begins`; check that they are, each as it is now."""
    stack.settle()
    # As for ours: a plain read sets the hint bits that the first reader after a change would have to set.
    read_rows_per_second(pipeline.source_url)
    with connector.running(snapshot=snapshot) as worker:
        filling = watch_filling(pipeline, begins, rows, pid=worker.process.pid, check=worker.check)
    return effort(pipeline, filling, rows, FORM)
