"""Instances of one capture that are killed, stopped, paused and begun again at random."""

from collections.abc import Callable
from random import Random

from tests.daemons import Daemon
from tests.torture_instances import Instances

MOST_INSTANCES = 2


class Captures(Instances):
    """At least one instance runs after each trouble; two may, of which one is the standby."""

    def __init__(self, start: Callable[[], Daemon], random: Random) -> None:
        super().__init__(start, random, at_first=2)

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

    def end(self) -> None:
        """Stop all of them as a supervisor does."""
        self._wake()
        for instance in list(self._running):
            self._terminate(instance)

    def kill(self) -> None:
        """End all of them as crashes would."""
        self._wake()
        self.assert_running()
        for instance in list(self._running):
            self._kill(instance)

    def _kill(self, instance: Daemon) -> None:
        instance.kill()
        self._running.remove(instance)

    def _leave(self, instance: Daemon) -> None:
        assert instance.is_running()
