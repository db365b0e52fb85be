"""Instances of one projector that are killed, paused and added at random, over a history that goes on meanwhile."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from random import Random
from typing import Any

from tests.accounts import KEYS, LARGE, Truth, on_the_wire
from tests.daemons import Daemon
from tests.integration.changelog import Changelog
from tests.torture_instances import Instances

FEWEST_INSTANCES, MOST_INSTANCES = 2, 4
START = datetime(2026, 11, 1, tzinfo=UTC)
HIGHEST_KEY = {"owners": 100, "items": 1000, "letters": 400}
TABLES = (*["owners"], *["items"] * 6, *["letters"] * 3)
STATES = (None, "lent", "lent", "lost", "here")


class Trouble(Enum):
    """What happens to an instance."""

    KILL = auto()
    PAUSE = auto()
    REBALANCE = auto()


class Projectors(Instances):
    """Two to four instances; a paused one sleeps until the next trouble, and the others have its partitions by then."""

    def __init__(self, start: Callable[[], Daemon], random: Random) -> None:
        super().__init__(start, random, at_first=FEWEST_INSTANCES + 1)

    def trouble(self, trouble: Trouble) -> None:
        """Wake who sleeps, and make trouble for another one."""
        self._wake()
        self.assert_running()
        victim = self._random.choice(self._running)
        if trouble is Trouble.KILL:
            victim.kill()
            self._running[self._running.index(victim)] = self._start()
        elif trouble is Trouble.PAUSE:
            self._pause(victim)
        elif len(self._running) == FEWEST_INSTANCES or (
            len(self._running) < MOST_INSTANCES and self._random.random() < 0.5
        ):
            self._running.append(self._start())
        else:
            self._terminate(victim)

    def end(self) -> None:
        """Stop all as a supervisor does."""
        self._wake()
        self.assert_running()
        for instance in list(self._running):
            self._terminate(instance)


class Publisher:
    """Publishes random changes of the accounts' tables in random transactions, and notes what is true."""

    def __init__(
        self, changelog: Changelog, truth: Truth, random: Random, *, highest: Mapping[str, int] = HIGHEST_KEY
    ) -> None:
        self._changelog = changelog
        self._highest = highest
        self._truth = truth
        self._random = random

    def publish(self, events: int) -> list[datetime]:
        """Publish so many changes, or a few more, and return the times of the watermarks among them."""
        until, times = self._truth.steps + events, list[datetime]()
        while self._truth.steps < until:
            changes = [self._change() for _ in range(self._random.randint(1, 60))]
            if self._random.random() < 0.1:
                with self._changelog.aborted():
                    for table, key, row in changes:
                        self._put(table, key, row)
                continue
            with self._changelog.transaction():
                for table, key, row in changes:
                    self._truth.note(table, key, row)
                    self._put(table, key, row)
                times.append(START + timedelta(milliseconds=self._truth.steps))
                self._truth.mark(times[-1])
                self._changelog.watermark(times[-1])
        return times

    def _change(self) -> tuple[str, int, dict[str, Any] | None]:
        random = self._random
        table = random.choice(TABLES)
        key = random.randint(1, self._highest[table])
        if random.random() < 0.2:
            return table, key, None
        amount = random.choice([None, Decimal(random.randint(-9_999, 9_999)) / 100, LARGE])
        row: dict[str, Any] = {KEYS[table]: key, "owner_id": self._owner()}
        if table == "owners":
            row = {"owner_id": key, "name": f"name {random.random()}"}
        elif table == "items":
            row |= {"holder_id": self._owner(), "state": random.choice(STATES), "price": amount}
            row["pieces"] = random.choice([None, 1, 3])
        else:
            row["stamp"] = amount
        return table, key, row

    def _owner(self) -> int | None:
        # A few have most.
        return self._random.choice([None, 1, 2, 3, self._random.randint(1, self._highest["owners"])])

    def _put(self, table: str, key: int, row: dict[str, Any] | None) -> None:
        if row is None:
            self._changelog.remove(table, key)
        else:
            self._changelog.put(table, on_the_wire(row))
