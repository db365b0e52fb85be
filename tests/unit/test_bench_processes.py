"""What processes cost, and what becomes of daemons that end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.bench.errors import BenchError
from tests.bench.processes import cores, cpu_seconds, daemon, peak_rss_bytes

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
SAY_AND_WAIT = (
    "import sys, signal\n"
    'sys.stderr.write(\'a warning\\n{"event": "health_listening", "port": 4711}\\n\')\n'
    "sys.stderr.flush()\n"
    "signal.pause()\n"
)


def test_cpu_of_children_that_have_ended_counts() -> None:
    before = cpu_seconds(os.getpid())

    subprocess.run([sys.executable, "-c", BURN], check=True)

    assert cpu_seconds(os.getpid()) - before >= 0.28


@pytest.mark.parametrize(("work", "busy"), [("while True: pass", True), ("import time; time.sleep(30)", False)])
def test_cores_tell_a_busy_process_from_one_at_rest(work: str, *, busy: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{work}"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert (cores(process.pid, seconds=0.5) > 0.1) == busy
        finally:
            process.kill()


def test_the_peak_stays_after_memory_was_given_back() -> None:
    hungry = "import time; block = b'x' * 100_000_000; del block; print('done', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", hungry], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert peak_rss_bytes(process.pid) > 100_000_000
            assert psutil.Process(process.pid).memory_info().rss < 100_000_000
        finally:
            process.kill()


def test_a_daemon_says_its_port_and_is_stopped(tmp_path: Path) -> None:
    with daemon("server", [sys.executable, "-c", SAY_AND_WAIT], {}, tmp_path) as running:
        assert running.port() == 4711
        assert running.process.poll() is None

    assert running.process.returncode is not None


def test_a_daemon_that_ends_by_itself_is_an_error_with_its_log(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no such table')"]

    with pytest.raises(BenchError, match=r"(?s)code 1.*no such table"), daemon("failing", failing, {}, tmp_path) as one:
        one.port()


def test_a_daemon_that_ends_later_is_an_error_too(tmp_path: Path) -> None:
    short = [sys.executable, "-c", SAY_AND_WAIT.replace("signal.pause()", "sys.exit(3)")]

    with pytest.raises(BenchError, match="code 3"), daemon("short", short, {}, tmp_path) as one:
        one.process.wait()


def test_a_daemon_that_does_not_speak_is_an_error(tmp_path: Path) -> None:
    silent = [sys.executable, "-c", "import signal; signal.pause()"]
    began = time.monotonic()

    with pytest.raises(BenchError, match="did not log"), daemon("silent", silent, {}, tmp_path) as one:
        one.wait_for_event("health_listening", timeout_seconds=0.3)

    assert time.monotonic() - began < 10


def test_settings_of_ours_come_from_the_benchmark_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", "postgresql://somebody@elsewhere/database")
    show = (
        "import os, sys, json, signal\n"
        "names = [name for name in os.environ if name.startswith('VIEWKEEPER_')]\n"
        "sys.stderr.write(json.dumps({'event': ' '.join(names)}) + '\\n')\n"
        "sys.stderr.flush()\n"
        "signal.pause()\n"
    )

    with daemon("show", [sys.executable, "-c", show], {"VIEWKEEPER_VIEW_URL": "x"}, tmp_path) as running:
        assert running.wait_for_event("VIEWKEEPER_VIEW_URL").event == "VIEWKEEPER_VIEW_URL"
