"""Processes under measurement: the daemons that a benchmark starts, and what processes cost in CPU and memory."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from compose.local.process import death_prefix, tail
from tests.bench.errors import BenchError

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.01
LOG_TAIL_LINES = 20


class LogLine(msgspec.Struct, frozen=True):
    """A line of a daemon's JSON log, as far as benchmarks read it."""

    event: str
    port: int | None = None


@dataclass(frozen=True)
class Daemon:
    """A running process of ours, with a JSON log."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def wait_for_event(self, event: str, *, timeout_seconds: float = START_SECONDS) -> LogLine:
        """Wait until the log has a line of `event` and return it; raise BenchError if the process ends before."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            line = self.logged(event)
            if line:
                return line
            self.check_alive()
            time.sleep(POLL_SECONDS)
        raise BenchError(f"{self.name} did not log {event!r} within {timeout_seconds:g} s; {self._log_end()}")

    def logged(self, event: str) -> LogLine | None:
        """Return the log's first line of `event`, None if there is none yet."""
        return next((line for line in self._log_lines() if line.event == event), None)

    def port(self, event: str = "health_listening") -> int:
        """Wait until the process listens and return its port."""
        port = self.wait_for_event(event).port
        if port is None:
            raise BenchError(f"{self.name} logged {event!r} without a port")
        return port

    def check_alive(self) -> None:
        """Raise BenchError with the log's end if the process has ended."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with code {self.process.returncode}; {self._log_end()}")

    def _log_lines(self) -> Iterator[LogLine]:
        for line in self.log_path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                with suppress(msgspec.DecodeError):  # a warning of the interpreter's, for instance
                    yield msgspec.json.decode(line, type=LogLine)

    def _log_end(self) -> str:
        return f"the end of its log:\n{tail(self.log_path, LOG_TAIL_LINES)}"


@contextmanager
def daemon(name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Daemon]:
    """Run a daemon with its log in `folder`; stop it after. Raises BenchError when it does not stop cleanly.

    VIEWKEEPER settings come from `environment` alone. If we are killed the kernel kills the daemon.
    """
    log_path = folder / f"{name}-{time.monotonic_ns()}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*death_prefix(signal.SIGKILL), *command],
            env=only_settings(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Daemon(name, process, log_path)
    try:
        yield running
        running.check_alive()
    finally:
        _stop(running)


def _stop(running: Daemon) -> None:
    process = running.process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise BenchError(f"{running.name} did not stop within {STOP_SECONDS:g} s of SIGTERM") from None


@dataclass(frozen=True)
class Measured:
    """What a command took from its start to its end, and the largest memory that it had resident."""

    seconds: float
    peak_rss_bytes: int


def run_measured(arguments: Sequence[str], environment: Mapping[str, str]) -> Measured:
    """Run `python -m` a command of ours to its end; raise BenchError with its output if it fails."""
    began_at, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*death_prefix(signal.SIGKILL), sys.executable, "-m", *arguments],
            env=only_settings(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            with suppress(BenchError, psutil.NoSuchProcess):
                peak = max(peak, peak_rss_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began_at
        output.seek(0)
        if process.returncode != 0:
            words = " ".join(arguments)
            raise BenchError(f"{words} ended with code {process.returncode}:\n{output.read().decode(errors='replace')}")
    return Measured(seconds, peak)


def only_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with these VIEWKEEPER settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIEWKEEPER_")}
    return {**inherited, **settings}


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and all its descendants, those that have ended and been waited for, too."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def cores(pid: int, *, seconds: float) -> float:
    """Return the cores that a process and its descendants use, over so many seconds from now on."""
    began_at, cpu_began = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - cpu_began) / (time.monotonic() - began_at)


def peak_rss_bytes(pid: int) -> int:
    """Return the largest memory that a process ever had resident, summed over it and its living descendants.

    The kernel's own high-water mark, so that no sampling misses it; Linux only. Raises BenchError elsewhere.
    """
    try:
        return sum(_high_water_bytes(process.pid) for process in _tree(pid))
    except FileNotFoundError as error:
        raise BenchError(
            f"peak memory is read from {error.filename}, which is not there: measure it on Linux"
        ) from error


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _high_water_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    # A process that has ended, and that nobody has waited for yet, has no memory any more.
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return int(kilobytes) * 1024
