"""Instances of one capture that are killed, stopped, paused and begun again at random."""

import signal
from collections.abc import Callable
from random import Random

import pytest

from tests.daemons import Daemon

MOST_INSTANCES = 2


class Captures:
    """At least one instance runs after each trouble; two may, of which one is the standby."""

    def __init__(self, start: Callable[[], Daemon], random: Random) -> None:
        self._start = start
        self._random = random
        self._running = [start(), start()]
        self._paused: list[Daemon] = []

    def trouble(self) -> None:
        """Do something to an instance, and see that there is one."""
        self.assert_running()
        self._wake()
        victim = self._random.choice(self._running)
        way = self._random.choice([self._kill, self._kill, self._terminate, self._pause, self._leave])
        way(victim)
        if not self._running or (len(self._running) < MOST_INSTANCES and self._random.random() < 0.7):
            self._running.append(self._start())

    def settle(self) -> None:
        """Leave one instance in peace."""
        self._wake()
        self.assert_running()
        for instance in self._running[1:]:
            self._kill(instance)

    def assert_running(self) -> None:
        """Fail, with its log, if an instance has ended by itself."""
        for instance in self._running:
            if not instance.is_running():
                pytest.fail(f"{instance.name} ended by itself; its log:\n{instance.log_text()}")

    def _wake(self) -> None:
        for instance in self._paused:
            instance.signal(signal.SIGCONT)
        self._paused = []

    def _kill(self, instance: Daemon) -> None:
        instance.kill()
        self._running.remove(instance)

    def _terminate(self, instance: Daemon) -> None:
        # Before its handler is there, SIGTERM ends it as it ends any process.
        instance.wait_logged("health_listening")
        assert instance.terminate() == 0, instance.log_text()
        self._running.remove(instance)

    def _pause(self, instance: Daemon) -> None:
        instance.signal(signal.SIGSTOP)
        self._paused.append(instance)

    def _leave(self, instance: Daemon) -> None:
        assert instance.is_running()
