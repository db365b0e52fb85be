"""`viewkeeper-projector status`: what is applied, what waits, and what somebody has to see to."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from compose.local.process import free_port
from tests.daemons import ROOT, Daemons
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps
from tests.integration.rebuild_steps import added, versions_of
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres


def _run_status(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "projector.cli", "status", "--seconds", "0.5", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or done.stdout, done.stderr
    return done


def _status(settings: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = _run_status(settings, *arguments)
    return done.returncode, done.stdout


def _view(settings: dict[str, str]) -> dict[str, Any]:
    (view,) = json.loads(_status(settings, "--json")[1])["views"]
    found: dict[str, Any] = view
    return found


def test_lag_and_as_of_are_those_of_the_view(steps: Steps, changelog: Changelog, settings_env: dict[str, str]) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
    view = _view(settings_env)
    assert view["as_of"] is None
    assert view["lag_records"] > 0
    assert any("records wait, and none was applied" in need for need in view["needs_a_person"])
    steps.catch_up()
    with changelog.transaction():
        # One machine, one clock: it is not old while the test looks.
        changelog.watermark(datetime.now(UTC) + timedelta(seconds=30))
    steps.catch_up()
    view = _view(settings_env)
    assert (view["lag_records"], view["seconds_left"], view["needs_a_person"]) == (0, 0.0, [])
    code, text = _status(settings_env)
    assert code == 0
    assert "Nothing needs a person." in text
    with changelog.transaction():
        for number in range(2, 30):
            changelog.put("users", user(number))
    with psycopg.connect(settings_env["VIEWKEEPER_VIEW_URL"]) as session:
        session.execute(
            'INSERT INTO projector.dead_letter (view, version, topic, partition, "offset", reason) '
            "VALUES ('user_information', 1, 'topic', 0, 0, 'none')"
        )
    code, text = _status(settings_env)
    assert code == 1
    assert f"{changelog.prefix}.public.users" in text
    assert "1 dead letters, records that it lacks: viewkeeper-projector dead-letters list user_information" in " ".join(
        text.split()
    )


def test_a_projector_at_work_has_a_rate(changelog: Changelog, settings_env: dict[str, str], daemon: Daemons) -> None:
    daemon("projector", "run")
    wait_until(lambda: _view(settings_env)["partitions"], what="first offsets")

    done = threading.Event()

    def keep_writing() -> None:
        while not done.wait(0.05):
            with changelog.transaction():
                for number in range(100):
                    changelog.put("users", user(number))

    writing = threading.Thread(target=keep_writing)
    writing.start()
    try:
        wait_until(lambda: _view(settings_env)["records_per_second"] > 0, what="a rate")
    finally:
        done.set()
        writing.join()


def test_without_its_broker_it_shows_what_the_view_database_knows(
    steps: Steps, changelog: Changelog, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1))
        changelog.watermark(datetime.now(UTC) + timedelta(minutes=1))
    steps.catch_up()
    away = {**settings_env, "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    code, text = _status(away, "--json")
    assert code == 1
    found = json.loads(text.splitlines()[-1])
    assert away["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"] in found["broker_trouble"]
    (view,) = found["views"]
    assert view["as_of"] is not None
    assert (view["lag_records"], view["seconds_left"], view["needs_a_person"]) == (None, None, [])
    assert {one["topic"] for one in view["partitions"]} >= {changelog.topic("users")}
    assert {(one["end_offset"], one["lag_records"]) for one in view["partitions"]} == {(None, None)}
    done = _run_status(away)
    assert done.returncode == 1
    # Each try of ten seconds is no line of its own.
    assert 0 < done.stderr.count("kafka_client") < 10
    text = done.stdout
    assert f"- {found['broker_trouble']}; until it answers nothing is applied" in text


def test_a_topic_that_is_gone_is_named(steps: Steps, changelog: Changelog, settings_env: dict[str, str]) -> None:
    steps.catch_up()
    client = AdminClient({"bootstrap.servers": settings_env["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"]})
    client.delete_topics([changelog.topic("likes")])[changelog.topic("likes")].result()
    missing = f"topic {changelog.topic('likes')} is missing"
    wait_until(lambda: any(missing in need for need in _view(settings_env)["needs_a_person"]), what="a word of it")


def test_a_version_that_is_being_built_is_shown_with_what_it_needs(
    steps: Steps, changelog: Changelog, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.watermark(datetime.now(UTC) + timedelta(minutes=1))
    steps.catch_up()
    with versions_of(settings_env) as versions:
        versions.begin(added)
        assert _status(settings_env)[0] == 0
    active, building = json.loads(_status(settings_env, "--json")[1])["views"]
    assert [(one["version"], one["state"]) for one in (active, building)] == [(1, "active"), (2, "building")]
    assert active["needs_a_person"] == []
    (need,) = building["needs_a_person"]
    assert "viewkeeper-projector rebuild user_information goes on with it" in need
