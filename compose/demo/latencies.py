"""Latencies gathered while the demo runs, and their percentiles."""

import threading
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
    """Latencies that threads measure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._max_seconds = 0.0
        self._latest: deque[float] = deque(maxlen=LATEST)

    def add(self, seconds: float) -> None:
        """Note one."""
        with self._lock:
            self._latest.append(seconds)
            self._max_seconds = max(self._max_seconds, seconds)
            self._count += 1

    def summary(self) -> Summary:
        """Return the percentiles by nearest rank."""
        with self._lock:
            latest, count, max_seconds = self._latest.copy(), self._count, self._max_seconds
        if not latest:
            return Summary()
        ordered = sorted(latest)

        def at(share: float) -> float:
            return ordered[max(ceil(share * len(ordered)) - 1, 0)]

        return Summary(count, at(0.5), at(0.95), max_seconds)
