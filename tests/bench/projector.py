"""`make bench-projector`: catch-up over four topics against a naive consumer, and whether the result is exact.

Rounds of the naive consumer and of ours take turns. Ours is the real `viewkeeper-projector run` on an empty view
database each time, from when it was assigned its partitions until the view's as-of has the history's watermark.
"""

import time
from collections.abc import Iterable
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

EVENTS = 1_000_000
NAIVE_EVENTS = 30_000
NAIVE_SHARE = 0.1
ROUNDS = 3
CATCH_UP_SECONDS = 600.0
POLL_SECONDS = 0.02
PREFIX = "bench"
NAIVE_PREFIX = "naive"
EMPTY_VIEW = "empty_view"
COLUMNS = ("user_id", *PROFILE_COLUMNS, "tweet_count", "following_count", "follower_count", "like_count")


@dataclass(frozen=True)
class Round:
    """One catch-up of ours."""

    events_per_second: float
    cpu_seconds_per_million_events: float
    peak_rss_bytes: int
    rows_that_differ: int


def measure(stack: BenchStack, events: int) -> Figures:
    """Produce a history of `events` events and return the figures of catching up with it."""
    say(f"producing {events:,} events")
    history = History(events)
    watermark = produce(stack, PREFIX, history)
    expected = history.expected_rows()
    # The history's beginning in topics of its own: from the whole ones a consumer would get one topic's events first.
    few = max(min(NAIVE_EVENTS, round(events * NAIVE_SHARE)), 1)
    produce(stack, NAIVE_PREFIX, islice(History(events), few))
    create_empty_view(stack)
    stack.create_database("naive")
    naive, ours = [], []
    for number in range(1, ROUNDS + 1):
        naive.append(_naive_round(stack, few))
        ours.append(catch_up(stack, _view(stack, number), events, watermark, expected))
        say(f"round {number}: naive {naive[-1]:,.0f} events/s, ours {ours[-1].events_per_second:,.0f}")
    return {
        "events_per_second": median(done.events_per_second for done in ours),
        "ratio_to_naive": ratio_of_medians((done.events_per_second for done in ours), naive),
        "naive_events_per_second": median(naive),
        "cpu_seconds_per_million_events": median(done.cpu_seconds_per_million_events for done in ours),
        "peak_rss_mb": max(done.peak_rss_bytes for done in ours) / 1e6,
        "rows_that_differ": max(done.rows_that_differ for done in ours),
        "rows_compared": len(expected),
    }


def create_empty_view(stack: BenchStack) -> None:
    """Make the database that view databases are copies of."""
    stack.create_database(EMPTY_VIEW)
    stack.pipeline(source=EMPTY_VIEW, view=EMPTY_VIEW, topic_prefix=PREFIX).migrate("view")


def produce(stack: BenchStack, prefix: str, events: Iterable[Event]) -> datetime:
    """Produce events into topics of their own; return the time by which all of them were committed."""
    create_topics(stack.kafka.bootstrap_servers, prefix)
    return HistoryProducer(stack.kafka.bootstrap_servers, prefix).produce(events)


def _naive_round(stack: BenchStack, events: int) -> float:
    stack.settle()
    topics = [table_topic(NAIVE_PREFIX, table) for table in TABLES]
    url = stack.postgres.url("naive")
    return naive_events_per_second(stack.kafka.bootstrap_servers, topics, url, events=events)


def _view(stack: BenchStack, number: int) -> Pipeline:
    return stack.pipeline(source=EMPTY_VIEW, view=f"view_{number}", topic_prefix=PREFIX)


def catch_up(
    stack: BenchStack, pipeline: Pipeline, events: int, watermark: datetime, expected: dict[int, Row]
) -> Round:
    """Measure the projector from nothing to `watermark`, in a view database that is made and dropped."""
    database = str(conninfo_to_dict(pipeline.view_url)["dbname"])
    stack.create_database(database, template=EMPTY_VIEW)
    stack.settle()
    with pipeline.daemon("projector.cli", "run") as projector:
        projector.wait_for_event("assigned")
        cpu_before = stack.postgres_cpu_seconds() + cpu_seconds(projector.process.pid)
        began_at = time.monotonic()
        _wait_until_caught_up(projector, pipeline, watermark)
        seconds = time.monotonic() - began_at
        cpu_after = stack.postgres_cpu_seconds() + cpu_seconds(projector.process.pid)
        peak = peak_rss_bytes(projector.process.pid)
    found = _rows(pipeline.view_url)
    stack.drop_database(database)
    return Round(
        events_per_second=events / seconds,
        cpu_seconds_per_million_events=(cpu_after - cpu_before) / events * 1e6,
        peak_rss_bytes=peak,
        rows_that_differ=rows_that_differ(expected, found),
    )


def _wait_until_caught_up(projector: Daemon, pipeline: Pipeline, watermark: datetime) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    with psycopg.connect(pipeline.view_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT 1 FROM viewkeeper_as_of WHERE view = 'user_information' AND as_of >= %s", (watermark,)
            ).fetchone()
            if row:
                return
            projector.check_alive()
            time.sleep(POLL_SECONDS)
    raise BenchError(f"the projector did not catch up within {CATCH_UP_SECONDS:g} s")


def _rows(url: str) -> dict[int, Row]:
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        return {row[0]: row for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM user_information")}


@click.command()
@scale_option
@rate_option(USUAL_RATE)
def main(scale: float, rate: int) -> None:  # noqa: ARG001 - the same options for every benchmark
    """Measure the projector's catch-up; RATE has no meaning here."""
    with bench_stack() as stack:
        figures = measure(stack, max(round(EVENTS * scale), 1_000))
    report("projector", figures)


if __name__ == "__main__":
    run_bench(main)
