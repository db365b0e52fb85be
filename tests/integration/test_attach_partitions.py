"""A partitioned table is attached by its root; whatever is done to whichever of its parts is logged once."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from cdc.attachment import detach
from cdc.rights import missing_rights
from cdc.session import SESSION
from cdc.status_source import StatusSource
from cdc.table_options import Level
from cdc.tables import Kind, captured_tables
from cdc.wire import TableName
from runtime.postgres import connect
from tests.integration.logged import LEVELS, Logged, Records, keys, other_role
from tests.waiting import wait_until

# A root with a leaf, and a part with a leaf of its own whose columns stand in another order.
TREE = (
    "CREATE TABLE root (a text, id integer PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE mid PARTITION OF root FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id)",
    "CREATE TABLE deep (id integer PRIMARY KEY, gone integer, a text)",
    "ALTER TABLE deep DROP COLUMN gone",
    "ALTER TABLE mid ATTACH PARTITION deep FOR VALUES FROM (100) TO (150)",
)
LATER = (
    "CREATE TABLE later (a text, id integer PRIMARY KEY)",
    "ALTER TABLE root ATTACH PARTITION later FOR VALUES FROM (200) TO (300)",
)
TRIGGERS = """
SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'viewkeeper%' ORDER BY 1, 2
"""


def records_in_number(logged: Logged, log: int) -> int:
    row = logged.session.execute(f"SELECT count(*) FROM cdc.log_{log}_0").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("level", LEVELS)
def test_statements_at_the_root_a_part_and_a_leaf_are_logged_once(logged: Logged, level: Level) -> None:
    logged.run(*TREE)
    log = logged.attach("root", level=level)
    assert [table.kind for table in captured_tables(logged.session, "viewkeeper")] == [Kind.PARTITIONED]
    expected: list[tuple[str, Records]] = [
        ("INSERT INTO root VALUES ('x', 1), ('x', 101)", keys(1, 101)),
        ("INSERT INTO low VALUES ('x', 2)", keys(2)),
        ("INSERT INTO mid VALUES ('x', 102)", keys(102)),
        ("INSERT INTO deep VALUES (103, 'x')", keys(103)),
        ("UPDATE deep SET a = 'y' WHERE id = 103", keys(103)),
        ("UPDATE root SET id = 150 - id WHERE id IN (1, 101)", keys(1, 101, 149, 49)),
        ("DELETE FROM root WHERE id = 2", keys(2)),
        ("DELETE FROM low", keys(49)),
    ]
    for statement, records in expected:
        logged.run(statement)
        assert (statement, records_in_number(logged, log)) == (statement, len(records))
        assert (statement, logged.take(log)) == (statement, records)
    for relation in ("root", "mid", "deep"):
        logged.run(f"TRUNCATE {relation}")
        assert (relation, records_in_number(logged, log)) == (relation, 1)
        assert (relation, logged.take(log)) == (relation, {("truncate", None)})


@pytest.mark.parametrize("level", LEVELS)
def test_all_triggers_fire_always_also_the_clones_of_later_partitions(logged: Logged, level: Level) -> None:
    logged.run(*TREE)
    log = logged.attach("root", level=level)
    logged.run(*LATER, f"SELECT cdc.complete({log})")
    triggers = logged.session.execute(TRIGGERS).fetchall()
    names = [f"viewkeeper_{log}_{operation}" for operation in ("delete", "insert", "truncate", "update")]
    relations = ["deep", "later", "low", "mid", "root"]
    assert triggers == [(relation, name, "A") for relation in relations for name in names]


@pytest.mark.parametrize("level", LEVELS)
def test_c2_a_partition_that_came_later_is_completed(logged: Logged, level: Level) -> None:
    logged.run(*TREE)
    log = logged.attach("root", level=level)
    assert logged.session.execute("SELECT cdc.complete(%s)", (log,)).fetchone() == (False,)
    logged.run(*LATER)
    assert logged.session.execute("SELECT cdc.complete(%s)", (log,)).fetchone() == (True,)
    logged.run("INSERT INTO later VALUES ('x', 201)", "TRUNCATE later")
    assert logged.take(log) == {*keys(201), ("truncate", None)}
    assert logged.session.execute("SELECT cdc.complete(%s)", (log,)).fetchone() == (False,)


@pytest.mark.parametrize("level", LEVELS)
def test_a_detached_partition_logs_no_more_once_completed(logged: Logged, level: Level) -> None:
    logged.run(*TREE)
    log = logged.attach("root", level=level)
    logged.run("ALTER TABLE root DETACH PARTITION low", "ALTER TABLE root DETACH PARTITION mid")
    assert logged.session.execute("SELECT cdc.complete(%s)", (log,)).fetchone() == (False,)
    logged.run("INSERT INTO low VALUES ('x', 1)", "INSERT INTO deep VALUES (101, 'x')", "TRUNCATE low, deep")
    assert logged.records(log) == set()


def test_a_partition_that_goes_while_the_others_are_completed_is_passed_over(logged: Logged, source_url: str) -> None:
    logged.run(*TREE)
    log = logged.attach("root")
    logged.run(
        "CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (200) TO (300)",
        "CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (300) TO (400)",
    )
    with connect(source_url, name="test") as other, ThreadPoolExecutor(1) as executor:
        with logged.session.transaction():
            # root_1, whose turn is before it, keeps the one who completes the tree until root_2 is gone.
            logged.run("LOCK TABLE root_1 IN ACCESS EXCLUSIVE MODE", "DROP TABLE root_2")
            completed = executor.submit(other.execute, "SELECT cdc.complete(%s)", (log,))
            blocked_by = "SELECT cardinality(pg_blocking_pids(%s))"
            wait_until(
                lambda: logged.session.execute(blocked_by, (other.info.backend_pid,)).fetchone() == (1,),
                what="the one who completes the tree to wait",
            )
        assert completed.result().fetchone() == (True,)
    logged.run("INSERT INTO root VALUES ('x', 201)")
    assert logged.take(log) == keys(201)


def test_a_partition_that_cannot_be_captured_is_refused_when_it_comes_later(logged: Logged) -> None:
    logged.run(*TREE)
    log = logged.attach("root")
    logged.run("CREATE UNLOGGED TABLE later PARTITION OF root FOR VALUES FROM (200) TO (300)")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"has the unlogged partition public\.later"):
        logged.run(f"SELECT cdc.complete({log})")


@pytest.mark.parametrize("level", LEVELS)
def test_detach_takes_the_triggers_off_all_parts(logged: Logged, level: Level) -> None:
    logged.run(*TREE)
    logged.attach("root", level=level)
    logged.run("ALTER TABLE root DETACH PARTITION low")
    assert detach(logged.session, "viewkeeper", TableName("public", "root"), where="test")
    assert logged.session.execute(TRIGGERS).fetchall() == []
    logged.run("INSERT INTO root VALUES ('x', 101)", "INSERT INTO low VALUES ('x', 1)")


def test_complete_and_the_logging_of_keys_are_for_those_alone_who_were_given_them(logged: Logged) -> None:
    log = logged.attach("tweets")
    with other_role(logged.session, "stranger") as role:
        logged.run(f"GRANT USAGE ON SCHEMA cdc TO {role}", f"SET ROLE {role}")
        logs = ("cdc.log_changes('public.tweets', '{1}')", f"cdc.log_keys({log}, '{{1}}')")
        for call in (f"cdc.complete({log})", *logs):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                logged.run(f"SELECT {call}")
        logged.run("RESET ROLE")


def test_who_alters_a_part_keeps_nobody_waiting_that_only_looks(logged: Logged, source_url: str) -> None:
    """A status, or an attach that asks for rights; that one comes to wait for locks later, again and again."""
    logged.run(*TREE)
    logged.attach("root")
    with connect(source_url, name="test", settings=SESSION) as looking, logged.session.transaction():
        logged.run("LOCK TABLE low IN ACCESS EXCLUSIVE MODE")
        (table,) = StatusSource(looking, "viewkeeper", where="test").tables()
        assert table.name == "public.root"
        (root,) = captured_tables(looking, "viewkeeper")
        assert missing_rights(looking, root.oid, "public.root", row_level=False, by_view=False) == []
