"""What can be attached and how, what is refused and why, and what detach leaves behind: nothing."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import cdc.attachment
from cdc.attachment import attach, detach
from cdc.rights import missing_rights
from cdc.session import SESSION
from cdc.table_options import Level
from cdc.tables import CapturedTable, Column, Kind, SourceKind, captured_tables
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.postgres import DatabaseUnavailable, LockNotAvailable, connect
from tests.integration.logged import LEVELS, Logged, keys, other_role
from tests.waiting import wait_until

ODD = TableName("public", "odd")
OURS = """
SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'viewkeeper%%'),
       (SELECT count(*) FROM pg_class WHERE relnamespace = 'cdc'::regnamespace AND relname LIKE 'log\\_%%'),
       (SELECT count(*) FROM pg_proc WHERE pronamespace = 'cdc'::regnamespace AND proname ~ '^log_[0-9]')
"""

WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"


PRIMARY = [
    ("a float PRIMARY KEY", "has key column a of type double precision"),
    ("a char(3) PRIMARY KEY", "has key column a of type character(3)"),
    ("a interval PRIMARY KEY", "has key column a of type interval"),
    ("a timetz PRIMARY KEY", "has key column a of type time with time zone"),
    ("a jsonb PRIMARY KEY", "has key column a of type jsonb"),
    ("a integer[] PRIMARY KEY", "has key column a of type integer[]"),
    ("a money PRIMARY KEY", "has key column a of type money"),
    ("a int4range PRIMARY KEY", "has key column a of type int4range"),
    ("a text COLLATE nocase PRIMARY KEY", "has key column a of type text with a nondeterministic collation"),
    ("a integer, b half, PRIMARY KEY (a, b)", "has key column b of type public.half"),
    ("a integer", "has no primary key, and changes are keyed by it: add one, or name the columns of a unique index"),
]


@pytest.mark.parametrize(("columns", "complaint"), PRIMARY)
def test_c10_a_key_whose_equality_is_not_that_of_its_text_is_refused(
    logged: Logged, columns: str, complaint: str
) -> None:
    logged.run(
        "CREATE COLLATION nocase (locale = 'C')",
        "CREATE DOMAIN half AS real",
        f"CREATE TABLE odd ({columns})",
        # As one of ICU's, which not every server is built with.
        "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'nocase'",
    )
    with pytest.raises(ConfigurationError, match=re.escape(f"table public.odd {complaint}")):
        attach(logged.session, "viewkeeper", ODD, where="test")


@pytest.mark.parametrize(
    ("index", "key"),
    [
        ("CREATE INDEX ON odd (a, b)", ("a", "b")),
        ("CREATE UNIQUE INDEX ON odd (a, b) WHERE a > 0", ("a", "b")),
        ("CREATE UNIQUE INDEX ON odd (a, lower(b))", ("a",)),
        ("CREATE UNIQUE INDEX ON odd (a) INCLUDE (b)", ("a", "b")),
        ("CREATE UNIQUE INDEX ON odd (a, nullable)", ("a", "nullable")),
        ("ALTER TABLE odd ADD UNIQUE (a, b) DEFERRABLE INITIALLY IMMEDIATE", ("a", "b")),
        ("CREATE UNIQUE INDEX ON odd (a, b)", ("a",)),
    ],
)
def test_a_key_without_a_plain_unique_index_is_refused(logged: Logged, index: str, key: tuple[str, ...]) -> None:
    logged.run("CREATE TABLE odd (a integer NOT NULL, b text NOT NULL, nullable integer)", index)
    with pytest.raises(ConfigurationError, match=re.escape(f"no unique index on exactly ({', '.join(key)})")):
        attach(logged.session, "viewkeeper", ODD, where="test", key=key)


@pytest.mark.parametrize(
    ("statements", "table", "complaint"),
    [
        ("CREATE UNLOGGED TABLE odd (a integer PRIMARY KEY)", "odd", "is unlogged or temporary"),
        ("CREATE TABLE odd (a integer PRIMARY KEY); CREATE TABLE c () INHERITS (odd)", "odd", "in inheritance"),
        (
            "CREATE TABLE odd (a integer PRIMARY KEY); CREATE TABLE c (PRIMARY KEY (a)) INHERITS (odd)",
            "c",
            "inheritance",
        ),
        ("CREATE MATERIALIZED VIEW odd AS SELECT 1 AS a", "odd", "is not a table, a partitioned table or a plain view"),
        ("CREATE VIEW odd AS SELECT 1 AS a", "odd", "name the columns of its key, --key a,b"),
        (
            (
                "CREATE TABLE odd (a integer PRIMARY KEY) PARTITION BY LIST (a); "
                "CREATE TABLE one PARTITION OF odd FOR VALUES IN (1)"
            ),
            "one",
            "is a partition by itself: attach its root, public.odd",
        ),
        (
            (
                "CREATE TABLE odd (a integer PRIMARY KEY) PARTITION BY LIST (a); "
                "CREATE UNLOGGED TABLE one PARTITION OF odd FOR VALUES IN (1)"
            ),
            "odd",
            "has the unlogged partition public.one",
        ),
        (
            (
                "CREATE TABLE odd (a integer NOT NULL) PARTITION BY LIST (a); CREATE FOREIGN DATA WRAPPER far; "
                "CREATE SERVER away FOREIGN DATA WRAPPER far; "
                "CREATE FOREIGN TABLE one PARTITION OF odd FOR VALUES IN (1) SERVER away"
            ),
            "odd",
            "has the foreign table public.one as a partition",
        ),
    ],
)
def test_a_relation_whose_changes_would_escape_is_refused(
    logged: Logged, statements: str, table: str, complaint: str
) -> None:
    logged.run("SET search_path = public", *statements.split("; "), "SET search_path = ''")
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        attach(logged.session, "viewkeeper", TableName("public", table), where="test")


def test_c2_a_subscriptions_target_wants_the_row_level(logged: Logged) -> None:
    name = logged.session.info.dbname
    logged.run(
        f"CREATE SUBSCRIPTION s CONNECTION 'dbname={name}' PUBLICATION p WITH (connect = false, slot_name = NONE)",
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) "
        "SELECT oid, 'public.tweets'::regclass, 'r' FROM pg_subscription WHERE subdbid = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    with pytest.raises(ConfigurationError, match="attach it with --level row"):
        logged.attach("tweets")
    logged.attach("tweets", level=Level.ROW)
    logged.run("DELETE FROM pg_subscription_rel", "DROP SUBSCRIPTION s")


def test_an_attached_table_is_not_attached_otherwise_without_a_word(logged: Logged) -> None:
    logged.attach("tweets", level=Level.ROW)
    assert not attach(logged.session, "viewkeeper", TableName("public", "tweets"), where="test")
    for level, key in [(Level.STATEMENT, None), (None, ("user_id",))]:
        with pytest.raises(
            ConfigurationError, match="is attached with level row and key tweet_id; to change that, detach"
        ):
            attach(logged.session, "viewkeeper", TableName("public", "tweets"), where="test", level=level, key=key)


def test_a_captured_table_knows_its_key_and_its_types(logged: Logged) -> None:
    logged.run(
        'CREATE SCHEMA "Odd %"',
        """CREATE TYPE "Odd %"."Mood" AS ENUM ('fine')""",
        'CREATE DOMAIN "Odd %".age AS bigint',
        'CREATE TABLE odd (v text[], a "Odd %".age, m "Odd %"."Mood", ms "Odd %"."Mood"[], r int4range, '
        "s varchar(3), PRIMARY KEY (m, a))",
    )
    log = logged.attach("odd", level=Level.ROW, key=("a", "m"))
    (table,) = captured_tables(logged.session, "viewkeeper")
    row = logged.session.execute("SELECT 'odd'::regclass::oid").fetchone()
    assert row is not None
    a = Column("a", "bigint", '"Odd %".age')
    m = Column("m", '"Odd %"."Mood"', '"Odd %"."Mood"')
    columns = (
        Column("v", "text[]", "text[]"),
        a,
        m,
        Column("ms", '"Odd %"."Mood"[]', '"Odd %"."_Mood"'),
        Column("r", "int4range", "int4range"),
        Column("s", "character varying", "character varying", type_modifier=3 + 4),
    )
    label = logged.session.execute("SELECT oid || ' fine' FROM pg_enum WHERE enumlabel = 'fine'").fetchone()
    assert label is not None
    assert table == CapturedTable(log, row[0], row[0], False, ODD, Kind.TABLE, Level.ROW, (a, m), columns, label)
    found = logged.session.execute("SELECT key_types FROM cdc.captured_table").fetchone()
    assert found == (["bigint", "text"],)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("SELECT", "t"),
        ("ALTER TABLE t RENAME TO renamed", "t"),
        ("ALTER TABLE t RENAME TO renamed", "renamed"),
        ("ALTER TABLE t SET SCHEMA cdc", "t"),
        ("DROP TABLE t", "t"),
        ("ALTER TABLE t RENAME COLUMN id TO other", "t"),
    ],
)
def test_detach_leaves_nothing_whatever_became_of_the_table(
    logged: Logged, level: Level, change: str, name: str
) -> None:
    logged.run("CREATE TABLE t (id integer PRIMARY KEY)")
    log = logged.attach("t", level=level)
    logged.run(f"INSERT INTO cdc.request (capture, attachment, kind) VALUES ('viewkeeper', {log}, 'snapshot')", change)
    assert detach(logged.session, "viewkeeper", TableName("public", name), where="test")
    assert logged.session.execute(OURS).fetchone() == (0, 0, 0)
    assert not detach(logged.session, "viewkeeper", TableName("public", name), where="test")


def test_what_a_role_lacks_is_said_at_once(logged: Logged, source_url: str) -> None:
    owner = conninfo_to_dict(source_url)["user"]
    logged.run(
        "CREATE TABLE t (id integer PRIMARY KEY) PARTITION BY LIST (id)", "CREATE TABLE one PARTITION OF t DEFAULT"
    )
    with other_role(logged.session, "stranger") as role:
        with (
            connect(source_url.replace(f"{owner}@", f"{role}@", 1), name="test", settings=SESSION) as session,
            pytest.raises(ConfigurationError) as failed,
        ):
            attach(session, "viewkeeper", TableName("public", "t"), where="test")
        assert str(failed.value).splitlines() == [
            "test: public.t cannot be attached; this role lacks:",
            "  - ownership of public.one (triggers that fire always want the owner)",
            "  - ownership of public.t (triggers that fire always want the owner)",
            "  - CREATE on schema cdc",
            "  - USAGE on schema cdc",
            "  - INSERT on cdc.captured_table",
            "  - SELECT on cdc.captured_table",
            "  - INSERT on cdc.capture",
            (
                "somebody who has these rights attaches the table; VIEWKEEPER_CDC_SOURCE=wal makes no triggers, and "
                "wants REPLICATION and CREATE on the database instead; VIEWKEEPER_CDC_SOURCE=timestamp needs SELECT "
                "alone, and sees less"
            ),
        ]


@pytest.mark.parametrize("level", LEVELS)
def test_a_tables_owner_attaches_it_once_nothing_is_missing(logged: Logged, source_url: str, level: Level) -> None:
    superuser = conninfo_to_dict(source_url)["user"]
    with other_role(logged.session, "owner") as role, other_role(logged.session, "captor") as captor:
        logged.run(
            f"CREATE SCHEMA theirs AUTHORIZATION {role}",
            f"ALTER SCHEMA cdc OWNER TO {captor}",
            f"ALTER TABLE cdc.captured_table OWNER TO {captor}",
            f"GRANT USAGE, CREATE ON SCHEMA cdc TO {role}",
            f"GRANT SELECT, INSERT ON cdc.captured_table TO {role}",
            f"GRANT INSERT ON cdc.capture TO {role}",
        )
        with connect(source_url.replace(f"{superuser}@", f"{role}@", 1), name="test", settings=SESSION) as session:
            session.execute("CREATE TABLE theirs.t (id integer PRIMARY KEY)")
            oid = session.execute("SELECT 'theirs.t'::regclass::oid").fetchone()
            assert oid is not None
            assert missing_rights(session, oid[0], "theirs.t", row_level=level is Level.ROW, by_view=False) == [
                f"USAGE on schema theirs for role {captor}, which reads the rows",
                f"SELECT on theirs.t for role {captor}, which reads the rows",
            ]
            session.execute(f"GRANT USAGE ON SCHEMA theirs TO {captor}".encode())
            session.execute(f"GRANT SELECT ON theirs.t TO {captor}".encode())
            assert attach(session, "viewkeeper", TableName("theirs", "t"), where="test", level=level)
            session.execute("INSERT INTO theirs.t VALUES (1)")
        logged.run(f"SET ROLE {captor}")
        assert logged.take(1) == keys(1)
        logged.run("RESET ROLE")


def test_row_triggers_log_as_the_tables_owner_and_as_nobody_greater(logged: Logged) -> None:
    """A row's JSON runs casts that the table's owner may have made: not as the superuser who attached the table."""
    with other_role(logged.session, "owner") as role:
        logged.run("CREATE TABLE t (id integer PRIMARY KEY)", f"ALTER TABLE t OWNER TO {role}")
        log = logged.attach("t", level=Level.ROW)
        row = logged.session.execute(
            "SELECT array_agg(DISTINCT proowner::regrole::text), bool_and(prosecdef) FROM pg_proc "
            "WHERE pronamespace = 'cdc'::regnamespace AND proname ~ '^log_[0-9]'"
        ).fetchone()
        assert row == ([role], True)
        logged.run("INSERT INTO t VALUES (1)")
        assert logged.records(log) == keys(1)


@pytest.mark.parametrize("level", LEVELS)
def test_writers_go_on_when_the_table_gets_another_owner(logged: Logged, level: Level) -> None:
    with other_role(logged.session, "owner") as role, other_role(logged.session, "heir") as heir:
        logged.run("CREATE TABLE t (id integer PRIMARY KEY)", f"ALTER TABLE t OWNER TO {role}")
        log = logged.attach("t", level=level)
        logged.run(f"ALTER TABLE t OWNER TO {heir}", f"SET ROLE {heir}", "INSERT INTO t VALUES (1)", "RESET ROLE")
        assert logged.take(log) == keys(1)
        logged.run(f"REASSIGN OWNED BY {role} TO {heir}", f"DROP OWNED BY {role}", f"SET ROLE {heir}")
        for statement in (
            "INSERT INTO t VALUES (2)",
            "UPDATE t SET id = 3 WHERE id = 2",
            "DELETE FROM t",
            "TRUNCATE t",
        ):
            logged.run(statement)
        logged.run("RESET ROLE")
        assert logged.session.execute("SELECT cdc.complete(%s)", (log,)).fetchone() == (level is Level.ROW,)
        logged.take(log)
        logged.run(f"SET ROLE {heir}", "INSERT INTO t VALUES (4)", "RESET ROLE")
        assert logged.records(log) == keys(4)


def test_attach_sees_a_table_with_a_percent_sign(logged: Logged) -> None:
    logged.run('CREATE TABLE t ("100%" integer, "a""b" text, PRIMARY KEY ("100%", "a""b"))')
    log = logged.attach("t")
    logged.run("INSERT INTO t VALUES (1, 'x')")
    assert logged.records(log) == {(None, 1, "x")}


def test_a_table_that_took_anothers_name_is_not_taken_for_it(logged: Logged) -> None:
    logged.run("CREATE TABLE t (id integer PRIMARY KEY)")
    logged.attach("t")
    logged.run("DROP TABLE t", "CREATE TABLE t (id integer PRIMARY KEY)")
    with pytest.raises(ConfigurationError, match=r"another table is attached under the name public\.t, and it is gone"):
        attach(logged.session, "viewkeeper", TableName("public", "t"), where="test")


def test_attach_waits_for_no_one_for_long(logged: Logged, source_url: str) -> None:
    with psycopg.connect(source_url) as holder, connect(source_url, name="test", settings=SESSION) as session:
        holder.execute("INSERT INTO tweets VALUES (1)")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute("SELECT cdc.attach('viewkeeper', 'public.tweets')")
        assert logged.session.execute(OURS).fetchone() == (0, 0, 0)


@pytest.mark.newest_postgres
@pytest.mark.parametrize("call", [attach, detach])
def test_who_waited_in_vain_for_a_lock_is_told_where_to_look(
    logged: Logged, source_url: str, monkeypatch: pytest.MonkeyPatch, call: Callable[..., bool]
) -> None:
    monkeypatch.setattr(cdc.attachment, "PATIENCE_SECONDS", 0.2)
    table = TableName("public", "tweets")
    if call is detach:
        attach(logged.session, "viewkeeper", table, where="test")
    with psycopg.connect(source_url) as holder, connect(source_url, name="test", settings=SESSION) as session:
        holder.execute("INSERT INTO tweets VALUES (1)")
        with pytest.raises(
            LockNotAvailable, match=r"^test: other transactions keep public\.tweets locked, .* pg_locks"
        ):
            call(session, "viewkeeper", table, where="test")


@pytest.mark.newest_postgres
@pytest.mark.parametrize("kind", [SourceKind.TRIGGERS, SourceKind.WAL])
def test_what_has_closed_the_connection_of_an_attach_is_told(logged: Logged, source_url: str, kind: SourceKind) -> None:
    patient = {**SESSION, "lock_timeout": "30s"}
    with psycopg.connect(source_url) as holder, connect(source_url, name="test", settings=patient) as session:
        # A slot waits for transactions that have written, a trigger for those that have written into its table.
        holder.execute("INSERT INTO tweets VALUES (1)")
        backend = session.info.backend_pid
        with ThreadPoolExecutor(1) as executor:
            attached = executor.submit(
                attach, session, "viewkeeper", TableName("public", "tweets"), where="test", source=kind
            )
            wait_until(lambda: logged.session.execute(WAITS, [backend]).fetchone() == (True,), what="attach to wait")
            logged.session.execute("SELECT pg_terminate_backend(%s)", [backend])
            with pytest.raises(DatabaseUnavailable, match="terminating connection"):
                attached.result()
