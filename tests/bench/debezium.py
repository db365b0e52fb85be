"""Debezium's Postgres connector in Kafka Connect standalone, one local process: the peer of `make bench-capture`.

It is set up as somebody would who wants it fast; each setting that is not the default has its reason beside it.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from compose.local import jvm
from compose.local.jars import JavaProgram
from compose.local.kafka import LOG_FLAGS, SLF4J_SIMPLE_VERSION
from compose.local.process import tail
from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.processes import Daemon, daemon
from tests.bench.sample_rows import TABLE

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
    otherwise="measure without PEER",
)

# As Kafka's own connect-standalone.sh has it, both compilers included, and not what our broker runs with.
JVM_FLAGS = (
    "-Xms256M",
    "-Xmx2G",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    # Without these the JVM warns of the codecs' habits.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)

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
    # Fewer, larger requests to the broker, packed as ours.
    "producer.compression.type": "lz4",
    "producer.batch.size": "262144",
    "producer.buffer.memory": "67108864",
    # Several requests on their way at once; idempotence keeps their order.
    "producer.enable.idempotence": "true",
    "producer.max.in.flight.requests.per.connection": "5",
}

CONNECTOR_SETTINGS = {
    "name": "debezium",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    "table.include.list": f"public.{TABLE}",
    # The default of 500 ms would be its latency; it waits only while there is nothing to do.
    "poll.interval.ms": "10",
    # Ten times the defaults, 2,048 and 8,192: fewer turns between its two threads and fewer calls of the worker's.
    "max.batch.size": "20480",
    "max.queue.size": "81920",
    # Twice the default, so that a page of the snapshot fills a batch.
    "snapshot.fetch.size": "20480",
    # Rows as ours, instead of envelopes with a row before and after.
    "transforms": "flat",
    "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
    # When a row was read, which tells when a phase began: one header, where ours has three.
    "transforms.flat.add.headers": "ts_ms",
}
READ_TIME_HEADER = "__ts_ms"

# Connect's traces are long, and their causes come last.
LOG_TAIL_LINES = 80
SLOT_SECONDS = 30.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Connector:
    """One connector over a pipeline's source, with topics named as ours are.

    `name` is unused on the server: of its replication slot, its publication and its files.
    """

    name: str
    pipeline: Pipeline

    @contextmanager
    def running(self, *, snapshot: bool) -> Iterator[Daemon]:
        """Run it until the block ends: first with a snapshot, later from the offset where it stopped."""
        command = [str(jvm.java()), *JVM_FLAGS, *LOG_FLAGS, "-cp", _class_path()]
        program = "org.apache.kafka.connect.cli.ConnectStandalone"
        files = self._write_settings("initial" if snapshot else "no_data")
        with daemon("debezium", [*command, program, *map(str, files)], {}, self.pipeline.folder) as process:
            yield process

    def drop_slot(self) -> None:
        """Drop its replication slot, without which its database cannot be dropped, once the server has let it go."""
        deadline = time.monotonic() + SLOT_SECONDS
        with psycopg.connect(self.pipeline.source_url, autocommit=True) as connection:
            while time.monotonic() < deadline:
                dropped = connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                    "WHERE slot_name = %s AND NOT active",
                    (self.name,),
                )
                if dropped.rowcount:
                    return
                time.sleep(POLL_SECONDS)
        raise BenchError(f"the replication slot {self.name} is not there or still in use after {SLOT_SECONDS:g} s")

    def _write_settings(self, snapshot_mode: str) -> tuple[Path, Path]:
        """Write the worker's and the connector's settings; return their files."""
        base = self.pipeline.folder / self.name
        worker = {
            "bootstrap.servers": self.pipeline.kafka_bootstrap_servers,
            "offset.storage.file.filename": f"{base}.offsets",
        }
        source = conninfo_to_dict(self.pipeline.source_url)
        connector = {
            "database.hostname": str(source["host"]),
            "database.port": str(source["port"]),
            "database.user": str(source["user"]),
            "database.dbname": str(source["dbname"]),
            "topic.prefix": self.pipeline.topic_prefix,
            "slot.name": self.name,
            "publication.name": self.name,
            "snapshot.mode": snapshot_mode,
        }
        return (
            _write(Path(f"{base}.worker.properties"), {**WORKER_SETTINGS, **worker}),
            _write(Path(f"{base}.connector.properties"), {**CONNECTOR_SETTINGS, **connector}),
        )


def check(process: Daemon) -> None:
    """Raise BenchError with the end of Connect's log if it ended or its task failed, which it outlives."""
    process.check_alive()
    if b"] ERROR " in process.log_path.read_bytes():
        raise BenchError(f"Debezium failed; the end of Connect's log:\n{tail(process.log_path, LOG_TAIL_LINES)}")


def _class_path() -> str:
    return os.pathsep.join(str(jar) for jar in PROGRAM.jars())


def _write(path: Path, settings: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return path
