"""The load tool vegeta, where it is installed: constant arrivals, latency from the planned send time."""

import shutil
import subprocess
from itertools import islice
from random import Random

import msgspec

from tests.bench.errors import BenchError
from tests.bench.load import Target

ENCODED_TARGETS = 20_000
"""It goes round them."""


class _Latencies(msgspec.Struct):
    p95: int = msgspec.field(name="95th")
    max: int


class _Report(msgspec.Struct):
    latencies: _Latencies
    success: float


class Attack(msgspec.Struct, frozen=True, kw_only=True):
    """What vegeta reports: seconds, and the share of requests that were answered well."""

    p95: float
    max: float
    success: float


def vegeta_path() -> str | None:
    """Return where vegeta is, None where it is not installed."""
    return shutil.which("vegeta")


def attack(target: Target, *, rate: int, seconds: float) -> Attack:
    """Ask for random ids, so many a second; raise BenchError with vegeta's words if it fails."""
    drawn = Random(1)  # noqa: S311 - load, no secret
    urls = (target.url.format(drawn.randint(target.first_id, target.last_id)) for _ in iter(int, 1))
    lines = "\n".join(f"GET {url}" for url in islice(urls, ENCODED_TARGETS))
    command = [str(vegeta_path()), "attack", f"-rate={rate}/1s", f"-duration={seconds:.3f}s"]
    attacked = _run(command, lines.encode())
    report = msgspec.json.decode(_run([str(vegeta_path()), "report", "-type=json"], attacked), type=_Report)
    return Attack(p95=report.latencies.p95 / 1e9, max=report.latencies.max / 1e9, success=report.success)


def _run(command: list[str], given: bytes) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr.decode()}")
    return done.stdout
