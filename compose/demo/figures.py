"""The demo's figures while it runs, gathered from the daemons' metrics, the workload, the probe and the audits."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from compose.demo.auditing import AuditLoop, Verdict
from compose.demo.pipeline import APPLIED, CAPTURED, LAG, Pipeline, read_metrics
from compose.demo.probe import ProbeReport
from compose.demo.processes import Process
from compose.demo.workload import WorkloadReport

RATE_SECONDS = 5.0
"""Rates are over the latest seconds."""

ReportT = TypeVar("ReportT", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is shown at one moment; None for what is not known yet."""

    elapsed_seconds: float
    captured_per_second: float | None
    applied_per_second: float | None
    lag_records: int | None
    workload: WorkloadReport | None
    probe: ProbeReport | None
    verdict: Verdict | None
    verdict_age_seconds: float | None


class Reports(Generic[ReportT]):
    """The latest of the reports that a process writes, one JSON line each."""

    def __init__(self, process: Process, kind: type[ReportT]) -> None:
        self.latest: ReportT | None = None
        self._process = process
        self._kind = kind
        self._thread = threading.Thread(target=self._read, name=f"reports of {process.name}", daemon=True)
        self._thread.start()

    def last(self, timeout_seconds: float = 5.0) -> ReportT | None:
        """Return the last report of a process that has ended."""
        self._thread.join(timeout_seconds)
        return self.latest

    def _read(self) -> None:
        for line in self._process.output:
            self.latest = msgspec.json.decode(line, type=self._kind)


class Gauges:
    """Rates and lag, from the daemons' metrics."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._seen: deque[tuple[float, float, float]] = deque()

    def read(self) -> tuple[float | None, float | None, int | None]:
        """Return changes captured a second, records applied a second, and records still to read."""
        projector = read_metrics(self._pipeline.projector_url)
        captured = read_metrics(self._pipeline.cdc_url).get(CAPTURED, 0.0)
        now = time.monotonic()
        self._seen.append((now, captured, projector.get(APPLIED, 0.0)))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        lag = projector.get(LAG)
        return self._rate(1), self._rate(2), None if lag is None else int(lag)

    def _rate(self, column: int) -> float | None:
        first, last = self._seen[0], self._seen[-1]
        seconds = last[0] - first[0]
        return (last[column] - first[column]) / seconds if seconds > 0 else None


@dataclass(slots=True)
class Gathering:
    """Everything that figures are taken from."""

    gauges: Gauges
    workload: Reports[WorkloadReport]
    probe: Reports[ProbeReport]
    audits: AuditLoop
    began_at: float

    def figures(self) -> Figures:
        """Take the figures of this moment."""
        captured, applied, lag = self.gauges.read()
        verdict, age_seconds = self.audits.latest()
        return Figures(
            elapsed_seconds=time.monotonic() - self.began_at,
            captured_per_second=captured,
            applied_per_second=applied,
            lag_records=lag,
            workload=self.workload.latest,
            probe=self.probe.latest,
            verdict=verdict,
            verdict_age_seconds=age_seconds,
        )
