"""The demo's processes."""

import os
from pathlib import Path

import pytest

from compose.demo.errors import DemoError
from compose.demo.processes import run_once, running, wait_for


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a test writes the module `child` that it starts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "child.py"


def test_a_process_that_ends_is_reported_with_the_end_of_its_log(module: Path, tmp_path: Path) -> None:
    module.write_text("import sys; sys.exit('no such topic')")
    with (
        running("child", ["child"], environment=os.environ, log_dir=tmp_path) as process,
        pytest.raises(DemoError, match=r"child ended with code 1(.|\n)*no such topic"),
    ):
        wait_for(lambda: None, [process], what="never", timeout_seconds=30)


def test_a_logged_event_is_found_in_this_run_only(module: Path, tmp_path: Path) -> None:
    module.write_text(
        "import json, sys, time\n"
        "print('no JSON', file=sys.stderr)\n"
        "print(json.dumps({'event': 'listening', 'port': int(sys.argv[1])}), file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    for port in (1, 2):
        with running("child", ["child", str(port)], environment=os.environ, log_dir=tmp_path) as process:
            assert process.logged("listening")["port"] == port


def test_a_process_is_gone_after_its_context(module: Path, tmp_path: Path) -> None:
    module.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    with running("child", ["child"], environment=os.environ, log_dir=tmp_path, piped=True) as process:
        pid = int(process.output.readline())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_waiting_ends_when_the_time_is_up() -> None:
    with pytest.raises(DemoError, match=r"nothing came within 0\.1 s"):
        wait_for(lambda: None, [], what="nothing came", timeout_seconds=0.1)


def test_a_command_that_fails_is_reported_with_its_errors(module: Path) -> None:
    module.write_text("import sys; sys.exit('error: no right')")
    with pytest.raises(DemoError, match=r"attach failed with code 1:\nerror: no right"):
        run_once("attach", ["child"], environment=os.environ)
