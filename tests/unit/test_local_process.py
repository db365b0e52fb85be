"""Children of a local stack."""

import subprocess
import sys
from uuid import uuid4

import psutil
import pytest

from tests.daemons import ROOT
from tests.waiting import wait_until

# Interrupted so many microseconds after it has begun to start a child, as Ctrl-C does it; the child sleeps.
PROGRAM = """
import signal, sys
from compose.local.process import death_prefix, started

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
try:
    signal.setitimer(signal.ITIMER_REAL, int(sys.argv[1]) / 1e6)
    started([*death_prefix(signal.SIGTERM), sys.executable, "-c", "import time; time.sleep(60)", sys.argv[2]])
    signal.pause()
except KeyboardInterrupt:
    sys.exit(130)
"""
END_SECONDS = 20


@pytest.mark.parametrize("microseconds", range(20, 740, 60))
def test_an_interrupt_while_a_child_is_started_ends_both(microseconds: int) -> None:
    mark = uuid4().hex
    command = [sys.executable, "-c", PROGRAM, str(microseconds), mark]
    assert subprocess.run(command, cwd=ROOT, timeout=END_SECONDS, check=False).returncode == 130

    def is_left() -> bool:
        return any(mark in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))

    wait_until(lambda: not is_left(), what="the child's end")
