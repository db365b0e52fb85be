"""What becomes of a capture whose slot or publication is lost, moved or altered."""

import json
import signal
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from confluent_kafka import Producer

from cdc.slots import make_slot, slot_state
from compose.local.kafka import KafkaBroker
from compose.local.postgres import postgres as run_postgres
from runtime.postgres import connect
from tests.daemons import ROOT, Daemon, Daemons, standard_output
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.wal_steps import SLOTS, WAL, attach_wal, run_wal
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

ANEW = {"VIEWKEEPER_CDC_ON_LOST_SLOT": "snapshot"}
PUBLICATION = "viewkeeper_viewkeeper"


def _stopped(source: Source) -> None:
    wait_until(lambda: not source.value(f"SELECT count(*) {SLOTS} AND active"), what="the end of the stream")


def _after(source: Source, capture: Daemon, *tables: str) -> int:
    """Have a capture publish all, and stop it; returns its exit code."""
    source.wait_exact(*tables)
    code = capture.terminate()
    _stopped(source)
    return code


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        (f"SELECT pg_drop_replication_slot(slot_name) {SLOTS}", "is gone"),
        (f"DROP PUBLICATION {PUBLICATION}", f"publication {PUBLICATION} was dropped"),
    ],
    ids=["slot", "publication"],
)
def test_a_loss_stops_it_and_is_mended_by_reading_anew(wal: Source, daemon: Daemons, loss: str, complaint: str) -> None:
    wal.run(insert_tweets(1, 10))
    attach_wal(wal, "tweets")
    first = run_wal(daemon)
    wal.wait_exact("tweets")
    assert first.terminate() == 0
    _stopped(wal)
    wal.run(
        "DELETE FROM tweets WHERE tweet_id = 1", loss, "DELETE FROM tweets WHERE tweet_id = 2", insert_tweets(11, 20)
    )
    stopped = run_wal(daemon)
    assert stopped.wait() == 1
    last = stopped.log_text().splitlines()[-1]
    assert complaint in last
    assert "VIEWKEEPER_CDC_ON_LOST_SLOT=snapshot" in last
    capture = run_wal(daemon, ANEW)
    wal.wait_exact("tweets")
    wal.run(insert_tweets(21, 30))
    wal.wait_exact("tweets")
    assert capture.is_running()


def test_a_publication_that_is_dropped_under_it_is_made_anew(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon, ANEW)
    wal.wait_exact("tweets", "users")
    wal.run(f"DROP PUBLICATION {PUBLICATION}", insert_tweets(1, 10))
    wal.wait_exact("tweets", "users")
    wal.run(insert_tweets(11, 20))
    wal.wait_exact("tweets", "users")
    assert capture.logged("slot_made_anew")


def test_a_table_taken_out_of_the_publication_is_added_and_read_anew(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    wal.run(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE tweets", insert_tweets(1, 10))
    wal.wait_exact("tweets", "users")
    wal.run(insert_tweets(11, 20))
    wal.wait_exact("tweets", "users")
    assert len(capture.logged("snapshot_begins")) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')", "is in a publication that was altered"),
        (
            f"ALTER PUBLICATION {PUBLICATION} SET (publish_via_partition_root = true)",
            "is in a publication that was altered",
        ),
        (
            f"ALTER PUBLICATION {PUBLICATION} SET TABLE tweets WHERE (tweet_id > 5)",
            f"is in publication {PUBLICATION} with a row filter",
        ),
        ("ALTER TABLE tweets REPLICA IDENTITY NOTHING", "has replica identity NOTHING"),
    ],
)
def test_what_hides_changes_stops_it(wal: Source, daemon: Daemons, change: str, complaint: str) -> None:
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    wal.run(change)
    assert capture.wait() == 1
    assert f"public.tweets {complaint}" in capture.log_text().splitlines()[-1]


