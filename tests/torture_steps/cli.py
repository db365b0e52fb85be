"""`viewkeeper-cdc`, which sends itself a signal at one step of one unit: `cli KIND NUMBER STEP SIGNAL [WORDS] run`.

The unit is the NUMBERth of its KIND. All parts are the real ones, on real servers; each is wrapped so as to say where
it is. A `heedless` one does not notice that its lease is lost, so that Kafka alone can hold it back. The broker ends
the transaction of a `brief` one soon.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Producer

import cdc.cli
import cdc.daemon
import cdc.sources
import runtime.kafka
from cdc.capture import Capture
from cdc.change import Op, Page, Unit
from cdc.lease import LeadershipLost, RowLease
from cdc.publisher import Publisher
from tests.torture_steps import Kind, Step

BRIEF_SECONDS = 2


@dataclass
class Hit:
    """The step that is waited for."""

    kind: Kind
    number: int
    step: Step
    signal: signal.Signals
    heedless: bool
    is_due: bool = False

    def begin(self, unit: Unit) -> None:
        """Note which unit is on its way."""
        if self.kind in (kind_of(unit), Kind.ANY):
            self.number -= 1
            self.is_due = self.number == 0

    def reach(self, step: Step) -> None:
        """Send the signal, if this is the step."""
        if self.is_due and step is self.step:
            self.is_due = False
            os.kill(os.getpid(), self.signal)


def kind_of(unit: Unit) -> Kind | None:
    """Return what a unit is; None for one that moves the time only."""
    if not unit.pages:
        return None
    if unit.tokens:
        return Kind.ROUND
    return {Op.READ: Kind.CHUNK, Op.UPSERT: Kind.DRAIN, Op.DELETE: Kind.SWEEP}[unit.pages[0].op]


def install(hit: Hit, replace: Callable[[object, str, object], None]) -> None:
    """Put the wrapped parts in the places of the real ones."""

    class HitProducer(Producer):
        def commit_transaction(self, *arguments: Any) -> None:
            hit.reach(Step.DELIVERED)
            super().commit_transaction(*arguments)
            hit.reach(Step.COMMITTED)

    class HitPublisher(Publisher):
        def publish(self, page: Page) -> None:
            super().publish(page)
            # What was produced is in the broker's log, in an open transaction.
            self._deliver(lambda: None)
            hit.reach(Step.PRODUCED)

    class HitLease(RowLease):
        def flush(self, *, published: str) -> str:
            token = super().flush(published=published)
            hit.reach(Step.FLUSHED)
            return token

        def _update(self, statement: str, values: dict[str, str]) -> None:
            with suppress(*([LeadershipLost] if hit.heedless else [])):
                super()._update(statement, values)

    class HitCapture(Capture):
        def save(self, unit: Unit) -> None:
            hit.begin(unit)
            hit.reach(Step.READ)
            super().save(unit)

    replace(runtime.kafka, "Producer", HitProducer)
    replace(cdc.daemon, "Publisher", HitPublisher)
    replace(cdc.daemon, "Capture", HitCapture)
    replace(cdc.sources, "RowLease", HitLease)


def main() -> None:
    """Run the capture, wrapped as the first arguments say."""
    kind, number, step, signal_name = sys.argv[1:5]
    words = sys.argv[5 : sys.argv.index("run")]
    sys.argv[1 : 5 + len(words)] = []
    hit = Hit(Kind(kind), int(number), Step(step), signal.Signals[signal_name], heedless="heedless" in words)
    with pytest.MonkeyPatch.context() as patch:
        install(hit, patch.setattr)
        if "brief" in words:
            patch.setattr(runtime.kafka, "TRANSACTION_TIMEOUT_SECONDS", BRIEF_SECONDS)
        cdc.cli.main()


if __name__ == "__main__":
    main()
