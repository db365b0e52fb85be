"""The demo's processes: each with a log file, watched while it runs, and gone when the demo is."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from compose.demo.errors import DemoError
from compose.local.process import death_prefix

T = TypeVar("T")

POLL_SECONDS = 0.05
START_SECONDS = 60.0
STOP_SECONDS = 15.0
LOG_LINES = 15


class Process:
    """A running Python module. Its standard error, and standard output unless it is piped, go to its log file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_path: Path, log_begin_bytes: int) -> None:
        self.name = name
        self.log_path = log_path
        self._popen = popen
        self._log_begin_bytes = log_begin_bytes

    @property
    def output(self) -> IO[bytes]:
        """Its piped standard output."""
        if self._popen.stdout is None:
            raise ValueError(f"{self.name}: its output is not piped")
        return self._popen.stdout

    def check(self) -> None:
        """Raise DemoError with the last lines of its log when it has ended."""
        code = self._popen.poll()
        if code is not None:
            last_lines = "\n".join(self._log().decode(errors="replace").splitlines()[-LOG_LINES:]) or "(nothing)"
            raise DemoError(f"{self.name} ended with code {code}; the end of its log {self.log_path}:\n{last_lines}")

    def logged(self, event: str) -> dict[str, object]:
        """Wait until this run logs `event` and return the line's fields; raise DemoError when it ends before."""

        def found() -> dict[str, object] | None:
            lines = map(_fields, self._log().splitlines())
            return next((line for line in lines if line.get("event") == event), None)

        return wait_for(found, [self], what=f"{self.name}: no {event} in its log", timeout_seconds=START_SECONDS)

    def _log(self) -> bytes:
        """Return what this run has logged; earlier runs stand before it."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_begin_bytes)
            return log.read()

    def stop(self) -> None:
        """Ask it to stop, then make it; return when it is gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._popen.poll() is None:
                self._popen.send_signal(number)
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return

    def end(self) -> None:
        """Ask it to stop and wait; raise DemoError when it had ended before or does not end well."""
        self.check()
        self.stop()
        # One that was asked before it listens for signals had nothing in hand.
        if self._popen.returncode not in (0, -signal.SIGTERM):
            self.check()


@contextmanager
def running(
    name: str, arguments: Sequence[str], *, environment: Mapping[str, str], log_dir: Path, piped: bool = False
) -> Iterator[Process]:
    """Run `python -m ARGUMENTS…` for as long as the context lasts; it ends with us, however we end."""
    log_path = log_dir / f"{name}.log"
    with log_path.open("ab") as log:
        begin_bytes = log.tell()
        popen = subprocess.Popen(
            [*death_prefix(signal.SIGTERM), sys.executable, "-m", *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=log,
            # A terminal's Ctrl-C is for the demo alone, which stops its processes in their order.
            start_new_session=True,
        )
    process = Process(name, popen, log_path, begin_bytes)
    try:
        yield process
    finally:
        process.stop()
        if popen.stdout:
            popen.stdout.close()


def run_once(name: str, arguments: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Run `python -m ARGUMENTS…` to its end and return its output; raise DemoError with its errors when it fails."""
    done = subprocess.run(
        [*death_prefix(signal.SIGTERM), sys.executable, "-m", *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise DemoError(f"{name} failed with code {done.returncode}:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(
    condition: Callable[[], T | None], processes: Sequence[Process], *, what: str, timeout_seconds: float
) -> T:
    """Ask `condition` until it returns something, and return that.

    Raises DemoError when one of `processes` ends meanwhile, or with `what` when the time is up.
    """
    deadline = time.monotonic() + timeout_seconds
    while (result := condition()) is None:
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{what} within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    return result


def _fields(line: bytes) -> dict[str, object]:
    try:
        fields = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
