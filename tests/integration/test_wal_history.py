"""C7 from the WAL: a primary that was promoted or restored has other WAL, and mostly no slot."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from cdc.lsn import lsn_number
from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from runtime.postgres import connect
from tests.daemons import ROOT, Daemon, Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.wal_steps import SLOTS, attach_wal, run_wal
from tests.standby import back_up, wait_replayed
from tests.waiting import wait_until

MADE_ANEW = {"VIEWKEEPER_CDC_ON_LOST_SLOT": "snapshot"}
READ_ANEW = {"VIEWKEEPER_CDC_ON_OTHER_HISTORY": "snapshot"}
TABLES = ("tweets", "users")
# Three files of WAL, 16 MB each, of nothing that is captured.
LONG_WAL = ("SELECT pg_logical_emit_message(true, 'other', 'x')", "SELECT pg_switch_wal()") * 3
SLOT_BY_HAND = f"SELECT pg_create_logical_replication_slot(cdc.slot_name('{CAPTURE}'), 'pgoutput')"

Running = Callable[[Path], AbstractContextManager[tuple[PostgresServer, Source]]]


@pytest.fixture
def running(postgres_binaries: Path, kafka: KafkaBroker, topic_prefix: str) -> Running:
    """Give what runs a server in a folder, and offers its database as a source."""

    @contextmanager
    def run(folder: Path) -> Iterator[tuple[PostgresServer, Source]]:
        with (
            run_postgres(folder, binaries=postgres_binaries) as server,
            connect(server.url(), name="test", settings={"TimeZone": "UTC"}) as session,
        ):
            yield server, Source(session, server.url(), kafka, topic_prefix)

    return run


@pytest.fixture
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")


def _begin(source: Source, daemon: Daemons, settings: dict[str, str] | None = None) -> Daemon:
    return run_wal(daemon, {"VIEWKEEPER_SOURCE_URL": source.url, **(settings or {})})


def _captured(source: Source, daemon: Daemons) -> Daemon:
    """Have the demo's tables captured, with rows in one of them."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VIEWKEEPER_SOURCE_URL", source.url)
        for section in ("source", "demo"):
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
    source.run(insert_tweets(1, 20))
    attach_wal(source, *TABLES)
    capture = _begin(source, daemon)
    source.wait_exact(*TABLES)
    return capture


def _end(source: Source, capture: Daemon) -> None:
    assert capture.terminate() == 0
    wait_until(lambda: not source.value(f"SELECT count(*) {SLOTS} AND active"), what="the end of the stream")


def _publish_more_than_backed_up(
    running: Running, folders: tuple[Path, Path], postgres_binaries: Path, daemon: Daemons
) -> None:
    """Publish what the second folder, a standby's, does not have; its primary is gone afterwards."""
    with running(folders[0]) as (primary, source):
        capture = _captured(source, daemon)
        back_up(postgres_binaries, primary, folders[1])
        source.run(*LONG_WAL, "UPDATE tweets SET text = 'lost' WHERE tweet_id = 1")
        source.wait_exact(*TABLES)
        _end(source, capture)


def _assert_refused(source: Source, daemon: Daemons, *complaints: str) -> None:
    records = len(source.topic("tweets").records)
    refused = _begin(source, daemon)
    assert refused.wait(60) == 1
    last = refused.log_text().splitlines()[-1]
    assert all(complaint in last for complaint in complaints), last
    assert len(source.topic("tweets").records) == records


def _assert_goes_on(source: Source, daemon: Daemons, capture: Daemon) -> None:
    """Nothing is lost, neither while the capture runs nor over its next start."""
    source.wait_exact(*TABLES)
    source.run("UPDATE tweets SET text = 'live' WHERE tweet_id = 11", "DELETE FROM tweets WHERE tweet_id = 12")
    source.wait_exact(*TABLES)
    _end(source, capture)
    source.run("UPDATE tweets SET text = 'unread' WHERE tweet_id = 13", "DELETE FROM tweets WHERE tweet_id = 14")
    again = _begin(source, daemon)
    source.wait_exact(*TABLES)
    assert not again.logged("to_be_read_anew")
    _end(source, again)


@pytest.mark.newest_postgres
def test_a_promoted_standby_has_no_slot_and_is_refused_or_read_anew(
    running: Running, folders: tuple[Path, Path], postgres_binaries: Path, daemon: Daemons
) -> None:
    with running(folders[0]) as (primary, source):
        capture = _captured(source, daemon)
        back_up(postgres_binaries, primary, folders[1])
        with running(folders[1]) as (_, promoted):
            source.run("UPDATE tweets SET text = 'second' WHERE tweet_id = 1", "DELETE FROM tweets WHERE tweet_id = 2")
            source.wait_exact(*TABLES)
            _end(source, capture)
            source.run("DELETE FROM tweets WHERE tweet_id = 3")
            wait_replayed(source.url, promoted.url)
            promoted.run("SELECT pg_promote()", "DELETE FROM tweets WHERE tweet_id = 4")
            _assert_refused(promoted, daemon, "is gone", "VIEWKEEPER_CDC_ON_LOST_SLOT=snapshot")
            again = _begin(promoted, daemon, MADE_ANEW)
            _assert_goes_on(promoted, daemon, again)
            assert len(again.logged("slot_made_anew")) == 1


