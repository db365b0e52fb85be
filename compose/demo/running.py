"""The demo from the first server to the last audit."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live

from compose.demo.auditing import AuditLoop, Verdict, audit
from compose.demo.errors import DemoError
from compose.demo.figures import Gathering, Gauges, Reports
from compose.demo.interrupts import Interrupts, Phase
from compose.demo.pairing import check_pairing
from compose.demo.pipeline import DRAIN_SECONDS, Pipeline, catch_up, started_pipeline, wait_until_reflected
from compose.demo.population import Sizes
from compose.demo.preparing import attach_all, populate, prepare_databases
from compose.demo.probe import ProbeReport
from compose.demo.processes import Process, running
from compose.demo.screen import Screen
from compose.demo.servers import OwnServers, Servers, started_servers
from compose.demo.table import (
    curl_line,
    freshness_words,
    live_table,
    page_line,
    plain_line,
    reads_words,
    workload_words,
)
from compose.demo.workload import WorkloadReport
from compose.local.folder import held

TICK_SECONDS = 0.5
PLAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. `rate` is in changes a second; without `seconds` the demo runs until it is interrupted."""

    data_dir: Path
    own_servers: OwnServers
    sizes: Sizes
    rate: float
    seconds: float | None
    store: str


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo whose pipeline runs."""

    wanted: Wanted
    servers: Servers
    pipeline: Pipeline
    screen: Screen
    interrupts: Interrupts


def run_demo(wanted: Wanted, screen: Screen, interrupts: Interrupts) -> Verdict:
    """Start everything, keep the workload going, end it and return the last audit's verdict.

    Whatever was started is stopped when it returns or raises. Raises KeyboardInterrupt when interrupted before the
    workload runs, or again while the pipeline drains.
    """
    with ExitStack() as started:
        try:
            data_dir = started.enter_context(held(wanted.data_dir))
            servers = _start_servers(wanted, data_dir, screen, started)
            servers.set_environment(store=wanted.store)
            prepare_databases(servers, screen)
            populate(servers, wanted.sizes, screen)
            attach_all(servers, screen)
            _wait_for_kafka(servers, wanted, screen)
            check_pairing(servers, data_dir)
            with screen.step(
                "starting the daemons",
                "daemons started: viewkeeper-cdc, for the tables and the view, -projector, -api run",
            ):
                pipeline = started.enter_context(started_pipeline(servers, data_dir))
            catch_up(servers, pipeline, screen)
            screen.say(f"Ready after {screen.elapsed_seconds:.1f} s; logs are in {data_dir}")
            demo = Demo(wanted, servers, pipeline, screen, interrupts)
            return _run_workload(demo, data_dir)
        finally:
            # From here on a signal would break off the stopping of what runs.
            interrupts.phase = Phase.CLEANING
            with screen.step("stopping what was started", "everything that was started is stopped"):
                started.close()


def _start_servers(wanted: Wanted, data_dir: Path, screen: Screen, started: ExitStack) -> Servers:
    if wanted.own_servers.postgres_urls:
        return started.enter_context(started_servers(data_dir, wanted.own_servers))
    doing = "starting Postgres" if wanted.own_servers.kafka_bootstrap_servers else "starting Kafka and Postgres"
    with screen.step(doing, f"Postgres started, data in {data_dir}"):
        return started.enter_context(started_servers(data_dir, wanted.own_servers))


def _wait_for_kafka(servers: Servers, wanted: Wanted, screen: Screen) -> None:
    if wanted.own_servers.kafka_bootstrap_servers:
        servers.wait_for_kafka()
    else:
        with screen.step("waiting for Kafka, which was started first", "Kafka started"):
            servers.wait_for_kafka()


def _run_workload(demo: Demo, log_dir: Path) -> Verdict:
    wanted, pipeline = demo.wanted, demo.pipeline
    demo.interrupts.phase = Phase.RUNNING
    workload_words = ["compose.demo.workload", "--rate", str(wanted.rate)]
    probe_words = ["compose.demo.probe", "--api", pipeline.api_url]
    with (
        AuditLoop(lambda: audit(demo.servers)) as audits,
        running("probe", probe_words, environment=os.environ, log_dir=log_dir, piped=True) as probe,
        running("workload", workload_words, environment=os.environ, log_dir=log_dir, piped=True) as workload,
    ):
        gathering = Gathering(
            gauges=Gauges(pipeline),
            workload=Reports(workload, WorkloadReport),
            probe=Reports(probe, ProbeReport),
            audits=audits,
            began_at=time.monotonic(),
        )
        _watch(demo, gathering, (*pipeline.processes, probe, workload))
        if demo.interrupts.phase is Phase.RUNNING:
            demo.interrupts.phase = Phase.DRAINING
        return _close(demo, gathering, probe=probe, workload=workload)


def _watch(demo: Demo, gathering: Gathering, processes: tuple[Process, ...]) -> None:
    """Show the figures until the time is up or a signal comes; raises DemoError when a process ends."""
    screen, seconds = demo.screen, demo.wanted.seconds
    said_at = gathering.began_at
    if not screen.is_terminal:
        screen.say(page_line(demo.pipeline.api_url))
        screen.say(curl_line(demo.pipeline.api_url))
    with ExitStack() as drawn:
        live = drawn.enter_context(Live(console=screen.console, auto_refresh=False)) if screen.is_terminal else None
        while not demo.interrupts.stop.wait(TICK_SECONDS):
            for process in processes:
                process.check()
            figures = gathering.figures()
            if live:
                live.update(live_table(figures, api_url=demo.pipeline.api_url, seconds=seconds), refresh=True)
            elif time.monotonic() - said_at >= PLAIN_SECONDS:
                said_at = time.monotonic()
                screen.say(plain_line(figures))
            if seconds and figures.elapsed_seconds >= seconds:
                return


def _close(demo: Demo, gathering: Gathering, *, probe: Process, workload: Process) -> Verdict:
    screen = demo.screen
    screen.say("")
    with screen.step("stopping the workload", "workload stopped"):
        workload.end()
        probe.end()
        gathering.audits.stop()
    with screen.step("draining the pipeline", "pipeline drained: the view reflects the last commit"):
        wait_until_reflected(demo.servers, demo.pipeline, timeout_seconds=DRAIN_SECONDS)
    with screen.step("auditing", "last audit done"):
        verdict = audit(demo.servers)
    for name, words in (
        ("workload", workload_words(gathering.workload.last())),
        ("freshness", freshness_words(gathering.probe.last())),
        ("reads", reads_words(gathering.probe.last())),
        ("audit", verdict.words),
    ):
        screen.say(f"  {name:<10} {words}")
    for example in verdict.examples:
        screen.say(f"             differs: {example}")
    if gathering.workload.latest is None or gathering.workload.latest.changes == 0:
        raise DemoError("the workload has changed nothing, so this run shows nothing; give it more SECONDS")
    return verdict
