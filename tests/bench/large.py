"""`make bench-large`: how soon a large transaction is published as a whole, and how fresh another table is meanwhile.

A real `viewkeeper-cdc run` captures two tables; one transaction after the other inserts ever more rows into the first.
Nothing else writes: the other table's watermark moves once a second then, and is up to a second old at rest.
"""

import time
from dataclasses import dataclass
from datetime import datetime

import click
import psycopg

from cdc.watching import CursorTail
from runtime.kafka import admin
from runtime.settings import KafkaSettings
from tests.bench.bench_stack import BenchStack, Pipeline, bench_stack
from tests.bench.command import run_bench, say, scale_option
from tests.bench.errors import BenchError
from tests.bench.figures import LARGE_ROWS, Figures, report
from tests.bench.processes import Daemon
from tests.bench.sample_rows import TABLE, create_table, insert_rows

DATABASE = "large"
OTHER = "other_rows"
CAPTURE = "viewkeeper"
COVERED_SECONDS = 600.0
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Covered:
    """Seconds from COMMIT until the table's watermark covered it, and the other table's worst freshness until then."""

    seconds: float
    other_freshness_seconds: float


class Watermarks:
    """The newest watermark times of the capture, told by the source's clock."""

    def __init__(self, connection: psycopg.Connection, tail: CursorTail, capture: Daemon) -> None:
        self._connection = connection
        self._tail = tail
        self._capture = capture

    def now(self) -> datetime:
        """Read the source's clock."""
        row = self._connection.execute("SELECT clock_timestamp()").fetchone()
        if row is None:
            raise BenchError("the source does not tell the time")
        return row[0]  # type: ignore[no-any-return] # a timestamptz

    def time(self, table: str) -> datetime | None:
        """Return the time of a table's newest watermark that is committed, None while there is none."""
        cursor = self._tail.newest()
        entry = cursor.tables.get(f"public.{table}") if cursor else None
        return entry.watermark.time if entry and entry.watermark else None

    def covered(self, committed_at: datetime) -> Covered:
        """Wait until the first table's watermark covers what was committed by then."""
        worst_seconds = 0.0
        deadline = time.monotonic() + COVERED_SECONDS
        while time.monotonic() < deadline:
            other, watermark = self.time(OTHER), self.time(TABLE)
            now = self.now()
            if other is not None:
                worst_seconds = max(worst_seconds, (now - other).total_seconds())
            if other is not None and watermark is not None and watermark >= committed_at:
                return Covered((now - committed_at).total_seconds(), worst_seconds)
            self._capture.check_alive()
            time.sleep(LOOK_SECONDS)
        raise BenchError(f"the watermark did not cover a commit within {COVERED_SECONDS:g} s")


def measure(stack: BenchStack, scale: float) -> Figures:
    """Return the figures of each size, named for the rows that it has at SCALE=1."""
    pipeline = _prepared(stack)
    settings = KafkaSettings(
        kafka_bootstrap_servers=pipeline.kafka_bootstrap_servers,
        topic_prefix=pipeline.topic_prefix,
        # Else each look would last for half a second: the end of a partition is told by a fetch that found nothing.
        kafka_options={"fetch.wait.max.ms": "10"},
        encoding="json",
        schema_registry_url=None,
        schema_registry_user=None,
        schema_registry_password=None,
        log_level="error",
        log_format="json",
    )
    client = admin(settings, name="bench-large")
    figures: Figures = {}
    with (
        psycopg.connect(pipeline.source_url, autocommit=True) as connection,
        pipeline.daemon("cdc.cli", "run") as capture,
        CursorTail(client, settings, CAPTURE) as tail,
    ):
        watermarks = Watermarks(connection, tail, capture)
        watermarks.covered(watermarks.now())
        first = 1
        for size in LARGE_ROWS:
            rows = max(round(size * scale), 1)
            stack.settle()
            covered = _one(connection, watermarks, first, rows)
            first += rows
            say(f"{rows:,} rows: {covered.seconds:.2f} s; the other table {covered.other_freshness_seconds:.2f} s")
            figures[f"covered_seconds_{size}"] = covered.seconds
            figures[f"other_freshness_seconds_{size}"] = covered.other_freshness_seconds
    return figures


def _prepared(stack: BenchStack) -> Pipeline:
    """Make a source with two empty tables that are attached."""
    stack.create_database(DATABASE)
    pipeline = stack.pipeline(source=DATABASE, view=DATABASE, topic_prefix=DATABASE)
    pipeline.migrate("source")
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        create_table(connection)
        create_table(connection, OTHER)
    pipeline.attach(TABLE, OTHER)
    return pipeline


def _one(connection: psycopg.Connection, watermarks: Watermarks, first: int, rows: int) -> Covered:
    """Insert rows in one transaction, and wait until its commit is covered."""
    with connection.transaction():
        insert_rows(connection, first, first + rows - 1)
    return watermarks.covered(watermarks.now())


@click.command()
@scale_option
def main(scale: float) -> None:
    """Commit 1,000 to 1,000,000 rows at once, times SCALE; figures are named for the rows at SCALE=1."""
    with bench_stack() as stack:
        figures = measure(stack, scale)
    report("large", figures)


if __name__ == "__main__":
    run_bench(main)
