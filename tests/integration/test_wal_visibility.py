"""A commit is in the WAL before other sessions see it: its keys wait for a snapshot that sees their rows (W1)."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from alembic import command
from alembic.config import Config

import cdc.wal_keys
from cdc.attachment import attach
from cdc.lsn import lsn_number
from cdc.rounds import Keys, Mark, Round
from cdc.session import SESSION
from cdc.tables import CapturedTable, SourceKind, captured_tables
from cdc.wal import WalSource
from cdc.wire import TableName
from compose.local.kafka import KafkaBroker
from compose.local.postgres import postgres as run_postgres
from runtime.postgres import connect
from tests.daemons import ROOT, Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.logged import other_role
from tests.integration.wal_steps import attach_wal, run_wal
from tests.waiting import wait_until

PAGE_KEYS = 1_000
MANY_TWEETS = "INSERT INTO tweets (tweet_id) SELECT generate_series(1, 20000)"


class Rounds:
    """A source whose rounds a test makes one by one, as the capture's reader does, without publishing anything."""

    def __init__(self, source: WalSource, tables: tuple[CapturedTable, ...]) -> None:
        self.source = source
        self.tables = {str(table.name): table for table in tables}
        self.positions: dict[TableName, str] = {}
        self.rows: dict[str, list[bytes]] = {name: [] for name in self.tables}
        self.newest: Round | None = None
        self.next()

    def take_up(self, session: psycopg.Connection) -> None:
        """Look at what is attached now, as the reader does each second."""
        self.source.attached()
        self.tables = {str(table.name): table for table in captured_tables(session, CAPTURE)}
        self.rows = {name: [] for name in self.tables}
        self.next()

    def next(self) -> Round:
        """Make a round, and note the rows of the keys that it found."""
        tables = list(self.tables.values())
        with self.source.round(tables, self.positions, lambda _table: PAGE_KEYS) as round_:
            for found in round_.found:
                page = self.source.images(round_, found.table, found.keys)
                self.rows[str(found.table.name)] += [row for _, row in page.changes if row is not None]
            for table in round_.tables:
                self.positions[table.name] = round_.position_of(table)
        self.newest = round_
        return round_

    def is_known_by(self, time: datetime) -> bool:
        """Return whether the newest round knows all that was committed by a time."""
        return self.newest is not None and self.newest.known_by is not None and self.newest.known_by >= time

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Make rounds until something holds."""

        def holds() -> bool:
            self.next()
            return bool(condition())

        wait_until(holds, what=what)


@pytest.fixture
def server_url(
    tmp_path_factory: pytest.TempPathFactory, postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Give a source on a server of its own: commits of the whole server are made to wait."""
    with run_postgres(tmp_path_factory.mktemp("own-postgres"), binaries=postgres_binaries) as server:
        monkeypatch.setenv("VIEWKEEPER_SOURCE_URL", server.url())
        for section in ("source", "demo"):
            command.upgrade(Config(ROOT / "alembic.ini", ini_section=section), "head")
        yield server.url()


@pytest.fixture
def rounds(server_url: str) -> Iterator[Rounds]:
    with (
        closing(connect(server_url, name="test", settings=SESSION)) as session,
        closing(
            WalSource(session, CAPTURE, url=server_url, where="test", page_keys=PAGE_KEYS),
        ) as source,
    ):
        for table in ("tweets", "users"):
            assert attach(session, CAPTURE, TableName.parse(table), where="test", source=SourceKind.WAL)
        source.attached()
        yield Rounds(source, captured_tables(session, CAPTURE))


@contextmanager
def _standby_awaited(url: str, name: str = "absent") -> Iterator[None]:
    """Have commits wait for a standby of this name, all but those with synchronous_commit=local."""
    with closing(connect(url, name="test", settings={"synchronous_commit": "local"})) as session:
        session.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
        session.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _shown(session) == name, what="the new setting")
        # Commits wait once the checkpointer has read it, too, which it does before it begins one.
        session.execute("CHECKPOINT")
        try:
            yield
        finally:
            session.execute("ALTER SYSTEM RESET synchronous_standby_names")
            session.execute("SELECT pg_reload_conf()")


