"""A benchmark's own servers in a temporary folder, its databases, and the daemons' settings for them."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import psycopg
from psycopg import sql

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.stack import stack
from tests.bench.errors import BenchError
from tests.bench.processes import Daemon, cpu_seconds, daemon, only_settings


@dataclass(frozen=True)
class Pipeline:
    """Settings of daemons that work together: source and view database, broker, topic prefix, and any `further`."""

    source_url: str
    view_url: str
    kafka_bootstrap_servers: str
    topic_prefix: str
    folder: Path
    further: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The settings as environment variables; all ports are free ones."""
        return {
            "VIEWKEEPER_SOURCE_URL": self.source_url,
            "VIEWKEEPER_VIEW_URL": self.view_url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": self.kafka_bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": self.topic_prefix,
            "VIEWKEEPER_LOG_FORMAT": "json",
            "VIEWKEEPER_CDC_HEALTH_PORT": "0",
            "VIEWKEEPER_PROJECTOR_HEALTH_PORT": "0",
            "VIEWKEEPER_API_PORT": "0",
            **self.further,
        }

    def migrate(self, *sections: str) -> None:
        """Run the real migrations of these sections: source, view, demo."""
        for section in sections:
            self.run("alembic", "-c", str(files("migrations") / "alembic.ini"), "-n", section, "upgrade", "head")

    def attach(self, *tables: str) -> None:
        """Attach tables of the source to the capture."""
        self.run("cdc.cli", "attach", *tables)

    def detach(self, *tables: str) -> None:
        """Detach tables again: a replication slot goes with the last one, and keeps the database from being dropped."""
        self.run("cdc.cli", "detach", *tables)

    def run(self, module: str, *arguments: str) -> None:
        """Run a command of ours to its end; raise BenchError with its output if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=only_settings(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = " ".join((module, *arguments))
            raise BenchError(f"{words} failed with code {done.returncode}:\n{done.stdout}")

    @contextmanager
    def daemon(self, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
        """Run `python -m module` as a daemon until the block ends."""
        command = [sys.executable, "-m", module, *arguments]
        name = module.replace(".", "-")
        with daemon(name, command, {**self.environment, **(environment or {})}, self.folder) as running:
            yield running


@dataclass(frozen=True)
class BenchStack:
    """The servers of one benchmark; the registry's URL if it has one."""

    postgres: PostgresServer
    kafka: KafkaBroker
    folder: Path
    schema_registry_url: str | None = None

    def pipeline(
        self, *, source: str, view: str, topic_prefix: str, further: Mapping[str, str] | None = None
    ) -> Pipeline:
        """Return settings for two databases by name and a topic prefix."""
        return Pipeline(
            source_url=self.postgres.url(source),
            view_url=self.postgres.url(view),
            kafka_bootstrap_servers=self.kafka.bootstrap_servers,
            topic_prefix=topic_prefix,
            folder=self.folder,
            further=further or {},
        )

    def create_database(self, name: str, *, template: str = "template0") -> None:
        """Create a database, as a copy of `template`, which nobody may be connected to."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute(statement)

    def drop_database(self, name: str) -> None:
        """Drop a database."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def settle(self) -> None:
        """Write out what earlier work left to write, so that the next measurement does not pay for it."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def postgres_cpu_seconds(self) -> float:
        """Return the CPU seconds of Postgres since its start, ended sessions included."""
        return cpu_seconds(self.postgres.pid)


@contextmanager
def bench_stack(*, registry: bool = False) -> Iterator[BenchStack]:
    """Run fresh servers in a temporary folder; stop them and remove it after."""
    with tempfile.TemporaryDirectory(prefix="viewkeeper-bench-") as name:
        folder = Path(name)
        with stack(folder, registry=registry) as servers:
            if servers.postgres is None or servers.kafka is None:
                raise BenchError("the local stack did not start Postgres and Kafka")
            yield BenchStack(servers.postgres, servers.kafka, folder, servers.schema_registry_url)
