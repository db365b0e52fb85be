"""What the triggers log, for every kind of statement, at both levels; no daemon runs, the log itself is read."""

import uuid

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cdc.table_options import Level
from runtime.postgres import connect
from tests.integration.logged import LEVELS, Logged, Records, keys, other_role


@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_of_statement_logs_the_keys_it_touched(logged: Logged, level: Level) -> None:
    log = logged.attach("tweets", level=level)
    expected: list[tuple[str, Records]] = [
        ("INSERT INTO tweets SELECT i FROM generate_series(1, 5) i", keys(1, 2, 3, 4, 5)),
        ("UPDATE tweets SET text = 'x' WHERE tweet_id = 1", keys(1)),
        ("UPDATE tweets SET tweet_id = 10 WHERE tweet_id = 2", keys(2, 10)),
        ("UPDATE tweets SET text = 'x' WHERE tweet_id = 99", set()),
        ("DELETE FROM tweets WHERE tweet_id IN (3, 4)", keys(3, 4)),
        (
            "INSERT INTO tweets VALUES (1), (6) ON CONFLICT (tweet_id) DO UPDATE SET text = 'upserted'",
            keys(1, 6),
        ),
        (
            (
                "MERGE INTO tweets t USING (VALUES (1), (5), (7)) AS s(id) ON t.tweet_id = s.id "
                "WHEN MATCHED AND id = 5 THEN DELETE WHEN MATCHED THEN UPDATE SET text = 'merged' "
                "WHEN NOT MATCHED THEN INSERT VALUES (s.id)"
            ),
            keys(1, 5, 7),
        ),
        (
            "BEGIN; SAVEPOINT s; INSERT INTO tweets VALUES (20); ROLLBACK TO s; INSERT INTO tweets VALUES (21); COMMIT",
            keys(21),
        ),
        ("BEGIN; INSERT INTO tweets VALUES (22); PREPARE TRANSACTION 'held'; COMMIT PREPARED 'held'", keys(22)),
        (
            "SET session_replication_role = replica; INSERT INTO tweets VALUES (23); RESET session_replication_role",
            keys(23),
        ),
        ("TRUNCATE tweets", {("truncate", None)}),
    ]
    for statement, records in expected:
        logged.run(*statement.split("; "))
        assert (statement, logged.take(log)) == (statement, records)


@pytest.mark.parametrize("level", LEVELS)
def test_copy_and_a_foreign_keys_cascade_are_logged(logged: Logged, level: Level) -> None:
    logged.run(
        "CREATE TABLE parent (id integer PRIMARY KEY)",
        "CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent ON DELETE CASCADE)",
    )
    parent, child = logged.attach("parent", level=level), logged.attach("child", level=level)
    with logged.session.cursor() as cursor, cursor.copy("COPY parent FROM STDIN") as copy:
        copy.write("1\n2\n")
    assert logged.take(parent) == keys(1, 2)
    logged.run("INSERT INTO child VALUES (7, 1), (8, 2)")
    assert logged.take(child) == keys(7, 8)
    logged.run("DELETE FROM parent WHERE id = 1")
    assert (logged.take(parent), logged.take(child)) == (keys(1), keys(7))


TYPES = [
    ("smallint", "(7)", 7),
    ("integer", "(-7)", -7),
    ("bigint", "(-9223372036854775808)", -(2**63)),
    ("text", "('a''\"\\b')", "a'\"\\b"),
    ("varchar(20)", "('ä')", "ä"),
    ("uuid", "('00000000-0000-0000-0000-0000000000ab')", "00000000-0000-0000-0000-0000000000ab"),
    ("boolean", "(true)", "true"),
    ("numeric", "(12345678901234567890.50)", "12345678901234567890.50"),
    ("numeric", "('NaN')", "NaN"),
    ("date", "('2026-02-03')", "2026-02-03"),
    ("date", "('0044-03-15 BC')", "0044-03-15 BC"),
    ("time", "('01:02:03.5')", "01:02:03.5"),
    ("timestamp", "('2026-02-03 04:05:06.7')", "2026-02-03T04:05:06.7"),
    ("timestamp", "('-infinity')", "-infinity"),
    ("timestamptz", "('2026-02-03 04:05:06+00')", "2026-02-03T14:05:06+10:00"),
    ("bytea", "('\\x00ff5c')", "\\000\\377\\\\"),
    ("inet", "('10.0.0.1')", None),
    ("cidr", "('10.0.0.0/8')", "10.0.0.0/8"),
    ("mood", "('so so')", "so so"),
    ("positive", "(7)", 7),
    ("day", "('2026-02-03')", "2026-02-03"),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("key_type", "value", "text"), TYPES)
def test_a_key_is_logged_so_that_it_can_be_read_back_under_any_settings(
    logged: Logged, level: Level, key_type: str, value: str, text: object
) -> None:
    logged.run(
        "CREATE TYPE mood AS ENUM ('so so')",
        "CREATE DOMAIN positive AS bigint CHECK (VALUE > 0)",
        "CREATE DOMAIN weekday AS date",
        "CREATE DOMAIN day AS weekday",
        f"CREATE TABLE odd (k {key_type} PRIMARY KEY)",
    )
    log = logged.attach("odd", level=level)
    logged.run(
        "SET DateStyle = 'SQL, DMY'",
        "SET TimeZone = 'Australia/Brisbane'",
        "SET bytea_output = escape",
        f"INSERT INTO odd VALUES {value}",
        "RESET ALL",
    )
    ((mark, found),) = logged.records(log)
    assert mark is None
    assert found == text or text is None
    read_back = logged.session.execute(f"SELECT k = CAST(%s::text AS {key_type}) FROM odd", (str(found),)).fetchone()
    assert read_back == (True,)