@pytest.mark.newest_postgres
def test_a_promoted_standby_that_lost_what_was_published_is_known_by_its_mark_though_it_has_a_slot(
    running: Running, folders: tuple[Path, Path], postgres_binaries: Path, daemon: Daemons
) -> None:
    """Its WAL has not come to where the cursor is: what it writes until then is not published yet."""
    _publish_more_than_backed_up(running, folders, postgres_binaries, daemon)
    with running(folders[1]) as (_, late):
        late.run("SELECT pg_promote()", SLOT_BY_HAND, "UPDATE tweets SET text = 'other' WHERE tweet_id = 2")
        _assert_is_behind_the_cursor(late)
        _assert_refused(late, daemon, "another history")
        _assert_goes_on(late, daemon, _begin(late, daemon, READ_ANEW))


@pytest.mark.newest_postgres
def test_a_promoted_standby_that_lost_what_was_published_is_read_anew_with_a_new_slot(
    running: Running, folders: tuple[Path, Path], postgres_binaries: Path, daemon: Daemons
) -> None:
    _publish_more_than_backed_up(running, folders, postgres_binaries, daemon)
    with running(folders[1]) as (_, late):
        late.run("SELECT pg_promote()", "UPDATE tweets SET text = 'other' WHERE tweet_id = 2")
        _assert_is_behind_the_cursor(late)
        _assert_goes_on(late, daemon, _begin(late, daemon, MADE_ANEW))


@pytest.mark.newest_postgres
def test_a_source_set_back_to_a_copy_of_its_disk_is_known_though_nothing_was_published_since(
    running: Running, folders: tuple[Path, Path], daemon: Daemons
) -> None:
    """The slot is in the copy, and no table has changed: the cursor has moved by what others wrote."""
    with running(folders[0]) as (_, source):
        _end(source, _captured(source, daemon))
    subprocess.run(["cp", "-a", f"{folders[0]}/.", str(folders[1])], check=True)
    with running(folders[0]) as (_, source):
        capture = _begin(source, daemon)
        source.run(*LONG_WAL)
        end = lsn_number(str(source.value("SELECT pg_current_wal_lsn()::text")))
        wait_until(lambda: _position(source) >= end, what="the cursor to move")
        _end(source, capture)
    with running(folders[1]) as (_, restored):
        restored.run("UPDATE tweets SET text = 'other' WHERE tweet_id = 2", "DELETE FROM tweets WHERE tweet_id = 3")
        _assert_is_behind_the_cursor(restored)
        _assert_refused(restored, daemon, "another history")
        _assert_goes_on(restored, daemon, _begin(restored, daemon, READ_ANEW))


def _position(source: Source) -> int:
    entry = source.entry("tweets")
    return lsn_number(entry.position) if entry and entry.position else 0


def _assert_is_behind_the_cursor(source: Source) -> None:
    assert lsn_number(str(source.value("SELECT pg_current_wal_lsn()::text"))) < _position(source)


@pytest.mark.newest_postgres
def test_a_promoted_standby_with_the_synchronized_slot_goes_on(
    running: Running, folders: tuple[Path, Path], postgres_binaries: Path, daemon: Daemons
) -> None:
    """Postgres 17 and later keep slots on a standby, where both are asked to."""
    with running(folders[0]) as (primary, source):
        _end(source, _captured(source, daemon))
        source.run("SELECT pg_create_physical_replication_slot('standby')")
        _have_it_synchronized(source)
        back_up(postgres_binaries, primary, folders[1])
        with running(folders[1]) as (_, promoted):
            promoted.run(
                "ALTER SYSTEM SET primary_slot_name = 'standby'",
                "ALTER SYSTEM SET hot_standby_feedback = on",
                "ALTER SYSTEM SET sync_replication_slots = on",
                "SELECT pg_reload_conf()",
            )
            capture = _begin(source, daemon)
            wait_until(lambda: _is_synchronized(source, promoted), what="the slot on the standby", timeout_seconds=90)
            source.run("UPDATE tweets SET text = 'second' WHERE tweet_id = 1")
            source.wait_exact(*TABLES)
            _end(source, capture)
            source.run("DELETE FROM tweets WHERE tweet_id = 3")
            wait_replayed(source.url, promoted.url)
            promoted.run("SELECT pg_promote()", "DELETE FROM tweets WHERE tweet_id = 4")
            again = _begin(promoted, daemon)
            _assert_goes_on(promoted, daemon, again)
            assert not again.logged("snapshot_begins")


def _have_it_synchronized(source: Source) -> None:
    with psycopg.connect(source.url, replication="database", autocommit=True) as session:
        slot = source.value(f"SELECT slot_name {SLOTS}")
        session.pgconn.exec_(f'ALTER_REPLICATION_SLOT "{slot}" (FAILOVER true)'.encode())
    assert source.value(f"SELECT failover {SLOTS}")


def _is_synchronized(primary: Source, standby: Source) -> bool:
    """Return whether the standby would keep the slot if it were promoted now; the primary's is moved on for that."""
    primary.run("SELECT pg_log_standby_snapshot()", "UPDATE users SET name = name")
    return bool(standby.value(f"SELECT count(*) {SLOTS} AND synced AND NOT temporary"))
