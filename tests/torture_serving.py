"""A whole pipeline on servers of its own, its parts killed one after the other, and what readers of it are told."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from compose.local.kafka import KafkaBroker
from compose.local.kafka import kafka as run_kafka
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from compose.local.process import free_port
from runtime.postgres import connect
from tests.daemons import ROOT, Daemon, Daemons, daemons_in
from tests.torture_source import CapturedSource
from tests.waiting import wait_until

TABLES = ("users", "tweets", "follows", "likes")
VIEW = "public.user_information"
PREFIX = "serving"
COMMAND_SECONDS = 120.0


@dataclass
class Pipeline:
    """Source and view in one Postgres, a broker, two captures, a projector and the API."""

    folder: Path
    daemons: Daemons
    source: CapturedSource
    view: CapturedSource
    kafka_port: int
    postgres_port: int
    running: dict[str, Daemon] = field(default_factory=dict)
    servers: dict[str, ExitStack] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    def start_postgres(self) -> None:
        """Run the server, which recovers first if it was killed."""
        self.servers["postgres"] = stack = ExitStack()
        server = stack.enter_context(run_postgres(self.folder / "postgres", port=self.postgres_port))
        self.pids["postgres"] = server.pid

    def start_kafka(self) -> None:
        """Run the broker."""
        self.servers["kafka"] = stack = ExitStack()
        self.pids["kafka"] = stack.enter_context(run_kafka(self.folder / "kafka", port=self.kafka_port)).pid

    def kill_server(self, name: str) -> None:
        """End a server as a crash would, and what is left of its processes."""
        os.kill(self.pids[name], signal.SIGKILL)
        self.servers.pop(name).close()

    def start(self, name: str) -> Daemon:
        """Start a daemon, as a supervisor does after it has ended."""
        part = name.partition("-")[0]
        self.running[name] = self.daemons(part, "run", settings=self.of_view if name == "cdc-view" else {})
        return self.running[name]

    @property
    def of_view(self) -> dict[str, str]:
        """The settings of the view's own capture."""
        return {"VIEWKEEPER_SOURCE_URL": self.view.url, "VIEWKEEPER_CDC_NAME": "view"}

    def run(self, part: str, *arguments: str, settings: Mapping[str, str] | None = None) -> None:
        """Run a command to its end, which must be a good one."""
        done = self.daemons(part, *arguments, settings=settings)
        assert done.wait(COMMAND_SECONDS) == 0, done.log_text()

    def assert_running(self) -> None:
        """Fail, with its log, if a daemon has ended by itself."""
        for name, daemon in self.running.items():
            assert daemon.is_running(), f"{name} ended by itself; its log:\n{daemon.log_text()}"


@contextmanager
def pipeline(folder: Path) -> Iterator[Pipeline]:
    """Run all of it, with the demo's tables attached, and the view."""
    postgres_port, kafka_port = free_port(), free_port()
    server, broker = PostgresServer(postgres_port, 0, folder), KafkaBroker(kafka_port, 0, folder)
    settings = {
        "VIEWKEEPER_SOURCE_URL": server.url("source"),
        "VIEWKEEPER_VIEW_URL": server.url("view"),
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "VIEWKEEPER_TOPIC_PREFIX": PREFIX,
        "VIEWKEEPER_LOG_FORMAT": "json",
        "VIEWKEEPER_CDC_HEALTH_PORT": "0",
        "VIEWKEEPER_PROJECTOR_HEALTH_PORT": "0",
        "VIEWKEEPER_API_PORT": str(free_port()),
    }
    with daemons_in(folder, settings) as daemons:
        started = Pipeline(
            folder,
            daemons,
            CapturedSource(server.url("source"), broker.bootstrap_servers, PREFIX),
            CapturedSource(server.url("view"), broker.bootstrap_servers, PREFIX, capture="view"),
            kafka_port,
            postgres_port,
        )
        try:
            started.start_kafka()
            started.start_postgres()
            _prepare(server, settings)
            started.run("cdc", "attach", *TABLES)
            started.run("cdc", "attach", VIEW, settings=started.of_view)
            for name in ("cdc", "cdc-view", "projector", "api"):
                started.start(name)
            yield started
        finally:
            daemons.end_all()
            for stack in started.servers.values():
                stack.close()


def _prepare(server: PostgresServer, settings: dict[str, str]) -> None:
    with closing(connect(server.url(), name="test")) as session:
        for database in ("source", "view"):
            session.execute(f"CREATE DATABASE {database}".encode())
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        for section in ("demo", "source", "view"):
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
        environment.setenv("VIEWKEEPER_SOURCE_URL", settings["VIEWKEEPER_VIEW_URL"])
        command.upgrade(Config(ROOT / "alembic.ini", ini_section="source"), "head")


def wait_for(condition: Callable[[], bool], pipeline: Pipeline, *, timeout_seconds: float, what: str) -> None:
    """Wait for something, while no daemon may end."""

    def met() -> bool:
        pipeline.assert_running()
        return condition()

    wait_until(met, timeout_seconds=timeout_seconds, what=what)