@pytest.mark.parametrize("level", LEVELS)
def test_a_composite_key_is_logged_in_the_order_that_was_given(logged: Logged, level: Level) -> None:
    some = uuid.uuid4()
    # Names that the triggers' own SQL and language use, too.
    logged.run(
        'CREATE TABLE odd ("found" integer NOT NULL, "k1" uuid NOT NULL, "new_rows" text NOT NULL, '
        '"room" integer NOT NULL, "tg_op" text)',
        "CREATE UNIQUE INDEX ON odd (found, k1, new_rows, room) INCLUDE (tg_op)",
    )
    log = logged.attach("odd", level=level, key=("new_rows", "found", "k1", "room"))
    logged.run(f"INSERT INTO odd VALUES (1, '{some}', 'a', 0)", "UPDATE odd SET new_rows = 'b'")
    assert logged.records(log) == {(None, "a", 1, str(some), 0), (None, "b", 1, str(some), 0)}


@pytest.mark.parametrize("level", LEVELS)
def test_one_statement_logs_no_more_than_there_is_room_for(logged: Logged, level: Level) -> None:
    log, limit = logged.attach("tweets", level=level), 10 * 8192
    logged.run(f"UPDATE cdc.captured_table SET log_limit_bytes = {limit}")
    logged.run("INSERT INTO tweets SELECT i FROM generate_series(1, 50000) i")
    logged.run("UPDATE cdc.captured_table SET active_part = 1", "UPDATE tweets SET tweet_id = -tweet_id")
    assert logged.session.execute("SELECT count(*) FROM tweets").fetchone() == (50000,)
    for part in (f"cdc.log_{log}_0", f"cdc.log_{log}_1"):
        size = f"SELECT pg_relation_size('{part}') <= {limit + 8192}, count(*) FROM {part} WHERE mark = 'limit'"
        assert logged.session.execute(size.encode()).fetchone() == (True, 1)


def test_writers_need_no_rights_on_the_log(logged: Logged, source_url: str) -> None:
    log = logged.attach("tweets")
    with other_role(logged.session, "writer") as writer:
        logged.run(f"GRANT INSERT ON tweets TO {writer}")
        user = conninfo_to_dict(source_url)["user"]
        with connect(source_url.replace(f"{user}@", f"{writer}@", 1), name="test") as session:
            session.execute("INSERT INTO tweets VALUES (1)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT cdc.log_changes('public.tweets', '{1}')")
    assert logged.records(log) == keys(1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_full_part_takes_one_mark_and_no_more_keys_until_it_is_emptied(logged: Logged, level: Level) -> None:
    log = logged.attach("tweets", level=level)
    logged.run("UPDATE cdc.captured_table SET log_limit_bytes = 8192", "INSERT INTO tweets VALUES (1)")
    logged.run("INSERT INTO tweets VALUES (2)", "DELETE FROM tweets WHERE tweet_id = 2")
    logged.run("SELECT cdc.log_changes('public.tweets', '{5}')")
    rows = logged.session.execute(f"SELECT mark, k1 FROM cdc.log_{log}_0 ORDER BY xid").fetchall()
    assert rows == [(None, 1), ("limit", None)]
    logged.run("UPDATE cdc.captured_table SET active_part = 1", "INSERT INTO tweets VALUES (3)")
    logged.run("INSERT INTO tweets VALUES (4)")
    assert logged.take(log) == {(None, 1), (None, 3), ("limit", None)}
    logged.run("INSERT INTO tweets VALUES (6)")
    assert logged.take(log) == keys(6)


def test_a_writer_that_found_the_part_full_keeps_it_from_being_emptied(logged: Logged, source_url: str) -> None:
    log = logged.attach("tweets")
    logged.run("UPDATE cdc.captured_table SET log_limit_bytes = 0", "INSERT INTO tweets VALUES (1)")
    assert logged.records(log) == {("limit", None)}
    with psycopg.connect(source_url) as writer:
        writer.execute("INSERT INTO tweets VALUES (2)")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            logged.run(f"BEGIN; LOCK TABLE cdc.log_{log}_0 IN ACCESS EXCLUSIVE MODE NOWAIT")


@pytest.mark.parametrize("level", LEVELS)
def test_a_writer_whose_snapshot_is_older_than_the_attachment_is_logged(
    logged: Logged, source_url: str, level: Level
) -> None:
    with psycopg.connect(source_url) as writer:
        writer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        writer.execute("SELECT")
        log = logged.attach("tweets", level=level)
        writer.execute("INSERT INTO tweets VALUES (1)")
        writer.commit()
    assert logged.records(log) == keys(1)


def test_keys_of_a_view_are_logged_by_whoever_says_so(logged: Logged) -> None:
    logged.run("CREATE VIEW busy AS SELECT user_id, text FROM tweets")
    log = logged.attach("busy", key=("text", "user_id"))
    logged.run(
        "INSERT INTO tweets VALUES (1)",
        # Of two keys one is NULL in part: no row has it.
        """SELECT cdc.log_changes('public.busy', '{"a,b",b,NULL}', '{1,2,3}')""",
        "SELECT cdc.log_changes('public.users', '{1}')",
    )
    assert logged.records(log) == {(None, "a,b", 1), (None, "b", 2)}
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"the key of public.busy is \(text, user_id\)"):
        logged.run("SELECT cdc.log_changes('public.busy', '{1}')")
