"""Rows that Postgres itself fails to read: they stop the capture, and nobody tries for ever."""

import pytest

from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import Source

# Their columns are computed when they are read, which older versions of Postgres do not know.
pytestmark = pytest.mark.newest_postgres

DIVIDED = "integer GENERATED ALWAYS AS (1 / x) VIRTUAL"
REPEATED = "text GENERATED ALWAYS AS (repeat('xx', x)) VIRTUAL"


def _attach(source: Source, column: str) -> None:
    source.run(f"CREATE TABLE computed (id bigint PRIMARY KEY, x integer, y {column})")
    source.attach("computed")


def _complaint(capture: Daemon) -> str:
    assert capture.wait(30) == 1
    assert not capture.logged("retrying")
    return capture.log_text().splitlines()[-1]


def test_a_row_that_is_longer_than_a_text_may_be_stops_the_capture(source: Source, daemon: Daemons) -> None:
    _attach(source, REPEATED)
    source.run("INSERT INTO computed (id, x) VALUES (1, 1), (2, 2000000000)")
    assert "requested length too large (SQLSTATE 54000)" in _complaint(daemon("cdc", "run"))
