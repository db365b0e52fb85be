"""The capture from the WAL: its topics equal their tables, whatever is done to them and to it."""

import signal

import pytest

from cdc.attachment import detach
from cdc.wire import TableName
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.wal_steps import SLOTS, SMALL_PAGES, WAL, attach_wal, run_wal
from tests.torture_steps import Kind, Step
from tests.waiting import wait_until


def test_topic_equals_table_after_every_kind_of_statement(wal: Source, daemon: Daemons) -> None:
    wal.run(insert_tweets(1, 50))
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    for statement in (
        insert_tweets(51, 60),
        "UPDATE tweets SET text = 'x' WHERE tweet_id <= 5",
        "UPDATE tweets SET tweet_id = 100 WHERE tweet_id = 1",
        "DELETE FROM tweets WHERE tweet_id BETWEEN 10 AND 20",
        "INSERT INTO tweets VALUES (2), (200) ON CONFLICT (tweet_id) DO UPDATE SET text = 'upserted'",
        "BEGIN; SAVEPOINT s; INSERT INTO tweets VALUES (300); ROLLBACK TO s; INSERT INTO tweets VALUES (301); COMMIT",
        "BEGIN; INSERT INTO tweets VALUES (400); PREPARE TRANSACTION 'held'",
        "DELETE FROM tweets WHERE tweet_id = 30; COMMIT PREPARED 'held'",
        "SET session_replication_role = replica; INSERT INTO tweets VALUES (230); RESET session_replication_role",
        "TRUNCATE tweets; INSERT INTO tweets VALUES (3)",
    ):
        wal.run(*statement.split("; "))
        wal.wait_exact("tweets", "users")
    assert not capture.logged("retrying")
    assert capture.terminate() == 0


def test_killed_again_and_again_it_goes_on_where_it_was(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    for first in range(1, 2_000, 500):
        capture = run_wal(daemon, SMALL_PAGES)
        wal.run(insert_tweets(first, first + 499), f"UPDATE tweets SET text = 'x' WHERE tweet_id % 7 = {first % 7}")
        capture.wait_logged("leading")
        capture.kill()
        wal.run(
            f"DELETE FROM tweets WHERE tweet_id = {first}", f"UPDATE tweets SET text = 'y' WHERE tweet_id = {first + 1}"
        )
        wal.run("UPDATE cdc.capture SET leader = NULL")
    capture = run_wal(daemon, SMALL_PAGES)
    wal.wait_exact("tweets")
    assert not capture.logged("to_be_read_anew")


@pytest.mark.newest_postgres
@pytest.mark.parametrize("step", Step)
def test_killed_at_a_step_of_any_unit_it_goes_on_from_what_is_committed(
    step: Step, wal: Source, daemon: Daemons
) -> None:
    wal.run(
        "CREATE TABLE counted (id bigint PRIMARY KEY, version bigint NOT NULL)",
        "INSERT INTO counted SELECT i, 0 FROM generate_series(1, 500) i",
    )
    attach_wal(wal, "counted")
    changes = [
        (Kind.CHUNK, 3, "UPDATE counted SET version = 1 WHERE id % 50 = 0"),
        (Kind.ROUND, 1, "UPDATE counted SET version = 2 WHERE id % 50 = 1; DELETE FROM counted WHERE id % 50 = 2"),
        # Five pages of one transaction.
        (Kind.ROUND, 3, "UPDATE counted SET version = 3"),
        (Kind.SWEEP, 1, "BEGIN; TRUNCATE counted; INSERT INTO counted VALUES (1, 4), (1000, 4); COMMIT"),
    ]
    for kind, number, change in changes:
        words = (kind, str(number), step, signal.SIGKILL.name, "run")
        killed = daemon("tests.torture_steps", *words, settings={**WAL, **SMALL_PAGES})
        if kind is not Kind.CHUNK:
            wal.wait_published("counted")
        wal.run(*change.split("; "))
        assert killed.wait(30) == -signal.SIGKILL
        wal.run("UPDATE cdc.capture SET leader = NULL")
        capture = run_wal(daemon, SMALL_PAGES)
        wal.wait_exact("counted")
        assert capture.terminate() == 0


def test_detach_leaves_nothing_in_the_source(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    assert detach(wal.connection, CAPTURE, TableName.parse("tweets"), where="test")
    assert wal.value("SELECT count(*) FROM pg_publication_tables WHERE pubname = 'viewkeeper_viewkeeper'") == 1
    assert detach(wal.connection, CAPTURE, TableName.parse("users"), where="test")
    assert wal.value(f"SELECT count(*) {SLOTS}") == 0
    assert wal.value("SELECT count(*) FROM pg_publication") == 0
    attach_wal(wal, "follows")
    wal.run("INSERT INTO follows VALUES (1, 2, 3, now())")
    wal.wait_exact("follows")
    assert capture.is_running()


def test_the_server_is_patient_with_a_capture_that_is_busy(wal: Source, daemon: Daemons) -> None:
    """While a page is read nothing is said to it, which may take longer than its wal_sender_timeout."""
    wal.run(f"ALTER DATABASE {wal.value('SELECT current_database()')} SET wal_sender_timeout = '1s'")
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    sender = wal.value(f"SELECT active_pid {SLOTS}")
    replied = f"FROM pg_stat_replication WHERE pid = {sender} AND reply_time < clock_timestamp() - interval '3 s'"
    capture.signal(signal.SIGSTOP)
    wal.run(insert_tweets(1, 10))
    wait_until(lambda: wal.value(f"SELECT count(*) {replied}"), what="three seconds of silence")
    capture.signal(signal.SIGCONT)
    wal.wait_exact("tweets")
    assert not capture.logged("retrying")


def test_an_idle_slot_moves_on(wal: Source, daemon: Daemons) -> None:
    """What others write must not keep the WAL from being removed while the captured table stands still."""
    attach_wal(wal, "tweets")
    run_wal(daemon)
    wal.wait_exact("tweets")
    wal.run("CREATE TABLE other (id bigint)", "INSERT INTO other SELECT generate_series(1, 1000)")
    end = wal.value("SELECT pg_current_wal_lsn()::text")
    passed = f"SELECT count(*) {SLOTS} AND confirmed_flush_lsn >= '{end}'"
    wait_until(lambda: wal.value(passed), what="the slot's position")
