"""A topic that is gone, and one that may have forgotten deletes while nobody kept the view."""

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from compose.local.kafka import KafkaBroker
from projector.kept import check
from projector.registry import State
from runtime.kafka import LostHistory
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, counts, projector_settings, projector_steps, shown
from tests.integration.rebuild_steps import filled, met, some_users, states, versions_of
from tests.waiting import wait_until
from views.user_information import user_information

pytestmark = pytest.mark.newest_postgres


def test_topic_that_is_gone_stops_the_projector(
    steps: Steps, changelog: Changelog, kafka: KafkaBroker, settings_env: dict[str, str]
) -> None:
    steps.catch_up()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for deleted in admin.delete_topics([changelog.topic("likes")]).values():
        deleted.result()
    wait_until(lambda: changelog.topic("likes") not in steps.describe(), what="the topic to be gone")
    with (
        pytest.raises(
            LostHistory, match=r"likes: it is gone, and was read up to \d+ in partition 0(.|\n)*projector rebuild"
        ),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")


LEFT_ALONE = """
UPDATE projector.partition_offset SET stored_at = now() - interval '1 hour'
"""


def test_outage_in_which_deletes_may_have_been_forgotten_stops_the_projector(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.watermark()
    steps.catch_up()
    changelog.configure("tweets", "delete.retention.ms", "60000")
    _left_alone(view_url)

    def kept() -> bool:
        steps.step()
        check(steps.connection, steps.kept, steps.describe)
        return _seconds_alone(view_url) < 60

    wait_until(kept, what="idle partitions to be kept, too, while it runs")
    _left_alone(view_url)
    with projector_steps(projector_settings(settings_env)):
        """Nothing was written meanwhile."""
    assert _seconds_alone(view_url) < 60
    _left_alone(view_url)
    with changelog.transaction():
        changelog.put("users", user(2))
        changelog.watermark()
    with projector_steps(projector_settings(settings_env)):
        """What was written there is not forgotten yet."""
    _left_alone(view_url)
    with changelog.transaction():
        changelog.tweet(1, 1)
    with (
        pytest.raises(LostHistory, match=r"tweets(.|\n)*for 1 min (.|\n)*rebuild user_information(.|\n)*=go_on"),
        projector_steps(projector_settings(settings_env)),
    ):
        pytest.fail("it has started")
    accepted = projector_settings({**settings_env, "VIEWKEEPER_PROJECTOR_ON_LONG_OUTAGE": "go_on"})
    with projector_steps(accepted) as other:
        other.catch_up()
    assert counts(shown(view_url)[1]) == (1, 0, 0, 0)
    with projector_steps(projector_settings(settings_env)):
        """It is not said again."""


def test_rebuild_leads_out_of_an_outage_that_was_too_long(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    some_users(changelog, tweets=4)
    steps.catch_up()
    changelog.configure("tweets", "delete.retention.ms", "60000")
    with versions_of(settings_env) as versions:
        filled(versions, user_information)
    _left_alone(view_url)
    with changelog.transaction():
        changelog.tweet(100, 1)
        changelog.watermark()
    with versions_of(settings_env) as versions:
        assert versions.begin(user_information).state is State.BUILDING, "what was filled was left alone, too"
        pair = met(versions, filled(versions, user_information))
        comparison = versions.compare(pair)
        assert comparison is not None
        assert "was not kept for 1 h" in str(comparison.not_compared)
        assert versions.swap(pair) is not None
    assert states(view_url) == {2: "active"}
    assert counts(shown(view_url)[1]) == (2, 0, 0, 4)
    with projector_steps(projector_settings(settings_env)):
        """It is not said again."""


def _left_alone(view_url: str) -> None:
    with psycopg.connect(view_url) as session:
        session.execute(LEFT_ALONE)


def _seconds_alone(view_url: str) -> float:
    """Return how long the partitions of tables were left alone, by the one that was longest."""
    with psycopg.connect(view_url) as session:
        row = session.execute(
            "SELECT extract(epoch FROM max(now() - stored_at))::float8 FROM projector.partition_offset "
            "WHERE topic NOT LIKE '%.cursor'"
        ).fetchone()
    assert row is not None
    return float(row[0])
