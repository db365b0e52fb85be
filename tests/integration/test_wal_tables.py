"""What the WAL says of tables: identities, partitions, values out of line, transactions larger than memory."""

import re

import pytest

from cdc.attachment import attach
from cdc.tables import SourceKind
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.integration.logged import other_role
from tests.integration.wal_steps import SMALL_PAGES, attach_wal, run_wal

LARGE_ROWS = 3_000


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
            "ALTER TABLE told DROP CONSTRAINT told_pkey; CREATE UNIQUE INDEX ON told (a)",
            ("a",),
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


def test_a_partitioned_table_without_a_primary_key_is_refused(wal: Source) -> None:
    """A later partition would have no replica identity, and its writers would fail."""
    wal.run(
        "CREATE TABLE split (id bigint NOT NULL, v text) PARTITION BY RANGE (id)",
        "CREATE UNIQUE INDEX ON split (id)",
    )
    with pytest.raises(ConfigurationError, match="is partitioned and has no primary key"):
        attach_wal(wal, "split", key=("id",))


def test_a_view_is_refused(wal: Source) -> None:
    wal.run("CREATE VIEW shown AS SELECT * FROM tweets")
    with pytest.raises(ConfigurationError, match=f"is a view.*VIEWKEEPER_CDC_SOURCE={SourceKind.TRIGGERS}"):
        attach_wal(wal, "shown", key=("tweet_id",))


def test_what_a_role_lacks_is_said_before_anything_is_made(wal: Source) -> None:
    name = TableName.parse("tweets")
    with other_role(wal.connection, "stranger") as role:
        wal.run(f"SET ROLE {role}")
        with pytest.raises(ConfigurationError) as refused:
            attach(wal.connection, CAPTURE, name, where="test", source=SourceKind.WAL)
        wal.run("RESET ROLE")
    lines = str(refused.value).splitlines()
    assert "  - ownership of public.tweets (a publication takes tables of one's own)" in lines
    assert f"  - CREATE on database {wal.value('SELECT current_database()')}, for a publication" in lines
    assert "  - the attribute REPLICATION, for a replication slot" in lines
    assert wal.value("SELECT count(*) FROM pg_publication") == 0


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
