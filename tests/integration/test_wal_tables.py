"""What the WAL says of tables: identities, partitions, values out of line, transactions larger than memory."""

import re
import signal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import cdc.attachment
from cdc.attachment import attach
from cdc.rights import missing_rights
from cdc.tables import SourceKind
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.postgres import LockNotAvailable
from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import CAPTURE, Source, insert_tweets
from tests.integration.logged import other_role
from tests.integration.wal_steps import SMALL_PAGES, attach_wal, run_wal
from tests.waiting import wait_until

TWEETS = TableName("public", "tweets")
LARGE_ROWS = 3_000

FREE = """
SELECT NOT EXISTS (
    SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.relation = 'tweets'::regclass)
"""


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        ("FULL", None),
        ("USING INDEX wide", ("b",)),
        ("DEFAULT", ("a",)),
    ],
    ids=["full", "index", "default"],
)
def test_changed_keys_are_told_by_the_identity(
    wal: Source, daemon: Daemons, identity: str, key: tuple[str, ...] | None
) -> None:
    wal.run(
        "CREATE TABLE told (a bigint PRIMARY KEY, b text NOT NULL UNIQUE, c text)",
        "CREATE UNIQUE INDEX wide ON told (a, b)",
        f"ALTER TABLE told REPLICA IDENTITY {identity}",
        "INSERT INTO told SELECT i, 'b' || i, 'c' FROM generate_series(1, 20) i",
    )
    attach_wal(wal, "told", key=key)
    capture = run_wal(daemon)
    wal.wait_exact("told")
    wal.run(
        "UPDATE told SET c = 'x' WHERE a < 5",
        "UPDATE told SET a = 100, b = 'other' WHERE a = 6",
        "UPDATE told SET b = 'another' WHERE a = 7",
        "DELETE FROM told WHERE a > 15",
    )
    wal.wait_exact("told")
    assert not capture.logged("table_changed")


@pytest.mark.parametrize(
    ("statements", "key", "complaint"),
    [
        (
            "ALTER TABLE told REPLICA IDENTITY NOTHING",
            None,
            "has replica identity NOTHING, which does not cover its key",
        ),
        ("SELECT", ("b",), "has replica identity DEFAULT, which does not cover its key (b)"),
        (
            "ALTER TABLE told REPLICA IDENTITY USING INDEX told_b_key",
            None,
            "has replica identity USING INDEX, which does not cover its key (a)",
        ),
        (
            # What an index includes is no part of an identity.
            "CREATE UNIQUE INDEX more ON told (b) INCLUDE (a); ALTER TABLE told REPLICA IDENTITY USING INDEX more",
            None,
            "has replica identity USING INDEX, which does not cover its key (a)",
        ),
        (
            "ALTER TABLE told DROP CONSTRAINT told_pkey; CREATE UNIQUE INDEX ON told (a)",
            ("a",),
            "has replica identity DEFAULT, which does not cover its key (a)",
        ),
        (
            "ALTER TABLE told DROP CONSTRAINT told_pkey; ALTER TABLE told ADD PRIMARY KEY (a) DEFERRABLE",
            None,
            "has replica identity DEFAULT, which does not cover its key (a)",
        ),
    ],
)
def test_a_table_whose_identity_hides_its_key_is_refused(
    wal: Source, statements: str, key: tuple[str, ...] | None, complaint: str
) -> None:
    """Its writers would be refused by Postgres itself, or a row's old key would stay in the topic."""
    wal.run("CREATE TABLE told (a bigint PRIMARY KEY, b text NOT NULL UNIQUE)", *statements.split("; "))
    with pytest.raises(ConfigurationError, match=re.escape(f"table public.told {complaint}")):
        attach_wal(wal, "told", key=key)
    wal.run("INSERT INTO told VALUES (1, 'x')", "UPDATE told SET b = 'y'", "DELETE FROM told")


@pytest.mark.parametrize(
    "index", ["CREATE UNIQUE INDEX ON split (id)", "ALTER TABLE split ADD PRIMARY KEY (id) DEFERRABLE"]
)
def test_a_partitioned_table_without_a_primary_key_is_refused(wal: Source, index: str) -> None:
    """A later partition would have no replica identity, and its writers would fail."""
    wal.run("CREATE TABLE split (id bigint NOT NULL, v text) PARTITION BY RANGE (id)", index)
    with pytest.raises(ConfigurationError, match="is partitioned and has no primary key that is not deferrable"):
        attach_wal(wal, "split", key=("id",))