def _shown(session: psycopg.Connection) -> str:
    row = session.execute("SHOW synchronous_standby_names").fetchone()
    assert row is not None
    return str(row[0])


def _waits_for_the_standby(session: psycopg.Connection) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    return session.execute(query).fetchone() == (1,)


def test_w1_a_commit_that_is_not_visible_yet_waits_and_holds_up_nobody(server_url: str, rounds: Rounds) -> None:
    """Read at once, the row would be the old one, and no later change would mend it."""
    local = {"synchronous_commit": "local"}
    with closing(connect(server_url, name="test", settings=local)) as session:
        session.execute("INSERT INTO tweets (tweet_id, text) VALUES (1, 'old')")
        rounds.wait(lambda: rounds.rows["public.tweets"], "the first row")
        with _standby_awaited(server_url):
            writer = threading.Thread(target=_write, args=(server_url,))
            writer.start()
            wait_until(lambda: _waits_for_the_standby(session), what="a commit that waits")
            end = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            assert end is not None
            session.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            rounds.wait(lambda: rounds.rows["public.users"], "the other table's row, committed later")
            held = lsn_number(rounds.positions[TableName("public", "tweets")])
            assert held < lsn_number(end[0]) < lsn_number(rounds.positions[TableName("public", "users")])
            # Nobody was told that it has committed: it holds no watermark back, and is in none.
            until = session.execute("SELECT clock_timestamp()").fetchone()
            assert until is not None
            rounds.wait(lambda: rounds.is_known_by(until[0]), "a time after that")
            assert rounds.newest is not None
            assert not rounds.newest.behind
            assert [row for row in rounds.rows["public.tweets"] if b"new" in row] == []
            assert len(rounds.rows["public.tweets"]) == 1
        writer.join()
        rounds.wait(lambda: len(rounds.rows["public.tweets"]) > 1, "the row once it is visible")
        assert b'"new"' in rounds.rows["public.tweets"][-1]


def _write(url: str, statement: LiteralString = "UPDATE tweets SET text = 'new' WHERE tweet_id = 1") -> None:
    with closing(connect(url, name="writer")) as session:
        session.execute(statement)


def test_w3_a_time_is_known_only_once_the_stream_has_passed_it(server_url: str, rounds: Rounds) -> None:
    """A round takes in about a page: what committed before its time may be in the stream yet."""
    tweets, rows = rounds.tables["public.tweets"], 3 * PAGE_KEYS
    with closing(connect(server_url, name="test")) as session:
        session.execute("INSERT INTO tweets (tweet_id) SELECT generate_series(1, %s)", (rows,))
        until = session.execute("SELECT clock_timestamp()").fetchone()
    assert until is not None

    def is_all_known() -> bool:
        assert rounds.newest is not None
        return rounds.is_known_by(until[0]) and tweets.attachment not in rounds.newest.behind

    rounds.wait(is_all_known, "a time after that")
    assert len(rounds.rows["public.tweets"]) == rows


