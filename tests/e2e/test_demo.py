"""The demo as its user starts it: a process that shows its figures, ends with an audit and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from compose.demo.population import PROBE_ID
from tests.daemons import ROOT
from tests.event_stream import event_stream
from tests.waiting import wait_until

MARK = "VIEWKEEPER_LOCAL_DEMO_TEST"
"""A variable that every process of one demo inherits, by which a left one is found."""
END_SECONDS = 120.0


class Demo:
    """A demo that runs on a data folder of its own, and all that it writes."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.mark = uuid4().hex
        self._output = folder / "output.txt"
        self._data_dir = folder / "demo"
        # Settings of the shell that runs the tests must not reach the demo, but for where the jars are kept.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("VIEWKEEPER_") or name.startswith("VIEWKEEPER_LOCAL_")
        }
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "compose.demo", "run", "--data-dir", str(self._data_dir), *options],
                cwd=ROOT,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for_output(self, text: str) -> None:
        """Wait until it has written `text`, or has ended."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, timeout_seconds=60, what=text)
        assert text in self.output, self.output

    def wait_for_its_end(self) -> int:
        return self.process.wait(END_SECONDS)

    def left_processes(self) -> list[str]:
        """Return the command lines of all other processes that it has started, directly or not."""
        return [
            " ".join(process.cmdline())
            for process in psutil.process_iter()
            if process.pid != self.process.pid and self._started(process)
        ]

    def _started(self, process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        return False


def test_a_demo_ends_by_itself_with_an_audit_and_leaves_nothing(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--seconds", "5", "--scale", "0.02")
    demo.wait_for_output("watch it: ")
    page = re.search(r"^watch it: http://127\.0\.0\.1:(\d+)/live#userId=12542832$", demo.output, re.MULTILINE)
    assert page, demo.output
    # The demo's own user, who changes all the time; of none would be heard by heartbeats before the end.
    with event_stream(int(page[1]), f"/users/{PROBE_ID}") as stream:
        stream.next_of("row", "gone")
        stream.next_of("row")
    assert demo.wait_for_its_end() == 0, demo.output
    audits = re.findall(r"view = SQL over the source, (\d+) rows compared, 0 differ$", demo.output, re.MULTILINE)
    assert int(audits[-1]) >= 100, demo.output
    assert re.search(r"^  workload +[1-9]\d* changes", demo.output, re.MULTILINE), demo.output
    assert re.search(r"^  freshness +p50 \d+", demo.output, re.MULTILINE), demo.output
    assert re.search(r"^curl http://127\.0\.0\.1:\d+/users/12542832$", demo.output, re.MULTILINE), demo.output
    assert demo.left_processes() == []


def test_a_second_copy_says_that_the_first_one_runs(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--scale", "0.01")
    try:
        wait_until(lambda: (tmp_path / "demo" / "lock").exists(), what="the first demo's lock")
        second = subprocess.run(
            [sys.executable, "-m", "compose.demo", "run", "--data-dir", str(tmp_path / "demo")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
            check=False,
        )
        assert second.returncode == 2
        assert f"in use by process {demo.process.pid}" in second.stderr
    finally:
        demo.process.send_signal(signal.SIGINT)
        demo.wait_for_its_end()
    assert demo.left_processes() == []


@pytest.mark.parametrize("after", ["Postgres started", "daemons started"])
def test_an_interrupted_start_leaves_nothing(tmp_path: Path, after: str) -> None:
    demo = Demo(tmp_path, "--scale", "0.01")
    demo.wait_for_output(after)
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait_for_its_end() == 130, demo.output
    assert demo.left_processes() == []


def test_an_unknown_store_is_refused(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--store", "paper")
    assert demo.wait_for_its_end() == 2
    assert "accepted: postgres" in demo.output
