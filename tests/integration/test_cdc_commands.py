"""What a person is told by `viewkeeper-cdc` when something is wrong or missing."""

import json
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from compose.local.postgres import PostgresServer
from tests.daemons import Daemons, standard_output
from tests.integration.captured_source import Source
from tests.waiting import wait_until


def test_attach_is_idempotent_and_detach_takes_it_back(source_url: str, daemon: Daemons) -> None:
    attach = daemon("cdc", "attach", "users", "public.tweets")
    assert attach.wait() == 0
    assert attach.log_text().splitlines() == ["public.users: attached", "public.tweets: attached"]
    again = daemon("cdc", "attach", "users")
    assert again.wait() == 0
    assert again.log_text() == "public.users: was attached already\n"
    detach = daemon("cdc", "detach", "users", "tweets", "likes")
    assert detach.wait() == 0
    assert detach.log_text().splitlines() == [
        "public.users: detached",
        "public.tweets: detached",
        "public.likes: was not attached",
    ]
    with psycopg.connect(source_url) as session:
        left = session.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'viewkeeper%'").fetchall()
        assert left == []


@pytest.mark.newest_postgres
@pytest.mark.parametrize("command", ["attach", "detach", "snapshot", "reconcile"])
def test_a_name_that_no_topic_could_have_is_wrong_usage(daemon: Daemons, command: str) -> None:
    refused = daemon("cdc", command, "a.b.c")
    assert refused.wait() == 2
    assert "table a.b.c: schema and name must be of letters, digits, _ and -" in refused.log_text()


@pytest.mark.newest_postgres
def test_attach_and_detach_print_one_json_object(settings_env: dict[str, str]) -> None:
    def tables(*arguments: str) -> list[tuple[str, bool]]:
        found = json.loads(standard_output(settings_env, "cdc", *arguments, "--json"))
        assert found["capture"] == "viewkeeper"
        return [(table["table"], table["was_attached"]) for table in found["tables"]]

    assert tables("attach", "users") == [("public.users", False)]
    assert tables("attach", "public.tweets", "users") == [("public.tweets", False), ("public.users", True)]
    assert tables("detach", "users", "likes") == [("public.users", True), ("public.likes", False)]


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ("CREATE TABLE odd (a integer)", "table public.odd has no primary key"),
        ("CREATE TABLE odd (a float PRIMARY KEY)", "has key column a of type double precision"),
        ("CREATE UNLOGGED TABLE odd (a integer PRIMARY KEY)", "table public.odd is unlogged or temporary"),
        ("CREATE VIEW odd AS SELECT 1 AS a", "public.odd is a view, and changes are keyed: name the columns"),
        ("CREATE TABLE even ()", "there is no table public.odd"),
    ],
)
def test_a_table_that_cannot_be_captured_is_refused(
    source_url: str, daemon: Daemons, definition: str, complaint: str
) -> None:
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute(definition.encode())
    attach = daemon("cdc", "attach", "odd")
    assert attach.wait() == 2
    assert complaint in attach.log_text()


@pytest.mark.newest_postgres
def test_level_and_key_are_options_of_attach(source_url: str, daemon: Daemons) -> None:
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute("CREATE VIEW busy AS SELECT user_id, text FROM tweets")
        assert daemon("cdc", "attach", "tweets", "users", "--level", "row").wait() == 0
        attach = daemon("cdc", "attach", "busy", "--key", "text, user_id")
        assert attach.wait() == 0
        assert "public.busy: a view has no triggers" in attach.log_text()
        assert "SELECT cdc.log_changes('public.busy', '{keys}')" in attach.log_text()
        captured = session.execute(
            "SELECT table_name, kind, level, key_columns FROM cdc.captured_table ORDER BY id"
        ).fetchall()
    assert captured == [
        ("tweets", "table", "row", ["tweet_id"]),
        ("users", "table", "row", ["user_id"]),
        ("busy", "view", "statement", ["text", "user_id"]),
    ]


@pytest.mark.newest_postgres
def test_attach_without_a_table_takes_those_of_the_file(source_url: str, daemon: Daemons, tmp_path: Path) -> None:
    file = tmp_path / "tables.toml"
    file.write_text('[[table]]\nname = "users"\n[[table]]\nname = "public.tweets"\nlevel = "row"\nkey = ["tweet_id"]\n')
    settings = {"VIEWKEEPER_CDC_TABLES": str(file)}
    attach = daemon("cdc", "attach", settings=settings)
    assert attach.wait() == 0
    assert attach.log_text().splitlines() == ["public.users: attached", "public.tweets: attached"]
    with psycopg.connect(source_url) as session:
        levels = session.execute("SELECT level FROM cdc.captured_table ORDER BY id").fetchall()
    assert levels == [("statement",), ("row",)]
    assert daemon("cdc", "detach", "tweets").wait() == 0
    capture = daemon("cdc", "run", settings=settings)
    assert capture.wait() == 2
    assert "VIEWKEEPER_CDC_TABLES names public.tweets, which is not attached" in capture.log_text()


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "name a TABLE, or set VIEWKEEPER_CDC_TABLES"),
        (("--level", "row"), "--level, --key, --columns, --masks go with a TABLE"),
        (("users", "--key", "a,,b"), "--key a,,b is wrong; accepted are column names, each once: a,b"),
        (("users", "--level", "rows"), "'rows' is not one of 'statement', 'row'"),
    ],
)
def test_wrong_options_of_attach_are_named(daemon: Daemons, arguments: tuple[str, ...], complaint: str) -> None:
    attach = daemon("cdc", "attach", *arguments)
    assert attach.wait() == 2
    assert complaint in " ".join(attach.log_text().split())


