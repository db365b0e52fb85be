"""`viewkeeper-cdc status`: what is attached, how far it has come, what a person has to see to."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from compose.local.process import free_port
from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets
from tests.integration.projector_steps import as_of, shown
from tests.waiting import wait_until

# What these tests are about is none of the versions' business, and they take long.
pytestmark = pytest.mark.newest_postgres

TOO_LARGE = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)"
HOLD_BACK = {"VIEWKEEPER_CDC_ON_OVERSIZE_ROW": "hold_back"}
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
ONE_MEGABYTE = {"VIEWKEEPER_CDC_LOG_LIMIT_MB": "1"}


class StatusCommand:
    """Runs the command, and remembers its exit code."""

    def __init__(self, daemon: Daemons) -> None:
        self._daemon = daemon
        self.exit_code = 0

    def __call__(self) -> dict[str, Any]:
        """Return what it prints as JSON."""
        found: dict[str, Any] = json.loads(self.text("--json"))
        assert self.exit_code == (1 if found["needs_a_person"] else 0)
        return found

    def table(self, name: str) -> dict[str, Any]:
        """Return what it says of one table."""
        return next(table for table in self()["tables"] if table["table"] == f"public.{name}")

    def text(self, *options: str, columns: int = 80, settings: Mapping[str, str] = NO_SETTINGS) -> str:
        command = self._daemon("cdc", "status", *options, settings={"COLUMNS": str(columns), **settings})
        # It asks a broker that is away for ten seconds, and has to start before that.
        self.exit_code = command.wait(timeout_seconds=30)
        return command.log_text()


@pytest.fixture
def status(daemon: Daemons) -> StatusCommand:
    return StatusCommand(daemon)


def test_it_works_before_anything_is_there(source: Source, status: StatusCommand) -> None:
    found = status()
    assert found["capture"] == "viewkeeper"
    assert found["topic_prefix"] == source.prefix
    assert found["leader"] == {"name": None, "alive": False}
    assert (found["tables"], found["requests"], found["cursor_topic"], found["token_known"]) == ([], [], None, None)
    assert found["needs_a_person"] == ["capture viewkeeper has no leader; run: viewkeeper-cdc run"]


def test_without_its_broker_it_shows_what_the_source_knows(
    source: Source, daemon: Daemons, status: StatusCommand
) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    away = {"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    *before, last = status.text("--json", settings=away).splitlines()
    assert {json.loads(line)["event"] for line in before} == {"kafka_client"}
    found = json.loads(last)
    (tweets,) = found["tables"]
    assert status.exit_code == 1
    assert found["leader"]["alive"] is True
    assert tweets["change_log"]["limit_bytes"] > tweets["change_log"]["filling_bytes"]
    assert (tweets["phase"], tweets["topic"], found["token_known"], found["cursor_topic"]) == (None, None, None, None)
    assert found["needs_a_person"] == [
        f"{found['broker_trouble']}; until it answers nothing is published, and changes wait in the source"
    ]
    assert away["VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS"] in found["broker_trouble"]
    words = status.text(settings=away)
    assert "no cursor yet" not in words
    assert "not taken up yet" not in words
    assert capture.terminate() == 0


def test_a_capture_that_runs_needs_nobody(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.run(insert_tweets(1, 300))
    source.attach("tweets")
    daemon("cdc", "run", settings={"VIEWKEEPER_TOPIC_PARTITIONS": "3"})
    source.wait_published("tweets")
    found = status()
    assert found["needs_a_person"] == []
    assert found["leader"]["alive"]
    assert found["token_known"]
    (table,) = found["tables"]
    assert (table["phase"], table["snapshot"], table["sweep"], table["held_back"]) == ("complete", None, None, [])
    assert 0 <= table["freshness_seconds"] < 5
    assert not table["uncertain"]
    assert table["change_log"]["records_waiting"] == 0
    assert table["change_log"]["limit_bytes"] == 512 * 1024 * 1024
    topic = table["topic"]
    assert (topic["name"], topic["partitions"]) == (source.topic_name("tweets"), 3)
    assert (topic["cleanup_policy"], topic["delete_retention_ms"]) == ("compact", 7 * 24 * 3600 * 1000)
    assert topic["max_message_bytes"] == 1048588
    assert found["cursor_topic"]["name"] == f"{source.prefix}.cursor"


def test_a_capture_that_was_killed_is_noticed(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    capture.kill()
    source.run(insert_tweets(1, 300), "DELETE FROM tweets WHERE tweet_id <= 100")
    found = status()
    assert found["leader"]["name"]
    assert not found["leader"]["alive"]
    assert "gives no sign of life" in found["needs_a_person"][0]
    assert found["token_known"], "nothing happened to the source"
    (table,) = found["tables"]
    assert table["change_log"]["records_waiting"] == 400
    old = wait_until(
        lambda: [need for need in status()["needs_a_person"] if "watermark" in need], what="an old watermark"
    )
    assert old[0].startswith("public.tweets: its watermark is 1")


def test_another_source_is_noticed(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_published("tweets")
    capture.terminate()
    source.run("UPDATE cdc.capture SET pending_token = 'older', published_token = 'older'")
    found = status()
    assert found["token_known"] is False
    assert any("the source's mark is not the cursor's" in need for need in found["needs_a_person"])


def test_a_snapshot_under_way_shows_rows_and_total(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.run(
        "CREATE TABLE readings (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE readings_1 PARTITION OF readings FOR VALUES FROM (1) TO (20001)",
        "CREATE TABLE readings_2 PARTITION OF readings FOR VALUES FROM (20001) TO (60001)",
        "INSERT INTO readings SELECT generate_series(1, 60000)",
        "ANALYZE readings",
    )
    source.attach("readings")
    daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "20"})

    def reading() -> dict[str, Any] | None:
        table = status.table("readings")
        return table if table["snapshot"] and table["snapshot"]["rows"] else None

    table = wait_until(reading, what="a snapshot under way")
    assert table is not None
    assert table["phase"] == "reading"
    assert table["watermark_time"] is None
    snapshot = table["snapshot"]
    assert 0 < snapshot["rows"] < snapshot["total_rows"] == 60_000
    assert snapshot["rows"] % 20 == 0
    left = (snapshot["total_rows"] - snapshot["rows"]) / snapshot["rows_per_second"]
    assert snapshot["seconds_left"] == pytest.approx(left)


def test_a_change_log_over_half_of_its_limit_is_noticed(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.attach("tweets")
    capture = daemon("cdc", "run", settings=ONE_MEGABYTE)
    source.wait_published("tweets")
    wait_until(lambda: status.table("tweets")["change_log"]["limit_bytes"] == 512 * 1024, what="the limit to be set")
    capture.terminate()
    source.run(insert_tweets(1, 8_000))
    found = status()
    log = found["tables"][0]["change_log"]
    assert log["bytes"] > log["filling_bytes"] > 256 * 1024
    assert any(need.startswith("public.tweets: its change log is ") for need in found["needs_a_person"])
    assert log["records_waiting"] == 8_000


def test_requests_that_wait_are_listed(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.attach("tweets")
    assert daemon("cdc", "snapshot", "tweets").wait() == 0
    found = status()
    assert [request["table"] for request in found["requests"]] == ["public.tweets"]
    assert "public.tweets is attached, and the capture has not taken it up" in found["needs_a_person"]


def test_the_oldest_open_transaction_is_named(source: Source, status: StatusCommand) -> None:
    with source.session() as older, source.session() as younger:
        older.execute("SET application_name = 'nightly'")
        older.commit()
        older.execute("SELECT 1")
        younger.execute("SELECT 1")
        found = status()["oldest_transaction"]
        assert (found["pid"], found["application"]) == (older.info.backend_pid, "nightly")
        assert (found["state"], found["prepared_as"]) == ("idle in transaction", None)
        assert found["age_seconds"] > 0
    assert status()["oldest_transaction"] is None


def test_a_topic_that_would_lose_rows_is_noticed(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.attach("tweets")
    daemon("cdc", "run")
    source.wait_published("tweets")
    policy = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, source.topic_name("tweets"), incremental_configs=[policy])
    client = AdminClient({"bootstrap.servers": source.bootstrap_servers})
    client.incremental_alter_configs([resource])[resource].result()
    wait_until(lambda: status()["needs_a_person"], what="word of the policy")
    assert status()["needs_a_person"] == [
        f"topic {source.topic_name('tweets')} has cleanup.policy=delete, and is to be compact"
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_text_fits_and_nothing_is_cut(source: Source, daemon: Daemons, status: StatusCommand, columns: int) -> None:
    long_name = "a_table_with_a_name_as_long_as_a_migration_tool_would_make_it"
    source.run(f"CREATE TABLE {long_name} (id integer PRIMARY KEY)")
    source.attach("tweets", long_name)
    daemon("cdc", "run")
    source.wait_published("tweets", long_name)
    text = status.text(columns=columns)
    assert status.exit_code == 0
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    first_column = "".join(line.split("  ")[0].strip() for line in lines if not line.startswith(" "))
    assert f"public.{long_name}" in first_column
    assert "…" not in text
    assert "Nothing needs a person." in text


def test_a_source_that_cannot_be_reached_is_named(daemon: Daemons) -> None:
    command = daemon("cdc", "status", settings={"VIEWKEEPER_SOURCE_URL": "postgresql://me@127.0.0.1:1/app"})
    assert command.wait(30) == 1
    assert command.log_text().startswith("error: Postgres 127.0.0.1:1/app: cannot connect")


def test_c16_a_row_too_large_is_held_back_and_seen_everywhere(
    source: Source, view_url: str, daemon: Daemons, status: StatusCommand
) -> None:
    source.attach("users", "tweets", "follows", "likes")
    daemon("cdc", "run", settings=HOLD_BACK)
    daemon("projector", "run")
    source.run("INSERT INTO users (user_id, username) VALUES (1, 'ann')")
    source.run(
        f"BEGIN; INSERT INTO tweets VALUES (1, 1, 'small'); INSERT INTO tweets SELECT 2, 1, {TOO_LARGE}; "
        "INSERT INTO tweets VALUES (3, 1, 'small'); COMMIT"
    )
    wait_until(lambda: shown(view_url).get(1, {}).get("tweet_count") == 2, what="the others to be counted")
    wait_until(lambda: as_of(view_url)[1] == ["held_back"], what="the flag")
    assert source.topic("tweets").rows().keys() == {'{"tweet_id":1}', '{"tweet_id":3}'}
    found = status()
    held = {table["table"]: table["held_back"] for table in found["tables"]}
    assert held == {"public.users": [], "public.tweets": ['{"tweet_id":2}'], "public.follows": [], "public.likes": []}
    assert found["needs_a_person"] == ["public.tweets: 1 rows are held back, too large for their topic"]
    assert '{"tweet_id":2}' in status.text()
    source.run("UPDATE tweets SET text = 'short now' WHERE tweet_id = 2")
    wait_until(lambda: shown(view_url)[1]["tweet_count"] == 3, what="the row to be published")
    wait_until(lambda: as_of(view_url)[1] == [], what="the flag to go")
    assert status()["needs_a_person"] == []
    source.assert_topic_equals_table("tweets", "tweet_id")


@pytest.mark.parametrize("statement", ["TRUNCATE tweets", "DELETE FROM tweets WHERE tweet_id = 2"])
def test_a_row_that_is_gone_is_held_back_no_longer(
    source: Source, daemon: Daemons, status: StatusCommand, statement: str
) -> None:
    source.run(f"INSERT INTO tweets SELECT 2, 1, {TOO_LARGE}")
    source.attach("tweets")
    first = daemon("cdc", "run", settings=HOLD_BACK)
    source.wait_published("tweets")
    assert status.table("tweets")["held_back"] == ['{"tweet_id":2}']
    first.kill()
    daemon("cdc", "run", settings=HOLD_BACK)
    source.wait_published("tweets")
    assert status.table("tweets")["held_back"] == ['{"tweet_id":2}'], "a restart forgets none"
    source.run(statement)
    wait_until(lambda: status.table("tweets")["held_back"] == [], what="the list to be empty")


def test_c16_a_rows_key_counts_for_its_size(source: Source, daemon: Daemons, status: StatusCommand) -> None:
    source.run("CREATE TABLE notes (name text PRIMARY KEY, text text)")
    source.attach("notes")
    daemon("cdc", "run", settings=HOLD_BACK)
    # Row and key are each less than a message may be, and more together.
    source.run("INSERT INTO notes VALUES (repeat('k', 2600), repeat('x', 995250)), ('short', 'row')")
    source.wait_published("notes")
    assert source.topic("notes").rows().keys() == {'{"name":"short"}'}
    assert status.table("notes")["held_back"] == ['{"name":"' + 2600 * "k" + '"}']


def test_more_rows_are_not_held_back_than_the_cursor_has_room_for(source: Source, daemon: Daemons) -> None:
    source.run("CREATE TABLE notes (name text PRIMARY KEY, text text)")
    source.attach("notes")
    capture = daemon("cdc", "run", settings=HOLD_BACK)
    source.wait_published("notes")
    source.run("INSERT INTO notes SELECT i || repeat('k', 2600), repeat('x', 1000000) FROM generate_series(1, 80) i")
    assert capture.wait(30) == 1
    assert "77 rows are too large, and the cursor has no room for the keys of more" in capture.log_text()


def test_text_in_brackets_is_shown_as_it_is(source: Source, status: StatusCommand) -> None:
    with source.session() as session:
        session.execute("SET application_name = 'nightly [red] :smile:'")
        session.commit()
        session.execute("SELECT 1")
        assert "nightly [red] :smile:" in status.text(columns=120)
