"""Debezium's Postgres connector in Kafka Connect standalone, one local process: it captures the tables that we do.

Here is what it takes to run it. What it is run for adds settings of its own: the benchmark what makes it fast, a test
how types are written.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from compose.local import jvm
from compose.local.errors import LocalStackError
from compose.local.jars import JavaProgram
from compose.local.kafka import LOG_FLAGS, SLF4J_SIMPLE_VERSION
from compose.local.process import ServerCommand, ServerProcess, tail

DEBEZIUM_VERSION = "3.6.3.Final"
# The version that this Debezium is built with: with another one its own libraries would replace some of Connect's.
CONNECT_VERSION = "4.3.0"
PROGRAM = JavaProgram(
    name="Debezium",
    version=DEBEZIUM_VERSION,
    coordinates="+".join(
        (
            f"org.apache.kafka:connect-runtime:{CONNECT_VERSION}",
            f"org.apache.kafka:connect-json:{CONNECT_VERSION}",
            f"org.apache.kafka:connect-transforms:{CONNECT_VERSION}",
            f"io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}",
            # Named, else the older one that Debezium names is taken, which has no place for this binding.
            f"org.slf4j:slf4j-api:{SLF4J_SIMPLE_VERSION}",
            f"org.slf4j:slf4j-simple:{SLF4J_SIMPLE_VERSION}",
        )
    ),
    megabytes=40,
    otherwise="measure without PEER, test with ARGS='--deselect tests/integration/test_capture_debezium.py'",
)

JVM_FLAGS = ("-Xmx512m", *jvm.FLAGS)

WORKER_SETTINGS = {
    # Any free port; nothing is asked of it.
    "listeners": "http://127.0.0.1:0",
    # 5 s of start instead of 28.
    "plugin.discovery": "service_load",
    # The wire of ours: plain JSON. With schemas each record would carry its own, several times its size.
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "false",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schemas.enable": "false",
}

CONNECTOR_SETTINGS = {
    "name": "debezium",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    # The default of 500 ms would be its latency; it waits only while there is nothing to do.
    "poll.interval.ms": "10",
    # Rows as ours, instead of envelopes with a row before and after.
    "transforms": "flat",
    "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
}

SLOT = "SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
DROP_SLOT = """
SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
WHERE slot_name = %s AND NOT active
"""

# Connect's traces are long, and their causes come last.
LOG_TAIL_LINES = 80
STOP_SECONDS = 30.0
SLOT_SECONDS = 30.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Worker:
    """Kafka Connect while it runs, with its log."""

    process: ServerProcess
    log_path: Path

    def check(self) -> None:
        """Raise LocalStackError with the end of its log if it ended or its task failed, which it outlives."""
        if not self.process.is_running or b"] ERROR " in self.log_path.read_bytes():
            raise LocalStackError(f"Debezium failed; the end of Connect's log:\n{tail(self.log_path, LOG_TAIL_LINES)}")


@contextmanager
def run_worker(arguments: Sequence[str], log_path: Path) -> Iterator[Worker]:
    """Run a worker by its command line until the block ends; what it has produced by then is delivered."""
    stop_signals = (signal.SIGTERM, signal.SIGKILL)
    process = ServerProcess.start(ServerCommand("Debezium", arguments, log_path, stop_signals, STOP_SECONDS))
    try:
        yield Worker(process, log_path)
    finally:
        process.stop()


@dataclass(frozen=True)
class Connector:
    """One connector over tables of a source (`public.tweets`), its topics named as ours are.

    `name` is unused on the server: of its replication slot, its publication and its files in `folder`. The settings of
    worker and connector come on top of those above.
    """

    name: str
    source_url: str
    bootstrap_servers: str
    topic_prefix: str
    tables: Sequence[str]
    folder: Path
    jvm_flags: Sequence[str] = JVM_FLAGS
    worker_settings: Mapping[str, str] = field(default_factory=dict)
    connector_settings: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self, *, snapshot: bool) -> Iterator[Worker]:
        """Run it until the block ends: first with a snapshot, later from the offset where it stopped."""
        command = [str(jvm.java()), *self.jvm_flags, *LOG_FLAGS, "-cp", _class_path()]
        program = "org.apache.kafka.connect.cli.ConnectStandalone"
        snapshot_mode = "initial" if snapshot else "no_data"
        files = self._write_settings(snapshot_mode)
        log_path = self.folder / f"{self.name}.{snapshot_mode}.log"
        with run_worker([*command, program, *map(str, files)], log_path) as running:
            yield running

    def drop_slot(self) -> None:
        """Drop its replication slot, if it has one, once the server has let it go; its database stays until then."""

        def is_gone(connection: psycopg.Connection) -> bool:
            connection.execute(DROP_SLOT, [self.name])
            return connection.execute(SLOT, [self.name]).fetchone() is None

        retrying = Retrying(
            retry=retry_if_result(lambda gone: not gone),
            stop=stop_after_delay(SLOT_SECONDS),
            wait=wait_fixed(POLL_SECONDS),
        )
        with psycopg.connect(self.source_url, autocommit=True) as connection:
            try:
                retrying(is_gone, connection)
            except RetryError as error:
                raise LocalStackError(
                    f"Debezium's replication slot {self.name} is still in use after {SLOT_SECONDS:g} s"
                ) from error

    def _write_settings(self, snapshot_mode: str) -> tuple[Path, Path]:
        """Write the worker's and the connector's settings; return their files."""
        base = self.folder / self.name
        worker = {
            "bootstrap.servers": self.bootstrap_servers,
            "offset.storage.file.filename": f"{base}.offsets",
        }
        source = conninfo_to_dict(self.source_url)
        connector = {
            "database.hostname": str(source["host"]),
            "database.port": str(source["port"]),
            "database.user": str(source["user"]),
            "database.dbname": str(source["dbname"]),
            "table.include.list": ",".join(self.tables),
            "topic.prefix": self.topic_prefix,
            "slot.name": self.name,
            "publication.name": self.name,
            "snapshot.mode": snapshot_mode,
        }
        return (
            _write(Path(f"{base}.worker.properties"), {**WORKER_SETTINGS, **self.worker_settings, **worker}),
            _write(
                Path(f"{base}.connector.properties"), {**CONNECTOR_SETTINGS, **self.connector_settings, **connector}
            ),
        )


def _class_path() -> str:
    return os.pathsep.join(str(jar) for jar in PROGRAM.jars())


def _write(path: Path, settings: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return path