@pytest.mark.newest_postgres
@pytest.mark.parametrize(("name", "done"), [("attach", "attached"), ("detach", "detached")])
def test_attach_and_detach_wait_for_a_lock_without_making_writers_wait(
    source_url: str, daemon: Daemons, name: str, done: str
) -> None:
    if name == "detach":
        assert daemon("cdc", "attach", "tweets").wait() == 0
    with psycopg.connect(source_url) as holder, psycopg.connect(source_url, autocommit=True) as writer:
        holder.execute("INSERT INTO tweets VALUES (0)")
        writer.execute("SET lock_timeout = '1s'")
        command = daemon("cdc", name, "tweets")

        def waits() -> bool:
            writer.execute("INSERT INTO tweets SELECT coalesce(max(tweet_id), 0) + 1 FROM tweets")
            return bool(command.logged("waiting"))

        wait_until(waits, what="word that it waits")
        (waiting,) = command.logged("waiting")
        assert "lock timeout" in waiting["reason"]
        assert waiting["at_most_seconds"] == 30
        assert command.is_running()
        holder.commit()
        assert command.wait() == 0
    assert command.log_text().splitlines()[-1] == f"public.tweets: {done}"


@pytest.mark.newest_postgres
def test_a_missing_setting_is_named(daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": "", "VIEWKEEPER_CDC_POLL_SECONDS": "soon"})
    assert capture.wait() == 2
    assert "VIEWKEEPER_SOURCE_URL is missing" in capture.log_text()
    assert "VIEWKEEPER_CDC_POLL_SECONDS is wrong" in capture.log_text()


@pytest.mark.newest_postgres
def test_a_missing_migration_names_the_whole_command(postgres: PostgresServer, daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": postgres.url()})
    assert capture.wait() == 2
    assert "schema cdc is missing; run: alembic -c " in capture.log_text()
    assert "alembic.ini -n source upgrade head" in capture.log_text()


@pytest.mark.newest_postgres
def test_a_refused_login_stops_at_once(source_url: str, daemon: Daemons) -> None:
    stranger = source_url.replace(f"{conninfo_to_dict(source_url)['user']}@", "stranger@")
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": stranger})
    assert capture.wait() == 2
    assert "login refused" in capture.log_text()


@pytest.mark.newest_postgres
def test_an_unknown_kafka_option_is_named(daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_KAFKA_NO_SUCH_OPTION": "1"})
    assert capture.wait() == 2
    assert 'No such configuration property: "no.such.option"' in capture.log_text()


@pytest.mark.newest_postgres
def test_an_unreachable_broker_is_waited_for(daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    line = capture.wait_logged("retrying", timeout_seconds=30)
    assert "Kafka 127.0.0.1:1" in line["reason"]
    assert capture.terminate() == 0


@pytest.mark.newest_postgres
def test_an_unreachable_database_is_waited_for(daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_SOURCE_URL": "postgresql://me@127.0.0.1:1/app"})
    wait_until(lambda: len(capture.logged("retrying")) > 1, what="a second try")
    assert "Postgres 127.0.0.1:1/app: cannot connect" in capture.logged("retrying")[0]["reason"]
    assert capture.terminate() == 0


@pytest.mark.newest_postgres
def test_a_table_that_is_not_attached_is_named(daemon: Daemons) -> None:
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_TABLES": "public.tweets"})
    assert capture.wait() == 2
    assert "run: viewkeeper-cdc attach public.tweets" in capture.log_text()


@pytest.mark.newest_postgres
def test_a_standby_stops_at_settings_that_a_leader_would_stop_at(source: Source, daemon: Daemons) -> None:
    source.attach("tweets")
    leader = daemon("cdc", "run")
    leader.wait_logged("leading")
    wrong = {
        "VIEWKEEPER_CDC_TABLES names nope.toml": {"VIEWKEEPER_CDC_TABLES": "nope.toml"},
        "run: viewkeeper-cdc attach public.users": {"VIEWKEEPER_CDC_TABLES": "public.users"},
        "VIEWKEEPER_KAFKA_PARTITIONER is refused": {"VIEWKEEPER_KAFKA_PARTITIONER": "random"},
        'No such configuration property: "no.such.option"': {"VIEWKEEPER_KAFKA_NO_SUCH_OPTION": "1"},
    }
    standbys = {complaint: daemon("cdc", "run", settings=settings) for complaint, settings in wrong.items()}
    for complaint, standby in standbys.items():
        assert standby.wait() == 2
        assert complaint in standby.log_text()
    assert leader.is_running()


@pytest.mark.newest_postgres
def test_a_detach_beside_a_running_capture_is_no_fault(source: Source, daemon: Daemons) -> None:
    source.attach("users", "tweets")
    capture = daemon("cdc", "run")
    source.wait_published("users", "tweets")
    assert daemon("cdc", "detach", "tweets").wait() == 0
    wait_until(lambda: source.entry("tweets") is None, what="a cursor without the table")
    # Not at all if it looks at the catalog just then.
    told = [(line["level"], line["reason"].partition(":")[0]) for line in capture.logged("retrying")]
    assert told in ([], [("info", "a table was altered or detached meanwhile")])
    source.wait_published("users")
