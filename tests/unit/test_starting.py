"""Ctrl-C while a command still loads its modules."""

import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("part", ["cdc", "projector", "api", "compose.local", "compose.demo"])
def test_ctrl_c_while_modules_load_ends_a_command_without_a_word(part: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", part, "--help"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # Told line by line; the part's own modules come last.
        assert any(line.split("|")[-1].strip() == "click" for line in process.stderr)
        process.send_signal(signal.SIGINT)
        words = [line for line in process.stderr if not line.startswith("import time:")]
    assert (process.returncode, words) == (-signal.SIGINT, [])
