"""What a user of the running service would see: `python -m compose.demo.probe --api URL`.

A process of its own, so that what it measures is not the drawing of a table. It prints one JSON line a second and stops
on SIGTERM or SIGINT.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from random import Random
from urllib.parse import urlsplit

import click
import msgspec
import psycopg

from compose.demo.errors import DemoError
from compose.demo.latencies import Latencies, Summary
from compose.demo.population import PROBE_ID
from runtime.cli import run_command, settings_epilog
from runtime.postgres import connect, translated
from runtime.settings import SourceSettings, read_settings
from runtime.stop import Stop, stop_on_signals

REPORT_SECONDS = 1.0
REPLY_SECONDS = 10.0
READERS = 8
FRESHNESS_EVERY_SECONDS = 0.5
FRESHNESS_POLL_SECONDS = 0.01
FRESHNESS_GIVE_UP_SECONDS = 30.0
KNOWN_USERS = 100_000


class ProbeReport(msgspec.Struct, frozen=True):
    """One line of the probe's output: all since its start.

    `freshness` is from the commit in the source to the first HTTP reply that shows it; `reads` from a request's planned
    time to its reply. `read_errors` counts requests that got no reply, or another one than 200 or 404.
    """

    freshness: Summary
    reads: Summary
    read_errors: int


class Api:
    """One kept-alive connection to the API; opened again after an error."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=REPLY_SECONDS)

    def get(self, user_id: int) -> tuple[int, bytes]:
        """Ask for a user; returns the reply's status and body. Raises OSError or HTTPException without a reply."""
        try:
            self._connection.request("GET", f"/users/{user_id}")
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except (OSError, HTTPException):
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Reader:
    """Reads random users over one connection, each READERS-th of the planned times; the others take those between.

    So a slow reply delays few others, and those are charged with it.
    """

    def __init__(self, api_url: str, user_ids: list[int], *, latencies: Latencies, rate: float, number: int) -> None:
        self.errors = 0
        self._api = Api(api_url)
        self._user_ids = user_ids
        self._latencies = latencies
        self._interval_seconds = READERS / rate
        self._first_seconds = number / rate

    def run(self, stop: Stop) -> None:
        """Read until told to stop."""
        random = Random(self._first_seconds)  # noqa: S311 - load, no secret
        planned_at = time.monotonic() + self._first_seconds
        with closing(self._api):
            while not stop.wait(max(0.0, planned_at - time.monotonic())):
                self._read(random.choice(self._user_ids), planned_at)
                planned_at += self._interval_seconds

    def _read(self, user_id: int, planned_at: float) -> None:
        try:
            status, _ = self._api.get(user_id)
        except (OSError, HTTPException):
            self.errors += 1
            return
        # 404: the workload has deleted the account.
        self.errors += status not in (200, 404)
        self._latencies.add(time.monotonic() - planned_at)


class Freshness:
    """Changes a row of its own in the source and asks the API until it shows."""

    def __init__(self, connection: psycopg.Connection, api_url: str) -> None:
        self.latencies = Latencies()
        self._connection = connection
        self._api = Api(api_url)

    def run(self, stop: Stop) -> None:
        """Measure until told to stop; raises DemoError when a change does not become visible at all."""
        self._connection.execute(
            "INSERT INTO public.users (user_id, username, name, joined_date) VALUES (%s, 'probe', 'Probe', now()) "
            "ON CONFLICT DO NOTHING",
            (PROBE_ID,),
        )
        with closing(self._api):
            while not stop.wait(FRESHNESS_EVERY_SECONDS):
                self._measure(stop)

    def _measure(self, stop: Stop) -> None:
        text = f"changed at {time.time_ns()}"
        self._connection.execute(
            "UPDATE public.users SET description = %s, updated_at = now() WHERE user_id = %s", (text, PROBE_ID)
        )
        committed_at = time.monotonic()
        while text.encode() not in self._reply():
            if time.monotonic() - committed_at > FRESHNESS_GIVE_UP_SECONDS:
                raise DemoError(f"a change is not visible in the API {FRESHNESS_GIVE_UP_SECONDS:g} s after its commit")
            if stop.wait(FRESHNESS_POLL_SECONDS):
                return
        self.latencies.add(time.monotonic() - committed_at)

    def _reply(self) -> bytes:
        try:
            return self._api.get(PROBE_ID)[1]
        except (OSError, HTTPException):
            return b""


def run_probe(source_url: str, api_url: str, *, rate: float, stop: Stop) -> None:
    """Measure freshness and `rate` reads a second and print a report each second until stopped."""
    with connect(source_url, name="viewkeeper-demo-probe") as connection, ThreadPoolExecutor(READERS + 1) as threads:
        with translated("probe"):
            ids = connection.execute("SELECT user_id FROM public.users LIMIT %s", (KNOWN_USERS,)).fetchall()
        user_ids, reads = [user_id for (user_id,) in ids], Latencies()
        readers = [Reader(api_url, user_ids, latencies=reads, rate=rate, number=number) for number in range(READERS)]
        freshness = Freshness(connection, api_url)
        probes: list[Reader | Freshness] = [*readers, freshness]
        running = [threads.submit(_measure, probe, stop) for probe in probes]
        stopped = False
        try:
            while not stopped:
                stopped = stop.wait(REPORT_SECONDS)
                errors = sum(reader.errors for reader in readers)
                report = ProbeReport(freshness.latencies.summary(), reads.summary(), errors)
                click.echo(msgspec.json.encode(report))
        finally:
            stop.request()
        for measuring in running:
            measuring.result()


def _measure(probe: Reader | Freshness, stop: Stop) -> None:
    try:
        with translated("probe"):
            probe.run(stop)
    finally:
        stop.request()


@click.command(epilog=settings_epilog(SourceSettings))
@click.option("--api", "api_url", required=True, help="Where the API listens, http://host:port.")
@click.option("--rate", default=100.0, show_default=True, type=click.FloatRange(0.1, 10_000), help="Reads a second.")
def main(api_url: str, rate: float) -> None:
    """Measure freshness and read latency of the demo until SIGTERM or SIGINT."""
    settings = read_settings(SourceSettings)
    with stop_on_signals() as stop:
        run_probe(settings.source_url, api_url, rate=rate, stop=stop)


if __name__ == "__main__":
    run_command(main)
