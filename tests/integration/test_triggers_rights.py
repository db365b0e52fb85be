"""What runs with its owner's rights runs nothing of whoever calls it: types are looked for in pg_catalog first."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cdc.table_options import Level
from tests.integration.logged import Logged, keys, other_role

# What a session makes of its own comes before all schemas that are not named, also where the path is empty.
RAN = """
CREATE TABLE pg_temp.ran (as_role name);
GRANT INSERT ON pg_temp.ran TO PUBLIC;
"""
EVIL_TEXT = f"""{RAN}
CREATE TYPE pg_temp.text AS (x int8, y varchar);
CREATE FUNCTION pg_temp.to_text(x int8) RETURNS pg_temp.text LANGUAGE plpgsql AS $$
BEGIN INSERT INTO pg_temp.ran VALUES (current_user); RETURN row(x, '')::pg_temp.text; END $$;
CREATE FUNCTION pg_temp.of_text(x pg_temp.text) RETURNS int8 LANGUAGE plpgsql AS $$
BEGIN INSERT INTO pg_temp.ran VALUES (current_user); RETURN (x).x; END $$;
CREATE CAST (int8 AS pg_temp.text) WITH FUNCTION pg_temp.to_text(int8);
CREATE CAST (pg_temp.text AS int8) WITH FUNCTION pg_temp.of_text(pg_temp.text);
"""
EVIL_REGCLASS, EVIL_DOMAIN = (
    f"""{RAN}
CREATE FUNCTION pg_temp.note(x pg_catalog.{kind}) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN INSERT INTO pg_temp.ran VALUES (current_user); RETURN true; END $$;
CREATE DOMAIN pg_temp.{kind} AS pg_catalog.{kind} CHECK (pg_temp.note(value));
"""
    for kind in ("regclass", "text")
)


@contextmanager
def _stranger(logged: Logged) -> Iterator[psycopg.Connection]:
    """Log in as a role that may write to the table and nothing else."""
    with other_role(logged.session, "stranger") as role:
        logged.run(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON numbered TO {role}")
        with psycopg.connect(logged.session.info.dsn, user=role, autocommit=True) as session:
            yield session
            # At once, and not some time after the session's end: its objects would be given to another owner meanwhile.
            session.execute("DISCARD TEMP")


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("own", [EVIL_TEXT, EVIL_REGCLASS, EVIL_DOMAIN], ids=["cast", "regclass", "domain"])
def test_a_writer_runs_nothing_of_its_own_as_the_triggers_owner(logged: Logged, level: Level, own: str) -> None:
    logged.run("CREATE TABLE numbered (id bigint PRIMARY KEY)")
    log = logged.attach("numbered", level=level)
    with _stranger(logged) as session:
        session.execute(own.encode())
        session.execute("INSERT INTO numbered VALUES (1), (2)")
        session.execute("UPDATE numbered SET id = 3 WHERE id = 2")
        session.execute("DELETE FROM numbered WHERE id = 1")
        assert logged.take(log) == keys(1, 2, 3)
        session.execute("TRUNCATE numbered")
        assert session.execute("TABLE pg_temp.ran").fetchall() == []


@pytest.mark.parametrize("own", [EVIL_REGCLASS, EVIL_DOMAIN], ids=["regclass", "domain"])
def test_who_logs_by_a_function_of_ours_runs_nothing_of_its_own_as_its_owner(logged: Logged, own: str) -> None:
    logged.run(
        "CREATE TABLE numbered (id bigint PRIMARY KEY)",
        # As docs/design.md says, Views: the function belongs to a role that may.
        "CREATE FUNCTION public.tell(key bigint) RETURNS void LANGUAGE sql SECURITY DEFINER "
        "SET search_path = pg_catalog, pg_temp AS $$ "
        "SELECT cdc.log_changes('public.numbered', ARRAY[key]::pg_catalog.text[]::pg_catalog.text) $$",
    )
    log = logged.attach("numbered")
    with _stranger(logged) as session:
        session.execute(own.encode())
        session.execute("SELECT public.tell(7)")
        assert logged.take(log) == keys(7)
        assert session.execute("TABLE pg_temp.ran").fetchall() == []


def test_every_function_of_ours_looks_in_pg_catalog_first_and_in_pg_temp_last(logged: Logged, view_url: str) -> None:
    logged.run("CREATE TABLE numbered (id bigint PRIMARY KEY)")
    logged.attach("numbered")
    paths = "SELECT count(*), array_agg(DISTINCT p.proconfig) FROM pg_proc p WHERE p.pronamespace = to_regnamespace(%s)"
    with psycopg.connect(view_url) as view:
        for session, schema in ((logged.session, "cdc"), (view, "projector")):
            count, found = session.execute(paths, (schema,)).fetchone() or (0, None)
            assert count > 0
            assert found == [["search_path=pg_catalog, pg_temp"]]
