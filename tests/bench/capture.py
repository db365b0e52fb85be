"""`make bench-capture`: snapshot and catch-up against plain reading, live latency, an idle capture, what writers pay.

The processes measured are real: `viewkeeper-cdc run` on a table of about 200 bytes a row, six partitions. With
PEER=debezium Debezium's connector does the same on the same servers, in turn with it; and so does, with SOURCE=wal, the
capture from a replication slot, or with SOURCE=timestamp the one that polls an indexed column that the writers keep.
"""

from collections.abc import Mapping
from statistics import median

import click
import psycopg

from tests.bench import debezium_phases as debezium
from tests.bench.bench_stack import BenchStack, bench_stack
from tests.bench.catching_up import Effort, Phase, snapshot_and_catch_up
from tests.bench.command import rate_option, run_bench, say, scale_option
from tests.bench.figures import USUAL_RATE, Figures, at_rate, report
from tests.bench.live_latency import live_load
from tests.bench.measured_source import OTHER_SOURCES, captured, settings_of
from tests.bench.percentiles import ratio_of_medians
from tests.bench.processes import cores
from tests.bench.sample_rows import TABLE, create_table, insert_rows
from tests.bench.writer_cost import writer_cost

ROWS = 500_000
USUAL_ROUNDS = 3
LIVE_SECONDS = 60.0
LEAST_LIVE_SECONDS = 8.0
LOW_RATE = 200
IDLE_SECONDS = 20.0
LEAST_IDLE_SECONDS = 5.0
TEMPLATE = "filled"
PEERS = ("debezium",)


def measure(
    stack: BenchStack, scale: float, rate: int, *, rounds: int, source: str | None, with_debezium: bool
) -> Figures:
    """Return all figures of the capture, and another source's or Debezium's beside them if they are wanted."""
    rows = max(round(ROWS * scale), 1_000)
    # More rows want no more time of what does not read them.
    scale = min(scale, 1.0)
    say(f"filling a table of {rows:,} rows")
    fill(stack, rows)
    figures = _rounds(stack, rows, rounds=rounds, source=source, with_debezium=with_debezium)
    figures |= _live(stack, scale, rate, rows)
    if source is not None:
        figures |= _named(source, _live(stack, scale, rate, rows, further=settings_of(source, stack.folder)))
    if with_debezium:
        seconds = _live_seconds(scale)
        say(f"Debezium: live latency at {rate:,} changes/s for {seconds:g} s")
        figures |= debezium.live(stack, TEMPLATE, rate=rate, seconds=seconds, rows=rows)
    say("inserting with triggers and without")
    return figures | writer_cost(stack, scale)


def _rounds(stack: BenchStack, rows: int, *, rounds: int, source: str | None, with_debezium: bool) -> Figures:
    """Measure snapshots and catch-ups, each round on fresh copies of the table."""
    ours, others, theirs = [], [], []
    for number in range(1, rounds + 1):
        snapshot, catch_up = snapshot_and_catch_up(stack, TEMPLATE, number, rows)
        ours.append((snapshot, catch_up))
        say(f"round {number}: snapshot {_words(snapshot)}; catch-up {_words(catch_up)}")
        if source is not None:
            further = settings_of(source, stack.folder)
            other = snapshot_and_catch_up(stack, TEMPLATE, rounds + number, rows, further=further)
            others.append(other)
            say(f"round {number}: {source}: snapshot {_words(other[0])}; catch-up {_words(other[1])}")
        if with_debezium:
            peer = debezium.snapshot_and_catch_up(stack, TEMPLATE, number, rows)
            theirs.append(peer)
            say(f"round {number}: Debezium: snapshot {_rate(peer[0])}; catch-up {_rate(peer[1])}")
    figures = _phase_figures(ours)
    if source is not None:
        figures |= _named(source, _phase_figures(others))
        figures[f"{source}_snapshot_ratio_to_triggers"] = ratio_of_medians(
            *([snapshot.rows_per_second for snapshot, _ in phases] for phases in (others, ours))
        )
    return figures | debezium.phase_figures(ours, theirs) if with_debezium else figures


def fill(stack: BenchStack, rows: int) -> None:
    """Make the database TEMPLATE with so many rows in the sample table."""
    stack.create_database(TEMPLATE)
    pipeline = stack.pipeline(source=TEMPLATE, view=TEMPLATE, topic_prefix=TEMPLATE)
    pipeline.migrate("source")
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        create_table(connection)
        insert_rows(connection, 1, rows)
        connection.execute(f"VACUUM ANALYZE public.{TABLE}")


