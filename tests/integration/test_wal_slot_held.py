"""A slot that one session makes for a table is not dropped by another one that finds no table that needs it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest

from cdc.attachment import attach
from cdc.session import SESSION
from cdc.slots import drop_unused_slot, make_slot, make_slot_anew, slot_held, slot_state
from cdc.tables import SourceKind
from cdc.wire import TableName
from runtime.postgres import LockNotAvailable, connect
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.wal_steps import SLOTS
from tests.waiting import wait_until

# What becomes of a slot is none of the versions' business.
pytestmark = pytest.mark.newest_postgres

TWEETS = TableName("public", "tweets")
_WAITS = """
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""
_TRIED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE '%tidy'
AND (query LIKE '%advisory_lock%' OR query = 'ROLLBACK')
"""


@contextmanager
def _attaching(source: Source) -> Iterator[Callable[[], Future[bool]]]:
    """Give what begins to attach a table for the WAL, in a session of its own."""
    with ThreadPoolExecutor(1) as executor, closing(connect(source.url, name="attach", settings=SESSION)) as session:
        yield lambda: executor.submit(attach, session, CAPTURE, TWEETS, where="test", source=SourceKind.WAL)


@pytest.fixture
def tidying(source: Source) -> Iterator[psycopg.Connection]:
    """Give the session of a capture that tidies up."""
    with closing(connect(source.url, name="tidy", settings=SESSION)) as session:
        yield session


def test_a_slot_is_not_dropped_between_its_making_and_the_attaching_of_its_table(
    wal: Source, tidying: psycopg.Connection
) -> None:
    with wal.session() as writer, _attaching(wal) as attach_later:
        # As an open writer does, without a transaction id that the slot would wait for.
        writer.execute("LOCK TABLE tweets IN ROW EXCLUSIVE MODE")
        attaching = attach_later()
        wait_until(lambda: wal.value(f"SELECT count(*) {SLOTS} AND NOT temporary"), what="the slot")
        with pytest.raises(LockNotAvailable, match="another session makes or drops the replication slot"):
            drop_unused_slot(tidying, CAPTURE, where="test")
        writer.rollback()
        assert attaching.result(60)
    assert drop_unused_slot(tidying, CAPTURE, where="test")
    state = slot_state(wal.connection, CAPTURE)
    assert (state.exists, state.is_published) == (True, True)


def test_an_attach_waits_while_the_slot_is_being_dropped(wal: Source, tidying: psycopg.Connection) -> None:
    with _attaching(wal) as attach_later:
        with slot_held(tidying, CAPTURE, where="test"):
            make_slot(tidying, CAPTURE, where="test")
            attaching = attach_later()
            wait_until(lambda: wal.value(_WAITS) or attaching.done(), what="the attach to wait")
            assert not attaching.done()
            assert drop_unused_slot(tidying, CAPTURE, where="test")
        assert attaching.result(60)
    assert slot_state(wal.connection, CAPTURE).exists


def test_a_capture_goes_on_and_drops_the_slot_later_while_somebody_holds_it(
    wal: Source, daemon: Daemons, tidying: psycopg.Connection
) -> None:
    wal.attach("users")
    with slot_held(tidying, CAPTURE, where="test"):
        make_slot(tidying, CAPTURE, where="test")
        capture = daemon("cdc", "run")
        wait_until(lambda: wal.value(_TRIED), what="the capture to try")
        wal.wait_exact("users")
        assert slot_state(wal.connection, CAPTURE).exists
    wait_until(lambda: not slot_state(wal.connection, CAPTURE).exists, what="the end of the slot")
    assert len(capture.logged("leading")) == 1


def test_a_slot_that_no_table_needs_is_not_made_anew(wal: Source, tidying: psycopg.Connection) -> None:
    """Its last table may have been detached since it was missed."""
    make_slot_anew(tidying, CAPTURE, where="test")
    assert not slot_state(wal.connection, CAPTURE).exists
