"""`make bench-projector`: catch-up over four topics against a naive consumer, live changes, a rebuild, an audit.

Rounds of the naive consumer, of ours, and of ours with the view captured as a topic take turns. Ours is the real
`viewkeeper-projector run` on an empty view database each time, from when a process was assigned its partitions until
the view's as-of has the history's watermark; PROCESSES=2 starts two, and the rebalance between them is part of it.
GROWTH=1 adds histories of two and five times the events. Targets that are missed are printed.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from statistics import median

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.bench.bench_stack import BenchStack, Pipeline, bench_stack
from tests.bench.command import rate_option, run_bench, say, scale_option
from tests.bench.errors import BenchError
from tests.bench.figures import USUAL_RATE, Figures, report
from tests.bench.history import PROFILE_COLUMNS, Event, History, Row, rows_that_differ
from tests.bench.naive_projector import naive_events_per_second
from tests.bench.percentiles import ratio_of_medians
from tests.bench.processes import Daemon, cpu_seconds, peak_rss_bytes
from tests.bench.produced_history import TABLES, HistoryProducer, create_topics, table_topic
from tests.bench.projector_audit import AUDIT_ROWS, audit
from tests.bench.projector_live import live
from tests.bench.projector_rebuild import rebuild
from tests.bench.targets import Target, missed

EVENTS = 1_000_000
NAIVE_EVENTS = 30_000
NAIVE_SHARE = 0.1
ROUNDS = 3
GROWTH = (2, 5)
LIVE_SECONDS = 30.0
LEAST_LIVE_SECONDS = 5.0
IDLE_SECONDS = 15.0
CATCH_UP_SECONDS = 600.0
POLL_SECONDS = 0.02
PREFIX = "bench"
NAIVE_PREFIX = "naive"
LIVE_PREFIX = "live"
EMPTY_VIEW, CAPTURED_VIEW = "empty_view", "captured_view"
TARGETS = {
    "cpu_seconds_per_million_events": Target(at_most=20),
    "captured_ratio": Target(at_least=0.8),
    "peak_rss_mb": Target(at_most=300),
    "rows_that_differ": Target(at_most=0),
    "live_p95_seconds": Target(at_most=0.06),
    "live_max_seconds": Target(at_most=0.3),
    "idle_cores": Target(at_most=0.03),
    "rebuild_ratio_to_catch_up": Target(at_least=0.7),
    "rebuild_lock_seconds": Target(at_most=0.05),
    "rebuild_rows_that_differ": Target(at_most=0),
    "audit_seconds": Target(at_most=60),
    "audit_peak_rss_mb": Target(at_most=150),
    **{f"growth_{times}_times": Target(at_least=times * 0.75, at_most=times * 1.25) for times in GROWTH},
}
RATIO_TARGETS = {1: 25.0, 2: 40.0}
"""How often the naive consumer's rate, by the number of processes."""
COLUMNS = ("user_id", *PROFILE_COLUMNS, "tweet_count", "following_count", "follower_count", "like_count")


@dataclass(frozen=True)
class Round:
    """One catch-up of ours."""

    events_per_second: float
    seconds: float
    cpu_seconds_per_million_events: float
    peak_rss_bytes: int
    rows_that_differ: int


def measure(stack: BenchStack, scale: float, *, processes: int, growth: bool) -> Figures:
    """Return all figures of the projector, with so many processes where it catches up."""
    events = max(round(EVENTS * scale), 1_000)
    create_empty_view(stack)
    figures = _rounds(stack, events, processes)
    say("live changes, then none")
    figures |= _live(stack, min(scale, 1.0))
    rows = max(round(AUDIT_ROWS * scale), 1_000)
    say(f"auditing {rows:,} rows")
    figures |= audit(stack, rows)
    if growth:
        seconds = figures["catch_up_seconds"]
        figures |= {f"growth_{times}_times": _grown(stack, events * times, processes) / seconds for times in GROWTH}
    return figures