def test_w2_a_table_is_not_published_beside_an_open_writer(wal: Source) -> None:
    """What the writer wrote before would not be decoded, and a snapshot that begins before its end misses it too."""
    attach_wal(wal, "users")
    with wal.session() as writer:
        writer.execute("INSERT INTO tweets VALUES (1)")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            wal.run("SET lock_timeout = '50ms'", f"SELECT cdc.attach_published('{CAPTURE}', 'tweets')")
        writer.commit()
    wal.run(f"SELECT cdc.attach_published('{CAPTURE}', 'tweets')")


def test_a_view_is_refused(wal: Source) -> None:
    wal.run("CREATE VIEW shown AS SELECT * FROM tweets")
    with pytest.raises(ConfigurationError, match=f"is a view.*VIEWKEEPER_CDC_SOURCE={SourceKind.TRIGGERS}"):
        attach_wal(wal, "shown", key=("tweet_id",))


def test_what_a_role_lacks_is_said_before_anything_is_made(wal: Source) -> None:
    with other_role(wal.connection, "stranger") as role:
        wal.run(f"SET ROLE {role}")
        with pytest.raises(ConfigurationError) as refused:
            attach(wal.connection, CAPTURE, TWEETS, where="test", source=SourceKind.WAL)
        wal.run("RESET ROLE")
    lines = str(refused.value).splitlines()
    assert "  - ownership of public.tweets (a publication takes tables of one's own)" in lines
    assert f"  - CREATE on database {wal.value('SELECT current_database()')}, for a publication" in lines
    assert "  - the attribute REPLICATION (on Amazon RDS the role rds_replication), for a replication slot" in lines
    assert wal.value("SELECT count(*) FROM pg_publication") == 0


def test_on_rds_it_is_a_role_that_lets_one_read_the_wal(wal: Source) -> None:
    (table,) = wal.connection.execute("SELECT 'tweets'::regclass::oid").fetchone() or (0,)

    def lacks_replication(session: psycopg.Connection) -> bool:
        lacking = missing_rights(session, table, "tweets", source=SourceKind.WAL, row_level=False, by_view=False)
        return any("REPLICATION" in one for one in lacking)

    # Roles are the whole server's: these are never committed.
    with wal.session() as session:
        session.execute("CREATE ROLE rds_replication")
        session.execute("CREATE ROLE captor")
        session.execute("SET LOCAL ROLE captor")
        assert lacks_replication(session)
        session.execute("RESET ROLE")
        session.execute("GRANT rds_replication TO captor")
        session.execute("SET LOCAL ROLE captor")
        assert not lacks_replication(session)
        session.rollback()


def test_a_role_makes_nothing_in_our_schema_unless_columns_are_to_stay(wal: Source) -> None:
    with other_role(wal.connection, "owner") as role:
        wal.run(
            f"ALTER ROLE {role} REPLICATION",
            f"ALTER TABLE tweets OWNER TO {role}",
            f"GRANT CREATE ON DATABASE {wal.value('SELECT current_database()')} TO {role}",
            f"GRANT USAGE ON SCHEMA cdc TO {role}",
            f"GRANT SELECT, INSERT, UPDATE ON cdc.captured_table TO {role}",
            f"GRANT INSERT ON cdc.capture TO {role}",
            f"SET ROLE {role}",
        )
        with pytest.raises(ConfigurationError) as refused:
            attach(wal.connection, CAPTURE, TWEETS, where="test", source=SourceKind.WAL, columns=("tweet_id",))
        assert str(refused.value).splitlines()[1:-1] == ["  - CREATE on schema cdc"]
        attach_wal(wal, "tweets")
        wal.run("RESET ROLE")


