"""C6, C7: a flush that waits for a synchronous standby in vain ends the session, and nothing is published."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemons import Daemon, Daemons
from tests.integration.captured_source import Source
from tests.waiting import wait_until

# Its limits are the clock's, and no version's.
pytestmark = pytest.mark.newest_postgres

REQUEST = "INSERT INTO cdc.request (capture, attachment, kind) SELECT capture, id, 'snapshot' FROM cdc.captured_table"
REQUEST_AGAIN = (
    "INSERT INTO cdc.request (id, capture, attachment, kind) OVERRIDING SYSTEM VALUE "
    "SELECT 1, capture, id, 'snapshot' FROM cdc.captured_table"
)


@contextmanager
def _standby_away(source: Source) -> Iterator[None]:
    """Have all commits of others wait for a synchronous standby that there is not."""
    source.run(
        "SET synchronous_commit = local",
        "ALTER SYSTEM SET synchronous_standby_names = 'nope'",
        "SELECT pg_reload_conf()",
    )
    try:
        yield
    finally:
        source.run("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


def _readiness(capture: Daemon) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{capture.health_port}/readyz", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_c6_a_flush_that_waits_in_vain_publishes_nothing_and_is_said(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    with _standby_away(source):
        source.run("INSERT INTO tweets (tweet_id) VALUES (1)")
        reason = capture.wait_logged("retrying")["reason"]
        assert "for a synchronous standby that is away (synchronous_standby_names)" in reason
        assert _readiness(capture)[0] == 503
        assert source.topic("tweets").records == []
    source.wait_exact("tweets")
    assert not capture.logged("kafka_client")


def test_a_leader_that_tidies_up_notices_that_its_lease_waits(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    source.run(REQUEST)
    wait_until(lambda: not source.value("SELECT count(*) FROM cdc.request"), what="the request to be begun and deleted")
    with _standby_away(source):
        # It is deleted once more, by the thread that leads.
        source.run(REQUEST_AGAIN)
        assert "for a synchronous standby that is away" in capture.wait_logged("retrying")["reason"]
    source.wait_exact("tweets")
