"""Percentiles of measured latencies, by nearest rank: each figure is a latency that was really seen."""

import math
from collections.abc import Iterable
from statistics import median

import msgspec

from tests.bench.errors import BenchError


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """A summary of latencies in seconds, and of how many it was made."""

    count: int
    p50: float
    p95: float
    p99: float
    p999: float
    max: float


def summarise(seconds: Iterable[float]) -> Latencies:
    """Return the percentiles of latencies in seconds; raise BenchError when there are none."""
    ordered = sorted(seconds)
    if not ordered:
        raise BenchError("no latency was measured")
    return Latencies(
        count=len(ordered),
        p50=nearest_rank(ordered, 0.5),
        p95=nearest_rank(ordered, 0.95),
        p99=nearest_rank(ordered, 0.99),
        p999=nearest_rank(ordered, 0.999),
        max=ordered[-1],
    )


def nearest_rank(ordered: list[float], quantile: float) -> float:
    """Return the smallest value that at least `quantile` of the ordered values do not exceed."""
    return ordered[max(math.ceil(quantile * len(ordered)), 1) - 1]


def ratio_of_medians(ours: Iterable[float], baseline: Iterable[float]) -> float:
    """Return median(ours) / median(baseline); raise BenchError when one of them was not measured."""
    ours_measured, baseline_measured = list(ours), list(baseline)
    if not ours_measured or not baseline_measured or median(baseline_measured) <= 0:
        raise BenchError(f"no ratio of {ours_measured} to {baseline_measured}")
    return median(ours_measured) / median(baseline_measured)
