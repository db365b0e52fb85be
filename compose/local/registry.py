"""A real Schema Registry as a local process: Apicurio, which speaks Confluent's protocol, its data in an H2 file."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from compose.local import jvm
from compose.local.folder import held
from compose.local.jars import JavaDistribution
from compose.local.process import ServerCommand, ServerProcess, demand_free, free_port, stop_leftover

REGISTRY_VERSION = "3.3.3"
PROGRAM = JavaDistribution(
    name="Apicurio-Registry",
    version=REGISTRY_VERSION,
    group="io.apicurio",
    artifact="apicurio-registry-app",
    classifier="all",
    megabytes=160,
    otherwise="set VIEWKEEPER_SCHEMA_REGISTRY_URL to a registry of yours",
)

HOST = "127.0.0.1"
READY_TIMEOUT_SECONDS = 240.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
_ANSWER_SECONDS = 2.0
_HEAP_MB = 256
_NAME = "Registry"


@dataclass(frozen=True)
class SchemaRegistry:
    """A running registry: where it listens, its process and its folder."""

    port: int
    pid: int
    data_dir: Path

    @property
    def url(self) -> str:
        """Where Confluent's clients find it."""
        return f"http://{HOST}:{self.port}/apis/ccompat/v7"

    def answers(self) -> bool:
        """Return whether it answers by now."""
        try:
            with urlopen(f"{self.url}/subjects", timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


class RegistryProcess:
    """A registry between its launch and its end, so that other servers can start while it does."""

    def __init__(self, registry: SchemaRegistry, process: ServerProcess) -> None:
        self.registry = registry
        self._process = process

    def wait_until_ready(self) -> SchemaRegistry:
        """Wait for its first answer; raise LocalStackError if it dies before or never gives one."""
        self._process.wait_until_ready(self.registry.answers, timeout_seconds=READY_TIMEOUT_SECONDS)
        return self.registry


@contextmanager
def registry(data_dir: Path, *, port: int | None = None) -> Iterator[SchemaRegistry]:
    """Run a registry on a data folder, which is made if it is new; ready when it yields, stopped after.

    `port` is any free one if None; schemas and their ids survive a restart. Raises LocalSettingError (folder in use,
    port taken, no Java for this platform) or LocalStackError (it cannot be fetched; it died, with its log's end).
    """
    with launched(data_dir, port=port) as process:
        yield process.wait_until_ready()


@contextmanager
def launched(data_dir: Path, *, port: int | None = None) -> Iterator[RegistryProcess]:
    """Like `registry`, but yields as soon as the process runs, before it is ready."""
    with held(data_dir) as folder:
        pid_path, data = folder / "registry.pid", folder / "data"
        # What was registered is on disk when the answer comes: ids are in the keys of records, which outlive a kill.
        data_option = f"-Dapicurio.datasource.url=jdbc:h2:file:{data};WRITE_DELAY=0"
        if pid_path.exists():
            stop_leftover(int(pid_path.read_text()), mark=data_option, stop_signals=STOP_SIGNALS, stop_seconds=20.0)
        port = port or free_port()
        demand_free(port, server=_NAME)
        options = [
            *(f"-Xmx{_HEAP_MB}m", *jvm.FLAGS, data_option),
            *(f"-Dquarkus.http.host={HOST}", f"-Dquarkus.http.port={port}"),
            *(f"-Dquarkus.management.host={HOST}", f"-Dquarkus.management.port={free_port()}"),
            # What readers of older records could not read is refused: Confluent's default, which is not Apicurio's.
            "-Dapicurio.rules.global.compatibility=BACKWARD",
            # Each pooled connection costs start-up time, and there are few clients.
            *("-Dapicurio.datasource.jdbc.initial-size=2", "-Dapicurio.datasource.jdbc.min-size=2"),
        ]
        command = ServerCommand(
            name=_NAME,
            arguments=[str(jvm.java()), *options, "-jar", str(PROGRAM.folder() / "quarkus-run.jar")],
            log_path=folder / "registry.log",
            stop_signals=STOP_SIGNALS,
        )
        process = ServerProcess.start(command)
        try:
            pid_path.write_text(f"{process.pid}\n")
            yield RegistryProcess(SchemaRegistry(port, process.pid, folder), process)
        finally:
            process.stop()
            pid_path.unlink(missing_ok=True)
