"""The projector as the process that it is: crashes, stops, and what it says of bad surroundings."""

import json
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from alembic import command
from psycopg.pq import ExecStatus

from compose.local.kafka import KafkaBroker
from compose.local.postgres import PostgresServer
from compose.local.process import free_port
from projector.consumer import CLIENT_NAME
from projector.daemon import SESSION_SETTINGS
from runtime.postgres import connect
from tests.daemons import Daemon, Daemons
from tests.integration import own_views
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import counts, physical, shown
from tests.integration.test_projector_views import alembic_config, database
from tests.waiting import wait_until

TWEETS = 10_000


def get(daemon: Daemon, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.health_port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_ready(daemon: Daemon) -> None:
    wait_until(lambda: get(daemon, "/readyz")[0] == 200, timeout_seconds=60, what="the projector to be ready")


def tweets_counted(view_url: str) -> int:
    return sum(row["tweet_count"] for row in physical(view_url).values())


def test_killed_projector_goes_on_where_it_was(daemon: Daemons, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        for user_id in range(10):
            changelog.put("users", user(user_id))
    for start in range(0, TWEETS, 1000):
        with changelog.transaction():
            for number in range(start, start + 1000):
                changelog.tweet(number, number % 10)
    # Small batches, so that there are many moments to be killed at.
    small = {"VIEWKEEPER_PROJECTOR_BATCH_RECORDS": "10"}
    for killed_at in (TWEETS // 6, TWEETS // 2):
        projector = daemon("projector", "run", settings=small)
        wait_until(lambda at=killed_at: tweets_counted(view_url) >= at, timeout_seconds=60, what="some tweets")  # type: ignore[misc]
        projector.kill()
        assert tweets_counted(view_url) < TWEETS, "it was killed in the middle"
    projector = daemon("projector", "run")
    wait_ready(projector)
    assert [counts(row) for row in shown(view_url).values()] == [(TWEETS // 10, 0, 0, 0)] * 10
    assert projector.terminate() == 0
    assert projector.logged("stopped")


@pytest.mark.parametrize(
    "paused_in", ["SELECT", "COPY projector.user_information_v1_public_tweets FROM STDIN"], ids=["between", "copy"]
)
def test_instance_that_pauses_within_a_transaction_gives_way(
    daemon: Daemons, changelog: Changelog, view_url: str, paused_in: str
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
    projector = daemon("projector", "run")
    wait_until(lambda: shown(view_url), what="the first row")
    with closing(connect(view_url, name=CLIENT_NAME, settings=SESSION_SETTINGS)) as paused:
        paused.execute("BEGIN")
        paused.execute("SELECT FROM projector.partition_offset FOR UPDATE")
        assert paused.pgconn.exec_(paused_in.encode()).status in (ExecStatus.TUPLES_OK, ExecStatus.COPY_IN)
        with changelog.transaction():
            for number in range(10):
                changelog.tweet(number, 1)
        # Neither waits without end: the one that waits says so and tries again, the one that holds is ended.
        assert "lock timeout" in projector.wait_logged("retrying")["reason"]
        wait_until(lambda: tweets_counted(view_url) == 10, what="the successor's turn")
    assert projector.terminate() == 0


def test_projector_says_how_it_is(daemon: Daemons, changelog: Changelog) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.tweet(1, 1)
        changelog.watermark()
    projector = daemon("projector", "run")
    wait_ready(projector)
    assert get(projector, "/livez")[0] == 200
    wait_until(
        lambda: get(projector, "/readyz") == (200, "caught up once, lag 0 records\n"), what="the reason to be true"
    )
    no_lag = 'viewkeeper_projector_lag_records{view="user_information"} 0.0'
    as_of = 'viewkeeper_projector_as_of_timestamp_seconds{view="user_information"}'

    def measured() -> str | None:
        metrics = get(projector, "/metrics")[1]
        return metrics if no_lag in metrics and as_of in metrics else None

    metrics = wait_until(measured, what="no lag and a first as-of")
    assert metrics is not None
    lines = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in metrics.splitlines() if line[0] != "#"}
    assert float(lines['viewkeeper_projector_records_applied_total{view="user_information"}']) == 2
    assert float(lines['viewkeeper_projector_batches_total{view="user_information"}']) >= 1
    assert float(lines['viewkeeper_projector_batch_seconds_count{view="user_information"}']) >= 1
    assert float(lines[as_of]) > 1.7e9
    assert projector.terminate() == 0


def test_instance_without_a_partition_is_a_standby(daemon: Daemons, kafka: KafkaBroker, topic_prefix: str) -> None:
    keys = {"users": "user_id", "tweets": "tweet_id", "follows": "follow_id", "likes": "like_id"}
    Changelog(kafka.bootstrap_servers, topic_prefix, keys, partitions=1).create()
    # The default assignor gives the only partition of each topic to the same instance.
    first, second = daemon("projector", "run"), daemon("projector", "run")
    standby = (200, "standby: no partition\n")
    wait_until(lambda: standby in (get(first, "/readyz"), get(second, "/readyz")), timeout_seconds=60, what="a standby")
    wait_ready(first)
    wait_ready(second)


def test_projector_waits_for_topics_and_says_which(
    daemon: Daemons, changelog_to_come: Changelog, view_url: str
) -> None:
    projector = daemon("projector", "run")
    line = projector.wait_logged("waiting_for_topics")
    assert changelog_to_come.topic("users") in line["missing"]
    assert get(projector, "/readyz")[0] == 503
    changelog_to_come.create()
    with changelog_to_come.transaction():
        changelog_to_come.put("users", user(1))
    wait_until(lambda: shown(view_url), what="the first row")
    assert projector.terminate() == 0


def test_view_does_not_wait_for_the_topics_of_another(
    daemon: Daemons, postgres: PostgresServer, kafka: KafkaBroker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(postgres) as url:
        settings = {"VIEWKEEPER_VIEW_URL": url, "VIEWKEEPER_VIEWS": own_views.__name__}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        command.upgrade(alembic_config(), "head")
        there = Changelog(kafka.bootstrap_servers, topic_prefix, {"people": "id", "people_orders": "order_id"}, 1)
        there.create()
        with there.transaction():
            there.put("people", {"id": 1, "name": "Ann"})
        projector = daemon("projector", "run", settings=settings)
        with psycopg.connect(url, autocommit=True) as session:

            def names(view: str) -> list[tuple[str]]:
                return session.execute(f"SELECT name FROM {view}".encode()).fetchall()

            wait_until(lambda: names("one_column") == [("Ann",)], what="the view that has its topics")
            line = projector.wait_logged("waiting_for_topics")
            assert f"{topic_prefix}.public.accounts" in line["missing"]
            assert "two_rows" in line["views"]
            assert "one_column" not in line["views"]
            code, reason = get(projector, "/readyz")
            assert (code, reason[:19]) == (503, "topics are missing:")
            keys = {"accounts": "account_id", "accounts_more": "owner_id", "accounts_orders": "order_id"}
            come = Changelog(kafka.bootstrap_servers, topic_prefix, keys, 1)
            come.create(cursor=False)
            with come.transaction():
                come.put("accounts", {"account_id": str(UUID(int=1)), "name": "Bo"})
            wait_until(lambda: names("two_rows") == [("Bo",)], what="the view that waited")
        assert projector.terminate() == 0


def test_broker_that_cannot_be_reached_is_tried_again(daemon: Daemons) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    projector = daemon("projector", "run", settings={"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": nobody})
    line = projector.wait_logged("retrying", timeout_seconds=60)
    assert nobody in line["reason"]
    assert projector.is_running()
    assert projector.terminate() == 0


def test_database_that_cannot_be_reached_is_tried_again(daemon: Daemons) -> None:
    port = free_port()
    nobody = {"VIEWKEEPER_VIEW_URL": f"postgresql://postgres@127.0.0.1:{port}/view"}
    projector = daemon("projector", "run", settings=nobody)
    line = projector.wait_logged("retrying")
    assert f"127.0.0.1:{port}/view: cannot connect" in line["reason"]
    assert projector.terminate() == 0


def test_missing_migration_ends_it_with_the_command(daemon: Daemons, source_url: str) -> None:
    projector = daemon("projector", "run", settings={"VIEWKEEPER_VIEW_URL": source_url})
    assert projector.wait(60) == 2
    assert "the projector's tables are missing; run\nalembic -c " in projector.log_text()
    assert "alembic.ini -n view upgrade head" in projector.log_text()


@pytest.mark.parametrize("command", [("wait", "--until", "2026-01-01T00:00:00Z"), ("dead-letters", "list")])
def test_missing_migration_ends_other_commands_with_the_command_too(
    command: tuple[str, ...], daemon: Daemons, source_url: str
) -> None:
    asked = daemon("projector", *command, settings={"VIEWKEEPER_VIEW_URL": source_url})
    assert asked.wait(60) == 2
    assert "the projector's tables are missing; run\nalembic -c " in asked.log_text()


def test_database_that_is_not_there_ends_it(daemon: Daemons, view_url: str) -> None:
    wrong = view_url.rsplit("/", 1)[0] + "/nowhere"
    projector = daemon("projector", "run", settings={"VIEWKEEPER_VIEW_URL": wrong})
    assert projector.wait(60) == 2
    assert 'database "nowhere" does not exist' in projector.log_text()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            ('Count("like_count", of="public.likes", by="user_id"),', ""),
            "measures: made with tweet_count, following_count, follower_count, like_count, declared tweet_count, ",
        ),
        (('by="followee_id"', 'by="follower_id"'), "measures[2].by: made with 'followee_id', declared 'follower_id'"),
    ],
)
def test_changed_definition_ends_it_with_the_difference(
    change: tuple[str, str], difference: str, daemon: Daemons, tmp_path: Path
) -> None:
    text = Path("views/user_information.py").read_text()
    assert change[0] in text
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace(*change).replace('Field("likeCount", "like_count"),', ""))
    projector = daemon("projector", "run", settings={"VIEWKEEPER_VIEWS": str(changed)})
    assert projector.wait(60) == 2
    assert difference in projector.log_text()
    assert projector.log_text().rstrip().endswith("\nviewkeeper-projector rebuild user_information")


def test_view_without_tables_ends_it(daemon: Daemons, tmp_path: Path) -> None:
    text = Path("views/user_information.py").read_text().replace('name="user_information"', 'name="another"')
    (tmp_path / "another.py").write_text(text)
    projector = daemon("projector", "run", settings={"VIEWKEEPER_VIEWS": str(tmp_path / "another.py")})
    assert projector.wait(60) == 2
    assert "view 'another' has no filled tables; run\nviewkeeper-projector rebuild another" in projector.log_text()


def test_record_that_cannot_be_applied_ends_it(daemon: Daemons, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        # In one partition: what other ones hold may come in a batch of before.
        changelog.put("users", user(1))
        changelog.put_raw("users", b'{"user_id":1}', json.dumps({"user_id": 1}).encode())
    projector = daemon("projector", "run")
    assert projector.wait(60) == 1
    assert "missing required field `username`" in projector.log_text()
    assert shown(view_url) == {}
