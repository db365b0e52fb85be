"""What a benchmark prints: a small table for people and, as the last line, one JSON object for programs."""

import math
from collections.abc import Mapping

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.errors import BenchError

USUAL_RATE = 1_000
"""Changes a second to which figures without a suffix belong."""

LARGE_ROWS = (1_000, 10_000, 100_000, 1_000_000)
"""Rows of one transaction, at SCALE=1."""

Figures = dict[str, float]

NAMES: Mapping[str, tuple[str, ...]] = {
    "capture": (
        "snapshot_rows_per_second",
        "snapshot_ratio_to_read",
        "catchup_ratio_to_read",
        "cpu_seconds_per_million_rows",
        "peak_rss_mb",
        "latency_p50_seconds",
        "latency_p95_seconds",
        "latency_max_seconds",
        "latency_p95_seconds_at_200",
        "idle_cores",
        "writer_single_ratio",
        "writer_bulk_slowdown",
    ),
    "projector": (
        "events_per_second",
        "ratio_to_naive",
        "cpu_seconds_per_million_events",
        "peak_rss_mb",
        "rows_that_differ",
        "live_p50_seconds",
        "live_p95_seconds",
        "live_max_seconds",
        "idle_cores",
        "rebuild_ratio_to_catch_up",
        "rebuild_lock_seconds",
        "audit_seconds",
        "audit_peak_rss_mb",
    ),
    "api": (
        "p50_seconds",
        "p95_seconds",
        "p99_seconds",
        "p999_seconds",
        "max_seconds",
        "hello_max_seconds",
        "errors",
        "requests_per_second",
        "ratio_to_hello",
        "ratio_to_pooled",
    ),
    "large": tuple(f"{what}_{rows}" for rows in LARGE_ROWS for what in ("covered_seconds", "other_freshness_seconds")),
    "encoding": (
        "json_cpu_seconds_per_million_rows",
        "avro_cpu_seconds_per_million_rows",
        "cpu_ratio",
        "json_rows_per_second",
        "avro_rows_per_second",
        "projector_cpu_ratio",
    ),
    "streams": ("idle_rss_mb", "kilobytes_per_stream", "idle_cores", "p50_seconds", "p95_seconds", "max_seconds"),
    "freshness": ("p50_seconds", "p95_seconds", "p99_seconds", "max_seconds", "p95_seconds_at_200"),
}
"""The figures that each benchmark always gives, as other programs read them; more may stand beside them."""


def at_rate(figures: Mapping[str, float], rate: int) -> Figures:
    """Name figures for the rate that they were measured at: plain at the usual one, `…_at_RATE` at any other."""
    suffix = "" if rate == USUAL_RATE else f"_at_{rate}"
    return {f"{name}{suffix}": value for name, value in figures.items()}


def report(bench: str, figures: Mapping[str, float], *, rate: int = USUAL_RATE) -> None:
    """Print a benchmark's figures; its last line is `{"bench": …, "figures": {…}}`.

    Raises BenchError when a figure is missing or is no finite number. `rate` is the one that was asked for: where it
    is not the usual one, figures that depend on it have another name and are not demanded.
    """
    missing = [] if rate != USUAL_RATE else [name for name in NAMES[bench] if name not in figures]
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if missing or wrong:
        raise BenchError(f"bench {bench}: not measured: {', '.join([*missing, *wrong])}")
    Console().print(_table(bench, figures))
    click.echo(last_line(bench, figures))


def last_line(bench: str, figures: Mapping[str, float]) -> str:
    """Return the JSON object that ends a benchmark's output; floats keep six significant digits."""
    rounded = {name: _rounded(value) for name, value in figures.items()}
    return msgspec.json.encode({"bench": bench, "figures": rounded}).decode()


def _table(bench: str, figures: Mapping[str, float]) -> Table:
    table = Table("figure", title=f"bench {bench}", title_justify="left")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{_rounded(value):,}")
    return table


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
