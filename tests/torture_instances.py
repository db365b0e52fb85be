"""Instances of one daemon that a torture starts, pauses and ends."""

import signal
from collections.abc import Callable
from random import Random

import pytest

from tests.daemons import Daemon


class Instances:
    """Some instances run; some of these may be paused."""

    def __init__(self, start: Callable[[], Daemon], random: Random, *, at_first: int) -> None:
        self._start = start
        self._random = random
        self._running = [start() for _ in range(at_first)]
        self._paused: list[Daemon] = []

    def assert_running(self) -> None:
        """Fail, with its log, if an instance has ended by itself."""
        for instance in self._running:
            if not instance.is_running():
                pytest.fail(f"{instance.name} ended by itself; its log:\n{instance.log_text()}")

    def _pause(self, instance: Daemon) -> None:
        instance.signal(signal.SIGSTOP)
        self._paused.append(instance)

    def _wake(self) -> None:
        for instance in self._paused:
            instance.signal(signal.SIGCONT)
        self._paused = []

    def _terminate(self, instance: Daemon) -> None:
        # Before its handler is there, SIGTERM ends it as it ends any process.
        instance.wait_logged("health_listening")
        assert instance.terminate() == 0, instance.log_text()
        self._running.remove(instance)
