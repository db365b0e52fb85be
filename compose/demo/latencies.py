"""Latencies gathered while the demo runs, and their percentiles."""

from collections import deque
from math import ceil

import msgspec

LATEST = 6_000
"""Percentiles are of so many latest ones: sorting them holds up what is being measured."""


class Summary(msgspec.Struct, frozen=True):
    """Percentiles of the latest latencies, the maximum of all, in seconds; None when nothing was measured."""

    count: int = 0
    p50_seconds: float | None = None
    p95_seconds: float | None = None
    max_seconds: float | None = None


class Latencies:
    """Latencies as one thread measures them; any thread may ask for their summary."""

    def __init__(self) -> None:
        self._count = 0
        self._max_seconds = 0.0
        self._latest: deque[float] = deque(maxlen=LATEST)

    def add(self, seconds: float) -> None:
        """Note one."""
        self._latest.append(seconds)
        self._max_seconds = max(self._max_seconds, seconds)
        self._count += 1

    def summary(self) -> Summary:
        """Return the percentiles by nearest rank."""
        ordered = sorted(self._latest.copy())
        if not ordered:
            return Summary()

        def at(share: float) -> float:
            return ordered[max(ceil(share * len(ordered)) - 1, 0)]

        return Summary(self._count, at(0.5), at(0.95), max(self._max_seconds, ordered[-1]))
