"""A realistic workload on the demo's tables: `python -m compose.demo.workload --rate 200`.

A process of its own, so that its Python does not disturb what is measured. It prints one JSON line a second and stops
on SIGTERM or SIGINT after the transactions in hand.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random

import click
import msgspec
import psycopg
from psycopg import errors as pg

from compose.demo.actions import World, draw_actions, read_world
from runtime.cli import run_command, settings_epilog
from runtime.postgres import connect, translated
from runtime.settings import SourceSettings, read_settings
from runtime.stop import Stop, stop_on_signals

SINGLE_SHARE = 0.7
"""Transactions of a single change."""
LARGEST_TRANSACTION = 6
ROLLED_BACK_SHARE = 0.08
SAVEPOINT_SHARE = 0.08
"""Transactions of several changes that are rolled back, or have a savepoint that is."""
REPORT_SECONDS = 1.0


class WorkloadReport(msgspec.Struct, frozen=True):
    """One line of the workload's output: totals since its start.

    `changes` are committed row changes; `behind_seconds` is how late the latest transaction of any connection was
    against its plan: far above 0, the source cannot take the rate.
    """

    seconds: float
    changes: int
    transactions: int
    rolled_back: int
    behind_seconds: float


@dataclass(slots=True)
class Tally:
    """What one connection has done so far. Written by its thread alone."""

    changes: int = 0
    transactions: int = 0
    rolled_back: int = 0
    behind_seconds: float = 0.0


@dataclass(slots=True)
class Writer:
    """One connection that keeps `rate` changes a second going, at planned times, whatever each one takes."""

    connection: psycopg.Connection
    world: World
    random: Random
    rate: float
    tally: Tally = field(default_factory=Tally)

    def run(self, stop: Stop) -> None:
        """Write until told to stop."""
        # Connections begin out of step.
        planned_at = time.monotonic() + self.random.random() / self.rate
        while not stop.requested:
            ahead_seconds = planned_at - time.monotonic()
            self.tally.behind_seconds = max(0.0, -ahead_seconds)
            if ahead_seconds > 0 and stop.wait(ahead_seconds):
                return
            planned_at += self._transact() / self.rate

    def _transact(self) -> int:
        """Run one transaction, or an action by itself, and return how many rows it has changed for good."""
        if self.random.random() < SINGLE_SHARE:
            changes, committed = self._act(1), True
        else:
            changes, committed = self._transact_several(self.random.randint(2, LARGEST_TRANSACTION))
        self.tally.changes += changes
        self.tally.transactions += committed
        self.tally.rolled_back += not committed
        return changes

    def _transact_several(self, number: int) -> tuple[int, bool]:
        # Connections that edit the same rows in another order can meet in a deadlock, as in any service.
        with suppress(pg.DeadlockDetected), self.connection.transaction():
            changes = self._act(number)
            if self.random.random() < SAVEPOINT_SHARE:
                with self.connection.transaction():
                    self._act(2)
                    raise psycopg.Rollback
            if self.random.random() < ROLLED_BACK_SHARE:
                raise psycopg.Rollback
            return changes, True
        return 0, False

    def _act(self, number: int) -> int:
        actions = draw_actions(self.random, number)
        return sum(action(self.connection, self.world, self.random) for action in actions)


def run_workload(url: str, *, rate: float, connections: int, seed: int, stop: Stop) -> None:
    """Write `rate` changes a second over several connections and print a report each second until stopped.

    Raises the first writer's error, after all of them have ended.
    """
    with ExitStack() as opened:
        with connect(url, name="viewkeeper-demo-workload") as connection, translated("workload"):
            world = read_world(connection)
        writers = [
            Writer(
                connection=opened.enter_context(connect(url, name=f"viewkeeper-demo-workload-{number}")),
                world=world,
                random=Random(f"{seed}-{number}"),  # noqa: S311 - a workload, no secret
                rate=rate / connections,
            )
            for number in range(connections)
        ]
        threads = opened.enter_context(ThreadPoolExecutor(connections))
        running = [threads.submit(_write, writer, stop) for writer in writers]
        try:
            _report_until_stopped([writer.tally for writer in writers], stop)
        finally:
            stop.request()
        for writing in running:
            writing.result()


def _write(writer: Writer, stop: Stop) -> None:
    try:
        with translated("workload"):
            writer.run(stop)
    finally:
        # A writer that ends early would quietly lower the rate: all end with it.
        stop.request()


def _report_until_stopped(tallies: list[Tally], stop: Stop) -> None:
    began_at = time.monotonic()
    stopped = False
    while not stopped:
        stopped = stop.wait(REPORT_SECONDS)
        report = WorkloadReport(
            seconds=round(time.monotonic() - began_at, 3),
            changes=sum(tally.changes for tally in tallies),
            transactions=sum(tally.transactions for tally in tallies),
            rolled_back=sum(tally.rolled_back for tally in tallies),
            behind_seconds=round(max(tally.behind_seconds for tally in tallies), 3),
        )
        click.echo(msgspec.json.encode(report))


@click.command(epilog=settings_epilog(SourceSettings))
@click.option("--rate", default=200.0, show_default=True, type=click.FloatRange(0.1, 100_000), help="Changes a second.")
@click.option("--connections", default=4, show_default=True, type=click.IntRange(1, 64), help="Writers at once.")
@click.option("--seed", default=1, show_default=True, help="What is drawn by chance, though not when it is done.")
def main(rate: float, connections: int, seed: int) -> None:
    """Keep the demo's tables changing until SIGTERM or SIGINT."""
    settings = read_settings(SourceSettings)
    with stop_on_signals() as stop:
        run_workload(settings.source_url, rate=rate, connections=connections, seed=seed, stop=stop)


if __name__ == "__main__":
    run_command(main)
