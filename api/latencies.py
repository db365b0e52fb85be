"""How long this process's own requests took, counted from one sampling to the next."""

from math import exp2, log2

import msgspec

_FAILED = 500
_FINEST_SECONDS = 1e-5
_STEPS = 8
"""Buckets an octave: a quantile is at most 9 % above the truth."""
_BUCKETS = 24 * _STEPS
"""Up to 168 s; what takes longer is in the last one."""


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Of so many `requests`: half took at most `p50_seconds`, 95 % `p95_seconds`, all `max_seconds`; null of none.

    `failed` ones of them were answered 500 or more.
    """

    requests: int
    failed: int = 0
    p50_seconds: float | None = None
    p95_seconds: float | None = None
    max_seconds: float | None = None


class LatencyCounts:
    """Counts requests in buckets, so that a second of ten thousand takes no more memory than one of ten."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._requests = self._failed = 0
        self._max_seconds = 0.0

    def count(self, seconds: float, *, status: int) -> None:
        """Count one request that took so long and was answered with a status."""
        bucket = int(log2(max(seconds / _FINEST_SECONDS, 1.0)) * _STEPS)
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self._requests += 1
        self._failed += status >= _FAILED
        self._max_seconds = max(self._max_seconds, seconds)

    def take(self) -> Latencies:
        """Return what was counted since this was last asked for."""
        counts, requests, failed, longest = self._counts, self._requests, self._failed, self._max_seconds
        self.__init__()  # type: ignore[misc]
        if not requests:
            return Latencies(requests=0)
        return Latencies(
            requests=requests,
            failed=failed,
            p50_seconds=min(_quantile(counts, requests * 0.5), longest),
            p95_seconds=min(_quantile(counts, requests * 0.95), longest),
            max_seconds=longest,
        )


def _quantile(counts: list[int], rank: float) -> float:
    """Return the upper edge of the bucket that holds the request of this rank, in seconds."""
    bucket = seen = 0
    while (seen := seen + counts[bucket]) < rank:
        bucket += 1
    return _FINEST_SECONDS * exp2((bucket + 1) / _STEPS)
