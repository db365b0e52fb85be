"""Tables that move between triggers and WAL: nothing is read anew, nothing is lost, and what is left is tidied up."""

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from cdc.attachment import attach, detach
from cdc.cursor import Cursor, TableCursor
from cdc.housekeeping import Housekeeping
from cdc.session import SESSION
from cdc.tables import SourceKind, captured_tables, source_of
from cdc.wire import TableName
from compose.local.kafka import KafkaBroker
from compose.local.postgres import postgres as run_postgres
from compose.local.unprivileged import needed_unprivileged
from runtime.errors import ConfigurationError
from runtime.postgres import connect
from tests.daemons import ROOT, Daemon, Daemons, standard_output
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.logged import other_role
from tests.integration.polled_source import TIMESTAMP, PolledSource
from tests.integration.wal_steps import SLOTS
from tests.torture_steps import Kind, Step
from tests.waiting import wait_until

# What a move does is none of the versions' business, and it takes long.
pytestmark = pytest.mark.newest_postgres

TABLES = ("tweets", "users")
BOTH_WAYS = pytest.mark.parametrize(
    ("left", "on"),
    [(SourceKind.TRIGGERS, SourceKind.WAL), (SourceKind.WAL, SourceKind.TRIGGERS)],
    ids=["to-wal", "to-triggers"],
)
LARGE_XID = 2**31
OURS = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'viewkeeper%'"
PUBLISHED = "SELECT count(*) FROM pg_publication_rel"


def _attach(source: Source, kind: SourceKind, tables: Sequence[str] = TABLES) -> None:
    for table in tables:
        assert attach(source.connection, CAPTURE, TableName.parse(table), where="test", source=kind)


def _run(daemon: Daemons, kind: SourceKind, **settings: str) -> Daemon:
    # Small pages make the handover one of several.
    return daemon("cdc", "run", settings={"VIEWKEEPER_CDC_SOURCE": kind, **settings})


def _moving(source: Source, daemon: Daemons, left: SourceKind, on: SourceKind, *statements: str) -> Daemon:
    """Have tables captured from one source and attached for the other, too; give the capture of the first."""
    source.run(*statements)
    _attach(source, left)
    capture = _run(daemon, left)
    source.wait_exact(*TABLES)
    _attach(source, on)
    return capture


def _reads(source: Source, *tables: str) -> int:
    """Count the records of snapshots in the topics."""
    return sum(
        dict(record.headers() or []).get("__op") == b"r" for table in tables for record in source.topic(table).records
    )


def _has_left(source: Source, left: SourceKind) -> bool:
    """Return whether nothing of a source is left in the database."""
    if left is SourceKind.TRIGGERS:
        logs = source.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'log\\_%' AND relkind = 'r'")
        return source.value(OURS) == 0 and logs == 0
    return source.value(PUBLISHED) == 0 and source.value(f"SELECT count(*) {SLOTS}") == 0


@BOTH_WAYS
def test_a_table_moves_without_being_read_anew(wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind) -> None:
    wal.run(
        "INSERT INTO users (user_id, username) SELECT i, 'user ' || i FROM generate_series(1, 20) i",
        insert_tweets(1, 300),
    )
    _attach(wal, left)
    before = _run(daemon, left)
    wal.wait_exact(*TABLES)
    _attach(wal, on)
    # Found by the source that it leaves, as long as that is captured from.
    wal.run(insert_tweets(301, 320), "DELETE FROM tweets WHERE tweet_id % 10 = 0")
    wal.wait_exact(*TABLES)
    before.kill()
    # Nobody has read these when the other source comes.
    wal.run(
        "UPDATE tweets SET text = 'changed' WHERE tweet_id % 2 = 1",
        "DELETE FROM tweets WHERE tweet_id % 5 = 0",
        "UPDATE tweets SET tweet_id = tweet_id + 10000 WHERE tweet_id < 5",
    )
    reads = _reads(wal, *TABLES)
    with wal.session() as writer:
        # Open through all of the handover, and committed after it.
        writer.execute(insert_tweets(1001, 1010))
        after = _run(daemon, on, VIEWKEEPER_CDC_CHUNK_ROWS="100", VIEWKEEPER_CDC_LEASE_SECONDS="2")
        wait_until(lambda: len(after.logged("taken_over")) == len(TABLES), what="the handover")
        wal.run(insert_tweets(2001, 2010))
        writer.commit()
    wal.wait_exact(*TABLES)
    wait_until(lambda: _has_left(wal, left), what="an end of what is left")
    wal.run(insert_tweets(3001, 3010), "DELETE FROM tweets WHERE tweet_id > 10000")
    wal.wait_exact(*TABLES)
    assert _reads(wal, *TABLES) == reads
    assert not after.logged("to_be_read_anew")
    assert wal.value("SELECT string_agg(DISTINCT source, '') FROM cdc.captured_table WHERE moving_to IS NULL") == on