def _rounds(stack: BenchStack, events: int, processes: int) -> Figures:
    say(f"producing {events:,} events")
    history = History(events)
    watermark = produce(stack, PREFIX, history)
    expected = history.expected_rows()
    # The history's beginning in topics of its own: from the whole ones a consumer would get one topic's events first.
    few = max(min(NAIVE_EVENTS, round(events * NAIVE_SHARE)), 1)
    produce(stack, NAIVE_PREFIX, islice(History(events), few))
    stack.create_database("naive")
    naive, ours, captured = [], [], []
    for number in range(1, ROUNDS + 1):
        naive.append(_naive_round(stack, few))
        ours.append(catch_up(stack, _view(stack, f"view_{number}"), events, watermark, expected, processes=processes))
        view = _view(stack, f"captured_{number}")
        captured.append(catch_up(stack, view, events, watermark, expected, processes=processes, template=CAPTURED_VIEW))
        say(
            f"round {number}: naive {naive[-1]:,.0f} events/s, ours {ours[-1].events_per_second:,.0f}, "
            f"captured {captured[-1].events_per_second:,.0f}"
        )
    return {
        "processes": processes,
        "events_per_second": median(done.events_per_second for done in ours),
        "ratio_to_naive": ratio_of_medians((done.events_per_second for done in ours), naive),
        "naive_events_per_second": median(naive),
        "captured_ratio": ratio_of_medians(
            (done.events_per_second for done in captured), (done.events_per_second for done in ours)
        ),
        "catch_up_seconds": median(done.seconds for done in ours),
        "cpu_seconds_per_million_events": median(done.cpu_seconds_per_million_events for done in ours),
        "peak_rss_mb": max(done.peak_rss_bytes for done in ours) / 1e6,
        "rows_that_differ": max(done.rows_that_differ for done in ours),
        "rows_compared": len(expected),
    }


def _live(stack: BenchStack, scale: float) -> Figures:
    """Measure live changes on top of the history, with one process that has caught up; then a rebuild beside it."""
    pipeline = _view(stack, "live", LIVE_PREFIX)
    create_topics(stack.kafka.bootstrap_servers, LIVE_PREFIX)
    producer = HistoryProducer(stack.kafka.bootstrap_servers, LIVE_PREFIX)
    events = max(round(EVENTS * scale), 1_000)
    watermark = producer.produce(History(events))
    stack.settle()
    with _running(stack, pipeline, 1) as (projector,):
        began_at = time.monotonic()
        _wait_until_caught_up([projector], pipeline, watermark)
        caught_up_per_second = events / (time.monotonic() - began_at)
        stack.settle()
        found = live(
            pipeline,
            projector,
            producer,
            seconds=max(LIVE_SECONDS * scale, LEAST_LIVE_SECONDS),
            idle=max(IDLE_SECONDS * scale, LEAST_LIVE_SECONDS),
        )
        say("rebuilding beside live changes")
        stack.settle()
        rebuilt = rebuild(pipeline, producer)
    return {
        "live_p50_seconds": found.latencies.p50,
        "live_p95_seconds": found.latencies.p95,
        "live_max_seconds": found.latencies.max,
        "live_cores": found.cores,
        "idle_cores": found.idle_cores,
        "rebuild_ratio_to_catch_up": rebuilt.records_per_second / caught_up_per_second,
        "rebuild_lock_seconds": rebuilt.lock_seconds,
        "rebuild_rows_that_differ": rebuilt.rows_that_differ,
    }


def _grown(stack: BenchStack, events: int, processes: int) -> float:
    """Return the seconds to catch up with a history of so many events, in topics of its own."""
    say(f"producing {events:,} events")
    history, prefix = History(events), f"grown{events}"
    watermark = produce(stack, prefix, history)
    view = _view(stack, "grown", prefix)
    done = catch_up(stack, view, events, watermark, history.expected_rows(), processes=processes)
    if done.rows_that_differ:
        raise BenchError(f"{done.rows_that_differ} rows differ after {events:,} events")
    return done.seconds


def create_empty_view(stack: BenchStack) -> None:
    """Make the databases that view databases are copies of: one as it is, one whose view is captured as a topic."""
    for database in (EMPTY_VIEW, CAPTURED_VIEW):
        stack.create_database(database)
        pipeline = stack.pipeline(
            source=database, view=database, topic_prefix=PREFIX, further={"VIEWKEEPER_CDC_NAME": "view"}
        )
        pipeline.migrate("view")
        if database == CAPTURED_VIEW:
            pipeline.migrate("source")
            pipeline.attach("public.user_information")


