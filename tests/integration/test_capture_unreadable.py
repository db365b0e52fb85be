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


@pytest.mark.parametrize("column", [DIVIDED, REPEATED], ids=["divided", "repeated"])
def test_a_row_that_cannot_be_read_is_named_with_its_table_and_what_to_do(
    source: Source, daemon: Daemons, column: str
) -> None:
    unreadable = {DIVIDED: 0, REPEATED: 2_000_000_000}[column]
    _attach(source, column)
    source.run(
        "INSERT INTO computed (id, x) SELECT i, 1 FROM generate_series(1, 300) i",
        f"UPDATE computed SET x = {unreadable} WHERE id IN (170, 290)",
    )
    complaint = _complaint(daemon("cdc", "run"))
    assert "table public.computed: " in complaint
    assert 'the first row that fails has the key {"id":170}; mend the row' in complaint
    source.run("UPDATE computed SET x = 1")
    capture = daemon("cdc", "run")
    source.wait_exact("computed")
    source.run(f"UPDATE computed SET x = {unreadable} WHERE id IN (33, 200)")
    assert 'the first row that fails has the key {"id":33}; mend the row' in _complaint(capture)
