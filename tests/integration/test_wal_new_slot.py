"""A slot that is made while transactions are open: the server's first snapshot for it lacks what they commit."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest

from cdc.slots import make_slot, slot_state
from runtime.errors import ConfigurationError
from runtime.postgres import connect
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.wal_steps import SLOTS, attach_wal, run_wal
from tests.waiting import wait_until

CREATED = "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)"
ATTACHED = "ALTER TABLE parted ATTACH PARTITION filled FOR VALUES IN (1)"
_WAITS_FOR = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE a.datname = current_database() AND l.locktype = 'transactionid' AND NOT l.granted AND l.transactionid::text = %s
"""


@contextmanager
def _open(source: Source) -> Iterator[tuple[psycopg.Connection, str]]:
    """Give a session in a transaction that writes, and its id."""
    with source.session() as session:
        row = session.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        yield session, row[0]


def _waits(source: Source, xid: str, making: Future[object]) -> bool:
    """Return whether the new slot waits for a transaction to end, or is made without."""
    wait_until(lambda: making.done() or source.value(_WAITS_FOR, xid), what=f"the new slot to wait for {xid}")
    return not making.done()


@contextmanager
def _beside(source: Source, partition: str, make: Callable[[psycopg.Connection], object]) -> Iterator[None]:
    """Have parted's new partition filled by a transaction that stays open, if the slot does not wait for it."""
    source.run(
        "CREATE TABLE parted (region integer, id bigint, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
        "CREATE TABLE filled (LIKE parted INCLUDING ALL)",
    )
    attach_wal(source, "parted")
    source.run(f"SELECT pg_drop_replication_slot(slot_name) {SLOTS}")
    with (
        _open(source) as (first, first_id),
        source.session() as filling,
        ThreadPoolExecutor(1) as executor,
        closing(connect(source.url, name="test")) as session,
    ):
        making = executor.submit(make, session)
        assert _waits(source, first_id, making)
        with _open(source) as (second, second_id):
            source.run(partition)
            first.commit()
            assert _waits(source, second_id, making)
            filling.execute("INSERT INTO parted SELECT 1, i FROM generate_series(1, 10) i")
            row = filling.execute("SELECT pg_current_xact_id()::text").fetchone()
            second.commit()
        assert row is not None
        if _waits(source, row[0], making):
            filling.commit()
        making.result(30)
        yield
        filling.commit()


@pytest.mark.parametrize("partition", [CREATED, ATTACHED], ids=["created", "attached"])
def test_a_partition_that_came_while_the_slot_was_made_is_captured(
    wal: Source, daemon: Daemons, partition: str
) -> None:
    """Without a second look at the running transactions the server stops at the first, and passes over the second."""
    with _beside(wal, partition, lambda session: make_slot(session, CAPTURE, where="test")):
        capture = run_wal(daemon)
        capture.wait_logged("snapshot_complete")
    wal.wait_exact("parted")
    assert capture.is_running()


def test_a_slot_that_the_server_cannot_read_stops_it_and_is_made_anew(wal: Source, daemon: Daemons) -> None:
    name = slot_state(wal.connection, CAPTURE).slot
    create = f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    with _beside(wal, CREATED, lambda session: session.execute(create.encode())):
        pass
    stopped = run_wal(daemon)
    assert stopped.wait() == 1
    last = stopped.log_text().splitlines()[-1]
    assert "could not map filenumber" in last or "could not map filenode" in last
    assert "VIEWKEEPER_CDC_ON_LOST_SLOT=snapshot" in last
    run_wal(daemon, {"VIEWKEEPER_CDC_ON_LOST_SLOT": "snapshot"})
    wal.wait_exact("parted")


def test_only_the_capture_s_own_slot_is_left(wal: Source) -> None:
    make_slot(wal.connection, CAPTURE, where="test")
    assert wal.value(f"SELECT array_agg((slot_name LIKE 'viewkeeper_viewkeeper_%', temporary)::text) {SLOTS}") == [
        "(t,f)"
    ]


def test_a_transaction_that_stays_open_is_named_and_no_slot_is_left(
    wal: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.slots.OPEN_TRANSACTIONS_SECONDS", 1)
    with _open(wal), pytest.raises(ConfigurationError, match="one has not for 1 s: see pg_stat_activity"):
        make_slot(wal.connection, CAPTURE, where="test")
    assert wal.value(f"SELECT count(*) {SLOTS}") == 0