def _named(source: str, figures: Figures) -> Figures:
    return {f"{source}_{name}": value for name, value in figures.items()}


def _phase_figures(rounds: list[tuple[Phase, Phase]]) -> Figures:
    snapshots, catch_ups = [first for first, _ in rounds], [second for _, second in rounds]
    both = [*snapshots, *catch_ups]
    return {
        "snapshot_rows_per_second": median(phase.rows_per_second for phase in snapshots),
        "catchup_rows_per_second": median(phase.rows_per_second for phase in catch_ups),
        "read_rows_per_second": median(rate for phase in both for rate in phase.read_rows_per_second),
        "snapshot_ratio_to_read": _ratio_to_read(snapshots),
        "catchup_ratio_to_read": _ratio_to_read(catch_ups),
        "cpu_seconds_per_million_rows": max(
            median(phase.cpu_seconds_per_million_rows for phase in phases) for phases in (snapshots, catch_ups)
        ),
        "peak_rss_mb": max(phase.peak_rss_bytes for phase in both) / 1e6,
    }


def _ratio_to_read(phases: list[Phase]) -> float:
    reads = (rate for phase in phases for rate in phase.read_rows_per_second)
    return ratio_of_medians((phase.rows_per_second for phase in phases), reads)


def _live(
    stack: BenchStack, scale: float, rate: int, rows: int, *, further: Mapping[str, str] | None = None
) -> Figures:
    """Measure what one capture that has finished its snapshot uses at rest, then live latency at both rates."""
    database = "live"
    stack.create_database(database, template=TEMPLATE)
    topic_prefix = f"{database}{len(further or ())}"
    pipeline = stack.pipeline(source=database, view=database, topic_prefix=topic_prefix, further=further)
    seconds = _live_seconds(scale)
    figures: Figures = {}
    with captured(pipeline), pipeline.daemon("cdc.cli", "run") as capture:
        capture.wait_for_event("snapshot_complete", timeout_seconds=600.0)
        stack.settle()
        idle_seconds = max(IDLE_SECONDS * scale, LEAST_IDLE_SECONDS)
        say(f"nothing to capture for {idle_seconds:g} s")
        figures["idle_cores"] = cores(capture.process.pid, seconds=idle_seconds)
        for changes_per_second in dict.fromkeys((rate, LOW_RATE)):
            say(f"live latency at {changes_per_second:,} changes/s for {seconds:g} s")
            pid = capture.process.pid
            load = live_load(pipeline, pid=pid, rate=changes_per_second, seconds=seconds, rows=rows)
            figures |= at_rate(
                {
                    "latency_p50_seconds": load.latencies.p50,
                    "latency_p95_seconds": load.latencies.p95,
                    "latency_max_seconds": load.latencies.max,
                    "live_cores": load.cores,
                },
                changes_per_second,
            )
    stack.drop_database(database)
    return figures


def _live_seconds(scale: float) -> float:
    return max(LIVE_SECONDS * scale, LEAST_LIVE_SECONDS)


def _words(phase: Phase) -> str:
    return f"{_rate(phase)} against {median(phase.read_rows_per_second):,.0f}"


def _rate(effort: Effort) -> str:
    return f"{effort.rows_per_second:,.0f} rows/s"


@click.command()
@scale_option
@rate_option(USUAL_RATE)
@click.option(
    "--rounds",
    envvar="ROUNDS",
    default=USUAL_ROUNDS,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Snapshots and catch-ups, each on fresh copies of the table.",
)
@click.option(
    "--source",
    envvar="SOURCE",
    show_envvar=True,
    type=click.Choice(OTHER_SOURCES),
    help="Another source, beside the triggers and in turn with them.",
)
@click.option(
    "--peer",
    envvar="PEER",
    show_envvar=True,
    type=click.Choice(PEERS),
    help="Who does the same on the same servers, in turn.",
)
def main(scale: float, rate: int, rounds: int, source: str | None, peer: str | None) -> None:
    """Measure the capture; live latency at RATE and at 200 changes/s."""
    with bench_stack() as stack:
        figures = measure(stack, scale, rate, rounds=rounds, source=source, with_debezium=peer is not None)
    report("capture", figures, rate=rate)


if __name__ == "__main__":
    run_bench(main)
