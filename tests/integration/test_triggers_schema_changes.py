"""Whatever is done to an attached table, those who write to it go on; what the log cannot say any more, a mark says."""

import re

import psycopg
import pytest

from cdc.errors import CaptureError
from cdc.table_options import Level
from cdc.tables import captured_tables
from tests.integration.logged import LEVELS, Logged, Records, keys

WRITE = "UPDATE t SET v = v || 'x'"
NO_KEY: Records = {("key", None)}

# What is done, how a row is inserted then, and what is logged of the row that was there and of that one.
CHANGES: list[tuple[str, str, Records, Records]] = [
    (change, f"INSERT INTO t {insert}", NO_KEY, NO_KEY)
    for change, insert in [
        ("ALTER TABLE t RENAME COLUMN id TO renamed", "(renamed, v) VALUES (2, 'y')"),
        ("ALTER TABLE t DROP COLUMN id", "(v) VALUES ('y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE uuid USING gen_random_uuid()", "VALUES (0, gen_random_uuid(), 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE text", "VALUES (0, 'two', 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE numeric USING id + 0.5", "VALUES (0, 2.5, 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE numeric USING 1e30", "VALUES (0, 2e30, 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE numeric USING 9e18::numeric * 1.1", "VALUES (0, 9.5e18, 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE integer[] USING ARRAY[id]", "VALUES (0, '{2}', 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE jsonb USING '[1]'::jsonb", "VALUES (0, '{}', 'y')"),
        (
            "ALTER TABLE t RENAME COLUMN id TO old; ALTER TABLE t ADD COLUMN id boolean",
            "VALUES (0, 2, 'y', true)",
        ),
        (
            "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ALTER id DROP NOT NULL; UPDATE t SET id = NULL",
            "(v) VALUES ('y')",
        ),
    ]
] + [
    (change, f"INSERT INTO t {insert}", keys(1), keys(2))
    for change, insert in [
        ("ALTER TABLE t ALTER COLUMN id TYPE bigint", "VALUES (0, 2, 'y')"),
        ("ALTER TABLE t ALTER COLUMN id TYPE smallint", "VALUES (0, 2, 'y')"),
        ("ALTER TABLE t RENAME TO elsewhere; CREATE VIEW t AS TABLE elsewhere", "VALUES (0, 2, 'y')"),
        ("ALTER TABLE t SET SCHEMA cdc; CREATE VIEW t AS TABLE cdc.t", "VALUES (0, 2, 'y')"),
        ("ALTER TABLE t DROP COLUMN a", "VALUES (2, 'y')"),
        ("ALTER TABLE t ADD COLUMN z text DEFAULT 'z'", "VALUES (0, 2, 'y')"),
        ("ALTER TABLE t ALTER COLUMN a TYPE text", "VALUES ('a', 2, 'y')"),
    ]
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("change", "insert", "of_old", "of_new"), CHANGES, ids=[each[0] for each in CHANGES])
def test_writers_go_on_with_plans_and_snapshots_from_before_a_change(
    logged: Logged, source_url: str, level: Level, change: str, insert: str, of_old: Records, of_new: Records
) -> None:
    logged.run("CREATE TABLE t (a integer, id integer PRIMARY KEY, v text)", "INSERT INTO t VALUES (0, 1, 'v')")
    log = logged.attach("t", level=level)
    with psycopg.connect(source_url, autocommit=True) as cached, psycopg.connect(source_url) as old:
        # More often than Postgres plans anew for each execution.
        for _ in range(7):
            cached.execute(WRITE.encode())
        # Its snapshot is older than the change, and it holds no lock yet.
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT")
        logged.run(*change.split("; "))
        logged.take(log)
        cached.execute(WRITE.encode())
        assert logged.take(log) == of_old
        old.execute(insert.encode())
        old.commit()
        assert logged.take(log) == of_new


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("key_type", "value"), [("uuid", "gen_random_uuid()"), ("date", "now()"), ("boolean", "true"), ("numeric", "1")]
)
def test_a_text_that_is_no_longer_of_the_keys_type_is_not_logged(
    logged: Logged, level: Level, key_type: str, value: str
) -> None:
    logged.run(f"CREATE TABLE t (id {key_type} PRIMARY KEY)", f"INSERT INTO t VALUES ({value})")
    log = logged.attach("t", level=level)
    logged.run("DELETE FROM t", "ALTER TABLE t ALTER COLUMN id TYPE text")
    logged.take(log)
    logged.run("INSERT INTO t VALUES ('something else')")
    assert logged.records(log) == NO_KEY


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("ALTER TABLE t RENAME COLUMN id TO renamed", "its key column id was dropped or renamed"),
        ("ALTER TABLE t ALTER COLUMN id TYPE uuid USING gen_random_uuid()", "its key column id was changed in type"),
        ("ALTER TABLE t ALTER COLUMN id TYPE numeric", "its key column id was changed in type"),
        ("ALTER TABLE t RENAME TO elsewhere", "the table was dropped or renamed"),
        ("DROP TABLE t", "the table was dropped or renamed"),
        ("DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY)", "the table was dropped or renamed"),
    ],
)
def test_c11_a_changed_key_stops_the_capture_with_the_steps(logged: Logged, change: str, complaint: str) -> None:
    logged.run("CREATE TABLE t (id integer PRIMARY KEY)")
    logged.attach("t")
    logged.run("ALTER TABLE t ALTER COLUMN id TYPE bigint")
    assert [str(table.name) for table in captured_tables(logged.session, "viewkeeper")] == ["public.t"]
    logged.run(*change.split("; "))
    steps = "undo that; or run: viewkeeper-cdc detach public.t, delete its topic, run: viewkeeper-cdc attach public.t"
    with pytest.raises(CaptureError, match=re.escape(f"public.t: {complaint}; {steps}")):
        captured_tables(logged.session, "viewkeeper")
