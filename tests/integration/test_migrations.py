"""The migrations as an operator runs them: up, twice, down, and what is said when they cannot run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from compose.local.postgres import PostgresServer
from tests.daemons import ROOT
from tests.integration.captured_source import Source
from tests.integration.logged import other_role
from tests.integration.wal_steps import SLOTS, attach_wal

SCHEMAS = "SELECT array_agg(nspname::text ORDER BY nspname) FROM pg_namespace WHERE nspname ~ '^(cdc|projector|demo)$'"
OBJECTS = """
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('cdc', 'projector', 'public') AND c.relname !~ '^alembic_version'
"""


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Iterator[str]:
    with _empty_database(postgres, "CREATE DATABASE {}") as url:
        yield url


@contextmanager
def _empty_database(postgres: PostgresServer, create: LiteralString) -> Iterator[str]:
    name = f"empty_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL(create).format(sql.Identifier(name)))
        yield postgres.url(name)
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def alembic(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIEWKEEPER_")}
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("section", ["source", "view", "demo"])
def test_up_twice_and_down_again(section: str, empty_url: str) -> None:
    settings = {"VIEWKEEPER_SOURCE_URL": empty_url, "VIEWKEEPER_VIEW_URL": empty_url}
    for direction in (("upgrade", "head"), ("upgrade", "head"), ("downgrade", "base")):
        done = alembic("-n", section, *direction, **settings)
        assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(empty_url) as session:
        assert session.execute(OBJECTS).fetchone() == (0,)


def test_source_and_view_may_be_one_database(empty_url: str) -> None:
    settings = {"VIEWKEEPER_SOURCE_URL": empty_url, "VIEWKEEPER_VIEW_URL": empty_url}
    for section in ("demo", "source", "view"):
        assert alembic("-n", section, "upgrade", "head", **settings).returncode == 0
    with psycopg.connect(empty_url) as session:
        assert session.execute(SCHEMAS).fetchone() == (["cdc", "demo", "projector"],)
        columns = session.execute("SELECT * FROM user_information").description
        assert columns is not None
        assert len(columns) == 13


def test_down_takes_the_triggers_off_attached_tables(empty_url: str) -> None:
    for section in ("demo", "source"):
        assert alembic("-n", section, "upgrade", "head", VIEWKEEPER_SOURCE_URL=empty_url).returncode == 0
    with psycopg.connect(empty_url, autocommit=True) as session:
        session.execute("SELECT cdc.attach('viewkeeper', 'public.users')")
        assert alembic("-n", "source", "downgrade", "base", VIEWKEEPER_SOURCE_URL=empty_url).returncode == 0
        session.execute("INSERT INTO users (user_id) VALUES (1)")


def test_down_leaves_no_slot_that_would_keep_the_wal_for_ever(wal: Source) -> None:
    attach_wal(wal, "users")
    assert alembic("-n", "source", "downgrade", "base", VIEWKEEPER_SOURCE_URL=wal.url).returncode == 0
    assert wal.value(f"SELECT count(*) {SLOTS}") == 0
    assert wal.value("SELECT count(*) FROM pg_publication") == 0


def test_a_wrong_setting_is_one_line_and_exit_code_2() -> None:
    missing = alembic("-n", "source", "upgrade", "head")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: VIEWKEEPER_SOURCE_URL is missing")
    unreachable = alembic("-n", "view", "upgrade", "head", VIEWKEEPER_VIEW_URL="postgresql://me@127.0.0.1:1/app")
    assert unreachable.returncode == 2
    assert unreachable.stderr.startswith("error: Postgres 127.0.0.1:1/app: cannot connect")
    assert len(unreachable.stderr.splitlines()) == 1


@pytest.mark.newest_postgres
def test_a_view_database_that_has_not_all_characters_is_refused(postgres: PostgresServer) -> None:
    create = "CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    with _empty_database(postgres, create) as url:
        assert alembic("-n", "source", "upgrade", "head", VIEWKEEPER_SOURCE_URL=url).returncode == 0
        refused = alembic("-n", "view", "upgrade", "head", VIEWKEEPER_VIEW_URL=url)
    assert refused.returncode == 2
    assert "its encoding is LATIN1" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.newest_postgres
@pytest.mark.parametrize("section", ["source", "view"])
def test_a_role_that_may_not_migrate_is_told_so_in_one_line(section: str, empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as session, other_role(session, "stranger") as stranger:
        url = empty_url.replace("postgres@", f"{stranger}@")
        refused = alembic("-n", section, "upgrade", "head", **{f"VIEWKEEPER_{section.upper()}_URL": url})
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: Postgres")
    assert "permission denied" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