@BOTH_WAYS
def test_a_kill_in_the_middle_of_a_handover_does_no_harm(
    wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind
) -> None:
    before = _moving(wal, daemon, left, on, insert_tweets(1, 100))
    before.kill()
    wal.run("UPDATE tweets SET text = 'changed'", "DELETE FROM tweets WHERE tweet_id = 7")
    killed = daemon(
        "tests.torture_steps",
        Kind.ANY,
        "1",
        Step.DELIVERED,
        signal.SIGKILL.name,
        "run",
        settings={"VIEWKEEPER_CDC_SOURCE": on, "VIEWKEEPER_CDC_LEASE_SECONDS": "2"},
    )
    assert killed.wait(30) == -signal.SIGKILL
    wal.run(insert_tweets(101, 110))
    entry = wal.entry("tweets")
    assert entry is not None
    assert source_of(entry.position or "") is left
    _run(daemon, on, VIEWKEEPER_CDC_LEASE_SECONDS="2")
    wal.wait_exact(*TABLES)
    wait_until(lambda: _has_left(wal, left), what="an end of what is left")


def test_what_the_wal_still_has_is_taken_over_where_xids_are_large(
    tmp_path: Path,
    postgres_binaries: Path,
    kafka: KafkaBroker,
    topic_prefix: str,
    daemon: Daemons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_postgres(tmp_path / "own", binaries=postgres_binaries) as server, psycopg.connect(server.url()) as session:
        session.autocommit = True
        session.execute("VACUUM FREEZE")
    unprivileged = needed_unprivileged()
    xids = ["-x", str(LARGE_XID), "-u", str(LARGE_XID - 1)]
    reset = [str(postgres_binaries / "pg_resetwal"), *xids, str(server.data_dir)]
    subprocess.run([*(unprivileged.prefix if unprivileged else ()), *reset], check=True, capture_output=True)
    with (
        run_postgres(tmp_path / "own", binaries=postgres_binaries) as server,
        connect(server.url(), name="test", settings={"TimeZone": "UTC"}) as session,
    ):
        source = Source(session, server.url(), kafka, topic_prefix)
        monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", source.url)
        for section in ("source", "demo"):
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
        _attach(source, SourceKind.WAL)
        url = {"VIEWKEEPER_SOURCE_URL": source.url}
        before = _run(daemon, SourceKind.WAL, **url)
        source.wait_exact(*TABLES)
        assert before.terminate() == 0
        source.run(insert_tweets(1, 20))
        _attach(source, SourceKind.TRIGGERS)
        after = _run(daemon, SourceKind.TRIGGERS, **url)
        source.wait_exact(*TABLES)
        assert len(after.logged("taken_over")) == len(TABLES)
        assert after.terminate() == 0


@BOTH_WAYS
def test_it_moves_there_and_back_before_anything_is_tidied_up(
    wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind
) -> None:
    capture = _moving(wal, daemon, left, on, insert_tweets(1, 100))
    reads = _reads(wal, *TABLES)
    with wal.session() as reader:
        # Neither triggers nor an entry in a publication can be dropped meanwhile.
        reader.execute("LOCK TABLE tweets, users IN SHARE UPDATE EXCLUSIVE MODE")
        for kind in (on, left):
            assert capture.terminate() == 0
            wal.run(insert_tweets(1000, 1010), "DELETE FROM tweets WHERE tweet_id >= 1000", insert_tweets(1000, 1005))
            capture = _run(daemon, kind)
            capture.wait_logged("taken_over")
            wal.wait_exact(*TABLES)
            wal.run("DELETE FROM tweets WHERE tweet_id >= 1000")
    wal.wait_exact(*TABLES)
    assert _reads(wal, *TABLES) == reads


@BOTH_WAYS
def test_what_it_cannot_take_over_it_reads_anew(wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind) -> None:
    before = _moving(
        wal, daemon, left, on, insert_tweets(1, 50), "INSERT INTO users (user_id, username) VALUES (1, 'one')"
    )
    assert before.terminate() == 0
    wal.run("TRUNCATE tweets", insert_tweets(20, 30), "UPDATE users SET username = 'another'")
    after = _run(daemon, on)
    wal.wait_exact(*TABLES)
    assert [line["table"] for line in after.logged("to_be_read_anew")] == ["public.tweets"]
    assert [line["table"] for line in after.logged("taken_over")] == ["public.users"]


@BOTH_WAYS
def test_nothing_is_taken_over_from_another_history(
    wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind
) -> None:
    """A table that the handover would give up is none that may be read anew without a word."""
    before = _moving(wal, daemon, left, on, insert_tweets(1, 50))
    assert before.terminate() == 0
    wal.run("TRUNCATE tweets", "UPDATE cdc.capture SET pending_token = 'restored', published_token = 'from a backup'")
    after = _run(daemon, on)
    assert after.wait() == 1
    assert "another history" in after.log_text().splitlines()[-1]
    assert not after.logged("to_be_read_anew")
    assert not after.logged("taken_over")
    anew = _run(daemon, on, VIEWKEEPER_CDC_ON_OTHER_HISTORY="snapshot")
    wal.wait_exact(*TABLES)
    assert len(anew.logged("to_be_read_anew")) == len(TABLES)


@BOTH_WAYS
def test_a_move_is_given_up_by_attaching_it_as_it_is(
    wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind
) -> None:
    _attach(wal, left)
    _attach(wal, on)
    for table in TABLES:
        assert not attach(wal.connection, CAPTURE, TableName.parse(table), where="test", source=left)
    assert _has_left(wal, on)
    _run(daemon, left)
    wal.run(insert_tweets(1, 10))
    wal.wait_exact(*TABLES)


def test_a_table_is_detached_in_the_middle_of_a_move(wal: Source) -> None:
    _attach(wal, SourceKind.TRIGGERS)
    _attach(wal, SourceKind.WAL)
    for table in TABLES:
        assert detach(wal.connection, CAPTURE, TableName.parse(table), where="test")
    assert _has_left(wal, SourceKind.TRIGGERS)
    assert _has_left(wal, SourceKind.WAL)


def test_commands_say_what_moves(wal: Source, settings_env: dict[str, str]) -> None:
    wal.attach("tweets")
    to_wal = {**settings_env, "VIEWKEEPER_CDC_SOURCE": SourceKind.WAL}
    said = standard_output(to_wal, "cdc", "attach", "tweets")
    assert said == "public.tweets: moves when viewkeeper-cdc run is started anew with VIEWKEEPER_CDC_SOURCE=wal\n"
    document = json.loads(standard_output(to_wal, "cdc", "attach", "tweets", "--json"))
    assert document["tables"] == [{"table": "public.tweets", "was_attached": True, "moving_to": "wal"}]
    assert standard_output(settings_env, "cdc", "attach", "tweets") == "public.tweets: was attached already\n"
    assert _has_left(wal, SourceKind.WAL)


def test_writers_go_on_if_a_table_that_is_to_move_loses_its_identity(wal: Source, daemon: Daemons) -> None:
    capture = _moving(wal, daemon, SourceKind.TRIGGERS, SourceKind.WAL, insert_tweets(1, 10))
    wal.run("ALTER TABLE tweets REPLICA IDENTITY NOTHING")
    wait_until(lambda: wal.value(PUBLISHED) == 1, what="the table to be taken out of the publication")
    wal.run("UPDATE tweets SET text = 'changed'")
    wal.wait_exact(*TABLES)
    wal.run("ALTER TABLE users DROP CONSTRAINT users_pkey")
    assert capture.wait() == 1
    wal.run("UPDATE users SET username = 'changed'")


@BOTH_WAYS
def test_a_table_that_moves_is_compared_by_the_source_that_the_capture_has(
    wal: Source, daemon: Daemons, left: SourceKind, on: SourceKind
) -> None:
    _moving(wal, daemon, left, on, insert_tweets(1, 10))
    by_the_other = daemon("cdc", "reconcile", "tweets", settings={"VIEWKEEPER_CDC_SOURCE": on})
    assert by_the_other.wait(60) == 1
    assert "VIEWKEEPER_CDC_SOURCE is not what viewkeeper-cdc run has, since it moves: set it as it is there" in (
        by_the_other.log_text()
    )
    assert daemon("cdc", "reconcile", "tweets", settings={"VIEWKEEPER_CDC_SOURCE": left}).wait(60) == 0


def test_what_the_capture_may_not_drop_is_left_to_the_tables_owner(wal: Source, daemon: Daemons) -> None:
    _attach(wal, SourceKind.TRIGGERS)
    before = _run(daemon, SourceKind.TRIGGERS)
    wal.wait_exact(*TABLES)
    _attach(wal, SourceKind.WAL)
    with other_role(wal.connection, "settler") as settler:
        wal.run(
            f"GRANT USAGE, CREATE ON SCHEMA cdc TO {settler}",
            f"GRANT SELECT, UPDATE ON cdc.captured_table TO {settler}",
            f"ALTER FUNCTION cdc.settle(integer, text) OWNER TO {settler}",
        )
        assert before.terminate() == 0
        after = _run(daemon, SourceKind.WAL)
        left = after.wait_logged("former_source_left")
        assert left["reason"].endswith(f"run: viewkeeper-cdc attach {left['table']}")
        wal.run(insert_tweets(1, 10))
        wal.wait_exact(*TABLES)
        wait_until(lambda: len(after.logged("moved")) == len(TABLES), what="the end of the move")
        assert not _has_left(wal, SourceKind.TRIGGERS)
        for table in TABLES:
            assert not attach(wal.connection, CAPTURE, TableName.parse(table), where="test", source=SourceKind.WAL)
        assert _has_left(wal, SourceKind.TRIGGERS)
        wal.run(insert_tweets(11, 20), f"REASSIGN OWNED BY {settler} TO CURRENT_USER")
        wal.wait_exact(*TABLES)
        assert not after.logged("to_be_read_anew")


@BOTH_WAYS
def test_what_could_not_be_dropped_is_in_no_later_moves_way(wal: Source, left: SourceKind, on: SourceKind) -> None:
    _attach(wal, left)
    _attach(wal, on)
    # As a role that may drop nothing settles it.
    wal.run(f"UPDATE cdc.captured_table SET source = '{on}', moving_to = NULL")
    _attach(wal, left)
    assert wal.value("SELECT count(*) FROM cdc.captured_table WHERE moving_to = %s", left) == len(TABLES)


def test_a_move_that_was_given_up_or_turned_round_is_not_settled(wal: Source) -> None:
    _attach(wal, SourceKind.TRIGGERS, ["tweets"])
    _attach(wal, SourceKind.WAL, ["tweets"])
    settle = "SELECT cdc.settle(id, %s) FROM cdc.captured_table"
    assert wal.value(settle, SourceKind.TRIGGERS) is None
    assert not attach(wal.connection, CAPTURE, TableName.parse("tweets"), where="test", source=SourceKind.TRIGGERS)
    assert wal.value(settle, SourceKind.WAL) is None
    assert wal.value(OURS) == 4


def test_a_move_is_not_settled_by_a_leader_of_before(wal: Source) -> None:
    """Its successor may have been started with the source that would be dropped."""
    _attach(wal, SourceKind.TRIGGERS, ["tweets"])
    _attach(wal, SourceKind.WAL, ["tweets"])
    wal.lead("its successor")
    with closing(connect(wal.url, name="test", settings=SESSION)) as session:
        (table,) = captured_tables(session, CAPTURE)
        entry = TableCursor(topic="", attachment=table.attachment, position="0/1", complete=True, next_offsets=())
        published = Cursor(capture=CAPTURE, token="", tables={str(table.name): entry})

        def triggers_kept_by(leader: str) -> object:
            tidying = Housekeeping(session, CAPTURE, leader, SourceKind.WAL, where="test", part_limit_bytes=2**20)
            tidying.keep([table], published)
            return wal.value(OURS)

        assert triggers_kept_by("of before") == 4
        assert triggers_kept_by("its successor") == 0


def test_a_table_keeps_its_key_when_it_moves(wal: Source) -> None:
    wal.run("CREATE TABLE codes (id bigint PRIMARY KEY, code text NOT NULL UNIQUE)")
    name = TableName.parse("codes")
    attach(wal.connection, CAPTURE, name, where="test", key=("code",))
    with pytest.raises(ConfigurationError, match="which does not cover its key"):
        attach(wal.connection, CAPTURE, name, where="test", source=SourceKind.WAL)
    assert wal.value(f"SELECT count(*) {SLOTS}") == 0, "a slot for nobody keeps the server's WAL"
    wal.run("ALTER TABLE codes REPLICA IDENTITY FULL")
    detach(wal.connection, CAPTURE, name, where="test")
    attach(wal.connection, CAPTURE, name, where="test", source=SourceKind.WAL, key=("code",))
    attach(wal.connection, CAPTURE, name, where="test")
    wal.run("INSERT INTO codes VALUES (1, 'one')")
    log = wal.value("SELECT format('cdc.log_%s_0', max(id)) FROM cdc.captured_table")
    assert wal.connection.execute(f"SELECT k1 FROM {log}".encode()).fetchall() == [("one",)]


def test_a_change_log_that_was_full_before_it_comes_to_triggers_leads_to_a_snapshot(
    wal: Source, daemon: Daemons
) -> None:
    _attach(wal, SourceKind.WAL, ["tweets"])
    before = _run(daemon, SourceKind.WAL, VIEWKEEPER_CDC_LOG_LIMIT_MB="1")
    wal.wait_exact("tweets")
    _attach(wal, SourceKind.TRIGGERS, ["tweets"])
    # Nobody empties the change log as long as the WAL is read.
    wal.run(insert_tweets(1, 20_000), insert_tweets(20_001, 20_001))
    wal.wait_exact("tweets")
    assert before.terminate() == 0
    log = wal.value("SELECT format('cdc.log_%s_0', id) FROM cdc.captured_table")
    with wal.session() as reader:
        # It stays full until this has ended.
        reader.execute(f"LOCK TABLE {log} IN ACCESS SHARE MODE".encode())
        after = _run(daemon, SourceKind.TRIGGERS, VIEWKEEPER_CDC_LOG_LIMIT_MB="1")
        wait_until(lambda: after.logged("taken_over") or after.logged("to_be_read_anew"), what="the handover")
        wal.run("UPDATE tweets SET text = 'changed' WHERE tweet_id = 7")
    wal.wait_exact("tweets")


def _polled_alone(source: PolledSource, daemon: Daemons, table: str) -> Daemon:
    """Have two tables captured by triggers, then start the capture over with one of them polled; give that capture."""
    _attach(source, SourceKind.TRIGGERS)
    before = _run(daemon, SourceKind.TRIGGERS)
    source.wait_exact(*TABLES)
    assert before.terminate() == 0
    settings = source.tables(**{table: TIMESTAMP})
    # The first start makes the topic of requests.
    assert daemon("cdc", "run", settings=settings).wait(30) == 1
    assert daemon("cdc", "snapshot", table, settings=settings).wait() == 0
    return daemon("cdc", "run", settings=settings)


@pytest.fixture
def both(source: Source, kafka: KafkaBroker, tmp_path: Path) -> Iterator[PolledSource]:
    """Give a source that has triggers, and may be polled."""
    polled = PolledSource(source.url, kafka, source.prefix, tmp_path)
    with closing(polled.connection):
        polled.run(insert_tweets(1, 10), "UPDATE tweets SET updated_at = now()")
        yield polled


def test_all_tables_of_a_capture_come_to_be_polled_together(both: PolledSource, daemon: Daemons) -> None:
    alone = _polled_alone(both, daemon, "tweets")
    assert alone.wait(30) == 1
    complaint = alone.log_text().splitlines()[-1]
    assert "another history" not in complaint
    assert "all tables of capture viewkeeper move together: name it in VIEWKEEPER_CDC_TABLES, too" in complaint
    assert "run: viewkeeper-cdc snapshot public.users" in complaint
    settings = both.tables(tweets=TIMESTAMP, users=TIMESTAMP)
    assert daemon("cdc", "snapshot", "users", settings=settings).wait() == 0
    daemon("cdc", "run", settings=settings)
    both.wait_published(*TABLES)
    both.assert_topic_equals_table("tweets", "tweet_id")


def test_some_tables_of_a_capture_come_to_be_polled_under_another_name(both: PolledSource, daemon: Daemons) -> None:
    alone = _polled_alone(both, daemon, "tweets")
    assert alone.wait(30) == 1
    complaint = alone.log_text().splitlines()[-1]
    assert "run the capture with VIEWKEEPER_CDC_SOURCE=triggers again, detach those there" in complaint
    _run(daemon, SourceKind.TRIGGERS)
    assert detach(both.connection, CAPTURE, TableName.parse("tweets"), where="test")
    wait_until(lambda: both.entry("tweets") is None, what="a cursor without the table")
    settings = {**both.tables(tweets=TIMESTAMP), "VIEWKEEPER_CDC_NAME": "polled"}
    assert daemon("cdc", "snapshot", "tweets", settings=settings).wait() == 0
    daemon("cdc", "run", settings=settings)
    both.run("DELETE FROM tweets WHERE tweet_id = 1")
    assert daemon("cdc", "snapshot", "tweets", "--wait", settings=settings).wait(30) == 0
    both.assert_topic_equals_table("tweets", "tweet_id")
    both.wait_published("users")
