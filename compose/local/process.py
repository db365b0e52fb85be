"""One server as our child: it starts without a terminal, says why it died, and never outlives us."""

import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from compose.local.errors import LocalSettingError, LocalStackError

Process = subprocess.Popen[Any]

READY_POLL_SECONDS = 0.03
LOG_TAIL_LINES = 25
_SERVER_PORTS = range(16_000, 32_000)


class _Starter:
    """Starts all children in one thread, which lives as long as this process.

    Linux sends a child its parent-death signal when the *thread* that started it ends. An executor's threads are waited
    for when a process ends, for ever if an interrupt came just as one was made; a daemon thread is not.
    """

    def __init__(self) -> None:
        self._calls = SimpleQueue[tuple[Callable[[], Process], Future[Process]]]()
        self._thread: threading.Thread | None = None

    def call(self, start: Callable[[], Process], future: Future[Process]) -> None:
        """Have `start` called, and the future get what comes of it."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="local-server-starter", daemon=True)
            thread.start()
            self._thread = thread
        self._calls.put((start, future))

    def _run(self) -> None:
        while True:
            start, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(start())
            except OSError as error:
                future.set_exception(error)


_starter = _Starter()


@dataclass(frozen=True)
class ServerCommand:
    """How one server is run.

    `stop_signals` are sent in turn until it ends, each with `stop_seconds` of patience; the first is also what the
    kernel sends it if we die. `prefix` runs before it, to change user for instance.
    """

    name: str
    arguments: Sequence[str]
    log_path: Path
    stop_signals: Sequence[signal.Signals]
    stop_seconds: float = 20.0
    prefix: Sequence[str] = ()


class ServerProcess:
    """A running server, started by `start`, ended by `stop`."""

    def __init__(self, command: ServerCommand, process: subprocess.Popen[bytes]) -> None:
        self._command = command
        self._process = process

    @classmethod
    def start(cls, command: ServerCommand) -> "ServerProcess":
        """Start the server in a session of its own, so that a terminal's Ctrl-C reaches us alone."""
        # The change of user comes first: it takes an earlier parent-death signal away.
        arguments = [*command.prefix, *death_prefix(command.stop_signals[0]), *command.arguments]
        with command.log_path.open("ab") as log:
            return cls(command, started(arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))

    @property
    def pid(self) -> int:
        """Its process id; the server's own, for the prefixes replace themselves by it."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def wait_until_ready(self, is_ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Ask `is_ready` until it says yes; raise LocalStackError with the log's tail if the server dies before."""
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            if self._process.poll() is not None:
                raise self._failure(f"ended with code {self._process.returncode} while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {timeout_seconds:g} s")
            time.sleep(READY_POLL_SECONDS)

    def stop(self) -> bool:
        """End the server and wait for it; true if it went at the first, polite signal (or had gone)."""
        for number, stop_signal in enumerate(self._command.stop_signals):
            if self._process.poll() is None:
                self._process.send_signal(stop_signal)
            try:
                self._process.wait(self._command.stop_seconds)
            except subprocess.TimeoutExpired:
                continue
            return number == 0
        raise self._failure("could not be stopped")

    def _failure(self, what: str) -> LocalStackError:
        log_path = self._command.log_path
        return LocalStackError(
            f"{self._command.name} {what}; the end of its log {log_path}:\n{tail(log_path, LOG_TAIL_LINES)}"
        )


def run_to_end(name: str, arguments: Sequence[str], *, log_path: Path) -> None:
    """Run a short command of a server, its output into the log; raise LocalStackError with the log's tail if it fails.

    It is no session of its own: a Ctrl-C ends it too.
    """
    with log_path.open("ab") as log:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise LocalStackError(
            f"{name} failed with code {done.returncode}; "
            f"the end of its log {log_path}:\n{tail(log_path, LOG_TAIL_LINES)}"
        )


def started(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child, which reads nothing, so that `death_prefix` counts for as long as this process lives.

    An interrupt meanwhile leaves no child behind that nobody knows of.
    """

    def start() -> Process:
        return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, **options)

    future = Future[Process]()
    try:
        _starter.call(start, future)
        return future.result()
    except KeyboardInterrupt:
        if not future.cancel():
            process = future.result()
            process.terminate()
            process.wait()
        raise


def death_prefix(death_signal: signal.Signals) -> list[str]:
    """Words before a command that make the kernel send it `death_signal` when we die; none where it cannot."""
    setpriv = shutil.which("setpriv") if platform.system() == "Linux" else None
    return [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG")] if setpriv else []


def stop_leftover(pid: int, *, mark: str, stop_signals: Iterable[signal.Signals], stop_seconds: float) -> None:
    """Stop what an earlier run left behind: the process `pid`, if `mark` stands in its command line."""
    for stop_signal in stop_signals:
        if mark not in command_line(pid):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
        deadline = time.monotonic() + stop_seconds
        while mark in command_line(pid) and time.monotonic() < deadline:
            time.sleep(READY_POLL_SECONDS)
    if mark in command_line(pid):
        raise LocalStackError(f"process {pid}, left by an earlier run, does not end; stop it: kill -9 {pid}")


def command_line(pid: int) -> str:
    """Read the command line of a living process, words separated by blanks; empty if there is none such."""
    if platform.system() == "Linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return words.replace(b"\0", b" ").decode(errors="replace")
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout


def processes_in(folder: Path, *, title: str) -> list[int]:
    """List the processes that work in `folder` and whose command line begins with `title`; on Linux only."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # not ours to look at, or gone
            if (entry / "cwd").readlink() == folder and command_line(int(entry.name)).startswith(title):
                found.append(int(entry.name))
    return found


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 that nobody listens on now.

    It is below those that outgoing connections are given: one of these could take it while a server is still starting.
    """
    while True:
        port = secrets.choice(_SERVER_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def demand_free(port: int, *, server: str) -> None:
    """Raise LocalSettingError if somebody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        # As the servers do: a connection of an earlier run that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalSettingError(
                f"port {port}, wanted for {server}, cannot be had ({error.strerror}); "
                "choose another one, or none for any free port"
            ) from error


def tail(path: Path, lines: int) -> str:
    """Read the last lines of a log; a note if there are none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"
