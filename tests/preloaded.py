"""Daemons forked from a process that has imported their part already: imports are a third of what the tests compute.

A daemon runs its command's `main` in a process of its own, with the environment, arguments and files that it is given,
as if it had been executed. What has to show how it is executed is started by its command line: the end-to-end tests,
commands of which the output is read, and what is given settings of others than us.
"""

import ctypes
import importlib
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from compose.local.process import death_prefix, started

_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class _Start(msgspec.Struct, frozen=True):
    """What a daemon is started with: arguments, environment, folder, and the file for its output."""

    arguments: Sequence[str]
    environment: dict[str, str]
    folder: str
    log_path: str


class ForkedProcess:
    """A process of `start`, used as one of `subprocess`: its server tells when it has ended, and how."""

    def __init__(self, connection: socket.socket) -> None:
        self._told = connection.makefile("rb")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code once it has ended, minus a signal's number if that ended it."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            # A server that is gone has taken its processes with it.
            self.returncode = int(self._told.readline() or -signal.SIGKILL)
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self.send_signal(signal.SIGKILL)


def start(part: str, arguments: Sequence[str], environment: dict[str, str], folder: Path, log: Path) -> ForkedProcess:
    """Start `part` (cdc, projector, api) in a folder; what it writes goes to the end of a log."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control, _ = _server(part)
        socket.send_fds(control, [b" "], [theirs.fileno()])
        ours.sendall(msgspec.json.encode(_Start(arguments, environment, str(folder), str(log))) + b"\n")
        theirs.close()
        return ForkedProcess(ours)


@cache
def _server(part: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a part's server, if there is none; return what it takes sockets from, one for each daemon."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*death_prefix(signal.SIGKILL), sys.executable, "-m", "tests.preloaded", part, str(theirs.fileno())]
        return ours, started(command, pass_fds=[theirs.fileno()])


def _wanted(control: socket.socket) -> _Start:
    """Fork a process for each request, and tell who asked for it; returns in these processes alone."""
    asking: dict[int, socket.socket] = {}
    awake, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    while True:
        ready, _, _ = select.select([control, awake], [], [])
        if awake in ready:
            awake.recv(4096)
            for pid, code in _ended():
                with suppress(OSError), asking.pop(pid) as connection:
                    connection.sendall(b"%d\n" % code)
        if control in ready:
            _, files, _, _ = socket.recv_fds(control, 1, 1)
            if not files:
                sys.exit()
            connection = socket.socket(fileno=files[0])
            with connection.makefile("rb") as request:
                start = msgspec.json.decode(request.readline(), type=_Start)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (control, awake, waking, connection, *asking.values()):
                    inherited.close()
                return start
            asking[pid] = connection
            with suppress(OSError):
                connection.sendall(b"%d\n" % pid)


def _ended() -> list[tuple[int, int]]:
    found = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _become(start: _Start) -> None:
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    log = os.open(start.log_path, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    sys.argv[1:] = start.arguments


def main() -> None:
    """Serve; each process that is asked for becomes its part here."""
    part, control = sys.argv[1:]
    module = importlib.import_module(f"{part}.cli")
    _become(_wanted(socket.socket(fileno=int(control))))
    sys.argv[0] = f"{part}.cli"
    module.main()


if __name__ == "__main__":
    main()
