"""Owners of tables and triggers change: writers go on, and what they wrote without a record is found."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets
from tests.integration.logged import other_role


@contextmanager
def _owned(source: Source) -> Iterator[tuple[str, str]]:
    """Give tweets to a role and attach it by row; yields that role and one that may do nothing."""
    source.run(insert_tweets(1, 30))
    with other_role(source.connection, "owner") as owner, other_role(source.connection, "heir") as heir:
        source.run(f"ALTER TABLE tweets OWNER TO {owner}")
        source.attach("tweets", level="row")
        yield owner, heir


@pytest.mark.newest_postgres
def test_writers_go_on_after_reassign_owned_and_the_table_is_read_anew(source: Source, daemon: Daemons) -> None:
    with _owned(source) as (owner, heir):
        capture = daemon("cdc", "run")
        source.wait_exact("tweets")
        with source.session() as writer:
            source.run(f"REASSIGN OWNED BY {owner} TO {heir}", f"DROP OWNED BY {owner}")
            writer.execute("UPDATE tweets SET text = 'in an open transaction'")
            capture.wait_logged("table_in_use")
            writer.commit()
        source.run(f"SET ROLE {heir}", "DELETE FROM tweets WHERE tweet_id <= 10", "RESET ROLE")
        source.wait_exact("tweets")
        source.run(f"SET ROLE {heir}", "DELETE FROM tweets WHERE tweet_id <= 20", "RESET ROLE")
        source.wait_exact("tweets")
        assert len(capture.logged("snapshot_begins")) == 2, "the last rows were logged"


def test_an_owner_that_cannot_be_given_the_rights_stops_the_capture(source: Source, daemon: Daemons) -> None:
    with _owned(source) as (owner, heir), other_role(source.connection, "mender") as mender:
        source.run(
            f"GRANT USAGE, CREATE ON SCHEMA cdc TO {mender}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA cdc TO {mender}",
            f"ALTER FUNCTION cdc.complete(integer) OWNER TO {mender}",
        )
        capture = daemon("cdc", "run")
        source.wait_exact("tweets")
        source.run(f"REASSIGN OWNED BY {owner} TO {heir}", "DELETE FROM tweets")
        assert capture.wait() == 1
        complaint = "public.tweets is logged by functions in schema cdc whose owner was changed to a role that may not"
        assert complaint in capture.log_text()
