"""Any history of the source, read by any instances in any way: the view is a recomputation, and never goes back."""

from itertools import count
from random import Random

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from compose.local.kafka import KafkaBroker
from tests.accounts import KEYS, SHOWN, Truth, Witness, account
from tests.integration.changelog import Changelog
from tests.integration.projector_histories import PARTITIONS, Histories, Servers, empty
from tests.integration.projector_steps import projector_settings, projector_steps
from tests.topic_reader import read_changelog
from tests.torture import Torture
from tests.torture_projectors import Publisher
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres

HISTORIES, STEPS = 5, 30
"""As many histories a round, as long each."""


@pytest.fixture
def servers(account_url: str, kafka: KafkaBroker, topic_prefix: str) -> Servers:
    client = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    return Servers(account_url, kafka.bootstrap_servers, client, (f"{topic_prefix}-{number}" for number in count()))


def test_compacted_topics_come_to_the_same(account_url: str, kafka: KafkaBroker, topic_prefix: str) -> None:
    """Compacted in front of a view that has read a part of them, and then read by one that has read nothing."""
    changelog = Changelog(kafka.bootstrap_servers, topic_prefix, KEYS, PARTITIONS)
    changelog.create()
    truth = Truth()
    few = {"owners": 5, "items": 20, "letters": 10}
    publisher = Publisher(changelog, truth, Random(6), highest=few)  # noqa: S311 - no secret
    witness = Witness(truth)
    environment = {
        "VIEWKEEPER_VIEW_URL": account_url,
        "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
    }
    publisher.publish(500)
    with (
        projector_steps(projector_settings(environment), views=[account]) as steps,
        psycopg.connect(account_url, autocommit=True) as session,
    ):
        wait_until(lambda: steps.step(100) and steps.kept[0].stored[changelog.topic("items"), 0], what="a part")
        publisher.publish(500)
        changelog.compact()

        def compacted() -> bool:
            publisher.publish(1)
            records = [read_changelog(kafka.bootstrap_servers, changelog.topic(table)).records for table in KEYS]
            return sum(map(len, records)) < truth.steps / 2

        wait_until(compacted, timeout_seconds=90, what="the broker to compact")
        for _ in range(2):
            steps.catch_up(max_records=30)
            witness.look(session)
            assert witness.wrong == []
            assert {row[0]: row[1:] for row in session.execute(SHOWN)} == truth.shown()
            empty(session)
            session.execute("UPDATE projector.partition_offset SET next_offset = 0")
            witness.forget()
            steps.consumer.rewind()


@pytest.mark.torture
def test_view_is_a_recomputation_and_no_row_goes_back(servers: Servers, torture: Torture) -> None:
    @seed(torture.random.getrandbits(32))
    def histories() -> Histories:
        return Histories(servers)

    run_state_machine_as_test(
        histories,  # type: ignore[arg-type] # anything that makes one
        settings=settings(
            max_examples=HISTORIES * torture.rounds,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            # Shrinking takes hundreds of histories, on servers whose timing is never the same: a long run has time.
            phases=[Phase.generate, *([Phase.shrink] if torture.rounds > 1 else [])],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
