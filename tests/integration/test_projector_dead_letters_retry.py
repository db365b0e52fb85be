"""`viewkeeper-projector dead-letters`: what an operator sees of bad records, and does about them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import psycopg
import pytest
from click.testing import CliRunner, Result

from cdc.decoding import JsonDecoding
from projector.cli import commands
from projector.dead_letters import DeadLetter
from projector.errors import ProjectorError
from projector.kept import apply_batch
from projector.retrying import Outcome, Retried, Retrier
from runtime.errors import ConfigurationError
from tests.bench.errors import BenchError
from tests.bench.processes import peak_rss_bytes
from tests.daemons import ROOT
from tests.integration.changelog import Changelog, compact, user
from tests.integration.projector_steps import Steps, projector_settings, projector_steps, shown
from tests.integration.test_projector_dead_letters import LENIENT, LONG, bad_user, letters
from tests.waiting import wait_until

pytestmark = pytest.mark.newest_postgres

WAITS_FOR_OFFSET = """
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%projector.partition_offset%'
"""


@pytest.fixture
def lenient(changelog: Changelog, settings_env: dict[str, str], view_url: str) -> Iterator[Steps]:  # noqa: ARG001 - topics first
    """Give a projector over a view with an index that somebody made, which refuses long texts."""
    with psycopg.connect(view_url) as session:
        session.execute("CREATE INDEX by_location ON projector.user_information_v1 (location)")
    with projector_steps(projector_settings({**settings_env, **LENIENT})) as steps:
        yield steps


def unmake_index(view_url: str) -> None:
    with psycopg.connect(view_url) as session:
        session.execute("DROP INDEX projector.by_location")


def too_long(changelog: Changelog, user_id: int) -> None:
    """Put a row that is refused as long as there is the index."""
    changelog.put("users", user(user_id, "from afar", location=LONG))


def retried(view_url: str, changelog: Changelog, letter: DeadLetter) -> Retried:
    with psycopg.connect(view_url, autocommit=True) as connection:
        return Retrier(connection, changelog.prefix, JsonDecoding()).retry(letter)


def run(settings: dict[str, str], *arguments: str, answer: str | None = None) -> Result:
    """Run a command in this process, without its way of ending one."""
    return CliRunner().invoke(commands, ["dead-letters", *arguments], env=settings, input=answer, standalone_mode=False)


def documents(result: Result) -> list[dict[str, Any]]:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_retry_never_brings_back_what_a_newer_record_took_away(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        for user_id in (1, 2, 3):
            too_long(changelog, user_id)
        changelog.put("users", user(4))
    lenient.catch_up()
    old = letters(view_url)
    with changelog.transaction():
        changelog.put("users", user(1, "newer"))
        changelog.remove("users", 2)
    lenient.catch_up()
    unmake_index(view_url)
    outcomes = {letter.key: retried(view_url, changelog, letter).outcome for letter in old}
    assert outcomes == {
        b'{"user_id":1}': Outcome.GONE,
        b'{"user_id":2}': Outcome.GONE,
        b'{"user_id":3}': Outcome.APPLIED,
    }
    assert {key: row["username"] for key, row in shown(view_url).items()} == {1: "newer", 3: "from afar", 4: "ann"}
    with changelog.transaction():
        changelog.put("users", user(3, "newest"))
    lenient.catch_up()
    assert shown(view_url)[3]["username"] == "newest"


def test_a_retry_waits_for_the_reader_that_takes_the_letter_away(
    lenient: Steps, changelog: Changelog, view_url: str
) -> None:
    with changelog.transaction():
        too_long(changelog, 1)
    lenient.catch_up()
    (letter,) = letters(view_url)
    unmake_index(view_url)
    with changelog.transaction():
        changelog.remove("users", 1)
    batch = lenient.read()
    while not batch.records:
        batch = lenient.read()
    outcomes: list[Retried] = []
    retry = threading.Thread(target=lambda: outcomes.append(retried(view_url, changelog, letter)))
    with lenient.connection.transaction(), psycopg.connect(view_url, autocommit=True) as other:
        # Its batch is applied, and the transaction around it is open: the retry has found the letter.
        assert apply_batch(lenient.connection, lenient.kept, batch)
        retry.start()
        wait_until(
            lambda: other.execute(WAITS_FOR_OFFSET).fetchone() is not None,
            what="the retry to wait for its turn, before it looks at anything",
        )
    retry.join()
    assert [one.outcome for one in outcomes] == [Outcome.GONE]
    assert shown(view_url) == {}


def test_a_retry_moves_no_offset_and_disturbs_no_reader(lenient: Steps, changelog: Changelog, view_url: str) -> None:
    with changelog.transaction():
        too_long(changelog, 1)
        bad_user(changelog, 2)
    lenient.catch_up()
    unmake_index(view_url)
    first, second = letters(view_url)
    with changelog.transaction():
        changelog.put("users", user(3))
    batch = lenient.read()
    while not batch.records:
        batch = lenient.read()
    assert retried(view_url, changelog, first).outcome is Outcome.APPLIED
    still = retried(view_url, changelog, second)
    assert still.outcome is Outcome.DEAD
    assert "out of range" in str(still.reason)
    assert apply_batch(lenient.connection, lenient.kept, batch)
    assert shown(view_url).keys() == {1, 3}
    with psycopg.connect(view_url) as session:
        session.execute("UPDATE projector.partition_offset SET next_offset = 0")
    assert "comes again by itself" in str(retried(view_url, changelog, second).reason)
    assert [letter.reason for letter in letters(view_url)] == [still.reason]
    with psycopg.connect(view_url, autocommit=True) as connection:
        connection.execute("UPDATE projector.partition_offset SET next_offset = 99")
        with pytest.raises(ConfigurationError, match="set VIEWKEEPER_TOPIC_PREFIX as the projector has it"):
            Retrier(connection, "another", JsonDecoding()).retry(second)


def test_the_commands_show_try_again_and_drop(
    lenient: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    assert run(settings_env, "list").stdout == "No dead letters.\n"
    assert documents(run(settings_env, "list", "--json")) == [{"total": 0, "dead_letters": []}]
    assert run(settings_env, "retry").stdout == "No dead letters.\n"
    with changelog.transaction():
        too_long(changelog, 1)
        bad_user(changelog, 2)
        changelog.put_raw("tweets", compact({"tweet_id": 1}), b"\xff{")
    lenient.catch_up()
    (found,) = documents(run(settings_env, "list", "user_information", "--json", "--limit", "2"))
    assert (found["total"], len(found["dead_letters"])) == (3, 2)
    assert "and 1 more: --limit 3" in run(settings_env, "list", "--limit", "2").stdout
    (listed,) = documents(run(settings_env, "list", "--topic", changelog.topic("tweets"), "--json"))
    (tweet,) = listed["dead_letters"]
    (whole,) = documents(run(settings_env, "show", "--id", str(tweet["id"]), "--json"))
    assert whole.items() >= tweet.items()
    assert (whole["key"], whole["value"], whole["value_base64"]) == ('{"tweet_id":1}', "\\xff{", "/3s=")
    assert "\\xff{" in run(settings_env, "show", "--id", str(tweet["id"])).stdout
    unmake_index(view_url)
    again = run(settings_env, "retry", "user_information", "--json")
    assert (again.exit_code, [one["outcome"] for one in documents(again)].count("applied")) == (1, 1)
    assert shown(view_url).keys() == {1}
    assert run(settings_env, "discard", "--id", str(tweet["id"]), answer="n\n").exception is not None
    assert "1 dead letters deleted" in run(settings_env, "discard", "--id", str(tweet["id"]), answer="y\n").stdout
    assert documents(run(settings_env, "discard", "--yes", "--json")) == [{"discarded": 1}]
    for arguments in (["show", "--id", "99"], ["retry", "--id", "99"], ["discard", "--id", "99", "--yes"]):
        failed = run(settings_env, *arguments).exception
        assert isinstance(failed, ProjectorError)
        assert "there is no dead letter 99" in str(failed)
    assert "there is no view 'x'; made are user_information" in str(run(settings_env, "list", "x").exception)


def test_retry_holds_a_few_letters_at_a_time(changelog: Changelog, settings_env: dict[str, str], view_url: str) -> None:
    """300 MB of them, where the command by itself has less than 100 MB resident."""
    with psycopg.connect(view_url) as session:
        session.execute(
            """
            INSERT INTO projector.dead_letter (view, version, topic, partition, "offset", key, value, reason)
            SELECT 'user_information', 1, %s, 0, number, 'k', convert_to(repeat('x', 1000000), 'UTF8'), 'none'
            FROM generate_series(1, 300) AS number
            """,
            [changelog.topic("users")],
        )
        session.execute(
            "INSERT INTO projector.partition_offset (view, version, topic, partition, topic_id, next_offset) "
            "VALUES ('user_information', 1, %s, 0, 'a', 1000)",
            [changelog.topic("users")],
        )
    command = [sys.executable, "-m", "projector.cli", "dead-letters", "retry", "--json"]
    with subprocess.Popen(command, cwd=ROOT, env=settings_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        outcomes, peak = [], 0
        for line in process.stdout:
            outcomes.append(json.loads(line)["outcome"])
            with suppress(BenchError, psutil.NoSuchProcess):  # it has ended
                peak = max(peak, peak_rss_bytes(process.pid))
    assert outcomes == ["still dead"] * 300
    assert process.returncode == 1
    assert 0 < peak < 200_000_000
