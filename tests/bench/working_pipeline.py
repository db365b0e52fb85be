"""The whole pipeline at work: the demo's tables, the real daemons, and a workload that keeps the tables changing."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec
import psycopg

from compose.demo.population import Sizes, load_population
from compose.demo.workload import WorkloadReport
from tests.bench.bench_stack import BenchStack, Pipeline
from tests.bench.errors import BenchError
from tests.bench.processes import Daemon
from tests.bench.topics import PARTITIONS

SOURCE = "source"
VIEW = "view"
VIEW_TABLE = "public.user_information"
TABLES = ("users", "tweets", "follows", "likes")
CATCH_UP_SECONDS = 300.0
FIRST_REPORT_SECONDS = 30.0
POLL_SECONDS = 0.05
LEAST_RATE_SHARE = 0.9


@contextmanager
def working_pipeline(
    stack: BenchStack, sizes: Sizes, *, with_view_topic: bool = False, partitions: int = PARTITIONS
) -> Iterator[Pipeline]:
    """Migrate two databases, load a population, run capture and projector; yield once the view reflects all of it.

    With its topic the view is captured, too. Topics have so many `partitions`.
    """
    stack.create_database(SOURCE)
    stack.create_database(VIEW)
    topics = {"VIEWKEEPER_TOPIC_PARTITIONS": str(partitions)}
    pipeline = stack.pipeline(source=SOURCE, view=VIEW, topic_prefix="bench", further=topics)
    pipeline.migrate("source", "demo", "view")
    with psycopg.connect(pipeline.source_url, autocommit=True) as connection:
        load_population(connection, sizes)
    pipeline.attach(*TABLES)
    with ExitStack() as running:
        daemons = [running.enter_context(pipeline.daemon(f"{part}.cli", "run")) for part in ("cdc", "projector")]
        if with_view_topic:
            further = {**topics, "VIEWKEEPER_CDC_NAME": "view"}
            of_view = stack.pipeline(source=VIEW, view=VIEW, topic_prefix=pipeline.topic_prefix, further=further)
            of_view.migrate("source")
            of_view.attach(VIEW_TABLE)
            daemons.append(running.enter_context(of_view.daemon("cdc.cli", "run")))
        wait_until_reflected(pipeline, daemons)
        yield pipeline


def wait_until_reflected(pipeline: Pipeline, daemons: Iterable[Daemon]) -> None:
    """Wait until the view reflects everything that is committed in the source now."""
    with psycopg.connect(pipeline.source_url) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    with psycopg.connect(pipeline.view_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            if connection.execute("SELECT 1 FROM viewkeeper_as_of WHERE as_of >= %s", row).fetchone():
                return
            for daemon in daemons:
                daemon.check_alive()
            time.sleep(POLL_SECONDS)
    raise BenchError(f"the view did not reflect the source within {CATCH_UP_SECONDS:g} s")


@dataclass(frozen=True)
class Workload:
    """A workload that runs: `compose.demo.workload` as a process."""

    daemon: Daemon
    rate: int

    def wait_for_report(self) -> WorkloadReport:
        """Wait for the first of its reports and return the newest."""
        deadline = time.monotonic() + FIRST_REPORT_SECONDS
        while time.monotonic() < deadline:
            reports = [
                msgspec.json.decode(line, type=WorkloadReport)
                for line in self.daemon.log_path.read_bytes().splitlines(keepends=True)
                if line.startswith(b"{") and line.endswith(b"\n")
            ]
            if reports:
                return reports[-1]
            self.daemon.check_alive()
            time.sleep(POLL_SECONDS)
        raise BenchError(f"the workload did not report within {FIRST_REPORT_SECONDS:g} s")

    def check_rate(self) -> float:
        """Return how many changes a second it has made; raise BenchError where the source could not take the rate."""
        report = self.wait_for_report()
        made = report.changes / report.seconds
        if made < self.rate * LEAST_RATE_SHARE:
            raise BenchError(
                f"the source took {made:.0f} changes/s, not {self.rate}: nothing was measured at that rate"
            )
        return made


@contextmanager
def workload(pipeline: Pipeline, rate: int) -> Iterator[Workload]:
    """Keep the demo's tables changing at `rate` changes a second while the block runs; yields once it has begun."""
    connections = max(4, rate // 125)
    arguments = ("--rate", str(rate), "--connections", str(connections))
    with pipeline.daemon("compose.demo.workload", *arguments) as running:
        begun = Workload(running, rate)
        begun.wait_for_report()
        yield begun
