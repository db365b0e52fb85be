"""Tables that are polled beside writers that do everything at once: what is lost is what is documented, and no more."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cdc.tables import SourceKind
from tests.daemons import Daemons
from tests.integration.polled_source import TIMESTAMP, PolledSource
from tests.torture import Torture
from tests.torture_captures import Captures
from tests.torture_loose import write_and_trouble
from tests.torture_polled import POLLED, Place, PolledWriter, differing, fill_polled, lost, may_be_found, topics
from tests.torture_source import CATCH_UP_SECONDS, CapturedSource
from tests.torture_transactions import KEYS
from tests.torture_truth import Truth, read_along
from tests.waiting import wait_until

# Slow, and none of the versions' business.
pytestmark = pytest.mark.newest_postgres

TROUBLES = 2
LOSING = ("plain", "worded", "late")
NAMES = [f"public.{table}" for table in KEYS]
SETTINGS = {
    # A COPY is more than a page, a table several chunks.
    "VIEWKEEPER_CDC_CHUNK_ROWS": "300",
    # What commits late by intent is an hour late, and all else by what a transaction takes.
    "VIEWKEEPER_CDC_LOOK_BACK_SECONDS": "30",
    "VIEWKEEPER_CDC_SWEEP_SECONDS": "0",
    "VIEWKEEPER_CDC_BULK_SECONDS": "2",
}
# At once, since the tables were read first longer ago than that, and then rarely: watermarks stand still meanwhile.
SWEEPING = {"VIEWKEEPER_CDC_SWEEP_SECONDS": "15", "VIEWKEEPER_CDC_BULK_SECONDS": "3600"}
TICK_SECONDS = 0.05


@pytest.fixture
def reader(polled: PolledSource) -> Iterator[dict[str, str]]:
    """Give the settings of a role that may read the tables and nothing else."""
    role = f"reader_{polled.prefix}"
    polled.run(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'", f"GRANT pg_read_all_data TO {role}")
    yield {"VIEWKEEPER_SOURCE_URL": polled.url_of(role, "secret")}
    polled.run(f"DROP ROLE {role}")


@pytest.mark.torture
def test_topics_differ_by_the_documented_losses_which_sweep_and_reconcile_mend(
    polled: PolledSource, daemon: Daemons, torture: Torture, reader: dict[str, str]
) -> None:
    source = CapturedSource(polled.url, polled.bootstrap_servers, polled.prefix, SourceKind.TIMESTAMP)
    settings = {**SETTINGS, **reader, **polled.tables(items=TIMESTAMP, **POLLED)}
    notes = fill_polled(polled.url)
    captures = Captures(lambda: daemon("cdc", "run", settings=settings), torture.random)
    source.wait_published(NAMES)
    written = write_and_trouble(source, captures, torture, PolledWriter, troubles=TROUBLES)
    captures.settle()
    changes = lost(written)
    gone = {place for place, change in changes.items() if not change.alive}
    seen_by_chance = set(filter(may_be_found, gone))
    # It was no test if little was lost, or little for certain.
    certain = Counter(table for table, _ in gone - seen_by_chance)
    assert certain.total() > 50
    assert all(certain[table] > 10 for table in LOSING)
    assert len(changes) - len(gone) > 50
    source.wait_published(NAMES)
    _assert_comes_to(source, changes.keys(), seen_by_chance=seen_by_chance)
    _assert_certain_watermarks_are_true(source, Truth([*notes, *written]))
    captures.end()
    # The next session looks back as well, and finds none of them.
    daemon("cdc", "run", settings={**settings, **SWEEPING})
    _assert_comes_to(source, changes.keys() - gone)
    with _ticking(polled):
        repaired = daemon("cdc", "reconcile", *LOSING, settings=settings)
        assert repaired.wait(CATCH_UP_SECONDS) == 0, repaired.log_text()
    assert differing(source) == set()


def _assert_comes_to(source: CapturedSource, expected: Set[Place], *, seen_by_chance: Set[Place] = frozenset()) -> None:
    """Wait until the topics differ from their tables by these keys, for long if need be, and see that they do.

    Deletes of rows that a poll had found, and read when they were gone again, are seen by chance.
    """
    until = time.monotonic() + CATCH_UP_SECONDS
    found: Set[Place] = set()

    def is_expected() -> bool:
        return found <= expected and expected - found <= seen_by_chance

    def is_over() -> bool:
        nonlocal found
        found = differing(source)
        return is_expected() or time.monotonic() > until

    wait_until(is_over, timeout_seconds=2 * CATCH_UP_SECONDS, what="what is lost")
    assert is_expected(), (found - expected, expected - found)


def _assert_certain_watermarks_are_true(source: CapturedSource, truth: Truth) -> None:
    named = {f"public.{relation}": changelog for relation, changelog in topics(source).items()}
    readers = read_along(source.cursors(), named, truth, certain_only=True)
    assert [wrong for one in readers.values() for wrong in one.wrong] == []
    # Those of other tables are certain once, and the cursor's topic is compacted.
    assert readers["public.parted"].watermarks > 5


@contextmanager
def _ticking(polled: PolledSource) -> Iterator[None]:
    """Change a row of another table all the time, so that all watermarks move with each poll."""
    over = threading.Event()

    def tick() -> None:
        with polled.session() as session:
            while not over.wait(TICK_SECONDS):
                session.execute("UPDATE items SET updated_at = now() WHERE id = 1")
                session.commit()

    with ThreadPoolExecutor(1) as executor:
        ticking = executor.submit(tick)
        try:
            yield
        finally:
            over.set()
        ticking.result()