def test_a_partition_whose_identity_hides_its_key_stops_it(wal: Source, daemon: Daemons) -> None:
    wal.run(
        "CREATE TABLE split (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF split FOR VALUES FROM (0) TO (100)",
    )
    attach_wal(wal, "split")
    capture = run_wal(daemon)
    wal.wait_exact("split")
    wal.run("ALTER TABLE low REPLICA IDENTITY NOTHING")
    assert capture.wait() == 1
    complaint = (
        "public.split has replica identity NOTHING on its partition public.low, which does not cover its key (id)"
    )
    assert complaint in capture.log_text().splitlines()[-1]
    wal.run("INSERT INTO split VALUES (1, 'a')", "UPDATE split SET v = 'b'")


@pytest.mark.parametrize(
    ("alter", "undo", "complaint"),
    [
        ("REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT", "has replica identity NOTHING"),
        ("DROP CONSTRAINT tweets_pkey", "ADD PRIMARY KEY (tweet_id)", "its key (tweet_id) is unique no longer"),
    ],
)
def test_a_table_whose_writers_postgres_refuses_is_taken_out_before_the_capture_stops(
    wal: Source, daemon: Daemons, alter: str, undo: str, complaint: str
) -> None:
    wal.run(insert_tweets(1, 10))
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    wal.run(f"ALTER TABLE tweets {alter}")
    assert capture.wait() == 1
    assert complaint in capture.log_text().splitlines()[-1]
    assert wal.value("SELECT array_agg(prrelid::regclass::text) FROM pg_publication_rel") == ["users"]
    wal.run("UPDATE tweets SET text = 'x' WHERE tweet_id = 1", "DELETE FROM tweets WHERE tweet_id = 2")
    wal.run(f"ALTER TABLE tweets {undo}")
    run_wal(daemon)
    wal.wait_exact("tweets", "users")


