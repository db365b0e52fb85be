"""The local Postgres on both servers of the tests: what their settings and locales promise holds for each."""

from pathlib import Path

import psycopg
import pytest

from compose.local.postgres import PostgresServer, major_version
from compose.local.postgres import postgres as run_postgres


def shown(url: str, setting: str) -> str:
    with psycopg.connect(url) as session:
        row = session.execute("SELECT current_setting(%s)", [setting]).fetchone()
        assert row is not None
        return str(row[0])


def test_the_server_is_of_the_version_that_the_tests_id_shows(
    postgres: PostgresServer, postgres_binaries: Path, request: pytest.FixtureRequest
) -> None:
    version = int(shown(postgres.url(), "server_version_num")) // 10_000
    assert version == major_version(postgres_binaries)
    assert request.node.name.endswith(f"[pg{version}]")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "on"),
        ("wal_level", "logical"),
        ("max_prepared_transactions", "20"),
        ("max_connections", "200"),
        ("listen_addresses", "127.0.0.1"),
        ("server_encoding", "UTF8"),
    ],
)
def test_the_settings_are_those_that_capture_and_crash_tests_need(
    postgres: PostgresServer, setting: str, value: str
) -> None:
    assert shown(postgres.url(), setting) == value


def test_text_sorts_by_code_point_and_folds_beyond_ascii(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url()) as session:
        rows = session.execute("SELECT t FROM unnest(ARRAY['é', 'b', 'a', 'B', '😀', 'ﬀ']) t ORDER BY t").fetchall()
        assert [text for (text,) in rows] == ["B", "a", "b", "é", "ﬀ", "😀"]
        assert session.execute("SELECT upper('é')").fetchone() == ("É",)


def test_data_survive_a_restart(tmp_path: Path, postgres_binaries: Path) -> None:
    for start in ("first", "second"):
        with run_postgres(tmp_path, binaries=postgres_binaries) as server, psycopg.connect(server.url()) as session:
            session.execute("CREATE TABLE IF NOT EXISTS kept (line text)")
            session.execute("INSERT INTO kept VALUES (%s)", [start])
            assert session.execute("SELECT count(*) FROM kept").fetchone() == (1 if start == "first" else 2,)