def produce(stack: BenchStack, prefix: str, events: Iterable[Event]) -> datetime:
    """Produce events into topics of their own; return the time by which all of them were committed."""
    create_topics(stack.kafka.bootstrap_servers, prefix)
    return HistoryProducer(stack.kafka.bootstrap_servers, prefix).produce(events)


def _naive_round(stack: BenchStack, events: int) -> float:
    stack.settle()
    topics = [table_topic(NAIVE_PREFIX, table) for table in TABLES]
    url = stack.postgres.url("naive")
    return naive_events_per_second(stack.kafka.bootstrap_servers, topics, url, events=events)


def _view(stack: BenchStack, database: str, topic_prefix: str = PREFIX) -> Pipeline:
    return stack.pipeline(source=EMPTY_VIEW, view=database, topic_prefix=topic_prefix)


@contextmanager
def _running(
    stack: BenchStack, pipeline: Pipeline, processes: int, template: str = EMPTY_VIEW
) -> Iterator[list[Daemon]]:
    """Run projectors on a view database that is made and dropped, from when one has its partitions."""
    database = str(conninfo_to_dict(pipeline.view_url)["dbname"])
    stack.create_database(database, template=template)
    stack.settle()
    with ExitStack() as running:
        projectors = [running.enter_context(pipeline.daemon("projector.cli", "run")) for _ in range(processes)]
        while not any(projector.logged("assigned") for projector in projectors):
            for projector in projectors:
                projector.check_alive()
            time.sleep(POLL_SECONDS)
        yield projectors
    stack.drop_database(database)


def catch_up(
    stack: BenchStack,
    pipeline: Pipeline,
    events: int,
    watermark: datetime,
    expected: dict[int, Row],
    *,
    processes: int = 1,
    template: str = EMPTY_VIEW,
) -> Round:
    """Measure projectors from nothing to `watermark`, in a view database of their own."""

    def cpu() -> float:
        return stack.postgres_cpu_seconds() + sum(cpu_seconds(projector.process.pid) for projector in projectors)

    with _running(stack, pipeline, processes, template) as projectors:
        cpu_before, began_at = cpu(), time.monotonic()
        _wait_until_caught_up(projectors, pipeline, watermark)
        seconds, cpu_after = time.monotonic() - began_at, cpu()
        peak = max(peak_rss_bytes(projector.process.pid) for projector in projectors)
        found = _rows(pipeline.view_url)
    return Round(
        events_per_second=events / seconds,
        seconds=seconds,
        cpu_seconds_per_million_events=(cpu_after - cpu_before) / events * 1e6,
        peak_rss_bytes=peak,
        rows_that_differ=rows_that_differ(expected, found),
    )


def _wait_until_caught_up(projectors: Iterable[Daemon], pipeline: Pipeline, watermark: datetime) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    with psycopg.connect(pipeline.view_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT 1 FROM viewkeeper_as_of WHERE view = 'user_information' AND as_of >= %s", (watermark,)
            ).fetchone()
            if row:
                return
            for projector in projectors:
                projector.check_alive()
            time.sleep(POLL_SECONDS)
    raise BenchError(f"the projector did not catch up within {CATCH_UP_SECONDS:g} s")


def _rows(url: str) -> dict[int, Row]:
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        return {row[0]: row for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM user_information")}


@click.command()
@scale_option
@rate_option(USUAL_RATE)
@click.option("--processes", envvar="PROCESSES", default=1, show_default=True, type=click.IntRange(1, 16))
@click.option("--growth", envvar="GROWTH", is_flag=True, help="Also two and five times the events.")
def main(scale: float, rate: int, processes: int, growth: bool) -> None:  # noqa: ARG001 - the same options for all
    """Measure the projector; RATE has no meaning here: live changes come at 200 a second."""
    with bench_stack() as stack:
        figures = measure(stack, scale, processes=processes, growth=growth)
    targets = dict(TARGETS)
    if processes in RATIO_TARGETS:
        targets["ratio_to_naive"] = Target(at_least=RATIO_TARGETS[processes])
    for line in missed(figures, targets):
        say(line)
    report("projector", figures)


if __name__ == "__main__":
    run_bench(main)
