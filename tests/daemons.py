"""Viewkeeper's daemons as the separate processes that they are."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compose.local.process import death_prefix, started
from tests.preloaded import ForkedProcess, start
from tests.waiting import wait_until

Process = subprocess.Popen[bytes] | ForkedProcess

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 15.0
COMMAND_SECONDS = 60.0


class Daemon:
    """One running daemon and its log, a file of JSON lines."""

    def __init__(self, name: str, process: Process, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def health_port(self) -> int:
        """The port of its health listener (the api's own port); waits until it listens."""
        event = "api_listening" if self.name.startswith("api-") else "health_listening"
        return int(self.wait_logged(event)["port"])

    def log_text(self) -> str:
        """All that it has written so far."""
        return self.log_path.read_text(errors="replace")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Read the log's lines of one event, oldest first."""
        lines = [line for line in self.log_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in map(json.loads, lines) if line.get("event") == event]

    def wait_logged(self, event: str, *, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Wait for an event and return its first line; fails with the log if the daemon ends before."""

        def seen_or_ended() -> bool:
            return bool(self.logged(event)) or not self.is_running()

        wait_until(seen_or_ended, timeout_seconds=timeout_seconds, what=f"{event} in the log of {self.name}")
        lines = self.logged(event)
        if not lines:
            pytest.fail(f"{self.name} ended with code {self._process.returncode}; its log:\n{self.log_text()}")
        return lines[0]

    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, SIGSTOP for instance."""
        self._process.send_signal(number)

    def terminate(self) -> int:
        """Ask it to stop, as a supervisor does, and return its exit code."""
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Wait for its end and return its exit code; fails with the log if it does not end."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {timeout_seconds:g} s; its log:\n{self.log_text()}")


class Daemons:
    """Starts daemons by their command, `daemons("cdc", "run")`, with the settings of this test."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._started: list[Daemon] = []

    def __call__(self, part: str, *arguments: str, settings: Mapping[str, str] | None = None) -> Daemon:
        """Start `part` (cdc, projector, api) with further or other `settings`; does not wait for anything."""
        name = f"{part}-{len(self._started)}"
        log_path = self._folder / f"{name}.log"
        environment = _environment({**self._settings, **(settings or {})})
        with log_path.open("wb") as log:
            if all(setting.startswith("VIEWKEEPER_") for setting in settings or ()):
                process: Process = start(part, arguments, environment, ROOT, log_path)
            else:
                # What libraries read of the environment, some read when they are loaded.
                command = [*death_prefix(signal.SIGKILL), sys.executable, "-m", f"{part}.cli", *arguments]
                process = started(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        daemon = Daemon(name, process, log_path)
        self._started.append(daemon)
        return daemon

    def end_all(self) -> None:
        """Kill what still runs, a stopped process too."""
        for daemon in self._started:
            if daemon.is_running():
                daemon.kill()


def standard_output(settings: Mapping[str, str], part: str, *arguments: str) -> str:
    """Run a command of `part` to its end, which must be a good one; return what it printed, its log left out."""
    command = [sys.executable, "-m", f"{part}.cli", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    # Settings of the shell that runs the tests must not reach what is tested.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIEWKEEPER_")}
    return {**inherited, **settings}


@contextmanager
def daemons_in(folder: Path, settings: Mapping[str, str]) -> Iterator[Daemons]:
    """Offer daemons that log into `folder` and end with the context."""
    daemons = Daemons(folder, settings)
    try:
        yield daemons
    finally:
        daemons.end_all()
