"""What capture costs those who write: the same inserts with its triggers and without, in turn.

No capture runs meanwhile: its own work is measured apart, and would take a core from both sides alike.
"""

import time
from dataclasses import dataclass, field

import psycopg

from tests.bench.bench_stack import BenchStack
from tests.bench.percentiles import ratio_of_medians
from tests.bench.sample_rows import create_table, insert_rows

DATABASE = "writers"
PLAIN = "plain_rows"
LOGGED = "logged_rows"
ROUNDS = 5
SLICE_SECONDS = 5.0
LEAST_SLICE_SECONDS = 1.0
BULK_ROWS = 300_000
BULK_BEGINS = 1_000_000_000


@dataclass
class _Measured:
    """Rates of single inserts, and seconds of bulk inserts, of each round."""

    single_rows_per_second: list[float] = field(default_factory=list)
    bulk_seconds: list[float] = field(default_factory=list)


def writer_cost(stack: BenchStack, scale: float) -> dict[str, float]:
    """Return `writer_single_ratio` (rate with ÷ without) and `writer_bulk_slowdown` (time with ÷ without)."""
    stack.create_database(DATABASE)
    pipeline = stack.pipeline(source=DATABASE, view=DATABASE, topic_prefix="writers")
    pipeline.migrate("source")
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        create_table(connection, PLAIN)
        create_table(connection, LOGGED)
        pipeline.attach(LOGGED)
        measured = {PLAIN: _Measured(), LOGGED: _Measured()}
        slice_seconds = max(SLICE_SECONDS * scale, LEAST_SLICE_SECONDS)
        for number in range(ROUNDS):
            # Who begins changes with each round.
            for table in (PLAIN, LOGGED) if number % 2 else (LOGGED, PLAIN):
                stack.settle()
                rate = _single(connection, table, number, slice_seconds)
                measured[table].single_rows_per_second.append(rate)
        bulk_rows = max(round(BULK_ROWS * scale), 1)
        for number in range(ROUNDS):
            for table in (PLAIN, LOGGED) if number % 2 else (LOGGED, PLAIN):
                stack.settle()
                measured[table].bulk_seconds.append(_bulk(connection, table, number, bulk_rows))
    plain, logged = measured[PLAIN], measured[LOGGED]
    stack.drop_database(DATABASE)
    return {
        "writer_single_ratio": ratio_of_medians(logged.single_rows_per_second, plain.single_rows_per_second),
        "writer_bulk_slowdown": ratio_of_medians(logged.bulk_seconds, plain.bulk_seconds),
    }


def _single(connection: psycopg.Connection, table: str, number: int, seconds: float) -> float:
    """Insert rows one by one, each committed by itself; return rows a second."""
    first = number * BULK_ROWS * 10
    row_id = first
    began_at = time.monotonic()
    while time.monotonic() - began_at < seconds:
        row_id += 1
        insert_rows(connection, row_id, row_id, table)
    return (row_id - first) / (time.monotonic() - began_at)


def _bulk(connection: psycopg.Connection, table: str, number: int, rows: int) -> float:
    """Insert rows by one statement; return seconds."""
    first = BULK_BEGINS + number * rows
    began_at = time.monotonic()
    insert_rows(connection, first + 1, first + rows, table)
    return time.monotonic() - began_at