def test_what_was_known_before_keys_were_told_is_not_known_until_they_are_read(server_url: str, rounds: Rounds) -> None:
    """They may have changed before any time that was noted by then, and lie behind the WAL's end of then."""
    tweets = rounds.tables["public.tweets"]
    with closing(connect(server_url, name="test")) as session:
        session.execute("INSERT INTO tweets (tweet_id, text) VALUES (1, 'told')")
        rounds.wait(lambda: rounds.rows["public.tweets"], "the row")
        # As the reader looks at the source's history before a handover.
        with rounds.source.round((), {}, lambda _table: PAGE_KEYS) as before:
            pass
        for first in (1, 2 * PAGE_KEYS):
            users = (first, first + PAGE_KEYS * 3 // 2)
            session.execute(
                "INSERT INTO users (user_id, username) SELECT n, n::text FROM generate_series(%s::int, %s) n", users
            )
    rounds.source.tell(tweets, Keys(1, ("{1}",)))
    rounds.wait(lambda: rounds.is_known_by(before.time), "the time of before")
    assert len(rounds.rows["public.tweets"]) == 2


def test_a_partition_that_came_before_it_was_visible_is_found_by_who_changes_it_later(
    server_url: str, rounds: Rounds
) -> None:
    """Its table is read anew once it is seen, and what is not visible by then must not be taken for a stranger's."""
    parted, new_part = TableName("public", "parted"), "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)"
    with closing(connect(server_url, name="test", settings={"synchronous_commit": "local"})) as session:
        session.execute("CREATE TABLE parted (id bigint PRIMARY KEY, text text) PARTITION BY LIST (id)")
        assert attach(session, CAPTURE, parted, where="test", source=SourceKind.WAL)
        rounds.take_up(session)
        with _standby_awaited(server_url):
            writer = threading.Thread(target=_write, args=(server_url, f"{new_part}; INSERT INTO parted VALUES (1)"))
            writer.start()
            wait_until(lambda: _waits_for_the_standby(session), what="a commit that waits")
            session.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            rounds.wait(lambda: rounds.rows["public.users"], "the other table's row, committed later")
        writer.join()
        session.execute("UPDATE parted SET text = 'new'")
        rounds.wait(lambda: rounds.rows["public.parted"], "the row that was changed later")
        assert b'"new"' in rounds.rows["public.parted"][-1]


def test_a_partition_that_moved_to_another_table_is_found_by_who_changes_it_there(
    server_url: str, rounds: Rounds
) -> None:
    """The other one is read anew, by a snapshot that does not see the change yet."""
    left, joined = TableName("public", "left_one"), TableName("public", "joined_one")
    with closing(connect(server_url, name="test", settings={"synchronous_commit": "local"})) as session:
        for name in (left, joined):
            session.execute(
                f"CREATE TABLE {name.name} (id bigint PRIMARY KEY, text text) PARTITION BY LIST (id)".encode()
            )
        session.execute("CREATE TABLE part PARTITION OF left_one FOR VALUES IN (1)")
        session.execute("INSERT INTO left_one VALUES (1, 'old')")
        for name in (left, joined):
            assert attach(session, CAPTURE, name, where="test", source=SourceKind.WAL)
        rounds.take_up(session)
        session.execute("UPDATE left_one SET text = 'older'")
        rounds.wait(lambda: rounds.rows[str(left)], "the row where it was")
        session.execute("ALTER TABLE left_one DETACH PARTITION part")
        session.execute("ALTER TABLE joined_one ATTACH PARTITION part FOR VALUES IN (1)")
        with _standby_awaited(server_url):
            writer = threading.Thread(target=_write, args=(server_url, "UPDATE joined_one SET text = 'new'"))
            writer.start()
            wait_until(lambda: _waits_for_the_standby(session), what="a commit that waits")
            session.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            rounds.wait(lambda: rounds.rows["public.users"], "the other table's row, committed later")
            # As the reader begins with a table that it sees altered.
            del rounds.positions[joined]
            rounds.take_up(session)
        writer.join()
        rounds.wait(lambda: rounds.rows[str(joined)], "the row once it is visible")
        assert b'"new"' in rounds.rows[str(joined)][-1]


def test_a_table_begins_before_what_is_not_visible_yet(server_url: str, rounds: Rounds) -> None:
    """What its snapshot may not see must be found by a later round."""
    local = {"synchronous_commit": "local"}
    with closing(connect(server_url, name="test", settings=local)) as session:
        session.execute("INSERT INTO tweets (tweet_id, text) VALUES (1, 'old')")
        with _standby_awaited(server_url):
            writer = threading.Thread(target=_write, args=(server_url,))
            writer.start()
            wait_until(lambda: _waits_for_the_standby(session), what="a commit that waits")
            session.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            rounds.wait(lambda: rounds.rows["public.users"], "the other table's row, committed later")
            # As if it had waited to be read anew.
            del rounds.positions[TableName("public", "tweets")]
            rounds.rows["public.tweets"].clear()
            rounds.next()
        writer.join()
        rounds.wait(lambda: rounds.rows["public.tweets"], "the row once it is visible")
        assert b'"new"' in rounds.rows["public.tweets"][-1]


def test_a_large_transaction_that_is_not_visible_yet_waits_in_the_server(
    server_url: str, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be larger than memory, and comes whole once it is visible; what is behind it comes then, too."""
    monkeypatch.setattr(cdc.wal_keys, "MOST_WAITING", 2 * PAGE_KEYS)
    with closing(connect(server_url, name="test", settings={"synchronous_commit": "local"})) as session:
        with _standby_awaited(server_url):
            writer = threading.Thread(target=_write, args=(server_url, MANY_TWEETS))
            writer.start()
            wait_until(lambda: _waits_for_the_standby(session), what="a commit that waits")
            session.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            # Enough of them to come to the other table's row, if each took in a page.
            for _ in range(200):
                rounds.next()
            assert not any(rounds.rows.values())
        writer.join()
        rounds.wait(lambda: rounds.rows["public.users"], "the other table's row")
        assert len(rounds.rows["public.tweets"]) == 20 * PAGE_KEYS


def test_a_locked_table_with_very_many_keys_holds_up_nobody_and_is_read_anew(
    server_url: str, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdc.wal_keys, "MOST_WAITING", 2 * PAGE_KEYS)
    with closing(connect(server_url, name="test")) as session, closing(connect(server_url, name="other")) as other:
        session.execute(MANY_TWEETS)
        with session.transaction():
            session.execute("LOCK TABLE tweets")
            other.execute("INSERT INTO users (user_id, username) VALUES (7, 'other')")
            rounds.wait(lambda: rounds.rows["public.users"], "the other table's row")
            assert not rounds.rows["public.tweets"]
        assert Mark.PASS in {mark for found in rounds.next().found for mark in found.marks}


def test_a_capture_that_commits_wait_for_stops(
    server_url: str, kafka: KafkaBroker, topic_prefix: str, daemon: Daemons
) -> None:
    """They would wait for it, and it for them."""
    with closing(connect(server_url, name="test", settings={"TimeZone": "UTC"})) as session:
        wal = Source(session, server_url, kafka, topic_prefix)
        _assert_stops(wal, daemon, server_url, names="*")


def test_a_capture_that_commits_wait_for_stops_also_where_the_server_does_not_tell_it_so(
    server_url: str, kafka: KafkaBroker, topic_prefix: str, daemon: Daemons
) -> None:
    """Without pg_read_all_stats a role sees no sync_state, not even its own walsender's."""
    with (
        closing(connect(server_url, name="test", settings={"synchronous_commit": "local"})) as admin,
        _captor(admin) as role,
    ):
        url = server_url.replace("postgres@", f"{role}@", 1)
        with closing(connect(url, name="test", settings={"TimeZone": "UTC"})) as session:
            wal = Source(session, url, kafka, topic_prefix)
            _assert_stops(wal, daemon, server_url, names='FIRST 1 (real, "viewkeeper-cdc viewkeeper wal")')


def _assert_stops(wal: Source, daemon: Daemons, server_url: str, *, names: str) -> None:
    """See that a capture stops once synchronous_standby_names are these."""
    attach_wal(wal, "tweets")
    capture = run_wal(daemon, {"VIEWKEEPER_SOURCE_URL": wal.url})
    wal.wait_exact("tweets")
    with _standby_awaited(server_url, name=names):
        told = capture.wait_logged("synchronous_standby")
    assert "name the real ones there, without * and without 'viewkeeper-cdc viewkeeper wal'" in told["reason"]
    assert capture.wait() == 1


@contextmanager
def _captor(admin: psycopg.Connection) -> Iterator[str]:
    """Make a role with the rights that a capture from the WAL wants, and no other."""
    with other_role(admin, "captor") as role:
        admin.execute(f"ALTER ROLE {role} REPLICATION".encode())
        admin.execute(f"GRANT CREATE ON DATABASE postgres TO {role}".encode())
        admin.execute(f"ALTER SCHEMA cdc OWNER TO {role}".encode())
        for table in ("cdc.capture", "cdc.captured_table", "cdc.request", "tweets"):
            admin.execute(f"ALTER TABLE {table} OWNER TO {role}".encode())
        yield role
