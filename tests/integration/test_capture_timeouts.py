"""Time limits that a database or a role sets for all sessions end none of ours."""

import pytest
from psycopg import Connection

from cdc.session import SESSION
from projector.daemon import SESSION_SETTINGS
from runtime.postgres import connect
from tests.daemons import Daemons
from tests.integration.captured_source import CAPTURE, Source
from tests.waiting import wait_until

# Older servers know only one of the two.
pytestmark = pytest.mark.newest_postgres

LIMIT = "400ms"


def _limit(connection: Connection) -> None:
    for setting in ("transaction_timeout", "idle_session_timeout", "statement_timeout"):
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting} = '{LIMIT}'".encode())


@pytest.mark.parametrize("settings", [SESSION, SESSION_SETTINGS], ids=["capture", "projector"])
def test_a_session_outlives_a_long_transaction_and_a_long_wait(source: Source, settings: dict[str, str]) -> None:
    _limit(source.connection)
    with connect(source.url, name="limited", settings=settings) as session:
        with session.transaction():
            session.execute("SELECT pg_sleep(0.6)")
        _wait_idle(source, "limited")
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_standby_and_a_leader_with_a_long_page_go_on(source: Source, daemon: Daemons) -> None:
    source.run(
        "CREATE VIEW slow AS SELECT 1::bigint AS id, pg_sleep(0.6)::text AS slept",
        "SELECT cdc.attach('viewkeeper', 'slow', NULL, '{id}')",
    )
    _limit(source.connection)
    leader = daemon("cdc", "run")
    leader.wait_logged("leading")
    standby = daemon("cdc", "run")
    standby.wait_logged("standby")
    source.wait_published("slow")
    _wait_idle(source, f"viewkeeper-cdc {CAPTURE} tidy")
    assert leader.terminate() == 0
    standby.wait_logged("leading")
    source.wait_published("slow")
    assert not leader.logged("retrying")
    assert not standby.logged("retrying")


def _wait_idle(source: Source, name: str) -> None:
    """Wait until a session of that name has been idle for longer than the limit."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'idle' "
        "AND datname = current_database() AND clock_timestamp() - state_change > interval '0.6 seconds'"
    )
    wait_until(lambda: source.value(query, name), what=f"a wait of {name}")