def test_a_role_that_may_not_read_the_wal_is_told_what_it_lacks(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    with other_role(wal.connection, "captor") as role:
        wal.run(f"GRANT USAGE ON SCHEMA cdc TO {role}", f"GRANT ALL ON ALL TABLES IN SCHEMA cdc, public TO {role}")
        superuser = conninfo_to_dict(wal.url)["user"]
        refused = run_wal(daemon, {"VIEWKEEPER_SOURCE_URL": wal.url.replace(f"{superuser}@", f"{role}@", 1)})
        assert refused.wait(30) == 2
        complaint = refused.log_text().splitlines()[-1]
        assert f"role {role} lacks the attribute REPLICATION" in complaint
        assert f"run: ALTER ROLE {role} REPLICATION" in complaint
        assert "check the URL" not in complaint


def test_w2_a_table_is_not_attached_while_a_transaction_has_written_to_it(
    wal: Source, daemon: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote before the table was published would not be decoded, and no snapshot of before its end has it."""
    attach_wal(wal, "users")
    wal.run("SET lock_timeout = '50ms'")
    monkeypatch.setattr(cdc.attachment, "PATIENCE_SECONDS", 0.2)
    with wal.session() as writer:
        writer.execute("INSERT INTO tweets (tweet_id) VALUES (1)")
        with pytest.raises(LockNotAvailable):
            attach_wal(wal, "tweets")
        writer.execute("UPDATE tweets SET text = 'x'")
        writer.commit()
    attach_wal(wal, "tweets")
    run_wal(daemon)
    wal.wait_exact("tweets", "users")


def test_a_key_out_of_line_that_did_not_change_is_known(wal: Source, daemon: Daemons) -> None:
    wal.run(
        "CREATE TABLE wide (id text PRIMARY KEY, other text)",
        "ALTER TABLE wide ALTER id SET STORAGE EXTERNAL",
        "INSERT INTO wide SELECT repeat(i::text, 2300), repeat('x', 6000) FROM generate_series(1, 5) i",
    )
    attach_wal(wal, "wide")
    capture = run_wal(daemon)
    wal.wait_exact("wide")
    wal.run("UPDATE wide SET other = 'y' WHERE id LIKE '1%'", "DELETE FROM wide WHERE id LIKE '2%'")
    wal.wait_exact("wide")
    assert not capture.logged("table_changed")


def test_partitions_are_published_as_their_root(wal: Source, daemon: Daemons) -> None:
    wal.run(
        "CREATE TABLE split (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF split FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE high PARTITION OF split FOR VALUES FROM (100) TO (200)",
        "INSERT INTO split SELECT i, 'v' FROM generate_series(1, 150) i",
    )
    attach_wal(wal, "split")
    run_wal(daemon)
    wal.wait_exact("split")
    for statement in (
        "INSERT INTO low VALUES (0, 'by the leaf')",
        "UPDATE split SET id = id + 150 WHERE id BETWEEN 1 AND 9",
        "DELETE FROM high WHERE id > 155",
        "TRUNCATE low",
        "CREATE TABLE later PARTITION OF split FOR VALUES FROM (200) TO (300)",
        "INSERT INTO split SELECT i, 'w' FROM generate_series(190, 250) i ON CONFLICT DO NOTHING",
        "ALTER TABLE split DETACH PARTITION high",
    ):
        wal.run(statement)
        wal.wait_exact("split")


def test_a_transaction_larger_than_a_page_and_than_the_servers_memory(wal: Source, daemon: Daemons) -> None:
    """It comes whole after its commit, spilled by the server, and is taken page by page; wide rows cut the pages."""
    name = wal.value("SELECT current_database()")
    wal.run(f"ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'")
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon, SMALL_PAGES)
    wal.wait_exact("tweets", "users")
    wal.run(
        f"INSERT INTO tweets SELECT i, 1, repeat('x', 200) FROM generate_series(1, {LARGE_ROWS}) i",
        "INSERT INTO users (user_id) VALUES (1)",
        f"UPDATE tweets SET tweet_id = tweet_id + {LARGE_ROWS}, text = repeat('y', 150000) WHERE tweet_id % 10 = 0",
        "DELETE FROM tweets WHERE tweet_id % 3 = 0",
    )
    wal.wait_exact("tweets", "users", timeout_seconds=90)
    assert not capture.logged("to_be_read_anew")
    assert not capture.logged("retrying")


def test_a_table_altered_in_mid_stream_is_read_anew(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    wal.run(
        "BEGIN",
        "INSERT INTO tweets VALUES (1)",
        "ALTER TABLE tweets ADD COLUMN more integer DEFAULT 7",
        "INSERT INTO tweets VALUES (2)",
        "ALTER TABLE tweets DROP COLUMN text",
        "COMMIT",
        "UPDATE tweets SET more = 8 WHERE tweet_id = 1",
        "ALTER TABLE tweets ALTER more TYPE text USING more || 'x'",
        "INSERT INTO tweets (tweet_id) VALUES (3)",
    )
    wal.wait_exact("tweets")
    assert capture.logged("table_changed")


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("alter", "back"),
    [
        ("ADD COLUMN more integer DEFAULT 7", "DROP COLUMN more"),
        ("RENAME COLUMN text TO words", "RENAME COLUMN words TO text"),
        ("ALTER COLUMN user_id TYPE text", "ALTER COLUMN user_id TYPE bigint USING user_id::bigint"),
        ("DROP CONSTRAINT tweets_pkey, ADD PRIMARY KEY (tweet_id)", "REPLICA IDENTITY FULL"),
    ],
    ids=["added and dropped", "renamed", "retyped", "identity"],
)
def test_changes_before_and_after_an_alter_come_in_one_stream(
    wal: Source, daemon: Daemons, alter: str, back: str
) -> None:
    """To a capture that stood still meanwhile, and to one that was down."""
    wal.run(insert_tweets(1, 20))
    attach_wal(wal, "tweets", "users")
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    wait_until(lambda: _stands_still(wal, capture), what="a capture that stands still between two readings")
    wal.run(*_around(alter, 1))
    capture.signal(signal.SIGCONT)
    wal.wait_exact("tweets", "users")
    assert capture.terminate() == 0
    wal.run(*_around(back, 10))
    capture = run_wal(daemon)
    wal.wait_exact("tweets", "users")
    assert not capture.logged("retrying")


def _stands_still(source: Source, capture: Daemon) -> bool:
    """Pause a capture, unless it holds a lock: whoever alters a table would wait until the server ends its session."""
    capture.signal(signal.SIGSTOP)
    is_free = source.value(FREE) is True
    if not is_free:
        capture.signal(signal.SIGCONT)
    return is_free


def _around(alter: str, first: int) -> list[str]:
    """Give changes of seven rows, and an ALTER in their middle."""
    return [
        f"UPDATE tweets SET user_id = '99' WHERE tweet_id = {first}",
        f"UPDATE tweets SET tweet_id = {first + 100} WHERE tweet_id = {first + 1}",
        f"DELETE FROM tweets WHERE tweet_id = {first + 2}",
        f"ALTER TABLE tweets {alter}",
        f"UPDATE tweets SET user_id = '98' WHERE tweet_id = {first + 3}",
        f"UPDATE tweets SET tweet_id = {first + 200} WHERE tweet_id = {first + 4}",
        f"DELETE FROM tweets WHERE tweet_id = {first + 5}",
        f"INSERT INTO tweets (tweet_id) VALUES ({first + 300})",
        f"INSERT INTO users (user_id) VALUES ({first})",
    ]


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("alter", "undo", "complaint"),
    [
        (
            "RENAME COLUMN tweet_id TO id",
            "RENAME COLUMN id TO tweet_id",
            "its key column tweet_id was dropped or renamed; undo that; or run: viewkeeper-cdc detach public.tweets",
        ),
        (
            "ALTER COLUMN tweet_id TYPE text",
            "ALTER COLUMN tweet_id TYPE bigint USING tweet_id::bigint",
            "its key column tweet_id was changed in type; undo that; or run: viewkeeper-cdc detach public.tweets",
        ),
    ],
    ids=["renamed", "retyped"],
)
def test_a_key_that_is_altered_in_mid_stream_stops_it_until_that_is_undone(
    wal: Source, daemon: Daemons, alter: str, undo: str, complaint: str
) -> None:
    wal.run(insert_tweets(1, 10))
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    wal.run(
        "DELETE FROM tweets WHERE tweet_id = 1",
        f"ALTER TABLE tweets {alter}",
        "INSERT INTO tweets VALUES ('11', 1, 'tweet 11')",
        "DELETE FROM tweets WHERE text = 'tweet 2'",
    )
    assert capture.wait() == 1
    assert complaint in capture.log_text().splitlines()[-1]
    # Its writers go on as it is: it stays where it is, and need not be read anew for that.
    assert wal.value("SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'tweets'::regclass") == 1
    wal.run(f"ALTER TABLE tweets {undo}", insert_tweets(12, 13), "DELETE FROM tweets WHERE text = 'tweet 11'")
    run_wal(daemon)
    wal.wait_exact("tweets")


def test_a_message_that_anybody_may_write_is_passed_over(wal: Source, daemon: Daemons) -> None:
    attach_wal(wal, "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("tweets")
    with other_role(wal.connection, "anybody") as anybody:
        wal.run(
            f"SET ROLE {anybody}",
            "SELECT pg_logical_emit_message(true, 'viewkeeper', 'hello')",
            "SELECT pg_logical_emit_message(true, 'viewkeeper ', '[1,[[\"no number\"]]]')",
            "RESET ROLE",
            insert_tweets(1, 10),
        )
        wal.wait_exact("tweets")
    assert capture.is_running()
    assert not capture.logged("retrying")


def test_whoever_alters_a_partition_holds_up_its_table_alone(wal: Source, daemon: Daemons) -> None:
    wal.run(
        "CREATE TABLE parted (region integer, id bigint, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
        "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)",
    )
    attach_wal(wal, "parted", "tweets")
    capture = run_wal(daemon)
    wal.wait_exact("parted", "tweets")
    with wal.session() as owner:
        owner.execute("LOCK TABLE part IN ACCESS EXCLUSIVE MODE")
        for tweet in range(1, 4):
            wal.run(insert_tweets(tweet, tweet))
            wal.wait_exact("tweets")
    wal.run("INSERT INTO parted VALUES (1, 1)")
    wal.wait_exact("parted")
    assert not capture.logged("retrying")