def test_a_slot_that_was_moved_beyond_the_cursor_stops_it(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    assert capture.terminate() == 0
    _stopped(wal)
    wal.run(insert_tweets(1, 10), f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) {SLOTS}")
    stopped = run_wal(daemon)
    assert stopped.wait() == 1
    last = stopped.log_text().splitlines()[-1]
    assert "was moved beyond the cursor" in last
    assert "VIEWKEEPER_CDC_TABLES" not in last, "there is no other table that it could have followed"
    run_wal(daemon, {"VIEWKEEPER_CDC_ON_OTHER_HISTORY": "snapshot"})
    wal.wait_exact("tweets")


def test_a_table_that_was_left_out_for_a_while_is_told_from_a_slot_that_was_moved(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets", "users")
    assert _after(wal, run_wal(daemon), "tweets", "users") == 0
    one_of_them = run_wal(daemon, {"VIEWKEEPER_CDC_TABLES": "tweets"})
    wal.run("INSERT INTO users (user_id) VALUES (1)", insert_tweets(1, 10))
    end = wal.value("SELECT pg_current_wal_lsn()::text")
    passed = f"SELECT count(*) {SLOTS} AND confirmed_flush_lsn >= '{end}'"
    wait_until(lambda: wal.value(passed), what="the slot's position")
    assert _after(wal, one_of_them, "tweets") == 0
    stopped = run_wal(daemon)
    assert stopped.wait() == 1
    last = stopped.log_text().splitlines()[-1]
    assert "public.users: replication slot" in last
    assert "if VIEWKEEPER_CDC_TABLES left the table out for a while, run: viewkeeper-cdc snapshot for it" in last
    assert daemon("cdc", "snapshot", "users", settings=WAL).wait() == 0
    again = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    assert [line["table"] for line in again.logged("snapshot_begins")] == ["public.users"]


def test_an_invalidated_slot_is_noticed_and_made_anew(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_binaries: Path,
    kafka: KafkaBroker,
    topic_prefix: str,
    daemon: Daemons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server keeps no more WAL than it may: a capture that was down for long finds its slot lost."""
    with run_postgres(tmp_path_factory.mktemp("own-postgres"), binaries=postgres_binaries) as server:
        url = server.url()
        monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", url)
        for section in ("source", "demo"):
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
        here = {"VIEWKEEPER_SOURCE_URL": url}
        with connect(url, name="test", settings={"TimeZone": "UTC"}) as session:
            wal = Source(session, url, kafka, topic_prefix)
            wal.run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
            attach_wal(wal, "tweets")
            capture = run_wal(daemon, here)
            wal.wait_exact("tweets")
            assert capture.terminate() == 0
            _stopped(wal)
            wal.run(insert_tweets(1, 10))
            for _ in range(4):
                wal.run("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))", "SELECT pg_switch_wal()")
            wal.run("CHECKPOINT")
            assert wal.value(f"SELECT wal_status {SLOTS}") == "lost"
            status = daemon("cdc", "status", settings={**here, **WAL})
            assert status.wait() == 1
            assert "was invalidated" in " ".join(status.log_text().split())
            stopped = run_wal(daemon, here)
            assert stopped.wait() == 1
            assert "was invalidated" in stopped.log_text().splitlines()[-1]
            run_wal(daemon, {**here, **ANEW})
            wal.wait_exact("tweets")
            daemon.end_all()


def test_a_standby_takes_the_slot_from_a_leader_that_was_paused(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    paused = run_wal(daemon)
    wal.wait_exact("tweets")
    standby = run_wal(daemon)
    standby.wait_logged("standby")
    paused.signal(signal.SIGSTOP)
    wal.run(insert_tweets(1, 10))
    wal.wait_exact("tweets")
    assert standby.logged("slot_taken_over")
    paused.signal(signal.SIGCONT)
    paused.wait_logged("standby")
    wal.run(insert_tweets(11, 20))
    wal.wait_exact("tweets")
    assert standby.is_running()


def test_another_source_than_the_tables_is_refused(wal: Source, daemon: Daemons) -> None:
    wal.attach("tweets")
    refused = run_wal(daemon)
    assert refused.wait() == 2
    assert "public.tweets is attached for the source triggers" in refused.log_text()
    wal.run("SELECT cdc.detach('viewkeeper', 'public', 'tweets')")
    attach_wal(wal, "tweets")
    refused = daemon("cdc", "run")
    assert refused.wait() == 2
    assert "set VIEWKEEPER_CDC_SOURCE=wal" in refused.log_text()


def test_status_shows_the_slot_and_no_change_log(wal: Source, daemon: Daemons, settings_env: dict[str, str]) -> None:
    attach_wal(wal, "tweets")
    run_wal(daemon)
    wal.wait_exact("tweets")
    shown = daemon("cdc", "status", settings=WAL)
    assert shown.wait() == 0
    assert f"{slot_state(wal.connection, CAPTURE).slot}, reserved, holds" in " ".join(shown.log_text().split())
    # The WAL is the table's log: it has none of its own.
    assert "full" not in shown.log_text()
    (table,) = json.loads(standard_output({**settings_env, **WAL}, "cdc", "status", "--json"))["tables"]
    assert (table["change_log"], table["level"], table["mode"]) == (None, None, None)


def test_a_slot_that_was_left_by_an_attach_that_was_killed_is_named(wal: Source, daemon: Daemons) -> None:
    """The server would keep its WAL for it until the disk is full."""
    make_slot(wal.connection, CAPTURE, where="test")
    shown = daemon("cdc", "status", settings=WAL)
    assert shown.wait() == 1
    slot = slot_state(wal.connection, CAPTURE).slot
    assert f"replication slot {slot} is of no table" in " ".join(shown.log_text().split())


def test_reconcile_has_ghosts_and_missing_rows_of_its_topic_published(wal: Source, daemon: Daemons) -> None:
    """Keys that differ go through the WAL to the capture that runs."""
    wal.run(
        "CREATE TABLE odd (id bytea PRIMARY KEY, at timestamptz)", "INSERT INTO odd VALUES ('a', now()), ('b', now())"
    )
    attach_wal(wal, "tweets", "odd")
    wal.run(insert_tweets(1, 10))
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "odd")
    producer = Producer({"bootstrap.servers": wal.bootstrap_servers, "partitioner": "murmur2_random"})
    producer.produce(wal.topic_name("tweets"), None, b'{"tweet_id":1}')
    producer.produce(wal.topic_name("tweets"), b"{}", b'{"tweet_id":99}')
    producer.produce(wal.topic_name("odd"), None, b'{"id":"YQ=="}')
    assert not producer.flush(30)
    done = daemon("cdc", "reconcile", settings=WAL)
    assert done.wait(60) == 0, done.log_text()
    wal.wait_exact("tweets", "odd")
    assert capture.is_running()
