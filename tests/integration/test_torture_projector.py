"""Several projectors over one history, killed, paused and rebalanced at random: exact, and never ahead of the truth."""

import psycopg
import pytest

import tests.accounts
from compose.local.kafka import KafkaBroker
from tests.accounts import KEYS, SHOWN, Truth, Witness
from tests.daemons import Daemon, Daemons
from tests.integration.changelog import Changelog
from tests.torture import Torture
from tests.torture_projectors import Projectors, Publisher, Trouble
from tests.waiting import wait_until

# Slow, and none of the versions' business.
pytestmark = pytest.mark.newest_postgres

PARTITIONS = 4
EVENTS = 1_700
"""Between two troubles: 20 rounds of three are 100,000 events."""
TAKE_OVER_SECONDS = 120.0
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@pytest.mark.torture
def test_view_is_exact_and_as_of_is_true_whatever_happens_to_its_instances(
    account_url: str, kafka: KafkaBroker, topic_prefix: str, daemon: Daemons, torture: Torture
) -> None:
    changelog = Changelog(kafka.bootstrap_servers, topic_prefix, KEYS, PARTITIONS)
    changelog.create()
    truth = Truth()
    publisher, witness = Publisher(changelog, truth, torture.random), Witness(truth)
    settings = {
        "VIEWKEEPER_VIEW_URL": account_url,
        "VIEWKEEPER_VIEWS": tests.accounts.__file__,
        # Small batches: there are many moments to be hit at.
        "VIEWKEEPER_PROJECTOR_BATCH_RECORDS": "40",
    }
    started: list[Daemon] = []

    def start() -> Daemon:
        started.append(daemon("projector", "run", settings=settings))
        return started[-1]

    projectors = Projectors(start, torture.random)
    with psycopg.connect(account_url, autocommit=True) as session:

        def reaches(index: int) -> None:
            """Look until as-of has come to that one of the newest watermarks."""

            def reached() -> bool:
                projectors.assert_running()
                witness.look(session)
                assert witness.wrong == []
                return witness.as_of is not None and witness.as_of >= times[index]

            wait_until(reached, timeout_seconds=TAKE_OVER_SECONDS, what=f"as-of {times[index]}")

        for _ in range(torture.rounds):
            for trouble in torture.random.sample(list(Trouble), 3):
                times = publisher.publish(EVENTS)
                reaches(torture.random.randrange(len(times) // 2))
                projectors.trouble(trouble)
                reaches(-1)
        projectors.end()
        witness.look(session)
        assert witness.wrong == []
        assert {row[0]: row[1:] for row in session.execute(SHOWN)} == truth.shown()
        assert session.execute(DEADLOCKS).fetchone() == (0,)
    # It was no test if one had all the time all partitions.
    assert sum(bool(instance.logged("revoked")) for instance in started) > 1
